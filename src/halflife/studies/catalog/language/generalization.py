"""Validation loss as a function of training loss, whatever lam: in one pass over the data decay is no regularizer.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3 and appendix D, figure 19.

The runs are those of `lm-schedules`, with a second model. The rules were written before any run of the presets' seeds;
docs/studies.md lists what was made stricter after the first laptop runs.

The windows of the training split on which a run is evaluated are those that it has read, another sample for every seed: a
seed shifts all its training losses by the difficulty of its sample. So both losses are taken relative to their mean over
the runs of the same seed and model. Shapes: K arms, S seeds, N blocks of validation tokens.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.quantities import (
    BLOCKS,
    best_against_best,
    change,
    decayed_runs,
    in_nats,
    nats,
    starting_with,
)
from halflife.studies.catalog.language.settings import (
    LAMS,
    LAPTOP,
    LAPTOP_GPT,
    NIGHT,
    NIGHT_WIDTHS,
    PAPER_SETTING,
    SMOKE,
    Setting,
    key_of,
    prefixed,
)
from halflife.studies.evidence.claims import (
    Arm,
    Claim,
    Panel,
    PointRow,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
    presets,
)
from halflife.studies.evidence.quantities import Each, Quantity
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.tests import exceeds, within

__all__ = ["LM_GENERALIZATION"]

GAP_MARGIN = 0.005  # nats: a quarter of the margin of the paper's figure 19
SLOPE_MARGIN = 0.1
MODELS = {"": "main model", "gpt-": "second model (GPT)"}
"""What the keys of a model's arms start with, and its name."""


@dataclass(frozen=True)
class Cloud:
    """The runs of one model, both losses relative to the seed's mean.

    Args:
        keys: The arms.
        train_KS: Training losses.
        val_KSN: Validation losses by block.
        offset_S: The mean training and validation loss of each seed, (2, S).
    """

    keys: list[str]
    train_KS: NDArray[np.float64]
    val_KSN: NDArray[np.float64]
    offset_S: NDArray[np.float64]

    def rows(self, lam: str) -> list[int]:
        """The runs of a lam."""
        return [index for index, key in enumerate(self.keys) if f"-{lam}-" in key]

    @cached_property
    def train_in_lam_KS(self) -> NDArray[np.float64]:
        """Training losses relative to the mean over the runs of the same lam and seed."""
        centred_KS = self.train_KS.copy()
        for lam in LAMS:
            centred_KS[self.rows(lam)] -= self.train_KS[self.rows(lam)].mean(axis=0)
        return centred_KS

    @cached_property
    def slope_SN(self) -> NDArray[np.float64]:
        """The slope of validation on training loss by seed and block, from runs with the same lam.

        An offset per seed and lam, so that what a lam adds does not tilt the line. Least squares is linear in the validation
        loss: the mean over blocks is the slope of the mean loss.
        """
        x_KS = self.train_in_lam_KS
        slope_SN: NDArray[np.float64] = np.einsum("ks,ksn->sn", x_KS, self.val_KSN) / (x_KS**2).sum(axis=0)[:, None]
        return slope_SN

    def of_lam(self, lam: str) -> NDArray[np.float64]:
        """What the runs of a lam have above the line of those without decay, (S, N)."""
        train_S, val_SN = (
            values[self.rows(lam)].mean(axis=0) - values[self.rows("none")].mean(axis=0)
            for values in (self.train_KS, self.val_KSN)
        )
        above: NDArray[np.float64] = val_SN - self.slope_SN * train_S[:, None]
        return above


def cloud(results: Results, size: int, *, model: str) -> Cloud:
    """The runs of one model, which the preset must have."""
    keys = [key for kind in ("decayed", "constant") for key in starting_with(results, f"{model}{kind}-", size)]
    train_KS = np.array([results.read(key, "train/loss", size) for key in keys])
    val_KSN = np.array([results.read(key, BLOCKS, size) for key in keys])
    offset_S = np.array([train_KS.mean(axis=0), val_KSN.mean(axis=(0, 2))])
    return Cloud(keys, train_KS - offset_S[0], val_KSN - val_KSN.mean(axis=0), offset_S)


def models(results: Results, size: int) -> list[str]:
    """The models of the preset at a size, as their keys start."""
    return [model for model in MODELS if starting_with(results, f"{model}decayed-", size)]


def offset(results: Results, size: int, *, model: str, lam: str) -> NDArray[np.float64]:
    """What the runs of a lam have above the line of those without decay, (S, N)."""
    return cloud(results, size, model=model).of_lam(lam)


def slope(results: Results, size: int, *, model: str) -> NDArray[np.float64]:
    """The slope of validation on training loss among runs with the same lam, (S, N)."""
    return cloud(results, size, model=model).slope_SN


def offsets(results: Results, size: int, *, lam: str) -> list[Quantity]:
    """The offset of a lam in each model."""
    name = f"offset of {lam} decay - that of no decay"
    return [
        in_nats(f"{name}, {MODELS[model]}", functools.partial(offset, model=model, lam=lam))
        for model in models(results, size)
    ]


def slopes(results: Results, size: int) -> list[Quantity]:
    """The slope in each model."""
    name = "slope of validation on training loss among runs with the same lam"
    return [
        Quantity(name=f"{name}, {MODELS[model]}", values=functools.partial(slope, model=model), examples="blocks")
        for model in models(results, size)
    ]


def changes(results: Results, size: int, *, lam: str) -> list[Quantity]:
    """What a lam changes at a constant rate in each model."""
    name = f"validation loss with {lam} decay - without at the end of the run at a constant rate"
    return [
        in_nats(f"{name}, {MODELS[model]}", change("constant", lam, prefix=model)) for model in models(results, size)
    ]


