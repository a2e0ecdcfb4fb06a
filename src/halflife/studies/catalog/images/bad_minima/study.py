"""Bad minima: a net that has met random labels is trained on the true ones. Does SGD leave, and what does it need for that?

Source: Liu, Papailiopoulos, Achlioptas, "Bad Global Minima Exist and SGD Can Reach Them" (NeurIPS 2020, arXiv 1906.02613):
without regularization it does not leave, and with the usual heuristics (data augmentation, weight decay, momentum) the bad
start costs nothing. Here it is asked of the learning rate and of lam alone, one at a time.

Each seed has one net that meets random labels, and from it, and from fresh weights, one run on the true labels for each
setting, with the same order of the data. All rates drop to the same small one for the last fifth of the epochs.

The rules were written before any run of the presets' seeds. On seeds 1000 and 1001 were tried: ResNets of width 8 and 16 with
500 and 1,000 images of 7 x 7 (both meet random labels; the gap at a small rate without decay was about 2 points in each, and
500 is cheaper), at rates 0.01 to 0.3 and lam 0 to 0.1; MLPs of width 128 and 256; a VGG, which had not met random labels
after 100 epochs and was left out. So the direction of the main effects was seen, decay's more than the rate's; the margins
are round numbers and were not moved.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.images.bad_minima import figures
from halflife.studies.catalog.images.bad_minima import quantities as rules
from halflife.studies.evidence.claims import Arm, HeatPanel, Panel, PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.images import ImageBranch, ImageRun

__all__ = ["BAD_MINIMA", "CLAIMS"]

BAD_RULE = (
    f"Where random and true labels were fitted (95 % intervals of both training errors below {rules.FITTED:.0%}): reproduced if"
    f" the 95 % interval of the gap (test error from the bad start minus that from a fresh one) lies above"
    f" {rules.GAP:g} point; not reproduced if it lies below; else, and where they were"
    " not fitted, inconclusive."
)
CLOSES_RULE = (
    f"Reproduced if the 90 % interval of the gap lies within +- {rules.GAP:g} point, where the 95 % interval of the gap at the"
    f" small rate without decay lies above {rules.GAP:g} point; not reproduced if it lies wholly outside; else inconclusive."
)
SHRINKS_RULE = (
    f"Reproduced if the gap has shrunk to less than {rules.KEPT:g} of that at the small rate without decay, in either direction"
    f" (95 % intervals of gap - {rules.KEPT:g} * that below 0, and of gap + {rules.KEPT:g} * that above 0); not reproduced if"
    " one lies on the other side; inconclusive else, and where there was no gap (95 % interval not above 0)."
)

CLAIMS = (
    WordedClaim(
        key="bad",
        text="ResNet: from weights that fit random labels, SGD with a small learning rate and without decay fits the true"
        " labels at a global minimum that generalizes worse.",
        rule=BAD_RULE,
        effect_name="gap at the small rate without decay, ResNet",
        unit="points",
        measure=functools.partial(rules.is_bad, model=rules.RESNET),
    ),
    WordedClaim(
        key="escape",
        text="ResNet: with a large learning rate and decay SGD leaves it: the start does not matter.",
        rule=CLOSES_RULE,
        effect_name="gap at the large rate with decay, ResNet",
        unit="points",
        measure=functools.partial(rules.gap_closes, model=rules.RESNET),
    ),
    WordedClaim(
        key="rate-alone",
        text="ResNet: the large learning rate is enough without decay.",
        rule=SHRINKS_RULE,
        effect_name="gap at the large rate minus half of that at the small one, both without decay",
        unit="points",
        measure=rules.rate_is_enough,
    ),
    WordedClaim(
        key="decay-alone",
        text="ResNet: the same lam is enough at the small learning rate.",
        rule=SHRINKS_RULE,
        effect_name="gap at the small rate with decay minus half of that without",
        unit="points",
        measure=functools.partial(rules.decay_is_enough, matched=False),
    ),
    WordedClaim(
        key="product",
        text="ResNet: the same lr * lam is enough at the small learning rate.",
        rule=SHRINKS_RULE,
        effect_name="gap at the small rate with the product of the large one minus half of that without decay",
        unit="points",
        measure=functools.partial(rules.decay_is_enough, matched=True),
    ),
    WordedClaim(
        key="mlp-bad",
        text="MLP: at the smallest learning rate and without decay the bad start raises the test error, too.",
        rule=BAD_RULE,
        effect_name="gap at the smallest rate without decay, MLP",
        unit="points",
        measure=functools.partial(rules.is_bad, model=rules.MLP),
    ),
    WordedClaim(
        key="mlp-escape",
        text="MLP: with the largest rate and decay the start does not matter.",
        rule=CLOSES_RULE,
        effect_name="gap at the largest rate with the largest lr * lam, MLP",
        unit="points",
        measure=functools.partial(rules.gap_closes, model=rules.MLP),
    ),
    WordedClaim(
        key="mlp-falls",
        text="MLP: the gap falls as lr * lam grows.",
        rule="Over all rates and products with decay: reproduced if the 95 % interval of the slope of the gap against"
        " log10(lr * lam) lies below 0; not reproduced if it lies above; else inconclusive.",
        effect_name="change of the gap for each factor of 10 in lr * lam",
        unit="points",
        measure=rules.falls_with_the_product,
    ),
    WordedClaim(
        key="mlp-product",
        text="MLP: at the same lr * lam the learning rate does not matter to the gap.",
        rule=f"At lr * lam = {rules.MIDDLE:g}: reproduced if the 90 % interval of (gap at lr {rules.GRID_RATES[0]:g} - gap at"
        f" lr {rules.GRID_RATES[-1]:g}) lies within +- {rules.GAP:g} point, where the 95 % interval of the gap at the smallest"
        f" rate without decay lies above {rules.GAP:g} point; not reproduced if it lies wholly outside; else inconclusive.",
        effect_name="gap at the smallest rate minus that at the largest one, same lr * lam",
        unit="points",
        measure=rules.product_is_enough,
    ),
)


SMALL, LARGE, LAM = 0.02, 0.1, 0.02  # of the ResNet
AFTER_DROP = 0.01
MATCHED = LAM * LARGE / SMALL  # at the small rate the product of the large one

GAP_NOTE = (
    "Test error from weights that fit random labels minus that from fresh weights, in points; positive where the bad start"
    " is worse."
)
CURVES = tuple(
    rules.key_of(rules.RESNET, start, setting)
    for setting in (rules.SMALL_NONE, rules.LARGE_NONE, rules.LARGE_DECAY)
    for start in (rules.BAD, rules.FRESH)
)

PANELS = (
    PointsPanel(
        slug="errors",
        title="ResNet: test error from a bad and from a fresh start",
        x_label="lam",
        y_label="test error (%)",
        rows=figures.errors_by_setting,
        note="Means over seeds and test images with 95 % intervals; lines join one learning rate and start.",
    ),
    HeatPanel(
        slug="resnet-gaps",
        title="ResNet: test error from the bad start minus that from a fresh one",
        x_label="learning rate",
        y_label="lam",
        value_label="gap (points)",
        cells=figures.resnet_gaps,
        note=GAP_NOTE,
    ),
    Panel(
        metric="train/running_loss",
        title="ResNet: training loss on the true labels",
        y_label="training cross-entropy",
        log=True,
        arms=CURVES,
    ),
    Panel(metric="weight_norm", title="ResNet: norm of the weights", y_label="norm of all weights", arms=CURVES),
    HeatPanel(
        slug="mlp-gaps",
        title="MLP: test error from the bad start minus that from a fresh one",
        x_label="learning rate",
        y_label="lr * lam",
        value_label="gap (points)",
        cells=figures.grid_of_gaps,
        note=GAP_NOTE,
    ),
    PointsPanel(
        slug="product",
        title="MLP: the gap against lr * lam",
        x_label="lr * lam",
        y_label="gap (points)",
        rows=figures.gap_against_product,
        log_x=True,
        note=f"{GAP_NOTE} Points with 95 % intervals; lines: without decay.",
    ),
)

PUBLISHED = (
    Published(
        quantity="test accuracy lost by the bad start without regularization (points); ours with a ResNet / an MLP, other data"
        " and sizes",
        published="up to 40",
        where="abstract of the first version",
        how="text",
        ours=figures.smallest_gap,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large the runs are.

    Args:
        common: Fields of all runs.
        resnet: Fields of the ResNet's runs.
        mlp: Fields of the MLP's runs.
        resnet_epochs: On random labels, and then on the true ones.
        mlp_epochs: The same of the MLP.
        mlp_rate: Learning rate of the MLP on random labels.
    """

    common: Mapping[str, Any]
    resnet: Mapping[str, Any]
    mlp: Mapping[str, Any]
    resnet_epochs: tuple[int, int] = (80, 80)
    mlp_epochs: tuple[int, int] = (200, 160)
    mlp_rate: float = 0.2

    def arms(self, widths: tuple[int, ...], main: int) -> tuple[Arm, ...]:
        """All arms: ResNets of these widths, and the MLP beside the main one."""
        resnet_settings = {
            rules.SMALL_NONE: (SMALL, 0.0),
            rules.SMALL_DECAY: (SMALL, LAM),
            rules.SMALL_MATCHED: (SMALL, MATCHED),
            rules.LARGE_NONE: (LARGE, 0.0),
            rules.LARGE_DECAY: (LARGE, LAM),
        }
        mlp_settings = {
            rules.grid_setting(lr, product): (lr, float(f"{product / lr:.4g}"))
            for lr in rules.GRID_RATES
            for product in rules.GRID_PRODUCTS
        }
        arms: list[Arm] = []
        for width in widths:
            fields = {**self.common, **self.resnet, "model": "resnet", "width": width}
            arms += _arms_of(rules.RESNET, width, fields, LARGE, self.resnet_epochs, resnet_settings)
        fields = {**self.common, **self.mlp, "model": "mlp"}
        arms += _arms_of(rules.MLP, main, fields, self.mlp_rate, self.mlp_epochs, mlp_settings)
        return tuple(arms)


