"""``attach(..., low_precision=...)``: decay that rounding would take away arrives, and is lost or doubled nowhere.

The oracle is a float64 loop over steps: what is left of a weight is the product of ``1 - r``. Weights of few bits are as right
as their mean; what is still pending is at most 2^-14, or what 16 steps ask for, or 2^-5.
"""

from __future__ import annotations

import copy
import math
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.optim import SGD, Adam, AdamW, Optimizer

import halflife
from halflife.errors import UserError
from halflife.optim.actions import Work
from halflife.optim.actions.accumulate import EVERY, LARGE, LEAST, Accumulate
from halflife.optim.attaching import Handle, attach
from halflife.precision import shrinking, smallest_effective_fraction
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Decoupled,
    HalfLife,
    NormTarget,
    PerGroup,
    Scheduled,
    Sphere,
    Stable,
    StepInfo,
    Toward,
)
from halflife.rules.base import Part
from halflife.schedules import cosine, until

Mode = Literal["accumulate", "stochastic"]
MODES: tuple[Mode, ...] = ("accumulate", "stochastic")
by_mode = pytest.mark.parametrize("mode", MODES)


def weights_of(count: int, dtype: torch.dtype, seed: int = 0) -> nn.Parameter:
    generator = torch.Generator().manual_seed(seed)
    return nn.Parameter((0.02 * torch.randn(count, generator=generator)).to(dtype))


def still(*parameters: Tensor) -> None:
    """Give gradients of zeros, so that a step of SGD moves nothing."""
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)


def lost(before: Tensor, after: Tensor) -> float:
    """The decay that weights have had: -ln of what is left of them, on average."""
    w = before.detach().double()
    return -math.log(((after.detach().double() * w).sum() / (w * w).sum()).item())


def asked(rates: Sequence[float]) -> float:
    return math.fsum(-math.log1p(-r) for r in rates)


