"""Where an optimizer is stepped as it is: on faithful copies of it, or in place, and put back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from halflife.laws.copier import (
    APART,
    Copier,
    at_the_start,
    attributes_of,
    copies_in,
    flags_of,
    is_near,
    storage_key,
)
from halflife.laws.copies import number, scale_peaks, small_parameter, train_modules
from halflife.laws.graph import real_tensors, tensors_in, with_inner
from halflife.laws.guard import Under, directly, lifted, read_only
from halflife.laws.in_place import Snapshot
from halflife.laws.isolation import Draws
from halflife.laws.law import NotProbedError
from halflife.laws.probe import enter_training_mode, guarded
from halflife.laws.reduced import is_of_torch
from halflife.optim.attaching import handle_of
from halflife.optim.norms import is_distributed, local
from halflife.optim.step_hooks import global_hooks

__all__ = ["CopyStage", "Member", "RealStage", "Run", "Stage", "State"]

SMALL = 2**12  # elements of a weight that is looked at over many calls
FEW = 2**16  # elements of weights that are looked at over many calls as they are
LARGE = 2**22  # elements that are stepped in place as often as smaller ones are
READ = 2**18  # elements of a weight that are read, about
NEAR = 0.1  # relative distance up to which a tensor counts as a copy of the weights


State = Literal["real", "start", "flags"]  # of a stage: as it is, as when the optimizer was made, empty but for flags


@dataclass(frozen=True)
class Run:
    """One run of an optimizer from its present state.

    Args:
        calls: Of ``step()``.
        scale: What the start weights, and every copy of them that the optimizer keeps, are multiplied by.
        wide: Whether weights and state are float64.
        gradient: ``"zeros"``; ``"none"``; ``"random"``; ``"rows"``: random, and zero in every other row.
        factor: Of every learning rate.
        nudged: Whether the weights are doubled after the first call; a copy of them that the optimizer keeps is not.
        watched: Whether it is looked at what becomes of the copies of the weights that the optimizer keeps, or makes in a
            first call without gradient.
    """

    calls: int
    scale: float = 1.0
    wide: bool = False
    gradient: Literal["zeros", "none", "random", "rows"] = "zeros"
    factor: float = 1.0
    nudged: bool = False
    watched: bool = False


@dataclass(frozen=True, eq=False)
class Member:
    """A parameter that is stepped, from which weights.

    Args:
        parameter: The real one.
        group: The number of its group.
        start: Its weights at the start, maybe a part of them.
        origin: The real weights, where the start is not these: what is equal to them is a copy of the weights.
        kind: Members of one kind are treated alike as far as settings tell.
    """

    parameter: Tensor
    group: int
    start: Tensor
    origin: Tensor | None
    kind: Hashable

    @property
    def has_gradient(self) -> bool:
        """Whether the next step finds a gradient: torch asks for it, and not for ``requires_grad``."""
        return self.parameter.requires_grad or self.parameter.grad is not None


class Stage(Protocol):
    """Steps an optimizer from chosen weights as often as it is asked to; every run begins at the same state.

    Attributes:
        rates: The learning rate of each member's group.
        raised: By what the peaks are multiplied.
        fresh: Whether the optimizer remembers nothing of earlier gradients.
        can_be_wide: Whether runs in float64 are possible.
        starts_at_zero: Whether some of the real weights are 0, so that other weights stand for them.
        zeros_are_weights: Whether what is 0 in the optimizer, as the weights are, counts as a copy of them.
        is_of_torch: Whether its class and its step are torch's own.
        is_large: Whether it is so large that each call counts: a large optimizer that is stepped in place.
        copies_follow: By member, whether it keeps copies of the weights that all moved with them in the last run that
            asked.
    """

    rates: list[float]
    raised: float
    fresh: bool
    can_be_wide: bool
    starts_at_zero: bool
    zeros_are_weights: bool
    is_of_torch: bool
    is_large: bool
    copies_follow: list[bool]

    def run(self, run: Run) -> list[list[Tensor]]:
        """Return the weights of all members before the first call, and after each."""

    def only(self, indices: Sequence[int]) -> tuple[Stage, list[int]]:
        """Return a smaller stage for some members, and which of its members stands for each of them."""

    def eps(self, index: int) -> float:
        """Return the rounding error of a member's own precision; 0 if it is float64."""


