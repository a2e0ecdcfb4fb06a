"""``laws_of``: optimizers that exist, whose every bit must stay as it is."""

from __future__ import annotations

import copy
import random
import warnings
from typing import Any

import pytest
import torch
from torch.optim import Optimizer

import halflife
from halflife.errors import UserError
from halflife.laws import Law
from halflife.laws.live import laws_of, probe_of
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    Normalized,
    NormTarget,
    PerGroup,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import after, linear, until
from tests import needs_muon
from tests.laws.test_identify import of

LR, WD = 2e-3, 0.1


def model() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4, 5), torch.nn.LayerNorm(5)
    )


def groups(net: torch.nn.Module, **first: Any) -> list[dict[str, Any]]:
    parameters = list(net.parameters())
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": WD, **first},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]


def train(optimizer: Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter)
        optimizer.step()


def summary(law: Law) -> tuple[Any, ...]:
    return law.pathway, law.lr_exponent, law.peak_lr_exponent, law.coefficient, law.name


# ---- optimizers as they come


def test_one_law_per_group_at_its_own_settings() -> None:
    net = model()
    first, second, third, *_ = [p for p in net.parameters() if p.ndim > 1] + [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": [first], "lr": 1e-3, "weight_decay": 0.1},
            {"params": [second], "lr": 3e-4, "weight_decay": 0.05},
            {"params": [third], "weight_decay": 0.0},
        ],
        lr=1e-4,
    )
    laws = laws_of(optimizer)
    assert [law.describe() for law in laws] == ["decoupled: r = lr * lam (native)"] * 2 + ["none: nothing decays"]
    assert [law.fraction for law in laws] == [pytest.approx(1e-4, rel=1e-9), pytest.approx(1.5e-5, rel=1e-9), 0.0]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda g: torch.optim.SGD(g, LR), ("l2", 1.0, 0.0, 1.0, "decoupled")),
        (lambda g: torch.optim.SGD(g, LR, momentum=0.9), ("l2", 1.0, 0.0, 1.0, "l2")),
        (lambda g: torch.optim.Adam(g, LR), ("l2-preconditioned", None, None, None, "l2")),
        (lambda g: torch.optim.Adam(g, LR, maximize=True, fused=True), ("l2-preconditioned", None, None, None, "l2")),
        (lambda g: torch.optim.Adafactor(g, LR), ("decoupled", 1.0, 0.0, 1.0, "decoupled")),
        (
            lambda g: of("optimi", "AdamW", decouple_lr=True, max_lr=4 * LR)(g, LR, WD),
            ("decoupled", 1.0, -1.0, 1.0, "independent"),
        ),
        (
            lambda g: of("pytorch_optimizer", "AdaBelief", fixed_decay=True)(g, LR, WD),
            ("decoupled", 0.0, 0.0, 1.0, "constant"),
        ),
        pytest.param(
            lambda g: of("torchao.optim", "AdamW8bit")(g, LR, WD),
            ("decoupled", 1.0, 0.0, 1.0, "decoupled"),
            marks=[pytest.mark.slow],
        ),
    ],
)
def test_foreign_optimizers(make: Any, expected: tuple[Any, ...]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optimi finds this weight decay large
        optimizer = make(groups(model()))
    if not type(optimizer).__module__.startswith("torchao"):  # which would compile for half a minute
        train(optimizer, 3)
    decaying, other = laws_of(optimizer)
    assert summary(decaying) == expected, decaying
    assert other.pathway == "none", other
    if decaying.name == "decoupled":
        assert decaying.fraction == pytest.approx(LR * WD, rel=2e-3)


def test_attributes_that_copy_deepcopy_would_lose() -> None:
    """AdamC keeps the peak in an attribute of its own, which torch's ``__getstate__`` drops."""
    optimizer = of("pytorch_optimizer", "AdamC")(groups(model(), normalized=True), LR, WD)
    with pytest.raises(AttributeError, match="max_lr"):
        train(copy.deepcopy(optimizer), 1)
    for group in optimizer.param_groups:
        group["lr"] = LR / 4
    law = laws_of(optimizer)[0]
    assert summary(law) == ("decoupled", 2.0, -1.0, 1.0, "corrected"), law
    assert law.fraction == pytest.approx(LR / 16 * WD, rel=1e-9)


def test_the_first_step_of_a_warm_up() -> None:
    optimizer = torch.optim.AdamW(groups(model()), LR)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)
    assert optimizer.param_groups[0]["lr"] == 0.0
    law = laws_of(optimizer)[0]
    assert law.name == "decoupled"
    assert law.fraction == pytest.approx(LR * WD)
    assert law.notes == ("the learning rate is 0 now: probed at 0.002",)
    assert optimizer.param_groups[0]["lr"] == 0.0


