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
import math
from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.images.common import CIFAR_10_NEEDS, RESNET_18
from halflife.studies.catalog.images.eta_lambda.figures import PANELS, PUBLISHED
from halflife.studies.catalog.images.eta_lambda.quantities import (
    FORGOTTEN,
    KINDS,
    LATE,
    Spread,
    exponent_of_rate,
    forgotten,
    left_by_both,
    no_optimum,
    products,
    rank_with_product,
    rises,
    share_of_product,
    tau_in_epochs,
    unforgotten,
)
from halflife.studies.evidence.claims import Arm, Claim, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity
from halflife.studies.evidence.rules import Premise, can_be_measured
from halflife.studies.evidence.tests import above, below, within_factor
from halflife.studies.specs.images import ImageRun

__all__ = ["ETA_LAMBDA", "ETA_LAMBDA_VGG"]

RANK_BOUND = 0.8  # of a rank correlation: "monotonically" at a glance; 1 would be without exception
EXPLAINED = 0.9  # of what lr and lam explain together, so much must their product explain
SMALLEST_EXPLAINED = 0.5  # of the variance over settings: with less there is nothing to share
LOW, HIGH = 2.0, 6.0  # tau at the optimum, in epochs, as read from the paper's two grids

_WHERE = f"settings whose run is {FORGOTTEN:g} tau or longer"
PRODUCTS = can_be_measured(f"three values of lr * lam or more have {_WHERE}", products)


def _monotone(key: str, kind: str, text: str, *, rising: bool) -> Claim:
    correlation = Quantity(
        name=f"rank correlation of the {KINDS[kind].name} with lr * lam, over {_WHERE}",
        values=functools.partial(rank_with_product, kind=kind),
    )
    test = above(RANK_BOUND) if rising else below(-RANK_BOUND)
    return Claim(key=key, text=text, rule=Rule(parts=((correlation, test),), given=(PRODUCTS,)))


def _collapse(kind: str) -> Claim:
    name = f"{'logarithm of the ' if KINDS[kind].log else ''}{KINDS[kind].name}"
    # A share that is predicted for another seed may be below 0, so that a ratio of such shares has no logarithm.
    share = Quantity(
        name=f"share of the variance of the {name} over settings, of another seed than the fitted ones, that a level for each"
        " lr * lam explains / that these and terms in v = ln(lr / lam) explain: v, v^2 and v ln(lr lam)",
        values=functools.partial(share_of_product, kind=kind),
    )
    left = Quantity(
        name=f"share of the variance of the {name} over settings, of another seed than the fitted ones, that lr and lam"
        " together leave unexplained",
        values=functools.partial(left_by_both, kind=kind),
        log=True,
    )
    return Claim(
        key=f"collapse-{kind}",
        text=f"The {name} depends on the learning rate and lam through their product alone.",
        rule=Rule(
            parts=((share, above(EXPLAINED)),),
            given=(
                can_be_measured(f"two values of lr * lam or more have two {_WHERE}, or more", share.values),
                (left, below(1 - SMALLEST_EXPLAINED)),
            ),
        ),
    )


RISES = Each(
    name="test error of the average at the smallest and at the largest lr * lam - at the lowest place between both,"
    f" {_WHERE}",
    quantities=rises,
    unit="points",
)
TAU = Quantity(
    name="tau = 1 / (lr lam) in epochs at the vertex of a parabola in ln(lr lam) through the lowest mean test error at equal"
    f" product and its neighbours, {_WHERE}",
    values=tau_in_epochs,
    log=True,
)
INSIDE = Premise(
    "the lowest mean of three or more is at no end of the grid, and each seed has a minimum inside", no_optimum
)
RATE = Quantity(
    name=f"p of Jacobian norm of the average ~ lr^p, with a level for each lam, over {_WHERE}",
    values=functools.partial(exponent_of_rate, kind="jacobian"),
)
SPREADS = Quantity(
    name="standard deviation of the test error of the average over settings of equal lr * lam, runs shorter than tau / runs of"
    f" {FORGOTTEN:g} tau or longer",
    values=Spread("error", unforgotten) / Spread("error", forgotten),
    unit="x",
    log=True,
)

