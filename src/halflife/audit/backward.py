"""Hooks of parameters: what the backward pass does to weights and gradients, which no step of an optimizer shows.

A hook that is called when a gradient has arrived may step an optimizer of its own, as training by layers does, and one
that is called with a gradient may add a multiple of the weight to it. Neither is run here: it is only said that it is there.
"""

from __future__ import annotations

import dis
import functools
import types
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from halflife.laws.copier import is_like_an_optimizer
from halflife.laws.graph import reachable
from halflife.optim.wrappers import codes_in, inner_optimizers, unwrapped

__all__ = ["Hooked", "hooked"]

# Packages whose hooks read gradients, or move them between processes, and change no weight.
WATCHERS = ("torch", "halflife", "wandb", "comet_ml")
MOST = 100_000  # objects that hooks lead to
HARMLESS = {"zero_", "requires_grad_", "clip_grad_norm_", "clip_grad_value_", "_"}  # of what ends with an underscore
INTO_GRADIENTS = "torch's _apply_optimizer_in_backward"

Hook = Callable[..., Any]


@dataclass(frozen=True)
class Hooked:
    """What the hooks of one parameter make unknown.

    Attributes:
        reason: Why no step shows what happens to its weights, and what to do; empty if a step shows all of it but the
            gradients.
        on_gradient: Names of the hooks that may change its gradient.
    """

    reason: str = ""
    on_gradient: tuple[str, ...] = ()

    @property
    def not_proven(self) -> str:
        """Why a weight that a step leaves alone may decay nevertheless."""
        if self.reason or not self.on_gradient:
            return self.reason
        names = ", ".join(self.on_gradient)
        return (
            f"a hook may change its gradient in the backward pass ({names}), as an L2 penalty would; take it off to see what "
            "the optimizer does by itself"
        )


def hooked(parameters: Iterable[Tensor], optimizers: Sequence[Any]) -> dict[int, Hooked]:
    """Find the parameters with hooks that act in the backward pass.

    Args:
        parameters: The parameters; those that require no gradient have no backward pass.
        optimizers: The optimizers that are probed. A hook that steps one of them hides nothing.

    Returns:
        By the id of each parameter that has such hooks.
    """
    after: dict[int, tuple[Tensor, list[Hook]]] = {}
    found: dict[int, Hooked] = {}
    for parameter in parameters:
        if not parameter.requires_grad:
            continue
        hooks = list((getattr(parameter, "_post_accumulate_grad_hooks", None) or {}).values())
        own = getattr(parameter, "_in_backward_optimizers", None)
        if hooks or own:
            after[id(parameter)] = (parameter, hooks)
        on_gradient = [each for each in (parameter._backward_hooks or {}).values() if not _only_watches(each)]
        if on_gradient:
            found[id(parameter)] = Hooked(on_gradient=tuple(dict.fromkeys(map(_name, on_gradient))))
    if not after:
        return found
    every = {id(hook): hook for _, hooks in after.values() for hook in hooks}
    stepped = _Stepped(every.values(), optimizers)
    for key, (parameter, hooks) in after.items():
        reason = _reason(parameter, hooks, stepped)
        if reason:
            found[key] = Hooked(reason, found[key].on_gradient if key in found else ())
    return found


class _Stepped:
    """The optimizers that hooks lead to, and those that are probed anyway."""

    def __init__(self, hooks: Iterable[Hook], optimizers: Sequence[Any]) -> None:
        self.given = {id(each) for each in optimizers}
        self.inside = {id(inner.optimizer) for each in optimizers for inner in inner_optimizers(each)}
        functions = [each for hook in hooks for each in _functions(hook)]
        roots = [value for each in functions for value in _named(each).values()]
        roots += [getattr(_unbound(hook), "__self__", None) for hook in hooks]
        # A model leads to all there is: only what somebody keeps on it is looked at.
        kept = [value for each in roots if isinstance(each, nn.Module) for value in _kept_on(each)]
        objects = reachable([*hooks, *roots, *kept], limit=MOST, without=nn.Module)
        self.found: dict[int, list[Any]] = {}
        for each in {id(value): value for value in objects if is_like_an_optimizer(value)}.values():
            self._add(each)

    def _add(self, optimizer: Any) -> None:
        optimizer = unwrapped(optimizer)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                held = self.found.setdefault(id(parameter), [])
                if not any(each is optimizer for each in held):
                    held.append(optimizer)

    def over(self, parameter: Tensor) -> list[Any]:
        """Return the optimizers that hold a parameter and may be stepped in its hooks."""
        own = [unwrapped(each) for each in getattr(parameter, "_in_backward_optimizers", None) or ()]
        held = self.found.get(id(parameter), ())
        return [*held, *(each for each in own if not any(each is other for other in held))]


