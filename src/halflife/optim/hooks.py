"""One optimizer's hooks under a rule: what happens before and after a step, and in a checkpoint.

`halflife.attach` puts them on; `halflife.optim.apply` carries the answers out.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.expressions import spell
from halflife.optim import refusals
from halflife.optim.actions import action_for
from halflife.optim.apply import Answer, Decay, StepCount
from halflife.optim.config import ELSEWHERE, INITIAL, KEYS, LAW, MEMORY, PEAK, STEP, Terms
from halflife.optim.evaluate import Asker
from halflife.rules.base import Penalty
from halflife.rules.registry import same_law

__all__ = ["Attachment"]


class Attachment:
    """One optimizer under a handle: its hooks, its step count and its part of the checkpoint.

    No parameter group is kept between steps: ``load_state_dict`` replaces the dicts.
    """

    def __init__(self, terms: Terms, optimizer: Optimizer) -> None:
        self._terms = terms
        self._optimizer = optimizer
        self._action = action_for(terms.rule)
        self._decay = Decay(optimizer, self._action)
        self._asker = Asker(terms, optimizer)
        self._keeper = self._asker.moment or self._action  # of numbers per parameter that checkpoints hold
        self._count = StepCount()
        self._law = spell(terms.rule)
        self._remembers = "initial_norm" in terms.rule.needs or self._asker.moment is not None
        self._before = [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
        self._is_copy = any(LAW in group and group.get(STEP) == ELSEWHERE for group in optimizer.param_groups)
        self._unchecked = True  # whether groups have come that the guards have not seen
        self._users: list[Any] | None = None  # the groups' weight_decay at the last step; None: not compared any more
        self._before_load: list[dict[str, Any]] = []
        self._last: list[float | Tensor] = []
        self._found_inf: Tensor | None = None
        self._removers: list[Callable[[], None]] = []
        self._frame: FrameType | None = None  # the call of step that we are in, or that ended by an exception
        self._depth = 0  # calls of step inside that call

    # ---- coming and going

    def start(self) -> None:
        """Register the hooks."""
        optimizer = self._optimizer
        lost = self._terms.rule.needs & self._kept_in_checkpoints() - {"peak_lr", "reference"}  # these a copy has
        if self._is_copy and lost:
            warnings.warn(
                f"the optimizer is a copy of one under a rule, so that {' and '.join(sorted(lost))} of {self._law} start"
                " anew; to go on, attach first and load the state_dict() of the original",
                stacklevel=4,
            )
        hooks = [
            optimizer.register_step_pre_hook(_outside_compile(self._before_step)),
            optimizer.register_step_post_hook(_outside_compile(self._after_step)),
            optimizer.register_state_dict_pre_hook(self._before_state_dict),
            optimizer.register_state_dict_post_hook(self._after_state_dict),
            optimizer.register_load_state_dict_pre_hook(self._before_load_state_dict),
            optimizer.register_load_state_dict_post_hook(self._after_load_state_dict),
        ]
        self._removers = [hook.remove for hook in hooks]
        self._users = self._values()
        self._unchecked = False

    def stop(self) -> None:
        """Remove the hooks and everything else that was added to the optimizer."""
        self._decay.end()
        self._action.forget(self._optimizer)
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
        if loaded:
            self._count = StepCount(int(loaded[-1][STEP]))
            self._keeper.load([(group["params"], group.get(MEMORY) or None) for group in groups])
        for group in groups:
            if PEAK not in group:
                self._unchecked = True
                group[PEAK] = 0.0
            if INITIAL not in group and "weight_decay" in group:
                group[INITIAL] = float(group["weight_decay"])
            group[LAW], group[STEP] = self._law, ELSEWHERE
            if self._remembers:
                group[MEMORY] = ()
            else:
                group.pop(MEMORY, None)  # another law's, which nobody would keep up to date

    def _values(self) -> list[Any]:
        return [group.get("weight_decay") for group in self._optimizer.param_groups]

    def _notice_rewriting(self) -> None:
        """Tell once that something else rewrites ``weight_decay``: the rule does not read it."""
        if self._users is None:
            return
        values = self._values()
        for index, (before, value) in enumerate(zip(self._users, values, strict=False)):
            if value is not before and value != before:
                warnings.warn(
                    f"weight_decay of parameter group {index} was changed from {before} to {value} after attach, and"
                    f" {self._law} does not read it: it goes by what the group had at attach; put a schedule into the"
                    " rule, Scheduled(rule, schedule), or detach() before you change it (said once)",
                    stacklevel=5,
                )
                self._users = None
                return
        self._users = values

    def _check_law(self, saved: dict[str, Any]) -> None:
        loaded = saved.get(STEP, ELSEWHERE) != ELSEWHERE
        if loaded and not self._terms.allow_other_law and not same_law(saved[LAW], self._terms.rule):
            refusals.check_law(self._law, saved[LAW], "law")

    # ---- a step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._frame is not None and _is_running(self._frame):
            # An optimizer class that overrides step and calls super().step() runs its hooks twice.
            self._depth += 1
            return None
        self._frame = None
        refusals.check_not_capturing(optimizer.param_groups[0]["params"])
        self._decay.end()  # an exception in the last step may have left our values
        self.adopt()
        if self._unchecked:
            self._terms.check_groups()
            self._unchecked = False
        self._notice_rewriting()
        begun = self._decay.begin(self._ask, self._fail, args, kwargs, wait=self._asker.moment is not None)
        self._frame, self._depth = _calling_frame(), 0
        return begun

    def _fail(self) -> None:
        """Let go of the call of step: its frame keeps the locals of all its callers alive, such as the loss."""
        self._frame = None

    def _ask(self) -> list[Answer]:
        answers = self._asker.ask(self._count.value())
        self._last = [0.0 if isinstance(self._terms.rule, Penalty) else answer.value for answer in answers]
        return answers

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth > 0:
            self._depth -= 1
            return
        self._frame = None
        self._decay.finish()
        if self._asker.moment is not None:
            self._asker.moment.commit()
        first = self._terms.first_group(optimizer)
        for group, r in (self._action.applied() or {}).items():
            self._last[group - first] = r
        self._found_inf = getattr(optimizer, "found_inf", None)
        self._count.add(self._found_inf)

    def fractions(self) -> list[float]:
        """Return what the last step removed, per group of this optimizer."""
        count = len(self._optimizer.param_groups)
        if self._found_inf is not None and self._found_inf.item() != 0:
            return [0.0] * count
        return ([float(r) for r in self._last] + [0.0] * count)[:count]

    def hand_over_norm(self, norm: Tensor | float) -> bool:
        """Take the norm of all gradients of the coming step; tell whether the rule has a use for it."""
        self._asker.total_norm = norm
        return self._asker.moment is not None

    # ---- checkpoints

    def _before_state_dict(self, optimizer: Optimizer) -> None:
        self._decay.end()
        self.adopt()
        for group in optimizer.param_groups:
            group[STEP] = self._count.value()
            if self._remembers:
                group[MEMORY] = self._keeper.save(group["params"])

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        for group in optimizer.param_groups:  # the state dict has copies of the groups, which keep the count
            group[STEP] = ELSEWHERE
            if self._remembers:
                group[MEMORY] = ()

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
                refusals.check_law(repr(group[INITIAL]), repr(saved[INITIAL]), what)
            if "peak_lr" in needs and given is not None and saved.get(PEAK, 0.0) > 0.0:
                refusals.check_law(repr(given), repr(saved[PEAK]), "peak_lr")

    def _after_load_state_dict(self, optimizer: Optimizer) -> None:
        """Take the step count over, and keep what the groups were if another law stays in force."""
        for group, before in zip(optimizer.param_groups, self._before_load, strict=False):
            group.update(before)
        self._before_load = []
        self._users = None if self._users is None else self._values()
        self._last, self._found_inf, self._count = [], None, StepCount()
        self._keeper.load([])
        self._action.load([])
        lost = self._terms.rule.needs & self._kept_in_checkpoints()
        if lost and any(group.get(STEP, ELSEWHERE) == ELSEWHERE for group in optimizer.param_groups):
            warnings.warn(
                f"the loaded checkpoint was saved without halflife, so that {' and '.join(sorted(lost))} of "
                f"{self._law} start anew",
                stacklevel=4,
            )
        self.adopt()

    def _kept_in_checkpoints(self) -> set[str]:
        """Return the names of what rules need that the optimizer itself does not know."""
        own_moment = self._asker.moment is not None and not self._asker.moment.reads_optimizer
        return {"step", "peak_lr", "initial_norm", "reference"} | ({"second_moment"} if own_moment else set())


def _outside_compile(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Return the hook such that torch.compile does not trace it: each new value would cost a graph.

    The wrapper of ``torch.compiler.disable`` takes as long as a third of a simple rule; outside of a compiled
    step it is not needed.
    """
    # torch leaves this function without types
    outside = torch.compiler.disable(hook, reason="halflife decides in plain Python")  # type: ignore[no-untyped-call]

    def either(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            return outside(optimizer, args, kwargs)
        return hook(optimizer, args, kwargs)

    return either


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
