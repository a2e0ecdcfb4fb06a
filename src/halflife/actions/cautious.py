"""Cautious decay: only where the update goes towards zero too."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.actions.base import Action, Work, unless_skipped
from halflife.norms import local

__all__ = ["MaskedShrink", "shrink_where_agreed"]

# On a CPU the pass runs over pieces that stay in the cache: the arithmetic has five steps, the memory is
# read twice and written once.
PIECE = 1 << 16
LOW = {torch.bfloat16, torch.float16}


class MaskedShrink(Action):
    """Copy the weights before the step; after it, shrink where the difference agrees with the weight."""

    def __init__(self) -> None:
        self._copies: dict[Tensor, Tensor] = {}  # kept from step to step: making them anew costs page faults

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
                shrink_where_agreed(shard, self._copies[parameter], r)

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Let go of copies of parameters that may be gone."""
        self._copies = {}


def shrink_where_agreed(weight: Tensor, before: Tensor, r: float | Tensor) -> None:
    """Subtract ``r * before`` in place where ``(before - weight) * before >= 0``.

    Args:
        weight: The weight after the update.
        before: The weight before it, of the same shape.
        r: The fraction.
    """
    if weight.is_complex():
        weight, before = torch.view_as_real(weight), torch.view_as_real(before)
    if weight.device.type == "cpu" and weight.is_contiguous() and before.is_contiguous():
        for piece, old in zip(torch.split(weight.view(-1), PIECE), torch.split(before.view(-1), PIECE), strict=True):
            _shrink_piece(piece, old, r)
    else:
        _shrink_piece(weight, before, r)


def _shrink_piece(weight: Tensor, before: Tensor, r: float | Tensor) -> None:
    wide = weight.float() if weight.dtype in LOW else weight
    old = before.float() if weight.dtype in LOW else before
    mask = torch.sub(old, wide)
    mask.sign_().mul_(old).ge_(0)  # the sign first: a product of two tiny numbers would be 0, which agrees
    if isinstance(r, Tensor):
        wide.sub_(mask.mul_(old).mul_(r))
    else:
        wide.addcmul_(old, mask, value=-r)
    if wide is not weight:
        weight.copy_(wide)
