"""How an explanation looks: repeated layers on one line, a section for each parameter group; with rich or without."""

from __future__ import annotations

import re
import sys
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import groupby
from typing import Any

from halflife.audit.text import in_common, spanned, without_numbers

__all__ = ["collapsed", "rich_parts", "text"]

WIDTH = 100  # of plain text
NUMBER = re.compile(r"(?<![^.])\d+(?![^.])")  # a part of a name that is a number: of h.3.attn the 3
YES = {True: "yes", False: "no", None: "not known"}
COLORS = {True: "green", False: "cyan", None: "yellow"}
# Columns that may wrap, in the order in which they give way, and down to what.
LEAST_WIDTHS = (("what it is", 20), ("parameter", 24), ("what it is", 10), ("parameter", 8))
GAP = 2  # between columns
MOST_PARTS = 8  # lines for parameters of one name from which different fractions are removed

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
    return [(name, len(members), members[0]) for name, members in _lines(rows, totals)]


def _lines(rows: Sequence[Row], totals: Counter[str] | None = None) -> list[tuple[str, list[Row]]]:
    """Return the common name and the rows of each line."""
    totals = totals if totals is not None else _totals(rows)
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        what = _pattern(row["what"] or "")  # names of tied weights have numbers too
        reason = without_numbers(row["why"])
        key = (_pattern(row["parameter"]), tuple(row["shape"]), row["dtype"], row["decays"], reason, what)
        alike.setdefault(key, []).append(row)
    lines = []
    for (pattern, *_), members in ((key, part) for key, rows in alike.items() for part in _by_share(rows)):
        name = members[0]["parameter"] if len(members) == 1 else pattern
        if 1 < len(members) < totals[pattern]:
            name = _with_ranges(pattern, [row["parameter"] for row in members])
        lines.append((name, members))
    return lines


def _by_share(rows: list[Row]) -> list[list[Row]]:
    """Part rows of one name by what `_share` says of them; too many parts are none."""
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(_share(row), []).append(row)
    return list(parts.values()) if len(parts) <= MOST_PARTS else [rows]


def _share(row: Row) -> str:
    """Return the fraction that a step removes, as far as lr and lam do not explain it."""
    r = row.get("r")
    return "" if r is None else f"{r / ((row.get('lr') or 1.0) * (row.get('lam') or 1.0)):.2g}"


@lru_cache(maxsize=1 << 17)  # each name is asked for several times
def _pattern(name: str) -> str:
    return NUMBER.sub("*", name)


def _totals(rows: Sequence[Row]) -> Counter[str]:
    return Counter(_pattern(row["parameter"]) for row in rows)


def _with_ranges(pattern: str, names: Sequence[str]) -> str:
    """Return the pattern with the numbers that occur at each place: ``h.{0-3,5}.weight``."""
    for numbers in zip(*(map(int, NUMBER.findall(name)) for name in names), strict=True):
        runs = []
        for first, last in _runs(numbers):
            runs.append(f"{first}-{last}" if last > first else str(first))
        listed = ",".join(runs[:6] if len(runs) <= 6 else [*runs[:3], "...", runs[-1]])
        pattern = pattern.replace("*", f"{{{listed}}}" if "," in listed or "-" in listed else listed, 1)
    return pattern


