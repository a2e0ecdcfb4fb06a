"""Nets without normalization: what decay does there, and how lam, effective learning rate, curvature and error go together.

Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024, arXiv 2310.04415): its account
of decay by noise and Jacobian norm is said to need no scale invariance, where the account by an effective learning rate does.
Its evidence without normalization is one VGG (figure 12; `stabilization-vgg` has that). Here it is a ResNet without
normalization beside its twin with BatchNorm, over a grid of rates and products lr * lam.

What was explored, on seed 1000 and before the rules: 1,000 images of 7 x 7, so that nets of width 8 fit them. Without
normalization at lr 0.1, lam 0 and 0.01 give a training loss of 0.03 and 0.31 before the drop and a final test error of 21.6 and
19.9 %. lam 0.04 is past the best (26.4 %), and lr 0.025 with lam 0.16 shrinks the net to nothing (90 %: a net without
normalization cannot keep its output when its weights shrink), so that the grid ends at lr lam = 2e-3. On images of 14 x 14 lr
0.1 diverged. After the rules three arms ran on that seed for the time that they take; two of them, at lr lam = 2e-3, showed
errors of the average of 21.6 % at lr 0.1 and 28.7 % at lr 0.025. No rule was changed for it. Seeds
1001 and 1002 ran at lr 0.1 to see that nothing diverges.

An arm's *average* is the moving average of its weights just before the learning rate drops, its *end* the weights long after.

Shapes: A arms, S seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import (
    CIFAR_10_NEEDS,
    RESNET_18,
    image_run,
    in_points,
    level,
    num_steps,
    point,
    wrong,
)
from halflife.studies.catalog.images.stabilization import SMALLEST_EFFECT, drop, plateau
from halflife.studies.evidence.claims import (
    Arm,
    Claim,
    Panel,
    PointRow,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.fits import rank_correlation
from halflife.studies.evidence.quantities import Best, Each, NotMeasuredError, Quantity, Terms
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import published_level
from halflife.studies.evidence.rules import Premise, can_be_measured
from halflife.studies.evidence.tests import above, below, exceeds, lowered, within
from halflife.studies.specs.images import ImageRun

__all__ = ["NO_NORMALIZATION", "prediction_errors"]

PLAIN, TWIN = "plain", "normalized"
MODELS = {PLAIN: "resnet-plain", TWIN: "resnet"}
RATES = ("large", "small")
NUM_PRODUCTS = 4  # arms 1 to 4 of a rate, in rising order; arm 0 is without decay
SAME_LAM = {"large": 3, "small": 1}
"""The arms of the two rates whose lam is the same."""
AVERAGE = "ema-0.99/"
CURVATURE = {"hessian_trace": "Hessian trace", "jacobian_norm": "Jacobian norm"}

RANKS = 0.5  # rank correlation: settings are the same in all seeds, so that one by chance repeats itself in each
MIN_RATES = 3  # of two rates the best is at an edge of the grid
MARGIN = 1.0  # points: a third of what errors along the grid of products differ by (the paper's figure 4 and ours)

Numbers = NDArray[np.float64]


def key_of(net: str, rate: str, index: int) -> str:
    """The arm of a net, a rate by name and a product by its index."""
    return f"{net}-{rate}-{index}"


def keys_of(*, decay: bool | None = None) -> list[str]:
    """The arms of the net without normalization: with decay, without, or all."""
    indices = [index for index in range(NUM_PRODUCTS + 1) if decay is None or decay == (index > 0)]
    return [key_of(PLAIN, rate, index) for rate in RATES for index in indices]


def effect_of_decay(net: str, rate: str) -> Terms:
    """Final test error with decay minus without, in points; the lam is the same at both rates."""
    return wrong(key_of(net, rate, SAME_LAM[rate])) - wrong(key_of(net, rate, 0))


GOOD_LAM = tuple(
    in_points(f"final test error with decay - without, large learning rate, {words}", effect_of_decay(net, "large"))
    for net, words in ((PLAIN, "without normalization"), (TWIN, "with BatchNorm"))
)


def few_rates(results: Results, size: int) -> str:
    """Why no learning rate can be called the best without decay (empty: one can)."""
    rates = sorted({image_run(results, key, size).lr for key in keys_of(decay=False)})
    tried = ", ".join(f"{lr:g}" for lr in rates)
    return (
        ""
        if len(rates) >= MIN_RATES
        else f"the learning rates without decay are {tried}, and a best one needs {MIN_RATES}"
    )


def rates_differ(large: int, small: int, where: str) -> Quantity:
    """The error of the average at the large rate minus that at the small one, each at one of its products."""
    arms = (key_of(PLAIN, "large", large), key_of(PLAIN, "small", small))
    errors = [wrong(arm, drop, average=AVERAGE) for arm in arms]
    name = f"test error of the average at the large - at the small learning rate, {where}"
    return in_points(name, errors[0] - errors[1])


def same_product(results: Results, size: int) -> list[Quantity]:
    """At each product whose time scale 1 / (lr lam) is at most half of the phase before the drop."""
    found = []
    for index in range(1, NUM_PRODUCTS + 1):
        key = key_of(PLAIN, "large", index)
        spec = image_run(results, key, size)
        before_drop = num_steps(results, key, size) * spec.drop_epoch / spec.num_epochs
        if 1 / (spec.lr * spec.lam) <= before_drop / 2:
            found.append(rates_differ(index, index, f"lr lam = {spec.lr * spec.lam:.2g}"))
    return found


def at_drop(results: Results, size: int, metric: str, *, decay: bool | None = None) -> Numbers:
    """A reading before the learning rate drops, of each setting without normalization, (A, S)."""
    return np.array([level(key, metric, drop)(results, size) for key in keys_of(decay=decay)])


def prediction_errors(x_AS: NDArray[np.float64], y_AS: NDArray[np.float64]) -> NDArray[np.float64]:
    """How well a parabola in x, fitted to the other seeds, predicts the arms of each seed.

    Args:
        x_AS: A variable, one value an arm and seed, S >= 2.
        y_AS: What it is to predict.

    Returns:
        Root mean squared error over arms, (S,).

    Examples:
        >>> x = np.array([[0.0, 0.1], [1.0, 1.1], [2.0, 2.1], [3.0, 3.1]])
        >>> prediction_errors(x, 3 * x**2 - x + 2).round(9).tolist()
        [0.0, 0.0]
    """
    errors = []
    for seed in range(x_AS.shape[1]):
        others = np.delete(np.arange(x_AS.shape[1]), seed)
        middle, scale = x_AS[:, others].mean(), max(float(x_AS[:, others].std()), 1e-12)
        powers_AS3 = np.stack([((x_AS - middle) / scale) ** power for power in range(3)], axis=-1)
        # Least squares of the smallest norm, where x has fewer than three places.
        solution_3 = np.linalg.lstsq(powers_AS3[:, others].reshape(-1, 3), y_AS[:, others].ravel(), rcond=None)[0]
        left_A = y_AS[:, seed] - powers_AS3[:, seed] @ solution_3
        errors.append(float(np.sqrt((left_A**2).mean())))
    return np.array(errors)


def predicted_better(results: Results, size: int) -> Numbers:
    """Per seed the error in predicting the average's test error by lr / ||w||^2 minus that by lr lam, in points."""
    error_AS = 100 * at_drop(results, size, f"{AVERAGE}test/error", decay=True)
    specs = [image_run(results, key, size) for key in keys_of(decay=True)]
    products_AS = np.repeat([[spec.lr * spec.lam] for spec in specs], error_AS.shape[1], axis=1)
    rates_AS = at_drop(results, size, "effective_lr", decay=True)
    return prediction_errors(np.log(rates_AS), error_AS) - prediction_errors(np.log(products_AS), error_AS)


