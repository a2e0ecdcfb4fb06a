"""Rules that set norms: measured after the update, one norm pass and one multiplication."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.optim.actions.base import Action, Work, precision_of, unless_skipped
from halflife.optim.actions.shrink import scale
from halflife.optim.by_parameter import ByParameter
from halflife.optim.norms import local, squared_norms
from halflife.rules.base import Rule

__all__ = ["Rescale"]


class Rescale(Action):
    """Multiply each tensor, or the whole net, by ``1 - r`` with the ``r`` that the norm after the update asks for.

    Args:
        rule: `NormTarget` or `Sphere`.
    """

    acts_at_zero = True

    def __init__(self, rule: Rule) -> None:
        self._rule = rule
        self._whole = "net_norm" in rule.needs
        self._first: ByParameter[Tensor] = ByParameter()  # squared norms before the first step
        self._saved: ByParameter[float] = ByParameter()  # the same, of a checkpoint
        self._applied: dict[int, float | Tensor] = {}
        self._new: list[weakref.ref[Tensor]] = []  # whose norms the last step has recorded

    def before(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Record the norms of parameters that are met for the first time."""
        if "initial_norm" not in self._rule.needs:
            return
        new = [parameter for each in work for parameter in each.parameters if parameter not in self._first]
        self._new = [weakref.ref(parameter) for parameter in new]
        if not new:
            return
        for parameter, square in zip(new, squared_norms(new), strict=True):
            self._first[parameter] = (
                torch.full_like(square, self._saved[parameter]) if parameter in self._saved else square
            )

    def undo(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Forget the norms that this step recorded."""
        for reference in self._new:
            parameter = reference()
            if parameter is not None:
                self._first.pop(parameter)

    def after(self, optimizer: Optimizer, work: Sequence[Work]) -> None:
        """Measure, and scale back."""
        found_inf = getattr(optimizer, "found_inf", None)
        parameters = [parameter for each in work for parameter in each.parameters]
        if not parameters:
            return
        squares = squared_norms(parameters)
        if self._whole:
            first = torch.stack([self._first[p] for p in parameters]).sum() if self._first else squares[0]
            r = self._fraction(work[0], squares.sum().sqrt(), first)
            scale(parameters, 1.0 - r, found_inf)
            self._applied = {each.info.group: r for each in work}
            return
        start = 0
        norms = squares.sqrt()
        for each in work:
            count = len(each.parameters)
            mine = norms[start : start + count]
            start += count
            first = torch.stack([self._first[p] for p in each.parameters]) if self._first else mine
            r = self._fraction(each, mine, first)
            for parameter, factor in zip(each.parameters, 1.0 - r, strict=True):
                shard = local(parameter)
                shard.mul_(unless_skipped(factor, 1.0, found_inf, shard.device, precision_of(shard)))
            self._applied[each.info.group] = r.mean()

    def _fraction(self, work: Work, norm: Tensor, first: Tensor | float) -> Tensor:
        """Return the rule's answer; 0 for weights of 0, which have no direction, and for a norm that overflows."""
        initial = first.sqrt() if isinstance(first, Tensor) else first
        r = self._rule.fraction(dataclasses.replace(work.info, weight_norm=norm, initial_norm=initial))
        return torch.where((norm > 0) & norm.isfinite(), torch.as_tensor(r, device=norm.device), torch.zeros_like(norm))

    def applied(self) -> dict[int, float | Tensor] | None:
        """Return what this step removed: with one value per tensor, their mean. Asking again finds nothing."""
        applied, self._applied = self._applied, {}  # the next step may leave a group alone
        return applied

    def save(self, parameters: Sequence[Tensor]) -> tuple[float, ...] | None:
        """Return the squared norms before the first step; -1 where it was not taken."""
        if "initial_norm" not in self._rule.needs:
            return None
        found = (self._saved.get(p) if p not in self._first else float(self._first[p]) for p in parameters)
        return tuple(-1.0 if value is None else value for value in found)

    def load(self, saved: Sequence[tuple[Sequence[Tensor], tuple[float, ...] | None]]) -> None:
        """Take the first norms from a checkpoint."""
        self._first, self._saved, self._applied = ByParameter(), ByParameter(), {}
        for parameters, values in saved:
            if values is not None and len(values) == len(parameters):
                for parameter, value in zip(parameters, values, strict=True):
                    if value >= 0.0:
                        self._saved[parameter] = value
