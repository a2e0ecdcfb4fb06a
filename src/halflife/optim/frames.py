"""Whose line a warning points to."""

from __future__ import annotations

import sys
from types import FrameType

__all__ = ["level_of_the_user"]


def level_of_the_user() -> int:
    """Return how far above the caller the code is that is neither torch's nor ours: it called ``step``."""
    level = 1
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(("halflife.", "torch.")):
        level, frame = level + 1, frame.f_back
    return level
