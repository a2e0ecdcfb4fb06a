"""explain and assert_decay: which parameters decay, by which law, and why, for a model and its optimizers."""

from __future__ import annotations

from halflife.audit.expectations import assert_decay
from halflife.audit.explanation import Explanation, explain
from halflife.audit.findings import Finding

__all__ = ["Explanation", "Finding", "assert_decay", "explain"]


def __dir__() -> list[str]:
    return sorted(__all__)
