"""``identify`` on optimizers that people use: one table, with what their published formulas say."""

from __future__ import annotations

import functools
import logging
import random
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import halflife
from halflife.errors import UserError
from halflife.laws import Law, identify
from tests import HAS_MUON

Make = Callable[[Any, float, float], Any]


def torch_optimizer(name: str, **settings: Any) -> Make:
    def make(params: Any, lr: float, weight_decay: float) -> Any:
        return getattr(torch.optim, name)(params, lr=lr, weight_decay=weight_decay, **settings)

    return make


def of(module: str, name: str, **settings: Any) -> Make:
    """An optimizer of a third-party package."""

    def make(params: Any, lr: float, weight_decay: float) -> Any:
        return getattr(quietly_imported(module), name)(params, lr=lr, weight_decay=weight_decay, **settings)

    return make


@functools.cache
def quietly_imported(module: str) -> Any:
    logging.disable(logging.WARNING)  # torchao tells of C++ extensions that it does not find
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pytest.importorskip(module)
    finally:
        logging.disable(logging.NOTSET)


def normalized(params: Any, lr: float, weight_decay: float) -> Any:
    groups = [{"params": params, "normalized": True}]
    return quietly_imported("pytorch_optimizer").AdamC(groups, lr=lr, weight_decay=weight_decay)


def without_weight_decay(name: str) -> Make:
    return lambda params, lr, weight_decay: getattr(torch.optim, name)(params, lr=lr)


@dataclass(frozen=True)
class Case:
    """An optimizer, and what its formula says. ``notes`` are words that the notes must have."""

    name: str
    make: Make
    pathway: str
    exponents: tuple[float, float] | None = None
    coefficient: float | None = None
    position: str | None = None
    native: bool | None = True
    rule: str | None = None
    equivalent_to: str | None = None
    fraction: float | None = None
    notes: tuple[str, ...] = ()
    by_shape: dict[str, str] = field(default_factory=dict)


R = 0.05 * 0.02  # lr * lam of the probe


def decoupled(name: str, make: Make, rule: str | None = "decoupled", **changes: Any) -> Case:
    """``r = lr * lam``, before the update, unless changed."""
    exponents = {"decoupled": (1.0, 0.0), "independent": (1.0, -1.0), "constant": (0.0, 0.0), "corrected": (2.0, -1.0)}
    fraction = 0.02 if rule in {"independent", "constant"} else R
    plain: dict[str, Any] = {
        "exponents": exponents[rule or "decoupled"],
        "coefficient": 1.0,
        "position": "before",
        "fraction": fraction,
        "rule": rule,
    }
    return Case(name, make, "decoupled", **(plain | changes))


def preconditioned(name: str, make: Make, **changes: Any) -> Case:
    return Case(name, make, "l2-preconditioned", rule="l2", **changes)


def l2(name: str, make: Make, coefficient: float, long_run: float, **changes: Any) -> Case:
    plain = {"exponents": (1.0, 0.0), "coefficient": coefficient, "rule": "l2", "fraction": long_run * R}
    return Case(name, make, "l2", **(plain | changes))  # type: ignore[arg-type]


def as_decoupled(name: str, make: Make, **changes: Any) -> Case:
    return l2(name, make, 1.0, 1.0, rule="decoupled", equivalent_to="decoupled", **changes)


