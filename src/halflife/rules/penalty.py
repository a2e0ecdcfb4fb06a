"""The penalty: decay that goes through the gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from halflife.errors import UserError
from halflife.numbers import check_non_negative
from halflife.rules.base import Penalty, StepInfo
from halflife.schedules.composed import Schedule, check_schedule, product, tied_to_lr

__all__ = ["L2"]


@dataclass(frozen=True, repr=False)
class L2(Penalty):
    """Add ``lam * w`` to the gradient, as the gradient of ``lam / 2 * ||w||^2`` in the loss would.

    Not a rule: no fraction describes it. The optimizer treats the added term as gradient, so that momentum
    delays it (SGD: the fraction ``lr * lam * (1 - dampening) / (1 - momentum)`` is reached after a lag) and
    Adam divides it by the gradient's size, coordinate by coordinate (about ``lr * lam / sqrt(v)``: large
    gradients, little decay). The term is added after any clipping, and stays in ``p.grad`` after the step.

    Source: the Adam with L2 of Loshchilov and Hutter 2019 (arXiv 1711.05101), Algorithm 2; the
    ``weight_decay`` of torch's SGD and Adam.

    Unit: ``lam`` is loss per squared weight.

    Matches: ``torch.optim.SGD(params, lr, momentum, weight_decay=lam)`` and ``torch.optim.Adam`` bit for bit
    (``tests/optim/test_attach.py::test_l2_equals_torch``).

    Args:
        lam: The coefficient, finite and >= 0; None takes each group's own ``weight_decay``.
        schedule: Multiplies ``lam``; called with the step. None means constant.
        into: Which moments of Adam the term enters: ``"both"``, as in the gradient of the loss; ``"first"``,
            the first moment only, or ``"second"``, the second only. The two half-way forms tell whether
            the mixing in the momentum buffer or in the preconditioner does the harm (Bjorck et al. 2021,
            arXiv 2012.13841); they need Adam or AdamW with ``beta1 > 0``.

    Raises:
        UserError: If ``lam`` is negative, infinite or NaN, ``schedule`` cannot be called, or ``into`` is
            something else.

    Examples:
        >>> L2(5e-4).coefficient(StepInfo(lr=0.1))
        0.0005
    """

    lam: float | None = None
    schedule: Schedule | None = None
    into: Literal["both", "first", "second"] = "both"

    def __post_init__(self) -> None:
        if self.lam is not None:
            object.__setattr__(self, "lam", check_non_negative("lam", self.lam))
        if self.schedule is not None:
            _of_step(self.schedule)
        if self.into not in {"both", "first", "second"}:
            raise UserError(f'into must be "both", "first" or "second", got {self.into!r}')

    @property
    def needs(self) -> frozenset[str]:
        """The group's own lam where none is given, and the step where a schedule is."""
        return frozenset({"lam"} if self.lam is None else ()) | frozenset({"step"} if self.schedule else ())

    @property
    def explicit_lam(self) -> float | None:
        """The coefficient given at construction."""
        return self.lam

    def coefficient(self, info: StepInfo) -> float:
        """Return ``lam * schedule(step)``."""
        lam = info.lam if self.lam is None else self.lam
        return lam if self.schedule is None else lam * self.schedule(info.step)

    def times(self, schedule: Schedule | tied_to_lr) -> L2:
        """Return the penalty with ``lam * schedule(step)``, after the schedule that it has already."""
        added = _of_step(schedule)
        return replace(self, schedule=added if self.schedule is None else product((self.schedule, added)))


def _of_step(schedule: Schedule | tied_to_lr) -> Schedule:
    check_schedule(schedule)
    if isinstance(schedule, tied_to_lr):
        raise UserError("L2 takes a schedule of the step, got tied_to_lr: the term is multiplied by lr as it is")
    return schedule
