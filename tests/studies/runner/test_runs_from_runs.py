"""Runs that start from other runs: order, sharing, failures, and what SIGTERM leaves behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from halflife.studies.runner.pool import Event
from halflife.studies.store.store import Store
from tests import ROOT
from tests.studies.lab.text_runs import write_corpus
from tests.studies.runner.branch_study import carry_out, plan_of


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield str(write_corpus(tmp_path_factory.mktemp("corpus")))


def test_parents_come_first_and_once(corpus: str, tmp_path: Path) -> None:
    plan = plan_of(corpus)
    assert len(plan.runs) == 2 * (2 + 1 + 2)
    assert len(plan.needed) == 2 * 4  # the branch and the arm share a parent
    store, events = Store(tmp_path / "store"), list[Event]()
    assert carry_out(store, plan, corpus, events.append) == []
    done: set[str] = set()
    for event in events:
        if event.what == "started" and event.run.parent_id is not None:
            assert event.run.parent_id in done
        if event.what == "finished":
            assert event.run.id not in done
            done.add(event.run.id)
    assert done == {run.id for run in plan.needed}
    started = [event.message for event in events if event.what == "started"]
    assert started.count("importing torch") == 2, "once a worker"
    waits = {event.run.id: event.message for event in events if event.what == "waiting"}
    for run in plan.needed:
        own = "" if run.parent_id is None else ", parent run"
        assert waits[run.id] == f"reading data{own}"
    (manifest,) = store.manifests()
    assert [arm["key"] for arm in manifest["arms"]] == ["branch", "parent", "replay"]
    listed = {run for arm in manifest["arms"] for run in arm["runs"].values()}
    helpers = done - listed
    assert len(helpers) == 2  # the replays' parents are no arm's runs
    for run in plan.needed:
        header = store.run(run.id).header()
        assert header.get("parent") == run.parent_id
        assert header["cost"]["tokens_per_second"] > 0
        assert not (store.run(run.id).path / "checkpoint.safetensors").exists()
    assert carry_out(store, plan, corpus, lambda event: pytest.fail(str(event))) == []


def test_a_parent_that_fails_takes_its_children_along(corpus: str, tmp_path: Path) -> None:
    plan = plan_of(corpus, lr=1e38)
    store, events = Store(tmp_path / "store"), list[Event]()
    failures = carry_out(store, plan, corpus, events.append)
    assert len(failures) == 4  # two seeds of two parents: children are not counted again
    assert all("became NaN or infinite at step" in failure for failure in failures)
    children = [event for event in events if event.what == "failed" and event.run.parent_id is not None]
    assert len(children) == 4
    assert all("from which it starts, failed" in event.message for event in children)


def start(corpus: str, store: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.studies.runner.branch_study", str(store), corpus, "1200"]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_same_command_goes_on(corpus: str, tmp_path: Path) -> None:
    process = start(corpus, tmp_path / "cut")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("progress 205"):
            break
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    (run,) = (path for path in (tmp_path / "cut/runs").iterdir() if (path / "checkpoint.safetensors").exists())
    assert json.loads((run / "run.json").read_text())["status"] == "running"
    assert not (run / "traceback.txt").exists()
    before = (run / "readings.jsonl").read_bytes()
    plan, store = plan_of(corpus, 1200), Store(tmp_path / "cut")
    whole = Store(tmp_path / "whole")
    first = next(planned for planned in plan.needed if planned.id == run.name)
    events = list[Event]()
    for place in (store, whole):
        plan_one = type(plan)(plan.study, plan.preset_name, plan.preset, (first,), None, "")
        assert carry_out(place, plan_one, corpus, events.append) == []
    after = (run / "readings.jsonl").read_bytes()
    assert after.startswith(before)
    assert after == (tmp_path / "whole/runs" / run.name / "readings.jsonl").read_bytes()
    resumed = next(event for event in events if event.what == "progress")
    assert resumed.step > 205  # not from the beginning
