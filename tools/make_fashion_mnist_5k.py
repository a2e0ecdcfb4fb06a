"""Make src/halflife/studies/lab/images/files/fashion-mnist-5k.xz from the full Fashion-MNIST.

    python tools/make_fashion_mnist_5k.py FOLDER

FOLDER holds the four idx ``.gz`` files (Debian's package dataset-fashion-mnist has them). The result is one xz
stream of four idx arrays in this order: the first 5,000 training images, their labels, all 10,000 test images,
their labels. Every array keeps the idx header of its own size, so the file says what it holds.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import struct
import sys
from pathlib import Path

NUM_TRAIN = 5_000
TARGET = Path(__file__).parents[1] / "src/halflife/studies/lab/images/files/fashion-mnist-5k.xz"


def first(idx: bytes, count: int) -> bytes:
    """The idx array cut to its first ``count`` entries."""
    num_dims = idx[3]
    sizes = struct.unpack(f">{num_dims}I", idx[4 : 4 + 4 * num_dims])
    entry = 1
    for size in sizes[1:]:
        entry *= size
    body = idx[4 + 4 * num_dims :]
    return idx[:4] + struct.pack(f">{num_dims}I", count, *sizes[1:]) + body[: count * entry]


def main(folder: Path) -> None:
    """Write the shipped file and print its size and the hash of its content."""
    parts = [
        first(gzip.decompress((folder / f"{split}-{kind}-ubyte.gz").read_bytes()), count)
        for split, count in (("train", NUM_TRAIN), ("t10k", 10_000))
        for kind in ("images-idx3", "labels-idx1")
    ]
    raw = b"".join(parts)
    TARGET.write_bytes(lzma.compress(raw, preset=9 | lzma.PRESET_EXTREME))
    print(f"{TARGET}: {TARGET.stat().st_size} bytes, content sha256 {hashlib.sha256(raw).hexdigest()}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
