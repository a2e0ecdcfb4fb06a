"""Replay a run with decay without it: the learning rate alone, matched to lr / ||w||, reproduces what decay does.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3, figure 7; the published repository has no code for it. Matching tensor by tensor is
not in the paper.

The rules were written before any run of the presets' seeds. Learning rates and lams were looked for on seeds 1000 and
1001: matching is a feedback loop whose rate grows as exp(sum of lr * lam), so that sum is 1.4 and 2.4.

The distance of two runs is the largest difference in size between their training losses, each the mean over the steps
between two readings, after the first tenth of the steps. A run whose loss is NaN or infinite, or further away than a
uniform guess over the vocabulary, counts as that far, ln(vocabulary) nats. Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.common import (
    PAPER,
    PAPER_NEEDS,
    PAPER_TITLE,
    WARMUP,
    cosine_lr,
    decay,
    linear_lr,
    replay_arm,
    run_arm,
    small_gpt,
    small_mlp,
)
from halflife.studies.catalog.language.quantities import in_nats, loss
from halflife.studies.catalog.language.settings import NIGHT_WIDTHS
from halflife.studies.evidence.claims import (
    Arm,
    Claim,
    Panel,
    PointRow,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.quantities import Measure, NotMeasuredError, Numbers, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import can_be_measured
from halflife.studies.evidence.stats import pair_values
from halflife.studies.evidence.tests import above, below, exceeds, within
from halflife.studies.specs.text import TextRun

__all__ = ["LM_EFFECTIVE_LR"]

METRIC = "train/running_loss"
FOLLOWS = 0.5  # of the distance of the run that is not matched
LOSS_MARGIN = 0.005  # nats: a quarter of what decay changes in the paper
START = 0.1  # of the steps: before, losses fall so fast that seeds are far apart
EQUAL = 1e-7  # nats: what float32 can tell of a loss, for runs that are equal to the last bit

CASES = ("moderate", "strong")
MATCHES = ("none", "global", "per-tensor", "global-squared")

# By case: learning rate and lam.
MLP_CASES = {"moderate": (0.048, 0.03), "strong": (0.024, 0.1)}
GPT_CASES = {"moderate": (0.02, 0.075), "strong": (0.01, 0.25)}
PAPER_CASES = {"moderate": (6e-4, 0.1), "strong": (6e-4, 0.3)}

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


@dataclass(frozen=True)
class Distance(Measure):
    """Of each seed's replay from its parent, in nats."""

    case: str
    match: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        parent = _parent(results, self.case, size)
        farthest, start = math.log(parent.vocab_size), START * parent.num_steps
        parents = results.series_by_step(f"parent-{self.case}", METRIC, size)
        replays = results.series_by_step(f"{self.match}-{self.case}", METRIC, size)
        apart = np.array([_apart(replay, other, start) for replay, other in zip(replays, parents, strict=True)])
        apart[diverged(results, self.case, self.match, size) >= 0] = farthest
        capped_S: Numbers = np.clip(apart, EQUAL, farthest)
        return capped_S


def seeds_apart(results: Results, size: int, *, case: str) -> NDArray[np.float64]:
    """Of each seed's parent from that of every other, in nats, (S, S); the diagonal is 0."""
    start = START * _parent(results, case, size).num_steps
    parents = results.series_by_step(f"parent-{case}", METRIC, size)
    return np.array([[_apart(mine, other, start) for other in parents] for mine in parents])


@dataclass(frozen=True)
class BetweenSeeds(Measure):
    """The distance between the parents of two seeds, in nats, as a value per seed with the right spread.

    The geometric mean over pairs, each seed with its jackknife value (`pair_values`).
    """

    case: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,), S >= 3."""
        num = len(results.seeds(size))
        if num < 3:
            raise NotMeasuredError(f"the distance between seeds was found with {num} seeds, and its spread needs 3")
        apart_SS = np.maximum(seeds_apart(results, size, case=self.case), EQUAL)
        return np.exp(pair_values(np.log(apart_SS)))


@dataclass(frozen=True)
class FinalLoss(Measure):
    """The final validation loss of a replay by block; if any seed diverged, that of a uniform guess in all of them."""

    case: str
    match: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S, N)."""
        bad_S = diverged(results, self.case, self.match, size) >= 0
        if bad_S.any():
            uniform = math.log(_parent(results, self.case, size).vocab_size)
            return np.full_like(loss(f"parent-{self.case}")(results, size), uniform)
        return loss(f"{self.match}-{self.case}")(results, size)


