"""What a person sees while a study runs: a bar per worker with the current loss, and the time left for all."""

from __future__ import annotations

import contextlib
import datetime
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Column

from halflife.studies.runner.plan import PlannedRun
from halflife.studies.runner.pool import Event

__all__ = ["TimeLeft", "shown_progress"]


class TimeLeft:
    """The time left for runs of different sizes: the seconds of a whole run of each size, as measured, times what is left.

    A run is timed from its first report to its latest, so that neither the start of a worker counts nor what a resumed run
    had done before. Sizes that are not measured yet are guessed at the mean of those that are. The speed of a single bar
    would mislead: small runs come first.

    Args:
        missing: The runs to do.
        workers: How many run at once.
        clock: Monotonic seconds.
    """

    def __init__(
        self, missing: Sequence[PlannedRun], workers: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.workers, self.clock = workers, clock
        self.left = {run.id: (_like(run), 1.0) for run in missing}
        self.first: dict[str, tuple[float, float]] = {}
        self.seconds: dict[tuple[Any, ...], float] = {}

    def take(self, event: Event) -> None:
        """Take in what a worker reported."""
        run, like = event.run, _like(event.run)
        if event.what == "progress":
            share, now = event.step / event.num_steps, self.clock()
            first_share, began = self.first.setdefault(run.id, (share, now))
            if share > first_share:
                self.seconds[like] = (now - began) / (share - first_share)
            self.left[run.id] = (like, 1 - share)
        elif event.what in {"finished", "failed"}:
            self.left.pop(run.id, None)
            if event.what == "finished" and self.first.get(run.id, (1.0,))[0] == 1.0:  # it reported at its end alone
                self.seconds.setdefault(like, event.seconds)

    def __str__(self) -> str:
        if self.left and not self.seconds:
            return "time left: measuring"
        mean = statistics.fmean(self.seconds.values()) if self.seconds else 0.0
        seconds = sum(self.seconds.get(like, mean) * share for like, share in self.left.values()) / self.workers
        return f"{datetime.timedelta(seconds=round(seconds))} left"


def _like(run: PlannedRun) -> tuple[Any, ...]:
    """What runs must have in common to take about the same time."""
    names = ("num_steps", "num_epochs", "batch_size", "data")
    return (run.arm.size, run.spec.kind, *(getattr(run.spec, name, None) for name in names))


@contextlib.contextmanager
def shown_progress(
    console: Console, missing: Sequence[PlannedRun], num_finished: int, workers: int
) -> Iterator[Callable[[Event], None]]:
    """Show the bars while a study runs; on a console that is no terminal, one line a finished run.

    Args:
        console: Where to.
        missing: The runs to do.
        num_finished: Runs that were finished before.
        workers: Worker processes.

    Yields:
        The listener for `halflife.studies.runner.pool.execute`.
    """
    left = TimeLeft(missing, workers)
    total = num_finished + len(missing)
    done = num_finished
    widest = max(24, console.width - 62)  # columns that loss, time and bar leave to the names of runs
    bars = Progress(
        TextColumn("{task.description}", markup=False, table_column=Column(no_wrap=True, max_width=widest)),
        BarColumn(bar_width=24 if console.width >= 90 else 6),
        TextColumn("{task.fields[note]}", markup=False),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    overall = bars.add_task("all runs", total=total, completed=done, note=f"{done}/{total}")
    rows: dict[int, TaskID] = {}

    def listen(event: Event) -> None:
        nonlocal done
        left.take(event)
        run = event.run
        what = f"{run.arm.label}, seed {run.seed}"
        if event.worker not in rows:
            rows[event.worker] = bars.add_task(what, total=1.0, note="")
        row = rows[event.worker]
        if event.what == "started":
            bars.reset(row, description=what, total=1.0, note=event.message or "starting")
        elif event.what == "waiting":
            bars.update(row, note=event.message)
        elif event.what == "progress":
            bars.update(row, completed=event.step / event.num_steps, note=f"loss {event.loss:.3f}")
        else:
            done += 1
            if event.what == "failed":
                console.print(f"[red]failed[/] {escape(event.message)}", highlight=False, soft_wrap=True)
            elif not console.is_terminal:
                line = f"{done}/{total} {what}, size {run.arm.size}: {event.seconds:.0f} s; {left}"
                console.print(line, markup=False, highlight=False, soft_wrap=True)
        bars.update(overall, completed=done, note=f"{done}/{total}, {left}")

    with bars:
        yield listen