def _arms_of(
    model: str,
    size: int,
    fields: Mapping[str, Any],
    rate: float,
    epochs: tuple[int, int],
    settings: Mapping[str, tuple[float, float]],
) -> list[Arm]:
    first, then = epochs
    name = {rules.RESNET: "ResNet", rules.MLP: "MLP"}[model]
    random = {
        **fields, "lr": rate, "lr_after_drop": rate, "drop_at": 1.0, "lam": 0.0, "num_epochs": first, "eval_every": first,
        "label_noise": 1.0, "keep_at": (first,),
    }  # fmt: skip
    arms = [
        Arm(
            key=rules.parent_key(model),
            label=f"{name}, random labels",
            size=size,
            spec=_fresh(random, 0),
        )
    ]
    for setting, (lr, lam) in settings.items():
        true = {
            **fields, "lr": lr, "lr_after_drop": min(lr, AFTER_DROP), "drop_at": 0.8, "lam": lam, "num_epochs": then,
            "eval_every": then,
        }  # fmt: skip
        label = f"{name}, lr {lr:g}, lam {lam:.3g}"
        arms += [
            Arm(
                key=rules.key_of(model, rules.BAD, setting),
                label=f"{label}, bad start",
                size=size,
                spec=_branch(random, true, 0),
            ),
            Arm(
                key=rules.key_of(model, rules.FRESH, setting),
                label=f"{label}, fresh",
                size=size,
                spec=_fresh(true, 0),
            ),
        ]
    return arms