class _Stepper:
    """What both stages have in common: gradients, calls, what is read."""

    def __init__(self, members: Sequence[Member], rates: Sequence[float], raised: float, device: torch.device) -> None:
        self.members, self.device = list(members), device
        self.group_rates, self.raised = list(rates), raised
        self.rates = [rates[member.group] for member in members]
        self.starts_at_zero = any(each.origin is not None and not bool(each.origin.any()) for each in self.members)
        self.draws = Draws(device)
        self.needs_closure = self.needs_rows = False
        self.under: Under = directly
        self.zeros_are_weights = self.is_large = False
        self.without_decay: Sequence[int] = ()  # groups whose weight_decay is switched off
        self.calls_hooks = False  # a copy must not call what is registered for all optimizers
        self.copies_follow = [False] * len(self.members)

    def eps(self, index: int) -> float:
        """Return the rounding error of a member's own precision; 0 if it is float64."""
        dtype = self.members[index].start.dtype
        return 0.0 if dtype in {torch.float64, torch.complex128} else torch.finfo(dtype).eps

    def gradients(self, run: Run, weights: Sequence[Tensor], call: int) -> Iterator[Tensor | None]:
        """Yield the gradient of each member at one call."""
        generator = torch.Generator().manual_seed(11 + call)
        for member, weight in zip(self.members, weights, strict=True):
            if run.gradient == "none" or not member.has_gradient:
                yield None
                continue
            if run.gradient == "zeros" and not is_distributed(weight):
                zero = torch.zeros((), dtype=weight.dtype, device=weight.device).expand(weight.shape)
                yield self.as_it_comes(zero)
                continue
            made = torch.zeros_like(weight, requires_grad=False)
            if run.gradient != "zeros":
                part = local(made)
                part.copy_(torch.randn(part.shape, generator=generator, dtype=torch.float32))
                if run.gradient == "rows" and part.ndim > 0:
                    part[1::2] = 0.0
            yield self.as_it_comes(made)

    def as_it_comes(self, gradient: Tensor) -> Tensor:
        """Return a gradient as the optimizer wants it: of rows, if it takes no others."""
        if not self.needs_rows or gradient.ndim == 0:
            return gradient
        return torch.sparse_coo_tensor(torch.arange(gradient.shape[0], device=gradient.device)[None], gradient)

    def set_rates(self, optimizer: Any, run: Run) -> None:
        """Give each group the settings that it is looked at."""
        scale_peaks(optimizer, self.raised * run.factor)
        for index in self.without_decay:
            if "weight_decay" in optimizer.param_groups[index]:
                optimizer.param_groups[index]["weight_decay"] = 0.0
        for group, rate in zip(optimizer.param_groups, self.group_rates, strict=False):
            if group.get("lr") is None:
                continue
            if isinstance(group["lr"], Tensor):
                dtype = torch.float64 if run.wide else group["lr"].dtype
                if rate != number(group["lr"]) or run.factor != 1.0 or run.wide:
                    group["lr"] = torch.full_like(group["lr"], rate * run.factor, dtype=dtype)
            elif rate != number(group["lr"]) or run.factor != 1.0:
                group["lr"] = rate * run.factor
        if run.factor == 1.0:
            return
        known = set(map(id, optimizer.param_groups))
        for group in (group for inner in with_inner([optimizer]) for group in inner.param_groups):
            if id(group) not in known and group.get("lr") is not None:
                known.add(id(group))
                group["lr"] = group["lr"] * run.factor

    def calls(self, optimizer: Any, parameters: Sequence[Tensor], run: Run, track: list[list[Tensor]]) -> None:
        """Call ``step()`` as often as a run says, and add the weights after each call to its track."""
        kept: list[list[tuple[Tensor, Tensor]]] = []
        for index in range(run.calls):
            self.draws.seed(1000 + index)
            self.call(
                optimizer, parameters, replace(run, gradient="zeros") if run.watched and index == 0 else run, index
            )
            track.append(_read(parameters))
            if run.watched and index == 0:  # some are made by the first call
                kept = [_kept_copies(optimizer, parameter, parameters) for parameter in parameters]
            if run.nudged and index == 0:
                with torch.no_grad():
                    for parameter in parameters:
                        parameter.mul_(2.0)
        if run.watched:
            self.copies_follow = [
                bool(each) and all(not torch.equal(now, before) for now, before in each) for each in kept
            ]

    def call(self, optimizer: Any, parameters: Sequence[Tensor], run: Run, index: int) -> None:
        """Call ``step()`` once, with a closure if it wants one, after a ``zero_grad()`` that is not torch's."""

        def give() -> Tensor:
            # Made anew each time: a step may write into them.
            for parameter, gradient in zip(parameters, self.gradients(run, parameters, index), strict=True):
                held = parameter.grad
                if gradient is None or held is None or not _can_hold(held, gradient):
                    parameter.grad = None if gradient is None else _with_memory(gradient)
                else:
                    held.detach().copy_(gradient)  # in place: it may be a view of one flat buffer
            return torch.zeros((), device=self.device)

        if has_own_zero_grad(optimizer):  # part of each iteration: it may decay there
            self.under(optimizer.zero_grad)
        give()
        self.under(partial(optimizer.step, give) if self.needs_closure else optimizer.step)

    def stepped(self, once: Callable[[], list[list[Tensor]]], dtype: torch.dtype) -> list[list[Tensor]]:
        """Run once; where the step refuses to go without a closure, with one."""
        with guarded(self.device, dtype, hooks=self.calls_hooks):
            try:
                return self.draws.repeatable(once, _same)
            except Exception as error:
                if self.needs_closure or self.needs_rows or isinstance(error, NotProbedError):
                    raise
                first = error
            what = "needs_rows" if "sparse" in str(first) or "dense" in str(first) else "needs_closure"
            setattr(self, what, True)
            try:
                return self.draws.repeatable(once, _same)
            except Exception:
                setattr(self, what, False)
                raise first from None


