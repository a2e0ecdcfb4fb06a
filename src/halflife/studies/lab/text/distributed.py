"""Several processes that train one model: each holds all of it (DDP), or a part of every tensor (FSDP2).

The batch of a step is that of one process, cut into equal slices, and all that is read is read of the whole. So a run is
the same run on any number of processes, but for the order in which numbers are added, and for dropout's masks, which each
process draws for its slice.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import ClassVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from halflife.studies.lab.text.parallel import DataParallelContext

__all__ = ["Replicated", "Sharded"]


class Replicated(DataParallelContext):
    """All processes of the default group, each with the whole model, by `DistributedDataParallel`.

    Args:
        device: Where this process computes.
    """

    form: ClassVar[str] = "ddp"

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.rank, self.size = dist.get_rank(), dist.get_world_size()

    def wrap(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """The model in its wrapper; evaluations and checkpoints use the model itself."""
        devices = None if self.device.type == "cpu" else [self.device]
        self.wrapped = DistributedDataParallel(model, device_ids=devices)
        return self.wrapped

    def gradient_sync(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients of earlier parts of a batch stay in the process until the last part."""
        return contextlib.nullcontext() if now else self.wrapped.no_sync()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, elementwise."""
        return self.sum(values) / self.size

    def sum(self, values: Tensor) -> Tensor:
        """The sum over processes, elementwise."""
        total = values.clone()
        dist.all_reduce(total)
        return total

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in any process; all of them wait here for each other."""
        # A tensor of the host goes through gloo, so that no accelerator is waited for.
        found = torch.tensor([int(flag)])
        dist.all_reduce(found, dist.ReduceOp.MAX)
        return bool(found)


class Sharded(Replicated):
    """All processes of the default group, each with a part of every tensor, by FSDP2 (`fully_shard`).

    Args:
        device: Where this process computes.
    """

    form: ClassVar[str] = "fsdp"

    def wrap(self, model: nn.Module, blocks: Sequence[nn.Module]) -> nn.Module:
        """The model itself, whose parameters are parts from now on: block by block, and the rest together."""
        mesh = init_device_mesh(self.device.type, (self.size,))
        for block in blocks:
            fully_shard(block, mesh=mesh)
        self.root = fully_shard(model, mesh=mesh)
        if not self._gets_means():
            for part in (*blocks, model):
                cast("FSDPModule", part).set_force_sum_reduction_for_comms(True)
        return model

    def _gets_means(self) -> bool:
        """Whether the processes get a mean where they ask for one, as `fully_shard` does: gloo in torch 2.8 adds up."""
        part = torch.empty(1, device=self.device)
        reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its older name
        reduce_scatter(part, torch.ones(self.size, device=self.device), dist.ReduceOp.AVG)
        return part.item() == 1.0

    def gradient_sync(self, now: bool) -> contextlib.AbstractContextManager[None]:
        """Gradients of earlier parts of a batch stay whole in the process until the last part."""
        self.root.set_requires_gradient_sync(now)
        return contextlib.nullcontext()

    def forget_gathered(self) -> None:
        """Drop the outermost weights, which stay gathered after a forward pass, so that a change of the parts is seen."""
        self.root.reshard()

    def plain(self, value: Tensor) -> Tensor:
        """What torch computed from sharded tensors: all of it."""
        return value.full_tensor() if isinstance(value, DTensor) else value
