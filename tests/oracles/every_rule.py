"""Every rule and applier once, on a small transformer: what the tests of resume, precision, compiling, lifecycle and
distributed training run through.

It says nothing about what a rule must answer: these tests compare a run with the same run done in another way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.optim.attaching import Handle, attach
from halflife.rules import (
    L2,
    Applier,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    MovingAverage,
    Normalized,
    NormTarget,
    Penalty,
    PerGroup,
    Rule,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import cosine, until

LAM = 0.3  # large, so that a decay that is lost, doubled or late shows
STEPS = 8
HALF = 4
# Times the peak of each group. Starts at 0 as a warm-up does, touches 0 in the middle, never returns to the peak.
FACTORS = (0.0, 1.0, 0.9, 0.5, 0.6, 0.0, 0.35, 0.2)
PEAKS = (0.03, 0.01, 0.02)

WIDTH, TOKENS, LENGTH = 5, 11, 4


class Block(nn.Module):
    """Attention and a network, of sizes that two processes cannot share evenly: 15 and 7 rows."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv = nn.Linear(
            WIDTH, 3 * WIDTH, bias=False
        )  # a key's bias has no gradient but rounding, which Adam would blow up
        self.up = nn.Linear(WIDTH, 7)
        self.down = nn.Linear(7, WIDTH)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Return the sum of the input and what the block adds to it."""
        query, key, value = self.qkv(self.norm(x_BLD)).chunk(3, dim=-1)
        mixed = torch.softmax(query @ key.transpose(-1, -2) / WIDTH**0.5, dim=-1) @ value
        added: Tensor = x_BLD + mixed + self.down(torch.tanh(self.up(x_BLD + mixed)))
        return added


class Net(nn.Module):
    """A transformer of one block, whose head has one row."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = nn.Embedding(TOKENS, WIDTH)
        self.position = nn.Parameter(torch.empty(LENGTH, WIDTH))
        self.block = Block()
        self.head = nn.Linear(WIDTH, 1)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)

    def forward(self, tokens_BL: Tensor) -> Tensor:
        """Return one number per sequence."""
        found: Tensor = self.head(self.block(self.embed(tokens_BL) + self.position)).mean(dim=(1, 2))
        return found


def batch(step: int, size: int = 8) -> tuple[Tensor, Tensor]:
    """Return the tokens and goals of a step."""
    generator = torch.Generator().manual_seed(1000 + step)
    return torch.randint(0, TOKENS, (size, LENGTH), generator=generator), torch.randn(size, generator=generator)


def groups_of(model: nn.Module, *, names: bool = True) -> list[dict[str, Any]]:
    """Three groups: matrices of the block and the head, tables, and what does not decay."""
    split: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for name, parameter in model.named_parameters():
        which = 2 if parameter.ndim < 2 else 1 if name in {"embed.weight", "position"} else 0
        split[which].append((name, parameter) if names else parameter)
    decays = (LAM, LAM, 0.0)
    return [
        {"params": params, "weight_decay": decay, "lr": peak, "initial_lr": peak}
        for params, decay, peak in zip(split, decays, PEAKS, strict=True)
    ]


def reference(scale: float = 1.0) -> dict[str, Tensor]:
    """Return tensors to decay towards, by name."""
    return {name: scale * parameter.detach() for name, parameter in Net(seed=7).named_parameters()}


def reference_in_order() -> list[Tensor]:
    """Return the same in the order of the optimizer's parameters."""
    return [tensor.detach() for group in groups_of(Net(seed=7), names=False) for tensor in group["params"]]


@dataclass(frozen=True)
class Case:
    """A rule, and how to run it.

    Args:
        name: For the test's id.
        rule: Makes it.
        numbers: Further arguments of `attach`.
        sgd: Whether it runs on SGD with momentum instead of AdamW.
        collectives: What it costs under FSDP2, per step at lr > 0.
        at_rest: The same at lr == 0.
        first: What its first step at lr > 0 costs beyond that.
        lost: What the warning says is lost when a checkpoint without halflife is loaded; None if nothing is.
    """

    name: str
    rule: Callable[[], Rule | Applier | Penalty]
    numbers: dict[str, float] = field(default_factory=dict)
    sgd: bool = False
    collectives: int = 0
    at_rest: int = 0
    first: int = 0
    lost: str | None = None

    def optimizer(self, groups: Sequence[dict[str, Any]], **settings: Any) -> Optimizer:
        """Return a new optimizer for these groups."""
        if self.sgd:
            return torch.optim.SGD(groups, lr=PEAKS[0], momentum=0.9, dampening=0.25, **settings)
        return torch.optim.AdamW(groups, lr=PEAKS[0], betas=(0.9, 0.95), **settings)

    def attach(self, optimizer: Optimizer, **arguments: Any) -> Handle:
        """Attach a new rule of this kind."""
        return attach(optimizer, self.rule(), **{**self.numbers, **arguments})


