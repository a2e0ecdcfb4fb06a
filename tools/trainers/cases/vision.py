"""timm, ultralytics, fastai, spaCy.

torchvision's compiled operators do not load beside a CPU build of torch from elsewhere. timm and ultralytics import
torchvision, so the two operators that its import looks for are declared here, without any implementation; no
optimizer uses them.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from probe import Built, counted, half_life, kinds_of, twins
from torch import nn

OPERATORS = torch.library.Library("torchvision", "FRAGMENT")
for operator in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, operator):
        OPERATORS.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "true"


def case_timm() -> Iterator[Built | dict[str, Any]]:
    """create_optimizer_v2 with its defaults, with AdamW, and each of its choices with weight_decay=0.1."""
    import timm
    from timm.optim import create_optimizer_v2, list_optimizers
    from timm.optim._optim_factory import default_registry

    name = "timm create_optimizer_v2"
    model: Any = timm.create_model("test_resnet")
    optimizer = create_optimizer_v2(model)
    yield Built(name, "defaults; test_resnet", optimizer, [model], "timm", "weight_decay 0", "as documented")
    for architecture in ("test_resnet", "test_vit"):
        model = timm.create_model(architecture)
        optimizer = create_optimizer_v2(model, "adamw", lr=1e-3, weight_decay=0.05)
        documented = "bias, norm layer parameters (all 1d params) will not have weight decay applied"
        configuration = f"'adamw', lr=1e-3, weight_decay=0.05; {architecture}"
        yield Built(name, configuration, optimizer, [model], "timm", documented, "as documented")
    for option in list_optimizers():
        documented = default_registry.get_optimizer_info(option).description
        configuration = f"{option!r}, lr=0.01, weight_decay=0.1"
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 4))
        try:
            optimizer = create_optimizer_v2(model, option, lr=0.01, weight_decay=0.1)
            yield Built(name, configuration, optimizer, [model], "timm", documented, "", option)
        except (Exception, SystemExit) as error:  # the reason is the result
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            yield {
                "trainer": name,
                "configuration": configuration,
                "package": "timm",
                "documented": documented,
                "option": option,
                "error": reason,
                "groups": [],
            }


def case_ultralytics() -> Iterator[Built]:
    """build_optimizer of the trainer, on YOLO11n built from its configuration, with the trainer's own arguments."""
    from ultralytics.cfg import DEFAULT_CFG, get_cfg
    from ultralytics.engine.trainer import BaseTrainer
    from ultralytics.nn.tasks import DetectionModel

    for batch, iterations, name in ((16, 1000, "auto"), (16, 100000, "auto"), (128, 1000, "auto"), (16, 1000, "SGD")):
        model = DetectionModel("yolo11n.yaml", nc=80, verbose=False)
        model.args = get_cfg(DEFAULT_CFG)
        trainer = SimpleNamespace(args=get_cfg(DEFAULT_CFG), data={"nc": 80}, batch_size=batch, model=model)
        # The same two lines as in BaseTrainer, for a batch size other than the default.
        trainer.accumulate = max(round(trainer.args.nbs / batch), 1)
        decay = trainer.args.weight_decay * batch * trainer.accumulate / trainer.args.nbs
        optimizer = BaseTrainer.build_optimizer(
            trainer,  # type: ignore[arg-type]
            model=model,
            name=name,
            lr=trainer.args.lr0,
            momentum=trainer.args.momentum,
            decay=decay,
            iterations=iterations,
        )
        verdict = {"SGD": "as documented"}.get(name, "l2-names" if iterations <= 10000 else "as documented")
        verdict = "ultralytics-batch" if batch == 128 else verdict
        configuration = f"optimizer={name}, batch={batch}, {iterations:,} iterations; yolo11n"
        documented = "weight_decay: 0.0005, weight decay (L2 regularization)"
        yield Built("ultralytics", configuration, optimizer, [model], "ultralytics", documented, verdict)


