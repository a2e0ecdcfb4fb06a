"""The model of a run, with its initial weights: a pure function of the spec and the seed."""

from __future__ import annotations

import torch
from torch import nn

from halflife.studies.lab.text.gpt import GPT
from halflife.studies.lab.text.mlp import MLP
from halflife.studies.specs.text import TextRun

__all__ = ["build_text_model", "initialize"]

MODELS: dict[str, type[MLP] | type[GPT]] = {"mlp": MLP, "gpt": GPT}
RESIDUAL_PROJECTIONS = (".attention.output", ".down")  # what writes to the residual stream


def build_text_model(spec: TextRun, seed: int) -> MLP | GPT:
    """Build the language model of a run; the global random state is neither read nor changed.

    Args:
        spec: The run.
        seed: Seeds the initial weights.

    Returns:
        The model, in training mode, in float32, on the CPU. It takes token ids, (B, context), and returns logits: the
        GPT (B, context, vocab_size), the MLP (B, vocab_size).

    Examples:
        >>> spec = TextRun(model="mlp", vocab_size=96, context=6, width=32, depth=1, norm_gain=False, lr=0.01,
        ...                num_steps=1, batch_size=2, seed=0)
        >>> model = build_text_model(spec, seed=0)
        >>> sum(p.numel() for p in model.parameters())
        13600
        >>> model(torch.zeros(2, 6, dtype=torch.long)).shape
        torch.Size([2, 96])
    """
    with torch.device("meta"):  # else torch's constructors draw weights, from the global generator, for nothing
        model = MODELS[spec.model](spec)
    model.to_empty(device="cpu")
    if isinstance(model, GPT):
        model.tie_head()  # to_empty makes two parameters of a tied one
    initialize(model, spec, torch.Generator().manual_seed(seed))
    return model


@torch.no_grad()
def initialize(model: nn.Module, spec: TextRun, generator: torch.Generator) -> None:
    """Draw the weights, in the order of ``model.named_modules()``; gains become 1 and biases 0.

    ``"gpt2"``: all N(0, init_std^2), what writes to the residual stream divided by sqrt(2 depth). ``"normal"``: all
    N(0, init_std^2). ``"fan-in"``: embeddings N(0, 1), matrices N(0, 1 / fan_in); a tied head is a matrix, so both
    embeddings of a tied GPT are N(0, 1 / width): drawn from N(0, 1), the head would begin with logits of standard
    deviation sqrt(width).

    Args:
        model: The model.
        spec: Says ``init`` and ``init_std``.
        generator: Where the numbers come from.
    """
    done: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            if parameter in done:
                continue
            done.add(parameter)
            if parameter.ndim < 2:
                parameter.fill_(0.0 if parameter is getattr(module, "bias", None) else 1.0)
            else:
                parameter.normal_(0.0, _standard_deviation(name, module, spec), generator=generator)


def _standard_deviation(name: str, module: nn.Module, spec: TextRun) -> float:
    """Return the standard deviation of a matrix or an embedding."""
    if spec.init == "fan-in":
        if isinstance(module, nn.Linear):
            return float(module.in_features**-0.5)
        return float(spec.width**-0.5) if spec.model == "gpt" and spec.tied else 1.0
    scaled = spec.init == "gpt2" and name.endswith(RESIDUAL_PROJECTIONS)
    return float(spec.init_std / (2 * spec.depth) ** 0.5) if scaled else spec.init_std
