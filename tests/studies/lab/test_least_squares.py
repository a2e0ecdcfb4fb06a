"""SGD on least squares: the simulation against a scalar loop, the expectations against full matrices, each other, formulas."""

from __future__ import annotations

import dataclasses
import hashlib
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.catalog.language.bias_variance.theory import expected, paper_bound, stationary_risk
from halflife.studies.lab.trainer import train
from halflife.studies.specs import LeastSquaresRun, spec_from_json
from halflife.studies.store.records import Reading

SMALL = LeastSquaresRun(
    eigenvalues=(0.8, 0.3, 0.05),
    noise_std=0.7,
    optimum=1.5,
    distance=2.0,
    lr=0.4,
    lr_after_drop=0.05,
    drop_step=14,
    lam=0.1,
    average_from=5,
    ema=(0.8, 0.5),
    tail=4,
    num_steps=20,
    num_replicas=7,
    eval_every=4,
)
ONE = LeastSquaresRun(eigenvalues=(0.5,), noise_std=1.0, distance=3.0, lr=0.3, num_steps=300, eval_every=20)


def run(spec: LeastSquaresRun) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append)
    return readings


def normals(spec: LeastSquaresRun, width: int) -> Any:
    """The first random numbers of a small run: (steps, replicas, width)."""
    bits = hashlib.sha256(f"least-squares/{spec.seed}".encode()).digest()[:4]
    generator = torch.Generator().manual_seed(int.from_bytes(bits))
    steps = 2**20 // (spec.num_replicas * width)
    return torch.randn(steps, spec.num_replicas, width, generator=generator, dtype=torch.float64).numpy()


@pytest.mark.parametrize("noise", ["additive", "sampled"])
def test_it_equals_a_loop_over_scalars(noise: str) -> None:
    """One replica after the other, in x instead of x - x*, averages as lists."""
    spec = replace(SMALL, noise=noise)
    d, mu = 3, spec.eigenvalues
    z = normals(spec, d + (noise == "sampled"))
    optimum = spec.optimum / math.sqrt(d)

    def risk(x: list[float]) -> float:
        return sum(0.5 * mu[i] * (x[i] - optimum) ** 2 for i in range(d))

    per_name: dict[tuple[int, str], list[float]] = {}
    ends: dict[int, list[list[float]]] = {}
    for replica in range(spec.num_replicas):
        x = [optimum - spec.distance / math.sqrt(d)] * d
        path = [list(x)]
        for t in range(20):
            lr = 0.4 if t < 14 else 0.05
            if noise == "additive":
                g = [mu[i] * (x[i] - optimum) + 0.7 * z[t, replica, i] for i in range(d)]
            else:
                a = [math.sqrt(mu[i]) * z[t, replica, i] for i in range(d)]
                label = sum(a[i] * optimum for i in range(d)) + 0.7 * z[t, replica, d]
                residual = sum(a[i] * x[i] for i in range(d)) - label
                g = [a[i] * residual for i in range(d)]
            x = [(1 - lr * 0.1) * x[i] - lr * g[i] for i in range(d)]
            path.append(list(x))
        for step in (0, 4, 8, 12, 14, 16, 20):
            ends.setdefault(step, []).append(path[step])
            per_name.setdefault((step, "risk"), []).append(risk(path[step]))
            if step >= 5:
                mean = [sum(p[i] for p in path[5 : step + 1]) / (step - 4) for i in range(d)]
                per_name.setdefault((step, "average/risk"), []).append(risk(mean))
            for beta in (0.8, 0.5) if step else ():
                weights = [beta ** (step - s) for s in range(1, step + 1)]
                ema = [sum(w * p[i] for w, p in zip(weights, path[1 : step + 1], strict=True)) for i in range(d)]
                ema = [value / sum(weights) for value in ema]
                per_name.setdefault((step, f"ema-{beta:g}/risk"), []).append(risk(ema))
            if step in (14, 20):
                per_name.setdefault((step, "tail/risk"), []).append(
                    sum(risk(path[s]) for s in range(step - 3, step + 1)) / 4
                )
    readings = {reading.step: reading.values for reading in run(spec)}
    assert sorted(readings) == [0, 4, 8, 12, 14, 16, 20]
    for (step, name), values in per_name.items():
        assert readings[step][name] == pytest.approx(np.mean(values), rel=1e-10), (step, name)
        assert readings[step][f"{name}_se"] == pytest.approx(np.std(values, ddof=1) / math.sqrt(7), rel=1e-9, abs=1e-15)
    named = {(step, name) for step, values in readings.items() for name in values if name.endswith("risk")}
    assert named == set(per_name)
    for step, points in ends.items():
        # The risk of the mean over all pairs of different replicas: no variance in it.
        pairs = [
            sum(0.5 * mu[i] * (a[i] - optimum) * (b[i] - optimum) for i in range(d))
            for p, a in enumerate(points) for q, b in enumerate(points) if p != q
        ]  # fmt: skip
        assert readings[step]["bias"] == pytest.approx(np.mean(pairs), rel=1e-9, abs=1e-12)
        assert readings[step]["variance"] == pytest.approx(readings[step]["risk"] - np.mean(pairs), rel=1e-9, abs=1e-12)
    assert [readings[s]["lr"] for s in (4, 14, 16)] == [0.4, 0.4, 0.05]
    assert readings[4]["fraction"] == pytest.approx(0.04)


