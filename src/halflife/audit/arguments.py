"""``audit --with NAME=VALUE``: arguments for a user's function, as they are written in a shell."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import json
import os
import re
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import GeneratorType, ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit.guesses import Guess, guess_of
from halflife.errors import UserError, did_you_mean
from halflife.user_code import import_file

__all__ = [
    "OWN_OPTIONS",
    "Settings",
    "attribute_of",
    "call_with",
    "module_of",
    "needed",
    "own_options",
    "parse_pairs",
    "plain",
    "value_of",
]

OWN_OPTIONS = ("--with", "--run", "--time-limit", "--total-steps", "--expect", "--json")

PLACE = re.compile(r"(?P<place>[^\s:()'\"]+):(?P<name>[A-Za-z_][\w.]*)")
DOTTED_CALL = re.compile(r"(?P<place>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)\.(?P<name>[A-Za-z_]\w*)\(")
FILES = (".json", ".toml", ".yaml", ".yml")


class Settings(dict[str, Any]):
    """A dict whose items are attributes as well, as the configurations of training scripts are.

    Examples:
        >>> config = Settings({"lr": 0.1, "model": {"dim": 64}})
        >>> config.model.dim, config["lr"], vars(config)["lr"]
        (64, 0.1, 0.1)
    """

    def __new__(cls, *args: Any) -> Settings:
        """Make the attributes the same mapping as the items."""
        made = super().__new__(cls, *args)
        made.__dict__ = made
        return made

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        super().__init__({key: with_attributes(value) for key, value in (items or {}).items()})


def with_attributes(value: Any) -> Any:
    """Return a value of literals in which every dict with names as its keys has attributes."""
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return Settings(value)
    if type(value) in {list, tuple}:
        return type(value)(map(with_attributes, value))
    return value


def parse_pairs(pairs: Sequence[str]) -> dict[str, str]:
    """Return the values of ``NAME=VALUE``, unread yet; a `UserError` for another form, or a name that comes twice."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip().isidentifier():
            raise UserError(
                f"--with {pair!r} has no name; write --with NAME=VALUE, such as --with lr=1e-3 or "
                "--with model=file.py:make_model"
            )
        if name.strip() in found:
            raise UserError(f"--with {name.strip()}=... is given twice; give it once")
        found[name.strip()] = text
    return found


def own_options(arguments: Sequence[str]) -> str:
    """Return a sentence on the words after ``--`` that are options of the command; nothing where there are none."""
    words = [word.partition("=")[0] for word in arguments]
    own = [option for option in OWN_OPTIONS if option in words]
    if not own:
        return ""
    return f"{' and '.join(own)} stood after -- and went to your own code; options of halflife stand before --"


def plain(value: Any, what: str) -> Any:
    """Return a value, unless an async function gave it: a `UserError` then."""
    if not inspect.iscoroutine(value) and not inspect.isasyncgen(value):
        return value
    if inspect.iscoroutine(value):
        value.close()  # python would warn that nobody awaits it
    raise UserError(
        f"{what} is an async function, expected a plain one: name one that returns what asyncio.run gives for it"
    )


