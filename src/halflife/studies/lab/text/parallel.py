"""The processes that train one model together: one by default."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

__all__ = ["DataParallelContext"]


class DataParallelContext:
    """What the loop asks of the processes that train one model; this class is one process by itself.

    Several processes have the same methods (`halflife.studies.lab.text.distributed`).

    Args:
        device: Where this process computes.
    """

    form: ClassVar[str] = "alone"
    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """What is called in training in the model's place; ``blocks`` are its parts that can be sharded by themselves."""
        return model

    def gradient_sync(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """A block of forward and backward, after which gradients are those of all processes if ``now`` is set."""
        return contextlib.nullcontext()

    def forget_gathered(self) -> None:
        """Drop copies of the weights that a forward pass without a backward pass has gathered from other processes."""

    def plain(self, value: Tensor) -> Tensor:
        """What torch computed from tensors that may be sharded, as a plain tensor."""
        return value

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, elementwise."""
        return values

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, elementwise."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them wait here for each other."""
        return flag
