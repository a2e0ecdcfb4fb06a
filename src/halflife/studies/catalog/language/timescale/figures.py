"""What the time-scale study draws, and what it puts beside the papers' numbers."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import numpy as np

from halflife.studies.catalog.language.timescale.quantities import (
    AXES,
    BASE,
    arm_key,
    exponent,
    num_parameters,
    num_targets,
    optima_on,
    sweeps_on,
)
from halflife.studies.evidence.claims import PointRow, PointsPanel, Published
from halflife.studies.evidence.optimum import PAIRED_NOTE, exponents_of, text_spec
from halflife.studies.evidence.quantities import NotMeasuredError, Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against
from halflife.studies.evidence.stats import CONFIDENCE, Interval

__all__ = ["panels", "published"]


def _sweeps(results: Results, size: int, *, axis: str, share: bool) -> dict[str, list[tuple[float, Reading]]]:
    """The final loss against lam, or against tau / T = 1 / (lr lam T), one line a place."""
    lines: dict[str, list[tuple[float, Reading]]] = {}
    for sweep in sweeps_on(results, size, axis=axis):
        for lam, key in sweep.keys.items():
            spec = text_spec(results, key, size)
            x = 1 / (spec.lr * lam * spec.num_steps) if share else lam
            lines.setdefault(sweep.label, []).append((x, Reading(key, "val/loss")))
    return lines


def optimum_rows(results: Results, *, axis: str, predicted: Mapping[str, float]) -> list[PointRow]:
    """The best lam against what the axis changes, the fitted line, and the predicted ones through its middle.

    Args:
        results: What the store holds.
        axis: The axis.
        predicted: Exponents, by who predicts them.

    Returns:
        The points. Where the best lam is no estimate the lowest of the grid stands instead, in a series of its own, and lines
        leave it out.
    """
    size = results.main_size
    found = list(zip(sweeps_on(results, size, axis=axis), optima_on(results, size, axis=axis), strict=True))
    kept = [(sweep.x, optimum) for sweep, optimum in found if not optimum.problem]
    rows = []
    for x, optimum in kept:
        lam = optimum.lam()
        rows.append(PointRow(series="measured", x=x, y=lam.estimate, low=lam.low, high=lam.high))
    rows += [
        PointRow(series="lowest of a grid, no estimate", x=sweep.x, y=optimum.lowest)
        for sweep, optimum in found
        if optimum.problem
    ]
    if len(kept) < 2:
        return rows
    places = np.array([x for x, _ in kept])
    middle = float(np.exp(np.log(places).mean()))
    height = float(np.exp(np.mean([optimum.log_lam_SN.mean() for _, optimum in kept])))
    fitted = float(exponents_of(list(places), [optimum for _, optimum in kept]).mean())
    for name, power in {"fitted": fitted, **predicted}.items():
        series = f"{name}: exponent {power:.2f}"
        rows += [
            PointRow(series=series, x=x, y=height * (x / middle) ** power, style="line")
            for x in places[[0, -1]].tolist()
        ]
    return rows


def panels(predicted: Mapping[str, Mapping[str, float]]) -> tuple[PointsPanel, ...]:
    """For each axis the sweeps and the optima, and the sweeps of the batch against tau / T.

    Args:
        predicted: For each axis the exponents that are predicted, by who predicts them.

    Returns:
        The panels.
    """
    drawn = []
    for axis in AXES.values():
        drawn.append(
            PointsPanel(
                slug=f"optimum-{axis.key}",
                title=f"Best lam against the {axis.title}",
                x_label=axis.x_label,
                y_label="best lam",
                rows=functools.partial(optimum_rows, axis=axis.key, predicted=predicted[axis.key]),
                log_x=True,
                log_y=True,
                note="Bars are 95 % intervals over seeds and validation blocks; lines have the fitted and the predicted"
                " exponents and go through the middle of the points.",
            )
        )
        drawn.append(_sweep_panel(axis.key, f"Final loss against lam, by {axis.title}", "lam"))
        if axis.key == "batch":
            drawn.append(_sweep_panel(axis.key, "The same against tau / T", "tau / T = 1 / (lr lam steps)", share=True))
    return tuple(drawn)


def _sweep_panel(axis: str, title: str, x_label: str, *, share: bool = False) -> PointsPanel:
    return PointsPanel(
        slug=f"sweep-{axis}{'-share' if share else ''}",
        title=title,
        x_label=x_label,
        y_label="validation loss (nats)",
        rows=against(functools.partial(_sweeps, axis=axis, share=share)),
        log_x=True,
        note=PAIRED_NOTE,
    )


def exponent_text(results: Results, *, axis: str, sign: float = 1.0, offset: float = 0.0) -> str:
    """Our exponent p as text, or another that is ``sign * p + offset``.

    Args:
        results: What the store holds.
        axis: The axis.
        sign: 1 or -1.
        offset: Added.

    Returns:
        The exponent with its 95 % interval, or why there is none.
    """
    values = functools.partial(exponent, axis=axis)
    try:
        p = Quantity(name="exponent", values=values, examples="blocks").interval(results, results.main_size, CONFIDENCE)
    except NotMeasuredError as error:
        return f"none: {error}"
    ends = sorted((sign * p.low + offset, sign * p.high + offset))
    return f"{sign * p.estimate + offset:.2f} [{ends[0]:.2f}, {ends[1]:.2f}]"


def share_text(results: Results) -> str:
    """The best tau / T of the base, with its tokens per parameter."""
    size = results.main_size
    axis = AXES["batch"]
    optimum = optima_on(results, size, axis="batch")[axis.places.index(BASE)]
    if optimum.problem:
        return f"none: {optimum.problem}"
    spec = text_spec(results, arm_key(BASE, 0), size)
    lam, per_lam = optimum.lam(), 1 / (spec.lr * spec.num_steps)
    share = Interval(per_lam / lam.estimate, per_lam / lam.high, per_lam / lam.low, lam.num_seeds)
    per_parameter = num_targets(spec) / num_parameters(spec)
    return (
        f"{share.estimate:.3f} [{share.low:.3f}, {share.high:.3f}] at {per_parameter:.0f} tokens per parameter"
        f" (the power law: {1.084 * per_parameter**-0.527:.3f})"
    )


SECOND_HAND = "second-hand, from notes on"
ONE, TWO = "Wang and Aitchison 2024 (arXiv 2405.13698)", "Bergsma et al. 2025 (arXiv 2505.13738)"


def published() -> tuple[Published, ...]:
    """The papers' numbers, all of them second-hand."""
    rows: tuple[tuple[str, str, str, Callable[[Results], str]], ...] = (
        ("exponent of the best lam in the batch, lr and tokens fixed", "1", f"{ONE} and {TWO}",
         functools.partial(exponent_text, axis="batch")),
        ("exponent of the best tau / T in tokens per parameter, one pass", "-0.52 (10 to 90 %: -0.529 to -0.507)", TWO,
         functools.partial(exponent_text, axis="tokens", sign=-1.0, offset=-1.0)),
        ("best tau / T of the base", "1.084 (tokens per parameter)^-0.527 (0.21 at 20)", TWO, share_text),
        ("exponent of the best lam in the tokens of a repeated text, epochs fixed", "-1", ONE,
         functools.partial(exponent_text, axis="text")),
        ("exponent of the best lam in the parameters, lr fixed", "0 (tau constant)", ONE,
         functools.partial(exponent_text, axis="width")),
        ("the same", "-0.52 (from the power law in tokens per parameter)", TWO,
         functools.partial(exponent_text, axis="width")),
    )  # fmt: skip
    return tuple(
        Published(quantity=quantity, published=number, where=f"{SECOND_HAND} {where}", how="text", ours=ours)
        for quantity, number, where, ours in rows
    )