def value_of(text: str, name: str) -> Any:
    """Return what a value stands for: the first of these that it is.

    A Python literal (a dict gets attributes); ``file.py:object`` or ``package.module:object``, which is called if it
    takes no arguments, and ``...:object(VALUE, NAME=VALUE)``, which is called with these; a file of settings (``.json``,
    ``.toml``, ``.yaml``), or ``file.yaml:key.of.a.part``; else the text itself.

    Args:
        text: The value, as it was written.
        name: What it is for; messages have it.

    Returns:
        The value.

    Raises:
        UserError: It names a file, a module or an object that is not there, or cannot be read.
    """
    text = text.strip()
    try:
        with warnings.catch_warnings():  # Python's own, of a backslash in a text
            warnings.simplefilter("ignore")
            value = with_attributes(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        pass
    else:
        if (place := _unfilled(value, name)) is not None:
            raise UserError(f"--with {name}={text}: write the value of {place} in the place of the dots")
        return value
    settings = _settings(text, name)
    if settings is not None:
        return settings
    head, inner, behind = _call(text)
    match = PLACE.fullmatch(head)
    if match is None and inner is not None and (dotted := DOTTED_CALL.match(f"{head}(")) is not None:
        match = dotted if _can_be_imported(dotted["place"]) else None
    if match is None:
        return text
    place = match["place"]
    if not _is_file(place) and not _can_be_imported(place):
        if inner is None and "." not in place and "/" not in place:
            return text  # cuda:a
        raise UserError(f"--with {name}={text}: there is no file or module {place}; write it in quotes if it is a text")
    if _is_file(place) and not Path(place).is_file():
        raise UserError(f"--with {name}={text}: there is no file {place}; correct the path")
    value = attribute_of(
        module_of(place), match["name"], place, subject=f"--with {name}={text}: {place}", what_to_do="correct the name"
    )
    if inner is not None:
        if not callable(value):
            raise UserError(f"--with {name}={text}: {head} cannot be called; leave the brackets away")
        args, kwargs = _inner_arguments(inner, name)
        return _followed(plain(value(*args, **kwargs), head), behind, text, name)
    if callable(value) and not isinstance(value, nn.Module | Optimizer) and needed(value) == []:
        return plain(value(), text)
    return value


def _settings(text: str, name: str) -> Any:
    """Return what a file of settings holds; None if the text names none."""
    path, _, keys = text.partition(":") if not os.path.isfile(text) else (text, "", "")
    if not path.endswith(FILES) or (not os.path.isfile(path) and "/" not in path and not keys):
        return None
    if not os.path.isfile(path):
        raise UserError(f"--with {name}={text}: there is no file {path}; correct the path")
    content = Path(path).read_text(encoding="utf-8")
    try:
        if path.endswith(".json"):
            value = json.loads(content)
        elif path.endswith(".toml"):
            value = tomllib.loads(content)
        else:
            try:
                yaml = importlib.import_module("yaml")
            except ImportError:
                raise UserError(
                    f"--with {name}={text}: reading {path} needs PyYAML: pip install pyyaml, or give a .json file"
                ) from None
            value = yaml.safe_load(content)
    except UserError:
        raise
    except Exception as error:  # each of the three has its own
        raise UserError(f"--with {name}={text}: {path} cannot be read ({_line(error)}); correct it") from None
    for key in filter(None, keys.split(".")):
        if not isinstance(value, dict) or key not in value:
            there = ", ".join(map(str, list(value)[:8])) if isinstance(value, dict) else "no keys"
            raise UserError(f"--with {name}={text}: {path} has no {keys}; there are {there}")
        value = value[key]
    try:
        return with_attributes(value)
    except RecursionError:  # YAML can say that a list holds itself
        raise UserError(f"--with {name}={text}: {path} holds itself, or is too deep; write it out flat") from None


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:120]


def _call(text: str) -> tuple[str, str | None, str]:
    """Split ``head(inner)behind``; the second is None where there are no brackets."""
    head, bracket, rest = text.partition("(")
    depth, quote = 1, ""
    for place, char in enumerate(rest if bracket else ""):
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        else:
            depth += (char in "([{") - (char in ")]}")
        if depth == 0:
            behind = rest[place + 1 :].strip()
            return (head.strip(), rest[:place], behind) if not behind or behind[0] == "." else (text, None, "")
    return text, None, ""


class _Parts(list[Any]):
    """What a method of a value yields, such as ``parameters()``, with the value itself: it stays alive."""

    def __init__(self, parts: Iterable[Any], owner: Any) -> None:
        super().__init__(parts)
        self.owner = owner


def _followed(value: Any, behind: str, text: str, name: str) -> Any:
    """Return what attributes and methods give that are named behind a call: ``.parameters()``."""
    while behind:
        head, inner, rest = _call(behind) if "(" in behind else (behind, None, "")
        owner, each = value, value
        for part in head.removeprefix(".").split("."):
            if not part.isidentifier() or not hasattr(each, part):
                raise UserError(f"--with {name}={text}: {type(each).__name__} has no {part}; correct it")
            owner, each = each, getattr(each, part)
        value, behind = each, rest
        if inner is not None:
            args, kwargs = _inner_arguments(inner, name)
            value = plain(value(*args, **kwargs), text)
        if isinstance(value, GeneratorType):
            value = _Parts(value, owner)
    return value


def _unfilled(value: Any, name: str) -> str | None:
    """Return the name of a value that is dots, as they stand in the line to type."""
    if value is ...:
        return name
    pairs = (
        value.items()
        if isinstance(value, dict)
        else [(name, each) for each in value]
        if isinstance(value, list | tuple)
        else []
    )
    return next((found for key, each in pairs if (found := _unfilled(each, str(key))) is not None), None)


def _value_within(text: str, name: str, inner: str) -> Any:
    if text.strip() == "...":
        raise UserError(f"--with {name}=...({inner}=...): write the value of {inner} in the place of the dots")
    return value_of(text, name)


def _inner_arguments(text: str, name: str) -> tuple[list[Any], dict[str, Any]]:
    args, kwargs = [], {}
    for part in _split(text):
        match = re.match(r"\s*([A-Za-z_]\w*)\s*=(?!=)", part)
        if match is None:
            args.append(value_of(part, name))
        else:
            kwargs[match[1]] = _value_within(part[match.end() :], name, match[1])
    return args, kwargs


