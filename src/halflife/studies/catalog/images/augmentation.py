"""Decay beside augmentation on images: does more data of the same kind replace it?

Source: the open question of D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), whose runs on images are all without augmentation. The claims are ours, and their rules two-sided.

Settings were found on seeds 1000 and above, before any run of the presets' seeds.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import points
from halflife.studies.catalog.language.common import PAPER_TITLE
from halflife.studies.evidence.claims import Arm, Panel, PointRow, PointsPanel, Preset, Study
from halflife.studies.evidence.decisions import Finding, WordedClaim, above_zero, best_of, lowered
from halflife.studies.evidence.optimum import PAIRED_NOTE, ZERO_NOTE, lam_places, paired_rows
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval
from halflife.studies.specs.images import ImageRun

__all__ = ["AUGMENTATION"]

KINDS = ("none", "flip-crop")
NUM_LAMS = 4  # the first is 0
SMALLEST_EFFECT = 0.5  # points of test error, as in the stabilization studies


def key_of(kind: str, lam: int) -> str:
    """The arm of an augmentation and a lam by its index in the grid."""
    return f"{kind}-{lam}"


def gain_of_decay(results: Results, kind: str, size: int) -> NDArray[np.float64]:
    """Wrong without decay minus wrong with the best lam, chosen on the other seeds, in points per seed and example."""
    keys = [key_of(kind, lam) for lam in range(1, NUM_LAMS)]
    with_decay_SN = best_of(results, keys, "test/error", size, array="test/wrong")
    return 100 * (results.last_array(key_of(kind, 0), "test/wrong", size) - with_decay_SN)


def _error(results: Results, kind: str, size: int) -> str:
    return f"{100 * results.last(key_of(kind, 0), 'test/error', size).mean():.1f} %"


def gain_shrinks(results: Results, size: int) -> Finding:
    """The gain of decay without augmentation against that with."""
    plain_SN, augmented_SN = (gain_of_decay(results, kind, size) for kind in KINDS)
    plain, augmented, effect = (crossed_interval(d_SN) for d_SN in (plain_SN, augmented_SN, plain_SN - augmented_SN))
    return Finding(
        above_zero(effect),
        effect,
        f"decay gains {points(plain)} of test error without augmentation and {points(augmented)} with: the first minus the"
        f" second is {points(effect)}; without decay the error is {_error(results, KINDS[0], size)} without and"
        f" {_error(results, KINDS[1], size)} with augmentation",
    )


def helps_augmented(results: Results, size: int) -> Finding:
    """The best lam against none, with augmentation."""
    effect = crossed_interval(-gain_of_decay(results, KINDS[1], size))
    return Finding(
        lowered(effect, SMALLEST_EFFECT),
        effect,
        f"with augmentation the best lam changes the final test error by {points(effect)}",
    )


CLAIMS = (
    WordedClaim(
        key="shrinks",
        text="Augmentation shrinks what decay gains on images (our claim).",
        rule="Reproduced if the 95 % interval of (gain without augmentation - gain with) lies above 0; not reproduced if it"
        " lies below 0; else inconclusive. A gain is the test error without decay minus that with the best lam, chosen on the"
        " other seeds.",
        effect_name="gain of decay without augmentation minus with",
        unit="points",
        measure=gain_shrinks,
    ),
    WordedClaim(
        key="helps",
        text="Beside augmentation decay still lowers the test error (our claim).",
        rule="Reproduced if the 95 % interval of (error with the best lam, chosen on the other seeds - error without decay)"
        f" lies below 0, else not reproduced if it excludes an improvement of {SMALLEST_EFFECT} points, else inconclusive.",
        effect_name="change of the test error by decay, with augmentation",
        unit="points",
        measure=helps_augmented,
    ),
)


def sweep_rows(results: Results) -> list[PointRow]:
    """The final test error against lam, and a point without decay, for each augmentation."""
    size, rows = results.main_size, []
    for kind in KINDS:
        keys = [key_of(kind, index) for index in range(NUM_LAMS)]
        lams = []
        for key in keys:
            spec = results.spec(key, size)
            assert isinstance(spec, ImageRun)
            lams.append(spec.lam)
        errors_LS = 100 * np.array([results.last(key, "test/error", size) for key in keys])
        rows += paired_rows(kind, lam_places(lams), errors_LS, apart=1)
    return rows


def _spec(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(lr: float, lams: tuple[float, ...], common: Mapping[str, Any], widths: tuple[int, ...]) -> tuple[Arm, ...]:
    return tuple(
        Arm(
            key=key_of(kind, index),
            label=f"{kind}, lam {lam:g}",
            size=width,
            spec=_spec({"lr": lr, "lam": lam, "width": width, "augmentation": kind, "ema": (), **common}, 0),
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
            rows=sweep_rows,
            log_x=True,
            note=f"{PAIRED_NOTE} {ZERO_NOTE}",
        ),
        Panel(metric="train/running_loss", title="Training loss", y_label="training cross-entropy", log=True),
        Panel(metric="test/error", title="Test error", y_label="test error (%)", factor=100),
    ),
    presets={
        "smoke": Preset(
            description="640 training and 500 test images, 2 epochs: shows that everything works, not what is true",
            budget="20 seconds",
            arms=_arms(LR, LAMS, {"num_epochs": 2, "num_train": 640, "num_test": 500}, (4,)),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="ResNet of width 8, 200 epochs, 1,000 Fashion-MNIST images at 14 x 14",
            budget="10 minutes on 2 cores",
            arms=_arms(LR, LAMS, {"num_epochs": 200, "num_train": 1_000, "eval_every": 50}, (8,)),
            num_seeds=5,
            main_size=8,
        ),
        "night": Preset(
            description="as laptop, with more seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(LR, LAMS, {"num_epochs": 200, "num_train": 1_000, "eval_every": 50}, (4, 8, 16)),
            num_seeds=10,
            main_size=8,
            num_ladder_seeds=5,
        ),
        "paper": Preset(
            description="pre-activation ResNet-18 on CIFAR-10, 1000 epochs, learning rate 0.08",
            budget="days on one GPU",
            arms=_arms(
                0.08,
                (0.0, 0.005, 0.0125, 0.025),
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "num_epochs": 1000,
                    "lr_after_drop": 1e-4,
                    "precision": "float16",
                },
                (64,),
            ),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    },
)
