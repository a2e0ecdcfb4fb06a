"""The figures of the study `stationary-mean`, and its prefactors beside the conjecture's."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.theory.stationary_mean.quantities import (
    CLOSED,
    CONJECTURED,
    DIFFER,
    LABELS,
    LINES,
    NETS,
    SPARSE,
    Values,
    fitted_c,
    fitted_c_of_mean_slope,
)
from halflife.studies.catalog.theory.stationary_mean.theory import THEORY, path_of, rms, stationary_spec
from halflife.studies.evidence.claims import PointRow, PointsPanel, Published
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval

__all__ = ["PANELS", "PUBLISHED"]


def _geometric(values_S: NDArray[np.float64]) -> Interval:
    """The geometric mean over seeds; a fitted c of 0 counts as 1e-6."""
    return seed_interval(np.log(np.maximum(values_S, 1e-6))).exp()


def profile(
    results: Results, *, keys: Sequence[str], regularizer: str = "jacobian", inputs: str = "train"
) -> list[PointRow]:
    """The distance over that without a regularizer against c, geometric means over seeds."""
    rows = []
    for key in keys:
        path = path_of(results, key, results.main_size, regularizer, inputs)
        base_S = path.distance(0.0)
        for c in path.c_K[1:]:
            share = _geometric(path.distance(float(c)) / base_S)
            rows.append(PointRow(LABELS[key], float(c), share.estimate, style="line"))
            rows.append(PointRow(LABELS[key], float(c), share.estimate, share.low, share.high))
    return rows


def lowest_rows(results: Results) -> list[PointRow]:
    """Where the lowest minimum from any start lies, where it was sought, beside the nearest one."""
    rows, size = [], results.main_size
    for key in NETS:
        path, searched = path_of(results, key, size), stationary_spec(results, key, size).searched
        base_S = path.distance(0.0)
        for number, c in enumerate(searched):
            flat_SX = results.read(key, "lowest/jacobian/train", size)
            lowest_SN = flat_SX.reshape(len(flat_SX), len(searched), -1)[:, number]
            height = float(np.median(rms(lowest_SN - path.mean_SN) / base_S))
            rows.append(PointRow(f"{LABELS[key]}, lowest", c, height))
        nearest = [(c, float(np.median(path.distance(c) / base_S))) for c in searched or path.c_K[1:].tolist()]
        rows += [PointRow(f"{LABELS[key]}, nearest", c, height) for c, height in nearest]
    return rows


def fitted_prefactors(results: Results) -> list[PointRow]:
    """The fitted c of ||J||^2 against lr, with what the conjecture and the theory of label noise say."""
    rows, rates = [], []
    for key in (*CLOSED, *NETS):
        lr = stationary_spec(results, key, results.main_size).lr
        shown = _geometric(fitted_c(results, results.main_size, key=key))
        name = "one or two parameters" if key in LINES else LABELS[key]
        rows.append(PointRow(name, lr, shown.estimate, shown.low, shown.high))
        rates.append(lr)
    for name, value in (("conjecture, c = 1", CONJECTURED), ("label noise, c = 1/4", THEORY)):
        rows += [PointRow(name, lr, value, style="line") for lr in (min(rates), max(rates))]
    return rows


def predicted_shift(results: Results) -> list[PointRow]:
    """The first seed's net: how far each output's mean lies from the minimum without a regularizer, and where it should."""
    path = path_of(results, NETS[0], results.main_size)
    base_N = path.minima_SKN[0, 0]
    measured_N = path.mean_SN[0] - base_N
    rows = []
    for c, name in ((THEORY, "c = 1/4"), (CONJECTURED, "c = 1")):
        predicted_N = path.outputs(np.full(len(path.mean_SN), c))[0] - base_N
        rows += [PointRow(name, float(x), float(y)) for x, y in zip(measured_N, predicted_N, strict=True)]
    ends = (float(measured_N.min()), float(measured_N.max()))
    return [*rows, *(PointRow("predicted as measured", end, end, style="line") for end in ends)]


def _profile(
    slug: str, title: str, keys: Sequence[str], regularizer: str = "jacobian", inputs: str = "train"
) -> PointsPanel:
    name, where = (
        {"jacobian": "||J||^2", "hessian": "Tr H"}[regularizer],
        {"train": "training", "held-out": "held-out"}[inputs],
    )
    return PointsPanel(
        slug=slug,
        title=title,
        x_label="c",
        y_label="distance over that without a regularizer",
        rows=functools.partial(profile, keys=keys, regularizer=regularizer, inputs=inputs),
        log_x=True,
        log_y=True,
        note=f"Root mean square distance over {where} inputs of the mean of SGD in function space from the minimum of the"
        f" objective with (c / B) lr sigma^2 {name}, over the same without a regularizer (1: no better). Geometric means and"
        " 95 % intervals over seeds.",
    )


PANELS = (
    _profile("profile", "Diagonal networks: how well each prefactor predicts the mean", SPARSE),
    _profile("profile-nets", "Small nets: how well each prefactor predicts the mean", NETS),
    _profile(
        "profile-trace", "The same with the trace of the Hessian in place of the Jacobian", (*DIFFER, *NETS), "hessian"
    ),
    _profile("profile-held-out", "The same on held-out inputs", (*SPARSE, *NETS), inputs="held-out"),
    PointsPanel(
        slug="prefactors",
        title="The prefactor that fits, for the norm of the Jacobian",
        x_label="learning rate",
        y_label="c",
        rows=fitted_prefactors,
        log_x=True,
        log_y=True,
        note="Points: geometric means and 95 % intervals over seeds. Lines: the conjecture, and the theory of label noise.",
    ),
    PointsPanel(
        slug="shift",
        title="A net of the first seed: the shift of each output, predicted and measured",
        x_label="mean of SGD minus minimum without a regularizer",
        y_label="minimum with the regularizer minus that without",
        rows=predicted_shift,
        note="One point a training image and prefactor (squared loss, label noise). On the line the prediction is exact.",
    ),
    PointsPanel(
        slug="lowest",
        title="Small nets: the lowest minimum from any start, and the one nearest to the mean",
        x_label="c",
        y_label="distance over that without a regularizer",
        rows=lowest_rows,
        log_x=True,
        log_y=True,
        note="Distances of the mean of SGD from both minima, at the prefactors at which minima were sought from other starts,"
        " too. Medians over seeds.",
    ),
)


def prefactors_text(results: Results, *, keys: Sequence[str], values: Values) -> str:
    """Geometric means over seeds with their 95 % intervals, as in the rules."""
    found = [_geometric(values(results, results.main_size, key=key)) for key in keys]
    return " / ".join(f"{one.estimate:.3f} [{one.low:.3f}, {one.high:.3f}]" for one in found)


_GROUPS = {
    "functions of one or two parameters (h = u v at lr 0.2 / 0.1 / 0.05, h = u^2)": LINES,
    "diagonal networks (u v with B = 1 / u v with B = 4 / u^2)": SPARSE,
    "small nets (squared loss with label noise / logistic with flipped labels / logistic without label noise)": NETS,
}

PUBLISHED = tuple(
    Published(
        quantity=f"c that fits the mean of SGD{sigma}: {group}",
        published="1",
        where="conjecture 1, equation 4",
        how="text",
        ours=functools.partial(prefactors_text, keys=keys, values=values),
    )
    for sigma, values in (("", fitted_c), (", if sigma is the mean of |l'|", fitted_c_of_mean_slope))
    for group, keys in _GROUPS.items()
)
