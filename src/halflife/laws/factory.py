"""``identify``: the law of an optimizer that a function makes."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.laws.copies import is_number, number, written
from halflife.laws.decide import NO_EFFECT, decide
from halflife.laws.isolation import Draws
from halflife.laws.law import Law, NotProbedError, described_by_shape
from halflife.laws.probe import Bench, Build, Condition, Instance, guarded
from halflife.laws.scaling import lam_factor, lr_factor
from halflife.laws.slots import Slot

__all__ = ["identify", "joined"]

SHAPES = {"matrix": (8, 6), "vector": (7,), "convolution": (4, 2, 3, 3)}
NO_KEY = "its groups have no weight_decay"
LR = 0.05
LEAST_LAM = 1e-9  # shows no effect even with a decay
LAM = {torch.float64: 0.02, torch.float32: 0.1}  # so that r is a few thousand times the rounding error

MakeOptimizer = Callable[[list[torch.nn.Parameter], float, float], Optimizer]


def identify(make_optimizer: MakeOptimizer | type[Optimizer]) -> Law:
    """Find out, by stepping throw-away parameters, which decay an optimizer applies.

    The optimizer is a black box: two that differ in one setting alone are stepped side by side, with random gradients,
    at several learning rates, peaks and weight decays, on a matrix, a vector and a convolution. The difference between
    the two is the decay. The answer is the same every time; afterwards the random states of torch, Python and NumPy are
    what they were, and no warning is emitted.

    Threads that train meanwhile notice nothing, as long as the optimizer draws no random numbers: their default dtype,
    their random numbers and their hooks stay theirs. (Functions compiled by torch run uncompiled meanwhile.) An
    optimizer that does draw uses the generators of the whole process, as it does in training; they are then seeded
    while it is probed, and set back.

    Args:
        make_optimizer: Called as ``make_optimizer(params, lr, weight_decay)`` with a list of parameters, many times; it
            returns a new optimizer over exactly these parameters. A class of optimizers, or a `functools.partial` of
            one, gets ``lr`` and ``weight_decay`` by name: the third argument of torch's SGD is its momentum. The
            ``lr`` that it gets is the peak of the schedule; lower ones are written into the groups, as a scheduler does.

    Returns:
        The law. What cannot be stepped this way (it needs a closure, a graph of the gradients or further arguments) is
        ``"not probed"``, with the reason in the notes.

    Raises:
        UserError: If ``make_optimizer`` is not a function of three arguments, or what it returns is not an optimizer
            over the parameters that it was given.

    Examples:
        >>> law = identify(lambda params, lr, weight_decay: torch.optim.AdamW(params, lr, weight_decay=weight_decay))
        >>> law.describe(), law.name
        ('decoupled: r = lr * lam (native)', 'decoupled')
        >>> identify(lambda params, lr, weight_decay: torch.optim.Adam(params, lr, weight_decay=weight_decay)).pathway
        'l2-preconditioned'
    """
    if not callable(make_optimizer):
        raise UserError(
            f"identify needs a function of params, lr and weight_decay that returns an optimizer, got {make_optimizer!r}"
        )
    make_optimizer = _by_name(make_optimizer)
    try:
        inspect.signature(make_optimizer).bind([], LR, 0.0)
    except TypeError as error:
        raise UserError(
            f"identify calls its function as make_optimizer(params, lr, weight_decay), which this one refuses: {error}; "
            "wrap it: lambda params, lr, weight_decay: ..."
        ) from error
    except ValueError:  # a builtin without a signature: the first call will tell
        pass
    notes: list[str] = []
    reasons: list[NotProbedError] = []
    for dtype in (torch.float64, torch.float32):
        try:
            laws = _laws(make_optimizer, dtype)
        except NotProbedError as error:
            reasons.append(error)
            continue
        if dtype == torch.float32:
            notes.append(f"measured in float32; in float64: {reasons[0]}")
        return joined(laws, notes)
    return Law(pathway="not probed", notes=(str(reasons[-1]),))


def _by_name(make_optimizer: MakeOptimizer | type[Optimizer]) -> MakeOptimizer:
    """Return a function of three arguments for a class of optimizers, which has its own order of arguments."""
    inner: Any = make_optimizer
    while isinstance(inner, functools.partial):
        inner = inner.func
    if not (isinstance(inner, type) and issubclass(inner, Optimizer)):
        return make_optimizer
    make: Any = make_optimizer

    def by_name(params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> Optimizer:
        try:
            inspect.signature(make).bind(params, lr=lr, weight_decay=weight_decay)
        except TypeError as error:
            name = inner.__name__
            raise NotProbedError(
                f"{name} cannot be made with params, lr and weight_decay alone ({error}); pass a function that makes it: "
                f"lambda params, lr, weight_decay: {name}(params, ...)"
            ) from error
        made: Optimizer = make(params, lr=lr, weight_decay=weight_decay)
        return made

    return by_name


def _laws(make: MakeOptimizer, dtype: torch.dtype) -> dict[str, Law | NotProbedError]:
    """Return the law, or why there is none, of each shape; raises if no shape is accepted."""
    try:
        return dict(_laws_together(make, list(SHAPES), dtype))
    except NotProbedError as error:
        refusal = error
    laws: dict[str, Law | NotProbedError] = {}
    for kind in SHAPES:  # Muon, for one, takes matrices only
        try:
            laws.update(_laws_together(make, [kind], dtype))
        except NotProbedError as error:
            laws[kind] = error
    if all(isinstance(law, NotProbedError) for law in laws.values()):
        raise refusal
    return laws


def _laws_together(make: MakeOptimizer, kinds: Sequence[str], dtype: torch.dtype) -> dict[str, Law]:
    device, slots, notes = torch.device("cpu"), [], dict[str, tuple[str, ...]]()
    with guarded(device, dtype):
        weights = [torch.zeros(SHAPES[kind], dtype=dtype, device=device) for kind in kinds]

        def groups_at(given: _Given) -> list[tuple[int, dict[str, Any]]]:
            build = _builder(make, given)
            # Twice, if it draws: what it draws makes no difference here.
            trial = Draws(device).repeatable(lambda: build(Condition(), weights), lambda one, other: True)
            groups = {id(p): each for each in enumerate(trial.target.param_groups) for p in each[1]["params"]}
            return [groups[id(parameter)] for (parameter,) in trial.parameters]

        given = _Given(LR, LAM[dtype])
        plain, doubled = groups_at(given), groups_at(_Given(2.0 * given.lr, 2.0 * given.lam))
        given = given.measurable(plain[0][1])
        deaf = {}
        for kind, (index, group), (_, once), (_, twice) in zip(kinds, groups_at(given), plain, doubled, strict=True):
            lr, said = _rate(group), []
            if lr == 0.0 or lr_factor(abs(lr)) != 1.0:
                how = (
                    f"{lr:.4g}, whatever is given"
                    if _rate(once) == _rate(twice)
                    else f"{lr / given.lr:.4g} times the one given"
                )
                size = "0" if lr == 0.0 else "small" if abs(lr) < 1.0 else "large"
                raise NotProbedError(
                    f"lr of its group is {how}, {'with which nothing moves' if size == '0' else f'too {size} to be measured'}; "
                    "pass the one given on"
                )
            if abs(lr / given.lr - 1.0) > 1e-6:
                said.append(
                    f"lr means the learning rate in the group, which is {lr / given.lr:.4g} times the one given"
                )
            lams = [each.get("weight_decay") for each in (once, twice)]
            if "weight_decay" not in group:
                said.append(NO_KEY)
            elif all(map(is_number, lams)) and number(lams[0]) in {0.0, number(lams[1])}:
                deaf[kind] = f"weight_decay of its group is {lams[0]!r}, whatever is given; pass the one given on"
            elif 0.0 < abs(number(group["weight_decay"])) < LEAST_LAM:
                deaf[kind] = (
                    "weight_decay of its group is far below the one given, too small to be measured; pass that on"
                )
            notes[kind] = tuple(said)
            given.rates[index] = lr
            slots.append(Slot(index, kind, SHAPES[kind], lr=lr, lam=given.lam, peaks=(lr, given.lr)))
    bench = Bench(_builder(make, given), slots, device, dtype, from_factory=True)
    laws = {kind: decide(bench, index) for index, kind in enumerate(kinds)}
    for kind, reason in deaf.items():
        if NO_EFFECT in laws[kind].notes:
            laws[kind] = Law(pathway="not probed", notes=(reason,))
    return {
        kind: replace(law, notes=(*_without(NO_EFFECT, law, notes[kind]), *notes[kind])) for kind, law in laws.items()
    }


@dataclass(frozen=True)
class _Given:
    """What the function is given, and the learning rates of the groups that it makes of it."""

    lr: float
    lam: float
    rates: dict[int, float] = field(default_factory=dict)

    def measurable(self, group: Mapping[str, Any]) -> _Given:
        """Return what to give so that the settings of a group can be measured, if they are in proportion to it."""
        lr, lam = abs(_rate(group)), abs(number(group.get("weight_decay")))
        return _Given(self.lr * (lr_factor(lr) if lr > 0.0 else 1.0), self.lam * lam_factor(lam, torch.float64))


def _rate(group: Mapping[str, Any]) -> float:
    """Return the learning rate of a group; the one given where the optimizer chooses its own."""
    for key in ("lr", "weight_decay"):
        value = group.get(key)
        if (key == "lr" and value is not None and not is_number(value)) or (
            isinstance(value, float) and not math.isfinite(value)
        ):
            raise NotProbedError(f"{key} of its group is {written(value)}; expected one finite number")
    return LR if group.get("lr") is None else float(group["lr"])


def _without(note: str, law: Law, others: Sequence[str]) -> tuple[str, ...]:
    """Return the law's notes, less the one that says the same as there being no weight decay."""
    return tuple(each for each in law.notes if each != note or NO_KEY not in others)


