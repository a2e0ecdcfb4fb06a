"""What was changed of decision rules when runs existed already: each change makes a claim harder to reproduce, never easier.

docs/studies.md has the same as a table, with what each change did to the verdicts. Besides, every interval over validation
losses counts 64 blocks since, where it counted 256.
"""

from __future__ import annotations

import dataclasses

from halflife.studies.evidence.claims import Study

__all__ = ["AMENDMENTS", "with_amendments"]

GRID = (
    "the claim is not tested if the side without decay has fewer than three learning rates, or takes one at an edge of them"
    " for some seed; before, nobody looked."
)
SLOPE = (
    "the slope is that among runs with the same lam; before, one slope for all runs took up a part of what a lam adds."
)
STAKE = "decay must change the loss by more than the margin, else two things that equal no decay would count as equal."
PAIRS = (
    "the distance between seeds is the geometric mean over pairs of seeds, with its spread by the jackknife, and a claim needs"
    " three seeds; before, each pair counted as two independent ones."
)
STAKE_OF = "{}; before, nothing was at stake."
EVERY_ARM = "its premises must hold in every arm, as its words said; before, an arm in which they hold could decide."
LOG_SCALE = "the mean and its interval are those of logarithms, as for other positive quantities."
READINGS = (
    "the reading where the risk over the bound is largest is chosen among all, and its interval counts the choice; before, each"
    " reading had an interval of its own, so that one of many could lie above the bound by chance."
)
VERTEX = "a best lam must lie between the outer two of the three lams of its parabola; before, anywhere in the grid."

RANKS = (
    "the rank correlation must lie above {}; before, above 0, which one by chance does in every seed at once, because the"
    " settings are the same in all of them."
)

GAIN = "decay must lower the error {}; before, nobody looked."

UNEXPLAINED = (
    "the share that lr and lam together leave unexplained must lie below a half on a logarithmic scale; before, the share that"
    " they explain above a half, with intervals that reached above 1."
)
EACH_PRODUCT = (
    "it must hold at each product whose time scale is at most half of the phase before the drop; before, for the mean of the"
    " two largest products."
)

AMENDMENTS = {
    ("augmentation", "shrinks"): GAIN.format("without augmentation"),
    ("averaging", "average-trace"): STAKE_OF.format("the trace of the fine-tuned weights must rank the learning rates"),
    ("averaging", "ensemble"): STAKE_OF.format("averaging must change the test error by more than the margin"),
    ("curvature-alignment", "rest-orthogonal"): STAKE_OF.format("the rest must be more of the Hessian than the margin"),
    ("curvature-alignment", "spectra"): LOG_SCALE,
    **{
        ("stationary-mean", f"{claim}{group}"): EVERY_ARM
        for claim in ("form", "prefactor", "as-written", "quarter", "regularizer", "weights")
        for group in ("", "-net")
    },
    ("lm-schedules", "best"): GRID,
    ("lm-schedules", "early-branch-moderate"): STAKE,
    ("lm-schedules", "early-branch-large"): STAKE,
    ("lm-generalization", "same-curve-moderate"): f"{SLOPE} At a constant rate {STAKE}",
    ("lm-generalization", "same-curve-large"): f"{SLOPE} At a constant rate {STAKE}",
    ("lm-generalization", "slope"): f"{SLOPE} Its interval is over seeds and blocks; before, over seeds alone.",
    ("lm-generalization", "training-loss"): GRID,
    ("lm-ablations", "gains-moderate"): STAKE,
    ("lm-ablations", "l2-inside"): GRID,
    ("lm-ablations", "l2-outside"): GRID,
    ("lm-ablations", "l2-inside-as-good"): STAKE,
    ("lm-ablations", "l2-outside-as-good"): STAKE,
    ("lm-ablations", "sgd"): f"{GRID} A third learning rate, 3, was added with that rule.",
    **{
        ("lm-effective-lr", f"follows-{match}-{case}"): PAIRS
        for match in ("global", "per-tensor")
        for case in ("moderate", "strong")
    },
    ("bias-variance", "bound"): READINGS,
    ("bias-variance", "bound-sampled"): READINGS,
    ("bias-variance", "early-bias"): STAKE,
    (
        "lm-dropout",
        "decay",
    ): "the best dropout without decay must not be the largest of its grid; before, nobody looked.",
    (
        "lm-dropout",
        "dropout",
    ): "the best lam without dropout must not be at an edge of its grid; before, nobody looked.",
    ("lm-dropout", "overlap"): "decay must gain something without dropout; before, nobody looked.",
    ("lm-dropout", "smaller-lam"): VERTEX,
    ("lm-dropout", "one-pass-gain"): STAKE,
    ("dataset-size", "interpolates"): GAIN.format("where examples are few"),
    ("dataset-size", "shrinks"): GAIN.format("where examples are few"),
    **{
        (f"eta-lambda{net}", f"collapse-{kind}"): UNEXPLAINED
        for net in ("", "-vgg")
        for kind in ("error", "loss", "noise", "jacobian")
    },
    ("eta-lambda", "unforgotten"): "the ratio of both spreads on a logarithmic scale; before, their difference.",
    (
        "no-normalization",
        "tuned",
    ): "the claim is not tested with fewer than three learning rates without decay; before, nobody looked.",
    ("transformer-curvature", "early"): GRID,
    **{
        (f"stabilization{net}", "same-norm"): STAKE_OF.format(
            "without decay the norms at both rates must differ by more than the factor"
        )
        for net in ("", "-vgg")
    },
    ("no-normalization", "small-rate"): GAIN.format("at the large rate, in both nets"),
    ("no-normalization", "product"): EACH_PRODUCT,
    **{
        ("no-normalization", f"{measure}-{where}"): RANKS.format(0.5)
        for measure in ("hessian", "jacobian")
        for where in ("average", "end")
    },
    **{("transformer-curvature", f"{measure}-ranks"): RANKS.format(0.8) for measure in ("hessian", "jacobian")},
    **{
        (
            "stable-decay",
            key,
        ): "measured in the VGG, with five seeds; before, in the mean of both nets, with three, which did not test it."
        for key in ("beats-family", "adais")
    },
    **{("timescale", key): VERTEX for key in ("batch", "tokens", "tokens-constant", "text", "width", "width-power")},
}


def with_amendments(study: Study) -> Study:
    """The study with what was changed of its rules.

    Args:
        study: A study whose claims say nothing of it.

    Returns:
        The same, each claim with its amendment.
    """
    claims = tuple(dataclasses.replace(c, amended=AMENDMENTS.get((study.name, c.key), "")) for c in study.claims)
    return dataclasses.replace(study, claims=claims)
