"""What a store holds of one study and preset: readings per arm and seed, and what was kept per test example.

Shapes: S seeds, N test examples.
"""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import StoreError, UserError, did_you_mean
from halflife.studies.evidence.readings import AGAIN, RunReadings, stacked
from halflife.studies.specs.base import RunSpec, spec_from_json
from halflife.studies.store.columns import Recent
from halflife.studies.store.store import Store

if TYPE_CHECKING:
    import polars as pl

__all__ = ["ArmDivergedError", "NoArmError", "Results"]


class NoArmError(StoreError):
    """The manifest lists no arm of this key at this size."""


class ArmDivergedError(StoreError):
    """Runs of an arm diverged: what compares it cannot be decided on the seeds that are left, which are the lucky ones."""


HEADS = {"arm": str, "label": str, "size": int, "seed": int, "run": str}


class Results:
    """The finished runs of one study and preset, as its manifest in the store lists them.

    Seeds for which an arm of the same size is not finished are left out, so that every comparison is paired. A run that
    diverged is done: its seed counts, and whatever asks for its arm gets an `ArmDivergedError`. What the methods ask for is
    named by an arm's key, by a reading or an array, and by a size of the ladder.

    Args:
        store: The store.
        manifest: The manifest of the study and preset, as `Store.sheets` gives it.
    """

    def __init__(self, store: Store, manifest: Mapping[str, Any]) -> None:
        self._store = store  # runs are read when they are asked for, and what archives hold goes with its store
        self.manifest = manifest
        self.study_name: str = manifest["study"]
        self.preset_name: str = manifest["preset"]
        self.arms: list[Mapping[str, Any]] = list(manifest["arms"])
        self.main_size: int = manifest["main_size"]
        self.sizes: list[int] = sorted({arm["size"] for arm in self.arms})
        self.headers: dict[str, dict[str, Any]] = {}
        self.damaged: dict[str, str] = {}
        """The runs that cannot be read, and why, one sentence each; they count as not finished."""
        self._readings: dict[str, RunReadings] = {}
        self._seeds: dict[int, list[int]] = {}
        self._diverged: set[str] = set()
        with _no_collections():
            self._read_runs(store)

    def _read_runs(self, store: Store) -> None:
        recent = Recent()
        specs = set[str]()
        for identity in dict.fromkeys(identity for arm in self.arms for identity in arm["runs"].values()):
            self.headers[identity] = {}
            try:
                folder = store.run(identity)
                header = folder.header()
                if header and (spec := repr(header["spec"] | {"seed": 0})) not in specs:
                    _check_spec(folder.path, header["spec"])
                    specs.add(spec)
                self.headers[identity] = header
                if header.get("status") == "finished":
                    self._readings[identity] = RunReadings(identity, folder.columns(header, recent))
                elif folder.diverged:
                    self._diverged.add(identity)
            except StoreError as error:
                self.damaged[identity] = str(error)

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
        """The seeds for which every arm of this size is finished, or diverged, in order."""
        if size not in self._seeds:
            arms = [arm for arm in self.arms if arm["size"] == size]
            planned = {int(seed) for arm in arms for seed in arm["runs"]}
            done = self._readings.keys() | self._diverged
            self._seeds[size] = sorted(
                seed for seed in planned if all(arm["runs"].get(str(seed)) in done for arm in arms)
            )
        return self._seeds[size]

    def diverged(self, key: str, size: int) -> list[int]:
        """The seeds of an arm that diverged, in order."""
        runs = zip(self.seeds(size), self._runs(key, size), strict=True)
        return [seed for seed, identity in runs if identity in self._diverged]

    def _runs(self, key: str, size: int) -> list[str]:
        for arm in self.arms:
            if arm["key"] == key and arm["size"] == size:
                return [arm["runs"][str(seed)] for seed in self.seeds(size)]
        raise NoArmError(
            f"the manifest of {self.study_name} has no arm {key!r} at size {size}"
            f"{did_you_mean(key, [arm['key'] for arm in self.arms])}: it was written by another version of the study, run it"
            " again, or correct the key"
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
            ArmDivergedError: A run diverged, which is a result that its readings tell, and what is asked for is its last
                reading or one of a later step.
            StoreError: A run has no such reading, or its last one is earlier than that of another seed.
        """
        if epoch is not None and step is not None:
            raise UserError(f"{name} is asked for at epoch {epoch:g} and at step {step}, expected one: leave one out")
        runs = self._of(key, size)
        if name != "diverged_at" and epoch is None:
            asked = math.inf if step is None else step
            late = [
                seed
                for seed, run in self._finished(key, size)
                if run.diverged_at is not None and run.diverged_at <= asked
            ]
            self._refuse(key, size, late)
        rows = [run.row(name, epoch, step) for run in runs]
        if epoch is None and step is None:
            self._check_ends(key, name, runs, rows)
        found = [run.columns.at(row, name) for run, row in zip(runs, rows, strict=True)]
        where = f"step {step}" if epoch is None else f"epoch {epoch:g}"
        for run, one in zip(runs, found, strict=True):
            if one is None:
                raise StoreError(f"the run {run.identity} has no {name} at {where}: {AGAIN}")
        arrays = [one for one in found if isinstance(one, np.ndarray)]
        if 0 < len(arrays) < len(found):
            raise StoreError(
                f"{name} of {key} is an array in some seeds and a number in others, expected one of them: {AGAIN}"
            )
        return stacked(key, name, arrays) if arrays else np.array(found, dtype=np.float64)

    def _check_ends(self, key: str, name: str, runs: Sequence[RunReadings], rows: Sequence[int]) -> None:
        """Refuse a seed whose last reading with a name is earlier than that of another: a row is missing."""
        steps = [int(run.columns.step[row]) for run, row in zip(runs, rows, strict=True)]
        for run, step in zip(runs, steps, strict=True):
            if step < max(steps):
                raise StoreError(
                    f"the run {run.identity} has no {name} after step {step}, and other seeds of {key} have it at step"
                    f" {max(steps)}: remove its folder and run the study again"
                )

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        """The last number of each seed, shape (S,); see `read`."""
        return self.read(key, metric, size)

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each seed the epochs at which a quantity was read, and its values, each of shape (K,)."""
        return [run.series(metric, "epoch") for run in self._of(key, size)]

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        """For each seed the steps at which a quantity was read, and its values, each of shape (K,)."""
        return [run.series(metric, "step") for run in self._of(key, size)]

    def diverged_arms(self, size: int) -> dict[str, str]:
        """The labels, by key, of the arms of a size in which a seed diverged."""
        return {a["key"]: a["label"] for a in self.arms if a["size"] == size and self.diverged(a["key"], size)}

    def _of(self, key: str, size: int) -> list[RunReadings]:
        self._refuse(key, size, self.diverged(key, size))
        return [self._readings[identity] for identity in self._runs(key, size)]

    def _refuse(self, key: str, size: int, diverged: Sequence[int]) -> None:
        if diverged:
            (label,) = {arm["label"] for arm in self.arms if (arm["key"], arm["size"]) == (key, size)}
            raise ArmDivergedError(
                f"{len(diverged)} of {len(self.seeds(size))} seeds of {label} diverged ({', '.join(map(str, diverged))}), and"
                " the others are no sample of that setting"
            )

    def _finished(self, key: str, size: int) -> list[tuple[int, RunReadings]]:
        """The seeds of an arm that did not diverge, with what they read."""
        runs = zip(self.seeds(size), self._runs(key, size), strict=True)
        return [(seed, self._readings[identity]) for seed, identity in runs if identity in self._readings]

    def table(self, *names: str, arms: Sequence[str] | None = None, size: int | None = None) -> pl.DataFrame:
        """Quantities of paired seeds as a table; nothing else is read of the runs.

        Args:
            names: The quantities.
            arms: The keys of the arms (``None``: all).
            size: The size (``None``: all).

        Returns:
            One row for each reading that has one of the quantities, in the order of arms, seeds and steps. Columns: arm, label,
            size, seed, run, step, epoch, then the quantities, null where they were not read.
        """
        import polars as pl  # here, because verdicts do without it

        heads: list[tuple[str, str, int, int, str]] = []
        counts: list[int] = []
        steps: list[NDArray[np.int64]] = []
        epochs: list[NDArray[np.float64]] = []
        numbers: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
        for arm in self.arms:
            if (arms is not None and arm["key"] not in arms) or size not in {None, arm["size"]}:
                continue
            for seed, run in self._finished(arm["key"], arm["size"]):
                found = {name: (run.columns.rows(name), run.columns.quantity(name)) for name in names}
                rows = [rows for rows, values in found.values() if len(values)]
                if not rows:
                    continue
                union = rows[0] if len(rows) == 1 else np.unique(np.concatenate(rows))
                for name, (own, values) in found.items():
                    column = np.full(len(union), np.nan)
                    if len(values):
                        column[np.searchsorted(union, own)] = values
                    numbers[name].append(column)
                heads.append((arm["key"], arm["label"], arm["size"], seed, run.identity))
                counts.append(len(union))
                steps.append(run.columns.step[union])
                epochs.append(run.columns.epoch[union])
        which = np.repeat(np.arange(len(heads)), counts)
        about = pl.DataFrame(heads, schema=HEADS, orient="row")[which]
        return about.with_columns(
            pl.Series("step", np.concatenate([np.empty(0, np.int64), *steps])),
            pl.Series("epoch", np.concatenate([np.empty(0), *epochs])),
            # Stored numbers are finite, so that NaN marks what was not read.
            *(pl.Series(name, np.concatenate([np.empty(0), *parts])).fill_nan(None) for name, parts in numbers.items()),
        )

    @cached_property
    def frame(self) -> pl.DataFrame:
        """All readings of paired seeds, one row each, as `table` gives them: all quantities of all arms and sizes."""
        paired = [run for arm in self.arms for _, run in self._finished(arm["key"], arm["size"])]
        return self.table(*dict.fromkeys(name for run in paired for name in run.columns.quantities))


def _check_spec(folder: Path, spec: Mapping[str, Any]) -> None:
    try:
        spec_from_json(spec)
    except StoreError as error:
        raise StoreError(f"{folder / 'run.json'} cannot be used, {error}") from error


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Without a search for cycles, of which JSON has none: with thousands of headers it takes a fifth of the time."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
