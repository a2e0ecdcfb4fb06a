"""Rounding to a number of explicit mantissa bits, with the exponents of the dtype that holds the result.

A binary floating-point number is ``+- 1.b1 b2 ... bk * 2^e``: k explicit bits, and one that is not stored. bfloat16 has 7,
float16 10, float32 23, float64 52.

    round_to:              to the nearest number with k bits, ties to the one whose last bit is 0
    round_stochastically:  to one of the two neighbours, with the probabilities that make the mean right

Both work on the integer that the bits of a number are: up to the sign it grows with the number, and a carry out of the mantissa
goes into the exponent, which is right, up to infinity.

Source: IEEE 754-2019, section 4.3.1; Gupta et al., "Deep Learning with Limited Numerical Precision" (2015, arXiv
1502.02551), section 3, for stochastic rounding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from halflife.errors import UserError, shortened

__all__ = ["MANTISSA_BITS", "check_bits", "round_stochastically", "round_to", "smallest_effective_fraction"]

MANTISSA_BITS = {torch.float16: 10, torch.bfloat16: 7, torch.float32: 23, torch.float64: 52}
"""Explicit ones, by dtype."""

INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}


def check_bits(bits: object, most: int = 23) -> int:
    """Return ``bits`` as an int; refuse what no mantissa has.

    Args:
        bits: A number of explicit mantissa bits.
        most: The largest that is allowed.

    Returns:
        The number.

    Raises:
        UserError: If it is no integer from 1 to ``most``.
    """
    if isinstance(bits, bool) or not isinstance(bits, int) or not 1 <= bits <= most:
        raise UserError(
            f"bits must be an integer from 1 to {most} (explicit mantissa bits: bfloat16 has 7, float16 10), got"
            f" {shortened(bits)}"
        )
    return bits


def smallest_effective_fraction(dtype: torch.dtype) -> float:
    """Return the fraction below which ``w <- (1 - r) * w``, rounded to nearest, changes no weight: ``eps / 4``.

    A weight changes if ``r * |w|`` is above half the distance to the next smaller number. Relative to the weight
    that half distance lies between ``eps / 4`` (just above, and at, a power of 2) and ``eps / 2``.

    Args:
        dtype: A floating-point or complex dtype.

    Returns:
        The fraction, dimensionless.

    Examples:
        >>> smallest_effective_fraction(torch.bfloat16)
        0.001953125
        >>> w = torch.linspace(1.0, 2.0, 1000).to(torch.bfloat16)
        >>> bool((w * (1 - 0.0019) != w).any()), bool((w * (1 - 0.0021) != w).any())
        (False, True)
    """
    return torch.finfo(dtype).eps / 4


def round_to(x: Tensor, bits: int, *, forward: bool = True, backward: bool = False) -> Tensor:
    """Round to the nearest number with ``bits`` explicit mantissa bits, ties to even.

    Exponents are those of the dtype, so nothing underflows earlier than there: with 7 bits it is bfloat16's rounding to
    the bit, and with 10 float16's where float16 is normal. Beyond the largest number lies infinity; infinities and NaN stay.
    float16 and bfloat16 are rounded by way of float32, which holds both.

    Gradients pass as if nothing had been rounded (straight-through). ``backward`` rounds them, too, as a cast in the
    forward pass makes autocast do.

    Args:
        x: Floating-point numbers of any shape.
        bits: k, from 1 to 23 (to 52 for float64). What the dtype has, or more, changes nothing.
        forward: Whether ``x`` is rounded.
        backward: Whether its gradient is.

    Returns:
        A tensor of the same shape and dtype; ``x`` itself where nothing is to be rounded.

    Raises:
        UserError: If ``bits`` is out of range, or ``x`` has no floating-point numbers.

    Examples:
        >>> round_to(torch.tensor([1.0, 1.125, 1.25, 1.375, -3.9]), bits=2).tolist()
        [1.0, 1.0, 1.25, 1.5, -4.0]
        >>> x = torch.randn(1000)
        >>> torch.equal(round_to(x, bits=7), x.bfloat16().float())
        True
    """
    shift = _shift(x, bits)
    if shift <= 0 or not (forward or backward):
        return x
    if backward and x.requires_grad and torch.is_grad_enabled():
        rounded: Tensor = _Rounded.apply(x, shift, forward)  # type: ignore[no-untyped-call]
        return rounded
    if not forward:
        return x
    if x.requires_grad and torch.is_grad_enabled():
        return _Straight.apply(x, shift)  # type: ignore[no-untyped-call,no-any-return]
    return _nearest(x, shift)


def round_stochastically(x: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """Round to one of the two neighbours with ``bits`` explicit mantissa bits, so that the mean is ``x``.

    The farther one has the probability ``|x - nearer| / (distance of the two)``; a number that has ``bits`` bits stays.
    Infinities and NaN stay; at the largest number the upper neighbour is infinity.

    Args:
        x: float32 or float64 numbers of any shape; no gradient passes.
        bits: k, from 1 to 23 (to 52 for float64). What the dtype has, or more, changes nothing.
        generator: Where random numbers come from, on the device of ``x``. Whoever goes on from a checkpoint has to put
            its state back, so there is no default.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        UserError: If ``bits`` is out of range, ``x`` is no such tensor, or there is no generator.

    Examples:
        >>> draws = torch.Generator().manual_seed(0)
        >>> x = torch.full((100_000,), 1.0625)
        >>> rounded = round_stochastically(x, bits=2, generator=draws)
        >>> rounded.unique().tolist(), round(rounded.mean().item(), 2)
        ([1.0, 1.25], 1.06)
    """
    if not isinstance(generator, torch.Generator):
        raise UserError(
            f"generator is {shortened(generator)}, expected a torch.Generator: without one of its own a run that goes on from"
            " a checkpoint would round otherwise; make one, and keep its state"
        )
    shift = _shift(x, bits)
    if x.dtype not in INTEGERS:
        raise UserError(f"x is {_name(x)}, expected float32 or float64: convert it first, exactly, with x.float()")
    if shift <= 0:
        return x.detach()
    x = x.detach()
    i = x.view(INTEGERS[x.dtype])
    noise = torch.empty_like(i).random_(0, 1 << shift, generator=generator)
    return _kept(x, noise.add_(i).bitwise_and_(-(1 << shift)))


def _shift(x: Tensor, bits: int) -> int:
    """The bits at the end of the mantissa that rounding sets to 0."""
    if not isinstance(x, Tensor) or x.dtype not in MANTISSA_BITS:
        raise UserError(
            f"x is {_name(x)}, expected a tensor of {', '.join(map(_plain, MANTISSA_BITS))}: convert it first"
        )
    most = MANTISSA_BITS[x.dtype]
    check_bits(bits, max(most, 23))
    return min(most - bits, 52) if most >= 23 else (23 - bits if bits < most else 0)


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _name(x: object) -> str:
    return f"a tensor of {_plain(x.dtype)}" if isinstance(x, Tensor) else shortened(x)


def _nearest(x: Tensor, shift: int) -> Tensor:
    if x.dtype not in INTEGERS:
        return _nearest(x.float(), shift).to(x.dtype)
    # i + (half - 1) + (the last bit that stays), cut: to nearest, and at half to the even one.
    i = x.view(INTEGERS[x.dtype])
    out = torch.bitwise_right_shift(i, shift).bitwise_and_(1).add_(i).add_((1 << (shift - 1)) - 1)
    return _kept(x, out.bitwise_and_(-(1 << shift)))


def _kept(x: Tensor, out: Tensor) -> Tensor:
    """Rounded bits as numbers, and NaN where ``x`` is: its bits are no mantissa, and a carry would make a number of them."""
    # All but NaN is clamped to -inf, so the maximum is what was rounded. Where, or isnan, takes several times longer on a CPU.
    return torch.maximum(out.view(x.dtype), x.clamp(max=-math.inf))


class _Rounded(torch.autograd.Function):
    """Round the gradient, and the numbers too if asked."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: int, forward: bool) -> Tensor:
        ctx.shift = shift
        return _nearest(x, shift) if forward else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return _nearest(gradients[0], ctx.shift), None, None


class _Straight(torch.autograd.Function):
    """Round the numbers, and let the gradient pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: int) -> Tensor:
        return _nearest(x, shift)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None
