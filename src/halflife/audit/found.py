"""What a user's code gave: the models, optimizers and schedules in it, and what of them is audited."""

from __future__ import annotations

import dataclasses
import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from types import FunctionType, GeneratorType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from halflife.groups.names import held_as

__all__ = [
    "DEPTH",
    "Found",
    "Things",
    "choose",
    "live_modules",
    "live_optimizers",
    "live_schedulers",
    "live_wrappers",
    "search",
]

DEPTH = 4  # how deep what was returned is searched
MOST_VALUES = 20_000  # that are looked at
# Packages whose wrappers step the optimizer inside and add nothing.
PASSING = {"accelerate", "lightning", "lightning_fabric", "pytorch_lightning"}
LEAVES = (
    str,
    bytes,
    int,
    float,
    complex,
    Tensor,
    type,
    ModuleType,
    FunctionType,
    MethodType,
    torch.device,
    torch.dtype,
)


@dataclasses.dataclass
class Things:
    """What a search came across, each with the name under which it stood.

    Attributes:
        models: Modules; none is a part of another one.
        optimizers: Optimizers.
        schedulers: Torch's learning-rate schedulers.
        unread: What was not looked into, in words.
    """

    models: list[tuple[str, nn.Module]] = dataclasses.field(default_factory=list)
    optimizers: list[tuple[str, Optimizer]] = dataclasses.field(default_factory=list)
    schedulers: list[tuple[str, LRScheduler]] = dataclasses.field(default_factory=list)
    unread: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Found:
    """What is audited.

    Attributes:
        model: The model that owns the parameters, or a container of several; None if none is known.
        optimizers: The optimizers; none is inside another one.
        schedulers: The schedulers of these optimizers.
        models: The names of the models.
        left_out: What is not audited, in words, with the reason.
    """

    model: nn.Module | None
    optimizers: list[Optimizer]
    schedulers: list[LRScheduler] = dataclasses.field(default_factory=list)
    models: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()

    def plain(self) -> dict[str, Any]:
        """Return it as plain values that JSON can hold."""
        return {
            "models": list(self.models),
            "optimizers": [type(each).__name__ for each in self.optimizers],
            "schedulers": [type(each).__name__ for each in self.schedulers],
            "left_out": list(self.left_out),
        }

    def __str__(self) -> str:
        parts = [_counted(len(self.models), "model", self.models)] if self.models else ["no model"]
        parts += [_counted(len(self.optimizers), "optimizer", [type(each).__name__ for each in self.optimizers])]
        if self.schedulers:
            parts += [_counted(len(self.schedulers), "scheduler", [type(each).__name__ for each in self.schedulers])]
        return "; ".join([f"found: {', '.join(parts)}", *(f"left out: {each}" for each in self.left_out)])


def _counted(number: int, what: str, names: Sequence[str]) -> str:
    counts = Counter(names)
    said = [name if count == 1 else f"{count} {name}" for name, count in counts.items()]
    listed = ", ".join([*said[:6], *(["..."] if len(said) > 6 else [])])
    return f"{number} {what}{'s' if number != 1 else ''} ({listed})"


# ---- what was returned


def search(values: Iterable[tuple[str, Any]]) -> Things:
    """Look for models, optimizers and schedulers in values: in tuples, lists, sets, dicts, and in what objects hold.

    Args:
        values: Names and values.

    Returns:
        All that was found down to a depth of `DEPTH`.
    """
    things = Things()
    seen: dict[int, Any] = {}  # the values are kept alive, so that no two have one id
    todo = [(name, value, 0) for name, value in values]
    while todo:
        deeper: list[tuple[str, Any, int]] = []
        for name, value, depth in todo:
            if value is None or isinstance(value, LEAVES) or id(value) in seen:
                continue
            if len(seen) >= MOST_VALUES:
                things.unread.append(f"what comes after the first {MOST_VALUES:,} values in it")
                deeper = []
                break
            seen[id(value)] = value
            if isinstance(value, Optimizer) or steps_groups(value):
                things.optimizers.append((name, value))
                continue
            if isinstance(value, nn.Module):
                things.models.append((name, value))
            elif isinstance(value, LRScheduler):
                things.schedulers.append((name, value))
            elif isinstance(value, GeneratorType | Iterator):
                things.unread.append(f"{_kind(value)}, whose values would be used up; return a list of them")
                continue
            if depth < DEPTH:
                deeper += [(part, each, depth + 1) for part, each in _parts(value, name)]
        todo = deeper
    inside = {id(part) for _, model in things.models for part in model.modules() if part is not model}
    things.models = [(name, model) for name, model in things.models if id(model) not in inside]
    return things


