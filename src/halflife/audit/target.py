"""``audit``: the explanation of an optimizer that a user's own code builds, and what is expected of it.

The target is ``path/to/train.py:make_optimizer`` or ``package.module:function``; its arguments are given by name.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import inspect
import os
import sys
import textwrap
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType, GeneratorType, ModuleType
from typing import Any

from torch import nn
from torch.optim import Optimizer

from halflife.audit import arguments as arguments_module
from halflife.audit.arguments import (
    attribute_of,
    call_with,
    module_of,
    needed,
    own_options,
    parse_pairs,
    plain,
    value_of,
)
from halflife.audit.expectations import Check, check, parse_expectation
from halflife.audit.explanation import Explanation, explain
from halflife.audit.found import Found, choose, search
from halflife.audit.schedule import schedule_sentences
from halflife.audit.trainer import give_trainer
from halflife.errors import UserError
from halflife.user_code import hidden_arguments, one_sentence, shown_path, without_bytecode

__all__ = ["Audit", "audit", "audit_found", "load"]

FORMS = (
    "an optimizer, or something that has optimizers and models in it: a tuple, a list, a dict, an object with such "
    "attributes, a Lightning module, what its configure_optimizers returns"
)
SLOW_IMPORT = 10.0  # seconds
RUNNERS = (__file__, arguments_module.__file__)  # what calls a user's code


@dataclasses.dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        table: The explanation.
        checks: One check for each expectation.
        found: What was audited.
        schedule: What the schedulers do to the decay over the run, in sentences.
    """

    table: Explanation
    checks: list[Check]
    found: Found
    schedule: tuple[str, ...] = ()


def audit(
    target: str,
    expected: Sequence[str] = (),
    *,
    given: Sequence[str] = (),
    arguments: Sequence[str] = (),
    total_steps: float | None = None,
) -> Audit:
    """Build what a target builds, explain it, and compare it with what is expected.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``; see `load`.
        expected: Such as ``"decoupled:0.1"`` (for every group that decays) or ``"matrices=decoupled:0.1"``.
        given: The function's arguments, as ``NAME=VALUE``.
        arguments: What ``sys.argv`` holds behind the name of the file.
        total_steps: The length of the run; see `halflife.explain`.

    Returns:
        The explanation, one check for each expectation, and what was found.

    Raises:
        UserError: If the target cannot be loaded or explained, or an expectation cannot be read.
    """
    wanted = [parse_expectation(text) for text in expected]  # a typing mistake is told before the user's code runs
    found = load(target, given=given, arguments=arguments, total_steps=total_steps)
    with one_sentence(f"the optimizer of {target}", None, " while its decay was probed; correct it", runner=__file__):
        return audit_found(found, wanted, total_steps=total_steps)


def audit_found(
    found: Found, wanted: Sequence[Any], *, total_steps: float | None = None, in_place: bool = False
) -> Audit:
    """Explain what was found, and compare it with what is expected.

    Args:
        found: Models and optimizers.
        wanted: Expectations, as `parse_expectation` reads them.
        total_steps: The length of the run.
        in_place: Whether the optimizers themselves may be stepped.

    Returns:
        The explanation, one check for each expectation, and what was found.
    """
    table = explain(found.model, found.optimizers, total_steps=total_steps, in_place=in_place)
    checks = check(table, wanted, has_model=found.model is not None)
    return Audit(table, checks, found, tuple(schedule_sentences(found, table, total_steps)))


def load(
    target: str,
    *,
    given: Sequence[str] = (),
    arguments: Sequence[str] = (),
    total_steps: float | None = None,
) -> Found:
    """Run a user's function and find the models and the optimizers in what it returns.

    A file is imported under its own name, with its folder first on ``sys.path``, as ``python file.py`` does; its
    ``__name__`` is not ``"__main__"``. A module is imported with the current folder on ``sys.path``, as ``python -m``
    does. ``sys.argv`` names the place alone, and ``arguments`` behind it.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``. An optimizer or a model that exists already
            is taken as it is.
        given: The function's arguments, as ``NAME=VALUE``; see `halflife.audit.arguments.value_of`.
        arguments: What ``sys.argv`` holds behind the name of the place.
        total_steps: The length of the run, for what asks a Lightning trainer for it.

    Returns:
        The models and optimizers, and what is left out.

    Raises:
        UserError: If the target is not there, lacks arguments, raises, or returns something else.
    """
    texts = parse_pairs(given)
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        run = f", or run the whole script up to its first step: halflife audit {target} --run" if not colon else ""
        raise UserError(
            f"the target is {target!r}, expected path/to/file.py:function or package.module:function; "
            f"name the function that builds the optimizer{run}"
        )
    is_file = place.endswith(".py") or os.sep in place
    path = Path(place)
    if is_file and not path.is_file():
        if path.is_dir():
            raise UserError(f"{place} is a folder; give the path of the file in it that builds the optimizer")
        raise UserError(f"there is no file {place}; give the path of the file that builds the optimizer")
    file, hint = path if is_file else None, own_options(arguments)
    end = f"; correct it, or name another function{hint and f'; {hint}'}"
    with hidden_arguments(place, arguments), without_bytecode(), _exit_code_2(target, hint):
        with one_sentence(f"importing {place}", file, end, runner=RUNNERS), _slow(place, file):
            module = module_of(place)
        file = file or _file_of(module)
        arguments_given = {key: _given(key, text) for key, text in texts.items()}
        named = attribute_of(module, name, place)
        with one_sentence(target, file, _misread(texts, arguments_given) + end, runner=RUNNERS):
            value = plain(_made(named, module, name, arguments_given, target, total_steps), target)
            things = search([*_named_parts(named, value), *arguments_given.items()])
    found = choose(things, alive=True)
    if not found.optimizers:
        unread = f" ({'; '.join(things.unread)})" if things.unread else ""
        raise UserError(f"{target} gave {_described(value, things.models)}{unread}; expected {FORMS}")
    return found


