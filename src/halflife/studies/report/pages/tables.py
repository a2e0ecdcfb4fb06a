"""Verdicts as plain rows, as Markdown and as a table for the terminal. All three say the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from halflife.studies.evidence.claims import Finding, Verdict
from halflife.studies.evidence.stats import Interval

__all__ = ["effect_text", "numbers", "sample_text", "verdict_markdown", "verdict_rows", "verdict_table"]

SYMBOLS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?", "not tested": "\N{EN DASH}"}
COLOURS = {"reproduced": "green", "not reproduced": "red", "undecided": "yellow", "not tested": "dim"}


def numbers(effect: Interval, unit: str) -> tuple[str, str, str]:
    """An effect's estimate and the ends of its interval as they are written; a ratio has no sign.

    Args:
        effect: The effect.
        unit: The claim's unit.

    Returns:
        The three numbers: in nats with 4 decimals, else with 2; a large one needs none of them.

    Examples:
        >>> numbers(Interval(-0.0151, -0.019, -0.0112, 3), "nats"), numbers(Interval(2.3, 1.6, 3.3, 3), "x")
        (('-0.0151', '-0.0190', '-0.0112'), ('2.30', '1.60', '3.30'))
    """
    sign = "" if unit == "x" else "+"
    decimals = (4 if unit == "nats" else 2) if max(abs(effect.low), abs(effect.high)) < 1000 else 0
    estimate, low, high = (f"{value:{sign}.{decimals}f}" for value in (effect.estimate, effect.low, effect.high))
    return estimate, low, high


def effect_text(effect: Interval | None, unit: str) -> str:
    """An effect with its interval and unit.

    Args:
        effect: The effect (``None``: too few seeds).
        unit: The claim's unit.

    Returns:
        Such as ``-1.20 [-1.90, -0.50] points``; a dash without an effect.
    """
    if effect is None:
        return "-"
    estimate, low, high = numbers(effect, unit)
    return f"{estimate} [{low}, {high}] {unit}".rstrip()


def sample_text(effect: Interval | None) -> str:
    """What an effect rests on.

    Returns:
        Such as ``5 seeds, 1,000 examples``; a dash without an effect.
    """
    if effect is None:
        return "-"
    examples = "" if effect.num_examples is None else f", {effect.num_examples:,} {effect.example_name}"
    return f"{effect.num_seeds} seeds{examples}"


def _finding_row(finding: Finding) -> dict[str, Any]:
    effect = finding.effect
    return {
        "outcome": finding.outcome,
        "estimate": None if effect is None else effect.estimate,
        "low": None if effect is None else effect.low,
        "high": None if effect is None else effect.high,
        "confidence": None if effect is None else effect.confidence,
        "num_seeds": None if effect is None else effect.num_seeds,
        "num_examples": None if effect is None else effect.num_examples,
        "example_name": None if effect is None else effect.example_name,
        "reason": finding.reason,
    }


def verdict_rows(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """Verdicts as plain values, ready for JSON.

    Args:
        verdicts: From `halflife.studies.evidence.verdicts.StudyResults.verdicts`, of one manifest or of several.

    Returns:
        One row a verdict: what was claimed, the outcome, the effect with its interval, what it rests on, the rule,
        and in ``by_size`` the same for each size of the ladder.
    """
    return [
        {
            "study": verdict.study,
            "preset": verdict.preset,
            "claim": verdict.claim.key,
            "text": verdict.claim.text,
            "rule": verdict.claim.words,
            "amended": verdict.claim.amended,
            "effect_name": verdict.claim.effect_name,
            "unit": verdict.claim.unit,
            **_finding_row(verdict.finding),
            "effect": effect_text(verdict.finding.effect, verdict.claim.unit),
            "sample": sample_text(verdict.finding.effect),
            "by_size": [{"size": size, **_finding_row(finding)} for size, finding in sorted(verdict.by_size.items())],
        }
        for verdict in verdicts
    ]


def _manifests(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """The studies and presets of the rows, in their order, each once."""
    return list(dict.fromkeys((row["study"], row["preset"]) for row in rows))


def verdict_markdown(verdicts: Sequence[Verdict], *, reasons: bool = True) -> str:
    """Verdicts as a Markdown table with one reason a line below it, for README and docs.

    Args:
        verdicts: As for `verdict_rows`.
        reasons: Whether the reasons follow, and the names of study and preset come before; else there is the table alone.

    Returns:
        Markdown that ends with a newline; one table a study and preset.
    """
    rows = verdict_rows(verdicts)
    parts = []
    for study, preset in _manifests(rows):
        own = [row for row in rows if (row["study"], row["preset"]) == (study, preset)]
        lines = [f"**{study}**, preset `{preset}`", ""] if reasons else []
        lines += [
            "| claim | outcome | effect [95 % interval] | n |",
            "| --- | --- | --- | --- |",
        ]
        lines += [
            "| "
            + " | ".join(
                cell.replace("|", r"\|")
                for cell in (
                    f"({row['claim']}) {row['text']}",
                    f"{SYMBOLS[row['outcome']]} {row['outcome']}",
                    row["effect"],
                    row["sample"],
                )
            )
            + " |"
            for row in own
        ]
        if reasons:
            lines += ["", *(f"- ({row['claim']}) {row['reason']}." for row in own)]
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """Verdicts as a table for the terminal, with one reason a line below it; made for 80 columns or more.

    Args:
        verdicts: As for `verdict_rows`.

    Returns:
        Something that rich prints.
    """
    rows = verdict_rows(verdicts)
    manifests = _manifests(rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title_justify="left", title_style="bold")
    if len(manifests) == 1:
        table.title = "{} ({})".format(*manifests[0])
    table.add_column("claim", min_width=24)
    table.add_column("outcome", no_wrap=True)
    # Estimate and interval stand on two lines, and so do seeds and examples: that keeps 80 columns readable.
    table.add_column("effect [95 %]", no_wrap=True)
    table.add_column("n", no_wrap=True)
    for study, preset in manifests:
        own = [row for row in rows if (row["study"], row["preset"]) == (study, preset)]
        if len(manifests) > 1:
            table.add_row(Text(f"{study} ({preset})", style="bold"), "", "", "")
        for row in own:
            table.add_row(
                Text.assemble((row["claim"], "bold"), f"  {row['text']}"),
                Text(f"{SYMBOLS[row['outcome']]} {row['outcome']}", style=COLOURS[row["outcome"]]),
                Text(re.sub(r" (\[.*\])(.*)", r"\2\n\1", row["effect"])),
                Text(row["sample"].replace(", ", "\n", 1)),
                end_section=row is own[-1],
            )
    several = len(manifests) > 1
    reasons = [
        Text.assemble(
            (f"{row['study']} {row['claim']}" if several else row["claim"], "bold"),
            f": {row['reason']}",
            style="not italic",
        )
        for row in rows
    ]
    table.caption = Text("\n").join(reasons)
    table.caption_justify = "left"
    table.caption_style = "default"
    return table
