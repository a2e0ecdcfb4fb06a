"""The figures of `lm-schedules`, in the paper's order, and the paper's numbers."""

from __future__ import annotations

import functools

from halflife.studies.catalog.language import quantities as rules
from halflife.studies.catalog.language.figures import along_a_run, by_rate, gaps_along_a_run, three
from halflife.studies.catalog.language.settings import LAMS, key_of
from halflife.studies.evidence.claims import Panel, PointsPanel, Published
from halflife.studies.evidence.results import Results

__all__ = ["PANELS", "PUBLISHED"]


def _curves(kind: str) -> tuple[str, ...]:
    return tuple(key_of(kind, lam) for lam in LAMS)


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
        rows=functools.partial(along_a_run, kind="decayed"),
        source_figure="figure 6",
        note="Means over seeds with 95 % intervals over seeds alone, which is what different seeds differ by.",
    ),
    PointsPanel(
        slug="decayed-gaps",
        title="What decay changes along the decayed run, before and after a tiny-lr branch",
        x_label="step at which the branch starts",
        y_label="loss with decay minus without (nats per token)",
        rows=functools.partial(gaps_along_a_run, kind="decayed"),
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
        rows=functools.partial(gaps_along_a_run, kind="constant"),
        note="Differences paired by seed, with 95 % intervals over seeds alone.",
    ),
    PointsPanel(
        slug="rates",
        title="Final loss against the learning rate, decayed",
        x_label="peak learning rate",
        y_label="validation loss (nats per token)",
        rows=functools.partial(by_rate, kind="decayed"),
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


def _at_first_share(results: Results) -> str:
    step = rules.step_of(results, "decayed", 20, results.main_size)
    return three(results, _curves("decayed"), "train/loss", step)


def _after_last_branch(results: Results) -> str:
    share = rules.shares_of(results, "tiny-lr", "decayed", results.main_size)[-1]
    return three(results, [f"tiny-lr-decayed-{lam}-{share}" for lam in LAMS], "train/loss")


def _at_the_end(metric: str, digits: int) -> functools.partial[str]:
    return functools.partial(three, keys=_curves("decayed"), metric=metric, digits=digits)


PUBLISHED = (
    Published(
        quantity="training loss at 20 % of the steps, none / moderate / large decay",
        published="3.66 / 3.68 / 3.73",
        where="figure 6",
        how="fig-read",
        ours=_at_first_share,
    ),
    Published(
        quantity="training loss at the end",
        published="3.30 / 3.28 / 3.29",
        where="figure 6",
        how="fig-read",
        ours=_at_the_end("train/loss", 3),
    ),
    Published(
        quantity="training loss after the tiny-lr branch from the last point of the decayed run",
        published="3.27 / 3.24 / 3.225",
        where="figure 6",
        how="fig-read",
        ours=_after_last_branch,
    ),
    Published(
        quantity="gradient norm at the end",
        published="0.28 / 0.37 / 0.57",
        where="figure 26",
        how="fig-read",
        ours=_at_the_end("grad_norm", 2),
    ),
    Published(
        quantity="weight norm at the end",
        published="860 / 430 / 295",
        where="figure 26",
        how="fig-read",
        ours=_at_the_end("weight_norm", 0),
    ),
)
