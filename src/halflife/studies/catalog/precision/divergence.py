"""Does training in low precision diverge without weight decay, and does decay prevent it?

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), section 3, figures 8, 24 and 25: GPT-2 with 124 M parameters under autocast to bfloat16. The published code
keeps weights and optimizer in float32, and so do the runs here.

Two precisions stand beside float32: bfloat16 itself, by torch's autocast, and two explicit mantissa bits at the same places,
as the analogue at this size. The setting was looked for on seeds of 500 and above; the rules were written before any run of the
presets' seeds. Shapes: S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from halflife.divergence import find_spikes
from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE, constant_lr, decay, run_arm
from halflife.studies.catalog.language.quantities import best_against_best, in_nats, loss
from halflife.studies.catalog.precision.common import FAILED, GPT, PAPER_GPT
from halflife.studies.evidence.claims import (
    Arm,
    Cell,
    Claim,
    HeatPanel,
    Panel,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.quantities import Measure, Numbers, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, published_level
from halflife.studies.evidence.tests import above, below, exceeds, lowered, within
from halflife.studies.specs.precision import AUTOCAST_PLACES
from halflife.studies.specs.text import TextRun

__all__ = ["BF16_DIVERGENCE"]

PRECISIONS = {"float32": "float32", "bfloat16": "bfloat16", "few-bits": "few bits"}
"""Names in keys, and in words."""

RATES = ("small", "middle", "large")
LAMS = ("none", "decay")

SAME = 0.01  # nats: a tenth of what is called a failure
SMALLEST_EFFECT = 0.01  # nats


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with its rates and decay.

    Args:
        fields: Of the `TextRun`, without learning rate, decay and precision.
        rates: By name, rising.
        lam: Of the runs with decay.
        bits: What few bits are.
        schedule: Of the learning rate, as text, or made of the number of steps.
    """

    fields: Mapping[str, Any]
    rates: tuple[float, float, float]
    lam: float
    bits: int
    schedule: str

    def arms(self) -> tuple[Arm, ...]:
        """All arms: precisions, lams and rates."""
        return tuple(
            self._arm(precision, lam, rate) for precision in PRECISIONS for lam in LAMS for rate in reversed(RATES)
        )

    def _arm(self, precision: str, name: str, rate: str) -> Arm:
        lam, lr = self.lam * (name == "decay"), self.rates[RATES.index(rate)]
        fields = {**self.fields, "lr": lr, "lr_schedule": self.schedule, "decay": decay(lam)}
        words = PRECISIONS[precision]
        if precision == "few-bits":
            fields |= {"bits": self.bits, "rounded": AUTOCAST_PLACES, "rounded_gradients": AUTOCAST_PLACES}
            words = f"{self.bits} bits"
        else:
            fields["precision"] = precision
        return run_arm(key_of(precision, name, rate), f"{words}, lam {lam:g}, lr {lr:g}", fields)


def key_of(precision: str, lam: str, rate: str) -> str:
    """The key of an arm."""
    return f"{precision}-{lam}-{rate}"


def excess(precision: str, lam: str, rate: str) -> Measure:
    """The final loss in a precision minus that of the same runs in float32, (S, N)."""
    return loss(key_of(precision, lam, rate)) - loss(key_of("float32", lam, rate))


def change(precision: str, rate: str) -> Measure:
    """The final loss with decay minus that without, (S, N)."""
    return loss(key_of(precision, "decay", rate)) - loss(key_of(precision, "none", rate))


