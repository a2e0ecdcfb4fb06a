"""The decision rules of the study of curvature and noise, one function a claim.

Each takes the results and a size. H is the Hessian of the training loss, G its Gauss-Newton part, E = H - G the rest, Sigma
the covariance of the gradients of single examples; cos(A, B) is the mean over random directions v of cos(A v, B v).

Shapes: S seeds, L eigenvalues.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.decisions import EQUAL_CONFIDENCE, Finding, above, above_zero, all_of, below, within
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = [
    "MODELS",
    "PAIRS",
    "aligned",
    "cell_keys",
    "cosine",
    "noise_raises",
    "noisy",
    "order",
    "orthogonal",
    "part_of_hessian",
    "spectra_differ_by",
    "spectra_in_shape",
    "spectra_in_sum",
]

MODELS = ("scale-invariant", "resnet", "mlp")
PAIRS = {
    "hessian-covariance": "cos(H, Sigma)",
    "gauss-newton-covariance": "cos(G, Sigma)",
    "hessian-gauss-newton": "cos(H, G)",
    "residual-covariance": "cos(E, Sigma)",
    "gauss-newton-residual": "cos(G, E)",
    "hessian-residual": "cos(H, E)",
}
ALIGNED = 0.5  # a cosine; the paper has 0.84 and 0.97
CLOSELY = 0.8
NEGLIGIBLE = 0.2  # the paper has 0.02
CLEARLY_PART = 0.25  # the paper has 0.51
SPECTRAL_SUM = 0.25  # relative l1 distance
SPECTRAL_FACTOR = 2.0  # mean factor between eigenvalues of equal rank
TOP = 20  # eigenvalues compared


def noisy(model: str) -> str:
    """The arm of a model that trains on labels of which a share is random."""
    return f"{model}-noise"


def cell_key(lr: int, lam: int) -> str:
    """The arm of a setting of the grid, by the index of its learning rate and of its lam."""
    return f"cell-{lr}-{lam}"


def cell_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid."""
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith("cell-")]


def cosine(results: Results, key: str, pair: str, size: int, *, late: bool = False) -> NDArray[np.float64]:
    """A cosine after the first epoch, or at the end.

    Args:
        results: What the store holds.
        key: The arm.
        pair: One of `PAIRS`.
        size: The size.
        late: At the end.

    Returns:
        One value per seed, shape (S,).
    """
    name = f"cos/{pair}"
    return results.last(key, name, size) if late else results.per_seed(key, name, 1, size)


def _words(interval: Interval, sign: str = "") -> str:
    return f"{interval.estimate:{sign}.2f} [{interval.low:{sign}.2f}, {interval.high:{sign}.2f}]"


def _when(late: bool) -> str:
    return "at the end" if late else "after the first epoch"


def aligned(
    results: Results, size: int, *, models: Sequence[str], pair: str, bound: float, late: bool = False
) -> Finding:
    """Claims that two matrices are aligned, in each of some arms; the effect is the smallest cosine.

    Args:
        results: What the store holds.
        size: The size.
        models: The arms.
        pair: One of `PAIRS`.
        bound: What the cosine must exceed.
        late: At the end, not after the first epoch.

    Returns:
        The finding.
    """
    found = {model: seed_interval(cosine(results, model, pair, size, late=late)) for model in models}
    return Finding(
        all_of(*(above(interval, bound) for interval in found.values())),
        min(found.values(), key=lambda interval: interval.estimate),
        f"{PAIRS[pair]} {_when(late)} is {', '.join(f'{_words(i)} ({model})' for model, i in found.items())}",
    )


def orthogonal(results: Results, size: int) -> Finding:
    """Claim c: the rest of the Hessian has no part in the noise, nor in the Gauss-Newton matrix; the larger cosine."""
    pairs = ("residual-covariance", "gauss-newton-residual")
    found = [seed_interval(cosine(results, MODELS[0], pair, size), EQUAL_CONFIDENCE) for pair in pairs]
    return Finding(
        all_of(*(within(interval, NEGLIGIBLE) for interval in found)),
        max(found, key=lambda interval: abs(interval.estimate)),
        f"after the first epoch {' and '.join(f'{PAIRS[p]} is {_words(i)}' for p, i in zip(pairs, found, strict=True))} (90%)",
    )


