"""``w <- c * w`` on weights of few bits, each rounded down or up against an offset, so that nothing is lost on average.

With u in [0, 1) for each weight, and ``ulp`` the distance of the two neighbours of ``c * w`` among the numbers of the dtype,

    w <- floor(c * |w| / ulp + u) * ulp, with the sign of w

Over offsets that are spread evenly over [0, 1) the mean of it is ``c * w``. Two ways to choose them:

    even:    u = i * (sqrt(2) - 1) + n * (sqrt(5) - 1) / 2, without its whole part, for weight i at pass n. Both sequences fill
             [0, 1) as evenly as any of their kind, so that each weight stays within a few ulp of what it should be. What it has
             lost bears on its next offset: over many passes the mean decay of normal numbers is too fast by a share of less
             than 2^-k, with k explicit mantissa bits.
    random:  drawn anew at each pass, those of any two weights independent of each other. The mean is right, and each weight
             goes astray as a random walk does.

Nothing is remembered: offsets follow from the number of the pass and the place of the weight, so every process that holds the
same weights, and every run that goes on from a checkpoint, rounds alike.

Source: Gupta et al., "Deep Learning with Limited Numerical Precision" (2015, arXiv 1502.02551), section 3, for stochastic
rounding; Weyl, "Über die Gleichverteilung von Zahlen mod. Eins" (1916), for the even one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
from torch import Tensor

from halflife.precision.rounding import MANTISSA_BITS

__all__ = ["shrink"]

# Elements that are in the cache of a CPU at one time; what other devices hold in three 32-bit numbers beside the weights.
PIECE, LARGE_PIECE = 1 << 17, 1 << 23
BY_WEIGHT, BY_PASS = 1_779_033_703, 2_654_435_769  # 2^32 times the fractions above
WHOLE = 1 << 32
# float16 in the exponents of float32: then what is subnormal in one is so in the other, and the bits to cut are the same.
LOWERED = 2.0**-112


def shrink(
    tensors: Sequence[Tensor],
    starts: Sequence[int],
    factor: float | Tensor,
    *,
    turn: int,
    seed: int | None = None,
    bits: int | None = None,
) -> None:
    """Multiply tensors in place, each element rounded down or up against its offset. Called without gradient tracking.

    Zeros keep their sign; infinities and NaN stay what they are.

    Args:
        tensors: Tensors of one device and of one dtype: bfloat16 or float16, or float32 that holds fewer bits.
        starts: For each, the place of its first element among all weights; what has another place has other offsets.
        factor: c, in (0, 1], with 24 significant bits; 1 changes nothing. A 0-dim float32 tensor on an accelerator.
        turn: n, the number of passes before this one.
        seed: Of random offsets, for this pass; None for even ones.
        bits: Explicit mantissa bits that weights in float32 have; None for those of the dtype.
    """
    if not tensors:
        return
    device, dtype = tensors[0].device, tensors[0].dtype
    shift = 23 - (MANTISSA_BITS[dtype] if bits is None else bits)
    if shift == 0:
        torch._foreach_mul_(list(tensors), factor)
        return
    scale = LOWERED if dtype == torch.float16 else 1.0
    size = stride = PIECE if device.type == "cpu" else LARGE_PIECE
    flat = [tensor.view(-1) if tensor.is_contiguous() else tensor.reshape(-1) for tensor in tensors]
    pieces = [(number, list(parts)) for number, parts in groupby(_cut(flat, starts, size), key=lambda part: part[0])]
    if len(pieces) == 1:
        size = max(place + part.numel() for _, place, part in pieces[0][1])
    room = torch.empty(size, dtype=torch.float32, device=device)
    words, noise = room.view(torch.int32), torch.empty(size, dtype=torch.int32, device=device)
    base = _base(size, shift, seed, device)
    mask = (1 << shift) - 1
    whole = room, words, noise, base
    for number, parts in pieces:
        first, last = parts[0][1], max(place + part.numel() for _, place, part in parts)
        held = [room[place : place + part.numel()] for _, place, part in parts]
        weights = [part for _, _, part in parts]
        torch._foreach_copy_(held, weights)
        x, i, u, start = whole if last - first == size else [each[first:last] for each in whole]
        x.mul_(factor * scale)
        nan = x.isnan() if _may_have_nan(x, dtype) else None
        torch.add(start, _offset(number * stride, turn, seed, shift), out=u)
        i.add_(u.bitwise_and_(mask)).bitwise_and_(~mask)
        if nan is not None:
            x.masked_fill_(nan, torch.nan)
        if scale != 1.0:
            x.mul_(1.0 / scale)
        torch._foreach_copy_(weights, held)
    for tensor, each in zip(tensors, flat, strict=True):
        if not tensor.is_contiguous():
            tensor.copy_(each.view(tensor.shape))


def _may_have_nan(widened: Tensor, dtype: torch.dtype) -> bool:
    """Return whether some may be NaN with bits that offsets are not to be added to, without waiting for a device."""
    if widened.device.type != "cpu":
        return True
    # A NaN of bfloat16 ends in zeros in float32, as numbers do.
    return dtype != torch.bfloat16 and not math.isfinite(widened.sum().item())


def _cut(flat: Sequence[Tensor], starts: Sequence[int], size: int) -> Iterator[tuple[int, int, Tensor]]:
    """Yield the parts of tensors that lie in one piece: the number of the piece, their place in it, and they."""
    for tensor, start in zip(flat, starts, strict=True):
        done = 0
        while done < tensor.numel():
            number, place = divmod(start + done, size)
            count = min(size - place, tensor.numel() - done)
            yield number, place, tensor[done : done + count]
            done += count


def _base(size: int, shift: int, seed: int | None, device: torch.device) -> Tensor:
    """Return the offsets of a piece but for what is added to all of them, in 2^-shift."""
    if seed is None:
        places = torch.arange(size, dtype=torch.int64, device=device).mul_(BY_WEIGHT)
        return places.bitwise_and_(WHOLE - 1).bitwise_right_shift_(32 - shift).to(torch.int32)
    generator = torch.Generator(device).manual_seed(_mixed(seed))
    return torch.empty(size, dtype=torch.int32, device=device).random_(0, 1 << shift, generator=generator)


def _offset(place: int, turn: int, seed: int | None, shift: int) -> int:
    """Return what is added to the offsets of the piece that begins at a place."""
    number = place * BY_WEIGHT + turn * BY_PASS if seed is None else _mixed(_mixed(seed) + place)
    return (number % WHOLE) >> (32 - shift)


def _mixed(number: int) -> int:
    """Return a number of 63 bits each of which depends on all bits of another: splitmix64 (Steele et al. 2014)."""
    number = (number + 0x9E3779B97F4A7C15) % (1 << 64)
    number = (number ^ (number >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
    number = (number ^ (number >> 27)) * 0x94D049BB133111EB % (1 << 64)
    return (number ^ (number >> 31)) >> 1
