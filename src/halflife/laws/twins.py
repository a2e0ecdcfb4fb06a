"""Twins of an optimizer that exists: small copies of it, at settings that can be measured, on which laws are found."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import (
    StartState,
    drawn_like,
    has_state,
    is_number,
    left_out,
    number,
    peaks_in,
    scale_decay,
    scale_peaks,
    small_copy,
    small_parameter,
    written,
)
from halflife.laws.decide import decide
from halflife.laws.graph import tensors_in
from halflife.laws.isolation import Draws
from halflife.laws.law import RULE_EXPONENTS, Law, NotProbedError
from halflife.laws.levers import Lever, find_levers
from halflife.laws.probe import Bench, Condition, Instance, guarded
from halflife.laws.reduced import makes_typed
from halflife.laws.scaling import LEAST, Scale, base_rate, lam_factor, lr_factor, strengthened
from halflife.laws.slots import Slot, enough_of
from halflife.optim.apply import StepCount
from halflife.optim.attaching import Handle, attach, handle_of
from halflife.optim.config import INITIAL, KEYS, LAW, PEAK, STEP
from halflife.rules.base import Part, Penalty
from halflife.rules.registry import law_name

__all__ = ["PEAK_KEYS", "SAYS", "Copies", "Sample", "laws_of_samples"]

PEAK_KEYS = (PEAK, "max_lr", "initial_lr", "peak_lr")
# Rules whose effect is not a fraction of the weight: what they do instead.
SAYS = {
    "Sphere": ": it puts the weights back on a sphere after each step",
    "NormTarget": ": it holds the norm of each tensor",
    "Toward": ": it shrinks the distance to a reference, by the fraction given here",
}


@dataclass(frozen=True, eq=False)
class Sample:
    """A parameter that is probed for all that are treated alike.

    Args:
        parameter: The parameter.
        group: The number of its group.
        kind: What its twin is called.
        shape: The shape of the twin.
        calls: Of ``step()`` that are one step of the twin.
        exact: Whether there is one twin, even if it has few elements.
    """

    parameter: Tensor
    group: int
    kind: str
    shape: tuple[int, ...]
    calls: int = 1
    exact: bool = False  # one twin, even if it has few elements


class Copies:
    """Makes copies of an optimizer, and of those that share a rule with it, at settings that can be measured."""

    def __init__(
        self,
        optimizer: Any,
        dtype: torch.dtype,
        scale: Scale,
        samples: Sequence[Sample],
        levers: Sequence[Lever] | None = None,
        state: StartState = "flags",
    ) -> None:
        self.target, self.dtype, self.scale, self.levers, self.state = optimizer, dtype, scale, levers, state
        self.calls = samples[0].calls if samples else 1
        self.handle: Handle | None = handle_of(optimizer)
        self.optimizers = self.handle.optimizers if self.handle else (optimizer,)
        self.offset = self.handle.config.first_group(optimizer) if self.handle else 0
        self.steps_taken = _steps_taken(optimizer) if self.handle else 0
        self.chosen = [sample.parameter for sample in samples]
        self.slots = [self._slot(sample) for sample in samples]
        device = self.chosen[0].device if self.chosen else torch.device("cpu")
        self.device = device if device.type != "meta" else torch.device("cpu")

    def _slot(self, sample: Sample) -> Slot:
        index, kind, shape = sample.group, sample.kind, sample.shape
        group = self.target.param_groups[index]
        for key in ("lr", "weight_decay"):
            value = group.get(key)
            if value is not None and not is_number(value) and not isinstance(value, bool):
                raise NotProbedError(f"{key} of group {index} is {written(value)}; expected one finite number")
        peaks, lr = peaks_in(self.target, group, PEAK_KEYS), number(group.get("lr"))
        lr = lr if abs(lr) >= LEAST else 0.0
        lam, matters, attached = number(group.get("weight_decay")), True, self.acts_on(group)
        rule = self.rule_of(index)
        if attached and rule is not None:
            matters = rule.explicit_lam is not None or "lam" in rule.needs
            lam = number(group.get(INITIAL, lam)) if rule.explicit_lam is None else rule.explicit_lam
            lam = 0.0 if math.isnan(lam) else lam  # NaN: param_groups was told none, because the rule reads none
            peaks = [*([self.handle.config.numbers.get("peak_lr", 0.0)] if self.handle else []), *peaks]
        peaks = [peak for peak in peaks if peak >= LEAST]
        rate = base_rate(lr, peaks) * self.scale.lr
        if self.levers:
            lam = next((lever.value for lever in self.levers if index in lever.groups), 0.0)
        return Slot(
            group=index,
            kind=kind,
            shape=shape,
            lr=rate,
            lam=lam * self.scale.lam,
            peaks=tuple(peak * self.scale.lr for peak in peaks) or (rate,),
            attached=attached,
            depends_on_lam=matters and lam != 0.0,
            count=1 if sample.exact else enough_of(shape),
            own_lr=None if lr == rate else lr,
            lr_factor=self.scale.lr,
            lam_factor=self.scale.lam,
        )

    def acts_on(self, group: Mapping[str, Any]) -> bool:
        """Return whether the attached rule decides the decay of this group."""
        return self.handle is not None and self.handle.config.decays(dict(group))

    def rule_of(self, index: int) -> Part | None:
        """Return the part of the attached rule that acts on a group."""
        return None if self.handle is None else self.handle.rule_for(self.target, index)

    def fractions_asked(self) -> list[float]:
        """Return about what a step removes from each sample: what the attached rule asks for, else ``lr * lam``."""
        asked = [slot.lr * slot.lam for slot in self.slots]
        if self.handle is None or not self.slots:
            return asked
        weights = [torch.zeros((slot.count, *slot.shape), dtype=self.dtype, device=self.device) for slot in self.slots]

        def step() -> list[float]:
            instance = self.build(Condition(), [weight if weight.shape[0] > 1 else weight[0] for weight in weights])
            for parameter in (each for held in instance.parameters for each in held):
                parameter.grad = torch.ones_like(parameter)
            for optimizer in instance.optimizers:
                optimizer.step()
            handle = handle_of(instance.target)
            return handle.fractions() if handle is not None else []

        with guarded(self.device, self.dtype):
            removed = Draws(self.device).repeatable(step, lambda one, other: one == other)
        for index, slot in enumerate(self.slots):
            group = self.target.param_groups[slot.group]
            if self.acts_on(group) and not isinstance(self.rule_of(slot.group), Penalty):
                asked[index] = removed[self.offset + slot.group]
        return asked

    def find_levers(self) -> list[Lever]:
        """Return the numbers of the optimizer that are the coefficient of the decay of a sample."""
        starts = [
            drawn_like(torch.empty((slot.count, *slot.shape), dtype=self.dtype, device="meta")) for slot in self.slots
        ]
        starts = [each.to(self.device) if each.shape[0] > 1 else each[0].to(self.device) for each in starts]
        draws = Draws(self.device)

        def step(optimizer: Any, index: int) -> None:
            draws.seed(index)
            optimizer.step()

        def make(size: float) -> Any:
            return self.build(Condition(), [start * size for start in starts]).target

        def search() -> list[Lever]:
            return find_levers(make, step, self.calls)

        with guarded(self.device, self.dtype):
            levers = draws.repeatable(search, lambda one, other: one == other)
        groups = {slot.group for slot in self.slots}
        return [lever for lever in levers if lever.groups & groups]

    def named(self, law: Law, index: int) -> Law:
        """Say which rule is attached to a sample, and what could not be copied."""
        slot = self.slots[index]
        index = slot.group
        group, notes = self.target.param_groups[index], [*law.notes, *left_out(self.target)]
        if slot.own_lr == 0.0 and group.get("lr") is not None:
            notes.append(f"the learning rate is 0 now: probed at {slot.lr:.4g}")
        elif law.pathway == "other" and (slot.own_lr is not None or slot.lam_factor != 1.0):
            notes.append(f"probed at lr = {slot.lr:.4g} and weight_decay = {slot.lam:.4g}, which can be measured")
        if not self.acts_on(group):
            return replace(law, notes=tuple(notes))
        part, name = self.rule_of(index), law.name
        assert part is not None
        rule, own_name = type(part).__name__, law_name(part)
        notes.insert(0, f"the rule {rule} of halflife is attached{SAYS.get(rule, '')}")
        if rule in SAYS and law.pathway not in {"none", "not probed"}:
            law = replace(law, pathway="other")
        if rule in {"Sphere", "NormTarget"}:
            law = Law(pathway=law.pathway, native=law.native)
        if law.pathway not in {"none", "not probed"} and own_name not in RULE_EXPONENTS:
            name = own_name  # the others are named only if the measured exponents say so too
        return replace(law, name=name, notes=tuple(notes))

    def build(self, condition: Condition, weights: Sequence[Tensor]) -> Instance:
        """Make the copies of one condition, over these weights."""
        parameters: list[list[Tensor]] = [
            [small_parameter(parameter, piece) for piece in slot.pieces(weight)]
            for parameter, slot, weight in zip(self.chosen, self.slots, weights, strict=True)
        ]
        memo: dict[int, Any] = {id(real): small[0] for real, small in zip(self.chosen, parameters, strict=True)}
        more = {id(real): small[1:] for real, small in zip(self.chosen, parameters, strict=True)}
        copies = [
            small_copy(optimizer, memo, more, self.device, self.dtype, self.state) for optimizer in self.optimizers
        ]
        target = copies[[optimizer is self.target for optimizer in self.optimizers].index(True)]
        self._cut(copies, [each for held in parameters for each in held])
        for made in copies:
            for group in made.param_groups:
                if group.get("lr") is not None:
                    group["lr"] = group["lr"] * self.scale.lr
                if isinstance(group.get("weight_decay"), bool):  # a flag that somebody set is a 1
                    group["weight_decay"] = number(group["weight_decay"])
            scale_peaks(made, self.scale.lr * condition.peak_lr)
            if self.levers is not None:
                for lever in self.levers:
                    lever.multiply(made, self.scale.lam * condition.lam)
            elif self.handle is None:
                scale_decay(made, self.scale.lam * condition.lam)
        for slot in self.slots:
            group = target.param_groups[slot.group]
            if group.get("lr") is not None:
                is_tensor = isinstance(group["lr"], Tensor)
                group["lr"] = torch.full_like(group["lr"], slot.lr, dtype=self.dtype) if is_tensor else slot.lr
        if self.handle is not None and condition.lam != 0.0:
            self._attach(copies, condition)
        elif self.handle is not None:
            _strip(copies)
        return Instance(copies, target, parameters)

    def _cut(self, copies: Sequence[Optimizer], twins: Sequence[Tensor]) -> None:
        """Leave of tensors that are as large as a weight the part that its twin has."""
        pairs = zip(self.chosen, self.slots, strict=True)
        shapes = {chosen.shape: slot.shape for chosen, slot in pairs if slot.count == 1 and chosen.shape != slot.shape}
        shapes = {shape: part for shape, part in shapes.items() if shape not in {slot.shape for slot in self.slots}}
        if not shapes:
            return
        real = tensors_in(list(self.optimizers), ())  # what was too large to be copied stands in the copies, too
        for tensor in tensors_in(list(copies), map(id, [*real, *twins])):
            if tensor.shape in shapes and tensor._base is None and tensor.layout == torch.strided:
                tensor.data = tensor.data[tuple(map(slice, shapes[tensor.shape]))].clone()

    def _attach(self, copies: Sequence[Optimizer], condition: Condition) -> None:
        """Attach the rule to the copies so that each of their steps is, to the rule, the next one of the original."""
        assert self.handle is not None
        config = self.handle.config
        numbers: dict[str, Any] = dict(config.numbers)
        if "peak_lr" in numbers:
            numbers["peak_lr"] *= self.scale.lr * condition.peak_lr
        for made in copies:
            for group in made.param_groups:
                group.pop(LAW, None)  # attach would warn of a copy
                for key in (INITIAL, "weight_decay"):
                    if key in group:
                        group[key] *= condition.lam
                if "lr" in group and not any(group.get(key) for key in ("max_lr", "initial_lr")):
                    # The rule takes the largest learning rate that it has seen for the peak; copies have seen none.
                    group["initial_lr"] = (group.get(PEAK) or float(group["lr"])) * (
                        1.0 if group.get(PEAK) else condition.peak_lr
                    )
        rule = strengthened(self.handle.rule, self.scale.lam)
        handle = attach(copies, rule, select=config.select, allow_other_law=True, **numbers)
        for attachment in handle._attachments:
            attachment._count = _FixedCount(self.steps_taken)
            attachment.weights_are_placed()


class _FixedCount(StepCount):
    """A count of steps that stays where it is, so that schedules stay at their step while the copies warm up."""

    def add(self, found_inf: Tensor | None) -> None:
        """Count nothing."""


def _strip(copies: Sequence[Optimizer]) -> None:
    """Take every decay off the copies."""
    for made in copies:
        for group in made.param_groups:
            for key in KEYS:
                group.pop(key, None)
            if "weight_decay" in group:
                group["weight_decay"] = 0.0
        scale_decay(made, 0.0)


def _steps_taken(optimizer: Optimizer) -> int:
    """Return the steps that the attached rule has counted: its state dict tells, the live groups do not."""
    return max((int(group.get(STEP, 0)) for group in optimizer.state_dict()["param_groups"]), default=0)


def laws_of_samples(optimizer: Any, samples: Sequence[Sample]) -> tuple[list[Law], StartState]:
    """Return the law of each sample, and the state of the twins that showed it.

    The twins are in float64, or in float32 where that is refused. Their state is empty, or, where it was filled when the
    optimizer was made and is missed, that of the start.
    """
    states: tuple[StartState, ...] = ("flags", "start") if has_state(optimizer) else ("flags",)
    reasons: list[Exception] = []
    for dtype in (torch.float64, torch.float32):
        for state in states:
            try:
                laws = _laws(optimizer, dtype, samples, state)
            except (NotProbedError, UserError) as error:  # the attached rule refuses what the next step would refuse
                reasons.append(error)
                continue
            if dtype == torch.float32:
                note = f"measured in float32; in float64: {reasons[0]}"
                laws = [replace(law, notes=(*law.notes, note)) for law in laws]
            return laws, state
    return [Law(pathway="not probed", notes=(str(reasons[0]),)) for _ in samples], "flags"


def _laws(optimizer: Any, dtype: torch.dtype, samples: Sequence[Sample], state: StartState) -> list[Law]:
    found: dict[int, Law] = {}
    for scale, numbers in _by_scale(optimizer, dtype, samples, state).items():
        copies = Copies(optimizer, dtype, scale, samples, state=state)
        typed = makes_typed(optimizer) and handle_of(optimizer) is None
        how: dict[str, Any] = {"from_factory": False, "calls": samples[0].calls, "typed": typed}
        bench = Bench(copies.build, copies.slots, copies.device, dtype, **how)
        for index in numbers:
            found[index] = copies.named(decide(bench, index), index)
    return [found[index] for index in range(len(samples))]


def _by_scale(
    optimizer: Any, dtype: torch.dtype, samples: Sequence[Sample], state: StartState
) -> dict[Scale, list[int]]:
    """Return which samples are probed together: those that need the same factors."""
    found: dict[Scale, list[int]] = {}
    plain = Copies(optimizer, dtype, Scale(), samples, state=state)
    by_lr: dict[float, list[int]] = {}
    for index, slot in enumerate(plain.slots):
        by_lr.setdefault(lr_factor(slot.lr), []).append(index)
    for factor, indices in by_lr.items():
        copies = plain if factor == 1.0 else Copies(optimizer, dtype, Scale(factor), samples, state=state)
        asked = copies.fractions_asked()
        for index in indices:
            found.setdefault(Scale(factor, lam_factor(asked[index], dtype)), []).append(index)
    return found
