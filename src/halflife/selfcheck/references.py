"""What the weights must be after a step, in float64 and simple tensor arithmetic, written from the papers.

A reference says what happens around the update of the optimizer: to the gradient, to the weight before the
update, and to the weight after it. Nothing here comes from the rest of halflife.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "AdamS",
    "AdamWithPenalty",
    "Around",
    "Formula",
    "Fraction",
    "Fractions",
    "Masked",
    "Penalty",
    "Pulled",
    "Reference",
    "Rescaled",
    "Seen",
]


# lr, peak lr, the group's own weight decay, steps taken, number of the group -> fraction
Formula = Callable[[float, float, float, int, int], float]

Fractions = Callable[[Sequence["Seen"]], list[float]]


@dataclass(frozen=True)
class Seen:
    """One parameter at one step.

    Args:
        weight: Before the step.
        gradient: Its gradient, dense; None if it has none.
        group: Number of its group.
        lr: The group's learning rate.
        peak: The largest of the schedule.
        own: The group's own weight decay; 0 means that the group does not decay.
        step: Steps taken before this one.
    """

    weight: Tensor
    gradient: Tensor | None
    group: int
    lr: float
    peak: float
    own: float
    step: int

    @property
    def present(self) -> bool:
        """Whether it takes part in this step and its group decays."""
        return self.gradient is not None and self.own != 0.0

    @property
    def decays(self) -> bool:
        """The same, at a learning rate above 0."""
        return self.present and self.lr > 0.0


class Reference:
    """Nothing happens: the base of the references."""

    def penalty(self, seen: Seen) -> Tensor | None:
        """Return the gradient that the optimizer must see."""
        return seen.gradient

    def before(self, seen: Sequence[Seen]) -> list[Tensor]:
        """Return the weights that the update must act on, in float64."""
        return [each.weight.double() for each in seen]

    def after(self, seen: Sequence[Seen], stepped: list[Tensor]) -> list[Tensor]:
        """Return the weights after the step, from those after the update, in float64."""
        return stepped

    def also(self, seen: Sequence[Seen], stepped: list[Tensor], expected: list[Tensor], eps: float) -> list[Tensor]:
        """Return weights that are right too, where rounding hides from the optimizer what the reference sees."""
        return expected


class Around(Reference):
    """What needs the fraction of an inner rule.

    Args:
        inner: Answers the fraction of each parameter; called once per step, at ``lr == 0`` as well.
    """

    def __init__(self, inner: Fractions) -> None:
        self.inner = inner


class Fraction(Around):
    """``w <- (1 - r) * w`` before the update."""

    def before(self, seen: Sequence[Seen]) -> list[Tensor]:
        """Shrink."""
        pairs = zip(seen, self.inner(seen), strict=True)
        return [each.weight.double() * (1.0 - r) for each, r in pairs]


class Pulled(Around):
    """``w <- w - r * (w - reference)`` before the update.

    Args:
        inner: The fractions.
        references: One tensor per parameter; None takes the first weights.
        beta: The references follow as ``a <- beta * a + (1 - beta) * w`` after each step with a gradient.
    """

    def __init__(
        self,
        inner: Fractions,
        references: Sequence[Tensor] | None = None,
        beta: float | None = None,
    ) -> None:
        super().__init__(inner)
        self.references = None if references is None else [each.double() for each in references]
        self.beta = beta

    def before(self, seen: Sequence[Seen]) -> list[Tensor]:
        """Pull."""
        weights = [each.weight.double() for each in seen]
        if self.references is None:
            self.references = list(weights)
        pairs = zip(weights, self.inner(seen), self.references, strict=True)
        return [weight - r * (weight - goal) for weight, r, goal in pairs]

    def after(self, seen: Sequence[Seen], stepped: list[Tensor]) -> list[Tensor]:
        """Let the average follow, kept in the precision that weights of this type have."""
        if self.beta is not None and self.references is not None:
            for index, (each, weight) in enumerate(zip(seen, stepped, strict=True)):
                if each.present:
                    kept = self.references[index] * self.beta + weight * (1.0 - self.beta)
                    self.references[index] = kept.to(each.weight.dtype).double()
        return stepped


class Masked(Around):
    """``w <- w - u - r * w`` where ``u * w >= 0``, else ``w - u``; ``u`` is what the update subtracts."""

    fractions: Sequence[float] = ()

    def after(self, seen: Sequence[Seen], stepped: list[Tensor]) -> list[Tensor]:
        """Shrink where the update agrees."""
        self.fractions = self.inner(seen)
        expected = []
        for each, weight, r in zip(seen, stepped, self.fractions, strict=True):
            old = each.weight.double()
            agrees = torch.sign(old - weight) * torch.sign(old) >= 0
            expected.append(torch.where(agrees, weight - r * old, weight))
        return expected

    def also(self, seen: Sequence[Seen], stepped: list[Tensor], expected: list[Tensor], eps: float) -> list[Tensor]:
        """Shrink where the update is lost in the rounding of the weight: it counts as 0, which agrees."""
        allowed = []
        for each, weight, goal, r in zip(seen, stepped, expected, self.fractions, strict=True):
            old = each.weight.double()
            lost = (old - weight).abs() <= eps * old.abs()
            allowed.append(torch.where(lost, weight - r * old, goal))
        return allowed


class Rescaled(Reference):
    """``w <- norm * w / ||w||`` after the update, for each tensor or for the whole net.

    Args:
        norm: The norm; None keeps the first.
        whole: Whether all tensors are one vector.
    """

    def __init__(self, norm: float | None, *, whole: bool) -> None:
        self.norm, self.whole = norm, whole
        self.first: list[float] | None = None

    def after(self, seen: Sequence[Seen], stepped: list[Tensor]) -> list[Tensor]:
        """Project."""
        if self.first is None:
            self.first = [float(each.weight.double().norm()) for each in seen]
        concerned = [index for index, each in enumerate(seen) if each.decays]
        expected = list(stepped)
        for part in [concerned] if self.whole else [[index] for index in concerned]:
            length = math.sqrt(sum(float(stepped[i].square().sum()) for i in part))
            goal = math.sqrt(sum(self.first[i] ** 2 for i in part)) if self.norm is None else self.norm
            for i in part:
                expected[i] = stepped[i] * goal / length
        return expected


class Penalty(Reference):
    """``g <- g + c * w``, in the type of the weights, as torch's own ``weight_decay`` of SGD and Adam.

    Args:
        coefficient: From own weight decay and step.
    """

    def __init__(self, coefficient: Callable[[float, int], float]) -> None:
        self.coefficient = coefficient

    def penalty(self, seen: Seen) -> Tensor | None:
        """Add the term."""
        if not seen.present or seen.gradient is None:
            return seen.gradient
        return seen.gradient.add(seen.weight, alpha=self.coefficient(seen.own, seen.step))


class AdamWithPenalty(Reference):
    """Adam written out, with ``lam * w`` in one of its moments only.

    Args:
        lam: The coefficient.
        first: Whether the term enters the first moment; else the second.
        betas: Per group.
        eps: Adam's.
        amsgrad: Whether the largest second moment so far divides.
    """

    def __init__(
        self, lam: float, *, first: bool, betas: Sequence[tuple[float, float]], eps: float, amsgrad: bool
    ) -> None:
        self.lam, self.first, self.betas, self.eps, self.amsgrad = lam, first, betas, eps, amsgrad
        self.state: dict[int, tuple[Tensor, Tensor, Tensor, int]] = {}

    def after(self, seen: Sequence[Seen], stepped: list[Tensor]) -> list[Tensor]:
        """Take Adam's step; what the bare optimizer did is not used."""
        expected = []
        for index, each in enumerate(seen):
            weight = each.weight.double()
            if each.gradient is None:
                expected.append(weight)
                continue
            gradient = each.gradient.double()
            zero = torch.zeros_like(weight)
            m, v, largest, steps = self.state.get(index, (zero, zero, zero, 0))
            beta1, beta2 = self.betas[each.group]
            term = self.lam * weight if each.own != 0.0 else zero
            m = beta1 * m + (1 - beta1) * (gradient + term * self.first)
            v = beta2 * v + (1 - beta2) * (gradient + term * (not self.first)) ** 2
            largest, steps = torch.maximum(largest, v), steps + 1
            self.state[index] = m, v, largest, steps
            square = (largest if self.amsgrad else v) / (1 - beta2**steps)
            expected.append(weight - each.lr * (m / (1 - beta1**steps)) / (square.sqrt() + self.eps))
        return expected


