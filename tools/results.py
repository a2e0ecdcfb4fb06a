"""Pack measured stores into results/, and make the pages and pictures of the docs from what is packed there.

    python tools/results.py pack STORE      every study manifest of the store -> results/<study>-<preset>.tar.xz
    python tools/results.py docs            results/ -> docs/findings.md, docs/results/, docs/papers/, docs/images/
    python tools/results.py check           fails if `docs` would change, add or remove a page or a picture
    python tools/results.py check --pages   the same without drawing the pictures: they have to be there

An archive holds a whole store (without locks, checkpoints and what runs keep for their branches). `halflife report --store
results/` reads all of them, and `tar xf` gives a store of one. A run that several studies share is in the archive of each.
"""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.markdown import docs_files, told_of
from halflife.studies.store.archives import ArchivedStore
from halflife.studies.store.store import Store

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
OWN = ("results/*.md", "papers/*.md", "images/*.svg")  # what is made here and nowhere else, but for these
OTHERS = {"images/curvature-cost.svg"}  # made by benchmarks/curvature.py


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


Files = dict[str, str | None]
"""Path within the repository to content; ``None`` for a picture that is not drawn."""


def made(archives: Path, *, draw: bool = True) -> Files:
    """What the archives say."""
    many = told_of(ArchivedStore(archives, notice=sys.exit))
    for told in many:
        for words in told.results.damaged.values():
            sys.exit(f"{told.name}: {words}")
    return {f"docs/{name}": content for name, content in docs_files(many, draw=draw).items()}


def left_over(root: Path, files: Files) -> list[str]:
    """Pages and pictures that nothing makes any more."""
    there = {path.relative_to(root / "docs").as_posix() for pattern in OWN for path in (root / "docs").glob(pattern)}
    return sorted(f"docs/{name}" for name in there - OTHERS if f"docs/{name}" not in files)


def stale(root: Path, files: Files) -> list[str]:
    """Which files of the repository are not what they would be made to be, pictures included."""
    paths = {name: root / name for name in files}
    differ = [
        name
        for name, path in paths.items()
        if not path.is_file() or files[name] not in {None, path.read_text(encoding="utf-8")}
    ]
    return differ + left_over(root, files)


def main(arguments: list[str]) -> None:
    """Do what the module's text says."""
    match arguments:
        case ["pack", folder]:
            for path in pack(Path(folder)):
                print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:.0f} kB")
        case ["docs"]:
            files = made(RESULTS)
            for name, content in files.items():
                assert content is not None
                (ROOT / name).parent.mkdir(parents=True, exist_ok=True)
                (ROOT / name).write_text(content, encoding="utf-8")
            for name in left_over(ROOT, files):
                (ROOT / name).unlink()
            print(f"{len(files)} files, {sum(len(content or '') for content in files.values()) / 1e6:.1f} MB")
        case ["check"] | ["check", "--pages"]:
            wrong = stale(ROOT, made(RESULTS, draw="--pages" not in arguments))
            sys.exit(f"{', '.join(wrong)}: not what results/ says, run tools/results.py docs" if wrong else 0)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
