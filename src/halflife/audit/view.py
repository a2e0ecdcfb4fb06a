"""How an explanation looks: repeated layers on one line, a section for each parameter group; with rich or without."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions

__all__ = ["Line", "Renderable", "collapsed", "text"]

WIDTH = 100  # of plain text
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number: of h.3.attn the 3
YES = {True: "yes", False: "no", None: "not known"}
COLORS = {True: "green", False: "cyan", None: "yellow"}
# Columns that may wrap, in the order in which they give way, and down to what.
LEAST_WIDTHS = (("what it is", 20), ("parameter", 24), ("what it is", 10), ("parameter", 8))
GAP = 2  # between columns


@dataclass(frozen=True)
class Line:
    """Parameters that are alike but for their layer, on one line.

    Attributes:
        name: The common name, with ``*`` for the layers, or the layers themselves where only some are here.
        num_parameters: How many there are.
        row: The first of them.
    """

    name: str
    num_parameters: int
    row: dict[str, Any]


def collapsed(rows: Sequence[dict[str, Any]], everywhere: Sequence[dict[str, Any]] | None = None) -> list[Line]:
    """Join the rows that differ only in the numbers within their names.

    Args:
        rows: Rows of an explanation.
        everywhere: All its rows; where only some layers are among ``rows``, the line says which. Default: ``rows``.

    Returns:
        The lines, in the order of their first rows.

    Examples:
        >>> same = {"shape": [4], "dtype": "float32", "decays": True, "why": "", "what": ""}
        >>> rows = [{"parameter": f"h.{layer}.weight", **same} for layer in range(12)]
        >>> [(line.name, line.num_parameters) for line in collapsed(rows)]
        [('h.*.weight', 12)]
    """
    families: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    totals = Counter(NUMBER.sub("*", row["parameter"]) for row in everywhere or rows)
    for row in rows:
        pattern = NUMBER.sub("*", row["parameter"])
        what = NUMBER.sub("*", row["what"] or "")  # names of tied weights have numbers too
        key = (pattern, tuple(row["shape"]), row["dtype"], row["decays"], row["why"], what)
        families.setdefault(key, []).append(row)
    lines = []
    for (pattern, *_), members in families.items():
        name = members[0]["parameter"] if len(members) == 1 else pattern
        if 1 < len(members) < totals[pattern]:
            name = _with_ranges(pattern, [row["parameter"] for row in members])
        lines.append(Line(name, len(members), members[0]))
    return lines


def _with_ranges(pattern: str, names: Sequence[str]) -> str:
    """Return the pattern with the numbers that occur at each place: ``h.{0-3,5}.weight``."""
    for numbers in zip(*(map(int, NUMBER.findall(name)) for name in names), strict=True):
        runs = []
        for _, run in groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
            members = [value for _, value in run]
            runs.append(f"{members[0]}-{members[-1]}" if len(members) > 1 else str(members[0]))
        listed = ",".join(runs)
        pattern = pattern.replace("*", f"{{{listed}}}" if "," in listed or "-" in listed else listed, 1)
    return pattern


@dataclass(frozen=True)
class _Block:
    """Parameters that decay alike, for the same reason: said once above a table of them."""

    decays: bool | None
    answer: str
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class _Section:
    """A parameter group, or what is in none."""

    title: str
    facts: tuple[str, ...]
    blocks: tuple[_Block, ...]


def _sections(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> list[_Section]:
    several = len({group["optimizer"] for group in groups}) > 1
    found = []
    for group in groups:
        place = [group["optimizer"], group["group"]]
        mine = [row for row in rows if [row["optimizer"], row["group"]] == place or place in row["also_in"]]
        number = f" (optimizer {group['optimizer']})" if several else ""
        size = f"{_counted(group['num_parameters'], 'parameter')}, {_counted(group['num_elements'], 'number')}"
        title = f"{group['optimizer_name']}{number}, group {group['group']}: {size}"
        found.append(_section(title, _facts(group, mine), mine, rows))
    outside = [row for row in rows if row["optimizer"] is None]
    if outside:
        found.append(_section(f"in no optimizer: {_counted(len(outside), 'parameter')}", [], outside, rows))
    return found


def _section(
    title: str, facts: list[str], rows: Sequence[dict[str, Any]], everywhere: Sequence[dict[str, Any]]
) -> _Section:
    dtypes = {row["dtype"] for row in rows}
    blocks: dict[tuple[bool | None, str], list[dict[str, Any]]] = {}
    for row in rows:
        blocks.setdefault((row["decays"], row["why"]), []).append(row)
    made = []
    for (decays, why), members in blocks.items():
        lines = collapsed(members, everywhere)
        columns = {
            "parameter": [line.name for line in lines],
            "n": [str(line.num_parameters) for line in lines],
            "shape": [" x ".join(map(str, line.row["shape"])) or "scalar" for line in lines],
            "dtype": [line.row["dtype"] for line in lines],
            "what it is": [line.row["what"] for line in lines],
        }
        if len(dtypes) == 1:
            del columns["dtype"]  # it is in the title
        if len(lines) == len(members):
            del columns["n"]
        if not any(columns["what it is"]):
            del columns["what it is"]
        answer = f"decays: {YES[decays]}, {why}"
        made.append(_Block(decays, answer, tuple(columns), tuple(zip(*columns.values(), strict=True))))
    return _Section(", ".join([title, *(dtypes if len(dtypes) == 1 else ())]), tuple(facts), tuple(made))


def _facts(group: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    facts = [group["describe"]] if group["pathway"] != "not probed" else []  # else each row says why
    numbers = [f"{key} {group[key]:.4g}" for key in ("lam", "lr", "r") if group[key] is not None]
    if group["half_life"] is not None:
        numbers.append(f"half-life {_time(group['half_life'], 'steps')}")
        row = next((row for row in rows if row["half_life"] == group["half_life"]), {})
        numbers += [
            _time(row[f"half_life_{unit}"], unit) for unit in ("epochs", "tokens") if f"half_life_{unit}" in row
        ]
    facts.append(", ".join(numbers))
    facts += [f"note: {note}" for note in group["notes"] if note not in group["describe"]]
    return [fact for fact in facts if fact]


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _time(value: float, unit: str) -> str:
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def text(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], warnings: Sequence[str]) -> str:
    """Write the explanation as plain text.

    Args:
        rows: The rows.
        groups: The groups.
        warnings: The sentences.

    Returns:
        The text, of several lines.
    """
    found = []
    for section in _sections(rows, groups):
        found += [section.title, *(f"  {fact}" for fact in section.facts)]
        for block in section.blocks:
            found.append(f"  {block.answer}")
            widths = _widths(block, sys.maxsize)
            for cells in (block.head, *block.cells):
                padded = (part.ljust(width + GAP) for part, width in zip(cells, widths, strict=True))
                found.append(f"    {''.join(padded)}".rstrip())
        found.append("")
    for warning in warnings:
        found += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    return "\n".join(found).rstrip()


class Renderable:
    """What rich prints: it asks for the width when it is printed.

    Args:
        rows: The rows.
        groups: The groups.
        warnings: The sentences.
    """

    def __init__(
        self, rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], warnings: Sequence[str]
    ) -> None:
        self.sections = _sections(rows, groups)
        self.warnings = warnings

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Any]:
        """Yield the parts.

        Args:
            console: The console of rich.
            options: How wide it is.

        Yields:
            Texts and tables.
        """
        from rich.padding import Padding
        from rich.table import Table
        from rich.text import Text

        for section in self.sections:
            yield Text(section.title, style="bold")
            yield from (Padding.indent(Text(fact), 2) for fact in section.facts)
            for block in section.blocks:
                yield Padding.indent(Text(block.answer, style=COLORS[block.decays]), 2)
                table = Table(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
                for column, width in zip(block.head, _widths(block, options.max_width - 4), strict=True):
                    table.add_column(column, width=width, overflow="fold")
                for cells in block.cells:
                    table.add_row(*map(Text, cells))
                yield Padding.indent(table, 4)
            yield ""
        for warning in self.warnings:
            yield Text.assemble(("warning: ", "bold yellow"), warning)


def _widths(block: _Block, available: int) -> list[int]:
    """Return the width of each column: what can wrap gives way, the remarks before the names.

    rich by itself takes from the widest column first, and would break names in the middle.
    """
    widths = [max(map(len, column)) for column in zip(block.head, *block.cells, strict=True)]
    for name, least in LEAST_WIDTHS:
        excess = sum(widths) + GAP * len(widths) - available
        if name in block.head and excess > 0:
            column = block.head.index(name)
            widths[column] = max(min(least, widths[column]), widths[column] - excess)
    return widths
