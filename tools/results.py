"""Pack measured stores into results/, and make the tables and pictures of the docs from what is packed there.

    python tools/results.py pack STORE      every study manifest of the store -> results/<study>-<preset>.tar.xz
    python tools/results.py docs            results/ -> docs/results.md, docs/papers/, docs/images/, the block in README.md
    python tools/results.py check           fails if `docs` would change a table

An archive holds a whole store (without locks, checkpoints and what runs keep for their branches), so `tar xf` it somewhere
and name that folder with `--store` to look at it with halflife's own commands. A run that several studies share is in the
archive of each.
"""

from __future__ import annotations

import io
import json
import lzma
import re
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path

from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.papers import PAPERS, Paper
from halflife.studies.evidence.claims import Verdict
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.beside import beside_markdown, beside_rows
from halflife.studies.report.figures.fields import size_name
from halflife.studies.report.figures.figure import Figure
from halflife.studies.report.figures.ladder import ladder_figure
from halflife.studies.report.figures.panels import panel_figure, why_not_drawn
from halflife.studies.report.files import render_figure
from halflife.studies.report.pages.guide import Step, guide_of
from halflife.studies.report.pages.provenance import duration, num_earlier
from halflife.studies.report.pages.tables import SYMBOLS, numbers, verdict_markdown
from halflife.studies.store.store import LARGEST_READINGS, MANIFEST_NAME, RUN_NAME, Store

ROOT = Path(__file__).parents[1]
RESULTS, DOCS, README = ROOT / "results", ROOT / "docs", ROOT / "README.md"
README_RESULT = "stabilization-laptop"
NUM_PICTURES = 2  # of a study that names none
MEMBER = re.compile(rf"store\.json|sheets/{MANIFEST_NAME}\.json|runs/{RUN_NAME}/(run\.json|readings\.jsonl)")
BEGIN, END = f"<!-- {README_RESULT}: made by tools/results.py -->", "<!-- end -->"


def pack(source: Path, folder: Path = RESULTS) -> list[Path]:
    """Write one archive for every manifest of a store, the same bytes for the same store."""
    store = Store(source)
    written = []
    for manifest in store.manifests():
        results = StudyResults(store, get_study(manifest["study"]), manifest)
        if results.num_finished < results.num_planned:
            sys.exit(
                f"{manifest['study']}, {manifest['preset']}: {results.num_finished} of {results.num_planned} runs finished"
            )
        name = f"{manifest['study']}-{manifest['preset']}"
        members = [source / "store.json", source / "sheets" / f"{name}.json"]
        for identity in sorted(results.headers):
            members += [source / "runs" / identity / file for file in ("run.json", "readings.jsonl")]
        folder.mkdir(exist_ok=True)
        target = folder / f"{name}.tar.xz"
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for path in members:
                info = tarfile.TarInfo(str(path.relative_to(source)))
                content = path.read_bytes()
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        written.append(target)
    return written


def unpack(folder: Path) -> Store:
    """All archives of results/ as one store; one that holds anything but the files of `pack` ends the program."""
    for path in sorted(RESULTS.glob("*.tar.xz")):
        try:
            with tarfile.open(path, "r:xz") as archive:
                for member in archive:
                    if not member.isreg() or MEMBER.fullmatch(member.name) is None or member.size > LARGEST_READINGS:
                        sys.exit(
                            f"{path}: {member.name[:80]!r} is no file of a store, expected what `pack` writes: pack again"
                        )
                    archive.extract(member, folder, filter="data")
        except (tarfile.TarError, lzma.LZMAError, EOFError) as error:
            sys.exit(f"{path} is no whole archive ({error}): pack it again")
    return Store(folder)


def all_results(store: Store) -> dict[str, StudyResults]:
    """Each manifest's results by name, in the order of studies and presets."""
    found = [StudyResults(store, get_study(manifest["study"]), manifest) for manifest in store.manifests()]
    studies = list(STUDIES)
    found.sort(key=lambda r: (studies.index(r.study.name), list(r.study.presets).index(r.preset_name)))
    return {f"{results.study.name}-{results.preset_name}": results for results in found}


def measured(results: StudyResults) -> str:
    """Where and how long, in one sentence."""
    manifest, earlier = results.manifest, num_earlier(results)
    machine = manifest["machine"]
    before = f"{earlier} of {results.num_finished} runs were finished before, the others took" if earlier else ""
    return (
        f"`{manifest['command']}`: {before or f'{results.num_finished} runs in'} {duration(manifest['seconds'])} with"
        f" {manifest['workers']} workers on {machine['cores']} cores ({machine['processor']})."
    )


