"""What the next calls of ``step()`` do to each weight of an optimizer as it is, its settings untouched.

A law that is found on small twins says by which formula an optimizer decays; what it does to this one weight may be
something else: it may skip it, read another group's setting, or act at every fourth call. So the optimizer itself, or a
copy that is like it in everything, is stepped with gradients of zeros, and what happens to each weight is looked at.

A step without gradient moves a weight by its decay alone, as long as no momentum does. Where one does, a second run
begins at half the weights: what is left of the difference of the two after a step is what a step leaves of a weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import nan, prod

import torch
from torch import Tensor

from halflife.laws.law import Law, NotProbedError
from halflife.laws.stages import Run, Stage

__all__ = ["FOLLOWS", "Found", "Mark", "Probed", "Seen", "glance", "look"]

CALLS = 4  # that every weight is looked at
LONG = 64  # calls that weights are looked at which do not move at every call
RAISED = 2.0**7  # by what learning rates are multiplied where a small decay would be lost in rounding
UNIFORM = 2e-3  # largest relative spread of a fraction that counts as one number
SURE = 64  # rounding errors that a fraction must have to be read in the weights' own precision
STEADY = 1.25  # largest ratio of what many calls remove, and what it would be by the first
SAME = 1e-2  # largest relative difference of two readings of one fraction
INVISIBLE = 1e-13  # a smaller fraction is rounding, even in float64
MORE = 16  # calls over which a fraction is read that one call rounds, and what is pulled is looked at
ROUGH = 1e-4  # rounding errors of sixteen bits are larger
AT_ONCE = "what a call removes changes: all at the first, nothing at later ones"
AT_FIRST = "what a call removes changes at the first"
ONCE = "the first call moves it, as rounding does, and later ones leave every bit of it as it is"
BROKEN = (
    "its weights become infinite or NaN in a step with a gradient of zeros, as where it divides by the gradient, or its "
    "eps is 0 in their precision"
)
SEVERAL = 6  # elements that are not all moved towards 0 by chance
FOLLOWS = "it is averaged with copies of it that the optimizer keeps, which follow it"
FROM_THE_SECOND = "from the second call on"
BY_SIZE = "what a call removes depends on the size of the weights"
OTHER_PRECISION = "in the precision of the weights it does not act"
VISIBLE = 2.0**-5  # the fraction that a smaller one is raised to, so that the weights' own precision shows it


@dataclass(frozen=True, kw_only=True, eq=False)  # tensors cannot be compared
class Seen:
    """What the next calls of ``step()`` do to one parameter, with a gradient of zeros.

    Attributes:
        form: ``"still"``: not one bit moves. ``"shrinks"``: each call that acts removes a fraction of the weight.
            ``"masked"``: it removes a fraction of some elements, those that have a gradient, say. ``"varied"``: it
            moves, but by no single fraction. ``"not probed"``.
        r: The fraction that a call which acts removes; None unless it shrinks.
        every: It acts at every n-th call.
        lr: The learning rate of its group at which ``r`` holds: its own, or the peak where its own is 0 or tiny.
        without_gradient: Whether the same happens where ``grad`` is None.
        idle_rows: Whether rows whose gradient is zero shrink too, while others have one.
        of: The member of the same kind that was stepped in its place; None: the parameter itself.
        reason: Why it was not probed, and what to pass instead; or how it varies.
        grows: Whether a later call removes more than the first, as momentum makes it.
        moving: Whether momentum moves it without any gradient: then standing still proves nothing.
        floor: A smaller fraction would not have been seen.
        calls: Over how many calls it was looked at.
        remembered: Whether it is not known to happen without what the optimizer remembers of earlier steps.
        nearer: Whether each element that moves is moved towards 0 by the first call that acts.
    """

    form: str
    r: float | None = None
    every: int = 1
    lr: float = nan
    without_gradient: bool = False
    idle_rows: bool = True
    of: Tensor | None = None
    reason: str = ""
    grows: bool = False
    moving: bool = False
    floor: float = 0.0
    calls: int = CALLS
    remembered: bool = False
    nearer: bool = False


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What is known of one parameter of one optimizer.

    Attributes:
        law: Its law; ``fraction`` is for the learning rate now, or, where that is 0, for the peak.
        lam: The number that the law's formula holds with, whatever the optimizer calls it; None if there is none.
        seen: What a step does to it.
    """

    law: Law
    lam: float | None
    seen: Seen


