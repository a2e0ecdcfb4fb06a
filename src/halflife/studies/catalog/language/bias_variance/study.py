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
import itertools
from collections.abc import Callable, Mapping, Sequence

from halflife.studies.catalog.language.bias_variance import figures
from halflife.studies.catalog.language.bias_variance import quantities as rules
from halflife.studies.catalog.language.bias_variance.quantities import FLIP, LINE_RATES, SPREAD_RATES, at_drop, at_end
from halflife.studies.catalog.language.bias_variance.theory import stationary_risk
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.quantities import EARLY_MARGIN, at_share, change, in_nats
from halflife.studies.catalog.language.schedules import LM_SCHEDULES
from halflife.studies.catalog.language.settings import LAMS
from halflife.studies.evidence.claims import Claim, PointsPanel, Preset, Published, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Measure, Quantity, Reading
from halflife.studies.evidence.rows import published_level
from halflife.studies.evidence.tests import above, below, within, within_factor
from halflife.studies.specs.least_squares import LeastSquaresRun

__all__ = ["BIAS_VARIANCE"]

FLOOR_FACTOR, SPREAD_FACTOR = 1.02, 1.03  # of a simulated risk and its expectation, which count as equal
LOOSE, LOOSE_MARGIN = 4.0, 0.2  # the bound over the floor as lr -> 0, and what counts as that
AVERAGE_FACTOR = 5.0  # averaging divides the floor by more than this, or it does not remove it
EARLY = 20  # the early comparison is after 1 / 20 of the steps before the drop
RECOVERED = 0.5  # averaging must bring more than this share of what the branch brings
FIRST, LAST = 20, 100  # per cent of the run at which the first and the last branches start


def _early(spec: LeastSquaresRun) -> int:
    return at_drop(spec) // EARLY


def _noise(spec: LeastSquaresRun) -> float:
    """Lr sigma^2 in one dimension."""
    return spec.lr * spec.noise_std**2


def _times(name: str, values: Measure) -> Quantity:
    return Quantity(name=name, values=values, unit="x", log=True)


def _each(name: str, where: str, of: Callable[[str, Measure], Quantity], values: Mapping[str, Measure]) -> Each:
    """A quantity at each of several places, by their names."""
    quantities = tuple(of(f"{name}, {place}", measure) for place, measure in values.items())
    return Each(name=f"{name}, {where}", quantities=quantities, unit=quantities[0].unit)


def _line(lr: float) -> str:
    return f"line-{lr:g}"


def _floor(key: str) -> Reading:
    """The risk, a mean over the last half of the steps before the drop."""
    return Reading(key, "tail/risk", step=at_drop)


def _over_bound(name: str, keys: Sequence[str]) -> Rule:
    where = "at each rate, with 1 for the constants that the paper drops"
    return Rule(parts=((_each(name, where, _times, {key: rules.OverBound(key) for key in keys}), below(1)),))


def _flip(name: str, step: Callable[[LeastSquaresRun], int]) -> Quantity:
    larger, smaller = (Reading(key, "risk", step=step) for key in FLIP)
    return _times(f"risk {name}, larger over smaller learning rate", larger / smaller)


def _over_expectation(name: str, key: str) -> Quantity:
    """A late mean of the run with decay over its expectation."""
    theory = rules.FromSpec(key, functools.partial(rules.expected_late, name=name))
    return _times(f"simulated {name} over its expectation, lam {rules.DECAY:g}", rules.LateMean(key, name) / theory)


STEADY = (*map(_line, LINE_RATES), *(f"additive-{lr:g}" for lr in SPREAD_RATES))
SAMPLED = tuple(f"sampled-{lr:g}" for lr in SPREAD_RATES)

