"""The optimizers of "Understanding and Scheduling Weight Decay" as rules, against the paper's formulas number by number.

AdamS and SGDS are `Stable` on torch's optimizers, AdaiS is `Decoupled` on pytorch-optimizer's Adai. Where the published code,
or a library's, differs from the paper, a test shows both. Source: Xie et al. 2023 (arXiv 2011.11152) and its code.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, AdamW, Optimizer

from halflife.errors import UserError
from halflife.optim.attaching import attach
from halflife.rules import L2, Decoupled, Stable

LAM = 0.05
LRS = (0.02, 0.01, 0.03, 0.015, 0.0, 0.02, 0.005, 0.01)
PEAKS = (1.0, 0.5, 2.0)  # times the lr of the step, by group

Numbers = list[list[float]]
# Of all numbers that have a gradient: decay, and then the update, in place.
Oracle = Callable[[Numbers, Numbers, Sequence[float], Sequence[bool], int], None]


class Net:
    """Three groups: a matrix and a frozen vector; a number and a vector without gradient; a vector that does not decay."""

    shapes = ((3, 2), (), (4,))
    scales = (1.0, 0.3, 2.0)  # of the gradients

    def __init__(self, size: float = 1.0) -> None:
        generator = torch.Generator().manual_seed(0)

        def parameter(shape: tuple[int, ...]) -> torch.nn.Parameter:
            return torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64))

        self.size = size
        self.used = [parameter(shape) for shape in self.shapes]
        self.frozen, self.unused = parameter((3,)).requires_grad_(False), parameter((2,))
        self.groups: list[dict[str, Any]] = [
            {"params": [self.used[0], self.frozen], "weight_decay": LAM},
            {"params": [self.used[1], self.unused], "weight_decay": LAM},
            {"params": [self.used[2]], "weight_decay": 0.0},
        ]

    def gradients(self, step: int) -> list[torch.Tensor]:
        generator = torch.Generator().manual_seed(100 + step)
        return [
            self.size * scale * torch.randn(shape, generator=generator, dtype=torch.float64)
            for shape, scale in zip(self.shapes, self.scales, strict=True)
        ]

    def numbers(self) -> Numbers:
        return [weight.detach().flatten().tolist() for weight in self.used]

    def train(self, optimizer: Optimizer, steps: int = len(LRS)) -> None:
        for step in range(steps):
            for group, peak in zip(optimizer.param_groups, PEAKS, strict=True):
                group["lr"] = LRS[step] * peak
            for weight, gradient in zip(self.used, self.gradients(step), strict=True):
                weight.grad = gradient
            optimizer.step()

    def follow(self, oracle: Oracle, numbers: Numbers, steps: int = len(LRS)) -> Numbers:
        """Train the numbers by a formula."""
        for step in range(steps):
            given = [gradient.flatten().tolist() for gradient in self.gradients(step)]
            oracle(numbers, given, [LRS[step] * peak for peak in PEAKS], (True, True, False), step + 1)
        return numbers


def places(numbers: Numbers) -> list[tuple[int, int]]:
    return [(i, j) for i, values in enumerate(numbers) for j in range(len(values))]


def adams(lam: float, *, beta1: float = 0.9, beta2: float = 0.999) -> Oracle:
    """Algorithm 3, as published: no floor."""
    m: dict[tuple[int, int], float] = {}
    v: dict[tuple[int, int], float] = {}

    def step(w: Numbers, g: Numbers, lrs: Sequence[float], decays: Sequence[bool], t: int) -> None:
        for i, j in places(w):
            m[i, j] = beta1 * m.get((i, j), 0.0) + (1 - beta1) * g[i][j]
            v[i, j] = beta2 * v.get((i, j), 0.0) + (1 - beta2) * g[i][j] ** 2
        mean = sum(v.values()) / (1 - beta2**t) / len(v)
        for i, j in places(w):
            w[i][j] -= lrs[i] * lam / math.sqrt(mean) * w[i][j] * decays[i]
            w[i][j] -= lrs[i] * m[i, j] / (1 - beta1**t) / (math.sqrt(v[i, j] / (1 - beta2**t)) + 1e-8)

    return step


def sgds(lam: float, *, momentum: float, dampening: float, published: bool = False) -> Oracle:
    """Algorithm 1. The published code corrects by the dampening although torch ignores it where there is no momentum."""
    buffers: dict[tuple[int, int], float] = {}
    factor = (1 - dampening) / (1 - momentum) if momentum or published else 1.0

    def step(w: Numbers, g: Numbers, lrs: Sequence[float], decays: Sequence[bool], t: int) -> None:
        for i, j in places(w):
            w[i][j] -= lrs[i] * lam * factor * w[i][j] * decays[i]
            if not momentum or t == 1:  # torch's first buffer is the gradient itself
                buffers[i, j] = g[i][j]
            else:
                buffers[i, j] = momentum * buffers[i, j] + (1 - dampening) * g[i][j]
            w[i][j] -= lrs[i] * buffers[i, j]

    return step


def adai(
    lam: float, *, stable: bool, beta0: float = 0.1, beta2: float = 0.99, eps: float = 1e-3, least: float = 0.0
) -> Oracle:
    """Adai with a penalty, or AdaiS; ``least`` is a bound below the mean of v, which the paper does not have."""
    m: dict[tuple[int, int], float] = {}
    v: dict[tuple[int, int], float] = {}
    products: dict[tuple[int, int], float] = {}

    def step(w: Numbers, g: Numbers, lrs: Sequence[float], decays: Sequence[bool], t: int) -> None:
        added = {(i, j): g[i][j] + (0.0 if stable else lam * w[i][j] * decays[i]) for i, j in places(w)}
        for at, gradient in added.items():
            v[at] = beta2 * v.get(at, 0.0) + (1 - beta2) * gradient**2
        mean = max(sum(v.values()) / (1 - beta2**t) / len(v), least)
        for i, j in places(w):
            beta1 = min(max(1 - beta0 * v[i, j] / (1 - beta2**t) / mean, 0.0), 1 - eps)
            m[i, j] = beta1 * m.get((i, j), 0.0) + (1 - beta1) * added[i, j]
            products[i, j] = beta1 * products.get((i, j), 1.0)
            w[i][j] -= lrs[i] * lam * w[i][j] * decays[i] * stable
            w[i][j] -= lrs[i] * m[i, j] / (1 - products[i, j])

    return step


def agree(net: Net, expected: Numbers, rel: float = 1e-10) -> None:
    for got, want in zip(net.numbers(), expected, strict=True):
        assert got == pytest.approx(want, rel=rel)


def distance(one: Numbers, other: Numbers) -> float:
    return max(abs(a - b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def differ(net: Net, expected: Numbers) -> None:
    assert distance(net.numbers(), expected) > 1e-5


def bare(net: Net) -> tuple[list[float], list[float]]:
    return net.frozen.tolist(), net.unused.tolist()


# ---- the paper's optimizers


@pytest.mark.parametrize("kind", [Adam, AdamW])
@pytest.mark.parametrize(
    "form", [{"foreach": False}, {"foreach": True}, {"fused": True}], ids=["loop", "foreach", "fused"]
)
def test_adams(kind: Callable[..., Optimizer], form: dict[str, Any]) -> None:
    net = Net()
    before, start = bare(net), net.numbers()
    optimizer = kind(net.groups, lr=1.0, **form)
    attach(optimizer, Stable(LAM, floor=0.0))
    net.train(optimizer)
    agree(net, net.follow(adams(LAM), start))
    assert bare(net) == before


@pytest.mark.parametrize(("momentum", "dampening"), [(0.0, 0.0), (0.9, 0.0), (0.8, 0.3)])
def test_sgds(momentum: float, dampening: float) -> None:
    net = Net()
    before, start = bare(net), net.numbers()
    optimizer = SGD(net.groups, lr=1.0, momentum=momentum, dampening=dampening)
    attach(optimizer, Stable(LAM))
    net.train(optimizer)
    agree(net, net.follow(sgds(LAM, momentum=momentum, dampening=dampening), start))
    assert bare(net) == before


def adai_of(net: Net, **settings: Any) -> Optimizer:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own imports
        kind: type[Optimizer] = importlib.import_module("pytorch_optimizer").Adai
    made: Callable[..., Optimizer] = kind
    return made(net.groups, lr=1.0, **settings)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("by", ["rule", "library"])
@pytest.mark.parametrize("stable", [False, True], ids=["adai", "adais"])
def test_adai_and_adais(stable: bool, by: str, foreach: bool) -> None:
    """By a rule, and by the decay of pytorch-optimizer itself."""
    net = Net()
    before, start = bare(net), net.numbers()
    library = {"weight_decouple": stable, "stable_weight_decay": stable} if by == "library" else {}
    optimizer = adai_of(net, foreach=foreach, **library)
    if by == "rule":
        attach(optimizer, Decoupled(LAM) if stable else L2(LAM))
    net.train(optimizer)
    agree(net, net.follow(adai(LAM, stable=stable), start))
    assert bare(net) == before


def test_the_formulas_differ_from_each_other() -> None:
    """So that agreeing with one of them says something: each beside its neighbour, at the same lam."""
    net = Net()
    for one, other in (
        (adams(LAM), adams(0.9 * LAM)),
        (sgds(LAM, momentum=0.8, dampening=0.3), sgds(LAM, momentum=0.8, dampening=0.0)),
        (adai(LAM, stable=True), adai(LAM, stable=False)),
    ):
        assert distance(net.follow(one, net.numbers()), net.follow(other, net.numbers())) > 1e-4


# ---- where published code, or a library's, differs from the paper


def test_the_published_adams_has_no_floor() -> None:
    """With gradients of 1e-7 it removes more than all of the weights at a step; a step that would is refused here."""
    net = Net(size=1e-7)
    start = net.numbers()
    published = net.follow(adams(LAM), net.numbers(), steps=1)
    for before, after in zip(start[:2], published[:2], strict=True):
        assert all(one * other < 0 for one, other in zip(before, after, strict=True)), "the signs are flipped"
    optimizer = AdamW(net.groups, lr=1.0)
    handle = attach(optimizer, Stable(LAM, floor=0.0))
    with pytest.raises(UserError, match=r"asks to remove the fraction r = 6378\.\d+ of the weights"):
        net.train(optimizer, steps=1)
    assert net.numbers() == start
    handle.detach()
    handle = attach(optimizer, Stable(LAM))
    with pytest.warns(UserWarning, match="the floor of Stable"):
        net.train(optimizer, steps=1)
    assert handle.fractions() == pytest.approx([LRS[0] / 0.1, LRS[0] * PEAKS[1] / 0.1, 0.0])


def test_the_published_sgds_corrects_by_a_dampening_that_torch_ignores() -> None:
    """Without momentum. ``lam * (1 - dampening)`` gives the published numbers."""
    for rule, published in ((Stable(LAM), False), (Stable(LAM * 0.6), True)):
        net = Net()
        start = net.numbers()
        optimizer = SGD(net.groups, lr=1.0, momentum=0.0, dampening=0.4)
        attach(optimizer, rule)
        net.train(optimizer)
        differ(net, net.follow(sgds(LAM, momentum=0.0, dampening=0.4, published=not published), [*map(list, start)]))
        agree(net, net.follow(sgds(LAM, momentum=0.0, dampening=0.4, published=published), start))


def test_adai_of_pytorch_optimizer_bounds_the_mean_of_v() -> None:
    """From below, by its eps of 1e-3: gradients of 0.01 have another momentum than in the paper."""
    net = Net(size=0.01)
    start = net.numbers()
    optimizer = adai_of(net)
    attach(optimizer, Decoupled(LAM))
    net.train(optimizer)
    differ(net, net.follow(adai(LAM, stable=True), [*map(list, start)]))
    agree(net, net.follow(adai(LAM, stable=True, least=1e-3), start))


def test_adams_of_pytorch_optimizer_adds_eps() -> None:
    """To the root of the mean of v: nothing to see unless gradients are as small."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind: Any = importlib.import_module("pytorch_optimizer").AdamS
    net, other = Net(), Net()
    optimizer = kind(net.groups, lr=1.0, weight_decouple=True)
    net.train(optimizer)
    agree(net, other.follow(adams(LAM), other.numbers()), rel=1e-6)