def _runs(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and the last of each row of numbers without a gap."""
    runs = []
    for _, run in groupby(enumerate(sorted(set(numbers))), key=lambda pair: pair[1] - pair[0]):
        members = [value for _, value in run]
        runs.append((members[0], members[-1]))
    return runs


def _parts(rows: Sequence[Row], groups: Sequence[Row]) -> Iterator[tuple[str, int, str | Table]]:
    """Yield the lines and tables of an explanation, each with its style and how far it is indented."""
    members: defaultdict[tuple[int | None, int | None], list[Row]] = defaultdict(list)
    for row in rows:
        members[row["optimizer"], row["group"]].append(row)
        for optimizer, group in row["also_in"]:
            members[optimizer, group].append(row)
    several, totals = len({group["optimizer"] for group in groups}) > 1, _totals(rows)
    for block in _blocks(groups):
        first = block[0]
        mine = [row for group in block for row in members[first["optimizer"], group["group"]]]
        number = f" (optimizer {first['optimizer']})" if several else ""
        parameters, elements = (sum(group[key] for group in block) for key in ("num_parameters", "num_elements"))
        size = f"{_counted(parameters, 'parameter')}, {_counted(elements, 'number')}"
        title = f"{first['optimizer_name']}{number}, {_numbered([group['group'] for group in block])}: {size}"
        yield from _section(title, _facts(block, mine), mine, totals)
    if outside := members[None, None]:
        yield from _section(f"in no optimizer: {_counted(len(outside), 'parameter')}", [], outside, totals)


def _blocks(groups: Sequence[Row]) -> list[list[Row]]:
    """Put the groups of an optimizer together that differ in their numbers alone: learning rate and weight decay."""
    alike: dict[tuple[Any, ...], list[Row]] = {}
    for group in groups:
        notes = tuple(map(without_numbers, group["notes"]))
        key = (group["optimizer"], group["describe"], group["pathway"], group["rule"], group["r"] is None, notes)
        alike.setdefault(key, []).append(group)
    return list(alike.values())


def _numbered(numbers: Sequence[int]) -> str:
    """Return ``"group 3"``, ``"groups 0-299"``, or of many with gaps how many there are and the first ones."""
    if len(numbers) == 1:
        return f"group {numbers[0]}"
    runs = [str(first) if first == last else f"{first}-{last}" for first, last in _runs(numbers)]
    if len(runs) <= 4:
        return f"groups {', '.join(runs)}"
    return f"{len(numbers)} groups ({', '.join(runs[:3])}, ..., {runs[-1]})"


def _section(
    title: str, facts: Sequence[str], rows: Sequence[Row], totals: Counter[str]
) -> Iterator[tuple[str, int, str | Table]]:
    """Yield what is said of one group: its numbers, then a table of the parameters that decay for the same reason."""
    dtypes = {row["dtype"] for row in rows}
    yield "bold", 0, ", ".join([title, *(dtypes if len(dtypes) == 1 else ())])
    for fact in facts:
        yield "", 2, fact
    by_reason: dict[tuple[bool | None, str, tuple[str, ...]], list[Row]] = {}
    for row in rows:
        reason = (row["decays"], without_numbers(row["why"]), tuple(map(without_numbers, row["notes"])))
        by_reason.setdefault(reason, []).append(row)
    for (decays, *_), members in by_reason.items():
        why = in_common([row["why"] for row in members])
        notes = [in_common(same) for same in zip(*(row["notes"] for row in members), strict=True)]
        yield COLORS[decays], 2, f"decays: {YES[decays]}, {'; '.join([why, *notes])}{_seen_on(members)}"
        yield "", 4, _table(members, totals, with_dtype=len(dtypes) > 1)
    yield "", 0, ""


def _seen_on(rows: Sequence[Row]) -> str:
    """Name the parameters that were stepped in place of some of these."""
    names = list(dict.fromkeys(row["seen_on"] for row in rows if row["seen_on"] is not None))
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f" (seen on {', '.join(names[:2])}{more})" if names else ""


def _table(rows: Sequence[Row], totals: Counter[str], *, with_dtype: bool) -> Table:
    """Return a line for all parameters of one name; columns that say nothing are left out."""
    lines = _lines(rows, totals)
    firsts = [members[0] for _, members in lines]
    columns = {"parameter": [name for name, _ in lines]}
    if len(lines) < len(rows):
        columns["n"] = [str(len(members)) for _, members in lines]
    columns["shape"] = [" x ".join(map(str, row["shape"])) or "scalar" for row in firsts]
    if with_dtype:
        columns["dtype"] = [row["dtype"] for row in firsts]
    keys = ["lr", "lam"]  # of a block of several groups
    if len({_share(row) for row in rows}) > 1:
        keys.append("r")
    for key in keys:
        if len({row[key] for row in rows}) > 1 and len(lines) > 1:
            columns[key] = [_span([row[key] for row in members]) for _, members in lines]
    if any(row["what"] for row in firsts):
        columns["what it is"] = [row["what"] for row in firsts]
    return [tuple(columns), *zip(*columns.values(), strict=True)]


def _span(values: Iterable[float | None], write: Callable[[float], str] = "{:.4g}".format) -> str:
    """Return one number, or the smallest and the largest of several."""
    known = {value for value in values if value is not None}
    return spanned({value: write(value) for value in (min(known), max(known))}) if known else ""


def _facts(block: Sequence[Row], rows: Sequence[Row]) -> list[str]:
    """Return the law of some groups, its numbers now and at the peak, and the notes."""
    first = block[0]
    facts = [first["describe"]] if first["pathway"] != "not probed" else []  # else each row says why
    # What several optimizers remove together is no number of one group.
    own = [row for row in rows if row["r"] is not None and not row["also_in"]]
    decaying = own or [group for group in block if group["r"] is not None]
    lam = "lam" if first["pathway"] != "not probed" else "weight_decay"  # what is said; nobody knows whether it acts
    numbers = [
        f"{key} {span}"
        for key, source in ((lam, decaying or block), ("lr", block))
        if (span := _span(each[key] for each in source))
    ]
    at_peak = f"at the peak lr {_span(each['peak_lr'] for each in decaying)}"
    stopped = any(each["lr"] == 0.0 for each in decaying)  # r is that at the peak then
    changes = not stopped and any(not _alike(each["r"], each["r_peak"]) for each in decaying)
    if decaying:
        numbers.append(f"r {_span(each['r'] for each in decaying)}")
        numbers[-1] += " now" if changes else f" {at_peak}" if stopped else ""
    if changes:
        numbers.append(f"{_span(each['r_peak'] for each in decaying)} {at_peak}")
    if lives := [each for each in decaying if each["half_life"] is not None]:
        now, later = (_span((each[key] for each in lives), _amount) for key in ("half_life", "half_life_peak"))
        others = [
            f"{_span((each['half_life_peak'] * per for each in lives), _amount)} {unit}"
            for unit in ("epochs", "tokens")
            if (per := _per_step(lives[0], unit)) is not None
        ]
        if changes:
            others = [f" ({', '.join(others)})"] if others else [""]
            facts.append(", ".join(numbers))
            numbers = [f"half-life {now} steps now, {later} steps at the peak{others[0]}"]
        else:
            numbers += [f"half-life {now} steps", *others]
    facts.append(", ".join(numbers))
    notes = [in_common(same) for same in zip(*(group["notes"] for group in block), strict=True)]
    facts += [f"note: {note}" for note in notes if note.removeprefix("differs by shape: ") not in first["describe"]]
    return [fact for fact in facts if fact]


def _per_step(row: Row, unit: str) -> float | None:
    """Return how many epochs or tokens a step is; None if that was not given."""
    value: float | None = row.get(f"half_life_{unit}")
    return None if value is None else value / row["half_life"]


def _alike(one: float, other: float) -> bool:
    return f"{one:.3g}" == f"{other:.3g}"


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


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
