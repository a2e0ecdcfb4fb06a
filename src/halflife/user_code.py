"""Code of the user's: a file that is imported because its user named it, and what it raises in one sentence.

``halflife audit train.py:make_optimizer`` and ``halflife study run my_file.py:STUDY`` run such code.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from halflife.errors import UserError

__all__ = [
    "hidden_arguments",
    "import_file",
    "leave",
    "one_sentence",
    "raise_on_exit",
    "shown_path",
    "tell",
    "told_at_the_end",
    "without_bytecode",
]

_exit_at_once = os._exit  # as it is before `raise_on_exit`


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


_told: list[tuple[int, Callable[[int], Any]]] = []  # for which process, and who is told its exit code


@contextlib.contextmanager
def told_at_the_end(listen: Callable[[int], Any]) -> Iterator[None]:
    """Let somebody hear the exit code of this process, once, from `tell` or `leave`."""
    _told.append((os.getpid(), listen))
    yield
    _told.clear()


def tell(code: int) -> int:
    """Tell whoever wants to hear the exit code of this process, and return it."""
    for process, listen in _told:
        if process == os.getpid():  # not one that was forked from it
            listen(code)
    _told.clear()
    return code


def leave(code: int) -> NoReturn:
    """End this process now, whatever a user's code has planned for its end; what was printed is written first."""
    tell(code)
    for stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(Exception):  # closed, or nobody reads it
            if stream is not None:
                stream.flush()
    _exit_at_once(code)


@contextlib.contextmanager
def without_bytecode() -> Iterator[None]:
    """Write no ``__pycache__`` into the folders of a user's code, here and in the processes that it starts."""
    before, inherited = sys.dont_write_bytecode, os.environ.get("PYTHONDONTWRITEBYTECODE")
    sys.dont_write_bytecode = True
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    try:
        yield
    finally:
        sys.dont_write_bytecode = before
        if inherited is None:
            os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
        else:
            os.environ["PYTHONDONTWRITEBYTECODE"] = inherited


@contextlib.contextmanager
def hidden_arguments(place: str, arguments: Sequence[str] = ()) -> Iterator[None]:
    """Hide halflife's own arguments from a user's code that reads the command line; it reads its own, if any."""
    before = sys.argv
    sys.argv = [place, *arguments]
    try:
        yield
    finally:
        sys.argv = before


@contextlib.contextmanager
def one_sentence(
    subject: str, path: Path | None, end: str, *, runner: str | tuple[str, ...] = __file__
) -> Iterator[None]:
    """Turn what a user's code raises, or its wish to end the process, into one sentence that names the line.

    Args:
        subject: What was run, in words.
        path: The user's file, if one was named. The last line in it is told, or in a file beside it or below the current
            folder; if there is none, the last line of any file.
        end: What to do, in words.
        runner: The file, or files, of halflife that run the user's code; their lines are not named.

    Yields:
        Nothing.

    Raises:
        UserError: The user's code raised something.
        KeyboardInterrupt: The user stopped it.
    """
    restore = raise_on_exit()
    try:
        yield
    except (UserError, KeyboardInterrupt):
        raise
    except BaseException as error:
        frames = [
            frame for frame in traceback.extract_tb(error.__traceback__) if not _is_machinery(frame.filename, runner)
        ]
        theirs = [frame for frame in frames if _is_own(frame.filename, path)]
        last = (theirs or frames)[-1] if frames else None
        where = f" ({shown_path(last.filename)}, line {last.lineno})" if last else ""
        if isinstance(error, SyntaxError) and error.filename and os.path.isfile(error.filename):
            where = f" ({shown_path(error.filename)}, line {error.lineno})"
        if isinstance(error, ModuleNotFoundError) and error.name:
            end = _what_to_import(error.name, end)
        if "ellipsis" in str(error):
            end = "; write values in the place of the dots (...)"
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


def _what_to_import(name: str, end: str) -> str:
    """Return the end of a sentence on a module that is not there: it is seldom the line that has to be corrected."""
    before, correct, _ = end.partition("; correct it")
    if not correct:
        return end
    top = name.partition(".")[0]
    if os.path.isdir(top) or os.path.isfile(f"{top}.py"):
        return f"{before}; {top} lies in the current folder, which is searched if a module is named, as package.module"
    return f"{before}; install it in the environment of halflife ({sys.prefix}), or correct the import"


def _is_machinery(filename: str, runner: str | tuple[str, ...]) -> bool:
    runners = (runner,) if isinstance(runner, str) else runner
    return filename.startswith("<frozen") or filename in {__file__, *runners, importlib.__file__, contextlib.__file__}


def _is_own(filename: str, path: Path | None) -> bool:
    """Return whether a file is the user's: the one that was named, or one beside it or below here that nobody installed."""
    name = os.path.realpath(filename)
    if path is not None and name == os.path.realpath(path):
        return True
    not_theirs = (os.path.dirname(os.path.realpath(os.__file__)), os.path.dirname(os.path.realpath(__file__)))
    if not os.path.isfile(name) or {"site-packages", "dist-packages"} & set(Path(name).parts):
        return False
    folders = {os.getcwd()} | ({os.path.dirname(os.path.realpath(path))} if path is not None else set())
    return _is_below(name, *folders) and not _is_below(name, *not_theirs)


def _is_below(name: str, *folders: str) -> bool:
    return any(name.startswith(os.path.join(os.path.realpath(folder), "")) for folder in folders)


def shown_path(filename: str) -> str:
    """Return a path as it is read best: from the current folder, where it lies below it."""
    relative = os.path.relpath(filename)
    return filename if relative.startswith("..") else relative


def import_file(path: Path, name: str, source: bytes | None = None) -> ModuleType:
    """Import a file as the module ``name``, with its folder first on ``sys.path``, as ``python file.py`` does.

    Args:
        path: The file.
        name: What ``sys.modules`` knows it by; a module of that name is replaced.
        source: What it holds (``None``: it is read).

    Returns:
        The module.
    """
    folder = str(path.resolve().parent)
    if folder not in sys.path[:1]:
        sys.path.insert(0, folder)
    module = importlib.util.module_from_spec(importlib.machinery.ModuleSpec(name, None, origin=str(path)))
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses and pickle look their module up
    try:
        # Compiled here, because a cached .pyc of a file that was edited within a second may be of the text before.
        exec(
            compile(path.read_bytes() if source is None else source, str(path), "exec", dont_inherit=True), vars(module)
        )
    except BaseException:
        del sys.modules[name]
        raise
    return module
