"""Curvature of a transformer that reads a short text many times, with and without decay, at a large and a small rate.

Source: the open question of D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415): its over-training regime is one of image classifiers, its transformers read each token about once. The
claims carry over what the paper says of image classifiers (loss stabilization, a smaller Jacobian norm, and in its first
version a smaller Hessian trace), so that each rule is two-sided and no answer is known.

A run holds its rate: AdamW, {large, small} rate x {no, middle, strong} decay. "The mean of the process" is taken in the
paper's two ways: by a branch at a tiny rate without decay (the same rate after all runs), and by a moving average.

What was explored, on seed 1000 alone and before the rules: a GPT of width 32, 2,000 steps, lam 0, 0.3, 1 (training loss at the
end 0.90, 1.52, 1.98 nats at lr 1e-2 and 1.30, 1.34, 1.57 at 2e-3), and of width 64, which without decay comes within 1,000
steps near the least loss that windows without their past allow, so that nothing can go on falling. Curvature
was not looked at before the rules were written; after that, two runs at lr 1e-2, for the time that probes take.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.curvature.transformer import quantities as rules
from halflife.studies.catalog.curvature.transformer.figures import PANELS
from halflife.studies.catalog.curvature.transformer.quantities import LAMS, NAMES, RATES, branch_of, key_of
from halflife.studies.catalog.language.common import (
    PAPER,
    PAPER_NEEDS,
    PAPER_TITLE,
    branch_arm,
    constant_lr,
    decay,
    percent,
    run_arm,
    small_gpt,
)
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim

__all__ = ["TRANSFORMER_CURVATURE"]

_RATIO = (
    "Reproduced if the 95 % interval of the ratio, over seeds, lies below 1; not reproduced if it lies above 1; else"
    " inconclusive."
)
_RANK = (
    "Spearman's correlation over the six settings, for each seed: reproduced if its 95 % interval lies above"
    f" {rules.RANKS}; not reproduced if it lies below; else inconclusive."
)


def _smaller(metric: str, where: str) -> tuple[WordedClaim, WordedClaim]:
    """The two claims about one measure and one way of taking the mean."""
    name, words = NAMES[metric], {"branch": "after the branch", "average": "of the average"}[where]
    key = f"{metric.partition('_')[0]}-{where}"
    return (
        WordedClaim(
            key=f"{key}-decay",
            text=f"With the large rate decay makes the {name} {words} smaller.",
            rule=_RATIO,
            effect_name=f"{name} {words}, with strong decay over without, large rate",
            unit="x",
            measure=functools.partial(rules.lowered_by_decay, metric=metric, where=where),
        ),
        WordedClaim(
            key=f"{key}-rate",
            text=f"With strong decay the large rate makes the {name} {words} smaller than the small rate does.",
            rule=_RATIO,
            effect_name=f"{name} {words}, large over small rate, strong decay",
            unit="x",
            measure=functools.partial(rules.lowered_by_rate, metric=metric, where=where),
        ),
    )


CLAIMS = (
    WordedClaim(
        key="plateau",
        text="With a large rate and decay the training loss of a transformer stays on a plateau; without decay it goes on"
        " falling.",
        rule="With f the fall of the logarithm of the training loss over the second half of the runs: reproduced if the 95 %"
        " interval of (f without decay - twice f with) lies above 0 and that of the ratio of the last losses, with over"
        f" without, above {rules.PLATEAU_LEVEL:g}; not reproduced if one of them lies below; else inconclusive.",
        effect_name="training loss at the end of the runs, with strong decay over without",
        unit="x",
        measure=rules.loss_plateaus,
    ),
    WordedClaim(
        key="generalizes",
        text="After the branch from the large rate, decay leaves a lower validation loss and a smaller generalization gap.",
        rule="Reproduced if the 95 % intervals of both differences (strong decay minus none) lie below 0; not reproduced if"
        f" that of the validation loss excludes an improvement of {rules.SMALLEST_EFFECT} nats, or that of the gap (validation"
        " minus training loss) lies above 0; else inconclusive.",
        effect_name="validation loss after the branch, strong decay minus none",
        unit="nats",
        measure=rules.generalizes_better,
    ),
    WordedClaim(
        key="early",
        text="Decay gains also against stopping early: best step, rate and lam against best step and rate without decay"
        " (our claim).",
        rule="The lowest validation loss at any evaluation of a run or after its branch, rate, lam and step chosen on the other"
        " seeds: reproduced if the 95 % interval of the difference lies below 0, else not reproduced if it excludes an"
        f" improvement of {rules.SMALLEST_EFFECT} nats, else inconclusive. The interval is over seeds, on one validation text.",
        effect_name="best validation loss with decay minus best without",
        unit="nats",
        measure=rules.beats_early_stopping,
    ),
    WordedClaim(
        key="small-rate",
        text="At the small rate decay does not lower the validation loss, or much less.",
        rule="After the branches: reproduced if the 95 % interval of (effect at the small rate - half of the effect at the"
        " large rate) lies above 0; not reproduced if it lies below 0; inconclusive else, and if strong decay does not lower"
        " the loss at the large rate.",
        effect_name="effect of strong decay at the small rate minus half of that at the large one",
        unit="nats",
        measure=rules.less_at_small_rate,
    ),
    *(claim for metric in NAMES for where in rules.WHERE for claim in _smaller(metric, where)),
    WordedClaim(
        key="hessian-ranks",
        text="The Hessian trace after the branch orders the settings as their validation losses do.",
        rule=_RANK,
        effect_name="rank correlation of Hessian trace and validation loss",
        unit="",
        measure=functools.partial(rules.ranks_losses, metric="hessian_trace"),
    ),
    WordedClaim(
        key="jacobian-ranks",
        text="The Jacobian norm after the branch orders the settings as their validation losses do.",
        rule=_RANK,
        effect_name="rank correlation of Jacobian norm and validation loss",
        unit="",
        measure=functools.partial(rules.ranks_losses, metric="jacobian_norm"),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with its rates and values of lam.

    Args:
        fields: Of the `TextRun`, without lr, schedule, decay and what follows below.
        rates: Large and small.
        lams: In the order of `LAMS`, the first 0.
        branch_lr: The rate of all branches.
        branch_steps: Their length.
        shares: Per cents of the runs at which they are probed, the last one 100.
    """

    fields: Mapping[str, Any]
    rates: tuple[float, float]
    lams: tuple[float, float, float]
    branch_lr: float
    branch_steps: int
    shares: tuple[int, ...] = (33, 67, 100)

    def arms(self) -> tuple[Arm, ...]:
        """The runs, then their branches."""
        steps = self.fields["num_steps"]
        arms, branches = [], []
        for rate, lr in zip(RATES, self.rates, strict=True):
            for name, lam in zip(LAMS, self.lams, strict=True):
                fields = {
                    **self.fields,
                    "order": "epochs",
                    "lr": lr,
                    "decay": decay(lam),
                    "ema": (0.99,),
                    "keep_at": percent(steps, self.shares),
                    "probes": ("hessian-trace", "jacobian-norm", "gradient-norm"),
                }
                label = f"lr {lr:g}, lam {lam:g}"
                arms.append(run_arm(key_of(rate, name), label, fields))
                branches.append(
                    branch_arm(
                        branch_of(rate, name),
                        f"{label}, branch",
                        fields,
                        at=steps,
                        branch="tiny-lr",
                        num_steps=self.branch_steps,
                        lr_factor=self.branch_lr / lr,
                    )
                )
        return (*arms, *branches)