def replay_arms(fields: Mapping[str, Any], cases: Mapping[str, tuple[float, float]]) -> list[Arm]:
    """A run with decay and its replays, for every case.

    Args:
        fields: Of the `TextRun`, without learning rate and decay.
        cases: Learning rate and lam by name.

    Returns:
        The parent's arm of each case, followed by its replays.
    """
    arms = []
    for case, (lr, lam) in cases.items():
        parent = {**fields, "lr": lr, "decay": decay(lam), "trace_norms": True}
        arms.append(run_arm(f"parent-{case}", f"lr {lr:g}, lam {lam:g}", parent))
        arms += [
            replay_arm(f"{match}-{case}", f"replay of lr {lr:g}, lam {lam:g}, matched: {match}", parent, match=match)
            for match in MATCHES
        ]
    return arms


def _small(fields: Mapping[str, Any], num_steps: int, warm: int = WARMUP, **changes: Any) -> dict[str, Any]:
    return {
        **fields,
        "num_steps": num_steps,
        "lr_schedule": linear_lr(num_steps, warm),
        "eval_every": num_steps,
        "log_every": 100,
        **changes,
    }


REPLAYS = {
    "none": "the unmatched replay",
    "global": "the replay with lr / ||w|| matched by one factor",
    "per-tensor": "the replay with lr / ||w|| matched per tensor",
    "global-squared": "the replay with lr / ||w||^2 matched",
}


def _times(case: str, match: str, than: str, other: Measure) -> Quantity:
    """The distance of a replay over another."""
    return Quantity(
        name=f"largest difference of training losses between {REPLAYS[match]} and the run with {case} decay over that {than}"
        f" (means between readings, after {START:.0%} of the steps; ln(vocabulary) for a replay that diverges)",
        values=Distance(case, match) / other,
        unit="x",
        log=True,
    )


def _over(case: str, match: str, than: str) -> Quantity:
    """The distance of one way to match over that of another."""
    return _times(case, match, f"of {REPLAYS[than]}", Distance(case, than))


def _matched_claims(case: str, match: str, what: str) -> tuple[Claim, ...]:
    """A replay follows the run and ends with its loss."""
    parent = loss(f"parent-{case}")
    to_seeds = _times(case, match, "between two seeds of the run", BetweenSeeds(case))
    end = in_nats(
        f"final loss of {REPLAYS[match]} (a uniform guess if any seed diverges) - of the run with {case} decay",
        FinalLoss(case, match) - parent,
    )
    unmatched = in_nats(
        f"final loss of the unmatched replay (a uniform guess if any seed diverges) - of the run with {case} decay",
        FinalLoss(case, "none") - parent,
    )
    return (
        Claim(
            key=f"follows-{match}-{case}",
            text=f"A run without decay whose learning rate is rescaled to match {what} follows the whole loss curve of the run"
            f" with {case} decay.",
            rule=Rule(
                parts=((_over(case, match, "none"), below(FOLLOWS)), (to_seeds, below(1))),
                given=(can_be_measured("there are three seeds or more", BetweenSeeds(case)),),
            ),
        ),
        Claim(
            key=f"end-{match}-{case}",
            text=f"A replay that matches {what} ends with the loss of the run with {case} decay.",
            rule=Rule(parts=((end, within(LOSS_MARGIN)),), stake=((unmatched, exceeds(LOSS_MARGIN)),)),
        ),
    )


def _claims(case: str) -> tuple[Claim, ...]:
    return (
        *_matched_claims(case, "global", "lr / ||w|| of the whole model"),
        *_matched_claims(case, "per-tensor", "lr / ||w|| of every decayed tensor by itself"),
        Claim(
            key=f"closer-per-tensor-{case}",
            text="A replay that matches every tensor by itself follows more closely than one with a factor for all,"
            f" {case} decay (our claim).",
            rule=Rule(parts=((_over(case, "per-tensor", "global"), below(1)),)),
        ),
        Claim(
            key=f"squared-fails-{case}",
            text=f"Matching lr / ||w||^2 fails, {case} decay: the replay strays further from the run's loss than one that is"
            " not matched.",
            rule=Rule(parts=((_over(case, "global-squared", "none"), above(1)),)),
        ),
    )


def distances(results: Results, case: str) -> list[PointRow]:
    """The distances of every way to match and of other seeds, one point a seed."""
    size = results.main_size
    named = {match: Distance(case, match)(results, size) for match in MATCHES}
    apart_SS = seeds_apart(results, size, case=case)
    named["other seeds"] = apart_SS.sum(axis=1) / (len(apart_SS) - 1)
    return [
        PointRow(series=name, x=float(seed), y=float(value))
        for name, values in named.items()
        for seed, value in zip(results.seeds(size), values, strict=True)
    ]


