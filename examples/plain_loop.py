"""A plain loop: see what decays, choose what should, attach a rule, and keep it so with a test.

The trap: `model.parameters()` decays norms, biases and embeddings as well, and nothing says so.
"""

import torch
from torch import nn

import halflife


def make_model() -> nn.Module:
    """Build a language model in miniature."""
    return nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 50))


def make_optimizer(model: nn.Module) -> tuple[torch.optim.Optimizer, halflife.Handle]:
    """Choose what decays, and by which rule: half of an untouched weight is gone after 1,000 steps."""
    groups = halflife.param_groups(model, policy="matrices", weight_decay=0.1)
    optimizer = torch.optim.AdamW(groups, lr=3e-3)
    return optimizer, halflife.attach(optimizer, halflife.HalfLife(steps=1000))


def train(num_steps: int) -> list[float]:
    """Train under a learning rate that falls; return what the last step removed, per group."""
    torch.manual_seed(0)
    model = make_model()
    optimizer, handle = make_optimizer(model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(num_steps):
        tokens = torch.randint(50, (64,))
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 50).backward()
        optimizer.step()
        scheduler.step()
        optimizer.zero_grad()
    return handle.fractions()


def test_decay() -> None:
    """Hold in every run of the tests: matrices decay by the rule, nothing else does."""
    model = make_model()
    optimizer, _ = make_optimizer(model)
    halflife.assert_decay(model, optimizer, {"matrices": "half-life:1000", "*": "none"})


if __name__ == "__main__":
    model = make_model()
    usual = halflife.explain(model, torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1))
    print("what is usually written:", [warning.code for warning in usual.warnings])
    removed = train(30)
    print(f"removed by the last step: {removed}")
    assert abs(removed[0] - (1 - 0.5 ** (1 / 1000))) < 1e-9
    assert removed[1] == 0.0
    test_decay()
