"""The best lam against batch, data and width: whether the time scale of the decay is what should be held fixed.

Sources: Wang and Aitchison, "How to set AdamW's weight decay as you scale model and dataset size" (2024, arXiv 2405.13698),
and Bergsma et al., "Power Lines: Scaling Laws for Weight Decay and Batch Size in LLM Pre-training" (2025, arXiv 2505.13738).
Their statements are tested as second-hand notes give them; no figure of theirs is quoted.

With AdamW a weight forgets in tau = 1 / (lr lam) steps. Over a run of T steps and D = T B tokens, tau / T = B / (lr lam D). The
first paper says that the best tau, counted in epochs, hardly moves with the data and the model; then lam* ~ B at fixed lr,
and lam* ~ 1 / D for a text that is read equally often. The second says that for one pass the best tau / T falls as
(D / N)^-0.52 with N parameters; then lam* ~ B D^-0.48 N^-0.52 at fixed lr. Both change lr with the width; here it is held, as
everything is but the one thing that an axis changes.

Every place of an axis is swept over lam, in steps of 2, for every seed. Settings were found on seeds 1000 and above.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from halflife.studies.catalog.language.common import PAPER, PAPER_NEEDS, decay, linear_lr, run_arm, small_mlp
from halflife.studies.catalog.language.quantities import have_minima, in_nats
from halflife.studies.catalog.language.timescale import figures
from halflife.studies.catalog.language.timescale import quantities as rules
from halflife.studies.evidence.claims import Arm, Claim, Panel, Preset, Rule, Study, presets
from halflife.studies.evidence.quantities import Quantity, mean_of
from halflife.studies.evidence.rules import can_be_measured
from halflife.studies.evidence.tests import EQUAL_CONFIDENCE, above, below, within

__all__ = ["TIMESCALE"]

# Found on seeds 1000 and above, width 32, batch 256, linear to 0. At lr 5e-3, 1e-2, 2e-2 the loss after 4,096 steps, each at
# its best lam, was 1.895, 1.876, 1.865: 1e-2 was taken, near the best and with the sharper optimum in lam. There the best lam
# was 0.68, 0.38, 0.24, 0.14, 0.07 after 512, 1,024, 2,048, 4,096, 8,192 steps; 0.20, 0.38, 1.73 at batches of 128, 256, 1,024
# and 262,144 targets; 0.18, 0.14, 0.10 at widths 16, 32, 64 and 4,096 steps; 4.7, 1.5, 1.2, 0.51 for eight passes over 16, 33,
# 66, 131 thousand bytes.
LR = 1e-2

TPP_EXPONENT = -0.52  # of tau* / T in tokens per parameter (second paper, second-hand)
TOKENS_EXPONENT = round(-1 - TPP_EXPONENT, 2)  # lam* = B / (lr D (tau* / T)) ~ D^(-1 - m)

MARGIN = 0.25  # of an exponent: half the distance between the two published answers for tokens, -1 and -0.48
SMALLEST_LOSS = 0.01  # nats: half of what decay gains in the paper's GPT-2 (3.30 against 3.28)


def _power_claim(key: str, text: str, axis: str, exponent: float, of: str) -> Claim:
    """The best lam goes as a power of what an axis changes."""
    quantity = Quantity(
        name=f"exponent of the best lam in {of}",
        values=functools.partial(rules.exponent, axis=axis),
        examples="blocks",
    )
    optima = functools.partial(rules.optima_on, axis=axis)
    return Claim(
        key=key,
        text=text,
        rule=Rule(parts=((quantity, within(MARGIN, around=exponent)),), given=(have_minima(optima),)),
    )


SCALED = rules.BestAtBase(kept=0.0, scaled=1.0)
OWN_BEST = mean_of([rules.best_of_place(place) for place in rules.OTHER_BATCHES])

CLAIMS = (
    _power_claim(
        "batch", "At fixed lr and tokens the best lam is proportional to the batch.", "batch", 1.0, "the batch"
    ),
    Claim(
        key="matched",
        text="A lam that is tuned at one batch serves at the others once it is scaled with the batch, so that tau / T stays.",
        rule=Rule(
            parts=(
                (
                    in_nats(
                        "loss at the other batches with the base's best lam kept - with it scaled with the batch, mean over"
                        " batches",
                        rules.BestAtBase(kept=1.0, scaled=-1.0),
                    ),
                    above(0),
                ),
                (
                    in_nats(
                        "loss at the other batches with the base's best lam scaled - with the batch's own best lam, mean over"
                        " batches",
                        SCALED - OWN_BEST,
                    ),
                    replace(below(SMALLEST_LOSS), confidence=EQUAL_CONFIDENCE),
                ),
            ),
            given=(can_be_measured("the base's best lam, kept and scaled, is on the grid of every batch", SCALED),),
        ),
    ),
    _power_claim(
        "tokens",
        "In one pass the best tau / T falls as tokens per parameter to the power -0.52, so that the best lam falls with the"
        " tokens as D^-0.48.",
        "tokens",
        TOKENS_EXPONENT,
        "the tokens",
    ),
    _power_claim(
        "tokens-constant",
        "In one pass, too, the best tau is a constant part of the run, so that the best lam falls as 1 / D.",
        "tokens",
        -1.0,
        "the tokens",
    ),
    _power_claim(
        "text",
        "For a text that is read again and again the best tau is a constant number of epochs, so that the best lam falls as"
        " 1 / tokens of the text.",
        "text",
        -1.0,
        "the tokens of the text",
    ),
    _power_claim(
        "width",
        "At fixed lr the best tau hardly depends on the width, so that the best lam does not.",
        "width",
        0.0,
        "the parameters",
    ),
    _power_claim(
        "width-power",
        "At fixed lr and tokens the best tau / T falls as tokens per parameter to the power -0.52, so that the best lam falls"
        " with the parameters as N^-0.52.",
        "width",
        TPP_EXPONENT,
        "the parameters",
    ),
)

PREDICTED: Mapping[str, Mapping[str, float]] = {
    "batch": {"both papers": 1.0},
    "tokens": {"Bergsma et al.": TOKENS_EXPONENT, "Wang and Aitchison": -1.0},
    "text": {"Wang and Aitchison": -1.0},
    "width": {"Bergsma et al.": TPP_EXPONENT, "Wang and Aitchison": 0.0},
}


@dataclass(frozen=True, kw_only=True)
class Base:
    """The configuration from which every axis starts.

    Args:
        fields: Of its `TextRun`, without lr, schedule, decay, and what the axes change.
        lr: The learning rate, the same everywhere.
        lam: Of the middle of its grid.
        width: Its width; the size of all arms.
        batch_size: Windows per batch.
        num_steps: Its steps.
        text_tokens: Tokens of the repeated text in the middle of its axis.
        text_lam: Lam of the middle of the grid there.
        num_epochs: How often a repeated text is read.
    """

    fields: Mapping[str, Any]
    lr: float
    lam: float
    width: int
    batch_size: int
    num_steps: int
    text_tokens: int
    text_lam: float
    num_epochs: int = 8

    def places(self) -> dict[str, tuple[float, dict[str, Any]]]:
        """For each place the lam of its middle, and what differs from the base.

        On the batch's axis grids are scaled with the batch, so that equal powers of 2 are equal tau / T. On the others they
        are moved by what lies between the published answers; each grid is wide enough for both.

        Returns:
            Both by the place's name.
        """
        steps, batch, width = self.num_steps, self.batch_size, self.width
        places: dict[str, tuple[float, dict[str, Any]]] = {rules.BASE: (self.lam, {})}
        for name, factor in (("batch/2", 0.5), ("batch*2", 2.0), ("batch*4", 4.0)):
            changed = {"batch_size": round(batch * factor), "num_steps": round(steps / factor)}
            places[name] = self.lam * factor, changed
        for name, factor in (("tokens/2", 0.5), ("tokens*2", 2.0)):
            places[name] = self.lam * factor**-0.75, {"num_steps": round(steps * factor)}
        for name, factor in (("text/2", 0.5), ("text", 1.0), ("text*2", 2.0)):
            tokens = round(self.text_tokens * factor)
            targets = batch * (self.fields["context"] if self.fields["model"] == "gpt" else 1)
            repeated = {"order": "epochs", "num_train_tokens": tokens}
            places[name] = self.text_lam / factor, repeated | {"num_steps": tokens * self.num_epochs // targets}
        for name, factor in (("width/2", 0.5), ("width*2", 2.0)):
            changed = {"width": round(width * factor)}
            if self.fields["model"] == "gpt":
                changed["heads"] = round(self.fields["heads"] * factor)
            places[name] = self.lam * factor**-0.5, changed
        return places

    def arms(self) -> tuple[Arm, ...]:
        """All arms."""
        return tuple(
            self._arm(place, lam, power, changed)
            for place, (lam, changed) in self.places().items()
            for power in rules.GRID
        )

    def _arm(self, place: str, middle: float, power: int, changed: Mapping[str, Any]) -> Arm:
        fields = {
            "width": self.width,
            "batch_size": self.batch_size,
            "num_steps": self.num_steps,
            **self.fields,
            **changed,
        }
        lam, num_steps = float(f"{middle * 2.0**power:.4g}"), fields["num_steps"]
        schedule = linear_lr(num_steps, max(num_steps // 20, 1))  # a fixed share: the same shape at every length
        fields |= {"lr": self.lr, "lr_schedule": schedule, "decay": decay(lam), "eval_every": num_steps}
        fields |= {"log_every": max(num_steps // 50, 1)}
        if "accumulate" in fields:  # of the paper's settings: batches larger than memory, in parts of the same size
            fields["accumulate"] = max(1, fields["accumulate"] * fields["batch_size"] // self.batch_size)
        arm = run_arm(rules.arm_key(place, power), f"{place}, lam {lam:g}", fields)
        return replace(arm, size=self.width)


def _small(*, width: int, lam: float, num_steps: int, text_lam: float) -> Base:
    """The byte MLP; eight passes over the repeated text in the middle of its axis are twice as many steps as the base."""
    return Base(
        fields={name: value for name, value in small_mlp(width).items() if name not in {"width", "batch_size"}},
        lr=LR,
        lam=lam,
        width=width,
        batch_size=256,
        num_steps=num_steps,
        text_tokens=num_steps * 256 // 4,
        text_lam=text_lam,
    )


SMOKE = replace(
    _small(width=8, lam=0.3, num_steps=16, text_lam=0.3),
    batch_size=16,
    text_tokens=128,
)
SMOKE = replace(SMOKE, fields={**SMOKE.fields, "num_eval_tokens": 2_048})

PAPER_BASE = Base(
    fields={
        **{name: value for name, value in PAPER.items() if name not in {"width", "batch_size", "num_steps", "lr"}},
        "order": "one-pass",
    },
    lr=6e-4,
    lam=0.2,  # the power law says 0.17 here
    width=768,
    batch_size=256,
    num_steps=50_000,
    text_tokens=409_600_000,
    text_lam=0.4,
)

PRESETS = presets(
    smoke=Preset(
        description="width 8, 16 steps",
        budget="half a minute",
        arms=SMOKE.arms(),
    ),
    laptop=Preset(
        description="byte MLP of width 32 (and 16, 64), base: 1,024 steps of 256 targets; 11 places with 6 values of lam",
        budget="10 minutes on 2 cores",
        arms=_small(width=32, lam=0.45, num_steps=1_024, text_lam=1.6).arms(),
    ),
    night=Preset(
        description="as laptop, with twice the steps, more seeds, and bases of width 16, 32 and 64",
        budget="90 minutes on 2 cores",
        arms=(
            *_small(width=16, lam=0.38, num_steps=2_048, text_lam=1.0).arms(),
            *_small(width=32, lam=0.27, num_steps=2_048, text_lam=0.8).arms(),
            *_small(width=64, lam=0.19, num_steps=2_048, text_lam=0.6).arms(),
        ),
        num_seeds=10,
        main_size=32,
        num_ladder_seeds=4,
    ),
    paper=Preset(
        description="GPT-2 with 124 M parameters (and widths 384, 1,536) on 1.6 to 6.6 billion tokens of OpenWebText",
        budget="about 130 runs of half a day on one GPU",
        arms=PAPER_BASE.arms(),
        num_seeds=2,
        needs=PAPER_NEEDS,
    ),
)

TIMESCALE = Study(
    name="timescale",
    title="The time scale of the decay",
    source="Wang and Aitchison 2024 (arXiv 2405.13698) and Bergsma et al. 2025 (arXiv 2505.13738), from second-hand notes",
    claim="What should be held fixed when the batch, the data or the model change is not lam but the time after which the"
    " weights forget, tau = 1 / (lr lam) steps, measured against the run.",
    claims=CLAIMS,
    panels=(
        *figures.panels(PREDICTED),
        Panel(
            metric="train/running_loss",
            title="Training loss at the base",
            y_label="training loss (nats)",
            x="step",
            start=0.1,
            arms=tuple(rules.arm_key(rules.BASE, power) for power in rules.GRID),
        ),
    ),
    presets=PRESETS,
    published=figures.published(),
    size_name="width of the base",
    doc_panels=("optimum-batch", "optimum-tokens"),
)
