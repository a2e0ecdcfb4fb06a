"""Decay at a constant learning rate is no decay at one that grows: exactly, where the loss does not see the weights' scale.

Source: Li and Arora, "An Exponential Learning Rate Schedule for Deep Learning" (ICLR 2020, arXiv 1910.07454), theorem 2.12;
the learning rate and the start are in `halflife.studies.specs.exponential`.

An identity holds to rounding or it does not. But training multiplies differences. On seeds 1000 to 1004, with the laptop
preset's settings or near them, the angle between the twins in float64 was 1e-13 after 160 steps, doubled about every 60 to
120 steps from there (every 35 at four times the effective learning rate), and was 1e-12 to 1e-10 after 600, while that of
the controls was 0.02 to 0.1 after 160 steps and 0.16 or more at the end. In float32 the matched twins are 0.001 apart after
40 steps and 0.16 at the end: rounding alone makes another run of it. Hence float64, 600 steps, and bounds in the wide gap
between. The rules were written before any run of the presets' seeds.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.claims import Arm, Claim, Panel, PointRow, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.tests import above, below
from halflife.studies.specs.exponential import ExponentialRun

__all__ = ["EXPONENTIAL_LR"]

SAME = 1e-6  # radians, nats, and relative difference of norms: what differences of rounding may have grown to
OTHER = 1e-2  # radians: another direction for every purpose

MATCHED, UNMATCHED, CONSTANT, NORMALIZED, SINGLE = "matched", "unmatched", "constant", "resnet", "float32"
LABELS = {
    MATCHED: "growing rate, matched",
    UNMATCHED: "growing rate, not matched",
    CONSTANT: "constant rate, no decay",
    NORMALIZED: "matched, usual ResNet",
    SINGLE: "matched, float32",
}
CHANGES: Mapping[str, Mapping[str, Any]] = {
    MATCHED: {},
    UNMATCHED: {"twin": "unmatched"},
    CONSTANT: {"twin": "constant"},
    NORMALIZED: {"model": "resnet"},
    SINGLE: {"dtype": "float32"},
}


def _log10(name: str, arm: str, reading: str) -> Quantity:
    """The largest of a run's readings, in decimal logarithms; rounding errors of 0 have none."""
    return Quantity(name=f"log10 of the {name}", values=functools.partial(_log10_of, arm=arm, reading=reading))


def _log10_of(results: Results, size: int, *, arm: str, reading: str) -> NDArray[np.float64]:
    return np.log10(np.maximum(results.read(arm, reading, size), 1e-17))


def _angle(arm: str) -> Quantity:
    return _log10(f"largest angle between the twins (rad), {LABELS[arm]}", arm, "largest_angle")


OTHER_10 = above(float(np.log10(OTHER)))
# Between the two bounds a difference is neither what rounding grows to nor another direction.
SAME_10 = dataclasses.replace(below(float(np.log10(SAME))), words_if_fails=OTHER_10.words, fails=OTHER_10.holds)

EQUAL = Rule(
    parts=(
        (_angle(MATCHED), SAME_10),
        (_log10("largest relative error of the norms' ratio against a^-t", MATCHED, "largest_norm_error"), SAME_10),
        (_log10("largest difference of the twins' losses (nats)", MATCHED, "largest_loss_difference"), SAME_10),
    ),
    stake=((_angle(CONSTANT), OTHER_10),),
)


def _needed(key: str, text: str, arm: str) -> Claim:
    return Claim(key=key, text=text, rule=Rule(parts=((_angle(arm), OTHER_10),)))


CLAIMS = (
    Claim(
        key="equal",
        text="For a scale-invariant net SGD with momentum and an L2 penalty at a constant learning rate is, step by step, SGD"
        " with the same momentum, no decay, and a learning rate that grows exponentially.",
        rule=EQUAL,
    ),
    _needed(
        "needs-growth",
        "A run without decay whose learning rate does not grow is another run than that with decay.",
        CONSTANT,
    ),
    _needed(
        "needs-unmatched",
        "The twin without decay has to start with the matching momentum: with one that starts at 0 it is another run.",
        UNMATCHED,
    ),
    _needed(
        "needs-resnet",
        "For a ResNet with trained gains and a trained last layer decay is not an exponentially growing learning rate.",
        NORMALIZED,
    ),
)


