"""Run a command quietly: one line says that it runs and for how long, its output goes to a log, whose end is shown if it fails.

python tools/quietly.py LOG WORDS COMMAND [ARGUMENT ...]
"""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

LINES_SHOWN, INTERRUPTED = 20, 130


def quietly(log: Path, words: str, command: Sequence[str]) -> int:
    """Run a command; on a terminal the line is written anew each second, with the last line of the log.

    Returns:
        The command's exit code; 130 after Ctrl-C.
    """
    began, updates = time.monotonic(), sys.stdout.isatty()
    print(f"{words} (log: {log})", flush=True)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
        try:
            while process.poll() is None:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(timeout=1)
                if updates:
                    line = f"  {time.monotonic() - began:.0f} s  {(_lines(log) or [''])[-1].strip()}"
                    print(f"\r\033[K{line[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        except KeyboardInterrupt:
            process.terminate()
            process.wait()
            print(f"{_cleared(updates)}Stopped; the same command goes on.", flush=True)
            return INTERRUPTED
    if process.returncode:
        ends = "\n".join(_lines(log)[-LINES_SHOWN:])
        print(f"{_cleared(updates)}{words}: this failed, and {log} ends with:\n{ends}", file=sys.stderr)
    else:
        print(f"{_cleared(updates)}  done in {time.monotonic() - began:.0f} s", flush=True)
    return process.returncode


def _lines(log: Path) -> list[str]:
    return log.read_text(encoding="utf-8", errors="replace").splitlines()


def _cleared(updates: bool) -> str:
    return "\r\033[K" if updates else ""


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    sys.exit(quietly(Path(sys.argv[1]), sys.argv[2], sys.argv[3:]))
