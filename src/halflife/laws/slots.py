"""Slots: the throw-away parameters that stand for those of an optimizer, and the settings at which they are probed."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["Slot", "enough_of", "kinds_in", "look_of", "plain_attributes", "settings_of", "small_shape"]

SIZES = (8, 6, 3, 2)  # of throw-away parameters, by dimension; those that stand for smaller ones have their shape
KINDS = {0: "scalar", 1: "vector", 2: "matrix", 4: "convolution"}
ENOUGH = 8  # elements; with one, every difference is a multiple of the weight before and of the weight after


@dataclass(frozen=True)
class Slot:
    """What stands for the parameters of one kind in one group, and the settings at which it is probed.

    Args:
        group: Number of the group in its optimizer.
        kind: ``"matrix"``, ``"vector"``, ``"convolution"``, ...
        shape: The shape of a throw-away parameter.
        lr: The learning rate that it is probed at.
        lam: The weight decay that it is probed at.
        peaks: What may be the largest learning rate, the likeliest first.
        attached: Whether a rule of halflife decides its decay. The rule may schedule the fraction, and needs no proof
            that it is linear in lam and does not depend on the run so far.
        depends_on_lam: Whether ``lam`` is a factor of the decay at all.
        count: How many throw-away parameters of this shape stand for one real one.
        own_lr: The learning rate that the optimizer has; None where it is probed at that one.
        lr_factor: The peaks that it is probed at, divided by those that the optimizer has.
        lam_factor: The weight decay that it is probed at, divided by the one that the optimizer has.
    """

    group: int
    kind: str
    shape: tuple[int, ...]
    lr: float
    lam: float
    peaks: tuple[float, ...]
    attached: bool = False
    depends_on_lam: bool = True
    count: int = 1
    own_lr: float | None = None
    lr_factor: float = 1.0
    lam_factor: float = 1.0

    def pieces(self, tensor: Tensor) -> list[Tensor]:
        """Return the part of each throw-away parameter in a tensor that holds all of them."""
        return list(tensor.unbind()) if self.count > 1 else [tensor]

    def joined(self, pieces: Sequence[Tensor]) -> Tensor:
        """Return one tensor that holds all throw-away parameters."""
        return torch.stack(list(pieces)) if self.count > 1 else pieces[0].clone()


def enough_of(shape: tuple[int, ...]) -> int:
    """Return how many parameters of a shape have enough elements together.

    Args:
        shape: The shape.

    Returns:
        The number, 1 for most shapes.
    """
    return max(1, -(-ENOUGH // max(1, math.prod(shape))))


def plain_attributes(parameter: Tensor) -> tuple[tuple[str, Any], ...]:
    """Return what somebody wrote on a parameter for its optimizer to read.

    Args:
        parameter: A parameter.

    Returns:
        Names and values, as far as they are plain values, or containers of these.
    """
    found = vars(parameter) if hasattr(parameter, "__dict__") else {}
    return tuple(sorted((name, value) for name, value in found.items() if _is_plain(value)))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, (*value, *value.values())))
    if isinstance(value, list | tuple | set | frozenset):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def look_of(parameter: Tensor) -> Hashable:
    """Return what a step can tell a parameter by, its size and its identity apart."""
    return small_shape(parameter), repr(plain_attributes(parameter)), parameter.dtype


def settings_of(group: Mapping[str, Any]) -> Hashable:
    """Return what a step can tell a group by, besides its learning rate and the size of its weight decay."""
    return tuple(
        (key, repr(_told(key, value))) for key, value in group.items() if key != "params" and "name" not in key
    )


def _told(key: str, value: Any) -> Any:
    """Return what is told of one setting of a group."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "" if "lr" in key else value != 0 if "weight_decay" in key else value
    if isinstance(value, Tensor):
        return "" if "lr" in key else (tuple(value.shape), value.dtype)
    return value if _is_plain(value) else id(value)


def kinds_in(group: Mapping[str, Any]) -> list[str]:
    """Name the kind of each parameter of a group, as `Law.by_shape` names it.

    Args:
        group: The group.

    Returns:
        One name per parameter: ``"matrix"``, ``"vector"`` and so on, with a number from the second kind of as many
        dimensions on. Parameters of one kind are probed as one; ``""`` is for those that require no gradient.
    """
    names: dict[Any, str] = {}
    kinds = []
    for parameter in group["params"]:
        if not parameter.requires_grad:
            kinds.append("")
            continue
        key = look_of(parameter)
        if key not in names:
            number = 1 + sum(1 for shape, *_ in names if len(shape) == parameter.ndim)
            kind = KINDS.get(parameter.ndim, f"{parameter.ndim}-d")
            names[key] = kind if number == 1 else f"{kind} {number}"
        kinds.append(names[key])
    return kinds


def small_shape(parameter: Tensor) -> tuple[int, ...]:
    """Return the shape of what stands for a parameter: its own if it is tiny, as optimizers may treat such ones apart.

    Args:
        parameter: The parameter.

    Returns:
        The shape, with as many dimensions.
    """
    if 0 < parameter.numel() < ENOUGH:
        return tuple(parameter.shape)
    return SIZES[: parameter.ndim] + (2,) * (parameter.ndim - len(SIZES))
