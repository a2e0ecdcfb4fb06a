"""Schedules: pure functions from the step to a multiplier of the decay.

Each is a small frozen value that is called with the number of steps already taken (0 at the first step) and
answers a multiplier >= 0. No state: a run resumes from one integer, and a schedule is plotted without
training. The classes are written in lower case because they are used as functions, and their ``repr`` is the
expression that builds them, which is also how a checkpoint names them.

Examples:
    >>> early = until(1000)
    >>> early(999), early(1000)
    (1.0, 0.0)
    >>> join((warmup(10), cosine(1.0, 0.1, 90)), (10,))(5)
    0.5
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halflife.errors import UserError
from halflife.units import check_non_negative

__all__ = ["Schedule", "after", "constant", "cosine", "join", "linear", "piecewise", "until", "warmup"]

Schedule = Callable[[int], float]


def _check_steps(name: str, value: int, *, minimum: int) -> int:
    if not float(value).is_integer() or value < minimum:  # also refuses NaN and infinity
        raise UserError(f"{name} must be a whole number of steps >= {minimum}, got {value!r}")
    return int(value)


def _check_increasing(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    checked = tuple(_check_steps(name, step, minimum=1) for step in steps)
    if any(later <= earlier for earlier, later in itertools.pairwise(checked)):
        raise UserError(f"{name} must increase strictly, got {checked!r}")
    return checked


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
        object.__setattr__(self, "steps", _check_steps("steps", self.steps, minimum=1))

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
        object.__setattr__(self, "steps", _check_steps("steps", self.steps, minimum=1))

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
        object.__setattr__(self, "step", _check_steps("step", self.step, minimum=0))

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
        object.__setattr__(self, "step", _check_steps("step", self.step, minimum=0))

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
        object.__setattr__(self, "steps", _check_steps("steps", self.steps, minimum=1))

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return min(1.0, step / self.steps)


@dataclass(frozen=True)
class piecewise:
    """Constant pieces: ``values[i]`` while ``boundaries[i - 1] <= t < boundaries[i]``.

    Args:
        values: One multiplier >= 0 per piece.
        boundaries: The first step of each piece after the first; one fewer than ``values``, strictly
            increasing.

    Examples:
        >>> [piecewise((1.0, 0.5, 0.0), (10, 20))(t) for t in (9, 10, 19, 20)]
        [1.0, 0.5, 0.5, 0.0]
    """

    values: Sequence[float]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "values", tuple(check_non_negative("a value", value) for value in self.values))
        object.__setattr__(self, "boundaries", _check_increasing("boundaries", self.boundaries))
        if len(self.values) != len(self.boundaries) + 1:
            raise UserError(
                f"piecewise needs one value more than boundaries, got {len(self.values)} values "
                f"and {len(self.boundaries)} boundaries"
            )

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return self.values[bisect.bisect_right(self.boundaries, step)]


@dataclass(frozen=True)
class join:
    """Schedules one after the other; each sees the steps since its own start.

    ``s(t) = schedules[i](t - boundaries[i - 1])`` while ``boundaries[i - 1] <= t < boundaries[i]``.

    Args:
        schedules: The schedules in order.
        boundaries: The first step of each schedule after the first; one fewer, strictly increasing.
    """

    schedules: Sequence[Schedule]
    boundaries: Sequence[int]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        object.__setattr__(self, "boundaries", _check_increasing("boundaries", self.boundaries))
        for schedule in self.schedules:
            check_schedule(schedule)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise UserError(
                f"join needs one schedule more than boundaries, got {len(self.schedules)} schedules "
                f"and {len(self.boundaries)} boundaries"
            )

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        index = bisect.bisect_right(self.boundaries, step)
        return self.schedules[index](step - (self.boundaries[index - 1] if index else 0))


def check_schedule(schedule: object) -> None:
    """Refuse what cannot be called with a step.

    Args:
        schedule: What the user gave as a schedule.

    Raises:
        UserError: If it is not callable, or is a class instead of one of its values.
    """
    if not callable(schedule) or isinstance(schedule, type):
        raise UserError(
            f"expected a schedule, got {schedule!r}: a schedule is called with the step and returns a "
            "multiplier, for example schedules.until(1000)"
        )
