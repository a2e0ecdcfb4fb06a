"""What the study of curvature and noise measures.

H is the Hessian of the training loss, G its Gauss-Newton part, E = H - G the rest, Sigma the covariance of the gradients of
single examples; the cosine of A and B is the mean over random directions v of cos(A v, B v).

Shapes: S seeds, L eigenvalues.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import keys_starting
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.quantities import Each, NotMeasuredError, Quantity, Reading
from halflife.studies.evidence.results import Results

__all__ = [
    "MODELS",
    "PAIRS",
    "TOP",
    "all_spectra",
    "cell_keys",
    "cosine",
    "cosines",
    "label_noise_adds",
    "noisy",
    "reading",
    "spectra",
    "spectra_differ_by",
]

MODELS = ("scale-invariant", "resnet", "mlp")
NAMES = {"scale-invariant": "the scale-invariant ResNet", "resnet": "the ResNet with BatchNorm", "mlp": "the MLP"}
PAIRS = {
    "hessian-covariance": "cos(H, Sigma)",
    "gauss-newton-covariance": "cos(G, Sigma)",
    "hessian-gauss-newton": "cos(H, G)",
    "residual-covariance": "cos(E, Sigma)",
    "gauss-newton-residual": "cos(G, E)",
    "hessian-residual": "cos(H, E)",
}
WORDS = {
    "cos(H, Sigma)": "cosine of Hessian and gradient covariance",
    "cos(G, Sigma)": "cosine of Gauss-Newton matrix and gradient covariance",
    "cos(E, Sigma)": "cosine of the rest of the Hessian and gradient covariance",
    "cos(G, E)": "cosine of Gauss-Newton matrix and the rest of the Hessian",
    "cos(H, E)": "cosine of the Hessian and its rest beside the Gauss-Newton matrix",
}
TOP = 20  # eigenvalues compared


def noisy(model: str) -> str:
    """The arm of a model that trains on labels of which a share is random."""
    return f"{model}-noise"


def cell_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid of learning rates and lams."""
    return keys_starting(results, size, "cell-")


def reading(arm: str, pair: str, *, late: bool = False) -> Reading:
    """A cosine of an arm after the first epoch, or at the end."""
    return Reading(arm, f"cos/{pair}", epoch=None if late else 1)


def _name(arm: str, pair: str, late: bool) -> str:
    model = NAMES[arm.removesuffix("-noise")] + (" with random labels" if arm.endswith("-noise") else "")
    return f"{WORDS[PAIRS[pair]]}, {model}, {'at the end' if late else 'after the first epoch'}"


def cosine(arm: str, pair: str, *, late: bool = False) -> Quantity:
    """A cosine of one arm."""
    return Quantity(name=_name(arm, pair, late), values=reading(arm, pair, late=late))


def cosines(name: str, arms: Sequence[str], pair: str, *, late: bool = False) -> Each:
    """A cosine of each of several arms."""
    words = f"{WORDS[PAIRS[pair]]}, in {name}, {'at the end' if late else 'after the first epoch'}"
    return Each(name=words, quantities=tuple(cosine(arm, pair, late=late) for arm in arms))


def label_noise_adds(pair: str) -> Each:
    """What random labels add to a cosine at the end, in each model."""
    return Each(
        name=f"{WORDS[PAIRS[pair]]} with random labels - without, in each of the three nets, at the end",
        quantities=tuple(
            Quantity(
                name=f"{WORDS[PAIRS[pair]]} with random labels - without, {NAMES[model]}, at the end",
                values=reading(noisy(model), pair, late=True) - reading(model, pair, late=True),
            )
            for model in MODELS
        ),
    )


def spectra_differ_by(results: Results, size: int, *, key: str, shape: bool) -> NDArray[np.float64]:
    """How far the largest eigenvalues of the decoupled covariance are from those of the covariance, sorted, at the end.

    Args:
        results: What the store holds.
        size: The size.
        key: The arm.
        shape: The mean factor between eigenvalues of the same rank, exp(mean |log ratio|), as on a logarithmic axis; else the
            relative l1 distance, sum |difference| / sum.

    Returns:
        Shape (S,).

    Raises:
        NotMeasuredError: No eigenvalue is above 0.
    """
    one_SL, other_SL = (results.read(key, f"spectrum/{name}", size) for name in ("covariance", "decoupled"))
    # Behind the last eigenvalue that is more than rounding there are zeros.
    count = min(TOP, int((np.minimum(one_SL, other_SL) > 0).all(axis=0).cumprod().sum()))
    if not count:
        raise NotMeasuredError("no eigenvalue is above 0 in every seed")
    one_SL, other_SL = one_SL[:, :count], other_SL[:, :count]
    if shape:
        return np.asarray(np.exp(np.abs(np.log(other_SL / one_SL)).mean(axis=1)))
    return np.asarray(np.abs(other_SL - one_SL).sum(axis=1) / one_SL.sum(axis=1))


def _spectra_at(results: Results, size: int, *, name: str, shape: bool) -> list[Quantity]:
    specs = {key: image_run(results, key, size) for key in cell_keys(results, size)}
    return [
        Quantity(
            name=f"{name}, lr {spec.lr:g}, lam {spec.lam:g}",
            values=functools.partial(spectra_differ_by, key=key, shape=shape),
            unit="x" if shape else "",
            log=True,
        )
        for key, spec in specs.items()
    ]


def all_spectra(results: Results, size: int) -> list[NDArray[np.float64]]:
    """`spectra_differ_by` of every setting of the grid."""
    return [spectra_differ_by(results, size, key=key, shape=False) for key in cell_keys(results, size)]


def spectra(name: str, *, shape: bool) -> Each:
    """How far the spectra with and without decoupling are apart, at each setting of the grid."""
    return Each(
        name=f"{name}, at each learning rate and lam",
        quantities=functools.partial(_spectra_at, name=name, shape=shape),
        unit="x" if shape else "",
    )
