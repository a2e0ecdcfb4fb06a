"""How an answer is carried out on tensors, apart from an optimizer's own decay: one file per kind of part.

An action is told before and after each step which parameters are concerned. `halflife.optim.apply` decides when.
"""

from __future__ import annotations

from typing import Literal

from halflife.optim.actions.accumulate import Accumulate
from halflife.optim.actions.base import Action, Work
from halflife.optim.actions.cautious import MaskedShrink
from halflife.optim.actions.penalty import AddToGradient, AddToMoment
from halflife.optim.actions.rescale import Rescale
from halflife.optim.actions.shrink import Shrink
from halflife.optim.actions.toward import Pull
from halflife.rules import L2, Cautious, Penalty, Rule, Toward
from halflife.rules.base import Part

LowPrecision = Literal["accumulate", "stochastic", "error"] | None
ACCUMULATING = ("accumulate", "stochastic")

__all__ = ["ACCUMULATING", "Action", "LowPrecision", "Work", "action_for"]


def action_for(part: Part, low_precision: LowPrecision = None) -> Action:
    """Return a new action that carries out a part.

    Args:
        part: A rule, an applier or a penalty.
        low_precision: What becomes of decay that rounding would take away.

    Returns:
        The action, for one optimizer.
    """
    if isinstance(part, Cautious):
        return MaskedShrink()
    if isinstance(part, Toward):
        return Pull(part.reference)
    if isinstance(part, L2) and part.into != "both":
        return AddToMoment(first=part.into == "first")
    if isinstance(part, Penalty):
        return AddToGradient()
    if isinstance(part, Rule) and part.needs & {"weight_norm", "net_norm"}:
        return Rescale(part)
    if low_precision in ACCUMULATING:
        return Accumulate(random=low_precision == "stochastic")
    return Shrink()
