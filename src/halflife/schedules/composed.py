"""Schedules made of pieces or of other schedules, and what counts as a schedule."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from halflife.errors import UserError
from halflife.expressions import Spelled
from halflife.numbers import check_non_negative, check_steps
from halflife.schedules.shapes import constant, linear, warmup

__all__ = ["Schedule", "check_schedule", "join", "piecewise", "product", "tied_to_lr", "warmup_stable_decay"]

Schedule = Callable[[int], float]


@dataclass(frozen=True, repr=False)
class tied_to_lr(Spelled):
    """Follow the learning rate: ``s = (lr / peak_lr)^power``, whatever schedule makes the learning rate.

    Not a function of the step: only ``Scheduled(rule, tied_to_lr())`` can use it. With `Constant` it makes
    `Independent`, with `Decoupled` it makes `Corrected`.

    Args:
        power: The exponent, >= 0.

    Examples:
        >>> tied_to_lr(2).multiplier(lr=0.5, peak_lr=1.0)
        0.25
    """

    power: float = 1.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "power", check_non_negative("power", self.power))

    def multiplier(self, lr: float, peak_lr: float) -> float:
        """Return the multiplier at a learning rate."""
        return float((lr / peak_lr) ** self.power)


def check_schedule(schedule: object) -> None:
    """Refuse a value that cannot be called with a step.

    Args:
        schedule: What the user gave as a schedule.

    Raises:
        UserError: If it is not callable, or is a class instead of one of its values.
    """
    if isinstance(schedule, tied_to_lr):
        return
    if not callable(schedule) or isinstance(schedule, type):
        raise UserError(
            f"expected a schedule, got {schedule!r}: a schedule is called with the step and returns a "
            "multiplier, for example schedules.until(1000)"
        )


def _check_increasing(name: str, steps: Sequence[int]) -> tuple[int, ...]:
    checked = tuple(check_steps(name, step, minimum=1) for step in steps)
    if any(later <= earlier for earlier, later in itertools.pairwise(checked)):
        raise UserError(f"{name} must increase strictly, got {checked!r}")
    return checked


@dataclass(frozen=True, repr=False)
class piecewise(Spelled):
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


@dataclass(frozen=True, repr=False)
class join(Spelled):
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
        _check_of_step("join", self.schedules)
        if len(self.schedules) != len(self.boundaries) + 1:
            raise UserError(
                f"join needs one schedule more than boundaries, got {len(self.schedules)} schedules "
                f"and {len(self.boundaries)} boundaries"
            )

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        index = bisect.bisect_right(self.boundaries, step)
        return self.schedules[index](step - (self.boundaries[index - 1] if index else 0))


@dataclass(frozen=True, repr=False)
class product(Spelled):
    """Schedules at the same time: ``s(t) = schedules[0](t) * schedules[1](t) * ...``.

    Args:
        schedules: The schedules, at least one.

    Examples:
        >>> from halflife.schedules.shapes import until
        >>> both = product((warmup(4), until(3)))
        >>> [both(t) for t in (0, 1, 2, 3)]
        [0.0, 0.25, 0.5, 0.0]
    """

    schedules: Sequence[Schedule]

    def __post_init__(self) -> None:
        object.__setattr__(self, "schedules", tuple(self.schedules))
        _check_of_step("product", self.schedules)
        if not self.schedules:
            raise UserError("product needs at least one schedule, got none")

    def __call__(self, step: int) -> float:
        """Return the multiplier at ``step``."""
        return math.prod(schedule(step) for schedule in self.schedules)


def _check_of_step(name: str, schedules: Sequence[Schedule]) -> None:
    for schedule in schedules:
        check_schedule(schedule)
        if isinstance(schedule, tied_to_lr):
            raise UserError(f"{name} takes schedules of the step, got tied_to_lr: wrap the rule in it instead")


def warmup_stable_decay(warm: int, stable: int, decay: int, end: float = 0.0) -> join:
    """Rise linearly from 0 to 1, stay there, fall linearly to ``end``: warm-up, stable, decay (WSD).

    Args:
        warm: Steps of the rise, >= 1.
        stable: Steps at 1, >= 1.
        decay: Steps of the fall, >= 1.
        end: The multiplier at the end and from then on, >= 0.

    Returns:
        The three schedules joined.

    Raises:
        UserError: If a number is out of range.

    Examples:
        >>> [warmup_stable_decay(2, 3, 4)(t) for t in (0, 1, 2, 4, 5, 7, 9)]
        [0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0]
    """
    check_steps("stable", stable, minimum=1)
    return join((warmup(warm), constant(), linear(1.0, end, decay)), (warm, warm + stable))
