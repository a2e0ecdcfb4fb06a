"""Curves along runs: a quantity against the epoch or the step, drawn from `Results.frame` alone.

A missing row is an error, never a gap.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl

from halflife.errors import StoreError
from halflife.studies.evidence.claims import Panel
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.charts import curves_chart
from halflife.studies.report.figures.fields import flat_fields, sentence_start, size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.theme import ArmStyle, arm_styles
from halflife.studies.specs.base import spec_from_json

__all__ = ["curves_figure", "drawn_arms"]

# Runs that share these are read at the same places.
PLAN_FIELDS = ("kind", "num_epochs", "num_steps", "eval_every", "log_every", "drop_at", "keep_at", "at", "max_steps")


def drawn_arms(results: StudyResults, panel: Panel) -> list[str]:
    """The arms of a panel that this preset has, in the order of the legend.

    Returns:
        Their keys; none when the preset has none of those that the panel names.

    Raises:
        StoreError: The manifest lacks an arm that the preset has.
    """
    present = [arm["key"] for arm in results.arms if arm["size"] == results.main_size]
    if panel.arms is None:
        return present
    preset = results.study.presets[results.preset_name]
    known = {arm.key for arm in preset.arms if arm.size == preset.main_size}
    lacking = [key for key in panel.arms if key in known and key not in present]
    if lacking:
        raise StoreError(
            f"the manifest of {results.study.name} ({results.preset_name}) has no arm {lacking[0]!r}, which its figure"
            f" {panel.title!r} draws: it was written by another version of the study, run it again"
        )
    return [key for key in panel.arms if key in present]


def _readings(results: StudyResults, panel: Panel, keys: Sequence[str]) -> pl.DataFrame:
    """The rows of one panel, one a run and epoch or step; a missing one is an error that names the run."""
    everything = results.frame.filter((pl.col("size") == results.main_size) & pl.col("arm").is_in(list(keys)))
    if panel.metric not in everything.columns or everything[panel.metric].is_null().all():
        raise StoreError(
            f"no run of {results.study.name} ({results.preset_name}) has readings of {panel.metric}: run the study again, or"
            " use the halflife that made these runs"
        )
    rows = everything.filter(pl.col(panel.metric).is_not_null())
    # Runs of one plan are read at the same places, so the union over the runs of a plan is what each must have.
    found = {
        identity: set(rows.filter(pl.col("run") == identity)[panel.x].to_list())
        for identity in everything["run"].unique(maintain_order=True)
    }
    plans = {identity: _plan(results.headers[identity]["spec"]) for identity in found}
    for identity, places in found.items():
        expected = set().union(*(found[other] for other in found if plans[other] == plans[identity]))
        if (end := _end(results.headers[identity]["spec"], panel)) is not None:
            expected.add(end)
        lacking = sorted(expected - places)
        if lacking or not places:
            where = f"{panel.x} {lacking[0]:g}" if lacking else f"any {panel.x}"
            raise StoreError(
                f"the run {identity} has no {panel.metric} at {where}, and a figure draws all of a run or nothing: remove the"
                " run's folder and run the study again"
            )
    return rows


def _plan(spec: dict[str, Any]) -> tuple[str, ...]:
    fields = flat_fields(spec)
    own = {name.rpartition(".")[2]: value for name, value in fields.items() if "." in name}
    return tuple(repr({**fields, **own}.get(name)) for name in PLAN_FIELDS)


def _end(spec: dict[str, Any], panel: Panel) -> float | None:
    """Where a run of this spec is read last, as far as the spec says so."""
    if panel.x == "epoch":
        cut = spec.get("max_steps") is not None
        return float(spec["num_epochs"]) if spec.get("num_epochs") is not None and not cut else None
    # What is evaluated is evaluated at the end; what is logged may have its last place before it.
    last = getattr(spec_from_json(spec), "last_step", None)
    return float(last) if last is not None and panel.metric.endswith("/loss") else None


def _summary(rows: pl.DataFrame, panel: Panel, styles: Sequence[ArmStyle]) -> list[dict[str, Any]]:
    """Mean and range over seeds, one row an arm and epoch or step, in the arms' order."""
    value = pl.col(panel.metric) * panel.factor
    frame = (
        rows.group_by("arm", panel.x)
        .agg(
            value.mean().alias("mean"),
            value.min().alias("lowest seed"),
            value.max().alias("highest seed"),
            pl.len().alias("seeds"),
        )
        .sort(panel.x)
    )
    if panel.log and not (frame["lowest seed"] > 0).all():
        raise StoreError(
            f"{panel.metric} is not above 0 everywhere, so its logarithmic axis would draw less: {panel.title}"
        )
    out = []
    for style in styles:
        for row in frame.filter(pl.col("arm") == style.key).iter_rows(named=True):
            numbers = {name: float(f"{row[name]:.5g}") for name in ("mean", "lowest seed", "highest seed")}
            # Steps can have more than five digits.
            out.append({"arm": style.label, panel.x: float(f"{row[panel.x]:.8g}"), **numbers, "seeds": row["seeds"]})
    return out


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
    rows = _readings(results, panel, keys)
    by_key = {style.key: style for style in arm_styles(results)}
    styles = [by_key[key] for key in keys]
    everything = _summary(rows, panel, styles)
    last = max(row[panel.x] for row in everything)
    data = [row for row in everything if row[panel.x] >= panel.start * last]
    drops = _drops(results, keys, last) if panel.x == "epoch" else []
    seeds = len(results.seeds(results.main_size))
    spread = "the band spans the lowest and the highest seed" if seeds > 1 else "one seed, so there is no band"
    caption = f"Mean over {seeds} {'seeds' if seeds > 1 else 'seed'}; {spread}."
    if drops:
        caption += f" The learning rate drops after epoch {' and '.join(f'{drop:g}' for drop in drops)} (dashed rule)."
    first = min(row[panel.x] for row in data) if len(data) < len(everything) else 0.0
    if first:
        caption += f" Drawn from {panel.x} {first:,.10g} on."
    if panel.note:
        caption += f" {panel.note}"
    caption += f" {sentence_start(size_name(results))} {results.main_size}."
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    numbers = {(row["arm"], row[panel.x]): row for row in data}
    ends = {style.label: max(row[panel.x] for row in data if row["arm"] == style.label) for style in styles}
    if len(set(ends.values())) == 1:
        shown = [*drops, last]
        header = ("arm", *(f"{panel.x} {place:,.10g}" for place in shown))
        table = tuple((style.label, *(_cell(numbers.get((style.label, p))) for p in shown)) for style in styles)
    else:  # branches end where they end
        header = ("arm", f"last {panel.x}", "there")
        table = tuple((k, f"{end:,.10g}", _cell(numbers[k, end])) for k, end in ends.items())
    words = "; ".join(f"{line[0]}: {line[-1]}" for line in table)
    end = f"{panel.x} {last:,.10g}" if len(set(ends.values())) == 1 else "its end each"
    chart = curves_chart(data, x=panel.x, first=first, styles=styles, y_label=panel.y_label, log=panel.log, drops=drops)
    return Figure(
        slug=panel.file_slug,
        title=panel.title,
        caption=caption,
        description=f"{panel.title}: {panel.y_label} against the {panel.x}, one line per arm. At {end}, {words}.",
        charts=(("", chart),),
        header=header,
        rows=table,
    )


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not read"
    return f"{row['mean']:.4g}" + (
        f" ({row['lowest seed']:.4g} to {row['highest seed']:.4g})" if row["seeds"] > 1 else ""
    )
