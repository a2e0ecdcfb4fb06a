"""Is stable weight decay worth it? The paper's table of optimizers, each with a decay that is tuned for it.

Source: Xie, Xu, Zhang, Sato, Sugiyama, "On the Overlooked Pitfalls of Weight Decay and How to Mitigate Them" (NeurIPS 2023,
arXiv 2011.11152; earlier "Understanding and Scheduling Weight Decay"), table 1: test errors of nine optimizers, SGD and Adam's
family with L2 at lam 5e-4, AdamW at 0.5, AdamS and SGDS with stable decay. There every lam is borrowed. Here each optimizer has
four, by factors of 3, and the best is chosen on other seeds and other test images than it is compared on. Learning rates are
one for a family (SGD 0.1, Adam 0.01, Padam 0.1, Adai 1), as in the paper, and were not tuned any further.

Adai is that of its paper (arXiv 2006.15815), AdaiS is Adai with decoupled decay. The schedule is a constant rate to 85 % of the
epochs, then a hundredth of it: there decay is worth more than under a stepwise one at this size. lams were looked for on seed
500; the rules were written before any run of the presets' seeds.

Changed after three of the presets' seeds were run, which decided nothing: five seeds, for which a laptop has the time because
seven of the optimizers run in the VGG alone; so the two claims on these are measured there.

Shapes: S seeds, N test images.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from halflife.studies.catalog.images.common import CIFAR_10_NEEDS, RESNET_18, in_points, level, wrong
from halflife.studies.evidence.choice import leave_one_out
from halflife.studies.evidence.claims import Arm, Claim, PointsPanel, Preset, Published, Rule, Study, presets
from halflife.studies.evidence.optimum import PAIRED_NOTE
from halflife.studies.evidence.quantities import Best, Measure, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, by_name, published_level
from halflife.studies.evidence.rules import Premise
from halflife.studies.evidence.tests import above, below, lowered, within
from halflife.studies.specs.images import ImageRun

__all__ = ["STABLE_DECAY"]

SAME = 0.5  # points, as the smallest effect that counts in the other studies of images
NUM_LAMS = 4

Lams = tuple[float, float, float, float]


@dataclass(frozen=True, kw_only=True)
class Method:
    """An optimizer with its decay.

    Args:
        key: Names its arms.
        words: In labels and texts.
        optimizer: Of the spec.
        decay: The rule, with ``{lam:g}`` where its coefficient goes.
        lr: The learning rate.
        lams: The grid.
        fields: Of the spec besides.
        table: The paper's test error in per cent, CIFAR-10, ResNet-18 and VGG-16 (``None``: not in the table).
    """

    key: str
    words: str
    optimizer: str
    decay: str
    lr: float
    lams: Lams
    fields: Mapping[str, Any] = field(default_factory=dict)
    table: tuple[float, float] | None = None


def _method(
    key: str, words: str, optimizer: str, decay: str, lr: float, lams: Lams, table: tuple[float, float] | None = None
) -> Method:
    fields: dict[str, Any] = {"momentum": 0.9} if optimizer == "sgd" else {}
    return Method(key=key, words=words, optimizer=optimizer, decay=decay, lr=lr, lams=lams, fields=fields, table=table)


OF_SGD, OF_ADAM, OF_ADAI = (0.002, 0.006, 0.018, 0.054), (0.003, 0.01, 0.03, 0.1), (0.001, 0.003, 0.01, 0.03)
PENALTY, STABLE, DECOUPLED = "L2(lam={lam:g})", "Stable(lam={lam:g})", "Decoupled(lam={lam:g})"

METHODS = {
    method.key: method
    for method in (
        _method("sgd", "SGD with L2", "sgd", PENALTY, 0.1, OF_SGD, (5.01, 6.42)),
        _method("sgds", "SGDS", "sgd", STABLE, 0.1, OF_SGD),
        _method("adam", "Adam with L2", "adam", PENALTY, 0.01, OF_ADAM, (6.53, 7.31)),
        _method("amsgrad", "AMSGrad", "amsgrad", PENALTY, 0.01, OF_ADAM, (6.16, 7.14)),
        _method("adamw", "AdamW", "adam", DECOUPLED, 0.01, (0.1, 0.3, 1.0, 3.0), (5.08, 6.48)),
        _method("adabound", "AdaBound", "adabound", PENALTY, 0.01, OF_ADAM, (5.65, 6.76)),
        _method("padam", "Padam", "padam", PENALTY, 0.1, OF_SGD, (5.12, 6.15)),
        _method("yogi", "Yogi", "yogi", PENALTY, 0.01, OF_ADAM, (5.87, 6.90)),
        _method("radam", "RAdam", "radam", PENALTY, 0.01, OF_ADAM, (6.01, 6.56)),
        _method("adams", "AdamS", "adam", STABLE, 0.01, OF_ADAM, (4.91, 6.09)),
        _method("adai", "Adai", "adai", PENALTY, 1.0, OF_ADAI),
        _method("adais", "AdaiS", "adai", DECOUPLED, 1.0, OF_ADAI),
    )
}  # fmt: skip
FAMILY = ("amsgrad", "adabound", "padam", "yogi", "radam")
MAIN = ("sgd", "sgds", "adam", "adamw", "adams")
WITHOUT = ("sgd", "adamw")  # that also run without decay
NETS = {"resnet": "ResNet", "vgg-bn": "VGG"}
CHEAP = "vgg-bn"  # in which all methods run on a laptop


def key_of(net: str, method: str, index: int) -> str:
    """The key of an arm: ``index`` counts the grid of lam from 1, and 0 is no decay."""
    return f"{net}-{method}-{index}"


def grid_of(net: str, method: str) -> tuple[str, ...]:
    """The arms of a method's grid."""
    return tuple(key_of(net, method, index) for index in range(1, NUM_LAMS + 1))


