"""A rule that is never called: the weights move, but not by a ``step`` that calls torch's hooks."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from halflife.optim.frames import level_of_the_user
from halflife.optim.norms import local

__all__ = ["Unheard"]

MOST = 4  # parameters that are compared
ELEMENTS = 16  # of each


class Unheard:
    """Warns once where weights moved since attach although no step called the rule.

    Weights alone prove nothing, because users load and average them. So the optimizer's state must have changed too, or
    the weights have gradients, or they moved between two looks.

    Args:
        optimizer: The optimizer; it is not held.
        law: The rule, as text.
    """

    def __init__(self, optimizer: Optimizer, law: str) -> None:
        self._law, self._name = law, type(optimizer).__name__
        self._over = self._moved_before = False
        self._sample: list[tuple[weakref.ref[Tensor], torch.dtype, Tensor]] = []
        self._state: list[Any] = []
        self.renew(optimizer)
        self._end = weakref.finalize(optimizer, self.look, None)

    def called(self) -> None:
        """A step has called the rule: all is well."""
        self._over = True
        self._sample, self._state = [], []
        self._end.detach()

    def renew(self, optimizer: Optimizer) -> None:
        """Remember the weights and the state as they are now."""
        if self._over:
            return
        found = [each for group in optimizer.param_groups for each in group["params"] if _is_readable(each)]
        self._sample = [
            (weakref.ref(each), each.dtype, _few(each)) for each in sorted(found, key=lambda p: p.numel())[-MOST:]
        ]
        self._state = self._state_of(optimizer)

    def look(self, optimizer: Optimizer | None) -> None:
        """Compare, and warn; reading weights on an accelerator waits for it.

        Args:
            optimizer: The optimizer; None if it is gone.
        """
        if self._over or not self._moved():
            return
        state = [] if optimizer is None else self._state_of(optimizer)
        alive = [found for reference, *_ in self._sample if (found := reference()) is not None]
        proven = self._moved_before or any(each.grad is not None for each in alive)
        proven = proven or (optimizer is not None and state != self._state)
        if optimizer is not None and not proven:
            self._moved_before = True
            self.renew(optimizer)
            return
        if proven:
            self.called()
            warnings.warn(
                f"the weights of {self._name} have moved since attach, but no step of it has called the rule, so that"
                f" {self._law} has removed nothing: they are moved by another method than step(), or step was replaced;"
                " attach to the optimizer whose step() is called, or call this one's",
                stacklevel=level_of_the_user(),
            )

    def _moved(self) -> bool:
        for reference, dtype, before in self._sample:
            parameter = reference()
            if parameter is None or parameter.dtype != dtype or not _is_readable(parameter):
                continue
            now = _few(parameter).to(before.device)
            if now.shape == before.shape and not torch.equal(now, before):
                return True
        return False

    def _state_of(self, optimizer: Optimizer) -> list[Any]:
        """Return what changes when the state of a sampled parameter does."""
        found: list[Any] = []
        for reference, *_ in self._sample:
            parameter = reference()
            state = {} if parameter is None else optimizer.state.get(parameter, {})
            for key, value in state.items() if isinstance(state, dict) else ():
                found.append((key, id(value), value._version if isinstance(value, Tensor) else None))
        return found


def _is_readable(parameter: Tensor) -> bool:
    if is_lazy(parameter):  # it has no shape until its module has seen a batch
        return False
    return parameter.device.type != "meta" and parameter.numel() > 0 and parameter.layout == torch.strided


@torch.no_grad()
def _few(parameter: Tensor) -> Tensor:
    """Return a copy of a few elements."""
    mine = local(parameter.detach())
    if mine.ndim == 0 or mine.numel() == 0:  # a shard may be empty
        return mine.clone()
    return mine[(0,) * (mine.ndim - 1)][:ELEMENTS].clone()
