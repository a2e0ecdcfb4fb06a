"""Decisions: from what the twins did differently to a law.

The order matters. First whether anything differs at all; then whether adding ``lam * w`` to the gradient from outside
gives the same trajectory (that, and only that, is L2); then whether the difference is a constant multiple of the weight
that no state remembers (that is decoupled), and of which weight, the one before or the one after the update.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from halflife.laws.exponents import with_exponents
from halflife.laws.law import Law
from halflife.laws.pairs import UNIFORM, Reading, Twins, fit, listed
from halflife.laws.probe import BASE, WARMUPS, Bench, Condition, NotProbedError

__all__ = ["NO_EFFECT", "decide"]

NO_EFFECT = "its weight_decay has no effect"
MEMORY = 1e-4  # of the effect of one step, what a later step must show for a memory
STEPS = tuple(step for step, multiple in enumerate(BASE.steps) if multiple == 1.0)
STRONG = replace(BASE, lam=50.0)
AT_REST = Condition(lam=0.0, gradient=0.0, warmup="none", steps=(1.0, 1.0, 1.0))
GRADIENT = Condition(gradient=10.0)


def decide(bench: Bench, index: int) -> Law:
    """Find the law of one slot.

    Args:
        bench: The twins.
        index: Which of its slots.

    Returns:
        The law.

    Raises:
        NotProbedError: If the optimizer cannot be stepped.
    """
    twins = Twins(bench, index)
    if bench.exact and _rounds(twins):
        raise NotProbedError("it rounds the weights to fewer digits")
    if twins.slot.lam == 0.0 and not twins.slot.attached:
        law = Law(pathway="none", fraction=0.0)
    else:
        law = _law(twins)
        if law.pathway not in {"none", "not probed"}:
            law = replace(law, native=_is_native(twins))
    return _without_gradient(twins, law)


def _law(twins: Twins) -> Law:
    readings = {step: twins.reading(BASE, step) for step in STEPS}
    forms = {reading.form for reading in readings.values()}
    if forms == {"nothing"}:
        return _no_effect(twins)
    # The negative one is for optimizers that maximize.
    penalty = next((multiple for multiple in (1.0, -1.0, 2.0) if twins.equals_penalty(BASE, multiple)), None)
    start = next((step for step in STEPS if readings[step].form == "masked"), 0)
    first = readings[start]
    memory = twins.memory(first, start)
    one_number = first.form in {"before", "after"} or (first.form == "masked" and penalty is None)
    if one_number and memory <= MEMORY:
        return _no_memory(twins, first, start, readings, is_l2=penalty is not None)
    if penalty is not None:
        return _penalty(twins, first, abs(penalty))
    if first.form == "nothing" and "varied" not in forms:
        return _other(f"it acts on some steps only: r is {listed(readings.values())}")
    if "varied" in forms:
        delayed = ", and later steps show it too" if memory > MEMORY else ""
        return _other(f"it takes a different fraction of each element{delayed}")
    return _other("the optimizer's state remembers it, but it is not part of the gradient")


def _no_effect(twins: Twins) -> Law:
    """Decide between no effect and one that only a large weight decay or a long run shows."""
    if twins.slot.attached:
        return Law(pathway="none", fraction=0.0)
    if all(torch.equal(*twins.weights(BASE.without_decay, step)) for step in STEPS):
        return Law(pathway="not probed", notes=("the optimizer does not move this parameter at all",))
    if twins.same(STRONG) and twins.same(Condition(lam=50.0, warmup="free")):
        return Law(pathway="none", fraction=0.0, notes=(NO_EFFECT,))
    if twins.equals_penalty(STRONG) or twins.equals_penalty(STRONG, -1.0):
        return _penalty(twins, Reading("nothing"), 1.0)
    return _other("its weight_decay has an effect, but none within a few steps at a usual value")


def _penalty(twins: Twins, first: Reading, multiple: float) -> Law:
    """L2, proven: does the optimizer only multiply and average gradients, or rescale them too?"""
    preconditioned = Law(
        pathway="l2-preconditioned",
        name="l2" if multiple == 1.0 else None,
        notes=() if multiple == 1.0 else (f"{multiple:g} * lam * w is added to the gradient",),
    )
    if first.form == "nothing":
        return replace(preconditioned, notes=("it shows only where it changes the sign or the rank of a gradient",))
    if first.form != "before":
        return preconditioned
    scaled = twins.reading(GRADIENT)
    if scaled.form != "before" or not twins.close(scaled.r, first.r):
        return preconditioned
    longer = twins.reading(Condition(warmup="longer"))
    if longer.form != "before" or not twins.close(longer.r, first.r):
        return _other(
            "lam * w is added to the gradient, but how much of a gradient acts at once depends on the run so far: "
            f"r is {listed([first, longer])} after {WARMUPS['held']} and {WARMUPS['longer']} steps"
        )
    total = twins.long_run()
    law = with_exponents(twins, Law(pathway="l2", name="l2", fraction=None if math.isnan(total) else total), first)
    if law.pathway == "l2" and law.fraction is not None:
        share = law.fraction / first.r * (law.coefficient or 1.0)
        law = replace(law, notes=(*law.notes, f"momentum adds up to r = {replace(law, coefficient=share).formula()}"))
    return law


def _no_memory(twins: Twins, first: Reading, start: int, readings: dict[int, Reading], *, is_l2: bool) -> Law:
    """A fraction of the weight that no state remembers: constant, or dependent on what?"""
    if first.form == "masked" and (reason := _not_cautious(twins, first, start)):
        return _other(reason)
    if not twins.slot.attached:
        reason = _changes(twins, first, readings)
        if reason is not None:
            return _other(reason)
    elif first.form != "masked" and not twins.close(twins.reading(GRADIENT).r, first.r):
        law = with_exponents(twins, Law(pathway="decoupled", position="before"), first)
        return replace(law, coefficient=None, notes=("its coefficient depends on the gradients",))
    masked, position = first.form == "masked", "after" if first.form == "after" else "before"
    law = Law(pathway="cautious" if masked else "decoupled", position=position, fraction=first.r)
    law = with_exponents(twins, law, first)
    if law.pathway == "cautious":
        at_rest = twins.reading(Condition(gradient=0.0, warmup="none"))
        law = replace(law, name="cautious" if law.coefficient == 1.0 else None)
        if at_rest.form == "nothing":
            law = replace(law, name=None, notes=(*law.notes, "elements whose update is 0 do not decay"))
    if law.pathway == "decoupled" and is_l2 and first.form == "before":
        law = replace(law, pathway="l2", equivalent_to="decoupled", position=None)
    if law.pathway == "other":
        return law
    return replace(law, notes=(*law.notes, *_exceptions(twins, first)))


def _changes(twins: Twins, first: Reading, readings: dict[int, Reading]) -> str | None:
    """Return what the fraction depends on besides learning rate and weight decay, or None."""

    def differs(reading: Reading) -> bool:
        return not reading.like(first) or (reading.form != "nothing" and not twins.close(reading.r, first.r))

    def against(reading: Reading) -> str:
        if reading.like(first):
            return f"{reading.r / first.r:.3g} times the r"
        return {"nothing": "no decay", "varied": "another fraction of each element"}.get(reading.form, "another effect")

    scaled = twins.reading(GRADIENT)
    if differs(scaled):
        return f"it depends on the gradients: 10 times the gradients, {against(scaled)}"
    for multiple in (10.0, 0.1):
        sized = twins.reading(Condition(steps=(multiple,)))
        if differs(sized):
            return f"it depends on the size of the weights: {multiple:g} times the weights, {against(sized)}"
    if any(differs(reading) for reading in readings.values()):
        some = all(reading.like(first) for reading in readings.values())
        return f"{'it changes by step' if some else 'it acts on some steps only'}: r is {listed(readings.values())}"
    moved = twins.reading(Condition(warmup="moved"))
    if differs(moved):
        return f"it depends on the run so far: {against(moved)} after a longer one"
    return None


def _not_cautious(twins: Twins, first: Reading, step: int) -> str | None:
    """Return why a mask is not that of cautious decay, or None."""
    before, after = twins.weights(BASE.without_decay, step)
    assert first.active is not None
    if torch.equal((before - after) * before >= 0, first.active):
        return None
    return "it acts on some elements only, but not on those where update * w >= 0"


def _exceptions(twins: Twins, first: Reading) -> list[str]:
    """Return notes on circumstances in which the fraction is another one."""
    notes = []
    orthogonal = twins.reading(Condition(orthogonal=True))
    if orthogonal.form == first.form and not twins.close(orthogonal.r, first.r):
        notes.append(
            f"where the gradient is orthogonal to the weight, r is {orthogonal.r / first.r:.3g} times as large"
        )
    if not twins.bench.from_factory:
        return notes
    try:
        mixed = twins.reading(Condition(mixed=True))
    except NotProbedError:  # many take parameters of one precision only
        return notes
    if mixed.form == first.form and not twins.close(mixed.r, first.r):
        notes.append(f"in a group that holds two precisions, r is {mixed.r / first.r:.3g} times as large")
    return notes


def _at_rest(twins: Twins) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights before and after a step at weight decay 0 and without any gradient."""
    pairs = [twins.weights(AT_REST, step) for step in range(len(AT_REST.steps))]
    return max(pairs, key=lambda pair: (pair[1] - pair[0]).abs().max().item())


