"""A measured number and how far it may be off."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Estimate"]


@dataclass(frozen=True)
class Estimate:
    """A number that was estimated from random vectors, or computed exactly.

    Args:
        value: The number.
        standard_error: Its standard error; 0.0 where the number is exact up to rounding.
        num_products: How many products with the matrix it took (for a Jacobian: per example).

    Examples:
        >>> Estimate(2.0, 0.1, 24).relative_error
        0.05
    """

    value: float
    standard_error: float
    num_products: int

    @property
    def relative_error(self) -> float:
        """The standard error over the size of the value; ``inf`` for a value of 0 with an error, 0 for an exact one."""
        if self.standard_error == 0:
            return 0.0
        return self.standard_error / abs(self.value) if self.value else float("inf")