def test_a_learning_rate_that_is_a_tensor() -> None:
    rate = torch.tensor(LR)
    optimizer = torch.optim.AdamW(groups(model()), rate, foreach=False)
    law = laws_of(optimizer)[0]
    assert summary(law) == ("decoupled", 1.0, 0.0, 1.0, "decoupled")
    assert rate.item() == pytest.approx(LR)


def test_what_is_not_none() -> None:
    """A group at 0 is "none" only if its weights stay where they are."""
    asgd, sparse = torch.optim.ASGD(groups(model()), LR), torch.optim.SparseAdam(list(model().parameters()), LR)
    law = laws_of(asgd)[1]
    assert law.pathway == "other"
    shrinks = "(without any gradient and at weight_decay 0 the weights shrink by r = 2e-07)"
    assert law.notes[0] == f"a step at lr = 0.002 removes 2e-07 of it, by a law that is not known {shrinks}"
    assert {each.pathway for each in laws_of(sparse)} == {"none"}  # it is stepped with gradients of rows
    frozen = [{"params": [torch.nn.Parameter(torch.ones(2), requires_grad=False)], "weight_decay": 0.0}]
    law = laws_of(torch.optim.AdamW([*groups(model()), *frozen], LR))[2]
    assert (law.pathway, law.notes) == ("not probed", ("the group has no parameter that requires a gradient",))
    lbfgs = torch.optim.LBFGS(list(model().parameters()))
    assert laws_of(lbfgs)[0].pathway == "none"  # it is stepped with a closure


def test_what_cannot_be_copied_matters_where_a_step_uses_it() -> None:
    class Idle(torch.optim.AdamW):
        def __init__(self, *args: Any, **how: Any) -> None:
            super().__init__(*args, **how)
            self.handle = (number for number in range(3))

    class Using(Idle):
        def step(self, closure: Any = None) -> Any:
            next(self.handle)
            return super().step(closure)

    assert [law.pathway for law in laws_of(Idle(groups(model()), LR))] == ["decoupled", "none"]
    optimizer = Using(groups(model()), LR)
    laws = laws_of(optimizer)
    assert [law.pathway for law in laws] == ["not probed"] * 2
    assert laws[0].notes[0] == "its step uses handle, a generator, which cannot be copied; pass in_place=True"
    assert next(optimizer.handle) == 0


def test_a_hook_that_a_copy_must_not_call_is_not_passed_over() -> None:
    def changes(*args: Any) -> None:
        """Could do anything."""

    optimizer = torch.optim.AdamW(groups(model()), LR)
    optimizer.register_step_pre_hook(changes)
    for law in laws_of(optimizer):
        assert law.pathway == "not probed"
        assert law.notes[0].startswith("it has step hooks that are not of halflife (")
        assert law.notes[0].endswith("changes), which a copy must not call; pass in_place=True")
    assert [probed.laws[0].pathway for probed in probe_of([optimizer], in_place=True)] == ["decoupled"]


