"""``audit``: the explanation of an optimizer that a user's own code builds, and what is expected of it.

The target is ``path/to/train.py:make_optimizer`` or ``package.module:function``; it is called without arguments.
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit.expectations import Check, check, parse_expectation
from halflife.audit.explanation import Explanation, explain
from halflife.errors import UserError
from halflife.user_code import hidden_arguments, import_file, one_sentence

__all__ = ["audit", "load"]

FORMS = (
    "an optimizer, a list of them, (model, optimizer), (model, [optimizers]), or a Lightning module; "
    "configure_optimizers forms are fine"
)


def audit(target: str, expected: Sequence[str] = ()) -> tuple[Explanation, list[Check]]:
    """Build what a target builds, explain it, and compare it with what is expected.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``; see `load`.
        expected: Such as ``"decoupled:0.1"`` (for every group that decays) or ``"matrices=decoupled:0.1"``.

    Returns:
        The explanation, and one check for each expectation.

    Raises:
        UserError: If the target cannot be loaded or explained, or an expectation cannot be read.
    """
    wanted = [parse_expectation(text) for text in expected]  # a typing mistake is told before the user's code runs
    model, optimizers = load(target)
    with one_sentence(f"the optimizer of {target}", None, " while its decay was probed; correct it", runner=__file__):
        table = explain(model, optimizers)
    return table, check(table, wanted, has_model=model is not None)


def load(target: str) -> tuple[nn.Module | None, list[Optimizer]]:
    """Run a user's function and find the model and the optimizers in what it returns.

    A file is imported under its own name, with its folder first on ``sys.path``, as ``python file.py`` does, and with
    ``sys.argv`` that names it alone; its ``__name__`` is not ``"__main__"``. A module is imported with the current
    folder on ``sys.path``, as ``python -m`` does.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``. The function is called without
            arguments; an optimizer or a model that exists already is taken as it is.

    Returns:
        The model, None if there is none in it, and the optimizers.

    Raises:
        UserError: If the target is not there, needs arguments, raises, or returns something else.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            f"the target is {target!r}, expected path/to/file.py:function or package.module:function; "
            "name the function that builds the optimizer"
        )
    is_file = place.endswith(".py") or os.sep in place
    path = Path(place)
    if is_file and not path.is_file():
        raise UserError(f"there is no file {place}; give the path of the file that builds the optimizer")
    with (
        hidden_arguments(place),
        one_sentence(target, path if is_file else None, "; correct it, or name another function", runner=__file__),
    ):
        module = _imported(path) if is_file else _import_module(place)
        value = _attribute(module, name, place)
        if callable(value) and not isinstance(value, nn.Module | Optimizer):
            _check_arguments(value, target)
            value = value()
        found = _found_in(value)
    if found is None:
        raise UserError(f"{target} gave {_described(value)}; expected {FORMS}")
    return found


def _imported(path: Path) -> ModuleType:
    # A file may have the name of a module that is in use already (test.py, random.py): that one stays.
    return import_file(path, path.stem if path.stem not in sys.modules else f"_audited_{path.stem}")


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {error.name}; give package.module:function as Python would import it from here, "
                "or path/to/file.py:function"
            ) from None
        raise


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            functions = [key for key, each in vars(module).items() if inspect.isfunction(each) and key[0] != "_"]
            there = f"; there are {', '.join(functions[:8])}" if functions else ""
            raise UserError(f"{place} has no {name}{there}: name the function that builds the optimizer")
        value = getattr(value, part)
    return value


def _check_arguments(function: Any, target: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if needed:
        raise UserError(
            f"{target} needs arguments ({', '.join(needed)}); write a function without arguments that calls it, "
            "and name that one"
        )


def _found_in(value: Any) -> tuple[nn.Module | None, list[Optimizer]] | None:
    """Return the model and the optimizers in a value; None if there is no optimizer in it."""
    configure = getattr(value, "configure_optimizers", None)
    if isinstance(value, nn.Module):
        optimizers = _optimizers_in(configure()) if callable(configure) else None
        return (value, optimizers) if optimizers else None
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
        first, second = value[:2]
        for model, rest in ((first, second), (second, first)):
            if isinstance(model, nn.Module):
                optimizers = _optimizers_in(rest)
                return (model, optimizers) if optimizers else None
    model = value.get("model") if isinstance(value, Mapping) else None
    optimizers = _optimizers_in(value)
    return (model if isinstance(model, nn.Module) else None, optimizers) if optimizers else None


def _optimizers_in(value: Any) -> list[Optimizer]:
    """Return the optimizers in any form that Lightning's ``configure_optimizers`` may answer with."""
    if isinstance(value, Optimizer):
        return [value]
    if isinstance(value, Mapping):
        return _optimizers_in(value.get("optimizer"))
    if isinstance(value, Sequence) and not isinstance(value, str):
        # ([optimizers], [schedulers]) has no optimizer in its second part, so that nothing is found there.
        return [optimizer for each in value for optimizer in _optimizers_in(each)]
    return []


def _described(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"the model {type(value).__name__} without an optimizer"
    if isinstance(value, type):
        return f"the class {value.__name__}, which nobody has called"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
