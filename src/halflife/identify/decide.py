"""Decisions: from what the twins did differently to a law.

The order matters. First whether anything differs at all; then whether adding ``lam * w`` to the gradient from outside
gives the same trajectory (that, and only that, is L2); then whether the difference is a constant multiple of the weight
that no state remembers (that is decoupled), and of which weight, the one before or the one after the update.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from halflife.identify.law import RULE_EXPONENTS, Law
from halflife.identify.probe import BASE, Bench, Condition, NotProbedError, Slot

__all__ = ["decide"]

UNIFORM = 2e-3  # largest relative spread of a fraction that counts as one number
MEMORY = 1e-4  # of the effect of one step, what a later step must show for a memory
STRONG = Condition(lam=50.0, steps=BASE.steps)


@dataclass(frozen=True)
class Reading:
    """What one step did: ``form`` is "nothing", "before", "after", "masked" or "varied"."""

    form: str
    r: float = math.nan
    active: Tensor | None = None
    spread: float = 0.0


def decide(bench: Bench, index: int, *, attached: bool = False) -> Law:
    """Find the law of one slot.

    Args:
        bench: The twins.
        index: Which of its slots.
        attached: Whether a rule of halflife is attached, which may schedule its fractions and needs no proof that
            it is linear in lam.

    Returns:
        The law.

    Raises:
        NotProbedError: If the optimizer cannot be stepped.
    """
    return _Decision(bench, index, attached).law()


class _Decision:
    def __init__(self, bench: Bench, index: int, attached: bool) -> None:
        self.bench, self.index, self.attached = bench, index, attached
        self.slot: Slot = bench.slots[index]
        self.notes: list[str] = []
        self.tolerance = 1e-4 if bench.exact else 1e-2  # between fractions of two runs

    # ---- what was seen

    def difference(self, condition: Condition, step: int = 0) -> tuple[Tensor, Tensor, Tensor]:
        """Return the decayed weight minus the other, the weight before the step, and the other after it."""
        decayed = self.bench.run(condition)[step][self.index][1]
        before, after = self.bench.run(condition.without_decay)[step][self.index]
        return decayed - after, before, after

    def reading(self, condition: Condition, step: int = 0) -> Reading:
        """Return which multiple of the weight the twins differ by."""
        difference, before, after = self.difference(condition, step)
        size = difference.abs().max().item()
        if size <= 16 * torch.finfo(difference.dtype).eps * max(before.abs().max().item(), after.abs().max().item()):
            return Reading("nothing", 0.0)
        fits = [_fit(difference, weight) for weight in (before, after)]
        form, (r, spread) = min(zip(("before", "after"), fits, strict=True), key=lambda fit: fit[1][1])
        if spread <= UNIFORM:
            return Reading(form, r, spread=spread)
        active = difference.abs() > 0.05 * size * before.abs() / before.abs().max().clamp_min(1e-300)
        if 0 < int(active.sum()) < active.numel():
            r, spread = _fit(difference * active, before * active)
            rest = (difference * ~active).abs().max().item()
            if spread <= UNIFORM and rest <= UNIFORM * size:
                return Reading("masked", r, active, spread)
        return Reading("varied")

    def memory(self, first: Reading) -> float:
        """Return how much of the first step's effect two later steps at weight 0 show."""
        size = self.difference(BASE)[0].abs().max().item()
        worst = 0.0
        for step in (1, 2):
            difference, _, after = self.difference(BASE, step)
            if first.form == "after":
                difference = difference + first.r * after
            worst = max(worst, difference.abs().max().item())
        return worst / size

    def equals_penalty(self, condition: Condition, multiple: float = 1.0) -> bool:
        """Return whether ``lam * w`` added to the gradient from outside gives the same trajectory."""
        outside = replace(condition.without_decay, penalty=condition.lam * multiple)
        tolerance = 1e-5 if self.bench.exact else 1e-2
        for step in range(len(condition.steps)):
            inside = self.bench.run(condition)[step][self.index][1]
            other = self.bench.run(outside)[step][self.index][1]
            effect = self.difference(condition, step)[0].abs().max().item()
            noise = 16 * torch.finfo(inside.dtype).eps * inside.abs().max().item()
            if (inside - other).abs().max().item() > tolerance * effect + noise:
                return False
        return True

    # ---- the law

    def law(self) -> Law:
        """Return the law."""
        law = self.with_decay() if self.slot.lam != 0.0 or self.attached else self.at_zero()
        return self.without_gradient(law)

    def at_zero(self) -> Law:
        """The law of a group whose weight decay is 0: nothing decays, unless a zero gradient shows it."""
        return self.finish(Law(pathway="none", fraction=0.0))

    def without_gradient(self, law: Law) -> Law:
        """Add what the optimizer does to the weights at weight decay 0 and without any gradient."""
        track = self.bench.run(Condition(lam=0.0, gradient=0.0, fresh=True, steps=(1.0, 1.0, 1.0)))
        steps = [track[step][self.index] for step in range(3)]
        if all(torch.equal(before, after) for before, after in steps):
            return law
        before, after = max(steps, key=lambda step: (step[1] - step[0]).abs().max().item())
        r, miss = _fit(after - before, before)
        what = f"shrink by r = {r:.4g}" if miss <= UNIFORM else "change"
        note = f"the weights {what} at each step even at weight_decay 0 and without any gradient"
        pathway = "other" if law.pathway == "none" else law.pathway
        return replace(
            law, pathway=pathway, notes=(note, *law.notes), fraction=None if pathway == "other" else law.fraction
        )

    def with_decay(self) -> Law:
        """The law of a group whose weight decay is not 0."""
        readings = [self.reading(BASE, step) for step in (0, 3, 4, 5, 6)]
        if all(reading.form == "nothing" for reading in readings):
            return self.without_effect()
        first = readings[0]
        if first.form == "nothing":
            return self.other("it acts on some steps only: r is " + _listed(readings))
        memory = self.memory(first)
        # The negative ones are those of optimizers that maximize.
        penalty = next((k for k in (1.0, -1.0, 2.0) if self.equals_penalty(BASE, k)), None)
        if first.form == "varied":
            if penalty is None:
                delayed = ", and later steps show it too" if memory > MEMORY else ""
                return self.other(f"it takes a different fraction of each element{delayed}")
            return self.finish(Law(pathway="l2-preconditioned", name="l2" if abs(penalty) == 1.0 else None))
        if memory > MEMORY:
            if penalty is None:
                return self.other("the optimizer's state remembers it, but it is not part of the gradient")
            if first.form == "masked":
                return self.finish(Law(pathway="l2-preconditioned", name="l2"))
            return self.through_momentum(first)
        return self.without_memory(first, readings, is_l2=penalty is not None)

    def without_effect(self) -> Law:
        """Decide between no effect and one that only a large weight decay shows."""
        zero = self.bench.run(STRONG.without_decay)
        strong = self.bench.run(STRONG)
        free = replace(STRONG, free=True)
        pairs = [(strong, zero), (self.bench.run(free), self.bench.run(free.without_decay))]
        same = all(torch.equal(a[step][self.index][1], b[step][self.index][1]) for a, b in pairs for step in range(7))
        if same:
            return self.finish(Law(pathway="none"), native=False)
        if self.equals_penalty(STRONG) or self.equals_penalty(STRONG, -1.0):
            self.notes.append("it shows only where it is strong enough to change the sign or rank of a gradient")
            return self.finish(Law(pathway="l2-preconditioned", name="l2"))
        return self.other("weight_decay has an effect, but none within a step")

    def through_momentum(self, first: Reading) -> Law:
        """L2 that the optimizer multiplies and averages only."""
        steps = [_projection(self.difference(BASE, step)[0], self.difference(BASE)[1]) for step in (0, 1, 2)]
        ratio = steps[2] / steps[1] if steps[1] else 0.0
        total = steps[0] + steps[1] / (1.0 - ratio) if abs(ratio) < 1.0 else math.nan
        law = self.with_exponents(
            Law(pathway="l2", name="l2", fraction=-total if math.isfinite(total) else None), first
        )
        if law.fraction and law.coefficient and first.r:
            longer = law.fraction / first.r * law.coefficient
            self.notes.append(
                f"through momentum: after a lag the fraction per step is {longer:.4g} * lr * lam"
                if law.lr_exponent == 1.0
                else f"through momentum: after a lag the fraction is {law.fraction / first.r:.4g} times as large"
            )
        return self.finish(law)

    def without_memory(self, first: Reading, readings: list[Reading], *, is_l2: bool) -> Law:
        """A fraction of the weight that no state remembers."""
        fractions = [reading.r for reading in readings]
        if {reading.form for reading in readings} != {first.form}:
            return self.other("it acts on some steps only: r is " + _listed(readings))
        others = [fractions[i] for i in (1, 3, 4)]
        steady = all(self.close(r, first.r) for r in others)
        if not steady and not self.attached:
            return self.other("it changes from step to step: r is " + _listed(readings))
        if not self.attached and not self.close(fractions[2], first.r):
            ratio = fractions[2] / first.r
            return self.other(f"it depends on the size of the weights: 10 times the weights, {ratio:.3g} times the r")
        if first.form == "masked" and (reason := self.mask_is_not_cautious(first)):
            return self.other(reason)
        if not self.attached:
            scaled = self.reading(Condition(gradient=10.0))
            if scaled.form != first.form or not self.close(scaled.r, first.r):
                ratio = scaled.r / first.r
                return self.other(f"it depends on the gradients: 10 times the gradients, {ratio:.3g} times the r")
            history = self.reading(Condition(free=True))
            if history.form != first.form or not self.close(history.r, first.r):
                return self.other(
                    f"it depends on the run so far: r is {first.r:.4g}, and {history.r:.4g} after a longer one"
                )
        pathway = "cautious" if first.form == "masked" else "decoupled"
        law = Law(pathway=pathway, position="after" if first.form == "after" else "before", fraction=first.r)
        law = self.with_exponents(law, first)
        if law.pathway == "decoupled" and is_l2 and first.form == "before":
            law = replace(law, pathway="l2", equivalent_to="decoupled", position=None, name=law.name or "l2")
        return self.finish(law)

    def mask_is_not_cautious(self, first: Reading) -> str | None:
        """Return why a mask is not that of cautious decay, or None."""
        _, before, after = self.difference(BASE)
        agrees = (before - after) * before >= 0
        assert first.active is not None
        if torch.equal(agrees, first.active):
            return None
        return "it acts on some elements only, but not on those where update * w >= 0"

    def with_exponents(self, law: Law, first: Reading) -> Law:
        """Add exponents, coefficient and name; turns into "other" where r is not a power of lr."""
        half, quarter = self.reading(Condition(lr=0.5)), self.reading(Condition(lr=0.25))
        doubled = self.reading(Condition(peak_lr=2.0))
        if {half.form, quarter.form, doubled.form} != {first.form}:
            return self.other(f"its form changes with lr: {first.form}, {half.form}, {quarter.form}, {doubled.form}")
        a, a_below = (math.log2(high.r / low.r) for high, low in ((first, half), (half, quarter)))
        if abs(a - a_below) > 10 * self.tolerance:
            return self.other(f"r is not a power of lr: {first.r:.4g}, {half.r:.4g}, {quarter.r:.4g} at lr, lr/2, lr/4")
        a, b = self.rounded(a), self.rounded(math.log2(doubled.r / first.r))
        coefficient: float | None = None
        if self.slot.lam_matters:
            per_lam = self.per_lam(first)
            if per_lam is None:
                return self.other("r is not linear in weight_decay")
            coefficient = self.rounded(per_lam / (self.slot.lr**a * self.slot.peak_lr**b))
        name = law.name or next((n for n, ab in RULE_EXPONENTS.items() if ab == (a, b) and coefficient == 1.0), None)
        if law.pathway == "cautious":
            name = "cautious" if coefficient == 1.0 else None
        return replace(law, lr_exponent=a, peak_lr_exponent=b, coefficient=coefficient, name=name)

    def per_lam(self, first: Reading) -> float | None:
        """Return r / lam for a vanishing lam; note what a large lam does differently."""
        if self.attached:
            return first.r / self.slot.lam
        small, large = self.reading(Condition(lam=0.5)), self.reading(Condition(lam=20.0))
        if small.form != first.form or not abs(small.r / first.r - 0.5) < 0.05:
            return None
        slope = 4.0 * small.r - first.r  # takes out the quadratic term of r = 1 - (1 - x)^2
        x = 20.0 * slope
        bends: dict[str, Callable[[float], float]] = {
            "": lambda x: x,
            "for a large weight decay r is x / (1 + x), with x = {}: the step is implicit": lambda x: x / (1 + x),
            "for a large weight decay r is 1 - (1 - x/2)^2, with x = {}: it is applied twice": lambda x: x - x * x / 4,
            "for a large weight decay r is 1 - exp(-x), with x = {}": lambda x: -math.expm1(-x),
        }
        for sentence, bend in bends.items():
            if large.form == first.form and abs(large.r / bend(x) - 1.0) < 1e-3:
                if sentence:
                    self.notes.append(sentence.format("the r of a small one"))
                break
        else:
            self.notes.append(f"not linear in weight_decay: 20 times the value, {large.r / first.r:.4g} times the r")
        return slope / self.slot.lam

    # ---- ends

    def other(self, reason: str) -> Law:
        self.notes.insert(0, reason)
        return self.finish(Law(pathway="other"))

    def finish(self, law: Law, *, native: bool | None = None) -> Law:
        """Add whether the groups' value is followed, and the notes."""
        if law.pathway != "none" and native is None:
            native = self.is_native()
        return replace(law, native=native if law.pathway != "none" else None, notes=tuple(self.notes))

    def is_native(self) -> bool:
        """Return whether a value written after the warm-up acts like one given at construction."""
        factor = 150.0 if self.difference(BASE)[0].abs().max().item() == 0.0 else 3.0
        try:
            written = self.bench.run(Condition(written=factor))[0][self.index][1]
            made = self.bench.run(Condition(lam=factor))[0][self.index][1]
        except NotProbedError:
            return False
        plain = self.bench.run(Condition())[0][self.index][1]
        effect = (made - plain).abs().max().item()
        return effect > 0.0 and (written - made).abs().max().item() <= 1e-6 * effect

    def close(self, r: float, other: float) -> bool:
        """Return whether two fractions are the same number."""
        return abs(r - other) <= self.tolerance * abs(other)

    def rounded(self, value: float) -> float:
        """Return the nearest half where the value is one within what was measured."""
        near = round(2.0 * value) / 2.0
        return near + 0.0 if abs(value - near) <= self.tolerance * max(1.0, abs(value)) else float(f"{value:.6g}")


def _fit(difference: Tensor, weight: Tensor) -> tuple[float, float]:
    """Return r of ``difference = -r * weight`` by least squares, and the largest relative miss."""
    r = -_projection(difference, weight)
    miss = (difference + r * weight).abs().max().item()
    return r, miss / max(difference.abs().max().item(), 1e-300)


def _projection(difference: Tensor, weight: Tensor) -> float:
    square = weight.square().sum().item()
    return (difference * weight).sum().item() / square if square > 0.0 else 0.0


def _listed(readings: list[Reading]) -> str:
    return ", ".join(f"{reading.r:.4g}" for reading in readings)
