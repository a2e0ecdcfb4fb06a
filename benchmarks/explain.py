"""What `halflife.explain` takes, as ratios to one bare optimizer step, and how that grows with groups and tensors.

Run it with ``python benchmarks/explain.py``; ``--quick`` leaves out the largest sizes, ``--rounds N`` sets how often each size
is timed (2). It prints a table; no number in it is asserted, because they are those of one machine.

Three families, all of AdamW in float32, in the shapes of a transformer (attention, feed-forward, two norms per layer):

- groups: 300 tensors in 1, 10, 100 and 300 groups, whose learning rates fall from layer to layer;
- tensors: 10 to 100,000 small tensors in the usual two groups, what has two dimensions decays;
- size: the shapes of a model with 7 B parameters (32 layers of width 4096, vocabulary 32,000) on the meta device.

A row says how long one bare step takes (not on the meta device, where none can be taken), how long explain takes and how many
bare steps that is, how long its text takes, what share of explain is experiments on the optimizer (`probe_of`: copies that
are stepped), and how many lines the text has. "the rest" is what explain adds to the experiments: rows, findings, text.
Times are seconds of the processor on one thread, the smallest of the rounds; memory is the growth of the process's peak over
what it was before the size.
"""

from __future__ import annotations

import argparse
import math
import resource
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import nn

import halflife
from halflife.laws.live import probe_of

GROUPS = (1, 10, 100, 300)
TENSORS = (10, 100, 1_000, 10_000, 100_000)
LR = 1e-3


class Norm(nn.Module):
    """An RMS norm's gain."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))


class Layer(nn.Module):
    """A transformer's layer: ten tensors."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.input_norm = nn.LayerNorm(width, bias=False)
        self.qkv = nn.ParameterList(nn.Parameter(torch.ones(width, width)) for _ in range(3))
        self.out = nn.Linear(width, width, bias=True)
        self.output_norm = nn.LayerNorm(width, bias=False)
        self.gate = nn.Linear(width, inner, bias=False)
        self.up = nn.Linear(width, inner, bias=False)
        self.down = nn.Linear(inner, width, bias=False)


class Transformer(nn.Module):
    """Layers, and an embedding with its head."""

    def __init__(self, layers: int, width: int, inner: int, vocabulary: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary, width)
        self.layers = nn.ModuleList(Layer(width, inner) for _ in range(layers))
        self.head = nn.Linear(width, vocabulary, bias=False)


@dataclass(frozen=True)
class Size:
    """One row of the table: what it is called, and what makes model and optimizer."""

    family: str
    name: str
    make: Callable[[], tuple[nn.Module, torch.optim.Optimizer]]
    steps: bool = True


def with_groups(count: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """300 tensors in so many groups."""
    model = Transformer(30, 16, 32, 16)
    tensors = list(model.parameters())[:300]
    size = len(tensors) // count
    groups = [
        {"params": tensors[start * size : (start + 1) * size if start < count - 1 else None], "lr": LR * 0.99**start}
        for start in range(count)
    ]
    return model, torch.optim.AdamW(groups, weight_decay=0.1)


def with_tensors(count: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """About so many tensors in two groups."""
    model = Transformer(max(1, round(count / 10)), 8, 8, 8)
    return model, torch.optim.AdamW(halflife.param_groups(model, weight_decay=0.1), lr=LR)


def of_seven_billion() -> tuple[nn.Module, torch.optim.Optimizer]:
    """The shapes of a model with 7 B parameters, without data."""
    with torch.device("meta"):
        model = Transformer(32, 4096, 11_008, 32_000)
        return model, torch.optim.AdamW(halflife.param_groups(model, weight_decay=0.1), lr=LR)


def sizes(quick: bool) -> Iterator[Size]:
    """The rows of the table."""
    for count in GROUPS:
        yield Size("groups", f"{count}", partial(with_groups, count))
    for count in TENSORS[: -2 if quick else None]:
        yield Size("tensors", f"{count:,}", partial(with_tensors, count))
    yield Size("size", "7 B (meta)", of_seven_billion, steps=False)


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of the processor that some work takes, and its result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


class Stopwatch:
    """Times the experiments within explain."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._patch = mock.patch("halflife.audit.rows.probe_of", self._probe_of)

    def _probe_of(self, *arguments: Any, **options: Any) -> Any:
        seconds, result = timed(partial(probe_of, *arguments, **options))
        self.seconds += seconds
        return result

    def __enter__(self) -> Stopwatch:
        self._patch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.stop()


def bare_step(model: nn.Module, optimizer: torch.optim.Optimizer) -> float:
    """Seconds of a step, the smallest of three; the first makes the state and is not counted."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    return min(timed(optimizer.step)[0] for _ in range(3))


def measured(size: Size, rounds: int) -> list[str]:
    """Return one row of the table."""
    model, optimizer = size.make()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    best, probing = math.inf, 0.0
    table = None
    for _ in range(rounds):
        with Stopwatch() as watch:
            seconds, found = timed(lambda: halflife.explain(model, optimizer))
        if seconds < best:
            best, probing, table = seconds, watch.seconds, found
    shown, text = timed(partial(str, table))
    memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    step = bare_step(*size.make()) if size.steps else math.nan
    return [
        size.family,
        size.name,
        "-" if math.isnan(step) else f"{step * 1e3:.2f} ms",
        f"{best:.2f} s",
        "-" if math.isnan(step) else f"{best / step:,.0f}",
        f"{probing / best:.0%}",
        f"{best - probing:.2f} s",
        f"{shown:.2f} s",
        str(len(text.splitlines())),
        f"{memory:,.0f} MB",
    ]


HEAD = ["family", "", "bare step", "explain", "steps", "experiments", "the rest", "text", "lines", "memory"]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="without the largest sizes")
    parser.add_argument("--rounds", type=int, default=2, help="how often each size is timed")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(("{:<8} {:>11} {:>10} {:>9} {:>7} {:>11} {:>9} {:>8} {:>6} {:>9}").format(*HEAD))
    for size in sizes(options.quick):
        print(
            ("{:<8} {:>11} {:>10} {:>9} {:>7} {:>11} {:>9} {:>8} {:>6} {:>9}").format(*measured(size, options.rounds)),
            flush=True,
        )


if __name__ == "__main__":
    main()
