"""Noise without decay: projected SGD on a sphere, a large learning rate and then a small one.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), appendix C, figure 15 and conjecture 3: for a net whose loss does not see the scale of its weights,
decay has nothing to do but to set the effective learning rate, so on a sphere the learning rate alone should show what the
product lr lam shows elsewhere.

The paper projects after each step (its equation 8), and so do we. Its published code does not: training projects once an
epoch, and the run behind the trace figure projects the initial weights and then never again, so that their norm grows and
the learning rate in effect falls. The numbers beside ours come from that code.

Settings were explored on seeds 1000 to 1002, one run a learning rate, before the rules' last form and before any run of the
presets' seeds. On 2,000 images for 90 epochs the net does not fit its data (training error 3 % after fine-tuning at the
best rate); on 1,000 for 160, 60 of them fine-tuning, it does (0 %), and settings near those were taken. There the learning
rates 1e-3, 4e-3, 1.6e-2, 3.2e-2, 6.4e-2 had training losses of 0.24, 0.34, 0.87, 1.6, 5.7 before the drop and test errors
of 24.9, 23.1, 22.5, 23.3, 26.3 % after it. 8e-3, 1.6e-2 and 3.2e-2 are drawn because their losses are about those of the
three that the paper draws (0.55, 1.1, 1.5); at 6.4e-2 the loss is above that of guessing, so that the grid ends at 4.8e-2.
Trace and Jacobian norm were seen on these runs: after fine-tuning the trace was lowest at 4e-3 and rose, ||J|| fell from
4e-3 on.

Curvature is that with BatchNorm in evaluation mode, as the paper's: the statistics are held, so a change of scale is seen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.curvature.sphere import quantities as rules
from halflife.studies.catalog.curvature.sphere.figures import PANELS, PUBLISHED
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.images import ImageBranch, ImageRun, fine_tune_branch

__all__ = ["SPHERE"]

_POWER = (
    "At the three drawn learning rates, in each seed, the quantity is fitted as lr^p. Reproduced if the 95 % interval of p lies"
    " {} 0; not reproduced if it lies {}; else inconclusive."
)

CLAIMS = (
    WordedClaim(
        key="u-shape",
        text="After fine-tuning with a small learning rate the test error has its minimum at a large learning rate of the"
        " first phase that is neither the smallest nor the largest.",
        rule="The best learning rate inside the grid is chosen on the other seeds. Reproduced if the 95 % intervals of (its"
        " test error - that of the smallest) and (- that of the largest) both lie below 0; not reproduced if one excludes an"
        f" improvement of {rules.SMALLEST_EFFECT} points; else inconclusive.",
        effect_name="test error of the best inside minus that of an end, the closer one",
        unit="points",
        measure=rules.optimum_inside,
    ),
    WordedClaim(
        key="plateau",
        text="Before the drop the training loss stays the higher, the larger the learning rate.",
        rule="Of the mean training loss over the second half of the first phase. " + _POWER.format("above", "below"),
        effect_name="exponent of the training loss in the learning rate",
        unit="",
        measure=rules.plateau_rises,
    ),
    WordedClaim(
        key="average-jacobian",
        text="The moving average of the weights has a smaller Jacobian norm, the larger the learning rate, as the conjecture"
        " has it.",
        rule="At the end of the first phase, twice: of the average as it is, and scaled to the sphere (||J|| times its norm"
        " over the radius), because an average lies inside. Both must hold; not reproduced if one fails. "
        + _POWER.format("below", "above"),
        effect_name="exponent of ||J|| of the average, scaled to the sphere, in the learning rate",
        unit="",
        measure=rules.average_jacobian_falls,
    ),
    WordedClaim(
        key="fine-tuned-jacobian",
        text="Fine-tuned weights have a larger Jacobian norm, the larger the learning rate: what the paper itself calls a"
        " contradiction.",
        rule=_POWER.format("above", "below"),
        effect_name="exponent of ||J|| after fine-tuning in the learning rate",
        unit="",
        measure=functools.partial(rules.fine_tuned_rises, metric="jacobian_norm", name="||J||"),
    ),
    WordedClaim(
        key="fine-tuned-trace",
        text="Fine-tuned weights have a larger trace of the Hessian, the larger the learning rate.",
        rule=_POWER.format("above", "below"),
        effect_name="exponent of the trace after fine-tuning in the learning rate",
        unit="",
        measure=functools.partial(rules.fine_tuned_rises, metric="hessian_trace", name="the trace of the Hessian"),
    ),
    WordedClaim(
        key="radius",
        text="Check: only lr / radius^2 counts: twice the radius with four times the learning rate is the same run (of the"
        " sphere's geometry, not in the paper; powers of two, so that even roundings are the same).",
        rule="At two learning rates. Reproduced if the 90 % intervals of the difference in test error and of the ratio of"
        f" training losses before the drop lie within {rules.SMALLEST_EFFECT} points and {rules.PLATEAU_MARGIN:.0%} of 1,"
        " while at the smaller radius the learning rate nearest to the larger one has a training loss that differs by more;"
        " not reproduced if one lies wholly outside; else inconclusive.",
        effect_name="test error at twice the radius and four times the rate, minus that without, the larger of two",
        unit="points",
        measure=rules.only_the_ratio_counts,
    ),
)

PROBES = ("hessian-trace", "jacobian-norm")
NUM_SCALED = 2  # of the drawn learning rates; four times the third would be off the grid


def _run(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, model="scale-invariant", lam=0.0, **fields)


def _branch(fields: Mapping[str, Any], at: int, num_epochs: int, seed: int) -> ImageBranch:
    of = _run(fields, seed)
    return fine_tune_branch(of, at, lr=of.lr_after_drop, num_epochs=num_epochs)


def _arms(
    rates: Sequence[float],
    drawn: Sequence[float],
    lr_after: float,
    phases: tuple[int, int],
    places: Sequence[int],
    common: Mapping[str, Any],
    widths: Sequence[int],
) -> tuple[Arm, ...]:
    """A run for each learning rate, and for those whose curves are shown branches from the kept epochs and twice the radius."""
    arms = []
    shared = {"num_epochs": sum(phases), "drop_at": phases[0] / sum(phases), "eval_every": sum(phases), **common}
    for width in widths:
        fields = {"width": width, "sphere": 1.0, "lr_after_drop": lr_after, "probes": PROBES, **shared}
        others = [lr for lr in rates if lr not in drawn]
        for rate, lr in enumerate(others):
            spec = _run({**fields, "lr": lr}, 0)
            arms.append(Arm(key=rules.rate_key(rate), label=f"lr {lr:g}", size=width, spec=spec))
        for rate, lr in enumerate(drawn):
            kept = {**fields, "lr": lr, "keep_at": tuple(places), "probe_every": places[0], "eval_every": places[0]}
            spec = _run(kept, 0)
            arms.append(Arm(key=rules.drawn_key(rate), label=f"lr {lr:g}", size=width, spec=spec))
            arms += [
                Arm(
                    key=rules.branch_key(rate, place),
                    label=f"lr {lr:g}, fine-tuned from epoch {epoch}",
                    size=width,
                    spec=_branch(kept, epoch, phases[1], 0),
                )
                for place, epoch in enumerate(places)
            ]
        for rate, lr in enumerate(drawn[:NUM_SCALED]):
            scaled = {**fields, "sphere": 2.0, "lr": 4 * lr, "lr_after_drop": 4 * lr_after, "probes": (), "ema": ()}
            label = f"radius 2, lr {4 * lr:g}"
            arms.append(Arm(key=rules.scaled_key(rate), label=label, size=width, spec=_run(scaled, 0)))
    return tuple(arms)


RATES = (1e-3, 3e-3, 8e-3, 1.6e-2, 3.2e-2, 4.8e-2)
DRAWN = (8e-3, 1.6e-2, 3.2e-2)
LR_AFTER = 1e-3
# The average reaches back 2.5 epochs of 20 steps, as the paper's 0.999 does of 391.
SMALL: dict[str, Any] = {
    "num_train": 1_000,
    "num_test": 4_000,
    "downsample": 4,
    "blocks": (1, 1),
    "batch_size": 50,
    "ema": (0.98,),
    "probe_examples": 250,
    "probe_vectors": 18,
}

SPHERE = Study(
    name="sphere",
    title="Noise on a sphere: the learning rate without decay",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), appendix C, figure 15, conjecture 3",
    claim="On a sphere, without decay, a large learning rate regularizes a scale-invariant net: the test error after"
    " fine-tuning is lowest at a learning rate inside the grid.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("error", "trace-fine-tuned", "jacobian-average", "jacobian-fine-tuned"),
    presets={
        "smoke": Preset(
            description="100 training and 100 test images, 3 epochs: shows that everything works, not what is true",
            budget="20 seconds",
            arms=_arms(
                RATES,
                DRAWN,
                LR_AFTER,
                (2, 1),
                (1,),
                SMALL | {"num_train": 100, "num_test": 100, "probe_examples": 10, "probe_vectors": 6},
                (4,),
            ),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="scale-invariant ResNet of width 8, 100 epochs and 70 of fine-tuning, 1,000 Fashion-MNIST images at"
            " 7 x 7",
            budget="10 minutes on 2 cores",
            arms=_arms(RATES, DRAWN, LR_AFTER, (100, 70), (40, 80), SMALL, (8,)),
            num_seeds=5,
            main_size=8,
        ),
        "night": Preset(
            description="as laptop, with more seeds, and a ladder of widths 4, 8, 16",
            budget="60 minutes on 2 cores",
            arms=_arms(RATES, DRAWN, LR_AFTER, (100, 70), (25, 50, 75), SMALL, (4, 8, 16)),
            num_seeds=8,
            main_size=8,
            num_ladder_seeds=4,
        ),
        "paper": Preset(
            description="scale-invariant ResNet-18 on CIFAR-10, 100 epochs and 100 of fine-tuning at 1e-4",
            budget="days on one GPU",
            arms=_arms(
                (1e-4, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3),
                (1e-3, 3e-3, 5e-3),
                1e-4,
                (100, 100),
                (20, 40, 60, 80),
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "batch_size": 128,
                    "ema": (0.999,),
                    "probe_examples": 5_000,
                },
                (64,),
            ),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    },
)
