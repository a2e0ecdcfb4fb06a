"""Runs on images with every optimizer, decay and schedule: against bare loops, across a stop, and what is read of them."""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.lab.images import loop
from halflife.studies.lab.images.adai import Adai
from halflife.studies.lab.images.data import image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.optimizers import optimizer_of
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.tensor_files import write_tensors
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ImageRun
from halflife.studies.specs.optimizers import OPTIMIZERS
from halflife.studies.store.records import Array, Reading

TINY = ImageRun(
    lr=0.1, num_epochs=3, num_train=128, num_test=50, width=4, blocks=(1, 1), downsample=4, batch_size=32,
    eval_every=3, ema=(), lr_schedule="piecewise((1.0, 0.1), (6,))",
)  # fmt: skip
LR = [0.1] * 6 + [0.01] * 6


def run(spec: ImageRun, folder: Path | None = None) -> list[Reading]:
    readings: list[Reading] = []
    if folder is not None:
        folder.mkdir(exist_ok=True, parents=True)
    train(spec, sink=readings.append, folder=folder)
    return readings


def net_of(spec: ImageRun) -> nn.Module:
    net = build_model(
        spec.model, width=spec.width, blocks=spec.blocks, in_channels=1, num_classes=10, seed=0, image_size=(7, 7)
    )
    made: nn.Module = net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return made


def images_of(spec: ImageRun) -> Any:
    return image_tensors(
        read_source(spec.data), num_train=spec.num_train, num_test=50, downsample=4, device=torch.device("cpu")
    )[0]


def by_hand(
    spec: ImageRun,
    optimizer_for: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
    lrs: list[float],
    *,
    shrink: Callable[[nn.Module, torch.optim.Optimizer, float], None] = lambda *_: None,
) -> tuple[nn.Module, list[float]]:
    """The plainest loop: what it ends at, and the mean loss of each epoch. ``shrink`` acts between gradient and update."""
    net, images, step, losses = net_of(spec), images_of(spec), 0, []
    optimizer = optimizer_for(list(net.parameters()))
    for epoch in range(spec.num_epochs):
        total, batches = 0.0, list(shuffled_batches(images, spec.batch_size, seed=0, epoch=epoch))
        for x, y in batches:
            optimizer.param_groups[0]["lr"] = lrs[step]
            loss = functional.cross_entropy(net(x), y)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            shrink(net, optimizer, lrs[step])
            optimizer.step()
            total += loss.item() / len(batches)
            step += 1
        losses.append(total)
    return net, losses


def shrink_matrices(r_of: Callable[[float], float]) -> Callable[..., None]:
    def shrink(net: nn.Module, _optimizer: object, lr: float) -> None:
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(1 - r_of(lr))

    return shrink