PO = "pytorch_optimizer"
FLOAT32 = "measured in float32; in float64: it rounds the weights to fewer digits"  # and at 5 times the weight decay
TORCH = [
    decoupled("AdamW", torch_optimizer("AdamW")),
    decoupled("AdamW-loop", torch_optimizer("AdamW", foreach=False)),
    decoupled("AdamW-foreach", torch_optimizer("AdamW", foreach=True)),
    decoupled("AdamW-fused", torch_optimizer("AdamW", fused=True)),
    decoupled("AdamW-amsgrad", torch_optimizer("AdamW", amsgrad=True)),
    decoupled("AdamW-maximize", torch_optimizer("AdamW", maximize=True)),
    decoupled("Adam-decoupled", torch_optimizer("Adam", decoupled_weight_decay=True)),
    decoupled("NAdam-decoupled", torch_optimizer("NAdam", decoupled_weight_decay=True)),
    decoupled("RAdam-decoupled", torch_optimizer("RAdam", decoupled_weight_decay=True)),
    decoupled("Adafactor", torch_optimizer("Adafactor")),
    *(
        [decoupled("Muon", torch_optimizer("Muon"), notes=("a vector is refused: ValueError: Muon only supports 2D",))]
        if HAS_MUON
        else []
    ),
    preconditioned("Adam", torch_optimizer("Adam")),
    preconditioned("Adam-fused", torch_optimizer("Adam", fused=True)),
    preconditioned("Adam-maximize", torch_optimizer("Adam", maximize=True)),
    preconditioned("NAdam", torch_optimizer("NAdam")),
    preconditioned("RAdam", torch_optimizer("RAdam")),
    preconditioned("RMSprop", torch_optimizer("RMSprop")),
    preconditioned("RMSprop-momentum", torch_optimizer("RMSprop", momentum=0.9)),
    preconditioned("Adagrad", torch_optimizer("Adagrad")),
    preconditioned("Adadelta", torch_optimizer("Adadelta")),
    preconditioned("Adamax", torch_optimizer("Adamax")),
    as_decoupled("SGD", torch_optimizer("SGD")),
    as_decoupled("SGD-fused", torch_optimizer("SGD", fused=True)),
    # Within a step momentum passes the new gradient on once, Nesterov 1 + mu times; in the long run 1 / (1 - mu).
    l2("SGD-momentum", torch_optimizer("SGD", momentum=0.9), 1.0, 10.0, notes=("adds up to r = 10 * lr * lam",)),
    l2("SGD-maximize", torch_optimizer("SGD", momentum=0.9, maximize=True), 1.0, 10.0),
    l2("SGD-nesterov", torch_optimizer("SGD", momentum=0.8, nesterov=True), 1.8, 5.0),
    l2("SGD-dampening", torch_optimizer("SGD", momentum=0.9, dampening=0.3), 0.7, 7.0),
    # ASGD's own lambd = 1e-4 shrinks by lr * lambd; its step size has fallen by 5e-5 of itself after 12 steps.
    as_decoupled("ASGD", torch_optimizer("ASGD"), notes=("at weight_decay 0 the weights shrink by r = 5e-06",)),
    Case("Rprop", without_weight_decay("Rprop"), "none", native=None, fraction=0.0, notes=("have no weight_decay",)),
    Case(
        "LBFGS",
        without_weight_decay("LBFGS"),
        "none",
        native=None,
        fraction=0.0,
        notes=("it needs a closure, and was",),
    ),
    Case("SparseAdam", without_weight_decay("SparseAdam"), "not probed", native=None, notes=("dense gradients",)),
]
OTHERS = [
    decoupled("optimi-AdamW", of("optimi", "AdamW")),
    decoupled("optimi-AdamW-decouple_lr", of("optimi", "AdamW", decouple_lr=True), "independent"),
    decoupled("optimi-Lion-decouple_lr", of("optimi", "Lion", decouple_lr=True), "independent"),
    preconditioned("optimi-Adam", of("optimi", "Adam")),
    decoupled("optimi-SGD-decouple_wd", of("optimi", "SGD", momentum=0.9, decouple_wd=True)),
    decoupled(
        "optimi-Adan-decouple_lr",
        of("optimi", "Adan", decouple_lr=True),
        "independent",
        position="after",
        fraction=0.02 / 1.02,
        notes=("takes x / (1 + x)",),
    ),
    decoupled("AdaBelief", of(PO, "AdaBelief", weight_decouple=True)),
    decoupled("AdaBelief-fixed", of(PO, "AdaBelief", weight_decouple=True, fixed_decay=True), "constant"),
    preconditioned("AdaBelief-l2", of(PO, "AdaBelief", weight_decouple=False)),
    decoupled("SGDW-momentum", of(PO, "SGDW", momentum=0.9, weight_decouple=True)),
    as_decoupled("SGDW", of(PO, "SGDW", weight_decouple=True)),
    decoupled("Lion", of(PO, "Lion", weight_decouple=True)),
    preconditioned("Lion-l2", of(PO, "Lion", weight_decouple=False)),
    decoupled("AdamC-normalized", normalized, "corrected"),
    decoupled("AdamC", of(PO, "AdamC")),
    decoupled("SOAP", of(PO, "SOAP"), position="after"),
    decoupled("LaProp", of(PO, "LaProp"), position="after"),
    decoupled(
        "Adan",
        of(PO, "Adan", weight_decouple=False),
        position="after",
        fraction=R / (1 + R),
        notes=("takes x / (1 + x)",),
    ),
    decoupled(
        "Kron",
        of(PO, "Kron"),
        by_shape={"matrix": "decoupled", "vector": "none", "convolution": "decoupled"},
        notes=("differs by shape",),
    ),
    decoupled("AdamP", of(PO, "AdamP"), notes=("orthogonal to the weight, r is 0.1 times",)),
    Case("AdamP-l2", of(PO, "AdamP", weight_decouple=False), "none", native=None, fraction=0.0, notes=("no effect",)),
    Case("AdamS", of(PO, "AdamS"), "other", notes=("10 times the gradients, 0.1 times the r",)),
    Case("ScheduleFreeSGD", of(PO, "ScheduleFreeSGD"), "other", notes=("depends on the run so far",)),
    Case("ScheduleFreeAdamW", of(PO, "ScheduleFreeAdamW"), "other", notes=("state remembers it",)),
    Case("Prodigy", of(PO, "Prodigy"), "other", notes=("it changes by step",)),
    Case("LAMB", of(PO, "Lamb"), "other", notes=("the size of the weights",)),
    Case(
        "LARS",
        of(PO, "LARS"),
        "other",
        notes=("a different fraction of each element",),
        by_shape={"matrix": "other", "vector": "none", "convolution": "other"},
    ),
    Case("FAdam", of(PO, "FAdam"), "other", notes=("measured in float32; in float64: RuntimeError",)),
    Case("Ranger21", of(PO, "Ranger21"), "not probed", native=None, notes=("'num_iterations'",)),
    Case("SophiaH", of(PO, "SophiaH"), "not probed", native=None, notes=("does not require grad",)),
    Case("AdaHessian", of(PO, "AdaHessian"), "not probed", native=None, notes=("does not require grad",)),
    decoupled("torchao-AdamW8bit", of("torchao.optim", "AdamW8bit"), fraction=5 * R, notes=(FLOAT32,)),
    decoupled("torchao-AdamW4bit", of("torchao.optim", "AdamW4bit"), fraction=5 * R, notes=(FLOAT32,)),
    decoupled("torchao-AdamWFp8", of("torchao.optim", "AdamWFp8"), fraction=5 * R, notes=(FLOAT32,)),
    preconditioned("torchao-Adam8bit", of("torchao.optim", "Adam8bit"), notes=(FLOAT32,)),
]
CASES = TORCH + OTHERS


