"""Decay of weights in few bits that is put off until it counts, simulated in float32 for any number of bits.

For each parameter group the sum of ``-ln(1 - r)`` is kept, and now and then, after an update, a pass removes it, with the
rounding of `halflife.precision.shrinking`. With 7 bits it is ``low_precision="accumulate"`` of `halflife.attach` on weights in
bfloat16.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from halflife.optim.actions.accumulate import EVERY, LARGE, LEAST
from halflife.precision.shrinking import shrink

__all__ = ["PendingDecay"]


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
            before = torch.cat([weight.detach().flatten() for weight in weights]).double()
            starts = [0, *itertools.accumulate(weight.numel() for weight in weights[:-1])]
            shrink(weights, starts, factor.item(), turn=self.passes[index], bits=self.bits)
            after = torch.cat([weight.detach().flatten() for weight in weights]).double()
            wanted += (1 - factor.item()) * float(before.square().sum())
            realized += float((before * (before - after)).sum())
            self.sums[index] = max(0.0, total + math.log(factor.item()))  # what a float32 factor has left
            self.steps[index], self.passes[index] = 0, self.passes[index] + 1
        if wanted > 0:
            self.lost = 1 - realized / wanted
