"""A large optimizer, reduced once to some of its parameters, so that the many copies of it are small."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from halflife.laws.copier import Copier
from halflife.laws.copies import small_parameter

__all__ = ["Reduced", "is_of_torch", "makes_typed", "reduced"]

_TYPED = frozenset({torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD})


@dataclass(frozen=True, eq=False)
class Reduced:
    """What is left of an optimizer.

    Args:
        optimizer: A copy of it, or itself.
        parameters: By the id of each parameter that is left, what stands for it; it has its shape, and no memory.
        groups: By the number of each group that is left, its number in the copy.
    """

    optimizer: Any
    parameters: dict[int, Tensor]
    groups: dict[int, int]


def reduced(optimizer: Any, kept: Iterable[Tensor]) -> Reduced:
    """Copy an optimizer without all but some of its parameters; of torch's own classes without empty groups, too.

    Args:
        optimizer: The optimizer; it is not touched.
        kept: The parameters that are left.

    Returns:
        The copy.
    """
    memo: dict[int, Any] = {}
    for parameter in kept:
        weight, gradient = (torch.zeros((), dtype=parameter.dtype, device=parameter.device) for _ in range(2))
        memo[id(parameter)] = made = small_parameter(parameter, weight.expand(parameter.shape), clone=False)
        if parameter.grad is not None:
            made.grad = gradient.expand(parameter.shape)  # with memory of its own: the two are no views of each other
    parameters = dict(memo)
    made = Copier(memo).copy(optimizer)
    groups = list(range(len(made.param_groups)))
    if is_of_torch(optimizer):  # which look at one group at a time
        groups = [index for index in groups if made.param_groups[index]["params"]]
        made.param_groups = [made.param_groups[index] for index in groups]
    return Reduced(made, parameters, {index: place for place, index in enumerate(groups)})


def is_of_torch(optimizer: Any) -> bool:
    """Return whether an optimizer is of one of torch's own classes, and its step that of the class."""
    return type(optimizer).__module__.startswith("torch.optim.") and "step" not in vars(optimizer)


def makes_typed(optimizer: Any) -> bool:
    """Return whether the step is known to give a dtype to each tensor that it makes: no default dtype matters."""
    return type(optimizer) in _TYPED and is_of_torch(optimizer)
