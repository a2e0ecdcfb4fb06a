"""Estimates with a standard error, and those of the trace of a symmetric matrix that is known by products only.

Shapes: P weights, M random vectors. Every estimator takes Rademacher vectors.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from halflife.probes.operators import Product

__all__ = ["Estimate", "hutch_plus_plus", "hutchinson", "mean_and_error", "xtrace"]


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from random vectors, or computed exactly.

    Args:
        value: The number.
        standard_error: Its standard error; 0.0 where the number is exact up to rounding.
        num_products: How many products with the matrix it took (for a Jacobian: per example).

    Examples:
        >>> Estimate(2.0, 0.1, 24).relative_error
        0.05
    """

    value: float
    standard_error: float
    num_products: int

    @property
    def relative_error(self) -> float:
        """The standard error over the size of the value; ``inf`` for a value of 0 with an error, 0 for an exact one."""
        if self.standard_error == 0:
            return 0.0
        return self.standard_error / abs(self.value) if self.value else float("inf")


def mean_and_error(samples_M: Tensor) -> tuple[float, float]:
    """The mean of at least two independent samples, and its standard error: standard deviation / sqrt(M)."""
    return float(samples_M.mean()), float(samples_M.std() / math.sqrt(len(samples_M)))


def hutchinson(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """Hutchinson's (Girard's) estimator: the mean of w^T A w.

    The standard error is that of a mean of M independent samples. For Rademacher vectors the variance of a sample is
    2 sum_{i != j} A_ij^2.

    Source: Girard 1989; Hutchinson 1989.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors, one product each.

    Returns:
        The estimate and its standard error.
    """
    return mean_and_error((w_PM * product(w_PM)).sum(0).cpu().double())


def hutch_plus_plus(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """Hutch++: exact on the range of A times half of the vectors, Hutchinson with the others on what is left.

    tr A = tr Q^T A Q + tr (I - QQ^T) A (I - QQ^T). Given Q the samples of the second term are independent, and the
    standard error is that of their mean.

    Source: Meyer, Musco, Musco and Woodruff 2021, arXiv 2010.09649, algorithm 1.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors, an even number; 3 M / 2 products.

    Returns:
        The estimate and its standard error.
    """
    s_PM, g_PM = w_PM.chunk(2, dim=1)
    q_PM = torch.linalg.qr(product(s_PM))[0]
    inside = (q_PM * product(q_PM)).sum()
    rest_PM = g_PM - q_PM @ (q_PM.T @ g_PM)
    mean, error = mean_and_error((rest_PM * product(rest_PM)).sum(0).cpu().double())
    return float(inside) + mean, error


def xtrace(product: Product, w_PM: Tensor) -> tuple[float, float]:
    """XTrace: every vector in turn is the sample, all others span the space in which the trace is exact.

    The estimate is the mean of M estimates t_i, where t_i is Hutch++ with the range of A times all vectors but the
    i-th, and the i-th as the only sample. All come from one QR decomposition. The standard error is
    sqrt(2 sum_i (t_i - t)^2 / (M (M - 1))). Without the 2 it is the authors' own, which takes the t_i for independent;
    they are not, and on six kinds of spectra it was too small by a factor of 1.0 to 1.9. With it the error is between
    0.75 and 1.4 times the true one (``docs/probes.md``).

    Source: Epperly, Tropp and Webber 2024, arXiv 2301.07825, sections 2.3 and 4.

    Args:
        product: v_PV -> (A v)_PV, A symmetric.
        w_PM: Rademacher vectors; 2 M products.

    Returns:
        The estimate and its standard error; exact where the range of A has fewer than M dimensions.
    """
    y_PM = product(w_PM)
    q_PM, r_MM = torch.linalg.qr(y_PM)
    # What is left is small: in double precision.
    r_MM = _double(r_MM)
    if not bool(torch.isfinite(r_MM).all()):
        return math.nan, math.nan
    z_PM = product(q_PM)
    h_MM, w_MM, t_MM = _double(q_PM.T @ z_PM), _double(q_PM.T @ w_PM), _double(z_PM.T @ w_PM)
    u_MM, sigma_M, _ = torch.linalg.svd(r_MM)
    kept = sigma_M > len(sigma_M) * torch.finfo(w_PM.dtype).eps * sigma_M.max()
    if not bool(kept.all()):
        # A maps M random vectors to fewer dimensions: that is its whole range, and the trace is exact there.
        u_MR = u_MM[:, kept]
        return float((u_MR * (h_MM @ u_MR)).sum()), 0.0
    # s_i: the unit vector with span(Q minus Q s_i) = the range of A times all vectors but the i-th.
    s_MM = torch.linalg.inv(r_MM).T
    s_MM = s_MM / s_MM.norm(dim=0)
    # x_i = (I - s_i s_i^T) Q^T w_i: the part of w_i in that range.
    x_MM = w_MM - s_MM * (s_MM * w_MM).sum(0)
    # (w_i - Q x_i)^T A (w_i - Q x_i), with A w_i = Q R e_i.
    outside = ((w_MM - x_MM) * r_MM).sum(0) - (t_MM * x_MM).sum(0) + (x_MM * (h_MM @ x_MM)).sum(0)
    inside = h_MM.trace() - (s_MM * (h_MM @ s_MM)).sum(0)
    mean, error = mean_and_error(inside + outside)
    return mean, math.sqrt(2) * error


def _double(t: Tensor) -> Tensor:
    return t.cpu().double()
