"""What the JSON files of a store hold: one schema for each kind of file.

A store may come from somebody else, or from another version of halflife. What readers use has a type and bounds; fields that
they do not know are left alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = [
    "ANY_OBJECT",
    "COUNT",
    "DIGEST",
    "HEADER",
    "LARGEST_INTEGER",
    "MANIFEST",
    "RUN_NAME",
    "STORE",
    "TEXT",
    "Fields",
    "MisfitError",
    "Schema",
    "is_count",
    "is_number",
    "is_text",
    "shown",
]

RUN_NAME = "[0-9a-f]{16}"
LARGEST_INTEGER = 2**53  # what a float64 holds exactly
LONGEST_TEXT = 10_000
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f\ud800-\udfff]")  # of a terminal, and what UTF-8 cannot hold
MISSING = object()


class MisfitError(ValueError):
    """A value is not what its schema says; the message tells which one, and what was expected."""

    def __init__(self, place: str, value: object, expected: str) -> None:
        super().__init__(f"{place} is {shown(value)}, expected {expected}")


def shown(value: object) -> str:
    """A value of any type, short enough for a sentence."""
    if value is MISSING:
        return "missing"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def is_text(value: object) -> bool:
    """Whether it is text of bounded length that can be printed."""
    return isinstance(value, str) and len(value) <= LONGEST_TEXT and CONTROL.search(value) is None


def is_count(value: object) -> bool:
    """Whether it is an integer >= 0 that a float64 holds exactly."""
    return type(value) is int and 0 <= value <= LARGEST_INTEGER


def is_number(value: object) -> bool:
    """Whether it is a finite number."""
    return math.isfinite(value) if isinstance(value, float) else type(value) is int and -1e308 < value < 1e308


class Schema(Protocol):
    """What a value must be."""

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""


@dataclass(frozen=True)
class One:
    """A single value.

    Args:
        expected: What it is, in words.
        fits: Whether a value is that.
    """

    expected: str
    fits: Callable[[object], bool]

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""
        if not self.fits(value):
            raise MisfitError(place, value, self.expected)


@dataclass(frozen=True)
class OrNone:
    """A value that may be null."""

    schema: Schema

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""
        if value is not None:
            self.schema.check(value, place)


@dataclass(frozen=True)
class Listed:
    """A list."""

    item: Schema

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""
        if not isinstance(value, list):
            raise MisfitError(place, value, "a list")
        for number, item in enumerate(value):
            self.item.check(item, f"{place}[{number}]")


@dataclass(frozen=True)
class Mapped:
    """An object whose names are data.

    Args:
        value: Its values.
        name: Its names.
    """

    value: Schema
    name: Schema

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""
        if not isinstance(value, dict):
            raise MisfitError(place, value, "an object")
        for name, one in value.items():
            self.name.check(name, f"a name in {place}")
            self.value.check(one, f"{place}[{shown(name)}]")


@dataclass(frozen=True)
class Fields:
    """An object with known names; others are left alone.

    Args:
        required: What it must have.
        optional: What it may have.
    """

    required: Mapping[str, Schema] = field(default_factory=dict)
    optional: Mapping[str, Schema] = field(default_factory=dict)

    def check(self, value: Any, place: str) -> None:
        """Raise a `MisfitError` if the value is anything else."""
        if not isinstance(value, dict):
            raise MisfitError(place or "all of it", value, "an object")
        head = f"{place}." if place else ""
        for name, schema in self.required.items():
            schema.check(value.get(name, MISSING), f"{head}{name}")
        for name, schema in self.optional.items():
            if name in value:
                schema.check(value[name], f"{head}{name}")


ANY_OBJECT = Fields()


def _matching(pattern: str, expected: str) -> One:
    match = re.compile(pattern).fullmatch
    return One(expected, lambda value: isinstance(value, str) and match(value) is not None)


def _are_seeds(value: object) -> bool:
    return is_count(value) or (isinstance(value, list) and all(map(is_count, value)))


TEXT = One(f"text of at most {LONGEST_TEXT:,} characters without control characters", is_text)
COUNT = One("an integer >= 0", is_count)
NUMBER = One("a finite number", is_number)
FLAG = One("true or false", lambda value: isinstance(value, bool))
RUN = _matching(RUN_NAME, "16 hexadecimal digits")
DIGEST = _matching("[0-9a-f]{64}", "64 hexadecimal digits")
SEED = _matching("0|[1-9][0-9]{0,8}", "a seed, digits alone")
NAME = _matching("[A-Za-z0-9][A-Za-z0-9._-]{0,99}", "a name of at most 100 letters, digits, dots and dashes")
STATUS = _matching("running|finished|failed", "running, finished or failed")
TEXTS = Mapped(TEXT, name=TEXT)
FACTS = Mapped(One("text or a number", lambda value: is_text(value) or is_number(value)), name=TEXT)

STORE = Fields({"schema": COUNT})

ARM = Fields({"key": TEXT, "label": TEXT, "size": COUNT, "runs": Mapped(RUN, name=SEED)})
CLAIMS = Fields({"at": TEXT, "finished": COUNT, "digests": Mapped(DIGEST, name=TEXT)})
SEEDS = Fields({"at": TEXT, "finished": COUNT, "seeds": COUNT})
MANIFEST = Fields(
    {"study": NAME, "preset": NAME, "main_size": COUNT, "arms": Listed(ARM)},
    {
        "max_steps": OrNone(COUNT),
        "command": TEXT,
        "started": TEXT,
        "seconds": NUMBER,
        "workers": COUNT,
        "machine": FACTS,
        "seeds": One("an integer or a list of integers", _are_seeds),
        "claims": Listed(CLAIMS),
        "planned_seeds": Listed(SEEDS),
        "source": Fields({"file": TEXT, "name": TEXT, "sha256": DIGEST}),
    },
)

HEADER = Fields(
    {"id": RUN, "status": STATUS, "spec": Fields({"kind": TEXT, "seed": COUNT})},
    {
        "spec_digest": DIGEST,
        "code_digest": TEXT,  # of runs that were made before trainers had versions
        "trainer": Fields({"name": TEXT, "version": COUNT}),
        "data": Fields({"name": TEXT, "sha256": TEXT}, {"title": TEXT}),
        "versions": TEXTS,
        "commit": OrNone(Fields({"id": TEXT, "changed": FLAG})),
        "machine": FACTS,
        "started": TEXT,
        "finished": OrNone(TEXT),
        "seconds": OrNone(NUMBER),
        "cost": OrNone(Mapped(NUMBER, name=TEXT)),
        "failure": TEXT,
        "diverged_at": NUMBER,
        "parent": RUN,
        "world": Fields({"size": COUNT, "form": TEXT}),
        "readings": Fields({"count": COUNT, "bytes": COUNT, "sha256": DIGEST}),
    },
)