@functools.cache
def law_of(index: int) -> Law:
    return identify(CASES[index].make)


# Kron draws, and takes ten times as long as any other; the others of torchao are quantized as AdamW8bit is.
SLOW = {"Kron", "torchao-AdamW4bit", "torchao-AdamWFp8", "torchao-Adam8bit"}


@pytest.mark.parametrize(
    "index",
    [pytest.param(i, marks=pytest.mark.slow) if case.name in SLOW else i for i, case in enumerate(CASES)],
    ids=[case.name for case in CASES],
)
def test_law(index: int) -> None:
    case, law = CASES[index], law_of(index)
    exponents = None if law.lr_exponent is None else (law.lr_exponent, law.peak_lr_exponent)
    assert (law.pathway, exponents) == (case.pathway, case.exponents), law
    assert law.coefficient == (None if case.coefficient is None else pytest.approx(case.coefficient, rel=1e-5))
    assert (law.position, law.native) == (case.position, case.native), law
    assert (law.name, law.equivalent_to) == (case.rule, case.equivalent_to), law
    assert law.fraction == (None if case.fraction is None else pytest.approx(case.fraction, rel=1e-4))
    said = "\n".join(law.notes)
    for words in case.notes:
        assert words in said, law.notes
    if case.pathway not in {"other", "not probed", "none"} and not case.notes:
        refusals = [note for note in law.notes if "refused" in note or "momentum" in note]
        assert law.notes == tuple(refusals), "a note on an optimizer that has no surprises"
    assert {shape: each.pathway for shape, each in law.by_shape.items()} == case.by_shape