def tested(results: StudyResults) -> str:
    """The size at which the verdicts were decided, and the others, in one sentence."""
    others = [str(size) for size in results.sizes if size != results.main_size]
    also = f"; measured at {', '.join(others)} too" if others else ""
    return f"Decided at {size_name(results)} {results.main_size}{also}."


def figures_of(results: StudyResults, verdicts: list[Verdict]) -> list[Figure]:
    """The figures that the docs show: those that the study names, or its first ones, and its ladder."""
    panels = [panel for panel in results.study.panels if not why_not_drawn(results, panel)]
    named = results.study.doc_panels or [panel.file_slug for panel in panels[:NUM_PICTURES]]
    figures = [panel_figure(results, panel) for panel in panels if panel.file_slug in named]
    ladder = ladder_figure(results, verdicts)
    return [*figures, *([ladder] if ladder else [])]


def index(verdicts: dict[str, list[Verdict]], many: dict[str, StudyResults]) -> str:
    """All studies with the counts of their verdicts."""
    lines = ["| study | preset | " + " | ".join(SYMBOLS) + " |", "| --- |" + " --- |" * (1 + len(SYMBOLS))]
    for name, results in many.items():
        outcomes = [verdict.finding.outcome for verdict in verdicts[name]]
        counts = " | ".join(str(outcomes.count(outcome)) for outcome in SYMBOLS)  # type: ignore[arg-type]  # its keys
        lines.append(f"| [{results.study.title}](#{anchor(results)}) | {results.preset_name} | {counts} |")
    return "\n".join(lines)


def heading(results: StudyResults) -> str:
    """A study's headline."""
    return f"{results.study.title}, {results.preset_name}"


def anchor(results: StudyResults) -> str:
    """Where a study stands on docs/results.md."""
    return re.sub(r"[^a-z0-9 -]", "", heading(results).lower()).replace(" ", "-")


def paper_page(
    paper: Paper, many: dict[str, StudyResults], verdicts: dict[str, list[Verdict]]
) -> tuple[str, dict[str, Figure]]:
    """The content of docs/papers/<key>.md, and its pictures by name: the guide of the report, without what results.md has."""
    pictures: dict[str, Figure] = {}
    steps = guide_of(paper, list(many.values()))
    parts = [
        f"# {paper.title}",
        f"{paper.authors}. {paper.reference}.",
        "What the paper claims, in its own order, and what came out here, made from the archives in `results/` by"
        " `tools/results.py docs`. Nets and data are mostly smaller here than in the paper, and the paper's numbers decide"
        " nothing. `halflife report` writes the same guide from your own runs, with the decision rules and with figures that"
        f" answer to the pointer. {paper.untested}",
        contents(steps, verdicts),
    ]
    for step in steps:
        results = step.results
        parts += [f"## {step.number}. {step.told.heading}", step.told.words]
        if results is None:
            parts.append(f"Not run yet: `halflife study run {step.study.name}`.")
            continue
        name = f"{step.study.name}-{results.preset_name}"
        parts += [
            f"Study [`{step.study.name}`](../results.md#{anchor(results)}), preset `{results.preset_name}`,"
            f" {len(results.seeds(results.main_size))} seeds. {tested(results)}",
            verdict_markdown(step.verdicts(verdicts[name]), reasons=False),
        ]
        if step.told.published and (rows := beside_rows(results)):
            parts += ["The paper's numbers and ours:", beside_markdown(rows)]
        for panel in step.panels:
            if not why_not_drawn(results, panel):
                figure = panel_figure(results, panel)
                pictures[f"{name}-{figure.slug}.svg"] = figure
                parts.append(f"![{figure.title}](../images/{name}-{figure.slug}.svg)")
    return "\n\n".join(part.strip() for part in parts) + "\n", pictures


def contents(steps: Sequence[Step], verdicts: dict[str, list[Verdict]]) -> str:
    """The steps of a guide with the counts of their verdicts."""
    lines = ["| step | study | " + " | ".join(SYMBOLS) + " |", "| --- | --- |" + " --- |" * len(SYMBOLS)]
    for step in steps:
        counts = ["not run", "", ""]
        if step.results is not None:
            own = step.verdicts(verdicts[f"{step.study.name}-{step.results.preset_name}"])
            outcomes = [verdict.finding.outcome for verdict in own]
            counts = [str(outcomes.count(outcome)) for outcome in SYMBOLS]  # type: ignore[arg-type]  # its keys
        lines.append(f"| {step.number}. {step.told.heading} | `{step.study.name}` | {' | '.join(counts)} |")
    return "\n".join(lines)


