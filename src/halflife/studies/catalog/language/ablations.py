"""What weight decay in language models does not depend on: which parameters decay, decoupling, Adam; and averaging.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), appendix D, figures 20 to 23.

The rules were written before any run of the presets' seeds; docs/studies.md lists what was made stricter after the first
laptop runs. Coefficients and SGD's learning rates were looked for on seed 1000: with SGD 6 diverges and 1 to 3 are best
without decay; L2 from 1e-5 to 1e-4 shrinks the norm as much as lam 0.02 to 0.07 does.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE, run_arm
from halflife.studies.catalog.language.quantities import (
    BLOCKS,
    best_against_best,
    change,
    change_after,
    in_nats,
    loss,
    starting_with,
)
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
)
from halflife.studies.evidence.claims import Arm, Claim, PointRow, PointsPanel, Preset, Published, Rule, Study, presets
from halflife.studies.evidence.optimum import lam_of, text_spec
from halflife.studies.evidence.quantities import Best, Measure, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, published_level
from halflife.studies.evidence.stats import CONFIDENCE
from halflife.studies.evidence.tests import above, exceeds, within

__all__ = ["FULL", "LADDER", "LM_ABLATIONS", "SMALL", "TINY", "Ablations", "ablation_arms"]

EQUAL_MARGIN = 0.005  # nats: a quarter of what decay changes in the paper
AVERAGES = {"ema": "ema-0.99/", "mean": "mean/"}


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


def sgd_runs(results: Results, size: int, *, lams: Sequence[str]) -> list[str]:
    """The arms of SGD with one of these lams, at every rate."""
    return [key for lam in lams for key in starting_with(results, f"sgd-{lam}-", size)]


DECOUPLED = Best(tuple(f"adam-decoupled-{lam}" for lam in LAMS[1:]), BLOCKS)
"""Adam with the better of two lams."""


BY_DECOUPLED = in_nats("final loss of Adam with decoupled decay (better lam) - without", DECOUPLED - loss("adam-none"))


def _l2_claims(where: str, words: str) -> tuple[Claim, ...]:
    """L2 inside or outside the clip, with the better of two coefficients."""
    runs = tuple(f"l2-{where}-{coefficient}" for coefficient in ("small", "large"))
    final = f"final loss of Adam with L2 ({where} the clip, better coefficient)"
    difference = in_nats(f"{final} - with decoupled decay (better lam)", Best(runs, BLOCKS) - DECOUPLED)
    return (
        Claim(
            key=f"l2-{where}",
            text=f"With Adam, L2 {words} lowers the final loss, as decoupled decay does.",
            rule=best_against_best(f"{final} - without", runs, ("adam-none",)),
        ),
        Claim(
            key=f"l2-{where}-as-good",
            text=f"With Adam, L2 {words} is as good as decoupled decay.",
            rule=Rule(parts=((difference, within(EQUAL_MARGIN)),), stake=((BY_DECOUPLED, exceeds(EQUAL_MARGIN)),)),
        ),
    )


def _average_claims(name: str, words: str, prefix: str) -> tuple[Claim, ...]:
    """What decay adds to the loss of an average of the weights."""
    claims = []
    for lam in LAMS[1:]:
        effect = f"with {lam} decay - without, constant rate"
        weights, averaged = change("constant", lam), change("constant", lam, average=prefix)
        costs = in_nats(f"last loss {effect}, of the weights", weights)
        shrinks = in_nats(f"{costs.name} - the same of {words}", weights - averaged)
        more = in_nats(
            f"last loss {effect}, of {words} - the same after the tiny-lr branch from there",
            averaged - change_after("tiny-lr", "constant", lam),
        )
        claims += [
            Claim(
                key=f"{name}-shrinks-{lam}",
                text=f"At a constant learning rate {lam} decay adds less to the loss of {words} than to that of the weights"
                " themselves.",
                rule=Rule(parts=((shrinks, above(0)),), given=((costs, above(0)),)),
            ),
            Claim(
                key=f"{name}-below-branch-{lam}",
                text=f"Averaging does less than a tiny-lr branch: {lam} decay adds more to the loss of {words} than to that at"
                " the end of the branch.",
                rule=Rule(parts=((more, above(0)),)),
            ),
        ]
    return tuple(claims)


GAINS = {
    lam: in_nats(
        f"final loss with gains decayed - with gains kept, {lam} decay",
        loss(f"gains-decayed-{lam}") - loss(f"gains-kept-{lam}"),
    )
    for lam in LAMS[1:]
}
BY_DECAY = in_nats(
    "final loss with moderate decay, gains kept - without", loss("gains-kept-moderate") - loss("gains-kept-none")
)

CLAIMS = (
    Claim(
        key="gains-moderate",
        text="At moderate decay it does not matter for the final loss whether the gains of LayerNorm decay, too.",
        rule=Rule(parts=((GAINS["moderate"], within(EQUAL_MARGIN)),), stake=((BY_DECAY, exceeds(EQUAL_MARGIN)),)),
    ),
    Claim(
        key="gains-large",
        text="At large decay the final loss is higher where the gains of LayerNorm decay, too.",
        rule=Rule(parts=((GAINS["large"], above(0)),)),
    ),
    *_l2_claims("inside", "in the loss, clipped with its gradient,"),
    *_l2_claims("outside", "added to the gradient after the clip"),
    Claim(
        key="sgd",
        text="With SGD and momentum decay lowers the final loss, too: Adam's adaptivity is not needed.",
        rule=best_against_best(
            "final loss of SGD with momentum, best lam > 0 and rate - best rate without decay",
            functools.partial(sgd_runs, lams=LAMS[1:]),
            functools.partial(sgd_runs, lams=LAMS[:1]),
        ),
    ),
    *_average_claims("ema", "the moving average of the weights (0.99 per step)", AVERAGES["ema"]),
    *_average_claims("mean", "the plain mean of the weights of the second half", AVERAGES["mean"]),
)


def _lam(results: Results, key: str) -> float:
    return lam_of(text_spec(results, key, results.main_size))


Lines = dict[str, list[tuple[float, Measure]]]


def _by_lam(results: Results, size: int) -> Lines:
    """Final losses against lam, gains kept and decayed."""
    keys = {
        gains: {lam: f"gains-{gains if lam != 'none' else 'kept'}-{lam}" for lam in LAMS}
        for gains in ("kept", "decayed")
    }
    return {
        f"gains {gains}": [(_lam(results, key), Reading(key, "val/loss")) for key in by_lam.values()]
        for gains, by_lam in keys.items()
    }


def _by_norm(results: Results, size: int) -> Lines:
    """Final losses against the norm that is left, for L2 inside and outside the clip and for decoupled decay."""
    families = {"decoupled": "adam-decoupled-", "L2 inside the clip": "l2-inside-", "L2 outside it": "l2-outside-"}
    return {
        name: [
            (float(results.read(key, "weight_norm", size).mean()), Reading(key, "val/loss"))
            for key in ["adam-none", *starting_with(results, prefix, size)]
        ]
        for name, prefix in families.items()
    }


def _by_rate(results: Results, size: int) -> Lines:
    """Final losses of SGD against its learning rate, a line a lam."""
    lines: Lines = {}
    for key in sgd_runs(results, size, lams=LAMS):
        spec = text_spec(results, key, size)
        lines.setdefault(f"lam {lam_of(spec):g}", []).append((spec.lr, Reading(key, "val/loss")))
    return lines


def gaps_by_lam(results: Results) -> list[PointRow]:
    """How much decay raises the loss at a constant rate: of the weights, of their averages, after a tiny-lr branch."""
    rows = []
    for lam in LAMS[1:]:
        changes = {
            "EMA 0.99": change("constant", lam, average=AVERAGES["ema"]),
            "mean of the second half": change("constant", lam, average=AVERAGES["mean"]),
            "the run": change("constant", lam),
            "tiny-lr branch": change_after("tiny-lr", "constant", lam),
        }
        x = _lam(results, key_of("constant", lam))
        for name, values in changes.items():
            found = in_nats(name, values).interval(results, results.main_size, CONFIDENCE)
            rows.append(PointRow(series=name, x=x, y=found.estimate, style="line"))
            rows.append(PointRow(series=name, x=x, y=found.estimate, low=found.low, high=found.high))
    return sorted(rows, key=lambda row: row.series)


OVER_SEEDS = "Means over seeds with 95 % intervals over seeds alone."

PANELS = (
    PointsPanel(
        slug="gains",
        title="Final loss against lam, gains of norms kept or decayed",
        x_label="lam",
        y_label="validation loss (nats per token)",
        rows=against(_by_lam, bars="seeds"),
        source_figure="figure 20",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="l2",
        title="Final loss against the norm that is left: L2 and decoupled decay",
        x_label="norm of all weights at the end",
        y_label="validation loss (nats per token)",
        rows=against(_by_norm, bars="seeds"),
        log_x=True,
        source_figure="figure 21",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="sgd",
        title="Final loss of SGD with momentum against its learning rate",
        x_label="peak learning rate",
        y_label="validation loss (nats per token)",
        rows=against(_by_rate, bars="seeds"),
        log_x=True,
        source_figure="figure 22",
        note=OVER_SEEDS,
    ),
    PointsPanel(
        slug="averages",
        title="Change of the loss by decay at a constant learning rate, and what averaging and a tiny-lr branch leave of it",
        x_label="lam",
        y_label="loss with decay minus without (nats per token)",
        rows=gaps_by_lam,
        source_figure="figure 23",
        note="Differences paired by seed, with 95 % intervals over seeds and blocks of validation tokens.",
    ),
)


def _ours(*keys: str) -> Callable[[Results], str]:
    return published_level(*(Reading(key, "val/loss") for key in keys), form=".3f")


PUBLISHED = (
    Published(
        quantity="final loss with gains decayed, moderate / large decay (paper: lam 0.1 / 0.3)",
        published="3.28 / 3.335 (none: 3.30)",
        where="figure 20",
        how="fig-read",
        ours=_ours("gains-decayed-moderate", "gains-decayed-large", "gains-kept-none"),
    ),
    Published(
        quantity="final loss of Adam with L2 in the loss, two coefficients, and without",
        published="3.285 / 3.29, none 3.30",
        where="figure 21",
        how="fig-read",
        ours=_ours("l2-inside-small", "l2-inside-large", "adam-none"),
    ),
    Published(
        quantity="loss at a constant rate, large decay: weights / EMA 0.99",
        published="3.58 / 3.44",
        where="figure 23",
        how="fig-read",
        ours=published_level(
            *(Reading(key_of("constant", "large"), f"{average}val/loss") for average in ("", AVERAGES["ema"])),
            form=".3f",
        ),
    ),
)


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
    presets=presets(
        smoke=Preset(description="20 steps of a tiny MLP", budget="20 seconds", arms=ablation_arms(TINY)),
        laptop=Preset(
            description="a byte MLP of 13,600 parameters for 2000 steps; for the gains a GPT of two layers for 1500",
            budget="10 minutes on 2 cores",
            arms=ablation_arms(SMALL),
        ),
        night=Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores, less after lm-schedules",
            arms=tuple(arm for numbers in LADDER for arm in ablation_arms(numbers)),
            num_seeds=6,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters on OpenWebText, context 256, 50,000 steps",
            budget="weeks on one GPU",
            arms=ablation_arms(FULL),
            num_seeds=2,
            needs=PAPER_NEEDS,
        ),
    ),
)
