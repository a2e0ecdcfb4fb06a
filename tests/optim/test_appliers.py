"""Cautious and Toward against loops in plain numbers, and where right and almost right differ."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer, SparseAdam

from halflife.errors import UserError
from halflife.optim.attaching import attach
from halflife.rules import L2, Cautious, Constant, Decoupled, Independent, MovingAverage, PerGroup, Toward
from tests.oracles.scalar import Problem, Update, adam_update, sgd_update

LAM = 3.0

TRAINED: list[tuple[Callable[[Any], Optimizer], Update]] = [
    (lambda groups: SGD(groups, lr=0.1), sgd_update(0.0)),
    (lambda groups: SGD(groups, lr=0.1, momentum=0.9), sgd_update(0.9)),
    (lambda groups: AdamW(groups, lr=0.1, foreach=False), adam_update),
    (lambda groups: AdamW(groups, lr=0.1, fused=True), adam_update),
]
trained = pytest.mark.parametrize(("make", "update"), TRAINED, ids=["sgd", "sgd-momentum", "adamw", "adamw-fused"])


def plain_loop(
    problem: Problem, update: Update, step: Callable[[float, float, float, dict[str, float]], float]
) -> list[Tensor]:
    """Each used weight as one number; ``step(w, u, r, memory)`` is the weight after the step."""
    results = []
    for group, values in enumerate(problem.values()[:3]):
        final = []
        for first in values.flatten().tolist():
            weight, state, memory = first, dict[str, float](), {"first": first, "average": first}
            for t, factor in enumerate(problem.factors):
                lr = problem.peaks[group] * factor
                u = update(lr, problem.curvature * (weight - problem.goal), t + 1, state)
                weight = step(weight, u, lr * LAM if problem.own[group] else 0.0, memory)
            final.append(weight)
        results.append(torch.tensor(final, dtype=values.dtype).reshape(values.shape))
    return results


def compare(problem: Problem, expected: list[Tensor]) -> None:
    for one, other in zip(problem.used, expected, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-12, atol=1e-14)


# ---- cautious


@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
@trained
def test_cautious_is_a_loop_in_plain_numbers(make: Callable[[Any], Optimizer], update: Update, closure: bool) -> None:
    problem = Problem(own=(LAM, LAM))
    masked = 0

    def step(w: float, u: float, r: float, memory: dict[str, float]) -> float:
        nonlocal masked
        masked += u * w < 0
        return w - u - (r * w if u * w >= 0 else 0.0)

    expected = plain_loop(problem, update, step)
    assert masked > 5, "the mask matters here"
    optimizer = make(problem.groups)
    attach(optimizer, Cautious(Decoupled(LAM)))
    problem.run(optimizer, closure=closure)
    compare(problem, expected)


def one_step(
    weights: list[float], gradients: list[float], dtype: torch.dtype = torch.float32, **settings: Any
) -> Tensor:
    weight = torch.nn.Parameter(torch.tensor(weights, dtype=dtype))
    weight.grad = torch.tensor(gradients, dtype=dtype)
    optimizer = SGD([weight], lr=0.5, weight_decay=1.0, **settings)
    attach(optimizer, Cautious(Constant(0.25)))
    optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_the_mask_is_at_least_zero(momentum: float) -> None:
    """``u * w >= 0``: an update of exactly 0 lets the weight decay, on both sides of 0."""
    changed = one_step([1.0, -1.0, 0.0, 0.0, 1.0, -1.0], [0.0, 0.0, 1.0, 0.0, 1.0, 1.0], momentum=momentum)
    assert changed.tolist() == [0.75, -0.75, -0.5, 0.0, 0.25, -1.5]
    assert one_step([1.0], [-0.0], momentum=momentum).item() == 0.75


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_product_that_underflows_keeps_its_sign(sign: float, momentum: float) -> None:
    """``u * w`` is 1e-61 here, which float32 takes for 0."""
    w = sign * 1e-30
    against = one_step([w], [-sign * 1e-31], momentum=momentum)
    assert against.item() == pytest.approx(w * 1.05, rel=1e-6)
    along = one_step([w], [sign * 1e-31], momentum=momentum)
    assert along.item() == pytest.approx(w * 0.7, rel=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_the_update_decides_not_the_gradient(nesterov: bool) -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0, 1.0], dtype=torch.float64))
    optimizer = SGD([weight], lr=0.5, momentum=0.5, nesterov=nesterov)
    weight.grad = torch.tensor([0.5, -0.5], dtype=torch.float64)
    optimizer.step()
    optimizer.param_groups[0]["weight_decay"] = 1.0
    attach(optimizer, Cautious(Constant(0.25)))
    before, g = weight.detach().clone(), torch.tensor([-0.125, 0.125], dtype=torch.float64)
    weight.grad = g.clone()
    optimizer.step()
    buffer = 0.5 * torch.tensor([0.5, -0.5], dtype=torch.float64) + g
    u = 0.5 * (g + 0.5 * buffer if nesterov else buffer)  # here with nesterov the gradient outweighs the buffer
    assert bool((u * g < 0).all()) is not nesterov
    expected = before - u - 0.25 * before * (u * before >= 0)
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=0)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_large_tensor_is_treated_as_a_small_one(dtype: torch.dtype, momentum: float) -> None:
    """On a CPU it is cut into pieces; the last is not full."""
    count = 2**18 + 77
    generator = torch.Generator().manual_seed(0)
    whole = torch.randn(count, generator=generator).to(dtype)
    gradient = torch.randn(count, generator=generator).to(dtype)
    results: list[Tensor] = []
    for parts in (1, 1024):
        weights = [torch.nn.Parameter(part.clone()) for part in whole.tensor_split(parts)]
        for weight, part in zip(weights, gradient.tensor_split(parts), strict=True):
            weight.grad = part.clone()
        optimizer = SGD(weights, lr=0.1, momentum=momentum, weight_decay=1.0)
        attach(optimizer, Cautious(Constant(0.25)))
        optimizer.step()
        results.append(torch.cat([weight.detach() for weight in weights]))
    # torch's own update of the last few bfloat16 numbers of a tensor rounds in another way.
    assert int((results[0] != results[1]).sum()) <= (0 if dtype == torch.float32 else 32)
    assert bool(((results[0] - results[1]).abs() <= 2**-7 * (whole.abs() + gradient.abs())).all())
    unmasked = (whole - 0.1 * gradient.float()).to(dtype)
    assert 0.4 < (results[0] != unmasked).float().mean() < 0.6


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("layout", ["channels last", "transposed", "mixed"])
def test_strides_do_not_matter(layout: str, momentum: float) -> None:
    generator = torch.Generator().manual_seed(0)
    values, gradient = torch.randn(2, 4, 3, 5, 2, generator=generator)

    def laid(tensor: Tensor, kind: str) -> Tensor:
        if kind == "channels last":
            return tensor.clone(memory_format=torch.channels_last)
        return tensor.transpose(0, 3).contiguous().transpose(0, 3) if kind == "transposed" else tensor.clone()

    results = []
    for kinds in (("plain", "plain"), ("channels last", "plain") if layout == "mixed" else (layout, layout)):
        weight = torch.nn.Parameter(laid(values, kinds[0]))
        weight.grad = laid(gradient, kinds[1])
        assert weight.is_contiguous() is (kinds[0] == "plain")
        optimizer = SGD([weight], lr=0.1, momentum=momentum, weight_decay=1.0)
        attach(optimizer, Cautious(Constant(0.25)))
        optimizer.step()
        results.append(weight.detach().contiguous())
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_rounds_once(dtype: torch.dtype) -> None:
    """With updates of 0 the weight is 0.998 of itself, computed in float32 and then rounded."""
    values = torch.randn(4096, generator=torch.Generator().manual_seed(0)).to(dtype)
    weight = torch.nn.Parameter(values.clone())
    weight.grad = torch.zeros_like(weight)
    optimizer = SGD([weight], lr=1.0, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Cautious(Constant(0.002)))
    optimizer.step()
    assert torch.equal(weight.detach(), (values.float() - 0.002 * values.float()).to(dtype))


def test_complex_weights_are_pairs_of_numbers() -> None:
    """As torch's optimizers take them: the mask is that of the real and of the imaginary part."""
    generator = torch.Generator().manual_seed(0)
    values, gradient = torch.randn(2, 6, 2, generator=generator, dtype=torch.float64)
    results = []
    for is_complex in (False, True):
        weight = torch.nn.Parameter(torch.view_as_complex(values.clone()) if is_complex else values.clone())
        weight.grad = torch.view_as_complex(gradient.clone()) if is_complex else gradient.clone()
        optimizer = AdamW([weight], lr=0.1, weight_decay=1.0)
        attach(optimizer, Cautious(Decoupled()))
        for _ in range(2):
            optimizer.step()
        results.append(torch.view_as_real(weight.detach()) if is_complex else weight.detach())
    torch.testing.assert_close(results[0], results[1], rtol=1e-14, atol=0)


