"""What decays beside `step`: hooks that are registered for all optimizers, a ``zero_grad``, results that are kept."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD, AdamW
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

import halflife
from halflife.laws import live
from tests.laws.adversaries.parts import LAM, LR, Plain, groups, net

EXTRA = 1 / 32


def shrink(optimizer: Any, *_: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(1 - EXTRA)


@pytest.fixture(params=[register_optimizer_step_pre_hook, register_optimizer_step_post_hook], ids=["pre", "post"])
def hook_of_all(request: pytest.FixtureRequest) -> Iterator[None]:
    handle = request.param(shrink)
    yield
    handle.remove()


@pytest.mark.usefixtures("hook_of_all")
def test_a_hook_of_all_optimizers_is_not_probed_on_copies() -> None:
    model = net()
    optimizer = AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM)
    table = halflife.explain(model, optimizer)
    assert {row["decays"] for row in table.rows} == {None}
    assert "step hooks that are not of halflife (shrink)" in str(table)
    with pytest.raises(AssertionError, match="found not probed"):
        halflife.assert_decay(model, optimizer, {"*": "none"})


@pytest.mark.usefixtures("hook_of_all")
def test_a_hook_of_all_optimizers_is_seen_in_place() -> None:
    model = net()
    rows = halflife.explain(model, AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM), in_place=True).rows
    for row in rows:
        own = LR * LAM if len(row["shape"]) > 1 else 0.0
        assert row["r"] == pytest.approx(1 - (1 - own) * (1 - EXTRA), rel=1e-4)


def test_a_hook_of_all_optimizers_that_is_gone_is_forgotten() -> None:
    register_optimizer_step_post_hook(shrink).remove()
    model = net()
    assert {row["r"] for row in halflife.explain(model, SGD(model.parameters(), lr=LR, weight_decay=LAM)).rows} == {
        LR * LAM
    }


class AtZeroGrad(Plain):
    """Decays where gradients are taken away."""

    def wd(self, group: dict[str, Any], p: Tensor) -> float:
        return 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
        super().zero_grad(set_to_none)


class Around:
    """No optimizer of torch's: shrinks all where it takes the gradients of the inner one away."""

    def __init__(self, inner: Any) -> None:
        self.inner, self.param_groups, self.state = inner, inner.param_groups, inner.state

    def step(self) -> None:
        self.inner.step()

    def zero_grad(self) -> None:
        self.inner.zero_grad()
        shrink(self)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_zero_grad_that_decays(in_place: bool) -> None:
    model = net()
    rows = halflife.explain(model, AtZeroGrad(groups(model, weight_decay=0.0)), in_place=in_place).rows
    assert [row["r"] or 0.0 for row in rows] == pytest.approx(
        [LR * LAM if len(row["shape"]) > 1 else 0.0 for row in rows], rel=1e-4
    )
    around: Any = Around(SGD(model.parameters(), lr=LR))
    rows = halflife.explain(model, around, in_place=in_place).rows
    assert [row["r"] for row in rows] == pytest.approx([EXTRA] * len(rows), rel=1e-4)


@functools.lru_cache
def kept(_: int) -> dict[int, float]:
    return {}


def test_results_that_are_kept_by_a_function_lead_to_weights() -> None:
    class Kept(Plain):
        def wd(self, group: dict[str, Any], p: Tensor) -> float:
            return kept(0).get(id(p), 0.0)

    model = net()
    optimizer = Kept(model.parameters())
    kept(0).update((id(p), LAM) for p in model.parameters() if p.ndim > 1)
    try:
        table = halflife.explain(model, optimizer)
        assert {row["decays"] for row in table.rows} == {None}
        assert "`kept`" in str(table)
    finally:
        kept.cache_clear()


class Tenth(Plain):
    """Removes much more at every tenth call."""

    calls = 0

    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        return super().step(closure)

    def wd(self, group: dict[str, Any], p: Tensor) -> float:
        return LAM / 64 * (40 if self.calls % 10 == 0 else 1)


