"""Objects that step and are no optimizers of torch: with groups, without `defaults`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from halflife import explain


class Wrapper:
    """As fastai's OptimWrapper: it steps torch's optimizer and takes its own decay from the weights after it."""

    def __init__(self, inner: torch.optim.Optimizer, outer: float) -> None:
        self.inner, self.outer = inner, outer

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return self.inner.param_groups

    @property
    def state(self) -> Any:
        return self.inner.state

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.mul_(1 - self.outer)


class Renaming(Wrapper):
    """As fastai's OptimWrapper, too: its groups are made anew, and call the weight decay otherwise."""

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [{"params": g["params"], "lr": g["lr"], "wd": g["weight_decay"]} for g in self.inner.param_groups]


@pytest.mark.parametrize("kind", [Wrapper, Renaming])
@pytest.mark.parametrize("outer", [0.0, 0.03])
def test_what_an_object_without_defaults_removes_is_seen(outer: float, kind: type[Wrapper]) -> None:
    model = nn.Linear(4, 3, bias=False)
    wrapper = kind(torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1), outer)
    before = model.weight.detach().clone()
    row = explain(model, wrapper).rows[0]  # type: ignore[arg-type]
    assert torch.equal(model.weight, before)
    model.weight.grad = torch.zeros_like(before)
    wrapper.step()
    removed = 1 - (model.weight / before).mean().item()
    assert removed == pytest.approx(1 - 0.99 * (1 - outer), rel=1e-4)
    assert (row["decays"], row["r"]) == (True, pytest.approx(removed, rel=1e-3))
