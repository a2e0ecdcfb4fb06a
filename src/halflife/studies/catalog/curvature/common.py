"""What the studies of curvature share: arms of a grid of learning rates, and exponents in the learning rate.

Shapes: R learning rates in rising order, S seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.quantities import NotMeasuredError, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise

__all__ = ["CIFAR", "CIFAR_NEEDS", "at_each", "exponents", "keys_starting", "positive", "rate_keys", "rate_of"]


CIFAR: Mapping[str, Any] = {"data": "cifar10", "downsample": 1, "blocks": (2, 2, 2, 2)}
CIFAR_NEEDS = "CIFAR-10's binary version (--data DIR) and a GPU"


def keys_starting(results: Results, size: int, start: str) -> list[str]:
    """The keys of a size that start so, in the manifest's order."""
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith(start)]


def rate_of(results: Results, key: str, size: int) -> float:
    """The learning rate of an arm."""
    return image_run(results, key, size).lr


def rate_keys(results: Results, size: int) -> list[str]:
    """The arms of the grid, learning rates rising."""
    return sorted(keys_starting(results, size, "lr-"), key=lambda key: rate_of(results, key, size))


def at_each(
    results: Results, size: int, *, keys: Callable[[Results, int], Sequence[str]], make: Callable[[str], Quantity]
) -> list[Quantity]:
    """A quantity of each of several arms, its name ending with the arm's learning rate."""
    made = [(rate_of(results, key, size), make(key)) for key in keys(results, size)]
    return [replace(quantity, name=f"{quantity.name}, at lr {lr:g}") for lr, quantity in made]


def exponents(results: Results, size: int, keys: Sequence[str], values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Per seed the p of (quantity ~ lr^p), by least squares of logarithms.

    Args:
        results: What the store holds.
        size: The size.
        keys: The arms, one a learning rate.
        values: The quantity, shape (R, S); of (R, P, S) the geometric mean over P is taken.

    Returns:
        Shape (S,).

    Raises:
        NotMeasuredError: A value is not above 0.
    """
    if not (values > 0).all():
        raise NotMeasuredError("a value is not above 0, so that there is no exponent")
    log_values_RS = np.log(values).reshape(len(values), -1, values.shape[-1]).mean(axis=1)
    log_lr_R = np.log([rate_of(results, key, size) for key in keys])
    log_lr_R -= log_lr_R.mean()
    found_S: NDArray[np.float64] = log_lr_R @ log_values_RS / (log_lr_R @ log_lr_R)
    return found_S


Values = Callable[[Results, int], NDArray[np.float64]]


def positive(what: str, *values: Values) -> Premise:
    """The premise that a quantity is above 0 in every run: a trace, which is negative where the loss is not convex, say."""
    return Premise(f"{what} is above 0 in every run", functools.partial(_not_positive, values=values))


def _not_positive(results: Results, size: int, *, values: tuple[Values, ...]) -> str:
    lowest = min(one(results, size).min() for one in values)
    return "" if lowest > 0 else f"its lowest value is {lowest:.3g}, so that it has no logarithm"
