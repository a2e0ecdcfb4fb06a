"""Values written as Python expressions: calls of known names with plain values, and nothing else.

Rules and schedules print themselves as the expression that builds them, so this is how they are named in JSON, in
checkpoints and in messages. An expression is parsed and never executed: no attribute, no operator and no name outside
the given ones is possible, and its length and depth are bounded.

Examples:
    >>> @dataclasses.dataclass(frozen=True, repr=False)
    ... class Half(Spelled):
    ...     of: object
    ...     times: int = 1
    >>> Half(Half(3), times=2)
    Half(Half(3), times=2)
    >>> build("Half(Half(3), times=2)", {"Half": Half}, "the value") == Half(Half(3), times=2)
    True
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import math
import unicodedata
import warnings
from collections.abc import Callable, Mapping
from typing import Any

from halflife.errors import UserError, shortened

__all__ = ["Spelled", "build", "spell"]

LONGEST = 20_000  # characters; a PerGroup of a hundred rules has about 4,000
DEEPEST = 40  # calls and lists inside each other


class Spelled:
    """Base of values that print as the expression that builds them."""

    def __repr__(self) -> str:
        return spell(self)


def spell(value: Any) -> str:
    """The one spelling of a value: required arguments by position, others by name, defaults left out.

    Args:
        value: A value of a dataclass or of a class of `Spelled`, or a plain value. A function is spelled by its name:
            that cannot be read back, but tells most functions apart, and is the same in every process.

    Returns:
        The text that `build` reads.
    """
    if hasattr(value, "digest") and not isinstance(value, type):  # tensors, told apart by a hash
        return f"{type(value).__name__}({value.digest!r})"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return f"{type(value).__name__}({', '.join(_arguments(value))})"
    if isinstance(value, Spelled):  # a user's own class need not be a dataclass
        held = ", ".join(f"{name}={spell(each)}" for name, each in vars(value).items())
        return f"{type(value).__name__}({held})"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(spell, value))}]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{spell(key)}: {spell(each)}" for key, each in value.items()) + "}"
    if callable(value):
        return f"{getattr(value, '__module__', '')}.{getattr(value, '__qualname__', type(value).__qualname__)}"
    return repr(value)


def _arguments(value: Any) -> list[str]:
    arguments, by_name = [], False
    for field in dataclasses.fields(value):
        if not field.init:
            continue
        held = getattr(value, field.name)
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        by_name = by_name or not required or field.kw_only is True
        if required or type(held) is not type(field.default) or held != field.default:
            arguments.append(f"{field.name}={spell(held)}" if by_name else spell(held))
    return arguments


def build(text: str, known: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """The value of an expression such as ``"Scheduled(Decoupled(0.1), until(1000))"``.

    Args:
        text: A call of a known name; arguments are calls, numbers, ``inf``, text, booleans, None, tuples and lists.
        known: What may be called, by name.
        what: What is being built, for messages.

    Returns:
        What the outermost call returns.

    Raises:
        UserError: The text is no such expression, or a call refused its arguments.

    Examples:
        >>> build("dict(a=1, b=(2.0, None))", {"dict": dict}, "a table")
        {'a': 1, 'b': (2.0, None)}
    """
    if not isinstance(text, str):
        raise UserError(f"{what} is {text!r}, expected text such as {_example(known)}")
    if len(text) > LONGEST:
        raise UserError(f"{what} has {len(text)} characters, expected at most {LONGEST}: write a shorter expression")
    shown = f"{what} {shortened(text)}"
    strange = next((char for char in text if not char.isascii()), None)
    if strange is not None:  # Python would take some of them for the letter that they look like
        name = unicodedata.name(strange, f"character {ord(strange)}")
        raise UserError(f"{shown} holds {strange!r} ({name}): write names and numbers in ASCII")
    try:
        with warnings.catch_warnings():  # Python's own, of a backslash in a text
            warnings.simplefilter("ignore")
            tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:  # the last two: nested by the thousand
        raise UserError(f"{shown} is no expression: write it as {_example(known)}") from error
    if not isinstance(tree, ast.Call):
        raise UserError(f"{shown} is no call: write it as {_example(known)}")
    return _value(tree, known, shown, 0)


def _example(known: Mapping[str, Callable[..., Any]]) -> str:
    return " or ".join(f"{name}(...)" for name in sorted(known)[:3])


def _value(node: ast.expr, known: Mapping[str, Callable[..., Any]], where: str, depth: int) -> Any:
    if depth > DEEPEST:
        raise UserError(
            f"{where} has more than {DEEPEST} calls and lists inside each other: write a flatter expression"
        )
    if isinstance(node, ast.Call):
        return _call(node, known, where, depth)
    if isinstance(node, ast.Tuple | ast.List):
        items = [_value(item, known, where, depth + 1) for item in node.elts]
        return items if isinstance(node, ast.List) else tuple(items)
    if isinstance(node, ast.Name) and node.id == "inf":
        return math.inf
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str | None):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.UAdd):
        number = node.operand.value if isinstance(node.operand, ast.Constant) else None
        if isinstance(number, int | float) and not isinstance(number, bool):
            return -number if isinstance(node.op, ast.USub) else number
    raise UserError(
        f"{where} holds something else than calls and plain values: write numbers, text, None and calls only"
    )


def _call(node: ast.Call, known: Mapping[str, Callable[..., Any]], where: str, depth: int) -> Any:
    name = node.func.id if isinstance(node.func, ast.Name) else "something that is no name"
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]}?" if close else f"expected one of {', '.join(sorted(known))}"
        raise UserError(f"{where} calls {name[:80]}, which is not known: {hint}")
    keywords = [keyword.arg for keyword in node.keywords]
    if any(isinstance(argument, ast.Starred) for argument in node.args) or None in keywords:
        raise UserError(f"{where} unpacks arguments with a star, expected them one by one")
    twice = next((keyword for keyword in keywords if keywords.count(keyword) > 1), None)
    if twice is not None:
        raise UserError(f"{where} gives {name} the argument {twice} twice, expected it once")
    positional = [_value(argument, known, where, depth + 1) for argument in node.args]
    named = {str(keyword.arg): _value(keyword.value, known, where, depth + 1) for keyword in node.keywords}
    try:
        return known[name](*positional, **named)
    except TypeError as error:
        raise UserError(f"{where} cannot be built: {error}") from error