def _parts(value: Any, name: str) -> list[tuple[str, Any]]:
    """Return what a value holds, with names."""
    if isinstance(value, Mapping):
        pairs = [(key if isinstance(key, str) else name, each) for key, each in value.items()]
        return pairs + [("", key) for key in value if not isinstance(key, LEAVES)]
    if isinstance(value, Sequence | AbstractSet) or type(value).__name__ in {"dict_values", "dict_items", "deque"}:
        fields = getattr(value, "_fields", None)  # of a named tuple
        names = fields if isinstance(fields, tuple) else [name] * len(value)
        return list(zip(map(str, names), value, strict=False))
    held = getattr(value, "__dict__", None)
    parts = [(str(key), each) for key, each in held.items()] if isinstance(held, dict) else []
    if isinstance(value, nn.Module):  # its parts are its own, but it may hold an optimizer beside them
        parts = [(key, each) for key, each in parts if key not in {"_parameters", "_buffers", "_modules"}]
    for cls in type(value).__mro__:
        slots = cls.__dict__.get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else tuple(slots):
            if slot not in {"__dict__", "__weakref__"} and hasattr(value, slot):
                parts.append((slot, getattr(value, slot)))
    return [(key.lstrip("_") or name, each) for key, each in parts]


def _kind(value: Any) -> str:
    return "a generator" if isinstance(value, GeneratorType) else f"an iterator ({type(value).__name__})"


def steps_groups(value: Any) -> bool:
    """Return whether an object is an optimizer in all but its class, as the OptimWrapper of fastai is."""
    if isinstance(value, nn.Module | LRScheduler | Mapping | list | tuple) or not hasattr(type(value), "step"):
        return False
    try:
        groups = value.param_groups
        return isinstance(groups, list) and bool(groups) and all("params" in group for group in groups)
    except Exception:  # whatever a user's property raises
        return False


# ---- what is alive


def live_modules() -> list[nn.Module]:
    """Return all modules that exist in this process and are not a part of another one."""
    modules = [each for each in gc.get_objects() if issubclass(type(each), nn.Module) and "_modules" in vars(each)]
    parts = {id(part) for each in modules for part in each._modules.values() if part is not None}
    return [each for each in modules if id(each) not in parts]


def live_optimizers(*, collect: bool = True) -> list[Optimizer]:
    """Return all optimizers of this process that hold parameters."""
    if collect:  # an optimizer that was replaced may only be kept by a cycle
        gc.collect()
    return [each for each in gc.get_objects() if issubclass(type(each), Optimizer) and _ids(each)]


def live_wrappers(optimizers: Sequence[Optimizer]) -> list[Any]:
    """Return the objects of this process that have optimizers inside, and are optimizers in all but their class."""
    found: dict[int, Any] = {}
    for holder in gc.get_referrers(*optimizers) if optimizers else []:
        owners = [holder] if not isinstance(holder, dict) else gc.get_referrers(holder)
        for owner in owners:
            if not isinstance(owner, (Optimizer, *LEAVES)) and hasattr(owner, "__dict__") and steps_groups(owner):
                found[id(owner)] = owner
    return list(found.values())


def live_schedulers() -> list[LRScheduler]:
    """Return all of torch's learning-rate schedulers in this process."""
    return [each for each in gc.get_objects() if issubclass(type(each), LRScheduler) and "optimizer" in vars(each)]


# ---- what is audited of it


def _ids(optimizer: Optimizer) -> set[int]:
    """The ids of an optimizer's parameters; nothing for one whose constructor has not run."""
    try:
        return {id(each) for group in optimizer.param_groups for each in group["params"]}
    except (AttributeError, KeyError, TypeError):
        return set()


def _passed_on(optimizer: Optimizer) -> Optimizer:
    """Return the optimizer inside of a wrapper that adds no step of its own."""
    while type(optimizer).__module__.partition(".")[0] in PASSING:
        held = vars(optimizer)
        inner = next((held[key] for key in ("optimizer", "_optimizer") if isinstance(held.get(key), Optimizer)), None)
        if inner is None:
            break
        optimizer = inner
    return optimizer


def _holds(outer: Optimizer, inner: Optimizer) -> bool:
    """Return whether an optimizer has another one among what its attributes hold."""
    todo: list[tuple[Any, int]] = [(getattr(outer, "__dict__", {}), 0)]
    for value, depth in todo:  # which grows meanwhile
        if depth > 3 or len(todo) > 2000:
            continue
        if isinstance(value, Mapping):
            parts: list[Any] = [each for key, each in value.items() if key not in {"state", "param_groups"}]
        elif isinstance(value, list | tuple | set):
            parts = list(value)
        elif isinstance(value, MethodType):
            parts = [value.__self__]
        elif isinstance(value, (*LEAVES, nn.Module)) or depth == 0:
            parts = []
        else:
            parts = list(vars(value).values()) if hasattr(value, "__dict__") else []
        for each in parts:
            if each is inner:
                return True
            todo.append((each, depth + 1))
    return False


