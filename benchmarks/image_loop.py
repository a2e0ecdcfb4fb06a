"""Time of an epoch of halflife's loop for images against a loop written by hand, measured in one process.

Run it with ``make bench``, or ``python benchmarks/image_loop.py``; ``--rounds N`` for more rounds.

``halflife.studies.lab.trainer`` itself runs, with its readings, and is interrupted after every epoch, when the bare loop does
an epoch, twice: *bare again*, on other memory, shows the noise. The bare loop has the same model, the same batches, cut from
the images in the same order, and torch's optimizer with the decay in it; forward, backward, step, and nothing else.

All run on one thread. A round is an epoch. Ratios are medians over rounds of the ratio within a round; the bracket is the
middle half of them. Processor time counts what this process alone used, on a machine that does other things too. Evaluation
is no part of this. That halflife's loop and the bare one have done the same is checked: their weights agree at the end.
"""

from __future__ import annotations

import math
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from attach import Ratio, show
from torch.nn import functional
from torch.optim import Optimizer

from halflife.studies.lab.images.data import image_tensors
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import train
from halflife.studies.specs.images import ImageRun
from halflife.studies.store.records import Reading

LAM = 0.01
BASE = ImageRun(lr=0.05, num_epochs=1000, num_train=2000, num_test=100, drop_at=1.0, ema=(), eval_every=1000)
Make = Callable[[list[torch.nn.Parameter]], Optimizer]
CASES: dict[str, tuple[ImageRun, Make]] = {
    "ResNet, plain SGD, decoupled": (
        replace(BASE, lam=LAM),
        lambda p: torch.optim.SGD(p, lr=0.05, weight_decay=LAM, fused=True),
    ),
    "ResNet, SGD with momentum, L2": (
        replace(BASE, momentum=0.9, decay=f"L2(lam={LAM})"),
        lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=LAM, fused=True),
    ),
    "VGG with BatchNorm, AdamW": (
        replace(BASE, model="vgg-bn", optimizer="adamw", lr=0.003, decay=f"Decoupled(lam={LAM})"),
        lambda p: torch.optim.AdamW(p, lr=0.003, weight_decay=LAM, fused=True),
    ),
}


class Bare:
    """The plainest loop over the same batches."""

    def __init__(self, spec: ImageRun, make: Make) -> None:
        source = read_source(spec.data, None)
        self.images, _ = image_tensors(
            source, num_train=spec.num_train, num_test=100, downsample=2, device=torch.device("cpu")
        )
        self.spec, self.epoch = spec, 0
        self.model = build_model(
            spec.model, width=spec.width, blocks=spec.blocks, in_channels=1, num_classes=10, seed=0
        ).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.optimizer = make(list(self.model.parameters()))

    def run(self) -> None:
        """One epoch."""
        x_NCHW, y_N, size = self.images.x_NCHW, self.images.y_N, self.spec.batch_size
        model, optimizer = self.model, self.optimizer
        generator = torch.Generator().manual_seed(seed_of(f"order/0/{self.epoch}"))
        order_N = torch.randperm(len(y_N), generator=generator)
        model.train()
        for start in range(0, len(y_N) - size + 1, size):
            index_B = order_N[start : start + size]
            x_BCHW = x_NCHW[index_B].contiguous(memory_format=torch.channels_last)
            loss = functional.cross_entropy(model(x_BCHW), y_N[index_B])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        self.epoch += 1

    def weight_norm(self) -> float:
        """Of all parameters together."""
        return math.sqrt(sum(p.detach().double().square().sum().item() for p in self.model.parameters()))


@dataclass
class Interrupted:
    """halflife's own ``train``, asked after every epoch whether to stop; then the other loops do one."""

    spec: ImageRun
    others: dict[str, Bare]
    rounds: int

    def __post_init__(self) -> None:
        self.times: dict[str, list[tuple[float, float]]] = {name: [] for name in ("halflife", *self.others)}
        self.readings: list[Reading] = []
        self.shuffle, self.began = random.Random(0).shuffle, now()

    def measure(self) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
        """Seconds, and seconds of processor time, of each epoch of each loop; the first two warm up, the last is evaluated."""
        spec = replace(self.spec, max_steps=(self.rounds + 3) * (2000 // self.spec.batch_size))
        with tempfile.TemporaryDirectory() as folder:
            train(spec, sink=self.readings.append, folder=Path(folder), stop=self.stop)
        wall, processor = (
            {name: [time[k] for time in times[2 : 2 + self.rounds]] for name, times in self.times.items()}
            for k in (0, 1)
        )
        return wall, processor

    def stop(self) -> bool:
        """Let the others run; never stop."""
        self.note("halflife")
        order = list(self.others)
        self.shuffle(order)
        for name in order:
            self.began = now()
            self.others[name].run()
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


@pytest.mark.parametrize("name", CASES)
def test_the_loop(benchmark: Any, rounds: int, name: str) -> None:
    """Aim: at least 0.97 of the bare loop's speed."""
    spec, make = CASES[name]
    bare = Bare(spec, make)
    loop = Interrupted(spec, {"bare": bare, "again": Bare(spec, make)}, rounds)
    times, processor = benchmark.pedantic(loop.measure, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = {each: statistics.median(values) for each, values in times.items()}
    assert loop.readings[-1].values["weight_norm"] == pytest.approx(bare.weight_norm(), rel=1e-4)
    epoch = statistics.median(times["halflife"])
    show(
        f"{name}: {rounds} epochs of {2000 // spec.batch_size} steps, a reading after each",
        [
            ("halflife, one epoch", f"{epoch:.3f} s", f"{2000 / epoch:,.0f} images a second"),
            ("speed over that of the bare loop", Ratio(times["bare"], times["halflife"]), "aim >= 0.97"),
            ("the same, processor time", Ratio(processor["bare"], processor["halflife"]), ""),
            ("bare again / bare", Ratio(times["again"], times["bare"]), "noise of this run"),
        ],
    )


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread")
    sys.exit(
        pytest.main(
            [__file__, "-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "timeout=0", *sys.argv[1:]]
        )
    )
