"""The running mean of squared gradients that the Stable rule needs: one number per tensor.

The sum over a tensor of Adam's second moment obeys the recursion of the moment itself, so it can be kept
without the moment::

    v_i <- beta2 * v_i + (1 - beta2) * ||g_i||^2          each tensor with its own beta2 and its own steps
    mean = sum_i v_i / (1 - beta2^steps_i) / sum_i size_i          over the tensors with a gradient
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.by_parameter import ByParameter
from halflife.optim.known import family_of
from halflife.optim.norms import accumulator, as_real, local, on_device, settle_gradients, squared_norms, totals
from halflife.rules.stable import Stable

__all__ = ["SecondMoment", "measures_gradients"]


def measures_gradients(rule: Stable, optimizer: Optimizer) -> bool:
    """Tell whether the rule needs the second moment on an optimizer: on SGD its formula has the momentum instead."""
    return rule.beta2 is not None or not family_of(type(optimizer)).momentum


@dataclass
class _Present:
    """Which parameters have a gradient.

    Args:
        mask: One flag per parameter.
        everywhere: Whether all have.
        shares: The share of each in the number of elements that have; 0 where there is none.
        size: The number of elements that have.
    """

    mask: Tensor
    everywhere: bool
    shares: Tensor
    size: float


@dataclass
class _Vectors:
    """What is known of the parameters of an optimizer: one element for each of them, in order.

    Args:
        ids: The parameters, by identity.
        positions: Their places; one that is gone is not there.
        alive: The number of places when all were there.
        sums: ``v_i``.
        steps: Steps taken with a gradient.
        sizes: Numbers of elements.
        betas: Their ``beta2``, as `key` has it.
        gains: ``1 - beta2``.
        key: The ``beta2`` of each group, and how many parameters have it.
        present: Which have a gradient, as `flags` has it.
        flags: The same as plain values.
    """

    ids: list[int]
    positions: ByParameter[int]
    alive: int
    sums: Tensor
    steps: Tensor
    sizes: Tensor
    betas: Tensor
    gains: Tensor
    key: list[tuple[float, int]] = field(default_factory=list)
    present: _Present | None = None
    flags: tuple[bool, ...] = ()


class SecondMoment:
    """Adam's second moment, as one sum per parameter of an optimizer.

    Args:
        optimizer: The optimizer.
        beta2: The decay of the mean for all groups; None reads each group's ``betas[1]``.

    Attributes:
        reads_optimizer: Whether it can start from the second moment that the optimizer has.
    """

    def __init__(self, optimizer: Optimizer, beta2: float | None) -> None:
        self._optimizer = optimizer
        self._beta2 = beta2
        self.reads_optimizer = beta2 is None
        self._saved: dict[Tensor, tuple[float, float]] = {}  # of a checkpoint, until the next step
        self._vectors: _Vectors | None = None
        self._coming: tuple[_Vectors, Tensor, Tensor] | None = None  # sums and steps, once the step is made

    @torch.no_grad()
    def update(self, total_norm: Tensor | float | None) -> float | Tensor:
        """Return the mean over all elements with this step's gradients in it; `commit` keeps them.

        A step that is refused, or that fails, is hence as if it had not been: the next call starts from what was
        committed last.

        Args:
            total_norm: The norm of all gradients together where it is known already; None measures it.
                It is split over the tensors by their size, which does not matter as long as all have the
                same beta2 and the same number of steps.

        Returns:
            The mean, a float for parameters on the CPU and a 0-dim tensor elsewhere. Infinity, at which the
            rule removes nothing, if there is no gradient or GradScaler has the step skipped: perhaps no
            gradient has been seen at all by then. NaN, of which nothing is kept, if a gradient is infinite or NaN.

        Raises:
            UserError: If a gradient is sparse.
        """
        self._coming = None
        parameters = self._parameters()
        known = self._prepare(parameters)
        settle_gradients(parameters)
        gradients = [parameter.grad for parameter in parameters]
        present = _presence(known, parameters, gradients)
        if present is None:
            return math.inf
        found_inf: Tensor | None = getattr(self._optimizer, "found_inf", None)
        if total_norm is not None:
            squares = present.shares * _as_scalar(total_norm, known.sums).square()
        else:
            squares = squared_norms([gradient for gradient in gradients if gradient is not None])
            if not present.everywhere:
                squares = torch.zeros_like(known.sums).masked_scatter_(present.mask, squares)
            scale: Tensor | None = getattr(self._optimizer, "grad_scale", None)
            if scale is not None:  # GradScaler leaves it to a fused optimizer to divide
                squares = squares / scale.to(squares.device, squares.dtype, non_blocking=True).square()
        sums, steps = torch.addcmul(known.betas * known.sums, known.gains, squares), known.steps + 1.0
        moved = present.mask
        if found_inf is not None:  # this step will be skipped; where, because 0 * inf would stay for ever
            moved = moved & (found_inf.to(moved.device, non_blocking=True) == 0)
        if found_inf is not None or not present.everywhere:
            sums, steps = torch.where(moved, sums, known.sums), torch.where(moved, steps, known.steps)
        corrected = sums / (1.0 - known.betas**steps)
        if not present.everywhere:
            corrected = torch.where(present.mask, corrected, 0.0)
        mean = corrected.sum() / present.size
        finite = mean.isfinite()
        mean = mean.masked_fill(~finite, math.nan)
        sums, steps = torch.where(finite, sums, known.sums), torch.where(finite, steps, known.steps)
        self._coming = known, sums, steps
        if found_inf is not None:
            mean = mean.masked_fill(~moved.any(), math.inf)
        return float(mean) if mean.device.type == "cpu" else mean

    def commit(self) -> None:
        """Keep what the last `update` took in: the step was made. Calling it again does nothing."""
        if self._coming is not None:
            known, sums, steps = self._coming
            known.sums, known.steps = sums, steps
            self._vectors, self._coming = known, None

    def save(self, parameters: Sequence[Tensor]) -> tuple[float, ...]:
        """Return what a checkpoint has to keep for some parameters: the sums, then the steps."""
        known = self._prepare(self._parameters())
        indices = [known.positions[parameter] for parameter in parameters]
        sums, steps = known.sums.tolist(), known.steps.tolist()
        return (*(sums[i] for i in indices), *(steps[i] for i in indices))

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Start again from what checkpoints kept; parameters without it start from the optimizer's own moment.

        Args:
            saved: Parameters of a group and the answer of `save`, for each group; None where there is none.
        """
        self._vectors, self._coming, self._saved = None, None, {}
        size = sum(_size(parameter) for parameters, _ in saved for parameter in parameters)
        for parameters, values in saved:
            count = len(parameters)
            if values is None or len(values) not in {2 * count, 2 * count + 3}:
                continue
            # Older checkpoints may end with three numbers, for steps whose gradients came as one norm for all tensors
            kept, added, more = values[2 * count :] or (1.0, 0.0, 0.0)
            for parameter, total, steps in zip(parameters, values[:count], values[count : 2 * count], strict=True):
                self._saved[parameter] = (kept * total + added * _size(parameter) / size, steps + more)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _prepare(self, parameters: list[Tensor]) -> _Vectors:
        """Return what is known of these parameters, with the settings that their groups have now."""
        groups = self._optimizer.param_groups
        known = self._vectors
        if known is None or len(known.positions) != known.alive or list(map(id, parameters)) != known.ids:
            known = self._vectors = self._adopt(parameters, known)
        key = [(self._beta_of(group), len(group["params"])) for group in groups]
        if key != known.key:
            known.key = key
            betas = [beta for beta, count in key for _ in range(count)]
            known.betas = torch.tensor(betas, dtype=known.sums.dtype, device=known.sums.device)
            known.gains = 1.0 - known.betas
        return known

    def _beta_of(self, group: Mapping[str, Any]) -> float:
        return float(group["betas"][1]) if self._beta2 is None else self._beta2

    def _adopt(self, parameters: list[Tensor], before: _Vectors | None) -> _Vectors:
        """Make room for these parameters: what is known of them, or a checkpoint says, or the optimizer has."""
        start = self._from_optimizer(parameters) if before is None else {}
        if before is not None:
            values = list(zip(before.sums.tolist(), before.steps.tolist(), strict=True))
            start = {p: values[before.positions[p]] for p in parameters if p in before.positions}
        start |= self._saved
        self._saved = {}
        device = local(parameters[0]).device if parameters else torch.device("cpu")
        dtype = accumulator(device)
        sums, steps = ([start.get(parameter, (0.0, 0.0))[part] for parameter in parameters] for part in (0, 1))
        sizes = [_size(parameter) for parameter in parameters]
        vectors = (torch.tensor(values, dtype=dtype, device=device) for values in (sums, steps, sizes))
        none = torch.zeros((), dtype=dtype)
        positions: ByParameter[int] = ByParameter()
        for position, parameter in enumerate(parameters):
            positions[parameter] = position
        return _Vectors(
            list(map(id, parameters)),
            positions,
            len(positions),
            next(vectors),
            next(vectors),
            next(vectors),
            none,
            none,
        )

    def _from_optimizer(self, parameters: list[Tensor]) -> dict[Tensor, tuple[float, float]]:
        """Start from the second moment that the optimizer has already, when attached in the middle of a run."""
        state = self._optimizer.state
        started = [p for p in parameters if p in state and {"exp_avg_sq", "step"} <= state[p].keys()]
        if not started or not self.reads_optimizer:
            return {}
        sums = totals([as_real(state[parameter]["exp_avg_sq"]) for parameter in started]).tolist()
        return {p: (total, float(state[p]["step"])) for p, total in zip(started, sums, strict=True)}


