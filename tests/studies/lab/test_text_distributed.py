"""Language models trained by two processes that talk through gloo, by DDP and by FSDP2.

Two processes add numbers in another order than one does. How far that alone leads, one process says by itself: it cuts the
batches of the same run into other parts. Two processes may lead 4 times as far above a floor of 4e-7, which is a last bit
or two of float32. A norm of one half of the weights, a gradient of one half of the batch or an evaluation with weights of
yesterday are off by percents.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from halflife.errors import RunStoppedError, UserError
from halflife.studies.catalog import get_study
from halflife.studies.lab.trainer import train
from halflife.studies.runner.distributed import Rank, process_group
from halflife.studies.runner.plan import make_plan
from halflife.studies.specs import TextRun
from halflife.studies.specs.base import spec_from_json
from halflife.studies.store.files import read_object
from halflife.studies.store.store import Store
from tests import ROOT
from tests.studies.lab.text_distributed_worker import COOLDOWN, HALF, REPLAY, RESUMED, SPECS, STOP, plain
from tests.studies.lab.text_runs import run, stop_after, write_corpus

FLOOR = 4e-7
FORMS = ("ddp", "fsdp")
Readings = dict[int, dict[str, float]]

pytestmark = [
    pytest.mark.skipif(
        not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
    ),
    pytest.mark.timeout(900),  # processes that wait for each other wait long on a machine with other work
]
by_form = pytest.mark.parametrize("form", FORMS)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A corpus, and what one process trained."""
    path = tmp_path_factory.mktemp("together")
    corpus = write_corpus(path / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(path / "cache"))
        for name in RESUMED:
            with contextlib.suppress(RunStoppedError):
                run(SPECS[name], path / f"{name} from alone", corpus, stop=stop_after(STOP))
        yield path


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, Readings]:
    """The readings of one process."""
    corpus, kept = folder / "corpus", folder / "alone" / "stable" / "kept"
    specs = {**SPECS, "half": HALF}
    found = {name: run(spec, folder / "alone" / name, corpus)[0] for name, spec in specs.items()}
    found["cooldown"] = run(COOLDOWN, folder / "alone" / "cooldown", corpus, parent=kept)[0]
    found["replay"] = run(REPLAY, folder / "alone" / "replay", corpus, parent=kept)[0]
    return {name: dict(plain(readings)) for name, readings in found.items()}


@pytest.fixture(scope="module")
def noise(folder: Path, alone: dict[str, Readings]) -> dict[str, dict[str, float]]:
    """How far rounding alone leads: the same runs, their batches cut into other parts."""
    found: dict[str, dict[str, float]] = {}
    for name, spec in {**SPECS, "half": HALF}.items():
        for parts in (1, 4):
            again, _ = run(replace(spec, accumulate=parts), folder / f"{parts} parts" / name, folder / "corpus")
            apart = distances(dict(plain(again)), alone[name])
            found[name] = {key: max(value, found.get(name, {}).get(key, 0.0)) for key, value in apart.items()}
    return found | {"cooldown": found["stable"], "replay": found["stable"]}


@pytest.fixture(scope="module")
def together(folder: Path, alone: dict[str, Readings]) -> list[dict[str, dict[str, Any]]]:
    """What each of two processes found, by form and job."""
    logs = [folder / f"{rank}.log" for rank in range(2)]
    processes = []
    for rank, log in enumerate(logs):
        command = [sys.executable, "-m", "tests.studies.lab.text_distributed_worker", str(rank), "2", str(folder)]
        with log.open("wb") as file:
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            processes.append(subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=file, env=environment))
    deadline = time.monotonic() + 600
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.poll() not in {None, 0} for process in processes):
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    said = "\n".join(log.read_text()[-3000:] for log in logs)
    assert [process.returncode for process in processes] == [0, 0], said
    own = [line for line in said.splitlines() if line and not line.startswith("[Gloo] Rank")]  # as torch 2.8 greets
    assert not own  # no warnings reach the terminal
    return [json.loads((folder / f"found-{rank}.json").read_text()) for rank in range(2)]


