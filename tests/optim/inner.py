"""Optimizers around optimizers for the tests, written from their descriptions: SAM, Lookahead, accumulation, masters."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

Closure = Callable[[], Tensor]


class SAM(Optimizer):
    """Sharpness-aware minimization: a step up the gradient, the gradient there, back, and the inner step."""

    def __init__(self, params: Any, base: Callable[..., Optimizer], rho: float = 0.05, **settings: Any) -> None:
        super().__init__(params, {"rho": rho, **settings})
        self.base_optimizer = base(self.param_groups, **settings)
        self.param_groups = self.base_optimizer.param_groups
        self.defaults.update(self.base_optimizer.defaults)

    @torch.no_grad()
    def first_step(self) -> None:
        """Climb to the sharpest point nearby."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    self.state[p]["old_p"] = p.data.clone()
                    p.add_(p.grad * (group["rho"] / (norm + 1e-12)))
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        """Go back, and update with the gradient that was found up there."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.data = self.state[p]["old_p"]
        self.base_optimizer.step()
        self.zero_grad()

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Both, with a closure that computes the loss and its gradient."""
        closure = torch.enable_grad()(closure)
        self.first_step()
        closure()
        self.second_step()


class Lookahead(Optimizer):
    """Every ``k`` steps the weights go back by half to where they were; made without torch's constructor."""

    def __init__(self, optimizer: Optimizer, k: int = 5, alpha: float = 0.5) -> None:
        self.optimizer, self.k, self.alpha, self.calls = optimizer, k, alpha, 0
        self.param_groups = optimizer.param_groups
        self.defaults = optimizer.defaults
        self.state = defaultdict(dict)
        self.slow = {p: p.detach().clone() for group in self.param_groups for p in group["params"]}

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One step of the inner optimizer, and the way back at every k-th."""
        loss = self.optimizer.step(closure)
        self.calls += 1
        if self.calls % self.k == 0:
            for p, slow in self.slow.items():
                slow.add_(p - slow, alpha=self.alpha)
                p.copy_(slow)
        return loss


class Accumulating(Optimizer):
    """Sums gradients, and steps the inner optimizer at every n-th call."""

    def __init__(self, inner: Optimizer, every: int) -> None:
        super().__init__(inner.param_groups, {})
        self._optimizer, self.every, self.calls = inner, every, 0
        self.param_groups = inner.param_groups

    def step(self, closure: Any = None) -> Any:
        """Count, and step at every n-th call."""
        self.calls += 1
        if self.calls % self.every == 0:
            self._apply(self._optimizer)

    def _apply(self, one: Optimizer) -> None:
        one.step()
        one.zero_grad()


class Keyed:
    """No torch optimizer, but one by its methods; two inner ones, by key."""

    def __init__(self, optimizers: dict[str, Optimizer]) -> None:
        self.inner = optimizers

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all."""
        return [group for each in self.inner.values() for group in each.param_groups]

    def step(self) -> None:
        """Step all."""
        for each in self.inner.values():
            each.step()


class HalfPrecision(Optimizer):
    """Float32 masters: the inner optimizer has them, and the weights are written from them."""

    def __init__(self, inner: Optimizer) -> None:
        self.narrow = [list(group["params"]) for group in inner.param_groups]
        super().__init__([{"params": params} for params in self.narrow], dict(inner.defaults))
        for group in inner.param_groups:
            group["params"] = [torch.nn.Parameter(p.detach().float()) for p in group["params"]]
        self.fp32 = inner

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Gradients to the masters, the inner step, and the masters to the weights."""
        for group, narrow in zip(self.fp32.param_groups, self.narrow, strict=True):
            for master, p in zip(group["params"], narrow, strict=True):
                master.grad = None if p.grad is None else p.grad.float()
        self.fp32.step()
        for group, narrow in zip(self.fp32.param_groups, self.narrow, strict=True):
            for master, p in zip(group["params"], narrow, strict=True):
                p.copy_(master)
