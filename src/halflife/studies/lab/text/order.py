"""Which windows of a text each step reads: a pure function of the seed and the step, so nothing has to be saved.

A shuffled list of the windows of a large text would be larger than the model. Here a keyed bijection of
{0, ..., num_windows - 1} takes its place: a Feistel network over Z_a x Z_b with a * b just above the number of
windows, whose few outputs beyond it are sent through it again ("cycle walking"). Its round functions are tables of
about sqrt(num_windows) numbers. A network of few elements favours some orders, so few windows are sorted by random
numbers instead. All arithmetic is on integers, so that an order is the same on every machine and with
every version of numpy.

Source: Black and Rogaway, "Ciphers with Arbitrary Finite Domains", 2002 (generalized Feistel cipher and cycle walking);
Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014 (splitmix64).
"""

from __future__ import annotations

import hashlib
import math

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError

__all__ = ["Permutation", "WindowOrder"]

ORDERS = ("one-pass", "epochs", "random-offsets")
ROUNDS = 8  # each half is moved four times; the tests find no structure from six on
FEW = 1 << 16  # up to here a list is cheap (half a megabyte) and exactly uniform
CHUNK = 1 << 16  # offsets computed at once, so that the calls of numpy are shared by many steps

Offsets = NDArray[np.int64]


