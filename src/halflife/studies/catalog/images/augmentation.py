"""Decay beside augmentation on images: does more data of the same kind replace it?

Source: the open question of D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), whose runs on images are all without augmentation. The claims are ours, and their rules two-sided.

Settings were found on seeds 1000 and above, before any run of the presets' seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from halflife.studies.catalog.images.common import CIFAR_10_NEEDS, RESNET_18, image_run, in_points, level, wrong
from halflife.studies.catalog.language.common import PAPER_TITLE
from halflife.studies.evidence.claims import Arm, Claim, Panel, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.optimum import PAIRED_NOTE, lam_places
from halflife.studies.evidence.quantities import Best, Measure
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import Lines, against
from halflife.studies.evidence.tests import above, below, lowered
from halflife.studies.specs.images import ImageRun

__all__ = ["AUGMENTATION"]

KINDS = ("none", "flip-crop")
NUM_LAMS = 4  # the first is 0
SMALLEST_EFFECT = 0.5  # points of test error, as in the stabilization studies


def key_of(kind: str, lam: int) -> str:
    """The arm of an augmentation and a lam by its index in the grid."""
    return f"{kind}-{lam}"


def change_by_decay(kind: str) -> Measure:
    """Final test error with the best lam minus without decay, in points."""
    with_decay = Best(tuple(key_of(kind, lam) for lam in range(1, NUM_LAMS)), "test/wrong")
    return 100 * with_decay - wrong(key_of(kind, 0))


PLAIN, AUGMENTED = (
    in_points(f"final test error with the best lam - without decay, both {words} augmentation", change_by_decay(kind))
    for kind, words in zip(KINDS, ("without", "with"), strict=True)
)
SHRINKS = in_points(
    "effect of decay on the final test error with augmentation - without, best lam against none",
    change_by_decay("flip-crop") - change_by_decay("none"),
)

CLAIMS = (
    Claim(
        key="shrinks",
        text="Augmentation shrinks what decay gains on images (our claim).",
        rule=Rule(parts=((SHRINKS, above(0)),), given=((PLAIN, below(0)),)),
    ),
    Claim(
        key="helps",
        text="Beside augmentation decay still lowers the test error (our claim).",
        rule=Rule(parts=((AUGMENTED, lowered(SMALLEST_EFFECT)),)),
    ),
)


def sweep(results: Results, size: int) -> Lines:
    """The final test error in per cent against lam, a line an augmentation."""
    lines = {}
    for kind in KINDS:
        keys = [key_of(kind, index) for index in range(NUM_LAMS)]
        lams = [image_run(results, key, size).lam for key in keys]
        lines[kind] = [(lam, 100 * level(key, "test/error")) for lam, key in zip(lam_places(lams), keys, strict=True)]
    return lines


def _arms(lr: float, lams: tuple[float, ...], common: Mapping[str, Any], widths: tuple[int, ...]) -> tuple[Arm, ...]:
    return tuple(
        Arm(
            key=key_of(kind, index),
            label=f"{kind}, lam {lam:g}",
            size=width,
            spec=ImageRun(lr=lr, lam=lam, width=width, augmentation=kind, ema=(), **common),
        )
        for width in widths
        for kind in KINDS
        for index, lam in enumerate(lams)
    )


# Found on seed 1000: 1,000 images and 200 epochs give decay something to gain at this width; with 5,000 and 30 epochs the
# training error was 12 % still. Test error 22.4, 20.3 % at lam 0, 0.05 without augmentation, 24.7, 30.8 % with: to so small a
# net augmentation is a cost, so that the grid reaches down to where decay hardly acts.
LR = 0.1
LAMS = (0.0, 0.005, 0.02, 0.06)
SMALL = {"num_epochs": 200, "num_train": 1_000, "eval_every": 50}

AUGMENTATION = Study(
    name="augmentation",
    title="Decay and augmentation on images",
    source=f"an open question of {PAPER_TITLE}, section 2; the claims are ours",
    claim="Augmentation does part of what decay does: with it, decay gains less.",
    claims=CLAIMS,
    panels=(
        PointsPanel(
            slug="sweep",
            title="Final test error against lam",
            x_label="lam",
            y_label="test error (%)",
            rows=against(sweep, apart=1),
            log_x=True,
            zero_first=True,
            note=PAIRED_NOTE,
        ),
        Panel(metric="train/running_loss", title="Training loss", y_label="training cross-entropy", log=True),
        Panel(metric="test/error", title="Test error", y_label="test error (%)", factor=100),
    ),
    presets=presets(
        smoke=Preset(
            description="640 training and 500 test images, 2 epochs",
            budget="20 seconds",
            arms=_arms(LR, LAMS, {"num_epochs": 2, "num_train": 640, "num_test": 500}, (4,)),
        ),
        laptop=Preset(
            description="ResNet of width 8, 200 epochs, 1,000 Fashion-MNIST images at 14 x 14",
            budget="10 minutes on 2 cores",
            arms=_arms(LR, LAMS, SMALL, (8,)),
        ),
        night=Preset(
            description="as laptop, with more seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(LR, LAMS, SMALL, (4, 8, 16)),
            num_seeds=10,
            main_size=8,
            num_ladder_seeds=5,
        ),
        paper=Preset(
            description="pre-activation ResNet-18 on CIFAR-10, 1000 epochs, learning rate 0.08",
            budget="days on one GPU",
            arms=_arms(
                0.08,
                (0.0, 0.005, 0.0125, 0.025),
                RESNET_18 | {"num_epochs": 1000, "lr_after_drop": 1e-4, "precision": "float16"},
                (64,),
            ),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    ),
)
