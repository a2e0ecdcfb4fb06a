"""Is the noise of SGD shaped like the curvature? Cosines between Hessian, Gauss-Newton matrix and gradient covariance.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), figure 13 (a scale-invariant ResNet after one epoch) and figures 16 to 18 (spectra of the
covariance with and without the decoupling approximation, which are said to overlap; the bounds of claims h are ours).
Claims e to g are ours, after an observation from the authors' slides: label noise makes the covariance match the Hessian.

The rules were written before any run. Then, on seed 1000, the scale-invariant net (14 x 14 and 7 x 7), the MLP, and the
ResNet with random labels were run for their cost; 7 x 7 was taken because it is cheaper. lr * steps of the first epoch,
0.05 * 40, is that of the paper, 0.005 * 391.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.curvature.alignment import quantities as rules
from halflife.studies.catalog.curvature.alignment.figures import PANELS, PUBLISHED
from halflife.studies.catalog.curvature.alignment.quantities import MODELS, cell_key, noisy
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.specs.images import ImageRun

__all__ = ["CURVATURE_ALIGNMENT"]

ABOVE = "the 95 % interval of the cosine's mean over seeds lies above"


def _level(models: str, when: str, bound: float) -> str:
    return f"{models}, {when}. Reproduced if {ABOVE} {bound}{{}}; not reproduced if {{}}below; else inconclusive."


ONE = ("", "")
EACH = (" in each", "one lies ")
START, END = "after the first epoch", "at the end"

CLAIMS = (
    WordedClaim(
        key="a",
        text="After one epoch the covariance of SGD's noise is closely aligned with the Gauss-Newton matrix.",
        rule=_level("The scale-invariant ResNet", START, rules.CLOSELY).format(*ONE),
        effect_name="cos(G, Sigma)",
        unit="",
        measure=functools.partial(
            rules.aligned, models=MODELS[:1], pair="gauss-newton-covariance", bound=rules.CLOSELY
        ),
    ),
    WordedClaim(
        key="b",
        text="After one epoch the covariance of SGD's noise is aligned with the Hessian, too.",
        rule=_level("The scale-invariant ResNet", START, rules.ALIGNED).format(*ONE),
        effect_name="cos(H, Sigma)",
        unit="",
        measure=functools.partial(rules.aligned, models=MODELS[:1], pair="hessian-covariance", bound=rules.ALIGNED),
    ),
    WordedClaim(
        key="c",
        text="The rest of the Hessian, E = H - G, is almost orthogonal to both covariance and Gauss-Newton matrix.",
        rule=f"The scale-invariant ResNet, {START}. Reproduced if the 90 % intervals of both cosines lie within"
        f" {rules.NEGLIGIBLE} of 0; not reproduced if one lies wholly outside; else inconclusive. The effect is"
        " the larger one.",
        effect_name="cos(E, Sigma) or cos(G, E)",
        unit="",
        measure=rules.orthogonal,
    ),
    WordedClaim(
        key="c-part",
        text="The rest of the Hessian, E, is a considerable part of it all the same.",
        rule=_level("The scale-invariant ResNet", START, rules.CLEARLY_PART).format(*ONE),
        effect_name="cos(H, E)",
        unit="",
        measure=rules.part_of_hessian,
    ),
    WordedClaim(
        key="d",
        text="The covariance of SGD's noise is closer to the Gauss-Newton matrix than to the Hessian.",
        rule=f"The scale-invariant ResNet, {START}. Reproduced if the 95 % interval of (cos(G, Sigma) - cos(H, Sigma)), paired"
        " by seed, lies above 0; not reproduced if below; else inconclusive.",
        effect_name="cos(G, Sigma) - cos(H, Sigma)",
        unit="",
        measure=rules.order,
    ),
    WordedClaim(
        key="e",
        text="Covariance and Hessian are aligned in a ResNet with BatchNorm and in an MLP without, too (our claim).",
        rule=_level("Both nets", START, rules.ALIGNED).format(*EACH) + " The effect is the smaller one.",
        effect_name="cos(H, Sigma)",
        unit="",
        measure=functools.partial(rules.aligned, models=MODELS[1:], pair="hessian-covariance", bound=rules.ALIGNED),
    ),
    WordedClaim(
        key="f",
        text="Covariance and Hessian are still aligned at the end of training (our claim).",
        rule=_level("All three nets", END, rules.ALIGNED).format(*EACH) + " The effect is the smallest one.",
        effect_name="cos(H, Sigma)",
        unit="",
        measure=functools.partial(
            rules.aligned, models=MODELS, pair="hessian-covariance", bound=rules.ALIGNED, late=True
        ),
    ),
    WordedClaim(
        key="g",
        text="Label noise brings the covariance closer to the Hessian (an observation from the authors' slides).",
        rule="All three nets, at the end. Reproduced if the 95 % interval of (cos(H, Sigma) with random labels - without),"
        " paired by seed, lies above 0 in each; not reproduced if one lies below; else inconclusive. The effect is the smallest"
        " one.",
        effect_name="cos(H, Sigma) with random labels minus without",
        unit="",
        measure=functools.partial(rules.noise_raises, pair="hessian-covariance"),
    ),
    WordedClaim(
        key="g-match",
        text="With label noise covariance and Hessian match.",
        rule=_level("All three nets with random labels", END, rules.CLOSELY).format(*EACH)
        + " The effect is the smallest one.",
        effect_name="cos(H, Sigma) with random labels",
        unit="",
        measure=functools.partial(
            rules.aligned,
            models=tuple(map(noisy, MODELS)),
            pair="hessian-covariance",
            bound=rules.CLOSELY,
            late=True,
        ),
    ),
    WordedClaim(
        key="h",
        text="The spectra of the covariance with and without the decoupling approximation overlap: their eigenvalues are the"
        " same.",
        rule=f"The ResNet at each learning rate and lam of the grid, {END}, the {rules.TOP} largest eigenvalues of each,"
        f" sorted. Reproduced if the 95 % interval of sum |difference| / sum lies below {rules.SPECTRAL_SUM} in each; not"
        " reproduced if one lies above; else inconclusive. The effect is the largest one.",
        effect_name="relative distance of the spectra",
        unit="",
        measure=rules.spectra_in_sum,
    ),
    WordedClaim(
        key="h-log",
        text="The spectra with and without the approximation overlap on a logarithmic axis, as the paper draws them.",
        rule="As h, with the mean factor between eigenvalues of the same rank, which is to be below"
        f" {rules.SPECTRAL_FACTOR:g}.",
        effect_name="mean factor between eigenvalues",
        unit="x",
        measure=rules.spectra_in_shape,
    ),
)

NOISE = 0.3
LR, LAM = 0.05, 0.0125
GRID = ((0.05, 0.2), (0.0025, 0.0125))


def _run(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(
    lr: float,
    lam: float,
    grid: tuple[Sequence[float], Sequence[float]],
    common: Mapping[str, Any],
    widths: Sequence[int],
) -> tuple[Arm, ...]:
    """Each model with and without random labels, and the ResNet over the grid, probed after an epoch and at the end."""

    def arm(key: str, label: str, size: int, **fields: Any) -> Arm:
        # The "drop" to the same rate does nothing but to have probes taken after the first epoch.
        own = {"lr_after_drop": fields["lr"], "drop_at": 1 / common["num_epochs"]}
        shared = {"width": size, "ema": (), "probes": ("alignment",)}
        return Arm(key=key, label=label, size=width, spec=_run(shared | dict(common) | own | fields, 0))

    arms = []
    for width in widths:
        for model in MODELS:
            fields: dict[str, Any] = {"model": model, "lr": lr, "lam": lam}
            if model == "mlp":
                fields |= {"width": 4 * width, "blocks": (1,)}
            arms.append(arm(model, model, width, **fields))
            arms.append(arm(noisy(model), f"{model}, {NOISE:.0%} random labels", width, **fields, label_noise=NOISE))
        arms += [
            arm(cell_key(i, j), f"resnet, lr {one:g}, lam {other:g}", width, model="resnet", lr=one, lam=other)
            for i, one in enumerate(grid[0])
            for j, other in enumerate(grid[1])
        ]
    return tuple(arms)


SMALL: dict[str, Any] = {"num_train": 2_000, "num_test": 500, "batch_size": 50, "downsample": 4, "blocks": (1, 1)}
PROBED: dict[str, Any] = {"probe_examples": 200, "probe_vectors": 20}

CURVATURE_ALIGNMENT = Study(
    name="curvature-alignment",
    title="The noise of SGD and the curvature of the loss",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), figures 13 and 16 to 18",
    claim="The covariance of SGD's noise is shaped like the Gauss-Newton part of the Hessian, and its spectrum is kept by the"
    " approximation that residuals are alike in all examples, on which the conjecture rests.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("cosines-start", "cosines-end", "spectra"),
    presets={
        "smoke": Preset(
            description="100 training images, 2 epochs: shows that everything works, not what is true",
            budget="15 seconds",
            arms=_arms(
                LR,
                LAM,
                (GRID[0], GRID[1][1:]),
                SMALL | {"num_train": 100, "num_test": 50, "num_epochs": 2, "probe_examples": 20, "probe_vectors": 2},
                (4,),
            ),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="nets of width 8, 20 epochs, 2,000 Fashion-MNIST images at 7 x 7",
            budget="5 minutes on 2 cores",
            arms=_arms(LR, LAM, GRID, SMALL | PROBED | {"num_epochs": 20, "eval_every": 20}, (8,)),
            num_seeds=5,
            main_size=8,
        ),
        "night": Preset(
            description="as laptop, at 14 x 14, for 60 epochs, with more seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(
                LR,
                LAM,
                GRID,
                SMALL
                | {"downsample": 2, "blocks": (1, 1, 1), "num_epochs": 60, "eval_every": 20}
                | {"probe_examples": 250, "probe_vectors": 40},
                (4, 8, 16),
            ),
            num_seeds=8,
            main_size=8,
            num_ladder_seeds=4,
        ),
        "paper": Preset(
            description="ResNet-18 of the paper's width on CIFAR-10, 30 epochs, learning rate 0.005 (the grid: 0.001 to 0.1,"
            " lam 0.0005 to 0.01), 200 images probed",
            budget="a day on one GPU",
            arms=_arms(
                0.005,
                0.01,
                ((0.001, 0.01, 0.1), (0.0005, 0.01)),
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "num_epochs": 30,
                    "eval_every": 5,
                    "probe_examples": 200,
                    "probe_vectors": 20,
                },
                (64,),
            ),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    },
)
