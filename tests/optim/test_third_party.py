"""attach on optimizers of other libraries: by the bare twin of the conformance table, and in a trainer of RL."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.attaching import attach
from halflife.rules import Cautious, Constant, Decoupled, Independent, NormTarget, Toward
from halflife.selfcheck.optimizers import OptimizerCase, Variant
from halflife.selfcheck.problem import PEAKS, Net
from halflife.selfcheck.rules import RULES, RuleCase
from halflife.selfcheck.twin import run_case

# One rule for each way in which an answer is carried out, with the peak and without.
CHOSEN = {
    "decoupled, own",
    "cautious",
    "cautious corrected, own",
    "toward init",
    "toward an average",
    "norm target",
    "sphere, first",
    "l2",
    "stable with a given beta2",
}
SOME_RULES = [rule for rule in RULES if rule.name in CHOSEN]
assert len(SOME_RULES) == len(CHOSEN)

MUON = ({"use_muon": True}, {"use_muon": True}, {"use_muon": False})

# name, settings, whether the step depends on the weight (a projection, a trust ratio, a distance, a slow copy)
PYTORCH_OPTIMIZER: list[tuple[str, dict[str, Any], bool]] = [
    ("AdamP", {}, True),
    ("AdaBelief", {}, False),
    ("AdaBelief", {"rectify": True, "fixed_decay": True}, False),
    ("AdaFactor", {"relative_step": False}, True),
    ("Adai", {}, False),
    ("Adan", {}, False),
    ("Adan", {"weight_decouple": True}, False),
    ("ADOPT", {}, False),
    ("AdEMAMix", {}, False),
    ("CAME", {}, False),
    ("DiffGrad", {}, False),
    ("Lamb", {}, True),
    ("LaProp", {}, False),
    ("LARS", {}, True),
    ("Lion", {}, False),
    ("Lion", {"weight_decouple": False}, False),
    ("MARS", {"weight_decay_1d": 0.0}, True),
    ("Muon", {}, False),
    ("NovoGrad", {}, False),
    ("Prodigy", {}, True),
    ("QHAdam", {}, False),
    ("ScheduleFreeAdamW", {}, True),
    ("ScheduleFreeSGD", {}, True),
    ("SGDW", {"momentum": 0.9}, False),
    ("Shampoo", {}, False),
    ("SOAP", {}, False),
    ("StableAdamW", {}, False),
    ("Tiger", {}, False),
]
OPTIMI: list[tuple[str, dict[str, Any], bool]] = [
    ("Adam", {}, False),
    ("AdamW", {}, False),
    ("AdamW", {"decouple_lr": True}, False),
    ("Adan", {}, False),
    ("Lion", {}, False),
    ("RAdam", {}, False),
    ("Ranger", {}, True),
    ("SGD", {"momentum": 0.9}, False),
    ("StableAdamW", {"triton": False}, False),  # which it would want without a GPU, where triton is
]


def variant_of(library: str, name: str, settings: dict[str, Any], rereads: bool) -> Variant:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of their own imports
        kind: type[Optimizer] = getattr(importlib.import_module(library), name)
    layout: Any = "matrices" if name == "Muon" else "groups"
    per_group: tuple[dict[str, Any], ...] = MUON if name == "Muon" else ()
    if "decouple_lr" in settings:  # it writes the lr of its constructor as the peak of all groups
        per_group = tuple({"max_lr": peak} for peak in PEAKS)
    return Variant(
        OptimizerCase(name, kind, settings, ("",), rereads=rereads, layout=layout, per_group=per_group),
        "",
    )


def check(variant: Variant, dtype: torch.dtype) -> None:
    outcomes = [run_case(rule, variant, dtype) for rule in SOME_RULES]
    wrong = [f"{each.rule}: {each.detail}" for each in outcomes if each.status != "ok"]
    if {"decouple_lr", "fixed_decay"} & set(variant.case.settings):  # weight_decay is a fraction then, and no lam
        own = [
            each
            for each in wrong
            if "needs a lam: the weight_decay = 3 of " in each and " has another unit (with" in each
        ]
        assert len(own) == 3
        wrong = [each for each in wrong if each not in own]
    assert not wrong, "\n".join(wrong)


def ids(case: tuple[str, dict[str, Any], bool]) -> str:
    return "-".join([case[0], *map(str, case[1])])


@pytest.mark.parametrize("case", PYTORCH_OPTIMIZER, ids=ids)
def test_pytorch_optimizer(case: tuple[str, dict[str, Any], bool]) -> None:
    check(variant_of("pytorch_optimizer", *case), torch.float64)


@pytest.mark.filterwarnings("ignore:You are using weight_decay up to:UserWarning")  # its advice for its own decay
@pytest.mark.parametrize("case", OPTIMI, ids=ids)
def test_optimi(case: tuple[str, dict[str, Any], bool]) -> None:
    """Their groups have ``max_lr`` None: the peak is then found as if it were not there."""
    check(variant_of("optimi", *case), torch.float64)
    if not case[2]:
        check(variant_of("optimi", *case), torch.float32)


def test_a_peak_of_none_is_no_peak() -> None:
    weight = torch.nn.Parameter(torch.ones(1))
    weight.grad = torch.zeros(1)
    optimizer = torch.optim.SGD([weight], lr=0.5, weight_decay=0.1)
    optimizer.param_groups[0].update(max_lr=None, initial_lr=1.0)
    handle = attach(optimizer, Independent(0.1))
    optimizer.step()
    assert handle.fractions() == [0.05]


# ---- what is documented, since no hook can change it


def test_a_schedule_free_optimizer_decays_where_gradients_are_taken() -> None:
    """Its weights in training are y; z, of which the average is made, is in its state and does not shrink."""
    optimizers: Any = importlib.import_module("pytorch_optimizer")
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    optimizer = optimizers.ScheduleFreeSGD([weight], lr=0.1, weight_decay=1.0)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    z = optimizer.state[weight]["z"].clone()
    attach(optimizer, Constant(0.25))
    weight.grad = torch.zeros_like(weight)
    before = weight.detach().clone()
    optimizer.step()
    assert torch.equal(optimizer.state[weight]["z"], z)
    assert bool((weight > 0.75 * before).all()), "a part comes back from z"


def test_a_decay_under_another_name_goes_on() -> None:
    """MARS gives vectors a weight decay of their own, which is not in the groups' ``weight_decay``."""
    optimizers: Any = importlib.import_module("pytorch_optimizer")
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    optimizer = optimizers.MARS([weight], lr=0.1, lr_1d=0.1, weight_decay=0.5, weight_decay_1d=0.5)
    attach(optimizer, Constant(0.25))
    optimizer.step()
    assert weight.tolist() == pytest.approx([0.75 * 0.95] * 3)


