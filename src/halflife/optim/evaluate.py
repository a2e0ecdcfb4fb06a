"""Which fraction each group is to lose at a step: what its rule is told, and whether its answer can be carried out."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim import refusals
from halflife.optim.actions import Action, Work, action_for
from halflife.optim.actions.shrink import Shrink
from halflife.optim.apply import HostCopy
from halflife.optim.config import INITIAL, PEAK, Config
from halflife.optim.floor import FloorWatch
from halflife.optim.low_precision import check_effective, least_effective
from halflife.optim.second_moment import SecondMoment, measures_gradients
from halflife.rules.base import Part, Penalty, Rule, StepInfo
from halflife.rules.stable import Stable

__all__ = ["Evaluator"]


def reading_waits(tensor: Tensor) -> bool:
    """Return whether the host would wait for a device to read a tensor."""
    return tensor.device.type != "cpu"


@dataclass(slots=True)
class _Member:
    """One group's part of the rule, looked up once.

    A step has just streamed all weights through the caches, so that every line of Python between two steps runs
    several times slower than it would by itself.
    """

    part: Part
    action: Action
    evaluate: Callable[[StepInfo], Any]
    lam: float  # NaN where the rule gives none
    own_lam: bool  # whether the group's own weight_decay is it
    reads_lam: bool  # whether it says that it reads that
    needs_peak: bool
    needs_momentum: bool
    known_later: bool


class Evaluator:
    """Evaluates a rule for the groups of one optimizer.

    Args:
        config: What was agreed.
        optimizer: The optimizer; it is not held.

    Attributes:
        actions: What carries the fractions out where the optimizer's own decay does not, one for each kind of part.
        moment: The running mean of squared gradients, where the rule needs it; else None.
        total_norm: The norm of all gradients of the coming step, where the user has handed it over.
    """

    def __init__(self, config: Config, optimizer: Optimizer) -> None:
        self._config = config
        self._members: dict[int, _Member] = {}
        self._pending: list[tuple[HostCopy, Part, StepInfo, float, float]] = []
        self._first = config.first_group(optimizer)
        self._given_peak = config.numbers.get("peak_lr", 0.0)
        self._steps_per_epoch = config.numbers.get("steps_per_epoch", math.nan)
        self._tokens_per_step = config.numbers.get("tokens_per_step", math.nan)
        self.actions: list[tuple[Part, Action]] = []
        self.total_norm: Tensor | float | None = None
        self.moment: SecondMoment | None = None
        groups = range(len(optimizer.param_groups))
        parts = [part for index in groups for part in config.rule.for_group(self._first + index).parts()]
        stable = [part for part in parts if isinstance(part, Stable)]
        if stable and measures_gradients(stable[0], optimizer):
            # The optimizer holds this through its hooks: held in turn, it would outlive the last user of it.
            self.moment = SecondMoment(weakref.proxy(optimizer), stable[0].beta2)
        self._floor = None if self.moment is None else FloorWatch(optimizer)

    def action_of(self, optimizer: Optimizer, index: int) -> Action | None:
        """Return what acts on a group, or None if the group does not decay."""
        return self._member(optimizer, index).action if self._config.decays(optimizer.param_groups[index]) else None

    def evaluate(self, optimizer: Optimizer, step: int) -> list[tuple[Action, Work] | None]:
        """Return what each group asks for, all of it before anything is touched.

        Args:
            optimizer: The optimizer.
            step: Steps taken.

        Returns:
            One entry per group; None where nothing acts. Work has no parameters yet: a closure may give some of them
            their gradients.

        Raises:
            UserError: If a learning rate or an answer is out of range, or `Stable` meets a sparse gradient.
        """
        if self._pending:
            self._check_last()
        first = self._config.first_group(optimizer)
        if first != self._first:  # an optimizer before this one has a new group
            self._first, self._members = first, {}
        second_moment: float | Tensor = math.nan
        if self.moment is not None:
            second_moment = self.moment.update(self.total_norm)
        found: list[tuple[Action, Work] | None] = []
        asked: list[tuple[Part, StepInfo]] = []
        for index, group in enumerate(optimizer.param_groups):
            lr = refusals.check_lr(group.get("lr"), index)
            if not self._config.decays(group):
                found.append(None)
                continue
            member = self._members.get(index) or self._member(optimizer, index)
            action = member.action
            # At lr == 0 the optimizer does not move weights, so no rule may. A penalty is part of the
            # gradient, which optimizers feed to their statistics at lr == 0 too.
            if lr == 0.0 and not action.penalty:
                info = StepInfo(lr=lr, group=first + index)
                found.append((action, Work(group, [], 0.0, info)) if action.acts_at_lr_zero else None)
                continue
            info = StepInfo(
                lr=lr,
                lam=group.get(INITIAL, math.nan) if member.reads_lam else math.nan,
                step=step,
                peak_lr=self._peak(group, lr, index) if member.needs_peak else math.nan,
                steps_per_epoch=self._steps_per_epoch,
                tokens_per_step=self._tokens_per_step,
                group=first + index,
                momentum=float(group["momentum"]) if member.needs_momentum else math.nan,
                dampening=float(group["dampening"]) if member.needs_momentum else math.nan,
                second_moment=second_moment,
            )
            least = least_effective(group) if self._config.low_precision == "error" else 0.0
            found.append((action, Work(group, [], self._value(member, info, least), info)))
            if lr > 0.0:
                asked.append((member.part, info))
        if self._floor is not None:
            self._floor.look(asked)
        return found

    def commit(self) -> None:
        """Keep what the last evaluation took in: the step was made."""
        if self.moment is not None:
            self.moment.commit()
            self.total_norm = None

    def _member(self, optimizer: Optimizer, index: int) -> _Member:
        """Look a group's part of the rule up."""
        if index in self._members:
            return self._members[index]
        part = self._config.rule.for_group(self._first + index)
        asked = next(each for each in part.parts() if isinstance(each, Rule | Penalty))
        own_lam = part.explicit_lam is None and "lam" in part.needs
        stable = [each for each in part.parts() if isinstance(each, Stable)]
        self._members[index] = _Member(
            part=part,
            action=self._action_for(part),
            evaluate=asked.coefficient if isinstance(asked, Penalty) else asked.fraction,
            lam=math.nan if part.explicit_lam is None else part.explicit_lam,
            own_lam=own_lam,
            reads_lam="lam" in part.needs,
            needs_peak="peak_lr" in part.needs,
            needs_momentum=any(not measures_gradients(each, optimizer) for each in stable),
            known_later=bool(part.needs & {"weight_norm", "net_norm"}),
        )
        return self._members[index]

    def _action_for(self, part: Part) -> Action:
        """Return the action for a part: groups whose parts are equal share it, and all plain rules do."""
        made = action_for(part, self._config.low_precision)
        for known, action in self.actions:
            if type(action) is type(made) and (isinstance(made, Shrink) or known == part):
                return action
        self.actions.append((part, made))
        return made

    def check_effective(self, optimizer: Optimizer, step: int) -> None:
        """Refuse fractions that rounding would take away, where they are known without gradients.

        Args:
            optimizer: The optimizer.
            step: Steps taken.

        Raises:
            UserError: If a step that was made now would refuse one.
        """
        if self._config.low_precision == "error" and self.moment is None:
            self.evaluate(optimizer, step)

    def _value(self, member: _Member, info: StepInfo, least: float) -> float | Tensor:
        if member.known_later:
            return 0.0
        value = member.evaluate(info)
        lam = info.lam if member.own_lam else member.lam
        penalty = member.action.penalty
        if type(value) is not float and isinstance(value, Tensor) and reading_waits(value):
            # Reading it would wait for the device, so the check comes a step late. What it will refuse must not
            # touch the weights by then.
            self._pending.append((HostCopy(value), member.part, info, lam, least))
            return torch.where((value >= 0.0) & (value < (math.inf if penalty else 1.0)), value, 0.0)
        number = float(value)
        if not 0.0 <= number < 1.0:
            refusals.check_fraction(member.part, number, lr=info.lr, lam=lam, group=info.group)
        check_effective(number, least, info.group)
        return number

    def _check_last(self) -> None:
        """Check answers that were tensors on an accelerator: reading them at once would have waited for it."""
        pending, self._pending = self._pending, []
        for copy, part, info, lam, least in pending:
            r = copy.read()
            refusals.check_fraction(part, r, lr=info.lr, lam=lam, group=info.group)
            check_effective(r, least, info.group)

    def _peak(self, group: dict[str, Any], lr: float, index: int) -> float:
        """Return the group's peak learning rate; called at lr > 0 only."""
        peak: float = self._given_peak or group[PEAK] or self._config.peak_of(group, lr)
        if lr > peak:
            refusals.check_peak(lr, peak, index)
        return peak
