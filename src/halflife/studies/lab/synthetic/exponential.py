"""Train a net with decay and its twin with a growing learning rate on the same batches, and measure the angle between them.

Every number is a function of the seed, and a run takes seconds: one that was stopped starts over.

Shapes: B batch, C channels, H height, W width, P trained weights.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from halflife.errors import RunFailedError
from halflife.studies.lab.images.data import Images, image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.exponential import ExponentialRun
from halflife.studies.store.records import Reading

__all__ = ["angle_between", "open_run"]

DTYPES = {"float64": torch.float64, "float32": torch.float32}
EVAL_BATCH = 500


def open_run(spec: ExponentialRun, context: Context) -> Run:
    """The two nets of a run."""
    return _Twins(spec, context)


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
    """The two nets, their optimizers, and what is read of them. Each image is counted once for the two.

    Float64 needs a device that has it.

    Readings:

    - ``angle``: between all trained weights of the two, in radians; ``largest_angle`` over the steps so far;
    - ``norm_ratio``: the twin's norm over the run's; ``predicted_norm_ratio``: a^-t, or 1 of a constant twin;
      ``largest_norm_error``: the largest relative difference of the two so far;
    - ``loss`` and ``twin/loss``: training losses, means over the steps since the last reading;
      ``largest_loss_difference`` of any step so far;
    - ``weight_norm``, ``twin/weight_norm``, ``lr``, ``twin/lr``;
    - at the end ``test/error`` and ``twin/test/error``, BatchNorm with the statistics of the training set, and
      ``test/differing``: the share of test images that the two put into different classes.
    """

    unit = "images"

    def __init__(self, spec: ExponentialRun, context: Context) -> None:
        self.spec, self.step, device = spec, 0, context.device
        self.num_steps, self.samples = spec.last_step, spec.batch_size
        source = read_source(spec.data, context.data_folder)
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
        self.weights_of = [[p for p in net.parameters() if p.requires_grad] for net in self.nets]
        # torch's own SGD is the definition: weight_decay is the L2 penalty, its momentum starts with the first gradient.
        self.optimizers = [
            torch.optim.SGD(weights, lr=spec.lr, momentum=spec.momentum, weight_decay=lam)
            for weights, lam in zip(self.weights_of, (spec.lam, 0.0), strict=True)
        ]
        if spec.twin == "matched" and spec.momentum > 0:
            for weight in self.weights_of[1]:
                buffer = weight.detach() * ((spec.root - 1) / (spec.root * spec.lr))
                self.optimizers[1].state[weight]["momentum_buffer"] = buffer
        zero = torch.zeros((), dtype=torch.float64, device=device)
        self.largest = {"angle": zero, "norm_error": zero, "loss_difference": zero}
        self.losses = [zero, zero]
        self.since = 0
        self.weights = [*self.weights_of[0], *self.weights_of[1]]
        self.about = f"lr {spec.lr:g}, seed {spec.seed}"

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of all steps, epoch after epoch."""
        spec = self.spec
        epochs = (
            shuffled_batches(self.train_set, spec.batch_size, seed=spec.seed, epoch=epoch)
            for epoch in itertools.count()
        )
        return itertools.islice(itertools.chain.from_iterable(epochs), spec.last_step)

    def train(self) -> Iterator[float]:
        """All steps; the mean loss of the first net at each reading."""
        for x_BCHW, y_B in self.batches():
            self.one_step(x_BCHW, y_B)
            if self.step % self.spec.eval_every == 0 or self.step == self.num_steps:
                yield self.losses[0].item() / self.since

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
            ("angle", angle_between(*self.weights_of)),
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
        norms = [torch.linalg.vector_norm(weight.detach().double()) for weight in self.weights_of[which]]
        total: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        return total

    def reading(self) -> Reading | None:
        """What is read now."""
        if not self.step:
            return None
        spec = self.spec
        values = {
            "angle": angle_between(*self.weights_of).item(),
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
