"""The checks of what is given to a probe, each with the sentence that says what was expected."""

from __future__ import annotations

import math
import operator

from halflife.errors import UserError
from halflife.probes.problem import Problem

__all__ = ["check_number", "check_problem", "check_whole"]


def check_problem(problem: object) -> None:
    """Refuse what is no problem, such as the model itself.

    Args:
        problem: What was given.

    Raises:
        UserError: If it is not a `Problem`.
    """
    if not isinstance(problem, Problem):
        raise UserError(
            f"problem is {type(problem).__name__}; expected a halflife.probes.Problem, made by "
            "Problem(model, loss, batches)."
        )


def check_whole(name: str, value: object, least: int | None = None, otherwise: str = "") -> int:
    """Refuse what is no whole number, or one that is too small.

    Args:
        name: Of the argument.
        value: What was given.
        least: The smallest that is taken; ``None`` for any.
        otherwise: What else the argument could be, for the sentence.

    Returns:
        The number.

    Raises:
        UserError: If it is not a whole number, or below ``least``.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        whole = None
    if whole is None:
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"{name} is {value!r}; expected a whole number{bound}{otherwise}.")
    if least is not None and whole < least:
        raise UserError(f"{name} is {whole}; expected at least {least}{otherwise}.")
    return whole


def check_number(name: str, value: object, expected: str, least: float = -math.inf) -> float:
    """Refuse what is no finite number, or one that is too small.

    Args:
        name: Of the argument.
        value: What was given; a tensor of one number is taken, too.
        expected: What the argument is, for the sentence.
        least: The smallest that is taken.

    Returns:
        The number.

    Raises:
        UserError: If it is not a number, not finite, or below ``least``.
    """
    try:
        number = math.nan if isinstance(value, str | bytes | bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not (math.isfinite(number) and number >= least):
        raise UserError(f"{name} is {value!r}; expected {expected}.")
    return number
