"""Gradient noise against the loss: proportional to it, or to its square?

Proposition 2 (3 of the first version) says that with ||w|| in [a, b] and Jacobian norms in [m, M] the noise of SGD obeys
E ||g_noise||^2 <= M^2 L, because l'^2 <= l for the cross-entropy; a lower bound c m^2 L is only argued. So decay, which keeps L
from vanishing, would keep the noise alive. But l'^2 / l is no constant: with the margin z it is 0.36, 0.11, 0.018 and 0.0003 at
z = 0, 2, 4 and 8, while l'^2 / l^2 tends to 1. Once all examples are fitted the noise must fall as the *square* of the loss.
With K classes ||p - y||^2 <= 2 (1 - p_y)^2 <= 0.82 l says the same.

The paper's bounds hold m and M fixed, and Jacobian norms change along a run, so everything is looked at with and without a
division by the measured ||J||^2, the mean over examples: it is below M^2, so that noise <= ||J||^2 L is more than the bound
asks for.

Noise here is the trace of the covariance of the examples' gradients, E ||g_i - g||^2 over the probed images; ||J||^2 the mean
of the squared Frobenius norms of their Jacobians; L their mean loss. Each seed has a slope of its own.

Explored on seed 1000, before the rules: 1,000 images at 7 x 7 for 40 epochs (too slow: loss 0.4), then 500 images at 14 x 14
for 200 epochs at lam 0 and 0.02, probed every fifth. ||J||^2 grew 50-fold, the noise over ||J||^2 L was near 0.03 down to a
loss of 0.2, and noise over ||J||^2 L^2 near 0.28 from a loss of 0.05 to 0.0014; with decay the loss went up and down between
0.14 and 1 and the noise over ||J||^2 L stayed near 0.1. The laptop preset's number of seeds was raised from three to five
after verdicts on three had been seen.

Shapes: S seeds, P readings of one run.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import CIFAR, CIFAR_NEEDS
from halflife.studies.evidence.claims import Arm, Claim, Panel, PointRow, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.fits import fit_lines
from halflife.studies.evidence.quantities import NotMeasuredError, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise
from halflife.studies.evidence.tests import above, below, within
from halflife.studies.specs.images import ImageRun

__all__ = ["DECAY", "NOISE_LOSS", "NONE", "Noise", "noise_of"]

NONE, DECAY = "none", "decay"
SLOPE_MARGIN = 0.3
MIN_POINTS, MIN_SPAN = 4, 2.0  # readings within a range of the loss, and its largest over its smallest there
CONSTANT = 1 / 3  # of its value early: a constant that falls below is none


@dataclass(frozen=True)
class Losses:
    """A range of the loss, in nats, and its name."""

    low: float
    high: float
    words: str


EARLY = Losses(0.3, 1.5, "losses between 0.3 and 1.5 nats")  # most images are not fitted yet
INTERPOLATING = Losses(0.0, 0.05, "losses below 0.05 nats")  # practically all are


@dataclass(frozen=True)
class Noise:
    """The readings of one run: epochs, L, the trace of the covariance, and ||J||^2."""

    epoch_P: NDArray[np.float64]
    loss_P: NDArray[np.float64]
    noise_P: NDArray[np.float64]
    jacobian_sq_P: NDArray[np.float64]

    @property
    def per_jacobian_P(self) -> NDArray[np.float64]:
        """Noise over ||J||^2."""
        return np.asarray(self.noise_P / self.jacobian_sq_P)

    @property
    def per_loss_P(self) -> NDArray[np.float64]:
        """Noise over ||J||^2 L: what the proposition bounds from both sides."""
        return np.asarray(self.per_jacobian_P / self.loss_P)

    def within(self, losses: Losses) -> NDArray[np.bool_]:
        """Which readings have a loss in a range."""
        return (self.loss_P > losses.low) & (self.loss_P < losses.high)


def noise_of(results: Results, key: str, size: int) -> list[Noise]:
    """The readings of an arm, one `Noise` a seed."""
    names = ("probe_loss", "gradient_noise_trace", "jacobian_norm")
    loss, noise, jacobian = (results.series(key, name, size) for name in names)
    return [
        Noise(epoch_P, loss_P, noise_P, jacobian_P**2)
        for (epoch_P, loss_P), (_, noise_P), (_, jacobian_P) in zip(loss, noise, jacobian, strict=True)
    ]


def too_few(results: Results, size: int, *, losses: Losses) -> str:
    """Why the runs without decay have no slope over a range of the loss (empty: they have)."""
    for run in noise_of(results, NONE, size):
        found = run.loss_P[run.within(losses)]
        if len(found) < MIN_POINTS or found.max() < MIN_SPAN * found.min():
            span = f" that span a factor of {found.max() / found.min():.2f}" if len(found) else ""
            return f"a seed has {len(found)} readings{span} at {losses.words}"
    return ""


def enough(losses: Losses) -> Premise:
    """The premise that a range of the loss has readings."""
    return Premise(
        f"each seed without decay has at least {MIN_POINTS} readings at {losses.words} that span a factor of {MIN_SPAN:g}",
        functools.partial(too_few, losses=losses),
    )


def _early_or_late(results: Results, size: int, losses: Losses) -> list[Noise]:
    if problem := too_few(results, size, losses=losses):
        raise NotMeasuredError(problem)
    return noise_of(results, NONE, size)


def slopes(results: Results, size: int, *, losses: Losses, per_jacobian: bool) -> NDArray[np.float64]:
    """Slopes of log noise in log loss without decay over a range of the loss, (S,)."""
    x, y = [], []
    for run in _early_or_late(results, size, losses):
        inside = run.within(losses)
        x.append(np.log(run.loss_P[inside]))
        y.append(np.log((run.per_jacobian_P if per_jacobian else run.noise_P)[inside]))
    return fit_lines(x, y).slopes_S


def largest_per_loss(results: Results, size: int) -> NDArray[np.float64]:
    """The largest noise over ||J||^2 L of any reading, with or without decay, (S,)."""
    each = [[run.per_loss_P.max() for run in noise_of(results, key, size)] for key in (NONE, DECAY)]
    return np.asarray(np.max(each, axis=0))


def late_over_early(results: Results, size: int, *, arm: str) -> NDArray[np.float64]:
    """Noise over ||J||^2 L, geometric mean over the last quarter of an arm's runs over that early without decay, (S,)."""
    before_S = [np.log(run.per_loss_P[run.within(EARLY)]).mean() for run in _early_or_late(results, size, EARLY)]
    after_S = [
        np.log(run.per_loss_P[run.epoch_P > 0.75 * run.epoch_P.max()]).mean() for run in noise_of(results, arm, size)
    ]
    return np.asarray(np.exp(np.subtract(after_S, before_S)))