CASES: dict[str, tuple[dict[str, Any], Callable[..., torch.optim.Optimizer], Callable[..., None]]] = {
    "SGD with momentum, L2": (
        {"momentum": 0.9, "decay": "L2(lam=0.05)"},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.05),
        lambda *_: None,
    ),
    "SGD with momentum, decoupled on matrices": (
        {"momentum": 0.9, "lam": 0.3, "decay_on": "matrices"},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        shrink_matrices(lambda lr: lr * 0.3),
    ),
    "SGDS": (
        {"momentum": 0.9, "decay": "Stable(lam=0.03)", "decay_on": "matrices"},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
        shrink_matrices(lambda lr: lr * 0.03 / (1 - 0.9)),
    ),
    "corrected": (
        {"momentum": 0.5, "decay": "Corrected(lam=1.0)", "decay_on": "matrices"},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.5),
        shrink_matrices(lambda lr: lr * lr / 0.1),
    ),
    "Adam, L2": (
        {"optimizer": "adam", "beta2": 0.99, "eps": 1e-4, "decay": "L2(lam=0.05)"},
        lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.9, 0.99), eps=1e-4, weight_decay=0.05),
        lambda *_: None,
    ),
    "AdamW": (
        {"optimizer": "adamw", "decay": "Decoupled(lam=0.5)"},
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.5),
        lambda *_: None,
    ),
    "AMSGrad, lam": (
        {"optimizer": "amsgrad", "beta2": 0.9, "lam": 0.5},
        lambda p: torch.optim.AdamW(p, lr=0.1, betas=(0.9, 0.9), weight_decay=0.5, amsgrad=True),
        lambda *_: None,
    ),
    "RAdam, L2": (
        {"optimizer": "radam", "decay": "L2(lam=0.05)"},
        lambda p: torch.optim.RAdam(p, lr=0.1, weight_decay=0.05),
        lambda *_: None,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_run_is_the_bare_loop(name: str) -> None:
    """With torch's own optimizer on the same batches, at a learning rate that drops within an epoch."""
    given, make, shrink = CASES[name]
    spec = replace(TINY, **given)
    net, losses = by_hand(spec, make, LR, shrink=shrink)
    readings = run(spec)
    assert [r.values["train/running_loss"] for r in readings] == pytest.approx(losses, rel=1e-4)
    norm = math.sqrt(sum(p.detach().double().square().sum().item() for p in net.parameters()))
    assert readings[-1].values["weight_norm"] == pytest.approx(norm, rel=1e-5)
    assert [r.values["lr"] for r in readings] == [0.1, pytest.approx(0.01), pytest.approx(0.01)]


def test_the_norm_that_is_compared_would_tell_a_wrong_decay() -> None:
    """By more than the tolerance above: without decay, and with it on all parameters."""
    given = CASES["SGD with momentum, decoupled on matrices"][0]
    norm = run(replace(TINY, **given))[-1].values["weight_norm"]
    for other in (replace(TINY, momentum=0.9), replace(TINY, momentum=0.9, lam=0.3)):
        assert run(other)[-1].values["weight_norm"] != pytest.approx(norm, rel=1e-3)


# ---- the optimizers that are not torch's, in plain float64, as published


def oracle(name: str, w: list[Tensor], gradients: list[list[Tensor]], lr: list[float]) -> list[Tensor]:
    """Adai: Xie et al. 2022, Algorithm 2; Yogi: Zaheer et al. 2018, Algorithm 2, with the bias corrected; Padam: Chen et al.
    2020, Algorithm 1, with the bias corrected as in its code; AdaBound: Luo et al. 2019, Algorithm 2, likewise."""
    w = [each.clone() for each in w]
    beta1, beta2 = (0.1, 0.99) if name == "adai" else (0.9, 0.999)
    m, v = ([torch.zeros_like(each) for each in w] for _ in range(2))
    if name == "yogi":
        m, v = ([torch.full_like(each, 1e-6) for each in w] for _ in range(2))
    product = [torch.ones_like(each) for each in w]
    for t, gs in enumerate(gradients, 1):
        one, two = 1 - beta1**t, 1 - beta2**t
        for i, g in enumerate(gs):
            if name == "yogi":
                v[i] = v[i] - (1 - beta2) * torch.sign(v[i] - g**2) * g**2
            else:
                v[i] = beta2 * v[i] + (1 - beta2) * g**2
        mean = sum(each.sum() for each in v) / two / sum(each.numel() for each in v)
        for i, g in enumerate(gs):
            if name == "adai":
                b = (1 - beta1 * (v[i] / two) / mean).clamp(0, 1 - 1e-3)
                product[i], m[i] = product[i] * b, b * m[i] + (1 - b) * g
                w[i] = w[i] - lr[t - 1] * m[i] / (1 - product[i])
                continue
            m[i] = beta1 * m[i] + (1 - beta1) * g
            rate = lr[t - 1] * math.sqrt(two) / one
            if name == "padam":
                w[i] = w[i] - rate * m[i] / (v[i].sqrt() + 1e-8) ** 0.5
            elif name == "yogi":
                w[i] = w[i] - lr[t - 1] / one * m[i] / ((v[i] / two).sqrt() + 1e-3)
            else:
                final = 0.1 * lr[t - 1] / lr[0]
                low, high = final * (1 - 1 / (1e-3 * t + 1)), final * (1 + 1 / (1e-3 * t))
                w[i] = w[i] - (rate / (v[i].sqrt() + 1e-8)).clamp(low, high) * m[i]
    return w


@pytest.mark.parametrize("scale", [1.0, 1e-3])
@pytest.mark.parametrize("name", ["adai", "yogi", "padam", "adabound"])
def test_the_other_optimizers_are_the_published_ones(name: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    start, lr = [draw(5), draw(2, 3)], [0.1, 0.1, 0.02, 0.02, 0.01, 0.01]
    gradients = [[scale * draw(*each.shape) for each in start] for _ in lr]
    parameters = [nn.Parameter(each.clone()) for each in start]
    optimizer = optimizer_of(
        replace(TINY, optimizer=name),
        [{"params": parameters[:1], "weight_decay": 0.0}, {"params": parameters[1:], "weight_decay": 0.0}],
    )
    for rate, gs in zip(lr, gradients, strict=True):
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, g in zip(parameters, gs, strict=True):
            parameter.grad = g.clone()
        optimizer.step()
    for parameter, expected, before in zip(parameters, oracle(name, start, gradients, lr), start, strict=True):
        moved = (expected - before).abs().max().item()
        assert (parameter.detach() - expected).abs().max().item() < 1e-7 * moved


def test_adai_takes_closures_and_parameters_without_gradient() -> None:
    used, unused = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = Adai([used, unused], lr=0.1)

    def closure() -> float:
        optimizer.zero_grad()
        loss = used.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    assert optimizer.step(closure) == 2.0
    assert (used < 1).all()
    assert (unused == 1).all()
    used.grad = torch.zeros(2)
    optimizer.state.clear()
    optimizer.step()  # no gradient but 0, ever
    assert used.isfinite().all()


# ---- schedules


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"lr_schedule": "exponential(1.0, 0.01, 12)"}, [0.1 * 0.01 ** (step / 12) for step in range(12)]),
        (
            {"lr_schedule": "exponential(1.0, 0.125, 3)", "lr_schedule_unit": "epochs"},
            [0.1 * 0.5 ** (step // 4) for step in range(12)],
        ),
        (
            {"lr_schedule": "piecewise((1.0, 0.1, 0.01), (1, 2))", "lr_schedule_unit": "epochs"},
            [0.1 * 0.1 ** (step // 4) for step in range(12)],
        ),
        (
            {"lr_schedule": "piecewise((1.0, 0.1), (85,))", "lr_schedule_unit": "percent"},
            [0.1 if step / 12 < 0.85 else 0.01 for step in range(12)],
        ),
        ({"lr_schedule": "cosine(1.0, 0.0, 12)"}, [0.05 * (1 + math.cos(math.pi * step / 12)) for step in range(12)]),
    ],
    ids=["exponential", "exponential by epoch", "by epoch", "by share", "cosine"],
)
def test_schedules_are_those_of_a_scalar_loop(given: dict[str, Any], expected: list[float]) -> None:
    """The decay of weights that nothing else changes: each step multiplies them by 1 - lr lam."""
    spec = replace(TINY, decay="Decoupled(lam=0.5)", momentum=0.9, trace=True, **given)
    readings = run(spec)
    applied = np.concatenate([numbers(r.arrays["trace/fraction"]) for r in readings])
    assert applied == pytest.approx([0.5 * lr for lr in expected], rel=1e-6)
    assert [r.values["lr"] for r in readings] == pytest.approx([expected[3], expected[7], expected[11]])
    _, losses = by_hand(spec, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), expected, shrink=shrink_all)
    assert [r.values["train/running_loss"] for r in readings] == pytest.approx(losses, rel=1e-4)


def test_the_peak_is_the_learning_rate_where_the_schedule_is_1() -> None:
    """And not that of the first step; a half-life in epochs knows the steps of one."""
    rising = replace(TINY, lr_schedule="linear(0.5, 1.0, 8)", momentum=0.5, trace=True)
    readings = run(replace(rising, decay="Corrected(lam=1.0)"))
    applied = np.concatenate([numbers(r.arrays["trace/fraction"]) for r in readings])
    assert applied == pytest.approx([0.1 * min(0.5 + step / 16, 1) ** 2 for step in range(12)], rel=1e-6)
    assert run(replace(rising, decay="HalfLife(epochs=2)"))[0].values["half_life"] == pytest.approx(8)


def shrink_all(net: nn.Module, _optimizer: object, lr: float) -> None:
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 - lr * 0.5)


