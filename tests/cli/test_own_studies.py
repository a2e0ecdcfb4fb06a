"""Studies of a user's own: a file that the user names is run, shown and reported like ours, and nothing else is executed."""

from __future__ import annotations

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from typer.testing import CliRunner

from halflife.errors import HalflifeError, UserError
from halflife.studies.catalog import STUDIES, get_study
from halflife.studies.catalog.own import known_studies, load_again, load_study, study_of
from halflife.studies.runner.plan import make_plan
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs import base
from halflife.studies.store.store import Store
from tests import ROOT
from tests.cli.own_files import write_files
from tests.studies.synthetic import make_store


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with the files, the current one."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    ours = {name: kind for name, kind in base._KINDS.items() if kind.__module__.startswith("halflife.")}
    monkeypatch.setattr(base, "_KINDS", ours)  # those of a file are of one test
    monkeypatch.setenv("HALFLIFE_STORE", "store")
    return tmp_path


SOURCE = {"file": "a.py", "name": "A", "sha256": "0" * 64}


class Said(NamedTuple):
    """What a command wrote, its error among it, on lines as long as they are."""

    out: str
    err: str


def said(*words: str, code: int = 0) -> Said:
    done = CliRunner().invoke(importlib.import_module("halflife.cli.main").app, list(words))
    if isinstance(done.exception, HalflifeError):
        assert code == 2, done.exception
        return Said(done.stdout, f"{done.stderr}error: {done.exception}")
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.output
    return Said(done.stdout, done.stderr)


def train_here(reference: str, store: Store, preset: str = "laptop") -> None:
    """What `study run` does, in this process."""
    study = load_study(reference)
    plan = make_plan(study, preset, study.presets[preset])
    store.create()
    for run in plan.needed:
        task = Task(run.id, run.spec, run.parent_id)
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=None, stop=lambda: False)
    store.write_manifest(f"{study.name}-{preset}", plan.manifest(1, None))


def text_of(folder: Path) -> str:
    return (folder / "walk.py").read_text()


def walk(seed: int, lam: float) -> float:
    """The end of the walk in the user's file, by hand."""
    generator, x = torch.Generator().manual_seed(seed), 1.0
    for _ in range(50):
        x = (1 - lam) * x + 0.1 * torch.randn(1, generator=generator, dtype=torch.float64).item()
    return x


# ---- a file is a study


def test_a_study_derived_from_ours_shares_its_runs(folder: Path) -> None:
    mine, ours = load_study("slower.py:SLOWER"), get_study("stabilization")
    assert mine.claims == ours.claims
    digests = [
        {arm.key: arm.build(3).digest() for arm in study.presets["laptop"].arms} for study in (mine, ours)
    ]  # fmt: skip
    assert {key: digests[0][key] == digests[1][key] for key in digests[0]} == {
        "large-decay": False,
        "large-none": False,
        "small-decay": True,
        "small-none": True,
    }
    words = said("study", "list", "slower.py:SLOWER").out
    assert "Loss stabilization at half the learning rate" in words
    assert (
        json.loads(said("study", "list", "slower.py:SLOWER", "--json").out)["studies"][0]["name"]
        == "stabilization-slower"
    )


def test_the_skeleton_is_short_and_complete(folder: Path) -> None:
    assert len((folder / "decay_helps.py").read_text().splitlines()) < 120
    rows = json.loads(said("study", "list", "decay_helps.py:STUDY", "--json").out)["studies"]
    assert [claim["key"] for claim in rows[0]["claims"]] == ["lowers"]
    words = " ".join(said("study", "run", "decay_helps.py:STUDY", "--preset", "smoke", "--dry-run").out.split())
    assert "4 runs, 0 of them finished in store; nothing was started" in words