class Back(Tenth):
    """Puts the weights back to where they began, now and then."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.places = [p for group in self.param_groups for p in group["params"]]
        self.old = [p.detach().clone() for p in self.places]

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        if self.calls % 30 == 0:
            with torch.no_grad():
                for p, old in zip(self.places, self.old, strict=True):
                    p.copy_(old)

    def wd(self, group: dict[str, Any], p: Tensor) -> float:
        return LAM / 64


@pytest.mark.parametrize("kind", [Tenth, Back])
def test_what_the_first_calls_remove_is_not_what_later_ones_do(kind: type[Plain]) -> None:
    model = net()
    optimizer = kind(model.parameters())
    table = halflife.explain(model, optimizer)
    assert {row["r"] for row in table.rows} == {None}
    assert "at first, but 64 calls remove" in str(table)
    with pytest.raises(AssertionError):
        halflife.assert_decay(model, optimizer, {"*": f"decoupled:{LAM / 64}"})


class FillsFirst(Plain):
    """Its first call fills its state and moves nothing, as that of ADOPT."""

    def step(self, closure: Any = None) -> Any:
        if not self.state:
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["square"] = torch.zeros_like(p)
            return None
        return super().step(closure)


@pytest.mark.parametrize("in_place", [False, True])
def test_a_first_call_that_fills_the_state(in_place: bool) -> None:
    model = net()
    rows = halflife.explain(model, FillsFirst(groups(model, weight_decay=0.0)), in_place=in_place).rows
    assert [row["r"] or 0.0 for row in rows] == pytest.approx(
        [LR * LAM if len(row["shape"]) > 1 else 0.0 for row in rows], rel=1e-4
    )


class EveryThird:
    """Accumulates: an object that is no optimizer, and steps one at every third call."""

    def __init__(self, inner: torch.optim.Optimizer) -> None:
        self.inner, self.calls = inner, 0

    param_groups = property(lambda self: self.inner.param_groups)
    state = property(lambda self: self.inner.state)

    def step(self) -> None:
        self.calls += 1
        if self.calls % 3 == 0:
            self.inner.step()


@pytest.mark.parametrize(("kind", "steps"), [(AdamW, 0), (AdamW, 4), (SGD, 3)])
@pytest.mark.parametrize("size", [live.SIZE, 64], ids=["small", "large"])
def test_a_wrapper_that_accumulates(kind: Any, steps: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SIZE", size)
    torch.manual_seed(0)
    model = torch.nn.Linear(300, 300, bias=False)  # more elements than a smaller stage has
    optimizer: Any = EveryThird(kind(model.parameters(), lr=LR, weight_decay=LAM))
    for _ in range(steps):
        model.weight.grad = 1e-2 * torch.randn_like(model.weight)
        optimizer.step()
    table = halflife.explain(model, optimizer)
    (row,) = table.rows
    assert (row["decays"], row["law"], row["lam"]) == (True, "decoupled", LAM)
    assert row["r"] == pytest.approx(LR * LAM, rel=1e-5)
    assert "at every 3rd call" in str(table)


class Rounds(Plain):
    """Keeps float32 weights at values of bfloat16: a small decay is rounded away at each step."""

    def __init__(self, params: Any, base: Any) -> None:
        super().__init__(params, lr=1e-3)
        self.base = base(self.param_groups, lr=1e-3, weight_decay=LAM)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.base.step()
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(p.bfloat16())


@pytest.mark.parametrize("base", [AdamW, SGD])
def test_a_decay_that_the_step_rounds_away_is_none(base: Any) -> None:
    model = net()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.linspace(0.3, 1.7, p.numel()).view_as(p))
    optimizer = Rounds(groups(model, weight_decay=0.0), base)
    assert {row["decays"] for row in halflife.explain(model, optimizer).rows} == {False}
    with pytest.raises(AssertionError, match="found none"):
        halflife.assert_decay(model, optimizer, {"matrices": f"l2:{LAM}"})
