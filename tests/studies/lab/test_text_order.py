"""The order of the windows: a true permutation without structure, the same on every machine, resumed from the step."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from halflife.errors import UserError
from halflife.studies.lab.text.order import Permutation, WindowOrder, _random_bits

Z_BOUND = 4.5  # two-sided 7e-6 for each of about forty looks at fixed keys


def make(
    num_tokens: int,
    *,
    context: int = 4,
    targets: int = 4,
    batch: int = 8,
    seed: int = 0,
    order: str = "one-pass",
) -> WindowOrder:
    return WindowOrder(
        num_tokens=num_tokens, context=context, targets_per_window=targets, batch_size=batch, seed=seed, order=order
    )


def chi_square_z(counts: NDArray[np.int64], expected: float) -> float:
    """How many standard deviations a chi-square statistic of equally likely cells lies off."""
    freedom = counts.size - 1
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return (statistic - freedom) / math.sqrt(2 * freedom)


def grid_z(x: NDArray[np.int64], y: NDArray[np.int64], size: int, cells: int = 32) -> float:
    """Chi-square of pairs of numbers below ``size`` on a grid."""
    flat = (x * cells // size) * cells + y * cells // size
    return chi_square_z(np.bincount(flat, minlength=cells * cells), float(len(x)) / cells**2)


# ---- the numbers themselves, against other implementations


def test_random_bits_are_those_of_splitmix64() -> None:
    """The first outputs of the published C program for the seed 1234567."""
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert _random_bits(1234567, np.arange(1, 6, dtype=np.uint64)).tolist() == expected


def by_hand(size: int, name: str, index: int) -> int:
    """The permutation in Python's own unbounded integers, with divisions where the library avoids them."""
    mask = (1 << 64) - 1

    def bits(key: int, counter: int) -> int:
        z = (key + counter * 0x9E3779B97F4A7C15) & mask
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        return z ^ (z >> 31)

    if size <= 65_536:
        key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
        return sorted(range(size), key=lambda i: bits(key, i))[index]
    a = next(a for a in range(1, size + 1) if a * a >= size)
    b = math.ceil(size / a)
    while True:
        left, right = divmod(index, b)
        for r in range(8):
            key = int.from_bytes(hashlib.sha256(f"{name}/{r}".encode()).digest()[:8], "little")
            if r % 2 == 0:
                left = (left + bits(key, right) % a) % a
            else:
                right = (right + bits(key, left) % b) % b
        index = left * b + right
        if index < size:
            return index


