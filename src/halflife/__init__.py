"""halflife: prove, choose, schedule, watch and study weight decay in PyTorch.

Importing this package does not import torch; each public name is loaded when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halflife import audit as audit
    from halflife import errors as errors
    from halflife import groups as groups
    from halflife import laws as laws
    from halflife import optim as optim
    from halflife import probes as probes
    from halflife import rules as rules
    from halflife import schedules as schedules
    from halflife import selfcheck as selfcheck
    from halflife import theory as theory
    from halflife import units as units
    from halflife.audit import Explanation as Explanation
    from halflife.audit import assert_decay as assert_decay
    from halflife.audit import explain as explain
    from halflife.conversion import convert as convert
    from halflife.groups import param_groups as param_groups
    from halflife.laws import Law as Law
    from halflife.laws import identify as identify
    from halflife.optim import Handle as Handle
    from halflife.optim import attach as attach
    from halflife.rules import *

__version__ = "0.1.0"

# Which package gives each public name. No module has the name of a function: importing it would hide the function.
_GIVEN_BY = {
    "audit": ("Explanation", "assert_decay", "explain"),
    "conversion": ("convert",),
    "groups": ("param_groups",),
    "laws": ("Law", "identify"),
    "optim": ("Handle", "attach"),
}
_MODULES = (
    "audit",
    "errors",
    "groups",
    "laws",
    "optim",
    "probes",
    "rules",
    "schedules",
    "selfcheck",
    "theory",
    "units",
)
_HOME = {name: module for module, names in _GIVEN_BY.items() for name in names}
_NOT_ON_TOP = {"Applier", "LamRule", "Part", "Penalty", "Rule", "StepInfo", "rule_from"}  # for whoever writes a rule


def _names_of_rules() -> list[str]:
    """The rules, as their own package lists them: a new one needs no line here."""
    return [name for name in importlib.import_module("halflife.rules").__all__ if name not in _NOT_ON_TOP]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"halflife.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"halflife.{_HOME[name]}"), name)
    if name == "__all__":
        return sorted(("__version__", *_HOME, *_MODULES, *_names_of_rules()))
    if not name.startswith("_") and name in _names_of_rules():
        return getattr(importlib.import_module("halflife.rules"), name)
    raise AttributeError(f"module 'halflife' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__getattr__("__all__"))
