"""What rules, appliers and penalties are.

A `Rule` computes from a `StepInfo` (plain numbers) the fraction ``r`` of ``w <- (1 - r) * w``. A `Penalty` computes a
coefficient of the gradient, and is a type of its own because no fraction describes its effect. An `Applier` says that
the fraction of a rule is to be removed from something else than the whole weight. None of them touches a tensor:
``halflife.optim`` does.
"""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from halflife.errors import UserError
from halflife.expressions import Spelled
from halflife.numbers import check_non_negative
from halflife.rules.grammar import REFUSED

if TYPE_CHECKING:  # rules compute with tensors that they are given, but never make one
    from torch import Tensor

    from halflife.schedules.composed import Schedule, tied_to_lr

__all__ = ["Applier", "LamRule", "Part", "Penalty", "Rule", "StepInfo", "check_inside"]


@dataclass(slots=True, kw_only=True)  # not frozen: that would quadruple the time to make one
class StepInfo:
    """What is known about one parameter group at one step; NaN where a number is not known.

    Args:
        lr: The group's learning rate at this step, > 0 (at ``lr == 0`` nothing decays, and no rule is evaluated).
        lam: The group's own ``weight_decay`` as the user set it.
        step: Steps taken before this one: 0 at the first.
        peak_lr: The largest learning rate of the group's schedule.
        steps_per_epoch: Optimizer steps in one pass over the data.
        tokens_per_step: Tokens that one optimizer step consumes.
        group: Number of the group, counted through all attached optimizers.
        momentum: SGD's momentum; NaN for other optimizers.
        dampening: SGD's dampening; NaN for other optimizers.
        second_moment: Adam's second moment with its bias corrected, as the mean over all parameters of all
            groups: the running mean of squared gradients. A 0-dim tensor on an accelerator.
        weight_norm: Euclidean norms of the group's tensors, of those with a gradient; 1-D.
        initial_norm: The same norms before the first step under the rule; 1-D.
    """

    lr: float
    lam: float = math.nan
    step: int = 0
    peak_lr: float = math.nan
    steps_per_epoch: float = math.nan
    tokens_per_step: float = math.nan
    group: int = 0
    momentum: float = math.nan
    dampening: float = math.nan
    second_moment: float | Tensor = math.nan
    weight_norm: float | Tensor = math.nan
    initial_norm: float | Tensor = math.nan


class Part(Spelled):
    """What rules, appliers and penalties share: what they need, and what they are made of."""

    @property
    def needs(self) -> frozenset[str]:
        """Names of the `StepInfo` fields that it reads besides ``lr``."""
        return frozenset()

    @property
    def explicit_lam(self) -> float | None:
        """The coefficient it imposes on every group alike, or None if it imposes none."""
        return None

    @property
    def kind(self) -> str:
        """What it is to a part around it: a row and column of the table in `halflife.rules.grammar`."""
        return type(self).__name__

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Refuse: only a `Rule` has a fraction of the whole weight."""
        raise UserError(
            f"{self!r} has no fraction of its own: it does not shrink the whole weight, as a plain rule does"
        )

    def inside(self) -> tuple[Part, ...]:
        """The parts that it is made of, without what those are made of."""
        inner = getattr(self, "inner", None)
        return (*([] if inner is None else [inner]), *getattr(self, "rules", ()))

    def parts(self) -> Iterator[Part]:
        """Yield itself, and what it is made of, and what that is made of."""
        yield self
        for part in self.inside():
            yield from part.parts()

    def for_group(self, index: int) -> Part:
        """Return the part that acts on one parameter group.

        Args:
            index: Number of the group, counted through all attached optimizers.

        Returns:
            A rule, `Cautious` or `Toward` around a rule, or a penalty: each `PerGroup` inside is replaced by the rule
            of the group, and each `Scheduled` stands directly around what it multiplies.

        Raises:
            UserError: If a `PerGroup` inside has no rule for the group.
        """
        return self

    def check_groups(self, num_groups: int) -> None:
        """Refuse a `PerGroup` with another number of rules than there are parameter groups.

        Args:
            num_groups: The number of groups of all attached optimizers.

        Raises:
            UserError: If one inside has more or fewer.
        """
        for part in self.inside():
            part.check_groups(num_groups)


class Rule(Part, ABC):
    """Computes the fraction of the weight that a step removes."""

    @property
    def kind(self) -> str:
        """``"rule"``, or ``"norm"`` and ``"net norm"`` for those that set a norm after the step."""
        return "net norm" if "net_norm" in self.needs else "norm" if "weight_norm" in self.needs else "rule"

    @abstractmethod
    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return ``r`` of ``w <- (1 - r) * w``, with ``0 <= r < 1``, for one group at one step."""


@dataclass(frozen=True, repr=False)
class Applier(Part, ABC):
    """Removes the fraction of a rule, but not of the whole weight: of some elements, or of a distance.

    Args:
        inner: The rule that says which fraction.

    Raises:
        UserError: If ``inner`` is not a rule whose fraction is known before the step.
    """

    inner: Rule

    def __post_init__(self) -> None:
        check_inside(type(self).__name__, self.inner)

    def for_group(self, index: int) -> Part:
        """Return the applier around the rule of the group."""
        inner = self.inner.for_group(index)
        assert isinstance(inner, Rule)  # as checked when it was made
        return self if inner is self.inner else dataclasses.replace(self, inner=inner)

    @property
    def needs(self) -> frozenset[str]:
        """What the inner rule needs."""
        return self.inner.needs

    @property
    def explicit_lam(self) -> float | None:
        """The inner rule's."""
        return self.inner.explicit_lam


class Penalty(Part, ABC):
    """Adds a multiple of the weight to the gradient, before the optimizer sees it."""

    @property
    def kind(self) -> str:
        """``"penalty"``."""
        return "penalty"

    def times(self, schedule: Schedule | tied_to_lr) -> Penalty:
        """Return this penalty with its coefficient multiplied by a schedule of the step.

        Raises:
            UserError: If it cannot be scheduled.
        """
        raise UserError(f"{self!r} cannot be scheduled: it has no times(schedule) that returns the scheduled penalty")

    @abstractmethod
    def coefficient(self, info: StepInfo) -> float:
        """Return ``c`` of ``g <- g + c * w`` for one group at one step, >= 0."""


@dataclass(frozen=True, repr=False)
class LamRule(Rule):
    """Base of the rules with one coefficient.

    Args:
        lam: The coefficient, finite and >= 0; None takes each group's own ``weight_decay``.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN.
    """

    inherits: ClassVar[bool] = True  # whether its unit is that of an optimizer's weight_decay, which lam=None takes
    lam: float | None = None

    def __post_init__(self) -> None:
        if self.lam is not None:  # a plain float, so that equal rules have equal text
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


def check_inside(wrapper: str, part: object) -> None:
    """Refuse a part that ``wrapper`` cannot hold.

    Args:
        wrapper: The name of the class of the wrapper.
        part: What the user gave.

    Raises:
        UserError: If it is no part, or of a kind that `halflife.rules.grammar` refuses there.
    """
    if not isinstance(part, Part):
        raise UserError(f"{wrapper} wraps a rule such as Decoupled(0.1), got {part!r}")
    refused = REFUSED.get(wrapper, {})
    kinds = [part.kind, *("PerGroup" for inner in part.parts() if inner.kind == "PerGroup")]
    for kind in kinds:
        if kind in refused:
            raise UserError(f"{wrapper} cannot wrap {part!r}: {refused[kind]}")
    if part.kind == "PerGroup":
        for rule in part.inside():
            check_inside(wrapper, rule)
