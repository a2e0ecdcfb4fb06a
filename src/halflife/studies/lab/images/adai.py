"""Adai: SGD whose momentum is small where gradients are large, tensor element by tensor element."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.optim import Optimizer

__all__ = ["Adai"]


class Adai(Optimizer):
    """Adaptive inertia, without a decay of its own.

    With all operations by element, and the mean over all parameters of all groups::

        v = beta2 v + (1 - beta2) g^2,             v' = v / (1 - beta2^t)
        b = clip(1 - beta0 v' / mean(v'), 0, 1 - eps)
        m = b m + (1 - b) g,                       w = w - lr m / (1 - product of all b so far)

    Source: Xie et al. 2022, "Adaptive Inertia: Disentangling the Effects of Adaptive Learning Rate and Momentum" (arXiv
    2006.15815), Algorithm 2. pytorch-optimizer 4.1.0 has another one: there mean(v') is at least eps, so that gradients
    below sqrt(eps) = 0.03 hardly change the momentum.

    Args:
        params: Parameters, or groups of them.
        lr: The learning rate.
        betas: beta0 and beta2.
        eps: The momentum is at most 1 - eps.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, betas: tuple[float, float] = (0.1, 0.99), eps: float = 1e-3
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's own
        """Step all parameters that have a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        total, count, work = torch.zeros(()), 0, []
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if not params:
                continue
            states = [self.state[p] for p in params]
            for p, state in zip(params, states, strict=True):
                if not state:
                    state |= {
                        "step": torch.zeros(()),
                        "exp_avg": torch.zeros_like(p),
                        "exp_avg_sq": torch.zeros_like(p),
                    }
                    state["momentum_product"] = torch.ones_like(p)
                state["step"] += 1
            beta2 = group["betas"][1]
            grads, v = [p.grad for p in params], [state["exp_avg_sq"] for state in states]
            torch._foreach_mul_(v, beta2)
            torch._foreach_addcmul_(v, grads, grads, value=1 - beta2)
            v = list(torch._foreach_div(v, [1 - beta2 ** state["step"].item() for state in states]))
            total = torch.stack([each.sum() for each in v]).sum() + total.to(v[0].device)
            count += sum(p.numel() for p in params)
            work.append((group, params, grads, states, v))
        for group, params, grads, states, v in work:
            # Where no gradient was ever other than 0, so is v.
            b = torch._foreach_div(v, (total / count).clamp_min(torch.finfo(total.dtype).tiny))
            torch._foreach_mul_(b, -group["betas"][0])
            torch._foreach_add_(b, 1.0)
            torch._foreach_clamp_min_(b, 0.0)
            torch._foreach_clamp_max_(b, 1 - group["eps"])
            m, product = ([state[key] for state in states] for key in ("exp_avg", "momentum_product"))
            torch._foreach_mul_(product, b)
            # m = g + b (m - g)
            torch._foreach_sub_(m, grads)
            torch._foreach_mul_(m, b)
            torch._foreach_add_(m, grads)
            left = torch._foreach_neg(product)
            torch._foreach_add_(left, 1.0)
            torch._foreach_addcdiv_(params, m, left, value=-group["lr"])
        return loss