def _reason(parameter: Tensor, hooks: Sequence[Hook], stepped: _Stepped) -> str:
    """Return why what happens to a parameter is not known; empty if its hooks hide nothing."""
    optimizers = stepped.over(parameter)
    acting = [hook for hook in hooks if optimizers or not _only_watches(hook)]
    own = getattr(parameter, "_in_backward_optimizers", None)
    if not acting and not own:
        return ""
    missing = [each for each in optimizers if id(each) not in stepped.given | stepped.inside]
    writing = [hook for hook in acting if _writes(hook)]
    if optimizers and not missing and not writing and any(id(each) in stepped.given for each in optimizers):
        return ""
    names = ", ".join(dict.fromkeys([*map(_name, acting), *([INTO_GRADIENTS] if own else [])]))
    if missing:
        kinds = ", ".join(dict.fromkeys(type(each).__name__ for each in missing))
        where = _where(acting, missing)
        if own and not where:
            where = "torch.distributed.optim._get_in_backward_optimizers(model)"
        where = f": {where}" if where else ""
        return f"hooks of the parameters step {kinds} in the backward pass ({names}); pass these optimizers, as a list{where}"
    return (
        f"hooks of the parameters act in the backward pass ({names}), which no step shows; take them off to see what the "
        "optimizer does by itself"
    )


# ---- what a hook is


def _unbound(hook: Any) -> Any:
    """Return what a hook is before arguments were bound to it."""
    while isinstance(hook, functools.partial):
        hook = hook.func
    return hook


def _kept_on(model: nn.Module) -> list[Any]:
    """Return the attributes of a model that are no part of it."""
    return [value for name, value in vars(model).items() if not name.startswith("_")]


def _function(hook: Any) -> Any:
    """Return the function behind a hook."""
    while True:
        if isinstance(hook, functools.partial):
            hook = hook.func
        elif isinstance(hook, types.MethodType):
            hook = hook.__func__
        elif isinstance(getattr(hook, "__wrapped__", None), types.FunctionType):
            hook = hook.__wrapped__
        else:
            break
    if not isinstance(hook, types.FunctionType | types.BuiltinFunctionType):
        hook = getattr(type(hook), "__call__", hook)  # noqa: B004 - the function, not whether there is one
    return hook


def _name(hook: Any) -> str:
    """Return what a hook is called, without the functions that it is defined in."""
    is_object = not isinstance(
        hook, types.FunctionType | types.MethodType | types.BuiltinFunctionType | functools.partial
    )
    name = type(hook).__qualname__ if is_object else getattr(_function(hook), "__qualname__", "a function")
    return str(name).rpartition("<locals>.")[2].replace("<lambda>", "a lambda")


def _only_watches(hook: Any) -> bool:
    """Return whether a hook is known to change neither weights nor gradients: it is of a logger, or of torch."""
    own = getattr(hook, "__self__", None)
    if isinstance(hook, types.BuiltinFunctionType) and isinstance(own, list | deque | set):
        return True  # append, add
    module = getattr(_function(hook), "__module__", None) or ""
    return module.partition(".")[0] in WATCHERS and not module.startswith("torch.optim")


def _codes(hook: Any) -> list[types.CodeType]:
    """Return the code of a hook, of what is defined in it, and of the user's functions that it names."""
    return [code for each in _functions(hook) for code in codes_in(each.__code__)]


def _functions(hook: Any) -> list[types.FunctionType]:
    """Return the function of a hook, and the user's functions that it names."""
    function = _function(hook)
    if not isinstance(function, types.FunctionType):
        return []
    named = [each for each in _named(function).values() if isinstance(each, types.FunctionType)]
    return [function, *(each for each in named if (each.__module__ or "").partition(".")[0] != "torch")]


def _named(function: types.FunctionType) -> dict[str, Any]:
    """Return the variables around a function that it names."""
    found: dict[str, Any] = {}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # still empty
            continue
    defaults = function.__defaults__ or ()
    arguments = function.__code__.co_varnames[: function.__code__.co_argcount]
    found |= dict(zip(arguments[len(arguments) - len(defaults) :], defaults, strict=True))
    outside = function.__globals__
    names = [name for name in function.__code__.co_names if name in outside]
    return {name: outside[name] for name in names} | found


def _writes(hook: Any) -> bool:
    """Return whether the code of a hook changes tensors in place by itself, beside what it calls."""
    for code in _codes(hook):
        methods = {name for name in code.co_names if name.endswith("_") and not name.endswith("__")}
        if (methods - HARMLESS) or "data" in code.co_names:
            return True
        if any(each.argrepr in {"*=", "-=", "/="} for each in dis.get_instructions(code) if each.opname == "BINARY_OP"):
            return True
    return False


def _where(hooks: Sequence[Hook], optimizers: Sequence[Any]) -> str:
    """Return where a hook has optimizers, as one would write it; empty if that is not seen."""
    wanted = set(map(id, optimizers))
    for hook in hooks:
        for name, value in (pair for each in _functions(hook) for pair in _named(each).items()):
            if isinstance(value, Mapping) and any(id(unwrapped(each)) in wanted for each in value.values()):
                return f"list({name}.values())"
            if isinstance(value, list | tuple) and any(id(unwrapped(each)) in wanted for each in value):
                return name
    return ""
