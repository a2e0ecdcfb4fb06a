"""The points and lines that the study `textbook` draws."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.theory.textbook import quantities as rules
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = [
    "angle_along_the_run",
    "boundaries",
    "error_along_the_run",
    "fitted_functions",
    "kinks_against_rate",
    "norm_along_the_run",
    "slopes",
    "variation_against_rate",
]

WINDOW = 4.0  # half the width and height of the plane that is drawn
PLACES = 101  # of a drawn function


def _arrays(results: Results, key: str, *names: str) -> list[NDArray[np.float64]]:
    """Arrays of the first seed."""
    return [results.read(key, name, results.main_size)[0] for name in names]


def _line(series: str, x: NDArray[np.float64], y: NDArray[np.float64]) -> list[PointRow]:
    return [PointRow(series, float(a), float(b), style="line") for a, b in zip(x, y, strict=True)]


def _mean(series: str, x: float, values_S: NDArray[np.float64], style: str = "point") -> PointRow:
    """The mean over seeds; its interval is that of the logarithm, as the axis is."""
    found = seed_interval(np.log(values_S)).exp()
    if style == "line":
        return PointRow(series, x, found.estimate, style="line")
    return PointRow(series, x, found.estimate, found.low, found.high)


def fitted_functions(results: Results) -> list[PointRow]:
    """The first net of the first seed at the small and the large rate, and with decay at the small one."""
    rows = []
    size = results.main_size
    for key in (rules.SMALL, rules.LARGE, rules.DECAYED):
        spec = rules.relu_spec(results, key, size)
        grid, function = _arrays(results, key, "grid", "function")
        thinned = np.linspace(0, len(grid) - 1, PLACES).round().astype(int)
        rows += _line(f"lr {spec.lr:g}, lam {spec.lam:g}", grid[thinned], function[thinned])
    x, y = _arrays(results, rules.SMALL, "points/x", "points/y")
    return rows + [PointRow("training points", float(a), float(b)) for a, b in zip(x, y, strict=True)]


def slopes(results: Results) -> list[PointRow]:
    """The slopes of the functions of `fitted_functions`, which show what the functions themselves hide."""
    rows = []
    for key in (rules.SMALL, rules.LARGE, rules.DECAYED):
        spec = rules.relu_spec(results, key, results.main_size)
        grid, function = _arrays(results, key, "grid", "function")
        middles = (grid[1:] + grid[:-1]) / 2
        rows += _line(f"lr {spec.lr:g}, lam {spec.lam:g}", middles, np.diff(function) / np.diff(grid))
    return rows


def _against_rate(results: Results, metric: str) -> list[PointRow]:
    size, rows = results.main_size, []
    for key in rules.RATES:
        lr = rules.relu_spec(results, key, size).lr
        rows.append(_mean("SGD", lr, results.read(key, metric, size)))
    rows += [PointRow(row.series, row.x, row.y, style="line") for row in rows]
    for key, name in ((rules.NOISY, "with label noise"), (rules.DECAYED, "with decay")):
        spec = rules.relu_spec(results, key, size)
        rows.append(_mean(name, spec.lr, results.read(key, metric, size)))
    return rows


def variation_against_rate(results: Results) -> list[PointRow]:
    """Total variation of the slope against the learning rate, and the least that any interpolating function has."""
    size, rows = results.main_size, _against_rate(results, "variation")
    for key in rules.RATES:
        lr = rules.relu_spec(results, key, size).lr
        rows.append(_mean("least of any", lr, results.read(key, "least_variation", size), style="line"))
    return rows


def kinks_against_rate(results: Results) -> list[PointRow]:
    """The effective number of kinks against the learning rate."""
    return _against_rate(results, "effective_kinks")


def boundaries(results: Results) -> list[PointRow]:
    """The first data set with an outlier: its classes, and the lines on which classifiers change their mind."""
    plain, decayed = (rules.outlier_key(lam) for lam in (rules.OUTLIER_LAMS[0], rules.OUTLIER_LAMS[-1]))
    x, y, label = _arrays(results, plain, "points/x", "points/y", "points/label")
    rows = [
        PointRow(name, float(x[i]), float(y[i]))
        for name, sign in (("class +1", 1), ("class -1", -1))
        for i in np.flatnonzero(label == sign)
    ]
    lines = (
        ("hard margin (scikit-learn)", _arrays(results, plain, "hard_margin")[0]),
        ("gradient descent, lam 0", _arrays(results, plain, "weights")[0]),
        (f"gradient descent, lam {rules.OUTLIER_LAMS[-1]:g}", _arrays(results, decayed, "weights")[0]),
    )
    for name, w in lines:
        # Where the line leaves the window: the nearer of its sides and of its top and bottom.
        reach = min(WINDOW, WINDOW * abs(w[1]) / max(abs(w[0]), 1e-12))
        ends = np.array([-reach, reach])
        rows += _line(name, ends, -w[0] / w[1] * ends)
    return rows


def _along(results: Results, key: str, series: str, metric: str, style: str = "line", first: int = 1) -> list[PointRow]:
    steps = [step for step in rules.separable_spec(results, key, results.main_size).read_steps if step >= first]
    if style == "point":  # two a decade
        steps = steps[::5]
    return [_mean(series, step, results.read(key, metric, results.main_size, step=step), style) for step in steps]


def angle_along_the_run(results: Results) -> list[PointRow]:
    """The angle to the hard-margin direction against the step."""
    first = 100  # before, the asymptote says nothing
    rows = _along(results, rules.PLANTED, "planted support vectors", "angle", "point", first)
    rows += _along(results, rules.PLANTED, "their asymptote", "theory/angle", "line", first)
    rows += _along(results, rules.RANDOM, "random points", "angle", "line")
    for lam in rules.RANDOM_LAMS:
        rows += _along(results, rules.random_key(lam), f"random, lam {lam:g}", "angle", "line")
    return rows


def norm_along_the_run(results: Results) -> list[PointRow]:
    """The norm times the margin against the step."""
    rows = _along(results, rules.PLANTED, "planted support vectors", "norm", "point")
    rows += _along(results, rules.PLANTED, "their asymptote", "theory/norm", "line", 100)
    rows += _along(results, rules.RANDOM, "random points", "norm", "line")
    for lam in rules.RANDOM_LAMS:
        rows += _along(results, rules.random_key(lam), f"random, lam {lam:g}", "norm", "line")
    return rows


def error_along_the_run(results: Results) -> list[PointRow]:
    """The test error against the step, one point being an outlier."""
    rows = []
    for lam in rules.OUTLIER_LAMS:
        key = rules.outlier_key(lam)
        for step in rules.separable_spec(results, key, results.main_size).read_steps:
            error_S = 100 * results.read(key, "test/error", results.main_size, step=step)
            rows.append(PointRow(f"lam {lam:g}", step, float(error_S.mean()), style="line"))
    return rows
