"""The facts behind ``explain``: one record per parameter group, one per parameter.

What a row says of a parameter was seen of it, or of a named member of the same kind; see `halflife.laws.seen`.
"""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from halflife.audit.backward import Hooked, hooked
from halflife.audit.memory import Shared, shared_memory
from halflife.errors import UserError
from halflife.expressions import spell
from halflife.groups.names import without_wrappers
from halflife.groups.policies import kind_of, uses_of
from halflife.laws.copies import is_number, number, written
from halflife.laws.decide import NO_EFFECT
from halflife.laws.law import Law, ordinal
from halflife.laws.live import probe_of
from halflife.laws.reduced import is_of_torch
from halflife.laws.scaling import DEFAULT_LR
from halflife.laws.seen import Found, Seen
from halflife.laws.twins import PEAK_KEYS
from halflife.optim.attaching import handle_of
from halflife.optim.config import INITIAL
from halflife.optim.floor import floors_of
from halflife.rules.base import Part
from halflife.rules.registry import law_names

__all__ = ["Effect", "Group", "Holder", "Row", "check_shapes", "groups_of", "rows_of", "times_in_words", "tried"]

TOLERANCE = 1e-3  # relative, of what was measured
LIKE_A_COEFFICIENT = ("decay", "wd", "lam", "l2", "reg")


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors cannot be compared
class Group:
    """One parameter group of one optimizer, and the law that holds for it.

    Attributes:
        optimizer: Number of the optimizer.
        optimizer_name: Its class.
        is_proven: Whether its step is torch's own, which looks neither at the number of the call nor at the size of
            gradients: then a setting without effect has none ever.
        index: Number of the group in it.
        settings: The group itself; it is read only.
        law: What was found by probing.
        found: What was found of each parameter of the optimizer, by id.
        hooks: What hooks of parameters do in the backward pass, by id.
        moved: The ids of parameters that a step of the optimizer moves, although they are in none of its groups.
        part: The part of an attached rule that acts on the group; None without one.
        lr: The learning rate now; 0 where the optimizer chooses it itself.
        probed_lr: The learning rate at which ``law.fraction`` holds: lr, or where that is 0 the peak.
        peak_lr: The largest learning rate that is known.
        applied: What the last step removed, where gradients decide that (`Stable`); None before the first step.
    """

    optimizer: int
    optimizer_name: str
    is_proven: bool
    index: int
    settings: Mapping[str, Any]
    law: Law
    found: Mapping[int, Found]
    hooks: Mapping[int, Hooked]
    moved: frozenset[int]
    part: Part | None
    lr: float
    probed_lr: float
    peak_lr: float
    applied: float | None = None

    @cached_property
    def rule(self) -> str | None:
        """The part of the attached rule as text."""
        return None if self.part is None else spell(self.part)

    @cached_property
    def weight_decay(self) -> float | None:
        """What the group says; None if it says nothing, or no number."""
        value = self.settings.get("weight_decay")
        return number(value) if is_number(value) or isinstance(value, bool) else None

    @property
    def own_lam(self) -> float | None:
        """The ``weight_decay`` that a rule without a lam of its own reads: what the group said when it was attached."""
        own = self.settings.get(INITIAL, self.weight_decay)
        return None if own is None else float(own)

    @cached_property
    def rule_lam(self) -> float | None:
        """The coefficient of the attached rule; None where there is none."""
        if self.part is None:
            return None
        if self.part.explicit_lam is not None:
            return self.part.explicit_lam
        return self.own_lam if "lam" in self.part.needs else None

    @cached_property
    def says(self) -> str:
        """What the group says of its decay, in words."""
        if self.weight_decay is not None:
            return f"weight_decay is {self.weight_decay:g}"
        if "weight_decay" in self.settings:
            return f"weight_decay is {written(self.settings['weight_decay'])}"
        return "no weight_decay"

    def setting_of(self, lam: float) -> str | None:
        """Return the name of the setting that holds a coefficient, of those that are called like one: ``"wd"``."""
        names = (key for key in self.settings if any(word in key.lower() for word in LIKE_A_COEFFICIENT))
        return next((key for key in names if lam and _close(number(self.settings[key]), lam)), None)

    def plain(self, rows: Sequence[Row]) -> dict[str, Any]:
        """Return the group with its parameters as `Explanation.groups` has it."""
        mine = (holder for row in rows for holder in row.effect.acting if holder.group.optimizer == self.optimizer)
        decaying = next(mine, None)
        lam = self.rule_lam if self.part is not None else self.weight_decay
        return {
            "optimizer": self.optimizer,
            "optimizer_name": self.optimizer_name,
            "group": self.index,
            "num_parameters": sum(row.is_listed for row in rows),
            "num_elements": sum(row.parameter.numel() for row in rows if row.is_listed),
            "law": _named(self.law),
            "pathway": self.law.pathway,
            "describe": self.law.describe(),
            "rule": self.rule,
            "weight_decay": self.weight_decay,
            "lam": lam if decaying is None or decaying.lam is None else decaying.lam,
            "lr": self.plain_lr,
            "r": None if decaying is None else _ten_digits(decaying.r),
            "half_life": None if decaying is None else _ten_digits(_half_life([decaying], [decaying.r])),
            "r_lr": None if decaying is None else self.probed_lr,
            "peak_lr": self.peak_lr,
            "r_peak": None if decaying is None else _ten_digits(decaying.r_peak),
            "half_life_peak": None if decaying is None else _ten_digits(_half_life([decaying], [decaying.r_peak])),
            "notes": list(self.law.notes),
        }

    @property
    def plain_lr(self) -> float | None:
        """The learning rate now; None where the group has no number for it."""
        return self.lr if is_number(self.settings.get("lr")) else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Holder:
    """One optimizer that holds a parameter, and what it does to it.

    Attributes:
        group: The first of its groups that holds the parameter.
        found: What was found of the parameter.
        times: How often the groups of the optimizer list it: once, if all is well.
        decays: Whether its next step decays the parameter; None if that could not be probed.
    """

    group: Group
    found: Found
    times: int
    decays: bool | None

    @property
    def law(self) -> Law:
        """The law of the parameter."""
        return self.found.law

    @property
    def every(self) -> int:
        """It acts at every n-th call of ``step()``."""
        return max(self.found.law.every, self.found.seen.every)

    @cached_property
    def r(self) -> float | None:
        """The fraction that a call which acts removes, at the learning rate now, or at the peak where that is 0."""
        if not self.decays:
            return None
        seen, law = self.found.seen, self.law
        r = law.fraction if self.group.applied is None else self.group.applied
        seen_r = seen.r if seen.form == "shrinks" and not seen.grows else None
        if seen_r is not None and seen.lr > 0.0 and not _close(seen.lr, self.group.probed_lr):
            # What was seen at another learning rate says what happens at this one only by a law.
            share = None if law.lr_exponent is None else (self.group.probed_lr / seen.lr) ** law.lr_exponent
            seen_r = None if share is None else seen_r * share
        if self.times > 1 and seen_r is not None and seen.of is None:
            return seen_r  # all of its places are in it
        r = seen_r if r is None and law.pathway in {"other", "not probed"} else r
        return r if r is None or self.times == 1 else -math.expm1(self.times * math.log1p(-r)) if r < 1.0 else 1.0

    @property
    def is_steady(self) -> bool:
        """Whether each call that acts removes the same fraction of an untouched weight."""
        seen = self.found.seen
        return self.law.pathway in {"decoupled", "l2"} or (
            self.law.pathway == "other" and seen.form == "shrinks" and not seen.grows and seen.idle_rows
        )

    def overshoot(self, r: float | None) -> str:
        """Say what a fraction of 1 or more, or below 0, does to an untouched weight; empty where it only shrinks it."""
        at_once = self.law.pathway != "l2" or self.law.equivalent_to is not None  # through momentum it comes bit by bit
        if r is None or not self.is_steady or (0.0 <= r < 1.0 - TOLERANCE) or not at_once:
            return ""
        if r < 0.0:
            return "grows it"
        if r <= 1.0 + TOLERANCE:
            return "sets it to 0"
        return "flips its sign" if r < 2.0 else "flips its sign and does not shrink it"

    @cached_property
    def r_peak(self) -> float | None:
        """The fraction at the peak learning rate: what decides whether the decay does anything in the run."""
        r, exponent = self.r, self.law.lr_exponent
        if r is None or not exponent or self.group.peak_lr == self.group.probed_lr:
            return r
        return float(r * (self.group.peak_lr / self.group.probed_lr) ** exponent)

    @cached_property
    def lam(self) -> float | None:
        """The coefficient that the law was seen to hold with; as the group or the attached rule says it, where they agree."""
        lam = self.found.lam
        if lam is None or (lam == 0.0 and self.decays):  # what acts is no 0
            return self.group.rule_lam
        known = (self.group.rule_lam, self.group.weight_decay)
        return next((each for each in known if each is not None and _close(each, lam)), lam)

    @property
    def differs(self) -> bool:
        """Whether its group says another coefficient, which is not 0."""
        says, lam = self.group.weight_decay, self.lam
        known = self.law.name is not None and says and lam is not None
        return bool(known) and not _close(says or 0.0, lam or 0.0, tolerance_of(self.law))