@pytest.mark.parametrize("size", [1, 2, 3, 100, 65_536, 65_537, 100_003, 8_999_999_744])
def test_the_permutation_is_the_one_written_out_by_hand(size: int) -> None:
    index = np.arange(0, size, max(1, size // 9))
    assert Permutation(size, "a/b")(index).tolist() == [by_hand(size, "a/b", int(i)) for i in index]


OFFSETS = {"one-pass": [5550472448, 6800874240, 2298286336], "random-offsets": [2848005383, 3512941111, 6241041058]}


def test_offsets_stay_what_they_were() -> None:
    """A changed order would silently make a resumed run another run; change these numbers only with the format."""
    assert make(9_000_000_000, context=256, targets=256, batch=3, seed=5).starts(70_001).tolist() == OFFSETS["one-pass"]
    assert (
        make(9_000_000_000, context=256, targets=256, batch=3, seed=5, order="random-offsets").starts(70_001).tolist()
        == OFFSETS["random-offsets"]
    )


# ---- a permutation


@settings(max_examples=150, deadline=None)
@given(size=st.one_of(st.integers(1, 6000), st.integers(65_000, 90_000)), name=st.text(max_size=5))
def test_every_element_comes_exactly_once(size: int, name: str) -> None:
    assert np.array_equal(np.sort(Permutation(size, name)(np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [10**6, 999_983, 10**6 + 1])
def test_every_element_comes_exactly_once_in_a_large_one(size: int) -> None:
    assert np.array_equal(np.sort(Permutation(size, "large")(np.arange(size))), np.arange(size))


@pytest.mark.parametrize("size", [3, 4, 5])
def test_all_orders_of_few_elements_are_equally_likely(size: int) -> None:
    draws = 6000
    counts = Counter(tuple(Permutation(size, f"few/{i}")(np.arange(size)).tolist()) for i in range(draws))
    cells = math.factorial(size)
    observed = np.array([*counts.values(), *[0] * (cells - len(counts))])
    assert len(observed) == cells
    assert abs(chi_square_z(observed, draws / cells)) < Z_BOUND


@pytest.mark.parametrize("size", [1000, 66_000])
def test_an_element_goes_everywhere(size: int) -> None:
    index = np.array([0, 1, size // 2, size - 1])
    at = np.stack([Permutation(size, f"where/{i}")(index) for i in range(2000)], axis=1)
    for places in at:
        assert abs(chi_square_z(np.bincount(places * 40 // size, minlength=40), 50)) < Z_BOUND
    for one, other in pairwise(at):
        assert abs(grid_z(one, other, size, cells=7)) < Z_BOUND


@pytest.mark.parametrize("size", [65_537, 250_000, 249_999, 600_011])
def test_no_structure_within_a_permutation(size: int) -> None:
    out = Permutation(size, "structure")(np.arange(size))
    root = math.isqrt(size - 1) + 1
    # Neighbours, and elements that share a half of the network, which differ by multiples of a factor.
    for lag in (1, 2, root - 1, root, root + 1, 7 * root, size // 2):
        assert abs(grid_z(out[:-lag], out[lag:], size)) < Z_BOUND, lag
        steps = (out[lag:] - out[:-lag]) % size
        assert abs(chi_square_z(np.bincount(steps * 256 // size, minlength=256), len(steps) / 256)) < Z_BOUND, lag
    correlation = float(stats.spearmanr(np.arange(size), out).statistic)
    assert abs(correlation) * math.sqrt(size - 1) < Z_BOUND
    assert abs(grid_z(np.arange(size), out, size)) < Z_BOUND
    # The early part is a sample of the whole: its remainders by each factor are level.
    early = out[: size // 20]
    for factor in (root, -(-size // root), 64):
        assert abs(chi_square_z(np.bincount(early % factor, minlength=factor), len(early) / factor)) < Z_BOUND, factor


@pytest.mark.parametrize(("first", "second"), [("windows/0/0", "windows/1/0"), ("windows/0/0", "windows/0/1")])
def test_permutations_of_two_keys_are_unrelated(first: str, second: str) -> None:
    size = 250_000
    a, b = (Permutation(size, name)(np.arange(size)) for name in (first, second))
    assert abs(grid_z(a, b, size)) < Z_BOUND
    assert abs(float(stats.spearmanr(a, b).statistic)) * math.sqrt(size - 1) < Z_BOUND
    assert (a == b).sum() < 10  # one is expected
    steps = (a - b) % size
    assert abs(chi_square_z(np.bincount(steps * 256 // size, minlength=256), size / 256)) < Z_BOUND


# ---- one pass


@settings(max_examples=100, deadline=None)
@given(
    num_tokens=st.integers(2, 3000),
    context=st.integers(1, 40),
    share=st.sampled_from([0.0, 0.5, 1.0]),
    batch=st.integers(1, 70),
    seed=st.integers(0, 3),
)
def test_one_pass_predicts_each_token_at_most_once(
    num_tokens: int, context: int, share: float, batch: int, seed: int
) -> None:
    targets = max(1, round(share * context))
    if num_tokens <= context:
        with pytest.raises(UserError, match="expected more than the context"):
            make(num_tokens, context=context)
        return
    order = make(num_tokens, context=context, targets=targets, batch=batch, seed=seed)
    steps = order.num_windows // batch
    order.check(steps)
    starts = np.concatenate([np.empty(0, np.int64), *(order.starts(step) for step in range(steps))])
    assert len(starts) == steps * batch
    predicted = (starts[:, None] + context - np.arange(targets)).ravel()
    assert len(set(predicted.tolist())) == len(predicted)
    if len(starts):
        assert starts.min() >= 0
        assert predicted.max() <= num_tokens - 1
    # All of the text is within reach: the number of windows is the largest for which they fit.
    assert 0 <= num_tokens - 1 - context - (order.num_windows - 1) * targets < targets
    with pytest.raises(UserError, match="one pass over the training split has"):
        order.check(steps + 1)


def test_a_whole_pass_reads_every_window() -> None:
    order = make(1001, context=10, targets=10, batch=20)
    assert order.num_windows == 100
    assert sorted(np.concatenate([order.starts(i) for i in range(5)]).tolist()) == list(range(0, 1000, 10))
    mlp = make(106, context=6, targets=1, batch=20)
    assert sorted(np.concatenate([mlp.starts(i) for i in range(5)]).tolist()) == list(range(100))


def test_batch_size_does_not_change_the_order() -> None:
    small, large = (make(100_000, batch=batch, seed=3) for batch in (8, 64))
    assert np.array_equal(
        np.concatenate([small.starts(i) for i in range(80)]), np.concatenate([large.starts(i) for i in range(10)])
    )


def test_too_short_for_one_pass() -> None:
    order = make(1001, context=10, targets=10, batch=30)
    order.check(3)
    message = (
        "one pass over the training split has 100 windows, and 4 steps of 30 need 120: take more text, at most 3 steps, or"
        " order 'epochs'"
    )
    with pytest.raises(UserError) as caught:
        order.check(4)
    assert str(caught.value) == message
    order.starts(2)
    with pytest.raises(UserError, match="at most 3 steps"):
        order.starts(3)


# ---- all orders


@pytest.mark.parametrize("order", ["one-pass", "epochs", "random-offsets"])
@pytest.mark.parametrize("batch", [7, 512, 40_000])
def test_a_step_reads_the_same_however_it_is_reached(order: str, batch: int) -> None:
    steps = range(0, 40_000 // batch + 3) if batch < 40_000 else range(4)
    num_tokens = (len(steps) + 1) * batch + 5
    if order == "epochs":
        num_tokens = max(num_tokens // 3, batch + 5)
    kwargs = {"context": 4, "targets": 1, "batch": batch, "order": order, "seed": 2}
    straight = make(num_tokens, **kwargs)  # type: ignore[arg-type]
    expected = {step: straight.starts(step) for step in steps}
    jumping = make(num_tokens, **kwargs)  # type: ignore[arg-type]
    for step in np.random.default_rng(0).permutation(steps)[:60]:
        assert np.array_equal(jumping.starts(int(step)), expected[int(step)])
        resumed = make(num_tokens, **kwargs)  # type: ignore[arg-type]
        assert np.array_equal(resumed.starts(int(step)), expected[int(step)])


@pytest.mark.parametrize("order", ["one-pass", "epochs", "random-offsets"])
def test_seeds_differ_and_are_kept(order: str) -> None:
    a, b, again = (make(50_000, order=order, seed=seed, batch=256).starts(3) for seed in (0, 1, 0))
    assert np.array_equal(a, again)
    assert len(np.intersect1d(a, b)) < 20


def test_what_is_returned_may_be_written_to() -> None:
    order = make(10_000)
    first = order.starts(0)
    kept = first.copy()
    first[:] = -1
    assert np.array_equal(order.starts(0), kept)
    assert first.dtype == np.int64


def test_an_unknown_order_is_refused() -> None:
    with pytest.raises(UserError, match="order is 'sorted', expected one of one-pass, epochs, random-offsets"):
        make(100, order="sorted")


# ---- epochs


def test_epochs_repeat_no_window_within_a_pass_and_shuffle_anew() -> None:
    order = make(1031, context=10, targets=10, batch=8, order="epochs")
    assert order.num_windows == 103
    passes = [np.concatenate([order.starts(12 * e + i) for i in range(12)]) for e in range(6)]
    for read in passes:
        assert len(set(read.tolist())) == 96
        assert set(read.tolist()) <= set(range(0, 1021, 10))
    for one, next_one in pairwise(passes):
        assert (one == next_one).sum() < 10  # one is expected
    left_out = {frozenset(range(0, 1030, 10)) - set(read.tolist()) for read in passes}
    assert len(left_out) == 6
    assert all(len(windows) == 7 for windows in left_out)
    order.check(10**9)


def test_the_first_epoch_is_the_one_pass() -> None:
    once, often = make(5000, order="one-pass"), make(5000, order="epochs")
    assert np.array_equal(once.starts(100), often.starts(100))


def test_an_epoch_holds_at_least_a_batch() -> None:
    make(33, batch=8, order="epochs").starts(5)
    with pytest.raises(
        UserError, match="holds 7 windows, expected at least one batch of 8: take more text, or lower batch"
    ):
        make(32, batch=8, order="epochs")


# ---- random offsets


def test_random_offsets_reach_every_place_where_a_window_fits() -> None:
    order = make(14, context=4, targets=4, batch=1000, order="random-offsets")
    drawn = np.concatenate([order.starts(i) for i in range(20)])
    counts = np.bincount(drawn, minlength=10)
    assert len(counts) == 10  # offsets 0 to 9: the last window predicts token 13
    assert abs(chi_square_z(counts, 2000)) < Z_BOUND


def test_random_offsets_are_uniform_and_with_replacement() -> None:
    num_tokens, draws = 200_004, 200_000
    order = make(num_tokens, context=4, targets=4, batch=1000, order="random-offsets", seed=9)
    drawn = np.concatenate([order.starts(i) for i in range(draws // 1000)])
    places = num_tokens - 4
    assert abs(chi_square_z(np.bincount(drawn * 200 // places, minlength=200), draws / 200)) < Z_BOUND
    assert abs(grid_z(drawn[:-1], drawn[1:], places)) < Z_BOUND
    # As many different ones as draws with replacement give: places (1 - 1/e) here, standard deviation from the
    # occupancy problem.
    distinct = len(np.unique(drawn))
    p = math.exp(-draws / places)
    sd = math.sqrt(places * (p - (1 + draws / places) * p * p))
    assert abs(distinct - places * (1 - p)) < Z_BOUND * sd


# ---- what was seen


@pytest.mark.parametrize("order", ["one-pass", "epochs", "random-offsets"])
@pytest.mark.parametrize("step", [0, 1, 5, 33])
@pytest.mark.parametrize("num", [1, 7, 64, 1000])
def test_seen_are_windows_that_were_read(order: str, step: int, num: int) -> None:
    windows = make(1500, batch=8, order=order, seed=4)
    read = [offset for i in range(step) for offset in windows.starts(i).tolist()]
    seen = windows.seen(step, num).tolist()
    assert len(seen) == min(num, len(read))
    # Every so many-th of what was read, from the first on.
    assert seen == [read[i * len(read) // len(seen)] for i in range(len(seen))]


def test_seen_in_epochs_is_of_the_first_pass() -> None:
    windows = make(404, batch=8, order="epochs", seed=4)  # 100 windows, 12 steps a pass
    first = [offset for i in range(12) for offset in windows.starts(i).tolist()]
    assert windows.seen(12, 1000).tolist() == first
    assert windows.seen(50, 1000).tolist() == first
    assert windows.seen(7, 1000).tolist() == first[:56]
    assert len(set(windows.seen(50, 40).tolist())) == 40


def test_a_large_text_needs_little_memory() -> None:
    permutation = make(9_000_000_000, context=6, targets=1, batch=1024)
    permutation.starts(5)
    assert permutation._permutation is not None
    assert sum(table.nbytes for table in permutation._permutation[1]._tables) < 8e6
    assert permutation._chunk[1].nbytes < 1e6
