"""How an explanation looks: repeated layers on one line, a section for each parameter group; with rich or without."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

__all__ = ["Line", "collapsed", "renderable", "text"]

WIDTH = 100  # of plain text
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number: of h.3.attn the 3
YES = {True: "yes", False: "no", None: "not known"}
LEAST_WIDTHS = {"parameter": 36, "why": 16, "what it is": 18}  # columns that may wrap, and where
STYLES = {"yes": "green", "no": "dim", "not known": "yellow"}


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
class _Section:
    """A group, or what is in none: the facts that hold for all of it, and a table of the rest."""

    title: str
    facts: tuple[str, ...]
    head: tuple[str, ...]
    cells: tuple[tuple[str, ...], ...]


def _sections(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]]) -> list[_Section]:
    several = len({group["optimizer"] for group in groups}) > 1
    found = []
    for group in groups:
        place = [group["optimizer"], group["group"]]
        mine = [row for row in rows if [row["optimizer"], row["group"]] == place or place in row["also_in"]]
        number = f" (optimizer {group['optimizer']})" if several else ""
        title = f"{group['optimizer_name']}{number}, group {group['group']}"
        size = [_counted(group["num_parameters"], "parameter"), _counted(group["num_elements"], "number")]
        found.append(_section(title, size, _facts(group, mine), mine, rows))
    outside = [row for row in rows if row["optimizer"] is None]
    if outside:
        found.append(_section("in no optimizer", [_counted(len(outside), "parameter")], [], outside, rows))
    return found


def _section(
    title: str, size: list[str], facts: list[str], rows: Sequence[dict[str, Any]], everywhere: Sequence[dict[str, Any]]
) -> _Section:
    """Say once what is the same for all rows, and make columns of what is not."""
    dtypes, answers = {row["dtype"] for row in rows}, {(row["decays"], row["why"]) for row in rows}
    if len(dtypes) == 1:
        size = [*size, *dtypes]
    if len(answers) == 1:
        decays, why = next(iter(answers))
        facts = [*facts, f"decays: {YES[decays]}, {why}"]
    lines = collapsed(rows, everywhere)
    head = ["parameter", *(["n"] if any(line.num_parameters > 1 for line in lines) else []), "shape"]
    head += ["dtype"] if len(dtypes) > 1 else []
    head += ["decays", "why"] if len(answers) > 1 else []
    head += ["what it is"] if any(row["what"] for row in rows) else []
    cells = []
    for line in lines:
        row = line.row
        values = {
            "parameter": line.name,
            "n": str(line.num_parameters),
            "shape": " x ".join(map(str, row["shape"])) or "scalar",
            "dtype": row["dtype"],
            "decays": YES[row["decays"]],
            "why": row["why"],
            "what it is": row["what"] or "",
        }
        cells.append(tuple(values[column] for column in head))
    return _Section(f"{title}: {', '.join(size)}", tuple(facts), tuple(head), tuple(cells))


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
        cells = [section.head, *section.cells]
        widths = [max(len(cell[column]) for cell in cells) for column in range(len(section.head))]
        found.append(section.title)
        found += [f"  {fact}" for fact in section.facts]
        for cell in cells if section.cells else []:
            padded = (part.ljust(width) for part, width in zip(cell, widths, strict=True))
            found.append(f"    {'  '.join(padded)}".rstrip())
        found.append("")
    for warning in warnings:
        found += textwrap.wrap(f"warning: {warning}", WIDTH, subsequent_indent="  ")
    return "\n".join(found).rstrip()


def renderable(rows: Sequence[dict[str, Any]], groups: Sequence[dict[str, Any]], warnings: Sequence[str]) -> Any:
    """Build what rich prints.

    Args:
        rows: The rows.
        groups: The groups.
        warnings: The sentences.

    Returns:
        A group of tables and texts.
    """
    from rich import box
    from rich.console import Group
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for section in _sections(rows, groups):
        parts.append(Text(section.title, style="bold"))
        parts += [Padding.indent(Text(fact), 2) for fact in section.facts]
        table = Table(box=box.SIMPLE_HEAD, header_style="dim")
        for number, column in enumerate(section.head):
            width = max((len(cells[number]) for cells in section.cells), default=0)
            least = min(width, LEAST_WIDTHS.get(column, width))
            table.add_column(column, overflow="fold", min_width=least, no_wrap=column not in LEAST_WIDTHS)
        for cells in section.cells:
            table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in cells))
        if section.cells:
            parts.append(Padding.indent(table, 1))
    parts += [Text.assemble(("warning: ", "bold yellow"), warning) for warning in warnings]
    return Group(*parts)
