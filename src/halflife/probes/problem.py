"""What is probed: the mean loss of a model on data."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from torch import Tensor, nn
from torch.func import functional_call

from halflife.errors import UserError
from halflife.probes.checks import (
    check_batch_norm,
    check_data,
    check_loss,
    check_model,
    check_parameters,
)
from halflife.probes.scope import check_mode, evaluating, surroundings

__all__ = ["Problem", "check_problem"]


def _trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


class Problem:
    """The mean loss L(w) = mean_i loss(h(x_i; w), y_i) of a model on given data, as a function of its weights.

    The weights are all parameters that require a gradient, in the order of ``model.parameters()``. Every probe measures
    at the weights that the model has when the probe is called. Modules are in evaluation mode while a probe runs, and
    BatchNorm is as ``batch_norm`` says; afterwards modes, buffers, gradients and random states are as they were.

    Args:
        model: Takes a batch x_B... and gives outputs h_BK (or h_BK...; the first dimension counts examples).
        loss: A mean over examples, such as ``torch.nn.CrossEntropyLoss()`` or ``torch.nn.MSELoss()``.
        batches: The data: a list of pairs (x_B..., y_B...) or a loader that gives the same pairs at each pass. Sizes
            may differ: every example counts the same.
        batch_norm: ``"eval"`` (running statistics) or ``"batch"`` (the statistics of each batch, so that the batches
            are part of what is measured). Has to be said if the model has BatchNorm.

    Raises:
        UserError: If ``batch_norm`` is missing or does not fit, no parameter requires a gradient, parameters differ in
            device or dtype, are not float32 or float64, or not finite, the loss is not a mean over examples, the data
            do not go through the model and the loss, or the data are not the same at the second reading. At this and
            at every probe: if the model is random, is in training mode and gives other outputs there than in
            evaluation mode (dropout), or has other parameters than when the problem was made.

    Examples:
        >>> import torch
        >>> model = nn.Linear(3, 2)
        >>> batches = [(torch.randn(5, 3), torch.randint(2, (5,))), (torch.randn(2, 3), torch.randint(2, (2,)))]
        >>> problem = Problem(model, nn.CrossEntropyLoss(), batches)
        >>> problem
        Problem(num_examples=7, num_parameters=8, loss=CrossEntropyLoss(), batch_norm=None)
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module,
        batches: Iterable[tuple[Tensor, Tensor]],
        *,
        batch_norm: Literal["eval", "batch"] | None = None,
    ) -> None:
        # What torch.compile wraps; transforms of torch.func do not go through compiled code.
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self.loss, self.batches, self.batch_norm = loss, batches, batch_norm
        check_model(self.model)
        check_batch_norm(self.model, batch_norm)
        check_loss(loss)
        named = _trained(self.model)
        self.device, self.dtype = check_parameters(named)
        self.names, self.parameters = tuple(named), tuple(named.values())
        self.sizes = tuple(p.numel() for p in self.parameters)
        with self._surroundings(), self._evaluating():
            self.num_examples, self.some_x = check_data(self.model, loss, batches, self.device, self.dtype)
        with self.measuring():
            pass  # a model that this refuses is not to be a problem at all

    def __repr__(self) -> str:
        return (
            f"Problem(num_examples={self.num_examples}, num_parameters={self.num_parameters}, loss={self.loss!r}, "
            f"batch_norm={self.batch_norm!r})"
        )

    @property
    def num_parameters(self) -> int:
        """How many numbers the weights are."""
        return sum(self.sizes)

    def _surroundings(self) -> contextlib.AbstractContextManager[None]:
        generator: Any = getattr(self.batches, "generator", None)
        return surroundings(self.device, generator)

    def _evaluating(self) -> contextlib.AbstractContextManager[None]:
        return evaluating(self.model.modules(), self.batch_norm == "batch")

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Set what a measurement needs, and put everything back at the end.

        Yields:
            Nothing.

        Raises:
            UserError: If the model is not the one that the problem was made of, is random, or is in training mode and
                gives other outputs there than in evaluation mode; or if memory runs out.
        """
        check_batch_norm(self.model, self.batch_norm)
        self._check_parameters()
        with self._surroundings():
            check_mode(self.model, self.some_x, self.batch_norm == "batch", self.device)
            with self._evaluating():
                yield

    def _check_parameters(self) -> None:
        """Refuse parameters other than those of the start: `outputs` would take a new layer for a constant."""
        now, made = _trained(self.model), dict(zip(self.names, self.parameters, strict=True))
        changed = [name for name in now | made if now.get(name) is not made.get(name)]
        # Parameters stay the same objects when a model is moved or cast.
        changed += [name for name, p in made.items() if (p.device, p.dtype) != (self.device, self.dtype)]
        if changed:
            raise UserError(
                f"The model has other parameters than when the problem was made (another {changed[0]}, or one that was "
                "added, removed, frozen, moved or cast); make a new Problem of it."
            )

    def data(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches x_B..., y_B... that are not empty, on the device of the weights."""
        for x, y in self.batches:
            if len(x):
                # What inference mode made cannot take part in a gradient; a copy made outside of it can.
                yield tuple(t.to(self.device).clone() if t.is_inference() else t.to(self.device) for t in (x, y))  # type: ignore[misc]

    def outputs(self, parameters: tuple[Tensor, ...], x: Tensor) -> Tensor:
        """The model's outputs h_B... for a batch, at other weights, given in the order of `parameters`."""
        out: Tensor = functional_call(self.model, dict(zip(self.names, parameters, strict=True)), (x,))
        return out

    def detached(self) -> tuple[Tensor, ...]:
        """The weights, without their place in a graph."""
        return tuple(p.detach() for p in self.parameters)

    def refuse_batch_statistics(self, what: str) -> None:
        """Refuse a quantity (``what``) of single examples where an example's output depends on its whole batch."""
        if self.batch_norm == "batch":
            raise UserError(
                f"{what} is made of single examples, and under batch_norm='batch' an example's output depends on its "
                "whole batch; use batch_norm='eval'."
            )


def check_problem(problem: object) -> None:
    """Refuse anything but a `Problem`, such as the model itself."""
    if not isinstance(problem, Problem):
        raise UserError(
            f"problem is {type(problem).__name__}; expected a halflife.probes.Problem, made by "
            "Problem(model, loss, batches)."
        )
