"""explain and assert_decay: which parameters decay, by which law, and why, for a model and its optimizers."""

from __future__ import annotations

from halflife.explain.expect import assert_decay
from halflife.explain.table import Explanation, explain
from halflife.explain.warn import Warn

__all__ = ["Explanation", "Warn", "assert_decay", "explain"]
