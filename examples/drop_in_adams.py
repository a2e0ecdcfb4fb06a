"""AdamS without a new optimizer: one line puts stable weight decay on the fused AdamW that is there already.

AdamS (Xie et al. 2023) divides the decay by the size of the gradients, as Adam divides its steps: where gradients
shrink tenfold, the decay grows tenfold, and its balance with the steps stays what it was.
"""

from __future__ import annotations

import torch

import halflife

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
groups = halflife.param_groups(model, policy="matrices", weight_decay=5e-4)
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.9), fused=True)
handle = halflife.attach(optimizer, halflife.Stable())  # the line; lam is each group's weight_decay

inputs, targets = torch.randn(64, 8), torch.randn(64, 1)


def decay_at(scale: float) -> float:
    """Train for 100 steps on a loss of another scale, and return the fraction that the last step removed."""
    for _ in range(100):
        optimizer.zero_grad()
        (scale * (model(inputs) - targets).square().mean()).backward()
        optimizer.step()
    return handle.fractions()[0]


large, small = decay_at(1.0), decay_at(0.1)
print(f"fraction removed per step: {large:.2e} at full gradients, {small:.2e} at a tenth of them")
assert 5 < small / large < 20
assert handle.fractions()[1] == 0.0  # biases do not decay
