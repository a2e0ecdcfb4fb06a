"""Names of parameters without what wrappers put into them, and patterns over names.

``torch.compile``, activation checkpointing, FullyShardedDataParallel and DistributedDataParallel hold a model, or a part
of it, as an attribute, so that ``fc.weight`` is ``_orig_mod.fc.weight`` or ``module.fc.weight``.

Examples:
    >>> import torch
    >>> without_wrappers("blocks.0._checkpoint_wrapped_module._orig_mod.fc.weight")
    'blocks.0.fc.weight'
    >>> without_wrappers("module.fc.weight")  # a user's model may have a part that is called so
    'module.fc.weight'
    >>> without_wrappers("module.fc.weight", [torch.nn.DataParallel(torch.nn.Linear(2, 2))])
    'fc.weight'
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from halflife.errors import UserError, shortened

__all__ = ["Names", "held_as", "matcher", "plain_names", "without_wrappers"]

# The attribute as which a wrapper holds what it wraps, by the name of its class: not all of these are installed.
HOLDERS = dict.fromkeys(
    ("DistributedDataParallel", "DataParallel", "FullyShardedDataParallel", "AveragedModel", "DeepSpeedEngine"),
    "module",
)
HOLDERS |= {"OptimizedModule": "_orig_mod", "_FabricModule": "_original_module"}
OF_TORCH = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # no part of a user's is called so
LONGEST = 1_000  # characters of a pattern: Python needs minutes for some that are much longer

Names = tuple[str, str]  # as it is, and without wrappers


def held_as(module: nn.Module) -> str | None:
    """The name of the attribute as which a wrapper holds what it wraps; None for what is no wrapper."""
    return next((HOLDERS[base.__name__] for base in type(module).__mro__ if base.__name__ in HOLDERS), None)


def without_wrappers(name: str, path: Sequence[nn.Module] = ()) -> str:
    """A name as it is in the model that wrappers hold.

    Args:
        name: The name.
        path: The modules that it leads through, from the model itself on. Without them a ``module`` stays.

    Returns:
        The name without the attributes of wrappers.
    """
    parts = name.split(".")
    holders = [held_as(module) for module in path[: len(parts)]] + [None] * (len(parts) - len(path))
    kept = [part for part, holder in zip(parts, holders, strict=True) if part not in OF_TORCH and part != holder]
    return ".".join(kept)


def plain_names(name: str) -> list[str]:
    """The name, and what it may be in the model that wrappers hold, in the order in which they are tried."""
    bare = without_wrappers(name)
    return list(dict.fromkeys((name, bare, bare.removeprefix("module."), _without_module(bare))))


def _without_module(name: str) -> str:
    return ".".join(part for part in name.split(".") if part != "module")


def matcher(pattern: str, names: Iterable[Names]) -> Callable[[Names], bool]:
    """A function that says which names a shell pattern matches.

    The first of these spellings in which it matches any is the one that counts: names without wrappers; as they are;
    without a ``module`` in front, then without any, since wrappers that are not known here hold the model so, too. A
    pattern that matches none of them is spelled in the same ways: it may be written for the wrapped model.

    Args:
        pattern: The pattern.
        names: All names that there are.

    Returns:
        The function.

    Raises:
        UserError: The pattern is too long.
    """
    if len(pattern) > LONGEST:
        raise UserError(
            f"pattern {shortened(pattern)} has {len(pattern)} characters, expected at most {LONGEST}: write a shorter one"
        )
    spellings: tuple[Callable[[Names], str], ...]
    spellings = (lambda each: each[1], lambda each: each[0], lambda each: each[1].removeprefix("module."),
                 lambda each: _without_module(each[1]))  # fmt: skip
    known = list(names)
    tried = [(re.compile(fnmatch.translate(text)).match, spell) for text in plain_names(pattern) for spell in spellings]
    match, spelled = next((way for way in tried if any(way[0](way[1](each)) for each in known)), tried[0])
    return lambda each: match(spelled(each)) is not None