def has_own_zero_grad(optimizer: Any) -> bool:
    """Return whether an optimizer has a ``zero_grad`` of its own, which may do more than torch's."""
    own = vars(optimizer).get("zero_grad") if hasattr(optimizer, "__dict__") else None
    found = getattr(own or getattr(type(optimizer), "zero_grad", None), "__module__", "torch.optim") or ""
    return not found.startswith("torch.")


class CopyStage(_Stepper):
    """Faithful copies of an optimizer, a new one for each run.

    Args:
        optimizer: The optimizer; it is not touched.
        members: What is stepped; its other parameters are left out of the groups.
        rates: The learning rate that each group gets; its own, or one that can be measured.
        raised: By what the peaks are multiplied.
        device: Where the copies are.
        state: Which state they begin with: the real one; that of the start (``"start"``), or only the flags in it: then
            copies of the weights in attributes are those of the start, too.
        moved: Takes the ids of parameters that a step moves, although they are in none of its groups.
        without_decay: The numbers of groups whose weight_decay is switched off.
    """

    def __init__(
        self,
        optimizer: Any,
        members: Sequence[Member],
        rates: Sequence[float],
        *,
        raised: float,
        device: torch.device,
        state: State = "real",
        moved: set[int] | None = None,
        without_decay: Sequence[int] = (),
    ) -> None:
        super().__init__(members, rates, raised, device)
        self.optimizer, self.state, self.is_of_torch = optimizer, state, is_of_torch(optimizer)
        self.can_be_wide = all(not member.start.is_complex() for member in self.members) and any(
            member.start.dtype != torch.float64 for member in self.members
        )
        self.protected = real_tensors([optimizer])
        self.guard = read_only(self.protected)
        held = {id(each) for group in optimizer.param_groups for each in group["params"]}
        others = [each for each in self.protected if isinstance(each, torch.nn.Parameter) and id(each) not in held]
        self.outside = {id(each): each for each in others}
        self.without_decay = without_decay
        self.moved: set[int] = set() if moved is None else moved
        parameters = [member.parameter for member in self.members]
        self.fresh = state != "real" or not _remembers(optimizer, parameters)

    def run(self, run: Run) -> list[list[Tensor]]:
        """Return the weights of all members before the first call, and after each."""
        dtype = torch.float64 if run.wide else torch.get_default_dtype()
        return self.stepped(lambda: self._once(run), dtype)

    def _once(self, run: Run) -> list[list[Tensor]]:
        self.draws.seed(0)
        parameters: list[Tensor] = []
        memo: dict[int, Any] = {}
        for member in self.members:
            start = scaled(member.start, run.scale)
            stand_in = small_parameter(member.parameter, start.double() if run.wide else start)
            memo[id(member.parameter)] = stand_in
            parameters.append(stand_in)
        copier = Copier(memo, state=self.state)
        optimizer = copier.copy(self.optimizer)
        train_modules(copier.memo)
        mine = set(map(id, parameters))
        others = [each for each in copier.memo.values() if isinstance(each, Tensor) and id(each) not in mine]
        own = set(map(id, self.protected))
        _cut_with(self.members, [each for each in others if id(each) not in own])
        with self.guard:
            if self.state != "real":
                _settle(others, self.members)
            _link(others, self, run, _owners(optimizer, parameters))
            if self.state != "real":
                self.fresh = self.fresh and not _remembers(optimizer, parameters)
        if run.wide:
            scalars = [each for each in parameters if each.ndim == 0]
            for each in others:
                if not each.is_floating_point() or each.device.type == "meta":
                    continue
                if each.ndim > 0 or any(_near(each, scalar) for scalar in scalars):  # else it counts steps
                    each.data = each.data.double()
        self.set_rates(optimizer, run)
        _shrink_at_once(optimizer)
        enter_training_mode(optimizer)
        track = [_read(parameters)]
        # Torch's own steps write to parameters and state alone, and every operation costs as much again under a guard.
        is_safe = is_of_torch(optimizer) and not own & set(map(id, others))
        with nullcontext() if is_safe else self.guard, lifted() as self.under:
            self.calls(optimizer, parameters, run, track)
        if run.gradient == "zeros" and not run.wide:
            self.moved |= {key for key, real in self.outside.items() if _has_moved(real, copier.memo.get(key))}
        return track

    def only(self, indices: Sequence[int]) -> tuple[CopyStage, list[int]]:
        """Return a smaller stage for some members, and which of its members stands for each of them."""
        if sum(member.start.numel() for member in self.members) <= FEW and len(self.members) <= 64:
            return self, list(indices)
        smallest: dict[Hashable, Member] = {}
        for index in indices:
            member = self.members[index]
            held = smallest.setdefault(member.kind, member)
            if 0 < member.start.numel() < held.start.numel():
                smallest[member.kind] = member
        chosen = [_cut_member(member) for member in smallest.values()]
        kinds = {kind: place for place, kind in enumerate(smallest)}
        smaller = CopyStage(
            self.optimizer, chosen, self.group_rates, raised=self.raised, device=self.device, state=self.state
        )
        smaller.fresh, smaller.needs_closure, smaller.needs_rows = self.fresh, self.needs_closure, self.needs_rows
        smaller.zeros_are_weights = self.zeros_are_weights
        return smaller, [kinds[self.members[index].kind] for index in indices]


