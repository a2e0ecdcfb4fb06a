"""When is a decay too small for the precision of the weights? Then it is rounded away, and no weight changes."""

from __future__ import annotations

from typing import Any

import torch
from torch.optim import Optimizer

from halflife.audit.rows import Row

__all__ = ["is_compensated", "smallest_effective_fraction"]

COMPENSATED = ("kahan", "stochastic", "master", "compens", "fp32_param")  # what low-precision optimizers call it


def smallest_effective_fraction(dtype: torch.dtype) -> float:
    """Return the fraction below which ``w <- (1 - r) * w``, rounded to nearest, changes no weight: ``eps / 4``.

    A weight changes if ``r * |w|`` is above half the distance to the next smaller number. Relative to the weight
    that half distance lies between ``eps / 4`` (just above, and at, a power of 2) and ``eps / 2``.

    Args:
        dtype: A floating-point or complex dtype.

    Returns:
        The fraction, dimensionless.

    Examples:
        >>> smallest_effective_fraction(torch.bfloat16)
        0.001953125
        >>> w = torch.linspace(1.0, 2.0, 1000).to(torch.bfloat16)
        >>> bool((w * (1 - 0.0019) != w).any()), bool((w * (1 - 0.0021) != w).any())
        (False, True)
    """
    return torch.finfo(dtype).eps / 4


def is_compensated(optimizer: Optimizer, row: Row) -> bool:
    """Tell whether an optimizer says that it keeps what rounding would lose: by its settings, or by its state.

    Args:
        optimizer: The optimizer.
        row: One of its parameters.

    Returns:
        True if something of a telling name is there and not off.
    """
    settings: dict[str, Any] = {**vars(optimizer), **(row.group.settings if row.group else {})}
    settings |= optimizer.state.get(row.parameter, {})
    return any(
        any(word in str(name).lower() for word in COMPENSATED) and value is not None and value is not False
        for name, value in settings.items()
    )
