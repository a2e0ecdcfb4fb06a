"""Layers under noise alone: one step by hand, the published balances, and what a spec refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from halflife.errors import UserError
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.stationary.source import describe
from halflife.studies.lab.trainer import train
from halflife.studies.specs import NoiseOnlyRun, spec_from_json
from halflife.studies.store.records import Reading

SGD = NoiseOnlyRun(optimizer="sgd", lr=0.1, decay="L2(lam=0.01)", momentum=0.9, num_steps=40)
ADAM = NoiseOnlyRun(optimizer="adam", lr=0.01, decay="Decoupled(lam=0.2)", beta2=0.99, num_steps=40)


def run(spec: NoiseOnlyRun) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append)
    return readings


def late(spec: NoiseOnlyRun) -> dict[str, float]:
    """Means over the second half of a run."""
    found = run(spec)
    half = found[len(found) // 2 :]
    return {name: float(np.mean([reading.values[name] for reading in half])) for name in half[0].values}


def test_two_steps_are_those_of_a_loop_over_numbers() -> None:
    """SGD with decoupled decay, two layers of two replicas, under a changing rate."""
    sizes, norms, lr, lam = (4, 3), (0.5, 2.0), 0.3, 0.1
    spec = NoiseOnlyRun(
        optimizer="sgd", lr=lr, decay=f"Decoupled(lam={lam})", lr_schedule="linear(start=1.0, end=0.5, steps=1)",
        num_weights=sizes, gradient_norms=norms, start_norm=2.0, num_replicas=2, num_steps=2, eval_every=1, seed=3,
    )  # fmt: skip
    draws = torch.Generator().manual_seed(seed_of("noise-only/3"))

    def normal(size: int) -> list[list[float]]:
        drawn: list[list[float]] = torch.randn(2, size, generator=draws, dtype=torch.float64).tolist()
        return drawn

    def length(v: list[float]) -> float:
        return math.sqrt(sum(x * x for x in v))

    w = [[[2 * x / length(row) for x in row] for row in normal(size)] for size in sizes]
    for step, reading in enumerate(run(spec)):
        rate = lr * (1.0, 0.5)[step]
        assert reading.values["lr"] == pytest.approx(rate)
        for layer, size in enumerate(sizes):
            seen = {"norm": 0.0, "rotation": 0.0, "gradient_ratio": 0.0}
            for replica, drawn in enumerate(normal(size)):
                old = w[layer][replica]
                along = sum(a * b for a, b in zip(old, drawn, strict=True)) / length(old) ** 2
                z = [b - along * a for a, b in zip(old, drawn, strict=True)]
                g = [norms[layer] / length(old) * b / length(z) for b in z]
                new = [(1 - rate * lam) * a - rate * b for a, b in zip(old, g, strict=True)]
                cosine = sum(a * b for a, b in zip(old, new, strict=True)) / length(old) / length(new)
                seen["norm"] += length(old) / 2
                seen["rotation"] += math.acos(cosine) / 2
                seen["gradient_ratio"] += length(g) / length(old) / 2
                w[layer][replica] = new
            for name, value in seen.items():
                assert reading.values[f"{name}/{layer}"] == pytest.approx(value, rel=1e-9)
            assert f"mask/{layer}" not in reading.values


@pytest.mark.slow
@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (SGD, {"norm/0": (0.1 / (2 * 0.01 * 0.1)) ** 0.25, "rotation/0": math.sqrt(2 * 0.1 * 0.01 / 1.9)}),
        (replace(SGD, momentum=0.0, num_steps=8_000), {"norm/0": (0.1 / 0.02) ** 0.25, "rotation/0": math.sqrt(0.002)}),
        (ADAM, {"norm/0": math.sqrt(0.01 * 1000 / 0.4), "rotation/0": math.sqrt(2 * 0.002 * 0.1 / 1.9)}),
        (replace(ADAM, gradient_norms=(7.0,)), {"norm/0": math.sqrt(0.01 * 1000 / 0.4)}),
        (replace(ADAM, decay="L2(lam=0.001)"), {"norm/0": (0.01 * math.sqrt(1000) / 0.002) ** (1 / 3)}),
    ],
    ids=["sgd", "sgd-plain", "adamw", "adamw-other-size", "adam-l2"],
)
def test_a_long_run_ends_in_the_published_balance(spec: NoiseOnlyRun, expected: dict[str, float]) -> None:
    found = late(replace(spec, num_steps=max(spec.num_steps, 5_000)))
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=0.03), name


def test_the_mask_is_about_half_and_cautious_decay_acts_on_it() -> None:
    plain, cautious = (
        late(replace(ADAM, decay=decay, num_steps=600)) for decay in (ADAM.decay, f"Cautious({ADAM.decay})")
    )
    assert 0.35 < plain["mask/0"] < 0.5
    assert 0.35 < cautious["mask/0"] < 0.5
    assert cautious["norm/0"] > 1.1 * plain["norm/0"]


def test_the_second_moment_is_that_of_all_layers() -> None:
    spec = replace(ADAM, decay="", num_weights=(100, 300), gradient_norms=(1.0, 5.0), num_steps=1)
    expected = math.sqrt((8 * 1.0 + 8 * 25.0) / (8 * 400))  # norms are 1: the mean square of all 8 * 400 numbers
    assert run(spec)[0].values["root_second_moment"] == pytest.approx(expected)


def test_lion_steps_by_signs() -> None:
    pytest.importorskip("pytorch_optimizer")
    spec = replace(ADAM, optimizer="lion", lr=1e-3, decay="", num_steps=300, start_norm=3.0)
    first, *_ = run(replace(spec, num_steps=1))
    moved = 1e-3 * math.sqrt(1000)  # each of 1,000 weights by lr
    assert first.values["rotation/0"] == pytest.approx(math.atan(moved / 3.0), rel=0.01)
    assert late(spec)["norm/0"] > 3.0


def test_runs_with_other_decay_see_the_same_noise_and_repeat_to_the_bit() -> None:
    readings = run(SGD)
    assert [each.values for each in readings] == [each.values for each in run(SGD)]
    other = run(replace(SGD, decay=""))
    assert readings[0].values["norm/0"] < other[0].values["norm/0"]
    one, two = (run(replace(SGD, decay=decay, num_steps=1))[0].values for decay in (SGD.decay, ""))
    assert one["norm/0"] == two["norm/0"]
    assert one["gradient_ratio/0"] == two["gradient_ratio/0"]
    assert run(replace(SGD, seed=1))[0].values != readings[0].values


def test_a_spec_comes_back_from_json_and_needs_no_data() -> None:
    assert spec_from_json(ADAM.to_json()) == ADAM
    assert describe(ADAM).name == "none"
    assert ADAM.cut(7).last_step == 7
    assert run(ADAM.cut(7))[-1].step == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer is 'adamw', expected one of sgd, adam, lion"),
        ({"lr": 0.0}, "lr is 0"),
        ({"momentum": 1.0}, r"momentum is 1, expected a number in \[0, 1\)"),
        ({"beta1": 1.5}, "beta1"),
        ({"momentum": 0.9, "optimizer": "adam"}, "momentum is 0.9, which adam does not have: leave it out"),
        ({"num_weights": (10, 10)}, "num_weights has 2 layers and gradient_norms 1, expected as many"),
        ({"num_weights": (), "gradient_norms": ()}, "expected as many, at least one"),
        ({"num_weights": (1,)}, "num_weights"),
        ({"gradient_norms": (0.0,)}, "gradient_norms"),
        ({"decay": "Decoupled(lam=-1)"}, "lam"),
        ({"decay": 3}, "decay is 3, expected text such as"),
        ({"lr_schedule": "cosin(steps=3)"}, "cosin"),
        ({"num_steps": 0}, "num_steps"),
    ],
)
def test_bad_specs_are_refused_in_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        NoiseOnlyRun(**{"optimizer": "sgd", "lr": 0.1, "num_steps": 10, **fields})
