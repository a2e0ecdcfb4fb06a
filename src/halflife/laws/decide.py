"""From the difference between paired runs to a law.

The questions have an order. Does anything differ at all? Does adding ``lam * w`` to the gradient from outside give the
same weights? Only then is it L2. Is the difference a constant multiple of the weight that no state remembers? Then it is
decoupled, and a multiple of the weight before the update or of the weight after it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch

from halflife.laws.exponents import with_exponents
from halflife.laws.law import Law, NotProbedError
from halflife.laws.pairs import NOISE, UNIFORM, Pairs, Reading, fit, listed
from halflife.laws.probe import BASE, WARMUPS, Bench, Condition
from halflife.laws.scaling import LEAST

__all__ = ["CHANGES", "LATE", "NO_EFFECT", "SHRINKS", "decide"]

NO_EFFECT = "its weight_decay has no effect"
SHRINKS = "without any gradient and at weight_decay 0 the weights shrink"
CHANGES = "without any gradient and at weight_decay 0 the weights change"
LATE = f"its weight_decay has an effect, but none in the few steps after the first {WARMUPS['held']} at a usual value"
CLOSURE = "it needs a closure, and was stepped with one that gives the same gradients wherever the weights are"
ROUNDED = 8.0  # rounding errors of the weights, below which a step without gradient changes nothing
UNSEEN = 1e-11  # of the size of the weights: an update below it hides a decay of a thousandth of the update
MEMORY = 1e-4  # of the effect of one step, what a later step must show for a memory
OWN = 1e-2  # largest relative difference between r at the optimizer's own settings and what the law gives there
STEPS = tuple(step for step, multiple in enumerate(BASE.steps) if multiple == 1.0)
STRONG = replace(BASE, lam=50.0)
AT_REST = Condition(lam=0.0, gradient=0.0, warmup="none", steps=(1.0, 1.0, 1.0))
GRADIENT = Condition(gradient=10.0)
AT_START = Condition(at_start=True, steps=(1.0, 1.0, 1.0, 1.0))
SIZES = (0.01, 0.1, 10.0, 100.0)  # of the weights, where those of a usual size show no effect
PULL = 0.05  # of a penalty, what must be missing at the weights that a run begins with
STEADY = 0.02  # largest relative spread of that over steps
PULLED = "it depends on the weights that a run begins with: from those themselves it takes {:.3g} times as much"
KEEPS_START = (
    "it takes nothing from the weights that a run begins with: it decays towards them, or spares those that are large"
)


def decide(bench: Bench, index: int) -> Law:
    """Find the law of one slot.

    Args:
        bench: Where the paired runs are made.
        index: Which of its slots.

    Returns:
        The law.

    Raises:
        NotProbedError: If the optimizer cannot be stepped.
    """
    with bench.unguarded():
        return _decided(Pairs(bench, index))


def _decided(pairs: Pairs) -> Law:
    bench = pairs.bench
    if bench.exact and _rounds(pairs):
        raise NotProbedError("it rounds the weights to fewer digits")
    if pairs.slot.lam == 0.0 and not pairs.slot.attached:
        law = Law(pathway="none", fraction=0.0)
    else:
        law = _law(pairs)
        if law.pathway not in {"none", "not probed"}:
            law = replace(law, native=_is_native(pairs))
    law = _at_own_settings(pairs, _without_gradient(pairs, law))
    if bench.needs_closure:
        law = replace(law, notes=(*law.notes, CLOSURE))
    return law


def _law(pairs: Pairs) -> Law:
    readings = {step: pairs.reading(BASE, step) for step in STEPS}
    forms = {reading.form for reading in readings.values()}
    if forms == {"nothing"}:
        return _no_effect(pairs)
    steps_at_start = range(len(AT_START.steps))
    if not pairs.slot.attached and all(pairs.reading(AT_START, step).form == "nothing" for step in steps_at_start):
        return _other(KEEPS_START)
    # The negative one is for optimizers that maximize.
    penalty = next((multiple for multiple in (1.0, -1.0, 2.0) if pairs.equals_penalty(BASE, multiple)), None)
    start = next((step for step in STEPS if readings[step].form == "masked"), 0)
    first = readings[start]
    memory = pairs.memory(first, start)
    if not pairs.slot.attached and (reason := _towards_start(pairs, first, readings, penalty, memory)):
        return _other(reason)
    one_number = first.form in {"before", "after"} or (first.form == "masked" and penalty is None)
    if one_number and memory <= MEMORY:
        return _no_memory(pairs, first, start, readings, is_l2=penalty is not None)
    if penalty is not None:
        return _penalty(pairs, first, abs(penalty))
    if first.form == "nothing" and "varied" not in forms:
        return _other(f"it acts on some steps only: r is {listed(readings.values())}")
    if "varied" in forms:
        delayed = ", and later steps show it too" if memory > MEMORY else ""
        return _other(f"it takes a different fraction of each element{delayed}")
    return _other("the optimizer's state remembers it, but it is not part of the gradient")


def _towards_start(
    pairs: Pairs, first: Reading, readings: dict[int, Reading], penalty: float | None, memory: float
) -> str | None:
    """Return how the decay depends on the weights that a run begins with, or None."""
    steps = range(len(AT_START.steps))
    if memory <= MEMORY:
        there = [pairs.reading(AT_START, step) for step in steps]
        differs = all(each.form in {"before", "after"} and not pairs.close(each.r, first.r) for each in there)
        # What changes with steps or gradients anyway is another there because of these.
        if first.form in {"before", "after"} and differs and _changes(pairs, first, readings) is None:
            return PULLED.format(there[-1].r / first.r)
        return None
    if penalty is None:
        return None
    shares = []
    for step in steps:
        outside = pairs.added(AT_START, penalty, step)
        size = outside.square().sum().item()
        shares.append((outside * pairs.difference(AT_START, step)).sum().item() / size if size > 0.0 else 1.0)
    # The same share at every step: a memory of gradients from before the penalty changes from step to step.
    steady = max(shares) - min(shares) <= STEADY * max(map(abs, shares))
    return PULLED.format(shares[-1]) if steady and all(abs(share - 1.0) > PULL for share in shares) else None


def _no_effect(pairs: Pairs) -> Law:
    """Tell no effect from an effect that only a large weight decay or a long run shows, and from one lost in rounding."""
    if pairs.slot.attached:
        return Law(pathway="none", fraction=0.0)
    if 0.0 < abs(pairs.slot.lam) < LEAST:
        return Law(
            pathway="not probed",
            notes=(
                f"weight_decay = {pairs.slot.lam:.4g} is too small to be computed with; make it 0, or at least {LEAST:g}",
            ),
        )
    moved = max(_relative_change(*pairs.weights(BASE.without_decay, step)) for step in STEPS)
    if moved == 0.0:
        return Law(pathway="not probed", notes=("the optimizer does not move this parameter at all",))
    if moved < UNSEEN:
        return Law(
            pathway="not probed",
            notes=(
                f"a step at lr = {pairs.slot.lr:.4g} moves the weights by {moved:.1g} of their size, and a decay that "
                "is smaller still is lost in rounding; pass the optimizer at the peak of its learning rate",
            ),
        )
    if pairs.same(STRONG) and pairs.same(Condition(lam=50.0, warmup="free")):
        sizes = [size for size in SIZES if not pairs.same(Condition(lam=50.0, steps=(size, size)))]
        if sizes:
            return _other(f"it acts on weights of some sizes only: on those {sizes[0]:g} times as large as usual ones")
        return Law(pathway="none", fraction=0.0, notes=(NO_EFFECT,))
    shows = any(pairs.reading(STRONG, step).form != "nothing" for step in STEPS)
    if shows and (pairs.equals_penalty(STRONG) or pairs.equals_penalty(STRONG, -1.0)):
        return _penalty(pairs, Reading("nothing"), 1.0)
    return _other(LATE)


def _penalty(pairs: Pairs, first: Reading, multiple: float) -> Law:
    """Return the law of L2: one that is only multiplied and averaged, or one that is rescaled with the gradient."""
    preconditioned = Law(
        pathway="l2-preconditioned",
        name="l2" if multiple == 1.0 else None,
        notes=() if multiple == 1.0 else (f"{multiple:g} * lam * w is added to the gradient",),
    )
    if first.form == "nothing":
        return replace(preconditioned, notes=("it shows only where it changes the sign or the rank of a gradient",))
    if first.form != "before":
        return preconditioned
    scaled = pairs.reading(GRADIENT)
    if scaled.form != "before" or not pairs.close(scaled.r, first.r):
        return preconditioned
    longer = pairs.reading(Condition(warmup="longer"))
    if longer.form != "before" or not pairs.close(longer.r, first.r):
        return _other(
            "lam * w is added to the gradient, but how much of a gradient acts at once depends on the run so far: "
            f"r is {listed([first, longer])} after {WARMUPS['held']} and {WARMUPS['longer']} steps"
        )
    total = pairs.long_run()
    law = with_exponents(pairs, Law(pathway="l2", name="l2", fraction=None if math.isnan(total) else total), first)
    if law.pathway == "l2" and law.fraction is not None:
        share = law.fraction / first.r * (law.coefficient or 1.0)
        law = replace(law, notes=(*law.notes, f"momentum adds up to r = {replace(law, coefficient=share).formula()}"))
    return law


def _no_memory(pairs: Pairs, first: Reading, start: int, readings: dict[int, Reading], *, is_l2: bool) -> Law:
    """Return the law of a fraction of the weight that no state remembers, or what that fraction depends on."""
    if first.form == "masked" and (reason := _not_cautious(pairs, first, start)):
        return _other(reason)
    if not pairs.slot.attached:
        reason = _changes(pairs, first, readings)
        if reason is not None:
            return _other(reason)
    elif first.form != "masked" and not pairs.close(pairs.reading(GRADIENT).r, first.r):
        law = with_exponents(pairs, Law(pathway="decoupled", position="before"), first)
        return replace(law, coefficient=None, notes=("its coefficient depends on the gradients",))
    masked, position = first.form == "masked", "after" if first.form == "after" else "before"
    law = Law(pathway="cautious" if masked else "decoupled", position=position, fraction=first.r)
    law = with_exponents(pairs, law, first)
    if law.pathway == "cautious":
        at_rest = pairs.reading(Condition(gradient=0.0, warmup="none"))
        law = replace(law, name="cautious" if law.coefficient == 1.0 else None)
        if at_rest.form == "nothing":
            law = replace(law, name=None, notes=(*law.notes, "elements whose update is 0 do not decay"))
    if law.pathway == "decoupled" and is_l2 and first.form == "before":
        law = replace(law, pathway="l2", equivalent_to="decoupled", position=None)
    if law.pathway == "other":
        return law
    return replace(law, notes=(*law.notes, *_exceptions(pairs, first)))


def _changes(pairs: Pairs, first: Reading, readings: dict[int, Reading]) -> str | None:
    """Return what the fraction depends on besides learning rate and weight decay, or None."""

    def differs(reading: Reading) -> bool:
        return not reading.like(first) or (reading.form != "nothing" and not pairs.close(reading.r, first.r))

    def against(reading: Reading) -> str:
        if reading.like(first):
            return f"{reading.r / first.r:.3g} times the r"
        return {"nothing": "no decay", "varied": "another fraction of each element"}.get(reading.form, "another effect")

    scaled = pairs.reading(GRADIENT)
    if differs(scaled):
        return f"it depends on the gradients: 10 times the gradients, {against(scaled)}"
    for multiple in (10.0, 0.1):
        sized = pairs.reading(Condition(steps=(multiple,)))
        if differs(sized):
            return f"it depends on the size of the weights: {multiple:g} times the weights, {against(sized)}"
    if any(differs(reading) for reading in readings.values()):
        some = all(reading.like(first) for reading in readings.values())
        return f"{'it changes by step' if some else 'it acts on some steps only'}: r is {listed(readings.values())}"
    moved = pairs.reading(Condition(warmup="moved"))
    if differs(moved):
        return f"it depends on the run so far: {against(moved)} after a longer one"
    return None


def _not_cautious(pairs: Pairs, first: Reading, step: int) -> str | None:
    """Return why a mask is not that of cautious decay, or None."""
    before, after = pairs.weights(BASE.without_decay, step)
    assert first.active is not None
    if torch.equal((before - after) * before >= 0, first.active):
        return None
    return "it acts on some elements only, which are chosen otherwise than by update * w >= 0"


def _exceptions(pairs: Pairs, first: Reading) -> list[str]:
    """Return notes on circumstances in which the fraction is another one."""
    notes = []
    orthogonal = pairs.reading(Condition(orthogonal=True))
    if orthogonal.form == first.form and not pairs.close(orthogonal.r, first.r):
        notes.append(
            f"where the gradient is orthogonal to the weight, r is {orthogonal.r / first.r:.3g} times as large"
        )
    if not pairs.bench.from_factory:
        return notes
    try:
        mixed = pairs.reading(Condition(mixed=True))
    except NotProbedError:  # many take parameters of one precision only
        return notes
    if mixed.form == first.form and not pairs.close(mixed.r, first.r):
        notes.append(f"in a group that holds two precisions, r is {mixed.r / first.r:.3g} times as large")
    return notes


def _at_rest(pairs: Pairs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the weights before and after a step at weight decay 0 and without any gradient."""
    # Live ones that filled their state before the first step have copies of the weights there: those of this step.
    condition = replace(AT_REST, at_start=not pairs.bench.from_factory)
    steps = [pairs.weights(condition, step) for step in range(len(condition.steps))]
    return max(steps, key=lambda held: (held[1] - held[0]).abs().max().item())