def divergences(results: Results, match: str) -> str:
    """How far replays of both cases stay from their parents, or at which steps they diverged, as text."""
    words = []
    for case in CASES:
        steps = diverged(results, case, match, results.main_size)
        bad = sorted(int(step) for step in steps[steps >= 0])
        if bad:
            words.append(f"{case}: {len(bad)} of {len(steps)} seeds diverge, at steps {bad[0]} to {bad[-1]}")
        else:
            apart = Distance(case, match)(results, results.main_size).mean()
            words.append(f"{case}: within {apart:.4f} nats on average over {len(steps)} seeds")
    return ", ".join(words)


def _panels(case: str) -> tuple[Panel | PointsPanel, ...]:
    # The replay that is said to fail would hide all others on an axis.
    curves = tuple(f"{name}-{case}" for name in ("parent", "none", "global", "per-tensor"))
    return (
        Panel(
            metric="effective_lr",
            title=f"Effective learning rate with {case} decay and without",
            y_label="lr / norm of all weights",
            x="step",
            arms=curves[:2],
            slug=f"effective-lr-{case}",
            source_figure="figure 7",
        ),
        Panel(
            metric="lr_factor",
            title=f"What the replays multiply the learning rate by, {case} decay",
            y_label="factor (per tensor: the largest)",
            log=True,
            x="step",
            arms=curves[2:],
            slug=f"factor-{case}",
            source_figure="figure 7",
        ),
        Panel(
            metric="train/running_loss",
            start=0.1,
            title=f"Training loss, {case} decay and its replays",
            y_label="training loss (nats per token)",
            x="step",
            arms=curves,
            slug=f"loss-{case}",
            source_figure="figure 7",
        ),
        PointsPanel(
            slug=f"distance-{case}",
            title=f"Distance from the run with {case} decay",
            x_label="seed",
            y_label="largest difference of training losses (nats per token)",
            rows=functools.partial(distances, case=case),
            log_y=True,
            note="One point a seed. A diverged replay is as far away as a uniform guess.",
        ),
    )


PUBLISHED = (
    Published(
        quantity="replays with lr / ||w|| matched, float32",
        published="match the whole loss curve",
        where="section 3, figure 7",
        how="text",
        ours=functools.partial(divergences, match="global"),
    ),
    Published(
        quantity="replays with lr / ||w||^2 matched, float32",
        published="diverge early",
        where="section 3, figure 7",
        how="text",
        ours=functools.partial(divergences, match="global-squared"),
    ),
)


LM_EFFECTIVE_LR = Study(
    name="lm-effective-lr",
    title="Weight decay in one-pass language models: an effective learning rate",
    source=f"{PAPER_TITLE}, section 3, figure 7",
    claim="What decay does to a language model's loss, a learning rate without decay does as well, if it is rescaled so that"
    " lr / ||w|| is the same at every step.",
    claims=tuple(claim for case in CASES for claim in _claims(case)),
    panels=tuple(panel for case in CASES for panel in _panels(case)),
    published=PUBLISHED,
    size_name="width",
    doc_panels=("loss-strong", "distance-strong"),
    presets=presets(
        smoke=Preset(
            description="20 steps of a tiny MLP",
            budget="20 seconds",
            arms=tuple(
                replay_arms(
                    _small(
                        small_mlp(16),
                        20,
                        warm=4,
                        batch_size=64,
                        num_train_tokens=200_000,
                        num_eval_tokens=2_048,
                        log_every=5,
                    ),
                    MLP_CASES,
                )
            ),
        ),
        laptop=Preset(
            description="a byte MLP of 13,600 parameters, 2000 steps of 1024 bytes of Python source",
            budget="10 minutes on 2 cores",
            arms=tuple(replay_arms(_small(small_mlp(32), 2000), MLP_CASES)),
            num_seeds=6,
        ),
        night=Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in replay_arms(_small(small_gpt(width), 2000), GPT_CASES)),
            num_seeds=8,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters on OpenWebText, context 256, 50,000 steps, float32",
            budget="weeks on one GPU",
            arms=tuple(
                replay_arms(
                    {**PAPER, "lr_schedule": cosine_lr(50_000, 0.1, warm=400), "precision": "float32"}, PAPER_CASES
                )
            ),
            num_seeds=3,
            needs=PAPER_NEEDS,
        ),
    ),
)