def best(method: str) -> Measure:
    """Final test error with the best lam, in points, mean of the nets, (S, N)."""
    of_nets = [Best(grid_of(net, method), "test/wrong") for net in NETS]
    return 100 / len(NETS) * (of_nets[0] + of_nets[1])


def _without(method: str) -> Measure:
    of_nets = [wrong(key_of(net, method, 0)) for net in NETS]
    return 1 / len(NETS) * (of_nets[0] + of_nets[1])


def _at_edge(results: Results, size: int, *, methods: Sequence[str], nets: Sequence[str]) -> str:
    """Why a method's grid does not show which lam is best: on the other seeds it is the first or the last."""
    for method in methods:
        for net in nets:
            scores_AS = np.array([results.read(key, "test/error", size) for key in grid_of(net, method)])
            edge = sorted(set(leave_one_out(scores_AS).tolist()) & {0, NUM_LAMS - 1})
            if edge:
                lams = " and ".join(f"{METHODS[method].lams[index]:g}" for index in edge)
                name = METHODS[method].words
                return (
                    f"the best lam of {name} on the other seeds is at an edge of its grid ({lams}) in the {NETS[net]}"
                )
    return ""


def _inside(*methods: str, nets: Sequence[str] = tuple(NETS)) -> Premise:
    words = " and ".join(METHODS[method].words for method in methods)
    where = "in neither net" if len(nets) > 1 else f"not in the {NETS[nets[0]]}"
    return Premise(
        f"for no seed and {where} the lam of {words} that is best on the other seeds is at an edge of its grid",
        functools.partial(_at_edge, methods=methods, nets=nets),
    )


def _in_vgg(method: str) -> Measure:
    return 100 * Best(grid_of(CHEAP, method), "test/wrong")


def _contrast(one: str, other: str) -> Quantity:
    return in_points(
        f"final test error of {METHODS[one].words} - {METHODS[other].words}, best lam each, mean of ResNet and VGG",
        best(one) - best(other),
    )


def _gain(method: str) -> Quantity:
    return in_points(
        f"final test error of {METHODS[method].words} with the best lam - without decay, mean of ResNet and VGG",
        best(method) - _without(method),
    )


AGAINST_FAMILY = in_points(
    "final test error of AdamS - mean of AMSGrad, AdaBound, Padam, Yogi and RAdam with L2, best lam each, VGG",
    _in_vgg("adams")
    - 0.2 * (_in_vgg("amsgrad") + _in_vgg("adabound") + _in_vgg("padam") + _in_vgg("yogi") + _in_vgg("radam")),
)
OF_ADAIS = in_points("final test error of AdaiS - Adai, best lam each, VGG", _in_vgg("adais") - _in_vgg("adai"))


