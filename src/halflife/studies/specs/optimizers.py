"""The optimizers of runs on images by name, with their settings, and how a run says its learning rate and its decay."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halflife.errors import UserError
from halflife.rules.registry import check_decay_text, schedule_from
from halflife.studies.specs.base import check_choices, check_numbers

__all__ = ["DECAY_ON", "OPTIMIZERS", "SETTINGS", "check_decay", "check_lr_schedule", "check_optimizer", "setting_of"]

_ADAM = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}
OPTIMIZERS: Mapping[str, Mapping[str, float]] = {
    "sgd": {"momentum": 0.0},
    "adam": _ADAM,
    "adamw": _ADAM,
    "amsgrad": _ADAM,
    "radam": _ADAM,
    "adabound": {**_ADAM, "final_lr": 0.1},
    "padam": {**_ADAM, "partial": 0.25},
    "yogi": {**_ADAM, "eps": 1e-3},
    "adai": {"beta1": 0.1, "beta2": 0.99, "eps": 1e-3},
}
"""Each with the settings that it has besides the learning rate, and their values unless a run says otherwise."""
SETTINGS = ("momentum", "beta1", "beta2", "eps", "final_lr", "partial")
DECAY_ON = ("everything", "matrices", "nanogpt", "transformers")


def setting_of(spec: Any, name: str) -> float:
    """A setting of a run's optimizer: what the run says, or the optimizer's own value.

    Args:
        spec: A run with an ``optimizer`` and its `SETTINGS`.
        name: One that the optimizer has.

    Returns:
        The number.
    """
    given: float | None = getattr(spec, name)
    return OPTIMIZERS[spec.optimizer][name] if given is None else given


def check_optimizer(spec: Any) -> None:
    """Refuse an unknown optimizer, and a setting that it does not have; a setting at the optimizer's own value becomes None.

    Args:
        spec: A run with an ``optimizer`` and its `SETTINGS`.

    Raises:
        UserError: The run cannot be trained so.
    """
    check_choices(spec, {"optimizer": tuple(OPTIMIZERS)})
    own = OPTIMIZERS[spec.optimizer]
    for name in SETTINGS:
        value = getattr(spec, name)
        if value is None:
            continue
        if name not in own:
            raise UserError(
                f"{name} is {value!r}, and the optimizer {spec.optimizer} has {', '.join(own)}: leave {name} out"
            )
        if name in {"eps", "final_lr", "partial"}:
            check_numbers(spec, name, above=0, at_most=0.5 if name == "partial" else float("inf"))
        else:
            check_numbers(spec, name)
            if value >= 1:
                raise UserError(f"{name} is {value:g}, expected a number >= 0 and < 1: change {name}")
        if value == own[name]:
            object.__setattr__(spec, name, None)  # a run has one name, whether it says so or not


def check_decay(spec: Any) -> None:
    """Refuse a decay that is no text of a rule, or that is said twice.

    Args:
        spec: A run with ``lam``, ``decay`` and ``sphere``.

    Raises:
        UserError: The run cannot be trained so.
    """
    if not isinstance(spec.decay, str):
        raise UserError(f"decay is {spec.decay!r}, expected text such as 'Decoupled(lam=0.1)': change decay")
    check_choices(spec, {"decay_on": DECAY_ON})
    if spec.decay:
        check_decay_text(spec.decay)
        if spec.lam > 0:
            raise UserError(
                f"lam is {spec.lam:g} and decay is {spec.decay!r}: lam is short for Decoupled(lam), leave one of them out"
            )


def check_lr_schedule(spec: Any, defaults: Mapping[str, Any]) -> None:
    """Refuse a schedule that is none, or that stands beside a drop of the learning rate.

    Args:
        spec: A run with ``lr_schedule`` and ``lr_schedule_unit``.
        defaults: The fields that say the drop, with the values that they have when nobody says it.

    Raises:
        UserError: The run cannot be trained so.
    """
    check_choices(spec, {"lr_schedule_unit": ("steps", "epochs", "percent")})
    if not isinstance(spec.lr_schedule, str):
        raise UserError(
            f"lr_schedule is {spec.lr_schedule!r}, expected text such as 'piecewise((1.0, 0.1), (80,))': change lr_schedule"
        )
    if not spec.lr_schedule:
        if spec.lr_schedule_unit != "steps":
            raise UserError(
                "lr_schedule_unit is 'epochs' and lr_schedule is empty: give a schedule, or leave the unit out"
            )
        return
    schedule_from(spec.lr_schedule)
    for name, value in defaults.items():
        if getattr(spec, name) != value:
            raise UserError(
                f"{name} is {getattr(spec, name):g} and lr_schedule is {spec.lr_schedule!r}: the schedule says all of the"
                f" learning rate, leave {name} out"
            )
