"""Which normalization gains transformers' Trainer decays, over every architecture that builds from its default config.

The models are made without memory (on the meta device) and asked through the Trainer's own
`get_decay_parameter_names`, which is what its `create_optimizer` asks.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from typing import Any

import torch
import transformers
from torch import nn
from transformers import CONFIG_MAPPING, AutoModel, Trainer
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

SECONDS = 40
LAYERS = ("num_hidden_layers", "num_layers", "n_layer", "n_layers", "encoder_layers", "decoder_layers")
FAMILIES = ("LayerNorm", "RMSNorm", "BatchNorm", "GroupNorm")


def built(model_type: str, shrink: bool) -> nn.Module:
    """The architecture of a model type, with its default configuration and at most four layers of each kind."""
    config = CONFIG_MAPPING[model_type]()
    for name in LAYERS if shrink else ():
        number = getattr(config, name, None)
        if isinstance(number, int) and number > 4 and getattr(config, "layer_types", None) is None:
            setattr(config, name, 4)
    with torch.device("meta"):
        return AutoModel.from_config(config)  # type: ignore[no-any-return]


def gains(model: nn.Module) -> dict[str, list[str]]:
    """The names of the one-dimensional parameters of normalization modules that decay, by family."""
    decay = set(Trainer.get_decay_parameter_names(None, model))
    found: dict[str, list[str]] = {}
    for prefix, module in model.named_modules():
        kind = type(module).__name__
        if "norm" not in kind.lower():
            continue
        family = next((family for family in FAMILIES if family.lower() in kind.lower()), "other")
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 and f"{prefix}.{name}" in decay:
                found.setdefault(family, []).append(f"{prefix}.{name} ({kind})")
    return found


def case_all() -> Iterator[dict[str, Any]]:
    """One row: how many architectures, which of them, and an example of each."""
    transformers.logging.set_verbosity_error()

    def late(*_: Any) -> None:
        raise TimeoutError

    signal.signal(signal.SIGALRM, late)
    probed, failed = 0, []
    found: dict[str, dict[str, list[Any]]] = {}
    for model_type in sorted(MODEL_MAPPING_NAMES):
        signal.alarm(SECONDS)
        try:
            try:
                model = built(model_type, shrink=True)
            except TimeoutError:
                raise
            except Exception:
                model = built(model_type, shrink=False)
            for family, names in gains(model).items():
                found.setdefault(family, {})[model_type] = [len(names), names[0]]
            probed += 1
        except Exception as error:  # optional libraries, configurations without defaults
            failed.append([model_type, type(error).__name__])
        finally:
            signal.alarm(0)
    yield {
        "trainer": "transformers Trainer",
        "configuration": "norm gains that decay",
        "package": "transformers",
        "option": "",
        "groups": [],
        "architectures": probed,
        "not_built": failed,
        "norms": found,
    }
