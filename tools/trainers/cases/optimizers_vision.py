"""timm's Lookahead, and what fastai puts around AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from live import LAM, LR, Net, live

from cases.optimizers import INNER, SETTINGS, adamw


def case_timm_lookahead() -> Iterator[dict[str, Any]]:
    """Timm's wrapper by itself, and as its factory makes it."""
    from cases.vision import OPERATORS  # declared there: torchvision looks for them when timm imports it

    assert OPERATORS is not None
    from timm.optim import create_optimizer_v2
    from timm.optim.lookahead import Lookahead

    model = Net()
    optimizer = Lookahead(adamw(model), k=6, alpha=0.5)
    yield live("timm Lookahead", f"{INNER}, k=6, alpha=0.5", "timm", model, optimizer)
    model = Net()
    made: Any = create_optimizer_v2(model, "lookahead_adamw", **SETTINGS)
    text = f"'lookahead_adamw', lr={LR}, weight_decay={LAM}"
    yield live("timm create_optimizer_v2", text, "timm", model, made)


def case_fastai_wrapper() -> Iterator[dict[str, Any]]:
    """Fastai's own optimizer, and its wrapper around torch's."""
    from fastai.optimizer import Adam, OptimWrapper

    model = Net()
    optimizer: Any = Adam(list(model.parameters()), lr=LR, wd=LAM)
    yield live("fastai Adam", f"lr={LR}, wd={LAM}", "fastai", model, optimizer)
    model = Net()
    wrapper: Any = OptimWrapper(list(model.parameters()), torch.optim.AdamW, **SETTINGS)
    yield live("fastai OptimWrapper", INNER, "fastai", model, wrapper)
