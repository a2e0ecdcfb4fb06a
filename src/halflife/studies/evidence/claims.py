"""What a study is made of: arms to run, claims with decision rules, panels to draw. All of it is data.

A study is written before anything runs. Its numbers come from a store alone (`halflife.studies.evidence.results`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from halflife.errors import UserError
from halflife.studies.evidence.panels import AnyPanel, Cell, HeatPanel, Panel, PointRow, PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding, Outcome, Row, Rule
from halflife.studies.specs.base import RunSpec

__all__ = [
    "AnyPanel",
    "Arm",
    "Cell",
    "Claim",
    "Finding",
    "HeatPanel",
    "Origin",
    "Outcome",
    "Panel",
    "PointRow",
    "PointsPanel",
    "Preset",
    "Published",
    "Row",
    "Rule",
    "Study",
    "Verdict",
    "presets",
]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration, run once per seed.

    Args:
        key: Names the configuration within a study, the same at every size.
        label: What a reader sees in legends and tables.
        size: Where it stands on the scale ladder (a width, say).
        spec: What is run; each seed gives it its own (`RunSpec.with_seed`).
    """

    key: str
    label: str
    size: int
    spec: RunSpec

    def build(self, seed: int) -> RunSpec:
        """The spec of one seed."""
        return self.spec.with_seed(seed)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One scale at which a study runs.

    Args:
        description: What it runs, in words.
        budget: The time that it is made for, in words.
        arms: Its configurations, ladder included.
        num_seeds: Seeds per arm at the main size, part of every rule: intervals are valid for a number fixed beforehand.
        main_size: The size whose numbers give the verdicts (0: that of the first arm).
        num_ladder_seeds: Seeds per arm at the other sizes.
        needs: What it needs beyond this package, in words (empty: nothing).
        decides: Whether its numbers may decide on a claim; a preset for tests is too small to.
    """

    description: str
    budget: str
    arms: tuple[Arm, ...]
    num_seeds: int = 5
    main_size: int = 0
    num_ladder_seeds: int = 3
    needs: str = ""
    decides: bool = True

    def __post_init__(self) -> None:
        if not self.main_size and self.arms:
            object.__setattr__(self, "main_size", self.arms[0].size)


def presets(
    *, smoke: Preset, laptop: Preset, night: Preset | None = None, paper: Preset | None = None
) -> dict[str, Preset]:
    """A study's presets by name, with what every smoke preset has: two seeds, no verdicts.

    Args:
        smoke: A few seconds, for tests; its description says what is run.
        laptop: Minutes on two cores.
        night: Hours, with a ladder of sizes.
        paper: The paper's own setting.

    Returns:
        Those that are given.
    """
    test = replace(
        smoke,
        description=f"{smoke.description}: shows that everything works, not what is true",
        num_seeds=2,
        num_ladder_seeds=2,
        decides=False,
    )
    named = {"smoke": test, "laptop": laptop, "night": night, "paper": paper}
    return {name: preset for name, preset in named.items() if preset is not None}


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper with the rule that decides on it, both fixed before any run.

    Args:
        key: Its name within the study: a word or a few.
        text: The claim, so that it can be read alone.
        rule: The decision rule.
        amended: What was changed of the rule when runs existed already, and why (empty: nothing).
    """

    key: str
    text: str
    rule: Rule
    amended: str = ""

    @property
    def words(self) -> str:
        """The rule in words."""
        return self.rule.words

    @property
    def effect_name(self) -> str:
        """What the effect is, in words."""
        return self.rule.shown.name

    @property
    def unit(self) -> str:
        """The effect's unit."""
        return self.rule.shown.unit

    @property
    def digest(self) -> str:
        """sha256 of text and rule, in hexadecimal, as a manifest records it before the first run."""
        return hashlib.sha256(f"{self.text}\n{self.rule.digest}".encode()).hexdigest()

    def decide(self, results: Results, size: int) -> Finding:
        """What the results say at a size."""
        return self.rule.decide(results, size)


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim's finding at the main size, and the same measured at every size of the ladder.

    Notes are sentences that a reader must know: what was changed when, or that seeds were added after a look.
    """

    study: str
    preset: str
    claim: Claim
    finding: Finding
    by_size: Mapping[int, Finding] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Published:
    """A number of the paper, shown beside ours. It decides nothing.

    Args:
        quantity: What the number is, in words, with unit.
        published: The paper's number, as text.
        where: Figure, table or section.
        how: ``"text"`` (printed in words or a table), ``"fig-read"`` (read off a figure by eye, and marked so) or
            ``"notebook"`` (from the published code's outputs).
        ours: The same from the results, with its interval, as text. Called when at least two seeds are finished in every
            arm of the main size and no run was cut.
    """

    quantity: str
    published: str
    where: str
    how: Literal["text", "fig-read", "notebook"]
    ours: Callable[[Results], str]


@dataclass(frozen=True, kw_only=True)
class Origin:
    """The file of a user's own study.

    Args:
        path: The file, absolute.
        name: The study's name in it.
        sha256: Of its bytes when it was read.
        shown: The file as manifests and messages have it: relative, or its name alone.
    """

    path: Path
    name: str
    sha256: str
    shown: str

    @property
    def module(self) -> str:
        """What ``sys.modules`` knows it by, in every process: runs travel to workers by the names of their classes."""
        place = hashlib.sha256(str(self.path).encode()).hexdigest()[:8]
        return f"own_study_{re.sub(r'[^0-9A-Za-z]', '_', self.path.stem)}_{place}"

    @property
    def reference(self) -> str:
        """As on the command line: ``my_file.py:STUDY``."""
        return f"{self.shown}:{self.name}"


@dataclass(frozen=True, kw_only=True)
class Study:
    """A claim of the literature as an experiment.

    Args:
        name: As on the command line.
        title: A headline.
        source: Paper, section, figure.
        claim: The claim in one or two sentences.
        claims: Its parts, each with a decision rule.
        presets: By name, ``"laptop"`` among them.
        panels: The figures, in the paper's order.
        published: The paper's numbers beside which ours are shown.
        size_name: What the sizes of the ladder are (empty: the one field of the specs that equals the size).
        doc_panels: Slugs of the panels that the docs show (empty: the first two).
        origin: The file of the user's own that it was read from (``None``: it is one of ours).

    Raises:
        UserError: Two claims share a key, two panels a slug, or ``doc_panels`` names a panel that is not there.
    """

    name: str
    title: str
    source: str
    claim: str
    claims: tuple[Claim, ...]
    presets: Mapping[str, Preset]
    panels: tuple[AnyPanel, ...]
    published: tuple[Published, ...] = ()
    size_name: str = ""
    doc_panels: tuple[str, ...] = ()
    origin: Origin | None = None

    def __post_init__(self) -> None:
        slugs = [panel.file_slug for panel in self.panels]
        for what, part, names in (
            ("claims", "key", [claim.key for claim in self.claims]),
            ("panels", "slug", slugs),
        ):
            twice = sorted({name for name in names if names.count(name) > 1})
            if twice:
                raise UserError(
                    f"{self.name} has two {what} of the {part} {twice[0]!r}, expected each once: rename one of them"
                )
        if missing := [slug for slug in self.doc_panels if slug not in slugs]:
            raise UserError(
                f"doc_panels of {self.name} has {missing[0]!r}, expected some of {', '.join(slugs)}: change doc_panels"
            )
