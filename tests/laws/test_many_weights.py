"""Large optimizers that are not torch's: each weight is told by what is done to it, not by what is done to its kind."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import halflife
from halflife.laws import live
from tests.laws.adversaries.parts import LAM, LR, Plain

Make = Callable[[nn.Sequential], Optimizer]


def layers(sizes: tuple[int, ...] = (8,) * 7) -> nn.Sequential:
    """Layers of one shape, so that no setting and no shape tells them apart."""
    torch.manual_seed(0)
    return nn.Sequential(*[nn.Linear(a, b, bias=False) for a, b in pairwise(sizes)])


class Skips(Plain):
    def __init__(self, params: Any, skipped: Any) -> None:
        super().__init__(params)
        self.skipped = skipped

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return 0.0 if id(p) in self.skipped else group["weight_decay"]


class ByPlace(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return index in {0, 1, 5}


class Multiplied(Plain):
    def __init__(self, params: Any, factors: dict[Tensor, float]) -> None:
        super().__init__(params)
        self.factors = factors

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"] * self.factors[p]


class Marked(Plain):
    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for index, p in enumerate(self.param_groups[0]["params"]):
            self.state[p]["use"] = index != 3

    def decays(self, p: Tensor, index: int) -> bool:
        return bool(self.state[p]["use"])


class BySize(Plain):
    def decays(self, p: Tensor, index: int) -> bool:
        return not 100 < p.numel() < 1000


class Steep(Plain):
    """Decays where there is a gradient, but for one weight: a step without gradient shows no difference."""

    def decays(self, p: Tensor, index: int) -> bool:
        return index != 2 and p.grad is not None and bool(p.grad.any())


class ByRatio(Plain):
    """As Muon scales its updates."""

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"] * max(1.0, p.shape[0] / p.shape[1])


class ByRows(Plain):
    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"] * 8 / p.shape[0]


class Masked(Plain):
    """Keeps a number for each row, which fits to no part of the weight."""

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        for p in self.param_groups[0]["params"]:
            self.state[p]["rows"] = torch.ones(p.shape[0], 1)

    def wd(self, group: dict[str, Any], p: Tensor) -> Any:
        return group["weight_decay"] * self.state[p]["rows"]


CASES: dict[str, tuple[Make, list[float], tuple[int, ...]]] = {
    "by identity": (lambda m: Skips(m.parameters(), {id(m[2].weight), id(m[4].weight)}), [1, 1, 0, 1, 0, 1], (8,) * 7),
    "by place": (lambda m: ByPlace(m.parameters()), [1, 1, 0, 0, 0, 1], (8,) * 7),
    "by factors": (
        lambda m: Multiplied(m.parameters(), {p: 0.5**i for i, p in enumerate(m.parameters())}),
        [1, 0.5, 0.25, 0.125, 0.0625, 0.03125],
        (8,) * 7,
    ),
    "by state": (lambda m: Marked(m.parameters()), [1, 1, 1, 0, 1, 1], (8,) * 7),
    "by size": (lambda m: BySize(m.parameters()), [1, 0, 0, 1, 0], (8, 8, 40, 20, 60, 3)),
    "by rows": (lambda m: ByRows(m.parameters()), [1, 0.2, 0.4, 8 / 60, 8 / 3], (8, 8, 40, 20, 60, 3)),
    "by ratio": (lambda m: ByRatio(m.parameters()), [1, 5, 1, 3, 1], (8, 8, 40, 20, 60, 3)),
    "with gradients": (lambda m: Steep(m.parameters()), [1, 1, 0, 1, 1, 1], (8,) * 7),
}


@pytest.mark.parametrize("limits", [(64, 1024), (64, 4)], ids=["many-elements", "many-tensors"])
@pytest.mark.parametrize("name", CASES)
def test_each_weight_is_told_by_itself(name: str, limits: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    make, shares, sizes = CASES[name]
    monkeypatch.setattr(live, "SIZE", limits[0])
    monkeypatch.setattr(live, "TENSORS", limits[1])
    monkeypatch.setattr(live, "PARTS", 200)
    monkeypatch.setattr(live, "PART", 40)
    model = layers(sizes)
    rows = halflife.explain(model, make(model)).rows
    assert [row["r"] or 0.0 for row in rows] == pytest.approx([LR * LAM * share for share in shares], rel=1e-6)


def test_what_is_too_large_to_be_stepped_whole_is_told_by_its_first_elements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SIZE", 64)
    monkeypatch.setattr(live, "GLANCE", 120)
    model = layers()
    rows = halflife.explain(model, Skips(model.parameters(), {id(model[3].weight)})).rows
    assert [row["r"] for row in rows] == [LR * LAM] * 3 + [None] + [LR * LAM] * 2


def test_state_that_fits_to_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "SIZE", 64)
    monkeypatch.setattr(live, "PARTS", 200)
    model = layers()
    assert [row["r"] for row in halflife.explain(model, Masked(model.parameters())).rows] == [LR * LAM] * 6


def test_what_depends_on_ratios_is_told_by_parts_and_what_depends_on_sizes_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"SIZE": 64, "GLANCE": 3 * 256, "PARTS": 3 * 64, "PART": 64}.items():
        monkeypatch.setattr(live, name, value)
    model = layers((64, 64, 256, 16))
    rows = halflife.explain(model, ByRatio(model.parameters())).rows
    assert [row["r"] for row in rows] == pytest.approx([LR * LAM, 4 * LR * LAM, LR * LAM], rel=0.01)
    assert {row["decays"] for row in halflife.explain(model, ByRows(model.parameters())).rows} == {None}


def test_what_decides_otherwise_over_a_part_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """More of it than is stepped at once may be stepped: then nothing is told."""
    monkeypatch.setattr(live, "SIZE", 64)
    monkeypatch.setattr(live, "TENSORS", 2)  # the optimizer is reduced to a few of its weights
    model = layers((8,) * 20)

    class ByNumber(Plain):
        def decays(self, p: Tensor, index: int) -> bool:
            return len(self.param_groups[0]["params"]) > 10

    table = halflife.explain(model, ByNumber(model.parameters()))
    assert {row["decays"] for row in table.rows} == {None}
    assert "beside all other parameters" in str(table)


class Paired(Optimizer):
    """Steps the second of two weights by way of the first, as LoRA-FA does, by lists beside the parameters."""

    def __init__(self, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        scales = [None if p.requires_grad else 2.0 for p in named.values()]
        group = {"params": list(named.values()), "names": list(named), "scales": scales}
        super().__init__([group], {"lr": LR, "weight_decay": LAM})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        waiting = []
        for group in self.param_groups:
            for p, name, own in zip(group["params"], group["names"], group["scales"], strict=True):
                waiting.append((p, own))
                if name.endswith("bias"):
                    (first, scale), (second, _) = waiting
                    waiting = []
                    assert second.grad is not None
                    second.add_(second.grad / scale**2 + 0.0 * first.sum(), alpha=-group["lr"])
                    second.mul_(1 - group["lr"] * group["weight_decay"])


@pytest.mark.parametrize("count", [2, 40], ids=["few", "many"])
def test_lists_beside_the_parameters(count: int) -> None:
    """Twins of some parameters have the items that are theirs, and, of many, the neighbours that their step needs."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(6, 5) for _ in range(count)])
    for layer in model:
        layer.get_parameter("weight").requires_grad_(False)
    table = halflife.explain(model, Paired(model))
    told = {(row["decays"], row["law"]) for row in table.rows if row["parameter"].endswith("bias")}
    assert told == {(True, "decoupled")}
    assert {row["decays"] for row in table.rows if row["parameter"].endswith("weight")} == {False}
