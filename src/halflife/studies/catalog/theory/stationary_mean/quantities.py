"""What the study `stationary-mean` measures, for each of a group of arms.

Everything is a positive ratio, so that its interval is of logarithms; distances are root mean squares over the training
inputs, and c is that of ||J||^2 unless another regularizer is named.

Shapes: S seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.theory.stationary_mean.theory import path_of, rms
from halflife.studies.evidence.quantities import Each, NotMeasuredError, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise

__all__ = [
    "CLOSED",
    "CONJECTURED",
    "DIFFER",
    "LABELS",
    "LINES",
    "NETS",
    "NOISY_NETS",
    "SPARSE",
    "Values",
    "as_written",
    "batch_ratio",
    "each",
    "fitted_c",
    "fitted_c_of_mean_slope",
    "inside_grid",
    "predicted",
    "premises",
    "trace_over_jacobian",
    "weights_apart",
]

LABELS = {
    "line-0.2": "h = u v, lr 0.2",
    "line-0.1": "h = u v, lr 0.1",
    "line-0.05": "h = u v, lr 0.05",
    "square": "h = u^2, lr 0.05",
    "sparse": "u v, B = 1",
    "sparse-batch": "u v, B = 4",
    "sparse-square": "u^2, B = 1",
    "net-squared": "squared loss, label noise",
    "net-flips": "logistic loss, flipped labels",
    "net-logistic": "logistic loss, no label noise",
}
LINES = ("line-0.2", "line-0.1", "line-0.05", "square")  # one parameter or two: any R fits with its own c
SPARSE = ("sparse", "sparse-batch", "sparse-square")
CLOSED = (*LINES, *SPARSE)
NETS = ("net-squared", "net-flips", "net-logistic")
NOISY_NETS = ("net-squared", "net-flips")
DIFFER = ("sparse-square",)  # the only one of SPARSE where the two R differ

CONJECTURED = 1.0
MOVED = 0.5  # of the distance without a regularizer, between the halves of the time: more is not stationary
LARGEST_GRADIENT = 1e-5  # at a minimum

Values = Callable[..., NDArray[np.float64]]


def each(name: str, keys: Sequence[str], values: Values, *, unit: str = "x") -> Each | Quantity:
    """A positive quantity of each of some arms; ``values`` takes the results, a size and the arm's key."""
    quantities = tuple(
        Quantity(name=f"{name}: {LABELS[key]}", values=functools.partial(values, key=key), unit=unit, log=True)
        for key in keys
    )
    if len(keys) == 1:
        return quantities[0]
    said = "; ".join(LABELS[key] for key in keys)
    return Each(name=f"{name}, in each of {said}", quantities=quantities, unit=unit)


def _first_problem(results: Results, size: int, *, keys: Sequence[str], problem: Callable[..., str]) -> str:
    return next((f"{LABELS[key]}: {said}" for key in keys if (said := problem(results, size, key))), "")


def _moves(results: Results, size: int, key: str) -> str:
    moved = (results.read(key, "drift", size) / path_of(results, key, size).distance(0.0)).mean()
    return f"it moves by {moved:.2f} of that distance" if moved > MOVED else ""


def _not_minimal(results: Results, size: int, key: str) -> str:
    gradient = results.read(key, "gradient", size).max()
    return f"the gradient at a minimum is {gradient:.1e}" if gradient > LARGEST_GRADIENT else ""


def _edge_of(results: Results, size: int, key: str, regularizer: str = "jacobian") -> str:
    at_edge = path_of(results, key, size, regularizer).at_edge()
    return "a seed's fitted c is 0 or the largest of its grid" if at_edge else ""


def premises(keys: Sequence[str]) -> tuple[Premise, ...]:
    """What every claim rests on, in every arm: the mean is at rest, minima are minima, and the grid holds the c that fits."""
    return (
        Premise(
            f"in every arm the mean moves by at most {MOVED:g} of the distance without a regularizer between the halves of the"
            " time, on average over seeds",
            functools.partial(_first_problem, keys=keys, problem=_moves),
        ),
        Premise(
            f"in every arm the gradient at each minimum is at most {LARGEST_GRADIENT:g}",
            functools.partial(_first_problem, keys=keys, problem=_not_minimal),
        ),
        inside_grid(keys),
    )


def inside_grid(keys: Sequence[str], regularizer: str = "jacobian") -> Premise:
    """What a fitted prefactor rests on."""
    of = "" if regularizer == "jacobian" else " of the trace of the Hessian"
    return Premise(
        f"in no arm and seed the fitted c{of} is 0 or the largest of its grid",
        functools.partial(_first_problem, keys=keys, problem=functools.partial(_edge_of, regularizer=regularizer)),
    )


def predicted(results: Results, size: int, *, key: str, inputs: str = "train") -> NDArray[np.float64]:
    """The distance of the mean from the minimum with c from the other seeds, over that without a regularizer, (S,)."""
    c_S = path_of(results, key, size).fit_of_others()
    path = path_of(results, key, size, inputs=inputs)
    return path.distance(c_S) / path.distance(0.0)


def fitted_c(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The prefactor that fits each seed, (S,)."""
    return path_of(results, key, size).fit()


def fitted_c_of_mean_slope(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The same if sigma is the mean of |l'|, and not the root of its mean square, (S,)."""
    squares_S, scale_S = (results.read(key, name, size) for name in ("noise_sq", "noise_scale"))
    return fitted_c(results, size, key=key) * squares_S / scale_S**2


def as_written(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The distance of the mean from the minimum with c = 1, over that without a regularizer, (S,)."""
    path = path_of(results, key, size)
    return path.distance(CONJECTURED) / path.distance(0.0)


def trace_over_jacobian(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The distance with the trace of the Hessian over that with ||J||^2, c fitted for each, (S,)."""
    trace, jacobian = (path_of(results, key, size, name) for name in ("hessian", "jacobian"))
    return trace.distance(trace.fit()) / jacobian.distance(jacobian.fit())


def weights_apart(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The distance of the mean weights' outputs from the mean outputs, over that without a regularizer, (S,)."""
    path = path_of(results, key, size)
    return rms(path.weights_SN - path.mean_SN) / path.distance(0.0)


def batch_ratio(results: Results, size: int) -> NDArray[np.float64]:
    """B times the fitted prefactor at B = 4 over that at B = 1, (S,)."""
    four_S, one_S = (fitted_c(results, size, key=key) for key in ("sparse-batch", "sparse"))
    if (one_S == 0).any():
        raise NotMeasuredError(f"the c that fits {LABELS['sparse']} is 0 in some seed")
    return four_S / one_S
