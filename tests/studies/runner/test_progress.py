"""The time left, with a clock of its own, and the bars that a person sees."""

from __future__ import annotations

import io
from typing import cast

import pytest
from rich.console import Console

from halflife.studies.catalog import get_study
from halflife.studies.runner.plan import PlannedRun, make_plan
from halflife.studies.runner.pool import Event, EventKind
from halflife.studies.runner.progress import Estimate, shown_progress

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
    estimate = Estimate(EIGHT, workers=2)
    assert estimate.seconds_left() is None
    estimate.hear(event("started", EIGHT[0]))
    assert estimate.seconds_left() is None


def test_a_running_run_gives_the_rate_and_a_finished_one_corrects_it() -> None:
    clock = Clock()
    estimate = Estimate(EIGHT, workers=2, clock=clock)
    estimate.hear(event("started", EIGHT[0]))
    clock.now = 10  # ten seconds of starting, which are no part of the rate
    estimate.hear(event("progress", EIGHT[0], step=10))
    clock.now = 30
    estimate.hear(event("progress", EIGHT[0], step=30))
    # 20 s for a fifth: 100 s a run; 0.7 + 3 runs are left for two workers.
    assert estimate.seconds_left() == pytest.approx(100 * 3.7 / 2)
    estimate.hear(event("finished", EIGHT[0], seconds=80))
    assert estimate.seconds_left() == pytest.approx(80 * 3 / 2)
    for run in EIGHT[1:]:
        estimate.hear(event("finished", run, seconds=80))
    assert estimate.seconds_left() == 0


def test_each_size_has_its_own_rate() -> None:
    estimate = Estimate([*EIGHT, *SIXTEEN], workers=1)
    for run, seconds in ((EIGHT[0], 50.0), (SIXTEEN[0], 200.0)):
        estimate.hear(event("progress", run, step=1))
        estimate.hear(event("finished", run, seconds=seconds))
    assert estimate.seconds_left() == pytest.approx(3 * 50 + 3 * 200)


def test_a_resumed_run_does_not_count_as_a_whole_one() -> None:
    estimate = Estimate(EIGHT, workers=1)
    estimate.hear(event("progress", EIGHT[0], step=90))
    estimate.hear(event("finished", EIGHT[0], seconds=5))
    assert estimate.seconds_left() is None


@pytest.mark.parametrize("terminal", [True, False])
def test_a_person_sees_workers_losses_failures_and_the_time_left(terminal: bool) -> None:
    out = io.StringIO()
    console = Console(file=out, force_terminal=terminal, width=100)
    with shown_progress(console, EIGHT, 2, 2) as listen:
        listen(event("started", EIGHT[0]))
        listen(event("started", EIGHT[1], worker=1))
        listen(event("progress", EIGHT[0], step=10, loss=1.25))
        listen(event("progress", EIGHT[0], step=50, loss=0.75))
        listen(event("finished", EIGHT[0], seconds=61))
        listen(Event("failed", 1, EIGHT[1], message="the loss became nan"))
    said = out.getvalue()
    assert "the loss became nan" in said
    if terminal:
        assert "loss 0.750" in said
        assert "4/6" in said
    else:
        assert "3/6 lr 0.1, lam 0.01, seed 0, width 8: 61 s; 1 min 32 s left" in said
