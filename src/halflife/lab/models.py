"""Image classifiers of the paper's form, at any width and depth.

Shapes: B batch, C channels, H height, W width, K classes.

Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", appendix B: pre-activation
ResNet with BatchNorm (He et al. 2016, arXiv 1603.05027) and VGG without BatchNorm (Simonyan and Zisserman 2015),
both with He initialisation.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["VGG", "PreActResNet", "build_model"]

MAX_DOUBLINGS = 3  # VGG-16 stops doubling its channels after the fourth stage


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

    Args:
        width: Channels of the first stage.
        blocks: Blocks per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        layers: list[nn.Module] = []
        channels = width
        for stage, num_blocks in enumerate(blocks):
            out_channels = width * 2**stage
            for block in range(num_blocks):
                stride = 2 if stage > 0 and block == 0 else 1
                layers.append(PreActBlock(channels, out_channels, stride))
                channels = out_channels
        self.layers = nn.Sequential(*layers)
        self.norm = nn.BatchNorm2d(channels)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = functional.relu(self.norm(self.layers(self.stem(x_BCHW)))).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


class VGG(nn.Module):
    """VGG without normalization: 3x3 convolutions with bias and ReLU, a 2x2 max pool after each stage.

    VGG-16 is ``width=64, blocks=(2, 2, 3, 3, 3)`` (the convolutions per stage); its head is one linear layer, as in
    the versions for small images.

    Args:
        width: Channels of the first stage, doubled at each next one, at most three times.
        blocks: Convolutions per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, num_convs in enumerate(blocks):
            out_channels = width * 2 ** min(stage, MAX_DOUBLINGS)
            for _ in range(num_convs):
                layers += [nn.Conv2d(channels, out_channels, 3, padding=1), nn.ReLU(inplace=True)]
                channels = out_channels
            layers.append(nn.MaxPool2d(2))
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(channels, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        features_BC = self.layers(x_BCHW).mean(dim=(2, 3))
        logits_BK: Tensor = self.head(features_BC)
        return logits_BK


def _he_init(model: nn.Module, generator: torch.Generator) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            # The head feeds a softmax, not a ReLU: variance 1 / fan_in.
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear", generator=generator)
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            nn.init.zeros_(module.bias)


def build_model(
    name: str, *, width: int, blocks: Sequence[int], in_channels: int, num_classes: int, seed: int
) -> nn.Module:
    """Build a classifier with He initialisation, a function of ``seed`` alone (the global random state is untouched).

    Args:
        name: ``"resnet"`` (pre-activation, BatchNorm) or ``"vgg"`` (no normalization).
        width: Channels of the first stage.
        blocks: Blocks (ResNet) or convolutions (VGG) per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
        seed: Seeds the initial weights.

    Returns:
        The model, in training mode, in float32, on the CPU.

    Examples:
        >>> net = build_model("resnet", width=8, blocks=(1, 1, 1), in_channels=1, num_classes=10, seed=0)
        >>> sum(p.numel() for p in net.parameters())
        19714
    """
    # The constructors of torch's layers draw from the global generator before _he_init replaces what they drew.
    with torch.random.fork_rng(devices=[]):
        architecture = {"resnet": PreActResNet, "vgg": VGG}[name]
        model = architecture(width, blocks, in_channels, num_classes)
    _he_init(model, torch.Generator().manual_seed(seed))
    return model
