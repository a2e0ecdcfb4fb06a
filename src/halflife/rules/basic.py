"""The rules with a closed formula in the learning rate, and the rule that is a time scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.numbers import check_at_least, check_positive
from halflife.rules.base import LamRule, Rule, StepInfo
from halflife.schedules.shapes import restart_at
from halflife.units import epochs_to_steps, fraction_from_half_life, tokens_to_steps

__all__ = ["Constant", "Corrected", "Decoupled", "HalfLife", "Independent", "Normalized"]


@dataclass(frozen=True, repr=False)
class Decoupled(LamRule):
    """Remove the fraction ``r = lr * lam``: the decay follows the learning rate, peak included.

    Source: the decoupled decay of Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 2, in the form that torch
    gave it: the paper multiplies lam by the schedule alone, torch by the whole learning rate.

    Unit: ``lam`` is 1 / lr; ``r`` is dimensionless.

    Matches: ``torch.optim.AdamW(params, lr, weight_decay=lam)``, and Muon and Adafactor alike, bit for bit
    (``tests/optim/test_attach.py::test_equals_adamw_bit_for_bit``).

    Args:
        lam: The coefficient, >= 0; None takes each group's own ``weight_decay``.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN.

    Examples:
        >>> Decoupled(0.1).fraction(StepInfo(lr=0.001))
        0.0001
    """

    def fraction(self, info: StepInfo) -> float:
        """Return ``lr * lam``."""
        return info.lr * self.lam_of(info)


@dataclass(frozen=True, repr=False)
class Independent(LamRule):
    """Remove the fraction ``r = (lr / peak_lr) * lam``: the decay follows the schedule, not the peak.

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 2: the schedule multiplier times lambda.
    Composer and optimi (``decouple_lr``) offer it under the name fully decoupled.

    Unit: ``lam`` is the fraction removed at the peak learning rate, dimensionless, < 1.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        lam: The fraction at the peak, ``0 <= lam < 1``; None cannot be attached, because a group's
            ``weight_decay`` has another unit.

    Raises:
        UserError: If ``lam`` is negative, NaN or >= 1.

    Examples:
        >>> Independent(1e-4).fraction(StepInfo(lr=0.5, peak_lr=1.0))
        5e-05
    """

    inherits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_below_one("Independent", self.lam)

    @property
    def needs(self) -> frozenset[str]:
        """The peak learning rate."""
        return super().needs | {"peak_lr"}

    def fraction(self, info: StepInfo) -> float:
        """Return ``(lr / peak_lr) * lam``."""
        return info.lr / info.peak_lr * self.lam_of(info)


@dataclass(frozen=True, repr=False)
class Constant(LamRule):
    """Remove the fraction ``r = lam`` at every step, whatever the learning rate.

    At ``lr == 0`` nothing is removed: checkpoint libraries make such steps to create optimizer state.

    Source: ``fixed_decay`` of AdaBelief (Zhuang et al. 2020, arXiv 2010.07468) in its reference code.

    Unit: ``lam`` is the fraction itself, dimensionless, < 1.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        lam: The fraction, ``0 <= lam < 1``; None cannot be attached, because a group's
            ``weight_decay`` has another unit.

    Raises:
        UserError: If ``lam`` is negative, NaN or >= 1.

    Examples:
        >>> Constant(1e-4).fraction(StepInfo(lr=0.5))
        0.0001
    """

    inherits: ClassVar[bool] = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_below_one("Constant", self.lam)

    def fraction(self, info: StepInfo) -> float:
        """Return ``lam``."""
        return self.lam_of(info)


@dataclass(frozen=True, repr=False)
class Corrected(LamRule):
    """Remove the fraction ``r = (lr^2 / peak_lr) * lam``: the decay fades faster than the learning rate.

    With it the equilibrium ratio of gradient norm to weight norm, ``sqrt(2 * r) / lr``, stays constant while
    the learning rate falls, so that gradients do not grow at the end of a run.

    Source: Defazio 2025, "Why gradients rapidly increase near the end of training" (arXiv 2506.02285), AdamC.

    Unit: ``lam`` is 1 / lr, and equals the lam of `Decoupled` at the peak.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        lam: The coefficient, >= 0; None takes each group's own ``weight_decay``.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN.

    Examples:
        >>> Corrected(0.1).fraction(StepInfo(lr=0.5, peak_lr=1.0))
        0.025
    """

    @property
    def needs(self) -> frozenset[str]:
        """The peak learning rate."""
        return super().needs | {"peak_lr"}

    def fraction(self, info: StepInfo) -> float:
        """Return ``(lr^2 / peak_lr) * lam``."""
        return info.lr * (info.lr / info.peak_lr) * self.lam_of(info)


@dataclass(frozen=True, repr=False, kw_only=True)
class HalfLife(Rule):
    """Remove ``r = 1 - 2^(-1/h)``: an untouched weight halves in ``h`` steps. The time scale is the setting.

    The groups' own ``weight_decay`` values only say which groups decay. At ``lr == 0`` nothing is removed.

    Source: halflife's own; the time scale as the quantity to choose is that of Wang and Aitchison 2024.

    Unit: steps, epochs or tokens, exactly one of them; ``r`` is dimensionless.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        steps: The half-life in optimizer steps, > 0.
        epochs: The half-life in epochs, > 0; ``attach`` then needs ``steps_per_epoch``.
        tokens: The half-life in tokens, > 0; ``attach`` then needs ``tokens_per_step``.

    Raises:
        UserError: If not exactly one is given, or it is not > 0.

    Examples:
        >>> HalfLife(steps=1).fraction(StepInfo(lr=0.1))
        0.5
        >>> HalfLife(epochs=2).fraction(StepInfo(lr=0.1, steps_per_epoch=0.5))
        0.5
    """

    steps: float | None = None
    epochs: float | None = None
    tokens: float | None = None

    def __new__(cls, *args: object, **kwargs: object) -> HalfLife:
        """Refuse a half-life without its unit.

        Args:
            *args: None are expected.
            **kwargs: What ``__init__`` takes.

        Returns:
            A rule that is not initialized yet.

        Raises:
            UserError: If a number is given by position.
        """
        if args:
            given = ", ".join(map(repr, args))
            raise UserError(
                f"HalfLife got {given} without a unit: write HalfLife(steps=...), (epochs=...) or (tokens=...)"
            )
        return super().__new__(cls)

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) != 1:
            raise UserError(
                f"HalfLife needs exactly one of steps=, epochs= and tokens=, got {', '.join(given) or 'none'}"
            )
        for name, value in given.items():
            object.__setattr__(self, name, check_positive(f"the half-life in {name}", value))
        if self.steps is not None:
            fraction_from_half_life(self.steps)  # too short a half-life is refused here, not at the first step

    @property
    def needs(self) -> frozenset[str]:
        """What converts the given unit to steps."""
        if self.epochs is not None:
            return frozenset({"steps_per_epoch"})
        return frozenset({"tokens_per_step"} if self.tokens is not None else ())

    def fraction(self, info: StepInfo) -> float:
        """Return ``1 - 2^(-1/h)`` with ``h`` in steps."""
        if self.steps is not None:
            return fraction_from_half_life(self.steps)
        if self.epochs is not None:
            return fraction_from_half_life(epochs_to_steps(self.epochs, info.steps_per_epoch))
        assert self.tokens is not None  # one of the three, checked at construction
        return fraction_from_half_life(tokens_to_steps(self.tokens, info.tokens_per_step))


@dataclass(frozen=True, repr=False)
class Normalized(LamRule):
    """Remove ``r = (lr / peak_lr) * lam / sqrt(T)`` with ``T`` the steps of the run: one lam for every length.

    With warm restarts (AdamWR) ``T`` is the length of the restart that the step is in, ``steps * factor^i``:
    the decay is normalized anew at each restart, as the cosine starts again. The learning rate that restarts
    is the scheduler's matter (torch's ``CosineAnnealingWarmRestarts`` with ``T_0=steps, T_mult=factor``,
    stepped once per optimizer step).

    Source: Loshchilov and Hutter 2019 (arXiv 1711.05101), section 3 and appendix B.1:
    ``lam_step = lam * sqrt(b / (B * T))`` with batch size ``b``, ``B`` training points and ``T`` epochs, which
    is ``lam / sqrt(number of steps)``.

    Unit: ``lam`` is the fraction at the peak times the root of the number of steps, dimensionless; the
    paper finds 0.025 to 0.05 on CIFAR-10.

    Matches: a loop in plain numbers (``tests/optim/test_attach.py::test_equals_scalar_oracle``).

    Args:
        lam: The normalized coefficient, >= 0; None cannot be attached, because a group's
            ``weight_decay`` has another unit.
        steps: Steps of the run, or of its first restart, >= 1; ``b / (B * T)`` of the paper need not be whole.
        factor: By how much each restart is longer than the one before, >= 1; None if there are no restarts:
            steps after the last planned one are then decayed like it.

    Raises:
        UserError: If a number is out of range.

    Examples:
        >>> Normalized(0.05, steps=100).fraction(StepInfo(lr=1.0, peak_lr=1.0, step=7))
        0.005
        >>> Normalized(0.05, steps=100, factor=4).fraction(StepInfo(lr=1.0, peak_lr=1.0, step=100))
        0.0025
    """

    inherits: ClassVar[bool] = False
    steps: float = 0
    factor: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = check_at_least("steps", self.steps, 1.0)
        object.__setattr__(self, "steps", int(steps) if steps.is_integer() else steps)
        if self.factor is not None:
            object.__setattr__(self, "factor", check_at_least("factor", self.factor, 1.0))

    @property
    def needs(self) -> frozenset[str]:
        """The peak learning rate, and the step where there are restarts."""
        return super().needs | {"peak_lr"} | ({"step"} if self.factor is not None else set())

    def fraction(self, info: StepInfo) -> float:
        """Return ``(lr / peak_lr) * lam / sqrt(T)``."""
        length = float(self.steps)
        if self.factor is not None:
            _, length = restart_at(info.step, self.steps, self.factor)
        return info.lr / info.peak_lr * self.lam_of(info) / math.sqrt(length)


def _check_below_one(rule: str, lam: float | None) -> None:
    if lam is not None and lam >= 1.0:
        raise UserError(
            f"the lam of {rule} is a fraction of the weight per step and must be < 1, got {lam!r}; "
            "a torch weight_decay is multiplied by lr first: use Decoupled for it"
        )
