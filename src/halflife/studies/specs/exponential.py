"""The spec of two paired runs that compute the same function if the loss does not depend on the weights' scale."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers
from halflife.studies.specs.images import DATASETS, MODELS, check_architecture
from halflife.studies.specs.trainers import EXPONENTIAL, Trainer
from halflife.theory import exponential_lr, exponential_root

__all__ = ["ExponentialRun"]

TWINS = ("matched", "unmatched", "constant")
DTYPES = ("float64", "float32")
LARGEST_GROWTH = 1e12  # of the learning rate; beyond it the twin's weights are rounded differently


@dataclass(frozen=True, kw_only=True)
class ExponentialRun(RunSpec):
    """An image classifier trained by SGD with momentum and an L2 penalty, side by side with a twin without decay.

    The run itself, with the gradient g at w_t on the batch t = 0, 1, ...:

        b_{t+1} = mu b_t + g + lam w_t,    w_{t+1} = w_t - lr b_{t+1},    b_0 = 0

    The twin has the same batches and momentum, no decay, and a learning rate that grows:

        lr_t = lr a^(-2t - 1),    a the larger root of x^2 - (1 + mu - lr lam) x + mu = 0

    If the loss does not depend on the scale of w, the twin's weights are a^-t w_t, the same function at every step, given
    that it starts from the matched previous iterate, a w_0; that is, from the momentum b_0 = (a - 1) / (a lr) w_0.

    Source: Li and Arora, "An Exponential Learning Rate Schedule for Deep Learning" (2020, arXiv 1910.07454), theorem 2.12.

    Args:
        data: A name of `halflife.studies.lab.images.data`.
        num_train: Training images used, from the start of the set (``None``: all).
        num_test: Test images used, at the end (``None``: all).
        downsample: Images are averaged over squares of this side first.
        model: As in `ImageRun`; the theorem is about ``"scale-invariant"``.
        width: As in `ImageRun`.
        blocks: As in `ImageRun`.
        lr: The run's learning rate.
        momentum: mu of both, in [0, 1).
        lam: The coefficient of the run's penalty, lam / 2 ||w||^2; lr lam < (1 - sqrt(mu))^2, or a is not real.
        twin: ``"matched"``, the theorem's; ``"unmatched"``, with the growing learning rate and b_0 = 0; ``"constant"``,
            with neither, SGD without decay.
        num_steps: Steps.
        batch_size: Images per step; a last smaller batch of an epoch is left out.
        dtype: ``"float64"`` or ``"float32"``, of everything.
        eval_every: Read every so many steps, and always at the end.
    """

    kind: ClassVar[str] = "exponential"
    trainer: ClassVar[Trainer] = EXPONENTIAL
    data_module: ClassVar[str] = "halflife.studies.lab.images.sources"

    data: str = "fashion-mnist-5k"
    num_train: int | None = None
    num_test: int | None = None
    downsample: int = 4
    model: str = "scale-invariant"
    width: int = 4
    blocks: tuple[int, ...] = (1, 1)
    lr: float
    momentum: float = 0.9
    lam: float
    twin: str = "matched"
    num_steps: int
    batch_size: int = 50
    dtype: str = "float64"
    eval_every: int = 20

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "lam", above=0)
        check_numbers(self, "momentum")
        if self.momentum >= 1:
            raise UserError(f"momentum is {self.momentum}, expected a number >= 0 and < 1: change momentum")
        check_counts(self, "num_steps", "batch_size", "eval_every", "downsample", "width")
        check_counts(self, "num_train", "num_test", "max_steps", or_none=True)
        check_choices(self, {"model": MODELS, "data": DATASETS, "twin": TWINS, "dtype": DTYPES})
        check_architecture(self)
        exponent = -2 * self.num_steps * math.log(self.root)
        if exponent > math.log(LARGEST_GROWTH):
            raise UserError(
                f"the twin's learning rate grows by 10^{exponent / math.log(10):.1f} in {self.num_steps} steps, expected at"
                f" most {LARGEST_GROWTH:g}: lower num_steps, lr or lam"
            )

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return self.data != "fashion-mnist-5k"

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    @property
    def root(self) -> float:
        """The a above, in (sqrt(mu), 1)."""
        return exponential_root(self.lr, self.lam, self.momentum)

    def twin_lr(self, step: int) -> float:
        """The twin's learning rate at the step that follows ``step`` others.

        Args:
            step: t above, from 0.

        Returns:
            lr_t.

        Examples:
            >>> run = ExponentialRun(lr=0.1, lam=1.0, momentum=0.0, num_steps=10)
            >>> round(run.root, 12), [round(run.twin_lr(t), 6) for t in (0, 1)]
            (0.9, [0.111111, 0.137174])
        """
        return self.lr if self.twin == "constant" else exponential_lr(step, self.lr, self.lam, self.momentum)
