"""Squared norms against float64, and the rules that set norms against loops in plain numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from halflife.optim.attaching import attach
from halflife.optim.norms import PIECE, squared_norms
from halflife.rules import NormTarget, Rule, Sphere, StepInfo
from tests.oracles.scalar import Problem, Update, adam_update, sgd_update

# ---- squared norms


def test_a_large_float32_norm_is_accurate_on_a_cpu() -> None:
    """torch's own float32 norm is 1.6e-4 too small at this size (2.13)."""
    tensor = torch.randn(2**22, generator=torch.Generator().manual_seed(0))
    expected = tensor.double().square().sum().item()
    assert squared_norms([tensor]).item() == pytest.approx(expected, rel=4e-6)
    assert tensor.norm().double().item() ** 2 != pytest.approx(expected, rel=1e-4), "the trap is there"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("sizes", [(1,), (3, 0, PIECE, 5), (PIECE + 1, 2), (2 * PIECE,)])
def test_squared_norms_of_several_tensors(sizes: tuple[int, ...], dtype: torch.dtype) -> None:
    """Cut at the boundary and beyond it, with empty tensors between."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    found = squared_norms(tensors)
    assert found.dtype == torch.float64
    expected = torch.stack([tensor.double().square().sum() for tensor in tensors])
    # float32 sums of 2^18 squares; those of narrower types are less accurate still, but more than their numbers.
    rtol = {torch.float64: 1e-13, torch.float32: 4e-6}.get(dtype, 1e-4)
    torch.testing.assert_close(found, expected, rtol=rtol, atol=0)


def test_a_float16_norm_may_be_larger_than_float16() -> None:
    tensor = torch.full((4096,), 3000.0, dtype=torch.float16)
    assert math.isinf(float(tensor.norm()))
    assert squared_norms([tensor]).item() == pytest.approx(4096 * 3000.0**2, rel=1e-4)


def test_squared_norms_of_mixed_and_strided_tensors() -> None:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(6, 4, 3, 2, generator=generator)
    tensors = [
        base.transpose(0, 3),
        base.double()[::2],
        base.to(memory_format=torch.channels_last),
        torch.randn(PIECE + 1, 2, generator=generator)[:, 0],
        base.bfloat16(),
        torch.zeros(()),
    ]
    expected = torch.stack([tensor.double().square().sum() for tensor in tensors])
    torch.testing.assert_close(squared_norms(tensors), expected, rtol=4e-6, atol=0)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
def test_squared_norms_of_complex_tensors(dtype: torch.dtype) -> None:
    tensor = torch.tensor([3.0 + 4.0j, 1.0j], dtype=dtype)
    assert squared_norms([tensor, torch.ones(2)]).tolist() == pytest.approx([26.0, 2.0])


# ---- rules that set norms

TRAINED: list[tuple[Callable[[Any], Optimizer], Update]] = [
    (lambda groups: SGD(groups, lr=0.1, momentum=0.9), sgd_update(0.9)),
    (lambda groups: AdamW(groups, lr=0.1, fused=True), adam_update),
]
CASES: list[tuple[Rule, bool, float | None]] = [
    (NormTarget(), False, None),
    (NormTarget(2.0), False, 2.0),
    (Sphere(), True, None),
    (Sphere(3.0), True, 3.0),
    (Sphere(1.5, per="tensor"), False, 1.5),
]


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@pytest.mark.parametrize(("make", "update"), TRAINED, ids=["sgd-momentum", "adamw-fused"])
@pytest.mark.parametrize(("rule", "whole", "norm"), CASES, ids=[str(case[0]) for case in CASES])
def test_the_norm_is_that_of_a_loop_in_plain_numbers(
    rule: Rule, whole: bool, norm: float | None, make: Callable[[Any], Optimizer], update: Update, closure: bool
) -> None:
    problem = Problem()
    tensors = [values.flatten().tolist() for values in problem.values()[:3]]
    states = [[dict[str, float]() for _ in values] for values in tensors]
    first = [math.sqrt(sum(w * w for w in values)) for values in tensors]
    shares: list[list[float]] = []
    for t, factor in enumerate(problem.factors):
        for group, values in enumerate(tensors):
            lr = problem.peaks[group] * factor
            for i, w in enumerate(values):
                values[i] = w - update(lr, problem.curvature * (w - problem.goal), t + 1, states[group][i])
        share = [0.0, 0.0, 0.0]
        for part in ([0, 1],) if whole else ([0], [1]):
            if factor > 0:
                length = math.sqrt(sum(w * w for group in part for w in tensors[group]))
                goal = math.sqrt(sum(first[group] ** 2 for group in part)) if norm is None else norm
                for group in part:
                    share[group] = 1 - goal / length
                    tensors[group] = [w * goal / length for w in tensors[group]]
        shares.append(share)
    assert any(r < 0 for share in shares for r in share), "norms shrink too"
    optimizer = make(problem.groups)
    handle = attach(optimizer, rule)
    for t in range(len(problem.factors)):
        problem.run(optimizer, closure=closure, steps=range(t, t + 1))
        assert handle.fractions() == pytest.approx(shares[t], rel=1e-9, abs=1e-14)
    for parameter, values in zip(problem.used, tensors, strict=True):
        assert parameter.detach().flatten().tolist() == pytest.approx(values, rel=1e-10)


def stepped(weights: list[Tensor], rule: Rule, gradients: list[Tensor | None] | None = None) -> list[Tensor]:
    parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
    for parameter, gradient in zip(parameters, gradients or [torch.zeros_like(w) for w in weights], strict=True):
        parameter.grad = gradient
    optimizer = SGD(parameters, lr=1.0, weight_decay=0.1)
    attach(optimizer, rule)
    optimizer.step()
    return [parameter.detach() for parameter in parameters]


@pytest.mark.parametrize("rule", [case[0] for case in CASES], ids=str)
def test_zeros_stay_zeros(rule: Rule) -> None:
    """They have no direction; 0 / 0 must not spread, not into other tensors of the same sphere either."""
    zero, other = stepped([torch.zeros(2, 2), torch.tensor([3.0, 4.0])], rule)
    assert torch.equal(zero, torch.zeros(2, 2))
    length = {NormTarget(2.0): 2.0, Sphere(3.0): 3.0, Sphere(1.5, per="tensor"): 1.5}.get(rule, 5.0)
    assert other.norm().item() == pytest.approx(length)
    assert torch.equal(stepped([torch.zeros(2)], rule)[0], torch.zeros(2))


def test_a_tensor_that_starts_at_zero_comes_back_to_zero_under_its_first_norm() -> None:
    """The norm it is held at is 0; with a number it is held at that from the first update on."""
    start, gradient = [torch.zeros(2)], [torch.tensor([3.0, 4.0])]
    assert stepped(start, NormTarget(), [*gradient])[0].tolist() == [0.0, 0.0]
    assert stepped(start, NormTarget(1.0), [*gradient])[0].tolist() == pytest.approx([-0.6, -0.8])


def test_what_has_no_gradient_is_not_part_of_the_sphere() -> None:
    resting, moving = stepped([torch.ones(4), torch.tensor([3.0, 4.0])], Sphere(1.0), [None, torch.zeros(2)])
    assert torch.equal(resting, torch.ones(4))
    assert moving.tolist() == pytest.approx([0.6, 0.8])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.complex64])
@pytest.mark.parametrize("rule", [case[0] for case in CASES], ids=str)
def test_other_types(rule: Rule, dtype: torch.dtype) -> None:
    """Complex weights are pairs of numbers; in float16 this norm is larger than the type."""
    weight = torch.full((600,), 3000.0).to(dtype)
    length = {NormTarget(2.0): 2.0, Sphere(3.0): 3.0, Sphere(1.5, per="tensor"): 1.5}.get(rule, 3000 * math.sqrt(600))
    (found,) = stepped([weight], rule)
    wide = torch.view_as_real(found) if found.is_complex() else found
    assert wide.double().norm().item() == pytest.approx(length, rel=1e-2 if dtype.itemsize == 2 else 1e-6)


@given(norm=st.floats(min_value=0.01, max_value=100.0), scale=st.floats(min_value=0.01, max_value=100.0))
def test_a_sphere_per_tensor_is_a_norm_target(norm: float, scale: float) -> None:
    info = StepInfo(lr=0.1, weight_norm=scale, initial_norm=norm)
    assert Sphere(norm, per="tensor").fraction(info) == NormTarget(norm).fraction(info) == 1 - norm / scale
    assert Sphere(per="tensor").fraction(info) == NormTarget().fraction(info) == 1 - norm / scale


@pytest.mark.parametrize("rule", [case[0] for case in CASES], ids=str)
@pytest.mark.parametrize("value", [1e25, math.inf, math.nan])
def test_what_has_no_finite_norm_is_left_alone(value: float, rule: Rule) -> None:
    """Squares of 1e25 are beyond float32: dividing by infinity would make zeros of a net, silently."""
    weight = torch.full((4,), value)
    torch.testing.assert_close(stepped([weight], rule)[0], weight, rtol=0, atol=0, equal_nan=True)
