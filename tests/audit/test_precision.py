"""What rounding leaves of a decay, compared with 300 real steps."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import halflife
from halflife.rules import L2

Make = Callable[[list[nn.Parameter], float], Optimizer]
STRONG = r"r = \S+ changes no weight of 1 \w+ parameter: rounding to \w+ loses every fraction up to"


class Together(Optimizer):
    """Adds the decay to the update before it is rounded, as fused kernels do."""

    def __init__(self, params: Any, lr: float, wd: float) -> None:
        super().__init__(params, {"lr": lr, "wd": wd})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                wide = parameter.float()
                parameter.copy_(wide - group["lr"] * (parameter.grad.float() + group["wd"] * wide))


class Masters(Optimizer):
    """Keeps float32 copies of the weights, made at the first step."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                wide = self.state[parameter].setdefault("wide", parameter.float())
                wide.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(parameter.grad.float(), alpha=group["lr"])
                parameter.copy_(wide)


class Compensated(Optimizer):
    """Keeps what rounding takes from its sums: of the decay too, or of the update alone."""

    def __init__(self, params: Any, lr: float, weight_decay: float, *, whole: bool) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "kahan_sum": True, "whole": whole})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                rest = self.state[parameter].setdefault("rest", torch.zeros_like(parameter, dtype=torch.float32))
                decay = group["lr"] * group["weight_decay"] * parameter.float()
                if not group["whole"]:
                    parameter.sub_(decay.to(parameter.dtype))
                    decay = torch.zeros_like(decay)
                wanted = parameter.float() + rest - decay - group["lr"] * parameter.grad.float()
                parameter.copy_(wanted)
                rest.copy_(wanted - parameter.float())


def share_of_real_steps(make: Make, lam: float, dtype: torch.dtype, size: float) -> float:
    """Return what 300 steps remove, divided by what they remove in float32."""
    removed = []
    for precision in (dtype, torch.float32):
        ends = []
        for decay in (lam, 0.0):
            weight = nn.Parameter(torch.randn(64, 64, generator=torch.Generator().manual_seed(1)).to(precision))
            start, optimizer = weight.detach().double(), make([weight], decay)
            generator = torch.Generator().manual_seed(2)
            for _ in range(300):
                weight.grad = (size * torch.randn(64, 64, generator=generator)).to(precision)
                optimizer.step()
            ends.append(weight.detach().double())
        removed.append(((ends[1] - ends[0]) * start).sum() / start.square().sum())
    return float(removed[0] / removed[1])


def told(make: Make, lam: float, dtype: torch.dtype, size: float) -> list[str]:
    model = nn.Linear(64, 64, bias=False).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.randn(64, 64, generator=torch.Generator().manual_seed(3)))
    if size != 1.0:
        model.weight.grad = (size * torch.randn(64, 64, generator=torch.Generator().manual_seed(4))).to(dtype)
    found = halflife.explain(model, make(list(model.parameters()), lam)).warnings
    return [str(each) for each in found if each.code == "lost-in-precision"]


CASES: list[Any] = [
    pytest.param(lambda p, w: AdamW(p, 1e-3, weight_decay=w, foreach=True), 0.1, torch.bfloat16, 1.0, id="foreach"),
    pytest.param(lambda p, w: AdamW(p, 1e-3, weight_decay=w, fused=True), 0.1, torch.bfloat16, 1.0, id="fused"),
    pytest.param(lambda p, w: AdamW(p, 0.02, weight_decay=w, fused=True), 0.01, torch.bfloat16, 1.0, id="fused-large"),
    pytest.param(
        lambda p, w: AdamW(p, 0.02, weight_decay=w, foreach=False), 0.01, torch.bfloat16, 1.0, id="alone-large"
    ),
    pytest.param(lambda p, w: SGD(p, 0.01, momentum=0.9, weight_decay=w), 0.01, torch.bfloat16, 1.0, id="sgd"),
    pytest.param(lambda p, w: SGD(p, 0.01, momentum=0.9, weight_decay=w), 0.01, torch.bfloat16, 0.01, id="sgd-small"),
    pytest.param(lambda p, w: SGD(p, 1e-4, momentum=0.9, weight_decay=w), 0.01, torch.float16, 1.0, id="sgd-half"),
    pytest.param(lambda p, w: SGD(p, 0.01, weight_decay=w), 0.01, torch.float16, 0.01, id="plain-half"),
    pytest.param(lambda p, w: Together(p, 0.01, w), 0.01, torch.bfloat16, 1.0, id="together"),
    pytest.param(lambda p, w: Masters(p, 0.01, w), 0.01, torch.bfloat16, 1.0, id="masters"),
    pytest.param(lambda p, w: Compensated(p, 1e-3, w, whole=True), 0.1, torch.bfloat16, 1.0, id="sums"),
    pytest.param(lambda p, w: Compensated(p, 1e-3, w, whole=False), 0.1, torch.bfloat16, 1.0, id="sums-of-updates"),
]


@pytest.mark.parametrize(("make", "lam", "dtype", "size"), CASES)
def test_what_is_told_is_what_300_steps_show(make: Make, lam: float, dtype: torch.dtype, size: float) -> None:
    share, sentences = share_of_real_steps(make, lam, dtype, size), told(make, lam, dtype, size)
    if share > 0.9:
        assert sentences == []
        return
    (sentence,) = sentences
    assert sentence.endswith(
        "; keep float32 master weights, use an optimizer with stochastic rounding or compensated sums, or, for the decay alone,"
        ' attach(..., low_precision="accumulate"): weight'
    )
    if share == 0.0:
        assert "changes no weight" in sentence or "only less than 1 % arrives" in sentence
    else:
        percent = 100.0 * float(share)
        assert "changes no weight" not in sentence
        measured = sentence.split("only ")[1].split(" arrives")[0]
        number = 0.5 if measured == "less than 1 %" else float(measured.removesuffix(" %"))
        assert number == pytest.approx(percent, abs=20.0)


def test_only_a_decay_that_is_rounded_alone_changes_no_weight() -> None:
    (alone,) = told(lambda p, w: AdamW(p, 0.02, weight_decay=w, foreach=False), 0.01, torch.bfloat16, 1.0)
    assert re.match(STRONG, alone)
    assert told(lambda p, w: AdamW(p, 0.02, weight_decay=w, fused=True), 0.01, torch.bfloat16, 1.0) == []


def test_an_attached_penalty_is_rounded_with_the_update() -> None:
    def make(parameters: list[nn.Parameter], lam: float) -> Optimizer:
        optimizer = SGD(parameters, 0.01, momentum=0.9)
        halflife.attach(optimizer, L2(0.01), select="all")
        return optimizer

    assert told(make, 0.01, torch.bfloat16, 1.0) == []


def test_what_cannot_be_measured_is_not_claimed() -> None:
    class Fixed(SGD):
        """The number stands in its code."""

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.mul_(1.0 - 1e-4)
            return super().step(closure)

    (sentence,) = told(lambda p, w: Fixed(p, 0.01), 0.0, torch.bfloat16, 1.0)
    assert sentence.startswith("r = 0.0001 of 1 bfloat16 parameter may change no weight")
    assert "could not be measured (no number was found that is the coefficient of its decay)" in sentence
