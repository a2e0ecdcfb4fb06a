"""Weight decay in the early phase only, and a resumed run that knows where that phase ends.

Decay matters most early (Golatkar et al. 2019). Here it stops at step 60, and the run is interrupted at step 40.
"""

from __future__ import annotations

from typing import Any

import torch

import halflife
from halflife.schedules import until


def train(steps: range, saved: dict[str, Any] | None = None) -> tuple[dict[str, Any], int]:
    """Train from the start or from a checkpoint; return a checkpoint, and how many steps decayed."""
    torch.manual_seed(0)
    model = torch.nn.Linear(8, 8, bias=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=0.1)
    handle = halflife.attach(optimizer, halflife.Scheduled(halflife.Decoupled(), until(60)))
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    decayed = 0
    for step in steps:
        inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model(inputs) - inputs).square().mean().backward()
        optimizer.step()
        decayed += handle.fractions()[0] > 0
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}, decayed


whole, decayed = train(range(100))
checkpoint, early = train(range(40))
resumed, late = train(range(40, 100), checkpoint)
print(f"decayed for {decayed} steps in one go, for {early} + {late} across an interruption")
assert (decayed, early, late) == (60, 40, 20)
assert torch.equal(resumed["model"]["weight"], whole["model"]["weight"])
