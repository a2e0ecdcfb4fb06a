"""An exponential learning rate beside decay: the trainer against recurrences written by hand, the study's rules."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.catalog.theory.exponential_lr import CHANGES, EXPONENTIAL_LR
from halflife.studies.evidence.results import Results
from halflife.studies.lab.images.data import image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.synthetic.exponential import angle_between
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ExponentialRun, spec_from_json
from halflife.studies.store.records import Reading

SMALL = ExponentialRun(
    lr=0.05, lam=0.02, num_steps=30, num_train=120, num_test=60, batch_size=30, width=4, eval_every=10
)


def run(spec: ExponentialRun, **kwargs: Any) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append, **kwargs)
    return readings


# ---- the theorem's numbers


@pytest.mark.parametrize(("momentum", "product"), [(0.0, 0.3), (0.5, 0.05), (0.9, 0.002), (0.99, 2e-5)])
def test_a_is_the_larger_root(momentum: float, product: float) -> None:
    spec = replace(SMALL, lr=0.1, lam=10 * product, momentum=momentum, num_steps=5)
    a = spec.root
    assert a**2 - (1 + momentum - product) * a + momentum == pytest.approx(0, abs=1e-15)
    assert math.sqrt(momentum) < a < 1  # the product of the roots is mu
    assert [spec.twin_lr(t) / 0.1 for t in (0, 1, 4)] == pytest.approx([a**-1, a**-3, a**-9])
    assert replace(spec, twin="constant").twin_lr(4) == 0.1


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_it_is_the_recurrence_written_by_hand(momentum: float) -> None:
    """In positions alone, with the previous iterate that the theorem names: no momentum buffer, no optimizer."""
    spec = replace(SMALL, momentum=momentum, num_steps=6, eval_every=1)
    found = run(spec)
    source = read_source(spec.data)
    images, _ = image_tensors(source, num_train=120, num_test=60, downsample=4, device=torch.device("cpu"))
    net = build_model(
        "scale-invariant", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0
    ).double()  # fmt: skip
    weights = [p for p in net.parameters() if p.requires_grad]
    batches = [
        (x.double(), y)
        for epoch in range(2)
        for x, y in shuffled_batches(images, 30, seed=0, epoch=epoch)
    ]  # fmt: skip

    def gradient(point: list[Tensor], t: int) -> tuple[list[Tensor], float]:
        with torch.no_grad():
            for weight, value in zip(weights, point, strict=True):
                weight.copy_(value)
        loss = functional.cross_entropy(net(batches[t][0]), batches[t][1])
        return list(torch.autograd.grad(loss, weights)), loss.item()

    lr, lam, mu = spec.lr, spec.lam, momentum
    b = 1 + mu - lr * lam
    a = max(np.roots([1, -b, mu]).real)
    now = [weight.detach().clone() for weight in weights]
    before = now
    twin, twin_before = now, [a * value for value in now]
    for t in range(6):
        g, loss = gradient(now, t)
        h, twin_loss = gradient(twin, t)
        now, before = [b * w - mu * p - lr * s for w, p, s in zip(now, before, g, strict=True)], now
        rate, rate_before = lr * a ** (-2 * t - 1), lr * a ** (-2 * (t - 1) - 1)
        twin, twin_before = (
            [w + mu * rate / rate_before * (w - p) - rate * s for w, p, s in zip(twin, twin_before, h, strict=True)],
            twin,
        )
        values = found[t].values
        norms = [math.sqrt(sum(w.square().sum().item() for w in point)) for point in (now, twin)]
        assert values["weight_norm"] == pytest.approx(norms[0], rel=1e-12)
        assert values["twin/weight_norm"] == pytest.approx(norms[1], rel=1e-12)
        assert values["loss"] == pytest.approx(loss, rel=1e-11)
        assert values["twin/loss"] == pytest.approx(twin_loss, rel=1e-11)
        assert norms[1] / norms[0] == pytest.approx(a ** -(t + 1), rel=1e-12)
        assert values["predicted_norm_ratio"] == pytest.approx(a ** -(t + 1), rel=1e-12)
        assert values["norm_ratio"] == pytest.approx(norms[1] / norms[0], rel=1e-12)
        assert values["twin/lr"] == pytest.approx(rate)


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_the_twins_are_one_and_each_condition_counts(momentum: float) -> None:
    spec = replace(SMALL, momentum=momentum, lam=0.02 if momentum else 0.2)
    end = run(spec)[-1].values
    assert max(end[name] for name in ("largest_angle", "largest_norm_error", "largest_loss_difference")) < 1e-12
    assert end["test/differing"] == 0
    others = [replace(spec, twin="constant"), replace(spec, model="resnet"), replace(spec, dtype="float32")]
    if momentum:
        others.append(replace(spec, twin="unmatched"))  # without momentum there is nothing to match
    for other in others:
        assert run(other)[-1].values["largest_angle"] > (1e-8 if other.dtype == "float32" else 1e-4), other


def test_readings_of_a_stretch_and_of_all_steps() -> None:
    every = run(replace(SMALL, eval_every=1, twin="constant"))
    some = run(replace(SMALL, eval_every=20, twin="constant"))
    assert [reading.step for reading in some] == [20, 30]
    assert [reading.epoch for reading in some] == [5, 7.5]
    for reading, stretch in zip(some, (every[:20], every[20:]), strict=True):
        upto = every[: reading.step]
        for name in ("loss", "twin/loss"):
            assert reading.values[name] == pytest.approx(np.mean([r.values[name] for r in stretch]))
        assert reading.values["largest_angle"] == max(r.values["angle"] for r in upto)
        assert reading.values["largest_loss_difference"] == pytest.approx(
            max(abs(r.values["loss"] - r.values["twin/loss"]) for r in upto)
        )
        assert reading.values["largest_norm_error"] == pytest.approx(max(abs(r.values["norm_ratio"] - 1) for r in upto))
    assert "test/error" not in some[0].values
    assert 0 < some[1].values["test/error"] < 1
    assert some[1].values["test/differing"] > 0
    cut = run(replace(SMALL, eval_every=10, max_steps=15, twin="constant"))
    assert [reading.step for reading in cut] == [10, 15]
    assert cut[0].values["angle"] == every[9].values["angle"]


def test_angles_are_exact_from_rounding_to_pi() -> None:
    one = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    for angle in (1e-12, 1e-5, 1.0, math.pi / 2, 3.0):
        # Turned by the angle in the plane of the second coordinate, and twice as long.
        turned = [
            torch.tensor([6 * math.cos(angle), 10 * math.sin(angle)], dtype=torch.float64),
            torch.tensor([[8 * math.cos(angle)]], dtype=torch.float64),
        ]
        assert angle_between(one, turned).item() == pytest.approx(angle, rel=1e-3 if angle < 1e-10 else 1e-9)
    assert angle_between(one, [-2 * part for part in one]).item() == pytest.approx(math.pi)


def test_failures_are_sentences() -> None:
    with pytest.raises(RunFailedError, match="20 training images make no batch of 30: lower batch_size"):
        run(replace(SMALL, num_train=20))
    with pytest.raises(RunFailedError, match=r"the training loss became NaN or infinite at step 10 .*: lower the"):
        run(replace(SMALL, model="mlp", lr=1e160, lam=1e-164))
    with pytest.raises(RunStoppedError, match="stopped after step 10 of 30: it will start over"):
        run(SMALL, stop=lambda: True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lam": 0.0}, "lam is 0.0, expected a finite number > 0"),
        ({"momentum": 1.0}, "momentum is 1.0, expected a number >= 0 and < 1"),
        ({"twin": "evil"}, "twin is 'evil', expected one of matched, unmatched, constant"),
        ({"dtype": "float16"}, "dtype is 'float16', expected one of float64, float32"),
        ({"model": "resnet-18"}, "model is 'resnet-18', expected one of resnet"),
        ({"blocks": ()}, r"blocks is \(\), expected at least one stage"),
        ({"num_test": 0}, "num_test is 0, expected an integer >= 1"),
        ({"lam": 0.1}, r"lr \* lam is 0.005, expected < \(1 - sqrt\(momentum\)\)\^2 = 0.0026334"),
        ({"num_steps": 1400}, r"the twin's learning rate grows by 10\^13.6 in 1400 steps, expected at most 1e\+12"),
    ],
)
def test_wrong_settings_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SMALL, **change)


def test_a_spec_comes_back_from_json() -> None:
    assert spec_from_json(SMALL.to_json()) == SMALL
    assert not SMALL.reads_folder
    assert replace(SMALL, data="cifar10").reads_folder


# ---- the study


class MadeUp:
    """Results with a given largest reading of each arm; seeds differ by a tenth in parts."""

    def __init__(self, **angles: float) -> None:
        self.angles = {"matched": 1e-12, "constant": 0.3, "unmatched": 0.2, "resnet": 0.5, **angles}
        self.norm_error = self.angles.pop("norm_error", 1e-12)
        self.loss_difference = self.angles.pop("loss_difference", 1e-12)

    def seeds(self, size: int) -> list[int]:
        return [0, 1, 2]

    def read(self, key: str, metric: str, size: int, **place: None) -> NDArray[np.float64]:
        value = {
            "largest_angle": self.angles[key],
            "largest_norm_error": self.norm_error,
            "largest_loss_difference": self.loss_difference,
        }[metric]
        return value * np.array([0.9, 1.0, 1.1])


@pytest.mark.parametrize(
    ("key", "given", "outcome"),
    [
        ("equal", {}, "reproduced"),
        ("equal", {"matched": 0.95e-6}, "undecided"),  # one seed is above 1e-6
        ("equal", {"loss_difference": 1e-5}, "undecided"),
        ("equal", {"constant": 0.0105}, "not tested"),  # nothing was at stake in one seed
        ("equal", {"matched": 0.02}, "not reproduced"),
        ("equal", {"norm_error": 0.02}, "not reproduced"),
        ("needs-growth", {}, "reproduced"),
        ("needs-growth", {"constant": 0.01}, "undecided"),
        ("needs-growth", {"constant": 1e-5}, "not reproduced"),
        ("needs-unmatched", {"unmatched": 0.013}, "reproduced"),
        ("needs-unmatched", {"unmatched": 0.001}, "not reproduced"),
        ("needs-resnet", {}, "reproduced"),
        ("needs-resnet", {"resnet": 0.0}, "not reproduced"),
    ],
)
def test_a_rule_decides_what_it_should(key: str, given: dict[str, float], outcome: str) -> None:
    claim = next(claim for claim in EXPONENTIAL_LR.claims if claim.key == key)
    finding = claim.decide(cast("Results", MadeUp(**given)), 4)
    assert finding.outcome == outcome
    assert finding.effect is not None


def test_presets_differ_in_one_thing_an_arm() -> None:
    for name, preset in EXPONENTIAL_LR.presets.items():
        by_key = {arm.key: arm.build(0) for arm in preset.arms if arm.size == preset.main_size}
        assert by_key.keys() == CHANGES.keys()
        for key, change in CHANGES.items():
            spec, base = by_key[key], by_key["matched"]
            assert isinstance(spec, ExponentialRun)
            assert isinstance(base, ExponentialRun)
            assert spec == replace(base, **change), (name, key)
            assert 5 < spec.root ** (-2 * spec.num_steps) < 100 or name == "smoke"
