"""What a trainer of the lab gives, and the one driver that trains its runs.

A trainer is a module with a function ``open_run(spec, context) -> Run``. The run has its numbers; what all runs have in
common is here: going on from a checkpoint, readings, finite numbers, what later runs start from, checkpoints, a wish to
stop, costs.
"""

from __future__ import annotations

import importlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from halflife.errors import DivergedError, RunFailedError, RunStoppedError, UserError
from halflife.optim.norms import squared_norms
from halflife.studies.lab.cost import Costs
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.records import Reading

if TYPE_CHECKING:
    from halflife.studies.lab.text.parallel import DataParallelContext

__all__ = ["Context", "Kept", "Run", "train"]

CPU = torch.device("cpu")
SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints
SAVING_SECONDS = 60.0  # after which any reading is a good time for one


@dataclass(frozen=True, kw_only=True)
class Context:
    """Where a run is trained.

    Args:
        device: A torch device.
        data_folder: Where data that are not shipped lie.
        parent: The folder of what the parent kept, for a run that starts from another.
        parallel: The processes that train it together (``None``: this one alone).
    """

    device: torch.device = CPU
    data_folder: str | None = None
    parent: Path | None = None
    parallel: DataParallelContext | None = None


HERE = Context()


class Run(Protocol):
    """A run: its weights, and how they are trained and read. All its random numbers are a function of seed and step."""

    @property
    def unit(self) -> str:
        """What it is trained on, in the plural, such as ``"images"``."""

    @property
    def samples(self) -> int:
        """How many of them one step takes."""

    @property
    def step(self) -> int:
        """Steps done."""

    @property
    def num_steps(self) -> int:
        """Steps in all."""

    @property
    def weights(self) -> Sequence[Tensor]:
        """What is trained."""

    @property
    def about(self) -> str:
        """The settings that matter to whoever reads that it diverged."""

    def train(self) -> Iterator[float | None]:
        """Train on to the end; the training loss wherever somebody may look, ``None`` where a stop is all that may come.

        On an accelerator it has waited for the steps whose loss it gives.
        """

    def reading(self) -> Reading | None:
        """What is read now, if anything: before the first step, and wherever `train` gives a loss."""


@runtime_checkable
class Kept(Protocol):
    """What a `Run` has besides if it goes on from checkpoints, or if others start from it. Others start over."""

    @property
    def evaluates(self) -> bool:
        """Whether this is a good step for a checkpoint."""

    def load(self, folder: Path) -> bool:
        """Go on from the checkpoint in the run's folder; whether there is one."""

    def save(self, folder: Path) -> None:
        """Replace the checkpoint."""

    def keep(self, folder: Path) -> None:
        """Keep in a folder what other runs start from, if it is this step's; called after each reading."""


@runtime_checkable
class MayDiverge(Protocol):
    """What a `Run` has besides if a divergence can be a result of it, and no failure."""

    def diverged(self, step: int) -> Reading | None:
        """What is read, last, of a divergence at this step; ``None`` where it is a failure."""


