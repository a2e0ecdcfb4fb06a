"""Small copies of a live optimizer: throw-away parameters, empty state, no hooks, the same settings."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.laws.copier import LIMIT, Copier
from halflife.laws.graph import with_inner
from halflife.laws.law import NotProbedError
from halflife.laws.slots import plain_attributes
from halflife.optim.config import MARK
from halflife.optim.wrappers import unwrapped

__all__ = [
    "StartState",
    "check_written",
    "drawn_like",
    "has_state",
    "is_number",
    "left_out",
    "number",
    "peaks_in",
    "scale_decay",
    "scale_peaks",
    "small_copy",
    "small_parameter",
    "train_modules",
    "unwrapped",
    "written",
]


StartState = Literal["flags", "start"]  # of a copy: empty but for flags, or as it was when the optimizer was made


def has_state(optimizer: Any) -> bool:
    """Return whether an optimizer, or one inside it, remembers anything by parameter."""
    return any(bool(getattr(each, "state", None)) for each in with_inner([optimizer]))


def drawn_like(weight: Tensor) -> Tensor:
    """Return a fixed draw of a weight's shape, on its device if it has memory: no element of it is near 0."""
    generator = torch.Generator().manual_seed(5)
    device = weight.device if weight.device.type != "meta" else torch.device("cpu")
    dtype = torch.complex64 if weight.is_complex() else torch.float32
    drawn = torch.randn(tuple(weight.shape), generator=generator, dtype=dtype)
    return (drawn + 0.5 * drawn.sgn()).to(device, dtype if weight.is_complex() else weight.dtype)


def left_out(optimizer: Optimizer) -> list[str]:
    """Tell what a copy of an optimizer does not do.

    Args:
        optimizer: The optimizer; no rule of halflife is attached.

    Returns:
        Sentences for the notes.
    """
    found = []
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if not hasattr(optimizer, MARK) and any(vars(optimizer).get(name) for name in hooks):
        found.append("it has step hooks, which were not called")
    return found


def small_parameter(parameter: Tensor, weight: Tensor, *, clone: bool = True) -> Tensor:
    """Make a throw-away parameter that stands for a real one.

    Args:
        parameter: The real one; its values are not read.
        weight: The values of the small one.
        clone: Whether it gets memory of its own.

    Returns:
        The small parameter, of the same class where that is one of parameters, which requires a gradient if the real
        one does.
    """
    kind = type(parameter)
    if not issubclass(kind, torch.nn.Parameter) or kind.__new__ is not torch.nn.Parameter.__new__:
        kind = torch.nn.Parameter
    made: Tensor = torch.Tensor._make_subclass(
        kind, weight.detach().clone() if clone else weight.detach(), parameter.requires_grad
    )
    for name, value in plain_attributes(parameter):
        setattr(made, name, value)
    return made


def small_copy(
    optimizer: Optimizer,
    memo: dict[int, Any],
    more: Mapping[int, list[Tensor]],
    device: torch.device,
    dtype: torch.dtype,
    state: StartState = "flags",
) -> Optimizer:
    """Copy an optimizer with throw-away parameters, a state from before the first step, and no hooks.

    Args:
        optimizer: The optimizer to copy.
        memo: By the id of what it stands for, each small parameter that is to step. The other parameters are
            left out, or, if none is to step, stand there empty.
        more: By the same id, further small parameters that step beside the one in ``memo``.
        device: Where the throw-away parameters are.
        dtype: Their precision.
        state: ``"flags"``: empty but for flags. ``"start"``: whole, for an optimizer that fills it when it is made.

    Returns:
        The copy.

    Raises:
        NotProbedError: If the optimizer cannot be copied.
    """

    def empty(_: Tensor) -> Tensor:
        return torch.nn.Parameter(torch.zeros((), dtype=dtype, device=device))

    made: Optimizer = Copier(memo, more=more, state=state, limit=LIMIT, empty=empty).copy(optimizer)
    train_modules(memo)
    return made


def train_modules(memo: Mapping[int, Any]) -> None:
    """Put the copies of modules in training mode: the next step of a run is one, whatever mode its model is in now.

    Args:
        memo: The copies, by the ids of what they are copies of; what stands for itself is left as it is.
    """
    for key, made in memo.items():
        if isinstance(made, torch.nn.Module) and id(made) != key:
            made.training = True


