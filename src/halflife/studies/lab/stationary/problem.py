"""Examples, loss and function of a stationary run, and the objectives whose minima are compared with its mean.

Shapes: R replicas, D parameters, N training examples, M inputs in all (training first), I inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import UserError
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.stationary.functions import Function, Product, Square, TanhNet
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["Loss", "Problem", "generator_of", "make_problem"]


def generator_of(spec: StationaryRun, purpose: str) -> torch.Generator:
    """A generator for one purpose of a run."""
    return torch.Generator().manual_seed(seed_of(f"stationary/{purpose}/{spec.seed}"))


@dataclass(frozen=True)
class Loss:
    """l(h, y) averaged over the label noise, and its derivatives in h; the noise itself is in `slope`.

    Args:
        name: ``"squared"`` or ``"logistic"``.
        noise: As `StationaryRun.label_noise`.
    """

    name: str
    noise: float

    def value(self, h: Tensor, y: Tensor) -> Tensor:
        """The expected loss."""
        if self.name == "squared":
            return 0.5 * ((h - y).square() + self.noise**2)
        return functional.softplus(-y * h) + self.noise * y * h

    def slope(self, h: Tensor, y: Tensor) -> Tensor:
        """L' with a given label."""
        return h - y if self.name == "squared" else -y * torch.sigmoid(-y * h)

    def expected_slope(self, h: Tensor, y: Tensor) -> Tensor:
        """L' averaged over the label noise."""
        return self.slope(h, y) if self.name == "squared" else self.slope(h, y) + self.noise * y

    def curvature(self, h: Tensor) -> Tensor:
        """l''; label noise does not change it."""
        return torch.ones_like(h) if self.name == "squared" else torch.sigmoid(h) * torch.sigmoid(-h)

    def noisy(self, y: Tensor, uniform: Tensor) -> Tensor:
        """Labels with noise, from uniform numbers in [0, 1)."""
        if self.name == "squared":
            return y + self.noise * (1 - 2 * (uniform < 0.5).to(y.dtype))
        return torch.where(uniform < self.noise, -y, y)


@dataclass(frozen=True)
class Problem:
    """What SGD runs on."""

    function: Function
    loss: Loss
    lam: float
    x_MI: Tensor
    y_N: Tensor

    @property
    def num_examples(self) -> int:
        """The number of training examples, N."""
        return len(self.y_N)

    def objective(self, w_RD: Tensor, regularizer: str, weight: float) -> Tensor:
        """Mean loss + lam / 2 ||w||^2 + weight R, (R,).

        Args:
            w_RD: The weights.
            regularizer: ``"jacobian"`` or ``"hessian"``.
            weight: Of R.

        Returns:
            The objective of each replica.
        """
        x_1NI = self.x_MI[: self.num_examples].unsqueeze(0)
        h_RN = self.function.outputs(w_RD, x_1NI)
        decay_R = 0.5 * self.lam * w_RD.square().sum(dim=1)
        base_R = self.loss.value(h_RN, self.y_N).mean(dim=1) + decay_R
        return base_R + weight * self._regularizer(w_RD, x_1NI, h_RN, regularizer) if weight else base_R

    def regularizer(self, w_RD: Tensor, name: str) -> Tensor:
        """||J||^2, or the trace of the Hessian of the mean loss (without decay), (R,)."""
        x_1NI = self.x_MI[: self.num_examples].unsqueeze(0)
        return self._regularizer(w_RD, x_1NI, self.function.outputs(w_RD, x_1NI), name)

    def _regularizer(self, w_RD: Tensor, x_1NI: Tensor, h_RN: Tensor, name: str) -> Tensor:
        jacobian_RN = self.function.jacobian_sq(w_RD, x_1NI)
        if name == "jacobian":
            return jacobian_RN.mean(dim=1)
        laplacian_RN = self.function.laplacian(w_RD, x_1NI)
        trace_RN = self.loss.curvature(h_RN) * jacobian_RN + self.loss.expected_slope(h_RN, self.y_N) * laplacian_RN
        return trace_RN.mean(dim=1)


def make_problem(spec: StationaryRun) -> Problem:
    """The examples and the function that a spec describes, in float64; a function of the spec alone."""
    x_MI, y_N = {"unit": _unit, "sparse": _sparse, "fashion-mnist-5k": _images}[spec.data](spec)
    num_inputs = x_MI.shape[1]
    functions: dict[str, Callable[[], Function]] = {
        "product": lambda: Product(num_inputs),
        "square": lambda: Square(num_inputs),
        "tanh": lambda: TanhNet(num_inputs, spec.hidden),
    }
    return Problem(functions[spec.model](), Loss(spec.loss, spec.label_noise), spec.lam, x_MI, y_N)


def _unit(spec: StationaryRun) -> tuple[Tensor, Tensor]:
    one = torch.ones(1, 1, dtype=torch.float64)
    return one, one[0]


def _sparse(spec: StationaryRun) -> tuple[Tensor, Tensor]:
    count = spec.num_examples + spec.num_held_out
    x_MI = torch.randn(count, spec.num_inputs, dtype=torch.float64, generator=generator_of(spec, "examples"))
    return x_MI, x_MI[: spec.num_examples, : spec.num_relevant].sum(dim=1)


def _images(spec: StationaryRun) -> tuple[Tensor, Tensor]:
    split = read_source(spec.data).train
    _, height, width = split.shape
    labels = torch.frombuffer(bytearray(split.labels), dtype=torch.uint8).long()
    chosen = torch.nonzero((labels == spec.classes[0]) | (labels == spec.classes[1])).squeeze(1)
    count = spec.num_examples + spec.num_held_out
    if count > len(chosen):
        raise UserError(
            f"num_examples and num_held_out are {count} together and classes {spec.classes} have {len(chosen)} images:"
            " lower one"
        )
    order = torch.randperm(len(chosen), generator=generator_of(spec, "examples"))[:count]
    index_M = chosen[order]
    pixels = torch.frombuffer(bytearray(split.images), dtype=torch.uint8).view(-1, 1, height, width)[index_M]
    x_MI = functional.avg_pool2d(pixels.double() / 255, spec.downsample).flatten(1)
    train_NI = x_MI[: spec.num_examples]
    # Each input with mean 0 and variance 1 / I, so that ||x|| is about 1.
    deviation_I = train_NI.std(dim=0).clamp_min(1e-3) * x_MI.shape[1] ** 0.5
    y_N = torch.where(labels[index_M[: spec.num_examples]] == spec.classes[0], -1.0, 1.0).double()
    return (x_MI - train_NI.mean(dim=0)) / deviation_I, y_N
