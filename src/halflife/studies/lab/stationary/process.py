"""SGD on a small function until it is stationary; its mean in function space beside the minima that it may follow.

A run takes seconds, so one that was stopped starts over, to the same bits: all random numbers are a function of the seed.

Shapes: R replicas, D parameters, N training examples, M inputs in all, I inputs, B batch, C steps drawn at once, K prefactors.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from halflife.studies.lab.arrays import floats
from halflife.studies.lab.stationary.minimum import Minimum, minimize
from halflife.studies.lab.stationary.problem import Problem, generator_of, make_problem
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.stationary import StationaryRun
from halflife.studies.store.records import Array, Reading

__all__ = ["open_run"]

NUMBERS_AT_ONCE = 2**19
LOOKS = 20  # how often a run is looked at


def open_run(spec: StationaryRun, context: Context) -> Run:
    """The replicas of a run."""
    return _Process(spec, context.device)


class _Process:
    """All replicas, and the sums that averages are made of; a sample is one step of one replica.

    There is one reading, at the end.

    Values: ``noise_sq`` (sigma^2, the mean of l'^2) and ``noise_scale`` (the mean of |l'|), over the examples drawn, with
    their noisy labels; ``loss``, the mean expected loss; at the mean of the weights, ``jacobian_sq`` and ``hessian_trace``;
    ``drift``, the root mean square change of the outputs between the halves of the time; ``gradient``, the largest entry of a
    gradient at any minimum.

    Arrays of outputs, on ``train`` and on ``held-out`` inputs: ``mean/<inputs>`` over time and replicas, ``se/<inputs>`` its
    standard error by replicas, ``weights/<inputs>`` of the mean of the weights, and ``minimum/<regularizer>/<inputs>``, K
    times as long, of the minima nearest to that mean, c by c; ``lowest/<regularizer>/<inputs>`` of the lowest minimum from any
    start, for each c of ``searched``, and ``gain/<regularizer>`` by how much it is lower than the nearest.
    """

    unit = "samples"

    def __init__(self, spec: StationaryRun, device: torch.device) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.num_steps, self.samples = spec.last_step, spec.num_replicas
        made = make_problem(spec)
        self.problem = Problem(made.function, made.loss, made.lam, made.x_MI.to(device), made.y_N.to(device))
        self.initial_D = made.function.initial(spec.init, generator_of(spec, "weights")).to(device)
        self.w_RD = self.initial_D.repeat(spec.num_replicas, 1)
        self.sum_RD = torch.zeros_like(self.w_RD)
        # The two halves of the time apart, so that a drift shows.
        self.halves = [torch.zeros(spec.num_replicas, len(made.x_MI), dtype=torch.float64, device=device) for _ in "ab"]
        self.counts = [0, 0]
        self.slopes = torch.zeros(2, dtype=torch.float64, device=device)
        self.loss_sum, self.drawn = torch.zeros((), dtype=torch.float64, device=device), 0
        self.weights = [self.w_RD]
        self.about = f"lr {spec.lr:g}, seed {spec.seed}"

    def draws(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step the examples, (R, B), and uniform numbers for their label noise."""
        generator, spec = generator_of(self.spec, "steps"), self.spec
        size = (max(1, NUMBERS_AT_ONCE // (spec.num_replicas * spec.batch_size)), spec.num_replicas, spec.batch_size)
        for start in range(0, spec.last_step, size[0]):
            index_CRB = torch.randint(self.problem.num_examples, size, generator=generator).to(self.device)
            uniform_CRB = torch.rand(size, generator=generator, dtype=torch.float64).to(self.device)
            left = spec.last_step - start
            yield from zip(index_CRB[:left], uniform_CRB[:left], strict=True)

    @torch.no_grad()
    def train(self) -> Iterator[float]:
        """All steps; the loss now and then."""
        every = max(1, self.num_steps // LOOKS)
        for index_RB, uniform_RB in self.draws():
            self.one_step(index_RB, uniform_RB)
            if self.step % every == 0 or self.step == self.num_steps:
                yield self.loss()

    def one_step(self, index_RB: Tensor, uniform_RB: Tensor) -> None:
        """One step of every replica, and of the averages."""
        spec, problem = self.spec, self.problem
        x_RBI, y_RB = problem.x_MI[index_RB], problem.loss.noisy(problem.y_N[index_RB], uniform_RB)
        h_RB, pull_back = problem.function.linearized(self.w_RD, x_RBI)
        slope_RB = problem.loss.slope(h_RB, y_RB)
        if self.step >= spec.first_measured:
            self.slopes[0] += slope_RB.square().mean()
            self.slopes[1] += slope_RB.abs().mean()
            self.drawn += 1
        gradient_RD = pull_back(slope_RB)
        self.w_RD.mul_(1 - spec.lr * spec.lam).sub_(gradient_RD, alpha=spec.lr / spec.batch_size)
        self.step += 1
        measured = self.step - spec.first_measured
        if measured > 0 and measured % spec.measure_every == 0:
            late = int(2 * measured > spec.last_step - spec.first_measured)
            h_RM = problem.function.outputs(self.w_RD, problem.x_MI.unsqueeze(0))
            self.halves[late] += h_RM
            self.counts[late] += 1
            self.sum_RD += self.w_RD
            self.loss_sum += problem.loss.value(h_RM[:, : problem.num_examples], problem.y_N).mean()

    def loss(self) -> float:
        """The mean expected loss over examples and replicas now."""
        h_RN = self.problem.function.outputs(self.w_RD, self.problem.x_MI[: self.problem.num_examples].unsqueeze(0))
        return float(self.problem.loss.value(h_RN, self.problem.y_N).mean())

    def reading(self) -> Reading | None:
        """At the end, the averages and the minima."""
        if self.step < self.num_steps:
            return None
        count, replicas = sum(self.counts), self.spec.num_replicas
        mean_RM = (self.halves[0] + self.halves[1]) / count
        weights_D = self.sum_RD.mean(dim=0) / count
        noise_sq, noise_scale = (self.slopes / self.drawn).tolist()
        values = {
            "noise_sq": noise_sq,
            "noise_scale": noise_scale,
            "loss": float(self.loss_sum) / count,
            "jacobian_sq": float(self.problem.regularizer(weights_D.unsqueeze(0), "jacobian")),
            "hessian_trace": float(self.problem.regularizer(weights_D.unsqueeze(0), "hessian")),
        }
        if all(self.counts):
            first_M, second_M = (total.mean(dim=0) / n for total, n in zip(self.halves, self.counts, strict=True))
            values["drift"] = float((first_M - second_M).square().mean().sqrt())
        arrays = self._by_inputs("mean", mean_RM.mean(dim=0))
        arrays |= self._by_inputs("se", mean_RM.std(dim=0) / replicas**0.5)
        arrays |= self._by_inputs("weights", self._outputs(weights_D))
        largest = 0.0
        for regularizer in self.spec.regularizers:
            near = {c: self._minimum(weights_D, regularizer, c, noise_sq) for c in self.spec.prefactors}
            low = {c: self._lowest(near[c], regularizer, c, noise_sq) for c in self.spec.searched}
            largest = max([largest, *(minimum.gradient for minimum in near.values())])
            for name, minima in (("minimum", near), ("lowest", low)):
                if minima:
                    outputs_KM = torch.stack([self._outputs(minimum.w_D) for minimum in minima.values()])
                    arrays |= self._by_inputs(f"{name}/{regularizer}", outputs_KM)
            if low:
                gains = [near[c].value - minimum.value for c, minimum in low.items()]
                arrays[f"gain/{regularizer}"] = floats(torch.tensor(gains))
        values["gradient"] = largest
        return Reading(step=self.step, epoch=self.step / self.spec.num_steps, values=values, arrays=arrays)

    def _minimum(self, start_D: Tensor, regularizer: str, c: float, noise_sq: float) -> Minimum:
        """Where the objective with this prefactor is stationary, from a start."""
        weight = c / self.spec.batch_size * self.spec.lr * noise_sq
        return minimize(self.problem, start_D, regularizer, weight)

    def _lowest(self, near: Minimum, regularizer: str, c: float, noise_sq: float) -> Minimum:
        """The lowest of the minima from the mean of the weights and from all other starts."""
        generator = generator_of(self.spec, "starts")
        scale = self.initial_D.square().mean().sqrt()
        found = [near]
        for number in range(self.spec.num_starts):
            start_D = self.initial_D
            if number:
                drawn_D = torch.randn(start_D.shape, dtype=torch.float64, generator=generator)
                start_D = scale * drawn_D.to(self.device)
            found.append(self._minimum(start_D, regularizer, c, noise_sq))
        return min(found, key=lambda minimum: minimum.value)

    def _outputs(self, w_D: Tensor) -> Tensor:
        return self.problem.function.outputs(w_D.unsqueeze(0), self.problem.x_MI.unsqueeze(0))[0]

    def _by_inputs(self, name: str, outputs_XM: Tensor) -> dict[str, Array]:
        """Outputs on training and held-out inputs apart."""
        count = self.problem.num_examples
        found = {f"{name}/train": floats(outputs_XM[..., :count])}
        if outputs_XM.shape[-1] > count:
            found[f"{name}/held-out"] = floats(outputs_XM[..., count:])
        return found
