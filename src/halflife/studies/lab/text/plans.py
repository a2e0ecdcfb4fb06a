"""The training plan of a run: from where it starts, at which learning rates, with which decay, on which batches.

A plain run, a branch and a replay differ in their plans and in nothing else, so that one loop serves them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from halflife.errors import UserError
from halflife.rules.registry import schedule_from
from halflife.studies.lab.tensor_files import kept_file
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun

__all__ = ["TrainingPlan", "plan_of"]


@dataclass(frozen=True, kw_only=True)
class TrainingPlan:
    """What one run does.

    Args:
        run: The digest of the run's spec, which stands in what it writes.
        base: The settings of model, data and optimizer.
        num_steps: Optimizer steps to do.
        lr: The learning rate from the number of steps done.
        decay: The rule or penalty as text (empty: none).
        loss_penalty: As `TextRun.loss_penalty`.
        first_batch: Which batch of the data is the first.
        keep_at: Steps after which a checkpoint is kept.
        eval_every: Evaluate every so many steps.
        parent: The digest of the spec of the run that it starts from (empty: none).
        start: The checkpoint that it starts from, without suffix (``None``: fresh weights).
        replay: How the learning rate is matched to the parent's norms (``None``: not a replay).
        norms: The file of the parent's norms, of a replay.
        trace_norms: Whether norms are kept.
        ema: As `TextRun.ema`; branches and replays have no averages.
        average_from: As `TextRun.average_from`.
    """

    run: str
    base: TextRun
    num_steps: int
    lr: Callable[[int], float]
    decay: str
    loss_penalty: float = 0.0
    first_batch: int = 0
    keep_at: tuple[int, ...] = ()
    eval_every: int
    parent: str = ""
    start: Path | None = None
    replay: str | None = None
    norms: Path | None = None
    trace_norms: bool = False
    ema: tuple[float, ...] = ()
    average_from: int | None = None

    @property
    def arrays_at(self) -> set[int]:
        """The steps at which losses are kept block by block."""
        return {*self.keep_at, self.num_steps}


def plan_of(spec: TextRun | TextBranch | TextReplay, parent: Path | None) -> TrainingPlan:
    """The training plan of a run.

    Args:
        spec: The run.
        parent: The folder of what its parent kept, of a branch or a replay.

    Returns:
        The plan.

    Raises:
        UserError: A branch or replay without what its parent kept, or a cooldown from a learning rate of 0.
    """
    if isinstance(spec, TextRun):
        schedule = schedule_from(spec.lr_schedule)
        return TrainingPlan(
            run=spec.digest(),
            base=spec,
            num_steps=spec.last_step,
            lr=lambda step: spec.lr * schedule(step),
            decay=spec.decay,
            loss_penalty=spec.loss_penalty,
            keep_at=tuple(sorted({min(step, spec.last_step) for step in spec.keep_at})),
            eval_every=spec.eval_every,
            trace_norms=spec.trace_norms,
            ema=spec.ema,
            average_from=spec.average_from,
        )
    of = spec.of
    schedule = schedule_from(of.lr_schedule)
    if isinstance(spec, TextReplay):
        return TrainingPlan(
            run=spec.digest(),
            parent=of.digest(),
            base=of,
            num_steps=spec.last_step,
            lr=lambda step: of.lr * schedule(step),
            decay="",
            eval_every=of.eval_every,
            replay=spec.match,
            norms=kept_file(parent, spec),
        )
    at = min(spec.at, of.last_step)
    peak, num_steps = of.lr * spec.lr_factor, spec.num_steps
    if spec.branch == "cooldown":
        peak = of.lr * schedule(at)
        if peak == 0:
            raise UserError(f"a cooldown starts at step {at}, where the learning rate is 0 already: branch off earlier")
    return TrainingPlan(
        run=spec.digest(),
        parent=of.digest(),
        base=of,
        num_steps=spec.last_step,
        lr=(lambda _step: peak) if spec.branch == "tiny-lr" else (lambda step: peak * (1 - step / num_steps)),
        decay="" if spec.branch == "tiny-lr" else of.decay,
        loss_penalty=0.0 if spec.branch == "tiny-lr" else of.loss_penalty,
        first_batch=at,
        eval_every=of.eval_every,
        start=kept_file(parent, spec),
    )
