"""The claims of the study `textbook`, each with the rule that decides on it."""

from __future__ import annotations

import functools

from halflife.studies.catalog.theory.textbook import quantities as rules
from halflife.studies.evidence.claims import Claim

__all__ = ["CLAIMS"]

_LOWER_RULE = (
    "Where both meet the points (95 % interval of the root mean square error at them below"
    f" {rules.FITS:.0%} of the spread of their values): reproduced if the 95 % interval of the ratio lies below 1; not"
    f" reproduced if it excludes a reduction by {rules.SMALLEST_SHARE:.0%}; else, and where they are not met, inconclusive."
)


def _lower(key: str, text: str, effect: str, arm: str, other: str, metric: str, name: str) -> Claim:
    return Claim(
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
        "Without decay, SGD with a large learning rate meets the points by a smoother function than with a small one: the total"
        " variation of its slope is lower.",
        "total variation of the slope, large over small rate",
        rules.LARGE, rules.SMALL, "variation", "the total variation of the slope",
    ),
    _lower(
        "relu-kinks",
        "It has fewer kinks.",
        "effective number of kinks, large over small rate",
        rules.LARGE, rules.SMALL, "effective_kinks", "the effective number of kinks",
    ),
    _lower(
        "relu-error",
        "Between the points it is nearer to the truth.",
        "root mean square error between the points, large over small rate",
        rules.LARGE, rules.SMALL, "test/rmse", "the error between the points",
    ),
    Claim(
        key="relu-flat",
        text="The reason is stability: at the large rate SGD can only stay where the top eigenvalue of the Hessian is below 2 /"
        " lr, and what the small rate finds is not such a place.",
        rule="Reproduced if the 95 % interval of (large lr / 2 * top eigenvalue at the end) lies below 1 for the large rate and"
        " above 1 for the small one; not reproduced if one lies on the other side; else inconclusive.",
        effect_name="top eigenvalue over 2 / lr at the end of the large rate",
        unit="x",
        measure=rules.large_rate_is_flat,
    ),
    Claim(
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
        "Explicit decay does it at the small rate.",
        "total variation of the slope with decay over without, small rate",
        rules.DECAYED, rules.SMALL, "variation", "the total variation of the slope",
    ),
)  # fmt: skip

_RATE_RULE = (
    f"The angle is fitted as (log(lr t / n))^-p over the last {rules.DECADES} decades of steps. Reproduced if the 90 % interval"
    f" of p lies within 1 +- {rules.RATE_MARGIN:g}; not reproduced if it lies wholly outside; else inconclusive."
)

SEPARABLE_CLAIMS = (
    Claim(
        key="svm-rate",
        text="On separable data gradient descent without decay tends to the hard-margin direction, and the angle that is left"
        " falls as 1 / log t (planted support vectors).",
        rule=_RATE_RULE,
        effect_name="exponent p, planted support vectors",
        unit="",
        measure=functools.partial(rules.rate_is_logarithmic, key=rules.PLANTED),
    ),
    Claim(
        key="svm-norm",
        text="The norm grows as log t over the margin, and the loss falls as 1 / t.",
        rule=f"Over the last {rules.DECADES} decades of steps, planted support vectors: reproduced if the 90 % intervals of the"
        f" slope of norm * margin against log t and of the exponent of the loss lie within 1 +- {rules.SLOPE_MARGIN:g}; not"
        " reproduced if one lies wholly outside; else inconclusive.",
        effect_name="slope of norm * margin against log t",
        unit="",
        measure=rules.norm_and_loss,
    ),
    Claim(
        key="svm-theory",
        text="Check: w is u log t + a rest that the dual solution gives.",
        rule="Reproduced if at the end the 90 % intervals of angle and norm over those of the asymptote lie within"
        f" {rules.THEORY_MARGIN:.0%} of 1; not reproduced if one lies wholly outside; else inconclusive.",
        effect_name="angle over that of the asymptote",
        unit="x",
        measure=rules.theory_holds,
    ),
    Claim(
        key="svm-random",
        text="On random points, too, the angle falls.",
        rule=f"Reproduced if the 95 % interval of the angle at the end over that after {rules.EARLY} steps lies below 1; not"
        f" reproduced if it excludes a reduction by {rules.SMALLEST_SHARE:.0%}; else inconclusive.",
        effect_name=f"angle at the end over that after {rules.EARLY} steps",
        unit="x",
        measure=rules.random_direction,
    ),
    Claim(
        key="svm-random-rate",
        text="And as 1 / log t within the steps that one can do.",
        rule=_RATE_RULE,
        effect_name="exponent p, random points",
        unit="",
        measure=functools.partial(rules.rate_is_logarithmic, key=rules.RANDOM),
    ),
    Claim(
        key="svm-minimum",
        text="Check: with lam > 0 it ends at the minimum of loss + lam/2 ||w||^2, as another solver finds it.",
        rule="Reproduced if at every lam the 95 % interval, over seeds and in logarithms, of the largest relative distance of"
        f" any data set lies below {rules.REACHED:g}; not reproduced if one lies above; else inconclusive.",
        effect_name="decimal logarithm of the largest relative distance to the minimum",
        unit="",
        measure=rules.minimum_is_reached,
    ),
    Claim(
        key="svm-path",
        text="As lam goes to 0, that minimum turns to the hard-margin direction.",
        rule=f"Random points, lam {', '.join(f'{lam:g}' for lam in rules.RANDOM_LAMS)}: reproduced if the 95 % interval of the"
        " ratio of angles lies below 1 from each lam to the next smaller; not reproduced if one lies above; else inconclusive.",
        effect_name="angle with the smallest over that with the largest lam",
        unit="x",
        measure=rules.decay_tends_to_the_margin,
    ),
    Claim(
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
