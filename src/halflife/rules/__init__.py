"""The rules: each gives the fraction of the weight that a step removes. Nothing here needs torch.

A file of rules lists them in its ``__all__``, and one line here makes them public.
"""

from __future__ import annotations

from halflife.rules.appliers import *
from halflife.rules.base import Applier as Applier
from halflife.rules.base import LamRule as LamRule
from halflife.rules.base import Part as Part
from halflife.rules.base import Penalty as Penalty
from halflife.rules.base import Rule as Rule
from halflife.rules.base import StepInfo as StepInfo
from halflife.rules.basic import *
from halflife.rules.norms import *
from halflife.rules.penalty import *
from halflife.rules.registry import part_classes as _part_classes
from halflife.rules.registry import rule_from as rule_from
from halflife.rules.stable import *
from halflife.rules.wrappers import *

__all__ = sorted(
    (*_part_classes(), "Applier", "LamRule", "MovingAverage", "Part", "Penalty", "Rule", "StepInfo", "rule_from")
)


def __dir__() -> list[str]:
    return sorted(__all__)
