"""Effects with intervals: paired by seed, seeds and test examples both taken as samples.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError

__all__ = [
    "Interval",
    "crossed_interval",
    "of_more_seeds",
    "p_inside",
    "pair_values",
    "seed_interval",
    "seeds_to_decide",
    "split_confidence",
    "t_quantile",
    "what_would_decide",
]

CONFIDENCE = 0.95
LEVEL = 1 - CONFIDENCE
MOST_SEEDS = 1_000  # of interest to nobody beyond

NOT_COVERED = (
    "the choice of the training data, which all seeds share",
    "the data set, the architecture and the budget, which are one each",
    "settings that were fixed beforehand and not tried at other values",
    "the versions of torch and of the hardware's kernels that the runs were made with",
)
"""What no interval here takes as a sample: another choice of it may move an effect by more than the interval is wide."""


@dataclass(frozen=True)
class Interval:
    """An estimate with a two-sided confidence interval.

    Args:
        estimate: The mean.
        low: Lower end.
        high: Upper end.
        num_seeds: Seeds it rests on.
        num_examples: Test examples it rests on (``None``: the quantity has one value per seed).
        confidence: Nominal coverage.
        example_name: What the examples are.
        standard_error: The half width is Student's quantile times this (``None``: not known). For an interval of logarithms
            that was exponentiated it is that of the logarithm.
        degrees: Student's degrees of freedom (``None``: not known).
        log: Whether the numbers are exponentials: of a geometric mean, with an interval that is symmetric on a log scale.
    """

    estimate: float
    low: float
    high: float
    num_seeds: int
    num_examples: int | None = None
    confidence: float = CONFIDENCE
    example_name: str = "examples"
    standard_error: float | None = None
    degrees: float | None = None
    log: bool = False

    def exp(self) -> Interval:
        """The interval of the geometric mean, when this one is of logarithms.

        A quantity that is above 0 and skewed (a distance, a norm, a share of variance) belongs on a log scale: there Student's
        interval covers what it says, and its lower end is above 0.

        Returns:
            The interval, marked as one on a log scale.
        """
        return replace(
            self, estimate=math.exp(self.estimate), low=math.exp(self.low), high=math.exp(self.high), log=True
        )

    def at(self, confidence: float) -> Interval:
        """The same at another confidence.

        Args:
            confidence: Nominal coverage.

        Returns:
            The interval.

        Raises:
            UserError: The standard error is not known.

        Examples:
            >>> round(seed_interval([1.0, 2.0, 3.0]).at(0.9).high, 3), round(seed_interval([1.0, 2.0, 3.0], 0.9).high, 3)
            (3.686, 3.686)
        """
        if self.standard_error is None or self.degrees is None:
            raise UserError(
                "an interval without a standard error was asked for another confidence, expected one of seed_interval or"
                " crossed_interval: compute it anew at that confidence"
            )
        middle = math.log(self.estimate) if self.log else self.estimate
        half = t_quantile(confidence, self.degrees) * self.standard_error if self.standard_error > 0 else 0.0
        found = replace(self, estimate=middle, low=middle - half, high=middle + half, confidence=confidence, log=False)
        return found.exp() if self.log else found

    def p_value(self, bound: float = 0.0) -> float | None:
        """Two-sided p of the hypothesis that the quantity is ``bound``: below 1 - confidence where the interval excludes it.

        Args:
            bound: The value; a geometric mean is surely none <= 0.

        Returns:
            The p value (``None``: the standard error is not known).

        Examples:
            >>> round(seed_interval([1.0, 2.0, 3.0]).p_value(), 4)
            0.0742
        """
        from scipy.special import stdtr  # here as in `t_quantile`

        if self.standard_error is None or self.degrees is None:
            return None
        if self.log and bound <= 0:
            return 0.0
        distance = abs(math.log(self.estimate / bound) if self.log else self.estimate - bound)
        if self.standard_error == 0:
            return float(distance == 0)
        degrees = min(self.degrees, 1e9)  # as good as infinitely many
        return min(1.0, 2 * float(stdtr(degrees, -distance / self.standard_error)))


def t_quantile(confidence: float, degrees: float) -> float:
    """Student's two-sided quantile.

    Args:
        confidence: Probability between minus and plus the quantile.
        degrees: Degrees of freedom, > 0; with infinitely many it is the normal quantile.

    Returns:
        The quantile.

    Examples:
        >>> round(t_quantile(0.95, 2), 3), round(t_quantile(0.95, float("inf")), 3)
        (4.303, 1.96)
    """
    # Imported here, and not scipy.stats, because a command that only lists studies should start at once.
    from scipy.special import ndtri, stdtrit

    upper = 0.5 + confidence / 2
    return float(ndtri(upper) if math.isinf(degrees) else stdtrit(degrees, upper))


def seed_interval(values_S: Sequence[float] | NDArray[np.float64], confidence: float = CONFIDENCE) -> Interval:
    """Student's interval for the mean of one value per seed.

    mean +- t_{S-1} * s / sqrt(S).

    Args:
        values_S: One value (a paired difference, say) per seed, at least two.
        confidence: Nominal coverage.

    Returns:
        The interval.

    Raises:
        UserError: There are fewer than two seeds.

    Examples:
        >>> i = seed_interval([1.0, 2.0, 3.0])
        >>> round(i.estimate, 3), round(i.low, 3), round(i.high, 3)
        (2.0, -0.484, 4.484)
    """
    values = np.asarray(values_S, dtype=np.float64)
    num_seeds = len(values)
    if num_seeds < 2:
        raise UserError(f"an interval over seeds got {num_seeds} seed, expected at least 2: run with --seeds 2 or more")
    mean = float(values.mean())
    spread = float(values.std(ddof=1))
    half = t_quantile(confidence, num_seeds - 1) * spread / math.sqrt(num_seeds)
    return Interval(
        mean,
        mean - half,
        mean + half,
        num_seeds,
        None,
        confidence,
        standard_error=spread / math.sqrt(num_seeds),
        degrees=num_seeds - 1,
    )


def crossed_interval(
    differences_SN: NDArray[Any], *, confidence: float = CONFIDENCE, example_name: str = "examples"
) -> Interval:
    """Interval for the mean of a paired difference per seed and test example, both taken as samples.

    The seeds share the test examples, so a seed moves a whole row and an example a whole column. With the variances
    var_S of the row means, var_N of the column means and ms_e of what is left (S - 1, N - 1 and (S - 1)(N - 1) degrees
    of freedom), the variance of the mean is

        V = var_S / S + var_N / N - ms_e / (S N)         (at least the larger of the first two terms)

    which is what resampling seeds and examples, each with replacement, tends to, without the draws and without their
    bias (resampling shows (S - 1) / S of the seeds' variance and counts what is left three times; Owen 2007, "The
    pigeonhole bootstrap", Annals of Applied Statistics 1(2)). The interval is mean +- t * sqrt(V), Student's t with
    Satterthwaite's degrees of freedom (S - 1) (V / (var_S / S))^2: that the seeds are few matters as far as they differ.

    Examples that are no independent sample make it too narrow: neighbouring stretches of a text are pooled first
    (`halflife.studies.evidence.readings.pooled`, with the autocorrelations before and after).

    Args:
        differences_SN: (S, N), for example wrong under one setting minus wrong under the other, S >= 2, N >= 2.
        confidence: Nominal coverage.
        example_name: What the columns are, ``"blocks"`` of validation tokens say.

    Returns:
        The interval.

    Raises:
        UserError: There are fewer than two seeds, or fewer than two examples: one does not say how much examples differ.
    """
    d_SN = np.asarray(differences_SN, dtype=np.float64)
    num_seeds, num_examples = d_SN.shape
    if num_seeds < 2:
        raise UserError(f"an interval over seeds got {num_seeds} seed, expected at least 2: run with --seeds 2 or more")
    if num_examples < 2:
        raise UserError(
            f"an interval over seeds and {example_name} got {num_examples} of the {example_name}, expected at least 2:"
            " evaluate on more, or take seed_interval of one value per seed"
        )
    mean = float(d_SN.mean())
    rows_S, columns_N = d_SN.mean(axis=1), d_SN.mean(axis=0)
    seed_part = float(rows_S.var(ddof=1)) / num_seeds
    example_part = float(columns_N.var(ddof=1)) / num_examples
    rest_SN = d_SN - rows_S[:, None] - columns_N + mean
    rest = float((rest_SN**2).sum()) / ((num_seeds - 1) * (num_examples - 1)) / d_SN.size
    variance = max(seed_part + example_part - rest, seed_part, example_part)
    if variance == 0:
        return Interval(
            mean, mean, mean, num_seeds, num_examples, confidence, example_name, standard_error=0.0, degrees=math.inf
        )
    degrees = (num_seeds - 1) * (variance / seed_part) ** 2 if seed_part > 0 else math.inf
    half = t_quantile(confidence, degrees) * math.sqrt(variance)
    return Interval(
        mean,
        mean - half,
        mean + half,
        num_seeds,
        num_examples,
        confidence,
        example_name,
        standard_error=math.sqrt(variance),
        degrees=degrees,
    )


def pair_values(values_SS: NDArray[Any]) -> NDArray[np.float64]:
    """One value per seed for a mean over pairs of seeds, so that `seed_interval` of them is right.

    A mean over pairs, of distances between runs say, uses each seed S - 1 times, and each pair in the rows of two seeds. Its
    rows' means r_s therefore agree with each other more than seeds do. The jackknife's pseudo-values of the mean u are

        u + 2 (S - 1) / (S - 2) * (r_s - u)

    with mean u (Arvesen 1969, "Jackknifing U-statistics", Annals of Mathematical Statistics 40(6)).

    Args:
        values_SS: A value per pair, symmetric, (S, S), S >= 3; the diagonal is not used.

    Returns:
        Shape (S,).

    Raises:
        UserError: There are fewer than three seeds, or the values are not symmetric.

    Examples:
        >>> pair_values(np.array([[0.0, 1.0, 2.0], [1.0, 0.0, 3.0], [2.0, 3.0, 0.0]]))
        array([0., 2., 4.])
    """
    values = np.asarray(values_SS, dtype=np.float64)
    num_seeds = len(values)
    if num_seeds < 3:
        raise UserError(
            f"a mean over pairs of seeds got {num_seeds} seeds, expected at least 3: run with --seeds 3 or more"
        )
    if values.shape != (num_seeds, num_seeds) or not np.array_equal(values, values.T, equal_nan=True):
        raise UserError(
            f"a mean over pairs of seeds got values of shape {values.shape} that are not symmetric, expected one value per"
            " pair, the same in both orders"
        )
    rows_S = np.where(np.eye(num_seeds, dtype=bool), 0.0, values).sum(axis=1) / (num_seeds - 1)
    mean = rows_S.mean()
    return np.asarray(mean + 2 * (num_seeds - 1) / (num_seeds - 2) * (rows_S - mean), dtype=np.float64)


def p_inside(
    interval: Interval, ranges: Sequence[tuple[float, float]], confidence: float, ways: int = 1
) -> float | None:
    """The p value of "the quantity lies in one of these ranges", below 0.05 exactly where a rule says so.

    That is, where the interval at ``confidence`` c, or at 1 - (1 - c) / k for one of k ``ways``, lies in one of them: k times
    0.05 / (1 - c) times the two-sided p of the end that is nearest. So two one-sided tests (an interval of 90 %) and a
    two-sided one (95 %) are on one scale.

    Args:
        interval: The interval, with its standard error; at which confidence does not matter.
        ranges: Open ranges.
        confidence: c.
        ways: k.

    Returns:
        The p value, at most 1 (``None``: the standard error is not known).

    Examples:
        >>> found = seed_interval([1.0, 2.0, 3.0])
        >>> [round(p_inside(found, [(0, math.inf)], c), 4) for c in (0.95, 0.90)], p_inside(found, [(-math.inf, 0)], 0.95)
        ([0.0742, 0.0371], 1.0)
    """
    if interval.p_value(1.0) is None:
        return None
    found = [1.0]
    for low, high in ranges:
        if low < interval.estimate < high:
            found.append(max((interval.p_value(end) or 0.0 for end in (low, high) if math.isfinite(end)), default=0.0))
    return min(1.0, ways * LEVEL / (1 - confidence) * min(found))


def split_confidence(confidence: float, ways: int) -> float:
    """The confidence of each of several intervals that are to miss, one of them at least, no more often than one would.

    1 - (1 - confidence) / ways (Bonferroni), whatever the intervals have to do with each other. Use it where *any one* of
    several decides: "not reproduced if one of k parts lies on the other side", or a look after each of several numbers of
    seeds (with 95 % after 3, 4 and 5 seeds, 10 % of effects of 0 are "found"). Where *all* must hold ("reproduced if all k
    parts do"), each keeps the confidence itself.

    Args:
        confidence: Nominal coverage of all together.
        ways: How many there are, >= 1.

    Returns:
        Nominal coverage of each.

    Examples:
        >>> round(split_confidence(0.95, 2), 6), split_confidence(0.9, 1)
        (0.975, 0.9)
    """
    return confidence if ways == 1 else 1 - (1 - confidence) / ways


def of_more_seeds(interval: Interval, num_seeds: int) -> Interval:
    """What an interval would be with another number of seeds, if the estimate and both spreads stayed as they are.

    The seeds' part of the variance, V sqrt((S - 1) / degrees), falls as 1 / S; the examples' part stays.

    Args:
        interval: The interval, with its standard error.
        num_seeds: Seeds, >= 2.

    Returns:
        The interval.

    Examples:
        >>> found = of_more_seeds(seed_interval([1.0, 2.0, 3.0]), 12)
        >>> round(found.low, 3), found.num_seeds
        (1.365, 12)
    """
    assert interval.standard_error is not None, "no interval of this module"
    assert interval.degrees is not None, "no interval of this module"
    total, before = interval.standard_error**2, interval.num_seeds
    seeds_part = total * math.sqrt((before - 1) / interval.degrees) * before / num_seeds
    variance = seeds_part + total * (1 - math.sqrt((before - 1) / interval.degrees))
    degrees = (num_seeds - 1) * (variance / seeds_part) ** 2 if seeds_part > 0 else math.inf
    changed = replace(interval, num_seeds=num_seeds, standard_error=math.sqrt(variance), degrees=degrees)
    return changed.at(interval.confidence)


def seeds_to_decide(interval: Interval, decides: Callable[[Interval], bool], *, most: int = MOST_SEEDS) -> int | None:
    """How many seeds in all would decide, if the estimate and both spreads stayed as they are.

    Args:
        interval: The interval that does not decide.
        decides: Whether an interval decides, ``lambda i: i.low > 0 or i.high < 0`` say. An interval inside one that decides
            must decide, too.
        most: Give up beyond.

    Returns:
        The number (``None``: not even ``most`` would, or the standard error is not known).

    Examples:
        >>> seeds_to_decide(seed_interval([1.0, 2.0, 3.0]), lambda i: i.low > 0)
        4
    """
    if interval.standard_error is None or interval.degrees is None:
        return None
    counts = range(interval.num_seeds, most + 1)
    place = bisect.bisect_left(counts, 1, key=lambda count: int(decides(of_more_seeds(interval, count))))
    return counts[place] if place < len(counts) else None


def what_would_decide(interval: Interval, decides: Callable[[Interval], bool], *, most: int = MOST_SEEDS) -> str:
    """The same in words, for a verdict that is undecided.

    Args:
        interval: The interval that does not decide.
        decides: Whether an interval decides.
        most: Give up beyond.

    Returns:
        A clause, empty where the standard error is not known.

    Examples:
        >>> what_would_decide(seed_interval([1.0, 2.0, 3.0]), lambda i: i.low > 0)
        '4 seeds would decide if estimate and spread stayed'
        >>> what_would_decide(seed_interval([-1.0, 1.0, 0.0]), lambda i: i.low > 0)
        'more than 1,000 seeds would be needed if estimate and spread stayed'
    """
    if interval.standard_error is None or interval.degrees is None:
        return ""
    count = seeds_to_decide(interval, decides, most=most)
    if count is not None:
        return f"{count:,} seeds would decide if estimate and spread stayed"
    if interval.num_examples is not None and not decides(of_more_seeds(interval, 1_000 * most)):
        return f"no number of seeds would decide, as {interval.num_examples:,} {interval.example_name} are too few for that"
    return f"more than {most:,} seeds would be needed if estimate and spread stayed"
