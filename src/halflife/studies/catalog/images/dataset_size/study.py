"""One budget of samples, spent on few examples many times or on many examples once: where does decay matter?

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), figure 1: 5 million samples of CIFAR-5m, 10,000 to 5 million of them distinct. The paper does not
say which learning rate and lam it used there.

CIFAR-5m is synthetic. Here the set of the size of the budget is 110,000 views, flipped and moved, of 11,000 images of
Fashion-MNIST (`fashion-mnist-views`); the first 11,000 of them are distinct images, and the test set is a view of each of
4,000 others. So in the one pass each example is new, and each image is seen in ten views. All seeds share the same first
examples, so that intervals do not tell of the choice of the few.

The readings are of the moving average of the weights at a constant learning rate: in one pass there is no place for a drop.

The rules were written before any run of the presets' seeds. Explored on seed 1000: a budget of 11,000 distinct images
(batch 10, 1,100 steps) interpolates 250 of them and not 1,000, and is shorter than the timescales of lams that act; that is
why there are views. With 110,000 samples in batches of 25, learning rate 0.2 and lam 0 or 0.0075 the average has 41.5 and
38.2 % test error on 250 examples, 31.3 and 28.8 % on 1,000, 23.2 and 25.4 % in one pass: there that lam is a cost, and
the rules take one lam for all numbers of examples, the better of two where examples are few. The presets take
batches of 50; one run of each of three arms was timed with them: lam 0.02 on 250 examples gives 39.8 % (training error of
the average 0), lam 0.005 on 1,000 gives 31.1 % (training error 2.1 %) and in one pass 24.3 %.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.dataset_size import quantities as rules
from halflife.studies.evidence.claims import Arm, PointRow, PointsPanel, Preset, Published, Study
from halflife.studies.evidence.decisions import WordedClaim
from halflife.studies.evidence.optimum import PAIRED_NOTE, paired_rows
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import crossed_interval, seed_interval
from halflife.studies.specs.images import ImageRun

__all__ = ["DATASET_SIZE"]

_BEST = (
    "One lam for all numbers of examples: that which is best on the other seeds, mean over the"
    f" {rules.NUM_SMALL} smallest numbers. "
)

CLAIMS = (
    WordedClaim(
        key="helps",
        text="Where few examples are seen many times, decay lowers the test error.",
        rule=f"{_BEST}Mean over the {rules.NUM_SMALL} smallest numbers of examples. Reproduced if the 95 % interval of (error"
        " with decay - error without) lies below 0; not reproduced if it excludes an improvement of"
        f" {rules.SMALLEST_EFFECT} points; else inconclusive.",
        effect_name="change of the test error by decay, few examples",
        unit="points",
        measure=rules.error_lowered,
    ),
    WordedClaim(
        key="interpolates",
        text="Where few examples are seen many times, decay lowers the test error though the net still interpolates them.",
        rule=f"{_BEST}At each of the {rules.NUM_SMALL} smallest numbers of examples: reproduced if the 95 % intervals of the"
        f" average's training error, with decay and without, all lie below {rules.INTERPOLATED:g} %; not reproduced if one lies"
        " above; else inconclusive.",
        effect_name="training error with decay, the larger of both",
        unit="%",
        measure=rules.interpolates,
    ),
    WordedClaim(
        key="one-pass",
        text="In one pass over as many distinct examples as the budget has samples, decay makes no difference to the test"
        " error.",
        rule=f"{_BEST}Reproduced if the 90 % interval of the gain lies within {rules.MARGIN:g} point of 0, and the gain with"
        " few examples is larger than that; not reproduced if it lies wholly outside; else inconclusive.",
        effect_name="change of the test error by decay, one pass",
        unit="points",
        measure=rules.same_in_one_pass,
    ),
    WordedClaim(
        key="shrinks",
        text="The gain by decay shrinks from many passes over few examples to one pass over many.",
        rule=f"{_BEST}Reproduced if the 95 % interval of (gain with few examples - gain in one pass) lies above 0; not"
        " reproduced if it lies below; else inconclusive.",
        effect_name="gain with few examples minus gain in one pass",
        unit="points",
        measure=rules.gap_shrinks,
    ),
)


def _values(
    results: Results, subsets: Sequence[rules.Subset], part: str, lam: float, *, average: bool = True
) -> NDArray[np.float64]:
    """An error in per cent at one lam, one row a number of examples, a column a seed."""
    size = results.main_size
    keys = [subset.none if lam == 0 else subset.decayed[lam] for subset in subsets]
    prefixes = [subset.average if average else "" for subset in subsets]
    pairs = zip(keys, prefixes, strict=True)
    return 100 * np.array([results.last(key, f"{prefix}{part}/error", size) for key, prefix in pairs])


def error_rows(results: Results, *, part: str) -> list[PointRow]:
    """The error against the number of distinct examples, a line a lam.

    Args:
        results: What the store holds.
        part: ``"test"`` or ``"train"``.

    Returns:
        The points.
    """
    found = rules.subsets(results, results.main_size)
    counts = [float(subset.count) for subset in found]
    rows = []
    for lam in (0.0, *found[0].decayed):
        rows += paired_rows(f"lam {lam:g}", counts, _values(results, found, part, lam))
    return rows


def gap_rows(results: Results) -> list[PointRow]:
    """What the best lam gains against the number of distinct examples, with intervals over seeds and test examples."""
    rows = []
    for count, gap_SN in rules.gaps(results, results.main_size).items():
        gap = crossed_interval(gap_SN)
        rows.append(PointRow(series="gain by the chosen lam", x=count, y=gap.estimate, low=gap.low, high=gap.high))
    return rows


PANELS = (
    PointsPanel(
        slug="test-error",
        title="Test error against the number of distinct examples",
        x_label="distinct training examples",
        y_label="test error of the average (%)",
        rows=functools.partial(error_rows, part="test"),
        log_x=True,
        source_figure="figure 1",
        note=f"All runs see the same number of samples. {PAIRED_NOTE}",
    ),
    PointsPanel(
        slug="train-error",
        title="Training error against the number of distinct examples",
        x_label="distinct training examples",
        y_label="training error of the average (%)",
        rows=functools.partial(error_rows, part="train"),
        log_x=True,
        source_figure="figure 1",
        note=PAIRED_NOTE,
    ),
    PointsPanel(
        slug="gain",
        title="Gain by decay against the number of distinct examples",
        x_label="distinct training examples",
        y_label="test error without decay minus with (points)",
        rows=gap_rows,
        log_x=True,
        source_figure="figure 1",
        note="Bars are 95 % intervals over seeds and test examples; lam is the best one on the other seeds where examples are"
        " few. All seeds share the same"
        " examples, so bars do not tell of the choice of the few.",
    ),
)


def gap_text(results: Results, *, place: int) -> str:
    """Our gain at one of the numbers of examples."""
    found = rules.subsets(results, results.main_size)[place]
    gap = crossed_interval(rules.gap_of(results, found, results.main_size))
    passes = "one pass" if found.passes == 1 else f"{found.passes} passes"
    return f"{gap.estimate:.2f} [{gap.low:.2f}, {gap.high:.2f}] points in {passes} over {found.count:,}"


def error_text(results: Results, *, part: str, place: int) -> str:
    """Our error with the chosen lam and without, at one of the numbers of examples."""
    size = results.main_size
    found = rules.subsets(results, size)[place]
    without = seed_interval(_values(results, [found], part, 0.0)[0]).estimate
    chosen = rules.chosen_lams(results, size)
    decayed = np.mean([_values(results, [found], part, lam)[0, seed] for seed, lam in enumerate(chosen)])
    lams = " and ".join(f"{lam:g}" for lam in sorted(set(chosen)))
    return f"{decayed:.1f} / {without:.1f} % (lam {lams}) at {found.count:,}"


PUBLISHED = tuple(
    Published(quantity=quantity, published=number, where="figure 1", how="fig-read", ours=ours)
    for quantity, number, ours in (
        (
            "test error with / without decay, fewest examples",
            "22.1 / 35.5 % at 10,000 (500 passes)",
            functools.partial(error_text, part="test", place=0),
        ),
        (
            "test error with / without decay, one pass",
            "8.3 / 8.8 % at 5 million",
            functools.partial(error_text, part="test", place=-1),
        ),
        ("gain by decay, fewest examples", "13.4 points", functools.partial(gap_text, place=0)),
        ("gain by decay, one pass", "0.5 points", functools.partial(gap_text, place=-1)),
        (
            "training error with / without decay, fewest examples",
            "0 / 0 % (up to 100,000, 50 passes)",
            functools.partial(error_text, part="train", place=0),
        ),
        (
            "training error with / without decay, one pass",
            "8 / 8 %",
            functools.partial(error_text, part="train", place=-1),
        ),
    )
)


def _spec(fields: Mapping[str, Any], seed: int) -> ImageRun:
    return ImageRun(seed=seed, **fields)


def _arms(
    budget: int, counts: tuple[int, ...], lams: tuple[float, ...], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    arms = []
    for width in widths:
        for count in counts:
            passes, rest = divmod(budget, count)
            assert rest == 0, f"{count} examples do not make {budget} samples in whole passes"
            for lam in lams:
                fields = {"num_train": count, "num_epochs": passes, "eval_every": passes, "lam": lam, "width": width}
                name = f"{count:,} examples, lam {lam:g}"
                spec = _spec({"drop_at": 1.0, **fields, **common}, 0)
                arms.append(Arm(key=name, label=name, size=width, spec=spec))
    return tuple(arms)


SMALL = {
    "data": "fashion-mnist-views",
    "downsample": 2,
    "blocks": (1, 1),
    "batch_size": 50,
    "lr": 0.2,
    "ema": (0.98,),
}
BUDGET = 110_000
LAMS = (0.0, 0.005, 0.02)

DATASET_SIZE = Study(
    name="dataset-size",
    title="One budget of samples, few examples or many",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), figure 1",
    claim="Decay always helps where examples are seen many times, though the net still interpolates them; towards a single pass"
    " the difference goes away, because there it can only speed up the optimization.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    presets={
        "smoke": Preset(
            description="1,600 samples of 100, 400 or 1,600 examples: shows that everything works, not what is true",
            budget="20 seconds",
            arms=_arms(1_600, (100, 400, 1_600), (0.0, 0.02), SMALL | {"num_test": 200}, (4,)),
            num_seeds=2,
            main_size=4,
            decides=False,
        ),
        "laptop": Preset(
            description="width 8, 110,000 samples of 250 to 110,000 examples (views of 11,000 Fashion-MNIST images) at 7 x 7",
            budget="10 minutes on 2 cores",
            arms=_arms(BUDGET, (250, 1_000, 5_000, 27_500, 110_000), LAMS, SMALL, (8,)),
            num_seeds=5,
            main_size=8,
        ),
        "night": Preset(
            description="as laptop, with more numbers of examples, lams and seeds, and a ladder of widths 4, 8, 16",
            budget="90 minutes on 2 cores",
            arms=_arms(
                BUDGET,
                (250, 500, 1_000, 2_750, 5_500, 11_000, 27_500, 55_000, 110_000),
                (0.0, 0.0025, 0.005, 0.01, 0.02),
                SMALL,
                (4, 8, 16),
            ),
            num_seeds=6,
            main_size=8,
            num_ladder_seeds=3,
        ),
        "paper": Preset(
            description="pre-activation ResNet-18 on CIFAR-10; the paper's set, CIFAR-5m, is not read here, so that the budget"
            " is one pass over 50,000 samples and not over 5 million",
            budget="an hour on one GPU",
            arms=_arms(
                50_000,
                (500, 1_000, 5_000, 10_000, 50_000),
                (0.0, 0.005, 0.0125),
                {
                    "data": "cifar10",
                    "downsample": 1,
                    "blocks": (2, 2, 2, 2),
                    "batch_size": 100,
                    "lr": 0.1,
                    "precision": "float16",
                    "ema": (0.98,),
                },
                (64,),
            ),
            num_seeds=3,
            main_size=64,
            needs="CIFAR-10's binary version (--data DIR) and a GPU",
        ),
    },
)
