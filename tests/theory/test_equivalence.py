"""Decay as a learning rate, against training on noise."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from halflife.errors import UserError
from halflife.theory import adamw, effective_lr, exponential_lr, exponential_root, mup_warmup
from tests.theory import noise
from tests.theory.noise import column, walk


def angle(one: Tensor, other: Tensor) -> float:
    """By the chord, because the arc cosine would not show angles below 1e-8."""
    return 2 * math.asin(float((one / one.norm() - other / other.norm()).norm()) / 2)


def gradient_at(weights: Tensor, noise_D: Tensor) -> Tensor:
    """Of a loss that is linear in the direction: it depends on the direction, and not on the scale."""
    direction = weights / weights.norm()
    projected: Tensor = noise_D - (noise_D @ direction) * direction
    size: Tensor = weights.norm()
    return projected / size


@pytest.mark.parametrize(("lr", "lam", "momentum"), [(0.1, 0.02, 0.9), (0.05, 0.2, 0.0), (0.2, 0.1, 0.5)])
def test_the_exponential_learning_rate_is_decay(lr: float, lam: float, momentum: float) -> None:
    """600 noisy steps side by side; a rate that is one step late is another run."""
    generator, size = torch.Generator().manual_seed(0), 20
    root = exponential_root(lr, lam, momentum)
    start = torch.randn(size, generator=generator, dtype=torch.float64)
    weights, buffer = start.clone(), torch.zeros(size, dtype=torch.float64)
    twins = [(start.clone(), (root - 1) / (root * lr) * start, offset) for offset in (0, 1)]
    apart = [0.0, 0.0]
    for step in range(600):
        noise_D = torch.randn(size, generator=generator, dtype=torch.float64)
        buffer = momentum * buffer + gradient_at(weights, noise_D) + lam * weights
        weights = weights - lr * buffer
        for i, (twin, twins_buffer, offset) in enumerate(twins):
            moved = momentum * twins_buffer + gradient_at(twin, noise_D)
            after = twin - exponential_lr(step + offset, lr, lam, momentum) * moved
            twins[i] = (after, moved, offset)
            apart[i] = max(apart[i], angle(weights, after))
        ratio = float(twins[0][0].norm() / weights.norm())
        assert ratio == pytest.approx(root ** -(step + 1), rel=1e-6)
    assert apart[0] < 1e-6
    assert apart[1] > 1e-3


@given(lr=st.floats(1e-6, 1.0), r=st.floats(0.0, 1.0, exclude_max=True), momentum=st.floats(0.0, 0.99))
def test_the_root_solves_its_equation(lr: float, r: float, momentum: float) -> None:
    r *= (1 - math.sqrt(momentum)) ** 2 * (1 - 1e-9)
    root = exponential_root(lr, r / lr, momentum)
    assert math.sqrt(momentum) * (1 - 1e-12) <= root <= 1.0
    assert root**2 - (1 + momentum - r) * root + momentum == pytest.approx(0.0, abs=1e-12)


def test_a_tiny_decay_keeps_its_digits() -> None:
    """``1 - a`` is ``r / (1 - mu)`` there, and a float next to 1 has it to 1e-16."""
    assert exponential_root(1.0, 1e-12, 0.9) == pytest.approx(1 - 1e-11, rel=0, abs=2e-16)
    assert exponential_root(1.0, 0.0, 0.99) == 1.0


def test_an_effective_learning_rate_is_that_of_the_direction() -> None:
    """A step with decay turns the weights as far as one without, at the effective rate, at norm 1."""
    generator = torch.Generator().manual_seed(0)
    weights, noise_D = torch.randn(2, 20, generator=generator, dtype=torch.float64)
    lr, r, norm = 0.3, 0.1, float(weights.norm())
    unit = weights / norm
    after = (1 - r) * weights - lr * gradient_at(weights, noise_D)
    assert angle(after, unit - effective_lr(lr, norm, r=r) * gradient_at(unit, noise_D)) < 1e-12
    after = (1 - r) * weights - lr * noise_D.sign()
    assert angle(after, unit - effective_lr(lr, norm, r=r, power=1) * noise_D.sign()) < 1e-12


def test_mup_with_independent_decay_warms_up() -> None:
    """Rotations of AdamW at (lr / m, m lam) over those of the base, from the base's norm in equilibrium."""
    lr, lam, m, size = 0.01, 0.5, 8.0, 1024
    base = adamw(lr, lam, size)
    start = torch.full((8, 1), base.norm, dtype=torch.float64)
    optimizer = noise.adam(column(lr / m), column(0.9), beta2=0.95, decayed=lambda w, u, v, t: (1 - lr * lam) * w)
    norms = walk(optimizer, torch.ones(8, 1), start, size, steps=900, skip=0).norms.mean(1)
    for step in (100, 300, 500, 850):
        # An update has the size lr / m, so that it turns the weights by 1 / m and 1 / norm.
        rotation = base.norm / m / float(norms[step])
        assert rotation == pytest.approx(mup_warmup(step, m, lr=lr, lam=lam), rel=0.03)
    assert mup_warmup(0, m, lr=lr, lam=lam) == pytest.approx(1 / m)
    assert mup_warmup(math.log(m) * 10 / (lr * lam), m, lr=lr, lam=lam) == pytest.approx(1.0)
    assert mup_warmup(7, 1.0, lr=lr, lam=lam) == 1.0


WRONG: list[tuple[Any, str]] = [
    (lambda: effective_lr(0.1, 1.0, power=3), r"power is 3, expected 2 for SGD or 1 for updates of a fixed size"),
    (lambda: effective_lr(0.1, 0.0), r"norm must be > 0, got 0.0"),
    (lambda: effective_lr(0.1, 1.0, r=1.0), r"r must satisfy 0 <= r < 1, got 1.0"),
    (lambda: exponential_lr(0, 0.1, 0.1, momentum=0.9), r"lr \* lam is 0.01, expected < \(1 - sqrt\(momentum\)\)\^2 ="),
    (lambda: exponential_root(0.1, -0.1), r"lam must be a finite number >= 0, got -0.1"),
    (lambda: mup_warmup(0, 0.5, lr=0.1, lam=0.1), r"width_factor must be a finite number >= 1, got 0.5"),
    (lambda: mup_warmup(-1, 2, lr=0.1, lam=0.1), r"steps must be a finite number >= 0, got -2.0"),
]


@pytest.mark.parametrize(("call", "message"), WRONG, ids=[message for _, message in WRONG])
def test_errors_say_what_was_expected(call: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call()
