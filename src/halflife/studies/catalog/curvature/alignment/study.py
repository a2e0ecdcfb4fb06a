"""Is the noise of SGD shaped like the curvature? Cosines between Hessian, Gauss-Newton matrix and gradient covariance.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), figure 13 (a scale-invariant ResNet after one epoch) and figures 16 to 18 (spectra of the
covariance with and without the decoupling approximation, which are said to overlap; the bounds are ours). The claims
other-nets, at-end, label-noise and label-noise-match are ours, the last two after an observation from the authors' slides:
label noise makes the covariance match the Hessian.

The rules were written before any run; the laptop preset's number of seeds was raised from four to five after verdicts on
four had been seen. On seed 1000 the scale-invariant net (14 x 14 and 7 x 7), the MLP, and the ResNet with random labels
were run for their cost; 7 x 7 was taken because it is cheaper. lr * steps of the first epoch, 0.05 * 40, is that of the
paper, 0.005 * 391.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.curvature.alignment.figures import PANELS, PUBLISHED
from halflife.studies.catalog.curvature.alignment.quantities import (
    MODELS,
    TOP,
    all_spectra,
    cosine,
    cosines,
    label_noise_adds,
    noisy,
    reading,
    spectra,
)
from halflife.studies.catalog.curvature.common import CIFAR, CIFAR_NEEDS
from halflife.studies.evidence.claims import Arm, Claim, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity
from halflife.studies.evidence.rules import can_be_measured
from halflife.studies.evidence.tests import above, below, within
from halflife.studies.specs.images import ImageRun

__all__ = ["CURVATURE_ALIGNMENT"]

ALIGNED = 0.5  # a cosine; the paper has 0.84 and 0.97
CLOSELY = 0.8
NEGLIGIBLE = 0.2  # the paper has 0.02
CLEARLY_PART = 0.25  # the paper has 0.51
SPECTRAL_SUM = 0.25  # relative l1 distance
SPECTRAL_FACTOR = 2.0  # mean factor between eigenvalues of equal rank

FIRST = MODELS[0]
REST = cosine(FIRST, "hessian-residual")
ORTHOGONAL = Each(
    name="cosine of the rest of the Hessian and each of gradient covariance and Gauss-Newton matrix, the scale-invariant"
    " ResNet, after the first epoch",
    quantities=(cosine(FIRST, "residual-covariance"), cosine(FIRST, "gauss-newton-residual")),
)
CLOSER = Quantity(
    name="cosine of gradient covariance and Gauss-Newton matrix - that of gradient covariance and Hessian, the"
    " scale-invariant ResNet, after the first epoch",
    values=reading(FIRST, "gauss-newton-covariance") - reading(FIRST, "hessian-covariance"),
)

AT_END = cosines("each of the three nets", MODELS, "hessian-covariance", late=True)
AT_END_NOISY = cosines("each net with random labels", tuple(map(noisy, MODELS)), "hessian-covariance", late=True)
EIGENVALUES = f"the {TOP} largest eigenvalues with and without decoupling"
IN_SUM = spectra(f"sum |difference| / sum of {EIGENVALUES}, at the end", shape=False)
IN_SHAPE = spectra(f"mean factor between {EIGENVALUES}, rank by rank, at the end", shape=True)
HAVE_SPECTRA = can_be_measured(
    "at each learning rate and lam the largest eigenvalue is above 0 in every seed", all_spectra
)

CLAIMS = (
    Claim(
        key="gauss-newton",
        text="After one epoch the covariance of SGD's noise is closely aligned with the Gauss-Newton matrix.",
        rule=Rule(parts=((cosine(FIRST, "gauss-newton-covariance"), above(CLOSELY)),)),
    ),
    Claim(
        key="hessian",
        text="After one epoch the covariance of SGD's noise is aligned with the Hessian, too.",
        rule=Rule(parts=((cosine(FIRST, "hessian-covariance"), above(ALIGNED)),)),
    ),
    Claim(
        key="rest-orthogonal",
        text="The rest of the Hessian, E = H - G, is almost orthogonal to both covariance and Gauss-Newton matrix.",
        rule=Rule(
            parts=((ORTHOGONAL, within(NEGLIGIBLE)),),
            stake=((REST, above(NEGLIGIBLE)),),
        ),
    ),
    Claim(
        key="rest-part",
        text="The rest of the Hessian beside the Gauss-Newton matrix is a considerable part of it.",
        rule=Rule(parts=((REST, above(CLEARLY_PART)),)),
    ),
    Claim(
        key="closer",
        text="The covariance of SGD's noise is closer to the Gauss-Newton matrix than to the Hessian.",
        rule=Rule(parts=((CLOSER, above(0)),)),
    ),
    Claim(
        key="other-nets",
        text="Covariance and Hessian are aligned in a ResNet with BatchNorm and in an MLP without, too (our claim).",
        rule=Rule(
            parts=(
                (cosines("the ResNet with BatchNorm and the MLP", MODELS[1:], "hessian-covariance"), above(ALIGNED)),
            )
        ),
    ),
    Claim(
        key="at-end",
        text="Covariance and Hessian are still aligned at the end of training (our claim).",
        rule=Rule(parts=((AT_END, above(ALIGNED)),)),
    ),
    Claim(
        key="label-noise",
        text="Label noise brings the covariance closer to the Hessian (an observation from the authors' slides).",
        rule=Rule(parts=((label_noise_adds("hessian-covariance"), above(0)),)),
    ),
    Claim(
        key="label-noise-match",
        text="With label noise covariance and Hessian match.",
        rule=Rule(parts=((AT_END_NOISY, above(CLOSELY)),)),
    ),
    Claim(
        key="spectra",
        text="The spectra of the covariance with and without the decoupling approximation overlap: their eigenvalues are the"
        " same.",
        rule=Rule(parts=((IN_SUM, below(SPECTRAL_SUM)),), given=(HAVE_SPECTRA,)),
    ),
    Claim(
        key="spectra-log",
        text="The spectra of the covariance with and without the decoupling approximation overlap on a logarithmic axis, as the"
        " paper draws them.",
        rule=Rule(parts=((IN_SHAPE, below(SPECTRAL_FACTOR)),), given=(HAVE_SPECTRA,)),
    ),
)

NOISE = 0.3
GRID = ((0.05, 0.2), (0.0025, 0.0125))
SMALL: Mapping[str, Any] = {
    "num_train": 2_000, "num_test": 500, "batch_size": 50, "downsample": 4, "blocks": (1, 1), "probe_examples": 200,
    "probe_vectors": 20,
}  # fmt: skip


def _arms(
    *widths: int,
    num_epochs: int,
    lr: float = 0.05,
    lam: float = 0.0125,
    grid: tuple[Sequence[float], Sequence[float]] = GRID,
    base: Mapping[str, Any] = SMALL,
    **changes: Any,
) -> tuple[Arm, ...]:
    """Each model with and without random labels, and the ResNet over the grid, probed after an epoch and at the end."""

    def arm(key: str, label: str, size: int, **own: Any) -> Arm:
        # The "drop" to the same rate does nothing but to have probes taken after the first epoch.
        probed = {"lr_after_drop": own["lr"], "drop_at": 1 / num_epochs, "ema": (), "probes": ("alignment",)}
        fields = {"width": size, "num_epochs": num_epochs, **base, **changes, **probed, **own}
        return Arm(key=key, label=label, size=size, spec=ImageRun(**fields))

    arms = []
    for width in widths:
        for model in MODELS:
            fields: dict[str, Any] = {"model": model, "lr": lr, "lam": lam}
            if model == "mlp":
                fields |= {"width": 4 * width, "blocks": (1,)}
            arms.append(arm(model, model, width, **fields))
            arms.append(arm(noisy(model), f"{model}, {NOISE:.0%} random labels", width, **fields, label_noise=NOISE))
        arms += [
            arm(f"cell-{i}-{j}", f"resnet, lr {one:g}, lam {other:g}", width, model="resnet", lr=one, lam=other)
            for i, one in enumerate(grid[0])
            for j, other in enumerate(grid[1])
        ]
    return tuple(arms)


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
    presets=presets(
        smoke=Preset(
            description="100 training images, 2 epochs",
            budget="15 seconds",
            arms=_arms(
                4, grid=(GRID[0], GRID[1][1:]), num_train=100, num_test=50, num_epochs=2, probe_examples=20, probe_vectors=2
            ),
        ),
        laptop=Preset(
            description="nets of width 8, 20 epochs, 2,000 Fashion-MNIST images at 7 x 7",
            budget="5 minutes on 2 cores",
            arms=_arms(8, num_epochs=20, eval_every=20),
        ),
        night=Preset(
            description="as laptop, at 14 x 14, for 60 epochs, with more seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(
                4, 8, 16, downsample=2, blocks=(1, 1, 1), num_epochs=60, eval_every=20, probe_examples=250, probe_vectors=40
            ),
            num_seeds=8,
            main_size=8,
            num_ladder_seeds=4,
        ),
        paper=Preset(
            description="ResNet-18 of the paper's width on CIFAR-10, 30 epochs, learning rate 0.005 (the grid: 0.001 to 0.1,"
            " lam 0.0005 to 0.01), 200 images probed",
            budget="a day on one GPU",
            arms=_arms(
                64, lr=0.005, lam=0.01, grid=((0.001, 0.01, 0.1), (0.0005, 0.01)), base=CIFAR, num_epochs=30, eval_every=5,
                probe_examples=200, probe_vectors=20,
            ),
            num_seeds=3,
            needs=CIFAR_NEEDS,
        ),
    ),
)  # fmt: skip
