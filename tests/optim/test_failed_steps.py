"""Steps that raise, wherever: what they leave, what they hold, and that the next try decays once."""

from __future__ import annotations

import contextlib
import copy
import functools
import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

from halflife.errors import UserError
from halflife.optim.attaching import attach
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Decoupled,
    Independent,
    MovingAverage,
    NormTarget,
    PerGroup,
    Scheduled,
    Stable,
    Toward,
)
from halflife.rules.base import Part
from halflife.schedules import until
from tests import FLOOR_BINDS

OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "sgd": lambda groups: SGD(groups, lr=0.1, weight_decay=0.5),
    "momentum": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=0.5),
    "adamw": lambda groups: AdamW(groups, lr=0.1, weight_decay=0.5),
    "adamw-loop": lambda groups: AdamW(groups, lr=0.1, weight_decay=0.5, foreach=False),
    "adam": lambda groups: Adam(groups, lr=0.1, weight_decay=0.5),
    "rmsprop": lambda groups: RMSprop(groups, lr=0.1, weight_decay=0.5),
}
RULES: dict[str, Part] = {
    "constant": Constant(0.25),
    "peak": Scheduled(Independent(0.25), until(5)),
    "stable": Stable(0.5, floor=1.0),
    "l2": L2(0.5),
    "first": L2(0.5, into="first"),
    "second": L2(0.5, into="second"),
    "toward": Toward(Constant(0.25)),
    "average": Toward(Constant(0.25), MovingAverage(0.5)),
    "cautious": Cautious(Constant(0.25)),
    "norm": NormTarget(),
}
CASES = [
    (kind, rule)
    for kind in OPTIMIZERS
    for rule in RULES
    if not (kind == "rmsprop" and rule == "stable") and (rule not in {"first", "second"} or kind.startswith("adam"))
]
everywhere = pytest.mark.parametrize(("kind", "rule"), CASES)
# Each kind and each rule once, one of them through the optimizer's own decay.
some = pytest.mark.parametrize(
    ("kind", "rule"),
    [
        *[
            ("sgd", "peak"),
            ("adamw", "constant"),
            ("momentum", "toward"),
            ("rmsprop", "cautious"),
            ("adam", "cautious"),
        ],
        *[("rmsprop", "norm"), ("adamw", "stable"), ("momentum", "average"), ("adam", "second"), ("rmsprop", "l2")],
    ],
)


class Stop(Exception):
    """What the tests raise in a step."""


