"""The errors that halflife raises on purpose: one sentence with what was got, what was expected, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = [
    "DivergedError",
    "HalflifeError",
    "RunFailedError",
    "RunStoppedError",
    "StoreError",
    "UserError",
    "did_you_mean",
    "shortened",
]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`` (did you mean ...?)`` with the known name that is most like another, or nothing where none is like it."""
    near = difflib.get_close_matches(name, list(known), n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def shortened(text: object) -> str:
    """A value as messages show it: of a long one its beginning and its end."""
    try:
        shown = repr(text)
    except Exception:  # whatever a user's own class raises; integers of thousands of digits have no decimal text
        shown = f"an object of type {type(text).__name__}"
    return shown if len(shown) <= 200 else f"{shown[:60]} ... {shown[-20:]}"


class HalflifeError(Exception):
    """Base of every error that halflife raises on purpose."""


class UserError(HalflifeError, ValueError):
    """The input cannot be used as it is; the message says what was got, what was expected, and what to do.

    It is a ``ValueError``, so that library users can catch it without importing halflife's own types. The
    command line prints its message without a traceback and exits with code 2.
    """


class StoreError(UserError):
    """A store on disk cannot be used: another schema version, another process, or no room."""


class RunFailedError(HalflifeError):
    """A training run stopped before its end; what it had finished is kept. The command line exits with code 3."""


class DivergedError(RunFailedError):
    """A run had numbers that are NaN or infinite, and would have them again.

    Args:
        step: At which step they were seen.
        what: What became so, such as ``"the training loss"``.
        about: The settings that matter.
    """

    def __init__(self, step: int, what: str, about: str) -> None:
        super().__init__(f"{what} became NaN or infinite at step {step} ({about}): lower the learning rate")
        self.step = step


class RunStoppedError(HalflifeError):
    """A training run was asked to stop, wrote a checkpoint and ended; the same command goes on from there."""


def __dir__() -> list[str]:
    return sorted(__all__)