OVER_FORMULA = _each(
    "simulated floor over the formula",
    "at each rate",
    _times,
    {f"lr {lr:g}": _floor(_line(lr)) / rules.FromSpec(_line(lr), stationary_risk) for lr in LINE_RATES},
)
LEAST_RATE = LINE_RATES[-1]
BOUND_OVER_FLOOR = _times(
    f"lr sigma^2 over the simulated floor, lr {LEAST_RATE:g}",
    rules.FromSpec(_line(LEAST_RATE), _noise) / _floor(_line(LEAST_RATE)),
)
OVER_AVERAGE = _each(
    "floor over risk of the average of the iterates",
    "at each rate",
    _times,
    {f"lr {lr:g}": _floor(_line(lr)) / Reading(_line(lr), "average/risk", step=at_drop) for lr in LINE_RATES},
)
OVER_RECURSION = _each(
    "simulated floor over the exact recursion",
    "at each rate with either noise",
    _times,
    {
        f"{noise} noise, lr {lr:g}": _floor(f"{noise}-{lr:g}")
        / rules.FromSpec(f"{noise}-{lr:g}", functools.partial(rules.expected_at_drop, name="tail/risk"))
        for noise in ("sampled", "additive")
        for lr in SPREAD_RATES
    },
)
BY_DECAY = _times(
    f"variance with lam {rules.DECAY:g} over without, lr 0.1",
    rules.LateMean(rules.DECAYED, "variance") / rules.LateMean(rules.PLAIN, "variance"),
)

SYNTHETIC_CLAIMS = (
    Claim(
        key="floor",
        text="Check: in least squares in one dimension, at a constant learning rate the risk settles at lr s^2 / (2 (2 - lr"
        " mu)).",
        rule=Rule(parts=((OVER_FORMULA, within_factor(FLOOR_FACTOR)),)),
    ),
    Claim(
        key="bound",
        text="Check: the paper's bound (1 - lr mu)^t ||x_0 - x*||^2 + lr sigma^2 holds along the whole run, gradients with"
        " noise of constant variance.",
        rule=_over_bound("largest risk over the bound before the drop", STEADY),
    ),
    Claim(
        key="bound-sampled",
        text="The paper's bound (1 - lr mu)^t ||x_0 - x*||^2 + lr sigma^2 holds with one sample a step, too, whose noise grows"
        " with the error.",
        rule=_over_bound("largest risk over the bound before the drop, sampled gradients", SAMPLED),
    ),
    Claim(
        key="bound-loose",
        text="Check: at the floor of a small learning rate the paper's bound is four times too large.",
        rule=Rule(parts=((BOUND_OVER_FLOOR, within(LOOSE_MARGIN, around=LOOSE)),)),
    ),
    Claim(
        key="ranking",
        text="In least squares a larger learning rate is ahead early and behind late, and ahead again once both have dropped.",
        rule=Rule(
            parts=(
                (_flip("at the end", at_end), below(1)),
                (_flip(f"after 1/{EARLY} of the steps before the drop", _early), below(1)),
                (_flip("just before the drop", at_drop), above(1)),
            )
        ),
    ),
    Claim(
        key="average-floor",
        text="In least squares averaging the iterates removes the floor without any drop of the learning rate.",
        rule=Rule(parts=((OVER_AVERAGE, above(AVERAGE_FACTOR)),)),
    ),
    Claim(
        key="spectrum",
        text="Check: with a spread spectrum the risk is that of the exact recursion, for both kinds of noise.",
        rule=Rule(parts=((OVER_RECURSION, within_factor(SPREAD_FACTOR)),)),
    ),
    Claim(
        key="decay-is-a-bias",
        text="In least squares itself decay is a regularizer: it adds a bias and lowers the variance, and raises no effective"
        " learning rate.",
        rule=Rule(
            parts=(
                (BY_DECAY, below(1)),
                (_over_expectation("bias", rules.DECAYED), within_factor(SPREAD_FACTOR)),
                (_over_expectation("variance", rules.DECAYED), within_factor(SPREAD_FACTOR)),
            )
        ),
    ),
)