@dataclass(frozen=True, kw_only=True, eq=False)
class Probed:
    """One optimizer.

    Attributes:
        laws: One law per parameter group.
        found: By the id of each parameter, frozen ones too.
        moved: The ids of parameters that a step moves, although they are in none of its groups.
        notes: What holds for the whole optimizer.
    """

    laws: list[Law]
    found: dict[int, Found] = field(default_factory=dict)
    moved: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Mark:
    """What one call does to a parameter: by this one sees whether others are treated as it is.

    Attributes:
        form: ``"still"``, ``"shrinks"``, ``"masked"`` or ``"varied"``.
        r: The fraction that it removes, if it shrinks; else 0.
    """

    form: str
    r: float = 0.0

    def is_like(self, other: Mark) -> bool:
        """Return whether two marks are the same but for rounding."""
        return self.form == other.form and abs(self.r - other.r) <= 2 * SAME * abs(other.r)

    def rounded(self) -> tuple[str, str]:
        """Return the same for those that are alike, but for a few that are at the edge of two."""
        return self.form, f"{self.r:.1e}"


@dataclass(frozen=True)
class _Change:
    """What one call did to one weight."""

    form: str  # "still", "shrinks", "masked", "varied", "broken": it is no longer finite
    r: float = 0.0
    sure: bool = True  # whether rounding leaves enough digits of r
    nearer: bool = False  # whether each element that moves is moved towards 0


def look(stage: Stage) -> list[Seen]:
    """Step an optimizer from chosen weights and tell what each call does.

    Args:
        stage: The optimizer, or faithful copies of it.

    Returns:
        One answer per member of the stage.

    Raises:
        NotProbedError: If it cannot be stepped; the message says why, and what to pass instead.
    """
    track = stage.run(Run(calls=CALLS))
    found = [_summary(changes) for changes in _changes(track)]
    if stage.starts_at_zero and any(each.form == "varied" or "changes" in each.reason for each in found):
        # It may keep copies of weights that are 0, which nothing tells from a momentum that is 0.
        stage.zeros_are_weights = True
        again = stage.run(Run(calls=CALLS))
        linked = [_summary(changes) for changes in _changes(again)]
        stage.zeros_are_weights = _is_clearer(found, linked)
        track, found = (again, linked) if stage.zeros_are_weights else (track, found)
    if not stage.fresh:
        half = stage.run(Run(calls=CALLS, scale=0.5))
        halves = _differences(track, half)
        found = [_without_momentum(direct, half) for direct, half in zip(found, halves, strict=True)]
        found = _by_size(stage, found, half)
    if stage.can_be_wide:
        found = _with_more_digits(stage, found)
    if not stage.can_be_wide:
        found = _over_some_calls(stage, found)
    found = _over_many_calls(stage, found)
    found = _goes_on(stage, found)
    found = _too_small(stage, found)
    found = _with_gradients(stage, found)
    found = _towards_others(stage, found)
    found = _idle_rows(stage, found)
    found = _no_gradient(stage, found)
    if not stage.starts_at_zero:  # else a copy of the weights that is 0 may have been written over others
        found = [replace(each, form="shrinks", r=1.0, reason="") if each.reason == AT_ONCE else each for each in found]
    if stage.raised != 1.0:  # as far as another learning rate is from the last one, and no further, a call may lead
        found = [Seen(form="still", reason=ONCE) if each.reason.startswith(AT_FIRST) else each for each in found]
    floors = [INVISIBLE if stage.can_be_wide else max(INVISIBLE, 4.0 * stage.eps(index)) for index in range(len(found))]
    return [replace(each, lr=lr, floor=floor) for each, lr, floor in zip(found, stage.rates, floors, strict=True)]


