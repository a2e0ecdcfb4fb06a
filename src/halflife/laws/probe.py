"""Paired runs: throw-away optimizers that differ in one setting, stepped side by side.

Every run has the same form. During the warm-up the optimizer gets random gradients while the weights are held at 0,
where no decay acts. So two runs that differ in the weight decay alone have the same state to the last bit, and their
momentum and second moments are those of a running optimizer. Then the weights are set and one step is taken. The
difference between the two runs is the decay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import check_written, written
from halflife.laws.graph import tensors_in
from halflife.laws.guard import Under, directly, lifted
from halflife.laws.isolation import Draws, isolated
from halflife.laws.law import NotProbedError
from halflife.laws.slots import Slot

__all__ = [
    "BASE",
    "NO_RATE",
    "WARMUPS",
    "Bench",
    "Build",
    "Condition",
    "Instance",
    "NoRateError",
    "enter_training_mode",
    "guarded",
]

# Steps of the warm-ups. 12, because RAdam is plain momentum in its first five steps.
WARMUPS = {"none": 0, "held": 12, "longer": 21, "moved": 21, "free": 60}
SETTLE = 4  # steps before the probe at which the learning rate changes: ASGD follows it one step late
SPEED = 0.02  # of the prescribed way that the weights take in a "moved" warm-up


NO_RATE = "its parameter groups have no lr"


class NoRateError(NotProbedError):
    """The groups have no learning rate that could be changed: the optimizer chooses one by itself."""


@dataclass(frozen=True)
class Condition:
    """How a run differs from the plain one; numbers are factors of the slot's settings.

    Args:
        lam: Factor of the weight decay; 0 is the run without decay.
        lr: Factor of the learning rate at the probed steps.
        peak_lr: Factor of the peak learning rate, the learning rate at the probed steps left as it is.
        gradient: Factor of all gradients.
        written: Factor of the weight decay that is written into the groups after the warm-up; None writes nothing.
        penalty: This times ``lam * w`` is added to the gradient from outside.
        warmup: ``"none"``; ``"held"`` at 0; ``"longer"`` with other gradients; ``"moved"`` along a prescribed way, the
            same in all runs; ``"free"``, long, where the weights are not held and only the end is looked at.
        steps: The probed steps: what the start weights are multiplied by at each.
        orthogonal: Whether the weights are orthogonal to the gradient of the probed step, as those in front of a
            normalization are.
        mixed: Whether the group also holds a parameter of another precision.
        at_start: Whether the optimizer is made over the start weights and warmed up there, not at 0.
    """

    lam: float = 1.0
    lr: float = 1.0
    peak_lr: float = 1.0
    gradient: float = 1.0
    written: float | None = None
    penalty: float = 0.0
    warmup: Literal["none", "held", "longer", "moved", "free"] = "held"
    steps: tuple[float, ...] = (1.0,)
    orthogonal: bool = False
    mixed: bool = False
    at_start: bool = False

    @property
    def without_decay(self) -> Condition:
        """The run to compare with."""
        return replace(self, lam=0.0, written=None, penalty=0.0)


# Twice at 0 to see whether the step before is remembered; later steps show decays that do not act at every step.
BASE = Condition(steps=(1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0))


@dataclass
class Instance:
    """Throw-away optimizers that step together.

    Args:
        optimizers: All of them.
        target: The one that is probed.
        parameters: Its probed parameters: those of each slot, in the order of the slots.
        others: Parameters that step along and are not looked at.
        copies: Copies of the weights from which each step puts these in their place, such as float32 masters; each
            with its parameter.
    """

    optimizers: Sequence[Optimizer]
    target: Optimizer
    parameters: Sequence[Sequence[Tensor]]
    others: Sequence[Tensor] = ()
    copies: Sequence[tuple[Tensor, Tensor]] = ()

    @property
    def weights(self) -> list[Tensor]:
        """The probed parameters of all slots."""
        return [parameter for held in self.parameters for parameter in held]

    def tensors(self) -> list[Tensor]:
        """Return what else the optimizers hold, in an order that is the same for each instance of one build."""
        return tensors_in(list(self.optimizers), map(id, [*self.weights, *self.others]))

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate of every group, as a scheduler does.

        Raises:
            NoRateError: If a group has none.
            NotProbedError: If the optimizer makes its groups anew at each access, so that the number is lost.
        """
        for index, group in enumerate(self.target.param_groups):
            if group.get("lr") is None:
                raise NoRateError(
                    f"{NO_RATE}, so that how the decay depends on the learning rate cannot be measured; give lr a number"
                )
            group["lr"] = group["lr"] * factor
            check_written(self.target, index, "lr", group["lr"])

    def write_weight_decay(self, slots: Sequence[Slot], factor: float) -> None:
        """Write ``weight_decay`` into the groups, as a schedule of a user would.

        Raises:
            NotProbedError: If the optimizer makes its groups anew at each access, so that the number is lost.
        """
        for slot in slots:
            group = self.target.param_groups[slot.group]
            if "weight_decay" in group:
                group["weight_decay"] = slot.lam * factor
                check_written(self.target, slot.group, "weight_decay", group["weight_decay"])