class RealStage(_Stepper):
    """The optimizer itself: stepped in place, and put back to the bit after each run.

    It is run within a ``with`` statement: what is put back is recorded once, where that begins.

    Args:
        optimizer: The optimizer.
        members: All its parameters.
        rates: The learning rate that each group gets; its own, or one that can be measured.
        raised: By what the peaks are multiplied.
        device: Where the parameters are.
        state: Which state it begins with, as for copies.
    """

    can_be_wide = False

    def __init__(
        self,
        optimizer: Any,
        members: Sequence[Member],
        rates: Sequence[float],
        *,
        raised: float,
        device: torch.device,
        state: State = "real",
    ) -> None:
        super().__init__(members, rates, raised, device)
        self.optimizer, self.calls_hooks, self.state = optimizer, True, state
        self.is_of_torch = is_of_torch(optimizer)
        self._snapshot: Snapshot | None = None
        self.is_large = sum(member.start.numel() for member in self.members) > LARGE
        parameters = [member.parameter for member in self.members]
        self.fresh = state != "real" or not _remembers(optimizer, parameters)

    def run(self, run: Run) -> list[list[Tensor]]:
        """Return the weights of all members before the first call, and after each."""
        return self.stepped(lambda: self._once(run), torch.get_default_dtype())

    def __enter__(self) -> RealStage:
        self._snapshot = Snapshot([self.optimizer], global_hooks())
        # The weights at the start are those in the snapshot, so that there is one copy of them.
        self.members = [
            replace(each, start=self._recorded(each.start, each), origin=self._recorded(each.origin, each))
            for each in self.members
        ]
        return self

    def __exit__(self, *_: object) -> None:
        self._snapshot = None  # each run has put back what it changed

    def _recorded(self, weight: Any, member: Member) -> Any:
        """Return the recorded values, where a weight is the parameter itself."""
        assert self._snapshot is not None
        if weight is None or storage_key(weight) != storage_key(member.parameter):
            return weight
        return self._snapshot.recorded(member.parameter)

    def _once(self, run: Run) -> list[list[Tensor]]:
        if self._snapshot is None:
            raise RuntimeError("the stage is not open; run it within a with statement")
        parameters = [member.parameter for member in self.members]
        with self._snapshot:
            self.draws.seed(0)
            with torch.no_grad():
                if self.state != "real":
                    _begin(self.optimizer, self.state, {id(each.parameter): each.start for each in self.members})
                    _settle(tensors_in(self.optimizer, set(map(id, parameters))), self.members)
                owners = _owners(self.optimizer, parameters)
                _link(tensors_in(self.optimizer, set(map(id, parameters))), self, run, owners)
                for member in self.members:
                    start = member.start if run.scale == 1.0 else scaled(member.start, run.scale)
                    local(member.parameter).copy_(start)
                if self.state != "real":
                    self.fresh = self.fresh and not _remembers(self.optimizer, parameters)
            self.set_rates(self.optimizer, run)
            _shrink_at_once(self.optimizer)
            track = [_read(parameters)]
            self.calls(self.optimizer, parameters, run, track)
        return track

    def only(self, indices: Sequence[int]) -> tuple[RealStage, list[int]]:
        """Return the stage itself: the optimizer is stepped whole."""
        return self, list(indices)


