"""What a user sees while something runs: the last lines of a terminal, and what is said meanwhile above them."""

from condkd_ray.commands.console.live import TERMINAL, Live, bar
from condkd_ray.commands.console.screen import SCREEN, Screen, columns

__all__ = ["SCREEN", "TERMINAL", "Live", "Screen", "bar", "columns"]