def distances(found: Readings, expected: Readings) -> dict[str, float]:
    """The largest relative difference of every quantity over all steps that were read."""
    apart: dict[str, float] = {}
    for step, values in found.items():
        assert values.keys() == expected[step].keys()
        for key, value in values.items():
            apart[key] = max(
                apart.get(key, 0.0), abs(value - expected[step][key]) / max(abs(expected[step][key]), 1e-12)
            )
    return apart


def assert_the_same_run(
    found: list[tuple[int, dict[str, float]]], expected: Readings, noise: dict[str, float], *, first: int = 0
) -> None:
    readings = dict(found)
    assert sorted(readings) == [step for step in expected if step >= first]
    for key, value in distances(readings, expected).items():
        assert value <= 4 * noise.get(key, 0.0) + FLOOR, key


@by_form
@pytest.mark.parametrize("name", [*SPECS, "half"])
@pytest.mark.slow
def test_two_processes_do_the_run_of_one(
    form: str, name: str, together: list[Any], alone: dict[str, Readings], noise: dict[str, dict[str, float]]
) -> None:
    """Decay, clipping, accumulation, averages, a tied head, norms kept, every reading; float16 skips steps together."""
    assert_the_same_run(together[0][form][name], alone[name], noise[name])
    assert together[1][form][name] == together[0][form][name]


@by_form
@pytest.mark.parametrize("source", ["alone", *FORMS])
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.slow
def test_two_processes_go_on_from_any_checkpoint(
    form: str,
    source: str,
    name: str,
    together: list[Any],
    alone: dict[str, Readings],
    noise: dict[str, dict[str, float]],
) -> None:
    """From one process or two, from copies or parts; from their own form to the same bits."""
    readings = together[0][form][f"{name} from {source}"]
    assert_the_same_run(readings, alone[name], noise[name], first=STOP + 1)
    if form == source:
        assert readings == [reading for reading in together[0][form][name] if reading[0] > STOP]


@by_form
@pytest.mark.parametrize("name", RESUMED)
@pytest.mark.slow
def test_one_process_goes_on_from_the_checkpoint_of_two(
    form: str,
    name: str,
    folder: Path,
    together: list[Any],
    alone: dict[str, Readings],
    noise: dict[str, dict[str, float]],
) -> None:
    assert together[0][form][f"{name} stopped"] == f"stopped after step {STOP} of 20: a checkpoint is kept"
    where = shutil.copytree(folder / f"{name} from {form}", folder / f"{name} {form} to alone")
    readings, _ = run(SPECS[name], where, folder / "corpus")
    assert_the_same_run(plain(readings), alone[name], noise[name], first=STOP + 1)


@by_form
@pytest.mark.parametrize("source", ["alone", *FORMS])
@pytest.mark.slow
def test_branches_start_from_any_kept_checkpoint(
    form: str, source: str, together: list[Any], alone: dict[str, Readings], noise: dict[str, dict[str, float]]
) -> None:
    assert_the_same_run(together[0][form][f"cooldown from {source}"], alone["cooldown"], noise["cooldown"])


@by_form
@pytest.mark.slow
def test_a_replay_follows_the_norms_of_whole_tensors(
    form: str, together: list[Any], alone: dict[str, Readings], noise: dict[str, dict[str, float]]
) -> None:
    """Its first half: a replay without decay multiplies rounding differences from step to step."""
    early = {step: values for step, values in alone["replay"].items() if step <= 10}
    readings = [reading for reading in together[0][form]["replay"] if reading[0] <= 10]
    assert readings[-1][1]["lr_factor"] > 2
    assert_the_same_run(readings, early, noise["replay"])


@by_form
@pytest.mark.slow
def test_all_processes_say_the_same_of_a_run_that_cannot_be(form: str, together: list[Any]) -> None:
    for rank in together:
        assert rank[form]["odd"].startswith("UserError: batch_size is 15 on 2 processes")
        assert rank[form]["diverging"].startswith("DivergedError: the training loss became NaN or infinite at step 3 ")


# ---- files


