"""A GPT in the form of GPT-2 and nanoGPT, at any width and depth, with or without biases and learnable gains.

Shapes: B batch, T tokens, H heads, K channels per head, D width (H K), V vocabulary.

Source: D'Angelo et al., "Why Do We Need Weight Decay in Modern Deep Learning?", appendix B, which trains nanoGPT's
GPT-2 (github.com/karpathy/nanoGPT, ``model.py``).
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from halflife.studies.lab.text.layers import ACTIVATIONS, RMSNORM_EPS, make_norm
from halflife.studies.lab.text.numerics import Numerics
from halflife.studies.specs.precision import ATTENTION_PLACES
from halflife.studies.specs.text import TextRun

__all__ = ["GPT", "Attention", "FeedForward", "GPTBlock"]


class Attention(nn.Module):
    """Causal self-attention; queries, keys and values come from one matrix.

    With ``qk_norm``, queries and keys are normalized by RMSNorm without gain, over the channels of a head.

    Args:
        spec: The run; dropout is on the attention weights and on the output.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.heads = spec.heads
        self.qk_norm = spec.qk_norm
        self.dropout = spec.dropout
        self.qkv = nn.Linear(spec.width, 3 * spec.width, bias=spec.bias)
        self.output = nn.Linear(spec.width, spec.width, bias=spec.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the residual branch, (B, T, D)."""
        dropout = self.dropout if self.training else 0.0
        # What is rounded at two places that nothing lies between is rounded once.
        after = ("",) if self.qk_norm else ATTENTION_PLACES
        qkv_BTE = self.numerics.linear(self.qkv, x_BTD, after=after)
        if self.numerics.rounds_attention and not (self.qk_norm or dropout):
            mixed_BTD = self.numerics.attention_between(qkv_BTE)
        else:
            mixed_BTD = self._mixed(qkv_BTE, dropout)
        out_BTD = self.numerics.linear(self.output, mixed_BTD, before="mixing", after=("" if dropout else "residual",))
        return functional.dropout(out_BTD, self.dropout, self.training)

    def _mixed(self, qkv_BTE: Tensor, dropout: float) -> Tensor:
        q_BHTK, k_BHTK, v_BHTK = (
            part_BTD.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # type: ignore[no-untyped-call]
            for part_BTD in qkv_BTE.chunk(3, dim=-1)
        )
        if self.qk_norm:
            q_BHTK = functional.rms_norm(q_BHTK, q_BHTK.shape[-1:], eps=RMSNORM_EPS)
            k_BHTK = functional.rms_norm(k_BHTK, k_BHTK.shape[-1:], eps=RMSNORM_EPS)
        return self.numerics.attention(q_BHTK, k_BHTK, v_BHTK, dropout).transpose(1, 2).flatten(2)


class FeedForward(nn.Module):
    """``down(activation(up(x)))``, four times as wide inside.

    Args:
        spec: The run; dropout is on the output.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.activation = ACTIVATIONS[spec.activation]
        self.dropout = spec.dropout
        self.up = nn.Linear(spec.width, 4 * spec.width, bias=spec.bias)
        self.down = nn.Linear(4 * spec.width, spec.width, bias=spec.bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the residual branch, (B, T, D)."""
        hidden = self.activation(self.numerics.linear(self.up, x_BTD))
        after = "" if self.training and self.dropout else "residual"
        return functional.dropout(self.numerics.linear(self.down, hidden, after=(after,)), self.dropout, self.training)


class GPTBlock(nn.Module):
    """Attention, then the feed-forward layer, each after a norm and around a shortcut.

    Args:
        spec: The run.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.attention_norm = make_norm(spec, spec.width, final=False)
        self.attention = Attention(spec, numerics)
        self.feed_forward_norm = make_norm(spec, spec.width, final=False)
        self.feed_forward = FeedForward(spec, numerics)

    def forward(self, x_BTD: Tensor) -> Tensor:
        """Return the block's output, (B, T, D)."""
        x_BTD = self.numerics.add(x_BTD, self.attention(self.attention_norm(x_BTD)))
        return self.numerics.add(x_BTD, self.feed_forward(self.feed_forward_norm(x_BTD)))


class GPT(nn.Module):
    """Token and position embeddings, pre-norm blocks, a last norm, a head without bias, tied or not.

    GPT-2 (124 M parameters) is width 768, depth 12, heads 12, vocabulary 50,257, tied, with biases; medium is
    1024, 24, 16, large 1280, 36, 20. nanoGPT pads the vocabulary to 50,304, for speed, and has no biases by default.

    Args:
        spec: The run.

    Attributes:
        blocks: The residual blocks.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun) -> None:
        super().__init__()
        self.numerics = Numerics(spec)
        self.tied = spec.tied
        self.dropout = spec.dropout
        self.token_embedding = nn.Embedding(spec.vocab_size, spec.width)
        self.position_embedding = nn.Embedding(spec.context, spec.width)
        self.blocks = nn.ModuleList(GPTBlock(spec, self.numerics) for _ in range(spec.depth))
        self.final_norm = make_norm(spec, spec.width, final=True)
        self.head = nn.Linear(spec.width, spec.vocab_size, bias=False)
        self.tie_head()

    def tie_head(self) -> None:
        """Make the head's matrix the token embedding, if it is tied; again after what replaces parameters."""
        if self.tied:
            self.head.weight = self.token_embedding.weight

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the logits of the token after each one, (B, T, V), from token ids, (B, T), T at most ``context``."""
        x_BTD = self.token_embedding(ids_BT) + self.position_embedding.weight[: ids_BT.shape[1]]
        x_BTD = self.numerics.start(functional.dropout(x_BTD, self.dropout, self.training))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        return self.numerics.head(self.head, x_BTD, self.final_norm)