def _builder(make: MakeOptimizer, given: _Given) -> Build:
    def build(condition: Condition, weights: Sequence[Tensor]) -> Instance:
        parameters = [torch.nn.Parameter(weight.clone()) for weight in weights]
        others = []
        if condition.mixed:
            other = torch.float32 if weights[0].dtype == torch.float64 else torch.float64
            others = [torch.nn.Parameter(torch.zeros_like(weights[0], dtype=other))]
        optimizer: Any = make([*parameters, *others], given.lr * condition.peak_lr, given.lam * condition.lam)
        if not hasattr(optimizer, "param_groups") or not callable(getattr(optimizer, "step", None)):
            raise UserError(f"make_optimizer must return an optimizer, got {optimizer!r}")
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        if not all(id(parameter) in held for parameter in parameters):
            raise UserError(
                "make_optimizer must build its optimizer over the parameters that it is given; "
                "some of them are in none of its groups"
            )
        if condition.peak_lr != 1.0:  # a function may make a learning rate that does not follow the one given
            for index, rate in given.rates.items():
                group, wanted = optimizer.param_groups[index], rate * condition.peak_lr
                if group.get("lr") is not None and abs(float(group["lr"]) / wanted - 1.0) > 1e-6:
                    group["lr"] = group["lr"] * (wanted / float(group["lr"]))
        return Instance([optimizer], optimizer, [[parameter] for parameter in parameters], others)

    return build


