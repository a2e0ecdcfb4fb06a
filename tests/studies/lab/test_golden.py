"""The numbers of every trainer are those of its version: readings of tiny runs, kept in tests/golden, to rounding."""

from __future__ import annotations

import base64
import copy
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from halflife.studies.lab.images import data, loop
from halflife.studies.lab.text import order
from halflife.studies.specs import RunSpec
from halflife.studies.specs.base import _KINDS, spec_from_json
from tests import ROOT
from tests.golden import __main__ as command
from tests.golden.runs import (
    FOLDER,
    RUNS,
    TRAINERS,
    complaint,
    content,
    differences,
    golden_file,
    kept,
    series,
    trained,
)

WHAT_COUNTS = re.compile("loss|risk|rmse|noise_sq|rotation")  # a reading of the learning rate itself would be too easy


@pytest.mark.parametrize("trainer", RUNS)
def test_the_numbers_are_those_of_the_version(trainer: str, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    said = complaint(kept(trainer), content(trainer, trained(RUNS[trainer], tmp_path)))
    assert not said, said


def test_every_kind_of_run_is_among_them() -> None:
    specs = [spec for runs in RUNS.values() for spec in runs.values()]
    ours = {
        name for name, kind in _KINDS.items() if kind.__module__.startswith("halflife.")
    }  # docs and tests have others
    assert {spec.kind for spec in specs} == ours
    assert all(spec.trainer == TRAINERS[name] for name, runs in RUNS.items() for spec in runs.values())
    assert set(RUNS) == {trainer.name for trainer in TRAINERS.values()} == {path.stem for path in FOLDER.glob("*.json")}


# ---- the tolerance: rounding passes, changes do not


@pytest.mark.slow
@pytest.mark.parametrize(
    ("torch_uses", "onednn_uses", "mkl_uses"), [("default", "SSE41", "COMPATIBLE"), ("avx2", "AVX2", "AVX2")]
)
def test_the_numbers_of_other_processors_pass(torch_uses: str, onednn_uses: str, mkl_uses: str) -> None:
    other = {"ATEN_CPU_CAPABILITY": torch_uses, "ONEDNN_MAX_CPU_ISA": onednn_uses, "MKL_CBWR": mkl_uses}
    done = subprocess.run(
        [sys.executable, "-m", "tests.golden"],
        cwd=ROOT, env=os.environ | other, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{name}: the golden file holds, nothing is written" for name in RUNS]


def moved(trainer: str, run: str, spec: RunSpec, folder: Path) -> set[str]:
    """Which readings of a golden run are found to be other ones when ``spec`` is trained in its place."""
    old = kept(trainer)["runs"]
    (new,) = trained({run: spec}, folder).values()
    same = {run: new | {key: old[run][key] for key in ("spec", "data")}}
    return {re.sub(r"^[^:]*: (.*?),? (?:value|has|is) .*$", r"\1", words) for words in differences(old, same)}


@pytest.mark.parametrize("trainer", RUNS)
def test_a_learning_rate_that_is_a_thousandth_off_is_found(trainer: str, tmp_path: Path) -> None:
    name, spec = next(iter(RUNS[trainer].items()))
    values = spec.to_json()
    off = spec_from_json(values | {"lr": values["lr"] * 1.001})
    found = moved(trainer, name, off, tmp_path)
    assert [key for key in found if WHAT_COUNTS.search(key)], f"only {found}"
    assert not moved(trainer, name, spec, tmp_path / "again")


def test_another_order_of_the_data_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = data.shuffled_batches
    monkeypatch.setattr(loop, "shuffled_batches", lambda *a, epoch, **k: batches(*a, epoch=epoch + 1, **k))
    assert {"train/loss", "test/loss"} <= moved("images", "resnet", RUNS["images"]["resnet"], tmp_path / "images")
    key = order._key
    monkeypatch.setattr(order, "_key", lambda name: key(f"{name}/"))
    assert {"train/loss", "val/loss"} <= moved("text", "mlp", RUNS["text"]["mlp"], tmp_path / "text")


# ---- what is said, on made-up readings


def made_up(**more: Any) -> dict[str, Any]:
    values = {"train/loss": 2.0, "trace": 10.0, "trace_se": 0.1, "test/error": 0.5, "cos/a-b": 0.01, "zero": 0.0}
    readings = [{"step": step, "epoch": step, "values": values | {"train/loss": 2.0 / step}} for step in (1, 2)]
    run = {"spec": {"kind": "images"}, "data": "d47a", "readings": readings}
    return {"trainer": "images", "version": 1, "torch": "2.13.0", "runs": {"plain": run}} | more


def changed(name: str, by: float, **more: Any) -> dict[str, Any]:
    new = copy.deepcopy(made_up(**more))
    new["runs"]["plain"]["readings"][1]["values"][name] += by
    return new


@pytest.mark.parametrize(
    ("name", "passes", "fails"),
    [
        ("train/loss", 1.9e-5, 2.1e-5),  # of its largest value, 2
        ("trace", 0.9e-4, 1.1e-4),
        ("trace_se", 0.9e-4, 1.1e-4),  # as the trace
        ("test/error", 0.01, 0.02),  # one of 100 examples
        ("cos/a-b", 0.9e-5, 1.1e-5),
        ("zero", 0.9e-8, 1.1e-8),
    ],
)
def test_how_far_readings_may_be_off(name: str, passes: float, fails: float) -> None:
    for sign in (1, -1):
        assert not complaint(made_up(), changed(name, sign * passes))
        assert f"plain: {name}, value 1, is " in complaint(made_up(), changed(name, sign * fails))


def test_one_example_in_a_hundred_may_change_its_class() -> None:
    def wrong(*examples: int) -> dict[str, Any]:
        bits = np.zeros(100, dtype=bool)
        bits[list(examples)] = True
        array = {"dtype": "bits", "length": 100, "data": base64.b64encode(np.packbits(bits).tobytes()).decode()}
        new = made_up()
        new["runs"]["plain"]["readings"][0]["arrays"] = {"test/wrong": array}
        return new

    assert series(wrong(3)["runs"]["plain"]["readings"])["array test/wrong"].sum() == 1
    assert not complaint(wrong(3, 4), wrong(3))
    # As many are wrong, but other ones.
    assert "plain: array test/wrong has 2 of 100 examples other than expected" in complaint(wrong(3), wrong(4))


def test_a_reading_that_comes_or_goes_is_found() -> None:
    new = made_up()
    for record in new["runs"]["plain"]["readings"]:
        record["values"] = {**record["values"], "extra": 1.0}
    assert "plain: extra is read in one of the two only" in complaint(made_up(), new)
    assert "plain: extra is read in one of the two only" in complaint(new, made_up())
    new = made_up()
    del new["runs"]["plain"]["readings"][1]
    assert "plain: cos/a-b has 1 values, expected 2" in complaint(made_up(), new)


OFF = changed("train/loss", 0.5)
WRITE = r"run `python -m tests\.golden images` to write the golden file anew$"


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            made_up(),
            OFF,
            r"^the numbers of trainer images changed \(plain: train/loss, value 1, is 1\.5, expected 1\): if that is meant,"
            rf" raise its version in src/halflife/studies/specs/trainers\.py and {WRITE}",
        ),
        (made_up(), OFF | {"version": 2}, rf": its version was raised from 1 to 2, so {WRITE}"),
        (made_up(torch="2.12.0"), OFF, rf": if that is because of torch 2\.13\.0 after 2\.12\.0, {WRITE}"),
        (
            made_up(),
            made_up(version=2),
            rf"^the version of trainer images is 2 and .* of version 1 with the same numbers: set it back, or {WRITE}",
        ),
        (made_up(runs={}), made_up(), rf"^the golden file of trainer images is of other runs than .*: {WRITE}"),
        (made_up(), made_up(runs={}), rf"^the golden file of trainer images is of other runs than .*: {WRITE}"),
    ],
)
def test_what_to_do_is_said(old: dict[str, Any], new: dict[str, Any], words: str) -> None:
    assert re.search(words, complaint(old, new))


