"""identify: proof which decay an optimizer applies, by stepping throw-away copies of it."""

from __future__ import annotations

from halflife.laws.factory import identify
from halflife.laws.law import Law
from halflife.laws.live import laws_of

__all__ = ["Law", "identify", "laws_of"]


def __dir__() -> list[str]:
    return sorted(__all__)
