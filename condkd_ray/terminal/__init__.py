"""What a user sees while something runs: the last lines of a terminal, and what is said meanwhile above them."""

from condkd_ray.terminal.bars import bar
from condkd_ray.terminal.live import Live, round_line
from condkd_ray.terminal.screen import SCREEN, Screen, columns

__all__ = ["SCREEN", "Live", "Screen", "bar", "columns", "round_line"]
