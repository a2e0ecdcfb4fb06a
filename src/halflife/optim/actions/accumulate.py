"""The own pass on weights of few bits: decay that one step would round away is accumulated until it counts.

For each parameter in bfloat16 or float16 the sum ``s`` of ``-ln(1 - r)`` over its steps is kept, on the host where r is a
number. Now and then a pass ``w <- round(exp(-s) * w)`` is made, with the rounding of `halflife.precision.shrinking`, and s is
0 again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions.base import LOW, Work, unless_skipped
from halflife.optim.actions.shrink import Shrink, scale
from halflife.optim.by_parameter import ByParameter
from halflife.optim.norms import accumulator, local, shard_number
from halflife.precision.shrinking import shrink

__all__ = ["EVERY", "LARGE", "LEAST", "Accumulate"]

EVERY = 16  # steps between two passes: one costs up to ten times as much as a plain one
LEAST = 2.0**-14  # below it nothing is removed: the error of a product in float32 would no longer be small beside it
LARGE = 2.0**-5  # what is removed as soon as it is pending
SHARD = 0x9E37_79B9_7F4B  # places of weights that one shard has at most; odd, so that shards have other offsets


Number = float | Tensor


class _Pending:
    """What is pending for one parameter.

    Attributes:
        sum: Of ``-ln(1 - r)`` since the last pass; a 0-dim tensor where r is one on an accelerator.
        steps: Since the last pass, or since something is pending.
        passes: Made until now.
        before: The same three before the step that is being made.
    """

    __slots__ = ("before", "passes", "steps", "sum")

    def __init__(self, total: float = 0.0, steps: int = 0, passes: int = 0) -> None:
        self.sum: Number = total
        self.steps, self.passes = steps, passes
        self.before: tuple[Number, int, int] = total, steps, passes


class Accumulate(Shrink):
    """Multiply weights of few bits by what is left after some steps, and all others by ``1 - r`` at each.

    The pass comes after the update, when the step can no longer fail, so that no copy has to be kept; where r itself is
    large, before it, as the plain own pass does.

    Args:
        random: Whether offsets of the rounding are random, not even.

    Attributes:
        at_once: Whether all weights are shrunk at each step and rounded to nearest, for a probe that takes a few steps only.
    """

    acts_at_zero = True  # what is pending when a schedule reaches 0 still arrives

    def __init__(self, *, random: bool) -> None:
        self.at_once = False
        self._random = random
        self._held: ByParameter[_Pending] = ByParameter()
        self._copies: list[tuple[Tensor, Tensor]] = []  # for the time of a step
        self._skipped = False

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Add what the step asks for to what is pending."""
        if self.at_once:
            super().before(optimizer, work)
            return
        found_inf: Tensor | None = getattr(optimizer, "found_inf", None)
        self._copies, self._skipped = [], False
        if found_inf is not None and found_inf.device.type == "cpu":
            self._skipped, found_inf = bool(found_inf > 0), None
        for parameter in _low(work):
            held = self._of(parameter)
            held.before = held.sum, held.steps, held.passes
        if self._skipped:
            return
        try:
            for each in work:
                low = _low([each])
                self._add(each.answer, low, found_inf)
                if not isinstance(each.answer, Tensor) and each.answer >= LARGE:
                    self._copies += [(parameter, local(parameter).clone()) for parameter in low]
                    self._pass(each, low, found_inf)
        except BaseException:  # out of memory, say
            self._put_back(_low(work))
            raise
        for each in work:
            if isinstance(each.answer, Tensor) or each.answer > 0.0:
                scale(_wide(each), 1.0 - each.answer, found_inf)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Remove what is pending where it is time."""
        self._copies = []
        if self._skipped or self.at_once:
            return
        for each in work:
            due = [parameter for parameter in _low([each]) if _is_due(self._of(parameter))]
            if due:
                self._pass(each, due, getattr(optimizer, "found_inf", None))

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Put back what was pending, and weights to the bit; of other precisions up to rounding."""
        if self.at_once:
            super().undo(optimizer, work)
            return
        self._put_back(_low(work))
        for each in [] if self._skipped else work:
            scale(_wide(each), 1.0 / (1.0 - each.answer), getattr(optimizer, "found_inf", None))

    def pending(self, parameters: Sequence[Tensor]) -> tuple[float, ...]:
        """Return what is pending for some parameters: all sums, all steps since the last pass, all passes."""
        held = [self._held.get(parameter) or _Pending() for parameter in parameters]
        return (
            *(float(each.sum) for each in held),
            *(float(each.steps) for each in held),
            *(float(each.passes) for each in held),
        )

    def load_pending(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...]]]) -> None:
        """Start again from what `pending` returned for each group; from nothing where that is empty."""
        self._held = ByParameter()
        for parameters, values in saved:
            count = len(values) // 3
            for index, parameter in enumerate(parameters[:count]):
                total, steps, passes = values[index::count]
                self._held[parameter] = _Pending(total, int(steps), int(passes))

    def _put_back(self, parameters: Sequence[Tensor]) -> None:
        copies = {id(parameter): copy for parameter, copy in self._copies}
        self._copies = []
        for parameter in parameters:
            held = self._of(parameter)
            held.sum, held.steps, held.passes = held.before
            if id(parameter) in copies:
                local(parameter).copy_(copies[id(parameter)])

    def _of(self, parameter: Tensor) -> _Pending:
        held = self._held.get(parameter)
        if held is None:
            held = self._held[parameter] = _Pending()
        return held

    def _add(self, r: Number, low: Sequence[Tensor], found_inf: Tensor | None) -> None:
        added: dict[
            tuple[object, ...], tuple[Number, Number]
        ] = {}  # what there was and is now, by device and what there was
        share = -math.log1p(-r) if not isinstance(r, Tensor) else -torch.log1p(-r.to(accumulator(r.device)))
        on_host = not isinstance(share, Tensor) and found_inf is None
        for parameter in low:
            held = self._of(parameter)
            if on_host:
                held.sum = held.sum + share
            else:  # parameters with the same history share one tensor
                key = parameter.device, _key(held.sum)
                if key not in added:
                    dtype = accumulator(parameter.device)
                    more = unless_skipped(share, 0.0, found_inf, parameter.device, dtype)
                    added[key] = held.sum, held.sum + more  # what there was lives as long as its id is a key
                held.sum = added[key][1]
            held.steps += isinstance(held.sum, Tensor) or held.sum > 0.0

    def _pass(self, work: Work, parameters: Sequence[Tensor], found_inf: Tensor | None) -> None:
        """Remove what is pending for some parameters of a group: in one go for those with the same history."""
        starts = _places(work.group["params"])
        alike: dict[tuple[object, ...], list[Tensor]] = {}
        for parameter in parameters:
            held = self._of(parameter)
            key = parameter.device, parameter.dtype, _key(held.sum), held.passes
            alike.setdefault(key, []).append(parameter)
        for members in alike.values():
            first = self._of(members[0])
            passes = first.passes
            factor, rest = _left(first.sum, found_inf)
            seed = (work.info.group << 32) + passes if self._random else None
            shards = [local(parameter) for parameter in members]
            shrink(shards, [starts[id(parameter)] for parameter in members], factor, turn=passes, seed=seed)
            for parameter in members:
                held = self._of(parameter)
                held.sum, held.steps, held.passes = rest, 0, passes + 1


