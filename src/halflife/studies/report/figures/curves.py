"""Curves along runs: a quantity against the epoch or the step. A missing reading is an error, never a gap.

Shapes: S seeds, K places (epochs or steps).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError
from halflife.studies.evidence.claims import Panel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import curves_chart
from halflife.studies.report.figures.fields import flat_fields, sentence_start, size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.theme import ArmStyle, arm_styles
from halflife.studies.specs.base import RunSpec

__all__ = ["curves_figure", "drawn_arms"]

Numbers = NDArray[np.float64]

MOST_PLACES = 460  # that a line is drawn through: a chart is no more pixels wide in a file
# Runs that share these are read at the same places.
PLAN_FIELDS = ("kind", "num_epochs", "num_steps", "eval_every", "log_every", "drop_at", "keep_at", "at", "max_steps")


def drawn_arms(results: StudyResults, panel: Panel) -> list[str]:
    """The arms of a panel that this preset has, in the order of the legend.

    Returns:
        Their keys, without those of which runs diverged; none when the preset has none of those that the panel names.

    Raises:
        StoreError: The manifest lacks an arm that the preset has.
    """
    diverged = results.diverged_arms(results.main_size)
    present = [arm["key"] for arm in results.arms if arm["size"] == results.main_size]
    if panel.arms is None:
        return [key for key in present if key not in diverged]
    preset = results.study.presets[results.preset_name]
    known = {arm.key for arm in preset.arms if arm.size == preset.main_size}
    lacking = [key for key in panel.arms if key in known and key not in present]
    if lacking:
        raise StoreError(
            f"the manifest of {results.study.name} ({results.preset_name}) has no arm {lacking[0]!r}, which its figure"
            f" {panel.title!r} draws: it was written by another version of the study, run it again"
        )
    return [key for key in panel.arms if key in present and key not in diverged]


@dataclass(frozen=True)
class _Line:
    """An arm's mean and range over seeds, by place."""

    places_K: Numbers
    mean_K: Numbers
    low_K: Numbers
    high_K: Numbers
    seeds: int

    def part(self, where_K: NDArray[np.bool_]) -> _Line:
        """The places at which something holds."""
        kept = (self.places_K[where_K], self.mean_K[where_K], self.low_K[where_K], self.high_K[where_K])
        return _Line(*kept, self.seeds)

    def cell(self, place: float) -> str:
        """The numbers at a place, for a table."""
        (found,) = np.nonzero(self.places_K == place)
        if not len(found):
            return "not read"
        mean, low, high = (_rounded(values[found[0]]) for values in (self.mean_K, self.low_K, self.high_K))
        return f"{mean:.4g}" + (f" ({low:.4g} to {high:.4g})" if self.seeds > 1 else "")


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _lines(results: StudyResults, panel: Panel, keys: Sequence[str]) -> dict[str, _Line]:
    """The line of each arm; a missing reading is an error that names the run."""
    size = results.main_size
    series = results.series if panel.x == "epoch" else results.series_by_step
    found = {key: series(key, panel.metric, size) for key in keys}
    if not any(len(places) for seeds in found.values() for places, _ in seeds):
        raise StoreError(
            f"no run of {results.study.name} ({results.preset_name}) has readings of {panel.metric}: correct the panel's"
            " metric, run the study again, or use the halflife that made these runs"
        )
    # Runs of one plan are read at the same places, so the union over the runs of a plan is what each must have.
    specs = {key: results.spec(key, size) for key in keys}
    plans = {key: _plan(spec.to_json()) for key, spec in specs.items()}
    distinct: dict[tuple[str, ...], dict[bytes, Numbers]] = {}
    for key, seeds in found.items():
        distinct.setdefault(plans[key], {}).update((places.tobytes(), places) for places, _ in seeds)
    expected = {plan: np.unique(np.concatenate(list(places.values()))) for plan, places in distinct.items()}
    lines = {}
    for key, seeds in found.items():
        end = _end(specs[key], panel)
        wanted = expected[plans[key]] if end is None else np.union1d(expected[plans[key]], [end])
        for seed, (places, _) in zip(results.seeds(size), seeds, strict=True):
            if not len(places) or not np.array_equal(places, wanted):
                _refuse(results, panel, key, seed, np.setdiff1d(wanted, places) if len(places) else places)
        values_SK = panel.factor * np.stack([values for _, values in seeds])
        lines[key] = _Line(wanted, values_SK.mean(0), values_SK.min(0), values_SK.max(0), len(seeds))
        if panel.log and not (lines[key].low_K > 0).all():
            raise StoreError(
                f"{panel.metric} is not above 0 everywhere, so its logarithmic axis would draw less: {panel.title}"
            )
    return lines


