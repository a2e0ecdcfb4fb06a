"""What a rule measures: readings of arms, sums and ratios of them, the best of several arms, each a sample with an interval.

A quantity is data, so that its name in the rule, its digest and its value cannot disagree. What no sum, ratio or choice of
readings says is a plain function.

Shapes: S seeds, N test examples or blocks of validation tokens.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.evidence.choice import Side, chosen, contrast_interval
from halflife.studies.evidence.stats import Interval, crossed_interval, seed_interval

if TYPE_CHECKING:
    from halflife.studies.evidence.results import Results

__all__ = [
    "Best",
    "Chosen",
    "Each",
    "Measure",
    "NotMeasuredError",
    "Quantity",
    "Reading",
    "Terms",
    "computing",
    "mean_of",
]

Numbers = NDArray[np.float64]
Place = int | Callable[[Any], int] | None
"""Where a run is read: an epoch or step, or one of the run's own, from its spec (``lambda spec: spec.drop_epoch``)."""


class NotMeasuredError(UserError):
    """A quantity that these results do not have, a ratio of something that is not above 0 say; the message says why."""


class Measure:
    """Something with a value per seed, (S,), or per seed and example, (S, N). Sums and ratios of measures are measures."""

    def __call__(self, results: Results, size: int) -> Numbers:
        """The values in the order of `Results.seeds`."""
        raise NotImplementedError

    @property
    def chooses(self) -> bool:
        """Whether it takes the best of several arms, so that its interval has to count the choice."""
        return False

    def sides(self, results: Results, size: int, *, log: bool = False) -> list[Side]:
        """What `contrast_interval` compares: the arms to choose from, with weights; of logarithms if ``log``."""
        return [Side(values=_logs(self(results, size), log=log)[None])]

    def __add__(self, other: Measure) -> Terms:
        return Terms(_terms(self) + _terms(other))

    def __sub__(self, other: Measure) -> Terms:
        return self + (-1.0) * other

    def __mul__(self, factor: float) -> Terms:
        return Terms(tuple((factor * weight, measure) for weight, measure in _terms(self)))

    __rmul__ = __mul__

    def __truediv__(self, other: Measure) -> Measure:
        return _Ratio(self, other)


def _logs(values: Numbers, *, log: bool) -> Numbers:
    if log and not (values > 0).all():
        raise NotMeasuredError("a value is not above 0 in every seed, so that it has no logarithm")
    return np.log(values) if log else values


def _weighted(weight: float, sides: Sequence[Side]) -> list[Side]:
    return [replace(side, weight=weight * side.weight) for side in sides]


def _terms(measure: Measure) -> tuple[tuple[float, Measure], ...]:
    return measure.terms if isinstance(measure, Terms) else ((1.0, measure),)


@dataclass(frozen=True)
class Terms(Measure):
    """A weighted sum; made by ``+``, ``-`` and ``*``."""

    terms: tuple[tuple[float, Measure], ...]

    def __call__(self, results: Results, size: int) -> Numbers:
        """The sum, paired by seed and by example."""
        found = _aligned([measure(results, size) for _, measure in self.terms])
        return np.asarray(sum(weight * values for (weight, _), values in zip(self.terms, found, strict=True)))

    @property
    def chooses(self) -> bool:
        """Whether one of its terms does."""
        return any(measure.chooses for _, measure in self.terms)

    def sides(self, results: Results, size: int, *, log: bool = False) -> list[Side]:
        """Those of its terms, weighted."""
        if not self.chooses:
            return super().sides(results, size, log=log)
        if not log:
            return [side for weight, m in self.terms for side in _weighted(weight, m.sides(results, size))]
        (weight, only), *others = self.terms
        if others or weight <= 0:
            raise UserError(
                "a quantity is the logarithm of a sum or a difference with a best of several in it, which has no interval that"
                " counts the choice: take a ratio, or no logarithm"
            )
        first, *rest = only.sides(results, size, log=True)
        return [replace(first, values=first.values + np.log(weight) / first.weight), *rest]


