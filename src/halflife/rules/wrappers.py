"""Parts made of parts: multiplied by a schedule, or one for each parameter group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from halflife.errors import UserError
from halflife.rules.base import Applier, Part, Penalty, Rule, StepInfo, check_inside
from halflife.schedules.composed import Schedule, check_schedule, tied_to_lr

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PerGroup", "Scheduled"]


@dataclass(frozen=True, repr=False)
class Scheduled(Rule):
    """Multiply what another part removes by a schedule of the step: ``r = inner * schedule(t)``.

    ``Scheduled(Cautious(rule), s)`` and ``Scheduled(Toward(rule), s)`` multiply the fraction of the rule inside,
    ``Scheduled(L2(lam), s)`` the coefficient of the penalty, and ``Scheduled(PerGroup(rules), s)`` each rule's.

    ``t`` counts the optimizer's steps from the first step after ``attach`` (0 there) and is kept in
    ``optimizer.state_dict()``, so that a resumed run continues where it stopped.

    A checkpoint names a schedule of `halflife.schedules` with all its numbers. It knows a function of your own by its
    name only, and every lambda is ``<lambda>``: it cannot tell one from another.

    Source: early-only decay of Golatkar et al. 2019 and Bjorck et al. 2021 (``until``); rising decay of DINO
    (Caron et al. 2021, ``cosine``).

    Unit: the schedule is dimensionless.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        inner: What to multiply; see the table in `halflife.rules.grammar`.
        schedule: Called with the step, returns a multiplier >= 0; see `halflife.schedules`. Or
            ``tied_to_lr(power)``, which needs the peak.

    Raises:
        UserError: If ``inner`` is not a part or holds a norm, ``schedule`` cannot be called, or it is
            ``tied_to_lr`` around a penalty.

    Examples:
        >>> from halflife.rules import Decoupled
        >>> from halflife.schedules import until
        >>> early = Scheduled(Decoupled(0.1), until(1000))
        >>> early.fraction(StepInfo(lr=0.001, step=999)), early.fraction(StepInfo(lr=0.001, step=1000))
        (0.0001, 0.0)
    """

    inner: Part
    schedule: Schedule | tied_to_lr

    def __post_init__(self) -> None:
        check_inside("Scheduled", self.inner)
        check_schedule(self.schedule)
        for part in self.inner.parts():
            if isinstance(part, Penalty):
                part.times(self.schedule)  # refuses tied_to_lr

    @property
    def kind(self) -> str:
        """That of what it multiplies."""
        return self.inner.kind

    def for_group(self, index: int) -> Part:
        """Return the part of the group, with the schedule directly around its rule, or in its penalty."""
        inner = self.inner.for_group(index)
        if isinstance(inner, Applier):
            return replace(inner, inner=Scheduled(inner.inner, self.schedule))
        if isinstance(inner, Penalty):
            return inner.times(self.schedule)
        return self if inner is self.inner else Scheduled(inner, self.schedule)

    @property
    def needs(self) -> frozenset[str]:
        """The step, or the peak where the schedule is tied to the learning rate; and what the inner rule needs."""
        return self.inner.needs | {"peak_lr" if isinstance(self.schedule, tied_to_lr) else "step"}

    @property
    def explicit_lam(self) -> float | None:
        """The inner rule's."""
        return self.inner.explicit_lam

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return ``inner * schedule(step)``."""
        fraction = self.inner.fraction(info)
        if isinstance(self.schedule, tied_to_lr):
            return fraction * self.schedule.multiplier(info.lr, info.peak_lr)
        return fraction * self.schedule(info.step)


@dataclass(frozen=True, repr=False)
class PerGroup(Rule):
    """Give each parameter group a part of its own; groups are counted through all attached optimizers.

    Groups that do not decay (``weight_decay == 0``) take a place in the count too; their rule is not evaluated. A group
    that is added after ``attach`` has no rule: the next step is refused.

    Source: halflife's own. Unit: that of the rules.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        rules: One rule, applier or penalty per group, in the order of ``optimizer.param_groups``.

    Raises:
        UserError: If there is no list of parts, no part in it, or one of them is not a part, a `PerGroup`, or a
            `Sphere` over the whole net.

    Examples:
        >>> from halflife.rules import Constant, Decoupled
        >>> both = PerGroup([Decoupled(0.1), Constant(1e-4)])
        >>> both.fraction(StepInfo(lr=0.01, group=0)), both.fraction(StepInfo(lr=0.01, group=1))
        (0.001, 0.0001)
    """

    rules: Sequence[Part]

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Sequence):
            raise UserError(f"PerGroup needs a list of rules, one per parameter group, got {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise UserError("PerGroup needs one rule per parameter group, got none")
        for rule in self.rules:
            check_inside("PerGroup", rule)

    @property
    def kind(self) -> str:
        """``"PerGroup"``: a wrapper checks its rules one by one."""
        return "PerGroup"

    @property
    def needs(self) -> frozenset[str]:
        """What any of the parts needs."""
        return frozenset().union(*(rule.needs for rule in self.rules))

    def for_group(self, index: int) -> Part:
        """Return the part of the group.

        Args:
            index: Number of the group.

        Returns:
            Its part.

        Raises:
            UserError: If there are more groups than parts.
        """
        if index >= len(self.rules):
            raise UserError(
                f"PerGroup has {len(self.rules)} rules, but parameter group {index} decays too; give one rule per group"
            )
        return self.rules[index].for_group(index)

    def check_groups(self, num_groups: int) -> None:
        """Refuse another number of groups than there are parts.

        Args:
            num_groups: The number of groups of all attached optimizers.

        Raises:
            UserError: If it is not the number of parts.
        """
        if num_groups != len(self.rules):
            raise UserError(
                f"PerGroup has {len(self.rules)} rules and the optimizers have {num_groups} groups: give one per group"
            )

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return the fraction of this group's rule.

        Args:
            info: The group and its numbers.

        Returns:
            The fraction.

        Raises:
            UserError: If there are more groups than parts, or the part of the group is no rule.
        """
        return self.for_group(info.group).fraction(info)
