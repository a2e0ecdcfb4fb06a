"""What cannot be probed, each with a sentence that says what to change: models, losses, data and whole numbers.

Mistakes that torch sees by itself are left to torch; its message is given with the batch that it is about and an advice.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from halflife.errors import RunFailedError, UserError
from halflife.probes.scope import batch_norms, out_of_memory

__all__ = [
    "NotFiniteError",
    "check_batch_norm",
    "check_data",
    "check_loss",
    "check_model",
    "check_parameters",
    "check_whole",
]

# So many examples show whether the model is random, and whether the loss is a mean.
NUM_COMPARED = 8
# Of an error's first line, so much is quoted.
MAX_QUOTED = 300
# The start of torch's warning that a loss broadcasts outputs against targets, so that it is a mean over all pairs.
BROADCAST = "Using a target size"


class NotFiniteError(UserError, RunFailedError):
    """The weights, or the loss at them, are NaN or infinite.

    For a model that a user hands in it is a mistake; in a training run that takes probes it is this run that has failed,
    and others go on.
    """


def check_whole(name: str, value: Any, least: int | None = None, otherwise: str = "") -> int:
    """Return a whole number of at least ``least`` (``None``: any); ``otherwise`` names what else is allowed."""
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or (least is not None and whole < least):
        bound = "" if least is None else f" of at least {least}"
        raise UserError(f"{name} is {value!r}; expected a whole number{bound}{otherwise}.")
    return whole


def _kind(value: object) -> str:
    """The name of a function or a class, the class of anything else."""
    return str(getattr(value, "__name__", type(value).__name__))


def check_model(model: object) -> None:
    """Refuse something that is not a module, and a module without values (lazy layers, the meta device)."""
    if not isinstance(model, nn.Module):
        raise UserError(
            f"The model is {_kind(model)}; expected a torch.nn.Module that takes a batch x_B... and gives outputs "
            "h_BK: wrap a function in one, and call a class to make one."
        )
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(value) or value.is_meta:
            raise UserError(
                f"{name} of the model has no numbers yet (a lazy layer, or the meta device); call the model once on a "
                "batch, or use model.to_empty(device=...) and load its weights, before making the problem."
            )


def check_batch_norm(model: nn.Module, batch_norm: str | None) -> None:
    """Refuse BatchNorm without a choice of its statistics, and a choice that is unknown or impossible."""
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
    """Refuse a loss that is not a module of torch's form with ``reduction="mean"``, or that weights classes."""
    reduction = getattr(loss, "reduction", None)
    if not isinstance(loss, nn.Module) or reduction != "mean":
        stated = "" if reduction is None else f" with reduction={reduction!r}"
        raise UserError(
            f"The loss is {_kind(loss)}{stated}; expected a loss of torch.nn with reduction='mean', such as "
            "torch.nn.CrossEntropyLoss() or torch.nn.MSELoss()."
        )
    if getattr(loss, "weight", None) is not None:
        raise UserError("The loss has weight=, so examples count unequally in its mean; leave weight= away.")


def check_parameters(named: Mapping[str, nn.Parameter]) -> tuple[torch.device, torch.dtype]:
    """The one device and dtype of parameters that can be differentiated by; anything else is refused."""
    if not named:
        raise UserError(
            "No parameter of the model requires a gradient, so there is nothing to differentiate by; "
            "call model.requires_grad_(True)."
        )
    kinds = {(p.device, p.dtype) for p in named.values()}
    if len(kinds) > 1:
        raise UserError(
            f"The parameters have more than one device or dtype ({', '.join(sorted(f'{t} on {d}' for d, t in kinds))}); "
            "move the model to one of each first."
        )
    device, dtype = kinds.pop()
    if dtype not in {torch.float32, torch.float64}:
        raise UserError(
            f"The parameters are {dtype}; probes need torch.float32 or torch.float64, so measure a copy: "
            "copy.deepcopy(model).float(), and inputs of the same dtype."
        )
    for name, p in named.items():
        if not bool(torch.isfinite(p.detach()).all()):
            raise NotFiniteError(
                f"{name} of the model holds NaN or infinite numbers, so the loss has no curvature and no gradient "
                "there; measure finite weights, such as those before training diverged."
            )
    return device, dtype


