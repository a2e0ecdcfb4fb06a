"""``halflife audit``: which decay a user's own code applies, for people, for machines, and for a CI."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Annotated, TextIO

import typer
from rich.console import Console

__all__ = ["audit_command"]

EXIT_EXPECTATION = 1


def audit_command(
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="path/to/file.py:function or package.module:function, returning an optimizer or (model, optimizer)",
        ),
    ],
    expect: Annotated[
        list[str] | None,
        typer.Option(
            "--expect",
            metavar="[KEY=]LAW:LAM",
            help="Fail unless this holds: decoupled:0.1 for all that decays, matrices=decoupled:0.1, norms=none;"
            " may be repeated",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Write one JSON document to standard output and nothing else")
    ] = False,
) -> None:
    """Show which decay your own code applies: to which parameters, by which law, and how fast.

    The optimizer that TARGET builds is copied with small parameters, and the copy is stepped: the law is measured.
    The exit code is 1 if an --expect does not hold.
    """  # noqa: DOC501 - this text is the command's help; `main` turns errors into exit codes
    with _output_to_stderr() as out:
        from halflife.audit.target import audit

        table, checks = audit(target, expect or ())
        failed = [check for check in checks if not check.holds]
        if as_json:
            document = {
                "target": target,
                "groups": table.groups,
                "rows": table.rows,
                "warnings": [dataclasses.asdict(warning) for warning in table.warnings],
                "expectations": [dataclasses.asdict(check) for check in checks],
                "ok": not failed,
            }
            print(json.dumps(document, indent=1, allow_nan=False), file=out, flush=True)
        else:
            console = Console(file=out)
            if console.is_terminal:
                console.print(table)
            else:  # a log or a pipe has no width: a name on one line can be searched for
                print(table, file=out)
            for check in checks:
                if check.holds:
                    console.print(f"holds: {check.expected}", markup=False, highlight=False, style="green")
    if failed:
        errors = Console(stderr=True)
        for check in failed:
            errors.print("[red]does not hold:[/] ", end="")
            errors.print(check.sentence, markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(EXIT_EXPECTATION)


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[TextIO]:
    """Send to standard error what a user's code, its libraries and their subprocesses write to standard output.

    In a process of its own this lasts until the process ends: threads and exit handlers print late. Nor can they change
    the exit code then.

    Yields:
        Where our own output goes.
    """
    from halflife.user_code import raise_on_exit

    out: TextIO = sys.stdout
    if (
        sys.__stdout__ is None or out is not sys.__stdout__
    ):  # replaced by who called us: only what Python prints is ours
        with contextlib.redirect_stdout(sys.stderr):
            yield out
        return
    raise_on_exit()
    out.flush()
    copy = os.fdopen(os.dup(1), "w", encoding=out.encoding, errors=out.errors)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with copy:
        yield copy
