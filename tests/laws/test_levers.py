"""The coefficient of a decay is found wherever an optimizer keeps it, and proven by stepping the optimizer."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.laws.levers import Lever, find_levers

Settings = dict[str, Any]
SHAPES = ((3, 4), (5,), (2, 3), (4,))


class Plain(Optimizer):
    """Momentum, and a decay that removes what `fraction` says."""

    def __init__(self, params: Any, lr: float = 0.1, **more: Any) -> None:
        super().__init__(params, {"lr": lr, "momentum": 0.9, "betas": (0.9, 0.99), "steps": 0, **more})

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * group["weight_decay"]

    def due(self) -> bool:
        return True

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        due = self.due()
        for group in self.param_groups:
            for parameter in group["params"]:
                if due:
                    parameter.sub_(self.fraction(group, parameter) * parameter)
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.mul_(group["momentum"]).add_(parameter.grad)
                parameter.sub_(mean, alpha=group["lr"])


def copies_of(make: Callable[[list[Settings]], Optimizer], *groups: Settings) -> Callable[[float], Optimizer]:
    """Return what makes the same optimizer anew, over weights of one size."""

    def build(size: float) -> Optimizer:
        generator = torch.Generator().manual_seed(3)
        held = []
        for index, settings in enumerate(groups):
            drawn = torch.randn(SHAPES[index % len(SHAPES)], generator=generator, dtype=torch.float64)
            weight = drawn.sign() * (0.5 + drawn.abs())
            held.append({"params": [nn.Parameter(weight * size)], **copy.deepcopy(settings)})
        return make(held)

    return build


def removed(
    build: Callable[[float], Optimizer], change: Callable[[Optimizer], object] = lambda optimizer: None
) -> list[Tensor]:
    """Return what the decay takes in five real steps: the weights, less those that began at 0, with the same gradients."""
    found = []
    for size in (1.0, 0.0):
        optimizer = build(size)
        change(optimizer)
        generator = torch.Generator().manual_seed(5)
        weights = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        first = [weight.detach().clone() for weight in weights]
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
            optimizer.step()
        found.append([weight.detach() - start for weight, start in zip(weights, first, strict=True)])
    return [one - other for one, other in zip(*found, strict=True)]


def summary(levers: list[Lever]) -> list[tuple[str, float, list[int], bool]]:
    return [(lever.path, lever.value, sorted(lever.groups), lever.scalable) for lever in levers]


def with_key(key: str) -> type[Plain]:
    class Keyed(Plain):
        def fraction(self, group: Settings, parameter: Tensor) -> Any:
            return group["lr"] * group[key]

    return Keyed


class FirstGroup(Plain):
    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.param_groups[0]["weight_decay"]


class LastGroup(Plain):
    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.param_groups[-1]["wd"]


class Neighbour(Plain):
    """Reads the settings of the next group, as a loop with a wrong index does."""

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        index = next(i for i, each in enumerate(self.param_groups) if each is group)
        return group["lr"] * self.param_groups[(index + 1) % len(self.param_groups)]["wd"]


class Attribute(Plain):
    def __init__(self, params: Any, value: Any = 0.2, **more: Any) -> None:
        super().__init__(params, **more)
        self.weight_decay = value

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.weight_decay


class Defaults(Plain):
    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.defaults["lam"]


class PerGroupList(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.wds = [0.1 * (1 + index) for index in range(len(self.param_groups))]

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.wds[next(i for i, each in enumerate(self.param_groups) if each is group)]


@dataclass(frozen=True)
class Regularization:
    kind: str = "decoupled"
    strength: float = 0.3


@dataclass
class Config:
    warmup: int = 7
    reg: Regularization = field(default_factory=Regularization)


class Nested(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.config = {"more": [Config()], "note": "x"}

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.config["more"][0].reg.strength  # type: ignore[attr-defined]


class Hyper(NamedTuple):
    lr: float
    reg: float


class Named(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.hyper = Hyper(0.1, 0.2)

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return self.hyper.lr * self.hyper.reg


class Slotted:
    __slots__ = ("coefficient",)

    def __init__(self) -> None:
        self.coefficient = 0.2


class InSlots(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.parts = Slotted()

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.parts.coefficient


class OfTheClass(Plain):
    RATE = 0.2

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.RATE


class OnTheParameter(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for index, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                parameter._optim = {"weight_decay": 0.1 * index}

    def fraction(self, group: Settings, parameter: Any) -> Any:
        return group["lr"] * parameter._optim["weight_decay"]


class InState(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["l2"] = 0.2

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.state[parameter]["l2"]


class ByParameter(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.decay_of = {parameter: 0.2 for group in self.param_groups for parameter in group["params"]}

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * self.decay_of[parameter]


class Inner(Optimizer):
    """Steps an AdamW inside."""

    def __init__(self, params: Any, every: int = 1) -> None:
        super().__init__(params, {"lr": 0.1})
        self.inner = torch.optim.AdamW(self.param_groups, lr=0.05, weight_decay=0.2, foreach=False)
        self.every, self.calls = every, 0

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        if self.calls % self.every == 0:
            self.inner.step()


class Keeps(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.keep = 0.999

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return 1.0 - self.keep


class Lives(Plain):
    """Half-life in steps."""

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return 1.0 - 0.5 ** (1.0 / group["half_life"])


class Multiplied(Plain):
    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * group["wd_mult"] * self.defaults["weight_decay"]


class Both(Plain):
    """Two decays that add up."""

    def __init__(self, params: Any, **more: Any) -> None:
        super().__init__(params, **more)
        self.extra_l2 = 0.05

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * group["wd"] + group["lr"] * self.extra_l2


class EveryFourth(Plain):
    def __init__(self, params: Any, every: int = 4) -> None:
        super().__init__(params, wd=0.2)
        self.every, self.calls = every, 0

    def due(self) -> bool:
        self.calls += 1
        return self.calls % self.every == 0

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return group["lr"] * group["wd"]


class SignOfPenalized(Plain):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_((parameter.grad + group["lam"] * parameter).sign(), alpha=group["lr"])


class Lars(Plain):
    """The step is in proportion to the weights."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                update = parameter.grad + group["weight_decay"] * parameter
                size = parameter.norm()
                trust = group["trust"] * size / update.norm() if size > 0 else 1.0
                parameter.sub_(update * trust, alpha=group["lr"])


