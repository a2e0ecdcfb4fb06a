"""At how few bits does training break, what moves that threshold, and which rounding breaks it?

Source: the open question of D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?"
(NeurIPS 2024, arXiv 2310.04415), section 3: it conjectures that decay keeps terms of disparate scales from being added in low
precision, and varies neither the precision nor the norm. Both are varied here; the claims are ours.

A run fails if its final loss is more than 0.1 nats above that of the same run in float32 (same seed, data, rate and lam). The
bits that a setting needs are where the final loss crosses this bound, between the counts that were run. The setting was looked
for on seeds of 500 and above; the rules were written before any run of the presets' seeds.

Shapes: S seeds, N blocks of validation tokens, B counts of bits.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.quantities import in_nats, loss, starting_with
from halflife.studies.catalog.precision.common import FAILED, FLOAT32, GPT, PAPER_GPT, rounded_arm
from halflife.studies.evidence.claims import (
    Arm,
    Cell,
    Claim,
    HeatPanel,
    Panel,
    PointsPanel,
    Preset,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.optimum import lam_of, lam_places, text_spec
from halflife.studies.evidence.quantities import Measure, NotMeasuredError, Numbers, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, by_name
from halflife.studies.evidence.tests import above, below, within
from halflife.studies.specs.precision import AUTOCAST_PLACES

__all__ = ["PRECISION_THRESHOLD"]

LAMS = ("none", "weak", "usual", "strong")

REST = tuple(place for place in AUTOCAST_PLACES if place not in {"scores", "mixing"})
PLACES: Mapping[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "scores": ("queries, keys and their products, forward", ("scores",), ()),
    "mixing": ("attention probabilities, values and their products, forward", ("mixing",), ()),
    "rest": ("all but attention", REST, REST),
    "residual": ("the residual stream", ("residual",), ("residual",)),
    "gradients": ("all gradients, nothing forward", (), AUTOCAST_PLACES),
}
"""By name: in words, where the forward pass rounds, and where the backward pass does."""

MATRICES = {
    "qkv": "decay on the matrices of queries, keys and values",
    "all-but-qkv": "decay on all matrices but those",
}
"""By the policy of the decay."""

LIMIT = 8.0  # nats: half an ulp of the largest attention score at which is warned
HEALTHY = 0.05  # nats above float32: half of a failure
ONE_BIT = 0.5  # bits: "about one" is nearer to one than to none or two
FALSE_ALARMS = 0.1  # of the runs that are healthy


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with its rates, lams and counts of bits.

    Args:
        fields: Of the `TextRun`.
        large: The learning rate.
        small: The one that it is compared with.
        lams: Of `LAMS`.
        bits: Counts of bits, falling, at the large rate, at the small one, and from large initial weights.
        few: The count at which places and matrices are compared.
        num_steps: Of every run.
        warm: Steps of the warm-up.
        init_factor: By how much larger initial weights are, where that is varied.
    """

    fields: Mapping[str, Any]
    large: float
    small: float
    lams: tuple[float, float, float, float]
    num_steps: int
    bits: tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]] = ((3, 2, 1), (3, 2, 1), (4, 3, 2))
    few: int = 2
    warm: int = 100
    init_factor: float = 3.0

    def arms(self) -> tuple[Arm, ...]:
        """All arms: three grids over bits, then what is compared at few bits."""
        large, small, init = ((FLOAT32, *bits) for bits in self.bits)
        larger = {"init_std": self.init_factor * self.fields.get("init_std", 0.02)}
        return (
            *(self._arm(f"large-{bits}-{lam}", lam, bits=bits) for lam in LAMS for bits in large),
            *(self._arm(f"small-{bits}-none", "none", bits=bits, lr=self.small) for bits in small),
            *(
                self._arm(f"init-{bits}-none", "none", bits=bits, words="large initial weights", **larger)
                for bits in init
            ),
            # The references at few bits are runs of the first grid.
            self._arm("few-float32-none", "none"),
            self._arm("few-all-none", "none", bits=self.few),
            self._arm("few-all-usual", "usual", bits=self.few),
            *(
                self._arm(f"few-{name}-none", "none", bits=self.few, words=name, forward=forward, backward=backward)
                for name, (_, forward, backward) in PLACES.items()
            ),
            *(
                self._arm(f"few-{policy}-usual", "usual", bits=self.few, words=words, decay_on=policy)
                for policy, words in MATRICES.items()
            ),
        )

    def _arm(self, key: str, lam: str, *, lr: float | None = None, **changes: Any) -> Arm:
        return rounded_arm(
            key,
            self.fields,
            lam=self.lams[LAMS.index(lam)],
            lr=lr or self.large,
            num_steps=self.num_steps,
            warm=self.warm,
            **changes,
        )


