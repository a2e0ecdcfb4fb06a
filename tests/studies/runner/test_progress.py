"""The time left, with a clock of its own, and the bars that a person sees."""

from __future__ import annotations

import io
from typing import cast

import pytest
from rich.console import Console

from halflife.studies.catalog import get_study
from halflife.studies.runner.plan import PlannedRun, make_plan
from halflife.studies.runner.pool import Event, EventKind
from halflife.studies.runner.progress import TimeLeft, shown_progress

STUDY = get_study("stabilization")
PLAN = make_plan(STUDY, "night", STUDY.presets["night"], num_seeds=1)
EIGHT = [run for run in PLAN.runs if run.arm.size == 8]
SIXTEEN = [run for run in PLAN.runs if run.arm.size == 16]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def event(what: str, run: PlannedRun, worker: int = 0, **values: float) -> Event:
    return Event(cast("EventKind", what), worker, run, num_steps=100, **values)  # type: ignore[arg-type]  # step is whole


def test_runs_of_the_main_size_come_first_and_whole_seeds_together() -> None:
    plan = make_plan(STUDY, "night", STUDY.presets["night"])
    assert [run.arm.size for run in plan.runs[:24]] == [8] * 24
    assert [run.seed for run in plan.runs[:8]] == [0] * 4 + [1] * 4
    assert len({run.id for run in plan.runs}) == len(plan.runs) == 48


def test_nothing_is_guessed_before_anything_is_known() -> None:
    left = TimeLeft(EIGHT, workers=2)
    left.take(event("started", EIGHT[0]))
    left.take(event("progress", EIGHT[0], step=10))
    assert str(left) == "time left: measuring"


def test_a_running_run_gives_the_pace_and_its_latest_report_corrects_it() -> None:
    clock = Clock()
    left = TimeLeft(EIGHT, workers=2, clock=clock)
    left.take(event("started", EIGHT[0]))
    clock.now = 10  # ten seconds of starting, which are no part of the pace
    left.take(event("progress", EIGHT[0], step=10))
    clock.now = 30
    left.take(event("progress", EIGHT[0], step=30))
    # 20 s for a fifth: 100 s a run; 0.7 + 3 runs are left for two workers.
    assert str(left) == "0:03:05 left"
    clock.now = 82
    left.take(event("progress", EIGHT[0], step=100))
    left.take(event("finished", EIGHT[0], seconds=82))
    assert str(left) == "0:02:00 left"  # 72 s for nine tenths: 80 s a run, three of them left
    for run in EIGHT[1:]:
        left.take(event("finished", run, seconds=80))
    assert str(left) == "0:00:00 left"


def test_each_size_has_its_own_pace_and_an_unknown_one_the_mean() -> None:
    left = TimeLeft([*EIGHT, *SIXTEEN], workers=1)
    left.take(event("progress", EIGHT[0], step=100))
    left.take(event("finished", EIGHT[0], seconds=50))
    assert str(left) == "0:05:50 left"  # 7 runs of 50 s
    left.take(event("progress", SIXTEEN[0], step=100))
    left.take(event("finished", SIXTEEN[0], seconds=200))
    assert str(left) == "0:12:30 left"  # 3 runs of 50 s and 3 of 200 s
    left.take(event("failed", SIXTEEN[1]))
    assert str(left) == "0:09:10 left"


def test_what_a_resumed_run_did_before_does_not_count() -> None:
    clock = Clock()
    left = TimeLeft(EIGHT, workers=1, clock=clock)
    left.take(event("progress", EIGHT[0], step=90))
    left.take(event("finished", EIGHT[0], seconds=5))
    assert str(left) == "time left: measuring"
    left.take(event("progress", EIGHT[1], step=90))
    clock.now = 6
    left.take(event("progress", EIGHT[1], step=100))
    assert str(left) == "0:02:00 left"  # 6 s for a tenth: 60 s a run, two of them left


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_workers_losses_failures_and_the_time_left(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with shown_progress(console, EIGHT, 2, 2) as listen:
        listen(event("started", EIGHT[0]))
        listen(event("started", EIGHT[1], worker=1))
        listen(event("progress", EIGHT[0], step=100, loss=0.75))
        listen(event("finished", EIGHT[0], seconds=61))
        listen(Event("failed", 1, EIGHT[1], message="the loss in runs[/] became [red]nan[/red]"))
    said = out.getvalue()
    assert "the loss in runs[/] became [red]nan[/red]" in said, "what is not ours is not read as markup"
    if terminal:
        assert "loss 0.750" in said
        assert "4/6" in said
    else:
        assert "3/6 lr 0.1, lam 0.01, seed 0, size 8: 61 s; 0:01:32 left" in said


@pytest.mark.parametrize("what", ["started", "waiting"])
def test_a_person_sees_what_a_run_waits_for(what: EventKind) -> None:
    out = io.StringIO()
    with shown_progress(Console(file=out, force_terminal=True, width=100), EIGHT, 0, 2) as listen:
        listen(event("started", EIGHT[0]))
        listen(Event(what, 0, EIGHT[0], message="reading data, parent run"))
    assert "reading data, parent run" in out.getvalue()
    left = TimeLeft(EIGHT, workers=2)
    left.take(event("waiting", EIGHT[0]))
    assert len(left.left) == len(EIGHT), "nothing is done yet"
