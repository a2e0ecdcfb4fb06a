"""What ``explain`` and ``assert_decay`` take: a model or several, an optimizer or several, in whatever holds them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set, ValuesView
from typing import Any, cast

from torch import nn
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import unwrapped

__all__ = ["model_of", "optimizers_of"]


def model_of(models: object) -> nn.Module | None:
    """Return one module that holds all models.

    Args:
        models: A model, None, or several: a list, a dict, any iterable of models.

    Returns:
        The model itself; of several a module whose names have the number or the key of each model in front.

    Raises:
        UserError: If one of them is no model.
    """
    if models is None or isinstance(models, nn.Module):
        return models
    named = _named(models)
    if named is None or isinstance(models, type):
        raise UserError(
            f"expected a model, a torch.nn.Module, a list or dict of them, or None, got {_described(models)}"
        )
    whole = nn.Module()
    for name, model in named:
        if not isinstance(model, nn.Module):
            raise UserError(f"expected models, torch.nn.Module, got {_described(model)} among them ({name})")
        whole._modules[name.replace(".", "_")] = model  # add_module refuses names that are attributes of modules
    if not whole._modules:
        raise UserError("got no model; give one, or None if there is only the optimizer")
    return whole


def optimizers_of(optimizers: object) -> list[Optimizer]:
    """Return the optimizers in what was given, with accelerate's wrappers taken off.

    Args:
        optimizers: An optimizer, or several: a list, a dict, any iterable of them, also nested.

    Returns:
        The optimizers, in order. Wrappers that are no torch optimizers but have groups and can be stepped are taken as they
        are.

    Raises:
        UserError: If something else is among them, or nothing.
    """
    found = list(_optimizers_in(optimizers))
    if not found:
        raise UserError("got no optimizer; give the one that trains the model, or a list of them")
    return found


def _optimizers_in(value: object) -> Iterator[Optimizer]:
    if isinstance(value, Optimizer):
        yield unwrapped(value)
        return
    if not isinstance(value, type) and hasattr(value, "param_groups") and callable(getattr(value, "step", None)):
        yield cast("Optimizer", value)  # OptimWrapper of fastai, for example: what is asked of it is no more than this
        return
    named = None if isinstance(value, nn.Module | type) else _named(value)
    if named is None:
        name = _described(value) if isinstance(value, type) else type(value).__name__
        raise UserError(f"expected a torch.optim.Optimizer, or a list of them, got {name}{_what_is_inside(value)}")
    for _, each in named:
        yield from _optimizers_in(each)


def _named(value: object) -> list[tuple[str, Any]] | None:
    """Return what is in a container, by key or number; None if it is none."""
    if isinstance(value, Mapping):
        return [(str(key), each) for key, each in value.items()]
    # Not every iterable: a DataLoader would be read to its end.
    if isinstance(value, Sequence | Set | ValuesView | Iterator) and not isinstance(value, str | bytes):
        return [(str(number), each) for number, each in enumerate(value)]
    return None


def _what_is_inside(value: object) -> str:
    """Return what to pass instead of an object that holds an optimizer, or several; empty if it holds none."""
    for name, each in getattr(value, "__dict__", {}).items():
        if isinstance(each, Optimizer):
            return f"; pass the optimizer inside it (.{name})"
        several = list(each.values()) if isinstance(each, dict) else each if isinstance(each, list | tuple) else []
        if several and all(isinstance(one, Optimizer) for one in several):
            return f"; pass the optimizers inside it (.{name}{'.values()' if isinstance(each, dict) else ''})"
    return ""


def _described(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__}; make an instance of it"
    return "None" if value is None else f"an object of type {type(value).__name__}"
