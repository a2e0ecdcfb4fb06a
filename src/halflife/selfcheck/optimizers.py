"""The table of optimizers: all of torch.optim, in every form that torch offers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.optim import Optimizer

from halflife.selfcheck.problem import Layout

__all__ = ["FORMS", "OPTIMIZERS", "OptimizerCase", "Variant", "variants"]

FORMS: dict[str, dict[str, Any]] = {
    "": {},
    "for-loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    "capturable": {"foreach": True, "capturable": True},
}

# In float16 the usual 1e-8 is 0, and Adam's 0 / 0 is NaN with or without a rule.
EPS = 1e-4

BETAS = ((0.9, 0.99), (0.9, 0.999), (0.8, 0.95))  # a beta2 for each group
PLAIN, LISTED = ("",), ("for-loop", "foreach")
CAPTURABLE = (*LISTED, "capturable")
FUSED = (*LISTED, "fused")
ALL = (*CAPTURABLE, "fused")


@dataclass(frozen=True)
class OptimizerCase:
    """An optimizer with its settings.

    Args:
        name: Its row in the table.
        kind: Its class.
        settings: Arguments of the constructor.
        forms: Names of `FORMS`.
        native: Whether its own decay carries out a fraction.
        rereads: Whether the size of its step depends on the weight, so that a decay before the step changes
            the update.
        layout: The problem that it can train.
        own: Whether its groups have a ``weight_decay``; else it is attached with ``select="all"``.
        per_group: Further settings of each group.
        closure: Whether its step needs a closure.
    """

    name: str
    kind: type[Optimizer]
    settings: dict[str, Any] = field(default_factory=dict)
    forms: tuple[str, ...] = CAPTURABLE
    native: bool = False
    rereads: bool = False
    layout: Layout = "groups"
    own: bool = True
    per_group: tuple[dict[str, Any], ...] = ()
    closure: bool = False

    @property
    def betas(self) -> tuple[tuple[float, float], ...]:
        """Adam's betas of each group."""
        return tuple(group["betas"] for group in self.per_group)


ADAM: dict[str, Any] = {"per_group": tuple({"betas": betas} for betas in BETAS)}
EPSILON = {"eps": EPS}
DECOUPLED = {"eps": EPS, "decoupled_weight_decay": True}
optim = torch.optim
MUON: Any = getattr(optim, "Muon", None)  # torch 2.9 and newer

OPTIMIZERS = [
    OptimizerCase("AdamW", optim.AdamW, EPSILON, ALL, native=True, **ADAM),
    OptimizerCase("Adam", optim.Adam, EPSILON, ALL, **ADAM),
    OptimizerCase("Adam, amsgrad", optim.Adam, {**EPSILON, "amsgrad": True}, ALL, **ADAM),
    OptimizerCase("Adam, decoupled", optim.Adam, DECOUPLED, ALL, native=True, **ADAM),
    OptimizerCase("NAdam", optim.NAdam, EPSILON, **ADAM),
    OptimizerCase("NAdam, decoupled", optim.NAdam, DECOUPLED, native=True, **ADAM),
    OptimizerCase("RAdam", optim.RAdam, EPSILON, **ADAM),
    OptimizerCase("RAdam, decoupled", optim.RAdam, DECOUPLED, native=True, **ADAM),
    OptimizerCase("SGD", optim.SGD, {"dampening": 0.5}, FUSED, native=True),  # torch ignores the dampening here
    OptimizerCase("SGD, momentum", optim.SGD, {"momentum": 0.9, "dampening": 0.4}, FUSED),
    OptimizerCase("SGD, Nesterov", optim.SGD, {"momentum": 0.9, "nesterov": True}, FUSED),
    OptimizerCase("RMSprop", optim.RMSprop, EPSILON),
    OptimizerCase("RMSprop, centered, momentum", optim.RMSprop, {**EPSILON, "centered": True, "momentum": 0.9}),
    OptimizerCase("Adagrad", optim.Adagrad, EPSILON, FUSED),
    OptimizerCase("Adadelta", optim.Adadelta),
    OptimizerCase("Adamax", optim.Adamax, EPSILON),
    OptimizerCase("ASGD", optim.ASGD, {"lambd": 0.0}),  # lambd is a decay of its own
    OptimizerCase("Rprop", optim.Rprop, own=False),
    OptimizerCase("Adafactor", optim.Adafactor, {}, LISTED, native=True, rereads=True),
    *([] if MUON is None else [OptimizerCase("Muon", MUON, {}, PLAIN, native=True, layout="matrices")]),
    OptimizerCase("SparseAdam", optim.SparseAdam, EPSILON, PLAIN, layout="sparse", own=False),
    OptimizerCase("LBFGS", optim.LBFGS, {"max_iter": 1}, PLAIN, layout="one group", own=False, closure=True),
]


@dataclass(frozen=True)
class Variant:
    """An optimizer in one form.

    Args:
        case: The optimizer.
        form: A name of `FORMS`.
    """

    case: OptimizerCase
    form: str

    @property
    def name(self) -> str:
        """A short name."""
        return f"{self.case.name} ({self.form})" if self.form else self.case.name

    @property
    def native(self) -> bool:
        """Whether the optimizer's own decay carries out a fraction in this form."""
        return self.case.native and self.form != "capturable"

    @property
    def layout(self) -> Layout:
        """The problem: torch 2.13's fused SGD fails by itself where a gradient comes after the first step."""
        return "steady" if self.form == "fused" and self.case.settings.get("momentum") else self.case.layout

    def make(self, groups: list[dict[str, Any]]) -> Optimizer:
        """Build the optimizer.

        Args:
            groups: Its parameter groups.

        Returns:
            The optimizer.
        """
        if self.case.closure:  # LBFGS takes parameters alone
            groups = [{**groups[0], "params": [parameter for _, parameter in groups[0]["params"]]}]
        kind: Any = self.case.kind
        made: Optimizer = kind(groups, lr=0.1, **self.case.settings, **FORMS[self.form])
        return made


def variants(device: torch.device | str = "cpu") -> Iterator[Variant]:
    """Yield every optimizer in every form that torch offers on a device.

    Args:
        device: The device.

    Yields:
        The variants, in the order of the table.
    """
    kind = torch.device(device).type
    for case in OPTIMIZERS:
        for form in case.forms:
            on_cpu_only = form == "fused" and case.kind is optim.Adagrad
            if form == "capturable" and kind not in {"cuda", "xpu", "hpu"}:
                continue
            if on_cpu_only and kind != "cpu":
                continue
            yield Variant(case, form)
