"""Shrinking in few bits against float64: every number that bfloat16 and float16 have, over many passes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from halflife.precision import shrinking
from halflife.precision.shrinking import shrink

DTYPES = (torch.bfloat16, torch.float16)
MODES = {"even": False, "random": True}
by_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=["bfloat16", "float16"])
by_mode = pytest.mark.parametrize("random", MODES.values(), ids=MODES)


def every_number(dtype: torch.dtype) -> Tensor:
    """All 65,536: both zeros, subnormals, infinities, and every NaN."""
    return torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16).view(dtype)


def neighbours(exact: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The numbers of a dtype at and below, and above, the absolute value of float64 numbers; by comparing, not by bits."""
    grid = every_number(dtype).double()
    grid = torch.unique(grid[grid.isfinite() & (grid >= 0.0)])
    place = torch.searchsorted(grid, exact.abs(), right=True) - 1
    return grid[place], grid[(place + 1).clamp(max=len(grid) - 1)]


def shrunk(w: Tensor, factor: float | Tensor, turn: int, random: bool, start: int = 0) -> Tensor:
    out = w.clone()
    shrink([out], [start], factor, turn=turn, seed=turn if random else None)
    return out


def float32(c: float) -> float:
    return torch.tensor(c, dtype=torch.float32).item()


@by_dtype
@by_mode
def test_nothing_changes_where_nothing_is_removed(dtype: torch.dtype, random: bool) -> None:
    w = every_number(dtype)
    for turn in range(8):
        out = shrunk(w, 1.0, turn, random)
        number = ~w.isnan()
        assert torch.equal(out.view(torch.int16)[number], w.view(torch.int16)[number])
        assert bool(out[~number].isnan().all())


@by_dtype
@by_mode
@pytest.mark.parametrize("c", [1.0 - 2.0**-14, 0.999, 0.97, 0.5, 0.3])
def test_every_number_goes_to_a_neighbour_and_the_mean_is_right(dtype: torch.dtype, random: bool, c: float) -> None:
    c, num_passes = float32(c), 64
    w = every_number(dtype)
    w = w[w.isfinite()]
    exact = c * w.double()
    low, high = neighbours(exact, dtype)
    total = torch.zeros_like(exact)
    for turn in range(num_passes):
        out = shrunk(w, c, turn, random).double()
        assert torch.equal(out.signbit(), w.signbit())
        assert bool(((out.abs() == low) | (out.abs() == high)).all())
        total += out.abs()
    share = (total / num_passes - exact.abs()) / (high - low)  # of the distance of the neighbours
    if random:
        up = (exact.abs() - low) / (high - low)
        error = (up * (1.0 - up) / num_passes).sqrt()
        assert abs(share.mean()) < 4.5 * float((error.square().sum()).sqrt()) / len(w)  # pairs are independent
        assert share.abs().max() < 0.45  # 7 standard errors
    else:
        assert share.abs().max() < 4.0 / num_passes
        assert abs(share.mean()) < 0.1 / num_passes


@by_dtype
@by_mode
def test_the_mean_over_weights_is_right_at_one_pass(dtype: torch.dtype, random: bool) -> None:
    count, c = 200_000, float32(1.0 - 1e-3)
    w = (0.02 * torch.randn(count, generator=torch.Generator().manual_seed(1))).to(dtype)
    exact = c * w.double().abs()
    low, high = neighbours(exact, dtype)
    up = (exact - low) / (high - low)
    missed = (shrunk(w, c, 5, random).double().abs() - exact).sum()
    z = missed / (up * (1.0 - up) * (high - low).square()).sum().sqrt()
    assert abs(z) < 4.0
    plain = (w * c).double().abs() - exact
    assert abs(plain.sum()) > 20.0 * abs(missed)
    if not random:  # of equal weights as many go down as is right, but for a few
        same = torch.full((count,), 1.3, dtype=dtype)
        missed = (shrunk(same, c, 5, random).double() - c * same.double()).sum()
        grain = 2.0**-16 if dtype == torch.bfloat16 else 2.0**-13  # of a float32, in units of the last place
        assert abs(missed) < (8.0 + count * grain) * torch.finfo(dtype).eps


