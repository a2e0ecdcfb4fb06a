"""Verdicts for the terminal: a table that fits it, and how many there are of each outcome in one line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich import box
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Verdict

__all__ = ["counts_line", "verdict_table"]

COLOURS = {"reproduced": "green", "not reproduced": "red", "undecided": "yellow", "not tested": "dim"}
COUNTED = {"reproduced": "reproduced", "not reproduced": "not", "undecided": "undecided", "not tested": "not tested"}
WIDE = 90  # columns from which on effects and samples have columns of their own


def counts_line(verdicts: Iterable[Verdict]) -> str:
    """How many claims ended how, such as ``3 reproduced, 2 not, 1 undecided``; empty without verdicts."""
    counts = Counter[str](verdict.finding.outcome for verdict in verdicts)
    words = {**COUNTED, "not reproduced": "not" if counts["reproduced"] else "not reproduced"}
    return ", ".join(f"{counts[outcome]} {word}" for outcome, word in words.items() if counts[outcome])


def verdict_table(verdicts: Sequence[Verdict], title: str, width: int) -> Table:
    """The verdicts of one study and preset: outcome, claim, effect, and of what is open the reason.

    Args:
        verdicts: From `halflife.studies.evidence.verdicts.StudyResults.verdicts`.
        title: What stands above.
        width: Columns of the terminal; in a narrow one effects stand below their claims.

    Returns:
        Something that rich prints.
    """
    table = Table(
        box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1), title=Text(title), title_justify="left", title_style="bold"
    )
    wide = width >= WIDE
    table.add_column("outcome", no_wrap=True)
    table.add_column("claim")
    if wide:
        table.add_column("effect [interval]", no_wrap=True)
        table.add_column("n", no_wrap=True)
    said = [[words for words in (verdict.finding.reason, *verdict.notes) if words] for verdict in verdicts]
    shared = [words for words in said[0] if len(said) > 1 and all(words in own for own in said)] if said else []
    for verdict, own in zip(verdicts, said, strict=True):
        table.add_row(*_cells(verdict, [words for words in own if words not in shared], wide=wide))
    if shared:
        table.caption = Text("\n".join(f"of all: {words}" for words in shared), style="yellow not italic")
        table.caption_justify = "left"
    return table


def _cells(verdict: Verdict, said: Sequence[str], *, wide: bool) -> list[Text]:
    # With numpy, which whoever only lists the options of the command does without.
    from halflife.studies.report.pages.tables import SYMBOLS, estimate_text, interval_text, sample_text

    claim, finding = verdict.claim, verdict.finding
    outcome, effect = finding.outcome, finding.effect
    words = Text.assemble((claim.key, "bold"), f"  {claim.text}")
    estimate, interval, sample = "-", "", ""
    if effect is not None:
        estimate, interval = estimate_text(effect, claim.unit), interval_text(effect, claim.unit)
        sample = sample_text(effect)
    if effect is not None and not wide:
        words.append(f"\n{estimate} {interval}, {sample}")
    for sentence in said:
        words.append(f"\n{sentence}", style=COLOURS[outcome] if sentence == finding.reason else "yellow")
    cells = [Text(f"{SYMBOLS[outcome]} {outcome}", style=COLOURS[outcome]), words]
    return [*cells, Text(f"{estimate}\n{interval}"), Text(sample.replace(", ", "\n", 1))] if wide else cells