def _small(
    width: int,
    *,
    num_steps: int,
    text_tokens: int = 16_384,
    shares: tuple[int, ...] = (33, 67, 100),
    **changes: Any,
) -> Setting:
    """The small GPT with windows of 32 bytes, 32 steps a pass over 16,384 bytes."""
    return Setting(
        fields=small_gpt(
            width,
            **{
                "context": 32,
                "batch_size": 16,
                "num_steps": num_steps,
                "lr_schedule": constant_lr(min(100, num_steps // 4)),
                "num_train_tokens": text_tokens,
                "num_eval_tokens": 16_384,
                "eval_every": max(num_steps // 12, 1),
                "probe_windows": 32,
                "probe_vectors": 16,
                **changes,
            },
        ),
        rates=(1e-2, 2e-3),
        lams=(0.0, 0.3, 1.0),
        branch_lr=2e-4,
        branch_steps=max(num_steps // 8, 1),
        shares=shares,
    )


_PAPER = Setting(
    fields={name: value for name, value in PAPER.items() if name not in {"lr", "order"}}
    | {
        "num_train_tokens": 65_536_000,  # fifty times in 50,000 steps
        "lr_schedule": constant_lr(400),
        "probe_windows": 64,
    },
    rates=(6e-4, 1e-4),
    lams=(0.0, 0.1, 0.5),
    branch_lr=1e-5,
    branch_steps=10_000,
)

PRESETS = {
    "smoke": Preset(
        description="width 8, 16 steps: shows that everything works, not what is true",
        budget="20 seconds",
        arms=_small(
            8,
            num_steps=16,
            text_tokens=2_048,
            shares=(100,),
            num_eval_tokens=1_024,
            eval_every=8,
            log_every=8,
            probe_windows=4,
            probe_vectors=6,
        ).arms(),
        num_seeds=2,
        main_size=8,
        decides=False,
    ),
    "laptop": Preset(
        description="GPT of width 32 and two layers, 3,072 steps: 96 times over 16,384 bytes, half a byte a parameter",
        budget="10 minutes on 2 cores",
        arms=_small(32, num_steps=3_072).arms(),
        num_seeds=5,
        main_size=32,
    ),
    "night": Preset(
        description="as laptop, with twice the steps, more seeds, and a ladder of widths 16, 32, 64",
        budget="90 minutes on 2 cores",
        arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, num_steps=6_144).arms()),
        num_seeds=8,
        main_size=32,
        num_ladder_seeds=3,
    ),
    "paper": Preset(
        description="GPT-2 with 124 M parameters, fifty times over 66 million tokens of OpenWebText; the paper has no such run",
        budget="36 runs of half a day on one GPU",
        arms=_PAPER.arms(),
        num_seeds=3,
        main_size=768,
        needs=PAPER_NEEDS,
    ),
}

TRANSFORMER_CURVATURE = Study(
    name="transformer-curvature",
    title="Curvature of a transformer that reads a short text many times",
    source=f"an open question of {PAPER_TITLE}, whose section 2 has image classifiers alone",
    claim="In the over-training regime a transformer is like an image classifier: decay with a large rate holds the training"
    " loss up, and the mean of that noisy process has a smaller Jacobian norm and Hessian trace and generalizes better.",
    claims=CLAIMS,
    panels=PANELS,
    presets=PRESETS,
    doc_panels=("curve-train", "scatter-jacobian"),
)
