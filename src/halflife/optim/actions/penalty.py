"""Penalties: ``lam * w`` enters the gradient, or one of Adam's moments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.actions.base import Action, Work, by_device_and_precision, unless_skipped
from halflife.optim.norms import local

__all__ = ["AddToGradient", "AddToMoment", "add_to_gradients"]


class AddToGradient(Action):
    """Add the coefficient times the weight to the gradient, at every evaluation of a closure."""

    penalty = True

    def __init__(self) -> None:
        self._added: dict[int, int] = {}  # the version of each gradient, by its id, once the term is in it

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Add the term in the units that the gradients have now.

        Args:
            optimizer: The optimizer.
            work: What to act on.

        Raises:
            UserError: If a gradient is sparse; nothing was touched.
        """
        if any(p.grad is not None and p.grad.is_sparse for each in work for p in each.parameters):
            raise UserError(
                "an L2 penalty would make sparse gradients dense; use Decoupled, or build the embedding with sparse=False"
            )
        for each in work:
            add_to_gradients(optimizer, each.group, each.parameters, float(each.answer))
        self._added = _gradient_versions(work)

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Subtract the term from gradients that nobody has changed since, exact up to rounding."""
        _subtract(optimizer, work, self._added)


class AddToMoment(Action):
    """Let the term enter only one of Adam's two moments.

    Adam's next step makes ``m <- beta1 * m + (1 - beta1) * g``. Adding ``(1 - beta1) / beta1 * lam * w`` to
    ``m`` beforehand is hence adding ``lam * w`` to the gradient, for the first moment alone; subtracting it
    while the gradient has the term leaves the second moment alone with it.

    Args:
        first: Whether the term enters the first moment; else the second.
    """

    penalty = True

    def __init__(self, *, first: bool) -> None:
        self._first = first
        self._added: dict[int, int] = {}  # the version of each moment and gradient, by its id, once the term is in it

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Prepare the first moment, and the gradient where the second moment takes the term."""
        for each in work:
            _make_state(optimizer, each.group)
            self._add_to_moments(optimizer, each, each.parameters, 1.0)
            if not self._first:
                add_to_gradients(optimizer, each.group, each.parameters, float(each.answer))
        self._added = _versions([optimizer.state[p]["exp_avg"] for each in work for p in each.parameters])
        if not self._first:
            self._added |= _gradient_versions(work)

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Subtract the term from moments and gradients that nobody has changed since, exact up to rounding."""
        for each in work:
            moments = [optimizer.state[parameter]["exp_avg"] for parameter in each.parameters]
            unchanged = [
                p for p, m in zip(each.parameters, moments, strict=True) if self._added.get(id(m)) == m._version
            ]
            self._add_to_moments(optimizer, each, unchanged, -1.0)
        _subtract(optimizer, work, self._added)

    def _add_to_moments(self, optimizer: Optimizer, work: Work, parameters: Sequence[Tensor], sign: float) -> None:
        beta1 = float(work.group["betas"][0])
        factor = sign * (1.0 - beta1) / beta1 * float(work.answer) * (1.0 if self._first else -1.0)
        found_inf = getattr(optimizer, "found_inf", None)
        for (device, dtype), tensors in by_device_and_precision(parameters).items():
            moments = [local(optimizer.state[parameter]["exp_avg"]) for parameter in tensors]
            shards = [local(parameter) for parameter in tensors]
            coefficient = unless_skipped(factor, 0.0, found_inf, device, dtype)
            torch._foreach_add_(moments, torch._foreach_mul(shards, coefficient))


def add_to_gradients(
    optimizer: Optimizer, group: dict[str, Any], parameters: Sequence[Tensor], coefficient: float
) -> None:
    """Add ``coefficient * w`` to the gradients in place, in the units that the gradients have now.

    Args:
        optimizer: The optimizer; GradScaler tells it the factor by which it has left the gradients scaled.
        group: The group; ``maximize`` says whether the optimizer will negate the gradients.
        parameters: Parameters with a gradient.
        coefficient: What multiplies the weights.
    """
    signed = -coefficient if group.get("maximize", False) else coefficient
    grad_scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    for (device, dtype), tensors in by_device_and_precision(parameters).items():
        gradients = [local(parameter.grad) for parameter in tensors if parameter.grad is not None]
        shards = [local(parameter) for parameter in tensors]  # torch refuses lists in which some are distributed
        if grad_scale is None:
            torch._foreach_add_(gradients, shards, alpha=signed)
        else:
            scale = grad_scale.to(device, dtype, non_blocking=True) * signed
            torch._foreach_add_(gradients, torch._foreach_mul(shards, scale))


def _make_state(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Let Adam make the state of parameters that it has not stepped yet, as it would itself in the step.

    Only for classes that `halflife.optim.known` marks with ``moments``.
    """
    if any(p.grad is not None and not optimizer.state[p] for p in group["params"]):
        optimizer._init_group(group, [], [], [], [], [], [])  # type: ignore[attr-defined]  # Adam has it


def _versions(tensors: Sequence[Tensor]) -> dict[int, int]:
    return {id(tensor): tensor._version for tensor in tensors}


def _gradient_versions(work: Sequence[Work]) -> dict[int, int]:
    return _versions([p.grad for each in work for p in each.parameters if p.grad is not None])


def _subtract(optimizer: Optimizer, work: Sequence[Work], added: dict[int, int]) -> None:
    """Take the term out of the gradients that are as they were when it was added."""
    for each in work:
        unchanged = [p for p in each.parameters if p.grad is not None and added.get(id(p.grad)) == p.grad._version]
        add_to_gradients(optimizer, each.group, unchanged, -float(each.answer))
