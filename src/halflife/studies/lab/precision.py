"""The precision of a run's forward pass; weights and optimizer state stay float32."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["autocast_to"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def autocast_to(precision: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Autocast to a precision; nothing in float32.

    Args:
        precision: ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: Where is computed.

    Returns:
        The context of a forward pass.
    """
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, DTYPES[precision])
