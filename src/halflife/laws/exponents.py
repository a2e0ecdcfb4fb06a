"""How a fraction grows with the learning rate, its peak and the weight decay."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from halflife.laws.law import RULE_EXPONENTS, Law
from halflife.laws.pairs import Pairs, Reading
from halflife.laws.probe import NO_RATE, Condition, NoRateError
from halflife.laws.scaling import LEAST

__all__ = ["with_exponents"]

# r at a large weight decay, as a function of x: the r that small weight decays extrapolate to.
BENDS: dict[str, Callable[[float], float]] = {
    "": lambda x: x,
    "a large weight decay takes x / (1 + x), with x = the r given here: the step is implicit": lambda x: x / (1.0 + x),
    "a large weight decay takes 1 - (1 - x/2)^2, with x = the r given here: it is applied twice": (
        lambda x: x - x * x / 4.0
    ),
    "a large weight decay takes 1 - exp(-x), with x = the r given here": lambda x: -math.expm1(-x),
}
LARGE, SMALL = 20.0, 0.002
BENT = 1e-5  # a larger relative difference between r and twice the r of half the weight decay is a bend


def with_exponents(pairs: Pairs, law: Law, first: Reading) -> Law:
    """Add exponents, coefficient and name to a law.

    Args:
        pairs: The paired runs.
        law: What is known so far.
        first: The fraction at the plain condition.

    Returns:
        The law; ``"other"`` where r is not a power of the learning rate or not linear in the weight decay, and where the
        groups have no learning rate.
    """
    try:
        pairs.reading(Condition(lr=0.5))
    except NoRateError:
        return _without_rate(pairs, law, first)
    # Where r is not quite linear in the weight decay, the exponents are not quite right: measure them at a small one.
    found = _exponents(pairs, first, 1.0)
    clean = not isinstance(found, str) and all(2.0 * each == round(2.0 * each) for each in found)
    if pairs.bench.exact and not clean and not pairs.slot.attached:
        small = pairs.reading(Condition(lam=SMALL))
        finer = _exponents(pairs, small, SMALL) if small.like(first) else found
        found = finer if not isinstance(finer, str) else found
    if isinstance(found, str):
        return Law(pathway="other", notes=(found,))
    a, b = found
    slot, notes, coefficient = pairs.slot, list(law.notes), None
    if slot.attached and slot.depends_on_lam:
        coefficient = _coefficient(pairs, first.r / slot.lam, a, b)
    elif slot.depends_on_lam:
        slope, bend = _slope(pairs, first)
        if math.isnan(slope):
            return Law(pathway="other", notes=(bend,))
        coefficient = _coefficient(pairs, slope / slot.lam, a, b)
        notes += [bend] if bend else []
    name = law.name or next((n for n, ab in RULE_EXPONENTS.items() if ab == (a, b) and coefficient == 1.0), None)
    return replace(law, lr_exponent=a, peak_lr_exponent=b, coefficient=coefficient, name=name, notes=tuple(notes))


def _without_rate(pairs: Pairs, law: Law, first: Reading) -> Law:
    """Return what can be told where the optimizer chooses its learning rate: the fraction of its first steps."""
    entry = (
        "lam * w is added to the gradient"
        if law.pathway == "l2" and not law.equivalent_to
        else "it shrinks the weights"
    )
    note = f"{entry} by r = {{r:.4g}} in its first steps; {NO_RATE}, which could tell how r changes in a run"
    return Law(pathway="other", fraction=first.r, notes=(note.format(r=first.r), *law.notes))


def _exponents(pairs: Pairs, first: Reading, lam: float) -> tuple[float, float] | str:
    """Return (a, b), or why there are none."""
    conditions = [Condition(lam=lam, lr=0.5), Condition(lam=lam, lr=0.25), Condition(lam=lam, peak_lr=2.0)]
    readings = [pairs.reading(condition) for condition in conditions]
    if any(not reading.like(first) or reading.r * first.r <= 0.0 for reading in readings):
        return "its form changes with the learning rate: " + ", ".join(each.form for each in (first, *readings))
    half, quarter, doubled = (reading.r for reading in readings)
    a, a_below, b = math.log2(first.r / half), math.log2(half / quarter), math.log2(doubled / first.r)
    if abs(a - a_below) > 10 * pairs.tolerance:
        return f"r is not a power of lr: {first.r:.4g}, {half:.4g}, {quarter:.4g} at lr, lr/2, lr/4"
    return _nearby(a, pairs.tolerance), _nearby(b, pairs.tolerance)


def _slope(pairs: Pairs, first: Reading) -> tuple[float, str]:
    """Return the r of a vanishing weight decay, scaled to the plain one, and a note on what a large one does."""
    half, large = pairs.reading(Condition(lam=0.5)), pairs.reading(Condition(lam=LARGE))
    if not half.like(first) or not abs(half.r / first.r - 0.5) < 0.05:
        return math.nan, f"r is not linear in weight_decay: half the value, {half.r / first.r:.4g} times the r"
    slope = 4.0 * half.r - first.r  # without the quadratic term of r = 1 - (1 - x/2)^2
    if pairs.bench.exact and abs(2.0 * half.r / first.r - 1.0) > BENT:  # without the higher ones too
        small, smaller = pairs.reading(Condition(lam=SMALL)), pairs.reading(Condition(lam=SMALL / 2))
        slope = (4.0 * smaller.r - small.r) / SMALL
    for note, bend in BENDS.items():
        if large.like(first) and abs(large.r / bend(LARGE * slope) - 1.0) < 10 * pairs.tolerance:
            return slope, note
    return slope, f"it is not linear in weight_decay: {LARGE:g} times the value, {large.r / first.r:.4g} times the r"


def _coefficient(pairs: Pairs, per_lam: float, a: float, b: float) -> float:
    """Return c, with the peak that makes it 1 if there is one."""
    found = [per_lam / (pairs.slot.lr**a * peak**b) for peak in pairs.slot.peaks if peak >= LEAST or b == 0.0]
    rounded = [_nearby(each, pairs.tolerance * min(1.0, abs(each))) for each in found]
    return 1.0 if 1.0 in rounded else rounded[0]


def _nearby(value: float, tolerance: float) -> float:
    """Return the nearest half where the value is one within what was measured."""
    near = round(2.0 * value) / 2.0
    return near + 0.0 if abs(value - near) <= tolerance else float(f"{value:.6g}")
