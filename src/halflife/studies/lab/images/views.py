"""More distinct images than the package ships: each in ten views, flipped and moved.

A study of how many distinct examples a budget of samples is spent on needs a set as large as the budget. The paper's is
synthetic too (CIFAR-5m: images drawn from a generative model, labelled by a network); this one stays close to real images.

Shapes: N images, M examples, H = W = 28.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["SHA256", "TITLE", "Split", "many_views"]

SIDE = 28
FARTHEST = 3  # pixels that a view is moved by, up or down and left or right
NUM_VIEWS = 2 * (2 * FARTHEST + 1) ** 2
VIEWS_EACH = 10
NUM_MORE = 6_000  # test images that go to the training set

TITLE = (
    "Fashion-MNIST, views: 110,000 flipped and moved copies of 11,000 images (5,000 training and the first 6,000 test images)"
    " to train on, one of each of the last 4,000 test images to test on, 14 x 14"
)
SHA256 = "dc5c062d4e08e47704bc0b6a8e8ac16da4d64e1216a1ef55ca8b822bee7f8c6c"


@dataclass(frozen=True)
class Split:
    """Images and labels as raw bytes, image by image, channel by channel."""

    images: bytes
    labels: bytes
    shape: tuple[int, int, int]
    """Channels, height, width."""

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.labels)


def view_of(image: int, which: int) -> tuple[bool, int, int]:
    """Which view of an image comes as its first, second, ...: spread evenly, and a function of both numbers alone.

    Args:
        image: The image's number.
        which: From 0; all that are below `NUM_VIEWS` differ.

    Returns:
        Whether it is mirrored, and by how many pixels it is then moved down and to the right.

    Examples:
        >>> view_of(0, 0), view_of(0, 1)
        ((False, -3, -3), (True, -3, 2))
        >>> len({view_of(7, which) for which in range(NUM_VIEWS)}) == NUM_VIEWS
        True
    """
    number = (37 * image + 11 * which) % NUM_VIEWS  # 11 shares no factor with 98
    place, side = number // 2, 2 * FARTHEST + 1
    return bool(number % 2), place // side - FARTHEST, place % side - FARTHEST


def _seen(images_NHW: NDArray[np.uint8], which: int) -> NDArray[np.uint8]:
    """Each image flipped and moved, black from outside, averaged over squares of two pixels: (N, H / 2, W / 2)."""
    moved_NHW = np.zeros_like(images_NHW)
    for first in range(NUM_VIEWS):  # images of equal number modulo NUM_VIEWS have equal views
        mirrored, down, right = view_of(first, which)
        part = images_NHW[first::NUM_VIEWS, :, ::-1] if mirrored else images_NHW[first::NUM_VIEWS]
        to = [slice(max(by, 0), SIDE + min(by, 0)) for by in (down, right)]
        of = [slice(max(-by, 0), SIDE + min(-by, 0)) for by in (down, right)]
        moved_NHW[first::NUM_VIEWS, to[0], to[1]] = part[:, of[0], of[1]]
    half = SIDE // 2
    sums = moved_NHW.reshape(-1, half, 2, half, 2).sum(axis=(2, 4), dtype=np.uint16)
    mean: NDArray[np.uint8] = ((sums + 2) // 4).astype(np.uint8)
    return mean


def many_views(train: Split, test: Split) -> tuple[Split, Split]:
    """A training set of ten views of each of 11,000 images, and a test set of one view of each of the others.

    The first 11,000 training examples are distinct images, each in its first view; then come the second views, and so on.

    Args:
        train: The shipped training images, 28 x 28.
        test: The shipped test images.

    Returns:
        Training and test set, at 14 x 14.
    """

    def pixels(split: Split) -> NDArray[np.uint8]:
        return np.frombuffer(split.images, dtype=np.uint8).reshape(-1, SIDE, SIDE)

    base_NHW = np.concatenate([pixels(train), pixels(test)[:NUM_MORE]])
    base_labels = train.labels + test.labels[:NUM_MORE]
    shape = (1, SIDE // 2, SIDE // 2)
    seen = [_seen(base_NHW, which).tobytes() for which in range(VIEWS_EACH)]
    made = (
        Split(b"".join(seen), base_labels * VIEWS_EACH, shape),
        Split(_seen(pixels(test)[NUM_MORE:], 0).tobytes(), test.labels[NUM_MORE:], shape),
    )
    found = content_hash(*made)
    assert found == SHA256, f"the views are not those of other machines: sha256 {found}"
    return made


def content_hash(*splits: Split) -> str:
    """sha256 of the images and labels of each split in turn, in hexadecimal."""
    digest = hashlib.sha256()
    for split in splits:
        digest.update(split.images)
        digest.update(split.labels)
    return digest.hexdigest()
