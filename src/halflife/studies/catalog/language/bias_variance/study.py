"""Bias and variance: what a large effective learning rate buys and costs, exactly in least squares and in language models.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3: the excess risk of SGD is at most of the order of

    (1 - lr mu)^t ||x_0 - x*||^2 + lr sigma^2

a bias that falls the faster and a variance that stays the higher, the larger the learning rate; decay enters by raising the
effective rate. The rules below were written before any run of the presets' seeds; docs/studies.md lists what was made
stricter after the first laptop runs. The numbers of the least-squares problems were chosen by their exact expectations, and
tried on seeds 1000 and above.
"""

from __future__ import annotations

import functools

from halflife.studies.catalog.language import quantities
from halflife.studies.catalog.language.bias_variance import figures
from halflife.studies.catalog.language.bias_variance import quantities as rules
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.schedules import LM_SCHEDULES
from halflife.studies.evidence.claims import PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim

__all__ = ["BIAS_VARIANCE"]

STEADY = tuple(f"line-{lr:g}" for lr in rules.LINE_RATES) + tuple(f"additive-{lr:g}" for lr in rules.SPREAD_RATES)
SAMPLED = tuple(f"sampled-{lr:g}" for lr in rules.SPREAD_RATES)

BOUND_RULE = (
    "At every reading before the drop, at every rate: reproduced if each 95 % interval of risk / bound lies below 1,"
    " with 1 for the constants that the paper drops; not reproduced if one lies above 1; else inconclusive."
)
AVERAGE_RULE = (
    "At the last step of the run, with large decay. Reproduced if the tiny-lr branch lowers the loss (95 % interval"
    f" above 0) and the 95 % interval of (fall of the loss by the average - {rules.RECOVERED:g} of the fall by the branch)"
    " lies above 0; not reproduced if it lies below 0; else inconclusive."
)

SYNTHETIC_CLAIMS = (
    WordedClaim(
        key="a",
        text="Check: in least squares in one dimension, at a constant learning rate the risk settles at lr s^2 / (2 (2 - lr"
        " mu)).",
        rule=f"At each of the rates {', '.join(f'{lr:g}' for lr in rules.LINE_RATES)}: reproduced if the 90 % interval"
        f" of the simulated floor over the formula lies within {rules.FLOOR_MARGIN:.0%} of 1 at every rate; not"
        " reproduced if one lies wholly outside; else inconclusive.",
        effect_name="deviation of the floor from the formula, at the rate where it is largest",
        unit="%",
        measure=rules.floor_is_exact,
    ),
    WordedClaim(
        key="b",
        text="Check: the paper's bound (1 - lr mu)^t ||x_0 - x*||^2 + lr sigma^2 holds along the whole run, gradients with"
        " noise of constant variance.",
        rule=BOUND_RULE,
        effect_name="largest risk over the bound",
        unit="x",
        measure=functools.partial(rules.bound_holds, keys=STEADY),
    ),
    WordedClaim(
        key="b-sampled",
        text="The bound holds with one sample a step, too, whose noise grows with the error.",
        rule=BOUND_RULE,
        effect_name="largest risk over the bound, sampled gradients",
        unit="x",
        measure=functools.partial(rules.bound_holds, keys=SAMPLED),
    ),
    WordedClaim(
        key="b-loose",
        text="Check: at the floor of a small learning rate the bound is four times too large.",
        rule=f"At lr {rules.LINE_RATES[-1]:g}: reproduced if the 90 % interval of lr sigma^2 over the simulated floor"
        f" lies within {rules.LOOSE:g} +- {rules.LOOSE_MARGIN:g}; not reproduced if it lies wholly outside; else inconclusive.",
        effect_name="bound over floor at the smallest learning rate",
        unit="x",
        measure=rules.bound_is_loose,
    ),
    WordedClaim(
        key="c",
        text="A larger learning rate is ahead early and behind late, and ahead again once both have dropped.",
        rule=f"With a spectrum and one sample a step, rates 0.2 and 0.05: reproduced if the 95 % intervals of the ratio"
        f" of risks (larger over smaller rate) lie below 1 after 1/{rules.EARLY} of the steps before the drop, above 1"
        " just before it, and below 1 at the end; not reproduced if one lies on the other side; else inconclusive.",
        effect_name="risk at the end, larger over smaller learning rate",
        unit="x",
        measure=rules.ranking_flips,
    ),
    WordedClaim(
        key="d",
        text="Averaging the iterates removes the floor without any drop.",
        rule=f"In one dimension, over the last half of the steps before the drop: reproduced if the 95 % interval of"
        f" (floor / risk of the average) lies above {rules.AVERAGE_FACTOR:g} at every rate; not reproduced if one lies"
        " below; else inconclusive.",
        effect_name="floor over risk of the average, at the rate where it is smallest",
        unit="x",
        measure=rules.average_removes_the_floor,
    ),
    WordedClaim(
        key="e",
        text="Check: with a spread spectrum the risk is that of the exact recursion, for both kinds of noise.",
        rule=f"At the rates {', '.join(f'{lr:g}' for lr in rules.SPREAD_RATES)} with either noise, mean risk over the"
        f" last half of the steps before the drop: reproduced if the 90 % interval of simulation over recursion lies"
        f" within {rules.SPREAD_MARGIN:.0%} of 1 in all; not reproduced if one lies wholly outside; else inconclusive.",
        effect_name="deviation from the recursion, where it is largest",
        unit="%",
        measure=rules.spread_is_exact,
    ),
    WordedClaim(
        key="f",
        text="In least squares itself decay is a regularizer: it adds a bias and lowers the variance, and raises no"
        " effective learning rate.",
        rule="In one dimension at lr 0.1: reproduced if the 90 % intervals of simulated bias and variance over their"
        f" expectations lie within {rules.SPREAD_MARGIN:.0%} of 1 and the 95 % interval of (variance with decay /"
        " without) lies below 1; not reproduced if one lies wholly outside or above; else inconclusive.",
        effect_name="variance with decay over without",
        unit="x",
        measure=rules.decay_is_a_bias,
    ),
)

