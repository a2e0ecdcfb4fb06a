"""Optimizers that would deceive a careless look at their weight decay, and what they really do."""

from tests.laws.adversaries import hostile, inner, oddities, read_elsewhere, skipping
from tests.laws.adversaries.parts import Entry

__all__ = ["TABLE"]

TABLE: list[Entry] = [*read_elsewhere.ENTRIES, *skipping.ENTRIES, *inner.ENTRIES, *oddities.ENTRIES, *hostile.ENTRIES]
