"""Which parameters decay: kinds of parameters, policies, patterns, and the groups that are built from them."""

from __future__ import annotations

from halflife.groups.build import Groups, Policy, param_groups
from halflife.groups.policies import KINDS, POLICIES, kind_of

__all__ = ["KINDS", "POLICIES", "Groups", "Policy", "kind_of", "param_groups"]
