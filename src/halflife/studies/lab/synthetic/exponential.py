"""Train a net with decay and its twin with a growing learning rate on the same batches, and measure the angle between them.

Every number is a function of the seed, and a run takes seconds: one that was stopped starts over.

Shapes: B batch, C channels, H height, W width, P trained weights.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from halflife.errors import RunFailedError, RunStoppedError
from halflife.studies.lab.cost import Costs
from halflife.studies.lab.images.data import Images, image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.specs.exponential import ExponentialRun
from halflife.studies.store.records import Reading

__all__ = ["angle_between", "train"]

DTYPES = {"float64": torch.float64, "float32": torch.float32}
EVAL_BATCH = 500


def train(
    spec: ExponentialRun,
    *,
    sink: Callable[[Reading], None],
    folder: Path | None = None,
    progress: Callable[[int, int, float], None] | None = None,
    data_folder: str | None = None,
    device: str = "cpu",
    parent: Path | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, float]:
    """Run what ``spec`` describes.

    Readings:

    - ``angle``: between all trained weights of the two, in radians; ``largest_angle`` over the steps so far;
    - ``norm_ratio``: the twin's norm over the run's; ``predicted_norm_ratio``: a^-t, or 1 of a constant twin;
      ``largest_norm_error``: the largest relative difference of the two so far;
    - ``loss`` and ``twin/loss``: training losses, means over the steps since the last reading;
      ``largest_loss_difference`` of any step so far;
    - ``weight_norm``, ``twin/weight_norm``, ``lr``, ``twin/lr``;
    - at the end ``test/error`` and ``twin/test/error``, BatchNorm with the statistics of the training set, and
      ``test/differing``: the share of test images that the two put into different classes.

    The arguments are those of every trainer (`halflife.studies.lab`). ``progress`` is told the loss of the first run, and
    ``stop`` is asked, at every reading. A run that was stopped starts over. Float64 needs a device that has it.

    Returns:
        What it cost: `halflife.studies.lab.cost.Costs.summary`, each image counted once for the two.

    Raises:
        RunFailedError: There are fewer images than one batch, or a loss became NaN or infinite.
        RunStoppedError: It was asked to stop.
    """
    costs = Costs()
    run = _Twins(spec, torch.device(device), data_folder)
    for x_BCHW, y_B in run.batches():
        with costs.of("training"):
            run.one_step(x_BCHW, y_B)
        last = run.step == spec.last_step
        if last or run.step % spec.eval_every == 0:
            with costs.of("evaluation"):
                reading = run.reading()
            loss = reading.values["loss"]
            if not math.isfinite(loss + reading.values["twin/loss"] + reading.values["angle"]):
                raise RunFailedError(
                    f"a loss became {loss} or {reading.values['twin/loss']} by step {run.step} (lr {spec.lr:g}, seed"
                    f" {spec.seed}): lower the learning rate"
                )
            sink(reading)
            if progress is not None:
                progress(run.step, spec.last_step, loss)
            if stop() and not last:
                raise RunStoppedError(f"stopped after step {run.step} of {spec.last_step}: it will start over")
    costs.samples = spec.last_step * spec.batch_size
    return costs.summary("images")


def angle_between(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """The angle between two lists of tensors, each list taken as one vector, in radians.

    By 2 asin(|u - v| / 2) of the unit vectors: the arc cosine of a product near 1 would not show angles below 1e-8.

    Args:
        one: Tensors.
        other: As many, of the same shapes.

    Returns:
        A number, in float64.
    """
    u_P, v_P = (torch.cat([part.detach().double().flatten() for part in parts]) for parts in (one, other))
    half_chord = torch.linalg.vector_norm(u_P / torch.linalg.vector_norm(u_P) - v_P / torch.linalg.vector_norm(v_P)) / 2
    return 2 * torch.asin(half_chord.clamp(max=1))


class _Twins:
    """The two nets, their optimizers, and what is read of them."""

    def __init__(self, spec: ExponentialRun, device: torch.device, data_folder: str | None) -> None:
        self.spec, self.step = spec, 0
        source = read_source(spec.data, data_folder)
        train_set, test_set = image_tensors(
            source, num_train=spec.num_train, num_test=spec.num_test, downsample=spec.downsample, device=device
        )
        if len(train_set) < spec.batch_size:
            raise RunFailedError(
                f"{len(train_set)} training images make no batch of {spec.batch_size}: lower batch_size"
            )
        dtype = DTYPES[spec.dtype]
        self.train_set, self.test_set = (
            Images(images.x_NCHW.to(dtype), images.y_N, images.black_C.to(dtype)) for images in (train_set, test_set)
        )
        height, width = self.train_set.x_NCHW.shape[2:]
        self.nets = [
            build_model(
                spec.model,
                width=spec.width,
                blocks=spec.blocks,
                in_channels=source.train.shape[0],
                num_classes=source.num_classes,
                seed=spec.seed,
                image_size=(height, width),
            ).to(device, dtype)
            for _ in range(2)
        ]
        self.weights = [[p for p in net.parameters() if p.requires_grad] for net in self.nets]
        # torch's own SGD is the definition: weight_decay is the L2 penalty, its momentum starts with the first gradient.
        self.optimizers = [
            torch.optim.SGD(weights, lr=spec.lr, momentum=spec.momentum, weight_decay=lam)
            for weights, lam in zip(self.weights, (spec.lam, 0.0), strict=True)
        ]
        if spec.twin == "matched" and spec.momentum > 0:
            for weight in self.weights[1]:
                buffer = weight.detach() * ((spec.root - 1) / (spec.root * spec.lr))
                self.optimizers[1].state[weight]["momentum_buffer"] = buffer
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.largest = {"angle": zero, "norm_error": zero, "loss_difference": zero}
        self.losses = [zero, zero]
        self.since = 0

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of all steps, epoch after epoch."""
        spec = self.spec
        epochs = (
            shuffled_batches(self.train_set, spec.batch_size, seed=spec.seed, epoch=epoch)
            for epoch in itertools.count()
        )
        return itertools.islice(itertools.chain.from_iterable(epochs), spec.last_step)

    def one_step(self, x_BCHW: Tensor, y_B: Tensor) -> None:
        """One step of both; nothing waits for the device."""
        for group in self.optimizers[1].param_groups:
            group["lr"] = self.spec.twin_lr(self.step)
        found = []
        for net, optimizer in zip(self.nets, self.optimizers, strict=True):
            loss = functional.cross_entropy(net(x_BCHW), y_B)
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            optimizer.step()
            found.append(loss.detach().double())
        self.step += 1
        self.since += 1
        self.losses = [total + loss for total, loss in zip(self.losses, found, strict=True)]
        ratio = self.norm(1) / self.norm(0)
        for name, value in (
            ("angle", angle_between(*self.weights)),
            ("norm_error", (ratio / self.predicted_ratio - 1).abs()),
            ("loss_difference", (found[0] - found[1]).abs()),
        ):
            self.largest[name] = torch.maximum(self.largest[name], value)

    @property
    def predicted_ratio(self) -> float:
        """What the twin's norm over the run's should be now."""
        return 1.0 if self.spec.twin == "constant" else self.spec.root**-self.step

    def norm(self, which: int) -> Tensor:
        """Of all trained weights of the run (0) or the twin (1)."""
        norms = [torch.linalg.vector_norm(weight.detach().double()) for weight in self.weights[which]]
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total

    def reading(self) -> Reading:
        """What is read now."""
        spec = self.spec
        values = {
            "angle": angle_between(*self.weights).item(),
            **{f"largest_{name}": value.item() for name, value in self.largest.items()},
            "norm_ratio": (self.norm(1) / self.norm(0)).item(),
            "predicted_norm_ratio": self.predicted_ratio,
            "lr": spec.lr,
            "twin/lr": spec.twin_lr(self.step - 1),
        }
        for which, prefix in enumerate(("", "twin/")):
            values[f"{prefix}loss"] = self.losses[which].item() / self.since
            values[f"{prefix}weight_norm"] = self.norm(which).item()
            self.losses[which] = torch.zeros_like(self.losses[which])
        self.since = 0
        if self.step == spec.last_step:
            classes = [self.classes(net) for net in self.nets]
            for found_N, prefix in zip(classes, ("", "twin/"), strict=True):
                values[f"{prefix}test/error"] = (found_N != self.test_set.y_N).double().mean().item()
            values["test/differing"] = (classes[0] != classes[1]).double().mean().item()
        epoch = self.step / (len(self.train_set) // spec.batch_size)
        return Reading(step=self.step, epoch=epoch, values=values)

    def classes(self, net: nn.Module) -> Tensor:
        """The class of each test image, (N,), with BatchNorm's statistics of the training set."""
        # The running ones are of the last steps, in which the two nets' scales moved differently.
        update_bn(torch.split(self.train_set.x_NCHW, EVAL_BATCH), net)
        net.eval()
        with torch.inference_mode():
            return torch.cat([net(x_BCHW).argmax(dim=1) for x_BCHW in torch.split(self.test_set.x_NCHW, EVAL_BATCH)])
