"""The loss on windows that stay the same: nats per predicted token, block by block.

Shapes: W windows, T tokens of a window, B windows of a batch, V token ids.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from halflife.studies.lab.text.parallel import DataParallelContext

__all__ = ["NUM_BLOCKS", "block_means", "even_windows", "on_its_way", "window_losses", "windows_at"]

NUM_BLOCKS = 256
TOKENS_PER_BATCH = 16_384  # fits the caches of a core at the sizes that are trained on one


def windows_at(tokens: NDArray[np.integer], starts: NDArray[np.int64], length: int) -> Tensor:
    """Windows of tokens as a tensor of token ids, (W, length), read from a memory map."""
    # Column by column: while one window comes from memory, the next ones are on their way.
    ids_TW = np.asarray(tokens).take(starts + np.arange(length)[:, None])
    return torch.from_numpy(ids_TW.T.astype(np.int64, order="C"))


def on_its_way(ids: Tensor, device: torch.device) -> Tensor:
    """Token ids on a device, without waiting for the copy: CUDA copies so from pinned memory only."""
    return (ids.pin_memory() if device.type == "cuda" else ids).to(device, non_blocking=True)


def even_windows(num_tokens: int, length: int, count: int) -> NDArray[np.int64]:
    """Offsets of up to ``count`` windows spread evenly over tokens, none twice."""
    return np.unique(np.linspace(0, max(0, num_tokens - length), count).astype(np.int64))


def window_losses(
    model: nn.Module,
    windows_WT: Tensor,
    autocast: Callable[[], contextlib.AbstractContextManager[None]],
    parallel: DataParallelContext,
    *,
    last_only: bool,
) -> Tensor:
    """The mean loss of each window.

    Args:
        model: Gives logits; it is put into evaluation mode and back.
        windows_WT: Token ids, one more than the model reads.
        autocast: The run's precision.
        parallel: The processes, which evaluate a part each, in batches as large as those of one process.
        last_only: The model predicts the last token alone.

    Returns:
        (W,) in float32.
    """
    model.eval()
    per_batch = max(1, TOKENS_PER_BATCH // (1 if last_only else windows_WT.shape[1]))
    parts = torch.split(windows_WT, per_batch)
    losses: dict[int, Tensor] = {}
    with torch.no_grad(), autocast():
        for first in range(0, len(parts), parallel.size):
            # Sharded weights are gathered by all processes together: one that has no batch left repeats the last.
            mine = min(first + parallel.rank, len(parts) - 1)
            part_BT = on_its_way(parts[mine], parallel.device)
            logits = model(part_BT[:, :-1]).float()
            if last_only:
                losses[mine] = functional.cross_entropy(logits, part_BT[:, -1], reduction="none")
            else:
                flat = functional.cross_entropy(logits.flatten(0, 1), part_BT[:, 1:].flatten(), reduction="none")
                losses[mine] = flat.view(len(part_BT), -1).mean(dim=1)
    model.train()
    parallel.forget_gathered()
    if parallel.size == 1:
        return torch.cat(list(losses.values()))
    losses_W = torch.zeros(len(windows_WT), device=parallel.device)
    for index in range(parallel.rank, len(parts), parallel.size):
        losses_W[index * per_batch : (index + 1) * per_batch] = losses[index]
    return parallel.sum(losses_W)


def block_means(losses_W: Tensor) -> Tensor:
    """The means of up to `NUM_BLOCKS` stretches of neighbouring windows, as equal in length as can be.

    Neighbouring stretches may lie in one document, so that they are no independent sample: the studies pool them.

    Args:
        losses_W: The loss of each window, in the order of the text.

    Returns:
        The means, in that order.
    """
    return torch.stack([part.mean() for part in losses_W.tensor_split(min(NUM_BLOCKS, len(losses_W)))])
