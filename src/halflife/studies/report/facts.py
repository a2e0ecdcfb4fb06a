"""What was found, with everything filled in from results: as a page of the docs, and for the first page of a report."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog import STUDIES
from halflife.studies.evidence.claims import Row, Verdict
from halflife.studies.evidence.stats import Interval
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.findings import LISTS, Block, Findings, placeholder, replaced
from halflife.studies.report.pages.guide import tells_most
from halflife.studies.report.pages.scale import scale_of
from halflife.studies.report.pages.tables import (
    SYMBOLS,
    effect_text,
    estimate_text,
    interval_text,
    markdown_table,
    sample_text,
    typeset,
)

__all__ = ["ABSENT", "Facts", "findings_html", "findings_markdown"]

ABSENT = "not run here"
MARKED = {f"{symbol} {outcome}": outcome for outcome, symbol in SYMBOLS.items()}
INLINE = re.compile(r"`([^`]+)`|\*\*(.+?)\*\*|\*(?!\s)([^*]+)\*|\[([^\]]+)\]\(((?:https?://)?[^()\s:]+)\)")

Link = Callable[[str, str, str], str]
"""Where a study and preset stand, and a claim of theirs, or the page itself for ``""``."""


class Facts:
    """What results say, for placeholders.

    Args:
        many: Results with their verdicts, of any studies and presets.
        link: Where they stand.
    """

    def __init__(self, many: Sequence[tuple[StudyResults, Sequence[Verdict]]], link: Link) -> None:
        self._many = {(r.study.name, r.preset_name): (r, {v.claim.key: v for v in verdicts}) for r, verdicts in many}
        self._best = {
            name: best
            for name in STUDIES
            if (best := tells_most([r for r, _ in many if r.study.name == name])) is not None
        }
        self._link = link

    def has(self, study: str) -> bool:
        """Whether there are results of a study."""
        return study in self._best

    def name_link(self, name: str, words: str = "") -> str:
        """A study's name, or words for it, with a link where there are results of it."""
        words = words or name
        return f"[{words}]({self._link(name, self._best[name].preset_name, '')})" if self.has(name) else words

    def filled(self, text: str) -> str:
        """A text with its placeholders replaced; what there are no results of is `ABSENT`."""
        return replaced(text, self._value)

    def all_of(self, outcome: str) -> tuple[str, ...]:
        """All claims with an outcome, of each study those of one preset: the items of a list."""
        items = []
        for study, best in self._best.items():
            for key, verdict in self._many[study, best.preset_name][1].items():
                if verdict.finding.outcome == outcome:
                    where = self._link(study, best.preset_name, key)
                    reason = f": {verdict.finding.reason}" if verdict.finding.reason else ""
                    items.append(f"[{study}, {key}]({where}): {verdict.claim.text.rstrip('.')}{reason}.")
        return tuple(items) or ("none",)

    def _value(self, words: str) -> str:
        study, preset, key, role, number, field = placeholder(words)
        if field == "link":
            return self.name_link(study, STUDIES[study].title)
        results = self._many.get((study, preset or (self._best[study].preset_name if study in self._best else "")))
        if results is None:
            return ABSENT
        found, verdicts = results
        if field == "scale":
            return scale_of(found)
        verdict = verdicts[key]
        finding = verdict.finding
        mark = f"[{SYMBOLS[finding.outcome]} {finding.outcome}]({self._link(study, found.preset_name, key)})"
        if role:
            rows = [row for row in finding.rows if row.role == role]
            if number > len(rows):
                return f"not measured ({finding.reason})" if finding.reason else "not measured"
            return _of_row(rows[number - 1], field)
        if field == "mark":
            return mark
        if field == "reason":
            return finding.reason or "decided"
        value = _number(finding.effect, verdict.claim.unit, field or "effect")
        return value if field else f"{value}, {mark}"


def _of_row(row: Row, field: str) -> str:
    if field in {"quantity", "outcome"}:
        return str(getattr(row, field))
    return _number(row.interval, row.unit, field)