class AdamS:
    """The fraction of AdamS from Adam's whole second moment: Xie et al. 2023, with halflife's floor.

    Args:
        lam: The coefficient; None takes each group's own.
        floor: ``sqrt(v)`` counts as at least ``floor * lam``.
        beta2: Per group.
    """

    def __init__(self, lam: float | None, floor: float, beta2: Sequence[float]) -> None:
        self.lam, self.floor, self.beta2 = lam, floor, beta2
        self.moments: dict[int, tuple[Tensor, int]] = {}

    def __call__(self, seen: Sequence[Seen]) -> list[float]:
        """Take the gradients in, and return the fraction of each parameter."""
        total, count = 0.0, 0
        for index, each in enumerate(seen):
            if each.gradient is None:
                continue
            beta2 = self.beta2[each.group]
            v, steps = self.moments.get(index, (torch.zeros_like(each.weight, dtype=torch.float64), 0))
            v, steps = beta2 * v + (1 - beta2) * each.gradient.double() ** 2, steps + 1
            self.moments[index] = v, steps
            total += float((v / (1 - beta2**steps)).sum())
            count += v.numel()
        root = math.sqrt(total / count)
        return [
            each.lr * lam / max(root, self.floor * lam) if each.decays else 0.0
            for each in seen
            for lam in [each.own if self.lam is None else self.lam]
        ]


def by_formula(formula: Formula) -> Fractions:
    """Return the fractions that a formula in plain numbers gives.

    Args:
        formula: The formula.

    Returns:
        The fraction of each parameter: 0 where nothing may decay.
    """
    return lambda seen: [
        formula(each.lr, each.peak, each.own, each.step, each.group) if each.decays else 0.0 for each in seen
    ]
