"""The decision rules of the time-scale study, and the sweeps that they read.

An *axis* changes one thing and holds the rest: the batch, the tokens of one pass, the tokens of a text that is repeated,
or the width. A *place* on it is one configuration, swept over lam. The base of the study is a place of three axes.

Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import nats
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    all_of,
    below,
    best_keys,
    best_of,
    within,
)
from halflife.studies.evidence.optimum import Optimum, Sweep, exponent_of, lam_of, optimum_of, text_spec
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval
from halflife.studies.specs.text import TextRun

__all__ = [
    "AXES",
    "BASE",
    "GRID",
    "Axis",
    "arm_key",
    "matched_timescale",
    "num_parameters",
    "num_targets",
    "optima_on",
    "scales_as",
    "sweeps_on",
]

MARGIN = 0.25  # of an exponent: half the distance between the two published answers for tokens, -1 and -0.48
SMALLEST_LOSS = 0.01  # nats: half of what decay gains in the paper's GPT-2 (3.30 against 3.28)
LOSS, BLOCKS = "val/loss", "val/loss_blocks"

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


def sweeps_on(results: Results, axis: str, size: int) -> list[Sweep]:
    """The places of an axis with their arms.

    Args:
        results: What the store holds.
        axis: A key of `AXES`.
        size: The size.

    Returns:
        One sweep per place, in rising order.
    """
    sweeps = []
    for place in AXES[axis].places:
        specs = {arm_key(place, power): text_spec(results, arm_key(place, power), size) for power in GRID}
        x = AXES[axis].x(next(iter(specs.values())))
        label = f"{x:,.0f} {AXES[axis].x_label.split(',')[0]}"
        sweeps.append(Sweep(label=label, x=x, keys={lam_of(spec): key for key, spec in specs.items()}))
    return sweeps


def optima_on(results: Results, axis: str, size: int) -> list[Optimum]:
    """The optimum of each sweep on an axis, in the order of `sweeps_on`."""
    return [optimum_of(results, sweep, size, BLOCKS) for sweep in sweeps_on(results, axis, size)]


def _list(sweeps: list[Sweep], optima: list[Optimum]) -> str:
    return ", ".join(f"{optimum.lam().estimate:.3g} ({s.label})" for s, optimum in zip(sweeps, optima, strict=True))


def scales_as(results: Results, size: int, *, axis: str, exponent: float) -> Finding:
    """Whether lam* goes as a power of what an axis changes.

    Args:
        results: What the store holds.
        size: The size.
        axis: A key of `AXES`.
        exponent: The power.

    Returns:
        The finding; its effect is the fitted exponent.
    """
    sweeps, optima = sweeps_on(results, axis, size), optima_on(results, axis, size)
    problems = [optimum.problem for optimum in optima if optimum.problem]
    if problems:
        return Finding("inconclusive", None, "; ".join(problems))
    places = [sweep.x for sweep in sweeps]
    shown = exponent_of(places, optima)
    decided = exponent_of(places, optima, EQUAL_CONFIDENCE)
    return Finding(
        within(decided, MARGIN, around=exponent),
        shown,
        f"the best lam is {_list(sweeps, optima)}; the fitted exponent is {shown.estimate:.2f} [{shown.low:.2f},"
        f" {shown.high:.2f}], with 90 % confidence [{decided.low:.2f}, {decided.high:.2f}], against {exponent:g}",
    )


def matched_timescale(results: Results, size: int) -> Finding:
    """Whether a lam that is tuned at one batch serves at others, once it is scaled with the batch.

    The base's lam is chosen for each seed on the other seeds. At every other batch it is used as it is and scaled, and
    compared with the best lam there, chosen alike.

    Returns:
        The finding; its effect is the loss with lam kept minus that with lam scaled, averaged over the other batches.
    """
    base_keys = [arm_key(BASE, power) for power in GRID]
    chosen = [GRID[base_keys.index(key)] for key in best_keys(results, base_keys, LOSS, size)]
    base_batch = text_spec(results, base_keys[0], size).batch_size
    gains, costs = [], []
    for place in (place for place in AXES["batch"].places if place != BASE):
        doublings = round(np.log2(text_spec(results, arm_key(place, 0), size).batch_size / base_batch))
        kept = [power - doublings for power in chosen]
        if not set(kept) <= set(GRID):
            return Finding("inconclusive", None, f"the base's best lam is not on the grid of {place}")
        scaled_SN = _chosen_blocks(results, place, chosen, size)
        gains.append(_chosen_blocks(results, place, kept, size) - scaled_SN)
        own_SN = best_of(results, [arm_key(place, power) for power in GRID], LOSS, size, array=BLOCKS)
        costs.append(scaled_SN - own_SN)
    gain = crossed_interval(np.mean(gains, axis=0), example_name="blocks")
    cost = crossed_interval(np.mean(costs, axis=0), confidence=EQUAL_CONFIDENCE, example_name="blocks")
    return Finding(
        all_of(above_zero(gain), below(cost, SMALLEST_LOSS)),
        gain,
        f"at the other batches the base's lam, kept, gives {nats(gain)} more than scaled with the batch; scaled, it gives"
        f" {nats(cost)} more than the best lam there (90 % interval)",
    )


def _chosen_blocks(results: Results, place: str, powers: list[int], size: int) -> NDArray[np.float64]:
    """The blocks of each seed with its own arm, (S, N)."""
    found = {power: results.last_array(arm_key(place, power), BLOCKS, size) for power in set(powers)}
    return np.array([found[power][seed] for seed, power in enumerate(powers)])
