"""Seconds and memory of `halflife study verdicts` and `halflife report` on stores of made-up runs, in processes of their own.

Run it with ``make bench``, or ``python benchmarks/store.py``; ``--large`` adds 10,000 runs of 1,000 readings (5 GB on the disk
below ``--folder`` while it runs).

The runs are those of the study `stabilization`, four arms of as many seeds as there are runs to share out: nine numbers a
reading, of 1,000 test examples which ones are wrong at two epochs. *First* is the first command on runs without their
compact form (``readings.safetensors``), as in a store that was copied: it reads all lines and writes that form. *Then* is the
next command, as in a store whose runs ended on this machine, and *report* is a report after that. Files are in the system's
cache each time. Processor time counts what the command alone used, on a machine that does other things too.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store, run_id

ARMS = {"large-decay": (0.1, 0.01), "large-none": (0.1, 0.0), "small-decay": (0.02, 0.01), "small-none": (0.02, 0.0)}
NUM_TEST = 1_000
NUM_CURVES = 8  # per arm; a store of thousands of runs repeats them
SIZES = [(10, 100), (100, 100), (1_000, 100), (10_000, 100), (10, 1_000), (100, 1_000), (1_000, 1_000)]
LARGE = (10_000, 1_000)


class Cost(NamedTuple):
    """What a command took."""

    seconds: float
    processor: float
    mebibytes: float


def lines_of(spec: ImageRun, seed: int) -> str:
    """The readings of a made-up run, an epoch each."""
    rng = np.random.default_rng([seed, int(spec.lr * 1000), int(spec.lam * 1000)])
    out = []
    for epoch in range(1, spec.num_epochs + 1):
        numbers = rng.random(7).tolist()
        names = (
            "train/running_loss",
            "weight_norm",
            "effective_lr",
            "train/loss",
            "test/error",
            "ema-0.999/test/error",
            "ema-0.99/test/error",
        )
        values = {"lr": spec.lr, "fraction": spec.lr * spec.lam, **dict(zip(names, numbers, strict=True))}
        arrays = {}
        if epoch in {spec.drop_epoch, spec.num_epochs}:
            for name in ("", "ema-0.999/", "ema-0.99/"):
                wrong_N = rng.random(NUM_TEST) < 0.1 + 0.1 * (spec.lr < 0.05) + 0.1 * (spec.lam == 0)
                arrays[f"{name}test/wrong"] = Array("bits", NUM_TEST, np.packbits(wrong_N).tobytes())
        out.append(Reading(step=39 * epoch, epoch=epoch, values=values, arrays=arrays).to_line() + "\n")
    return "".join(out)


def make_store(path: Path, num_runs: int, num_readings: int) -> None:
    """Write a store of about ``num_runs`` runs with ``num_readings`` readings each."""
    store = Store(path)
    store.create()
    arms: list[dict[str, Any]] = []
    for key, (lr, lam) in ARMS.items():
        specs = [
            ImageRun(seed=seed, lr=lr, lam=lam, width=8, num_epochs=num_readings, ema=(0.999, 0.99), eval_every=1)
            for seed in range(max(2, num_runs // len(ARMS)))
        ]
        curves = [lines_of(spec, spec.seed) for spec in specs[:NUM_CURVES]]
        runs = {}
        for spec in specs:
            runs[str(spec.seed)] = identity = run_id(spec.digest(), str(spec.trainer), "d47a" * 16)
            folder = store.run(identity)
            header = {
                "id": identity, "status": "running", "spec": spec.to_json(), "spec_digest": spec.digest(),
                "trainer": {"name": spec.trainer.name, "version": spec.trainer.version},
                "data": {"name": "fashion-mnist-5k", "title": "Fashion-MNIST", "sha256": "d47a" * 16},
                "started": "2025-01-02T03:04:05+00:00",
            }  # fmt: skip
            folder.path.mkdir(parents=True)
            (folder.path / "run.json").write_text(json.dumps(header | {"status": "finished"}))
            (folder.path / "readings.jsonl").write_text(curves[spec.seed % len(curves)])
        arms.append({"key": key, "label": f"lr {lr:g}, lam {lam:g}", "size": 8, "runs": runs})
    manifest = {"study": "stabilization", "preset": "laptop", "main_size": 8, "max_steps": None, "arms": arms}
    store.write_manifest("stabilization-laptop", manifest)


def measure(*arguments: str) -> Cost:
    """Run ``halflife`` with arguments in a process of its own.

    Raises:
        SystemExit: It failed.
    """
    began = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "halflife", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    if status:
        raise SystemExit(f"halflife {' '.join(arguments)} failed: {said}")
    return Cost(seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024)


def main() -> None:
    """Print one row a store."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--large", action="store_true", help="add 10,000 runs of 1,000 readings")
    parser.add_argument("--folder", default=None, help="where the stores are made, and removed [default: TMPDIR]")
    parser.add_argument("--sizes", default="", help="instead of all sizes, such as 10x100,1000x1000")
    options = parser.parse_args()
    sizes = [tuple(map(int, size.split("x"))) for size in options.sizes.split(",") if size]
    what = ("first", "then", "report")
    print(f"| runs x readings | lines, MB |{''.join(f' {name}, s | processor, s | MiB |' for name in what)}")
    print(f"|{' --- |' * (2 + 3 * len(what))}")
    for num_runs, num_readings in sizes or [*SIZES, *([LARGE] if options.large else [])]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            make_store(Path(folder), num_runs, num_readings)
            size = sum(path.stat().st_size for path in Path(folder).rglob("readings.jsonl")) / 1e6
            for path in Path(folder).rglob("readings.safetensors"):
                path.unlink()
            costs = [measure("study", "verdicts", "--store", folder) for _ in range(2)]
            costs.append(measure("report", "--store", folder))
            cells = " | ".join(f"{cost.seconds:.2f} | {cost.processor:.2f} | {cost.mebibytes:,.0f}" for cost in costs)
            print(f"| {num_runs:,} x {num_readings:,} | {size:,.0f} | {cells} |", flush=True)
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
