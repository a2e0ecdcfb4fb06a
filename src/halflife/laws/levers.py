"""Levers: the numbers of an optimizer that are the coefficient of its decay, whatever they are called.

A number is one if changing it changes what a step does to weights that are not 0, and changes not one bit of what the
same steps do to weights that are held at 0: a learning rate, a momentum or an epsilon changes both.

All numbers of one name are changed at once, over all groups, and most drop out at the first step. Only for those that
matter is it asked which of them acts on which group, and whether the decay is proportional to them.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Real
from types import FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.laws.copies import is_number, number

__all__ = ["Lever", "find_levers"]

STEPS = 3  # with weights that are not 0
LONGER = 20  # where nothing mattered in as many: wrappers and schedules that act now and then
HELD = 8  # steps with the weights held at 0; RAdam is plain momentum in its first five
MULTIPLES = (1.0, 2.0)  # of the start weights, in turn: above 1, so that decay towards these weights shrinks them too
STRONG = 16.0  # for a penalty that shows only where it changes the sign of a gradient
BOOSTS = (1.0, 2.0**16, 2.0**36)  # for a decay that is too small to be seen
SMALL = 1.0 / 64.0  # the relative change from which proportionality is read
TRIAL = 0.125  # stands for a number that is 0
LINEAR = 0.3  # of the small change: largest deviation of what is still proportional
DEPTH = 4  # of attributes within attributes
FEW = 8  # members of a list that are also tried one by one
WORDS = ("weight_decay", "wd", "decay", "lam", "l2", "reg")  # which of two factors is the decay, the likeliest first

Path = tuple[tuple[str, Any], ...]
Make = Callable[[float], Optimizer]
Track = list[list[Tensor]]  # per step, per group: all weights of the group after it, as one vector


@dataclass(frozen=True, kw_only=True)
class Lever:
    """One number that is the coefficient of the decay of some groups.

    Attributes:
        path: Where it stands, such as ``"group['wd']"`` or ``"self.weight_decay"``.
        value: What it is now; 0 where nothing decays.
        groups: The groups of the outermost optimizer whose weights it acts on.
        scalable: Whether the decay is proportional to it. A factor such as ``0.999`` that the weights keep is not:
            `multiply` refuses it.
    """

    path: str
    value: float
    groups: frozenset[int]
    scalable: bool
    place: Path

    def multiply(self, optimizer: Optimizer, factor: float) -> None:
        """Multiply it in a copy.

        Args:
            optimizer: A copy that was made like those in which it was found.
            factor: The factor.

        Raises:
            ValueError: If the decay is not proportional to it.
        """
        if not self.scalable:
            raise ValueError(
                f"the decay is not proportional to {self.path}, so that no factor of it is one of the decay"
            )
        _assign(optimizer, self.place, _resolve(optimizer, self.place) * factor)


def find_levers(
    make: Make,
    step: Callable[[Optimizer, int], object] = lambda optimizer, index: optimizer.step(),
    calls: int = 1,
) -> list[Lever]:
    """Find the numbers in an optimizer that are the coefficient of its decay.

    Looked at are the groups (all keys), the attributes and the defaults, with dicts, lists, plain objects and inner
    optimizers in them, class attributes, attributes of parameters and state that exists before the first step.

    Args:
        make: Called as ``make(size)``: returns a new copy of the optimizer over small parameters whose weights are
            ``size`` times some weights that are not 0, the same ones each time.
        step: Called as ``step(optimizer, index)``: steps the copy, after its gradients were set. It seeds the random
            generators by ``index`` if the optimizer draws from them. It is one call of the optimizer's ``step()``: the
            weights are put back before each, so that a call that decays finds them where the others did.
        calls: The decay acts at every so many calls, as far as is known.

    Returns:
        The levers; none if nothing that can be reached here decides about a decay. What an optimizer raises only after
        a number was changed makes that number no lever.

    Raises:
        Exception: Whatever an unchanged copy raises when it is stepped.
    """
    search = _Search(make, step)
    found: list[Lever] = []
    few = max(STEPS, calls)
    for steps, boost in [*((few, boost) for boost in BOOSTS), (max(LONGER, 2 * calls), BOOSTS[0])]:
        search.steps, search.boost = steps, boost
        found = search.levers()
        if found:
            break
    return search.without_factors(search.at_work(found))


@dataclass(frozen=True)
class _Family:
    """Numbers that stand under one name: in each group, in each place of a list, at each parameter."""

    name: str
    members: tuple[Path, ...]
    labels: tuple[str, ...]
    in_groups: bool

    def single(self) -> Iterator[_Family]:
        """Yield each member as a family of its own."""
        for place, label in zip(self.members, self.labels, strict=True):
            yield _Family(label, (place,), (label,), self.in_groups)


class _Search:
    def __init__(self, make: Make, step: Callable[[Optimizer, int], object]) -> None:
        self.make, self.step = make, step
        self.steps, self.boost = STEPS, 1.0
        self._plain: dict[tuple[float, int], Track] = {}
        self.keeps_copies, self.multiples = False, MULTIPLES
        first = make(1.0)
        self.starts = [[each.detach().clone() for each in group["params"]] for group in first.param_groups]
        generator = torch.Generator().manual_seed(11)
        self.gradients = [
            [
                [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in held]
                for held in self.starts
            ]
            for _ in range(HELD)
        ]
        self.families = list(_families(first))
        self.values = {place: number(_resolve(first, place)) for family in self.families for place in family.members}

        # Copies of the weights that it steps in their place, as float32 masters, make no difference to where these are.
        free = self._run(1.0, {}, None, {}, place=False) or []
        moves = any(not torch.equal(now, _vector(held)) for now, held in zip(free[1], self.starts, strict=True))
        self.keeps_copies = moves and not _reactions(free[1:2], self.plain(1.0)[1:2])
        if self.keeps_copies:
            self.multiples, self._plain = (1.0, 1.0), {}

    # ---- runs

    def run(
        self,
        size: float,
        values: Mapping[Path, float],
        *,
        against: Track | None = None,
        penalty: Mapping[int, float] | None = None,
    ) -> Track | None:
        """Return the weights after each step of a copy with other numbers; None if it raises, or leaves ``against``."""
        try:
            return self._run(size, values, against, penalty or {})
        except Exception:  # a number that cannot have this value is no coefficient of a decay
            return None

    def plain(self, size: float) -> Track:
        """Return the weights after each step of an unchanged copy."""
        key = (size, self.steps)
        if key not in self._plain:
            found = self._run(size, {}, None, {})
            assert found is not None
            self._plain[key] = found
        return self._plain[key]

    def _run(
        self,
        size: float,
        values: Mapping[Path, float],
        against: Track | None,
        penalty: Mapping[int, float],
        *,
        place: bool = True,
    ) -> Track | None:
        optimizer = self.make(size)
        for path, value in values.items():
            _assign(optimizer, path, _like(_resolve(optimizer, path), value))
        track: Track = []
        held_steps = 1 if self.keeps_copies else max(HELD, self.steps)  # then its copies move away from 0
        for index in range(held_steps if size == 0.0 else self.steps):
            multiple = size * self.multiples[index % len(self.multiples)]
            gradients = self.gradients[index % HELD]
            for number_of_group, (held, starts, given) in enumerate(
                zip(optimizer.param_groups, self.starts, gradients, strict=True)
            ):
                for parameter, start, gradient in zip(held["params"], starts, given, strict=True):
                    if place:
                        with torch.no_grad():
                            parameter.copy_(start * multiple)
                    parameter.grad = gradient.clone()
                    if penalty:
                        parameter.grad.add_(start * multiple, alpha=penalty.get(number_of_group, 0.0))
            self.step(optimizer, index)
            track.append([_vector(group["params"]) for group in optimizer.param_groups])
            if against is not None and _reactions([against[index]], [track[-1]]):
                return None
        return track

    # ---- which numbers matter

    def levers(self) -> list[Lever]:
        """Return the levers that this many steps show at this boost."""
        outside = [family for family in self.families if not family.in_groups]
        if outside:
            changed = self.run(1.0, self._times(outside, STRONG))
            if changed is not None and not _reactions(self.plain(1.0), changed):
                outside = []
        found = []
        for family in [*(each for each in self.families if each.in_groups), *outside]:
            levers = self._of_family(family)
            several = 1 < len(family.members) <= FEW and not family.in_groups
            if several and not any(lever.scalable for lever in levers):  # a list of different things
                levers = [lever for single in family.single() for lever in self._of_family(single)]
            found += levers
        return found

    def _of_family(self, family: _Family) -> list[Lever]:
        strong = self._times([family], STRONG)
        changed = self.run(1.0, strong)
        after = self.run(0.0, strong, against=self.plain(0.0)) is None
        if after and not self._is_after(strong, changed):
            return []
        reacting = set() if changed is None else _reactions(self.plain(1.0), changed)
        if not reacting:
            return []
        zero, once, more = (self.run(1.0, self._times([family], factor)) for factor in (0.0, 1.0, 1.0 + 2.0 * SMALL))
        if once is None or more is None:
            return []
        scalable = zero is not None and (
            self._is_scalable(family, reacting, zero, once, more, after)
            or self._is_penalty(family, reacting, zero, once)
        )
        if not scalable and not self._is_smooth(family, reacting, once, more):
            return []
        sources = self._sources(family, reacting, zero, once) if len(family.members) > 1 else {0: reacting}
        own = family.in_groups and all(groups == {family.members[member][1][1]} for member, groups in sources.items())
        return [
            Lever(
                path=family.name if own else family.labels[member],
                value=self.values[family.members[member]],
                groups=frozenset(groups),
                scalable=scalable,
                place=family.members[member],
            )
            for member, groups in sources.items()
            if groups
        ]

    def _is_after(self, values: Mapping[Path, float], changed: Track | None) -> bool:
        """Return whether numbers act on the weights after the update: those that are held at 0 have moved by then."""
        if changed is None:
            return False
        ratios = []
        for base, other in ((self.plain(0.0)[: self.steps], self.run(0.0, values)), (self.plain(1.0), changed)):
            for group in range(len(self.starts)):
                after = self._joined(base, group)
                effect = self._joined(other[: self.steps], group) - after if other is not None else after
                size = effect.norm().item()
                if size > 0.0:
                    ratio = ((effect * after).sum() / after.square().sum()).item()
                    if not (effect - ratio * after).norm().item() <= 1e-6 * size:
                        return False
                    ratios.append((group, ratio))
        by_group: dict[int, set[float]] = {}
        for group, ratio in ratios:
            by_group.setdefault(group, set()).add(float(f"{ratio:.4g}"))
        return bool(by_group) and all(len(each) == 1 and max(each) < 0.0 for each in by_group.values())

    def _times(self, families: Iterable[_Family], factor: float, members: set[int] | None = None) -> dict[Path, float]:
        """Return the numbers of some families, multiplied; a stand-in for each that is 0."""
        return {
            place: (self.values[place] or TRIAL / self.boost) * self.boost * factor
            for family in families
            for index, place in enumerate(family.members)
            if members is None or index in members
        }

    def _is_penalty(self, family: _Family, reacting: set[int], zero: Track, once: Track) -> bool:
        """Return whether the numbers times the weights, added to the gradient from outside, do the same."""
        values = self._times([family], 1.0)
        penalty = dict.fromkeys(range(len(self.starts)), next(iter(values.values())))
        if family.in_groups:
            penalty |= {place[1][1]: value for place, value in values.items()}
        outside = self.run(1.0, self._times([family], 0.0), penalty=penalty)
        return outside is not None and _close(outside, once, zero, reacting)

    def _is_scalable(
        self, family: _Family, reacting: set[int], zero: Track, once: Track, more: Track, after: bool
    ) -> bool:
        """Return whether what the numbers do is a decay that is proportional to them."""
        for group in reacting:
            effect, larger = _difference(once, zero, group), _difference(more, zero, group)
            if not bool(effect.isfinite().all()) or not bool(larger.isfinite().all()):
                return False
            size = effect.norm().item()
            if size == 0.0 or (larger - (1.0 + 2.0 * SMALL) * effect).norm().item() > 2.0 * SMALL * LINEAR * size:
                return False
            if (effect * self._weights(group)).sum().item() >= 0.0:  # the weights grow with it
                return False
            if not after and not self._is_decay(family, group, effect, zero):
                return False
        return True

    def _is_smooth(self, family: _Family, reacting: set[int], once: Track, more: Track) -> bool:
        """Return whether half the small change has half the effect: a count of steps has the same, or none."""
        less = self.run(1.0, self._times([family], 1.0 + SMALL))
        if less is None:
            return False
        for group in reacting:
            half, whole = _difference(less, once, group), _difference(more, once, group)
            size = half.norm().item()
            if not 0.0 < size < math.inf or (whole - 2.0 * half).norm().item() > LINEAR * size:
                return False
            if not self._is_multiple(group, half) and not _says_decay(family.name):
                return False
        return True

    def _is_multiple(self, group: int, effect: Tensor) -> bool:
        by_step = effect.view(self.steps, -1)
        acting = by_step.any(dim=1, keepdim=True)  # a decay may act at every n-th call only
        weights = (self._weights(group).view(self.steps, -1) * acting).view(-1)
        r = (effect * weights).sum() / weights.square().sum()
        spread = 0.1 if self.keeps_copies else 2e-3  # where the weights move, about the same will do
        return bool((effect - r * weights).norm() <= spread * effect.norm())

    def _is_decay(self, family: _Family, group: int, effect: Tensor, zero: Track) -> bool:
        """Return whether an effect on a group is that of a decay, and not that of a step size in proportion to the weights."""
        if _says_decay(family.name) or self._is_multiple(group, effect):
            return True
        if self.keeps_copies:
            return False
        # Without it, the weights move as those that are held at 0 do.
        update, at_zero = (
            self._joined(zero, group) - self._weights(group),
            self._joined(self.plain(0.0)[: self.steps], group),
        )
        return bool((update - at_zero).norm() <= 1e-3 * at_zero.norm())

    def _weights(self, group: int) -> Tensor:
        start = _vector(self.starts[group])
        # The weights of copies are not put back, so that what decay removed adds up.
        multiples = [index + 1.0 if self.keeps_copies else self.multiples[index % 2] for index in range(self.steps)]
        return torch.cat([start * multiple for multiple in multiples])

    def _joined(self, track: Track, group: int) -> Tensor:
        return torch.cat([step[group] for step in track])

    def _sources(self, family: _Family, reacting: set[int], zero: Track | None, once: Track) -> dict[int, set[int]]:
        """Return which member acts on which groups."""
        count = len(family.members)
        factors = [1.0 + SMALL * (1.0 + member) / count for member in range(count)]
        values = {
            place: value * factor
            for (place, value), factor in zip(self._times([family], 1.0).items(), factors, strict=True)
        }
        graded = self.run(1.0, values)
        if zero is not None and graded is not None:
            shares = {}
            for group in reacting:
                effect, changed = _difference(once, zero, group), _difference(graded, zero, group)
                square = effect.square().sum().item()
                factor = (effect * changed).sum().item() / square if square else math.nan
                off = (changed - factor * effect).norm().item()
                where = (factor - 1.0) / SMALL * count - 1.0
                if not abs(where - round(where)) < 0.05 or not 0 <= round(where) < count:
                    break
                if off > 0.05 * SMALL / count * math.sqrt(square):
                    break
                shares[group] = round(where)
            else:
                found: dict[int, set[int]] = {}
                for group, member in shares.items():
                    found.setdefault(member, set()).add(group)
                return found
        return self._sources_by_halves(family, reacting, once)

    def _sources_by_halves(self, family: _Family, reacting: set[int], once: Track) -> dict[int, set[int]]:
        """Find the member that acts on each group by changing halves of the members; all of them where several do."""
        count = len(family.members)
        bits = range(max(1, (count - 1).bit_length()))

        def acts(side: int) -> dict[int, list[bool]]:
            """Return for each group whether the members of a side matter, for each way to divide them."""
            found: dict[int, list[bool]] = {group: [] for group in reacting}
            for bit in bits:
                half = {member for member in range(count) if member >> bit & 1 == side}
                changed = self.run(1.0, self._times([family], 1.0) | self._times([family], STRONG, half))
                seen = set() if changed is None else _reactions(once, changed)
                for group in reacting:
                    found[group].append(group in seen)
            return found

        upper = acts(1)
        sources = {group: sum(1 << bit for bit in bits if upper[group][bit]) for group in reacting}
        several: set[int] = set()
        if not family.in_groups or any(family.members[m % count][1][1] != group for group, m in sources.items()):
            lower = acts(0)
            several = {group for group in reacting if any(map(bool.__eq__, upper[group], lower[group]))}
        found: dict[int, set[int]] = {}
        for group in reacting:
            for member in range(count) if group in several else [sources[group]]:
                found.setdefault(min(member, count - 1), set()).add(group)
        return found

    # ---- numbers that are multiplied with each other

    def at_work(self, levers: list[Lever]) -> list[Lever]:
        """Return the levers without those that are 0, for groups that decay by another one without them."""
        acting = [lever for lever in levers if lever.scalable and lever.value]
        places = {group for lever in acting for group in lever.groups}
        if all(lever.value or not lever.groups & places for lever in levers):
            return levers
        without, own = (
            self.run(1.0, {lever.place: lever.value * self.boost * factor for lever in acting}) for factor in (0.0, 1.0)
        )
        decaying = _reactions(without, own) if without is not None and own is not None else set()
        rest = (lever if lever.value else replace(lever, groups=lever.groups - decaying) for lever in levers)
        return [lever for lever in rest if lever.groups]

    def without_factors(self, levers: list[Lever]) -> list[Lever]:
        """Return the levers without those that are only a further factor of another one, as ``wd_mult`` of ``wd``."""
        scalable = [lever for lever in levers if lever.scalable]
        crowded = {
            group
            for lever in scalable
            for group in lever.groups
            if sum(group in other.groups for other in scalable) > 1
        }
        if not crowded:
            return levers

        def run(factor: float) -> Track | None:
            values = {}
            for lever in scalable:
                values[lever.place] = (lever.value or TRIAL / self.boost) * self.boost * factor
            return self.run(1.0, values)

        zero, once, more = run(0.0), run(1.0), run(1.0 + SMALL)
        if zero is None or once is None or more is None:
            return levers
        dropped: set[tuple[Path, int]] = set()
        for group in crowded:
            effect, larger = _difference(once, zero, group), _difference(more, zero, group)
            ratio = larger.norm().item() / max(effect.norm().item(), 1e-300)
            if ratio > 1.0 + 1.1 * SMALL:
                here = sorted((lever for lever in scalable if group in lever.groups), key=lambda each: _rank(each.path))
                dropped |= {(lever.place, group) for lever in here[1:]}
        kept = (
            replace(lever, groups=frozenset(group for group in lever.groups if (lever.place, group) not in dropped))
            for lever in levers
        )
        return [lever for lever in kept if lever.groups]


def _says_decay(name: str) -> bool:
    return re.search(r"decay|(?<![a-z])(wd|lam|l2|reg)(?!ion|ister|ime)", name.lower()) is not None


def _rank(path: str) -> tuple[int, int, bool, int]:
    """Return how unlikely a name is the decay's own, and not that of a factor of it."""
    parts = [part.strip("_") for part in re.findall(r"[a-z_][a-z_0-9]*", path.lower())]  # without the places in lists
    name = parts[-1]
    exact = next((index for index, word in enumerate(WORDS) if name == word), len(WORDS))
    within, around = (
        next((index for index, word in enumerate(WORDS) if any(word in part for part in where)), len(WORDS))
        for where in ([name], parts[:-1])
    )
    return exact, within, re.search(r"(^|_)lrs?($|_)|learning_?rate", name) is not None, around