def _rounds(pairs: Pairs) -> bool:
    """Return whether the optimizer computes with fewer digits than its parameters have."""
    try:
        before, after = _at_rest(pairs)
    except NotProbedError:
        return False
    return not torch.equal(before, after) and torch.equal(after, after.to(torch.float32).to(after.dtype))


def _without_gradient(pairs: Pairs, law: Law) -> Law:
    """Add what the optimizer does to the weights at weight decay 0 and without any gradient."""
    try:
        before, after = _at_rest(pairs)
    except NotProbedError as error:
        if law.pathway == "none":  # then nothing proves it
            raise
        return replace(law, notes=(*law.notes, f"without any gradient: {error}"))
    if (after - before).abs().max() <= ROUNDED * torch.finfo(before.dtype).eps * before.abs().max():
        return law  # some put the weights together anew at each step
    r, miss = fit(after - before, before)
    what = f"{SHRINKS} by r = {r:.4g}" if miss <= UNIFORM and r > 0 else CHANGES
    note = what + (f" at lr = {pairs.slot.lr:.4g}" if pairs.slot.own_lr is not None else "")
    if law.pathway in {"none", "not probed"}:
        return replace(law, pathway="other", fraction=None, notes=(note, *law.notes))
    return replace(law, notes=(*law.notes, note))


