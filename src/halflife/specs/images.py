"""The spec of an image classifier's run: constant learning rate, one drop, EMA of the weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.specs.base import RunSpec, check_at_least, check_number

__all__ = ["ImageRun"]

MODELS = ("resnet", "vgg")
DATASETS = ("fashion-mnist-5k", "fashion-mnist", "cifar10")
PRECISIONS = ("float32", "bfloat16", "float16")
AUGMENTATIONS = ("none", "flip-crop")


@dataclass(frozen=True, kw_only=True)
class ImageRun(RunSpec):
    """An image classifier trained by plain SGD (momentum 0), learning rate dropped once.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", appendix B.

    Args:
        data: A name of `halflife.lab.data`.
        num_train: Training images used, from the start of the set (``None``: all).
        num_test: Test images used (``None``: all).
        downsample: Images are averaged over squares of this side first.
        model: ``"resnet"`` (pre-activation, BatchNorm) or ``"vgg"`` (no normalization).
        width: Channels of the first stage.
        blocks: Blocks (ResNet) or convolutions (VGG) per stage.
        lr: Learning rate before the drop.
        lr_after_drop: Learning rate after the drop.
        drop_at: Fraction of the epochs after which the learning rate drops.
        lam: Decoupled weight decay: each step removes the fraction r = lr * lam of every weight.
        num_epochs: Passes over the training images.
        batch_size: Images per step; a last smaller batch is left out.
        ema: Decays per step of the moving averages of the weights; each is evaluated beside the weights.
        eval_every: Evaluate on both sets every so many epochs, and always at the drop and at the end.
        precision: ``"float32"``, or autocast to ``"bfloat16"`` or ``"float16"`` (with gradient scaling).
        augmentation: Of training batches: ``"none"``, as in the paper, or ``"flip-crop"``: each image is flipped
            with probability 1/2 and moved by up to an eighth of its side, black coming in, anew in each epoch.
        label_smoothing: Of the training loss; readings are always without.
    """

    kind: ClassVar[str] = "images"
    trainer: ClassVar[str] = "halflife.lab.images"
    data_module: ClassVar[str] = "halflife.lab.sources"
    added_later: ClassVar[frozenset[str]] = frozenset({"augmentation", "label_smoothing"})

    data: str = "fashion-mnist-5k"
    num_train: int | None = None
    num_test: int | None = None
    downsample: int = 2
    model: str = "resnet"
    width: int = 8
    blocks: tuple[int, ...] = (1, 1, 1)
    lr: float
    lr_after_drop: float = 1e-3
    drop_at: float = 0.5
    lam: float
    num_epochs: int
    batch_size: int = 128
    ema: tuple[float, ...] = (0.999,)
    eval_every: int = 10
    precision: str = "float32"
    augmentation: str = "none"
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        check_number("lr", self.lr, above=0)
        check_number("lr_after_drop", self.lr_after_drop, above=0)
        check_number("lam", self.lam)
        check_number("drop_at", self.drop_at, above=0, at_most=1)
        check_number("label_smoothing", self.label_smoothing, at_most=0.9)
        for decay in self.ema:
            check_number("ema", decay, at_most=1)
        if max(self.lr, self.lr_after_drop) * self.lam >= 1:
            raise UserError(
                f"lr * lam is {max(self.lr, self.lr_after_drop) * self.lam:g}, expected < 1 (it is the fraction of the"
                " weight removed at each step): lower lr or lam"
            )
        for name, value, known in (
            ("model", self.model, MODELS),
            ("data", self.data, DATASETS),
            ("precision", self.precision, PRECISIONS),
            ("augmentation", self.augmentation, AUGMENTATIONS),
        ):
            if value not in known:
                raise UserError(f"{name} is {value!r}, expected one of {', '.join(known)}: change {name}")
        for name, count in (
            ("num_train", self.num_train),
            ("num_test", self.num_test),
            ("max_steps", self.max_steps),
        ):
            if count is not None:
                check_at_least(name, count, 1)
        for name in ("downsample", "width", "num_epochs", "batch_size", "eval_every"):
            check_at_least(name, getattr(self, name), 1)
        if not self.blocks or min(self.blocks) < 1:
            raise UserError(f"blocks is {self.blocks}, expected at least one stage of >= 1 blocks: change blocks")

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.data != "fashion-mnist-5k"

    @property
    def drop_epoch(self) -> int:
        """The last epoch at the first learning rate."""
        return round(self.num_epochs * self.drop_at)
