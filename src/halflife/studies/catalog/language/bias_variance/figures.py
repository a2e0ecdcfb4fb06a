"""The points that the study `bias-variance` draws, and its numbers beside the paper's."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.bias_variance.quantities import (
    FLIP,
    LINE_RATES,
    at_drop,
    bias,
    synthetic_spec,
    variance,
)
from halflife.studies.catalog.language.bias_variance.theory import expected, paper_bound, stationary_risk
from halflife.studies.catalog.language.quantities import in_nats, shares_of, step_of
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.optimum import lam_of, text_spec
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import CONFIDENCE, Interval, seed_interval

__all__ = [
    "floor_against_rate",
    "ranking_along_the_run",
    "risk_along_the_run",
    "split_against_lam",
    "split_along_the_run",
]

DRAWN = (LINE_RATES[0], LINE_RATES[2], LINE_RATES[-1])
APART = 1.3  # a simulated point is drawn at the next step that is this much later


def _point(series: str, x: float, interval: Interval) -> PointRow:
    return PointRow(series=series, x=x, y=interval.estimate, low=interval.low, high=interval.high)


def _risk(series: str, x: float, risk_S: NDArray[np.float64]) -> PointRow:
    """Its interval is that of the logarithm, as the axis is, so that it lies above 0 with few seeds, too."""
    return _point(series, x, seed_interval(np.log(risk_S)).exp())


def _line(series: str, x: float, y: float) -> PointRow:
    return PointRow(series=series, x=x, y=y, style="line")


def _along(results: Results, key: str, series: str) -> list[PointRow]:
    """Simulated risks as points, about evenly on a logarithmic axis, and their expectations as a line."""
    rows, drawn = [], 0
    for step, values in expected(synthetic_spec(results, key, results.main_size)).items():
        if not step:
            continue
        rows.append(_line(series, step, values["risk"]))
        if step >= APART * drawn:
            rows.append(_risk(series, step, results.read(key, "risk", results.main_size, step=step)))
            drawn = step
    return rows


def risk_along_the_run(results: Results) -> list[PointRow]:
    """Excess risk against the step in one dimension: simulation, exact expectation, and the paper's bound."""
    rows = [row for lr in DRAWN for row in _along(results, f"line-{lr:g}", f"lr {lr:g}")]
    for lr in DRAWN:
        spec = synthetic_spec(results, f"line-{lr:g}", results.main_size)
        steps = [step for step in expected(spec) if 0 < step <= (spec.drop_step or spec.num_steps)]
        rows += [_line(f"bound, lr {lr:g}", step, paper_bound(spec, step)) for step in steps]
    return rows


def floor_against_rate(results: Results) -> list[PointRow]:
    """The floor and the risk of the average against the learning rate, with their formulas."""
    rows = []
    for lr in LINE_RATES:
        key, spec = f"line-{lr:g}", synthetic_spec(results, f"line-{lr:g}", results.main_size)
        theory = expected(spec)[at_drop(spec)]
        for series, metric in (("last iterate", "tail/risk"), ("average of the iterates", "average/risk")):
            rows.append(_risk(series, lr, results.read(key, metric, results.main_size, step=at_drop(spec))))
            rows.append(_line(series, lr, stationary_risk(spec) if metric == "tail/risk" else theory[metric]))
        rows.append(_line("bound, lr sigma^2", lr, lr * spec.noise_std**2))
    return rows


def ranking_along_the_run(results: Results) -> list[PointRow]:
    """Excess risk against the step with a spectrum and one sample a step, at two learning rates."""
    return [
        row
        for key in FLIP
        for row in _along(results, key, f"lr {synthetic_spec(results, key, results.main_size).lr:g}")
    ]


def _parts(results: Results, x: Callable[[str, int], float], places: Sequence[int], name: str) -> list[PointRow]:
    """Bias and variance parts of each lam and share of the run, over seeds and blocks."""
    size, rows = results.main_size, []
    for share, lam in itertools.product(places, LAMS):
        for part, values in (("bias", bias(lam, share)), ("variance", variance(lam, share))):
            found = in_nats(part, values).interval(results, size, CONFIDENCE)
            where = name.format(lam=_lam(results, lam), share=share)
            rows.append(_point(f"{part}{where}", x(lam, share), found))
    lines = [PointRow(series=row.series, x=row.x, y=row.y, style="line") for row in rows]
    return sorted([*rows, *lines], key=lambda row: row.series)


def _lam(results: Results, name: str) -> float:
    """The coefficient that a name stands for at the main size."""
    return lam_of(text_spec(results, key_of("constant", name), results.main_size))


def split_along_the_run(results: Results) -> list[PointRow]:
    """Bias and variance of each lam against the step."""
    size = results.main_size
    shares = shares_of(results, "tiny-lr", "constant", size)
    return _parts(results, lambda lam, share: step_of(results, "constant", share, size), shares, ", lam {lam:g}")


def split_against_lam(results: Results) -> list[PointRow]:
    """Bias and variance against lam, at the first and at the last branch."""
    shares = shares_of(results, "tiny-lr", "constant", results.main_size)
    return _parts(results, lambda lam, share: _lam(results, lam), (shares[0], shares[-1]), " at {share} %")
