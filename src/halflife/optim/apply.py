"""The two ways to shrink weights; ``attach`` decides when, and by how much.

native: the optimizer's own decay, linear in ``group["weight_decay"]``, is given the value that makes it
    remove r.
own pass: the optimizer's own decay is switched off, and an action of `halflife.optim.actions` acts instead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions import Action, Work
from halflife.optim.actions.shrink import Shrink
from halflife.optim.known import facts_of
from halflife.optim.norms import settle_gradients
from halflife.rules.base import StepInfo

__all__ = ["Answer", "Decay", "HostCopy", "StepCount", "applies_natively", "native_value"]

# Above this a fused kernel's float32 copy of weight_decay could overflow; the own pass then takes the step.
LARGEST_NATIVE_VALUE = 1e30

Group = Mapping[str, Any]


def applies_natively(optimizer: Optimizer, group: Group) -> bool:
    """Tell whether the optimizer's own decay of this group is ``w <- (1 - lr * weight_decay) * w``.

    Only exact types count: a subclass may do anything with the number. Such an optimizer takes the own pass,
    which is right wherever ``weight_decay = 0`` means that the optimizer does not decay.

    Args:
        optimizer: The optimizer.
        group: One of its groups.

    Returns:
        True if writing ``r / lr`` to ``group["weight_decay"]`` makes the optimizer remove ``r``.
    """
    if group.get("capturable"):  # a captured or cudagraphs-compiled step would freeze the Python float
        return False
    facts = facts_of(type(optimizer))
    if facts.sparse and any(p.grad is not None and p.grad.is_sparse for p in group["params"]):
        return False
    return facts.native(group)


def native_value(r: float, lr: float) -> float:
    """Return the ``weight_decay`` for which the optimizer's own decay ``lr * weight_decay`` is ``r``.

    Where ``r`` was computed as ``lr * lam``, the product ``lr * (r / lr)`` gives it back to the last bit,
    although the quotient may miss ``lam`` by one: that is why the decay equals torch's own bit for bit. For
    any other ``r`` the product is right to one unit in the last place.

    Args:
        r: The fraction to remove.
        lr: The learning rate, > 0 unless ``r`` is 0.

    Returns:
        The value to write; infinity if the quotient overflows.
    """
    return r / lr if r > 0.0 else 0.0


@dataclass(slots=True)
class Answer:
    """What a rule answered for one group at one step.

    Args:
        value: The fraction, or the coefficient of a penalty.
        info: What the rule was told.
        decays: Whether the group decays.
    """

    value: float | Tensor
    info: StepInfo
    decays: bool


class Decay:
    """Carries the answers of a rule out on one optimizer, each group in the way that is right for it.

    Args:
        optimizer: The optimizer.
        action: What acts on parameters that the optimizer's own decay does not serve.
    """

    def __init__(self, optimizer: Optimizer, action: Action) -> None:
        self._optimizer = optimizer
        self._action = action
        self._written: list[tuple[dict[str, Any], Any, float]] = []  # (where, the user's value, ours)
        self._work: list[Work] = []

    def begin(
        self,
        ask: Callable[[], list[Answer]],
        failed: Callable[[], None],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        wait: bool,
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Set the optimizer's own decay for this step, and act on what it does not serve.

        Args:
            ask: Returns the answer for each group.
            failed: Called when the closure, or what follows it, ends by an exception.
            args: Positional arguments of ``step``, the optimizer first.
            kwargs: Named arguments of ``step``.
            wait: Whether the answers depend on gradients, which a closure has yet to make.

        Returns:
            The arguments with the closure wrapped: its gradients must exist before anything shrinks. None if
            there is no closure.
        """
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        self._work = []
        if not callable(closure):
            try:
                own = self._divide(ask())
                if own:
                    self._act(own)
            except BaseException:  # the step is not taken: between steps the user's values stand
                self.end()
                raise
            return None
        if wait:
            self._switch_off()
            answers = lambda: [(i, a) for i, a in enumerate(ask()) if _acts(self._action, a)]  # noqa: E731
            wrapped = self._wrap(closure, answers, failed)
        else:
            own = self._divide(ask())
            wrapped = self._wrap(closure, lambda: own, failed)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def finish(self) -> None:
        """Let the action see the update, and put the user's values back; after the step."""
        if self._work:
            with torch.no_grad():
                self._action.after(self._optimizer, self._work)
            self._work = []
        self.end()

    def end(self) -> None:
        """Put the user's values back where ours still stand; calling it again does nothing."""
        for where, users, ours in self._written:
            if where.get("weight_decay") == ours:
                where["weight_decay"] = users
        self._written = []

    def _divide(self, answers: Sequence[Answer]) -> list[tuple[int, Answer]]:
        """Give each group's answer to the optimizer's own decay where that serves it; return the others."""
        own, all_native, shrinks = [], True, type(self._action) is Shrink
        for index, (group, answer) in enumerate(zip(self._optimizer.param_groups, answers, strict=True)):
            native = False
            if shrinks and type(answer.value) is float:
                value = native_value(answer.value, answer.info.lr)
                native = value <= LARGEST_NATIVE_VALUE and applies_natively(self._optimizer, group)
            if "weight_decay" in group:
                self._write(group, value if native else 0.0)
            all_native = all_native and native
            if not native and _acts(self._action, answer):
                own.append((index, answer))
        if not all_native:
            self._switch_off_defaults()
        return own

    def _switch_off(self) -> None:
        for group in self._optimizer.param_groups:
            if "weight_decay" in group:
                self._write(group, 0.0)
        self._switch_off_defaults()

    def _switch_off_defaults(self) -> None:
        if "weight_decay" in self._optimizer.defaults:  # some optimizers read them in the step
            self._write(self._optimizer.defaults, 0.0)

    def _write(self, where: dict[str, Any], value: float) -> None:
        self._written.append((where, where["weight_decay"], value))
        where["weight_decay"] = value

    def _wrap(
        self, closure: Callable[[], Any], own: Callable[[], list[tuple[int, Answer]]], failed: Callable[[], None]
    ) -> Callable[[], Any]:
        """Return a closure that lets the decay act once the gradients are made."""
        calls = 0

        def wrapped() -> Any:
            nonlocal calls
            try:
                loss = closure()
                calls += 1
                # Weights shrink once in a step, however often a line search asks; every gradient gets its
                # penalty.
                if calls == 1 or self._action.penalty:
                    self._act(own())
            except BaseException:
                self.end()
                failed()
                raise
            return loss

        return wrapped

    @torch.no_grad()
    def _act(self, own: Sequence[tuple[int, Answer]]) -> None:
        """Act on parameters that the optimizer will update."""
        self._work = []
        for index, answer in own:
            group = self._optimizer.param_groups[index]
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if parameters:
                self._work.append(Work(group, parameters, answer.value, answer.info))
        if self._work:
            settle_gradients([parameter for work in self._work for parameter in work.parameters])
            self._action.before(self._optimizer, self._work)


