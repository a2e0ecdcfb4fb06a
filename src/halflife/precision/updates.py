"""Updates that a step loses, because the weight is rounded to the number that it was."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from halflife.errors import UserError, shortened

__all__ = ["LostUpdates", "lost_updates"]


class LostUpdates:
    """What `lost_updates` saw of a step."""

    def __init__(self) -> None:
        self._counts: list[tuple[Tensor, Tensor]] | None = None

    def _total(self, place: int) -> int:
        if self._counts is None:
            raise UserError("lost_updates has seen no whole step yet: read what it saw after its with block")
        return sum(int(counts[place]) for counts in self._counts)  # here a device is waited for, and nowhere else

    @property
    def num_weights(self) -> int:
        """Elements with a gradient that is not 0, in this process."""
        return self._total(0)

    @property
    def num_lost(self) -> int:
        """Those of them in which the step changed no bit."""
        return self._total(1)

    @property
    def share(self) -> float:
        """``num_lost / num_weights``; NaN where no element has a gradient."""
        return self.num_lost / self.num_weights if self.num_weights else math.nan

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.num_weights:,} updates are lost: the step changed no bit of the weight"


@contextmanager
def lost_updates(optimizer: Any) -> Iterator[LostUpdates]:
    """Count the weights that a step leaves as they are although they have a gradient.

    A weight that is stored in few bits does not change if its update, decay included, is less than half the distance to
    the next number. Within the block the weights are held twice, each in its own precision.

    Args:
        optimizer: Anything with ``param_groups``; the block holds one call of its ``step()``.

    Yields:
        What was seen, to be read after the block.

    Raises:
        UserError: If the optimizer has no ``param_groups``, or it is read within the block.

    Examples:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.ones(1000, dtype=torch.bfloat16))
        >>> weight.grad = torch.linspace(0.5, 8, 1000).bfloat16()
        >>> optimizer = torch.optim.SGD([weight], lr=1e-3)
        >>> with lost_updates(optimizer) as lost:
        ...     optimizer.step()
        >>> print(lost)  # below 1 lie numbers that are 2^-8 apart: half of that is 0.00195
        19.5% of 1,000 updates are lost: the step changed no bit of the weight
    """
    groups = getattr(optimizer, "param_groups", None)
    if not isinstance(groups, list):
        raise UserError(f"lost_updates takes an optimizer with param_groups, got {shortened(optimizer)}")
    held = [(each, _here(each.detach()).clone()) for group in groups for each in group["params"]]
    lost = LostUpdates()
    yield lost
    counts = []
    for parameter, before in held:
        if parameter.grad is None:
            continue
        gradient = _here(parameter.grad.detach())
        has_gradient = (gradient.to_dense() if gradient.is_sparse else gradient) != 0
        same = _here(parameter.detach()) == before
        counts.append((has_gradient.sum(), (has_gradient & same).sum()))
    lost._counts = counts


def _here(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; that of a DTensor would be asked of all processes."""
    part: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return part