class AfterUpdate(Plain):
    """The weights have moved when they decay, those that began at 0 as well."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                mean.mul_(group["momentum"]).add_(parameter.grad)
                parameter.sub_(mean, alpha=group["lr"]).mul_(1.0 - group["lr"] * group["q"])


class Masters(Plain):
    """Steps copies of the weights, made at the first step."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for parameter in group["params"]:
                own = self.state[parameter].setdefault("master", parameter.clone())
                own.mul_(1.0 - group["lr"] * group["q"]).sub_(parameter.grad, alpha=group["lr"])
                parameter.copy_(own)


Expected = list[tuple[str, float, list[int], bool]]


def own(path: str, *values: float) -> Expected:
    return [(path, value, [index], True) for index, value in enumerate(values)]


TABLE: list[tuple[str, Callable[..., Optimizer], tuple[Settings, ...], Expected]] = [
    ("wd", with_key("wd"), ({"wd": 0.1}, {"wd": 0.0}), own("group['wd']", 0.1, 0.0)),
    (
        "reg-tensor",
        with_key("reg"),
        ({"reg": torch.tensor(0.125)}, {"reg": torch.tensor(0.25)}),
        own("group['reg']", 0.125, 0.25),
    ),
    ("int", with_key("q"), ({"q": 1}, {"q": 0}), own("group['q']", 1.0, 0.0)),
    ("tiny", with_key("lam"), ({"lam": 1e-14},), own("group['lam']", 1e-14)),
    (
        "adamw",
        torch.optim.AdamW,
        ({"weight_decay": 0.1}, {"weight_decay": 0.0}),
        own("group['weight_decay']", 0.1, 0.0),
    ),
    ("adam", torch.optim.Adam, ({"weight_decay": 0.1}, {"weight_decay": 0.2}), own("group['weight_decay']", 0.1, 0.2)),
    ("sgd", torch.optim.SGD, ({"weight_decay": 0.1, "momentum": 0.9},), own("group['weight_decay']", 0.1)),
    ("radam", torch.optim.RAdam, ({"weight_decay": 0.1},), own("group['weight_decay']", 0.1)),
    (
        "first",
        FirstGroup,
        ({"weight_decay": 0.1}, {"weight_decay": 0.0}, {"weight_decay": 0.3}),
        [("param_groups[0]['weight_decay']", 0.1, [0, 1, 2], True)],
    ),
    ("last", LastGroup, ({"wd": 0.1}, {"wd": 0.3}), [("param_groups[1]['wd']", 0.3, [0, 1], True)]),
    (
        "neighbour",
        Neighbour,
        ({"wd": 0.1}, {"wd": 0.2}, {"wd": 0.3}),
        [(f"param_groups[{i}]['wd']", 0.1 * (i + 1), [(i - 1) % 3], True) for i in (1, 2, 0)],
    ),
    ("attribute", Attribute, ({}, {}), [("self.weight_decay", 0.2, [0, 1], True)]),
    (
        "attribute-tensor",
        lambda groups: Attribute(groups, torch.tensor([0.25])),
        ({},),
        [("self.weight_decay", 0.25, [0], True)],
    ),
    ("defaults", lambda groups: Defaults(groups, lam=0.2), ({}, {}), [("self.defaults['lam']", 0.2, [0, 1], True)]),
    ("list", PerGroupList, ({}, {}, {}), [(f"self.wds[{i}]", 0.1 * (1 + i), [i], True) for i in range(3)]),
    ("nested", Nested, ({}, {}), [("self.config['more'][0].reg.strength", 0.3, [0, 1], True)]),
    ("named-tuple", Named, ({}, {}), [("self.hyper.reg", 0.2, [0, 1], True)]),
    ("slots", InSlots, ({},), [("self.parts.coefficient", 0.2, [0], True)]),
    ("class", OfTheClass, ({},), [("self.RATE", 0.2, [0], True)]),
    (
        "parameter",
        OnTheParameter,
        ({}, {}),
        [(f"param_groups[{i}]['params'][0]._optim['weight_decay']", 0.1 * i, [i], True) for i in (0, 1)],
    ),
    ("state", InState, ({}, {}), [(f"state[{i}]['l2']", 0.2, [i], True) for i in (0, 1)]),
    ("by-parameter", ByParameter, ({}, {}), [(f"self.decay_of[{i}]", 0.2, [i], True) for i in (0, 1)]),
    ("inner", Inner, ({}, {}), own("group['weight_decay']", 0.2, 0.2)),
    ("keep", Keeps, ({}, {}), [("self.keep", 0.999, [0, 1], False)]),
    ("half-life", Lives, ({"half_life": 100.0},), [("group['half_life']", 100.0, [0], False)]),
    (
        "factor",
        lambda groups: Multiplied(groups, weight_decay=0.1),
        ({"wd_mult": 1.0}, {"wd_mult": 0.5}),
        [("self.defaults['weight_decay']", 0.1, [0, 1], True)],
    ),
    ("sum", Both, ({"wd": 0.1}, {"wd": 0.2}), [*own("group['wd']", 0.1, 0.2), ("self.extra_l2", 0.05, [0, 1], True)]),
    ("after", AfterUpdate, ({"q": 0.1}, {"q": 0.0}), own("group['q']", 0.1, 0.0)),
    ("masters", Masters, ({"q": 0.1}, {"q": 0.0}), own("group['q']", 0.1, 0.0)),
    ("every-fourth", EveryFourth, ({}, {}), own("group['wd']", 0.2, 0.2)),
    ("every-ninth", lambda groups: EveryFourth(groups, 9), ({},), own("group['wd']", 0.2)),
    ("inner-every-fifth", lambda groups: Inner(groups, 5), ({},), own("group['weight_decay']", 0.2)),
    ("sign-l2", SignOfPenalized, ({"lam": 0.05}, {"lam": 0.1}), own("group['lam']", 0.05, 0.1)),
    ("lars", Lars, ({"weight_decay": 0.1, "trust": 0.02},), own("group['weight_decay']", 0.1)),
]


