"""One optimizer's hooks under a rule: what happens before and after a step, and in a checkpoint.

`halflife.attach` puts them on; `halflife.mechanisms` carries the answers out.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife import guards
from halflife.mechanisms import Decay, StepCount
from halflife.rules.base import Penalty, Rule, StepInfo, law_text

__all__ = ["KEYS", "Attachment", "Select", "Terms"]

# Keys in the parameter groups while a rule is attached. All of them stay, because readers of distributed
# checkpoints load the keys that they find; none changes after the first step, because torch.compile guards
# every number that it sees. So the steps taken are written for the time of a state_dict() only.
INITIAL = "initial_weight_decay"
PEAK = "halflife_peak_lr"  # 0.0 until it is known
LAW = "halflife_law"
STEP = "halflife_step"
KEYS = (INITIAL, PEAK, LAW, STEP)
ELSEWHERE = -1  # the value of STEP outside of a state dict

Select = Literal["all"] | None
Hook = TypeVar("Hook", bound=Callable[..., Any])


@dataclass(frozen=True, eq=False)
class Terms:
    """What was agreed when a rule was attached: the rule, its optimizers, and the numbers that the user gave.

    Args:
        optimizers: The optimizers, in the order in which groups are counted.
        rule: The rule or penalty.
        select: ``"all"`` lets every group decay.
        numbers: ``peak_lr``, ``steps_per_epoch`` and ``tokens_per_step``, where given.
        allow_other_law: Whether a checkpoint made under another law may be loaded.
    """

    optimizers: tuple[Optimizer, ...]
    rule: Rule | Penalty
    select: Select
    numbers: dict[str, float]
    allow_other_law: bool

    def first_group(self, optimizer: Optimizer) -> int:
        """Return the number of groups in the optimizers before this one."""
        before = self.optimizers[: [id(each) for each in self.optimizers].index(id(optimizer))]
        return sum(len(each.param_groups) for each in before)

    def decays(self, group: dict[str, Any]) -> bool:
        """Return whether the rule acts on this group."""
        return self.select == "all" or group.get(INITIAL, 0.0) != 0.0

    def check_groups(self) -> None:
        """Refuse groups that the rule cannot act on as the user means it."""
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        decaying = [group for group in groups if self.decays(group)]
        guards.check_some_decay(groups, decaying)
        known = {name: self.numbers.get(name) for name in ("steps_per_epoch", "tokens_per_step")}
        guards.check_known(self.rule, decaying, known)
        guards.check_undivided(self.rule, [group[INITIAL] for group in decaying if group.get(INITIAL, 0.0) != 0.0])


class Attachment:
    """One optimizer under a handle: its hooks, its step count and its part of the checkpoint.

    No parameter group is kept between steps: ``load_state_dict`` replaces the dicts.
    """

    def __init__(self, terms: Terms, optimizer: Optimizer) -> None:
        self._terms = terms
        self._optimizer = optimizer
        self._decay = Decay(optimizer, penalty=isinstance(terms.rule, Penalty))
        self._count = StepCount()
        self._law = law_text(terms.rule.law())
        self._before = [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
        self._unchecked = True  # whether groups have come that the guards have not seen
        self._before_load: list[dict[str, Any]] = []
        self._last: list[float] = []
        self._found_inf: Tensor | None = None
        self._removers: list[Callable[[], None]] = []
        self._frame: FrameType | None = None  # the call of step that we are in, or that ended by an exception
        self._depth = 0  # calls of step inside that call

    # ---- coming and going

    def start(self) -> None:
        """Register the hooks."""
        optimizer = self._optimizer
        hooks = [
            optimizer.register_step_pre_hook(_outside_compile(self._before_step)),
            optimizer.register_step_post_hook(_outside_compile(self._after_step)),
            optimizer.register_state_dict_pre_hook(self._before_state_dict),
            optimizer.register_state_dict_post_hook(self._after_state_dict),
            optimizer.register_load_state_dict_pre_hook(self._before_load_state_dict),
            optimizer.register_load_state_dict_post_hook(self._after_load_state_dict),
        ]
        self._removers = [hook.remove for hook in hooks]
        self._unchecked = False

    def stop(self) -> None:
        """Remove the hooks and everything else that was added to the optimizer."""
        self._decay.end()
        for remove in self._removers:
            remove()
        self.forget(but=(INITIAL,))  # other libraries record it too

    def forget(self, *, but: Sequence[str]) -> None:
        """Remove the keys of the groups; put those in ``but`` back where they were before attach."""
        for index, group in enumerate(self._optimizer.param_groups):
            for key in KEYS:
                group.pop(key, None)
            if index < len(self._before):
                group.update({key: value for key, value in self._before[index].items() if key in but})

    def adopt(self) -> None:
        """Record groups that are not known yet, and take over what a checkpoint left in them."""
        groups = self._optimizer.param_groups
        loaded = [group for group in groups if group.get(STEP, ELSEWHERE) != ELSEWHERE]
        for group in loaded:
            self._check_law(group)
        for group in loaded:
            self._count = StepCount(int(group[STEP]))
        for group in groups:
            if PEAK not in group:
                self._unchecked = True
                group[PEAK] = 0.0
            if INITIAL not in group and "weight_decay" in group:
                group[INITIAL] = float(group["weight_decay"])
            group[LAW], group[STEP] = self._law, ELSEWHERE

    def _check_law(self, saved: dict[str, Any]) -> None:
        if not self._terms.allow_other_law and saved.get(STEP, ELSEWHERE) != ELSEWHERE:
            guards.check_law(self._law, saved[LAW], "law")

    # ---- a step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._frame is not None and _is_running(self._frame):
            # An optimizer class that overrides step and calls super().step() runs its hooks twice.
            self._depth += 1
            return None
        self._frame, self._depth = _calling_frame(), 0
        guards.check_not_capturing(optimizer.param_groups[0]["params"])
        self._decay.end()  # an exception in the last step may have left our values
        self.adopt()
        if self._unchecked:
            self._terms.check_groups()
            self._unchecked = False
        answers = self._answers()
        self._last = [0.0 if isinstance(self._terms.rule, Penalty) else answer for answer, _ in answers]
        return self._decay.begin(answers, args, kwargs)

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth > 0:
            self._depth -= 1
            return
        self._frame = None
        self._decay.end()
        self._found_inf = getattr(optimizer, "found_inf", None)
        self._count.add(self._found_inf)

    def _answers(self) -> list[tuple[float, float]]:
        """Return the rule's answer and the lr of each group, all of them before anything is touched."""
        terms, rule, step = self._terms, self._terms.rule, self._count.value()
        answers = []
        for index, group in enumerate(self._optimizer.param_groups, terms.first_group(self._optimizer)):
            lr = guards.check_lr(group.get("lr"), index)
            # At lr == 0 the optimizer does not move weights, so no rule may. A penalty is part of the
            # gradient, which optimizers feed to their statistics at lr == 0 too.
            if not terms.decays(group) or (lr == 0.0 and isinstance(rule, Rule)):
                answers.append((0.0, lr))
                continue
            lam = group.get(INITIAL, math.nan)
            info = StepInfo(
                lr=lr,
                lam=lam,
                step=step,
                peak_lr=self._peak(group, lr, index) if "peak_lr" in rule.needs else math.nan,
                steps_per_epoch=terms.numbers.get("steps_per_epoch", math.nan),
                tokens_per_step=terms.numbers.get("tokens_per_step", math.nan),
                group=index,
            )
            value = float(rule.fraction(info) if isinstance(rule, Rule) else rule.coefficient(info))
            own = lam if "lam" in rule.needs else math.nan
            held = own if rule.explicit_lam is None else rule.explicit_lam
            guards.check_fraction(rule, value, lr=lr, lam=held, group=index)
            answers.append((value, lr))
        return answers

    def _peak(self, group: dict[str, Any], lr: float, index: int) -> float:
        """Return the group's peak learning rate and keep it in the group; called at lr > 0 only."""
        given = self._terms.numbers.get("peak_lr")
        if given is not None:
            group[PEAK] = given
        elif not group[PEAK] > 0.0:
            candidates = (float(group.get(key, 0.0)) for key in ("max_lr", "initial_lr"))
            group[PEAK] = next((candidate for candidate in candidates if candidate > 0.0), lr)
        guards.check_peak(lr, group[PEAK], index)
        return float(group[PEAK])

    def fractions(self) -> list[float]:
        """Return what the last step removed, per group of this optimizer."""
        count = len(self._optimizer.param_groups)
        if self._found_inf is not None and self._found_inf.item() != 0:
            return [0.0] * count
        return (self._last + [0.0] * count)[:count]

    # ---- checkpoints

    def _before_state_dict(self, optimizer: Optimizer) -> None:
        self._decay.end()
        self.adopt()
        for group in optimizer.param_groups:
            group[STEP] = self._count.value()

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        for group in optimizer.param_groups:  # the state dict has copies of the groups, which keep the count
            group[STEP] = ELSEWHERE

    def _before_load_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Refuse another law here, where raising leaves the optimizer untouched."""
        self._decay.end()
        self.adopt()
        terms, needs, groups = self._terms, self._terms.rule.needs, optimizer.param_groups
        if terms.allow_other_law:
            keys = (INITIAL, "weight_decay")
            self._before_load = [{key: group[key] for key in keys if key in group} for group in groups]
            return
        given = terms.numbers.get("peak_lr")
        for index, (group, saved) in enumerate(zip(groups, state_dict["param_groups"], strict=False)):
            self._check_law(saved)
            if "lam" in needs and INITIAL in saved and terms.decays(group):
                what = f"weight_decay (as lam of parameter group {index})"
                guards.check_law(repr(group[INITIAL]), repr(saved[INITIAL]), what)
            if "peak_lr" in needs and given is not None and saved.get(PEAK, 0.0) > 0.0:
                guards.check_law(repr(given), repr(saved[PEAK]), "peak_lr")

    def _after_load_state_dict(self, optimizer: Optimizer) -> None:
        """Take the step count over, and keep what the groups were if another law stays in force."""
        for group, before in zip(optimizer.param_groups, self._before_load, strict=False):
            group.update(before)
        self._before_load = []
        self._last, self._found_inf, self._count = [], None, StepCount()
        lost = self._terms.rule.needs & {"step", "peak_lr"}
        if lost and any(group.get(STEP, ELSEWHERE) == ELSEWHERE for group in optimizer.param_groups):
            warnings.warn(
                f"the loaded checkpoint was saved without halflife, so that {' and '.join(sorted(lost))} of "
                f"{self._law} start anew",
                stacklevel=4,
            )
        self.adopt()


def _outside_compile(hook: Hook) -> Hook:
    """Return the hook such that torch.compile does not trace it: each new value would cost a graph."""
    # torch leaves this function without types
    outside: Hook = torch.compiler.disable(hook, reason="halflife decides in plain Python")  # type: ignore[no-untyped-call]
    return outside


def _calling_frame() -> FrameType | None:
    """Return the frame that called the hook, beyond torch.compile's wrapper around it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith((__name__, "torch._dynamo")):
        frame = frame.f_back
    return frame


def _is_running(call: FrameType) -> bool:
    """Return whether a call has not ended: whether its frame is on the stack."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame is not call:
        frame = frame.f_back
    return frame is call
