"""Effects with intervals: paired by seed, seeds and test examples both taken as samples.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError

__all__ = ["Interval", "crossed_interval", "seed_interval", "t_quantile"]

CONFIDENCE = 0.95


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
    """

    estimate: float
    low: float
    high: float
    num_seeds: int
    num_examples: int | None = None
    confidence: float = CONFIDENCE
    example_name: str = "examples"

    def exp(self) -> Interval:
        """The interval of the geometric mean, when this one is of logarithms."""
        return replace(self, estimate=math.exp(self.estimate), low=math.exp(self.low), high=math.exp(self.high))


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
    half = t_quantile(confidence, num_seeds - 1) * float(values.std(ddof=1)) / math.sqrt(num_seeds)
    return Interval(mean, mean - half, mean + half, num_seeds, None, confidence)


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
        return Interval(mean, mean, mean, num_seeds, num_examples, confidence, example_name)
    degrees = (num_seeds - 1) * (variance / seed_part) ** 2 if seed_part > 0 else math.inf
    half = t_quantile(confidence, degrees) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half, num_seeds, num_examples, confidence, example_name)
