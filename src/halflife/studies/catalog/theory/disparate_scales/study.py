"""What few bits do when numbers of disparate scales are added, in the smallest cases: closed forms beside measurements.

Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024, arXiv 2310.04415), section 3,
figure 8: in bfloat16 a language model without decay diverges. The paper conjectures that large weights make additions of terms
of disparate scales inexact, and shows no such addition. Here they are by themselves: one sum; a neuron whose weights drift
along a direction that its exact output does not see; a common offset of logits, which the softmax does not see. The drift is
put in by hand, a stand-in for what moves large nets there: these cases say what an offset does, and not that nets have one.

The rules were written before any run of the presets' seeds. On seeds 500 to 504 were tried: for the neuron lams from 0.001 to
0.02 and 2 to 23 bits; for the softmax nets of 32 and 64 hidden units, 1,000 and 3,000 steps, one offset or several for each
spacing (a single one moves the loss by chance), 3 and 4 bits, where the logits are as large as the offset, hence 5 and more;
for sums, up to seed 559, how far a mean square of deviations over standard errors is from 1 with five seeds: a factor of 1.5
left it open, hence 2.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

from halflife.studies.catalog.theory.disparate_scales import figures
from halflife.studies.catalog.theory.disparate_scales import quantities as measures
from halflife.studies.catalog.theory.disparate_scales.quantities import (
    DECAYED,
    FLOAT32,
    LAMS,
    LOST,
    MORE_LOSS,
    ROOM,
    SOFTMAX,
    STILL,
    SUM,
    neuron_key,
    neuron_loss,
)
from halflife.studies.evidence.claims import Arm, Claim, PointsPanel, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Each, Quantity, Reading
from halflife.studies.evidence.rows import against
from halflife.studies.evidence.tests import above, below, within, within_factor
from halflife.studies.specs.scales import ScalesRun

__all__ = ["DISPARATE_SCALES"]

FEW = 4  # bits at which decay should win
SHARE_MARGIN = 0.002  # of shares of lost signs
VARIANCE_FACTOR = 1.01
SAMPLING_FACTOR = 2.0  # of a mean square of deviations over the standard error, which should be 1
SLOPE_MARGIN = {SUM: 0.02, SOFTMAX: 0.05}  # of a slope that should be 1
OFFSET_FACTOR = 1.05
BITS_MARGIN = 0.5
LOSS_MARGIN = 0.01  # nats
FORM_FACTOR = 1.15
EXACT = 1e-9  # nats


def _doubles(key: str, text: str, arm: str, what: str) -> Claim:
    """The offset that is tolerated doubles with every bit."""
    slope = Quantity(name=f"slope of log2 of {what} against bits", values=functools.partial(measures.per_bit, arm=arm))
    return Claim(key=key, text=text, rule=Rule(parts=((slope, within(SLOPE_MARGIN[arm], around=1.0)),)))


SUM_CLAIMS = (
    Claim(
        key="sum-sign",
        text="Check: when d ~ N(0, 1) is added to a large offset in k bits and the offset is taken off again, the sign of d is"
        " lost with probability erf(ulp / (2 sqrt 2)), where ulp is the spacing of numbers of k bits at the offset.",
        rule=Rule(
            parts=(
                (Each(name="share of lost signs minus the formula, for each number of bits and offset",
                      quantities=measures.share_errors), within(SHARE_MARGIN)),
                (Quantity(name="mean square of (share - formula) over its binomial standard error",
                          values=functools.partial(measures.sampling, of="lost"), log=True),
                 within_factor(SAMPLING_FACTOR)),
            ),
            stake=(
                (Quantity(name="share of lost signs with 7 bits where ulp is 1/2, minus the formula for 8 bits",
                          values=functools.partial(measures.share_error, k=7, e=-1, more_bits=1)),
                 above(10 * SHARE_MARGIN)),
            ),
        ),
    ),
    Claim(
        key="sum-variance",
        text="Check: the error of a sum of N(0, 1) and a large offset has the variance ulp^2/12 as long as ulp, the spacing of"
        " numbers at the offset, is at most 1.",
        rule=Rule(
            parts=(
                (Each(name=f"variance of the error over ulp^2/12, for each number of bits and offset > {ROOM} with ulp <= 1",
                      quantities=measures.variance_ratios, unit="x"), within_factor(VARIANCE_FACTOR)),
                (Quantity(name="mean square of (variance - ulp^2/12) over its standard error",
                          values=functools.partial(measures.sampling, of="error_sq"), log=True),
                 within_factor(SAMPLING_FACTOR)),
            ),
            stake=(
                (Quantity(name="variance of the error over ulp^2/12 with 7 bits where ulp is 4",
                          values=functools.partial(measures.variance_ratio, k=7, e=2), unit="x", log=True), below(0.9)),
            ),
        ),
    ),
    _doubles(
        "sum-bits",
        f"One more bit doubles the offset at which the sign of an added N(0, 1) number is lost in {100 * LOST:g} % of sums.",
        SUM,
        f"the offset at which {100 * LOST:g} % of signs are lost",
    ),
)  # fmt: skip

NEURON = "a neuron whose weights are pushed, by hand, along a direction that its exact output does not depend on"


def _by_decay(k: int) -> Each:
    """The loss with each lam minus that without."""
    found = [
        Quantity(
            name=f"loss with lam {lam:g} minus without decay, {k} bits",
            values=neuron_loss(lam, k) - neuron_loss(0.0, k),
            unit="nats",
        )
        for lam in DECAYED
    ]
    return Each(name=f"loss with decay minus without, {k} bits, for each lam", quantities=found, unit="nats")


NEURON_CLAIMS = (
    Claim(
        key="neuron-offset",
        text=f"Check: in {NEURON}, decay holds the offset along it at drift / lam (1 - (1 - lr lam)^t).",
        rule=Rule(
            parts=(
                (Each(name="offset at the end over the formula, for each lam",
                      quantities=[Quantity(name=f"offset at the end over the formula, lam {lam:g}", unit="x", log=True,
                                           values=functools.partial(measures.over_expected, lam=lam)) for lam in LAMS],
                      unit="x"), within_factor(OFFSET_FACTOR)),
            ),
        ),
    ),
    Claim(
        key="neuron-float32",
        text=f"With sums in 23 bits (float32), {NEURON} has its lowest loss without decay.",
        rule=Rule(parts=((_by_decay(FLOAT32), above(0)),)),
    ),
    Claim(
        key="neuron-few-bits",
        text=f"With sums in {FEW} bits, {NEURON} has a lower loss with decay than without, at each lam from {DECAYED[0]:g} to"
        f" {DECAYED[-1]:g}.",
        rule=Rule(parts=((_by_decay(FEW), below(0)),)),
    ),
    Claim(
        key="neuron-best",
        text=f"The fewer bits sums have, the larger is the lam at which {NEURON} has its lowest loss.",
        rule=Rule(
            parts=tuple(
                (Quantity(name=f"best lam with {few} bits minus best lam with {many} bits",
                          values=functools.partial(measures.best_lam_grows, few=few, many=many)), above(0))
                for few, many in ((5, FLOAT32), (3, 5))
            )
        ),
    ),
    Claim(
        key="neuron-bits",
        text=f"Decay that divides the offset by n lets {NEURON} do with log2 n fewer bits.",
        rule=Rule(
            parts=(
                (Each(name="bits saved by decay minus log2 of the offset without decay over that with, for each lam",
                      quantities=[Quantity(name=f"bits saved by lam {lam:g} minus log2 of the ratio of offsets",
                                           unit="bits", values=functools.partial(measures.bits_beyond, lam=lam))
                                  for lam in DECAYED[:3]],
                      unit="bits"), within(BITS_MARGIN)),
            ),
        ),
    ),
    Claim(
        key="neuron-drift",
        text="It is the offset that few bits cannot carry: a neuron whose weights do not drift along a direction that its exact"
        " output does not depend on has, without decay, in 2 to 4 bits the loss that it has in 23.",
        rule=Rule(
            parts=(
                (Each(name="loss minus that with 23 bits, without drift and decay, for 2, 3 and 4 bits",
                      quantities=[Quantity(name=f"loss with {k} bits minus with 23, without drift and decay", unit="nats",
                                           values=Reading(STILL, f"loss/{k}") - Reading(STILL, f"loss/{FLOAT32}"))
                                  for k in (2, 3, 4)],
                      unit="nats"), within(LOSS_MARGIN)),
            ),
            stake=(
                (Quantity(name=f"loss with {FEW} bits minus with 23, with drift, without decay", unit="nats",
                          values=neuron_loss(0.0, FEW) - neuron_loss(0.0, FLOAT32)), above(5 * LOSS_MARGIN)),
            ),
        ),
    ),
)  # fmt: skip

SOFTMAX_CLAIMS = (
    Claim(
        key="softmax-exact",
        text="Check: in float64 a common offset of all logits changes the cross-entropy by rounding errors alone.",
        rule=Rule(
            parts=(
                (Quantity(name="log10 of the largest change of the loss by an offset (nats), float64",
                          values=measures.log10_exact), below(math.log10(EXACT))),
            )
        ),
    ),
    Claim(
        key="softmax-ulp",
        text="What a common offset of the logits adds to the cross-entropy when they are rounded depends on the spacing of"
        " numbers at the offset alone, whatever the number of bits from 5 on.",
        rule=Rule(
            parts=(
                (Each(name="what the offset adds to the loss with k bits minus with the most, for each k and ulp from 1/2 to 4",
                      quantities=measures.between_bits, unit="nats"), within(LOSS_MARGIN)),
            ),
            stake=(
                (Quantity(name="what the offset adds to the loss where ulp is 4, minus where it is 1", unit="nats",
                          values=measures.between_spacings), above(5 * LOSS_MARGIN)),
            ),
        ),
    ),
    Claim(
        key="softmax-form",
        text="What a common offset of the logits adds to the cross-entropy when they are rounded is ulp^2/24 times the mean of"
        " 1 - sum_j p_j^2, p the softmax, where ulp is 1 or 2.",
        rule=Rule(
            parts=(
                (Each(name="what the offset adds to the loss, mean over bits, over the formula, where ulp is 1 and 2",
                      quantities=[Quantity(name=f"what the offset adds to the loss over the formula, ulp {ulp}",
                                           unit="x", log=True, values=functools.partial(measures.over_closed, e=e))
                                  for e, ulp in ((0, 1), (1, 2))],
                      unit="x"), within_factor(FORM_FACTOR)),
            ),
        ),
    ),
    _doubles(
        "softmax-bits",
        f"One more bit doubles the common offset of the logits that adds {MORE_LOSS:g} nats to the cross-entropy when they are"
        " rounded.",
        SOFTMAX,
        f"the offset that adds {MORE_LOSS:g} nats",
    ),
)  # fmt: skip

BY_HAND = "The drift is put in by hand."
SPACING = "spacing of numbers at the offset (ulp)"

PANELS = (
    PointsPanel(
        slug="sum",
        title="A number is added to a large offset: is its sign lost?",
        x_label="offset",
        y_label="lost signs (%)",
        rows=figures.lost_signs,
        log_x=True,
        log_y=True,
        note="Lines: erf(ulp / (2 sqrt 2)). Points: measured, with binomial 95 % intervals.",
    ),
    PointsPanel(
        slug="variance",
        title="The error of the sum",
        x_label=SPACING,
        y_label="mean square of the error",
        rows=figures.variances,
        log_x=True,
        log_y=True,
        note=f"Offsets above {ROOM}. Points: means over seeds, with their range. A number that is far smaller than the spacing"
        " is lost whole.",
    ),
    PointsPanel(
        slug="neuron",
        title="A neuron with a drifting offset, in few bits",
        x_label="bits of the mantissa",
        y_label="loss (nats)",
        rows=against(figures.neuron_losses),
        log_x=True,
        log_y=True,
        note=f"{BY_HAND} Loss of the last steps, on fresh examples; bars are 95 % intervals, paired by seed.",
    ),
    PointsPanel(
        slug="offset",
        title="Decay holds the neuron's offset",
        x_label="step",
        y_label="offset",
        rows=figures.offsets_along_the_run,
        log_y=True,
        note=f"{BY_HAND} Lines: drift / lam (1 - (1 - lr lam)^t). Points: means over seeds, with their range.",
    ),
    PointsPanel(
        slug="saved",
        title="A halved offset is worth a bit",
        x_label="log2 of the offset without decay over that with",
        y_label="bits that decay saves",
        rows=figures.saved_bits,
        note=f"{BY_HAND} How many bits a loss {MORE_LOSS:g} nats above that of 23 bits takes, without decay minus with; 95 %"
        " intervals.",
    ),
    PointsPanel(
        slug="softmax",
        title="A common offset of logits that are rounded",
        x_label=SPACING,
        y_label="added cross-entropy (nats)",
        rows=figures.added_loss,
        log_x=True,
        log_y=True,
        note="Formula: ulp^2/24 times the mean of 1 - sum p^2. Points: means over seeds, with their range.",
    ),
    PointsPanel(
        slug="tolerated",
        title="One more bit is twice the tolerable offset",
        x_label="bits of the mantissa",
        y_label="offset",
        rows=figures.tolerated_offsets,
        log_y=True,
        note="Lines: closed forms. Points: means over seeds, with their range.",
    ),
)

Fields = dict[str, Any]

SUM_RUN: Fields = {"case": "sum", "log2_ulps": tuple(range(-5, 5)), "num_steps": 100, "batch_size": 10_000}
NEURON_RUN: Fields = {"case": "neuron", "lr": 0.4, "num_steps": 3_000, "batch_size": 64, "eval_every": 500}
SOFTMAX_RUN: Fields = {
    "case": "softmax",
    "log2_ulps": tuple(range(-3, 6)),
    "lr": 0.1,
    "num_steps": 1_000,
    "batch_size": 50,
}
DRIFT = 0.25


def _arms(widths: Sequence[int], main: int, sums: Fields, neuron: Fields, softmax: Fields) -> tuple[Arm, ...]:
    """Sums and neurons at the main size, and a classifier of each width."""
    specs: list[tuple[str, str, int, Fields]] = [
        (SUM, "one sum", main, SUM_RUN | sums),
        *(
            (neuron_key(lam), f"neuron, lam {lam:g}", main, NEURON_RUN | neuron | {"drift": DRIFT, "lam": lam})
            for lam in LAMS
        ),
        (STILL, "neuron without drift, lam 0", main, NEURON_RUN | neuron),
        *((SOFTMAX, "softmax", width, SOFTMAX_RUN | softmax | {"width": width}) for width in widths),
    ]
    return tuple(Arm(key=key, label=label, size=size, spec=ScalesRun(**fields)) for key, label, size, fields in specs)


SUM_BITS = {"bits": (4, 5, 6, 7, 8, 10)}
NEURON_BITS = {"bits": (FLOAT32, 8, 7, 6, 5, 4, 3, 2)}
SOFTMAX_BITS = {"bits": (5, 6, 7, 8, 10)}
NIGHT: tuple[Fields, ...] = (
    {"bits": (4, 5, 6, 7, 8, 9, 10, 12, 14), "num_steps": 1_000},
    {"bits": (FLOAT32, 16, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2), "num_replicas": 64},
    {"bits": (5, 6, 7, 8, 9, 10, 12, 14), "num_offsets": 32},
)

DISPARATE_SCALES = Study(
    name="disparate-scales",
    title="Low precision: adding numbers of disparate scales",
    source="D'Angelo et al. 2024 (arXiv 2310.04415), section 3, figure 8: the conjecture about bfloat16, in the smallest cases",
    claim="An offset that a function does not depend on costs nothing in exact arithmetic. In k bits it costs what the spacing"
    " of numbers at the offset says, and decay that holds it back saves bits. What drives the offset here is put in by hand.",
    claims=(*SUM_CLAIMS, *NEURON_CLAIMS, *SOFTMAX_CLAIMS),
    panels=PANELS,
    size_name="hidden units of the classifier",
    doc_panels=("neuron", "tolerated"),
    presets=presets(
        smoke=Preset(
            description="1,000 sums, 60 steps of a neuron, 40 of a classifier",
            budget="5 seconds",
            arms=_arms(
                (8,),
                8,
                SUM_BITS | {"num_steps": 2, "batch_size": 500},
                NEURON_BITS | {"num_steps": 60, "num_replicas": 2, "eval_every": 20},
                SOFTMAX_BITS | {"num_steps": 40, "num_offsets": 2, "num_train": 200, "num_test": 200},
            ),
        ),
        laptop=Preset(
            description="a million sums for each offset and number of bits, 3,000 steps of 8 neurons, a classifier of 32 hidden"
            " units on 5,000 Fashion-MNIST images at 7 x 7",
            budget="2 minutes on 2 cores",
            arms=_arms((32,), 32, SUM_BITS, NEURON_BITS, SOFTMAX_BITS | {"num_test": 5_000}),
        ),
        night=Preset(
            description="as laptop, with more seeds, bits, sums, neurons and offsets, and classifiers of 16, 32 and 64 units",
            budget="20 minutes on 2 cores",
            arms=_arms((16, 32, 64), 32, *NIGHT),
            num_seeds=20,
            main_size=32,
            num_ladder_seeds=10,
        ),
        paper=Preset(
            description="the settings of night at one size: the paper has no such experiment",
            budget="20 minutes on 2 cores",
            arms=_arms((32,), 32, *NIGHT),
            num_seeds=20,
        ),
    ),
)
