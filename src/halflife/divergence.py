"""When does a loss leave its course, which quantity moved first, and how long will a precision still hold?

Plain functions of logs: nothing here needs torch. The rules are stated and few, so that a reader can check them by eye:

    spike       a loss above the lowest one so far by more than ``height`` and by more than eight times its own noise
    divergence  a spike that does not come back by the end, or a loss that is no number
    moved       above twice, or below half, of the median of the readings a window ago, from then on until the spike

and of a number s, the largest attention score or a weight, at k explicit mantissa bits:

    half an ulp  2^(floor(log2 |s|) - k - 1): what rounding may change of a score that decides, in nats; and the update that
                 a weight takes no notice of
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from halflife.errors import UserError, shortened
from halflife.numbers import as_number, check_positive

__all__ = ["Forecast", "Spike", "expected_lost_share", "find_spikes", "forecast", "half_ulp"]

NOISES = 8.0  # above the lowest of many readings, which is itself two or three below the course
WINDOW = 10  # readings
FACTOR = 2.0
LIMIT = 8.0  # nats
LEAST = 5  # readings that a trend needs
SLICES = 2_000  # of equal probability
Z90 = 1.6448536269514722  # both sides of a normal distribution's 90 %


@dataclass(frozen=True)
class Spike:
    """A loss that left its course.

    Attributes:
        began: Step of the lowest loss before.
        seen: Step of the first reading that is too high, or no number.
        ended: Step of the first reading after it that is back: at most half of what counts as too high above the lowest one
            before. ``None``: it never came back.
        height: The largest loss from ``seen`` on, until it was back, minus the lowest one before; infinite if one is no
            number.
        first: What moved first, by name; empty where nothing else had moved before the loss was seen to.
        first_step: Since which step; that of ``seen`` where nothing had.
    """

    began: float
    seen: float
    ended: float | None
    height: float
    first: str = ""
    first_step: float = math.nan

    @property
    def diverged(self) -> bool:
        """Whether the loss never came back."""
        return self.ended is None


def find_spikes(
    steps: Sequence[float],
    losses: Sequence[float],
    quantities: Mapping[str, Sequence[float]] | None = None,
    *,
    height: float = 0.1,
    window: int = WINDOW,
) -> list[Spike]:
    """Find where a loss leaves its course, and what moved before it did.

    A reading is too high if it is above the lowest one so far by more than ``height`` and by more than eight standard
    deviations of the noise (from the median second difference of the ``4 * window`` readings before, which a steady
    fall does not change), or if it is no finite number. It is back at half of that. The first ``window`` readings only
    show the course, unless they are no numbers.

    A quantity has moved at a reading if it is above twice, or below half, of its median over the readings ``window`` to
    ``2 * window`` before. It counts if it has at every reading from some step up to the one where the loss was seen to
    leave; what did so since the earliest step moved first. Quantities are positive; one that is no number has moved.

    Args:
        steps: Where the readings were taken, increasing.
        losses: One a reading; means over the steps since the last reading have less noise than single batches.
        quantities: Of the same readings, by name, such as the norm of the gradient or the largest attention score.
        height: In the unit of the loss.
        window: Readings.

    Returns:
        The spikes in order; a divergence is the last one.

    Raises:
        UserError: If lengths differ, steps do not increase, or an argument is out of range.

    Examples:
        >>> losses = [2.4, 2.3, 2.2, 2.1, 2.0, 2.6, 2.4, 2.0, 1.9, 1.8, 2.5, 3.0]
        >>> for spike in find_spikes(range(0, 1200, 100), losses, window=3):
        ...     print(spike.began, spike.seen, spike.ended, round(spike.height, 3), spike.diverged)
        400 500 700 0.6 False
        900 1000 None 1.2 True
    """
    named = {"losses": losses, **(quantities or {})}
    steps = _steps(steps, named)
    check_positive("height", height, finite=True)
    if isinstance(window, bool) or not isinstance(window, int) or window < 2:
        raise UserError(f"window must be an integer >= 2 (readings), got {shortened(window)}")
    moved = {name: _moved(named[name], window) for name in quantities or {}}
    found: list[Spike] = []
    lowest, index = -1, 0
    while index < len(losses):
        if lowest >= 0:
            allowed = max(height, NOISES * _noise(losses[max(0, index - 4 * window) : index]))
            too_high = index >= window and losses[index] > losses[lowest] + allowed
            if too_high or not math.isfinite(losses[index]):
                end = next(
                    (
                        later
                        for later in range(index + 1, len(losses))
                        if losses[later] <= losses[lowest] + allowed / 2 or losses[later] <= losses[lowest]
                    ),
                    len(losses),
                )
                top = [value if math.isfinite(value) else math.inf for value in losses[index:end]]
                since = {name: _since(flags, index) for name, flags in moved.items()}
                first = min(since, key=lambda name: since[name], default="")
                early = bool(first) and since[first] < index
                found.append(
                    Spike(
                        began=steps[lowest],
                        seen=steps[index],
                        ended=steps[end] if end < len(losses) else None,
                        height=max(top) - losses[lowest],
                        first=first if early else "",
                        first_step=steps[since[first]] if early else steps[index],
                    )
                )
                index = end
                continue
        if math.isfinite(losses[index]) and (lowest < 0 or losses[index] < losses[lowest]):
            lowest = index
        elif lowest < 0 and not math.isfinite(losses[index]):
            found.append(
                Spike(began=steps[index], seen=steps[index], ended=None, height=math.inf, first_step=steps[index])
            )
            break
        index += 1
    return found


def half_ulp(value: float, bits: int) -> float:
    """Half the distance between neighbours with ``bits`` explicit mantissa bits around a number: what rounding may change.

        2^(floor(log2 |value|) - bits - 1)

    Args:
        value: A finite number; its unit is that of the result.
        bits: k; bfloat16 has 7, float16 10, float32 23.

    Returns:
        The largest rounding error.

    Raises:
        UserError: If the number is not finite, or ``bits`` no integer >= 1.

    Examples:
        >>> half_ulp(300.0, 7), half_ulp(300.0, 10)
        (1.0, 0.125)
    """
    number = as_number("value", value)
    if not math.isfinite(number):
        raise UserError(f"value must be a finite number, got {number!r}")
    if isinstance(bits, bool) or not isinstance(bits, int) or bits < 1:
        raise UserError(f"bits must be an integer >= 1 (explicit mantissa bits), got {shortened(bits)}")
    return 0.0 if number == 0.0 else math.ldexp(1.0, math.frexp(number)[1] - bits - 2)


def expected_lost_share(ratio: float, bits: int) -> float:
    """The share of updates that rounding to nearest loses where weights w and updates d are normal and independent.

        P(|d| < half an ulp of w) = E_z erf(2^(floor(log2 |z|) - bits - 1) / (sqrt(2) ratio)),    z ~ N(0, 1)

    Args:
        ratio: The root mean square of the updates, before they are rounded, over that of the weights. With Adam it is
            about ``lr`` over the root mean square of the weights, or less where gradients change their sign.
        bits: Explicit mantissa bits of the weights: bfloat16 has 7, float16 10.

    Returns:
        The share, in [0, 1].

    Raises:
        UserError: If the ratio is not positive and finite, or ``bits`` no integer from 1 to 23.

    Examples:
        >>> [round(expected_lost_share(ratio, bits=7), 3) for ratio in (1e-4, 1e-3, 1e-2)]
        [0.976, 0.776, 0.174]
    """
    ratio = check_positive("ratio", ratio, finite=True)
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= 23:
        raise UserError(f"bits must be an integer from 1 to 23 (explicit mantissa bits), got {shortened(bits)}")
    normal, total = statistics.NormalDist(), 0.0
    for index in range(SLICES):  # the middle of each slice of |z|
        z = normal.inv_cdf(0.5 + (index + 0.5) / (2 * SLICES))
        total += math.erf(half_ulp(z, bits) / ratio / math.sqrt(2))
    return total / SLICES


@dataclass(frozen=True)
class Forecast:
    """How long a precision still holds, if the trend goes on.

    Attributes:
        bits: The precision that was asked about.
        error: Half an ulp of the last reading at this precision, in the unit of the readings (nats).
        bits_needed: The smallest number of explicit mantissa bits for which that is at most the limit.
        doubling: Steps in which the trend doubles; infinite where it does not grow.
        crossing: The step at which the trend is where half an ulp goes over the limit; the last step if it is over; infinite
            where the trend does not grow.
        earliest: The same at the steep end of the trend's 90 % interval.
        latest: The same at its flat end.
        level: ``"red"`` where the error is above the limit and the readings doubled within the time of the trend, ``"amber"``
            where it is above a quarter of the limit, ``"green"`` otherwise.
    """

    bits: int
    error: float
    bits_needed: int
    doubling: float
    crossing: float
    earliest: float
    latest: float
    level: str


def forecast(
    steps: Sequence[float], largest: Sequence[float], bits: int, *, limit: float = LIMIT, window: int = WINDOW
) -> Forecast:
    """Say at which step a trend is too large for a precision, and how many bits it needs now.

    The trend is exponential: the median slope of log2 between all pairs of the last ``window`` readings (Theil-Sen), with
    Sen's 90 % interval. That interval takes readings as independent, which neighbours are not: it is too short.

    The limit of 8 nats is what was measured in small transformers at 2 and 3 bits (docs/precision.md), and no law.

    Args:
        steps: Where the readings were taken, increasing.
        largest: The largest attention score of a batch, in nats (after the division by sqrt(d)); or what else is to be
            rounded and matters to its own half ulp. Positive.
        bits: Explicit mantissa bits: bfloat16 has 7, float16 10.
        limit: The largest error that holds, in the unit of the readings.
        window: How many of the last readings make the trend, at least 5.

    Returns:
        The forecast.

    Raises:
        UserError: If there are fewer than 5 readings, one is not positive, or an argument is out of range.

    Examples:
        >>> steps = range(0, 1000, 100)
        >>> seen = forecast(steps, [16 * 2 ** (step / 200) for step in steps], bits=4)
        >>> seen.error, seen.bits_needed, round(seen.doubling), round(seen.crossing), seen.level
        (8.0, 4, 200, 1000, 'amber')
        >>> forecast(steps, [16.0] * 10, bits=7).level
        'green'
    """
    steps = _steps(steps, {"largest": largest})
    limit = check_positive("limit", limit, finite=True)
    if isinstance(window, bool) or not isinstance(window, int) or window < LEAST:
        raise UserError(f"window must be an integer >= {LEAST} (readings), got {shortened(window)}")
    if len(steps) < LEAST:
        raise UserError(f"{len(steps)} readings were given, expected at least {LEAST}: a trend needs more")
    for step, value in zip(steps, largest, strict=True):
        if not (math.isfinite(value) and value > 0):
            raise UserError(f"the reading at step {step:g} is {value}, expected a positive number: leave it out")
    error = half_ulp(largest[-1], bits)
    x, y = steps[-window:], [math.log2(value) for value in largest[-window:]]
    slope, low, high = _theil_sen(x, y)
    middle = statistics.median(value - slope * step for step, value in zip(x, y, strict=True))
    # Half an ulp is above the limit from this power of 2 on.
    target = math.floor(math.log2(limit)) + 1 + bits + 1

    def crossing(at: float) -> float:
        if error > limit:
            return steps[-1]
        # Through the middle of the readings, where all three lines are about equal.
        centre = statistics.median(x)
        level = middle + slope * centre
        return max(steps[-1], centre + (target - level) / at) if at > 0 else math.inf

    doubling = 1 / slope if slope > 0 else math.inf
    grew = low > 0 and max(y[-1] - y[0], slope * (x[-1] - x[0])) >= 1
    return Forecast(
        bits=bits,
        error=error,
        bits_needed=max(1, math.frexp(largest[-1])[1] - 2 - math.floor(math.log2(limit))),
        doubling=doubling,
        crossing=crossing(slope),
        earliest=crossing(high),
        latest=crossing(low),
        level="red" if error > limit and grew else "amber" if error > limit / 4 else "green",
    )


def _steps(steps: Sequence[float], named: Mapping[str, Sequence[float]]) -> Sequence[float]:
    """The steps, checked together with what was read at them."""
    steps = list(steps)
    for name, values in named.items():
        if len(values) != len(steps):
            raise UserError(f"{name} has {len(values)} readings at {len(steps)} steps: give one for each")
    for before, after in itertools.pairwise(steps):
        if not before < after:
            raise UserError(f"step {after:g} follows step {before:g}, expected steps in order: sort the readings")
    return steps


def _noise(values: Sequence[float]) -> float:
    """The standard deviation of a reading around the line through its neighbours, from the median; 0 of fewer than three."""
    apart = [abs(a - 2 * b + c) for a, b, c in zip(values, values[1:], values[2:], strict=False)]
    finite = [size for size in apart if math.isfinite(size)]
    return statistics.median(finite) / (0.6745 * math.sqrt(6)) if finite else 0.0


def _moved(values: Sequence[float], window: int) -> list[bool]:
    """At which readings a quantity is far from where it was a window ago."""
    flags = []
    for index, value in enumerate(values):
        before = [each for each in values[max(0, index - 2 * window) : max(0, index - window)] if math.isfinite(each)]
        usual = statistics.median(before) if before else math.nan
        flags.append(not math.isfinite(value) or value > FACTOR * usual or value * FACTOR < usual)
    return flags


def _since(flags: Sequence[bool], index: int) -> int:
    """The first reading of the uninterrupted ones that reach up to ``index``; past it if there is none."""
    if not flags[index]:
        return index + 1
    while index > 0 and flags[index - 1]:
        index -= 1
    return index


def _theil_sen(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """The median slope over all pairs, and Sen's 90 % interval."""
    num = len(x)
    slopes = sorted((y[j] - y[i]) / (x[j] - x[i]) for i in range(num) for j in range(i + 1, num))
    spread = Z90 * math.sqrt(num * (num - 1) * (2 * num + 5) / 18)
    low, high = math.floor((len(slopes) - spread) / 2), math.ceil((len(slopes) + spread) / 2)
    return statistics.median(slopes), slopes[max(0, low)], slopes[min(len(slopes) - 1, high)]
