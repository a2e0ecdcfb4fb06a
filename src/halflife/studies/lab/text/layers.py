"""Layers that both language models use.

Shapes: any number of leading dimensions ..., D channels.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional

from halflife.studies.specs.text import TextRun

__all__ = ["ACTIVATIONS", "LAYERNORM_EPS", "RMSNORM_EPS", "make_norm"]

LAYERNORM_EPS = 1e-5  # as GPT-2
# Far below any mean square met in training, so that the layer before a norm is scale-invariant in practice as on paper.
# Never None: torch would take the machine epsilon of the input's type, which for bfloat16 is .008.
RMSNORM_EPS = 1e-8

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": functional.gelu, "relu": functional.relu}


def make_norm(spec: TextRun, width: int, *, final: bool) -> nn.Module:
    """Make a norm over the last dimension, of the kind that the spec says.

    Args:
        spec: The run; its MLP always has RMSNorm.
        width: Channels.
        final: Whether it stands before the head: then it has a learnable gain whatever ``norm_gain`` says. A norm whose
            gain is fixed has no bias either.

    Returns:
        ``torch.nn.LayerNorm`` or ``torch.nn.RMSNorm``.
    """
    learnable = final or spec.norm_gain
    if spec.model == "mlp" or spec.norm == "rmsnorm":
        return nn.RMSNorm(width, eps=RMSNORM_EPS, elementwise_affine=learnable)
    return nn.LayerNorm(width, eps=LAYERNORM_EPS, elementwise_affine=learnable, bias=spec.bias)
