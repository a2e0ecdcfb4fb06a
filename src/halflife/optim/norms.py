"""Squared norms, one per tensor: right when tensors are sharded or scaled, and without waiting for the device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "accumulator",
    "as_real",
    "local",
    "on_device",
    "settle_gradients",
    "shard_number",
    "squared_norms",
    "totals",
]

# torch sums a float32 norm on a CPU in a few float32 numbers: 7e-4 too small at 2^24 elements (torch
# 2.13). So large tensors are cut, and the pieces are summed in the type of `accumulator`. A dot product is faster
# than a norm there, and more accurate: 6e-7 at 2^19.
PIECE = 1 << 19


def accumulator(device: torch.device) -> torch.dtype:
    """Return the most precise type that sums of squares can have on a device."""
    return torch.float32 if device.type == "mps" else torch.float64


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that this process holds; the tensor itself if it is not distributed.

    Operations that reduce a DTensor answer for the local shard only, silently, where their result is read
    with ``item()``.
    """
    shard: Tensor = tensor.to_local() if is_distributed(tensor) else tensor  # type: ignore[attr-defined]  # a DTensor has it
    return shard


def settle_gradients(parameters: Sequence[Tensor]) -> None:
    """Give gradients the sharding of their parameters, as the optimizer's own arithmetic would.

    Under tensor parallelism a gradient may be a DTensor whose parts have not been added up yet. Nothing to do
    under DDP and FSDP2.

    Args:
        parameters: Parameters with or without gradients.
    """
    if "torch.distributed.tensor" not in sys.modules:  # without it there is no DTensor
        return
    for parameter in parameters:
        gradient: Any = parameter.grad
        if gradient is not None and is_distributed(gradient):
            wanted = parameter.placements  # type: ignore[attr-defined]
            if gradient.placements != wanted:
                parameter.grad = gradient.redistribute(placements=wanted)


@torch.no_grad()
def squared_norms(tensors: Sequence[Tensor]) -> Tensor:
    """Return the squared Euclidean norm of each tensor: of all of it, if it is sharded over processes.

    One collective in all under FSDP2, none where no tensor is sharded.

    Args:
        tensors: Tensors of any shapes, types and devices, at least one.

    Returns:
        1-D, one value per tensor, on the device of the first, in float64 where the device has it.
    """
    shards = [as_real(local(tensor)) for tensor in tensors]
    device = shards[0].device
    found = torch.zeros(len(shards), dtype=accumulator(device), device=device)
    pieces: dict[tuple[torch.device, torch.dtype], tuple[list[int], list[Tensor]]] = {}
    whole = True  # whether each tensor is one piece, in order, in one list
    for index, shard in enumerate(shards):
        indices, parts = pieces.setdefault((shard.device, shard.dtype), ([], []))
        if shard.device.type == "cpu" and shard.numel() > PIECE:
            cut = torch.split(shard.reshape(-1).contiguous(), PIECE)
            indices.extend([index] * len(cut))
            parts.extend(cut)
            whole = False
        elif shard.numel() > 0:  # the shard of a small tensor may be empty
            indices.append(index)
            parts.append(shard)
    for (kind, dtype), (indices, parts) in pieces.items():
        if not parts:
            continue
        squares = _squares(parts, kind, dtype).to(device, found.dtype, non_blocking=True)
        if whole and len(parts) == len(shards):
            found = squares
        else:
            found.index_add_(0, on_device(indices, device), squares)
    return _sum_over_shards(found, tensors)


@torch.no_grad()
def totals(tensors: Sequence[Tensor]) -> Tensor:
    """Return the sum of the elements of each tensor: of all of it, if it is sharded over processes.

    Args:
        tensors: Real tensors, at least one.

    Returns:
        1-D, as `squared_norms`.
    """
    shards = [local(tensor) for tensor in tensors]
    device, dtype = shards[0].device, accumulator(shards[0].device)
    sums = [shard.sum(dtype=accumulator(shard.device)).to(device, dtype, non_blocking=True) for shard in shards]
    return _sum_over_shards(torch.stack(sums), tensors)


def _squares(parts: list[Tensor], device: torch.device, dtype: torch.dtype) -> Tensor:
    """Return the squared norm of each of some tensors of one device and type."""
    if device.type == "cpu" and dtype in {torch.float32, torch.float64}:
        flat = [part.reshape(-1).contiguous() for part in parts]  # strided, torch sums one number after the other
        return torch.stack([torch.dot(part, part) for part in flat])
    # A float16 norm overflows at 65504.
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    norms = torch.stack(torch._foreach_norm(parts, 2, wide))
    return norms.to(accumulator(device)).square_()


def as_real(tensor: Tensor) -> Tensor:
    """Return complex numbers as pairs of numbers."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def on_device(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Return whole numbers or flags as a tensor; from pinned memory, so that the copy to CUDA waits for nothing.

    Args:
        numbers: The numbers.
        device: Where they are wanted.

    Returns:
        1-D, of 64-bit whole numbers or of flags.
    """
    made = torch.tensor(numbers, pin_memory=device.type == "cuda")
    return made.to(device, non_blocking=True)


def is_distributed(tensor: Tensor) -> bool:
    module = sys.modules.get("torch.distributed.tensor")  # without it there is no DTensor
    return module is not None and isinstance(tensor, module.DTensor)


def shard_number(tensor: Tensor) -> int:
    """Return which of the different parts of a tensor this process holds; replicas have the same number.

    Args:
        tensor: A parameter.

    Returns:
        A number from 0.
    """
    number = 0
    if is_distributed(tensor):
        mesh = tensor.device_mesh  # type: ignore[attr-defined]
        for dimension, (placement, place) in enumerate(zip(tensor.placements, mesh.get_coordinate(), strict=True)):  # type: ignore[attr-defined]
            if not placement.is_replicate():
                number = number * mesh.size(dimension) + place
    return number


def _sum_over_shards(found: Tensor, tensors: Sequence[Tensor]) -> Tensor:
    """Add up what the shards of each tensor found: one collective per mesh dimension that shards any."""
    plan: dict[tuple[Any, int], list[int]] = {}
    for index, tensor in enumerate(tensors):
        if is_distributed(tensor):
            mesh, placements = tensor.device_mesh, tensor.placements  # type: ignore[attr-defined]
            for dimension, placement in enumerate(placements):
                if not placement.is_replicate():
                    plan.setdefault((mesh, dimension), []).append(index)
    for (mesh, dimension), indices in plan.items():
        group = mesh.get_group(dimension)
        if len(indices) == len(tensors):
            torch.distributed.all_reduce(found, group=group)
        else:
            positions = on_device(indices, found.device)
            part = found[positions]
            torch.distributed.all_reduce(part, group=group)
            found[positions] = part
    return found