def exponents(results: Results, size: int, *, metric: str, of: str) -> Numbers:
    """Per seed the exponent a or b in metric ~ lr^a lam^b, of the average over the settings with decay."""
    values_AS = at_drop(results, size, AVERAGE + metric, decay=True)
    if values_AS.min() <= 0:
        raise NotMeasuredError(f"the {CURVATURE[metric]} is not above 0 everywhere, so that it has no exponents")
    specs = [image_run(results, key, size) for key in keys_of(decay=True)]
    design_A3 = np.array([[1.0, np.log(spec.lr), np.log(spec.lam)] for spec in specs])
    solution_3S = np.linalg.lstsq(design_A3, np.log(values_AS), rcond=None)[0]
    return np.asarray(solution_3S[{"lr": 1, "lam": 2}[of]])


def rank_correlations(results: Results, size: int, *, metric: str, where: str) -> Numbers:
    """Per seed the rank correlation of a measure of curvature and the test error, over all settings."""
    if where == "average":
        curvature_AS, error_AS = (at_drop(results, size, AVERAGE + name) for name in (metric, "test/error"))
    else:
        curvature_AS, error_AS = (
            np.array([results.read(key, name, size) for key in keys_of()]) for name in (metric, "test/error")
        )
    return np.array([rank_correlation(x_A, y_A) for x_A, y_A in zip(curvature_AS.T, error_AS.T, strict=True)])


