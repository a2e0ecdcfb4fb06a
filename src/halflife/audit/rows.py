"""The facts behind ``explain``: one record per parameter group, one per parameter.

Only shapes, dtypes, names and settings are read; no tensor is moved, and no optimizer is touched.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.expressions import spell
from halflife.groups.policies import kind_of, uses_of
from halflife.laws.copies import number, peaks_in, unwrapped
from halflife.laws.law import Law
from halflife.laws.live import DEFAULT_LR, PEAK_KEYS, laws_of
from halflife.laws.slots import KINDS, kinds_in
from halflife.optim.attaching import handle_of
from halflife.optim.config import INITIAL
from halflife.optim.floor import floors_of
from halflife.rules.base import Part
from halflife.units import half_life

__all__ = ["Group", "Row", "check_shapes", "groups_of", "rows_of"]


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors cannot be compared
class Group:
    """One parameter group of one optimizer, and the law that holds for it.

    Attributes:
        optimizer: Number of the optimizer.
        optimizer_name: Its class.
        index: Number of the group in it.
        settings: The group itself; it is read only.
        law: What was found by probing.
        part: The part of an attached rule that acts on the group; None without one.
        lr: The learning rate now.
        probed_lr: The learning rate at which ``law.fraction`` holds: lr, or where that is 0 the peak.
        peak_lr: The largest learning rate that is known.
        applied: What the last step removed, where gradients decide that (`Stable`); None before the first step.
    """

    optimizer: int
    optimizer_name: str
    index: int
    settings: dict[str, Any]
    law: Law
    part: Part | None
    lr: float
    probed_lr: float
    peak_lr: float
    applied: float | None = None

    @cached_property
    def rule(self) -> str | None:
        """The part of the attached rule as text."""
        return None if self.part is None else spell(self.part)

    @property
    def weight_decay(self) -> float | None:
        """What the group says; None if it says nothing."""
        return number(self.settings["weight_decay"]) if "weight_decay" in self.settings else None

    @property
    def own_lam(self) -> float | None:
        """The ``weight_decay`` that a rule without a lam of its own reads: what the group said when it was attached."""
        own = self.settings.get(INITIAL, self.weight_decay)
        return None if own is None else float(own)

    @property
    def lam(self) -> float | None:
        """The coefficient of the law: the rule's, else ``weight_decay``; None where there is none."""
        if self.part is None:
            return self.weight_decay
        if self.part.explicit_lam is not None:
            return self.part.explicit_lam
        return self.own_lam if "lam" in self.part.needs else None

    @cached_property
    def _kinds(self) -> dict[int, str]:
        return dict(zip(map(id, self.settings["params"]), kinds_in(self.settings), strict=True))

    def law_for(self, parameter: Tensor) -> Law:
        """Return the law of one of the group's parameters; that of as many dimensions where it is frozen."""
        kind = self._kinds.get(id(parameter)) or KINDS.get(parameter.ndim, f"{parameter.ndim}-d")
        return self.law.by_shape.get(kind, self.law)

    def plain(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the group with its parameters as `Explanation.groups` has it."""
        decaying = next((row for row in rows if row.decays), None)
        return {
            "optimizer": self.optimizer,
            "optimizer_name": self.optimizer_name,
            "group": self.index,
            "num_parameters": len(rows),
            "num_elements": sum(row.parameter.numel() for row in rows),
            "law": self.law.name or self.law.pathway,
            "pathway": self.law.pathway,
            "describe": self.law.describe(),
            "rule": self.rule,
            "weight_decay": self.weight_decay,
            "lam": self.lam,
            "lr": self.lr,
            "r": None if decaying is None else _ten_digits(decaying.r),
            "half_life": None if decaying is None else _ten_digits(decaying.half_life),
            "notes": list(self.law.notes),
        }


@dataclass(frozen=True, eq=False)  # tensors cannot be compared
class Row:
    """One parameter.

    Attributes:
        names: All its names in the model, a tied weight has several; where it is not in the model, the name or place in
            its group.
        parameter: The parameter.
        kind: What it is, one of `halflife.groups.policies.KINDS`; None if it is not in the model.
        kind_reason: From what that is seen.
        groups: The groups that hold it: one, if all is well.
        decays: Whether it decays; None where that could not be probed.
        why: Why it decays, or not.
        law: The law, None if it is in no group.
    """

    names: tuple[str, ...]
    parameter: Tensor
    kind: str | None
    kind_reason: str
    groups: tuple[Group, ...]
    decays: bool | None
    why: str
    law: Law | None

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def group(self) -> Group | None:
        """The first group that holds it."""
        return self.groups[0] if self.groups else None

    @property
    def r(self) -> float | None:
        """The fraction that a step removes at the learning rate now, or at the peak where that is 0.

        Under `Stable`, whose fraction depends on the gradients, what the last step removed.
        """
        if self.law is None or not self.decays:
            return None
        return self.law.fraction if self.group is None or self.group.applied is None else self.group.applied

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

    def plain(self, steps_per_epoch: float | None, tokens_per_step: float | None) -> dict[str, Any]:
        """Return the parameter as `Explanation.rows` has it."""
        group, steps = self.group, _ten_digits(self.half_life)
        found: dict[str, Any] = {
            "parameter": self.name,
            "tied": list(self.names[1:]),
            "shape": list(self.parameter.shape),
            "dtype": str(self.parameter.dtype).removeprefix("torch."),
            "kind": self.kind,
            "what": self.kind_reason,
            "optimizer": None if group is None else group.optimizer,
            "group": None if group is None else group.index,
            "also_in": [[each.optimizer, each.index] for each in self.groups[1:]],
            "decays": self.decays,
            "why": self.why,
            "law": None if self.law is None else self.law.name or self.law.pathway,
            "lam": group.lam if group is not None and self.decays else None,
            "lr": None if group is None else group.lr,
            "r": _ten_digits(self.r),
            "half_life": steps,
        }
        if steps_per_epoch is not None:
            found["half_life_epochs"] = None if steps is None else steps / steps_per_epoch
        if tokens_per_step is not None:
            found["half_life_tokens"] = None if steps is None else steps * tokens_per_step
        return found


def _ten_digits(value: float | None) -> float | None:
    """Return a measured number to the digits that probing gives."""
    return None if value is None else float(f"{value:.10g}")


def groups_of(optimizers: Sequence[Optimizer]) -> list[Group]:
    """Probe every group of some optimizers.

    Args:
        optimizers: The optimizers; accelerate's wrappers are looked through.

    Returns:
        One record per group.

    Raises:
        UserError: If one of them is no optimizer, is given twice, or has a parameter without a shape.
    """
    inner = []
    for optimizer in optimizers:
        if not isinstance(optimizer, Optimizer):
            raise UserError(
                f"expected a torch.optim.Optimizer, or a list of them, got {type(optimizer).__name__}; "
                "pass the optimizer inside it"
            )
        inner.append(unwrapped(optimizer))
    if len(set(map(id, inner))) < len(inner):
        raise UserError("got the same optimizer twice; give each once")
    for optimizer in inner:
        for group in optimizer.param_groups:
            check_shapes(
                zip(group.get("param_names") or itertools.repeat("a parameter"), group["params"], strict=False)
            )
    found = []
    for position, optimizer in enumerate(inner):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what an optimizer says about the throw-away copy helps nobody
            laws = [_without_rule_note(law) for law in laws_of(optimizer)]
        for index, (settings, law) in enumerate(zip(optimizer.param_groups, laws, strict=True)):
            lr, part = number(settings.get("lr")), _part_for(optimizer, index)
            by_gradients = part is not None and "second_moment" in part.needs
            applied, notes = _at_the_last_step(optimizer, index) if by_gradients else (None, [])
            # As laws_of chooses it where lr is 0 now; the constructor's lr is no group's peak otherwise.
            probed_lr = lr if lr > 0.0 else next(iter(peaks_in(optimizer, settings, PEAK_KEYS)), DEFAULT_LR)
            found.append(
                Group(
                    optimizer=position,
                    optimizer_name=type(optimizer).__name__,
                    index=index,
                    settings=settings,
                    law=replace(law, notes=(*law.notes, *notes)),
                    part=part,
                    lr=lr,
                    probed_lr=probed_lr,
                    peak_lr=max(probed_lr, *(number(settings.get(key)) for key in PEAK_KEYS)),
                    applied=applied,
                )
            )
    return found


def check_shapes(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise a UserError if a parameter has no shape: its module is lazy and has not seen a batch."""
    for name, parameter in named:
        if isinstance(parameter, UninitializedParameter):
            raise UserError(f"{name} has no shape yet; run one forward pass first, and build the optimizer after it")


def _without_rule_note(law: Law) -> Law:
    """Leave out the note that names the attached rule: the group has it with its numbers."""
    return replace(law, notes=tuple(note for note in law.notes if not note.endswith("of halflife is attached")))


def _part_for(optimizer: Optimizer, index: int) -> Part | None:
    """Return the part of an attached rule that acts on a group; None where there is none, which a step would refuse."""
    handle = handle_of(optimizer)
    try:
        return None if handle is None else handle.rule_for(optimizer, index)
    except UserError:
        return None


def _at_the_last_step(optimizer: Optimizer, index: int) -> tuple[float | None, list[str]]:
    """Return what the last step removed from a group under `Stable`, and what to say of it; None if it removed nothing."""
    handle = handle_of(optimizer)
    if handle is None:
        return None, []
    number = handle.config.first_group(optimizer) + index
    applied = handle.fractions()[number] or None
    floors = [str(floor) for group, floor in floors_of(optimizer).items() if group == number]
    return applied, [] if applied is None else ["r is what the last step removed", *floors]


def rows_of(model: nn.Module | None, groups: Sequence[Group]) -> list[Row]:
    """Put the model and the groups together.

    Args:
        model: The model; None if only the optimizer is known.
        groups: The groups.

    Returns:
        One record per parameter of the model, in its order, then those that only the optimizers have.
    """
    holders: dict[int, list[Group]] = {}
    outside: dict[int, tuple[tuple[str, ...], Tensor, str | None, str]] = {}
    reason = "not in the model" if model is not None else ""
    for group in groups:
        names = group.settings.get("param_names") or ()
        for position, parameter in enumerate(group.settings["params"]):
            holders.setdefault(id(parameter), []).append(group)
            place = f"group {group.index}, parameter {position}"
            place = f"optimizer {group.optimizer}, {place}" if groups[-1].optimizer > 0 else place
            name = names[position] if position < len(names) else place
            outside.setdefault(id(parameter), ((name,), parameter, None, reason))
    inside = uses_of(model) if model is not None else {}
    found = [(tuple(use.name for use in uses), each, *kind_of(each, uses)) for each, uses in inside.items()]
    known = set(map(id, inside))
    rows = []
    for names, parameter, kind, what in [*found, *(each for key, each in outside.items() if key not in known)]:
        held = holders.get(id(parameter), [])
        decays, why, law = _decision(parameter, held)
        rows.append(Row(names, parameter, kind, what, tuple(held), decays, why, law))
    return rows


def _decision(parameter: Tensor, groups: list[Group]) -> tuple[bool | None, str, Law | None]:
    """Return whether a parameter decays, why, and by which law."""
    if not groups:
        frozen = not parameter.requires_grad
        return False, "frozen, in no optimizer" if frozen else "in no optimizer", None
    decaying = [group for group in groups if group.law_for(parameter).pathway not in {"none", "not probed"}]
    group = (decaying or groups)[0]
    law = group.law_for(parameter)
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
