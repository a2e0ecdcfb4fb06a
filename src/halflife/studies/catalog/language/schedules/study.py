"""Weight decay at a constant and at a decayed learning rate: a higher loss during training can be the better point.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3, figures 6, 23, 25 and 26.

The rules were written before any run of the presets' seeds; docs/studies.md lists what was made stricter after the first
laptop runs. `halflife.studies.catalog.language.settings` says how the settings were found.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from halflife.studies.catalog.language import quantities as rules
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.schedules.figures import PANELS, PUBLISHED
from halflife.studies.catalog.language.settings import (
    LAMS,
    LAPTOP,
    LONG,
    NIGHT,
    NIGHT_WIDTHS,
    PAPER_LONG,
    PAPER_SETTING,
    SMOKE,
    Setting,
    prefixed,
)
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import Finding, WordedClaim

__all__ = ["LM_SCHEDULES"]

LOWER = f"Reproduced if the 95 % interval of (loss with decay - loss without) {rules.LOWER}."


def _for_both(
    key: str, text: str, rule: str, effect_name: str, measure: Callable[..., Finding]
) -> tuple[WordedClaim, ...]:
    """One claim for moderate and one for large decay."""
    return tuple(
        WordedClaim(
            key=f"{key}-{lam}",
            text=text.format(lam=lam),
            rule=rule,
            effect_name=f"{effect_name}, {lam} decay",
            unit="nats",
            measure=functools.partial(measure, lam=lam),
        )
        for lam in LAMS[1:]
    )


CLAIMS = (
    WordedClaim(
        key="a",
        text="With a decayed learning rate weight decay lowers the final loss, each side at its best learning rate.",
        rule=f"{LOWER} lam > 0 and the rates of both sides are chosen on the other seeds; of a preset with runs of two"
        f" contexts, among those of the longer one. {rules.NEEDS_GRID}",
        effect_name="final loss, best with decay minus best without",
        unit="nats",
        measure=rules.best_against_best,
    ),
    *_for_both(
        "b",
        "With a decayed learning rate {lam} weight decay lowers the final loss at the same learning rate.",
        LOWER,
        "final loss with decay minus without",
        rules.lower_at_same_lr,
    ),
    *_for_both(
        "c",
        "While the learning rate stays large, the run with {lam} decay has the higher loss.",
        "Reproduced if at the end of the runs at a constant rate the 95 % interval of (loss with decay - loss without) lies"
        " above 0; not reproduced if below; else inconclusive.",
        "last loss at a constant rate with decay minus without",
        rules.higher_at_constant,
    ),
    *_for_both(
        "d",
        "A few steps at a tiny learning rate without decay remove a part of what {lam} decay adds to the loss there.",
        "Before is the difference (with decay - without) at the end of the runs at a constant rate, after the same at the end"
        " of tiny-lr branches from there. Reproduced if the 95 % interval of (before - after) lies above 0; not reproduced if"
        " below; else inconclusive, and if before is not above 0.",
        "difference before minus after the tiny-lr branch",
        rules.gap_shrinks,
    ),
    *_for_both(
        "e",
        "After the tiny-lr branch from the end of the run at a constant rate {lam} decay has the lower loss: its higher loss"
        " was the better point.",
        "Reproduced if the 95 % interval of (loss with decay - loss without) at the end of the branches lies below 0; not"
        " reproduced if above; else inconclusive.",
        "loss after the tiny-lr branch with decay minus without",
        functools.partial(rules.branch_is_lower, branch="tiny-lr"),
    ),
    *_for_both(
        "f",
        "After a cooldown to 0 in a straight line, {lam} decay kept, the run with {lam} decay has the lower loss, too.",
        "As (e), for the cooldown branches.",
        "loss after the cooldown with decay minus without",
        functools.partial(rules.branch_is_lower, branch="cooldown"),
    ),
    *_for_both(
        "g",
        "Within the run with a decayed learning rate the curves cross: with {lam} decay the loss is higher midway and lower at"
        " the end.",
        f"The 95 % intervals of (loss with decay - loss without) at {rules.MIDWAY} % and at 100 % of the steps. Reproduced if"
        " the first lies above 0 and the second below; not reproduced if one lies on the other side; else inconclusive.",
        "final loss with decay minus without",
        rules.crosses,
    ),
    *_for_both(
        "h",
        "Midway in the decayed run, where the loss with {lam} decay is higher, tiny-lr branches with and without decay nearly"
        " coincide.",
        f"Reproduced if at {rules.MIDWAY} % of the steps the 95 % interval of (loss with decay - loss without) lies above"
        f" {rules.EARLY_MARGIN:g} nats, and its 90 % interval at the end of the tiny-lr branches from there within"
        f" {rules.EARLY_MARGIN:g} nats of 0; not reproduced if the first lies below 0 or the second wholly outside; else"
        " inconclusive.",
        "loss after the branch with decay minus without",
        rules.branches_coincide,
    ),
    *_for_both(
        "i",
        "What {lam} decay gains in the decayed run shows late: tiny-lr branches from its last point gain, and more than those"
        " from its first.",
        "Reproduced if the 95 % intervals of (loss with decay - loss without) at the end of the branches from the last point,"
        " and of that minus the same from the first point, lie below 0; not reproduced if one lies above; else inconclusive.",
        "difference after the last branch minus after the first",
        rules.gains_late,
    ),
)


def schedules_arms(setting: Setting) -> tuple[Arm, ...]:
    """All runs of the study in one setting."""
    return (
        *setting.run_arms("decayed"),
        *setting.run_arms("constant"),
        *setting.branch_arms("decayed", "tiny-lr", setting.decayed_shares),
        *setting.branch_arms("constant", "tiny-lr", setting.constant_shares),
        *setting.branch_arms("constant", "cooldown", (100,)),
    )


LM_SCHEDULES = Study(
    name="lm-schedules",
    title="Weight decay in one-pass language models: constant and decayed learning rates",
    source=f"{PAPER_TITLE}, section 3, figures 6, 23, 25 and 26",
    claim="Trained on each token once, weight decay is no regularizer: it raises the effective learning rate. So the loss is"
    " higher while the rate is large, and lower once it is small.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("decayed-gaps", "constant-gaps"),
    presets={
        "smoke": Preset(
            description="20 steps of a tiny MLP: shows that everything works, not what is true",
            budget="40 seconds",
            arms=schedules_arms(SMOKE),
            num_seeds=2,
            main_size=16,
            decides=False,
        ),
        "laptop": Preset(
            description="a byte MLP of 13,600 parameters, 2000 steps of 1024 bytes of Python source",
            budget="10 minutes on 2 cores",
            arms=schedules_arms(LAPTOP),
            num_seeds=5,
            main_size=32,
        ),
        "night": Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in schedules_arms(NIGHT.at_width(width))),
            num_seeds=6,
            main_size=32,
            num_ladder_seeds=3,
        ),
        "paper": Preset(
            description="GPT-2 with 124 M parameters on OpenWebText, 50,000 steps, context 256, and 1024 at three rates",
            budget="weeks on one GPU (a run of 50,000 steps at context 256: 12 hours of an A100)",
            arms=(
                *schedules_arms(PAPER_SETTING),
                *prefixed(LONG, "context 1024", PAPER_LONG.run_arms("decayed")),
            ),
            num_seeds=2,
            main_size=768,
            needs=PAPER_NEEDS,
        ),
    },
)
