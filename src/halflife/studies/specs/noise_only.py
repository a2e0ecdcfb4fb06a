"""The spec of runs on noise alone: what decay does to norms and angles where the loss has nothing to say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from halflife.errors import UserError
from halflife.rules.registry import check_decay_text, schedule_from
from halflife.studies.specs.base import RunSpec, check_choices, check_counts, check_numbers
from halflife.studies.specs.trainers import NOISE_ONLY, Trainer

__all__ = ["NoiseOnlyRun"]

OPTIMIZERS = ("sgd", "adam", "lion")


@dataclass(frozen=True, kw_only=True)
class NoiseOnlyRun(RunSpec):
    """Scale-invariant layers under gradients that are noise: each is orthogonal to the layer's weights, and drawn anew.

    At each step the gradient of layer l with weights w is

        g = s_l / ||w||  z,    z uniform on the unit vectors orthogonal to w

    which is what a loss that depends on w / ||w|| alone has where its gradient is noise of norm s_l at ||w|| = 1. There is no
    progress to make, so norms, angles and ratios end where updates and decay are in balance.

    Args:
        optimizer: ``"sgd"`` or ``"adam"``, torch's, or ``"lion"``, pytorch-optimizer's.
        lr: Learning rate.
        lr_schedule: Its multiplier over steps, as text (`halflife.rules.registry.schedule_from`).
        decay: The rule or penalty as text, such as ``"Decoupled(lam=0.1)"`` (empty: none).
        momentum: Of SGD.
        beta1: Of Adam and Lion.
        beta2: Of Adam and Lion.
        eps: Of Adam.
        num_weights: Of each layer.
        gradient_norms: s_l of each layer.
        start_norm: ||w|| at the start, of every layer.
        num_replicas: Independent copies of every layer. `Stable` on Adam takes its mean over all of them.
        num_steps: Steps.
        eval_every: Readings are means over so many steps each.
    """

    kind: ClassVar[str] = "noise-only"
    trainer: ClassVar[Trainer] = NOISE_ONLY
    data_module: ClassVar[str] = "halflife.studies.lab.stationary.source"

    optimizer: str
    lr: float
    lr_schedule: str = "constant(value=1.0)"
    decay: str = ""
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    num_weights: tuple[int, ...] = (1_000,)
    gradient_norms: tuple[float, ...] = (1.0,)
    start_norm: float = 1.0
    num_replicas: int = 8
    num_steps: int
    eval_every: int = 100

    def __post_init__(self) -> None:
        check_choices(self, {"optimizer": OPTIMIZERS})
        check_numbers(self, "lr", "eps", "gradient_norms", "start_norm", above=0)
        for name in ("momentum", "beta1", "beta2"):
            check_numbers(self, name)
            if getattr(self, name) >= 1:
                raise UserError(f"{name} is {getattr(self, name):g}, expected a number in [0, 1): change {name}")
        check_counts(self, "num_weights", least=2)
        check_counts(self, "num_replicas", "num_steps", "eval_every")
        check_counts(self, "max_steps", or_none=True)
        if not self.num_weights or len(self.num_weights) != len(self.gradient_norms):
            raise UserError(
                f"num_weights has {len(self.num_weights)} layers and gradient_norms {len(self.gradient_norms)}, expected as"
                " many, at least one: change one of them"
            )
        if self.momentum and self.optimizer != "sgd":
            raise UserError(f"momentum is {self.momentum:g}, which {self.optimizer} does not have: leave it out")
        if not isinstance(self.decay, str):
            raise UserError(f"decay is {self.decay!r}, expected text such as 'Decoupled(lam=0.1)': change decay")
        if self.decay:
            check_decay_text(self.decay)
        schedule_from(self.lr_schedule)

    @property
    def data(self) -> str:
        """None: gradients are drawn."""
        return "none"

    @property
    def last_step(self) -> int:
        """The number of steps that are really done."""
        return self.num_steps if self.max_steps is None else min(self.max_steps, self.num_steps)
