"""``probe_of``: what is known of each weight of an optimizer that exists: what a step does to it, and by which law.

Two experiments. The optimizer as it is, or a faithful copy of it, is stepped: that is the truth about each weight
(`halflife.laws.seen`). Small twins of it, whose settings are varied, find the law (`halflife.laws.decide`). Where the
two disagree, the first one is right: twins are made anew that look more like the weights in question, and where these
disagree, too, there is no law to name, and what was seen is told.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import UninitializedParameter
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import (
    StartState,
    drawn_like,
    number,
    peaks_in,
    unwrapped,
    written,
)
from halflife.laws.decide import CHANGES, LATE, SHRINKS, decide
from halflife.laws.factory import joined
from halflife.laws.graph import real_tensors
from halflife.laws.guard import read_only
from halflife.laws.in_place import Snapshot, unrestorable
from halflife.laws.law import Law, NotProbedError
from halflife.laws.levers import Lever
from halflife.laws.probe import Bench
from halflife.laws.reduced import Reduced, is_of_torch, reduced
from halflife.laws.scaling import LEAST, Scale, base_rate, lam_factor, lr_factor
from halflife.laws.seen import Found, Mark, Probed, Seen, glance, look
from halflife.laws.slots import KINDS, kinds_in, look_of, settings_of, small_shape
from halflife.laws.stages import CopyStage, Member, RealStage, State, cut
from halflife.laws.twins import PEAK_KEYS, SAYS, Copies, Sample, laws_of_samples
from halflife.laws.walk import shared_places, unfaithful
from halflife.optim.attaching import handle_of
from halflife.optim.config import INITIAL
from halflife.optim.norms import local
from halflife.optim.step_hooks import foreign_hooks
from halflife.rules.base import Part, Rule

__all__ = ["SIZE", "laws_of", "probe_of"]

SIZE = 2**21  # elements of an optimizer that are stepped as they are; of larger ones, members that stand for others
TENSORS = 1024  # parameters of an optimizer that are stepped as they are
SAMPLE = 2**18  # elements of a weight that are looked at before it is stepped, about
PART = 2**18  # elements of a member that stands for others, at most
PARTS = 2**19  # elements of all members of an optimizer of somebody else's that is larger than SIZE
# Elements of a large optimizer of somebody else's that are stepped once, to see which weights it treats alike.
GLANCE = 2**23
TWIN = 2**14  # elements of a twin that is to look like the weight, at most
FEW = 64  # twins of real shape that are made together, at most
BESIDE = 4  # twins of parameters that are nearest in the group, which stand beside one that is looked at
TRIES = 24  # kinds of weights for which a law is looked for again
CLOSE = 2e-2  # largest relative difference between the fraction that was seen and that of the law
LEAST_PART = 16  # elements of a parameter that are stepped, at least
REMEMBERED = "what it remembers of earlier steps moves it, and nothing decays"
SMALLEST = 1e-12  # floor of what is seen, above which rounding may hide what twins in float64 show
BY_PARAMETER = "it differs by parameter"
NO_GRADIENT = "it requires no gradient"
DIFFERS = (
    "the optimizer treats it otherwise when all of its elements are stepped, or beside all other parameters, and that is"
    " too much to step often; give explain a smaller model, or pass in_place=True"
)

_Stages = Callable[[State], CopyStage]  # makes the stage that begins with a state


def laws_of(optimizer: Optimizer) -> list[Law]:
    """Find the law of each parameter group of an optimizer, at the group's own settings.

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
    (probed,) = probe_of([optimizer])
    return probed.laws


def probe_of(optimizers: Sequence[Any], *, in_place: bool = False) -> list[Probed]:
    """Find out what each optimizer does to each of its weights, and by which law.

    Copies of the optimizer are stepped, and small twins of it: their hooks are left out. Where a rule of halflife is
    attached, the same rule is attached to them, at the same step of its schedule. The optimizer itself, its parameters,
    gradients and state are not touched, and neither are random numbers and default dtype of other threads (see
    `halflife.identify`).

    Copies have the real shapes up to `SIZE` elements in all. Of a larger optimizer, the largest and the smallest
    parameter of each kind are stepped, up to their first `PART` elements, and stand for the others.

    A learning rate or weight decay that is too small to be measured is measured at the peak, or at larger values of
    both, and scaled back; then the optimizer's own settings are tried, as far as rounding shows what they do.

    Args:
        optimizers: The optimizers; accelerate's wrapper is looked through. What has ``param_groups`` and ``step`` will do.
        in_place: Step the optimizers themselves, with gradients of zeros, and put parameters, gradients, state, groups,
            attributes and random state back, checked to the bit. For optimizers of which no copy can be faithful.

    Returns:
        One record per optimizer.

    Raises:
        UserError: If a parameter has no shape yet.
    """
    return [_Probe(unwrapped(optimizer), in_place).answer() for optimizer in optimizers]


