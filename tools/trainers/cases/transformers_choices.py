"""Every `optim=` choice of transformers' Trainer with weight_decay=0.1 on the small BERT: does it reach the weights?"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from probe import Built
from transformers import Trainer
from transformers.training_args import OptimizerNames

from cases.huggingface import arguments, bert

LOW_RANK = ("galore", "apollo")


def built(option: str) -> Built:
    """The optimizer of one choice, after the Trainer's own set-up."""
    changes: dict[str, Any] = {"optim": option, "weight_decay": 0.1, "learning_rate": 1e-3}
    if option.startswith(LOW_RANK):
        changes["optim_target_modules"] = ["attention"]
        changes["optim_args"] = "rank=4,update_proj_gap=10"
    torch.manual_seed(0)
    model = bert()
    optimizer = Trainer(model=model, args=arguments(**changes)).create_optimizer()
    configuration = f"optim={option!r}, weight_decay=0.1"
    parts = getattr(optimizer, "optimizer_dict", None)
    if parts:  # layer-wise choices: one optimizer per parameter, and a dummy that the Trainer sees
        weight = model.bert.encoder.layer[0].attention.self.query.weight
        optimizer, configuration = parts[weight], configuration + " (the optimizer of one attention matrix)"
        model = torch.nn.ParameterList([weight])  # type: ignore[assignment]
    documented = "weight decay coefficient applied by the optimizer, not to bias and LayerNorm parameters"
    return Built("transformers Trainer", configuration, optimizer, [model], "transformers", documented, "", option)


def case_all() -> Iterator[Built | dict[str, Any]]:
    """All choices; one that cannot be built here says why."""
    for choice in OptimizerNames:
        option = str(choice.value)
        try:
            yield built(option)
        except (Exception, SystemExit) as error:  # the reason is the result
            reason = f"{type(error).__name__}: {error}".splitlines()[0][:160]
            yield {
                "trainer": "transformers Trainer",
                "configuration": f"optim={option!r}, weight_decay=0.1",
                "package": "transformers",
                "option": option,
                "error": reason,
                "groups": [],
            }
