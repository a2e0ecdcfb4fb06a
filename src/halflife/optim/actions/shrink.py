"""The own pass: ``w <- (1 - r) * w``, one multiplication per group, device and precision."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions.base import Action, Work, by_device_and_precision, unless_skipped
from halflife.optim.norms import local

__all__ = ["Shrink", "scale"]


class Shrink(Action):
    """Multiply parameters by ``1 - r`` before the update."""

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink, unless the step will be skipped."""
        for each in work:
            scale(each.parameters, 1.0 - each.answer, getattr(optimizer, "found_inf", None))

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Divide by what the weights were multiplied by: exact up to rounding."""
        for each in work:
            scale(each.parameters, 1.0 / (1.0 - each.answer), getattr(optimizer, "found_inf", None))


def scale(parameters: Sequence[Tensor], factor: float | Tensor, found_inf: Tensor | None) -> None:
    """Multiply parameters by one factor in place, unless ``found_inf`` says that the step is skipped.

    Args:
        parameters: The parameters; devices and precisions may differ.
        factor: What to multiply by.
        found_inf: The flag that GradScaler hands to fused optimizers; None outside of it.
    """
    for (device, dtype), tensors in by_device_and_precision(parameters).items():
        shards = [local(tensor) for tensor in tensors]  # torch refuses lists in which only some are distributed
        torch._foreach_mul_(shards, unless_skipped(factor, 1.0, found_inf, device, dtype))