def test_the_peak_is_the_one_of_the_constructor_and_lower_rates_come_later() -> None:
    """AdamC takes the constructor's lr for the peak: (lr^2 / peak) at three lr below it, by its own formula."""
    for lr in (0.05, 0.025, 0.01):
        weight = torch.nn.Parameter(torch.ones(3, 2, dtype=torch.float64))
        optimizer = normalized([weight], 0.05, 0.02)
        optimizer.param_groups[0]["lr"] = lr
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        assert 1.0 - weight[0, 0].item() == pytest.approx(lr * lr / 0.05 * 0.02, rel=1e-9)


def test_describe_is_one_line() -> None:
    for index, case in enumerate(CASES[:20]):
        text = law_of(index).describe()
        assert "\n" not in text
        assert text.startswith(case.pathway)
    assert law_of(0).describe() == "decoupled: r = lr * lam (native)"
    law = Law(pathway="decoupled", lr_exponent=0.5, peak_lr_exponent=-2.0, coefficient=3.0, position="after")
    assert law.describe() == "decoupled: r = 3 * lr^0.5 / peak_lr^2 * lam, after the update"
    assert Law(pathway="decoupled", lr_exponent=0.0, peak_lr_exponent=0.0, coefficient=1.0).describe().endswith("= lam")
    below = Law(pathway="decoupled", lr_exponent=0.0, peak_lr_exponent=-1.0, coefficient=1.0)
    assert below.formula() == "1 / peak_lr * lam"
    both = Law(pathway="decoupled", by_shape={"matrix": below, "vector": Law(pathway="none")})
    assert both.describe() == "matrix: decoupled: r = 1 / peak_lr * lam; vector: none: nothing decays"


# ---- nothing of the user's is changed, and the answer never changes


def noisy(params: Any, lr: float, weight_decay: float) -> Any:
    """AdamW whose step draws from every generator, warns, and reads a global hook's count."""

    class Noisy(torch.optim.AdamW):
        def step(self, closure: Any = None) -> Any:
            warnings.warn("noise", UserWarning, stacklevel=1)
            shift = random.random() + float(np.random.rand()) + torch.rand(()).item()
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.grad.add_(shift)
            return super().step(closure)

    return Noisy(params, lr=lr, weight_decay=weight_decay)


def test_nothing_global_is_changed() -> None:
    calls = []
    handle = register_optimizer_step_pre_hook(lambda *args: calls.append(1))
    try:
        before = (torch.get_rng_state(), random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist())
        with torch.no_grad():
            law = identify(noisy)
            assert not torch.is_grad_enabled()
        assert torch.is_inference_mode_enabled() is False
    finally:
        handle.remove()
    assert (law.pathway, law.coefficient) == ("decoupled", 1.0)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    assert np.random.get_state(legacy=False)["state"]["key"].tolist() == before[2]
    assert calls == []
    assert torch.get_default_dtype() == torch.float32


def test_the_users_hooks_for_all_optimizers_come_back() -> None:
    calls = []
    handle = register_optimizer_step_post_hook(lambda *args: calls.append(1))
    try:
        identify(torch_optimizer("SGD"))
        weight = torch.nn.Parameter(torch.ones(2))
        weight.grad = torch.ones(2)
        torch.optim.SGD([weight], lr=0.1).step()
    finally:
        handle.remove()
    assert calls == [1]


@pytest.mark.parametrize("setting", ["default dtype", "inference mode", "default device"])
def test_unusual_global_settings_do_not_matter(setting: str) -> None:
    make = of(PO, "AdaBelief", weight_decouple=True)
    if setting == "default dtype":
        torch.set_default_dtype(torch.bfloat16)
        try:
            law = identify(make)
            assert torch.get_default_dtype() == torch.bfloat16
        finally:
            torch.set_default_dtype(torch.float32)
    elif setting == "inference mode":
        with torch.inference_mode():
            law = identify(make)
    else:
        with torch.device("meta"):
            law = identify(make)
            assert torch.empty(()).device.type == "meta"
    assert law == identify(make)


