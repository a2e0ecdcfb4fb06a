"""A user's code in a process of its own: whatever it does to that process, it has no say in the command's exit code.

The process tells the exit code before it ends. One that ends without a word was ended by the user's code, by a signal,
or for want of memory.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from halflife import user_code
from halflife.errors import UserError

__all__ = ["run_apart"]

AFTER_CTRL_C = 0.5  # seconds in which the other process ends by itself, if the terminal has sent it to both
PR_SET_PDEATHSIG = 1


def run_apart(what: str, body: Callable[[], int]) -> int:
    """Call a function in a forked process; where there is no fork, in this one.

    Both processes return from here, each with the exit code.

    Args:
        what: What runs there, for the message.
        body: The function; returns an exit code. It may end its process by `halflife.user_code.leave` as well.

    Returns:
        The exit code.

    Raises:
        UserError: The process ended without one.
    """
    if not hasattr(os, "fork"):
        return body()
    # A file, not a pipe: a process that the user's code leaves behind would hold the end of a pipe open.
    with tempfile.TemporaryFile(buffering=0) as told:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        parent, child = os.getpid(), os.fork()
        if child == 0:
            _end_with(parent)
            with user_code.told_at_the_end(lambda code: told.write(bytes([code]))):
                return user_code.tell(body())
        status = _wait(child)
        told.seek(0)
        code = told.read(1)
    if code:
        return code[0]
    raise UserError(
        f"{what} ended its process before the audit was through ({_how(os.waitstatus_to_exitcode(status))}): take what ends"
        " it out, or name a function that only builds the optimizer"
    )


def _end_with(parent: int) -> None:
    """Let this process end when the other one does, however that ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has ended already
            os.kill(os.getpid(), signal.SIGKILL)


def _wait(child: int) -> int:
    """Wait for a process, and hand signals on to it."""

    def stop(number: int, frame: FrameType | None) -> NoReturn:
        os.kill(child, signal.SIGKILL)
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    presses = 0
    try:
        while True:
            try:
                for _ in range(int(AFTER_CTRL_C / 0.05) if presses else 0):
                    ended, status = os.waitpid(child, os.WNOHANG)
                    if ended:
                        return status
                    time.sleep(0.05)
                if presses:
                    os.kill(child, signal.SIGINT if presses < 3 else signal.SIGKILL)
                return os.waitpid(child, 0)[1]
            except KeyboardInterrupt:
                presses += 1
    finally:
        signal.signal(signal.SIGTERM, before)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    name = signal.Signals(-code).name
    return f"signal {name}, perhaps for want of memory" if -code == signal.SIGKILL else f"signal {name}"
