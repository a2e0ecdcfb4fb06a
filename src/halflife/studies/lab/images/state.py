"""What a run on images saves: its checkpoint, and the weights that later runs start from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from halflife.errors import RunFailedError
from halflife.studies.lab.tensor_files import Values, check_tensors, read_tensors, readable

__all__ = ["named_tensors", "read_state", "start_from", "weight_norm"]


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


def read_state(path: Path, tensors: Mapping[str, Tensor], *, run: str) -> Values | None:
    """Read a checkpoint into tensors of the same names.

    Args:
        path: The file.
        tensors: By name; they are overwritten.
        run: The digest of the run's spec.

    Returns:
        The values beside the tensors, ``None`` when there is no file.
    """
    found = read_tensors(path, run=run)
    if found is None:
        return None
    with readable(path):
        _copy_into(tensors, found[0])
    return found[1]


def _copy_into(tensors: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> None:
    check_tensors(found, tensors)
    with torch.no_grad():
        for name, value in tensors.items():
            value.copy_(found[name])


def start_from(path: Path, weights: str, model: nn.Module, *, run: str) -> None:
    """Give a model the weights that another run kept.

    Args:
        path: The file that the other run wrote.
        weights: ``"last"``, or the name of an average: its weights, with the BatchNorm statistics computed for it.
        model: Gets them.
        run: The digest of the other run's spec.

    Raises:
        RunFailedError: There is no such file.
    """
    prefix = "model." if weights == "last" else f"{weights}.module."
    found = read_tensors(path, run=run, wanted=lambda name: name.startswith(prefix))
    if found is None:
        raise RunFailedError(
            f"{path.name} is missing among what the parent run kept: remove the parent's folder and rerun"
        )
    with readable(path):
        _copy_into(model.state_dict(), {name.removeprefix(prefix): value for name, value in found[0].items()})


def weight_norm(weights: Iterable[Tensor]) -> float:
    """The l2 norm of several tensors together.

    Args:
        weights: The tensors.

    Returns:
        The norm.
    """
    # In float64, so that the sum of squares is the same to the last digit shown on every machine.
    squares = [weight.detach().double().square().sum() for weight in weights]
    return math.sqrt(torch.stack(squares).sum().item())