LARGEST = Quantity(
    name="largest noise over ||J||^2 L of any reading, with and without decay",
    values=largest_per_loss,
    unit="x",
    log=True,
)
# ||J||^2 is a mean over examples and M^2 the largest of them: a ratio above 1 would not contradict the bound.
BELOW_ONE = dataclasses.replace(below(1), words_if_fails="", fails=())


def _slope_claim(key: str, text: str, losses: Losses, value: float, *, per_jacobian: bool = False) -> Claim:
    over = " over ||J||^2" if per_jacobian else ""
    slope = Quantity(
        name=f"slope of log noise{over} in log loss, without decay, at {losses.words}",
        values=functools.partial(slopes, losses=losses, per_jacobian=per_jacobian),
    )
    return Claim(
        key=key,
        text=text,
        rule=Rule(parts=((slope, within(SLOPE_MARGIN, around=value)),), given=(enough(losses),)),
    )


def _constant(arm: str, said: str) -> Quantity:
    return Quantity(
        name=f"noise over ||J||^2 L, geometric mean over the last quarter of the run {said}, over that at {EARLY.words} without"
        " decay",
        values=functools.partial(late_over_early, arm=arm),
        unit="x",
        log=True,
    )


CLAIMS = (
    Claim(
        key="bound",
        text="The noise of SGD is at most M^2 L, with L the loss and M the largest Jacobian norm of an example.",
        rule=Rule(parts=((LARGEST, BELOW_ONE),)),
    ),
    _slope_claim(
        "early", "While the loss is large the noise of SGD is proportional to the loss along a run.", EARLY, 1.0
    ),
    _slope_claim(
        "early-per-jacobian",
        "While the loss is large the noise over ||J||^2 is proportional to the loss along a run, Jacobian changes taken out.",
        EARLY,
        1.0,
        per_jacobian=True,
    ),
    _slope_claim(
        "late-one",
        "The noise of SGD is proportional to the loss also where the images are interpolated.",
        INTERPOLATING,
        1.0,
    ),
    _slope_claim(
        "late-two",
        "Where the images are interpolated the noise falls as the square of the loss (not in the paper: the bound's constant"
        " vanishes there).",
        INTERPOLATING,
        2.0,
    ),
    _slope_claim(
        "late-two-per-jacobian",
        "Where the images are interpolated the noise over ||J||^2 falls as the square of the loss.",
        INTERPOLATING,
        2.0,
        per_jacobian=True,
    ),
    Claim(
        key="constant-decay",
        text="With decay the loss stays bounded below, and the noise stays of the order of the loss: the argued lower bound"
        " holds.",
        rule=Rule(parts=((_constant(DECAY, "with decay"), above(CONSTANT)),), given=(enough(EARLY),)),
    ),
    Claim(
        key="constant-none",
        text="Without decay the constant of the lower bound vanishes at interpolation (not in the paper).",
        rule=Rule(parts=((_constant(NONE, "without decay"), below(CONSTANT)),), given=(enough(EARLY),)),
    ),
)