VARIANCE_PART = "fall of the loss by the tiny-lr branch from the last step of a run at a constant rate"
GROWTH = _each(
    VARIANCE_PART,
    "each lam - the next smaller one",
    in_nats,
    {
        f"{larger} - {'no' if smaller == 'none' else smaller} decay": rules.variance(larger, LAST)
        - rules.variance(smaller, LAST)
        for smaller, larger in itertools.pairwise(LAMS)
    },
)
EARLY_CHANGE = _each(
    "loss after the first tiny-lr branch with decay - without",
    "for each lam > 0",
    in_nats,
    {f"{lam} decay": rules.after_branch(lam, FIRST) - rules.after_branch("none", FIRST) for lam in LAMS[1:]},
)
EARLY_STAKE = _each(
    "loss of the run where the first branch starts with decay - without",
    "for each lam > 0",
    in_nats,
    {f"{lam} decay": change("constant", lam, step=functools.partial(at_share, share=FIRST)) for lam in LAMS[1:]},
)


def _lower_bias(key: str, text: str, name: str, share: int) -> Claim:
    values = rules.best_decay(share) - rules.after_branch("none", share)
    effect = in_nats(f"loss after the {name} tiny-lr branch, best lam > 0 - no decay", values)
    return Claim(key=key, text=text, rule=Rule(parts=((effect, below(0)),)))


def _recovers(key: str, text: str, name: str, average: str) -> Claim:
    fall, lam = rules.variance(LAMS[-1], LAST), LAMS[-1]
    effect = in_nats(
        f"fall of the loss by the {name} - {RECOVERED:g} of the fall by the branch, {lam} decay",
        rules.averaging_gain(lam, LAST, average) - RECOVERED * fall,
    )
    helps = in_nats(f"{VARIANCE_PART}, {lam} decay", fall)
    return Claim(key=key, text=text, rule=Rule(parts=((effect, above(0)),), given=((helps, above(0)),)))


TEXT_CLAIMS = (
    Claim(
        key="variance-grows",
        text="In language models the variance part of the loss at a constant learning rate, which a tiny-lr branch removes,"
        " grows with lam.",
        rule=Rule(parts=((GROWTH, above(0)),)),
    ),
    Claim(
        key="early-bias",
        text="Early in the run of a language model the bias part of the loss, which a tiny-lr branch leaves, does not depend on"
        " lam: branches end at the same loss.",
        rule=Rule(parts=((EARLY_CHANGE, within(EARLY_MARGIN)),), stake=((EARLY_STAKE, above(EARLY_MARGIN)),)),
    ),
    _lower_bias(
        "first-bias",
        "In language models decay lowers the bias part of the loss, which a tiny-lr branch leaves, from the start: the"
        " effective rate is larger.",
        "first",
        FIRST,
    ),
    _lower_bias(
        "late-bias",
        "Late in the run of a language model the bias part of the loss, which a tiny-lr branch leaves, is lower with decay.",
        "last",
        LAST,
    ),
    _recovers(
        "ema",
        "In language models a moving average of the weights (0.99 per step) removes most of the part of the loss that a tiny-lr"
        " branch removes.",
        "moving average of the weights (0.99 per step)",
        "ema-0.99/",
    ),
    _recovers(
        "mean",
        "In language models the plain mean of the weights over the second half of the run removes most of the part of the loss"
        " that a tiny-lr branch removes.",
        "plain mean of the weights over the second half of the run",
        "mean/",
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
        ours=published_level(*(rules.variance(lam, LAST) for lam in LAMS), form=".3f"),
    ),
    Published(
        quantity="fall of the loss by a moving average of the weights at a constant learning rate (nats), large lam",
        published="0.14",
        where="figure 23, lam 0.3",
        how="fig-read",
        ours=published_level(rules.averaging_gain(LAMS[-1], LAST, "ema-0.99/"), form=".3f"),
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
    presets=presets(
        smoke=_preset(
            "smoke", rules.SyntheticScale(steps=200, line_replicas=50, spread_replicas=20), "15 seconds on 2 cores"
        ),
        laptop=_preset("laptop", rules.SyntheticScale(), "10 minutes on 2 cores"),
        night=_preset("night", rules.SyntheticScale(line_replicas=8000, spread_replicas=4000), "90 minutes on 2 cores"),
        paper=_preset("paper", rules.SyntheticScale(), "days on one GPU"),
    ),
)