def test_own_runs_get_verdicts_and_a_report_beside_ours(folder: Path) -> None:
    make_store(folder / "store")
    train_here("walk.py:WALK", Store("store"))
    manifest = next(m for m in Store("store").manifests() if m["study"] == "walk")
    assert manifest["command"] == "halflife study run walk.py:WALK --preset laptop"
    assert (manifest["source"]["file"], manifest["source"]["name"]) == ("walk.py", "WALK")
    (row,) = json.loads(said("study", "verdicts", "walk.py:WALK", "--json").out)["verdicts"]
    changes = [walk(seed, 0.5) ** 2 - walk(seed, 0.0) ** 2 for seed in range(8)]
    assert row["estimate"] == pytest.approx(sum(changes) / 8, rel=1e-12)
    assert row["num_seeds"] == 8
    assert row["digest"] == load_study("walk.py:WALK").claims[0].digest
    (part,) = row["rows"]
    assert (part["role"], part["quantity"], part["test"]) == ("part", "x^2 with decay - without", "lies below 0")
    assert (part["estimate"], part["confidence"]) == (row["estimate"], 0.95)
    said("report", "--study", "walk.py:WALK")
    page = (folder / "store/report.html").read_text(encoding="utf-8")
    assert "Does decay bound a random walk?" in page
    assert STUDIES["stabilization"].title in page


def test_a_store_with_an_own_study_whose_file_is_not_given_shows_the_others(folder: Path) -> None:
    make_store(folder / "store")
    train_here("walk.py:WALK", Store("store"))
    train_here("walk.py:WALK", Store("store"), "smoke")
    sentence = (
        "walk is an own study, and the store has its runs but not its file: give the file by --study walk.py:WALK if you"
        " trust it"
    )
    for words in (("report",), ("study", "verdicts")):
        done = said(*words)
        assert sentence in " ".join(done.err.split())
    page = (folder / "store/report.html").read_text(encoding="utf-8")
    assert STUDIES["stabilization"].title in page
    assert "--study walk.py:WALK" in page
    assert said("study", "verdicts", "walk", code=2).err.count(sentence) == 1, "once for both presets"


def test_a_trainer_that_changed_is_told_where_its_runs_stay(folder: Path) -> None:
    train_here("walk.py:WALK", Store("store"))
    changed = importlib.import_module("halflife.cli.study")._changed_trainer
    study = load_study("walk.py:WALK")
    plan = make_plan(study, "laptop", study.presets["laptop"])
    assert changed(Store("store"), plan) == ""
    (folder / "walk.py").write_text(text_of(folder).replace("alpha=0.1", "alpha=0.2"))
    study = load_study("walk.py:WALK")
    assert changed(Store("store"), make_plan(study, "laptop", study.presets["laptop"])) == (
        "walk.py was changed since 16 of these runs were trained by it, and they stay: if it computes other numbers now,"
        " raise the version of its Trainer"
    )
    (folder / "walk.py").write_text(text_of(folder).replace("version=1", "version=2"))
    study = load_study("walk.py:WALK")
    assert changed(Store("store"), make_plan(study, "laptop", study.presets["laptop"])) == "", "they are trained anew"


def test_an_own_study_that_was_not_run_is_said_with_its_file(folder: Path) -> None:
    make_store(folder / "store")
    sentence = (
        "the store store has no runs of walk: run `halflife study run walk.py:WALK` first, or name another --store"
    )
    for words in (("study", "verdicts"), ("report",), ("export",)):
        assert sentence in said(*words, "walk.py:WALK", code=2).err


# ---- safety


