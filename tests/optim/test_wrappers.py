"""Wrappers that attach looks through, and optimizers that step others: refused by name, and right inside."""

from __future__ import annotations

import functools
import logging
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, AdamW, Optimizer

from halflife.errors import UserError
from halflife.optim.attaching import Handle, attach, handle_of
from halflife.optim.wrappers import inner_optimizers, unwrapped
from halflife.rules import Decoupled, HalfLife
from tests.optim.inner import SAM, Accumulating, HalfPrecision, Keyed, Lookahead

R = 1 - 2 ** (-1 / 100)


def weights(*shapes: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    return [torch.nn.Parameter(torch.ones(shape, dtype=dtype)) for shape in shapes or [(3, 2), (2,)]]


def adamw(params: Any = None, weight_decay: float = 0.1) -> AdamW:
    return AdamW(weights() if params is None else params, lr=1e-2, weight_decay=weight_decay)


def plain_step(optimizer: Any) -> None:
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = torch.zeros_like(p)
    optimizer.step()


# ---- wrappers: what they look like from outside, in their packages' names


class Accelerated(Optimizer):
    __module__ = "accelerate.optimizer"

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer, self.scaler = optimizer, None

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.optimizer.param_groups

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)


class LightningOptimizer:
    __module__ = "lightning.pytorch.core.optimizer"

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        kind = type(optimizer)
        self.__class__ = type("Lightning" + kind.__name__, (type(self), kind), {"__module__": "lightning.pytorch"})

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Any = None, **kwargs: Any) -> Any:
        return self._optimizer.step(closure, **kwargs)

    def __getattr__(self, item: str) -> Any:
        return getattr(self._optimizer, item)


class _FabricOptimizer:
    """As older versions had it, which share the dict of the optimizer."""

    __module__ = "lightning_fabric.wrappers"

    def __init__(self, optimizer: Optimizer) -> None:
        self.__dict__ = {key: value for key, value in vars(optimizer).items() if key not in {"state_dict", "step"}}
        kind = type(optimizer)
        self.__class__ = type("Fabric" + kind.__name__, (type(self), kind), {"__module__": "lightning_fabric"})
        self._optimizer = optimizer

    @property
    def optimizer(self) -> Optimizer:
        return self._optimizer

    def step(self, closure: Any = None) -> Any:
        return self._optimizer.step(closure)


WRAPPERS = [Accelerated, LightningOptimizer, _FabricOptimizer]


@pytest.mark.parametrize("wrap", WRAPPERS)
def test_wrapper_is_looked_through(wrap: Callable[[Optimizer], Any]) -> None:
    optimizer = adamw()
    wrapped: Any = wrap(optimizer)
    handle = attach(wrapped, HalfLife(steps=100))
    assert handle.optimizers == (optimizer,)
    assert handle_of(wrapped) is handle is handle_of(optimizer)
    assert handle.rule_for(wrapped, 0) == HalfLife(steps=100)
    for _ in range(10):
        plain_step(wrapped)
    kept = 1.0
    for _ in range(10):
        kept *= 1 - R
    assert optimizer.param_groups[0]["params"][0][0, 0].item() == pytest.approx(kept, rel=1e-6)
    assert handle.fractions() == [pytest.approx(R)]
    with pytest.raises(UserError, match="a rule is already attached to this AdamW"):
        attach(optimizer, HalfLife(steps=100))
    handle.detach()
    assert handle_of(wrapped) is None


def test_wrappers_around_each_other_and_one_optimizer_twice() -> None:
    optimizer = adamw()
    wrapped = Accelerated(LightningOptimizer(optimizer))  # type: ignore[arg-type]  # a subclass of AdamW by then
    assert unwrapped(wrapped) is optimizer
    with pytest.raises(UserError, match="the same optimizer twice"):
        attach([wrapped, optimizer], Decoupled(0.1))
    with pytest.raises(UserError, match=r"halflife.attach\(optimizer.optimizer.base_optimizer, \.\.\.\)"):
        attach(Accelerated(SAM(weights(), AdamW)), Decoupled(0.1))


