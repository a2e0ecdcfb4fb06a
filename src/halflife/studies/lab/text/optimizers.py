"""The optimizer of a text run, with its decay attached by halflife and none of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from halflife.groups.build import Policy, param_groups
from halflife.optim.attaching import Handle, attach
from halflife.rules.registry import rule_from
from halflife.studies.specs.text import TextRun

__all__ = ["Training", "training_of"]

QKV = "*.attention.qkv.weight"
POLICIES: Mapping[str, Policy] = {
    "qkv": [(QKV, True), ("*", False)],
    "all-but-qkv": [(QKV, False), ("*", "nanogpt")],
}
"""What is no named policy of `param_groups`."""


@dataclass(frozen=True)
class Training:
    """What steps a model.

    Args:
        optimizer: Its groups hold ``name`` for per-tensor groups, and the multiplier of the learning rate is the caller's.
        decay: The attached rule's handle (``None``: nothing decays).
        decayed: The parameters that the spec's policy lets decay, whether a rule is attached or not.
    """

    optimizer: Optimizer
    decay: Handle | None
    decayed: list[Tensor]


def training_of(spec: TextRun, model: nn.Module, *, decay: str, tokens_per_step: int, split: bool = False) -> Training:
    """The optimizer of a run.

    Args:
        spec: The run.
        model: Its model, wrapped for several processes already.
        decay: The rule or penalty, as text (empty: none); a branch has another than its parent.
        tokens_per_step: For half-lives in tokens.
        split: One group a tensor, so that each can have its own learning rate.

    Returns:
        The optimizer and its decay.
    """
    # attach lets exactly the groups decay whose weight_decay is not 0; the rule brings its own coefficient.
    groups = param_groups(model, policy=POLICIES.get(spec.decay_on, spec.decay_on), weight_decay=1.0)
    decayed = [parameter for group in groups if group["weight_decay"] for parameter in group["params"]]
    if split:
        groups = [  # type: ignore[assignment]  # a plain list serves as well
            {"params": [parameter], "weight_decay": group["weight_decay"]}
            for group in groups
            for parameter in group["params"]
        ]
    optimizer = _optimizer(spec, groups)
    handle = None
    if decay:
        handle = attach(optimizer, rule_from(decay), peak_lr=spec.lr, tokens_per_step=tokens_per_step)  # type: ignore[arg-type]
    else:
        for group in optimizer.param_groups:
            group["weight_decay"] = 0.0
    return Training(optimizer, handle, decayed)


def _optimizer(spec: TextRun, groups: list[dict[str, object]]) -> Optimizer:
    if spec.optimizer == "sgd":
        # torch has a fused Adam for sharded parameters, and no fused SGD.
        fused = not any(isinstance(parameter, DTensor) for group in groups for parameter in group["params"])  # type: ignore[attr-defined]
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum, fused=fused)
    betas = (spec.beta1, spec.beta2)
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, lr=spec.lr, betas=betas, eps=spec.eps, fused=True)
    return torch.optim.AdamW(groups, lr=spec.lr, betas=betas, eps=spec.eps, fused=True)
