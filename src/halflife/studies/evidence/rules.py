"""Decision rules as data: what is tested, under which premises, and what the data say of it.

A rule generates its words, its table and its digest, so that they cannot disagree with what is computed.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.quantities import Each, NotMeasuredError, Quantity, computing
from halflife.studies.evidence.stats import CONFIDENCE, Interval, p_inside, split_confidence, what_would_decide
from halflife.studies.evidence.tests import PartOutcome, Test

if TYPE_CHECKING:
    from halflife.studies.evidence.results import Results

__all__ = ["Finding", "Outcome", "Part", "Premise", "Row", "Rule", "can_be_measured", "described"]

Outcome = Literal["reproduced", "not reproduced", "undecided", "not tested"]
Role = Literal["part", "given", "stake"]
Part = tuple[Quantity | Each, Test]
"""What is measured, and where its interval must lie."""


@dataclass(frozen=True)
class Premise:
    """A premise that is no interval, such as that the best of a grid is not at its edge.

    Args:
        words: What must hold.
        problem: Why it does not, in words, of the results and a size (empty: it holds).
    """

    words: str
    problem: Callable[[Results, int], str]


def can_be_measured(words: str, *values: Callable[[Results, int], object]) -> Premise:
    """The premise that values exist.

    Args:
        words: What that asks for.
        values: They; where they do not, they raise a `NotMeasuredError` that says why.

    Returns:
        The premise.
    """
    return Premise(words, functools.partial(_why_not, values=values))


def _why_not(results: Results, size: int, *, values: Sequence[Callable[[Results, int], object]]) -> str:
    try:
        for one in values:
            one(results, size)
    except NotMeasuredError as error:
        return str(error)
    return ""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of a rule's table.

    Args:
        role: ``"part"``: it decides; ``"given"``: nothing is tested where it does not hold; ``"stake"``: equality is worth
            nothing where it does not hold.
        quantity: What is measured, in words.
        unit: Its unit.
        test: Where its interval must lie, in words.
        interval: The interval that is tested, with its confidence (``None``: not measured).
        outcome: What the test says.
        note: Why it was not measured, or why a premise does not hold.
        room: How far the interval is from where it must not be (`Test.room`).
        confidence: Of the test; the interval of a part that fails beside others has a higher one.
        p_holds: The p value of the test's holding, below 0.05 where it holds (``None``: not known).
        p_fails: Of its failing, likewise, the number of parts counted.
        needed: Of an open part how many seeds would decide it, in words.
    """

    role: Role
    quantity: str
    unit: str
    test: str
    interval: Interval | None
    outcome: PartOutcome
    note: str = ""
    room: float = 0.0
    confidence: float = CONFIDENCE
    p_holds: float | None = None
    p_fails: float | None = None
    needed: str = ""


