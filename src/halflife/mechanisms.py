"""The two ways to shrink weights; ``attach`` decides when, and by how much.

native: the optimizer's own decay, linear in ``group["weight_decay"]``, is given the value that makes it
    remove r.
own pass: one ``torch._foreach_mul_`` per group, device and precision, with no host synchronization.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adafactor, Adam, AdamW, Muon, NAdam, Optimizer, RAdam

__all__ = ["Decay", "StepCount", "add_to_gradients", "applies_natively", "native_value", "shrink"]

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
    kind = type(optimizer)
    if kind in {Adam, AdamW, NAdam, RAdam}:
        return group.get("decoupled_weight_decay") is True
    if kind is SGD:
        # Without momentum the update is w <- w - lr * (g + lam * w) = (1 - lr * lam) * w - lr * g: here, and
        # only here, the L2 form and the decoupled form are the same map.
        return group["momentum"] == 0 and not group["nesterov"]
    return kind in {Muon, Adafactor}


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


def shrink(parameters: Sequence[Tensor], r: float, found_inf: Tensor | None) -> None:
    """Multiply parameters by ``1 - r`` in place, unless ``found_inf`` says that the step is skipped.

    Args:
        parameters: The parameters; devices and precisions may differ.
        r: The fraction to remove.
        found_inf: The flag that GradScaler hands to fused optimizers; None outside of it.
    """
    for (device, dtype), tensors in _by_device_and_precision(parameters).items():
        # A tensor because a Python float would be rounded to bfloat16 before it multiplies bfloat16 weights,
        # and filled on the device because copying a number there would wait for the device.
        factor = torch.full((), 1.0 - r, dtype=dtype, device=device)
        if found_inf is not None:  # chosen on the device: reading the flag would wait for it
            flag = found_inf.to(device, non_blocking=True)
            factor = torch.where(flag > 0, torch.ones_like(factor), factor)
        torch._foreach_mul_(tensors, factor)


def add_to_gradients(
    parameters: Sequence[Tensor], coefficient: float, *, maximize: bool, grad_scale: Tensor | None
) -> None:
    """Add ``coefficient * w`` to the gradients in place, in the units that the gradients have now.

    Args:
        parameters: Parameters with a gradient.
        coefficient: What multiplies the weights.
        maximize: Whether the optimizer will negate the gradients.
        grad_scale: The factor by which GradScaler has left the gradients scaled; None if it has not.
    """
    sign = -1.0 if maximize else 1.0
    for (device, dtype), tensors in _by_device_and_precision(parameters).items():
        gradients = [parameter.grad for parameter in tensors if parameter.grad is not None]
        if grad_scale is None:
            torch._foreach_add_(gradients, tensors, alpha=sign * coefficient)
        else:
            scale = grad_scale.to(device, dtype, non_blocking=True) * (sign * coefficient)
            torch._foreach_add_(gradients, torch._foreach_mul(tensors, scale))


def _by_device_and_precision(
    parameters: Sequence[Tensor],
) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    """Return parameters split by device and by the precision in which the factor is exact enough."""
    split: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        double = parameter.dtype in {torch.float64, torch.complex128}
        split.setdefault((parameter.device, torch.float64 if double else torch.float32), []).append(parameter)
    return split


class Decay:
    """Carries the answers of a rule out on one optimizer, each group in the way that is right for it.

    Args:
        optimizer: The optimizer.
        penalty: Whether the answers are coefficients of the gradient instead of fractions.
    """

    def __init__(self, optimizer: Optimizer, *, penalty: bool) -> None:
        self._optimizer = optimizer
        self._penalty = penalty
        self._written: list[tuple[dict[str, Any], Any, float]] = []  # (where, the user's value, ours)

    def begin(
        self, answers: Sequence[tuple[float, float]], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Set the optimizer's own decay for this step, and shrink what it does not shrink itself.

        Args:
            answers: The rule's answer and the lr, per group.
            args: Positional arguments of ``step``, the optimizer first.
            kwargs: Named arguments of ``step``.

        Returns:
            The arguments with the closure wrapped: its gradients must exist before anything shrinks. None if
            there is no closure.
        """
        own, all_native = [], True
        for index, (answer, lr) in enumerate(answers):
            group = self._optimizer.param_groups[index]
            value = math.inf if self._penalty else native_value(answer, lr)
            native = value <= LARGEST_NATIVE_VALUE and applies_natively(self._optimizer, group)
            if "weight_decay" in group:
                self._write(group, value if native else 0.0)
            all_native = all_native and native
            if not native and answer > 0.0:
                own.append((index, answer))
        if not all_native and "weight_decay" in self._optimizer.defaults:  # some optimizers read them in the step
            self._write(self._optimizer.defaults, 0.0)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not callable(closure):
            self._act(own)
            return None
        wrapped = self._wrap(closure, own)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def end(self) -> None:
        """Put the user's values back where ours still stand; calling it again does nothing."""
        for where, users, ours in self._written:
            if where.get("weight_decay") == ours:
                where["weight_decay"] = users
        self._written = []

    def _write(self, where: dict[str, Any], value: float) -> None:
        self._written.append((where, where["weight_decay"], value))
        where["weight_decay"] = value

    def _wrap(self, closure: Callable[[], Any], own: list[tuple[int, float]]) -> Callable[[], Any]:
        """Return a closure that lets the decay act once the gradients are made."""
        calls = 0

        def wrapped() -> Any:
            nonlocal calls
            loss = closure()
            calls += 1
            # Weights shrink once in a step, however often a line search asks; every gradient gets its
            # penalty.
            if calls == 1 or self._penalty:
                self._act(own)
            return loss

        return wrapped

    @torch.no_grad()
    def _act(self, own: list[tuple[int, float]]) -> None:
        """Run the own pass, or add the penalty, on parameters that the optimizer will update."""
        optimizer = self._optimizer
        for index, value in own:
            group = optimizer.param_groups[index]
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            if self._penalty:
                maximize = bool(group.get("maximize", False))
                scale = getattr(optimizer, "grad_scale", None)
                add_to_gradients(parameters, value, maximize=maximize, grad_scale=scale)
            else:
                shrink(parameters, value, getattr(optimizer, "found_inf", None))


class StepCount:
    """Counts the steps that an optimizer took, without those that it skipped for an overflow.

    On an accelerator the flag of a skipped step is copied to the host without waiting, and looked at before
    the next step: by then the device is past it, or the host waits until the device is at most one step
    behind.
    """

    def __init__(self, taken: int = 0) -> None:
        self._taken = taken
        self._pending: tuple[Tensor, torch.Event] | None = None

    def add(self, found_inf: Tensor | None) -> None:
        """Count one step, unless ``found_inf`` marks it as skipped.

        Args:
            found_inf: The flag that GradScaler hands to fused optimizers; None outside of it.
        """
        taken = self.value()
        if found_inf is None:
            self._taken = taken + 1
        elif found_inf.device.type == "cpu":
            self._taken = taken + int(found_inf.item() == 0)
        else:
            flag = torch.empty((), dtype=found_inf.dtype, pin_memory=True)
            flag.copy_(found_inf, non_blocking=True)
            event = torch.Event(found_inf.device)
            event.record()
            self._pending = (flag, event)

    def value(self) -> int:
        """Return the number of steps taken."""
        if self._pending is not None:
            flag, event = self._pending
            self._pending = None
            event.synchronize()
            self._taken += int(flag.item() == 0)
        return self._taken