def excess(grid: str, bits: int, lam: str) -> Measure:
    """The final loss at so many bits minus that of the same runs in float32, (S, N)."""
    return loss(f"{grid}-{bits}-{lam}") - loss(f"{grid}-{FLOAT32}-{lam}")


def cost(what: str) -> Measure:
    """The same without decay at few bits, of a place of rounding."""
    return loss(f"few-{what}-none") - loss("few-float32-none")


def gain(what: str) -> Measure:
    """By how much decay lowers the final loss at few bits, of all matrices or some."""
    return loss("few-all-none") - loss(f"few-{what}-usual")


def counts_of(results: Results, size: int, grid: str, lam: str) -> list[int]:
    """The counts of bits of a grid below float32's, falling."""
    found = [key.split("-") for key in starting_with(results, f"{grid}-", size)]
    return sorted((int(bits) for _, bits, name in found if name == lam and int(bits) != FLOAT32), reverse=True)


@dataclass(frozen=True)
class BitsNeeded(Measure):
    """The number of bits at which the final loss is `FAILED` above that in float32, (S,).

    Piecewise linear through the seed's excess at each count, from the most bits down to the first that fails.

    Args:
        grid: Of arms.
        lam: By name.
    """

    grid: str
    lam: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        counts = counts_of(results, size, self.grid, self.lam)
        excess_BS = np.array([excess(self.grid, bits, self.lam)(results, size).mean(axis=1) for bits in counts])
        needed = []
        for seed, excess_B in zip(results.seeds(size), excess_BS.T, strict=True):
            failing = np.flatnonzero(excess_B > FAILED)
            if not len(failing) or failing[0] == 0:
                raise NotMeasuredError(
                    f"in seed {seed} ({self.grid}, {self.lam}) the final loss is {excess_B[0]:+.3f} nats above float32 at"
                    f" {counts[0]} bits and {excess_B[-1]:+.3f} at {counts[-1]}, which do not bracket {FAILED:g}"
                )
            at = failing[0]
            share = (excess_B[at] - FAILED) / (excess_B[at] - excess_B[at - 1])
            needed.append(counts[at] + share * (counts[at - 1] - counts[at]))
        return np.array(needed)


def bits_needed(words: str, values: Measure) -> Quantity:
    """Bits, or a difference of bits."""
    return Quantity(name=words, values=values, unit="bits")


@dataclass(frozen=True)
class Lead(Measure):
    """Steps from the warning to the failure, (S,): of the runs at few bits without decay.

    The warning is the first reading at which half an ulp of the largest attention score is above `LIMIT`; the failure the first
    from which on the training loss stays `FAILED` above that of the run in float32. Both are means between readings.
    """

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        found = []
        scores = results.series_by_step("few-all-none", "score/half_ulp", size)
        rounded = results.series_by_step("few-all-none", "train/running_loss", size)
        exact = results.series_by_step("few-float32-none", "train/running_loss", size)
        for seed, (at, error), (steps, mine), (_, other) in zip(
            results.seeds(size), scores, rounded, exact, strict=True
        ):
            above_limit = np.flatnonzero(error > LIMIT)
            fine = np.flatnonzero(mine - other <= FAILED)
            if len(fine) and fine[-1] == len(steps) - 1:
                raise NotMeasuredError(f"seed {seed} at few bits does not fail, so that nothing could be warned of")
            failed = steps[fine[-1] + 1] if len(fine) else steps[0]
            warned = at[above_limit[0]] if len(above_limit) else steps[-1] + steps[0]  # after the end: no warning
            found.append(failed - warned)
        return np.array(found)


