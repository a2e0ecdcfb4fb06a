"""Tests: one folder a package, and `tests.oracles` for what only tests compare with."""

from pathlib import Path

ROOT = Path(__file__).parent.parent

FLOOR_BINDS = "the floor of Stable"  # how the warning begins with which a row of the table of rules must come
