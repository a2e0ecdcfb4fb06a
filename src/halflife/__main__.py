"""The command: `halflife`, or `python -m halflife`."""

from __future__ import annotations

import os
import signal
import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line; what is not installed is one sentence on standard error and exit code 2.

    Raises:
        ModuleNotFoundError: A module of halflife itself is missing.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        # What all processes of torchrun would say, rank 0 says.
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the process ends
    try:
        try:
            from halflife.cli.main import main as run
        except ModuleNotFoundError as error:
            if error.name not in {"typer", "rich"} or sys.argv[1:2] != ["audit"]:
                raise
            from halflife.cli.plain import main as run
        run()
    except KeyboardInterrupt:  # while the command line is being imported, or again while it ends
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(130)
    except ModuleNotFoundError as error:
        name = (error.name or "").partition(".")[0]
        if name in {"", "halflife"}:
            raise
        extra = "study" if sys.argv[1:2] in (["study"], ["report"]) or name not in {"typer", "rich"} else "cli"
        print(
            f"error: this command needs {name}, which is not installed: pip install 'torch-halflife[{extra}]' (from a"
            f" clone: pip install -c constraints.txt -e '.[{extra}]')",
            file=sys.stderr,
        )
        sys.exit(2)


if __name__ == "__main__":
    main()
