"""How an explanation looks: repeated layers on one line, a section for each parameter group; with rich or without."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

__all__ = ["collapsed", "rich_parts", "text"]

WIDTH = 100  # of plain text
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number: of h.3.attn the 3
YES = {True: "yes", False: "no", None: "not known"}
COLORS = {True: "green", False: "cyan", None: "yellow"}
# Columns that may wrap, in the order in which they give way, and down to what.
LEAST_WIDTHS = (("what it is", 20), ("parameter", 24), ("what it is", 10), ("parameter", 8))
GAP = 2  # between columns

Row = dict[str, Any]  # of `Explanation.rows`
Table = list[tuple[str, ...]]  # the names of its columns, then its lines


def collapsed(rows: Sequence[Row], totals: Counter[str] | None = None) -> list[tuple[str, int, Row]]:
    """Join the rows that differ only in the numbers within their names.

    Args:
        rows: Rows of an explanation.
        totals: How many rows of the explanation have each name, ``*`` for its numbers; where only some layers are
            among ``rows``, the name says which. Default: counted in ``rows``.

    Returns:
        The common name, how many rows have it, and the first of them; in the order of the first rows.

    Examples:
        >>> same = {"shape": [4], "dtype": "float32", "decays": True, "why": "", "what": ""}
        >>> rows = [{"parameter": f"h.{layer}.weight", **same} for layer in range(12)]
        >>> [(name, count) for name, count, first in collapsed(rows)]
        [('h.*.weight', 12)]
    """
    totals = totals if totals is not None else _totals(rows)
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        what = NUMBER.sub("*", row["what"] or "")  # names of tied weights have numbers too
        key = (NUMBER.sub("*", row["parameter"]), tuple(row["shape"]), row["dtype"], row["decays"], row["why"], what)
        alike.setdefault(key, []).append(row)
    lines = []
    for (pattern, *_), members in alike.items():
        name = members[0]["parameter"] if len(members) == 1 else pattern
        if 1 < len(members) < totals[pattern]:
            name = _with_ranges(pattern, [row["parameter"] for row in members])
        lines.append((name, len(members), members[0]))
    return lines


def _totals(rows: Sequence[Row]) -> Counter[str]:
    return Counter(NUMBER.sub("*", row["parameter"]) for row in rows)


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


def _parts(rows: Sequence[Row], groups: Sequence[Row]) -> Iterator[tuple[str, int, str | Table]]:
    """Yield the lines and tables of an explanation, each with its style and how far it is indented."""
    members: defaultdict[tuple[int | None, int | None], list[Row]] = defaultdict(list)
    for row in rows:
        for place in ([row["optimizer"], row["group"]], *row["also_in"]):
            members[place[0], place[1]].append(row)
    several, totals = len({group["optimizer"] for group in groups}) > 1, _totals(rows)
    for group in groups:
        mine = members[group["optimizer"], group["group"]]
        number = f" (optimizer {group['optimizer']})" if several else ""
        size = f"{_counted(group['num_parameters'], 'parameter')}, {_counted(group['num_elements'], 'number')}"
        title = f"{group['optimizer_name']}{number}, group {group['group']}: {size}"
        yield from _section(title, _facts(group, mine), mine, totals)
    if outside := members[None, None]:
        yield from _section(f"in no optimizer: {_counted(len(outside), 'parameter')}", [], outside, totals)


def _section(
    title: str, facts: Sequence[str], rows: Sequence[Row], totals: Counter[str]
) -> Iterator[tuple[str, int, str | Table]]:
    """Yield what is said of one group: its numbers, then a table of the parameters that decay for the same reason."""
    dtypes = {row["dtype"] for row in rows}
    yield "bold", 0, ", ".join([title, *(dtypes if len(dtypes) == 1 else ())])
    for fact in facts:
        yield "", 2, fact
    by_reason: dict[tuple[bool | None, str], list[Row]] = {}
    for row in rows:
        by_reason.setdefault((row["decays"], row["why"]), []).append(row)
    for (decays, why), members in by_reason.items():
        yield COLORS[decays], 2, f"decays: {YES[decays]}, {why}"
        lines = collapsed(members, totals)
        columns = {
            "parameter": [name for name, _, _ in lines],
            "n": [str(count) for _, count, _ in lines],
            "shape": [" x ".join(map(str, row["shape"])) or "scalar" for _, _, row in lines],
            "dtype": [row["dtype"] for _, _, row in lines],
            "what it is": [row["what"] for _, _, row in lines],
        }
        if len(dtypes) == 1:
            del columns["dtype"]  # it is in the title
        if len(lines) == len(members):
            del columns["n"]
        if not any(columns["what it is"]):
            del columns["what it is"]
        yield "", 4, [tuple(columns), *zip(*columns.values(), strict=True)]
    yield "", 0, ""


def _facts(group: Row, rows: Sequence[Row]) -> list[str]:
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


def text(rows: Sequence[Row], groups: Sequence[Row], warnings: Sequence[str]) -> str:
    """Return an explanation as plain text of several lines."""
    lines = []
    for _, indent, part in _parts(rows, groups):
        if isinstance(part, str):
            lines.append(" " * indent + part)
            continue
        widths = _widths(part, sys.maxsize)
        for cells in part:
            padded = (cell.ljust(width + GAP) for cell, width in zip(cells, widths, strict=True))
            lines.append(" " * indent + "".join(padded).rstrip())
    for warning in warnings:
        lines += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    return "\n".join(lines).rstrip()


def rich_parts(rows: Sequence[Row], groups: Sequence[Row], warnings: Sequence[str], max_width: int) -> Iterator[Any]:
    """Yield an explanation as texts and tables of rich.

    Args:
        rows: The rows.
        groups: The groups.
        warnings: The sentences.
        max_width: Of the console, in characters.

    Yields:
        What rich prints.
    """
    from rich.padding import Padding
    from rich.table import Table as RichTable
    from rich.text import Text

    for style, indent, part in _parts(rows, groups):
        if isinstance(part, str):
            yield Padding.indent(Text(part, style=style), indent)
            continue
        table = RichTable(box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="dim")
        for column, width in zip(part[0], _widths(part, max_width - indent), strict=True):
            table.add_column(column, width=width, overflow="fold")
        for cells in part[1:]:
            table.add_row(*map(Text, cells))
        yield Padding.indent(table, indent)
    for warning in warnings:
        yield Text.assemble(("warning: ", "bold yellow"), warning)


def _widths(table: Table, available: int) -> list[int]:
    """Return the width of each column: what can wrap gives way, the remarks before the names.

    rich by itself takes from the widest column first, and would break names in the middle.
    """
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for name, least in LEAST_WIDTHS:
        excess = sum(widths) + GAP * len(widths) - available
        if name in table[0] and excess > 0:
            column = table[0].index(name)
            widths[column] = max(min(least, widths[column]), widths[column] - excess)
    return widths