def scale_peaks(optimizer: Optimizer, factor: float) -> None:
    """Multiply whatever may serve an optimizer as its peak learning rate.

    Args:
        optimizer: The copy.
        factor: The factor.
    """
    if factor == 1.0:
        return
    for place, key, value in _numbers(optimizer, "lr"):
        if not ("params" in place and key == "lr"):
            place[key] = value * factor


def scale_decay(optimizer: Optimizer, factor: float) -> None:
    """Multiply the weight decay of an optimizer wherever it is kept.

    Args:
        optimizer: The copy.
        factor: The factor.

    Raises:
        NotProbedError: If the optimizer makes its groups anew at each access, so that the number is lost.
    """
    if factor == 1.0:
        return
    asked = {
        index: group["weight_decay"] for index, group in enumerate(optimizer.param_groups) if "weight_decay" in group
    }
    for place, key, value in _numbers(optimizer, "weight_decay"):
        place[key] = value * factor
    for index, value in asked.items():
        if is_number(value):
            check_written(optimizer, index, "weight_decay", value * factor)


def check_written(optimizer: Optimizer, index: int, key: str, value: Any) -> None:
    """Look whether a number that was written into a group is there.

    Args:
        optimizer: The optimizer.
        index: The number of the group.
        key: ``"lr"`` or ``"weight_decay"``.
        value: What was written.

    Raises:
        NotProbedError: If it is not, because the optimizer makes its groups anew at each access.
    """
    if not math.isclose(number(optimizer.param_groups[index].get(key)), number(value), rel_tol=1e-6):
        what = "learning rate" if key == "lr" else "weight decay"
        raise NotProbedError(
            f"a {what} that is written into its groups does not reach it, so that how the decay depends on it cannot be "
            "measured"
        )


def peaks_in(optimizer: Optimizer, group: Mapping[str, Any], keys: tuple[str, ...]) -> list[float]:
    """Return what may be the largest learning rate of a group, the likeliest first.

    Args:
        optimizer: The optimizer.
        group: The group.
        keys: Names under which groups and optimizers keep it.

    Returns:
        Positive numbers; maybe none.
    """
    places = [group, vars(optimizer), {"lr": _defaults(optimizer).get("lr")}]
    found = [number(place.get(key)) for place in places for key in (*keys, "lr")]
    return [each for each in found if each > 0.0]


def _defaults(optimizer: Optimizer) -> dict[str, Any]:
    """Return the defaults of an optimizer; nothing for an object that steps and is none of torch's."""
    found = getattr(optimizer, "defaults", None)
    return found if isinstance(found, dict) else {}


def number(value: Any) -> float:
    """Return a setting as a plain number: some are numbers of NumPy, or tensors.

    Args:
        value: The setting.

    Returns:
        Its value; 0 if it is missing, None, or no number.
    """
    return float(value) if is_number(value) or isinstance(value, bool) else 0.0


def _numbers(optimizer: Optimizer, word: str) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Yield where an optimizer keeps numbers with ``word`` in their name."""
    for place in (*optimizer.param_groups, _defaults(optimizer), vars(optimizer)):
        for key, value in list(place.items()):
            if word in key.lower() and is_number(value):
                yield place, key, value


def written(value: Any) -> str:
    """Return a setting as text that is the same in every process, without addresses.

    Args:
        value: The setting.

    Returns:
        Such as ``"None"``, ``"'0.1'"``, ``"a lambda"``, ``"the function schedule"``, ``"an object of type Ramp"``.
    """
    text = repr(value)
    if " at 0x" not in text:
        return text
    name = getattr(value, "__qualname__", None)
    if isinstance(name, str) and callable(value):
        name = name.rpartition("<locals>.")[2]
        return "a lambda" if name == "<lambda>" else f"the function {name}"
    return f"an object of type {type(value).__name__}"


def is_number(value: Any) -> bool:
    """Return whether a setting is one finite number; True and False are flags."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and value.device.type != "meta" else None
    elif getattr(value, "ndim", None) == 0 and hasattr(value, "item"):  # an array of NumPy without dimensions
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value)
