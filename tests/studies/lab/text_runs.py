"""Small language-model runs on a small folder of text, for the tests of the loop, of workers and of several processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.trainer import Context, train
from halflife.studies.specs import TextBranch, TextReplay, TextRun
from halflife.studies.store.records import Reading

WARM_COSINE = "join((warmup(5), cosine(1.0, 0.1, 35)), (5,))"

MLP = TextRun(
    seed=3,
    corpus="folder",
    vocab_size=32,
    num_eval_tokens=600,
    model="mlp",
    context=4,
    width=12,
    depth=1,
    embedding_width=4,
    init="normal",
    init_std=0.1,
    lr=2e-2,
    lr_schedule=WARM_COSINE,
    decay="Decoupled(lam=1.0)",
    num_steps=40,
    batch_size=16,
    eval_every=20,
    log_every=5,
)
GPT = dataclasses.replace(MLP, model="gpt", context=8, width=12, depth=2, heads=2, batch_size=4)


def write_corpus(folder: Path) -> Path:
    """Twelve files of words that follow each other with a little sense, about 100 kB."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), size=rng.integers(2, 7))) for _ in range(60)]
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(12):
        picks = np.cumsum(rng.integers(1, 4, size=1600)) % len(words)
        (folder / f"part{number:02}.txt").write_text(" ".join(words[pick] for pick in picks), encoding="utf-8")
    return folder


def run(
    spec: TextRun | TextBranch | TextReplay,
    folder: Path,
    corpus: Path,
    *,
    parent: Path | None = None,
    parallel: DataParallelContext | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> tuple[list[Reading], dict[str, float]]:
    """Train a run in a folder; its readings and what it cost."""
    folder.mkdir(parents=True, exist_ok=True)
    readings: list[Reading] = []
    context = Context(data_folder=str(corpus), parent=parent, parallel=parallel)
    cost = train(spec, context, sink=readings.append, folder=folder, stop=stop)
    return readings, cost


def stop_after(step: int) -> Callable[[], bool]:
    """Says yes when it is asked for the ``step``-th time."""
    asked = iter(range(1, 10**9))
    return lambda: next(asked) >= step