def results_page(many: dict[str, StudyResults], verdicts: dict[str, list[Verdict]]) -> tuple[str, dict[str, Figure]]:
    """The content of docs/results.md, and its pictures by name."""
    pictures: dict[str, Figure] = {}
    parts = [
        "# Results",
        "What was measured with halflife's own commands, made from the archives in `results/` by `tools/results.py docs`."
        " Every verdict follows from a rule that was written before the run, or made stricter since, which"
        " [is said](studies.md#rules-that-were-made-stricter-after-the-first-laptop-runs); the rules are in"
        " `halflife study list --json` and behind each claim in the report.",
        index(verdicts, many),
    ]
    for name, results in many.items():
        study = results.study
        preset = study.presets[results.preset_name]
        parts += [
            f"## {heading(results)}",
            f"{study.claim}",
            f"Source: {study.source}. {preset.description[0].upper()}{preset.description[1:]}. {tested(results)}"
            f" {measured(results)}",
            verdict_markdown(verdicts[name]),
        ]
        if rows := beside_rows(results):
            parts += ["### Beside the paper", beside_markdown(rows)]
        if len(results.sizes) > 1:
            parts += ["### Against size", ladder_table(results, verdicts[name])]
        for figure in figures_of(results, verdicts[name]):
            pictures[f"{name}-{figure.slug}.svg"] = figure
            parts += [f"![{figure.title}](images/{name}-{figure.slug}.svg)"]
    return "\n\n".join(part.strip() for part in parts) + "\n", pictures


def ladder_table(results: StudyResults, verdicts: list[Verdict]) -> str:
    """Every claim's effect at every size."""
    name = size_name(results)
    heads = (f"{name} {size} ({len(results.seeds(size))} seeds)" for size in results.sizes)
    lines = ["| claim | " + " | ".join(heads) + " |", "| --- |" + " --- |" * len(results.sizes)]
    for verdict in verdicts:
        unit = verdict.claim.unit
        cells = []
        for size in results.sizes:
            finding = verdict.by_size[size]
            if finding.effect is None:
                cells.append(f"-, {finding.outcome}")
                continue
            estimate, low, high = numbers(finding.effect, unit)
            cells.append(f"{estimate}{'x' if unit == 'x' else ''} [{low}, {high}], {finding.outcome}")
        what = f"({verdict.claim.key}) {verdict.claim.effect_name}" + (f" ({unit})" if unit not in {"", "x"} else "")
        lines.append(f"| {what} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def readme_with(results: StudyResults) -> str:
    """README.md with its block of results renewed."""
    text = README.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    block = f"{measured(results)}\n\n{verdict_markdown(results.verdicts()).strip()}"
    return f"{before}{BEGIN}\n\n{block}\n\n{END}{after}"


def main(arguments: list[str]) -> None:
    """Do what the module's text says."""
    match arguments:
        case ["pack", folder]:
            for path in pack(Path(folder)):
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
        case ["docs"] | ["check"]:
            with tempfile.TemporaryDirectory() as folder:
                store = unpack(Path(folder))
                many = all_results(store)
                verdicts = {name: results.verdicts() for name, results in many.items()}
                page, pictures = results_page(many, verdicts)
                pages = {DOCS / "results.md": page, README: readme_with(many[README_RESULT])}
                for paper in PAPERS:
                    pages[DOCS / "papers" / f"{paper.key}.md"], own = paper_page(paper, many, verdicts)
                    pictures |= own
                if arguments == ["check"]:
                    stale = [
                        str(p.relative_to(ROOT))
                        for p, text in pages.items()
                        if not p.is_file() or p.read_text(encoding="utf-8") != text
                    ]
                    stale += [name for name in pictures if not (DOCS / "images" / name).is_file()]
                    sys.exit(f"{', '.join(stale)}: not what results/ says, run tools/results.py docs" if stale else 0)
                (DOCS / "papers").mkdir(exist_ok=True)
                for path, text in pages.items():
                    path.write_text(text, encoding="utf-8")
                (DOCS / "images").mkdir(exist_ok=True)
                for name, figure in pictures.items():
                    content = render_figure(figure, "svg")
                    assert isinstance(content, str)
                    (DOCS / "images" / name).write_text(content, encoding="utf-8")
                print(json.dumps({str(path.relative_to(ROOT)): len(text) for path, text in pages.items()}))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