def _number(effect: Interval | None, unit: str, field: str) -> str:
    if effect is None:
        return "not measured"
    texts: Mapping[str, Callable[[], str]] = {
        "estimate": lambda: estimate_text(effect, unit),
        "interval": lambda: interval_text(effect, unit),
        "effect": lambda: effect_text(effect, unit),
        "n": lambda: sample_text(effect),
    }
    return texts[field]()


@dataclass(frozen=True)
class _Told:
    """One question with everything filled in, as Markdown."""

    number: int
    text: str
    answer: str
    studies: str
    blocks: tuple[Block, ...]

    @property
    def heading(self) -> str:
        return f"{self.number}. {self.text}"

    @property
    def anchor(self) -> str:
        return f"question-{self.number}"


def _told(findings: Findings, facts: Facts) -> list[_Told]:
    told = []
    for number, question in enumerate(findings.questions, 1):
        blocks: tuple[Block, ...] = tuple(_told_block(block, facts) for block in question.blocks)
        answer = facts.filled(question.answer)
        if not any(map(facts.has, question.studies)):
            blocks = (f"Not run here: `halflife study run {' '.join(question.studies)}`.",)
            answer = ABSENT
        studies = ", ".join(map(facts.name_link, question.studies))
        told.append(_Told(number, question.text, answer, studies, blocks))
    return told


def _told_block(block: Block, facts: Facts) -> Block:
    if isinstance(block, tuple):
        return tuple(map(facts.filled, block))
    name = block.strip("{}")
    return facts.all_of(name) if name in LISTS else facts.filled(block)


def findings_markdown(findings: Findings, facts: Facts) -> str:
    """The findings as a page of the docs.

    Args:
        findings: From `read_findings`.
        facts: What to fill in, with links from the page.

    Returns:
        Markdown.
    """
    told = _told(findings, facts)
    rows = [(f"[{one.heading}](#{one.anchor})", one.answer, one.studies) for one in told]
    table = markdown_table(("question", "answer", "studies"), rows)
    parts = [
        f"# {findings.title}",
        *_as_markdown([_told_block(block, facts) for block in findings.introduction]),
        table,
    ]
    for one in told:
        # Renderers make anchors of headings differently.
        parts += [f'<a id="{one.anchor}"></a>', f"## {one.heading}", *_as_markdown(one.blocks)]
    return "\n\n".join(parts) + "\n"


def _as_markdown(blocks: Sequence[Block]) -> list[str]:
    return [block if isinstance(block, str) else "\n".join(f"- {item}" for item in block) for block in blocks]


def findings_html(findings: Findings, facts: Facts) -> dict[str, Any]:
    """The findings for the first page of a report.

    Args:
        findings: From `read_findings`.
        facts: What to fill in, with links between pages.

    Returns:
        Values for the template; texts are HTML.
    """
    return {
        "title": findings.title,
        "introduction": _as_html([_told_block(block, facts) for block in findings.introduction]),
        "questions": [
            {
                "number": one.number,
                "text": one.text,
                "anchor": one.anchor,
                "answer": _inline(one.answer),
                "studies": _inline(one.studies),
                "body": _as_html(one.blocks),
            }
            for one in _told(findings, facts)
        ],
    }


def _as_html(blocks: Sequence[Block]) -> str:
    parts = []
    for block in blocks:
        if isinstance(block, str):
            parts.append(f"<p>{_inline(block)}</p>")
        else:
            parts.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in block) + "</ul>")
    return "\n".join(parts)


def _inline(text: str) -> str:
    """Markdown within a line as HTML; everything else is escaped."""
    out, at = [], 0
    for found in INLINE.finditer(text):
        out.append(_plain(text[at : found.start()]))
        code, bold, emphasis, words, target = found.groups()
        if code is not None:
            out.append(f"<code>{html.escape(code)}</code>")
        elif bold is not None:
            out.append(f"<strong>{_inline(bold)}</strong>")
        elif emphasis is not None:
            out.append(f"<em>{_inline(emphasis)}</em>")
        else:
            outcome = MARKED.get(words, "")
            look = f' class="mark-of {outcome.replace(" ", "-")}"' if outcome else ""
            out.append(f'<a{look} href="{html.escape(target)}">{_inline(words)}</a>')
        at = found.end()
    return "".join(out) + _plain(text[at:])


def _plain(text: str) -> str:
    return html.escape(typeset(text), quote=False)
