"""Single shapes: one formula each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from halflife.expressions import Spelled
from halflife.numbers import check_at_least, check_non_negative, check_positive, check_steps

__all__ = ["after", "constant", "cosine", "exponential", "linear", "restart_at", "restarts", "until", "warmup"]

MANY = 10_000  # periods that are counted one by one


@dataclass(frozen=True, repr=False)
class constant(Spelled):
    """The same multiplier at every step: ``s(t) = value``.

    Args:
        value: The multiplier, >= 0.
    """

    value: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", check_non_negative("value", self.value))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return self.value


@dataclass(frozen=True, repr=False)
class linear(Spelled):
    """A straight line: ``s(t) = start + (end - start) * min(t, steps) / steps``.

    Args:
        start: The multiplier at step 0, >= 0.
        end: The multiplier from step ``steps`` on, >= 0.
        steps: Length of the ramp in steps, >= 1.

    Examples:
        >>> [linear(1.0, 0.0, 4)(t) for t in (0, 1, 4, 9)]
        [1.0, 0.75, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check_non_negative("start", self.start))
        object.__setattr__(self, "end", check_non_negative("end", self.end))
        object.__setattr__(self, "steps", check_steps("steps", self.steps, minimum=1))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        if step >= self.steps:
            return self.end  # exactly, not up to rounding
        return self.start + (self.end - self.start) * step / self.steps


@dataclass(frozen=True, repr=False)
class cosine(Spelled):
    """Half a cosine: ``s(t) = end + (start - end) * (1 + cos(pi * min(t, steps) / steps)) / 2``.

    Args:
        start: The multiplier at step 0, >= 0.
        end: The multiplier from step ``steps`` on, >= 0. It may be above ``start`` (DINO raises the decay
            so).
        steps: Length of the ramp in steps, >= 1.

    Examples:
        >>> [round(cosine(1.0, 0.0, 4)(t), 3) for t in (0, 1, 2, 4, 9)]
        [1.0, 0.854, 0.5, 0.0, 0.0]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check_non_negative("start", self.start))
        object.__setattr__(self, "end", check_non_negative("end", self.end))
        object.__setattr__(self, "steps", check_steps("steps", self.steps, minimum=1))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        if step >= self.steps:
            return self.end  # exactly, not up to rounding
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * step / self.steps)) / 2.0


@dataclass(frozen=True, repr=False)
class exponential(Spelled):
    """The same factor at each step: ``s(t) = start^(1 - u) * end^u`` with ``u = min(t, steps) / steps``.

    Source: Golatkar et al. 2019 (arXiv 1905.13277) let the learning rate fall so, by 3 % an epoch.

    Args:
        start: The multiplier at step 0, > 0.
        end: The multiplier from step ``steps`` on, > 0.
        steps: Length of the fall or rise in steps, >= 1.

    Examples:
        >>> [round(exponential(1.0, 0.01, 4)(t), 3) for t in (0, 1, 2, 4, 9)]
        [1.0, 0.316, 0.1, 0.01, 0.01]
    """

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "start", check_positive("start", self.start, finite=True))
        object.__setattr__(self, "end", check_positive("end", self.end, finite=True))
        object.__setattr__(self, "steps", check_steps("steps", self.steps, minimum=1))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        if step >= self.steps:
            return self.end  # exactly, not up to rounding
        share = step / self.steps
        return float(self.start ** (1.0 - share) * self.end**share)


@dataclass(frozen=True, repr=False)
class until(Spelled):
    """On at first, then off: 1 while ``t < step``, else 0.

    Source: Golatkar et al. 2019 and Bjorck et al. 2021 remove the decay after the early phase of a run.

    Args:
        step: The first step without decay, >= 0.
    """

    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_steps("step", self.step, minimum=0))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return 1.0 if step < self.step else 0.0


@dataclass(frozen=True, repr=False)
class after(Spelled):
    """Off at first, then on: 1 once ``t >= step``, else 0.

    Args:
        step: The first step with decay, >= 0.
    """

    step: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "step", check_steps("step", self.step, minimum=0))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return 1.0 if step >= self.step else 0.0


@dataclass(frozen=True, repr=False)
class warmup(Spelled):
    """A ramp from 0 to 1: ``s(t) = min(1, t / steps)``; the first step has none.

    Args:
        steps: Length of the ramp in steps, >= 1.
    """

    steps: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_steps("steps", self.steps, minimum=1))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return min(1.0, step / self.steps)


@dataclass(frozen=True, repr=False)
class restarts(Spelled):
    """Half a cosine that starts again, each time longer: ``s = end + (start - end) * (1 + cos(pi * t_i / T_i)) / 2``.

    ``T_0 = steps``, ``T_i = factor * T_(i-1)``; ``t_i`` counts from the last restart.

    Source: the schedule multiplier of SGDR and AdamWR (Loshchilov and Hutter 2017, arXiv 1608.03983).

    Args:
        steps: Steps of the first period, >= 1.
        factor: By how much each period is longer than the one before, >= 1.
        start: The multiplier at each restart, >= 0.
        end: The multiplier that each period ends at, >= 0.

    Examples:
        >>> [round(restarts(2, 2)(t), 3) for t in (0, 1, 2, 3, 4, 5, 6)]
        [1.0, 0.5, 1.0, 0.854, 0.5, 0.146, 1.0]
    """

    steps: int
    factor: float = 1.0
    start: float = 1.0
    end: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "steps", check_steps("steps", self.steps, minimum=1))
        object.__setattr__(self, "start", check_non_negative("start", self.start))
        object.__setattr__(self, "end", check_non_negative("end", self.end))
        object.__setattr__(self, "factor", check_at_least("factor", self.factor, 1.0))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        since, length = restart_at(step, self.steps, self.factor)
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * since / length)) / 2.0


def restart_at(step: int, steps: float, factor: float) -> tuple[float, float]:
    """Find the period of a schedule with restarts that a step is in.

    Args:
        step: Steps taken.
        steps: Length of the first period.
        factor: By how much each period is longer than the one before, >= 1.

    Returns:
        Steps since the last restart, and the length of this period; fractional where ``factor`` is.
    """
    since, length = float(step), float(steps)
    if factor == 1.0:
        return since % length, length
    if since > MANY * length:  # else counted, because a logarithm would be off by one at the boundaries
        rate = math.log(factor)
        whole = max(0, math.floor(math.log1p(since * (factor - 1.0) / length) / rate) - 1)
        since -= length * math.expm1(whole * rate) / (factor - 1.0)
        length *= factor**whole
    while since >= length:
        since, length = since - length, length * factor
    return since, length
