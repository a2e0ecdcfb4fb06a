"""``convert``: the same decay under another convention.

Every convention is a formula for the fraction ``r`` that a step removes, so that a value is translated by way of ``r``.

Examples:
    >>> round(convert(0.1, from_="decoupled", to="independent", peak_lr=6e-4), 12)
    6e-05
    >>> round(convert(0.1, from_="decoupled", to="half-life", peak_lr=6e-4))
    11552
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from halflife.errors import UserError
from halflife.numbers import as_number
from halflife.units import (
    check_fraction,
    check_non_negative,
    check_positive,
    fraction_from_half_life,
    fraction_from_timescale,
    half_life,
    timescale,
)

__all__ = ["LAWS", "convert"]

Numbers = Mapping[str, float | None]
LARGEST_SCHEDULE = 10_000_000  # steps; a schedule is summed step by step


@dataclass(frozen=True)
class _Convention:
    """One convention: the fraction at the peak, and the power of the schedule multiplier that it follows.

    ``per_unit(numbers)`` is the fraction at the peak per unit of the value; None for a time scale in steps, which
    ``to_r`` and ``from_r`` translate.
    """

    power: int
    per_unit: Callable[[Numbers], float] | None = None
    to_r: Callable[[float], float] | None = None
    from_r: Callable[[float], float] | None = None

    def fraction(self, value: float, numbers: Numbers) -> float:
        """Return the fraction at the peak."""
        if self.per_unit is not None:
            return check_non_negative("lam", value) * self.per_unit(numbers)
        assert self.to_r is not None
        return self.to_r(value)

    def value(self, r: float, numbers: Numbers) -> float:
        """Return the value whose fraction at the peak is ``r``."""
        if self.per_unit is not None:
            return check_fraction(r) / self.per_unit(numbers)
        assert self.from_r is not None
        return self.from_r(r)


def _number(numbers: Numbers, name: str, why: str) -> float:
    value = numbers[name]
    if value is None:
        raise UserError(f"this conversion needs {name}=, {why}")
    return value


def _peak_lr(numbers: Numbers) -> float:
    return _number(numbers, "peak_lr", "the largest learning rate of the run")


def _momentum_gain(numbers: Numbers) -> float:
    """Return (1 - d) / (1 - mu): how much larger SGD's steps are in the long run than its learning rate says."""
    momentum = _number(
        numbers, "momentum", "that of SGD, 0 without momentum (under Adam, no fraction describes an L2 penalty)"
    )
    return (1.0 - (numbers["dampening"] or 0.0)) / (1.0 - momentum) if momentum else 1.0  # torch: no momentum, no d


def _stable(numbers: Numbers) -> float:
    if (numbers["grad_rms"] is None) == (numbers["momentum"] is None):
        raise UserError(
            "stable decay depends on the gradients: give grad_rms=, the root of the mean second moment of all gradients, "
            "for the Adam family, or momentum= for SGD, and not both"
        )
    gain = 1.0 / numbers["grad_rms"] if numbers["grad_rms"] is not None else _momentum_gain(numbers)
    return _peak_lr(numbers) * gain


def _normalized(numbers: Numbers) -> float:
    return 1.0 / math.sqrt(_number(numbers, "total_steps", "the number of optimizer steps of the run"))


_CONVENTIONS = {
    "decoupled": _Convention(1, _peak_lr),
    "independent": _Convention(1, lambda numbers: 1.0),
    "constant": _Convention(0, lambda numbers: 1.0),
    "corrected": _Convention(2, _peak_lr),
    "normalized": _Convention(1, _normalized),
    "stable": _Convention(1, _stable),
    "l2": _Convention(1, lambda numbers: _peak_lr(numbers) * _momentum_gain(numbers)),
    "half-life": _Convention(0, to_r=fraction_from_half_life, from_r=half_life),
    "timescale": _Convention(0, to_r=fraction_from_timescale, from_r=timescale),
}
LAWS = tuple(_CONVENTIONS)

_UNDEFINED = {
    "l2-preconditioned": "Adam divides lam * w by the size of the gradient, coordinate by coordinate, so that no one "
    'number describes it; "stable" with grad_rms= is the convention with one such size for all coordinates',
    "cautious": "which elements decay changes from step to step; convert the lam of the rule inside it",
    "scheduled": "its fraction changes with the step; convert the lam of the rule inside it",
    "toward": "it decays the distance to a reference; convert the lam of the rule inside it",
    "norm-target": "its fraction is whatever holds the norm, and it has no coefficient",
    "sphere": "it projects the weights, and it has no coefficient",
}


