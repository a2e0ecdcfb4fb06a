"""Functions of one output with the derivatives that the objectives need, in closed form, replicas vectorised.

Shapes: R replicas, D parameters, N examples, I inputs, H hidden units. Inputs are (R, N, I), or (1, N, I) for all replicas.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Function", "Product", "PullBack", "Square", "TanhNet"]

PullBack = Callable[[Tensor], Tensor]
"""From d, (R, N), to sum_n d_n dh_n / dw, (R, D)."""


class Function(Protocol):
    """h(w, x) with one output."""

    @property
    def num_parameters(self) -> int:
        """The number of weights, D."""
        ...

    def initial(self, scale: float, generator: torch.Generator) -> Tensor:
        """Initial weights, (D,)."""
        ...

    def outputs(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """h, (R, N)."""
        ...

    def linearized(self, w_RD: Tensor, x_RNI: Tensor) -> tuple[Tensor, PullBack]:
        """h, (R, N), and the gradient of any weighted sum of it."""
        ...

    def jacobian_sq(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """||dh_n / dw||^2, (R, N)."""
        ...

    def laplacian(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """sum_j d^2 h_n / dw_j^2, (R, N)."""
        ...


class Product:
    """h = x . (u * v): a diagonal linear network.

    The network x . (p * p - q * q) is this one in the coordinates (p + q, p - q), up to a factor, and SGD does not see the
    basis. h is linear in each parameter, as every linear network is, so that its laplacian is 0.
    """

    def __init__(self, num_inputs: int) -> None:
        self.num_parameters = 2 * num_inputs

    def initial(self, scale: float, generator: torch.Generator) -> Tensor:
        """The same ``scale`` for all of u, 0 for v: either sign of h is as near. Started equal, u and v would stay so."""
        u_I = torch.full((self.num_parameters // 2,), scale, dtype=torch.float64)
        return torch.cat((u_I, torch.zeros_like(u_I)))

    def outputs(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """h, (R, N)."""
        return self.linearized(w_RD, x_RNI)[0]

    def linearized(self, w_RD: Tensor, x_RNI: Tensor) -> tuple[Tensor, PullBack]:
        """h, (R, N), and the gradient of any weighted sum of it."""
        u_RI, v_RI = w_RD.chunk(2, dim=1)

        def pull_back(d_RN: Tensor) -> Tensor:
            g_RI = (d_RN.unsqueeze(1) @ x_RNI).squeeze(1)
            return torch.cat((g_RI * v_RI, g_RI * u_RI), dim=1)

        return (x_RNI @ (u_RI * v_RI).unsqueeze(2)).squeeze(2), pull_back

    def jacobian_sq(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """||dh_n / dw||^2, (R, N)."""
        u_RI, v_RI = w_RD.chunk(2, dim=1)
        return (x_RNI.square() @ (u_RI.square() + v_RI.square()).unsqueeze(2)).squeeze(2)

    def laplacian(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """0, (R, N)."""
        return torch.zeros(len(w_RD), x_RNI.shape[1], dtype=w_RD.dtype, device=w_RD.device)


class Square:
    """h = x . (u * u): the simplest function on which ||J||^2 and the trace of the Hessian differ."""

    def __init__(self, num_inputs: int) -> None:
        self.num_parameters = num_inputs

    def initial(self, scale: float, generator: torch.Generator) -> Tensor:
        """Every weight is ``scale``."""
        return torch.full((self.num_parameters,), scale, dtype=torch.float64)

    def outputs(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """h, (R, N)."""
        return (x_RNI @ w_RD.square().unsqueeze(2)).squeeze(2)

    def linearized(self, w_RD: Tensor, x_RNI: Tensor) -> tuple[Tensor, PullBack]:
        """h, (R, N), and the gradient of any weighted sum of it."""

        def pull_back(d_RN: Tensor) -> Tensor:
            return 2 * w_RD * (d_RN.unsqueeze(1) @ x_RNI).squeeze(1)

        return self.outputs(w_RD, x_RNI), pull_back

    def jacobian_sq(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """||dh_n / dw||^2, (R, N)."""
        return 4 * self.outputs(w_RD, x_RNI.square())

    def laplacian(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """2 sum_j x_j, (R, N)."""
        return 2 * x_RNI.sum(dim=2).expand(len(w_RD), -1)


class TanhNet:
    """h = sum_k a_k tanh(W_k . x + b_k) + c. Parameters in the order W, b, a, c."""

    def __init__(self, num_inputs: int, hidden: int) -> None:
        self.num_inputs, self.hidden = num_inputs, hidden
        self.sizes = [hidden * num_inputs, hidden, hidden, 1]
        self.num_parameters = sum(self.sizes)

    def initial(self, scale: float, generator: torch.Generator) -> Tensor:
        """Gaussian with standard deviation ``scale`` / sqrt(fan-in), biases 0."""
        w_D = torch.randn(self.num_parameters, dtype=torch.float64, generator=generator) * scale
        inner, bias, outer, last = torch.split(w_D, self.sizes)
        inner /= self.num_inputs**0.5
        outer /= self.hidden**0.5
        bias.zero_()
        last.zero_()
        return w_D

    def _parts(self, w_RD: Tensor, x_RNI: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tanh of the hidden units (R, N, H), a (R, 1, H), c (R, 1)."""
        inner_RF, b_RH, a_RH, c_R1 = torch.split(w_RD, self.sizes, dim=1)
        inner_RHI = inner_RF.reshape(-1, self.hidden, self.num_inputs)
        t_RNH = torch.tanh(x_RNI @ inner_RHI.transpose(1, 2) + b_RH.unsqueeze(1))
        return t_RNH, a_RH.unsqueeze(1), c_R1

    def outputs(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """h, (R, N)."""
        return self.linearized(w_RD, x_RNI)[0]

    def linearized(self, w_RD: Tensor, x_RNI: Tensor) -> tuple[Tensor, PullBack]:
        """h, (R, N), and the gradient of any weighted sum of it."""
        t_RNH, a_R1H, c_R1 = self._parts(w_RD, x_RNI)

        def pull_back(d_RN: Tensor) -> Tensor:
            before_RNH = (1 - t_RNH.square()) * a_R1H * d_RN.unsqueeze(2)
            inner_RHI = before_RNH.transpose(1, 2) @ x_RNI
            outer_RH = (d_RN.unsqueeze(1) @ t_RNH).squeeze(1)
            bias_RH, last_R1 = before_RNH.sum(dim=1), d_RN.sum(dim=1, keepdim=True)
            return torch.cat((inner_RHI.flatten(1), bias_RH, outer_RH, last_R1), dim=1)

        return (t_RNH @ a_R1H.transpose(1, 2)).squeeze(2) + c_R1, pull_back

    def jacobian_sq(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """||dh_n / dw||^2, (R, N)."""
        t_RNH, a_R1H, _ = self._parts(w_RD, x_RNI)
        to_inner_RN = (a_R1H * (1 - t_RNH.square())).square().sum(dim=2)
        return 1 + t_RNH.square().sum(dim=2) + to_inner_RN * (1 + x_RNI.square().sum(dim=2))

    def laplacian(self, w_RD: Tensor, x_RNI: Tensor) -> Tensor:
        """sum_k a_k tanh''(.) (1 + ||x||^2), (R, N)."""
        t_RNH, a_R1H, _ = self._parts(w_RD, x_RNI)
        curved_RN = (-2 * a_R1H * t_RNH * (1 - t_RNH.square())).sum(dim=2)
        return curved_RN * (1 + x_RNI.square().sum(dim=2))
