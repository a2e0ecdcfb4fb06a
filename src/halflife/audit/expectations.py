"""The decay that a test or a CI expects, compared with the one that is applied: ``assert_decay``, and ``audit --expect``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit.explanation import Explanation, explain
from halflife.audit.rows import Row, times_in_words
from halflife.errors import UserError, shortened
from halflife.groups.names import matcher
from halflife.groups.policies import KINDS
from halflife.rules.registry import law_names

__all__ = ["Check", "Expected", "assert_decay", "check", "parse_expectation"]

TOLERANCE = 1e-3  # relative, of lam
NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
EVERYTHING = ("everything", "rest", "*")

# The names that `halflife.identify` gives to laws, and those of the pathways that are an answer in themselves.
LAWS = ("none", *law_names(), "l2-preconditioned")


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
        """Read ``"decoupled:0.1"``, ``"decoupled"`` or ``"none"``; raise a UserError for anything else."""
        law, colon, number = value.partition(":") if isinstance(value, str) else ("", "", "")
        got = shortened(value)
        if law not in LAWS:
            raise UserError(
                f"expected decay as LAW:LAM, such as 'decoupled:0.1', or 'none', got {got}; LAW is one of "
                f"{', '.join(LAWS)}"
            )
        if not colon:
            return cls(law, None)
        lam = float(number) if NUMBER.fullmatch(number) else float("nan")
        if law == "none" or not 0.0 < lam < float("inf"):
            raise UserError(
                f"the number in {got} must be finite and > 0, such as 0.1 or 1e-3"
                if law != "none"
                else f"got {got}; 'none' takes no number: write 'none'"
            )
        return cls(law, lam)

    def __str__(self) -> str:
        return self.law if self.lam is None else f"{self.law}:{self.lam:g}"

    def holds_for(self, row: Row) -> bool:
        """Return whether a parameter decays as expected, by all that its optimizers remove; False where one is not known."""
        if self.law == "none":
            return row.decays is False
        law = row.law
        # What is removed twice per iteration is no law that a name says, and what was not probed fulfils nothing.
        if law is None or row.effect.removals != 1 or any(holder.decays is None for holder in row.effect.holders):
            return False
        # A decay without a name, such as a decoupled one that is applied twice, is not known by its pathway either.
        names = {law.name, law.equivalent_to if law.name else None}
        if law.pathway.startswith("l2"):
            names |= {law.pathway}
        if self.law not in names:
            return False
        lam = row.half_life if law.name == "half-life" else row.lam
        return self.lam is None or (lam is not None and abs(lam - self.lam) <= TOLERANCE * self.lam)


def _description(row: Row) -> str:
    """Return in a few words how a parameter decays."""
    if not row.decays or row.law is None:
        return row.why if row.decays is None else f"none ({row.why})"
    if row.effect.removals > 1:
        by = "" if len(row.effect.acting) == 1 else f" by {len(row.effect.acting)} optimizers"
        together = "" if row.r is None else f", {row.r:.4g} together"
        return f"a decay that is removed {times_in_words(row.effect.removals)} per iteration{by}{together}"
    if any(holder.decays is None for holder in row.effect.holders):
        return f"{_law_in_words(row)}, and another optimizer that was not probed"
    return _law_in_words(row)


def _law_in_words(row: Row) -> str:
    assert row.law is not None
    if row.law.name is None:
        return row.law.describe() if row.law.pathway != "not probed" else row.why
    lam = row.half_life if row.law.name == "half-life" else row.lam
    text = row.law.name if lam is None else f"{row.law.name}:{lam:.6g}"
    return ", ".join([text, *row.effect.notes])


def rows_by_key(rows: Sequence[Row], keys: Sequence[str]) -> list[list[Row]]:
    """Return the parameters of each key: the first key that matches a parameter has it.

    Frozen parameters that no step moves are left out, unless a pattern matches no others.

    Raises:
        UserError: If a key matches nothing, or only what earlier keys match.
    """
    left = [row for row in rows if not _stays(row)]
    still = [row for row in rows if _stays(row)]
    everything, chosen = list(left), []
    for key in keys:
        matches = _matcher(key, rows)
        matching = [row for row in left if matches(row)]
        if not matching and any(map(matches, everything)):
            raise UserError(f"{key!r} matches only parameters that earlier keys match: put it first, or remove it")
        if not matching and key not in KINDS and key not in EVERYTHING:
            matching = [row for row in still if matches(row)]
            taken = set(map(id, matching))
            still = [row for row in still if id(row) not in taken]
        if not matching and key not in KINDS:
            example = next(iter(everything or still), None)
            raise UserError(
                f"{key!r} matches no trainable parameter; expected one of "
                f"{', '.join(KINDS)}, everything, or a pattern over names such as {example.name!r}"
                if example
                else "nothing is trainable"
            )
        taken = set(map(id, matching))
        left = [row for row in left if id(row) not in taken]
        chosen.append(matching)
    return chosen


def _stays(row: Row) -> bool:
    """Return whether a parameter has nothing to decay, or is frozen and, as far as is known, not decayed by a step either."""
    return not row.decays and (row.is_frozen or row.parameter.numel() == 0)


def _matcher(key: str, rows: Sequence[Row]) -> Callable[[Row], bool]:
    if key in EVERYTHING:
        return lambda row: True
    if key in KINDS:
        return lambda row: row.kind == key
    matches = matcher(key, (pair for row in rows for pair in zip(row.names, row.bare, strict=True)))
    return lambda row: any(map(matches, zip(row.names, row.bare, strict=True)))


def mismatch(rows: Sequence[Row], expected: Expected, what: str) -> str | None:
    """Return how some parameters, called ``what``, differ from what is expected of all of them; None if they do not."""
    if not rows:
        return None if expected.law == "none" else f"{what}: expected {expected}, found no such parameter"
    wrong = [row for row in rows if not expected.holds_for(row)]
    if not wrong:
        return None
    listed = "; ".join(f"{row.name}: found {_description(row)}" for row in wrong[:3])
    more = f"; and {len(wrong) - 3} more" if len(wrong) > 3 else ""
    return f"{what}: expected {expected}, but {len(wrong)} of {len(rows)} differ. {listed}{more}"


def assert_decay(
    model: nn.Module | Iterable[Any] | None,
    optimizer: Optimizer | Iterable[Any],
    expected: Mapping[str, str],
    *,
    in_place: bool = False,
) -> None:
    """Fail if the decay that is applied is not the one that is expected; for tests and CI.

    Keys are the kinds ``"matrices"``, ``"embeddings"``, ``"norms"``, ``"biases"``, ``"others"``, shell patterns over
    parameter names (what wrappers such as ``torch.compile`` put into names does not matter), or ``"*"`` for
    everything. The first key that matches a parameter decides for it, so ``"*"`` stands last and means the rest.
    What no key matches is not checked. Frozen parameters that a step does not decay are left out, unless a pattern
    matches no others: ``"backbone.*": "none"`` is then about them. Those that a step decays although they are
    frozen are checked as all others.

    Values are ``"LAW:LAM"`` with a law's name as `halflife.identify` gives it and its coefficient, compared to a
    relative 1e-3 (for ``"half-life"`` a number of calls of ``step()``); a law alone, which takes any coefficient; or
    ``"none"``. The coefficient is the one that was seen to act, whatever the group says. Where the decay could not be
    probed, every expectation fails, ``"none"`` included. A decay that is removed twice per iteration, by two
    optimizers or by one, fails every law. One that acts at every n-th call fulfils its law.

    Args:
        model: The model, or several, as in `explain`; None if there is only the optimizer: keys are then patterns.
        optimizer: The optimizer, or all those that train the model, as in `explain`.
        expected: What should hold, such as ``{"matrices": "decoupled:0.1", "*": "none"}``.
        in_place: Step the real optimizer, and put everything back; see `explain`.

    Raises:
        AssertionError: If it does not hold; the message names the first parameters, with what was found.
        UserError: If an expectation cannot be read, or a key matches nothing; and as `explain` raises it.

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
    if model is None and (kinds := [key for key in wanted if key in KINDS]):
        raise UserError(
            f"without the model parameters have no kinds such as {kinds[0]!r}; give the model, or use patterns"
        )
    chosen = rows_by_key(explain(model, optimizer, in_place=in_place).parameters, list(wanted))
    pairs = zip(wanted.items(), chosen, strict=True)
    failures = [wrong for (key, value), rows in pairs if (wrong := mismatch(rows, value, key)) is not None]
    if failures:
        raise AssertionError("\n".join(failures))


