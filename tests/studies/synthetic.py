"""A store with made-up runs: the shape of a real one, numbers from a generator, nothing trained."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store, run_id

ARMS = {"large-decay": (0.1, 0.01), "large-none": (0.1, 0.0), "small-decay": (0.02, 0.01), "small-none": (0.02, 0.0)}
FINAL_ERROR = {"large-decay": 0.105, "large-none": 0.135, "small-decay": 0.13, "small-none": 0.138}
DATA = {"name": "fashion-mnist-5k", "title": "Fashion-MNIST, 5,000 images", "sha256": "d47a" * 16}
TRAINER = {"name": "images", "version": 1}
AVERAGES = ("ema-0.999/", "ema-0.99/")


def spec_of(key: str, seed: int, *, width: int, num_epochs: int, eval_every: int) -> ImageRun:
    lr, lam = ARMS[key]
    return ImageRun(
        seed=seed,
        lr=lr,
        lam=lam,
        width=width,
        num_epochs=num_epochs,
        eval_every=eval_every,
        ema=(0.999, 0.99),
    )


def bits(wrong_N: np.ndarray[Any, Any]) -> Array:
    return Array("bits", len(wrong_N), np.packbits(wrong_N.astype(bool)).tobytes())


def readings_of(key: str, spec: ImageRun, num_test: int) -> list[Reading]:
    """Curves like those of the paper: a noisy phase, a drop, a fall."""
    lr, lam = ARMS[key]
    rng = np.random.default_rng([spec.seed, spec.width, list(ARMS).index(key)])
    hardness_N = np.random.default_rng(7).random(num_test)  # shared, so that examples matter as in a real test set
    out = []
    for epoch in range(1, spec.num_epochs + 1):
        part, after = epoch / spec.num_epochs, epoch > spec.drop_epoch
        noise = 0.0 if after else lr * (1 if lam else 0.3)
        loss = 0.9 * epoch**-0.3 if lam else 0.8 * (1 + epoch) ** -1.6
        if lam and lr > 0.05 and not after:
            loss = 0.45 + 0.5 * epoch**-1.2
        if after:
            loss *= 0.25
        loss *= np.exp(0.1 * rng.standard_normal())
        norm = 12 + 10 * (1 - np.exp(-3 * part)) if not lam else 12 * np.exp(-1.2 * part) + 3
        norm *= 1 + 0.01 * rng.standard_normal()
        lr_now = spec.lr_after_drop if after else lr
        values = {
            "train/running_loss": float(loss),
            "lr": lr_now,
            "weight_norm": float(norm),
            "effective_lr": float(lr_now / norm**2),
            "fraction": lr_now * lam,
        }
        arrays = {}
        if epoch % spec.eval_every == 0 or epoch in {spec.drop_epoch, spec.num_epochs}:
            values["train/loss"] = float(loss) * 0.95
            for name in ("", *AVERAGES):
                level = FINAL_ERROR[key] + 0.12 * np.exp(-6 * part) + 0.004 * rng.standard_normal()
                level += 0.0 if name else abs(noise) * (0.5 + 0.5 * rng.random())
                wrong_N = hardness_N + 0.1 * rng.standard_normal(num_test) < level
                values[f"{name}test/error"] = float(wrong_N.mean())
                if epoch in {spec.drop_epoch, spec.num_epochs}:
                    arrays[f"{name}test/wrong"] = bits(wrong_N)
        out.append(Reading(step=39 * epoch, epoch=epoch, values=values, arrays=arrays))
    return out


def make_store(
    path: Path,
    *,
    study: str = "stabilization",
    preset: str = "laptop",
    num_seeds: int = 2,
    num_epochs: int = 8,
    eval_every: int = 2,
    num_test: int = 120,
    sizes: Sequence[int] = (8,),
    labels: dict[str, str] | None = None,
    change: Callable[[str, int, list[Reading]], list[Reading]] | None = None,
    status: Callable[[str, int, int], str] = lambda key, seed, size: "finished",
    **manifest: Any,
) -> Store:
    """Write a store.

    ``change(key, seed, readings)`` replaces the readings of a run, ``status(key, seed, size)`` is what its header says
    (``"absent"``: never started), ``manifest`` overrides keys of the manifest.
    """
    store = Store(path)
    store.create()
    arms: list[dict[str, Any]] = []
    for size in sizes:
        for key, (lr, lam) in ARMS.items():
            runs = {}
            for seed in range(num_seeds):
                spec = spec_of(key, seed, width=size, num_epochs=num_epochs, eval_every=eval_every)
                identity = run_id(spec.digest(), str(spec.trainer), DATA["sha256"])
                runs[str(seed)] = identity
                write_run(store, identity, spec, key, status(key, seed, size), num_test, change)
            label = (labels or {}).get(key, f"lr {lr:g}, lam {lam:g}")
            arms.append({"key": key, "label": label, "size": size, "runs": runs})
    content = {
        "study": study,
        "preset": preset,
        "main_size": 8 if 8 in sizes else sizes[0],
        "max_steps": None,
        "command": f"halflife study run {study} --preset {preset}",
        "started": "2025-01-02T03:04:05+00:00",
        "seconds": 572.4,
        "workers": 2,
        "seeds": num_seeds,
        "machine": {"cores": 2, "processor": "Some processor", "platform": "Linux-6.1-x86_64"},
        "arms": arms,
    }
    store.write_manifest(f"{study}-{preset}", content | manifest)
    return store


def write_run(
    store: Store,
    identity: str,
    spec: ImageRun,
    key: str,
    status: str,
    num_test: int,
    change: Callable[[str, int, list[Reading]], list[Reading]] | None,
) -> None:
    if status == "absent":
        return
    folder = store.run(identity)
    header = {
        "id": identity,
        "status": "failed" if status == "diverged" else status,
        "spec": spec.to_json(),
        "spec_digest": spec.digest(),
        "trainer": TRAINER,
        "data": DATA,
        "versions": {"halflife": "0.1.0", "torch": "2.13.0", "python": "3.11.7"},
        "machine": {"cores": 2, "processor": "Some processor", "platform": "Linux-6.1-x86_64"},
        "started": "2025-01-02T03:04:05+00:00",
        "finished": "2025-01-02T03:05:05+00:00" if status == "finished" else None,
        "seconds": 28.4 if status == "finished" else None,
    }
    if status == "diverged":
        header["diverged_at"] = 120
    if status in {"failed", "diverged"}:
        header["failure"] = "the training loss became nan in epoch 3 (lr 0.1, lam 0, seed 1): lower the learning rate"
    folder.write_header(header)
    if status == "finished":
        readings = readings_of(key, spec, num_test)
        kept = readings if change is None else change(key, spec.seed, readings)
        # Not `RunFolder.append`, which waits for the disk at each reading.
        (folder.path / "readings.jsonl").write_text("".join(reading.to_line() + "\n" for reading in kept))
