"""``assert_decay``: the decay that a test, or a CI, expects, compared with the one that is applied."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from halflife.audit.rows import Row
from halflife.audit.table import explain
from halflife.errors import UserError
from halflife.groups.policies import KINDS
from halflife.laws.law import RULE_EXPONENTS

__all__ = ["TOLERANCE", "Expected", "assert_decay", "claims", "mismatches"]

TOLERANCE = 1e-3  # relative, of lam
EVERYTHING = ("everything", "rest", "*")

# The names that `halflife.identify` gives to laws, and those of the pathways that are an answer in themselves.
LAWS = (
    "none",
    *RULE_EXPONENTS,
    *("stable", "half-life", "cautious", "scheduled", "normalized", "norm-target", "sphere", "toward"),
    *("l2", "l2-preconditioned"),
)


@dataclass(frozen=True)
class Expected:
    """A law and the lam that should hold.

    Attributes:
        law: The name of the law, or ``"none"``.
        lam: The coefficient, in the unit of the law (for ``"half-life"``: steps); None if any will do.
    """

    law: str
    lam: float | None

    @classmethod
    def parse(cls, value: object) -> Expected:
        """Read ``"decoupled:0.1"``, ``"decoupled"`` or ``"none"``.

        Args:
            value: The text.

        Returns:
            What it says.

        Raises:
            UserError: If it cannot be read.
        """
        law, colon, number = value.partition(":") if isinstance(value, str) else ("", "", "")
        if law not in LAWS:
            raise UserError(
                f"expected decay as LAW:LAM, such as 'decoupled:0.1', or 'none', got {value!r}; LAW is one of "
                f"{', '.join(LAWS)}"
            )
        if not colon:
            return cls(law, None)
        try:
            lam = float(number)
        except ValueError:
            lam = float("nan")
        if law == "none" or not 0.0 < lam < float("inf"):
            raise UserError(
                f"the number in {value!r} must be finite and > 0"
                if law != "none"
                else f"got {value!r}; 'none' takes no number: write 'none'"
            )
        return cls(law, lam)

    def __str__(self) -> str:
        return self.law if self.lam is None else f"{self.law}:{self.lam:g}"

    def holds_for(self, row: Row) -> bool:
        """Return whether a parameter decays as expected; what was not probed never does."""
        if self.law == "none":
            return row.decays is False
        law, group = row.law, row.group
        if not row.decays or law is None or group is None:
            return False
        # By its pathway only where that says enough: a decoupled decay applied twice has no name.
        names = {law.name, law.equivalent_to if law.name else None}
        if law.pathway.startswith("l2"):
            names |= {law.pathway}
        if self.law not in names:
            return False
        lam = row.half_life if law.name == "half-life" else group.lam
        return self.lam is None or (lam is not None and abs(lam - self.lam) <= TOLERANCE * self.lam)


def found(row: Row) -> str:
    """Say in a few words how a parameter decays."""
    if row.decays is None or row.law is None or not row.decays:
        return row.why if row.decays is None else f"none ({row.why})"
    if row.law.name is None or row.group is None:
        return row.law.describe()
    lam = row.half_life if row.law.name == "half-life" else row.group.lam
    return row.law.name if lam is None else f"{row.law.name}:{lam:.6g}"


def claims(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """Let each parameter go to the first key that matches it.

    Args:
        rows: The parameters.
        keys: Kinds, name patterns, or ``"everything"``.

    Returns:
        The trainable parameters of each key.

    Raises:
        UserError: If a key matches nothing, or nothing that an earlier one left.
    """
    trainable = [row for row in rows if row.parameter.requires_grad]
    claimed: list[list[Row]] = [[] for _ in keys]
    matched = [[row for row in trainable if _matches(key, row)] for key in keys]
    for row in trainable:
        first = next((number for number, found in enumerate(matched) if row in found), None)
        if first is not None:
            claimed[first].append(row)
    for key, all_of_it, left in zip(keys, matched, claimed, strict=True):
        if not all_of_it and key not in KINDS:
            raise UserError(
                f"{key!r} matches no trainable parameter; expected one of {', '.join(KINDS)}, everything, or a "
                f"pattern over names such as {trainable[0].name!r}"
                if trainable
                else "nothing is trainable"
            )
        if all_of_it and not left:
            raise UserError(f"{key!r} claims nothing that an earlier key left: put it first, or remove it")
    return claimed


def _matches(key: str, row: Row) -> bool:
    if key in EVERYTHING:
        return True
    return row.kind == key if key in KINDS else any(fnmatch.fnmatchcase(name, key) for name in row.names)


def mismatches(rows: Sequence[Row], expected: Expected, what: str) -> str | None:
    """Compare some parameters with what is expected of all of them.

    Args:
        rows: The parameters.
        expected: The decay.
        what: What they are called in the sentence.

    Returns:
        None if it holds, else a sentence that names the first ones that differ.
    """
    if not rows:
        return None if expected.law == "none" else f"{what}: expected {expected}, found no such parameter"
    wrong = [row for row in rows if not expected.holds_for(row)]
    if not wrong:
        return None
    listed = "; ".join(f"{row.name}: found {found(row)}" for row in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{what}: expected {expected}, but {len(wrong)} of {len(rows)} differ. {listed}{more}"


def assert_decay(model: nn.Module, optimizer: Optimizer | Sequence[Optimizer], expected: Mapping[str, str]) -> None:
    """Fail if the decay that is applied is not the one that is expected; for tests and CI.

    Keys are the kinds ``"matrices"``, ``"embeddings"``, ``"norms"``, ``"biases"``, ``"others"``, shell patterns over
    parameter names, or ``"*"`` for everything. The first key that matches a parameter decides for it, so ``"*"``
    stands last and means the rest. What no key matches is not checked. Frozen parameters are left out.

    Values are ``"LAW:LAM"`` with a law's name as `halflife.identify` gives it and its coefficient, compared to a
    relative 1e-3 (for ``"half-life"`` a number of steps); a law alone, which takes any coefficient; or ``"none"``.
    A decay that could not be probed fulfils no expectation, not ``"none"`` either, and one that is applied twice
    is not the law that it is twice of.

    Args:
        model: The model.
        optimizer: The optimizer, or all those that train the model.
        expected: What should hold, such as ``{"matrices": "decoupled:0.1", "*": "none"}``.

    Raises:
        AssertionError: If it does not hold; the message names the first parameters, with what was found.
        UserError: If an expectation cannot be read, or a key matches nothing.

    Examples:
        >>> import torch, halflife
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        >>> optimizer = torch.optim.AdamW(halflife.param_groups(model, weight_decay=0.1), lr=1e-3)
        >>> assert_decay(model, optimizer, {"matrices": "decoupled:0.1", "*": "none"})
    """
    if not isinstance(expected, Mapping) or not all(isinstance(key, str) for key in expected):
        raise UserError(f'expected a dict such as {{"matrices": "decoupled:0.1", "*": "none"}}, got {expected!r}')
    wanted = {key: Expected.parse(value) for key, value in expected.items()}
    if not wanted:
        raise UserError('nothing is expected; give at least one key, such as {"matrices": "decoupled:0.1"}')
    table = explain(model, optimizer)
    claimed = claims(table.parameters, list(wanted))
    wrong = [mismatches(rows, value, key) for (key, value), rows in zip(wanted.items(), claimed, strict=True)]
    failures = [sentence for sentence in wrong if sentence is not None]
    if failures:
        raise AssertionError("\n".join(failures))
