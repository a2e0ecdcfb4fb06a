"""``attach`` in states that a user's loop can reach: rules of one's own, cut-off steps, resets, odd gradients."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.optim import SGD

from halflife import answers
from halflife.attach import attach
from halflife.errors import UserError
from halflife.rules import Rule, StepInfo, law_text


def one_weight() -> torch.nn.Parameter:
    weight = torch.nn.Parameter(torch.ones(3))
    weight.grad = torch.zeros(3)
    return weight


# ---- rules of one's own


class AsTensor(Rule):
    """Answers with the tensors that it is given, one per step."""

    def __init__(self, *answers: Tensor) -> None:
        self.answers = answers

    def fraction(self, info: StepInfo) -> Tensor:
        return self.answers[info.step]


@pytest.mark.parametrize("r", [1.5, -0.5, float("nan")])
def test_a_tensor_on_the_cpu_is_checked_before_the_weights_are_touched(r: float) -> None:
    weight = one_weight()
    optimizer = SGD([weight], lr=0.1, weight_decay=1.0)
    attach(optimizer, AsTensor(torch.tensor(0.25), torch.tensor(r)))
    optimizer.step()
    with pytest.raises(UserError, match="asks to remove the fraction"):
        optimizer.step()
    assert weight.tolist() == [0.75] * 3


class OnDevice(Tensor):
    """A tensor that says it is on an accelerator."""

    device = torch.device("cuda")


@pytest.mark.parametrize("r", [1.5, -0.5, float("nan"), float("inf")])
def test_an_answer_that_is_checked_late_does_not_touch_the_weights_either(
    r: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Copy:
        def __init__(self, tensor: Tensor) -> None:
            self.number = tensor.item()

        def read(self) -> float:
            return self.number

    monkeypatch.setattr(answers, "HostCopy", Copy)
    made: list[Any] = [torch.tensor(value).as_subclass(OnDevice) for value in (0.25, r, 0.25)]
    weight = one_weight()
    optimizer = SGD([weight], lr=0.1, weight_decay=1.0)
    attach(optimizer, AsTensor(*made))
    optimizer.step()
    optimizer.step()
    with pytest.raises(UserError, match="asks to remove the fraction"):
        optimizer.step()
    assert weight.tolist() == [0.75] * 3


class Plain(Rule):
    """No dataclass."""

    def __init__(self, share: float) -> None:
        self.share = share

    def fraction(self, info: StepInfo) -> float:
        return self.share


@dataclass(frozen=True)
class Table(Rule):
    shares: dict[int, float]

    def fraction(self, info: StepInfo) -> float:
        return self.shares[info.group]


def test_a_run_under_a_plain_class_resumes() -> None:
    """Its default repr has its address in memory, which no two processes share."""
    first, second = (SGD([one_weight()], lr=0.1, weight_decay=1.0) for _ in range(2))
    attach(first, Plain(0.25))
    first.step()
    handle = attach(second, Plain(0.25))
    second.load_state_dict(first.state_dict())
    assert second.state_dict()["param_groups"][0]["halflife_step"] == 1
    handle.detach()
    other = SGD([one_weight()], lr=0.1, weight_decay=1.0)
    attach(other, Plain(0.5))
    with pytest.raises(UserError, match=r"made under the law Plain\(share=0.25\), but attached is Plain\(share=0.5\)"):
        other.load_state_dict(first.state_dict())


def test_a_rule_may_hold_a_mapping() -> None:
    assert law_text(Table({0: 0.5, 1: 0.25}).law()) == "Table(shares=[[0, 0.5], [1, 0.25]])"
