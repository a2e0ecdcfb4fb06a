"""The precision of a run: autocast with what float16 needs, and rounding to any number of bits at chosen places.

The optimizer's state is float32. `Rounding` simulates: numbers stay float32, and have fewer bits where it has rounded them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife.precision.rounding import MANTISSA_BITS, round_to

__all__ = ["Mode", "Rounding", "mantissa_bits"]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def mantissa_bits(precision: str) -> int:
    """The explicit mantissa bits of a precision."""
    return MANTISSA_BITS[DTYPES[precision]]


class Mode:
    """A precision of torch's own; float16 comes with the scaler of the gradients that it cannot do without.

    Args:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where is computed.

    Attributes:
        scaler: Of the gradients; it does nothing but in float16.
    """

    def __init__(self, precision: str, device: torch.device) -> None:
        self.precision, self.device = precision, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "float16")

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Autocast to the precision; nothing in float32."""
        if self.precision == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, DTYPES[self.precision])


class Rounding:
    """Rounds numbers and gradients of a model to few bits, each where its place is among those that are rounded.

    Args:
        bits: Explicit mantissa bits.
        forward: Places where numbers are rounded (`halflife.studies.specs.precision.PLACES`).
        backward: Places where gradients are.
    """

    def __init__(self, bits: int, forward: Collection[str], backward: Collection[str]) -> None:
        self.bits = bits
        self.forward, self.backward = frozenset(forward), frozenset(backward)

    def at(self, *places: str) -> bool:
        """Whether anything is rounded at one of these places."""
        return not (self.forward | self.backward).isdisjoint(places)

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """Nothing is rounded inside.

        Yields:
            Nothing.
        """
        kept = self.forward, self.backward
        self.forward = self.backward = frozenset()
        try:
            yield
        finally:
            self.forward, self.backward = kept

    def __call__(self, x: Tensor, place: str) -> Tensor:
        """Round what is at a place, and its gradient."""
        return round_to(x, self.bits, forward=place in self.forward, backward=place in self.backward)

    def linear(self, layer: nn.Linear, x: Tensor, outputs: str = "outputs") -> Tensor:
        """A linear layer whose outputs are at the place ``outputs``."""
        if not self.at("weights", "inputs", outputs):
            y: Tensor = layer(x)
            return y
        return self(functional.linear(self(x, "inputs"), self(layer.weight, "weights"), layer.bias), outputs)