@dataclass(frozen=True)
class Finding:
    """What the data say of a claim at one size.

    Args:
        outcome: What the rule says: ``"undecided"`` where intervals reach over a bound, ``"not tested"`` where a premise
            does not hold or something is missing.
        effect: The interval of the part that decides, with its confidence, in the claim's unit (``None``: not measured).
        reason: Why it is undecided or not tested, or which part fails where another one is shown, in one sentence (empty: the
            effect says it).
        rows: The rule's table.
    """

    outcome: Outcome
    effect: Interval | None
    reason: str = ""
    rows: tuple[Row, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A claim is reproduced if every part holds, and not if one of them fails. A premise that does not hold leaves it untested.

    That all of k parts hold is tested with each interval at its own confidence (an intersection-union test). That one of
    them fails could happen by chance k times as often, so a part fails only if its interval at confidence 1 - (1 - c) / k
    does (Bonferroni); that interval is shown then.

    Args:
        parts: What must hold. Of an `Each` it must hold for every one.
        given: What the claim rests on: it says nothing where there is nothing to compare.
        stake: What could have differed. That two things are equal says nothing where nothing could differ, so the claim is
            not reproduced on the strength of it; a difference stays one.
        effect: Which part is shown as the effect.

    Raises:
        UserError: There are no parts, or ``effect`` is none of them.
    """

    parts: tuple[Part, ...]
    given: tuple[Part | Premise, ...] = ()
    stake: tuple[Part, ...] = ()
    effect: int = 0

    def __post_init__(self) -> None:
        if not self.parts or not 0 <= self.effect < len(self.parts):
            raise UserError(
                f"a rule has {len(self.parts)} parts and shows number {self.effect}, expected at least one part, the shown one"
                " among them: say what is tested"
            )

    @property
    def shown(self) -> Quantity | Each:
        """The quantity whose interval is the claim's effect."""
        return self.parts[self.effect][0]

    @property
    def words(self) -> str:
        """The rule as sentences."""
        marks = [f"({number}) " if len(self.parts) > 1 else "" for number in range(1, len(self.parts) + 1)]
        holds = "; ".join(mark + _said(part) for mark, part in zip(marks, self.parts, strict=True))
        fails = " or ".join(
            f"{mark or 'it '}{words}"
            for mark, (_, test) in zip(marks, self.parts, strict=True)
            if (words := test.words_if_fails)
        )
        refuted = f"not reproduced if {fails}" if fails else "no result refutes it"
        if fails and (len(self.parts) > 1 or isinstance(self.shown, Each)):
            refuted += " (with k parts in all, its interval at a confidence of 1 - (1 - c) / k instead of c)"
        text = f"Reproduced if {holds}; {refuted}; else undecided."
        if self.given:
            said = "; ".join(p.words if isinstance(p, Premise) else _said(p) for p in self.given)
            text += f" Tested only where {said}."
        if self.stake:
            text += f" Reproduced only where something is at stake: {'; '.join(map(_said, self.stake))}."
        return text

    @property
    def digest(self) -> str:
        """sha256 over all that the rule is made of, in hexadecimal: names, arms, places, tests, bounds and confidences."""
        canonical = json.dumps(described(self), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def decide(self, results: Results, size: int) -> Finding:
        """What the results say at a size.

        Args:
            results: What the store holds.
            size: The size.

        Returns:
            The finding, with the rule's table.
        """
        counted = [_quantities(part, results, size) for part in self.parts]
        num_parts = sum(map(len, counted))
        decided = [
            [_row("part", quantity, test, results, size, num_parts) for quantity in found]
            for found, (_, test) in zip(counted, self.parts, strict=True)
        ]
        parts = [row for rows in decided for row in rows]
        given = [row for part in self.given for row in _rows("given", part, results, size)]
        stake = [row for part in self.stake for row in _rows("stake", part, results, size)]
        table = (*parts, *given, *stake)
        shown = _deciding(decided[self.effect])
        outcomes = {row.outcome for row in parts}
        outcome: Outcome = "undecided"
        if "fails" in outcomes:
            outcome = "not reproduced"
        elif outcomes == {"holds"}:
            outcome = "reproduced"
        missing = [row for row in (*parts, *given) if row.interval is None and row.outcome != "holds"]
        unmet = [row for row in given if row.outcome != "holds"]
        if outcome == "reproduced":
            unmet += [row for row in stake if row.outcome != "holds"]
        if missing or unmet:
            row = (missing + unmet)[0]
            return Finding("not tested", shown.interval, _why(row), table)
        reason = ""
        if outcome == "undecided":
            reason = _width(parts)
        elif outcome == "not reproduced" and shown.outcome != "fails":
            reason = _failure(_deciding(parts))
        return Finding(outcome, shown.interval, reason, table)


def _said(part: Part) -> str:
    quantity, test = part
    unit = f", in {quantity.unit}" if quantity.unit not in {"", "x"} else ""
    return f"the {100 * test.confidence:g} % interval of ({quantity.name}{unit}) {test.words}"


def _quantities(part: Part, results: Results, size: int) -> list[Quantity]:
    """Those of a part: one, or one for each of several; where there are none, one that says so."""
    quantity, _ = part
    if isinstance(quantity, Quantity):
        return [quantity]
    try:
        return list(quantity.found(results, size))
    except NotMeasuredError as error:
        return [Quantity(name=quantity.name, values=functools.partial(_not_measured, str(error)), unit=quantity.unit)]


def _not_measured(reason: str, results: Results, size: int) -> NDArray[np.float64]:
    raise NotMeasuredError(reason)


def _rows(role: Role, part: Part | Premise, results: Results, size: int) -> list[Row]:
    """The lines of a premise, or of what is at stake."""
    if isinstance(part, Premise):
        with computing(f"whether {part.words}"):
            problem = part.problem(results, size)
        outcome: PartOutcome = "open" if problem else "holds"
        return [Row(role=role, quantity=part.words, unit="", test="", interval=None, outcome=outcome, note=problem)]
    return [_row(role, quantity, part[1], results, size) for quantity in _quantities(part, results, size)]


def _row(role: Role, quantity: Quantity, test: Test, results: Results, size: int, num_parts: int = 1) -> Row:
    """One line: the interval that decides, and what it says."""
    interval, note = None, ""
    try:
        interval = quantity.interval(results, size, test.confidence)
        if num_parts > 1 and test.outcome(interval) == "fails":
            interval = quantity.interval(results, size, split_confidence(test.confidence, num_parts))
    except NotMeasuredError as error:
        note = str(error)
    outcome: PartOutcome = "open" if interval is None else test.outcome(interval)
    if interval is not None and interval.confidence > test.confidence and outcome != "fails":
        outcome = "open"  # the wider interval of one that lay wholly outside cannot make it hold

    def decides(found: Interval) -> bool:
        strict = found.at(split_confidence(test.confidence, num_parts))
        return test.outcome(found) == "holds" or test.outcome(strict) == "fails"

    needed = ""
    if role == "part" and interval is not None and interval.standard_error is not None and outcome == "open":
        needed = what_would_decide(interval.at(test.confidence), decides)
    return Row(
        role=role,
        quantity=quantity.name,
        unit=quantity.unit,
        test=test.words,
        interval=interval,
        outcome=outcome,
        note=note,
        room=0.0 if interval is None else test.room(interval),
        confidence=test.confidence,
        p_holds=None if interval is None else p_inside(interval, test.holds, test.confidence),
        p_fails=None if interval is None else p_inside(interval, test.fails, test.confidence, num_parts),
        needed=needed,
    )


def _deciding(rows: Sequence[Row]) -> Row:
    """Of the rows of one part the one on which it hangs: one that fails, else one that is open, with the least room."""
    order = {"fails": 0, "open": 1, "holds": 2}
    return min(rows, key=lambda row: (order[row.outcome], row.room))


def _why(row: Row) -> str:
    """Why a claim is not tested, from the row that is in its way."""
    if row.interval is None:
        return row.note
    premise = "the premise" if row.role == "given" else "what is at stake"
    return f"{premise} does not hold: {_failure(row)}"


def _failure(row: Row) -> str:
    """Why a claim is not reproduced, where another part than the one that is shown fails."""
    i = row.interval
    assert i is not None
    words = row.test.replace("lies", "must lie", 1)
    return f"{row.quantity} {words}, and its {100 * i.confidence:.3g} % interval is [{i.low:.4g}, {i.high:.4g}]"


def _width(parts: Sequence[Row]) -> str:
    """Why a claim is undecided: how wide the interval is that is in its way, and what would make it narrow enough."""
    row = _deciding(parts)
    assert row.interval is not None
    half = (row.interval.high - row.interval.low) / 2
    unit = f" {row.unit}" if row.unit not in {"", "x"} else ""
    return f"{row.quantity} is known to +-{half:.3g}{unit}{row.needed and f'; {row.needed}'}"


def described(value: Any) -> Any:
    """What a value is made of, as JSON: fields of dataclasses, names and arguments of functions.

    Args:
        value: A rule, or a part of one.

    Returns:
        JSON values that change when the meaning does. A function is known by its name.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: described(getattr(value, f.name)) for f in dataclasses.fields(value)}
        return {"is": type(value).__name__, **fields}
    if isinstance(value, functools.partial):
        return {"is": described(value.func), "args": described(value.args), "keywords": described(value.keywords)}
    if isinstance(value, dict):
        return {str(key): described(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [described(one) for one in value]
    if callable(value):
        return getattr(value, "__qualname__", type(value).__qualname__)
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)
