"""Cautious decay: only where the update goes towards zero too."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions.base import Action, Work, precision_of, unless_skipped
from halflife.optim.actions.directions import direction_of
from halflife.optim.actions.kernels import LEAST_ELEMENTS, LEAST_IN_ALL, Kernel, in_compiled_step, only_compiled
from halflife.optim.by_parameter import ByParameter
from halflife.optim.norms import as_real, local

__all__ = ["MaskedShrink"]

# On a CPU the pass runs over pieces that stay in the cache: the arithmetic has several steps, the memory is
# read and written once.
PIECE = 1 << 19


class MaskedShrink(Action):
    """Shrink where the update agrees with the weight.

    Where the sign of the update is known before the step, at once. Elsewhere the weights are copied, and the
    difference that the step made is looked at after it: then an update that rounding swallows (bfloat16
    weights, small learning rate) counts as 0, which agrees.

    The arithmetic has several steps. On large models `halflife.optim.actions.kernels` makes one pass of them, equal to
    the eager arithmetic to rounding, on contiguous tensors; not in a step that torch.compile has taken apart.
    """

    def __init__(self) -> None:
        # Kept from step to step: making them anew costs page faults.
        self._copies: ByParameter[Tensor] = ByParameter()
        self._scratch: dict[torch.dtype, Tensor] = {}
        self._shrunk: ByParameter[int] = ByParameter()  # versions of weights that a step has shrunk which then failed
        self._fused = False  # whether this step may use kernels

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink, or copy the weights."""
        pairs = []
        self._fused = _many(work) and not in_compiled_step()
        for each in work:
            for parameter in each.parameters:
                shard = local(parameter)
                direction = direction_of(optimizer, each.group, parameter)
                if direction is not None and parameter.grad is not None:
                    self._copies.pop(parameter)  # of a step with a sparse gradient
                    if self._shrunk.get(parameter) == parameter._version:
                        continue
                    memory = None if direction.memory is None else local(direction.memory)
                    update = memory, local(parameter.grad)
                    r = _fraction(optimizer, each.answer, shard)
                    fused = self._fused and not direction.first
                    self._run(_shrink_along, shard, update, (direction.gain, r), fused=fused)
                    continue
                copy = self._copies.get(parameter)
                if copy is None or (copy.shape, copy.dtype, copy.device) != (shard.shape, shard.dtype, shard.device):
                    copy = self._copies[parameter] = torch.empty_like(shard)
                pairs.append((copy, shard))
        self._shrunk = ByParameter()
        if pairs:
            torch._foreach_copy_([copy for copy, _ in pairs], [shard for _, shard in pairs], non_blocking=True)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Shrink what was copied, unless the step was skipped."""
        for each in work:
            for parameter in each.parameters:
                if parameter in self._copies:
                    shard = local(parameter)
                    r = _fraction(optimizer, each.answer, shard)
                    self._run(_shrink_back, shard, (self._copies[parameter],), (r,), fused=self._fused)

    def _run(
        self,
        shrink: Callable[..., None],
        weight: Tensor,
        others: tuple[Tensor | None, ...],
        numbers: tuple[float | Tensor, ...],
        *,
        fused: bool,
    ) -> None:
        """Call ``shrink(weight, *others, *numbers, room)``, or a kernel that does the same; on a CPU piece by piece."""
        precision = precision_of(weight)
        tensors = [None if each is None else as_real(each) for each in (weight, *others)]
        if not all(each is None or each.is_contiguous() for each in tensors):
            _widened(shrink, tensors, numbers, precision, None)
            return
        flat = [None if each is None else each.view(-1) for each in tensors]
        if fused and weight.numel() >= LEAST_ELEMENTS:
            kernel: Kernel = ALONG if shrink is _shrink_along else BACK
            plain = [None if each is None else each.detach() for each in flat]
            if kernel.run(*plain, *(_as_tensor(number, weight.device, precision) for number in numbers)):
                return
        if weight.device.type != "cpu":
            _widened(shrink, flat, numbers, precision, None)
            return
        room = self._scratch.get(precision)
        if room is None:
            room = self._scratch[precision] = torch.empty(PIECE, dtype=precision)
        elements = weight.numel() * (1 + weight.is_complex())
        if elements <= PIECE:
            _widened(shrink, flat, numbers, precision, room[:elements])
            return
        for start in range(0, elements, PIECE):
            part = slice(start, min(start + PIECE, elements))
            pieces = [None if each is None else each[part] for each in flat]
            _widened(shrink, pieces, numbers, precision, room[: part.stop - start])

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Leave these weights out of the next pass: the moments that gave the mask may have moved by now."""
        for each in work:
            for parameter in each.parameters:
                if parameter not in self._copies:
                    self._shrunk[parameter] = parameter._version

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


def _widened(
    shrink: Callable[..., None],
    tensors: Sequence[Tensor | None],
    numbers: Sequence[float | Tensor],
    precision: torch.dtype,
    room: Tensor | None,
) -> None:
    """Call ``shrink`` on tensors of the type ``precision``."""
    weight, *others = tensors
    assert weight is not None
    if weight.dtype == precision:
        shrink(weight, *others, *numbers, room)
        return
    widened = weight.to(precision)
    shrink(widened, *(None if each is None else each.to(precision) for each in others), *numbers, room)
    weight.copy_(widened)


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


def _many(work: Sequence[Work]) -> bool:
    """Return whether so many elements decay that a kernel pays; by the groups, because gradients come and go."""
    num_elements: int = sum(parameter.numel() for each in work for parameter in each.group["params"])
    return num_elements >= LEAST_IN_ALL


def _as_tensor(number: float | Tensor, device: torch.device, precision: torch.dtype) -> Tensor:
    """Return a number such that a kernel does not have to be compiled again for another one."""
    if isinstance(number, Tensor):
        return number.detach().to(device, precision, non_blocking=True)
    return torch.full((), number, dtype=precision, device=device)


def _along(weight: Tensor, memory: Tensor | None, gradient: Tensor, gain: Tensor, r: Tensor) -> None:
    """`_shrink_along` in one expression."""
    only_compiled()
    wide, update = weight.to(r.dtype), gain * gradient.to(r.dtype)
    if memory is not None:
        update = update + memory.to(r.dtype)
    agrees = torch.where(wide > 0.0, update >= 0.0, update <= 0.0)  # where the weight is 0 there is nothing to subtract
    weight.copy_(wide - torch.where(agrees, r * wide, 0.0))


def _back(weight: Tensor, before: Tensor, r: Tensor) -> None:
    """`_shrink_back` in one expression."""
    only_compiled()
    wide, old = weight.to(r.dtype), before.to(r.dtype)
    agrees = torch.where(old > 0.0, wide <= old, wide >= old)
    weight.copy_(wide - torch.where(agrees, r * old, 0.0))


def _eagerly(shrink: Callable[..., None], num_tensors: int) -> Callable[..., None]:
    """Return ``shrink`` as what a kernel is compared with."""

    def eager(*arguments: Tensor) -> None:
        *_, r = arguments
        _widened(shrink, arguments[:num_tensors], arguments[num_tensors:], r.dtype, None)

    return eager


ALONG = Kernel("cautious decay before the step", _along, _eagerly(_shrink_along, 3), num_flat=3)
BACK = Kernel("cautious decay after the step", _back, _eagerly(_shrink_back, 2), num_flat=2)
