"""The spec of SGD run until it is stationary, on functions small enough to know where it should be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers, check_removed
from halflife.studies.specs.trainers import STATIONARY, Trainer

__all__ = ["StationaryRun"]

MODELS = ("product", "square", "tanh")
LOSSES = ("squared", "logistic")
DATASETS = ("unit", "sparse", "fashion-mnist-5k")
REGULARIZERS = ("jacobian", "hessian")


@dataclass(frozen=True, kw_only=True)
class StationaryRun(RunSpec):
    """SGD at a constant learning rate, averaged over time and replicas; and the minima of the objectives it may follow.

    Many replicas start from the same weights and draw their own examples, with replacement, and label noise,

        w_{t+1} = (1 - lr lam) w_t - (lr / B) sum_b l'(h_b, y_b) dh_b / dw.

    Sampled with replacement, a batch of B has exactly 1 / B of the noise of one example. After the burn-in the output h on
    every input is averaged: the mean in function space. Beside it stand the outputs at the minima, nearest to the mean of the
    weights, of

        mean_i l(h_i, y_i) + lam / 2 ||w||^2 + (c / B) lr sigma^2 R(w)

    for each c of ``prefactors`` and both R: ``"jacobian"``, ||J||^2 = mean_i ||dh_i / dw||^2, and ``"hessian"``, the trace of
    the Hessian of the mean loss. sigma^2 is the measured mean of l'^2 over noisy labels and time.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", conjecture 1 (c = 1, R = ||J||^2; in its first version
    the trace), and Damian, Ma, Lee, "Label Noise SGD Provably Prefers Flat Global Minimizers" (c = 1/4 as lr -> 0).

    Args:
        model: Of one output: ``"product"``, h = x . (u * v), a diagonal linear network; ``"square"``, h = x . (u * u);
            ``"tanh"``, a two-layer net with biases.
        hidden: Units of the net.
        loss: ``"squared"``, (h - y)^2 / 2, or ``"logistic"``, log(1 + exp(-y h)).
        data: ``"unit"``, one example x = 1, y = 1; ``"sparse"``, Gaussian inputs with y the sum of the first
            ``num_relevant`` inputs; ``"fashion-mnist-5k"``, two classes as -1 and 1, images averaged down.
        num_examples: Training examples.
        num_held_out: Further inputs on which outputs are compared.
        num_inputs: Of ``"sparse"``.
        num_relevant: Of ``"sparse"``.
        classes: Of the images: those that are -1 and 1.
        downsample: Images are averaged over squares of this side.
        label_noise: Drawn anew for each example drawn: with the squared loss +-``label_noise`` is added to y, with the
            logistic loss y changes its sign with this probability, < 0.5.
        init: The initial weights: u is ``init`` and v is 0, or the scale of Gaussian ones with variance 1 / fan-in.
        lr: Learning rate.
        lam: Decoupled weight decay: each step removes the fraction r = lr * lam.
        batch_size: B.
        burn_in: Steps before anything is averaged.
        num_steps: All steps.
        measure_every: After the burn-in, outputs are averaged over every so many-th step.
        num_replicas: Independent repetitions from the same initial weights, >= 2.
        prefactors: The values of c, ascending from 0.
        regularizers: Which R; of functions that are linear in each parameter both are the same with the squared loss.
        searched: Values of c, some of ``prefactors``, at which minima are also sought from other starts: the lowest of all
            is reported beside the nearest.
        num_starts: Other starts: the initial weights, and random ones.
    """

    kind: ClassVar[str] = "stationary"
    trainer: ClassVar[Trainer] = STATIONARY
    data_module: ClassVar[str] = "halflife.studies.lab.stationary.source"

    model: str
    hidden: int = 8
    loss: str = "squared"
    data: str = "unit"
    num_examples: int = 1
    num_held_out: int = 0
    num_inputs: int = 1
    num_relevant: int = 1
    classes: tuple[int, int] = (2, 6)
    downsample: int = 7
    label_noise: float = 0.0
    init: float = 1.0
    lr: float
    lam: float = 0.0
    batch_size: int = 1
    burn_in: int
    num_steps: int
    measure_every: int = 1
    num_replicas: int = 100
    prefactors: tuple[float, ...] = (0.0, 0.25, 1.0)
    regularizers: tuple[str, ...] = REGULARIZERS
    searched: tuple[float, ...] = ()
    num_starts: int = 2

    def __post_init__(self) -> None:
        check_choices(self, {"model": MODELS, "loss": LOSSES, "data": DATASETS})
        check_numbers(self, "lr", "init", above=0)
        check_numbers(self, "lam", "label_noise", "prefactors", "searched")
        if self.loss == "logistic" and self.label_noise >= 0.5:
            raise UserError(
                f"label_noise is {self.label_noise:g}, expected < 0.5 with the logistic loss (it is the probability of a"
                " wrong label): lower label_noise"
            )
        check_removed(self.lr, self.lam)
        check_counts(
            self, "hidden", "num_examples", "num_inputs", "downsample", "batch_size", "num_steps", "measure_every"
        )
        check_counts(self, "num_replicas", least=2)
        check_counts(self, "num_held_out", "burn_in", "num_starts", "num_relevant", least=0)
        check_counts(self, "max_steps", or_none=True)
        if not 1 <= self.num_relevant <= self.num_inputs:
            raise UserError(
                f"num_relevant is {self.num_relevant}, expected 1 to num_inputs {self.num_inputs}: change num_relevant"
            )
        if self.burn_in + self.measure_every > self.num_steps:
            raise UserError(
                f"burn_in is {self.burn_in} of {self.num_steps} steps, which leaves nothing to average: lower burn_in"
            )
        if len(self.prefactors) < 2 or self.prefactors[0] != 0 or list(self.prefactors) != sorted(set(self.prefactors)):
            raise UserError(
                f"prefactors is {self.prefactors}, expected two or more that ascend from 0: change prefactors"
            )
        if not self.regularizers or not set(self.regularizers) <= set(REGULARIZERS):
            raise UserError(
                f"regularizers is {self.regularizers}, expected some of {', '.join(REGULARIZERS)}: change regularizers"
            )
        if not set(self.searched) <= set(self.prefactors):
            raise UserError(
                f"searched is {self.searched}, expected some of prefactors {self.prefactors}: change searched"
            )
        if self.data == "unit" and (self.num_examples, self.num_inputs, self.num_held_out) != (1, 1, 0):
            raise UserError("data is 'unit', which is one example of one input: leave num_examples and num_inputs at 1")
        if len(self.classes) != 2 or self.classes[0] == self.classes[1]:
            raise UserError(f"classes is {self.classes}, expected two different ones: change classes")

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    @property
    def first_measured(self) -> int:
        """Steps before the averages start; a run that is cut gives up a part of its burn-in."""
        return min(self.burn_in, self.last_step // 2)