@dataclass(frozen=True)
class _Ratio(Measure):
    """One measure over another, seed by seed; made by ``/``."""

    over: Measure
    under: Measure

    def __call__(self, results: Results, size: int) -> Numbers:
        over, under = _aligned([self.over(results, size), self.under(results, size)])
        if (under == 0).any():
            raise NotMeasuredError("the denominator of a ratio is 0 in some seed")
        return over / under

    @property
    def chooses(self) -> bool:
        """Whether one of the two does."""
        return self.over.chooses or self.under.chooses

    def sides(self, results: Results, size: int, *, log: bool = False) -> list[Side]:
        """Of the logarithm: those of the one minus those of the other."""
        if not self.chooses:
            return super().sides(results, size, log=log)
        if not log:
            raise UserError(
                "a quantity is a ratio with a best of several in it, which has an interval that counts the choice on a"
                " logarithmic scale alone: say log=True"
            )
        return [
            *self.over.sides(results, size, log=True),
            *_weighted(-1.0, self.under.sides(results, size, log=True)),
        ]


def _aligned(found: Sequence[Numbers]) -> list[Numbers]:
    """Operands of one shape: a number per seed counts for each of its examples, and the examples must be the same."""
    shapes = {values.shape for values in found}
    if len(shapes) == 1:
        return list(found)
    if len({shape for shape in shapes if len(shape) == 2}) != 1 or len({shape[0] for shape in shapes}) != 1:
        raise UserError(
            f"a quantity combines values of the shapes {', '.join(map(str, sorted(shapes)))}, expected the same seeds and the"
            " same examples in all: evaluate every arm on the same examples"
        )
    return [values[:, None] if values.ndim == 1 else values for values in found]


@contextlib.contextmanager
def computing(what: str) -> Iterator[None]:
    """Around what a study computes of its readings: whatever cannot be computed of them is one sentence.

    Args:
        what: What is computed, in words.

    Raises:
        UserError: In place of a division by zero, of shapes that do not fit, or of a fit that fails.
    """
    try:
        with np.errstate(all="ignore"):  # what comes of it is not finite, and refused as such
            yield
    except UserError:
        raise
    except (ArithmeticError, ValueError) as error:
        raise UserError(
            f"{what} cannot be computed ({error}): a reading is damaged, arms were evaluated on other examples, or the quantity"
            " is wrong"
        ) from error


def mean_of(measures: Sequence[Measure]) -> Terms:
    """The mean of several measures, paired by seed and example."""
    return Terms(tuple((1.0 / len(measures), measure) for measure in measures))


@dataclass(frozen=True)
class Reading(Measure):
    """What the runs of an arm read: one value a seed, or an array of test examples or blocks of text.

    Args:
        arm: The arm's key.
        name: The reading's or the array's name.
        epoch: The epoch at which it is read.
        step: The step at which it is read, instead. With neither it is the last one.
    """

    arm: str
    name: str
    epoch: Place = None
    step: Place = None

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,), or (S, N) of an array."""
        epoch, step = (
            place(results.spec(self.arm, size)) if callable(place) else place for place in (self.epoch, self.step)
        )
        return results.read(self.arm, self.name, size, epoch=epoch, step=step)


Arms = Sequence[str] | Callable[["Results", int], Sequence[str]]


class Chosen(Measure):
    """The best of several values, chosen on other seeds and on the other half of the examples than it is measured on.

    The interval of a quantity with it is `contrast_interval`, which counts the choice. `Best` chooses among arms; a subclass
    of its own chooses among values that are no arms' own readings.
    """

    def side(self, results: Results, size: int) -> Side:
        """What to choose from, a row a value."""
        raise NotImplementedError

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,), or (S, N) of arrays."""
        return chosen(self.side(results, size))

    @property
    def chooses(self) -> bool:
        """It does."""
        return True

    def sides(self, results: Results, size: int, *, log: bool = False) -> list[Side]:
        """The one side; of logarithms it is chosen by what it is without."""
        side = self.side(results, size)
        if log:
            scores = side.values if side.scores is None else side.scores
            side = replace(side, values=_logs(side.values, log=True), scores=scores)
        return [side]


