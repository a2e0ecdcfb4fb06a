"""The specs of runs on textbook problems: a two-layer ReLU net in one dimension, a linear classifier in the plane."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers, check_removed
from halflife.studies.specs.trainers import RELU_REGRESSION, SEPARABLE, Trainer

__all__ = ["ReluRegressionRun", "SeparableRun"]

POINTS = ("planted", "random", "outlier")
PER_DECADE = 10


@dataclass(frozen=True, kw_only=True)
class ReluRegressionRun(RunSpec):
    """SGD on one-dimensional regression by a two-layer ReLU net, one sample a step, independent replicas, in float64.

    The net is f(x) = c + sum_j a_j relu(w_j x + b_j), every parameter trained, loss 1/2 (f(x) - y)^2. At the start w_j and
    b_j are N(0, 1), a_j is N(0, init_scale^2 / width) and c is 0. Each replica has its own net, order, points and teacher:
    points near an even grid on [-1, 1], and a piecewise linear teacher with few kinks, each changing its slope by 1 to 2.

    Source: Andriushchenko, Varre, Pillaud-Vivien, Flammarion, "SGD with Large Step Sizes Learns Sparse Features" (ICML
    2023, arXiv 2210.05337), whose experiment in one dimension is of this kind.

    Args:
        width: Hidden units.
        num_points: Training points, >= 3.
        teacher_kinks: Kinks of the teacher.
        init_scale: Of the output weights at the start.
        lr: Learning rate before the drop, after the warm-up.
        lr_after_drop: Learning rate after the drop.
        drop_step: The drop happens after this many steps.
        warmup_steps: Over so many first steps the learning rate rises in a straight line, from ``lr / warmup_steps``.
        lam: Decoupled weight decay of every parameter: each step removes the fraction r = lr * lam.
        label_noise: Standard deviation of what is added to the label of every step before the drop, drawn anew each time.
        num_steps: Steps.
        num_replicas: Independent repetitions, >= 1.
        eval_every: Read every so many steps, and always at the start, at the drop and at the end.
    """

    kind: ClassVar[str] = "relu-regression"
    trainer: ClassVar[Trainer] = RELU_REGRESSION

    width: int = 100
    num_points: int = 12
    teacher_kinks: int = 2
    init_scale: float = 2.0
    lr: float
    lr_after_drop: float
    drop_step: int
    warmup_steps: int = 0
    lam: float = 0.0
    label_noise: float = 0.0
    num_steps: int
    num_replicas: int = 8
    eval_every: int = 1000

    def __post_init__(self) -> None:
        check_numbers(self, "lr", "lr_after_drop", "init_scale", above=0)
        check_numbers(self, "lam", "label_noise")
        check_removed(max(self.lr, self.lr_after_drop), self.lam)
        check_counts(self, "width", "teacher_kinks", "num_steps", "num_replicas", "eval_every", "drop_step")
        check_counts(self, "num_points", least=3)
        check_counts(self, "warmup_steps", least=0)
        check_counts(self, "max_steps", or_none=True)
        for name in ("drop_step", "warmup_steps"):
            if getattr(self, name) > self.num_steps:
                raise UserError(
                    f"{name} is {getattr(self, name)}, expected at most num_steps {self.num_steps}: change {name}"
                )

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    def lr_at(self, step: int) -> float:
        """The learning rate of the step that follows ``step`` others."""
        if step >= self.drop_step:
            return self.lr_after_drop
        return self.lr * min(1.0, (step + 1) / self.warmup_steps) if self.warmup_steps else self.lr

    def reads_at(self, step: int) -> bool:
        """Whether something is read after this many steps."""
        return step % self.eval_every == 0 or step in {self.drop_step, self.last_step}


@dataclass(frozen=True, kw_only=True)
class SeparableRun(RunSpec):
    """Gradient descent from 0 on a linear classifier of linearly separable points in the plane, in float64.

    The loss is (1/n) sum_i log(1 + exp(-y_i x_i^T w)), without an intercept, and each step is

        w <- (1 - lr lam) w - lr grad(w)

    which without decay tends in direction to the hard-margin solution, at the rate 1 / log t, and with lam > 0 to the
    minimum of loss + lam/2 ||w||^2. All data sets of a run are drawn by its seed. With u a unit vector and v its normal,
    the points y x of a set are, by ``points``,

        "planted"   u + s_1 v and u - s_2 v, the support vectors, s_1 in [0.5, 0.8] and s_2 in [1.5, 2], so that u is the
                    hard-margin solution; the rest (2 + |z|) u + z' v, with z, z' ~ N(0, 1)
        "random"    2 u + (z, z'), those with u^T x < 0.5 drawn again
        "outlier"   the same, the last point being -0.5 u + 2 v or -0.5 u - 2 v: still separable, and not by u

    Source: Soudry, Hoffer, Nacson, Gunasekar, Srebro, "The Implicit Bias of Gradient Descent on Separable Data" (JMLR
    2018, arXiv 1710.10345), theorem 3 and figure 1.

    Args:
        points: ``"planted"``, ``"random"`` or ``"outlier"``.
        num_points: Points of a data set, n >= 4.
        num_datasets: Data sets, each with a classifier of its own.
        lr: Learning rate.
        lam: Decoupled weight decay, which for plain gradient descent is that of the loss, too.
        num_steps: Steps. Read after about ten step counts a decade.
    """

    kind: ClassVar[str] = "separable"
    trainer: ClassVar[Trainer] = SEPARABLE

    points: str = "planted"
    num_points: int = 20
    num_datasets: int = 8
    lr: float = 0.5
    lam: float = 0.0
    num_steps: int

    def __post_init__(self) -> None:
        check_choices(self, {"points": POINTS})
        check_numbers(self, "lr", above=0)
        check_numbers(self, "lam")
        check_removed(self.lr, self.lam)
        check_counts(self, "num_points", least=4)
        check_counts(self, "num_datasets", "num_steps")
        check_counts(self, "max_steps", or_none=True)

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    @property
    def read_steps(self) -> tuple[int, ...]:
        """The steps after which something is read: about ten a decade, powers of ten among them, and the last."""
        steps, power = {self.last_step}, 0
        while (step := round(10 ** (power / PER_DECADE))) < self.last_step:
            steps.add(step)
            power += 1
        return tuple(sorted(steps))
