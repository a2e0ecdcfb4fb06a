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
4e-3 on. The laptop preset's number of seeds was raised from three to five after verdicts on three had been seen.

Curvature is that with BatchNorm in evaluation mode, as the paper's: the statistics are held, so a change of scale is seen.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.curvature.common import CIFAR, CIFAR_NEEDS, at_each, positive
from halflife.studies.catalog.curvature.sphere import quantities
from halflife.studies.catalog.curvature.sphere.figures import PANELS, PUBLISHED
from halflife.studies.evidence.claims import Arm, Claim, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.tests import above, below, exceeds_factor, lowered, within, within_factor
from halflife.studies.specs.images import ImageRun, fine_tune_branch

__all__ = ["SPHERE"]

SMALLEST_EFFECT = 0.5  # points of test error, as in the stabilization studies
SAME_LOSS = 1.05  # a factor between training losses

at_both = functools.partial(functools.partial, at_each, keys=quantities.scaled_keys)


def average_exponent(scaled: bool) -> Quantity:
    """How ||J|| of the average rises with the learning rate."""
    which = "times its norm over the radius (scaled to the sphere)" if scaled else "as it is"
    return Quantity(
        name=f"p of ||J|| ~ lr^p, of the average {which}, at the end of the first phase",
        values=functools.partial(quantities.average_exponent, scaled=scaled),
    )


def drawn_traces(results: Results, size: int) -> NDArray[np.float64]:
    """Traces after fine-tuning at the drawn learning rates."""
    return quantities.end_values(results, size, quantities.drawn_keys(results, size), "hessian_trace")


def end_exponent(metric: str, name: str) -> Quantity:
    """How a probe after fine-tuning rises with the learning rate."""
    return Quantity(
        name=f"p of {name} ~ lr^p, after fine-tuning, at the drawn learning rates",
        values=functools.partial(quantities.end_exponent, metric=metric),
    )


AGAINST_ENDS = Each(
    name="test error of the best learning rate inside the grid - that of each end, after fine-tuning",
    quantities=quantities.against_ends,
    unit="points",
)
PLATEAU = Quantity(
    name="p of mean training loss ~ lr^p, over the second half of the first phase, at the drawn learning rates",
    values=quantities.plateau_exponent,
)
AT_BOTH = "at twice the radius and four times the learning rate"
SAME_ERROR = Each(
    name=f"test error {AT_BOTH} - that without, at each of two learning rates",
    quantities=at_both(make=quantities.error_at_twice_the_radius),
    unit="points",
)
SAME_PLATEAU = Each(
    name=f"training loss before the drop {AT_BOTH}, over that without, at each of two learning rates",
    quantities=at_both(make=quantities.plateau_at_twice_the_radius),
    unit="x",
)
OTHER_PLATEAU = Each(
    name="training loss before the drop at the smaller radius with the learning rate nearest to the larger one, over that with"
    " the smaller one, at each of two learning rates",
    quantities=at_both(make=quantities.plateau_of_nearest),
    unit="x",
)

CLAIMS = (
    Claim(
        key="u-shape",
        text="After fine-tuning with a small learning rate the test error has its minimum at a large learning rate of the"
        " first phase that is neither the smallest nor the largest.",
        rule=Rule(parts=((AGAINST_ENDS, lowered(SMALLEST_EFFECT)),)),
    ),
    Claim(
        key="plateau",
        text="Before the drop the training loss stays the higher, the larger the learning rate.",
        rule=Rule(parts=((PLATEAU, above(0)),)),
    ),
    Claim(
        key="average-jacobian",
        text="The moving average of the weights has a smaller Jacobian norm, the larger the learning rate, as the conjecture"
        " has it; also scaled to the sphere, because an average lies inside.",
        rule=Rule(parts=((average_exponent(scaled=True), below(0)), (average_exponent(scaled=False), below(0)))),
    ),
    Claim(
        key="fine-tuned-jacobian",
        text="Fine-tuned weights have a larger Jacobian norm, the larger the learning rate: what the paper itself calls a"
        " contradiction.",
        rule=Rule(parts=((end_exponent("jacobian_norm", "||J||"), above(0)),)),
    ),
    Claim(
        key="fine-tuned-trace",
        text="Fine-tuned weights have a larger trace of the Hessian, the larger the learning rate.",
        rule=Rule(
            parts=((end_exponent("hessian_trace", "Tr(H)"), above(0)),),
            given=(positive("Tr(H) after fine-tuning", drawn_traces),),
        ),
    ),
    Claim(
        key="radius",
        text="Check: only lr / radius^2 counts: twice the radius with four times the learning rate is the same run (of the"
        " sphere's geometry, not in the paper; powers of two, so that even roundings are the same).",
        rule=Rule(
            parts=((SAME_ERROR, within(SMALLEST_EFFECT)), (SAME_PLATEAU, within_factor(SAME_LOSS))),
            stake=((OTHER_PLATEAU, exceeds_factor(SAME_LOSS)),),
        ),
    ),
)

