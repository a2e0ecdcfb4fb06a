"""The difference between two paired runs after a step, read as a multiple of the weight."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halflife.laws.probe import BASE, Bench, Condition
from halflife.laws.slots import Slot

__all__ = ["NOISE", "UNIFORM", "Pairs", "Reading", "fit", "listed"]

UNIFORM = 2e-3  # largest relative spread of a fraction that counts as one number
NOISE = 16  # rounding errors of a weight that a difference may be without meaning anything


@dataclass(frozen=True)
class Reading:
    """What one step did.

    Args:
        form: "nothing"; a multiple of the weight "before" or "after" the update; "masked", a multiple on some elements
            only; "varied".
        r: The fraction.
        active: Where a mask lets it act.
    """

    form: str
    r: float = math.nan
    active: Tensor | None = None

    def like(self, other: Reading) -> bool:
        """Return whether both show the same decay; a mask may let everything pass, or nothing."""
        return self.form == other.form or (other.form == "masked" and self.form in {"before", "nothing"})


class Pairs:
    """The paired runs of one slot.

    Args:
        bench: Where they run.
        index: The number of the slot.
    """

    def __init__(self, bench: Bench, index: int) -> None:
        self.bench, self.index = bench, index
        self.slot: Slot = bench.slots[index]
        self.tolerance = 1e-4 if bench.exact else 1e-2  # between the fractions of two runs

    def weights(self, condition: Condition, step: int = 0) -> tuple[Tensor, Tensor]:
        """Return the weight before and after a step."""
        return self.bench.run(condition)[step][self.index]

    def difference(self, condition: Condition, step: int = 0) -> Tensor:
        """Return the weight minus that of the run without decay."""
        return self.weights(condition, step)[1] - self.weights(condition.without_decay, step)[1]

    def reading(self, condition: Condition, step: int = 0) -> Reading:
        """Return which multiple of the weight the paired runs differ by."""
        difference = self.difference(condition, step)
        before, after = self.weights(condition.without_decay, step)
        size, largest = _size(difference), max(_size(before), _size(after))
        noise = NOISE * torch.finfo(difference.dtype).eps * largest
        if size <= noise:
            return Reading("nothing", 0.0)
        (r, miss), (r_after, miss_after) = fit(difference, before), fit(difference, after)
        undecided = abs(r) * _size(after - before) <= noise  # both fit: the update is too small to tell them apart
        if min(miss, miss_after) <= UNIFORM:
            return Reading("before", r) if miss <= miss_after or undecided else Reading("after", r_after)
        active = difference.abs() > 0.05 * size * before.abs() / _size(before)
        if 0 < int(active.sum()) < active.numel():
            r, miss = fit(difference * active, before * active)
            if miss <= UNIFORM and _size(difference * ~active) <= UNIFORM * size:
                return Reading("masked", r, active)
        return Reading("varied")

    def memory(self, first: Reading, step: int = 0) -> float:
        """Return how much of the first step's effect the two steps after it, at weight 0, show."""
        worst = 0.0
        for later in (1, 2):
            difference = self.difference(BASE, later)
            if first.form == "after":
                difference = difference + first.r * self.weights(BASE.without_decay, later)[1]
            worst = max(worst, _size(difference))
        return worst / max(_size(self.difference(BASE, step)), 1e-300)

    def added(self, condition: Condition, multiple: float, step: int = 0) -> Tensor:
        """Return what ``lam * w``, added to the gradient from outside, does to the weight."""
        outside = replace(condition.without_decay, penalty=condition.lam * multiple)
        return self.weights(outside, step)[1] - self.weights(condition.without_decay, step)[1]

    def equals_penalty(self, condition: Condition, multiple: float = 1.0) -> bool:
        """Return whether ``lam * w`` added to the gradient from outside gives the same trajectory."""
        outside = replace(condition.without_decay, penalty=condition.lam * multiple)
        tolerance = 1e-5 if self.bench.exact else 1e-2
        for step in range(len(condition.steps)):
            inside, other = self.weights(condition, step)[1], self.weights(outside, step)[1]
            noise = NOISE * torch.finfo(inside.dtype).eps * _size(inside)
            if _size(inside - other) > tolerance * _size(self.difference(condition, step)) + noise:
                return False
        return True

    def same(self, condition: Condition) -> bool:
        """Return whether the paired runs are equal to the last bit."""
        tracks = self.bench.run(condition), self.bench.run(condition.without_decay)
        return all(torch.equal(one[self.index][1], other[self.index][1]) for one, other in zip(*tracks, strict=True))

    def close(self, r: float, other: float) -> bool:
        """Return whether two fractions are the same number."""
        return abs(r - other) <= self.tolerance * abs(other)

    def long_run(self) -> float:
        """Return the fraction that the step at weight 1 takes in all, momentum's share included; NaN if unknown."""
        weight = self.weights(BASE)[0]
        shares = [_projection(self.difference(BASE, step), weight) for step in (0, 1, 2)]
        ratio = shares[2] / shares[1] if shares[1] else 0.0
        return -(shares[0] + shares[1] / (1.0 - ratio)) if abs(ratio) < 1.0 else math.nan


def fit(difference: Tensor, weight: Tensor) -> tuple[float, float]:
    """Fit ``difference = -r * weight`` by least squares.

    Args:
        difference: What the decay did.
        weight: The weight that it may be a multiple of.

    Returns:
        ``r``, and the largest miss relative to the largest difference.
    """
    r = -_projection(difference, weight)
    return r, _size(difference + r * weight) / max(_size(difference), 1e-300)


def listed(readings: Iterable[Reading]) -> str:
    """Return the fractions of several steps as text."""
    return ", ".join("not one number" if math.isnan(each.r) else f"{each.r:.4g}" for each in readings)


def _size(tensor: Tensor) -> float:
    return tensor.abs().max().item()


def _projection(difference: Tensor, weight: Tensor) -> float:
    square = weight.square().sum().item()
    return (difference * weight).sum().item() / square if square > 0.0 else 0.0
