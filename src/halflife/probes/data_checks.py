"""What data a probe cannot be run on: they are passed over twice, through model and loss, when a problem is made."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from halflife.errors import UserError
from halflife.probes.refusals import NotFiniteError
from halflife.probes.scope import out_of_memory

__all__ = ["check_data"]

# A probe's outputs may differ by rounding from one pass to the next where kernels add in any order, as on GPUs.
SAME = 1e-4
# Examples of the first batch whose losses are compared with their mean.
NUM_COMPARED = 8
# Of an error's first line, so much is quoted.
MAX_QUOTED = 300
# A loss that broadcasts outputs against targets warns and goes on: it is the mean over pairs that nobody meant.
BROADCAST = "Using a target size"


def _batches(batches: Iterable[Any]) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in batches:
        pair = isinstance(batch, tuple | list) and len(batch) == 2 and all(isinstance(t, Tensor) for t in batch)
        if not pair or batch[0].ndim == 0 or batch[1].ndim == 0 or len(batch[0]) != len(batch[1]):
            raise UserError(
                "A batch of the data is not a pair of tensors of equally many examples (x_B..., y_B...); "
                "give a list of such pairs or a loader of them."
            )
        yield batch[0], batch[1]


def _advice(failed: str, message: str, loss: nn.Module, dtype: torch.dtype) -> str:
    if "more than 1 value per channel" in message:
        return "give batches of more than one example, or use batch_norm='eval'"
    if failed == "the model":
        return (
            f"check that x has the sizes that the model takes, and the dtype of its weights, {dtype}, or is of indices"
        )
    if isinstance(loss, nn.CrossEntropyLoss | nn.NLLLoss):
        return "check y: class labels are torch.int64 of shape (B,), from 0 to the number of outputs - 1"
    return "check that y has the shape and the dtype of the model's outputs"


class _Batch:
    """A batch on its way through model and loss, and the words for what goes wrong there."""

    def __init__(self, number: int, x: Tensor, y: Tensor, loss: nn.Module, dtype: torch.dtype) -> None:
        self.number, self.x, self.y, self.loss, self.dtype = number, x, y, loss, dtype

    @contextlib.contextmanager
    def passing(self, where: str) -> Iterator[None]:
        """Turn what torch says about this batch into a sentence."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("error", message=BROADCAST)
                yield
        except (RuntimeError, IndexError, ValueError, TypeError, UserWarning) as error:
            other = isinstance(error, UserWarning) and not str(error).startswith(BROADCAST)
            if other or isinstance(error, UserError) or out_of_memory(error):
                raise
            first = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .")[:MAX_QUOTED]
            shapes = ", ".join(
                f"{name} of shape {tuple(t.shape)} and dtype {t.dtype}" for name, t in (("x", self.x), ("y", self.y))
            )
            raise UserError(
                f"Batch {self.number} of the data ({shapes}) does not go through {where}, with "
                f"{type(self.loss).__name__} as the loss: {first}; "
                f"{_advice(where, first, self.loss, self.dtype)}."
            ) from error

    def refuse_not_finite(self) -> None:
        """Refuse NaN, which is not even equal to itself at the second pass, and infinity."""
        for name, t in (("x", self.x), ("y", self.y)):
            if not bool(torch.isfinite(t).all()):
                raise UserError(
                    f"{name} of batch {self.number} of the data is not finite: it holds NaN or infinite numbers; "
                    "repair or leave out those examples."
                )

    def outputs(self, model: nn.Module) -> Tensor:
        """The model's outputs, if they are such."""
        with self.passing("the model"):
            h: Any = model(self.x)
        if not isinstance(h, Tensor) or h.ndim == 0 or len(h) != len(self.x):
            raise UserError(
                "The model does not give one tensor with a row per example; wrap it in a module that returns the "
                "outputs that the loss takes."
            )
        return h

    def loss_of(self, h: Tensor, y: Tensor) -> Tensor:
        """The loss of outputs, if it is a number."""
        with self.passing("the loss"):
            value: Any = self.loss(h, y)
            if not isinstance(value, Tensor) or value.ndim:
                raise UserError("The loss gives more than one number; probes are about the mean over examples.")
            if not bool(torch.isfinite(value)):
                raise NotFiniteError(
                    f"The loss of batch {self.number} of the data is {float(value)}, so it has no curvature and no "
                    "gradient; the data and the weights are finite, so check the sizes of inputs, targets and weights."
                )
        return value

    def check(self, model: nn.Module, compare: bool) -> None:
        """Pass through the model twice and the loss once; compare the loss with its parts."""
        first = self.outputs(model)
        self.loss_of(first, self.y)
        # Outputs may be infinite where the loss is not, as of classes that a model rules out.
        size = float(first.abs().nan_to_num(0.0, posinf=0.0).max()) if first.numel() else 0.0
        if not torch.allclose(first, self.outputs(model), rtol=SAME, atol=SAME * size, equal_nan=True):
            raise UserError(
                "The model gave different outputs for the same batch, even in evaluation mode, so it is random or "
                "keeps state; probes need a deterministic model."
            )
        if compare:
            self._check_mean(first[:NUM_COMPARED], self.y[:NUM_COMPARED])

    def _check_mean(self, h: Tensor, y: Tensor) -> None:
        whole = self.loss_of(h, y)
        parts = torch.stack([self.loss_of(h[i : i + 1], y[i : i + 1]) for i in range(len(h))]).mean()
        if not torch.allclose(whole, parts, rtol=1e-3, atol=1e-6):
            raise UserError(
                f"The loss of {len(h)} examples is {float(whole):.6g} and the mean of their losses is "
                f"{float(parts):.6g}; probes need a loss that is a mean in which every example counts the same."
            )


def check_data(
    model: nn.Module, loss: nn.Module, batches: Iterable[Any], device: torch.device, dtype: torch.dtype
) -> int:
    """Pass over the data twice and refuse whatever is not the same, or is no data for this model and loss.

    Args:
        model: In the mode in which it will be measured.
        loss: A mean.
        batches: The data.
        device: Of the weights.
        dtype: Of the weights.

    Returns:
        The number of examples.

    Raises:
        UserError: If the data can be passed over only once, differ at the second pass, are empty, no pairs or not
            finite, do not go through the model and the loss, if the model is random, or the loss is not finite or no
            mean over examples.
    """
    if not isinstance(batches, Iterable) or isinstance(batches, Iterator):
        raise UserError(
            f"The data are {type(batches).__name__}, which can be passed over at most once; give a list of batches, "
            "such as list(batches), or a loader."
        )
    count = 0
    for number, (one, two) in enumerate(itertools.zip_longest(_batches(batches), _batches(batches)), 1):
        for again in (one, two):
            if again is not None:
                _Batch(number, again[0], again[1], loss, dtype).refuse_not_finite()
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
            _Batch(number, x, y, loss, dtype).check(model, compare=not count)
        count += len(x)
    if not count:
        raise UserError("The data hold no example; give at least one batch.")
    return count