@pytest.mark.parametrize(("make", "groups", "expected"), [row[1:] for row in TABLE], ids=[row[0] for row in TABLE])
def test_the_lever_is_found_and_is_one(make: Any, groups: tuple[Settings, ...], expected: Expected) -> None:
    build = copies_of(make, *groups)
    levers = find_levers(build)
    found, wanted = (sorted(each, key=lambda one: (one[0], one[2])) for each in (summary(levers), expected))
    assert [(a, c, d) for a, _, c, d in found] == [(a, c, d) for a, _, c, d in wanted]
    assert [value for _, value, *_ in found] == pytest.approx([value for _, value, *_ in wanted])
    if not all(lever.scalable for lever in levers):
        with pytest.raises(ValueError, match=r"the decay is not proportional to .*, so that no factor of it is one"):
            levers[0].multiply(build(1.0), 2.0)
        return

    def scaled(factor: float) -> list[Tensor]:
        def multiply(optimizer: Optimizer) -> None:
            for lever in levers:
                lever.multiply(optimizer, factor)

        return removed(build, multiply)

    nothing = scaled(0.0)
    if make is not Lars:  # whose steps are in proportion to the weights
        assert all(float(each.abs().max()) < 1e-12 for each in nothing)
    if make in {SignOfPenalized, Lars}:
        return
    if make is torch.optim.Adam or make is torch.optim.RAdam:  # the gradient is rescaled with the decay in it
        twice = copies_of(make, *({**each, "weight_decay": each["weight_decay"] * 2.0} for each in groups))
        assert all(map(torch.equal, removed(twice), scaled(2.0)))
        return
    for whole, more in zip(removed(build), scaled(1.125), strict=True):
        if float(whole.abs().max()) > 1e-13:
            assert float(more.norm() / whole.norm()) == pytest.approx(1.125, rel=0.05)