def _refuse(results: StudyResults, panel: Panel, key: str, seed: int, lacking: Numbers) -> None:
    """Say which run lacks a reading."""
    arm = next(arm for arm in results.arms if (arm["key"], arm["size"]) == (key, results.main_size))
    where = f"{panel.x} {lacking[0]:g}" if len(lacking) else f"any {panel.x}"
    raise StoreError(
        f"the run {arm['runs'][str(seed)]} has no {panel.metric} at {where}, and a figure draws all of a run or nothing:"
        " remove the run's folder and run the study again"
    )


def _plan(spec: dict[str, Any]) -> tuple[str, ...]:
    fields = flat_fields(spec)
    own = {name.rpartition(".")[2]: value for name, value in fields.items() if "." in name}
    return tuple(repr({**fields, **own}.get(name)) for name in PLAN_FIELDS)


def _end(spec: RunSpec, panel: Panel) -> float | None:
    """Where a run of this spec is read last, as far as the spec says so."""
    if panel.x == "epoch":
        fields = spec.to_json()
        cut = fields.get("max_steps") is not None
        return float(fields["num_epochs"]) if fields.get("num_epochs") is not None and not cut else None
    # What is evaluated is evaluated at the end; what is logged may have its last place before it.
    last = getattr(spec, "last_step", None)
    return float(last) if last is not None and panel.metric.endswith("/loss") else None


def _thinned(lines: dict[str, _Line]) -> tuple[dict[str, _Line], int]:
    """At most `MOST_PLACES` places of a long run: of neighbours the last one, with the range of all of them.

    Args:
        lines: By arm.

    Returns:
        What to draw, and how many places one of them stands for.
    """
    union = np.unique(np.concatenate([line.places_K for line in lines.values()]))
    every = math.ceil(len(union) / MOST_PLACES)
    if every == 1:
        return lines, 1
    thin = {}
    for key, line in lines.items():
        # The first place may stand alone, and the last is the last of its neighbours: both ends are drawn.
        group_K = (np.searchsorted(union, line.places_K) - len(union) + 1) // every
        starts = np.flatnonzero(np.diff(group_K, prepend=group_K[0] - 1))
        lasts = np.append(starts[1:], len(group_K)) - 1
        low, high = np.minimum.reduceat(line.low_K, starts), np.maximum.reduceat(line.high_K, starts)
        thin[key] = _Line(line.places_K[lasts], line.mean_K[lasts], low, high, line.seeds)
    return thin, every


def _rows(lines: dict[str, _Line], x: str, styles: Sequence[ArmStyle]) -> list[dict[str, Any]]:
    """The chart's table."""
    return [
        {"arm": style.label, x: place, "mean": _rounded(mean), "low": _rounded(low), "high": _rounded(high)}
        for style in styles
        for line in [lines[style.key]]
        for place, mean, low, high in zip(line.places_K.tolist(), line.mean_K, line.low_K, line.high_K, strict=True)
    ]


def _at_places(lines: dict[str, _Line], x: str, styles: Sequence[ArmStyle]) -> list[dict[str, Any]]:
    """What the tooltip shows at each place: the numbers of every arm that was read there, in the legend's order."""
    at: dict[float, dict[str, Any]] = {}
    for style in styles:
        for place in lines[style.key].places_K.tolist():
            at.setdefault(place, {x: place})[style.label] = lines[style.key].cell(place)
    return [at[place] for place in sorted(at)]