def _close(one: Track, other: Track, zero: Track, groups: set[int]) -> bool:
    for group in groups:
        effect, miss = _difference(other, zero, group).norm(), _difference(one, other, group).norm()
        exact = effect.dtype == torch.float64
        if not bool(miss <= (1e-5 if exact else 1e-2) * effect) or effect.item() == 0.0:
            return False
    return True


def _difference(one: Track, other: Track, group: int) -> Tensor:
    return torch.cat([a[group] - b[group] for a, b in zip(one, other, strict=True)])


def _reactions(one: Track, other: Track) -> set[int]:
    """Return the groups whose weights differ in a bit at some step."""
    return {
        group
        for a, b in zip(one, other, strict=True)
        for group, (left, right) in enumerate(zip(a, b, strict=True))
        if not torch.equal(left, right)
    }


def _vector(parameters: Sequence[Tensor]) -> Tensor:
    flat = [parameter.detach().reshape(-1) for parameter in parameters]
    return torch.cat(flat).clone() if flat else torch.zeros(0)


# ---- where numbers are


def _families(optimizer: Optimizer) -> Iterator[_Family]:
    """Yield the numbers of an optimizer, those of one name together; those in its groups first."""
    seen: set[int] = {id(optimizer)}
    found: dict[tuple[bool, str], list[tuple[Path, str]]] = {}
    for in_groups, name, place, label in _numbers(optimizer, seen):
        found.setdefault((in_groups, name), []).append((place, label))
    for (in_groups, name), members in found.items():
        yield _Family(name, tuple(place for place, _ in members), tuple(label for _, label in members), in_groups)