def numbers(array: Array) -> np.ndarray[Any, Any]:
    return np.frombuffer(array.data, array.dtype)


# ---- a stop in the middle


STATES: dict[str, dict[str, Any]] = {
    "momentum": {"momentum": 0.9, "decay": "Scheduled(L2(lam=0.05), until(6))"},
    "norm-target": {"momentum": 0.9, "decay": "NormTarget()", "decay_on": "matrices"},
    "stable": {"optimizer": "adam", "decay": "Stable(lam=0.001)", "precision": "bfloat16"},
    "toward": {"optimizer": "adam", "decay": "Toward(Decoupled(lam=0.5), 'init')"},
    **{name: {"optimizer": name, "lam": 0.05} for name in OPTIMIZERS if name not in {"sgd", "adam", "adamw"}},
}

OF_A_KIND = {"amsgrad", "radam", "adabound", "yogi"}  # each has its like among the others


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OF_A_KIND)) for name in STATES]
)
def test_a_stopped_run_resumes_to_the_same_bits(name: str, tmp_path: Path) -> None:
    spec = replace(TINY, keep_at=(3,), trace=True, probes=("decayed-gradient",), ema=(0.9,), **STATES[name])
    whole = run(spec, tmp_path / "whole")
    readings: list[Reading] = []
    (tmp_path / "parts").mkdir()
    for _ in range(2):
        with pytest.raises(RunStoppedError):
            train(spec, sink=readings.append, folder=tmp_path / "parts", stop=lambda: True)
    train(spec, sink=readings.append, folder=tmp_path / "parts")
    assert [r.to_line() for r in readings] == [r.to_line() for r in whole]
    one, other = (load_file(tmp_path / part / "kept/epoch-3.safetensors") for part in ("whole", "parts"))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_a_checkpoint_of_plain_sgd_from_before_optimizers_had_states_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(TINY, lr_schedule="", lam=0.01)
    whole = run(spec)
    readings: list[Reading] = []
    written = write_tensors

    def as_before(path: Path, tensors: Any, values: dict[str, Any], *, run: str) -> None:
        written(path, tensors, {key: value for key, value in values.items() if key != "groups"}, run=run)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "write_tensors", as_before)
        with pytest.raises(RunStoppedError):
            train(spec, sink=readings.append, folder=tmp_path, stop=lambda: True)
    train(spec, sink=readings.append, folder=tmp_path)
    assert [r.to_line() for r in readings] == [r.to_line() for r in whole]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, v: t.pop("optimizer.0.momentum_buffer"), "0.momentum_buffer is missing"),
        (
            lambda t, v: t.update({"optimizer.0.momentum_buffer": torch.zeros(1)}),
            r"momentum_buffer is \(1,\) torch.float32",
        ),
        (lambda t, v: t.update({"optimizer.99.more": torch.zeros(1)}), "belongs to none of 18 parameters"),
        (lambda t, v: t.update({"optimizer.x.more": torch.zeros(1)}), "belongs to none of 18 parameters"),
        (lambda t, v: v.pop("groups"), "groups is NoneType"),
        (lambda t, v: v.update(groups=[{}, {}]), "groups is list, expected a list of 1"),
        (lambda t, v: v.update(groups=[3]), "cannot be read"),
        (lambda t, v: v["groups"][0].pop("halflife_step"), "cannot be read"),
        (lambda t, v: v["groups"][0].update(halflife_step="3"), "cannot be read"),
        (lambda t, v: v["groups"][0].update(halflife_law="L2(lam=0.5)"), "was made under the law L2"),
    ],
    ids=["missing", "shape", "number", "name", "groups", "count", "types", "step", "text", "law"],
)
def test_a_damaged_state_is_one_sentence(
    spoil: Callable[..., object], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = replace(TINY, momentum=0.9, decay="L2(lam=0.05)")
    written = write_tensors

    def spoilt(path: Path, tensors: Any, values: dict[str, Any], *, run: str) -> None:
        tensors, values = dict(tensors), copy.deepcopy(values)
        spoil(tensors, values)
        written(path, tensors, values, run=run)

    monkeypatch.setattr(loop, "write_tensors", spoilt)
    with pytest.raises(RunStoppedError):
        train(spec, sink=lambda _: None, folder=tmp_path, stop=lambda: True)
    with pytest.raises(UserError, match=message):
        train(spec, sink=lambda _: None, folder=tmp_path)


# ---- readings


def test_the_gradient_of_the_decayed_weights_is_that_of_the_data(tmp_path: Path) -> None:
    """Full batch, the matrices alone, with running statistics and with those of the batch, by autograd on the kept weights."""
    spec = replace(
        TINY, model="vgg-bn", momentum=0.9, decay="Decoupled(lam=0.5)", decay_on="matrices", keep_at=(3,),
        probes=("decayed-gradient", "gradient-norm"), probe_every=2, probe_examples=128, ema=(0.9,),
    )  # fmt: skip
    readings = run(spec, tmp_path)
    assert ["decayed/norm" in r.values for r in readings] == [False, True, True]
    images, kept = images_of(spec), load_file(tmp_path / "kept/epoch-3.safetensors")
    for prefix, part in (("", "model."), ("ema-0.9/", "ema-0.9.module.")):
        net = net_of(spec)
        net.load_state_dict({k.removeprefix(part): v for k, v in kept.items() if k.startswith(part)})
        decayed = {name: p for name, p in net.named_parameters() if p.dim() > 1}
        values = readings[-1].values
        norm = math.sqrt(sum(p.detach().square().sum().item() for p in decayed.values()))
        assert values[f"{prefix}decayed/norm"] == pytest.approx(norm, rel=1e-5)
        for name, p in decayed.items():
            assert values[f"{prefix}decayed/norm/{name}"] == pytest.approx(p.norm().item(), rel=1e-5)
        for suffix, training in (("", False), ("_batch", True)):
            loss = functional.cross_entropy(net.train(training)(images.x_NCHW), images.y_N)
            gradients = torch.autograd.grad(loss, list(decayed.values()))
            expected = math.sqrt(sum(g.square().sum().item() for g in gradients))
            assert values[f"{prefix}decayed/gradient_norm{suffix}"] == pytest.approx(expected, rel=1e-4)
            assert values[f"{prefix}decayed/norm_gradient{suffix}"] == pytest.approx(norm * expected, rel=1e-4)
        # Of all parameters it is larger, and lam is said by no field that stands for an objective.
        assert values[f"{prefix}gradient_norm"] > values[f"{prefix}decayed/gradient_norm"]
        assert f"{prefix}regularized_gradient_norm" not in values
    plain = run(replace(spec, model="vgg", decay_on="everything", lr=0.01), None)[-1].values
    assert "decayed/gradient_norm_batch" not in plain  # it has no BatchNorm
    assert plain["decayed/gradient_norm"] == pytest.approx(plain["gradient_norm"], rel=1e-5)


def test_a_trace_says_what_each_step_did_and_changes_nothing() -> None:
    spec = replace(
        TINY, optimizer="adam", lr=0.02, decay="Stable(lam=0.001)", decay_on="matrices",
        lr_schedule="linear(1.0, 0.5, 12)",
    )  # fmt: skip
    traced, bare = run(replace(spec, trace=True)), run(spec)
    for one, other in zip(traced, bare, strict=True):
        assert {name: one.values[name] for name in other.values} == other.values
    assert not any(name.startswith("trace/") for name in bare[0].values)
    net, images = net_of(spec), images_of(spec)
    decayed = {name: p for name, p in net.named_parameters() if p.dim() > 1}
    optimizer, step = torch.optim.Adam(net.parameters(), lr=0.02), 0
    beta2 = 0.999
    for epoch, reading in enumerate(traced):
        rows: dict[str, list[dict[str, float]]] = {
            key: [] for key in ("norm", "gradient", "update", "rotation", "fraction", "moment")
        }
        for x, y in shuffled_batches(images, 32, seed=0, epoch=epoch):
            lr = 0.02 * (1 - 0.5 * step / 12)
            optimizer.param_groups[0]["lr"] = lr
            optimizer.zero_grad()
            torch.autograd.backward(functional.cross_entropy(net(x), y))
            old = {name: p.detach().double().clone() for name, p in decayed.items()}
            rows["norm"].append({name: p.norm().item() for name, p in old.items()})
            rows["gradient"].append({name: p.grad.norm().item() for name, p in decayed.items() if p.grad is not None})
            moments = [
                beta2 * optimizer.state[p].get("exp_avg_sq", torch.zeros_like(p)) + (1 - beta2) * p.grad.square()
                for p in net.parameters()
                if p.grad is not None
            ]
            mean = sum(v.sum().item() for v in moments) / sum(v.numel() for v in moments) / (1 - beta2 ** (step + 1))
            r = lr * 0.001 / max(math.sqrt(mean), 0.1 * 0.001)
            with torch.no_grad():
                for p in decayed.values():
                    p.mul_(1 - r)
            optimizer.step()
            step += 1
            rows["fraction"].append({"": r})
            rows["moment"].append({"": math.sqrt(mean)})
            new = {name: p.detach().double() for name, p in decayed.items()}
            rows["update"].append({name: (new[name] - old[name]).norm().item() for name in old})
            cosines = {name: functional.cosine_similarity(new[name].flatten(), old[name].flatten(), 0) for name in old}
            rows["rotation"].append({name: cosine.clamp(max=1).acos().item() for name, cosine in cosines.items()})

        def together(key: str, rows: dict[str, list[dict[str, float]]] = rows) -> list[float]:
            return [math.sqrt(sum(value**2 for value in row.values())) for row in rows[key]]

        found = {name: numbers(reading.arrays[f"trace/{name}"]) for name in ("norm", "gradient", "update", "fraction")}
        assert {name: pytest.approx(together(name), rel=2e-3) for name in found} == found
        assert reading.values["trace/root_second_moment"] == pytest.approx(np.mean(together("moment")), rel=2e-3)
        for name in decayed:
            norms, gradients = ([row[name] for row in rows[key]] for key in ("norm", "gradient"))
            pairs = list(zip(norms, gradients, strict=True))
            expected = {
                "norm": np.mean(norms),
                "norm_gradient_sq": np.mean([(w * g) ** 2 for w, g in pairs]),
                "gradient_over_norm": np.mean([g / w for w, g in pairs]),
                "rotation": np.mean([row[name] for row in rows["rotation"]]),
            }
            values = {what: reading.values[f"trace/{name}/{what}"] for what in expected}
            assert values == pytest.approx(expected, rel=5e-3)
    assert numbers(traced[0].arrays["trace/fraction"]).std() > 0.01 * numbers(traced[0].arrays["trace/fraction"]).mean()


def test_a_trace_of_float16_is_of_gradients_that_are_not_scaled() -> None:
    spec = replace(TINY, momentum=0.9, lr=0.01, trace=True, num_epochs=1, lr_schedule="")
    half, whole = (run(replace(spec, precision=precision))[0].arrays for precision in ("float16", "float32"))
    assert numbers(half["trace/gradient"])[0] == pytest.approx(numbers(whole["trace/gradient"])[0], rel=0.05)


# ---- bad input

BAD: list[tuple[dict[str, Any], str]] = [
    (
        {"optimizer": "adamx"},
        "optimizer is 'adamx', expected one of sgd, adam, adamw, amsgrad, radam, adabound, padam, yogi",
    ),
    ({"optimizer": ["adam"]}, r"optimizer is \['adam'\], expected one of sgd"),
    (
        {"optimizer": "adam", "momentum": 0.9},
        "momentum is 0.9, and the optimizer adam has beta1, beta2, eps: leave momentum",
    ),
    ({"beta1": 0.9}, "beta1 is 0.9, and the optimizer sgd has momentum: leave beta1 out"),
    ({"optimizer": "adam", "final_lr": 0.1}, "final_lr is 0.1, and the optimizer adam has"),
    ({"momentum": 1.0}, "momentum is 1, expected a number >= 0 and < 1: change momentum"),
    ({"momentum": "much"}, "momentum .*much"),
    ({"optimizer": "adam", "beta2": -0.5}, "beta2 is -0.5, expected a finite number >= 0"),
    ({"optimizer": "adam", "eps": 0.0}, "eps is 0.0, expected a finite number > 0"),
    ({"optimizer": "padam", "partial": 0.7}, "partial is 0.7, expected a finite number > 0 and <= 0.5"),
    (
        {"lam": 0.1, "decay": "L2(lam=0.1)"},
        r"lam is 0.1 and decay is 'L2\(lam=0.1\)': lam is short for Decoupled\(lam\)",
    ),
    ({"decay": "Decoupled()"}, "without a lam, and no group has one: give it a lam"),
    ({"decay": "Wrong(lam=1)"}, "the decay .*Wrong"),
    ({"decay": 0.1}, r"decay is 0.1, expected text such as 'Decoupled\(lam=0.1\)': change decay"),
    ({"decay_on": "biases"}, "decay_on is 'biases', expected one of everything, matrices, nanogpt, transformers"),
    (
        {"decay": "L2(lam=0.1)", "sphere": 1.0},
        r"sphere is 1 and decay is 'L2\(lam=0.1\)': on a sphere there is nothing",
    ),
    ({"lr_schedule": "stairs(3)"}, "the schedule .*stairs"),
    ({"lr_schedule": "tied_to_lr()"}, "expected a function of the step"),
    ({"lr_schedule": None}, "lr_schedule is None, expected text such as"),
    ({"lr_schedule": "", "lr_schedule_unit": "epochs"}, "lr_schedule_unit is 'epochs' and lr_schedule is empty"),
    ({"lr_schedule_unit": "days"}, "lr_schedule_unit is 'days', expected one of steps, epochs, percent"),
    ({"drop_at": 0.7}, "drop_at is 0.7 and lr_schedule is 'piecewise.*': the schedule says all of the learning rate"),
    ({"lr_after_drop": 0.01}, "lr_after_drop is 0.01 and lr_schedule is"),
    ({"model": "vgg-19"}, "model is 'vgg-19', expected one of resnet, vgg, .*, googlenet"),
    ({"model": "googlenet", "width": 3}, "width is 3, expected at least 4 for googlenet: raise width"),
    ({"blocks": ("2",)}, r"blocks is \('2',\), expected at least one stage of >= 1 blocks"),
    ({"trace": 1}, "trace is 1, expected True or False: change trace"),
    ({"probes": ("decayed",)}, "probes has 'decayed', expected some of .*, decayed-gradient: change probes"),
]


@pytest.mark.parametrize(("given", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_a_bad_run_is_one_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(TINY, **given)


def test_a_run_that_cannot_be_trained_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunFailedError, match="128 training images make no batch of 129: lower batch_size"):
        run(replace(TINY, batch_size=129))
    with pytest.raises(
        UserError, match="images are 7 x 7 and vgg-bn halves them 3 times, expected at least 8 pixels a side"
    ):
        run(replace(TINY, model="vgg-bn", blocks=(1, 1, 1)))
    with pytest.raises(UserError, match="peak"):
        run(replace(TINY, decay="Corrected(lam=0.1)", lr_schedule="linear(0.5, 2.0, 12)"))
    monkeypatch.setitem(sys.modules, "pytorch_optimizer", None)
    with pytest.raises(
        UserError, match=r"optimizer yogi needs the package pytorch-optimizer, .*torch-halflife\[study\]"
    ):
        run(replace(TINY, optimizer="yogi"))
    run(replace(TINY, optimizer="adai", max_steps=1))  # which is ours


def test_a_run_has_one_name_however_it_says_the_optimizers_own_values() -> None:
    plain = ImageRun(lr=0.1, lam=0.0, num_epochs=1)
    said = ImageRun(lr=0.1, lam=0.0, num_epochs=1, momentum=0.0, optimizer="sgd", decay="", decay_on="everything")
    assert said == plain
    # The names of runs in the archives, by the JSON that they had before these fields came.
    assert plain.digest() == "0db6efcf7291d249265c17e4c531a3855332a797244571eb9ac5e6aeeca76375"
    adam = replace(plain, optimizer="adam", beta1=0.9, beta2=0.999, eps=1e-8)
    assert adam.to_json() == plain.to_json() | {"optimizer": "adam"}
    assert replace(adam, beta2=0.99).digest() != adam.digest()
