"""A hundred SIGKILLs at random times, to workers, to their parent and to all: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
from safetensors import safe_open

from halflife.studies.store.store import Store
from tests.studies.lab.text_runs import write_corpus
from tests.studies.runner.kill_study import carry_out, plan_of

KILLS, LONGEST = 100, 0.6  # seconds between two of them


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def workers_of(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + 30
    while any(alive(pid) for pid in pids):
        assert time.monotonic() < deadline, "a process outlived its command"
        time.sleep(0.005)


def wait_for_progress(log: Path, process: multiprocessing.process.BaseProcess) -> None:
    """Wait until a run reports a step, or the command has ended."""
    known, deadline = log.stat().st_size, time.monotonic() + 60
    while process.is_alive() and b"\nprogress" not in log.read_bytes()[max(0, known - 1) :]:
        assert time.monotonic() < deadline, "no run made a step"
        time.sleep(0.01)


def readings_of(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("runs/*/readings.jsonl")}


def kept_of(store: Path) -> dict[str, tuple[dict[str, str], dict[str, bytes]]]:
    """What runs kept for others; the order of names in a file is any."""
    found = {}
    for path in store.glob("runs/*/kept/*"):
        with safe_open(path, framework="np") as file:
            tensors = {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118 - it is no dict
            found[str(path.relative_to(store))] = file.metadata(), tensors
    return found


def finished(store: Path) -> dict[str, int]:
    """When each finished run was finished."""
    folders = (Store(store).run(path.name) for path in store.glob("runs/*"))
    return {folder.id: (folder.path / "run.json").stat().st_mtime_ns for folder in folders if folder.finished}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="children are found in /proc")
def test_a_hundred_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    corpus = write_corpus(tmp_path / "corpus")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [carry_out.__module__, "halflife.studies.lab.text.loop", "halflife.studies.lab.images.loop"]
    )

    def start(name: str) -> multiprocessing.context.ForkServerProcess:
        process = context.Process(target=carry_out, args=(tmp_path / name, corpus, tmp_path / f"{name}.log"))
        process.start()
        return process

    undisturbed = start("whole")
    undisturbed.join()
    assert undisturbed.exitcode == 0
    runs = {run.id: run for run in plan_of(corpus).needed}
    assert finished(tmp_path / "whole").keys() == runs.keys()

    rng, kinds, interrupted = random.Random(0), Counter[str](), 0
    done: dict[str, int] = {}
    log = tmp_path / "killed.log"
    log.touch()
    while kinds.total() < KILLS:
        process = start("killed")
        assert process.pid is not None
        kind = "worker"
        while kind == "worker" and kinds.total() < KILLS:
            wait_for_progress(log, process)
            time.sleep(rng.uniform(0, LONGEST))
            workers = workers_of(process.pid)
            if not workers:
                break
            kind = rng.choice(("worker", "worker", "worker", "parent", "group"))
            kinds[kind] += 1
            if kind == "group":
                os.killpg(process.pid, signal.SIGKILL)
            else:
                os.kill(rng.choice(workers) if kind == "worker" else process.pid, signal.SIGKILL)
        if kind == "worker" and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        wait_until_gone(workers)
        headers = [Store(tmp_path / "killed").run(path.name).header() for path in (tmp_path / "killed/runs").iterdir()]
        interrupted += kind != "worker" and "running" in {header.get("status") for header in headers}
        now = finished(tmp_path / "killed")
        assert now | done == now, "a finished run was changed, or is gone"
        done = now
    last = start("killed")
    last.join()
    assert last.exitcode == 0
    assert finished(tmp_path / "killed").keys() == runs.keys()
    assert readings_of(tmp_path / "killed") == readings_of(tmp_path / "whole")
    assert kept_of(tmp_path / "killed") == kept_of(tmp_path / "whole")

    events = [line.split(" ", 3) for line in log.read_text().splitlines()]
    interrupted += sum("SIGKILL" in message for what, _, _, message in events if what == "failed")
    assert interrupted >= 0.8 * KILLS, f"{interrupted} of {dict(kinds)} hit a run that was not finished"
    assert min(kinds.values()) >= 10
    ended = Counter(run for what, run, _, _ in events if what == "finished")
    assert max(ended.values()) == 1
    assert num_resumed(events) >= 20


def num_resumed(events: list[list[str]]) -> int:
    """How often a run went on behind a checkpoint; a run that begins reports its first step."""
    first: dict[str, int] = {}
    resumed, begun = 0, set[str]()
    for what, run, step, _ in events:
        if what == "started":
            begun.add(run)
        elif what == "progress" and run in begun:
            begun.remove(run)
            resumed += int(step) > first.setdefault(run, int(step))
    return resumed
