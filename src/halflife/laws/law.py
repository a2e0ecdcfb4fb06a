"""What was found about an optimizer's decay, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

__all__ = ["PATHWAYS", "RULE_EXPONENTS", "Law", "NotProbedError", "described_by_shape", "ordinal"]

PATHWAYS = ("decoupled", "l2", "l2-preconditioned", "cautious", "none", "other", "not probed")

# The rules with a closed formula in the learning rate, by their exponents (a, b).
RULE_EXPONENTS = {"decoupled": (1.0, 0.0), "independent": (1.0, -1.0), "constant": (0.0, 0.0), "corrected": (2.0, -1.0)}


class NotProbedError(Exception):
    """The optimizer cannot be stepped like this; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Law:
    """The decay that an optimizer applies: ``w <- (1 - r) * w`` with ``r = coefficient * lam * lr^a * peak_lr^b``.

    ``lam`` is the optimizer's ``weight_decay`` (or the lam of the attached rule), ``lr`` the learning rate of the
    step, ``peak_lr`` the largest one of the run. Fields are None where they do not apply.

    Args:
        pathway: How the decay enters. ``"decoupled"``: it shrinks the weight itself. ``"l2"``: it adds ``lam * w``
            to the gradient, which the optimizer then only multiplies and averages. ``"l2-preconditioned"``: as
            ``"l2"``, but the optimizer also rescales gradients, so that no fraction describes it. ``"cautious"``:
            decoupled where ``update * w >= 0``, nothing elsewhere. ``"none"``: proven to have no effect.
            ``"other"``: something else, which ``notes`` describes. ``"not probed"``: not known, for the reason in
            ``notes``; it is no ``"none"``.
        lr_exponent: ``a``.
        peak_lr_exponent: ``b``.
        coefficient: 1 for AdamW, 2 for a decay applied twice. For ``"l2"`` it describes the effect within the same
            step, before momentum adds the rest: ``1 + momentum`` under Nesterov, ``1 - dampening`` under dampening.
        position: ``"before"`` or ``"after"`` the update; None where both are the same, or for l2.
        native: Whether the optimizer follows ``group["weight_decay"]`` when it is written between steps.
        equivalent_to: The other pathway that is the same function of weights and gradients. SGD without momentum:
            pathway ``"l2"``, equivalent to ``"decoupled"``.
        name: The rule of `halflife.rules` that it equals, in lower case, such as ``"decoupled"``; None if none.
        fraction: ``r`` at the probed learning rate and weight decay; for ``"l2"`` through momentum the fraction per
            step that is reached after the momentum's lag.
        every: It acts at every n-th call of ``step()``, as under accumulation; ``fraction`` is that of a call that acts.
        notes: What the other fields do not say, as sentences.
        by_shape: ``"matrix"``, ``"vector"``, ``"convolution"`` and so on, each with its law; only where they differ,
            else empty. The other fields are then those of the first shape.

    Examples:
        >>> Law(pathway="decoupled", lr_exponent=1.0, peak_lr_exponent=0.0, coefficient=1.0, native=True).describe()
        'decoupled: r = lr * lam (native)'
        >>> Law(pathway="decoupled", lr_exponent=2.0, peak_lr_exponent=-1.0, coefficient=2.0).describe()
        'decoupled: r = 2 * lr^2 / peak_lr * lam'
    """

    pathway: str
    lr_exponent: float | None = None
    peak_lr_exponent: float | None = None
    coefficient: float | None = None
    position: str | None = None
    native: bool | None = None
    equivalent_to: str | None = None
    name: str | None = None
    fraction: float | None = None
    every: int = 1
    notes: tuple[str, ...] = ()
    by_shape: Mapping[str, Law] = field(default_factory=lambda: MappingProxyType({}))

    def describe(self) -> str:
        """Return the law as one line for a table."""
        if self.by_shape:
            return described_by_shape(self.by_shape)
        text = self.pathway
        match self.pathway:
            case "decoupled":
                text += f": r = {self.formula()}"
                text += ", after the update" if self.position == "after" else ""
            case "cautious":
                text += f": r = {self.formula()} where update * w >= 0, else 0"
            case "l2" if self.equivalent_to:
                text += f": lam * w added to the gradient, the same as {self.equivalent_to} r = {self.formula()}"
            case "l2":
                text += f": lam * w added to the gradient, {self.formula()} * w within the step, the rest by momentum"
            case "l2-preconditioned":
                text += ": lam * w added to the gradient, which is then rescaled"
            case "none":
                text += ": nothing decays"
            case _ if self.notes:
                text += f": {self.notes[0]}"
        text += " (native)" if self.native else ""
        return text if self.every == 1 else f"{text}, at every {ordinal(self.every)} call"

    def formula(self) -> str:
        """Return ``r`` as a formula, such as ``lr^2 / peak_lr * lam``; ``"?"`` if there is none."""
        if self.lr_exponent is None:
            return "?"
        if self.coefficient is None and self.fraction is not None and self.lr_exponent == 0.0:
            return f"{self.fraction:.4g}"
        factors = [] if self.coefficient == 1.0 else ["c" if self.coefficient is None else f"{self.coefficient:.6g}"]
        below = []
        for name, exponent in (("lr", self.lr_exponent), ("peak_lr", self.peak_lr_exponent or 0.0)):
            power = name if abs(exponent) == 1.0 else f"{name}^{abs(exponent):g}"
            if exponent > 0:
                factors.append(power)
            elif exponent < 0:
                below.append(power)
        top = " * ".join(factors) or ("1" if below else "")
        quotient = " / ".join([top, *below])
        return f"{quotient} * lam" if quotient else "lam"


def described_by_shape(laws: Mapping[str, Law]) -> str:
    """Return the laws of several shapes as one line; those that have the same stand together."""
    alike: dict[str, list[str]] = {}
    for shape, law in laws.items():
        alike.setdefault(law.describe(), []).append(shape)
    return "; ".join(f"{', '.join(shapes)}: {text}" for text, shapes in alike.items())


def ordinal(number: int) -> str:
    """Return ``"2nd"`` for 2."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number // 10 % 10 != 1 else "th"
    return f"{number}{ending}"
