"""Weights and settings that are not as usual: few bits, no elements, fractions beyond 1, settings without a number."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer, Rprop

import halflife
from halflife.laws.copies import written


class Wide(Optimizer):
    """Decoupled decay that is computed in float32, with parts to replace."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: Any = 0.0) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.calls = 0

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    kept = (1 - group["lr"] * self.lam(group, parameter)) * parameter.float()
                    parameter.copy_(kept - group["lr"] * parameter.grad.float())


def holding(**tensors: Tensor) -> Any:
    model = nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, nn.Parameter(tensor))
    return model


def numbers(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(3)) + 2.0).to(dtype)


EIGHT_BITS = [torch.float8_e4m3fn, torch.float8_e5m2]


@pytest.mark.parametrize("in_place", [False, True], ids=["a copy", "in place"])
@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=["e4m3", "e5m2"])
def test_weights_of_8_bits(dtype: torch.dtype, in_place: bool) -> None:
    model = holding(a=numbers(4, 4, dtype=dtype), b=numbers(3))
    optimizer = Wide([{"params": [model.a], "weight_decay": 5.0}, {"params": [model.b]}])
    a, b = halflife.explain(model, optimizer, in_place=in_place).rows
    assert (a["decays"], a["law"], b["decays"]) == (True, "decoupled", False)
    before = model.a.detach().float()
    model.a.grad = torch.zeros_like(model.a)
    optimizer.step()
    assert a["r"] == pytest.approx(1 - (model.a.detach().float().norm() / before.norm()).item(), rel=0.1)


def test_weights_of_8_bits_that_torch_cannot_step() -> None:
    model = holding(a=numbers(4, 4, dtype=torch.float8_e5m2))
    optimizer = AdamW([model.a], weight_decay=0.1)
    (row,) = halflife.explain(model, optimizer).rows
    assert (row["decays"], "not implemented for 'Float8_e5m2'" in row["why"]) == (None, True)
    model.a.grad = torch.zeros_like(model.a)
    with pytest.raises(NotImplementedError, match="Float8_e5m2"):  # nor can it in training
        optimizer.step()


def test_a_parameter_without_elements() -> None:
    model = holding(full=numbers(3, 3), empty=torch.empty(0, 3))
    optimizer = SGD(model.parameters(), lr=0.1, weight_decay=0.1)
    table = halflife.explain(model, optimizer)
    rows = {row["parameter"]: row for row in table.rows}
    assert (rows["empty"]["decays"], rows["empty"]["why"]) == (False, "it has no elements")
    assert "ignored" not in {warning.code for warning in table.warnings}
    assert "matrix-without-decay" not in {warning.code for warning in table.warnings}
    assert table.groups[0]["describe"].startswith("l2: ")
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"})  # nothing is asked of what is empty


def test_a_parameter_that_becomes_nan_hides_no_others() -> None:
    model = holding(short=numbers(3, 3, dtype=torch.float16), full=numbers(2, 3))
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=0.2)  # eps = 1e-8 is 0 in float16
    short, full = halflife.explain(model, optimizer).rows
    assert (full["decays"], full["law"], full["lam"]) == (True, "decoupled", 0.2)
    assert short["decays"] is None
    assert "infinite or NaN in a step with a gradient of zeros" in short["why"]
    model.short.grad, model.full.grad = torch.zeros_like(model.short), torch.zeros_like(model.full)
    optimizer.step()
    assert (bool(model.short.isnan().any()), bool(model.full.isnan().any())) == (True, False)


BEYOND = [
    (-0.3, "each step grows it", "r = -0.03: each step grows 1 parameter: a; make lr * weight_decay positive"),
    (10.0, "each step sets it to 0", "r = 1: each step sets to 0 1 parameter: a; make lr * weight_decay smaller"),
    (12.0, "each step flips its sign", "r = 1.2: each step flips the sign of 1 parameter: a; make lr"),
    (
        30.0,
        "each step flips its sign and does not shrink it",
        "r = 3: each step flips the sign of 1 parameter and does not shrink it: a; make lr * weight_decay smaller",
    ),
]


@pytest.mark.parametrize(("lam", "note", "text"), BEYOND, ids=[str(row[0]) for row in BEYOND])
def test_fractions_that_do_not_shrink(lam: float, note: str, text: str) -> None:
    model = holding(a=numbers(3, 4))
    optimizer = Wide(model.parameters(), weight_decay=lam)
    table = halflife.explain(model, optimizer)
    (row,) = table.rows
    assert (row["decays"], row["half_life"], row["notes"]) == (True, None, [note])
    (warning,) = table.warnings
    assert warning.code == ("negative-decay" if lam < 0 else "r-of-1-or-more")
    assert text in str(warning)
    before = model.a.detach().clone()
    model.a.grad = torch.zeros_like(model.a)
    optimizer.step()
    assert torch.allclose(model.a, (1 - row["r"]) * before, atol=1e-6)


def test_a_fraction_beyond_1_at_the_peak() -> None:
    model = holding(a=numbers(3, 4))
    optimizer = AdamW(model.parameters(), lr=0.1, weight_decay=1.0)
    optimizer.param_groups[0]["max_lr"] = 1.5
    table = halflife.explain(model, optimizer)
    assert (table.rows[0]["r"], table.rows[0]["notes"]) == (pytest.approx(0.1), [])
    assert str(table.warnings[0]).startswith(
        "r = 1.5 at the peak learning rate: each step flips the sign of 1 parameter: a;"
    )


class Late(Wide):
    """Acts from a call on that nobody waits for."""

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["weight_decay"]) if self.calls > 90 else 0.0


