"""``laws_of``: the laws of an optimizer that exists already, found on small copies of it."""

from __future__ import annotations

import copy
import math
from collections import OrderedDict, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.attach import MARK, Handle, attach, handle_of
from halflife.identify.decide import decide
from halflife.identify.factory import joined
from halflife.identify.law import Law
from halflife.identify.probe import WARMUP, Bench, Condition, Instance, NotProbedError, Slot
from halflife.rules import PerGroup
from halflife.rules.base import Part
from halflife.terms import INITIAL, KEYS, PEAK, STEP

__all__ = ["laws_of"]

SMALL = (8, 6, 3, 2)  # the sizes of throw-away parameters, by dimension
KINDS = {0: "scalar", 1: "vector", 2: "matrix", 4: "convolution"}
DEFAULT_LR = 1e-3  # for an optimizer whose learning rate is 0 everywhere


def laws_of(optimizer: Optimizer) -> list[Law]:
    """Find the law of each parameter group of an optimizer, at the group's own settings.

    A copy of the optimizer is stepped: its parameters are small throw-away ones with as many dimensions as the real
    ones, its state is empty, its hooks are left out. Where a rule of halflife is attached, the same rule is attached
    to the copy. The optimizer itself, its parameters, gradients and state are not touched.

    Args:
        optimizer: The optimizer; accelerate's wrapper is looked through.

    Returns:
        One law per parameter group. A group whose decay is 0 is ``"none"`` if a probe showed that its weights stay
        where they are; a group that cannot be probed is ``"not probed"``, with the reason in the notes.

    Examples:
        >>> weight = torch.nn.Parameter(torch.ones(3, 2))
        >>> [law.describe() for law in laws_of(torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.1))]
        ['decoupled: r = lr * lam (native)']
    """
    optimizer = unwrapped(optimizer)
    reasons: list[NotProbedError] = []
    for dtype in (torch.float64, torch.float32):
        try:
            laws = _laws(optimizer, dtype)
        except NotProbedError as error:
            reasons.append(error)
            continue
        if dtype == torch.float32:
            note = f"measured in float32, because float64 is refused ({reasons[0]})"
            laws = [replace(law, notes=(*law.notes, note)) for law in laws]
        return laws
    return [Law(pathway="not probed", notes=(str(reasons[-1]),)) for _ in optimizer.param_groups]


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """Look through the wrappers that add no step of their own.

    Args:
        optimizer: An optimizer, or accelerate's wrapper of one.

    Returns:
        The optimizer inside.
    """
    while type(optimizer).__module__.startswith("accelerate.") and isinstance(
        getattr(optimizer, "optimizer", None), Optimizer
    ):
        optimizer = optimizer.optimizer  # type: ignore[attr-defined]
    return optimizer


def _laws(optimizer: Optimizer, dtype: torch.dtype) -> list[Law]:
    family = _Family(optimizer)
    if not family.slots:
        return [Law(pathway="not probed", notes=("the group has no parameters",)) for _ in optimizer.param_groups]
    bench = Bench(family.build, family.slots, family.device, dtype)
    laws = []
    for index, group in enumerate(optimizer.param_groups):
        found = {
            slot.kind: decide(bench, number, attached=family.acts_on(group))
            for number, slot in enumerate(family.slots)
            if slot.group == index
        }
        if not found:
            laws.append(Law(pathway="not probed", notes=("the group has no parameters",)))
            continue
        laws.append(family.named(joined(found), index))
    return laws


@dataclass(frozen=True)
class _Representative:
    """One parameter that stands for all of its group that look alike."""

    slot: Slot
    parameter: Tensor


