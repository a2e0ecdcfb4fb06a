"""Counting lost updates: against a loop over single numbers, on every optimizer that a step can be asked of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife.divergence import expected_lost_share
from halflife.errors import UserError
from halflife.precision import lost_updates

Make = Callable[[list[Any]], Any]


def weights(dtype: torch.dtype) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(3)
    shapes: list[tuple[int, ...]] = [(40, 30), (50,), (), (0,), (7, 3)]
    made = [nn.Parameter(torch.randn(shape, generator=draws).to(dtype)) for shape in shapes]
    for each in made[:4]:
        each.grad = torch.randn(each.shape, generator=draws).to(dtype)
    made[0].grad[::2] = 0.0  # type: ignore[index]  # rows that no example asked for
    return made  # the last one has no gradient


def by_hand(before: list[Tensor], after: list[Tensor], gradients: list[Tensor | None]) -> tuple[int, int]:
    num, lost = 0, 0
    for old, new, gradient in zip(before, after, gradients, strict=True):
        if gradient is None:
            continue
        for a, b, g in zip(old.flatten().tolist(), new.flatten().tolist(), gradient.flatten().tolist(), strict=True):
            num += g != 0.0
            lost += g != 0.0 and a == b
    return num, lost


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(
    "make",
    [
        lambda params: torch.optim.SGD(params, lr=3e-3, momentum=0.9),
        lambda params: torch.optim.AdamW(params, lr=1e-3, weight_decay=0.1, fused=True),
        lambda params: torch.optim.Adam(
            [{"params": params[:2]}, {"params": params[2:], "lr": 1e-2}], lr=1e-4, foreach=True
        ),
    ],
    ids=["sgd", "adamw", "groups"],
)
def test_the_count_is_that_of_a_loop(make: Make, dtype: torch.dtype) -> None:
    params = weights(dtype)
    optimizer = make(params)
    for _ in range(2):
        before = [each.detach().clone() for each in params]
        with lost_updates(optimizer) as lost:
            optimizer.step()
        expected = by_hand(before, params, [each.grad for each in params])  # type: ignore[arg-type]
        assert (lost.num_weights, lost.num_lost) == expected
        assert lost.num_weights == 20 * 30 + 50 + 1
        assert lost.share == expected[1] / expected[0]
        assert 0 < lost.num_lost < lost.num_weights or dtype == torch.float32
        assert f"{expected[0]:,} updates" in str(lost)


def test_rows_of_a_sparse_gradient() -> None:
    embedding = nn.Embedding(10, 4, sparse=True)
    embedding(torch.tensor([1, 1, 7])).sum().backward()
    optimizer: Any = torch.optim.SparseAdam(embedding.parameters(), lr=0.1)
    with lost_updates(optimizer) as lost:
        optimizer.step()
    assert (lost.num_weights, lost.num_lost) == (8, 0)


def test_what_is_asked_too_early_or_of_nothing() -> None:
    (weight,) = params = [nn.Parameter(torch.ones(3))]
    optimizer = torch.optim.SGD(params, lr=0.1)
    with lost_updates(optimizer) as lost:
        with pytest.raises(UserError, match="read what it saw after its with block"):
            _ = lost.share
        optimizer.step()
    assert lost.num_weights == 0
    assert math.isnan(lost.share)
    with pytest.raises(UserError, match="takes an optimizer with param_groups, got"), lost_updates(params):
        pass
    weight.grad = torch.full_like(weight, 1e-12)
    with pytest.raises(RuntimeError, match="stop"), lost_updates(optimizer) as lost:
        raise RuntimeError("stop")
    with pytest.raises(UserError):
        _ = lost.num_lost


@pytest.mark.parametrize(
    ("ratio", "bits", "message"),
    [
        (0.0, 7, "ratio"),
        (math.nan, 7, "ratio"),
        (0.1, 0, "bits must be an integer"),
        (0.1, 24, "bits"),
        (0.1, 7.5, "bits"),
    ],
)
def test_bad_arguments_of_the_formula(ratio: float, bits: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        expected_lost_share(ratio, bits)


def test_the_formula_at_its_ends() -> None:
    assert expected_lost_share(1e-12, 7) == 1.0
    assert expected_lost_share(1e12, 7) < 1e-12
    assert expected_lost_share(0.01, 7) > expected_lost_share(0.01, 8) > expected_lost_share(0.02, 8)
    assert expected_lost_share(0.02, 7) == pytest.approx(
        expected_lost_share(0.01, 8), rel=1e-12
    )  # a bit is a factor of two
