"""Decay towards a reference: ``w <- w - r * (w - reference)`` before the update."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.groups.names import plain_names
from halflife.optim.actions.base import LOW, Action, Work, by_device_and_precision, unless_skipped
from halflife.optim.by_parameter import ByParameter
from halflife.optim.norms import local
from halflife.rules.appliers import MovingAverage, Tensors

__all__ = ["KEYS", "Pull", "reference_of"]

# In the optimizer's state of a parameter: checkpoints of every kind keep it. One key each, so that an average does
# not start from another law's first weights.
KEYS = FIRST, AVERAGE = "halflife_reference", "halflife_average"


class Pull(Action):
    """Move parameters a fraction of the way to their references.

    Args:
        reference: The reference of `Toward`.
    """

    acts_at_zero = True
    acts_at_lr_zero = True

    def __init__(self, reference: Any) -> None:
        self._reference = reference
        self._key = AVERAGE if isinstance(reference, MovingAverage) else FIRST
        self._known: ByParameter[Tensor] = ByParameter()

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Pull, unless the step will be skipped."""
        found_inf = getattr(optimizer, "found_inf", None)
        for each in work:  # all of them before anything moves: one may be missing
            for parameter in each.parameters:
                if parameter not in self._known:
                    self._known[parameter] = self._find(optimizer, parameter)
        for each in work:
            if isinstance(each.answer, float) and each.answer == 0.0:
                continue
            for (device, dtype), tensors in by_device_and_precision(each.parameters).items():
                share = _share(each.answer, found_inf, device, dtype)
                _pull(tensors, [self._known[tensor] for tensor in tensors], share)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Let the moving average follow, and keep references where checkpoints find them."""
        if isinstance(self._reference, Tensors):
            return
        parameters = [parameter for each in work for parameter in each.parameters]
        if isinstance(self._reference, MovingAverage):
            found_inf = getattr(optimizer, "found_inf", None)
            for (device, dtype), tensors in by_device_and_precision(parameters).items():
                share = _share(1.0 - self._reference.beta, found_inf, device, dtype)
                _pull([self._known[tensor] for tensor in tensors], tensors, share)
        for parameter in parameters:
            state = optimizer.state[parameter]
            if self._key not in state:  # also after the user has emptied it in the middle of a run
                state[self._key] = self._known[parameter]

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Push the weights back, exact up to rounding; first weights that were met in this step are met again."""
        found_inf = getattr(optimizer, "found_inf", None)
        for each in work:
            for (device, dtype), tensors in by_device_and_precision(each.parameters).items():
                share = _share(-each.answer / (1.0 - each.answer), found_inf, device, dtype)
                _pull(tensors, [self._known[tensor] for tensor in tensors], share)
            for parameter in each.parameters:
                if self._key not in optimizer.state.get(parameter, {}):
                    self._known.pop(parameter)

    def _find(self, optimizer: Optimizer, parameter: Tensor) -> Tensor:
        if isinstance(self._reference, Tensors):
            return reference_of(optimizer, self._reference, parameter)
        state = optimizer.state.get(parameter, {})
        kept: Tensor | None = state.get(self._key)  # of a checkpoint
        return parameter.detach().clone() if kept is None else kept

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Look the references up anew."""
        self._known = ByParameter()

    def remove_state(self, optimizer: Optimizer) -> None:
        """Take the references out of the optimizer's state."""
        for state in optimizer.state.values():
            for key in KEYS:
                state.pop(key, None)


def reference_of(optimizer: Optimizer, given: Tensors, parameter: Tensor) -> Tensor:
    """Find the given reference of a parameter.

    Args:
        optimizer: The optimizer; ``param_names`` in its groups serve references by name.
        given: The reference tensors.
        parameter: The parameter.

    Returns:
        The reference, with the device, type and sharding of the parameter.

    Raises:
        UserError: If there is none, or its shape differs.
    """
    index, name = 0, None
    for group in optimizer.param_groups:
        for position, each in enumerate(group["params"]):
            if each is parameter:
                names = group.get("param_names")
                name = names[position] if names else None
                break
            index += 1
        else:
            continue
        break
    if isinstance(given.values, dict):
        if name is None:
            raise UserError(
                "Toward got references by name, but the optimizer does not know the names of its parameters; build the"
                " groups with halflife.param_groups or model.named_parameters(), or give a list of tensors in order"
            )
        key = next((each for each in _keys_of(name) if each in given.values), None)
        if key is None:
            raise UserError(
                f"Toward got no reference for the decaying parameter {name}; add it, or take it out of decay"
            )
        found = given.values[key]
    else:
        if index >= len(given.values):
            raise UserError(
                f"Toward got {len(given.values)} reference tensors, but parameter {index} of the optimizer decays"
                " too; give one per parameter, in order"
            )
        found = given.values[index]
    if found.shape != parameter.shape:
        raise UserError(
            f"Toward got a reference of shape {tuple(found.shape)} for parameter {name or index} of shape"
            f" {tuple(parameter.shape)}; expected equal shapes"
        )
    if hasattr(found, "full_tensor") and getattr(found, "placements", None) != getattr(parameter, "placements", None):
        found = found.full_tensor()
    if hasattr(parameter, "device_mesh") and not hasattr(found, "device_mesh"):
        from torch.distributed.tensor import distribute_tensor

        # Every process has all of it, as the equal digests say: no communication.
        whole = found.to(local(parameter).device)
        found = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)  # type: ignore[attr-defined]
    return found.to(device=parameter.device, dtype=parameter.dtype)  # nothing writes to it


def _keys_of(name: str) -> list[str]:
    """What a parameter may be called where one of the two models is held by wrappers, in the order in which it is tried."""
    plain = plain_names(name)
    return plain + [
        f"{prefix}.{plain[-1]}" for prefix in ("module", "_orig_mod", "_orig_mod.module", "module._orig_mod")
    ]


def _share(value: float | Tensor, found_inf: Tensor | None, device: torch.device, dtype: torch.dtype) -> float | Tensor:
    """Return the share, 0 if the step is skipped: a number, which one call for all tensors takes, if that is known."""
    if found_inf is None and not isinstance(value, Tensor):
        return value
    made = unless_skipped(value, 0.0, found_inf, device, dtype)
    return float(made) if device.type == "cpu" else made


def _pull(tensors: list[Tensor], targets: list[Tensor], share: float | Tensor) -> None:
    """Move ``tensors`` by ``share`` of the way to ``targets`` in place, in float32 for narrower types."""
    pairs = [(local(tensor), local(target)) for tensor, target in zip(tensors, targets, strict=True)]
    wide = [pair for pair in pairs if pair[0].dtype not in LOW]
    if isinstance(share, Tensor):
        for mine, theirs in wide:
            mine.lerp_(theirs, share.to(mine.dtype))
    elif wide:
        torch._foreach_lerp_([mine for mine, _ in wide], [theirs for _, theirs in wide], share)
    for mine, theirs in pairs:
        if mine.dtype in LOW:
            mine.copy_(torch.lerp(mine.float(), theirs.float(), share))
