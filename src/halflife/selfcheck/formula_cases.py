"""The rules that depend on plain numbers only, each with its formula from the paper."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from halflife.rules import Constant, Corrected, Decoupled, HalfLife, Independent, Normalized, PerGroup, Rule, Scheduled
from halflife.schedules import (
    after,
    cosine,
    join,
    linear,
    piecewise,
    restarts,
    tied_to_lr,
    until,
    warmup,
    warmup_stable_decay,
)
from halflife.selfcheck.formulas import Formula, wave
from halflife.units import batch_scaled

__all__ = ["ALIKE", "FORMULAS", "LAM", "SHARE", "SHARES", "UNLIKE", "FormulaCase"]

LAM = 3.0  # r up to 0.3, so that a wrong factor shows in bfloat16 too
SHARE = 0.3  # where lam is the fraction itself
ALIKE, UNLIKE, SHARES = (LAM, LAM), (LAM, 2.0), (SHARE, 0.2)


@dataclass(frozen=True)
class FormulaCase:
    """A rule that depends on plain numbers only, and the same from the paper.

    Args:
        name: A short name.
        rule: The rule.
        formula: What it must answer.
        own: The weight decay of the groups that decay.
        numbers: Further arguments of ``attach``.
    """

    name: str
    rule: Rule
    formula: Formula
    own: tuple[float, float] = ALIKE
    numbers: dict[str, float] = field(default_factory=dict)


def _period(t: int) -> tuple[int, int]:
    """Return steps since the last restart, and the length of the period: the i-th begins at 2 * (2^i - 1)."""
    i = (t // 2 + 1).bit_length() - 1
    return t - 2 * (2**i - 1), 2 ** (i + 1)


FORMULAS = [
    FormulaCase("decoupled", Decoupled(LAM), lambda lr, peak, own, t, group: lr * LAM),
    FormulaCase("decoupled, own", Decoupled(), lambda lr, peak, own, t, group: lr * own, UNLIKE),
    FormulaCase("independent", Independent(SHARE), lambda lr, peak, own, t, group: lr / peak * SHARE),
    FormulaCase("independent, own", Independent(), lambda lr, peak, own, t, group: lr / peak * own, SHARES),
    FormulaCase("constant", Constant(SHARE / 2), lambda lr, peak, own, t, group: SHARE / 2),
    FormulaCase("corrected", Corrected(LAM), lambda lr, peak, own, t, group: lr * lr / peak * LAM),
    FormulaCase("corrected, own", Corrected(), lambda lr, peak, own, t, group: lr * lr / peak * own, UNLIKE),
    FormulaCase("half-life, steps", HalfLife(steps=3), lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 3)),
    FormulaCase(
        "half-life, epochs",
        HalfLife(epochs=2),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 5),
        numbers={"steps_per_epoch": 2.5},
    ),
    FormulaCase(
        "half-life, tokens",
        HalfLife(tokens=70),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 7),
        numbers={"tokens_per_step": 10},
    ),
    FormulaCase(
        "normalized", Normalized(0.9, steps=9), lambda lr, peak, own, t, group: lr / peak * 0.9 * math.sqrt(1 / 9)
    ),
    FormulaCase(  # periods of 2, 4, 8 ... steps: AdamWR
        "normalized, restarts",
        Normalized(0.4, steps=2, factor=2),
        lambda lr, peak, own, t, group: lr / peak * 0.4 / math.sqrt(_period(t)[1]),
    ),
    FormulaCase(
        "batch-scaled", Decoupled(batch_scaled(LAM, 32, 64)), lambda lr, peak, own, t, group: lr * LAM * 32 / 64
    ),
    FormulaCase("until", Scheduled(Decoupled(LAM), until(2)), lambda lr, peak, own, t, group: lr * LAM * (t < 2)),
    FormulaCase("after", Scheduled(Decoupled(LAM), after(2)), lambda lr, peak, own, t, group: lr * LAM * (t >= 2)),
    FormulaCase(
        "cosine",
        Scheduled(Independent(SHARE), cosine(1.0, 0.2, 4)),
        lambda lr, peak, own, t, group: lr / peak * SHARE * (0.2 + 0.8 * wave(min(t, 4) / 4)),
    ),
    FormulaCase(
        "linear",
        Scheduled(Decoupled(LAM), linear(0.0, 1.0, 4)),
        lambda lr, peak, own, t, group: lr * LAM * min(t, 4) / 4,
    ),
    FormulaCase(
        "warm-up, then cosine",
        Scheduled(Decoupled(LAM), join((warmup(2), cosine(1.0, 0.0, 4)), (2,))),
        lambda lr, peak, own, t, group: lr * LAM * (t / 2 if t < 2 else wave(min(t - 2, 4) / 4)),
    ),
    FormulaCase(
        "warm-up, stable, decay",
        Scheduled(Decoupled(LAM), warmup_stable_decay(2, 2, 4)),
        lambda lr, peak, own, t, group: lr * LAM * (t / 2 if t < 2 else 1.0 if t < 4 else max(0.0, (8 - t) / 4)),
    ),
    FormulaCase(
        "piecewise",
        Scheduled(Decoupled(LAM), piecewise((1.0, 0.5, 0.8), (1, 4))),
        lambda lr, peak, own, t, group: lr * LAM * (1.0 if t < 1 else 0.5 if t < 4 else 0.8),
    ),
    FormulaCase(  # periods of 2, 4, 8 ... steps
        "restarts",
        Scheduled(Constant(SHARE), restarts(2, 2, 1.0, 0.5)),
        lambda lr, peak, own, t, group: SHARE * (0.5 + 0.5 * wave(_period(t)[0] / _period(t)[1])),
    ),
    FormulaCase(
        "tied to lr",
        Scheduled(Decoupled(), tied_to_lr(2)),
        lambda lr, peak, own, t, group: lr * own * (lr / peak) ** 2,
        UNLIKE,
    ),
    FormulaCase(
        "per group",
        PerGroup([Decoupled(LAM), Constant(0.1), Decoupled(9.0)]),
        lambda lr, peak, own, t, group: (lr * LAM, 0.1, lr * 9.0)[group],
    ),
]
