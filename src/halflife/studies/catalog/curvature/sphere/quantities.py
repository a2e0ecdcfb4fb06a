"""What the study of the sphere measures.

Shapes: R learning rates in rising order, S seeds.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import exponents, keys_starting, rate_keys, rate_of
from halflife.studies.catalog.images.common import image_run
from halflife.studies.evidence.quantities import Best, Quantity, Reading
from halflife.studies.evidence.results import Results

__all__ = [
    "against_ends",
    "average_exponent",
    "branch_keys",
    "drawn_keys",
    "end_exponent",
    "end_values",
    "error_at_twice_the_radius",
    "of_average",
    "plateau_at_twice_the_radius",
    "plateau_exponent",
    "plateau_of",
    "plateau_of_nearest",
    "scaled_keys",
]


def drawn_keys(results: Results, size: int) -> list[str]:
    """The arms of the learning rates whose curves are shown, rising."""
    return keys_starting(results, size, "lr-drawn-")


def scaled_keys(results: Results, size: int) -> list[str]:
    """The arms with twice the radius and four times a learning rate whose curves are shown."""
    return keys_starting(results, size, "scaled-")


def branch_keys(results: Results, key: str, size: int) -> list[str]:
    """The arms that are fine-tuned from an arm's weights, in the order of their epochs."""
    return keys_starting(results, size, key.replace("lr-", "fine-tuned-") + "-")


def end_values(results: Results, size: int, keys: Sequence[str], metric: str) -> NDArray[np.float64]:
    """A reading at the end, which is after fine-tuning, (R, S)."""
    return np.array([results.read(key, metric, size) for key in keys])


def of_average(results: Results, size: int, *, key: str, metric: str, epoch: int | None = None) -> NDArray[np.float64]:
    """A reading of the moving average at an epoch (``None``: the last one of the first phase), (S,)."""
    spec = image_run(results, key, size)
    return results.read(key, f"ema-{spec.ema[0]:g}/{metric}", size, epoch=epoch or spec.drop_epoch)


def plateau_of(results: Results, size: int, *, key: str) -> NDArray[np.float64]:
    """The mean training loss of an epoch over the second half of the first phase, (S,)."""
    drop = image_run(results, key, size).drop_epoch
    series = results.series(key, "train/running_loss", size)
    return np.array([losses[(epochs > drop / 2) & (epochs <= drop)].mean() for epochs, losses in series])


def plateau_exponent(results: Results, size: int) -> NDArray[np.float64]:
    """The exponent of the training loss before the drop in the learning rate, (S,)."""
    keys = drawn_keys(results, size)
    return exponents(results, size, keys, np.array([plateau_of(results, size, key=key) for key in keys]))


def average_exponent(results: Results, size: int, *, scaled: bool) -> NDArray[np.float64]:
    """The exponent of the average's ||J|| in the learning rate, of the average as it is or scaled to the sphere, (S,)."""
    keys, found = drawn_keys(results, size), []
    for key in keys:
        norm_S = (
            of_average(results, size, key=key, metric="weight_norm") / image_run(results, key, size).sphere
            if scaled
            else 1.0
        )
        found.append(of_average(results, size, key=key, metric="jacobian_norm") * norm_S)
    return exponents(results, size, keys, np.array(found))


def end_exponent(results: Results, size: int, *, metric: str) -> NDArray[np.float64]:
    """The exponent of a probe after fine-tuning in the learning rate, (S,)."""
    keys = drawn_keys(results, size)
    return exponents(results, size, keys, end_values(results, size, keys, metric))


def against_ends(results: Results, size: int) -> list[Quantity]:
    """The best learning rate inside the grid against the smallest and the largest one."""
    keys = rate_keys(results, size)
    inside = 100 * Best(arms=tuple(keys[1:-1]), name="test/wrong")
    return [
        Quantity(
            name=f"test error of the best learning rate inside the grid - that of the {which} one, after fine-tuning",
            values=inside - 100 * Reading(key, "test/wrong"),
            unit="points",
        )
        for which, key in (("smallest", keys[0]), ("largest", keys[-1]))
    ]


def same_of(key: str) -> str:
    """The arm at the smaller radius that an arm at twice the radius should equal."""
    return key.replace("scaled-", "lr-")


def error_at_twice_the_radius(key: str) -> Quantity:
    """How test errors differ."""
    return Quantity(
        name="test error at twice the radius and four times the learning rate - that without",
        values=100 * Reading(key, "test/wrong") - 100 * Reading(same_of(key), "test/wrong"),
        unit="points",
    )


def plateau_at_twice_the_radius(key: str) -> Quantity:
    """How training losses differ."""

    def ratio(results: Results, size: int) -> NDArray[np.float64]:
        return plateau_of(results, size, key=key) / plateau_of(results, size, key=same_of(key))

    name = "training loss before the drop at twice the radius and four times the learning rate, over that without"
    return Quantity(name=name, values=ratio, unit="x", log=True)


def plateau_of_nearest(key: str) -> Quantity:
    """What else could be: that the learning rate alone counts. Then the nearest arm at the smaller radius is another one."""

    def ratio(results: Results, size: int) -> NDArray[np.float64]:
        lr = rate_of(results, key, size)
        nearest = min(rate_keys(results, size), key=lambda arm: abs(np.log(rate_of(results, arm, size) / lr)))
        return plateau_of(results, size, key=nearest) / plateau_of(results, size, key=same_of(key))

    name = "training loss before the drop at the smaller radius with about the larger learning rate, over that with the smaller"
    return Quantity(name=f"{name} one", values=ratio, unit="x", log=True)