@dataclass(frozen=True)
class Check:
    """One expectation and how it came out.

    Attributes:
        expected: What was asked for, as given.
        holds: Whether it holds.
        sentence: What differs; empty if it holds.
    """

    expected: str
    holds: bool
    sentence: str


def parse_expectation(text: str) -> tuple[str, str | None, Expected]:
    """Return the text, the key (None for every parameter that decays) and the decay of ``[KEY=]LAW:LAM``."""
    key, equals, value = text.rpartition("=")
    if equals and not key:
        raise UserError(f"--expect {shortened(text)} has no key; write LAW:LAM or KEY=LAW:LAM")
    return text, key or None, Expected.parse(value)


def check(
    table: Explanation, wanted: Sequence[tuple[str, str | None, Expected]], *, has_model: bool = True
) -> list[Check]:
    """Compare an explanation with expectations.

    Args:
        table: The explanation.
        wanted: Text, key (None for every group that decays) and expectation.
        has_model: Whether the model is known, without which there are no kinds.

    Returns:
        One check each, in order.

    Raises:
        UserError: If a key names a kind and there is no model, or a key matches nothing.
    """
    keyed = [key for _, key, _ in wanted if key is not None]
    if not has_model and any(key in KINDS for key in keyed):
        raise UserError(
            f"the target gave only an optimizer, whose parameters have no kinds such as {keyed[0]!r}; "
            "let it return (model, optimizer)"
        )
    chosen = dict(zip(keyed, rows_by_key(table.parameters, keyed), strict=True)) if keyed else {}
    checks = []
    for text, key, expected in wanted:
        if key is None:
            sentence = _mismatch_of_all(table.parameters, expected)
        else:
            sentence = mismatch(chosen[key], expected, "everything else" if key in EVERYTHING else key)
        checks.append(Check(text, sentence is None, sentence or ""))
    return checks


def _mismatch_of_all(rows: Sequence[Row], expected: Expected) -> str | None:
    """Compare everything that decays, or could not be probed, with one expectation."""
    moving = [row for row in rows if not _stays(row)]
    if expected.law == "none":
        return mismatch(moving, expected, "all parameters")
    acting = [row for row in moving if row.decays is not False]
    if not acting:
        return f"all parameters that decay: expected {expected}, but nothing decays"
    return mismatch(acting, expected, "all parameters that decay")
