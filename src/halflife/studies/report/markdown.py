"""The pages of the docs that are made from results: what was found, one page a study, one a paper, and their pictures."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.papers import PAPERS, Paper
from halflife.studies.evidence.claims import Verdict
from halflife.studies.evidence.panels import AnyPanel
from halflife.studies.evidence.stats import NOT_COVERED
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.facts import Facts, findings_markdown
from halflife.studies.report.figures.beside import HEADER, beside_rows
from halflife.studies.report.figures.fields import sentence_start, size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.ladder import ladder_figure
from halflife.studies.report.figures.panels import panel_figure, why_not_drawn
from halflife.studies.report.files import render_figure
from halflife.studies.report.findings import read_findings
from halflife.studies.report.pages.guide import Step, guide_of
from halflife.studies.report.pages.provenance import duration, num_earlier
from halflife.studies.report.pages.scale import scale_of
from halflife.studies.report.pages.sections import fixed_words, together_words
from halflife.studies.report.pages.tables import (
    SYMBOLS,
    effect_text,
    markdown_table,
    rules_markdown,
    verdict_markdown,
)
from halflife.studies.store.store import Store

__all__ = ["Told", "docs_files", "measured", "told_of"]

NUM_PICTURES = 2  # of a study that names none
MADE = "made from the archives in `results/` by `tools/results.py docs`"


@dataclass(frozen=True)
class Told:
    """The results of one manifest.

    Args:
        results: What the store holds.
    """

    results: StudyResults

    @property
    def name(self) -> str:
        """Names the manifest and its pictures."""
        return f"{self.results.study.name}-{self.results.preset_name}"

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """The verdicts, computed once."""
        return self.results.verdicts()

    @cached_property
    def _figures(self) -> dict[str, Figure]:
        return {}

    def figure(self, panel: AnyPanel) -> Figure:
        """The figure of a panel, made once: a study's page and a paper's show the same."""
        if panel.file_slug not in self._figures:
            self._figures[panel.file_slug] = panel_figure(self.results, panel)
        return self._figures[panel.file_slug]

    @property
    def counts(self) -> list[str]:
        """How many claims ended how, in the order of `SYMBOLS`."""
        return counts_of(self.verdicts)


def counts_of(verdicts: Sequence[Verdict]) -> list[str]:
    """How many verdicts there are of each outcome, in the order of `SYMBOLS`."""
    outcomes: list[str] = [verdict.finding.outcome for verdict in verdicts]
    return [str(outcomes.count(outcome)) for outcome in SYMBOLS]


def told_of(store: Store) -> list[Told]:
    """Everything that a store holds, in the order of studies and presets."""
    found = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    studies = list(STUDIES)
    found.sort(key=lambda r: (studies.index(r.study.name), list(r.study.presets).index(r.preset_name)))
    return [Told(results) for results in found]


def docs_files(many: Sequence[Told], *, draw: bool = True) -> dict[str, str | None]:
    """All pages and pictures.

    Args:
        many: From `told_of`.
        draw: Whether pictures are drawn, which takes a minute; else they have no content.

    Returns:
        Path within docs/ to content: Markdown and SVG.
    """
    figures: dict[str, Figure] = {}
    pages: dict[str, str | None] = {"findings.md": findings_page(many), "results/index.md": index_page(many)}
    for name in dict.fromkeys(told.results.study.name for told in many):
        own = [told for told in many if told.results.study.name == name]
        pages[f"results/{name}.md"], drawn = study_page(own)
        figures |= drawn
    for paper in PAPERS:
        pages[f"papers/{paper.key}.md"], drawn = paper_page(paper, many)
        figures |= drawn
    for name, figure in figures.items():
        content = render_figure(figure, "svg") if draw else None
        assert not isinstance(content, bytes)
        pages[f"images/{name}.svg"] = content
    return pages


def measured(results: StudyResults) -> str:
    """Where and how long, in one sentence."""
    manifest, earlier = results.manifest, num_earlier(results)
    machine = manifest["machine"]
    before = f"{earlier} of {results.num_finished} runs were finished before, the others took" if earlier else ""
    return (
        f"`{manifest['command']}`: {before or f'{results.num_finished} runs in'} {duration(manifest['seconds'])} with"
        f" {manifest['workers']} workers on {machine['cores']} cores ({machine['processor']})."
    )


def findings_page(many: Sequence[Told]) -> str:
    """What was found, in words."""
    facts = Facts([(told.results, told.verdicts) for told in many], _place)
    return _page([findings_markdown(read_findings(), facts)])


def _place(study: str, preset: str, claim: str) -> str:
    """Where a study, or a claim of it, stands, seen from docs/."""
    return f"results/{study}.md" + (f"#{preset}-{claim}" if claim else "")


def index_page(many: Sequence[Told]) -> str:
    """All studies with the counts of their verdicts."""
    rows = [
        (f"[{told.results.study.title}]({told.results.study.name}.md)", told.results.preset_name, *told.counts)
        for told in many
    ]
    return _page([
        "# Results",
        f"What was measured with halflife's own commands, {MADE}. [What was found](../findings.md) says it in words. Every"
        " verdict follows from a rule, which stands with the numbers that decided it on the page of its study; how rules"
        " were fixed and what was changed since is on [Studies](../studies.md).",
        markdown_table(("study", "preset", *SYMBOLS), rows),
        together_words([verdict for told in many for verdict in told.verdicts]),
        "What the intervals do not cover, on all of these pages:",
        "\n".join(f"- {words}" for words in NOT_COVERED),
    ])  # fmt: skip


def study_page(own: Sequence[Told]) -> tuple[str, dict[str, Figure]]:
    """The page of one study with all its presets, and its pictures by name."""
    study = own[0].results.study
    figures: dict[str, Figure] = {}
    parts = [f"# {study.title}", study.claim, f"Source: {study.source}. `halflife study run {study.name}`; {MADE}."]
    for told in own:
        results = told.results
        parts += [f"## {results.preset_name.capitalize()}", f"{sentence_start(scale_of(results))}. {measured(results)}"]
        drawn = {f"{told.name}-{figure.slug}": figure for figure in _figures(told)}
        pictures = [f"![{figure.title}](../images/{name}.svg)" for name, figure in drawn.items()]
        figures |= drawn
        parts += [*pictures[:1], verdict_markdown(told.verdicts, anchor=f"{results.preset_name}-")]
        parts += ["### What decided", rules_markdown(told.verdicts)]
        parts += [f"{fixed_words(results)} {together_words(told.verdicts)}"]
        if rows := beside_rows(results):
            parts += ["### Beside the paper", markdown_table(HEADER, rows)]
        if len(results.sizes) > 1:
            parts += ["### Against size", ladder_table(told)]
        parts += pictures[1:]
    return _page(parts), figures


def _figures(told: Told) -> list[Figure]:
    """The figures that the docs show: those that the study names, in this order, or its first ones, and its ladder."""
    results = told.results
    panels = [panel for panel in results.study.panels if not why_not_drawn(results, panel)]
    named = list(results.study.doc_panels) or [panel.file_slug for panel in panels[:NUM_PICTURES]]
    wanted = sorted((panel for panel in panels if panel.file_slug in named), key=lambda p: named.index(p.file_slug))
    figures = [told.figure(panel) for panel in wanted]
    ladder = ladder_figure(results, told.verdicts)
    return [*figures, *([ladder] if ladder else [])]


def ladder_table(told: Told) -> str:
    """Every claim's effect at every size."""
    results = told.results
    name = size_name(results)
    heads = (f"{name} {size} ({len(results.seeds(size))} seeds)" for size in results.sizes)
    rows = []
    for verdict in told.verdicts:
        found = [verdict.by_size[size] for size in results.sizes]
        cells = [f"{effect_text(one.effect, verdict.claim.unit)}, {one.outcome}" for one in found]
        rows.append((f"**{verdict.claim.key}**: {verdict.claim.effect_name}", *cells))
    return markdown_table(("claim", *heads), rows)


