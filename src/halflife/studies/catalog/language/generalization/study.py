"""Validation loss as a function of training loss, whatever lam: in one pass over the data decay is no regularizer.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3 and appendix D, figure 19.

The runs are those of `lm-schedules`, with a second model. The rules were written before any run of the presets' seeds;
docs/studies.md lists what was made stricter after the first laptop runs.
"""

from __future__ import annotations

import functools

from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.generalization import quantities as rules
from halflife.studies.catalog.language.quantities import LOWER, NEEDS_GRID
from halflife.studies.catalog.language.settings import (
    LAMS,
    LAPTOP,
    LAPTOP_GPT,
    NIGHT,
    NIGHT_WIDTHS,
    PAPER_SETTING,
    SMOKE,
    Setting,
    key_of,
    prefixed,
)
from halflife.studies.evidence.claims import Arm, Panel, PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim

__all__ = ["LM_GENERALIZATION"]

CLAIMS = (
    *(
        WordedClaim(
            key=f"a-{lam}",
            text=f"At the same training loss, runs with {lam} decay have the same validation loss as runs without.",
            rule="Over all runs of a model, validation loss is regressed on training loss in each seed, with an offset per lam"
            " and one slope; the effect is the offset of this lam minus that of no decay. Reproduced"
            f" if its 90 % interval lies within {rules.GAP_MARGIN:g} nats of 0 in every model of the preset; not reproduced if"
            " it lies wholly outside in one; else inconclusive.",
            effect_name=f"offset of {lam} decay minus that of no decay, largest over models",
            unit="nats",
            measure=functools.partial(rules.same_at_equal_loss, lam=lam),
        )
        for lam in LAMS[1:]
    ),
    WordedClaim(
        key="b",
        text="What a run gains in training loss it gains in validation loss.",
        rule=f"Reproduced if the 90 % interval of the slope of that regression lies within {rules.SLOPE_MARGIN:g} of 1 in every"
        " model of the preset; not reproduced if it lies wholly outside in one; else inconclusive.",
        effect_name="slope of validation on training loss, furthest from 1 over models",
        unit="",
        measure=rules.slope_is_one,
    ),
    WordedClaim(
        key="c",
        text="Decay lowers the final training loss itself, each side at its best learning rate.",
        rule="Reproduced if the 95 % interval of (training loss of the best decayed run with decay - of the best without, lam"
        f" and rates chosen on the other seeds) {LOWER}. {NEEDS_GRID}",
        effect_name="final training loss, best with decay minus best without",
        unit="nats",
        measure=rules.training_loss_falls,
    ),
)

PANELS = (
    PointsPanel(
        slug="one-curve",
        title="Validation against training loss, all lams and learning rates",
        x_label="training loss (nats per token)",
        y_label="validation loss (nats per token)",
        rows=rules.one_curve,
        source_figure="figure 19",
        note="One point a run. Every seed evaluates other windows of the training split; the means over a seed's runs are"
        " replaced by the means over all seeds, for either loss.",
    ),
    Panel(
        metric="val/loss",
        start=0.1,
        title="Validation loss, decayed learning rate",
        y_label="validation loss (nats per token)",
        x="step",
        arms=tuple(key_of("decayed", lam) for lam in LAMS),
    ),
)

PUBLISHED = (
    Published(
        quantity="largest departure of a lam from the common curve",
        published="within ±0.02 nats (124 M and 774 M parameters)",
        where="figure 19",
        how="fig-read",
        ours=rules.largest_gap,
    ),
)


def generalization_arms(setting: Setting, second: Setting | None = None) -> tuple[Arm, ...]:
    """The plain runs of `lm-schedules`, and those of a second model."""
    arms = [*setting.run_arms("decayed"), *setting.run_arms("constant")]
    if second is not None:
        more = [*second.run_arms("decayed"), *second.run_arms("constant")]
        arms += prefixed("gpt-", "GPT", more)
    return tuple(arms)


LARGE = {"width": 1280, "depth": 36, "heads": 20, "accumulate": 16}
"""GPT-2 large, 774 M parameters."""

LM_GENERALIZATION = Study(
    name="lm-generalization",
    title="Weight decay in one-pass language models: no generalization gap",
    source=f"{PAPER_TITLE}, section 3 and appendix D, figure 19",
    claim="When every token is seen about once, validation loss is a function of training loss, whatever lam: decay changes how"
    " well the training loss is optimized and nothing else.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("one-curve",),
    presets={
        "smoke": Preset(
            description="20 steps of a tiny MLP: shows that everything works, not what is true",
            budget="20 seconds",
            arms=generalization_arms(SMOKE),
            num_seeds=2,
            main_size=16,
            decides=False,
        ),
        "laptop": Preset(
            description="the runs of lm-schedules, and a GPT of two layers for 1500 steps",
            budget="10 minutes on 2 cores, less after lm-schedules",
            arms=generalization_arms(LAPTOP, LAPTOP_GPT),
            num_seeds=5,
            main_size=32,
        ),
        "night": Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores, nothing after lm-schedules",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in generalization_arms(NIGHT.at_width(width))),
            num_seeds=6,
            main_size=32,
            num_ladder_seeds=3,
        ),
        "paper": Preset(
            description="GPT-2 with 124 M and 774 M parameters on OpenWebText, context 256, 50,000 steps",
            budget="weeks on one GPU",
            arms=(
                *generalization_arms(PAPER_SETTING),
                *generalization_arms(PAPER_SETTING.at_width(**LARGE)),
            ),
            num_seeds=2,
            main_size=768,
            num_ladder_seeds=2,
            needs=PAPER_NEEDS,
        ),
    },
)