class Rough(Wide):
    """Acts where the gradient is larger than usual."""

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        assert parameter.grad is not None
        return float(group["weight_decay"]) if float(parameter.grad.abs().max()) > 1e3 else 0.0


@pytest.mark.parametrize("kind", [Late, Rough])
def test_no_effect_that_was_seen_is_no_proof(kind: Callable[..., Optimizer]) -> None:
    model = holding(a=numbers(3, 4))
    optimizer = kind(model.parameters(), weight_decay=0.2)
    table = halflife.explain(model, optimizer)
    tried = "had no effect in 64 calls with gradients of zeros, and in a few with random ones"
    assert table.rows[0]["why"] == f"weight_decay is 0.2, but it {tried}"
    (warning,) = [each for each in table.warnings if each.code == "ignored"]
    assert f"weight_decay = 0.2 of group 0 of optimizer 0 ({optimizer.__class__.__name__}) {tried};" in str(warning)
    assert "what later calls do, or other gradients, is not known" in str(warning)
    assert "ignores" not in str(table)
    assert "its weight_decay has no effect" not in str(table)
    assert str(table.warnings[-1]) == "nothing decays: attach a rule"


def test_no_effect_in_a_step_of_torch_is_proven() -> None:
    model = holding(a=numbers(3, 4))
    table = halflife.explain(model, Rprop([{"params": [model.a], "weight_decay": 0.2}]))
    assert table.rows[0]["why"] == "weight_decay is 0.2, but Rprop ignores it"
    assert "has no effect: probing shows that the optimizer ignores it" in str(table.warnings[0])


def ramp(parameter: Tensor) -> float:
    return 0.5 if parameter.ndim > 1 else 0.0


class Called(Wide):
    """Its weight_decay is a function of the parameter."""

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["weight_decay"](parameter))


FUNCTIONS = {"the function ramp": ramp, "a lambda": lambda parameter: 0.5 * (parameter.ndim > 1)}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_weight_decay_that_is_a_function(name: str) -> None:
    model = holding(a=numbers(3, 4), b=numbers(3))
    optimizer = Called(model.parameters(), weight_decay=FUNCTIONS[name])
    table = halflife.explain(model, optimizer)
    a, b = table.rows
    assert (a["decays"], a["r"], b["decays"]) == (True, pytest.approx(0.05), False)
    assert a["why"].startswith(f"weight_decay is {name}; a step at lr = 0.1 removes 0.05 of it")
    assert b["why"] == f"weight_decay is {name}"
    assert " at 0x" not in str(table)


def test_settings_are_written_without_addresses() -> None:
    assert [written(each) for each in (None, "0.1", [1, 2])] == ["None", "'0.1'", "[1, 2]"]
    assert written(nn.Module) == repr(nn.Module)
    assert written(object()) == "an object of type object"


class Around:
    """No torch optimizer, without a state, whose groups are made anew each time."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [dict(group) for group in self.inner.param_groups]

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


def test_a_wrapper_without_state() -> None:
    model = holding(a=numbers(3, 4, dtype=torch.bfloat16))
    optimizer = Around(SGD(model.parameters(), lr=0.01, weight_decay=0.1))
    table = halflife.explain(model, optimizer)  # type: ignore[arg-type]
    (row,) = table.rows
    assert (row["decays"], row["r"]) == (True, pytest.approx(1e-3, rel=0.05))
    assert "AttributeError" not in str(table)
    assert "a learning rate that is written into its groups does not reach it" in row["why"]


class WithArguments(Wide):
    def step(self, rate: float) -> None:  # type: ignore[override]
        self.param_groups[0]["lr"] = rate
        super().step()


def test_a_step_that_wants_arguments() -> None:
    model = holding(a=numbers(3, 4))
    optimizer = WithArguments(model.parameters(), weight_decay=0.5)
    (row,) = halflife.explain(model, optimizer).rows
    assert (
        "step() missing 1 required positional argument: 'rate'; it is called with none: bind them, as in" in row["why"]
    )
    optimizer.step = functools.partial(optimizer.step, 0.1)  # type: ignore[method-assign]
    (row,) = halflife.explain(model, optimizer).rows
    assert (row["decays"], row["r"]) == (True, pytest.approx(0.05))


class WithoutStep(Optimizer):
    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.1})


def test_a_class_without_a_step() -> None:
    model = holding(a=numbers(3, 4))
    (row,) = halflife.explain(model, WithoutStep(model.parameters())).rows
    assert row["why"].startswith("not probed: its class implements no step(); explain what it leaves the step to")


def test_a_rate_is_blamed_only_if_a_float_would_do() -> None:
    model = holding(a=numbers(3, 4))
    optimizer = AdamW(model.parameters(), lr=torch.tensor(0.1), weight_decay=0.1, capturable=True)
    (row,) = halflife.explain(model, optimizer).rows
    assert "capturable=True, params and state_steps must be on supported devices" in row["why"]
    assert "make it a float" not in row["why"]


class InTraining(Wide):
    """Acts while its model is in training mode."""

    model: nn.Module

    def lam(self, group: dict[str, Any], parameter: Tensor) -> float:
        return float(group["weight_decay"]) if self.model.training else 0.0


def test_a_model_in_evaluation_mode_will_train() -> None:
    model = holding(a=numbers(3, 4))
    optimizer = InTraining(model.parameters(), weight_decay=0.5)
    optimizer.model = model.eval()
    (row,) = halflife.explain(model, optimizer).rows
    assert (row["decays"], row["law"], row["r"]) == (True, "decoupled", pytest.approx(0.05))
    assert not model.training
