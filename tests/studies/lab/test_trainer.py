"""The driver of all runs, on a made-up run; and what it finds in runs of every trainer."""

from __future__ import annotations

import importlib
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from halflife.errors import DivergedError, RunFailedError, RunStoppedError, UserError
from halflife.studies.lab import trainer
from halflife.studies.lab.arrays import floats
from halflife.studies.lab.synthetic import least_squares
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.trainer import Context, Run, train
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs import LeastSquaresRun, RunSpec
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store
from tests.golden.runs import RUNS
from tests.studies.lab.text_runs import write_corpus

SPEC = LeastSquaresRun(eigenvalues=(1.0,), lr=0.1, num_steps=12)


class Plain:
    """Twelve steps, a loss after each second, a reading after each fourth; it notes what is asked of it."""

    unit, samples, num_steps, about = "samples", 3, 12, "lr 0.1"

    def __init__(self) -> None:
        self.step, self.calls = 0, list[str]()
        self.weights = [torch.ones(2), torch.ones(3)]
        self.loss: Callable[[], float] = lambda: 1 / self.step
        self.values: Callable[[], dict[str, float]] = lambda: {"test/loss": 2.0}
        self.arrays: Callable[[], dict[str, Array]] = dict

    def train(self) -> Iterator[float | None]:
        while self.step < self.num_steps:
            self.one_step()
            yield None if self.step % 2 else self.loss()

    def one_step(self) -> None:
        self.calls.append("step")
        self.step += 1

    def reading(self) -> Reading | None:
        self.calls.append("reading")
        if self.step % 4:
            return None
        return Reading(step=self.step, epoch=self.step, values=self.values(), arrays=self.arrays())


class WithCheckpoints(Plain):
    """The same with checkpoints, which are its step."""

    evaluates = True

    def load(self, folder: Path) -> bool:
        self.calls.append("load")
        self.step = int((folder / "step").read_text()) if (folder / "step").exists() else 0
        return self.step > 0

    def save(self, folder: Path) -> None:
        self.calls.append("save")
        (folder / "step").write_text(str(self.step))

    def keep(self, folder: Path) -> None:
        self.calls.append(f"keep in {folder.name}")


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Callable[[Plain], Plain]:
    """Lets the driver open a made-up run in the place of SPEC's."""

    def put(run: Plain) -> Plain:
        monkeypatch.setattr(least_squares, "open_run", lambda spec, context: run)
        return run

    return put


@pytest.fixture
def always_due(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "SAVING_SHARE", math.inf)


def test_what_is_done_in_which_order(opened: Callable[[Plain], Plain], tmp_path: Path, always_due: None) -> None:
    run = opened(WithCheckpoints())
    run.num_steps = 4
    train(
        SPEC,
        sink=lambda reading: run.calls.append(f"sink {reading.step}"),
        folder=tmp_path,
        progress=lambda step, num_steps, loss: run.calls.append(f"progress {step}/{num_steps} {loss:g}"),
    )
    assert run.calls == [
        "load", "reading", "sink 0", "keep in kept",
        "step", "step", "progress 2/4 0.5", "reading", "save",
        "step", "step", "progress 4/4 0.25", "reading", "sink 4", "keep in kept",
    ]  # fmt: skip


def test_a_run_goes_on_where_it_stopped(opened: Callable[[Plain], Plain], tmp_path: Path) -> None:
    readings: list[Reading] = []
    run = opened(WithCheckpoints())
    with pytest.raises(RunStoppedError, match=r"^stopped after step 7 of 12: a checkpoint is kept$"):
        train(SPEC, sink=readings.append, folder=tmp_path, stop=lambda: run.step == 7)
    run = opened(WithCheckpoints())
    train(SPEC, sink=readings.append, folder=tmp_path, stop=lambda: run.step == 12)  # too late to stop
    assert [reading.step for reading in readings] == [0, 4, 8, 12]
    assert run.calls[:2] == ["load", "step"]  # what was read at first is not read again


