"""Sums of numbers of disparate scales, rounded to k bits: one sum, a neuron with a null direction, the logits of a softmax.

All is computed in float64, and what is named is rounded to k bits of mantissa: with 23 that is float32, operation by operation.
Every number is a function of the seed, and a run takes seconds: one that was stopped starts over.

Shapes: K numbers of bits, E spacings, J offsets, R replicas, I inputs, B batch, N test images, C classes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import RunFailedError
from halflife.precision import round_to
from halflife.studies.lab.images.data import image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.scales import ScalesRun
from halflife.studies.store.records import Reading

__all__ = ["open_run"]

MIDDLE = 1.5  # an offset over the power of two below it
AROUND = (1.25, 1.75)  # the same, of offsets that are drawn


def open_run(spec: ScalesRun, context: Context) -> Run:
    """The case that the spec names."""
    cases: dict[str, type[_Sum] | type[_Neuron] | type[_Softmax]] = {
        "sum": _Sum,
        "neuron": _Neuron,
        "softmax": _Softmax,
    }
    return cases[spec.case](spec, context)


class _Case:
    """What the three have in common."""

    unit = "samples"

    def __init__(self, spec: ScalesRun, context: Context) -> None:
        self.spec, self.step, self.device = spec, 0, context.device
        self.num_steps, self.samples = spec.last_step, spec.batch_size
        self.weights: list[Tensor] = []
        self.about = f"lr {spec.lr:g}, lam {spec.lam:g}, seed {spec.seed}"
        # Not of lam, drift or bits, so that runs that differ in them are paired; drawn on the CPU, whatever the device.
        self.generator = torch.Generator().manual_seed(seed_of(f"scales/{spec.case}/{spec.seed}"))

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers."""
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.device)

    def uniform(self, *shape: int) -> Tensor:
        """Numbers from [0, 1)."""
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64).to(self.device)


class _Sum(_Case):
    """h = fl_k(s + d) - s for each k and spacing 2^e, each with numbers d of its own.

    Readings, at the end, of each ``k/e``:

    - ``lost/k/e``: the share of d whose sign h does not have; h = 0 has none;
    - ``error_sq/k/e``: the mean of (h - d)^2.
    """

    def __init__(self, spec: ScalesRun, context: Context) -> None:
        super().__init__(spec, context)
        self.samples = spec.batch_size * len(spec.cells)
        shape = (len(spec.bits), len(spec.log2_ulps))
        self.lost_KE = torch.zeros(shape, dtype=torch.float64, device=self.device)
        self.error_KE = torch.zeros_like(self.lost_KE)
        self.weights = [self.error_KE]

    def train(self) -> Iterator[float]:
        """All sums; the mean squared error so far."""
        spec = self.spec
        spacing_E1 = 2.0 ** torch.tensor(spec.log2_ulps, dtype=torch.float64, device=self.device)[:, None]
        while self.step < self.num_steps:
            for row, k in enumerate(spec.bits):
                s_E1 = MIDDLE * 2.0**k * spacing_E1
                d_EB = self.normal(len(spec.log2_ulps), spec.batch_size)
                h_EB = round_to(s_E1 + d_EB, k) - s_E1
                self.lost_KE[row] += (h_EB.sign() != d_EB.sign()).sum(dim=1)
                self.error_KE[row] += (h_EB - d_EB).square().sum(dim=1)
            self.step += 1
            yield self.error_KE.mean().item() / (self.step * spec.batch_size)

    def reading(self) -> Reading | None:
        """What is read at the end."""
        if self.step < self.num_steps:
            return None
        count = self.step * self.spec.batch_size
        values = {}
        for name, total_KE in (("lost", self.lost_KE), ("error_sq", self.error_KE)):
            means = (total_KE / count).flatten().tolist()
            values.update({f"{name}/{k}/{e}": mean for (k, e), mean in zip(self.spec.cells, means, strict=True)})
        return Reading(step=self.step, epoch=self.step, values=values)