def bare(model: nn.Module) -> nn.Module:
    """Return the model inside of DistributedDataParallel, torch.compile and their like, which put a prefix to names."""
    while (attribute := held_as(model)) is not None:
        inner = getattr(model, attribute, None)
        if not isinstance(inner, nn.Module):
            break
        model = inner
    return model


def choose(things: Things, *, alive: bool = False, names: Mapping[int, str] | None = None) -> Found:
    """Decide what is audited: the outermost optimizers, and the models that own their parameters.

    Args:
        things: What was found.
        alive: Whether a model may be looked for among all modules of the process, where none that was found owns
            the parameters.
        names: Names of the modules that are found so, by their ids.

    Returns:
        What is audited, and what is left out.
    """
    left_out = list(things.unread)
    optimizers = [each for _, each in things.optimizers]
    optimizers += [each.optimizer for _, each in things.schedulers if isinstance(each.optimizer, Optimizer)]
    optimizers = list({id(each): each for each in map(_passed_on, optimizers)}.values())
    inner = {
        id(each)
        for each in optimizers
        if any(other is not each and _holds(other, each) and not _holds(each, other) for other in optimizers)
    }
    optimizers = [each for each in optimizers if id(each) not in inner]
    owned: dict[int, int] = {}
    for number, optimizer in enumerate(optimizers):
        for key in _ids(optimizer):
            owned.setdefault(key, number)
    named = [(name, bare(model)) for name, model in things.models]
    models = _owners(named, set(owned))
    chosen = {id(model) for _, model in models}
    missing = set(owned) - {id(each) for _, model in models for each in model.parameters()}
    if alive and missing:
        called = names or {}
        roots = [(each, bare(each)) for each in live_modules()]
        roots.sort(key=lambda pair: min((owned.get(id(each), len(owned)) for each in pair[1].parameters()), default=0))
        models += _owners([(called.get(id(one)) or called.get(id(two), ""), two) for one, two in roots], missing)
        chosen |= {id(model) for _, model in models}
    for name, model in named:
        parameters = list(model.parameters())
        if id(model) in chosen or not optimizers:
            continue
        label = name if name and name != type(model).__name__ else ""
        what = f"{label} ({type(model).__name__})" if label else type(model).__name__
        if not any(id(each) in owned for each in parameters):
            reason = "a model whose parameters are in no optimizer" if parameters else "a model without parameters"
            left_out.append(f"{what}, {reason}")
        # a model that shares all its optimized parameters with those that are audited is another view of them
    labels = _names(models if len(models) > 1 else [("", each) for _, each in models])
    if len(models) > 1:
        # No parameter and no name within a model changes; the container only gives each model a name.
        container = nn.Module()
        container._modules.update(zip(labels, (each for _, each in models), strict=True))  # a name may be any text
    whole = container if len(models) > 1 else models[0][1] if models else None
    kept = {id(each) for each in optimizers}
    schedulers = [each for _, each in things.schedulers if id(each.optimizer) in kept]
    return Found(whole, optimizers, schedulers, tuple(labels), tuple(left_out))


def _owners(candidates: Sequence[tuple[str, nn.Module]], owned: set[int]) -> list[tuple[str, nn.Module]]:
    """Return the fewest models, at every turn the one with the most, that own parameters; each owns one that no other does."""
    sets = [({id(each) for each in model.parameters()}, name, model) for name, model in candidates]
    left, chosen = set(owned), []
    while left:
        # The smaller one of two that own the same: a loss that holds the model has names of its own in front.
        best = max(sets, key=lambda each: (len(each[0] & left), -len(each[0])), default=None)
        if best is None or not best[0] & left:
            break
        chosen.append((best[1], best[2]))
        left -= best[0]
    order = {id(model): number for number, (_, model) in enumerate(candidates)}
    return sorted(chosen, key=lambda each: order[id(each[1])])


def _names(models: Sequence[tuple[str, nn.Module]]) -> list[str]:
    """Return one name for each model: that under which it stood, else that of its class; no name twice."""
    names: list[str] = []
    for name, model in models:
        first = (name or type(model).__name__).replace(".", "_")
        same = sum(each == first or each.rpartition("_")[0] == first for each in names)
        names.append(first if not same else f"{first}_{same + 1}")
    return names
