"""halflife: prove, choose, schedule, watch and study weight decay in PyTorch.

Importing this package does not import torch; each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halflife import probes, rules, schedules, units
    from halflife.attach import Handle, attach
    from halflife.convert import convert
    from halflife.explain import Explanation, assert_decay, explain
    from halflife.identify import Law, identify
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
    from halflife.select import param_groups

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
    "convert",
    "explain",
    "identify",
    "param_groups",
    "probes",
    "rules",
    "schedules",
    "units",
]

# Where each public name lives; None marks a module that is public itself.
_HOME: dict[str, str | None] = {
    "L2": "rules",
    "Cautious": "rules",
    "Constant": "rules",
    "Corrected": "rules",
    "Decoupled": "rules",
    "Explanation": "explain",
    "HalfLife": "rules",
    "Handle": "attach",
    "Independent": "rules",
    "Law": "identify",
    "MovingAverage": "rules",
    "NormTarget": "rules",
    "Normalized": "rules",
    "PerGroup": "rules",
    "Scheduled": "rules",
    "Sphere": "rules",
    "Stable": "rules",
    "Toward": "rules",
    "assert_decay": "explain",
    "attach": "attach",
    "convert": "convert",
    "explain": "explain",
    "identify": "identify",
    "param_groups": "select",
    "probes": None,
    "rules": None,
    "schedules": None,
    "units": None,
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'halflife' has no attribute {name!r}")
    home = _HOME[name]
    value = importlib.import_module(f"halflife.{home or name}")
    return value if home is None else getattr(value, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """The type of this package, so that a submodule does not hide the function of the same name.

    ``import halflife.attach`` makes the import system set ``halflife.attach`` to the module; what the package
    shows under that name is the function.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if isinstance(value, ModuleType) and _HOME.get(name) == name:
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