@pytest.mark.parametrize("noise", ["additive", "sampled"])
def test_expectations_are_those_of_full_matrices(noise: str) -> None:
    """The joint second moment of all iterates as one big matrix, fourth moments by brute force over index pairs."""
    spec = replace(SMALL, noise=noise, eval_every=1)
    d, steps = 3, spec.num_steps
    hessian = np.diag(spec.eigenvalues)
    optimum = np.full(d, spec.optimum / math.sqrt(d))
    mean = [-np.full(d, spec.distance / math.sqrt(d))]
    second = {(0, 0): np.outer(mean[0], mean[0])}
    eye = np.eye(d)
    fourth = np.zeros((d, d, d, d))  # E a_i a_j a_k a_l by Isserlis
    for i, j, k, m in np.ndindex(d, d, d, d):
        fourth[i, j, k, m] = (
            hessian[i, j] * hessian[k, m] + hessian[i, k] * hessian[j, m] + hessian[i, m] * hessian[j, k]
        )
    for t in range(steps):
        lr = 0.4 if t < 14 else 0.05
        mean_map, shift = (1 - lr * 0.1) * eye - lr * hessian, -lr * 0.1 * optimum
        new_mean = mean_map @ mean[t] + shift
        old = second[t, t]
        cross = np.outer(mean_map @ mean[t], shift)
        new = mean_map @ old @ mean_map.T + cross + cross.T + np.outer(shift, shift)
        if noise == "additive":
            new += lr**2 * 0.7**2 * eye
        else:
            new += lr**2 * (np.einsum("ijkl,jk->il", fourth, old) - hessian @ old @ hessian + 0.7**2 * hessian)
        for s in range(t + 1):
            second[s, t + 1] = second[s, t] @ mean_map.T + np.outer(mean[s], shift)
        second[t + 1, t + 1] = new
        mean.append(new_mean)

    def risk_of(weights: dict[int, float]) -> float:
        """Of the combination with these weights, from the joint second moment."""
        total = np.zeros((d, d))
        for s, ws in weights.items():
            for t, wt in weights.items():
                total += ws * wt * (second[s, t] if s <= t else second[t, s].T)
        return float(0.5 * np.trace(hessian @ total))

    found = expected(spec)
    for step in range(steps + 1):
        values = found[step]
        assert values["risk"] == pytest.approx(risk_of({step: 1.0}), rel=1e-12)
        assert values["bias"] == pytest.approx(0.5 * mean[step] @ hessian @ mean[step], rel=1e-12)
        if step >= 5:
            window = dict.fromkeys(range(5, step + 1), 1 / (step - 4))
            assert values["average/risk"] == pytest.approx(risk_of(window), rel=1e-12)
        if step:
            raw = {s: 0.8 ** (step - s) for s in range(1, step + 1)}
            assert values["ema-0.8/risk"] == pytest.approx(
                risk_of({s: w / sum(raw.values()) for s, w in raw.items()}), rel=1e-12
            )
    for end in (14, 20):
        assert found[end]["tail/risk"] == pytest.approx(np.mean([found[s]["risk"] for s in range(end - 3, end + 1)]))


