"""Three set-ups that are in many training scripts, and what each of them really decays: `make demo` audits them.

By hand:  halflife audit examples/three_setups.py:adam --total-steps 10000
"""

import torch
from torch import nn

import halflife

TOTAL_STEPS = 10_000


class Model(nn.Module):
    """A language model in miniature, whose head is its embedding of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(1000, 64), nn.Embedding(128, 64)
        self.mix, self.norm = nn.Linear(64, 64), nn.LayerNorm(64)
        self.head = nn.Linear(64, 1000, bias=False)
        self.head.weight = self.tokens.weight


def adam():
    """Adam with a weight decay that was meant as AdamW's."""
    model = Model()
    return model, torch.optim.Adam(model.parameters(), lr=3e-4, weight_decay=0.1)


def two_groups():
    """AdamW with two groups: decay for what has two dimensions, on a model with tied weights."""
    model = Model()
    decays = {"params": [p for p in model.parameters() if p.dim() >= 2], "weight_decay": 0.1}
    others = {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0}
    return model, torch.optim.AdamW([decays, others], lr=6e-4)


def sgd():
    """SGD with momentum 0.9 and weight decay 5e-4, under a cosine: how ResNets are trained."""
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Flatten(), nn.Linear(14400, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, TOTAL_STEPS)


if __name__ == "__main__":
    for make in (adam, two_groups, sgd):
        model, optimizer, *_ = make()
        table = halflife.explain(model, optimizer, total_steps=TOTAL_STEPS)
        print(f"{make.__name__}: {table.groups[0]['law']}, {[warning.code for warning in table.warnings]}")
