"""Small copies of a live optimizer: throw-away parameters, empty state, no hooks, the same settings."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.laws.law import NotProbedError
from halflife.laws.slots import plain_attributes
from halflife.optim.config import ATTRIBUTES, MARK

__all__ = [
    "is_number",
    "left_out",
    "number",
    "peaks_in",
    "scale_decay",
    "scale_peaks",
    "small_copy",
    "small_parameter",
    "unwrapped",
]

# What a copy must not have. Schedulers put a `step` on the instance that steps the original; GradScaler leaves
# `grad_scale` and `found_inf` there during a step.
NOT_COPIED = {"state", "param_groups", "step", "grad_scale", "found_inf", *ATTRIBUTES}


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Look through the wrappers that add no step of their own.

    Args:
        optimizer: An optimizer, or accelerate's wrapper of one.

    Returns:
        The optimizer inside.
    """
    while type(optimizer).__module__.startswith("accelerate."):
        inner = getattr(optimizer, "optimizer", None)
        if not isinstance(inner, Optimizer):
            break
        optimizer = inner
    return optimizer


def left_out(optimizer: Optimizer) -> list[str]:
    """Tell what a copy of an optimizer does not do.

    Args:
        optimizer: The optimizer; no rule of halflife is attached.

    Returns:
        Sentences for the notes.
    """
    found = []
    step = vars(optimizer).get("step")
    if step is not None and not getattr(step, "_wrapped_by_lr_sched", False):
        found.append("its step was replaced on the instance; the step of its class was probed")
    hooks = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    if not hasattr(optimizer, MARK) and any(vars(optimizer).get(name) for name in hooks):
        found.append("it has step hooks, which were not called")
    return found


def small_parameter(parameter: Tensor, weight: Tensor) -> torch.nn.Parameter:
    """Make a throw-away parameter that stands for a real one.

    Args:
        parameter: The real one; its values are not read.
        weight: The values of the small one.

    Returns:
        The small parameter.
    """
    small = torch.nn.Parameter(weight.detach().clone())
    for name, value in plain_attributes(parameter):
        setattr(small, name, value)
    return small


def small_copy(
    optimizer: Optimizer,
    memo: dict[int, Any],
    more: Mapping[int, list[Tensor]],
    device: torch.device,
    dtype: torch.dtype,
) -> Optimizer:
    """Copy an optimizer with throw-away parameters, empty state and no hooks.

    Not ``copy.deepcopy`` of the optimizer: torch keeps only state, groups and defaults in it.

    Args:
        optimizer: The optimizer to copy.
        memo: By the id of what it stands for, each small parameter that is to step. The other parameters are
            left out, or, if none is to step, stand there empty.
        more: By the same id, further small parameters that step beside the one in ``memo``.
        device: Where the throw-away parameters are.
        dtype: Their precision.

    Returns:
        The copy.

    Raises:
        NotProbedError: If an attribute of the optimizer cannot be copied.
    """
    some_step = any(id(parameter) in memo for group in optimizer.param_groups for parameter in group["params"])
    kept = []
    for group in optimizer.param_groups:
        chosen = [parameter for parameter in group["params"] if id(parameter) in memo]
        kept.append([small for each in chosen for small in (memo[id(each)], *more.get(id(each), ()))])
        for parameter in group["params"]:  # references to the others lead to nothing
            memo.setdefault(id(parameter), torch.nn.Parameter(torch.zeros((), dtype=dtype, device=device)))
        if not some_step:
            kept[-1] = [memo[id(parameter)] for parameter in group["params"]]

    def copied(name: str, value: Any) -> Any:
        try:
            if isinstance(value, Optimizer) and id(value) not in memo:  # one inside another, such as Lookahead's
                return small_copy(value, memo, more, device, dtype)
            return copy.deepcopy(value, memo)
        except Exception as error:  # process groups, locks, modules, ...
            raise NotProbedError(f"its {name} cannot be copied: {type(error).__name__}: {error}") from error

    made: Optimizer = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = made
    memo[id(optimizer.state)] = made.state = defaultdict(dict)
    for name, value in vars(optimizer).items():
        if name in NOT_COPIED:
            continue
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            made.__dict__[name] = OrderedDict()
            continue
        made.__dict__[name] = copied(name, value)
    made.param_groups = [
        {
            "params": parameters,
            **{key: copied(key, value) for key, value in group.items() if key not in {"params", "param_names"}},
        }
        for group, parameters in zip(optimizer.param_groups, kept, strict=True)
    ]
    return made


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
    """
    if factor == 1.0:
        return
    for place, key, value in _numbers(optimizer, "weight_decay"):
        place[key] = value * factor


def peaks_in(optimizer: Optimizer, group: Mapping[str, Any], keys: tuple[str, ...]) -> list[float]:
    """Return what may be the largest learning rate of a group, the likeliest first.

    Args:
        optimizer: The optimizer.
        group: The group.
        keys: Names under which groups and optimizers keep it.

    Returns:
        Positive numbers; maybe none.
    """
    places = [group, vars(optimizer), {"lr": optimizer.defaults.get("lr")}]
    found = [number(place.get(key)) for place in places for key in (*keys, "lr")]
    return [each for each in found if each > 0.0]


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
    for place in (*optimizer.param_groups, optimizer.defaults, vars(optimizer)):
        for key, value in list(place.items()):
            if word in key.lower() and is_number(value):
                yield place, key, value


def is_number(value: Any) -> bool:
    """Return whether a setting is one finite number; True and False are flags."""
    if isinstance(value, Tensor):
        value = value.item() if value.numel() == 1 and value.device.type != "meta" else None
    if isinstance(value, bool) or not isinstance(value, Real):
        return False
    return math.isfinite(value)
