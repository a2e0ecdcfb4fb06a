"""Decay as a learning rate: what else would have turned the weights as far.

Where the loss sees the direction of a weight alone, decay has no effect but through the norm, and so it is a schedule of
the learning rate in disguise.
"""

from __future__ import annotations

import math

from halflife.errors import UserError
from halflife.numbers import check_at_least, check_non_negative, check_positive, check_share
from halflife.units import fraction, kept

__all__ = ["effective_lr", "exponential_lr", "exponential_root", "mup_warmup"]


def effective_lr(lr: float, norm: float, *, r: float = 0.0, power: int = 2) -> float:
    """The learning rate of the direction ``w / ||w||``, if the loss depends on nothing else.

        lr / ((1 - r) norm^power)

    Power 2: SGD, whose gradient is as ``1 / ||w||``. Power 1: updates of a fixed size (Adam's family, signs, Muon). Two
    runs whose effective learning rates are equal at every step have equal directions, SGD's exactly, others' where the
    update depends on the direction alone.

    Source: van Laarhoven 2017 (arXiv 1706.05350) for power 2; D'Angelo et al. 2024 (arXiv 2310.04415), section 3, for power
    1 and the factor ``1 - r``, which their replay of a GPT without decay needs.

    Validity: scale-invariant weights, each with its own norm. For a whole language model one norm was enough in the paper,
    at power 1; power 2 diverged.

    Args:
        lr: The learning rate.
        norm: The norm of the weight before the step, > 0.
        r: The fraction that decoupled decay removes at the step, ``0 <= r < 1``.
        power: 1 or 2, as above.

    Returns:
        The rate; with power 1 in radians a step per unit of update, in the units of lr / norm^power.

    Raises:
        UserError: If a number is out of range, or the power is another.

    Examples:
        >>> effective_lr(0.1, norm=10.0), effective_lr(1e-3, norm=10.0, power=1)
        (0.001, 0.0001)
    """
    if power not in {1, 2}:
        raise UserError(f"power is {power!r}, expected 2 for SGD or 1 for updates of a fixed size: choose one of them")
    norm = check_positive("norm", norm, finite=True)
    return check_non_negative("lr", lr) / ((1.0 - check_share("r", r)) * norm**power)


def exponential_root(lr: float, lam: float, momentum: float = 0.0) -> float:
    """The base a of the exponentially growing learning rate that decay is.

        the larger root of x^2 - (1 + mu - lr lam) x + mu = 0

    It lies in (sqrt(mu), 1], and ``1 - a`` is about ``lr lam / (1 - mu)``.

    Source: Li and Arora, "An Exponential Learning Rate Schedule for Deep Learning" (arXiv 1910.07454), theorem 2.12.

    Args:
        lr: The learning rate, >= 0.
        lam: The coefficient of the penalty, torch SGD's ``weight_decay``; unit: 1 / lr.
        momentum: mu, ``0 <= mu < 1``.

    Returns:
        a.

    Raises:
        UserError: If a number is out of range, or ``lr * lam >= (1 - sqrt(mu))^2``, where no root is real and apart.

    Examples:
        >>> round(exponential_root(0.1, 1.0), 12), round(exponential_root(0.1, 5e-4, momentum=0.9), 6)
        (0.9, 0.999498)
    """
    r = check_non_negative("lr", lr) * check_non_negative("lam", lam)
    mu = check_share("momentum", momentum)
    largest = (1 - math.sqrt(mu)) ** 2
    if r >= largest:
        raise UserError(
            f"lr * lam is {r:g}, expected < (1 - sqrt(momentum))^2 = {largest:g}, or no exponential"
            " learning rate is the same: lower lr or lam"
        )
    # By the equation of s = 1 - a, s^2 - (1 - mu + r) s + r = 0: a itself has no digits to lose where r is tiny.
    b = 1 - mu + r
    return 1 - 2 * r / (b + math.sqrt(max(b**2 - 4 * r, 0.0)))


def exponential_lr(step: int, lr: float, lam: float, momentum: float = 0.0) -> float:
    """The learning rate without decay that is the same as a constant one with decay: ``lr a^(-2 t - 1)``.

    For a loss that does not depend on the scale of w, SGD with a penalty and momentum at a constant rate visits the
    directions of SGD with the same momentum, no penalty and this rate: its weights are ``a^-t w_t``. It must start from the
    matched previous iterate ``a w_0``, that is from the momentum buffer ``(a - 1) / (a lr) w_0``.

    Source: Li and Arora (arXiv 1910.07454), theorem 2.12; the study `exponential-lr` tests it on a net.

    Validity: exact, in exact arithmetic: differences of rounding grow along a training run.

    Args:
        step: t, the number of steps before this one.
        lr: The constant learning rate.
        lam: The coefficient of the penalty; unit: 1 / lr.
        momentum: mu, ``0 <= mu < 1``.

    Returns:
        The learning rate at the step.

    Examples:
        >>> [round(exponential_lr(t, lr=0.1, lam=1.0), 6) for t in (0, 1)]
        [0.111111, 0.137174]
    """
    return float(lr * exponential_root(lr, lam, momentum) ** (-2 * step - 1))


def mup_warmup(step: float, width_factor: float, *, lr: float, lam: float) -> float:
    """The warm-up that muP's learning rate has with independent decay, as a share of the base's rotation per step.

        s(t) = (1 + (m^2 - 1) a^(2 t))^(-1/2),    a = 1 - lr lam

    muP divides the learning rate of a matrix by m, its width over that of the base; independent decay multiplies ``lam`` by
    m, so that ``lr lam`` and with it the equilibrium's rotation stay. The norm in equilibrium is m times smaller: until the
    weights have shrunk there, ``tau ln m`` steps with ``tau = 1 / (lr lam)``, rotations are smaller, by 1 / m at first.

    Source: Kosson et al. 2025 (arXiv 2510.19093) say that the scaling is a warm-up; the form is derived here.

    Validity: AdamW, noise dominates, constant ``lr``, and weights that start with the norm that the base has in
    equilibrium.

    Args:
        step: t, >= 0.
        width_factor: m, >= 1.
        lr: The base's learning rate.
        lam: The base's coefficient; unit: 1 / lr.

    Returns:
        s, from 1 / m to 1.

    Examples:
        >>> [round(mup_warmup(t, 8, lr=1e-3, lam=1.0), 3) for t in (0, 500, 1500, 2500, 4000)]
        [0.125, 0.203, 0.492, 0.838, 0.99]
    """
    m = check_at_least("width_factor", width_factor, 1.0)
    return 1.0 / math.sqrt(1.0 + (m**2 - 1.0) * kept(fraction(lam, lr), 2.0 * step))
