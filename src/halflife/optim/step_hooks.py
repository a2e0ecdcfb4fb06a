"""The step hooks that act on an optimizer: its own, and those that are registered for all optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.optim import optimizer as torch_optimizer

__all__ = ["foreign_hooks", "global_hooks", "is_own", "step_hooks"]

Hooks = dict[Any, Callable[..., Any]]


def global_hooks() -> list[Hooks]:
    """Return the step hooks that are registered for all optimizers, as torch keeps them."""
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    return [getattr(torch_optimizer, name, {}) for name in names]


def step_hooks(optimizer: Any) -> list[Hooks]:
    """Return all step hooks that act on an optimizer; some subclasses have no place for hooks of their own."""
    names = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    return [*(getattr(optimizer, name, None) or {} for name in names), *global_hooks()]


def is_own(hook: Callable[..., Any]) -> bool:
    """Return whether a hook is one of halflife."""
    return (getattr(hook, "__module__", "") or "").startswith("halflife.")


def foreign_hooks(optimizer: Any) -> list[str]:
    """Return the names of the step hooks that act on an optimizer and are not of halflife, each once."""
    others = [hook for hooks in step_hooks(optimizer) for hook in hooks.values() if not is_own(hook)]
    return list(dict.fromkeys(getattr(hook, "__qualname__", type(hook).__qualname__) for hook in others))