class _Neuron(_Case):
    """All neurons of a run: those of every k see the same examples.

    Readings, means over replicas, of each ``k``:

    - ``loss/k``: the logistic loss in k bits on fresh examples, the mean over the steps since the last reading;
    - ``offset/k``: what a and b have in common, (a + b) / 2;
    - ``norm/k``: ||w||.
    """

    def __init__(self, spec: ScalesRun, context: Context) -> None:
        super().__init__(spec, context)
        self.samples = spec.num_replicas * spec.batch_size
        direction_RI = self.normal(spec.num_replicas, spec.num_inputs)
        self.u_R1I = (direction_RI / direction_RI.norm(dim=1, keepdim=True))[:, None]
        shape = (len(spec.bits), spec.num_replicas)
        self.w_KRI = torch.zeros(*shape, spec.num_inputs, dtype=torch.float64, device=self.device)
        self.a_KR1, self.b_KR1 = (torch.zeros(*shape, 1, dtype=torch.float64, device=self.device) for _ in range(2))
        self.weights = [self.w_KRI, self.a_KR1, self.b_KR1]
        self.loss_K = torch.zeros(shape[0], dtype=torch.float64, device=self.device)
        self.since = 0

    def rounded(self, x_KRB: Tensor) -> Tensor:
        """Each to its own number of bits."""
        return torch.stack([round_to(x_RB, k) for x_RB, k in zip(x_KRB, self.spec.bits, strict=True)])

    @torch.inference_mode()
    def train(self) -> Iterator[float]:
        """All steps; the mean loss at each reading."""
        while self.step < self.num_steps:
            self.one_step()
            if self.step % self.spec.eval_every == 0 or self.step == self.num_steps:
                yield self.loss_K.mean().item() / self.since

    def one_step(self) -> None:
        """One step of every neuron, by the gradient of the sums as they are rounded."""
        spec = self.spec
        x_RIB = self.normal(spec.num_replicas, spec.num_inputs, spec.batch_size)
        share_RB = torch.sigmoid(spec.margin * (self.u_R1I @ x_RIB)[:, 0])
        y_RB = torch.where(self.uniform(*share_RB.shape) < share_RB, 1.0, -1.0).double()
        push_R1 = spec.lr * spec.drift * (1 + self.normal(spec.num_replicas, 1))
        sum_KRB = self.rounded((self.w_KRI[:, :, None] @ x_RIB)[:, :, 0])
        z_KRB = self.rounded(self.rounded(self.a_KR1 + sum_KRB) - self.b_KR1)
        self.loss_K += functional.softplus(-y_RB * z_KRB).mean(dim=(1, 2))
        step_KRB = spec.lr / spec.batch_size * -y_RB * torch.sigmoid(-y_RB * z_KRB)
        step_KR1 = step_KRB.sum(dim=2, keepdim=True)
        keep = 1 - spec.lr * spec.lam
        self.w_KRI.mul_(keep).sub_((x_RIB @ step_KRB[..., None])[..., 0])
        self.a_KR1.mul_(keep).sub_(step_KR1).add_(push_R1)
        self.b_KR1.mul_(keep).add_(step_KR1).add_(push_R1)
        self.step += 1
        self.since += 1

    def reading(self) -> Reading | None:
        """What is read now."""
        if not self.step:
            return None
        values = {"lr": self.spec.lr, "fraction": self.spec.lr * self.spec.lam}
        for name, found_K in (
            ("loss", self.loss_K / self.since),
            ("offset", (self.a_KR1 + self.b_KR1).mean(dim=(1, 2)) / 2),
            ("norm", self.w_KRI.norm(dim=2).mean(dim=1)),
        ):
            values.update({f"{name}/{k}": one for k, one in zip(self.spec.bits, found_K.tolist(), strict=True)})
        self.loss_K, self.since = torch.zeros_like(self.loss_K), 0
        return Reading(step=self.step, epoch=self.step / self.num_steps, values=values)


class _Softmax(_Case):
    """A classifier, trained in float32, and what its loss becomes when an offset is added to its logits before rounding.

    Readings, at the end, on the test images:

    - ``loss``: the cross-entropy, from the logits in float64; ``test/error``;
    - ``loss/k/e``: the same of fl_k(logits + c), the mean over values of c with the spacing 2^e;
    - ``exact_difference``: the largest change of the loss by any of these c in float64, without rounding;
    - ``uncertainty``: the mean of 1 - sum_j p_j^2, p the softmax;
    - ``largest_logit``, by its absolute value.
    """

    unit = "images"

    def __init__(self, spec: ScalesRun, context: Context) -> None:
        super().__init__(spec, context)
        source = read_source(spec.data, context.data_folder)
        self.train_set, self.test_set = image_tensors(
            source, num_train=spec.num_train, num_test=spec.num_test, downsample=spec.downsample, device=self.device
        )
        if len(self.train_set) < spec.batch_size:
            raise RunFailedError(
                f"{len(self.train_set)} training images make no batch of {spec.batch_size}: lower batch_size"
            )
        height, width = self.train_set.x_NCHW.shape[2:]
        self.net = build_model(
            "mlp", width=spec.width, blocks=(1,), in_channels=source.train.shape[0], num_classes=source.num_classes,
            seed=spec.seed, image_size=(height, width),
        ).to(self.device)  # fmt: skip
        self.weights = list(self.net.parameters())
        self.optimizer = torch.optim.SGD(self.weights, lr=spec.lr)

    def train(self) -> Iterator[float | None]:
        """All steps; the loss of the last batch."""
        epochs = (
            shuffled_batches(self.train_set, self.spec.batch_size, seed=self.spec.seed, epoch=epoch)
            for epoch in itertools.count()
        )
        for x_BCHW, y_B in itertools.islice(itertools.chain.from_iterable(epochs), self.num_steps):
            loss = functional.cross_entropy(self.net(x_BCHW), y_B)
            self.optimizer.zero_grad()
            torch.autograd.backward(loss)
            self.optimizer.step()
            self.step += 1
            yield loss.item() if self.step == self.num_steps else None

    @torch.no_grad()
    def reading(self) -> Reading | None:
        """What is read at the end."""
        if self.step < self.num_steps:
            return None
        z_NC, y_N = self.net(self.test_set.x_NCHW).double(), self.test_set.y_N
        low, high = AROUND
        share_J = low + (high - low) * self.uniform(self.spec.num_offsets)
        p_NC = z_NC.softmax(dim=1)
        loss = functional.cross_entropy(z_NC, y_N).item()
        values = {
            "lr": self.spec.lr,
            "loss": loss,
            "test/error": (z_NC.argmax(dim=1) != y_N).double().mean().item(),
            "uncertainty": (1 - p_NC.square().sum(dim=1)).mean().item(),
            "largest_logit": z_NC.abs().max().item(),
            "exact_difference": 0.0,
        }
        for k, e in self.spec.cells:
            found = []
            for c in (share_J * 2.0 ** (k + e)).tolist():
                found.append(functional.cross_entropy(round_to(z_NC + c, k), y_N).item())
                exact = functional.cross_entropy(z_NC + c, y_N).item()
                values["exact_difference"] = max(values["exact_difference"], abs(exact - loss))
            values[f"loss/{k}/{e}"] = math.fsum(found) / len(found)
        return Reading(step=self.step, epoch=self.step / self.num_steps, values=values)