def test_nothing_that_a_store_names_is_executed(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('executed')")
    store = make_store(folder / "store", study="evil", source=SOURCE | {"file": "evil.py", "name": "X" * 300})
    make_store(folder / "store")
    (folder / "store" / "sitecustomize.py").write_text("raise SystemExit('executed')")
    manifest = store.manifests()[0]
    with pytest.raises(UserError, match="evil is an own study") as caught:
        study_of(manifest, STUDIES)
    assert len(str(caught.value)) < 250
    said("study", "verdicts")
    said("export")


def test_an_own_study_is_not_taken_for_a_later_one_of_ours(folder: Path) -> None:
    store = make_store(folder / "store", source=SOURCE)
    with pytest.raises(
        UserError, match=r"has runs of an own study 'stabilization' of a.py:A, and halflife has a study of"
    ):
        study_of(store.manifests()[0], STUDIES)


def test_a_worker_refuses_a_file_that_changed(folder: Path) -> None:
    study = load_study("walk.py:WALK")
    assert study.origin is not None
    load_again(study.origin)
    (folder / "walk.py").write_text(text_of(folder) + "\n# changed\n")
    with pytest.raises(
        UserError, match=r"walk.py was changed while its study ran, expected the file as it was: run the"
    ):
        load_again(study.origin)


def test_json_is_one_document_whatever_a_file_prints(folder: Path) -> None:
    (folder / "loud.py").write_text("print('hello')\n" + text_of(folder))
    assert json.loads(said("study", "list", "loud.py:WALK", "--json").out)["studies"][0]["name"] == "walk"


# ---- wrong files: one sentence each

WRONG: dict[str, tuple[str, str]] = {
    "walk.py": ("", "the study is 'walk.py', expected a file and a name in it, such as my_file.py:STUDY"),
    "walk:WALK": ("", "the study is 'walk:WALK', expected a file and a name in it"),
    "gone.py:X": ("", "there is no file gone.py, expected the file of an own study: correct its path"),
    "walk.py:GONE": ("", "walk.py has no GONE, expected the name of a Study in it (WALK): name one"),
    "walk.py:WALKS": ("", "walk.py has a Preset, no Study, as WALKS, expected the name of a Study in it (WALK)"),
    "bad.py:A": ("A = 1\nB = A.lam\n", "bad.py raised AttributeError: 'int' object has no attribute 'lam' (bad.py, line 2)"),
    "bad.py:B": ("B = (\n", "bad.py raised SyntaxError: '(' was never closed (bad.py, line 1): correct it"),
    "bad.py:C": ("import nowhere\n", "bad.py raised ModuleNotFoundError: No module named 'nowhere' (bad.py, line 1)"),
    "bad.py:D": ("import sys\nsys.exit(0)\n", "bad.py called exit(0) (bad.py, line 2): correct it"),
    "bad.py:E": ("E = replace(S, name='stabilization')", "is named 'stabilization', which is one of ours: give it another"),
    "bad.py:F": ("F = replace(S, name='../up')", "is named '../up', expected small letters, digits and single dashes"),
    "bad.py:G": (
        "G = replace(S, presets={'smoke': S.presets['smoke']})",
        "mine has the presets smoke, expected laptop and any of smoke, night, paper: rename or add them",
    ),
    "bad.py:H": (
        "H = replace(S, presets={**S.presets, 'a-b': S.presets['smoke']})",
        "mine has the presets smoke, laptop, night, paper, a-b, expected laptop and any of",
    ),
    "bad.py:I": (
        "I = replace(S, claims=(*S.claims, S.claims[0]))",
        "bad.py, line 5: mine has two claims of the key 'helps', expected each once: rename one of them",
    ),
    "bad.py:J": (
        "P = S.presets['laptop']\nJ = replace(S, presets={'laptop': replace(P, arms=P.arms + P.arms[1:2])})",
        "the preset laptop of mine has two arms of the key 'large-none' at size 8, expected each once",
    ),
    "bad.py:K": (
        "P = S.presets['laptop']\nK = replace(S, presets={'laptop': replace(P, main_size=3)})",
        "the preset laptop of mine has no arm of its main size 3, expected at least one",
    ),
    "bad.py:L": (
        "P = S.presets['laptop']\nL = replace(S, presets={'laptop': replace(P, num_seeds=1)})",
        "the preset laptop of mine has num_seeds 1, expected at least 2, which an interval needs",
    ),
    "bad.py:M": (
        "M = replace(S, panels=(*S.panels, S.panels[0]))",
        "mine has two panels of the slug 'test-error', expected each once",
    ),
    "bad.py:N": ("R = Rule(parts=())", "a rule has 0 parts and shows number 0, expected at least one part"),
    "bad.py:O": (
        "class Mine(ImageRun):\n    kind = 'images'\n",
        "the kind of Mine is 'images', which is that of ImageRun: choose another kind",
    ),
    "bad.py:Q": ("Q = replace(S, doc_panels=('gone',))", "doc_panels of mine has 'gone', expected some of test-error,"),
}  # fmt: skip
START = """
from dataclasses import replace
from halflife.studies import ImageRun, Rule, get_study
S = replace(get_study("stabilization"), name="mine")
"""


@pytest.mark.parametrize("reference", WRONG)
def test_a_wrong_file_is_one_sentence(folder: Path, reference: str) -> None:
    text, message = WRONG[reference]
    uses = any(word in text for word in ("replace", "ImageRun", "Rule"))
    (folder / "bad.py").write_text((START if uses else "") + text)
    with pytest.raises(UserError) as caught:
        known_studies([reference])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_without_what_trains_its_runs_is_one_sentence(folder: Path) -> None:
    (folder / "idle.py").write_text(text_of(folder).replace("def open_run(", "def opens_run("))
    with pytest.raises(
        UserError, match=r"idle.py has runs of kind 'walk' and nothing that trains them, expected a function"
    ):
        load_study("idle.py:WALK")


def test_two_files_may_not_share_a_name(folder: Path) -> None:
    (folder / "other.py").write_text(
        text_of(folder).replace('kind: ClassVar[str] = "walk"', 'kind: ClassVar[str] = "stroll"')
    )
    with pytest.raises(
        UserError, match=r"other.py:WALK and walk.py:WALK are both named 'walk': give one of them another"
    ):
        known_studies(["walk.py:WALK", "other.py:WALK"])
    studies, names = known_studies(["walk.py:WALK", "./walk.py:WALK", "stabilization"])
    assert names == ["walk", "stabilization"]
    assert list(studies)[: len(STUDIES)] == list(STUDIES)


def test_set_is_refused_with_the_way_to_do_it(folder: Path) -> None:
    words = said("study", "run", "stabilization", "--set", "lr=0.05", code=2).err
    assert "--set lr=0.05 would change stabilization, whose claims are fixed for the settings that it has" in words
    assert "`MINE = dataclasses.replace(get_study('stabilization'), name=..., presets=...)`" in words
    assert "`halflife study run my_file.py:MINE` (docs/own_studies.md)" in words
    words = said("study", "run", "walk.py:WALK", "--set", "lam=1", code=2).err
    assert "into walk.py, `MINE = dataclasses.replace(WALK, name=..., presets=...)`, and run" in words
    assert "`halflife study run walk.py:MINE`" in words
    assert not (folder / "store").exists()


# ---- functions of the user's own that fail when the runs are finished


def broken(folder: Path, body: str) -> str:
    text = text_of(folder).replace("CHANGE = Quantity(", f"def values(results, size):\n{body}\n\n\nCHANGE = Quantity(")
    text = text.replace('values=Reading("decay", "x/sq") - Reading("none", "x/sq")', "values=values")
    (folder / "broken.py").write_text(text)
    return "broken.py:WALK"


FAILING = {
    "    return results.nothing": r"walk raised AttributeError: .*no attribute 'nothing' \(broken.py, line \d+\): correct",
    "    return [1.0, 2.0]": r"x\^2 with decay - without has values of shape \(2,\), expected one row for each of 8 seeds",
    "    return [float('nan')] * 8": r"x\^2 with decay - without has a value that is not finite",
}


@pytest.mark.parametrize("body", FAILING)
def test_a_quantity_that_fails_is_one_sentence_and_loses_nothing(folder: Path, body: str) -> None:
    make_store(folder / "store")
    train_here(broken(folder, body), Store("store"))
    before = {path: path.read_bytes() for path in folder.glob("store/runs/*/readings.jsonl")}
    done = said("study", "verdicts", "--study", "broken.py:WALK", code=2)
    assert re.search(FAILING[body], done.err), done.err
    assert "stabilization (laptop)" in done.out  # the others are shown
    if "nothing" in body:  # a report takes two seconds
        done = said("report", "--study", "broken.py:WALK")
        assert re.search(FAILING[body], " ".join(done.err.split())), done.err
    assert {path: path.read_bytes() for path in folder.glob("store/runs/*/readings.jsonl")} == before


def test_a_rule_that_fails_does_not_keep_the_next_study_from_running(folder: Path) -> None:
    reference = broken(folder, "    return results.nothing")
    with (folder / "broken.py").open("a") as file:
        file.write('\n\nfrom dataclasses import replace\n\nOTHER = replace(WALK, name="other", claims=())\n')
    train_here(reference, Store("store"))  # the runs of both
    done = said("study", "run", reference, "broken.py:OTHER", code=2)
    assert "16 runs, 16 finished before" in done.out
    assert "other, laptop: walks of 50 steps" in done.out
    assert re.search(r"error: walk, preset laptop: walk raised AttributeError: .* \(broken.py, line \d+\)", done.err)
    assert "report: " in done.out


# ---- in processes


@pytest.mark.slow
@pytest.mark.parametrize("reference", ["walk.py:WALK", "decay_helps.py:STUDY"])
def test_workers_find_the_specs_and_the_trainer_of_a_file(folder: Path, reference: str) -> None:
    command = [sys.executable, "-W", "error", "-m", "halflife", "study", "run", reference, "--preset", "smoke"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "4/4 " in done.stdout
    assert "report: " in done.stdout
