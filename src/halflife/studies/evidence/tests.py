"""What a rule asks of an interval: where it must lie, where it must not, with which confidence, in words and in numbers.

Bounds are in the quantity's own unit; of a quantity on a logarithmic scale they are not logarithms.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

from halflife.errors import UserError
from halflife.studies.evidence.stats import CONFIDENCE, Interval

__all__ = [
    "EQUAL_CONFIDENCE",
    "PartOutcome",
    "Test",
    "above",
    "below",
    "differs",
    "exceeds",
    "exceeds_factor",
    "lowered",
    "reduced",
    "within",
    "within_factor",
]

EQUAL_CONFIDENCE = 0.90
"""An interval of 90 % inside a margin is two one-sided tests at 5 %."""

PartOutcome = Literal["holds", "fails", "open"]
Range = tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Test:
    """Where an interval must lie, and where it must not.

    Args:
        words: What follows ``the interval``, such as ``"lies above 0"``.
        words_if_fails: The same for its failure; empty if it cannot fail.
        holds: Open ranges; the test holds if the whole interval lies in one of them.
        fails: Likewise, for intervals for which it does not hold.
        confidence: Of the interval.
    """

    __test__: ClassVar[bool] = False  # its name means something else to pytest

    words: str
    words_if_fails: str
    holds: tuple[Range, ...]
    fails: tuple[Range, ...]
    confidence: float = CONFIDENCE

    @property
    def bounds(self) -> tuple[float, ...]:
        """The finite numbers at which the outcome changes, in rising order."""
        return tuple(sorted({bound for ends in self.holds + self.fails for bound in ends if math.isfinite(bound)}))

    def outcome(self, interval: Interval) -> PartOutcome:
        """``"holds"``, ``"fails"``, or ``"open"`` where the interval says neither."""
        if _inside(interval, self.holds):
            return "holds"
        return "fails" if _inside(interval, self.fails) else "open"

    def room(self, interval: Interval) -> float:
        """How far the interval's ends are from leaving where they must lie; below 0 by how far they are outside."""
        return max(min(interval.low - low, high - interval.high) for low, high in self.holds)


def _inside(interval: Interval, ranges: tuple[Range, ...]) -> bool:
    return any(low < interval.low and interval.high < high for low, high in ranges)


def above(bound: float = 0.0) -> Test:
    """The interval lies above a bound.

    Args:
        bound: The bound.

    Returns:
        The test.

    Examples:
        >>> [above(bound).outcome(Interval(1.0, 0.5, 1.5, 3)) for bound in (0, 1, 2)]
        ['holds', 'open', 'fails']
    """
    return Test(
        words=f"lies above {bound:g}",
        words_if_fails=f"lies below {bound:g}",
        holds=((bound, math.inf),),
        fails=((-math.inf, bound),),
    )


def below(bound: float = 0.0) -> Test:
    """The interval lies below a bound; the mirror of `above`."""
    return Test(
        words=f"lies below {bound:g}",
        words_if_fails=f"lies above {bound:g}",
        holds=((-math.inf, bound),),
        fails=((bound, math.inf),),
    )


def _check(name: str, value: float, least: float = 0.0) -> None:
    if not value > least:
        raise UserError(f"{name} is {value}, expected a number > {least:g}: state how much counts as no difference")


def _equal(low: float, high: float, words: str) -> Test:
    return Test(
        words=words,
        words_if_fails="lies wholly outside",
        holds=((low, high),),
        fails=((-math.inf, low), (high, math.inf)),
        confidence=EQUAL_CONFIDENCE,
    )


def within(margin: float, around: float = 0.0) -> Test:
    """Equivalence: the 90 % interval lies within a margin of a value, stated beforehand.

    Args:
        margin: Largest distance that counts as none, > 0.
        around: The value.

    Returns:
        The test.

    Raises:
        UserError: The margin is not above 0.

    Examples:
        >>> within(0.2).outcome(Interval(0.0, -0.1, 0.1, 3)), within(0.2).outcome(Interval(0.3, 0.25, 0.35, 3))
        ('holds', 'fails')
        >>> within(0.2, around=1.0).outcome(Interval(1.1, 1.0, 1.3, 3))
        'open'
    """
    _check("the margin", margin)
    return _equal(around - margin, around + margin, f"lies within {margin:g} of {around:g}")