def _shrink_at_once(optimizer: Any) -> None:
    handle = handle_of(optimizer)
    for attachment in [] if handle is None else handle._attachments:
        attachment.shrink_at_once()


def scaled(weight: Tensor, factor: float) -> Tensor:
    """Return a weight times a factor, in its own precision; torch does not multiply numbers of 8 bits."""
    narrow = weight.element_size() == 1 and weight.is_floating_point()
    return (weight.float() * factor).to(weight.dtype) if narrow else weight * factor


def _can_hold(held: Tensor, gradient: Tensor) -> bool:
    """Return whether another gradient can be written into one."""
    return not held.is_sparse and held.dtype == gradient.dtype and (0 not in held.stride() or held.numel() <= 1)


def _with_memory(gradient: Tensor) -> Tensor:
    """Return a gradient that a step may write into: one of zeros has one element in memory until it is given."""
    is_whole = gradient.is_sparse or 0 not in gradient.stride() or gradient.numel() <= 1
    return gradient if is_whole else torch.zeros_like(gradient, memory_format=torch.contiguous_format)


def cut(weight: Tensor, limit: int) -> Tensor:
    """Return the first elements along each dimension, all shortened alike: what depends on their ratios stays.

    Args:
        weight: The weight.
        limit: How many elements are left, about; of a dimension, one at least.

    Returns:
        A view of it.
    """
    # The shortest first: what these cannot be shortened by, the longer ones are.
    for place, dim in enumerate(sorted(range(weight.ndim), key=lambda dim: weight.shape[dim])):
        if weight.numel() > limit:
            share = (limit / weight.numel()) ** (1 / (weight.ndim - place))
            weight = weight.narrow(dim, 0, max(1, round(weight.shape[dim] * share)))
    return weight


