"""Training on noise alone: what the formulas of `halflife.theory` are compared with, written from the published updates.

The loss sees the directions of the weights alone: each gradient is fresh noise, orthogonal to the weight, with the norm
``size / ||w||``. A row is a weight tensor of its own, with its own settings. Shapes: K rows, D weights of each, T steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Optimizer", "Walk", "adam", "column", "lion", "muon", "orthogonalized", "sgd", "walk"]

# weights, gradients and the number of the step from 1 -> new weights, and the gradients as the optimizer takes them
Optimizer = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Walk:
    """Root mean squares over the steps that were watched, (K,); the norms at all steps, (T, K)."""

    norm: Tensor
    rotation: Tensor
    gradient_to_weight: Tensor
    norms: Tensor


def column(*values: float) -> Tensor:
    """A setting of each row, (K, 1)."""
    return torch.tensor(values, dtype=torch.float64)[:, None]


def walk(optimizer: Optimizer, sizes: Tensor, start: Tensor, num_weights: int, *, steps: int, skip: int) -> Walk:
    """Train on noise; the first ``skip`` steps are not watched."""
    generator = torch.Generator().manual_seed(0)

    def noise() -> Tensor:
        return torch.randn(len(sizes), num_weights, generator=generator, dtype=torch.float64)

    weights = noise()
    weights *= start / weights.norm(dim=1, keepdim=True)
    norms, angles, ratios = [], [], []
    for step in range(1, steps + 1):
        gradient, norm = noise(), weights.norm(dim=1, keepdim=True)
        gradient -= (gradient * weights).sum(1, keepdim=True) / norm**2 * weights
        gradient *= sizes / norm / gradient.norm(dim=1, keepdim=True)
        after, taken = optimizer(weights, gradient, step)
        norms.append(norm[:, 0])
        if step > skip:
            length = after.norm(dim=1)
            angles.append(torch.acos(((weights * after).sum(1) / norm[:, 0] / length).clamp(max=1.0)))
            ratios.append(taken.norm(dim=1) / norm[:, 0])
        weights = after

    def root_mean_square(readings: list[Tensor]) -> Tensor:
        return torch.stack(readings).square().mean(0).sqrt()

    return Walk(root_mean_square(norms[skip:]), root_mean_square(angles), root_mean_square(ratios), torch.stack(norms))


def sgd(
    lr: Tensor, momentum: Tensor, *, lam: Tensor | float = 0.0, r: Tensor | float = 0.0, nesterov: bool = False
) -> Optimizer:
    """Torch's SGD with a penalty ``lam``, after a decoupled decay by ``r``."""
    buffer: Tensor | None = None

    def step(weights: Tensor, gradient: Tensor, number: int) -> tuple[Tensor, Tensor]:
        nonlocal buffer
        added = gradient + lam * weights
        buffer = added if buffer is None else momentum * buffer + added
        update = added + momentum * buffer if nesterov else buffer
        return (1 - r) * weights - lr * update, gradient

    return step


def adam(
    lr: Tensor | Callable[[int], float],
    beta1: Tensor,
    *,
    beta2: Tensor | float = 0.99,
    lam: Tensor | float = 0.0,
    decayed: Callable[[Tensor, Tensor, Tensor, int], Tensor] = lambda weights, update, v, number: weights,
) -> Optimizer:
    """Adam with a penalty ``lam``; ``decayed`` gives what is left of the weights before the update is subtracted."""
    m = v = torch.zeros(1, dtype=torch.float64)

    def step(weights: Tensor, gradient: Tensor, number: int) -> tuple[Tensor, Tensor]:
        nonlocal m, v
        added = gradient + lam * weights
        m = beta1 * m + (1 - beta1) * added
        v = beta2 * v + (1 - beta2) * added**2
        v_hat = v / (1 - beta2**number)
        update = m / (1 - beta1**number) / v_hat.sqrt()
        rate = lr(number - 1) if callable(lr) else lr
        return decayed(weights, update, v_hat, number - 1) - rate * update, gradient / v_hat.sqrt()

    return step


def lion(lr: Tensor, lam: Tensor, beta1: Tensor, beta2: Tensor) -> Optimizer:
    """Lion."""
    m = torch.zeros(1, dtype=torch.float64)

    def step(weights: Tensor, gradient: Tensor, number: int) -> tuple[Tensor, Tensor]:
        nonlocal m
        signs = (beta1 * m + (1 - beta1) * gradient).sign()
        m = beta2 * m + (1 - beta2) * gradient
        return (1 - lr * lam) * weights - lr * signs, signs

    return step


def orthogonalized(matrices: Tensor) -> Tensor:
    """U V^T of each matrix U S V^T that is no higher than wide."""
    values, vectors = torch.linalg.eigh(matrices @ matrices.mT)
    roots: Tensor = (vectors * values.rsqrt()[:, None, :]) @ vectors.mT
    return roots @ matrices


def muon(
    lr: float, lam: float, shape: tuple[int, int], momentum: float, *, nesterov: bool, scale: float = 1.0
) -> Optimizer:
    """Muon on matrices of one shape, no higher than wide, by an exact orthogonalization."""
    m = torch.zeros(1, dtype=torch.float64)

    def step(weights: Tensor, gradient: Tensor, number: int) -> tuple[Tensor, Tensor]:
        nonlocal m
        matrix = gradient.reshape(-1, *shape)
        m = momentum * m + (1 - momentum) * matrix
        seen = momentum * m + (1 - momentum) * matrix if nesterov else m
        update = scale * orthogonalized(seen).reshape(weights.shape)
        return (1 - lr * lam) * weights - lr * update, update

    return step
