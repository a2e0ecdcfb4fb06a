"""Probes: pure measurements of curvature, Jacobian and gradient noise of a model on a loss and data.

A probe takes a `Problem` and gives numbers back; the model, its gradients and the random state are as before. They
need torch alone; only the largest eigenvalues of more than a few weights need scipy, of the extra ``[curvature]``.
"""

from __future__ import annotations

from halflife.probes.alignments import alignment
from halflife.probes.eigenvalues import sharpness, top_eigenvalues
from halflife.probes.estimators import Estimate
from halflife.probes.gradients import gradient_norm, mean_loss, noise_scale
from halflife.probes.jacobians import jacobian_norm
from halflife.probes.noise import GradientNoise, gradient_noise
from halflife.probes.problem import Problem
from halflife.probes.traces import gauss_newton_trace, hessian_trace

__all__ = [
    "Estimate",
    "GradientNoise",
    "Problem",
    "alignment",
    "gauss_newton_trace",
    "gradient_noise",
    "gradient_norm",
    "hessian_trace",
    "jacobian_norm",
    "mean_loss",
    "noise_scale",
    "sharpness",
    "top_eigenvalues",
]


def __dir__() -> list[str]:
    return sorted(__all__)
