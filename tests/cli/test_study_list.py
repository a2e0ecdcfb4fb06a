"""``halflife study list`` and ``study run --dry-run``: short where nothing was asked, whole where a study is named."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from halflife.cli.study_list import batches_of
from halflife.errors import UserError
from halflife.studies.catalog import STUDIES, get_preset
from halflife.studies.runner.plan import make_plan
from halflife.studies.store.store import Store
from tests import ROOT


def said(*words: str, width: int = 80, folder: Path | None = None) -> str:
    """What a command prints; its errors are raised."""
    module = importlib.import_module("halflife.cli.study")
    module.console.width = width
    app = importlib.import_module("halflife.cli.main").app
    store = ["--store", str(folder)] if folder is not None else []
    done = CliRunner().invoke(app, [*words, *store])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.output


def plain(text: str) -> str:
    return re.sub(r"\s+", " ", text)


# ---- the list


def test_the_list_is_short_and_names_every_study_once() -> None:
    lines = said("study", "list").splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) <= 2 * len(STUDIES) + 8
    found = [line.split()[0] for line in lines if line.split() and line.split()[0] in STUDIES]
    assert found == list(STUDIES)
    for name, study in STUDIES.items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.split()[-1] == str(len(study.claims))
    assert "Presets: smoke, laptop, night, paper." in plain(" ".join(lines))


def test_a_named_study_is_told_whole() -> None:
    study = STUDIES["stabilization"]
    words = plain(said("study", "list", "stabilization", width=200))
    for text in (study.title, study.claim, study.source):
        assert plain(text) in words
    for claim in study.claims:
        assert plain(f"{claim.text} {claim.words}") in words
    for name, preset in study.presets.items():
        assert f"{name} {preset.description} ({preset.budget}" in words
    assert "needs CIFAR-10" in words
    assert STUDIES["timescale"].claim not in words
    assert plain(STUDIES["timescale"].claim) in plain(said("study", "list", "--long", width=200))


def test_the_list_as_json_can_be_restricted() -> None:
    rows: list[dict[str, Any]] = json.loads(said("study", "list", "timescale", "stabilization", "--json"))["studies"]
    assert [row["name"] for row in rows] == ["timescale", "stabilization"]
    assert [c["rule"] for c in rows[1]["claims"]] == [claim.words for claim in STUDIES["stabilization"].claims]
    assert len(json.loads(said("study", "list", "--json"))["studies"]) == len(STUDIES)


def test_a_study_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(UserError, match="there is no study 'nothing', expected one of"):
        said("study", "list", "nothing")


# ---- the dry run


@pytest.mark.parametrize("name", STUDIES)
def test_a_dry_run_counts_the_runs_of_the_plan(name: str) -> None:
    study = STUDIES[name]
    for preset_name, seeds in (("smoke", None), ("laptop", 1)):
        preset = study.presets[preset_name]
        batches = batches_of(preset, num_seeds=seeds, max_steps=None)
        needed = make_plan(study, preset_name, preset, num_seeds=seeds).needed
        assert sum(batch.num_runs for batch in batches) == len(needed)
        by_kind: dict[str, int] = {}
        for run in needed:
            by_kind[run.spec.kind] = by_kind.get(run.spec.kind, 0) + 1
        assert {kind: sum(b.num_runs for b in batches if b.kind == kind) for kind in by_kind} == by_kind
        assert batches[0].size == preset.main_size
        assert not any("unknown" in batch.length for batch in batches)


def test_a_length_of_one_epoch_is_no_plural() -> None:
    lengths = [
        batch.length for batch in batches_of(get_preset(STUDIES["dataset-size"], "laptop"), num_seeds=1, max_steps=None)
    ]
    assert [words for words in lengths if words.startswith("1 ")] == ["1 epoch"]


def test_a_dry_run_starts_nothing_and_says_how_much(tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = plain(said("study", "run", "stabilization", "--preset", "night", "--dry-run", folder=store))
    assert "8 images 160 epochs 4 24" in words, "size, kind, length, configurations, runs"
    assert "4 images 160 epochs 4 12" in words
    assert "48 runs, 0 of them finished" in words
    assert "nothing was started" in words
    assert not store.exists()


def test_a_dry_run_knows_what_is_finished(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.create()
    study = STUDIES["stabilization"]
    first = make_plan(study, "smoke", study.presets["smoke"]).needed[0]
    store.run(first.id).write_header({"id": first.id, "status": "finished", "spec": first.spec.to_json()})
    words = plain(said("study", "run", "stabilization", "--preset", "smoke", "--dry-run", folder=store.path))
    assert "8 runs, 1 of them finished" in words
    assert [path.name for path in (store.path / "runs").iterdir()] == [first.id]


def test_a_dry_run_needs_no_data_and_shows_cuts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HALFLIFE_DATA", raising=False)
    command = ("study", "run", "stabilization", "--preset", "paper", "--dry-run")
    words = plain(said(*command, "--seeds", "1", "--max-steps", "7", folder=tmp_path / "store", width=200))
    assert "images 1,000 epochs, at most 7 steps 4 4" in words
    assert "4 runs; nothing was started, and it could not be: cifar10 needs" in words
    words = plain(said("study", "run", "lm-schedules", "--dry-run", "--max-steps", "9", folder=tmp_path / "store"))
    assert "text-branch 9 steps" in words


def test_runs_that_others_start_from_are_told() -> None:
    study = STUDIES["lm-effective-lr"]
    batches = batches_of(study.presets["smoke"], num_seeds=None, max_steps=None)
    shared = {arm.build(0).digest() for arm in study.presets["smoke"].arms}
    parents = {spec.digest() for arm in study.presets["smoke"].arms if (spec := arm.build(0).parent) is not None}
    assert parents
    alone = parents - shared
    assert any(batch.num_arms == 0 for batch in batches) is bool(alone)


def test_seeds_below_one_are_refused_in_a_dry_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--seeds is 0, expected an integer >= 1"):
        said("study", "run", "stabilization", "--seeds", "0", "--dry-run", folder=tmp_path)


def test_the_docs_name_the_studies_that_measure_hessians() -> None:
    """Studies whose runs, or what these start from, have probes of second derivatives."""
    curvature = {"hessian-trace", "gauss-newton-trace", "top-eigenvalue", "alignment"}

    def probes_of(spec: Any) -> set[str]:
        own = {*getattr(spec, "probes", ()), *getattr(getattr(spec, "then", None), "probes", ())}
        return own if spec.parent is None else own | probes_of(spec.parent)

    needing = {
        name for name, study in STUDIES.items()
        if any(probes_of(arm.build(0)) & curvature for arm in study.presets["laptop"].arms)
    }  # fmt: skip
    text = (ROOT / "docs" / "studies.md").read_text(encoding="utf-8")
    (sentence,) = re.findall(r"(?s)\n\n([^\n]*?[^.]*measure Hessians)", text)
    assert set(re.findall(r"`([a-z-]+)`", sentence)) == needing
