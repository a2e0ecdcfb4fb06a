"""Train one language model: one readable loop for plain runs, branches and replays, with readings and exact resume.

The state after a step is a function of the weights, the optimizer's state, the averages and the step's number: the order
of the data and dropout's masks are seeded by (seed, step). So a checkpoint at any step resumes to the same bits.

Shapes: B windows, T tokens of a window.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

from halflife.errors import RunFailedError, RunStoppedError
from halflife.studies.lab.text.loop import TextLoop
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.plans import plan_of
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun
from halflife.studies.store.records import Reading

__all__ = ["Progress", "train"]

Progress = Callable[[int, int, float], None]
"""Called with the steps done, the steps in all and the mean training loss since the last call."""

SAVING_SHARE = 0.05  # of the time, at most, goes into checkpoints
SAVING_SECONDS = 60.0  # after which a reading is as good a time as an evaluation


def train(
    spec: TextRun | TextBranch | TextReplay,
    *,
    sink: Callable[[Reading], None],
    folder: Path,
    progress: Progress | None = None,
    data_folder: str | None = None,
    device: str = "cpu",
    parent: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
    parallel: DataParallelContext | None = None,
) -> dict[str, float]:
    """Train the run that ``spec`` describes, from its last checkpoint if there is one.

    The arguments are those of every trainer (`halflife.studies.lab`); besides, ``parallel`` are the processes that train
    together (``None``: this one alone). ``progress`` is told at every reading. ``stop`` is asked after every step, by several
    processes at every reading, and one yes is enough. What later runs start from is kept in ``kept`` in ``folder``.

    Returns:
        What it cost: seconds and tokens per second of training (forward, backward, step, readings), seconds of evaluation,
        peak memory in MB.

    Raises:
        RunFailedError: The loss or a norm became NaN or infinite. The last good checkpoint stays.
        RunStoppedError: It was asked to stop.
    """
    plan = plan_of(spec, parent)
    loop = TextLoop(plan, seed=spec.seed, device=device, data_folder=data_folder, parallel=parallel)
    checkpoint = folder / "checkpoint"
    if not loop.state.load(checkpoint):
        if plan.start is not None:
            loop.start_from(plan.start)
        sink(loop.reading(None))
    clock = _Clock(loop)
    with loop.random_state():
        while loop.step < plan.num_steps:
            loop.one_step()
            last = loop.step == plan.num_steps
            evaluates = last or loop.evaluates_at(loop.step)
            reads = evaluates or loop.reads_at(loop.step)
            # Several processes would have to wait for each other to agree on it, which they do at readings anyway.
            asked = (reads or loop.parallel.size == 1) and loop.parallel.any(stop())
            if not reads and not asked:
                continue
            bad = loop.first_bad()
            if bad is not None:
                _broken(loop, bad, spec, checkpoint, sink)
                return clock.cost()
            if reads:
                loss = loop.take_running_loss()
                if progress is not None:
                    progress(loop.step, plan.num_steps, loss)
                end = {"diverged_at": -1.0} if last and isinstance(spec, TextReplay) else {}
                reading = loop.reading(loss, **end)
                # Finite weights can still be too large to evaluate.
                if not all(map(math.isfinite, reading.values.values())):
                    _broken(loop, loop.step, spec, checkpoint, sink)
                    return clock.cost()
                sink(reading)
            if loop.step in plan.keep_at:
                loop.keep(folder / "kept")
            if last:
                break
            if asked or loop.parallel.any(clock.may_save(evaluates)):
                clock.save(checkpoint)
            if asked:
                raise RunStoppedError(f"stopped after step {loop.step} of {plan.num_steps}: a checkpoint is kept")
    if plan.trace_norms:
        loop.keep_trace(folder / "kept" / "norms.safetensors")
    return clock.cost()


class _Clock:
    """Where a run's time goes, and whether it is time for a checkpoint."""

    def __init__(self, loop: TextLoop) -> None:
        self.loop, self.began, self.first_step = loop, time.perf_counter(), loop.step
        self.evaluated = loop.costs.seconds["evaluation"]
        self.saved_at, self.last_save, self.saving = self.began, 0.0, 0.0

    def may_save(self, evaluates: bool) -> bool:
        """At evaluations; where these are far apart in between, too, as long as checkpoints take a small share of the time."""
        since = time.perf_counter() - self.saved_at
        return (evaluates or since > SAVING_SECONDS) and self.last_save <= SAVING_SHARE * since

    def save(self, path: Path) -> None:
        began = time.perf_counter()
        self.loop.state.save(path)
        self.saved_at = time.perf_counter()
        self.last_save = self.saved_at - began
        self.saving += self.last_save

    def cost(self) -> dict[str, float]:
        costs = self.loop.costs
        spent = time.perf_counter() - self.began - (costs.seconds["evaluation"] - self.evaluated) - self.saving
        costs.seconds["training"], costs.samples = spent, (self.loop.step - self.first_step) * self.loop.tokens_per_step
        return costs.summary("tokens")


def _broken(
    loop: TextLoop,
    bad: int,
    spec: TextRun | TextBranch | TextReplay,
    checkpoint: Path,
    sink: Callable[[Reading], None],
) -> None:
    """End a run that is no longer finite: a replay with the result that it diverged, any other with an error."""
    if isinstance(spec, TextReplay):
        sink(Reading(step=loop.step, epoch=loop.epoch, values={"diverged_at": bad}))
        return
    kept = "the last good checkpoint is kept" if loop.state.exists(checkpoint) else "no checkpoint was made before"
    raise RunFailedError(
        f"the training loss, a gradient or the weights became NaN or infinite at step {bad} (lr {loop.lr:g}, seed {spec.seed};"
        f" {loop.norms_in_words()}), {kept}: lower the learning rate"
    )