def _numbers(optimizer: Optimizer, seen: set[int]) -> Iterator[tuple[bool, str, Path, str]]:
    """Yield whether a number is in a group, its name, its place and its label."""
    root: Path = (("attr", "param_groups"),)
    seen.add(id(optimizer.param_groups))
    for index, group in enumerate(optimizer.param_groups):
        seen.add(id(group))
        for key, value in group.items():
            if key not in {"params", "param_names"}:
                place = (*root, ("item", index), ("item", key))
                for rest, text in _within(value, place, f"[{key!r}]", seen, DEPTH):
                    yield True, f"group{text[0]}", rest, f"param_groups[{index}]{text[1]}"
    for index, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            held = (*root, ("item", index), ("item", "params"), ("item", position))
            for name, value in getattr(parameter, "__dict__", {}).items():
                for rest, text in _within(value, (*held, ("attr", name)), f".{name}", seen, 1):
                    yield False, f"parameter{text[0]}", rest, f"param_groups[{index}]['params'][{position}]{text[1]}"
    names = dict.fromkeys(vars(optimizer))
    for kind in type(optimizer).__mro__:
        if kind is Optimizer:
            break
        names |= {name: None for name, value in vars(kind).items() if is_number(value)}
    for name in names:
        if name not in {"param_groups", "state"}:
            value = getattr(optimizer, name, None)
            for rest, text in _within(value, (("attr", name),), f".{name}", seen, DEPTH):
                yield False, f"self{text[0]}", rest, f"self{text[1]}"
    states = getattr(optimizer, "state", None)  # what only steps another optimizer may have none
    for position, state in enumerate(states.values() if isinstance(states, Mapping) else ()):
        for key, value in state.items() if isinstance(state, dict) else ():
            place = (("attr", "state"), ("nth", position), ("item", key))
            for rest, text in _within(value, place, f"[{key!r}]", seen, 1):
                yield False, f"state{text[0]}", rest, f"state[{position}]{text[1]}"