def _has_moved(real: Tensor, copy: Any) -> bool:
    if not isinstance(copy, Tensor) or copy is real or copy.shape != real.shape or copy.device != real.device:
        return False
    return copy.dtype == real.dtype and real.device.type != "meta" and not torch.equal(copy, real)


def _states(optimizer: Any) -> Iterator[Mapping[Any, Any]]:
    """Yield the state of an optimizer by parameter, and that of those inside it."""
    for each in with_inner([optimizer]):
        state = attributes_of(each).get("state")
        if isinstance(state, Mapping):
            yield state


def _cut_with(members: Sequence[Member], tensors: Sequence[Tensor]) -> None:
    """Leave of each tensor that is as large as a weight the part that is left of the weight: masters, momenta."""
    parts = {tuple(each.parameter.shape): each.start.shape for each in members}
    parts = {whole: part for whole, part in parts.items() if whole != part}
    if not parts:
        return
    shared = Counter(map(storage_key, tensors))
    for tensor in tensors:
        part = parts.get(tuple(tensor.shape)) if type(tensor) in _SIMPLE and tensor.layout == torch.strided else None
        if part is not None:
            left = tensor.data[tuple(map(slice, part))]
            tensor.data = left if shared[storage_key(tensor)] > 1 else left.clone()


def _cut_member(member: Member) -> Member:
    origin = None if member.origin is None else cut(member.origin, SMALL)
    return replace(member, start=cut(member.start, SMALL), origin=origin)


