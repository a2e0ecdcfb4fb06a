"""A schedule from the text that it prints as."""

from __future__ import annotations

from typing import cast

from halflife.errors import UserError
from halflife.expressions import build
from halflife.schedules.composed import Schedule, join, piecewise, product, tied_to_lr, warmup_stable_decay
from halflife.schedules.shapes import after, constant, cosine, linear, restarts, until, warmup

__all__ = ["SCHEDULES", "schedule_from"]

SCHEDULES = {
    made.__name__: made
    for made in (
        after,
        constant,
        cosine,
        join,
        linear,
        piecewise,
        product,
        restarts,
        tied_to_lr,
        until,
        warmup,
        warmup_stable_decay,
    )
}


def schedule_from(text: str) -> Schedule:
    """The schedule that prints as ``text``.

    Args:
        text: An expression of the names of `halflife.schedules`.

    Returns:
        The schedule.

    Raises:
        UserError: The text is no such expression.

    Examples:
        >>> schedule_from("warmup_stable_decay(2, 3, 4)")(7)
        0.5
        >>> repr(schedule_from(repr(cosine(1.0, 0.0, 10)))) == repr(cosine(1.0, 0.0, 10))
        True
    """
    made = build(text, SCHEDULES, "the schedule")
    if not callable(made):
        raise UserError(f"the schedule is {text!r}, expected one of {', '.join(sorted(SCHEDULES))}")
    return cast("Schedule", made)