def _within(value: Any, place: Path, text: str, seen: set[int], depth: int) -> Iterator[tuple[Path, tuple[str, str]]]:
    """Yield the places of the numbers in a value, each with the name of its family and its own."""
    for rest, family, label in _walk(value, place, text, text, seen, depth):
        yield rest, (family, label)


def _walk(
    value: Any, place: Path, family: str, label: str, seen: set[int], depth: int
) -> Iterator[tuple[Path, str, str]]:
    if is_number(value):
        if not isinstance(value, Tensor) or not isinstance(value, nn.Parameter):
            yield place, family, label
        return
    if depth == 0 or id(value) in seen or not _is_open(value):
        return
    seen.add(id(value))
    inside: Iterable[tuple[tuple[str, Any], Any, str, str]]
    if isinstance(value, Mapping):
        inside = [
            (("item", key), each, f"[{key!r}]", f"[{key!r}]")
            if isinstance(key, str)
            else (("nth", position), each, "[*]", f"[{position}]")
            for position, (key, each) in enumerate(value.items())
            if key not in ("params", "param_names")
        ]
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        inside = [
            (("item", position), value[position], f".{name}", f".{name}") for position, name in enumerate(value._fields)
        ]
    elif isinstance(value, list | tuple):
        inside = [(("item", position), each, "[*]", f"[{position}]") for position, each in enumerate(value)]
    else:
        names = [*getattr(value, "__dict__", {}), *_slots(value)]
        names = [name for name in names if not (isinstance(value, Optimizer) and name == "state")]
        inside = [(("attr", name), getattr(value, name, None), f".{name}", f".{name}") for name in names]
    for step, each, more, own in list(inside):
        yield from _walk(each, (*place, step), family + more, label + own, seen, depth - (more != "[*]"))


