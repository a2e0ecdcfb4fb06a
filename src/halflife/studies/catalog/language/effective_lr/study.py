"""Replay a run with decay without it: the learning rate alone, matched to lr / ||w||, reproduces what decay does.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3, figure 7; the published repository has no code for it. Matching tensor by tensor is
not in the paper.

The rules were written before any run of the presets' seeds. Learning rates and lams were looked for on seeds 1000 and
1001: matching is a feedback loop whose rate grows as exp(sum of lr * lam), so that sum is 1.4 and 2.4.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

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
from halflife.studies.catalog.language.effective_lr import quantities as rules
from halflife.studies.catalog.language.settings import NIGHT_WIDTHS
from halflife.studies.evidence.claims import Arm, Panel, PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim

__all__ = ["LM_EFFECTIVE_LR"]

CASES = ("moderate", "strong")
MATCHES = ("none", "global", "per-tensor", "global-squared")

# By case: learning rate and lam.
MLP_CASES = {"moderate": (0.048, 0.03), "strong": (0.024, 0.1)}
GPT_CASES = {"moderate": (0.02, 0.075), "strong": (0.01, 0.25)}
PAPER_CASES = {"moderate": (6e-4, 0.1), "strong": (6e-4, 0.3)}


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


def _claims(case: str) -> tuple[WordedClaim, ...]:
    follow = (
        "The distance of two runs is the largest difference between their training losses (means over the steps between two"
        f" readings) after {rules.START:.0%} of the steps. Seed by seed, reproduced if the 95 % interval of (distance of the"
        f" matched replay / distance of the unmatched one) lies below {rules.FOLLOWS:g} and that of (distance of the matched"
        " replay / mean distance between seeds) below 1; not reproduced if one lies wholly above; else inconclusive. A replay"
        " that diverges is as far away as a uniform guess."
    )
    end = (
        f"Reproduced if the 90 % interval of (final validation loss of the replay - of the run with decay) lies within"
        f" {rules.LOSS_MARGIN:g} nats of 0; not reproduced if it lies wholly outside or the replay diverges; inconclusive else,"
        f" and if the 95 % interval of the unmatched replay does not show that decay changes the loss by more than that."
    )
    ways = {"global": "lr / ||w|| of the whole model", "per-tensor": "lr / ||w|| of every decayed tensor by itself"}
    return (
        *(
            WordedClaim(
                key=f"{key}-{case}",
                text=f"A run without decay whose learning rate is rescaled to match {what} follows the whole loss curve of the"
                f" run with {case} decay.",
                rule=follow,
                effect_name=f"distance of the matched ({match}) over that of the unmatched replay, {case} decay",
                unit="x",
                measure=functools.partial(rules.follows, case=case, match=match),
            )
            for key, (match, what) in zip("ab", ways.items(), strict=True)
        ),
        WordedClaim(
            key=f"c-{case}",
            text=f"Matching every tensor by itself follows more closely than one factor for all, {case} decay (our claim).",
            rule="Reproduced if the 95 % interval of (distance per tensor / distance with one factor) lies below 1; not"
            " reproduced if above; else inconclusive.",
            effect_name=f"distance per tensor over distance with one factor, {case} decay",
            unit="x",
            measure=functools.partial(rules.closer_per_tensor, case=case),
        ),
        *(
            WordedClaim(
                key=f"{key}-{case}",
                text=f"A replay that matches {what} ends with the loss of the run with {case} decay.",
                rule=end,
                effect_name=f"final loss of the replay ({match}) minus that of the run, {case} decay",
                unit="nats",
                measure=functools.partial(rules.same_end, case=case, match=match),
            )
            for key, (match, what) in zip("de", ways.items(), strict=True)
        ),
        WordedClaim(
            key=f"f-{case}",
            text=f"Matching lr / ||w||^2 fails, {case} decay.",
            rule="It fails if it ends further away than no matching at all: reproduced if the 95 % interval of (distance of the"
            " replay with lr / ||w||^2 matched / distance of the unmatched one) lies above 1; not reproduced if below; else"
            " inconclusive. A replay that diverges is as far away as a uniform guess.",
            effect_name=f"distance with lr / ||w||^2 matched over that of the unmatched replay, {case} decay",
            unit="x",
            measure=functools.partial(rules.squared_fails, case=case),
        ),
    )


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
            rows=functools.partial(rules.distances, case=case),
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
        ours=functools.partial(rules.divergences, match="global"),
    ),
    Published(
        quantity="replays with lr / ||w||^2 matched, float32",
        published="diverge early",
        where="section 3, figure 7",
        how="text",
        ours=functools.partial(rules.divergences, match="global-squared"),
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
    presets={
        "smoke": Preset(
            description="20 steps of a tiny MLP: shows that everything works, not what is true",
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
            num_seeds=2,
            main_size=16,
            decides=False,
        ),
        "laptop": Preset(
            description="a byte MLP of 13,600 parameters, 2000 steps of 1024 bytes of Python source",
            budget="10 minutes on 2 cores",
            arms=tuple(replay_arms(_small(small_mlp(32), 2000), MLP_CASES)),
            num_seeds=6,
            main_size=32,
        ),
        "night": Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in replay_arms(_small(small_gpt(width), 2000), GPT_CASES)),
            num_seeds=8,
            main_size=32,
            num_ladder_seeds=3,
        ),
        "paper": Preset(
            description="GPT-2 with 124 M parameters on OpenWebText, context 256, 50,000 steps, float32",
            budget="weeks on one GPU",
            arms=tuple(
                replay_arms(
                    {**PAPER, "lr_schedule": cosine_lr(50_000, 0.1, warm=400), "precision": "float32"}, PAPER_CASES
                )
            ),
            num_seeds=2,
            main_size=768,
            needs=PAPER_NEEDS,
        ),
    },
)