def test_real_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")
    model = torch.nn.Linear(3, 2)
    optimizer = adamw(model.parameters())
    model, wrapped = accelerate.Accelerator(cpu=True).prepare(model, optimizer)
    handle = attach(wrapped, HalfLife(steps=1))
    before = model.weight.detach().clone()
    plain_step(wrapped)
    assert handle.fractions() == [0.5]
    assert torch.allclose(model.weight, before / 2)


def test_real_fabric_and_lightning() -> None:
    lightning = pytest.importorskip("lightning")
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    _model, wrapped = fabric.setup(torch.nn.Linear(3, 2), adamw([torch.nn.Parameter(torch.ones(2))]))
    handle = attach(wrapped, HalfLife(steps=1))
    plain_step(wrapped)
    assert handle.fractions() == [0.5]
    real = pytest.importorskip("lightning.pytorch.core.optimizer").LightningOptimizer
    optimizer = adamw()
    assert unwrapped(real(optimizer)) is optimizer


# ---- optimizers that step others


class Holder:
    """A plain object that steps an optimizer."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.engine = optimizer

    def run(self) -> None:
        self.engine.step()


class Outer(Optimizer):
    """Steps what it holds, wherever that is."""

    def __init__(self, inner: Optimizer, held: Any) -> None:
        super().__init__([p for group in inner.param_groups for p in group["params"]], {"weight_decay": 0.1, "lr": 0.1})
        self.held = held


class ThroughList(Outer):
    def step(self, closure: Any = None) -> Any:
        for optimizer in self.held:
            optimizer.step()


class ThroughDict(Outer):
    def step(self, closure: Any = None) -> Any:
        for optimizers in self.held.values():
            [optimizer.step() for optimizer in optimizers]


class ThroughObject(Outer):
    def step(self, closure: Any = None) -> Any:
        self.held.run()


class ThroughCall(Outer):
    def step(self, closure: Any = None) -> Any:
        self.held()


class ThroughReference(Outer):
    def step(self, closure: Any = None) -> Any:
        self.held().step()


class ThroughName(Outer):
    def step(self, closure: Any = None) -> Any:
        getattr(self.held, "step")()  # noqa: B009 - by name on purpose


def closing_over(optimizer: Optimizer) -> Callable[[], None]:
    def call() -> None:
        optimizer.step()

    return call


HIDDEN: dict[str, tuple[type[Outer], Callable[[Optimizer], Any], str]] = {
    "a list": (ThroughList, lambda inner: [inner], r"attach to it: halflife.attach\(optimizer.held\[0\], \.\.\.\)"),
    "a dict of lists": (ThroughDict, lambda inner: {"a": [inner]}, r"halflife.attach\(optimizer.held\['a'\]\[0\], "),
    "a plain object": (ThroughObject, Holder, r"halflife.attach\(optimizer.held.engine, "),
    "a closure": (ThroughCall, closing_over, "attach to it: ThroughCall was made from it"),
    "a bound step": (ThroughCall, lambda inner: inner.step, "attach to it: ThroughCall was made from it"),
    "a partial": (ThroughCall, lambda inner: functools.partial(inner.step, None), "ThroughCall was made from it"),
    "a weak reference": (ThroughReference, weakref.ref, r"halflife.attach\(optimizer.held\(\), "),
    "getattr": (ThroughName, lambda inner: inner, r"halflife.attach\(optimizer.held, "),
    "another outer one": (ThroughName, Lookahead, r"halflife.attach\(optimizer.held.optimizer, "),
    "a known wrapper": (ThroughName, Accelerated, r"halflife.attach\(optimizer.held, "),
}


@pytest.mark.parametrize("name", HIDDEN)
def test_inner_optimizer_is_named(name: str) -> None:
    kind, hide, told = HIDDEN[name]
    inner = adamw()
    outer = kind(inner, hide(inner))
    with pytest.raises(UserError, match=f"moves the weights by the step of another optimizer inside it, .*{told}"):
        attach(outer, HalfLife(steps=100))
    assert handle_of(outer) is None
    assert "initial_weight_decay" not in inner.param_groups[0]


def test_well_known_shapes_are_refused_by_name() -> None:
    half = HalfLife(steps=100)
    with pytest.raises(UserError, match=r"got SAM, .* AdamW: .*attach\(optimizer.base_optimizer, "):
        attach(SAM(weights(), AdamW, lr=0.1, weight_decay=0.1), half)
    with pytest.raises(UserError, match=r"got Lookahead, .*attach\(optimizer.optimizer, "):
        attach(Lookahead(adamw()), half)
    with pytest.raises(UserError, match=r"got Accumulating, .*attach\(optimizer._optimizer, "):
        attach(Accumulating(adamw(), 4), half)
    with pytest.raises(UserError, match=r"got HalfPrecision, .*attach\(optimizer.fp32, "):
        attach(HalfPrecision(adamw(weights(dtype=torch.bfloat16))), half)
    two = Keyed({"a": adamw(), "b": SGD(weights(), lr=0.1, weight_decay=0.1)})
    with pytest.raises(
        UserError, match=r"got Keyed; pass the .*attach\(\[optimizer.inner\['a'\], optimizer.inner\['b'\]\], "
    ):
        attach(two, half)  # type: ignore[arg-type]  # on purpose
    outer = Outer(adamw(), None)
    outer.step = closing_over(adamw(outer.param_groups[0]["params"]))  # type: ignore[assignment,method-assign]
    with pytest.raises(UserError, match=r"got Outer, .*AdamW.*Outer was made from it"):
        attach(outer, half)


# ---- optimizers that only refer to others


class Logger:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer, self.log = optimizer, logging.getLogger("nobody")

    def record(self) -> None:
        self.log.debug("%s", self.optimizer.param_groups[0]["lr"])


class Referring(SGD):
    """Keeps references of all kinds, and moves the weights itself."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.1, momentum=0.9, weight_decay=0.1)
        self.previous = adamw(params)  # where it started from
        self.logger = Logger(self)
        self.scheduler = torch.optim.lr_scheduler.StepLR(self, 1)
        self.rival = adamw()  # of other weights
        self.me = weakref.ref(self)
        self.wrapped = Accelerated(self)
        self.mine = self.step
        self.handles: list[Handle] = []
        self.module = torch.nn.Linear(2, 2)
        self.module.optimizer = self.previous  # type: ignore[assignment]

    def step(self, closure: Any = None) -> Any:
        loss = super().step(closure)
        self.logger.record()
        self.scheduler.step()
        self.rival.step()
        return loss


