"""``laws_of``: the laws of an optimizer that exists already, found on small copies of it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import (
    left_out,
    peaks_in,
    plain_attributes,
    scale_decay,
    scale_peaks,
    small_copy,
    small_parameter,
    unwrapped,
)
from halflife.laws.decide import decide
from halflife.laws.factory import joined
from halflife.laws.law import RULE_EXPONENTS, Law
from halflife.laws.probe import Bench, Condition, Instance, NotProbedError, Slot
from halflife.optim.apply import StepCount
from halflife.optim.attaching import Handle, attach, handle_of
from halflife.optim.config import INITIAL, KEYS, LAW, PEAK, STEP
from halflife.rules import PerGroup
from halflife.rules.base import Part

__all__ = ["laws_of"]

SIZES = (8, 6, 3, 2)  # of throw-away parameters, by dimension
KINDS = {0: "scalar", 1: "vector", 2: "matrix", 4: "convolution"}
PEAK_KEYS = (PEAK, "max_lr", "initial_lr", "peak_lr")
# Rules that do not shrink the weight by a fraction that the probe could tell: what they do instead.
SAYS = {
    "Sphere": ": it puts the weights back on a sphere after each step",
    "NormTarget": ": it holds the norm of each tensor",
    "Toward": ": it shrinks the distance to a reference, by the fraction given here",
}
DEFAULT_LR = 1e-3  # for an optimizer whose learning rate is 0 everywhere
SMALLEST = 5e-3  # the lr * lam that float32 needs


def laws_of(optimizer: Optimizer) -> list[Law]:
    """Find the law of each parameter group of an optimizer, at the group's own settings.

    A copy of the optimizer is stepped: its parameters are small throw-away ones with as many dimensions as the real
    ones, its state is empty, its hooks are left out. Where a rule of halflife is attached, the same rule is attached
    to the copy, at the same step of its schedule. The optimizer itself, its parameters, gradients and state are not
    touched.

    Args:
        optimizer: The optimizer; accelerate's wrapper is looked through.

    Returns:
        One law per parameter group. A group whose decay is 0 is ``"none"`` if a probe showed that its weights stay
        where they are; what cannot be probed is ``"not probed"``, with the reason in the notes.

    Raises:
        UserError: If it is not an optimizer.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(3, 2))
        >>> [law.describe() for law in laws_of(torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1))]
        ['decoupled: r = lr * lam (native)']
    """
    if not isinstance(optimizer, Optimizer):
        raise UserError(f"laws_of needs a torch optimizer, got {type(optimizer).__name__}")
    optimizer = unwrapped(optimizer)
    reasons: list[NotProbedError] = []
    for dtype in (torch.float64, torch.float32):
        try:
            laws = _laws(optimizer, dtype)
        except NotProbedError as error:
            reasons.append(error)
            continue
        if dtype == torch.float32:
            note = f"measured in float32; in float64: {reasons[0]}"
            laws = [replace(law, notes=(*law.notes, note)) for law in laws]
        return laws
    return [Law(pathway="not probed", notes=(str(reasons[0]),)) for _ in optimizer.param_groups]


def _laws(optimizer: Optimizer, dtype: torch.dtype) -> list[Law]:
    family = _Family(optimizer, dtype)
    bench = Bench(family.build, family.slots, family.device, dtype, from_factory=False)
    laws = []
    for index in range(len(optimizer.param_groups)):
        found = {
            slot.kind: family.own_size(decide(bench, number), number)
            for number, slot in enumerate(family.slots)
            if slot.group == index
        }
        if found:
            laws.append(family.named(joined(found), index))
        else:
            laws.append(Law(pathway="not probed", notes=("the group has no parameter that requires a gradient",)))
    return laws


class _Family:
    """An optimizer, those that share a rule with it, and the maker of their copies."""

    def __init__(self, optimizer: Optimizer, dtype: torch.dtype) -> None:
        self.target = optimizer
        self.handle: Handle | None = handle_of(optimizer)
        self.optimizers = self.handle.optimizers if self.handle else (optimizer,)
        self.offset = self.handle.config.first_group(optimizer) if self.handle else 0
        self.steps_taken = _steps_taken(optimizer) if self.handle else 0
        self.chosen: list[Tensor] = []
        self.slots: list[Slot] = []
        self.boosts: list[float] = []  # how much larger a weight decay float32 needs
        for slot, parameter in self._representatives():
            boost = 1.0
            if dtype == torch.float32 and slot.lam > 0.0 and not slot.attached:
                boost = max(1.0, SMALLEST / (slot.lr * slot.lam))
            self.slots.append(replace(slot, lam=slot.lam * boost))
            self.boosts.append(boost)
            self.chosen.append(parameter)
        device = self.chosen[0].device if self.chosen else torch.device("cpu")
        self.device = device if device.type != "meta" else torch.device("cpu")

    def _representatives(self) -> Iterator[tuple[Slot, Tensor]]:
        """Yield one parameter for all that look alike in a group, and its slot."""
        for index, group in enumerate(self.target.param_groups):
            seen: set[Any] = set()
            for parameter in group["params"]:
                key = (parameter.ndim, plain_attributes(parameter))
                if key in seen or not parameter.requires_grad:
                    continue
                seen.add(key)
                same = sum(1 for other in seen if other[0] == parameter.ndim)
                kind = KINDS.get(parameter.ndim, f"{parameter.ndim}-d")
                shape = SIZES[: parameter.ndim] + (2,) * (parameter.ndim - len(SIZES))
                yield self._slot(index, kind if same == 1 else f"{kind} {same}", shape), parameter

    def _slot(self, index: int, kind: str, shape: tuple[int, ...]) -> Slot:
        group = self.target.param_groups[index]
        peaks, lr = peaks_in(self.target, group, PEAK_KEYS), float(group.get("lr", 0.0))
        lr = lr if lr > 0.0 else next(iter(peaks), DEFAULT_LR)
        lam, matters, attached = float(group.get("weight_decay", 0.0)), True, self.acts_on(group)
        rule = self.rule_of(index)
        if attached and rule is not None:
            matters = rule.explicit_lam is not None or "lam" in rule.needs
            lam = float(group.get(INITIAL, lam)) if rule.explicit_lam is None else rule.explicit_lam
            lam = 0.0 if math.isnan(lam) else lam  # NaN: param_groups was told none, because the rule reads none
            peaks = [*([self.handle.config.numbers.get("peak_lr", 0.0)] if self.handle else []), *peaks]
        peaks = [peak for peak in peaks if peak > 0.0] or [lr]
        return Slot(index, kind, shape, lr, lam, tuple(peaks), attached=attached, lam_matters=matters and lam != 0.0)

    def acts_on(self, group: Mapping[str, Any]) -> bool:
        """Return whether the attached rule decides the decay of this group."""
        return self.handle is not None and self.handle.config.decays(dict(group))

    def rule_of(self, index: int) -> Part | None:
        """Return the rule that is attached to a group."""
        rule = self.handle.rule if self.handle else None
        if isinstance(rule, PerGroup):
            return rule.rules[self.offset + index] if self.offset + index < len(rule.rules) else None
        return rule

    def own_size(self, law: Law, number: int) -> Law:
        """Take back what float32 needed."""
        return replace(law, fraction=None if law.fraction is None else law.fraction / self.boosts[number])

    def named(self, law: Law, index: int) -> Law:
        """Say which rule is attached, and what could not be copied."""
        group, notes = self.target.param_groups[index], [*law.notes, *left_out(self.target)]
        if float(group.get("lr", DEFAULT_LR)) == 0.0:
            lr = next(slot.lr for slot in self.slots if slot.group == index)
            notes.append(f"the learning rate is 0 now: probed at {lr:.4g}")
        if not self.acts_on(group):
            return replace(law, notes=tuple(notes))
        rule, name = type(self.rule_of(index)).__name__, law.name
        notes.insert(0, f"the rule {rule} of halflife is attached{SAYS.get(rule, '')}")
        if rule in SAYS and law.pathway not in {"none", "not probed"}:
            law = replace(law, pathway="other")
        if rule in {"Sphere", "NormTarget"}:
            law = Law(pathway=law.pathway, native=law.native)
        kebab = re.sub(r"(?<=[a-z])(?=[A-Z])", "-", rule).lower()
        if law.pathway not in {"none", "not probed"} and kebab not in RULE_EXPONENTS:
            name = kebab  # the others are named only if the measured exponents say so too
        return replace(law, name=name, notes=tuple(notes))

    def build(self, condition: Condition, dtype: torch.dtype) -> Instance:
        """Make the copies of one condition."""
        parameters = [
            small_parameter(parameter, slot.shape, self.device, dtype)
            for parameter, slot in zip(self.chosen, self.slots, strict=True)
        ]
        memo: dict[int, Any] = {id(parameter): small for parameter, small in zip(self.chosen, parameters, strict=True)}
        copies = [small_copy(optimizer, memo, self.device, dtype) for optimizer in self.optimizers]
        target = copies[[optimizer is self.target for optimizer in self.optimizers].index(True)]
        for slot, boost in zip(self.slots, self.boosts, strict=True):
            group = target.param_groups[slot.group]
            if "lr" in group and float(group["lr"]) == 0.0:  # a warm-up starts at 0, where nothing can be seen
                group["lr"] = slot.lr
            if boost != 1.0:
                group["weight_decay"] = slot.lam
        for made in copies:
            scale_peaks(made, condition.peak_lr)
            if self.handle is None:
                scale_decay(made, condition.lam)
        if self.handle is not None and condition.lam != 0.0:
            self._attach(copies, condition)
        elif self.handle is not None:
            _strip(copies)
        return Instance(copies, target, parameters)

    def _attach(self, copies: Sequence[Optimizer], condition: Condition) -> None:
        """Attach the rule to the copies so that every step of theirs is, to the rule, the next one of the original."""
        assert self.handle is not None
        terms = self.handle.config
        numbers = dict(terms.numbers)
        if "peak_lr" in numbers:
            numbers["peak_lr"] *= condition.peak_lr
        for made in copies:
            for group in made.param_groups:
                group.pop(LAW, None)  # attach would warn of a copy
                for key in (INITIAL, "weight_decay"):
                    if key in group:
                        group[key] *= condition.lam
                if "lr" in group and not any(group.get(key) for key in ("max_lr", "initial_lr")):
                    # What the rule would take for the peak now; the probe's own learning rate is none.
                    group["initial_lr"] = (group.get(PEAK) or float(group["lr"])) * (
                        1.0 if group.get(PEAK) else condition.peak_lr
                    )
        handle = attach(copies, self.handle.rule, select=terms.select, allow_other_law=True, **numbers)  # type: ignore[arg-type]
        for attachment in handle._attachments:
            attachment._count = _Standing(self.steps_taken)


class _Standing(StepCount):
    """A count that stands still: schedules do not move on while the copies warm up."""

    def add(self, found_inf: Tensor | None) -> None:
        """Count nothing."""


def _strip(copies: Sequence[Optimizer]) -> None:
    """Make copies that decay in no way."""
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
