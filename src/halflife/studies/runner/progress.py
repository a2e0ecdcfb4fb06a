"""What a person sees while a study runs: a bar per worker with the current loss, and the time left for all."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from halflife.studies.runner.plan import PlannedRun
from halflife.studies.runner.pool import Event

__all__ = ["Estimate", "shown_progress"]


class Estimate:
    """The seconds left, from what finished and running runs have taken.

    Runs of one size, kind and length take about the same time. Others are guessed at the mean of those that have run.

    Args:
        missing: The runs to do.
        workers: How many run at once.
        clock: Monotonic seconds.
    """

    def __init__(
        self, missing: Sequence[PlannedRun], workers: int, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.missing = {run.id: run for run in missing}
        self.workers, self.clock = workers, clock
        self.taken: dict[tuple[Any, ...], list[float]] = {}
        self.begun: dict[str, float] = {}
        self.share: dict[str, float] = {}
        self.resumed: dict[str, float] = {}

    def hear(self, event: Event) -> None:
        """Take in what a worker reported.

        Args:
            event: The event.
        """
        run = event.run
        if event.what == "started":
            self.begun[run.id] = self.clock()
        elif event.what == "progress":
            share = event.step / event.num_steps
            if run.id not in self.resumed:  # the first report comes after one epoch, or after a resume and one epoch
                self.resumed[run.id] = share
                self.begun[run.id] = self.clock()
            self.share[run.id] = share
        else:
            if event.what == "finished" and self.resumed.get(run.id, 0) < 0.5:
                self.taken.setdefault(_like(run), []).append(event.seconds)
            self.missing.pop(run.id, None)

    def _whole_run(self, run: PlannedRun) -> float | None:
        done = self.taken.get(_like(run))
        if done:
            return sum(done) / len(done)
        rates = [
            (self.clock() - self.begun[other]) / (share - self.resumed[other])
            for other, share in self.share.items()
            if share > self.resumed[other] and other in self.missing and _like(self.missing[other]) == _like(run)
        ]
        return sum(rates) / len(rates) if rates else None

    def seconds_left(self) -> float | None:
        """The estimate; 0 when all is done, ``None`` before there is anything to base it on."""
        if not self.missing:
            return 0.0
        known: list[float] = []
        weights: list[tuple[float | None, float]] = []
        for run in self.missing.values():
            whole = self._whole_run(run)
            weights.append((whole, 1 - self.share.get(run.id, 0.0)))
            if whole is not None:
                known.append(whole)
        if not known:
            return None
        mean = sum(known) / len(known)
        return sum((mean if whole is None else whole) * left for whole, left in weights) / max(1, self.workers)


def _like(run: PlannedRun) -> tuple[Any, ...]:
    """What runs must have in common to take about the same time."""
    spec = run.spec
    return (
        run.arm.size,
        spec.kind,
        *(getattr(spec, name, None) for name in ("num_steps", "num_epochs", "batch_size", "data")),
    )


def _clock_words(seconds: float | None) -> str:
    if seconds is None:
        return "time left: measuring"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min left" if hours else f"{minutes} min {rest:02d} s left"


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
    estimate = Estimate(missing, workers)
    total = num_finished + len(missing)
    done = num_finished
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=24),
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
        estimate.hear(event)
        run = event.run
        what = f"{run.arm.label}, seed {run.seed}"
        if event.worker not in rows:
            rows[event.worker] = bars.add_task(what, total=1.0, note="")
        row = rows[event.worker]
        if event.what == "started":
            bars.reset(row, description=what, total=1.0, note="starting")
        elif event.what == "progress":
            bars.update(row, completed=event.step / event.num_steps, note=f"loss {event.loss:.3f}")
        else:
            done += 1
            if event.what == "failed":
                console.print(f"[red]failed[/] {event.message}")
            elif not console.is_terminal:
                left = _clock_words(estimate.seconds_left())
                console.print(
                    f"{done}/{total} {what}, width {run.arm.size}: {event.seconds:.0f} s; {left}",
                    highlight=False,
                    soft_wrap=True,
                )
        left = _clock_words(estimate.seconds_left())
        bars.update(overall, completed=done, note=f"{done}/{total}, {left}")

    with bars:
        yield listen
