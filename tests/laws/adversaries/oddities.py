"""Settings that are not floats, what is updated at all, masters, other dtypes, and optimizers that are hard to copy."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, Optimizer

from tests.laws.adversaries.parts import LAM, LR, Entry, Made, Plain, embedded, groups, net, settle

__all__ = ["ENTRIES"]

R = LR * LAM


def of(cls: Any, *, dtype: torch.dtype = torch.float32, **settings: Any) -> Any:
    def make() -> Made:
        model = net(dtype)
        return model, cls(model.parameters(), **settings)

    return make


def over_model(cls: Any) -> Any:
    def make() -> Made:
        model = net()
        return model, cls(model)

    return make


# --- settings


def numpy_settings() -> Made:
    model = net()
    amount: Any = np.float32(LAM)
    return model, AdamW(groups(model, weight_decay=np.float32(0.0)), lr=np.float64(LR), weight_decay=amount)


class TensorDecay(Plain):
    """The decay is a tensor of the group, which is written in place by whoever schedules it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=torch.tensor(LAM))


def shared_rate() -> Made:
    """One tensor is the learning rate of both groups."""
    model = net()
    rate = torch.tensor(LR)
    return model, Plain(groups(model, lr=rate, weight_decay=0.0), lr=rate)


class Relative(Optimizer):
    """Without a learning rate it makes one of its own, and decays by it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": None, "weight_decay": LAM})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    lr = LR if group["lr"] is None else group["lr"]
                    p.mul_(1 - lr * group["weight_decay"]).sub_(p.grad, alpha=lr)


class RelativeStep(Relative):
    """Its own learning rate falls with the square root of the step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    state = self.state[p]
                    state["step"] = state.get("step", 0) + 1
                    p.mul_(1 - LAM * state["step"] ** -0.5).sub_(p.grad, alpha=0.1)


def warmup() -> Made:
    """The first step of a warm-up: lr is 0, the peak is known by the scheduler."""
    model = net()
    optimizer = AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM)
    optimizer.schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10)  # type: ignore[attr-defined]
    return model, optimizer


class Schedules(Plain):
    """Takes its learning rate from its own schedule, whatever the group says."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, lr=0.0)
        self.schedule = [LR] * 1000
        self.calls = 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        lr = self.schedule[self.calls]
        self.calls += 1
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - lr * group["weight_decay"]).sub_(p.grad, alpha=lr)


# --- what is updated


def frozen_with_zeros() -> Made:
    model = net()
    for p in model[0].parameters():
        p.grad = torch.zeros_like(p)
        p.requires_grad_(False)
    return model, SGD(model.parameters(), lr=LR, weight_decay=LAM)


def frozen_without() -> Made:
    model = net()
    model[0].requires_grad_(False)
    return model, AdamW(model.parameters(), lr=LR, weight_decay=LAM)


class Always(Plain):
    """Decays what has no gradient as well."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * group["weight_decay"])
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"])


def frozen_and_always() -> Made:
    model = net()
    model[2].requires_grad_(False)
    return model, Always(model.parameters())


class FillsZeros(Optimizer):
    """Gives parameters without a gradient one of zeros, and decays them."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.inner = SGD(params, lr=LR, weight_decay=LAM)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    p.grad = torch.zeros_like(p)
        self.inner.step()


def frozen_and_filled() -> Made:
    model = net()
    model[0].weight.requires_grad_(False)
    return model, FillsZeros(model.parameters())


class OnlyGradientOfMatrices(Adam):
    """Adds lam * w to the gradients of matrices, and puts them back; the rest of Adam as it is."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        kept = {}
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None and p.ndim > 1:
                    kept[p] = p.grad
                    p.grad = p.grad + LAM * p
        super().step()
        for p, grad in kept.items():
            p.grad = grad


