"""What ``attach(..., low_precision=...)`` costs beside the plain own pass, as ratios measured in one process.

Run it with ``make bench``, or ``python benchmarks/precision.py``; ``--rounds N`` for N times 16 steps, ``--quick`` for half a
minute. The weights have the shapes of GPT-2 (6 layers of width 384, vocabulary 50,304: 30 M parameters), two bytes each.

In every step the plain own pass (``torch._foreach_mul_``) and the two remedies act on the same weights, in an order that is
drawn anew, so that what else runs on the machine hits all of them alike. What stands below a ratio is the plain pass: its
median, or its mean for means. Most steps of a remedy only add numbers, one per parameter: the mean over steps is what a run
feels, and the worst step says what a pass takes.

The plain pass reads and writes 4 bytes per weight in each step. So does a pass of a remedy, in one of 16 steps as long as r
is below 2^-9: 0.25 bytes per weight and step. What it takes more is arithmetic: eight operations on numbers in the cache.

Measured with ``--rounds 40`` on one of two shared cores of an AMD EPYC, torch 2.13, while other programs ran; the plain pass
took 4.6 to 8.6 ms in bfloat16 and 3.3 to 3.6 ms in float16:

    =====================  ==================  ==================  ==================  ==================
    mean (worst) step      r = 1e-5            r = 1e-4            r = 1e-3            r = 3e-3
    =====================  ==================  ==================  ==================  ==================
    bfloat16, accumulate   0.42 (11)           0.42 (9)            0.43 (8)            0.59 (9)
    bfloat16, stochastic   0.44 (12)           0.42 (9)            0.43 (8)            0.59 (9)
    float16, accumulate    0.69 (19)           0.69 (20)           0.70 (19)           1.04 (17)
    float16, stochastic    0.71 (20)           0.71 (24)           0.73 (22)           1.02 (17)
    =====================  ==================  ==================  ==================  ==================

The median step takes 0.02 to 0.04 of the plain pass.
"""

from __future__ import annotations

import random
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from halflife.optim.actions import Work
from halflife.optim.actions.accumulate import EVERY, Accumulate
from halflife.optim.actions.shrink import Shrink
from halflife.rules.base import StepInfo

WIDTH, LAYERS, VOCABULARY, CONTEXT = 384, 6, 50_304, 1024
DTYPES = (torch.bfloat16, torch.float16)
AIM = 1.1  # times the plain own pass, on average


def shapes() -> list[tuple[int, ...]]:
    """The shapes of a GPT-2 with biases, embeddings tied."""
    layer: list[tuple[int, ...]] = [(WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    layer += [(WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,)]
    return [(VOCABULARY, WIDTH), (CONTEXT, WIDTH), *(layer * LAYERS), (WIDTH,), (WIDTH,)]


def a_step(action: Shrink, work: list[Work]) -> Callable[[], None]:
    """What an action does in a step."""
    optimizer: Any = object()  # it is asked for a flag of GradScaler only

    def step() -> None:
        action.before(optimizer, work)
        action.after(optimizer, work)

    return step


@pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float16"])
@pytest.mark.parametrize("r", [1e-5, 1e-4, 1e-3, 3e-3])
def test_a_remedy_beside_the_plain_own_pass(benchmark: Any, r: float, dtype: torch.dtype, rounds: int) -> None:
    """Aim: on average at most 1.1 x the plain own pass."""
    generator = torch.Generator().manual_seed(0)
    weights = [(0.02 * torch.randn(shape, generator=generator)).to(dtype) for shape in shapes()]
    work = [Work({"params": weights}, weights, r, StepInfo(lr=1.0))]
    steps = {
        "plain": a_step(Shrink(), work),
        "accumulate": a_step(Accumulate(random=False), work),
        "stochastic": a_step(Accumulate(random=True), work),
    }
    times: dict[str, list[float]] = {name: [] for name in steps}

    @torch.no_grad()
    def run() -> None:
        order, shuffle = list(steps), random.Random(0).shuffle
        for turn in range(EVERY * (rounds + 1)):
            shuffle(order)
            for name in order:
                start = time.perf_counter()
                steps[name]()
                took = time.perf_counter() - start
                if turn >= EVERY:  # the first passes warm up
                    times[name].append(took)

    benchmark.pedantic(run, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = times
    plain = statistics.median(times["plain"])
    count = sum(weight.numel() for weight in weights)
    name = str(dtype).removeprefix("torch.")
    print(f"\n\nr = {r:g}, {name}: the plain own pass takes {plain * 1e3:.2f} ms, {4e-9 * count / plain:.1f} GB/s")
    for remedy in ("accumulate", "stochastic"):
        each = times[remedy]
        middle, worst = statistics.median(each) / plain, max(each) / plain
        mean = statistics.mean(each) / statistics.mean(times["plain"])
        print(
            f"  {remedy}: median step {middle:.3f}, mean {mean:.3f} (aim <= {AIM}), worst {worst:.1f} x the plain one"
        )


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    sys.exit(
        pytest.main(
            [__file__, "-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "timeout=0", *sys.argv[1:]]
        )
    )
