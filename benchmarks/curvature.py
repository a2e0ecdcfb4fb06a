"""What the trace of a Hessian costs, beside PyHessian, and what a product with the Hessian costs, beside a gradient.

Run it with ``make bench``, or ``python benchmarks/curvature.py``; ``--rounds N`` for more rounds, ``--figure FILE`` to
draw the cost against weights, examples and vectors. PyHessian 0.1 asks for torchvision and uses it nowhere:
``pip install --no-deps PyHessian==0.1``. Without it its rows are left out.

The net is the ResNet of the `laptop` stabilization study (width 8, 19,714 weights), trained here for a few epochs on the
shipped images; loss and data are the same for all, in one batch, so that PyHessian can reuse its graph. PyHessian takes
as many products as Hutchinson's estimator needs for a standard error of 5 %, from the spread of its own samples; ours
take as few as their own spread allows. What each really deviates by, over repetitions, is printed beside: in this net
outputs are linear in every single weight, so the Hessian has the trace of the Gauss-Newton matrix, which is known
exactly. Every round times every variant once, in an order that is drawn anew; ratios are medians of the ratios within
rounds, and the bracket is their middle half. One thread.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from halflife import probes
from halflife.probes import Problem
from halflife.probes.operators import matrix_product, random_vectors
from halflife.studies.lab.images.data import Images, image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source

ACCURACY = 0.05
NUM_EXAMPLES = 250
NUM_EPOCHS = 5
LR, LAM, BATCH = 0.1, 0.0, 50
LOSS = nn.CrossEntropyLoss()
# A standard error from fewer samples would be no more than a guess.
LEAST_VECTORS = 4

Step = Callable[[], Any]


def trained(width: int, train: Images, num_epochs: int) -> nn.Module:
    """A ResNet as in the `laptop` preset."""
    net = build_model("resnet", width=width, blocks=(1, 1, 1), in_channels=1, num_classes=10, seed=0)
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=LR, weight_decay=LAM)
    for epoch in range(num_epochs):
        for x, y in shuffled_batches(train, BATCH, seed=0, epoch=epoch):
            optimizer.zero_grad()
            LOSS(net(x), y).backward()
            optimizer.step()
    return net


def problem_of(net: nn.Module, train: Images, num_examples: int) -> Problem:
    """The net on the first images, in one batch."""
    batch = (train.x_NCHW[:num_examples], train.y_N[:num_examples])
    return Problem(net, LOSS, [batch], batch_norm="eval")


def gradient(problem: Problem) -> None:
    """One plain gradient, forward pass included."""
    with problem.measuring():
        for x, y in problem.batches:
            torch.autograd.grad(LOSS(problem.model(x), y), problem.parameters)


def products(problem: Problem, count: int) -> None:
    """So many Hessian-vector products."""
    with problem.measuring():
        matrix_product(problem, "hessian")(random_vectors(problem, count, 0))


def by_pyhessian(pyhessian: Any, problem: Problem, count: int) -> list[float]:
    """PyHessian's samples of the trace, so many (tol=0: it stops when two means agree, which is no standard error)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        of_net = pyhessian.hessian(problem.model, LOSS, data=next(iter(problem.batches)), cuda=False)
        samples = [float(s) for s in of_net.trace(maxIter=count, tol=0.0)]
    # Its backward pass with create_graph leaves a cycle of graph and gradients behind.
    problem.model.zero_grad(set_to_none=True)
    return samples


def alternate(
    variants: dict[str, Callable[[int], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[Any]]]:
    """Time every variant once per round, in random order; the first round warms up."""
    order = list(variants)
    shuffle = random.Random(0).shuffle
    times: dict[str, list[float]] = {name: [] for name in variants}
    results: dict[str, list[Any]] = {name: [] for name in variants}
    for turn in range(rounds + 1):
        shuffle(order)
        for name in order:
            start = time.perf_counter()
            result = variants[name](turn)
            took = time.perf_counter() - start
            if turn:
                times[name].append(took)
                results[name].append(result)
    return times, results


def ratio(above: list[float], below: list[float]) -> str:
    """A ratio of times: median and middle half over rounds."""
    values = [a / b for a, b in zip(above, below, strict=True)]
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:6.2f} [{low:.2f}, {high:.2f}]"


