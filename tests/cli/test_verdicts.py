"""Verdicts in the terminal: the table fits, says nothing twice, and one last line counts."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from halflife.cli.verdicts import counts_line, verdict_table
from halflife.studies.catalog import STUDIES
from halflife.studies.evidence.claims import Finding, Verdict
from halflife.studies.evidence.stats import Interval
from halflife.studies.report.pages.tables import SYMBOLS

CLAIMS = STUDIES["stabilization"].claims
EFFECT = Interval(-1.906, -2.186, -1.626, 5, 10_000, confidence=0.9)


def verdict(index: int, outcome: Any, reason: str = "", notes: tuple[str, ...] = ()) -> Verdict:
    effect = None if outcome == "not tested" else EFFECT
    return Verdict(
        study="s", preset="laptop", claim=CLAIMS[index], finding=Finding(outcome, effect, reason), notes=notes
    )


VERDICTS = [
    verdict(0, "reproduced"),
    verdict(1, "undecided", "it is known to +-0.28 points; 14 seeds would decide"),
    verdict(2, "not tested", "the premise does not hold: [bold]it[/]"),
    verdict(3, "not reproduced", notes=("the rule was changed",)),
]


def printed(verdicts: list[Verdict], width: int) -> list[str]:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(verdict_table(verdicts, "s (laptop)", width))
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [100, 80, 60])
def test_the_table_fits_and_says_all_once(width: int) -> None:
    lines = printed(VERDICTS, width)
    assert max(map(len, lines)) <= width
    text = " ".join(" ".join(lines).split())
    assert lines[0].strip() == "s (laptop)"
    for outcome, symbol in SYMBOLS.items():
        assert text.count(f"{symbol} {outcome}") == 1
    # The cells stand in columns, so a sentence is found in its own column alone.
    column = [line[lines[2].index("claim") :] for line in lines[4:]]
    if width >= 90:
        column = [line[: lines[2].index("effect") - lines[2].index("claim")] for line in column]
    claims = " ".join(" ".join(column).split())
    for one in VERDICTS:
        assert f"{one.claim.key} {one.claim.text}" in claims
        assert one.finding.reason in claims
    assert claims.count("14 seeds would decide") == 1
    assert "the premise does not hold: [bold]it[/]" in claims, "what is not ours is not read as markup"
    assert "the rule was changed" in claims
    assert text.count("-1.91 points") == 3
    assert text.count("[-2.19, -1.63] (90 %)") == 3, "the confidence is that of the interval"
    assert text.count("10,000 examples") == 3


def test_what_is_true_of_all_is_said_once() -> None:
    note = "5 seeds were planned, and 8 later"
    found = [verdict(index, "undecided", "no seed decides", (note,)) for index in range(3)]
    text = " ".join(" ".join(printed(found, 100)).split())
    assert text.count(note) == text.count("no seed decides") == 1
    assert f"of all: no seed decides of all: {note}" in text


@pytest.mark.parametrize(
    ("outcomes", "line"),
    [
        (["reproduced"] * 3 + ["not reproduced"] * 2 + ["undecided"], "3 reproduced, 2 not, 1 undecided"),
        (["not tested", "not reproduced"], "1 not reproduced, 1 not tested"),
        (["undecided", "reproduced"], "1 reproduced, 1 undecided"),
        ([], ""),
    ],
)
def test_the_last_line_counts(outcomes: list[Any], line: str) -> None:
    assert counts_line([verdict(0, outcome) for outcome in outcomes]) == line
