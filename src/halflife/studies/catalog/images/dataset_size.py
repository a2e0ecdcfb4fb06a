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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.images.common import CIFAR_10_NEEDS, RESNET_18, image_run, in_points, point
from halflife.studies.evidence.choice import Side, chosen_arms
from halflife.studies.evidence.claims import Arm, Claim, PointRow, PointsPanel, Preset, Published, Rule, Study, presets
from halflife.studies.evidence.optimum import PAIRED_NOTE
from halflife.studies.evidence.quantities import Chosen, Each, Quantity, Reading, Terms, mean_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import Lines, against
from halflife.studies.evidence.tests import above, below, lowered, within
from halflife.studies.specs.images import ImageRun

__all__ = ["DATASET_SIZE"]

NUM_SMALL = 2  # so many of the smallest numbers of examples are "few"
SMALL_PLACES = tuple(range(NUM_SMALL))
SMALLEST_EFFECT = 0.5  # points: an improvement below this would not make anybody tune lam
MARGIN = 1.0  # points that count as none: twice the difference in the paper's one pass (0.5)
INTERPOLATED = 1.0  # per cent of training error: below this the training set is as good as interpolated

Numbers = NDArray[np.float64]
Places = tuple[int, ...]


def key_of(count: int, lam: float) -> str:
    """The arm of a number of examples and a lam."""
    return f"{count:,} examples, lam {lam:g}"


def grid(results: Results, size: int) -> tuple[list[int], list[float]]:
    """The numbers of examples and the lams, both rising; the first lam is 0, and the last number is the budget."""
    specs = [image_run(results, arm["key"], size) for arm in results.arms if arm["size"] == size]
    return sorted({spec.num_train or 0 for spec in specs}), sorted({spec.lam for spec in specs})


def percent(count: int, lam: float, name: str) -> Terms:
    """A reading of the average, or an array of it, in per cent."""
    return 100 * Reading(key_of(count, lam), f"ema-0.98/{name}")


def change(results: Results, size: int, *, lam: float, places: Places, minus: Places = ()) -> Numbers:
    """Test error of the average with a lam minus without decay, in points, (S, N): mean over places, minus that over others."""
    # A place is that of a number of examples in rising order; -1 is one pass.
    counts, _ = grid(results, size)
    mean = mean_of([percent(counts[p], lam, "test/wrong") - percent(counts[p], 0.0, "test/wrong") for p in places])
    found = mean(results, size)
    return found - change(results, size, lam=lam, places=minus) if minus else found


def error_at(results: Results, size: int, *, lam: float, count: int, name: str) -> Numbers:
    """An error of the average in per cent."""
    return percent(count, lam, name)(results, size)


@dataclass(frozen=True)
class BestLam(Chosen):
    """A quantity at the lam with which the test error is lowest where examples are few.

    One lam for all numbers of examples, as in the paper's figure: chosen anew for each, a small enough lam would make no
    difference in one pass whatever decay does there.

    Args:
        of: The quantity, of the results, a size and ``lam``.
    """

    of: Callable[..., Numbers]

    def side(self, results: Results, size: int) -> Side:
        """Its values at each lam above 0, which is chosen by the change of the error where examples are few."""
        lams = grid(results, size)[1][1:]
        values = np.array([self.of(results, size, lam=lam) for lam in lams])
        scores = np.array([change(results, size, lam=lam, places=SMALL_PLACES) for lam in lams])
        return Side(values=values, scores=None if np.array_equal(values, scores) else scores)


def change_at(places: Places, minus: Places = ()) -> BestLam:
    """`change` at the best lam."""
    return BestLam(functools.partial(change, places=places, minus=minus))


def training_errors(results: Results, size: int, *, decay: bool) -> list[Quantity]:
    """The average's training error at each of the smallest numbers of examples."""
    counts, _ = grid(results, size)
    return [
        Quantity(
            name=f"training error of the average {DECAY[decay]}, {count:,} examples",
            values=BestLam(functools.partial(error_at, count=count, name="train/error"))
            if decay
            else percent(count, 0.0, "train/error"),
            unit="%",
        )
        for count in counts[:NUM_SMALL]
    ]


DECAY = {True: "with the best lam for few examples", False: "without decay"}
FEW = in_points(
    f"test error of the average with the best lam - without decay, mean over the {NUM_SMALL} smallest numbers of examples",
    change_at(SMALL_PLACES),
)
ONE_PASS = in_points(
    "test error of the average with the best lam for few examples - without decay, one pass", change_at((-1,))
)
SHRINKS = in_points(
    "effect of decay on the test error of the average (best lam for few examples), one pass - few",
    change_at((-1,), SMALL_PLACES),
)
WITH_DECAY, WITHOUT = (
    Each(
        name=f"training error of the average {DECAY[decay]}, at each of the smallest numbers of examples",
        quantities=functools.partial(training_errors, decay=decay),
        unit="%",
    )
    for decay in (True, False)
)

CLAIMS = (
    Claim(
        key="helps",
        text="Where few examples are seen many times, decay lowers the test error.",
        rule=Rule(parts=((FEW, lowered(SMALLEST_EFFECT)),)),
    ),
    Claim(
        key="interpolates",
        text="Where few examples are seen many times, decay lowers the test error though the net still interpolates them.",
        rule=Rule(parts=((WITH_DECAY, below(INTERPOLATED)), (WITHOUT, below(INTERPOLATED))), given=((FEW, below(0)),)),
    ),
    Claim(
        key="one-pass",
        text="In one pass over as many distinct examples as the budget has samples, decay makes no difference to the test"
        " error.",
        rule=Rule(parts=((ONE_PASS, within(MARGIN)),), stake=((FEW, below(-MARGIN)),)),
    ),
    Claim(
        key="shrinks",
        text="The gain by decay shrinks from many passes over few examples to one pass over many.",
        rule=Rule(parts=((SHRINKS, above(0)),), given=((FEW, below(0)),)),
    ),
)


