"""Verdicts as plain rows and as Markdown, and how effects are written. Pages, docs and the terminal say the same."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any

from halflife.studies.evidence.claims import Finding, Row, Verdict
from halflife.studies.evidence.stats import Interval

__all__ = [
    "MARKS",
    "ROLES",
    "SYMBOLS",
    "effect_text",
    "estimate_text",
    "interval_text",
    "markdown_table",
    "numbers",
    "rule_rows",
    "rules_markdown",
    "sample_text",
    "typeset",
    "verdict_markdown",
    "verdict_rows",
]

SYMBOLS = {"reproduced": "✓", "not reproduced": "✗", "undecided": "?", "not tested": "○"}
MARKS = {"holds": "✓", "fails": "✗", "open": "?"}  # of the rows of a rule
ROLES = {"part": "decides", "given": "premise", "stake": "at stake"}
NOTHING = 1e-9  # an estimate below it that all seeds agree on is a rounding error
SIGNED = {"points": 2, "nats": 4, "%": 2}  # units of differences, and their decimals


def numbers(effect: Interval, unit: str) -> tuple[str, str, str]:
    """An effect's estimate and the ends of its interval as they are written; only a difference has a sign where it is positive.

    Args:
        effect: The effect.
        unit: The claim's unit.

    Returns:
        The three numbers: in nats with 4 decimals, else with 2, or with as many as the width of the interval asks for, or the
        estimate itself where all seeds agree; a large one needs none of them.

    Examples:
        >>> numbers(Interval(-0.0151, -0.019, -0.0112, 3), "nats"), numbers(Interval(2.3, 1.6, 3.3, 3), "x")
        (('-0.0151', '-0.0190', '-0.0112'), ('2.30', '1.60', '3.30'))
        >>> numbers(Interval(0.0004, 0.0001, 0.0007, 3), "")
        ('0.0004', '0.0001', '0.0007')
        >>> [numbers(Interval(value, value, value, 3), "")[0] for value in (2.0, 0.0025, -1e-16, 0.0)]
        ['2.00', '0.0025', '-0.00', '0.00']
    """
    sign = "+" if unit in SIGNED else ""
    decimals = SIGNED.get(unit, 2) if max(abs(effect.low), abs(effect.high)) < 1000 else 0
    half = (effect.high - effect.low) / 2
    if 0 < half < 1:
        decimals = max(decimals, math.ceil(-math.log10(half)))
    elif half == 0 and NOTHING < abs(effect.estimate) < 1:
        decimals = max(decimals, 1 + math.ceil(-math.log10(abs(effect.estimate))))
    estimate, low, high = (f"{value:{sign}.{decimals}f}" for value in (effect.estimate, effect.low, effect.high))
    return estimate, low, high


def interval_text(effect: Interval, unit: str) -> str:
    """An interval with its confidence, such as ``[-1.90, -0.50] (95 %)``."""
    _, low, high = numbers(effect, unit)
    return f"[{low}, {high}] ({100 * effect.confidence:.4g} %)"


def effect_text(effect: Interval | None, unit: str) -> str:
    """An effect with its unit, and its interval with the confidence that it was decided with.

    Args:
        effect: The effect (``None``: not measured).
        unit: The claim's unit.

    Returns:
        Such as ``-1.20 points [-1.90, -0.50] (95 %)``; a dash without an effect.
    """
    if effect is None:
        return "-"
    return f"{estimate_text(effect, unit)} {interval_text(effect, unit)}"


def typeset(text: str) -> str:
    """Real signs, and intervals that are not broken over two lines."""
    text = text.replace("+-", "\N{PLUS-MINUS SIGN}")
    text = re.sub(r"(?<![\w.^])-(?=\d)", "\N{MINUS SIGN}", text)
    return re.sub(r"\[[^][]*\](?: \([\d.]+ %\))?", lambda found: found[0].replace(" ", "\N{NO-BREAK SPACE}"), text)


def estimate_text(effect: Interval, unit: str) -> str:
    """An estimate with its unit, such as ``-1.20 points`` or ``2.30x``."""
    estimate = numbers(effect, unit)[0]
    return f"{estimate}x" if unit == "x" else f"{estimate} {unit}".rstrip()


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
        "rows": rule_rows(finding.rows),
    }


def _effect_parts(effect: Interval | None, unit: str) -> dict[str, str]:
    return {
        "effect_estimate": "" if effect is None else estimate_text(effect, unit),
        "effect_interval": "" if effect is None else interval_text(effect, unit),
    }


def rule_rows(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The table of a rule as plain values.

    Returns:
        One row a line: role, quantity, unit, test and outcome in words, the interval's numbers and the same as text.
    """
    return [
        {
            "role": row.role,
            "quantity": row.quantity,
            "unit": row.unit,
            "estimate": None if row.interval is None else row.interval.estimate,
            "low": None if row.interval is None else row.interval.low,
            "high": None if row.interval is None else row.interval.high,
            "confidence": None if row.interval is None else row.interval.confidence,
            "effect": effect_text(row.interval, row.unit),
            "sample": sample_text(row.interval),
            "test": row.test,
            "outcome": row.outcome,
            "note": row.note,
        }
        for row in rows
    ]


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
            "digest": verdict.claim.digest,
            "notes": list(verdict.notes),
            "effect_name": verdict.claim.effect_name,
            "unit": verdict.claim.unit,
            **_finding_row(verdict.finding),
            "effect": effect_text(verdict.finding.effect, verdict.claim.unit),
            **_effect_parts(verdict.finding.effect, verdict.claim.unit),
            "sample": sample_text(verdict.finding.effect),
            "by_size": [{"size": size, **_finding_row(finding)} for size, finding in sorted(verdict.by_size.items())],
        }
        for verdict in verdicts
    ]


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown.

    Args:
        header: Titles of the columns.
        rows: The cells.

    Returns:
        Lines without a last newline.
    """
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(cell.replace("|", r"\|") for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def verdict_markdown(verdicts: Sequence[Verdict], *, anchor: str = "") -> str:
    """Verdicts of one manifest as a Markdown table, for README and docs.

    Args:
        verdicts: As for `verdict_rows`.
        anchor: How the names of the places begin that links lead to (empty: there are none).

    Returns:
        Lines of Markdown.
    """
    return markdown_table(
        ("claim", "outcome", "effect [interval]", "n"),
        [
            (
                (f'<span id="{anchor}{row["claim"]}"></span>' if anchor else "") + f"**{row['claim']}**: {row['text']}",
                f"{SYMBOLS[row['outcome']]} {row['outcome']}",
                row["effect"],
                row["sample"],
            )
            for row in verdict_rows(verdicts)
        ],
    )


def rules_markdown(verdicts: Sequence[Verdict]) -> str:
    """How the verdicts of one manifest were decided: the tables of their rules, and why some are open.

    Args:
        verdicts: As for `verdict_rows`.

    Returns:
        Lines of Markdown: one table for all claims, and a list of reasons below it.
    """
    lines: list[tuple[str, ...]] = []
    for verdict in verdicts:
        for index, row in enumerate(rule_rows(verdict.finding.rows)):
            name = f"**{verdict.claim.key}**" if index == 0 else ""
            measured = row["effect"] if row["estimate"] is not None else row["note"]
            lines.append(
                (
                    name,
                    ROLES[row["role"]],
                    row["quantity"],
                    measured,
                    row["test"],
                    f"{MARKS[row['outcome']]} {row['outcome']}",
                )
            )
    header = ("claim", "role", "quantity", "measured [interval]", "holds if it", "outcome")
    parts = [markdown_table(header, lines)] if lines else []
    reasons = [f"- **{v.claim.key}**: {v.finding.reason}." for v in verdicts if v.finding.reason]
    return "\n\n".join(parts + (["\n".join(reasons)] if reasons else []))
