"""The rules: each answers which fraction of the weight is removed at a step (no torch needed here)."""

from __future__ import annotations

from halflife.rules.base import LamRule, Penalty, Rule, StepInfo, law_text
from halflife.rules.basic import Constant, Corrected, Decoupled, HalfLife, Independent
from halflife.rules.penalty import L2
from halflife.rules.wrappers import PerGroup, Scheduled

__all__ = [
    "L2",
    "Constant",
    "Corrected",
    "Decoupled",
    "HalfLife",
    "Independent",
    "LamRule",
    "Penalty",
    "PerGroup",
    "Rule",
    "Scheduled",
    "StepInfo",
    "law_text",
]
