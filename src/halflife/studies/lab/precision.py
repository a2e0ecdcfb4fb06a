"""The precision of a run: autocast with what float16 needs, and rounding to any number of bits at chosen places.

The optimizer's state is float32. `Rounding` simulates: numbers stay float32, and have fewer bits where it has rounded them.

A small model spends more time in calls than in arithmetic. So a layer with all that is rounded around it is one function
of autograd, and what is rounded already is not rounded again; to the bit, that is `halflife.precision.round_to` at each place.
Shapes: B batch, H heads, N = B H, T tokens, K channels per head, D = H K channels, E = 3 D.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Callable, Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife.precision.rounding import MANTISSA_BITS, round_to

__all__ = ["Mode", "Rounding", "mantissa_bits", "probabilities", "scores_of"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

Look = Callable[[Tensor, Tensor], None]
"""Takes the scores and the probabilities of an attention layer."""


def mantissa_bits(precision: str) -> int:
    """The explicit mantissa bits of a precision."""
    return MANTISSA_BITS[DTYPES[precision]]


class Mode:
    """A precision of torch's own; float16 comes with the scaler of the gradients that it cannot do without.

    Args:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where is computed.

    Attributes:
        scaler: Of the gradients; it does nothing but in float16.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Autocast to the precision; nothing in float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])