@pytest.mark.slow
def test_the_later_checkpoint_counts_in_whichever_form(folder: Path, together: list[Any]) -> None:
    """A crash between writing one form and removing the other leaves both."""
    spec, corpus = SPECS["sgd"], folder / "corpus"
    where = shutil.copytree(folder / "sgd from fsdp", folder / "both")
    for step, expected in ((STOP - 5, STOP + 1), (STOP + 5, STOP + 6)):
        older = folder / f"sgd at {step}"
        with contextlib.suppress(RunStoppedError):
            run(spec, older, corpus, stop=stop_after(step))
        shutil.copy(older / "checkpoint.safetensors", where)
        with pytest.raises(RunStoppedError, match=f"stopped after step {expected} "):
            run(spec, shutil.copytree(where, folder / f"both {step}"), corpus, stop=lambda: True)
        assert not (folder / f"both {step}" / "checkpoint").exists()


@pytest.mark.slow
def test_a_folder_that_was_never_named_does_not_count(folder: Path, together: list[Any]) -> None:
    where = shutil.copytree(folder / "sgd from ddp", folder / "unnamed")
    (where / "checkpoint" / "values.json").unlink()
    with pytest.raises(RunStoppedError, match="after step 1 "):
        run(SPECS["sgd"], where, folder / "corpus", stop=lambda: True)


@pytest.mark.parametrize("damaged", ["shard-00001-*", "shard-00002-*", "values.json"])
@pytest.mark.slow
def test_a_damaged_checkpoint_is_one_sentence(folder: Path, together: list[Any], damaged: str) -> None:
    where = shutil.copytree(folder / "sgd from fsdp", folder / f"damaged {damaged[:11]}")
    (path,) = (where / "checkpoint").rglob(damaged)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
    said = r"the checkpoint .* cannot be read .*: remove it and run again"
    if damaged == "values.json":
        said = r"values.json is not valid JSON .*: remove it, and run the study again"
    with pytest.raises(UserError, match=said):
        run(SPECS["sgd"], where, folder / "corpus")


@pytest.mark.parametrize("damaged", ["shard-00001-*", "shard-00002-*", "values.json"])
@pytest.mark.slow
def test_a_flipped_bit_of_a_checkpoint_is_noticed(folder: Path, together: list[Any], damaged: str) -> None:
    """Of a number: 10 becomes 30."""
    where = shutil.copytree(folder / "sgd from fsdp", folder / f"flipped {damaged[:11]}")
    (path,) = (where / "checkpoint").rglob(damaged)
    content = bytearray(path.read_bytes())
    content[content.index(b'"step": 1') + 8 if damaged == "values.json" else -4] ^= 2
    path.write_bytes(content)
    with pytest.raises(UserError, match=r" damaged.*checksum differs\)?: remove it,? and run "):
        run(SPECS["sgd"], where, folder / "corpus")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.slow
def test_a_checkpoint_whose_part_is_missing_is_refused(folder: Path, together: list[Any], form: str) -> None:
    """Nobody trains on from memory that no file has filled."""
    where = shutil.copytree(folder / f"sgd from {form}", folder / f"part of {form}")
    (path,) = (where / "checkpoint").rglob("shard-00002-*")
    path.unlink()
    with pytest.raises(UserError, match=r"the checkpoint .* cannot be read \(.*\): remove it and run again"):
        run(SPECS["sgd"], where, folder / "corpus")


@pytest.mark.parametrize("source", ["alone", *FORMS])
@pytest.mark.slow
def test_a_checkpoint_of_another_run_is_refused(folder: Path, together: list[Any], source: str) -> None:
    where = shutil.copytree(folder / f"sgd from {source}", folder / f"foreign {source}")
    with pytest.raises(
        UserError, match=r"was written by another run \(its spec is .*, expected .*\): remove it and run"
    ):
        run(replace(SPECS["sgd"], seed=4), where, folder / "corpus")


@pytest.mark.parametrize("name", ["../outside", "/", "c", "", 3, None])
@pytest.mark.slow
def test_the_folder_of_a_checkpoint_is_a_or_b(folder: Path, together: list[Any], name: object) -> None:
    where = shutil.copytree(folder / "sgd from ddp", folder / f"named {str(name).replace('/', '_')}")
    about = where / "checkpoint" / "values.json"
    about.write_text(json.dumps(read_object(about) | {"folder": name}))
    with pytest.raises(UserError, match=r"the folder of a checkpoint is .*, expected a or b: remove what names it"):
        run(SPECS["sgd"], where, folder / "corpus")


