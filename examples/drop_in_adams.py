"""AdamS without a new optimizer: one line puts stable weight decay on the fused AdamW that is there already.

AdamS (Xie et al. 2023) divides the decay by the size of the gradients, as Adam divides its steps: r = lr * lam / rms.
So lam is in units of the gradients, and AdamW's usual 0.1 is far too much: 0.1 * rms removes what AdamW would.
"""

from __future__ import annotations

import torch

import halflife

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Tanh(), torch.nn.Linear(16, 1))
groups = halflife.param_groups(model, policy="matrices", weight_decay=0.1)
optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.9), fused=True)
inputs, targets = torch.randn(64, 8), torch.randn(64, 1)


def backward(scale: float) -> None:
    """Make the gradients of a loss of another scale."""
    optimizer.zero_grad()
    (scale * (model(inputs) - targets).square().mean()).backward()


backward(1.0)
rms = torch.cat([p.grad.flatten() for p in model.parameters()]).square().mean().sqrt().item()
handle = halflife.attach(optimizer, halflife.Stable(lam=0.1 * rms))  # the line

removed = []
for scale in [1.0] * 100 + [0.1] * 100:
    backward(scale)
    optimizer.step()
    removed.append(handle.fractions()[0])
print(
    f"removed per step: {removed[0]:.2e} at first, {removed[99]:.2e} later, {removed[199]:.2e} at a tenth of the gradients"
)
assert abs(removed[0] - 1e-3 * 0.1) < 1e-9
assert 5 < removed[199] / removed[99] < 20
assert handle.fractions()[1] == 0.0  # biases do not decay
