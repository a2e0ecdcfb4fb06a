"""Rules for choosing ``lam``: formulas that the literature recommends, each with what it was seen on.

They give a place to start a sweep from. Elsewhere in this library: `halflife.units.batch_scaled` (lam in proportion to the
batch), `halflife.rules.Normalized` and `halflife.rules.Independent` (conventions whose lam is meant to transfer), and
`halflife.convert`, which translates between AdamW and AdamS (``from_="stable"``, with ``grad_rms=``).
"""

from __future__ import annotations

import math

from halflife.errors import UserError
from halflife.numbers import check_non_negative, check_positive, check_share

__all__ = [
    "lam_for_rotation",
    "lam_for_timescale",
    "lion_from_adamw",
    "power_law_lam",
    "power_law_timescale",
    "scaled_lam",
]

POWER_LAW = (1.084, -0.527)  # factor and exponent of tau / T in tokens per parameter


def lam_for_timescale(steps: float, lr: float, *, momentum: float = 0.0) -> float:
    """The coefficient whose weights forget in a given number of steps: ``lam = (1 - mu) / (lr tau)``.

    What to ask for: 2 to 6 epochs of a run of 100 to 200, in image classification with SGD (``lr lam / (1 - mu)`` of 4e-4
    to 1.2e-3 on CIFAR-10 at batch 128; the usual 0.1 * 5e-4 / (1 - 0.9) is 5e-4); a share of the run of 0.07 to 0.19 in
    pretraining of language models (second-hand), or `power_law_timescale`.

    Source: Wang and Aitchison 2024 (arXiv 2405.13698); the image figures: D'Angelo et al. 2024 (arXiv 2310.04415).

    Validity: AdamW and other decoupled decay with the momentum left at 0, SGD with a penalty with its momentum.

    Args:
        steps: tau, in steps, > 0; ``epochs * steps_per_epoch``.
        lr: The peak learning rate, > 0.
        momentum: mu of SGD with a penalty.

    Returns:
        lam, in the unit 1 / lr.

    Examples:
        >>> round(lam_for_timescale(5 * 391, lr=0.1, momentum=0.9), 5)  # 5 epochs of CIFAR-10 at batch 128
        0.00051
    """
    steps, lr = check_positive("steps", steps), check_positive("lr", lr, finite=True)
    return (1.0 - check_share("momentum", momentum)) / (lr * steps)


def scaled_lam(lam: float, *, batch_factor: float = 1.0, data_factor: float = 1.0, lr_factor: float = 1.0) -> float:
    """The coefficient for another batch, data set or learning rate that keeps the time scale in epochs.

        lam' = lam batch_factor / (data_factor lr_factor)

    so that ``tau = B / (lr lam N)`` stays, with N examples (or tokens). Special cases: lam in proportion to the batch at a
    fixed lr; in proportion to sqrt(B) where the learning rate is; unchanged where lr is in proportion to B; in proportion
    to the width where muP divides the learning rate by it (independent decay).

    Source: Wang and Aitchison 2024 (arXiv 2405.13698); for the batch also Xie et al. (arXiv 2011.11152, version 4) and
    Bergsma et al. 2025 (arXiv 2505.13738), who see it hold up to a critical batch.

    Validity: AdamW or SGD in many epochs. In one pass over more tokens of text the best time scale falls as a share of the
    run (`power_law_timescale`).

    Args:
        lam: The coefficient that is right for the base.
        batch_factor: Batch size over that of the base, > 0.
        data_factor: Examples, or tokens of one pass, over those of the base, > 0.
        lr_factor: Learning rate over that of the base, > 0.

    Returns:
        The coefficient.

    Examples:
        >>> scaled_lam(0.1, data_factor=4), scaled_lam(0.1, lr_factor=1 / 4)  # 4 times the images; muP at 4 times the width
        (0.025, 0.4)
        >>> round(scaled_lam(0.28, batch_factor=2, data_factor=4, lr_factor=2**0.5), 3)
        0.099
    """
    over = check_positive("data_factor", data_factor, finite=True) * check_positive("lr_factor", lr_factor, finite=True)
    return check_non_negative("lam", lam) * check_positive("batch_factor", batch_factor, finite=True) / over


