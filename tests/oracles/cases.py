"""What several test modules share: the table of `halflife.selfcheck`, cut to what their tests need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from halflife.optim import apply
from halflife.selfcheck.optimizers import variants
from halflife.selfcheck.rules import RULES, FormulaCase

__all__ = ["FORMULAS", "OPTIMIZERS", "own_pass_only"]

FORMULAS = [case for case in RULES if isinstance(case, FormulaCase)]

# One form of each kind of optimizer, and all forms of the one that most people use; tests/selfcheck/test_conformance.py has
# all of them.
FORMS = {"AdamW": {"for-loop", "foreach", "fused"}, "SGD": {"foreach"}, "Adam": {"fused"}}
NAMES = {"NAdam", "RAdam, decoupled", "SGD, momentum", "RMSprop", "Adagrad", "Adafactor", "Muon"}

OPTIMIZERS = [
    variant
    for variant in variants()
    if variant.form in FORMS.get(variant.case.name, {"for-loop", ""}) and variant.case.name in {*FORMS, *NAMES}
]


@contextmanager
def own_pass_only() -> Iterator[None]:
    """Make every optimizer take the own pass."""
    with mock.patch.object(apply, "applies_natively", return_value=False):
        yield
