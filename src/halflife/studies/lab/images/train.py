"""Train one image classifier: one readable loop with readings, moving averages, probes and exact resume.

Everything after an epoch is a function of the weights, the averages and the epoch's number: the order of the data is
seeded by (seed, epoch), SGD without momentum has no state. So a checkpoint at an epoch's end resumes to the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.lab.cost import Costs
from halflife.studies.lab.images.loop import ImageLoop
from halflife.studies.lab.images.probes import check_probes
from halflife.studies.lab.images.readings import Reader
from halflife.studies.lab.tensor_files import kept_file
from halflife.studies.specs.images import ImageBranch, ImageRun
from halflife.studies.store.records import Reading

__all__ = ["Progress", "train"]

Progress = Callable[[int, int, float], None]
"""Called after each epoch with the steps done, the steps in all and the epoch's mean training loss."""


def train(
    spec: ImageRun | ImageBranch,
    *,
    sink: Callable[[Reading], None],
    folder: Path,
    progress: Progress | None = None,
    data_folder: str | None = None,
    device: str = "cpu",
    parent: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train the run that ``spec`` describes, from its last checkpoint if there is one.

    The arguments are those of every trainer (`halflife.studies.lab`). There is one reading an epoch; ``progress`` is told and
    ``stop`` is asked after each. The checkpoint ``checkpoint.safetensors`` in ``folder`` is replaced by renaming.

    Returns:
        What it cost: `halflife.studies.lab.cost.Costs.summary`.

    Raises:
        UserError: A branch without what its parent kept.
        RunFailedError: The loss became NaN or infinite.
        RunStoppedError: It was asked to stop.
    """
    start, identity = None, spec.digest()
    if isinstance(spec, ImageBranch):
        if parent is None:
            raise UserError("a branch starts from what its parent kept: run the parent first and name its folder")
        start, spec = (kept_file(parent, spec), spec.weights, spec.of.digest()), spec.then
    check_probes(spec)
    run = ImageLoop(spec, torch.device(device), data_folder, run=identity, start=start)
    reader = Reader(run)
    costs = Costs()
    checkpoint = folder / "checkpoint.safetensors"
    first_epoch = run.load(checkpoint)
    for epoch in range(first_epoch, run.num_epochs):
        before = run.step
        with costs.of("training"):
            loss = run.one_epoch(epoch)
        costs.samples += (run.step - before) * spec.batch_size
        if progress is not None:
            progress(run.step, run.num_steps, loss)
        if not math.isfinite(loss):
            raise RunFailedError(
                f"the training loss became {loss} in epoch {epoch + 1} (lr {spec.lr:g}, lam {spec.lam:g}, seed"
                f" {spec.seed}): lower the learning rate"
            )
        with costs.of("evaluation"):
            reading = reader.reading(epoch + 1, loss)
            bad = [f"{name} {value}" for name, value in reading.values.items() if not math.isfinite(value)]
            if bad:
                raise RunFailedError(
                    f"after epoch {epoch + 1} a reading is not finite: {bad[0]} (lr {spec.lr:g}, lam {spec.lam:g}, seed"
                    f" {spec.seed}): lower the learning rate"
                )
            sink(reading)
            run.keep(folder / "kept", epoch + 1)
        asked = stop() and epoch + 1 < run.num_epochs
        if asked or reader.evaluates_at(epoch + 1):
            run.save(checkpoint, epoch + 1)
        if asked:
            raise RunStoppedError(f"stopped after epoch {epoch + 1} of {run.num_epochs}: a checkpoint is kept")
    return costs.summary("images")