CLAIMS = (
    Claim(
        key="u-shape",
        text="The test error of the average is U-shaped in lr * lam.",
        rule=Rule(parts=((RISES, above(0)),), given=(PRODUCTS,)),
    ),
    Claim(
        key="tau",
        text="The test error is lowest where tau = 1 / (lr lam) is 2 to 6 epochs, as in the paper's two grids (our reading).",
        rule=Rule(parts=((TAU, within_factor(math.sqrt(HIGH / LOW), around=math.sqrt(LOW * HIGH))),), given=(INSIDE,)),
    ),
    _monotone(
        "loss-rises",
        "loss",
        f"The training loss (median of the last {LATE:.0%} of the epochs) rises monotonically with lr * lam.",
        rising=True,
    ),
    _monotone(
        "noise-rises",
        "noise",
        "The noise scale, the mean norm of d loss / d logits at the end of a run, rises monotonically with lr * lam.",
        rising=True,
    ),
    _monotone(
        "jacobian-falls",
        "jacobian",
        "The Jacobian norm of the average falls monotonically with lr * lam.",
        rising=False,
    ),
    Claim(
        key="jacobian-rate",
        text="At fixed lam the Jacobian norm of the average falls as the learning rate rises (the paper's figures; its text"
        " says that it rises).",
        rule=Rule(
            parts=((RATE, below(0)),),
            given=(can_be_measured(f"a lam has two {_WHERE}, or more", RATE.values),),
        ),
    ),
    *(_collapse(kind) for kind in KINDS),
    Claim(
        key="unforgotten",
        text="Where a run is shorter than tau = 1 / (lr lam), test errors of settings of equal lr * lam differ more.",
        rule=Rule(
            parts=((SPREADS, above(1)),),
            given=(can_be_measured("of both kinds there are two settings or more of equal lr * lam", SPREADS.values),),
        ),
    ),
)


def _arms(
    rates: Sequence[float], lams: Sequence[float], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    constant = {"drop_at": 1.0, "probes": ("jacobian-norm", "noise-scale"), **common}
    return tuple(
        Arm(
            key=f"lr {lr:g}, lam {lam:g}",
            label=f"lr {lr:g}, lam {lam:g}",
            size=width,
            spec=ImageRun(lr=lr, lam=lam, width=width, **constant),
        )
        for width in widths
        for lr in rates
        for lam in lams
    )


SMALL = {"batch_size": 50, "blocks": (1, 1), "downsample": 4, "ema": (0.98,), "num_epochs": 320, "eval_every": 320}
LAMS = (0.0, 0.0025, 0.005, 0.01, 0.02, 0.04)
SMOKE = {"num_train": 200, "num_test": 200, "num_epochs": 12, "eval_every": 12, "probe_examples": 20}
PAPER = RESNET_18 | {"num_epochs": 100, "eval_every": 50, "precision": "float16", "probe_examples": 5_000}
PAPER_GRID = (
    (0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.15, 0.2, 0.25),
    (0.0, 0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.0125, 0.015, 0.02),
)


def _presets(
    *,
    model: str,
    width: int,
    rates: tuple[float, ...],
    smoke: tuple[tuple[float, ...], tuple[float, ...]],
    paper: Mapping[str, Any],
    net: str,
) -> dict[str, Preset]:
    small = SMALL | {"model": model}
    ladder = (width // 2, width, 2 * width)
    grid = f"{len(rates)} learning rates x {len(LAMS)} lams"
    return presets(
        smoke=Preset(
            description="200 images, 12 epochs, 3 learning rates x 4 lams",
            budget="20 seconds",
            arms=_arms(*smoke, small | SMOKE, (4,)),
        ),
        laptop=Preset(
            description=f"width {width}, 320 epochs, 500 Fashion-MNIST images at 7 x 7, {grid}",
            budget="10 minutes on 2 cores",
            arms=_arms(rates, LAMS, small | {"num_train": 500}, (width,)),
            num_seeds=3,
        ),
        night=Preset(
            description=f"as laptop, with 1,000 images, more seeds, and a ladder of widths {ladder}; {grid}",
            budget="90 minutes on 2 cores",
            arms=_arms(rates, LAMS, small | {"num_train": 1_000}, ladder),
            main_size=width,
        ),
        paper=Preset(
            description=f"{net} on CIFAR-10, 100 epochs, the learning rates and lams of figure 3",
            budget="weeks on one GPU",
            arms=_arms(*PAPER_GRID, {**PAPER, "model": model, **paper}, (64,)),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    )


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
        paper={},
        net="pre-activation ResNet-18",
    ),
)

_VGG_CLAIMS = ("loss-rises", "noise-rises", "jacobian-falls", "jacobian-rate", *(f"collapse-{kind}" for kind in KINDS))

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
        paper={"blocks": (2, 2, 3, 3, 3)},
        net="VGG-16 without BatchNorm",
    ),
)
