"""Weights that are stored in few bits: what rounding takes from updates and from decay, and what brings it back.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), section 3, speaks of "weight precision"; its code keeps weights in float32 under autocast, which is another
setting (the study bf16-divergence). Weights that are bfloat16 between steps are common all the same; the claims are ours. The
threshold 2^-(k + 2) is that of `halflife.precision.smallest_effective_fraction`; the ratio of update and weight at AdamW's
equilibrium is in Kosson et al., "Rotational Equilibrium" (2023, arXiv 2305.17212).

An update is lost if the weight does not change; the formula for the share is that of `halflife.divergence.expected_lost_share`.

The setting was looked for on seeds of 500 and above; the rules were written before any run of the presets' seeds. Arithmetic is
float32; only what is kept between steps has few bits. Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halflife.divergence import expected_lost_share
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.quantities import in_nats, loss
from halflife.studies.catalog.precision.common import GPT, PAPER_GPT, rounded_arm
from halflife.studies.evidence.claims import Arm, Claim, Panel, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.optimum import lam_of, lam_places, text_spec
from halflife.studies.evidence.quantities import Measure, Numbers, Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, by_name
from halflife.studies.evidence.tests import above, below, exceeds, exceeds_factor, within, within_factor

__all__ = ["LOST_UPDATES"]

BITS = 7  # explicit mantissa bits of bfloat16
FEWER, MORE = 4, 10
LAMS = ("none", "weak", "usual", "strong")

SAME = 0.01  # nats
EXACT = 1e-9  # nats: runs that are equal to the bit
FORMULA = 1.25  # a factor: the formula knows two numbers of a net whose tensors differ
NORMS = 1.05  # a factor

HOW = {
    "nearest": "rounded to nearest with the update",
    "separate": "rounded to nearest by itself",
    "stochastic": "stochastic rounding",
    "accumulated": "accumulated until it counts",
    "masters": "float32 masters",
}
"""What happens to the decay, by how weights are stored."""


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with its rate and lams.

    Args:
        fields: Of the `TextRun`.
        lr: The learning rate.
        lams: Of `LAMS`; ``lr * lam`` is below 2^-(k + 2).
        num_steps: Of every run.
        warm: Steps of the warm-up.
    """

    fields: Mapping[str, Any]
    lr: float
    lams: tuple[float, float, float, float]
    num_steps: int
    warm: int = 100

    def arms(self) -> tuple[Arm, ...]:
        """All arms."""
        arms = [self._arm("float32", 23, lam) for lam in ("none", "usual")]
        arms += [self._arm("nearest", BITS, lam) for lam in LAMS]
        for how in ("separate", "stochastic", "accumulated", "masters"):
            arms += [self._arm(how, BITS, lam) for lam in ("none", "usual")]
        arms += [self._arm("nearest", bits, "none") for bits in (FEWER, MORE)]
        return tuple(arms)

    def _arm(self, how: str, bits: int, lam: str) -> Arm:
        value = self.lams[LAMS.index(lam)]
        changes: dict[str, Any] = {} if how == "float32" else {"stored": how, "stored_bits": bits}
        arm = rounded_arm(
            key_of(how, bits, lam),
            self.fields,
            lam=value,
            lr=self.lr,
            num_steps=self.num_steps,
            warm=self.warm,
            **changes,
        )
        words = how if how == "float32" else f"{bits} bits, {how}"
        return Arm(key=arm.key, label=f"{words}, lam {value:g}", size=arm.size, spec=arm.spec)


def key_of(how: str, bits: int, lam: str) -> str:
    """The key of an arm."""
    return f"float32-{lam}" if how == "float32" else f"{how}-{bits}-{lam}"


def cost(how: str, lam: str, bits: int = BITS) -> Measure:
    """The final loss of weights that are stored so minus that of float32 weights, (S, N)."""
    return loss(key_of(how, bits, lam)) - loss(key_of("float32", 23, lam))


def norm_ratio(how: str) -> Measure:
    """The final norm of weights that decay as usual and are stored so, over that of float32 weights."""
    return Reading(key_of(how, BITS, "usual"), "weight_norm") / Reading(key_of("float32", 23, "usual"), "weight_norm")


@dataclass(frozen=True)
class Predicted(Measure):
    """The share of lost updates by the formula, from the ratio of update and weight that the last step had, (S,)."""

    arm: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        bits = text_spec(results, self.arm, size).stored_bits
        return np.array([expected_lost_share(ratio, bits) for ratio in results.read(self.arm, "update_ratio", size)])


@dataclass(frozen=True)
class Early(Measure):
    """The share of lost updates at the first reading after the warm-up, (S,)."""

    arm: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        spec = text_spec(results, self.arm, size)
        found = []
        for steps, values in results.series_by_step(self.arm, "lost/updates", size):
            found.append(values[np.flatnonzero(steps >= spec.num_steps / 10)[0]])
        return np.array(found)


