"""SGD on least squares with a known optimum: all replicas in one tensor, float64.

What is kept is the error, x - x*. A run takes about a second, so one that was stopped starts over, to the same bits: all
random numbers are a function of the seed.

Shapes: R replicas, D coordinates, C steps whose random numbers are drawn at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.least_squares import LeastSquaresRun
from halflife.studies.store.records import Reading

__all__ = ["open_run"]

NUMBERS_AT_ONCE = 2**20  # 8 MB of them


def open_run(spec: LeastSquaresRun, context: Context) -> Run:
    """The replicas of a run."""
    return _Run(spec, context.device)


class _Run:
    """The errors of all replicas, their averages, and what is read of them; a sample is one step of one replica.

    Readings, each a mean over replicas with its standard error beside it (``risk`` and ``risk_se``):

    - ``risk`` of the iterate; ``bias``, the risk of the mean over replicas (with its expected excess removed), and
      ``variance``, the rest;
    - ``average/risk`` and ``ema-<decay>/risk`` of the averages;
    - ``tail/risk`` at the ends of the phases: the mean over the phase's last `LeastSquaresRun.tail` steps.
    """

    unit = "samples"

    def __init__(self, spec: LeastSquaresRun, device: torch.device) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.num_steps, self.samples = spec.last_step, spec.num_replicas
        self.mu_D = torch.tensor(spec.eigenvalues, dtype=torch.float64, device=device)
        per_coordinate = 1 / math.sqrt(len(spec.eigenvalues))
        self.optimum = spec.optimum * per_coordinate
        shape = (spec.num_replicas, len(spec.eigenvalues))
        # x* is taken positive, the start on the side of 0.
        self.error_RD = torch.full(shape, -spec.distance * per_coordinate, dtype=torch.float64, device=device)
        self.sum_RD = torch.zeros_like(self.error_RD)
        self.averaged = 0
        self.emas = {decay: torch.zeros_like(self.error_RD) for decay in spec.ema}
        self.tail_R = torch.zeros(spec.num_replicas, dtype=torch.float64, device=device)
        self.tail_steps = 0
        self.weights = [self.error_RD]
        self.about = f"lr {spec.lr:g}, largest eigenvalue {max(spec.eigenvalues):g}, seed {spec.seed}"

    def noises(self) -> Iterator[Tensor]:
        """The standard normal numbers of each step, (R, D), or (R, D + 1) where samples are drawn."""
        generator = torch.Generator().manual_seed(seed_of(f"least-squares/{self.spec.seed}"))
        width = len(self.mu_D) + (self.spec.noise == "sampled")
        steps = max(1, NUMBERS_AT_ONCE // (self.spec.num_replicas * width))
        for start in range(0, self.spec.last_step, steps):
            # Always a whole chunk, so that a run that is cut has the numbers of the whole one.
            chunk_CRW = torch.randn(steps, self.spec.num_replicas, width, generator=generator, dtype=torch.float64).to(
                self.device
            )
            yield from chunk_CRW[: self.spec.last_step - start]

    def train(self) -> Iterator[float]:
        """All steps; the risk at each reading."""
        for noise_RW in self.noises():
            self.one_step(noise_RW)
            if self.spec.reads_at(self.step):
                yield self.risk(self.error_RD).mean().item()

    def one_step(self, noise_RW: Tensor) -> None:
        """One step of every replica, and of the averages."""
        spec = self.spec
        lr = spec.lr_at(self.step)
        if spec.noise == "sampled":
            a_RD = noise_RW[:, :-1] * self.mu_D.sqrt()
            residual_R1 = (a_RD * self.error_RD).sum(dim=1, keepdim=True) - spec.noise_std * noise_RW[:, -1:]
            gradient_RD = a_RD * residual_R1
        else:
            gradient_RD = self.mu_D * self.error_RD + spec.noise_std * noise_RW
        r = lr * spec.lam
        self.error_RD.mul_(1 - r).sub_(gradient_RD, alpha=lr).sub_(r * self.optimum)
        self.step += 1
        if spec.average_from is not None and self.step >= spec.average_from:
            self.sum_RD += self.error_RD
            self.averaged += 1
        for decay, ema_RD in self.emas.items():
            ema_RD.mul_(decay).add_(self.error_RD, alpha=1 - decay)
        if spec.in_tail(self.step):
            self.tail_R += self.risk(self.error_RD)
            self.tail_steps += 1

    def risk(self, error_RD: Tensor) -> Tensor:
        """The excess risk of each replica, (R,)."""
        return 0.5 * error_RD.square() @ self.mu_D

    def reading(self) -> Reading:
        """What is read now."""
        spec, count = self.spec, self.spec.num_replicas
        lr = spec.lr_at(max(self.step - 1, 0))
        values = {"lr": lr, "fraction": lr * spec.lam}

        def put(name: str, risk_R: Tensor) -> None:
            values[name] = risk_R.mean().item()
            values[f"{name}_se"] = (risk_R.std() / math.sqrt(count)).item()

        put("risk", self.risk(self.error_RD))
        # The mean over replicas keeps 1 / R of the variance.
        of_mean = self.risk(self.error_RD.mean(dim=0, keepdim=True)).item()
        values["bias"] = (count * of_mean - values["risk"]) / (count - 1)
        values["variance"] = values["risk"] - values["bias"]
        if self.averaged:
            put("average/risk", self.risk(self.sum_RD / self.averaged))
        if self.step:
            for decay, ema_RD in self.emas.items():
                put(f"ema-{decay:g}/risk", self.risk(ema_RD / (1 - decay**self.step)))
        if self.tail_steps and self.step in spec.phase_ends:
            put("tail/risk", self.tail_R / self.tail_steps)
            self.tail_R.zero_()
            self.tail_steps = 0
        return Reading(step=self.step, epoch=self.step / spec.num_steps, values=values)
