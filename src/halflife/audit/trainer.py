"""A stand-in for the trainer that a Lightning module asks for the length of the run."""

from __future__ import annotations

import contextlib
from typing import Any

from torch import nn

from halflife.errors import UserError

__all__ = ["StandInTrainer", "give_trainer"]

STEPS = 1000
EPOCHS = 10


class MissingTrainerError(UserError, AttributeError):
    """The stand-in has no such attribute; ``hasattr`` is False."""


class _StandIn:
    def __init__(self, name: str, **values: Any) -> None:
        vars(self).update(values, _name=name)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise MissingTrainerError(
            f"configure_optimizers reads {self._name}.{name}, and an audit has no trainer that knows it: run the script "
            "that trains, with `halflife audit --run`, or name a function that returns the optimizer"
        )


class _Loader:
    def __init__(self, length: int) -> None:
        self.length = length

    def __len__(self) -> int:
        return self.length


class StandInTrainer(_StandIn):
    """What ``configure_optimizers`` may ask of ``self.trainer``: one process, and a run of so many steps in ten epochs.

    Args:
        steps: The length of the run.
    """

    def __init__(self, steps: int) -> None:
        batches = max(1, steps // EPOCHS)
        loader = _Loader(batches)
        data = _StandIn("self.trainer.datamodule", train_dataloader=lambda: loader, batch_size=1)
        super().__init__(
            "self.trainer",
            estimated_stepping_batches=steps, max_steps=steps, max_epochs=EPOCHS, min_epochs=None,
            num_training_batches=batches, limit_train_batches=1.0, accumulate_grad_batches=1, train_dataloader=loader,
            datamodule=data, world_size=1, num_devices=1, num_nodes=1, device_ids=[0], global_rank=0, local_rank=0,
            node_rank=0, is_global_zero=True, global_step=0, current_epoch=0, gradient_clip_val=None,
            precision="32-true", fast_dev_run=False, training=True, sanity_checking=False, reload_dataloaders_every_n_epochs=0,
        )  # fmt: skip


def give_trainer(module: Any, total_steps: float | None) -> None:
    """Give a Lightning module a stand-in for its trainer, unless it has one.

    Args:
        module: The module; anything else is left as it is.
        total_steps: The length of the run; 1,000 steps if nobody says.
    """
    if not isinstance(module, nn.Module) or not hasattr(type(module), "configure_optimizers"):
        return
    try:
        has_one = module.trainer is not None
    except Exception:  # Lightning's property raises where there is none
        has_one = False
    if not has_one:
        with contextlib.suppress(Exception):
            module.trainer = StandInTrainer(int(total_steps or STEPS))  # type: ignore[assignment]
