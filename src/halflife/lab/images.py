"""Train one image classifier: one readable loop with readings, moving averages and exact resume.

Everything after an epoch is a function of the weights, the averages and the epoch's number: the order of the data is
seeded by (seed, epoch), SGD without momentum has no state. So a checkpoint at an epoch's end resumes to the same bits.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn

from halflife.attach import attach
from halflife.errors import RunFailedError, RunStoppedError
from halflife.files import write_whole
from halflife.lab.cost import Costs
from halflife.lab.data import Images, image_tensors, shuffled_batches
from halflife.lab.models import build_model
from halflife.lab.precision import autocast_to
from halflife.lab.sources import read_source
from halflife.records import Array, Reading
from halflife.rules.basic import Decoupled
from halflife.select import param_groups
from halflife.specs.images import ImageRun
from halflife.units import half_life

__all__ = ["Progress", "train"]

EVAL_BATCH = 500

Progress = Callable[[int, int, float], None]
"""Called after each epoch with the steps done, the steps in all and the epoch's mean training loss."""


def train(
    spec: ImageRun,
    *,
    sink: Callable[[Reading], None],
    folder: Path,
    progress: Progress | None = None,
    data_folder: str | None = None,
    device: str = "cpu",
    parent: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Train the run that ``spec`` describes, from its last checkpoint if there is one.

    Args:
        spec: The run.
        sink: Gets one reading an epoch; after a resume, those since the checkpoint again, equal to the bit.
        folder: Where ``checkpoint.safetensors`` is kept; it is replaced by renaming.
        progress: Told after each epoch.
        data_folder: Where a data set that is not shipped lies.
        device: A torch device.
        parent: Not used: a run on images starts from no other.
        stop: Asked after each epoch; once it says yes, the run writes a checkpoint and ends.

    Returns:
        What it cost: `halflife.lab.cost.Costs.summary`.

    Raises:
        RunFailedError: The loss became NaN or infinite.
        RunStoppedError: It was asked to stop.
    """
    run = _Run(spec, torch.device(device), data_folder)
    costs = Costs()
    checkpoint = folder / "checkpoint.safetensors"
    first_epoch = run.load(checkpoint)
    for epoch in range(first_epoch, run.num_epochs):
        before = run.step
        with costs.of("training"):
            loss = run.one_epoch(epoch)
        costs.samples += (run.step - before) * spec.batch_size
        if progress is not None:
            progress(run.step, run.num_steps, loss)
        if not math.isfinite(loss):
            raise RunFailedError(
                f"the training loss became {loss} in epoch {epoch + 1} (lr {spec.lr:g}, lam {spec.lam:g}, seed"
                f" {spec.seed}): lower the learning rate"
            )
        with costs.of("evaluation"):
            sink(run.reading(epoch + 1, loss))
        asked = stop() and epoch + 1 < run.num_epochs
        if asked or run.evaluates_at(epoch + 1):
            run.save(checkpoint, epoch + 1)
        if asked:
            raise RunStoppedError(f"stopped after epoch {epoch + 1} of {run.num_epochs}: a checkpoint is kept")
    return costs.summary("images")


class _Run:
    """The state of one run, and the few things that are done with it."""

    def __init__(self, spec: ImageRun, device: torch.device, data_folder: str | None) -> None:
        self.spec, self.device = spec, device
        source = read_source(spec.data, data_folder)
        self.train_set, self.test_set = image_tensors(
            source,
            num_train=spec.num_train,
            num_test=spec.num_test,
            downsample=spec.downsample,
            device=device,
        )
        self.steps_per_epoch = len(self.train_set) // spec.batch_size
        if self.steps_per_epoch == 0:
            raise RunFailedError(
                f"{len(self.train_set)} training images make no batch of {spec.batch_size}: lower batch_size"
            )
        whole = spec.num_epochs * self.steps_per_epoch
        self.num_steps = whole if spec.max_steps is None else min(spec.max_steps, whole)
        self.num_epochs = math.ceil(self.num_steps / self.steps_per_epoch)
        self.step = 0
        model = build_model(
            spec.model,
            width=spec.width,
            blocks=spec.blocks,
            in_channels=source.train.shape[0],
            num_classes=source.num_classes,
            seed=spec.seed,
        )
        # torch's annotations of Module.to do not know memory_format, which its documentation does.
        self.model: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        # The papers' code decays every parameter, BatchNorm's gains and the biases included.
        groups = param_groups(self.model, policy="everything", weight_decay=spec.lam)
        self.optimizer = torch.optim.SGD(groups, lr=spec.lr, fused=True)
        self.decay = attach(self.optimizer, Decoupled(), peak_lr=spec.lr) if spec.lam > 0 else None
        self.averages = {decay: _average(self.model, decay) for decay in spec.ema}
        self.scaler = torch.amp.GradScaler(device.type, enabled=spec.precision == "float16")

    def evaluates_at(self, epoch: int) -> bool:
        """Whether both sets are evaluated after this many epochs."""
        return epoch % self.spec.eval_every == 0 or epoch in {self.spec.drop_epoch, self.num_epochs}

    def one_epoch(self, epoch: int) -> float:
        """Train for one epoch; returns its mean training loss."""
        lr = self.spec.lr if epoch < self.spec.drop_epoch else self.spec.lr_after_drop
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.model.train()
        total = torch.zeros((), device=self.device)
        num_batches = 0
        for x_BCHW, y_B in self.batches(epoch):
            if self.step == self.num_steps:
                break
            with self.autocast():
                logits_BK = self.model(x_BCHW)
                loss = functional.cross_entropy(logits_BK, y_B, label_smoothing=self.spec.label_smoothing)
            self.optimizer.zero_grad()
            torch.autograd.backward(self.scaler.scale(loss))
            self.scaler.step(self.optimizer)
            self.scaler.update()
            for average in self.averages.values():
                average.update_parameters(self.model)
            # Readings are of the cross-entropy itself, so that runs with and without smoothing compare.
            plain = loss if not self.spec.label_smoothing else functional.cross_entropy(logits_BK.float(), y_B)
            total += plain.detach()
            num_batches += 1
            self.step += 1
        return total.item() / num_batches

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The training batches of an epoch. Everything else reads the images as they are."""
        spec = self.spec
        return shuffled_batches(
            self.train_set, spec.batch_size, seed=spec.seed, epoch=epoch, augmentation=spec.augmentation
        )

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """Autocast to the run's precision; nothing in float32."""
        return autocast_to(self.spec.precision, self.device)

    def reading(self, epoch: int, running_loss: float) -> Reading:
        """What is read after this many epochs."""
        lr = self.optimizer.param_groups[0]["lr"]
        # In float64, so that the sum of squares is the same to the last digit shown on every machine.
        squares = [parameter.detach().double().square().sum() for parameter in self.model.parameters()]
        norm = math.sqrt(torch.stack(squares).sum().item())
        fraction = float(self.decay.fractions()[0]) if self.decay is not None else 0.0
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
        if self.evaluates_at(epoch):
            keep = epoch in {self.spec.drop_epoch, self.num_epochs}
            for name, model in self.models():
                for part, images in (("train", self.train_set), ("test", self.test_set)):
                    loss, wrong_N = self.evaluate(model, images)
                    values[f"{name}{part}/loss"] = loss
                    values[f"{name}{part}/error"] = wrong_N.double().mean().item()
                    if keep and part == "test":
                        arrays[f"{name}test/wrong"] = _packed(wrong_N)
        return Reading(step=self.step, epoch=self.step / self.steps_per_epoch, values=values, arrays=arrays)

    def models(self) -> Iterator[tuple[str, nn.Module]]:
        """The weights and their averages, each with the prefix of its readings."""
        yield "", self.model
        for decay, average in self.averages.items():
            # An average of weights has BatchNorm statistics of its own: one pass over the training set, in order.
            size = self.spec.batch_size
            batches = (
                self.train_set.x_NCHW[start : start + size] for start in range(0, self.steps_per_epoch * size, size)
            )
            with self.autocast():
                update_bn(batches, average)
            yield f"ema-{decay:g}/", average

    def evaluate(self, model: nn.Module, images: Images) -> tuple[float, Tensor]:
        """The mean cross-entropy and which examples are wrong, BatchNorm in evaluation mode."""
        model.eval()
        logits: list[Tensor] = []
        with torch.inference_mode(), self.autocast():
            for start in range(0, len(images), EVAL_BATCH):
                logits.append(model(images.x_NCHW[start : start + EVAL_BATCH]).float())
        logits_NK = torch.cat(logits)
        loss = functional.cross_entropy(logits_NK, images.y_N).item()
        return loss, logits_NK.argmax(dim=1) != images.y_N

    def _tensors(self) -> dict[str, Tensor]:
        named = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for decay, average in self.averages.items():
            named |= {f"ema-{decay:g}.{name}": value for name, value in average.state_dict().items()}
        return named

    def save(self, path: Path, epoch: int) -> None:
        """Write the checkpoint aside and rename it."""
        meta = {"epoch": str(epoch), "step": str(self.step), "scaler": json.dumps(self.scaler.state_dict())}
        # safetensors wants each tensor dense in its own order of dimensions, channels_last is not.
        write_whole(path, save({name: value.contiguous() for name, value in self._tensors().items()}, meta))

    def load(self, path: Path) -> int:
        """Go on from the checkpoint; returns the epochs done, 0 when there is none."""
        if not path.exists():
            return 0
        with safe_open(path, framework="pt", device=str(self.device)) as file:
            meta = file.metadata()
            for name, value in self._tensors().items():
                value.copy_(file.get_tensor(name))
        self.step = int(meta["step"])
        scaler = json.loads(meta["scaler"])
        if scaler:
            self.scaler.load_state_dict(scaler)
        return int(meta["epoch"])


def _average(model: nn.Module, decay: float) -> AveragedModel:
    ema = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no annotations for it
    return AveragedModel(model, multi_avg_fn=ema)


def _packed(wrong_N: Tensor) -> Array:
    """Booleans as bits, the first in the highest, as ``numpy.packbits`` does."""
    flags = functional.pad(wrong_N.cpu().to(torch.uint8), (0, -len(wrong_N) % 8)).view(-1, 8)
    powers = torch.tensor([128, 64, 32, 16, 8, 4, 2, 1], dtype=torch.uint8)
    return Array("bits", len(wrong_N), bytes((flags * powers).sum(dim=1, dtype=torch.uint8).tolist()))
