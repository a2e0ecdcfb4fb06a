"""What a rule is: it answers which fraction of the weight a step removes.

A `Rule` sees a `StepInfo` (plain numbers) and answers ``r`` of ``w <- (1 - r) * w``; a
`Penalty` answers a coefficient of the gradient instead, and is a type of its own because no fraction
describes what it does. Neither touches a tensor: ``attach`` carries the answer out.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from halflife.units import check_non_negative

__all__ = ["LamRule", "Penalty", "Rule", "StepInfo", "law_text"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInfo:
    """What a rule may know about one parameter group at one step; NaN where a number is not known.

    Args:
        lr: The group's learning rate at this step, > 0 (at ``lr == 0`` no rule is asked: nothing decays).
        lam: The group's own ``weight_decay`` as the user set it.
        step: Steps taken before this one: 0 at the first.
        peak_lr: The largest learning rate of the group's schedule.
        steps_per_epoch: Optimizer steps in one pass over the data.
        tokens_per_step: Tokens that one optimizer step consumes.
        group: Number of the group, counted through all attached optimizers.
    """

    lr: float
    lam: float = math.nan
    step: int = 0
    peak_lr: float = math.nan
    steps_per_epoch: float = math.nan
    tokens_per_step: float = math.nan
    group: int = 0


class _Part:
    """What rules and penalties share: what they need, and their description as plain values."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `StepInfo` fields that it reads besides ``lr``."""
        return frozenset()

    @property
    def explicit_lam(self) -> float | None:
        """The coefficient it imposes on every group alike, or None if it imposes none."""
        return None

    def law(self) -> dict[str, Any]:
        """Return a description of itself in nested plain values; two parts with equal laws act alike."""
        law: dict[str, Any] = _describe(self)
        return law


class Rule(_Part, ABC):
    """Answers one question: which fraction of the weight is removed at this step."""

    @abstractmethod
    def fraction(self, info: StepInfo) -> float:
        """Return ``r`` of ``w <- (1 - r) * w``, with ``0 <= r < 1``, for one group at one step."""


class Penalty(_Part, ABC):
    """Adds a multiple of the weight to the gradient, before the optimizer sees it."""

    @abstractmethod
    def coefficient(self, info: StepInfo) -> float:
        """Return ``c`` of ``g <- g + c * w`` for one group at one step, >= 0."""


@dataclass(frozen=True)
class LamRule(Rule):
    """Base of the rules with one coefficient.

    Args:
        lam: The coefficient, finite and >= 0; None takes each group's own ``weight_decay``.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN.
    """

    lam: float | None = None

    def __post_init__(self) -> None:
        if self.lam is not None:  # a plain float, so that equal laws have equal text
            object.__setattr__(self, "lam", check_non_negative("lam", self.lam))

    @property
    def needs(self) -> frozenset[str]:
        """``lam`` where each group brings its own."""
        return frozenset({"lam"} if self.lam is None else ())

    @property
    def explicit_lam(self) -> float | None:
        """The coefficient given at construction."""
        return self.lam

    def lam_of(self, info: StepInfo) -> float:
        """Return the coefficient that holds for this group."""
        return info.lam if self.lam is None else self.lam


def _describe(value: Any) -> Any:
    """Return parts, schedules and numbers as nested dicts, lists and plain values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: _describe(getattr(value, field.name)) for field in dataclasses.fields(value)}
        return {"name": type(value).__name__, **fields}
    if isinstance(value, list | tuple):
        return [_describe(item) for item in value]
    if callable(value):  # a user's own schedule: its name is all there is to compare
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return value


def law_text(law: Any) -> str:
    """Write a law as one line, the form that checkpoints keep and error messages show.

    Args:
        law: The answer of ``law()``.

    Returns:
        An expression such as ``Scheduled(inner=Decoupled(lam=0.1), schedule=until(step=1000))``.

    Examples:
        >>> law_text({"name": "Decoupled", "lam": 0.1})
        'Decoupled(lam=0.1)'
    """
    if isinstance(law, dict):
        fields = ", ".join(f"{name}={law_text(value)}" for name, value in law.items() if name != "name")
        return f"{law['name']}({fields})"
    if isinstance(law, list):
        return "[" + ", ".join(law_text(item) for item in law) + "]"
    return law if isinstance(law, str) else repr(law)
