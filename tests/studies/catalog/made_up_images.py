"""Results of a study of image classifiers that are made up: readings as functions of the spec, with seeds and noise."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.claims import Arm
from halflife.studies.specs import ImageRun

NUM_SEEDS, NUM_TEST = 4, 2_000


class MadeUpImages:
    """What rules and figures ask of `halflife.studies.evidence.results.Results`, without a store.

    ``errors`` are shares of the examples: the same ones are hard in every run, so that two runs differ in the examples between
    their levels. ``values`` are the other readings. Every level moves by ``jitter`` times a normal number of the arm and seed,
    and by a normal number of the seed times 0.01 that all arms share; for ``values`` these are factors.
    """

    def __init__(
        self,
        arms: Sequence[Arm],
        *,
        errors: Mapping[str, Callable[[ImageRun], float]],
        values: Mapping[str, Callable[[ImageRun], float]] | None = None,
        steps_per_epoch: int = 10,
        jitter: float = 1e-4,
    ) -> None:
        built = {(arm.key, arm.size): arm.build(0) for arm in arms}
        self.built = {name: spec for name, spec in built.items() if isinstance(spec, ImageRun)}
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in arms]
        self.main_size = arms[0].size
        self.errors, self.values = errors, values or {}
        self.steps_per_epoch, self.jitter = steps_per_epoch, jitter

    def spec(self, key: str, size: int) -> ImageRun:
        return self.built[key, size]

    def _moved(self, key: str, name: str) -> NDArray[np.float64]:
        own = np.random.default_rng(zlib.crc32(f"{key} {name}".encode())).normal(0, self.jitter, NUM_SEEDS)
        return np.asarray(own + np.random.default_rng(5).normal(0, 0.01, NUM_SEEDS), dtype=np.float64)

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: int | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert step is None
        assert epoch in {None, self.built[key, size].num_epochs}
        return self.last_array(key, name, size) if name.endswith("wrong") else self.last(key, name, size)

    def last_array(self, key: str, name: str, size: int) -> NDArray[np.float64]:
        level = self.errors[name.removesuffix("wrong") + "error"](self.built[key, size])
        ranks_N = (np.random.default_rng(7).permutation(NUM_TEST) + 0.5) / NUM_TEST  # either half has hard ones
        return np.array([ranks_N < level + by for by in self._moved(key, name)], dtype=np.float64)

    def last(self, key: str, metric: str, size: int) -> NDArray[np.float64]:
        if metric in self.errors:
            return np.asarray(self.last_array(key, metric.removesuffix("error") + "wrong", size).mean(axis=1))
        return np.asarray(self.values[metric](self.built[key, size]) * np.exp(self._moved(key, metric)))

    def series(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        epochs = np.arange(1.0, self.built[key, size].num_epochs + 1)
        return [(epochs, np.full_like(epochs, level)) for level in self.last(key, metric, size)]

    def series_by_step(self, key: str, metric: str, size: int) -> list[tuple[NDArray[np.float64], NDArray[np.float64]]]:
        return [(epochs * self.steps_per_epoch, values) for epochs, values in self.series(key, metric, size)]