CLAIMS = (
    Claim(
        key="decay-helps",
        text="Decay lowers the test error of SGD and of AdamW here, so that it matters which decay it is.",
        rule=Rule(parts=((_gain("sgd"), below(0)), (_gain("adamw"), below(0)))),
    ),
    Claim(
        key="adam-worse",
        text="Adam with L2 generalizes worse than SGD.",
        rule=Rule(parts=((_contrast("adam", "sgd"), above(0)),), given=(_inside("adam", "sgd"),)),
    ),
    Claim(
        key="adams-closes",
        text="Adam with stable decay generalizes as well as SGD: the gap is closed.",
        rule=Rule(
            parts=((_contrast("adams", "sgd"), within(SAME)),),
            given=(_inside("adams", "sgd"),),
            stake=((_contrast("adam", "sgd"), above(0)),),
        ),
    ),
    Claim(
        key="adamw-closes",
        text="So does AdamW, once its lam is tuned (our claim).",
        rule=Rule(
            parts=((_contrast("adamw", "sgd"), within(SAME)),),
            given=(_inside("adamw", "sgd"),),
            stake=((_contrast("adam", "sgd"), above(0)),),
        ),
    ),
    Claim(
        key="beats-adamw",
        text="Stable decay is better than decoupled decay: AdamS generalizes better than AdamW.",
        rule=Rule(parts=((_contrast("adams", "adamw"), lowered(SAME)),), given=(_inside("adams", "adamw"),)),
    ),
    Claim(
        key="no-advantage",
        text="Stable decay has no universal advantage, as its author said later: AdamS and tuned AdamW generalize alike.",
        rule=Rule(
            parts=((_contrast("adams", "adamw"), within(SAME)),),
            given=(_inside("adams", "adamw"),),
            stake=((_gain("adamw"), below(0)),),
        ),
    ),
    Claim(
        key="beats-family",
        text="AdamS generalizes better than the variants of Adam with L2: AMSGrad, AdaBound, Padam, Yogi, RAdam.",
        rule=Rule(parts=((AGAINST_FAMILY, below(0)),), given=(_inside("adams", *FAMILY, nets=(CHEAP,)),)),
    ),
    Claim(
        key="sgds",
        text="Stable decay is better than L2 for SGD with momentum, too.",
        rule=Rule(parts=((_contrast("sgds", "sgd"), lowered(SAME)),), given=(_inside("sgds", "sgd"),)),
    ),
    Claim(
        key="adais",
        text="And for Adai: AdaiS, with decoupled decay, generalizes better than Adai with L2.",
        rule=Rule(parts=((OF_ADAIS, lowered(SAME)),), given=(_inside("adais", "adai", nets=(CHEAP,)),)),
    ),
)


def _ranking(results: Results, size: int, *, net: str) -> dict[str, Measure]:
    """The error of each method with its best lam, the lowest first."""
    ran = {arm["key"] for arm in results.arms}
    measures = {
        method.words: 100 * Best(grid_of(net, key), "test/wrong")
        for key, method in METHODS.items()
        if ran.issuperset(grid_of(net, key))
    }
    order = sorted(measures, key=lambda words: float(np.mean(measures[words](results, size))))
    return {words: measures[words] for words in order}


def _sweep(results: Results, size: int, *, net: str) -> dict[str, list[tuple[float, Measure]]]:
    """Test error against lam, of the five methods that claims compare."""
    return {
        METHODS[key].words: [
            (lam, 100 * level(arm, "test/error")) for lam, arm in zip(METHODS[key].lams, grid_of(net, key), strict=True)
        ]
        for key in ("sgd", "sgds", "adam", "adamw", "adams")
    }