def _acts(action: Action, answer: Answer) -> bool:
    """Tell whether there is anything to do for a group."""
    if not answer.decays:
        return False
    if answer.info.lr == 0.0 and not action.penalty:
        return action.follows
    return action.stays or isinstance(answer.value, Tensor) or answer.value > 0.0


class HostCopy:
    """A small tensor on its way to the host: copied without waiting, read later.

    Read before the next step, the device is past it, or the host waits until the device is at most one step
    behind.

    Args:
        tensor: The tensor, on any device.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._event: torch.Event | None = None
        if tensor.device.type == "cpu":
            self._copy = tensor
            return
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._copy.copy_(tensor, non_blocking=True)
        self._event = torch.Event(tensor.device)
        self._event.record()

    def read(self) -> float:
        """Return the number."""
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return float(self._copy)


class StepCount:
    """Counts the steps that an optimizer took, without those that it skipped for an overflow."""

    def __init__(self, taken: int = 0) -> None:
        self._taken = taken
        self._pending: HostCopy | None = None

    def add(self, found_inf: Tensor | None) -> None:
        """Count one step, unless ``found_inf`` marks it as skipped.

        Args:
            found_inf: The flag that GradScaler hands to fused optimizers; None outside of it.
        """
        self._taken = self.value()
        if found_inf is None:
            self._taken += 1
        else:
            # GradScaler may change its flag in place; on the CPU a copy keeps what it was.
            self._pending = HostCopy(found_inf.clone() if found_inf.device.type == "cpu" else found_inf)

    def value(self) -> int:
        """Return the number of steps taken."""
        if self._pending is not None:
            self._taken += int(self._pending.read() == 0)
            self._pending = None
        return self._taken