def _falls(metric: str) -> Claim:
    exponent = {
        of: Quantity(
            name=f"exponent of {of} in the {CURVATURE[metric]} of the average, a fit of lr^a lam^b",
            values=functools.partial(exponents, metric=metric, of=of),
        )
        for of in ("lam", "lr")
    }
    return Claim(
        key=f"{metric.partition('_')[0]}-falls",
        text=f"Without normalization the {CURVATURE[metric]} of the average falls with the learning rate and with lam.",
        rule=Rule(
            parts=((exponent["lam"], below(0)), (exponent["lr"], below(0))),
            given=(
                can_be_measured(
                    f"the {CURVATURE[metric]} of the average is above 0 in every run", exponent["lam"].values
                ),
            ),
        ),
    )


def _ranks(metric: str, where: str) -> Claim:
    words = {"average": "of the average", "end": "at the end"}[where]
    correlation = Quantity(
        name=f"rank correlation of {CURVATURE[metric]} and test error {words}, over the settings without normalization",
        values=functools.partial(rank_correlations, metric=metric, where=where),
    )
    return Claim(
        key=f"{metric.partition('_')[0]}-{where}",
        text=f"Without normalization the {CURVATURE[metric]} {words} orders the settings as their test errors do.",
        rule=Rule(parts=((correlation, above(RANKS)),)),
    )


TUNED = in_points(
    "final test error, best setting with decay - best without, without normalization",
    100 * (Best(tuple(keys_of(decay=True)), "test/wrong") - Best(tuple(keys_of(decay=False)), "test/wrong")),
)
SMALL_RATE = in_points(
    "effect of decay on the final test error without normalization - with BatchNorm, small learning rate",
    effect_of_decay(PLAIN, "small") - effect_of_decay(TWIN, "small"),
)
SAME_PRODUCT = Each(
    name="test error of the average at the large - at the small learning rate, at each lr lam whose time scale 1 / (lr lam) is"
    " at most half of the phase before the drop",
    quantities=same_product,
    unit="points",
)
PREDICTED = in_points(
    "root mean square error of parabolas in log x that predict the test error of the average of a seed from the other seeds,"
    " x = lr / ||w||^2 - x = lr lam",
    predicted_better,
)

CLAIMS = (
    Claim(
        key="plateau",
        text="In a ResNet without normalization decay with a large rate holds the training loss on a plateau; without decay it"
        " goes towards 0.",
        rule=plateau(key_of(PLAIN, "large", SAME_LAM["large"]), key_of(PLAIN, "large", 0)),
    ),
    Claim(
        key="tuned",
        text="Decay lowers the final test error of a ResNet without normalization also against the best rate without decay.",
        rule=Rule(
            parts=((TUNED, lowered(SMALLEST_EFFECT)),),
            given=(
                Premise(
                    f"there are {MIN_RATES} learning rates or more without decay, of which one can be best", few_rates
                ),
            ),
        ),
    ),
    Claim(
        key="small-rate",
        text="With a small rate, and a lam that is good at the large one, decay does less good without normalization than with"
        " it (the paper: it hurts a VGG and helps ResNets).",
        rule=Rule(parts=((SMALL_RATE, above(0)),), given=tuple((one, below(0)) for one in GOOD_LAM)),
    ),
    Claim(
        key="product",
        text="Also without normalization the test error of the average is a function of the product lr lam.",
        rule=Rule(
            parts=((SAME_PRODUCT, within(MARGIN)),),
            stake=((rates_differ(SAME_LAM["large"], SAME_LAM["small"], "same lam"), exceeds(MARGIN)),),
        ),
    ),
    Claim(
        key="effective-rate",
        text="Without normalization lr lam predicts the test error better than the effective rate lr / ||w||^2 does.",
        rule=Rule(parts=((PREDICTED, above(0)),)),
    ),
    *(_falls(metric) for metric in CURVATURE),
    *(_ranks(metric, where) for metric in CURVATURE for where in ("average", "end")),
)


