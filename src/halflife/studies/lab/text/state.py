"""What a text run has to remember, and how it lies in a checkpoint.

Everything else follows from the number of steps: the order of the data, dropout's masks, the learning rate. So a
checkpoint of weights, the optimizer's state, averages and a few numbers resumes to the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from halflife.errors import UserError
from halflife.optim.config import KEYS, MEMORY
from halflife.studies.lab.tensor_files import check_alike, check_count, check_tensors, readable
from halflife.studies.lab.text import checkpoints
from halflife.studies.lab.text.averages import WeightAverage
from halflife.studies.lab.text.optimizers import Training
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.pending import PendingDecay
from halflife.studies.store.schema import LARGEST_INTEGER

__all__ = ["State"]

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass(kw_only=True)
class State:
    """The parts of a run that change.

    Args:
        model: The model.
        training: Its optimizer and decay.
        averages: Averages of its weights.
        pending: Decay of its weights that is put off.
        scaler: The gradient scaler.
        tokens_digest: Which tokens and tokenizer it is trained on.
        parallel: The processes that hold it.
        run: The digest of the run's spec.
        step: Steps done.
        losses: Losses of the steps since the last reading, on the device.
        trace: Norms before every step so far, of a run that keeps them.
    """

    model: nn.Module
    training: Training
    averages: list[WeightAverage]
    pending: PendingDecay
    scaler: torch.amp.GradScaler
    tokens_digest: str
    parallel: DataParallelContext
    run: str
    step: int = 0
    losses: list[Tensor] = field(default_factory=list)
    trace: list[Tensor] = field(default_factory=list)

    def parts(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All tensors by name, sharded ones as they are, and all plain values."""
        whole = get_model_state_dict(self.model)
        # Only once what is there under two names: the embedding of a model whose head is tied to it.
        flat: dict[str, Any] = {f"model.{name}": whole[name] for name, _ in self.model.named_parameters()}
        optimizer = get_optimizer_state_dict(self.model, self.training.optimizer, options=FLAT)
        flat |= {f"optimizer.{name}": value for name, value in optimizer.items()}
        tensors = {name: value for name, value in flat.items() if isinstance(value, Tensor)}
        values: dict[str, Any] = {"step": self.step, "tokens": self.tokens_digest, "scaler": self.scaler.state_dict()}
        values |= {name: value for name, value in flat.items() if not isinstance(value, Tensor)}
        if any(self.pending.steps) or any(self.pending.passes):
            values["pending"] = self.pending.state()
        for average in self.averages:
            values[f"{average.name}.count"] = average.count
            tensors |= {f"{average.name}.{index}": value for index, value in enumerate(average.values)}
        for name in ("losses", "trace"):
            if getattr(self, name):
                tensors[name] = torch.stack(getattr(self, name))
        return tensors, values

    def save(self, path: Path) -> None:
        """Write a checkpoint aside and rename it; several processes do it together.

        Args:
            path: Without suffix.
        """
        if self.parallel.form == "alone":
            checkpoints.write_file(path, *self.parts(), run=self.run)
        else:
            checkpoints.write_folder(path, *self.parts(), self.parallel, run=self.run)

    def load(self, path: Path, *, parent: str | None = None) -> bool:
        """Go on from a checkpoint.

        Args:
            path: Without suffix.
            parent: The digest of the spec of the run that wrote it, when this run branches off there (``None``: this run
                itself). Then the weights and the optimizer's state are taken only: the steps are counted from 0, averages
                begin anew.

        Returns:
            Whether there is one.

        Raises:
            UserError: It cannot be read, or was made by another run or with other tokens.
        """
        needed = ("",) if parent is None else ("model.", "optimizer.")
        run = self.run if parent is None else parent
        wanted = lambda name: name.startswith(needed)  # noqa: E731  # a short name
        found = checkpoints.read(path, lambda: self.parts()[0], wanted, self.parallel, run=run)
        if found is None:
            return False
        with readable(path):
            self.restore(*found, branch=parent is not None)
        return True

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any], *, branch: bool) -> None:
        """Take over what `parts` gave.

        Args:
            tensors: All tensors.
            values: All plain values.
            branch: Take the weights and the optimizer's state only.

        Raises:
            UserError: They belong to other tokens.
            ValueError: They do not fit.
        """
        tokens = values["tokens"]
        if tokens != self.tokens_digest:
            raise UserError(
                f"the checkpoint was made with tokens {str(tokens)[:12]} and the data give {self.tokens_digest[:12]}: the"
                " corpus, the tokenizer or the vocabulary has changed; give back the old data, or remove the run's folder"
            )
        own, settings = self.parts()
        taken = self._like(own, tensors, branch=branch)
        check_tensors(tensors, taken)
        # Of the settings only what the rule keeps is read: the others follow from the spec, and from who computes.
        for name in [name for name in settings if name.startswith("optimizer.") and name.endswith(KEYS)]:
            if not name.endswith(MEMORY):  # which the rule checks
                check_alike(name, values[name], settings[name])
            settings[name] = values[name]
        check_alike("scaler", values["scaler"], settings["scaler"])
        flat: dict[str, Any] = {name: tensors[name] for name in taken} | settings
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        set_model_state_dict(self.model, {name: flat[f"model.{first[id(parameter)]}"] for name, parameter in every})
        set_optimizer_state_dict(self.model, self.training.optimizer, _below("optimizer.", flat), options=FLAT)
        self.scaler.load_state_dict(values["scaler"])
        if branch:
            return
        if "pending" in values:
            self.pending.load(values["pending"])
        self.step = check_count("step", values["step"], LARGEST_INTEGER)
        for average in self.averages:
            average.count = check_count(f"{average.name}.count", values[f"{average.name}.count"], self.step)
            for index, mine in enumerate(average.values):
                mine.copy_(tensors[f"{average.name}.{index}"])
        self.losses = _rows("losses", tensors, torch.float32, lambda shape: len(shape) == 1 and shape[0] <= self.step)
        parameters = len(list(self.model.parameters()))
        self.trace = _rows("trace", tensors, torch.float64, lambda shape: shape == (self.step, parameters + 1))

    def _like(self, own: dict[str, Tensor], found: dict[str, Tensor], *, branch: bool) -> dict[str, Tensor]:
        """Tensors like those that are taken over: a rule may have more of its own in the optimizer's state."""
        needed = (
            ("model.", "optimizer.")
            if branch
            else ("model.", "optimizer.", *(f"{each.name}." for each in self.averages))
        )
        like = {name: value for name, value in own.items() if name.startswith(needed)}
        for name, parameter in self.model.named_parameters():
            state = f"optimizer.state.{name}."
            like |= {key: parameter for key in found.keys() - own.keys() if key.startswith(state)}
        return like


def _rows(
    name: str, tensors: dict[str, Tensor], dtype: torch.dtype, fits: Callable[[tuple[int, ...]], bool]
) -> list[Tensor]:
    if name not in tensors:
        return []
    if tensors[name].dtype != dtype or not fits(tuple(tensors[name].shape)):
        raise ValueError(f"{name} is {tuple(tensors[name].shape)} {tensors[name].dtype}, expected one {dtype} a step")
    return list(tensors[name])


def _below(prefix: str, flat: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}
