"""Does everything collapse on the product of learning rate and decay? Test error, loss, noise and Jacobian over a grid.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), figures 3, 4 and 10.

Two slips of the paper are told apart here. Its text puts the best product at "about 0.005", the largest of its grid, where
its own figure shows an error of 92 %; the figure's minimum is at 5e-4 to 7e-4. And its text says that at fixed lam the
Jacobian norm rises with the learning rate, where its figures show that it falls; claim jacobian-rate is about the direction.

In the exploration below the lowest error is where tau is about 25 epochs, outside of the 2 to 6 of claim tau.

The product can only matter alone where a run has forgotten its start: claims about it use the cells whose run is 3 tau long
or longer, tau = 1 / (lr lam) steps, and claim unforgotten is about the cells with a run shorter than tau.

The rules were written before any run of the presets' seeds. Explored on seed 1000 with training loss, test error and norm, no
Jacobian: 1,000 images with width 8 (batch 50) and 16 (batch 25) for 3,200 steps, then 500 images with width 8. Without decay
the training error is 0 in all of them and the average has 22 to 24 % test error (1,000 and 500 images at width 8); it is lowest
near lr * lam = 0.004 and rises steeply above 0.016. Fewer images were taken because tau counts in epochs: at 1,000 a run of
many tau at the left of the optimum is too long. At 1,000 images lam = 0.08 with lr 0.05 had a test error 8 points above that
of lam = 0.02 with lr 0.2, the same product; the grid's largest lam is 0.04, twice the paper's. The average reaches back 50
steps, as large a part of the run (1.6 %) as 0.999 in the paper's 100 epochs of 391 steps (2.6 %).

`eta-lambda-vgg` asks where the collapse breaks: in a net without normalization no weight is scale-invariant, and decay acts on
the function itself. Explored on seed 1000: 500 images, width 16, 3,200 steps. The average's test error is 23.2 % without decay
and 22.2, 21.7, 23.9 % at lr * lam = 0.001 with lr 0.1, 0.2, 0.05. Its optimum is too near the smallest product whose run
forgets its start for a claim on the U.

When the rules stood, one arm of the ResNet (lr 0.2, lam 0.01) and two of the VGG (0.1, 0.01 and 0.2, 0.04) were timed with
their probes, on seed 1000: Jacobian norms of the average of 120, and of 68 and 36.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from halflife.studies.catalog.images.eta_lambda import quantities as rules
from halflife.studies.catalog.images.eta_lambda.figures import PANELS, PUBLISHED
from halflife.studies.catalog.images.eta_lambda.quantities import FORGOTTEN, LATE, QUANTITIES
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.images import ImageRun

__all__ = ["ETA_LAMBDA", "ETA_LAMBDA_VGG"]

_WHERE = f"Settings whose run is {FORGOTTEN:g} tau or longer."
_END = "not reproduced if it lies wholly on the other side; else inconclusive"


def _monotone_claim(key: str, quantity: str, text: str, *, rising: bool) -> WordedClaim:
    bound = f"above {rules.RANK_BOUND}" if rising else f"below -{rules.RANK_BOUND}"
    return WordedClaim(
        key=key,
        text=text,
        rule=f"{_WHERE} Reproduced if the 95 % interval of the rank correlation with lr * lam, over cells, lies {bound};"
        f" {_END}.",
        effect_name="rank correlation with lr * lam",
        unit="",
        measure=functools.partial(rules.monotone, quantity=quantity, rising=rising),
    )


def _collapse_claim(quantity: str, name: str) -> WordedClaim:
    return WordedClaim(
        key=f"collapse-{quantity}",
        text=f"The {name} depends on the learning rate and lam through their product alone.",
        rule=f"{_WHERE} Only products that two settings or more share. Two fits to the mean of the other seeds, scored by the"
        " share of the variance over settings that they explain in the seed left out: one level for each product; and the same"
        " with terms in v = ln(lr / lam), that is v, v^2 and v ln(lr lam). Reproduced if the 95 % interval of (share of the"
        f" first / share of the second) lies above {rules.EXPLAINED}; {_END}, and if the second share is not above"
        f" {rules.SMALLEST_EXPLAINED}.",
        effect_name="what the product explains of what both explain",
        unit="",
        measure=functools.partial(rules.collapses, quantity=quantity),
    )


CLAIMS = (
    WordedClaim(
        key="u-shape",
        text="The test error of the average is U-shaped in lr * lam.",
        rule=f"{_WHERE} Means at equal product; the lowest of the inner ones is chosen on the other seeds. Reproduced if the"
        " 95 % intervals of (error at the smallest product - lowest) and (error at the largest - lowest) both lie above 0; not"
        " reproduced if one lies below 0; else inconclusive.",
        effect_name="the smaller of both rises",
        unit="points",
        measure=rules.u_shaped,
    ),
    WordedClaim(
        key="tau",
        text="The test error is lowest where tau = 1 / (lr lam) is 2 to 6 epochs, as in the paper's two grids (our reading).",
        rule=f"{_WHERE} The vertex of a parabola in ln(lr lam) through the lowest mean at equal product and its neighbours."
        f" Reproduced if its 90 % interval lies within {rules.BEST_EPOCHS[0]:g} to {rules.BEST_EPOCHS[1]:g} epochs; not"
        " reproduced if it lies wholly outside; else inconclusive, and if the lowest is at an end or a seed has no minimum"
        " inside.",
        effect_name="tau at the optimum, in epochs",
        unit="",
        measure=rules.best_epochs,
    ),
    _monotone_claim(
        "loss-rises",
        "loss",
        f"The training loss (median of the last {LATE:.0%} of the epochs) rises monotonically with lr * lam.",
        rising=True,
    ),
    _monotone_claim(
        "noise-rises",
        "noise",
        "The noise scale, the mean norm of d loss / d logits at the end of a run, rises monotonically with lr * lam.",
        rising=True,
    ),
    _monotone_claim(
        "jacobian-falls",
        "jacobian",
        "The Jacobian norm of the average falls monotonically with lr * lam.",
        rising=False,
    ),
    WordedClaim(
        key="jacobian-rate",
        text="At fixed lam the Jacobian norm of the average falls as the learning rate rises (the paper's figures; its text"
        " says that it rises).",
        rule=f"{_WHERE} ln of the norm is fitted as p ln(lr) with a level for each lam. Reproduced if the 95 % interval of p"
        " lies below 0; not reproduced if it lies above; else inconclusive.",
        effect_name="exponent of the learning rate at fixed lam",
        unit="",
        measure=functools.partial(rules.falls_with_rate, quantity="jacobian"),
    ),
    _collapse_claim("error", "test error of the average"),
    _collapse_claim("loss", "training loss"),
    _collapse_claim("noise", "noise scale"),
    _collapse_claim("jacobian", "Jacobian norm of the average (its logarithm)"),
    WordedClaim(
        key="unforgotten",
        text="Where the run is shorter than tau, settings of equal product differ more: they leave the curve.",
        rule="The standard deviation of the average's test error over settings of equal product, lam = 0 being one, in a seed."
        " Reproduced if the 95 % interval of (spread where the run is shorter than tau - spread where it is"
        f" {FORGOTTEN:g} tau or longer) lies above 0; not reproduced if it lies below; else inconclusive.",
        effect_name="spread at equal product, run shorter than tau minus longer",
        unit="points",
        measure=functools.partial(rules.unforgotten_spread, quantity="error"),
    ),
)


def _spec(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(
    rates: tuple[float, ...], lams: tuple[float, ...], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    return tuple(
        Arm(
            key=f"lr {lr:g}, lam {lam:g}",
            label=f"lr {lr:g}, lam {lam:g}",
            size=width,
            spec=_spec({"lr": lr, "lam": lam, "width": width, **CONSTANT, **common}, 0),
        )
        for width in widths
        for lr in rates
        for lam in lams
    )


PROBES = ("jacobian-norm", "noise-scale")
CONSTANT = {"drop_at": 1.0, "probes": PROBES}

SMALL = {"batch_size": 50, "blocks": (1, 1), "downsample": 4, "ema": (0.98,)}
LAMS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04)

SMOKE = {"num_train": 200, "num_test": 200, "num_epochs": 12, "eval_every": 12, "probe_examples": 20}

PAPER = {
    "data": "cifar10",
    "downsample": 1,
    "blocks": (2, 2, 2, 2),
    "num_epochs": 100,
    "eval_every": 50,
    "precision": "float16",
    "probe_examples": 5_000,
}
PAPER_RATES = (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25)
PAPER_LAMS = (0.0, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02)


def _presets(
    *,
    model: str,
    width: int,
    rates: tuple[float, ...],
    smoke: tuple[tuple[float, ...], tuple[float, ...]],
    paper: Preset,
) -> dict[str, Preset]:
    small = SMALL | {"model": model}
    ladder = (width // 2, width, 2 * width)
    grid = f"{len(rates)} learning rates x {len(LAMS)} lams"
    return {
        "smoke": Preset(
            description="200 images, 12 epochs, 3 learning rates x 4 lams: shows that everything works, not what is true",
            budget="20 seconds",
            arms=_arms(*smoke, small | SMOKE, (4,)),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description=f"width {width}, 320 epochs, 500 Fashion-MNIST images at 7 x 7, {grid}",
            budget="10 minutes on 2 cores",
            arms=_arms(rates, LAMS, small | {"num_train": 500, "num_epochs": 320, "eval_every": 320}, (width,)),
            num_seeds=3,
            main_size=width,
        ),
        "night": Preset(
            description=f"as laptop, with 1,000 images, more seeds, and a ladder of widths {ladder}; {grid}",
            budget="90 minutes on 2 cores",
            arms=_arms(rates, LAMS, small | {"num_train": 1_000, "num_epochs": 320, "eval_every": 320}, ladder),
            num_seeds=5,
            main_size=width,
            num_ladder_seeds=3,
        ),
        "paper": paper,
    }


ETA_LAMBDA = Study(
    name="eta-lambda",
    title="The product of learning rate and decay",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), section 2, figures 3, 4 and 10",
    claim="With a constant large learning rate, what a net learns depends on the learning rate and lam through their product:"
    " it sets the loss, the noise and the Jacobian norm, and the test error is lowest at one value of it.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("grid-error", "product-error"),
    presets=_presets(
        model="resnet",
        width=8,
        rates=(0.05, 0.1, 0.2, 0.4, 0.8),
        smoke=((0.25, 0.5, 1.0), (0.0, 0.1, 0.2, 0.4)),
        paper=Preset(
            description="pre-activation ResNet-18 on CIFAR-10, 100 epochs, the learning rates and lams of figure 3",
            budget="weeks on one GPU",
            arms=_arms(PAPER_RATES, PAPER_LAMS, PAPER | {"model": "resnet"}, (64,)),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    ),
)

_VGG_CLAIMS = ("loss-rises", "noise-rises", "jacobian-falls", "jacobian-rate", *(f"collapse-{q}" for q in QUANTITIES))

ETA_LAMBDA_VGG = Study(
    name="eta-lambda-vgg",
    title="The product of learning rate and decay in a VGG without BatchNorm",
    source="an open question on D'Angelo et al. 2024 (arXiv 2310.04415), figures 3 and 4, whose nets have BatchNorm",
    claim="The same holds in a net without normalization, where decay acts on the function itself and not on a step size"
    " alone.",
    claims=tuple(claim for claim in CLAIMS if claim.key in _VGG_CLAIMS),
    panels=PANELS,
    doc_panels=("grid-error", "product-error"),
    presets=_presets(
        model="vgg",
        width=16,
        rates=(0.025, 0.05, 0.1, 0.2),
        smoke=((0.05, 0.1, 0.2), (0.0, 0.5, 1.0, 2.0)),
        paper=Preset(
            description="VGG-16 without BatchNorm on CIFAR-10, 100 epochs, the learning rates and lams of figure 3",
            budget="weeks on one GPU",
            arms=_arms(PAPER_RATES, PAPER_LAMS, PAPER | {"model": "vgg", "blocks": (2, 2, 3, 3, 3)}, (64,)),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    ),
)
