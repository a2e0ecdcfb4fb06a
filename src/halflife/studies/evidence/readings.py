"""The readings of one run, looked up by step, by epoch, or as the last one. What is missing is an error that names the run.

Shapes: S seeds, N elements of an array (test examples, or blocks of validation tokens), R readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError
from halflife.studies.store.records import Array, Reading

__all__ = ["MAX_BLOCKS", "RunReadings", "last_of", "stacked", "values_of"]

MAX_BLOCKS = 64
BLOCKS = "loss_blocks"
"""How the names of arrays end whose elements are neighbouring stretches of text."""

AGAIN = "remove its folder below runs/ and run the study again"


class RunReadings:
    """What one finished run read.

    Args:
        identity: The run's id, for messages.
        readings: In the order of their steps.
    """

    def __init__(self, identity: str, readings: Sequence[Reading]) -> None:
        self.identity = identity
        self.readings = tuple(readings)

    def at_epoch(self, epoch: float) -> Reading:
        """The reading at an epoch.

        Returns:
            The reading.

        Raises:
            StoreError: There is none.
        """
        for reading in self.readings:
            if abs(reading.epoch - epoch) < 1e-9:
                return reading
        raise StoreError(
            f"the run {self.identity} has no reading at epoch {epoch:g}: remove its folder and run the study again"
        )

    def at_step(self, step: int) -> Reading:
        """The reading at a step.

        Returns:
            The reading.

        Raises:
            StoreError: There is none.
        """
        for reading in self.readings:
            if reading.step == step:
                return reading
        raise StoreError(
            f"the run {self.identity} has no reading at step {step}: remove its folder and run the study again"
        )

    def last_with(self, name: str) -> Reading:
        """The last reading that has a quantity or an array of this name.

        Args:
            name: The quantity or array.

        Returns:
            The reading.

        Raises:
            StoreError: No reading has it.
        """
        for reading in reversed(self.readings):
            if name in reading.values or name in reading.arrays:
                return reading
        raise StoreError(f"the run {self.identity} has no {name} at any step: {AGAIN}")

    def array(self, reading: Reading, name: str, where: str) -> NDArray[np.float64]:
        """An array of a reading.

        Args:
            reading: The reading.
            name: The array.
            where: Where the reading stands, in words, for the message.

        Returns:
            The elements, shape (N,); 0 or 1 for arrays of bits.

        Raises:
            StoreError: The reading has no such array.
        """
        array = reading.arrays.get(name)
        if array is None:
            raise StoreError(f"the run {self.identity} has no {name} at {where}: {AGAIN}")
        return unpacked(array)

    def series(self, metric: str, x: Literal["epoch", "step"]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where a quantity was read, and its values.

        Args:
            metric: The quantity.
            x: Whether places are epochs or steps.

        Returns:
            Two arrays of shape (R,).
        """
        points = [
            (reading.epoch if x == "epoch" else reading.step, reading.values[metric])
            for reading in self.readings
            if metric in reading.values
        ]
        places_values = np.array(points, dtype=np.float64).reshape(-1, 2)
        return places_values[:, 0], places_values[:, 1]


def unpacked(array: Array) -> NDArray[np.float64]:
    """A stored array as numbers.

    Args:
        array: As in a reading.

    Returns:
        Its elements, shape (N,); 0 or 1 for bits.
    """
    raw = np.frombuffer(array.data, dtype=np.uint8)
    found = np.unpackbits(raw, count=array.length) if array.dtype == "bits" else raw.view(array.dtype)
    return found.astype(np.float64)


def last_of(runs: Sequence[RunReadings], key: str, name: str) -> list[tuple[RunReadings, Reading]]:
    """The last reading with a quantity or array of each seed of an arm.

    Args:
        runs: The arm's runs.
        key: The arm, for messages.
        name: The quantity or array.

    Returns:
        Each run with its reading.

    Raises:
        StoreError: A run has none, or its last is earlier than that of another seed: a row is missing.
    """
    found = [(run, run.last_with(name)) for run in runs]
    end = max((reading.step for _, reading in found), default=0)
    for run, reading in found:
        if reading.step < end:
            raise StoreError(
                f"the run {run.identity} has no {name} after step {reading.step}, and other seeds of {key} have it at step"
                f" {end}: remove its folder and run the study again"
            )
    return found


def values_of(key: str, metric: str, readings: Sequence[Reading], where: str) -> NDArray[np.float64]:
    """One quantity of each seed's reading.

    Args:
        key: The arm, for messages.
        metric: The quantity.
        readings: One per seed.
        where: Where they stand, in words.

    Returns:
        The values, shape (S,).

    Raises:
        StoreError: A reading lacks it.
    """
    try:
        return np.array([reading.values[metric] for reading in readings], dtype=np.float64)
    except KeyError as error:
        raise StoreError(f"{metric} was not read at {where} of {key}: {AGAIN}") from error


def pooled(blocks_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Losses of neighbouring blocks of text as means over up to `MAX_BLOCKS` longer ones.

    An interval over blocks takes them as independent. The 256 of a run are shorter than a document, and neighbours share
    one: of paired differences of 16 pairs of arms at the end of laptop runs, the means over seeds have a lag-1
    autocorrelation of +0.11 on average and up to +0.32. Of 64 it is -0.02, between -0.21 and +0.23, of which +-0.12 is what
    independent blocks show by chance; and the standard error over blocks is up to 1.40 times as large.

    Args:
        blocks_N: One loss a block, in the order of the text.

    Returns:
        Means of neighbours, as equal in number as can be, shape (min(N, 64),).
    """
    return np.array([part.mean() for part in np.array_split(blocks_N, min(MAX_BLOCKS, len(blocks_N)))])


def stacked(key: str, name: str, arrays: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Arrays of the seeds as one, blocks of text `pooled`.

    Args:
        key: The arm, for messages.
        name: The array's name.
        arrays: One per seed.

    Returns:
        Shape (S, N).

    Raises:
        StoreError: They have different lengths.
    """
    lengths = sorted({len(array) for array in arrays})
    if len(lengths) > 1:
        raise StoreError(
            f"{name} of {key} has {' and '.join(map(str, lengths))} elements in different seeds, expected one number:"
            f" {AGAIN}"
        )
    rows = [pooled(array) for array in arrays] if name.endswith(BLOCKS) else arrays
    return np.array(rows, dtype=np.float64)