@pytest.mark.parametrize(("made", "folder"), [(Plain, True), (WithCheckpoints, False)])
def test_a_run_without_checkpoints_or_a_folder_starts_over(
    made: type[Plain], folder: bool, opened: Callable[[Plain], Plain], tmp_path: Path
) -> None:
    run = opened(made())
    with pytest.raises(RunStoppedError, match=r"^stopped after step 3 of 12: it will start over$"):
        train(
            SPEC, sink=lambda reading: None, folder=tmp_path if folder else None, stop=lambda: run.step == 3
        )  # fmt: skip
    assert not {"load", "save"} & set(run.calls)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_of_a_step_that_the_run_does_not_have_is_refused(
    opened: Callable[[Plain], Plain], tmp_path: Path
) -> None:
    (tmp_path / "step").write_text("1012")
    opened(WithCheckpoints())
    with pytest.raises(UserError, match=r"of step 1012, expected at most 12: remove it and run again$"):
        train(SPEC, sink=lambda reading: None, folder=tmp_path)


@pytest.mark.parametrize("steps", [0, 5])
def test_a_trainer_that_ends_too_early_is_refused(steps: int, opened: Callable[[Plain], Plain]) -> None:
    class Short(Plain):
        def train(self) -> Iterator[float | None]:
            return itertools.islice(super().train(), steps)

    opened(Short())
    with pytest.raises(
        RunFailedError, match=rf"^the trainer least-squares-1 ended after step {steps}, expected 12 steps: correct it$"
    ):
        train(SPEC, sink=lambda reading: None)


