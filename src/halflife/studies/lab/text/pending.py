"""Decay of weights in few bits that is put off until it counts, simulated in float32 for any number of bits.

For each parameter group the sum ``s`` of ``-ln(1 - r)`` is kept. Now and then, after an update, a pass removes it,

    w <- floor(exp(-s) |w| / ulp + u) ulp, with the sign of w
    u = i (sqrt(2) - 1) + n (sqrt(5) - 1) / 2, without its whole part

for weight i of the group at its pass n, with ``ulp`` the distance of neighbours. Over passes u is spread evenly over [0, 1), so
that decay is right on average although each pass is less than a half ``ulp``. With 7 bits it is ``low_precision="accumulate"``
of `halflife.attach` on weights in bfloat16.

Source: Weyl, "Über die Gleichverteilung von Zahlen mod. Eins" (1916), for offsets that are spread evenly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["PendingDecay", "shrink"]

EVERY = 16  # steps between two passes
LEAST = 2.0**-14  # below it nothing is removed
LARGE = 2.0**-5  # what is removed as soon as it is pending
PIECE = 1 << 16  # weights, whose offsets are summed before their last bits are cut
BY_WEIGHT, BY_PASS = 1_779_033_703, 2_654_435_769  # 2^32 times the fractions above
BELOW_WHOLE = (1 << 32) - 1


class PendingDecay:
    """What is pending for the weights of some groups.

    Args:
        groups: The weights, group by group.
        bits: Explicit mantissa bits.

    Attributes:
        lost: The share of the last pass that did not arrive, < 0 if more did than should.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], bits: int) -> None:
        self.groups, self.bits = groups, bits
        self.sums, self.steps, self.passes = [0.0] * len(groups), [0] * len(groups), [0] * len(groups)
        self.lost = 0.0

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to hold, as JSON."""
        return {"sums": self.sums, "steps": self.steps, "passes": self.passes, "lost": self.lost}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        count = len(self.groups)
        if not all(len(state[name]) == count for name in ("sums", "steps", "passes")):
            raise ValueError(f"pending decay is of {len(state['sums'])} groups, expected {count}")
        self.sums = [float(each) for each in state["sums"]]
        self.steps, self.passes = ([int(each) for each in state[name]] for name in ("steps", "passes"))
        self.lost = float(state["lost"])

    def add(self, fractions: Sequence[float]) -> None:
        """Take in what a step asks of each group, before its update; what is large is removed at once."""
        for index, r in enumerate(fractions):
            self.sums[index] -= math.log1p(-r)
            self.steps[index] += self.sums[index] > 0
        self._remove([index for index, r in enumerate(fractions) if r >= LARGE])

    def remove(self) -> None:
        """Remove what is pending where it is time; after the update."""
        waited = [steps >= EVERY and total >= LEAST for steps, total in zip(self.steps, self.sums, strict=True)]
        self._remove([index for index, total in enumerate(self.sums) if total >= LARGE or waited[index]])

    def _remove(self, due: Sequence[int]) -> None:
        wanted = realized = 0.0
        for index in due:
            total, weights = self.sums[index], list(self.groups[index])
            exact = math.exp(-total)
            factor = torch.tensor(exact, dtype=torch.float32)
            if factor.item() < exact:
                factor = torch.nextafter(factor, torch.ones(()))
            flat = torch.cat([weight.detach().flatten() for weight in weights])
            new = shrink(flat, factor.item(), self.passes[index], self.bits)
            wanted += (1 - factor.item()) * float(flat.double().square().sum())
            realized += float((flat.double() * (flat - new).double()).sum())
            parts = torch.split(new, [weight.numel() for weight in weights])
            torch._foreach_copy_(weights, [part.view_as(weight) for part, weight in zip(parts, weights, strict=True)])
            self.sums[index] = max(0.0, total + math.log(factor.item()))  # what a float32 factor has left
            self.steps[index], self.passes[index] = 0, self.passes[index] + 1
        if wanted > 0:
            self.lost = 1 - realized / wanted


def shrink(flat: Tensor, factor: float, turn: int, bits: int) -> Tensor:
    """Multiply, each element rounded down or up against its offset.

    Args:
        flat: float32 numbers, one after the other, of ``bits`` explicit mantissa bits.
        factor: In (0, 1].
        turn: n.
        bits: Of the result.

    Returns:
        The result.
    """
    shift = 23 - bits
    product = flat * factor
    if shift == 0:
        return product
    place = torch.arange(len(flat), device=flat.device)
    start = (place // PIECE) * PIECE
    offset = _cut((place - start) * BY_WEIGHT, shift) + _cut(start * BY_WEIGHT + turn * BY_PASS % (1 << 32), shift)
    i = product.view(torch.int32)
    i += offset.bitwise_and_((1 << shift) - 1).to(torch.int32)
    i &= -(1 << shift)
    return product


def _cut(offset: Tensor, shift: int) -> Tensor:
    """The first bits of fractions of 32 bits."""
    return offset.bitwise_and_(BELOW_WHOLE).bitwise_right_shift_(32 - shift)
