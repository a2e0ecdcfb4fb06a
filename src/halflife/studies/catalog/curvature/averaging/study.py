"""Two ways to take the mean of a noisy run: the moving average of its weights, and fine-tuning with a tiny learning rate.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), figures 5 and 14, tables 2 and 3, and figure 3 of the first version. Claims e and f are what the
paper itself names as a contradiction to its conjecture: fine-tuned weights rank the learning rates the other way round
than averages do. The paper's tables 2 and 3 speak of a strong agreement of ensemble and average; claim j-unmixed is about
the cells where they show gaps of up to 6 points.

The rules were written before any run of the presets' seeds. Explored on seed 1000, with training losses, test errors
and norms alone: blocks (1, 1) with lam 0.0125 and 0.04 (too small a net: the average has 17 to 65 % training
error, far from the over-parameterized regime), then blocks (1, 1, 1) with lam 0.0125 and learning rates 0.1, 0.3 and 0.6
for 30 to 50 epochs (training loss near 0.3, 0.4 and 0.7, average with 1, 5 and 17 % training error). Timescales
1 / (lr lam) from 533 down to 133 steps are shorter than the 2,400 steps of a run. Fine-tuning at 0.005 changes the test
error by 0.3 points or less after its 5th epoch at the first two rates, and still lowers it at its 10th at the third, so
that it gets 15. The average reaches back 2.5 epochs, as in the paper (0.999 at 391 steps an epoch).
Once the rules stood, one arm (the middle rate) was timed on that seed; its curvature was seen, without another to rank it.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.curvature.averaging import quantities as rules
from halflife.studies.catalog.curvature.averaging.figures import PANELS, PUBLISHED
from halflife.studies.catalog.curvature.averaging.quantities import AVERAGE, FINE_TUNED, SLOW, fine_tuned_key, rate_key
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.images import ImageBranch, ImageRun, fine_tune_branch

__all__ = ["AVERAGING"]

EXPONENT = "The quantity is fitted as lr^p over the learning rates, its geometric mean over the kept epochs of the second half."

CLAIMS = (
    WordedClaim(
        key="a-average",
        text="The moving average of the weights has a lower test error than the weights.",
        rule="At the largest learning rate, at the end. Reproduced if the 95 % interval of (error of the average - error of"
        f" the weights) lies below 0; not reproduced if it excludes an improvement of {rules.SMALLEST_EFFECT} points; else"
        " inconclusive.",
        effect_name="test error of the average minus that of the weights",
        unit="points",
        measure=functools.partial(rules.lowers_error, by=AVERAGE),
    ),
    WordedClaim(
        key="a-fine-tuning",
        text="Fine-tuning with a tiny learning rate and without decay lowers the test error of the weights, too: both bring out"
        " what the noisy phase has gained.",
        rule="As a-average.",
        effect_name="test error after fine-tuning minus that of the weights",
        unit="points",
        measure=functools.partial(rules.lowers_error, by=FINE_TUNED),
    ),
    WordedClaim(
        key="b",
        text="The average, which needs no further training, is at least as good as fine-tuning.",
        rule="From the end of the runs, mean over the learning rates. Reproduced if the 95 % interval of (error of the average"
        f" - error after fine-tuning) lies below {rules.WORSE_MARGIN} points; not reproduced if it lies above; else"
        " inconclusive.",
        effect_name="test error of the average minus that after fine-tuning",
        unit="points",
        measure=rules.as_good,
    ),
    WordedClaim(
        key="c",
        text="The training loss stays on a plateau that is higher for larger learning rates.",
        rule="Reproduced if the 95 % interval of p in (mean loss of the last quarter ~ lr^p) lies above 0, and at each"
        f" learning rate the loss falls over the second half as epochs^-q with q < {rules.PLATEAU_EXPONENT} (95 % interval);"
        " not reproduced if one of these intervals lies wholly on the other side; else inconclusive.",
        effect_name="exponent of the training loss in the learning rate",
        unit="",
        measure=rules.plateau_rises,
    ),
    WordedClaim(
        key="d",
        text="The Jacobian norm of the average is smaller for larger learning rates, as the conjecture has it.",
        rule=f"{EXPONENT} Reproduced if the 95 % interval of p lies below 0; not reproduced if above; else inconclusive.",
        effect_name="exponent of ||J|| of the average in the learning rate",
        unit="",
        measure=functools.partial(rules.ranked_by_lr, of=AVERAGE, metric="jacobian_norm", expect="falls"),
    ),
    WordedClaim(
        key="e",
        text="The Jacobian norm of the fine-tuned weights is larger for larger learning rates: the order that the conjecture"
        " does not have, as the paper admits.",
        rule=f"{EXPONENT} Reproduced if the 95 % interval of p lies above 0; not reproduced if below; else inconclusive.",
        effect_name="exponent of ||J|| of the fine-tuned weights in the learning rate",
        unit="",
        measure=functools.partial(rules.ranked_by_lr, of=FINE_TUNED, metric="jacobian_norm", expect="rises"),
    ),
    WordedClaim(
        key="f",
        text="The trace of the Hessian of the fine-tuned weights is larger for larger learning rates, too.",
        rule="As e.",
        effect_name="exponent of Tr(H) of the fine-tuned weights in the learning rate",
        unit="",
        measure=functools.partial(rules.ranked_by_lr, of=FINE_TUNED, metric="hessian_trace", expect="rises"),
    ),
    WordedClaim(
        key="g",
        text="The trace of the Hessian of the average does not rank the learning rates.",
        rule=f"{EXPONENT} Reproduced if the 90 % interval of p lies within {rules.NO_RANKING} of 0 (a factor of 4 in lr changes"
        " the trace by less than sqrt(2)); not reproduced if it lies wholly outside; else inconclusive.",
        effect_name="exponent of Tr(H) of the average in the learning rate",
        unit="",
        measure=functools.partial(rules.ranked_by_lr, of=AVERAGE, metric="hessian_trace", expect="neither"),
    ),
    WordedClaim(
        key="h",
        text="The trace of the Hessian of the fine-tuned weights mirrors their test error, over learning rates and epochs"
        " (the first version of the paper).",
        rule="For each seed the rank correlation of the two over all learning rates and kept epochs. Reproduced if the 95 %"
        f" interval of its mean lies above {rules.MIRROR}; not reproduced if below; else inconclusive.",
        effect_name="rank correlation of Tr(H) and test error",
        unit="",
        measure=rules.mirrors_error,
    ),
    WordedClaim(
        key="h-along",
        text="The trace of the Hessian of the fine-tuned weights mirrors their test error along a single run, too.",
        rule="For each seed the correlation of the two over the kept epochs of a run, mean over the learning rates. Bounds as"
        " in h.",
        effect_name="correlation of Tr(H) and test error within a run",
        unit="",
        measure=rules.mirrors_within_runs,
    ),
    WordedClaim(
        key="i",
        text="The average has a smaller norm than the weights, and the fine-tuned weights a larger one.",
        rule="At each learning rate, at the end. Reproduced if the 95 % intervals of both ratios lie above 1 at each; not"
        " reproduced if one lies below; else inconclusive. The effect is (fine-tuned / average) at the largest.",
        effect_name="norm of the fine-tuned weights over that of the average",
        unit="x",
        measure=rules.norms_are_ordered,
    ),
    WordedClaim(
        key="j",
        text="Where the timescale of decay is much shorter than the run, an ensemble of snapshots (a mean in function space)"
        " predicts what the average of the weights does.",
        rule="At each learning rate, at the end. Reproduced if at each the 90 % interval of (error of the average - error of"
        f" the ensemble) lies within {rules.ENSEMBLE_MARGIN:g} point of 0 and the 95 % interval of the total variation between"
        f" their predictions below {rules.ENSEMBLE_VARIATION}; not reproduced if one lies wholly outside; else inconclusive."
        " The effect is the largest gap. The ensemble takes snapshots at even distances from the first epochs on.",
        effect_name="test error of the average minus that of the ensemble",
        unit="points",
        measure=rules.ensemble_is_average,
    ),
    WordedClaim(
        key="j-unmixed",
        text="Where the timescale of decay is as long as the run, the average is worse than the ensemble by more (the paper's"
        " tables, not its words).",
        rule="Reproduced if the 95 % interval of (gap where decay is slow - mean gap at the learning rates of j) lies above 0;"
        " not reproduced if below; else inconclusive. A gap is (error of the average - error of the ensemble) at the end.",
        effect_name="gap where decay is slow minus mean gap elsewhere",
        unit="points",
        measure=rules.ensemble_gap_unmixed,
    ),
)

PROBES = ("hessian-trace", "jacobian-norm")


def _run(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _branch(fields: Mapping[str, Any], at: int, lr: float, num_epochs: int, seed: int) -> ImageBranch:
    return fine_tune_branch(_run(fields, seed), at, lr=lr, num_epochs=num_epochs)


def _arms(
    rates: Sequence[float],
    lam: float,
    slow: tuple[float, float],
    fine_tuning: tuple[float, int],
    common: Mapping[str, Any],
    widths: Sequence[int],
) -> tuple[Arm, ...]:
    """For each learning rate the noisy run and a branch from each epoch that it keeps; and one run with slow decay."""
    arms = []
    for width in widths:
        shared = {"width": width, "drop_at": 1.0, **common}
        for rate, lr in enumerate(rates):
            fields = {"lr": lr, "lam": lam, "probes": PROBES, **shared}
            label = f"lr {lr:g}, lam {lam:g}"
            arms.append(Arm(key=rate_key(rate), label=label, size=width, spec=_run(fields, 0)))
            arms += [
                Arm(
                    key=fine_tuned_key(rate, place),
                    label=f"{label}, fine-tuned from epoch {epoch}",
                    size=width,
                    spec=_branch(fields, epoch, *fine_tuning, 0),
                )
                for place, epoch in enumerate(common["keep_at"])
            ]
        lr, small = slow
        fields = {"lr": lr, "lam": small, **shared, "keep_at": (), "probe_every": 0}
        arms.append(Arm(key=SLOW, label=f"lr {lr:g}, lam {small:g}", size=width, spec=_run(fields, 0)))
    return tuple(arms)


RATES, LAM, SLOW_PAIR, FINE_TUNING = (0.15, 0.3, 0.6), 0.0125, (0.15, 0.0025), (0.005, 15)
SMALL: dict[str, Any] = {"num_train": 2_000, "batch_size": 50, "ema": (0.99,), "probe_examples": 250}

AVERAGING = Study(
    name="averaging",
    title="The average of a noisy run and its fine-tuned weights",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), figures 5 and 14, tables 2 and 3; figure 3 of the first version",
    claim="A moving average of the weights and fine-tuning with a tiny learning rate both uncover what a noisy phase with"
    " decay has done. They agree on the test error, and rank learning rates by curvature in opposite orders.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("test-error-average", "jacobian-norm-average", "jacobian-norm-fine-tuned", "hessian-trace-fine-tuned"),
    presets={
        "smoke": Preset(
            description="100 training and 200 test images, 2 epochs: shows that everything works, not what is true",
            budget="10 seconds",
            arms=_arms(
                RATES[:2],
                LAM,
                SLOW_PAIR,
                (0.005, 1),
                SMALL
                | {
                    "num_epochs": 2,
                    "num_train": 100,
                    "num_test": 200,
                    "downsample": 4,
                    "keep_at": (1, 2),
                    "probe_every": 1,
                }
                | {"ensemble_every": 1, "probe_examples": 20, "probe_vectors": 6},
                (4,),
            ),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="ResNet of width 8, 60 epochs, 2,000 Fashion-MNIST images at 14 x 14, fine-tuning for 15 epochs",
            budget="10 minutes on 2 cores",
            arms=_arms(
                RATES,
                LAM,
                SLOW_PAIR,
                FINE_TUNING,
                SMALL
                | {"num_epochs": 60, "eval_every": 30, "keep_at": (10, 30, 60), "probe_every": 30, "ensemble_every": 5},
                (8,),
            ),
            num_seeds=5,
            main_size=8,
        ),
        "night": Preset(
            description="as laptop, with 120 epochs, more seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(
                RATES,
                LAM,
                (SLOW_PAIR[0], SLOW_PAIR[1] / 2),
                FINE_TUNING,
                SMALL
                | {
                    "num_epochs": 120,
                    "eval_every": 30,
                    "keep_at": (15, 60, 90, 120),
                    "probe_every": 30,
                    "ensemble_every": 5,
                },
                (4, 8, 16),
            ),
            num_seeds=7,
            main_size=8,
            num_ladder_seeds=3,
        ),
        "paper": Preset(
            description="pre-activation ResNet-18 on CIFAR-10, 100 epochs, learning rates 0.05 to 0.25, lam 0.0125, fine-tuning"
            " for 100 epochs at 1e-3 from every 20th",
            budget="days on one GPU",
            arms=_arms(
                (0.05, 0.1, 0.15, 0.2, 0.25),
                0.0125,
                (0.025, 0.001),
                (1e-3, 100),
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "num_epochs": 100,
                    "keep_at": (20, 40, 60, 80, 100),
                    "eval_every": 5,
                    "probe_every": 20,
                    "probe_examples": 5_000,
                    "ensemble_every": 10,
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
