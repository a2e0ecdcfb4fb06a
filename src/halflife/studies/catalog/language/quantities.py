"""What the language-model studies measure: losses, what decay changes, and the best of a grid against the best without decay.

Losses are in nats per token. A difference is paired by seed and by block of validation tokens, and both count as samples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from halflife.studies.catalog.language.common import percent
from halflife.studies.catalog.language.settings import LONG, key_of
from halflife.studies.evidence.choice import leave_one_out
from halflife.studies.evidence.optimum import Optimum, lam_of, text_spec
from halflife.studies.evidence.quantities import Best, Measure, NotMeasuredError, Numbers, Quantity, Reading
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.rules import Premise, Rule
from halflife.studies.evidence.stats import Interval
from halflife.studies.evidence.tests import lowered
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.branches import TextBranch
from halflife.studies.specs.text import TextRun

__all__ = [
    "BLOCKS",
    "EARLY_MARGIN",
    "MIDWAY",
    "SMALLEST_EFFECT",
    "at_share",
    "best_against_best",
    "change",
    "change_after",
    "decayed_runs",
    "has_best",
    "have_minima",
    "in_nats",
    "loss",
    "minima",
    "nats",
    "no_best_value",
    "shares_of",
    "starting_with",
    "step_of",
]

BLOCKS = "val/loss_blocks"
SMALLEST_EFFECT = 0.002  # nats: a tenth of the paper's effect on text that is read once (3.30 against 3.28)
EARLY_MARGIN = 0.01  # nats: branches that end closer than half of the paper's effect nearly coincide
MIN_VALUES = 3  # a best one needs a lower and a higher one beside it
MIDWAY = 40  # per cent of a decayed run


def nats(interval: Interval) -> str:
    """A difference of losses in words."""
    return f"{interval.estimate:+.4f} [{interval.low:+.4f}, {interval.high:+.4f}] nats"


def in_nats(name: str, values: Measure | Callable[[Results, int], Numbers]) -> Quantity:
    """A loss, or a difference of losses, over seeds and blocks of validation tokens."""
    return Quantity(name=name, values=values, unit="nats", examples="blocks")


def loss(arm: str, *, average: str = "", step: Callable[[RunSpec], int] | None = None) -> Reading:
    """The validation loss of an arm by block.

    Args:
        arm: Its key.
        average: Of which average of the weights, such as ``"ema-0.99/"`` (empty: of the weights themselves).
        step: Where (``None``: at the end).

    Returns:
        Shape (S, N).
    """
    return Reading(arm, f"{average}{BLOCKS}", step=step)


def change(
    kind: str, lam: str, *, average: str = "", step: Callable[[RunSpec], int] | None = None, prefix: str = ""
) -> Measure:
    """The loss with a lam minus the loss without, at the main rate of a schedule.

    Args:
        kind: ``"constant"`` or ``"decayed"``.
        lam: The lam's name.
        average: As for `loss`.
        step: As for `loss`.
        prefix: What the keys of the model start with.

    Returns:
        Shape (S, N).
    """
    with_decay, without = (loss(f"{prefix}{key_of(kind, name)}", average=average, step=step) for name in (lam, "none"))
    return with_decay - without


def change_after(branch: str, kind: str, lam: str, share: int = 100) -> Measure:
    """The same at the end of branches from a share (per cent) of the runs."""
    return loss(f"{branch}-{kind}-{lam}-{share}") - loss(f"{branch}-{kind}-none-{share}")


def at_share(spec: RunSpec, share: int) -> int:
    """The step at a share (per cent) of a run, where branches start."""
    assert isinstance(spec, TextRun)
    return percent(spec.num_steps, (share,))[0]


def starting_with(results: Results, prefix: str, size: int) -> list[str]:
    """The keys at a size that start so, in the manifest's order: presets differ in how many rates they run."""
    return [arm["key"] for arm in results.arms if arm["size"] == size and arm["key"].startswith(prefix)]


def decayed_runs(results: Results, size: int, *, lams: Sequence[str]) -> list[str]:
    """Decayed runs with one of these lams at every rate; of a preset with runs of two contexts those of the longer one."""
    prefix = LONG if starting_with(results, f"{LONG}decayed-", size) else ""
    return [key for lam in lams for key in starting_with(results, f"{prefix}decayed-{lam}-", size)]


def shares_of(results: Results, branch: str, kind: str, size: int) -> list[int]:
    """The per cents of a run at which there are branches of a kind, in order."""
    prefix = f"{branch}-{kind}-none-"
    return sorted(int(key.removeprefix(prefix)) for key in starting_with(results, prefix, size))