class Constant(Plain):
    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        return 0.001


class Counts(Plain):
    """Numbers that are read, and decide about no decay."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.clip, self.warmup, self.calls = 100.0, 5, 0

    def fraction(self, group: Settings, parameter: Tensor) -> Any:
        self.calls += 1
        return 0.01 if self.calls >= self.warmup else 0.002


@pytest.mark.parametrize("make", [Plain, Constant, Counts, torch.optim.Rprop])
def test_other_numbers_are_no_levers(make: Any) -> None:
    class Still(Plain):
        def fraction(self, group: Settings, parameter: Tensor) -> Any:
            return 0.0

    assert find_levers(copies_of(Still if make is Plain else make, {}, {})) == []


def test_an_unchanged_copy_that_cannot_be_stepped_says_why() -> None:
    with pytest.raises(KeyError, match="weight_decay"):
        find_levers(copies_of(Plain, {}))


def test_float32_tells_enough() -> None:
    def build(size: float) -> Optimizer:
        held = [nn.Parameter(size * torch.linspace(0.5, 1.5, 12).reshape(3, 4)) for _ in range(2)]
        return FirstGroup([{"params": [held[0]], "weight_decay": 0.1}, {"params": [held[1]], "weight_decay": 0.0}])

    assert summary(find_levers(build)) == [("param_groups[0]['weight_decay']", 0.1, [0, 1], True)]


def test_random_steps_are_seeded_by_the_caller() -> None:
    class Noisy(Plain):
        def fraction(self, group: Settings, parameter: Tensor) -> Any:
            return group["lr"] * group["wd"] * torch.rand(())

    def step(optimizer: Optimizer, index: int) -> None:
        torch.manual_seed(index)
        optimizer.step()

    with torch.random.fork_rng():
        assert summary(find_levers(copies_of(Noisy, {"wd": 0.1}), step)) == own("group['wd']", 0.1)


def test_many_groups_take_few_copies() -> None:
    """Numbers of one name are changed over all groups at once."""
    made = 0
    build = copies_of(torch.optim.AdamW, *({"weight_decay": 0.01 * index} for index in range(64)))

    def counted(size: float) -> Optimizer:
        nonlocal made
        made += 1
        return build(size)

    assert summary(find_levers(counted)) == own("group['weight_decay']", *(0.01 * index for index in range(64)))
    assert made < 20


class Seldom(Optimizer):
    """Decays at every n-th call, which an attribute counts; by a setting, or by the factor that weights keep."""

    def __init__(self, params: Any, every: int, *, keeps: bool) -> None:
        super().__init__(params, {"lr": 0.1, "weight_decay": 0.2})
        self.every, self.keeps, self.keep, self.calls = every, keeps, 0.98, 0

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self.calls += 1
        for group in self.param_groups:
            for parameter in group["params"]:
                if self.calls % self.every == 0:
                    parameter.mul_(self.keep if self.keeps else 1.0 - group["lr"] * group["weight_decay"])
                parameter.sub_(parameter.grad, alpha=group["lr"])


@pytest.mark.parametrize("keeps", [False, True], ids=["setting", "factor"])
@pytest.mark.parametrize(("every", "calls"), [(2, 1), (3, 1), (3, 3), (7, 1), (7, 7), (25, 25)])
def test_a_counter_keeps_counting(every: int, calls: int, keeps: bool) -> None:
    (lever,) = find_levers(copies_of(lambda groups: Seldom(groups, every, keeps=keeps), {}), calls=calls)
    expected = ("self.keep", 0.98, False) if keeps else ("group['weight_decay']", 0.2, True)
    assert (lever.path, lever.value, lever.scalable) == expected


class Outside(Optimizer):
    """Decays outside its groups: by products of two lists, one entry a group."""

    def __init__(self, groups: Any, first: str, second: str) -> None:
        super().__init__(groups, {"lr": 0.1})
        self.names = first, second
        setattr(self, first, [0.003, 0.003])
        setattr(self, second, [0.05, 0.02])

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        pairs = zip(*(getattr(self, name) for name in self.names), strict=True)
        for group, (one, other) in zip(self.param_groups, pairs, strict=True):
            for parameter in group["params"]:
                parameter.mul_(1.0 - one * other).sub_(parameter.grad, alpha=group["lr"])


@pytest.mark.parametrize("decay", ["_wd", "wds", "_lam_", "l2_reg", "true_wd", "weight_decays"])
@pytest.mark.parametrize("rate", ["_lr", "learning_rates", "rate", "scale_lr"])
def test_of_two_lists_the_one_that_is_called_a_decay_is_told(rate: str, decay: str) -> None:
    levers = find_levers(copies_of(lambda groups: Outside(groups, rate, decay), {}, {}))
    expected = [(f"self.{decay}[0]", 0.05, [0], True), (f"self.{decay}[1]", 0.02, [1], True)]
    assert sorted(summary(levers)) == expected


@pytest.mark.parametrize("rate", ["_lr", "lrs", "learning_rate", "base_lr"])
def test_what_is_called_a_learning_rate_is_the_last_choice(rate: str) -> None:
    levers = find_levers(copies_of(lambda groups: Outside(groups, rate, "strength"), {}, {}))
    assert [lever.path for lever in levers] == ["self.strength[0]", "self.strength[1]"]


@pytest.mark.parametrize(
    "inner", [torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD], ids=lambda kind: kind.__name__
)
def test_a_decay_of_0_beside_one_that_acts_is_no_lever(inner: Any) -> None:
    class Wrapped(inner):  # type: ignore[misc]
        def __init__(self, groups: Any) -> None:
            super().__init__(groups, lr=0.1, weight_decay=0.0)
            self._lr, self._wd = [0.003], [0.05]

        @torch.no_grad()
        def step(self, closure: Any = None) -> Any:
            for parameter in self.param_groups[0]["params"]:
                parameter.mul_(1.0 - self._lr[0] * self._wd[0])
            return super().step(closure)

    assert summary(find_levers(copies_of(Wrapped, {}))) == [("self._wd[0]", 0.05, [0], True)]