def rms(values: list[float]) -> float:
    """Root of the mean square."""
    return math.sqrt(statistics.fmean(v * v for v in values))


def show(title: str, lines: list[tuple[str, str, str]]) -> None:
    """Print a small table."""
    print(f"\n{title}")
    for name, value, note in lines:
        print(f"  {name:<46} {value:<24} {note}")


def vectors_needed(relative_spread: float) -> int:
    """Samples whose mean has the wanted standard error."""
    return max(LEAST_VECTORS, math.ceil((relative_spread / ACCURACY) ** 2))


def compare(problem: Problem, rounds: int, repetitions: int) -> None:
    """The trace to a standard error of 5 %, ours and PyHessian's, and a product beside a gradient."""
    exact = probes.gauss_newton_trace(problem, method="exact").value
    # Pilot runs, untimed: the spread of a sample.
    pilot = {name: probes.hessian_trace(problem, num_products=64, method=name, seed=10_001) for name in ("split",)}
    split_spread = pilot["split"].standard_error * math.sqrt(32) / exact
    hutchinson = probes.hessian_trace(problem, num_products=64, method="hutchinson", seed=10_002)
    theirs = vectors_needed(hutchinson.standard_error * math.sqrt(64) / exact)
    ours = 2 * vectors_needed(split_spread)
    xtrace = 24
    variants: dict[str, Callable[[int], Any]] = {
        "gradient": lambda _: gradient(problem),
        "product": lambda _: products(problem, 1),
        "products": lambda _: products(problem, 12),
        "split": lambda turn: probes.hessian_trace(problem, num_products=ours, method="split", seed=turn),
        "xtrace": lambda turn: probes.hessian_trace(problem, num_products=xtrace, seed=turn),
        "exact": lambda _: probes.gauss_newton_trace(problem, method="exact"),
    }
    try:
        import pyhessian
    except ImportError:
        print("PyHessian is not installed: pip install --no-deps PyHessian==0.1")
    else:
        variants["pyhessian"] = lambda _: by_pyhessian(pyhessian, problem, theirs)
    times, results = alternate(variants, rounds)
    per_twelve = [each / 12 for each in times["products"]]
    show(
        f"Products with the Hessian, {problem.num_parameters:,} weights, {problem.num_examples} images",
        [
            ("one gradient", f"{statistics.median(times['gradient']) * 1e3:.1f} ms", ""),
            ("one product of twelve / one gradient", ratio(per_twelve, times["gradient"]), "aim <= 3"),
            ("one product alone / one gradient", ratio(times["product"], times["gradient"]), "builds its own graph"),
        ],
    )
    found: dict[str, list[tuple[float, float]]] = {
        name: [(e.value / exact - 1, e.standard_error / exact) for e in results[name]] for name in ("split", "xtrace")
    }
    for turn in range(rounds + 1, repetitions + 1):
        for name, pairs in found.items():
            e = variants[name](turn)
            pairs.append((e.value / exact - 1, e.standard_error / exact))
    if "pyhessian" in results:
        found["pyhessian"] = [
            (statistics.fmean(s) / exact - 1, statistics.stdev(s) / math.sqrt(len(s)) / exact)
            for s in results["pyhessian"]
        ]
    counts = {
        "split": f"{ours // 2} vectors and the exact part",
        "xtrace": f"{xtrace} products",
        "pyhessian": f"{theirs} products",
    }
    show(
        f"Trace of the Hessian ({exact:.1f}): deviation from the exact one, over repetitions",
        [
            (
                f"{name}, {counts[name]}",
                f"{100 * rms([off for off, _ in pairs]):.1f} %",
                f"says {100 * rms([said for _, said in pairs]):.1f} %, {len(pairs)} repetitions",
            )
            for name, pairs in found.items()
        ],
    )
    lines = [(f"{name}", f"{statistics.median(times[name]) * 1e3:.0f} ms", counts[name]) for name in found]
    lines.append(
        ("exact, by way of the Gauss-Newton matrix", f"{statistics.median(times['exact']) * 1e3:.0f} ms", "no error")
    )
    if "pyhessian" in times:
        lines += [
            ("PyHessian / split", ratio(times["pyhessian"], times["split"]), "any net of few outputs"),
            ("PyHessian / xtrace", ratio(times["pyhessian"], times["xtrace"]), "xtrace is more exact: see above"),
            (
                "PyHessian / exact",
                ratio(times["pyhessian"], times["exact"]),
                "aim >= 5; no error, nets of ReLU without batch statistics",
            ),
        ]
        # Hutchinson's error falls with the root of the time: what PyHessian would take for xtrace's own deviation.
        scale = (rms([off for off, _ in found["pyhessian"]]) / rms([off for off, _ in found["xtrace"]])) ** 2
        matched = [each * scale for each in times["pyhessian"]]
        lines.append(("PyHessian / xtrace, at xtrace's deviation", ratio(matched, times["xtrace"]), "scaled"))
    show("Wall time to a standard error of 5 %", lines)


