"""The readings of one run, looked up by step, by epoch, or as the last one. What is missing is an error that names the run.

Shapes: S seeds, N elements of an array (test examples, or blocks of validation tokens), R readings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError, did_you_mean
from halflife.studies.store.columns import Columns, unpacked

__all__ = ["AGAIN", "MAX_BLOCKS", "RunReadings", "stacked", "unpacked"]

MAX_BLOCKS = 64
BLOCKS = "loss_blocks"
"""How the names of arrays end whose elements are neighbouring stretches of text."""

AGAIN = "remove its folder below runs/ and run the study again"


class RunReadings:
    """What one finished run read.

    Args:
        identity: The run's id, for messages.
        columns: What it read, by name.
    """

    def __init__(self, identity: str, columns: Columns) -> None:
        self.identity = identity
        self.columns = columns
        self._rows: dict[tuple[str, float | None, int | None], int] = {}

    def row(self, name: str, epoch: float | None, step: int | None) -> int:
        """Which reading is asked for.

        Args:
            name: A quantity or an array.
            epoch: The epoch of the reading.
            step: Its step. With neither, the last reading that has the name.

        Returns:
            Its number, from 0.

        Raises:
            StoreError: There is none.
        """
        if (known := self._rows.get((name if epoch is step is None else "", epoch, step))) is not None:
            return known
        if epoch is not None:
            found, where = np.flatnonzero(np.abs(self.columns.epoch - epoch) < 1e-9), f"reading at epoch {epoch:g}"
        elif step is not None:
            found, where = np.flatnonzero(self.columns.step == step), f"reading at step {step}"
        else:
            found, where = self.columns.rows(name)[-1:], ""
            if not len(found):
                raise StoreError(
                    f"the run {self.identity} has no {name} at any step{did_you_mean(name, self.columns.names)}: correct the"
                    " name, or remove the run's folder and run the study again"
                )
        if not len(found):
            raise StoreError(f"the run {self.identity} has no {where}: remove its folder and run the study again")
        row = self._rows[name if epoch is step is None else "", epoch, step] = int(found[0])
        return row

    @property
    def diverged_at(self) -> int | None:
        """The step at which it diverged, where that is a result and no failure."""
        steps = self.columns.quantity("diverged_at")
        return int(steps[-1]) if len(steps) and steps[-1] >= 0 else None

    def series(self, name: str, x: Literal["epoch", "step"]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Where a quantity was read, in epochs or steps, and its values.

        Returns:
            Two arrays of shape (K,).
        """
        places = self.columns.epoch if x == "epoch" else self.columns.step
        return places[self.columns.rows(name)].astype(np.float64), self.columns.quantity(name)


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