TEXT_CLAIMS = (
    WordedClaim(
        key="g",
        text="Language models: the variance part of the loss at a constant learning rate grows with lam.",
        rule="The variance part is how far a tiny-lr branch from the last step lowers the loss. Reproduced if its 95 %"
        " intervals of (moderate - no decay) and (large - moderate) lie above 0; not reproduced if one lies below 0; else"
        " inconclusive.",
        effect_name="variance part with large decay minus that without",
        unit="nats",
        measure=rules.variance_grows,
    ),
    WordedClaim(
        key="h-early",
        text="Early in the run the bias part does not depend on lam: branches end at the same loss.",
        rule="At the first branch: reproduced if for moderate and for large decay the 90 % interval of (bias with decay -"
        f" without) lies within {quantities.EARLY_MARGIN:g} nats of 0 where the 95 % interval of (loss of the run with decay -"
        f" without) lies above {quantities.EARLY_MARGIN:g} nats; not reproduced if one of the first lies wholly outside; else"
        " inconclusive.",
        effect_name="bias part with decay minus that without, at the first branch, where it is largest",
        unit="nats",
        measure=rules.bias_coincides_early,
    ),
    *(
        WordedClaim(
            key=key,
            text=words,
            rule=f"At the {name} branch, with the decay that is best there on the other seeds: reproduced if the 95 %"
            " interval of (bias with decay - without) lies below 0; not reproduced if it lies above 0; else inconclusive.",
            effect_name=f"bias part with decay minus that without, at the {name} branch",
            unit="nats",
            measure=functools.partial(rules.bias_is_lower, branch=index),
        )
        for key, words, name, index in (
            ("h-first", "The larger effective rate lowers the bias part from the start.", "first", 0),
            ("h", "Late in the run the bias part is lower with decay.", "last", -1),
        )
    ),
    WordedClaim(
        key="i-ema",
        text="A moving average of the weights (0.99 per step) recovers most of the variance part that the branch does.",
        rule=AVERAGE_RULE,
        effect_name="gain by the moving average minus half of the variance part, large decay",
        unit="nats",
        measure=functools.partial(rules.averaging_recovers, average="ema-0.99/"),
    ),
    WordedClaim(
        key="i-mean",
        text="The plain mean of the weights over the second half of the run recovers most of the variance part, too.",
        rule=AVERAGE_RULE,
        effect_name="gain by the plain mean minus half of the variance part, large decay",
        unit="nats",
        measure=functools.partial(rules.averaging_recovers, average="mean/"),
    ),
)

