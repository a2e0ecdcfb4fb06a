"""Values written as Python expressions: calls of known names with plain values, and nothing else.

Rules and schedules print themselves as the expression that builds them, so this is how they are named in JSON. The
expression is parsed and never executed: no attribute, no operator and no name outside the given ones is possible.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

from halflife.errors import UserError

__all__ = ["build"]


def build(text: str, known: Mapping[str, Callable[..., Any]], what: str) -> Any:
    """The value of an expression such as ``"Scheduled(Decoupled(0.1), until(1000))"``.

    Args:
        text: Calls of the known names; arguments are calls, numbers, strings, booleans, None, tuples, lists and dicts.
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
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise UserError(f"{what} is {text!r}, which is no expression: write it as {_example(known)}") from error
    if not isinstance(tree, ast.Call):
        raise UserError(f"{what} is {text!r}, expected a call of one of {', '.join(sorted(known))}")
    return _value(tree, known, f"{what} {text!r}")


def _example(known: Mapping[str, Callable[..., Any]]) -> str:
    return " or ".join(f"{name}(...)" for name in sorted(known)[:3])


def _value(node: ast.expr, known: Mapping[str, Callable[..., Any]], where: str) -> Any:
    if isinstance(node, ast.Call):
        name = node.func.id if isinstance(node.func, ast.Name) else ast.unparse(node.func)
        if name not in known:
            raise UserError(f"{where} calls {name}, expected one of {', '.join(sorted(known))}")
        if any(isinstance(argument, ast.Starred) for argument in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            raise UserError(f"{where} unpacks arguments with a star, expected them one by one")
        positional = [_value(argument, known, where) for argument in node.args]
        named = {str(keyword.arg): _value(keyword.value, known, where) for keyword in node.keywords}
        try:
            return known[name](*positional, **named)
        except TypeError as error:
            raise UserError(f"{where} cannot be built: {error}") from error
    if isinstance(node, ast.Tuple):
        return tuple(_value(item, known, where) for item in node.elts)
    if isinstance(node, ast.List):
        return [_value(item, known, where) for item in node.elts]
    if isinstance(node, ast.Dict) and None not in node.keys:
        keys = [_value(key, known, where) for key in node.keys if key is not None]
        return dict(zip(keys, [_value(item, known, where) for item in node.values], strict=True))
    try:
        return ast.literal_eval(node)
    except ValueError as error:
        raise UserError(f"{where} holds {ast.unparse(node)!r}, expected calls and plain values only") from error
