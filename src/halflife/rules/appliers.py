"""Appliers: the fraction of a rule is removed from some elements, or from the distance to a reference."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

from halflife.errors import UserError
from halflife.expressions import Spelled, spell
from halflife.numbers import check_share
from halflife.rules.base import Applier

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Cautious", "MovingAverage", "Tensors", "Toward"]


@dataclass(frozen=True, repr=False)
class Cautious(Applier):
    """Decay only where the update goes towards zero too: elementwise, ``w <- w - r * w`` where ``u * w >= 0``.

    ``u`` is what the optimizer subtracts, ``w <- w - lr * u``: its whole update, momentum included, not the
    raw gradient. Where ``u * w < 0`` the optimizer wants the weight to grow, and the decay does not hold it
    back. ``w`` is the weight before the step on both sides. Where the update is exactly 0 the weight decays.

    For torch's Adam, AdamW, RAdam and SGD the sign of ``u`` is known before the step, from the moment that the
    optimizer keeps: per weight three reads and one write (without momentum two reads), and no memory. On any
    other optimizer ``u`` is measured as the difference that the step made: one copy of the decaying weights in
    memory, per weight one read and one write before the step, two reads and one write after it; an update that
    is rounded away (bfloat16 weights at a small learning rate) then counts as 0.

    Source: "Cautious Weight Decay" (CWD), Algorithm 1.

    Unit: that of ``inner``.

    Matches: a loop in plain numbers (``tests/optim/test_appliers.py``).

    Args:
        inner: The rule that says which fraction.

    Raises:
        UserError: If ``inner`` is not a plain rule, as the table in `halflife.rules.grammar` says.

    Examples:
        >>> from halflife.rules import Decoupled
        >>> Cautious(Decoupled(0.1))
        Cautious(Decoupled(lam=0.1))
    """


@dataclass(frozen=True, repr=False)
class MovingAverage(Spelled):
    """A reference for `Toward`: the exponential moving average of the weights, ``a <- beta * a + (1 - beta) * w``.

    It starts at the weights before the first step, and moves after each step in which its parameter has a
    gradient, those at ``lr == 0`` included. It has the type of the weights: in bfloat16 a change of less than
    about 1/256 of it is rounded away, so that with ``beta`` near 1 it stands still; keep such weights in float32.

    Args:
        beta: The share that is kept per step, ``0 <= beta < 1``.

    Raises:
        UserError: If ``beta`` is outside [0, 1).
    """

    beta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "beta", check_share("beta", self.beta))


class Tensors:
    """A reference for `Toward`: given tensors, by parameter name or in the order of the parameters.

    They are copied: ``model.state_dict()`` has the live weights, which a reference must not follow.

    Args:
        values: A mapping such as ``model.state_dict()``, or a sequence.

    Raises:
        UserError: If a sequence holds something else than tensors, or a tensor is on the meta device.
    """

    def __init__(self, values: Mapping[str, Tensor] | Sequence[Tensor]) -> None:
        self.values: dict[str, Tensor] | list[Tensor]
        if isinstance(values, Mapping):  # a state dict may hold other things than tensors
            self.values = {name: value.detach().clone() for name, value in values.items() if hasattr(value, "detach")}
        else:
            others = [value for value in values if not hasattr(value, "detach")]
            if others:
                raise UserError(f"the references of Toward must be tensors, got {others[0]!r} among them")
            self.values = [value.detach().clone() for value in values]
        held = self.values.items() if isinstance(self.values, dict) else enumerate(self.values)
        empty = next((name for name, value in held if value.is_meta), None)
        if empty is not None:
            raise UserError(f"the reference {empty!r} of Toward is on the meta device and has no values: load it first")

    @cached_property
    def digest(self) -> str:
        """The first 16 digits of the sha256 of names, shapes and numbers."""
        found = hashlib.sha256()
        items: list[tuple[Any, Tensor]]
        items = sorted(self.values.items()) if isinstance(self.values, dict) else list(enumerate(self.values))
        for name, tensor in items:
            whole: Any = tensor.detach()
            whole = whole.full_tensor() if hasattr(whole, "full_tensor") else whole
            found.update(f"{name} {tuple(whole.shape)} ".encode())
            for part in (whole.real, whole.imag) if whole.is_complex() else (whole,):
                found.update(_bytes_of(part.double().cpu().contiguous()))
        return found.hexdigest()[:16]

    def __repr__(self) -> str:
        return spell(self)


def _bytes_of(tensor: Tensor) -> bytes:
    """The memory of a contiguous tensor on the CPU; ``Tensor.numpy`` would need numpy, which torch does without."""
    return ctypes.string_at(tensor.data_ptr(), tensor.nbytes) if tensor.numel() else b""


@dataclass(frozen=True, repr=False)
class Toward(Applier):
    """Decay towards a reference instead of zero: ``w <- w - r * (w - reference)``, before the update.

    For fine-tuning (L2-SP): what decays is the distance to the pre-trained weights.

    Source: Li et al. 2018, "Explicit Inductive Bias for Transfer Learning" (arXiv 1802.01483), in decoupled
    form; HeavyBall's decay to init and to a moving average.

    Unit: that of ``inner``.

    Matches: a loop in plain numbers (``tests/optim/test_appliers.py``).

    Args:
        inner: The rule that says which fraction.
        reference: ``"init"``, the weights before the first step under the rule; a ``MovingAverage(beta)``;
            a mapping from parameter name to tensor (a checkpoint's state dict; the optimizer must know the
            names: `param_groups` gives them); or a sequence of tensors, one per parameter of the optimizer
            in order.

    Raises:
        UserError: If ``inner`` is not a plain rule, as the table in `halflife.rules.grammar` says, or ``reference`` is
            none of these.

    Examples:
        >>> from halflife.rules import Decoupled
        >>> Toward(Decoupled(0.1), "init")
        Toward(Decoupled(lam=0.1))
    """

    reference: str | MovingAverage | Tensors | Mapping[str, Tensor] | Sequence[Tensor] = "init"

    def __post_init__(self) -> None:
        super().__post_init__()
        reference = self.reference
        if isinstance(reference, Mapping) or (isinstance(reference, Sequence) and not isinstance(reference, str)):
            object.__setattr__(self, "reference", Tensors(reference))
        elif reference != "init" and not isinstance(reference, MovingAverage | Tensors):
            raise UserError(
                f'a reference is "init", a MovingAverage, or tensors by name or in order, got {reference!r}'
            )

    @property
    def needs(self) -> frozenset[str]:
        """What the inner rule needs, and a reference where it is not given."""
        return super().needs | (set() if isinstance(self.reference, Tensors) else {"reference"})
