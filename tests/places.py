"""Folders that tests start programs in, or read files of."""

from pathlib import Path

TESTS = Path(__file__).parent
CHECKOUT = TESTS.parent
EXPERIMENTS = CHECKOUT / "experiments"
SPACES = CHECKOUT / "search_spaces"
README = CHECKOUT / "README.md"
