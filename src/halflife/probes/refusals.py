"""What models and losses a probe cannot be run on, each with the sentence that says what to change."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.parameter import is_lazy

from halflife.errors import RunFailedError, UserError
from halflife.probes.scope import batch_norms

__all__ = [
    "NotFiniteError",
    "check_batch_norm",
    "check_dropout",
    "check_loss",
    "check_model",
    "check_parameters",
]


class NotFiniteError(UserError, RunFailedError):
    """The weights, or the loss at them, are NaN or infinite.

    Of a model that was handed in it is a mistake; in a training run that takes probes it is that run that has failed,
    and others go on.
    """


def _kind(value: object) -> str:
    """What to call something that is not what was expected."""
    if isinstance(value, nn.Module) or not callable(value):
        return type(value).__name__
    return str(getattr(value, "__name__", type(value).__name__))


def check_model(model: object) -> None:
    """Refuse what is no model, or has no numbers yet.

    Args:
        model: What was given.

    Raises:
        UserError: If it is not a module, a lazy layer has not seen a batch, or a part of it is on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise UserError(
            f"The model is {_kind(model)}; expected a torch.nn.Module that takes a batch x_B... and gives outputs "
            "h_BK: wrap a function in one, and call a class to make one."
        )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value):
            raise UserError(
                f"{name} of the model is not initialized (a lazy layer); call the model once on a batch before making "
                "the problem."
            )
        if value.is_meta:
            raise UserError(
                f"{name} of the model is on the meta device, so it has a shape and no numbers; make the model on a "
                "real device, or move it with model.to_empty(device=...) and load its weights."
            )


def _drops(module: nn.Module) -> bool:
    if isinstance(module, _DropoutNd):
        return bool(module.p > 0)
    # Modules of torch that drop out inside, without a module for it.
    if isinstance(module, nn.MultiheadAttention):
        return bool(module.dropout > 0)
    if isinstance(module, nn.RNNBase):
        return bool(module.dropout > 0 and module.num_layers > 1)
    return False


def check_dropout(model: nn.Module) -> None:
    """Refuse active dropout.

    Args:
        model: What is measured.

    Raises:
        UserError: If a module drops out and is in training mode.
    """
    for name, module in model.named_modules():
        if module.training and _drops(module):
            raise UserError(
                f"{name or type(module).__name__} is dropout in training mode, so the loss is random and has no single "
                "Hessian; call model.eval() before making the problem."
            )


def check_batch_norm(model: nn.Module, batch_norm: str | None) -> None:
    """Refuse BatchNorm whose statistics nobody chose.

    Args:
        model: What is measured.
        batch_norm: What was stated.

    Raises:
        UserError: If it is missing, unknown, or asks for running statistics that are not there.
    """
    if batch_norm not in {None, "eval", "batch"}:
        raise UserError(
            f"batch_norm is {batch_norm!r}; expected 'eval', 'batch', or nothing for a model without BatchNorm."
        )
    norms = batch_norms(model)
    if norms and batch_norm is None:
        mode = "training" if any(norm.training for norm in norms) else "evaluation"
        raise UserError(
            f"The model has BatchNorm (now in {mode} mode) and nothing says which statistics to use; give "
            "batch_norm='eval' for the running ones or batch_norm='batch' for those of each batch."
        )
    if batch_norm == "eval" and any(norm.running_mean is None for norm in norms):
        raise UserError(
            "batch_norm='eval' asks for running statistics and a BatchNorm of the model keeps none "
            "(track_running_stats=False); use batch_norm='batch'."
        )


def check_loss(loss: object) -> None:
    """Refuse a loss that does not say that it is a mean over examples.

    Args:
        loss: What was given.

    Raises:
        UserError: If it is not a loss of torch's form, sums, gives one value per example, or weights classes.
    """
    if not isinstance(loss, nn.Module) or not hasattr(loss, "reduction"):
        raise UserError(
            f"The loss is {_kind(loss)}; expected a loss of torch.nn that is a mean over examples, such as "
            "torch.nn.CrossEntropyLoss() or torch.nn.MSELoss()."
        )
    if loss.reduction != "mean":
        raise UserError(
            f"The loss has reduction={loss.reduction!r}; probes are about the mean over examples, so use reduction='mean'."
        )
    if getattr(loss, "weight", None) is not None:
        raise UserError(
            "The loss weights classes, so it is no mean in which every example counts the same; leave weight= away."
        )


def check_parameters(named: Mapping[str, nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    """Refuse weights that there is no gradient of, or that are not in one place.

    Args:
        named: Parameters that require a gradient.

    Returns:
        Their device and dtype.

    Raises:
        UserError: If there are none, they differ in device or dtype, or are not float32 or float64.
        NotFiniteError: If they are NaN or infinite.
    """
    if not named:
        raise UserError(
            "No parameter of the model requires a gradient, so there is nothing to differentiate by; "
            "call model.requires_grad_(True)."
        )
    for what, found in (("device", {p.device for p in named.values()}), ("dtype", {p.dtype for p in named.values()})):
        if len(found) > 1:
            raise UserError(
                f"The parameters have more than one {what} ({', '.join(sorted(map(str, found)))}); "
                f"move the model to one {what} first."
            )
    first = next(iter(named.values()))
    if first.dtype not in {torch.float32, torch.float64}:
        raise UserError(
            f"The parameters are {first.dtype}; probes need torch.float32 or torch.float64, so measure a copy: "
            "copy.deepcopy(model).float(), and inputs of the same dtype."
        )
    for name, p in named.items():
        if not bool(torch.isfinite(p.detach()).all()):
            raise NotFiniteError(
                f"{name} of the model holds NaN or infinite numbers, so the loss has no curvature and no gradient "
                "there; measure finite weights, such as those before training diverged."
            )
    return first.device, first.dtype