@pytest.mark.parametrize("noise", ["additive", "sampled"])
def test_the_simulation_has_these_expectations(noise: str) -> None:
    """One sample size, fixed seed, z below 4 at every reading; the same numbers are 30 standard errors from others."""
    spec = replace(SMALL, noise=noise, num_replicas=20_000, eval_every=2)
    theory = expected(spec)
    scores = [
        (reading.values[name] - theory[reading.step][name]) / reading.values[f"{name}_se"]
        for reading in run(spec)[1:]
        for name in reading.values
        if name.endswith("risk")
    ]
    assert len(scores) > 30
    assert np.abs(scores).max() < 4
    other = expected(replace(spec, lr=0.36))
    assert abs(run(spec)[-2].values["average/risk"] - other[18]["average/risk"]) > 1e-3


def test_the_floor_in_one_dimension() -> None:
    """lr s^2 / (2 (2 - lr mu)), and what one sample a step and decay make of it."""
    known = LeastSquaresRun(lr=0.1, noise_std=math.sqrt(0.5), num_steps=1)
    assert stationary_risk(known) == pytest.approx(0.013158, abs=5e-7)
    for lr in (0.01, 0.3, 1.5, 3.9):
        assert stationary_risk(replace(ONE, lr=lr)) == pytest.approx(lr / (2 * (2 - 0.5 * lr)), rel=1e-12)
    sampled = replace(ONE, noise="sampled", noise_std=2.0)
    # e' = e (1 - lr a^2) + lr a s z: E e^2 (2 lr mu - 3 lr^2 mu^2) = lr^2 mu s^2
    assert stationary_risk(sampled) == pytest.approx(0.5 * 0.3 * 0.5 * 4 / (2 - 3 * 0.3 * 0.5), rel=1e-12)
    decayed = replace(ONE, lam=0.2, optimum=3.0)
    bias = 0.2 * 3 / 0.7
    variance = 0.3 / (0.7 * (2 - 0.3 * 0.7))
    assert stationary_risk(decayed) == pytest.approx(0.5 * 0.5 * (bias**2 + variance), rel=1e-12)


@pytest.mark.parametrize("noise", ["additive", "sampled"])
def test_the_floor_is_where_the_recursion_ends(noise: str) -> None:
    spec = replace(
        SMALL, noise=noise, drop_step=None, num_steps=2000, eval_every=2000, ema=(), average_from=None, tail=1
    )
    assert expected(spec)[2000]["risk"] == pytest.approx(stationary_risk(spec), rel=1e-9)
    assert stationary_risk(spec, 0.1) == stationary_risk(replace(spec, lr=0.1))


def test_a_learning_rate_without_a_floor() -> None:
    with pytest.raises(UserError, match="at lr 4 the risk grows without bound: lower the learning rate"):
        stationary_risk(replace(ONE, lr=4.0))
    with pytest.raises(UserError, match=r"at lr 1\.4 the risk grows without bound"):
        stationary_risk(replace(ONE, noise="sampled", lr=1.4))  # 2 < 3 lr mu, though lr mu < 2