def false_alarms(results: Results, size: int) -> Numbers:
    """Of each seed's healthy runs the share that was warned of, (S,)."""
    keys = [
        f"{grid}-{bits}-{lam}"
        for grid, lams in (("large", LAMS), ("small", ("none",)), ("init", ("none",)))
        for lam in lams
        for bits in counts_of(results, size, grid, lam)
    ]
    healthy_AS = np.array([_excess_of(key)(results, size).mean(axis=1) < HEALTHY for key in keys])
    warned_AS = np.array(
        [[(error > LIMIT).any() for _, error in results.series_by_step(key, "score/half_ulp", size)] for key in keys]
    )
    if not healthy_AS.any(axis=0).all():
        raise NotMeasuredError("in some seed no run at few bits is healthy")
    shares: Numbers = (healthy_AS & warned_AS).sum(axis=0) / healthy_AS.sum(axis=0)
    return shares


def _excess_of(key: str) -> Measure:
    grid, bits, lam = key.split("-")
    return excess(grid, int(bits), lam)


ALL = in_nats("final loss at few bits - in float32, without decay", cost("all"))
ALL_GAIN = in_nats("final loss at few bits without decay - with, on all matrices", gain("all"))
NEEDED = "explicit mantissa bits that training needs"


def _of_cost(place: str) -> Quantity:
    words, _, _ = PLACES[place]
    return in_nats(
        f"what rounding {words}, costs at few bits without decay - half of what rounding everywhere costs",
        cost(place) - 0.5 * cost("all"),
    )


def _of_gain(policy: str) -> Quantity:
    return in_nats(
        f"by how much {MATRICES[policy]} lowers the final loss at few bits - half of what decay on all matrices does",
        gain(policy) - 0.5 * gain("all"),
    )


BOUGHT = bits_needed(
    f"{NEEDED} without decay - with usual decay", BitsNeeded("large", "none") - BitsNeeded("large", "usual")
)

