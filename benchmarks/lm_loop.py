"""Tokens per second of halflife's loop for language models, against loops written by hand, measured in one process.

Run it with ``make bench``, or ``python benchmarks/lm_loop.py``; ``--rounds N`` for more rounds.

``halflife.studies.lab.trainer`` itself runs, with its readings, and is interrupted every few steps, when the other
loops do as many, in an order that is drawn anew. They are:

* *bare*: the same model, decay and learning rates, and the same batches, read from the same memory map at offsets that were
  drawn beforehand; forward, backward, clip, step, and nothing else. *bare again* is the same on other memory: the noise.
* *bare, batches ready*: the same, with batches that were made before the clock started. What this gains, reading costs.
* *nanoGPT's structure*: random offsets, a memory map that is opened for each batch, windows stacked one by one, the loss read
  every so many steps, calls of a scaler that does nothing.

All step with a fused AdamW and run on one thread. A round is as many steps as lie between two readings. Ratios are medians
over rounds of the ratio within a round; the bracket is the middle half of them. Processor time counts what this process
alone used, on a machine that does other things too. Each loop reads a copy of the tokens of its own, all of which was looked
at before: whoever reads a page first brings it into memory, and into the processor's caches, for those who come later.

Evaluation and branches are no part of this; what they cost, and memory, is measured in a process that does nothing else.
That halflife's loop and the bare one have done the same is checked: their weights agree at the end.
"""

from __future__ import annotations

import contextlib
import json
import math
import random
import statistics
import subprocess
import sys
import tempfile
import time
import weakref
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol
from unittest import mock

import numpy as np
import pytest
import torch
from attach import Ratio, show
from torch import Tensor
from torch.nn import functional

from halflife.studies.lab.text.models import build_text_model
from halflife.studies.lab.text.order import WindowOrder
from halflife.studies.lab.text.tokens import TokenData, load_tokens
from halflife.studies.lab.trainer import Context, train
from halflife.studies.specs.branches import TextBranch
from halflife.studies.specs.text import TextRun
from halflife.studies.store.records import Reading

LAM, BETAS, CLIP, WARM = 0.1, (0.9, 0.95), 1.0, 100
SETTINGS: dict[str, Any] = {
    "vocab_size": 96, "decay": f"Decoupled(lam={LAM})", "num_eval_tokens": 16_384, "num_steps": 10_000,
    "eval_every": 1_000_000, "lr_schedule": f"join((warmup({WARM}), cosine(1.0, 0.1, {10_000 - WARM})), ({WARM},))",
}  # fmt: skip
BYTE_MLP = TextRun(
    model="mlp", context=6, width=32, depth=1, norm_gain=False, activation="relu", init="fan-in", lr=6e-3,
    batch_size=1024, **SETTINGS,
)  # fmt: skip
SMALL_GPT = TextRun(
    context=16, width=32, depth=2, heads=2, norm="rmsnorm", norm_gain=False, activation="relu", init="normal",
    init_std=0.05, lr=1e-2, batch_size=64, **SETTINGS,
)  # fmt: skip
GPT_3M = TextRun(context=128, width=256, depth=4, heads=4, lr=1e-3, batch_size=16, **SETTINGS)
SPECS = {
    "byte MLP, 14 k parameters": (BYTE_MLP, 50),
    "small GPT, 31 k parameters": (SMALL_GPT, 50),
    "GPT, 3 M parameters": (GPT_3M, 5),
}
"""Each with the steps from one reading to the next, which are a round."""
SLICES = 5  # of a round: the loops take turns so often


class Loop(Protocol):
    """A loop that can do some steps more."""

    def prepare(self, steps: int) -> None:
        """What comes before the clock starts."""

    def run(self, steps: int) -> None:
        """Do the steps."""


