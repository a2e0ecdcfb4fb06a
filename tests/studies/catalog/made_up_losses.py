"""Results of a study of language models whose losses are made up: a number for each arm, with seeds, blocks and noise."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.claims import Arm
from halflife.studies.specs.base import RunSpec

NUM_SEEDS, NUM_BLOCKS = 5, 40


class MadeUpLosses:
    """What rules and figures ask of `halflife.studies.evidence.results.Results`, without a store.

    A block's loss is that of its arm, plus what its seed and its block add in every arm alike, plus ``jitter`` times a
    normal number of the arm and seed, and as much of the arm, seed and block.
    """

    def __init__(self, arms: Sequence[Arm], loss: Callable[[str, RunSpec], float], jitter: float = 1e-4) -> None:
        self.built = {(arm.key, arm.size): arm.build(0) for arm in arms}
        self.arms = [{"key": arm.key, "size": arm.size, "label": arm.label} for arm in arms]
        self.main_size = arms[0].size
        self.loss, self.jitter = loss, jitter

    def spec(self, key: str, size: int) -> RunSpec:
        return self.built[key, size]

    def seeds(self, size: int) -> list[int]:
        return list(range(NUM_SEEDS))

    def read(
        self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None
    ) -> NDArray[np.float64]:
        assert (epoch, step) == (None, None)
        shared = np.random.default_rng(11)
        seeds_S1, blocks_N = shared.normal(0, 0.02, (NUM_SEEDS, 1)), shared.normal(0, 0.3, NUM_BLOCKS)
        own = np.random.default_rng(zlib.crc32(f"{key} {size}".encode()))
        noise_SN = own.normal(0, 1, (NUM_SEEDS, 1)) + own.normal(0, 1, (NUM_SEEDS, NUM_BLOCKS))
        level = self.loss(key, self.built[key, size])
        array_SN = np.asarray(level + seeds_S1 + blocks_N + self.jitter * noise_SN, dtype=np.float64)
        return array_SN if name == "val/loss_blocks" else np.asarray(array_SN.mean(axis=1))
