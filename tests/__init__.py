"""Tests: one folder a package, and `tests.oracles` for what only tests compare with."""

from pathlib import Path

ROOT = Path(__file__).parent.parent
