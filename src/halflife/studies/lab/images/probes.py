"""Which probes a run on images may take, and the readings that they give."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife import probes
from halflife.optim.norms import squared_norms
from halflife.probes.gradients import mean_gradient
from halflife.studies.lab.arrays import floats
from halflife.studies.lab.images.data import Images
from halflife.studies.lab.images.optimizers import decayed_of
from halflife.studies.specs.images import ImageRun
from halflife.studies.store.records import Array

__all__ = ["probe"]

BATCH = 125  # images at once: bounds the memory of per-example gradients
GRADIENT_BATCH = 1000  # images whose mean and variance BatchNorm takes in the full gradient
SPECTRUM = 64  # eigenvalues kept of a covariance

Values = dict[str, float]
Arrays = dict[str, Array]


def probe(spec: ImageRun, model: nn.Module, images: Images, lr: float) -> tuple[Values, Arrays]:
    """Measure a model with the probes of a run, BatchNorm in evaluation mode.

    Args:
        spec: Names the probes and how many images and products they take.
        model: The model.
        images: The training set; the first `ImageRun.probe_examples` are used, of ``"decayed-gradient"`` all.
        lr: The learning rate now, for the sharpness.

    Returns:
        Values and arrays by name.
    """
    values: Values = {}
    arrays: Arrays = {}
    if "decayed-gradient" in spec.probes:
        values |= _decayed_gradient(spec, model, images)
    if not (names := [name for name in spec.probes if name in _PROBES]):
        return values, arrays
    problem = _problem(model, images, min(spec.probe_examples, len(images)), BATCH)
    for name in names:
        found, more = _PROBES[name](spec, problem)
        if "top_eigenvalue" in found:
            found["sharpness"] = found["top_eigenvalue"] * lr / 2  # 1 is the edge of stability
        values |= found
        arrays |= more
    return values, arrays


def _problem(
    model: nn.Module, images: Images, count: int, size: int, batch_norm: Literal["eval", "batch"] = "eval"
) -> probes.Problem:
    """The loss on the first images, so many at once."""
    starts = range(0, count, size)
    batches = [(images.x_NCHW[a : min(a + size, count)], images.y_N[a : min(a + size, count)]) for a in starts]
    return probes.Problem(model, nn.CrossEntropyLoss(), batches, batch_norm=batch_norm)


def _decayed_gradient(spec: ImageRun, model: nn.Module, images: Images) -> Values:
    """Norms of the decayed weights, and of the full gradient of the data's loss by them, with both kinds of statistics."""
    decayed = decayed_of(spec, model)
    norms_P = squared_norms(list(decayed.values())).sqrt()
    norm = math.sqrt(float(norms_P.square().sum()))
    values = {"decayed/norm": norm}
    values |= {f"decayed/norm/{name}": each for name, each in zip(decayed, norms_P.tolist(), strict=True)}
    kinds: list[tuple[str, Literal["eval", "batch"]]] = [("", "eval")]
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        kinds.append(("_batch", "batch"))
    for suffix, kind in kinds:
        problem = _problem(model, images, len(images), GRADIENT_BATCH, kind)
        with problem.measuring():
            parts = torch.split(mean_gradient(problem), list(problem.sizes))
        by_name = dict(zip(problem.names, parts, strict=True))
        gradient = math.sqrt(float(squared_norms([by_name[name] for name in decayed]).sum()))
        values |= {f"decayed/gradient_norm{suffix}": gradient, f"decayed/norm_gradient{suffix}": norm * gradient}
    return values


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
    values = {"gradient_norm": probes.gradient_norm(problem)}
    if not spec.decay and spec.decay_on == "everything":  # the objective that lam stands for
        values["regularized_gradient_norm"] = probes.gradient_norm(problem, lam=spec.lam)
    return values, {}


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
