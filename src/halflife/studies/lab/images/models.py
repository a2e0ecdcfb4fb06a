"""Image classifiers of the paper's form, at any width and depth.

Shapes: B batch, C channels, H height, W width, K classes.

Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", appendix B: pre-activation
ResNet with BatchNorm (He et al. 2016, arXiv 1603.05027) and VGG without BatchNorm (Simonyan and Zisserman 2015),
both with He initialisation; its scale-invariant ResNet of appendix C. ResNets are in `halflife.studies.lab.images.residual`,
DenseNet and GoogLeNet in `halflife.studies.lab.images.concatenating`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from halflife.errors import UserError
from halflife.studies.lab.images.concatenating import DenseNet, GoogLeNet, conv_norm
from halflife.studies.lab.images.residual import PlainResNet, PreActResNet, ScaleInvariantResNet

__all__ = ["MLP", "VGG", "build_model"]

MAX_DOUBLINGS = 3  # VGG-16 stops doubling its channels after the fourth stage


class VGG(nn.Module):
    """VGG: 3x3 convolutions with bias, or with BatchNorm in place of it, and ReLU; a 2x2 max pool after each stage.

    VGG-16 is ``width=64, blocks=(2, 2, 3, 3, 3)`` (the convolutions per stage); its head is one linear layer, as in
    the versions for small images.

    Args:
        width: Channels of the first stage, doubled at each next one, at most three times.
        blocks: Convolutions per stage.
        in_channels: Channels of the images.
        num_classes: Size of the output.
        batch_norm: Whether BatchNorm follows each convolution.
    """

    def __init__(
        self, width: int, blocks: Sequence[int], in_channels: int, num_classes: int, *, batch_norm: bool = False
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for stage, num_convs in enumerate(blocks):
            out_channels = width * 2 ** min(stage, MAX_DOUBLINGS)
            for _ in range(num_convs):
                if batch_norm:
                    layers += conv_norm(channels, out_channels, 3)
                else:
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


class MLP(nn.Module):
    """Fully connected layers with bias and ReLU between them: ``depth`` hidden ones of ``width`` units.

    Args:
        width: Units of each hidden layer.
        depth: Hidden layers.
        num_inputs: Pixels of an image, all channels together.
        num_classes: Size of the output.
    """

    def __init__(self, width: int, depth: int, num_inputs: int, num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Flatten()]
        for _ in range(depth):
            layers += [nn.Linear(num_inputs, width), nn.ReLU()]
            num_inputs = width
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(num_inputs, num_classes)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Return the logits, (B, K)."""
        logits_BK: Tensor = self.head(self.layers(x_BCHW))
        return logits_BK


def _he_init(model: nn.Module, generator: torch.Generator) -> None:
    for name, module in model.named_modules():
        if isinstance(model, ScaleInvariantResNet) and name == "head":
            nn.init.normal_(model.head.weight, std=model.head_std, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear):
            # The head feeds a softmax, not a ReLU: variance 1 / fan_in.
            kind: Literal["linear", "relu"] = "linear" if name == "head" else "relu"
            nn.init.kaiming_normal_(module.weight, nonlinearity=kind, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def build_model(
    name: str,
    *,
    width: int,
    blocks: Sequence[int],
    in_channels: int,
    num_classes: int,
    seed: int,
    image_size: tuple[int, int] | None = None,
) -> nn.Module:
    """Build a classifier with He initialisation, a function of ``seed`` alone (the global random state is untouched).

    Args:
        name: ``"resnet"`` (pre-activation, BatchNorm), ``"vgg"`` (no normalization), ``"scale-invariant"``
            (`ScaleInvariantResNet`; parts of it are fixed), ``"resnet-plain"`` (`PlainResNet`, no normalization),
            ``"mlp"``, ``"vgg-bn"``, ``"densenet"``, ``"densenet-basic"`` (without bottlenecks) or ``"googlenet"``.
        width: Channels of the first stage; units of a hidden layer of the MLP; maps that a layer of a DenseNet adds.
        blocks: Blocks (ResNet, GoogLeNet), convolutions (VGG) or layers (DenseNet) per stage; the MLP has one hidden layer
            for each entry, whatever it is.
        in_channels: Channels of the images.
        num_classes: Size of the output.
        seed: Seeds the initial weights.
        image_size: Height and width of the images. The MLP needs it.

    Returns:
        The model, in training mode, in float32, on the CPU.

    Raises:
        UserError: An MLP without ``image_size``, or images that are too small to be halved at every stage.

    Examples:
        >>> net = build_model("resnet", width=8, blocks=(1, 1, 1), in_channels=1, num_classes=10, seed=0)
        >>> sum(p.numel() for p in net.parameters())
        19714
        >>> net = build_model(
        ...     "mlp", width=32, blocks=(1, 1), in_channels=1, num_classes=10, seed=0, image_size=(14, 14)
        ... )
        >>> [tuple(p.shape) for p in net.parameters() if p.dim() > 1]
        [(32, 196), (32, 32), (10, 32)]
    """
    halvings = len(blocks) - name.startswith("densenet") if name.startswith(("vgg", "densenet")) else 0
    if image_size is not None and min(image_size) < 2**halvings:
        raise UserError(
            f"images are {image_size[0]} x {image_size[1]} and {name} halves them {halvings} times, expected at least"
            f" {2**halvings} pixels a side: take fewer stages (blocks), or lower downsample"
        )
    # The constructors of torch's layers draw from the global generator before _he_init replaces what they drew.
    with torch.random.fork_rng(devices=[]):
        model: nn.Module
        if name == "mlp":
            if image_size is None:
                raise UserError("an MLP got no image_size, expected (height, width): its first layer sees every pixel")
            model = MLP(width, len(blocks), in_channels * image_size[0] * image_size[1], num_classes)
        else:
            model = _CONVOLUTIONAL[name](width, blocks, in_channels, num_classes)
    _he_init(model, torch.Generator().manual_seed(seed))
    return model


_CONVOLUTIONAL: dict[str, Callable[[int, Sequence[int], int, int], nn.Module]] = {
    "resnet": PreActResNet,
    "vgg": VGG,
    "scale-invariant": ScaleInvariantResNet,
    "resnet-plain": PlainResNet,
    "vgg-bn": functools.partial(VGG, batch_norm=True),
    "densenet": DenseNet,
    "densenet-basic": functools.partial(DenseNet, bottleneck=False),
    "googlenet": GoogLeNet,
}