# ---- torchao: states of 8 bits, a learning rate that is a tensor, a step that it compiles


@pytest.fixture
def adamw8bit() -> Callable[..., Optimizer]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao warns at import of what this torch lacks
        kind: Callable[..., Optimizer] = pytest.importorskip("torchao.optim").AdamW8bit
    return kind


TORCHAO_RULES: list[tuple[str, Any, Callable[[Tensor, Tensor, Tensor, float], Tensor]]] = [
    # weight before, twin's weight after, first weight, lr -> weight after
    ("decoupled", Decoupled(3.0), lambda w, stepped, first, lr: stepped - 3.0 * lr * w),
    ("independent", Independent(0.3), lambda w, stepped, first, lr: stepped - 0.3 * lr / 0.1 * w),
    (
        "cautious",
        Cautious(Decoupled(3.0)),
        lambda w, stepped, first, lr: stepped - 3.0 * lr * w * ((w - stepped) * w >= 0),
    ),
    ("toward init", Toward(Decoupled(3.0)), lambda w, stepped, first, lr: stepped - 3.0 * lr * (w - first)),
    ("norm target", NormTarget(5.0), lambda w, stepped, first, lr: stepped * 5.0 / stepped.norm()),
]


@pytest.mark.parametrize(("rule", "expected"), [case[1:] for case in TORCHAO_RULES], ids=[c[0] for c in TORCHAO_RULES])
def test_torchao(adamw8bit: Callable[..., Optimizer], rule: Any, expected: Callable[..., Tensor]) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(64, 64, generator=generator)
    weight, twin = torch.nn.Parameter(first.clone()), torch.nn.Parameter(first.clone())
    optimizer = adamw8bit([weight], lr=0.1, weight_decay=0.5)
    bare = adamw8bit([twin], lr=0.1, weight_decay=0.0)
    attach(optimizer, rule, peak_lr=0.1)
    with torch.compiler.set_stance("force_eager"):  # the same step, without a C++ compiler
        for lr in (0.05, 0.1, 0.08, 0.02):
            before = weight.detach().clone()
            gradient = torch.randn(64, 64, generator=generator) * 0.5
            with torch.no_grad():
                twin.copy_(before)
            for one, parameter in ((optimizer, weight), (bare, twin)):
                one.param_groups[0]["lr"].fill_(lr)  # it refuses plain numbers
                parameter.grad = gradient.clone()
                one.step()
            goal = expected(before.double(), twin.detach().double(), first.double(), lr)
            torch.testing.assert_close(weight.detach().double(), goal, rtol=2e-6, atol=1e-6)
    state = next(iter(optimizer.state.values()))
    assert type(state["exp_avg"]).__name__ == "OptimState8bit", "large enough for 8 bits"
    assert optimizer.param_groups[0]["weight_decay"] == 0.5