# ---- toward


@trained
@pytest.mark.parametrize("closure", [False, True], ids=["plain", "closure"])
def test_toward_init_is_a_loop_in_plain_numbers(
    make: Callable[[Any], Optimizer], update: Update, closure: bool
) -> None:
    problem = Problem(own=(LAM, LAM))
    expected = plain_loop(problem, update, lambda w, u, r, memory: w - r * (w - memory["first"]) - u)
    optimizer = make(problem.groups)
    attach(optimizer, Toward(Decoupled(LAM)))
    problem.run(optimizer, closure=closure)
    compare(problem, expected)


@trained
def test_toward_an_average_is_a_loop_in_plain_numbers(make: Callable[[Any], Optimizer], update: Update) -> None:
    problem = Problem(own=(LAM, LAM))

    def step(w: float, u: float, r: float, memory: dict[str, float]) -> float:
        w = w - r * (w - memory["average"]) - u
        memory["average"] = 0.8 * memory["average"] + 0.2 * w
        return w

    expected = plain_loop(problem, update, step)
    optimizer = make(problem.groups)
    attach(optimizer, Toward(Decoupled(LAM), MovingAverage(0.8)))
    problem.run(optimizer)
    compare(problem, expected)


def test_a_checkpoint_is_followed_by_name() -> None:
    """The order of its keys and what else it holds do not matter."""
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)).double()
    checkpoint = {
        "other": torch.zeros(1),
        **{name: torch.randn_like(p) for name, p in reversed([*model.named_parameters()])},
    }
    start = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = AdamW(model.named_parameters(), lr=0.1, weight_decay=1.0)
    attach(optimizer, Toward(Constant(0.25), checkpoint))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        expected = start[name] - 0.25 * (start[name] - checkpoint[name])
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-12, atol=1e-15)