def test_checkpoints_take_a_small_share_of_the_time(
    opened: Callable[[Plain], Plain], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that goes on by one second a step and ten a checkpoint."""
    now, steps = 0.0, list[int]()

    class Slow(WithCheckpoints):
        def one_step(self) -> None:
            nonlocal now
            now += 1
            super().one_step()

        def save(self, folder: Path) -> None:
            nonlocal now
            now += 10
            steps.append(self.step)

    def saved(*, evaluates: bool) -> list[int]:
        run = opened(Slow())
        run.num_steps, Slow.evaluates = 300, evaluates
        steps.clear()
        train(SPEC, sink=lambda reading: None, folder=tmp_path)
        return steps

    monkeypatch.setattr("halflife.studies.lab.trainer.time.perf_counter", lambda: now)
    assert saved(evaluates=True) == [2, 202]  # ten seconds are a twentieth of 200
    assert saved(evaluates=False) == [62, 262]  # only after a minute


# ---- numbers that are not finite


def nan_at(step: int, run: Plain, value: Any, good: Any) -> Callable[[], Any]:
    return lambda: value if run.step == step else good


def poison(run: Plain, what: str) -> None:
    """NaN or infinity at step 8."""
    bad = -math.inf if "infinite" in what else math.nan
    match what.rpartition(" ")[2]:
        case "loss":
            run.loss = nan_at(8, run, bad, 1.0)
        case "value":
            run.values = nan_at(8, run, {"test/loss": 1.0, "x": bad}, {"test/loss": 2.0})
        case "<f4" | "<f8" as dtype:
            array: Array = floats(torch.tensor([1.0, bad, 2.0], dtype=torch.float64), dtype)
            run.arrays = nan_at(8, run, {"x": array}, {})
        case "weight":

            def loss() -> float:
                if run.step == 8:
                    run.weights[1][2] = bad
                return 1.0

            run.loss = loss


@pytest.mark.parametrize("made", [Plain, WithCheckpoints])
@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("loss", "the training loss"),
        ("infinite loss", "the training loss"),
        ("weight", "a weight"),
        ("infinite weight", "a weight"),
        ("value", "the reading 'x'"),
        ("infinite value", "the reading 'x'"),
        ("<f4", "the reading 'x'"),
        ("infinite <f8", "the reading 'x'"),
    ],
)
def test_any_number_that_is_not_finite_ends_a_run(
    made: type[Plain], what: str, words: str, opened: Callable[[Plain], Plain], tmp_path: Path, always_due: None
) -> None:
    run = opened(made())
    poison(run, what)
    readings: list[Reading] = []
    sentence = rf"^{words} became NaN or infinite at step 8 \(lr 0.1\): lower the learning rate$"
    with pytest.raises(DivergedError, match=sentence) as caught:
        train(SPEC, sink=readings.append, folder=tmp_path)
    assert caught.value.step == 8
    assert [reading.step for reading in readings] == [0, 4]
    if made is WithCheckpoints:
        assert (tmp_path / "step").read_text() == "6"  # the last good checkpoint


def test_a_stop_does_not_keep_a_broken_state(opened: Callable[[Plain], Plain], tmp_path: Path) -> None:
    run = opened(WithCheckpoints())
    run.weights[0][0] = math.nan
    with pytest.raises(DivergedError, match="a weight became NaN or infinite at step 1 "):
        train(SPEC, sink=lambda reading: None, folder=tmp_path, stop=lambda: True)
    assert "save" not in run.calls


def test_a_divergence_may_be_a_result(opened: Callable[[Plain], Plain]) -> None:
    class Replay(Plain):
        def diverged(self, step: int) -> Reading | None:
            return Reading(step=self.step, epoch=self.step, values={"diverged_at": step})

    run = opened(Replay())
    poison(run, "weight")
    readings: list[Reading] = []
    train(SPEC, sink=readings.append)
    assert [(reading.step, dict(reading.values)) for reading in readings[-2:]] == [
        (4, {"test/loss": 2.0}),
        (8, {"diverged_at": 8}),
    ]


def test_the_global_random_state_is_given_back(opened: Callable[[Plain], Plain]) -> None:
    run = opened(Plain())
    run.loss = lambda: float(torch.rand(()))
    before = torch.get_rng_state()
    train(SPEC, sink=lambda reading: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_processes_agree_on_a_stop_and_on_checkpoints(opened: Callable[[Plain], Plain], tmp_path: Path) -> None:
    """One of them is asked; each asks the others as often as they do, or they would wait for ever."""

    class Others(DataParallelContext):
        def __init__(self, answers: list[bool]) -> None:
            super().__init__(torch.device("cpu"))
            self.answers, self.asked = answers, list[bool]()

        def any(self, flag: bool) -> bool:
            self.asked.append(flag)
            return flag or self.answers[len(self.asked) - 1]

    run, others = opened(WithCheckpoints()), Others([False, False, True, False, True])
    with pytest.raises(RunStoppedError, match="after step 4 of 12"):
        train(SPEC, Context(parallel=others), sink=lambda reading: None, folder=tmp_path, stop=lambda: False)
    # Steps 1 and 2, the checkpoint of 2, steps 3 and 4; nobody asks about the checkpoint of a stop.
    assert len(others.asked) == 5
    assert run.calls.count("save") == 2


# ---- every trainer


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_corpus(tmp_path_factory.mktemp("corpus"))


def poisoned_after_a_look(spec: RunSpec, patch: pytest.MonkeyPatch) -> list[Run]:
    """Let the trainer of a spec give runs of which a weight is NaN from the first look on."""
    module, runs = importlib.import_module(spec.trainer.module), list[Run]()
    open_run = module.open_run

    def opened(*given: Any) -> Run:
        run: Run = open_run(*given)
        before, losses = [weight.detach().clone() for weight in run.weights], run.train()

        def poisoned() -> Iterator[float | None]:
            for loss in losses:
                if loss is not None:
                    assert any(not torch.equal(old, new) for old, new in zip(before, run.weights, strict=True))
                    with torch.inference_mode():
                        last: Tensor = run.weights[-1].data
                        last.view(-1)[-1] = math.nan
                yield loss

        patch.setattr(run, "train", poisoned)
        runs.append(run)
        return run

    patch.setattr(module, "open_run", opened)
    return runs


@pytest.mark.parametrize("name", RUNS)
def test_a_run_of_every_trainer_says_that_it_diverged(
    name: str, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = next(iter(RUNS[name].values()))
    runs = poisoned_after_a_look(spec, monkeypatch)
    store, task = Store(tmp_path), Task("d" * 16, spec, None)
    store.create()
    with pytest.raises(RunFailedError):
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=str(corpus), stop=lambda: False)
    header = store.run(task.id).header()
    assert (header["status"], header["diverged_at"]) == ("failed", runs[0].step)
    assert header["failure"].startswith(f"a weight became NaN or infinite at step {runs[0].step} (lr ")
    assert f"seed {spec.seed}" in header["failure"]
    assert all(reading.step < runs[0].step for reading in store.run(task.id).readings())


def test_a_run_that_fails_otherwise_has_not_diverged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Run:
        raise RunFailedError("32 training images make no batch of 64: lower batch_size")

    monkeypatch.setattr(least_squares, "open_run", broken)
    store, task = Store(tmp_path), Task("d" * 16, SPEC, None)
    store.create()
    with pytest.raises(RunFailedError):
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=None, stop=lambda: False)
    header = json.loads((store.run(task.id).path / "run.json").read_text())
    assert header["status"] == "failed"
    assert "diverged_at" not in header
