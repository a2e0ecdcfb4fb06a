"""The decision rules of `lm-effective-lr`: how far a replay without decay is from the run with decay that it replays.

The distance of two runs is the largest difference in size between their training losses, each the mean over the steps
between two readings, after the first tenth of the steps. A run whose loss is NaN or infinite, or further away than a
uniform guess over the vocabulary, counts as that far, ln(vocabulary) nats. Ratios of distances are taken seed by seed, as
logarithms. Shapes: S seeds.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.quantities import nats
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.decisions import (
    EQUAL_CONFIDENCE,
    Finding,
    above_zero,
    all_of,
    below,
    paired_blocks,
    within,
)
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval
from halflife.studies.specs.text import TextRun

__all__ = [
    "FOLLOWS",
    "LOSS_MARGIN",
    "closer_per_tensor",
    "distance",
    "distances",
    "divergences",
    "follows",
    "same_end",
    "squared_fails",
]

METRIC = "train/running_loss"
FOLLOWS = 0.5  # of the distance of the run that is not matched
LOSS_MARGIN = 0.005  # nats: a quarter of what decay changes in the paper
START = 0.1  # of the steps: before, losses fall so fast that seeds are far apart
MATCHES = ("none", "global", "per-tensor", "global-squared")

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]
"""Steps and losses."""


def _apart(mine: Curve, other: Curve, start: float) -> float:
    """The largest difference at the steps that both were read at."""
    _, here, there = np.intersect1d(mine[0], other[0], return_indices=True)
    late = mine[0][here] > start
    return float(np.abs(mine[1][here] - other[1][there])[late].max(initial=0.0))


def _parent(results: Results, case: str, size: int) -> TextRun:
    spec = results.spec(f"parent-{case}", size)
    assert isinstance(spec, TextRun)
    return spec


def diverged(results: Results, case: str, match: str, size: int) -> NDArray[np.float64]:
    """Per seed the step at which a replay's loss was no number any more, -1 where it did not happen."""
    steps = []
    for _, values in results.series_by_step(f"{match}-{case}", "diverged_at", size):
        steps.append(values[-1] if len(values) else -1.0)
    return np.array(steps)


def distance(results: Results, case: str, match: str, size: int) -> NDArray[np.float64]:
    """Of each seed's replay from its parent, in nats, (S,)."""
    parent = _parent(results, case, size)
    farthest, start = math.log(parent.vocab_size), START * parent.num_steps
    parents = results.series_by_step(f"parent-{case}", METRIC, size)
    replays = results.series_by_step(f"{match}-{case}", METRIC, size)
    apart = np.array([_apart(replay, other, start) for replay, other in zip(replays, parents, strict=True)])
    apart[diverged(results, case, match, size) >= 0] = farthest
    capped: NDArray[np.float64] = np.minimum(apart, farthest)
    return capped


def seeds_apart(results: Results, case: str, size: int) -> NDArray[np.float64]:
    """Of each seed's parent from those of the other seeds, the mean over these, (S,)."""
    start = START * _parent(results, case, size).num_steps
    parents = results.series_by_step(f"parent-{case}", METRIC, size)
    return np.array(
        [
            np.mean([_apart(mine, other, start) for index, other in enumerate(parents) if index != seed])
            for seed, mine in enumerate(parents)
        ]
    )


def _ratio(above_S: NDArray[np.float64], below_S: NDArray[np.float64]) -> Interval:
    """Of two distances, in logarithms. Equal to the last bit is as close as float32 can tell."""
    tiny = 1e-7
    return seed_interval(np.log(np.maximum(above_S, tiny) / np.maximum(below_S, tiny)))


def _times(interval: Interval) -> str:
    ratio = interval.exp()
    return f"{ratio.estimate:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"