def test_the_bound_of_the_paper() -> None:
    assert paper_bound(ONE, 0) == pytest.approx(9 + 0.3)
    assert paper_bound(ONE, 10) == pytest.approx(0.85**10 * 9 + 0.3)
    assert paper_bound(SMALL, 2) == pytest.approx((1 - 0.4 * 0.05) ** 2 * 4 + 0.4 * 3 * 0.49)
    assert paper_bound(replace(SMALL, noise="sampled"), 2) == pytest.approx(0.98**2 * 4 + 0.4 * 1.15 * 0.49)
    with pytest.raises(UserError, match="step 15 lies behind the drop: ask before it"):
        paper_bound(SMALL, 15)


def test_a_cut_run_is_the_beginning_of_the_whole_one() -> None:
    whole, cut = run(SMALL), run(SMALL.cut(9))
    assert [reading.step for reading in cut] == [0, 4, 8, 9]
    assert [r.values["risk"] for r in cut[:3]] == [r.values["risk"] for r in whole[:3]]
    assert "tail/risk" in cut[-1].values
    assert "tail/risk" not in cut[-2].values


def test_one_seed_is_one_run() -> None:
    assert run(SMALL) == run(SMALL)
    assert run(SMALL)[-1].values["risk"] != run(replace(SMALL, seed=1))[-1].values["risk"]


def test_it_stops_and_fails_in_words() -> None:
    with pytest.raises(
        RunFailedError,
        match=r"the reading 'risk_se' became NaN or infinite at step 60 \(lr 50, largest eigenvalue 0.5, seed 0",
    ):
        run(replace(ONE, lr=50.0))
    with pytest.raises(RunStoppedError, match="stopped after step 4 of 20: it will start over"):
        train(SMALL, sink=lambda _: None, stop=lambda: True)
    steps: list[tuple[int, int]] = []
    costs = train(SMALL, sink=lambda _: None, progress=lambda step, num_steps, _: steps.append((step, num_steps)))
    assert steps == [(s, 20) for s in (4, 8, 12, 14, 16, 20)]
    assert costs["samples_per_second"] > 0


def test_json_and_digest() -> None:
    assert spec_from_json(SMALL.to_json()) == SMALL
    others: dict[str, Any] = {
        "seed": 1, "max_steps": 5, "eigenvalues": (0.8, 0.3), "noise": "sampled", "noise_std": 0.6, "optimum": 1.0,
        "distance": 1.0, "lr": 0.3, "lr_after_drop": 0.1, "drop_step": 12, "lam": 0.0, "average_from": None, "ema": (),
        "tail": 3, "num_steps": 21, "num_replicas": 8, "eval_every": 5,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(SMALL)}
    assert len({replace(SMALL, **{name: value}).digest() for name, value in others.items()} | {SMALL.digest()}) == 18


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"eigenvalues": ()}, "eigenvalues is empty, expected at least one number > 0: change eigenvalues"),
        ({"eigenvalues": (1.0, 0.0)}, "eigenvalues is 0.0, expected a finite number > 0"),
        ({"noise": "none"}, "noise is 'none', expected one of additive, sampled: change noise"),
        ({"lr": 0.0}, "lr is 0.0, expected a finite number > 0"),
        ({"noise_std": -1.0}, "noise_std is -1.0, expected a finite number >= 0"),
        ({"lam": 4.0}, r"lr \* lam is 1.6, expected < 1 .*: lower lr or lam"),
        ({"ema": (1.5,)}, "ema is 1.5"),
        ({"tail": 0}, "tail is 0, expected an integer >= 1"),
        ({"num_replicas": 1}, "num_replicas is 1, expected an integer >= 2"),
        ({"drop_step": 21}, "drop_step is 21, expected at most num_steps 20: change drop_step"),
        ({"average_from": 0}, "average_from is 0, expected an integer >= 1"),
    ],
)  # fmt: skip
def test_bad_specs(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **fields)
