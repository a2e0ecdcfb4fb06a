"""``halflife audit``: which decay a user's own code applies, for people, for machines, and for a CI."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from halflife.errors import UserError

try:
    import typer
    from rich.console import Console
    from typer.core import TyperCommand
except ModuleNotFoundError:  # torch alone
    from halflife.cli.plain import Console, TyperCommand, typer  # type: ignore[assignment, no-redef]

if TYPE_CHECKING:
    from halflife.audit.found import Found
    from halflife.audit.target import Audit

__all__ = ["AuditCommand", "audit_command", "unknown_option"]

EXIT_EXPECTATION = 1
EXIT_USER = 2
ARGUMENTS = "halflife.audit.arguments"  # where the words after -- are kept


class AuditCommand(TyperCommand):
    """A command that leaves the words after ``--`` to the user's script."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Cut the words after ``--`` off, then read the others."""
        end = args.index("--") if "--" in args else len(args)
        ctx.meta[ARGUMENTS] = args[end + 1 :]
        try:
            return super().parse_args(ctx, args[:end])
        except Exception as error:
            unknown = getattr(error, "option_name", None)
            if type(error).__name__ != "NoSuchOption" or unknown is None or getattr(error, "possibilities", None):
                raise
            raise unknown_option(unknown) from None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Show the words after ``--`` as well."""
        return [*super().collect_usage_pieces(ctx), "[-- ARGS...]"]


def unknown_option(option: str) -> UserError:
    """The refusal of an option that the command does not have."""
    return UserError(
        f"audit has no option {option}; options of your script stand after --, as in "
        f"`halflife audit train.py --run -- {option} ...`"
    )


def audit_command(
    ctx: typer.Context,
    target: Annotated[
        str,
        typer.Argument(
            metavar="TARGET",
            help="path/to/file.py:function or package.module:function, which returns the optimizer, best with its model;"
            " with --run the script alone, path/to/train.py",
            show_default=False,
        ),
    ],
    given: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="NAME=VALUE",
            help="An argument of the function: lr=1e-3, model=file.py:make_model, config=conf.yaml; may be repeated",
        ),
    ] = None,
    run: Annotated[
        bool,
        typer.Option("--run", help="Run TARGET as `python TARGET ARGS` does, and stop at its first optimizer step"),
    ] = False,
    as_module: Annotated[
        bool, typer.Option("-m", help="With --run: TARGET is a module, as in `python -m TARGET`")
    ] = False,
    time_limit: Annotated[
        float, typer.Option("--time-limit", metavar="SECONDS", help="With --run: give up after so long without a step")
    ] = 600.0,
    total_steps: Annotated[
        int | None,
        typer.Option("--total-steps", metavar="N", help="Length of the run in steps: warn of half-lives beyond it"),
    ] = None,
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

    The decay is measured by stepping the optimizer that TARGET builds, or a copy of it; its settings are not believed.
    What stands after -- are your script's own arguments.

    The exit code is 0, 1 if an --expect does not hold, and 2 if there was an error.
    """  # noqa: DOC501 - this text is the command's help; `main` turns errors into exit codes
    arguments: list[str] = ctx.meta.get(ARGUMENTS, [])
    if not run and as_module:
        raise UserError(f"-m goes with --run; a function of a module is named {target}:function")
    if run and given:
        raise UserError("--with gives arguments to a function; with --run the script's own arguments stand after --")
    if not time_limit > 0:
        raise UserError(f"--time-limit must be > 0 seconds, got {time_limit:g}")
    if total_steps is not None and total_steps < 1:
        raise UserError(f"--total-steps must be at least 1, got {total_steps}")
    with _output_to_stderr() as (out, own_process):
        from halflife.audit.target import audit, audit_found

        if not run:
            done = audit(target, expect or (), given=given or (), arguments=arguments, total_steps=total_steps)
            code = _show(target, done, out, as_json)
            _note(arguments)
        else:
            from halflife.audit.expectations import parse_expectation
            from halflife.audit.script import run_script
            from halflife.user_code import leave, one_sentence

            wanted = [parse_expectation(text) for text in expect or ()]

            def report(found: Found) -> int:
                subject = f"the optimizer of {target}"
                with one_sentence(subject, None, " while its decay was probed; correct it"):
                    seen = audit_found(found, wanted, total_steps=total_steps, in_place=True)
                shown = _show(target, seen, out, as_json)
                _note(arguments)
                return shown

            try:
                code = run_script(
                    target, arguments, report=report, fail=_print_error,
                    as_module=as_module, time_limit=time_limit, own_process=own_process,
                )  # fmt: skip
            except UserError as error:
                if not own_process:
                    raise
                code = _print_error(error)
            if own_process:  # the script came to its end; what it registered for the end has no say in the exit code
                leave(code)
    if code:
        sys.exit(code)


def _show(target: str, done: Audit, out: TextIO, as_json: bool) -> int:
    """Print what was found; return the exit code."""
    table, checks = done.table, done.checks
    failed = [check for check in checks if not check.holds]
    if as_json:
        document = {
            "target": target,
            "found": done.found.plain(),
            "groups": table.groups,
            "rows": table.rows,
            "schedule": list(done.schedule),
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
        for sentence in (*done.schedule, str(done.found)):
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        for check in checks:
            if check.holds:
                console.print(f"holds: {check.expected}", markup=False, highlight=False, style="green")
        out.flush()
    errors = Console(stderr=True)
    for check in failed:
        errors.print("[red]does not hold:[/] ", end="")
        errors.print(check.sentence, markup=False, highlight=False, soft_wrap=True)
    return EXIT_EXPECTATION if failed else 0


def _note(arguments: list[str]) -> None:
    """Tell of options that may have been meant for the command: the user's own code took them without a word."""
    from halflife.audit.arguments import own_options

    if note := own_options(arguments):
        Console(stderr=True).print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)


def _print_error(error: UserError) -> int:
    errors = Console(stderr=True)
    errors.print("[red]error:[/] ", end="")
    errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
    return EXIT_USER


@contextlib.contextmanager
def _output_to_stderr() -> Iterator[tuple[TextIO, bool]]:
    """Send to standard error what a user's code, its libraries and their subprocesses write to standard output.

    In a process of its own this lasts until the process ends: threads and exit handlers print late. Nor can they change
    the exit code then.

    Yields:
        Where our own output goes, and whether this process is the command's own.
    """
    from halflife.user_code import raise_on_exit

    out: TextIO = sys.stdout
    if (
        sys.__stdout__ is None or out is not sys.__stdout__
    ):  # replaced by who called us: only what Python prints is ours
        with contextlib.redirect_stdout(sys.stderr):
            yield out, False
        return
    raise_on_exit()
    out.flush()
    copy = os.fdopen(os.dup(1), "w", encoding=out.encoding, errors=out.errors)
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    with copy:
        yield copy, True
