"""The ladder: effects of claims against the size of the model."""

from __future__ import annotations

from collections.abc import Sequence

from halflife.studies.evidence.claims import Verdict
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import ladder_chart
from halflife.studies.report.figures.fields import size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.pages.tables import effect_text, sample_text

__all__ = ["ladder_figure"]

DRAWN_UNITS = ("points", "nats", "%")  # whose 0 means no effect


def ladder_figure(results: StudyResults, verdicts: Sequence[Verdict]) -> Figure | None:
    """The effect of each claim that is measured in points, nats or per cent, against size.

    Args:
        results: What the store holds of the study.
        verdicts: Its verdicts.

    Returns:
        One small chart a claim; ``None`` when the study ran at one size only, or no size can be drawn.
    """
    measured = [v for v in verdicts if v.claim.unit in DRAWN_UNITS and any(f.effect for f in v.by_size.values())]
    if len(results.sizes) < 2 or not measured:
        return None
    name = size_name(results)
    domains = {unit: _domain(measured, unit) for unit in dict.fromkeys(v.claim.unit for v in measured)}
    charts, table = [], []
    missing: dict[str, list[str]] = {}
    for verdict in measured:
        unit, data = verdict.claim.unit, []
        for size, finding in sorted(verdict.by_size.items()):
            effect = finding.effect
            if effect is None:
                missing.setdefault(f"{name} {size}: {finding.reason}", []).append(f"({verdict.claim.key})")
                continue
            words = effect_text(effect, unit)
            data.append({
                "size": size,
                "effect": round(effect.estimate, 6),
                "low": round(effect.low, 6),
                "high": round(effect.high, 6),
                "text": words,
                "outcome": finding.outcome,
                "sample": sample_text(effect),
            })  # fmt: skip
            table.append((f"({verdict.claim.key}) {verdict.claim.effect_name}", str(size), words, sample_text(effect)))
        chart = ladder_chart(data, sizes=results.sizes, size_name=name, unit=unit, domain=domains[unit])
        charts.append((f"({verdict.claim.key}) {verdict.claim.effect_name}", chart))
    caption = f"Effect against {name}, with 95 % intervals; 0 means no effect."
    if len(measured) > 1:
        caption += " Panels in the same unit share their axes." if len(domains) > 1 else " All panels share their axes."
    if missing:
        # Most often a whole size is not finished, which need not be said once a claim.
        which = {why: "" if len(keys) == len(measured) else f"{', '.join(keys)} at " for why, keys in missing.items()}
        caption += " Not drawn: " + "; ".join(f"{keys}{why}" for why, keys in which.items()) + "."
    ends = "; ".join(f"{line[0]} at {name} {line[1]}: {line[2]}" for line in table)
    return Figure(
        slug="ladder",
        title=f"Effects against {name}",
        caption=caption,
        description=f"Effect of each claim against {name}. {ends}.",
        charts=tuple(charts),
        header=("effect", name, "effect [95 % interval]", "n"),
        rows=tuple(table),
    )


def _domain(measured: Sequence[Verdict], unit: str) -> tuple[float, float]:
    """The ends of the axis of all effects in one unit, 0 included."""
    found = [f.effect for v in measured if v.claim.unit == unit for f in v.by_size.values() if f.effect is not None]
    return min(0.0, *(effect.low for effect in found)), max(0.0, *(effect.high for effect in found))
