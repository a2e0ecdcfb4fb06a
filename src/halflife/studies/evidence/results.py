"""What a store holds of one study and preset: readings per arm and seed, and what was kept per test example.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError, UserError
from halflife.studies.evidence.readings import RunReadings, last_of, stacked, values_of
from halflife.studies.specs.base import RunSpec, spec_from_json
from halflife.studies.store.store import Store

if TYPE_CHECKING:
    import polars as pl

__all__ = ["NoArmError", "Results"]


class NoArmError(StoreError):
    """The manifest lists no arm of this key at this size."""


class Results:
    """The finished runs of one study and preset, as its manifest in the store lists them.

    Seeds for which an arm of the same size is not finished are left out, so that every comparison is paired. What the methods
    ask for is named by an arm's key, by a reading or an array, and by a size of the ladder.

    Args:
        store: The store.
        manifest: The manifest of the study and preset, as `Store.sheets` gives it.
    """

    def __init__(self, store: Store, manifest: Mapping[str, Any]) -> None:
        self.manifest = manifest
        self.study_name: str = manifest["study"]
        self.preset_name: str = manifest["preset"]
        self.arms: list[Mapping[str, Any]] = list(manifest["arms"])
        self.main_size: int = manifest["main_size"]
        self.sizes: list[int] = sorted({arm["size"] for arm in self.arms})
        self.headers: dict[str, dict[str, Any]] = {}
        self._readings: dict[str, RunReadings] = {}
        for arm in self.arms:
            for identity in arm["runs"].values():
                folder = store.run(identity)
                self.headers[identity] = folder.header()
                if self.headers[identity].get("status") == "finished":
                    self._readings[identity] = RunReadings(identity, folder.readings())

    @property
    def num_planned(self) -> int:
        """Runs in the plan, each once however many arms share it."""
        return len({identity for arm in self.arms for identity in arm["runs"].values()})

    @property
    def num_finished(self) -> int:
        """Runs that reached their end."""
        return len(self._readings)

    @property
    def failures(self) -> list[str]:
        """Why runs failed, one sentence each."""
        return [header["failure"] for header in self.headers.values() if header.get("status") == "failed"]

    def seeds(self, size: int) -> list[int]:
        """The seeds for which every arm of this size is finished, in order."""
        arms = [arm for arm in self.arms if arm["size"] == size]
        planned = {int(seed) for arm in arms for seed in arm["runs"]}
        return sorted(s for s in planned if all(arm["runs"].get(str(s)) in self._readings for arm in arms))

    def _runs(self, key: str, size: int) -> list[str]:
        for arm in self.arms:
            if arm["key"] == key and arm["size"] == size:
                return [arm["runs"][str(seed)] for seed in self.seeds(size)]
        raise NoArmError(
            f"the manifest of {self.study_name} has no arm {key!r} at size {size}: it was written by another version of the"
            " study, run it again"
        )

    def spec(self, key: str, size: int) -> RunSpec:
        """The spec of an arm's first finished seed.

        Returns:
            The spec; all seeds of an arm differ in their seed alone.

        Raises:
            StoreError: No seed is finished.
        """
        runs = self._runs(key, size)
        if not runs:
            raise StoreError(f"no seed of {self.study_name} is finished at size {size}: run it first")
        return spec_from_json(self.headers[runs[0]]["spec"])

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        """What each seed of an arm read, a number or an array, at an epoch, at a step, or last.

        Losses by block are means over up to 64 longer blocks (`halflife.studies.evidence.readings.pooled`).

        Args:
            key: The arm.
            name: The name of a number or an array.
            size: The size.
            epoch: The epoch at which it was read.
            step: The step at which it was read; a branch counts from 0. With neither, the last reading that has the name,
                which stands at the same step in every seed.

        Returns:
            The numbers, shape (S,), or the arrays, shape (S, N), 0 or 1 for arrays of bits; in the order of `seeds`.

        Raises:
            UserError: Both an epoch and a step are given.
            StoreError: A run has no such reading, or its last one is earlier than that of another seed.
        """
        if epoch is not None and step is not None:
            raise UserError(f"{name} is asked for at epoch {epoch:g} and at step {step}, expected one: leave one out")
        runs = self._of(key, size)
        if epoch is not None:
            where, readings = f"epoch {epoch:g}", [run.at_epoch(epoch) for run in runs]
        elif step is not None:
            where, readings = f"step {step}", [run.at_step(step) for run in runs]
        else:
            where, readings = "the end", [reading for _, reading in last_of(runs, key, name)]
        if not any(name in reading.arrays for reading in readings):
            return values_of(key, name, readings, where)
        arrays = [run.array(reading, name, where) for run, reading in zip(runs, readings, strict=True)]
        return stacked(key, name, arrays)

    def per_seed(self, key: str, metric: str, epoch: int, size: int) -> NDArray[np.float64]:
        """One reading per seed at one epoch, shape (S,).

        Args:
            key: The arm.
            metric: The reading's name.
            epoch: The epoch, which must have been read.
            size: The size.

        Returns:
            The values in the order of `seeds`.

        Raises:
            StoreError: A reading is missing.
        """
        return values_of(key, metric, [run.at_epoch(epoch) for run in self._of(key, size)], f"epoch {epoch}")

    def at_step(self, key: str, metric: str, step: int, size: int) -> NDArray[np.float64]:
        """One reading per seed at one step, shape (S,).

        Args:
            key: The arm.
            metric: The reading's name.
            step: The step, which must have been read; a branch counts from 0.
            size: The size.

        Returns:
            The values in the order of `seeds`.

        Raises:
            StoreError: A reading is missing.
        """
        return values_of(key, metric, [run.at_step(step) for run in self._of(key, size)], f"step {step}")

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        """The last reading of a quantity per seed, shape (S,); it stands at the same step in every seed.

        Returns:
            The values in the order of `seeds`.

        Raises:
            StoreError: A run has no such reading, or stops earlier than another seed.
        """
        return np.array(
            [reading.values[metric] for _, reading in last_of(self._of(key, size), key, metric)], dtype=np.float64
        )

    def per_example(self, key: str, name: str, epoch: int, size: int) -> NDArray[np.float64]:
        """One value per seed and test example at one epoch, shape (S, N).

        Args:
            key: The arm.
            name: The array's name.
            epoch: The epoch at which it was kept.
            size: The size.

        Returns:
            0 or 1 for arrays of bits.

        Raises:
            StoreError: An array is missing.
        """
        runs = self._of(key, size)
        return stacked(key, name, [run.array(run.at_epoch(epoch), name, f"epoch {epoch}") for run in runs])

    def array_at_step(self, key: str, name: str, step: int, size: int) -> NDArray[np.float64]:
        """One value per seed and example or block at one step, shape (S, N).

        Args:
            key: The arm.
            name: The array's name.
            step: The step at which it was kept; a branch counts from 0.
            size: The size.

        Returns:
            0 or 1 for arrays of bits.

        Raises:
            StoreError: An array is missing.
        """
        runs = self._of(key, size)
        return stacked(key, name, [run.array(run.at_step(step), name, f"step {step}") for run in runs])

    def last_array(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        """The last array of a name per seed, shape (S, N); it stands at the same step in every seed.

        Losses by block are means over up to 64 longer blocks (`halflife.studies.evidence.readings.pooled`).

        Returns:
            0 or 1 for arrays of bits.

        Raises:
            StoreError: A run has no such array, or stops earlier than another seed.
        """
        return stacked(
            key, name, [run.array(reading, name, "") for run, reading in last_of(self._of(key, size), key, name)]
        )

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each seed the epochs at which a quantity was read, and its values.

        Returns:
            One pair of arrays of equal length per seed.
        """
        return [run.series(metric, "epoch") for run in self._of(key, size)]

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each seed the steps at which a quantity was read, and its values.

        Returns:
            One pair of arrays of equal length per seed.
        """
        return [run.series(metric, "step") for run in self._of(key, size)]

    def _of(self, key: str, size: int) -> list[RunReadings]:
        return [self._readings[identity] for identity in self._runs(key, size)]

    @cached_property
    def frame(self) -> pl.DataFrame:
        """All readings of paired seeds, one row a run and epoch.

        Columns: arm, label, size, seed, run, step, epoch, then one column a quantity (null where it was not read).
        """
        import polars as pl  # here, because verdicts do without it and its import takes a second

        rows: list[dict[str, Any]] = []
        for arm in self.arms:
            for seed in self.seeds(arm["size"]):
                identity = arm["runs"][str(seed)]
                head = {"arm": arm["key"], "label": arm["label"], "size": arm["size"], "seed": seed, "run": identity}
                rows += [
                    {**head, "step": r.step, "epoch": r.epoch, **r.values} for r in self._readings[identity].readings
                ]
        return pl.DataFrame(rows, infer_schema_length=None)
