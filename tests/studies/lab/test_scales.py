"""Sums of disparate scales: each case against another way of computing it, and what its spec refuses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import DivergedError, RunFailedError, RunStoppedError, UserError
from halflife.precision import round_to
from halflife.studies.lab.images.data import image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.stationary.source import describe
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ScalesRun, spec_from_json
from halflife.studies.store.records import Reading

SUM = ScalesRun(case="sum", bits=(7,), log2_ulps=(-1, 0, 2), num_steps=2, batch_size=1000)
NEURON = ScalesRun(
    case="neuron", bits=(23, 3), lr=0.4, lam=0.02, drift=2.0, num_inputs=3, num_replicas=2, num_steps=20, batch_size=5,
    eval_every=8,
)  # fmt: skip
SOFTMAX = ScalesRun(
    case="softmax", bits=(5, 23), log2_ulps=(-9, 1, 12), num_offsets=3, lr=0.1, width=6, num_train=80, num_test=60,
    num_steps=7, batch_size=20,
)  # fmt: skip


def run(spec: ScalesRun, **kwargs: Any) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append, **kwargs)
    return readings


def draws(spec: ScalesRun) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"scales/{spec.case}/{spec.seed}"))


# ---- one sum


def test_a_sum_in_7_bits_is_that_of_bfloat16() -> None:
    (reading,) = run(SUM)
    generator = draws(SUM)
    d_E = torch.cat([torch.randn(3, 1000, generator=generator, dtype=torch.float64) for _ in range(2)], dim=1)
    for e, d in zip(SUM.log2_ulps, d_E, strict=True):
        s = 1.5 * 2 ** (7 + e)
        assert torch.tensor(s).bfloat16().item() == s
        h = (s + d).bfloat16().double() - s
        wrong = torch.where(d > 0, h <= 0, h >= 0)
        assert 0.1 < wrong.double().mean() < 0.99
        assert reading.values[f"lost/7/{e}"] == pytest.approx(wrong.double().mean().item())
        assert reading.values[f"error_sq/7/{e}"] == pytest.approx((h - d).square().mean().item())


def test_the_closed_forms_of_a_sum_hold_at_any_bits_and_offset() -> None:
    spec = ScalesRun(case="sum", bits=(5, 10, 20), log2_ulps=(-2, 0, 1), num_steps=1, batch_size=100_000, seed=900)
    (reading,) = run(spec)
    for k, e in spec.cells:
        ulp = 2.0**e
        p = math.erf(ulp / math.sqrt(8))
        assert abs(reading.values[f"lost/{k}/{e}"] - p) < 4 * math.sqrt(p * (1 - p) / 1e5)
        if e <= 0 and 2 ** (k + e) > 10:
            assert abs(reading.values[f"error_sq/{k}/{e}"] / (ulp**2 / 12) - 1) < 4 * math.sqrt(144 / 180 / 1e5)
    shares = {reading.values[f"lost/{k}/0"] for k in spec.bits}
    assert len(shares) == 3, "each has numbers of its own"


# ---- a neuron


def by_autograd(spec: ScalesRun, k: int) -> list[dict[str, float]]:
    """A neuron after the other, its gradient by autograd through roundings that pass it: loss, offset and norm of each step."""
    generator = draws(spec)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u = normal(spec.num_replicas, spec.num_inputs)
    u = u / u.norm(dim=1, keepdim=True)
    w = [torch.zeros(spec.num_inputs, dtype=torch.float64) for _ in u]
    a, b = ([torch.zeros((), dtype=torch.float64) for _ in u] for _ in range(2))
    found = []
    for _ in range(spec.last_step):
        x = normal(spec.num_replicas, spec.num_inputs, spec.batch_size)
        luck = torch.rand(spec.num_replicas, spec.batch_size, generator=generator, dtype=torch.float64)
        push = normal(spec.num_replicas, 1)
        total = 0.0
        for r in range(spec.num_replicas):
            y = torch.where(luck[r] < 1 / (1 + torch.exp(-spec.margin * (u[r] @ x[r]))), 1.0, -1.0)
            parts = [part.clone().requires_grad_() for part in (w[r], a[r], b[r])]
            z = round_to(round_to(parts[1] + round_to(parts[0] @ x[r], k), k) - parts[2], k)
            loss = torch.log1p(torch.exp(-y * z)).mean()
            gradients = torch.autograd.grad(loss, parts)
            new = [
                part - spec.lr * spec.lam * part - spec.lr * g
                for part, g in zip((w[r], a[r], b[r]), gradients, strict=True)
            ]
            common = spec.lr * spec.drift * (1 + push[r, 0])
            w[r], a[r], b[r] = new[0], new[1] + common, new[2] + common
            total += loss.item()
        offset = sum(float(one + other) / 2 for one, other in zip(a, b, strict=True))
        norm = sum(float(one.norm()) for one in w)
        found.append({name: value / len(w) for name, value in (("loss", total), ("offset", offset), ("norm", norm))})
    return found


def test_a_neuron_is_what_autograd_makes_of_it() -> None:
    readings = run(NEURON)
    assert [reading.step for reading in readings] == [8, 16, 20]
    for k in NEURON.bits:
        steps = by_autograd(NEURON, k)
        for reading, stretch in zip(readings, (steps[:8], steps[8:16], steps[16:]), strict=True):
            losses = [one["loss"] for one in stretch]
            assert reading.values[f"loss/{k}"] == pytest.approx(sum(losses) / len(losses), rel=1e-9)
            for name in ("offset", "norm"):
                assert reading.values[f"{name}/{k}"] == pytest.approx(stretch[-1][name], rel=1e-9)
    assert readings[-1].values["loss/3"] > readings[-1].values["loss/23"] + 0.02


def test_runs_that_differ_in_bits_decay_or_drift_have_the_same_examples() -> None:
    """With 23 bits and a drift of 0 the loss of the first step is ln 2; examples decide the second."""
    one = replace(NEURON, drift=0.0, num_steps=2, eval_every=1)
    loss = run(one)[-1].values["loss/23"]
    assert run(replace(one, bits=(4, 23)))[-1].values["loss/23"] == loss
    # A first decay has nothing to act on, and an offset of the first step is rounded far below the others' digits.
    assert run(replace(one, lam=0.0))[-1].values["loss/23"] == loss
    assert run(replace(one, drift=1.0))[-1].values["loss/23"] == pytest.approx(loss, rel=1e-5)
    assert run(replace(one, seed=1))[-1].values["loss/23"] != pytest.approx(loss, rel=1e-3)


@pytest.mark.parametrize("lam", [0.0, 0.03])
def test_the_expected_offset_is_that_without_luck(lam: float) -> None:
    spec, offset = replace(NEURON, lam=lam), 0.0
    for step in range(1, 30):
        offset += spec.lr * (spec.drift - lam * offset)
        assert spec.expected_offset(step) == pytest.approx(offset)


# ---- a softmax


def test_a_softmax_is_what_its_logits_say() -> None:
    (reading,) = run(SOFTMAX)
    values, source = reading.values, read_source("fashion-mnist-5k")
    train_set, test_set = image_tensors(
        source, num_train=80, num_test=60, downsample=4, device=torch.device("cpu")
    )  # fmt: skip
    net = build_model("mlp", width=6, blocks=(1,), in_channels=1, num_classes=10, seed=0, image_size=(7, 7))
    batches = [batch for epoch in range(2) for batch in shuffled_batches(train_set, 20, seed=0, epoch=epoch)][:7]
    for x, y in batches:
        loss = functional.cross_entropy(net(x), y)
        gradients = torch.autograd.grad(loss, list(net.parameters()))
        with torch.no_grad():
            for weight, g in zip(net.parameters(), gradients, strict=True):
                weight.sub_(0.1 * g)
    with torch.no_grad():
        z, y = net(test_set.x_NCHW).double(), test_set.y_N

    def cross_entropy(logits: Tensor) -> float:
        return -logits.log_softmax(dim=1)[torch.arange(60), y].mean().item()

    assert values["loss"] == pytest.approx(cross_entropy(z), rel=1e-6)
    p = z.exp() / z.exp().sum(dim=1, keepdim=True)
    assert values["uncertainty"] == pytest.approx((1 - (p * p).sum(dim=1)).mean().item(), rel=1e-5)
    assert values["largest_logit"] == pytest.approx(z.abs().max().item(), rel=1e-5)
    shares = 1.25 + 0.5 * torch.rand(3, generator=draws(SOFTMAX), dtype=torch.float64)
    for k, e in SOFTMAX.cells:
        losses = [cross_entropy(round_to(z + share * 2.0 ** (k + e), k)) for share in shares]
        assert values[f"loss/{k}/{e}"] == pytest.approx(sum(losses) / 3, rel=1e-6)
    # With 23 bits: where numbers are 2^-9 apart nothing is lost, and where they are 2^12 apart everything.
    assert values["loss/23/-9"] == pytest.approx(values["loss"], abs=1e-3)
    assert values["loss/23/1"] > values["loss"] + 0.01
    assert values["loss/23/12"] == pytest.approx(math.log(10))
    assert 1e-12 < values["exact_difference"] < 1e-5, "2^35 leaves 17 bits of the logits to float64"


# ---- whatever the case


@pytest.mark.parametrize("spec", [SUM, NEURON, SOFTMAX], ids=lambda spec: spec.case)
def test_a_run_that_is_cut_or_stopped(spec: ScalesRun) -> None:
    (*_, last) = run(replace(spec, max_steps=1))
    assert last.step == 1
    if spec.case == "neuron":
        assert last.values["loss/23"] == run(replace(spec, eval_every=1))[0].values["loss/23"]
    with pytest.raises(RunStoppedError, match=rf"stopped after step \d+ of {spec.num_steps}: it will start over"):
        run(spec, stop=lambda: True)


def test_failures_are_sentences() -> None:
    with pytest.raises(RunFailedError, match="80 training images make no batch of 100: lower batch_size"):
        run(replace(SOFTMAX, batch_size=100))
    with pytest.raises(DivergedError, match="NaN or infinite at step 8"):
        run(replace(NEURON, lr=1e200, lam=0.0))


@pytest.mark.parametrize(
    ("spec", "change", "message"),
    [
        (SUM, {"case": "product"}, "case is 'product', expected one of sum, neuron, softmax: change case"),
        (SUM, {"bits": ()}, r"bits is \(\), expected one or more different integers from 1 to 23: change bits"),
        (SUM, {"bits": (0,)}, "bits is 0, expected an integer >= 1"),
        (SUM, {"bits": (24,)}, r"bits is \(24,\), expected one or more different integers from 1 to 23"),
        (SUM, {"bits": (7, 7)}, r"bits is \(7, 7\), expected one or more different integers"),
        (SUM, {"bits": 7}, "bits is 7, expected a tuple of integers: change bits"),
        (SUM, {"bits": [7]}, r"bits is \[7\], expected a tuple of integers"),
        (SUM, {"bits": ([7],)}, r"bits is \[7\], expected an integer >= 1"),
        (SUM, {"bits": (True,)}, "bits is True, expected an integer >= 1"),
        (SUM, {"bits": (7.0,)}, "bits is 7.0, expected an integer >= 1"),
        (SUM, {"log2_ulps": ()}, r"log2_ulps is \(\), expected one or more different integers from -40 to 40"),
        (SUM, {"log2_ulps": (1, 0)}, r"log2_ulps is \(1, 0\), expected integers in rising order: change"),
        (SUM, {"log2_ulps": (41,)}, r"log2_ulps is \(41,\), expected one or more different integers from -40 to 40"),
        (SUM, {"log2_ulps": (-41,)}, "log2_ulps is -41, expected an integer >= -40"),
        (SUM, {"log2_ulps": (0.5,)}, "log2_ulps is 0.5, expected an integer"),
        (SUM, {"lr": 0.1}, "lr is 0.1 and case is 'sum', expected it with 'neuron' or 'softmax' alone: leave lr out"),
        (SUM, {"width": 8}, "width is 8 and case is 'sum', expected it with 'softmax' alone: leave width out"),
        (NEURON, {"log2_ulps": (0,)}, r"log2_ulps is \(0,\) and case is 'neuron', expected it with 'sum' or 'softmax'"),
        (SOFTMAX, {"lam": 0.1}, "lam is 0.1 and case is 'softmax', expected it with 'neuron' alone: leave lam out"),
        (SOFTMAX, {"lr": 0.0}, "lr is 0.0, expected a finite number > 0: change lr"),
        (NEURON, {"lam": -0.1}, "lam is -0.1, expected a finite number >= 0: change lam"),
        (NEURON, {"drift": math.nan}, "drift is nan, expected a finite number >= 0: change drift"),
        (NEURON, {"margin": 0.0}, "margin is 0.0, expected a finite number > 0: change margin"),
        (NEURON, {"lam": 2.5}, r"lr \* lam is 1, expected < 1"),
        (NEURON, {"num_replicas": 0}, "num_replicas is 0, expected an integer >= 1: change num_replicas"),
        (NEURON, {"batch_size": 2.5}, "batch_size is 2.5, expected an integer >= 1: change batch_size"),
        (SOFTMAX, {"num_test": 0}, "num_test is 0, expected an integer >= 1: change num_test"),
    ],
)  # fmt: skip
def test_wrong_settings_are_refused(spec: ScalesRun, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(spec, **change)


def test_a_spec_comes_back_from_json_and_names_its_data() -> None:
    for spec in (SUM, NEURON, SOFTMAX):
        assert spec_from_json(spec.to_json()) == spec
        assert not spec.reads_folder
    assert describe(SUM).sha256 == describe(NEURON).sha256 == ""
    assert describe(SOFTMAX).sha256 == read_source("fashion-mnist-5k").sha256
