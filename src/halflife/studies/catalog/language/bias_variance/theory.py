"""What SGD on least squares does in expectation, exactly: no simulation, the recursion of its moments.

For e_t = x_t - x* the mean and the diagonal of the second moment obey linear recursions that close, because the Hessian is
diagonal and Gaussian samples have fourth moments. With k = 1 - lr lam, m = E e, c = E e^2 and b = -lr lam x*, coordinate
by coordinate,

    m' = (k - lr mu) m + b
    c' = (k - lr mu)^2 c + lr^2 v + 2 (k - lr mu) b m + b^2
         v = s^2                                        "additive"
         v = mu^2 c + mu sum_j mu_j c_j + mu s^2        "sampled": E a a^T M a a^T = 2 H M H + tr(H M) H

A sum or an average of the iterates is linear in them, so its moments follow from the same numbers and E[e_t avg_t].

Shapes: D coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.specs.least_squares import LeastSquaresRun

__all__ = ["expected", "paper_bound", "stationary_risk"]

Vector = NDArray[np.float64]


@dataclass
class _Average:
    """Moments of a_t = keep a_{t-1} + take e_t: its mean, E a^2 and E a e, per coordinate."""

    mean_D: Vector
    square_D: Vector
    cross_D: Vector

    def follow(
        self, factor_D: Vector, shift: float, mean_D: Vector, square_D: Vector, keep: float, take: float
    ) -> None:
        """One step: e' = factor e + shift + noise, and then a' of it; ``mean_D`` and ``square_D`` are those of e'."""
        cross_D = factor_D * self.cross_D + shift * self.mean_D  # E a e', before a takes e' in
        self.square_D = keep**2 * self.square_D + 2 * keep * take * cross_D + take**2 * square_D
        self.cross_D = keep * cross_D + take * square_D
        self.mean_D = keep * self.mean_D + take * mean_D


@lru_cache(maxsize=64)
def expected(spec: LeastSquaresRun) -> Mapping[int, Mapping[str, float]]:
    """The expectation of every reading of a run, by step and name.

    Returns:
        For each step that is read the exact mean of ``risk``, ``bias``, ``variance``, ``average/risk``,
        ``ema-<decay>/risk`` and ``tail/risk``, where the run reads them.

    Examples:
        >>> spec = LeastSquaresRun(lr=0.5, noise_std=2.0, distance=4.0, num_steps=1, eval_every=1)
        >>> expected(spec)[1]["risk"]  # 1/2 ((1 - 0.5)^2 4^2 + 0.5^2 2^2)
        2.5
    """
    mu_D = np.array(spec.eigenvalues)
    root = np.sqrt(len(mu_D))
    optimum = spec.optimum / root
    mean_D = np.full(len(mu_D), -spec.distance / root)
    square_D = mean_D**2
    zero_D = np.zeros_like(mean_D)
    total = _Average(zero_D, zero_D, zero_D)
    emas = {decay: _Average(zero_D, zero_D, zero_D) for decay in spec.ema}
    num_averaged, tail, num_tail = 0, 0.0, 0

    def risk(second_D: Vector) -> float:
        return float(0.5 * mu_D @ second_D)

    found: dict[int, dict[str, float]] = {}
    for step in range(spec.last_step + 1):
        if step:
            lr = spec.lr_at(step - 1)
            factor_D, shift = 1 - lr * spec.lam - lr * mu_D, -lr * spec.lam * optimum
            noise_D = _gradient_noise(spec, mu_D, square_D)
            square_D = factor_D**2 * square_D + lr**2 * noise_D + 2 * factor_D * shift * mean_D + shift**2
            mean_D = factor_D * mean_D + shift
            if spec.average_from is not None and step >= spec.average_from:
                total.follow(factor_D, shift, mean_D, square_D, 1.0, 1.0)
                num_averaged += 1
            for decay, ema in emas.items():
                ema.follow(factor_D, shift, mean_D, square_D, decay, 1 - decay)
            if spec.in_tail(step):
                tail, num_tail = tail + risk(square_D), num_tail + 1
        if not spec.reads_at(step):
            continue
        values = {"risk": risk(square_D), "bias": risk(mean_D**2)}
        values["variance"] = values["risk"] - values["bias"]
        if num_averaged:
            values["average/risk"] = risk(total.square_D) / num_averaged**2
        if step:
            values |= {f"ema-{decay:g}/risk": risk(e.square_D) / (1 - decay**step) ** 2 for decay, e in emas.items()}
        if num_tail and step in spec.phase_ends:
            values["tail/risk"] = tail / num_tail
            tail, num_tail = 0.0, 0
        found[step] = values
    return found


def _gradient_noise(spec: LeastSquaresRun, mu_D: Vector, square_D: Vector) -> Vector:
    """What the gradient's noise adds to E e^2, over lr^2."""
    variance = spec.noise_std**2
    if spec.noise == "additive":
        return np.full_like(mu_D, variance)
    return mu_D**2 * square_D + mu_D * (mu_D @ square_D) + mu_D * variance


def stationary_risk(spec: LeastSquaresRun, lr: float | None = None) -> float:
    """The risk to which a run tends at a constant learning rate, from the fixed point of the recursion.

    Without decay and with additive noise it is sum_i lr s^2 / (2 (2 - lr mu_i)).

    Args:
        spec: The run.
        lr: The learning rate (``None``: that before the drop).

    Returns:
        The excess risk.

    Raises:
        UserError: The learning rate is so large that there is none.

    Examples:
        >>> round(stationary_risk(LeastSquaresRun(lr=0.1, noise_std=0.5, num_steps=1)), 5)
        0.00658
    """
    lr = spec.lr if lr is None else lr
    mu_D = np.array(spec.eigenvalues)
    factor_D = 1 - lr * spec.lam - lr * mu_D
    shift = -lr * spec.lam * spec.optimum / np.sqrt(len(mu_D))
    mean_D = shift / (1 - factor_D)
    matrix_DD = np.diag(factor_D**2)
    if spec.noise == "sampled":
        matrix_DD += lr**2 * (np.diag(mu_D**2) + np.outer(mu_D, mu_D))
    if np.abs(np.linalg.eigvals(matrix_DD)).max() >= 1:
        raise UserError(f"at lr {lr:g} the risk grows without bound: lower the learning rate")
    noise_D = _gradient_noise(spec, mu_D, np.zeros_like(mu_D))
    constant_D = lr**2 * noise_D + 2 * factor_D * shift * mean_D + shift**2
    return float(0.5 * mu_D @ np.linalg.solve(np.eye(len(mu_D)) - matrix_DD, constant_D))


def paper_bound(spec: LeastSquaresRun, step: int) -> float:
    """The bound (1 - lr mu)^t ||x_0 - x*||^2 + lr sigma^2, before the drop.

    mu is the smallest eigenvalue and sigma^2 the variance of the gradient's noise at x*: d s^2, or s^2 tr H with samples.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 3, where constants are dropped.

    Args:
        spec: The run.
        step: Steps done, t.

    Returns:
        The bound on the excess risk.

    Raises:
        UserError: The step lies behind the drop.
    """
    if spec.drop_step is not None and step > spec.drop_step:
        raise UserError(f"the bound holds for a constant lr, and step {step} lies behind the drop: ask before it")
    variance = spec.noise_std**2 * (len(spec.eigenvalues) if spec.noise == "additive" else sum(spec.eigenvalues))
    return float((1 - spec.lr * min(spec.eigenvalues)) ** step * spec.distance**2 + spec.lr * variance)
