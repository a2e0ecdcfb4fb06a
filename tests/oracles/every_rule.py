"""The rules of `halflife.selfcheck.rules` on a small transformer: what the tests of resume, precision, compiling, lifecycle
and distributed training run through.

It says nothing about what a rule must answer: these tests compare a run with the same run done in another way. A new row
of the table is run here by itself; only what it keeps in checkpoints, and what it measures, is listed here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.optim.attaching import Handle, attach
from halflife.rules import Applier, Penalty, PerGroup, Rule
from halflife.selfcheck.rules import RULES, FormulaCase, RuleCase, goals

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
    """Return the tensors that the rows of the table decay towards, times a factor."""
    return {name: scale * tensor for name, tensor in goals(dict(Net().named_parameters())).items()}


# The rows that run on SGD with momentum, whose own decay is part of the gradient: beside AdamW, or in its place.
ON_BOTH = {"decoupled", "stable", "toward an average", "l2, own, after"}
ON_SGD = {"stable with a given beta2", "spheres"}

# What is lost when a checkpoint without halflife is loaded, as the warning says it; of a formula see `lost_of`.
LOST = {
    "stable, at the floor, until": "step",
    "stable with a given beta2": "second_moment",
    "norm target, first": "initial_norm",
    "sphere, first": "initial_norm",
    "cautious corrected, own": "peak_lr",
    "per group, stable": "step",
    "toward init": "reference",
    "toward an average": "peak_lr and reference",
    "l2, own, after": "step",
}

# Collectives under FSDP2 per step: where norms of gradients are measured, also at lr == 0; where weights are, at lr > 0,
# and once more at the first such step for the norms to keep.
GRADIENTS = {"stable", "stable, own, no floor", "stable, at the floor, until", "stable with a given beta2"}
GRADIENTS |= {"per group, stable", "cautious stable", "toward given tensors, stable"}
WEIGHTS = {"norm target", "norm target, first", "sphere", "sphere, first", "spheres"}
FIRST = {"norm target, first", "sphere, first"}


def lost_of(row: RuleCase) -> str | None:
    """Return what a checkpoint must keep of a rule: the peak or the number of steps, if its formula depends on them."""
    if not isinstance(row, FormulaCase):
        return LOST.get(row.name)
    peaks = {row.formula(0.01, peak, LAM, 3, 1) for peak in (0.01, 0.02)}
    steps = {row.formula(0.01, 0.02, LAM, step, 1) for step in range(STEPS)}
    return " and ".join(["peak_lr"] * (len(peaks) > 1) + ["step"] * (len(steps) > 1)) or None


@dataclass(frozen=True)
class Case:
    """A row of the table of rules, and how to run it.

    Args:
        row: The row.
        sgd: Whether it runs on SGD with momentum instead of AdamW.
    """

    row: RuleCase
    sgd: bool = False

    @property
    def name(self) -> str:
        """For the test's id: the row's name with hyphens."""
        return re.sub(r"\W+", "-", self.row.name) + "-sgd" * (self.sgd and self.row.name in ON_BOTH)

    @property
    def lost(self) -> str | None:
        """What the warning says is lost when a checkpoint without halflife is loaded; None if nothing is."""
        return lost_of(self.row)

    @property
    def collectives(self) -> int:
        """What it costs under FSDP2, per step at lr > 0."""
        return self.at_rest or int(self.row.name in WEIGHTS)

    @property
    def at_rest(self) -> int:
        """The same at lr == 0. SGD's `Stable` is a formula."""
        return int(self.row.name in GRADIENTS and not (self.sgd and self.row.name == "stable"))

    @property
    def first(self) -> int:
        """What its first step at lr > 0 costs beyond that."""
        return int(self.row.name in FIRST)

    def optimizer(self, groups: Sequence[dict[str, Any]], **settings: Any) -> Optimizer:
        """Return a new optimizer for these groups."""
        if self.sgd:
            return torch.optim.SGD(groups, lr=PEAKS[0], momentum=0.9, dampening=0.25, **settings)
        return torch.optim.AdamW(groups, lr=PEAKS[0], betas=(0.9, 0.95), **settings)

    def rule(self, optimizer: Optimizer | None = None) -> Rule | Applier | Penalty:
        """Return a new rule of this kind, for the parameters of an optimizer; default: those of a `Net`."""
        named: dict[str, Tensor] = {}
        for group in (optimizer or self.optimizer(groups_of(Net()))).param_groups:
            numbers = map(str, range(len(named), len(named) + len(group["params"])))
            named |= zip(group.get("param_names", numbers), group["params"], strict=True)
        rule = self.row.make(named)
        if isinstance(rule, PerGroup) and optimizer is not None:  # one for each group that is there
            return PerGroup(rule.rules[: len(optimizer.param_groups)])
        return rule

    def attach(self, optimizer: Optimizer, **arguments: Any) -> Handle:
        """Attach a new rule of this kind."""
        return attach(optimizer, self.rule(optimizer), **{**self.row.numbers, **arguments})


def chosen() -> list[RuleCase]:
    """Return all rows of the table; of the formulas those whose state, or what they read, differs."""
    kept: dict[Any, RuleCase] = {}
    for row in RULES:
        reads = (row.family, lost_of(row), row.own, bool(row.numbers)) if isinstance(row, FormulaCase) else row.name
        kept.setdefault(reads, row)
    return list(kept.values())


CASES = [
    Case(row, sgd) for row in chosen() for sgd in ((False, True) if row.name in ON_BOTH else (row.name in ON_SGD,))
]
BY_NAME = {case.name: case for case in CASES}

# Under every rule's name the run without any, to compare with: the optimizer's own decay.
BARE = (BY_NAME["decoupled"], BY_NAME["decoupled-sgd"])


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
