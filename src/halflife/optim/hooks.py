"""One optimizer's hooks under a rule: what happens before and after a step, and in a checkpoint.

`halflife.attach` puts them on; `halflife.optim.evaluate` says what each group asks for, `halflife.optim.apply` does it.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.expressions import spell
from halflife.optim import refusals
from halflife.optim.actions import ACCUMULATING, Action
from halflife.optim.actions.accumulate import Accumulate
from halflife.optim.apply import Step, StepCount
from halflife.optim.arrival import LEAST, WINDOW, Arrival
from halflife.optim.config import ELSEWHERE, INITIAL, KEYS, LAW, MEMORY, PEAK, PENDING, REGISTER, STEP, Config
from halflife.optim.evaluate import Evaluator
from halflife.optim.low_precision import check_pending
from halflife.optim.outside import Outside, foreign
from halflife.optim.unheard import Unheard
from halflife.rules.registry import same_law

__all__ = ["Attachment"]


class Attachment:
    """One optimizer under a handle: its hooks, its step count and its part of the checkpoint.

    It holds neither the optimizer, which holds it through the hooks, nor a parameter group between steps:
    ``load_state_dict`` replaces the dicts.
    """

    def __init__(self, config: Config, optimizer: Optimizer) -> None:
        self._config = config
        self._optimizer = weakref.ref(optimizer)
        self._evaluator = Evaluator(config, optimizer)
        self._arrival = Arrival(optimizer)
        self._outside = Outside(optimizer)
        self._told: set[str] = set()  # warnings that are said once
        self._unheard: Unheard | None = None
        self._count = StepCount()
        self._law = spell(config.rule)
        self._remembers = "initial_norm" in config.rule.needs or self._evaluator.moment is not None
        self._accumulates = config.low_precision in ACCUMULATING
        self._before = [{key: group[key] for key in KEYS if key in group} for group in optimizer.param_groups]
        self._is_copy = any(LAW in group and group.get(STEP) == ELSEWHERE for group in optimizer.param_groups)
        self._users: list[Any] | None = None  # the groups' weight_decay at the last step; None: not compared any more
        self._before_load: list[dict[str, Any]] = []
        self._last: list[float | Tensor] = []
        self._next: list[float | Tensor] = []  # what the step that is being made removes
        self._found_inf: Tensor | None = None
        self._removers: list[Callable[[], None]] = []
        self._step: Callable[[], Step | None] = _no_step  # the step that is being made, held by its call alone

    # ---- coming and going

    def start(self, optimizer: Optimizer) -> None:
        """Register the hooks."""
        rule = self._config.rule
        lost = rule.needs & self._kept_in_checkpoints() - {"peak_lr", "reference"}  # these a copy has
        if self._is_copy and lost:
            warnings.warn(
                f"the optimizer is a copy of one under a rule, so that {' and '.join(sorted(lost))} of {self._law} start"
                " anew; to go on, attach first and load the state_dict() of the original",
                stacklevel=4,
            )
        before = optimizer.register_step_pre_hook(_outside_compile(self._before_step, self._look_no_more))
        after = optimizer.register_step_post_hook(_outside_compile(self._after_step))
        saved = optimizer.register_state_dict_post_hook(self._after_state_dict)
        # Before the update the rule comes last, so that it sees the gradients as the update will, and no other hook can
        # refuse a step in which weights have shrunk. After it, first: what other hooks do is not the step's.
        _move(optimizer._optimizer_step_post_hooks, after.id, last=False)
        _move(optimizer._optimizer_state_dict_post_hooks, saved.id, last=False)
        vars(optimizer)[REGISTER] = _registering_before(before.id, weakref.ref(optimizer))
        self._removers = [
            before.remove,
            after.remove,
            saved.remove,
            optimizer.register_load_state_dict_pre_hook(self._before_load_state_dict).remove,
            optimizer.register_load_state_dict_post_hook(self._after_load_state_dict).remove,
        ]
        self._users = _values(optimizer)
        self._unheard = Unheard(optimizer, self._law)

    def weights_are_placed(self) -> None:
        """A probe writes the weights between steps: that is no news, and nothing is to be said of it."""
        self._outside.stop()
        self._told = {"undone", "remains"}

    def shrink_at_once(self) -> None:
        """Let each step shrink weights of any precision: a probe takes a few steps only, and would not see what comes later."""
        self._config.low_precision = None
        for _, action in self._evaluator.actions:
            if isinstance(action, Accumulate):
                action.at_once = True

    def stop(self) -> None:
        """Remove the hooks and everything else that was added to the optimizer."""
        self._settle()
        for remove in self._removers:
            remove()
        self._look_no_more()
        optimizer = self._optimizer()
        if self._unheard is not None:
            self._unheard.look(optimizer)
            self._unheard.called()
        if optimizer is None:
            return
        for _, action in self._evaluator.actions:
            action.remove_state(optimizer)
        vars(optimizer).pop(REGISTER, None)
        self.remove_keys(keep=(INITIAL,))  # other libraries record it too

    def remove_keys(self, *, keep: Sequence[str]) -> None:
        """Remove the keys of the groups; put those to keep back where they were before attach."""
        optimizer = self._optimizer()
        for index, group in enumerate([] if optimizer is None else optimizer.param_groups):
            for key in KEYS:
                group.pop(key, None)
            if index < len(self._before):
                group.update({key: value for key, value in self._before[index].items() if key in keep})

    def sync_groups(self, optimizer: Optimizer) -> list[dict[str, Any]]:
        """Record groups that are not known yet, and take over what a checkpoint left in them.

        Returns:
            The groups that are new.
        """
        groups = optimizer.param_groups
        loaded = [group for group in groups if group.get(STEP, ELSEWHERE) != ELSEWHERE]
        if loaded:
            for index, group in enumerate(groups):
                self._check_law(group, index)
            memory = [self._memory_in(optimizer, group, index) for index, group in enumerate(groups)]
            pending = [self._pending_in(group, index) for index, group in enumerate(groups)]
            step = int(loaded[-1][STEP])
        new = []
        for index, group in enumerate(groups):
            if INITIAL not in group and "weight_decay" in group:
                group[INITIAL] = refusals.check_weight_decay(group["weight_decay"], index)
            if PEAK not in group:
                new.append(group)
                group[PEAK] = 0.0
            group[LAW], group[STEP] = self._law, ELSEWHERE
            if self._remembers:
                group[MEMORY] = ()
            else:
                group.pop(MEMORY, None)  # another law's, which nobody would keep up to date
            if self._accumulates:
                group[PENDING] = ()
            else:
                group.pop(PENDING, None)
        if loaded:
            self._count = StepCount(step)
            self._load_memory(optimizer, memory)
            self._load_pending(optimizer, pending)
        return new

    def _notice_rewriting(self, optimizer: Optimizer) -> None:
        """Tell once that something else rewrites ``weight_decay``: the rule does not read it."""
        if self._users is None:
            return
        values = _values(optimizer)
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

    # ---- a step

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        current = self._step()
        if current is not None and _is_running(current.call):
            return None  # an optimizer class that overrides step and calls super().step() runs its hooks twice
        self._settle()
        if self._unheard is not None:
            self._unheard.called()
            self._unheard = None
        refusals.check_not_capturing(optimizer.param_groups[0]["params"])
        self._outside.begin(optimizer)
        self._check_arrival(optimizer)
        new = self.sync_groups(optimizer)
        if new:
            try:
                self._config.check_groups()
            except BaseException:
                for group in new:  # so that the user can mend them
                    for key in KEYS:
                        group.pop(key, None)
                raise
        self._notice_rewriting(optimizer)
        step = Step(optimizer, id(_calling_frame()))
        step.at_failure = self._abandon_the_look
        try:
            arguments = self._begin(step, optimizer, args, kwargs)
        except BaseException:  # its traceback holds the step
            step.undo()
            raise
        self._step = weakref.ref(step)
        return arguments

    def _begin(
        self, step: Step, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Let the rule act, or have the closure let it; return the arguments, which hold the step."""
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        waits = callable(closure) and self._evaluator.moment is not None
        asked: list[Any] = [] if waits else self._evaluate(optimizer)
        if waits:
            step.switch_off()
        else:
            step.prepare(asked)
        if not callable(closure):
            self._act(step, asked)
            self._arrival.begin(optimizer, asked)
            return _Arguments.holding(step, args), kwargs

        def wrapped() -> Any:
            nonlocal waits, asked
            try:
                self._arrival.pause()
                loss = closure()
                if waits:  # for the gradients that the closure makes
                    waits = False
                    asked = self._evaluate(optimizer)
                    step.prepare(asked, late=True)
                self._act(step, asked)
                self._arrival.resume()
                self._arrival.begin(optimizer, asked)
            except BaseException:
                step.undo()
                raise
            return loss

        if len(args) > 1:
            return _Arguments.holding(step, (args[0], wrapped, *args[2:])), kwargs
        return _Arguments.holding(step, args), {**kwargs, "closure": wrapped}

    def _act(self, step: Step, asked: Sequence[Any]) -> None:
        if step.acts:
            self._outside.acting()
        step.act()
        self._outside.acted(step.optimizer, asked)

    def _abandon_the_look(self) -> None:
        self._arrival.abandon()
        self._outside.abandon()

    def _look_no_more(self) -> None:
        self._arrival.stop()
        self._outside.stop()

    def _evaluate(self, optimizer: Optimizer) -> list[Any]:
        asked = self._evaluator.evaluate(optimizer, self._count.value())
        self._next = [0.0 if each is None or each[0].penalty else each[1].answer for each in asked]
        return asked

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        step = args.step if isinstance(args, _Arguments) else None
        if step is None or step is not self._step():
            return  # of a call inside the step
        self._step = _no_step
        self._arrival.end()
        self._last = self._next
        self._found_inf = getattr(optimizer, "found_inf", None)
        self._count.add(self._found_inf)
        self._evaluator.commit()
        if any(type(action).after is not Action.after for _, action in self._evaluator.actions):
            self._outside.acting()
        step.finish()
        self._outside.end()
        first = self._config.first_group(optimizer)
        for _, action in self._evaluator.actions:
            for group, r in (action.applied() or {}).items():
                self._last[group - first] = r

    def _settle(self) -> None:
        """Take back what a call has left that ended by an exception, while a traceback still holds its frame."""
        step, self._step = self._step(), _no_step
        if step is not None:
            step.undo()

    def fractions(self) -> list[float]:
        """Return what the last step removed, per group of this optimizer."""
        optimizer = self._optimizer()
        count = 0 if optimizer is None else len(optimizer.param_groups)
        if self._unheard is not None and optimizer is not None:
            self._unheard.look(optimizer)
        if self._found_inf is not None and self._found_inf.item() != 0:
            return [0.0] * count
        removed = ([float(r) for r in self._last] + [0.0] * count)[:count]
        self._arrival.read(wait=True)
        self._outside.read(wait=True)
        for undone in (self._arrival.undone, self._outside.undone):
            if undone is not None and undone.group < count:
                removed[undone.group] *= undone.share
        return removed

    def _check_arrival(self, optimizer: Optimizer) -> None:
        """Refuse to go on where what was removed did not stay so; warn of a decay beside the rule."""
        rule = self._config.rule
        self._arrival.read(wait=False)
        undone = self._arrival.undone
        if undone is not None and undone.group < len(self._last):
            r = float(self._last[undone.group])
            refusals.check_undone(rule, optimizer, undone.group, r, undone.share, WINDOW)
        undone = self._outside.undone
        if undone is None:
            self._told.discard("undone")
        elif undone.group < len(self._last) and "undone" not in self._told:
            r = float(self._last[undone.group])
            refusals.check_put_back(rule, optimizer, undone.group, r, undone.share, foreign(optimizer))
            self._told.add("undone")
        remains = self._outside.remains or self._arrival.remains
        if remains is not None and remains.group < len(self._last) and "remains" not in self._told:
            self._told.add("remains")
            r = float(self._last[remains.group])
            if remains.r >= LEAST * r:
                refusals.warn_of_decay(
                    rule, optimizer, remains.group, r, remains.r, foreign(optimizer), inside=remains.inside
                )

    def hand_over_norm(self, norm: Tensor | float) -> bool:
        """Take the norm of all gradients of the coming step; tell whether the rule has a use for it."""
        self._evaluator.total_norm = norm
        return self._evaluator.moment is not None

    # ---- checkpoints

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Write into the copies of the groups: a step may be under way, and the groups themselves are its."""
        self.sync_groups(optimizer)
        if self._unheard is not None:
            self._unheard.look(optimizer)
        step = self._step()
        for index, (group, copy) in enumerate(zip(optimizer.param_groups, state_dict["param_groups"], strict=True)):
            copy.update({key: group[key] for key in KEYS if key in group})
            copy[STEP] = self._count.value()
            if self._remembers:
                copy[MEMORY] = self._memory_of(optimizer, index)
            if self._accumulates:
                action = self._evaluator.action_of(optimizer, index)
                copy[PENDING] = () if action is None else action.pending(group["params"])
            if step is not None:
                copy.update(step.users_values(group))

    def _before_load_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        """Refuse another law here, where raising leaves the optimizer untouched."""
        self._settle()
        self.sync_groups(optimizer)
        config, needs, groups = self._config, self._config.rule.needs, optimizer.param_groups
        for index, saved in enumerate(state_dict["param_groups"]):
            self._check_law(saved, index)
            if saved.get(STEP, ELSEWHERE) != ELSEWHERE:
                self._memory_in(optimizer, saved, index)
                self._pending_in(saved, index)
        if config.allow_other_law:
            keys = (INITIAL, "weight_decay")
            self._before_load = [{key: group[key] for key in keys if key in group} for group in groups]
            return
        given = config.numbers.get("peak_lr")
        for index, (group, saved) in enumerate(zip(groups, state_dict["param_groups"], strict=False)):
            part = config.rule_for(optimizer, index)
            if part is not None and "lam" in part.needs and INITIAL in saved:
                what = f"weight_decay (as lam of parameter group {index})"
                refusals.check_law(repr(group[INITIAL]), repr(saved[INITIAL]), what)
            if "peak_lr" in needs and given is not None and saved.get(PEAK, 0.0) > 0.0:
                refusals.check_law(repr(given), repr(saved[PEAK]), "peak_lr")

    def _after_load_state_dict(self, optimizer: Optimizer) -> None:
        """Take the step count over, and keep what the groups were if another law stays in force."""
        for group, before in zip(optimizer.param_groups, self._before_load, strict=False):
            group.update(before)
        self._before_load = []
        self._users = None if self._users is None else _values(optimizer)
        self._last, self._found_inf, self._count = [], None, StepCount()
        self._outside.loaded()
        self._load_memory(optimizer, [()] * len(optimizer.param_groups))
        self._load_pending(optimizer, [()] * len(optimizer.param_groups))
        if self._unheard is not None:
            self._unheard.renew(optimizer)
        lost = self._config.rule.needs & self._kept_in_checkpoints()
        if lost and any(group.get(STEP, ELSEWHERE) == ELSEWHERE for group in optimizer.param_groups):
            warnings.warn(
                f"the loaded checkpoint was saved without halflife, so that {' and '.join(sorted(lost))} of "
                f"{self._law} start anew",
                stacklevel=4,
            )
        self.sync_groups(optimizer)

    def _check_law(self, saved: dict[str, Any], index: int) -> None:
        loaded = saved.get(STEP, ELSEWHERE) != ELSEWHERE
        if loaded:
            names = {"step": STEP, "peak_lr": PEAK, "law": LAW, "memory": MEMORY}
            refusals.check_kept({name: saved[key] for name, key in names.items() if key in saved}, index)
        if loaded and not self._config.allow_other_law and not same_law(saved[LAW], self._config.rule):
            refusals.check_law(self._law, saved[LAW], "law")

    def _kept_in_checkpoints(self) -> set[str]:
        """Return the names of what rules need that the optimizer itself does not know."""
        moment = self._evaluator.moment
        own_moment = moment is not None and not moment.reads_optimizer
        return {"step", "peak_lr", "initial_norm", "reference"} | ({"second_moment"} if own_moment else set())

    # ---- numbers per parameter: the second moment of all, and what a group's action remembers

    def _memory_of(self, optimizer: Optimizer, index: int) -> tuple[float, ...]:
        """Return what a checkpoint has to keep for a group."""
        parameters, moment = optimizer.param_groups[index]["params"], self._evaluator.moment
        action = self._evaluator.action_of(optimizer, index)
        kept = None if action is None else action.save(parameters)
        return (*(() if moment is None else moment.save(parameters)), *(kept or ()))

    def _memory_in(self, optimizer: Optimizer, saved: dict[str, Any], index: int) -> tuple[float, ...]:
        """Return what a checkpoint has kept for a group; refuse what is damaged."""
        values = saved.get(MEMORY)
        if not self._remembers or values is None or index >= len(optimizer.param_groups):
            return ()
        moment, num_parameters = self._evaluator.moment, len(saved["params"])
        keeps_norms = self._keeps_norms(optimizer, index)
        size = (2 * (moment is not None) + keeps_norms) * num_parameters
        older = num_parameters if moment is None else 2 * num_parameters + 3
        complete, same = len(values) in {size, older}, same_law(saved[LAW], self._config.rule)
        if not complete and not same:
            return ()  # another law's
        refusals.check_memory(values, size, complete, keeps_norms * num_parameters, index)
        if (
            not same and moment is not None and moment.reads_optimizer
        ):  # which is right whatever beta2 the other law had
            values = values[-num_parameters:] if keeps_norms else ()
        return tuple(values)

    def _load_memory(self, optimizer: Optimizer, memory: Sequence[tuple[float, ...]]) -> None:
        """Start again from what a checkpoint has kept for each group, () for nothing."""
        moment, groups = self._evaluator.moment, [group["params"] for group in optimizer.param_groups]
        norms = [
            values[-len(each) :] if self._keeps_norms(optimizer, index) else ()
            for index, (each, values) in enumerate(zip(groups, memory, strict=True))
        ]
        if moment is not None:
            moments = [values[: len(values) - len(last)] for values, last in zip(memory, norms, strict=True)]
            moment.load([(each, values or None) for each, values in zip(groups, moments, strict=True)])
        of_groups = [self._evaluator.action_of(optimizer, index) for index in range(len(groups))]
        for _, action in self._evaluator.actions:
            mine = zip(groups, norms, of_groups, strict=True)
            action.load([(parameters, values or None) for parameters, values, its in mine if its is action])

    def _pending_in(self, saved: dict[str, Any], index: int) -> tuple[float, ...]:
        """Return the decay that a checkpoint has kept for a group because it had not reached the weights."""
        values = saved.get(PENDING) if self._accumulates else None
        if values is None:
            return ()
        check_pending(values, len(saved["params"]), index)
        return tuple(values)

    def _load_pending(self, optimizer: Optimizer, pending: Sequence[tuple[float, ...]]) -> None:
        """Start again from the decay that a checkpoint has kept for each group, () for nothing."""
        groups = list(zip(optimizer.param_groups, pending, strict=True))
        of_groups = [self._evaluator.action_of(optimizer, index) for index in range(len(groups))]
        for _, action in self._evaluator.actions:
            mine = zip(groups, of_groups, strict=True)
            action.load_pending([(group["params"], values) for (group, values), its in mine if its is action])

    def check_effective(self, optimizer: Optimizer) -> None:
        """Refuse decay that rounding would take away, as far as it is known."""
        self._evaluator.check_effective(optimizer, self._count.value())

    def _keeps_norms(self, optimizer: Optimizer, index: int) -> bool:
        action = self._evaluator.action_of(optimizer, index)
        return action is not None and action.save(()) is not None


class _Arguments(tuple[Any, ...]):
    """The arguments of a call of ``step``. The call keeps them to its end, and with them the step."""

    step: Step

    @classmethod
    def holding(cls, step: Step, arguments: tuple[Any, ...]) -> _Arguments:
        """Return arguments that hold a step."""
        made = cls(arguments)
        made.step = step
        return made


def _no_step() -> None:
    """Return what a weak reference to a step returns once there is none."""


def _values(optimizer: Optimizer) -> list[Any]:
    return [group.get("weight_decay") for group in optimizer.param_groups]


def _move(hooks: dict[int, Any], hook_id: int, *, last: bool) -> None:
    """Move a hook to an end of its dict."""
    assert isinstance(hooks, OrderedDict)  # as torch makes it
    hooks.move_to_end(hook_id, last=last)


def _registering_before(hook_id: int, reference: Callable[[], Optimizer | None]) -> Callable[[Any], Any]:
    """Return a ``register_step_pre_hook`` that leaves one hook behind all that it registers."""

    def register_step_pre_hook(hook: Any) -> Any:
        optimizer = reference()
        assert optimizer is not None  # it is called through the optimizer
        handle = type(optimizer).register_step_pre_hook(optimizer, hook)
        _move(optimizer._optimizer_step_pre_hooks, hook_id, last=True)
        return handle

    return register_step_pre_hook


def _outside_compile(hook: Callable[..., Any], first: Callable[[], None] | None = None) -> Callable[..., Any]:
    """Return the hook such that torch.compile does not trace it: each new value would cost a graph.

    In a compiled step ``first`` is called before it.

    The wrapper of ``torch.compiler.disable`` takes as long as a third of a simple rule; outside of a compiled
    step it is not needed.
    """

    def compiled(*arguments: Any) -> Any:
        if first is not None:
            first()
        return hook(*arguments)

    # torch leaves this function without types
    outside = torch.compiler.disable(compiled, reason="halflife decides in plain Python")  # type: ignore[no-untyped-call]

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


def _is_running(call: int) -> bool:
    """Return whether the frame with this id, which still exists, is on the stack: whether its call has not ended."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and id(frame) != call:
        frame = frame.f_back
    return frame is not None
