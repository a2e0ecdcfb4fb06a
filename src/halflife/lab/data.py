"""Image sets as tensors on the training device: averaged down, normalized, all in memory.

Shapes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import UserError
from halflife.lab.sources import ImageSource, Split

__all__ = ["Images", "image_tensors", "shuffled_batches"]


@dataclass(frozen=True)
class Images:
    """Normalized images and their labels."""

    x_NCHW: Tensor
    y_N: Tensor

    def __len__(self) -> int:
        """Number of images."""
        return len(self.y_N)


def _pixels(split: Split, count: int | None, downsample: int, name: str) -> tuple[Tensor, Tensor]:
    if count is not None and count > split.count:
        raise UserError(f"{name} is {count} and the set holds {split.count} images: lower {name}")
    channels, height, width = split.shape
    if downsample > min(height, width):
        raise UserError(f"downsample is {downsample} and images are {height} x {width}: lower downsample")
    x = torch.frombuffer(bytearray(split.images), dtype=torch.uint8).view(-1, channels, height, width)
    y = torch.frombuffer(bytearray(split.labels), dtype=torch.uint8).long()
    x_NCHW = functional.avg_pool2d(x[:count].float() / 255, downsample)
    return x_NCHW, y[:count]


def image_tensors(
    source: ImageSource,
    *,
    num_train: int | None,
    num_test: int | None,
    downsample: int,
    device: torch.device,
) -> tuple[Images, Images]:
    """The training and the test set on the device, each channel with the training set's mean 0 and variance 1.

    Args:
        source: The set.
        num_train: Training images to take from the start (``None``: all).
        num_test: Test images to take from the start (``None``: all).
        downsample: Images are averaged over squares of this side.
        device: Where the tensors live.

    Returns:
        Training and test images, channels last in memory.
    """
    train_x, train_y = _pixels(source.train, num_train, downsample, "num_train")
    test_x, test_y = _pixels(source.test, num_test, downsample, "num_test")
    mean = train_x.mean(dim=(0, 2, 3), keepdim=True)
    std = train_x.std(dim=(0, 2, 3), keepdim=True)

    def place(x_NCHW: Tensor, y_N: Tensor) -> Images:
        normed = ((x_NCHW - mean) / std).to(device, memory_format=torch.channels_last)
        return Images(normed, y_N.to(device))

    return place(train_x, train_y), place(test_x, test_y)


def shuffled_batches(images: Images, batch_size: int, *, seed: int, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch in an order that is a function of ``seed`` and ``epoch`` alone.

    A last smaller batch is left out: BatchNorm's statistics of a few images would be another kind of noise.

    Args:
        images: The training set.
        batch_size: Images per batch.
        seed: The run's seed.
        epoch: Which pass, from 0.

    Yields:
        Images (B, C, H, W) and labels (B).
    """
    # A CPU generator takes 32 bits of a seed and ignores the rest without a word, so both numbers are hashed into them.
    bits = hashlib.sha256(f"order/{seed}/{epoch}".encode()).digest()[:4]
    generator = torch.Generator().manual_seed(int.from_bytes(bits))
    order_N = torch.randperm(len(images), generator=generator).to(images.y_N.device)
    for start in range(0, len(images) - batch_size + 1, batch_size):
        index_B = order_N[start : start + batch_size]
        yield images.x_NCHW[index_B].contiguous(memory_format=torch.channels_last), images.y_N[index_B]