Build = Callable[[Condition, Sequence[Tensor]], Instance]  # over these weights, one tensor per slot
Track = list[list[tuple[Tensor, Tensor]]]  # per probed step and slot: weight before, weight after


class Bench:
    """Runs conditions and remembers what came out: each is run once, however often it is asked for.

    Args:
        build: Makes the throw-away optimizers of a condition, all of them at the learning rate of their slots.
        slots: Their parameters.
        device: Where they are.
        dtype: Their precision.
        from_factory: Whether ``build`` constructs optimizers anew: then a factor of the peak is a factor of the
            learning rate that they start with, and parameters can be added.
        calls: Of ``step()`` that make one step, for an optimizer that acts at every so many calls.
        typed: Whether the optimizers give a dtype to each tensor that they make.
    """

    def __init__(
        self,
        build: Build,
        slots: Sequence[Slot],
        device: torch.device,
        dtype: torch.dtype,
        *,
        from_factory: bool,
        calls: int = 1,
        typed: bool = False,
    ) -> None:
        self.calls, self.typed = calls, typed
        self.build, self.slots, self.device, self.dtype = build, slots, device, dtype
        self.from_factory = from_factory
        self.needs_closure = False
        self._under: Under = directly
        self._tracks: dict[Condition, Track] = {}
        self._copies: list[tuple[int, int]] | None = None  # by number, a tensor of an instance and its parameter
        self._draws = Draws(device)
        generator = torch.Generator().manual_seed(7)

        def draw(slot: Slot, change: Callable[[Tensor], Tensor] = lambda drawn: drawn) -> Tensor:
            drawn = [
                torch.randn(slot.shape, generator=generator, dtype=torch.float64, device="cpu")
                for _ in range(slot.count)
            ]
            return slot.joined([change(each) for each in drawn]).to(device, dtype)

        num_gradients = WARMUPS["longer"] + len(BASE.steps)
        self._gradients = [[draw(slot) for slot in slots] for _ in range(num_gradients)]
        self._starts = [draw(slot, _centered) for slot in slots]

    @property
    def exact(self) -> bool:
        """Whether there are enough digits for sharp comparisons."""
        return self.dtype == torch.float64

    @contextmanager
    def unguarded(self) -> Iterator[None]:
        """Lift the guard for all but the code of others, while the body runs conditions and compares what came out."""
        with lifted() as under:
            self._under = under
            try:
                yield
            finally:
                self._under = directly

    def run(self, condition: Condition) -> Track:
        """Return the weights before and after each probed step.

        Args:
            condition: What is different from the plain twin.

        Returns:
            Per probed step, per slot: the weight before and after it.

        Raises:
            NotProbedError: If the optimizer refuses to be made or stepped, or its weights stop being numbers.
            UserError: If what makes the optimizer is wrong.
        """
        if condition not in self._tracks:
            with guarded(self.device, self.dtype, typed=self.typed):
                self._tracks[condition] = self._draws.repeatable(lambda: self._run(condition), _same_tracks)
        return self._tracks[condition]

    def _run(self, condition: Condition) -> Track:
        try:
            return self._attempt(condition)
        except Exception as error:
            if self.needs_closure or "closure" not in str(error).lower():
                raise
            self.needs_closure = True
            return self._attempt(condition)

    def _attempt(self, condition: Condition) -> Track:
        instance = self._built(condition)
        try:
            return self._track(instance, condition)
        except (NotProbedError, UserError):
            raise
        except Exception as error:
            odd = _odd_setting(instance.target)
            if odd is None or not self._would_step_with_floats(condition):
                raise
            raise NotProbedError(f"{odd}, with which it cannot step; make it a float ({_told(error)})") from error

    def _built(self, condition: Condition) -> Instance:
        """Return an instance, with the copies of its weights that go where these are placed."""
        weights = [start * float(condition.at_start) for start in self._starts]
        self._draws.seed(0)
        instance = self._build(condition, weights)
        tensors, parameters = instance.tensors(), instance.weights
        if self._copies is None:
            self._copies = self._find_copies(tensors, parameters)
            if self._copies:
                return self._built(condition)
        instance.copies = [(tensors[number], parameters[place]) for number, place in self._copies]
        for tensor, parameter in instance.copies:
            if tensor._base is None:  # with the digits of the probe
                tensor.data = tensor.data.to(parameter.dtype)
        return instance

    def _build(self, condition: Condition, weights: Sequence[Tensor]) -> Instance:
        return cast(Instance, self._under(partial(self.build, condition, weights)))

    def _find_copies(self, tensors: Sequence[Tensor], parameters: Sequence[Tensor]) -> list[tuple[int, int]]:
        """Return which tensors every step leaves equal to a parameter that it moves: with it they are placed elsewhere."""
        alike = [
            (number, place)
            for number, tensor in enumerate(tensors)
            for place, parameter in enumerate(parameters)
            if tensor.shape == parameter.shape and tensor.is_floating_point() and tensor.device == parameter.device
        ]
        if not alike:
            return []
        self._draws.seed(0)
        condition = Condition(lam=0.0)
        instance = self._build(condition, [start.clone() for start in self._starts])
        tensors, parameters = instance.tensors(), instance.weights
        self._make_ready(instance)
        for index in range(2):
            before = [parameter.detach().clone() for parameter in parameters]
            self._step(instance, condition, index)
            alike = [
                (number, place)
                for number, place in alike
                if not torch.equal(before[place], parameters[place])
                and torch.equal(tensors[number].to(parameters[place].dtype), parameters[place])
            ]
        return alike

    def _would_step_with_floats(self, condition: Condition) -> bool:
        """Return whether the odd settings are why it cannot step: as floats, they let it step, or they are no numbers."""
        instance = self._built(condition)
        for group in instance.target.param_groups:
            for key in ("lr", "weight_decay"):
                try:
                    group.update({key: float(group[key])} if key in group else {})
                except (TypeError, ValueError):
                    return True
        try:
            self._track(instance, condition)
        except Exception:
            return False
        return True

    def _make_ready(self, instance: Instance) -> None:
        for optimizer in instance.optimizers:
            enter_training_mode(optimizer)
            for group in optimizer.param_groups:
                for key in ("lr", "weight_decay"):
                    group.update({key: _all_digits(group[key], self.dtype)} if key in group else {})

    def _track(self, instance: Instance, condition: Condition) -> Track:
        self._make_ready(instance)
        self._warm_up(instance, condition)
        if condition.written is not None:
            instance.write_weight_decay(self.slots, condition.written)
        track: Track = []
        for index, multiple in enumerate(condition.steps):
            if condition.warmup != "free":
                self._place(instance, [each * multiple for each in self._starts_of(condition)])
            before = self._read(instance)
            self._step(instance, condition, WARMUPS["held"] + index)
            after = self._read(instance)
            if not all(bool(weight.isfinite().all()) for weight in after):
                raise NotProbedError("its weights became infinite or NaN")
            track.append(list(zip(before, after, strict=True)))
        return track

    def _warm_up(self, instance: Instance, condition: Condition) -> None:
        steps, factor = WARMUPS[condition.warmup], condition.lr
        if self.from_factory:
            factor /= condition.peak_lr
        change = steps - SETTLE if condition.peak_lr >= 1.0 else 0  # no lr may be above the peak, not even at first
        moved = condition.warmup in {"moved", "free"}
        way = [start * (0.5 if moved else float(condition.at_start)) for start in self._starts]
        self._place(instance, way)
        for step in range(steps):
            if step == change and factor != 1.0:
                instance.scale_lr(factor)
            # The other warm-ups begin with other gradients, but end with them where momentum still feels it.
            index = step if condition.warmup == "held" else step + len(BASE.steps)
            self._step(instance, condition, index)
            if condition.warmup == "moved":
                gradients = self._gradients[index % len(self._gradients)]
                way = [place - SPEED * gradient for place, gradient in zip(way, gradients, strict=True)]
            if condition.warmup != "free":
                self._place(instance, way)

    def _starts_of(self, condition: Condition) -> list[Tensor]:
        if not condition.orthogonal:
            return self._starts
        pairs = zip(self._starts, self._gradients[WARMUPS["held"]], strict=True)
        return [w - (w * g).sum() / g.square().sum().clamp_min(1e-30) * g for w, g in pairs]

    def _place(self, instance: Instance, weights: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for slot, parameters, weight in zip(self.slots, instance.parameters, weights, strict=True):
                for parameter, piece in zip(parameters, slot.pieces(weight), strict=True):
                    parameter.copy_(piece)
            for copy, parameter in instance.copies:
                self._under(partial(copy.copy_, parameter))

    def _read(self, instance: Instance) -> list[Tensor]:
        with torch.no_grad():
            held = zip(self.slots, instance.parameters, strict=True)
            return [slot.joined([parameter.detach() for parameter in parameters]) for slot, parameters in held]

    def _step(self, instance: Instance, condition: Condition, index: int) -> None:
        gradients = self._gradients[index % len(self._gradients)]
        if condition.warmup in {"moved", "free"}:
            # With a direction that stays, so that methods that find their learning rate themselves find one.
            gradients = [now + always for now, always in zip(gradients, self._gradients[0], strict=True)]
        given = [(parameter, torch.full_like(parameter, 0.1)) for parameter in instance.others]
        for slot, parameters, gradient in zip(self.slots, instance.parameters, gradients, strict=True):
            for parameter, piece in zip(parameters, slot.pieces(gradient), strict=True):
                value = piece * condition.gradient
                if condition.penalty != 0.0:
                    value = value + condition.penalty * slot.lam * parameter.detach()
                given.append((parameter, value))

        def closure() -> Tensor:
            """Give the gradients again, the same ones wherever the weights are."""
            for parameter, value in given:
                parameter.grad = value.clone()
            return torch.zeros((), device=self.device)

        closure()
        for number, optimizer in enumerate(instance.optimizers):
            self._draws.seed(1000 * (number + 1) + index)
            step: Callable[..., object] = optimizer.step
            call = partial(step, *[closure] if self.needs_closure else [])
            self._call(instance, partial(self._under, call))

    def _call(self, instance: Instance, step: Callable[[], object]) -> None:
        """Make the calls of one step. Each begins at the same weights: a decay in any of them finds these."""
        if self.calls == 1:
            step()
            return
        before = self._read(instance)
        moved = [torch.zeros_like(each) for each in before]
        for _ in range(self.calls):
            self._place(instance, before)
            step()
            moved = [way + after - start for way, after, start in zip(moved, self._read(instance), before, strict=True)]
        self._place(instance, [start + way for start, way in zip(before, moved, strict=True)])


@contextmanager
def guarded(device: torch.device, dtype: torch.dtype, *, hooks: bool = False, typed: bool = False) -> Iterator[None]:
    """Run throw-away optimizers in isolation.

    Args:
        device: Where their parameters are.
        dtype: Their precision.
        hooks: Whether step hooks that others registered for all optimizers are called.
        typed: Whether the body gives a dtype to each tensor that it makes.

    Raises:
        NotProbedError: Instead of whatever a foreign optimizer raises.
        UserError: If what makes the optimizer is wrong.
    """
    with isolated(device, dtype, hooks=hooks, typed=typed):
        try:
            yield
        except (NotProbedError, UserError):
            raise
        except (Exception, SystemExit) as error:  # a step that ends the process ends the probe
            raise NotProbedError(_told(error)) from error


def _told(error: BaseException) -> str:
    """Return the kind of an error and the first line of what it says, and what to do where it wants more than it gets."""
    text = str(error).strip()
    if isinstance(error, NotImplementedError) and not text:
        return "its class implements no step(); explain what it leaves the step to, as an optimizer inside it"
    told = f"{type(error).__name__}: {(text.splitlines() or ['no message'])[0]}"
    if isinstance(error, TypeError) and "step() missing" in text and "required" in text:
        return (
            f"{told}; it is called with none: bind them, as in optimizer.step = functools.partial(optimizer.step, ...)"
        )
    return told


def _odd_setting(optimizer: Optimizer) -> str | None:
    """Return a learning rate or weight decay that is no float, as a sentence; None if there is none."""
    for index, group in enumerate(optimizer.param_groups):
        for key in ("lr", "weight_decay"):
            if key in group and (isinstance(group[key], bool) or not isinstance(group[key], int | float)):
                return f"{key} of group {index} is {written(group[key])}"
    return None


def _all_digits(value: Any, dtype: torch.dtype) -> Any:
    """Return a setting with the digits of the probe: one in float32 would cut 1 - lr * lam to seven."""
    if isinstance(value, Tensor):
        return value.detach().to(dtype)
    return float(value) if type(value).__module__ == "numpy" and isinstance(value, Real) else value


def _same_tracks(one: Track, other: Track) -> bool:
    """Return whether two runs are equal to the last bit."""
    pairs = zip((each for step in one for each in step), (each for step in other for each in step), strict=True)
    return all(torch.equal(a, b) for left, right in pairs for a, b in zip(left, right, strict=True))


def _centered(weight: Tensor) -> Tensor:
    """Return the weights moved away from 0, so that every element says something, with mean 0 in each row."""
    # Mean 0, because optimizers that subtract the mean of each row from the gradient do so before or after they add
    # lam * w; this way it is the same.
    if weight.ndim < 2:
        return weight.sign() * (0.5 + weight.abs())
    rows = weight.flatten(1).clone()
    half = rows.shape[1] // 2
    rows[:, 2 * half :] = rows[:, 2 * half :].sign() * (0.5 + rows[:, 2 * half :].abs())  # no partner for it
    sizes = 0.5 + rows[:, :half].abs()
    paired = torch.cat([sizes, -sizes.roll(1, dims=1)], dim=1)  # both signs in every row, and no two rows alike
    order = rows[:, : 2 * half].argsort(dim=1)
    rows[:, : 2 * half] = paired.gather(1, order)
    return rows.reshape(weight.shape)


def enter_training_mode(optimizer: Optimizer) -> None:
    """Schedule-free optimizers step in training mode only."""
    train = getattr(optimizer, "train", None)
    if callable(train):
        try:
            train()
        except TypeError:
            return
