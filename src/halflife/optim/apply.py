"""How a step shrinks weights, in one of two ways, and how it leaves no trace if it does not end well.

native: the optimizer's own decay, linear in ``group["weight_decay"]``, is given the value that makes it
    remove r.
own pass: the optimizer's own decay is switched off, and an action of `halflife.optim.actions` acts instead.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions import Action, Work
from halflife.optim.actions.shrink import Shrink
from halflife.optim.config import PEAK
from halflife.optim.known import facts_of
from halflife.optim.norms import settle_gradients

__all__ = ["HostCopy", "Step", "StepCount", "applies_natively", "native_value"]

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
    return facts_of(type(optimizer)).native(group)


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


class Step:
    """One call of ``step``: what it changes for its time, and the way back if it does not end well.

    The arguments of the call hold it, and nothing else does. So when the call ends by an exception, wherever that came
    from, this is deleted together with the frame of the call, and `undo` runs.

    Args:
        optimizer: The optimizer.
        call: The id of the frame of the call, which lives as long as this.

    Attributes:
        optimizer: The optimizer.
        at_failure: What else is to be ended where the step does not end well.
    """

    def __init__(self, optimizer: Optimizer, call: int) -> None:
        self.call = call
        self.at_failure: Callable[[], None] = _nothing
        self.optimizer = optimizer
        self._over = False
        self._for_the_step: list[tuple[dict[str, Any], str, Any, Any]] = []  # (group, key, before, ours)
        self._to_stay: list[tuple[dict[str, Any], str, Any, Any]] = []
        self._native: list[tuple[Action, Work]] = []  # what sparse gradients, known in `act`, take to the own pass
        self._own: list[tuple[Action, list[Work]]] = []
        self._done: list[tuple[Action, list[Work], list[int]]] = []  # with the versions of the parameters

    def prepare(self, asked: Sequence[tuple[Action, Work] | None], *, late: bool = False) -> None:
        """Give what each group asks for to the optimizer's own decay where that serves it, and note the rest.

        Args:
            asked: One entry per group; None where nothing acts.
            late: Whether the optimizer's step has begun: it may have read its groups already.
        """
        optimizer, sparse = self.optimizer, facts_of(type(self.optimizer)).sparse
        for group, each in zip(optimizer.param_groups, asked, strict=True):
            value = 0.0
            if each is not None:
                action, work = each
                if work.info.peak_lr > 0.0 and group[PEAK] != work.info.peak_lr:  # not NaN
                    self._write(self._to_stay, group, PEAK, work.info.peak_lr)
                r = work.answer
                if not late and isinstance(r, float) and type(action) is Shrink and applies_natively(optimizer, group):
                    value = native_value(r, work.info.lr)
                if value > LARGEST_NATIVE_VALUE:
                    value = 0.0
                if value == 0.0:
                    self._take(action, work)
                elif sparse:
                    self._native.append(each)
            if not late and "weight_decay" in group:
                self._write(self._for_the_step, group, "weight_decay", value)

    @property
    def acts(self) -> bool:
        """Whether `act` may change weights."""
        return bool(self._own or self._native)

    def switch_off(self) -> None:
        """Switch the optimizer's own decay off until it is known what is asked for."""
        for group in self.optimizer.param_groups:
            if "weight_decay" in group:
                self._write(self._for_the_step, group, "weight_decay", 0.0)

    def act(self) -> None:
        """Act on the parameters that the optimizer will update, now that they have their gradients.

        Called again, for another evaluation of a closure: weights shrink once in a step, however often a line search
        asks, and every gradient gets its penalty.
        """
        for action, each in self._native:
            if any(p.grad is not None and p.grad.is_sparse for p in each.group["params"]):
                self._write(self._for_the_step, each.group, "weight_decay", 0.0)
                self._take(action, each)
        self._native = []
        if self._own:
            self._act()

    @torch.no_grad()
    def _act(self) -> None:
        again = bool(self._done)
        for action, asked in self._own:
            if again and not action.penalty:
                continue
            for each in asked:
                each.parameters[:] = [parameter for parameter in each.group["params"] if parameter.grad is not None]
            work = [each for each in asked if each.parameters]
            if work:
                settle_gradients([parameter for each in work for parameter in each.parameters])
                action.before(self.optimizer, work)
                versions = [parameter._version for each in work for parameter in each.parameters]
                self._done = [done for done in self._done if done[0] is not action]
                self._done.append((action, work, versions))

    def finish(self) -> None:
        """Give the groups back what the user has in them, and let the actions see the update."""
        self._over = True
        self._restore(self._for_the_step)
        if self._done:
            with torch.no_grad():
                for action, work, _ in self._done:
                    action.after(self.optimizer, work)

    def undo(self) -> None:
        """Leave the groups and weights as they were before the call; for calls that ended by an exception.

        Weights that the update had reached by then keep their decay together with it.
        """
        if self._over:
            return
        self._over = True
        self.at_failure()
        self._restore(self._for_the_step)
        self._restore(self._to_stay)
        with torch.no_grad():
            for action, work, versions in self._done:
                version = iter(versions)
                for each in work:
                    each.parameters[:] = [p for p in each.parameters if p._version == next(version)]
                untouched = [each for each in work if each.parameters]
                if untouched:
                    action.undo(self.optimizer, untouched)

    def users_values(self, group: dict[str, Any]) -> dict[str, Any]:
        """Return what a group has for the time of the step only, as the user has it."""
        return {
            key: before for where, key, before, _ in reversed(self._for_the_step) if where is group and not self._over
        }

    def __del__(self) -> None:
        if not self._over and not sys.is_finalizing():
            self.undo()

    def _take(self, action: Action, work: Work) -> None:
        """Note what a group asks for, for the own pass."""
        if work.info.lr == 0.0 and not action.penalty:
            acts = action.acts_at_lr_zero
        else:
            acts = action.acts_at_zero or isinstance(work.answer, Tensor) or work.answer > 0.0
        if acts:
            known = next((asked for known, asked in self._own if known is action), None)
            if known is None:
                self._own.append((action, [work]))
            else:
                known.append(work)

    @staticmethod
    def _write(log: list[tuple[dict[str, Any], str, Any, Any]], group: dict[str, Any], key: str, value: Any) -> None:
        log.append((group, key, group[key], value))
        group[key] = value

    @staticmethod
    def _restore(log: list[tuple[dict[str, Any], str, Any, Any]]) -> None:
        """Put back what was there, where ours still stands."""
        for group, key, before, ours in reversed(log):
            if group.get(key) == ours:
                group[key] = before


def _nothing() -> None:
    """Nothing else is to be ended."""


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

    def is_there(self) -> bool:
        """Tell whether reading would not wait."""
        return self._event is None or self._event.query()

    def read(self) -> float:
        """Return the number."""
        return float(self._there())

    def numbers(self) -> list[float]:
        """Return the numbers of a vector."""
        found: list[float] = self._there().tolist()
        return found

    def _there(self) -> Tensor:
        if self._event is not None:
            self._event.synchronize()
            self._event = None
        return self._copy


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
