"""Loss stabilization: a large learning rate with decay holds the loss up, and that noisy phase pays after the drop.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 2, figures 2, 11 and 12.

Four arms, each for the same seeds: {large, small} learning rate x {lam > 0, lam = 0}. The rules below were written
before any run of the presets' seeds; learning rates and lam were chosen on other seeds (1000 and above) and never on
the seeds that the presets run.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import CIFAR_10, CIFAR_10_NEEDS, RESNET_18, image_run, level, wrong
from halflife.studies.evidence.claims import Arm, Claim, Panel, Preset, Published, Rule, Study, presets
from halflife.studies.evidence.quantities import Measure, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import published_level
from halflife.studies.evidence.tests import above, below, differs, exceeds_factor, lowered, within_factor
from halflife.studies.specs.images import ImageRun

__all__ = ["PUBLISHED", "PUBLISHED_VGG", "STABILIZATION", "STABILIZATION_VGG", "falling_exponents"]

SMALLEST_EFFECT = 0.5  # points of test error: an improvement below this would not make anybody tune lam
PLATEAU_EXPONENT = 0.5  # the loss falls by less than sqrt(2) while the epochs double
VANISHING_EXPONENT = 1.0  # the loss falls at least as 1 / epochs
PLATEAU_LEVEL = 2.0  # times the loss of the same run without decay
EQUAL = 1.1  # norms and losses within this factor are "nearly the same"


def drop(spec: ImageRun) -> int:
    """The last epoch before the learning rate drops."""
    return spec.drop_epoch


def falling_exponents(results: Results, size: int, *, arm: str) -> NDArray[np.float64]:
    """Per seed the p of loss ~ epochs^-p over the second half of the epochs before the drop, shape (S,)."""
    last = image_run(results, arm, size).drop_epoch
    exponents = []
    for epochs, losses in results.series(arm, "train/running_loss", size):
        inside = (epochs >= last / 2) & (epochs <= last)
        exponents.append(-np.polyfit(np.log(epochs[inside]), np.log(losses[inside]), 1)[0])
    return np.array(exponents)


def effect_of_decay(rate: str) -> Measure:
    """Final test error with decay minus without, in points."""
    return wrong(f"{rate}-decay") - wrong(f"{rate}-none")


def between_rates(name: str, what: str, decay: str = "decay", where: str = "same lam") -> Quantity:
    """A reading at the end, small over large learning rate, both with decay or both without."""
    ratio = level(f"small-{decay}", name) / level(f"large-{decay}", name)
    return Quantity(name=f"{what} of the small over the large learning rate, {where}", values=ratio, unit="x", log=True)


def plateau(with_decay: str = "large-decay", without: str = "large-none") -> Rule:
    """The loss stays up with decay, and falls towards 0 without.

    Args:
        with_decay: The arm with decay.
        without: The arm without, which drops its rate at the same epoch.

    Returns:
        The rule.
    """
    ratio = level(with_decay, "train/loss", drop) / level(without, "train/loss", drop)
    falls = {
        arm: Quantity(
            name=f"p of loss ~ epochs^-p over the second half of the epochs before the drop, {words}",
            values=functools.partial(falling_exponents, arm=arm),
        )
        for arm, words in ((with_decay, "with decay"), (without, "without"))
    }
    return Rule(
        parts=(
            (Quantity(name="training loss before the drop, with decay over without", values=ratio, unit="x", log=True),
             above(PLATEAU_LEVEL)),
            (falls[with_decay], below(PLATEAU_EXPONENT)),
            (falls[without], above(VANISHING_EXPONENT)),
        )
    )  # fmt: skip


def early_gain(decay: str) -> Rule:
    """The average before the drop gives more than half of what the drop gives."""
    before = wrong("large-decay", drop)
    by_drop = before - wrong("large-decay")
    by_average = before - wrong("large-decay", drop, average=f"ema-{decay}/")
    return Rule(
        parts=(
            (
                Quantity(
                    name=f"gain by the average (EMA {decay}) before the drop - half of the gain by the drop",
                    values=by_average - 0.5 * by_drop,
                    unit="points",
                ),
                above(0),
            ),
        ),
        given=((Quantity(name="gain in test error by the drop", values=by_drop, unit="points"), above(0)),),
    )


LARGE = Quantity(
    name="final test error with decay - without, large learning rate", values=effect_of_decay("large"), unit="points"
)
CONTRAST = Quantity(
    name="effect of decay on the final test error at the small learning rate - half of that at the large one",
    values=effect_of_decay("small") - 0.5 * effect_of_decay("large"),
    unit="points",
)
RATES = Quantity(
    name="final test error of the small - the large learning rate, same lam",
    values=wrong("small-decay") - wrong("large-decay"),
    unit="points",
)

CLAIMS = (
    Claim(
        key="helps",
        text="With a large learning rate, weight decay lowers the final test error.",
        rule=Rule(parts=((LARGE, lowered(SMALLEST_EFFECT)),)),
    ),
    Claim(
        key="small-rate",
        text="With a small learning rate weight decay does not lower the final test error, or much less than with a large one.",
        rule=Rule(parts=((CONTRAST, above(0)),), given=((LARGE, below(0)),)),
    ),
    Claim(
        key="plateau",
        text="With a large learning rate and decay the training loss stays on a plateau until the rate drops; without"
        " decay it goes towards 0.",
        rule=plateau(),
    ),
    Claim(
        key="same-norm",
        text="Runs with the same lam and different learning rates end with nearly the same norm and training loss, but"
        " different test errors.",
        rule=Rule(
            parts=(
                (RATES, differs(SMALLEST_EFFECT)),
                (between_rates("weight_norm", "final norm"), within_factor(EQUAL)),
                (between_rates("train/loss", "final training loss"), within_factor(EQUAL)),
            ),
            # Without it two rates whose norms are alike anyhow would count as equal by decay.
            stake=((between_rates("weight_norm", "final norm", "none", "without decay"), exceeds_factor(EQUAL)),),
        ),
    ),
    Claim(
        key="average",
        text="The moving average of the weights (0.999 per step) gives most of the gain of the drop already before the drop.",
        rule=early_gain("0.999"),
    ),
    Claim(
        key="short-average",
        text="A moving average over as many epochs as in the paper (0.99 per step at 39 steps an epoch reaches back 2.6"
        " epochs, as 0.999 at 391) gives most of the gain of the drop already before the drop.",
        rule=early_gain("0.99"),
    ),
)


def _row(rate: str, published: str, where: str) -> Published:
    return Published(
        quantity=f"final test error (%) with / without decay, {rate} learning rate",
        published=published,
        where=where,
        how="fig-read",
        ours=published_level(*(100 * level(f"{rate}-{arm}", "test/error") for arm in ("decay", "none")), form=".1f"),
    )


PUBLISHED = (
    _row("large", "9.5 / 14", "figure 2a, ResNet-18 on CIFAR-10, lr 0.1"),
    _row("small", "25 / 33", "figure 2a, ResNet-18 on CIFAR-10, lr 0.001"),
    _row("large", "10.4 / 14.6", "figure 11, ResNet-18 on CIFAR-10, lr 0.08"),
    _row("small", "18.6 / 33.3", "figure 11, ResNet-18 on CIFAR-10, lr 0.001"),
)
PUBLISHED_VGG = (
    _row("large", "16.0 / 19.8", "figure 12, VGG-16 on CIFAR-10, lr 0.1"),
    _row("small", "31 / 24.2", "figure 12, VGG-16 on CIFAR-10, lr 0.01"),
)


PANELS = (
    Panel(
        metric="test/error",
        title="Test error",
        y_label="test error (%)",
        factor=100,
        source_figure="figures 2a, 11, 12",
    ),
    Panel(
        metric="train/running_loss",
        title="Training loss",
        y_label="training cross-entropy",
        log=True,
        source_figure="figures 2b, 11, 12",
    ),
    Panel(
        metric="ema-0.999/test/error",
        title="Test error of the average (EMA 0.999)",
        y_label="test error (%)",
        factor=100,
        source_figure="figure 2a",
    ),
    Panel(
        metric="ema-0.99/test/error",
        title="Test error of the short average (EMA 0.99)",
        y_label="test error (%)",
        factor=100,
    ),
    Panel(
        metric="weight_norm",
        title="Norm of the weights",
        y_label="norm of all weights",
        source_figure="figure 2c",
    ),
    Panel(
        metric="effective_lr",
        title="Effective learning rate",
        y_label="lr / norm squared",
        log=True,
    ),
)


def _arms(
    rates: tuple[float, float], lam: float, common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    return tuple(
        Arm(
            key=f"{name}-{'decay' if decay else 'none'}",
            label=f"lr {lr:g}, lam {decay:g}",
            size=width,
            spec=ImageRun(lr=lr, lam=decay, width=width, **common),
        )
        for width in widths
        for name, lr in zip(("large", "small"), rates, strict=True)
        for decay in (lam, 0.0)
    )


def _presets(
    *,
    model: str,
    blocks: tuple[int, ...],
    rates: tuple[float, float],
    lam: float,
    laptop_epochs: int,
    laptop_width: int,
    night_widths: tuple[int, ...],
    paper: Preset,
) -> dict[str, Preset]:
    small = {"model": model, "blocks": blocks, "ema": (0.999, 0.99)}
    return presets(
        smoke=Preset(
            description="640 training and 500 test images, 4 epochs",
            budget="20 seconds",
            arms=_arms(
                rates,
                lam,
                small | {"num_epochs": 4, "num_train": 640, "num_test": 500, "eval_every": 2},
                (4,),
            ),
        ),
        laptop=Preset(
            description=f"width {laptop_width}, {laptop_epochs} epochs, 5,000 Fashion-MNIST images at 14 x 14",
            budget="10 minutes on 2 cores",
            arms=_arms(rates, lam, small | {"num_epochs": laptop_epochs}, (laptop_width,)),
        ),
        night=Preset(
            description=f"as laptop, with 160 epochs, more seeds, and a ladder of widths {night_widths}",
            budget="90 minutes on 2 cores",
            arms=_arms(rates, lam, small | {"num_epochs": 160, "eval_every": 20}, night_widths),
            num_seeds=6,
            main_size=laptop_width,
        ),
        paper=paper,
    )


_PAPER = {
    **CIFAR_10,
    "num_epochs": 1000,
    "lr_after_drop": 1e-4,
    "precision": "float16",
    "ema": (0.999, 0.99),
    "eval_every": 10,
}

STABILIZATION = Study(
    name="stabilization",
    title="Loss stabilization in a ResNet with BatchNorm",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), section 2, figures 2 and 11",
    claim="Weight decay is not useful on its own: with a large learning rate it holds the training loss on a plateau, and"
    " that noisy phase is what improves the test error after the learning rate drops.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    presets=_presets(
        model="resnet",
        blocks=(1, 1, 1),
        rates=(0.1, 0.02),
        lam=0.01,
        laptop_epochs=80,
        laptop_width=8,
        night_widths=(4, 8, 16),
        paper=Preset(
            description="pre-activation ResNet-18 on CIFAR-10, 1000 epochs, learning rates 0.08 and 0.001, lam 0.0125",
            budget="days on one GPU",
            arms=_arms((0.08, 0.001), 0.0125, _PAPER | RESNET_18 | {"model": "resnet"}, (64,)),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    ),
)

STABILIZATION_VGG = Study(
    name="stabilization-vgg",
    title="Loss stabilization in a VGG without BatchNorm",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), appendix, figure 12 (figure 1 of its first version)",
    claim="The same holds in a net without normalization, where no layer is scale-invariant: the effect of decay is not"
    " explained by an effective learning rate alone.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED_VGG,
    presets=_presets(
        model="vgg",
        blocks=(1, 1, 2),
        rates=(0.1, 0.01),
        lam=0.005,
        laptop_epochs=120,
        laptop_width=16,
        night_widths=(8, 16, 32),
        paper=Preset(
            description="VGG-16 without BatchNorm on CIFAR-10, 1000 epochs, learning rates 0.1 and 0.01, lam 0.008",
            budget="days on one GPU",
            arms=_arms((0.1, 0.01), 0.008, _PAPER | {"model": "vgg", "blocks": (2, 2, 3, 3, 3)}, (64,)),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    ),
)
