"""Weight decay at a constant and at a decayed learning rate: a higher loss during training can be the better point.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS
2024, arXiv 2310.04415), section 3, figures 6, 23, 25 and 26.

The rules were written before any run of the presets' seeds; docs/studies.md lists what was made stricter after the first
laptop runs. `halflife.studies.catalog.language.settings` says how the settings were found.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.language.common import PAPER_NEEDS, PAPER_TITLE
from halflife.studies.catalog.language.quantities import (
    BLOCKS,
    EARLY_MARGIN,
    MIDWAY,
    SMALLEST_EFFECT,
    at_share,
    best_against_best,
    change,
    change_after,
    decayed_runs,
    in_nats,
    shares_of,
    starting_with,
    step_of,
)
from halflife.studies.catalog.language.settings import (
    LAMS,
    LAPTOP,
    LONG,
    NIGHT,
    NIGHT_WIDTHS,
    PAPER_LONG,
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
from halflife.studies.evidence.optimum import lam_of, text_spec
from halflife.studies.evidence.quantities import Measure, Numbers, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rows import against, published_level
from halflife.studies.evidence.tests import above, below, lowered, within
from halflife.studies.specs.base import RunSpec

__all__ = ["LM_SCHEDULES"]

FIRST = 20  # per cent of a decayed run at which its first branches start


@dataclass(frozen=True)
class LastBranch(Measure):
    """What the tiny-lr branches from the last point of the decayed run read at their end; presets differ in that point."""

    lam: str
    name: str = BLOCKS

    def __call__(self, results: Results, size: int) -> Numbers:
        """Shape (S,), or (S, N) of an array."""
        share = shares_of(results, "tiny-lr", "decayed", size)[-1]
        return Reading(f"tiny-lr-decayed-{self.lam}-{share}", self.name)(results, size)


def _claims(lam: str) -> tuple[Claim, ...]:
    """What is claimed of one lam."""
    effect = f"loss with {lam} decay - without"
    end, before, tiny = change("decayed", lam), change("constant", lam), change_after("tiny-lr", "constant", lam)
    final = in_nats(f"final {effect}, decayed learning rate", end)
    halfway = in_nats(
        f"{effect} at {MIDWAY} % of the decayed run",
        change("decayed", lam, step=functools.partial(at_share, share=MIDWAY)),
    )
    constant = in_nats(f"{effect} at the end of the run at a constant rate", before)
    removed = in_nats(f"{constant.name} - the same after the tiny-lr branch from there", before - tiny)
    after_tiny = in_nats(f"{effect} after the tiny-lr branch from the end of the run at a constant rate", tiny)
    after_cooldown = in_nats(
        f"{effect} after the cooldown from the end of the run at a constant rate",
        change_after("cooldown", "constant", lam),
    )
    early = in_nats(
        f"{effect} after tiny-lr branches from {MIDWAY} % of the decayed run",
        change_after("tiny-lr", "decayed", lam, MIDWAY),
    )
    at_last = LastBranch(lam) - LastBranch("none")
    late = in_nats(f"{effect} after tiny-lr branches from the last point of the decayed run", at_last)
    since_first = in_nats(
        f"{late.name} - the same from its first, at {FIRST} %",
        at_last - change_after("tiny-lr", "decayed", lam, FIRST),
    )
    return (
        Claim(
            key=f"same-rate-{lam}",
            text=f"With a decayed learning rate {lam} weight decay lowers the final loss at the same learning rate.",
            rule=Rule(parts=((final, lowered(SMALLEST_EFFECT)),)),
        ),
        Claim(
            key=f"higher-loss-{lam}",
            text=f"While the learning rate stays large, the run with {lam} decay has the higher loss.",
            rule=Rule(parts=((constant, above(0)),)),
        ),
        Claim(
            key=f"branch-removes-{lam}",
            text=f"A few steps at a tiny learning rate without decay remove a part of what {lam} decay adds to the loss of a"
            " run at a constant rate.",
            rule=Rule(parts=((removed, above(0)),), given=((constant, above(0)),)),
        ),
        Claim(
            key=f"better-point-{lam}",
            text=f"After a tiny-lr branch from the end of the run at a constant rate {lam} decay has the lower loss: its higher"
            " loss was the better point.",
            rule=Rule(parts=((after_tiny, below(0)),)),
        ),
        Claim(
            key=f"cooldown-{lam}",
            text="After a cooldown of the constant learning rate to 0 in a straight line, with decay kept, the run with"
            f" {lam} decay has the lower loss.",
            rule=Rule(parts=((after_cooldown, below(0)),)),
        ),
        Claim(
            key=f"crossing-{lam}",
            text=f"Within the run with a decayed learning rate the curves cross: with {lam} decay the loss is higher midway and"
            " lower at the end.",
            rule=Rule(parts=((final, below(0)), (halfway, above(0)))),
        ),
        Claim(
            key=f"early-branch-{lam}",
            text=f"Midway in the decayed run, where the loss with {lam} decay is higher, tiny-lr branches with and without"
            " decay nearly coincide.",
            rule=Rule(
                parts=((early, within(EARLY_MARGIN)), (halfway, above(0))), stake=((halfway, above(EARLY_MARGIN)),)
            ),
        ),
        Claim(
            key=f"late-gain-{lam}",
            text=f"What {lam} decay gains in the decayed run shows late: tiny-lr branches from its last point gain, and more"
            " than those from its first.",
            rule=Rule(parts=((since_first, below(0)), (late, below(0)))),
        ),
    )


CLAIMS = (
    Claim(
        key="best",
        text="With a decayed learning rate weight decay lowers the final loss, each side at its best learning rate.",
        rule=best_against_best(
            "final loss with a decayed learning rate, best lam > 0 and rate - best rate without decay",
            functools.partial(decayed_runs, lams=LAMS[1:]),
            functools.partial(decayed_runs, lams=LAMS[:1]),
        ),
    ),
    *(claim for pair in zip(*map(_claims, LAMS[1:]), strict=True) for claim in pair),
)


def _curves(kind: str) -> tuple[str, ...]:
    return tuple(key_of(kind, lam) for lam in LAMS)


def _name(results: Results, size: int, lam: str) -> str:
    return f"lam {lam_of(text_spec(results, key_of('decayed', lam), size)):g}"


Lines = dict[str, list[tuple[float, Measure]]]


def _branches(results: Results, size: int, *, kind: str, lams: Sequence[str], without: str = "") -> Lines:
    """The loss along a run and after a tiny-lr branch from there, by the step where it starts; minus that without decay."""
    lines: Lines = {}
    for lam in lams:
        for share in shares_of(results, "tiny-lr", kind, size):
            step = step_of(results, kind, share, size)
            run, branch = (
                {
                    "the run": Reading(key_of(kind, which), "val/loss", step=step),
                    "after the branch": Reading(f"tiny-lr-{kind}-{which}-{share}", "val/loss"),
                }
                for which in (lam, without or lam)
            )
            for where, loss in run.items():
                values = loss - branch[where] if without else loss
                lines.setdefault(f"{_name(results, size, lam)}, {where}", []).append((step, values))
    return dict(sorted(lines.items()))


def _rates(results: Results, size: int) -> Lines:
    """The final loss against the peak learning rate, a line a lam and context."""
    lines: Lines = {}
    for lam, prefix in itertools.product(LAMS, ("", LONG)):
        for key in starting_with(results, f"{prefix}decayed-{lam}-x", size):
            spec = text_spec(results, key, size)
            name = _name(results, size, lam) + (f", context {spec.context}" if prefix else "")
            lines.setdefault(name, []).append((spec.lr, Reading(key, "val/loss")))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in lines.items()}


def _figure(kind: str, **which: Any) -> Callable[[Results], list[PointRow]]:
    return against(functools.partial(_branches, kind=kind, **which), bars="seeds")


PANELS = (
    Panel(
        metric="train/running_loss",
        start=0.1,
        title="Training loss, decayed learning rate",
        y_label="training loss (nats per token)",
        x="step",
        arms=_curves("decayed"),
        slug="decayed-runs",
        source_figure="figure 6",
    ),
    PointsPanel(
        slug="decayed-branches",
        title="Loss along the decayed run and after a tiny-lr branch from there",
        x_label="step at which the branch starts",
        y_label="validation loss (nats per token)",
        rows=_figure("decayed", lams=LAMS),
        source_figure="figure 6",
        note="Means over seeds with 95 % intervals over seeds alone, which is what different seeds differ by.",
    ),
    PointsPanel(
        slug="decayed-gaps",
        title="What decay changes along the decayed run, before and after a tiny-lr branch",
        x_label="step at which the branch starts",
        y_label="loss with decay minus without (nats per token)",
        rows=_figure("decayed", lams=LAMS[1:], without="none"),
        note="Differences paired by seed, with 95 % intervals over seeds alone.",
    ),
    Panel(
        metric="train/running_loss",
        start=0.1,
        title="Training loss, constant learning rate",
        y_label="training loss (nats per token)",
        x="step",
        arms=_curves("constant"),
        slug="constant-runs",
        source_figure="figure 23",
    ),
    PointsPanel(
        slug="constant-gaps",
        title="What decay changes along the run at a constant rate, before and after a tiny-lr branch",
        x_label="step at which the branch starts",
        y_label="loss with decay minus without (nats per token)",
        rows=_figure("constant", lams=LAMS[1:], without="none"),
        note="Differences paired by seed, with 95 % intervals over seeds alone.",
    ),
    PointsPanel(
        slug="rates",
        title="Final loss against the learning rate, decayed",
        x_label="peak learning rate",
        y_label="validation loss (nats per token)",
        rows=against(_rates, bars="seeds"),
        log_x=True,
        source_figure="figures 24 and 25",
        note="Means over seeds with 95 % intervals over seeds alone.",
    ),
    Panel(
        metric="weight_norm",
        title="Norm of the weights, decayed learning rate",
        y_label="norm of all weights",
        x="step",
        arms=_curves("decayed"),
        slug="norms",
        source_figure="figure 26",
    ),
    Panel(
        metric="grad_norm",
        title="Norm of the gradient, decayed learning rate",
        y_label="gradient norm before clipping",
        x="step",
        arms=_curves("decayed"),
        slug="gradients",
        source_figure="figure 26",
    ),
)


def _ours(name: str, form: str, step: Callable[[RunSpec], int] | None = None) -> Callable[[Results], str]:
    """A reading of the decayed runs, at the end or at a step, none / moderate / large decay."""
    return published_level(*(Reading(key, name, step=step) for key in _curves("decayed")), form=form)


PUBLISHED = (
    Published(
        quantity="training loss at 20 % of the steps, none / moderate / large decay",
        published="3.66 / 3.68 / 3.73",
        where="figure 6",
        how="fig-read",
        ours=_ours("train/loss", ".3f", functools.partial(at_share, share=FIRST)),
    ),
    Published(
        quantity="training loss at the end",
        published="3.30 / 3.28 / 3.29",
        where="figure 6",
        how="fig-read",
        ours=_ours("train/loss", ".3f"),
    ),
    Published(
        quantity="training loss after the tiny-lr branch from the last point of the decayed run",
        published="3.27 / 3.24 / 3.225",
        where="figure 6",
        how="fig-read",
        ours=published_level(*(LastBranch(lam, "train/loss") for lam in LAMS), form=".3f"),
    ),
    Published(
        quantity="gradient norm at the end",
        published="0.28 / 0.37 / 0.57",
        where="figure 26",
        how="fig-read",
        ours=_ours("grad_norm", ".2f"),
    ),
    Published(
        quantity="weight norm at the end",
        published="860 / 430 / 295",
        where="figure 26",
        how="fig-read",
        ours=_ours("weight_norm", ".1f"),
    ),
)


def schedules_arms(setting: Setting) -> tuple[Arm, ...]:
    """All runs of the study in one setting."""
    return (
        *setting.run_arms("decayed"),
        *setting.run_arms("constant"),
        *setting.branch_arms("decayed", "tiny-lr", setting.decayed_shares),
        *setting.branch_arms("constant", "tiny-lr", setting.constant_shares),
        *setting.branch_arms("constant", "cooldown", (100,)),
    )


LM_SCHEDULES = Study(
    name="lm-schedules",
    title="Weight decay in one-pass language models: constant and decayed learning rates",
    source=f"{PAPER_TITLE}, section 3, figures 6, 23, 25 and 26",
    claim="Trained on each token once, weight decay is no regularizer: it raises the effective learning rate. So the loss is"
    " higher while the rate is large, and lower once it is small.",
    claims=CLAIMS,
    panels=PANELS,
    published=PUBLISHED,
    size_name="width",
    doc_panels=("decayed-gaps", "constant-gaps"),
    presets=presets(
        smoke=Preset(description="20 steps of a tiny MLP", budget="40 seconds", arms=schedules_arms(SMOKE)),
        laptop=Preset(
            description="a byte MLP of 13,600 parameters, 2000 steps of 1024 bytes of Python source",
            budget="10 minutes on 2 cores",
            arms=schedules_arms(LAPTOP),
        ),
        night=Preset(
            description=f"a GPT of two layers on Python source, at widths {NIGHT_WIDTHS}",
            budget="90 minutes on 2 cores",
            arms=tuple(arm for width in NIGHT_WIDTHS for arm in schedules_arms(NIGHT.at_width(width))),
            num_seeds=6,
            main_size=32,
        ),
        paper=Preset(
            description="GPT-2 with 124 M parameters on OpenWebText, 50,000 steps, context 256, and 1024 at three rates",
            budget="weeks on one GPU (a run of 50,000 steps at context 256: 12 hours of an A100)",
            arms=(
                *schedules_arms(PAPER_SETTING),
                *prefixed(LONG, "context 1024", PAPER_LONG.run_arms("decayed")),
            ),
            num_seeds=2,
            needs=PAPER_NEEDS,
        ),
    ),
)
