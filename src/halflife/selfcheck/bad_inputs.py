"""The table of bad inputs: what a user may get wrong, and a part of the sentence that must answer it.

A step that is refused must leave the weights as they are; `in_a_step` checks that too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.optim import LBFGS, SGD, Adam, Adamax, AdamW, Optimizer, Rprop

from halflife.errors import UserError
from halflife.optim.actions import LowPrecision
from halflife.optim.attaching import attach
from halflife.rules import (
    L2,
    Applier,
    Cautious,
    Constant,
    Corrected,
    Decoupled,
    HalfLife,
    Independent,
    MovingAverage,
    Normalized,
    NormTarget,
    Penalty,
    PerGroup,
    Rule,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import join, restarts, tied_to_lr, until, warmup_stable_decay
from halflife.selfcheck.optimizers import MUON

__all__ = ["BAD_INPUTS", "BadInput", "answer", "groups_of", "in_a_step", "toy"]


@dataclass(frozen=True)
class BadInput:
    """A mistake and the sentence that it gets.

    Args:
        name: A short name.
        act: Makes the mistake.
        message: A part of the sentence.
    """

    name: str
    act: Callable[[], object]
    message: str


def answer(case: BadInput) -> str | None:
    """Make the mistake, and tell what is wrong with the answer.

    Args:
        case: The mistake.

    Returns:
        None if it was refused with its sentence, and nothing was touched.
    """
    try:
        case.act()
    except UserError as raised:
        return None if case.message in str(raised) else f"another sentence: {raised}"
    except Exception as raised:  # the sentence is missing; other cases still run
        return f"{type(raised).__name__}: {raised}"
    return f"not refused, expected: {case.message}"


def toy(kind: Callable[..., Optimizer] = SGD, **settings: Any) -> tuple[torch.nn.Parameter, Optimizer]:
    """Return one weight of ones with a zero gradient, so that only decay moves it, and its optimizer."""
    weight = torch.nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.zeros_like(weight)
    return weight, kind([weight], **settings)


def groups_of(*decays: float) -> list[dict[str, Any]]:
    """Return a group of one number for each weight decay."""
    return [{"params": [torch.nn.Parameter(torch.ones(1))], "weight_decay": decay} for decay in decays]


def in_a_step(
    rule: Rule | Applier | Penalty, lr: Any = 0.1, gradient: float = 0.0, *, sparse: bool = False, **settings: Any
) -> None:
    """Take a step that must be refused.

    Args:
        rule: The rule.
        lr: The learning rate of the step.
        gradient: The gradient of each weight.
        sparse: Whether it is sparse.
        settings: Settings of the optimizer; ``kind`` is its class.

    Raises:
        UserError: The refusal.
        AssertionError: If the refused step changed something.
    """
    weight, optimizer = toy(settings.pop("kind", SGD), lr=0.1, weight_decay=settings.pop("own", 5.0), **settings)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    given = torch.full_like(weight, gradient)
    weight.grad = given.to_sparse() if sparse else given
    attach(optimizer, rule)
    before = optimizer.param_groups[0]["weight_decay"]
    optimizer.param_groups[0]["lr"] = lr
    try:
        optimizer.step()
    except UserError:
        if not torch.equal(weight.detach(), torch.ones(2, 2)):
            raise AssertionError("a refused step touched a weight") from None
        if optimizer.param_groups[0]["weight_decay"] != before:
            raise AssertionError("a refused step left another weight_decay") from None
        raise


def _decaying(kind: Callable[..., Optimizer] = SGD, **settings: Any) -> Optimizer:
    return toy(kind, lr=0.1, weight_decay=1.0, **settings)[1]


def _in_few_bits(rule: Rule | Applier | Penalty, low_precision: LowPrecision) -> None:
    weight = torch.nn.Parameter(torch.ones(2, dtype=torch.bfloat16))
    attach(SGD([weight], lr=0.1, weight_decay=1.0), rule, low_precision=low_precision)


def _unequal() -> Optimizer:
    return SGD(groups_of(0.1, 0.0, 0.3), lr=0.1)


class Wrapper:
    """Holds an optimizer, as some libraries do."""

    def __init__(self) -> None:
        self.optimizer = toy(lr=0.1)[1]


def _with_references(references: Any) -> None:
    weight, optimizer = toy(lr=0.1, weight_decay=1.0)
    named = SGD([("layer.weight", weight)], lr=0.1, weight_decay=1.0)
    chosen = named if isinstance(references, dict) and "unnamed" not in references else optimizer
    attach(chosen, Toward(Decoupled(0.1), references))
    chosen.step()


def _too_many_norms() -> None:
    first, second = _decaying(), _decaying()
    attach([first, second], NormTarget(1.0)).hand_over_norm(1.0)


def _second_group() -> None:
    optimizer = SGD(groups_of(0.1, 0.3), lr=0.1)
    for group in optimizer.param_groups:
        group["params"][0].grad = torch.zeros(1)
    attach(optimizer, PerGroup([A]))
    optimizer.step()


A, B = Decoupled(0.1), torch.ones(2, 2)

BAD_INPUTS = [
    # ---- attach
    BadInput("no optimizer", lambda: attach(torch.nn.Identity(), A), "expected a torch.optim.Optimizer"),  # type: ignore[arg-type]  # on purpose
    BadInput("a wrapper", lambda: attach(Wrapper(), A), "got Wrapper; pass the optimizer inside it"),  # type: ignore[arg-type]  # on purpose
    BadInput("no optimizers", lambda: attach([], A), "empty sequence of optimizers"),
    BadInput("one twice", lambda: attach([_decaying()] * 2, A), "the same optimizer twice"),
    BadInput("a class", lambda: attach(_decaying(), Decoupled), "a rule such as Decoupled(...), got <class"),  # type: ignore[arg-type]  # on purpose
    BadInput("a number", lambda: attach(_decaying(), 0.1), "such as halflife.Decoupled(0.1), got 0.1"),  # type: ignore[arg-type]  # on purpose
    BadInput("select", lambda: attach(_decaying(), A, select="some"), "or \"all\", got 'some'"),  # type: ignore[arg-type]  # on purpose
    BadInput("low precision", lambda: attach(_decaying(), A, low_precision="round"), 'or one of "accumulate", "sto'),  # type: ignore[arg-type]  # on purpose
    BadInput("a remedy for nothing", lambda: attach(_decaying(), A, low_precision="error"), "got float32 only: leave"),
    BadInput("a remedy for no rule", lambda: _in_few_bits(Cautious(A), "accumulate"), "serves rules whose fraction"),
    BadInput("rounded away", lambda: _in_few_bits(Constant(1e-3), "error"), "rounded away: weights in its precision"),
    BadInput("peak", lambda: attach(_decaying(), Independent(0.1), peak_lr=0.0), "peak_lr must be > 0"),
    BadInput("epochs", lambda: attach(_decaying(), HalfLife(epochs=2)), "needs steps_per_epoch: pass attach"),
    BadInput("tokens", lambda: attach(_decaying(), HalfLife(tokens=2)), "needs tokens_per_step: pass attach"),
    BadInput("nothing decays", lambda: attach(toy(lr=0.1)[1], A), "Build groups that say what decays"),
    BadInput("no setting", lambda: attach(toy(Rprop, lr=0.1)[1], A), "no weight_decay setting that could say"),
    BadInput("no own value", lambda: attach(toy(Rprop, lr=0.1)[1], Constant(), select="all"), "give the rule a lam"),
    BadInput("own value 0", lambda: attach(toy(lr=0.1)[1], Cautious(Constant()), select="all"), "is 0 in all of them"),
    BadInput("unequal", lambda: attach(_unequal(), A), "different weight_decay values 0.1, 0.3 of the groups"),
    BadInput("unequal, scheduled", lambda: attach(_unequal(), Scheduled(A, until(3))), "different weight_decay values"),
    BadInput("unequal, penalty", lambda: attach(_unequal(), L2(0.1)), "different weight_decay values"),
    BadInput("unequal, cautious", lambda: attach(_unequal(), Cautious(A)), "different weight_decay values"),
    BadInput("unequal, toward", lambda: attach(_unequal(), Toward(A)), "different weight_decay values"),
    BadInput("a penalty on LBFGS", lambda: attach(toy(LBFGS)[1], L2(0.1), select="all"), "LBFGS: its line search"),
    BadInput("a moment of SGD", lambda: attach(_decaying(), L2(0.1, into="first")), "expected torch's Adam or AdamW"),
    BadInput(
        "a moment without memory",
        lambda: attach(_decaying(Adam, betas=(0.0, 0.9)), L2(0.1, into="second")),
        "got beta1 = 0; expected beta1 > 0",
    ),
    *(
        []
        if MUON is None
        else [
            BadInput(
                "Stable on Muon", lambda: attach(_decaying(MUON), Stable(0.1)), "Stable cannot be attached to Muon"
            )
        ]
    ),
    BadInput("Stable on AMSGrad", lambda: attach(_decaying(AdamW, amsgrad=True), Stable(0.1)), "use amsgrad=False"),
    BadInput("Stable elsewhere", lambda: attach(_decaying(Adamax), Stable(0.1)), "Stable(..., beta2=0.999)"),
    BadInput(
        "two values of beta2",
        lambda: attach(Adamax(groups_of(1.0, 1.0), lr=0.1), PerGroup([Stable(1.0, beta2=0.9), Stable(1.0, beta2=0.8)])),
        "one optimizer has one running mean",
    ),
    BadInput("one sphere, two nets", lambda: attach([_decaying(), _decaying()], Sphere(1.0)), 'or use per="tensor"'),
    BadInput("norms of two", _too_many_norms, "hand_over_norm serves one optimizer, this handle has 2"),
    BadInput(
        "a norm for nothing",
        lambda: attach(_decaying(), A).hand_over_norm(1.0),
        "measures no gradients on this optimizer",
    ),
    # ---- rules
    *(
        BadInput(f"{make.__name__}({lam})", lambda make=make, lam=lam: make(lam), "lam must be a finite number >= 0")  # type: ignore[misc]  # defaults bind the loop's values
        for make in (Decoupled, Independent, Constant, Corrected, Stable, L2)
        for lam in (-0.1, math.nan, math.inf)
    ),
    BadInput("Independent(1)", lambda: Independent(1.0), "is a fraction of the weight per step and must be < 1"),
    BadInput("Constant(1)", lambda: Constant(1.0), "is a fraction of the weight per step and must be < 1"),
    BadInput("no half-life", HalfLife, "exactly one of steps=, epochs= and tokens=, got none"),
    BadInput("two half-lives", lambda: HalfLife(steps=1, tokens=2), "got steps, tokens"),
    BadInput("half-life 0", lambda: HalfLife(steps=0), "the half-life in steps must be > 0"),
    BadInput("half-life too short", lambda: HalfLife(steps=0.001), "erases the weight in one step"),
    BadInput("half-life NaN", lambda: HalfLife(tokens=math.nan), "the half-life in tokens must be > 0"),
    BadInput("normalized steps", lambda: Normalized(0.1), "steps must be a finite number >= 1, got 0"),
    BadInput("normalized factor", lambda: Normalized(0.1, steps=3, factor=0.5), "factor must be a finite number >= 1"),
    BadInput("floor", lambda: Stable(0.1, floor=-1.0), "floor must be a finite number >= 0"),
    BadInput("beta2", lambda: Stable(0.1, beta2=1.0), "beta2 must satisfy 0 <= beta2 < 1, got 1.0"),
    BadInput("norm 0", lambda: NormTarget(0.0), "norm must be > 0"),
    BadInput("norm infinite", lambda: NormTarget(math.inf), "norm must be a finite number > 0"),
    BadInput("radius 0", lambda: Sphere(0.0), "radius must be > 0"),
    BadInput("radius NaN", lambda: Sphere(math.nan), "radius must be > 0"),
    BadInput("sphere per layer", lambda: Sphere(1.0, per="layer"), 'per must be "net" or "tensor"'),  # type: ignore[arg-type]  # on purpose
    BadInput("beta of an average", lambda: MovingAverage(1.0), "beta must satisfy 0 <= beta < 1, got 1.0"),
    BadInput("reference", lambda: Toward(A, "end"), 'a reference is "init", a MovingAverage, or tensors'),
    BadInput("into", lambda: L2(0.1, into="third"), 'into must be "both", "first" or "second"'),  # type: ignore[arg-type]  # on purpose
    BadInput("L2 tied to lr", lambda: L2(0.1, tied_to_lr()), "L2 takes a schedule of the step"),  # type: ignore[arg-type]  # on purpose
    BadInput("L2 of a number", lambda: L2(0.1, 0.5), "expected a schedule, got 0.5"),  # type: ignore[arg-type]  # on purpose
    BadInput("scheduled penalty", lambda: Scheduled(L2(0.1), tied_to_lr()), "L2 takes a schedule of the step"),
    BadInput("no schedule", lambda: Scheduled(A, 0.5), "expected a schedule, got 0.5"),  # type: ignore[arg-type]  # on purpose
    BadInput("cautious pull", lambda: Cautious(Toward(A)), "which of the two signs would count is not defined"),  # type: ignore[arg-type]  # on purpose
    BadInput("cautious sphere", lambda: Cautious(Sphere(1.0)), "sets the norm of the weights after the step"),
    BadInput("scheduled norm", lambda: Scheduled(NormTarget(1.0), until(3)), "it holds a norm"),
    BadInput("no rules", lambda: PerGroup([]), "one rule per parameter group, got none"),
    BadInput("rules of numbers", lambda: PerGroup([A, 0.2]), "PerGroup wraps a rule such as"),  # type: ignore[list-item]  # on purpose
    BadInput("joined, tied", lambda: join((until(1), tied_to_lr()), (5,)), "join takes schedules of the step"),  # type: ignore[arg-type]  # on purpose
    BadInput("restarts", lambda: restarts(2, 0.5), "factor must be a finite number >= 1"),
    BadInput("no stable phase", lambda: warmup_stable_decay(1, 0, 1), "stable must be a whole number of steps >= 1"),
    # ---- a step; nothing may be touched
    *(
        BadInput(f"{name}, {how}", lambda rule=rule, lr=lr, mu=mu: in_a_step(rule, lr, momentum=mu), message)  # type: ignore[misc]  # defaults bind the loop's values
        for how, mu in (("native", 0.0), ("own pass", 0.9))
        for name, rule, lr, message in (
            (
                "r too large",
                Decoupled(20.0),
                0.1,
                "r = 2.0 of the weights in parameter group 0 at lr = 0.1, lam = 20.0",
            ),
            ("r = 1", Decoupled(10.0), 0.1, "r = 1.0 of the weights"),
            ("r of its own", Decoupled(), 0.3, "r = 1.5 of the weights"),
            ("r is NaN", Scheduled(HalfLife(steps=3), lambda step: math.nan), 0.1, "r = nan of the weights"),
            ("r < 0", Scheduled(A, lambda step: -1.0), 0.1, "r = -0.0"),
            ("no lr", A, None, "lr of parameter group 0 is None"),
            ("negative lr", A, -0.1, "lr of parameter group 0 is -0.1"),
            ("lr is NaN", A, math.nan, "lr of parameter group 0 is nan"),
            ("lr is infinite", A, math.inf, "lr of parameter group 0 is inf"),
            ("above the peak", Independent(0.1), 0.2, "is above its peak_lr = 0.1"),
            ("negative penalty", L2(0.1, lambda step: -1.0), 0.1, "coefficient -0.1 in parameter group 0"),
            ("cautious r = 1", Cautious(Decoupled(10.0)), 0.1, "r = 1.0 of the weights"),
            ("toward, r = 1", Toward(Decoupled(10.0)), 0.1, "r = 1.0 of the weights"),
        )
    ),
    BadInput("vanished gradient", lambda: in_a_step(Stable(1.0, floor=0.0), kind=AdamW), "r = inf of the weights"),
    BadInput("tiny gradient", lambda: in_a_step(Stable(1.0, floor=0.0), 0.1, 1e-3, kind=AdamW), "r = 99.99"),
    BadInput(
        "NaN gradient",
        lambda: in_a_step(Stable(1.0), 0.1, math.nan, kind=AdamW),
        "got gradients that are infinite or NaN",
    ),
    BadInput(
        "sparse gradient",
        lambda: in_a_step(Stable(1.0, beta2=0.9), 0.1, 1.0, sparse=True),
        "Stable cannot follow sparse gradients",
    ),
    BadInput("sparse, L2", lambda: in_a_step(L2(0.1), 0.1, 1.0, sparse=True), "would make sparse gradients dense"),
    BadInput("a missing rule", _second_group, "PerGroup has 1 rules"),
    BadInput("reference, no names", lambda: _with_references({"unnamed": B}), "does not know the names"),
    BadInput(
        "reference, wrong name", lambda: _with_references({"other": B}), "no reference for the decaying parameter"
    ),
    BadInput("reference, too few", lambda: _with_references([]), "got 0 reference tensors"),
    BadInput("reference, wrong shape", lambda: _with_references([torch.ones(4)]), "a reference of shape (4,)"),
]
