"""What attaching a rule costs, as ratios measured in one process.

Run it with ``make bench``, or ``python benchmarks/attach.py``; ``--rounds N`` for more rounds, ``--quick`` for two or three
minutes. pytest-benchmark keeps the numbers: add ``--benchmark-json FILE`` for the raw ones with the machine's description.

Every round times every variant once, in an order that is drawn anew, so that what else runs on the machine hits
all of them alike. Ratios are medians over rounds of the ratio within a round; the bracket is the middle half of them. A
parameter list in the shapes of GPT-2 (6 layers of width 384, vocabulary 50,304: 30 M parameters, float32) is larger than the
caches, so that memory traffic is the limit: what a rule adds is compared with the bytes that it has to move, at the
speed of a plain copy in the same rounds.
"""

from __future__ import annotations

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

import halflife
from halflife.optim import arrival
from halflife.optim.actions import kernels
from halflife.optim.attaching import handle_of
from halflife.optim.norms import squared_norms

WIDTH, LAYERS, VOCABULARY, CONTEXT = 384, 6, 50_304, 1024
LR = 1e-3

Step = Callable[[], object]


def shapes() -> list[tuple[int, ...]]:
    """The shapes of a GPT-2 with biases, embeddings tied."""
    layer: list[tuple[int, ...]] = [(WIDTH,), (WIDTH,), (3 * WIDTH, WIDTH), (3 * WIDTH,), (WIDTH, WIDTH), (WIDTH,)]
    layer += [(WIDTH,), (WIDTH,), (4 * WIDTH, WIDTH), (4 * WIDTH,), (WIDTH, 4 * WIDTH), (WIDTH,)]
    return [(VOCABULARY, WIDTH), (CONTEXT, WIDTH), *(layer * LAYERS), (WIDTH,), (WIDTH,)]


def parameters() -> list[torch.nn.Parameter]:
    """Parameters with gradients, both small enough that nothing overflows in thousands of steps."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes()]
    for parameter in made:
        parameter.grad = torch.randn(parameter.shape, generator=generator) * 1e-3
    return made


def groups() -> list[dict[str, Any]]:
    """The usual two groups: what has two dimensions decays."""
    made = parameters()
    return [
        {"params": [p for p in made if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in made if p.ndim < 2], "weight_decay": 0.0},
    ]


def decaying_bytes() -> int:
    """Bytes of the weights that decay."""
    return sum(4 * torch.Size(shape).numel() for shape in shapes() if len(shape) >= 2)


def attached(base: torch.optim.Optimizer, rule: Any = None) -> torch.optim.Optimizer:
    """Another optimizer on the same parameters, with the same state, under a rule.

    All variants work on the same memory: where a tensor happens to lie changes a step by several percent.
    """
    twin = type(base)([dict(group) for group in base.param_groups])
    twin.state = base.state
    if rule is not None:
        halflife.attach(twin, rule, peak_lr=LR)
    return twin


def fused_adamw() -> torch.optim.Optimizer:
    """An AdamW that has taken a step."""
    optimizer = torch.optim.AdamW(groups(), lr=LR, fused=True)
    optimizer.step()
    return optimizer


def blinded(step: Step) -> None:
    """Take a step in which the sign of the update is not known beforehand, as on an optimizer that is not torch's."""
    with mock.patch("halflife.optim.actions.cautious.direction_of", return_value=None):
        step()


def uncompiled(step: Step) -> None:
    """Take a step as without a compiler."""
    with mock.patch("halflife.optim.actions.cautious.LEAST_IN_ALL", sys.maxsize):
        step()


class PythonAdamS:
    """AdamS as it is usually written: tensor by tensor, the second moment summed at every step (arXiv 2011.11152)."""

    def __init__(self, decay: float) -> None:
        self.groups, self.decay, self.step_count = groups(), decay, 0
        self.state = {p: (torch.zeros_like(p), torch.zeros_like(p)) for group in self.groups for p in group["params"]}

    @torch.no_grad()
    def step(self) -> None:
        """One step with betas 0.9 and 0.999."""
        self.step_count += 1
        first, second = 1 - 0.9**self.step_count, 1 - 0.999**self.step_count
        total, count = 0.0, 0
        for parameter, (_, square) in self.state.items():
            assert parameter.grad is not None
            square.mul_(0.999).addcmul_(parameter.grad, parameter.grad, value=0.001)
            total += square.sum().item() / second
            count += parameter.numel()
        fraction = LR * self.decay / (total / count) ** 0.5
        for group in self.groups:
            for parameter in group["params"]:
                mean, square = self.state[parameter]
                if group["weight_decay"]:
                    parameter.mul_(1 - fraction)
                mean.mul_(0.9).add_(parameter.grad, alpha=0.1)
                parameter.addcdiv_(mean, (square.sqrt() / second**0.5).add_(1e-8), value=-LR / first)


