"""What was agreed when a rule was attached, and the keys under which groups and checkpoints hold it."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from halflife.optim import refusals
from halflife.optim.actions import LowPrecision
from halflife.optim.low_precision import check_parts
from halflife.rules.base import Part

__all__ = [
    "ATTRIBUTES",
    "ELSEWHERE",
    "INITIAL",
    "KEYS",
    "LAW",
    "MARK",
    "MEMORY",
    "PEAK",
    "PENDING",
    "REGISTER",
    "STEP",
    "Config",
    "Select",
]

# Keys in the parameter groups while a rule is attached. All of them stay, because readers of distributed
# checkpoints load the keys that they find; none changes after the first step, because torch.compile guards
# every number that it sees. So the steps taken are written into the copies that a state_dict() makes only.
INITIAL = "initial_weight_decay"
PEAK = "halflife_peak_lr"  # 0.0 until it is known
LAW = "halflife_law"
STEP = "halflife_step"
MEMORY = "halflife_memory"  # numbers per parameter, where the rule keeps any: () outside of a state dict
PENDING = "halflife_pending"  # the same of decay that has not reached the weights yet
KEYS = (INITIAL, PEAK, LAW, STEP, MEMORY, PENDING)
ELSEWHERE = -1  # the value of STEP outside of a state dict

# Attributes of the optimizer while a rule is attached; copies and pickles drop them together with the hooks.
MARK = "_halflife_handle"
REGISTER = "register_step_pre_hook"  # torch's method, after which the rule's own hook is the last one again
ATTRIBUTES = (MARK, REGISTER)

Select = Literal["all"] | None


class Config:
    """What was agreed when a rule was attached: the rule, its optimizers, and the numbers that the user gave.

    The optimizers are held weakly: each of them holds the handle, and hence this.

    Args:
        optimizers: The optimizers, in the order in which groups are counted.
        rule: The rule, applier or penalty.
        select: ``"all"`` lets every group decay.
        numbers: ``peak_lr``, ``steps_per_epoch`` and ``tokens_per_step``, where given.
        allow_other_law: Whether a checkpoint made under another law may be loaded.
        remedy: What becomes of decay that rounding would take away.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        rule: Part,
        select: Select,
        numbers: Mapping[str, float],
        allow_other_law: bool,
        remedy: LowPrecision = None,
    ) -> None:
        self.rule = rule
        self.select = select
        self.numbers = dict(numbers)
        self.allow_other_law = allow_other_law
        self.low_precision = remedy
        self._references = [weakref.ref(optimizer) for optimizer in optimizers]
        self._num_groups = [len(optimizer.param_groups) for optimizer in optimizers]

    @property
    def optimizers(self) -> tuple[Optimizer, ...]:
        """The optimizers that are still there."""
        return tuple(found for reference in self._references if (found := reference()) is not None)

    def first_group(self, optimizer: Optimizer) -> int:
        """Return the number of groups in the optimizers before this one, with those that are gone."""
        count = 0
        for index, reference in enumerate(self._references):
            each = reference()
            if each is optimizer:
                break
            if each is not None:
                self._num_groups[index] = len(each.param_groups)
            count += self._num_groups[index]
        return count

    def decays(self, group: Mapping[str, Any]) -> bool:
        """Return whether the rule acts on this group."""
        return self.select == "all" or group.get(INITIAL, 0.0) != 0.0

    def rule_for(self, optimizer: Optimizer, index: int) -> Part | None:
        """Return the part that acts on one group of an optimizer, or None if the group does not decay."""
        if not self.decays(optimizer.param_groups[index]):
            return None
        return self.rule.for_group(self.first_group(optimizer) + index)

    def peak_of(self, group: Mapping[str, Any], lr: float) -> float:
        """Return the peak learning rate of a group: what was given, or is known, or the group says, or its lr now."""
        peak: float = self.numbers.get("peak_lr", group.get(PEAK, 0.0))
        if peak > 0.0:
            return peak
        candidates = (float(group.get(key) or 0.0) for key in ("max_lr", "initial_lr"))  # optimi has None
        return next((candidate for candidate in candidates if candidate > 0.0), lr)

    def check_groups(self) -> None:
        """Refuse groups that the rule cannot act on as the user means it."""
        refusals.check_known(
            self.rule, {name: self.numbers.get(name) for name in ("steps_per_epoch", "tokens_per_step")}
        )
        found = [(each, index, group) for each in self.optimizers for index, group in enumerate(each.param_groups)]
        decaying = [(each, index, group) for each, index, group in found if self.decays(group)]
        refusals.check_some_decay([group for *_, group in found], [group for *_, group in decaying])
        # NaN: param_groups was given a rule for the group that reads no weight_decay.
        own = [value for *_, group in decaying if not math.isnan(value := group.get(INITIAL, 0.0)) and value != 0.0]
        refusals.check_undivided(self.rule, own)
        parts = [(self.rule.for_group(self.first_group(each) + index), each, group) for each, index, group in decaying]
        refusals.check_own_values(self.rule, [(part, group) for part, _, group in parts], own)
        if self.low_precision is not None:
            check_parts(self.low_precision, [(part, group) for part, _, group in parts])
        for part, optimizer, group in parts:
            if group.get(INITIAL, 0.0) != 0.0:
                peak = self.peak_of(group, float(group.get("lr") or 0.0))
                refusals.check_unit(part, optimizer, group, group[INITIAL], peak)
