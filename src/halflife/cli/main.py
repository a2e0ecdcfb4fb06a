"""The command line: it names things and prints; everything else is in the library."""

from __future__ import annotations

import signal
import sys
import warnings
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from halflife.cli.audit import AuditCommand, audit_command
from halflife.cli.export import export_command
from halflife.cli.selfcheck import selfcheck_command
from halflife.cli.study import StoppedError, report_command, study_app
from halflife.errors import HalflifeError, RunFailedError

__all__ = ["app", "main"]

EXIT_USER, EXIT_RUN_FAILED, EXIT_INTERRUPTED = 2, 3, 130

app = typer.Typer(
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

errors = Console(stderr=True)


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
    """Run the command line; a mistake of the user's is one sentence on standard error and exit code 2.

    Raises:
        OSError: The system refused something that names no file.
    """
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")  # torch's, where numpy is not installed
    try:
        app(standalone_mode=True)
    except OSError as error:  # whatever is not explained where it happens
        if error.filename is None:
            raise
        _print_error(f"{error.filename} cannot be used ({error.strerror}): make it accessible, or name another path")
        sys.exit(EXIT_USER)
    except HalflifeError as error:
        signal.signal(
            signal.SIGINT, signal.SIG_IGN
        )  # the process ends now, and Ctrl-C again would only add a traceback
        codes: dict[type[HalflifeError], int] = {
            RunFailedError: EXIT_RUN_FAILED,
            StoppedError: EXIT_INTERRUPTED,
        }
        if isinstance(error, StoppedError):
            errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
        else:
            _print_error(str(error))
        sys.exit(codes.get(type(error), EXIT_USER))


def _print_error(words: str) -> None:
    errors.print(f"[red]error:[/] {escape(words)}", highlight=False, soft_wrap=True)
