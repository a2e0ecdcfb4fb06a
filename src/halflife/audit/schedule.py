"""What the schedulers beside an optimizer do to its decay: the largest learning rate, and what the whole run removes."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from halflife.audit.explanation import Explanation
from halflife.audit.found import Found

__all__ = ["rates_of", "schedule_sentences"]

MOST_STEPS = 100_000  # a step of a schedule takes about 10 us


def rates_of(scheduler: LRScheduler, steps: int) -> list[list[float]]:
    """Walk a copy of a schedule; neither the scheduler nor its optimizer changes.

    Args:
        scheduler: The scheduler, as it is now.
        steps: How many optimizer steps.

    Returns:
        For each parameter group the learning rate of each step.
    """
    groups = scheduler.optimizer.param_groups
    # An optimizer with the same numbers in its groups and another parameter in each.
    stand_in = SGD([{"params": [nn.Parameter(torch.zeros(()))], "lr": 0.0} for _ in groups], lr=0.0)
    for group, own in zip(stand_in.param_groups, groups, strict=True):
        group.update({key: value for key, value in own.items() if key != "params"})
    walked = copy.deepcopy(scheduler, {id(scheduler.optimizer): stand_in})
    rates: list[list[float]] = [[] for _ in groups]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the optimizer has not stepped
        for _ in range(steps):
            for group, found in zip(stand_in.param_groups, rates, strict=True):
                found.append(float(group["lr"]))
            walked.step()
    return rates


def schedule_sentences(found: Found, table: Explanation, total_steps: float | None) -> list[str]:
    """Tell what the schedulers do to the decay over the run.

    Args:
        found: What is audited.
        table: Its explanation.
        total_steps: The length of the run; without it a schedule is walked only if it knows its own.

    Returns:
        One sentence for each scheduler and kind of group.
    """
    said: dict[tuple[str, str], dict[int, list[int]]] = {}  # groups of each optimizer; none where it is not followed
    for scheduler in found.schedulers:
        name = type(scheduler).__name__
        if isinstance(scheduler, ReduceLROnPlateau):
            said[name, " follows a measurement, so what it does to the learning rate is not known before"] = {}
            continue
        steps = int(total_steps or getattr(scheduler, "total_steps", 0) or 0)
        if not steps:
            said[name, " is not followed: give the length of the run with --total-steps"] = {}
            continue
        try:
            rates = rates_of(scheduler, min(steps, MOST_STEPS))
        except Exception as error:  # whatever a schedule of the user's own raises
            said[name, f" is not followed: a copy of it cannot be walked ({type(error).__name__}: {error})"] = {}
            continue
        number = next(i for i, each in enumerate(found.optimizers) if each is scheduler.optimizer)
        for index, group_rates in enumerate(rates):
            sentence = _of_group(table, number, index, group_rates, steps)
            said.setdefault((name, sentence), {}).setdefault(number, []).append(index)
    return [
        f"{name}, stepped once per step, on {_listed(groups)}: {sentence}" if groups else name + sentence
        for (name, sentence), groups in said.items()
    ]


def _listed(groups: Mapping[int, Sequence[int]]) -> str:
    """Name the groups of some optimizers."""
    alike: dict[tuple[int, ...], list[int]] = {}
    for number, indices in groups.items():
        alike.setdefault(tuple(indices), []).append(number)
    return ", ".join(
        f"{_counted('group', indices)} of {_counted('optimizer', numbers)}" for indices, numbers in alike.items()
    )


def _counted(what: str, numbers: Sequence[int]) -> str:
    more = ", ..." if len(numbers) > 6 else ""
    return f"{what}{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers[:6]))}{more}"


def _of_group(table: Explanation, optimizer: int, index: int, rates: Sequence[float], steps: int) -> str:
    peak = max(rates)
    at = rates.index(peak)
    if (below := next((step for step, rate in enumerate(rates) if rate < 0.0), None)) is not None:
        return (
            f"lr {rates[0]:.4g}, at most {peak:.4g} (step {at:,}), and below 0 from step {below:,} on: it is meant to be "
            "stepped less often, per epoch perhaps, or --total-steps is too large"
        )
    walked = len(rates)
    start = f"lr {rates[0]:.4g}, at most {peak:.4g} (step {at:,}), {rates[-1]:.4g} at step {walked - 1:,}"
    group = next((each for each in table.groups if (each["optimizer"], each["group"]) == (optimizer, index)), None)
    r, lr, exponent = _fraction(table, group)
    if r is None or not lr or exponent is None:
        return start
    at_peak = r * (peak / lr) ** exponent
    if not 0.0 < at_peak < 1.0:
        return start
    fractions = [r * (rate / lr) ** exponent if rate or not exponent else 0.0 for rate in rates]
    kept = math.exp(sum(math.log1p(-each) for each in fractions))
    whole = f"these {walked:,} steps" if walked < steps else f"the run of {steps:,} steps"
    return (
        f"{start}; at most r {at_peak:.4g}, half-life {math.log(2) / -math.log1p(-at_peak):,.0f} steps; over {whole} an "
        f"untouched weight that decays keeps {kept:.1%} of its size"
    )


def _fraction(table: Explanation, group: dict[str, Any] | None) -> tuple[float | None, float | None, float | None]:
    """Return r, the learning rate at which it holds, and the power of the learning rate with which it grows."""
    if group is None or group["rule"] is not None or group["r"] is None:
        return None, None, None
    laws = [
        each.law
        for row in table.parameters
        for each in row.groups
        if (each.optimizer, each.index) == (group["optimizer"], group["group"])
    ]
    return group["r"], group["r_lr"], laws[0].lr_exponent if laws else None
