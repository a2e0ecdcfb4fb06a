"""Accelerate: see what decays, choose groups, attach before or after `prepare`, and keep it so with a test.

The traps: under `accumulate` most calls of `step` do nothing, so count steps of the optimizer and not batches; and a scheduler
that is prepared moves once per process and step, so that the learning rate, and lr * lam with it, falls faster on more of them.
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader

import halflife


def make() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Choose what decays."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 16), nn.LayerNorm(16), nn.ReLU(), nn.Linear(16, 1))
    return model, torch.optim.AdamW(halflife.param_groups(model, weight_decay=0.1), lr=1e-2)


def train(attach_before: bool) -> tuple[torch.Tensor, list[float]]:
    """Train 16 batches in 4 steps; return a weight, and what each call of `step` says that it removed."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    rule = halflife.HalfLife(steps=100)
    model, optimizer = make()
    handle = halflife.attach(optimizer, rule) if attach_before else None
    loader = DataLoader(torch.randn(64, 4, generator=torch.Generator().manual_seed(0)), batch_size=4)
    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    handle = handle or halflife.attach(optimizer, rule)  # what `prepare` returned is looked through
    for batch in loader:
        with accelerator.accumulate(model):
            accelerator.backward(model(batch).square().mean())
            optimizer.step()
            optimizer.zero_grad()
    assert optimizer.state_dict()["param_groups"][0]["halflife_step"] == 4  # steps of the optimizer, not batches
    return accelerator.unwrap_model(model)[0].weight.detach(), handle.fractions()


def test_decay() -> None:
    """Hold in every run of the tests: matrices decay, nothing else does, before `prepare` and after it."""
    model, optimizer = make()
    expected = {"matrices": "decoupled:0.1", "*": "none"}
    halflife.assert_decay(model, optimizer, expected)
    halflife.assert_decay(model, Accelerator(cpu=True).prepare(optimizer), expected)


if __name__ == "__main__":
    print(halflife.explain(*make()))
    before, removed = train(attach_before=True)
    after, _ = train(attach_before=False)
    print(f"removed by the last step: {removed}")
    assert torch.equal(before, after)
    assert abs(removed[0] - (1 - 0.5 ** (1 / 100))) < 1e-9
    assert removed[1] == 0.0
    test_decay()