class Mixed(nn.Module):
    """One of each kind of layer."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 4)
        self.linear, self.batch_norm, self.layer_norm = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.LayerNorm(4)
        self.group_norm, self.rms_norm = nn.GroupNorm(2, 4), nn.RMSNorm(4)
        self.lstm, self.attention = nn.LSTM(4, 4), nn.MultiheadAttention(4, 2)


def case_fastai() -> Iterator[dict[str, Any]]:
    """A Learner with its defaults; its optimizer is no torch optimizer, so two runs that differ in wd are compared."""
    from fastai.data.core import DataLoaders
    from fastai.learner import Learner
    from fastai.optimizer import Adam

    def step(w: torch.Tensor, gradients: list[torch.Tensor], lr: float, lam: float) -> torch.Tensor:
        parameter = nn.Parameter(w)
        optimizer = Adam([parameter], lr=lr, wd=lam)
        for gradient in gradients:
            parameter.grad = gradient
            optimizer.step()
        return parameter.data

    data = [(torch.zeros(4), 0.0)] * 4
    learner = Learner(DataLoaders.from_dsets(data, data, bs=2, device="cpu"), Mixed(), loss_func=nn.MSELoss(), lr=1e-3)
    learner.create_opt()
    yield from by_twins(
        learner.model,
        lambda p: bool(learner.opt.state[p].get("do_wd", True)),
        twins(step),
        lr=float(learner.opt.hypers[0]["lr"]),
        lam=float(learner.opt.hypers[0]["wd"]),
        trainer="fastai Learner",
        configuration="defaults; a module with one of each layer",
        package="fastai",
        documented="wd_bn_bias=False: apply weight decay to normalization and bias parameters",
        verdict="fastai-norms",
        optimizer="fastai.Optimizer (Adam)",
    )


def by_twins(model: nn.Module, decays: Any, found: dict[str, Any], *, lr: float, lam: float, **row: Any) -> Any:
    """Two groups, what decays and what does not, for something that is no torch optimizer."""
    fraction = lr * lam * found["fraction"] / (found["lr"] * found["weight_decay"])
    kinds = list(kinds_of([model]).values())
    groups = []
    for on in (True, False):
        counts = counted((kind, p) for _, kind, p in kinds if decays(p) is on)
        if not counts:
            continue
        pathway = found["pathway"] if on else "none"
        law = f"{pathway}: r = lr * lam (from two runs that differ in weight decay)" if on else "none: nothing decays"
        groups.append(
            {
                "group": len(groups),
                "lr": lr,
                "weight_decay": lam if on else 0.0,
                "counts": counts,
                "pathway": pathway,
                "law": law,
                "equivalent_to": None,
                "fraction": fraction if on else 0.0,
                "half_life": half_life(fraction if on else 0.0),
                "notes": [],
                "check": {"kind": "two runs", **found},
                "agrees": math.isclose(found["fraction"], found["lr"] * found["weight_decay"], rel_tol=1e-5),
            }
        )
    yield {**row, "option": "", "groups": groups, "in_no_group": {}}


def case_spacy() -> Iterator[dict[str, Any]]:
    """The optimizer of spaCy's default configuration; thinc's own Adam, compared in two runs."""
    import spacy
    from spacy.util import registry
    from thinc.api import Adam

    nlp = spacy.blank("en")
    categories = nlp.add_pipe("textcat")
    for label in ("A", "B"):
        categories.add_label(label)
    nlp.initialize()
    optimizer = registry.resolve(nlp.config["training"], schema=None, validate=False)["optimizer"]
    counts: dict[str, list[int]] = {}
    for node in categories.model.walk():
        for name in node.param_names:
            if node.has_param(name):
                kind = (
                    "matrices" if name == "W" else "biases" if name == "b" else "embeddings" if name == "E" else "other"
                )
                kind = "norms" if node.name == "layernorm" else kind
                entry = counts.setdefault(kind, [0, 0])
                entry[0] += 1
                entry[1] += node.get_param(name).size

    def step(w: torch.Tensor, gradients: list[torch.Tensor], lr: float, lam: float) -> torch.Tensor:
        adam = Adam(lr, L2=lam, grad_clip=0.0, use_averages=False)
        weights = w.float().numpy()  # thinc computes in float32 only
        for gradient in gradients:
            weights, _ = adam((1, "W"), weights, gradient.float().numpy())
        return torch.as_tensor(weights).double()

    found = twins(step)
    lr, lam = float(optimizer.learn_rate), float(optimizer.L2)
    fraction = lr * lam * found["fraction"] / (found["lr"] * found["weight_decay"])
    group = {
        "group": 0,
        "lr": lr,
        "weight_decay": lam,
        "counts": counts,
        "pathway": found["pathway"],
        "law": f"{found['pathway']}: r = lr * lam (from two runs that differ in weight decay)",
        "equivalent_to": None,
        "fraction": fraction,
        "half_life": half_life(fraction),
        "notes": [],
        "check": {"kind": "two runs", **found},
        "agrees": math.isclose(found["fraction"], found["lr"] * found["weight_decay"], rel_tol=1e-3),
    }
    yield {
        "trainer": "spaCy",
        "configuration": "default configuration; textcat",
        "package": "spacy",
        "documented": "L2 = 0.01 with L2_is_weight_decay: in the style of AdamW",
        "verdict": "as documented",
        "option": "",
        "optimizer": "thinc.Optimizer (Adam)",
        "groups": [group],
        "in_no_group": {},
    }
