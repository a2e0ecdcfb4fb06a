"""The checks of ``attach(..., low_precision=...)``: what can be remedied, and decay that would be rounded away."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from halflife.errors import UserError, shortened
from halflife.optim.actions import ACCUMULATING, LowPrecision
from halflife.optim.actions.base import LOW
from halflife.precision import smallest_effective_fraction
from halflife.rules.appliers import Cautious
from halflife.rules.base import Part

__all__ = ["check_choice", "check_effective", "check_parts", "check_pending", "least_effective"]

CHOICES = tuple(name for each in get_args(LowPrecision) for name in get_args(each) if isinstance(name, str))


def check_choice(given: object) -> None:
    """Refuse what ``low_precision`` cannot be.

    Args:
        given: What the user gave.

    Raises:
        UserError: If it is neither None nor one of the three names.
    """
    if given is not None and not (isinstance(given, str) and given in CHOICES):
        names = ", ".join(f'"{name}"' for name in CHOICES)
        raise UserError(f"low_precision must be None or one of {names}, got {shortened(given)}")


def check_parts(choice: str, parts: Sequence[tuple[Part, Mapping[str, Any]]]) -> None:
    """Refuse a remedy where nothing needs one, and parts that it does not serve.

    Args:
        choice: ``low_precision``.
        parts: What acts on each group that decays, and the group.

    Raises:
        UserError: In each of these cases.
    """
    low = [part for part, group in parts if any(each.dtype in LOW for each in group["params"])]
    if not low:
        found = sorted({str(each.dtype).removeprefix("torch.") for _, group in parts for each in group["params"]})
        raise UserError(
            f'low_precision="{choice}" expected decaying weights in bfloat16 or float16, got {" and ".join(found)} only:'
            " leave low_precision out"
        )
    for part in low:
        if part.kind == "rule" or (choice not in ACCUMULATING and isinstance(part, Cautious)):
            continue
        served = "rules whose fraction of the whole weight is known before the step"
        served += "" if choice in ACCUMULATING else ", and Cautious around one"
        raise UserError(
            f'low_precision="{choice}" serves {served}, got {part!r} on bfloat16 or float16 weights: use such a rule, as'
            " Decoupled, keep these weights in float32, or leave low_precision out"
        )


def least_effective(group: Mapping[str, Any]) -> float:
    """Return the fraction up to which rounding takes decay of some weights of a group away; 0 if it takes none."""
    dtypes = {each.dtype for each in group["params"] if each.dtype in LOW and each.requires_grad}
    return max(map(smallest_effective_fraction, dtypes), default=0.0)


def check_effective(r: float, least: float, group: int) -> None:
    """Refuse a fraction that rounding takes away.

    Args:
        r: The fraction that a rule asks for.
        least: What `least_effective` returned.
        group: Number of the group.

    Raises:
        UserError: If ``0 < r <= least``.
    """
    if 0.0 < r <= least:
        raise UserError(
            f"r = {r:.3g} of parameter group {group} would be rounded away: weights in its precision lose every fraction up"
            f' to {least:.3g} per step; pass low_precision="accumulate" or "stochastic" to attach, or keep float32 master'
            " weights"
        )


def check_pending(values: Sequence[float], num_parameters: int, group: int) -> None:
    """Refuse pending decay of a checkpoint that is damaged.

    Args:
        values: The numbers, none where nothing was kept.
        num_parameters: Number of parameters of the group.
        group: Number of the group.

    Raises:
        UserError: If there are not three for each parameter, or one is no finite number >= 0.
    """
    numbers = isinstance(values, Sequence) and all(type(each) in {float, int} for each in values)
    if (
        not numbers
        or len(values) not in {0, 3 * num_parameters}
        or not all(0.0 <= each < float("inf") for each in values)
    ):
        raise UserError(
            f"the checkpoint is damaged: halflife_pending of parameter group {group} should hold {3 * num_parameters} finite"
            f" numbers >= 0, got {shortened(values)}; load another checkpoint, or remove halflife_pending from its groups"
        )