class Run:
    """Two groups of one weight each, that decay, an optimizer, and a rule on it."""

    def __init__(self, kind: str, rule: str, prepare: Callable[[Optimizer], object] | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weights = [nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(2)]
        self.optimizer = OPTIMIZERS[kind]([{"params": [weight]} for weight in self.weights])
        if prepare is not None:
            prepare(self.optimizer)
        self.handle = attach(self.optimizer, RULES[rule])  # type: ignore[arg-type]  # rules of all kinds

    def gradients(self, step: int) -> float:
        for number, weight in enumerate(self.weights):
            generator = torch.Generator().manual_seed(10 * step + number)
            weight.grad = torch.randn(3, generator=generator, dtype=torch.float64)
        return 1.0

    def steps(self, *numbers: int) -> list[Tensor]:
        for number in numbers:
            self.gradients(number)
            self.optimizer.step()
        return [weight.detach().clone() for weight in self.weights]

    def seen(self) -> dict[str, Any]:
        """All that a step may change: weights, groups, defaults, counts, peaks, moments."""
        state = self.optimizer.state_dict()
        return copy.deepcopy(
            {
                "weights": [weight.detach() for weight in self.weights],
                "groups": [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups],
                "saved": state["param_groups"],
                "defaults": self.optimizer.defaults,
                "fractions": self.handle.fractions(),
            }
        )


def assert_same(one: Any, other: Any, rtol: float = 0.0) -> None:
    if isinstance(one, Tensor):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_same(one[key], other[key], rtol)
    elif isinstance(one, list):
        assert len(one) == len(other)
        for first, second in zip(one, other, strict=True):
            assert_same(first, second, rtol)
    else:
        assert one == other


class Guard:
    """A hook that raises when it is told to."""

    def __init__(self, error: type[BaseException] = Stop) -> None:
        self.error = error
        self.armed = False

    def __call__(self, *_: Any) -> None:
        if self.armed:
            self.armed = False
            raise self.error


# ---- where the step has not begun


@some
@pytest.mark.parametrize("order", ["before attach", "after attach"])
def test_a_hook_that_refuses_the_step_leaves_all_as_it_was(kind: str, rule: str, order: str) -> None:
    """To the last bit, and so does the step after it. As a guard against NaN does."""
    guard = Guard()
    run = Run(kind, rule, lambda optimizer: order == "before attach" and optimizer.register_step_pre_hook(guard))
    if order == "after attach":
        run.optimizer.register_step_pre_hook(guard)
    run.steps(0, 1)
    before = run.seen()
    run.gradients(2)
    gradients = [weight.grad.clone() for weight in run.weights if weight.grad is not None]
    guard.armed = True
    with pytest.raises(Stop):
        run.optimizer.step()
    assert_same(run.seen(), before)
    assert_same([weight.grad for weight in run.weights], gradients)
    run.optimizer.step()
    assert_same([weight.detach() for weight in run.weights], Run(kind, rule).steps(0, 1, 2))


@some
def test_a_closure_that_raises_leaves_all_as_it_was(kind: str, rule: str) -> None:
    run = Run(kind, rule)
    run.steps(0, 1)
    before = run.seen()

    def closure() -> float:
        run.gradients(2)
        raise Stop

    with pytest.raises(Stop):
        run.optimizer.step(closure)
    assert_same(run.seen(), before)
    assert_same(run.steps(2), Run(kind, rule).steps(0, 1, 2))


@pytest.mark.parametrize("lr", [float("nan"), None, -1.0, "fast"])
@some
def test_a_refused_step_leaves_all_as_it_was(kind: str, rule: str, lr: Any) -> None:
    """In the second group, when the first has been answered for."""
    run = Run(kind, rule)
    run.steps(0, 1)
    before = run.seen()
    run.optimizer.param_groups[1]["lr"] = lr
    run.gradients(2)
    with pytest.raises(UserError, match=r"the lr of parameter group 1 is .*; expected a finite number >= 0"):
        run.optimizer.step()
    run.optimizer.param_groups[1]["lr"] = 0.1
    assert_same(run.seen(), before)
    run.optimizer.step()
    assert_same([weight.detach() for weight in run.weights], Run(kind, rule).steps(0, 1, 2))


def test_a_norm_that_was_handed_over_serves_the_next_try() -> None:
    run, clean = Run("adamw", "stable"), Run("adamw", "stable")
    for each, refused in ((run, True), (clean, False)):
        each.gradients(0)
        each.handle.hand_over_norm(2.0)
        if refused:
            each.optimizer.param_groups[1]["lr"] = None
            with pytest.raises(UserError, match="the lr of parameter group 1"):
                each.optimizer.step()
            each.optimizer.param_groups[1]["lr"] = 0.1
        each.optimizer.step()
        each.steps(1)
    assert run.handle.fractions() == clean.handle.fractions()
    assert_same(run.steps(2), clean.steps(2))


# ---- in the middle of it


@contextlib.contextmanager
def failing(optimizer: Optimizer, at: int, error: type[BaseException] = Stop) -> Iterator[None]:
    """Let the step fail when it comes to a group: every optimizer of torch collects its tensors there."""
    collect, calls = optimizer._init_group, 0  # type: ignore[attr-defined]  # all those of the table have it

    def fail(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls > at:
            raise error
        return collect(*args)

    optimizer._init_group = fail  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer._init_group  # type: ignore[attr-defined]


def fail(run: Run, at: int = 0, error: type[BaseException] = Stop) -> None:
    with failing(run.optimizer, at, error), contextlib.suppress(error):
        run.optimizer.step()


@everywhere
def test_an_optimizer_that_raises_is_tried_again(kind: str, rule: str) -> None:
    """As one that runs out of memory: what the update has not reached is as before, up to rounding in the own pass."""
    run = Run(kind, rule)
    run.steps(0, 1)
    before = run.seen()
    run.gradients(2)
    gradients = [weight.grad.clone() for weight in run.weights if weight.grad is not None]
    fail(run)
    shrunk = rule == "cautious" and kind != "rmsprop"  # the mask is not known any more: the next pass leaves it out
    if not shrunk:
        assert_same(run.seen(), before, rtol=1e-14)
        assert_same([weight.grad for weight in run.weights], gradients, rtol=1e-14)
    fail(run)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.5, 0.5]
    run.optimizer.step()
    values = [weight.detach() for weight in run.weights]
    assert_same(values, Run(kind, rule).steps(0, 1, 2), rtol=1e-13)
    assert_same(run.steps(3), Run(kind, rule).steps(0, 1, 2, 3), rtol=1e-13)


@pytest.mark.parametrize("rule", ["constant", "toward", "cautious", "l2"])
@pytest.mark.parametrize("kind", ["sgd", "momentum", "adamw"])
def test_each_update_comes_with_one_decay(kind: str, rule: str) -> None:
    """The first group is updated, the second fails: torch leaves it so, and the decay goes with the update.

    All decays that act before the update: what acts after it waits for a step that ends well.
    """
    run, clean = Run(kind, rule), Run(kind, rule)
    run.steps(0)
    run.gradients(1)
    fail(run, at=1)
    expected = clean.steps(0, 1)
    values = [weight.detach() for weight in run.weights]
    assert_same(values[0], expected[0], rtol=1e-14)
    run.optimizer.step()  # which updates the first once more
    assert_same(values[1], expected[1], rtol=1e-13)
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.5, 0.5]
    assert run.optimizer.state_dict()["param_groups"][0]["halflife_step"] == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, SystemExit])
