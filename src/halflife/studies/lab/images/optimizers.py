"""The optimizer of a run on images, with its decay attached by halflife and none of its own."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.groups.build import param_groups
from halflife.optim.attaching import Handle, attach
from halflife.rules.basic import Decoupled
from halflife.rules.registry import rule_from
from halflife.studies.lab.images.adai import Adai
from halflife.studies.specs.images import ImageRun
from halflife.studies.specs.optimizers import OPTIMIZERS, setting_of

__all__ = ["Training", "decayed_of", "optimizer_of", "training_of"]

PACKAGE = "pytorch_optimizer"
MAKERS: dict[str, Callable[..., Optimizer] | str] = {
    "sgd": functools.partial(torch.optim.SGD, fused=True),
    "adam": functools.partial(torch.optim.Adam, fused=True),
    "adamw": functools.partial(torch.optim.AdamW, fused=True),
    "amsgrad": functools.partial(torch.optim.Adam, amsgrad=True, fused=True),
    "radam": torch.optim.RAdam,
    "adabound": "AdaBound",
    "padam": "PAdam",
    "yogi": "Yogi",
    "adai": Adai,
}
"""What makes each; a name is that of a class of pytorch-optimizer."""


@dataclass(frozen=True)
class Training:
    """What steps a model.

    Args:
        optimizer: Its groups have the learning rate of the start, which the caller changes.
        decay: The attached rule's handle (``None``: nothing decays).
        decayed: The parameters that the spec's policy lets decay by name, whether a rule is attached or not.
    """

    optimizer: Optimizer
    decay: Handle | None
    decayed: dict[str, Tensor]


def training_of(spec: ImageRun, model: nn.Module, *, steps_per_epoch: int) -> Training:
    """The optimizer of a run.

    Args:
        spec: The run.
        model: Its model.
        steps_per_epoch: For half-lives in epochs.

    Returns:
        The optimizer and its decay.
    """
    # attach lets exactly the groups decay whose weight_decay is not 0; a rule given as text brings its own coefficient.
    groups = param_groups(model, policy=spec.decay_on, weight_decay=1.0 if spec.decay else spec.lam)
    optimizer = optimizer_of(spec, groups)
    handle = None
    if spec.decay or spec.lam > 0:
        rule: Any = rule_from(spec.decay) if spec.decay else Decoupled()
        handle = attach(optimizer, rule, peak_lr=spec.lr, steps_per_epoch=steps_per_epoch)
    return Training(optimizer, handle, decayed_of(spec, model))


def decayed_of(spec: ImageRun, model: nn.Module) -> dict[str, Tensor]:
    """The parameters that a run's policy lets decay, by name, in the model's order."""
    groups = param_groups(model, policy=spec.decay_on, weight_decay=1.0)
    names = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    return {name: parameter for name, parameter in model.named_parameters() if name in names}


def optimizer_of(spec: ImageRun, groups: list[dict[str, Any]]) -> Optimizer:
    """The optimizer that a run names.

    Args:
        spec: The run.
        groups: Parameter groups.

    Returns:
        The optimizer, with the settings of the run, and of the table where it has none.

    Raises:
        UserError: It is one of pytorch-optimizer, which is not installed.
    """
    settings: dict[str, Any] = {name: setting_of(spec, name) for name in OPTIMIZERS[spec.optimizer]}
    if "beta1" in settings:
        settings["betas"] = (settings.pop("beta1"), settings.pop("beta2"))
    maker = MAKERS[spec.optimizer]
    if isinstance(maker, str):
        try:
            maker = getattr(importlib.import_module(PACKAGE), maker)
        except ImportError as error:
            raise UserError(
                f"optimizer {spec.optimizer} needs the package pytorch-optimizer, which is not installed:"
                " pip install 'torch-halflife[study]'"
            ) from error
    made: Optimizer = maker(groups, lr=spec.lr, **settings)
    return made
