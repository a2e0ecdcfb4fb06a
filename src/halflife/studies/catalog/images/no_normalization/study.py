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
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from halflife.studies.catalog.curvature.transformer.quantities import NAMES
from halflife.studies.catalog.images.no_normalization import quantities as rules
from halflife.studies.catalog.images.no_normalization.figures import PANELS, PUBLISHED
from halflife.studies.catalog.images.no_normalization.quantities import (
    NUM_PRODUCTS,
    PLAIN,
    RATES,
    SAME_LAM,
    TWIN,
    key_of,
)
from halflife.studies.catalog.images.stabilization import plateau
from halflife.studies.evidence.claims import AnyClaim, Arm, Claim, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.images import ImageRun

__all__ = ["NO_NORMALIZATION"]

LARGE = (key_of(PLAIN, "large", SAME_LAM["large"]), key_of(PLAIN, "large", 0))
MODELS = {PLAIN: "resnet-plain", TWIN: "resnet"}
_RANK = (
    "Spearman's correlation over the ten settings without normalization, for each seed: reproduced if its 95 % interval lies"
    f" above {rules.RANKS}; not reproduced if it lies below; else inconclusive."
)


def _rank_claim(metric: str, where: str) -> WordedClaim:
    words = {"average": "of the average", "end": "at the end"}[where]
    return WordedClaim(
        key=f"{metric.partition('_')[0]}-{where}",
        text=f"Without normalization the {NAMES[metric]} {words} orders the settings as their test errors do.",
        rule=_RANK,
        effect_name=f"rank correlation of {NAMES[metric]} and test error {words}",
        unit="",
        measure=functools.partial(rules.ranks_errors, metric=metric, where=where),
    )


def _exponent_claim(metric: str) -> WordedClaim:
    return WordedClaim(
        key=f"{metric.partition('_')[0]}-falls",
        text=f"Without normalization the {NAMES[metric]} of the average falls with the learning rate and with lam.",
        rule="A fit of lr^a lam^b over the settings with decay, for each seed: reproduced if the 95 % intervals of a and b lie"
        " below 0; not reproduced if one lies above; else inconclusive.",
        effect_name=f"exponent of lam in the {NAMES[metric]}",
        unit="",
        measure=functools.partial(rules.falls_with_rate_and_decay, metric=metric),
    )


CLAIMS: tuple[AnyClaim, ...] = (
    Claim(
        key="plateau",
        text="In a ResNet without normalization decay with a large rate holds the training loss on a plateau; without decay it"
        " goes towards 0.",
        rule=plateau(*LARGE),
    ),
    WordedClaim(
        key="tuned",
        text="Decay lowers the final test error of a ResNet without normalization also against the best rate without decay.",
        rule="Best against best, rate and lam chosen on the other seeds: reproduced if the 95 % interval of the difference lies"
        f" below 0, else not reproduced if it excludes an improvement of {rules.SMALLEST_EFFECT} points, else inconclusive.",
        effect_name="best test error with decay minus best without",
        unit="points",
        measure=rules.tuned_decay_helps,
    ),
    WordedClaim(
        key="small-rate",
        text="With a small rate, and a lam that is good at the large one, decay does less good without normalization than with"
        " it (the paper: it hurts a VGG and helps ResNets).",
        rule="Reproduced if the 95 % interval of (change of the final test error by decay without normalization - change with"
        " BatchNorm) lies above 0; not reproduced if it lies below 0; else inconclusive.",
        effect_name="change of the error by decay without normalization minus with, small rate",
        unit="points",
        measure=rules.small_rate_needs_normalization,
    ),
    WordedClaim(
        key="product",
        text="Also without normalization the test error of the average is a function of the product lr lam.",
        rule="At the products whose time scale 1 / (lr lam) is at most half of the phase before the drop: reproduced if the"
        f" 90 % interval of (error at the large rate - error at the small one, at equal product) lies within"
        f" {rules.EQUAL_MARGIN:g} point of 0, and the same difference at equal lam exceeds {rules.EQUAL_MARGIN:g} point (95 %);"
        " not reproduced if the first lies wholly outside; else inconclusive.",
        effect_name="error of the average at the large rate minus at the small one, equal lr lam",
        unit="points",
        measure=rules.error_is_of_the_product,
    ),
    WordedClaim(
        key="effective-rate",
        text="Without normalization lr lam predicts the test error better than the effective rate lr / ||w||^2 does.",
        rule="Parabolas in the logarithm of either, fitted to the settings with decay of the other seeds: reproduced if the"
        " 95 % interval of the difference of their root mean squared errors (lr / ||w||^2 minus lr lam) lies above 0; not"
        " reproduced if it lies below 0; else inconclusive.",
        effect_name="error of the prediction by lr / ||w||^2 minus by lr lam",
        unit="points",
        measure=rules.product_beats_effective_rate,
    ),
    *(_exponent_claim(metric) for metric in NAMES),
    *(_rank_claim(metric, where) for metric in NAMES for where in ("average", "end")),
)


