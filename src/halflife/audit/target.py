"""``audit``: the explanation of an optimizer that a user's own code builds, and what is expected of it.

The target is ``path/to/train.py:make_optimizer`` or ``package.module:function``; it is called without arguments.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from torch import nn
from torch.optim import Optimizer

from halflife.audit.expectations import Check, check, parse_expectation
from halflife.audit.explanation import Explanation, explain
from halflife.errors import UserError

__all__ = ["audit", "load", "raise_on_exit"]

FORMS = (
    "an optimizer, a list of them, (model, optimizer), (model, [optimizers]), or a Lightning module; "
    "configure_optimizers forms are fine"
)


def audit(target: str, expected: Sequence[str] = ()) -> tuple[Explanation, list[Check]]:
    """Build what a target builds, explain it, and compare it with what is expected.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``; see `load`.
        expected: Such as ``"decoupled:0.1"`` (for every group that decays) or ``"matrices=decoupled:0.1"``.

    Returns:
        The explanation, and one check for each expectation.

    Raises:
        UserError: If the target cannot be loaded or explained, or an expectation cannot be read.
    """
    wanted = [parse_expectation(text) for text in expected]  # a typing mistake is told before the user's code runs
    model, optimizers = load(target)
    with _one_sentence(f"the optimizer of {target}", None, " while its decay was probed; correct it"):
        table = explain(model, optimizers)
    return table, check(table, wanted, has_model=model is not None)


class _LeftError(BaseException):
    """A user's code wanted to end this process at once."""


def raise_on_exit() -> Callable[[], None]:
    """Let ``os._exit`` and ``os.exec*`` raise in this process, where they would end it without a word and with any code.

    Processes that are forked from here end as ever.

    Returns:
        What puts them back.
    """
    process, originals = os.getpid(), {name: getattr(os, name) for name in ("_exit", "execv", "execve")}

    def raising(name: str) -> Callable[..., NoReturn]:
        def leave(*arguments: Any) -> NoReturn:
            if os.getpid() != process:
                originals[name](*arguments)
            what = os.fsdecode(arguments[0]) if isinstance(arguments[0], bytes) else arguments[0]
            raise _LeftError(f"os.{name}({what!r})")

        return leave

    for name in originals:
        setattr(os, name, raising(name))

    def restore() -> None:
        for name, original in originals.items():
            setattr(os, name, original)

    return restore


def load(target: str) -> tuple[nn.Module | None, list[Optimizer]]:
    """Run a user's function and find the model and the optimizers in what it returns.

    A file is imported under its own name, with its folder first on ``sys.path``, as ``python file.py`` does, and with
    ``sys.argv`` that names it alone; its ``__name__`` is not ``"__main__"``. A module is imported with the current
    folder on ``sys.path``, as ``python -m`` does.

    Args:
        target: ``path/to/file.py:function`` or ``package.module:function``. The function is called without
            arguments; an optimizer or a model that exists already is taken as it is.

    Returns:
        The model, None if there is none in it, and the optimizers.

    Raises:
        UserError: If the target is not there, needs arguments, raises, or returns something else.
    """
    place, colon, name = target.rpartition(":")
    if not colon or not place or not name:
        raise UserError(
            f"the target is {target!r}, expected path/to/file.py:function or package.module:function; "
            "name the function that builds the optimizer"
        )
    is_file = place.endswith(".py") or os.sep in place
    path = Path(place)
    if is_file and not path.is_file():
        raise UserError(f"there is no file {place}; give the path of the file that builds the optimizer")
    with _arguments(place), _one_sentence(target, path if is_file else None, "; correct it, or name another function"):
        module = _import_file(path) if is_file else _import_module(place)
        value = _attribute(module, name, place)
        if callable(value) and not isinstance(value, nn.Module | Optimizer):
            _check_arguments(value, target)
            value = value()
        found = _found_in(value)
    if found is None:
        raise UserError(f"{target} gave {_described(value)}; expected {FORMS}")
    return found