def error_lines(results: Results, size: int, *, part: str) -> Lines:
    """The average's test or training error against the number of distinct examples, a line a lam."""
    counts, lams = grid(results, size)
    return {f"lam {lam:g}": [(count, percent(count, lam, f"{part}/error")) for count in counts] for lam in lams}


def gain_rows(results: Results) -> list[PointRow]:
    """What the chosen lam gains against the number of distinct examples, with intervals over seeds and test examples."""
    counts, _ = grid(results, results.main_size)
    name = "gain by the chosen lam"
    return [point(results, name, count, -1.0 * change_at((place,))) for place, count in enumerate(counts)]


PANELS = (
    PointsPanel(
        slug="test-error",
        title="Test error against the number of distinct examples",
        x_label="distinct training examples",
        y_label="test error of the average (%)",
        rows=against(functools.partial(error_lines, part="test")),
        log_x=True,
        source_figure="figure 1",
        note=f"All runs see the same number of samples. {PAIRED_NOTE}",
    ),
    PointsPanel(
        slug="train-error",
        title="Training error against the number of distinct examples",
        x_label="distinct training examples",
        y_label="training error of the average (%)",
        rows=against(functools.partial(error_lines, part="train")),
        log_x=True,
        source_figure="figure 1",
        note=PAIRED_NOTE,
    ),
    PointsPanel(
        slug="gain",
        title="Gain by decay against the number of distinct examples",
        x_label="distinct training examples",
        y_label="test error without decay minus with (points)",
        rows=gain_rows,
        log_x=True,
        source_figure="figure 1",
        note="Bars are 95 % intervals over seeds and test examples; lam is the best one on the other seeds where examples are"
        " few. All seeds share the same examples, so bars do not tell of the choice of the few.",
    ),
)


def gain_text(results: Results, *, place: int) -> str:
    """Our gain at one of the numbers of examples."""
    count = grid(results, results.main_size)[0][place]
    gain = point(results, "gain", count, -1.0 * change_at((place,)))
    epochs = image_run(results, key_of(count, 0.0), results.main_size).num_epochs
    passes = "one pass" if epochs == 1 else f"{epochs} passes"
    return f"{gain.y:.2f} [{gain.low:.2f}, {gain.high:.2f}] points in {passes} over {count:,}"


def error_text(results: Results, *, part: str, place: int) -> str:
    """Our error with the best lam and without, at one of the numbers of examples."""
    counts, lams = grid(results, results.main_size)
    error = functools.partial(error_at, count=counts[place], name=f"{part}/error")
    decayed = BestLam(error)
    found = " and ".join(f"{lams[1 + arm]:g}" for arm in chosen_arms(decayed.side(results, results.main_size)))
    without = error(results, results.main_size, lam=0.0).mean()
    return f"{decayed(results, results.main_size).mean():.1f} / {without:.1f} % (lam {found}) at {counts[place]:,}"


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
        ("gain by decay, fewest examples", "13.4 points", functools.partial(gain_text, place=0)),
        ("gain by decay, one pass", "0.5 points", functools.partial(gain_text, place=-1)),
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


def _arms(
    budget: int, counts: Sequence[int], lams: Sequence[float], common: Mapping[str, Any], widths: tuple[int, ...]
) -> tuple[Arm, ...]:
    arms = []
    for width in widths:
        for count in counts:
            passes, rest = divmod(budget, count)
            assert rest == 0, f"{count} examples do not make {budget} samples in whole passes"
            for lam in lams:
                fields = {"num_train": count, "num_epochs": passes, "eval_every": passes, "drop_at": 1.0, **common}
                name = key_of(count, lam)
                arms.append(Arm(key=name, label=name, size=width, spec=ImageRun(lam=lam, width=width, **fields)))
    return tuple(arms)


SMALL = {
    "data": "fashion-mnist-views", "downsample": 2, "blocks": (1, 1), "batch_size": 50, "lr": 0.2, "ema": (0.98,)
}  # fmt: skip
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
    presets=presets(
        smoke=Preset(
            description="1,600 samples of 100, 400 or 1,600 examples",
            budget="20 seconds",
            arms=_arms(1_600, (100, 400, 1_600), (0.0, 0.02), SMALL | {"num_test": 200}, (4,)),
        ),
        laptop=Preset(
            description="width 8, 110,000 samples of 250 to 110,000 examples (views of 11,000 Fashion-MNIST images) at 7 x 7",
            budget="10 minutes on 2 cores",
            arms=_arms(BUDGET, (250, 1_000, 5_000, 27_500, 110_000), LAMS, SMALL, (8,)),
        ),
        night=Preset(
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
        ),
        paper=Preset(
            description="pre-activation ResNet-18 on CIFAR-10; the paper's set, CIFAR-5m, is not read here, so that the budget"
            " is one pass over 50,000 samples and not over 5 million",
            budget="an hour on one GPU",
            arms=_arms(
                50_000,
                (500, 1_000, 5_000, 10_000, 50_000),
                (0.0, 0.005, 0.0125),
                RESNET_18 | {"batch_size": 100, "lr": 0.1, "precision": "float16", "ema": (0.98,)},
                (64,),
            ),
            num_seeds=3,
            needs=CIFAR_10_NEEDS,
        ),
    ),
)
