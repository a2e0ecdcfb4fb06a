"""The command line: it names things and prints; everything else is in the library."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from halflife.cli.audit import AuditCommand, audit_command
from halflife.cli.documents import drop_output, told
from halflife.cli.export import export_command
from halflife.cli.selfcheck import selfcheck_command
from halflife.cli.study import report_command, study_app

__all__ = ["app", "main"]

EXIT_CLOSED_PIPE = 141  # as shells say it of what SIGPIPE has ended


class Commands(TyperGroup):
    """All commands; one whose reader has closed its end of the pipe stops without a word."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command that is meant."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            drop_output()
            raise typer.Exit(EXIT_CLOSED_PIPE) from None
        return result


app = typer.Typer(
    cls=Commands,
    help="Weight decay for PyTorch: prove which decay is applied, schedule it, study what the papers claim about it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(study_app, name="study")
app.command("audit", cls=AuditCommand)(audit_command)
app.command("selfcheck")(selfcheck_command)
app.command("report")(report_command)
app.command("export")(export_command)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib import metadata

        print(f"halflife {metadata.version('torch-halflife')}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version")
    ] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line; a mistake of the user's is one sentence on standard error and exit code 2."""
    words = sys.argv[1:]
    as_json = "--json" in words[: words.index("--") if "--" in words else None]
    told(lambda: app(standalone_mode=not as_json), as_json)
