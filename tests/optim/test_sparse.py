"""Sparse gradients: the decay acts on the whole dense weight, on every optimizer that takes them at all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adagrad, Optimizer, SparseAdam

from halflife.optim.attaching import attach
from halflife.rules import Cautious, Constant, Decoupled, Scheduled
from halflife.schedules import until

pytestmark = pytest.mark.filterwarnings("ignore:Sparse invariant checks:UserWarning")  # torch's own, of Adagrad

LAM, LR = 0.5, 0.25
ROWS = [torch.tensor([1]), torch.tensor([3, 0, 3]), torch.tensor([2])]

OPTIMIZERS: list[tuple[Callable[..., Optimizer], dict[str, Any]]] = [
    (SGD, {}),
    (SGD, {"momentum": 0.5}),
    (SGD, {"dampening": 0.5}),
    (Adagrad, {}),
    (SparseAdam, {}),
]
IDS = ["sgd", "momentum", "dampening", "adagrad", "sparse adam"]


def table() -> nn.Embedding:
    generator = torch.Generator().manual_seed(0)
    made = nn.Embedding(4, 3, sparse=True)
    with torch.no_grad():
        made.weight.copy_(torch.randn(4, 3, generator=generator))
    return made


def train(made: nn.Embedding, optimizer: Optimizer, shrink: Callable[[Tensor, int], None]) -> Tensor:
    """Take the three steps; ``shrink`` acts between gradient and update."""
    for step, rows in enumerate(ROWS):
        optimizer.zero_grad()
        made(rows).square().sum().backward()
        shrink(made.weight, step)
        optimizer.step()
    return made.weight.detach()


@pytest.mark.parametrize("own", [0.1, 0.0], ids=["weight_decay=0.1", "weight_decay=0"])
@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=IDS)
def test_every_row_decays_at_every_step(kind: Callable[..., Optimizer], settings: dict[str, Any], own: float) -> None:
    """Compared with a multiplication by hand beside the optimizer without decay; torch's own refuses sparse gradients."""
    ruled, bare = table(), table()
    keys = {} if kind is SparseAdam else {"weight_decay": own}
    optimizer = kind(ruled.parameters(), lr=LR, **settings, **keys)
    handle = attach(optimizer, Scheduled(Decoupled(LAM), until(2)), select="all")

    @torch.no_grad()
    def shrink(weight: Tensor, step: int) -> None:
        if step < 2:
            weight.mul_(1 - LR * LAM)

    expected = train(bare, kind(bare.parameters(), lr=LR, **settings), shrink)
    found = train(ruled, optimizer, lambda weight, step: None)
    torch.testing.assert_close(found, expected)
    assert handle.fractions() == [0.0]
    for group in optimizer.param_groups:
        assert group.get("weight_decay", own) == own


def test_dense_and_sparse_gradients_in_one_group_and_a_group_that_changes() -> None:
    """Which pass a group takes is decided at every step, by the gradients of that step."""
    sparse, dense = nn.Parameter(torch.ones(4, 3)), nn.Parameter(torch.ones(2))
    optimizer = SGD([sparse, dense], lr=LR, weight_decay=0.1)
    attach(optimizer, Constant(0.5))
    for given in (torch.zeros(4, 3), torch.zeros(4, 3).to_sparse(), torch.zeros(4, 3)):
        sparse.grad, dense.grad = given, torch.zeros(2)
        optimizer.step()
    assert torch.equal(sparse.detach(), torch.full((4, 3), 0.125))
    assert torch.equal(dense.detach(), torch.full((2,), 0.125))


@pytest.mark.parametrize(("kind", "settings"), OPTIMIZERS, ids=IDS)
def test_cautious_takes_rows_that_do_not_move_for_agreeing(
    kind: Callable[..., Optimizer], settings: dict[str, Any]
) -> None:
    """The update of a row without a gradient is 0, and 0 agrees; momentum moves it on."""
    ruled, bare = table(), table()
    start = bare.weight.detach().clone()
    optimizer = kind(ruled.parameters(), lr=LR, **settings)
    attach(optimizer, Cautious(Constant(0.5)), select="all")
    for made, each in ((ruled, optimizer), (bare, kind(bare.parameters(), lr=LR, **settings))):
        made(torch.tensor([1])).square().sum().backward()
        each.step()
    moved = bare.weight.detach()
    expected = torch.where((start - moved) * start >= 0, moved - 0.5 * start, moved)
    torch.testing.assert_close(ruled.weight.detach(), expected)