def _drops(results: StudyResults, keys: Sequence[str], last: float) -> list[float]:
    """The epochs at which a learning rate drops, each once."""
    specs = (results.spec(key, results.main_size) for key in keys)
    epochs = {float(epoch) for spec in specs if (epoch := getattr(spec, "drop_epoch", None)) is not None}
    return sorted(epoch for epoch in epochs if epoch < last)


def curves_figure(results: StudyResults, panel: Panel) -> Figure:
    """One quantity along the runs: a line per arm, the range over seeds as a band.

    Args:
        results: What the store holds of the study, at least one seed finished in every arm.
        panel: What to draw; the preset has at least one of its arms.

    Returns:
        The figure.

    Raises:
        StoreError: A row is missing; the message names the run.
    """
    keys = drawn_arms(results, panel)
    everything = _lines(results, panel, keys)
    by_key = {style.key: style for style in arm_styles(results)}
    last = max(float(line.places_K[-1]) for line in everything.values())
    lines = {key: line.part(line.places_K >= panel.start * last) for key, line in everything.items()}
    lines = {key: line for key, line in lines.items() if len(line.places_K)}  # a short branch may end before
    styles = [by_key[key] for key in keys if key in lines]
    drawn, every = _thinned(lines)
    data = _rows(drawn, panel.x, styles)
    drops = _drops(results, keys, last) if panel.x == "epoch" else []
    seeds = len(results.seeds(results.main_size))
    spread = "the band spans the lowest and the highest seed" if seeds > 1 else "one seed, so there is no band"
    caption = f"Mean over {seeds} {'seeds' if seeds > 1 else 'seed'}; {spread}."
    if drops:
        caption += f" The learning rate drops after epoch {' and '.join(f'{drop:g}' for drop in drops)} (dashed rule)."
    cut = any(key not in lines or len(lines[key].places_K) < len(line.places_K) for key, line in everything.items())
    first = min(row[panel.x] for row in data) if cut else 0.0
    if first:
        caption += f" Drawn from {panel.x} {first:,.10g} on."
    if every > 1:
        caption += f" One reading of {every} is drawn; the band spans those between, too."
    if diverged := [
        label
        for key, label in results.diverged_arms(results.main_size).items()
        if panel.arms is None or key in panel.arms
    ]:
        caption += f" Not drawn, because runs diverged: {', '.join(diverged)}."
    if panel.note:
        caption += f" {panel.note}"
    caption += f" {sentence_start(size_name(results))} {results.main_size}."
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    ends = {key: float(line.places_K[-1]) for key, line in lines.items()}
    if len(set(ends.values())) == 1:
        shown = [*drops, last]
        header = ("arm", *(f"{panel.x} {place:,.10g}" for place in shown))
        table = tuple((style.label, *map(lines[style.key].cell, shown)) for style in styles)
    else:  # branches end where they end
        header = ("arm", f"last {panel.x}", "there")
        table = tuple((s.label, f"{ends[s.key]:,.10g}", lines[s.key].cell(ends[s.key])) for s in styles)
    words = "; ".join(f"{line[0]}: {line[-1]}" for line in table)
    end = f"{panel.x} {last:,.10g}" if len(set(ends.values())) == 1 else "its end each"
    chart = curves_chart(
        data,
        _at_places(drawn, panel.x, styles),
        x=panel.x,
        first=first,
        styles=styles,
        y_label=panel.y_label,
        log=panel.log,
        drops=drops,
    )
    return Figure(
        slug=panel.file_slug,
        title=panel.title,
        caption=caption,
        description=f"{panel.title}: {panel.y_label} against the {panel.x}, one line per arm. At {end}, {words}.",
        charts=(("", chart),),
        header=header,
        rows=table,
    )
