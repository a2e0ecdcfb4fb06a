"""What every run spec has: a kind, a seed, JSON in and out, and a digest."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from halflife.errors import StoreError, UserError
from halflife.numbers import as_number
from halflife.studies.specs.trainers import Trainer

__all__ = ["RunSpec", "check_choices", "check_counts", "check_numbers", "check_removed", "spec_from_json"]

_KINDS: dict[str, type[RunSpec]] = {}


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run, described by plain values. Subclasses are final and add their fields.

    Args:
        seed: Seeds the initial weights and the order of the data.
        max_steps: Stop after this many optimizer steps (``None``: run to the end), for trying a set-up.
    """

    kind: ClassVar[str]
    """Names the type in JSON."""
    trainer: ClassVar[Trainer]
    """What trains it; its name and version are part of the run's name."""
    data_module: ClassVar[str] = ""
    """The module of the lab whose ``describe(spec, data_folder)`` names the data, without torch (empty: none)."""
    added_later: ClassVar[frozenset[str]] = frozenset()
    """Fields that a later release added. At their defaults they are left out of the JSON, so that runs made before
    keep their names."""

    seed: int = 0
    max_steps: int | None = None

    def __init_subclass__(cls) -> None:
        before = _KINDS.setdefault(cls.kind, cls)
        if (before.__module__, before.__qualname__) != (cls.__module__, cls.__qualname__):
            raise UserError(
                f"the kind of {cls.__qualname__} is {cls.kind!r}, which is that of {before.__qualname__}: choose another"
                " kind"
            )
        _KINDS[cls.kind] = cls

    @property
    def parent(self) -> RunSpec | None:
        """The run that must be finished before this one, because it starts from what that one kept."""
        return None

    @property
    def parent_file(self) -> str:
        """What it starts from: a file of the parent's `kept` folder."""
        return ""

    @property
    def reads_folder(self) -> bool:
        """Whether its data lie in the folder that ``--data`` names."""
        return False

    def with_seed(self, seed: int) -> Self:
        """The same run with another seed; a parent gets it, too."""
        return dataclasses.replace(self, seed=seed)

    def cut(self, max_steps: int | None) -> Self:
        """The same run with at most so many steps, for trying a set-up; a parent is cut alike."""
        return dataclasses.replace(self, max_steps=max_steps)

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values, with the kind first."""
        values: dict[str, Any] = {"kind": self.kind}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name in self.added_later and value == field.default:
                continue
            values[field.name] = value.to_json() if isinstance(value, RunSpec) else json.loads(json.dumps(value))
        return values

    def digest(self) -> str:
        """sha256 of the spec's canonical JSON, in hexadecimal."""
        canonical = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


def spec_from_json(value: Mapping[str, Any]) -> RunSpec:
    """The spec that `RunSpec.to_json` wrote; a kind or a field of another version is a `StoreError`."""
    fields = dict(value)
    kind = fields.pop("kind", None)
    if not isinstance(kind, str) or kind not in _KINDS:
        raise StoreError(
            f"a run of kind {str(kind)[:40]!r} was found and this version of halflife knows {', '.join(sorted(_KINDS))}: "
            "upgrade halflife to read it"
        )
    try:
        return _KINDS[kind](**{name: _from_json(v) for name, v in fields.items()})
    except StoreError:
        raise
    except TypeError as error:
        raise StoreError(
            f"a run of kind {kind!r} has other fields than this version of halflife: {str(error)[:200]}"
        ) from error
    except (ValueError, ArithmeticError, AttributeError, LookupError) as error:  # what a field says of itself
        said = str(error).partition(":")[0][:200]
        raise StoreError(
            f"a run of kind {kind!r} has a field that cannot be used ({said}): remove the run's folder and run again"
        ) from error


def _from_json(value: Any) -> Any:
    if isinstance(value, dict):
        return spec_from_json(value)
    return tuple(value) if isinstance(value, list) else value


def check_numbers(spec: RunSpec, *names: str, above: float | None = None, at_most: float = math.inf) -> None:
    """Refuse fields that hold anything but finite numbers, or tuples of them, within bounds.

    Args:
        spec: The spec.
        names: The fields.
        above: A bound that each number must exceed (``None``: it must be >= 0).
        at_most: The largest allowed number.

    Raises:
        UserError: A number is outside.
    """
    for name in names:
        values = getattr(spec, name)
        for value in values if isinstance(values, tuple) else (values,):
            number = as_number(name, value)
            low_ok = number >= 0 if above is None else number > above
            if not (low_ok and number <= at_most and number < math.inf):
                low = ">= 0" if above is None else f"> {above:g}"
                high = "" if at_most == math.inf else f" and <= {at_most:g}"
                raise UserError(f"{name} is {value}, expected a finite number {low}{high}: change {name}")


def check_counts(spec: RunSpec, *names: str, least: int = 1, or_none: bool = False) -> None:
    """Refuse fields that hold anything but integers, or tuples of them, of at least ``least``.

    Args:
        spec: The spec.
        names: The fields.
        least: The smallest allowed integer.
        or_none: Whether ``None`` is allowed too.

    Raises:
        UserError: A field holds something else.
    """
    for name in names:
        values = getattr(spec, name)
        for value in values if isinstance(values, tuple) else (values,):
            if value is None and or_none:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise UserError(f"{name} is {value!r}, expected an integer >= {least}: change {name}")


def check_choices(spec: RunSpec, known: Mapping[str, Sequence[str]]) -> None:
    """Refuse fields that hold anything but one of the names known for each.

    Args:
        spec: The spec.
        known: Names by field.

    Raises:
        UserError: A field holds something else.
    """
    for name, names in known.items():
        if (value := getattr(spec, name)) not in names:
            raise UserError(f"{name} is {value!r}, expected one of {', '.join(names)}: change {name}")


def check_removed(lr: float, lam: float) -> None:
    """Refuse a decay that would erase or flip the weights.

    Args:
        lr: The largest learning rate.
        lam: The coefficient.

    Raises:
        UserError: ``lr * lam`` is >= 1.
    """
    if lr * lam >= 1:
        raise UserError(
            f"lr * lam is {lr * lam:g}, expected < 1 (it is the fraction removed at each step): lower lr or lam"
        )
