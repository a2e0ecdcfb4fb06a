"""What every step of a run does to the weights that decay, read once an epoch.

With w the decayed weights before a step, g the gradient of the loss on its batch and w' the weights after it, of each step:

    fraction = r, the fraction that the decay removed        norm = ||w||
    gradient = ||g||                                         update = ||w' - w||

all tensors together; r is that of the group that decays, 0 for a penalty, and its mean where it differs between tensors.
With an optimizer that keeps a second moment v, ``root_second_moment`` is the mean over the epoch of the root of the mean over
all parameters of v / (1 - beta2^t) after the step. Of each tensor the means over the epoch of

    norm, (norm gradient)^2, gradient / norm, rotation (the angle between w and w', in radians)

Shapes: P tensors, T steps of an epoch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.attaching import Handle
from halflife.optim.norms import squared_norms
from halflife.studies.lab.arrays import floats
from halflife.studies.store.records import Array

__all__ = ["Trace"]


class Trace:
    """Follows the decayed weights through the steps of an epoch.

    Args:
        decayed: The weights by name.
        optimizer: What steps them.
        decay: The handle of the rule (``None``: nothing decays).
    """

    def __init__(self, decayed: Mapping[str, Tensor], optimizer: Optimizer, decay: Handle | None) -> None:
        self.names, self.weights = list(decayed), list(decayed.values())
        self.optimizer, self.decay = optimizer, decay
        self.old: list[Tensor] = []
        self.steps: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        self.fractions: list[float] = []
        self.moments: list[float] = []

    @torch.no_grad()
    def before(self) -> None:
        """Look at weights and gradients before a step; gradients are not scaled."""
        self.old = [weight.detach().double() for weight in self.weights]
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in self.weights]
        self.gradient_P = squared_norms(gradients).sqrt()

    @torch.no_grad()
    def after(self) -> None:
        """Look at the weights after it."""
        new = [weight.detach().double() for weight in self.weights]
        old_P, new_P = squared_norms(self.old).sqrt(), squared_norms(new).sqrt()
        update_P = squared_norms(torch._foreach_sub(new, self.old)).sqrt()
        # Of unit vectors: the cosine of a small angle would be rounded away.
        units = [
            a / a_norm.clamp_min(1e-300) - b / b_norm.clamp_min(1e-300)
            for a, b, a_norm, b_norm in zip(new, self.old, new_P, old_P, strict=True)
        ]
        rotation_P = 2 * (squared_norms(units).sqrt() / 2).clamp(max=1).asin()
        self.steps.append((old_P, self.gradient_P, update_P, rotation_P))
        self.fractions.append(max(self.decay.fractions()) if self.decay is not None else 0.0)
        if (moment := _root_second_moment(self.optimizer)) is not None:
            self.moments.append(moment)

    def read(self) -> tuple[dict[str, float], dict[str, Array]]:
        """The values and arrays of the steps since the last reading, which begins anew."""
        norm_TP, gradient_TP, update_TP, rotation_TP = (torch.stack(rows) for rows in zip(*self.steps, strict=True))
        of_tensors = {
            "norm": norm_TP,
            "norm_gradient_sq": (norm_TP * gradient_TP).square(),
            "gradient_over_norm": gradient_TP / norm_TP.clamp_min(1e-300),
            "rotation": rotation_TP,
        }
        values = {
            f"trace/{name}/{what}": mean
            for what, numbers_TP in of_tensors.items()
            for name, mean in zip(self.names, numbers_TP.mean(dim=0).tolist(), strict=True)
        }
        together = {"norm": norm_TP, "gradient": gradient_TP, "update": update_TP}
        arrays = {f"trace/{what}": floats(each_TP.square().sum(dim=1).sqrt()) for what, each_TP in together.items()}
        arrays["trace/fraction"] = floats(torch.tensor(self.fractions, dtype=torch.float64))
        if self.moments:
            values["trace/root_second_moment"] = sum(self.moments) / len(self.moments)
        for rows in (self.steps, self.fractions, self.moments):
            rows.clear()
        return values, arrays


def _root_second_moment(optimizer: Optimizer) -> float | None:
    """The root of the mean of an optimizer's second moment, its bias corrected; ``None`` where it keeps none."""
    total, count = 0.0, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            step = float(state.get("step", group.get("step", 0)))
            if "exp_avg_sq" not in state or step == 0:  # float16 may skip the first steps
                return None
            total += float(state["exp_avg_sq"].double().sum()) / (1 - group["betas"][1] ** step)
            count += parameter.numel()
    return math.sqrt(max(total, 0.0) / count)
