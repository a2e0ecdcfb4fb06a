"""The processes that train one model together: one by default."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

__all__ = ["World"]


class World:
    """One process by itself. Several processes have the same methods (`halflife.lab.text.distributed`).

    Args:
        device: Where this process computes.
    """

    rank = 0
    size = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def wrap(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """The model as it is trained; ``blocks`` are its parts that can be sharded by themselves."""
        return model

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, elementwise."""
        return values

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process."""
        return flag
