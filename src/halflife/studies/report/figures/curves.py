"""Curves along runs: a quantity against the epoch or the step, drawn from `Results.frame` alone.

A missing row is an error, never a gap.
"""

from __future__ import annotations

import math
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

MOST_PLACES = 460  # that a line is drawn through: a chart is no more pixels wide in a file
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
    identities = everything["run"].unique(maintain_order=True).to_list()
    found: dict[str, set[float]] = {identity: set() for identity in identities}
    for (identity,), own in rows.group_by("run"):
        found[str(identity)] = set(own[panel.x].to_list())
    expected: dict[tuple[str, ...], set[float]] = {}
    plans = {identity: _plan(results.headers[identity]["spec"]) for identity in identities}
    for identity, places in found.items():
        expected.setdefault(plans[identity], set()).update(places)
    for identity, places in found.items():
        end = _end(results.headers[identity]["spec"], panel)
        lacking = (expected[plans[identity]] | ({end} if end is not None else set())) - places
        if lacking or not places:
            where = f"{panel.x} {min(lacking):g}" if lacking else f"any {panel.x}"
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


def _summary(rows: pl.DataFrame, panel: Panel) -> pl.DataFrame:
    """Mean and range over seeds, one row an arm and epoch or step, by place: ``mean``, ``low``, ``high``, ``seeds``."""
    value = pl.col(panel.metric) * panel.factor
    frame = (
        rows.group_by("arm", panel.x)
        .agg(value.mean().alias("mean"), value.min().alias("low"), value.max().alias("high"), pl.len().alias("seeds"))
        .sort(panel.x)
    )
    if panel.log and not (frame["low"] > 0).all():
        raise StoreError(
            f"{panel.metric} is not above 0 everywhere, so its logarithmic axis would draw less: {panel.title}"
        )
    # Steps can have more than five digits.
    return frame.with_columns(
        pl.col("mean", "low", "high").round_sig_figs(5), pl.col(panel.x).cast(pl.Float64).round_sig_figs(8)
    )


def _thinned(frame: pl.DataFrame, x: str) -> tuple[pl.DataFrame, int]:
    """At most `MOST_PLACES` places of a long run: of neighbours the last one, with the range of all of them.

    Args:
        frame: From `_summary`.
        x: ``"epoch"`` or ``"step"``.

    Returns:
        The rows to draw, and how many places one of them stands for.
    """
    places = frame.select(pl.col(x).unique().sort())
    every = math.ceil(len(places) / MOST_PLACES)
    if every == 1:
        return frame, 1
    # The first place stands alone, and the last is the last of its neighbours: both ends are drawn.
    group = ((pl.int_range(pl.len()) - len(places) + 1) // every).alias("group")
    thin = frame.join(places.with_columns(group), on=x).sort(x)
    last = pl.col(x, "mean", "seeds").last()
    thin = thin.group_by("arm", "group", maintain_order=True).agg(last, pl.col("low").min(), pl.col("high").max())
    return thin.drop("group").sort(x), every


def _at_places(frame: pl.DataFrame, x: str, styles: Sequence[ArmStyle]) -> list[dict[str, Any]]:
    """What the tooltip shows at each place: the numbers of every arm that was read there, in the legend's order."""
    labels = {style.key: style.label for style in styles}
    at: dict[float, dict[str, str]] = {}
    for row in frame.iter_rows(named=True):
        at.setdefault(row[x], {})[row["arm"]] = _cell(row)
    return [
        {x: place} | {label: cells[key] for key, label in labels.items() if key in cells} for place, cells in at.items()
    ]


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
    everything = _summary(rows, panel)
    last = everything[panel.x].max()
    assert isinstance(last, float)
    kept = everything.filter(pl.col(panel.x) >= panel.start * last)
    drawn, every = _thinned(kept, panel.x)
    labels = {style.key: style.label for style in styles}
    order = {key: index for index, key in enumerate(labels)}
    data = [
        {"arm": labels[row["arm"]], panel.x: row[panel.x], "mean": row["mean"], "low": row["low"], "high": row["high"]}
        for row in drawn.sort(pl.col("arm").replace_strict(order), panel.x).iter_rows(named=True)
    ]
    drops = _drops(results, keys, last) if panel.x == "epoch" else []
    seeds = len(results.seeds(results.main_size))
    spread = "the band spans the lowest and the highest seed" if seeds > 1 else "one seed, so there is no band"
    caption = f"Mean over {seeds} {'seeds' if seeds > 1 else 'seed'}; {spread}."
    if drops:
        caption += f" The learning rate drops after epoch {' and '.join(f'{drop:g}' for drop in drops)} (dashed rule)."
    first = min(row[panel.x] for row in data) if len(kept) < len(everything) else 0.0
    if first:
        caption += f" Drawn from {panel.x} {first:,.10g} on."
    if every > 1:
        caption += f" One reading of {every} is drawn; the band spans those between, too."
    if panel.note:
        caption += f" {panel.note}"
    caption += f" {sentence_start(size_name(results))} {results.main_size}."
    if panel.source_figure:
        caption += f" Corresponds to {panel.source_figure} of the paper."
    ends = {str(key): float(end) for key, end in kept.group_by("arm").agg(pl.col(panel.x).max()).iter_rows()}
    shown = [*drops, last]
    wanted = kept.filter(pl.col(panel.x).is_in([*shown, *ends.values()]))
    numbers = {(row["arm"], row[panel.x]): row for row in wanted.iter_rows(named=True)}
    if len(set(ends.values())) == 1:
        header = ("arm", *(f"{panel.x} {place:,.10g}" for place in shown))
        table = tuple((style.label, *(_cell(numbers.get((style.key, p))) for p in shown)) for style in styles)
    else:  # branches end where they end
        header = ("arm", f"last {panel.x}", "there")
        table = tuple((s.label, f"{ends[s.key]:,.10g}", _cell(numbers[s.key, ends[s.key]])) for s in styles)
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


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "not read"
    return f"{row['mean']:.4g}" + (f" ({row['low']:.4g} to {row['high']:.4g})" if row["seeds"] > 1 else "")
