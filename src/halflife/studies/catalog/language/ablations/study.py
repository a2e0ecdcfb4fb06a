"""What weight decay in language models does not depend on: which parameters decay, decoupling, Adam; and averaging.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), appendix D, figures 20 to 23.

The rules were written before any run of the presets' seeds; docs/studies.md lists what was made stricter after the first
laptop runs. Coefficients and SGD's learning rates were looked for on seed 1000: with SGD 6 diverges and 1 to 3 are best
without decay; L2 from 1e-5 to 1e-4 shrinks the norm as much as lam 0.02 to 0.07 does.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.language import quantities
from halflife.studies.catalog.language.ablations import quantities as rules
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE, run_arm
from halflife.studies.catalog.language.figures import three
from halflife.studies.catalog.language.settings import (
    LAMS,
    LAPTOP,
    LAPTOP_GPT,
    NIGHT,
    NIGHT_WIDTHS,
    PAPER_SETTING,
    SMOKE,
    Setting,
)
from halflife.studies.evidence.claims import Arm, PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim

__all__ = ["FULL", "LADDER", "LM_ABLATIONS", "SMALL", "TINY", "Ablations", "ablation_arms"]


@dataclass(frozen=True, kw_only=True)
class Ablations:
    """The numbers of one preset beyond those of its setting.

    Args:
        setting: The model and its runs with AdamW.
        gains: The setting of the runs whose gains decay: a model that has some.
        penalties: Coefficients of L2: lam of (lam / 2) ||w||^2.
        sgd_rates: Learning rates of SGD.
        sgd_lams: Coefficients of its L2, as torch's SGD has it: r = lr * lam / (1 - momentum).
    """

    setting: Setting
    gains: Setting
    penalties: tuple[float, ...]
    sgd_rates: tuple[float, ...]
    sgd_lams: Mapping[str, float]


PENALTIES = (3e-5, 1e-4)
SGD_RATES = (1.0, 2.0, 3.0)
SGD_LAMS = {"none": 0.0, "moderate": 5e-5, "large": 2e-4}


def _ablations(setting: Setting, gains: Setting) -> Ablations:
    return Ablations(setting=setting, gains=gains, penalties=PENALTIES, sgd_rates=SGD_RATES, sgd_lams=SGD_LAMS)


SMALL = _ablations(LAPTOP, LAPTOP_GPT)
TINY = _ablations(SMOKE, SMOKE.at_width(16, norm_gain=True))
LADDER = tuple(_ablations(setting, setting) for setting in (NIGHT.at_width(width) for width in NIGHT_WIDTHS))
FULL = Ablations(
    setting=PAPER_SETTING,
    gains=PAPER_SETTING,
    # The published code adds 1e-6 ||w||^2 and 3e-6 ||w||^2, without the half.
    penalties=(2e-6, 6e-6),
    sgd_rates=(0.3,),
    sgd_lams={"none": 0.0, "moderate": 1e-5, "large": 3e-5},
)


def _l2(lam: float) -> str:
    return f"L2(lam={lam:g})" if lam else ""


def gains_arms(numbers: Ablations) -> list[Arm]:
    """Decay of everything against decay of all but the gains of norms."""
    setting = numbers.gains
    kept = [
        run_arm(f"gains-kept-{lam}", f"gains kept, lam {setting.lams[lam]:g}", setting.decayed(lam)) for lam in LAMS
    ]
    return kept + [
        run_arm(
            f"gains-decayed-{lam}",
            f"gains decayed, lam {setting.lams[lam]:g}",
            {**setting.decayed(lam), "decay_on": "everything"},
        )
        for lam in LAMS[1:]
    ]


def l2_arms(numbers: Ablations) -> list[Arm]:
    """Adam without decay, with decoupled decay, and with L2 inside and outside the clip."""
    setting = numbers.setting
    arms = [run_arm("adam-none", "Adam", setting.decayed("none"))]
    arms += [
        run_arm(f"adam-decoupled-{lam}", f"decoupled, lam {setting.lams[lam]:g}", setting.decayed(lam))
        for lam in LAMS[1:]
    ]
    for name, lam in zip(("small", "large"), numbers.penalties, strict=True):
        base = {**setting.decayed("none"), "optimizer": "adam", "keep_at": ()}
        arms.append(run_arm(f"l2-inside-{name}", f"L2 {lam:g} in the loss, clipped", {**base, "loss_penalty": lam}))
        arms.append(run_arm(f"l2-outside-{name}", f"L2 {lam:g} after the clip", {**base, "decay": _l2(lam)}))
    return arms


def sgd_arms(numbers: Ablations) -> list[Arm]:
    """SGD with momentum 0.9, each lam at each rate."""
    base: dict[str, Any] = {**numbers.setting.decayed("none"), "optimizer": "sgd", "momentum": 0.9, "keep_at": ()}
    return [
        run_arm(f"sgd-{name}-lr{lr:g}", f"SGD lr {lr:g}, lam {lam:g}", {**base, "lr": lr, "decay": _l2(lam)})
        for lr in numbers.sgd_rates
        for name, lam in numbers.sgd_lams.items()
    ]


def averaging_arms(numbers: Ablations) -> list[Arm]:
    """The runs at a constant rate of `lm-schedules`, which average their weights, and their last tiny-lr branches."""
    setting = numbers.setting
    runs = [setting.run_arm("constant", lam) for lam in LAMS]
    return runs + [setting.branch_arm("constant", "tiny-lr", lam, 100) for lam in LAMS]


def ablation_arms(numbers: Ablations) -> tuple[Arm, ...]:
    """All runs of the study at one size."""
    return (*gains_arms(numbers), *l2_arms(numbers), *sgd_arms(numbers), *averaging_arms(numbers))


LOWER = (
    "Reproduced if the 95 % interval of (final loss of the best with - of the best without, what is best chosen on the other"
    f" seeds) {quantities.LOWER}."
)
EQUAL = (
    f"lies within {rules.EQUAL_MARGIN:g} nats of 0, and that of 95 % of (final loss with {{decay}} - without decay) wholly"
    " further away; not reproduced if the first lies wholly outside; else inconclusive."
)
PLACES = {"inside": "in the loss, clipped with its gradient", "outside": "added to the gradient after the clip"}
WHICH = {
    "ema": "the moving average of the weights (0.99 per step)",
    "mean": "the plain mean of the weights of the second half",
}

CLAIMS = (
    WordedClaim(
        key="a",
        text="Whether the gains of LayerNorm decay does not matter at moderate decay.",
        rule=f"Reproduced if the 90 % interval of (final loss with gains decayed - with gains kept)"
        f" {EQUAL.format(decay='decay, gains kept,')}",
        effect_name="final loss with gains decayed minus kept, moderate decay",
        unit="nats",
        measure=rules.gains_harmless,
    ),
    WordedClaim(
        key="b",
        text="Decaying the gains of LayerNorm is harmful at large decay.",
        rule="Reproduced if the 95 % interval of (final loss with gains decayed - with gains kept) lies above 0; not reproduced"
        " if below; else inconclusive.",
        effect_name="final loss with gains decayed minus kept, large decay",
        unit="nats",
        measure=rules.gains_harm,
    ),
    *(
        WordedClaim(
            key=f"c-{where}",
            text=f"With Adam, L2 {words} lowers the final loss, too.",
            rule=LOWER,
            effect_name=f"final loss with L2 ({where} the clip) minus without",
            unit="nats",
            measure=functools.partial(rules.l2_helps, where=where),
        )
        for where, words in PLACES.items()
    ),
    *(
        WordedClaim(
            key=f"d-{where}",
            text=f"With Adam, L2 {words} is as good as decoupled decay.",
            rule="Coefficient and lam are chosen on the other seeds. Reproduced if the 90 % interval of (final loss with L2 -"
            f" with decoupled decay) {EQUAL.format(decay='decoupled decay')}",
            effect_name=f"final loss with L2 ({where} the clip) minus with decoupled decay",
            unit="nats",
            measure=functools.partial(rules.l2_as_good, where=where),
        )
        for where, words in PLACES.items()
    ),
    WordedClaim(
        key="e",
        text="With SGD and momentum decay lowers the final loss, too: Adam's adaptivity is not needed.",
        rule=f"{LOWER} Rates are chosen on both sides. {quantities.NEEDS_GRID}",
        effect_name="final loss of SGD, best with decay minus best without",
        unit="nats",
        measure=rules.sgd_helps,
    ),
    *(
        WordedClaim(
            key=f"f-{average}-{lam}",
            text=f"At a constant learning rate {words} loses less by {lam} decay than the weights themselves.",
            rule="Before is (loss with decay - loss without) at the end of the runs at a constant rate, after the same of the"
            " averaged weights. Reproduced if the 95 % interval of (before - after) lies above 0; not reproduced if below; else"
            " inconclusive, and if before is not above 0.",
            effect_name=f"difference of the weights minus that of the average ({average}), {lam} decay",
            unit="nats",
            measure=functools.partial(rules.averages_shrink, lam=lam, average=average),
        )
        for average, words in WHICH.items()
        for lam in LAMS[1:]
    ),
    *(
        WordedClaim(
            key=f"g-{average}-{lam}",
            text=f"Averaging does less than a tiny-lr branch: {words} loses more by {lam} decay than the end of the branch.",
            rule="Reproduced if the 95 % interval of ((loss with decay - loss without) of the averaged weights minus the same"
            " at the end of the tiny-lr branches) lies above 0; not reproduced if below; else inconclusive.",
            effect_name=f"difference of the average ({average}) minus that after the branch, {lam} decay",
            unit="nats",
            measure=functools.partial(rules.averages_less_than_branch, lam=lam, average=average),
        )
        for average, words in WHICH.items()
        for lam in LAMS[1:]
    ),
)

OVER_SEEDS = "Means over seeds with 95 % intervals over seeds alone."

PANELS = (
    PointsPanel(
        slug="gains",
        title="Final loss against lam, gains of norms kept or decayed",
        x_label="lam",
        y_label="validation loss (nats per token)",
        rows=rules.final_by_lam,
        source_figure="figure 20",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="l2",
        title="Final loss against the norm that is left: L2 and decoupled decay",
        x_label="norm of all weights at the end",
        y_label="validation loss (nats per token)",
        rows=rules.final_by_norm,
        log_x=True,
        source_figure="figure 21",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="sgd",
        title="Final loss of SGD with momentum against its learning rate",
        x_label="peak learning rate",
        y_label="validation loss (nats per token)",
        rows=rules.final_by_rate,
        log_x=True,
        source_figure="figure 22",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="averages",
        title="Change of the loss by decay at a constant learning rate, and what averaging and a tiny-lr branch leave of it",
        x_label="lam",
        y_label="loss with decay minus without (nats per token)",
        rows=rules.gaps_by_lam,
        source_figure="figure 23",
        note="Differences paired by seed, with 95 % intervals over seeds and blocks of validation tokens.",
    ),
)


def _loss(*keys: str, metric: str = "val/loss") -> functools.partial[str]:
    return functools.partial(three, keys=keys, metric=metric)


PUBLISHED = (
    Published(
        quantity="final loss with gains decayed, moderate / large decay (paper: lam 0.1 / 0.3)",
        published="3.28 / 3.335 (none: 3.30)",
        where="figure 20",
        how="fig-read",
        ours=_loss("gains-decayed-moderate", "gains-decayed-large", "gains-kept-none"),
    ),
    Published(
        quantity="final loss of Adam with L2 in the loss, two coefficients, and without",
        published="3.285 / 3.29, none 3.30",
        where="figure 21",
        how="fig-read",
        ours=_loss("l2-inside-small", "l2-inside-large", "adam-none"),
    ),
    Published(
        quantity="loss at a constant rate, large decay: weights / EMA 0.99",
        published="3.58 / 3.44",
        where="figure 23",
        how="fig-read",
        ours=rules.weights_and_average,
    ),
)


def _preset(*ladder: Ablations, **words: Any) -> Preset:
    return Preset(arms=tuple(arm for numbers in ladder for arm in ablation_arms(numbers)), **words)


LM_ABLATIONS = Study(
    name="lm-ablations",
    title="Weight decay in one-pass language models: what does not matter",
    source=f"{PAPER_TITLE}, appendix D, figures 20 to 23",
    claim="The benefit of decay needs neither decoupling nor Adam, and hardly depends on whether gains decay; averaging the"
    " weights removes a part of what decay adds to the loss at a constant rate.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("l2", "averages"),
    presets={
        "smoke": _preset(
            TINY,
            description="20 steps of a tiny MLP: shows that everything works, not what is true",
            budget="20 seconds",
            num_seeds=2,
            main_size=16,
            decides=False,
        ),
        "laptop": _preset(
            SMALL,
            description="a byte MLP of 13,600 parameters for 2000 steps; for the gains a GPT of two layers for 1500",
            budget="10 minutes on 2 cores",
            num_seeds=5,
            main_size=32,
        ),
        "night": _preset(
            *LADDER,
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores, less after lm-schedules",
            num_seeds=6,
            main_size=32,
            num_ladder_seeds=3,
        ),
        "paper": _preset(
            FULL,
            description="GPT-2 with 124 M parameters on OpenWebText, context 256, 50,000 steps",
            budget="weeks on one GPU",
            num_seeds=2,
            main_size=768,
            needs=PAPER_NEEDS,
        ),
    },
)
