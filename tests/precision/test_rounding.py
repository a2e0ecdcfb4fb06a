"""Rounding to k bits: against torch's casts, against arithmetic in float64, and under autograd and compile."""

from __future__ import annotations

import math
import shutil
import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from halflife.errors import UserError
from halflife.precision import round_stochastically, round_to

SPECIAL = [0.0, -0.0, math.inf, -math.inf, 3.4028234e38, -3.4e38, 3.3953e38, 2.0**-126, 2.0**-149, -(2.0**-133), 1e-40]


def bits_of(x: Tensor) -> Tensor:
    return x.view(torch.int64 if x.dtype == torch.float64 else torch.int32)


def random_patterns(count: int) -> Tensor:
    """float32 numbers of all bit patterns, NaN included."""
    draws = torch.Generator().manual_seed(0)
    return torch.randint(-(2**31), 2**31, (count,), generator=draws).to(torch.int32).view(torch.float32)


def by_arithmetic(x: float, bits: int) -> float:
    """Nearest, ties to even, with Python's own float64: an oracle for normal float32 numbers."""
    if x == 0.0 or not math.isfinite(x):
        return x
    _, exponent = math.frexp(x)
    unit = math.ldexp(1.0, max(exponent - 1, -126) - bits)
    rounded = round(x / unit) * unit  # Python's round is to even; the quotient is exact
    return math.copysign(math.inf if abs(rounded) >= 2.0**128 else rounded, x)


def test_seven_bits_are_bfloat16() -> None:
    x = torch.cat([random_patterns(4_000_000), torch.tensor(SPECIAL)])
    rounded, cast = round_to(x, 7), x.bfloat16().float()
    nan = x.isnan()
    assert nan.any()
    assert rounded[nan].isnan().all()
    assert torch.equal(bits_of(rounded)[~nan], bits_of(cast)[~nan])


def test_ten_bits_are_float16_where_it_is_normal() -> None:
    x = random_patterns(8_000_000)
    normal = x[(x.abs() >= 2.0**-14) & (x.abs() < 65504)]
    assert len(normal) > 500_000
    assert torch.equal(round_to(normal, 10), normal.half().float())


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 10, 15, 22])
def test_every_number_is_the_nearest(bits: int) -> None:
    x = torch.cat([random_patterns(2_000), torch.tensor(SPECIAL), torch.randn(500)])
    ties = round_to(torch.randn(500), bits) * (1.0 + 2.0 ** -(bits + 1))  # many of them halfway
    x = torch.cat([x, ties])[~torch.cat([x, ties]).isnan()]
    expected = [by_arithmetic(value, bits) for value in x.tolist()]
    assert [struct.pack("f", value) for value in round_to(x, bits).tolist()] == [struct.pack("f", v) for v in expected]