class Nearest:
    """`round_to` of float32 numbers as a model computes them, without its guard for a NaN that no CPU computes.

    Args:
        bits: Explicit mantissa bits, less than 23.
    """

    def __init__(self, bits: int) -> None:
        self.bits = bits
        shift = 23 - bits
        # As tensors: torch takes longer over a number than over the arithmetic.
        self.shift, self.one, self.below_half, self.mask = (
            torch.tensor(number, dtype=torch.int32, device="cpu")
            for number in (shift, 1, (1 << (shift - 1)) - 1, -(1 << shift))
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Round."""
        if not x.is_cpu:
            return round_to(x, self.bits)
        i = x.view(torch.int32)
        out = self._added(i)
        out += i
        out &= self.mask
        return out.view(torch.float32)

    def in_place(self, x: Tensor) -> Tensor:
        """Round what nobody else holds."""
        if not x.is_cpu:
            return x.copy_(round_to(x, self.bits))
        i = x.view(torch.int32)
        i += self._added(i)
        i &= self.mask
        return x

    def _added(self, i: Tensor) -> Tensor:
        out = torch.bitwise_right_shift(i, self.shift)
        out &= self.one
        out += self.below_half
        return out


class Rounding:
    """Rounds numbers and gradients of a model to few bits, each where its place is among those that are rounded.

    Args:
        bits: Explicit mantissa bits; with 23 nothing is rounded.
        forward: Places where numbers are rounded (`halflife.studies.specs.precision.PLACES`).
        backward: Places where gradients are.
    """

    def __init__(self, bits: int, forward: Collection[str], backward: Collection[str]) -> None:
        self.bits = bits
        self.forward, self.backward = (frozenset(places if bits < 23 else ()) for places in (forward, backward))
        self.nearest = Nearest(min(bits, 22))

    def at(self, *places: str) -> bool:
        """Whether anything is rounded at one of these places."""
        return not (self.forward.isdisjoint(places) and self.backward.isdisjoint(places))

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Nothing is rounded inside.

        Yields:
            Nothing.
        """
        kept = self.forward, self.backward
        self.forward = self.backward = frozenset()
        try:
            yield
        finally:
            self.forward, self.backward = kept

    def __call__(self, x: Tensor, place: str) -> Tensor:
        """Round what is at a place, and its gradient."""
        if not self.at(place):
            return x
        out: Tensor = _Rounded.apply(x, self.nearest, place in self.forward, place in self.backward)  # type: ignore[no-untyped-call]
        return out

    def add(self, x: Tensor, branch: Tensor, place: str) -> Tensor:
        """The sum of two tensors, at a place."""
        if not self.at(place):
            return x + branch
        out: Tensor = _Sum.apply(x, branch, self.nearest, place in self.forward, place in self.backward)  # type: ignore[no-untyped-call]
        return out

    def linear(
        self, layer: nn.Linear, x: Tensor, place: str = "outputs", *, before: str = "", after: tuple[str, ...] = ("",)
    ) -> Tensor:
        """A linear layer.

        Args:
            layer: The layer.
            x: Its inputs, at the place ``"inputs"``; the layer's matrix is at ``"weights"``.
            place: Where its outputs are.
            before: The place where the inputs were just before, untouched since.
            after: The places where the outputs, each at one of them, are next, untouched until then.

        Returns:
            The outputs.
        """
        if not self.at("weights", "inputs", place):
            y: Tensor = layer(x)
            return y
        f, b = self.forward, self.backward
        forward = "weights" in f, "inputs" in f and before not in f, place in f
        backward = "weights" in b, "inputs" in b, place in b and not b.issuperset(after)
        out: Tensor = _Linear.apply(x, layer.weight, layer.bias, self.nearest, forward, backward)  # type: ignore[no-untyped-call]
        return out

    def attention(self, qkv_BTE: Tensor, heads: int, look: Look | None) -> Tensor:
        """Causal attention written out, between two linear layers: what they have rounded is not rounded again.

        Args:
            qkv_BTE: Queries, keys and values of all heads side by side, the outputs of a linear layer.
            heads: Attention heads.
            look: Called with scores and probabilities.

        Returns:
            (B, T, D), the inputs of a linear layer.
        """
        f, b = self.forward, self.backward
        forward = "scores" in f, "mixing" in f, "outputs" in f
        backward = "scores" in b, "mixing" in b, "inputs" in b
        out: Tensor = _Attention.apply(qkv_BTE, heads, self.nearest, forward, backward, look)  # type: ignore[no-untyped-call]
        return out


def scores_of(q_BHTK: Tensor, k_BHTK: Tensor) -> Tensor:
    """The scores of all pairs of tokens, in nats."""
    scores_BHTT: Tensor = q_BHTK @ k_BHTK.transpose(-1, -2) * q_BHTK.shape[-1] ** -0.5
    return scores_BHTT


def probabilities(scores_BHTT: Tensor) -> Tensor:
    """The attention probabilities of causal attention."""
    return scores_BHTT.masked_fill(_later(scores_BHTT.shape[-1], scores_BHTT.device), -math.inf).softmax(-1)


@functools.lru_cache(maxsize=8)
def _highest(num_tokens: int, device: torch.device) -> Tensor:
    """What the scores can be: the minimum with it masks them eight times as fast as `Tensor.masked_fill_` does."""
    anything = torch.full((num_tokens, num_tokens), math.inf, device=device)
    return anything.masked_fill(_later(num_tokens, device), -math.inf)


@functools.lru_cache(maxsize=8)
def _later(num_tokens: int, device: torch.device) -> Tensor:
    return torch.ones(num_tokens, num_tokens, dtype=torch.bool, device=device).triu(1)


class _Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, nearest: Nearest, forward: bool, backward: bool) -> Tensor:
        ctx.nearest, ctx.rounds = nearest, backward
        return nearest(x) if forward else x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.nearest(gradient) if ctx.rounds else gradient, None, None, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, nearest: Nearest, forward: bool, backward: bool) -> Tensor:
        ctx.nearest, ctx.rounds = nearest, backward
        out = x + branch
        return nearest.in_place(out) if forward else out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.rounds:
            gradient = ctx.nearest(gradient)
        return gradient, gradient, None, None, None


Flags = tuple[bool, bool, bool]


