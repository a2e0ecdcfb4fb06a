"""What a probe cannot be run on, each with the sentence that says what to change."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from halflife.errors import UserError
from halflife.probes.scope import batch_norms

__all__ = ["check_batch_norm", "check_data", "check_dropout", "check_loss", "check_parameters"]

# A probe's outputs may differ by rounding from one pass to the next where kernels add in any order, as on GPUs.
SAME = 1e-4
# Examples of the first batch whose losses are compared with their mean.
NUM_COMPARED = 8


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
        kind = (
            type(loss).__name__
            if isinstance(loss, nn.Module) or not callable(loss)
            else getattr(loss, "__name__", loss)
        )
        raise UserError(
            f"The loss is {kind}; expected a loss of torch.nn that is a mean over examples, such as "
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
        UserError: If there are none, or they differ in device or dtype.
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
    if not first.is_floating_point():
        raise UserError(f"The parameters are {first.dtype}; probes are about real weights, such as torch.float32.")
    return first.device, first.dtype


def _batches(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
        if not pair or batch[0].ndim == 0 or batch[1].ndim == 0 or len(batch[0]) != len(batch[1]):
            raise UserError(
                "A batch of the data is not a pair of tensors of equally many examples (x_B..., y_B...); "
                "give a list of such pairs or a loader of them."
            )
        yield batch[0], batch[1]


def _check_outputs(model: nn.Module, x: Tensor) -> Tensor:
    first, second = model(x), model(x)
    if not isinstance(first, Tensor) or first.ndim == 0 or len(first) != len(x):
        raise UserError(
            "The model does not give one tensor with a row per example; wrap it in a module that returns the outputs "
            "that the loss takes."
        )
    if not torch.allclose(first, second, rtol=SAME, atol=SAME * float(first.abs().max()), equal_nan=True):
        raise UserError(
            "The model gave different outputs for the same batch, even in evaluation mode, so it is random or keeps "
            "state; probes need a deterministic model."
        )
    return first


def _check_mean(loss: nn.Module, h: Tensor, y: Tensor) -> None:
    h, y = h[:NUM_COMPARED], y[:NUM_COMPARED]
    whole = loss(h, y)
    if whole.ndim:
        raise UserError("The loss gives more than one number; probes are about the mean over examples.")
    parts = torch.stack([loss(h[i : i + 1], y[i : i + 1]) for i in range(len(h))]).mean()
    if bool(torch.isfinite(whole)) and not torch.allclose(whole, parts, rtol=1e-3, atol=1e-6):
        raise UserError(
            f"The loss of {len(h)} examples is {float(whole):.6g} and the mean of their losses is {float(parts):.6g}; "
            "probes need a loss that is a mean in which every example counts the same."
        )


def check_data(model: nn.Module, loss: nn.Module, batches: Iterable[Any], device: torch.device) -> int:
    """Pass over the data twice and refuse whatever is not the same, or is no data for this model and loss.

    Args:
        model: In the mode in which it will be measured.
        loss: A mean.
        batches: The data.
        device: Of the weights.

    Returns:
        The number of examples.

    Raises:
        UserError: If the data can be passed over only once, differ at the second pass, are empty or no pairs, if the
            model is random, or the loss is no mean over examples.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise UserError(
            f"The data are {type(batches).__name__}, which can be passed over at most once; give a list of batches, "
            "such as list(batches), or a loader."
        )
    count = 0
    for one, two in itertools.zip_longest(_batches(batches), _batches(batches)):
        if one is None or two is None or not all(map(torch.equal, one, two)):
            raise UserError(
                "The data are not the same at the second pass; use a loader without shuffling and random augmentation, "
                "or a list of batches."
            )
        x, y = (t.to(device) for t in one)
        if not len(x):
            continue
        ignored = getattr(loss, "ignore_index", None)
        if ignored is not None and not y.is_floating_point() and bool((y == ignored).any()):
            raise UserError(
                f"Targets of {ignored} are left out of the loss, so it is no mean in which every example counts the "
                "same; leave those examples out of the data."
            )
        with torch.no_grad():
            h = _check_outputs(model, x)
            if not count:
                _check_mean(loss, h, y)
        count += len(x)
    if not count:
        raise UserError("The data hold no example; give at least one batch.")
    return count