def _lost(how: str, bits: int, lam: str) -> Reading:
    return Reading(key_of(how, bits, lam), "lost/updates")


NO_DECAY = key_of("nearest", BITS, "none")
STORED_COSTS = in_nats(
    f"final loss with weights stored in {BITS} bits, rounded to nearest - in float32, without decay",
    cost("nearest", "none"),
)
DECAY_ACTS = in_nats(
    "final loss with usual decay - without, weights in float32",
    loss("float32-usual") - loss("float32-none"),
)


def _ratio(name: str, values: Measure) -> Quantity:
    return Quantity(name=name, values=values, unit="x", log=True)


def _recovers(how: str, words: str) -> Claim:
    return Claim(
        key=how,
        text=f"{words} the loss of float32 weights, where rounding to nearest does not.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        f"final loss with weights stored in {BITS} bits, {HOW[how]} - in float32, without decay",
                        cost(how, "none"),
                    ),
                    within(SAME),
                ),
            ),
            stake=((STORED_COSTS, exceeds(SAME)),),
        ),
    )


CLAIMS = (
    Claim(
        key="no-decay",
        text="A decay of lr * lam below 2^-(k + 2) that is rounded by itself changes nothing: the run ends as without decay, to"
        " the bit.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        f"final loss with usual decay - without, {BITS} bits, decay rounded by itself",
                        loss(key_of("separate", BITS, "usual")) - loss(key_of("separate", BITS, "none")),
                    ),
                    within(EXACT),
                ),
                (
                    Quantity(
                        name=f"final weight norm with usual decay - without, {BITS} bits, decay rounded by itself",
                        values=Reading(key_of("separate", BITS, "usual"), "weight_norm")
                        - Reading(key_of("separate", BITS, "none"), "weight_norm"),
                    ),
                    within(EXACT),
                ),
            ),
            stake=((DECAY_ACTS, exceeds(SAME)),),
        ),
    ),
    Claim(
        key="formula",
        text="Rounding to bfloat16 loses the share of updates that it would of normal weights and updates of the same sizes.",
        rule=Rule(
            parts=(
                (
                    _ratio(
                        f"lost share of the last step's updates over the formula's, {BITS} bits, without decay",
                        _lost("nearest", BITS, "none") / Predicted(NO_DECAY),
                    ),
                    within_factor(FORMULA),
                ),
            )
        ),
    ),
    Claim(
        key="formula-bits",
        text="The same formula holds at four mantissa bits, where most updates are lost.",
        rule=Rule(
            parts=(
                (
                    _ratio(
                        f"lost share of the last step's updates over the formula's, {FEWER} bits, without decay",
                        _lost("nearest", FEWER, "none") / Predicted(key_of("nearest", FEWER, "none")),
                    ),
                    within_factor(FORMULA),
                ),
            )
        ),
    ),
    Claim(
        key="grows",
        text="Without decay more and more updates are lost as the weights grow.",
        rule=Rule(
            parts=(
                (
                    _ratio(
                        f"lost share of updates at the end over that after a tenth of the run, {BITS} bits, without decay",
                        _lost("nearest", BITS, "none") / Early(NO_DECAY),
                    ),
                    above(1),
                ),
            )
        ),
    ),
    Claim(
        key="decay-saves-updates",
        text="With decay that arrives fewer updates are lost, because the weights are smaller.",
        rule=Rule(
            parts=(
                (
                    _ratio(
                        f"lost share of updates at the end with strong decay over without, {BITS} bits, rounded together",
                        _lost("nearest", BITS, "strong") / _lost("nearest", BITS, "none"),
                    ),
                    below(1),
                ),
            )
        ),
    ),
    Claim(
        key="costs",
        text="Weights stored in bfloat16, rounded to nearest, end with a higher loss than float32 weights.",
        rule=Rule(parts=((STORED_COSTS, above(0)),)),
    ),
    Claim(
        key="decay-protects",
        text="With decay it costs less to store weights in bfloat16.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        f"final loss with {BITS} bits, rounded together, - in float32, with usual decay - the same without",
                        cost("nearest", "usual") - cost("nearest", "none"),
                    ),
                    below(0),
                ),
            ),
            given=((STORED_COSTS, above(0)),),
        ),
    ),
    _recovers("stochastic", "Stochastic rounding of bfloat16 weights gives"),
    _recovers("masters", "Float32 masters of bfloat16 weights give"),
    Claim(
        key="accumulated",
        text="Decay that is accumulated until it counts gives bfloat16 weights the norm of float32 weights with decay.",
        rule=Rule(
            parts=(
                (
                    _ratio(
                        "final weight norm with accumulated decay over float32's with the same lam",
                        norm_ratio("accumulated"),
                    ),
                    within_factor(NORMS),
                ),
            ),
            stake=(
                (
                    _ratio(
                        "final weight norm with decay rounded by itself over float32's with the same lam",
                        norm_ratio("separate"),
                    ),
                    exceeds_factor(NORMS),
                ),
            ),
        ),
    ),
)