def paper_page(paper: Paper, many: Sequence[Told]) -> tuple[str, dict[str, Figure]]:
    """The guide through a paper, and its pictures by name: that of the report, without what the studies' pages have."""
    figures: dict[str, Figure] = {}
    by_name = {told.name: told for told in many}
    steps = guide_of(paper, [told.results for told in many])
    parts = [
        f"# {paper.title}",
        f"{paper.authors}. {paper.reference}.",
        f"What the paper claims, in its own order, and what came out here, {MADE}. Nets and data are mostly smaller here than"
        " in the paper, and the paper's numbers decide nothing. `halflife report` writes the same guide from your own runs,"
        f" with the decision rules and with figures that answer to the pointer. {paper.untested}",
        _contents(steps, by_name),
    ]
    for step in steps:
        results = step.results
        parts += [f"## {step.number}. {step.told.heading}", step.told.words]
        if results is None:
            parts.append(f"Not run yet: `halflife study run {step.study.name}`.")
            continue
        told = by_name[f"{step.study.name}-{results.preset_name}"]
        parts += [
            f"Study [`{step.study.name}`](../results/{step.study.name}.md), preset `{results.preset_name}`."
            f" {sentence_start(scale_of(results))}.",
            verdict_markdown(step.verdicts(told.verdicts)),
        ]
        if step.told.published and (rows := beside_rows(results)):
            parts += ["The paper's numbers and ours:", markdown_table(HEADER, rows)]
        for panel in step.panels:
            if not why_not_drawn(results, panel):
                figure = told.figure(panel)
                figures[f"{told.name}-{figure.slug}"] = figure
                parts.append(f"![{figure.title}](../images/{told.name}-{figure.slug}.svg)")
    return _page(parts), figures


def _contents(steps: Sequence[Step], by_name: dict[str, Told]) -> str:
    """The steps of a guide with the counts of their verdicts."""
    rows = []
    for step in steps:
        counts = ["not run", *[""] * (len(SYMBOLS) - 1)]
        if step.results is not None:
            counts = counts_of(step.verdicts(by_name[f"{step.study.name}-{step.results.preset_name}"].verdicts))
        rows.append((f"{step.number}. {step.told.heading}", f"`{step.study.name}`", *counts))
    return markdown_table(("step", "study", *SYMBOLS), rows)


def _page(parts: Iterable[str]) -> str:
    text = "\n\n".join(part.strip() for part in parts) + "\n"
    return text.replace("+-", "\N{PLUS-MINUS SIGN}")
