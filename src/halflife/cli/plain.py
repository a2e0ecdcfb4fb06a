"""``halflife audit`` with torch alone: where typer and rich are not installed, argparse reads the words and ``print`` prints.

The options are stated once, in the annotations of `halflife.cli.audit.audit_command`. What stands in for typer there
keeps what an annotation says; what stands in for rich prints without colours.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, NoReturn, TextIO

from halflife.errors import UserError

__all__ = ["Console", "TyperCommand", "main", "typer"]

TyperCommand = object


def _keep(*names: str, **about: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    said = {key: about[key] for key in ("metavar", "help") if key in about}
    return names, said | {"help": said["help"].replace("%", "%%")}  # argparse fills in what stands after a %


typer = SimpleNamespace(Argument=_keep, Option=_keep, Context=object, Exit=SystemExit)


class Console:
    """What `halflife.cli.audit` uses of rich's Console."""

    is_terminal = False

    def __init__(self, *, file: TextIO | None = None, stderr: bool = False) -> None:
        self.file = file or (sys.stderr if stderr else sys.stdout)

    def print(self, text: object, *, markup: bool = True, end: str = "\n", **_: Any) -> None:
        """Print, without the colours of the markup, and with control characters written out."""
        from halflife.cli.console import plain

        words = plain(re.sub(r"\[/?[a-z]*\]", "", str(text)) if markup else str(text))
        print(words, end=end, file=self.file, flush=True)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; `{self.prog} --help` shows the options")


def _parser(command: Callable[..., None], name: str) -> _Parser:
    """Return a parser of the options that a command of typer has in its annotations."""
    parser = _Parser(
        prog=f"halflife {name}",
        description=inspect.getdoc(command),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    defaults = inspect.signature(command).parameters
    for key, hint in typing.get_type_hints(command, include_extras=True).items():
        if typing.get_origin(hint) is not typing.Annotated:  # the context, the answer
            continue
        kind, (names, about) = typing.get_args(hint)
        default = defaults[key].default
        if default is inspect.Parameter.empty:
            parser.add_argument(key, **about)
            continue
        names = names or ("--" + key.replace("_", "-"),)
        if kind is bool:
            parser.add_argument(*names, dest=key, action="store_true", help=about["help"])
        elif kind == list[str] | None:
            parser.add_argument(*names, dest=key, action="append", default=default, **about)
        else:
            parts = [part for part in typing.get_args(kind) or (kind,) if part is not type(None)]
            parser.add_argument(*names, dest=key, type=parts[0], default=default, **about)
    return parser


def main() -> None:
    """Run ``halflife audit``; a mistake of the user's is one sentence on standard error and exit code 2."""
    from halflife.cli.audit import ARGUMENTS, audit_command, unknown_option
    from halflife.cli.documents import told

    words = sys.argv[2:]
    end = words.index("--") if "--" in words else len(words)

    def run() -> None:
        given, unknown = _parser(audit_command, "audit").parse_known_args(words[:end])
        if unknown:
            raise unknown_option(unknown[0])
        context: Any = SimpleNamespace(meta={ARGUMENTS: words[end + 1 :]})
        audit_command(context, **vars(given))

    told(run, "--json" in words[:end])