class _Probe:
    """Both experiments on one optimizer, and what follows from them."""

    def __init__(self, optimizer: Any, in_place: bool) -> None:
        self.optimizer, self.in_place = optimizer, in_place
        self.handle = handle_of(optimizer)
        self.broken = _broken_settings(optimizer)
        self.unreachable = ""  # why no copy of it would leave the real weights as they are
        # Twins of somebody else's optimizer may reach what belongs to the user.
        self.guard = nullcontext() if is_of_torch(optimizer) else read_only(real_tensors([optimizer]))
        self.moved: set[int] = set()
        self.own_decay: dict[int, float] | None = None  # by parameter, under a rule
        self.asked: dict[int, float] = {}  # by group: what an attached rule asks for
        self.marks: dict[int, Mark] = {}  # by parameter: what one step of all of them does, where they are many
        self.marks_of: State = "real"  # the state that the step began with
        self.twin_state: StartState = "flags"
        self.at_the_start: dict[int, Seen] | None = None
        self.levers: dict[Hashable, list[Lever]] = {}
        self.benches: dict[Hashable, Bench] = {}
        self.places: dict[int, tuple[Tensor, int]] = {}
        for index, group in enumerate(optimizer.param_groups):
            for parameter in group["params"]:
                if isinstance(parameter, UninitializedParameter):
                    raise UserError(
                        f"a parameter of group {index} has no shape yet (a lazy module); run a batch through the model first"
                    )
                self.places.setdefault(id(parameter), (parameter, index))
        self.settings = [
            (settings_of(group), id(self._part(index))) for index, group in enumerate(optimizer.param_groups)
        ]

    def _part(self, index: int) -> Part | None:
        return None if self.handle is None else self.handle.rule_for(self.optimizer, index)

    def answer(self) -> Probed:
        """Return what is known of each parameter, and the law of each group."""
        with Snapshot.of_places([] if is_of_torch(self.optimizer) else shared_places([self.optimizer])):
            return self._answer()

    def _answer(self) -> Probed:
        self.unreachable = "" if is_of_torch(self.optimizer) else unfaithful([self.optimizer]) or ""
        seen = self._seen()
        with self.guard:
            laws = self._laws()
        found: dict[int, Found] = {}
        doubtful: list[tuple[Tensor, int, Law, Seen]] = []
        for key, (parameter, index) in self.places.items():
            law, what = laws[key], seen[key]
            beside = self._beside_a_rule(what, law, key)
            if beside is not None:
                found[key] = beside
                continue
            agreed = self._agreed(law, what, index)
            if agreed is None or (agreed.pathway == "not probed" and law.pathway != "not probed"):
                what = self._from_the_start(law, what, key, index)
                agreed = self._agreed(law, what, index)
            # A multiple of a number that it does not follow: another number may be the one.
            by_another = agreed is not None and law.native is False and law.coefficient not in {None, 1.0}
            if agreed is None or (by_another and self.handle is None):
                doubtful.append((parameter, index, law, what))
            else:
                found[key] = Found(law=agreed, lam=self._lam(agreed, index), seen=_as_told(what, agreed))
        found |= self._second_look(doubtful)
        found = {key: self._consistent(each, self.places[key][1]) for key, each in found.items()}
        notes = [f"{what} cannot be put back" for what in unrestorable([self.optimizer])] if self.in_place else []
        return Probed(laws=self._by_group(found), found=found, moved=frozenset(self.moved), notes=tuple(notes))

    # ---- what a step does

    def _seen(self, state: State = "real") -> dict[int, Seen]:
        """Return what the next calls of ``step()`` do to each parameter, from the real state or that of the start."""
        reason = self._cannot_be_stepped()
        if reason:
            return dict.fromkeys(self.places, Seen(form="not probed", reason=reason))
        rates = self._base_rates()
        factors = [1.0 if math.isnan(rate) else lr_factor(rate) for rate in rates]
        rates, raised = [rate * factor for rate, factor in zip(rates, factors, strict=True)], max(factors, default=1.0)
        chosen, stands_for = self._chosen(rates, raised, state)
        if not chosen and not self.broken:
            return {key: _unseen(parameter) for key, (parameter, _) in self.places.items()}
        try:
            answers = dict(zip(chosen, self._looked_at(chosen, rates, raised, state), strict=True)) if chosen else {}
        except (NotProbedError, UserError) as error:
            return dict.fromkeys(self.places, Seen(form="not probed", reason=str(error)))
        return {
            key: Seen(form="not probed", reason=self.broken[index])
            if index in self.broken
            else self._stood_for(key, stands_for.get(key, ()), answers)
            for key, (_, index) in self.places.items()
        }

    def _from_the_start(self, law: Law, seen: Seen, key: int, index: int) -> Seen:
        """Return what a step does to a parameter without what the optimizer remembers, where that explains more."""
        moves = seen.form not in {"still", "not probed"} or seen.moving
        if not moves or self._part(index) is not None:
            return seen
        if self.at_the_start is None:
            self.at_the_start = self._seen_at_the_start()
        first = self.at_the_start.get(key)
        if first is None or first.form == "not probed":
            return replace(seen, remembered=seen.form != "shrinks")
        if seen.form == first.form == "shrinks" and abs((seen.r or 0.0) - (first.r or 0.0)) <= CLOSE * abs(
            first.r or 0.0
        ):
            return seen
        if first.form == "still":
            return replace(first, reason=first.reason or REMEMBERED)
        agreed = self._agreed(law, first, index)
        return replace(first if agreed is not None or seen.form == "varied" else seen, remembered=not first.nearer)

    def _seen_at_the_start(self) -> dict[int, Seen]:
        """Return what a step does to each parameter without what the optimizer remembers; nothing if that is unknown."""
        states: tuple[State, ...] = ("flags", "start")
        for state in states:
            seen = self._seen(state)
            if any(each.form != "not probed" for each in seen.values()):
                return seen
        return {}

    def _looked_at(self, chosen: Sequence[int], rates: Sequence[float], raised: float, state: State) -> list[Seen]:
        """Step some parameters, and return what was seen of each."""
        if self.in_place:
            members = [self._member(key, None) for key in chosen]
            device = members[0].start.device
            with RealStage(self.optimizer, members, rates, raised=raised, device=device, state=state) as real:
                return _look(real)
        limit = self._limit(chosen)
        stages, differing = self._like_the_whole(chosen, rates, raised, limit)
        try:
            answers = _look(stages(state))
        except NotProbedError:
            if limit is not None and self.marks and sum(self.places[key][0].numel() for key in chosen) <= GLANCE:
                return _look(self._stages(chosen, rates, raised, None)(state))
            if limit is None or state != "real":
                raise
            # Its state fits to whole weights only: what was seen is what it does without that state.
            answers = _look(stages("flags"))
        return [
            Seen(form="not probed", reason=DIFFERS) if key in differing else seen
            for key, seen in zip(chosen, answers, strict=True)
        ]

    def _like_the_whole(
        self, chosen: Sequence[int], rates: Sequence[float], raised: float, limit: int | None
    ) -> tuple[_Stages, Collection[int]]:
        """Return stages on which parts are treated as the whole weights are, and those that are on none."""
        stages = self._stages(chosen, rates, raised, limit)
        differing = self._differing(chosen, stages)
        small = {key for key in differing if self.places[key][0].numel() <= GLANCE // len(differing)}
        if small:  # their size may decide
            stages = self._stages(chosen, rates, raised, limit, whole=small)
            differing = self._differing(chosen, stages)
        return stages, differing

    def _differing(self, keys: Sequence[int], stages: _Stages) -> set[int]:
        """Return which parameters are treated otherwise than they are when all are stepped."""
        if not self.marks:
            return set()
        try:
            marks = glance(stages(self.marks_of))
        except NotProbedError:
            return set()
        return {
            key
            for key, mark in zip(keys, marks, strict=True)
            if key in self.marks and not mark.is_like(self.marks[key])
        }

    def _limit(self, keys: Sequence[int]) -> int | None:
        """Return how many elements of each parameter are stepped; None for all."""
        sizes = [self.places[key][0].numel() for key in keys]
        if sum(sizes) <= SIZE and len(self.places) <= TENSORS:
            return None
        return PART if is_of_torch(self.optimizer) else min(PART, _share(sizes, PARTS))

    def _stages(
        self,
        keys: Sequence[int],
        rates: Sequence[float],
        raised: float,
        limit: int | None,
        whole: Collection[int] = (),
        without_decay: Collection[int] = (),
    ) -> _Stages:
        """Return what makes copies of the optimizer over some parameters, or over the first elements of each."""
        small = self._small(keys)
        members = []
        for key in keys:
            made = self._member(key, None if key in whole else limit)
            parameter = small.parameters.get(key, made.parameter)
            members.append(replace(made, parameter=parameter, group=small.groups[made.group]))
        kept = [rates[index] for index in small.groups]
        off = [place for index, place in small.groups.items() if index in without_decay]
        device = members[0].start.device

        def make(state: State) -> CopyStage:
            return CopyStage(
                small.optimizer,
                members,
                kept,
                raised=raised,
                device=device,
                state=state,
                moved=self.moved,
                without_decay=off,
            )

        return make

    def _glance(self, keys: Sequence[int], rates: Sequence[float], raised: float, state: State) -> None:
        """Step all parameters once, of a large optimizer that is not torch's: it may treat any of them otherwise."""
        sizes = [self.places[key][0].numel() for key in keys]
        limit = None if sum(sizes) <= GLANCE else _share(sizes, GLANCE)
        stages = self._stages(keys, rates, raised, limit)
        self.marks = {}
        for self.marks_of in (state,) if limit is None or state != "real" else ("real", "flags"):
            try:
                self.marks = dict(zip(keys, glance(stages(self.marks_of)), strict=True))
            except NotProbedError:
                continue
            return

    def _small(self, keys: Sequence[int]) -> Reduced:
        """Return the optimizer with some of its parameters only, where there are many others."""
        if self.handle is not None or len(keys) * 4 > len(self.places):
            return Reduced(self.optimizer, {}, {index: index for index in range(len(self.optimizer.param_groups))})
        return reduced(self.optimizer, [self.places[key][0] for key in keys])

    def _cannot_be_stepped(self) -> str:
        """Return why no copy of the optimizer tells the truth; empty if one does."""
        if self.in_place:
            return ""
        hooks = foreign_hooks(self.optimizer)
        if hooks:
            names = ", ".join(sorted(hooks))
            return (
                f"it has step hooks that are not of halflife ({names}), which a copy must not call; pass in_place=True"
            )
        return f"{self.unreachable}; pass in_place=True" if self.unreachable else ""

    def _chosen(
        self, rates: Sequence[float], raised: float, state: State
    ) -> tuple[list[int], dict[int, tuple[int, ...]]]:
        """Return which parameters are stepped, and for the others which of these stand for them."""
        usable = {
            key: (parameter, index)
            for key, (parameter, index) in self.places.items()
            if (parameter.is_floating_point() or parameter.is_complex()) and index not in self.broken
        }
        size = sum(parameter.numel() for parameter, _ in usable.values())
        is_small = size <= SIZE and len(usable) <= TENSORS
        if self.in_place or (is_small and not self._somewhere_else(usable)):
            return list(usable), {}
        if not is_of_torch(self.optimizer):
            self._glance(list(usable), rates, raised, state)
            if len(usable) <= TENSORS:
                return list(usable), {}
        kinds: dict[Hashable, list[int]] = {}
        for key, (parameter, index) in usable.items():
            mark = self.marks[key].rounded() if key in self.marks else None
            kinds.setdefault((self.settings[index], self._kind(parameter), mark), []).append(key)
        chosen: dict[int, None] = {}
        stands_for: dict[int, tuple[int, ...]] = {}
        for keys in kinds.values():
            sizes = {key: usable[key][0].numel() for key in keys}
            both = (max(keys, key=sizes.__getitem__), min(keys, key=sizes.__getitem__))
            chosen |= dict.fromkeys(both)
            for key in keys:
                stands_for[key] = tuple(dict.fromkeys(both))
        return list(chosen), {key: both for key, both in stands_for.items() if key not in chosen}

    @staticmethod
    def _somewhere_else(usable: Mapping[int, tuple[Tensor, int]]) -> bool:
        """Return whether parameters have no values of their own here, so that alike ones need not all be stepped."""
        return any(parameter.device.type == "meta" for parameter, _ in usable.values()) and len(usable) > 64

    @staticmethod
    def _kind(parameter: Tensor) -> Hashable:
        return look_of(parameter), parameter.requires_grad, parameter.grad is None

    def _member(self, key: int, limit: int | None) -> Member:
        """Return what is stepped of a parameter: all of it, or its first elements."""
        parameter, index = self.places[key]
        whole = local(parameter.detach()) if self.in_place else parameter.detach()
        start = whole if limit is None else cut(whole, limit)
        readable = type(start) in {Tensor, torch.nn.Parameter} and start.layout == torch.strided
        readable = readable and start.device.type != "meta"
        kind = (self.settings[index], self._kind(parameter))
        if readable and _says_something(start):
            return Member(parameter, index, start if self.in_place else start.clone(), None, kind)
        origin = start if self.in_place else start.clone()
        return Member(parameter, index, drawn_like(start), origin if readable else None, kind)

    def _own_rates(self) -> list[float]:
        rates = [number(group.get("lr")) for group in self.optimizer.param_groups]
        return [rate if abs(rate) >= LEAST else 0.0 for rate in rates]

    def _base_rates(self) -> list[float]:
        """Return the learning rate at which to look at each group: its own, or that of the peak; NaN where it has none."""
        return [
            math.nan if group.get("lr") is None else base_rate(lr, peaks_in(self.optimizer, group, PEAK_KEYS))
            for group, lr in zip(self.optimizer.param_groups, self._own_rates(), strict=True)
        ]

    def _stood_for(self, key: int, both: tuple[int, ...], answers: Mapping[int, Seen]) -> Seen:
        """Return what was seen of a parameter, or of the members that stand for it."""
        parameter = self.places[key][0]
        if key in answers:
            return answers[key]
        if not both:
            return _unseen(parameter)
        if len({(answers[each].form, answers[each].every) for each in both}) > 1:
            return Seen(
                form="not probed",
                reason="the largest and the smallest parameter of its kind are treated differently, and it was too much to "
                "step all; give explain fewer parameters, or pass in_place=True",
            )
        nearest = min(both, key=lambda each: abs(self.places[each][0].numel() - parameter.numel()))
        return replace(answers[nearest], of=self.places[nearest][0])

    # ---- by which law

    def _laws(self) -> dict[int, Law]:
        """Return the law of each parameter: one is probed for all that are treated alike."""
        if self.unreachable:  # twins would reach the real weights
            return dict.fromkeys(self.places, Law(pathway="not probed", notes=(self.unreachable,)))
        alike: dict[Hashable, list[int]] = {}
        kinds: dict[int, str] = {}
        for group in self.optimizer.param_groups:
            kinds |= dict(zip(map(id, group["params"]), kinds_in(group), strict=True))
        for key, (parameter, index) in self.places.items():
            if parameter.requires_grad or parameter.grad is not None:
                alike.setdefault((self.settings[index], look_of(parameter)), []).append(key)
        first = [keys[0] for keys in alike.values()]
        small = self._small(first)
        samples = []
        for key in first:
            parameter, index = self.places[key]
            twin = small.parameters.get(key, parameter)
            samples.append(Sample(twin, small.groups[index], kinds[key] or "frozen", small_shape(parameter)))
        probed, self.twin_state = laws_of_samples(small.optimizer, samples)
        found: dict[int, Law] = {}
        for keys, law in zip(alike.values(), probed, strict=True):
            origin = self.places[keys[0]][1]
            for key in keys:
                found[key] = self._moved(law, origin, self.places[key][1])
        nothing = Law(pathway="not probed", notes=(NO_GRADIENT,))
        return {key: found.get(key, nothing) for key in self.places}

    def _moved(self, law: Law, origin: int, index: int) -> Law:
        """Return the law of one group for another that has the same settings, rates and sizes apart."""
        if origin == index or law.fraction is None or law.pathway == "none":
            return law
        ratios = []
        for each in (origin, index):
            group = self.optimizer.param_groups[each]
            peaks = peaks_in(self.optimizer, group, PEAK_KEYS)
            lr = number(group.get("lr")) or base_rate(0.0, peaks)
            lam = number(group.get("weight_decay")) or 1.0
            ratios.append((lr, next(iter(peaks), lr), lam))
        (lr, peak, lam), (own_lr, own_peak, own_lam) = ratios
        a, b = law.lr_exponent or 0.0, law.peak_lr_exponent or 0.0
        fraction = law.fraction * (own_lr / lr) ** a * (own_peak / peak) ** b * (own_lam / lam)
        return replace(law, fraction=fraction)

    def _lam(self, law: Law, index: int) -> float | None:
        """Return the number that the law's formula holds with."""
        group, part = self.optimizer.param_groups[index], self._part(index)
        if part is not None:
            if part.explicit_lam is not None:
                return part.explicit_lam
            own = group.get(INITIAL, group.get("weight_decay"))
            return None if own is None or "lam" not in part.needs else number(own)
        return number(group["weight_decay"]) if "weight_decay" in group else None

    # ---- where the two disagree

    def _agreed(self, law: Law, seen: Seen, index: int) -> Law | None:
        """Return the law, if what was seen is what it says; None if it is not."""
        if seen.form == "not probed":
            reasons = (*law.notes, seen.reason) if law.pathway == "not probed" else (seen.reason,)
            return Law(pathway="not probed", notes=tuple(dict.fromkeys(reasons)))
        if self._part(index) is not None:
            return law  # of halflife's own: it is asked for what it does
        if law.pathway == "not probed":
            hidden = seen.form == "still" and bool(law.notes) and "lost in rounding" in law.notes[0]
            return law if hidden or (seen.form == "still" and law.notes == (NO_GRADIENT,)) else None
        r = self._said(law, seen, index)
        group = self.optimizer.param_groups[index]
        size = abs(number(group.get("lr")) * number(group.get("weight_decay"))) if r is None else r
        if 0.0 < size < seen.floor and abs(seen.r or 0.0) < seen.floor and law.pathway != "other":
            return law  # what was seen is rounding
        match law.pathway, seen.form:
            case "none", "still":
                return law
            case "l2-preconditioned", "still" if seen.moving:
                return law  # the sign of a momentum hides it
            case "other", "varied" | "masked" if _shows_none(law):
                return None
            case "other", "still" if seen.moving:
                return Law(pathway="not probed", notes=(f"momentum hides what it may do ({law.notes[0]})",))
            case "cautious", "still" | "masked" | "shrinks":
                return law if seen.form == "still" or seen.every == law.every else None
            case "l2", "shrinks" if seen.grows and law.equivalent_to is None and self._is_first(law, seen, index):
                return law
            case "decoupled" | "l2", "shrinks":
                if r is None or (seen.r is not None and abs(seen.r - r) <= CLOSE * abs(r)):
                    return law if seen.every == law.every else None
            case "l2", "varied":
                return law if seen.moving else None
            case "l2-preconditioned", "shrinks" | "varied" | "masked":
                return law if seen.form == "varied" or seen.every == law.every else None
            case "other", "shrinks" if not seen.moving:
                return None  # what is that clean may have a law
            case "other", "shrinks" | "varied" | "masked":
                now = seen.r if seen.lr == self._own_rates()[index] else None
                return replace(law, fraction=now if law.fraction is None else law.fraction)
        return None

    def _beside_a_rule(self, seen: Seen, law: Law, key: int) -> Found | None:
        """Return what is known of a parameter that an optimizer decays by itself beside a rule; None if it does not.

        Copies are stepped without the rule, the optimizer itself with it.
        """
        index = self.places[key][1]
        part, now = self._part(index), seen.lr == self._own_rates()[index] or math.isnan(seen.lr)
        if not isinstance(part, Rule) or not part.needs <= {"lam"} or type(part).__name__ in SAYS or not now:
            return None  # what depends on gradients or norms is not known beforehand
        if seen.form != "shrinks" or seen.moving or seen.grows or not seen.r or abs(seen.r) < seen.floor:
            return None
        asked = self._asked(index)
        if self.in_place:
            total = seen.r
            own = (total - asked) / (1.0 - asked) if asked != 1.0 else math.nan
        else:
            own = self._own_decay().get(key, 0.0)
            total = asked + own * (1.0 - asked)
        if not abs(own) > max(CLOSE * abs(asked), seen.floor):  # NaN too
            return None
        note = f"the rule removes {asked:.4g}, and {type(self.optimizer).__name__} {own:.4g} by itself"
        told = Law(pathway="other", fraction=total, notes=(note, *law.notes[:1]))
        return Found(law=told, lam=None, seen=replace(seen, r=total))

    def _own_decay(self) -> dict[int, float]:
        """Return which fraction a step removes of each parameter under a rule, its own weight_decay switched off."""
        if self.own_decay is None:
            keys = [key for key, (_, index) in self.places.items() if self._part(index) is not None]
            self.own_decay = dict.fromkeys(keys, 0.0)
            under = {self.places[key][1] for key in keys}
            stages = self._stages(keys, self._base_rates(), 1.0, self._limit(keys), without_decay=under)
            with suppress(NotProbedError):
                marks = glance(stages("real"))
                self.own_decay |= {key: mark.r for key, mark in zip(keys, marks, strict=True) if mark.form == "shrinks"}
        return self.own_decay

    def _asked(self, index: int) -> float:
        """Return the fraction that the attached rule asks for in a group."""
        if index not in self.asked:
            parameter = self.optimizer.param_groups[index]["params"][0]
            sample = Sample(parameter, index, KINDS.get(parameter.ndim, "tensor"), small_shape(parameter))
            with self.guard:
                self.asked[index] = Copies(self.optimizer, torch.float64, Scale(), [sample]).fractions_asked()[0]
        return self.asked[index]

    def _consistent(self, found: Found, index: int) -> Found:
        """Leave out the number of a law where the fraction is not what the formula gives with it."""
        law, lam = found.law, found.lam
        if law.pathway != "decoupled" or law.name not in {"decoupled", None} or law.fraction is None or lam is None:
            return found
        lr = self._own_rates()[index]
        if law.coefficient is None or (law.lr_exponent, law.peak_lr_exponent) != (1.0, 0.0) or lr <= 0.0:
            return found
        expected = law.coefficient * lam * lr
        if abs(law.fraction - expected) <= CLOSE * abs(expected) or self._part(index) is not None:
            return found
        return replace(found, law=replace(law, coefficient=None, name=None), lam=None)

    def _is_first(self, law: Law, seen: Seen, index: int) -> bool:
        """Return whether ``lr * lam`` was removed at first: a momentum begins with the whole gradient, not a dampened one."""
        lam = self._lam(law, index)
        return bool(lam) and abs((seen.r or 0.0) - abs(lam or 0.0) * seen.lr) <= CLOSE * abs(lam or 0.0) * seen.lr

    def _said(self, law: Law, seen: Seen, index: int) -> float | None:
        """Return the fraction that a law says for the first call that was seen; None where it says none."""
        if law.pathway == "l2" and law.equivalent_to is None:
            lam = self._lam(law, index)
            if law.coefficient is None or not lam or law.lr_exponent is None or law.peak_lr_exponent != 0.0:
                return None
            return float(law.coefficient * lam * seen.lr**law.lr_exponent)
        if law.fraction is None or law.lr_exponent is None:
            return law.fraction
        lr = self._own_rates()[index]
        if lr in {0.0, seen.lr}:
            return law.fraction
        return float(
            law.fraction * (seen.lr / lr) ** (law.lr_exponent + (law.peak_lr_exponent or 0.0) * (lr_factor(lr) > 1.0))
        )

    def _second_look(self, doubtful: Sequence[tuple[Tensor, int, Law, Seen]]) -> dict[int, Found]:
        """Look again for a law, with twins that look like the weights, where the first was not what was seen."""
        alike: dict[Hashable, list[tuple[Tensor, int, Law, Seen]]] = {}
        for parameter, index, law, seen in doubtful:
            ratio = f"{(seen.r or 0.0) / (seen.lr or 1.0):.3g}"
            key = (self.settings[index], look_of(parameter), law.describe(), seen.form, seen.every, ratio)
            alike.setdefault(key, []).append((parameter, index, law, seen))
        found: dict[int, Found] = {}
        for number_of_try, members in enumerate(alike.values()):
            parameter, index, first, seen = members[0]
            twins: Law | None = None
            lam, reason = None, ""
            if number_of_try < TRIES and seen.form != "still" and not self.unreachable:
                for samples in self._twins_like(parameter, index, seen.every):
                    with self.guard:
                        twins, lam, reason = self._like(parameter, index, samples)
                    if twins is not None and self._agreed(twins, seen, index) is not None:
                        break
            for parameter, index, first, what in members:
                seen = what
                agreed = None if twins is None else self._agreed(twins, seen, index)
                told = agreed if agreed is not None else self._agreed(first, seen, index)
                own = lam if agreed is not None else None if told is None else self._lam(told, index)
                if told is None:
                    told = self._as_seen(first, seen, index, reason)
                unknown = told.pathway == "not probed" and seen.form != "still"
                shown = Seen(form="not probed", reason=told.notes[0], of=seen.of) if unknown else _as_told(seen, told)
                found[id(parameter)] = Found(law=told, lam=own, seen=shown)
        return found

    def _as_seen(self, law: Law, seen: Seen, index: int, reason: str) -> Law:
        """Return what was seen as a law, where none of a known form says it."""
        if seen.form == "still" and LATE in law.notes and seen.floor > SMALLEST:
            return Law(pathway="not probed", notes=(f"{LATE}, and its precision hides a small one",))
        if seen.form == "still":
            return Law(pathway="none", fraction=0.0, notes=(seen.reason or "a step leaves every bit of it as it is",))
        says_zero = number(self.optimizer.param_groups[index].get("weight_decay")) == 0.0
        unproven = _shows_none(law) or (law.pathway == "not probed" and says_zero)
        if unproven and (seen.remembered or (seen.form == "varied" and not seen.nearer)):
            what = seen.reason or f"a call removes {seen.r:.4g} of it"
            instead = "; pass the optimizer as it is before its first step" if self.at_the_start == {} else ""
            note = f"{what}, and whether that is a decay or what the optimizer remembers is not known{instead}"
            return Law(pathway="not probed", notes=(note,))
        now = seen.r if math.isnan(seen.lr) or seen.lr == self._own_rates()[index] else None
        told = law.pathway in {"not probed", "other"} and law.notes
        why = reason or (law.notes[0] if told else f"twins of it would have {law.describe()}")
        if seen.every > 1 and not reason:
            why = "it waits for a later call"
        # What twins do at their first calls says nothing about a decay at every n-th.
        if law.pathway == "other" and seen.every <= 1 and not any(SHRINKS in note for note in law.notes):
            return replace(law, fraction=now, every=seen.every, notes=(*law.notes, *([reason] if reason else [])))
        if seen.form == "shrinks":
            at = "" if math.isnan(seen.lr) else f" at lr = {seen.lr:.4g}"
            note = f"a step{at} removes {seen.r:.4g} of it, by a law that is not known ({why})"
            return Law(pathway="other", fraction=now, every=seen.every, notes=(note,))
        return Law(pathway="other", every=seen.every, notes=(seen.reason, why))

    def _like(self, parameter: Tensor, index: int, samples: Sequence[Sample]) -> tuple[Law | None, float | None, str]:
        """Return the law of twins that have a weight's own shape, with the number in it; or why there is none."""
        calls = samples[0].calls
        place = next(number for number, sample in enumerate(samples) if sample.parameter is parameter)
        dtype = torch.float64
        try:
            copies = Copies(self.optimizer, dtype, Scale(), samples, state=self.twin_state)
            levers = [lever for lever in self._levers(copies, samples, calls) if index in lever.groups]
            if levers and not all(lever.scalable for lever in levers):
                fixed = next(lever.path for lever in levers if not lever.scalable)
                return None, None, f"{fixed} decides, to which the decay is not proportional"
            scale = Scale(lr_factor(copies.slots[place].lr))
            known = levers or None  # where nothing was found, what is called weight_decay is multiplied
            copies = Copies(self.optimizer, dtype, scale, samples, known, self.twin_state)
            scale = replace(scale, lam=lam_factor(copies.fractions_asked()[place], dtype))
            copies = Copies(self.optimizer, dtype, scale, samples, known, self.twin_state)
            key = (calls, _members(samples), scale, tuple(lever.path for lever in levers))
            bench = Bench(copies.build, copies.slots, copies.device, dtype, from_factory=False, calls=calls)
            if len(samples) > 1:
                bench = self.benches.setdefault(key, bench)
            law = replace(copies.named(decide(bench, place), place), every=calls)
        except (NotProbedError, UserError) as error:
            return None, None, str(error)
        if levers and any(note.startswith((SHRINKS, CHANGES)) for note in law.notes):
            return None, None, ""  # it decays without these numbers, too
        lam = levers[0].value if len(levers) == 1 else self._lam(law, index)
        if len(levers) > 1:  # no one number
            paths = " and ".join(lever.path for lever in levers)
            return replace(law, coefficient=None, name=None, notes=(*law.notes, f"{paths} decide together")), None, ""
        if len(levers) == 1 and not levers[0].path.startswith("group['weight_decay']"):
            law = replace(law, notes=(*law.notes, f"its coefficient is {levers[0].path}"))
        return law, lam, ""

    def _levers(self, copies: Copies, samples: Sequence[Sample], calls: int) -> list[Lever]:
        """Return the levers of twins; of several that are probed together, they are looked for once."""
        if self.handle is not None:
            return []  # the rule of halflife decides, and its numbers are the user's
        if len(samples) == 1:
            return copies.find_levers()
        key = (calls, _members(samples))
        if key not in self.levers:
            self.levers[key] = copies.find_levers()
        return self.levers[key]

    def _twins_like(self, parameter: Tensor, index: int, calls: int) -> list[list[Sample]]:
        """Return which samples of real shape to try: all parameters, or, of many, one alone and one beside its nearest."""
        if sum(each.numel() for each, _ in self.places.values()) <= TWIN and len(self.places) <= FEW:
            return [[_exactly(each, place, calls) for each, place in self.places.values()]]
        shape = tuple(cut(torch.empty(parameter.shape, device="meta"), TWIN).shape)
        alone = replace(_exactly(parameter, index, calls), shape=shape)
        members = [each for each in self.optimizer.param_groups[index]["params"] if self.places[id(each)][1] == index]
        place = next(other for other, each in enumerate(members) if each is parameter)
        near, size = {place: alone}, parameter.numel()
        for other in sorted(range(len(members)), key=lambda other: abs(other - place))[1 : 1 + BESIDE]:
            if size + members[other].numel() <= TWIN:
                size += members[other].numel()
                near[other] = _exactly(members[other], index, calls)
        return [[alone], [near[other] for other in sorted(near)]] if len(near) > 1 else [[alone]]

    # ---- groups

    def _by_group(self, found: Mapping[int, Found]) -> list[Law]:
        """Return one law per group, with one for each shape where they differ."""
        laws = []
        for index, group in enumerate(self.optimizer.param_groups):
            by_kind: dict[str, Law] = {}
            for parameter, kind in zip(group["params"], kinds_in(group), strict=True):
                law = found[id(parameter)].law
                if self.places[id(parameter)][1] == index and kind and (parameter.numel() or len(group["params"]) == 1):
                    others = f"{kind} (others)"
                    if kind not in by_kind or by_kind[kind].describe() == law.describe():
                        by_kind.setdefault(kind, law)
                    elif others not in by_kind or by_kind[others].describe() == law.describe():
                        by_kind.setdefault(others, law)
                    else:
                        by_kind[others] = Law(pathway="other", notes=(BY_PARAMETER,))
            laws.append(
                joined(by_kind)
                if by_kind
                else Law(pathway="not probed", notes=("the group has no parameter that requires a gradient",))
            )
        return laws


def _exactly(parameter: Tensor, index: int, calls: int) -> Sample:
    """Return a sample whose one twin has the parameter's shape."""
    return Sample(parameter, index, KINDS.get(parameter.ndim, "tensor"), tuple(parameter.shape), calls, exact=True)


def _members(samples: Sequence[Sample]) -> tuple[int, ...]:
    return tuple(id(sample.parameter) for sample in samples)


def _share(sizes: Sequence[int], total: int) -> int:
    """Return the limit at which weights of these sizes, larger ones cut to it, have so many elements in all."""
    for count, size in enumerate(sorted(sizes)):
        limit = total // (len(sizes) - count)
        if size > limit:
            return max(limit, LEAST_PART)
        total -= size
    return max(sizes)


def _shows_none(law: Law) -> bool:
    """Return whether twins showed no decay, though a step without gradient may move them."""
    return law.pathway == "none" or (law.pathway == "other" and bool(law.notes) and law.notes[0].startswith(CHANGES))


def _look(stage: CopyStage | RealStage) -> list[Seen]:
    """Look at what a step does; from the state of the start, which nothing may remember."""
    seen = look(stage)
    if stage.state != "real" and not stage.fresh:
        raise NotProbedError("it remembers gradients in places that are not its state")
    return seen


def _unseen(parameter: Tensor) -> Seen:
    """Return what is known of a parameter that no step can move: one without elements, or of integers."""
    if parameter.numel() == 0:
        return Seen(form="still", reason="it has no elements")
    return Seen(form="not probed", reason="it holds integers, which no gradient moves")


def _broken_settings(optimizer: Any) -> dict[int, str]:
    """Return what is wrong with a group's learning rate or weight decay, by its number, where no step could be right."""
    found: dict[int, str] = {}
    for index, group in enumerate(optimizer.param_groups):
        for key in ("lr", "weight_decay"):
            value = group.get(key)
            if isinstance(value, str) or (isinstance(value, float) and not math.isfinite(value)):
                found.setdefault(index, f"{key} of group {index} is {written(value)}; expected one finite number")
    return found


def _as_told(seen: Seen, law: Law) -> Seen:
    """Return what was seen as the law tells it, where a step without gradient could not show it."""
    if seen.form != "still" or law.pathway in {"none", "not probed"}:
        return seen
    if law.pathway in {"decoupled", "l2"} and law.fraction is not None:
        return replace(seen, form="shrinks", r=None, reason="too small to be seen, or acting with gradients only")
    return replace(seen, form="masked" if law.pathway == "cautious" else "varied", reason="it acts with gradients")


def _says_something(weight: Tensor) -> bool:
    """Return whether a fraction can be read from weights: they are finite, mostly not 0, and not all of one size."""
    if weight.numel() == 0:
        return True
    if weight.element_size() == 1:  # torch tests and counts no numbers of 8 bits
        weight = weight.float()
    if weight.numel() > 2 * SAMPLE:
        weight = weight.reshape(-1)[:: (weight.numel() // SAMPLE) | 1]
    if not bool(weight.isfinite().all()) or int(weight.count_nonzero()) * 2 <= weight.numel():
        return False
    sizes = weight.abs()
    return weight.numel() == 1 or bool(sizes.min() < 0.99 * sizes.max())
