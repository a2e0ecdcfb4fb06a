"""What a run on images saves: its checkpoint, and the weights that later runs start from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from halflife.errors import RunFailedError
from halflife.files import write_whole

__all__ = ["named_tensors", "read_state", "start_from", "write_state"]


def named_tensors(model: nn.Module, averages: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights and buffers of a model as ``model.<name>`` and of its averages as ``<average>.<name>``.

    Args:
        model: The model.
        averages: Its averages by name.

    Returns:
        The tensors themselves, no copies.
    """
    named = {f"model.{name}": value for name, value in model.state_dict().items()}
    for key, average in averages.items():
        named |= {f"{key}.{name}": value for name, value in average.state_dict().items()}
    return named


def write_state(path: Path, tensors: Mapping[str, Tensor], **meta: object) -> None:
    """Write tensors aside and rename the file.

    Args:
        path: The file.
        tensors: By name.
        meta: Values that JSON can hold.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # safetensors wants each tensor dense in its own order of dimensions, channels_last is not.
    dense = {name: value.contiguous() for name, value in tensors.items()}
    write_whole(path, save(dense, {key: json.dumps(value) for key, value in meta.items()}))


def read_state(path: Path, tensors: Mapping[str, Tensor]) -> dict[str, Any] | None:
    """Read what `write_state` wrote into tensors of the same names.

    Args:
        path: The file.
        tensors: By name; they are overwritten.

    Returns:
        The values beside the tensors, ``None`` when there is no file.
    """
    if not path.exists():
        return None
    with safe_open(path, framework="pt") as file:
        meta: dict[str, str] = file.metadata()
        for name, value in tensors.items():
            value.copy_(file.get_tensor(name))
    return {key: json.loads(value) for key, value in meta.items()}


def start_from(path: Path, weights: str, model: nn.Module) -> None:
    """Give a model the weights that another run kept.

    Args:
        path: The file that the other run wrote.
        weights: ``"last"``, or the name of an average: its weights, with the BatchNorm statistics computed for it.
        model: Gets them.

    Raises:
        RunFailedError: There is no such file.
    """
    if not path.exists():
        raise RunFailedError(
            f"{path.name} is missing among what the parent run kept: remove the parent's folder and rerun"
        )
    prefix = "model." if weights == "last" else f"{weights}.module."
    found = {name.removeprefix(prefix): value for name, value in load_file(path).items() if name.startswith(prefix)}
    with torch.no_grad():
        model.load_state_dict(found)
