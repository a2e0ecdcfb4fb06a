"""What a command prints, and typer, which reads its words; `halflife.cli.plain` stands in where only torch is installed."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

try:
    import typer
    from rich.console import Console
    from typer.core import TyperCommand
except ModuleNotFoundError:  # torch alone
    from halflife.cli.plain import Console, TyperCommand, typer  # type: ignore[assignment, no-redef]

if TYPE_CHECKING:
    from rich.console import ConsoleOptions, RenderableType
    from rich.segment import Segment

__all__ = ["PlainConsole", "TyperCommand", "plain", "typer"]

# What a terminal would obey: escapes and other control characters, and marks that turn the direction of writing.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


def plain(words: str) -> str:
    """Words in which every control character is written out, as a backslash and its number."""
    return CONTROL.sub(lambda found: repr(found[0])[1:-1], words)


class PlainConsole(Console):
    """A console that writes control characters out, wherever they come from: a path, a parameter, a message, a store."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """What is printed, piece by piece."""
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=plain(segment.text))

    def on_broken_pipe(self) -> None:
        """Leave it to the command, which may have more to say than that nobody reads it."""
        raise BrokenPipeError(errno.EPIPE, "nobody reads the output")