def _low(work: Sequence[Work]) -> list[Tensor]:
    return [parameter for each in work for parameter in each.parameters if parameter.dtype in LOW]


def _wide(work: Work) -> list[Tensor]:
    return [parameter for parameter in work.parameters if parameter.dtype not in LOW]


def _key(total: Number) -> tuple[bool, float]:
    """Return what is the same for sums that are: tensors are told apart by their ids, so that none is read."""
    return (True, id(total)) if isinstance(total, Tensor) else (False, total)


def _is_due(held: _Pending) -> bool:
    if isinstance(held.sum, Tensor):
        return held.steps >= EVERY
    return held.sum >= LARGE or (held.steps >= EVERY and held.sum >= LEAST)


def _left(total: Number, found_inf: Tensor | None) -> tuple[Number, Number]:
    """Return the factor that removes a sum, as a float32 that is not too small, and what of the sum it leaves."""
    if isinstance(total, Tensor):
        return _left_on_device(total, found_inf)
    exact = math.exp(-total)
    factor = torch.tensor(exact, dtype=torch.float32)
    if factor.item() < exact:
        factor = torch.nextafter(factor, torch.ones(()))
    return factor.item(), max(0.0, total + math.log(factor.item()))


def _left_on_device(total: Tensor, found_inf: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the same on a device; where there is too little, or the step is skipped, the factor is 1."""
    exact = (-total).exp()
    factor = exact.float()
    factor = torch.where(factor < exact, torch.nextafter(factor, torch.ones_like(factor)), factor)
    acts = total >= LEAST
    if found_inf is not None:
        acts = acts & (found_inf.to(total.device, non_blocking=True) <= 0).reshape(())
    factor = torch.where(acts, factor, 1.0)
    return factor, (total + factor.to(total.dtype).log()).clamp(min=0.0)


def _places(parameters: Sequence[Tensor]) -> dict[int, int]:
    """Return where each parameter of few bits begins among all of its group; no two shards of one have a place in common."""
    places: dict[int, int] = {}
    end = 0
    for parameter in parameters:
        if parameter.dtype in LOW:
            places[id(parameter)] = end + shard_number(parameter) * SHARD
            end += parameter.numel()  # of all shards: what stands after it has one place in all processes
    return places
