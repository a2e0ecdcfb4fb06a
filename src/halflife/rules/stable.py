"""Stable weight decay: the fraction follows the size of the steps that the optimizer takes."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from halflife.numbers import check_non_negative, check_share
from halflife.rules.base import LamRule, StepInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Stable"]


@dataclass(frozen=True, repr=False)
class Stable(LamRule):
    """Remove a fraction in proportion to the effective learning rate of the optimizer (AdamS, SGDS).

    The Adam family divides its steps by the root of the second moment ``v``, so the decay is divided by it
    too, with one number for the whole net::

        r = lr * lam / max(sqrt(v_mean), floor * lam)

    where ``v_mean`` is the mean of the bias-corrected ``v`` over all parameters of all groups of the
    optimizer that have a gradient, those without decay included, with this step's gradient in it. SGD with
    momentum ``mu`` and dampening ``d`` makes steps that are ``(1 - d) / (1 - mu)`` times larger than its
    learning rate says::

        r = lr * lam * (1 - d) / (1 - mu)

    (without momentum torch ignores the dampening, and so does this rule). No copy of Adam is needed: the mean
    of ``v`` obeys the recursion of ``v`` itself, so that one gradient norm per tensor is enough.

    The floor is a deviation from the published code, which divides by ``sqrt(v_mean)`` however small it is:
    where a net interpolates its data the gradients vanish, ``r`` passes 1 and the weights change sign. With
    the floor ``r <= lr / floor``: at the default 0.1 the decay is never stronger than AdamW's with
    ``weight_decay=10``. ``floor=0`` gives the published rule, and a step that would remove everything is
    then refused.

    Source: Xie et al. 2023, "Understanding and Scheduling Weight Decay" (arXiv 2011.11152), AdamS and SGDS.

    Unit: Adam family: ``lam`` is gradient / lr; SGD: 1 / lr. ``floor`` is lr-equivalent per fraction: a
    dimensionless number.

    Matches: a scalar AdamS and SGDS written out (``tests/optim/test_xie.py``, ``tests/optim/test_stable.py``).

    Args:
        lam: The coefficient, >= 0; None takes each group's own ``weight_decay``.
        floor: Keeps ``r`` at or below ``lr / floor``; 0 removes it.
        beta2: The decay of the running mean, for optimizers that have no Adam-like ``betas``; None reads it
            from each group. Given, the rule runs on any optimizer, as if it were Adam.

    Raises:
        UserError: If ``lam`` or ``floor`` is negative, infinite or NaN, or ``beta2`` is outside [0, 1).

    Examples:
        >>> Stable(5e-4).fraction(StepInfo(lr=0.5, second_moment=0.25))
        0.0005
        >>> Stable(5e-4).fraction(StepInfo(lr=0.5, momentum=0.75, dampening=0.0))
        0.001
        >>> Stable(0.5, floor=0.25).fraction(StepInfo(lr=0.125, second_moment=0.0))  # the floor: lr / 0.25
        0.5
    """

    floor: float = 0.1
    beta2: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "floor", check_non_negative("floor", self.floor))
        if self.beta2 is not None:
            object.__setattr__(self, "beta2", check_share("beta2", self.beta2))

    @property
    def needs(self) -> frozenset[str]:
        """The second moment, in groups of the Adam family."""
        return super().needs | {"second_moment"}

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return the fraction of AdamS, or of SGDS where the group has a momentum."""
        lam = self.lam_of(info)
        if not math.isnan(info.momentum):
            factor = (1.0 - info.dampening) / (1.0 - info.momentum) if info.momentum else 1.0
            return info.lr * lam * factor
        least = self.floor * lam
        if not isinstance(info.second_moment, int | float):
            return info.lr * lam / (info.second_moment**0.5).clamp(min=least)
        divisor = max(math.sqrt(info.second_moment), least)
        if divisor == 0.0:  # no gradient was ever different from 0, and no floor
            return 0.0 if lam == 0.0 else math.inf
        return info.lr * lam / divisor
