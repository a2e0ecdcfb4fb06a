"""``attach``: put a rule on optimizers that the user already has; the only place that registers their hooks.

>>> import torch
>>> from halflife.rules import HalfLife
>>> weight = torch.nn.Parameter(torch.ones(2, 2))
>>> optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=1.0)
>>> handle = attach(optimizer, HalfLife(steps=1))
>>> weight.grad = torch.zeros_like(weight)
>>> optimizer.step()
>>> weight[0, 0].item(), handle.fractions()
(0.5, [0.5])
>>> handle.detach()
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife import guards
from halflife.errors import UserError
from halflife.mechanisms import Decay, StepCount
from halflife.rules.base import Penalty, Rule, StepInfo, law_text
from halflife.units import check_positive

__all__ = ["Handle", "attach", "handle_of"]

# Keys in the parameter groups while a rule is attached. All of them stay, because readers of distributed
# checkpoints load the keys that they find; none changes after the first step, because torch.compile guards
# every number that it sees. So the steps taken are written for the time of a state_dict() only.
INITIAL = "initial_weight_decay"
PEAK = "halflife_peak_lr"  # 0.0 until it is known
LAW = "halflife_law"
STEP = "halflife_step"
KEYS = (INITIAL, PEAK, LAW, STEP)
ELSEWHERE = -1  # the value of STEP outside of a state dict

MARK = "_halflife_handle"  # an attribute of the optimizer; copies and pickles drop it together with the hooks

Select = Literal["all"] | None
Hook = TypeVar("Hook", bound=Callable[..., Any])


def attach(
    optimizer: Optimizer | Sequence[Optimizer],
    rule: Rule | Penalty,
    *,
    select: Select = None,
    peak_lr: float | None = None,
    steps_per_epoch: float | None = None,
    tokens_per_step: float | None = None,
    allow_other_law: bool = False,
) -> Handle:
    """Let ``rule`` decide the decay of an optimizer from its next step on, in place of the optimizer's own.

    Groups whose ``weight_decay`` is 0 stay without decay. Which ones these are is recorded at once, as
    ``initial_weight_decay`` in each group, and does not change when something rewrites ``weight_decay``
    later. A rule without ``lam`` reads each group's own value as its lam, in the unit of the rule. Between
    steps ``weight_decay`` holds what the user set, so that copies, checkpoints and logs show that.

    The decay acts between gradient and update, on parameters with a gradient, and not at ``lr == 0``. The
    number of steps and the peak are kept in ``optimizer.state_dict()``; resuming is exact, and attaching
    before or after ``load_state_dict`` is the same. A copy (``copy.deepcopy``, ``pickle``) carries no rule:
    attach again. A learning rate that is a tensor on an accelerator is read once per step, which waits for
    the device.

    Args:
        optimizer: An optimizer, or several that train one model together (Muon and AdamW).
        rule: A rule of :mod:`halflife.rules`, or the penalty ``L2``.
        select: ``"all"`` lets every group decay, also those with 0 and optimizers that have no
            ``weight_decay``.
        peak_lr: The largest learning rate of the schedule, for rules that divide by it. Default: each group's
            ``max_lr``, else its ``initial_lr`` (torch's schedulers set it), else its lr at the first step
            above 0. One number serves all groups; where their peaks differ, set ``max_lr`` in the groups.
        steps_per_epoch: Optimizer steps in one pass over the data, for half-lives in epochs.
        tokens_per_step: Tokens that one optimizer step consumes, for half-lives in tokens.
        allow_other_law: Whether a checkpoint made under another law may be loaded. The attached law then
            holds; the checkpoint gives the number of steps, and the peak where ``peak_lr`` does not.

    Returns:
        The handle that tells what was applied and takes the rule off again.

    Raises:
        UserError: If nothing would decay, the rule needs a number that is missing, one lam would replace
            different values of the groups, a rule is attached already, or the loaded checkpoint has another
            law. A step raises it, with the weights untouched, where the rule asks for r outside [0, 1), lr is
            negative or NaN, or lr is above the peak.
    """
    optimizers = [optimizer] if not isinstance(optimizer, Sequence) else list(optimizer)
    guards.check_optimizers(optimizers, [each for each in optimizers if handle_of(each) is not None])
    guards.check_rule(rule, optimizers)
    if select not in {None, "all"}:
        raise UserError(f'select must be None (groups with weight_decay != 0) or "all", got {select!r}')
    numbers = {"peak_lr": peak_lr, "steps_per_epoch": steps_per_epoch, "tokens_per_step": tokens_per_step}
    handle = Handle(
        optimizers,
        rule,
        select=select,
        numbers={name: check_positive(name, value) for name, value in numbers.items() if value is not None},
        allow_other_law=allow_other_law,
    )
    handle._start()
    return handle


def handle_of(optimizer: Optimizer) -> Handle | None:
    """Find the handle of the rule that is attached to an optimizer.

    Args:
        optimizer: Any optimizer.

    Returns:
        Its handle, or None if no rule is attached.
    """
    handle: Handle | None = getattr(optimizer, MARK, None)
    return handle


class Handle:
    """A rule on its optimizers. Made by :func:`attach`.

    Attributes:
        rule: The rule or penalty that is attached.
        optimizers: The optimizers that it is attached to, in the order in which groups are counted.
    """

    def __init__(
        self,
        optimizers: Sequence[Optimizer],
        rule: Rule | Penalty,
        *,
        select: Select,
        numbers: dict[str, float],
        allow_other_law: bool,
    ) -> None:
        self.rule = rule
        self.optimizers = tuple(optimizers)
        self._select = select
        self._numbers = numbers
        self._allow_other_law = allow_other_law
        self._attachments = [_Attachment(self, optimizer) for optimizer in optimizers]

    def fractions(self) -> list[float]:
        """Tell which fraction the last step removed, per group, counted through all optimizers.

        Returns:
            One number per group: 0 for groups that do not decay, before the first step, after a step that was
            skipped for an overflow, and for an L2 penalty, which removes no fraction. Empty after detach.
        """
        return [r for attachment in self._attachments for r in attachment.fractions()]

    def detach(self) -> None:
        """Take the rule off; the optimizers are as they were, and their own decay acts again."""
        for attachment in self._attachments:
            attachment.stop()
        self._attachments = []

    def _start(self) -> None:
        """Check everything, then register the hooks.

        Raises:
            UserError: If anything is refused; the optimizers are then as they were.
        """
        try:
            for attachment in self._attachments:
                attachment.adopt()
            self._check_groups()
        except UserError:
            for attachment in self._attachments:
                attachment.forget(but=KEYS)  # a checkpoint may have brought some, for the next try
            raise
        for attachment in self._attachments:
            attachment.start()

    def _first_group(self, optimizer: Optimizer) -> int:
        """Return the number of groups in the optimizers before this one."""
        before = self.optimizers[: [id(each) for each in self.optimizers].index(id(optimizer))]
        return sum(len(each.param_groups) for each in before)

    def _decays(self, group: dict[str, Any]) -> bool:
        return self._select == "all" or group.get(INITIAL, 0.0) != 0.0

    def _check_groups(self) -> None:
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        decaying = [group for group in groups if self._decays(group)]
        guards.check_some_decay(groups, decaying)
        known = {name: self._numbers.get(name) for name in ("steps_per_epoch", "tokens_per_step")}
        guards.check_known(self.rule, decaying, known)
        guards.check_undivided(self.rule, [group[INITIAL] for group in decaying if group.get(INITIAL, 0.0) != 0.0])


class _Attachment:
    """One optimizer under a handle: its hooks, its step count and its part of the checkpoint.

    No parameter group is kept between steps: ``load_state_dict`` replaces the dicts.
    """

    def __init__(self, handle: Handle, optimizer: Optimizer) -> None:
        self._handle = handle
        self._optimizer = optimizer
        self._decay = Decay(optimizer, penalty=isinstance(handle.rule, Penalty))
        self._count = StepCount()
        self._law = law_text(handle.rule.law())
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
        setattr(optimizer, MARK, self._handle)

    def stop(self) -> None:
        """Remove the hooks and everything else that was added to the optimizer."""
        self._decay.end()
        for remove in self._removers:
            remove()
        self.forget(but=(INITIAL,))  # other libraries record it too
        delattr(self._optimizer, MARK)

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
        if not self._handle._allow_other_law and saved.get(STEP, ELSEWHERE) != ELSEWHERE:
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
            self._handle._check_groups()
            self._unchecked = False
        answers = self._answers()
        self._last = [0.0 if isinstance(self._handle.rule, Penalty) else answer for answer, _ in answers]
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
        handle, rule, step = self._handle, self._handle.rule, self._count.value()
        answers = []
        for index, group in enumerate(self._optimizer.param_groups, handle._first_group(self._optimizer)):
            lr = guards.check_lr(group.get("lr"), index)
            # At lr == 0 the optimizer does not move weights, so no rule may. A penalty is part of the
            # gradient, which optimizers feed to their statistics at lr == 0 too.
            if not handle._decays(group) or (lr == 0.0 and isinstance(rule, Rule)):
                answers.append((0.0, lr))
                continue
            lam = group.get(INITIAL, math.nan)
            info = StepInfo(
                lr=lr,
                lam=lam,
                step=step,
                peak_lr=self._peak(group, lr, index) if "peak_lr" in rule.needs else math.nan,
                steps_per_epoch=handle._numbers.get("steps_per_epoch", math.nan),
                tokens_per_step=handle._numbers.get("tokens_per_step", math.nan),
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
        given = self._handle._numbers.get("peak_lr")
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
        handle, needs, groups = self._handle, self._handle.rule.needs, optimizer.param_groups
        if handle._allow_other_law:
            keys = (INITIAL, "weight_decay")
            self._before_load = [{key: group[key] for key in keys if key in group} for group in groups]
            return
        given = handle._numbers.get("peak_lr")
        for index, (group, saved) in enumerate(zip(groups, state_dict["param_groups"], strict=False)):
            self._check_law(saved)
            if "lam" in needs and INITIAL in saved and handle._decays(group):
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
        lost = self._handle.rule.needs & {"step", "peak_lr"}
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
