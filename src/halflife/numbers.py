"""Checks of the numbers that users give: each returns a float, or says what was got and what was expected."""

from __future__ import annotations

import math

from halflife.errors import UserError

__all__ = ["as_number", "check_fraction", "check_non_negative", "check_positive"]


def as_number(name: str, value: object) -> float:
    """Return ``value`` as a float.

    Args:
        name: What the value is called in the message.
        value: Any real number, also a 0-dim tensor or array.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If it is no number; text is none either, as a settings file may give it for ``1e-4``.
    """
    try:
        if not isinstance(value, str | bytes):
            return float(value)  # type: ignore[arg-type]  # what has no float is refused below
    except (TypeError, ValueError):
        pass
    raise UserError(f"{name} must be a number, got {value!r}")


def check_non_negative(name: str, value: float) -> float:
    """Return ``value`` as a float if it is finite and >= 0.

    Args:
        name: What the value is called in the message.
        value: Any real number, also a 0-dim tensor or array.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If the value is negative, infinite or NaN.
    """
    number = as_number(name, value)
    if not 0.0 <= number < math.inf:  # written so that NaN fails too
        raise UserError(f"{name} must be a finite number >= 0, got {number!r}")
    return number


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a float if it is > 0; infinity is allowed.

    Args:
        name: What the value is called in the message.
        value: Any real number.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If the value is zero, negative or NaN.
    """
    number = as_number(name, value)
    if not number > 0.0:
        raise UserError(f"{name} must be > 0, got {number!r}")
    return number


def check_fraction(value: float) -> float:
    """Return ``value`` as a float if it is a fraction that a decay may remove: ``0 <= r < 1``.

    Args:
        value: The fraction.

    Returns:
        The value as a Python float.

    Raises:
        UserError: If it is negative, NaN, or >= 1 (which would erase or flip the weight).
    """
    number = as_number("a fraction r", value)
    if not 0.0 <= number < 1.0:
        raise UserError(f"a fraction r must satisfy 0 <= r < 1, got {number!r}")
    return number
