"""What a text run has to remember, and how it lies in a checkpoint.

Everything else follows from the number of steps: the order of the data, dropout's masks, the learning rate. So a
checkpoint of weights, the optimizer's state, averages and a few numbers resumes to the same bits.
"""

from __future__ import annotations

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
from halflife.studies.lab.tensor_files import readable
from halflife.studies.lab.text import checkpoints
from halflife.studies.lab.text.averages import WeightAverage
from halflife.studies.lab.text.optimizers import Training
from halflife.studies.lab.text.parallel import DataParallelContext

__all__ = ["State"]

FLAT = StateDictOptions(flatten_optimizer_state_dict=True)


@dataclass(kw_only=True)
class State:
    """The parts of a run that change.

    Args:
        model: The model.
        training: Its optimizer and decay.
        averages: Averages of its weights.
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
        found = checkpoints.read(path, lambda: self.parts()[0], lambda name: name.startswith(needed), run=run)
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
        """
        if values["tokens"] != self.tokens_digest:
            raise UserError(
                f"the checkpoint was made with tokens {values['tokens'][:12]} and the data give {self.tokens_digest[:12]}: the"
                " corpus, the tokenizer or the vocabulary has changed; give back the old data, or remove the run's folder"
            )
        flat: dict[str, Any] = {**tensors, **values}
        first = {id(parameter): name for name, parameter in self.model.named_parameters()}
        every = self.model.named_parameters(remove_duplicate=False)
        set_model_state_dict(self.model, {name: flat[f"model.{first[id(parameter)]}"] for name, parameter in every})
        optimizer = self.training.optimizer
        fused = [group["fused"] for group in optimizer.param_groups]  # depends on who computes, not on the run
        set_optimizer_state_dict(self.model, optimizer, _below("optimizer.", flat), options=FLAT)
        for group, own in zip(optimizer.param_groups, fused, strict=True):
            group["fused"] = own
        if self.training.decay is None:
            for group in optimizer.param_groups:  # a branch's parent may have decayed
                group["weight_decay"] = 0.0
        if values["scaler"]:
            self.scaler.load_state_dict(values["scaler"])
        if branch:
            return
        self.step = values["step"]
        for average in self.averages:
            average.count = values[f"{average.name}.count"]
            for index, mine in enumerate(average.values):
                mine.copy_(tensors[f"{average.name}.{index}"])
        for name in ("losses", "trace"):
            if name in tensors:
                setattr(self, name, list(tensors[name]))


def _below(prefix: str, flat: dict[str, Any]) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in flat.items() if name.startswith(prefix)}
