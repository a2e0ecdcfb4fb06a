"""Where a sweep over lam is lowest, as a sample of seeds and of validation blocks, and how that moves along an axis.

Shapes: L values of lam, S seeds, N blocks of validation tokens, A places on an axis.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.panels import PointRow
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, Interval, crossed_interval, seed_interval
from halflife.studies.specs.text import TextRun

__all__ = [
    "PAIRED_NOTE",
    "Optimum",
    "Sweep",
    "exponents_of",
    "find_optimum",
    "lam_of",
    "optimum_of",
    "paired_rows",
    "text_spec",
]

AROUND = 1  # a parabola through the lowest place and its neighbours: further away a loss is no parabola in log lam


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """One configuration at several values of lam.

    Args:
        label: The configuration, in words.
        x: Where it stands on its axis, > 0.
        keys: The arms by their lam, in rising order.
    """

    label: str
    x: float
    keys: Mapping[float, str]


@dataclass(frozen=True, kw_only=True)
class Optimum:
    """Where a sweep is lowest.

    Args:
        log_lam_SN: Pseudo-values of log lam* per seed and block. Their mean is the estimate, corrected for the bias of order
            1 / N, and `crossed_interval` of them its interval.
        lowest: The lam whose mean over seeds is lowest.
        problem: Why the place is no estimate, in words (empty: it is one).
    """

    log_lam_SN: NDArray[np.float64]
    lowest: float
    problem: str = ""

    def lam(self, confidence: float = CONFIDENCE) -> Interval:
        """The geometric mean of lam* over seeds."""
        return crossed_interval(self.log_lam_SN, confidence=confidence, example_name="blocks").exp()


def find_optimum(
    lams_L: Sequence[float],
    blocks_LSN: NDArray[np.float64],
    label: str = "the sweep",
    *,
    place: str = "lam",
    value: str = "loss",
) -> Optimum:
    """The vertex of a parabola in log lam around the lowest loss, for each seed and with each block left out.

    All seeds use the same places, those around the lowest mean over seeds. With theta_s the place of seed s and
    theta_s(-n) that without block n, the pseudo-value is

        N theta_s - (N - 1) theta_s(-n)

    which for a mean over blocks is the block's own value (the jackknife; Tukey 1958): so blocks become a sample for
    a quantity that no single block has.

    Args:
        lams_L: The values of lam, > 0, in rising order, three or more.
        blocks_LSN: The loss.
        label: The configuration, for the problem.
        place: What the values of lam are, if they are another setting, for the problem.
        value: What the loss is, likewise.

    Returns:
        The optimum. There is a problem when the lowest mean over seeds is at the first or the last lam, when a seed's
        parabola has no minimum, or when its minimum lies outside the places that it is fitted to: an extrapolation.

    Examples:
        >>> lams = [0.1, 0.2, 0.4]
        >>> losses = np.array([[[1.0] * 4] * 2, [[0.5] * 4] * 2, [[1.0] * 4] * 2])
        >>> found = find_optimum(lams, losses)
        >>> found.problem, found.log_lam_SN.shape, round(float(np.exp(found.log_lam_SN.mean())), 6)
        ('', (2, 4), 0.2)
    """
    log_lams = np.log(np.asarray(lams_L, dtype=np.float64))
    num_blocks = blocks_LSN.shape[2]
    means_LS = blocks_LSN.mean(axis=2)
    lowest = int(np.argmin(means_LS.mean(axis=1)))
    edge = lowest in {0, len(log_lams) - 1}
    first = min(max(lowest - AROUND, 0), len(log_lams) - 2 * AROUND - 1)
    part = slice(first, first + 2 * AROUND + 1)
    # Leaving out every block of every seed at once: one linear map from losses to the parabola's coefficients.
    left_out_LSN = (num_blocks * means_LS[:, :, None] - blocks_LSN) / (num_blocks - 1)
    place_S, curvature_S = _vertices(log_lams[part], means_LS[part])
    place_SN, _ = _vertices(log_lams[part], left_out_LSN[part])
    pseudo_SN = num_blocks * place_S[:, None] - (num_blocks - 1) * place_SN
    problem = ""
    if edge:
        problem = f"the lowest {value} of {label} is at {place} {lams_L[lowest]:g}, an edge of its grid"
    elif not (curvature_S > 0).all():
        problem = f"{label} has no minimum in every seed"
    elif not ((place_S > log_lams[first]) & (place_S < log_lams[first + 2 * AROUND])).all():
        problem = f"the minimum of {label} lies outside the {place}s that it is fitted to in some seed"
    return Optimum(log_lam_SN=pseudo_SN, lowest=float(lams_L[lowest]), problem=problem)


def _vertices(x_L: NDArray[np.float64], y_L: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The vertices and curvatures of least-squares parabolas through y against x, along the first axis of y."""
    middle = x_L.mean()
    to_coefficients = np.linalg.pinv(np.vander(x_L - middle, 3))
    curvature, slope, _ = np.tensordot(to_coefficients, y_L, axes=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return middle - slope / (2 * curvature), curvature


def optimum_of(results: Results, sweep: Sweep, size: int, array: str = "val/loss_blocks") -> Optimum:
    """The optimum of a sweep from the store.

    Args:
        results: What the store holds.
        sweep: The configuration.
        size: The size.
        array: The loss, one value a block.

    Returns:
        The optimum.
    """
    blocks_LSN = np.array([results.read(key, array, size) for key in sweep.keys.values()])
    return find_optimum(list(sweep.keys), blocks_LSN, sweep.label)


def exponents_of(x_A: Sequence[float], optima: Sequence[Optimum]) -> NDArray[np.float64]:
    """The exponent p of lam* ~ x^p, by least squares of log lam* on log x for each seed and block.

    Args:
        x_A: The places on the axis, > 0, at least two different.
        optima: The optimum at each.

    Returns:
        Shape (S, N), seeds and blocks both samples; their mean is the estimate.

    Examples:
        >>> half = [Optimum(log_lam_SN=np.full((2, 3), np.log(x) / 2), lowest=x) for x in (1, 4, 16)]
        >>> round(float(exponents_of([1, 4, 16], half).mean()), 6)
        0.5
    """
    log_x = np.log(np.asarray(x_A, dtype=np.float64))
    weights = (log_x - log_x.mean()) / ((log_x - log_x.mean()) ** 2).sum()
    return np.tensordot(weights, np.array([optimum.log_lam_SN for optimum in optima]), axes=1)


def text_spec(results: Results, key: str, size: int) -> TextRun:
    """The spec of an arm of language-model runs."""
    spec = results.spec(key, size)
    assert isinstance(spec, TextRun)
    return spec


def lam_of(spec: TextRun) -> float:
    """The lam of a run.

    Args:
        spec: The run; its decay is one of the rules that have a lam alone.

    Returns:
        The number in its decay, 0 without.

    Examples:
        >>> lam_of(TextRun(context=6, width=8, depth=1, lr=0.01, num_steps=1, batch_size=1, decay="Decoupled(lam=0.3)"))
        0.3
    """
    return float(spec.decay.removesuffix(")").rpartition("lam=")[2]) if spec.decay else 0.0


PAIRED_NOTE = (
    "Bars are 95 % intervals over seeds, each seed's own mean over its line taken out, because seeds are paired. The"
    " difference of two points has an interval 1.4 times as wide as their bars, where these are alike."
)


def paired_rows(series: str, x_L: Sequence[float], values_LS: NDArray[np.float64], *, apart: int = 0) -> list[PointRow]:
    """A line through the means over seeds, with bars for what a comparison along it can rest on.

    Bars are Student's intervals of the values without their seed's mean over the line (Cousineau 2005). That takes out 1 / L of
    a place's own spread too, which the factor sqrt(L / (L - 1)) gives back (Morey 2008, "Confidence intervals from normalized
    data: a correction to Cousineau", Tutorials in Quantitative Methods for Psychology 4(2)). So the difference of two places
    whose spreads are alike has an interval sqrt(2) times as wide as a bar.

    Args:
        series: Its name.
        x_L: The places.
        values_LS: One value per place and seed, S >= 2.
        apart: So many of the first places are not on the line.

    Returns:
        The line's rows, then the points with bars.

    Examples:
        >>> rows = paired_rows("loss", [1.0, 2.0], np.array([[1.0, 5.0], [2.0, 6.0]]))
        >>> [(row.x, row.y, row.low, row.high) for row in rows if row.style == "point"]
        [(1.0, 3.0, 3.0, 3.0), (2.0, 4.0, 4.0, 4.0)]
    """
    num_places = len(values_LS)
    if num_places > 1:
        means_L1 = values_LS.mean(axis=1, keepdims=True)
        left_LS = values_LS - means_L1 - (values_LS.mean(axis=0) - values_LS.mean())
        values_LS = means_L1 + math.sqrt(num_places / (num_places - 1)) * left_LS
    intervals = [seed_interval(row) for row in values_LS]
    pairs = list(zip(x_L, intervals, strict=True))
    return [PointRow(series=series, x=x, y=i.estimate, style="line") for x, i in pairs[apart:]] + [
        PointRow(series=series, x=x, y=i.estimate, low=i.low, high=i.high) for x, i in pairs
    ]


def lam_places(lams: Sequence[float]) -> list[float]:
    """Where values of lam stand on a logarithmic axis that has no place for 0.

    Args:
        lams: In rising order, the first one 0.

    Returns:
        The same, with a third of the smallest one above 0 for 0.

    Examples:
        >>> lam_places([0.0, 0.3, 1.0])
        [0.1, 0.3, 1.0]
    """
    return [round(lams[1] / 3, 12), *lams[1:]]
