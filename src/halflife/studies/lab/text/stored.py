"""Weights that are kept in few bits between steps, simulated in float32, and what of a step is lost by that.

With w the weights, r the fraction that the decay removes, u the update, and fl rounding to the bits that are kept:

    nearest, stochastic     w <- fl((1 - r) w - u)
    separate                w <- fl(fl((1 - r) w) - u)
    accumulated             w <- fl(w - u), and now and then what the decay of some steps leaves (`PendingDecay`)
    masters                 w <- (1 - r) w - u, and the forward pass sees fl(w)
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from halflife.precision.rounding import round_stochastically, round_to
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.text.optimizers import Training
from halflife.studies.lab.text.pending import PendingDecay
from halflife.studies.specs.precision import APART, is_plain_decay
from halflife.studies.specs.text import TextRun

__all__ = ["StoredWeights"]


class StoredWeights:
    """The weights of a run, as they are kept between its steps.

    Args:
        spec: The run.
        seed: Seeds stochastic rounding, together with the step.
        weights: The weights; they are rounded here and now.
        training: What steps them.
        decay: The rule in force, as text; that of a branch may be another than the spec's.

    Attributes:
        readings: Of the last step that was to be read.
    """

    def __init__(self, spec: TextRun, seed: int, weights: Sequence[Tensor], training: Training, decay: str) -> None:
        self.how, self.bits, self.seed = spec.stored, spec.stored_bits, seed
        self.weights, self.training = list(weights), training
        self.plain_decay = bool(decay) and is_plain_decay(decay)
        self.readings: dict[str, float] = {}
        self.pending = PendingDecay([group["params"] for group in training.optimizer.param_groups], self.bits)
        if self.how not in {"float32", "masters"}:
            self._put(self._nearest(self.weights))

    @contextlib.contextmanager
    def as_seen(self) -> Iterator[None]:
        """The weights as the forward pass sees them.

        Yields:
            Nothing.
        """
        if self.how != "masters":
            yield
            return
        masters = self._copies()
        self._put(self._nearest(masters))
        try:
            yield
        finally:
            self._put(masters)

    @torch.no_grad()
    def step(self, optimizer_step: Callable[[], None], step: int, *, read: bool) -> None:
        """Let the optimizer step, and round what it leaves.

        Args:
            optimizer_step: Decays and updates the weights.
            step: The number of the step.
            read: Whether to read this step.
        """
        apart = self.how in APART
        before = self._copies() if read or apart else []
        if apart:
            # From zero the decay takes nothing, so the optimizer leaves the update by itself.
            torch._foreach_zero_(self.weights)
        optimizer_step()
        if self.how in {"float32", "masters"}:
            if read:
                self.readings = {"update_ratio": self._update_ratio(before)}
            return
        fractions = self._fractions() if read or apart else []
        if apart:
            updates = self._copies()
            intended = [w * (1 - r) + u for w, r, u in zip(before, fractions, updates, strict=True)] if read else []
            self._put(before)
            self._decay(fractions)
            decayed = self._copies() if read else []
            self._put(self._nearest(torch._foreach_add(self.weights, updates)))
            if self.how == "accumulated":
                self.pending.remove()
        else:
            intended, decayed = self._copies() if read else [], []
            self._put(self._rounded(self.weights, step))
        if read:
            self.readings = {
                "update_ratio": self._update_ratio(before),
                "lost/updates": self._lost_updates(before, intended),
            }
            if self.plain_decay and any(fractions):
                self.readings["lost/decay"] = self._lost_decay(before, fractions, decayed, intended, step)

    def _decay(self, fractions: Sequence[float]) -> None:
        """Decay by itself: rounded, or put off."""
        if self.how == "separate":
            self._put(self._nearest([w * (1 - r) for w, r in zip(self.weights, fractions, strict=True)]))
        else:
            self.pending.add(self._group_fractions())

    def _lost_decay(
        self, before: Sequence[Tensor], fractions: Sequence[float], decayed: Sequence[Tensor], intended: Sequence[Tensor],
        step: int,
    ) -> float:  # fmt: skip
        """The share of the decay that did not arrive, in the direction of the weights."""
        if self.how == "accumulated":
            return self.pending.lost
        if self.how == "separate":
            realized = _dot(before, torch._foreach_sub(list(before), list(decayed)))
        else:  # against what the step would have left without decay, rounded as it was
            undecayed = [
                (after.double() + r * weight.double()).float()
                for after, weight, r in zip(intended, before, fractions, strict=True)
            ]
            realized = _dot(before, torch._foreach_sub(self._rounded(undecayed, step), self.weights))
        return 1 - realized / sum(r * _dot([weight], [weight]) for weight, r in zip(before, fractions, strict=True))

    def _copies(self) -> list[Tensor]:
        return [weight.detach().clone() for weight in self.weights]

    @torch.no_grad()
    def _put(self, values: Sequence[Tensor]) -> None:
        torch._foreach_copy_(self.weights, list(values))

    def _rounded(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
        return self._nearest(tensors) if self.how == "nearest" else self._stochastic(tensors, step)

    def _nearest(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return _together(tensors, lambda flat: round_to(flat, self.bits))

    def _stochastic(self, tensors: Sequence[Tensor], step: int) -> list[Tensor]:
        draws = torch.Generator(tensors[0].device).manual_seed(seed_of(f"stored/{self.seed}/{step}"))
        return _together(tensors, lambda flat: round_stochastically(flat, self.bits, draws))

    def _group_fractions(self) -> list[float]:
        """What the last step's decay has removed of each group's weights."""
        decay = self.training.decay
        return [0.0] * len(self.training.optimizer.param_groups) if decay is None else decay.fractions()

    def _fractions(self) -> list[float]:
        """What it has removed of each weight."""
        pairs = zip(self.training.optimizer.param_groups, self._group_fractions(), strict=True)
        of = {id(weight): r for group, r in pairs for weight in group["params"]}
        return [of[id(weight)] for weight in self.weights]

    def _update_ratio(self, before: Sequence[Tensor]) -> float:
        pairs = [(old, new) for old, new in zip(before, self.weights, strict=True) if old.ndim >= 2]
        moved = sum(float((new - old).double().square().sum()) for old, new in pairs)
        return math.sqrt(moved / sum(float(old.double().square().sum()) for old, _ in pairs))

    def _lost_updates(self, before: Sequence[Tensor], intended: Sequence[Tensor]) -> float:
        wanted = lost = 0
        for old, aim, new in zip(before, intended, self.weights, strict=True):
            moves = aim != old
            wanted += int(moves.sum())
            lost += int((moves & (new == old)).sum())
        return lost / wanted if wanted else 0.0


def _together(tensors: Sequence[Tensor], rounded: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Many small tensors rounded as one."""
    flat = rounded(torch.cat([tensor.detach().flatten() for tensor in tensors]))
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
