"""A recipe that steps in the backward pass, as torchtune's `optimizer_in_bwd` does: one optimizer per parameter, in hooks.

The traps: each parameter gets the same settings, so norms decay as matrices do, and a recipe that names no `weight_decay` has
the 0.01 of AdamW; there is no optimizer to look at; and accumulated gradients are stepped one by one.
"""

import torch
from torch import nn

import halflife


def make_model() -> nn.Module:
    """Build a model in miniature."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(50, 16), nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 50))


def step_in_backward(acting: dict[nn.Parameter, torch.optim.Optimizer]) -> None:
    """Step a parameter as soon as its gradient is there, and free the gradient: what torchtune's recipes register."""

    def step(parameter: torch.Tensor) -> None:
        acting[parameter].step()
        acting[parameter].zero_grad()

    for parameter in acting:
        parameter.register_post_accumulate_grad_hook(step)


def make_optimizers(model: nn.Module) -> dict[nn.Parameter, torch.optim.Optimizer]:
    """Choose what decays, and give each parameter the optimizer of its group."""
    groups = halflife.param_groups(model, policy="matrices", weight_decay=0.1)
    return {p: torch.optim.AdamW([p], lr=1e-3, weight_decay=g["weight_decay"]) for g in groups for p in g["params"]}


def test_decay() -> None:
    """Hold in every run of the tests: pass the optimizers that act, as a list."""
    model = make_model()
    step_in_backward(acting := make_optimizers(model))
    halflife.assert_decay(model, list(acting.values()), {"matrices": "decoupled:0.1", "*": "none"})


if __name__ == "__main__":
    usual = make_model()
    table = halflife.explain(usual, [torch.optim.AdamW([p], lr=1e-3) for p in usual.parameters()])
    print("what such a recipe makes:", [warning.code for warning in table.warnings])
    model = make_model()
    step_in_backward(acting := make_optimizers(model))
    handle = halflife.attach(list(acting.values()), halflife.HalfLife(steps=1000))
    for _ in range(5):
        tokens = torch.randint(50, (64,))
        nn.functional.cross_entropy(model(tokens), (tokens + 1) % 50).backward()  # and no optimizer.step()
    print(f"removed by the last step: {handle.fractions()}")
    assert {round(r, 6) for r in handle.fractions()} == {round(1 - 0.5 ** (1 / 1000), 6), 0.0}
    test_decay()
