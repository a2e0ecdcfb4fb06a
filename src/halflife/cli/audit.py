"""``halflife audit``: which decay a user's own code applies, for people, for machines, and for a CI."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, TextIO

from halflife.cli.apart import run_apart
from halflife.cli.console import PlainConsole, TyperCommand, plain, typer
from halflife.cli.documents import EXIT_USER, JsonOption, explained, output_to_stderr, say_error, write
from halflife.errors import UserError
from halflife.user_code import raise_on_exit

if TYPE_CHECKING:
    from halflife.audit.found import Found
    from halflife.audit.target import Audit

__all__ = ["AuditCommand", "audit_command", "unknown_option"]

EXIT_EXPECTATION = 1
LONGEST = 1e9  # seconds that a thread can wait
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
    as_json: JsonOption = False,
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
    if not 0 < time_limit <= LONGEST:
        raise UserError(f"--time-limit must be > 0 and at most {LONGEST:g} seconds, got {time_limit:g}")
    if total_steps is not None and total_steps < 1:
        raise UserError(f"--total-steps must be at least 1, got {total_steps}")
    with contextlib.ExitStack() as stack:

        def body() -> int:
            out, own_process = stack.enter_context(output_to_stderr())
            if own_process:
                raise_on_exit()
            shown = _Shown(target, out, as_json)
            try:
                if run:
                    limits = {"as_module": as_module, "time_limit": time_limit, "own_process": own_process}
                    return _of_script(shown, arguments, expect or (), total_steps, limits)
                return _of_function(shown, arguments, expect or (), total_steps, given or ())
            except (Exception, KeyboardInterrupt) as error:
                if not own_process or (said := explained(error)) is None:
                    raise
                return shown.error(*said)

        # Called from elsewhere, as by a test, this process is not ours to fork.
        code = run_apart(target, body) if sys.stdout is sys.__stdout__ else body()
        if code:
            raise typer.Exit(code)


def _of_function(
    shown: _Shown, arguments: list[str], expect: Sequence[str], total_steps: int | None, given: Sequence[str]
) -> int:
    from halflife.audit.target import audit
    from halflife.user_code import leave

    process = os.getpid()
    try:
        done = audit(shown.target, expect, given=given, arguments=arguments, total_steps=total_steps)
    finally:
        if os.getpid() != process:  # the user's code has forked, and come back here twice
            leave(0)
    return shown.audit(done, arguments)


def _of_script(
    shown: _Shown, arguments: list[str], expect: Sequence[str], total_steps: int | None, limits: dict[str, Any]
) -> int:
    from halflife.audit.expectations import parse_expectation
    from halflife.audit.script import run_script
    from halflife.audit.target import audit_found
    from halflife.user_code import leave, one_sentence

    wanted = [parse_expectation(text) for text in expect]

    def report(found: Found) -> int:
        with one_sentence(f"the optimizer of {shown.target}", None, " while its decay was probed; correct it"):
            seen = audit_found(found, wanted, total_steps=total_steps, in_place=True)
        return shown.audit(seen, arguments)

    def fail(error: UserError) -> int:
        return shown.error(str(error), EXIT_USER)

    try:
        code = run_script(shown.target, arguments, report=report, fail=fail, **limits)
    except UserError as error:
        if not limits["own_process"]:
            raise
        code = fail(error)
    if limits["own_process"]:  # the script came to its end; what it registered for the end has no say in the exit code
        leave(code)
    return code


class _Shown:
    """What the command prints of an audit.

    Args:
        target: What was audited.
        out: Where it goes.
        as_json: Whether it is a document.
    """

    def __init__(self, target: str, out: TextIO, as_json: bool) -> None:
        self.target, self.out, self.as_json = target, out, as_json

    def audit(self, done: Audit, arguments: list[str]) -> int:
        """Print what was found; return the exit code."""
        failed = [check for check in done.checks if not check.holds]
        with contextlib.suppress(BrokenPipeError):  # nobody reads it: the exit code says what holds all the same
            if self.as_json:
                write(self.out, _document(self.target, done))
            else:
                _print(done, self.out)
        errors = PlainConsole(stderr=True)
        for check in failed:
            errors.print("[red]does not hold:[/] ", end="")
            errors.print(check.sentence, markup=False, highlight=False, soft_wrap=True)
        _note(arguments)
        return EXIT_EXPECTATION if failed else 0

    def error(self, words: str, code: int) -> int:
        """Print what went wrong; return the exit code."""
        say_error(words, code)
        with contextlib.suppress(OSError):  # which may be what went wrong
            if self.as_json:
                write(self.out, {"target": self.target, "error": words})
        return code


def _document(target: str, done: Audit) -> dict[str, Any]:
    return {
        "target": target,
        "found": done.found.plain(),
        "groups": done.table.groups,
        "rows": done.table.rows,
        "schedule": list(done.schedule),
        "warnings": [dataclasses.asdict(warning) for warning in done.table.warnings],
        "expectations": [dataclasses.asdict(check) for check in done.checks],
        "ok": all(check.holds for check in done.checks),
    }


def _print(done: Audit, out: TextIO) -> None:
    console = PlainConsole(file=out)
    if console.is_terminal:
        console.print(done.table)
    else:  # a log or a pipe has no width: a name on one line can be searched for
        print(plain(str(done.table)), file=out)
    for sentence in (*done.schedule, str(done.found)):
        console.print(sentence, markup=False, highlight=False, soft_wrap=True)
    for check in done.checks:
        if check.holds:
            console.print(f"holds: {check.expected}", markup=False, highlight=False, style="green")
    out.flush()


def _note(arguments: list[str]) -> None:
    """Tell of options that may have been meant for the command: the user's own code took them without a word."""
    from halflife.audit.arguments import own_options

    if note := own_options(arguments):
        PlainConsole(stderr=True).print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
