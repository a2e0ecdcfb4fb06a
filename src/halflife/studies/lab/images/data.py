"""Image sets as tensors on the training device: averaged down, normalized, all in memory, augmented batch by batch.

Shapes: N images, B batch, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import UserError
from halflife.studies.lab.images.sources import ImageSource, Split
from halflife.studies.lab.seeds import seed_of

__all__ = ["Augmentation", "Images", "image_tensors", "noisy_labels", "shuffled_batches"]

PADDED_SHARE = 8  # a crop moves by up to 1/8 of the side: 4 pixels of 32


@dataclass(frozen=True)
class Images:
    """Normalized images and their labels."""

    x_NCHW: Tensor
    y_N: Tensor
    black_C: Tensor
    """The normalized value of a black pixel."""

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
        return Images(normed, y_N.to(device), (-mean / std).flatten().to(device))

    return place(train_x, train_y), place(test_x, test_y)


class Augmentation:
    """Random horizontal flips and crops after padding with black by an eighth of the side, new for each image and epoch.

    What happens to an image is a function of the seed, the epoch and its number in the set alone, whatever batch it is in.

    Args:
        images: The training set.
        seed: The run's seed.
        epoch: Which pass, from 0.
    """

    def __init__(self, images: Images, *, seed: int, epoch: int) -> None:
        self.images = images
        height, width = images.x_NCHW.shape[2:]
        device = images.y_N.device
        self.pad = (round(height / PADDED_SHARE), round(width / PADDED_SHARE))
        generator = _generator("augment", seed, epoch)

        def draw(choices: int) -> Tensor:
            return torch.randint(choices, (len(images), 1), generator=generator).to(device)

        flipped_N1 = draw(2) == 1
        self.rows_NH = draw(2 * self.pad[0] + 1) + torch.arange(height, device=device)
        columns_W = torch.arange(width, device=device)
        self.columns_NW = draw(2 * self.pad[1] + 1) + torch.where(flipped_N1, columns_W.flip(0), columns_W)

    def __call__(self, index_B: Tensor) -> Tensor:
        """The augmented images of these numbers, (B, C, H, W), channels last in memory."""
        x_BCHW = self.images.x_NCHW[index_B]
        batch, channels, height, width = x_BCHW.shape
        top, left = self.pad
        padded = self.images.black_C.view(1, 1, 1, channels).repeat(batch, height + 2 * top, width + 2 * left, 1)
        padded[:, top : top + height, left : left + width] = x_BCHW.permute(0, 2, 3, 1)
        image_B11 = torch.arange(batch, device=index_B.device)[:, None, None]
        return padded[image_B11, self.rows_NH[index_B][:, :, None], self.columns_NW[index_B][:, None, :]].permute(
            0, 3, 1, 2
        )


def noisy_labels(y_N: Tensor, share: float, num_classes: int, *, seed: int, epoch: int | None = None) -> Tensor:
    """Labels of which each is replaced, with probability ``share``, by one drawn evenly from all classes.

    The right one is among them: a label changes with probability share (K - 1) / K. What happens to an image is a function
    of the seed, the epoch and its number in the set alone; with a larger share, all that were replaced still are.

    Args:
        y_N: The right labels.
        share: In [0, 1].
        num_classes: K.
        seed: The run's seed.
        epoch: For labels drawn anew in each epoch (``None``: once and for all).

    Returns:
        The labels, (N).
    """
    name = f"labels/{seed}" if epoch is None else f"labels/{seed}/{epoch}"
    generator = torch.Generator().manual_seed(seed_of(name))
    draws_N = torch.rand(len(y_N), generator=generator, dtype=torch.float64).to(y_N.device)
    others_N = torch.randint(num_classes, (len(y_N),), generator=generator).to(y_N.device)
    return torch.where(draws_N < share, others_N, y_N)


def shuffled_batches(
    images: Images, batch_size: int, *, seed: int, epoch: int, augmentation: str = "none"
) -> Iterator[tuple[Tensor, Tensor]]:
    """The batches of one epoch in an order that is a function of ``seed`` and ``epoch`` alone.

    A last smaller batch is left out: BatchNorm's statistics of a few images would be another kind of noise.

    Args:
        images: The training set.
        batch_size: Images per batch.
        seed: The run's seed.
        epoch: Which pass, from 0.
        augmentation: ``"none"`` or ``"flip-crop"`` (`Augmentation`).

    Yields:
        Images (B, C, H, W) and labels (B).
    """
    order_N = torch.randperm(len(images), generator=_generator("order", seed, epoch)).to(images.y_N.device)
    augment = Augmentation(images, seed=seed, epoch=epoch) if augmentation == "flip-crop" else None
    for start in range(0, len(images) - batch_size + 1, batch_size):
        index_B = order_N[start : start + batch_size]
        x_BCHW = images.x_NCHW[index_B] if augment is None else augment(index_B)
        yield x_BCHW.contiguous(memory_format=torch.channels_last), images.y_N[index_B]


def _generator(purpose: str, seed: int, epoch: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"{purpose}/{seed}/{epoch}"))
