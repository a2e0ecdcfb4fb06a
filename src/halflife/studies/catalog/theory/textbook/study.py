"""The textbook examples: what is it that keeps a model simple, the algorithm or the regularizer?

Sources: Andriushchenko, Varre, Pillaud-Vivien, Flammarion, "SGD with Large Step Sizes Learns Sparse Features" (ICML 2023,
arXiv 2210.05337), a two-layer ReLU net in one dimension; Mulayoff, Michaeli, Soudry, "The Implicit Bias of Minima
Stability" (NeurIPS 2021), why it is smooth; Soudry et al., "The Implicit Bias of Gradient Descent on Separable Data" (JMLR
2018, arXiv 1710.10345), the direction of a linear classifier.

The rules were written before any run of the presets' seeds. On seeds 1000 to 1003 were tried, for the net of width 100,
learning rates 0.01 to 0.4 and lam 0.002 to 0.01 (at rates of 0.3 and more, or 0.1 at width 200, single nets die in the
warm-up, hence 0.15; with lam 0.004 and 0.01 the points are missed by up to 6 and 7 % of their spread, hence 0.002), output
weights at the start of 1, 2 and 3, and 20,000 to 50,000 steps; for the classifiers, planted points with nearer other points
and smaller s_1, whose approach to the asymptote was slower, and up to 10^6 steps of random points. These numbers showed the
direction of the effects; the margins were not moved after them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.theory.textbook import figures
from halflife.studies.catalog.theory.textbook import quantities as rules
from halflife.studies.evidence.claims import Arm, PointsPanel, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.textbook import ReluRegressionRun, SeparableRun

__all__ = ["CLAIMS", "TEXTBOOK"]

_LOWER_RULE = (
    "Where both fit the points (95 % interval of the root mean square error at them below"
    f" {rules.FITS:.0%} of the spread of their values): reproduced if the 95 % interval of the ratio lies below 1; not"
    f" reproduced if it excludes a reduction by {rules.SMALLEST_SHARE:.0%}; else, and where they are not fitted, inconclusive."
)


def _lower(key: str, text: str, effect: str, arm: str, other: str, metric: str, name: str) -> WordedClaim:
    return WordedClaim(
        key=key,
        text=text,
        rule=_LOWER_RULE,
        effect_name=effect,
        unit="x",
        measure=functools.partial(rules.ratio_is_lower, key=arm, other=other, metric=metric, name=name),
    )


RELU_CLAIMS = (
    _lower(
        "relu-smooth",
        "Without decay, SGD with a large learning rate fits the points by a smoother function than with a small one: the total"
        " variation of its slope is lower.",
        "total variation of the slope, large over small rate",
        rules.LARGE, rules.SMALL, "variation", "the total variation of the slope",
    ),
    _lower(
        "relu-kinks",
        "Without decay, the function that SGD finds with a large learning rate has fewer kinks.",
        "effective number of kinks, large over small rate",
        rules.LARGE, rules.SMALL, "effective_kinks", "the effective number of kinks",
    ),
    _lower(
        "relu-error",
        "Without decay, the function that SGD finds with a large learning rate is nearer to the truth between the points.",
        "root mean square error between the points, large over small rate",
        rules.LARGE, rules.SMALL, "test/rmse", "the error between the points",
    ),
    WordedClaim(
        key="relu-flat",
        text="The reason is stability: at the large rate SGD can only stay where the top eigenvalue of the Hessian is below 2 /"
        " lr, and at the minimum that the small rate finds it is larger.",
        rule="Reproduced if the 95 % interval of (large lr / 2 * top eigenvalue at the end) lies below 1 for the large rate and"
        " above 1 for the small one; not reproduced if one lies on the other side; else inconclusive.",
        effect_name="top eigenvalue over 2 / lr at the end of the large rate",
        unit="x",
        measure=rules.large_rate_is_flat,
    ),
    WordedClaim(
        key="relu-bound",
        text="Check: a flat minimum is a smooth one: 1 + 2 sum |a w| g(kink) is at most the top eigenvalue.",
        rule="At each rate: reproduced if the 95 % interval of bound over top eigenvalue lies below 1; not reproduced if one"
        " lies above 1; else inconclusive.",
        effect_name="bound over top eigenvalue, at the rate where it is largest",
        unit="x",
        measure=rules.bound_holds,
    ),
    _lower(
        "relu-noise",
        "Label noise, taken away at the end, makes the function smoother, too.",
        "total variation of the slope with label noise over without",
        rules.NOISY, rules.MIDDLE, "variation", "the total variation of the slope",
    ),
    _lower(
        "relu-decay",
        "At the small rate explicit decay makes the function smoother, too.",
        "total variation of the slope with decay over without, small rate",
        rules.DECAYED, rules.SMALL, "variation", "the total variation of the slope",
    ),
)  # fmt: skip

_RATE_RULE = (
    f"The angle is fitted as (log(lr t / n))^-p over the last {rules.DECADES} decades of steps. Reproduced if the 90 % interval"
    f" of p lies within 1 +- {rules.RATE_MARGIN:g}; not reproduced if it lies wholly outside; else inconclusive."
)

SEPARABLE_CLAIMS = (
    WordedClaim(
        key="svm-rate",
        text="On separable data gradient descent without decay tends to the hard-margin direction, and the angle that is left"
        " falls as 1 / log t (planted support vectors).",
        rule=_RATE_RULE,
        effect_name="exponent p, planted support vectors",
        unit="",
        measure=functools.partial(rules.rate_is_logarithmic, key=rules.PLANTED),
    ),
    WordedClaim(
        key="svm-norm",
        text="The norm grows as log t over the margin, and the loss falls as 1 / t.",
        rule=f"Over the last {rules.DECADES} decades of steps, planted support vectors: reproduced if the 90 % intervals of the"
        f" slope of norm * margin against log t and of the exponent of the loss lie within 1 +- {rules.SLOPE_MARGIN:g}; not"
        " reproduced if one lies wholly outside; else inconclusive.",
        effect_name="slope of norm * margin against log t",
        unit="",
        measure=rules.norm_and_loss,
    ),
    WordedClaim(
        key="svm-theory",
        text="Check: without decay w is u log t + a rest that the dual solution gives.",
        rule="Reproduced if at the end the 90 % intervals of angle and norm over those of the asymptote lie within"
        f" {rules.THEORY_MARGIN:.0%} of 1; not reproduced if one lies wholly outside; else inconclusive.",
        effect_name="angle over that of the asymptote",
        unit="x",
        measure=rules.theory_holds,
    ),
    WordedClaim(
        key="svm-random",
        text="On random points, too, the angle falls.",
        rule=f"Reproduced if the 95 % interval of the angle at the end over that after {rules.EARLY} steps lies below 1; not"
        f" reproduced if it excludes a reduction by {rules.SMALLEST_SHARE:.0%}; else inconclusive.",
        effect_name=f"angle at the end over that after {rules.EARLY} steps",
        unit="x",
        measure=rules.random_direction,
    ),
    WordedClaim(
        key="svm-random-rate",
        text="On random points, too, the angle falls as 1 / log t within the steps of the run.",
        rule=_RATE_RULE,
        effect_name="exponent p, random points",
        unit="",
        measure=functools.partial(rules.rate_is_logarithmic, key=rules.RANDOM),
    ),
    WordedClaim(
        key="svm-minimum",
        text="Check: with lam > 0 gradient descent ends at the minimum of loss + lam/2 ||w||^2, as another solver finds it.",
        rule="Reproduced if at every lam the 95 % interval, over seeds and in logarithms, of the largest relative distance of"
        f" any data set lies below {rules.REACHED:g}; not reproduced if one lies above; else inconclusive.",
        effect_name="decimal logarithm of the largest relative distance to the minimum",
        unit="",
        measure=rules.minimum_is_reached,
    ),
    WordedClaim(
        key="svm-path",
        text="As lam goes to 0, the minimum of loss + lam/2 ||w||^2 turns to the hard-margin direction.",
        rule=f"Random points, lam {', '.join(f'{lam:g}' for lam in rules.RANDOM_LAMS)}: reproduced if the 95 % interval of the"
        " ratio of angles lies below 1 from each lam to the next smaller; not reproduced if one lies above; else inconclusive.",
        effect_name="angle with the smallest over that with the largest lam",
        unit="x",
        measure=rules.decay_tends_to_the_margin,
    ),
    WordedClaim(
        key="svm-soft",
        text="A soft margin needs lam: with one outlier the hard margin is the wrong aim, and decay lowers the test error.",
        rule=f"Reproduced if the 95 % interval of (error with lam {rules.OUTLIER_LAMS[-1]:g} - error without) lies below 0; not"
        f" reproduced if it excludes an improvement of {rules.SMALLEST_GAIN} points; else inconclusive.",
        effect_name="change of the test error by decay, one outlier",
        unit="points",
        measure=functools.partial(rules.outlier_needs_decay, lam=rules.OUTLIER_LAMS[-1]),
    ),
)

CLAIMS = (*RELU_CLAIMS, *SEPARABLE_CLAIMS)


LARGE_RATES = {25: 0.2, 50: 0.2, 100: 0.15, 200: 0.08}  # by width; the others are shares of it
MIDDLE_SHARE, SMALL_SHARE = 1 / 3, 1 / 15
LAM = 0.002
LABEL_NOISE = 0.5

MEANS_NOTE = "Means over seeds with 95 % intervals; lines join them."

PANELS = (
    PointsPanel(
        slug="functions",
        title="A two-layer ReLU net fits twelve points",
        x_label="x",
        y_label="f(x)",
        rows=figures.fitted_functions,
        note="The first net of the first seed, at the end.",
    ),
    PointsPanel(
        slug="slopes",
        title="The slopes of these functions",
        x_label="x",
        y_label="slope of f",
        rows=figures.slopes,
        note="Of the same nets. The sum of all steps up and down is the total variation.",
    ),
    PointsPanel(
        slug="variation",
        title="A larger learning rate finds a smoother function",
        x_label="learning rate",
        y_label="total variation of the slope",
        rows=figures.variation_against_rate,
        log_x=True,
        log_y=True,
        note=f"{MEANS_NOTE} The least variation is that of the line that connects the points.",
    ),
    PointsPanel(
        slug="kinks",
        title="And fewer kinks",
        x_label="learning rate",
        y_label="effective number of kinks",
        rows=figures.kinks_against_rate,
        log_x=True,
        log_y=True,
        note=MEANS_NOTE,
    ),
    PointsPanel(
        slug="boundaries",
        title="Separable points with one outlier: decision boundaries",
        x_label="first coordinate",
        y_label="second coordinate",
        rows=figures.boundaries,
        equal=True,
        note="The first data set of the first seed, at the end.",
    ),
    PointsPanel(
        slug="angle",
        title="The direction tends to the hard margin, slowly",
        x_label="step",
        y_label="angle to the hard-margin direction (radians)",
        rows=figures.angle_along_the_run,
        log_x=True,
        log_y=True,
        note=MEANS_NOTE,
    ),
    PointsPanel(
        slug="norm",
        title="The norm grows as log t without decay, and stops with it",
        x_label="step",
        y_label="norm times margin",
        rows=figures.norm_along_the_run,
        log_x=True,
        log_y=True,
        note=MEANS_NOTE,
    ),
    PointsPanel(
        slug="outlier-error",
        title="One outlier: the test error along the run",
        x_label="step",
        y_label="test error (%)",
        rows=figures.error_along_the_run,
        log_x=True,
        note="Means over seeds. The error is exact, for Gaussian classes of which the training points lack the nearest.",
    ),
)


@dataclass(frozen=True)
class Scale:
    """How long the runs are.

    Args:
        relu_steps: Of the nets, 70 % of them before the drop.
        planted_steps: Of gradient descent on planted points.
        random_steps: On random points.
        outlier_steps: On points with an outlier, without decay.
        folds: With decay, steps times lr * lam.
        replicas: Nets of a run, and data sets of a run.
    """

    relu_steps: int = 20_000
    planted_steps: int = 1_000_000
    random_steps: int = 300_000
    outlier_steps: int = 100_000
    folds: float = 10.0
    replicas: int = 8


def _relu(fields: dict[str, Any], seed: int) -> ReluRegressionRun:
    return ReluRegressionRun(seed=seed, **fields)


def _separable(fields: dict[str, Any], seed: int) -> SeparableRun:
    return SeparableRun(seed=seed, **fields)


def _relu_arms(width: int, scale: Scale) -> tuple[Arm, ...]:
    large = LARGE_RATES[width]
    middle, small = (float(f"{large * share:.3g}") for share in (MIDDLE_SHARE, SMALL_SHARE))
    arms = []
    for key, lr, extra, label in (
        (rules.SMALL, small, {}, f"ReLU net, lr {small:g}"),
        (rules.MIDDLE, middle, {}, f"ReLU net, lr {middle:g}"),
        (rules.LARGE, large, {}, f"ReLU net, lr {large:g}"),
        (rules.NOISY, middle, {"label_noise": LABEL_NOISE}, f"ReLU net, lr {middle:g}, label noise"),
        (rules.DECAYED, small, {"lam": LAM}, f"ReLU net, lr {small:g}, lam {LAM:g}"),
    ):
        fields = {
            "width": width,
            "lr": lr,
            "lr_after_drop": min(lr, 2 / width),
            "drop_step": scale.relu_steps * 7 // 10,
            "warmup_steps": scale.relu_steps // 5,
            "num_steps": scale.relu_steps,
            "num_replicas": scale.replicas,
            "eval_every": max(scale.relu_steps // 40, 1),
            **extra,
        }
        arms.append(Arm(key=key, label=label, size=width, spec=_relu(fields, 0)))
    return tuple(arms)


def _separable_arms(size: int, scale: Scale) -> tuple[Arm, ...]:
    lr = SeparableRun(num_steps=1).lr
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (rules.PLANTED, "planted support vectors", {"points": "planted", "num_steps": scale.planted_steps}),
        (rules.RANDOM, "random points", {"points": "random", "num_steps": scale.random_steps}),
    ]
    for points, lams in (("random", rules.RANDOM_LAMS), ("outlier", rules.OUTLIER_LAMS)):
        for lam in lams:
            key = rules.random_key(lam) if points == "random" else rules.outlier_key(lam)
            steps = round(scale.folds / (lr * lam)) if lam else scale.outlier_steps
            name = "random points" if points == "random" else "one outlier"
            kinds.append((key, f"{name}, lam {lam:g}", {"points": points, "lam": lam, "num_steps": steps}))
    return tuple(
        Arm(
            key=key,
            label=label,
            size=size,
            spec=_separable({**fields, "num_datasets": scale.replicas}, 0),
        )
        for key, label, fields in kinds
    )


def _arms(widths: tuple[int, ...], main: int, scale: Scale) -> tuple[Arm, ...]:
    nets = tuple(arm for width in widths for arm in _relu_arms(width, scale))
    return (*nets, *_separable_arms(main, scale))


LAPTOP = Scale()
NIGHT = Scale(relu_steps=60_000, planted_steps=10_000_000, random_steps=10_000_000, folds=20.0, replicas=16)

TEXTBOOK = Study(
    name="textbook",
    title="Textbook examples: a ReLU net in one dimension, and the maximum margin",
    source="Andriushchenko et al. 2023 (arXiv 2210.05337); Mulayoff et al. 2021; Soudry et al. 2018 (arXiv 1710.10345);"
    " the examples with which talks on weight decay begin",
    claim="Without any explicit regularizer the algorithm chooses among the solutions: SGD with a large learning rate a smooth"
    " function, gradient descent the hard margin. Decay is needed where that choice is the wrong one.",
    claims=CLAIMS,
    panels=PANELS,
    size_name="width of the ReLU net",
    doc_panels=("slopes", "boundaries"),
    presets={
        "smoke": Preset(
            description="a net of width 25, 400 steps, and 3,000 of gradient descent: shows that everything works, not what is"
            " true",
            budget="5 seconds",
            arms=_arms(
                (25,),
                25,
                Scale(relu_steps=400, planted_steps=3000, random_steps=3000, outlier_steps=1000, folds=0.5, replicas=2),
            ),
            num_seeds=2,
            main_size=25,
            decides=False,
        ),
        "laptop": Preset(
            description="8 nets of width 100 a seed, 20,000 steps; 8 data sets a seed, up to a million steps",
            budget="1 minute on 2 cores",
            arms=_arms((100,), 100, LAPTOP),
            num_seeds=5,
            main_size=100,
        ),
        "night": Preset(
            description="as laptop with 3 to 30 times the steps, twice the nets and data sets, and widths 50, 100, 200",
            budget="30 minutes on 2 cores",
            arms=_arms((50, 100, 200), 100, NIGHT),
            num_seeds=8,
            main_size=100,
            num_ladder_seeds=5,
        ),
        "paper": Preset(
            description="12 points and 100 hidden units as in the paper, and the steps of night",
            budget="30 minutes on 2 cores",
            arms=_arms((100,), 100, NIGHT),
            num_seeds=8,
            main_size=100,
        ),
    },
)
