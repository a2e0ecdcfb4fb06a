"""Rules that set the norm of the weights: what they remove is whatever is too much, after the step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from halflife.errors import UserError
from halflife.numbers import check_positive
from halflife.rules.base import Rule, StepInfo

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NormTarget", "Sphere"]


@dataclass(frozen=True, repr=False)
class NormTarget(Rule):
    """Hold the norm of every decaying tensor: the decay is whatever brings it back, and may be negative.

    After the optimizer's step, with its own decay off, each tensor ``w`` is multiplied by ``1 - r`` with::

        r = 1 - norm / ||w||

    ``r > 0`` where the step made the tensor longer (the usual case: updates are nearly orthogonal to the
    weight), ``r < 0`` where it made it shorter. In equilibrium that is the fraction which AdamW's decay would
    remove, so that the norm takes the place of ``lam`` as the setting. A tensor of zeros is left alone.

    Source: the hyperball constraint (arXiv 2606.16899), for the weight; its normalized update is a matter of
    the optimizer.

    Unit: ``norm`` is a weight's; ``r`` is dimensionless.

    Matches: a loop in plain numbers (``tests/optim/test_norms.py``).

    Args:
        norm: The Euclidean (Frobenius) norm of each decaying tensor, > 0; None holds the norm that each
            tensor has before the first step.

    Raises:
        UserError: If ``norm`` is not a finite number > 0.

    Examples:
        >>> NormTarget(2.0).fraction(StepInfo(lr=0.1, weight_norm=4.0))
        0.5
        >>> NormTarget().fraction(StepInfo(lr=0.1, weight_norm=2.0, initial_norm=3.0))
        -0.5
    """

    norm: float | None = None

    def __post_init__(self) -> None:
        if self.norm is not None:
            object.__setattr__(self, "norm", check_positive("norm", self.norm, finite=True))

    @property
    def needs(self) -> frozenset[str]:
        """The norms of the weights, and the first ones where none is given."""
        return frozenset({"weight_norm", "initial_norm"} if self.norm is None else {"weight_norm"})

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return ``1 - norm / ||w||``, one value per tensor."""
        return 1.0 - (info.initial_norm if self.norm is None else self.norm) / info.weight_norm


@dataclass(frozen=True, repr=False)
class Sphere(Rule):
    """Project onto a sphere after every step: ``w <- radius * w / ||w||``.

    For scale-invariant nets, where only the direction of ``w`` matters. ``w`` is all decaying tensors of the
    optimizer that have a gradient, and a learning rate above 0, at this step, taken together, or each of them
    by itself (then the same as `NormTarget`).

    Source: "Why Do We Need Weight Decay in Modern Deep Learning?" (arXiv 2310.04415), equation 8. Its code
    projects once per epoch; this projects at every step, as the equation says.

    Unit: ``radius`` is a weight's.

    Matches: a loop in plain numbers (``tests/optim/test_norms.py``).

    Args:
        radius: The norm after each step, > 0; None keeps the norm from before the first step.
        per: ``"net"`` for one sphere, ``"tensor"`` for one per tensor.

    Raises:
        UserError: If ``radius`` is not a finite number > 0, or ``per`` is something else.

    Examples:
        >>> Sphere(1.0).fraction(StepInfo(lr=0.1, weight_norm=4.0))
        0.75
    """

    radius: float | None = None
    per: Literal["net", "tensor"] = "net"

    def __post_init__(self) -> None:
        if self.radius is not None:
            object.__setattr__(self, "radius", check_positive("radius", self.radius, finite=True))
        if self.per not in {"net", "tensor"}:
            raise UserError(f'per must be "net" or "tensor", got {self.per!r}')

    @property
    def needs(self) -> frozenset[str]:
        """The norm of the weights, and the first one where no radius is given."""
        first = {"initial_norm"} if self.radius is None else set()
        return frozenset({"net_norm" if self.per == "net" else "weight_norm"} | first)

    def fraction(self, info: StepInfo) -> float | Tensor:
        """Return ``1 - radius / ||w||``; with ``per="net"`` both norms are those of the whole net."""
        return 1.0 - (info.initial_norm if self.radius is None else self.radius) / info.weight_norm