# ---- stable-baselines3: an optimizer class with its arguments


def learned(algorithm: str, rule: Any, *, weight_decay: float, **settings: Any) -> tuple[list[Tensor], list[float]]:
    """Train a few steps; SB3 builds the optimizer, sets its learning rate, and clips."""
    sb3: Any = importlib.import_module("stable_baselines3")
    gymnasium: Any = importlib.import_module("gymnasium")
    policy = {
        "net_arch": [8],
        "optimizer_class": torch.optim.AdamW,
        "optimizer_kwargs": {"weight_decay": weight_decay, "eps": 1e-5},
    }
    model = getattr(sb3, algorithm)(
        "MlpPolicy",
        gymnasium.make("CartPole-v1"),
        learning_rate=lambda left: 0.01 + 0.04 * left,
        n_steps=16,
        seed=0,
        device="cpu",
        policy_kwargs=policy,
        **settings,
    )
    handle = None if rule is None else attach(model.policy.optimizer, rule, peak_lr=0.05)
    model.learn(64)
    return [p.detach().clone() for p in model.policy.parameters()], [] if handle is None else handle.fractions()


@pytest.mark.parametrize(("algorithm", "settings"), [("PPO", {"batch_size": 8, "n_epochs": 2}), ("A2C", {})])
def test_stable_baselines3(algorithm: str, settings: dict[str, Any]) -> None:
    """The rule that AdamW has by itself gives the same policy, bit for bit; another gives another."""
    own, _ = learned(algorithm, None, weight_decay=1.0, **settings)
    attached, fractions = learned(algorithm, Decoupled(), weight_decay=1.0, **settings)
    assert fractions[0] == pytest.approx(0.01), "SB3's schedule at its last update"
    for one, other in zip(own, attached, strict=True):
        assert torch.equal(one, other)
    independent, fractions = learned(algorithm, Independent(0.2), weight_decay=1.0, **settings)
    assert fractions[0] == pytest.approx(0.2 * 0.01 / 0.05)
    assert not all(torch.equal(one, other) for one, other in zip(own, independent, strict=True))


def test_the_rmsprop_of_stable_baselines3() -> None:
    """Its default for A2C, where weight decay is a penalty until a rule takes its place."""
    module: Any = importlib.import_module("stable_baselines3.common.sb2_compat.rmsprop_tf_like")
    case = OptimizerCase("RMSpropTFLike", module.RMSpropTFLike, {"eps": 1e-4}, ("",))
    check(Variant(case, ""), torch.float64)


def test_the_table_serves_what_it_does_not_know() -> None:
    """A library's optimizer that decays by itself, whatever its groups say, is found."""

    class Stubborn(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            with torch.no_grad():
                for group in self.param_groups:
                    for parameter in group["params"]:
                        parameter.mul_(0.99)
            return super().step(closure)

    rule: RuleCase = SOME_RULES[0]
    outcome = run_case(rule, Variant(OptimizerCase("Stubborn", Stubborn, forms=("",)), ""), torch.float64)
    assert outcome.status == "FAILED"
    assert len(PEAKS) == Net().num_groups
