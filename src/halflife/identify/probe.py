"""Probe twins: throw-away optimizers that differ in one thing, stepped side by side.

Every run has the same form. During the warm-up the optimizer gets random gradients while the weights are held at 0,
where no decay acts: so the state of two twins that differ in their weight decay alone stays the same to the last bit,
and momentum and second moments are those of a running optimizer. Then the weights are set, one step is taken, and
what the twins do differently is the decay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.identify.isolation import isolated, seed_everything

__all__ = ["BASE", "Bench", "Condition", "Instance", "NotProbedError", "Slot"]

WARMUP = 12  # RAdam is plain momentum in its first five steps
SETTLE = 4  # steps before the probe at which the learning rate changes: ASGD follows it one step late
FREE = 9  # further steps of a warm-up that is longer and does not hold the weights


class NotProbedError(Exception):
    """The optimizer cannot be stepped like this; the message says why."""


@dataclass(frozen=True)
class Slot:
    """One throw-away parameter and the settings of its group.

    Args:
        group: Number of the group in its optimizer.
        kind: ``"matrix"``, ``"vector"``, ``"convolution"``, ...
        shape: Its shape.
        lr: The learning rate that it is probed at.
        lam: The weight decay that it is probed at.
        peak_lr: The largest learning rate.
        lam_matters: Whether ``lam`` is a factor of the decay at all.
    """

    group: int
    kind: str
    shape: tuple[int, ...]
    lr: float
    lam: float
    peak_lr: float
    lam_matters: bool = True


@dataclass(frozen=True)
class Condition:
    """How one twin differs from the plain one; numbers are factors of the slot's own settings.

    Args:
        lam: Factor of the weight decay; 0 is the twin without decay.
        lr: Factor of the learning rate at the probed steps.
        peak_lr: Factor of the peak learning rate, ``lr`` left as it is.
        peak_key: Scale this peak alone, where there are several; None scales all.
        gradient: Factor of all gradients.
        written: Factor of the weight decay that is written into the groups after the warm-up; None writes nothing.
        penalty: This times ``lam * w`` is added to the gradient from outside.
        free: A longer warm-up with other gradients that does not hold the weights at 0.
        fresh: No warm-up at all.
        steps: The probed steps: what the start weights are multiplied by at each.
        variant: What else differs, for the maker of the optimizers.
    """

    lam: float = 1.0
    lr: float = 1.0
    peak_lr: float = 1.0
    peak_key: str | None = None
    gradient: float = 1.0
    written: float | None = None
    penalty: float = 0.0
    free: bool = False
    fresh: bool = False
    steps: tuple[float, ...] = (1.0,)
    variant: str = ""

    @property
    def without_decay(self) -> Condition:
        """The twin to compare with."""
        return replace(self, lam=0.0, written=None, penalty=0.0)


# Twice at 0 to see whether the step before is remembered; later steps show decays that do not act at every step, and
# fractions that depend on the size of the weight.
BASE = Condition(steps=(1.0, 0.0, 0.0, 1.0, 10.0, 1.0, 1.0))


@dataclass
class Instance:
    """Throw-away optimizers that step together, and their parameters in the order of the slots."""

    optimizers: Sequence[Optimizer]
    target: Optimizer
    parameters: Sequence[Tensor]

    def scale_lr(self, slots: Sequence[Slot], factor: float) -> None:
        """Write the learning rates, where they are not what is asked for already."""
        for slot in slots:
            group = self.target.param_groups[slot.group]
            value = slot.lr * factor
            if "lr" not in group:
                raise NotProbedError("its parameter groups have no lr")
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            elif group["lr"] != value:
                group["lr"] = value

    def write_weight_decay(self, slots: Sequence[Slot], factor: float) -> None:
        """Write ``weight_decay`` into the groups, as a schedule of a user would."""
        for slot in slots:
            group = self.target.param_groups[slot.group]
            if "weight_decay" in group:
                group["weight_decay"] = slot.lam * factor


Build = Callable[[Condition, torch.dtype], Instance]
Track = list[list[tuple[Tensor, Tensor]]]  # per probed step and slot: weight before, weight after


class Bench:
    """Runs conditions and remembers what came out, so that decisions can ask freely.

    Args:
        build: Makes the throw-away optimizers of a condition.
        slots: Their parameters.
        device: Where they are.
        dtype: Their precision.
    """

    def __init__(self, build: Build, slots: Sequence[Slot], device: torch.device, dtype: torch.dtype) -> None:
        self.build, self.slots, self.device, self.dtype = build, slots, device, dtype
        self._tracks: dict[Condition, Track] = {}
        generator = torch.Generator().manual_seed(7)

        def draw(slot: Slot) -> Tensor:
            return torch.randn(slot.shape, generator=generator, dtype=torch.float64)

        steps = WARMUP + FREE + len(BASE.steps)
        self._gradients = [[draw(slot).to(device, dtype) for slot in slots] for _ in range(steps)]
        # Away from 0, so that every element says something, and of both signs, so that masks show.
        starts = [draw(slot) for slot in slots]
        self._starts = [(w.sign() * (0.5 + w.abs())).to(device, dtype) for w in starts]

    @property
    def exact(self) -> bool:
        """Whether there are enough digits for sharp comparisons."""
        return self.dtype == torch.float64

    def run(self, condition: Condition) -> Track:
        """Return the weights before and after each probed step.

        Args:
            condition: What is different from the plain twin.

        Returns:
            Per probed step, per slot: the weight before and after it.

        Raises:
            NotProbedError: If the optimizer refuses to be made or stepped, or its weights stop being numbers.
        """
        if condition not in self._tracks:
            with isolated(self.device, self.dtype):
                try:
                    self._tracks[condition] = self._run(condition)
                except NotProbedError:
                    raise
                except Exception as error:  # whatever a foreign optimizer raises
                    raise NotProbedError(f"{type(error).__name__}: {_first_line(error)}") from error
        return self._tracks[condition]

    def _run(self, condition: Condition) -> Track:
        seed_everything(0, self.device)
        instance = self.build(condition, self.dtype)
        for optimizer in instance.optimizers:
            _enter_training_mode(optimizer)
        warmup = 0 if condition.fresh else WARMUP + (FREE if condition.free else 0)
        if condition.free:
            self._place(instance, 1.0)
        for step in range(warmup):
            if step == max(warmup - SETTLE, 0) and (condition.lr != 1.0 or condition.peak_lr != 1.0):
                instance.scale_lr(self.slots, condition.lr)
            if not condition.free:
                self._place(instance, 0.0)
            self._step(instance, condition, step if not condition.free else step + len(BASE.steps))
        if condition.written is not None:
            instance.write_weight_decay(self.slots, condition.written)
        track: Track = []
        for index, multiple in enumerate(condition.steps):
            self._place(instance, multiple)
            before = [parameter.detach().clone() for parameter in instance.parameters]
            self._step(instance, condition, WARMUP + index)
            after = [parameter.detach().clone() for parameter in instance.parameters]
            if not all(bool(weight.isfinite().all()) for weight in after):
                raise NotProbedError("its weights became infinite or NaN")
            track.append(list(zip(before, after, strict=True)))
        return track

    def _place(self, instance: Instance, multiple: float) -> None:
        with torch.no_grad():
            for parameter, start in zip(instance.parameters, self._starts, strict=True):
                parameter.copy_(start * multiple)

    def _step(self, instance: Instance, condition: Condition, index: int) -> None:
        gradients = self._gradients[index % len(self._gradients)]

        def give() -> None:
            for slot, parameter, gradient in zip(self.slots, instance.parameters, gradients, strict=True):
                value = gradient * condition.gradient
                if condition.penalty != 0.0:
                    value = value + condition.penalty * slot.lam * parameter.detach()
                parameter.grad = value.to(parameter.dtype)

        give()
        for number, optimizer in enumerate(instance.optimizers):
            seed_everything(1000 * (number + 1) + index, self.device)
            type(optimizer).step(optimizer)  # of the class: an instance may carry a scheduler's wrapper


def _enter_training_mode(optimizer: Optimizer) -> None:
    """Schedule-free optimizers step in training mode only."""
    train = getattr(optimizer, "train", None)
    if callable(train):
        try:
            train()
        except TypeError:
            return


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]