def test_a_step_that_was_replaced_on_the_instance_is_the_one_that_is_probed() -> None:
    optimizer = torch.optim.AdamW(groups(model()), LR)

    @torch.no_grad()
    def twice(closure: Any = None) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - 2 * group["lr"] * group["weight_decay"]).sub_(parameter.grad, alpha=group["lr"])

    optimizer.step = twice  # type: ignore[method-assign]
    assert laws_of(optimizer)[0].coefficient == pytest.approx(2.0, rel=1e-6)


def test_parameters_that_differ_in_what_is_written_on_them() -> None:
    class Marked(torch.optim.SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.sub_(parameter.grad, alpha=group["lr"])
                    if not getattr(parameter, "no_decay", False):
                        parameter.mul_(1.0 - group["lr"] * group["weight_decay"])

    one, two = torch.nn.Parameter(torch.ones(3, 2)), torch.nn.Parameter(torch.ones(3, 2))
    two.no_decay = True  # type: ignore[attr-defined]
    law = laws_of(Marked([one, two], lr=0.1, weight_decay=0.1))[0]
    assert {kind: each.pathway for kind, each in law.by_shape.items()} == {"matrix": "decoupled", "matrix 2": "none"}


class Seldom(Optimizer):
    """Plain steps, and a decay by an attribute at one of every so many calls."""

    def __init__(self, params: Any, every: int, phase: int) -> None:
        super().__init__(params, {"lr": 0.1})
        self.every, self.phase, self.calls, self.amount = every, phase, 0, 0.2

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        due = self.calls % self.every == self.phase
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if due:
                    parameter.mul_(1.0 - group["lr"] * self.amount)
                parameter.sub_(parameter.grad, alpha=group["lr"])


@pytest.mark.parametrize(("every", "phase"), [(2, 0), (3, 2), (5, 3)])
def test_a_decay_of_every_nth_call_has_its_law(every: int, phase: int) -> None:
    net = torch.nn.Linear(3, 2)
    (probed,) = probe_of([Seldom(net.parameters(), every, phase)])
    for parameter in net.parameters():
        found = probed.found[id(parameter)]
        assert (found.law.pathway, found.law.every, found.seen.every, found.lam) == ("decoupled", every, every, 0.2)
        assert found.law.coefficient == pytest.approx(1.0, rel=1e-6)
        assert found.law.lr_exponent == 1.0
        assert found.seen.r == pytest.approx(0.02, rel=1e-6)


class Accelerated(Optimizer):
    """What accelerate's wrapper looks like from outside; accelerate itself is not among the tests' packages."""

    __module__ = "accelerate.optimizer"

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.scaler = optimizer, lambda: None

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        raise AssertionError("the wrapper is looked through")


def test_accelerates_wrapper_is_looked_through() -> None:
    wrapped = Accelerated(torch.optim.AdamW(groups(model()), LR))
    assert [law.pathway for law in laws_of(wrapped)] == ["decoupled", "none"]


def test_wrong_input() -> None:
    with pytest.raises(UserError, match="laws_of needs a torch optimizer, got Sequential"):
        laws_of(model())  # type: ignore[arg-type]


# ---- halflife's own rules


def attached(rule: Any, *, steps: int = 20, make: Any = None, **how: Any) -> list[Law]:
    optimizer = (make or (lambda g: torch.optim.AdamW(g, LR)))(groups(model()))
    handle = halflife.attach(optimizer, rule, **how)
    train(optimizer, steps)
    laws = laws_of(optimizer)
    assert laws[1].pathway == "none" or how.get("select") == "all", laws[1]
    if steps and laws[0].fraction is not None and "l2" not in laws[0].pathway and not isinstance(rule, Scheduled):
        assert laws[0].fraction == pytest.approx(handle.fractions()[0], rel=1e-6), "what really happens"
    return laws


def sgd(parameters: Any) -> Optimizer:
    return torch.optim.SGD(parameters, LR, momentum=0.9)


RULES: list[tuple[Any, dict[str, Any], tuple[Any, ...], float | None]] = [
    (Decoupled(0.3), {}, ("decoupled", 1.0, 0.0, 1.0, "decoupled"), LR * 0.3),
    (Decoupled(), {}, ("decoupled", 1.0, 0.0, 1.0, "decoupled"), LR * WD),
    (Independent(1e-3), {"peak_lr": 4 * LR}, ("decoupled", 1.0, -1.0, 1.0, "independent"), 1e-3 / 4),
    (Independent(1e-3), {}, ("decoupled", 1.0, -1.0, 1.0, "independent"), 1e-3),
    (Constant(1e-3), {}, ("decoupled", 0.0, 0.0, 1.0, "constant"), 1e-3),
    (Corrected(0.3), {"peak_lr": 4 * LR}, ("decoupled", 2.0, -1.0, 1.0, "corrected"), LR / 4 * 0.3),
    (HalfLife(steps=100), {}, ("decoupled", 0.0, 0.0, None, "half-life"), 1 - 0.5 ** (1 / 100)),
    (HalfLife(epochs=2), {"steps_per_epoch": 25}, ("decoupled", 0.0, 0.0, None, "half-life"), 1 - 0.5 ** (1 / 50)),
    (Normalized(0.05, steps=100), {}, ("decoupled", 1.0, -1.0, 0.1, "normalized"), 5e-3),
    # After 20 steps, the next one has the 21st multiplier.
    (Scheduled(Decoupled(0.3), linear(1.0, 0.0, 40)), {}, ("decoupled", 1.0, 0.0, 0.5, "scheduled"), LR * 0.15),
    (Scheduled(Decoupled(0.3), until(21)), {}, ("decoupled", 1.0, 0.0, 1.0, "scheduled"), LR * 0.3),
    (Scheduled(Decoupled(0.3), until(20)), {}, ("none", None, None, None, None), 0.0),
    (PerGroup([Constant(1e-3), Decoupled(9.0)]), {}, ("decoupled", 0.0, 0.0, 1.0, "constant"), 1e-3),
    (Cautious(Decoupled(0.3)), {}, ("cautious", 1.0, 0.0, 1.0, "cautious"), LR * 0.3),
    (L2(0.3), {}, ("l2-preconditioned", None, None, None, "l2"), None),
    (L2(0.3), {"make": sgd}, ("l2", 1.0, 0.0, 1.0, "l2"), LR * 0.3 * 10),
    (Decoupled(0.3), {"make": sgd}, ("decoupled", 1.0, 0.0, 1.0, "decoupled"), LR * 0.3),
    (Stable(5e-4), {"make": sgd}, ("decoupled", 1.0, 0.0, 10.0, "stable"), LR * 5e-4 * 10),
    (Stable(5e-4), {}, ("decoupled", 1.0, 0.0, None, "stable"), None),
    (Toward(Decoupled(0.3)), {}, ("other", 1.0, 0.0, 1.0, "toward"), LR * 0.3),
    (Sphere(), {}, ("other", None, None, None, "sphere"), None),
    (NormTarget(3.0), {}, ("other", None, None, None, "norm-target"), None),
]


@pytest.mark.parametrize(
    ("rule", "how", "expected", "fraction"),
    [pytest.param(*row, id=f"{i}", marks=[pytest.mark.slow] if i % 2 else []) for i, row in enumerate(RULES)],
)
def test_attached_rules(rule: Any, how: dict[str, Any], expected: tuple[Any, ...], fraction: float | None) -> None:
    law = attached(rule, **how)[0]
    assert summary(law) == expected, law
    assert law.fraction == (None if fraction is None else pytest.approx(fraction, rel=1e-6))
    inner = rule.rules[0] if isinstance(rule, PerGroup) else rule
    assert law.notes[0].startswith(f"the rule {type(inner).__name__} of halflife is attached")


@pytest.mark.parametrize(
    ("rule", "how", "expected", "fraction"),
    [pytest.param(*row, id=f"{i}", marks=[pytest.mark.slow] if i % 3 else []) for i, row in enumerate(RULES)],
)
def test_attached_rules_before_the_first_step(
    rule: Any, how: dict[str, Any], expected: tuple[Any, ...], fraction: float | None
) -> None:
    law = attached(rule, steps=0, **how)[0]
    if isinstance(rule, Scheduled):
        assert law.coefficient == pytest.approx(1.0 if isinstance(rule.schedule, until) else 0.7, abs=0.31)
    else:
        assert summary(law) == expected, law


def test_every_group_selected() -> None:
    laws = attached(Decoupled(0.3), select="all")
    assert [law.name for law in laws] == ["decoupled"] * 2
    assert laws[1].fraction == pytest.approx(LR * 0.3)


@needs_muon
def test_one_rule_over_two_optimizers() -> None:
    net = model()
    matrices = [p for p in net.parameters() if p.ndim == 2]
    others = [p for p in net.parameters() if p.ndim != 2]
    muon = torch.optim.Muon(matrices, 0.02, weight_decay=0.1)
    adamw = torch.optim.AdamW(others, LR, weight_decay=0.1)
    halflife.attach([muon, adamw], PerGroup([Decoupled(0.5), Constant(1e-3)]))
    assert [summary(law)[4] for law in laws_of(muon)] == ["decoupled"]
    assert laws_of(muon)[0].fraction == pytest.approx(0.01)
    assert summary(laws_of(adamw)[0]) == ("decoupled", 0.0, 0.0, 1.0, "constant")


# ---- nothing of the user's is touched


@pytest.mark.parametrize(
    "rule",
    [
        None,
        pytest.param(Decoupled(0.3), marks=pytest.mark.slow),
        Stable(5e-4),
        pytest.param(Cautious(Decoupled(0.3)), marks=pytest.mark.slow),
        pytest.param(Sphere(), marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_the_optimizer_stays_as_it_is(rule: Any) -> None:
    def run(probe: bool) -> tuple[Any, list[torch.Tensor]]:
        net = model()
        optimizer = torch.optim.AdamW(groups(net), LR)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (step + 1) / 10)
        if rule is not None:
            halflife.attach(optimizer, rule, peak_lr=10 * LR)
        for _ in range(4):
            train(optimizer, 1)
            scheduler.step()
            if probe:
                before = (torch.get_rng_state(), random.getstate(), [p.grad for p in net.parameters()])
                versions = [p._version for p in net.parameters()]
                keys = [set(group) for group in optimizer.param_groups], set(vars(optimizer))
                laws_of(optimizer)
                assert torch.equal(before[0], torch.get_rng_state())
                assert before[1] == random.getstate()
                assert all(p.grad is g for p, g in zip(net.parameters(), before[2], strict=True))
                assert versions == [p._version for p in net.parameters()]
                assert keys == ([set(group) for group in optimizer.param_groups], set(vars(optimizer)))
        return optimizer.state_dict(), [p.detach() for p in net.parameters()]

    (plain, weights), (probed, same) = run(probe=False), run(probe=True)
    assert plain["param_groups"] == probed["param_groups"]
    assert all(torch.equal(one, other) for one, other in zip(weights, same, strict=True))
    for key, state in plain["state"].items():
        assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(probed["state"][key][k])) for k, v in state.items())


@pytest.mark.parametrize(("schedule", "active"), [(until(3), {0, 1, 2}), (after(2), {2, 3, 4})], ids=["until", "after"])
def test_a_schedule_is_probed_at_the_step_that_comes_next(schedule: until | after, active: set[int]) -> None:
    """Also right after attach, where the warm-up of the copies would run past the boundary."""
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1)
    halflife.attach(optimizer, Scheduled(Decoupled(0.1), schedule))
    for step in range(5):
        (law,) = laws_of(optimizer)
        assert (law.pathway == "decoupled") is (step in active)
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