def scaling(train: Images, net: nn.Module, figure: str | None) -> None:
    """Cost of products against weights, examples and vectors; each the least of three."""

    def cost(problem: Problem, count: int) -> float:
        took = []
        for _ in range(3):
            start = time.perf_counter()
            products(problem, count)
            took.append(time.perf_counter() - start)
        return min(took)

    rows: list[dict[str, Any]] = []
    for width in (4, 8, 16, 32):
        of_width = net if width == 8 else trained(width, train, 0)
        problem = problem_of(of_width, train, 100)
        rows.append({"against": "weights", "x": problem.num_parameters, "seconds": cost(problem, 4)})
    for count in (50, 100, 200, 400, 800):
        rows.append({"against": "examples", "x": count, "seconds": cost(problem_of(net, train, count), 4)})
    for count in (1, 2, 4, 8, 16, 32):
        rows.append({"against": "vectors", "x": count, "seconds": cost(problem_of(net, train, 100), count)})
    show(
        "Cost of Hessian-vector products (100 images, 4 vectors and 19,714 weights unless it says otherwise)",
        [(f"{row['x']:,} {row['against']}", f"{row['seconds'] * 1e3:.0f} ms", "") for row in rows],
    )
    if figure is not None:
        import altair as alt
        import polars as pl

        base = alt.Chart(pl.DataFrame(rows)).mark_line(point=True)
        panels = [
            base.transform_filter(alt.datum.against == against)
            .encode(
                x=alt.X("x:Q", title=against, scale=alt.Scale(type="log")),
                y=alt.Y("seconds:Q", title="seconds" if against == "weights" else "", scale=alt.Scale(type="log")),
            )
            .properties(width=190, height=170)
            for against in ("weights", "examples", "vectors")
        ]
        alt.hconcat(*panels).resolve_scale(y="shared").save(Path(figure))
        print(f"\n{figure} is drawn")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="What curvature costs.")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of the comparison, at least 2")
    parser.add_argument("--repetitions", type=int, default=20, help="repetitions for the deviations of ours")
    parser.add_argument("--figure", help="an .svg to draw the cost in")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    train, _ = image_tensors(
        read_source("fashion-mnist-5k"), num_train=None, num_test=None, downsample=2, device=torch.device("cpu")
    )
    net = trained(8, train, NUM_EPOCHS)
    print(f"torch {torch.__version__}, one thread; {NUM_EPOCHS} epochs at lr {LR}")
    compare(problem_of(net, train, NUM_EXAMPLES), arguments.rounds, arguments.repetitions)
    scaling(train, net, arguments.figure)


if __name__ == "__main__":
    main()
