"""What a study is made of: arms to run, claims with decision rules, panels to draw. All of it is data.

A study is written before anything runs. Its numbers come from a store alone (`halflife.studies.evidence.results`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from halflife.studies.evidence.panels import AnyPanel, Cell, HeatPanel, Panel, PointRow, PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval
from halflife.studies.specs.base import RunSpec

__all__ = [
    "AnyPanel",
    "Arm",
    "Cell",
    "Claim",
    "Finding",
    "HeatPanel",
    "Outcome",
    "Panel",
    "PointRow",
    "PointsPanel",
    "Preset",
    "Published",
    "Study",
    "Verdict",
]

Outcome = Literal["reproduced", "not reproduced", "inconclusive"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One configuration, run once per seed.

    Args:
        key: Names the configuration within a study, the same at every size.
        label: What a reader sees in legends and tables.
        size: Where it stands on the scale ladder (a width, say).
        build: The spec of one seed.
    """

    key: str
    label: str
    size: int
    build: Callable[[int], RunSpec]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """One scale at which a study runs.

    Args:
        description: What it runs, in words.
        budget: The time that it is made for, in words.
        arms: Its configurations, ladder included.
        num_seeds: Seeds per arm at the main size.
        main_size: The size whose numbers give the verdicts.
        num_ladder_seeds: Seeds per arm at the other sizes.
        needs: What it needs beyond this package, in words (empty: nothing).
        decides: Whether its numbers may decide on a claim; a preset for tests is too small to.
    """

    description: str
    budget: str
    arms: tuple[Arm, ...]
    num_seeds: int
    main_size: int
    num_ladder_seeds: int = 0
    needs: str = ""
    decides: bool = True


@dataclass(frozen=True)
class Finding:
    """What the data say of a claim at one size: the outcome, the effect, and the sentence with the numbers.

    Args:
        outcome: What the decision rule says.
        effect: The effect with its interval, in the claim's unit (``None``: too few seeds).
        reason: One sentence with all numbers that the rule used.
    """

    outcome: Outcome
    effect: Interval | None
    reason: str


@dataclass(frozen=True, kw_only=True)
class Claim:
    """One claim of a paper with the rule that decides on it, both fixed before any run.

    Args:
        key: A letter or short name within the study.
        text: The claim.
        rule: The decision rule in words, bounds and margins included.
        effect_name: What the effect is, in words.
        unit: The effect's unit: ``"points"`` (of test error), ``"nats"`` (differences of losses), ``"%"``, ``"x"`` (a
            ratio) or ``""``. It says how the effect is written: in points and per cent with 2 decimals, in nats with 4.
        measure: The rule itself, for one size of the ladder.
        amended: What was changed of the rule when runs existed already, and why (empty: nothing).
    """

    key: str
    text: str
    rule: str
    effect_name: str
    unit: str
    measure: Callable[[Results, int], Finding]
    amended: str = ""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """A claim's finding at the main size, and the same measured at every size of the ladder."""

    study: str
    preset: str
    claim: Claim
    finding: Finding
    by_size: Mapping[int, Finding] = field(default_factory=dict)


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

    def __post_init__(self) -> None:
        slugs = [panel.file_slug for panel in self.panels]
        assert len(set(slugs)) == len(slugs), f"panels of {self.name} share a slug: {slugs}"
        assert set(self.doc_panels) <= set(slugs), f"doc_panels of {self.name} are not among {slugs}"
        keys = [claim.key for claim in self.claims]
        assert len(set(keys)) == len(keys), f"claims of {self.name} share a key: {keys}"
