"""What simulated low precision costs: steps of language models as ratios to the float32 step, in one process.

Run it with ``make bench``, or ``python benchmarks/rounding.py``; ``--rounds N`` for more rounds, ``--quick`` for a minute.

Every round lets every variant do ten steps of the lab's own loop, in an order that is drawn anew, on one thread. Times are
those of this process's processor. Ratios are medians over rounds of the ratio within a round; the bracket is the middle half.
"""

from __future__ import annotations

import random
import sys
import time
from dataclasses import replace
from statistics import median
from typing import Any

import pytest
import torch
from attach import Ratio, show

from halflife.studies.catalog.language.settings import LAPTOP_GPT
from halflife.studies.lab.text.loop import TextLoop
from halflife.studies.lab.trainer import Context
from halflife.studies.specs.precision import PLACES, STORED
from halflife.studies.specs.text import TextRun

STEPS = 10  # of each variant in a round
NEVER = 1_000_000
ATTENTION = ("scores", "mixing")
TIED_GPT = TextRun(
    vocab_size=64, context=32, width=32, heads=2, depth=2, batch_size=16, tied=True, lr=2e-2, decay="Decoupled(lam=0.1)",
    lr_schedule="join((warmup(100), constant(1.0)), (100,))", num_steps=2000, order="random-offsets", eval_every=NEVER,
    log_every=NEVER, num_eval_tokens=8192,
)  # fmt: skip
LAPTOP = TextRun(
    **{**LAPTOP_GPT.constant("moderate"), "ema": (), "average_from": None, "keep_at": (), "eval_every": NEVER,
       "log_every": NEVER, "num_steps": 2000},
)  # fmt: skip
SPECS = {"GPT of 16 windows of 32, tied": TIED_GPT, "GPT of the language studies on a laptop": LAPTOP}
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "float32": ({}, ""),
    "float32 again": ({}, "noise of this run"),
    "scores and mixing rounded": (
        {"bits": 2, "rounded": ATTENTION, "rounded_gradients": ATTENTION},
        "aim <= 1.2, with gradients",
    ),
    "scores rounded": ({"bits": 2, "rounded": ("scores",)}, "without gradients"),
    "all places rounded": ({"bits": 2, "rounded": PLACES, "rounded_gradients": PLACES}, "aim <= 1.5, with gradients"),
    **{f"stored {how}": ({"stored": how, "stored_bits": 7}, "") for how in STORED[1:]},
}


@pytest.mark.parametrize("name", SPECS)
def test_steps(benchmark: Any, rounds: int, name: str) -> None:
    """Aims: 1.2 x the float32 step with attention rounded, 1.5 x with everything rounded."""
    loops = {
        variant: TextLoop(replace(SPECS[name], **changes), Context()) for variant, (changes, _) in VARIANTS.items()
    }
    times: dict[str, list[float]] = {variant: [] for variant in loops}

    def measure() -> None:
        order = list(loops)
        for number in range(rounds + 2):
            random.shuffle(order)
            for variant in order:
                began = time.process_time()
                for _ in range(STEPS):
                    loops[variant].one_step()
                loops[variant].state.losses.clear()
                if number > 1:  # the first two warm up
                    times[variant].append(time.process_time() - began)

    benchmark.pedantic(measure, rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = {variant: median(each) / STEPS for variant, each in times.items()}
    step = median(times["float32"]) / STEPS
    show(
        f"{name}: {rounds} rounds of {STEPS} steps",
        [
            ("float32, one step", f"{step * 1e3:.2f} ms", f"{step * 2000:.1f} s for 2000 steps"),
            *(
                (f"{variant} / float32", Ratio(times[variant], times["float32"]), VARIANTS[variant][1])
                for variant in VARIANTS
                if variant != "float32"
            ),
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