def glance(stage: Stage) -> list[Mark]:
    """Step an optimizer as little as shows which of its parameters are treated alike.

    Args:
        stage: Faithful copies of the optimizer.

    Returns:
        One mark per member of the stage.

    Raises:
        NotProbedError: If it cannot be stepped.
    """
    found = [Mark("still")] * len(stage.rates)
    for run in (Run(calls=1, wide=stage.can_be_wide), Run(calls=1, wide=stage.can_be_wide, gradient="random")):
        changes = (_calls if stage.fresh and run.gradient == "zeros" else _halves)(stage, run)
        for index, (change,) in enumerate(changes):
            if found[index].form == "still":
                found[index] = Mark(change.form, change.r if change.form == "shrinks" else 0.0)
        if all(mark.form != "still" for mark in found):
            break
    return found


def _calls(stage: Stage, run: Run, *, whole: bool = False) -> list[list[_Change]]:
    """Return what each call did to each member, or what all calls did as a whole."""
    return _changes(stage.run(run), whole=whole)


def _changes(track: list[list[Tensor]], *, whole: bool = False) -> list[list[_Change]]:
    """Return what each call of a run did to each member."""
    track = [track[0], track[-1]] if whole else track
    return _not_all_broken([[_change(before, after) for before, after in pairwise(held)] for held in _columns(track)])


def _halves(stage: Stage, run: Run, *, whole: bool = False) -> list[list[_Change]]:
    """Return what each call did to the difference of two runs, one of which begins at half the weights."""
    return _differences(stage.run(run), stage.run(replace(run, scale=0.5 * run.scale)), whole=whole)


def _differences(full: list[list[Tensor]], half: list[list[Tensor]], *, whole: bool = False) -> list[list[_Change]]:
    """Return what each call did to the difference of a run and one that begins at half the weights."""
    full, half = ([track[0], track[-1]] if whole else track for track in (full, half))
    found = []
    for one, other in zip(_columns(full), _columns(half), strict=True):
        # Not the difference of the rounded weights: it has lost the digits that both share.
        pairs = [
            (a.double() - b.double(), max(_size(a), _size(b)) * torch.finfo(a.dtype).eps)
            for a, b in zip(one, other, strict=True)
        ]
        found.append([_change(a, b, noise=2.0 * max(n, m)) for (a, n), (b, m) in pairwise(pairs)])
    return _not_all_broken(found)


def _not_all_broken(found: list[list[_Change]]) -> list[list[_Change]]:
    """Refuse an optimizer of which no weight stays finite; where only some do not, the others are told."""
    if found and all(any(change.form == "broken" for change in made) for made in found):
        raise NotProbedError(BROKEN)
    return found


def _columns(track: Sequence[Sequence[Tensor]]) -> list[list[Tensor]]:
    return [list(column) for column in zip(*track, strict=True)]


def _change(before: Tensor, after: Tensor, noise: float | None = None) -> _Change:
    """Compare a weight before and after a call."""
    if before.numel() == 0:
        return _Change("still")
    if noise is None:
        if torch.equal(before, after):
            return _Change("still")
        noise = torch.finfo(before.dtype).eps * _size(before)
    wide = torch.complex128 if before.is_complex() else torch.float64
    weight, moved = before.to(wide), after.to(wide) - before.to(wide)
    if not bool(moved.isfinite().all()):
        return _Change("broken", sure=False)
    if _size(moved) <= 2.0 * noise:
        return _Change("still")  # or within rounding, which another precision shows
    form, r = _fitted(moved, weight, noise)
    inwards = -(moved * weight.conj()).real
    nearer = bool((inwards >= -2.0 * noise * weight.abs()).all()) and int((inwards > 0.0).sum()) >= SEVERAL
    return _Change(
        form, r, sure=abs(r) * _size(weight) >= SURE * noise, nearer=nearer or (form == "shrinks" and r > 0.0)
    )


def _fitted(moved: Tensor, weight: Tensor, noise: float) -> tuple[str, float]:
    r = _fraction(moved, weight)
    if _size(moved + r * weight) <= UNIFORM * _size(moved) + noise:
        return "shrinks", r
    active = moved.abs() > 0.05 * _size(moved) * weight.abs() / _size(weight)
    # Of one element everything is a fraction.
    if 1 < int(active.sum()) < active.numel() and _size(moved * ~active) <= UNIFORM * _size(moved) + noise:
        r = _fraction(moved * active, weight * active)
        if _size(moved + r * weight * active) <= UNIFORM * _size(moved) + noise:
            return "masked", r
    return "varied", r