def _same_curve(lam: str) -> Claim:
    offset_in_each = Each(
        name=f"offset of {lam} decay - that of no decay in the regression of validation on training loss over all runs of a"
        " model, with an offset per seed and lam and one slope per seed, in each model",
        quantities=functools.partial(offsets, lam=lam),
        unit="nats",
    )
    change_in_each = Each(
        name=f"validation loss with {lam} decay - without at the end of the run at a constant rate, in each model",
        quantities=functools.partial(changes, lam=lam),
        unit="nats",
    )
    return Claim(
        key=f"same-curve-{lam}",
        text=f"At the same training loss, runs with {lam} decay have the same validation loss as runs without.",
        rule=Rule(parts=((offset_in_each, within(GAP_MARGIN)),), stake=((change_in_each, exceeds(GAP_MARGIN)),)),
    )


SLOPES = Each(
    name="slope of validation on training loss among runs with the same lam, in each model", quantities=slopes
)

CLAIMS = (
    *map(_same_curve, LAMS[1:]),
    Claim(
        key="slope",
        text="In one pass over the text a run gains in validation loss what it gains in training loss.",
        rule=Rule(parts=((SLOPES, within(SLOPE_MARGIN, around=1)),)),
    ),
    Claim(
        key="training-loss",
        text="In one pass over the text decay lowers the final training loss, each side at its best learning rate.",
        rule=best_against_best(
            "final training loss with a decayed learning rate, best lam > 0 and rate - best rate without decay",
            functools.partial(decayed_runs, lams=LAMS[1:]),
            functools.partial(decayed_runs, lams=LAMS[:1]),
            name="train/loss",
        ),
    ),
)


def one_curve(results: Results) -> list[PointRow]:
    """Validation against training loss, one point a run, the seed's offset replaced by the mean over seeds."""
    rows = []
    for model in models(results, results.main_size):
        runs = cloud(results, results.main_size, model=model)
        train_KS = runs.train_KS + runs.offset_S[0].mean()
        val_KS = runs.val_KSN.mean(axis=2) + runs.offset_S[1].mean()
        for lam in LAMS:
            inside = runs.rows(lam)
            pairs = zip(train_KS[inside].flat, val_KS[inside].flat, strict=True)
            name = {"none": "no decay"}.get(lam, f"{lam} decay") + (", GPT" if model else "")
            rows += [PointRow(series=name, x=float(x), y=float(y)) for x, y in pairs]
    return rows


def largest_offset(results: Results) -> str:
    """The largest offset in size over lams and models, as text."""
    size = results.main_size
    found = [q.interval(results, size, 0.95) for lam in LAMS[1:] for q in offsets(results, size, lam=lam)]
    return nats(max(found, key=lambda gap: abs(gap.estimate)))


PANELS = (
    PointsPanel(
        slug="one-curve",
        title="Validation against training loss, all lams and learning rates",
        x_label="training loss (nats per token)",
        y_label="validation loss (nats per token)",
        rows=one_curve,
        source_figure="figure 19",
        note="One point a run. Every seed evaluates other windows of the training split; the means over a seed's runs are"
        " replaced by the means over all seeds, for either loss.",
    ),
    Panel(
        metric="val/loss",
        start=0.1,
        title="Validation loss, decayed learning rate",
        y_label="validation loss (nats per token)",
        x="step",
        arms=tuple(key_of("decayed", lam) for lam in LAMS),
    ),
)

PUBLISHED = (
    Published(
        quantity="largest departure of a lam from the common curve",
        published="within ±0.02 nats (124 M and 774 M parameters)",
        where="figure 19",
        how="fig-read",
        ours=largest_offset,
    ),
)


def generalization_arms(setting: Setting, second: Setting | None = None) -> tuple[Arm, ...]:
    """The plain runs of `lm-schedules`, and those of a second model."""
    arms = [*setting.run_arms("decayed"), *setting.run_arms("constant")]
    if second is not None:
        more = [*second.run_arms("decayed"), *second.run_arms("constant")]
        arms += prefixed("gpt-", "GPT", more)
    return tuple(arms)


LARGE = {"width": 1280, "depth": 36, "heads": 20, "accumulate": 16}
"""GPT-2 large, 774 M parameters."""

LM_GENERALIZATION = Study(
    name="lm-generalization",
    title="Weight decay in one-pass language models: no generalization gap",
    source=f"{PAPER_TITLE}, section 3 and appendix D, figure 19",
    claim="When every token is seen about once, validation loss is a function of training loss, whatever lam: decay changes how"
    " well the training loss is optimized and nothing else.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("one-curve",),
    presets=presets(
        smoke=Preset(description="20 steps of a tiny MLP", budget="20 seconds", arms=generalization_arms(SMOKE)),
        laptop=Preset(
            description="the runs of lm-schedules, and a GPT of two layers for 1500 steps",
            budget="10 minutes on 2 cores, less after lm-schedules",
            arms=generalization_arms(LAPTOP, LAPTOP_GPT),
        ),
        night=Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores, nothing after lm-schedules",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in generalization_arms(NIGHT.at_width(width))),
            num_seeds=6,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M and 774 M parameters on OpenWebText, context 256, 50,000 steps",
            budget="weeks on one GPU",
            arms=(
                *generalization_arms(PAPER_SETTING),
                *generalization_arms(PAPER_SETTING.at_width(**LARGE)),
            ),
            num_seeds=2,
            num_ladder_seeds=2,
            needs=PAPER_NEEDS,
        ),
    ),
)
