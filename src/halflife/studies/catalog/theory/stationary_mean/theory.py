"""Where the mean of SGD in function space lies beside the minima of regularized objectives, and the prefactor that fits it.

A run holds the outputs at the minima for a few prefactors c (`halflife.studies.specs.stationary`). Between two of them outputs
are taken as linear in c: they are smooth in it, and the places lie within a factor of 1.5.

Shapes: S seeds, K prefactors, N inputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.results import Results
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["THEORY", "Path", "fitted", "path_of", "rms", "stationary_spec"]

THEORY = 0.25
"""The prefactor that the theory of SGD with label noise gives for small learning rates."""


@dataclass(frozen=True)
class Path:
    """The minima of one arm along c, and what was measured.

    Args:
        c_K: The prefactors, ascending from 0.
        minima_SKN: Outputs at the minima.
        mean_SN: Outputs averaged over time and replicas.
        weights_SN: Outputs of the mean of the weights.
    """

    c_K: NDArray[np.float64]
    minima_SKN: NDArray[np.float64]
    mean_SN: NDArray[np.float64]
    weights_SN: NDArray[np.float64]

    def outputs(self, c_S: NDArray[np.float64]) -> NDArray[np.float64]:
        """The minima's outputs at one prefactor a seed.

        Args:
            c_S: The prefactors, within the range of `c_K`.

        Returns:
            Shape (S, N).
        """
        right_S = np.clip(np.searchsorted(self.c_K, c_S), 1, len(self.c_K) - 1)
        left_c, right_c = self.c_K[right_S - 1], self.c_K[right_S]
        share_S1 = ((c_S - left_c) / (right_c - left_c))[:, None]
        seeds = np.arange(len(c_S))
        found: NDArray[np.float64] = (1 - share_S1) * self.minima_SKN[seeds, right_S - 1] + (
            share_S1 * self.minima_SKN[seeds, right_S]
        )
        return found

    def distance(self, c_S: NDArray[np.float64] | float) -> NDArray[np.float64]:
        """The root mean square distance of the mean from the minimum at a prefactor.

        Args:
            c_S: One prefactor, or one a seed.

        Returns:
            Shape (S,). The standard error of the mean is in it, so that it never is quite 0.
        """
        each_S = np.broadcast_to(np.asarray(c_S, dtype=np.float64), len(self.mean_SN))
        return rms(self.outputs(each_S) - self.mean_SN)

    def fit(self) -> NDArray[np.float64]:
        """For each seed the prefactor whose minimum is nearest to the mean, (S,)."""
        return np.array([fitted(self.c_K, *pair) for pair in zip(self.minima_SKN, self.mean_SN, strict=True)])

    def at_edge(self) -> bool:
        """Whether a fitted prefactor is 0 or the largest."""
        found_S = self.fit()
        return bool((found_S <= 0).any() or (found_S >= self.c_K[-1]).any())

    def fit_of_others(self) -> NDArray[np.float64]:
        """For each seed the geometric mean of the prefactors that fit the other seeds, (S,)."""
        log_S = np.log(np.maximum(self.fit(), self.c_K[1] / 4))
        return np.array([np.exp(np.delete(log_S, seed).mean()) for seed in range(len(log_S))])


def rms(values_SN: NDArray[np.float64]) -> NDArray[np.float64]:
    """Root mean square over inputs, (S,)."""
    found: NDArray[np.float64] = np.sqrt((values_SN**2).mean(axis=1))
    return found


def fitted(c_K: NDArray[np.float64], minima_KN: NDArray[np.float64], mean_N: NDArray[np.float64]) -> float:
    """The prefactor whose minimum is nearest to a mean, along the polygon through the minima.

    Args:
        c_K: Prefactors, ascending.
        minima_KN: Outputs at the minima.
        mean_N: The mean.

    Returns:
        The prefactor, between the first and the last.

    Examples:
        >>> c_K, minima_KN = np.array([0.0, 1.0, 2.0]), np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 2.0]])
        >>> fitted(c_K, minima_KN, np.array([0.5, -1.0])), fitted(c_K, minima_KN, np.array([2.5, 1.0]))
        (0.25, 1.5)
    """
    best_c, best_sq = float(c_K[0]), float("inf")
    for k in range(len(c_K) - 1):
        start_N, step_N = minima_KN[k], minima_KN[k + 1] - minima_KN[k]
        length_sq = float(step_N @ step_N)
        share = min(max(float(step_N @ (mean_N - start_N)) / length_sq, 0.0), 1.0) if length_sq > 0 else 0.0
        distance_sq = float(((start_N + share * step_N - mean_N) ** 2).sum())
        if distance_sq < best_sq:
            best_c, best_sq = float(c_K[k] + share * (c_K[k + 1] - c_K[k])), distance_sq
    return best_c


def stationary_spec(results: Results, key: str, size: int) -> StationaryRun:
    """An arm's spec."""
    spec = results.spec(key, size)
    assert isinstance(spec, StationaryRun)
    return spec


def path_of(results: Results, key: str, size: int, regularizer: str = "jacobian", inputs: str = "train") -> Path:
    """An arm's path, for ``"jacobian"`` or ``"hessian"``, on ``"train"`` or ``"held-out"`` inputs."""
    c_K = np.array(stationary_spec(results, key, size).prefactors)
    mean_SN = results.read(key, f"mean/{inputs}", size)
    flat_SX = results.read(key, f"minimum/{regularizer}/{inputs}", size)
    return Path(
        c_K=c_K,
        minima_SKN=flat_SX.reshape(len(mean_SN), len(c_K), -1),
        mean_SN=mean_SN,
        weights_SN=results.read(key, f"weights/{inputs}", size),
    )