def _key(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _random_bits(key: int, counters: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 random bits for each counter: splitmix64's output number ``counter`` from the state ``key``."""
    z = counters * np.uint64(0x9E3779B97F4A7C15)  # unsigned arrays wrap around without a word, as they must here
    z += np.uint64(key)
    z ^= z >> np.uint64(30)
    z *= np.uint64(0xBF58476D1CE4E5B9)
    z ^= z >> np.uint64(27)
    z *= np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return z


class Permutation:
    """A keyed bijection of {0, ..., size - 1}, computed where it is asked.

    Args:
        size: Number of elements, at least 1.
        name: The key: another name, an unrelated permutation.

    Examples:
        >>> import numpy as np
        >>> sorted(Permutation(7, "key")(np.arange(7)).tolist())
        [0, 1, 2, 3, 4, 5, 6]
    """

    def __init__(self, size: int, name: str) -> None:
        self.size = size
        self._tables: list[Offsets] = []
        if size <= FEW:
            bits = _random_bits(_key(name), np.arange(size, dtype=np.uint64))
            self._tables = [np.argsort(bits, kind="stable").astype(np.int64, copy=False)]
            return
        # The larger factor first; a * b >= size, and at most about 2 sqrt(size) above it.
        self._a = max(1, math.isqrt(size - 1) + 1)
        self._b = -(-size // self._a)
        self._tables = [
            # A remainder favours small numbers by less than 2^-30: far below what any run could show.
            (_random_bits(_key(f"{name}/{r}"), np.arange(n, dtype=np.uint64)) % np.uint64(m)).astype(np.int64)
            for r, (n, m) in enumerate(((self._b, self._a), (self._a, self._b)) * (ROUNDS // 2))
        ]

    def __call__(self, index: Offsets) -> Offsets:
        """Where the elements ``index`` go.

        Args:
            index: Integers in [0, size), of any shape.

        Returns:
            Integers in [0, size), of the same shape, all different if ``index`` are.
        """
        if self.size <= FEW:
            return self._tables[0][index]
        out = self._walk(index)
        flat = out.reshape(-1)
        while (outside := np.flatnonzero(flat >= self.size)).size:
            flat[outside] = self._walk(flat[outside])
        return out

    def _walk(self, index: Offsets) -> Offsets:
        left, right = np.divmod(index, self._b)
        for r in range(0, ROUNDS, 2):
            left = _add(left, self._tables[r][right], self._a)
            right = _add(right, self._tables[r + 1][left], self._b)
        left *= self._b
        left += right
        return left


def _add(x: Offsets, y: Offsets, modulus: int) -> Offsets:
    """(x + y) mod modulus for numbers already in range, without the slow division."""
    x = x + y
    # x - modulus, read as unsigned, is huge where x < modulus.
    reduced: Offsets = np.minimum(x.view(np.uint64), (x - modulus).view(np.uint64)).view(np.int64)
    return reduced


class WindowOrder:
    """The windows that each step reads, of tokens 0, ..., num_tokens - 1.

    A window at offset s holds tokens s, ..., s + context - 1 and predicts the last ``targets_per_window`` of tokens
    s + 1, ..., s + context. Windows start every ``targets_per_window`` tokens, so that no token is predicted by two of
    them:

        num_windows = (num_tokens - 1 - context) // targets_per_window + 1

    ``"one-pass"`` reads each window at most once. ``"epochs"`` begins a new permutation of the same windows at each pass;
    the last num_windows % batch_size windows of a pass, other ones each time, are left out, so that a batch never holds
    windows of two passes and no window comes twice in one. ``"random-offsets"`` draws any offset at which a window fits,
    with replacement.

    Args:
        num_tokens: Length of the text.
        context: Tokens that a window holds.
        targets_per_window: Tokens that a window predicts: ``context`` for a GPT, 1 for the MLP.
        batch_size: Windows per step.
        seed: The run's seed.
        order: ``"one-pass"``, ``"epochs"`` or ``"random-offsets"``.

    Raises:
        UserError: The text is shorter than one window, or one pass of ``"epochs"`` than one batch.

    Examples:
        >>> order = WindowOrder(
        ...     num_tokens=13, context=3, targets_per_window=3, batch_size=2, seed=0, order="one-pass"
        ... )
        >>> order.num_windows
        4
        >>> sorted([*order.starts(0).tolist(), *order.starts(1).tolist()])
        [0, 3, 6, 9]
    """

    def __init__(
        self, *, num_tokens: int, context: int, targets_per_window: int, batch_size: int, seed: int, order: str
    ) -> None:
        if order not in ORDERS:
            raise UserError(f"order is {order!r}, expected one of {', '.join(ORDERS)}: change order")
        if num_tokens <= context:
            raise UserError(
                f"the training split holds {num_tokens:,} tokens, expected more than the context {context}: take more text,"
                " or lower context"
            )
        self.batch_size, self.order, self.seed = batch_size, order, seed
        self.targets_per_window = targets_per_window
        # Offsets lie `stride` apart.
        self._stride = 1 if order == "random-offsets" else targets_per_window
        self.num_windows = (num_tokens - 1 - context) // self._stride + 1
        if order == "epochs" and self.num_windows < batch_size:
            raise UserError(
                f"the training split holds {self.num_windows:,} windows, expected at least one batch of {batch_size:,}:"
                " take more text, or lower batch_size"
            )
        self._pass_steps = self.num_windows // batch_size if order == "epochs" else 0
        self._chunk_steps = max(1, CHUNK // batch_size)
        self._chunk: tuple[int, Offsets] = (0, np.empty(0, np.int64))
        self._permutation: tuple[int, Permutation] | None = None

    def starts(self, step: int) -> Offsets:
        """The offsets of the windows that step ``step`` reads.

        Args:
            step: From 0.

        Returns:
            ``batch_size`` offsets, yours to keep.

        Raises:
            UserError: ``"one-pass"`` has no windows left.
        """
        first, offsets = self._chunk
        row = (step - first) * self.batch_size
        if not 0 <= row < len(offsets):
            self.check(step + 1)
            # Chunks begin at multiples of their size, within the pass: the same ones however a run was stopped and resumed.
            pass_start = step - step % self._pass_steps if self._pass_steps else 0
            first = step - (step - pass_start) % self._chunk_steps
            last = first + self._chunk_steps
            if self._pass_steps:
                last = min(last, pass_start + self._pass_steps)
            if self.order == "one-pass":
                last = min(last, self.num_windows // self.batch_size)
            index = np.arange((first - pass_start) * self.batch_size, (last - pass_start) * self.batch_size)
            offsets = self._offsets(index, pass_start // self._pass_steps if self._pass_steps else 0)
            self._chunk = first, offsets
            row = (step - first) * self.batch_size
        return offsets[row : row + self.batch_size].copy()

    def seen(self, step: int, num: int) -> Offsets:
        """Offsets of windows that the steps before ``step`` have read, spread evenly over the time of their reading.

        Of ``"epochs"`` they are those of the first pass: it holds each window once, and stays the same sample later on.

        Args:
            step: Number of steps done.
            num: How many are wanted.

        Returns:
            ``num`` offsets, or as many as were read.
        """
        steps = min(step, self._pass_steps) if self._pass_steps else step
        read = steps * self.batch_size
        num = min(num, read)
        return self._offsets(np.arange(num, dtype=np.int64) * read // max(num, 1), 0)

    def check(self, num_steps: int) -> None:
        """Refuse a run of one pass that needs more windows than there are.

        Args:
            num_steps: Steps of the run.

        Raises:
            UserError: Too few windows.
        """
        needed = num_steps * self.batch_size
        if self.order == "one-pass" and needed > self.num_windows:
            raise UserError(
                f"one pass over the training split has {self.num_windows:,} windows, and {num_steps:,} steps of"
                f" {self.batch_size:,} need {needed:,}: take more text, at most {self.num_windows // self.batch_size:,}"
                " steps, or order 'epochs'"
            )

    def _offsets(self, index: Offsets, pass_number: int) -> Offsets:
        """Offsets of the windows that come as number ``index`` of a pass."""
        index = index.astype(np.int64, copy=False)
        if self.order == "random-offsets":
            bits = _random_bits(_key(f"offsets/{self.seed}"), index.astype(np.uint64))
            return (bits % np.uint64(self.num_windows)).astype(np.int64)
        if self._permutation is None or self._permutation[0] != pass_number:
            # One-pass is the first of the epochs.
            name = f"windows/{self.seed}/{pass_number}"
            self._permutation = pass_number, Permutation(self.num_windows, name)
        out = self._permutation[1](index)
        out *= self._stride
        return out