def against_product(results: Results, *, metric: str, factor: float = 1.0, log: bool = False) -> list[PointRow]:
    """A reading of the average at the drop against lr lam, a line a rate; geometric means for a logarithmic axis."""
    rows = []
    for rate in RATES:
        keys = [key_of(PLAIN, rate, index) for index in range(1, NUM_PRODUCTS + 1)]
        specs = [image_run(results, key, results.main_size) for key in keys]
        points = [
            point(results, f"lr {spec.lr:g}", float(f"{spec.lr * spec.lam:.6g}"), factor * level(key, AVERAGE + metric, drop),
                  log=log)
            for key, spec in zip(keys, specs, strict=True)
        ]  # fmt: skip
        rows += [*(PointRow(row.series, row.x, row.y, style="line") for row in points), *points]
    return rows


def scatter(results: Results, *, metric: str) -> list[PointRow]:
    """The test error of the average against a measure of curvature, a colour a rate."""
    rows = []
    for key in keys_of():
        spec = image_run(results, key, results.main_size)
        place = float(level(key, AVERAGE + metric, drop)(results, results.main_size).mean())
        name = f"lr {spec.lr:g}, {'with' if spec.lam else 'without'} decay"
        rows.append(point(results, name, place, 100 * level(key, f"{AVERAGE}test/error", drop)))
    return rows


BARS = "Means over seeds with 95 % intervals."
CURVES = tuple(key_of(net, rate, index) for net in (PLAIN, TWIN) for rate in RATES for index in (0, SAME_LAM[rate]))

PANELS = (
    Panel(
        metric="train/running_loss",
        title="Training loss with and without decay and normalization",
        y_label="training cross-entropy",
        log=True,
        arms=CURVES,
        source_figure="figures 11 and 12",
    ),
    Panel(
        metric="test/error",
        title="Test error with and without decay and normalization",
        y_label="test error (%)",
        factor=100,
        arms=CURVES,
        source_figure="figures 11 and 12",
    ),
    PointsPanel(
        slug="error-product",
        title="Test error of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="test error (%)",
        rows=functools.partial(against_product, metric="test/error", factor=100.0),
        log_x=True,
        source_figure="figure 4, there with BatchNorm",
        note=BARS,
    ),
    PointsPanel(
        slug="jacobian-product",
        title="Jacobian norm of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="Jacobian norm",
        rows=functools.partial(against_product, metric="jacobian_norm", log=True),
        log_x=True,
        log_y=True,
        source_figure="figure 4, there with BatchNorm",
        note=BARS,
    ),
    PointsPanel(
        slug="hessian-product",
        title="Hessian trace of the average against lr lam, without normalization",
        x_label="lr lam",
        y_label="Hessian trace",
        rows=functools.partial(against_product, metric="hessian_trace"),
        log_x=True,
        note=BARS,
    ),
    PointsPanel(
        slug="error-hessian",
        title="Test error and Hessian trace of the average, without normalization",
        x_label="Hessian trace",
        y_label="test error (%)",
        rows=functools.partial(scatter, metric="hessian_trace"),
        source_figure="figure 3 of the first version, there with BatchNorm",
        note=f"One point a setting. {BARS}",
    ),
    PointsPanel(
        slug="error-jacobian",
        title="Test error and Jacobian norm of the average, without normalization",
        x_label="Jacobian norm",
        y_label="test error (%)",
        rows=functools.partial(scatter, metric="jacobian_norm"),
        note=f"One point a setting. {BARS}",
    ),
)


