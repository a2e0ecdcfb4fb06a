"""Tiny runs of every trainer whose readings are kept, so that a change of their numbers cannot go unnoticed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from halflife.studies.evidence.readings import unpacked
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs import (
    ExponentialRun,
    ImageBranch,
    ImageRun,
    LeastSquaresRun,
    NoiseOnlyRun,
    ReluRegressionRun,
    RunSpec,
    ScalesRun,
    SeparableRun,
    StationaryRun,
    TextBranch,
    TextReplay,
)
from halflife.studies.specs.images import PROBES
from halflife.studies.specs.precision import PLACES
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store
from tests.studies.lab.text_runs import GPT, MLP, write_corpus

FOLDER = Path(__file__).parent
NUM_TEST = 100  # images
ONE_EXAMPLE = 1.01 / NUM_TEST  # rounding may decide its class

# Other processors round otherwise. Measured with the kernels of SSE4, AVX2 and AVX-512, the largest difference of a reading
# over its scale is 7e-7; a learning rate that is off by 1e-3 moves losses by 4e-5 and more.
RELATIVE, ABSOLUTE = 1e-5, 1e-8

_RESNET = ImageRun(
    seed=1, lr=0.5, lam=0.01, num_epochs=3, num_train=128, num_test=NUM_TEST, width=4, blocks=(1, 1), downsample=4,
    batch_size=32, drop_at=0.67, ema=(0.9,), ensemble_every=1, keep_at=(2,),
)  # fmt: skip
_MLP = replace(
    MLP, keep_at=(20,), trace_norms=True, ema=(0.9,), average_from=10, probes=("gradient-norm", "hessian-trace"),
    probe_windows=32, probe_vectors=6,
)  # fmt: skip

# Of each trainer: every kind of spec, and options that take other ways through its code.
RUNS: Mapping[str, Mapping[str, RunSpec]] = {
    "images": {
        "resnet": _RESNET,
        "mlp": replace(
            _RESNET, model="mlp", width=12, blocks=(1,), lr=0.3, augmentation="flip-crop", label_smoothing=0.1,
            label_noise=0.2, fresh_label_noise=True, ensemble_every=0, keep_at=(),
        ),
        "sphere": replace(
            _RESNET, model="scale-invariant", lr=0.005, lam=0.0, sphere=2.0, ema=(), ensemble_every=0, keep_at=(),
        ),
        "momentum": replace(
            _RESNET, model="vgg-bn", momentum=0.9, lr=0.1, drop_at=0.5, lam=0.0, decay="Stable(lam=0.01)",
            decay_on="matrices", lr_schedule="exponential(1.0, 0.01, 3)", lr_schedule_unit="epochs", trace=True, ema=(),
            ensemble_every=0, keep_at=(), probes=("decayed-gradient",),
        ),
        # Large eps: where Adam divides rounding by rounding, other processors go another way.
        "adam": replace(
            _RESNET, model="densenet", blocks=(1, 1), optimizer="adam", eps=1e-3, lr=0.01, drop_at=0.5, lam=0.0,
            decay="L2(lam=0.1)", lr_schedule="piecewise((1.0, 0.1), (8,))", ema=(), ensemble_every=0, keep_at=(),
        ),
        "adai": replace(
            _RESNET, model="googlenet", optimizer="adai", num_epochs=2, lam=0.02, ema=(), ensemble_every=0, keep_at=(),
        ),
        "branch": ImageBranch(
            of=_RESNET, at=2, weights="ema-0.9",
            then=replace(
                _RESNET, lr=0.3, num_epochs=1, label_noise=0.2, ensemble_every=0, keep_at=(), probes=PROBES,
                probe_examples=32, probe_vectors=6,
            ),
        ),
    },
    "text": {
        "mlp": _MLP,
        "gpt": replace(
            GPT, dropout=0.1, label_smoothing=0.1, accumulate=2, clip=0.5, order="epochs", num_train_tokens=400,
            loss_penalty=0.01, decay="Scheduled(Independent(lam=0.001), linear(1.0, 0.0, 40))",
        ),
        "sgd": replace(MLP, optimizer="sgd", momentum=0.9, lr=0.1, decay="L2(lam=0.01)", order="random-offsets"),
        # Short: where a last bit decides how a number is rounded, other processors go another way from there on.
        "rounded": replace(
            GPT, bits=3, rounded=PLACES, rounded_gradients=PLACES, num_steps=10, lr_schedule="constant()", eval_every=10,
        ),
        "stored": replace(
            GPT, stored="separate", stored_bits=4, decay="Decoupled(lam=2.0)", num_steps=10, lr_schedule="constant()",
            eval_every=10,
        ),
        "tiny-lr": TextBranch(of=_MLP, at=20, branch="tiny-lr", num_steps=10),
        "cooldown": TextBranch(of=_MLP, at=20, branch="cooldown", num_steps=10),
        "replay": TextReplay(of=_MLP, match="global"),
        "replay-per-tensor": TextReplay(of=_MLP, match="per-tensor"),
    },
    "exponential": {
        twin: ExponentialRun(
            seed=1, model="scale-invariant", twin=twin, lr=0.05, lam=0.02, momentum=0.5, num_train=128,
            num_test=NUM_TEST, downsample=4, width=4, blocks=(1, 1), batch_size=32, num_steps=12, eval_every=4,
        )
        for twin in ("matched", "unmatched", "constant")
    },
    "least-squares": {
        "additive": LeastSquaresRun(
            seed=1, eigenvalues=(1.0, 0.1), lr=0.2, lam=0.1, drop_step=60, average_from=30, ema=(0.9,), tail=10,
            num_steps=100, num_replicas=50, eval_every=20,
        ),
        "sampled": LeastSquaresRun(
            seed=2, eigenvalues=(1.0, 0.5, 0.1), noise="sampled", distance=2.0, lr=0.1, num_steps=100, num_replicas=50,
        ),
    },
    "relu-regression": {
        "noisy": ReluRegressionRun(
            seed=1, width=10, lr=0.02, lr_after_drop=0.002, drop_step=150, warmup_steps=50, lam=0.01, label_noise=0.1,
            num_steps=200, num_replicas=3, eval_every=50,
        ),
    },
    "noise-only": {
        "sgd": NoiseOnlyRun(
            seed=1, optimizer="sgd", momentum=0.9, lr=0.1, lr_schedule="cosine(start=1.0, end=0.0, steps=40)",
            decay="L2(lam=0.05)", num_weights=(30, 20), gradient_norms=(1.0, 3.0), num_replicas=3, num_steps=40, eval_every=20,
        ),
        "adam": NoiseOnlyRun(
            seed=1, optimizer="adam", lr=0.01, decay="Stable(lam=0.05)", beta2=0.9, num_weights=(30,), start_norm=2.0,
            num_replicas=3, num_steps=40, eval_every=20,
        ),
        "lion": NoiseOnlyRun(
            seed=1, optimizer="lion", lr=1e-3, decay="Cautious(Decoupled(lam=2))", beta2=0.99, num_weights=(30,), num_steps=40,
        ),
    },
    "scales": {
        "neuron": ScalesRun(
            seed=1, case="neuron", bits=(23, 4), lr=0.4, lam=0.01, drift=0.25, num_inputs=4, num_replicas=3, num_steps=40,
            batch_size=8, eval_every=20,
        ),
        "sum": ScalesRun(seed=1, case="sum", bits=(3, 7), log2_ulps=(-1, 2), num_steps=2, batch_size=100),
        "softmax": ScalesRun(
            seed=1, case="softmax", bits=(5, 8), log2_ulps=(0, 2), num_offsets=3, lr=0.1, width=8, num_train=128,
            num_test=NUM_TEST, num_steps=20, batch_size=32,
        ),
    },
    "separable": {
        points: SeparableRun(seed=1, points=points, num_points=8, num_datasets=3, lam=lam, num_steps=200)
        for points, lam in (("planted", 0.0), ("random", 0.01), ("outlier", 0.0))
    },
    "stationary": {
        "product": StationaryRun(
            seed=1, model="product", lr=0.1, label_noise=0.5, regularizers=("jacobian",), burn_in=20, num_steps=60,
            num_replicas=20, prefactors=(0.0, 0.25, 1.0),
        ),
        "sparse": StationaryRun(
            seed=1, model="square", data="sparse", num_examples=6, num_held_out=6, num_inputs=8, num_relevant=2,
            init=0.5, label_noise=1.0, lr=0.01, lam=0.06, burn_in=20, num_steps=60, num_replicas=4,
            prefactors=(0.0, 1.0),
        ),
        "tanh": StationaryRun(
            seed=1, model="tanh", hidden=3, loss="logistic", data="fashion-mnist-5k", num_examples=8, num_held_out=8,
            lr=0.2, lam=0.02, label_noise=0.2, batch_size=2, burn_in=20, num_steps=60, num_replicas=4,
            prefactors=(0.0, 1.0), searched=(1.0,), num_starts=1,
        ),
    },
}  # fmt: skip


TRAINERS = {name: next(iter(runs.values())).trainer for name, runs in RUNS.items()}


def _id(spec: RunSpec) -> str:
    return spec.digest()[:16]  # any name of the right form, since trainers do not know theirs


def trained(runs: Mapping[str, RunSpec], folder: Path) -> dict[str, Any]:
    """Train runs, those that others start from first, as a worker does; the content of a golden file but for its head."""
    store = Store(folder / "store")
    store.create()
    corpus = write_corpus(folder / "corpus")
    found = {}
    for name, spec in runs.items():
        task = Task(_id(spec), spec, None if spec.parent is None else _id(spec.parent))
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=str(corpus), stop=lambda: False)
        run = store.run(task.id)
        found[name] = {
            "spec": spec.to_json(),
            "data": run.header()["data"]["sha256"],
            "readings": [json.loads(reading.to_line()) for reading in run.readings()],
        }
    return found


def content(trainer: str, runs: Mapping[str, Any]) -> dict[str, Any]:
    """What a golden file says."""
    version = torch.__version__.partition("+")[0]
    return {"trainer": trainer, "version": TRAINERS[trainer].version, "torch": version, "runs": runs}


def golden_file(trainer: str) -> Path:
    """Where a trainer's readings are kept."""
    return FOLDER / f"{trainer}.json"