@pytest.mark.parametrize("make", [noisy, pytest.param(of(PO, "Kron"), marks=pytest.mark.slow)], ids=["noisy", "Kron"])
def test_deterministic_and_independent_of_the_users_seed(make: Any) -> None:
    laws = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        random.seed(seed)
        laws.append(identify(make))
    assert laws[0] == laws[1]


def test_numpy_is_not_imported_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "numpy", None)  # importing it is an error now
    assert identify(torch_optimizer("AdamW")).name == "decoupled"


# ---- wrong input


def ready_made(params: Any, lr: float, weight_decay: float) -> Any:
    return torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=lr)


WRONG: list[tuple[Any, str]] = [
    (torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), r"identify needs a function of params, lr and"),
    (lambda params: None, r"calls its function as make_optimizer\(params, lr, weight_decay\), which this one refuses"),
    (lambda params, lr, weight_decay: None, r"make_optimizer must return an optimizer, got None"),
    (lambda params, lr, weight_decay: [1], r"make_optimizer must return an optimizer, got \[1\]"),
    (ready_made, r"must build its optimizer over the parameters that it is given"),
]


@pytest.mark.parametrize(("make", "message"), WRONG, ids=[message[:30] for _, message in WRONG])
def test_wrong_input(make: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        halflife.identify(make)


def test_what_the_constructor_raises_is_the_reason() -> None:
    def make(params: Any, lr: float, weight_decay: float) -> Any:
        raise RuntimeError("no license\nfor this machine")

    law = identify(make)
    assert (law.pathway, law.notes) == ("not probed", ("RuntimeError: no license",))


def test_what_turns_into_nan_is_not_probed() -> None:
    class Diverging(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.data.fill_(float("nan"))

    law = identify(lambda params, lr, weight_decay: Diverging(params, lr=lr, weight_decay=weight_decay))
    assert law.pathway == "not probed"
    assert law.notes == ("its weights became infinite or NaN",)


def test_a_class_gets_its_settings_by_name() -> None:
    """By position the weight decay would be SGD's momentum, and SGD would seem to decay nothing."""
    assert identify(torch.optim.SGD).pathway == "l2"
    assert identify(functools.partial(torch.optim.SGD, momentum=0.9)).equivalent_to is None
    assert identify(torch.optim.AdamW).name == "decoupled"
    law = identify(torch.optim.LBFGS)
    assert law.pathway == "not probed"
    assert law.notes[0] == (
        "LBFGS cannot be made with params, lr and weight_decay alone (got an unexpected keyword argument 'weight_decay'); "
        "pass a function that makes it: lambda params, lr, weight_decay: LBFGS(params, ...)"
    )


class Sharp(torch.optim.Optimizer):
    """Steps an inner optimizer with the gradients of a place nearby, for which it needs a closure."""

    def __init__(self, params: Any, base: Any, rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base = base(self.param_groups, **settings)
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is not None, "this optimizer requires a closure"
        held = [parameter for group in self.param_groups for parameter in group["params"]]
        norm = torch.stack([parameter.grad.norm() for parameter in held]).norm()
        before = [parameter.clone() for parameter in held]
        for parameter in held:
            parameter.add_(parameter.grad, alpha=0.05 / float(norm))
        self.zero_grad()
        with torch.enable_grad():
            closure()
        for parameter, weights in zip(held, before, strict=True):
            parameter.copy_(weights)
        self.base.step()


@pytest.mark.parametrize(
    ("base", "settings", "pathway", "coefficient"),
    [
        ("SGD", {}, "l2", 1.0),
        ("SGD", {"momentum": 0.8, "nesterov": True}, "l2", 1.8),
        ("AdamW", {}, "decoupled", 1.0),
        ("Adam", {}, "l2-preconditioned", None),
    ],
)
def test_an_optimizer_that_needs_a_closure_gets_one(base: str, settings: Any, pathway: str, coefficient: Any) -> None:
    inner = getattr(torch.optim, base)
    law = identify(lambda params, lr, lam: Sharp(params, inner, lr=lr, weight_decay=lam, **settings))
    assert (law.pathway, law.coefficient) == (pathway, coefficient)
    assert law.native
    assert (
        law.notes[-1]
        == "it needs a closure, and was stepped with one that gives the same gradients wherever the weights are"
    )
