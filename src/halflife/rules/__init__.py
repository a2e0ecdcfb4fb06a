"""The rules: each gives the fraction of the weight that a step removes. Nothing here needs torch."""

from __future__ import annotations

from halflife.rules.appliers import Cautious, MovingAverage, Toward
from halflife.rules.base import Applier, LamRule, Part, Penalty, Rule, StepInfo
from halflife.rules.basic import Constant, Corrected, Decoupled, HalfLife, Independent, Normalized
from halflife.rules.norms import NormTarget, Sphere
from halflife.rules.penalty import L2
from halflife.rules.registry import rule_from
from halflife.rules.stable import Stable
from halflife.rules.wrappers import PerGroup, Scheduled

__all__ = [
    "L2",
    "Applier",
    "Cautious",
    "Constant",
    "Corrected",
    "Decoupled",
    "HalfLife",
    "Independent",
    "LamRule",
    "MovingAverage",
    "NormTarget",
    "Normalized",
    "Part",
    "Penalty",
    "PerGroup",
    "Rule",
    "Scheduled",
    "Sphere",
    "Stable",
    "StepInfo",
    "Toward",
    "rule_from",
]
