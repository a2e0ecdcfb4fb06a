"""``laws_of``: the laws of an optimizer that exists already, found on small copies of it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import (
    is_number,
    left_out,
    number,
    peaks_in,
    scale_decay,
    scale_peaks,
    small_copy,
    small_parameter,
    unwrapped,
)
from halflife.laws.decide import decide
from halflife.laws.factory import joined
from halflife.laws.isolation import Draws
from halflife.laws.law import RULE_EXPONENTS, Law, NotProbedError
from halflife.laws.probe import Bench, Condition, Instance, guarded
from halflife.laws.scaling import DEFAULT_LR, Scale, base_rate, lam_factor, lr_factor, strengthened
from halflife.laws.slots import Slot, enough_of, kinds_in, small_shape
from halflife.optim.apply import StepCount
from halflife.optim.attaching import Handle, attach, handle_of
from halflife.optim.config import INITIAL, KEYS, LAW, PEAK, STEP
from halflife.rules.base import Part, Penalty
from halflife.rules.registry import law_name

__all__ = ["DEFAULT_LR", "PEAK_KEYS", "laws_of"]

PEAK_KEYS = (PEAK, "max_lr", "initial_lr", "peak_lr")
# Rules whose effect is not a fraction of the weight: what they do instead.
SAYS = {
    "Sphere": ": it puts the weights back on a sphere after each step",
    "NormTarget": ": it holds the norm of each tensor",
    "Toward": ": it shrinks the distance to a reference, by the fraction given here",
}


def laws_of(optimizer: Optimizer) -> list[Law]:
    """Find the law of each parameter group of an optimizer, at the group's own settings.

    A copy of the optimizer is stepped: its parameters are small throw-away ones with as many dimensions as the real
    ones, its state is empty, its hooks are left out. Where a rule of halflife is attached, the same rule is attached
    to the copy, at the same step of its schedule. The optimizer itself, its parameters, gradients and state are not
    touched, and neither are random numbers and default dtype of other threads (see `halflife.identify`).

    A learning rate or weight decay that is too small to be measured is measured at the peak, or at larger values of
    both, and scaled back; then the optimizer's own settings are tried, as far as rounding shows what they do.

    Args:
        optimizer: The optimizer; accelerate's wrapper is looked through.

    Returns:
        One law per parameter group; its ``fraction`` is for the learning rate now, or, where that is 0, for the peak.
        A group whose decay is 0 is ``"none"`` if a probe showed that its weights stay where they are; what cannot be
        probed is ``"not probed"``, with the reason in the notes.

    Raises:
        UserError: If it is not an optimizer, or a parameter has no shape yet.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(3, 2))
        >>> [law.describe() for law in laws_of(torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1))]
        ['decoupled: r = lr * lam (native)']
    """
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"laws_of needs a torch optimizer, got {type(optimizer).__name__}")
    optimizer = unwrapped(optimizer)
    for index, group in enumerate(optimizer.param_groups):
        if any(isinstance(parameter, UninitializedParameter) for parameter in group["params"]):
            raise UserError(
                f"a parameter of group {index} has no shape yet (a lazy module); run a batch through the model first"
            )
    reasons: list[Exception] = []
    for dtype in (torch.float64, torch.float32):
        try:
            laws = _laws(optimizer, dtype)
        except (NotProbedError, UserError) as error:  # the attached rule refuses what the next step would refuse
            reasons.append(error)
            continue
        if dtype == torch.float32:
            note = f"measured in float32; in float64: {reasons[0]}"
            laws = [replace(law, notes=(*law.notes, note)) for law in laws]
        return laws
    return [Law(pathway="not probed", notes=(str(reasons[0]),)) for _ in optimizer.param_groups]


def _laws(optimizer: Optimizer, dtype: torch.dtype) -> list[Law]:
    laws = [
        Law(pathway="not probed", notes=("the group has no parameter that requires a gradient",))
        for _ in optimizer.param_groups
    ]
    for scale, groups in _groups_by_scale(optimizer, dtype).items():
        copies = _Copies(optimizer, dtype, scale)
        bench = Bench(copies.build, copies.slots, copies.device, dtype, from_factory=False)
        for index in groups:
            found = {slot.kind: decide(bench, n) for n, slot in enumerate(copies.slots) if slot.group == index}
            if found:
                laws[index] = copies.named(joined(found), index)
    return laws


def _groups_by_scale(optimizer: Optimizer, dtype: torch.dtype) -> dict[Scale, list[int]]:
    """Return which groups are probed together: those that need the same factors."""
    found: dict[Scale, list[int]] = {}
    plain = _Copies(optimizer, dtype, Scale())
    by_lr: dict[float, list[int]] = {}
    for index in range(len(optimizer.param_groups)):
        rates = {slot.lr for slot in plain.slots if slot.group == index}
        if rates:
            by_lr.setdefault(lr_factor(rates.pop()), []).append(index)
    for factor, indices in by_lr.items():
        copies = plain if factor == 1.0 else _Copies(optimizer, dtype, Scale(factor))
        asked = copies.fractions_asked()
        for index in indices:
            found.setdefault(Scale(factor, lam_factor(asked[index], dtype)), []).append(index)
    return found


class _Copies:
    """Makes copies of an optimizer, and of those that share a rule with it, at settings that can be measured."""

    def __init__(self, optimizer: Optimizer, dtype: torch.dtype, scale: Scale) -> None:
        self.target, self.dtype, self.scale = optimizer, dtype, scale
        self.handle: Handle | None = handle_of(optimizer)
        self.optimizers = self.handle.optimizers if self.handle else (optimizer,)
        self.offset = self.handle.config.first_group(optimizer) if self.handle else 0
        self.steps_taken = _steps_taken(optimizer) if self.handle else 0
        self.chosen: list[Tensor] = []
        self.slots: list[Slot] = []
        for slot, parameter in self._representatives():
            self.slots.append(slot)
            self.chosen.append(parameter)
        device = self.chosen[0].device if self.chosen else torch.device("cpu")
        self.device = device if device.type != "meta" else torch.device("cpu")

    def _representatives(self) -> Iterator[tuple[Slot, Tensor]]:
        """Yield one parameter for all that look alike in a group, and its slot."""
        for index, group in enumerate(self.target.param_groups):
            seen = {""}
            for kind, parameter in zip(kinds_in(group), group["params"], strict=True):
                if kind not in seen:
                    seen.add(kind)
                    yield self._slot(index, kind, small_shape(parameter)), parameter

    def _slot(self, index: int, kind: str, shape: tuple[int, ...]) -> Slot:
        group = self.target.param_groups[index]
        for key in ("lr", "weight_decay"):
            value = group.get(key)
            if value is not None and not is_number(value) and not isinstance(value, bool):
                raise NotProbedError(f"{key} of group {index} is {value!r}; expected one finite number")
        peaks, lr = peaks_in(self.target, group, PEAK_KEYS), number(group.get("lr"))
        lam, matters, attached = number(group.get("weight_decay")), True, self.acts_on(group)
        rule = self.rule_of(index)
        if attached and rule is not None:
            matters = rule.explicit_lam is not None or "lam" in rule.needs
            lam = number(group.get(INITIAL, lam)) if rule.explicit_lam is None else rule.explicit_lam
            lam = 0.0 if math.isnan(lam) else lam  # NaN: param_groups was told none, because the rule reads none
            peaks = [*([self.handle.config.numbers.get("peak_lr", 0.0)] if self.handle else []), *peaks]
        peaks = [peak for peak in peaks if peak > 0.0]
        rate = base_rate(lr, peaks) * self.scale.lr
        return Slot(
            group=index,
            kind=kind,
            shape=shape,
            lr=rate,
            lam=lam * self.scale.lam,
            peaks=tuple(peak * self.scale.lr for peak in peaks) or (rate,),
            attached=attached,
            depends_on_lam=matters and lam != 0.0,
            count=enough_of(shape),
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
        """Return about what a step removes from each group: what the attached rule asks for, else ``lr * lam``."""
        asked = [0.0 for _ in self.target.param_groups]
        for slot in self.slots:
            asked[slot.group] = slot.lr * slot.lam
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
        for index, group in enumerate(self.target.param_groups):
            if self.acts_on(group) and not isinstance(self.rule_of(index), Penalty):
                asked[index] = removed[self.offset + index]
        return asked

    def named(self, law: Law, index: int) -> Law:
        """Say which rule is attached, and what could not be copied."""
        group, notes = self.target.param_groups[index], [*law.notes, *left_out(self.target)]
        slot = next(slot for slot in self.slots if slot.group == index)
        if slot.own_lr == 0.0:
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
        copies = [small_copy(optimizer, memo, more, self.device, self.dtype) for optimizer in self.optimizers]
        target = copies[[optimizer is self.target for optimizer in self.optimizers].index(True)]
        for made in copies:
            for group in made.param_groups:
                if group.get("lr") is not None:
                    group["lr"] = group["lr"] * self.scale.lr
                if group.get("weight_decay") is not None:  # as a plain number: one of NumPy may have few digits
                    group["weight_decay"] = number(group["weight_decay"])
            scale_peaks(made, self.scale.lr * condition.peak_lr)
            if self.handle is None:
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

    def _attach(self, copies: Sequence[Optimizer], condition: Condition) -> None:
        """Attach the rule to the copies so that each of their steps is, to the rule, the next one of the original."""
        assert self.handle is not None
        config = self.handle.config
        numbers = dict(config.numbers)
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
