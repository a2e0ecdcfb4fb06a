"""Units of weight decay: coefficient, fraction per step, half-life, time scale; steps, epochs, tokens.

One quantity links every convention: the fraction ``r`` of the weight that a step removes,
``w <- (1 - r) * w`` with ``0 <= r < 1``. Everything here is a pure function of plain numbers and stays exact
for a tiny ``r`` (1e-12 is an ordinary value at the end of a learning-rate schedule), where ``1 - r`` itself
would already have lost its digits.

Examples:
    >>> r = fraction(lam=0.1, lr=6e-4)
    >>> round(half_life(r)), round(timescale(r))
    (11552, 16667)
    >>> round(steps_to_epochs(half_life(r), steps_per_epoch=500), 1)
    23.1
"""

from __future__ import annotations

import math

from halflife.errors import UserError
from halflife.numbers import as_number, check_fraction, check_non_negative, check_positive

__all__ = [
    "batch_scaled",
    "epochs_to_steps",
    "fraction",
    "fraction_from_half_life",
    "fraction_from_timescale",
    "half_life",
    "kept",
    "steps_to_epochs",
    "steps_to_tokens",
    "timescale",
    "tokens_to_steps",
]

LN2 = math.log(2.0)


def fraction(lam: float, lr: float) -> float:
    """Fraction that torch's AdamW removes per step: ``r = lam * lr``.

    Args:
        lam: The coefficient, torch's ``weight_decay``; unit: 1 / lr.
        lr: The learning rate of the step.

    Returns:
        The fraction ``r``, dimensionless.

    Raises:
        UserError: If an argument is negative, infinite or NaN, or the product is >= 1.
    """
    r = check_non_negative("lam", lam) * check_non_negative("lr", lr)
    if r >= 1.0:
        raise UserError(f"lam * lr = {lam!r} * {lr!r} = {r!r} is not below 1: no such decay exists; lower lam")
    return r


def half_life(r: float) -> float:
    """Steps after which half of an untouched weight is left: ``ln 2 / -ln(1 - r)``.

    Args:
        r: The fraction removed per step, ``0 <= r < 1``.

    Returns:
        The half-life in steps; infinity for ``r = 0``.

    Raises:
        UserError: If ``r`` is negative, NaN or >= 1.

    Examples:
        >>> half_life(0.5)
        1.0
        >>> half_life(1e-12)
        693147180559.5988
    """
    r = check_fraction(r)
    return LN2 / -math.log1p(-r) if r > 0.0 else math.inf


def fraction_from_half_life(steps: float) -> float:
    """Fraction per step that halves an untouched weight in ``steps`` steps: ``r = 1 - 2^(-1/steps)``.

    Args:
        steps: The half-life in steps, > 0; infinity means no decay.

    Returns:
        The fraction ``r``, ``0 <= r < 1``.

    Raises:
        UserError: If ``steps`` is zero, negative or NaN, or so short that one step would erase the weight.

    Examples:
        >>> fraction_from_half_life(1)
        0.5
        >>> half_life(fraction_from_half_life(11552.0))
        11552.0
    """
    steps = check_positive("a half-life", steps)
    r = -math.expm1(-LN2 / steps)
    if r >= 1.0:
        raise UserError(f"a half-life of {steps!r} steps erases the weight in one step; expected about 0.02 or more")
    return r


def timescale(r: float) -> float:
    """Steps over which the weight is an average of past updates: ``tau = 1 / r``.

    Source: Wang and Aitchison 2024, "How to set AdamW's weight decay as you scale model and dataset size".

    Args:
        r: The fraction removed per step, ``0 <= r < 1``.

    Returns:
        The time scale in steps; infinity for ``r = 0``.

    Raises:
        UserError: If ``r`` is negative, NaN or >= 1.
    """
    r = check_fraction(r)
    return 1.0 / r if r > 0.0 else math.inf


def fraction_from_timescale(steps: float) -> float:
    """Fraction per step of a time scale: ``r = 1 / tau``.

    Args:
        steps: The time scale in steps, > 1; infinity means no decay.

    Returns:
        The fraction ``r``, ``0 <= r < 1``.

    Raises:
        UserError: If ``steps`` is not above 1, or NaN.
    """
    number = as_number("a time scale", steps)
    if not number > 1.0:
        raise UserError(f"a time scale must be > 1 step, got {number!r}")
    return 1.0 / number


def kept(r: float, steps: float) -> float:
    """Share of an untouched weight that is left after some steps: ``(1 - r)^steps``.

    Args:
        r: The fraction removed per step, ``0 <= r < 1``.
        steps: The number of steps, >= 0.

    Returns:
        The share that is left, between 0 and 1.

    Raises:
        UserError: If ``r`` is outside [0, 1) or ``steps`` is negative, infinite or NaN.

    Examples:
        >>> kept(0.5, 2)
        0.25
    """
    return math.exp(check_non_negative("steps", steps) * math.log1p(-check_fraction(r)))


def steps_to_epochs(steps: float, steps_per_epoch: float) -> float:
    """Convert optimizer steps to epochs; ``steps_per_epoch`` counts optimizer steps, not micro-batches, and is > 0."""
    return steps / check_positive("steps_per_epoch", steps_per_epoch)


def epochs_to_steps(epochs: float, steps_per_epoch: float) -> float:
    """Convert epochs to optimizer steps, not rounded: the inverse of `steps_to_epochs`."""
    return epochs * check_positive("steps_per_epoch", steps_per_epoch)


def steps_to_tokens(steps: float, tokens_per_step: float) -> float:
    """Convert optimizer steps to tokens; ``tokens_per_step`` is what one step consumes over all devices, > 0."""
    return steps * check_positive("tokens_per_step", tokens_per_step)


def tokens_to_steps(tokens: float, tokens_per_step: float) -> float:
    """Convert tokens to optimizer steps, not rounded: the inverse of `steps_to_tokens`."""
    return tokens / check_positive("tokens_per_step", tokens_per_step)


def batch_scaled(lam: float, batch: float, reference_batch: float) -> float:
    """Scale a coefficient with the batch size, at an unchanged learning rate: ``lam * batch / reference_batch``.

    A larger batch makes fewer steps per epoch; scaling ``lam`` in proportion keeps the half-life in epochs. It
    is the alternative to scaling the learning rate: do one of the two. If the learning rate is scaled by the
    same factor, the fraction per step grows with it already.

    Source: Xie et al. 2023 (arXiv 2011.11152), the linear scaling rule of weight decay; the same follows from a
    fixed time scale in epochs (Wang and Aitchison 2024).

    Args:
        lam: The coefficient that is right at the reference batch size, >= 0.
        batch: The batch size of this run, in examples or in tokens, > 0.
        reference_batch: The batch size that ``lam`` was chosen at, in the same unit, > 0.

    Returns:
        The coefficient for this batch size.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN, or a batch size is not a finite number > 0.

    Examples:
        >>> batch_scaled(5e-4, batch=1024, reference_batch=128)
        0.004
    """
    size = check_positive("batch", batch, finite=True)
    return check_non_negative("lam", lam) * (size / check_positive("reference_batch", reference_batch, finite=True))


def __dir__() -> list[str]:
    return sorted(__all__)
