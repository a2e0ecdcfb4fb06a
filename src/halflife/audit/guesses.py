"""What an argument that is missing may look like, from its name, its annotation, and what the function reads of it."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import sys
import textwrap
import typing
from collections.abc import Mapping
from typing import Any

from torch import nn

__all__ = ["Guess", "guess_of"]

DOTS = "..."
MODELS = ("model", "net", "network", "module", "models")
MAKERS = ("make_model", "build_model", "create_model", "get_model", "make_net", "build_net", "model", "net")
SETTINGS = ("config", "cfg", "conf", "args", "opt", "opts", "hparams", "hps", "params", "settings")
PARAMETERS = {"params": "parameters", "parameters": "parameters", "named_params": "named_parameters"}
PARAMETERS |= {"model_params": "parameters", "named_parameters": "named_parameters", "param_list": "parameters"}
NUMBERS = {
    "betas": "(0.9, 0.95)",
    "eps": "1e-8",
    "momentum": "0.9",
    "beta1": "0.9",
    "beta2": "0.95",
    "nesterov": "True",
}
NUMBERS |= {"total_steps": "1000", "max_steps": "1000", "num_steps": "1000", "epochs": "10", "warmup_steps": "100"}
OF_TYPES: dict[Any, str] = {bool: "False", int: "1", float: "0.1"}
NAMES_OF_OPTIMIZERS = (
    "optimizer_name",
    "optim_name",
    "opt_name",
    "optimizer_type",
    "optim_type",
    "opt",
    "optimizer",
    "name",
)
SIZES = {
    "dim": "8",
    "size": "8",
    "features": "8",
    "channels": "8",
    "chans": "8",
    "width": "8",
    "hidden": "8",
    "embd": "8",
}
SIZES |= {
    "layers": "2",
    "layer": "2",
    "depth": "2",
    "blocks": "2",
    "heads": "2",
    "head": "2",
    "classes": "2",
    "vocab": "100",
}
DEPTH = 3  # of classes that are made of classes
MOST_READ = 20  # functions, for what they read


@dataclasses.dataclass(frozen=True)
class Guess:
    """A value for the command line, and the same in Python.

    Attributes:
        value: What stands behind ``--with NAME=``.
        code: The expression in a file beside the one that is audited.
        names: What that file has to import of it.
        imports: What it has to import besides.
        model: The model that it is a part of, as an expression of that file.
    """

    value: str
    code: str
    names: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    model: str | None = None

    @classmethod
    def called(cls, place: str, made: Any, module: str, depth: int = 0) -> Guess:
        """Return the call of a class or a function with guesses for the arguments that it needs."""
        name = made if isinstance(made, str) else made.__qualname__
        inner = {}
        for parameter in [] if isinstance(made, str) else _needed(made):
            inner[parameter.name] = guess_of(parameter.name, made, module, depth=depth + 1)
        value = ", ".join(f"{key}={each.value}" for key, each in inner.items())
        code = ", ".join(f"{key}={each.code}" for key, each in inner.items())
        names = (name.partition(".")[0], *(used for each in inner.values() for used in each.names))
        bracket = f"({value})" if value or depth else ""
        imports = tuple(line for each in inner.values() for line in each.imports)
        return cls(f"{place}:{name}{bracket}", f"{name}({code})", names, imports)


def guess_of(name: str, function: Any, place: str, *, depth: int = 0) -> Guess:
    """Return what an argument may look like.

    Args:
        name: The argument.
        function: What takes it.
        place: The file or the module of the function, as the user names it.
        depth: How deep it stands in calls.

    Returns:
        The guess; dots where nothing is known.
    """
    annotation = _annotation(function, name)
    if inspect.isclass(annotation) and _is_own(annotation, function) and depth < DEPTH:
        return Guess.called(place, annotation, place, depth)
    is_model = inspect.isclass(annotation) and issubclass(annotation, nn.Module)
    read = Read() if is_model or name in MODELS else _read(function, name)
    if name in PARAMETERS and not read.tree:
        made = _model(function, place, depth=1)
        method = f"{PARAMETERS[name]}()"
        return Guess(f"{made.value}.{method}", f"model.{method}", made.names, made.imports, model=made.code)
    if is_model or name in MODELS:
        return _model(function, place, depth)
    if read.tree or name.rpartition("_")[2] in SETTINGS:
        own = _dataclass(function, read)
        if own is not None and depth < DEPTH:
            return Guess.called(place, own, place, max(depth, 1))
        tree = read.tree or {"lr": {}, "weight_decay": {}}
        if read.items and read.attributes:
            settings = "from halflife.audit.arguments import Settings"
            return Guess(_literal(tree), f"Settings({_literal(tree)})", imports=(settings,))
        if read.items:
            return Guess(_literal(tree), _literal(tree))
        return Guess(_literal(tree), _namespace(tree), imports=("from types import SimpleNamespace",))
    known = _number(name)
    if known == DOTS:
        known = OF_TYPES.get(annotation, DOTS)
    return Guess(known.strip("'") if known[0] == "'" else known, known)


def _number(name: str) -> str:
    """Return a value that goes by its name, as a literal."""
    lower = name.lower()
    if lower in NUMBERS:
        return NUMBERS[lower]
    if "weight_decay" in lower or lower in {"wd", "decay", "l2"}:
        return "0.1"
    if "lr" in lower.split("_") or "learning_rate" in lower:
        return "1e-3"
    if lower in NAMES_OF_OPTIMIZERS:
        return "'adamw'"
    if lower in {"device", "device_type"}:
        return "'cpu'"
    return next((SIZES[part] for part in lower.split("_")[::-1] if part in SIZES), DOTS)


def _model(function: Any, place: str, depth: int) -> Guess:
    """Return the call of what makes a model in the file of the function."""
    held = vars(sys.modules.get(getattr(function, "__module__", ""), object))
    for name in MAKERS:
        if inspect.isfunction(held.get(name)) and held[name] is not function:
            return Guess.called(place, held[name], place, max(depth, 1))
    own = [
        each
        for each in held.values()
        if inspect.isclass(each) and issubclass(each, nn.Module) and _is_own(each, function)
    ]
    if own and depth < DEPTH:
        return Guess.called(place, own[-1], place, max(depth, 1))  # the last one is made of the others
    return Guess(f"file.py:make_model{'()' if depth else ''}", DOTS)


def _is_own(cls: type, function: Any) -> bool:
    """Return whether a class is made where the function is, so that it can be named in the same way."""
    module = sys.modules.get(getattr(function, "__module__", ""))
    return cls.__module__ == getattr(function, "__module__", None) and getattr(module, cls.__name__, None) is cls


def _dataclass(function: Any, read: Read) -> type | None:
    """Return a dataclass of the file that has all the fields that are read."""
    held = vars(sys.modules.get(getattr(function, "__module__", ""), object))
    for each in held.values():
        if isinstance(each, type) and dataclasses.is_dataclass(each) and _is_own(each, function):
            fields = {field.name for field in dataclasses.fields(each)}
            if read.tree and not read.items and set(read.tree) <= fields:
                return each
    return None


def _needed(made: Any) -> list[inspect.Parameter]:
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return []
    free = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [each for each in parameters if each.default is each.empty and each.kind not in free]


def _annotation(function: Any, name: str) -> Any:
    """Return the type that an argument is annotated with; of ``X | None`` it is X."""
    try:
        hints = typing.get_type_hints(function.__init__ if inspect.isclass(function) else function)
    except Exception:  # names that are there for type checkers only
        return None
    found = hints.get(name)
    parts = [each for each in typing.get_args(found) if each is not type(None)]
    return parts[0] if len(parts) == 1 and typing.get_origin(found) is not list else found


@dataclasses.dataclass
class Read:
    """Which names a function reads of an argument, with those that it reads of these, and in which way."""

    tree: dict[str, Any] = dataclasses.field(default_factory=dict)
    items: bool = False
    attributes: bool = False


def _read(function: Any, name: str) -> Read:
    """Return which attributes and items a function reads of an argument, with those that it reads of these.

    Args:
        function: The function; of a class its constructor is read.
        name: The argument.

    Returns:
        The names; none where the source is not at hand. Methods are none of them.
    """
    found = Read()
    _add_read(found, function, name, set())
    return found


def _add_read(found: Read, function: Any, name: str, seen: set[tuple[Any, str]]) -> None:
    if (function, name) in seen or len(seen) > MOST_READ:
        return
    seen.add((function, name))
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        chain: list[tuple[str, bool]] = []
        at: Any = node
        while (key := _key(at)) is not None and not (id(at) in called and isinstance(at.value, ast.Name)):
            if id(at) not in called:
                chain.insert(0, (key, isinstance(at, ast.Subscript)))
            at = at.value
        if isinstance(at, ast.Name) and at.id == "self" and inspect.isclass(function) and chain and chain[0][0] == name:
            chain = chain[1:]  # self.config = config
        elif not isinstance(at, ast.Name) or at.id != name:
            continue
        inside = found.tree
        for key, is_item in chain:
            found.items |= is_item
            found.attributes |= not is_item
            inside = inside.setdefault(key, {})
    # What is passed on is read there: Block(config).
    held = vars(sys.modules.get(getattr(function, "__module__", ""), object))
    for node in ast.walk(tree):
        other = held.get(node.func.id) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) else None
        if not isinstance(node, ast.Call) or not (inspect.isfunction(other) or inspect.isclass(other)):
            continue
        names = _names_of(other)
        passed = [*zip(names, node.args, strict=False), *((each.arg, each.value) for each in node.keywords)]
        for inner, value in passed:
            if inner is not None and isinstance(value, ast.Name) and value.id == name:
                _add_read(found, other, inner, seen)


def _names_of(function: Any) -> list[str]:
    try:
        return list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        return []


def _key(node: ast.AST) -> str | None:
    """Return which part of something an expression reads."""
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant) and isinstance(node.slice.value, str):
        return node.slice.value
    return None


def _literal(read: Mapping[str, Any]) -> str:
    """Return a dict with a value for each name."""
    pairs = [f"'{key}': {_literal(inner) if inner else _number(key)}" for key, inner in read.items()]
    return "{" + ", ".join(pairs) + "}"


def _namespace(read: Mapping[str, Any]) -> str:
    """Return an object with such attributes, as an expression."""
    pairs = [f"{key}={_namespace(inner) if inner else _number(key)}" for key, inner in read.items()]
    return f"SimpleNamespace({', '.join(pairs)})"
