"""What was agreed when a rule was attached, and the keys under which groups and checkpoints hold it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch.optim import Optimizer

from halflife.optim import refusals
from halflife.rules.base import Part

__all__ = ["ELSEWHERE", "INITIAL", "KEYS", "LAW", "MEMORY", "PEAK", "STEP", "Select", "Terms"]

# Keys in the parameter groups while a rule is attached. All of them stay, because readers of distributed
# checkpoints load the keys that they find; none changes after the first step, because torch.compile guards
# every number that it sees. So the steps taken are written for the time of a state_dict() only.
INITIAL = "initial_weight_decay"
PEAK = "halflife_peak_lr"  # 0.0 until it is known
LAW = "halflife_law"
STEP = "halflife_step"
MEMORY = "halflife_memory"  # numbers per parameter, where the rule keeps any: () outside of a state dict
KEYS = (INITIAL, PEAK, LAW, STEP, MEMORY)
ELSEWHERE = -1  # the value of STEP outside of a state dict

Select = Literal["all"] | None


@dataclass(frozen=True, eq=False)
class Terms:
    """What was agreed when a rule was attached: the rule, its optimizers, and the numbers that the user gave.

    Args:
        optimizers: The optimizers, in the order in which groups are counted.
        rule: The rule, applier or penalty.
        select: ``"all"`` lets every group decay.
        numbers: ``peak_lr``, ``steps_per_epoch`` and ``tokens_per_step``, where given.
        allow_other_law: Whether a checkpoint made under another law may be loaded.
    """

    optimizers: tuple[Optimizer, ...]
    rule: Part
    select: Select
    numbers: dict[str, float]
    allow_other_law: bool

    def first_group(self, optimizer: Optimizer) -> int:
        """Return the number of groups in the optimizers before this one."""
        count = 0
        for each in self.optimizers:
            if each is optimizer:
                break
            count += len(each.param_groups)
        return count

    def decays(self, group: dict[str, Any]) -> bool:
        """Return whether the rule acts on this group."""
        return self.select == "all" or group.get(INITIAL, 0.0) != 0.0

    def check_groups(self) -> None:
        """Refuse groups that the rule cannot act on as the user means it."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        decaying = [group for group in groups if self.decays(group)]
        refusals.check_some_decay(groups, decaying)
        known = {name: self.numbers.get(name) for name in ("steps_per_epoch", "tokens_per_step")}
        own = [group[INITIAL] for group in decaying if group.get(INITIAL, 0.0) != 0.0]
        refusals.check_known(self.rule, decaying, known, own)
        refusals.check_undivided(self.rule, own)