def convert(
    lam: float,
    *,
    from_: str,
    to: str,
    peak_lr: float | None = None,
    momentum: float | None = None,
    dampening: float | None = None,
    grad_rms: float | None = None,
    total_steps: float | None = None,
    schedule: Callable[[int], float] | None = None,
) -> float:
    """Translate a weight decay between conventions, keeping the fraction at the peak learning rate.

    What stays equal is ``r`` in ``w <- (1 - r) * w`` **at the peak**:

    | law | ``r`` at the step with learning rate lr | needs |
    | --- | --- | --- |
    | ``"decoupled"`` | ``lr * lam`` | ``peak_lr`` |
    | ``"independent"`` | ``lr / peak_lr * lam`` | |
    | ``"constant"`` | ``lam`` | |
    | ``"corrected"`` | ``lr^2 / peak_lr * lam`` | ``peak_lr`` |
    | ``"normalized"`` | ``lr / peak_lr * lam / sqrt(total_steps)`` | ``total_steps`` |
    | ``"stable"`` | ``lr * lam / grad_rms``, or that of ``"l2"`` under SGD | ``peak_lr``, ``grad_rms`` or ``momentum`` |
    | ``"l2"`` of SGD | ``lr * lam * (1 - dampening) / (1 - momentum)``, after the momentum's lag | ``peak_lr``, ``momentum`` |
    | ``"half-life"`` | ``1 - 2^(-1 / lam)``, lam in steps | |
    | ``"timescale"`` | ``1 / lam``, lam in steps | |

    Laws that follow the learning rate in different powers remove different amounts while it is below its peak: over
    a cosine to 0, ``"corrected"`` removes 3/4 of what ``"decoupled"`` removes with the same ``r`` at the peak. Give
    ``schedule`` and ``total_steps`` to keep the sum of ``r`` over the run equal instead, which is, to first order in
    ``r``, the total shrinkage.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101) for ``"normalized"``; Xie et al. 2023 (arXiv 2011.11152) for
    ``"stable"``; the rules of `halflife.rules` otherwise.

    Args:
        lam: The value to translate, in the unit of ``from_``: a coefficient, or steps for the two time scales.
        from_: The law that it is given in.
        to: The law that it is wanted in.
        peak_lr: The largest learning rate of the run, > 0.
        momentum: SGD's momentum, ``0 <= momentum < 1``.
        dampening: SGD's dampening, ``0 <= dampening < 1``; None is 0. Without momentum torch ignores it, and so
            does this.
        grad_rms: The root of the mean over all parameters of Adam's bias-corrected second moment, > 0.
        total_steps: Optimizer steps of the run, >= 1.
        schedule: The learning rate at a step as a multiple of the peak, called with 0, 1, ..., ``total_steps - 1``.

    Returns:
        The value in the unit of ``to``; infinity for no decay as a time scale.

    Raises:
        UserError: If a law is unknown or has no fraction that could be kept, a number that the conversion needs is
            missing or out of range, or ``r`` is not below 1.

    Examples:
        >>> convert(0.5, from_="decoupled", to="l2", peak_lr=0.5, momentum=0.75)
        0.125
        >>> from halflife.schedules import cosine
        >>> lam = convert(0.1, from_="decoupled", to="corrected", peak_lr=6e-4, total_steps=1000, schedule=cosine(1, 0, 1000))
        >>> round(lam, 3)
        0.133
    """
    for name in (from_, to):
        _check_law(name)
    numbers = _checked(peak_lr, momentum, dampening, grad_rms, total_steps)
    source, target = _CONVENTIONS[from_], _CONVENTIONS[to]
    lam = as_number("lam", lam)
    r = check_fraction(source.fraction(lam, numbers))
    if from_ == to:
        return lam
    if schedule is not None and source.power != target.power:
        r *= _mean_power(schedule, numbers, source.power) / _mean_power(schedule, numbers, target.power)
    return target.value(r, numbers)


def _check_law(name: str) -> None:
    if name in _CONVENTIONS:
        return
    if name in _UNDEFINED:
        raise UserError(f"{name!r} cannot be converted: {_UNDEFINED[name]}")
    raise UserError(f"unknown law {name!r}; expected one of {', '.join(LAWS)}")


def _checked(
    peak_lr: float | None,
    momentum: float | None,
    dampening: float | None,
    grad_rms: float | None,
    total_steps: float | None,
) -> Numbers:
    """Return the numbers as finite floats in their ranges."""
    positive = {"peak_lr": peak_lr, "grad_rms": grad_rms, "total_steps": total_steps}
    below_one = {"momentum": momentum, "dampening": dampening}
    numbers: dict[str, float | None] = {**positive, **below_one}
    for name, value in positive.items():
        if value is not None:
            numbers[name] = check_positive(name, check_non_negative(name, value))
    for name, value in below_one.items():
        if value is not None:
            numbers[name] = check_non_negative(name, value)
            if float(value) >= 1.0:
                raise UserError(f"{name} must be below 1, got {float(value)!r}")
    if total_steps is not None and float(total_steps) < 1.0:
        raise UserError(f"total_steps must be >= 1, got {float(total_steps)!r}")
    return numbers


def _mean_power(schedule: Callable[[int], float], numbers: Numbers, power: int) -> float:
    """Return the mean of ``schedule(t) ** power`` over the run."""
    steps = int(_number(numbers, "total_steps", "the number of steps that the schedule is for"))
    if steps > LARGEST_SCHEDULE:
        raise UserError(f"a schedule is summed step by step, and {steps} steps are too many; scale the schedule down")
    if power == 0:
        return 1.0
    mean = math.fsum(check_non_negative("the schedule", schedule(step)) ** power for step in range(steps)) / steps
    return check_positive("the sum of the schedule over the run", mean)
