"""A residual MLP that predicts a token from the few before it: the smallest model in which the claims were seen.

Shapes: B batch, T tokens (the context), E embedding width, D width, V vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from halflife.studies.lab.text.layers import ACTIVATIONS, make_norm
from halflife.studies.lab.text.numerics import Numerics
from halflife.studies.specs.text import TextRun

__all__ = ["MLP", "MLPBlock"]


class MLPBlock(nn.Module):
    """``x + down(activation(up(rms(x))))``, four times as wide inside, no biases.

    Args:
        spec: The run; dropout is on the hidden layer.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun, numerics: Numerics) -> None:
        super().__init__()
        self.numerics = numerics
        self.activation = ACTIVATIONS[spec.activation]
        self.dropout = spec.dropout
        self.norm = make_norm(spec, spec.width, final=False)
        self.up = nn.Linear(spec.width, 4 * spec.width, bias=False)
        self.down = nn.Linear(4 * spec.width, spec.width, bias=False)

    def forward(self, x_BD: Tensor) -> Tensor:
        """Return the block's output, (B, D)."""
        hidden_BD = self.activation(self.numerics.linear(self.up, self.norm(x_BD)))
        hidden_BD = functional.dropout(hidden_BD, self.dropout, self.training)
        return self.numerics.add(x_BD, self.numerics.linear(self.down, hidden_BD, after=("residual",)))


class MLP(nn.Module):
    """Embeddings of the last T tokens side by side, a matrix, residual blocks, RMSNorm with gain, head. No biases.

    With width D it has V E + T E D + 8 D^2 depth + D + D V parameters, and D depth more if ``norm_gain``.

    Args:
        spec: The run.

    Attributes:
        blocks: The residual blocks.
        numerics: What is rounded and read.
    """

    def __init__(self, spec: TextRun) -> None:
        super().__init__()
        self.numerics = Numerics(spec)
        self.embedding = nn.Embedding(spec.vocab_size, spec.embedding_width)
        self.input = nn.Linear(spec.context * spec.embedding_width, spec.width, bias=False)
        self.blocks = nn.ModuleList(MLPBlock(spec, self.numerics) for _ in range(spec.depth))
        self.final_norm = make_norm(spec, spec.width, final=True)
        self.head = nn.Linear(spec.width, spec.vocab_size, bias=False)

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the logits of the token that follows, (B, V), from token ids, (B, T)."""
        # Indexing gives the same numbers as calling the embedding; its backward pass is faster, by a tenth of a whole step.
        tokens_BTE = self.embedding.weight[ids_BT]
        # Under autocast the sum over blocks stays in the precision of the weights, as it does in the GPT.
        x_BD = self.numerics.linear(self.input, tokens_BTE.flatten(1), after=("residual",)).to(tokens_BTE.dtype)
        x_BD = self.numerics.start(x_BD)
        for block in self.blocks:
            x_BD = block(x_BD)
        return self.numerics.head(self.head, x_BD, self.final_norm)
