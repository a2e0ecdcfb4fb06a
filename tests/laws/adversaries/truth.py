"""What an optimizer really does to each weight: measured by stepping the real one, built anew for the purpose."""

from __future__ import annotations

import fnmatch
import itertools
import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.laws.adversaries.parts import Entry, Made, filled, zero_grads

__all__ = ["CALLS", "Truth", "measured", "optimizers_of", "stepped", "truths"]

CALLS = 12
SAME = 2e-5  # relative: float32's rounding of one product and what a difference makes of it


@dataclass(frozen=True)
class Truth:
    """What one weight does.

    Attributes:
        form: "still" (nothing of it is removed), "shrinks" (a fraction of it at each call that acts), "moves" (what is
            removed depends on the weight, and is not one fraction), "other" (a pull to another point than 0, or a
            fraction that depends on the weights), "elsewhere" (a pull to where it is), or "any" (nothing can be said).
        r: Numbers that are right for the fraction that a call which acts removes.
        every: It acts at every n-th call.
        first: What the first call that acts removes; nan if that is not one fraction.
        half_life: Calls until half of it is gone, from what was removed over all calls; nan if unknown.
    """

    form: str
    r: tuple[float, ...] = ()
    every: int = 1
    half_life: float = math.nan
    first: float = math.nan


def optimizers_of(made: Made) -> list[Optimizer]:
    return list(made[1]) if isinstance(made[1], list) else [made[1]]


def by_name(model: nn.Module) -> dict[str, Tensor]:
    return dict(model.named_parameters())


def steps(made: Made, *, closure: bool = False) -> None:
    """One call of every optimizer; a closure leaves the gradients as they are."""
    for optimizer in optimizers_of(made):
        optimizer.step(*([lambda: 0.0] if closure else []))


def one_fraction(before: Tensor, after: Tensor, same: float) -> float | None:
    """The fraction that is missing, if it is the same in all elements."""
    keep = (after.double() if not after.is_complex() else after.to(torch.complex128)) / before
    first: Any = keep.flatten()[0]
    if keep.is_complex() and abs(first.imag) > same:
        return None
    return None if bool(((keep - first).abs() > same * max(1.0, float(abs(first)))).any()) else 1.0 - float(first.real)


def told(trace: list[Tensor], same: float = SAME) -> Truth:
    """Read the truth from the weights (or the differences of two runs) before the first and after each call.

    Fractions below ``same`` are none, and those that differ by less are one; dtypes of 16 bits round by more.
    """
    if trace[0].dtype in {torch.bfloat16, torch.float16}:
        same = 2.0 * torch.finfo(trace[0].dtype).eps
    if trace[0].numel() == 0:
        return Truth("any")
    assert not any(bool(now.isnan().any()) for now in trace), "the optimizer makes NaN: choose other settings"
    if all(torch.equal(trace[0], now) for now in trace):
        return Truth("still")
    fractions = []
    for before, after in itertools.pairwise(trace):
        if not bool((before != 0).all()):
            return Truth("moves")
        fraction = one_fraction(before, after, same)
        if fraction is None:
            return Truth("moves")
        fractions.append(fraction)
    if all(abs(fraction) < same for fraction in fractions):
        return Truth("still")
    acting = [index for index, fraction in enumerate(fractions) if abs(fraction) >= same]
    first = fractions[acting[0]]
    logs = sum(math.log1p(-fraction) for fraction in fractions) if max(fractions) < 1.0 else -math.inf
    half_life = math.log(2.0) * len(fractions) / -logs if logs < 0.0 else math.nan
    gaps = {after - before for before, after in itertools.pairwise(acting)}
    if len(gaps) > 1 or any(abs(fractions[index] - first) > max(1e-3 * abs(first), same) for index in acting):
        return Truth("moves", half_life=half_life, first=first)
    every = gaps.pop() if gaps else len(fractions)
    half_life = math.log(2.0) * every / -math.log1p(-first) if first < 1.0 else math.nan
    return Truth("shrinks", (first,), every, half_life, first)


def copies(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def stepped(made: Made, *, closure: bool = False, same: float = SAME, calls: int = CALLS) -> dict[str, Truth]:
    """What some calls with gradients of zeros do to each parameter, by name."""
    model = made[0]
    traces: dict[str, list[Tensor]] = {name: [value] for name, value in copies(model).items()}
    for _ in range(calls):
        zero_grads(model)
        steps(made, closure=closure)
        for name, value in copies(model).items():
            traces[name].append(value)
    return {name: told(trace, same) for name, trace in traces.items()}


def with_zeros(entry: Entry) -> dict[str, Truth]:
    with filled():
        made = entry.make()
    return stepped(made, closure=entry.closure)


def with_pairs(entry: Entry) -> dict[str, Truth]:
    """Step two runs under the same random gradients, one from weights halved: how does their difference shrink?"""
    runs = []
    for scale in (1.0, 0.5):
        with filled():
            made = entry.make()
        model = made[0]
        with torch.no_grad():
            for p in model.parameters():
                p.mul_(scale)
        trace = [copies(model)]
        generator = torch.Generator().manual_seed(1)
        for _ in range(CALLS):
            for p in model.parameters():
                if p.requires_grad or p.grad is not None:
                    # dyadic, so that sums of them and of weights are exact for some steps
                    p.grad = (torch.randint(-2, 3, p.shape, generator=generator) / 64.0).to(p.dtype)
            steps(made, closure=entry.closure)
            trace.append(copies(model))
        runs.append(trace)
    return {name: told([one[name] - two[name] for one, two in zip(*runs, strict=True)]) for name in runs[0][0]}


def measured(entry: Entry) -> dict[str, Truth]:
    return {"zeros": with_zeros, "pairs": with_pairs}[entry.how](entry)


def from_hand(value: str | float) -> Truth:
    if isinstance(value, str):
        return Truth(value)
    half_life = math.log(2.0) / -math.log1p(-value) if 0.0 < value < 1.0 else math.nan
    return Truth("shrinks", (value,), 1, half_life, value)


def truths(entry: Entry) -> dict[str, Truth]:
    """The truth of every parameter, by name."""
    by_hand = {pattern: from_hand(value) for pattern, value in entry.hand.items()}
    if "*" in by_hand:
        names = list(by_name(entry.make()[0]))
        found: dict[str, Truth] = {}
    else:
        found = measured(entry)
        names = list(found)
    result: dict[str, Any] = {}
    for name in names:
        pattern = next((pattern for pattern in by_hand if fnmatch.fnmatchcase(name, pattern)), None)
        truth = found[name] if pattern is None else by_hand[pattern]
        moves = truth.form in {"shrinks", "moves"}
        result[name] = replace(truth, r=truth.r + entry.also) if moves else truth
    return result