PUBLISHED = tuple(
    Published(
        quantity=f"final test error without normalization, {rate} rate, with decay / without (%)",
        published=numbers,
        where="figure 12 (VGG-16 on CIFAR-10)",
        how="fig-read",
        ours=published_level(
            *(100 * level(key_of(PLAIN, rate, index), "test/error") for index in (SAME_LAM[rate], 0)), form=".1f"
        ),
    )
    for rate, numbers in (("large", "16.0 / 19.8"), ("small", "31 / 24.2"))
)


def _arms(
    rates: tuple[float, float], products: Sequence[float], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    arms = []
    for width in widths:
        for net in (PLAIN, TWIN):
            for rate, lr in zip(RATES, rates, strict=True):
                for index in range(NUM_PRODUCTS + 1) if net == PLAIN else (0, SAME_LAM[rate]):
                    lam = float(f"{products[index - 1] / lr:.3g}") if index else 0.0
                    label = f"{'BatchNorm' if net == TWIN else 'no normalization'}, lr {lr:g}, lam {lam:g}"
                    spec = ImageRun(model=MODELS[net], width=width, lr=lr, lam=lam, **{**PROBED, **common})
                    arms.append(Arm(key=key_of(net, rate, index), label=label, size=width, spec=spec))
    return tuple(arms)


PROBED = {
    "ema": (0.99,),
    "drop_at": 0.75,
    "probes": ("hessian-trace", "jacobian-norm"),
    "probe_examples": 200,
    "probe_vectors": 16,
}
SMALL = {"blocks": (1, 1, 1), "downsample": 4, "num_train": 1_000, "batch_size": 25}
SMOKE = {"num_train": 100, "num_test": 300, "num_epochs": 4, "eval_every": 2, "probe_examples": 20, "probe_vectors": 6}
GRID = ((0.1, 0.025), (2.5e-4, 5e-4, 1e-3, 2e-3))

PRESETS = presets(
    smoke=Preset(
        description="100 training and 300 test images, 4 epochs",
        budget="20 seconds",
        arms=_arms(*GRID, SMALL | SMOKE, (4,)),
    ),
    laptop=Preset(
        description="ResNets of width 8, 68 epochs of 40 steps, 1,000 Fashion-MNIST images at 7 x 7",
        budget="10 minutes on 2 cores",
        arms=_arms(*GRID, SMALL | {"num_epochs": 68, "eval_every": 17}, (8,)),
    ),
    night=Preset(
        description="as laptop, with 120 epochs, more seeds, and a ladder of widths 4, 8, 16",
        budget="90 minutes on 2 cores",
        arms=_arms(*GRID, SMALL | {"num_epochs": 120, "eval_every": 30}, (4, 8, 16)),
        num_seeds=8,
        main_size=8,
    ),
    paper=Preset(
        description="ResNet-18 without normalization and with BatchNorm on CIFAR-10, 1000 epochs, learning rates 0.1 and 0.01;"
        " the paper has VGG-16 at lam 0.008",
        budget="weeks on one GPU",
        arms=_arms(
            (0.1, 0.01),
            (8e-5, 2.5e-4, 8e-4, 2.5e-3),
            RESNET_18
            | {"num_epochs": 1000, "drop_at": 0.5, "lr_after_drop": 1e-4, "probe_examples": 5_000, "probe_vectors": 24},
            (64,),
        ),
        num_seeds=3,
        needs=CIFAR_10_NEEDS,
    ),
)

NO_NORMALIZATION = Study(
    name="no-normalization",
    title="Decay, effective rate and curvature in a ResNet without normalization",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), section 2 and figures 4, 11, 12; an open question of the paper",
    claim="What decay does needs no normalization: it holds the loss up, the error follows lr lam and not the effective"
    " rate, and the Jacobian norm of the average falls.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    presets=PRESETS,
    doc_panels=("error-product", "error-hessian"),
)