def alternate(variants: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Time every variant once per round, in random order; the first two rounds warm up."""
    order = list(variants)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in variants}
    for turn in range(rounds + 2):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            variants[name]()
            took = time.perf_counter() - start
            if turn >= 2:
                times[name].append(took)
    return times


class Ratio:
    """A ratio of times: median, and the middle half, over rounds."""

    def __init__(self, above: list[float], below: list[float]) -> None:
        values = sorted(a / b for a, b in zip(above, below, strict=True))
        self.median = statistics.median(values)
        self.low, _, self.high = statistics.quantiles(values, n=4)

    def __str__(self) -> str:
        return f"{self.median:6.3f} [{self.low:.3f}, {self.high:.3f}]"


def run(benchmark: Any, variants: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Let pytest-benchmark time the whole, and keep the parts beside it."""
    times: dict[str, list[float]] = {}
    benchmark.pedantic(lambda: times.update(alternate(variants, rounds)), rounds=1, iterations=1)
    benchmark.extra_info["seconds"] = {name: statistics.median(each) for name, each in times.items()}
    return times


def plus(one: list[float], other: list[float]) -> list[float]:
    """Sums within rounds."""
    return [a + b for a, b in zip(one, other, strict=True)]


def minus(one: list[float], other: list[float]) -> list[float]:
    """Differences within rounds."""
    return [a - b for a, b in zip(one, other, strict=True)]


def show(title: str, lines: list[tuple[str, object, str]]) -> None:
    """Print a small table."""
    print(f"\n\n{title}")
    for name, value, note in lines:
        print(f"  {name:<44} {value!s:<24} {note}")


NATIVE = {
    "Decoupled": halflife.Decoupled(0.1),
    "Independent": halflife.Independent(1e-4),
    "Constant": halflife.Constant(1e-4),
    "Corrected": halflife.Corrected(0.1),
    "HalfLife": halflife.HalfLife(steps=10_000),
    "Scheduled cosine": halflife.Scheduled(halflife.Decoupled(0.1), halflife.schedules.cosine(1.0, 0.1, 10_000)),
}


def test_rules_that_use_the_optimizers_own_decay(benchmark: Any, rounds: int) -> None:
    """Aim: at most 1.01 x the bare fused step."""
    base = fused_adamw()
    variants: dict[str, Step] = {"bare": base.step, "bare again": attached(base).step}
    variants |= {name: attached(base, rule).step for name, rule in NATIVE.items()}
    times = run(benchmark, variants, rounds)
    lines: list[tuple[str, object, str]] = [
        ("bare fused AdamW", f"{statistics.median(times['bare']) * 1e3:.2f} ms", "")
    ]
    for name in [*NATIVE, "bare again"]:
        lines.append(
            (
                f"{name} / bare",
                Ratio(times[name], times["bare"]),
                "noise of this run" if "bare" in name else "aim <= 1.01",
            )
        )
    show("Rules through the optimizer's own decay", lines)


class Unknown(torch.optim.AdamW):
    """A class that halflife does not know: its first steps are looked at."""


def test_the_look_at_the_first_steps(benchmark: Any, rounds: int) -> None:
    """Aim: at most 1.01 x the own pass without it, once it is over; and what it takes in all."""
    base = Unknown(groups(), lr=LR, fused=True)
    base.step()
    without = attached(base, halflife.Decoupled(0.1))
    handle = handle_of(without)
    assert handle is not None
    handle._attachments[0]._arrival.stop()
    after = attached(base, halflife.Decoupled(0.1))
    for _ in range(arrival.CALLS):
        after.step()
    variants: dict[str, Step] = {"bare": base.step, "without": without.step, "after": after.step}
    times = run(benchmark, variants, rounds)
    bare, added = statistics.median(times["without"]), []
    for _ in range(5):
        fresh = attached(base, halflife.Decoupled(0.1))
        start = time.perf_counter()
        for _ in range(arrival.CALLS):
            fresh.step()
        added.append((time.perf_counter() - start) / bare - arrival.CALLS)
    show(
        "The look at the first steps of an optimizer that is not torch's own, with the own pass",
        [
            ("without it", f"{bare * 1e3:.2f} ms", ""),
            ("once it is over / without", Ratio(times["after"], times["without"]), "aim <= 1.01"),
            (
                "all that it takes, in steps",
                f"{statistics.median(added):.2f}",
                f"within the first {arrival.CALLS} steps",
            ),
        ],
    )


def test_stable(benchmark: Any, rounds: int) -> None:
    """Aims: 1.05 x (bare + one gradient norm); 1.02 x bare with the norm handed over; 0.7 x a Python AdamS."""
    bare = fused_adamw()
    stable, handed = attached(bare, halflife.Stable(1e-4)), attached(bare)
    handle = halflife.attach(handed, halflife.Stable(1e-4))
    gradients: list[Tensor] = [p.grad for group in bare.param_groups for p in group["params"]]
    norm = torch.stack(torch._foreach_norm(gradients)).norm()

    def step_with_norm() -> None:
        handle.hand_over_norm(norm)
        handed.step()

    variants: dict[str, Step] = {
        "bare": bare.step,
        "norm": lambda: torch.nn.utils.get_total_norm(gradients),
        "our norms": lambda: squared_norms(gradients),
        "stable": stable.step,
        "handed": step_with_norm,
        "python": PythonAdamS(1e-4).step,
    }
    times = run(benchmark, variants, rounds)
    both = plus(times["bare"], times["norm"])
    show(
        "Stable (AdamS) on fused AdamW",
        [
            ("bare fused AdamW", f"{statistics.median(times['bare']) * 1e3:.2f} ms", ""),
            ("torch's total norm / bare", Ratio(times["norm"], times["bare"]), ""),
            ("our squared norms / bare", Ratio(times["our norms"], times["bare"]), ""),
            ("Stable / bare", Ratio(times["stable"], times["bare"]), ""),
            ("Stable / (bare + norm)", Ratio(times["stable"], both), "aim <= 1.05"),
            ("Stable, norm handed over / bare", Ratio(times["handed"], times["bare"]), "aim <= 1.02"),
            ("Stable / AdamS in Python", Ratio(times["stable"], times["python"]), "aim <= 0.7"),
        ],
    )


def test_rules_with_a_pass_of_their_own(benchmark: Any, rounds: int) -> None:
    """Aim: what a rule adds takes at most 1.1 x the time of its bytes at the speed of a plain copy."""
    weights = decaying_bytes()
    source, target, other = torch.ones(weights // 4), torch.empty(weights // 4), torch.ones(weights // 4)
    cautious = halflife.Cautious(halflife.Decoupled(0.1))
    # Bytes per byte of decaying weight, each array read or written once: see the docstrings of the rules.
    rules = {
        "Decoupled, own pass": (halflife.Decoupled(0.1), 2),  # w: read, write
        "L2 into the gradient": (halflife.L2(0.1), 3),  # w, g: read; g: write
        "Toward init": (halflife.Toward(halflife.Decoupled(0.1), "init"), 3),  # w, reference: read; w: write
        "NormTarget": (halflife.NormTarget(), 3),  # w: read for the norm; read, write
        "Sphere": (halflife.Sphere(), 3),
        "Cautious": (cautious, 4),  # w, g, exp_avg: read; w: write
        "Cautious, no compiler": (cautious, 4),
        "Cautious, any optimizer": (cautious, 5),  # w: read, copied; both read, w written
        "Cautious, any optimizer, no compiler": (cautious, 5),
    }
    base = torch.optim.Adam(groups(), lr=LR, fused=True)  # its own decay goes through the gradient: no rule can use it
    base.step()
    bare = attached(base)
    for group in bare.param_groups:
        group["weight_decay"] = 0.0
    variants: dict[str, Step] = {
        "bare": bare.step,
        "copy": lambda: target.copy_(source),
        "product": lambda: source.mul_(1.0),
        "addcmul": lambda: source.addcmul_(target, other, value=0.0),
    }
    for name, (rule, _) in rules.items():
        step: Step = attached(base, rule).step
        if "any" in name:
            step = partial(blinded, step)
        variants[name] = partial(uncompiled, step) if "no compiler" in name else step
    times = run(benchmark, variants, rounds)
    copy, product, addcmul = (statistics.median(times[name]) for name in ("copy", "product", "addcmul"))
    lines: list[tuple[str, object, str]] = [
        ("bare fused Adam", f"{statistics.median(times['bare']) * 1e3:.2f} ms", ""),
        ("plain copy of the decaying weights", f"{copy * 1e3:.2f} ms", f"{2 * weights / copy / 1e9:.1f} GB/s"),
        ("plain product in place", f"{product * 1e3:.2f} ms", f"{2 * weights / product / 1e9:.1f} GB/s"),
        (
            "plain addcmul of other arrays in place",
            f"{addcmul * 1e3:.2f} ms",
            f"{4 * weights / addcmul / 1e9:.1f} GB/s",
        ),
    ]
    for name, (_, traffic) in rules.items():
        added = minus(times[name], times["bare"])
        limit = [traffic / 2 * each for each in times["copy"]]
        speed = traffic * weights / statistics.median(added) / 1e9
        note = f"aim <= 1.1; {traffic * weights / 1e6:.0f} MB at {speed:.1f} GB/s; step {Ratio(times[name], times['bare'])} x"
        lines.append((f"{name}: added / its bytes", Ratio(added, limit), note))
    show("Rules with a pass of their own, on fused Adam", lines)
    print("\n".join(f"  {line}" for line in kernels.report()))


TINY = 100_000


def test_many_tiny_parameters(benchmark: Any, rounds: int, request: pytest.FixtureRequest) -> None:
    """What a rule costs per parameter, where there is hardly any memory to move: 100,000 of one element each."""
    count = TINY // 10 if request.config.getoption("--quick") else TINY
    made = [torch.nn.Parameter(torch.ones(1)) for _ in range(count)]
    for parameter in made:
        parameter.grad = torch.full((1,), 1e-3)
    base = torch.optim.Adam(made, lr=LR, weight_decay=0.1, fused=True)
    base.step()
    rules = {
        "Decoupled, own pass": halflife.Decoupled(0.1),
        "Stable": halflife.Stable(1e-4),
        "NormTarget": halflife.NormTarget(),
        "Toward init": halflife.Toward(halflife.Decoupled(0.1), "init"),
        "Cautious": halflife.Cautious(halflife.Decoupled(0.1)),
    }
    native = torch.optim.AdamW(made, lr=LR, weight_decay=0.1, fused=True)
    native.state = base.state
    variants: dict[str, Step] = {"bare Adam": base.step, "bare AdamW": native.step}
    variants["Decoupled, native"] = attached(native, halflife.Decoupled(0.1)).step
    variants |= {name: attached(base, rule).step for name, rule in rules.items()}
    times = run(benchmark, variants, max(5, rounds // 10))
    lines: list[tuple[str, object, str]] = []
    for name in variants:
        bare = times["bare AdamW" if name == "Decoupled, native" else "bare Adam"]
        added = statistics.median(minus(times[name], bare)) / count * 1e6
        note = f"{statistics.median(times[name]) * 1e3:.0f} ms; {added:.2f} us more per parameter"
        lines.append((f"{name} / bare", Ratio(times[name], bare), note))
    show(f"{count:,} parameters of one element", lines)


def test_how_long_a_start_takes(benchmark: Any, rounds: int) -> None:
    """Of a process that imports halflife, without torch, and of a command that trains nothing."""
    python = [sys.executable, "-c"]
    commands = {
        "Python alone": [*python, "pass"],
        "import halflife": [*python, "import halflife"],
        "halflife study list": [sys.executable, "-m", "halflife", "study", "list"],
        "import torch": [*python, "import torch"],
    }
    starts: dict[str, Step] = {
        name: partial(subprocess.run, command, check=True, capture_output=True) for name, command in commands.items()
    }
    times = run(benchmark, starts, max(3, rounds // 6))
    show("A new process", [(name, f"{statistics.median(each) * 1e3:.0f} ms", "") for name, each in times.items()])


if __name__ == "__main__":
    millions = sum(torch.Size(shape).numel() for shape in shapes()) / 1e6
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {millions:.1f} M parameters")
    sys.exit(
        pytest.main(
            [__file__, "-q", "-s", "-p", "no:cacheprovider", "-o", "addopts=", "-o", "timeout=0", *sys.argv[1:]]
        )
    )
