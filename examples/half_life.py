"""The time scale as the setting: half of an untouched weight is gone after two epochs, whatever the learning rate does.

A coefficient means something else at every learning rate; a half-life does not. Both runs below train with another
learning rate and on another optimizer, and a weight without gradient signal ends at the same value.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

import halflife

STEPS_PER_EPOCH, EPOCHS = 50, 6


def run(make: Callable[..., torch.optim.Optimizer], lr: float) -> float:
    """Train, and return what is left of a weight of 1 that the loss does not depend on."""
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer = make([weight], lr=lr, weight_decay=1.0)  # only says that this group decays
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS_PER_EPOCH * EPOCHS, eta_min=lr / 100)
    halflife.attach(optimizer, halflife.HalfLife(epochs=2), steps_per_epoch=STEPS_PER_EPOCH)
    for _ in range(STEPS_PER_EPOCH * EPOCHS):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        schedule.step()
    return weight.item()


left = [run(torch.optim.AdamW, 3e-4), run(torch.optim.SGD, 0.5)]
print(f"left after {EPOCHS} epochs with a half-life of 2 epochs: {left[0]:.6f} and {left[1]:.6f}")
assert all(abs(value - 0.5**3) < 1e-6 for value in left)
