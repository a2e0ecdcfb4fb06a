"""The decay is read from somewhere else than the parameter's own group."""

from __future__ import annotations

import types
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from tests.laws.adversaries.parts import LAM, LR, Entry, Made, Plain, groups, net

__all__ = ["ENTRIES"]

CONFIG: dict[str, Any] = {"optimizer": {"wd": LAM}}


class FromLast(Plain):
    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.param_groups[-1]["weight_decay"]


class FromGlobal(Plain):
    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return CONFIG["optimizer"]["wd"]


class FromArgs(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.args = types.SimpleNamespace(regularize=types.SimpleNamespace(amount=LAM))

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.args.regularize.amount


class FromList(Plain):
    def __init__(self, params: Any, amounts: list[float]) -> None:
        super().__init__(params, weight_decay=0.0)
        self.amounts = amounts

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.amounts[next(i for i, other in enumerate(self.param_groups) if other is group)]


class FromClass(Optimizer):
    """No setting has the decay: a class attribute does, which a subclass overrides."""

    WD = 0.0

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.sub_(p.grad + self.WD * p, alpha=group["lr"])


class Stronger(FromClass):
    WD = LAM


class FromDefaults(Plain):
    """A property, over the settings that new groups start from."""

    @property
    def strength(self) -> float:
        return float(self.defaults["weight_decay"])

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.strength


class Settings:
    """A config in the manner of omegaconf: attributes are looked up in a dict."""

    def __init__(self, values: dict[str, Any]) -> None:
        self._values = values

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return self._values[name]


class FromConfig(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        self.config = Settings({"wd": LAM, "groups": 2})

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.config.wd if p.ndim > 1 else 0.0


class OtherKey(Optimizer):
    """The setting is called ``l2_reg``, and a second one, ``reg_scale``, multiplies it."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": LR, "l2_reg": 0.0, "reg_scale": 2.0})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["l2_reg"] * group["reg_scale"]).sub_(p.grad, alpha=group["lr"])


class Nested(Plain):
    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["options"]["regularization"]["wd"]


class ByParameter(Plain):
    """The decay stands in the parameter's state."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, weight_decay=0.0)
        for group in self.param_groups:
            for index, p in enumerate(group["params"]):
                self.state[p]["wd"] = LAM if index % 2 else 0.0

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.state[p]["wd"]


class OnParameter(Plain):
    """The decay is an attribute of the parameter."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return getattr(p, "decay_rate", 0.0)


class ByTable(Plain):
    """The decay stands in a tensor, by the number of the parameter."""

    def __init__(self, params: Any, table: Tensor) -> None:
        super().__init__(params, weight_decay=0.0)
        self.table = table
        self.numbers = {p: n for n, p in enumerate(p for group in self.param_groups for p in group["params"])}

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return float(self.table[self.numbers[p]])


class Hard(Plain):
    """0.999 in the code, whatever the settings say."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(0.999).sub_(p.grad, alpha=group["lr"])


class ArgumentOfStep(Plain):
    @torch.no_grad()
    def step(self, closure: Any = None, wd: float = LAM) -> Any:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * wd).sub_(p.grad, alpha=group["lr"])


class FromLr(Plain):
    """Decay is a thousandth of the first group's learning rate."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return self.param_groups[0]["lr"] / 4


def last() -> Made:
    model = net()
    return model, FromLast(groups(model, weight_decay=LAM), weight_decay=0.0)


def from_global() -> Made:
    model = net()
    return model, FromGlobal(model.parameters(), weight_decay=0.0)


def from_list() -> Made:
    model = net()
    return model, FromList(groups(model), [LAM, LAM / 2])


def other_key() -> Made:
    model = net()
    return model, OtherKey(groups(model, l2_reg=LAM))


def nested() -> Made:
    model = net()
    none = {"regularization": {"wd": 0.0}}
    return model, Nested(groups(model, options=none), weight_decay=0.0, options={"regularization": {"wd": LAM}})


def on_parameter() -> Made:
    model = net()
    parameters: dict[str, Any] = dict(model.named_parameters())
    parameters["0.bias"].decay_rate = LAM
    parameters["2.weight"].decay_rate = LAM / 2
    return model, OnParameter(model.parameters(), weight_decay=0.0)


def by_table() -> Made:
    model = net()
    return model, ByTable(model.parameters(), torch.tensor([0.0, LAM, LAM, 0.0, LAM / 2, 0.0]))


def captured() -> Made:
    """A class made in a function, over the decay and the model."""
    model = net()
    amount = LAM
    heads = {id(p) for p in model[2].parameters()}

    class Captured(Plain):
        def wd(self, group: dict[str, Any], p: Tensor) -> Any:
            return amount if id(p) in heads else 0.0

    return model, Captured(model.parameters(), weight_decay=0.0)


def of(cls: Any, **settings: Any) -> Any:
    def make() -> Made:
        model: nn.Module = net()
        return model, cls(model.parameters(), **settings)

    return make


def defaults_only() -> Made:
    model = net()
    return model, FromDefaults([{"params": list(model.parameters()), "weight_decay": 0.0}], weight_decay=LAM)


def entry(name: str, make: Any, note: str, **others: Any) -> Entry:
    return Entry(name=name, kind="read elsewhere", make=make, note=note, **others)


ENTRIES = [
    entry("from-the-last-group", last, "the first group's own 0 is not what acts", must=("*",)),
    entry("from-a-global-dict", from_global, "a dict of the module, two levels deep", must=("*",)),
    entry("from-an-object", of(FromArgs), "an attribute of an attribute's attribute", must=("*",)),
    entry("from-a-list", from_list, "a list on the optimizer, by the group's place", lams=(LAM, LAM / 2)),
    entry("from-the-class", of(Stronger), "a class attribute that a subclass sets", must=("*",)),
    entry("from-defaults", of(FromDefaults), "a property over the defaults", must=("*",)),
    entry("from-defaults-not-the-group", defaults_only, "the groups say 0, the defaults do not", must=("*",)),
    entry("from-a-config", of(FromConfig), "attributes that __getattr__ makes; only matrices decay", must=("*",)),
    entry("other-key", other_key, "the settings are called l2_reg and reg_scale", must=("*",), lams=(LAM, 2 * LAM)),
    entry("nested-settings", nested, "a dict inside a dict of the group", must=("*",)),
    entry("from-the-state", of(ByParameter), "written into the state by the constructor", must=("*",)),
    entry("from-the-parameter", on_parameter, "an attribute of the parameter", must=("*",), lams=(LAM, LAM / 2)),
    entry("from-a-tensor", by_table, "a table by the parameter's number", lams=(LAM, LAM / 2)),
    entry("hard-coded", of(Hard), "0.999 in the code", must=("*",), lams=(0.002, LAM)),
    entry("argument-of-step", of(ArgumentOfStep, weight_decay=0.0), "a default of an argument of step", must=("*",)),
    entry("from-the-lr", of(FromLr, weight_decay=0.0), "a quarter of the learning rate: r = lr^2 / 4", must=("*",)),
    entry("captured", captured, "a class over variables of the function that made it"),
    entry("a-fraction", of(Plain, weight_decay=Fraction(1, 8)), "weight_decay is a fractions.Fraction"),
]
