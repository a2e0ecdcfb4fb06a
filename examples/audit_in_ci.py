"""Keep the decay as it is: what `halflife audit` says of this file, and the same as a test.

In a CI:  halflife audit examples/audit_in_ci.py:make_optimizer --expect matrices=decoupled:0.1 --expect "*=none"
"""

import torch
from torch import nn

import halflife


def make_optimizer() -> tuple[nn.Module, torch.optim.Optimizer]:
    """Build what the training script builds; this is the function that the audit names."""
    model = nn.Sequential(nn.Embedding(100, 16), nn.Linear(16, 16), nn.LayerNorm(16), nn.Linear(16, 4))
    groups = halflife.param_groups(model, weight_decay=0.1)
    return model, torch.optim.AdamW(groups, lr=3e-4)


def test_decay() -> None:
    """Hold in every run of the tests: matrices decay, nothing else does."""
    model, optimizer = make_optimizer()
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1", "*": "none"})


def test_a_change_is_noticed() -> None:
    """Somebody builds the optimizer without groups: norms, biases and the embedding decay as well."""
    model, _ = make_optimizer()
    careless = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.1)
    message = "nothing"
    try:
        halflife.assert_decay(model, careless, {"matrices": "decoupled:0.1", "*": "none"})
    except AssertionError as error:
        message = str(error)
    assert "0.weight: found decoupled:0.1" in message


if __name__ == "__main__":
    test_decay()
    test_a_change_is_noticed()
    print(halflife.explain(*make_optimizer()))
