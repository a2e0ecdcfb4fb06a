"""Decay beside dropout and label smoothing: does one regularizer replace the other, on repeated text and on fresh text?

Source: the open question of D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), which trains without dropout. It holds that decay does not regularize a one-pass run. Where the literature
has no answer the claim is ours, says so, and its rule is two-sided.

Repeated: a short text is read several times, so that the validation loss ends far above the training loss. One-pass: each
token is predicted at most once. Settings were found on seeds 1000 and above, before any run of the presets' seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from halflife.studies.catalog.language.common import (
    PAPER,
    PAPER_NEEDS,
    PAPER_TITLE,
    decay,
    linear_lr,
    run_arm,
    small_mlp,
)
from halflife.studies.catalog.language.dropout import quantities as rules
from halflife.studies.catalog.language.dropout.quantities import DROPOUTS, FRESH, REPEATED, key_of
from halflife.studies.evidence.claims import Arm, Panel, PointRow, PointsPanel, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.evidence.optimum import PAIRED_NOTE, ZERO_NOTE, lam_of, lam_places, paired_rows, text_spec
from halflife.studies.evidence.results import Results

__all__ = ["LM_DROPOUT"]

SMOOTHING = 0.1

_LOWERS = (
    "Best against best, chosen on the other seeds: reproduced if the 95 % interval of the difference lies below 0, else not"
    f" reproduced if it excludes an improvement of {rules.SMALLEST_EFFECT} nats, else inconclusive."
)

CLAIMS = (
    WordedClaim(
        key="decay",
        text="On repeated text decay lowers the validation loss even when dropout is tuned (our claim).",
        rule=_LOWERS,
        effect_name="best with decay minus best without, dropout tuned",
        unit="nats",
        measure=rules.decay_helps_beside_dropout,
    ),
    WordedClaim(
        key="dropout",
        text="On repeated text dropout lowers the validation loss even when lam is tuned (our claim).",
        rule=_LOWERS,
        effect_name="best with dropout minus best without, lam tuned",
        unit="nats",
        measure=rules.dropout_helps_beside_decay,
    ),
    WordedClaim(
        key="overlap",
        text="On repeated text the two overlap: decay gains less beside dropout than alone (our claim).",
        rule="Reproduced if the 95 % interval of (gain of decay without dropout - gain of decay with the best dropout) lies"
        " above 0; not reproduced if it lies below 0; else inconclusive. Dropout and lam are chosen on the other seeds, on both"
        " sides of a gain.",
        effect_name="gain of decay without dropout minus with",
        unit="nats",
        measure=rules.gains_overlap,
    ),
    WordedClaim(
        key="smaller-lam",
        text="On repeated text the best lam is smaller beside dropout (our claim).",
        rule="Reproduced if the 95 % interval of (best lam without dropout / best lam with the high dropout) lies above 1; not"
        " reproduced if it lies below 1; else inconclusive, and if the lowest loss is at an edge of the grid, or a seed has no"
        " minimum inside.",
        effect_name="best lam without dropout over that with the high one",
        unit="x",
        measure=rules.smaller_lam_beside_dropout,
    ),
    WordedClaim(
        key="smoothing",
        text="On repeated text label smoothing does not replace decay (our claim).",
        rule="Without dropout: reproduced if the 95 % interval of (gain of decay with label smoothing - half of the gain"
        " without) lies above 0; not reproduced if it lies below 0; inconclusive else, and if decay gains nothing without"
        " smoothing.",
        effect_name="gain of decay with label smoothing minus half of that without",
        unit="nats",
        measure=rules.decay_helps_beside_smoothing,
    ),
    WordedClaim(
        key="one-pass-dropout",
        text="On a one-pass run dropout only raises the loss, whatever lam.",
        rule="Reproduced if at every lam the 95 % interval of (loss with the low dropout - loss without) lies above 0; not"
        " reproduced if at one it lies below 0; else inconclusive.",
        effect_name="loss with the low dropout minus without, at the lam where it is least",
        unit="nats",
        measure=rules.dropout_hurts_fresh,
    ),
    WordedClaim(
        key="one-pass-gain",
        text="On a one-pass run decay does not regularize: with dropout it gains as much as without (our test of theirs).",
        rule="Reproduced if the 90 % interval of (gain of decay without dropout - gain with the high dropout) lies within"
        f" {rules.SMALLEST_EFFECT} nats of 0, and that of 95 % of the gain without dropout wholly above"
        f" {rules.SMALLEST_EFFECT} nats; not reproduced if the first lies wholly outside; else inconclusive.",
        effect_name="gain of decay without dropout minus with the high one",
        unit="nats",
        measure=rules.fresh_gain_stays,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model, with the two kinds of run.

    Args:
        fields: Of the `TextRun`, without lr, schedule, decay and what differs below.
        lr: The learning rate.
        num_steps: Of every run.
        text_tokens: Of the repeated text.
        lams: Of the repeated and of the one-pass runs; the first is 0.
        dropouts: By name.
    """

    fields: Mapping[str, Any]
    lr: float
    num_steps: int
    text_tokens: int
    lams: Mapping[str, tuple[float, ...]]
    dropouts: tuple[float, ...] = (0.0, 0.1, 0.2)

    def arms(self) -> tuple[Arm, ...]:
        """All arms."""
        return tuple(
            self._arm(run, index, dropout, smoothed=smoothed)
            for run in (REPEATED, FRESH)
            for smoothed in (False, True)
            for dropout in (range(len(DROPOUTS)) if not smoothed else range(1))
            for index in range(rules.NUM_LAMS[run])
            if run == REPEATED or not smoothed
        )

    def _arm(self, run: str, index: int, dropout: int, *, smoothed: bool) -> Arm:
        lam, steps = self.lams[run][index], self.num_steps
        fields = {
            **self.fields,
            "num_steps": steps,
            "lr": self.lr,
            "lr_schedule": linear_lr(steps, max(steps // 20, 1)),
            "decay": decay(lam),
            "dropout": self.dropouts[dropout],
            "label_smoothing": SMOOTHING if smoothed else 0.0,
            "eval_every": max(steps // 4, 1),
            "log_every": max(steps // 50, 1),
        }
        if run == REPEATED:
            fields |= {"order": "epochs", "num_train_tokens": self.text_tokens}
        label = f"{run}, dropout {self.dropouts[dropout]:g}{', smoothed' if smoothed else ''}, lam {lam:g}"
        return run_arm(key_of(run, DROPOUTS[dropout], index, smoothed=smoothed), label, fields)


def sweep_rows(results: Results, *, run: str) -> list[PointRow]:
    """The final loss against lam, one line a dropout, with a point without decay for each."""
    size, rows = results.main_size, []
    for dropout, smoothed in ((0, False), (1, False), (2, False), (0, True)):
        if smoothed and run != REPEATED:
            continue
        keys = [key_of(run, DROPOUTS[dropout], index, smoothed=smoothed) for index in range(rules.NUM_LAMS[run])]
        lams = [lam_of(text_spec(results, key, size)) for key in keys]
        losses_LS = np.array([results.last(key, rules.LOSS, size) for key in keys])
        name = f"dropout {text_spec(results, keys[0], size).dropout:g}{', smoothed' if smoothed else ''}"
        rows += paired_rows(name, lam_places(lams), losses_LS, apart=1)
    return rows


def _sweep_panel(run: str, title: str) -> PointsPanel:
    return PointsPanel(
        slug=f"sweep-{run}",
        title=title,
        x_label="lam",
        y_label="validation loss (nats)",
        rows=partial(sweep_rows, run=run),
        log_x=True,
        note=f"{PAIRED_NOTE} {ZERO_NOTE}",
    )


_CURVES = tuple(key_of(REPEATED, dropout, lam) for dropout in (DROPOUTS[0], DROPOUTS[-1]) for lam in (0, 3))

PANELS = (
    _sweep_panel(REPEATED, "Final loss against lam, repeated text"),
    _sweep_panel(FRESH, "Final loss against lam, one pass"),
    Panel(
        metric="val/loss",
        title="Validation loss on repeated text",
        y_label="validation loss (nats)",
        x="step",
        arms=_CURVES,
        start=0.1,
        slug="curve-val",
    ),
    Panel(
        metric="train/loss",
        title="Training loss on repeated text",
        y_label="training loss (nats)",
        x="step",
        arms=_CURVES,
        start=0.1,
        slug="curve-train",
        note="Without dropout and smoothing, on windows already trained on.",
    ),
)

# Found on seeds 1000 and 1001, width 32, batch 256, lr 1e-2, linear to 0. Validation (and training) loss after 3,072 steps on
# 131,072 bytes: lam 0, 0.1, 0.3, 1, 3 give 2.42 (1.53), 2.36, 2.31, 2.28 (1.60), 2.31 without dropout and 2.35, 2.33, 2.28,
# 2.31, 2.34 with 0.2; on 32,768 bytes 3.24 (1.05), 3.09, 2.89, 2.67, 2.55 and 2.85, 2.79, 2.71, 2.59, 2.51. In one pass of
# 2,048 steps the best lam is 0.24.
LR = 1e-2
LAMS = {REPEATED: (0.0, 0.15, 0.5, 1.5, 5.0), FRESH: (0.0, 0.08, 0.25, 0.8)}


def _small(width: int, *, num_steps: int, factor: float = 1.0, **changes: Any) -> Setting:
    """The byte MLP, which reads the repeated text eight times; all lams times a factor."""
    return Setting(
        fields=small_mlp(width, batch_size=256, **changes),
        lr=LR,
        num_steps=num_steps,
        text_tokens=num_steps * 256 // 8,
        lams={run: tuple(float(f"{lam * factor:.3g}") for lam in lams) for run, lams in LAMS.items()},
    )


PAPER_SETTING = Setting(
    fields={name: value for name, value in PAPER.items() if name not in {"lr", "num_steps", "eval_every", "log_every"}}
    | {"order": "one-pass"},
    lr=6e-4,
    num_steps=50_000,
    text_tokens=409_600_000,
    lams={REPEATED: (0.0, 0.1, 0.3, 1.0, 3.0), FRESH: (0.0, 0.1, 0.3, 1.0)},
)

PRESETS = {
    "smoke": Preset(
        description="width 8, 16 steps: shows that everything works, not what is true",
        budget="20 seconds",
        arms=_small(8, num_steps=16, num_eval_tokens=2_048).arms(),
        num_seeds=2,
        main_size=8,
        decides=False,
    ),
    "laptop": Preset(
        description="byte MLP of width 32, 2,048 steps of 256 targets: eight times over 65,536 bytes, or once over 524,288",
        budget="10 minutes on 2 cores",
        arms=_small(32, num_steps=2_048).arms(),
        num_seeds=5,
        main_size=32,
    ),
    "night": Preset(
        description="as laptop, with twice the steps and text, more seeds, and a ladder of widths 16, 32, 64",
        budget="90 minutes on 2 cores",
        arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, num_steps=4_096, factor=0.6).arms()),
        num_seeds=8,
        main_size=32,
        num_ladder_seeds=3,
    ),
    "paper": Preset(
        description="GPT-2 with 124 M parameters: 3.3 billion tokens of OpenWebText once, or 0.4 billion eight times",
        budget="64 runs of half a day on one GPU",
        arms=PAPER_SETTING.arms(),
        num_seeds=2,
        main_size=768,
        needs=PAPER_NEEDS,
    ),
}

LM_DROPOUT = Study(
    name="lm-dropout",
    title="Decay, dropout and label smoothing in language models",
    source=f"an open question of {PAPER_TITLE}, section 3; the claims are ours unless they say so",
    claim="Where a text is read several times, decay is a regularizer that dropout replaces in part; where each token is read"
    " once it is none, and dropout only raises the loss.",
    claims=CLAIMS,
    panels=PANELS,
    presets=PRESETS,
)
