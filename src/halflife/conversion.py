"""``convert``: the same decay under another convention.

Each rule of `halflife.rules` with a coefficient says which fraction ``r`` a step removes, so that a value is translated by
way of ``r``.

Examples:
    >>> round(convert(0.1, from_="decoupled", to="independent", peak_lr=6e-4), 12)
    6e-05
    >>> round(convert(0.1, from_="decoupled", to="half-life", peak_lr=6e-4))
    11552
"""

from __future__ import annotations

import math
from collections.abc import Callable

from halflife.errors import UserError
from halflife.numbers import as_number, check_fraction, check_non_negative, check_positive
from halflife.rules.base import LamRule, StepInfo
from halflife.rules.basic import Normalized
from halflife.rules.registry import law_name, part_classes
from halflife.rules.stable import Stable
from halflife.units import fraction_from_half_life, fraction_from_timescale, half_life, timescale

__all__ = ["LAWS", "convert"]

_Numbers = dict[str, float | None]

LARGEST_SCHEDULE = 10_000_000  # steps; a schedule is summed step by step

_RULES: dict[str, type[LamRule]]
_RULES = {law_name(made): made for made in part_classes().values() if issubclass(made, LamRule)}
_RULES["l2"] = _RULES["stable"]  # under SGD, after the lag of the momentum, both remove the same fraction
_TIMES = {"half-life": (fraction_from_half_life, half_life), "timescale": (fraction_from_timescale, timescale)}
LAWS = (*_RULES, *_TIMES)

_INSIDE = "convert the lam of the rule inside it"
_UNDEFINED = {
    "l2-preconditioned": "Adam divides lam * w by the size of the gradient, coordinate by coordinate, so that no one "
    'number describes it; "stable" with grad_rms= is the convention with one such size for all coordinates',
    "cautious": f"which elements decay changes from step to step; {_INSIDE}",
    "scheduled": f"its fraction changes with the step; {_INSIDE}",
    "per-group": f"each parameter group has a rule of its own; {_INSIDE}",
    "toward": f"it decays the distance to a reference; {_INSIDE}",
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

    The fractions are those of `halflife.rules`.

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
        if name in _UNDEFINED:
            raise UserError(f"{name!r} cannot be converted: {_UNDEFINED[name]}")
        if name not in LAWS:
            raise UserError(f"unknown law {name!r}; expected one of {', '.join(LAWS)}")
    numbers: _Numbers = {}
    for name, value in {"peak_lr": peak_lr, "grad_rms": grad_rms, "total_steps": total_steps}.items():
        numbers[name] = None if value is None else check_positive(name, check_non_negative(name, value))
    for name, value in {"momentum": momentum, "dampening": dampening}.items():
        numbers[name] = None if value is None else check_non_negative(name, value)
        if (numbers[name] or 0.0) >= 1.0:
            raise UserError(f"{name} must be below 1, got {numbers[name]!r}")
    if (numbers["total_steps"] or 1.0) < 1.0:
        raise UserError(f"total_steps must be >= 1, got {numbers['total_steps']!r}")
    lam = as_number("lam", lam)
    if from_ in _TIMES:
        r = _TIMES[from_][0](lam)
    else:
        r = check_fraction(check_non_negative("lam", lam) * _fraction_at_peak(from_, numbers))
    if from_ == to:
        return lam
    if schedule is not None and _share(from_, 0.5) != _share(to, 0.5):  # they follow lr in different powers
        r *= _mean_share(from_, schedule, numbers) / _mean_share(to, schedule, numbers)
    return _TIMES[to][1](r) if to in _TIMES else check_fraction(r) / _fraction_at_peak(to, numbers)


def _rule(law: str, steps: float) -> LamRule:
    if law == "normalized":
        return Normalized(steps=steps)
    return Stable(floor=0.0) if law in {"stable", "l2"} else _RULES[law]()


def _fraction_at_peak(law: str, numbers: _Numbers) -> float:
    """The fraction that the rule of a law removes at the peak, at ``lam = 1``."""
    rms, momentum = numbers["grad_rms"], numbers["momentum"]
    if law == "stable" and (rms is None) == (momentum is None):
        raise UserError(
            "stable decay depends on the gradients: give grad_rms=, the root of the mean second moment of all gradients,"
            " for the Adam family, or momentum= for SGD, and not both"
        )
    info = StepInfo(lr=1.0, peak_lr=1.0, lam=1.0)  # for the rules that follow lr only as a multiple of its peak
    if law not in {"independent", "constant", "normalized"}:
        info.lr = info.peak_lr = _given(numbers, "peak_lr", "the largest learning rate of the run")
    if law == "stable" and rms is not None:
        info.second_moment = 1.0  # divided by rms below: its square may be too small or too large for a float
    elif law in {"stable", "l2"}:
        why = "that of SGD, 0 without momentum (under Adam, no fraction describes an L2 penalty)"
        info.momentum, info.dampening = _given(numbers, "momentum", why), numbers["dampening"] or 0.0
    steps = 1.0
    if law == "normalized":
        steps = _given(numbers, "total_steps", "the number of optimizer steps of the run")
    r = float(_rule(law, steps).fraction(info))
    return r / rms if law == "stable" and rms is not None else r


def _share(law: str, multiple: float) -> float:
    """The fraction of a law where lr is this multiple of its peak, divided by the fraction at the peak."""
    if law in _TIMES:
        return 1.0
    return float(_rule(law, 1.0).fraction(StepInfo(lr=multiple, peak_lr=1.0, lam=1.0, second_moment=1.0)))


def _mean_share(law: str, schedule: Callable[[int], float], numbers: _Numbers) -> float:
    """The mean of `_share` over the run."""
    steps = int(_given(numbers, "total_steps", "the number of steps that the schedule is for"))
    if steps > LARGEST_SCHEDULE:
        raise UserError(f"a schedule is summed step by step, and {steps} steps are too many; scale the schedule down")
    multiples = (check_non_negative("the schedule", schedule(step)) for step in range(steps))
    mean = math.fsum(_share(law, multiple) for multiple in multiples) / steps
    return check_positive("the sum of the schedule over the run", mean)


def _given(numbers: _Numbers, name: str, why: str) -> float:
    value = numbers[name]
    if value is None:
        raise UserError(f"this conversion needs {name}=, {why}")
    return value
