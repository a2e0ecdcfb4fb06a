"""The facts behind ``explain``: one record per parameter group, one per parameter.

Only shapes, dtypes, names and settings are read; no tensor is moved, and no optimizer is touched.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.expressions import spell
from halflife.groups.policies import kind_of, uses_of
from halflife.laws.copies import peaks_in, unwrapped
from halflife.laws.law import Law
from halflife.laws.live import DEFAULT_LR, PEAK_KEYS, laws_of
from halflife.optim.attaching import handle_of
from halflife.optim.config import INITIAL
from halflife.rules import PerGroup
from halflife.rules.base import Part
from halflife.units import half_life

__all__ = ["Group", "Row", "groups_of", "rows_of"]

SHAPES = {0: "scalar", 1: "vector", 2: "matrix", 4: "convolution"}  # as laws_of names them


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors cannot be compared
class Group:
    """One parameter group of one optimizer, and the law that holds for it.

    Attributes:
        optimizer: Number of the optimizer.
        optimizer_name: Its class.
        index: Number of the group in it.
        settings: The group itself; it is read only.
        law: What was found by probing.
        rule: The rule that is attached and acts on the group, as text; None without one.
        weight_decay: What the group says; None if it says nothing.
        lam: The coefficient of the law: the rule's, else ``weight_decay``; None where there is none.
        lr: The learning rate now.
        probed_lr: The learning rate at which ``law.fraction`` holds: lr, or where that is 0 the peak.
        peak_lr: The largest learning rate that is known.
    """

    optimizer: int
    optimizer_name: str
    index: int
    settings: dict[str, Any]
    law: Law
    rule: str | None
    weight_decay: float | None
    lam: float | None
    lr: float
    probed_lr: float
    peak_lr: float

    def law_for(self, num_dimensions: int) -> Law:
        """Return the law of a parameter with so many dimensions."""
        kind = SHAPES.get(num_dimensions, f"{num_dimensions}-d")
        return self.law.by_shape.get(kind, self.law)


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors cannot be compared
class Row:
    """One parameter.

    Attributes:
        name: Its first name in the model; where it is not in the model, the name or place in its group.
        names: All its names; a tied weight has several.
        parameter: The parameter.
        kind: What it is, one of `halflife.groups.policies.KINDS`; None if it is not in the model.
        kind_reason: From what that is seen.
        groups: The groups that hold it: one, if all is well.
        decays: Whether it decays; None where that could not be probed.
        why: Why it decays, or not.
        law: The law, None if it is in no group.
    """

    name: str
    names: tuple[str, ...]
    parameter: Tensor
    kind: str | None
    kind_reason: str
    groups: tuple[Group, ...]
    decays: bool | None
    why: str
    law: Law | None

    @property
    def group(self) -> Group | None:
        """The first group that holds it."""
        return self.groups[0] if self.groups else None

    @property
    def r(self) -> float | None:
        """The fraction that a step removes at the learning rate now, or at the peak where that is 0."""
        return self.law.fraction if self.law is not None and self.decays else None

    @property
    def largest_r(self) -> float | None:
        """The fraction at the peak learning rate: what decides whether the decay does anything in the run."""
        group, law, r = self.group, self.law, self.r
        if group is None or law is None or r is None or not law.lr_exponent:
            return r
        return float(r * (group.peak_lr / group.probed_lr) ** law.lr_exponent)

    @property
    def half_life(self) -> float | None:
        """Steps after which half of an untouched weight is left; None where no one fraction says that."""
        known = self.law is not None and self.law.pathway in {"decoupled", "l2"}
        return half_life(self.r) if known and self.r is not None and 0.0 < self.r < 1.0 else None


def groups_of(optimizers: Sequence[Optimizer]) -> list[Group]:
    """Probe every group of some optimizers.

    Args:
        optimizers: The optimizers; accelerate's wrappers are looked through.

    Returns:
        One record per group.

    Raises:
        UserError: If one of them is no optimizer, or is given twice.
    """
    inner = []
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise UserError(
                f"expected a torch.optim.Optimizer, or a list of them, got {type(optimizer).__name__}; "
                "pass the optimizer inside it"
            )
        inner.append(unwrapped(optimizer))
    if len({id(optimizer) for optimizer in inner}) < len(inner):
        raise UserError("got the same optimizer twice; give each once")
    found = []
    for number, optimizer in enumerate(inner):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an optimizer says about the throw-away copy helps nobody
            laws = [_without_rule_note(law) for law in laws_of(optimizer)]
        for index, (settings, law) in enumerate(zip(optimizer.param_groups, laws, strict=True)):
            rule = _rule_of(optimizer, index)
            weight_decay = float(settings["weight_decay"]) if "weight_decay" in settings else None
            lr = float(settings.get("lr", 0.0))
            peaks = [float(settings.get(key) or 0.0) for key in PEAK_KEYS]
            # As laws_of chooses it where lr is 0 now; the constructor's lr is no group's peak otherwise.
            probed_lr = lr if lr > 0.0 else next(iter(peaks_in(optimizer, settings, PEAK_KEYS)), DEFAULT_LR)
            lam = weight_decay
            if rule is not None:
                own = settings.get(INITIAL, weight_decay)
                lam = rule.explicit_lam if rule.explicit_lam is not None else own if "lam" in rule.needs else None
            found.append(
                Group(
                    optimizer=number,
                    optimizer_name=type(optimizer).__name__,
                    index=index,
                    settings=settings,
                    law=law,
                    rule=spell(rule) if rule is not None else None,
                    weight_decay=weight_decay,
                    lam=lam,
                    lr=lr,
                    probed_lr=probed_lr,
                    peak_lr=max(probed_lr, *peaks),
                )
            )
    return found


def _without_rule_note(law: Law) -> Law:
    """Leave out the note that names the attached rule: the group has it with its numbers."""
    return replace(law, notes=tuple(note for note in law.notes if not note.endswith("of halflife is attached")))


def _rule_of(optimizer: Optimizer, index: int) -> Part | None:
    """Return the attached rule that acts on a group, if there is one."""
    handle = handle_of(optimizer)
    if handle is None or not handle._terms.decays(optimizer.param_groups[index]):
        return None
    rule = handle.rule
    if isinstance(rule, PerGroup):
        number = handle._terms.first_group(optimizer) + index
        return rule.rules[number] if number < len(rule.rules) else None
    return rule


def rows_of(model: nn.Module | None, groups: Sequence[Group]) -> list[Row]:
    """Put the model and the groups together.

    Args:
        model: The model; None if only the optimizer is known.
        groups: The groups.

    Returns:
        One record per parameter of the model, in its order, then those that only the optimizers have.
    """
    holders: dict[int, list[Group]] = {}
    places: dict[int, tuple[Tensor, str]] = {}
    for group in groups:
        names = group.settings.get("param_names") or ()
        for position, parameter in enumerate(group.settings["params"]):
            holders.setdefault(id(parameter), []).append(group)
            place = f"group {group.index}, parameter {position}"
            place = f"optimizer {group.optimizer}, {place}" if groups[-1].optimizer > 0 else place
            places.setdefault(id(parameter), (parameter, names[position] if position < len(names) else place))
    rows = []
    for parameter, uses in (uses_of(model) if model is not None else {}).items():
        kind, reason = kind_of(parameter, uses)
        names = tuple(use.name for use in uses)
        rows.append(_row(parameter, names, kind, reason, holders.pop(id(parameter), [])))
    for key, held in holders.items():
        parameter, name = places[key]
        reason = "not in the model" if model is not None else ""
        rows.append(_row(parameter, (name,), None, reason, held))
    return rows


def _row(parameter: Tensor, names: tuple[str, ...], kind: str | None, reason: str, groups: list[Group]) -> Row:
    decays, why, law = _decision(parameter, groups)
    return Row(
        name=names[0],
        names=names,
        parameter=parameter,
        kind=kind,
        kind_reason=reason,
        groups=tuple(groups),
        decays=decays,
        why=why,
        law=law,
    )


def _decision(parameter: Tensor, groups: list[Group]) -> tuple[bool | None, str, Law | None]:
    """Return whether a parameter decays, why, and by which law."""
    if not groups:
        frozen = not parameter.requires_grad
        return False, "frozen, in no optimizer" if frozen else "in no optimizer", None
    decaying = [group for group in groups if group.law_for(parameter.ndim).pathway not in {"none", "not probed"}]
    group = (decaying or groups)[0]
    law = group.law_for(parameter.ndim)
    if not parameter.requires_grad:
        return False, "frozen", law
    if law.pathway == "not probed":
        return None, f"not probed: {law.notes[0] if law.notes else 'no reason given'}", law
    says = f"weight_decay is {group.weight_decay:g}" if group.weight_decay is not None else "no weight_decay"
    if law.pathway == "none":
        if group.rule is not None:
            return False, f"the attached {group.rule} removes nothing now", law
        ignored = group.weight_decay not in {None, 0.0}
        return False, f"{says}, but {group.optimizer_name} ignores it" if ignored else says, law
    if group.rule is not None:
        return True, f"{group.rule} is attached", law
    return True, f"{says}; {law.notes[0]}" if law.pathway == "other" and law.notes else says, law
