"""A rule or a penalty from the text that it prints as."""

from __future__ import annotations

from halflife.errors import UserError
from halflife.expressions import build
from halflife.rules.appliers import Cautious, Toward
from halflife.rules.base import Part
from halflife.rules.basic import Constant, Corrected, Decoupled, HalfLife, Independent, Normalized
from halflife.rules.norms import NormTarget, Sphere
from halflife.rules.penalty import L2
from halflife.rules.stable import Stable
from halflife.rules.wrappers import Scheduled
from halflife.schedules.parse import SCHEDULES

__all__ = ["RULES", "rule_from"]

RULES = {
    made.__name__: made
    for made in (
        L2, Cautious, Constant, Corrected, Decoupled, HalfLife, Independent, NormTarget, Normalized, Scheduled, Sphere, Stable,
        Toward,
    )
}  # fmt: skip


def rule_from(text: str) -> Part:
    """The rule or penalty that prints as ``text``.

    Args:
        text: An expression of the names of `halflife.rules` and `halflife.schedules`.

    Returns:
        What `halflife.attach` takes.

    Raises:
        UserError: The text is no such expression.

    Examples:
        >>> rule_from("Scheduled(Decoupled(0.1), until(1000))").parts().__next__().inner
        Decoupled(lam=0.1)
    """
    made = build(text, {**SCHEDULES, **RULES}, "the decay")
    if not isinstance(made, Part):
        raise UserError(f"the decay is {text!r}, expected one of {', '.join(sorted(RULES))}")
    return made