PROBES = ("hessian-trace", "jacobian-norm")
NUM_SCALED = 2  # of the drawn learning rates; four times the third would be off the grid


RATES = (1e-3, 3e-3, 8e-3, 1.6e-2, 3.2e-2, 4.8e-2)
DRAWN = (8e-3, 1.6e-2, 3.2e-2)
SMALL: Mapping[str, Any] = {
    "num_train": 1_000, "num_test": 4_000, "downsample": 4, "blocks": (1, 1), "batch_size": 50, "probe_examples": 250,
    "probe_vectors": 18,
    "ema": (0.98,),  # it reaches back 2.5 epochs of 20 steps, as the paper's 0.999 does of 391
}  # fmt: skip


def _arms(
    *widths: int,
    places: Sequence[int],
    rates: Sequence[float] = RATES,
    drawn: Sequence[float] = DRAWN,
    lr_after: float = 1e-3,
    phases: tuple[int, int] = (100, 70),
    base: Mapping[str, Any] = SMALL,
    **changes: Any,
) -> tuple[Arm, ...]:
    """A run for each learning rate, and for those whose curves are shown branches from the kept epochs and twice the radius."""
    arms = []
    shared: dict[str, Any] = {
        "model": "scale-invariant",
        "lam": 0.0,
        "sphere": 1.0,
        "probes": PROBES,
        **base,
        **changes,
    }
    shared |= {"num_epochs": sum(phases), "drop_at": phases[0] / sum(phases), "lr_after_drop": lr_after}
    shared |= {"eval_every": sum(phases)}
    for width in widths:
        others = [lr for lr in rates if lr not in drawn]
        for rate, lr in enumerate(others):
            run = ImageRun(lr=lr, width=width, **shared)
            arms.append(Arm(key=f"lr-{rate}", label=f"lr {lr:g}", size=width, spec=run))
        kept = {**shared, "keep_at": tuple(places), "probe_every": places[0], "eval_every": places[0]}
        for rate, lr in enumerate(drawn):
            run = ImageRun(lr=lr, width=width, **kept)
            arms.append(Arm(key=f"lr-drawn-{rate}", label=f"lr {lr:g}", size=width, spec=run))
            arms += [
                Arm(
                    key=f"fine-tuned-drawn-{rate}-{place}",
                    label=f"lr {lr:g}, fine-tuned from epoch {epoch}",
                    size=width,
                    spec=fine_tune_branch(run, epoch, lr=lr_after, num_epochs=phases[1]),
                )
                for place, epoch in enumerate(places)
            ]
        twice = {**shared, "sphere": 2.0, "lr_after_drop": 4 * lr_after, "probes": (), "ema": ()}
        for rate, lr in enumerate(drawn[:NUM_SCALED]):
            run = ImageRun(lr=4 * lr, width=width, **twice)
            arms.append(Arm(key=f"scaled-drawn-{rate}", label=f"radius 2, lr {4 * lr:g}", size=width, spec=run))
    return tuple(arms)


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
    presets=presets(
        smoke=Preset(
            description="100 training and 100 test images, 3 epochs",
            budget="20 seconds",
            arms=_arms(4, phases=(2, 1), places=(1,), num_train=100, num_test=100, probe_examples=10, probe_vectors=6),
        ),
        laptop=Preset(
            description="scale-invariant ResNet of width 8, 100 epochs and 70 of fine-tuning, 1,000 Fashion-MNIST images at"
            " 7 x 7",
            budget="10 minutes on 2 cores",
            arms=_arms(8, places=(40, 80)),
        ),
        night=Preset(
            description="as laptop, with more seeds, and a ladder of widths 4, 8, 16",
            budget="60 minutes on 2 cores",
            arms=_arms(4, 8, 16, places=(25, 50, 75)),
            num_seeds=8,
            main_size=8,
            num_ladder_seeds=4,
        ),
        paper=Preset(
            description="scale-invariant ResNet-18 on CIFAR-10, 100 epochs and 100 of fine-tuning at 1e-4",
            budget="days on one GPU",
            arms=_arms(
                64, rates=(1e-4, 2.5e-4, 5e-4, 7.5e-4, 1e-3, 2e-3, 3e-3, 4e-3, 5e-3), drawn=(1e-3, 3e-3, 5e-3),
                lr_after=1e-4, phases=(100, 100), places=(20, 40, 60, 80), base=CIFAR, batch_size=128, ema=(0.999,),
                probe_examples=5_000,
            ),
            num_seeds=3,
            needs=CIFAR_NEEDS,
        ),
    ),
)  # fmt: skip