def norm_rows(results: Results) -> list[PointRow]:
    """Norms of the run and its twin, and what the theorem says of the second, in the first seed."""
    size, rows = results.main_size, []
    (steps, run), (_, twin), (_, ratio) = (
        results.series_by_step(MATCHED, name, size)[0]
        for name in ("weight_norm", "twin/weight_norm", "predicted_norm_ratio")
    )
    apart = max(1, len(steps) // 12)
    for series, places, values, style in (
        ("with decay", steps, run, "line"),
        ("twin, predicted", steps, ratio * run, "line"),
        ("twin", steps[::apart], twin[::apart], "point"),
    ):
        rows += [
            PointRow(series=series, x=float(x), y=float(y), style="line" if style == "line" else "point")
            for x, y in zip(places, values, strict=True)
        ]
    return rows


def loss_rows(results: Results) -> list[PointRow]:
    """Training losses of the run and of its twins in the first seed."""
    rows = []
    for key, name, series in (
        (MATCHED, "loss", "with decay"),
        (CONSTANT, "twin/loss", LABELS[CONSTANT]),
        (UNMATCHED, "twin/loss", LABELS[UNMATCHED]),
    ):
        steps, losses = results.series_by_step(key, name, results.main_size)[0]
        rows += [PointRow(series=series, x=x, y=y, style="line") for x, y in zip(steps, losses, strict=True)]
    steps, losses = results.series_by_step(MATCHED, "twin/loss", results.main_size)[0]
    rows += [PointRow(series=LABELS[MATCHED], x=x, y=y) for x, y in zip(steps, losses, strict=True)]
    return rows


def _arms(common: Mapping[str, Any], widths: tuple[int, ...]) -> tuple[Arm, ...]:
    return tuple(
        Arm(key=key, label=LABELS[key], size=width, spec=ExponentialRun(**{**common, **change, "width": width}))
        for width in widths
        for key, change in CHANGES.items()
    )


# lr lam / (1 - mu) = 2.5e-3, so that the rate grows 20-fold, and the norm of the twin 4.5-fold beyond that of the run.
_LAPTOP = {"lr": 0.005, "lam": 0.05, "num_steps": 600, "num_train": 2_000, "eval_every": 40}

EXPONENTIAL_LR = Study(
    name="exponential-lr",
    title="Decay as an exponentially growing learning rate",
    source='Li and Arora, "An Exponential Learning Rate Schedule for Deep Learning" (arXiv 1910.07454), theorem 2.12',
    claim="For a scale-invariant net a constant learning rate with an L2 penalty and an exponentially growing one without are"
    " the same run, up to the weights' scale.",
    claims=CLAIMS,
    panels=(
        Panel(
            metric="angle",
            title="Angle between the twins",
            y_label="angle of all trained weights (rad)",
            log=True,
            x="step",
            note=f"Each line is a run with decay beside a twin without. Rounding errors grow along a run; {SAME:g} is the"
            f" bound for equal, {OTHER:g} for different.",
        ),
        PointsPanel(
            slug="norms",
            title="Norms of the twins",
            x_label="step",
            y_label="norm of the trained weights",
            rows=norm_rows,
            log_y=True,
            note="The first seed. Predicted: a^-t times the norm with decay.",
        ),
        PointsPanel(
            slug="losses",
            title="Training losses of the twins",
            x_label="step",
            y_label="training cross-entropy",
            rows=loss_rows,
            note="The first seed, means between readings. The points of the matched twin lie on the line of the run with"
            " decay.",
        ),
    ),
    presets=presets(
        smoke=Preset(
            description="12 steps",
            budget="20 seconds",
            arms=_arms({**_LAPTOP, "num_steps": 12, "num_train": 200, "num_test": 100, "eval_every": 4}, (4,)),
        ),
        laptop=Preset(
            description="ResNets of width 4, 600 steps on 2,000 Fashion-MNIST images at 7 x 7",
            budget="5 minutes on 2 cores",
            arms=_arms({**_LAPTOP, "num_test": 2_000}, (4,)),
        ),
        night=Preset(
            description="as laptop, at 14 x 14, with more seeds, and a ladder of widths 4, 8, 16",
            budget="60 minutes on 2 cores",
            arms=_arms({**_LAPTOP, "downsample": 2, "num_test": 4_000}, (4, 8, 16)),
            num_seeds=10,
            main_size=8,
        ),
        paper=Preset(
            description="ResNet-18 on CIFAR-10 in float64, 4,000 steps of batch 128, learning rate 0.1, momentum 0.9, lam 5e-4",
            budget="hours on one GPU",
            arms=_arms(
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "lr": 0.1,
                    "lam": 5e-4,
                    "num_steps": 4_000,
                    "batch_size": 128,
                    "eval_every": 100,
                },
                (64,),
            ),
            num_seeds=3,
            needs="CIFAR-10's binary version (--data DIR) and a GPU with float64",
        ),
    ),
    size_name="width",
)
