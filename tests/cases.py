"""What several test modules share: the table of `halflife.conformance`, cut to what their tests need."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

from halflife import mechanisms
from halflife.conformance.formula_cases import FORMULAS as RULES
from halflife.conformance.formula_cases import FormulaCase as RuleCase
from halflife.conformance.formulas import adam_update, scalar_run, sgd_update
from halflife.conformance.optimizers import Variant as OptimizerCase
from halflife.conformance.optimizers import variants
from halflife.conformance.problem import LAM, Problem

__all__ = [
    "LAM",
    "OPTIMIZERS",
    "RULES",
    "OptimizerCase",
    "Problem",
    "RuleCase",
    "adam_update",
    "own_pass_only",
    "scalar_run",
    "sgd_update",
]

# One form of each kind of optimizer, and all forms of the one that most people use; tests/test_conformance.py has
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
    with mock.patch.object(mechanisms, "applies_natively", return_value=False):
        yield