class _Family:
    """An optimizer, those that share a rule with it, and the maker of their copies."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.target = optimizer
        self.handle: Handle | None = handle_of(optimizer)
        self.optimizers = self.handle.optimizers if self.handle else (optimizer,)
        self.offset = 0  # groups of the optimizers before this one
        for each in self.optimizers:
            if each is optimizer:
                break
            self.offset += len(each.param_groups)
        self.notes: list[str] = []
        chosen = list(_representatives(optimizer, self))
        self.slots = [each.slot for each in chosen]
        self.chosen = [each.parameter for each in chosen]
        self.device = self.chosen[0].device if self.chosen else torch.device("cpu")
        if self.device.type == "meta":
            self.device = torch.device("cpu")
        self.steps_taken = _steps_taken(optimizer) if self.handle else 0

    def acts_on(self, group: Mapping[str, Any]) -> bool:
        """Return whether the attached rule decides the decay of this group."""
        return self.handle is not None and self.handle._terms.decays(dict(group))

    def rule_of(self, index: int) -> Part | None:
        """Return the rule that is attached to a group."""
        rule = self.handle.rule if self.handle else None
        if isinstance(rule, PerGroup):
            return rule.rules[self.offset + index] if self.offset + index < len(rule.rules) else None
        return rule

    def named(self, law: Law, index: int) -> Law:
        """Say which rule is attached, and what could not be copied."""
        notes = [*law.notes, *self.notes]
        group = self.target.param_groups[index]
        if float(group.get("lr", DEFAULT_LR)) == 0.0:
            notes.append(f"the learning rate is 0 now: probed at {_probed_lr(self.target, group):.4g}")
        if not self.acts_on(group):
            return replace(law, notes=tuple(notes))
        rule = self.rule_of(index)
        notes.insert(0, f"the rule {type(rule).__name__} of halflife is attached")
        name = law.name
        if type(rule).__name__ == "HalfLife":
            name = "half-life"
        return replace(law, name=name, notes=tuple(notes))

    def build(self, condition: Condition, dtype: torch.dtype) -> Instance:
        """Make the copies of one condition."""
        parameters = [
            _small(parameter, slot, self.device, dtype) for parameter, slot in zip(self.chosen, self.slots, strict=True)
        ]
        attached = self.handle is not None and condition.lam != 0.0
        copies = []
        target = None
        for optimizer in self.optimizers:
            memo: dict[int, Any] = {}
            if optimizer is self.target:
                for parameter, small in zip(self.chosen, parameters, strict=True):
                    memo[id(parameter)] = small
            made = _small_copy(optimizer, memo, self.device, dtype)
            if optimizer is self.target:
                target = made
            copies.append(made)
        assert target is not None
        for slot in self.slots:  # a warm-up starts at 0, where nothing can be seen
            group = target.param_groups[slot.group]
            if "lr" in group and float(group["lr"]) == 0.0:
                group["lr"] = slot.lr
        for made in copies:
            _scale_peaks(made, condition)
            if self.handle is None:
                _scale_decay(made, condition.lam)
                continue
            for group in made.param_groups:
                if not attached:
                    _clean(group)
                    if "weight_decay" in group:
                        group["weight_decay"] = 0.0
        if attached:
            self._attach(copies, condition)
        return Instance(copies, target, parameters)

    def _attach(self, copies: Sequence[Optimizer], condition: Condition) -> None:
        """Attach the rule to the copies so that the probed step is the next one of the original."""
        assert self.handle is not None
        terms = self.handle._terms
        numbers = dict(terms.numbers)
        if "peak_lr" in numbers:
            numbers["peak_lr"] *= condition.peak_lr
        for made in copies:
            for group in made.param_groups:
                if INITIAL in group and condition.lam != 1.0:
                    group[INITIAL] *= condition.lam
                if "weight_decay" in group:
                    group["weight_decay"] *= condition.lam
                group[STEP] = max(self.steps_taken - (0 if condition.fresh else WARMUP), 0)
        attach(list(copies), self.handle.rule, select=terms.select, allow_other_law=True, **numbers)  # type: ignore[arg-type]


def _representatives(optimizer: Optimizer, family: _Family) -> Iterator[_Representative]:
    """Yield one parameter of each kind in each group."""
    for index, group in enumerate(optimizer.param_groups):
        seen: set[Any] = set()
        for parameter in group["params"]:
            key = (parameter.ndim, parameter.dtype, parameter.device.type, _plain_attributes(parameter))
            if key in seen or not parameter.requires_grad:
                continue
            seen.add(key)
            same = sum(1 for other in seen if other[0] == parameter.ndim)
            kind = KINDS.get(parameter.ndim, f"{parameter.ndim}-d")
            lam, matters = _lam(group, index, family)
            slot = Slot(
                index,
                kind if same == 1 else f"{kind} {same}",
                tuple(SMALL[: parameter.ndim]) + (2,) * (parameter.ndim - len(SMALL)),
                lr=_probed_lr(optimizer, group),
                lam=lam,
                peak_lr=_peak(optimizer, group, family),
                lam_matters=matters,
            )
            yield _Representative(slot, parameter)


def _plain_attributes(parameter: Tensor) -> tuple[tuple[str, Any], ...]:
    """Return what somebody wrote on a parameter for its optimizer to read."""
    found = vars(parameter) if hasattr(parameter, "__dict__") else {}
    return tuple(sorted((k, v) for k, v in found.items() if isinstance(v, bool | int | float | str)))


def _small(parameter: Tensor, slot: Slot, device: torch.device, dtype: torch.dtype) -> torch.nn.Parameter:
    small = torch.nn.Parameter(torch.zeros(slot.shape, dtype=dtype, device=device))
    for name, value in _plain_attributes(parameter):
        setattr(small, name, value)
    return small


def _lam(group: Mapping[str, Any], index: int, family: _Family) -> tuple[float, bool]:
    """Return the lam that holds for a group, and whether it is a factor of the decay."""
    own = float(group.get("weight_decay", 0.0))
    if not family.acts_on(group):
        return own, True
    rule = family.rule_of(index)
    if rule is None:
        return own, False
    if rule.explicit_lam is not None:
        return rule.explicit_lam, True
    return float(group.get(INITIAL, own)), "lam" in rule.needs


def _probed_lr(optimizer: Optimizer, group: Mapping[str, Any]) -> float:
    lrs = [group.get("lr", 0.0), *(group.get(key) or 0.0 for key in (PEAK, "max_lr", "initial_lr"))]
    lrs.append(optimizer.defaults.get("lr", 0.0))
    return next((float(lr) for lr in lrs if float(lr) > 0.0), DEFAULT_LR)


def _peak(optimizer: Optimizer, group: Mapping[str, Any], family: _Family) -> float:
    given = family.handle._terms.numbers.get("peak_lr") if family.handle else None
    if given is not None:
        return float(given)
    peaks = (group.get(key) or 0.0 for key in (PEAK, "max_lr", "initial_lr"))
    return next((float(peak) for peak in peaks if float(peak) > 0.0), _probed_lr(optimizer, group))


def _steps_taken(optimizer: Optimizer) -> int:
    """Return the steps that the attached rule has counted."""
    return max(int(group.get(STEP, 0)) for group in optimizer.state_dict()["param_groups"])


# ---- copies


def _small_copy(optimizer: Optimizer, memo: dict[int, Any], device: torch.device, dtype: torch.dtype) -> Optimizer:
    """Copy an optimizer with throw-away parameters, empty state and no hooks.

    Not ``copy.deepcopy`` of the optimizer: torch keeps only state, groups and defaults in it.

    Args:
        optimizer: The optimizer to copy.
        memo: What stands for which object; the parameters that are to step are in it already.
        device: Where the throw-away parameters are.
        dtype: Their precision.

    Returns:
        The copy.

    Raises:
        NotProbedError: If an attribute of the optimizer cannot be copied.
    """
    groups = []
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            if id(parameter) in memo:
                kept.append(memo[id(parameter)])
            else:  # its representative steps for it; here only so that references to it lead nowhere
                memo[id(parameter)] = torch.nn.Parameter(torch.zeros((), dtype=dtype, device=device))
        groups.append((group, kept))
    if not any(kept for _, kept in groups):  # an optimizer beside the probed one
        groups = [(g, [memo[id(p)] for p in g["params"]]) for g, _ in groups]
    made: Optimizer = type(optimizer).__new__(type(optimizer))
    memo[id(optimizer)] = made
    for name, value in vars(optimizer).items():
        if name in {"state", "param_groups", "step", "grad_scale", "found_inf", MARK}:
            continue
        if name.startswith("_optimizer_") and name.endswith("_hooks"):
            made.__dict__[name] = OrderedDict()
            continue
        try:
            made.__dict__[name] = copy.deepcopy(value, memo)
        except Exception as error:
            raise NotProbedError(f"its attribute {name} cannot be copied: {type(error).__name__}: {error}") from error
    made.state = defaultdict(dict)
    made.param_groups = []
    for group, kept in groups:
        settings = {
            key: copy.deepcopy(value, memo) for key, value in group.items() if key not in {"params", "param_names"}
        }
        made.param_groups.append({"params": kept, **settings})
    return made


def _numbers_of(optimizer: Optimizer) -> Iterator[dict[str, Any]]:
    yield from optimizer.param_groups
    yield optimizer.defaults
    yield vars(optimizer)


def _is_number(value: Any) -> bool:
    return isinstance(value, float | int) and not isinstance(value, bool) and math.isfinite(value)


def _scale_peaks(optimizer: Optimizer, condition: Condition) -> None:
    """Multiply whatever may serve as the peak learning rate."""
    if condition.peak_lr == 1.0:
        return
    for place in _numbers_of(optimizer):
        is_group = "params" in place
        for key, value in list(place.items()):
            if "lr" in key.lower() and _is_number(value) and not (is_group and key == "lr"):
                place[key] = value * condition.peak_lr


def _scale_decay(optimizer: Optimizer, factor: float) -> None:
    """Multiply the weight decay wherever it is kept."""
    if factor == 1.0:
        return
    for place in _numbers_of(optimizer):
        for key, value in list(place.items()):
            if "weight_decay" in key.lower() and _is_number(value):
                place[key] = value * factor


def _clean(group: dict[str, Any]) -> None:
    for key in KEYS:
        group.pop(key, None)
