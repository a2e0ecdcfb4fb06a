"""What `explain` says of a parameter, against the truth."""

from __future__ import annotations

import math
from typing import Any

from tests.laws.adversaries.truth import Truth

__all__ = ["RIGHT", "UNKNOWN", "near", "verdict"]

RIGHT, UNKNOWN = "right", "not probed"


def near(got: float | None, wanted: float, tolerance: float) -> bool:
    return got is not None and math.isfinite(got) and abs(got - wanted) <= tolerance * abs(wanted)


def verdict(row: dict[str, Any], truth: Truth, tolerance: float | None = None) -> str:
    """`RIGHT`, `UNKNOWN` ("not probed"), or a sentence of what is wrong."""
    if tolerance is None:  # a fraction that is measured on weights of 16 bits is not sharper
        tolerance = 2e-2 if row["dtype"] in {"bfloat16", "float16"} else 1e-3
    said = f"decays {row['decays']}, law {row['law']}, lam {row['lam']}, r {row['r']}, half_life {row['half_life']}"
    if row["decays"] is None:
        if row["r"] is None and row["half_life"] is None:
            return UNKNOWN
        return f"not probed, and yet a number is given: {said}"
    if truth.form == "any":
        return RIGHT
    if truth.form == "elsewhere" and row["decays"] is False:
        return RIGHT
    if truth.form == "still":
        return RIGHT if row["decays"] is False else f"nothing is removed, but told: {said}"
    if row["decays"] is False:
        return f"it {truth.form} (r {truth.r[:1]}), but told: {said} ({row['why']})"
    if truth.form in {"other", "elsewhere"}:
        named = row["law"] in {"decoupled", "l2"}
        return f"it is not a fixed fraction toward 0, but told: {said}" if named else RIGHT
    every = row.get("every", truth.every)
    if truth.form == "shrinks" and row["r"] is not None and every != truth.every:
        return f"it acts at every call of {truth.every}, but told: every {every}, {said}"
    if row["r"] is None:
        return RIGHT
    lives = [truth.half_life, *(truth.every * math.log(2.0) / -math.log1p(-r) for r in truth.r if r < 1.0)]
    r = any(near(row["r"], r, tolerance) for r in truth.r)
    life = row["half_life"] is None or any(near(row["half_life"], life, max(tolerance, 2e-3)) for life in lives)
    if truth.form == "moves":
        meant = row["half_life"] or every * math.log(2.0) / -math.log1p(-row["r"])
        known = (r and life) or near(meant, truth.half_life, 0.05)
        return RIGHT if known else f"no fraction is removed alone, but told: {said}; half-life {truth.half_life:.5g}"
    if not r:
        return f"r is {truth.r}, but told: {said}"
    return RIGHT if life else f"the half-life is {truth.half_life:.6g}, but told: {said}"