def pending(optimizer: Optimizer, group: int = 0) -> tuple[float, ...]:
    """The sums that are pending, per parameter."""
    values: tuple[float, ...] = optimizer.state_dict()["param_groups"][group]["halflife_pending"]
    return values[: len(values) // 3]


# ---- what arrives


@dataclass(frozen=True)
class Decay:
    """A sequence of fractions.

    Args:
        name: Its name.
        r: The fraction at a step.
        steps: Number of steps.
        plain: The share of it that the plain own pass removes in bfloat16, about; None where it is not far from 1.
    """

    name: str
    r: Callable[[int], float]
    steps: int
    plain: float | None = None

    def cases(self) -> list[Any]:
        """It in each precision and way: long ones in one of them, and slowly in the others."""
        dtypes = {"bfloat16": torch.bfloat16, "float16": torch.float16}
        return [
            pytest.param(
                self,
                dtype,
                mode,
                id=f"{self.name}-{name}-{mode}",
                marks=pytest.mark.slow if self.steps > 1000 and (name, mode) != ("bfloat16", "accumulate") else (),
            )
            for name, dtype in dtypes.items()
            for mode in MODES
        ]


DECAYS = [
    Decay("tiny", lambda step: 1e-6, 2000, 0.0),
    Decay("usual", lambda step: 1e-5, 10_000, 0.0),
    Decay("larger", lambda step: 1e-4, 2000, 0.0),
    Decay("threshold", lambda step: 2.0**-9, 1000, 0.0),
    Decay("above", lambda step: 2.0**-9 * 1.01, 1000, 0.05),
    Decay("3e-3", lambda step: 3e-3, 1000),
    Decay("too fast", lambda step: 2.0**-8, 1000),
    Decay("0.02", lambda step: 0.02, 200),
    Decay("0.1", lambda step: 0.1, 30),
    Decay("half", lambda step: 0.5, 8),
    Decay("cosine", lambda step: 1e-4 * (1 + math.cos(step / 300)), 2000, 0.0),
    Decay("bursts", lambda step: 0.05 if step % 100 == 7 else 1e-6, 600),
    Decay("every other", lambda step: 3e-4 * (step % 2), 1000, 0.0),
]


@pytest.mark.parametrize(("decay", "dtype", "mode"), [case for decay in DECAYS for case in decay.cases()])
def test_the_mean_decay_is_that_of_a_float64_loop(decay: Decay, dtype: torch.dtype, mode: Mode) -> None:
    weight = weights_of(4096, dtype)
    optimizer = SGD([weight], lr=1.0, weight_decay=1.0)
    handle = attach(optimizer, Decoupled(1.0), peak_lr=1.0, low_precision=mode)
    before = weight.detach().clone()
    still(weight)
    rates = [decay.r(step) for step in range(decay.steps)]
    for r in rates:
        optimizer.param_groups[0]["lr"] = r
        optimizer.step()
        assert handle.fractions() == [pytest.approx(r, rel=1e-15)]
    got, expected = lost(before, weight), asked(rates)
    (waiting,) = pending(optimizer)
    # Each weight is off by about one ulp, or by a random walk of such at each pass; even offsets are a little too fast.
    eps, passes = torch.finfo(dtype).eps, min(decay.steps, 1 + decay.steps / EVERY + expected / LARGE)
    error = eps / 32 * (1.0 if mode == "accumulate" else passes**0.5)
    assert got + waiting == pytest.approx(expected, abs=error, rel=eps if mode == "accumulate" else 1e-3)
    assert waiting <= max(LEAST + max(rates), min(EVERY * max(rates), LARGE)) + 1e-6
    if decay.name == "usual":  # as the tracker of a run would see it
        assert got == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize("decay", [each for each in DECAYS if each.plain is not None], ids=lambda each: each.name)
def test_the_plain_own_pass_loses_it(decay: Decay) -> None:
    assert decay.plain is not None
    weight = weights_of(4096, torch.bfloat16)
    optimizer = SGD([weight], lr=1.0, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Decoupled(1.0), peak_lr=1.0)
    before = weight.detach().clone()
    still(weight)
    for step in range(decay.steps):
        optimizer.param_groups[0]["lr"] = decay.r(step)
        optimizer.step()
    rates = [decay.r(step) for step in range(decay.steps)]
    assert abs(lost(before, weight)) <= decay.plain * asked(rates)
    assert decay.plain > 0.0 or torch.equal(weight.detach(), before)


@pytest.mark.slow
@by_mode
def test_a_tiny_decay_loses_nothing_over_many_steps(mode: Mode) -> None:
    weight = weights_of(2**16, torch.bfloat16)
    optimizer = SGD([weight], lr=1e-8, weight_decay=1.0)
    attach(optimizer, Decoupled(1.0), low_precision=mode)
    before = weight.detach().clone()
    still(weight)
    for _ in range(200_000):
        optimizer.step()
    assert lost(before, weight) + pending(optimizer)[0] == pytest.approx(0.002, rel=0.03)
    assert pending(optimizer)[0] <= LEAST + 1e-8


def work_on(weight: Tensor, r: float | Tensor) -> list[Work]:
    return [Work({"params": [weight]}, [weight], r, StepInfo(lr=1.0))]


def test_what_is_pending_is_summed_to_the_last_digits() -> None:
    weight, action, optimizer = weights_of(2, torch.bfloat16), Accumulate(random=False), types.SimpleNamespace()
    with torch.no_grad():
        for _ in range(5000):
            action.before(optimizer, work_on(weight, 1e-8))  # type: ignore[arg-type]  # it asks for found_inf only
    assert action.pending([weight])[0] == pytest.approx(asked([1e-8] * 5000), rel=1e-12)


def test_each_weight_gets_its_decay_to_about_one_unit_in_the_last_place() -> None:
    weight = weights_of(20_000, torch.bfloat16)
    optimizer = SGD([weight], lr=1.0, weight_decay=1e-4)
    attach(optimizer, Decoupled(1e-4), low_precision="accumulate")
    start = weight.detach().double()
    still(weight)
    for _ in range(3000):
        optimizer.step()
    left = math.exp(pending(optimizer)[0] - asked([1e-4] * 3000))
    ulps = (weight.detach().double() - left * start) / (left * start).abs() / (torch.finfo(torch.bfloat16).eps / 2)
    assert ulps.abs().max() < 10.0  # in half to whole ones
    assert ulps.square().mean().sqrt() < 2.0  # a random walk would be at 8


# ---- who decays, and when


@by_mode
def test_each_parameter_gets_the_steps_in_which_it_has_a_gradient(mode: Mode) -> None:
    """Two groups, one without decay, mixed precisions, one frozen, one without a gradient at times, 0-dim, and strided."""
    dtypes = [torch.bfloat16, torch.float16, torch.float32, torch.bfloat16]
    usual, half, wide, seldom = (nn.Parameter(torch.full((2048,), 1.7, dtype=dtype)) for dtype in dtypes)
    frozen, never, free = (nn.Parameter(torch.full((8,), 1.7, dtype=torch.bfloat16)) for _ in range(3))
    frozen.requires_grad_(False)
    scalar = nn.Parameter(torch.tensor(1.7, dtype=torch.bfloat16))
    strided = nn.Parameter(torch.full((32, 64), 1.7, dtype=torch.bfloat16).t())
    first, second = [usual, half, wide, seldom, frozen], [never, strided, scalar]
    groups: list[dict[str, Any]] = [
        {"params": first, "weight_decay": 2e-4},
        {"params": second, "weight_decay": 5e-4},
        {"params": [free], "weight_decay": 0.0},
    ]
    optimizer = SGD(groups, lr=1.0)
    handle = attach(optimizer, Decoupled(), low_precision=mode)
    starts = {id(each): each.detach().clone() for group in groups for each in group["params"]}
    counts = dict.fromkeys(starts, 0)
    loop = torch.full((2048,), 1.7)
    for step in range(800):
        with_gradient = [usual, half, wide, strided, scalar, free, *([seldom] if step % 5 < 2 else [])]
        for each in (*first, *second, free):
            each.grad = None
        still(*with_gradient)
        for each in with_gradient:
            counts[id(each)] += 1
        optimizer.step()
        loop *= 1.0 - torch.tensor(2e-4)
        assert handle.fractions() == [2e-4, 5e-4, 0.0]
    for number, (group, r) in enumerate(((first, 2e-4), (second, 5e-4))):
        for each, waiting in zip(group, pending(optimizer, number), strict=True):
            expected = counts[id(each)] * -math.log1p(-r)
            if each is wide:
                assert waiting == 0.0
                torch.testing.assert_close(each.detach(), loop, rtol=1e-6, atol=0.0)
            elif expected == 0.0:
                assert waiting == 0.0
                assert torch.equal(each.detach(), starts[id(each)])
            else:
                error = 4e-3 if each.numel() > 1 else 16.0 * torch.finfo(each.dtype).eps
                assert lost(starts[id(each)], each) + waiting == pytest.approx(expected, abs=error)
    assert torch.equal(free.detach(), starts[id(free)])
    assert strided.stride() == (1, 64)


@by_mode
def test_nothing_is_pending_for_long_when_a_schedule_ends(mode: Mode) -> None:
    """Ten steps of decay and then none: without another look it would wait for ever."""
    weight = weights_of(4096, torch.bfloat16)
    optimizer = SGD([weight], lr=1.0, weight_decay=1e-3)
    attach(optimizer, Scheduled(Decoupled(1e-3), until(10)), low_precision=mode)
    before = weight.detach().clone()
    still(weight)
    for _ in range(30):
        optimizer.step()
    assert lost(before, weight) == pytest.approx(asked([1e-3] * 10), rel=0.02)
    assert pending(optimizer)[0] < 1e-6


@by_mode
def test_a_step_at_lr_0_neither_adds_nor_removes(mode: Mode) -> None:
    weight = weights_of(64, torch.bfloat16)
    optimizer = SGD([weight], lr=1e-3, weight_decay=1.0)
    attach(optimizer, Decoupled(1.0), low_precision=mode)
    still(weight)
    for _ in range(15):
        optimizer.step()
    before, waiting = weight.detach().clone(), pending(optimizer)
    optimizer.param_groups[0]["lr"] = 0.0
    for _ in range(40):
        optimizer.step()
    assert torch.equal(weight.detach(), before)
    assert pending(optimizer) == waiting


@settings(max_examples=25, deadline=None)
@given(
    rates=st.lists(st.one_of(st.just(0.0), st.floats(1e-6, 0.3)), min_size=1, max_size=60),
    gradients=st.lists(st.booleans(), min_size=60, max_size=60),
    mode=st.sampled_from(MODES),
    dtype=st.sampled_from([torch.bfloat16, torch.float16]),
)
def test_removed_and_pending_together_are_what_was_asked(
    rates: list[float], gradients: list[bool], mode: Mode, dtype: torch.dtype
) -> None:
    weight = nn.Parameter(torch.linspace(1.0, 2.0, 4096).to(dtype))
    optimizer = SGD([weight], lr=1.0, weight_decay=1.0)
    attach(optimizer, Decoupled(1.0), peak_lr=1.0, low_precision=mode)
    before, taken = weight.detach().clone(), [r for r, there in zip(rates, gradients, strict=False) if there]
    for r, there in zip(rates, gradients, strict=False):
        weight.grad = torch.zeros_like(weight) if there else None
        optimizer.param_groups[0]["lr"] = r
        optimizer.step()
        assert weight.grad is None or pending(optimizer)[0] < LARGE
    passes = 1 + len(taken)
    error = 5.0 * torch.finfo(dtype).eps * (passes / 4096) ** 0.5
    assert lost(before, weight) + pending(optimizer)[0] == pytest.approx(asked(taken), abs=error)


# ---- every kind of step


def train(optimizer: Optimizer, steps: range, gradients: int = 0) -> None:
    """Take steps with gradients that follow from the number of the step; the second parameter has none at times."""
    for step in steps:
        generator = torch.Generator().manual_seed(100 * gradients + step)
        for index, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            parameter.grad = (1e-3 * torch.randn(parameter.shape, generator=generator)).to(parameter.dtype)
            if index == 1 and step % 3 == 0:
                parameter.grad = None
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 * (1.0 + 0.5 * math.sin(step))
        optimizer.step()


def started(mode: Mode | None, *, seed: int = 0, r: float = 1e-3, kind: Any = AdamW, **kinds: Any) -> Optimizer:
    """Two groups; four parameters, one of them in float32."""
    first = [weights_of(300, torch.bfloat16, seed), weights_of(50, torch.float16, seed + 1)]
    second = [weights_of(70, torch.bfloat16, seed + 2), weights_of(40, torch.float32, seed + 3)]
    optimizer: Optimizer = kind([{"params": first}, {"params": second}], lr=1e-2, weight_decay=r / 1e-2, **kinds)
    if mode is not None:
        attach(optimizer, Decoupled(r / 1e-2), low_precision=mode)
    return optimizer


def bits(optimizer: Optimizer) -> list[Tensor]:
    found = [p.detach().clone() for group in optimizer.param_groups for p in group["params"]]
    return found + [value.clone() for state in optimizer.state.values() for value in state.values()]


def assert_same(one: Sequence[Tensor], other: Sequence[Tensor]) -> None:
    assert len(one) == len(other)
    assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@by_mode
@pytest.mark.parametrize("r", [1e-4, 5e-3, 0.08])
@pytest.mark.parametrize("first", [True, False], ids=["attach, load", "load, attach"])
@pytest.mark.parametrize(
    "half", [5, pytest.param(16, marks=pytest.mark.slow), pytest.param(23, marks=pytest.mark.slow)]
)
def test_resuming_is_exact(mode: Mode, r: float, first: bool, half: int, tmp_path: Path) -> None:
    optimizer = started(mode, r=r, eps=1e-4)
    train(optimizer, range(half))
    torch.save((optimizer.state_dict(), bits(optimizer)[:4]), tmp_path / "saved.pt")
    train(optimizer, range(half, 70))
    state, weights = torch.load(tmp_path / "saved.pt", weights_only=True)
    other = started(mode if first else None, seed=9, r=r, eps=1e-4)
    if first:
        train(other, range(7))  # gives way
    other.load_state_dict(state)
    with torch.no_grad():
        for parameter, weight in zip((p for g in other.param_groups for p in g["params"]), weights, strict=True):
            parameter.copy_(weight)
    if not first:
        attach(other, Decoupled(r / 1e-2), low_precision=mode)
    train(other, range(half, 70))
    assert_same(bits(other), bits(optimizer))
    ours, theirs = (each.state_dict()["param_groups"] for each in (optimizer, other))
    assert [each["halflife_pending"] for each in ours] == [each["halflife_pending"] for each in theirs]


@pytest.mark.filterwarnings("ignore:.*torch.distributed is disabled:UserWarning")
@by_mode
@pytest.mark.parametrize("flat", [False, True])
def test_resuming_through_a_distributed_checkpoint_is_exact(mode: Mode, flat: bool, tmp_path: Path) -> None:
    def made(seed: int) -> tuple[nn.Module, Optimizer]:
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).to(torch.bfloat16)
        optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
        attach(optimizer, Decoupled(0.1), low_precision=mode)
        return model, optimizer

    def state_of(model: nn.Module, optimizer: Optimizer) -> dict[str, Any]:
        options = StateDictOptions(flatten_optimizer_state_dict=flat)
        return {"model": model.state_dict(), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}

    model, optimizer = made(0)
    train(optimizer, range(21))
    save(state_of(model, optimizer), checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    train(optimizer, range(21, 60))
    other, resumed = made(1)
    state = state_of(other, resumed)
    load(state, checkpoint_id=tmp_path / "checkpoint", no_dist=True)
    other.load_state_dict(state["model"])
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    set_optimizer_state_dict(other, resumed, state["optimizer"], options=options)
    train(resumed, range(21, 60))
    assert_same([*other.state_dict().values()], [*model.state_dict().values()])
    assert pending(resumed) == pending(optimizer)


def test_checkpoints_with_and_without_pending_decay_go_both_ways() -> None:
    """From a run without a remedy nothing is pending; a run without one has no use for what is."""
    plain, saved = started(None), started("accumulate")
    attach(plain, Decoupled(0.1))
    train(saved, range(5))
    train(plain, range(5))
    assert any(pending(saved))
    ours, theirs = saved.state_dict(), plain.state_dict()
    saved.load_state_dict(theirs)
    plain.load_state_dict(ours)
    assert not any(pending(saved))
    assert "halflife_pending" not in plain.state_dict()["param_groups"][0]
    train(saved, range(5))
    saved.load_state_dict(started(None).state_dict())  # which knows nothing of halflife
    assert not any(pending(saved))
    handle = saved._halflife_handle  # type: ignore[attr-defined]  # as handle_of finds it
    handle.detach()
    assert "halflife_pending" not in saved.param_groups[0]


@pytest.mark.parametrize("damaged", [(1.0,), (-1.0,) * 6, (math.nan,) * 6, (math.inf,) * 6, "abcdef", 7])
@pytest.mark.parametrize("late", [True, False])
def test_a_damaged_checkpoint_is_refused(damaged: Any, late: bool) -> None:
    optimizer = started("accumulate", eps=1e-4)
    train(optimizer, range(3))
    state = copy.deepcopy(optimizer.state_dict())
    state["param_groups"][0]["halflife_pending"] = damaged
    before, weights = pending(optimizer), bits(optimizer)
    if not late:
        with pytest.raises(UserError, match="should hold 6 finite numbers >= 0, got"):
            optimizer.load_state_dict(state)
        assert pending(optimizer) == before
        assert_same(bits(optimizer), weights)
        return
    other = started(None)
    other.load_state_dict(state)
    with pytest.raises(UserError, match="should hold 6 finite numbers >= 0, got"):
        attach(other, Decoupled(0.1), low_precision="accumulate")


class Stop(Exception):
    """What the tests raise in a step."""


class Failing(AdamW):
    """Raises in the middle of a step, before or after it has moved the first group."""

    at: str | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if self.at == "before":
            raise Stop
        loss = super().step(closure)
        if self.at == "after":
            raise Stop
        return loss


@by_mode
@pytest.mark.parametrize("r", [1e-3, 5e-3, 0.08])
@pytest.mark.parametrize(
    "at", [14, 15, pytest.param(16, marks=pytest.mark.slow), pytest.param(31, marks=pytest.mark.slow)]
)
def test_a_step_that_raises_leaves_no_trace(mode: Mode, r: float, at: int) -> None:
    optimizer, other = (started(mode, r=r, kind=Failing, eps=1e-4) for _ in range(2))
    for each in (optimizer, other):
        train(each, range(at))
    before, waiting = bits(optimizer), [pending(optimizer, group) for group in (0, 1)]
    assert isinstance(optimizer, Failing)
    optimizer.at = "before"
    with pytest.raises(Stop):
        train(optimizer, range(at, at + 1))
    optimizer.at = None
    low = [index for index in range(4) if index != 3]  # float32 goes back to rounding
    assert_same([bits(optimizer)[index] for index in low], [before[index] for index in low])
    assert [pending(optimizer, group) for group in (0, 1)] == waiting
    train(optimizer, range(at, 50))
    train(other, range(at, 50))
    assert_same([bits(optimizer)[index] for index in low], [bits(other)[index] for index in low])


@by_mode
@pytest.mark.parametrize("r", [1e-3, 0.08])
def test_a_step_in_which_memory_runs_out_leaves_no_trace(mode: Mode, r: float, monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = started(mode, r=r, eps=1e-4)
    train(optimizer, range(15))
    before, waiting = bits(optimizer), [pending(optimizer, group) for group in (0, 1)]
    real, calls = shrinking.shrink, 0

    def short(*arguments: Any, **more: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise MemoryError
        real(*arguments, **more)

    monkeypatch.setattr("halflife.optim.actions.accumulate.shrink", short)
    with pytest.raises(MemoryError):
        train(optimizer, range(15, 17))
    if r > LARGE:  # before the update; else after it, where the step has been made
        assert_same(bits(optimizer)[:4], before[:4])
        assert [pending(optimizer, group) for group in (0, 1)] == waiting


@by_mode
def test_a_step_that_is_skipped_for_an_overflow_adds_nothing(mode: Mode) -> None:
    """A fused optimizer runs its hooks then, and leaves the rest to the kernel."""
    optimizer = started(mode, r=4e-3, fused=True, eps=1e-4)
    assert isinstance(optimizer, AdamW)
    train(optimizer, range(15))
    before, waiting = bits(optimizer), [pending(optimizer, group) for group in (0, 1)]
    vars(optimizer)["found_inf"] = torch.ones(())
    train(optimizer, range(15, 20))
    assert_same(bits(optimizer)[:4], before[:4])
    assert [pending(optimizer, group) for group in (0, 1)] == waiting
    vars(optimizer)["found_inf"] = torch.zeros(())
    train(optimizer, range(15, 17))
    assert [pending(optimizer, group) for group in (0, 1)] != waiting
    assert not torch.equal(bits(optimizer)[0], before[0])


KINDS: dict[str, dict[str, Any]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "momentum": {"momentum": 0.9},
    "adam": {"kind": Adam, "eps": 1e-4},
    "adamw": {"kind": AdamW, "eps": 1e-4, "foreach": False},
    "adamw fused": {"kind": AdamW, "eps": 1e-4, "fused": True},
    "capturable": {"kind": AdamW, "eps": 1e-4, "capturable": True, "foreach": False},
}


@by_mode
def test_all_kinds_of_steps_decay_alike(mode: Mode) -> None:
    """With gradients of zeros the weights are the same to the bit, whatever makes the update."""
    found = []
    for settings_ in KINDS.values():
        if settings_.get("capturable") and not torch.cuda.is_available():
            continue
        optimizer = started(mode, **{"kind": SGD, **settings_})
        for step in range(40):
            still(*(p for group in optimizer.param_groups for p in group["params"]))
            if step % 2:
                optimizer.step(lambda: 0.0)
            else:
                optimizer.step()
        found.append(bits(optimizer)[:4])
    for each in found[1:]:
        assert_same([each[0], each[1], each[2]], [found[0][0], found[0][1], found[0][2]])
        torch.testing.assert_close(each[3], found[0][3])
    assert not torch.equal(found[0][0], started(None, kind=SGD).param_groups[0]["params"][0])


@by_mode
def test_a_line_search_decays_once(mode: Mode) -> None:
    """A closure that is called several times in a step asks once."""

    class Twice(SGD):
        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            with torch.enable_grad():
                closure()
                closure()
            return super().step(None)

    weight = weights_of(128, torch.bfloat16)
    optimizer = Twice([weight], lr=1e-3, weight_decay=1.0)
    attach(optimizer, Decoupled(1.0), low_precision=mode)
    for _ in range(9):
        optimizer.step(lambda: still(weight))
    assert pending(optimizer)[0] == pytest.approx(asked([1e-3] * 9), rel=1e-12)


@by_mode
@pytest.mark.parametrize("r", [2e-5, 2e-3, 0.1])
def test_fractions_that_are_tensors_decay_like_numbers(mode: Mode, r: float) -> None:
    """As `Stable` answers on an accelerator: nothing is read, and passes come at fixed intervals."""
    results = []
    for answer in (r, torch.tensor(r, dtype=torch.float64)):
        parameters = [weights_of(4096, torch.bfloat16), weights_of(10, torch.float16)]
        action, optimizer = Accumulate(random=mode == "stochastic"), types.SimpleNamespace()
        before = parameters[0].detach().clone()
        with torch.no_grad():
            for step in range(160):
                there = parameters if step % 2 else parameters[:1]
                work = [Work({"params": parameters}, list(there), answer, StepInfo(lr=1.0))]
                action.before(optimizer, work)  # type: ignore[arg-type]  # as above
                action.after(optimizer, work)  # type: ignore[arg-type]
        waiting = action.pending(parameters)
        assert lost(before, parameters[0]) + waiting[0] == pytest.approx(asked([r] * 160), rel=0.01, abs=2e-4)
        results.append(waiting)
    assert results[1][0] <= EVERY * 2.0 * r + LEAST


@pytest.mark.parametrize("flagged", [False, True])
@pytest.mark.parametrize("r", [1e-3, 0.1, "tensor"])
def test_nothing_is_read_from_a_device(r: Any, flagged: bool) -> None:
    """Tensors on the meta device have no numbers: reading one raises."""
    weights = [nn.Parameter(torch.empty(size, dtype=torch.bfloat16, device="meta")) for size in (300, 7)]
    wide = nn.Parameter(torch.empty(5, device="meta"))
    action, optimizer = Accumulate(random=False), types.SimpleNamespace()
    if flagged:
        optimizer.found_inf = torch.empty((), device="meta")
    answer = torch.empty((), dtype=torch.float64, device="meta") if r == "tensor" else r
    passes = []
    with torch.no_grad():
        for _ in range(40):
            work = [Work({"params": [*weights, wide]}, [*weights, wide], answer, StepInfo(lr=1.0))]
            action.before(optimizer, work)  # type: ignore[arg-type]  # as above
            action.after(optimizer, work)  # type: ignore[arg-type]
            passes.append(action._of(weights[0]).passes)
    assert passes[-1] == (40 if r == 0.1 else 2)


def test_fractions_that_are_tensors_wait_and_are_skipped_on_the_device() -> None:
    from halflife.optim.actions.accumulate import _left

    little, enough = torch.tensor(LEAST / 2, dtype=torch.float64), torch.tensor(0.01, dtype=torch.float64)
    factor, rest = _left(little, None)
    assert (float(factor), float(rest)) == (1.0, float(little))
    for found_inf, skipped in ((None, False), (torch.zeros(()), False), (torch.ones(1), True)):
        factor, rest = _left(enough, found_inf)
        number, left = _left(0.01, None)
        assert float(factor) == (1.0 if skipped else number)
        assert float(rest) == pytest.approx(0.01 if skipped else left, abs=1e-12)
        assert 0.0 <= float(rest) < (0.011 if skipped else 1e-7)


def test_stable_on_the_cpu_and_a_user_rule() -> None:
    weight = weights_of(4096, torch.bfloat16)
    optimizer = AdamW([weight], lr=1e-3, weight_decay=0.1, eps=1e-4)
    handle = attach(optimizer, Stable(1e-3), low_precision="accumulate")
    rates = []
    for step in range(100):
        weight.grad = (1e-3 * torch.randn(4096, generator=torch.Generator().manual_seed(step))).to(torch.bfloat16)
        optimizer.step()
        rates += handle.fractions()
    assert min(rates) > 0.0
    number, left = pending(optimizer)[0], asked(rates)
    assert 0.0 < number < left


# ---- what is refused


def test_error_refuses_what_rounding_takes_away() -> None:
    weight = weights_of(64, torch.bfloat16)
    optimizer = SGD([weight], lr=1.0, weight_decay=1.0)
    least = smallest_effective_fraction(torch.bfloat16)
    optimizer.param_groups[0]["lr"] = 1.5 * least
    attach(optimizer, Decoupled(1.0), peak_lr=1.0, low_precision="error")
    still(weight)
    optimizer.step()
    before = weight.detach().clone()
    for lr in (least, least / 3, 1e-9):
        optimizer.param_groups[0]["lr"] = lr
        with pytest.raises(UserError, match=r"would be rounded away: .* up to 0\.00195 per step; pass low_precision="):
            optimizer.step()
        assert torch.equal(weight.detach(), before)
        assert optimizer.param_groups[0]["weight_decay"] == 1.0
    optimizer.param_groups[0]["lr"] = 0.0
    optimizer.step()
    optimizer.param_groups[0]["lr"] = 1.01 * least
    optimizer.step()
    assert not torch.equal(weight.detach(), before)


@pytest.mark.parametrize(
    ("dtype", "frozen", "r", "refused"),
    [
        (torch.bfloat16, False, 2.0**-9, True),
        (torch.bfloat16, False, 2.0**-9 * 1.001, False),
        (torch.float16, False, 2.0**-12, True),
        (torch.float16, False, 2.0**-12 * 1.001, False),
        (torch.bfloat16, True, 1e-6, False),
        (torch.bfloat16, False, 0.0, False),
    ],
)
def test_error_refuses_at_attach_what_is_known_then(dtype: torch.dtype, frozen: bool, r: float, refused: bool) -> None:
    weight = weights_of(8, dtype)
    weight.requires_grad_(not frozen)
    optimizer = SGD([weight, nn.Parameter(torch.ones(2))], lr=1.0, weight_decay=0.5)
    if not refused:
        attach(optimizer, Constant(r), low_precision="error").detach()
        return
    with pytest.raises(UserError, match="would be rounded away"):
        attach(optimizer, Constant(r), low_precision="error")
    assert "halflife_law" not in optimizer.param_groups[0]
    attach(optimizer, Constant(r), low_precision="accumulate")  # as the message says


def test_error_waits_for_gradients_where_the_rule_does() -> None:
    weight = weights_of(64, torch.bfloat16)
    optimizer = AdamW([weight], lr=1e-3, weight_decay=0.1, eps=1e-4)
    attach(optimizer, Stable(1e-6), low_precision="error")
    weight.grad = torch.ones_like(weight)
    before = weight.detach().clone()
    with pytest.raises(UserError, match="would be rounded away"):
        optimizer.step()
    assert torch.equal(weight.detach(), before)


SERVES = "serves rules whose fraction of the whole weight is known before the step"
REFUSED: list[tuple[Part, str, bool]] = [
    (Cautious(Constant(0.1)), "accumulate", True),
    (Cautious(Constant(0.1)), "error", False),
    (Toward(Constant(0.1)), "stochastic", True),
    (Toward(Constant(0.1)), "error", True),
    (NormTarget(1.0), "accumulate", True),
    (Sphere(1.0), "error", True),
    (L2(0.1), "stochastic", True),
    (L2(0.1), "error", True),
    (Scheduled(HalfLife(steps=100), cosine(1.0, 0.1, 100)), "accumulate", False),
    (PerGroup([Constant(0.1), Cautious(Constant(0.1))]), "accumulate", False),  # the second group is in float32
    (PerGroup([Cautious(Constant(0.1)), Constant(0.1)]), "accumulate", True),
]


@pytest.mark.parametrize(("rule", "choice", "refused"), REFUSED, ids=str)
def test_parts_that_act_otherwise_are_refused_at_attach(rule: Part, choice: Any, refused: bool) -> None:
    groups = [{"params": [weights_of(8, dtype)]} for dtype in (torch.bfloat16, torch.float32)]
    optimizer = SGD(groups, lr=0.1, weight_decay=0.1)
    if refused:
        with pytest.raises(UserError, match=SERVES):
            attach(optimizer, rule, low_precision=choice)  # type: ignore[arg-type]  # any of them
        assert "halflife_law" not in optimizer.param_groups[0]
    else:
        attach(optimizer, rule, low_precision=choice)  # type: ignore[arg-type]


@pytest.mark.parametrize("choice", ["accumulate", "stochastic", "error"])
def test_a_remedy_that_nothing_needs_is_refused(choice: Any) -> None:
    free: dict[str, Any] = {"params": [weights_of(8, torch.bfloat16)], "weight_decay": 0.0}
    optimizer = SGD([{"params": [weights_of(8, torch.float32)]}, free], lr=0.1, weight_decay=0.1)
    with pytest.raises(
        UserError, match="expected decaying weights in bfloat16 or float16, got float32 only: leave low_"
    ):
        attach(optimizer, Decoupled(0.1), low_precision=choice)


@pytest.mark.parametrize("choice", ["round", "", True, 1, ["error"], {}])
def test_another_name_is_refused(choice: Any) -> None:
    optimizer = SGD([weights_of(8, torch.bfloat16)], lr=0.1, weight_decay=0.1)
    with pytest.raises(UserError, match='None or one of "accumulate", "stochastic", "error", got'):
        attach(optimizer, Decoupled(0.1), low_precision=choice)


# ---- what explain says


class ByHand(Optimizer):
    """Not torch's."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1.0 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * parameter.grad)


QUICK = ((0.1, AdamW, False), (5.0, ByHand, True))


@pytest.mark.parametrize(
    ("lam", "kind", "in_place"),
    [
        pytest.param(lam, kind, in_place, marks=() if (lam, kind, in_place) in QUICK else pytest.mark.slow)
        for lam in (0.1, 5.0, 20.0)
        for kind in (AdamW, ByHand)
        for in_place in (False, True)
    ],
)
def test_explain_tells_the_same_with_and_without_a_remedy(lam: float, kind: Any, in_place: bool) -> None:
    tables, texts = [], []
    for mode in (None, *MODES):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 2)).to(torch.bfloat16)
        optimizer = kind(model.parameters(), lr=1e-3, weight_decay=lam)
        handle: Handle = attach(optimizer, Decoupled(lam), low_precision=mode)
        train(optimizer, range(3))
        optimizer.param_groups[0]["lr"] = 1e-3
        before = bits(optimizer), optimizer.state_dict()["param_groups"]
        explanation = halflife.explain(model, optimizer, in_place=in_place)
        assert_same(bits(optimizer), before[0])
        assert optimizer.state_dict()["param_groups"] == before[1]
        assert handle.config.low_precision == mode
        tables.append(explanation.rows)
        texts.append({each.code for each in explanation.warnings})
        if mode is not None and lam == 0.1:
            halflife.assert_decay(model, optimizer, {"*": "decoupled:0.1"}, in_place=in_place)
            optimizer.step()  # it goes on accumulating
            assert optimizer.state_dict()["param_groups"] != before[1]
    assert tables[0] == tables[1] == tables[2]
    small = lam * 1e-3 <= smallest_effective_fraction(torch.bfloat16)
    assert ("lost-in-precision" in texts[0]) == small
    assert "lost-in-precision" not in texts[1] | texts[2]


def test_explain_under_error_tells_what_the_next_step_would_refuse() -> None:
    model = nn.Linear(6, 8).to(torch.bfloat16)
    optimizer = AdamW(model.parameters(), lr=1.0, weight_decay=0.1)
    attach(optimizer, Decoupled(0.1), peak_lr=1.0, low_precision="error")
    optimizer.param_groups[0]["lr"] = 1e-3
    explanation = halflife.explain(model, optimizer)
    assert {(row["law"], row["lam"]) for row in explanation.rows} == {("decoupled", 0.1)}
