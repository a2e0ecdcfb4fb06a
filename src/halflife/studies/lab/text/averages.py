"""Averages of the weights along a run: exponential without bias at the start, and uniform.

An average is the weighted mean of the weights after each step seen so far. With d an exponential average's decay,

    a_n = (1 - d) / (1 - d^n) * sum_s d^(n - s) w_s           uniform: a_n = 1 / n * sum_s w_s

both of which are a_n = a_(n-1) + c_n (w_n - a_(n-1)) with c_n = (1 - d) / (1 - d^n) or 1 / n.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from halflife.optim.norms import local

__all__ = ["WeightAverage", "averages_of"]


class WeightAverage:
    """One average over the steps of a run.

    Args:
        name: Prefix of its readings: ``"ema-0.99"``, ``"mean"``.
        parameters: What is averaged; the average has their types, devices and sharding.
        decay: Of an exponential average; ``None`` for the uniform one.
        first: The first step whose weights count.
    """

    def __init__(self, name: str, parameters: Sequence[Tensor], *, decay: float | None, first: int = 1) -> None:
        self.name, self.decay, self.first = name, decay, first
        self.parameters = list(parameters)
        self.values = [parameter.detach().clone() for parameter in parameters]
        self.count = 0

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps."""
        if step < self.first:
            return
        self.count += 1
        weight = 1 / self.count if self.decay is None else (1 - self.decay) / (1 - self.decay**self.count)
        torch._foreach_lerp_(_here(self.values), _here(self.parameters), min(weight, 1.0))

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The average in the place of the weights, for an evaluation.

        Yields:
            Nothing.
        """
        weights = _here([parameter.detach() for parameter in self.parameters])
        kept = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, _here(self.values))
        try:
            yield
        finally:
            torch._foreach_copy_(weights, kept)


def _here(tensors: Sequence[Tensor]) -> list[Tensor]:
    # All arithmetic is elementwise, so that each process does its parts; torch has no _foreach_copy_ for sharded tensors.
    return [local(tensor) for tensor in tensors]


def averages_of(parameters: Sequence[Tensor], ema: Sequence[float], average_from: int | None) -> list[WeightAverage]:
    """The averages that a spec asks for.

    Args:
        parameters: What is averaged.
        ema: Decays of exponential averages.
        average_from: The first step of the uniform average, if there is one.

    Returns:
        The averages, empty so far.
    """
    found = [WeightAverage(f"ema-{decay:g}", parameters, decay=decay) for decay in ema]
    if average_from is not None:
        found.append(WeightAverage("mean", parameters, decay=None, first=average_from))
    return found
