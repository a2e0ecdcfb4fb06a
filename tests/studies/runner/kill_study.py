"""A study with runs of every kind, some of which start from others, made for tests that kill its processes."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
from pathlib import Path

from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.lab import trainer
from halflife.studies.lab.images.sources import read_source
from halflife.studies.runner import pool
from halflife.studies.runner.plan import Plan, make_plan, split_missing
from halflife.studies.specs import ImageRun, RunSpec, TextBranch, TextReplay
from halflife.studies.specs.images import fine_tune_branch
from halflife.studies.store.store import Store
from tests.golden.runs import RUNS
from tests.studies.lab.text_runs import MLP

WORKERS = 2
read_source("fashion-mnist-5k")  # once, in the process from which all are forked
IMAGES = ImageRun(
    lr=0.1, lam=0.01, width=4, num_train=384, num_test=50, downsample=4, num_epochs=60, eval_every=3, keep_at=(30,),
    ema=(0.9,), ensemble_every=6,
)  # fmt: skip
TEXT = dataclasses.replace(
    MLP, num_steps=900, log_every=10, eval_every=30, keep_at=(450, 900), trace_norms=True, ema=(0.9,),
    lr_schedule="constant(1.0)",
)  # fmt: skip
SYNTHETIC = [
    spec for name in ("exponential", "least-squares", "separable", "stationary") for spec in RUNS[name].values()
]
SPECS: list[RunSpec] = [
    fine_tune_branch(IMAGES, 30, lr=1e-3, num_epochs=20),
    TextBranch(of=TEXT, at=450, branch="cooldown", num_steps=300),
    TextBranch(of=TEXT, at=900, branch="tiny-lr", num_steps=300),
    TextReplay(of=TEXT, match="per-tensor"),
    IMAGES,
    TEXT,
    *SYNTHETIC,
]


def plan_of(corpus: Path) -> Plan:
    """Two seeds of each."""
    arms = tuple(Arm(key=f"arm-{number}", label=spec.kind, size=12, spec=spec) for number, spec in enumerate(SPECS))
    preset = Preset(description="tests", budget="seconds", arms=arms, num_seeds=2, main_size=12)
    study = Study(name="kills", title="Kills", source="", claim="", claims=(), presets={"smoke": preset}, panels=())
    return make_plan(study, "smoke", preset, data_folder=str(corpus))


def carry_out(folder: Path, corpus: Path, log: Path) -> None:
    """Do what is missing, in a process group of its own, and log what happens.

    Workers are forked from this process, which has torch already, and checkpoints come at every evaluation.
    """
    os.setsid()
    context = multiprocessing.get_context("fork")
    multiprocessing.get_context = lambda method=None: context  # type: ignore[assignment]
    trainer.SAVING_SHARE = 1e9
    store, plan = Store(folder), plan_of(corpus)
    with log.open("a", buffering=1) as file, store.locked():

        def listen(event: pool.Event) -> None:
            file.write(f"{event.what} {event.run.id} {event.step} {event.message}\n")

        missing, _ = split_missing(store, plan.needed)
        pool.execute(store, plan, missing, workers=WORKERS, listen=listen, data_folder=str(corpus))