def test_float64_too() -> None:
    x = torch.randn(100_000, dtype=torch.float64)
    single = round_to(x, 23)
    assert single.dtype == torch.float64
    assert torch.equal(single, x.float().double())
    assert torch.equal(round_to(x, 52), x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_small_dtypes_stay_themselves(dtype: torch.dtype) -> None:
    x = torch.randn(10_000).to(dtype)
    rounded = round_to(x, 3)
    assert rounded.dtype == dtype
    assert torch.equal(rounded.float(), round_to(x.float(), 3))
    assert round_to(x, 10) is x


def test_every_kind_of_nan_stays() -> None:
    patterns = torch.tensor([0x7F800001, 0x7FFFFFFF, 0x7FC00000, -1, -0x7FFFFF, -0x400000], dtype=torch.int32)
    for bits in (1, 7, 22):
        assert round_to(patterns.view(torch.float32), bits).isnan().all()


@given(st.floats(width=32, allow_nan=False), st.integers(1, 22))
def test_rounding_twice_is_rounding_once_and_keeps_order(value: float, bits: int) -> None:
    x = torch.tensor([value, -value, value * 2])
    once = round_to(x, bits)
    assert torch.equal(round_to(once, bits), once)
    assert once[0] == -once[1]
    assert (once[0] <= once[2]) if value >= 0 else (once[0] >= once[2])


def test_shapes_and_strides() -> None:
    x = torch.randn(6, 8).t()
    assert torch.equal(round_to(x, 7), x.bfloat16().float())
    assert round_to(torch.tensor(1.3), 2).shape == ()
    assert round_to(torch.empty(0, 3), 2).shape == (0, 3)


@pytest.mark.parametrize("forward", [True, False])
@pytest.mark.parametrize("backward", [True, False])
def test_forward_and_backward_are_switched(forward: bool, backward: bool) -> None:
    x = torch.randn(1000, requires_grad=True)
    weights = torch.randn(1000)
    out = round_to(x, 3, forward=forward, backward=backward)
    assert torch.equal(out.detach(), round_to(x.detach(), 3) if forward else x.detach())
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    assert torch.equal(gradient, round_to(weights, 3) if backward else weights)


@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # of torch's own code, in its tracer
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="no compiler"),
            ],
        ),
    ],
)
def test_compiled_is_equal(backend: str) -> None:
    @torch.compile(fullgraph=True, backend=backend)
    def compiled(x: Tensor) -> Tensor:
        return round_to(x, 3, backward=True).square().sum()

    x = torch.randn(1000, requires_grad=True)
    y = x.detach().clone().requires_grad_()
    compiled(x).backward()  # type: ignore[no-untyped-call]
    round_to(y, 3, backward=True).square().sum().backward()  # type: ignore[no-untyped-call]
    assert x.grad is not None
    assert y.grad is not None
    assert torch.equal(x.grad, y.grad)


@pytest.mark.parametrize("value", [1.0625, -1.2, 3.0e-3, 7.9e20])
@pytest.mark.parametrize("bits", [2, 7])
def test_stochastic_rounding_is_right_on_average(value: float, bits: int) -> None:
    count = 200_000
    x = torch.full((count,), value)
    rounded = round_stochastically(x, bits, torch.Generator().manual_seed(1)).double()
    low, high = rounded.min().item(), rounded.max().item()
    exact = x[0].double().item()
    assert low <= exact <= high
    assert {low, high} == {by_arithmetic(low, bits), by_arithmetic(high, bits)}
    assert high - low <= math.ldexp(1.0, math.frexp(exact)[1] - 1 - bits) * 1.001
    error = (high - low) / 2 / math.sqrt(count)  # a standard error at most
    assert abs(rounded.mean().item() - exact) < 4 * error + 1e-12 * abs(exact)


def test_stochastic_rounding_keeps_what_needs_none() -> None:
    draws = torch.Generator().manual_seed(0)
    x = round_to(torch.randn(10_000), 4)
    assert torch.equal(round_stochastically(x, 4, draws), x)
    special = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan])
    assert torch.equal(bits_of(round_stochastically(special, 4, draws)), bits_of(special))
    assert round_stochastically(x, 23, draws) is not None


@pytest.mark.parametrize("bits", [0, -1, 24, 2.0, True, "7", None])
def test_bits_that_no_mantissa_has(bits: object) -> None:
    with pytest.raises(UserError, match=r"^bits must be an integer from 1 to 23 \(explicit mantissa bits"):
        round_to(torch.ones(2), bits)  # type: ignore[arg-type]


@pytest.mark.parametrize("x", [torch.ones(2, dtype=torch.int32), 1.5, None])
def test_what_cannot_be_rounded(x: object) -> None:
    with pytest.raises(UserError, match="expected a tensor of float16, bfloat16, float32, float64: convert it first"):
        round_to(x, 3)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="expected"):
        round_stochastically(x, 3, torch.Generator())  # type: ignore[arg-type]


def test_stochastic_rounding_asks_for_a_generator() -> None:
    with pytest.raises(UserError, match=r"generator is None, expected a torch\.Generator: without one"):
        round_stochastically(torch.ones(2), 3, None)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="x is a tensor of bfloat16, expected float32 or float64"):
        round_stochastically(torch.ones(2).bfloat16(), 3, torch.Generator())