def _relative_change(before: torch.Tensor, after: torch.Tensor) -> float:
    return ((after - before).abs().max() / before.abs().max()).item()


def _at_own_settings(pairs: Pairs, law: Law) -> Law:
    """Return the law with its fraction at the optimizer's own settings, or why it does not hold there."""
    slot = pairs.slot
    ratio, peak_ratio = (slot.own_lr / slot.lr, 1.0 / slot.lr_factor) if slot.own_lr else (1.0, 1.0)
    by_lr = _power(ratio, law.lr_exponent) * _power(peak_ratio, law.peak_lr_exponent)
    if slot.own_lr != 0.0 and law.pathway in {"decoupled", "l2", "cautious", "none"}:
        own = replace(BASE, lr=ratio, peak_lr=peak_ratio)
        found = None
        if slot.own_lr is not None:
            found = _contradiction(pairs, law, own, by_lr, slot.lam_factor)
        if found is None and slot.lam_factor != 1.0 and not slot.attached:
            found = _contradiction(pairs, law, replace(own, lam=1.0 / slot.lam_factor), by_lr / slot.lam_factor, 1.0)
        if found is not None:
            lr, lam = slot.own_lr or slot.lr, slot.lam / slot.lam_factor
            return _other(
                f"at lr = {lr:.4g} and weight_decay = {lam:.4g}, as they are now, {found} there "
                f"({law.describe()}, found at lr = {slot.lr:.4g} and weight_decay = {slot.lam:.4g})"
            )
    if law.fraction is None:
        return law
    fraction = law.fraction * by_lr / slot.lam_factor
    grows = ("r is negative: the weights grow",) if fraction < 0.0 else ()
    return replace(law, fraction=fraction, notes=(*law.notes, *grows))