def test_the_source_that_is_named_holds_the_versions() -> None:
    text = (ROOT / "src/halflife/studies/specs/trainers.py").read_text(encoding="utf-8")
    for name, trainer in TRAINERS.items():
        assert f'name="{name}", version={trainer.version}' in text


# ---- the command


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, Any], dict[str, Any]], str]:
    """What the command says of a file with the first content when the trainer gives the second."""

    def write(old: dict[str, Any], new: dict[str, Any]) -> str:
        path = tmp_path / "images.json"
        path.write_text(command.as_text(old), encoding="utf-8")
        monkeypatch.setattr(command, "golden_file", lambda _: path)
        monkeypatch.setattr(command, "kept", lambda _: old)
        monkeypatch.setattr(command, "content", lambda *_: new)
        monkeypatch.setattr(command, "trained", lambda *_: {})
        said = command.write("images")
        assert path.read_text(encoding="utf-8") == command.as_text(new if said == "images: written" else old)
        return said

    return write


def test_the_command_writes_nothing_before_the_version_is_raised(
    written: Callable[[dict[str, Any], dict[str, Any]], str],
) -> None:
    assert "nothing is written, because the numbers of trainer images changed" in written(made_up(), OFF)
    assert written(made_up(), OFF | {"version": 2}) == "images: written"
    assert written(made_up(torch="2.12.0"), OFF) == "images: written"
    assert written(made_up(runs={}), made_up()) == "images: written"
    # Rounding of another processor is no reason to write.
    assert written(made_up(), changed("train/loss", 1e-7)) == "images: the golden file holds, nothing is written"


def test_golden_files_are_as_the_command_writes_them() -> None:
    for trainer in RUNS:
        assert golden_file(trainer).read_text(encoding="utf-8") == command.as_text(kept(trainer))
