"""``--json``: one document on standard output and nothing else there, errors included."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Annotated, Any, TextIO

from halflife.cli.console import PlainConsole, typer
from halflife.errors import HalflifeError, RunFailedError

__all__ = [
    "EXIT_USER",
    "JsonOption",
    "StoppedError",
    "drop_output",
    "explained",
    "one_document",
    "open_streams",
    "output_to_stderr",
    "say_error",
    "told",
    "write",
]

VERSION = 1  # of the form of documents; raised when a key goes or means something else
EXIT_USER, EXIT_RUN_FAILED, EXIT_INTERRUPTED = 2, 3, 130

JsonOption = Annotated[bool, typer.Option("--json", help="Write one JSON document to standard output and nothing else")]


class StoppedError(HalflifeError):
    """The user pressed Ctrl-C; the message says what was kept."""


def explained(error: BaseException) -> tuple[str, int] | None:
    """What to say of an error, and the exit code; None for a fault of halflife's own."""
    if isinstance(error, OSError) and error.filename is not None:  # whatever is not explained where it happens
        what = f"{error.filename} cannot be used ({error.strerror}): make it accessible, or name another path"
        return what, EXIT_USER
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return "there is no room left to write the output: make some, or write it to another place", EXIT_USER
    if isinstance(error, HalflifeError):
        codes: dict[type[BaseException], int] = {RunFailedError: EXIT_RUN_FAILED, StoppedError: EXIT_INTERRUPTED}
        return str(error), codes.get(type(error), EXIT_USER)
    if isinstance(error, KeyboardInterrupt):
        return "stopped", EXIT_INTERRUPTED
    return None


def say_error(words: str, code: int) -> None:
    """Print an error to standard error; that the user has stopped the command is none."""
    console = PlainConsole(stderr=True)
    if code != EXIT_INTERRUPTED:
        console.print("[red]error:[/] ", end="")
    console.print(words, markup=False, highlight=False, soft_wrap=True)


def write(out: TextIO, fields: Mapping[str, Any]) -> None:
    """Write a document: strict JSON, in ASCII, with the version of its form."""
    print(json.dumps(_strict({"version": VERSION, **fields}), indent=1, allow_nan=False), file=out, flush=True)


def _strict(value: Any) -> Any:
    """A value with null for numbers that JSON does not have."""
    if isinstance(value, float):
        return float(value) if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(key): _strict(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(each) for each in value]
    if value is None or isinstance(value, str | int):
        return value
    return _strict(value.item()) if hasattr(value, "item") else str(value)


@contextlib.contextmanager
def one_document(wanted: bool) -> Iterator[dict[str, Any]]:
    """Collect what a command says in one document, and write it at the end, also where that is an error.

    What is printed meanwhile goes to standard error. Without ``--json`` nothing happens here.

    Args:
        wanted: Whether ``--json`` was given.

    Yields:
        The fields, to be filled.

    Raises:
        Exit: There was an error, which is said.
        BaseException: A fault of halflife's own, which is not.
    """
    fields: dict[str, Any] = {}
    if not wanted:
        yield fields
        return
    with output_to_stderr() as (out, _):
        try:
            yield fields
        except typer.Exit:
            write(out, fields)
            raise
        except BaseException as error:
            if (said := explained(error)) is None:
                raise
            say_error(*said)
            write(out, {**fields, "error": said[0]})
            raise typer.Exit(said[1]) from None
        write(out, fields)


@contextlib.contextmanager
def output_to_stderr() -> Iterator[tuple[TextIO, bool]]:
    """Send to standard error what anybody writes to standard output: libraries, subprocesses, a user's code.

    In a process of its own this lasts until the process ends: threads and exit handlers print late.

    Yields:
        Where our own output goes, and whether this process is the command's own.
    """
    out: TextIO = sys.stdout
    if (
        sys.__stdout__ is None or out is not sys.__stdout__
    ):  # replaced by who called us: only what Python prints is ours
        with contextlib.redirect_stdout(sys.stderr):
            yield out, False
        return
    out.flush()
    copy = os.fdopen(os.dup(1), "w", encoding=out.encoding, errors=out.errors)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    try:
        yield copy, True
    finally:
        with contextlib.suppress(OSError):  # what was written was flushed, and told if it could not be
            copy.close()


def told(command: Callable[[], int | None], as_json: bool) -> None:
    """Run a command, and end the process with its exit code; an error is one sentence on standard error.

    Args:
        command: Returns an exit code, or raises.
        as_json: Whether an error is a document on standard output, too.
    """
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch's, where numpy is not installed
    open_streams()
    try:
        code = command()
        if code:
            sys.exit(code)
    except Exception as error:
        said = explained(error)
        if said is None and as_json and hasattr(error, "format_message"):  # typer's, of what stands in the command line
            said = error.format_message(), EXIT_USER
        if said is None:
            raise
        # The process ends now, and Ctrl-C again would only add a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        is_full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        if is_full:
            drop_output()
        say_error(*said)
        if as_json and not is_full:
            write(sys.stdout, {"error": said[0]})
        sys.exit(said[1])


def drop_output() -> None:
    """Let what is left to be written at the end of the process go nowhere: nobody reads it, or there is no room."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def open_streams() -> None:
    """Open what who started the command has closed, so that no file gets its number, and let every text be written."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free
        if getattr(sys, name) is None:
            stream = open(number, "w" if number else "r", closefd=False)  # noqa: SIM115 - until the process ends
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)
        if number and isinstance(getattr(sys, name), io.TextIOWrapper):
            # Paths may hold bytes that are no text, and a terminal may know ASCII only.
            getattr(sys, name).reconfigure(errors="backslashreplace")
