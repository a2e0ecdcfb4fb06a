"""Settings at which a decay can be measured, for optimizers whose own settings are too small.

At the start of a warm-up and at the end of a cosine ``lr * lam`` may be 1e-12 and less, which no weight shows. The
throw-away copies then run at a larger learning rate or weight decay, and the fraction that is found is scaled back by
the law that is found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from halflife.rules.base import Applier, Rule
from halflife.rules.penalty import L2
from halflife.rules.wrappers import PerGroup, Scheduled

__all__ = ["DEFAULT_LR", "LEAST", "Scale", "base_rate", "lam_factor", "lr_factor", "strengthened"]

DEFAULT_LR = 1e-3  # for an optimizer whose learning rate is 0 everywhere
SMALLEST_LR = 1e-4  # a smaller update is lost in the rounding of the weight
LARGEST_LR = 1e3  # in the update of a larger one, a decay is lost
LEAST = 1e-290  # a smaller number cannot be scaled to a usual one; it counts as 0
FAR_BELOW = 1e-3  # a learning rate below this share of the peak is replaced by the peak
# The smallest fraction of a step that can be measured, and the one that a smaller one is scaled to. Not to a larger
# one: 20 times the weight decay is measured too.
SMALLEST_R = {torch.float64: (1e-7, 1e-5), torch.float32: (5e-3, 5e-3)}


@dataclass(frozen=True)
class Scale:
    """By what the settings of an optimizer are multiplied in its copies; powers of 2, so that nothing is rounded.

    Args:
        lr: Factor of the learning rate and of all its peaks.
        lam: Factor of the weight decay, or of what the attached rule asks for.
    """

    lr: float = 1.0
    lam: float = 1.0


def base_rate(lr: float, peaks: Sequence[float]) -> float:
    """Return the learning rate of a run at which to look: its own, or the peak where its own is far below.

    Args:
        lr: The learning rate now.
        peaks: What may be the largest one, the likeliest first.

    Returns:
        A number > 0; a learning rate below 0 as it is.
    """
    if lr < 0.0:
        return lr
    peak = max(lr, next(iter(peaks), 0.0))
    peak = peak if peak >= LEAST else DEFAULT_LR
    return peak if lr < FAR_BELOW * peak or (lr < SMALLEST_LR <= peak) else lr


def lr_factor(rate: float) -> float:
    """Return by what a learning rate is multiplied so that its updates can be measured.

    Args:
        rate: The learning rate.

    Returns:
        A power of 2.
    """
    return 1.0 if SMALLEST_LR <= abs(rate) <= LARGEST_LR else _power_of_two(DEFAULT_LR, abs(rate))


def lam_factor(r: float, dtype: torch.dtype) -> float:
    """Return by what a decay is multiplied so that it can be measured.

    Args:
        r: The fraction that a step is expected to remove.
        dtype: The precision of the weights.

    Returns:
        A power of 2; 1 if nothing is removed.
    """
    smallest, wanted = SMALLEST_R[dtype]
    return 1.0 if abs(r) >= smallest or r == 0.0 else _power_of_two(wanted, abs(r))


def _power_of_two(wanted: float, number: float) -> float:
    """Return the least power of 2 that takes a number to a wanted one; their quotient may be more than a float holds."""
    return 2.0 ** max(-1000, min(1000, math.ceil(math.log2(wanted) - math.log2(number))))


def strengthened(rule: Any, factor: float) -> Any:
    """Return a rule that asks for a multiple of what a rule asks for.

    Args:
        rule: The rule.
        factor: The multiple.

    Returns:
        The rule itself where no multiple of it can be taken: those that set the norm of the weights.
    """
    if factor == 1.0:
        return rule
    if isinstance(rule, PerGroup):
        return replace(rule, rules=[strengthened(each, factor) for each in rule.rules])
    if isinstance(rule, Applier):
        return replace(rule, inner=strengthened(rule.inner, factor))
    if isinstance(rule, L2):
        schedule = rule.schedule
        return replace(rule, schedule=lambda step: factor if schedule is None else factor * schedule(step))
    if isinstance(rule, Rule) and not rule.needs & {"weight_norm", "net_norm"}:
        return Scheduled(rule, lambda step: factor)
    return rule
