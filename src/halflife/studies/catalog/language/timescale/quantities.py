"""What the time-scale study measures: best lams along an axis, and a lam that is tuned at one batch at the others.

An *axis* changes one thing and holds the rest: the batch, the tokens of one pass, the tokens of a text that is repeated,
or the width. A *place* on it is one configuration, swept over lam. The base of the study is a place of three axes.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from halflife.studies.catalog.language.quantities import BLOCKS, minima
from halflife.studies.evidence.choice import Side, chosen_arms
from halflife.studies.evidence.optimum import Optimum, Sweep, exponents_of, lam_of, optimum_of, text_spec
from halflife.studies.evidence.quantities import Best, Chosen, NotMeasuredError, Numbers
from halflife.studies.evidence.results import Results
from halflife.studies.specs.text import TextRun

__all__ = [
    "AXES",
    "BASE",
    "GRID",
    "OTHER_BATCHES",
    "Axis",
    "BestAtBase",
    "arm_key",
    "best_of_place",
    "exponent",
    "num_parameters",
    "num_targets",
    "optima_on",
    "sweeps_on",
]

BASE = "base"
GRID = (-3, -2, -1, 0, 1, 2)
"""Powers of 2 by which the values of lam of a sweep differ from the one in its middle."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """What is changed, and at which places.

    Args:
        key: Its name.
        title: What it changes, in words.
        x_label: What its numbers are.
        places: Names of the configurations, in rising order.
        x: The number of a run.
    """

    key: str
    title: str
    x_label: str
    places: tuple[str, ...]
    x: Callable[[TextRun], float]


def num_parameters(spec: TextRun) -> int:
    """Parameters of a model without biases: embeddings, blocks, the gains of norms, and the head unless it is tied."""
    v, d, depth = spec.vocab_size, spec.width, spec.depth
    gains = d + (d * depth * (2 if spec.model == "gpt" else 1) if spec.norm_gain else 0)
    head = 0 if spec.tied else v * d
    if spec.model == "mlp":
        return v * spec.embedding_width + spec.context * spec.embedding_width * d + 8 * d * d * depth + gains + head
    return (v + spec.context) * d + 12 * d * d * depth + gains + head


def num_targets(spec: TextRun) -> int:
    """Tokens that a run predicts in all."""
    return spec.num_steps * spec.batch_size * (spec.context if spec.model == "gpt" else 1)


AXES = {
    axis.key: axis
    for axis in (
        Axis(
            key="batch",
            title="batch",
            x_label="targets per batch",
            places=("batch/2", BASE, "batch*2", "batch*4"),
            x=lambda spec: num_targets(spec) / spec.num_steps,
        ),
        Axis(
            key="tokens",
            title="tokens of one pass",
            x_label="targets of the run, each once",
            places=("tokens/2", BASE, "tokens*2"),
            x=num_targets,
        ),
        Axis(
            key="text",
            title="tokens of a repeated text",
            x_label="tokens of the text, read again and again",
            places=("text/2", "text", "text*2"),
            x=lambda spec: spec.num_train_tokens or 0,
        ),
        Axis(
            key="width",
            title="width",
            x_label="parameters",
            places=("width/2", BASE, "width*2"),
            x=num_parameters,
        ),
    )
}
"""What is changed, one thing at a time, from the base: the batch, the tokens of one pass, the text that is repeated, the
width."""


def arm_key(place: str, power: int) -> str:
    """The arm of a sweep whose lam is 2^power times that of its middle."""
    return f"{place} {power:+d}"


def sweeps_on(results: Results, size: int, *, axis: str) -> list[Sweep]:
    """The places of an axis (a key of `AXES`) with their arms, in rising order."""
    sweeps = []
    for place in AXES[axis].places:
        specs = {arm_key(place, power): text_spec(results, arm_key(place, power), size) for power in GRID}
        x = AXES[axis].x(next(iter(specs.values())))
        label = f"{x:,.0f} {AXES[axis].x_label.split(',')[0]}"
        sweeps.append(Sweep(label=label, x=x, keys={lam_of(spec): key for key, spec in specs.items()}))
    return sweeps


def optima_on(results: Results, size: int, *, axis: str) -> list[Optimum]:
    """The optimum of each sweep on an axis, in the order of `sweeps_on`."""
    return [optimum_of(results, sweep, size, BLOCKS) for sweep in sweeps_on(results, size, axis=axis)]


def exponent(results: Results, size: int, *, axis: str) -> Numbers:
    """The power of what an axis changes as which the best lam goes, (S, N)."""
    found = minima(results, size, optima=functools.partial(optima_on, axis=axis))
    return exponents_of([sweep.x for sweep in sweeps_on(results, size, axis=axis)], found)


OTHER_BATCHES = tuple(place for place in AXES["batch"].places if place != BASE)


def best_of_place(place: str) -> Best:
    """The loss at a place with its own best lam."""
    return Best(tuple(arm_key(place, power) for power in GRID), BLOCKS)


@dataclass(frozen=True)
class BestAtBase(Chosen):
    """The loss at the other batches with the lam that is best at the base, a mean over these batches.

    Args:
        kept: Weight of the loss with this very lam.
        scaled: Weight of the loss with the lam that is scaled with the batch.
    """

    kept: float
    scaled: float

    def side(self, results: Results, size: int) -> Side:
        """A row a power of the grid: at the base it is chosen, at the others it counts."""
        base = np.array([results.read(arm_key(BASE, power), BLOCKS, size) for power in GRID])
        taken = {GRID[arm] for arm in chosen_arms(Side(values=base))}
        shifts = {place: _doublings(results, place, size) for place in OTHER_BATCHES}
        for place, shift in shifts.items():
            if not {power - shift for power in taken} <= set(GRID):
                raise NotMeasuredError(f"the base's best lam is not on the grid of {place}")
        # No choice takes the others.
        powers = [power for power in GRID if all(power - shift in GRID for shift in shifts.values())]
        values = np.mean(
            [
                [
                    self.kept * results.read(arm_key(place, power - shift), BLOCKS, size)
                    + self.scaled * results.read(arm_key(place, power), BLOCKS, size)
                    for power in powers
                ]
                for place, shift in shifts.items()
            ],
            axis=0,
        )
        return Side(values=values, scores=base[[GRID.index(power) for power in powers]])


def _doublings(results: Results, place: str, size: int) -> int:
    """How often the base's batch is doubled at a place."""
    batch, base = (text_spec(results, arm_key(where, 0), size).batch_size for where in (place, BASE))
    return round(math.log2(batch / base))
