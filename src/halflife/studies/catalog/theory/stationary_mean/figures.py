"""The points that the study `stationary-mean` draws.

Shapes: S seeds, K prefactors, N inputs.
"""

from __future__ import annotations

import numpy as np

from halflife.studies.catalog.theory.stationary_mean import quantities as rules
from halflife.studies.catalog.theory.stationary_mean.theory import Path, path_of, stationary_spec
from halflife.studies.evidence.panels import PointRow
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = ["fitted_prefactors", "predicted_shift", "profile", "profile_of_nets", "profile_of_trace"]


def _label(results: Results, key: str) -> str:
    return next(str(arm["label"]) for arm in results.arms if arm["key"] == key and arm["size"] == results.main_size)


def _profile(results: Results, key: str, series: str, path: Path) -> list[PointRow]:
    """The distance over that without a regularizer, geometric means over seeds."""
    base_S = path.distance(0.0)
    rows = []
    for c in path.c_K[1:]:
        share = seed_interval(np.log(np.maximum(path.distance(float(c)), 1e-12) / base_S)).exp()
        rows.append(PointRow(series, float(c), share.estimate, style="line"))
        rows.append(PointRow(series, float(c), share.estimate, share.low, share.high))
    return rows


def profile(results: Results) -> list[PointRow]:
    """Models with closed forms: distance against c, for ||J||^2."""
    return [
        row
        for key in rules.SPARSE
        for row in _profile(results, key, _label(results, key), path_of(results, key, results.main_size))
    ]


def profile_of_nets(results: Results) -> list[PointRow]:
    """Nets: distance against c, for ||J||^2."""
    return [
        row
        for key in rules.NETS
        for row in _profile(results, key, _label(results, key), path_of(results, key, results.main_size))
    ]


def profile_of_trace(results: Results) -> list[PointRow]:
    """Distance against c, for the trace of the Hessian."""
    return [
        row
        for key in (*rules.DIFFER, *rules.NETS)
        for row in _profile(results, key, _label(results, key), path_of(results, key, results.main_size, "hessian"))
    ]


def fitted_prefactors(results: Results) -> list[PointRow]:
    """The fitted c of ||J||^2 against lr, with what the conjecture and the theory of label noise say."""
    rows, rates = [], []
    for key in (*rules.CLOSED, *rules.NETS):
        lr = stationary_spec(results, key, results.main_size).lr
        fit_S = np.maximum(path_of(results, key, results.main_size).fit(), 1e-6)
        shown = seed_interval(np.log(fit_S)).exp()
        name = "one or two parameters" if key in rules.LINES else _label(results, key)
        rows.append(PointRow(name, lr, shown.estimate, shown.low, shown.high))
        rates.append(lr)
    for name, value in (("conjecture, c = 1", rules.CONJECTURED), ("label noise, c = 1/4", rules.THEORY)):
        rows += [PointRow(name, lr, value, style="line") for lr in (min(rates), max(rates))]
    return rows


def predicted_shift(results: Results) -> list[PointRow]:
    """The first seed's net: how far each output's mean lies from the minimum without a regularizer, and where it should."""
    path = path_of(results, rules.NETS[0], results.main_size)
    base_N = path.minima_SKN[0, 0]
    measured_N = path.mean_SN[0] - base_N
    rows = []
    for c, name in ((rules.THEORY, "c = 1/4"), (rules.CONJECTURED, "c = 1")):
        predicted_N = path.outputs(np.full(len(path.mean_SN), c))[0] - base_N
        rows += [PointRow(name, float(x), float(y)) for x, y in zip(measured_N, predicted_N, strict=True)]
    ends = (float(measured_N.min()), float(measured_N.max()))
    return [*rows, *(PointRow("predicted as measured", end, end, style="line") for end in ends)]