def test_a_reference_in_another_precision() -> None:
    weight = torch.nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    weight.grad = torch.zeros_like(weight)
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=1.0)
    reference = torch.tensor([0.0, 0.5, 3.0], dtype=torch.float64)
    attach(optimizer, Toward(Constant(0.5), [reference]))
    optimizer.step()
    assert weight.tolist() == [0.5, 0.75, 2.0]


def test_a_missing_reference_is_found_before_anything_moves() -> None:
    """Also where groups before it have theirs."""
    first, second = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    for weight in (first, second):
        weight.grad = torch.zeros(2)
    optimizer = SGD([{"params": [first]}, {"params": [second]}], lr=0.1, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Toward(Constant(0.5), [torch.zeros(2)]))
    with pytest.raises(UserError, match="got 1 reference tensors, but parameter 1"):
        optimizer.step()
    assert first.tolist() == [1.0, 1.0]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1.0, 1.0], "the user's values stand"


@given(share=st.floats(min_value=0.01, max_value=0.9), goal=st.floats(min_value=-3, max_value=3))
def test_what_is_left_of_the_distance_is_one_minus_r(share: float, goal: float) -> None:
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    weight.grad = torch.zeros_like(weight)
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Toward(Constant(share), [torch.tensor([goal], dtype=torch.float64)]))
    for _ in range(3):
        optimizer.step()
    assert weight.item() - goal == pytest.approx((2.0 - goal) * (1.0 - share) ** 3, rel=1e-9, abs=1e-12)


def test_toward_on_complex_weights() -> None:
    weight = torch.nn.Parameter(torch.tensor([1.0 + 3.0j, 2.0], dtype=torch.complex64))
    weight.grad = torch.zeros_like(weight)
    optimizer = SGD([weight], lr=0.1, momentum=0.9, weight_decay=1.0)
    attach(optimizer, Toward(Constant(0.5), [torch.tensor([1.0, 1.0j])]))
    optimizer.step()
    assert weight.tolist() == [1.0 + 1.5j, 1.0 + 0.5j]


def test_complex_references_are_told_apart_by_both_parts() -> None:
    """A checkpoint made under the one is refused under the other."""
    texts = {repr(Toward(Constant(0.5), [torch.tensor([1.0 + part])]).reference) for part in (1j, 2j, 1.0)}
    assert len(texts) == 3


def test_appliers_may_differ_from_group_to_group_inside() -> None:
    weights = [torch.nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2)]
    for weight in weights:
        weight.grad = torch.ones_like(weight)
    optimizer = SGD([{"params": [weight]} for weight in weights], lr=0.1, weight_decay=0.5)
    handle = attach(optimizer, Cautious(PerGroup([Independent(0.25), Decoupled(1.0)])))
    optimizer.step()
    assert [weight.item() for weight in weights] == pytest.approx([0.65, 0.8])
    assert handle.fractions() == pytest.approx([0.25, 0.1])


# ---- the penalty on gradients that it cannot serve


def test_a_penalty_refuses_sparse_gradients_before_it_touches_them() -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    weight.grad = torch.sparse_coo_tensor(torch.tensor([[1]]), torch.ones(1, 2), (3, 2), check_invariants=True)
    optimizer = SparseAdam([weight], lr=0.1)
    attach(optimizer, L2(0.1), select="all")
    with pytest.raises(UserError, match="an L2 penalty would make sparse gradients dense; use Decoupled"):
        optimizer.step()  # type: ignore[no-untyped-call]  # torch leaves it without types
    assert torch.equal(weight.detach(), torch.ones(3, 2))
    assert weight.grad.is_sparse
    assert not optimizer.state[weight]
