"""Lightning: see what decays, choose groups in `configure_optimizers`, attach there, and keep it so with a test.

The traps: a scheduler that is returned as it is moves once per epoch, and the decay of AdamW, lr * lam, with it; and under
accumulation a step is not a batch.
"""

import logging

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader

import halflife


class Module(lightning.LightningModule):
    """A classifier in miniature, with what decays said where the optimizer is made."""

    def __init__(self, interval: str = "step") -> None:
        super().__init__()
        self.interval = interval
        self.net = nn.Sequential(nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))

    def configure_optimizers(self) -> dict:
        """Attach before Lightning sees the optimizer: its wrappers and strategies keep the rule."""
        groups = halflife.param_groups(self, policy="matrices", weight_decay=0.1)
        optimizer = torch.optim.AdamW(groups, lr=1e-2)
        self.handle = halflife.attach(optimizer, halflife.Decoupled())
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, self.trainer.estimated_stepping_batches)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        """Return the loss."""
        return nn.functional.cross_entropy(self.net(batch), (batch.sum(1) > 0).long())


def fitted(interval: str = "step") -> tuple[Module, lightning.Trainer]:
    """Train for two epochs, each of eight batches in four steps; write nothing."""
    torch.manual_seed(0)
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)
    trainer = lightning.Trainer(accelerator="cpu", max_epochs=2, accumulate_grad_batches=2, **quiet)
    trainer.fit(module := Module(interval), DataLoader(torch.randn(64, 4), batch_size=8))
    return module, trainer


def test_decay() -> None:
    """Hold in every run of the tests, with the Trainer's own optimizers: matrices decay, nothing else does."""
    module, trainer = fitted()
    print(halflife.explain(module, trainer.optimizers))
    halflife.assert_decay(module, trainer.optimizers, {"matrices": "decoupled:0.1", "*": "none"})


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for interval, last_lr in {"step": 1e-2 / 8, "epoch": 1e-2 * 7 / 8}.items():  # from 1e-2 to 0 in 8 moves
        module, trainer = fitted(interval)
        print(f"by {interval}: removed by the last of {trainer.global_step} steps: {module.handle.fractions()}")
        assert abs(module.handle.fractions()[0] - last_lr * 0.1) < 1e-9
    test_decay()