class Previous(SGD):
    """Reads an optimizer of the same weights, and steps nothing but itself."""

    def __init__(self, params: Any, previous: Optimizer) -> None:
        super().__init__(params, lr=0.1, weight_decay=0.1)
        self.previous = previous

    def step(self, closure: Any = None) -> Any:
        self.param_groups[0]["lr"] = self.previous.param_groups[0]["lr"]
        return super().step(closure)


def test_references_are_no_false_alarm() -> None:
    params = weights()
    optimizer = Previous(params, adamw(params))
    attach(optimizer, HalfLife(steps=100))
    plain_step(optimizer)
    referring = Referring(weights())
    assert inner_optimizers(referring) == []
    handle = attach(referring, HalfLife(steps=100))
    referring.handles = [handle]
    assert inner_optimizers(referring) == []


def test_every_optimizer_of_torch_steps_itself() -> None:
    kinds: list[Any] = list(vars(torch.optim).values())
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Optimizer) and kind is not Optimizer:
            made: Any = kind
            assert inner_optimizers(made([torch.nn.Parameter(torch.ones(2, 2))], lr=0.1)) == [], kind


# ---- a rule on the inner one


def quadratic(params: list[torch.nn.Parameter], optimizer: Optimizer, scale: float = 0.0) -> Callable[[], torch.Tensor]:
    """A loss whose gradient is ``scale`` everywhere."""

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = torch.stack([p.sum() for p in params]).sum() * scale
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    return closure