PANELS = (
    *(
        PointsPanel(
            slug=f"ranking-{net}",
            title=f"Test error with the best lam, {words}",
            x_label="optimizer",
            y_label="test error (%)",
            rows=by_name(functools.partial(_ranking, net=net)),
            named=True,
            source_figure="table 1",
            note="The best of four lams, chosen on other seeds and other test images. Bars: 95 % intervals over seeds, which do"
            " not count the choice.",
        )
        for net, words in NETS.items()
    ),
    *(
        PointsPanel(
            slug=f"sweep-{net}",
            title=f"Test error against lam, {words}",
            x_label="lam",
            y_label="test error (%)",
            rows=against(functools.partial(_sweep, net=net)),
            log_x=True,
            note=PAIRED_NOTE,
        )
        for net, words in NETS.items()
    ),
)

PUBLISHED = tuple(
    Published(
        quantity=f"test error of {method.words} (%), {' / '.join(NETS[net] for net in nets)}",
        published=" / ".join(f"{method.table[tuple(NETS).index(net)]:.2f}" for net in nets),
        where="table 1, CIFAR-10",
        how="text",
        ours=published_level(*(100 * Best(grid_of(net, key), "test/wrong") for net in nets), form=".2f"),
    )
    for key, method in METHODS.items()
    for nets in (tuple(NETS) if key in MAIN else (CHEAP,),)
    if method.table is not None
)


def arms(common: Mapping[str, Any], *, in_resnet: Sequence[str] = tuple(METHODS)) -> tuple[Arm, ...]:
    """All arms.

    Args:
        common: Fields of all runs.
        in_resnet: The methods that run in the ResNet, too.

    Returns:
        The arms; size is the width.
    """
    num_epochs = int(common["num_epochs"])
    drop = round(0.85 * num_epochs)
    schedule: dict[str, Any] = {
        "lr_schedule": f"piecewise((1.0, 0.01), ({drop},))",
        "lr_schedule_unit": "epochs",
        "eval_every": num_epochs,
    }
    found = []
    for net, words in NETS.items():
        for key in METHODS if net == CHEAP else in_resnet:
            method = METHODS[key]
            for index in range(0 if key in WITHOUT else 1, NUM_LAMS + 1):
                decay = method.decay.format(lam=method.lams[index - 1]) if index else ""
                spec = ImageRun(
                    **{**common, "model": net},
                    **schedule,
                    **method.fields,
                    optimizer=method.optimizer,
                    lr=method.lr,
                    decay=decay,
                    ema=(),
                )
                lam = f"lam {method.lams[index - 1]:g}" if index else "no decay"
                found.append(
                    Arm(
                        key=key_of(net, key, index), label=f"{words}, {method.words}, {lam}", size=spec.width, spec=spec
                    )
                )
    return tuple(found)


STABLE_DECAY = Study(
    name="stable-decay",
    title="Stable weight decay and the optimizers",
    source="Xie et al. 2023 (arXiv 2011.11152), table 1",
    claim="With stable weight decay Adam generalizes as well as SGD, and better than with L2 or decoupled decay.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("ranking-resnet", "ranking-vgg-bn"),
    presets=presets(
        smoke=Preset(
            description="200 images, 3 epochs",
            budget="40 seconds",
            arms=arms(
                {"num_train": 200, "num_test": 200, "width": 4, "num_epochs": 3, "batch_size": 50}, in_resnet=MAIN
            ),
        ),
        laptop=Preset(
            description="VGG with BatchNorm, width 8, 1,000 images at 14 x 14, 40 epochs, 12 optimizers with 4 lams; 5 of them"
            " in a ResNet of width 8, too",
            budget="9 minutes on 2 cores",
            arms=arms({"num_train": 1_000, "width": 8, "num_epochs": 40}, in_resnet=MAIN),
            num_seeds=5,
        ),
        night=Preset(
            description="as laptop, 2,000 images, all 12 optimizers in both nets, and a ladder of widths 4, 8, 16",
            budget="3 hours on 2 cores",
            arms=tuple(
                arm for width in (8, 4, 16) for arm in arms({"num_train": 2_000, "width": width, "num_epochs": 40})
            ),
            num_seeds=8,
        ),
        paper=Preset(
            description="ResNet-18-like and VGG of width 64 on CIFAR-10, 200 epochs, flips and crops, batches of 128",
            budget="300 runs of hours on one GPU",
            needs=CIFAR_10_NEEDS,
            arms=arms({**RESNET_18, "width": 64, "num_epochs": 200, "augmentation": "flip-crop"}),
            num_seeds=3,
        ),
    ),
)