def _fraction(moved: Tensor, weight: Tensor) -> float:
    square = weight.abs().square().sum().item()
    return -(moved * weight.conj()).sum().real.item() / square if square > 0.0 else 0.0


def _size(tensor: Tensor) -> float:
    if tensor.element_size() == 1:  # torch has no maximum of numbers of 8 bits
        tensor = tensor.float()
    return tensor.abs().max().item() if tensor.numel() else 0.0


def _summary(changes: Sequence[_Change]) -> Seen:
    """Say in one word what several calls did."""
    if any(change.form == "broken" for change in changes):
        return Seen(form="not probed", reason=BROKEN)
    acting = [index for index, change in enumerate(changes) if change.form != "still"]
    if not acting:
        return Seen(form="still")
    if acting == [0] and changes[0].form == "shrinks" and abs(changes[0].r - 1.0) <= SAME and len(changes) > 1:
        return Seen(form="varied", reason=AT_ONCE)
    if acting == [0] and changes[0].form == "varied" and len(changes) >= CALLS:
        return Seen(form="still", reason=ONCE)
    if acting == [0] and len(changes) >= CALLS:
        return Seen(form="varied", reason=f"{AT_FIRST}: {changes[0].r:.4g}, and nothing at later ones")
    steps = {b - a for a, b in pairwise(acting)}
    every = steps.pop() if len(steps) == 1 else 0
    if acting == list(range(len(changes))):
        every = 1
    first = changes[acting[0]]
    forms = {changes[index].form for index in acting}
    rates = [changes[index].r for index in acting]
    nearer = first.nearer  # a momentum may carry elements beyond 0 later
    listed = ", ".join(f"{change.r:.4g}" for change in changes[:CALLS])
    is_late = every == 1 and acting[0] == 1 and len(acting) >= CALLS - 1  # the first call only fills its state
    if forms <= {"shrinks"} and every and (acting[0] < every or is_late):
        if all(abs(r - rates[0]) <= max(SAME * abs(rates[0]), 0.0 if first.sure else abs(rates[0])) for r in rates):
            return Seen(form="shrinks", r=rates[0], every=every, reason=FROM_THE_SECOND if is_late else "")
        if every == 1 and all(abs(b) >= abs(a) for a, b in pairwise(rates)):
            return Seen(form="shrinks", r=rates[0], grows=True, reason=f"the calls remove {listed}")
    if forms <= {"shrinks", "masked"} and "masked" in forms and every:
        return Seen(form="masked", r=None, every=every, reason=f"it removes {abs(rates[0]):.4g} of some elements only")
    if forms <= {"shrinks"}:
        if acting[0] >= CALLS:
            reason = f"nothing in the first {acting[0]} calls, {rates[0]:.4g} of it at the next"
            return Seen(form="varied", reason=reason, nearer=nearer)
        return Seen(form="varied", reason=f"what a call removes changes: {listed}", nearer=nearer)
    reason = "it moves without a gradient, by no single fraction of the weight"
    return Seen(form="varied", every=max(every, 1), reason=reason, nearer=nearer)


def _without_momentum(direct: Seen, halves: Sequence[_Change]) -> Seen:
    """Choose between what a weight did and what the difference of two runs did: momentum moves the first only."""
    if direct.form in {"still", "not probed"}:
        return direct
    half = _summary(halves)
    alike = direct.form == half.form and abs((direct.r or 0.0) - (half.r or 0.0)) <= SAME * abs(half.r or 0.0)
    return replace(half, moving=not alike)


def _is_clearer(found: Sequence[Seen], linked: Sequence[Seen]) -> bool:
    """Return whether the second reading is clean wherever the first is, and somewhere else too."""
    clean = [[each.form in {"still", "shrinks"} for each in reading] for reading in (found, linked)]
    return all(two or not one for one, two in zip(*clean, strict=True)) and sum(clean[1]) > sum(clean[0])


