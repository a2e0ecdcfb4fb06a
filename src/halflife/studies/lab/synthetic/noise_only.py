"""Layers under noise: norms, angles and ratios where updates and decay are in balance, with the optimizers and rules of users.

A run takes seconds, so one that was stopped starts over: all random numbers are a function of the seed. Everything is float64.

Shapes: R replicas, D weights of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.errors import RunFailedError
from halflife.optim.attaching import attach
from halflife.rules.registry import rule_from, schedule_from
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.noise_only import NoiseOnlyRun
from halflife.studies.store.records import Reading

__all__ = ["open_run"]

NAMES = ("norm", "rotation", "gradient_ratio")


def open_run(spec: NoiseOnlyRun, context: Context) -> Run:
    """All layers of a run."""
    return _Layers(spec, context.device)


def _optimizer(spec: NoiseOnlyRun, weights: list[nn.Parameter]) -> Optimizer:
    # attach lets the groups decay whose weight_decay is not 0; the rule brings its own coefficient.
    groups = [{"params": weights, "weight_decay": 1.0 if spec.decay else 0.0}]
    betas = (spec.beta1, spec.beta2)
    if spec.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=spec.lr, momentum=spec.momentum)
    if spec.optimizer == "adam":
        return torch.optim.Adam(groups, lr=spec.lr, betas=betas, eps=spec.eps)
    try:
        from pytorch_optimizer import Lion
    except ImportError as error:
        raise RunFailedError(
            f"optimizer is {spec.optimizer!r} and pytorch-optimizer is not installed: pip install pytorch-optimizer"
        ) from error
    return Lion(groups, lr=spec.lr, betas=betas, weight_decouple=True)


class _Layers:
    """All layers; each replica of one is a row of its tensor, and a sample is one step of one replica of all.

    Readings of each layer ``l``, means over replicas and over the steps since the last reading:

    - ``norm/l``: ||w|| before the step;
    - ``rotation/l``: the angle between w before and after the step, in radians;
    - ``gradient_ratio/l``: ||g|| / ||w||, without what a penalty adds;

    and with Adam

    - ``mask/l``: the share of ||w||^2 in the weights that the update does not move away from 0;
    - ``root_second_moment``: the root of the mean of v / (1 - beta2^t) over all weights, after the step.
    """

    unit = "samples"

    def __init__(self, spec: NoiseOnlyRun, device: torch.device) -> None:
        self.spec, self.step, self.num_steps, self.samples = spec, 0, spec.last_step, spec.num_replicas
        self.about = f"lr {spec.lr:g}, {spec.optimizer}, {spec.decay or 'no decay'}, seed {spec.seed}"
        self.device, self.schedule = device, schedule_from(spec.lr_schedule)
        # Not of optimizer or decay, so that runs that differ in them have the same noise; drawn on the CPU.
        self.generator = torch.Generator().manual_seed(seed_of(f"noise-only/{spec.seed}"))
        self.weights = []
        for size in spec.num_weights:
            start_RD = self._normal(spec.num_replicas, size)
            self.weights.append(nn.Parameter(start_RD * (spec.start_norm / _norm(start_RD))))
        self.optimizer = _optimizer(spec, self.weights)
        if spec.decay:
            attach(self.optimizer, rule_from(spec.decay), peak_lr=spec.lr)  # type: ignore[arg-type]
        self.names = [f"{name}/{layer}" for name in NAMES for layer in range(len(self.weights))]
        if spec.optimizer == "adam":
            self.names += [*(f"mask/{layer}" for layer in range(len(self.weights))), "root_second_moment"]
        self.sums = dict.fromkeys(self.names, torch.zeros((), dtype=torch.float64, device=device))
        self.since = 0

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64).to(self.device)

    def train(self) -> Iterator[float]:
        """All steps; the mean norm of the first layer, wherever there is a reading."""
        while self.step < self.num_steps:
            self._one_step()
            if self.step % self.spec.eval_every == 0 or self.step == self.num_steps:
                yield self.weights[0].norm().item()

    @torch.no_grad()
    def _one_step(self) -> None:
        before, norms = [], []
        for weight, size in zip(self.weights, self.spec.gradient_norms, strict=True):
            norm_R1 = _norm(weight)
            z_RD = self._normal(*weight.shape)
            z_RD -= weight * ((weight * z_RD).sum(dim=1, keepdim=True) / norm_R1.square())
            weight.grad = z_RD * (size / (_norm(z_RD) * norm_R1))
            before.append(weight.detach().clone())
            norms.append(norm_R1)
        for group in self.optimizer.param_groups:
            group["lr"] = self.spec.lr * self.schedule(self.step)
        self.optimizer.step()
        seen: dict[str, Tensor] = {}
        for layer, (weight, old_RD, norm_R1) in enumerate(zip(self.weights, before, norms, strict=True)):
            # By half the chord of the unit vectors: the arc cosine of a number near 1 has no digits left.
            half_chord_R = _norm(weight / _norm(weight) - old_RD / norm_R1)[:, 0] / 2
            seen[f"norm/{layer}"] = norm_R1.mean()
            seen[f"rotation/{layer}"] = 2 * torch.asin(half_chord_R).mean()
            seen[f"gradient_ratio/{layer}"] = (self.spec.gradient_norms[layer] / norm_R1.square()).mean()
            if self.spec.optimizer == "adam":
                kept_RD = (
                    self.optimizer.state[weight]["exp_avg"] * old_RD >= 0
                )  # the update has the sign of the average
                seen[f"mask/{layer}"] = (old_RD.square() * kept_RD).sum() / old_RD.square().sum()
        self.step += 1
        self.since += 1
        if self.spec.optimizer == "adam":
            moments = [self.optimizer.state[weight]["exp_avg_sq"].flatten() for weight in self.weights]
            seen["root_second_moment"] = (torch.cat(moments).mean() / (1 - self.spec.beta2**self.step)).sqrt()
        for name in self.names:
            self.sums[name] = self.sums[name] + seen[name]

    def reading(self) -> Reading | None:
        """The means since the last reading."""
        if self.since == 0:
            return None
        values = {name: (total / self.since).item() for name, total in self.sums.items()}
        self.sums = {name: torch.zeros_like(total) for name, total in self.sums.items()}
        self.since = 0
        return Reading(
            step=self.step, epoch=self.step, values={"lr": self.spec.lr * self.schedule(self.step - 1)} | values
        )


def _norm(rows: Tensor) -> Tensor:
    norm: Tensor = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return norm
