"""Claims whose rule is a function and whose words are written by hand: the form from before `halflife.studies.evidence.rules`.

How an interval becomes an outcome, and the effects that studies share: block-wise differences, best against best.

Shapes: A arms, S seeds, N test examples or blocks of validation tokens.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence import rules
from halflife.studies.evidence.choice import leave_one_out
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, Interval, crossed_interval

__all__ = [
    "EQUAL_CONFIDENCE",
    "Finding",
    "Outcome",
    "WordedClaim",
    "above",
    "above_zero",
    "all_of",
    "below",
    "best_keys",
    "best_of",
    "equal_at_stake",
    "exceeds",
    "leave_one_out",
    "lowered",
    "paired_blocks",
    "within",
]

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True)
class Finding:
    """What the data say of a claim at one size: the outcome, the effect, and the sentence with the numbers."""

    outcome: Outcome
    effect: Interval | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class WordedClaim:
    """A claim whose rule stands twice: in words, and as a function of the results and a size."""

    key: str
    text: str
    rule: str
    effect_name: str
    unit: str
    measure: Callable[[Results, int], Finding]
    amended: str = ""

    @property
    def words(self) -> str:
        """The rule in words."""
        return self.rule

    @property
    def digest(self) -> str:
        """sha256 of text and rule in words, in hexadecimal."""
        return hashlib.sha256(f"{self.text}\n{self.rule}".encode()).hexdigest()

    def decide(self, results: Results, size: int) -> rules.Finding:
        """What the results say at a size."""
        found = self.measure(results, size)
        if found.outcome == "inconclusive":
            return rules.Finding("undecided" if found.effect is not None else "not tested", found.effect, found.reason)
        return rules.Finding(found.outcome, found.effect, found.reason)


EQUAL_CONFIDENCE = 0.90
"""For `within`: an interval of 90 % inside a margin is two one-sided tests at 5 %."""


def above(interval: Interval, bound: float = 0.0, *, given: bool = True) -> Outcome:
    """Whether an effect exceeds a bound.

    Args:
        interval: The effect.
        bound: The bound.
        given: Whether what the effect compares with is there at all; nothing is decided where it is not.

    Returns:
        ``"reproduced"`` when the whole interval lies above the bound, ``"not reproduced"`` when it lies below, else
        ``"inconclusive"``.

    Examples:
        >>> above(Interval(1.0, 0.5, 1.5, 3)), above(Interval(1.0, -0.5, 2.5, 3)), above(Interval(1.0, 0.5, 1.5, 3), 2)
        ('reproduced', 'inconclusive', 'not reproduced')
    """
    if given and interval.low > bound:
        return "reproduced"
    return "not reproduced" if given and interval.high < bound else "inconclusive"


def above_zero(interval: Interval, *, given: bool = True) -> Outcome:
    """Whether an effect exceeds 0: `above` with that bound.

    Args:
        interval: The effect.
        given: As for `above`.

    Returns:
        The outcome.
    """
    return above(interval, 0.0, given=given)


def below(interval: Interval, bound: float = 0.0, *, given: bool = True) -> Outcome:
    """Whether an effect lies under a bound; the mirror of `above`.

    Args:
        interval: The effect.
        bound: The bound.
        given: As for `above`.

    Returns:
        ``"reproduced"`` when the whole interval lies below the bound, ``"not reproduced"`` when it lies above, else
        ``"inconclusive"``.
    """
    if given and interval.high < bound:
        return "reproduced"
    return "not reproduced" if given and interval.low > bound else "inconclusive"


def within(interval: Interval, margin: float, *, around: float = 0.0, given: bool = True) -> Outcome:
    """Whether an effect is as good as a value: equivalence within a margin that was stated beforehand.

    Take an interval with `EQUAL_CONFIDENCE`.

    Args:
        interval: The effect.
        margin: Largest distance that counts as none, > 0.
        around: The value.
        given: As for `above`.

    Returns:
        ``"reproduced"`` when the whole interval lies within ``around`` +- ``margin``, ``"not reproduced"`` when it lies
        wholly outside, else ``"inconclusive"``.

    Raises:
        UserError: The margin is not above 0.

    Examples:
        >>> within(Interval(0.0, -0.1, 0.1, 3), 0.2), within(Interval(0.3, 0.25, 0.35, 3), 0.2)
        ('reproduced', 'not reproduced')
        >>> within(Interval(1.1, 1.0, 1.3, 3), 0.2, around=1.0)
        'inconclusive'
    """
    if not margin > 0:
        raise UserError(f"the margin is {margin}, expected a number > 0: state how much counts as no difference")
    low, high = interval.low - around, interval.high - around
    if given and low > -margin and high < margin:
        return "reproduced"
    return "not reproduced" if given and (low > margin or high < -margin) else "inconclusive"


def exceeds(effect: Interval, margin: float) -> bool:
    """Whether an effect of either sign is larger than a margin: its whole interval lies outside +- ``margin``."""
    return effect.low > margin or effect.high < -margin


def equal_at_stake(difference: Interval, margin: float, *, at_stake: bool) -> Outcome:
    """Equivalence as by `within`, which is worth nothing where the margin is wider than all that could have differed.

    Where decay itself changes a loss by less than the margin, any two kinds of decay are within it.

    Args:
        difference: The difference, with `EQUAL_CONFIDENCE`.
        margin: As for `within`.
        at_stake: Whether what could have differed is larger than the margin, `exceeds` of the effect of decay say.

    Returns:
        As `within`, but ``"inconclusive"`` in place of ``"reproduced"`` where nothing was at stake. A difference wholly
        outside the margin stays one.

    Examples:
        >>> same = Interval(0.0, -0.1, 0.1, 3)
        >>> equal_at_stake(same, 0.2, at_stake=True), equal_at_stake(same, 0.2, at_stake=False)
        ('reproduced', 'inconclusive')
    """
    outcome = within(difference, margin)
    return "inconclusive" if outcome == "reproduced" and not at_stake else outcome


def lowered(difference: Interval, smallest: float) -> Outcome:
    """Whether an error or a loss is lowered.

    Args:
        difference: With, minus without.
        smallest: The smallest improvement that counts, > 0.

    Returns:
        ``"reproduced"`` when the whole interval lies below 0, however small the improvement; else ``"not reproduced"`` when
        it excludes an improvement of ``smallest``; else ``"inconclusive"``.

    Examples:
        >>> lowered(Interval(-0.2, -0.3, -0.1, 3), 0.5), lowered(Interval(0.0, -0.3, 0.3, 3), 0.5)
        ('reproduced', 'not reproduced')
        >>> lowered(Interval(0.0, -0.6, 0.6, 3), 0.5)
        'inconclusive'
    """
    if difference.high < 0:
        return "reproduced"
    return "not reproduced" if difference.low > -smallest else "inconclusive"


def all_of(*outcomes: Outcome) -> Outcome:
    """The outcome of a claim with several parts, each of which must hold.

    Args:
        outcomes: The parts' outcomes, at least one.

    Returns:
        ``"not reproduced"`` when one part is, ``"reproduced"`` when every part is, else ``"inconclusive"``.

    Raises:
        UserError: There are no parts.

    Examples:
        >>> all_of("reproduced", "inconclusive"), all_of("not reproduced", "inconclusive")
        ('inconclusive', 'not reproduced')
    """
    if not outcomes:
        raise UserError("a claim of no parts has no outcome: give at least one")
    if "not reproduced" in outcomes:
        return "not reproduced"
    return "inconclusive" if "inconclusive" in outcomes else "reproduced"


def best_keys(
    results: Results, keys: Sequence[str], metric: str, size: int, *, step: int | None = None, lowest: bool = True
) -> list[str]:
    """For each seed the arm that is best by a quantity on the other seeds.

    Args:
        results: What the store holds.
        keys: The arms to choose from.
        metric: The quantity, one value a run.
        size: The size.
        step: The step at which it is read (``None``: its last reading).
        lowest: Whether the best is the lowest.

    Returns:
        One key per seed, in the order of `Results.seeds`.
    """
    scores = [
        results.last(key, metric, size) if step is None else results.at_step(key, metric, step, size) for key in keys
    ]
    return [keys[index] for index in leave_one_out(np.array(scores), lowest=lowest)]


def best_of(
    results: Results,
    keys: Sequence[str],
    metric: str,
    size: int,
    *,
    array: str | None = None,
    step: int | None = None,
    lowest: bool = True,
) -> NDArray[np.float64]:
    """What the best of several arms reaches, each seed with the arm that is best on the *other* seeds.

    So the luck of a seed cannot make its own arm look better than it is, whatever the numbers of arms. The luck of the test
    side can: an arm that happens to suit the very examples or blocks that all seeds share is chosen on them and scored on
    them. That part is as large as these few arms differ by chance on the blocks, and the interval over blocks shows it.

    Args:
        results: What the store holds.
        keys: The arms to choose from.
        metric: The quantity that the choice is made by, one value a run.
        size: The size.
        array: Return this array instead of the quantity, ``"val/loss_blocks"`` say.
        step: The step at which both are read (``None``: their last reading).
        lowest: Whether the best is the lowest.

    Returns:
        Shape (S,), or (S, N) of an array.
    """
    chosen = best_keys(results, keys, metric, size, step=step, lowest=lowest)
    rows = []
    for seed, key in enumerate(chosen):
        if array is None:
            found = results.last(key, metric, size) if step is None else results.at_step(key, metric, step, size)
        else:
            found = (
                results.last_array(key, array, size) if step is None else results.array_at_step(key, array, step, size)
            )
        rows.append(found[seed])
    return np.array(rows, dtype=np.float64)


def paired_blocks(
    results: Results,
    key: str,
    reference: str,
    size: int,
    *,
    array: str = "val/loss_blocks",
    step: int | None = None,
    confidence: float = CONFIDENCE,
) -> Interval:
    """The difference of two arms, paired by seed and block; seeds and blocks both count as samples.

    Args:
        results: What the store holds.
        key: The arm.
        reference: The arm that is subtracted.
        size: The size.
        array: The array of both, one value a block.
        step: The step of both (``None``: the last).
        confidence: Nominal coverage.

    Returns:
        The interval of the mean difference, `crossed_interval` on (S, N).
    """
    blocks = [
        results.last_array(arm, array, size) if step is None else results.array_at_step(arm, array, step, size)
        for arm in (key, reference)
    ]
    return crossed_interval(blocks[0] - blocks[1], confidence=confidence, example_name="blocks")