def part_of_hessian(results: Results, size: int) -> Finding:
    """Claim c-part: it is a part of the Hessian all the same."""
    return aligned(results, size, models=MODELS[:1], pair="hessian-residual", bound=CLEARLY_PART)


def order(results: Results, size: int) -> Finding:
    """Claim d: the noise is closer to the Gauss-Newton matrix than to the Hessian."""
    gauss_newton, hessian = (
        cosine(results, MODELS[0], pair, size) for pair in ("gauss-newton-covariance", "hessian-covariance")
    )
    effect = seed_interval(gauss_newton - hessian)
    return Finding(
        above_zero(effect),
        effect,
        f"after the first epoch cos(G, Sigma) is {gauss_newton.mean():.2f} and cos(H, Sigma) {hessian.mean():.2f}, a"
        f" difference of {_words(effect, '+')}",
    )


def noise_raises(results: Results, size: int, *, pair: str) -> Finding:
    """Claims g: what random labels change of a cosine at the end, in each model; the effect is the smallest.

    Args:
        results: What the store holds.
        size: The size.
        pair: One of `PAIRS`.

    Returns:
        The finding.
    """
    changes, words = [], []
    for model in MODELS:
        without, with_noise = (cosine(results, key, pair, size, late=True) for key in (model, noisy(model)))
        changes.append(seed_interval(with_noise - without))
        words.append(f"{without.mean():.2f} and {with_noise.mean():.2f} ({model}, {_words(changes[-1], '+')})")
    return Finding(
        all_of(*map(above_zero, changes)),
        min(changes, key=lambda change: change.estimate),
        f"{PAIRS[pair]} at the end is, without and with random labels, {', '.join(words)}",
    )


def _spectra(results: Results, key: str, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The largest eigenvalues of the covariance and of its decoupling approximation at the end, shape (S, L) each."""
    one_SL, other_SL = (results.last_array(key, f"spectrum/{name}", size) for name in ("covariance", "decoupled"))
    # Behind the last eigenvalue that is more than rounding there are zeros.
    whole_L = (np.minimum(one_SL, other_SL) > 0).all(axis=0).cumprod()
    count = min(TOP, int(whole_L.sum()))
    return one_SL[:, :count], other_SL[:, :count]


def spectra_differ_by(results: Results, key: str, size: int, *, shape: bool) -> NDArray[np.float64]:
    """How far the largest eigenvalues with decoupling are from those without, at the end.

    Args:
        results: What the store holds.
        key: The arm.
        size: The size.
        shape: The mean of |log(eigenvalue / eigenvalue of the same rank)|, as on a logarithmic axis; else the relative l1
            distance, sum |difference| / sum.

    Returns:
        One value per seed, shape (S,).
    """
    one_SL, other_SL = _spectra(results, key, size)
    if shape:
        found: NDArray[np.float64] = np.abs(np.log(other_SL / one_SL)).mean(axis=1)
    else:
        found = np.abs(other_SL - one_SL).sum(axis=1) / one_SL.sum(axis=1)
    return found


def _spectra_finding(results: Results, size: int, bound: float, *, shape: bool) -> Finding:
    found = {key: seed_interval(spectra_differ_by(results, key, size, shape=shape)) for key in cell_keys(results, size)}
    shown = {key: interval.exp() if shape else interval for key, interval in found.items()}
    words = []
    for key, interval in shown.items():
        spec = results.spec(key, size)
        assert isinstance(spec, ImageRun)
        words.append(f"{_words(interval)} (lr {spec.lr:g}, lam {spec.lam:g})")
    what = "mean factor between equal ranks" if shape else "relative distance"
    return Finding(
        all_of(*(below(interval, bound) for interval in found.values())),
        max(shown.values(), key=lambda interval: interval.estimate),
        f"the {what} of the {TOP} largest eigenvalues is {', '.join(words)}",
    )


def spectra_in_sum(results: Results, size: int) -> Finding:
    """Claim h: at each setting of the grid; the effect is the largest distance."""
    return _spectra_finding(results, size, SPECTRAL_SUM, shape=False)


def spectra_in_shape(results: Results, size: int) -> Finding:
    """Claim h-log: at each setting of the grid; the effect is the largest factor."""
    return _spectra_finding(results, size, float(np.log(SPECTRAL_FACTOR)), shape=True)
