"""The runs of the study `stationary-mean`: its arms at any scale, and its presets."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from halflife.studies.evidence.claims import Arm, Preset
from halflife.studies.specs.stationary import StationaryRun

__all__ = ["PRESETS"]

PREFACTORS = (0.0, *(round(2.0 ** (power / 2), 4) for power in range(-8, 5)))


@dataclass(frozen=True)
class Scale:
    """How long and how often things run.

    Args:
        steps: Factor on the numbers of steps.
        line_replicas: Replicas of functions of one or two parameters.
        replicas: Of all others.
        prefactors: The values of c.
        net: Further fields of the nets.
    """

    steps: float = 1.0
    line_replicas: int = 1000
    replicas: int = 32
    prefactors: tuple[float, ...] = PREFACTORS
    net: tuple[tuple[str, Any], ...] = ()


def _spec(fields: dict[str, Any], seed: int) -> StationaryRun:
    return StationaryRun(seed=seed, **fields)


def _closed(size: int, scale: Scale) -> list[Arm]:
    """Functions of one or two parameters, and diagonal networks on sparse regression."""
    kinds: list[tuple[str, str, dict[str, Any]]] = []
    for lr in (0.2, 0.1, 0.05):
        # u^2 - v^2 dies as exp(-(lr sigma)^2 steps): eight such times. The rest is averaging.
        burn_in = round(8 / (lr * 0.5) ** 2)
        line = {"model": "product", "lr": lr, "label_noise": 0.5, "regularizers": ("jacobian",)}
        line |= {"burn_in": burn_in, "num_steps": burn_in + round(500 / lr)}
        kinds.append((f"line-{lr:g}", f"h = u v, lr {lr:g}", line))
    square = {"model": "square", "lr": 0.05, "label_noise": 0.5, "burn_in": 1000, "num_steps": 7000}
    kinds.append(("square", "h = u^2, lr 0.05", square))
    kinds = [(key, label, {**fields, "num_replicas": scale.line_replicas}) for key, label, fields in kinds]
    sparse = {
        "data": "sparse", "num_examples": 12, "num_held_out": 12, "num_inputs": 20, "num_relevant": 3, "init": 0.5,
        "label_noise": 1.0, "burn_in": 17_000, "num_steps": 45_000, "measure_every": 5, "num_replicas": scale.replicas,
    }  # fmt: skip
    product = {**sparse, "model": "product", "regularizers": ("jacobian",)}
    kinds += [
        ("sparse", "u v, B = 1", {**product, "lr": 0.03, "lam": 0.03}),
        ("sparse-batch", "u v, B = 4", {**product, "lr": 0.06, "lam": 0.03, "batch_size": 4}),
        ("sparse-square", "u^2, B = 1", {**sparse, "model": "square", "lr": 0.01, "lam": 0.06}),
    ]
    return [_arm(key, label, size, fields, scale) for key, label, fields in kinds]


def _nets(size: int, scale: Scale) -> list[Arm]:
    """Two-layer nets on images of two classes."""
    net = {
        "model": "tanh", "hidden": size, "data": "fashion-mnist-5k", "num_examples": 32, "num_held_out": 32,
        "lam": 0.02, "burn_in": 6_000, "num_steps": 24_000, "measure_every": 5, "num_replicas": scale.replicas,
        "searched": (0.25, 1.0), "num_starts": 2, **dict(scale.net),
    }  # fmt: skip
    kinds: list[tuple[str, str, dict[str, Any]]] = [
        (
            "net-squared",
            "squared loss, label noise",
            {"loss": "squared", "lr": 0.1, "label_noise": 0.5, "batch_size": 2},
        ),
        (
            "net-flips",
            "logistic loss, flipped labels",
            {"loss": "logistic", "lr": 0.2, "label_noise": 0.2, "batch_size": 2},
        ),
        ("net-logistic", "logistic loss, no label noise", {"loss": "logistic", "lr": 0.2}),
    ]
    return [_arm(key, label, size, {**net, **fields}, scale) for key, label, fields in kinds]


def _arm(key: str, label: str, size: int, fields: dict[str, Any], scale: Scale) -> Arm:
    steps = {name: max(round(fields[name] * scale.steps), 20) for name in ("burn_in", "num_steps")}
    steps["num_steps"] = max(steps["num_steps"], steps["burn_in"] + 20)
    build = functools.partial(_spec, {**fields, **steps, "prefactors": scale.prefactors})
    return Arm(key=key, label=label, size=size, build=build)


def _preset(
    description: str, budget: str, scale: Scale, *, main: int, others: tuple[int, ...] = (), **rest: Any
) -> Preset:
    nets = [arm for size in (main, *others) for arm in _nets(size, scale)]
    return Preset(
        description=description, budget=budget, arms=(*_closed(main, scale), *nets), main_size=main, **rest
    )  # fmt: skip


PRESETS = {
    "smoke": _preset(
        "a hundredth of the steps: shows that everything works, not what is true",
        "20 seconds",
        Scale(
            steps=0.01,
            line_replicas=20,
            replicas=4,
            prefactors=(0.0, 0.25, 1.0),
            net=(("num_examples", 8), ("num_held_out", 8), ("searched", ()), ("downsample", 14)),
        ),
        main=2,
        num_seeds=2,
        decides=False,
    ),
    "laptop": _preset(
        "functions of one or two parameters, diagonal networks with 20 inputs, tanh nets with 6 hidden units on 32 images",
        "10 minutes on 2 cores",
        Scale(),
        main=6,
        num_seeds=5,
    ),
    "night": _preset(
        "as laptop, four times as long, more seeds, and nets of 3, 6 and 12 hidden units",
        "90 minutes on 2 cores",
        Scale(steps=4.0),
        main=6,
        others=(3, 12),
        num_seeds=8,
        num_ladder_seeds=5,
    ),
    "paper": _preset(
        "nets with 64 hidden units on 256 images at 14 x 14 (the paper runs nothing of the kind: it states the conjecture)",
        "days on one GPU",
        Scale(
            steps=10.0,
            replicas=256,
            net=(("num_examples", 256), ("num_held_out", 256), ("downsample", 2)),
        ),
        main=64,
        num_seeds=5,
        needs="a GPU",
    ),
}
