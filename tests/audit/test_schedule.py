"""What a scheduler beside the optimizer does to its decay; the truth is what the real one does in training."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import (
    ChainedScheduler,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from halflife.audit.found import choose, search
from halflife.audit.schedule import rates_of
from halflife.audit.target import audit_found

STEPS = 40


def noam(step: int) -> float:
    return float(min((step + 1) ** -0.5, (step + 1) * 10**-1.5)) * 1e-2


def cosine_of_transformers(optimizer: Optimizer) -> LRScheduler:
    module: Any = pytest.importorskip("transformers.optimization")
    made: LRScheduler = module.get_cosine_schedule_with_warmup(optimizer, 10, STEPS)
    return made


def warm_then_cosine(optimizer: Optimizer) -> LRScheduler:
    parts = [LinearLR(optimizer, 0.01, 1.0, 10), CosineAnnealingLR(optimizer, STEPS - 10)]
    return SequentialLR(optimizer, parts, milestones=[10])


PLANS: dict[str, Callable[[Optimizer], Any]] = {
    "one-cycle": lambda optimizer: OneCycleLR(optimizer, max_lr=[0.3, 0.2], total_steps=STEPS),
    "warm-up": lambda optimizer: LambdaLR(optimizer, lambda step: min(1.0, step / 10)),
    "noam": lambda optimizer: LambdaLR(optimizer, [noam, lambda step: 2 * noam(step)]),
    "sequential": warm_then_cosine,
    "chained": lambda optimizer: ChainedScheduler(
        [ExponentialLR(optimizer, 0.99), LinearLR(optimizer, 0.1, 1.0, 5)], optimizer=optimizer
    ),
}


def made() -> tuple[nn.Sequential, AdamW]:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3)).double()
    groups: list[dict[str, Any]] = [
        {"params": model[0].parameters()},
        {"params": model[1].parameters(), "lr": 0.2, "weight_decay": 0.0},
    ]
    return model, AdamW(groups, lr=0.1, weight_decay=0.5)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")
@pytest.mark.filterwarnings("ignore:The epoch parameter")
@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("after", [0, 3])
def test_the_walk_is_what_training_does(name: str, after: int) -> None:
    model, optimizer = made()
    plan = PLANS[name](optimizer)
    for _ in range(after):
        optimizer.step()
        plan.step()
    before = repr(optimizer.state_dict()), repr(plan.state_dict()), optimizer.step
    rates = rates_of(plan, STEPS - after)
    found = choose(search([("", (model, plan))]))
    said = audit_found(found, [], total_steps=STEPS - after)
    assert (repr(optimizer.state_dict()), repr(plan.state_dict()), optimizer.step) == before
    json.dumps(said.schedule)

    first = optimizer.param_groups[0]["params"][0]
    with torch.no_grad():
        first.fill_(1.0)
    truth: list[list[float]] = [[], []]
    fractions = []
    for _ in range(STEPS - after):
        for group, seen in zip(optimizer.param_groups, truth, strict=True):
            seen.append(group["lr"])
        weight = first.detach().clone()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        fractions.append(float((1 - first / weight).detach()[0, 0]))
        plan.step()
    assert rates == truth
    kept = float(first.detach()[0, 0])
    text = next(sentence for sentence in said.schedule if "group 0 of optimizer 0" in sentence)
    assert f"keeps {kept:.1%} of its size" in text, (text, kept)
    (r,) = re.findall(r"at most r ([\d.e-]+),", text)
    assert float(r) == pytest.approx(max(fractions), rel=1e-3)
    assert all("keeps" not in sentence for sentence in said.schedule if "group 1 of optimizer 0" in sentence)


@pytest.mark.slow
def test_the_schedules_of_transformers() -> None:
    _, optimizer = made()
    rates = rates_of(cosine_of_transformers(optimizer), STEPS)
    assert max(rates[0]) == rates[0][10] == 0.1
    assert rates[0][0] == 0.0


def test_what_is_not_followed() -> None:
    model, optimizer = made()

    class Own(LambdaLR):
        def get_lr(self) -> list[float | torch.Tensor]:
            if self.last_epoch > 2:
                raise KeyError("epoch")
            return [0.1, 0.1]

    plans = [LambdaLR(optimizer, lambda step: 1.0), ReduceLROnPlateau(optimizer), Own(optimizer, lambda step: 1.0)]
    found = choose(search([("", (model, *plans))]))
    first, second, _ = audit_found(found, []).schedule
    assert first == "LambdaLR is not followed: give the length of the run with --total-steps"
    assert second == "ReduceLROnPlateau follows a measurement, so what it does to the learning rate is not known before"
    assert audit_found(found, [], total_steps=5).schedule[-1] == (
        "Own is not followed: a copy of it cannot be walked (KeyError: 'epoch')"
    )


def test_a_long_run_is_not_walked_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.audit.schedule.MOST_STEPS", 7)
    model, optimizer = made()
    found = choose(search([("", (model, LambdaLR(optimizer, lambda step: 1.0)))]))
    assert "over these 7 steps" in audit_found(found, [], total_steps=10**9).schedule[0]


def test_schedules_that_do_the_same_are_told_once() -> None:
    models = [nn.Linear(3, 3) for _ in range(3)]
    optimizers = [AdamW(model.parameters(), lr=0.1) for model in models]
    plans: list[LRScheduler] = [ExponentialLR(optimizer, 0.9) for optimizer in optimizers[:2]]
    plans += [ExponentialLR(optimizers[2], 0.5)]
    sentences = audit_found(choose(search([("", (models, plans))])), [], total_steps=10).schedule
    assert [sentence.partition(":")[0] for sentence in sentences] == [
        "ExponentialLR, stepped once per step, on group 0 of optimizers 0, 1",
        "ExponentialLR, stepped once per step, on group 0 of optimizer 2",
    ]
    assert audit_found(choose(search([("", (models, plans))])), []).schedule == (
        "ExponentialLR is not followed: give the length of the run with --total-steps",
    )


def test_a_schedule_per_epoch_is_not_told_as_one_per_step() -> None:
    model = nn.Linear(3, 3)
    plan = LambdaLR(AdamW(model.parameters(), lr=0.1), lambda epoch: 1 - max(0, epoch - 10) / 10)
    (sentence,) = audit_found(choose(search([("", (model, plan))])), [], total_steps=100).schedule
    assert sentence.endswith(
        "lr 0.1, at most 0.1 (step 0), and below 0 from step 21 on: it is meant to be stepped less often, per epoch "
        "perhaps, or --total-steps is too large"
    )
