"""The specs of runs on problems whose answer is known."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers, check_removed
from halflife.studies.specs.trainers import LEAST_SQUARES, Trainer

__all__ = ["LeastSquaresRun"]

NOISES = ("additive", "sampled")


@dataclass(frozen=True, kw_only=True)
class LeastSquaresRun(RunSpec):
    """SGD on least squares with a known optimum x*, many independent replicas at once, in float64.

    The excess risk is 1/2 (x - x*)^T H (x - x*), H diagonal with the eigenvalues (every Hessian is, in some basis, and
    SGD does not see the basis). With x_0 - x* and x* spread evenly over the coordinates,

        x_{t+1} = (1 - lr lam) x_t - lr g_t

    with the gradient g_t, by ``noise``,

        "additive"    H (x_t - x*) + s z_t                  z_t ~ N(0, I)
        "sampled"     a_t (a_t^T (x_t - x*) - s z_t)        a_t ~ N(0, H), z_t ~ N(0, 1)

    of which the second is SGD with one sample a step, s the noise of its label. At x* the gradient's noise has variance
    sigma^2 = d s^2 and s^2 tr H.

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 3 (the bound on the excess risk).

    Args:
        eigenvalues: Of the Hessian, each > 0; one number makes the problem one-dimensional.
        noise: ``"additive"`` or ``"sampled"``.
        noise_std: s above.
        optimum: ||x*||; matters with decay alone, which pulls towards 0.
        distance: ||x_0 - x*||; equal to ``optimum``, x_0 is 0.
        lr: Learning rate before the drop.
        lr_after_drop: Learning rate after the drop.
        drop_step: The drop happens after this many steps (``None``: never).
        lam: Decoupled weight decay: each step removes the fraction r = lr * lam.
        average_from: Also evaluate the plain mean of the iterates after every step from this one on (``None``: not).
        ema: Decays per step of moving averages, each the weighted mean of the iterates after the steps so far.
        tail: Over so many last steps before the drop, and before the end, the risk is averaged.
        num_steps: Steps.
        num_replicas: Independent repetitions, >= 2.
        eval_every: Read every so many steps, and always at the drop and at the end.
    """

    kind: ClassVar[str] = "least-squares"
    trainer: ClassVar[Trainer] = LEAST_SQUARES

    eigenvalues: tuple[float, ...] = (1.0,)
    noise: str = "additive"
    noise_std: float = 1.0
    optimum: float = 1.0
    distance: float = 1.0
    lr: float
    lr_after_drop: float = 1e-3
    drop_step: int | None = None
    lam: float = 0.0
    average_from: int | None = None
    ema: tuple[float, ...] = ()
    tail: int = 1
    num_steps: int
    num_replicas: int = 1000
    eval_every: int = 50

    def __post_init__(self) -> None:
        if not self.eigenvalues:
            raise UserError("eigenvalues is empty, expected at least one number > 0: change eigenvalues")
        check_choices(self, {"noise": NOISES})
        check_numbers(self, "eigenvalues", "lr", "lr_after_drop", above=0)
        check_numbers(self, "noise_std", "optimum", "distance", "lam")
        check_numbers(self, "ema", at_most=1)
        check_removed(max(self.lr, self.lr_after_drop), self.lam)
        check_counts(self, "num_steps", "eval_every", "tail")
        check_counts(self, "num_replicas", least=2)
        check_counts(self, "max_steps", "average_from", "drop_step", or_none=True)
        for name in ("average_from", "drop_step"):
            if (getattr(self, name) or 0) > self.num_steps:
                raise UserError(
                    f"{name} is {getattr(self, name)}, expected at most num_steps {self.num_steps}: change {name}"
                )

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    @property
    def phase_ends(self) -> tuple[int, ...]:
        """The steps after which a learning rate ends: the drop, if there is one, and the last."""
        return tuple(sorted({min(self.drop_step or self.last_step, self.last_step), self.last_step}))

    def lr_at(self, step: int) -> float:
        """The learning rate of the step that follows ``step`` others."""
        return self.lr if self.drop_step is None or step < self.drop_step else self.lr_after_drop

    def reads_at(self, step: int) -> bool:
        """Whether something is read after this many steps."""
        return step % self.eval_every == 0 or step in self.phase_ends

    def in_tail(self, step: int) -> bool:
        """Whether the iterate after this many steps counts for the tail of its phase."""
        end = next(end for end in self.phase_ends if step <= end)
        return end - self.tail < step
