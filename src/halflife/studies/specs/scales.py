"""The spec of the smallest cases in which numbers of disparate scales are added in few bits."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers, check_removed
from halflife.studies.specs.trainers import SCALES, Trainer

__all__ = ["ScalesRun"]

MOST_BITS = 23  # of float32; everything else is computed in float64
LARGEST = 40  # of |log2_ulps|: beyond, float64 itself would round what is compared

# The fields that only some cases use, by case.
OWN = {
    "sum": ("log2_ulps",),
    "neuron": ("lr", "lam", "drift", "margin", "num_inputs", "num_replicas", "eval_every"),
    "softmax": ("lr", "log2_ulps", "num_offsets", "width", "downsample", "num_train", "num_test"),
}


@dataclass(frozen=True, kw_only=True)
class ScalesRun(RunSpec):
    """A large offset is added to small numbers, and the sum is rounded to k explicit bits of mantissa.

    With fl_k the nearest number with k bits, by ``case``:

        "sum"      h = fl_k(s + d) - s with d ~ N(0, 1), drawn anew for every k and s
        "neuron"   z = fl_k(fl_k(a + fl_k(w . x)) - b), logistic loss, trained by SGD with fresh examples
        "softmax"  a classifier trained in float32 without any rounding; then softmax(fl_k(logits + c)) on test images

    Near an offset s the numbers of k bits are ulp = 2^(floor(log2 s) - k) apart. Offsets are named by their spacing: for each
    k and each e of ``log2_ulps``, ulp is 2^e, and s is 1.5 * 2^(k + e), in the middle between two powers of two, so that the
    spacing is the same on both sides of it. c is drawn between 1.25 and 1.75 times 2^(k + e).

    The neuron's exact output, a - b + w . x, does not depend on what a and b have in common. Each step is

        w <- (1 - lr lam) w - lr g_w
        a <- (1 - lr lam) a - lr g_a + lr drift (1 + xi)
        b <- (1 - lr lam) b + lr g_a + lr drift (1 + xi)

    with one xi ~ N(0, 1) for both. So the common part, the offset, is on average drift / lam (1 - (1 - lr lam)^t), or
    lr drift t without decay. The drift is put in by hand; it stands for whatever moves the weights of a net where its
    loss does not see it. Gradients pass roundings unchanged; w, a and b themselves are not rounded. Inputs are N(0, 1), and
    a label is 1 with probability sigmoid(margin u . x), u a unit vector of each replica. Runs that differ in lam, drift or bits
    have the same examples, labels and xi.

    Args:
        case: ``"sum"``, ``"neuron"`` or ``"softmax"``.
        bits: The values of k, all at once, from 1 to 23 (float32): bfloat16 has 7, float16 has 10.
        log2_ulps: Spacings of the sum and the softmax, as powers of two, in rising order.
        num_offsets: Of the softmax: values of c for each k and spacing.
        lr: Learning rate of the neuron or the classifier.
        lam: Decoupled weight decay of w, a and b.
        drift: Of the neuron.
        margin: Of the neuron's labels.
        num_inputs: Of the neuron.
        num_replicas: Independent neurons of a run.
        width: Hidden units of the classifier, of which there is one layer.
        downsample: Images are averaged over squares of this side.
        num_train: Training images used (``None``: all 5,000).
        num_test: Test images used (``None``: all 10,000).
        num_steps: Steps; of the sum each adds ``batch_size`` numbers for every k and spacing.
        batch_size: Numbers, examples of each replica, or images a step.
        eval_every: The neuron is read every so many steps, and always at the end; the others at the end alone.
    """

    kind: ClassVar[str] = "scales"
    trainer: ClassVar[Trainer] = SCALES
    data_module: ClassVar[str] = "halflife.studies.lab.stationary.source"

    case: str
    bits: tuple[int, ...]
    log2_ulps: tuple[int, ...] = ()
    num_offsets: int = 16
    lr: float = 0.0
    lam: float = 0.0
    drift: float = 0.0
    margin: float = 8.0
    num_inputs: int = 8
    num_replicas: int = 8
    width: int = 32
    downsample: int = 4
    num_train: int | None = None
    num_test: int | None = None
    num_steps: int
    batch_size: int
    eval_every: int = 100

    def __post_init__(self) -> None:
        check_choices(self, {"case": tuple(OWN)})
        for field in dataclasses.fields(self):
            users = [case for case, own in OWN.items() if field.name in own]
            if users and self.case not in users and getattr(self, field.name) != field.default:
                raise UserError(
                    f"{field.name} is {getattr(self, field.name)!r} and case is {self.case!r}, expected it with"
                    f" {' or '.join(map(repr, users))} alone: leave {field.name} out"
                )
        for name, least, most in (("bits", 1, MOST_BITS), ("log2_ulps", -LARGEST, LARGEST)):
            values = getattr(self, name)
            if not isinstance(values, tuple):
                raise UserError(f"{name} is {values!r}, expected a tuple of integers: change {name}")
            check_counts(self, name, least=least)
            needed = name == "bits" or name in OWN[self.case]
            if (needed and not values) or len(set(values)) < len(values) or max(values, default=least) > most:
                raise UserError(
                    f"{name} is {values}, expected one or more different integers from {least} to {most}: change {name}"
                )
        if list(self.log2_ulps) != sorted(self.log2_ulps):
            raise UserError(f"log2_ulps is {self.log2_ulps}, expected integers in rising order: change log2_ulps")
        if "lr" in OWN[self.case]:
            check_numbers(self, "lr", above=0)
        check_numbers(self, "lam", "drift")
        check_numbers(self, "margin", above=0)
        check_removed(self.lr, self.lam)
        counts = ("num_offsets", "num_inputs", "num_replicas", "width", "downsample", "num_steps", "batch_size")
        check_counts(self, *counts, "eval_every")
        check_counts(self, "num_train", "num_test", "max_steps", or_none=True)

    @property
    def data(self) -> str:
        """The images, or ``"none"``."""
        return "fashion-mnist-5k" if self.case == "softmax" else "none"

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)

    @property
    def cells(self) -> tuple[tuple[int, int], ...]:
        """Each k with each exponent e of a spacing."""
        return tuple((k, e) for k in self.bits for e in self.log2_ulps)

    def expected_offset(self, step: int) -> float:
        """The mean of what the neuron's a and b have in common.

        Args:
            step: Steps done.

        Returns:
            drift / lam (1 - (1 - lr lam)^step).

        Examples:
            >>> run = ScalesRun(case="neuron", bits=(7,), lr=0.5, drift=1.0, lam=0.2, num_steps=9, batch_size=1)
            >>> round(run.expected_offset(1), 6), round(run.expected_offset(2), 6)
            (0.5, 0.95)
        """
        if self.lam == 0:
            return self.lr * self.drift * step
        return self.drift / self.lam * (1 - (1 - self.lr * self.lam) ** step)
