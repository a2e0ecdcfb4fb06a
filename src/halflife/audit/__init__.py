"""explain and assert_decay: which parameters decay, by which law, and why, for a model and its optimizers."""

from __future__ import annotations

from halflife.audit.expect import assert_decay
from halflife.audit.findings import Finding
from halflife.audit.table import Explanation, explain

__all__ = ["Explanation", "Finding", "assert_decay", "explain"]
