"""Which parameters decay: kinds of parameters, policies, patterns, and the groups that are built from them."""

from __future__ import annotations

from halflife.groups.build import Decision, Groups, Policy, decide, param_groups
from halflife.groups.policies import KINDS, POLICIES, kind_of

__all__ = ["KINDS", "POLICIES", "Decision", "Groups", "Policy", "decide", "kind_of", "param_groups"]


def __dir__() -> list[str]:
    return sorted(__all__)
