"""The command line as a user meets it: a study runs, is stopped, is killed, goes on, and wrong input gets a sentence."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.specs.trainers import IMAGES
from halflife.studies.store.store import Store
from tests import ROOT
from tests.studies.synthetic import make_store

SMOKE = ("study", "run", "stabilization", "--preset", "smoke")
NUM_RUNS = 8
NUM_CLAIMS = 6


def environment(**extra: str) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("HALFLIFE_")}
    return {**inherited, "COLUMNS": "100", **extra}


def halflife(*arguments: str, cwd: Path, **extra: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-W", "error", "-m", "halflife", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, timeout=200, env=environment(**extra)
    )


class Start(Protocol):
    def __call__(self, *arguments: str, cwd: Path) -> subprocess.Popen[str]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """The command in a process group of its own, so that Ctrl-C can be sent as a terminal sends it: to all of it.

    A test that fails leaves no process behind.
    """
    with contextlib.ExitStack() as started:

        def begin(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [sys.executable, "-u", "-m", "halflife", *arguments],
                cwd=cwd,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=environment(),
                start_new_session=True,
            )
            started.enter_context(process)  # closes its pipes and waits for it
            started.callback(kill_group, process.pid)
            return process

        yield begin


def kill_group(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def wait_for_runs(process: subprocess.Popen[str], count: int) -> None:
    """Read the output until so many runs are finished."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(f"{count}/"):
            return
    raise AssertionError(f"the command ended before {count} runs were finished")


def readings_of(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in sorted(store.glob("runs/*/readings.jsonl"))}


