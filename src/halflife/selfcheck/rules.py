"""The table of rules: every rule of halflife in its variants, each with a reference that knows nothing of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, optim

from halflife import rules
from halflife.schedules import (
    after,
    cosine,
    join,
    linear,
    piecewise,
    restarts,
    tied_to_lr,
    until,
    warmup,
    warmup_stable_decay,
)
from halflife.selfcheck import refused
from halflife.selfcheck.optimizers import OptimizerCase
from halflife.selfcheck.problem import Net
from halflife.selfcheck.references import (
    AdamS,
    AdamWithPenalty,
    Formula,
    Fraction,
    Fractions,
    Masked,
    Penalty,
    Pulled,
    Reference,
    Rescaled,
    Seen,
    by_formula,
)
from halflife.units import batch_scaled

__all__ = ["ROUNDINGS", "RULES", "FormulaCase", "RuleCase", "goals"]

# How often a weight is rounded: the factor 1 - r, its product with w, the sum with the update, and the same sum of
# the twin. A difference from a reference, and its share, are two more; a norm, its root, a quotient and a product
# are four more; Adam written out rounds its moments, their corrections, the root and the quotient.
ROUNDINGS, PULLED, RESCALED, WRITTEN_OUT = 4, 6, 8, 12

LAM = 3.0  # r up to 0.3, so that a wrong factor shows in bfloat16 too
SHARE = 0.3  # where lam is the fraction itself
ALIKE, UNLIKE, SHARES = (LAM, LAM), (LAM, 2.0), (SHARE, 0.2)

Make = Callable[[Mapping[str, Tensor]], rules.Rule | rules.Applier | rules.Penalty]


@dataclass(frozen=True)
class RuleCase:
    """A rule, the reference for it, and the optimizers that must refuse it.

    Args:
        family: Its column in the table.
        name: A short name.
        make: Returns the rule for parameters, by name in the optimizer's order.
        reference: Returns the reference for a problem and an optimizer.
        own: The weight decay of the groups that decay.
        numbers: Further arguments of ``attach``.
        fractions: Whether it answers one fraction per group, which the optimizer's own decay may carry out.
        refused: Returns a part of the sentence with which an optimizer is refused, or None.
        everywhere: Whether it is run in float16 and bfloat16 too. Not where the reference is an optimizer
            written out, whose state in a low precision is another; and of the rules of plain numbers three
            show how all of them are carried out.
        roundings: How often a weight is rounded on its way.
    """

    family: str
    name: str
    make: Make
    reference: Callable[[Net, OptimizerCase], Reference]
    own: tuple[float, float] = ALIKE
    numbers: dict[str, float] = field(default_factory=dict)
    fractions: bool = False
    refused: Callable[[OptimizerCase], str | None] = lambda case: None
    everywhere: bool = True
    roundings: int = ROUNDINGS


@dataclass(frozen=True)
class FormulaCase(RuleCase):
    """A rule that depends on plain numbers only.

    Args:
        rule: The rule.
        formula: What it must answer, from the paper.
    """

    rule: rules.Rule = field(kw_only=True)
    formula: Formula = field(kw_only=True)


def of_numbers(
    name: str,
    rule: rules.Rule,
    formula: Formula,
    own: tuple[float, float] = ALIKE,
    numbers: dict[str, float] | None = None,
    *,
    must_refuse: Callable[[OptimizerCase], str | None] | None = None,
    everywhere: bool = False,
) -> FormulaCase:
    """Return the row of a rule that depends on plain numbers only.

    Args:
        name: A short name.
        rule: The rule.
        formula: What it must answer, from the paper.
        own: The weight decay of the groups that decay; given where the rule reads it.
        numbers: Further arguments of ``attach``.
        must_refuse: ``refused`` of `RuleCase`, where a rule needs more than its own lam.
        everywhere: Whether it is run in float16 and bfloat16 too.

    Returns:
        The row.
    """
    return FormulaCase(
        family=type(rule).__name__,
        name=name,
        make=lambda named: rule,
        reference=lambda net, optimizer: Fraction(by_formula(formula)),
        own=own,
        numbers=numbers or {},
        fractions=True,
        refused=must_refuse or (refused.needs_own if own is not ALIKE else lambda optimizer: None),
        everywhere=everywhere,
        rule=rule,
        formula=formula,
    )


def _wave(share: float) -> float:
    """Return half a cosine from 1 to 0, as the schedule multiplier of the AdamW paper has it."""
    return 0.5 + 0.5 * math.cos(math.pi * share)


def _period(t: int) -> tuple[int, int]:
    """Return steps since the last restart, and the length of the period: the i-th begins at 2 * (2^i - 1)."""
    i = (t // 2 + 1).bit_length() - 1
    return t - 2 * (2**i - 1), 2 ** (i + 1)


def _stable(lam: float | None, floor: float = 0.1) -> Callable[[OptimizerCase], Fractions]:
    """AdamS or SGDS, as the optimizer asks for."""

    def made(case: OptimizerCase) -> Fractions:
        if case.kind is not optim.SGD:
            return AdamS(lam, floor, [beta2 for _, beta2 in case.betas])
        momentum, dampening = case.settings.get("momentum", 0.0), case.settings.get("dampening", 0.0)
        factor = (1 - dampening) / (1 - momentum) if momentum else 1.0
        return by_formula(lambda lr, peak, own, t, group: lr * (own if lam is None else lam) * factor)

    return made


def _while_early(inner: Fractions) -> Fractions:
    return lambda seen: [r * (seen[0].step < 4) for r in inner(seen)]


def _by_group(*inner: Fractions) -> Fractions:
    """Each group has a rule of its own."""

    def made(seen: Sequence[Seen]) -> list[float]:
        answers = [fractions(seen) for fractions in inner]
        return [answers[each.group][index] for index, each in enumerate(seen)]

    return made


def goals(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors to decay towards: any numbers that are not the weights.

    Args:
        parameters: The parameters, by name.

    Returns:
        A tensor for each, by name.
    """
    return {
        name: torch.linspace(-1.5, 1.0, each.numel(), dtype=each.dtype).reshape(each.shape)
        for name, each in parameters.items()
    }


