"""Single shapes: one formula each."""

from __future__ import annotations

import math
from dataclasses import dataclass

from halflife.errors import UserError
from halflife.numbers import as_number, check_non_negative

__all__ = ["after", "check_steps", "constant", "cosine", "linear", "restart_at", "restarts", "until", "warmup"]


def check_steps(name: str, value: int, *, minimum: int) -> int:
    """Return ``value`` as an int if it is a whole number of steps.

    Args:
        name: What the value is called in the message.
        value: The number of steps.
        minimum: The least that is allowed.

    Returns:
        The number.

    Raises:
        UserError: If it is not whole, below ``minimum``, infinite or NaN.
    """
    if not as_number(name, value).is_integer() or value < minimum:  # also refuses NaN and infinity
        raise UserError(f"{name} must be a whole number of steps >= {minimum}, got {value!r}")
    return int(value)


@dataclass(frozen=True)
class constant:
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


@dataclass(frozen=True)
class linear:
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


@dataclass(frozen=True)
class cosine:
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


@dataclass(frozen=True)
class until:
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


@dataclass(frozen=True)
class after:
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


@dataclass(frozen=True)
class warmup:
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


@dataclass(frozen=True)
class restarts:
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
        if not 1.0 <= self.factor < math.inf:
            raise UserError(f"factor must be a finite number >= 1, got {self.factor!r}")

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        since, length = restart_at(step, self.steps, self.factor)
        return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * since / length)) / 2.0


def restart_at(step: int, steps: int, factor: float) -> tuple[float, float]:
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
    while since >= length:  # a logarithm would be off by one at the boundaries
        since, length = since - length, length * factor
    return since, length
