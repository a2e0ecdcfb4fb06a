"""What a run on images saves: its checkpoint, and the weights that later runs start from."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.errors import RunFailedError
from halflife.optim.config import KEYS, MEMORY
from halflife.studies.lab.images.optimizers import optimizer_of
from halflife.studies.lab.tensor_files import Values, check_alike, check_count, check_tensors, read_tensors, readable
from halflife.studies.specs.images import ImageRun

__all__ = ["OptimizerState", "named_tensors", "read_state", "start_from", "weight_norm"]

PREFIX = "optimizer."
COUNT = "step"  # of the steps, where an optimizer of pytorch-optimizer keeps it in its groups


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


class OptimizerState:
    """The state of a run's optimizer and of the rule that is attached to it, as tensors by name and plain values.

    Args:
        spec: The run.
        optimizer: Its optimizer.
    """

    def __init__(self, spec: ImageRun, optimizer: Optimizer) -> None:
        self.spec, self.optimizer = spec, optimizer

    def parts(self) -> tuple[dict[str, Tensor], list[Values]]:
        """What a checkpoint holds: tensors, and of each group what changes along a run."""
        whole = self.optimizer.state_dict()
        tensors = {f"{PREFIX}{number}.{key}": value for number, key, value in _tensors_of(whole)}
        keys = (*KEYS, COUNT)
        return tensors, [{key: group[key] for key in keys if key in group} for group in whole["param_groups"]]

    def load(self, tensors: Mapping[str, Tensor], groups: Any, step: int) -> None:
        """Take over what `parts` gave.

        Args:
            tensors: All tensors of a checkpoint.
            groups: Of each group what changes; ``None`` of a checkpoint of plain SGD that an earlier version wrote.
            step: The steps done.

        Raises:
            ValueError: They do not fit.
        """
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        own = self._like(parameters)
        found = {name.removeprefix(PREFIX): value for name, value in tensors.items() if name.startswith(PREFIX)}
        # A rule may have more of its own in the state of a parameter, in its shape.
        like: dict[str, Tensor] = {}
        for name in found.keys() - own.keys():
            if not re.fullmatch(r"[0-9]{1,6}\..+", name) or int(name.partition(".")[0]) >= len(parameters):
                raise ValueError(f"{PREFIX}{name[:40]} belongs to none of {len(parameters)} parameters")
            like[name] = parameters[int(name.partition(".")[0])]
        check_tensors(found, own | like)
        whole = self.optimizer.state_dict()
        if groups is None and not own and not self.spec.decay:
            return
        if not isinstance(groups, list) or len(groups) != len(whole["param_groups"]):
            raise ValueError(f"groups is {type(groups).__name__}, expected a list of {len(whole['param_groups'])}")
        for mine, theirs in zip(whole["param_groups"], groups, strict=True):
            if not isinstance(theirs, dict):
                raise ValueError(f"groups holds {type(theirs).__name__}, expected objects")
            for key in KEYS:
                if key in mine:
                    if key != MEMORY:  # which the rule checks
                        check_alike(key, theirs.get(key), mine[key])
                    mine[key] = theirs[key]
            if COUNT in theirs:
                mine[COUNT] = check_count(COUNT, theirs[COUNT], step)
        state: dict[int, dict[str, Any]] = {}
        for name, value in found.items():
            number, _, key = name.partition(".")
            parameter = parameters[int(number)]
            if value.shape == parameter.shape:
                # In the parameter's order of dimensions, as fused steps need it.
                value = torch.empty_like(parameter, dtype=value.dtype).copy_(value)  # noqa: PLW2901
            state.setdefault(int(number), {})[key] = value
        whole["state"] = state
        self.optimizer.load_state_dict(whole)

    def _like(self, parameters: list[Tensor]) -> dict[str, Tensor]:
        """Tensors like those of the optimizer's state after a step: of one over copies of the parameters, which steps."""
        copies = [torch.zeros_like(parameter, requires_grad=True) for parameter in parameters]
        twin = optimizer_of(self.spec, [{"params": copies, "weight_decay": 0.0}])
        for copy in copies:
            copy.grad = torch.zeros_like(copy)
        twin.step()
        return {f"{number}.{key}": value for number, key, value in _tensors_of(twin.state_dict())}


def _tensors_of(whole: Mapping[str, Any]) -> list[tuple[int, str, Tensor]]:
    return [
        (number, key, value)
        for number, state in whole["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    ]


def read_state(path: Path, tensors: Mapping[str, Tensor], *, run: str) -> tuple[dict[str, Tensor], Values] | None:
    """Read a checkpoint into tensors of the same names.

    Args:
        path: The file.
        tensors: By name; they are overwritten.
        run: The digest of the run's spec.

    Returns:
        All tensors of the file and the values beside them, ``None`` when there is no file.
    """
    found = read_tensors(path, run=run)
    if found is None:
        return None
    with readable(path):
        _copy_into(tensors, found[0])
    return found


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