def _contradiction(pairs: Pairs, law: Law, condition: Condition, share: float, unit: float) -> str | None:
    """Return what a step under a condition removes, if it is not what the law gives, as far as rounding shows it.

    Args:
        pairs: The paired runs.
        law: The law that was found at the plain condition.
        condition: The other condition.
        share: What the law gives there, divided by what it gives at the plain condition.
        unit: What both fractions are divided by in the sentence.
    """
    step = next((step for step in STEPS if pairs.reading(BASE, step).form != "nothing"), 0)
    first = pairs.reading(BASE, step)
    expected = 0.0 if law.pathway == "none" else first.r * share
    before, after = pairs.weights(condition.without_decay, step)
    weight = (after if first.form == "after" else before) * (1.0 if first.active is None else first.active)
    difference = pairs.difference(condition, step)
    miss, size = (difference + expected * weight).abs().max().item(), weight.abs().max().item()
    noise = NOISE * torch.finfo(weight.dtype).eps * before.abs().max().item()
    if miss <= OWN * abs(expected) * size + noise:
        return None
    return f"r is {fit(difference, weight)[0] / unit + 0.0:.4g}, but the law gives {expected / unit:.4g}"


def _power(ratio: float, exponent: float | None) -> float:
    try:
        return 1.0 if exponent is None else float(ratio**exponent)
    except (OverflowError, ZeroDivisionError):
        return math.inf


def _is_native(pairs: Pairs) -> bool:
    """Return whether a value written after the warm-up acts like one given at construction."""
    for factor, steps in ((3.0, (1.0,)), (150.0, BASE.steps)):  # the second where only a large value shows
        conditions = Condition(written=factor, steps=steps), Condition(lam=factor, steps=steps), Condition(steps=steps)
        try:
            triples = [[pairs.weights(each, step)[1] for each in conditions] for step in range(len(steps))]
        except NotProbedError:
            return False
        effect = max((made - plain).abs().max().item() for _, made, plain in triples)
        if effect > 0.0:
            miss = max((written - made).abs().max().item() for written, made, _ in triples)
            return miss <= 1e-6 * effect
    return False


def _other(reason: str) -> Law:
    return Law(pathway="other", notes=(reason,))