def _over_some_calls(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Read fractions over more calls, where one call rounds them: a float32 copy of the weights does not round."""
    rough = [i for i, each in enumerate(found) if each.form == "shrinks" and each.every == 1 and stage.eps(i) > ROUGH]
    if not rough or any(found[index].grows for index in rough):
        return found
    columns = _columns(stage.run(Run(calls=MORE)))
    for index in rough:
        first, last = columns[index][0].double(), columns[index][-1].double()
        left = 1.0 - _fraction(last - first, first)
        r = 1.0 - left ** (1.0 / MORE) if left > 0.0 else nan
        if abs(r - (found[index].r or 0.0)) <= 2.0 * stage.eps(index):
            found[index] = replace(found[index], r=r)
    return found


def _by_size(stage: Stage, found: list[Seen], half: list[list[Tensor]]) -> list[Seen]:
    """Find fractions that depend on the size of the weights: the difference of two sizes does not show these."""
    if not any(each.form == "shrinks" and each.moving for each in found):
        return found
    smaller = _differences(half[:2], stage.run(Run(calls=1, scale=0.25)))
    for index, ((change,), each) in enumerate(zip(smaller, found, strict=True)):
        r = each.r or 0.0
        broken = change.form == "broken"
        if each.form == "shrinks" and not broken and change.sure and abs(change.r - r) > 2 * SAME * abs(r):
            found[index] = Seen(form="varied", moving=True, reason=BY_SIZE)
    return found


def _with_more_digits(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Read the fractions in float64, and where the weights' own precision hides one, see whether it is there at all."""
    run = Run(calls=CALLS, wide=True)
    try:
        changes = (_calls if stage.fresh else _halves)(stage, run)
    except NotProbedError:  # it takes its own precision only
        stage.can_be_wide = False
        return found
    # A weight that is rounded from a copy moves to where it was rounded from, once.
    wide = [
        own
        if own.form == "still" and all(change.form == "still" for change in made[1:])
        else _summary(_from_the_copy(made, stage.eps(index)))
        for index, (own, made) in enumerate(zip(found, changes, strict=True))
    ]
    pairs = list(zip(found, wide, strict=True))
    if any(own.form == "shrinks" and own.r and abs(own.r) > 0.01 and exact.form == "still" for own, exact in pairs):
        stage.can_be_wide = False  # its buffers have the precision of the weights
        return found
    result, hidden = [], []
    for index, (own, exact) in enumerate(pairs):
        eps, r = stage.eps(index), own.r or 0.0
        if "not probed" in {own.form, exact.form}:
            result.append(own)
            continue
        if own.form == "shrinks" and abs(r) >= SURE * eps:
            agree = exact.form == "shrinks" and abs((exact.r or 0.0) - r) <= SAME * abs(r) + 2 * eps
            result.append(replace(exact, moving=own.moving) if agree else own)
            continue
        if own.form in {"varied", "masked"} and (exact.form == "still" or BY_SIZE in own.reason):
            result.append(own)
            continue
        if own.form == "still" != exact.form or (exact.form == "shrinks" and abs(exact.r or 0.0) < SURE * eps):
            hidden.append(index)
        result.append(replace(exact, moving=own.moving))
    return _looked_at_larger(stage, result, hidden)


def _from_the_copy(changes: Sequence[_Change], eps: float) -> Sequence[_Change]:
    """Return what calls did, without the step from a weight to the copy that it was rounded from."""
    first, *later = changes
    if len(later) < 2 or any(change.form != "shrinks" for change in changes):
        return changes
    same = all(abs(change.r - later[0].r) <= SAME * abs(later[0].r) for change in later)
    return [later[0], *later] if same and abs(first.r - later[0].r) <= 2.0 * eps else changes


def _looked_at_larger(stage: Stage, found: list[Seen], hidden: Sequence[int]) -> list[Seen]:
    """Raise a hidden decay until the weights' own precision would show it: what stays still then is not there."""
    fractions = [abs(found[index].r or 0.0) for index in hidden if found[index].r]
    if not fractions:
        return found
    factor = VISIBLE / max(fractions)
    try:
        own = [_summary(each) for each in _calls(stage, Run(calls=1, factor=factor))]
        exact = [_summary(each) for each in _calls(stage, Run(calls=1, factor=factor, wide=True))]
    except NotProbedError:
        return found
    for index in hidden:
        expected = abs(exact[index].r or 0.0)
        if exact[index].form == "shrinks" and expected >= SURE * stage.eps(index) and own[index].form == "still":
            found[index] = Seen(form="still", reason=OTHER_PRECISION)
    return found


def _over_many_calls(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look for longer at weights that do not move at every call: one that stands still may wait for its turn."""
    waiting = [
        index
        for index, each in enumerate(found)
        if _stands(each) or (each.form != "still" and each.every != 1) or "changes" in each.reason
    ]
    if not waiting:
        return found
    run = Run(calls=_long(stage), wide=stage.can_be_wide)
    try:
        changes = _for_longer(stage, waiting, run, found)
    except NotProbedError:
        return found
    for index, made in zip(waiting, changes, strict=True):
        found[index] = replace(found[index], calls=run.calls)
        if found[index].form == "still" and all(change.form == "still" for change in made[1:]):
            continue  # as above
        each = _summary(made)
        if each.form != "still":
            found[index] = replace(each, moving=found[index].moving, calls=run.calls)
    return found


def _for_longer(stage: Stage, indices: Sequence[int], run: Run, found: Sequence[Seen]) -> list[list[_Change]]:
    """Run some members for longer; of large ones a part, if its first calls do what those of the whole do.

    Args:
        stage: What is stepped.
        indices: The numbers of the members.
        run: How.
        found: By member, what the first calls of the whole did.

    Returns:
        For each of the given members what its calls did.

    Raises:
        NotProbedError: Not even the whole can be stepped.
    """
    columns = _calls if stage.fresh else _halves
    smaller, places = stage.only(indices)
    if smaller is not stage:
        try:
            changes = columns(smaller, run)
        except NotProbedError:  # it holds something that is as large as the whole
            changes = []
        if changes and all(
            _begins_as(changes[place], found[index]) for index, place in zip(indices, places, strict=True)
        ):
            return [changes[place] for place in places]
    changes = columns(stage, run)
    return [changes[index] for index in indices]


def _begins_as(changes: Sequence[_Change], seen: Seen) -> bool:
    """Return whether the first calls of a part of a weight did what those of the whole weight did."""
    first = _summary(changes[:CALLS])
    if first.form == seen.form == "still":
        return first.reason == seen.reason
    r, whole = first.r or 0.0, seen.r or 0.0
    return first.form == seen.form and abs(r - whole) <= 2 * SAME * abs(whole)


def _goes_on(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether what the first calls removed is what later ones remove, about: code of others may count its calls."""
    steady = [
        index for index, each in enumerate(found) if each.form == "shrinks" and each.every == 1 and not each.grows
    ]
    if stage.is_of_torch or stage.is_large or not steady:
        return found
    try:
        changes = _for_longer(stage, steady, Run(calls=LONG, wide=stage.can_be_wide), found)
    except NotProbedError:
        return found
    for index, made in zip(steady, changes, strict=True):
        r = found[index].r or 0.0
        begins = made[0].form == "shrinks" and abs(made[0].r - r) <= 2 * SAME * r
        if not begins or not 0.0 < r < 1.0 or found[index].reason == FROM_THE_SECOND:
            continue
        lost = 1.0 - prod(1.0 - change.r for change in made)
        expected = 1.0 - (1.0 - r) ** LONG
        if not expected / STEADY <= lost <= expected * STEADY:
            reason = f"a call removes {r:.4g} at first, but {LONG} calls remove {lost:.4g}, and not {expected:.4g}"
            found[index] = replace(found[index], form="varied", r=None, reason=reason)
    return found


def _too_small(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether weights stand still only because their precision shows no small decay, where float64 is no way."""
    still = [index for index, each in enumerate(found) if _stands(each) and stage.eps(index) > 0.0]
    if stage.can_be_wide or not still:
        return found
    columns = _calls if stage.fresh else _halves
    for factor in (1.0, RAISED):
        calls = _long(stage) if any(stage.eps(index) > ROUGH for index in still) else CALLS
        try:
            changes = columns(stage, Run(calls=calls, factor=factor), whole=True)
        except NotProbedError:
            return found
        for index in still:
            (change,) = changes[index]
            if change.form == "shrinks" and _stands(found[index]):
                reason = "what one call removes is lost in the precision of the weights, unless copies of them keep it"
                found[index] = Seen(form="varied", reason=reason)
    return found


def _with_gradients(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether weights that stand still without gradients lose a fraction with them."""
    still = [index for index, each in enumerate(found) if _stands(each)]
    if not still:
        return found
    try:
        changes = _halves(stage, Run(calls=2, gradient="random", wide=stage.can_be_wide))
    except NotProbedError:
        return found
    for index in still:
        pair = _summary(changes[index])
        if pair.form == "shrinks" and not pair.grows:
            found[index] = replace(pair, idle_rows=False, reason="it acts only where there is a gradient")
        elif pair.form == "masked":
            found[index] = replace(pair, reason="it acts on some elements only, by their gradient")
        elif pair.form != "still" and all(_is_clear(change, stage.eps(index)) for change in changes[index]):
            found[index] = Seen(form="varied", reason="it acts only where there is a gradient, and as that is")
    return found


def _long(stage: Stage) -> int:
    """Return over how many calls weights are looked at that stand still."""
    return MORE if stage.is_large else LONG


def _is_clear(change: _Change, eps: float) -> bool:
    """Return whether a change is none, or a fraction far above the rounding of the weights' own precision."""
    return change.form == "still" or (change.form == "shrinks" and change.sure and abs(change.r) >= SURE * eps)


def _stands(seen: Seen) -> bool:
    """Return whether a weight stands still, as far as was seen until now."""
    return seen.form == "still" and seen.reason != OTHER_PRECISION


def _towards_others(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether weights that stand still stand where they are pulled to: the first weights, or a mean of them."""
    still = [index for index, each in enumerate(found) if _stands(each) and not each.moving]
    if not still or not stage.fresh:  # a momentum would move them as well
        return found
    try:
        columns = _columns(stage.run(Run(calls=MORE, nudged=True, wide=stage.can_be_wide)))
    except NotProbedError:
        return found
    pulled = []
    for index in still:
        _, first, *later = columns[index]
        if first.numel() == 0:
            continue
        noise = 8.0 * torch.finfo(first.dtype).eps * max(_size(first), 1e-300)
        moves = sum(_size(after - before) > noise for before, after in pairwise([2.0 * first, *later]))
        written_back = any(_size(after - first) <= noise for after in later)  # from a copy that it keeps
        if moves >= 3 and not written_back:  # slow weights pull now and then, and come along
            pulled.append(index)
    if pulled:  # decay towards weights from before is one towards weights that stay where they are
        try:
            stage.run(Run(calls=CALLS, gradient="random", watched=True, wide=stage.can_be_wide))
        except NotProbedError:
            stage.copies_follow = [False] * len(found)
    for index in pulled:
        if stage.copies_follow[index]:
            found[index] = replace(found[index], reason=FOLLOWS)
        else:
            found[index] = replace(
                found[index], form="varied", reason="it is pulled towards weights that the optimizer keeps"
            )
    return found


def _idle_rows(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether rows without gradient shrink beside rows that have one."""
    if stage.is_large or not stage.fresh or not any(each.form == "shrinks" and each.idle_rows for each in found):
        return found
    try:
        track = stage.run(Run(calls=1, gradient="rows", wide=stage.can_be_wide))
    except NotProbedError:
        return found
    for index, (before, after) in enumerate(zip(*track, strict=True)):
        each = found[index]
        looked_at = each.form == "shrinks" and each.idle_rows and each.every == 1
        visible = abs(each.r or 0.0) > 4 * torch.finfo(before.dtype).eps
        if looked_at and visible and before.ndim > 0 and before.shape[0] > 1:
            found[index] = replace(each, idle_rows=not torch.equal(before[1::2], after[1::2]))
    return found


def _no_gradient(stage: Stage, found: list[Seen]) -> list[Seen]:
    """Look whether weights shrink whose ``grad`` is None."""
    calls = max(CALLS, *(each.every for each in found))
    try:
        changes = _calls(stage, Run(calls=calls, gradient="none", wide=stage.can_be_wide))
    except NotProbedError:  # without any gradient it has nothing to step with
        return found
    return [
        replace(each, without_gradient=any(change.form in {"shrinks", "masked"} for change in made))
        for each, made in zip(found, changes, strict=True)
    ]