def _into(moment: Literal["first", "second"]) -> RuleCase:
    return RuleCase(
        "L2(into=)",
        f"l2 into the {moment} moment",
        lambda named: rules.L2(SHARE, into=moment),
        lambda net, case: AdamWithPenalty(
            SHARE,
            first=moment == "first",
            betas=case.betas,
            eps=case.settings["eps"],
            amsgrad=case.settings.get("amsgrad", False),
        ),
        refused=refused.moment,
        everywhere=False,
        roundings=WRITTEN_OUT,
    )


decoupled = by_formula(lambda lr, peak, own, t, group: lr * LAM)
tenth = by_formula(lambda lr, peak, own, t, group: 0.1)
own_corrected = by_formula(lambda lr, peak, own, t, group: lr * lr / peak * own)

RULES = [
    of_numbers("decoupled", rules.Decoupled(LAM), lambda lr, peak, own, t, group: lr * LAM),
    of_numbers("decoupled, own", rules.Decoupled(), lambda lr, peak, own, t, group: lr * own, UNLIKE, everywhere=True),
    of_numbers("independent", rules.Independent(SHARE), lambda lr, peak, own, t, group: lr / peak * SHARE),
    of_numbers("constant", rules.Constant(SHARE / 2), lambda lr, peak, own, t, group: SHARE / 2),
    of_numbers(
        "corrected", rules.Corrected(LAM), lambda lr, peak, own, t, group: lr * lr / peak * LAM, everywhere=True
    ),
    of_numbers("corrected, own", rules.Corrected(), lambda lr, peak, own, t, group: lr * lr / peak * own, UNLIKE),
    of_numbers("half-life, steps", rules.HalfLife(steps=3), lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 3)),
    of_numbers(
        "half-life, epochs",
        rules.HalfLife(epochs=2),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 5),
        numbers={"steps_per_epoch": 2.5},
    ),
    of_numbers(
        "half-life, tokens",
        rules.HalfLife(tokens=70),
        lambda lr, peak, own, t, group: 1 - 0.5 ** (1 / 7),
        numbers={"tokens_per_step": 10},
    ),
    of_numbers(
        "normalized", rules.Normalized(0.9, steps=9), lambda lr, peak, own, t, group: lr / peak * 0.9 * math.sqrt(1 / 9)
    ),
    of_numbers(  # periods of 2, 4, 8 ... steps: AdamWR
        "normalized, restarts",
        rules.Normalized(0.4, steps=2, factor=2),
        lambda lr, peak, own, t, group: lr / peak * 0.4 / math.sqrt(_period(t)[1]),
    ),
    of_numbers(
        "batch-scaled", rules.Decoupled(batch_scaled(LAM, 32, 64)), lambda lr, peak, own, t, group: lr * LAM * 32 / 64
    ),
    of_numbers(
        "until", rules.Scheduled(rules.Decoupled(LAM), until(2)), lambda lr, peak, own, t, group: lr * LAM * (t < 2)
    ),
    of_numbers(
        "after", rules.Scheduled(rules.Decoupled(LAM), after(2)), lambda lr, peak, own, t, group: lr * LAM * (t >= 2)
    ),
    of_numbers(
        "cosine",
        rules.Scheduled(rules.Independent(SHARE), cosine(1.0, 0.2, 4)),
        lambda lr, peak, own, t, group: lr / peak * SHARE * (0.2 + 0.8 * _wave(min(t, 4) / 4)),
    ),
    of_numbers(
        "linear",
        rules.Scheduled(rules.Decoupled(LAM), linear(0.0, 1.0, 4)),
        lambda lr, peak, own, t, group: lr * LAM * min(t, 4) / 4,
    ),
    of_numbers(
        "warm-up, then cosine",
        rules.Scheduled(rules.Decoupled(LAM), join((warmup(2), cosine(1.0, 0.0, 4)), (2,))),
        lambda lr, peak, own, t, group: lr * LAM * (t / 2 if t < 2 else _wave(min(t - 2, 4) / 4)),
    ),
    of_numbers(
        "warm-up, stable, decay",
        rules.Scheduled(rules.Decoupled(LAM), warmup_stable_decay(2, 2, 4)),
        lambda lr, peak, own, t, group: lr * LAM * (t / 2 if t < 2 else 1.0 if t < 4 else max(0.0, (8 - t) / 4)),
    ),
    of_numbers(
        "piecewise",
        rules.Scheduled(rules.Decoupled(LAM), piecewise((1.0, 0.5, 0.8), (1, 4))),
        lambda lr, peak, own, t, group: lr * LAM * (1.0 if t < 1 else 0.5 if t < 4 else 0.8),
    ),
    of_numbers(  # periods of 2, 4, 8 ... steps
        "restarts",
        rules.Scheduled(rules.Constant(SHARE), restarts(2, 2, 1.0, 0.5)),
        lambda lr, peak, own, t, group: SHARE * (0.5 + 0.5 * _wave(_period(t)[0] / _period(t)[1])),
    ),
    of_numbers(
        "tied to lr",
        rules.Scheduled(rules.Decoupled(), tied_to_lr(2)),
        lambda lr, peak, own, t, group: lr * own * (lr / peak) ** 2,
        UNLIKE,
    ),
    of_numbers(
        "per group",
        rules.PerGroup([rules.Decoupled(LAM), rules.Constant(0.1), rules.Decoupled(9.0)]),
        lambda lr, peak, own, t, group: (lr * LAM, 0.1, lr * 9.0)[group],
        must_refuse=refused.per_group,
        everywhere=True,
    ),
    RuleCase(
        "Stable",
        "stable",
        lambda named: rules.Stable(0.4),
        lambda net, case: Fraction(_stable(0.4)(case)),
        refused=refused.stable,
        fractions=True,
    ),
    RuleCase(
        "Stable",
        "stable, own, no floor",
        lambda named: rules.Stable(floor=0.0),
        lambda net, case: Fraction(_stable(None, 0.0)(case)),
        own=(0.8, 0.5),
        refused=refused.own_stable,
        fractions=True,
    ),
    RuleCase(
        "Stable",
        "stable, at the floor, until",
        lambda named: rules.Scheduled(rules.Stable(0.4, floor=0.8), until(4)),
        lambda net, case: Fraction(_while_early(_stable(0.4, 0.8)(case))),
        refused=refused.stable,
        fractions=True,
    ),
    RuleCase(
        "Stable(beta2=)",
        "stable with a given beta2",
        lambda named: rules.Stable(0.4, beta2=0.9),
        lambda net, case: Fraction(AdamS(0.4, 0.1, (0.9, 0.9, 0.9))),
        refused=refused.any_stable,
        fractions=True,
    ),
    RuleCase(
        "PerGroup",
        "per group, stable",
        lambda named: rules.PerGroup(
            [rules.Stable(0.4), rules.Scheduled(rules.Constant(0.1), until(4)), rules.Decoupled(9.0)]
        ),
        lambda net, case: Fraction(_by_group(_stable(0.4)(case), _while_early(tenth), decoupled)),
        refused=refused.per_group_stable,
        fractions=True,
    ),
    RuleCase(
        "NormTarget",
        "norm target",
        lambda named: rules.NormTarget(2.0),
        lambda net, case: Rescaled(2.0, whole=False),
        roundings=RESCALED,
    ),
    RuleCase(
        "NormTarget",
        "norm target, first",
        lambda named: rules.NormTarget(),
        lambda net, case: Rescaled(None, whole=False),
        roundings=RESCALED,
    ),
    RuleCase(
        "Sphere",
        "sphere",
        lambda named: rules.Sphere(3.0),
        lambda net, case: Rescaled(3.0, whole=True),
        roundings=RESCALED,
    ),
    RuleCase(
        "Sphere",
        "sphere, first",
        lambda named: rules.Sphere(),
        lambda net, case: Rescaled(None, whole=True),
        roundings=RESCALED,
    ),
    RuleCase(
        "Sphere",
        "spheres",
        lambda named: rules.Sphere(1.5, per="tensor"),
        lambda net, case: Rescaled(1.5, whole=False),
        roundings=RESCALED,
    ),
    RuleCase(
        "Cautious", "cautious", lambda named: rules.Cautious(rules.Decoupled(LAM)), lambda net, case: Masked(decoupled)
    ),
    RuleCase(
        "Cautious",
        "cautious corrected, own",
        lambda named: rules.Cautious(rules.Corrected()),
        lambda net, case: Masked(own_corrected),
        own=UNLIKE,
        refused=refused.needs_own,
    ),
    RuleCase(
        "Cautious",
        "cautious stable",
        lambda named: rules.Cautious(rules.Stable(0.4)),
        lambda net, case: Masked(_stable(0.4)(case)),
        refused=refused.stable,
    ),
    RuleCase(
        "Toward",
        "toward init",
        lambda named: rules.Toward(rules.Decoupled(LAM)),
        lambda net, case: Pulled(decoupled),
        roundings=PULLED,
    ),
    RuleCase(
        "Toward",
        "toward an average",
        lambda named: rules.Toward(rules.Corrected(), rules.MovingAverage(0.7)),
        lambda net, case: Pulled(own_corrected, beta=0.7),
        own=UNLIKE,
        refused=refused.needs_own,
        roundings=PULLED,
    ),
    RuleCase(
        "Toward",
        "toward given tensors",
        lambda named: rules.Toward(rules.Decoupled(LAM), list(goals(named).values())),
        lambda net, case: Pulled(decoupled, list(goals(net.named).values())),
        roundings=PULLED,
    ),
    RuleCase(
        "Toward",
        "toward a checkpoint",
        lambda named: rules.Toward(rules.Decoupled(LAM), goals(named)),
        lambda net, case: Pulled(decoupled, list(goals(net.named).values())),
        refused=lambda case: "does not know the names" if case.closure else None,
        roundings=PULLED,
    ),
    RuleCase(
        "Toward",
        "toward given tensors, stable",
        lambda named: rules.Toward(rules.Stable(0.4), list(goals(named).values())),
        lambda net, case: Pulled(_stable(0.4)(case), list(goals(net.named).values())),
        refused=refused.stable,
        roundings=PULLED,
    ),
    RuleCase(
        "L2",
        "l2",
        lambda named: rules.L2(SHARE),
        lambda net, case: Penalty(lambda own, t: SHARE),
        refused=refused.penalty,
    ),
    RuleCase(
        "L2",
        "l2, own, after",
        lambda named: rules.L2(schedule=after(2)),
        lambda net, case: Penalty(lambda own, t: own * (t >= 2)),
        own=SHARES,
        refused=refused.own_penalty,
    ),
    _into("first"),
    _into("second"),
]