def model_and_optimizer(spec: TextRun) -> tuple[torch.nn.Module, torch.optim.AdamW]:
    """The model of the spec, and AdamW with nanoGPT's groups: what has two dimensions decays."""
    model = build_text_model(spec, spec.seed)
    groups = [
        {"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": LAM},
        {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return model, torch.optim.AdamW(groups, lr=spec.lr, betas=BETAS, eps=spec.eps, fused=True)


def own_copy(tokens: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """A memory map of a file that nobody else reads, brought in."""
    file = tempfile.NamedTemporaryFile(suffix=".bin")  # noqa: SIM115 - it lives as long as the map does
    weakref.finalize(mapped := np.memmap(file.name, tokens.dtype, "w+", shape=tokens.shape), file.close)
    mapped[:] = tokens
    mapped.flush()
    return mapped


def lr_at(spec: TextRun, step: int) -> float:
    """Warm-up and cosine, as nanoGPT's ``get_lr``."""
    if step < WARM:
        return spec.lr * step / WARM
    done = (step - WARM) / (spec.num_steps - WARM)
    return spec.lr * (0.1 + 0.9 * 0.5 * (1.0 + math.cos(math.pi * done)))


class Bare:
    """The plainest loop over batches at known offsets."""

    def __init__(self, spec: TextRun, data: TokenData, starts_SB: np.ndarray[Any, Any], *, ready: bool = False) -> None:
        self.spec, self.starts_SB, self.ready = spec, starts_SB, ready
        self.tokens = np.asarray(own_copy(data.train))  # numpy handles its own class faster than memmap
        self.model, self.optimizer = model_and_optimizer(spec)
        self.step, self.batches = 0, dict[int, Tensor]()

    def windows(self, step: int) -> Tensor:
        """The windows of a step, each with the token that follows."""
        index = self.starts_SB[step][:, None] + np.arange(self.spec.context + 1)
        return torch.from_numpy(self.tokens.take(index).astype(np.int64))

    def prepare(self, steps: int) -> None:
        """Make the batches, if they are to be ready."""
        self.batches = {s: self.windows(s) for s in range(self.step, self.step + steps)} if self.ready else {}

    def run(self, steps: int) -> None:
        """Do the steps."""
        model, optimizer, last_only = self.model, self.optimizer, self.spec.model == "mlp"
        parameters = list(model.parameters())
        for step in range(self.step, self.step + steps):
            for group in optimizer.param_groups:
                group["lr"] = lr_at(self.spec, step)
            windows = self.batches[step] if self.ready else self.windows(step)
            logits = model(windows[:, :-1])
            if last_only:
                loss = functional.cross_entropy(logits, windows[:, -1])
            else:
                loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, CLIP)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += steps

    def weight_norm(self) -> float:
        """Of all parameters together."""
        return math.sqrt(sum(p.detach().double().square().sum().item() for p in self.model.parameters()))


class NanoGPT:
    """The structure of nanoGPT's ``train.py``, its optimizer fused as the others are."""

    def __init__(self, spec: TextRun, data: TokenData, log_interval: int) -> None:
        assert isinstance(data.train, np.memmap)
        self.spec, self.log_interval = spec, log_interval
        self.file_path, self.dtype, self.size = data.train.filename, data.train.dtype, len(data.train)
        self.model, self.optimizer = model_and_optimizer(spec)
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.step, self.losses = 0, list[float]()
        self.batch = self.get_batch()

    def get_batch(self) -> tuple[Tensor, Tensor]:
        """Windows anywhere, and the tokens that follow."""
        context = self.spec.context
        data = np.memmap(self.file_path, dtype=self.dtype, mode="r", shape=(self.size,))  # anew: else memory leaks
        ix = torch.randint(len(data) - context, (self.spec.batch_size,)).tolist()
        x = torch.stack([torch.from_numpy(data[i : i + context].astype(np.int64)) for i in ix])
        if self.spec.model == "mlp":
            return x, torch.from_numpy(data[np.array(ix) + context].astype(np.int64))
        return x, torch.stack([torch.from_numpy(data[i + 1 : i + 1 + context].astype(np.int64)) for i in ix])

    def prepare(self, steps: int) -> None:
        """Nothing."""

    def run(self, steps: int) -> None:
        """Do the steps."""
        t0 = time.time()
        for iter_num in range(self.step, self.step + steps):
            lr = lr_at(self.spec, iter_num)
            for param_group in self.optimizer.param_groups:
                param_group["lr"] = lr
            x, y = self.batch
            with contextlib.nullcontext():
                logits = self.model(x)
                loss = functional.cross_entropy(logits.view(-1, logits.size(-1)), y.view(-1))
            self.batch = self.get_batch()
            self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
            self.scaler.step(self.optimizer)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            t0, _ = time.time(), time.time() - t0
            if iter_num % self.log_interval == 0:
                self.losses.append(loss.item())
        self.step += steps


@dataclass
class Interrupted:
    """halflife's own ``train``, asked after every step whether to stop; then the other loops run from time to time.

    It is handed tokens that were looked at: a map of its own would be brought in page by page while the clock runs.
    """

    spec: TextRun
    data: TokenData
    others: dict[str, Loop]
    round_steps: int
    rounds: int

    def __post_init__(self) -> None:
        self.slice = self.round_steps // SLICES
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("halflife", *self.others)}
        self.readings: list[Reading] = []
        self.step, self.shuffle, self.began = 0, random.Random(0).shuffle, now()

    def measure(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds, and seconds of processor time, of each round of each loop; the first two rounds warm up."""
        spec = replace(self.spec, log_every=self.round_steps, max_steps=self.round_steps * (self.rounds + 2))
        with (
            tempfile.TemporaryDirectory() as folder,
            mock.patch("halflife.studies.lab.text.loop.load_tokens", return_value=self.data),
        ):
            train(spec, sink=self.readings.append, folder=Path(folder), stop=self.stop)
        wall, processor = (
            {
                name: np.reshape([time[k] for time in times], (-1, SLICES)).sum(1)[2:].tolist()
                for name, times in self.times.items()
            }
            for k in (0, 1)
        )
        return wall, processor

    def stop(self) -> bool:
        """Let the others run where a slice ends; never stop."""
        self.step += 1
        if self.step % self.slice:
            return False
        self.note("halflife")
        order = list(self.others)
        self.shuffle(order)
        for name in order:
            self.others[name].prepare(self.slice)
            self.began = now()
            self.others[name].run(self.slice)
            self.note(name)
        self.began = now()
        return False

    def note(self, name: str) -> None:
        """Note the time since the last `now`."""
        ended = now()
        self.times[name].append((ended[0] - self.began[0], ended[1] - self.began[1]))


def now() -> tuple[float, float]:
    """Seconds, and seconds of this process's processor time."""
    return time.perf_counter(), time.process_time()


def alone(name: str) -> dict[str, float]:
    """Train, evaluate and branch, and nothing else, in this process."""
    spec, round_steps = SPECS[name]
    steps = 10 * round_steps
    spec = replace(spec, num_steps=steps, lr_schedule="constant()", eval_every=steps // 2, keep_at=(steps // 2,))
    branch = TextBranch(of=spec, at=steps // 2, branch="tiny-lr", num_steps=steps // 2)
    with tempfile.TemporaryDirectory() as parent, tempfile.TemporaryDirectory() as folder:
        cost = train(spec, sink=lambda _: None, folder=Path(parent))
        again = train(branch, Context(parent=Path(parent) / "kept"), sink=lambda _: None, folder=Path(folder))
    evaluations = 3
    return {
        "tokens_per_second": cost["tokens_per_second"],
        "peak_memory_mb": again["peak_memory_mb"],
        "evaluation": cost["evaluation_seconds"] / evaluations,
        "branch": again["training_seconds"],
        "branch_steps": branch.num_steps,
    }


@pytest.mark.parametrize("name", SPECS)
def test_the_loop(benchmark: Any, rounds: int, name: str) -> None:
    """Aims: 1.03 x the bare loop; no slower than nanoGPT's structure."""
    spec, round_steps = SPECS[name]
    rounds = rounds if round_steps == 50 else max(rounds // 4, 4)
    data = load_tokens(spec)
    data.train[:: 1 << 10].max()  # brings every page in
    targets = 1 if spec.model == "mlp" else spec.context
    order = WindowOrder(
        num_tokens=len(data.train), context=spec.context, targets_per_window=targets, batch_size=spec.batch_size,
        seed=spec.seed, order="one-pass",
    )  # fmt: skip
    starts_SB = np.stack([order.starts(step) for step in range(round_steps * (rounds + 2))])
    bare = Bare(spec, data, starts_SB)
    others: dict[str, Loop] = {
        "bare": bare,
        "again": Bare(spec, data, starts_SB),
        "ready": Bare(spec, data, starts_SB, ready=True),
        "nanogpt": NanoGPT(spec, data, round_steps),
    }
    loop = Interrupted(spec, data, others, round_steps, rounds)
    times, processor = benchmark.pedantic(loop.measure, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = {each: statistics.median(values) / round_steps for each, values in times.items()}
    assert loop.readings[-1].values["weight_norm"] == pytest.approx(bare.weight_norm(), rel=1e-6)
    done = subprocess.run([sys.executable, __file__, "--alone", name], capture_output=True, text=True, check=True)
    costs = json.loads(done.stdout)
    step = statistics.median(times["halflife"]) / round_steps
    tokens = spec.batch_size * targets
    show(
        f"{name}: batch {spec.batch_size} x {spec.context} tokens, {rounds} rounds of {round_steps} steps, a reading in each",
        [
            ("halflife, one step", f"{step * 1e3:.2f} ms", f"{tokens / step:,.0f} predicted tokens a second"),
            ("halflife / bare", Ratio(times["halflife"], times["bare"]), "aim <= 1.03"),
            ("the same, processor time", Ratio(processor["halflife"], processor["bare"]), ""),
            ("bare again / bare", Ratio(times["again"], times["bare"]), "noise of this run"),
            ("halflife / bare, batches ready", Ratio(times["halflife"], times["ready"]), "what reading costs, too"),
            ("halflife / nanoGPT's structure", Ratio(times["halflife"], times["nanogpt"]), "aim <= 1"),
            ("alone: one evaluation", f"{costs['evaluation']:.3f} s", f"2 x {spec.num_eval_tokens:,} tokens"),
            ("alone: a branch", f"{costs['branch']:.3f} s", f"{costs['branch_steps']:.0f} steps"),
            (
                "alone: peak memory",
                f"{costs['peak_memory_mb']:.0f} MB",
                f"{data.train.nbytes / 1e6:.0f} MB of tokens stay mapped from disk",
            ),
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["--alone"]:
        print(json.dumps(alone(sys.argv[2])))
        sys.exit()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")
    sys.exit(
        pytest.main(
            [__file__, "-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "timeout=0", *sys.argv[1:]]
        )
    )