@pytest.mark.slow
def test_a_finished_run_leaves_no_checkpoint(folder: Path, tmp_path: Path, together: list[Any]) -> None:
    found = Store(tmp_path).run("a" * 16)
    shutil.copytree(folder / "sgd from fsdp" / "checkpoint", found.path / "checkpoint")
    found.checkpoint.write_bytes(b"")
    found.discard_checkpoint()
    assert not list(found.path.iterdir())


# ---- the command


def test_fsdp_needs_torchrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    with (
        pytest.raises(UserError, match="torchrun --nproc-per-node N -m halflife study run"),
        process_group(Store(tmp_path), [], fsdp=True),
    ):
        pass
    with process_group(Store(tmp_path), [], fsdp=False) as rank:
        assert rank is None


def start_ranks(program: str, size: int, *arguments: str) -> list[subprocess.Popen[str]]:
    """Processes with the variables that torchrun sets."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {"TORCHELASTIC_RUN_ID": "tests", "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    common |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, "-c", program, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(size)
    ]


def test_models_are_freed_before_the_process_group(tmp_path: Path) -> None:
    """DDP's reducer, as the last to hold the group, can wait for ever: it frees the group without releasing the GIL."""
    program = """
import sys, weakref
import torch, torch.distributed as dist
from halflife.studies.runner.distributed import Rank, process_group
from halflife.studies.runner.plan import make_plan
from halflife.studies.store.store import Store

def train(rank):
    wrapped = rank.world.wrap(torch.nn.Linear(2, 1), [])
    wrapped(torch.ones(1, 2)).sum().backward()
    wrapped.itself = wrapped  # a cycle, as models in training have them
    return weakref.ref(wrapped)

destroy = dist.destroy_process_group
dist.destroy_process_group = lambda: (print("freed:", found() is None), destroy())
with process_group(Store(sys.argv[1]), [], fsdp=False) as rank:
    found = train(rank)
    print("alive:", found() is not None)
"""
    (process,) = start_ranks(program, 1, str(tmp_path))
    out, err = ended(process)
    assert process.returncode == 0, err
    assert out.splitlines()[-2:] == ["alive: True", "freed: True"], out  # gloo may greet in torch 2.8


def test_a_run_that_only_rank_0_plans_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broadcast(box: list[list[str]], **_: object) -> None:
        box[0] = ["0" * 16]

    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    study = get_study("lm-schedules")
    plan = make_plan(study, "smoke", study.presets["smoke"], num_seeds=1)
    rank = Rank(Store(tmp_path), cast("Any", SimpleNamespace(rank=1)))
    with pytest.raises(
        UserError, match=r"rank 0 starts the run 0{16}, which is not planned here: give all processes the"
    ):
        rank.execute(plan, ())


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        pytest.param("UserError", "rank 1 of 2: the data lie elsewhere", marks=pytest.mark.slow),
        (
            "KeyError",
            "rank 1 of 2: the processes stopped at an unexpected error (KeyError: 'the data lie elsewhere'): if",
        ),
    ],
)
def test_the_mistake_of_one_rank_is_said_by_that_rank_alone(tmp_path: Path, kind: str, said: str) -> None:
    program = f"""
import os, sys
import torch.distributed as dist
from halflife.errors import HalflifeError, UserError
from halflife.studies.runner.distributed import Rank, process_group
from halflife.studies.runner.plan import make_plan
from halflife.studies.store.store import Store

if os.environ["RANK"] != "0":
    sys.stderr = open(os.devnull, "w")  # as the command does
try:
    with process_group(Store(sys.argv[1]), [], fsdp=False) as rank:
        dist.barrier()
        if rank.world.rank == 1:
            raise {kind}("the data lie elsewhere")
        dist.barrier()
except HalflifeError as error:
    print("error:", error, file=sys.stderr)
    sys.exit(2)
"""
    first, second = start_ranks(program, 2, str(tmp_path))
    _, err = ended(second)
    assert second.returncode == 2
    assert f"error: {said}" in err
    _, err = ended(first)
    assert first.returncode == 1
    assert "error:" not in err