def follows(results: Results, size: int, *, case: str, match: str) -> Finding:
    """The distance of matched replays against that of unmatched ones, and against that of other seeds."""
    matched_S, none_S = (distance(results, case, name, size) for name in (match, "none"))
    seeds_S = seeds_apart(results, case, size)
    to_none, to_seeds = _ratio(matched_S, none_S), _ratio(matched_S, seeds_S)
    return Finding(
        all_of(below(to_none, math.log(FOLLOWS)), below(to_seeds)),
        to_none.exp(),
        f"matched ({match}) a run without decay stays within {matched_S.mean():.4f} nats of the run with {case} decay,"
        f" {_times(to_none)} times the {none_S.mean():.4f} of a run that is not matched and {_times(to_seeds)} times the"
        f" {seeds_S.mean():.4f} between seeds{_words_of_divergence(results, case, match, size)}",
    )


def _words_of_divergence(results: Results, case: str, match: str, size: int) -> str:
    steps = diverged(results, case, match, size)
    bad = steps[steps >= 0]
    return f"; {len(bad)} of {len(steps)} seeds diverged, first at step {bad.min():.0f}" if len(bad) else ""


def closer_per_tensor(results: Results, size: int, *, case: str) -> Finding:
    """Distances of the two ways to match."""
    tensor_S, global_S = (distance(results, case, match, size) for match in ("per-tensor", "global"))
    ratio = _ratio(tensor_S, global_S)
    return Finding(
        below(ratio),
        ratio.exp(),
        f"matched per tensor a run without decay stays within {tensor_S.mean():.4f} nats of the run with {case} decay,"
        f" {_times(ratio)} times the {global_S.mean():.4f} with one factor for all",
    )


def same_end(results: Results, size: int, *, case: str, match: str) -> Finding:
    """Final validation losses; nothing is decided where the replay diverged or decay changes nothing anyway."""
    if (diverged(results, case, match, size) >= 0).any():
        return Finding("not reproduced", None, f"a replay matched by {match} has no end: it diverged")
    parent = f"parent-{case}"
    matched = paired_blocks(results, f"{match}-{case}", parent, size, confidence=EQUAL_CONFIDENCE)
    none = paired_blocks(results, f"none-{case}", parent, size)
    outcome = within(matched, LOSS_MARGIN, given=none.low > LOSS_MARGIN or none.high < -LOSS_MARGIN)
    return Finding(
        outcome,
        matched,
        f"a run without decay matched by {match} ends {nats(matched)} (90 %) from the run with {case} decay, one that is not"
        f" matched {nats(none)}",
    )


def squared_fails(results: Results, size: int, *, case: str) -> Finding:
    """The distance with lr over the squared norm matched against that of unmatched runs."""
    squared_S, none_S = (distance(results, case, match, size) for match in ("global-squared", "none"))
    ratio = _ratio(squared_S, none_S)
    return Finding(
        above_zero(ratio),
        ratio.exp(),
        f"with lr / ||w||^2 matched a run without decay is up to {squared_S.mean():.4f} nats away from the run with {case}"
        f" decay, {_times(ratio)} times the {none_S.mean():.4f} of a run that is not matched"
        f"{_words_of_divergence(results, case, 'global-squared', size)}",
    )


def distances(results: Results, case: str) -> list[PointRow]:
    """The distances of every way to match and of other seeds, one point a seed."""
    size = results.main_size
    named = {match: distance(results, case, match, size) for match in MATCHES}
    named["other seeds"] = seeds_apart(results, case, size)
    return [
        PointRow(series=name, x=float(seed), y=float(value))
        for name, values in named.items()
        for seed, value in zip(results.seeds(size), values, strict=True)
    ]


def divergences(results: Results, match: str) -> str:
    """How far replays of both cases stay from their parents, or at which steps they diverged, as text."""
    words = []
    for case in ("moderate", "strong"):
        steps = diverged(results, case, match, results.main_size)
        bad = sorted(int(step) for step in steps[steps >= 0])
        if bad:
            words.append(f"{case}: {len(bad)} of {len(steps)} seeds diverge, at steps {bad[0]} to {bad[-1]}")
        else:
            apart = distance(results, case, match, results.main_size).mean()
            words.append(f"{case}: within {apart:.4f} nats on average over {len(steps)} seeds")
    return ", ".join(words)
