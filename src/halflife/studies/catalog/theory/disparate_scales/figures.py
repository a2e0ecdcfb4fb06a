"""The points and lines that the study `disparate-scales` draws."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from halflife.studies.catalog.theory.disparate_scales import quantities as rules
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.quantities import NotMeasuredError, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import rows_of

__all__ = [
    "added_loss",
    "lost_signs",
    "neuron_losses",
    "offsets_along_the_run",
    "saved_bits",
    "tolerated_offsets",
    "variances",
]

LEAST_DRAWN = -2  # exponent of the smallest spacing at which what an offset adds to the loss is more than chance


def _line(series: str, places: Sequence[tuple[float, float]]) -> list[PointRow]:
    return [PointRow(series, x, y, style="line") for x, y in places]


def lost_signs(results: Results) -> list[PointRow]:
    """Lost signs against the offset, in per cent, with the binomial intervals of all seeds' sums (Clopper and Pearson)."""
    from scipy.special import betaincinv  # here as in `stats`

    size, rows = results.main_size, []
    spec = rules.scales_spec(results, rules.SUM, size)
    for k in spec.bits:
        series = f"{k} bits"
        rows += _line(series, [(rules.offset_of(k, e), 100 * rules.lost_share(2.0**e)) for e in spec.log2_ulps])
        for e in spec.log2_ulps:
            shares_S = results.read(rules.SUM, f"lost/{k}/{e}", size)
            count = spec.last_step * spec.batch_size * len(shares_S)
            lost = round(float(shares_S.mean()) * count)
            if lost:  # none has no place on a logarithmic axis
                low = float(betaincinv(lost, count - lost + 1, 0.025))
                high = float(betaincinv(lost + 1, count - lost, 0.975)) if lost < count else 1.0
                rows.append(PointRow(series, rules.offset_of(k, e), 100 * lost / count, 100 * low, 100 * high))
    return rows


def variances(results: Results) -> list[PointRow]:
    """The variance of the error against the spacing."""
    size = results.main_size
    spec = rules.scales_spec(results, rules.SUM, size)
    rows = _line("ulp^2/12", [(2.0**e, 4.0**e / 12) for e in spec.log2_ulps])
    rows += _line("exact", [(2.0**e, rules.error_sq(2.0**e)) for e in spec.log2_ulps])
    for k in spec.bits:
        places = [e for e in spec.log2_ulps if rules.is_large(k, e)]
        if places:
            values = np.array([results.read(rules.SUM, f"error_sq/{k}/{e}", size) for e in places])
            rows += rows_of(f"{k} bits", [2.0**e for e in places], values, bars="range", line=False)
    return rows


def neuron_losses(results: Results, size: int) -> dict[str, list[tuple[float, Reading]]]:
    """The neuron's loss against the number of bits, for each lam."""
    arms = [(f"lam {lam:g}", rules.neuron_key(lam)) for lam in rules.LAMS] + [("no drift, lam 0", rules.STILL)]
    return {
        series: [(k, Reading(arm, f"loss/{k}")) for k in sorted(rules.scales_spec(results, arm, size).bits)]
        for series, arm in arms
    }


def offsets_along_the_run(results: Results) -> list[PointRow]:
    """The neuron's offset, and its closed form."""
    size, rows = results.main_size, []
    for lam in rules.LAMS:
        arm, series = rules.neuron_key(lam), f"lam {lam:g}"
        spec, read = rules.scales_spec(results, arm, size), results.series_by_step(arm, f"offset/{rules.FLOAT32}", size)
        steps = read[0][0].tolist()
        rows += _line(series, [(step, spec.expected_offset(int(step))) for step in steps])
        rows += rows_of(series, steps, np.array([values for _, values in read]).T, bars="range", line=False)
    return rows


def saved_bits(results: Results) -> list[PointRow]:
    """Bits that decay saves against log2 of what it divides the offset by; only where both are measured."""
    size, rows = results.main_size, _line("one bit for each halving", [(0.0, 0.0), (4.0, 4.0)])
    for lam in rules.DECAYED:
        try:
            bits_S = rules.bits_bought(results, size, lam=lam)
        except NotMeasuredError:
            continue
        x = float(rules.offset_ratio(results, size, lam=lam).mean())
        rows += rows_of(f"lam {lam:g}", [x], bits_S[None], bars="seeds", line=False)
    return rows


def added_loss(results: Results) -> list[PointRow]:
    """What an offset adds to the cross-entropy against the spacing, its closed form, and what equal logits would add."""
    size = results.main_size
    spec = rules.scales_spec(results, rules.SOFTMAX, size)
    drawn = [e for e in spec.log2_ulps if e >= LEAST_DRAWN]
    limit = math.log(10) - float(results.read(rules.SOFTMAX, "loss", size).mean())
    formula = [(2.0**e, float(rules.closed_gap(results, size, 2.0**e).mean())) for e in drawn]
    rows = _line("formula", [place for place in formula if place[1] < 2 * limit])
    rows += _line("all logits alike", [(2.0**e, limit) for e in drawn if limit > 0])
    for k in spec.bits:
        found = {e: rules.added(k, e)(results, size) for e in drawn}
        found = {
            e: added_S for e, added_S in found.items() if added_S.min() > 0
        }  # a logarithmic axis has no other place
        if found:
            values = np.array(list(found.values()))
            rows += rows_of(f"{k} bits", [2.0**e for e in found], values, bars="range", line=False)
    return rows


def tolerated_offsets(results: Results) -> list[PointRow]:
    """The offsets that are tolerated against bits, measured and by the closed forms; only where they are measured."""
    from scipy.special import erfinv

    size, rows = results.main_size, []
    uncertainty = float(results.read(rules.SOFTMAX, "uncertainty", size).mean())
    for arm, series, ulp in (
        (rules.SUM, f"sum: {100 * rules.LOST:g} % of signs lost", 2 * math.sqrt(2) * float(erfinv(rules.LOST))),
        (rules.SOFTMAX, f"softmax: {rules.MORE_LOSS:g} nats more", math.sqrt(24 * rules.MORE_LOSS / uncertainty)),
    ):
        bits = rules.scales_spec(results, arm, size).bits
        rows += _line(series, [(k, rules.offset_of(k, math.log2(ulp))) for k in bits])
        for k in bits:
            try:
                offsets_S = 2.0 ** rules.tolerated(results, size, arm=arm, k=k)
            except NotMeasuredError:
                continue
            rows += rows_of(series, [k], offsets_S[None], bars="range", line=False)
    return rows
