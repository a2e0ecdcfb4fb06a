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

import itertools
from collections.abc import Mapping
from typing import Any

import numpy as np

from halflife.studies.catalog.images.common import CIFAR_10, CIFAR_10_NEEDS, in_points, point, wrong
from halflife.studies.evidence.claims import (
    Arm,
    Claim,
    HeatPanel,
    Panel,
    PointRow,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.quantities import Quantity, Reading, Terms
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import grid
from halflife.studies.evidence.rules import Part
from halflife.studies.evidence.stats import crossed_interval
from halflife.studies.evidence.tests import above, below, within
from halflife.studies.specs.images import ImageBranch, ImageRun

__all__ = ["BAD_MINIMA"]

BAD, FRESH = "bad", "fresh"  # starts: from weights that fit random labels, from fresh ones
RESNET, MLP = "resnet", "mlp"
NAMES = {RESNET: "ResNet", MLP: "MLP"}

SMALL, LARGE, LAM = 0.02, 0.1, 0.02  # of the ResNet
SETTINGS = {
    "small-none": (SMALL, 0.0),
    "small-decay": (SMALL, LAM),
    "small-matched": (SMALL, LAM * LARGE / SMALL),  # the product of the large rate
    "large-none": (LARGE, 0.0),
    "large-decay": (LARGE, LAM),
}
"""Learning rates and lams of the ResNet."""

GRID_RATES = (0.01, 0.03, 0.1)
GRID_PRODUCTS = (0.0, 1e-4, 3e-4, 1e-3)
GRID = tuple(itertools.product(GRID_RATES, GRID_PRODUCTS))
"""Learning rates and products lr * lam of the MLP."""
MIDDLE = GRID_PRODUCTS[2]

HARM = 1.0  # points of test error: a start that adds less is not bad
FITTED = 1.0  # % of training error: below, the labels count as fitted
KEPT = 0.5  # what shrinks to less than this share has shrunk


def key_of(model: str, start: str, setting: str) -> str:
    """The arm of a model, a start and a setting."""
    return f"{model}-{start}-{setting}"


def grid_setting(lr: float, product: float) -> str:
    """The name of a setting of the MLP's grid."""
    return f"{lr:g}-{product:g}"


def parent_key(model: str) -> str:
    """The arm that is trained on random labels."""
    return f"{model}-random"


def harm(model: str, setting: str) -> Terms:
    """Test error from the bad start minus that from a fresh one, in points."""
    return wrong(key_of(model, BAD, setting)) - wrong(key_of(model, FRESH, setting))


def _harm(model: str, setting: str, where: str) -> Quantity:
    return in_points(f"test error added by the bad start (from it - from a fresh one), {where}", harm(model, setting))


PLAIN = {
    RESNET: _harm(RESNET, "small-none", "small learning rate without decay"),
    MLP: _harm(MLP, grid_setting(GRID_RATES[0], 0.0), "smallest learning rate without decay"),
}
FULL = {
    RESNET: _harm(RESNET, "large-decay", "large learning rate with decay"),
    MLP: _harm(MLP, grid_setting(GRID_RATES[-1], GRID_PRODUCTS[-1]), "largest learning rate with the largest lr * lam"),
}


def bad_rule(model: str, setting: str) -> Rule:
    """The bad start adds to the test error, where random and true labels were both fitted."""
    labels = {"random": parent_key(model), "true": key_of(model, BAD, setting)}
    fitted = (
        Quantity(name=f"training error on the {which} labels", values=100 * Reading(arm, "train/error"), unit="%")
        for which, arm in labels.items()
    )
    return Rule(parts=((PLAIN[model], above(HARM)),), given=tuple((one, below(FITTED)) for one in fitted))


def escape_rule(model: str) -> Rule:
    """The start does not matter with a large rate and decay, where it did without."""
    return Rule(parts=((FULL[model], within(HARM)),), stake=((PLAIN[model], above(HARM)),))


def shrinks_rule(setting: str, where: str) -> Rule:
    """What the bad start adds to the ResNet's error has shrunk, in either direction."""
    before, after = harm(RESNET, "small-none"), harm(RESNET, setting)
    kept = f"{KEPT:g} x the same at the small rate without decay"
    name = f"test error added by the bad start, {where}"
    parts: tuple[Part, ...] = (
        (in_points(f"{name} - {kept}", after - KEPT * before), below(0)),
        (in_points(f"{name} + {kept}", after + KEPT * before), above(0)),
    )
    return Rule(parts=parts, given=((PLAIN[RESNET], above(0)),))


def slope() -> Terms:
    """Least squares of what the bad start adds to the MLP's error on log10(lr * lam), over all settings with decay."""
    places = [(lr, product) for lr, product in GRID if product]
    x = np.log10([product for _, product in places])
    weights = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    harms = [harm(MLP, grid_setting(*place)) for place in places]
    return Terms(tuple(zip(weights.tolist(), harms, strict=True)))


SLOPE = in_points("slope of the test error added by the bad start in log10(lr * lam), all settings with decay", slope())
SAME_PRODUCT = in_points(
    f"test error added by the bad start at lr * lam = {MIDDLE:g}, lr {GRID_RATES[0]:g} - lr {GRID_RATES[-1]:g}",
    harm(MLP, grid_setting(GRID_RATES[0], MIDDLE)) - harm(MLP, grid_setting(GRID_RATES[-1], MIDDLE)),
)

CLAIMS = (
    Claim(
        key="bad",
        text="ResNet: from weights that fit random labels, SGD with a small learning rate and without decay fits the true"
        " labels at a global minimum that generalizes worse.",
        rule=bad_rule(RESNET, "small-none"),
    ),
    Claim(
        key="escape",
        text="ResNet: with a large learning rate and decay SGD leaves bad minima: it does not matter to the test error whether"
        " it starts from weights that fit random labels.",
        rule=escape_rule(RESNET),
    ),
    Claim(
        key="rate-alone",
        text="ResNet: a large learning rate is enough to leave bad minima, without decay.",
        rule=shrinks_rule("large-none", "large learning rate without decay"),
    ),
    Claim(
        key="decay-alone",
        text="ResNet: decay is enough to leave bad minima, with the small learning rate and the lam of the large one.",
        rule=shrinks_rule("small-decay", "small learning rate with decay"),
    ),
    Claim(
        key="product",
        text="ResNet: decay is enough to leave bad minima, with the small learning rate and the lr * lam of the large one.",
        rule=shrinks_rule("small-matched", "small learning rate with the lr * lam of the large one"),
    ),
    Claim(
        key="mlp-bad",
        text="MLP: from weights that fit random labels, SGD with the smallest learning rate and without decay fits the true"
        " labels at a global minimum that generalizes worse.",
        rule=bad_rule(MLP, grid_setting(GRID_RATES[0], 0.0)),
    ),
    Claim(
        key="mlp-escape",
        text="MLP: with the largest learning rate and the largest lr * lam it does not matter to the test error whether SGD"
        " starts from weights that fit random labels.",
        rule=escape_rule(MLP),
    ),
    Claim(
        key="mlp-falls",
        text="MLP: what a start from weights that fit random labels adds to the test error falls as lr * lam grows.",
        rule=Rule(parts=((SLOPE, below(0)),)),
    ),
    Claim(
        key="mlp-product",
        text="MLP: what a start from weights that fit random labels adds to the test error depends on lr * lam alone and not"
        f" on the learning rate (at lr * lam = {MIDDLE:g}).",
        rule=Rule(parts=((SAME_PRODUCT, within(HARM)),), stake=((PLAIN[MLP], above(HARM)),)),
    ),
)


def errors_by_setting(results: Results) -> list[PointRow]:
    """The ResNet's test errors from both starts, against lam."""
    rows = [
        point(results, f"lr {lr:g}, {name}", lam, wrong(key_of(RESNET, start, setting)))
        for start, name in ((BAD, "from random labels"), (FRESH, "fresh"))
        for setting, (lr, lam) in SETTINGS.items()
    ]
    lines = [PointRow(row.series, row.x, row.y, style="line") for row in rows]
    return sorted([*rows, *lines], key=lambda row: row.series)


def harm_against_product(results: Results) -> list[PointRow]:
    """What the bad start adds to the MLP's error against lr * lam at each rate, and as a line what it adds without decay."""
    rows = []
    for lr in GRID_RATES:
        points = [point(results, f"lr {lr:g}", p, harm(MLP, grid_setting(lr, p))) for p in GRID_PRODUCTS]
        ends = (GRID_PRODUCTS[1], GRID_PRODUCTS[-1])
        rows += [*points[1:], *(PointRow(f"lr {lr:g}, lam 0", end, points[0].y, style="line") for end in ends)]
    return rows


def smallest_harm(results: Results) -> str:
    """What the bad start adds without decay, to the ResNet at its small rate and to the MLP at its smallest."""
    found = [crossed_interval(one.values(results, results.main_size)) for one in PLAIN.values()]
    return " / ".join(f"{one.estimate:.2f} ± {one.high - one.estimate:.2f}" for one in found)


NOTE = (
    "Test error from weights that fit random labels minus that from fresh weights, in points; positive where the bad start"
    " is worse."
)
CURVES = tuple(
    key_of(RESNET, start, setting) for setting in ("small-none", "large-none", "large-decay") for start in (BAD, FRESH)
)

PANELS = (
    PointsPanel(
        slug="errors",
        title="ResNet: test error from a bad and from a fresh start",
        x_label="lam",
        y_label="test error (%)",
        rows=errors_by_setting,
        note="Means over seeds and test images with 95 % intervals; lines join one learning rate and start.",
    ),
    HeatPanel(
        slug="resnet-gaps",
        title="ResNet: test error from the bad start minus that from a fresh one",
        x_label="learning rate",
        y_label="lam",
        value_label="difference (points)",
        cells=grid([(lr, lam, harm(RESNET, setting)) for setting, (lr, lam) in SETTINGS.items()]),
        note=NOTE,
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
        value_label="difference (points)",
        cells=grid([(lr, product, harm(MLP, grid_setting(lr, product))) for lr, product in GRID]),
        note=NOTE,
    ),
    PointsPanel(
        slug="product",
        title="MLP: test error from the bad start minus that from a fresh one, against lr * lam",
        x_label="lr * lam",
        y_label="difference (points)",
        rows=harm_against_product,
        log_x=True,
        note=f"{NOTE} Points with 95 % intervals; lines: without decay.",
    ),
)

PUBLISHED = (
    Published(
        quantity="test accuracy lost by the bad start without regularization (points); ours with a ResNet / an MLP, other data"
        " and sizes",
        published="up to 40",
        where="abstract of the first version",
        how="text",
        ours=smallest_harm,
    ),
)


def _arms(
    widths: tuple[int, ...],
    resnet: Mapping[str, Any],
    mlp: Mapping[str, Any],
    *,
    main: int,
    epochs: tuple[tuple[int, int], tuple[int, int]] = ((80, 80), (200, 160)),
    mlp_rate: float = 0.2,
) -> tuple[Arm, ...]:
    """ResNets of these widths, and the MLP beside the main one; epochs of either on random and then on true labels."""
    products = {grid_setting(lr, product): (lr, float(f"{product / lr:.4g}")) for lr, product in GRID}
    arms: list[Arm] = []
    for width in widths:
        arms += _arms_of(RESNET, width, {**resnet, "width": width}, LARGE, epochs[0], SETTINGS)
    return (*arms, *_arms_of(MLP, main, mlp, mlp_rate, epochs[1], products))


def _arms_of(
    model: str,
    size: int,
    fields: Mapping[str, Any],
    rate: float,
    epochs: tuple[int, int],
    settings: Mapping[str, tuple[float, float]],
) -> list[Arm]:
    """A model on random labels at one rate, and from there and from fresh weights on the true ones at each setting."""
    first, then = epochs
    name = NAMES[model]
    random = ImageRun(
        model=model, lr=rate, lr_after_drop=rate, drop_at=1.0, lam=0.0, num_epochs=first, eval_every=first,
        label_noise=1.0, keep_at=(first,), ema=(), **fields,
    )  # fmt: skip
    arms = [Arm(key=parent_key(model), label=f"{name}, random labels", size=size, spec=random)]
    for setting, (lr, lam) in settings.items():
        true = ImageRun(
            model=model, lr=lr, lr_after_drop=min(lr, AFTER_DROP), drop_at=0.8, lam=lam, num_epochs=then, eval_every=then,
            ema=(), **fields,
        )  # fmt: skip
        label = f"{name}, lr {lr:g}, lam {lam:.3g}"
        branch = ImageBranch(of=random, at=first, then=true)
        arms += [
            Arm(key=key_of(model, BAD, setting), label=f"{label}, bad start", size=size, spec=branch),
            Arm(key=key_of(model, FRESH, setting), label=f"{label}, fresh", size=size, spec=true),
        ]
    return arms


AFTER_DROP = 0.01
SMALL_IMAGES = {"downsample": 4}
RESNET_LAPTOP = SMALL_IMAGES | {"num_train": 500, "batch_size": 25, "blocks": (1, 1, 1)}
MLP_LAPTOP = SMALL_IMAGES | {"num_train": 1000, "batch_size": 50, "width": 128, "blocks": (1, 1)}
SMOKE = SMALL_IMAGES | {"num_train": 50, "num_test": 100, "batch_size": 25}

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
    presets=presets(
        smoke=Preset(
            description="50 training and 100 test images, 2 epochs",
            budget="10 seconds",
            arms=_arms(
                (4,), SMOKE | {"blocks": (1, 1)}, SMOKE | {"width": 8, "blocks": (1,)}, main=4, epochs=((2, 2), (2, 2))
            ),
        ),
        laptop=Preset(
            description="ResNet of width 16, 500 images of 7 x 7 for 80 epochs after 80 on random labels; MLP of width 128,"
            " 1,000 images for 160 epochs after 200",
            budget="6 minutes on 2 cores",
            arms=_arms((16,), RESNET_LAPTOP, MLP_LAPTOP, main=16),
        ),
        night=Preset(
            description="as laptop, with up to twice the epochs, more seeds, and ResNets of width 8, 16 and 32",
            budget="60 minutes on 2 cores",
            arms=_arms((8, 16, 32), RESNET_LAPTOP, MLP_LAPTOP, main=16, epochs=((100, 160), (300, 320))),
            num_seeds=8,
            main_size=16,
            num_ladder_seeds=4,
        ),
        paper=Preset(
            description="ResNet-18 and an MLP on CIFAR-10 without augmentation, 200 epochs after 200 on random labels; rates"
            " and decays are ours",
            budget="days on one GPU",
            arms=_arms(
                (64,),
                CIFAR_10 | {"blocks": (2, 2, 2, 2)},
                CIFAR_10 | {"width": 512, "blocks": (1, 1, 1)},
                main=64,
                epochs=((200, 200), (200, 200)),
                mlp_rate=0.1,
            ),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    ),
)
