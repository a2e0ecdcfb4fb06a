"""Readings and specs survive a trip through JSON, and what JSON cannot hold is refused."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from halflife.errors import StoreError, UserError
from halflife.studies.specs import ImageRun, spec_from_json
from halflife.studies.store.records import Array, Reading

finite = st.floats(allow_nan=False, allow_infinity=False)


names = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8)


@given(
    st.integers(0, 10**9),
    st.floats(0, allow_infinity=False),
    st.dictionaries(names, finite | st.integers(-(10**300), 10**300), max_size=4),
    st.dictionaries(names, st.binary(max_size=9), max_size=2),
)
def test_a_reading_is_the_same_after_a_line(
    step: int, epoch: float, values: dict[str, float], raw: dict[str, bytes]
) -> None:
    arrays = {name: Array("bits", 8 * len(data), data) for name, data in raw.items()}
    reading = Reading(step=step, epoch=epoch, values=values, arrays=arrays)
    line = reading.to_line()
    assert "\n" not in line
    assert Reading.from_line(line) == reading


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_value_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(
        StoreError, match=r"the reading 'train/loss' at step 3 is -?(nan|inf), and a store holds finite"
    ):
        Reading(step=3, epoch=1, values={"train/loss": value}).to_line()


@pytest.mark.parametrize("line", ["", "{", "[]", "3", '{"step":1}', '{"step":"x","epoch":1,"values":{}}'])
def test_a_line_that_is_no_reading_is_refused(line: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - json's own message differs from case to case
        Reading.from_line(line)


GOOD: dict[str, Any] = {"lr": 0.1, "lam": 0.01, "num_epochs": 10}


def test_a_spec_is_the_same_after_json() -> None:
    spec = ImageRun(**GOOD, seed=3, ema=(0.9, 0.99), blocks=(2, 1))
    assert spec_from_json(spec.to_json()) == spec


def test_every_field_is_part_of_the_digest() -> None:
    spec = ImageRun(**GOOD)
    others: dict[str, Any] = {
        "seed": 1, "max_steps": 5, "data": "cifar10", "num_train": 7, "num_test": 7, "downsample": 1, "model": "vgg",
        "width": 9, "blocks": (1,), "lr": 0.2, "lr_after_drop": 2e-3, "drop_at": 0.6, "lam": 0.0, "num_epochs": 11,
        "batch_size": 64, "ema": (), "eval_every": 1, "precision": "bfloat16", "augmentation": "flip-crop",
        "label_smoothing": 0.1, "label_noise": 0.1, "fresh_label_noise": True, "sphere": 2.0, "ensemble_every": 1,
        "keep_at": (3,), "probes": ("noise-scale",), "probe_every": 2, "probe_examples": 9, "probe_vectors": 8,
        "lr_schedule": "cosine(1.0, 0.0, 9)", "lr_schedule_unit": "epochs", "optimizer": "adam", "momentum": 0.9,
        "beta1": 0.8, "beta2": 0.9, "eps": 1e-6, "final_lr": 0.2, "partial": 0.125, "decay": "L2(lam=0.1)",
        "decay_on": "matrices", "trace": True,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(spec)}
    # Some exclude each other, or belong to one optimizer.
    needed: dict[str, dict[str, Any]] = {
        "sphere": {"lam": 0.0}, "decay": {"lam": 0.0}, "lr_schedule_unit": {"lr_schedule": "cosine(1.0, 0.0, 9)"},
        "beta1": {"optimizer": "adam"}, "beta2": {"optimizer": "adam"}, "eps": {"optimizer": "adam"},
        "final_lr": {"optimizer": "adabound"}, "partial": {"optimizer": "padam"},
    }  # fmt: skip
    changes = [{name: value} | needed.get(name, {}) for name, value in others.items()]
    digests = {dataclasses.replace(spec, **change).digest() for change in changes}
    assert len(digests | {spec.digest()}) == len(others) + 1


BAD: list[tuple[dict[str, Any], str]] = [
    ({"lr": -0.1}, r"lr is -0.1, expected a finite number > 0: change lr"),
    ({"lr": 0.0}, r"lr is 0.0, expected a finite number > 0"),
    ({"lr": math.nan}, r"lr is nan, expected a finite number > 0"),
    ({"lr": math.inf}, r"lr is inf"),
    ({"lam": -0.01}, r"lam is -0.01, expected a finite number >= 0"),
    ({"lam": math.nan}, r"lam is nan"),
    ({"lr": 0.1, "lam": 10.0}, r"lr \* lam is 1, expected < 1 \(it is the fraction"),
    ({"lr_after_drop": 200.0}, r"lr \* lam is 2, expected < 1"),
    ({"drop_at": 1.5}, r"drop_at is 1.5, expected a finite number > 0 and <= 1"),
    ({"drop_at": 0.0}, r"drop_at is 0.0"),
    ({"ema": (0.9, 1.1)}, r"ema is 1.1, expected a finite number >= 0 and <= 1"),
    (
        {"model": "vit"},
        r"model is 'vit', expected one of resnet, vgg, scale-invariant, resnet-plain, mlp, vgg-bn, densenet, ",
    ),
    (
        {"data": "mnist"},
        r"data is 'mnist', expected one of fashion-mnist-5k, fashion-mnist-views, fashion-mnist, cifar10",
    ),
    ({"augmentation": "mixup"}, r"augmentation is 'mixup', expected one of none, flip-crop: change augmentation"),
    ({"label_smoothing": 1.0}, r"label_smoothing is 1.0, expected a finite number >= 0 and <= 0.9: change"),
    ({"precision": "int8"}, r"precision is 'int8', expected one of float32, bfloat16, float16"),
    ({"num_train": 0}, r"num_train is 0, expected an integer >= 1"),
    ({"max_steps": 0}, r"max_steps is 0, expected an integer >= 1"),
    ({"width": 0}, r"width is 0, expected an integer >= 1"),
    ({"num_epochs": -1}, r"num_epochs is -1, expected an integer >= 1"),
    ({"num_epochs": 2.5}, r"num_epochs is 2.5, expected an integer >= 1"),
    ({"num_epochs": math.nan}, r"num_epochs is nan, expected an integer >= 1"),
    ({"batch_size": True}, r"batch_size is True, expected an integer >= 1"),
    ({"width": None}, r"width is None, expected an integer >= 1"),
    ({"keep_at": ("3",)}, r"keep_at is '3', expected an integer >= 1"),
    ({"lr": "0.1"}, r"lr must be a number, got '0.1'"),
    ({"ema": (0.9, None)}, r"ema must be a number, got None"),
    ({"blocks": ()}, r"blocks is \(\), expected at least one stage"),
    ({"blocks": (1, 0)}, r"blocks is \(1, 0\), expected at least one stage"),
]


@pytest.mark.parametrize(("fields", "message"), BAD, ids=[message[:24] for _, message in BAD])
def test_a_bad_spec_is_refused_with_a_sentence(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ImageRun(**{**GOOD, **fields})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "sounds"}, "a run of kind 'sounds' was found and this version of halflife knows exponential, "),
        ({"kind": "images", "colour": 1}, "has other fields than this version of halflife"),
    ],
)
def test_a_spec_of_another_version_is_refused(value: dict[str, Any], message: str) -> None:
    with pytest.raises(StoreError, match=message):
        spec_from_json(value)
