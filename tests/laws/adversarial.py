"""Optimizers that a careless copy gets wrong, each by another trick; all of them decay."""

from __future__ import annotations

import functools
import threading
import weakref
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakTensorKeyDictionary

LR, WD = 0.05, 0.3


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 3)
        self.second = nn.Linear(3, 2)


def net() -> Net:
    torch.manual_seed(3)
    return Net()


class Plain(Optimizer):
    """SGD with a decoupled decay that a subclass chooses per parameter."""

    def __init__(self, params: Any, lr: float = LR, weight_decay: float = WD) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
        return float(group["weight_decay"])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * self.decay(group, p, index)).add_(p.grad, alpha=-group["lr"])


Make = Callable[[Net], Any]
CASES: dict[str, Make] = {}


def case(make: Make) -> Make:
    CASES[make.__name__] = make
    return make


@case
def set_of_ids(model: Net) -> Any:
    class Skips(Plain):
        skip: set[int]

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if id(p) in self.skip else WD

    made = Skips(model.parameters())
    made.skip = {id(model.first.bias), id(model.second.bias)}
    return made


@case
def dictionary_of_ids_in_a_group(model: Net) -> Any:
    class Looks(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return float(group["by_id"][id(p)])

    by_id = {id(p): 0.1 * n for n, p in enumerate(model.parameters())}
    return Looks([{"params": list(model.parameters()), "by_id": by_id}])


@case
def addresses(model: Net) -> Any:
    class Located(Plain):
        where: frozenset[int]

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if p.data_ptr() in self.where else WD

    made: Any = Located(model.parameters())
    made.where = frozenset([model.first.bias.data_ptr(), model.second.weight.data_ptr()])
    made.alias = model.second.weight.data
    return made


@case
def names_of_parameters(model: Net) -> Any:
    class Named(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if "bias" in group["param_names"][index] else WD

    return Named(model.named_parameters())


@case
def size_of_parameters(model: Net) -> Any:
    class Large(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return WD if p.numel() >= 6 else 0.0

    return Large(model.parameters())


@case
def written_on_parameters(model: Net) -> Any:
    class Reads(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return float(getattr(p, "_optim", {}).get("weight_decay", WD))

    model.first.bias._optim = {"weight_decay": 0.0}  # type: ignore[attr-defined]
    return Reads(model.parameters())


@case
def flags_in_the_state(model: Net) -> Any:
    class Flagged(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return WD if self.state[p]["decays"] else 0.0

    made = Flagged(model.parameters())
    for p in model.parameters():
        made.state[p]["decays"] = p.ndim > 1
    return made


@case
def masters_in_a_list(model: Net) -> Any:
    class Masters(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.masters = [[p.detach().double() for p in group["params"]] for group in self.param_groups]

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for group, masters in zip(self.param_groups, self.masters, strict=True):
                for p, master in zip(group["params"], masters, strict=True):
                    master.mul_(1 - LR * WD).sub_(p.grad.double(), alpha=LR)
                    p.copy_(master)

    return Masters(model.parameters())


@case
def flat_views(model: Net) -> Any:
    class Flat(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.views = [p.data.view(-1) for p in self.param_groups[0]["params"]]

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p, view in zip(self.param_groups[0]["params"], self.views, strict=True):
                view.mul_(1 - LR * WD).sub_(p.grad.view(-1), alpha=LR)

    return Flat(model.parameters())


@case
def one_buffer_for_all(model: Net) -> Any:
    class Buffered(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            parameters = self.param_groups[0]["params"]
            self.flat = torch.cat([p.detach().view(-1) for p in parameters])
            start = 0
            for p in parameters:
                p.data = self.flat[start : start + p.numel()].view(p.shape)
                start += p.numel()

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            gradient = torch.cat([p.grad.view(-1) for p in self.param_groups[0]["params"]])
            self.flat.mul_(1 - LR * WD).sub_(gradient, alpha=LR)

    return Buffered(model.parameters())


class Every2(Optimizer):
    """A wrapper that shares the groups and the state of the optimizer inside, which it steps at every second call."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.param_groups = inner.param_groups
        self.state = inner.state
        self.defaults = inner.defaults
        self.calls = 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % 2 == 0:
            self.inner.step()


@case
def inner_optimizer(model: Net) -> Any:
    return Every2(torch.optim.AdamW(model.parameters(), LR, weight_decay=WD))


@case
def lookahead_without_hook_dictionaries(model: Net) -> Any:
    class Lookahead(Optimizer):
        def __init__(self, inner: Optimizer) -> None:
            self.inner, self.param_groups, self.state, self.count = inner, inner.param_groups, defaultdict(dict), 0
            self.defaults = {}
            for group in self.param_groups:
                for p in group["params"]:
                    self.state[p]["slow"] = p.detach().clone()

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self.inner.step()
            self.count += 1
            if self.count % 3 == 0:
                for group in self.param_groups:
                    for p in group["params"]:
                        slow = self.state[p]["slow"]
                        slow.add_(p - slow, alpha=0.5)
                        p.copy_(slow)

    return Lookahead(torch.optim.SGD(model.parameters(), LR, momentum=0.9, weight_decay=WD))


@case
def wrapper_that_is_no_optimizer(model: Net) -> Any:
    class Wrapper:
        def __init__(self, inner: Optimizer) -> None:
            self.inner = inner

        @property
        def param_groups(self) -> Any:
            return self.inner.param_groups

        @torch.no_grad()
        def step(self) -> None:
            for group in self.param_groups:
                for p in group["params"]:
                    p.mul_(1 - LR * WD)
            self.inner.step()

    return Wrapper(torch.optim.SGD(model.parameters(), LR))


@case
def inner_in_a_dictionary(model: Net) -> Any:
    class Many(Optimizer):
        def __init__(self, inner: dict[str, Optimizer]) -> None:
            self.parts = inner
            super().__init__([p for each in inner.values() for g in each.param_groups for p in g["params"]], {"lr": LR})
            self.param_groups = [group for each in inner.values() for group in each.param_groups]

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for each in self.parts.values():
                each.step()

    return Many(
        {
            "matrices": torch.optim.AdamW([p for p in model.parameters() if p.ndim > 1], LR, weight_decay=WD),
            "rest": torch.optim.SGD([p for p in model.parameters() if p.ndim < 2], LR),
        }
    )


@case
def closures(model: Net) -> Any:
    class Asks(Plain):
        rule: Callable[[Tensor], float]

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return self.rule(p)

    made, calls = Asks(model.parameters()), 0

    def rule(p: Tensor, biases: tuple[Tensor, ...] = (model.second.bias,)) -> float:
        nonlocal calls
        calls += 1
        return 0.0 if p is model.first.bias or any(p is each for each in biases) else WD / calls

    made.rule = rule
    return made


@case
def partial_and_bound_methods(model: Net) -> Any:
    class Asks(Plain):
        def __init__(self, params: Any, off: Tensor) -> None:
            super().__init__(params)
            self.rule = functools.partial(self.rule_for, off=off)
            self.note = self.seen = deque[float](maxlen=4)
            self.add = self.seen.append

        def rule_for(self, p: Tensor, *, off: Tensor) -> float:
            return 0.0 if p is off else WD / (1 + len(self.seen))

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            self.add(float(p.norm()))
            return self.rule(p) + 0.01 * max(self.note)

    return Asks(model.parameters(), model.first.weight)


@case
def weak_references(model: Net) -> Any:
    class Weak(Plain):
        def __init__(self, params: Any, off: Tensor) -> None:
            super().__init__(params)
            self.off = weakref.ref(off)
            self.owner = weakref.proxy(self)
            self.factors: Any = WeakTensorKeyDictionary()
            self.factors.update({p: 0.1 * n for n, p in enumerate(self.param_groups[0]["params"])})
            self.some = weakref.WeakSet([self])
            self.names = weakref.WeakKeyDictionary({self: 0.2})
            self.by_name = weakref.WeakValueDictionary({"off": off})
            self.how = weakref.WeakMethod(self.rule)

        def rule(self, p: Tensor) -> float:
            return 0.0 if p is self.off() else self.owner.factors[p]

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            how = self.how()
            assert how is not None
            return how(p) + (self.names[self] if self in self.some and p is self.by_name["off"] else 0.0)

    return Weak(model.parameters(), model.second.weight)


@case
def what_it_does_not_use(model: Net) -> Any:
    made: Any = Plain(model.parameters())
    made.names = model.named_parameters()
    made.lock = threading.RLock()
    made.group = Unpicklable()
    return made


class Unpicklable:
    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError("cannot pickle this handle")


@case
def holds_its_model(model: Net) -> Any:
    class Holds(Plain):
        def __init__(self, params: Any, model: Net) -> None:
            super().__init__(params)
            self.model = model

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if any(p is module.bias for module in self.model.children()) else WD

    model.register_forward_hook(lambda *args: None)
    return Holds(model.parameters(), model)


@case
def scheduled(model: Net) -> Any:
    made: Any = torch.optim.AdamW(model.parameters(), LR, weight_decay=WD)
    model.schedule = torch.optim.lr_scheduler.StepLR(made, 1)  # type: ignore[assignment]
    return made


@case
def step_replaced_on_the_instance(model: Net) -> Any:
    made: Any = torch.optim.SGD(model.parameters(), LR)
    own = made.step

    def step(closure: Any = None) -> None:
        with torch.no_grad():
            for group in made.param_groups:
                for p in group["params"]:
                    p.mul_(1 - LR * WD)
        own()

    made.step = step
    return made


@case
def slots(model: Net) -> Any:
    class Settings:
        __slots__ = ("off", "when")

    class Slotted(Plain):
        __slots__ = ("off", "settings")

        def decay(self: Any, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if p is self.off or p is self.settings.off else WD

    made: Any = Slotted(model.parameters())
    settings: Any = Settings()
    made.off, made.settings, settings.off = model.first.bias, settings, model.second.weight
    return made


@case
def settings_that_are_tensors(model: Net) -> Any:
    return torch.optim.AdamW(model.parameters(), torch.tensor(LR), weight_decay=WD, capturable=False)


@case
def history(model: Net) -> Any:
    class Remembers(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.norms: dict[Tensor, deque[Tensor]] = defaultdict(lambda: deque(maxlen=2))

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            self.norms[p].append(p.norm())
            return float(self.norms[p][0]) * 0.1

    return Remembers(model.parameters())


@case
def random_numbers_of_its_own(model: Net) -> Any:
    class Random(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.generator = torch.Generator().manual_seed(5)

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return float(torch.rand((), generator=self.generator))

    return Random(model.parameters())


Pair = namedtuple("Pair", ["weight", "factor"])


class Table(OrderedDict[str, Any]):
    """A dictionary with attributes of its own."""

    off: Tensor


@case
def named_tuples_and_subclasses_of_dict(model: Net) -> Any:
    class Paired(Plain):
        pairs: list[Pair]
        table: Table

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            found = [pair.factor for pair in self.pairs if pair.weight is p]
            return 0.0 if p is self.table.off or p in self.table["frozen"] else found[0]

    made = Paired(model.parameters())
    made.pairs = [Pair(p, 0.1 * n) for n, p in enumerate(model.parameters())]
    made.table = Table(frozen=frozenset([model.first.bias]))
    made.table.off = model.second.bias
    return made


@case
def objects_that_pickle_in_their_own_way(model: Net) -> Any:
    class Rule:
        def __init__(self, off: Tensor) -> None:
            self.off, self.cache = off, {id(off): 0.0}

        def __reduce__(self) -> Any:
            return type(self), (self.off,), {"cache": self.cache, "off": self.off}

    class Ruled(Plain):
        rule: Rule

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return self.rule.cache.get(id(p), WD)

    made = Ruled(model.parameters())
    made.rule = Rule(model.first.weight)
    return made


@case
def an_iterator_that_can_be_copied(model: Net) -> Any:
    class Cycles(Plain):
        factors: Iterator[float]

        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return next(self.factors)

    made = Cycles(model.parameters())
    made.factors = iter([0.01 * n for n in range(100)])
    return made


def with_gradients(parameters: Iterable[Tensor], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters:
        p.grad = torch.randn(p.shape, generator=generator, dtype=p.dtype)
