"""Checks of the numbers that users give: each returns the number, or says what was got and what was expected."""

from __future__ import annotations

import math

from halflife.errors import UserError, shortened

__all__ = [
    "as_number",
    "check_at_least",
    "check_fraction",
    "check_non_negative",
    "check_positive",
    "check_share",
    "check_steps",
]


def as_number(name: str, value: object) -> float:
    """Return ``value`` as a float.

    Args:
        name: What the value is called in the message.
        value: Any real number, also a 0-dim tensor or array.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If it is no number, or too large for a float. Text is no number, as a settings file may give it for
            ``1e-4``, and neither is a bool.
    """
    is_bool = isinstance(value, bool) or str(getattr(value, "dtype", "")).endswith("bool")
    try:
        if not is_bool and not isinstance(value, str | bytes):
            return float(value)  # type: ignore[arg-type]  # what has no float is refused below
    except OverflowError as error:  # the number itself may have thousands of digits
        raise UserError(f"{name} must be a number below 1.8e308, got a larger integer") from error
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} must be a number, got {shortened(value)}")


def check_at_least(name: str, value: float, least: float) -> float:
    """Return ``value`` as a float; refuse one that is below ``least``, infinite or NaN.

    Args:
        name: What the value is called in the message.
        value: Any real number, also a 0-dim tensor or array.
        least: The smallest that is allowed.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If the value is out of range.
    """
    number = as_number(name, value)
    if not least <= number < math.inf:  # written so that NaN fails too
        raise UserError(f"{name} must be a finite number >= {least:g}, got {number!r}")
    return number


def check_non_negative(name: str, value: float) -> float:
    """Return ``value`` as a float; refuse one that is negative, infinite or NaN."""
    return check_at_least(name, value, 0.0)


def check_positive(name: str, value: float, *, finite: bool = False) -> float:
    """Return ``value`` as a float if it is > 0.

    Args:
        name: What the value is called in the message.
        value: Any real number.
        finite: Whether infinity is refused.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If the value is zero, negative or NaN, or infinite where that is refused.
    """
    number = as_number(name, value)
    if not number > 0.0:
        raise UserError(f"{name} must be > 0, got {number!r}")
    if finite and number == math.inf:
        raise UserError(f"{name} must be a finite number > 0, got {number!r}")
    return number


def check_share(name: str, value: float) -> float:
    """Return ``value`` as a float if it is a share of less than the whole: ``0 <= value < 1``.

    Args:
        name: What the value is called in the message; its last word stands in the inequality.
        value: Any real number.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If it is negative, NaN, or >= 1.
    """
    number = as_number(name, value)
    if not 0.0 <= number < 1.0:
        raise UserError(f"{name} must satisfy 0 <= {name.rpartition(' ')[2]} < 1, got {number!r}")
    return number


def check_fraction(value: float) -> float:
    """Return ``value`` as a float if a decay may remove that fraction; at r >= 1 the weight is erased or flips."""
    return check_share("a fraction r", value)


def check_steps(name: str, value: float, *, minimum: int) -> int:
    """Return ``value`` as an int if it is a whole number of steps.

    Args:
        name: What the value is called in the message.
        value: The number of steps.
        minimum: The least that is allowed.

    Returns:
        The number.

    Raises:
        UserError: If it is not whole, below ``minimum``, infinite or NaN.
    """
    number = as_number(name, value)
    if not number.is_integer() or number < minimum:  # also refuses NaN and infinity
        raise UserError(f"{name} must be a whole number of steps >= {minimum}, got {value!r}")
    return int(value)
