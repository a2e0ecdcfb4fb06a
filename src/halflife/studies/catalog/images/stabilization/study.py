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

from halflife.studies.catalog.images.stabilization import quantities as rules
from halflife.studies.evidence.claims import Arm, Panel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = ["PUBLISHED", "PUBLISHED_VGG", "STABILIZATION", "STABILIZATION_VGG"]


def _errors(results: Results, rate: str) -> str:
    """Final test errors (%) with and without decay at one of the two rates, with their intervals over seeds."""
    with_decay, without = (
        seed_interval(100 * results.last(f"{rate}-{arm}", "test/error", results.main_size)) for arm in ("decay", "none")
    )
    return " / ".join(f"{e.estimate:.1f} [{e.low:.1f}, {e.high:.1f}]" for e in (with_decay, without))


def _row(rate: str, published: str, where: str) -> Published:
    return Published(
        quantity=f"final test error (%) with / without decay, {rate} learning rate",
        published=published,
        where=where,
        how="fig-read",
        ours=functools.partial(_errors, rate=rate),
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


CLAIMS = (
    WordedClaim(
        key="a",
        text="With a large learning rate, weight decay lowers the final test error.",
        rule="Reproduced if the 95 % interval of (error with decay - error without) lies below 0; not reproduced if it"
        f" excludes an improvement of {rules.SMALLEST_EFFECT} points; else inconclusive.",
        effect_name="change of the final test error by decay, large learning rate",
        unit="points",
        measure=rules.helps_at_large_lr,
    ),
    WordedClaim(
        key="b",
        text="With a small learning rate it does not, or much less.",
        rule="Reproduced if the 95 % interval of (effect at the small rate - half of the effect at the large rate) lies"
        " above 0; not reproduced if it lies below 0; inconclusive else, and if (a) is not reproduced.",
        effect_name="effect of decay at the small learning rate minus half of that at the large one",
        unit="points",
        measure=rules.not_at_small_lr,
    ),
    WordedClaim(
        key="c",
        text="With a large learning rate and decay the training loss stays on a plateau until the rate drops; without"
        " decay it goes towards 0.",
        rule="Over the second half of the epochs before the drop the mean training loss of an epoch is fitted as epochs^-p."
        f" Reproduced if the 95 % intervals say p < {rules.PLATEAU_EXPONENT} with decay, p > {rules.VANISHING_EXPONENT:g}"
        f" without, and a loss before the drop more than {rules.PLATEAU_LEVEL:g} times that without decay; not reproduced"
        " if one of the three intervals lies wholly on the other side; else inconclusive.",
        effect_name="training loss before the drop, with decay over without",
        unit="x",
        measure=rules.loss_plateaus,
    ),
    WordedClaim(
        key="d",
        text="Runs with the same lam end with nearly the same norm and training loss, but different test errors.",
        rule=f"Reproduced if the 90 % intervals of both ratios (small over large learning rate) lie within"
        f" {rules.EQUAL_MARGIN:.0%} of 1 and the 95 % interval of the difference in test error excludes 0; not reproduced if a"
        f" ratio's interval lies wholly outside, or the errors agree within {rules.SMALLEST_EFFECT} points; else inconclusive.",
        effect_name="test error of the small minus the large learning rate, same lam",
        unit="points",
        measure=rules.same_norm_other_error,
    ),
    WordedClaim(
        key="e",
        text="The moving average of the weights (0.999 per step) gives most of the gain already before the drop.",
        rule="Reproduced if the drop lowers the test error (95 % interval above 0) and the 95 % interval of (gain by the"
        " average before the drop - half of the gain by the drop) lies above 0; not reproduced if it lies below 0; else"
        " inconclusive.",
        effect_name="gain by the average before the drop minus half of the gain by the drop",
        unit="points",
        measure=functools.partial(rules.average_gains_early, decay=0.999),
    ),
    WordedClaim(
        key="e-short",
        text="The same for an average over as many epochs as in the paper (0.99 per step at 39 steps an epoch and 0.999"
        " at 391 both reach back 2.6 epochs).",
        rule="As (e), for the average with 0.99 per step.",
        effect_name="gain by the short average before the drop minus half of the gain by the drop",
        unit="points",
        measure=functools.partial(rules.average_gains_early, decay=0.99),
    ),
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


def _spec(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(
    rates: tuple[float, float], lam: float, common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    return tuple(
        Arm(
            key=f"{name}-{'decay' if decay else 'none'}",
            label=f"lr {lr:g}, lam {decay:g}",
            size=width,
            spec=_spec({"lr": lr, "lam": decay, "width": width, **common}, 0),
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
    return {
        "smoke": Preset(
            description="640 training and 500 test images, 4 epochs: shows that everything works, not what is true",
            budget="20 seconds",
            arms=_arms(
                rates,
                lam,
                small | {"num_epochs": 4, "num_train": 640, "num_test": 500, "eval_every": 2},
                (4,),
            ),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description=f"width {laptop_width}, {laptop_epochs} epochs, 5,000 Fashion-MNIST images at 14 x 14",
            budget="10 minutes on 2 cores",
            arms=_arms(rates, lam, small | {"num_epochs": laptop_epochs}, (laptop_width,)),
            num_seeds=5,
            main_size=laptop_width,
        ),
        "night": Preset(
            description=f"as laptop, with 160 epochs, more seeds, and a ladder of widths {night_widths}",
            budget="90 minutes on 2 cores",
            arms=_arms(rates, lam, small | {"num_epochs": 160, "eval_every": 20}, night_widths),
            num_seeds=6,
            main_size=laptop_width,
            num_ladder_seeds=3,
        ),
        "paper": paper,
    }


_PAPER = {
    "data": "cifar10",
    "downsample": 1,
    "num_epochs": 1000,
    "lr_after_drop": 1e-4,
    "precision": "float16",
    "ema": (0.999, 0.99),
    "eval_every": 10,
}
_PAPER_NEEDS = "CIFAR-10's binary version (--data DIR) and a GPU"

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
            arms=_arms((0.08, 0.001), 0.0125, _PAPER | {"model": "resnet", "blocks": (2, 2, 2, 2)}, (64,)),
            num_seeds=3,
            main_size=64,
            needs=_PAPER_NEEDS,
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
            main_size=64,
            needs=_PAPER_NEEDS,
        ),
    ),
)