@contextlib.contextmanager
def _arguments(place: str) -> Iterator[None]:
    """Hide halflife's own arguments from a user's code that reads the command line."""
    before = sys.argv
    sys.argv = [place]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def _one_sentence(subject: str, path: Path | None, end: str) -> Iterator[None]:
    """Turn what a user's code raises, or its wish to end the process, into one sentence that names the line."""
    restore = raise_on_exit()
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename)]
        theirs = [frame for frame in frames if path is not None and _same(frame.filename, path)]
        last = (theirs or frames)[-1] if frames else None
        where = f" ({_shown(last.filename)}, line {last.lineno})" if last else ""
        if isinstance(error, SyntaxError) and error.filename:
            where = f" ({_shown(error.filename)}, line {error.lineno})"
        raise UserError(f"{subject} {_what_happened(error)}{where}{end}") from error
    finally:
        restore()


def _what_happened(error: BaseException) -> str:
    if isinstance(error, _LeftError):
        return f"called {error}"
    if isinstance(error, SystemExit):
        return f"called exit({error.code!r})"
    message = str(error.msg if isinstance(error, SyntaxError) else error).strip().partition("\n")[0]
    return f"raised {type(error).__name__}{f': {message}' if message else ''}"


def _is_machinery(filename: str) -> bool:
    return filename.startswith("<frozen") or _same(filename, Path(__file__)) or filename == importlib.__file__


def _same(filename: str, path: Path) -> bool:
    return os.path.realpath(filename) == os.path.realpath(path)


def _shown(filename: str) -> str:
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def _import_file(path: Path) -> ModuleType:
    folder = str(path.resolve().parent)
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    # A file may have the name of a module that is in use already (test.py, random.py): that one stays.
    name = path.stem if path.stem not in sys.modules else f"_audited_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UserError(f"{path} cannot be imported; expected a Python file, its name ending in .py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _import_module(name: str) -> ModuleType:
    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise UserError(
                f"there is no module {error.name}; give package.module:function as Python would import it from here, "
                "or path/to/file.py:function"
            ) from None
        raise


def _attribute(module: ModuleType, name: str, place: str) -> Any:
    value: Any = module
    for part in name.split("."):
        if not hasattr(value, part):
            functions = [key for key, each in vars(module).items() if inspect.isfunction(each) and key[0] != "_"]
            there = f"; there are {', '.join(functions[:8])}" if functions else ""
            raise UserError(f"{place} has no {name}{there}: name the function that builds the optimizer")
        value = getattr(value, part)
    return value


def _check_arguments(function: Any, target: str) -> None:
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # some builtins have none
        return
    needed = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind not in {parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD}
    ]
    if needed:
        raise UserError(
            f"{target} needs arguments ({', '.join(needed)}); write a function without arguments that calls it, "
            "and name that one"
        )


def _found_in(value: Any) -> tuple[nn.Module | None, list[Optimizer]] | None:
    """Return the model and the optimizers in a value; None if there is no optimizer in it."""
    configure = getattr(value, "configure_optimizers", None)
    if isinstance(value, nn.Module):
        optimizers = _optimizers_in(configure()) if callable(configure) else None
        return (value, optimizers) if optimizers else None
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 1:
        first, second = value[:2]
        for model, rest in ((first, second), (second, first)):
            if isinstance(model, nn.Module):
                optimizers = _optimizers_in(rest)
                return (model, optimizers) if optimizers else None
    model = value.get("model") if isinstance(value, Mapping) else None
    optimizers = _optimizers_in(value)
    return (model if isinstance(model, nn.Module) else None, optimizers) if optimizers else None


def _optimizers_in(value: Any) -> list[Optimizer]:
    """Return the optimizers in any form that Lightning's ``configure_optimizers`` may answer with."""
    if isinstance(value, Optimizer):
        return [value]
    if isinstance(value, Mapping):
        return _optimizers_in(value.get("optimizer"))
    if isinstance(value, Sequence) and not isinstance(value, str):
        # ([optimizers], [schedulers]) has no optimizer in its second part, so that nothing is found there.
        return [optimizer for each in value for optimizer in _optimizers_in(each)]
    return []


def _described(value: Any) -> str:
    if isinstance(value, nn.Module):
        return f"the model {type(value).__name__} without an optimizer"
    if isinstance(value, type):
        return f"the class {value.__name__}, which nobody has called"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {', '.join(type(each).__name__ for each in value) or 'nothing'}"
    return "None" if value is None else f"an object of type {type(value).__name__}"
