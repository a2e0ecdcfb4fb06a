"""One of the processes that train language models together; see ``tests/studies/lab/test_text_distributed.py``.

    python -m tests.studies.lab.text_distributed_worker RANK WORLD FOLDER

Each process writes the readings of every run to FOLDER/found-RANK.json.
"""

from __future__ import annotations

import gc
import json
import shutil
import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.lab.text import evaluate
from halflife.studies.lab.text.distributed import Replicated, Sharded
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.specs import TextBranch, TextReplay, TextRun
from halflife.studies.store.records import Reading
from tests.studies.lab.text_runs import GPT, MLP, run, stop_after

FORMS: dict[str, type[Replicated]] = {"ddp": Replicated, "fsdp": Sharded}
PARTS: dict[str, Any] = {"accumulate": 2, "num_steps": 20, "keep_at": (10,), "eval_every": 10, "num_eval_tokens": 200}
AVERAGED: dict[str, Any] = {"ema": (0.9,), "average_from": 3}
SPECS: dict[str, TextRun] = {
    "mlp": replace(MLP, **PARTS, **AVERAGED, decay="Decoupled(lam=1.0)", clip=0.3),
    "gpt": replace(GPT, **PARTS, **AVERAGED, decay="Decoupled(lam=1.0)", clip=0.3),
    # Whole tensors matter to every part of it: a decay by norms, a tied head, norms kept, a penalty inside the clip.
    "stable": replace(GPT, **PARTS, decay="Stable(lam=0.1)", tied=True, trace_norms=True, loss_penalty=0.01),
    # Its decay does not depend on the learning rate, and nothing is clipped.
    "sgd": replace(MLP, **PARTS, **AVERAGED, decay="Constant(lam=0.01)", optimizer="sgd", momentum=0.9, clip=None),
}
STOP = 10
RESUMED = ("gpt", "stable", "sgd")
COOLDOWN = TextBranch(of=SPECS["stable"], at=10, branch="cooldown", num_steps=10, seed=0)
REPLAY = TextReplay(of=SPECS["stable"], match="per-tensor", seed=0)
HALF = replace(GPT, **PARTS, precision="float16")
ODD = replace(MLP, batch_size=15)
DIVERGING = replace(MLP, lr=1e30, decay="", num_steps=20, clip=None)


def plain(readings: list[Reading]) -> list[tuple[int, dict[str, float]]]:
    return [(reading.step, dict(reading.values)) for reading in readings]


def copied(source: Path, target: Path) -> Path:
    """A copy for all processes to go on in."""
    if dist.get_rank() == 0:
        shutil.copytree(source, target)
    dist.barrier()
    return target


class Jobs:
    """What is trained in one form; ``found`` has the readings by job."""

    def __init__(self, form: str, folder: Path) -> None:
        self.form, self.folder = form, folder
        self.parallel: DataParallelContext = FORMS[form](torch.device("cpu"))
        self.found: dict[str, Any] = {}

    def train(self, name: str, spec: TextRun | TextBranch | TextReplay, where: Path, **more: Any) -> None:
        self.found[name] = plain(run(spec, where, self.folder / "corpus", parallel=self.parallel, **more)[0])

    def begin(self) -> None:
        """Whole runs, and runs that are stopped."""
        for name, spec in {**SPECS, "half": HALF}.items():
            self.train(name, spec, self.folder / self.form / name)
        for name in RESUMED:
            readings = STOP // SPECS[name].log_every
            try:
                self.train(name, SPECS[name], self.folder / f"{name} from {self.form}", stop=stop_after(readings))
            except RunStoppedError as error:
                self.found[f"{name} stopped"] = str(error)

    def go_on(self) -> None:
        """Runs that start from others, and runs that cannot be."""
        folder, form = self.folder, self.form
        for source in ("alone", *FORMS):
            for name in RESUMED:
                where = copied(folder / f"{name} from {source}", folder / f"{name} {source} to {form}")
                self.train(f"{name} from {source}", SPECS[name], where)
            kept = folder / source / "stable" / "kept"
            self.train(f"cooldown from {source}", COOLDOWN, folder / form / f"cooldown {source}", parent=kept)
        self.train("replay", REPLAY, folder / form / "replay", parent=folder / form / "stable" / "kept")
        for name, spec in {"odd": ODD, "diverging": DIVERGING}.items():
            try:
                self.train(name, spec, folder / form / name)
            except (UserError, RunFailedError) as error:
                self.found[name] = f"{type(error).__name__}: {error}"


def main(rank: int, size: int, folder: Path) -> None:
    """Join the others, train everything, and store what was read."""
    torch.set_num_threads(1)
    evaluate.TOKENS_PER_BATCH = 50  # so that there are batches to share, and once in the GPT one process has none left
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=size, timeout=timedelta(seconds=180)
    )
    try:
        (folder / f"found-{rank}.json").write_text(json.dumps(train_all(folder)), encoding="utf-8")
    finally:
        gc.collect()  # as `halflife.studies.runner.distributed` does: DDP must not be the last to hold the group
        dist.destroy_process_group()


def train_all(folder: Path) -> dict[str, Any]:
    jobs = [Jobs(form, folder) for form in FORMS]
    for each in jobs:
        each.begin()
    for each in jobs:
        each.go_on()
    return {each.form: each.found for each in jobs}


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