@dataclass(frozen=True)
class Rise(Measure):
    """The final validation loss minus the lowest one along the run, (S,): 0 where the last is the lowest."""

    arm: str

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,)."""
        return np.array([values[-1] - values.min() for _, values in results.series_by_step(self.arm, "val/loss", size)])


LARGE = RATES[-1]
WITHOUT_BF16 = in_nats(
    "final loss in bfloat16 - in float32, without decay, at the large rate", excess("bfloat16", "none", LARGE)
)
WITHOUT_FEW = in_nats(
    "final loss at few bits - in float32, without decay, at the large rate", excess("few-bits", "none", LARGE)
)
WITH_FEW = in_nats(
    "final loss at few bits - in float32, with decay, at the large rate", excess("few-bits", "decay", LARGE)
)

CLAIMS = (
    Claim(
        key="float32-stable",
        text="In float32 a language model that is trained without decay at the large learning rate does not diverge.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "final loss - lowest one along the run, float32, without decay, at the large rate",
                        Rise(key_of("float32", "none", LARGE)),
                    ),
                    below(FAILED),
                ),
            )
        ),
    ),
    Claim(
        key="bfloat16-fails",
        text="In bfloat16 the same training without decay fails: it ends far above the loss that it has in float32.",
        rule=Rule(parts=((WITHOUT_BF16, above(FAILED)),)),
    ),
    Claim(
        key="bfloat16-decay",
        text="With decay training in bfloat16 ends with the loss that it has in float32, where without decay it does not.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "final loss in bfloat16 - in float32, with decay, at the large rate",
                        excess("bfloat16", "decay", LARGE),
                    ),
                    within(SAME),
                ),
            ),
            stake=((WITHOUT_BF16, exceeds(SAME)),),
        ),
    ),
    Claim(
        key="few-bits-fail",
        text="With fewer bits than bfloat16 has training without decay fails at this size (our analogue of theirs).",
        rule=Rule(parts=((WITHOUT_FEW, above(FAILED)),)),
    ),
    Claim(
        key="few-bits-decay",
        text="At few bits, where training without decay fails, decay takes away more than half of what low precision costs (our"
        " analogue of theirs).",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "final loss at few bits - in float32 with decay, minus half of that without, at the large rate",
                        excess("few-bits", "decay", LARGE) - 0.5 * excess("few-bits", "none", LARGE),
                    ),
                    below(0),
                ),
            ),
            given=((WITHOUT_FEW, above(FAILED)),),
        ),
    ),
    Claim(
        key="few-bits-better",
        text="At few bits and the large rate the run with decay ends lower than the one without (our analogue of theirs).",
        rule=Rule(
            parts=(
                (
                    in_nats("final loss with decay - without, few bits, at the large rate", change("few-bits", LARGE)),
                    lowered(SMALLEST_EFFECT),
                ),
            )
        ),
    ),
    Claim(
        key="float32-better",
        text="In float32, at the same constant large rate, it is the run without decay that ends lower (our claim).",
        rule=Rule(
            parts=(
                (
                    in_nats("final loss with decay - without, float32, at the large rate", change("float32", LARGE)),
                    above(0),
                ),
            )
        ),
    ),
    Claim(
        key="small-rate",
        text="At a small learning rate few bits do not fail without decay: a large rate is a part of the cause.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "final loss at few bits - in float32, without decay, at the small rate",
                        excess("few-bits", "none", "small"),
                    ),
                    below(FAILED),
                ),
            ),
            stake=((WITHOUT_FEW, above(FAILED)),),
        ),
    ),
    Claim(
        key="tuned",
        text="At few bits decay lowers the loss even where the learning rate is tuned on both sides (our analogue of theirs).",
        rule=best_against_best(
            "final loss at few bits, best rate with decay - best rate without",
            [key_of("few-bits", "decay", rate) for rate in RATES],
            [key_of("few-bits", "none", rate) for rate in RATES],
            smallest=SMALLEST_EFFECT,
        ),
    ),
)


def _lines(results: Results, size: int) -> dict[str, list[tuple[float, Measure]]]:
    """The final loss against the learning rate, a line a precision and lam."""
    lines: dict[str, list[tuple[float, Measure]]] = {}
    for precision, words in PRECISIONS.items():
        for lam in LAMS:
            name = f"{words}, {'with decay' if lam == 'decay' else 'no decay'}"
            keys = [key_of(precision, lam, rate) for rate in RATES]
            lines[name] = [(_lr(results, key, size), Reading(key, "val/loss")) for key in keys]
    return lines


def _lr(results: Results, key: str, size: int) -> float:
    spec = results.spec(key, size)
    assert isinstance(spec, TextRun)
    return spec.lr


def _cells(results: Results) -> list[Cell]:
    """Precision and lam against the rate: what low precision costs."""
    size, cells = results.main_size, []
    for precision in ("bfloat16", "few-bits"):
        for lam in LAMS:
            for rate in RATES:
                value = float(np.mean(excess(precision, lam, rate)(results, size)))
                row = f"{PRECISIONS[precision]}, {'with decay' if lam == 'decay' else 'no decay'}"
                cells.append(Cell(f"lr {_lr(results, key_of(precision, lam, rate), size):g}", row, value))
    return cells


_AT_LARGE = tuple(key_of(precision, lam, LARGE) for precision in PRECISIONS for lam in LAMS)

PANELS = (
    Panel(
        metric="train/running_loss",
        title="Training loss at the large rate",
        y_label="training loss (nats per token)",
        x="step",
        arms=_AT_LARGE,
        start=0.1,
        slug="loss",
        source_figure="figure 8",
    ),
    Panel(
        metric="score/largest",
        title="The largest attention score at the large rate",
        y_label="largest |score| of a batch (nats)",
        log=True,
        x="step",
        arms=_AT_LARGE,
        slug="score",
        note="After the division by the root of a head's width. What rounding changes of a score is in proportion to it.",
    ),
    Panel(
        metric="weight_norm",
        title="Norm of all weights at the large rate",
        y_label="norm of all weights",
        x="step",
        arms=_AT_LARGE,
        slug="norm",
        source_figure="figure 25",
    ),
    PointsPanel(
        slug="rates",
        title="Final loss against the learning rate",
        x_label="learning rate",
        y_label="validation loss (nats per token)",
        rows=against(_lines, bars="seeds"),
        log_x=True,
        source_figure="figures 24 and 25",
        note="Bars: 95 % intervals over seeds.",
    ),
    HeatPanel(
        slug="cost",
        title="What low precision costs",
        x_label="learning rate",
        y_label="precision and decay",
        value_label="final loss minus that in float32 (nats per token)",
        cells=_cells,
        source_figure="figure 25",
    ),
)


def _diverges_after(results: Results) -> str:
    """After which step each run in bfloat16 without decay leaves its course for good, by `find_spikes`."""
    found = []
    for steps, losses in results.series_by_step(
        key_of("bfloat16", "none", LARGE), "train/running_loss", results.main_size
    ):
        spikes = find_spikes(steps.tolist(), losses.tolist())
        found.append(f"{spikes[-1].seen:,.0f}" if spikes and spikes[-1].diverged else "never")
    return " / ".join(found)


PUBLISHED = (
    Published(
        quantity="steps after which bfloat16 without decay diverges (paper: of 50,000, learning rate 1e-3), seed by seed",
        published="28,000 / 30,000 / 43,000",
        where="section 3, figure 8",
        how="fig-read",
        ours=_diverges_after,
    ),
    Published(
        quantity="loss without decay in float32 / with decay in bfloat16, learning rate 1e-3",
        published="2.99 / 2.98",
        where="figure 8",
        how="fig-read",
        ours=published_level(
            Reading(key_of("float32", "none", LARGE), "val/loss"),
            Reading(key_of("bfloat16", "decay", LARGE), "val/loss"),
        ),
    ),
    Published(
        quantity="norm of all weights at the end without / with decay, learning rate 1e-3",
        published="> 1,100 / 500",
        where="figure 25",
        how="fig-read",
        ours=published_level(
            Reading(key_of("bfloat16", "none", LARGE), "weight_norm"),
            Reading(key_of("bfloat16", "decay", LARGE), "weight_norm"),
        ),
    ),
)


def _small(width: int, num_steps: int, warm: int = 100, **changes: Any) -> Setting:
    fields = {**GPT, "width": width, "num_steps": num_steps, "eval_every": max(num_steps // 5, 1), **changes}
    return Setting(fields=fields, rates=(5e-3, 1e-2, 2e-2), lam=0.1, bits=2, schedule=constant_lr(warm))


LAPTOP = _small(32, 2_000)
PAPER_SETTING = Setting(
    fields=PAPER_GPT,
    rates=(3e-4, 6e-4, 1e-3),
    lam=0.1,
    bits=5,
    schedule="join(schedules=(warmup(steps=2000), cosine(start=1.0, end=0.1, steps=48000)), boundaries=(2000,))",
)

BF16_DIVERGENCE = Study(
    name="bf16-divergence",
    title="Weight decay and the divergence of training in low precision",
    source=f"{PAPER_TITLE}, section 3, figures 8, 24 and 25",
    claim="In bfloat16 language models that are trained without decay at a large learning rate diverge; decay prevents it, and"
    " float32 does not need it.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("score", "rates"),
    presets=presets(
        smoke=Preset(
            description="width 8, 12 steps",
            budget="20 seconds",
            arms=_small(
                8, 12, 4, batch_size=4, num_eval_tokens=512, num_train_tokens=20_000, log_every=3, eval_every=6
            ).arms(),
        ),
        laptop=Preset(
            description="byte GPT of width 32 and two layers, 2,000 steps of 512 tokens; few bits: 2 explicit mantissa bits",
            budget="10 minutes on 2 cores",
            arms=LAPTOP.arms(),
            num_seeds=4,
        ),
        night=Preset(
            description="as laptop, 5,000 steps, and a ladder of widths 16, 32, 64",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in (16, 32, 64) for arm in _small(width, 5_000).arms()),
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters, context 1,024, 50,000 steps; few bits: 5",
            budget="54 runs of a day on one GPU",
            arms=PAPER_SETTING.arms(),
            num_seeds=3,
            needs=PAPER_NEEDS,
        ),
    ),
)