def joined(laws: Mapping[str, Law | NotProbedError], notes: Sequence[str] = ()) -> Law:
    """Make one law of the laws of several shapes.

    Args:
        laws: Per kind of shape its law, or why there is none.
        notes: What is to be said about all of them.

    Returns:
        Their common law; where they differ, that of the first shape, with all of them in ``by_shape``.
    """
    found = {kind: law for kind, law in laws.items() if isinstance(law, Law)}
    refused = {kind: law for kind, law in laws.items() if isinstance(law, NotProbedError)}
    first = next(iter(found.values()))
    said = [*first.notes, *notes, *(f"a {kind} is refused: {reason}" for kind, reason in refused.items())]
    if any(_differ(first, law) for law in found.values()):
        said.insert(0, "differs by shape: " + described_by_shape(found))
        return replace(first, notes=tuple(said), by_shape=found)
    return replace(first, notes=tuple(said))


def _differ(one: Law, other: Law) -> bool:
    """Return whether two laws are different beyond the last digits that were measured."""
    if any(
        getattr(one, key) != getattr(other, key) for key in ("pathway", "position", "native", "equivalent_to", "name")
    ):
        return True
    if not _close(one.lr_exponent, other.lr_exponent, absolute=1e-3):
        return True
    if not _close(one.peak_lr_exponent, other.peak_lr_exponent, absolute=1e-3):
        return True
    return not _close(one.coefficient, other.coefficient, relative=1e-3)


def _close(one: float | None, other: float | None, *, relative: float = 0.0, absolute: float = 0.0) -> bool:
    """Return whether both are missing or both are about the same."""
    if one is None or other is None:
        return one is other
    return math.isclose(one, other, rel_tol=relative, abs_tol=absolute)
