"""The rules and schedules by name, made from their classes: what is parsed, spelled, converted and expected.

A rule is known once its class stands in a module of `halflife.rules`; no other list has its name.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, cast

from halflife import schedules
from halflife.errors import UserError
from halflife.expressions import build, spell
from halflife.rules.appliers import MovingAverage
from halflife.rules.base import Applier, LamRule, Part, Penalty, Rule
from halflife.schedules import Schedule

__all__ = ["check_decay_text", "law_name", "law_names", "part_classes", "rule_from", "same_law", "schedule_from"]

BASES = (Rule, Applier, Penalty, LamRule)
SCHEDULES: dict[str, Callable[..., Any]] = {
    name: getattr(schedules, name) for name in schedules.__all__ if name != "Schedule"
}


@cache
def part_classes() -> dict[str, type[Part]]:
    """The rules, appliers and penalties of `halflife.rules` by name, in the order of their definition."""
    return {made.__name__: made for made in _subclasses(Part) if made not in BASES}


def _subclasses(of: type[Part]) -> Iterator[type[Part]]:
    for made in of.__subclasses__():
        if made.__module__.startswith("halflife.rules."):  # a user's own rule is not looked up by its name
            yield made
            yield from _subclasses(made)


def law_name(part: Part | type[Part]) -> str:
    """The name of a part's law, such as ``"half-life"`` for `HalfLife`: its class name in lower case, with hyphens."""
    made = part if isinstance(part, type) else type(part)
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", made.__name__).lower()


def law_names() -> tuple[str, ...]:
    """The names of the laws of all parts, in the order of `part_classes`."""
    return tuple(map(law_name, part_classes().values()))


def rule_from(text: str) -> Part:
    """The rule, applier or penalty that prints as ``text``.

    Args:
        text: An expression of the names of `halflife.rules` and `halflife.schedules`.

    Returns:
        What `halflife.attach` takes.

    Raises:
        UserError: The text is no such expression.

    Examples:
        >>> rule_from("Scheduled(Decoupled(0.1), until(1000))")
        Scheduled(Decoupled(lam=0.1), until(1000))
    """
    if isinstance(text, str) and "Tensors(" in text:
        raise UserError(
            f"the decay {text!r} has references that are tensors, which print as a digest and cannot be read back: build"
            " Toward(rule, tensors)"
        )
    known: dict[str, Callable[..., Any]]
    known = {**part_classes(), **SCHEDULES, "MovingAverage": MovingAverage}
    made = build(text, known, "the decay")
    if not isinstance(made, Part):
        raise UserError(f"the decay is {text!r}, expected one of {', '.join(sorted(part_classes()))}")
    return made


def check_decay_text(text: str) -> Part:
    """The part that prints as ``text``, if it says all that is needed where no parameter group has a decay of its own.

    Args:
        text: An expression as `rule_from` reads it.

    Returns:
        The rule, applier or penalty.

    Raises:
        UserError: The text is no such expression, or a rule in it has no ``lam``.

    Examples:
        >>> check_decay_text("Cautious(Stable(0.001))")
        Cautious(Stable(lam=0.001))
    """
    made = rule_from(text)
    for part in made.parts():
        if "lam" in part.needs and not part.inside():
            raise UserError(f"the decay {text!r} holds {part!r} without a lam, and no group has one: give it a lam")
    return made


def schedule_from(text: str) -> Schedule:
    """The schedule that prints as ``text``.

    Args:
        text: An expression of the names of `halflife.schedules`.

    Returns:
        The schedule.

    Raises:
        UserError: The text is no such expression.

    Examples:
        >>> schedule_from("warmup_stable_decay(2, 3, 4)")(7)
        0.5
        >>> schedule_from("cosine(1.0, 0.0, 10)")
        cosine(1.0, 0.0, 10)
    """
    made = build(text, SCHEDULES, "the schedule")
    if not callable(made):
        raise UserError(
            f"the schedule is {text!r}, expected a function of the step: one of {', '.join(sorted(SCHEDULES))}"
        )
    return cast("Schedule", made)


def same_law(saved: str, part: Part) -> bool:
    """Whether a checkpoint's text of a rule is the text of ``part``, in today's spelling or in that before it."""
    return saved == spell(part) or _without_zeros(saved) == _without_zeros(_spelled_before(part))


def _without_zeros(text: str) -> str:
    """The text with ``2.0`` as ``2``: some numbers were kept as the user wrote them."""
    return re.sub(r"(?<=\d)\.0(?=[,)\]])", "", text)


def _spelled_before(value: Any) -> str:
    """The spelling of checkpoints up to version 0.1.0: every field by its name, given or not, text without quotes."""
    if hasattr(value, "digest") and not isinstance(value, type):
        return f"{type(value).__name__}({value.digest})"
    is_record = dataclasses.is_dataclass(value) and not isinstance(value, type)
    if is_record or isinstance(value, Part):
        names = [each.name for each in dataclasses.fields(value)] if is_record else list(vars(value))
        fields = ", ".join(f"{name}={_spelled_before(getattr(value, name))}" for name in names)
        return f"{type(value).__name__}({fields})"
    if isinstance(value, dict):
        return _spelled_before([[key, held] for key, held in value.items()])
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_spelled_before, value))}]"
    return value if isinstance(value, str) else spell(value)