def kept(trainer: str) -> dict[str, Any]:
    """The content of a trainer's golden file."""
    found: dict[str, Any] = json.loads(golden_file(trainer).read_text(encoding="utf-8"))
    return found


def complaint(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Why a golden file is not what the trainer does today, and what to do; empty where it is."""
    trainer, write = new["trainer"], f"run `python -m tests.golden {new['trainer']}` to write the golden file anew"
    if found := differences(old["runs"], new["runs"]):
        more = f", and {len(found) - 1} more differences" if len(found) > 1 else ""
        changed = f"the numbers of trainer {trainer} changed ({found[0]}{more}): "
        if old["torch"] != new["torch"]:
            return f"{changed}if that is because of torch {new['torch']} after {old['torch']}, {write}"
        if old["version"] == new["version"]:
            return f"{changed}if that is meant, raise its version in src/halflife/studies/specs/trainers.py and {write}"
        return f"{changed}its version was raised from {old['version']} to {new['version']}, so {write}"
    if old["version"] != new["version"]:
        return (
            f"the version of trainer {trainer} is {new['version']} and its golden file is of version {old['version']} with the"
            f" same numbers: set it back, or {write}"
        )
    names = {*old["runs"], *new["runs"]}
    if any(_what(old["runs"], name) != _what(new["runs"], name) for name in names):
        return f"the golden file of trainer {trainer} is of other runs than tests/golden/runs.py says: {write}"
    return ""


def _what(runs: Mapping[str, Any], name: str) -> tuple[Any, Any] | None:
    """What a run is trained by and on."""
    return (runs[name]["spec"], runs[name]["data"]) if name in runs else None


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """In which readings the same runs differ by more than rounding."""
    found = []
    for name, run in new.items():
        if _what(old, name) != _what(new, name):
            continue
        before, after = series(old[name]["readings"]), series(run["readings"])
        if before.keys() != after.keys():
            found.append(f"{name}: {', '.join(sorted(before.keys() ^ after.keys()))} is read in one of the two only")
        for key in sorted(before.keys() & after.keys()):
            if before[key].shape != after[key].shape:
                found.append(f"{name}: {key} has {len(after[key])} values, expected {len(before[key])}")
                continue
            off = np.abs(after[key] - before[key])
            if key.endswith("wrong") and off.mean() > ONE_EXAMPLE:
                found.append(f"{name}: {key} has {off.sum():g} of {len(off)} examples other than expected")
            elif not key.endswith("wrong") and off.max() > allowed(key, before):
                worst = int(off.argmax())
                found.append(
                    f"{name}: {key}, value {worst}, is {after[key][worst]:.9g}, expected {before[key][worst]:.9g}"
                )
    return found


def allowed(key: str, before: Mapping[str, NDArray[np.float64]]) -> float:
    """How far a reading may be off."""
    if key.endswith(("error", "differing")):
        return ONE_EXAMPLE
    if "cos/" in key:
        return RELATIVE
    # What comes from differences of large numbers is rounded as these are.
    whole = "loss" if key == "largest_loss_difference" else key.removesuffix("_se")
    return float(RELATIVE * np.abs(before[whole]).max() + ABSOLUTE)


def series(readings: list[dict[str, Any]]) -> dict[str, NDArray[np.float64]]:
    """The values of each reading, one after the other, and the steps at which they were read."""
    found: dict[str, list[float]] = {}
    for record in readings:
        reading = Reading.from_line(json.dumps(record))
        found.setdefault("step", []).append(reading.step)
        found.setdefault("epoch", []).append(reading.epoch)
        for name, value in reading.values.items():
            found.setdefault(name, []).append(value)
        for name, array in reading.arrays.items():
            values = np.asarray(unpacked(array), dtype=np.float64)
            found.setdefault(f"array {name}", []).extend(values)
    return {name: np.array(values) for name, values in found.items()}
