"""What an optimizer remembers of earlier steps moves weights, too: it is told from decay, or nothing is said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

import halflife
from halflife.laws import stages
from halflife.laws.copier import at_the_start, copies_in
from halflife.laws.in_place import Snapshot
from tests.laws.adversaries.parts import net as made_net

IN_PLACE = pytest.mark.parametrize("in_place", [False, True], ids=["copy", "in place"])


class Toy(Optimizer):
    """What the optimizers below are made with."""

    numbers: ClassVar[dict[str, int]] = {}  # more that their groups have

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, **self.numbers})


class Averaged(Toy):
    """Schedule-free descent: gradients move `z`, and the weights are averaged with it."""

    numbers: ClassVar = {"k": 0}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                z = self.state[p].setdefault("z", p.clone())
                gradient = p.grad + group["weight_decay"] * p
                p.lerp_(z, 1.0 / group["k"]).sub_(gradient, alpha=0.1 * group["lr"])
                z.sub_(gradient, alpha=group["lr"])


class PutTogether(Averaged):
    """The same from two states, from which the weights are put together anew, and rounded, at each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["k"] += 1
            for p in group["params"]:
                state = self.state[p]
                z, x = state.setdefault("z", p.clone()), state.setdefault("x", p.clone())
                z.sub_(p.grad + group["weight_decay"] * p, alpha=group["lr"])
                x.mul_(1.0 - 1.0 / group["k"]).add_(z, alpha=1.0 / group["k"])
                p.copy_(x.mul(0.9).add_(z, alpha=0.1))


class Slow(Toy):
    """Slow weights in a state that is filled when the optimizer is made, and a momentum beside them."""

    numbers: ClassVar = {"calls": 0}

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay)
        for group in self.param_groups:
            for p in group["params"]:
                self.state[p] = {"slow": p.detach().clone(), "momentum": torch.zeros_like(p)}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            group["calls"] += 1
            for p in group["params"]:
                state = self.state[p]
                momentum = state["momentum"].mul_(0.9).add_(p.grad)
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(momentum, alpha=group["lr"])
                if group["calls"] % 2 == 0:
                    p.copy_(state["slow"].lerp_(p, 0.5))


class InAttributes(Slow):
    """The same, with the slow weights in an attribute, as lists by group."""

    def __init__(self, params: Any, lr: float = 1e-2, weight_decay: float = 0.0) -> None:
        super().__init__(params, lr, weight_decay)
        self.slow = [[self.state[p].pop("slow") for p in group["params"]] for group in self.param_groups]
        self.state.clear()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            group["calls"] += 1
            for p, kept in zip(group["params"], slow, strict=True):
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])
                if group["calls"] % 2 == 0:
                    p.copy_(kept.lerp_(p, 0.5))


class BySize(Toy):
    """A momentum in proportion to the norm of the weights, as layers have it in large batches."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                p.mul_(1.0 - group["lr"] * group["weight_decay"])
                p.sub_(momentum / (momentum.norm() + 1e-8) * p.norm(), alpha=group["lr"])


class SignOfMean(Toy):
    """Moves each weight by a fixed length towards its mean over time, with or without a gradient."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                mean = self.state[p].setdefault("mean", p.mul(1.01)).lerp_(p, 0.1)
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])
                p.sub_((p - mean).sign(), alpha=0.1 * group["lr"])


