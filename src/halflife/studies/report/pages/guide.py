"""The guide through a paper: its steps, each with the runs that say most about it. The page and the docs share it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from halflife.studies.catalog import STUDIES
from halflife.studies.catalog.papers import Paper, PaperStep
from halflife.studies.evidence.claims import Study, Verdict
from halflife.studies.evidence.panels import AnyPanel
from halflife.studies.evidence.verdicts import StudyResults

__all__ = ["Step", "guide_of", "tells_most"]

NUM_FIGURES = 2  # of a study that names none for the docs


@dataclass(frozen=True)
class Step:
    """One step of a guide.

    Args:
        number: Its number, from 1.
        told: What the paper says there.
        study: The study that tests it.
        results: The runs that are shown (``None``: there are none).
        others: Further presets of the same study that were run.
    """

    number: int
    told: PaperStep
    study: Study
    results: StudyResults | None
    others: tuple[StudyResults, ...]

    @property
    def panels(self) -> tuple[AnyPanel, ...]:
        """The figures of the step, in the study's order."""
        wanted = self.told.panels or self.study.doc_panels
        if not wanted:
            return self.study.panels[:NUM_FIGURES]
        return tuple(panel for panel in self.study.panels if panel.file_slug in wanted)

    def has_claim(self, key: str) -> bool:
        """Whether a claim of the study belongs to the step.

        Args:
            key: The claim's key.

        Returns:
            The answer.
        """
        return not self.told.claims or key in self.told.claims

    def verdicts(self, everything: Sequence[Verdict]) -> list[Verdict]:
        """Those verdicts of the study that belong to the step.

        Args:
            everything: All of the study's.

        Returns:
            Those of the step's claims.
        """
        return [verdict for verdict in everything if self.has_claim(verdict.claim.key)]


def guide_of(paper: Paper, many: Sequence[StudyResults]) -> list[Step]:
    """The steps of a paper, each with the runs that tell most: those of the largest preset that is finished.

    Args:
        paper: The paper.
        many: What there is, of any studies and presets.

    Returns:
        One per step, also where there are no runs.
    """
    steps: list[Step] = []
    for told in paper.steps:
        if told.study not in STUDIES:
            continue
        study = STUDIES[told.study]
        own = sorted((results for results in many if results.study.name == told.study), key=_tells)
        best = tells_most(own)
        steps.append(Step(len(steps) + 1, told, study, best, tuple(results for results in own if results is not best)))
    return steps


def tells_most(own: Sequence[StudyResults]) -> StudyResults | None:
    """Of the presets of one study the one that tells most: the largest that is finished and decides."""
    return max(own, key=_tells, default=None)


def _tells(results: StudyResults) -> tuple[bool, bool, int]:
    """A preset that decides comes before one that does not, a whole one before a part, a large one before a small one."""
    preset = results.study.presets[results.preset_name]
    whole = results.num_finished == results.num_planned and results.manifest.get("max_steps") is None
    return preset.decides, whole, list(results.study.presets).index(results.preset_name)