def _spec(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(
    rates: tuple[float, float], products: tuple[float, ...], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    arms = []
    for width in widths:
        for net in (PLAIN, TWIN):
            for rate, lr in zip(RATES, rates, strict=True):
                for index in range(NUM_PRODUCTS + 1) if net == PLAIN else (0, SAME_LAM[rate]):
                    lam = float(f"{products[index - 1] / lr:.3g}") if index else 0.0
                    fields = {"model": MODELS[net], "width": width, "lr": lr, "lam": lam, **common}
                    label = f"{'BatchNorm' if net == TWIN else 'no normalization'}, lr {lr:g}, lam {lam:g}"
                    spec = _spec(fields, 0)
                    arms.append(Arm(key=key_of(net, rate, index), label=label, size=width, spec=spec))
    return tuple(arms)


PROBED = {
    "ema": (0.99,),
    "drop_at": 0.75,
    "probes": ("hessian-trace", "jacobian-norm"),
    "probe_examples": 200,
    "probe_vectors": 16,
}
SMALL = PROBED | {"blocks": (1, 1, 1), "downsample": 4, "num_train": 1_000, "batch_size": 25}
RATES_LAPTOP, PRODUCTS_LAPTOP = (0.1, 0.025), (2.5e-4, 5e-4, 1e-3, 2e-3)

PRESETS = {
    "smoke": Preset(
        description="100 training and 300 test images, 4 epochs: shows that everything works, not what is true",
        budget="20 seconds",
        arms=_arms(
            RATES_LAPTOP,
            PRODUCTS_LAPTOP,
            SMALL
            | {
                "num_epochs": 4,
                "num_train": 100,
                "num_test": 300,
                "eval_every": 2,
                "probe_examples": 20,
                "probe_vectors": 6,
            },
            (4,),
        ),
        num_seeds=2,
        main_size=4,
        decides=False,
    ),
    "laptop": Preset(
        description="ResNets of width 8, 68 epochs of 40 steps, 1,000 Fashion-MNIST images at 7 x 7",
        budget="10 minutes on 2 cores",
        arms=_arms(RATES_LAPTOP, PRODUCTS_LAPTOP, SMALL | {"num_epochs": 68, "eval_every": 17}, (8,)),
        num_seeds=5,
        main_size=8,
    ),
    "night": Preset(
        description="as laptop, with 120 epochs, more seeds, and a ladder of widths 4, 8, 16",
        budget="90 minutes on 2 cores",
        arms=_arms(RATES_LAPTOP, PRODUCTS_LAPTOP, SMALL | {"num_epochs": 120, "eval_every": 30}, (4, 8, 16)),
        num_seeds=8,
        main_size=8,
        num_ladder_seeds=3,
    ),
    "paper": Preset(
        description="ResNet-18 without normalization and with BatchNorm on CIFAR-10, 1000 epochs, learning rates 0.1 and 0.01;"
        " the paper has VGG-16 at lam 0.008",
        budget="weeks on one GPU",
        arms=_arms(
            (0.1, 0.01),
            (8e-5, 2.5e-4, 8e-4, 2.5e-3),
            PROBED
            | {
                "data": "cifar10",
                "downsample": 1,
                "blocks": (2, 2, 2, 2),
                "num_epochs": 1000,
                "drop_at": 0.5,
                "lr_after_drop": 1e-4,
                "ema": (0.99,),
                "probe_examples": 5_000,
                "probe_vectors": 24,
            },
            (64,),
        ),
        num_seeds=3,
        main_size=64,
        needs="CIFAR-10's binary version (--data DIR) and a GPU",
    ),
}

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
