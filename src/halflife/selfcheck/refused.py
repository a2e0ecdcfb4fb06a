"""Which optimizers must refuse which rules, and a part of the sentence that must say so."""

from __future__ import annotations

from torch import optim

from halflife.selfcheck.optimizers import MUON, OptimizerCase

__all__ = [
    "any_stable",
    "moment",
    "needs_own",
    "own_penalty",
    "own_stable",
    "penalty",
    "per_group",
    "per_group_stable",
    "stable",
]

Refusal = str | None


def needs_own(case: OptimizerCase) -> Refusal:
    """Rules that take each group's own value need one."""
    return None if case.own else "takes each group's own weight_decay, but this optimizer has none"


def per_group(case: OptimizerCase) -> Refusal:
    """PerGroup needs a rule for each group: the rows have three, and some optimizers take one group."""
    return "PerGroup has 3 rules" if case.layout in {"one group", "sparse"} else None


def per_group_stable(case: OptimizerCase) -> Refusal:
    """Both."""
    return per_group(case) or stable(case)


def stable(case: OptimizerCase) -> Refusal:
    """Stable knows two kinds of optimizers."""
    if case.kind is MUON:
        return "Stable cannot be attached to Muon"
    if case.settings.get("amsgrad"):
        return "Stable cannot be attached with amsgrad=True"
    known = optim.SGD, optim.Adam, optim.NAdam, optim.RAdam
    return None if issubclass(case.kind, known) else "Stable knows SGD and the Adam family of torch"


def any_stable(case: OptimizerCase) -> Refusal:
    """With a given beta2 it serves any, where a running mean of squared gradients means something."""
    if case.kind is optim.SparseAdam:
        return "Stable cannot follow sparse gradients"
    return stable(case) if case.kind is MUON or case.settings.get("amsgrad") else None


def own_stable(case: OptimizerCase) -> Refusal:
    """Both."""
    return stable(case) or needs_own(case)


def penalty(case: OptimizerCase) -> Refusal:
    """A penalty must be part of a dense gradient, and of the loss of a line search."""
    if case.kind is optim.LBFGS:
        return "an L2 penalty cannot be attached to LBFGS"
    return "an L2 penalty would make sparse gradients dense" if case.layout == "sparse" else None


def own_penalty(case: OptimizerCase) -> Refusal:
    """The same, with each group's own value."""
    return needs_own(case) if case.layout == "sparse" else penalty(case) or needs_own(case)


def moment(case: OptimizerCase) -> Refusal:
    """Only Adam has two moments."""
    if case.kind is optim.LBFGS:
        return "an L2 penalty cannot be attached to LBFGS"
    return None if case.kind in {optim.Adam, optim.AdamW} else "enters one of Adam's two moments"