@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_any_exception_is_one(kind: str, error: type[BaseException]) -> None:
    run = Run(kind, "peak")
    before = run.seen()
    run.gradients(0)
    fail(run, error=error)
    assert_same(run.seen(), before, rtol=1e-14)
    assert_same(run.steps(0), Run(kind, "peak").steps(0), rtol=1e-14)


@pytest.mark.parametrize("kind", ["sgd", "rmsprop"])
def test_an_exception_that_is_kept_does_not_pass_for_a_step_under_way(kind: str) -> None:
    """Its traceback holds the frame of the call, as it does in a notebook after an error."""
    run = Run(kind, "constant")
    run.gradients(0)
    kept = []
    for _ in range(2):
        with failing(run.optimizer, 0):
            try:
                run.optimizer.step()
            except Stop as error:
                kept.append(error)
                assert run.optimizer.state_dict()["param_groups"][0]["weight_decay"] == 0.5
    run.optimizer.step()
    assert_same([weight.detach() for weight in run.weights], Run(kind, "constant").steps(0), rtol=1e-14)
    assert run.handle.fractions() == [0.25, 0.25]
    kept.clear()
    assert_same(run.steps(1), Run(kind, "constant").steps(0, 1), rtol=1e-14)


def test_weights_that_the_user_puts_back_stay() -> None:
    """In the handler of the error, before its traceback lets the step go."""
    run = Run("rmsprop", "constant")
    backup = [weight.detach().clone() for weight in run.weights]
    run.gradients(0)
    with failing(run.optimizer, 0):
        try:
            run.optimizer.step()
        except Stop:
            with torch.no_grad():
                for weight, saved in zip(run.weights, backup, strict=True):
                    weight.copy_(saved)
    assert_same([weight.detach() for weight in run.weights], backup)


def test_what_the_user_sets_after_a_failed_step_stays() -> None:
    run = Run("rmsprop", "constant")
    run.gradients(0)
    with failing(run.optimizer, 0):
        try:
            run.optimizer.step()
        except Stop:
            run.optimizer.param_groups[0]["weight_decay"] = 0.9
    assert run.optimizer.param_groups[0]["weight_decay"] == 0.9


def test_first_weights_are_those_of_the_first_step_that_is_made() -> None:
    """A step that failed has recorded none: other weights may be loaded before the next try."""
    for rule in ("toward", "norm"):
        run, clean = Run("momentum", rule), Run("momentum", rule)
        run.gradients(0)
        fail(run)
        with torch.no_grad():
            for weight, other in zip(run.weights, clean.weights, strict=True):
                weight.copy_(2.0 * other)
                other.mul_(2.0)
        assert_same(run.steps(0, 1), clean.steps(0, 1))


# ---- after the update


@pytest.mark.parametrize("order", ["before attach", "after attach"])
def test_a_hook_after_the_step_raises_and_the_step_counts(order: str) -> None:
    """The update is made: the next call is the next step."""
    guard = Guard()
    run = Run("momentum", "peak", lambda each: order == "before attach" and each.register_step_post_hook(guard))
    if order == "after attach":
        run.optimizer.register_step_post_hook(guard)
    run.gradients(0)
    guard.armed = True
    with pytest.raises(Stop):
        run.optimizer.step()
    assert run.optimizer.state_dict()["param_groups"][0]["halflife_step"] == 1
    assert run.handle.fractions() == [0.25, 0.25]
    assert [group["weight_decay"] for group in run.optimizer.param_groups] == [0.5, 0.5]
    assert_same(run.steps(1), Run("momentum", "peak").steps(0, 1))


def test_an_exception_after_the_update_keeps_its_decay() -> None:
    run = Run("momentum", "constant")
    run.gradients(0)

    def fail() -> None:
        raise Stop

    run.optimizer._optimizer_step_code = fail  # type: ignore[method-assign]  # torch calls it after the update
    with pytest.raises(Stop):
        run.optimizer.step()
    assert_same([weight.detach() for weight in run.weights], Run("momentum", "constant").steps(0))