class Anchored(Toy):
    """Pulls towards the first weights by a constant that is in its code."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                first = self.state[p].setdefault("first", p.clone())
                p.sub_(p.grad, alpha=group["lr"]).lerp_(first, 0.01)


class Hidden(BySize):
    """A momentum, and a decay of which its groups say nothing."""

    shrink = 0.02

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                momentum = self.state[p].setdefault("m", torch.zeros_like(p)).mul_(0.9).add_(p.grad)
                p.mul_(1.0 - 0.02).sub_(momentum, alpha=group["lr"])


def trained(kind: Callable[..., Any], calls: int) -> tuple[nn.Module, Any]:
    """Return a net, and an optimizer that decays its matrices alone, after some steps of random gradients."""
    torch.manual_seed(3)
    net = made_net()
    groups: list[dict[str, Any]] = [
        {"params": [p for p in net.parameters() if (p.ndim > 1) is matrices]} for matrices in (True, False)
    ]
    groups[0]["weight_decay"], groups[1]["weight_decay"] = 0.1, 0.0
    optimizer = kind(groups, lr=1e-2)
    for _ in range(calls):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    return net, optimizer


def decays(net: nn.Module, optimizer: Any, in_place: bool) -> dict[bool, set[Any]]:
    """Return what is told of the matrices (True), and of the others (False)."""
    rows = halflife.explain(net, optimizer, in_place=in_place).rows
    return {matrix: {row["decays"] for row in rows if (len(row["shape"]) > 1) is matrix} for matrix in (True, False)}


@IN_PLACE
@pytest.mark.parametrize(
    ("kind", "calls"),
    [
        (Averaged, 5),
        (PutTogether, 0),
        (BySize, 5),
        pytest.param(Averaged, 0, marks=pytest.mark.slow),
        pytest.param(PutTogether, 5, marks=pytest.mark.slow),
        pytest.param(BySize, 0, marks=pytest.mark.slow),
    ],
)
def test_averages_and_momentum_are_no_decay(kind: Any, calls: int, in_place: bool) -> None:
    net, optimizer = trained(kind, calls)
    assert decays(net, optimizer, in_place) == {True: {True}, False: {False}}
    halflife.assert_decay(net, optimizer, {"norms": "none", "biases": "none"}, in_place=in_place)


@IN_PLACE
def test_slow_weights_that_are_made_with_the_optimizer_are_no_decay(in_place: bool) -> None:
    net, optimizer = trained(Slow, 5)
    assert decays(net, optimizer, in_place) == {True: {True}, False: {False}}


@IN_PLACE
def test_slow_weights_in_attributes_are_not_told_as_decay(in_place: bool) -> None:
    net, optimizer = trained(InAttributes, 5)
    assert True not in decays(net, optimizer, in_place)[False]


@IN_PLACE
@pytest.mark.parametrize("calls", [pytest.param(0, marks=pytest.mark.slow), 5])
@pytest.mark.parametrize("kind", [SignOfMean, Anchored])
def test_what_may_be_a_decay_or_an_average_is_not_probed(kind: Any, calls: int, in_place: bool) -> None:
    net, optimizer = trained(kind, calls)
    explanation = halflife.explain(net, optimizer, in_place=in_place)
    vectors = [row for row in explanation.rows if len(row["shape"]) == 1]
    assert {row["decays"] for row in vectors} == {None}
    assert all("whether that is a decay or what the optimizer remembers is not known" in row["why"] for row in vectors)
    assert not any("set it there" in str(warning) for warning in explanation.warnings)
    with pytest.raises(AssertionError):
        halflife.assert_decay(net, optimizer, {"biases": "none"}, in_place=in_place)


@IN_PLACE
def test_a_decay_that_no_group_says_is_seen_beside_a_momentum(in_place: bool) -> None:
    net, optimizer = trained(Hidden, 5)
    assert decays(net, optimizer, in_place) == {True: {True}, False: {True}}


@pytest.mark.parametrize("seed", range(3))
def test_momentum_at_the_end_of_a_schedule_hides_no_l2(seed: int) -> None:
    torch.manual_seed(seed)
    net = made_net()
    split = [{"params": [p for p in net.parameters() if p.ndim > 1]}]
    optimizer = SGD(split, lr=0.1, momentum=0.9, weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
    for _ in range(12):
        for p in net.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
        schedule.step()
    assert optimizer.param_groups[0]["lr"] == 0.0
    halflife.assert_decay(net, optimizer, {"matrices": "l2:0.1"})


def test_the_state_at_the_start_has_copies_of_the_weights_and_no_moments() -> None:
    large, small = torch.full((3, 2), 2.0), torch.full((4,), 0.01)
    state = {
        weight: {"slow": weight + 0.02, "moment": torch.full_like(weight, 5.0), "step": 7, "rows": torch.ones(3, 1)}
        for weight in (large, small)
    }
    copies = copies_in(state)
    assert copies == {"slow"}  # the small one is far from its copy, for its size; together they are near
    stand_in = torch.full((2, 5), 3.0, dtype=torch.float64)
    begun = at_the_start(state[large], large, stand_in, copies)
    assert torch.equal(begun["slow"], stand_in)
    assert begun["slow"].dtype == torch.float64
    assert torch.equal(begun["moment"], torch.zeros(2, 5, dtype=torch.float64))
    assert begun["step"] == 7
    assert torch.equal(begun["rows"], torch.ones(3, 1))


def test_an_optimizer_is_recorded_once_for_all_runs_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Snapshot] = []

    class Counted(Snapshot):
        def __init__(self, optimizers: Any, extra: Any = ()) -> None:
            super().__init__(optimizers, extra)
            made.append(self)

    monkeypatch.setattr(stages, "Snapshot", Counted)
    net, optimizer = trained(lambda groups, lr: torch.optim.AdamW(groups, lr=lr), 2)
    before = [p.detach().clone() for p in net.parameters()]
    assert decays(net, optimizer, in_place=True) == {True: {True}, False: {False}}
    assert len(made) == 1
    assert all(torch.equal(p, was) for p, was in zip(net.parameters(), before, strict=True))
    recorded: Tensor = made[0].recorded(next(net.parameters()))
    assert torch.equal(recorded, before[0])
    assert recorded.data_ptr() != next(net.parameters()).data_ptr()


def test_a_stage_in_place_that_is_not_open_says_so() -> None:
    stage = stages.RealStage(SGD([nn.Parameter(torch.ones(2))], lr=0.1), [], [], raised=1.0, device=torch.device("cpu"))
    with pytest.raises(Exception, match="the stage is not open"):
        stage.run(stages.Run(calls=1))


class Regularized(Toy):
    """Decays, and is averaged with the weights that it began with, as MADGRAD is: a decay that comes to an end."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for p in group["params"]:
                first = self.state[p].setdefault("first", p.clone())
                p.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"]).lerp_(first, 0.1)


def test_a_decay_that_ends_is_not_said_to_be_there_without_weight_decay() -> None:
    net, optimizer = trained(Regularized, 0)
    table = halflife.explain(net, optimizer)
    matrices = [row for row in table.rows if len(row["shape"]) > 1]
    assert {(row["decays"], row["law"]) for row in matrices} == {(True, "other")}
    assert "what a call removes changes: 0.0009, 0.0008099" in str(table)
    assert "at weight_decay 0" not in str(table)