@dataclass(frozen=True)
class Best(Chosen):
    """The best of several arms.

    Args:
        arms: Their keys, or what gives them.
        name: The reading or array that is compared.
        by: What the arm is chosen by, if that is another reading (empty: what is compared).
        lowest: Whether the best is the lowest.
    """

    arms: Arms
    name: str
    by: str = ""
    lowest: bool = True

    def side(self, results: Results, size: int) -> Side:
        """A row an arm."""
        keys = self.arms(results, size) if callable(self.arms) else self.arms
        values = np.array([results.read(key, self.name, size) for key in keys])
        scores = np.array([results.read(key, self.by, size) for key in keys]) if self.by else None
        return Side(values=values, scores=scores, lowest=self.lowest)


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A number with an interval: what a rule tests and a page shows.

    Args:
        name: What it is, in words that can be read alone; they stand in the rule and in the tables.
        values: A measure, or a function of the results and a size, with a value per seed, (S,), or per seed and example,
            (S, N). It may raise `NotMeasuredError`.
        unit: ``"points"`` (of test error), ``"nats"``, ``"x"`` (a ratio) or another; it says how many decimals are shown.
        log: Whether the mean and its interval are those of the logarithms: for ratios and other positive numbers, whose
            errors are skewed.
        examples: What the columns of (S, N) are.
    """

    name: str
    values: Callable[[Results, int], Numbers]
    unit: str = ""
    log: bool = False
    examples: str = "examples"

    def interval(self, results: Results, size: int, confidence: float) -> Interval:
        """The mean with its interval, over seeds, and over examples where there are some (`crossed_interval`).

        Args:
            results: What the store holds.
            size: The size.
            confidence: Nominal coverage.

        Returns:
            The interval; with `log` that of the geometric mean.

        Raises:
            NotMeasuredError: A value of a positive quantity is not above 0.
            UserError: The values are not finite, or of a shape that is neither (S,) nor (S, N).
        """
        with computing(self.name):
            found = self._found(results, size, confidence)
        if not np.isfinite([found.estimate, found.low, found.high]).all():
            raise UserError(f"{self.name} has no finite interval: a reading is damaged, or the quantity is wrong")
        return found

    def _found(self, results: Results, size: int, confidence: float) -> Interval:
        if isinstance(self.values, Measure) and self.values.chooses:
            sides = self.values.sides(results, size, log=self.log)
            found = contrast_interval(sides, confidence=confidence, example_name=self.examples)
            return found.exp() if self.log else found
        values = np.asarray(self.values(results, size), dtype=np.float64)
        num_seeds = len(results.seeds(size))
        if values.ndim not in {1, 2} or len(values) != num_seeds:
            raise UserError(
                f"{self.name} has values of shape {values.shape}, expected one row for each of {num_seeds} seeds: mend the"
                " quantity"
            )
        if not np.isfinite(values).all():
            raise UserError(
                f"{self.name} has a value that is not finite: a reading is damaged, or the quantity is wrong"
            )
        if self.log:
            if not (values > 0).all():
                raise NotMeasuredError(f"{self.name} is not above 0 in every seed")
            values = np.log(values)
        if values.ndim == 2:
            found = crossed_interval(values, confidence=confidence, example_name=self.examples)
        else:
            found = seed_interval(values, confidence)
        return found.exp() if self.log else found


@dataclass(frozen=True, kw_only=True)
class Each:
    """One quantity for each of several arms or settings; a test of it must hold for every one.

    Args:
        name: What each of them is, in words, with what it is for: ``"norm of the average over that of the weights, at each
            learning rate"``.
        quantities: They, or what gives them of the results and a size; their names say which is which.
        unit: Their unit.
    """

    name: str
    quantities: Sequence[Quantity] | Callable[[Results, int], Sequence[Quantity]]
    unit: str = ""

    def found(self, results: Results, size: int) -> Sequence[Quantity]:
        """The quantities at a size; `NotMeasuredError` if there are none."""
        with computing(self.name):
            found = self.quantities(results, size) if callable(self.quantities) else self.quantities
        if not found:
            raise NotMeasuredError(f"there is no {self.name}")
        return found