def _over_lam(results: Results, size: int) -> dict[str, list[tuple[float, Measure]]]:
    """Lost updates against lam, measured and by the formula."""
    keys = [key_of("nearest", BITS, lam) for lam in LAMS]
    places = lam_places([lam_of(text_spec(results, key, size)) for key in keys])
    return {
        "measured": [(x, Reading(key, "lost/updates")) for x, key in zip(places, keys, strict=True)],
        "formula": [(x, Predicted(key)) for x, key in zip(places, keys, strict=True)],
    }


def _over_bits(results: Results, size: int) -> dict[str, list[tuple[float, Measure]]]:
    keys = {bits: key_of("nearest", bits, "none") for bits in (FEWER, BITS, MORE)}
    return {
        "measured": [(float(bits), Reading(key, "lost/updates")) for bits, key in keys.items()],
        "formula": [(float(bits), Predicted(key)) for bits, key in keys.items()],
    }


def _norms() -> dict[str, Measure]:
    """The end norm with usual decay, by how weights are stored."""
    hows = ("separate", "nearest", "stochastic", "accumulated", "masters")
    return {HOW[how]: norm_ratio(how) for how in hows}


PANELS = (
    Panel(
        metric="lost/updates",
        title="Updates that rounding loses",
        y_label="share of the updates",
        x="step",
        arms=tuple(key_of("nearest", BITS, lam) for lam in LAMS),
        slug="lost",
        note="Weights stored in 7 mantissa bits, decay and update rounded together.",
    ),
    PointsPanel(
        slug="lost-lam",
        title="Lost updates at the end against lam",
        x_label="lam",
        y_label="share of the updates",
        rows=against(_over_lam, bars="seeds", apart=1),
        log_x=True,
        zero_first=True,
        note="7 mantissa bits. Bars: 95 % intervals over seeds.",
    ),
    PointsPanel(
        slug="lost-bits",
        title="Lost updates at the end against the bits",
        x_label="explicit mantissa bits",
        y_label="share of the updates",
        rows=against(_over_bits, bars="seeds"),
        note="Without decay. Bars: 95 % intervals over seeds.",
    ),
    PointsPanel(
        slug="norms",
        title="Norm of the weights with usual decay",
        x_label="what happens to the decay",
        y_label="norm over that of float32 weights",
        rows=by_name(_norms()),
        named=True,
        note="Means over seeds with 95 % intervals. 1: weights in float32 with the same decay. Where updates are lost and the"
        " decay is not, weights end smaller.",
    ),
    Panel(
        metric="weight_norm",
        title="Norm of all weights with usual decay",
        y_label="norm of all weights",
        x="step",
        arms=("float32-none", "float32-usual", *(key_of(how, BITS, "usual") for how in HOW)),
        slug="norm",
    ),
)


def _small(width: int, num_steps: int, **changes: Any) -> Setting:
    warm = changes.pop("warm", 100)
    fields = {**GPT, "width": width, **changes}
    return Setting(fields=fields, lr=3e-3, lams=(0.0, 0.1, 0.333, 0.6), num_steps=num_steps, warm=warm)


LOST_UPDATES = Study(
    name="lost-updates",
    title="Updates and decay that low-precision weights lose",
    source=f"the weight precision that {PAPER_TITLE}, section 3, speaks of; the claims are ours",
    claim="Weights that are stored in bfloat16 lose every usual decay that is rounded by itself, and many updates, the more the"
    " larger they are; stochastic rounding, float32 masters and accumulated decay bring back what is lost.",
    claims=CLAIMS,
    panels=PANELS,
    size_name="width",
    doc_panels=("lost-lam", "norms"),
    presets=presets(
        smoke=Preset(
            description="width 8, 12 steps",
            budget="20 seconds",
            arms=_small(8, 12, warm=4, batch_size=4, num_eval_tokens=512, num_train_tokens=20_000, log_every=3).arms(),
        ),
        laptop=Preset(
            description="byte GPT of width 32 and two layers, 2,000 steps of 512 tokens, weights in 4, 7 and 10 mantissa bits",
            budget="8 minutes on 2 cores",
            arms=_small(32, 2_000).arms(),
        ),
        night=Preset(
            description="as laptop, 6,000 steps, and a ladder of widths 16, 32, 64",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, 6_000).arms()),
            num_seeds=6,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters, context 1,024, 50,000 steps",
            budget="48 runs of a day on one GPU",
            arms=Setting(
                fields=PAPER_GPT,
                lr=6e-4,
                lams=(0.0, 0.03, 0.1, 0.3),
                num_steps=50_000,
                warm=2_000,
            ).arms(),
            num_seeds=3,
            needs=PAPER_NEEDS,
        ),
    ),
)
