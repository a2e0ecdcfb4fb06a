"""What was found, in words that are written by hand, with numbers, marks and links filled in from results.

The words stand in ``catalog/findings.md``. Its form is a part of Markdown and nothing else:

    # What was found                                     one title, then paragraphs
    ## Does decay lower the test error?                  a question; numbers are made here
    Answer: Yes {stabilization.helps.mark}.              one line, for the table of questions
    Studies: stabilization, stabilization-vgg            the studies behind the answer
    Paragraphs, and lists of "- " items, with **bold**, *emphasis*, `code` and [words](https://...).

Placeholders, of which ``study`` may be ``study@preset`` (else the largest finished preset speaks, as on the papers' pages):

    {study.claim}                   estimate, interval and mark      -1.91 points [-2.19, -1.63] (95 %), ✓ reproduced
    {study.claim.FIELD}             estimate, interval, effect (both), mark, n, reason
    {study.claim.ROLE.FIELD}        of a row of the rule's table (part1, part2, ..., given1, ..., stake1, ...):
                                    quantity, estimate, interval, effect, n, outcome
    {study.scale}, {study.link}     which model and data; the study's title with a link
    {undecided}, {not tested}       alone on a line: a list of all such claims, each with its reason
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources

from halflife.errors import UserError
from halflife.studies.catalog import STUDIES
from halflife.studies.evidence.claims import Claim

__all__ = ["LISTS", "Block", "Findings", "Question", "check_findings", "placeholder", "read_findings", "replaced"]

FILE = "findings.md"
LISTS = ("undecided", "not tested")
NUMBERS = ("estimate", "interval", "effect", "n")
OF_STUDY, OF_CLAIM, OF_ROW = ("scale", "link"), (*NUMBERS, "mark", "reason"), (*NUMBERS, "quantity", "outcome")
ROLES = {"part": "parts", "given": "given", "stake": "stake"}

Block = str | tuple[str, ...]  # a paragraph, or the items of a list


@dataclass(frozen=True)
class Question:
    """One question with what was found.

    Args:
        text: The question.
        answer: One line.
        studies: Names of the studies behind it.
        blocks: The words.
    """

    text: str
    answer: str
    studies: tuple[str, ...]
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Findings:
    """The words, with placeholders.

    Args:
        title: A headline.
        introduction: What comes before the questions.
        questions: In their order.
    """

    title: str
    introduction: tuple[Block, ...]
    questions: tuple[Question, ...]


def read_findings(text: str | None = None) -> Findings:
    """The words of `halflife.studies.catalog`, or of another text in their form.

    Args:
        text: The text (``None``: that of the package).

    Returns:
        The words.

    Raises:
        UserError: The text has another form; the message names the line.
    """
    if text is None:
        text = resources.files("halflife.studies.catalog").joinpath(FILE).read_text(encoding="utf-8")
    title, parts = "", [_Part()]
    for number, line in enumerate(text.splitlines(), 1):
        if re.match(r"#|\||>|<|\d+\. |```", line) and not re.match("#{1,2} .", line):
            raise UserError(_misformed(number, f"{line[:40]!r} is no title, question, paragraph or list of '- ' items"))
        if line.startswith("# "):
            if title or parts[1:]:
                raise UserError(_misformed(number, "a second title"))
            title = line[2:].strip()
        elif line.startswith("## "):
            parts.append(_Part(line[3:].strip(), number))
        else:
            parts[-1].add(line)
    if not title:
        raise UserError(_misformed(1, "there is no title"))
    introduction, *questions = parts
    return Findings(title, introduction.blocks(), tuple(part.question() for part in questions))


class _Part:
    """The lines of one question, or those before the first."""

    def __init__(self, text: str = "", number: int = 0) -> None:
        self.text, self.number = text, number
        self.heads: dict[str, str] = {}
        self.lines: list[str] = []

    def add(self, line: str) -> None:
        name, colon, rest = line.partition(":")
        if self.text and colon and name in {"Answer", "Studies"} and name not in self.heads:
            self.heads[name] = rest.strip()
        else:
            self.lines.append(line)

    def blocks(self) -> tuple[Block, ...]:
        found: list[list[str]] = [[]]  # the lines of each block
        for line in self.lines:
            if not line.strip():
                found.append([])
            elif line.startswith("- ") and found[-1] and not found[-1][0].startswith("- "):
                found.append([line])
            elif found[-1] and not line.startswith("- "):
                found[-1][-1] += f" {line.strip()}"
            else:
                found[-1].append(line.rstrip())
        return tuple(
            tuple(item[2:] for item in lines) if lines[0].startswith("- ") else lines[0] for lines in found if lines
        )

    def question(self) -> Question:
        if missing := [name for name in ("Answer", "Studies") if not self.heads.get(name)]:
            raise UserError(_misformed(self.number, f"the question {self.text!r} has no line '{missing[0]}: ...'"))
        studies = tuple(name.strip() for name in self.heads["Studies"].split(","))
        return Question(self.text, self.heads["Answer"], studies, self.blocks())


def _misformed(number: int, words: str) -> str:
    return f"{FILE}, line {number}: {words}, expected the form that halflife.studies.report.findings describes"


def check_findings(findings: Findings) -> None:
    """Check every placeholder and every study against the catalog.

    Raises:
        UserError: One names what there is not; the message quotes it.
    """
    for question in findings.questions:
        for name in question.studies:
            _study(name, name)
        for text in _texts([question.answer, *question.blocks]):
            replaced(text, functools.partial(_check, text=text))
    for text in _texts(findings.introduction):
        replaced(text, functools.partial(_check, text=text))


def _texts(blocks: Sequence[Block]) -> Iterator[str]:
    for block in blocks:
        yield from (block,) if isinstance(block, str) else block


def replaced(text: str, fill: Callable[[str], str]) -> str:
    """A text with its placeholders replaced."""
    out = re.sub(r"\{([^{}]*)\}", lambda found: fill(found[1]), text)
    if "{" in re.sub(r"\{[^{}]*\}", "", text) or "}" in re.sub(r"\{[^{}]*\}", "", text):
        raise UserError(f"{FILE} has a brace without its partner in {text[:60]!r}: write {{study.claim}}, or no brace")
    return out


def _study(name: str, words: str) -> tuple[str, str]:
    """Study and preset (empty: any) of the first part of a placeholder, both known."""
    study, _, preset = name.partition("@")
    if study not in STUDIES:
        raise UserError(f"{FILE} names a study {study!r} in {words!r}, and the catalog has none of this name")
    if "@" in name and preset not in STUDIES[study].presets:
        raise UserError(f"{FILE} names a preset {preset!r} in {words!r}, and {study} has none of this name")
    return study, preset


def placeholder(words: str) -> tuple[str, str, str, str, int, str]:
    """A placeholder's study, preset, claim, role, number in this role, and field; empty or 0 where it has none."""
    name, *rest = words.split(".")
    study, preset = _study(name, words)
    if rest and rest[0] in OF_STUDY and len(rest) == 1:
        return study, preset, "", "", 0, rest[0]
    # A claim's key may have dots itself.
    keys = sorted((claim.key for claim in STUDIES[study].claims), key=len, reverse=True)
    after = ".".join(rest)
    key = next((key for key in keys if after == key or after.startswith(f"{key}.")), None)
    if key is None:
        raise UserError(
            f"{FILE} has {{{words}}}, and {study} has no such claim, expected one of {', '.join(sorted(keys))}, or"
            f" {' or '.join(OF_STUDY)}"
        )
    left = after[len(key) + 1 :].split(".") if after != key else [""]
    row = re.fullmatch(r"(part|given|stake)([1-9]\d*)", left[0])
    if row is None and len(left) == 1 and left[0] in {"", *OF_CLAIM}:
        return study, preset, key, "", 0, left[0]
    if row is not None and len(left) == 2 and left[1] in OF_ROW:
        return study, preset, key, row[1], int(row[2]), left[1]
    raise UserError(
        f"{FILE} has {{{words}}}, expected {{{study}.{key}.FIELD}} with one of {', '.join(OF_CLAIM)}, or"
        f" {{{study}.{key}.part1.FIELD}} with one of {', '.join(OF_ROW)}"
    )


def _check(words: str, text: str) -> str:
    if words in LISTS:
        if text != f"{{{words}}}":
            raise UserError(f"{FILE} has {{{words}}} within {text[:60]!r}: let it stand alone")
        return ""
    study, _, key, role, number, _ = placeholder(words)
    if role:
        claim = next(claim for claim in STUDIES[study].claims if claim.key == key)
        rows = len(getattr(claim.rule, ROLES[role])) if isinstance(claim, Claim) else 0
        if not rows:
            raise UserError(f"{FILE} has {{{words}}}, and the rule of {study} {key} has no row {role}{number}")
    return ""