def step_of(results: Results, kind: str, share: int, size: int) -> int:
    """The step of a run at which the branches of a share start."""
    spec = results.spec(f"tiny-lr-{kind}-none-{share}", size)
    assert isinstance(spec, TextBranch)
    return spec.at


Arms = Sequence[str] | Callable[[Results, int], Sequence[str]]


SETTINGS: Mapping[str, Callable[[TextRun], float]] = {
    "learning rate": lambda spec: spec.lr,
    "dropout": lambda spec: spec.dropout,
    "lam": lam_of,
}


def no_best_value(
    results: Results, size: int, *, arms: Arms, of: str, side: str = "without decay", name: str = BLOCKS
) -> str:
    """Why arms that differ in one setting alone do not show which value is best.

    Args:
        results: What the store holds.
        size: The size.
        arms: Their keys, or what gives them.
        of: The setting, one of `SETTINGS`.
        side: What the arms are, in words.
        name: The reading or array that the best is chosen by.

    Returns:
        The reason in words; empty where for every seed the value that is best on the other seeds has a lower and a higher one
        beside it, or is 0.
    """
    keys = arms(results, size) if callable(arms) else arms
    values = [SETTINGS[of](text_spec(results, key, size)) for key in keys]
    grid = sorted(set(values))
    if len(grid) < MIN_VALUES:
        tried = ", ".join(f"{value:g}" for value in grid)
        return f"the grid of the {of} {side} is {tried}, and a best value needs {MIN_VALUES}"
    num_seeds = len(results.seeds(size))
    scores_AS = np.array([results.read(key, name, size).reshape(num_seeds, -1).mean(axis=1) for key in keys])
    at_edge = sorted({values[arm] for arm in leave_one_out(scores_AS)} & {grid[0], grid[-1]} - {0.0})
    if not at_edge:
        return ""
    which = " and ".join(f"{value:g}" for value in at_edge)
    return f"{side} the best {of} on the other seeds is at an edge of its grid ({which}) for some seed"


def has_best(arms: Arms, *, of: str, side: str = "without decay", name: str = BLOCKS) -> Premise:
    """The premise that the best of some arms is a best one: another value of a setting would not do what decay does.

    Args:
        arms: As for `no_best_value`.
        of: Likewise.
        side: Likewise.
        name: Likewise.

    Returns:
        The premise.
    """
    return Premise(
        f"the arms {side} have at least {MIN_VALUES} values of {of}, and for no seed the best of them on the other seeds is at"
        " an edge of the grid other than 0",
        functools.partial(no_best_value, arms=arms, of=of, side=side, name=name),
    )


def best_against_best(
    words: str,
    with_decay: Arms,
    without: Arms,
    *,
    of: str = "learning rate",
    side: str = "without decay",
    name: str = BLOCKS,
    smallest: float = SMALLEST_EFFECT,
) -> Rule:
    """The best with decay lowers the loss below that of the best without, where another setting would not do the same.

    Args:
        words: The difference.
        with_decay: The arms with decay, or whatever is said to lower the loss.
        without: Those without.
        of: The setting that is tuned without, one of `SETTINGS`.
        side: What the arms without are, in words.
        name: The reading or array that is compared.
        smallest: The smallest improvement that counts.

    Returns:
        The rule.
    """
    effect = in_nats(words, Best(with_decay, name) - Best(without, name))
    return Rule(parts=((effect, lowered(smallest)),), given=(has_best(without, of=of, side=side, name=name),))


Optima = Callable[[Results, int], Sequence[Optimum]]


def no_minima(results: Results, size: int, *, optima: Optima) -> str:
    """Why some sweep has no best lam, in words; empty where all have one."""
    return "; ".join(optimum.problem for optimum in optima(results, size) if optimum.problem)


def have_minima(optima: Optima) -> Premise:
    """The premise of whatever rests on the best lams of sweeps."""
    return Premise(
        "the lowest loss of every sweep over lam is inside its grid, and in every seed the parabola through it and its two"
        " neighbours has its minimum between them",
        functools.partial(no_minima, optima=optima),
    )


def minima(results: Results, size: int, *, optima: Optima) -> Sequence[Optimum]:
    """The optima; `NotMeasuredError` if one is none."""
    if problem := no_minima(results, size, optima=optima):
        raise NotMeasuredError(problem)
    return optima(results, size)