@pytest.mark.parametrize("how", ["step(closure)", "two steps"])
@pytest.mark.parametrize("gradient", [0.0, 0.5])
def test_sam_loses_the_fraction_once_per_iteration(how: str, gradient: float) -> None:
    params = weights((3, 2))
    sam = SAM(params, SGD, lr=0.1, weight_decay=0.1)
    handle = attach(sam.base_optimizer, HalfLife(steps=10))
    closure = quadratic(params, sam, gradient)
    expected, r = 1.0, 1 - 2 ** (-1 / 10)
    for _ in range(10):
        closure()
        if how == "step(closure)":
            sam.step(closure)
        else:
            sam.first_step()
            closure()
            sam.second_step()
        expected = (1 - r) * expected - 0.1 * gradient
    assert params[0][0, 0].item() == pytest.approx(expected, rel=1e-5)
    assert handle.fractions() == [pytest.approx(r)]


def test_lookahead_keeps_half_of_what_a_period_removes() -> None:
    params = weights((3, 2))
    lookahead = Lookahead(adamw(params), k=5, alpha=0.5)
    attach(lookahead.optimizer, HalfLife(steps=10))
    fast = slow = 1.0
    for call in range(1, 21):
        plain_step(lookahead)
        fast *= 2 ** (-1 / 10)
        if call % 5 == 0:
            slow += 0.5 * (fast - slow)
            fast = slow
    assert params[0][0, 0].item() == pytest.approx(fast, rel=1e-5)


def test_accumulation_loses_the_fraction_once_per_inner_step() -> None:
    params = weights((3, 2))
    outer = Accumulating(adamw(params), 4)
    attach(outer._optimizer, HalfLife(steps=10))
    for _ in range(10):
        plain_step(outer)
    assert params[0][0, 0].item() == pytest.approx(2 ** (-2 / 10), rel=1e-6)


def test_masters_lose_the_fraction_and_the_weights_follow() -> None:
    params = weights((3, 2), dtype=torch.bfloat16)
    outer = HalfPrecision(adamw(params))
    attach(outer.fp32, HalfLife(steps=10))
    for _ in range(10):
        plain_step(outer)
    assert outer.fp32.param_groups[0]["params"][0][0, 0].item() == pytest.approx(0.5, rel=1e-6)
    assert params[0][0, 0].item() == 0.5


# ---- optimizers without torch's hooks


class Bare(Optimizer):
    """Made without torch's constructor, and without an inner optimizer."""

    def __init__(self, params: Any) -> None:
        self.param_groups = [{"params": params, "lr": 0.1, "weight_decay": 0.1}]
        self.state: Any = {}
        self.defaults: Any = {}

    def step(self, closure: Any = None) -> Any:
        raise AssertionError("never called")


def test_optimizer_without_hooks_is_refused_in_words() -> None:
    told = "needs the step hooks of torch, which this .* does not have or does not call"
    with pytest.raises(UserError, match=told):
        attach(Bare(weights()), HalfLife(steps=100))

    class Replaced(SGD):
        pass

    optimizer = Replaced(weights(), lr=0.1, weight_decay=0.1)
    Replaced.step = lambda self, closure=None: None  # type: ignore[method-assign]
    with pytest.raises(UserError, match=told):
        attach(optimizer, HalfLife(steps=100))
    attach(Replaced(weights(), lr=0.1, weight_decay=0.1), HalfLife(steps=100))  # made anew, torch hooks it
