"""What an action is, and what all of them need."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.rules.base import StepInfo

__all__ = ["LOW", "Action", "Work", "by_device_and_precision", "precision_of", "unless_skipped"]

LOW = {torch.bfloat16, torch.float16}  # types that arithmetic with small fractions has to leave for float32


@dataclass(slots=True)  # not frozen: that would multiply the time to make one, at each step and group
class Work:
    """What one parameter group asks of an action at one step.

    Args:
        group: The group.
        parameters: Its parameters with a gradient, known once they have it.
        answer: The rule's fraction, or the penalty's coefficient.
        info: What the rule was told.
    """

    group: dict[str, Any]
    parameters: list[Tensor]
    answer: float | Tensor
    info: StepInfo


class Action(ABC):
    """Acts on the parameters of one optimizer around its step; called without gradient tracking."""

    penalty: ClassVar[bool] = False  # whether answers are coefficients of the gradient, not fractions
    acts_at_zero: ClassVar[bool] = False  # although the rule answers 0
    acts_at_lr_zero: ClassVar[bool] = False  # at lr == 0 weights rest, but averages move

    @abstractmethod
    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Act between the gradient and the update."""

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:  # noqa: B027 - most actions have nothing to do here
        """Act after the update, with what was given to `before`."""

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:  # noqa: B027 - most actions have nothing to do here
        """Take back what `before` did to these parameters: the step failed before its update reached them."""

    def applied(self) -> dict[int, float | Tensor] | None:
        """Return the fractions by group number where they are known only after the step."""
        return None

    def save(self, parameters: Sequence[Tensor]) -> tuple[float, ...] | None:
        """Return what a checkpoint has to keep for the parameters of a group; None if this action keeps nothing."""
        return None

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:  # noqa: B027 - most actions have nothing to do here
        """Start again from the answers of `save` for each group, and from what is in the optimizer's state."""

    def pending(self, parameters: Sequence[Tensor]) -> tuple[float, ...]:
        """Return what a checkpoint has to keep of decay that has not reached the parameters of a group yet."""
        return ()

    def load_pending(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...]]]) -> None:  # noqa: B027 - most actions have nothing to do here
        """Start again from the answers of `pending` for each group."""

    def remove_state(self, optimizer: Optimizer) -> None:  # noqa: B027 - most actions have nothing to do here
        """Remove what was put into the optimizer's state."""


def by_device_and_precision(parameters: Sequence[Tensor]) -> dict[tuple[torch.device, torch.dtype], list[Tensor]]:
    """Return parameters split by device and by the precision in which a factor is exact enough."""
    split: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for parameter in parameters:
        split.setdefault((parameter.device, precision_of(parameter)), []).append(parameter)
    return split


def precision_of(parameter: Tensor) -> torch.dtype:
    """Return the type in which a factor is exact enough for a parameter."""
    return torch.float64 if parameter.dtype in {torch.float64, torch.complex128} else torch.float32


def unless_skipped(
    value: float | Tensor, otherwise: float, found_inf: Tensor | None, device: torch.device, dtype: torch.dtype
) -> Tensor:
    """Return a number as a 0-dim tensor, replaced where ``found_inf`` says that the step is skipped.

    A tensor because a Python float would be rounded to bfloat16 before it multiplies bfloat16 weights. Filled
    and chosen on the device: copying a number there, or reading the flag, would wait for it.
    """
    if isinstance(value, Tensor):
        made = value.to(device, dtype, non_blocking=True)
    else:
        made = torch.full((), value, dtype=dtype, device=device)
    if found_inf is None:
        return made
    flag = found_inf.to(device, non_blocking=True)
    return torch.where(flag > 0, torch.full_like(made, otherwise), made)