def _pairs(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
        if not pair or batch[0].ndim == 0 or batch[1].ndim == 0 or len(batch[0]) != len(batch[1]):
            raise UserError(
                "A batch of the data is not a pair of tensors of equally many examples (x_B..., y_B...); "
                "give a list of such pairs or a loader of them."
            )
        yield batch[0], batch[1]


def _advice(where: str, message: str, loss: nn.Module, dtype: torch.dtype) -> str:
    if "more than 1 value per channel" in message:
        return "give batches of more than one example, or use batch_norm='eval'"
    if where == "the model":
        return (
            f"check that x has the sizes that the model takes, and the dtype of its weights, {dtype}, or is of indices"
        )
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return "check y: class labels are torch.int64 of shape (B,), from 0 to the number of outputs - 1"
    return "check that y has the shape and the dtype of the model's outputs"


@dataclass(frozen=True)
class _Batch:
    """One batch on its way through model and loss."""

    number: int
    x: Tensor
    y: Tensor
    loss: nn.Module
    dtype: torch.dtype

    def _call(self, where: str, function: Callable[..., Any], *inputs: Tensor) -> Any:
        """Call the model or the loss; an error of torch's is given with the batch and an advice."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=BROADCAST)
                return function(*inputs)
        except (RuntimeError, IndexError, ValueError, TypeError, UserWarning) as error:
            if out_of_memory(error) or (isinstance(error, UserWarning) and not str(error).startswith(BROADCAST)):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")[:MAX_QUOTED]
            x, y = (f"of shape {tuple(t.shape)} and dtype {t.dtype}" for t in (self.x, self.y))
            raise UserError(
                f"Batch {self.number} of the data (x {x}, y {y}) does not go through {where}, with "
                f"{type(self.loss).__name__} as the loss: {first}; {_advice(where, first, self.loss, self.dtype)}."
            ) from error

    def outputs(self, model: nn.Module) -> Tensor:
        h = self._call("the model", model, self.x)
        if not isinstance(h, Tensor) or h.ndim == 0 or len(h) != len(self.x):
            raise UserError(
                "The model does not give one tensor with a row per example; wrap it in a module that returns the "
                "outputs that the loss takes."
            )
        return h

    def mean_loss(self, h: Tensor, y: Tensor) -> Tensor:
        value = self._call("the loss", self.loss, h, y)
        if not isinstance(value, Tensor) or value.ndim:
            raise UserError("The loss gives more than one number; probes are about the mean over examples.")
        if not bool(torch.isfinite(value)):
            raise NotFiniteError(
                f"The loss of batch {self.number} of the data is {float(value)}, so it has no curvature and no "
                "gradient; the data and the weights are finite, so check the sizes of inputs, targets and weights."
            )
        return value

    def check_mean(self, h: Tensor) -> None:
        whole = self.mean_loss(h, self.y[: len(h)])
        parts = [self.mean_loss(h[i : i + 1], self.y[i : i + 1]) for i in range(len(h))]
        mean = torch.stack(parts).mean()
        if not torch.allclose(whole, mean, rtol=1e-3, atol=1e-6):
            raise UserError(
                f"The loss of {len(h)} examples is {float(whole):.6g} and the mean of their losses is {float(mean):.6g}; "
                "probes need a loss that is a mean in which every example counts the same."
            )


def check_data(
    model: nn.Module, loss: nn.Module, batches: Iterable[Any], device: torch.device, dtype: torch.dtype
) -> tuple[int, Tensor]:
    """Read the data twice, and pass them through model and loss once.

    Args:
        model: In the mode in which it will be measured.
        loss: A mean.
        batches: The data.
        device: Of the weights.
        dtype: Of the weights.

    Returns:
        The number of examples, and the inputs x of a few.

    Raises:
        UserError: If the data can be read only once, differ at the second reading, are empty, not pairs or not finite,
            do not go through the model and the loss, or the loss is not finite or not a mean over examples.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise UserError(
            f"The data are {type(batches).__name__}, which can be passed over at most once; give a list of batches, "
            "such as list(batches), or a loader."
        )
    count, compared, sample = 0, False, None
    for number, (pair, again) in enumerate(itertools.zip_longest(_pairs(batches), _pairs(batches)), 1):
        # First: NaN is not equal to itself at the second reading.
        for name, t in zip("xy", pair or (), strict=False):
            if not bool(torch.isfinite(t).all()):
                raise UserError(
                    f"{name} of batch {number} of the data is not finite: it holds NaN or infinite numbers; "
                    "repair or leave out those examples."
                )
        if pair is None or again is None or not all(map(torch.equal, pair, again)):
            raise UserError(
                "The data are not the same at the second pass; use a loader without shuffling and random augmentation, "
                "or a list of batches."
            )
        x, y = (t.to(device) for t in pair)
        if not len(x):
            continue
        ignored = getattr(loss, "ignore_index", None)
        if ignored is not None and not y.is_floating_point() and bool((y == ignored).any()):
            raise UserError(
                f"Targets of {ignored} are left out of the loss, so examples count unequally in its mean; leave those "
                "examples out of the data."
            )
        batch = _Batch(number, x, y, loss, dtype)
        with torch.no_grad():
            h = batch.outputs(model)
            batch.mean_loss(h, y)
            if len(x) > 1 and not compared:  # one example is the mean of itself
                batch.check_mean(h[:NUM_COMPARED])
                compared = True
        sample = x[:NUM_COMPARED].clone() if sample is None else sample
        count += len(x)
    if sample is None:
        raise UserError("The data hold no example; give at least one batch.")
    return count, sample
