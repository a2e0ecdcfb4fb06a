"""explain on many groups and many tensors: few lines, and time that grows with them and no faster."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import halflife
from halflife.audit.text import in_common, without_numbers
from halflife.audit.view import _numbered
from halflife.laws.law import Law
from halflife.laws.seen import Found, Probed, Seen


def said(optimizers: Sequence[Optimizer], *, in_place: bool = False) -> list[Probed]:
    """What probing AdamW finds, without probing: what is tested here is what is made of it."""
    results = []
    for optimizer in optimizers:
        laws: list[Law] = []
        found: dict[int, Found] = {}
        for group in optimizer.param_groups:
            r = group["lr"] * group["weight_decay"]
            numbers: dict[str, Any] = {"lr_exponent": 1.0, "peak_lr_exponent": 0.0, "coefficient": 1.0, "fraction": r}
            laws.append(Law(pathway="decoupled", name="decoupled", **numbers) if r else Law(pathway="none"))
            seen = Seen(form="shrinks" if r else "still", r=r or None, lr=group["lr"], of=group["params"][0])
            found |= {id(each): Found(law=laws[-1], lam=group["weight_decay"], seen=seen) for each in group["params"]}
        results.append(Probed(laws=laws, found=found))
    return results


@pytest.fixture
def without_probing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.audit.rows.probe_of", said)


def deep(count: int) -> nn.Module:
    with torch.device("meta"):
        return nn.ModuleList([nn.Linear(4, 4) for _ in range(count)])


def layerwise(model: nn.Module, decays: bool = True) -> list[dict[str, Any]]:
    """Groups as for a fine-tuning by layers: the learning rate falls, biases do not decay."""
    depth = len(list(model.children()))
    groups: list[dict[str, Any]] = []
    for index, layer in enumerate(model.children()):
        lr = 1e-3 * 0.01 ** (1 - index / depth)
        groups.append({"params": [layer.weight], "lr": lr, "weight_decay": 0.1 if index < depth // 2 else 0.2})
        groups.append({"params": [layer.bias], "lr": lr, "weight_decay": 0.0})
    return groups


@pytest.mark.usefixtures("without_probing")
def test_300_groups_share_their_lines() -> None:
    model = deep(150)
    table = halflife.explain(model, AdamW(layerwise(model)), total_steps=1000)
    text = str(table)
    assert len(text.splitlines()) < 30
    assert "AdamW, 150 groups (0, 2, 4, ..., 298): 150 parameters, 2,400 numbers, float32" in text
    assert "lam 0.1 to 0.2, lr 1e-05 to 0.0009698, r 1e-06 to 0.000194, half-life 3,573 to 693,147 steps" in text
    assert "decays: yes, weight_decay is 0.1 to 0.2" in text
    assert len(table.groups) == len(table.rows) == 300  # the data has all of them
    together = [
        {"params": [*layer.parameters()], "lr": 1e-3 * 0.99**index} for index, layer in enumerate(model.children())
    ]
    assert "AdamW, groups 0-149: 300 parameters" in str(halflife.explain(model, AdamW(together, weight_decay=0.1)))


def test_two_groups_that_differ_in_lr() -> None:
    """Their parameters have different names: each line says its learning rate."""
    model = nn.ModuleDict({"backbone": nn.Linear(4, 4), "head": nn.Linear(4, 2)})
    groups = [
        {"params": model["backbone"].parameters(), "lr": 1e-5},
        {"params": model["head"].parameters(), "lr": 1e-3},
    ]
    text = str(halflife.explain(model, SGD(groups, weight_decay=0.1)))
    assert "SGD, groups 0-1: 4 parameters" in text
    assert re.search(r"lr 1e-05 to 0\.001, r 1e-06 to 0\.0001, half-life 6,931 to 693,147 steps", text)
    assert re.search(r"backbone\.weight +4 x 4 +1e-05 ", text)
    assert re.search(r"head\.bias +2 +0\.001 ", text)


@pytest.mark.usefixtures("without_probing")
def test_the_time_grows_with_the_number_of_groups_and_tensors() -> None:
    def seconds(count: int) -> float:
        model = deep(count)
        optimizer = AdamW(layerwise(model))
        start = time.process_time()
        str(halflife.explain(model, optimizer, total_steps=1000))
        return time.process_time() - start

    seconds(50)
    few, many = min(seconds(100) for _ in range(3)), min(seconds(800) for _ in range(2))
    assert many < 24 * few  # 8 times as many; all pairs of groups would be 64 times as many


@pytest.mark.usefixtures("without_probing")
def test_parameters_that_were_not_stepped_themselves_name_the_one_that_was() -> None:
    model = deep(3)
    table = halflife.explain(model, AdamW(model.parameters(), lr=1e-3, weight_decay=0.1))
    assert [row["seen_on"] for row in table.rows] == [None, *["0.weight"] * 5]
    assert "decays: yes, weight_decay is 0.1 (seen on 0.weight)" in str(table)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["weight_decay is 0.1", "weight_decay is 1e-05", "weight_decay is 0.1"], "weight_decay is 1e-05 to 0.1"),
        (["h.3.weight, 3 more", "h.3.weight, 12 more"], "h.3.weight, 3 to 12 more"),
        (["r is -2.", "r is 0."], "r is -2 to 0."),
        (["float32: 7", "float32: 7"], "float32: 7"),
    ],
)
def test_sentences_that_differ_in_numbers(texts: list[str], expected: str) -> None:
    assert len(set(map(without_numbers, texts))) == 1
    assert in_common(texts) == expected


def test_numbers_within_names_are_no_numbers() -> None:
    assert without_numbers("h.1.weight") != without_numbers("h.2.weight")
    assert without_numbers("float16") != without_numbers("float32")


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ([3], "group 3"),
        ([0, 1, 2], "groups 0-2"),
        ([0, 2, 3, 7], "groups 0, 2-3, 7"),
        ([*range(0, 12, 2)], "6 groups (0, 2, 4, ..., 10)"),
    ],
    ids=["one", "a row", "gaps", "many"],
)
def test_numbers_of_groups(numbers: list[int], expected: str) -> None:
    assert _numbered(numbers) == expected
