"""Optimizers that step another one, hooks, and steps that were put in the place of the class's own."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

import halflife
from tests.laws.adversaries.parts import LAM, LR, Entry, Made, Plain, groups, net

__all__ = ["ENTRIES"]


class Accumulating(Optimizer):
    """Adds gradients up and steps its inner optimizer at every third call."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        super().__init__([p for g in inner.param_groups for p in g["params"]], {})
        self.calls = 0
        self.sums: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.sums.setdefault(p, torch.zeros_like(p)).add_(p.grad)
        if self.calls % 3 == 0:
            kept = {p: p.grad for p in self.sums}
            for p, total in self.sums.items():
                p.grad = total / 3
            self.inner.step()
            for p, grad in kept.items():
                p.grad = grad
            self.sums.clear()


class Lookahead(Optimizer):
    """Slow weights on the optimizer, by the parameter; it shares the groups and the state of the inner one."""

    def __init__(self, inner: Optimizer, k: int = 3, alpha: float = 0.5) -> None:
        self.inner, self.k, self.alpha, self.calls = inner, k, alpha, 0
        super().__init__([p for g in inner.param_groups for p in g["params"]], inner.defaults)
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.slow = {p: p.detach().clone() for g in self.param_groups for p in g["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        self.inner.step()
        self.calls += 1
        if self.calls % self.k == 0:
            for p, slow in self.slow.items():
                slow.lerp_(p, self.alpha)
                p.copy_(slow)


class Halves(Optimizer):
    """Two inner optimizers, each over a half of the parameters."""

    def __init__(self, *inner: Optimizer) -> None:
        super().__init__([group for one in inner for group in one.param_groups], {})
        self.optimizers = list(inner)

    def step(self, closure: Any = None) -> Any:
        for one in self.optimizers:
            one.step()


class Named(Optimizer):
    """Two inner optimizers in a dict; the groups are those of the inner ones."""

    def __init__(self, **inner: Optimizer) -> None:
        super().__init__([p for one in inner.values() for g in one.param_groups for p in g["params"]], {"lr": 1.0})
        self.inner = inner
        self.param_groups = [group for one in inner.values() for group in one.param_groups]

    def step(self, closure: Any = None) -> Any:
        for one in self.inner.values():
            one.step()


class OtherRate(Optimizer):
    """The inner optimizer's learning rate is not the one that the wrapper shows, nor is its decay."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": 1.0, "weight_decay": 0.0})
        self.inner = AdamW(params, lr=LR, weight_decay=LAM)

    def step(self, closure: Any = None) -> Any:
        self.inner.step()


class WritesInner(Optimizer):
    """The wrapper's settings are written into the inner optimizer before each step."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self._inner = SGD(params, lr=1.0, weight_decay=0.0)

    def step(self, closure: Any = None) -> Any:
        for mine, other in zip(self.param_groups, self._inner.param_groups, strict=True):
            other.update(lr=mine["lr"], weight_decay=mine["weight_decay"])
        self._inner.step()


class TrueDecay(Optimizer):
    """The decay is outside the inner optimizer, which has none."""

    def __init__(self, inner: Optimizer, wd: float) -> None:
        self.opt, self.true_wd = inner, wd
        super().__init__([p for g in inner.param_groups for p in g["params"]], dict(inner.defaults))
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.opt.param_groups:
            for p in group["params"]:
                if p.ndim > 1:
                    p.mul_(1 - group["lr"] * self.true_wd)
        self.opt.step()


class Late(Optimizer):
    """The inner optimizer is made at the first step."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.engine: Optimizer | None = None

    def step(self, closure: Any = None) -> Any:
        if self.engine is None:
            self.engine = AdamW([{"params": g["params"], "lr": g["lr"]} for g in self.param_groups], weight_decay=LAM)
        self.engine.step()


class Undone(Optimizer):
    """Steps its inner optimizer and puts the weights back, but for what the gradient did."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.base = AdamW(params, lr=LR, weight_decay=LAM)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [p for g in self.param_groups for p in g["params"]]
        kept = [p.clone() for p in params]
        self.base.step()
        for p, before in zip(params, kept, strict=True):
            p.copy_(before)
            if p.grad is not None:
                p.sub_(p.grad, alpha=0.1)


class Sharp(Optimizer):
    """Climbs, asks the closure for gradients there, comes back, and steps its inner optimizer."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__([p for g in inner.param_groups for p in g["params"]], dict(inner.defaults, rho=0.05))
        self.base_optimizer = inner
        self.param_groups = inner.param_groups

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        if closure is None:
            raise RuntimeError("a closure is needed")
        params = [p for g in self.param_groups for p in g["params"] if p.grad is not None]
        kept = [p.clone() for p in params]
        for p in params:
            if p.grad is not None:
                p.add_(p.grad, alpha=0.05)
        with torch.enable_grad():
            closure()
        for p, before in zip(params, kept, strict=True):
            p.copy_(before)
        self.base_optimizer.step()


class OnClosure(Plain):
    """Weights decay once for each time that the closure is asked, and not without one."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        if closure is not None:
            with torch.enable_grad():
                closure()
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


class Bare(Optimizer):
    """A wrapper that never calls the constructor of its base class: it has none of torch's dictionaries."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner

    @property
    def param_groups(self) -> Any:  # type: ignore[override]
        return self.inner.param_groups

    @property
    def state(self) -> Any:  # type: ignore[override]
        return self.inner.state

    @property
    def defaults(self) -> Any:  # type: ignore[override]
        return self.inner.defaults

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Delegating(Optimizer):
    """Hands every attribute on, by __getattr__."""

    def __init__(self, inner: Optimizer) -> None:
        self.__dict__["wrapped"] = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["wrapped"], name)

    def step(self, closure: Any = None) -> Any:
        self.wrapped.step(closure)
        self.wrapped.step(closure)  # twice: it is not the inner one's law


def wrapped(cls: Any, inner: Any, **settings: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(inner(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM), **settings)

    return make


def of(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model.parameters())

    return make


def halves() -> Made:
    model = net()
    return model, Halves(
        AdamW(model[0].parameters(), lr=LR, weight_decay=LAM),
        SGD([*model[1].parameters(), *model[2].parameters()], lr=LR / 2, weight_decay=0.0),
    )


def named() -> Made:
    model = net()
    first = AdamW(model[0].parameters(), lr=LR, weight_decay=0.0)
    return model, Named(first=first, rest=Plain([*model[1].parameters(), *model[2].parameters()]))


def true_decay() -> Made:
    model = net()
    return model, TrueDecay(SGD(model.parameters(), lr=LR, weight_decay=0.0, momentum=0.9), LAM)


def decay_before(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    with torch.no_grad():
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.mul_(1 - LR * LAM)


def hooked_before() -> Made:
    model = net()
    optimizer = SGD(model.parameters(), lr=LR)
    optimizer.register_step_pre_hook(decay_before)
    return model, optimizer


def hooked_after() -> Made:
    """A closure over the model as a hook, which leaves biases alone."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.0)

    def decay(*_: Any) -> None:
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.mul_(1 - LR * LAM)

    optimizer.register_step_post_hook(decay)
    return model, optimizer


def hooked_off() -> Made:
    """A hook that turns the optimizer's own decay off before each step."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=LAM)

    def off(optimizer: Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0

    optimizer.register_step_pre_hook(off)
    return model, optimizer


def replaced() -> Made:
    """A step on the instance that decays and then calls the class's own."""
    model = net()
    optimizer = SGD(groups(model), lr=LR)
    own = optimizer.step

    def step(self: Optimizer, closure: Any = None) -> Any:
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.mul_(1 - LR * LAM)
        return own(closure)

    optimizer.step = types.MethodType(step, optimizer)  # type: ignore[method-assign]
    return model, optimizer


def replaced_by_nothing() -> Made:
    """A step on the instance that does not decay, over a class that does."""
    model = net()
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=LAM)

    def step(closure: Any = None) -> Any:
        with torch.no_grad():
            for p in model.parameters():
                if p.grad is not None:
                    p.sub_(p.grad, alpha=0.1)

    optimizer.step = step  # type: ignore[method-assign]
    return model, optimizer


def scheduled() -> Made:
    model = net()
    optimizer = AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM)
    optimizer.lr_scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 100)  # type: ignore[attr-defined]
    return model, optimizer


