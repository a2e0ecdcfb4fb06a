"""The sign of the update that an optimizer is about to make, where it is known before the step."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.known import facts_of

__all__ = ["Direction", "direction_of"]


class Direction(NamedTuple):
    """The update of a parameter has the sign of ``memory + gain * gradient``, elementwise.

    Args:
        memory: What the optimizer remembers; None stands for 0.
        gain: Multiplies the gradient; a tensor where GradScaler has left it scaled.
        first: Whether the optimizer will have a memory from the next step on.
    """

    memory: Tensor | None
    gain: float | Tensor
    first: bool


def direction_of(optimizer: Optimizer, group: dict[str, Any], parameter: Tensor) -> Direction | None:
    """Return the direction of the coming update of a parameter with a gradient; None if it is not known.

    Args:
        optimizer: The optimizer; `halflife.optim.known` has the classes whose direction is known.
        group: The parameter's group.
        parameter: The parameter.
    """
    describe = facts_of(type(optimizer)).memory
    if describe is None or (parameter.grad is not None and parameter.grad.is_sparse):
        return None  # a sparse gradient has no arithmetic with dense weights
    key, kept, taken = describe(group)
    memory = optimizer.state.get(parameter, {}).get(key)
    gain: float | Tensor = -1.0 if group.get("maximize") else 1.0
    if memory is None or kept == 0.0:
        memory = None
    else:
        gain *= taken / kept
    scale: Tensor | None = getattr(optimizer, "grad_scale", None)
    if scale is not None:
        gain = gain / (float(scale) if scale.device.type == "cpu" else scale)
    return Direction(memory, gain, first=memory is None and kept != 0.0)
