"""The studies of low precision: each rule on made-up runs whose answer is known, the arms, the formula of lost updates."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from halflife.divergence import expected_lost_share
from halflife.precision import round_to
from halflife.studies.catalog.precision.divergence import BF16_DIVERGENCE
from halflife.studies.catalog.precision.lost_updates import LOST_UPDATES
from halflife.studies.catalog.precision.threshold import MATRICES, PLACES, PRECISION_THRESHOLD
from halflife.studies.evidence.claims import HeatPanel, PointsPanel, Study
from halflife.studies.evidence.optimum import lam_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Finding
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.precision import AUTOCAST_PLACES
from halflife.studies.specs.text import TextRun
from tests.studies.catalog.made_up_losses import NUM_SEEDS, MadeUpLosses

Numbers = NDArray[np.float64]
STUDIES = (BF16_DIVERGENCE, PRECISION_THRESHOLD, LOST_UPDATES)
Reading = Callable[[str, TextRun, str, int], float]


class MadeUp(MadeUpLosses):
    """Losses, and any other reading, of made-up runs: at steps 100, 200, ... a number of arm, spec, name and step."""

    def __init__(self, study: Study, loss: Callable[[str, RunSpec], float], reading: Reading, jitter: float) -> None:
        super().__init__(study.presets["laptop"].arms, loss, jitter)
        self.reading = reading

    def read(self, key: str, name: str, size: int, *, epoch: float | None = None, step: int | None = None) -> Numbers:
        if name.startswith("val/"):
            return super().read(key, name, size, epoch=epoch, step=step)
        return np.array([values[-1] for _, values in self.series_by_step(key, name, size)])

    def series_by_step(self, key: str, name: str, size: int) -> list[tuple[Numbers, Numbers]]:
        spec = cast("TextRun", self.spec(key, size))
        steps = np.arange(100, spec.num_steps + 1, 100)
        draws = np.random.default_rng(7)
        return [
            (
                steps.astype(np.float64),
                np.array([self.reading(key, spec, name, int(step)) for step in steps])
                * (1 + self.jitter * draws.normal()),
            )
            for _ in range(NUM_SEEDS)
        ]


def decide(study: Study, key: str, results: MadeUp) -> Finding:
    return next(claim for claim in study.claims if claim.key == key).decide(cast("Results", results), 32)


# ---- bf16-divergence


@dataclasses.dataclass(frozen=True)
class Divergence:
    """What precision and decay change at the large rate; a smaller rate changes a tenth of it.

    Args:
        bfloat16: What bfloat16 costs without decay.
        few: What few bits cost without decay.
        bfloat16_decay: What bfloat16 costs with decay.
        few_decay: What few bits cost with decay.
        decay: What decay changes in float32.
        rise: Of the loss in float32 without decay after its lowest value.
        small: What few bits cost at the small rate without decay.
    """

    bfloat16: float = 0.3
    few: float = 0.4
    bfloat16_decay: float = 0.002
    few_decay: float = 0.06
    decay: float = 0.1
    rise: float = 0.0
    small: float = 0.01

    def loss(self, key: str, spec: RunSpec) -> float:
        precision, lam, rate = key.rsplit("-", 2)
        part = {"large": 1.0, "middle": 0.1, "small": 0.0}[rate]
        cost = {
            "float32none": 0.0,
            "float32decay": 0.0,
            "bfloat16none": self.bfloat16,
            "bfloat16decay": self.bfloat16_decay,
            "few-bitsnone": self.few,
            "few-bitsdecay": self.few_decay,
        }[precision + lam]
        cost = self.small if (precision, lam, rate) == ("few-bits", "none", "small") else cost * part
        # The middle rate is the best one in itself.
        return 2.0 + {"large": 0.05, "middle": 0.0, "small": 0.1}[rate] + cost + self.decay * (lam == "decay")

    def reading(self, key: str, spec: TextRun, name: str, step: int) -> float:
        assert name == "val/loss"
        return 2.0 + 1.0 / step + self.rise * max(0.0, step / spec.num_steps - 0.5)

    def made(self, jitter: float = 1e-4) -> MadeUp:
        return MadeUp(BF16_DIVERGENCE, self.loss, self.reading, jitter)


DIVERGENCE: list[tuple[str, Divergence, float, str]] = [
    ("float32-stable", Divergence(), 1e-4, "reproduced"),
    ("float32-stable", Divergence(rise=0.5), 1e-4, "not reproduced"),
    ("bfloat16-fails", Divergence(), 1e-4, "reproduced"),
    ("bfloat16-fails", Divergence(bfloat16=0.003), 1e-4, "not reproduced"),
    ("bfloat16-fails", Divergence(bfloat16=0.1), 1e-2, "undecided"),
    ("bfloat16-decay", Divergence(), 1e-4, "reproduced"),
    ("bfloat16-decay", Divergence(bfloat16_decay=0.1), 1e-4, "not reproduced"),
    ("bfloat16-decay", Divergence(bfloat16=0.003), 1e-4, "not tested"),  # nothing that decay could prevent
    ("few-bits-fail", Divergence(), 1e-4, "reproduced"),
    ("few-bits-fail", Divergence(few=0.02), 1e-4, "not reproduced"),
    ("few-bits-decay", Divergence(), 1e-4, "reproduced"),
    ("few-bits-decay", Divergence(few_decay=0.3), 1e-4, "not reproduced"),
    ("few-bits-decay", Divergence(few=0.05), 1e-4, "not tested"),
    ("few-bits-better", Divergence(), 1e-4, "reproduced"),
    ("few-bits-better", Divergence(decay=0.5), 1e-4, "not reproduced"),
    ("float32-better", Divergence(), 1e-4, "reproduced"),
    ("float32-better", Divergence(decay=-0.1), 1e-4, "not reproduced"),
    ("small-rate", Divergence(), 1e-4, "reproduced"),
    ("small-rate", Divergence(small=0.3), 1e-4, "not reproduced"),
    ("small-rate", Divergence(few=0.05), 1e-4, "not tested"),
    ("tuned", Divergence(), 1e-4, "not reproduced"),  # the middle rate costs a tenth, and decay costs 0.1
    ("tuned", Divergence(decay=-0.1), 1e-4, "reproduced"),
]


@pytest.mark.parametrize(("key", "world", "jitter", "outcome"), DIVERGENCE)
def test_divergence_is_decided_as_its_rules_say(key: str, world: Divergence, jitter: float, outcome: str) -> None:
    finding = decide(BF16_DIVERGENCE, key, world.made(jitter))
    assert finding.outcome == outcome, finding.reason


# ---- precision-threshold


@dataclasses.dataclass(frozen=True)
class Threshold:
    """A world in which a run at k bits costs 0.1 * 4^(needed - k) nats.

    Args:
        needed: Bits at which the cost is 0.1, for each lam.
        small: The same at the small rate.
        init: The same from large initial weights.
        shares: Of the cost of rounding everywhere, by place.
        gains: Of what decay gains, by the matrices that decay.
        warned: The step from which half an ulp of the largest score is above 8 nats, in runs that cost more than 0.05.
        failed: The step from which the loss of a run without decay at few bits is 1 nat higher.
        alarms: Whether half an ulp is above 8 nats in healthy runs.
    """

    needed: tuple[float, float, float, float] = (2.6, 2.2, 1.7, 1.2)
    small: float = 1.4
    init: float = 3.2
    shares: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"scores": 0.9, "mixing": 0.1, "rest": 0.3, "residual": 0.05, "gradients": 0.01}
    )
    gains: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"qkv": 0.7, "all-but-qkv": 0.4})
    warned: int = 900
    failed: int = 1300
    alarms: bool = False

    def cost(self, key: str) -> float:
        grid, _, rest = key.partition("-")
        if grid == "few":
            what, lam = rest.rsplit("-", 1)
            whole, decayed = self._of(self.needed[0], 2), self._of(self.needed[2], 2)
            if what == "float32":
                return 0.0
            if what == "all":
                return whole if lam == "none" else decayed
            if what in self.gains:
                return whole - self.gains[what] * (whole - decayed)
            return self.shares[what] * whole
        bits, lam = rest.split("-")
        needed = dict(zip(("none", "weak", "usual", "strong"), self.needed, strict=True))[lam]
        needed = {"small": self.small, "init": self.init}.get(grid, needed)
        return 0.0 if bits == "23" else self._of(needed, int(bits))

    @staticmethod
    def _of(needed: float, bits: int) -> float:
        return 0.1 * math.exp(math.log(4) * (needed - bits))

    def loss(self, key: str, spec: RunSpec) -> float:
        return 2.0 + self.cost(key)

    def reading(self, key: str, spec: TextRun, name: str, step: int) -> float:
        if name == "score/half_ulp":
            return 20.0 if (self.cost(key) > 0.05 or self.alarms) and step >= self.warned else 1.0
        return 2.0 + 1.0 / step + (key == "few-all-none" and step >= self.failed)

    def made(self, jitter: float = 1e-4) -> MadeUp:
        return MadeUp(PRECISION_THRESHOLD, self.loss, self.reading, jitter)


def shares(**changed: float) -> Threshold:
    return Threshold(shares={**Threshold().shares, **changed})


THRESHOLD: list[tuple[str, Threshold, str]] = [
    ("fewer-bits", Threshold(), "reproduced"),
    ("fewer-bits", Threshold(needed=(1.7, 2.0, 2.6, 2.6)), "not reproduced"),
    ("fewer-bits", Threshold(needed=(0.2, 0.2, 0.2, 0.2)), "not tested"),  # nothing fails
    ("one-bit", Threshold(), "reproduced"),
    ("one-bit", Threshold(needed=(2.95, 2.2, 1.05, 1.02)), "not reproduced"),
    ("more-decay", Threshold(), "reproduced"),
    ("more-decay", Threshold(needed=(2.6, 1.2, 1.7, 2.2)), "not reproduced"),
    ("rate", Threshold(), "reproduced"),
    ("rate", Threshold(small=2.95), "not reproduced"),
    ("initial-norm", Threshold(), "reproduced"),
    ("initial-norm", Threshold(init=2.2), "not reproduced"),
    ("scores", Threshold(), "reproduced"),
    ("scores", shares(scores=0.2), "not reproduced"),
    ("scores", Threshold(needed=(1.5, 1.4, 1.3, 1.2)), "not tested"),
    ("mixing", Threshold(), "reproduced"),
    ("mixing", shares(mixing=0.8), "not reproduced"),
    ("rest", Threshold(), "reproduced"),
    ("rest", shares(rest=0.8), "not reproduced"),
    ("residual", Threshold(), "reproduced"),
    ("residual", shares(residual=0.8), "not reproduced"),
    ("gradients", Threshold(), "reproduced"),
    ("gradients", shares(gradients=0.9), "not reproduced"),
    ("gradients", Threshold(needed=(1.5, 1.4, 1.3, 1.2)), "not tested"),
    ("qkv", Threshold(), "reproduced"),
    ("qkv", Threshold(gains={"qkv": 0.3, "all-but-qkv": 0.4}), "not reproduced"),
    ("others", Threshold(), "not reproduced"),
    ("others", Threshold(gains={"qkv": 0.3, "all-but-qkv": 0.9}), "reproduced"),
    ("others", Threshold(needed=(2.2, 2.3, 2.4, 2.5)), "not tested"),  # decay gains nothing
    ("warning", Threshold(), "reproduced"),
    ("warning", Threshold(warned=1600), "not reproduced"),
    ("warning", Threshold(warned=99_999), "not reproduced"),  # never
    ("warning", Threshold(failed=99_999), "not tested"),
    ("false-alarms", Threshold(), "reproduced"),
    ("false-alarms", Threshold(alarms=True), "not reproduced"),
]


@pytest.mark.parametrize(("key", "world", "outcome"), THRESHOLD)
def test_a_threshold_is_decided_as_its_rules_say(key: str, world: Threshold, outcome: str) -> None:
    finding = decide(PRECISION_THRESHOLD, key, world.made())
    assert finding.outcome == outcome, finding.reason


def test_bits_that_are_needed_lie_where_the_cost_crosses_its_bound() -> None:
    """On a line between 3 and 2 bits, where the cost is 0.1 * 4^-0.4 and 0.1 * 4^0.6."""
    finding = decide(PRECISION_THRESHOLD, "fewer-bits", Threshold(needed=(2.6, 2.2, 1.6, 1.2)).made(1e-6))
    assert finding.effect is not None
    assert finding.effect.estimate == pytest.approx(1.0, abs=1e-3)


def test_steps_of_a_warning() -> None:
    finding = decide(PRECISION_THRESHOLD, "warning", Threshold().made(0.0))
    assert finding.effect is not None
    assert finding.effect.estimate == 400.0


# ---- lost-updates


@dataclasses.dataclass(frozen=True)
class Lost:
    """What storing weights in few bits costs, and what is lost.

    Args:
        cost: By how weights are stored, without decay.
        with_decay: What the cost is multiplied by with decay.
        decay: What decay that arrives changes.
        factor: Lost updates over what the formula says.
        early: Lost updates after a tenth of the run over those at the end.
        strong: Lost updates with strong decay over those without.
        norms: The norm with usual decay over float32's, by how weights are stored.
    """

    cost: Mapping[str, float] = dataclasses.field(
        default_factory=lambda: {"nearest": 0.04, "separate": 0.04, "stochastic": 0.002, "masters": 0.001}
    )
    with_decay: float = 1.5
    decay: float = 0.1
    factor: float = 1.0
    early: float = 0.3
    strong: float = 0.5
    separate: float = 0.0
    norms: Mapping[str, float] = dataclasses.field(default_factory=lambda: {"separate": 2.0, "accumulated": 1.01})

    def loss(self, key: str, spec: RunSpec) -> float:
        how, lam = key.split("-", maxsplit=1)[0], key.rsplit("-", maxsplit=1)[-1]
        if how == "separate":
            return 2.0 + self.cost[how] + self.separate * (lam != "none")
        cost = 0.0 if how == "float32" else self.cost.get(how, 0.0) * (self.with_decay if lam != "none" else 1.0)
        return 2.0 + cost + self.decay * (lam != "none")

    def reading(self, key: str, spec: TextRun, name: str, step: int) -> float:
        how, lam = key.split("-", maxsplit=1)[0], key.rsplit("-", maxsplit=1)[-1]
        if name == "update_ratio":
            return 0.005
        if name == "weight_norm":
            if how == "separate":
                return 2.0 * self.norms[how] / 2.0 * 10 if lam != "none" else 20.0
            return 10.0 * self.norms.get(how, 1.0) if lam != "none" else 20.0
        share = self.factor * expected_lost_share(0.005, spec.stored_bits)
        share *= {"none": 1.0, "strong": self.strong}.get(lam, 0.8)
        return share * (self.early + (1 - self.early) * step / spec.num_steps)

    def made(self, jitter: float = 0.0) -> MadeUp:
        return MadeUp(LOST_UPDATES, self.loss, self.reading, jitter)


LOST: list[tuple[str, Lost, float, str]] = [
    ("no-decay", Lost(), 0.0, "reproduced"),
    ("no-decay", Lost(separate=0.1), 0.0, "not reproduced"),
    ("no-decay", Lost(decay=0.001), 0.0, "not tested"),
    ("formula", Lost(), 1e-3, "reproduced"),
    ("formula", Lost(factor=1.6), 1e-3, "not reproduced"),
    ("formula-bits", Lost(), 1e-3, "reproduced"),
    ("formula-bits", Lost(factor=0.5), 1e-3, "not reproduced"),
    ("grows", Lost(), 1e-3, "reproduced"),
    ("grows", Lost(early=2.0), 1e-3, "not reproduced"),
    ("decay-saves-updates", Lost(), 1e-3, "reproduced"),
    ("decay-saves-updates", Lost(strong=1.5), 1e-3, "not reproduced"),
    ("costs", Lost(), 1e-4, "reproduced"),
    ("costs", Lost(cost={"nearest": -0.04, "separate": 0.0}), 1e-4, "not reproduced"),
    ("decay-protects", Lost(), 1e-4, "not reproduced"),
    ("decay-protects", Lost(with_decay=0.5), 1e-4, "reproduced"),
    ("decay-protects", Lost(cost={"nearest": -0.04, "separate": 0.0}), 1e-4, "not tested"),
    ("stochastic", Lost(), 1e-4, "reproduced"),
    ("stochastic", Lost(cost={**Lost().cost, "stochastic": 0.04}), 1e-4, "not reproduced"),
    ("stochastic", Lost(cost={**Lost().cost, "nearest": 0.001}), 1e-4, "not tested"),
    ("masters", Lost(), 1e-4, "reproduced"),
    ("masters", Lost(cost={**Lost().cost, "masters": 0.04}), 1e-4, "not reproduced"),
    ("accumulated", Lost(), 1e-3, "reproduced"),
    ("accumulated", Lost(norms={"separate": 2.0, "accumulated": 1.5}), 1e-3, "not reproduced"),
    ("accumulated", Lost(norms={"separate": 1.0, "accumulated": 1.0}), 1e-3, "not tested"),
]


@pytest.mark.parametrize(("key", "world", "jitter", "outcome"), LOST)
def test_lost_updates_are_decided_as_their_rules_say(key: str, world: Lost, jitter: float, outcome: str) -> None:
    if key == "no-decay":  # where the norms are equal as well
        same = {"separate": 2.0, "accumulated": 1.01} if world.separate == 0.0 else {"separate": 1.5}
        world = dataclasses.replace(world, norms=same)
    finding = decide(LOST_UPDATES, key, world.made(jitter))
    assert finding.outcome == outcome, finding.reason


@pytest.mark.parametrize("bits", [4, 7, 10])
@pytest.mark.parametrize("ratio", [1e-3, 1e-2, 0.1])
def test_the_formula_is_what_a_million_weights_lose(bits: int, ratio: float) -> None:
    draws = torch.Generator().manual_seed(bits)
    count = 1_000_000
    w = round_to(torch.randn(count, generator=draws), bits)
    moved = round_to(w + ratio * torch.randn(count, generator=draws), bits)
    lost = (moved == w).float().mean().item()
    predicted = expected_lost_share(ratio, bits)
    # At a power of two the neighbour below is half as far, which the formula leaves out: below 1 / 2^bits of the weights.
    assert abs(lost - predicted) < 4 * math.sqrt(predicted * (1 - predicted) / count) + 2.0 ** -(bits + 1) + 1e-6


# ---- arms, presets, figures


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
@pytest.mark.parametrize("name", ["smoke", "laptop", "night", "paper"])
def test_presets_have_the_arms_that_claims_ask_for(study: Study, name: str) -> None:
    preset = study.presets[name]
    keys = {size: {arm.key for arm in preset.arms if arm.size == size} for size in {arm.size for arm in preset.arms}}
    named = {text for claim in study.claims for text in _strings(claim.rule) if text in _all_keys(study)}
    assert named
    for size, found in keys.items():
        assert named <= found, (size, named - found)
        assert len(found) == sum(arm.size == size for arm in preset.arms)
    assert preset.num_seeds >= (2 if name == "smoke" else 3)
    assert all(cast("TextRun", arm.spec).watch_precision for arm in preset.arms)


def _all_keys(study: Study) -> set[str]:
    return {arm.key for preset in study.presets.values() for arm in preset.arms}


def _strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = [getattr(value, field.name) for field in dataclasses.fields(value)]
    if isinstance(value, Mapping):
        value = list(value.values())
    return [text for one in value for text in _strings(one)] if isinstance(value, (list, tuple)) else []


def test_places_and_matrices_are_what_their_names_say() -> None:
    specs = {arm.key: cast("TextRun", arm.spec) for arm in PRECISION_THRESHOLD.presets["laptop"].arms}
    whole = specs["few-all-none"]
    assert (whole.bits, whole.rounded, whole.rounded_gradients) == (2, AUTOCAST_PLACES, AUTOCAST_PLACES)
    assert specs["few-float32-none"] == specs["large-23-none"]
    assert whole == specs["large-2-none"]
    assert specs["few-all-usual"] == specs["large-2-usual"]
    for name, (_, forward, backward) in PLACES.items():
        assert specs[f"few-{name}-none"] == dataclasses.replace(whole, rounded=forward, rounded_gradients=backward)
    for policy in MATRICES:
        assert specs[f"few-{policy}-usual"] == dataclasses.replace(specs["few-all-usual"], decay_on=policy)
    assert lam_of(specs["few-all-usual"]) == 0.1


def test_decay_of_lost_updates_is_below_the_threshold() -> None:
    for preset in LOST_UPDATES.presets.values():
        for arm in preset.arms:
            spec = cast("TextRun", arm.spec)
            assert spec.lr * lam_of(spec) <= 2.0**-9


@pytest.mark.parametrize(
    ("study", "made"),
    [
        (BF16_DIVERGENCE, Divergence().made()),
        (PRECISION_THRESHOLD, Threshold().made()),
        (LOST_UPDATES, Lost().made(1e-3)),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_figures_have_finite_points(study: Study, made: MadeUp) -> None:
    for panel in study.panels:
        if isinstance(panel, PointsPanel):
            rows = panel.rows(cast("Results", made))
            assert rows
            assert all(math.isfinite(row.y) for row in rows)
        elif isinstance(panel, HeatPanel):
            cells = panel.cells(cast("Results", made))
            assert len({(cell.x, cell.y) for cell in cells}) == len(cells) >= 6