CLAIMS = (
    Claim(
        key="fewer-bits",
        text="With decay training needs fewer mantissa bits than without.",
        rule=Rule(parts=((BOUGHT, above(0)),)),
    ),
    Claim(
        key="one-bit",
        text="Usual decay is worth about one mantissa bit.",
        rule=Rule(parts=((BOUGHT, within(ONE_BIT, around=1.0)),)),
    ),
    Claim(
        key="more-decay",
        text="The stronger the decay, the fewer mantissa bits training needs.",
        rule=Rule(
            parts=(
                (
                    bits_needed(
                        f"{NEEDED} with weak decay - with strong decay",
                        BitsNeeded("large", "weak") - BitsNeeded("large", "strong"),
                    ),
                    above(0),
                ),
            )
        ),
    ),
    Claim(
        key="rate",
        text="With a larger learning rate training needs more mantissa bits.",
        rule=Rule(
            parts=(
                (
                    bits_needed(
                        f"{NEEDED} without decay at the large rate - at the small one",
                        BitsNeeded("large", "none") - BitsNeeded("small", "none"),
                    ),
                    above(0),
                ),
            )
        ),
    ),
    Claim(
        key="initial-norm",
        text="With larger initial weights training needs more mantissa bits.",
        rule=Rule(
            parts=(
                (
                    bits_needed(
                        f"{NEEDED} without decay from initial weights three times as large - from usual ones",
                        BitsNeeded("init", "none") - BitsNeeded("large", "none"),
                    ),
                    above(0),
                ),
            )
        ),
    ),
    Claim(
        key="scores",
        text="Rounding attention scores in the forward pass alone costs more than half of what rounding everywhere costs.",
        rule=Rule(parts=((_of_cost("scores"), above(0)),), given=((ALL, above(FAILED)),)),
    ),
    Claim(
        key="mixing",
        text="Rounding attention probabilities and values alone costs less than half of what rounding everywhere costs.",
        rule=Rule(parts=((_of_cost("mixing"), below(0)),), given=((ALL, above(FAILED)),)),
    ),
    Claim(
        key="rest",
        text="Rounding everything but attention costs less than half of what rounding everywhere costs.",
        rule=Rule(parts=((_of_cost("rest"), below(0)),), given=((ALL, above(FAILED)),)),
    ),
    Claim(
        key="residual",
        text="Rounding the residual stream, where terms of disparate scales are added, costs less than half of what rounding"
        " everywhere else costs.",
        rule=Rule(parts=((_of_cost("residual"), below(0)),), given=((ALL, above(FAILED)),)),
    ),
    Claim(
        key="gradients",
        text="Rounding gradients alone does not make training fail.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "what rounding all gradients, and nothing forward, costs at few bits without decay",
                        cost("gradients"),
                    ),
                    below(FAILED),
                ),
            ),
            stake=((ALL, above(FAILED)),),
        ),
    ),
    Claim(
        key="qkv",
        text="At few bits decay on the matrices of queries, keys and values alone does more than half of what decay does.",
        rule=Rule(parts=((_of_gain("qkv"), above(0)),), given=((ALL_GAIN, above(0)),)),
    ),
    Claim(
        key="others",
        text="At few bits decay on all matrices but those of queries, keys and values does more than half of what decay does.",
        rule=Rule(parts=((_of_gain("all-but-qkv"), above(0)),), given=((ALL_GAIN, above(0)),)),
    ),
    Claim(
        key="warning",
        text="Before the loss shows it, half an ulp of the largest attention score is above 8 nats.",
        rule=Rule(
            parts=(
                (
                    Quantity(
                        name="steps from the first reading with half an ulp of the largest score above 8 nats to the loss"
                        f" staying {FAILED:g} nats above float32, at few bits without decay",
                        values=Lead(),
                        unit="steps",
                    ),
                    above(0),
                ),
            )
        ),
    ),
    Claim(
        key="false-alarms",
        text="Fewer than a tenth of the runs that stay healthy at few bits have half an ulp of the largest score above 8 nats.",
        rule=Rule(
            parts=(
                (
                    Quantity(
                        name=f"share of the runs that end less than {HEALTHY:g} nats above float32 in which half an ulp of the"
                        " largest score is ever above 8 nats",
                        values=false_alarms,
                    ),
                    below(FALSE_ALARMS),
                ),
            )
        ),
    ),
)


def _boundary(results: Results, size: int) -> dict[str, list[tuple[float, Measure]]]:
    """The bits that training needs against lam at the large rate, and without decay in the other grids."""
    lams = [lam_of(text_spec(results, f"large-{FLOAT32}-{lam}", size)) for lam in LAMS]
    places = dict(zip(LAMS, lam_places(lams), strict=True))
    lr = {grid: text_spec(results, f"{grid}-{FLOAT32}-none", size).lr for grid in ("large", "small")}
    lines: dict[str, list[tuple[float, Measure]]] = {}
    for name, grid, named in (
        (f"lr {lr['large']:g}", "large", LAMS),
        (f"lr {lr['small']:g}", "small", LAMS[:1]),
        (f"lr {lr['large']:g}, large initial weights", "init", LAMS[:1]),
    ):
        places_of = [(places[lam], BitsNeeded(grid, lam)) for lam in named if _is_measured(results, size, grid, lam)]
        if places_of:
            lines[name] = [*places_of]
    return lines


def _is_measured(results: Results, size: int, grid: str, lam: str) -> bool:
    try:
        BitsNeeded(grid, lam)(results, size)
    except NotMeasuredError:
        return False
    return True


def _cells(results: Results, *, grid: str, lams: tuple[str, ...]) -> list[Cell]:
    size = results.main_size
    cells = []
    for lam in lams:
        value = lam_of(text_spec(results, f"{grid}-{FLOAT32}-{lam}", size))
        for bits in counts_of(results, size, grid, lam):
            cells.append(Cell(bits, f"lam {value:g}", float(excess(grid, bits, lam)(results, size).mean())))
    return cells


def _costs() -> dict[str, Measure]:
    """What each place of rounding costs, and what is left of the whole where some matrices decay."""
    found: dict[str, Measure] = {name: cost(name) for name in ("all", *PLACES)}
    for policy in ("all", *MATRICES):
        found[f"all, decay on {policy.replace('-', ' ')}"] = loss(f"few-{policy}-usual") - loss("few-float32-none")
    return found


