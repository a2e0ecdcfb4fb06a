"""Pack measured stores into results/, and make the tables and pictures of the docs from what is packed there.

    python tools/results.py pack STORE      every study sheet of the store -> results/<study>-<preset>.tar.xz
    python tools/results.py docs            results/ -> docs/results.md, docs/images/*.svg, the block in README.md
    python tools/results.py check           fails if `docs` would change a table

An archive holds a whole store (without locks and checkpoints), so `tar xf` it somewhere and name that folder with
`--store` to look at it with halflife's own commands.
"""

from __future__ import annotations

import io
import json
import sys
import tarfile
import tempfile
from pathlib import Path

from halflife.report import build_report
from halflife.report.provenance import duration
from halflife.report.tables import verdict_markdown
from halflife.store import Store
from halflife.studies import get_study
from halflife.studies.results import Results

ROOT = Path(__file__).parents[1]
RESULTS, DOCS, README = ROOT / "results", ROOT / "docs", ROOT / "README.md"
README_RESULT = "stabilization-laptop"
PICTURES = {"test-error": "Test error", "train-running-loss": "Training loss", "ladder": "Effects against width"}
BEGIN, END = f"<!-- {README_RESULT}: made by tools/results.py -->", "<!-- end -->"


def pack(source: Path) -> list[Path]:
    """Write one archive for every sheet of a store, the same bytes for the same store."""
    store = Store(source)
    written = []
    for sheet in store.sheets():
        results = Results(store, get_study(sheet["study"]), sheet)
        if results.num_finished < results.num_planned:
            sys.exit(
                f"{sheet['study']}, {sheet['preset']}: {results.num_finished} of {results.num_planned} runs finished"
            )
        name = f"{sheet['study']}-{sheet['preset']}"
        members = [source / "store.json", source / "sheets" / f"{name}.json"]
        for identity in sorted(results.headers):
            members += [source / "runs" / identity / file for file in ("run.json", "readings.jsonl")]
        RESULTS.mkdir(exist_ok=True)
        target = RESULTS / f"{name}.tar.xz"
        with tarfile.open(target, "w:xz", preset=9) as archive:
            for path in members:
                info = tarfile.TarInfo(str(path.relative_to(source)))
                content = path.read_bytes()
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        written.append(target)
    return written


def unpack(folder: Path) -> Store:
    """All archives of results/ as one store."""
    for path in sorted(RESULTS.glob("*.tar.xz")):
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
    return Store(folder)


def all_results(store: Store) -> dict[str, Results]:
    """Each sheet's results by name."""
    return {
        f"{sheet['study']}-{sheet['preset']}": Results(store, get_study(sheet["study"]), sheet)
        for sheet in store.sheets()
    }


def measured(results: Results) -> str:
    """Where and how long, in one sentence."""
    machine = results.sheet["machine"]
    return (
        f"`{results.sheet['command']}`: {results.num_finished} runs in {duration(results.sheet['seconds'])} with"
        f" {results.sheet['workers']} workers on {machine['cores']} cores ({machine['processor']})."
    )


def results_page(many: dict[str, Results]) -> str:
    """The content of docs/results.md."""
    parts = [
        "# Results",
        "What was measured with halflife's own commands, made from the archives in `results/` by `tools/results.py docs`."
        " Every verdict follows from a rule that was written before the run; the rules are in"
        " `halflife study list --json` and behind each claim in the report.",
    ]
    for name, results in many.items():
        study = results.study
        preset = study.presets[results.preset_name]
        parts += [
            f"## {study.title}, {results.preset_name}",
            f"{study.claim}",
            f"Source: {study.source}. {preset.description[0].upper()}{preset.description[1:]}. {measured(results)}",
            verdict_markdown(results.verdicts()),
        ]
        if len(results.sizes) > 1:
            parts += [ladder_table(results)]
        shown = [picture for picture in PICTURES if picture != "ladder" or len(results.sizes) > 1]
        parts += [f"![{PICTURES[picture]}](images/{name}-{picture}.svg)" for picture in shown]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def ladder_table(results: Results) -> str:
    """Every claim's effect at every size."""
    head = (
        "| claim | " + " | ".join(f"width {size} ({len(results.seeds(size))} seeds)" for size in results.sizes) + " |"
    )
    lines = ["### Against size", "", head, "| --- |" + " --- |" * len(results.sizes)]
    for verdict in results.verdicts():
        cells = []
        for size in results.sizes:
            finding = verdict.by_size[size]
            effect = finding.effect
            assert effect is not None
            unit = "x" if verdict.claim.unit == "x" else ""
            sign = "" if unit else "+"
            cells.append(
                f"{effect.estimate:{sign}.2f}{unit} [{effect.low:{sign}.2f}, {effect.high:{sign}.2f}], {finding.outcome}"
            )
        lines.append(f"| ({verdict.claim.key}) {verdict.claim.effect_name} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def readme_with(results: Results) -> str:
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
                pages = {DOCS / "results.md": results_page(many), README: readme_with(many[README_RESULT])}
                if arguments == ["check"]:
                    stale = [
                        str(p.relative_to(ROOT)) for p, text in pages.items() if p.read_text(encoding="utf-8") != text
                    ]
                    sys.exit(f"{', '.join(stale)}: not what results/ says, run tools/results.py docs" if stale else 0)
                for path, text in pages.items():
                    path.write_text(text, encoding="utf-8")
                (DOCS / "images").mkdir(exist_ok=True)
                for path in build_report(store, fmt="svg", out=Path(folder) / "figures"):
                    if path.stem.removeprefix(next(n for n in many if path.stem.startswith(n)) + "-") in PICTURES:
                        (DOCS / "images" / path.name).write_bytes(path.read_bytes())
                print(json.dumps({str(path.relative_to(ROOT)): len(text) for path, text in pages.items()}))
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
