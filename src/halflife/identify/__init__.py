"""identify: proof which decay an optimizer applies, by stepping throw-away copies of it."""

from __future__ import annotations

from halflife.identify.factory import identify
from halflife.identify.law import Law

__all__ = ["Law", "identify"]
