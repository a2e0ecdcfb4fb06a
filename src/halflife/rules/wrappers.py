"""Rules made of rules."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halflife.errors import UserError
from halflife.rules.base import Part, Rule, StepInfo, check_rule
from halflife.schedules.composed import Schedule, check_schedule, tied_to_lr

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["PerGroup", "Scheduled"]


@dataclass(frozen=True)
class Scheduled(Rule):
    """Multiply another rule's fraction by a schedule of the step: ``r = inner * schedule(t)``.

    ``t`` counts the optimizer's steps from the first step after ``attach`` (0 there) and is kept in
    ``optimizer.state_dict()``, so that a resumed run continues where it stopped.

    A checkpoint names a schedule of `halflife.schedules` with all its numbers. It knows a function of your own by its
    name only, and every lambda is ``<lambda>``: it cannot tell one from another.

    Source: early-only decay of Golatkar et al. 2019 and Bjorck et al. 2021 (``until``); rising decay of DINO
    (Caron et al. 2021, ``cosine``).

    Unit: the schedule is dimensionless.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        inner: The rule to multiply.
        schedule: Called with the step, answers a multiplier >= 0; see `halflife.schedules`. Or
            ``tied_to_lr(power)``, which needs the peak.

    Raises:
        UserError: If ``inner`` is not a rule or ``schedule`` cannot be called.

    Examples:
        >>> from halflife.rules import Decoupled
        >>> from halflife.schedules import until
        >>> early = Scheduled(Decoupled(0.1), until(1000))
        >>> early.fraction(StepInfo(lr=0.001, step=999)), early.fraction(StepInfo(lr=0.001, step=1000))
        (0.0001, 0.0)
    """

    inner: Rule
    schedule: Schedule | tied_to_lr

    def __post_init__(self) -> None:
        check_rule("Scheduled", self.inner)
        check_schedule(self.schedule)

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
        if isinstance(self.schedule, tied_to_lr):
            return self.inner.fraction(info) * self.schedule.multiplier(info.lr, info.peak_lr)
        return self.inner.fraction(info) * self.schedule(info.step)


@dataclass(frozen=True)
class PerGroup(Rule):
    """Give each parameter group a rule of its own; groups are counted through all attached optimizers.

    Groups that do not decay (``weight_decay == 0``) take a place in the count too; their rule is not asked.

    Source: halflife's own. Unit: that of the rules.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        rules: One rule per group, in the order of ``optimizer.param_groups``.

    Raises:
        UserError: If there is no list of rules, no rule in it, or one of them is not a rule.

    Examples:
        >>> from halflife.rules import Constant, Decoupled
        >>> both = PerGroup([Decoupled(0.1), Constant(1e-4)])
        >>> both.fraction(StepInfo(lr=0.01, group=0)), both.fraction(StepInfo(lr=0.01, group=1))
        (0.001, 0.0001)
    """

    rules: Sequence[Rule]

    def __post_init__(self) -> None:
        if not isinstance(self.rules, Sequence):
            raise UserError(f"PerGroup needs a list of rules, one per parameter group, got {self.rules!r}")
        object.__setattr__(self, "rules", tuple(self.rules))
        if not self.rules:
            raise UserError("PerGroup needs one rule per parameter group, got none")
        for rule in self.rules:
            check_rule("PerGroup", rule)

    @property
    def needs(self) -> frozenset[str]:
        """What any of the rules needs."""
        return frozenset().union(*(rule.needs for rule in self.rules))

    def parts_for(self, num_groups: Sequence[int], index: int) -> Iterator[Part]:
        """Yield itself and the parts of the rules of the optimizer's groups."""
        first = sum(num_groups[:index])
        end = None if index == len(num_groups) - 1 else first + num_groups[index]
        yield self
        for rule in self.rules[first:end]:
            yield from rule.parts()

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return the fraction of this group's rule.

        Args:
            info: The group and its numbers.

        Returns:
            The fraction.

        Raises:
            UserError: If there are more groups than rules.
        """
        if info.group >= len(self.rules):
            raise UserError(
                f"PerGroup has {len(self.rules)} rules, but parameter group {info.group} decays too; "
                "give one rule per group"
            )
        return self.rules[info.group].fraction(info)
