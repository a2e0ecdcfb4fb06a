"""Schedules: pure functions from the step to a multiplier of the decay.

Each is a small frozen value that is called with the number of steps already taken (0 at the first step) and
returns a multiplier >= 0. There is no state: a run resumes from one integer, and a schedule is plotted without
training. The classes are written in lower case because they are used as functions, and their ``repr`` is the
expression that builds them, which is also how a checkpoint names them.

Examples:
    >>> early = until(1000)
    >>> early(999), early(1000)
    (1.0, 0.0)
    >>> join((warmup(10), cosine(1.0, 0.1, 90)), (10,))(5)
    0.5
"""

from __future__ import annotations

from halflife.schedules.composed import Schedule, join, piecewise, product, tied_to_lr, warmup_stable_decay
from halflife.schedules.shapes import after, constant, cosine, exponential, linear, restarts, until, warmup

__all__ = [
    "Schedule",
    "after",
    "constant",
    "cosine",
    "exponential",
    "join",
    "linear",
    "piecewise",
    "product",
    "restarts",
    "tied_to_lr",
    "until",
    "warmup",
    "warmup_stable_decay",
]


def __dir__() -> list[str]:
    return sorted(__all__)