def finished(store: Path) -> int:
    return sum(json.loads(path.read_text())["status"] == "finished" for path in store.glob("runs/*/run.json"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A smoke study that was never disturbed, in the default store of its folder."""
    folder = tmp_path_factory.mktemp("whole")
    done = halflife(*SMOKE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return folder, done.stdout


def test_a_study_ends_with_verdicts_and_a_report(whole: tuple[Path, str]) -> None:
    folder, said = whole
    store = folder / "halflife-runs"
    assert f"{NUM_RUNS} runs, 0 finished before" in said
    assert f"{NUM_RUNS}/{NUM_RUNS} " in said
    for key in ("helps", "small-rate", "plateau", "same-norm", "average", "short-average"):
        assert f" {key} " in said
    assert said.count("not tested") == NUM_CLAIMS + 1  # smoke never decides
    assert said.count("the preset is too small to decide, it is made for tests") == 1, "said once"
    assert said.splitlines()[-1] == f"{NUM_CLAIMS} not tested; report: {store / 'report.html'}"
    page = (store / "report.html").read_text()
    assert "Loss stabilization in a ResNet with BatchNorm" in page
    assert finished(store) == NUM_RUNS
    assert not list(store.glob("runs/*/checkpoint*"))
    header = json.loads(next(iter(store.glob("runs/*/run.json"))).read_text())
    assert {"spec", "data", "versions", "commit", "machine", "seconds"} <= set(header)
    assert header["trainer"] == {"name": "images", "version": IMAGES.version}
    manifest = Store(store).manifests()[0]
    assert manifest["command"] == "halflife study run stabilization --preset smoke"
    assert manifest["seconds"] > 0
    ((claims,), (seeds,)) = manifest["claims"], manifest["planned_seeds"]
    assert claims["finished"] == seeds["finished"] == 0, "recorded before the first run"
    assert seeds["seeds"] == 2


def test_a_finished_study_is_not_run_again(whole: tuple[Path, str]) -> None:
    folder, _ = whole
    before = {path: path.stat().st_mtime_ns for path in folder.glob("halflife-runs/runs/*/*")}
    done = halflife(*SMOKE, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert f"{NUM_RUNS} runs, {NUM_RUNS} finished before" in done.stdout
    after = {path: path.stat().st_mtime_ns for path in folder.glob("halflife-runs/runs/*/*")}
    assert {path: time_ns for path, time_ns in after.items() if path.name != ".lock"} == {
        path: time_ns for path, time_ns in before.items() if path.name != ".lock"
    }


def test_verdicts_as_json_are_one_document(whole: tuple[Path, str]) -> None:
    done = halflife("study", "verdicts", "stabilization", "--json", cwd=whole[0])
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["verdicts"]
    assert [row["claim"] for row in rows] == ["helps", "small-rate", "plateau", "same-norm", "average", "short-average"]
    listed = json.loads(halflife("study", "list", "--json", cwd=whole[0]).stdout)["studies"]
    assert [study["name"] for study in listed][:3] == ["stabilization", "stabilization-vgg", "lm-schedules"]
    assert {row["outcome"] for row in rows} == {"not tested"}
    claims = STUDIES["stabilization"].claims
    assert {row["claim"]: row["digest"] for row in rows} == {claim.key: claim.digest for claim in claims}
    assert halflife("study", "verdicts", cwd=whole[0]).stdout.splitlines()[-1] == f"{NUM_CLAIMS} not tested"


def test_figures_for_a_paper(whole: tuple[Path, str], tmp_path: Path) -> None:
    for fmt, magic in (("svg", b"<svg"), ("pdf", b"%PDF")):
        done = halflife("report", "--format", fmt, "--out", str(tmp_path / fmt), cwd=whole[0])
        assert done.returncode == 0, done.stderr
        files = [Path(line) for line in done.stdout.split()]
        assert len(files) >= 6
        assert all(file.read_bytes().startswith(magic) for file in files)


def test_ctrl_c_keeps_what_is_finished_and_the_same_command_goes_on(
    start: Start, whole: tuple[Path, str], tmp_path: Path
) -> None:
    process = start(*SMOKE, "--workers", "1", cwd=tmp_path)
    wait_for_runs(process, 4)
    os.killpg(process.pid, signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "runs are finished and kept in halflife-runs; the same command goes on where it stopped" in " ".join(
        errors.split()
    )
    assert "Traceback" not in errors
    assert "Ctrl-C again does not wait" in " ".join(said.split())
    kept = finished(tmp_path / "halflife-runs")
    assert 4 <= kept < NUM_RUNS
    partly = halflife("study", "verdicts", cwd=tmp_path)
    assert partly.returncode == 0, partly.stderr
    assert f"{kept} of {NUM_RUNS} runs finished" in partly.stdout
    report = halflife("report", cwd=tmp_path)
    assert report.returncode == 0, report.stderr
    done = halflife(*SMOKE, cwd=tmp_path)
    assert f"{NUM_RUNS} runs, {kept} finished before" in done.stdout
    assert readings_of(tmp_path / "halflife-runs") == readings_of(whole[0] / "halflife-runs")


def children_of(pid: int) -> list[int]:
    listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(pid)], capture_output=True, text=True, check=False)
    return [int(word) for word in listed.stdout.split()]


def workers_of(process: subprocess.Popen[str], count: int) -> list[int]:
    """The command's worker processes, once so many have started: ask before a run ends, the last one's end is theirs."""
    deadline = time.monotonic() + 60
    while len(found := [pid for pid in children_of(process.pid) if "spawn_main" in command_of(pid)]) < count:
        assert time.monotonic() < deadline, f"{len(found)} of {count} workers started"
        time.sleep(0.05)
    return found


def command_of(pid: int) -> str:
    """Whole: without -ww, ps cuts it at 80 columns, before the word that is looked for where the path is long."""
    return subprocess.run(
        ["ps", "-ww", "-o", "args=", "-p", str(pid)], capture_output=True, text=True, check=False
    ).stdout


def alive(pid: int) -> bool:
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(state.strip()) and not state.startswith("Z")


@pytest.mark.slow
def test_a_killed_command_takes_its_workers_along_and_loses_nothing(
    start: Start, whole: tuple[Path, str], tmp_path: Path
) -> None:
    process = start(*SMOKE, cwd=tmp_path)
    workers = workers_of(process, 2)
    wait_for_runs(process, 3)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline, "a worker outlived its command"
        time.sleep(0.1)
    done = halflife(*SMOKE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert readings_of(tmp_path / "halflife-runs") == readings_of(whole[0] / "halflife-runs")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="nothing else ends a stopped process")
def test_a_stopped_worker_does_not_outlive_a_killed_command(start: Start, tmp_path: Path) -> None:
    process = start(*SMOKE, "--workers", "1", cwd=tmp_path)
    (worker,) = workers_of(process, 1)
    wait_for_runs(process, 1)
    os.kill(worker, signal.SIGSTOP)
    process.kill()
    process.communicate(timeout=60)
    deadline = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < deadline, "a stopped worker outlived its command"
        time.sleep(0.1)


@pytest.mark.slow
def test_a_worker_that_dies_fails_its_run_alone(start: Start, tmp_path: Path) -> None:
    process = start(*SMOKE, "--workers", "1", cwd=tmp_path)
    (worker,) = workers_of(process, 1)
    wait_for_runs(process, 1)
    os.kill(worker, signal.SIGKILL)
    said, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert "1 run failed" in errors
    assert "ended with signal SIGKILL, perhaps for want of memory: run the same command again" in " ".join(
        errors.split()
    )
    assert "Traceback" not in errors
    assert finished(tmp_path / "halflife-runs") == NUM_RUNS - 1, said
    assert halflife(*SMOKE, cwd=tmp_path).returncode == 0
    assert finished(tmp_path / "halflife-runs") == NUM_RUNS


@pytest.mark.slow
def test_a_worker_that_gets_sigterm_says_so(start: Start, tmp_path: Path) -> None:
    process = start(*SMOKE, "--workers", "1", cwd=tmp_path)
    (worker,) = workers_of(process, 1)
    wait_for_runs(process, 1)
    os.kill(worker, signal.SIGTERM)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 3
    assert (
        "was ended by SIGTERM, which did not come from this command: run the same command again, it goes on"
        in " ".join(errors.split())
    )
    assert "memory" not in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "finished_runs", [0, pytest.param(2, marks=pytest.mark.slow)], ids=["workers start", "workers train"]
)
def test_ctrl_c_five_times_is_no_traceback(start: Start, tmp_path: Path, finished_runs: int) -> None:
    process = start(*SMOKE, cwd=tmp_path)
    if finished_runs:
        wait_for_runs(process, finished_runs)
    else:
        assert process.stdout is not None
        assert "finished before" in process.stdout.readline() + process.stdout.readline()
    for _ in range(5):
        os.killpg(process.pid, signal.SIGINT)
        time.sleep(0.05)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in {130, -signal.SIGINT}, "the second: Python has ended, and its handler with it"
    assert "Traceback" not in errors
    assert "Error" not in errors
    deadline = time.monotonic() + 30
    while (
        subprocess.run(["pgrep", "--pgroup", str(process.pid)], stdout=subprocess.DEVNULL, check=False).returncode == 0
    ):
        assert time.monotonic() < deadline, "a process outlived its command"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [3, 16], ids=["readings", "checkpoint"])
def test_a_full_disk_stops_the_study_and_loses_nothing(whole: tuple[Path, str], tmp_path: Path, limit: int) -> None:
    """The kernel's limit on a file's size (in KiB) stands in for a full disk."""
    command = f"ulimit -f {limit}; exec {sys.executable} -B -m halflife {' '.join(SMOKE)}"
    done = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the disk of halflife-runs/runs/")
    assert (
        "is full, and everything written so far is kept: free some space and run the same command again" in done.stderr
    )
    assert "Traceback" not in done.stderr
    assert halflife(*SMOKE, cwd=tmp_path).returncode == 0
    assert readings_of(tmp_path / "halflife-runs") == readings_of(whole[0] / "halflife-runs")


@pytest.mark.slow
def test_a_trial_of_a_few_steps_gives_no_verdict(tmp_path: Path) -> None:
    done = halflife(
        "study", "run", "stabilization-vgg", "--preset", "smoke", "--max-steps", "2", "--seeds", "2", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert "runs were cut at 2 steps by --max-steps" in " ".join(done.stdout.split())


# ---- wrong input: one sentence on standard error, exit code 2, no traceback


def _other_schema(folder: Path) -> None:
    Store(folder / "old").create()
    (folder / "old/store.json").write_text('{"schema": 0}')


WRONG: list[tuple[tuple[str, ...], str]] = [
    (
        ("study", "run", "stabilisation"),
        "there is no study 'stabilisation', expected one of stabilization, stabilization-vgg",
    ),
    (
        ("study", "run", "stabilization", "--preset", "day"),
        "has no preset 'day', expected one of smoke, laptop, night, paper",
    ),
    ((*SMOKE, "--workers", "0"), "--workers is 0, expected an integer >= 1"),
    ((*SMOKE, "--seeds", "0"), "--seeds is 0, expected an integer >= 1"),
    ((*SMOKE, "--max-steps", "0"), "max_steps is 0, expected an integer >= 1"),
    ((*SMOKE, "--data", "empty"), "--data is empty, and no run of stabilization at smoke reads a folder"),
    (("study", "run", "lm-schedules", "--preset", "paper"), "openwebtext needs train.bin and val.bin"),
    ((*SMOKE, "--fsdp"), "torchrun"),
    ((*SMOKE, "--store", "old"), "the store old has schema version 0, and this halflife writes 1"),
    ((*SMOKE, "--store", "file"), "the store file is a file, expected a folder"),
    ((*SMOKE, "--store", "file/inside"), "cannot be written (Not a directory)"),
    ((*SMOKE, "--store", "a[/]b[red]c", "--data", "x" * 300), "--data is xxx"),
    (
        (*SMOKE, "--store", "x" * 300),
        "xxx cannot be used (File name too long): make it accessible, or name another path",
    ),
    ((*SMOKE, "--store", "x" * 300, "--dry-run"), "xxx cannot be used (File name too long)"),
    (("report", "--store", "made", "--out", "x" * 300), "xxx cannot be "),
    (("study", "verdicts", "--store", "a[/]b[red]c"), "there is no store at a[/]b[red]c: run"),
    (("study", "run", "stabilization", "--preset", "paper"), "cifar10 needs CIFAR-10's binary version"),
    (("study", "run", "stabilization", "--preset", "paper", "--data", "empty"), "empty has no data_batch_1.bin"),
    (("study", "run", "stabilization", "--preset", "paper", "--data", "gone"), "gone is no folder, expected one with"),
    (("study", "verdicts"), "there is no store at halflife-runs: run `halflife study run stabilization` first"),
    (("study", "verdicts", "stabilization-vgg", "--store", "made"), "has no runs of stabilization-vgg"),
    (("report", "--store", "made", "--format", "png"), "--format is 'png', expected html, svg or pdf"),
    (("report", "nothing", "--store", "made"), "there is no study 'nothing'"),
    (("report", "--store", "empty"), "the store empty has no runs"),
    (("report", "--store", "made", "--study", "stabilization"), "expected a file and a name in it, such as my_file.py"),
    (
        ("report", "--store", "made", "--study", "gone.py:X"),
        "there is no file gone.py, expected the file of an own study",
    ),
    (("export", "--store", "made", "--format", "xlsx"), "--format is 'xlsx', expected csv or parquet"),
    (("export", "stabilisation", "--store", "made"), "(did you mean stabilization?)"),
    (("export", "--store", "made", "--out", "file"), "file cannot be written (File exists)"),
    (("study", "verdicts", "--store", "file"), "the store file is a file, expected a folder"),
    (("study", "verdicts", "--store", "junk.tar.xz"), "junk.tar.xz is no whole archive of runs ("),
    (("study", "run", "stabilization", "--store", "junk.tar.xz"), "junk.tar.xz holds archives, which are only read"),
]


@pytest.fixture(scope="module")
def wrong_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wrong")
    _other_schema(folder)
    (folder / "file").write_text("")
    (folder / "junk.tar.xz").write_text("no archive")
    (folder / "empty").mkdir()
    make_store(folder / "made")
    return folder


@pytest.mark.parametrize(("arguments", "message"), WRONG, ids=[" ".join(arguments)[-40:] for arguments, _ in WRONG])
def test_wrong_input_is_one_sentence(
    wrong_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: Any,
    message: str,
) -> None:
    from halflife.cli import main as cli

    monkeypatch.chdir(wrong_folder)
    for name in ("HALFLIFE_STORE", "HALFLIFE_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "argv", ["halflife", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 2
    said = capsys.readouterr()
    assert message in said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert "Traceback" not in said.err + said.out


@pytest.mark.parametrize("missing", ["typer", "numpy", "altair"])
def test_a_missing_extra_is_one_sentence(tmp_path: Path, missing: str) -> None:
    make_store(tmp_path / "made")
    program = f"import sys; sys.modules[{missing!r}] = None; sys.argv[1:] = ['report', '--store', 'made']\n"
    program += "from halflife.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 2
    assert done.stderr.startswith(
        f"error: this command needs {missing}, which is not installed: pip install 'torch-hal"
    )
    assert "Traceback" not in done.stderr


WITHOUT_STUDY = ("numpy", "scipy", "polars", "safetensors", "filelock", "jinja2", "altair", "vl_convert")


WITHOUT_EXTRAS = (*WITHOUT_STUDY, "typer", "rich", "click")


@pytest.mark.parametrize(
    "missing",
    [
        pytest.param(WITHOUT_STUDY, id="cli alone", marks=pytest.mark.slow),
        pytest.param(WITHOUT_EXTRAS, id="torch alone"),
    ],
)
def test_the_extra_of_a_command_is_all_that_it_needs(missing: tuple[str, ...]) -> None:
    """``audit`` and a reference of `Toward`, and nothing said of numpy."""
    program = f"""
import sys
sys.modules |= dict.fromkeys({missing!r})
from halflife.__main__ import main
sys.argv[1:] = ["audit", "examples/audit_in_ci.py:make_optimizer", "--expect", "*=decoupled:0.1"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 1, stop.code
import torch, halflife
tensors = halflife.rules.appliers.Tensors([torch.arange(6.0)[::2], torch.zeros(0), torch.tensor([1 + 2j])])
print(tensors.digest)
"""
    root = ROOT
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False, env=environment()
    )
    assert done.returncode == 0, done.stderr
    said, digest = done.stderr.splitlines()  # what follows an audit goes to standard error as well
    assert said.startswith("does not hold: everything else: expected decoupled:0.1, but 5 of 7 differ.")
    found = hashlib.sha256(b"0 (3,) " + struct.pack("<3d", 0, 2, 4) + b"1 (0,) 2 (1,) " + struct.pack("<2d", 1, 2))
    assert digest == found.hexdigest()[:16]


def bare(*words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command in an environment of torch alone."""
    program = f"import sys; sys.modules |= dict.fromkeys({WITHOUT_EXTRAS!r}); sys.argv[1:] = {list(words)!r}\n"
    program += "from halflife.__main__ import main; main()"
    return subprocess.run(
        [sys.executable, "-c", program], cwd=cwd, capture_output=True, text=True, check=False, env=environment()
    )


SCRIPT = """
import sys
import torch
def make(lam=0.1):
    return torch.optim.AdamW([torch.nn.Parameter(torch.ones(2, 2))], lr=1e-3, weight_decay=float(lam))
if __name__ == "__main__":
    make(sys.argv[2]).step()
"""


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(
            ("--run", "train", "-m", "--json", "--expect", "decoupled:0.2", "--expect", "*=none", "--", "--lam", "0.2"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("train.py:make", "--json", "--expect", "decoupled:0.1", "--total-steps", "9"), marks=pytest.mark.slow
        ),
        pytest.param(("train.py:make", "--with", "lam=0.3"), marks=pytest.mark.slow),
        pytest.param(("train.py", "--run", "--time-limit", "60.5", "--", "--lam", "0.2"), marks=pytest.mark.slow),
        pytest.param(("[cli].py:make",), marks=pytest.mark.slow),
        pytest.param(("train.py:make", "--total-steps", "0"), marks=pytest.mark.slow),
        ("train.py:make", "--nosuch"),
    ],
)
def test_audit_is_the_same_with_torch_alone(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "train.py").write_text(SCRIPT, encoding="utf-8")
    plain, full = bare("audit", *words, cwd=tmp_path), halflife("audit", *words, cwd=tmp_path)
    assert (plain.returncode, plain.stdout, plain.stderr) == (full.returncode, full.stdout, full.stderr)
    assert plain.stdout + plain.stderr


def test_the_plain_audit_explains_itself(tmp_path: Path) -> None:
    shown = bare("audit", "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "--with NAME=VALUE" in shown.stdout
    assert bare("audit", cwd=tmp_path).stderr == (
        "error: the following arguments are required: TARGET; `halflife audit --help` shows the options\n"
    )
    wrong = bare("audit", "train.py:make", "--total-steps", "many", cwd=tmp_path)
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1)
    assert "invalid int value: 'many'" in wrong.stderr


def test_typer_comes_with_the_smaller_extra(tmp_path: Path) -> None:
    done = bare("selfcheck", cwd=tmp_path)
    assert done.returncode == 2
    assert "pip install 'torch-halflife[cli]'" in done.stderr


def test_a_second_process_on_the_same_store_is_refused(tmp_path: Path) -> None:
    with Store(tmp_path / "halflife-runs").locked():
        done = halflife(*SMOKE, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith(
        "error: another halflife process is writing the store halflife-runs: wait until it ends"
    )
    assert done.stdout == ""


def test_the_store_comes_from_the_environment(tmp_path: Path) -> None:
    make_store(tmp_path / "made")
    done = halflife("study", "verdicts", cwd=tmp_path, HALFLIFE_STORE="made")
    assert "stabilization (laptop)" in done.stdout


def test_words_that_the_command_does_not_know_are_the_users_mistake(tmp_path: Path) -> None:
    for arguments in (("stud",), ("study", "run"), ("study", "run", "stabilization", "--workers", "two")):
        done = halflife(*arguments, cwd=tmp_path)
        assert done.returncode == 2, arguments
        assert "Traceback" not in done.stderr