class ByNorm(Plain):
    """The fraction is in proportion to the norm."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"] * float(p.norm()) / 8


class Toward(Plain):
    """Decays toward what the weights were when it was made."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=LAM)
        self.first = {p: p.detach().clone() for g in self.param_groups for p in g["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.lerp_(self.first[p], group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])


class TowardMean(Plain):
    """Decays toward a running mean of the weights, in the state."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    mean = self.state[p].setdefault("mean", p.detach().clone())
                    p.lerp_(mean, group["lr"] * group["weight_decay"]).sub_(p.grad, alpha=group["lr"])
                    mean.lerp_(p, 0.01)


def moved(cls: Any) -> Any:
    """Weights that have moved since the optimizer was made."""

    def make() -> Made:
        model = net()
        optimizer = cls(model.parameters())
        with torch.no_grad():
            for index, p in enumerate(model.parameters()):
                p.add_(torch.linspace(0.25, 1.0, p.numel()).reshape(p.shape) + 0.0625 * index)
        return model, optimizer

    return make


# --- masters and dtypes


class Masters(Optimizer):
    """float32 masters of bfloat16 weights, in a list, in the order of the parameters."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.masters = [p.detach().float() for g in self.param_groups for p in g["params"]]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        params = [p for g in self.param_groups for p in g["params"]]
        for p, master in zip(params, self.masters, strict=True):
            if p.grad is not None:
                lr = self.param_groups[0]["lr"]
                master.mul_(1 - lr * self.param_groups[0]["weight_decay"]).sub_(p.grad.float(), alpha=lr)
                p.copy_(master)


class MastersInside(Optimizer):
    """float32 masters that an inner AdamW holds in the place of the weights."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.pairs = [(p, nn.Parameter(p.detach().float())) for p in params]
        self.inner = AdamW([master for _, master in self.pairs], lr=LR, weight_decay=LAM)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for p, master in self.pairs:
            master.grad = None if p.grad is None else p.grad.float()
        self.inner.step()
        for p, master in self.pairs:
            p.copy_(master)


class Flat(Optimizer):
    """All weights in one flat buffer; the parameters are views of it."""

    def __init__(self, params: Any) -> None:
        params = list(params)
        super().__init__(params, {"lr": LR, "weight_decay": LAM})
        self.flat = torch.cat([p.detach().flatten() for p in params])
        offset = 0
        for p in params:
            p.data = self.flat[offset : offset + p.numel()].view_as(p)
            offset += p.numel()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        group = self.param_groups[0]
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in group["params"]]
        self.flat.mul_(1 - group["lr"] * group["weight_decay"])
        self.flat.sub_(torch.cat([g.flatten() for g in grads]), alpha=group["lr"])


class ThroughData(Plain):
    """Weights get new storage at each step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = p.data * (1 - group["lr"] * group["weight_decay"]) - group["lr"] * p.grad


def complex_weights() -> Made:
    model = net()
    weight = torch.tensor([[1.0 + 1.0j, 2.0 - 0.5j], [0.5j - 1.0, 4.0 + 2.0j]])
    model.register_parameter("wave", nn.Parameter(weight))
    return model, AdamW(model.parameters(), lr=LR, weight_decay=LAM)


def sizes() -> Made:
    """Parameters of 0 dimensions, of no element, of one, and of many."""
    model = embedded()
    model.register_parameter("empty", nn.Parameter(torch.empty(0, 4)))
    model.register_parameter("one", nn.Parameter(torch.empty(1)))
    model.register_parameter("long", nn.Parameter(torch.empty(70_001)))
    settle(model)
    return model, AdamW(model.parameters(), lr=LR, weight_decay=LAM)


def all_zeros() -> Made:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    settle(model, zeros=True)
    return model, AdamW(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM)


# --- running ones


def running(cls: Any, **settings: Any) -> Any:
    """After some real steps with random gradients: momenta are not zero."""

    def make() -> Made:
        model = net()
        optimizer = cls(groups(model, weight_decay=0.0), lr=LR, weight_decay=LAM, **settings)
        generator = torch.Generator().manual_seed(7)
        for _ in range(5):
            for p in model.parameters():
                p.grad = torch.randint(-3, 4, p.shape, generator=generator) / 32
            optimizer.step()
        return model, optimizer

    return make


# --- hard to copy


class KeepsGenerator(Plain):
    """Keeps the iterator that names came from."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(groups(model, weight_decay=0.0))
        self.named: Iterator[Any] = model.named_parameters()
        next(self.named)


class KeepsModel(Optimizer):
    """Steps over its model, by name; the groups are for show."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model.parameters(), {"lr": LR, "weight_decay": 0.0})
        self.model = model

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for name, p in self.model.named_parameters():
            if p.grad is not None:
                p.mul_(1 - LR * (LAM if name == "0.weight" else 0.0)).sub_(p.grad, alpha=LR)


class Handle:
    """Like a process group: cannot be copied, nor pickled."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle a handle")

    def __deepcopy__(self, memo: Any) -> Any:
        raise TypeError("cannot copy a handle")


class KeepsHandle(Plain):
    """A handle that a step reads, and a lock that it takes."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.handle = Handle(1)
        self.lock = threading.Lock()

    def step(self, closure: Any = None) -> Any:
        with self.lock:
            if self.handle.size == 1:
                super().step()


class KeepsThread(Plain):
    """A live thread's event, a random generator of its own and an open memory view."""

    def __init__(self, params: Any) -> None:
        super().__init__(groups_of(params))
        self.event = threading.Event()
        self.random = torch.Generator().manual_seed(3)
        self.view = memoryview(b"abc")

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        torch.rand(1, generator=self.random)
        return group["weight_decay"]


def groups_of(params: Any) -> list[dict[str, Any]]:
    params = list(params)
    return [{"params": params[:3]}, {"params": params[3:], "weight_decay": 0.0}]


class Raises(Plain):
    """The third call fails halfway, after some weights have moved."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.calls = 0

    def decays(self, p: Tensor, index: int) -> bool:
        self.calls += index == 0
        if self.calls == 3 and index == 2:
            raise ValueError("the third call fails")
        return True


class RaisesAtOnce(Plain):
    """Fails after it has drawn random numbers, changed the default dtype and moved half of the weights."""

    def decays(self, p: Tensor, index: int) -> bool:
        if index == 3:
            torch.rand(3)
            np.random.rand()
            torch.set_default_dtype(torch.float64)
            raise KeyError("use_muon")
        return True


class Draws(Plain):
    """Draws from all random states, and decays all the same."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        torch.rand(3)
        np.random.rand()
        return group["weight_decay"]


class Chance(Plain):
    """Each weight decays with a chance of one half."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"] * torch.bernoulli(torch.full_like(p, 0.5)))


class Slotted(Plain):
    """An attribute in a slot."""

    __slots__ = ("strength",)

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.strength = LAM

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.strength


class Grows(Plain):
    """Keeps a log of what it did, in lists of the class and of the instance."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.log: list[float] = []

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        self.log.append(float(p.norm()))
        return group["weight_decay"]


class Cautious(Plain):
    """Decays where weight and gradient have the same sign."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    same = (p * p.grad > 0).to(p.dtype)
                    p.mul_(1 - group["lr"] * group["weight_decay"] * same).sub_(p.grad, alpha=group["lr"])


class Sphere(Plain):
    """No decay: the norm is put back to what it was."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    norm = p.norm()
                    p.sub_(p.grad, alpha=group["lr"])
                    p.mul_(norm / p.norm().clamp_min(1e-12))


class Clipped(Plain):
    """No decay: weights are clipped to a large box."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad, alpha=group["lr"]).clamp_(-100.0, 100.0)


class Soft(Plain):
    """L1: a constant is taken off each weight."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad + group["weight_decay"] * p.sign() / 8, alpha=group["lr"])


def entry(name: str, make: Any, note: str, **others: Any) -> Entry:
    return Entry(name=name, kind="oddities", make=make, note=note, **others)


MOVES = {"hand": {"*": "moves"}}

ENTRIES = [
    entry("numpy-settings", numpy_settings, "np.float32 and np.float64", must=("*",)),
    entry("tensor-decay", of(TensorDecay), "weight_decay is a tensor", must=("*",)),
    entry("shared-tensor-lr", shared_rate, "one tensor is the lr of two groups"),
    entry("lr-none", of(Relative), "lr is None, and a constant acts"),
    entry("lr-none-falling", of(RelativeStep), "lr is None, and a falling one acts", **MOVES, why_hand="r falls"),
    entry(
        "lr-tiny",
        of(AdamW, lr=1e-13, weight_decay=LAM),
        "the end of a cosine",
        hand={"*": 1e-13 * LAM},
        why_hand="no weight shows 1e-14",
        must=("*",),
    ),
    entry(
        "lr-tiny-l2",
        of(SGD, lr=1e-14, weight_decay=LAM),
        "the same for SGD",
        hand={"*": 1e-14 * LAM},
        why_hand="no weight shows 1e-15",
    ),
    entry(
        "lam-tiny",
        of(AdamW, lr=1e-6, weight_decay=1e-9),
        "a tiny decay",
        hand={"*": 1e-15},
        lams=(1e-9, LAM),
        why_hand="no weight shows 1e-15",
    ),
    entry(
        "lr-0-at-warmup",
        warmup,
        "the first step of a warm-up",
        must=("*",),
        lams=(LAM,),
        hand={"0.weight": R, "2.weight": R, "*": "still"},
        why_hand="it is said for the peak",
    ),
    entry(
        "lr-0-for-ever",
        of(AdamW, lr=0.0, weight_decay=LAM),
        "lr is 0, and no peak is known",
        hand={"*": "any"},
        why_hand="0 is true, and so is what would be at another lr",
    ),
    entry("own-schedule", of(Schedules), "lr is 0 in the group, and is not read"),
    entry("frozen-with-zeros", frozen_with_zeros, "requires_grad is False, the gradient is zeros", must=("*",)),
    entry("frozen-without", frozen_without, "requires_grad is False, there is no gradient", must=("*",)),
    entry("frozen-and-always", frozen_and_always, "decays what has no gradient"),
    entry("frozen-and-filled", frozen_and_filled, "makes a gradient of zeros where there is none"),
    entry(
        "gradient-of-matrices",
        of(OnlyGradientOfMatrices, lr=1e-2),
        "Adam's L2 for matrices only",
        hand={"0.weight": "moves", "2.weight": "moves"},
        why_hand="Adam makes a sign of it",
    ),
    entry("by-norm", of(ByNorm), "in proportion to the norm", hand={"*": "other"}, why_hand="it depends on the norm"),
    entry(
        "toward-the-first", moved(Toward), "toward what the weights were", hand={"*": "other"}, why_hand="not toward 0"
    ),
    entry(
        "toward-the-first-at-once",
        of(Toward),
        "the same before any step",
        hand={"*": "other"},
        why_hand="not toward 0",
    ),
    entry(
        "toward-a-mean",
        moved(TowardMean),
        "toward a mean in the state",
        hand={"*": "elsewhere"},
        why_hand="not toward 0",
    ),
    entry("masters-in-a-list", of(Masters, dtype=torch.bfloat16), "float32 masters of bfloat16 weights"),
    entry("masters-inside", of(MastersInside, dtype=torch.bfloat16), "an inner AdamW over masters"),
    entry("flat", of(Flat), "parameters are views of one buffer"),
    entry("new-storage", of(ThroughData), "p.data is replaced"),
    entry(
        "bfloat16-sgd",
        of(SGD, dtype=torch.bfloat16, lr=LR, weight_decay=LAM, momentum=0.5),
        "momentum, bfloat16",
        hand={"*": R},
        also=(2 * R,),
        why_hand="rounding of the momentum",
    ),
    entry("float16", of(AdamW, dtype=torch.float16, lr=LR, weight_decay=LAM, eps=1e-3), "float16", must=("*",)),
    entry("float64", of(AdamW, dtype=torch.float64, lr=LR, weight_decay=LAM), "float64", must=("*",)),
    entry("complex", complex_weights, "a complex weight"),
    entry("sizes", sizes, "0 dimensions, no element, one, many", must=("long", "one", "mix.*", "scale")),
    entry("zeros", all_zeros, "weights that are all 0", must=("*",)),
    entry(
        "running-sgd",
        running(SGD, momentum=0.5),
        "SGD after 5 steps",
        how="pairs",
        hand={"0.weight": R, "2.weight": R},
        also=(2 * R,),
        why_hand="the momentum hands the decay on",
        must=("0.*", "2.*"),
    ),
    entry("running-adamw", running(AdamW), "AdamW after 5 steps", how="pairs", must=("*",)),
    entry("running-lion-like", running(AdamW, amsgrad=True), "amsgrad after 5 steps", how="pairs", must=("*",)),
    entry("keeps-a-generator", over_model(KeepsGenerator), "an iterator over the model, begun"),
    entry("keeps-its-model", over_model(KeepsModel), "steps over the model, by name"),
    entry("keeps-a-handle", of(KeepsHandle), "cannot be copied nor pickled; a lock"),
    entry("keeps-a-thread", of(KeepsThread), "an event, a generator, a memory view"),
    entry("raises", of(Raises), "the third call fails halfway", raises=True),
    entry("raises-at-once", of(RaisesAtOnce), "fails after it changed the process", raises=True),
    entry("draws", of(Draws), "draws random numbers"),
    entry("by-chance", of(Chance), "decays by chance", **MOVES, why_hand="not one fraction"),
    entry("slotted", of(Slotted), "an attribute in a slot"),
    entry("grows", of(Grows), "a log that grows", must=("*",)),
    entry(
        "cautious",
        of(Cautious),
        "where weight and gradient agree",
        hand={"*": "moves"},
        also=(R,),
        why_hand="a part of the weights at a time",
    ),
    entry("sphere", of(Sphere), "keeps the norm", hand={"*": "any"}, why_hand="no decay, and yet the weight matters"),
    entry("clipped", of(Clipped), "a box that no weight reaches", must=("*",)),
    entry("soft", of(Soft), "L1", hand={"*": "other"}, why_hand="a constant, not a fraction"),
]
