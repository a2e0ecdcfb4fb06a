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

from halflife.studies.catalog.curvature.common import positive
from halflife.studies.catalog.curvature.transformer.figures import PANELS
from halflife.studies.catalog.curvature.transformer.quantities import (
    LAMS,
    NAMES,
    RATES,
    WHERE,
    BestStop,
    branch_of,
    change_after,
    end,
    fall_contrast,
    gap_after,
    key_of,
    measured,
    ranks_losses,
)
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
from halflife.studies.catalog.language.quantities import has_best
from halflife.studies.evidence.claims import Arm, Claim, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Measure, Quantity, Reading
from halflife.studies.evidence.rules import Premise
from halflife.studies.evidence.tests import above, below, lowered

__all__ = ["TRANSFORMER_CURVATURE"]

RANKS = 0.8  # rank correlation of six settings, which are the same in all seeds: one by chance repeats itself in each
SMALLEST_EFFECT = 0.01  # nats, as in the dropout study, whose text is read several times too
PLATEAU_LEVEL = 2.0  # times the loss of the same run without decay, as in the stabilization studies


def _nats(name: str, values: Measure) -> Quantity:
    return Quantity(name=name, values=values, unit="nats", examples="blocks")


def _smaller(key: str, text: str, metric: str, where: str, pair: tuple[tuple[str, str], ...], said: str) -> Claim:
    """A probe of one arm over that of another is below 1."""
    over, under = (measured(metric, where, rate, lam) for rate, lam in pair)
    name = f"{NAMES[metric]} {WHERE[where]}"
    given: tuple[Premise, ...] = (positive(name, over, under),) if metric == "hessian_trace" else ()
    ratio = Quantity(name=f"{name}, {said}", values=over / under, unit="x", log=True)
    return Claim(key=key, text=text, rule=Rule(parts=((ratio, below(1)),), given=given))


def _smaller_by(metric: str, where: str) -> tuple[Claim, Claim]:
    """The two claims about one measure and one way of taking the mean."""
    name, key = f"{NAMES[metric]} {WHERE[where]}", f"{metric.partition('_')[0]}-{where}"
    return (
        _smaller(
            f"{key}-decay",
            f"With the large rate decay makes the {name} of a transformer smaller.",
            metric,
            where,
            (("large", "strong"), ("large", "none")),
            "with strong decay over without, large rate",
        ),
        _smaller(
            f"{key}-rate",
            f"With strong decay the large rate makes the {name} of a transformer smaller than the small rate does.",
            metric,
            where,
            (("large", "strong"), ("small", "strong")),
            "at the large over the small rate, strong decay",
        ),
    )


def _ranks(metric: str) -> Claim:
    name = (
        f"rank correlation of {NAMES[metric]} and validation loss after the branch, over six settings of rate and lam"
    )
    correlation = Quantity(name=name, values=functools.partial(ranks_losses, metric=metric))
    return Claim(
        key=f"{metric.partition('_')[0]}-ranks",
        text=f"The {NAMES[metric]} after the branch orders the settings of rate and lam as their validation losses do.",
        rule=Rule(parts=((correlation, above(RANKS)),)),
    )


LARGE = _nats("validation loss after the branch with strong decay - without, large rate", change_after("large"))

GAP = _nats(
    "gap (validation - training loss) after the branch with strong decay - without, large rate",
    gap_after("strong") - gap_after("none"),
)
LAST = {lam: Reading(key_of("large", lam), "train/loss", step=end) for lam in ("none", "strong")}
LEVEL = Quantity(
    name="training loss at the end of the run, with strong decay over without, large rate",
    values=LAST["strong"] / LAST["none"],
    unit="x",
    log=True,
)
FALL = Quantity(
    name="fall of the log training loss over the second half of the run without decay - twice that with strong decay, large"
    " rate",
    values=fall_contrast,
)
STOPPED = _nats(
    "lowest validation loss at any evaluation of a run or after its branch, best rate and lam > 0 - best rate without decay",
    BestStop(LAMS[1:]) - BestStop(LAMS[:1]),
)
CONTRAST = _nats(
    "effect of strong decay on the validation loss after the branch at the small rate - half of that at the large one",
    change_after("small") - 0.5 * change_after("large"),
)

CLAIMS = (
    Claim(
        key="plateau",
        text="With a large rate and decay the training loss of a transformer stays on a plateau; without decay it goes on"
        " falling.",
        rule=Rule(parts=((LEVEL, above(PLATEAU_LEVEL)), (FALL, above(0)))),
    ),
    Claim(
        key="generalizes",
        text="After the branch from the large rate, decay leaves a lower validation loss and a smaller generalization gap.",
        rule=Rule(parts=((LARGE, lowered(SMALLEST_EFFECT)), (GAP, below(0)))),
    ),
    Claim(
        key="early",
        text="Decay gains also against stopping early: best step, rate and lam against best step and rate without decay"
        " (our claim).",
        rule=Rule(
            parts=((STOPPED, lowered(SMALLEST_EFFECT)),),
            given=(has_best(tuple(key_of(rate, LAMS[0]) for rate in RATES), of="learning rate", name="val/loss"),),
        ),
    ),
    Claim(
        key="small-rate",
        text="At the small rate decay does not lower the validation loss of a transformer, or much less than at the large one.",
        rule=Rule(parts=((CONTRAST, above(0)),), given=((LARGE, below(0)),)),
    ),
    *(claim for metric in NAMES for where in WHERE for claim in _smaller_by(metric, where)),
    *map(_ranks, NAMES),
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

PRESETS = presets(
    smoke=Preset(
        description="width 8, 16 steps",
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
    ),
    laptop=Preset(
        description="GPT of width 32 and two layers, 3,072 steps: 96 times over 16,384 bytes, half a byte a parameter",
        budget="10 minutes on 2 cores",
        arms=_small(32, num_steps=3_072).arms(),
    ),
    night=Preset(
        description="as laptop, with twice the steps, more seeds, and a ladder of widths 16, 32, 64",
        budget="90 minutes on 2 cores",
        arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, num_steps=6_144).arms()),
        num_seeds=8,
        main_size=32,
    ),
    paper=Preset(
        description="GPT-2 with 124 M parameters, fifty times over 66 million tokens of OpenWebText; the paper has no such run",
        budget="36 runs of half a day on one GPU",
        arms=_PAPER.arms(),
        num_seeds=3,
        needs=PAPER_NEEDS,
    ),
)

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
