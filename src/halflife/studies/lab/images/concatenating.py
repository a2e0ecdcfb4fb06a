"""Nets whose layers put maps side by side, with BatchNorm: DenseNet and GoogLeNet for small images, at any width.

Shapes: B batch, C channels, H height, W width, K classes.

Source: in the form for images of 32 x 32 in which "Understanding and Scheduling Weight Decay" (arXiv 2011.11152) trains
them, with a 3x3 convolution of stride 1 at the start. No convolution has a bias, because BatchNorm follows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["DenseNet", "GoogLeNet", "conv_norm"]

BOTTLENECK = 4  # maps of a bottleneck over those that its layer adds
STEM = 192  # GoogLeNet's maps before the first block, at width 64
INCEPTIONS = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)
"""Of each stage's blocks, at width 64: maps of the 1x1 branch, of the 3x3 branch's 1x1 and 3x3, of the 5x5 branch's 1x1 and
5x5, of the pooling branch. Table 1 of Szegedy et al. 2015, arXiv 1409.4842."""


def conv_norm(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    """A convolution that keeps the size, BatchNorm and ReLU.

    Args:
        in_channels: Channels before.
        out_channels: Channels after.
        kernel: Side of the convolution, odd.

    Returns:
        The three layers.
    """
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [conv, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


def _norm_conv(in_channels: int, out_channels: int, kernel: int) -> list[nn.Module]:
    """BatchNorm, ReLU, and a convolution that keeps the size."""
    conv = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
    return [nn.BatchNorm2d(in_channels), nn.ReLU(inplace=True), conv]


class DenseLayer(nn.Module):
    """Adds ``growth`` maps to those that it gets."""

    def __init__(self, in_channels: int, growth: int, bottleneck: bool) -> None:
        super().__init__()
        middle = BOTTLENECK * growth
        layers = _norm_conv(in_channels, middle, 1) if bottleneck else []
        self.layers = nn.Sequential(*layers, *_norm_conv(middle if bottleneck else in_channels, growth, 3))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the new maps and the old ones, (B, growth + C, H, W)."""
        return torch.cat([self.layers(x_BCHW), x_BCHW], dim=1)


class DenseNet(nn.Module):
    """DenseNet: every layer sees the maps of all layers before it in its stage; between stages maps and sizes are halved.

    DenseNet-121 is ``width=32, blocks=(6, 12, 24, 16)``, with bottlenecks.

    Source: Huang et al. 2017, arXiv 1608.06993: DenseNet-BC, or DenseNet-C without bottlenecks.

    Args:
        width: Maps that each layer adds; the first convolution makes twice as many.
        blocks: Layers per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
        bottleneck: Whether a 1x1 convolution to four times ``width`` stands before each 3x3 one.
    """

    def __init__(
        self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int, *, bottleneck: bool = True
    ) -> None:
        super().__init__()
        channels = 2 * width
        self.stem = nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        for stage, num_layers in enumerate(blocks):
            if stage > 0:
                layers += [*_norm_conv(channels, channels // 2, 1), nn.AvgPool2d(2)]
                channels //= 2
            for _ in range(num_layers):
                layers.append(DenseLayer(channels, width, bottleneck))
                channels += width
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = functional.relu(self.norm(self.layers(self.stem(x_BCHW)))).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


class Inception(nn.Module):
    """Four branches side by side: 1x1, 3x3, 5x5 as two 3x3 (both after a 1x1), and 1x1 after pooling."""

    def __init__(self, in_channels: int, maps: Sequence[int]) -> None:
        super().__init__()
        one, three_before, three, five_before, five, pooled = maps
        self.branches = nn.ModuleList(
            nn.Sequential(*layers)
            for layers in (
                conv_norm(in_channels, one, 1),
                [*conv_norm(in_channels, three_before, 1), *conv_norm(three_before, three, 3)],
                [*conv_norm(in_channels, five_before, 1), *conv_norm(five_before, five, 3), *conv_norm(five, five, 3)],
                [nn.MaxPool2d(3, stride=1, padding=1), *conv_norm(in_channels, pooled, 1)],
            )
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the maps of all branches."""
        return torch.cat([branch(x_BCHW) for branch in self.branches], dim=1)


class GoogLeNet(nn.Module):
    """GoogLeNet with BatchNorm: a convolution, stages of inception blocks with a 3x3 max pool of stride 2 between them.

    The whole net is ``width=64, blocks=(2, 5, 2)``. Fewer blocks are the first ones of their stage, more repeat its last
    one; a stage after the third is like it.

    Source: Szegedy et al. 2015, arXiv 1409.4842, table 1, without its auxiliary classifiers; BatchNorm and two 3x3
    convolutions for a 5x5 one are those of Ioffe and Szegedy 2015, arXiv 1502.03167, appendix.

    Args:
        width: All maps are those of the paper times width / 64, rounded; at least 4.
        blocks: Inception blocks per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        channels = round(STEM * width / 64)
        layers = conv_norm(in_channels, channels, 3)
        for stage, num_blocks in enumerate(blocks):
            if stage > 0:
                layers.append(nn.MaxPool2d(3, stride=2, padding=1))
            table = INCEPTIONS[min(stage, len(INCEPTIONS) - 1)]
            for block in range(num_blocks):
                maps = [round(count * width / 64) for count in table[min(block, len(table) - 1)]]
                layers.append(Inception(channels, maps))
                channels = maps[0] + maps[2] + maps[4] + maps[5]
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = self.layers(x_BCHW).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK
