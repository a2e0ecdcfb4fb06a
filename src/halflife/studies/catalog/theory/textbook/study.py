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
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.theory.textbook import figures
from halflife.studies.catalog.theory.textbook.quantities import (
    DECADES,
    DECAYED,
    LARGE,
    MIDDLE,
    NOISY,
    OUTLIER_LAMS,
    PLANTED,
    RANDOM,
    RANDOM_LAMS,
    RATES,
    SMALL,
    misfit,
    outlier_key,
    random_key,
    ratio,
    slope,
    stability,
)
from halflife.studies.evidence.claims import Arm, Claim, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.tests import above, below, lowered, reduced, within, within_factor
from halflife.studies.specs.textbook import ReluRegressionRun, SeparableRun

__all__ = ["TEXTBOOK"]

FITS = 0.05  # root mean square error at the points over the spread of their values: what counts as fitted
SMALLEST_SHARE = 0.1  # a reduction by less than this share is none
RATE_MARGIN = 0.25  # of the exponent of log time
THEORY_FACTOR = 1.02  # of angle and norm against their asymptote
SLOPE_MARGIN = 0.05  # of the norm's slope and of the loss's exponent
EARLY = 100  # steps
REACHED = 1e-6  # relative distance to the regularized minimum
SMALLEST_GAIN = 0.5  # points of test error
RATE_WORDS = {SMALL: "small rate", MIDDLE: "middle rate", LARGE: "large rate", NOISY: "label noise", DECAYED: "decay"}


def _lower(key: str, text: str, effect: str, arm: str, other: str, metric: str) -> Claim:
    """A quantity is lower in one arm than in another, both fitting the points."""
    fitted = tuple((misfit(one, RATE_WORDS[one]), below(FITS)) for one in (arm, other))
    return Claim(
        key=key,
        text=text,
        rule=Rule(parts=((ratio(effect, arm, other, metric), reduced(SMALLEST_SHARE)),), given=fitted),
    )


def ratio_of_readings(name: str, arm: str, over: str, under: str) -> Quantity:
    """One reading at the end of an arm over another."""
    return Quantity(name=name, values=Reading(arm, over) / Reading(arm, under), unit="x", log=True)


BOUNDS = tuple(
    ratio_of_readings(
        f"smoothness bound over top eigenvalue, {RATE_WORDS[arm]}", arm, "smoothness_bound", "top_eigenvalue"
    )
    for arm in RATES
)

RELU_CLAIMS = (
    _lower(
        "relu-smooth",
        "Without decay, SGD with a large learning rate fits the points by a smoother function than with a small one: the total"
        " variation of its slope is lower.",
        "total variation of the slope, large over small rate",
        LARGE, SMALL, "variation",
    ),
    _lower(
        "relu-kinks",
        "Without decay, the function that SGD finds with a large learning rate has fewer kinks.",
        "effective number of kinks, large over small rate",
        LARGE, SMALL, "effective_kinks",
    ),
    _lower(
        "relu-error",
        "Without decay, the function that SGD finds with a large learning rate is nearer to the truth between the points.",
        "root mean square error between the points, large over small rate",
        LARGE, SMALL, "test/rmse",
    ),
    Claim(
        key="relu-flat",
        text="The reason why a large learning rate finds smooth functions is stability: at that rate SGD can only stay where"
        " the top eigenvalue of the Hessian is below 2 / lr, and at the minimum that the small rate finds it is larger.",
        rule=Rule(
            parts=(
                (Quantity(name="top eigenvalue that the large rate ends with, over 2 / lr of the large rate",
                          values=stability(LARGE), unit="x", log=True), below(1)),
                (Quantity(name="top eigenvalue that the small rate ends with, over 2 / lr of the large rate",
                          values=stability(SMALL), unit="x", log=True), above(1)),
            )
        ),
    ),
    Claim(
        key="relu-bound",
        text="Check: a flat minimum is a smooth function, because 1 + 2 sum |a w| g(kink) is at most the top eigenvalue.",
        rule=Rule(
            parts=((Each(name="smoothness bound over top eigenvalue, at each rate", quantities=BOUNDS, unit="x"), below(1)),)
        ),
    ),
    _lower(
        "relu-noise",
        "Label noise, taken away at the end, makes the function of a ReLU net smoother, too.",
        "total variation of the slope with label noise over without",
        NOISY, MIDDLE, "variation",
    ),
    _lower(
        "relu-decay",
        "At the small rate explicit decay makes the function of a ReLU net smoother, too.",
        "total variation of the slope with decay over without, small rate",
        DECAYED, SMALL, "variation",
    ),
)  # fmt: skip


def _log_rate(arm: str, points: str) -> Rule:
    name = f"p of angle ~ log(lr t / n)^-p over the last {DECADES} decades of steps, {points}"
    p = Quantity(name=name, values=slope(arm, "angle", log=True, sign=-1.0, log_time=True))
    return Rule(parts=((p, within(RATE_MARGIN, around=1.0)),))


def _over_theory(name: str) -> Quantity:
    return ratio_of_readings(f"{name} at the end over that of the asymptote", PLANTED, name, f"theory/{name}")


def _distance(results: Results, size: int, *, lam: float) -> NDArray[np.float64]:
    """Of a data set that reaches the minimum to the last bit it is the rounding error: 0 has no logarithm."""
    return np.maximum(results.read(random_key(lam), "regularized/distance", size), np.finfo(float).eps)


DISTANCES = tuple(
    Quantity(
        name=f"largest relative distance of any data set to the minimum, lam {lam:g}",
        values=functools.partial(_distance, lam=lam),
        log=True,
    )
    for lam in RANDOM_LAMS
)
TURNS = tuple(
    ratio(f"angle with lam {lam:g} over that with lam {larger:g}", random_key(lam), random_key(larger), "angle")
    for larger, lam in itertools.pairwise(RANDOM_LAMS)
)

SEPARABLE_CLAIMS = (
    Claim(
        key="svm-rate",
        text="On separable data gradient descent without decay tends to the hard-margin direction, and the angle that is left"
        " falls as 1 / log t (planted support vectors).",
        rule=_log_rate(PLANTED, "planted support vectors"),
    ),
    Claim(
        key="svm-norm",
        text="On separable data, without decay, the norm grows as log t over the margin, and the loss falls as 1 / t.",
        rule=Rule(
            parts=(
                (Quantity(name=f"slope of norm * margin against log t over the last {DECADES} decades of steps",
                          values=slope(PLANTED, "norm", log=False)), within(SLOPE_MARGIN, around=1.0)),
                (Quantity(name=f"p of loss ~ t^-p over the last {DECADES} decades of steps",
                          values=slope(PLANTED, "train/loss", log=True, sign=-1.0)), within(SLOPE_MARGIN, around=1.0)),
            )
        ),
    ),
    Claim(
        key="svm-theory",
        text="Check: without decay the weights are u log t + a rest that the dual solution gives.",
        rule=Rule(parts=tuple((_over_theory(name), within_factor(THEORY_FACTOR)) for name in ("angle", "norm"))),
    ),
    Claim(
        key="svm-random",
        text="On random separable points, too, the angle to the hard-margin direction falls along gradient descent.",
        rule=Rule(
            parts=(
                (Quantity(name=f"angle at the end over that after {EARLY} steps, random points",
                          values=Reading(RANDOM, "angle") / Reading(RANDOM, "angle", step=EARLY), unit="x", log=True),
                 reduced(SMALLEST_SHARE)),
            )
        ),
    ),
    Claim(
        key="svm-random-rate",
        text="On random separable points, too, the angle to the hard-margin direction falls as 1 / log t within the steps of"
        " the run.",
        rule=_log_rate(RANDOM, "random points"),
    ),
    Claim(
        key="svm-minimum",
        text="Check: with lam > 0 gradient descent ends at the minimum of loss + lam/2 ||w||^2, as another solver finds it.",
        rule=Rule(
            parts=(
                (Each(name="largest relative distance of any data set to the minimum, at each lam", quantities=DISTANCES),
                 below(REACHED)),
            )
        ),
    ),
    Claim(
        key="svm-path",
        text="As lam goes to 0, the minimum of loss + lam/2 ||w||^2 turns to the hard-margin direction.",
        rule=Rule(
            parts=(
                (ratio("angle to the hard-margin direction, smallest over largest lam", random_key(RANDOM_LAMS[-1]),
                       random_key(RANDOM_LAMS[0]), "angle"), below(1)),
                (Each(name="angle to the hard-margin direction, each lam over the next larger", quantities=TURNS, unit="x"),
                 below(1)),
            )
        ),
    ),
    Claim(
        key="svm-soft",
        text="A soft margin needs lam: with one outlier the hard margin is the wrong aim, and decay lowers the test error.",
        rule=Rule(
            parts=(
                (Quantity(
                    name=f"test error with lam {OUTLIER_LAMS[-1]:g} - without decay, one outlier",
                    values=100 * Reading(outlier_key(OUTLIER_LAMS[-1]), "test/error")
                    - 100 * Reading(outlier_key(0.0), "test/error"),
                    unit="points",
                ), lowered(SMALLEST_GAIN)),
            )
        ),
    ),
)  # fmt: skip

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


def _relu_arms(width: int, scale: Scale) -> tuple[Arm, ...]:
    large = LARGE_RATES[width]
    middle, small = (float(f"{large * share:.3g}") for share in (MIDDLE_SHARE, SMALL_SHARE))
    arms = []
    for key, lr, extra, label in (
        (SMALL, small, {}, f"ReLU net, lr {small:g}"),
        (MIDDLE, middle, {}, f"ReLU net, lr {middle:g}"),
        (LARGE, large, {}, f"ReLU net, lr {large:g}"),
        (NOISY, middle, {"label_noise": LABEL_NOISE}, f"ReLU net, lr {middle:g}, label noise"),
        (DECAYED, small, {"lam": LAM}, f"ReLU net, lr {small:g}, lam {LAM:g}"),
    ):
        fields: dict[str, Any] = {
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
        arms.append(Arm(key=key, label=label, size=width, spec=ReluRegressionRun(**fields)))
    return tuple(arms)


def _separable_arms(size: int, scale: Scale) -> tuple[Arm, ...]:
    lr = SeparableRun(num_steps=1).lr
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (PLANTED, "planted support vectors", {"points": "planted", "num_steps": scale.planted_steps}),
        (RANDOM, "random points", {"points": "random", "num_steps": scale.random_steps}),
    ]
    for points, lams in (("random", RANDOM_LAMS), ("outlier", OUTLIER_LAMS)):
        for lam in lams:
            key = random_key(lam) if points == "random" else outlier_key(lam)
            steps = round(scale.folds / (lr * lam)) if lam else scale.outlier_steps
            name = "random points" if points == "random" else "one outlier"
            kinds.append((key, f"{name}, lam {lam:g}", {"points": points, "lam": lam, "num_steps": steps}))
    return tuple(
        Arm(
            key=key,
            label=label,
            size=size,
            spec=SeparableRun(**fields, num_datasets=scale.replicas),
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
    presets=presets(
        smoke=Preset(
            description="a net of width 25, 400 steps, and 3,000 of gradient descent",
            budget="5 seconds",
            arms=_arms(
                (25,),
                25,
                Scale(relu_steps=400, planted_steps=3000, random_steps=3000, outlier_steps=1000, folds=0.5, replicas=2),
            ),
        ),
        laptop=Preset(
            description="8 nets of width 100 a seed, 20,000 steps; 8 data sets a seed, up to a million steps",
            budget="1 minute on 2 cores",
            arms=_arms((100,), 100, LAPTOP),
        ),
        night=Preset(
            description="as laptop with 3 to 30 times the steps, twice the nets and data sets, and widths 50, 100, 200",
            budget="30 minutes on 2 cores",
            arms=_arms((50, 100, 200), 100, NIGHT),
            num_seeds=8,
            main_size=100,
            num_ladder_seeds=5,
        ),
        paper=Preset(
            description="12 points and 100 hidden units as in the paper, and the steps of night",
            budget="30 minutes on 2 cores",
            arms=_arms((100,), 100, NIGHT),
            num_seeds=8,
        ),
    ),
)
