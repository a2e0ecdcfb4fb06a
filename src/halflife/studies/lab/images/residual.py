"""Residual nets for small images: with BatchNorm, invariant to the scale of every trained weight, without normalization.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["PlainResNet", "PreActResNet", "ScaleInvariantResNet"]

TINY_EPS = 1e-20
"""Of BatchNorm in the scale-invariant net. What it adds to a variance is all that is not invariant."""
FULL_FEATURES = 512
"""Of ResNet-18 at its full width."""


def _block_shapes(width: int, blocks: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """Input channels, output channels and stride of each block: channels double and sizes halve from stage to stage."""
    channels = width
    for stage, num_blocks in enumerate(blocks):
        out_channels = width * 2**stage
        for block in range(num_blocks):
            yield channels, out_channels, 2 if stage > 0 and block == 0 else 1
            channels = out_channels


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each after BatchNorm and ReLU, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, (B, C_out, H / stride, W / stride)."""
        normed = functional.relu(self.norm1(x_BCHW))
        skip = x_BCHW if self.shortcut is None else self.shortcut(normed)
        out: Tensor = self.conv2(functional.relu(self.norm2(self.conv1(normed))))
        return out + skip


class PreActResNet(nn.Module):
    """Pre-activation ResNet: ``width`` channels in the first stage, doubled (and halved in size) at each next one.

    ResNet-18 is ``width=64, blocks=(2, 2, 2, 2)``, ResNet-34 ``blocks=(3, 4, 6, 3)``.

    Source: He et al. 2016, arXiv 1603.05027.

    Args:
        width: Channels of the first stage.
        blocks: Blocks per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.layers = nn.Sequential(*(PreActBlock(*shape) for shape in _block_shapes(width, blocks)))
        channels = width * 2 ** (len(blocks) - 1)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = functional.relu(self.norm(self.layers(self.stem(x_BCHW)))).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


class _NormedConv(nn.Module):
    """A convolution and BatchNorm without gain and bias: unchanged when a filter is multiplied by any c > 0."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride=stride, padding=kernel // 2, bias=False)
        self.norm = nn.BatchNorm2d(out_channels, eps=TINY_EPS, affine=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the normalized maps."""
        out: Tensor = self.norm(self.conv(x_BCHW))
        return out


class ScaleInvariantBlock(nn.Module):
    """The original residual block: BatchNorm after each convolution, that of the shortcut too, ReLU after the sum."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = _NormedConv(in_channels, out_channels, 3, stride)
        self.conv2 = _NormedConv(out_channels, out_channels, 3)
        self.shortcut: _NormedConv | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = _NormedConv(in_channels, out_channels, 1, stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, (B, C_out, H / stride, W / stride)."""
        skip = x_BCHW if self.shortcut is None else self.shortcut(x_BCHW)
        return functional.relu(self.conv2(functional.relu(self.conv1(x_BCHW))) + skip)


class ScaleInvariantResNet(nn.Module):
    """ResNet whose every trained weight is followed by BatchNorm; gains, biases and the last layer are fixed.

    With w any one convolution's weights (or one filter's, or all of them) and c > 0

        f(c w) = f(w),    <grad L(w), w> = 0,    grad L(c w) = grad L(w) / c

    up to BatchNorm's eps, which stands beside a variance that falls as c^2 and changes the output by eps / variance in
    parts: at 1e-20 less than rounding while a channel's standard deviation exceeds 1e-6 in float32 and 1e-2 in float64.
    (At torch's default of 1e-5 the nets on a small sphere would be other functions.) In evaluation mode it holds once the
    running statistics are those of the scaled weights.

    A pre-activation ResNet does not do: its second convolutions and shortcuts end in the sum before any normalization, so
    only all weights together have no scale. Hence the original block (He et al. 2015, arXiv 1512.03385), as in the nets
    whose last layer, gains and biases are fixed in Li and Arora, "An Exponential Learning Rate Schedule for Deep Learning"
    (2020, arXiv 1910.07454, appendix C).

    The last layer has no bias and independent normal weights of standard deviation sqrt(512) / C. Features are normalized,
    so the logits that the net can reach are at most of the order of that times C: the same at any width. At the 512
    features of ResNet-18 it is He initialisation for a linear layer, 1 / sqrt(C), which would keep a net with 16 features
    from ever fitting its data.

    Args:
        width: Channels of the first stage.
        blocks: Blocks per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = _NormedConv(in_channels, width, 3)
        self.layers = nn.Sequential(*(ScaleInvariantBlock(*shape) for shape in _block_shapes(width, blocks)))
        channels = width * 2 ** (len(blocks) - 1)
        self.head = nn.Linear(channels, num_classes, bias=False)
        self.head.requires_grad_(False)
        self.head_std = math.sqrt(FULL_FEATURES) / channels

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = self.layers(functional.relu(self.stem(x_BCHW))).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


class PlainBlock(nn.Module):
    """Two 3x3 convolutions with bias, each after ReLU, times a trained number, around a shortcut."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, gain: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.gain = nn.Parameter(torch.tensor([gain]))
        self.shortcut: nn.Conv2d | None = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the block's output, (B, C_out, H / stride, W / stride)."""
        active = functional.relu(x_BCHW)
        skip = x_BCHW if self.shortcut is None else self.shortcut(active)
        out: Tensor = self.conv2(functional.relu(self.conv1(active)))
        return self.gain * out + skip


class PlainResNet(nn.Module):
    """Pre-activation ResNet without normalization: each of D residual branches has a trained gain, 1 / sqrt(D) at first.

    With He initialisation a branch keeps the variance of what enters it, so that the variance after D blocks is at most
    (1 + 1 / D)^D < e times that at the start, at any depth: "SkipInit" of De and Smith, "Batch Normalization Biases Residual
    Blocks Towards the Identity Function in Deep Networks" (2020, arXiv 2002.10444), section 3, which starts the gains at 0
    or at 1 / sqrt(D).

    Args:
        width: Channels of the first stage.
        blocks: Blocks per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1)
        gain = sum(blocks) ** -0.5
        self.layers = nn.Sequential(*(PlainBlock(*shape, gain) for shape in _block_shapes(width, blocks)))
        self.head = nn.Linear(width * 2 ** (len(blocks) - 1), num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = functional.relu(self.layers(self.stem(x_BCHW))).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK
