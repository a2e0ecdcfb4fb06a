"""Which probes a run on images may take, and the readings that they give."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from halflife import probes
from halflife.studies.lab.arrays import floats
from halflife.studies.lab.images.data import Images
from halflife.studies.specs.images import ImageRun
from halflife.studies.store.records import Array

__all__ = ["probe"]

BATCH = 125  # images at once: bounds the memory of per-example gradients
SPECTRUM = 64  # eigenvalues kept of a covariance

Values = dict[str, float]
Arrays = dict[str, Array]


def probe(spec: ImageRun, model: nn.Module, images: Images, lr: float) -> tuple[Values, Arrays]:
    """Measure a model with the probes of a run, BatchNorm in evaluation mode.

    Args:
        spec: Names the probes and how many images and products they take.
        model: The model.
        images: The training set; the first `ImageRun.probe_examples` are used.
        lr: The learning rate now, for the sharpness.

    Returns:
        Values and arrays by name.
    """
    count = min(spec.probe_examples, len(images))
    starts = range(0, count, BATCH)
    batches = [(images.x_NCHW[a : min(a + BATCH, count)], images.y_N[a : min(a + BATCH, count)]) for a in starts]
    problem = probes.Problem(model, nn.CrossEntropyLoss(), batches, batch_norm="eval")
    values: Values = {}
    arrays: Arrays = {}
    for name in spec.probes:
        found, more = _PROBES[name](spec, problem)
        if "top_eigenvalue" in found:
            found["sharpness"] = found["top_eigenvalue"] * lr / 2  # 1 is the edge of stability
        values |= found
        arrays |= more
    return values, arrays


def _hessian_trace(spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    estimate = probes.hessian_trace(problem, num_products=spec.probe_vectors, seed=spec.seed)
    return {"hessian_trace": estimate.value, "hessian_trace_se": estimate.standard_error}, {}


def _gauss_newton_trace(spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    estimate = probes.gauss_newton_trace(problem, num_products=spec.probe_vectors, seed=spec.seed)
    return {"gauss_newton_trace": estimate.value, "gauss_newton_trace_se": estimate.standard_error}, {}


def _top_eigenvalue(spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    return {"top_eigenvalue": float(probes.top_eigenvalues(problem, count=1, seed=spec.seed)[0])}, {}


def _jacobian_norm(_spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    return {"jacobian_norm": probes.jacobian_norm(problem).value}, {}


def _noise_scale(_spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    return {"noise_scale": probes.noise_scale(problem)}, {}


def _gradient_norm(spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    with_decay = probes.gradient_norm(problem, lam=spec.lam)
    return {"gradient_norm": probes.gradient_norm(problem), "regularized_gradient_norm": with_decay}, {}


def _gradient_noise(_spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    noise = probes.gradient_noise(problem)
    return {
        "gradient_second_moment": noise.second_moment,
        "gradient_mean_norm_sq": noise.mean_norm_sq,
        "gradient_noise_trace": noise.trace,
        "probe_loss": probes.mean_loss(problem),
    }, {}


def _alignment(spec: ImageRun, problem: probes.Problem) -> tuple[Values, Arrays]:
    cosines = probes.alignment(problem, num_vectors=spec.probe_vectors, seed=spec.seed)
    # A matrix that is zero has no cosine: the residual of a net that is linear in its weights.
    values = {f"cos/{pair.replace('/', '-')}": c.value for pair, c in cosines.items() if math.isfinite(c.value)}
    spectra = {
        "spectrum/covariance": probes.gradient_noise(problem).eigenvalues,
        "spectrum/decoupled": probes.gradient_noise(problem, decoupled=True).eigenvalues,
    }
    return values, {name: floats(_padded(eigenvalues, SPECTRUM)) for name, eigenvalues in spectra.items()}


def _padded(eigenvalues_N: Tensor, count: int) -> Tensor:
    """The first eigenvalues, always so many: those that a probe leaves out as rounding are 0 to that precision."""
    return functional.pad(eigenvalues_N[:count], (0, max(0, count - len(eigenvalues_N))))


_PROBES: dict[str, Callable[[ImageRun, probes.Problem], tuple[Values, Arrays]]] = {
    "hessian-trace": _hessian_trace,
    "gauss-newton-trace": _gauss_newton_trace,
    "top-eigenvalue": _top_eigenvalue,
    "jacobian-norm": _jacobian_norm,
    "noise-scale": _noise_scale,
    "gradient-norm": _gradient_norm,
    "gradient-noise": _gradient_noise,
    "alignment": _alignment,
}
