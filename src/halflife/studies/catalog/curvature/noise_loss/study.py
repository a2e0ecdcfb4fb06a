"""Gradient noise against the loss: proportional to it, or to its square?

Proposition 2 (3 of the first version) says that with ||w|| in [a, b] and Jacobian norms in [m, M] the noise of SGD obeys
E ||g_noise||^2 <= M^2 L, because l'^2 <= l for the cross-entropy; a lower bound c m^2 L is only argued. So decay, which keeps L
from vanishing, would keep the noise alive. But l'^2 / l is no constant: with the margin z it is 0.36, 0.11, 0.018 and 0.0003 at
z = 0, 2, 4 and 8, while l'^2 / l^2 tends to 1. Once all examples are fitted the noise must fall as the *square* of the loss.
With K classes ||p - y||^2 <= 2 (1 - p_y)^2 <= 0.82 l says the same.

The paper's bounds hold m and M fixed, and Jacobian norms change along a run, so everything is looked at with and without a
division by the measured ||J||^2, the mean over examples: it is below M^2, so that noise <= ||J||^2 L is more than the bound
asks for.

Explored on seed 1000, before the rules: 1,000 images at 7 x 7 for 40 epochs (too slow: loss 0.4), then 500 images at 14 x 14
for 200 epochs at lam 0 and 0.02, probed every fifth. ||J||^2 grew 50-fold, the noise over ||J||^2 L was near 0.03 down to a
loss of 0.2, and noise over ||J||^2 L^2 near 0.28 from a loss of 0.05 to 0.0014; with decay the loss went up and down between
0.14 and 1 and the noise over ||J||^2 L stayed near 0.1.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from halflife.studies.catalog.curvature.noise_loss import quantities as rules
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.evidence.panels import Panel, PointRow, PointsPanel
from halflife.studies.evidence.results import Results
from halflife.studies.specs.images import ImageRun

__all__ = ["NOISE_LOSS", "margin_rows", "noise_rows", "per_loss_rows"]

EARLY_WORDS = f"between {rules.EARLY[0]:g} and {rules.EARLY[1]:g} nats"
LATE_WORDS = f"below {rules.INTERPOLATING[1]:g} nats"
FEW = (
    f" Inconclusive, too, with fewer than {rules.MIN_POINTS} readings of a seed in the range, or if they span less than a"
    f" factor of {rules.MIN_SPAN:g} of the loss."
)


def _slope_claim(key: str, text: str, loss_range: tuple[float, float], value: float, per_jacobian: bool) -> WordedClaim:
    words = EARLY_WORDS if loss_range == rules.EARLY else LATE_WORDS
    return WordedClaim(
        key=key,
        text=text,
        rule=f"Slope of log noise{' over ||J||^2' if per_jacobian else ''} in log loss without decay, over readings with a loss"
        f" {words}, one a seed: reproduced if the 90 % interval lies within {rules.SLOPE_MARGIN:g} of {value:g}; not"
        f" reproduced if wholly outside; else inconclusive.{FEW}",
        effect_name="slope",
        unit="",
        measure=functools.partial(rules.slope_is, loss_range=loss_range, value=value, per_jacobian=per_jacobian),
    )


def _constant_claim(key: str, text: str, arm: str, stays: bool) -> WordedClaim:
    side, other = ("above", "below") if stays else ("below", "above")
    return WordedClaim(
        key=key,
        text=text,
        rule="Noise over ||J||^2 L, geometric mean over the last quarter of the run, over the same at losses"
        f" {EARLY_WORDS} without decay: reproduced if the 95 % interval lies {side} 1/3; not reproduced if {other}; else"
        " inconclusive.",
        effect_name="noise per ||J||^2 and loss, late over early",
        unit="x",
        measure=functools.partial(rules.constant, key=arm, stays=stays),
    )


CLAIMS = (
    WordedClaim(
        key="bound",
        text="The noise is at most M^2 L, M the largest Jacobian norm.",
        rule="Reproduced if the 95 % interval of the largest noise over ||J||^2 L of any reading, with and without decay, lies"
        " below 1, which is more than the bound asks for; else inconclusive.",
        effect_name="largest noise over ||J||^2 L",
        unit="x",
        measure=rules.bound_holds,
    ),
    _slope_claim(
        "early", "While the loss is large the noise is proportional to it along a run.", rules.EARLY, 1.0, False
    ),
    _slope_claim(
        "early-per-jacobian",
        "While the loss is large the noise over ||J||^2 is proportional to it along a run, Jacobian changes taken out.",
        rules.EARLY,
        1.0,
        True,
    ),
    _slope_claim(
        "late-one",
        "The noise is proportional to the loss also where the images are interpolated.",
        rules.INTERPOLATING,
        1.0,
        False,
    ),
    _slope_claim(
        "late-two",
        "Where the images are interpolated the noise falls as the square of the loss (not in the paper: the bound's constant"
        " vanishes there).",
        rules.INTERPOLATING,
        2.0,
        False,
    ),
    _slope_claim(
        "late-two-per-jacobian",
        "Where the images are interpolated the noise over ||J||^2 falls as the square of the loss.",
        rules.INTERPOLATING,
        2.0,
        True,
    ),
    _constant_claim(
        "constant-decay",
        "With decay the loss stays bounded below, and the noise stays of the order of the loss: the argued lower bound holds.",
        rules.DECAY,
        True,
    ),
    _constant_claim(
        "constant-none",
        "Without decay the constant of the lower bound vanishes at interpolation (not in the paper).",
        rules.NONE,
        False,
    ),
)


def _label(results: Results, key: str) -> str:
    return next(str(arm["label"]) for arm in results.arms if arm["key"] == key and arm["size"] == results.main_size)


def noise_rows(results: Results, *, per_jacobian: bool) -> list[PointRow]:
    """Noise against the loss, every reading of every seed, with lines of slope 1 and 2 through one point."""
    rows, places = [], []
    for key in (rules.NONE, rules.DECAY):
        for run in rules.noise_of(results, key, results.main_size):
            noise_P = run.noise_P / run.jacobian_sq_P if per_jacobian else run.noise_P
            points = list(zip(run.loss_P.tolist(), noise_P.tolist(), strict=True))
            rows += [PointRow(_label(results, key), x, y) for x, y in points]
            if key == rules.NONE:
                places += points
    ends = (min(x for x, _ in places), max(x for x, _ in places))
    middle = float(np.exp(np.mean(np.log(ends))))
    height = float(np.exp(np.median([np.log(y) for x, y in places if middle / 2 < x < middle * 2] or [0.0])))
    for slope in (1, 2):
        rows += [PointRow(f"slope {slope}", x, height * (x / middle) ** slope, style="line") for x in ends]
    return rows


def per_loss_rows(results: Results) -> list[PointRow]:
    """Noise over ||J||^2 L along the runs, geometric means over seeds, and the range over seeds."""
    rows = []
    for key in (rules.NONE, rules.DECAY):
        runs = rules.noise_of(results, key, results.main_size)
        values_SP = np.array([run.per_loss_P for run in runs])
        for epoch, value_S in zip(runs[0].epoch_P.tolist(), values_SP.T, strict=True):
            mean = float(np.exp(np.log(value_S).mean()))
            rows.append(PointRow(_label(results, key), epoch, mean, float(value_S.min()), float(value_S.max())))
            rows.append(PointRow(_label(results, key), epoch, mean, style="line"))
    return rows


def margin_rows(_results: Results) -> list[PointRow]:
    """l'^2 / l and l'^2 / l^2 of l = log(1 + exp(-z)) against the margin z: a formula, nothing measured."""
    rows = []
    for z in np.linspace(-4, 10, 57).tolist():
        loss, slope = float(np.log1p(np.exp(-z))), float(1 / (1 + np.exp(z)))
        rows.append(PointRow("l'^2 / l", z, slope**2 / loss, style="line"))
        rows.append(PointRow("l'^2 / l^2", z, slope**2 / loss**2, style="line"))
    return rows


PANELS = (
    PointsPanel(
        slug="noise",
        title="Gradient noise against the loss",
        x_label="loss of the probed images",
        y_label="trace of the covariance of gradients",
        rows=functools.partial(noise_rows, per_jacobian=False),
        log_x=True,
        log_y=True,
        note="Every reading of every seed. Lines: slopes 1 (the proposition) and 2, through the middle of the points without"
        " decay.",
    ),
    PointsPanel(
        slug="noise-per-jacobian",
        title="Gradient noise over the squared Jacobian norm against the loss",
        x_label="loss of the probed images",
        y_label="trace of the covariance of gradients over ||J||^2",
        rows=functools.partial(noise_rows, per_jacobian=True),
        log_x=True,
        log_y=True,
        note="Every reading of every seed, without what the changes of the Jacobian along a run add.",
    ),
    PointsPanel(
        slug="per-loss",
        title="The constant between noise and loss along the run",
        x_label="epoch",
        y_label="noise over ||J||^2 L",
        rows=per_loss_rows,
        log_y=True,
        note="Geometric means and ranges over seeds. The proposition has it between two constants.",
    ),
    PointsPanel(
        slug="margin",
        title="Why: the squared slope of the cross-entropy over the loss and over its square",
        x_label="margin z",
        y_label="ratio",
        rows=margin_rows,
        log_y=True,
        note="l(z) = log(1 + exp(-z)), a formula. The first ratio vanishes for fitted examples, the second tends to 1.",
    ),
    Panel(
        metric="train/running_loss",
        title="Training loss",
        y_label="training cross-entropy",
        log=True,
    ),
)


def _spec(fields: dict[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(common: dict[str, Any], widths: tuple[int, ...], *, lam: float) -> tuple[Arm, ...]:
    fields = {"probes": ("gradient-noise", "jacobian-norm"), "drop_at": 1.0, "ema": (), **common}
    return tuple(
        Arm(
            key=key,
            label=f"lam {value:g}",
            size=width,
            spec=_spec({**fields, "lam": value, "width": width}, 0),
        )
        for width in widths
        for key, value in ((rules.NONE, 0.0), (rules.DECAY, lam))
    )


SMALL = {
    "lr": 0.1, "num_train": 500, "num_test": 500, "batch_size": 50, "num_epochs": 120, "probe_every": 3,
    "probe_examples": 200, "eval_every": 60,
}  # fmt: skip
LAM = 0.02

PRESETS = {
    "smoke": Preset(
        description="60 images at 7 x 7, 6 epochs: shows that everything works, not what is true",
        budget="20 seconds",
        arms=_arms(
            SMALL
            | {"num_train": 60, "num_test": 60, "batch_size": 20, "num_epochs": 6, "probe_every": 2, "downsample": 4}
            | {"probe_examples": 20, "eval_every": 6},
            (4,),
            lam=LAM,
        ),
        num_seeds=2,
        main_size=4,
        decides=False,
    ),
    "laptop": Preset(
        description="ResNets of width 8 on 500 Fashion-MNIST images at 14 x 14, 1,200 steps, 40 probes of 200 images",
        budget="10 minutes on 2 cores",
        arms=_arms(SMALL, (8,), lam=LAM),
        num_seeds=5,
        main_size=8,
    ),
    "night": Preset(
        description="as laptop, with 2,000 images, more seeds, and widths 4, 8 and 16",
        budget="90 minutes on 2 cores",
        arms=_arms(SMALL | {"num_train": 2000, "num_epochs": 100, "probe_every": 4}, (4, 8, 16), lam=LAM),
        num_seeds=8,
        main_size=8,
        num_ladder_seeds=3,
    ),
    "paper": Preset(
        description="ResNet-18 on CIFAR-10, 200 epochs at a constant rate, 50 probes of 500 images",
        budget="a day on one GPU",
        arms=_arms(
            {
                "data": "cifar10", "downsample": 1, "model": "resnet", "blocks": (2, 2, 2, 2), "lr": 0.08,
                "num_epochs": 200, "probe_every": 4, "probe_examples": 500, "eval_every": 50,
            },
            (64,),
            lam=0.0125,
        ),
        num_seeds=3,
        main_size=64,
        needs="CIFAR-10's binary version (--data DIR) and a GPU",
    ),
}  # fmt: skip

NOISE_LOSS = Study(
    name="noise-loss",
    title="Gradient noise and the loss",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), proposition 2 (proposition 3 of the first version)",
    claim="The noise of SGD is of the order of the training loss, so that decay, which keeps the loss from vanishing, keeps the"
    " noise alive.",
    claims=CLAIMS,
    panels=PANELS,
    presets=PRESETS,
    size_name="width",
    doc_panels=("noise-per-jacobian", "per-loss"),
)
