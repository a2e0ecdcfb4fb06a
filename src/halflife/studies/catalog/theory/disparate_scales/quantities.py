"""What the study `disparate-scales` measures, and the closed forms beside it.

Shapes: S seeds, K numbers of bits, P places.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import cast

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.quantities import NotMeasuredError, Quantity, Reading, Terms
from halflife.studies.evidence.results import Results
from halflife.studies.specs.scales import ScalesRun

__all__ = [
    "DECAYED",
    "FLOAT32",
    "LAMS",
    "LOST",
    "MORE_LOSS",
    "ROOM",
    "SOFTMAX",
    "STILL",
    "SUM",
    "added",
    "best_lam_grows",
    "between_bits",
    "between_spacings",
    "bits_beyond",
    "bits_bought",
    "closed_gap",
    "error_sq",
    "is_large",
    "log10_exact",
    "lost_share",
    "neuron_key",
    "neuron_loss",
    "offset_of",
    "offset_ratio",
    "over_closed",
    "over_expected",
    "per_bit",
    "sampling",
    "scales_spec",
    "share_error",
    "share_errors",
    "tolerated",
    "variance_ratio",
    "variance_ratios",
]

Numbers = NDArray[np.float64]

SUM, SOFTMAX, STILL = "sum", "softmax", "neuron-still"
LAMS = (0.0, 0.001, 0.0025, 0.005, 0.01, 0.02)
DECAYED = LAMS[1:]
FLOAT32 = 23  # bits

LOST = 0.05  # share of lost signs that is tolerated
MORE_LOSS = 0.05  # nats, likewise
LEVELS = {SUM: LOST, SOFTMAX: MORE_LOSS}
ROOM = 16  # above this an offset is so large that the numbers N(0, 1) around it are equally spaced
LEAST_LOST = 10  # lost signs, and kept ones, that are expected where a share is compared with its standard error
SAME = range(-1, 3)  # exponents of the spacings at which numbers of bits are compared


def neuron_key(lam: float) -> str:
    """The arm of the drifting neuron with this decay."""
    return f"neuron-{lam:g}"


def scales_spec(results: Results, arm: str, size: int) -> ScalesRun:
    """The spec of an arm."""
    return cast("ScalesRun", results.spec(arm, size))


def offset_of(k: int, log2_ulp: float) -> float:
    """The offset in the middle between two powers of two at which numbers of k bits are 2^log2_ulp apart."""
    return float(1.5 * 2.0 ** (k + log2_ulp))


def is_large(k: int, e: int) -> bool:
    """Whether the offset of k bits and the spacing 2^e is so large that the spacing is the same all around it."""
    return offset_of(k, e) > ROOM


# ---- one sum


def lost_share(ulp: float) -> float:
    """The probability that d ~ N(0, 1) is less than half a spacing from 0, so that it rounds to nothing."""
    return math.erf(ulp / (2 * math.sqrt(2)))


def error_sq(ulp: float) -> float:
    """The mean square of what rounding d ~ N(0, 1) to multiples of ulp changes: ulp^2/12, and what that leaves out.

    Along d the square is a parabola in every spacing; this is its Fourier series, each cosine in the mean over d.

    Args:
        ulp: The spacing.

    Returns:
        ulp^2 (1/12 + sum_n (-1)^n exp(-2 (pi n / ulp)^2) / (pi n)^2).

    Examples:
        >>> round(error_sq(0.5) / (0.5**2 / 12), 6), round(error_sq(16.0), 6)
        (1.0, 1.0)
    """
    terms = ((-1) ** n * math.exp(-2 * (math.pi * n / ulp) ** 2) / (math.pi * n) ** 2 for n in range(1, 200))
    return ulp**2 * (1 / 12 + math.fsum(terms))


def share_error(results: Results, size: int, *, k: int, e: int, more_bits: int = 0) -> Numbers:
    """The share of lost signs minus its closed form, or the closed form for more bits, (S,)."""
    return results.read(SUM, f"lost/{k}/{e}", size) - lost_share(2.0 ** (e - more_bits))


def share_errors(results: Results, size: int) -> list[Quantity]:
    """`share_error` of each number of bits and spacing."""
    return [
        Quantity(
            name=f"share of lost signs minus the formula, {k} bits, offset {offset_of(k, e):g}",
            values=functools.partial(share_error, k=k, e=e),
        )
        for k, e in scales_spec(results, SUM, size).cells
    ]


def variance_ratio(results: Results, size: int, *, k: int, e: int) -> Numbers:
    """The variance of the error over ulp^2/12, (S,)."""
    return results.read(SUM, f"error_sq/{k}/{e}", size) / (4.0**e / 12)


def variance_ratios(results: Results, size: int) -> list[Quantity]:
    """`variance_ratio` of each large offset with a spacing of at most 1."""
    return [
        Quantity(
            name=f"variance of the error over ulp^2/12, {k} bits, offset {offset_of(k, e):g}",
            values=functools.partial(variance_ratio, k=k, e=e),
            unit="x",
            log=True,
        )
        for k, e in scales_spec(results, SUM, size).cells
        if e <= 0 and is_large(k, e)
    ]


def sampling(results: Results, size: int, *, of: str) -> Numbers:
    """The mean square, over bits and spacings, of what is measured minus its closed form, over its standard error, (S,)."""
    spec = scales_spec(results, SUM, size)
    count = spec.last_step * spec.batch_size
    squares = []
    for k, e in spec.cells:
        ulp, p = 2.0**e, lost_share(2.0**e)
        # Shares are binomial. An error is uniform, so that its square has the variance ulp^4 (1/80 - 1/144).
        if of == "lost" and count * p * (1 - p) >= LEAST_LOST:
            squares.append(share_error(results, size, k=k, e=e) ** 2 / (p * (1 - p) / count))
        if of == "error_sq" and e <= 0 and is_large(k, e):
            off_S = results.read(SUM, f"error_sq/{k}/{e}", size) - ulp**2 / 12
            squares.append(off_S**2 / (ulp**4 / 180 / count))
    return np.asarray(np.mean(squares, axis=0))


# ---- the largest offset that is tolerated


def crossing(x_P: Sequence[float], y_PS: Numbers, level: float) -> Numbers:
    """Where quantities that grow first reach a level, between places by straight lines of their logarithms.

    Args:
        x_P: The places, in rising order.
        y_PS: The quantities, one column a seed.
        level: The level, > 0.

    Returns:
        One place a seed, (S,).

    Raises:
        NotMeasuredError: The first value is not below the level, none reaches it, or the one before is not above 0.

    Examples:
        >>> crossing([0.0, 1.0, 2.0], np.array([[0.01], [0.1], [10.0]]), level=1.0).tolist()
        [1.5]
    """
    found = []
    for y_P in np.asarray(y_PS, dtype=np.float64).T:
        reached = np.flatnonzero(y_P >= level)
        if not len(reached) or reached[0] == 0 or y_P[reached[0] - 1] <= 0:
            raise NotMeasuredError(f"a level of {level:g} is not crossed within what is measured, in some seed")
        last = int(reached[0])
        low, high = np.log(y_P[last - 1 : last + 1])
        found.append(x_P[last - 1] + (x_P[last] - x_P[last - 1]) * (math.log(level) - low) / (high - low))
    return np.array(found)


def tolerated(results: Results, size: int, *, arm: str, k: int) -> Numbers:
    """log2 of the offset at which the loss of signs, or what is added to the loss, reaches what is tolerated, (S,)."""
    exponents = scales_spec(results, arm, size).log2_ulps
    measures = [Reading(SUM, f"lost/{k}/{e}") if arm == SUM else added(k, e) for e in exponents]
    y_PS = np.array([measure(results, size) for measure in measures])
    return math.log2(offset_of(k, 0)) + crossing(exponents, y_PS, LEVELS[arm])


def per_bit(results: Results, size: int, *, arm: str) -> Numbers:
    """The slope of `tolerated` over the number of bits, (S,)."""
    bits = scales_spec(results, arm, size).bits
    return np.asarray(np.polyfit(bits, [tolerated(results, size, arm=arm, k=k) for k in bits], 1)[0])


# ---- a neuron


def neuron_loss(lam: float, k: int) -> Reading:
    """The loss with a decay and a number of bits."""
    return Reading(neuron_key(lam), f"loss/{k}")


def best_lam_grows(results: Results, size: int, *, few: int, many: int) -> Numbers:
    """The lam with the lowest loss at few bits minus that at many, in each seed, (S,)."""
    losses = {k: [neuron_loss(lam, k)(results, size) for lam in LAMS] for k in (few, many)}
    best = {k: np.array(LAMS)[np.argmin(found, axis=0)] for k, found in losses.items()}
    return np.asarray(best[few] - best[many])


def bits_needed(results: Results, size: int, *, lam: float) -> Numbers:
    """The number of bits at which the loss is `MORE_LOSS` above that of 23 bits, (S,)."""
    bits = sorted((k for k in scales_spec(results, neuron_key(lam), size).bits if k < FLOAT32), reverse=True)
    gaps_PS = np.array([(neuron_loss(lam, k) - neuron_loss(lam, FLOAT32))(results, size) for k in bits])
    return -crossing([-float(k) for k in bits], gaps_PS, MORE_LOSS)


def bits_bought(results: Results, size: int, *, lam: float) -> Numbers:
    """By how many fewer bits the neuron does with decay, (S,)."""
    return bits_needed(results, size, lam=0.0) - bits_needed(results, size, lam=lam)


def offset_ratio(results: Results, size: int, *, lam: float) -> Numbers:
    """log2 of the offset without decay over that with, at the end, (S,)."""
    without, decayed = (results.read(neuron_key(one), f"offset/{FLOAT32}", size) for one in (0.0, lam))
    return np.asarray(np.log2(without / decayed))


def bits_beyond(results: Results, size: int, *, lam: float) -> Numbers:
    """`bits_bought` minus `offset_ratio`, (S,)."""
    return bits_bought(results, size, lam=lam) - offset_ratio(results, size, lam=lam)


def over_expected(results: Results, size: int, *, lam: float) -> Numbers:
    """The offset at the end over its closed form, (S,)."""
    spec = scales_spec(results, neuron_key(lam), size)
    return results.read(neuron_key(lam), f"offset/{FLOAT32}", size) / spec.expected_offset(spec.last_step)


# ---- a softmax


def added(k: int, e: int) -> Terms:
    """What an offset adds to the loss."""
    return Reading(SOFTMAX, f"loss/{k}/{e}") - Reading(SOFTMAX, "loss")


def between_bits(results: Results, size: int) -> list[Quantity]:
    """What an offset adds to the loss with each number of bits minus that with the most, at some spacings."""
    bits = scales_spec(results, SOFTMAX, size).bits
    most = max(bits)
    return [
        Quantity(
            name=f"what the offset adds to the loss at ulp {2.0**e:g}, {k} bits minus {most} bits",
            values=added(k, e) - added(most, e),
            unit="nats",
        )
        for k in bits
        if k != most
        for e in SAME
    ]


def between_spacings(results: Results, size: int) -> Numbers:
    """What an offset adds to the loss where the spacing is 4, minus where it is 1, with the most bits, (S,)."""
    most = max(scales_spec(results, SOFTMAX, size).bits)
    return (added(most, 2) - added(most, 0))(results, size)


def closed_gap(results: Results, size: int, ulp: float) -> Numbers:
    """What independent, uniform errors add to the loss, to second order: ulp^2/24 mean(1 - sum_j p_j^2), (S,)."""
    return ulp**2 / 24 * results.read(SOFTMAX, "uncertainty", size)


def over_closed(results: Results, size: int, *, e: int) -> Numbers:
    """What an offset adds to the loss, the mean over bits, over its closed form, (S,)."""
    found = [added(k, e)(results, size) for k in scales_spec(results, SOFTMAX, size).bits]
    return np.asarray(np.mean(found, axis=0) / closed_gap(results, size, 2.0**e))


def log10_exact(results: Results, size: int) -> Numbers:
    """The largest change of the loss by an offset in float64, in decimal logarithms; one of 0 has none, (S,)."""
    return np.asarray(np.log10(np.maximum(results.read(SOFTMAX, "exact_difference", size), 1e-17)))
