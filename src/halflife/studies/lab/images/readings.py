"""What is read of a run on images: losses and errors of the weights and of their averages, and probes.

Shapes: B batch, C channels, H height, W width, N images, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from halflife.studies.lab.images.data import Images
from halflife.studies.lab.images.probes import probe
from halflife.studies.lab.images.state import weight_norm
from halflife.studies.store.records import Array, Reading
from halflife.units import half_life

if TYPE_CHECKING:
    from halflife.studies.lab.images.loop import ImageLoop

__all__ = ["Reader"]

EVAL_BATCH = 500


class Reader:
    """Reads a run at the end of an epoch.

    Args:
        run: The run.
    """

    def __init__(self, run: ImageLoop) -> None:
        self.run, self.spec = run, run.spec

    def evaluates_at(self, epoch: int) -> bool:
        """Whether both sets are evaluated after this many epochs."""
        return epoch % self.spec.eval_every == 0 or self.ends_phase(epoch)

    def probes_at(self, epoch: int) -> bool:
        """Whether probes are taken after this many epochs."""
        every = self.spec.probe_every
        return bool(self.spec.probes) and ((every > 0 and epoch % every == 0) or self.ends_phase(epoch))

    def ends_phase(self, epoch: int) -> bool:
        """Whether the learning rate drops after this many epochs, or the run ends."""
        return epoch in {self.spec.drop_epoch, self.run.num_epochs}

    def snapshot_at(self, epoch: int) -> bool:
        """Whether the ensemble takes up the weights after this many epochs."""
        every = self.spec.ensemble_every
        return every > 0 and epoch % every == 0 and epoch <= self.spec.drop_epoch

    def reading(self, epoch: int, running_loss: float) -> Reading:
        """What is read after this many epochs."""
        lr = self.run.optimizer.param_groups[0]["lr"]
        norm = weight_norm(self.run.weights)
        fraction = max(self.run.decay.fractions()) if self.run.decay is not None else 0.0
        values = {
            "train/running_loss": running_loss,
            "lr": lr,
            "weight_norm": norm,
            "effective_lr": lr / norm**2,
            "fraction": fraction,
        }
        if fraction > 0:
            values["half_life"] = half_life(fraction)
        arrays: dict[str, Array] = {}
        if self.run.trace is not None:
            found, arrays = self.run.trace.read()
            values |= found
        if self.run.ensemble is not None and self.snapshot_at(epoch):
            self.run.ensemble.add(self.logits(self.run.model, self.run.test_set))
        evaluates, probes = self.evaluates_at(epoch), self.probes_at(epoch)
        if evaluates or probes or self.run.kept_epochs():
            for prefix, model in self.models():
                if evaluates:
                    self.evaluate(prefix, model, epoch, values, arrays)
                if probes:
                    found, more = probe(self.spec, model, self.run.train_set, lr)
                    values |= {prefix + name: value for name, value in found.items()}
                    arrays |= {prefix + name: array for name, array in more.items()}
        return Reading(step=self.run.step, epoch=self.run.epoch, values=values, arrays=arrays)

    def models(self) -> Iterator[tuple[str, nn.Module]]:
        """The weights and their averages, each with the prefix of its readings."""
        yield "", self.run.model
        for key, average in self.run.averages.items():
            # An average of weights has BatchNorm statistics of its own: one pass over the training set, in order.
            size = self.spec.batch_size
            batches = (
                self.run.train_set.x_NCHW[start : start + size]
                for start in range(0, self.run.steps_per_epoch * size, size)
            )
            with self.run.autocast():
                update_bn(batches, average)
            yield f"{key}/", average.module

    def evaluate(
        self, prefix: str, model: nn.Module, epoch: int, values: dict[str, float], arrays: dict[str, Array]
    ) -> None:
        """Read losses and errors on both sets, BatchNorm in evaluation mode."""
        if prefix:
            values[f"{prefix}weight_norm"] = weight_norm([p for p in model.parameters() if p.requires_grad])
        for part, images in (("train", self.run.train_set), ("test", self.run.test_set)):
            logits_NK = self.logits(model, images)
            wrong_N = logits_NK.argmax(dim=1) != images.y_N
            values[f"{prefix}{part}/loss"] = functional.cross_entropy(logits_NK, images.y_N).item()
            values[f"{prefix}{part}/error"] = wrong_N.double().mean().item()
        if self.ends_phase(epoch):
            arrays[f"{prefix}test/wrong"] = _packed(wrong_N)
        if epoch == min(self.spec.drop_epoch, self.run.num_epochs):
            self.compare_with_ensemble(prefix, logits_NK, values, arrays)

    def compare_with_ensemble(
        self, prefix: str, logits_NK: Tensor, values: dict[str, float], arrays: dict[str, Array]
    ) -> None:
        """Read the ensemble itself, with the weights, and how far each average is from it on the test set."""
        ensemble = self.run.ensemble
        if ensemble is None or not ensemble.count:
            return
        if prefix:
            values[f"ensemble/{prefix}total_variation"] = ensemble.total_variation(logits_NK)
            return
        values["ensemble/test/loss"], wrong_N = ensemble.loss_and_wrong(self.run.test_set.y_N)
        values["ensemble/test/error"] = wrong_N.double().mean().item()
        arrays["ensemble/test/wrong"] = _packed(wrong_N)

    def logits(self, model: nn.Module, images: Images) -> Tensor:
        """What a model in evaluation mode says of images, (N, K)."""
        model.eval()
        logits: list[Tensor] = []
        with torch.inference_mode(), self.run.autocast():
            for start in range(0, len(images), EVAL_BATCH):
                logits.append(model(images.x_NCHW[start : start + EVAL_BATCH]).float())
        return torch.cat(logits)


def _packed(wrong_N: Tensor) -> Array:
    """Booleans as bits, the first in the highest, as ``numpy.packbits`` does."""
    flags = functional.pad(wrong_N.cpu().to(torch.uint8), (0, -len(wrong_N) % 8)).view(-1, 8)
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return Array("bits", len(wrong_N), bytes((flags * powers).sum(dim=1, dtype=torch.uint8).tolist()))
