"""halflife: prove, choose, schedule, watch and study weight decay in PyTorch.

Importing this package does not import torch; each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halflife import audit, errors, groups, laws, optim, probes, rules, schedules, selfcheck, units
    from halflife.audit import Explanation, assert_decay, explain
    from halflife.conversion import convert
    from halflife.groups import param_groups
    from halflife.laws import Law, identify
    from halflife.optim import Handle, attach
    from halflife.rules import (
        L2,
        Cautious,
        Constant,
        Corrected,
        Decoupled,
        HalfLife,
        Independent,
        MovingAverage,
        Normalized,
        NormTarget,
        PerGroup,
        Scheduled,
        Sphere,
        Stable,
        Toward,
    )

__version__ = "0.1.0"

__all__ = [
    "L2",
    "Cautious",
    "Constant",
    "Corrected",
    "Decoupled",
    "Explanation",
    "HalfLife",
    "Handle",
    "Independent",
    "Law",
    "MovingAverage",
    "NormTarget",
    "Normalized",
    "PerGroup",
    "Scheduled",
    "Sphere",
    "Stable",
    "Toward",
    "__version__",
    "assert_decay",
    "attach",
    "audit",
    "convert",
    "errors",
    "explain",
    "groups",
    "identify",
    "laws",
    "optim",
    "param_groups",
    "probes",
    "rules",
    "schedules",
    "selfcheck",
    "units",
]

# Which package gives each public name. No module has the name of a function: importing it would hide the function.
_GIVEN_BY = {
    "audit": ("Explanation", "assert_decay", "explain"),
    "conversion": ("convert",),
    "groups": ("param_groups",),
    "laws": ("Law", "identify"),
    "optim": ("Handle", "attach"),
    "rules": (
        "L2",
        "Cautious",
        "Constant",
        "Corrected",
        "Decoupled",
        "HalfLife",
        "Independent",
        "MovingAverage",
        "NormTarget",
        "Normalized",
        "PerGroup",
        "Scheduled",
        "Sphere",
        "Stable",
        "Toward",
    ),
}
_MODULES = ("audit", "errors", "groups", "laws", "optim", "probes", "rules", "schedules", "selfcheck", "units")
_HOME = {name: module for module, names in _GIVEN_BY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"halflife.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"halflife.{_HOME[name]}"), name)
    raise AttributeError(f"module 'halflife' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
