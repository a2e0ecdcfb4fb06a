"""The sign of the update that an optimizer is about to make, where it is known before the step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RAdam

__all__ = ["Direction", "direction_of"]


class Direction(NamedTuple):
    """The update of a parameter has the sign of ``memory + gain * gradient``, elementwise.

    Args:
        memory: What the optimizer remembers; None stands for 0.
        gain: Multiplies the gradient; a tensor where GradScaler has left it scaled.
    """

    memory: Tensor | None
    gain: float | Tensor


def direction_of(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Direction | None:
    """Return the direction of the coming update of a parameter with a gradient; None if it is not known.

    Adam divides its first moment by something positive, so the moment after this step,
    ``beta1 * m + (1 - beta1) * g``, has the sign of the update. SGD's update is its momentum buffer, or with
    nesterov ``g + momentum * buffer``.

    Args:
        optimizer: The optimizer; only exact types of torch are known.
        group: The parameter's group.
        parameter: The parameter.
    """
    if parameter.grad is not None and parameter.grad.is_sparse:  # no arithmetic with dense weights
        return None
    kind = type(optimizer)
    state = optimizer.state.get(parameter, {})
    if kind in {Adam, AdamW, RAdam}:
        beta1 = float(group["betas"][0])
        memory, kept, taken = state.get("exp_avg"), beta1, 1.0 - beta1
    elif kind is SGD:
        momentum, damped = float(group["momentum"]), 1.0 - float(group["dampening"])
        memory, kept, taken = state.get("momentum_buffer"), momentum, damped
        if group["nesterov"]:  # g + momentum * (momentum * buffer + damped * g)
            kept, taken = momentum**2, 1.0 + momentum * damped
    else:
        return None
    gain: float | Tensor = -1.0 if group.get("maximize") else 1.0
    if memory is None or kept == 0.0:
        memory = None
    else:
        gain *= taken / kept
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        gain = gain / (float(scale) if scale.device.type == "cpu" else scale)
    return Direction(memory, gain)