def _rounds(twins: Twins) -> bool:
    """Return whether the optimizer computes with fewer digits than its parameters have."""
    try:
        before, after = _at_rest(twins)
    except NotProbedError:
        return False
    return not torch.equal(before, after) and torch.equal(after, after.to(torch.float32).to(after.dtype))


def _without_gradient(twins: Twins, law: Law) -> Law:
    """Add what the optimizer does to the weights at weight decay 0 and without any gradient."""
    try:
        before, after = _at_rest(twins)
    except NotProbedError as error:
        if law.pathway == "none":  # not proven then
            raise
        return replace(law, notes=(*law.notes, f"without any gradient: {error}"))
    if torch.equal(before, after):
        return law
    r, miss = fit(after - before, before)
    what = f"shrink by r = {r:.4g}" if miss <= UNIFORM and r > 0 else "change"
    note = f"without any gradient and at weight_decay 0 the weights {what}"
    if law.pathway in {"none", "not probed"}:
        return replace(law, pathway="other", fraction=None, notes=(note, *law.notes))
    return replace(law, notes=(*law.notes, note))


def _is_native(twins: Twins) -> bool:
    """Return whether a value written after the warm-up acts like one given at construction."""
    for factor, steps in ((3.0, (1.0,)), (150.0, BASE.steps)):  # the second where only a large value shows
        conditions = Condition(written=factor, steps=steps), Condition(lam=factor, steps=steps), Condition(steps=steps)
        try:
            triples = [[twins.weights(each, step)[1] for each in conditions] for step in range(len(steps))]
        except NotProbedError:
            return False
        effect = max((made - plain).abs().max().item() for _, made, plain in triples)
        if effect > 0.0:
            miss = max((written - made).abs().max().item() for written, made, _ in triples)
            return miss <= 1e-6 * effect
    return False


def _other(reason: str) -> Law:
    return Law(pathway="other", notes=(reason,))
