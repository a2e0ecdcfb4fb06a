"""torch.compile(optimizer.step) under every rule: how many graphs it costs, and that the numbers are eager's."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tests.oracles.every_rule import CASES, LAM, Case, name_of

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")

# Their fraction is 0 from step 5 or 6 on, and torch's optimizers branch at weight_decay == 0: one graph more.
REACH_ZERO = {"until", "per-group-stable", "stable-at-the-floor-until"}
# Each has a near relative that is not slow: the same rule without "own", "first", or with another schedule or target.
SLOW = {
    *("decoupled-own", "corrected-own", "cautious-corrected-own", "l2-own-after", "half-life-epochs", "cosine"),
    *("normalized-restarts", "stable-at-the-floor-until", "norm-target-first", "sphere-first", "spheres"),
    *(
        "toward-given-tensors",
        "toward-a-checkpoint",
        "toward-an-average-sgd",
        "decoupled-sgd",
        "normalized",
        "half-life-steps",
    ),
    *("stable-with-a-given-beta2", "l2-own-after-sgd", "norm-target"),
}
STEADY, STEPS = 8, 12  # steps at one learning rate, and in all
SHAPES = {"matrix": (3, 2), "vector": (2,)}


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def train(case: Case, *, attached: bool, compiled: bool, **settings: bool) -> tuple[list[Tensor], list[int]]:
    """Take steps, the last of them at learning rates that fall; return weights, and the graphs after each step."""
    generator = torch.Generator().manual_seed(0)
    named = {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in SHAPES.items()}
    parameters = list(named.values())
    groups = [{"params": [pair], "weight_decay": LAM} for pair in named.items()]
    optimizer = case.optimizer(groups, **settings)
    if attached:
        case.attach(optimizer)
    counter = CompileCounter()
    step = torch.compile(optimizer.step, backend=counter) if compiled else optimizer.step
    graphs = []
    for number in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 / (1 + max(0, number - STEADY + 1))
        for parameter in parameters:
            parameter.grad = 0.7 * (parameter.detach() + 0.4)
        step()
        optimizer.state_dict()  # a checkpoint costs no graph
        graphs.append(counter.frame_count)
    return [parameter.detach() for parameter in parameters], graphs


@cache
def graphs_without_a_rule(sgd: bool) -> tuple[int, int]:
    """After the first steps, and after all."""
    case = next(case for case in CASES if case.sgd is sgd)
    _, graphs = train(case, attached=False, compiled=True)
    torch._dynamo.reset()
    return graphs[STEADY - 1], graphs[-1]


@pytest.mark.parametrize(
    "case", [pytest.param(each, marks=[pytest.mark.slow] if each.name in SLOW else []) for each in CASES], ids=name_of
)
def test_graphs_and_numbers(case: Case) -> None:
    """At a steady learning rate a rule's own number may cost one graph, and a second where it becomes 0."""
    steady, falling = graphs_without_a_rule(case.sgd)
    values, graphs = train(case, attached=True, compiled=True)
    expected, _ = train(case, attached=True, compiled=False)
    for ours, theirs in zip(values, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    more = 2 if case.name in REACH_ZERO else 1
    assert 0 < graphs[STEADY - 1] <= steady + more
    assert graphs[-1] <= falling + more
