"""What is rounded in a language model, and what is read of its numbers while it computes.

Shapes: B batch, H heads, T tokens, K channels per head; any number of leading dimensions ..., D channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife.divergence import half_ulp
from halflife.studies.lab.precision import Rounding, mantissa_bits, probabilities, scores_of
from halflife.studies.specs.precision import ATTENTION_PLACES
from halflife.studies.specs.text import TextRun

__all__ = ["Numerics", "Seen"]


@dataclass
class Seen:
    """What was seen in the forward passes of one step; each list has an entry a call."""

    largest_scores: list[Tensor] = field(default_factory=list)
    entropies_H: list[Tensor] = field(default_factory=list)
    largest_logits: list[Tensor] = field(default_factory=list)
    squares: list[Tensor] = field(default_factory=list)
    squares_added: list[Tensor] = field(default_factory=list)


class Numerics:
    """Rounds where a run's spec says so; else the model computes as if there were nothing here.

    Args:
        spec: The run.

    Attributes:
        rounding: What is rounded.
        seen: Where to put what is seen (``None``: nowhere).
    """

    def __init__(self, spec: TextRun) -> None:
        self.rounding = Rounding(spec.bits, spec.rounded, spec.rounded_gradients)
        self.score_bits = spec.bits if "scores" in spec.rounded else mantissa_bits(spec.precision)
        self.depth, self.heads = spec.depth, spec.heads
        self.seen: Seen | None = None

    def linear(self, layer: nn.Linear, x: Tensor, *, before: str = "", after: tuple[str, ...] = ("",)) -> Tensor:
        """A linear layer inside; see `Rounding.linear`."""
        return self.rounding.linear(layer, x, before=before, after=after)

    def start(self, x: Tensor) -> Tensor:
        """The residual stream before the first block."""
        return self.rounding(x, "residual")

    def add(self, x: Tensor, branch: Tensor) -> Tensor:
        """The residual stream after a branch."""
        if self.seen is not None:
            self.seen.squares_added.append(_mean_square(branch))
        return self.rounding.add(x, branch, "residual")

    def head(self, head: nn.Linear, x: Tensor, norm: nn.Module) -> Tensor:
        """The logits from the residual stream at its end."""
        logits = self.rounding.linear(head, norm(x), "logits")
        if self.seen is not None:
            self.seen.squares.append(_mean_square(x))
            self.seen.largest_logits.append(logits.detach().abs().amax().float())
        return logits

    def attention(self, q_BHTK: Tensor, k_BHTK: Tensor, v_BHTK: Tensor, dropout: float) -> Tensor:
        """Causal attention, by torch's own kernel where nothing in it is rounded.

        Args:
            q_BHTK: Queries.
            k_BHTK: Keys.
            v_BHTK: Values.
            dropout: Probability, on attention probabilities.

        Returns:
            (B, H, T, K).
        """
        rounding = self.rounding
        if not self.rounds_attention:
            if self.seen is not None:
                with torch.no_grad():
                    scores_BHTT = scores_of(q_BHTK, k_BHTK)
                    self._look(scores_BHTT, probabilities(scores_BHTT))
            return functional.scaled_dot_product_attention(q_BHTK, k_BHTK, v_BHTK, dropout_p=dropout, is_causal=True)
        scores_BHTT = rounding(scores_of(rounding(q_BHTK, "scores"), rounding(k_BHTK, "scores")), "scores")
        p_BHTT = probabilities(scores_BHTT)
        if self.seen is not None:
            self._look(scores_BHTT.detach(), p_BHTT.detach())
        p_BHTT = rounding(functional.dropout(p_BHTT, dropout), "mixing")
        return rounding(p_BHTT @ rounding(v_BHTK, "mixing"), "mixing")

    @property
    def rounds_attention(self) -> bool:
        """Whether anything in attention is rounded."""
        return self.rounding.at(*ATTENTION_PLACES)

    def attention_between(self, qkv_BTE: Tensor) -> Tensor:
        """The same between two linear layers, where something in it is rounded; see `Rounding.attention`."""
        return self.rounding.attention(qkv_BTE, self.heads, None if self.seen is None else self._look)

    def _look(self, scores_BHTT: Tensor, p_BHTT: Tensor) -> None:
        assert self.seen is not None
        self.seen.largest_scores.append(scores_BHTT.tril().abs().amax().float())
        self.seen.entropies_H.append(torch.special.entr(p_BHTT.float()).sum(-1).mean((0, 2)))

    def readings(self, seen: Seen) -> dict[str, float]:
        """What was seen in a step, as readings.

        Args:
            seen: What was seen.

        Returns:
            Values by name.
        """
        values = {"logit/largest": float(torch.stack(seen.largest_logits).amax())}
        if seen.largest_scores:
            largest = float(torch.stack(seen.largest_scores).amax())
            values["score/largest"] = largest
            values["score/half_ulp"] = half_ulp(largest, self.score_bits) if math.isfinite(largest) else largest
            # Parts of a batch are as large as each other: the mean over them is the mean over the batch.
            parts = torch.stack(seen.entropies_H).view(-1, self.depth, self.heads)
            values["score/entropy"] = float(parts.mean(0).amin())
        rms = math.sqrt(float(torch.stack(seen.squares).mean()))
        added = math.sqrt(float(torch.stack(seen.squares_added).mean()))
        values["residual/rms"] = rms
        values["residual/ratio"] = rms / added if added > 0 else 0.0
        return values


def _mean_square(x: Tensor) -> Tensor:
    return x.detach().float().square().mean()