def _size(parameter: Tensor) -> int:
    """Return the number of elements; a complex number is two."""
    return parameter.numel() * (1 + parameter.is_complex())


def _presence(known: _Vectors, parameters: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> _Present | None:
    """Return which parameters have a gradient, made anew only when that changes; None if none has.

    Raises:
        UserError: If a gradient is sparse.
    """
    flags = tuple([gradient is not None for gradient in gradients])
    if known.present is not None and flags == known.flags:
        return known.present
    if not any(flags):
        return None
    if any(gradient is not None and gradient.is_sparse for gradient in gradients):
        raise UserError(
            "Stable cannot follow sparse gradients, whose second moment decays only where they touch; use"
            " Decoupled, or build the embedding with sparse=False"
        )
    mask = on_device(flags, known.sums.device)
    sizes = known.sizes * mask
    size = float(sum(map(_size, itertools.compress(parameters, flags))))
    known.flags, known.present = flags, _Present(mask, all(flags), sizes / size, size)
    return known.present


def _as_scalar(norm: Tensor | float, like: Tensor) -> Tensor:
    """Return a norm as a 0-dim tensor; under FSDP2, torch's clip_grad_norm_ answers with a DTensor."""
    if not isinstance(norm, Tensor):
        return torch.full((), float(norm), dtype=like.dtype, device=like.device)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole.detach().to(like.device, like.dtype, non_blocking=True)
