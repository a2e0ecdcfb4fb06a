"""Cautious decay: only where the update goes towards zero too."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeGuard

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions.base import LOW, Action, Work, precision_of, unless_skipped
from halflife.optim.actions.directions import direction_of
from halflife.optim.by_parameter import ByParameter
from halflife.optim.norms import local

__all__ = ["MaskedShrink", "shrink_where_agreed"]

# On a CPU the pass runs over pieces that stay in the cache: the arithmetic has several steps, the memory is
# read and written once.
PIECE = 1 << 19


class MaskedShrink(Action):
    """Shrink where the update agrees with the weight.

    Where the sign of the update is known before the step, at once. Elsewhere the weights are copied, and the
    difference that the step made is looked at after it: then an update that rounding swallows (bfloat16
    weights, small learning rate) counts as 0, which agrees.
    """

    def __init__(self) -> None:
        # Kept from step to step: making them anew costs page faults.
        self._copies: ByParameter[Tensor] = ByParameter()
        self._scratch: dict[torch.dtype, Tensor] = {}

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink, or copy the weights."""
        pairs = []
        for each in work:
            for parameter in each.parameters:
                shard = local(parameter)
                direction = direction_of(optimizer, each.group, parameter)
                if direction is not None and parameter.grad is not None:
                    self._copies.pop(parameter)  # of a step with a sparse gradient
                    memory = None if direction.memory is None else local(direction.memory)
                    update = memory, local(parameter.grad), direction.gain
                    _run(_shrink_along, shard, update, _fraction(optimizer, each.answer, shard), self._scratch)
                    continue
                copy = self._copies.get(parameter)
                if copy is None or (copy.shape, copy.dtype, copy.device) != (shard.shape, shard.dtype, shard.device):
                    copy = self._copies[parameter] = torch.empty_like(shard)
                pairs.append((copy, shard))
        if pairs:
            torch._foreach_copy_([copy for copy, _ in pairs], [shard for _, shard in pairs], non_blocking=True)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink what was copied, unless the step was skipped."""
        for each in work:
            for parameter in each.parameters:
                if parameter in self._copies:
                    shard = local(parameter)
                    r = _fraction(optimizer, each.answer, shard)
                    _run(_shrink_back, shard, (self._copies[parameter],), r, self._scratch)

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Let go of copies of parameters that may be gone."""
        self._copies = ByParameter()


def _fraction(optimizer: Optimizer, r: float | Tensor, weight: Tensor) -> float | Tensor:
    """Return the fraction, 0 if the step is skipped; a number where reading it waits for nothing."""
    found_inf = getattr(optimizer, "found_inf", None)
    if found_inf is None and not isinstance(r, Tensor):
        return r
    made = unless_skipped(r, 0.0, found_inf, weight.device, precision_of(weight))
    return float(made) if made.device.type == "cpu" else made


def shrink_where_agreed(weight: Tensor, before: Tensor, r: float | Tensor) -> None:
    """Subtract ``r * before`` in place where ``(before - weight) * before >= 0``.

    Args:
        weight: The weight after the update.
        before: The weight before it, of the same shape.
        r: The fraction.
    """
    _run(_shrink_back, weight, (before,), r, {})


def _run(
    shrink: Callable[..., None],
    weight: Tensor,
    others: tuple[Tensor | float | None, ...],
    r: float | Tensor,
    scratch: dict[torch.dtype, Tensor],
) -> None:
    """Call ``shrink(weight, *others, r, room)``, on a CPU piece by piece, in float32 for narrower types."""
    if weight.is_complex():
        weight = torch.view_as_real(weight)
        others = tuple(torch.view_as_real(each) if _elementwise(each) else each for each in others)
    tensors = [each for each in others if _elementwise(each)]
    wide = torch.float32 if weight.dtype in LOW else weight.dtype
    if weight.device.type != "cpu" or not all(each.is_contiguous() for each in (weight, *tensors)):
        _widened(shrink, weight, others, r, wide, None)
        return
    room = scratch.get(wide)
    if room is None:
        room = scratch[wide] = torch.empty(PIECE, dtype=wide)
    flat = weight.view(-1)
    for start in range(0, flat.numel(), PIECE):
        part = slice(start, start + PIECE)
        piece = flat[part]
        parts = tuple(each.view(-1)[part] if _elementwise(each) else each for each in others)
        _widened(shrink, piece, parts, r, wide, room[: piece.numel()])


def _widened(
    shrink: Callable[..., None],
    weight: Tensor,
    others: tuple[Tensor | float | None, ...],
    r: float | Tensor,
    wide: torch.dtype,
    room: Tensor | None,
) -> None:
    """Call ``shrink`` on tensors of the type ``wide``."""
    if weight.dtype == wide:
        shrink(weight, *others, r, room)
        return
    widened = weight.to(wide)
    shrink(widened, *(each.to(wide) if _elementwise(each) else each for each in others), r, room)
    weight.copy_(widened)


def _elementwise(value: object) -> TypeGuard[Tensor]:
    return isinstance(value, Tensor) and value.ndim > 0


def _shrink_back(weight: Tensor, before: Tensor, r: float | Tensor, room: Tensor | None) -> None:
    """Subtract ``r * before`` where the step agreed with ``before``.

    ``(before - weight) * before >= 0`` is ``weight / before <= 1``: one step less, and nothing underflows.
    Rounding does not matter: the quotient of two neighbouring numbers is never rounded to 1 from above. Where
    ``before`` is 0 there is nothing to subtract.
    """
    mask = torch.div(weight, before, out=room).le_(1.0)
    _subtract(weight, before, mask, r)


def _shrink_along(
    weight: Tensor,
    memory: Tensor | None,
    gradient: Tensor,
    gain: float | Tensor,
    r: float | Tensor,
    room: Tensor | None,
) -> None:
    """Subtract ``r * weight`` where ``(memory + gain * gradient) * weight >= 0``."""
    if memory is None:
        update = torch.mul(gradient, gain, out=room)
    elif isinstance(gain, Tensor):
        update = torch.addcmul(memory, gradient, gain, out=room)
    else:
        update = torch.add(memory, gradient, alpha=gain, out=room)
    mask = update.div_(weight).ge_(0.0)  # a quotient has the sign of the product, and does not underflow
    _subtract(weight, weight, mask, r)


def _subtract(weight: Tensor, amount: Tensor, mask: Tensor, r: float | Tensor) -> None:
    if isinstance(r, Tensor):
        weight.addcmul_(amount, mask.mul_(r), value=-1.0)
    else:
        weight.addcmul_(amount, mask, value=-r)