THEORY_NOTE = "Points: mean over seeds with its 95 % interval. Lines: the exact expectation, and the paper's bound."
SPLIT_NOTE = (
    "Variance: loss of the run minus that after its tiny-lr branch. Bias: the latter minus the best loss after a"
    " cooldown from the last step. Means over seeds and blocks of validation tokens with 95 % intervals."
)

PANELS = (
    PointsPanel(
        slug="risk-along-the-run",
        title="Least squares in one dimension: risk along the run",
        x_label="step",
        y_label="excess risk",
        rows=figures.risk_along_the_run,
        log_x=True,
        log_y=True,
        note=THEORY_NOTE,
    ),
    PointsPanel(
        slug="floor-against-rate",
        title="Least squares in one dimension: the floor, and what averaging leaves of it",
        x_label="learning rate",
        y_label="excess risk before the drop",
        rows=figures.floor_against_rate,
        log_x=True,
        log_y=True,
        note=THEORY_NOTE,
    ),
    PointsPanel(
        slug="ranking",
        title="A spectrum, one sample a step: the larger rate is ahead, behind, and ahead after the drop",
        x_label="step",
        y_label="excess risk",
        rows=figures.ranking_along_the_run,
        log_x=True,
        log_y=True,
        note=THEORY_NOTE,
    ),
    PointsPanel(
        slug="split-along-the-run",
        title="Language model: bias and variance parts of the loss along the run",
        x_label="step",
        y_label="nats per token",
        rows=figures.split_along_the_run,
        source_figure="figure 6 (not split there)",
        note=SPLIT_NOTE,
    ),
    PointsPanel(
        slug="split-against-lam",
        title="Language model: bias and variance parts of the loss against lam",
        x_label="lam",
        y_label="nats per token",
        rows=figures.split_against_lam,
        note=SPLIT_NOTE,
    ),
)

PUBLISHED = (
    Published(
        quantity="fall of the loss along a tiny-lr branch from the last step (nats), lam 0 / moderate / large; the paper's from"
        " a cosine that ends at a tenth, ours from a constant rate",
        published="0.03 / 0.04 / 0.065",
        where="figure 6, lam 0 / 0.1 / 0.3",
        how="fig-read",
        ours=figures.variances,
    ),
    Published(
        quantity="fall of the loss by a moving average of the weights at a constant learning rate (nats), large lam",
        published="0.14",
        where="figure 23, lam 0.3",
        how="fig-read",
        ours=figures.averaging_gains,
    ),
)


def _preset(name: str, scale: rules.SyntheticScale, budget: str) -> Preset:
    """The language-model runs that `lm-schedules` has at this preset, too, and the least-squares runs beside its main size."""
    shared = LM_SCHEDULES.presets[name]
    arms = tuple(arm for arm in shared.arms if rules.is_shared(arm.key))
    return Preset(
        description=f"least squares with {scale.line_replicas:,} replicas, and the runs at a constant rate of"
        f" lm-schedules with their branches: {shared.description}",
        budget=budget,
        arms=(*rules.synthetic_arms(shared.main_size, scale), *arms),
        num_seeds=shared.num_seeds,
        main_size=shared.main_size,
        num_ladder_seeds=shared.num_ladder_seeds,
        needs=PAPER_NEEDS if name == "paper" else "",
        decides=shared.decides,
    )


BIAS_VARIANCE = Study(
    name="bias-variance",
    title="Bias and variance of SGD, in least squares and in language models",
    source=f"{PAPER_TITLE}, section 3",
    claim="Weight decay in language models acts through the effective learning rate: it lowers the bias and raises the"
    " variance of the loss, so that a higher loss during training can be the better point once the rate is small.",
    claims=(*SYNTHETIC_CLAIMS, *TEXT_CLAIMS),
    panels=PANELS,
    published=PUBLISHED,
    size_name="width of the language model",
    doc_panels=("floor-against-rate", "split-along-the-run"),
    presets={
        "smoke": _preset(
            "smoke", rules.SyntheticScale(steps=200, line_replicas=50, spread_replicas=20), "15 seconds on 2 cores"
        ),
        "laptop": _preset("laptop", rules.SyntheticScale(), "10 minutes on 2 cores"),
        "night": _preset(
            "night", rules.SyntheticScale(line_replicas=8000, spread_replicas=4000), "90 minutes on 2 cores"
        ),
        "paper": _preset("paper", rules.SyntheticScale(), "days on one GPU"),
    },
)