def _split(text: str) -> list[str]:
    """Split at the commas outside of brackets and quotes."""
    parts, depth, quote = [""], 0, ""
    for char in text:
        if quote:
            quote = "" if char == quote else quote
        elif char in "'\"":
            quote = char
        elif char in "([{":
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append("")
            continue
        parts[-1] += char
    return [part for part in parts if part.strip()]


# ---- where things are


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place


def _can_be_imported(place: str) -> bool:
    if not all(part.isidentifier() for part in place.split(".")):
        return False
    _search_here()
    try:
        return place in sys.modules or importlib.util.find_spec(place.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def _search_here() -> None:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())


def module_of(place: str) -> ModuleType:
    """Import a file or a module that a user names; a file once, however often it is named.

    A file may have the name of a module that is in use already (test.py, random.py): that one stays.

    Args:
        place: ``path/to/file.py`` or ``package.module``.

    Returns:
        The module.

    Raises:
        UserError: There is no such module, or the file is a part of a package.
    """  # noqa: DOC501 - what the user's own code raises is told elsewhere
    if not _is_file(place):
        _search_here()
        try:
            if place.startswith("."):  # which Python takes for the name of a module beside this one
                raise ModuleNotFoundError(name=place)
            return importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is not None and (place == error.name or place.startswith(f"{error.name}.")):
                raise UserError(
                    f"there is no module {error.name}; give package.module:function as Python would import it from "
                    "here, or path/to/file.py:function"
                ) from None
            raise
    path = Path(place)
    for module in list(sys.modules.values()):  # imported by a file that was imported here
        file = getattr(module, "__file__", None)
        if not isinstance(file, str) or not os.path.isabs(file) or module.__name__ == "__main__":
            continue
        if os.path.realpath(file) == os.path.realpath(path):
            return module
    try:
        # By its whole path: that is how it is found again.
        return import_file(path.absolute(), path.stem if path.stem not in sys.modules else f"_audited_{path.stem}")
    except ImportError as error:
        if "relative import" not in str(error):
            raise
        folder, dotted = _in_package(path)
        here = "" if folder == Path.cwd() else f", from the folder {folder}"
        raise UserError(f"{place} imports from the package around it: name it as {dotted}:function{here}") from None


def _in_package(path: Path) -> tuple[Path, str]:
    """Return the folder from which a file can be imported, and its name there."""
    path = path.resolve()
    folder, parts = path.parent, [path.stem]
    while (folder / "__init__.py").is_file():
        parts.insert(0, folder.name)
        folder = folder.parent
    if len(parts) == 1:  # a package without __init__.py: that of the current folder, or the one that it lies in
        inside = path.is_relative_to(Path.cwd()) and path.parent != Path.cwd()
        folder = Path.cwd() if inside else path.parent.parent
        parts = list(path.relative_to(folder).with_suffix("").parts)
    return folder, ".".join(parts)


def attribute_of(
    module: ModuleType,
    name: str,
    place: str,
    *,
    subject: str = "",
    what_to_do: str = "name the function that builds the optimizer",
) -> Any:
    """Return ``module.name``, which may be dotted; a `UserError` that lists what there is if there is none."""
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            own = {
                key: each
                for key, each in vars(module).items()
                if getattr(each, "__module__", None) == module.__name__ and key[0] != "_"
            }
            names = [key for key, each in own.items() if inspect.isfunction(each) or inspect.isclass(each)]
            there = f"; there are {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}" if names else ""
            raise UserError(f"{subject or place} has no {name}{did_you_mean(name, names)}{there}: {what_to_do}")
        value = getattr(value, part)
    return value


# ---- calling


def _parameters(function: Any) -> list[inspect.Parameter] | None:
    try:
        return list(inspect.signature(function).parameters.values())
    except (TypeError, ValueError):  # some builtins have none
        return None


def needed(function: Any) -> list[str] | None:
    """Return the names of the arguments without a default; None where the signature is not known."""
    parameters = _parameters(function)
    if parameters is None:
        return None
    free = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    return [each.name for each in parameters if each.default is each.empty and each.kind not in free]


def _takes(function: Any) -> tuple[list[str], bool]:
    """Return the names that a function takes, and whether it takes any other."""
    parameters = _parameters(function) or []
    names = [each.name for each in parameters if each.kind not in {each.VAR_POSITIONAL, each.VAR_KEYWORD}]
    return names, any(each.kind is each.VAR_KEYWORD for each in parameters)