def _is_open(value: Any) -> bool:
    """Return whether numbers are looked for in a value: in containers and plain objects, not in modules or functions."""
    closed = (nn.Module, Tensor, type, FunctionType, MethodType, ModuleType, str, bytes, set, frozenset, Real)
    if value is None or isinstance(value, closed):
        return False
    return isinstance(value, Mapping | list | tuple) or hasattr(value, "__dict__") or bool(_slots(value))


def _slots(value: Any) -> list[str]:
    names: list[str] = []
    for kind in type(value).__mro__:
        own = vars(kind).get("__slots__", ())
        names += [own] if isinstance(own, str) else list(own)
    return [name for name in names if name not in {"__dict__", "__weakref__"}]


def _resolve(optimizer: Optimizer, place: Path) -> Any:
    found: Any = optimizer
    for kind, key in place:
        if kind == "attr":
            found = getattr(found, key)
        elif kind == "nth":
            found = found[list(found)[key]]
        else:
            found = found[key]
    return found


def _assign(optimizer: Optimizer, place: Path, value: Any) -> None:
    (*above, (kind, key)), holder = place, _resolve(optimizer, place[:-1])
    if isinstance(holder, tuple):  # a new one in its place
        changed = [*holder[:key], value, *holder[key + 1 :]]
        made = type(holder)(*changed) if hasattr(holder, "_fields") else tuple(changed)
        _assign(optimizer, tuple(above), made)
    elif kind == "attr":
        try:
            setattr(holder, key, value)
        except AttributeError:  # a frozen dataclass
            object.__setattr__(holder, key, value)
    else:
        holder[list(holder)[key] if kind == "nth" else key] = value


def _like(old: Any, value: float) -> Any:
    """Return a number of the kind of another one."""
    if isinstance(old, Tensor):
        return torch.full_like(old, value, dtype=old.dtype if old.is_floating_point() else torch.float64)
    if isinstance(old, int) and value == int(value):
        return int(value)
    return value