class _Linear(torch.autograd.Function):
    """Flags are for weights, inputs and outputs."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, nearest: Nearest, forward: Flags, backward: Flags
    ) -> Tensor:
        ctx.nearest, ctx.flags = nearest, backward
        if forward[0]:
            weight = nearest(weight)
        if forward[1]:
            x = nearest(x)
        ctx.save_for_backward(x, weight)
        out = functional.linear(x, weight, bias)
        return nearest.in_place(out) if forward[2] else out

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        (x, weight), nearest, (weights, inputs, outputs) = ctx.saved_tensors, ctx.nearest, ctx.flags
        if outputs:
            gradient = nearest(gradient)
        gradient_ND = gradient.flatten(0, -2)
        of_x, of_weight = gradient_ND.mm(weight), gradient_ND.t().mm(x.flatten(0, -2))
        if inputs:
            nearest.in_place(of_x)
        if weights:
            nearest.in_place(of_weight)
        of_bias = gradient_ND.sum(0) if ctx.needs_input_grad[2] else None
        return of_x.view(x.shape), of_weight, of_bias, None, None, None


class _Attention(torch.autograd.Function):
    """Flags are for scores, mixing, and for what a linear layer beside it has rounded already."""

    @staticmethod
    def forward(
        ctx: Any, qkv_BTE: Tensor, heads: int, nearest: Nearest, forward: Flags, backward: Flags, look: Look | None
    ) -> Tensor:
        scores, mixing, done = forward
        b, t, e = qkv_BTE.shape
        # In one copy, which is this function's own.
        qkv_3BHTK = qkv_BTE.view(b, t, 3, heads, -1).permute(2, 0, 3, 1, 4).clone(memory_format=torch.contiguous_format)
        qkv_3NTK = qkv_3BHTK.view(3, b * heads, t, -1)
        if not done:
            _round_parts(qkv_3NTK, nearest, scores, mixing)
        q_NTK, k_NTK, v_NTK = qkv_3NTK.unbind()
        ctx.nearest, ctx.flags, ctx.scale = nearest, backward, q_NTK.shape[-1] ** -0.5
        scores_NTT = torch.bmm(q_NTK, k_NTK.transpose(1, 2)).mul_(ctx.scale)
        if scores:
            nearest.in_place(scores_NTT)
        torch.minimum(scores_NTT, _highest(t, scores_NTT.device), out=scores_NTT)
        p_NTT = scores_NTT.softmax(-1)
        if look is not None:
            look(scores_NTT.view(b, heads, t, t), p_NTT.view(b, heads, t, t))
        rounded_NTT = nearest(p_NTT) if mixing else p_NTT
        ctx.save_for_backward(qkv_3NTK, p_NTT, rounded_NTT)
        out_NTK = torch.bmm(rounded_NTT, v_NTK)
        if mixing:
            nearest.in_place(out_NTK)
        return out_NTK.view(b, heads, t, -1).transpose(1, 2).reshape(b, t, e // 3)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        qkv_3NTK, p_NTT, rounded_NTT = ctx.saved_tensors
        q_NTK, k_NTK, v_NTK = qkv_3NTK.unbind()
        nearest, (scores, mixing, done) = ctx.nearest, ctx.flags
        b, t, d = gradient.shape
        n, _, k = q_NTK.shape
        gradient_NTK = gradient.view(b, t, -1, k).transpose(1, 2).reshape(n, t, k)
        if mixing and not done:
            gradient_NTK = nearest(gradient_NTK)
        of_p_NTT = torch.bmm(gradient_NTK, v_NTK.transpose(1, 2))
        if mixing:
            nearest.in_place(of_p_NTT)
        of_scores_NTT = torch._softmax_backward_data(of_p_NTT, p_NTT, -1, p_NTT.dtype)
        if scores:
            nearest.in_place(of_scores_NTT)
        of_scores_NTT.mul_(ctx.scale)
        of_qkv_3NTK = torch.empty_like(qkv_3NTK)
        torch.bmm(of_scores_NTT, k_NTK, out=of_qkv_3NTK[0])
        torch.bmm(of_scores_NTT.transpose(1, 2), q_NTK, out=of_qkv_3NTK[1])
        torch.bmm(rounded_NTT.transpose(1, 2), gradient_NTK, out=of_qkv_3NTK[2])
        _round_parts(of_qkv_3NTK, nearest, scores, mixing)
        of_qkv_BTE = of_qkv_3NTK.view(3, b, -1, t, k).permute(1, 3, 0, 2, 4).reshape(b, t, 3 * d)
        return of_qkv_BTE, None, None, None, None, None


def _round_parts(qkv_3NTK: Tensor, nearest: Nearest, scores: bool, mixing: bool) -> None:
    """Round queries and keys, or values, or all of them, or their gradients."""
    if scores or mixing:
        nearest.in_place(qkv_3NTK[0 if scores else 2 : 3 if mixing else 2])