PANELS = (
    PointsPanel(
        slug="boundary",
        title="Mantissa bits that training needs",
        x_label="lam",
        y_label="explicit mantissa bits",
        rows=against(_boundary, bars="seeds", apart=1),
        log_x=True,
        zero_first=True,
        note=f"Above a line training ends less than {FAILED:g} nats above float32, below it more. Bars: 95 % intervals over"
        " seeds. What the counts of bits do not bracket is left out.",
    ),
    HeatPanel(
        slug="grid",
        title="What few bits cost",
        x_label="explicit mantissa bits",
        y_label="decay",
        value_label="final loss minus that in float32 with the same lam (nats per token)",
        cells=functools.partial(_cells, grid="large", lams=LAMS),
        note="Means over seeds, at the large rate.",
    ),
    PointsPanel(
        slug="places",
        title="What each place of rounding costs",
        x_label="what is rounded",
        y_label="final loss at few bits minus float32 without decay (nats)",
        rows=by_name(_costs()),
        named=True,
        note="Means over seeds with 95 % intervals. Scores and mixing are rounded in the forward pass alone, gradients in the"
        " backward pass alone, the others in both.",
    ),
    Panel(
        metric="score/largest",
        title="The largest attention score at few bits",
        y_label="largest |score| of a batch (nats)",
        log=True,
        x="step",
        arms=("few-float32-none", "few-all-none", "few-all-usual", "few-scores-none", "few-rest-none"),
        slug="score",
    ),
    Panel(
        metric="score/entropy",
        title="Attention entropy at few bits",
        y_label="smallest mean entropy of a head (nats)",
        x="step",
        arms=("few-float32-none", "few-all-none", "few-all-usual", "few-scores-none", "few-rest-none"),
        slug="entropy",
    ),
)


def _small(width: int, num_steps: int, **changes: Any) -> Setting:
    warm = changes.pop("warm", 100)
    fields = {**GPT, "width": width, **changes}
    return Setting(fields=fields, large=2e-2, small=1e-2, lams=(0.0, 0.03, 0.1, 0.2), num_steps=num_steps, warm=warm)


PAPER_SETTING = Setting(
    fields=PAPER_GPT,
    large=1e-3,
    small=6e-4,
    lams=(0.0, 0.03, 0.1, 0.3),
    bits=((7, 6, 5, 4), (7, 6, 5, 4), (8, 7, 6, 5)),
    few=5,
    num_steps=50_000,
    warm=2_000,
)

PRECISION_THRESHOLD = Study(
    name="precision-threshold",
    title="The number of bits at which training breaks",
    source=f"an open question of {PAPER_TITLE}, section 3; the claims are ours",
    claim="Training breaks below a number of mantissa bits that weight decay lowers; it breaks at the rounding of attention"
    " scores, which grow with the weights.",
    claims=CLAIMS,
    panels=PANELS,
    size_name="width",
    doc_panels=("boundary", "places"),
    presets=presets(
        smoke=Preset(
            description="width 8, 12 steps",
            budget="30 seconds",
            arms=_small(8, 12, warm=4, batch_size=4, num_eval_tokens=512, num_train_tokens=20_000, log_every=3).arms(),
        ),
        laptop=Preset(
            description="byte GPT of width 32 and two layers, 1,800 steps of 512 tokens, 1 to 4 mantissa bits; few bits: 2",
            budget="10 minutes on 2 cores",
            arms=_small(32, 1_800).arms(),
            num_seeds=3,
        ),
        night=Preset(
            description="as laptop, 4,000 steps, more seeds, and a ladder of widths 16, 32, 64",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, 4_000).arms()),
            num_seeds=5,
            num_ladder_seeds=3,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters, context 1,024, 50,000 steps, 4 to 8 mantissa bits; few bits: 5",
            budget="90 runs of a day on one GPU",
            arms=PAPER_SETTING.arms(),
            num_seeds=3,
            needs=PAPER_NEEDS,
        ),
    ),
)