@dataclass(frozen=True, eq=False)
class Effect:
    """What all the optimizers that hold a parameter do to it; parameters of which the same was found share one.

    Attributes:
        groups: The groups that hold it: one, if all is well.
        holders: What each optimizer does.
        decays: Whether the next step decays it; None where that could not be probed.
        why: Why it decays, or not.
        notes: What else is true, in a few words each.
        law: The law; None if it is in no group.
    """

    groups: tuple[Group, ...] = ()
    holders: tuple[Holder, ...] = ()
    decays: bool | None = False
    why: str = ""
    notes: tuple[str, ...] = ()
    law: Law | None = None

    @cached_property
    def acting(self) -> tuple[Holder, ...]:
        """The optimizers that decay it."""
        return tuple(holder for holder in self.holders if holder.decays)

    @cached_property
    def group(self) -> Group | None:
        """The group that decides about it: the first that decays it, else the first that holds it."""
        return self.acting[0].group if self.acting else self.groups[0] if self.groups else None

    @cached_property
    def removals(self) -> int:
        """How often its decay is removed per iteration, by all its places in all optimizers."""
        return sum(holder.times for holder in self.acting)

    @cached_property
    def places(self) -> int:
        """In how many places of groups it stands: one, if all is well."""
        return sum(holder.times for holder in self.holders)

    @cached_property
    def unknown(self) -> tuple[Holder, ...]:
        """The optimizers of which it is not known whether they decay it."""
        return tuple(holder for holder in self.holders if holder.decays is None)

    @cached_property
    def without_setting(self) -> tuple[Holder, ...]:
        """The optimizers that decay it although its group there says 0."""
        return tuple(each for each in self.acting if each.group.part is None and each.group.weight_decay == 0.0)

    @cached_property
    def with_other_setting(self) -> tuple[Holder, ...]:
        """The optimizers that decay it by another coefficient than its group there says."""
        return tuple(each for each in self.acting if each.group.part is None and each.differs)

    @cached_property
    def lam(self) -> float | None:
        """The coefficient that its law holds with; None if there is none, or several optimizers decay it."""
        return self.acting[0].lam if len(self.acting) == 1 else None

    @cached_property
    def r(self) -> float | None:
        """The fraction that a step which acts removes at the learning rate now, or at the peak where that is 0."""
        return _together([holder.r for holder in self.acting])

    @cached_property
    def r_peak(self) -> float | None:
        """The fraction at the peak learning rate."""
        return _together([holder.r_peak for holder in self.acting])

    @cached_property
    def half_life(self) -> float | None:
        """Calls of ``step()`` after which half of an untouched weight is left; None where no one fraction says that."""
        return _half_life(self.acting, [holder.r for holder in self.acting])

    @cached_property
    def half_life_peak(self) -> float | None:
        """The same, if the learning rate were at its peak."""
        return _half_life(self.acting, [holder.r_peak for holder in self.acting])

    @cached_property
    def plain(self) -> dict[str, Any]:
        """What `Row.plain` says of every parameter that shares it."""
        group, seen = self.group, (self.acting or self.holders)[0].found.seen if self.holders else None
        return {
            "optimizer": None if group is None else group.optimizer,
            "group": None if group is None else group.index,
            "also_in": [[each.optimizer, each.index] for each in self.groups if each is not group],
            "decays": self.decays,
            "why": self.why,
            "notes": list(self.notes),
            "seen": None if seen is None else seen.form,
            "law": None if self.law is None else "none" if self.decays is False else _named(self.law),
            "lam": self.lam,
            "lr": None if group is None else group.plain_lr,
            "r": _ten_digits(self.r),
            "half_life": _ten_digits(self.half_life),
            "every": max((holder.every for holder in self.acting), default=1),
            "r_lr": group.probed_lr if group is not None and self.decays else None,
            "peak_lr": None if group is None else group.peak_lr,
            "r_peak": _ten_digits(self.r_peak),
            "half_life_peak": _ten_digits(self.half_life_peak),
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
        effect: What the optimizers do to it.
        is_frozen: Whether no gradient is asked for; a step may still update it.
        seen_on: The name of the member of the same kind that was stepped in its place; None: it was itself.
        declared: Where the model itself says that it does not decay; empty if it does not.
        shares: The names of the parameters in groups whose memory it has, or some of it.
        bare: The names without what wrappers put into them.
        is_listed: Whether a group lists it; one that does not may still be stepped, as part of the memory of another.
    """

    names: tuple[str, ...]
    parameter: Tensor
    kind: str | None
    kind_reason: str
    effect: Effect
    is_frozen: bool
    seen_on: str | None
    declared: str
    shares: tuple[str, ...] = ()
    bare: tuple[str, ...] = ()
    is_listed: bool = True

    @property
    def name(self) -> str:
        """The first of its names."""
        return self.names[0]

    @property
    def groups(self) -> tuple[Group, ...]:
        """The groups that hold it: one, if all is well."""
        return self.effect.groups

    @property
    def group(self) -> Group | None:
        """The group that decides about it: the first that decays it, else the first that holds it."""
        return self.effect.group

    @property
    def decays(self) -> bool | None:
        """Whether the next step decays it; None where that could not be probed."""
        return self.effect.decays

    @property
    def why(self) -> str:
        """Why it decays, or not."""
        return self.effect.why

    @property
    def law(self) -> Law | None:
        """The law; None if it is in no group."""
        return self.effect.law

    @property
    def seen(self) -> Seen | None:
        """What the next steps of the optimizer that decides do to it; None if it is in none."""
        holders = self.effect.acting or self.effect.holders
        return holders[0].found.seen if holders else None

    @property
    def lam(self) -> float | None:
        """The coefficient that its law holds with; None if there is none, or several optimizers decay it."""
        return self.effect.lam

    @property
    def r(self) -> float | None:
        """The fraction that a step which acts removes at the learning rate now, or at the peak where that is 0.

        Under `Stable`, whose fraction depends on the gradients, what the last step removed. Of a parameter that
        several optimizers decay, what they remove together.
        """
        return self.effect.r

    @property
    def r_peak(self) -> float | None:
        """The fraction at the peak learning rate: what decides whether the decay does anything in the run."""
        return self.effect.r_peak

    @property
    def half_life(self) -> float | None:
        """Calls of ``step()`` after which half of an untouched weight is left; None where no one fraction says that."""
        return self.effect.half_life

    def plain(self, steps_per_epoch: float | None, tokens_per_step: float | None) -> dict[str, Any]:
        """Return the parameter as `Explanation.rows` has it."""
        shared = self.effect.plain
        steps = shared["half_life"]
        found: dict[str, Any] = {
            "parameter": self.names[0],
            "tied": list(self.names[1:]),
            "shape": list(self.parameter.shape),
            "dtype": str(self.parameter.dtype).removeprefix("torch."),
            "kind": self.kind,
            "what": self.kind_reason,
            **shared,
            "seen_on": self.seen_on,
            "also_in": [list(each) for each in shared["also_in"]],
            "notes": list(shared["notes"]),
        }
        if steps_per_epoch is not None:
            found["half_life_epochs"] = None if steps is None else steps / steps_per_epoch
        if tokens_per_step is not None:
            found["half_life_tokens"] = None if steps is None else steps * tokens_per_step
        return found


def _named(law: Law) -> str:
    """Return the name of a law; of one without a name its pathway, unless that is the name of another law."""
    return law.name or ("other" if law.pathway in law_names() else law.pathway)


def tolerance_of(law: Law) -> float:
    """Return how exactly the numbers of a law are known, relative."""
    return 0.05 if any("float32" in note for note in law.notes) else TOLERANCE


def _close(one: float, other: float, tolerance: float = TOLERANCE) -> bool:
    return abs(one - other) <= tolerance * abs(other)


def _together(fractions: Sequence[float | None]) -> float | None:
    """Return what several removals remove in all; None if one of them is not known."""
    left = 1.0
    for r in fractions:
        if r is None:
            return None
        left *= 1.0 - r
    return (fractions[0] if len(fractions) == 1 else 1.0 - left) if fractions else None


def _half_life(holders: Sequence[Holder], fractions: Sequence[float | None]) -> float | None:
    """Return the calls of ``step()`` after which the removals of some optimizers leave half of a weight."""
    lost = 0.0
    for holder, r in zip(holders, fractions, strict=True):
        if r is None or not 0.0 < r < 1.0 - TOLERANCE**2 or not holder.is_steady:  # of 1 nothing is left to halve
            return None
        lost -= math.log1p(-r) / holder.every
    return math.log(2.0) / lost if lost else None


def _ten_digits(value: float | None) -> float | None:
    """Return a measured number to the digits that probing gives."""
    return None if value is None else float(f"{value:.10g}")


def tried(seen: Seen) -> str:
    """Say what was tried where a setting had no effect: a step may look at the number of the call, or at its gradients."""
    return f"had no effect in {seen.calls} calls with gradients of zeros, and in a few with random ones"


def times_in_words(count: int) -> str:
    """Return ``"twice"`` for 2."""
    return {1: "once", 2: "twice"}.get(count, f"{count} times")


def groups_of(optimizers: Sequence[Optimizer], *, in_place: bool = False) -> list[Group]:
    """Probe every group of some optimizers.

    Args:
        optimizers: The optimizers, with any wrapper taken off.
        in_place: Step the real ones instead of copies, and put everything back.

    Returns:
        One record per group.

    Raises:
        UserError: If one of them is given twice, or has a parameter without a shape.
    """
    if len(set(map(id, optimizers))) < len(optimizers):
        raise UserError("got the same optimizer twice; give each once")
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            check_shapes(
                zip(group.get("param_names") or itertools.repeat("a parameter"), group["params"], strict=False)
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what an optimizer says about the throw-away copy helps nobody
        probed = probe_of(optimizers, in_place=in_place)
    found = []
    held = {id(each): each for optimizer in optimizers for group in optimizer.param_groups for each in group["params"]}
    hooks = hooked(held.values(), optimizers)
    for position, (optimizer, result) in enumerate(zip(optimizers, probed, strict=True)):
        applied = _AtTheLastStep(optimizer)
        of_each = {key: _behind_hooks(each, hooks.get(key)) for key, each in result.found.items()}
        for index, (settings, of_group) in enumerate(zip(optimizer.param_groups, result.laws, strict=True)):
            law = _common_law([of_each[id(each)] for each in settings["params"]], of_group)
            lr, part = number(settings.get("lr")), _part_for(optimizer, index)
            by_gradients = part is not None and "second_moment" in part.needs
            removed, notes = applied.of(index) if by_gradients else (None, [])
            peaks = _peaks(optimizer, settings)
            # As probing chooses it where lr is 0 now; the constructor's lr is no group's peak otherwise.
            probed_lr = lr if lr > 0.0 else next(iter(peaks), DEFAULT_LR)
            proven = is_of_torch(optimizer)
            # The line of the rule has its numbers, and the rows say what was tried.
            said = [note for note in law.notes if not note.endswith("of halflife is attached")]
            said = [note for note in said if proven or note != NO_EFFECT]
            found.append(
                Group(
                    optimizer=position,
                    optimizer_name=type(optimizer).__name__,
                    is_proven=proven,
                    index=index,
                    settings=settings,
                    law=replace(law, notes=tuple(dict.fromkeys((*said, *notes, *result.notes)))),
                    found=of_each,
                    hooks=hooks,
                    moved=result.moved,
                    part=part,
                    lr=lr,
                    probed_lr=probed_lr,
                    peak_lr=max(probed_lr, *(number(settings.get(key)) for key in PEAK_KEYS)),
                    applied=removed,
                )
            )
    return found


def _behind_hooks(found: Found, hooks: Hooked | None) -> Found:
    """Return what is known of a parameter that has hooks: a step shows neither what they do, nor what is not done."""
    if hooks is None:
        return found
    unmoved = found.law.pathway == "none" and found.seen.form == "still"
    reason = hooks.reason or (hooks.not_proven if unmoved else "")
    return _not_probed(reason) if reason else found


def _not_probed(reason: str) -> Found:
    return Found(law=Law(pathway="not probed", notes=(reason,)), lam=None, seen=Seen(form="not probed", reason=reason))


def _common_law(found: Sequence[Found], law: Law) -> Law:
    """Return the law of a group, or why nothing is known of it where that is true of all its parameters."""
    laws = [each.law for each in found]
    unknown = bool(laws) and all(each.pathway == "not probed" for each in laws)
    return laws[0] if unknown and law.pathway != "not probed" else law


def _peaks(optimizer: Optimizer, settings: Mapping[str, Any]) -> list[float]:
    """Return what may be the largest learning rate of a group whose own is 0, the likeliest first."""
    defaults = getattr(optimizer, "defaults", None) or {}
    places = [settings, vars(optimizer), {"lr": defaults.get("lr")}]
    found = [number(place.get(key)) for place in places for key in (*PEAK_KEYS, "lr")]
    return [each for each in found if each > 0.0]


def check_shapes(named: Iterable[tuple[str, Tensor]]) -> None:
    """Raise a UserError if a parameter has no shape: its module is lazy and has not seen a batch."""
    for name, parameter in named:
        if isinstance(parameter, UninitializedParameter):
            raise UserError(f"{name} has no shape yet; run one forward pass first, and build the optimizer after it")


def _part_for(optimizer: Optimizer, index: int) -> Part | None:
    """Return the part of an attached rule that acts on a group; None where there is none, which a step would refuse."""
    handle = handle_of(optimizer)
    try:
        return None if handle is None else handle.rule_for(optimizer, index)
    except UserError:
        return None


class _AtTheLastStep:
    """What the last step removed from each group of an optimizer under `Stable`."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer

    @cached_property
    def _known(self) -> tuple[int, list[float], dict[int, list[str]]]:
        handle = handle_of(self.optimizer)
        if handle is None:
            return 0, [], {}
        floors = {index: [str(floor)] for index, floor in floors_of(self.optimizer).items()}
        return handle.config.first_group(self.optimizer), handle.fractions(), floors

    def of(self, index: int) -> tuple[float | None, list[str]]:
        """Return what was removed from a group, and what to say of it; None if nothing was."""
        first, fractions, floors = self._known
        removed = (fractions[first + index] if fractions else None) or None
        return removed, [] if removed is None else ["r is what the last step removed", *floors.get(first + index, [])]


def rows_of(model: nn.Module | None, groups: Sequence[Group]) -> list[Row]:
    """Put the model and the groups together.

    Args:
        model: The model; None if only the optimizer is known.
        groups: The groups.

    Returns:
        One record per parameter of the model, in its order, then those that only the optimizers have.
    """
    held: dict[int, list[Group]] = {}
    outside: dict[int, tuple[tuple[str, ...], Tensor, str | None, str, str]] = {}
    inside = uses_of(model) if model is not None else {}
    uses_by_id = {id(parameter): uses for parameter, uses in inside.items()}
    known = uses_by_id.keys()
    reason = "not in the model" if model is not None else ""
    several = bool(groups) and groups[-1].optimizer > 0
    for group in groups:
        names = group.settings.get("param_names") or ()
        before = f"optimizer {group.optimizer}, " if several else ""
        for position, parameter in enumerate(group.settings["params"]):
            held.setdefault(id(parameter), []).append(group)
            if id(parameter) not in known:
                name = (
                    names[position] if position < len(names) else f"{before}group {group.index}, parameter {position}"
                )
                outside.setdefault(id(parameter), ((str(name),), parameter, None, reason, ""))
    everything: list[tuple[tuple[str, ...], Tensor, str | None, str, str]] = [
        (tuple(use.name for use in uses), each, *kind_of(each, uses), _first(use.declared for use in uses))
        for each, uses in inside.items()
    ]
    everything += outside.values()
    names_by_id = {id(parameter): names[0] for names, parameter, *_ in everything}
    effects = _Effects()
    rows = []
    moved = frozenset().union(*(group.moved for group in groups if group.index == 0))
    hooks = hooked([parameter for _, parameter, *_ in everything if id(parameter) not in held], ())
    shared = shared_memory(parameter for _, parameter, *_ in everything)
    for names, parameter, kind, what, declared in everything:
        key = id(parameter)
        effect, of = effects.of(parameter, held.get(key, ()))
        stepped = [each for each in shared.get(key, ()) if id(each.other) in held]
        if key not in held and stepped:
            effect = _of_memory(parameter, stepped, held, effects, names_by_id)
        elif key in moved:
            effect = MOVED
        elif stepped:
            effect = _beside_shared_memory(effect, stepped, held, effects, names_by_id)
        elif key in hooks and hooks[key].reason:
            effect = Effect(decays=None, why=f"not probed: {hooks[key].reason}")
        of_model = key in outside and any(id(each.other) in known for each in shared.get(key, ()))
        seen_on = None if of is None else names_by_id.get(id(of), "another member of its kind")
        rows.append(
            Row(
                names,
                parameter,
                kind,
                "memory of parameters of the model" if of_model else what,
                effect,
                not parameter.requires_grad,
                seen_on,
                declared,
                tuple(names_by_id[id(each.other)] for each in stepped),
                tuple(use.bare for use in uses_by_id[key]) if key in known else tuple(map(without_wrappers, names)),
                is_listed=key in held,
            )
        )
    return rows


def _beside_shared_memory(
    effect: Effect,
    stepped: Sequence[Shared],
    held: Mapping[int, Sequence[Group]],
    effects: _Effects,
    names: Mapping[int, str],
) -> Effect:
    """Return what happens to a parameter in a group, other parameters of which have some of its memory."""
    own = {group.optimizer for group in effect.groups}
    for each in stepped:
        groups = held[id(each.other)]
        # Within one optimizer it was seen what all of them do; what another one does was seen of its own parameters.
        if (
            any(group.optimizer not in own for group in groups)
            and effects.of(each.other, groups)[0].decays is not False
        ):
            why = f"not probed: some of its memory is that of {names[id(each.other)]}, which another optimizer steps"
            return Effect(decays=None, why=why)
    sharing = ", ".join(dict.fromkeys(names[id(each.other)] for each in stepped[:3]))
    return replace(effect, notes=(*effect.notes, f"it shares memory with {sharing}")) if effect.decays else effect


def _of_memory(
    parameter: Tensor,
    stepped: Sequence[Shared],
    held: Mapping[int, Sequence[Group]],
    effects: _Effects,
    names: Mapping[int, str],
) -> Effect:
    """Return what happens to a parameter in no group whose memory is that of a parameter which is stepped."""
    whole = [each.other for each in stepped if each.inside]
    where = f"it is part of the memory of {names[id(stepped[0].other)]}, which is stepped"
    if len(stepped) > 1:
        return Effect(decays=None, why=f"not probed: {where}, and of that of {names[id(stepped[1].other)]}")
    if not whole:
        return Effect(decays=None, why=f"not probed: some of its memory is that of {names[id(stepped[0].other)]}")
    effect, _ = effects.of(whole[0], held[id(whole[0])])
    if effect.decays is None:
        return Effect(decays=None, why=f"{effect.why}; {where}")
    uniform = all(holder.found.seen.form == "shrinks" and holder.found.seen.idle_rows for holder in effect.acting)
    if effect.decays and not uniform:
        return Effect(decays=None, why=f"not probed: {where}, and not every element of that shrinks alike")
    return replace(effect, why=f"{effect.why}; {where}")


MOVED = Effect(
    decays=None,
    why="not probed: a step of an optimizer moves it, although it is in none of the groups of that optimizer",
)


def _first(texts: Iterable[str]) -> str:
    return next(filter(None, texts), "")


class _Effects:
    """Finds what the optimizers do to a parameter, once for all those that are alike."""

    def __init__(self) -> None:
        self._known: dict[tuple[Any, ...], Effect] = {}

    def of(self, parameter: Tensor, groups: Sequence[Group]) -> tuple[Effect, Tensor | None]:
        """Return it, and the member of the same kind that was stepped in place of the parameter."""
        frozen = not parameter.requires_grad
        skipped = frozen and parameter.grad is None
        key: list[Any] = [frozen, skipped, skipped and not (parameter.is_floating_point() or parameter.is_complex())]
        key.append(parameter.numel() == 0)
        of = None
        for group in groups:
            found = group.found[id(parameter)]
            law, seen = found.law, found.seen
            key += (id(group), found.lam, law.pathway, law.name, law.coefficient, law.every, law.notes, law.lr_exponent)
            key += (
                _ten_digits(law.fraction),
                _ten_digits(seen.r),
                seen.form,
                seen.every,
                seen.lr,
                seen.reason,
                seen.grows,
                seen.calls,
            )
            key += (seen.without_gradient, seen.idle_rows, seen.of is None, _on_gradient(parameter, group))
            of = of if of is not None or seen.of is parameter else seen.of
        effect = self._known.get(tuple(key))
        if effect is None:
            effect = self._known[tuple(key)] = _effect(parameter, groups)
        return effect, of


def _on_gradient(parameter: Tensor, group: Group) -> tuple[str, ...]:
    """Return the names of hooks that may change the gradient of a parameter."""
    return group.hooks[id(parameter)].on_gradient if id(parameter) in group.hooks else ()


def _effect(parameter: Tensor, groups: Sequence[Group]) -> Effect:
    """Return what the optimizers do to a parameter."""
    if not groups:
        return Effect(why="in no optimizer" if parameter.requires_grad else "frozen, in no optimizer")
    first_of = {group.optimizer: group for group in reversed(groups)}
    holders = []
    for optimizer, group in sorted(first_of.items()):
        found = group.found[id(parameter)]
        times = sum(each.optimizer == optimizer for each in groups)
        holders.append(Holder(group=group, found=found, times=times, decays=_decays(parameter, found)))
    answers = {holder.decays for holder in holders}
    decays = True if True in answers else None if None in answers else False
    deciding = [holder for holder in holders if holder.decays is decays]
    return Effect(
        groups=tuple(dict.fromkeys(groups)),
        holders=tuple(holders),
        decays=decays,
        why=_why(parameter, deciding if decays else deciding[:1]),
        notes=tuple(_notes(parameter, holders)),
        law=deciding[0].law,
    )


def _decays(parameter: Tensor, found: Found) -> bool | None:
    """Return whether the next step decays a parameter; torch asks for its gradient, not for requires_grad."""
    seen, law = found.seen, found.law
    if not parameter.requires_grad and parameter.grad is None and not seen.without_gradient:
        known = seen.form != "not probed" or not (parameter.is_floating_point() or parameter.is_complex())
        return False if known else None
    if seen.form == "not probed":
        return None
    if law.pathway == "not probed":  # weights that move decay; those that do not may do so where rounding hides it
        return True if seen.form != "still" else None
    return law.pathway != "none"


def _why(parameter: Tensor, deciding: Sequence[Holder]) -> str:
    """Say why a parameter decays, or not, by the optimizers that decide about it."""
    frozen, skipped, decays = not parameter.requires_grad, parameter.grad is None, deciding[0].decays
    if decays is False and parameter.numel() == 0:
        return "it has no elements"
    if frozen and skipped and decays is False:
        return "frozen"
    why = _why_a_step_does(deciding[0])
    if len(deciding) > 1:
        why = "; ".join(f"{_why_a_step_does(each)} (optimizer {each.group.optimizer})" for each in deciding)
    if frozen and skipped:
        return f"frozen; {why}" if decays is None else f"{why}; frozen, yet it decays although it has no gradient"
    return f"{why}; frozen, but it has a gradient, so a step still updates it" if frozen else why


def _why_a_step_does(holder: Holder) -> str:
    """Say why a step with a gradient decays a parameter, or not."""
    group, law, seen = holder.group, holder.law, holder.found.seen
    reason = seen.reason or (law.notes[0] if law.notes else "no reason given")
    if holder.decays is None:
        return f"not probed: {reason}"
    if not holder.decays:
        if group.rule is not None:
            return f"the attached {group.rule} removes nothing now"
        if group.weight_decay in {None, 0.0}:
            return group.says
        return (
            f"{group.says}, but {group.optimizer_name} ignores it"
            if group.is_proven
            else f"{group.says}, but it {tried(seen)}"
        )
    if group.rule is not None:
        return f"{group.rule} is attached"
    says, lam = group.says, holder.lam
    if not group.weight_decay:
        name = None if lam is None else group.setting_of(lam)
        speaks = group.weight_decay is not None or "weight_decay" not in group.settings  # a function may say anything
        says = f"{name} is {lam:g}" if name else f"{says}, yet a step shrinks it" if speaks else says
    elif lam is not None and holder.differs:
        says = f"{says}, yet a step removes what {lam:.4g} would"
    return f"{says}; {reason}" if law.pathway in {"other", "not probed"} and (law.notes or seen.reason) else says


def _notes(parameter: Tensor, holders: Sequence[Holder]) -> Iterable[str]:
    """Say what else is true of a parameter that decays."""
    acting = [holder for holder in holders if holder.decays]
    removals = sum(holder.times for holder in acting)
    if removals > 1:
        yield f"removed {times_in_words(removals)} per iteration"
    for what in dict.fromkeys(holder.overshoot(holder.r) for holder in acting):
        if what:
            yield f"each step {what}"
    for every in sorted({holder.every for holder in acting} - {1}):
        yield f"at every {ordinal(every)} call"
    if parameter.requires_grad and any(holder.found.seen.without_gradient for holder in acting):
        yield "also where it has no gradient"
    if any(not holder.found.seen.idle_rows for holder in acting):
        yield "only rows with a gradient decay"
    if acting and (names := _on_gradient(parameter, acting[0].group)):
        yield f"a hook may change its gradient in the backward pass ({', '.join(names)}), which was not probed"
    if acting and any(holder.decays is None for holder in holders):
        yield "another optimizer that holds it was not probed"
