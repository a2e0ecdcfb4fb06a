"""Cautious decay: only where the update goes towards zero too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.actions.base import Action, Work, unless_skipped
from halflife.norms import local

__all__ = ["MaskedShrink", "shrink_where_agreed"]

# On a CPU the pass runs over pieces that stay in the cache: the arithmetic has three steps, the memory is
# read twice and written once.
PIECE = 1 << 18
LOW = {torch.bfloat16, torch.float16}


class MaskedShrink(Action):
    """Copy the weights before the step; after it, shrink where the difference agrees with the weight."""

    def __init__(self) -> None:
        # Kept from step to step: making them anew costs page faults.
        self._copies: dict[Tensor, Tensor] = {}
        self._scratch: dict[torch.dtype, Tensor] = {}

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Copy the weights."""
        pairs = []
        for each in work:
            for parameter in each.parameters:
                shard = local(parameter)
                copy = self._copies.get(parameter)
                if copy is None or copy.shape != shard.shape or copy.dtype != shard.dtype:
                    copy = self._copies[parameter] = torch.empty_like(shard)
                pairs.append((copy, shard))
        if pairs:
            torch._foreach_copy_([copy for copy, _ in pairs], [shard for _, shard in pairs], non_blocking=True)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink, unless the step was skipped."""
        found_inf = getattr(optimizer, "found_inf", None)
        for each in work:
            for parameter in each.parameters:
                shard = local(parameter)
                r = each.answer
                if found_inf is not None or isinstance(r, Tensor):
                    wide = torch.float64 if shard.dtype == torch.float64 else torch.float32
                    r = unless_skipped(r, 0.0, found_inf, shard.device, wide)
                    r = float(r) if r.device.type == "cpu" else r
                shrink_where_agreed(shard, self._copies[parameter], r, self._scratch)

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Let go of copies of parameters that may be gone."""
        self._copies = {}


def shrink_where_agreed(
    weight: Tensor, before: Tensor, r: float | Tensor, scratch: dict[torch.dtype, Tensor] | None = None
) -> None:
    """Subtract ``r * before`` in place where ``(before - weight) * before >= 0``.

    That is where ``weight / before <= 1``, which needs one step less and cannot underflow. Rounding does not
    matter: the quotient of two different numbers next to each other is never rounded to 1 from above. Where
    ``before`` is 0 there is nothing to subtract.

    Args:
        weight: The weight after the update.
        before: The weight before it, of the same shape.
        r: The fraction.
        scratch: Memory to be used again at the next call; filled here.
    """
    if weight.is_complex():
        weight, before = torch.view_as_real(weight), torch.view_as_real(before)
    if weight.device.type == "cpu" and weight.is_contiguous() and before.is_contiguous():
        wide = torch.float32 if weight.dtype in LOW else weight.dtype
        room = ({} if scratch is None else scratch).setdefault(wide, torch.empty(PIECE, dtype=wide))
        for piece, old in zip(torch.split(weight.view(-1), PIECE), torch.split(before.view(-1), PIECE), strict=True):
            _shrink_piece(piece, old, r, room[: piece.numel()])
    else:
        _shrink_piece(weight, before, r, None)


def _shrink_piece(weight: Tensor, before: Tensor, r: float | Tensor, room: Tensor | None) -> None:
    wide = weight.float() if weight.dtype in LOW else weight
    old = before.float() if weight.dtype in LOW else before
    mask = torch.div(wide, old, out=room).le_(1.0)
    if isinstance(r, Tensor):
        wide.addcmul_(old, mask.mul_(r), value=-1.0)
    else:
        wide.addcmul_(old, mask, value=-r)
    if wide is not weight:
        weight.copy_(wide)