CASES = [
    Case("decoupled", lambda: Decoupled(LAM)),
    Case("decoupled-own", Decoupled),
    Case("decoupled-sgd", lambda: Decoupled(LAM), sgd=True),
    Case("independent", lambda: Independent(LAM), lost="peak_lr"),
    Case("constant", lambda: Constant(0.05)),
    Case("corrected", lambda: Corrected(LAM), lost="peak_lr"),
    Case("stable", lambda: Stable(0.1), collectives=1, at_rest=1),
    Case("stable-beta2", lambda: Stable(0.1, beta2=0.8), sgd=True, collectives=1, at_rest=1, lost="second_moment"),
    Case("stable-sgd", lambda: Stable(LAM), sgd=True),
    Case("half-life", lambda: HalfLife(epochs=2), {"steps_per_epoch": 4.5}),
    Case("normalized", lambda: Normalized(0.1, steps=2, factor=2.0), lost="peak_lr and step"),
    Case("norm-target", lambda: NormTarget(1.5), collectives=1),
    Case("norm-target-first", NormTarget, collectives=1, first=1, lost="initial_norm"),
    Case("sphere-net", lambda: Sphere(4.0), collectives=1),
    Case("sphere-net-first", Sphere, collectives=1, first=1, lost="initial_norm"),
    Case("sphere-tensor", lambda: Sphere(per="tensor"), sgd=True, collectives=1, first=1, lost="initial_norm"),
    Case("cautious", lambda: Cautious(Decoupled(LAM))),
    Case("cautious-stable", lambda: Cautious(Stable(0.1)), collectives=1, at_rest=1),
    Case("toward-init", lambda: Toward(Constant(0.1), "init"), lost="reference"),
    Case("toward-average", lambda: Toward(Constant(0.1), MovingAverage(0.7)), lost="reference"),
    Case("toward-average-sgd", lambda: Toward(Constant(0.1), MovingAverage(0.7)), sgd=True, lost="reference"),
    Case("toward-tensors", lambda: Toward(Decoupled(3.0), reference())),
    Case("toward-stable", lambda: Toward(Stable(0.1), reference_in_order()), collectives=1, at_rest=1),
    Case("scheduled", lambda: Scheduled(Independent(LAM), cosine(1.0, 0.2, 6)), lost="peak_lr and step"),
    Case("until", lambda: Scheduled(Decoupled(LAM), until(HALF + 1)), lost="step"),
    Case(
        "per-group",
        lambda: PerGroup([Stable(0.1), Scheduled(Constant(0.05), until(6)), Decoupled(9.0)]),
        collectives=1,
        at_rest=1,
        lost="step",
    ),
    Case("l2", lambda: L2(LAM)),
    Case("l2-sgd", lambda: L2(LAM, until(6)), sgd=True, lost="step"),
    Case("l2-first", lambda: L2(LAM, into="first")),
    Case("l2-second", lambda: L2(LAM, into="second")),
]
BY_NAME = {case.name: case for case in CASES}

# Under every rule's name the run without any, to compare with: the optimizer's own decay.
BARE = (Case("adamw", lambda: Decoupled(LAM)), Case("sgd", lambda: Decoupled(LAM), sgd=True))


def name_of(case: Case) -> str:
    """Return the test's id."""
    return case.name


def set_lr(optimizer: Optimizer, step: int) -> None:
    """Write the learning rates of a step."""
    for group, peak in zip(optimizer.param_groups, PEAKS, strict=False):
        group["lr"] = peak * FACTORS[step]


def backward(model: nn.Module, optimizer: Optimizer, step: int) -> Tensor:
    """Make the gradients of a step, and return the loss."""
    optimizer.zero_grad()
    tokens_BL, goals_B = batch(step)
    loss: Tensor = (model(tokens_BL) - goals_B).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
    return loss


def train(model: nn.Module, optimizer: Optimizer, steps: Sequence[int] = range(STEPS), *, late: bool = False) -> None:
    """Take steps; with ``late``, the positions get no gradient before the last steps."""
    for step in steps:
        set_lr(optimizer, step)
        backward(model, optimizer, step)
        if late and step < STEPS - 2:
            model.get_parameter("position").grad = None
        optimizer.step()


def weights(model: nn.Module) -> list[Tensor]:
    """Return copies of all parameters."""
    return [parameter.detach().clone() for parameter in model.parameters()]


def assert_same(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> None:
    """Demand equality to the last bit."""
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def distance(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> float:
    """Return the largest relative distance of a tensor from another, in the Euclidean norm."""
    pairs = list(zip(ours, theirs, strict=True))
    return max(float((one - other).double().norm() / other.double().norm()) for one, other in pairs)