def attached() -> Made:
    model = net()
    optimizer = AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM)
    halflife.attach(optimizer, halflife.HalfLife(steps=10))
    return model, optimizer


def twice() -> Made:
    """One layer in two optimizers, both of which decay it."""
    model = net()
    return model, [
        Plain(model.parameters()),
        Plain(model[0].parameters(), lr=LR / 2),
    ]


class Chained(Plain):
    """Every step steps another optimizer too, which holds the rest of the model."""

    def __init__(self, params: Any, following: Optimizer) -> None:
        super().__init__(params)
        self.following = following

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        self.following.step(closure)


def chained() -> Made:
    model = net()
    rest = Plain(model[2].parameters(), weight_decay=LAM / 2)
    return model, [Chained([*model[0].parameters(), *model[1].parameters()], rest), rest]


def entry(name: str, make: Any, note: str, **others: Any) -> Entry:
    return Entry(name=name, kind="inner", make=make, note=note, **others)


ENTRIES = [
    entry("accumulating", wrapped(Accumulating, AdamW), "the inner AdamW steps at every third call"),
    entry("lookahead", wrapped(Lookahead, AdamW), "slow weights; the decay is not the same at every call"),
    entry("lookahead-of-sgd", wrapped(Lookahead, SGD, k=2), "slow weights, every second call"),
    entry("two-halves", halves, "AdamW for one half, SGD without decay for the other"),
    entry("a-dict-of-two", named, "AdamW without decay, and one that decays"),
    entry("inner-of-another-rate", of(OtherRate), "the wrapper shows lr 1 and weight_decay 0"),
    entry("writes-the-inner-one", of(WritesInner), "the settings of the wrapper are the ones that act"),
    entry("decay-outside-the-inner-one", true_decay, "the wrapper decays matrices, the inner SGD nothing"),
    entry("inner-made-late", of(Late), "no inner optimizer before the first step"),
    entry("undone", of(Undone), "what the inner one did is put back"),
    entry("sharp", wrapped(Sharp, AdamW), "climbs and comes back; needs a closure", closure=True),
    entry("sharp-of-sgd", wrapped(Sharp, SGD), "the same over SGD", closure=True),
    entry("on-closure", of(OnClosure), "decays where a closure is given", hand={"*": "any"}, why_hand="both are true"),
    entry("bare", wrapped(Bare, AdamW), "none of the base class's dictionaries"),
    entry("delegating", wrapped(Delegating, AdamW), "__getattr__ and two inner steps"),
    entry("hook-before", hooked_before, "a step hook decays"),
    entry("hook-after", hooked_after, "a step hook decays matrices, through the model"),
    entry("hook-off", hooked_off, "a step hook sets weight_decay to 0"),
    entry("replaced", replaced, "a step on the instance decays the first group"),
    entry("replaced-by-nothing", replaced_by_nothing, "a step on the instance forgets the decay"),
    entry("scheduled", scheduled, "a scheduler wraps the step", must=("*",)),
    entry("attached", attached, "a rule of this library", must=("*",), lams=(LAM,)),
    entry("twice", twice, "a layer in two optimizers", also=(LR * LAM, LR * LAM / 2)),
    entry("chained", chained, "the second optimizer is stepped by the first one as well", also=(LR * LAM / 2,)),
]