def _read(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Return the weights; of large ones elements from everywhere."""
    found = []
    for parameter in parameters:
        weight = local(parameter.detach())
        step = weight.numel() // READ
        if step > 1 and weight.ndim > 0:
            weight = weight.reshape(weight.shape[0], -1)
            # Whole rows, so that rows without gradient are rows here, too: an odd step has rows of both kinds.
            weight = weight[:: step | 1] if weight.shape[0] > 64 * step else weight[:, :: step | 1]
        found.append(weight.clone())
    return found


def _begin(optimizer: Any, state: State, starts: Mapping[int, Tensor]) -> None:
    """Put the state of an optimizer, and of those inside it, back to the start.

    Args:
        optimizer: The optimizer.
        state: Which state it gets.
        starts: By the id of each parameter, the weights that it begins with.
    """
    for held in _states(optimizer):
        if not isinstance(held, dict):
            continue
        copies = copies_in(held) if state == "start" else frozenset()
        for key, value in list(held.items()):
            begins = state == "start" and isinstance(key, Tensor)
            left = at_the_start(value, key, starts.get(id(key), key), copies) if begins else flags_of(value)
            if left is None:
                del held[key]
            else:
                held[key] = left


def _settle(tensors: Sequence[Tensor], members: Sequence[Member]) -> None:
    """Make copies of the weights that have moved away from them copies again: averages, slow weights."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for member in members:
        weight = member.start if member.origin is None else member.origin
        by_shape.setdefault(tuple(weight.shape), []).append(weight)
    with torch.no_grad():
        for tensor in tensors:
            if tensor.is_floating_point() and tensor.device.type != "meta" and type(tensor) in _SIMPLE:
                near = [
                    each for each in by_shape.get(tuple(tensor.shape), ()) if is_near(tensor, each, APART, most=READ)
                ]
                if near:
                    tensor.data.copy_(min(near, key=lambda each: float((tensor - each.to(tensor.device)).norm())))


def _kept_copies(optimizer: Any, weight: Tensor, parameters: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    """Return the tensors of an optimizer that are about a weight, each with its values now."""
    found = tensors_in(optimizer, set(map(id, parameters)))
    alike = [each for each in found if each.shape == weight.shape and each.is_floating_point()]
    return [(each, each.clone()) for each in alike if _near(each, weight.detach())]


def _same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


def _link(tensors: Sequence[Tensor], stage: _Stepper, run: Run, owners: Mapping[int, int]) -> None:
    """Give each tensor that is a copy of some weights what these begin with: float32 masters, slow weights, references.

    Args:
        tensors: Those of the optimizer.
        stage: What is stepped.
        run: How the weights begin.
        owners: By the id of a tensor in the state, the number of the member that it belongs to.
    """
    members = stage.members
    if run.scale == 1.0 and not any(member.origin is not None for member in members):
        return
    by_shape: dict[tuple[int, ...], list[int]] = {}
    for index, member in enumerate(members):
        by_shape.setdefault(tuple(member.start.shape), []).append(index)
    with torch.no_grad():
        for tensor in tensors:
            if not tensor.is_floating_point() or tensor.device.type == "meta":
                continue
            alike = by_shape.get(tuple(tensor.shape), [])
            for index in [owners[id(tensor)]] if id(tensor) in owners else alike:
                member = members[index]
                real = member.start if member.origin is None else member.origin
                if real.shape != tensor.shape or not _near(tensor, real, zeros=stage.zeros_are_weights):
                    continue
                if member.origin is None:
                    tensor.data.copy_(scaled(tensor.data, run.scale))
                else:
                    tensor.data.copy_(scaled(member.start, run.scale))
                if index in alike:  # the next tensor that is equal to several is that of the next
                    alike.remove(index)
                    alike.append(index)
                break


def _owners(optimizer: Any, parameters: Sequence[Tensor]) -> dict[int, int]:
    """Return, by the id of each tensor in the state of an optimizer, the number of the parameter that it belongs to."""
    found: dict[int, int] = {}
    for state in _states(optimizer):
        for index, parameter in enumerate(parameters):
            values = state.get(parameter)
            if isinstance(values, Mapping):
                found.update((id(value), index) for value in values.values() if isinstance(value, Tensor))
    return found


_SIMPLE = frozenset({Tensor, torch.nn.Parameter})


def _near(tensor: Tensor, weight: Tensor, *, zeros: bool = False) -> bool:
    """Return whether a tensor is about a weight, or both are 0; of large ones, elements from everywhere are compared."""
    if zeros and not bool(weight.any()):
        return not bool(tensor.any())
    return is_near(tensor, weight, NEAR, most=READ)


def _remembers(optimizer: Any, parameters: Sequence[Tensor]) -> bool:
    """Return whether an optimizer holds a tensor as large as a parameter that is neither 0 nor a copy of it."""
    by_shape: dict[tuple[int, ...], list[Tensor]] = {}
    for parameter in parameters:
        by_shape.setdefault(tuple(parameter.shape), []).append(parameter.detach())
    for tensor in tensors_in(optimizer, set(map(id, parameters))):
        alike = by_shape.get(tuple(tensor.shape), [])
        if not alike or not tensor.is_floating_point() or tensor.device.type == "meta" or type(tensor) not in _SIMPLE:
            continue
        if not bool(tensor.any()):
            continue
        if not any(_near(tensor, each) for each in alike if each.device == tensor.device):
            return True
    return False