def call_with(
    function: Callable[..., Any],
    owner: Any,
    given: Mapping[str, Any],
    target: str,
    prepare: Callable[[Any], None] = lambda made: None,
) -> Any:
    """Call a function with the arguments that it takes of those that are given.

    Args:
        function: The function or class.
        owner: The class that a method was taken from; it is made with the arguments that it takes, unless ``self`` is
            given. None for everything else.
        given: The arguments.
        target: What the user calls the function.
        prepare: Called with what was made of the class, before the method is.

    Returns:
        What it returns; of a method (what was made of the class, what it returns).

    Raises:
        UserError: An argument is missing, or unknown.
    """
    makes = owner is not None and "self" not in given
    first = (_parameters(function) or [])[:1]
    own_names, own_any = _takes(function)
    if owner is not None and first:
        own_names = own_names[1:] if makes else ["self", *own_names[1:]]
    owner_names, owner_any = _takes(owner) if makes else ([], False)
    known = [*own_names, *owner_names]
    for name in given:
        if name not in known and not own_any and not owner_any:
            takes = f"it takes {', '.join(dict.fromkeys(known))}" if known else "it takes no arguments"
            raise UserError(f"{target} has no argument {name}{did_you_mean(name, known)}; {takes}")
    needs = [each for each in needed(function) or [] if each not in given]
    if owner is not None and first:
        needs = [each for each in needs if each != first[0].name]
    of_owner = [each for each in (needed(owner) or []) if each not in given] if makes else []
    if of_owner and set(of_owner) - set(needs):
        needs = ["self", *needs]
    if needs:
        raise UserError(_missing(target, function, owner, needs, given))
    rest = {name: value for name, value in given.items() if name not in known}
    arguments = {name: given[name] for name in own_names if name in given and name != "self"}
    if not makes:
        positional = [given["self"]] if owner is not None and first else []
        return _called(function, positional, {**arguments, **(rest if own_any else {})})
    made = owner(**{name: given[name] for name in owner_names if name in given}, **(rest if not own_any else {}))
    prepare(made)
    return made, _called(function, [made], {**arguments, **(rest if own_any else {})})


def _called(function: Any, positional: list[Any], given: Mapping[str, Any]) -> Any:
    named = dict(given)
    for each in (_parameters(function) or [])[len(positional) :]:
        if each.kind is not each.POSITIONAL_ONLY or each.name not in named:
            break
        positional.append(named.pop(each.name))
    return function(*positional, **named)


def _missing(target: str, function: Any, owner: Any, needs: Sequence[str], given: Mapping[str, Any]) -> str:
    """What is missing, the command that gives it, and a function that does, ready to be pasted."""
    place, _, name = target.rpartition(":")
    before = f" beside {', '.join(given)}" if given else ""
    module = _in_package(Path(place))[1].rpartition(".")[2] if _is_file(place) else place
    top, _, method = name.partition(".")
    every = list(dict.fromkeys([*given, *needs]))
    guesses = {each: _guess(each, function, owner if owner is not None else top, place) for each in every}
    options = " ".join(f"--with {_in_shell(f'{each}={guesses[each].value}')}" for each in needs)
    its = [each for each in every if each != "self"]
    call = f"{f'self.{method}' if 'self' in every else name}({', '.join(f'{each}={each}' for each in its)})"
    if any(each.kind is each.POSITIONAL_ONLY for each in _parameters(function) or [] if each.name != "self"):
        call = f"{call.partition('(')[0]}({', '.join(its)})"
    imports = list(dict.fromkeys(line for each in every for line in guesses[each].imports))
    names = list(dict.fromkeys([top, *(used for each in every for used in guesses[each].names)]))
    model = next((each for each in every if each in {"model", "net", "network", "self"}), None)
    lines = [f"{each} = {guesses[each].code}" for each in every]
    if model is None and (whole := next((each.model for each in guesses.values() if each.model), None)) is not None:
        model, lines = "model", [f"model = {whole}", *lines]
    returned = f"return {model}, {call}" if model else f"return {call}"
    return (
        f"{target} needs {', '.join(needs)}{before}: give "
        f"{'it' if len(needs) == 1 else 'them'} with --with, or name a function that calls it\n\n"
        f"  halflife audit {target} {options}\n\n"
        f"  # or in a file make.py beside it, audited as make.py:make\n"
        + "".join(f"  {line}\n" for line in [*imports, f"from {module} import {', '.join(names)}"])
        + "\n\n  def make():\n"
        + "".join(f"      {line}\n" for line in lines)
        + f"      {returned}"
    )


def _guess(name: str, function: Any, owner: Any, place: str) -> Guess:
    try:
        return Guess.called(place, owner, place) if name == "self" else guess_of(name, function, place)
    except Exception:  # whatever a user's own metaclasses and annotations raise; what is missing is told all the same
        return Guess("...", "...")


def _in_shell(text: str) -> str:
    return text if re.fullmatch(r"[\w@%+=:,./-]+", text) else '"' + text.replace('"', "'") + '"'