def power_law_timescale(tokens_per_parameter: float) -> float:
    """The best time scale of AdamW in pretraining, as a share of the run: ``tau / T = 1.084 TPP^-0.527``.

    ``tau = 1 / (lr lam)`` steps at the peak learning rate, T the steps of the run, TPP its tokens over the parameters.

    Source: Bergsma et al. 2025, "Power Lines" (arXiv 2505.13738), from second-hand notes: R^2 = 0.975, the exponent between
    -0.529 and -0.507.

    Validity: one pass over text, 20 to 1,280 tokens per parameter, up to 3.3 B parameters, muP, a learning rate that
    falls linearly to 0. The loss at the optimum is flat: tuning lam gained a few 1e-3 nats over tuning lr.

    Args:
        tokens_per_parameter: TPP, > 0.

    Returns:
        The share.

    Examples:
        >>> [round(power_law_timescale(tpp), 3) for tpp in (20, 50, 100, 200, 1000)]
        [0.224, 0.138, 0.096, 0.066, 0.028]
    """
    factor, exponent = POWER_LAW
    return float(factor * check_positive("tokens_per_parameter", tokens_per_parameter, finite=True) ** exponent)


def power_law_lam(lr: float, *, tokens: float, batch_tokens: float, num_parameters: float) -> float:
    """AdamW's coefficient in pretraining by `power_law_timescale`: ``lam = B / (lr D (tau / T))``.

    Source: as `power_law_timescale`.

    Validity: as there. A short run of a small model needs far more than the usual 0.1.

    Args:
        lr: The peak learning rate, > 0.
        tokens: D, the tokens of the run.
        batch_tokens: B, the tokens of a step.
        num_parameters: The parameters of the model.

    Returns:
        lam, torch AdamW's ``weight_decay``.

    Raises:
        UserError: If a number is out of range.

    Examples:
        >>> round(power_law_lam(6e-4, tokens=3.28e9, batch_tokens=65_536, num_parameters=124e6), 2)  # a GPT-2
        0.17
        >>> round(power_law_lam(3e-3, tokens=20e6, batch_tokens=16_384, num_parameters=1e6), 1)
        1.2
    """
    lr, tokens = check_positive("lr", lr, finite=True), check_positive("tokens", tokens, finite=True)
    batch = check_positive("batch_tokens", batch_tokens, finite=True)
    if batch > tokens:
        raise UserError(
            f"batch_tokens is {batch:g} and tokens, those of the run, {tokens:g}, expected a batch within the run:"
            " give tokens of a step and tokens of all steps"
        )
    share = power_law_timescale(tokens / check_positive("num_parameters", num_parameters, finite=True))
    return batch / (lr * tokens * share)


def lam_for_rotation(rotation: float, lr: float, *, beta1: float = 0.9) -> float:
    """AdamW's coefficient for an angle per step in equilibrium: the inverse of `adamw`'s rotation.

        lam = rotation^2 (1 + beta1) / (2 lr (1 - beta1))

    for small angles; computed is the exact inverse. The direction goes about ``rotation * sqrt(T)`` in T steps of noise.

    Source: Kosson et al. (arXiv 2305.17212) for the rotation as the quantity to set.

    Validity: as `adamw`.

    Args:
        rotation: Radians a step, above 0 and below the ``acos(beta1)`` of a decay that removes all.
        lr: The learning rate, > 0.
        beta1: The momentum, ``0 <= beta1 < 1``.

    Returns:
        lam, torch's ``weight_decay``.

    Raises:
        UserError: If a number is out of range.

    Examples:
        >>> round(lam_for_rotation(1.78e-3, lr=3e-4), 3)
        0.1
    """
    rotation, beta1 = check_positive("rotation", rotation, finite=True), check_share("beta1", beta1)
    if rotation >= math.acos(beta1):
        raise UserError(
            f"rotation is {rotation:g}, expected less than acos(beta1) = {math.acos(beta1):g} radians a step: lower it"
        )
    missing = 2.0 * math.sin(rotation / 2.0) ** 2  # 1 - cos
    r = missing * (1.0 + beta1) / (1.0 - beta1 + beta1 * missing)
    return r / check_positive("lr", lr, finite=True)


def lion_from_adamw(lr: float, lam: float, *, factor: float = 5.0) -> tuple[float, float]:
    """Lion's learning rate and coefficient from AdamW's: ``lr / factor`` and ``lam * factor``, so that ``lr * lam`` stays.

    Source: Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms" (arXiv 2302.06675), as commonly quoted: a
    factor of 3 to 10.

    Validity: a rule of thumb. In equilibrium the rotation depends on ``lr * lam`` and the betas alone: at lr lam = 1e-4 and
    the defaults, Lion's is 0.65 times AdamW's (`lion`, `adamw`), whatever the factor.

    Args:
        lr: AdamW's learning rate.
        lam: AdamW's coefficient.
        factor: By how much lr is divided, > 0.

    Returns:
        Both.

    Examples:
        >>> lr, lam = lion_from_adamw(1e-3, 0.1, factor=4)
        >>> lr, lam
        (0.00025, 0.4)
    """
    factor = check_positive("factor", factor, finite=True)
    return check_non_negative("lr", lr) / factor, check_non_negative("lam", lam) * factor
