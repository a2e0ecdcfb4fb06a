"""Parameters that share memory: what is told of one is what happens to that memory, whichever of them is stepped."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW

import halflife
from halflife.audit.memory import shared_memory


def stepped(optimizer: Any, watched: nn.Module) -> dict[str, float]:
    """The oracle: what a real step with gradients of zeros takes from each parameter of a model."""
    before = {name: each.detach().clone() for name, each in watched.named_parameters()}
    for group in optimizer.param_groups:
        for each in group["params"]:
            each.grad = torch.zeros_like(each)
    optimizer.step()
    return {name: 1 - (each.detach().norm() / before[name].norm()).item() for name, each in watched.named_parameters()}


def flattened(model: nn.Module) -> nn.Parameter:
    """One parameter that has the memory of all of a model's."""
    flat = nn.Parameter(torch.cat([each.detach().reshape(-1) for each in model.parameters()]))
    place = 0
    for each in model.parameters():
        each.data = flat.data[place : place + each.numel()].view_as(each)
        place += each.numel()
    return flat


def small() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_a_model_over_one_flat_parameter(lam: float) -> None:
    model = small()
    model[0].weight.requires_grad_(False)  # the step does not ask for it
    optimizer = AdamW([flattened(model)], lr=0.1, weight_decay=lam)
    table = halflife.explain(model, optimizer)
    rows = {row["parameter"]: row for row in table.rows}
    for name, fraction in stepped(optimizer, model).items():
        assert rows[name]["decays"] is (lam > 0)
        assert (rows[name]["r"] or 0.0) == pytest.approx(fraction, abs=1e-6)
        assert (
            rows[name]["why"]
            == f"weight_decay is {lam:g}; it is part of the memory of group 0, parameter 0, which is stepped"
        )
    assert rows["group 0, parameter 0"]["what"] == "memory of parameters of the model"
    assert not {warning.code for warning in table.warnings} & {"in-no-optimizer", "not-in-model"}
    assert (table.groups[0]["num_parameters"], table.groups[0]["num_elements"]) == (1, 24)
    halflife.assert_decay(model, optimizer, {"*": "decoupled:0.2" if lam else "none"})
    with pytest.raises(AssertionError, match="differ"):
        halflife.assert_decay(model, optimizer, {"*": "none" if lam else "decoupled:0.2"})


def test_a_group_that_says_0_over_memory_that_decays() -> None:
    model = nn.Module()
    model.whole = nn.Parameter(torch.arange(1.0, 13.0).view(4, 3))
    model.row = nn.Parameter(model.whole.data[1])
    groups = [{"params": [model.whole], "weight_decay": 0.3}, {"params": [model.row], "weight_decay": 0.0}]
    optimizer = AdamW(groups, lr=0.1)
    table = halflife.explain(model, optimizer)
    whole, row = table.rows
    assert (whole["decays"], row["decays"]) == (True, True)
    assert "it shares memory with whole" in row["notes"]
    (warning,) = [each for each in table.warnings if each.code == "decay-without-setting"]
    assert "it has memory in common with whole; give memory to one parameter of one group" in str(warning)
    assert "elsewhere" not in str(warning)
    assert row["r"] == pytest.approx(stepped(optimizer, model)["row"], rel=1e-4)


def test_memory_that_two_optimizers_step() -> None:
    model = nn.Module()
    model.whole = nn.Parameter(torch.arange(1.0, 13.0).view(4, 3))
    model.row = nn.Parameter(model.whole.data[1])
    optimizers = [SGD([model.whole], lr=0.1, weight_decay=0.3), SGD([model.row], lr=0.1)]
    whole, row = halflife.explain(model, optimizers).rows
    assert (whole["decays"], row["decays"]) == (True, None)
    assert row["why"] == "not probed: some of its memory is that of whole, which another optimizer steps"
    with pytest.raises(AssertionError, match="another optimizer steps"):
        halflife.assert_decay(model, optimizers, {"row": "none"})


def test_a_parameter_of_which_only_some_is_stepped() -> None:
    model = nn.Module()
    model.whole = nn.Parameter(torch.arange(1.0, 13.0).view(4, 3))
    optimizer = SGD([nn.Parameter(model.whole.data[1])], lr=0.1, weight_decay=0.3)
    row = halflife.explain(model, optimizer).rows[0]
    assert (row["decays"], row["why"]) == (None, "not probed: some of its memory is that of group 0, parameter 0")


BASE = torch.arange(24.0).view(4, 6)


@pytest.mark.parametrize(
    ("one", "other", "inside", "apart"),
    [
        (BASE, BASE[1:3], (False, True), False),
        (BASE, BASE.t(), (True, True), False),
        (BASE[:2], BASE[1:], (False, False), False),
        (BASE[:2], BASE[2:], (), True),
        (BASE[:, :3], BASE[:, 3:], (), True),  # columns lie among each other
        (BASE, BASE[:, 1], (False, True), False),
        (BASE, BASE.clone(), (), True),
        (BASE.to("meta"), BASE.to("meta"), (), True),
    ],
    ids=["rows", "transposed", "overlapping", "halves", "columns", "a column", "a copy", "meta"],
)
def test_what_shares_memory(one: Tensor, other: Tensor, inside: tuple[bool, ...], apart: bool) -> None:
    found = shared_memory([one, other])
    assert (not found) is apart
    assert tuple(found[id(each)][0].inside for each in (one, other) if id(each) in found) == inside
