"""What halflife knows of optimizer classes: facts that no experiment on a live optimizer could give in time.

Nothing has to be known. A class without an entry in `KNOWN` is served too, in the way that is right for all: its own
decay is switched off and the weights shrink in a pass beside it, `Cautious` compares the weights before and after the
update, and `Stable` asks for ``beta2``. An entry makes it faster, or refuses what would be wrong.

To teach halflife a new class, add one entry. A class that is not torch's stands under its dotted name, so that it need
not be installed::

    "lion_pytorch.lion_pytorch.Lion": Facts(native=always),

and ``halflife selfcheck`` and `halflife.identify` tell whether it is true: `identify` answers ``native=True`` for a class
whose own decay is ``w <- (1 - lr * weight_decay) * w`` with the ``weight_decay`` of the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, NAdam, Optimizer, RAdam

__all__ = ["KNOWN", "Facts", "Memory", "always", "facts_of", "family_of"]

Group = Mapping[str, Any]


class Memory(NamedTuple):
    """The update of the coming step has the sign of ``kept * state[key] + taken * gradient``, elementwise.

    Args:
        key: Where the optimizer's state of a parameter keeps its memory of gradients; what is not there counts as 0.
        kept: What multiplies the memory, >= 0.
        taken: What multiplies the gradient, > 0.
    """

    key: str
    kept: float
    taken: float


def always(group: Group) -> bool:
    """Say yes for every group."""
    return True


def never(group: Group) -> bool:
    """Say no for every group."""
    return False


@dataclass(frozen=True)
class Facts:
    """What is known of one optimizer class. Each default is right for a class of which nothing is known.

    Facts of the first kind hold for exactly this class, because a subclass may do anything with its numbers; facts of
    the second kind hold for subclasses too.

    Args:
        native: First kind. Whether the optimizer's own decay of a group is ``w <- (1 - lr * weight_decay) * w``,
            read from the group at every step.
        sparse: First kind. Whether it steps with sparse gradients too, for which its own decay is then no way.
        memory: First kind. The sign of the coming update, where it is known before the step.
        moments: First kind. Whether it is Adam: ``exp_avg`` and ``exp_avg_sq`` in the state, made by ``_init_group``.
        adaptive: Second kind. Whether steps are divided by the root of a running mean of squared gradients with the
            decay ``betas[1]``, kept as ``exp_avg_sq``.
        momentum: Second kind. Whether steps are ``(1 - dampening) / (1 - momentum)`` times larger than ``lr`` says.
        not_stable: Second kind. Why `Stable` has no meaning, as the end of a sentence; empty if it has.
        searches: Second kind. Whether the step compares losses, which would lack a penalty.
    """

    native: Callable[[Group], bool] = never
    sparse: bool = False
    memory: Callable[[Group], Memory] | None = None
    moments: bool = False
    adaptive: bool = False
    momentum: bool = False
    not_stable: str = ""
    searches: bool = False


def _if_decoupled(group: Group) -> bool:
    return group.get("decoupled_weight_decay") is True


def _without_momentum(group: Group) -> bool:
    """``w - lr * (g + lam * w)`` is ``(1 - lr * lam) * w - lr * g``: here L2 and decoupled decay are the same map."""
    return group["momentum"] == 0 and not group["nesterov"]


def _adam_memory(group: Group) -> Memory:
    """The new first moment, which Adam divides by something positive."""
    beta1 = float(group["betas"][0])
    return Memory("exp_avg", beta1, 1.0 - beta1)


def _sgd_memory(group: Group) -> Memory:
    """The new buffer; with Nesterov ``g + momentum * buffer``."""
    momentum, taken = float(group["momentum"]), 1.0 - float(group["dampening"])
    if group["nesterov"]:
        return Memory("momentum_buffer", momentum**2, 1.0 + momentum * taken)
    return Memory("momentum_buffer", momentum, taken)


KNOWN: dict[type[Optimizer] | str, Facts] = {
    Adam: Facts(native=_if_decoupled, memory=_adam_memory, moments=True, adaptive=True),
    AdamW: Facts(native=_if_decoupled, memory=_adam_memory, moments=True, adaptive=True),
    NAdam: Facts(native=_if_decoupled, adaptive=True),  # its update has a second term with the gradient
    RAdam: Facts(native=_if_decoupled, memory=_adam_memory, adaptive=True),
    SGD: Facts(native=_without_momentum, sparse=True, memory=_sgd_memory, momentum=True),
    Adafactor: Facts(native=always),  # and only so: its step size reads the weights before they decay
    LBFGS: Facts(searches=True),
}
if hasattr(torch.optim, "Muon"):  # torch 2.9 and newer
    KNOWN[torch.optim.Muon] = Facts(
        native=always,
        not_stable="the size of its steps does not depend on the gradient, so there is nothing to divide by",
    )
UNKNOWN = Facts()


def facts_of(kind: type[Optimizer]) -> Facts:
    """Return what is known of exactly this class."""
    found = KNOWN.get(kind)
    return KNOWN.get(f"{kind.__module__}.{kind.__qualname__}", UNKNOWN) if found is None else found


def family_of(kind: type[Optimizer]) -> Facts:
    """Return what is known of the nearest class that this one inherits from, itself included: facts of the second kind."""
    return next((facts for each in kind.__mro__ if (facts := facts_of(each)) is not UNKNOWN), UNKNOWN)