def within_factor(factor: float, around: float = 1.0) -> Test:
    """Equivalence of a ratio: its 90 % interval lies between 1 / f and f times a value.

    Args:
        factor: f > 1.
        around: The value, > 0.

    Returns:
        The test.

    Raises:
        UserError: The factor is not above 1, or the value not above 0.

    Examples:
        >>> [within_factor(1.1).outcome(Interval(e, e - 0.01, e + 0.01, 3)) for e in (1.0, 0.905, 1.2)]
        ['holds', 'open', 'fails']
    """
    _check("the factor", factor, 1.0)
    _check("the value that a ratio is compared with", around)
    low, high = around / factor, around * factor
    return _equal(low, high, f"lies between {low:.3g} and {high:.3g} (a factor of {factor:g})")


def lowered(smallest: float) -> Test:
    """An error or a loss is lowered, however little; it is not, once an improvement that counts is excluded.

    Args:
        smallest: The smallest improvement that counts, > 0.

    Returns:
        The test.

    Raises:
        UserError: It is not above 0.

    Examples:
        >>> [lowered(0.5).outcome(Interval(0.0, low, high, 3)) for low, high in ((-0.3, -0.1), (-0.3, 0.3), (-0.6, 0.6))]
        ['holds', 'fails', 'open']
    """
    _check("the smallest improvement", smallest)
    return Test(
        words="lies below 0",
        words_if_fails=f"does not, and lies above {-smallest:g}",
        holds=((-math.inf, 0.0),),
        fails=((-smallest, math.inf),),
    )


def reduced(share: float) -> Test:
    """A ratio is below 1, however little; it is not, once a reduction that counts is excluded. `lowered` for ratios.

    Args:
        share: The smallest reduction that counts, in (0, 1).

    Returns:
        The test.

    Raises:
        UserError: It is not in (0, 1).

    Examples:
        >>> [reduced(0.1).outcome(Interval(1.0, low, high, 3)) for low, high in ((0.5, 0.99), (0.95, 1.2), (0.5, 1.2))]
        ['holds', 'fails', 'open']
    """
    if not 0 < share < 1:
        raise UserError(f"the smallest reduction is {share}, expected a share in (0, 1): state how much counts")
    return Test(
        words="lies below 1",
        words_if_fails=f"does not, and lies above {1 - share:g}",
        holds=((-math.inf, 1.0),),
        fails=((1 - share, math.inf),),
    )


def differs(margin: float) -> Test:
    """Two things differ, in either direction; they do not, once the difference is within a margin.

    Args:
        margin: Largest difference that counts as none, > 0.

    Returns:
        The test.

    Raises:
        UserError: It is not above 0.

    Examples:
        >>> [differs(0.5).outcome(Interval(0.0, low, high, 3)) for low, high in ((0.1, 0.3), (-0.3, 0.3), (-0.6, 0.6))]
        ['holds', 'fails', 'open']
    """
    _check("the margin", margin)
    return Test(
        words="excludes 0",
        words_if_fails=f"does not, and lies within {margin:g} of 0",
        holds=((-math.inf, 0.0), (0.0, math.inf)),
        fails=((-margin, margin),),
    )


def exceeds(margin: float) -> Test:
    """An effect of either sign is larger than a margin: for what is given or at stake.

    Args:
        margin: The margin, > 0.

    Returns:
        The test.

    Raises:
        UserError: It is not above 0.
    """
    _check("the margin", margin)
    return Test(
        words=f"lies further than {margin:g} from 0",
        words_if_fails=f"lies within {margin:g} of 0",
        holds=((-math.inf, -margin), (margin, math.inf)),
        fails=((-margin, margin),),
    )


def exceeds_factor(factor: float) -> Test:
    """A ratio is further from 1 than a factor, in either direction: `exceeds` for ratios.

    Args:
        factor: f > 1.

    Returns:
        The test.

    Raises:
        UserError: The factor is not above 1.

    Examples:
        >>> [exceeds_factor(1.1).outcome(Interval(e, e - 0.01, e + 0.01, 3)) for e in (1.2, 0.8, 1.1, 1.0)]
        ['holds', 'holds', 'open', 'fails']
    """
    _check("the factor", factor, 1.0)
    low, high = 1 / factor, factor
    said = f"{low:.3g} and {high:.3g} (a factor of {factor:g})"
    return Test(
        words=f"lies wholly outside {said}",
        words_if_fails=f"lies between {said}",
        holds=((0.0, low), (high, math.inf)),
        fails=((low, high),),
    )