def test_infinities_and_nan_stay() -> None:
    for dtype in DTYPES:
        w = torch.tensor([math.inf, -math.inf, math.nan, 0.0, -0.0, 1.0], dtype=dtype)
        for turn in range(20):
            out = shrunk(w, 0.75, turn, False)
            assert out[:2].tolist() == [math.inf, -math.inf]
            assert bool(out[2].isnan())
            assert out[3:].tolist() == [0.0, 0.0, 0.75]
            assert out.signbit().tolist()[3:] == [False, True, False]


def test_offsets_of_pairs_of_weights_are_independent_also_in_other_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of two neighbours a weight gets, for two weights in one piece, in two, and the same weight at two passes."""
    monkeypatch.setattr(shrinking, "PIECE", 256)
    w = torch.full((4 * shrinking.PIECE,), 1.0, dtype=torch.bfloat16)
    c = float32(1.0 - 2.0**-9)  # half way between 1 and the number below
    ups = torch.stack([(shrunk(w, c, turn, True) == 1.0).double() for turn in range(400)])
    sign = 2.0 * ups - 1.0
    places = [0, 1, 77, shrinking.PIECE, shrinking.PIECE + 1, 3 * shrinking.PIECE + 77]
    for one in range(len(places)):
        assert abs(sign[1:, places[one]] @ sign[:-1, places[one]]) < 4.0 * 400**0.5
        for other in range(one):
            assert abs(sign[:, places[one]] @ sign[:, places[other]]) < 4.0 * 400**0.5


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    dtype=st.sampled_from(DTYPES),
    random=st.booleans(),
    piece=st.sampled_from([8, 32, 1 << 16]),
    turn=st.integers(0, 10**6),
)
def test_tensors_are_rounded_alike_in_pieces_strided_and_one_by_one(
    sizes: list[int], dtype: torch.dtype, random: bool, piece: int, turn: int
) -> None:
    """A weight's offset depends on its place alone, not on what is shrunk with it, nor on strides; places may have gaps."""
    generator = torch.Generator().manual_seed(turn)
    whole = [torch.randn(size, generator=generator).to(dtype) for size in sizes]
    starts = [sum(sizes[:index]) + 3 * index for index in range(len(sizes))]
    seed = turn if random else None
    before = shrinking.PIECE
    shrinking.PIECE = piece
    try:
        together = [each.clone() for each in whole]
        shrink(together, starts, 0.875, turn=turn, seed=seed)
        for each, start, expected in zip(whole, starts, together, strict=True):
            wide = torch.zeros(len(each), 3, dtype=dtype)
            wide[:, 1] = each
            shrink([wide[:, 1]], [start], 0.875, turn=turn, seed=seed)
            assert torch.equal(wide[:, 1], expected) or random  # drawn in another number
            assert torch.equal(wide[:, 0], torch.zeros(len(each), dtype=dtype))
            low, high = neighbours(0.875 * each.double(), dtype)
            assert bool(((expected.double().abs() == low) | (expected.double().abs() == high)).all())
    finally:
        shrinking.PIECE = before


def test_shapes() -> None:
    """0-dim, empty, transposed and channels-last tensors, and one that has the factor as a tensor."""
    scalar, empty = torch.tensor(2.0, dtype=torch.bfloat16), torch.empty(0, 3, dtype=torch.bfloat16)
    turned = torch.full((4, 6), 2.0, dtype=torch.bfloat16).t()
    image = torch.full((2, 3, 4, 5), 2.0, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    shrink([scalar, empty, turned, image], [0, 1, 1, 25], torch.tensor(0.5), turn=0)
    assert scalar.item() == 1.0
    assert bool((turned == 1.0).all())
    assert bool((image == 1.0).all())
    assert image.is_contiguous(memory_format=torch.channels_last)


def test_nothing_is_drawn_from_the_global_random_state() -> None:
    before = torch.get_rng_state()
    shrink([torch.ones(8, dtype=torch.bfloat16)], [0], 0.9, turn=0, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