def train(
    spec: RunSpec,
    context: Context = HERE,
    *,
    sink: Callable[[Reading], None],
    folder: Path | None = None,
    saving: Callable[[], object] = lambda: None,
    progress: Callable[[int, int, float], None] = lambda step, num_steps, loss: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train a run, from its last checkpoint if there is one.

    Args:
        spec: The run.
        context: Where it is trained.
        sink: Called with each reading; after a resume those since the checkpoint come again, equal to the bit.
        folder: Where checkpoints lie, and in ``kept`` what later runs start from (``None``: nothing is kept).
        saving: Called before each checkpoint, which stands for the readings so far.
        progress: Called with the steps done, the steps in all and the training loss.
        stop: Asked now and then; after a yes the run writes a checkpoint, if it has any, and ends.

    Returns:
        What it cost: `halflife.studies.lab.cost.Costs.summary`.

    Raises:
        DivergedError: The loss, a weight or a reading is NaN or infinite.
        RunFailedError: The trainer ends before the run does.
        RunStoppedError: It was asked to stop.
        UserError: The checkpoint is of a step that the run does not have.
    """
    run: Run = importlib.import_module(spec.trainer.module).open_run(spec, context)
    agreed = bool if context.parallel is None else context.parallel.any
    costs, files = Costs(), _Files(run, folder)

    def read() -> None:
        with costs.of("evaluation"):
            reading = run.reading()
            if reading is None:
                return
            if (bad := _not_finite(reading)) is not None:
                raise DivergedError(run.step, f"the reading {bad!r}", run.about)
            sink(reading)
            files.keep()

    # A run may draw from the global random state, which is given back as it was.
    with torch.random.fork_rng([context.device.index or 0] if context.device.type == "cuda" else []):
        try:
            if not files.load():
                read()
            losses = run.train()
            while run.step < run.num_steps:
                before = run.step
                with costs.of("training"):
                    loss = next(losses, None)
                if run.step == before:
                    raise RunFailedError(
                        f"the trainer {spec.trainer} ended after step {before}, expected {run.num_steps} steps: correct it"
                    )
                costs.samples += (run.step - before) * run.samples
                asked = agreed(stop()) and run.step < run.num_steps
                if loss is None and not asked:
                    continue
                if loss is not None and not math.isfinite(loss):
                    raise DivergedError(run.step, "the training loss", run.about)
                if not math.isfinite(squared_norms(run.weights).sum().item()):
                    raise DivergedError(run.step, "a weight", run.about)
                if loss is not None:
                    progress(run.step, run.num_steps, loss)
                    read()
                if run.step < run.num_steps and (asked or agreed(files.due())):
                    saving()
                    files.save()
                if asked:
                    rest = "it will start over" if files.kept is None else "a checkpoint is kept"
                    raise RunStoppedError(f"stopped after step {run.step} of {run.num_steps}: {rest}")
        except DivergedError as error:
            result = run.diverged(error.step) if isinstance(run, MayDiverge) else None
            if result is None:
                raise
            sink(result)
    return costs.summary(run.unit)


class _Files:
    """What a run keeps in its folder: nothing without a folder, or if it is not `Kept`."""

    def __init__(self, run: Run, folder: Path | None) -> None:
        self.run, self.folder = run, folder or Path()
        self.kept = run if isinstance(run, Kept) and folder is not None else None
        self.saved_at, self.seconds = time.perf_counter(), 0.0

    def load(self) -> bool:
        """Go on from a checkpoint; whether there is one."""
        if self.kept is None or not self.kept.load(self.folder):
            return False
        if self.run.step > self.run.num_steps:
            raise UserError(
                f"the checkpoint in {self.folder} is of step {self.run.step}, expected at most {self.run.num_steps}: remove it"
                " and run again"
            )
        return True

    def keep(self) -> None:
        """Keep what other runs start from."""
        if self.kept is not None:
            self.kept.keep(self.folder / "kept")

    def due(self) -> bool:
        """Whether a checkpoint is worth its time."""
        since = time.perf_counter() - self.saved_at
        good = self.kept is not None and (self.kept.evaluates or since > SAVING_SECONDS)
        return good and self.seconds <= SAVING_SHARE * since

    def save(self) -> None:
        """Write a checkpoint."""
        if self.kept is not None:
            began = time.perf_counter()
            self.kept.save(self.folder)
            self.saved_at = time.perf_counter()
            self.seconds = self.saved_at - began


def _not_finite(reading: Reading) -> str | None:
    """The name of a value or an array that is not finite."""
    for name, value in reading.values.items():
        if not math.isfinite(value):
            return name
    for name, array in reading.arrays.items():
        if array.dtype != "bits" and not np.isfinite(np.frombuffer(array.data, array.dtype)).all():
            return name
    return None