def torchrun(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    return subprocess.Popen(
        [*command, "-m", "halflife", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"},
    )


def ended(process: subprocess.Popen[str], timeout: float = 600.0) -> tuple[str, str]:
    try:
        return process.communicate(timeout=timeout)
    finally:
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("--fsdp",)])
def test_a_study_under_torchrun(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Runs, branches and the report, printed once; the store of one process has the same names and numbers."""
    arguments = ("study", "run", "lm-schedules", "--preset", "smoke", "--seeds", "1", "--store")
    process = torchrun(tmp_path, *arguments, "together", *options)
    out, err = ended(process)
    assert process.returncode == 0, err
    assert out.count("report: ") == out.count("runs, 0 finished before, 2 processes with ") == 1
    single = [sys.executable, "-m", "halflife", *arguments, "alone", "--workers", "1"]
    subprocess.run(single, cwd=tmp_path, check=True, capture_output=True)
    runs = {path.name for path in (tmp_path / "alone" / "runs").iterdir()}
    assert runs == {path.name for path in (tmp_path / "together" / "runs").iterdir()}
    for name in runs:
        ours, theirs = (Store(tmp_path / which).run(name) for which in ("together", "alone"))
        assert ours.header()["world"] == {"size": 2, "form": "fsdp" if options else "ddp"}
        assert ours.finished
        assert not (ours.path / "checkpoint").exists()
        for one, other in zip(ours.readings(), theirs.readings(), strict=True):
            assert one.step == other.step
            assert one.values == pytest.approx(other.values, rel=1e-4)


@pytest.mark.slow
def test_what_all_processes_would_say_is_said_once(tmp_path: Path) -> None:
    process = torchrun(tmp_path, "study", "run", "stabilization", "--preset", "smoke", "--store", "store")
    out, err = ended(process)
    assert process.returncode == 1  # torchrun's own; ours is in its table
    assert err.count("stabilization has runs of kind images") == 1
    assert "exitcode  : 2" in err
    process = torchrun(tmp_path, "--version")
    out, err = ended(process)
    assert out.count("halflife") == 1


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
def test_sigterm_keeps_a_checkpoint_that_one_process_can_go_on_from(tmp_path: Path, form: str) -> None:
    options = ("--fsdp",) if form == "fsdp" else ()
    store = Store(tmp_path / "store")
    arguments = ("study", "run", "lm-schedules", "--preset", "laptop", "--seeds", "1", "--store", "store", *options)
    process = torchrun(tmp_path, *arguments)
    try:
        deadline = time.monotonic() + 120
        while not any(path.stat().st_size > 500 for path in store.path.glob("runs/*/readings.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        process.terminate()
    _, err = ended(process)
    assert "stopped: 0 of " in err
    assert "the same command goes on where it stopped" in " ".join(err.split())
    (path,) = (path for path in (tmp_path / "store" / "runs").iterdir() if (path / "checkpoint").exists())
    found = store.run(path.name)
    assert found.header()["status"] == "running"
    assert found.header()["world"]["form"] == form
    spec = spec_from_json(found.header()["spec"])
    assert isinstance(spec, TextRun)
    last = found.readings()[-1].step
    with pytest.raises(RunStoppedError, match=f"stopped after step {last + 1} "):
        train(spec, sink=lambda _reading: None, folder=path, stop=lambda: True)


@pytest.mark.slow
def test_a_process_that_dies_ends_all_with_one_sentence(tmp_path: Path) -> None:
    if not Path("/proc/self/task").exists():
        pytest.skip("needs Linux's /proc")
    store = Store(tmp_path / "store")
    process = torchrun(
        tmp_path, "study", "run", "lm-schedules", "--preset", "laptop", "--seeds", "1", "--store", "store"
    )
    try:
        deadline = time.monotonic() + 120
        while not list(store.path.glob("runs/*/readings.jsonl")):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.1)
        ids = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(ids[1]), 9)
        _, err = ended(process)
    finally:
        process.kill()
    assert err.count("error: ") == 1
    assert "the processes stopped at an unexpected error" in err
    assert "it goes on from the last checkpoint" in err
    assert "[rank" not in err  # no traceback
