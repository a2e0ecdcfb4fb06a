"""One run on images: its state, and what a training step does with it.

Everything after an epoch is a function of the weights, the optimizer's state, the averages and the epoch's number: the order
of the data is seeded by (seed, epoch). So a checkpoint at an epoch's end resumes to the same bits.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from halflife.errors import RunFailedError
from halflife.optim.attaching import attach
from halflife.rules.norms import Sphere
from halflife.rules.registry import schedule_from
from halflife.studies.lab.images.data import image_tensors, noisy_labels, shuffled_batches
from halflife.studies.lab.images.ensemble import SnapshotEnsemble
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.optimizers import training_of
from halflife.studies.lab.images.readings import Reader
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.images.state import OptimizerState, named_tensors, read_state, start_from, weight_norm
from halflife.studies.lab.images.trace import Trace
from halflife.studies.lab.precision import Mode
from halflife.studies.lab.tensor_files import check_alike, check_count, kept_file, readable, write_tensors
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.images import ImageBranch, ImageRun
from halflife.studies.store.records import Reading

__all__ = ["ImageLoop", "open_run"]

CHECKPOINT = "checkpoint.safetensors"


def open_run(spec: ImageRun | ImageBranch, context: Context) -> Run:
    """A run on images, which is looked at after every epoch."""
    if isinstance(spec, ImageRun):
        return ImageLoop(spec, context, run=spec.digest())
    start = (kept_file(context.parent, spec), spec.weights, spec.of.digest())
    return ImageLoop(spec.then, context, run=spec.digest(), start=start)


class ImageLoop:
    """The model, its averages and the optimizer of one run, and what an epoch does with them.

    Args:
        spec: The run.
        context: Where it is trained.
        run: The digest of the whole run's spec, a branch's for example, which stands in what it writes.
        start: The file of weights to start from, which of them, and the digest of the run that wrote it (``None``:
            initial weights).

    Raises:
        RunFailedError: There are fewer images than one batch, or nothing where it is to start from.
    """

    unit = "images"

    def __init__(
        self, spec: ImageRun, context: Context, *, run: str, start: tuple[Path, str, str] | None = None
    ) -> None:
        device = context.device
        self.spec, self.device, self.run, self.samples = spec, device, run, spec.batch_size
        source = read_source(spec.data, context.data_folder)
        self.train_set, self.test_set = image_tensors(
            source,
            num_train=spec.num_train,
            num_test=spec.num_test,
            downsample=spec.downsample,
            device=device,
        )
        self.num_classes = source.num_classes
        if spec.label_noise and not spec.fresh_label_noise:
            self.train_set = replace(self.train_set, y_N=self.noisy_labels())
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
            image_size=(self.train_set.x_NCHW.shape[2], self.train_set.x_NCHW.shape[3]),
        )
        # torch's annotations of Module.to do not know memory_format, which its documentation does.
        self.model: nn.Module = model.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if start is not None:
            path, weights, parent = start
            start_from(path, weights, self.model, run=parent)
        self.weights = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        training = training_of(spec, self.model, steps_per_epoch=self.steps_per_epoch)
        self.optimizer, self.decay = training.optimizer, training.decay
        self.lr = _learning_rate(spec, self.steps_per_epoch)
        self.trace = Trace(training.decayed, self.optimizer, self.decay) if spec.trace else None
        if spec.sphere > 0:
            with torch.no_grad():
                torch._foreach_mul_(self.weights, spec.sphere / weight_norm(self.weights))
            attach(self.optimizer, Sphere(spec.sphere), select="all")
        self.averages = {f"ema-{decay:g}": _average(self.model, decay) for decay in spec.ema}
        self.ensemble: SnapshotEnsemble | None = None
        if spec.ensemble_every:
            self.ensemble = SnapshotEnsemble(len(self.test_set), self.num_classes, device)
        mode = Mode(spec.precision, device)
        self.autocast, self.scaler = mode.autocast, mode.scaler
        self.running_loss = 0.0
        self.about = f"lr {spec.lr:g}, {f'decay {spec.decay}' if spec.decay else f'lam {spec.lam:g}'}, seed {spec.seed}"

    def noisy_labels(self, epoch: int | None = None) -> Tensor:
        """The training labels with noise, of one epoch or (``None``) of all."""
        spec = self.spec
        return noisy_labels(self.train_set.y_N, spec.label_noise, self.num_classes, seed=spec.seed, epoch=epoch)

    @property
    def epoch(self) -> float:
        """Passes over the training set done."""
        return self.step / self.steps_per_epoch

    @property
    def epochs_begun(self) -> int:
        """The same, a part of one counted as one: a run that is cut ends within an epoch."""
        return math.ceil(self.epoch)

    def reading(self) -> Reading | None:
        """What is read after an epoch."""
        return Reader(self).reading(self.epochs_begun, self.running_loss) if self.step else None

    def train(self) -> Iterator[float]:
        """Train epoch after epoch; the mean loss of each."""
        while self.step < self.num_steps:
            self.running_loss = self.one_epoch()
            yield self.running_loss

    def one_epoch(self) -> float:
        """Train for one epoch; its mean loss."""
        epoch = self.epochs_begun
        self.model.train()
        total = torch.zeros((), device=self.device)
        num_batches, scaled = 0, self.scaler.is_enabled()
        for x_BCHW, y_B in self.batches(epoch):
            if self.step == self.num_steps:
                break
            with self.autocast():
                logits_BK = self.model(x_BCHW)
                loss = functional.cross_entropy(logits_BK, y_B, label_smoothing=self.spec.label_smoothing)
            self.optimizer.zero_grad()
            torch.autograd.backward(self.scaler.scale(loss) if scaled else loss)
            lr = self.lr(self.step)
            for group in self.optimizer.param_groups:
                group["lr"] = lr
            if self.trace is not None:
                if scaled:
                    self.scaler.unscale_(self.optimizer)
                self.trace.before()
            if scaled:
                self.scaler.step(self.optimizer)
                self.scaler.update()
            else:
                self.optimizer.step()
            if self.trace is not None:
                self.trace.after()
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
        train_set = self.train_set
        if spec.fresh_label_noise:
            train_set = replace(train_set, y_N=self.noisy_labels(epoch))
        return shuffled_batches(train_set, spec.batch_size, seed=spec.seed, epoch=epoch, augmentation=spec.augmentation)

    def kept_epochs(self) -> list[int]:
        """The names under which the weights are kept now; those of epochs that a cut run lacks, too."""
        epoch, last = self.epochs_begun, self.step == self.num_steps
        return [at for at in self.spec.keep_at if at == epoch or (last and at > epoch)]

    def keep(self, folder: Path) -> None:
        """Keep the weights and their averages for runs that start from them."""
        for at in self.kept_epochs():
            tensors = named_tensors(self.model, self.averages)
            write_tensors(folder / f"epoch-{at}.safetensors", tensors, {"epoch": self.epochs_begun}, run=self.run)

    @property
    def evaluates(self) -> bool:
        """Whether both sets are evaluated after this epoch."""
        return Reader(self).evaluates_at(self.epochs_begun)

    def _tensors(self) -> dict[str, Tensor]:
        return named_tensors(self.model, self.averages) | ({} if self.ensemble is None else self.ensemble.tensors())

    def save(self, folder: Path) -> None:
        """Write the checkpoint."""
        tensors, groups = OptimizerState(self.spec, self.optimizer).parts()
        values = {"step": self.step, "scaler": self.scaler.state_dict(), "groups": groups}
        write_tensors(folder / CHECKPOINT, self._tensors() | tensors, values, run=self.run)

    def load(self, folder: Path) -> bool:
        """Go on from the checkpoint; whether there is one."""
        path = folder / CHECKPOINT
        found = read_state(path, self._tensors(), run=self.run)
        if found is None:
            return False
        tensors, state = found
        with readable(path):
            self.step = check_count("step", state.get("step"), self.num_steps)
            if self.step % self.steps_per_epoch and self.step < self.num_steps:
                raise ValueError(f"step is {self.step}, expected the end of an epoch of {self.steps_per_epoch} steps")
            check_alike("scaler", state.get("scaler"), self.scaler.state_dict())
            self.scaler.load_state_dict(state["scaler"])
            OptimizerState(self.spec, self.optimizer).load(tensors, state.get("groups"), self.step)
        return True


def _learning_rate(spec: ImageRun, steps_per_epoch: int) -> Callable[[int], float]:
    """The learning rate of a step from the number of steps done."""
    if not spec.lr_schedule:
        drop = spec.drop_epoch * steps_per_epoch
        return lambda step: spec.lr if step < drop else spec.lr_after_drop
    schedule, num_steps = schedule_from(spec.lr_schedule), spec.num_epochs * steps_per_epoch
    done: Callable[[int], int] = {
        "steps": lambda step: step,
        "epochs": lambda step: step // steps_per_epoch,
        "percent": lambda step: 100 * step // num_steps,
    }[spec.lr_schedule_unit]
    return lambda step: spec.lr * schedule(done(step))


def _average(model: nn.Module, decay: float) -> AveragedModel:
    ema = get_ema_multi_avg_fn(decay)  # type: ignore[no-untyped-call]  # torch has no annotations for it
    return AveragedModel(model, multi_avg_fn=ema)