def _labels(results: Results) -> dict[str, str]:
    """The labels of the two arms, in the legend's order."""
    labels = {arm["key"]: str(arm["label"]) for arm in results.arms if arm["size"] == results.main_size}
    return {key: labels[key] for key in (NONE, DECAY)}


def noise_rows(results: Results, *, per_jacobian: bool) -> list[PointRow]:
    """Noise against the loss, every reading of every seed, with lines of slope 1 and 2 through one point."""
    rows: list[PointRow] = []
    for key, label in _labels(results).items():
        for run in noise_of(results, key, results.main_size):
            noise_P = run.per_jacobian_P if per_jacobian else run.noise_P
            rows += [PointRow(label, x, y) for x, y in zip(run.loss_P.tolist(), noise_P.tolist(), strict=True)]
    places = [(row.x, row.y) for row in rows if row.series == _labels(results)[NONE]]
    ends = (min(x for x, _ in places), max(x for x, _ in places))
    middle = float(np.exp(np.mean(np.log(ends))))
    height = float(np.exp(np.median([np.log(y) for x, y in places if middle / 2 < x < middle * 2] or [0.0])))
    for slope in (1, 2):
        rows += [PointRow(f"slope {slope}", x, height * (x / middle) ** slope, style="line") for x in ends]
    return rows


def per_loss_rows(results: Results) -> list[PointRow]:
    """Noise over ||J||^2 L along the runs, geometric means over seeds, and the range over seeds."""
    rows = []
    for key, label in _labels(results).items():
        runs = noise_of(results, key, results.main_size)
        values_SP = np.array([run.per_loss_P for run in runs])
        for epoch, value_S in zip(runs[0].epoch_P.tolist(), values_SP.T, strict=True):
            mean = float(np.exp(np.log(value_S).mean()))
            rows.append(PointRow(label, epoch, mean, float(value_S.min()), float(value_S.max())))
            rows.append(PointRow(label, epoch, mean, style="line"))
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


SMALL: Mapping[str, Any] = {
    "lr": 0.1, "num_train": 500, "num_test": 500, "batch_size": 50, "num_epochs": 120, "probe_every": 3,
    "probe_examples": 200, "eval_every": 60,
}  # fmt: skip


def _arms(*widths: int, lam: float = 0.02, base: Mapping[str, Any] = SMALL, **changes: Any) -> tuple[Arm, ...]:
    fields = {"probes": ("gradient-noise", "jacobian-norm"), "drop_at": 1.0, "ema": (), **base, **changes}
    return tuple(
        Arm(key=key, label=f"lam {value:g}", size=width, spec=ImageRun(**{**fields, "lam": value, "width": width}))
        for width in widths
        for key, value in ((NONE, 0.0), (DECAY, lam))
    )


PRESETS = presets(
    smoke=Preset(
        description="60 images at 7 x 7, 6 epochs",
        budget="20 seconds",
        arms=_arms(
            4, num_train=60, num_test=60, batch_size=20, num_epochs=6, probe_every=2, downsample=4, probe_examples=20,
            eval_every=6,
        ),
    ),
    laptop=Preset(
        description="ResNets of width 8 on 500 Fashion-MNIST images at 14 x 14, 1,200 steps, 40 probes of 200 images",
        budget="10 minutes on 2 cores",
        arms=_arms(8),
    ),
    night=Preset(
        description="as laptop, with 2,000 images, more seeds, and widths 4, 8 and 16",
        budget="90 minutes on 2 cores",
        arms=_arms(4, 8, 16, num_train=2000, num_epochs=100, probe_every=4),
        num_seeds=8,
        main_size=8,
    ),
    paper=Preset(
        description="ResNet-18 on CIFAR-10, 200 epochs at a constant rate, 50 probes of 500 images",
        budget="a day on one GPU",
        arms=_arms(
            64, lam=0.0125, base=CIFAR, model="resnet", lr=0.08, num_epochs=200, probe_every=4, probe_examples=500,
            eval_every=50,
        ),
        num_seeds=3,
        needs=CIFAR_NEEDS,
    ),
)  # fmt: skip

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