@contextlib.contextmanager
def _exit_code_2(target: str, hint: str) -> Iterator[None]:
    """Tell a user's code that does not get the flags that it wants from other code that ends the process."""
    try:
        yield
    except UserError as error:
        if not isinstance(error.__cause__, SystemExit) or error.__cause__.code != 2:
            raise
        what = hint or f"pass its own arguments after --, as in `halflife audit {target} -- --data DIR`"
        raise UserError(
            f"{target} ended with exit code 2, as scripts do that get wrong arguments (what it said stands above): {what}"
        ) from None


def _given(name: str, text: str) -> Any:
    """Return the value of an argument; what its own code raises is told as its fault."""
    place = text.partition(":")[0]
    file = Path(place) if place.endswith(".py") else None
    with one_sentence(f"--with {name}={text}", file, "; correct it, or give another value", runner=RUNNERS):
        return value_of(text, name)


def _misread(texts: Mapping[str, str], values: Mapping[str, Any]) -> str:
    """Return what may be another thing than was meant: a class that nobody has called, a text that is no number."""
    classes = [name for name, value in values.items() if isinstance(value, type)]
    as_texts = [name for name, value in values.items() if isinstance(value, str) and value == texts[name].strip()]
    said = [f"{name} is the class {values[name].__name__}, which nobody has called" for name in classes]
    said += [f"{name} is the text {values[name]!r}" for name in as_texts]
    return f" ({', '.join(said)})" if said else ""


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return Path(file) if isinstance(file, str) else None


def _made(value: Any, module: Any, name: str, given: Mapping[str, Any], target: str, total_steps: float | None) -> Any:
    """Call what was named, if it is to be called; a Lightning module is asked for its optimizers."""
    if isinstance(value, nn.Module | Optimizer) or not callable(value):
        if given:
            raise UserError(f"{target} is an object and takes no arguments; leave --with away")
    else:
        owner: Any = module
        for part in name.split(".")[:-1]:
            owner = getattr(owner, part)
        is_method = isinstance(owner, type) and inspect.isfunction(
            inspect.getattr_static(owner, name.rpartition(".")[2])
        )
        give_trainer(given.get("self"), total_steps)
        value = call_with(
            value, owner if is_method else None, given, target, lambda made: give_trainer(made, total_steps)
        )
    configure = getattr(value, "configure_optimizers", None)
    if isinstance(value, nn.Module) and callable(configure) and not search([("", value)]).optimizers:
        missing = needed(configure)
        if missing:
            raise UserError(
                f"configure_optimizers of {type(value).__name__} needs {', '.join(missing)}: name it as "
                f"{target}.configure_optimizers, and give its arguments with --with"
            )
        give_trainer(value, total_steps)
        return value, configure()
    return value


def _named_parts(function: Any, value: Any) -> list[tuple[str, Any]]:
    """Return the parts of a tuple with the names that the function's ``return G, D, opt_G`` has for them."""
    if type(value) is not tuple or not inspect.isfunction(function):
        return [("", value)]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, SyntaxError, TypeError):
        return [("", value)]
    returned = [
        node.value.elts for node in ast.walk(tree) if isinstance(node, ast.Return) and isinstance(node.value, ast.Tuple)
    ]
    names = [[each.id if isinstance(each, ast.Name) else "" for each in elements] for elements in returned]
    fitting = [each for each in names if len(each) == len(value)]
    return list(zip(fitting[-1], value, strict=True)) if fitting else [("", value)]


@contextlib.contextmanager
def _slow(place: str, path: Path | None) -> Iterator[None]:
    """Say so when an import takes long: some files train when they are imported."""
    over, main = threading.Event(), threading.get_ident()

    def wait() -> None:
        if over.wait(SLOW_IMPORT):
            return
        where, frame = "", sys._current_frames().get(main)
        while frame is not None:
            each: FrameType = frame
            if path is not None and each.f_code.co_filename == str(path.absolute()):
                where = f" (it is at line {each.f_lineno} of {shown_path(str(path))})"
                break
            frame = each.f_back
        print(
            f"{place} is still being imported after {SLOW_IMPORT:g} s{where}: if it trains when it is imported, stop "
            f"this and use `halflife audit --run {place}`, which ends at the first step",
            file=sys.stderr,
            flush=True,
        )

    threading.Thread(target=wait, daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _described(value: Any, models: Sequence[tuple[str, nn.Module]]) -> str:
    if isinstance(value, nn.Module):
        return f"the model {type(value).__name__} without an optimizer"
    if isinstance(value, type):
        return f"the class {value.__name__}, which nobody has called"
    if isinstance(value, GeneratorType):
        return "a generator"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    if value is None:
        return "None"
    return f"an object of type {type(value).__name__}{' with a model and no optimizer' if models else ''}"