# ---- calls inside calls, and company


class Mine(SGD):
    """Calls the step of its base class, whose hooks then run inside."""

    swallows = False
    fails = False

    def step(self, closure: Any = None) -> Any:
        if self.fails:
            self.fails = False
            with failing(self, 0), contextlib.suppress(Stop) if self.swallows else contextlib.nullcontext():
                super().step(closure)
        return super().step(closure)


@pytest.mark.parametrize("swallows", [False, True])
def test_a_base_class_that_fails(swallows: bool) -> None:
    weight = nn.Parameter(torch.ones(2, dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    optimizer = Mine([weight], lr=0.1, momentum=0.9, weight_decay=0.5)
    handle = attach(optimizer, Scheduled(Constant(0.25), until(2)))
    optimizer.fails, optimizer.swallows = True, swallows
    with contextlib.nullcontext() if swallows else pytest.raises(Stop):
        optimizer.step()
    if not swallows:
        assert weight.tolist() == pytest.approx([1.0, 1.0], rel=1e-15)
        optimizer.step()
    assert weight.tolist() == pytest.approx([0.75, 0.75], rel=1e-15)
    assert optimizer.param_groups[0]["weight_decay"] == 0.5
    for expected in (0.25, 0.0):
        optimizer.step()
        assert handle.fractions() == [expected]


def test_one_of_two_optimizers_fails() -> None:
    weights = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    optimizers = [SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.5) for weight in weights]
    handle = attach(optimizers, Constant(0.5))
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    optimizers[0].step()
    with failing(optimizers[1], 0), pytest.raises(Stop):
        optimizers[1].step()
    assert [weight[0].item() for weight in weights] == [0.5, 1.0]
    assert handle.fractions() == [0.5, 0.0]
    optimizers[1].step()
    assert [weight[0].item() for weight in weights] == [0.5, 0.5]


@pytest.mark.parametrize("fused", [False, True])
def test_a_guard_under_grad_scaler(fused: bool) -> None:
    """GradScaler calls the step itself, on scaled gradients if the optimizer is fused."""

    def train(*, refuse: bool) -> Tensor:
        weight = nn.Parameter(torch.ones(4))
        optimizer = AdamW([weight], lr=0.1, weight_decay=0.5, fused=fused)
        attach(optimizer, Stable(0.5, floor=1.0))
        guard = Guard()
        optimizer.register_step_pre_hook(guard)
        scaler = torch.amp.GradScaler("cpu", init_scale=64.0)
        for step in range(4):
            optimizer.zero_grad()
            scaler.scale((weight * (step + 1)).square().sum()).backward()  # type: ignore[no-untyped-call]  # torch's
            if refuse and step == 2:
                guard.armed = True
                with pytest.raises(Stop):
                    scaler.step(optimizer)
                scaler = torch.amp.GradScaler("cpu", init_scale=64.0)  # the other has unscaled these gradients
                for left in ("grad_scale", "found_inf"):  # by torch, which would multiply the next scale by it
                    vars(optimizer).pop(left, None)
                optimizer.zero_grad()
                scaler.scale((weight * (step + 1)).square().sum()).backward()  # type: ignore[no-untyped-call]
            scaler.step(optimizer)
            scaler.update()
        return weight.detach()

    torch.testing.assert_close(train(refuse=True), train(refuse=False), rtol=1e-6, atol=0.0)


# ---- a state dict in the middle of a step


@some
def test_a_checkpoint_in_a_closure_changes_nothing(kind: str, rule: str) -> None:
    """And holds what the user has set, and the steps that have been made."""
    run, saved = Run(kind, rule), []

    def closure(step: int) -> float:
        run.gradients(step)
        saved.append(run.optimizer.state_dict()["param_groups"])
        return 1.0

    for step in range(3):
        run.optimizer.step(functools.partial(closure, step))
    values = [weight.detach() for weight in run.weights]
    plain = Run(kind, rule)
    for step in range(3):
        plain.optimizer.step(functools.partial(plain.gradients, step))
    assert_same(values, [weight.detach() for weight in plain.weights])
    assert run.handle.fractions() == plain.handle.fractions()
    assert [[group["weight_decay"] for group in groups] for groups in saved] == [[0.5, 0.5]] * 3
    assert [groups[0]["halflife_step"] for groups in saved] == [0, 1, 2]


@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_a_thread_that_saves_during_a_step(kind: str) -> None:
    run, saved = Run(kind, "constant"), []

    def closure() -> float:
        thread = threading.Thread(target=lambda: saved.append(copy.deepcopy(run.optimizer.state_dict())))
        thread.start()
        thread.join()
        return run.gradients(0)

    run.optimizer.step(closure)
    assert_same([weight.detach() for weight in run.weights], Run(kind, "constant").steps(0))
    assert [group["weight_decay"] for group in saved[0]["param_groups"]] == [0.5, 0.5]
    assert saved[0]["param_groups"][0]["halflife_step"] == 0


# ---- order of hooks


@pytest.mark.filterwarnings(f"ignore:{FLOOR_BINDS}:UserWarning")  # clipped gradients are that small
@pytest.mark.parametrize("order", ["before attach", "after attach"])
@pytest.mark.parametrize("rule", ["l2", "stable"])
def test_clipping_comes_first_whenever_it_is_registered(rule: str, order: str) -> None:
    def clip(optimizer: Optimizer, *_: Any) -> None:
        nn.utils.clip_grad_norm_([weight for group in optimizer.param_groups for weight in group["params"]], 0.1)

    clipped = Run("adamw", rule, lambda each: order == "before attach" and each.register_step_pre_hook(clip))
    if order == "after attach":
        removable = clipped.optimizer.register_step_pre_hook(clip)
    by_hand = Run("adamw", rule)
    for step in range(3):
        by_hand.gradients(step)
        clip(by_hand.optimizer)
        by_hand.optimizer.step()
    assert_same(clipped.steps(0, 1, 2), [weight.detach() for weight in by_hand.weights])
    if order == "after attach":
        removable.remove()
        assert len(clipped.optimizer._optimizer_step_pre_hooks) == 1
    clipped.handle.detach()
    assert "register_step_pre_hook" not in vars(clipped.optimizer)


# ---- nothing is held


class Activations:
    """Stands for what a training step has in its memory."""


@pytest.mark.parametrize("where", ["guard before", "guard after", "closure", "update", "refusal", "post-hook"])
@pytest.mark.parametrize("kind", ["adamw", "rmsprop"])
def test_a_failed_step_holds_nothing(kind: str, where: str) -> None:
    """After running out of memory the activations have to be gone before the next try, without a garbage collection."""
    guard = Guard()
    run = Run(kind, "constant", lambda each: where == "guard before" and each.register_step_pre_hook(guard))
    if where == "guard after":
        run.optimizer.register_step_pre_hook(guard)
    if where == "post-hook":
        run.optimizer.register_step_post_hook(guard)
    if where == "refusal":
        run.optimizer.param_groups[1]["lr"] = None
    guard.armed = True

    def train() -> None:
        activations = Activations()
        found.append(weakref.ref(activations))
        run.gradients(0)

        def closure() -> float:
            assert activations is not None
            if where == "closure":
                raise Stop
            return 1.0

        run.optimizer.step(closure if where in {"closure", "update"} else None)

    found: list[weakref.ref[Activations]] = []
    gc.disable()
    try:
        update = failing(run.optimizer, 0) if where == "update" else contextlib.nullcontext()
        with update, contextlib.suppress(Stop, UserError):
            train()
        assert found[0]() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("use", ["attached", "failed", "saved", "detached"])
@some
def test_an_optimizer_under_a_rule_is_freed_like_a_bare_one(kind: str, rule: str, use: str) -> None:
    gc.disable()
    try:
        run = Run(kind, rule)
        if use != "attached":
            run.steps(0)
        if use == "failed":
            fail(run)
        if use == "saved":
            run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
            run.optimizer.step(functools.partial(run.gradients, 1))
        if use == "detached":
            run.handle.detach()
        found = [weakref.ref(weight) for weight in run.weights]
        optimizer, handle = weakref.ref(run.optimizer), run.handle
        del run
        assert optimizer() is None
        assert [each() for each in found] == [None, None]
        assert handle.optimizers == ()
        assert handle.fractions() == []
        handle.detach()
    finally:
        gc.enable()


def test_groups_keep_their_numbers_when_another_optimizer_goes() -> None:
    """The rules of PerGroup are counted through all optimizers that were attached."""
    weights = [nn.Parameter(torch.ones(2, dtype=torch.float64)) for _ in range(2)]
    first, second = (SGD([weight], lr=0.1, weight_decay=0.5) for weight in weights)
    handle = attach([first, second], PerGroup([Constant(0.5), Decoupled(1.0)]))
    del first
    weights[1].grad = torch.zeros(2, dtype=torch.float64)
    second.step()
    assert handle.rule_for(second, 0) == Decoupled(1.0)
    assert weights[1].tolist() == pytest.approx([0.9, 0.9])