def _fresh(fields: Mapping[str, Any], seed: int) -> RunSpec:
    return ImageRun(seed=seed, **fields)


def _branch(random: Mapping[str, Any], true: Mapping[str, Any], seed: int) -> RunSpec:
    parent = ImageRun(seed=seed, **random)
    return ImageBranch(of=parent, at=parent.num_epochs, then=ImageRun(seed=seed, **true))


SMOKE = Scale(
    common={"num_train": 50, "num_test": 100, "downsample": 4, "batch_size": 25, "ema": ()},
    resnet={"blocks": (1, 1)},
    mlp={"width": 8, "blocks": (1,)},
    resnet_epochs=(2, 2),
    mlp_epochs=(2, 2),
)
LAPTOP = Scale(
    common={"downsample": 4, "ema": ()},
    resnet={"num_train": 500, "batch_size": 25, "blocks": (1, 1, 1)},
    mlp={"num_train": 1000, "batch_size": 50, "width": 128, "blocks": (1, 1)},
)
NIGHT = Scale(
    common=LAPTOP.common,
    resnet=LAPTOP.resnet,
    mlp=LAPTOP.mlp,
    resnet_epochs=(100, 160),
    mlp_epochs=(300, 320),
)
PAPER = Scale(
    common={"data": "cifar10", "downsample": 1, "batch_size": 128, "ema": ()},
    resnet={"blocks": (2, 2, 2, 2)},
    mlp={"width": 512, "blocks": (1, 1, 1)},
    resnet_epochs=(200, 200),
    mlp_epochs=(200, 200),
    mlp_rate=0.1,
)

BAD_MINIMA = Study(
    name="bad-minima",
    title="Global minima that generalize badly, and what it takes to leave them",
    source="Liu, Papailiopoulos, Achlioptas 2020 (arXiv 1906.02613)",
    claim="There are global minima of the training loss that generalize badly, and SGD started near them stays; a large"
    " learning rate with decay makes it leave.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width of the ResNet",
    doc_panels=("errors", "mlp-gaps"),
    presets={
        "smoke": Preset(
            description="50 training and 100 test images, 2 epochs: shows that everything works, not what is true",
            budget="10 seconds",
            arms=SMOKE.arms((4,), 4),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="ResNet of width 16, 500 images of 7 x 7 for 80 epochs after 80 on random labels; MLP of width 128,"
            " 1,000 images for 160 epochs after 200",
            budget="6 minutes on 2 cores",
            arms=LAPTOP.arms((16,), 16),
            num_seeds=5,
            main_size=16,
        ),
        "night": Preset(
            description="as laptop, with up to twice the epochs, more seeds, and ResNets of width 8, 16 and 32",
            budget="60 minutes on 2 cores",
            arms=NIGHT.arms((8, 16, 32), 16),
            num_seeds=8,
            main_size=16,
            num_ladder_seeds=4,
        ),
        "paper": Preset(
            description="ResNet-18 and an MLP on CIFAR-10 without augmentation, 200 epochs after 200 on random labels; rates"
            " and decays are ours",
            budget="days on one GPU",
            arms=PAPER.arms((64,), 64),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    },
)
