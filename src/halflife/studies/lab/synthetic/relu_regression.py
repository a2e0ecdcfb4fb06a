"""SGD on one-dimensional regression by a two-layer ReLU net: all replicas in one tensor, float64.

A run takes seconds, so one that was stopped starts over, to the same bits: all random numbers are a function of the seed.
What is measured of the function is exact, from its kinks; where they lie and by how much the slope changes there is read off
the weights.

Shapes: R replicas, J hidden units, N training points, G places of the grid, C steps whose random numbers are drawn at once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from halflife.studies.lab.arrays import floats
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.textbook import ReluRegressionRun
from halflife.studies.store.records import Reading

__all__ = ["open_run"]

CHUNK = 4096  # steps
GRID = 401  # places between the outermost points at which the error against the teacher is taken
CELLS = 50  # for `effective_kinks`: kinks nearer than a fiftieth of the range count as one


def open_run(spec: ReluRegressionRun, context: Context) -> Run:
    """The nets of a run."""
    return _Run(spec, context.device)


class Problem:
    """The points and the teachers of a run.

    Args:
        spec: The run.
        generator: Gives the numbers.
    """

    def __init__(self, spec: ReluRegressionRun, generator: torch.Generator) -> None:
        def uniform(count: int, low: float, high: float) -> Tensor:
            drawn = torch.rand(spec.num_replicas, count, generator=generator, dtype=torch.float64)
            return low + (high - low) * drawn

        apart = 2 / (spec.num_points - 1)
        even_N = torch.linspace(-1, 1, spec.num_points, dtype=torch.float64)
        self.x_RN = even_N + uniform(spec.num_points, -0.25 * apart, 0.25 * apart)
        self.kinks_RK = uniform(spec.teacher_kinks, -0.6, 0.6)
        self.changes_RK = uniform(spec.teacher_kinks, 1, 2) * uniform(spec.teacher_kinks, -1, 1).sign()
        self.slope_R1 = uniform(1, -1, 1)
        self.y_RN = self.teacher(self.x_RN)

    def teacher(self, x_RP: Tensor) -> Tensor:
        """The teachers' values, (R, P)."""
        hinges_RKP = torch.relu(x_RP[:, None, :] - self.kinks_RK[:, :, None])
        return self.slope_R1 * x_RP + (self.changes_RK[:, :, None] * hinges_RKP).sum(dim=1)


class _Run:
    """The nets of all replicas, and what is read of them; a sample is one step of one replica.

    Readings, each the mean over replicas, on the range of the training points:

    - ``train/rmse`` and ``test/rmse``: root mean square error at the points, and against the teacher on an even grid;
    - ``variation``: total variation of f', sum of |a_j w_j| over the kinks -b_j / w_j in the range;
      ``least_variation``: that of the line that connects the points, the least of any function through them;
    - ``effective_kinks``: (sum |m|)^2 / sum m^2 of the changes m of the slope, summed in 50 equal cells;
    - ``path_norm``: sum_j |a_j| sqrt(w_j^2 + b_j^2);
    - ``top_eigenvalue`` of the Gauss-Newton matrix of the mean loss, the Hessian where the points are met;
      ``smoothness_bound``: 1 + 2 sum_j |a_j w_j| g(-b_j / w_j), which is at most that (`weight_of_kinks`).

    Arrays of the first replica, for figures: ``points/x``, ``points/y``, ``grid``, ``teacher``, ``function``.
    """

    unit = "samples"

    def __init__(self, spec: ReluRegressionRun, device: torch.device) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.num_steps, self.samples = spec.last_step, spec.num_replicas
        self.problem = Problem(spec, _generator("problem", spec.seed))
        self.x_RN, self.y_RN = self.problem.x_RN.to(device), self.problem.y_RN.to(device)
        start_3RJ = torch.randn(
            3, spec.num_replicas, spec.width, generator=_generator("weights", spec.seed), dtype=torch.float64
        )
        start_3RJ[0] *= spec.init_scale / math.sqrt(spec.width)
        self.weights_3RJ = start_3RJ.to(device)  # a, w, b
        self.bias_R1 = torch.zeros(spec.num_replicas, 1, dtype=torch.float64, device=device)
        self.weights = [self.weights_3RJ, self.bias_R1]
        self.about = f"lr {spec.lr:g}, width {spec.width}, seed {spec.seed}"

    def draws(self) -> Iterator[tuple[Tensor, Tensor]]:
        """For each step the number of a point (R, 1), and what is added to its label (R, 1), by replica."""
        spec = self.spec
        order, noise = _generator("order", spec.seed), _generator("label-noise", spec.seed)
        for start in range(0, spec.last_step, CHUNK):
            # Always a whole chunk, so that a run that is cut has the numbers of the whole one.
            shape = (CHUNK, spec.num_replicas, 1)
            point_CR1 = torch.randint(spec.num_points, shape, generator=order).to(self.device)
            noise_CR1 = torch.randn(shape, generator=noise, dtype=torch.float64).to(self.device) * spec.label_noise
            yield from zip(point_CR1[: spec.last_step - start], noise_CR1[: spec.last_step - start], strict=True)

    @torch.inference_mode()
    def train(self) -> Iterator[float]:
        """All steps; the root mean square error at the points at each reading."""
        for point_R1, noise_R1 in self.draws():
            self.one_step(point_R1, noise_R1)
            if self.spec.reads_at(self.step):
                yield self.rmse_R().mean().item()

    def rmse_R(self) -> Tensor:
        """The root mean square error at the points, (R,)."""
        return (self.function(self.x_RN) - self.y_RN).square().mean(dim=1).sqrt()

    def one_step(self, point_R1: Tensor, noise_R1: Tensor) -> None:
        """One step of every replica, on one point each."""
        spec = self.spec
        lr = spec.lr_at(self.step)
        a_RJ, w_RJ, b_RJ = self.weights_3RJ.unbind()
        x_R1, y_R1 = self.x_RN.gather(1, point_R1), self.y_RN.gather(1, point_R1)
        if self.step < spec.drop_step and spec.label_noise > 0:
            y_R1 += noise_R1
        hidden_RJ = torch.addcmul(b_RJ, w_RJ, x_R1).relu_()
        move_R1 = (a_RJ * hidden_RJ).sum(dim=1, keepdim=True).add_(self.bias_R1).sub_(y_R1).mul_(-lr)
        # The gradient at the hidden units before a changes.
        inner_RJ = torch.sign(hidden_RJ).mul_(a_RJ).mul_(move_R1)
        if spec.lam > 0:
            self.weights_3RJ.mul_(1 - lr * spec.lam)
            self.bias_R1.mul_(1 - lr * spec.lam)
        a_RJ.addcmul_(hidden_RJ, move_R1)
        w_RJ.addcmul_(inner_RJ, x_R1)
        b_RJ.add_(inner_RJ)
        self.bias_R1.add_(move_R1)
        self.step += 1

    def function(self, x_RP: Tensor) -> Tensor:
        """The nets' values, (R, P)."""
        a_RJ, w_RJ, b_RJ = self.weights_3RJ.unbind()
        hidden_RJP = torch.relu(w_RJ[:, :, None] * x_RP[:, None, :] + b_RJ[:, :, None])
        return (a_RJ[:, :, None] * hidden_RJP).sum(dim=1) + self.bias_R1

    @torch.inference_mode()
    def reading(self) -> Reading:
        """What is read now."""
        spec, x_RN = self.spec, self.x_RN
        a_RJ, w_RJ, b_RJ = self.weights_3RJ.unbind()
        low_R1, high_R1 = x_RN[:, :1], x_RN[:, -1:]
        grid_RG = low_R1 + (high_R1 - low_R1) * torch.linspace(0, 1, GRID, dtype=torch.float64, device=self.device)
        function_RG, teacher_RG = self.function(grid_RG), self.problem.teacher(grid_RG.cpu()).to(self.device)
        kinks_RJ, changes_RJ = -b_RJ / w_RJ, a_RJ * w_RJ.abs()
        inside_RJ = (kinks_RJ > low_R1) & (kinks_RJ < high_R1)
        sizes_RJ = changes_RJ.abs() * inside_RJ
        slopes_RN = self.y_RN.diff() / x_RN.diff()
        of_each = {
            "train/rmse": self.rmse_R(),
            "train/spread": self.y_RN.std(dim=1, correction=0),
            "test/rmse": (function_RG - teacher_RG).square().mean(dim=1).sqrt(),
            "variation": sizes_RJ.sum(dim=1),
            "least_variation": slopes_RN.diff().abs().sum(dim=1),
            "effective_kinks": effective_kinks((kinks_RJ - low_R1) / (high_R1 - low_R1), changes_RJ * inside_RJ),
            "path_norm": (a_RJ.abs() * (w_RJ.square() + b_RJ.square()).sqrt()).sum(dim=1),
            "top_eigenvalue": self.top_eigenvalue(),
            "smoothness_bound": 1 + 2 * (sizes_RJ * weight_of_kinks(kinks_RJ, x_RN)).sum(dim=1),
        }
        lr = spec.lr_at(max(self.step - 1, 0))
        values = {name: value_R.mean().item() for name, value_R in of_each.items()}
        arrays = {}
        if self.step == spec.last_step:
            drawn = {
                "points/x": x_RN, "points/y": self.y_RN, "grid": grid_RG, "teacher": teacher_RG, "function": function_RG,
            }  # fmt: skip
            arrays = {name: floats(value_RP[0], "<f8") for name, value_RP in drawn.items()}
        return Reading(
            step=self.step,
            epoch=self.step / spec.num_points,
            values=values | {"lr": lr, "fraction": lr * spec.lam},
            arrays=arrays,
        )

    def top_eigenvalue(self) -> Tensor:
        """The largest eigenvalue of (1/N) sum_i grad f(x_i) grad f(x_i)^T, (R,), from the N x N Gram matrix."""
        a_RJ, w_RJ, b_RJ = self.weights_3RJ.unbind()
        x_RN1 = self.x_RN[:, :, None]
        before_RNJ = w_RJ[:, None, :] * x_RN1 + b_RJ[:, None, :]
        inner_RNJ = (before_RNJ > 0) * a_RJ[:, None, :]
        gradient_RNP = torch.cat([before_RNJ.relu(), inner_RNJ * x_RN1, inner_RNJ, torch.ones_like(x_RN1)], dim=2)
        gram_RNN = gradient_RNP @ gradient_RNP.transpose(1, 2) / self.spec.num_points
        top_R: Tensor = torch.linalg.eigvalsh(gram_RNN)[:, -1]
        return top_R


def effective_kinks(places_RJ: Tensor, changes_RJ: Tensor) -> Tensor:
    """How many kinks of equal size are as concentrated: (sum |m|)^2 / sum m^2, changes summed in equal cells.

    Args:
        places_RJ: Where the kinks lie, the range being [0, 1]; those with a change of 0 may lie anywhere.
        changes_RJ: How much the slope changes there.

    Returns:
        Between 1 and the number of cells, and 0 where no slope changes, (R,).

    Examples:
        >>> places = torch.tensor([[0.1, 0.5, 0.501, 9.0]])
        >>> round(effective_kinks(places, torch.tensor([[1.0, 0.5, 0.5, 0.0]])).item(), 3)
        2.0
    """
    cell_RJ = (places_RJ * CELLS).nan_to_num(0.0).clamp(0, CELLS - 1).long()
    summed_RM = changes_RJ.new_zeros(len(changes_RJ), CELLS).scatter_add(1, cell_RJ, changes_RJ)
    # Of a line, which has none: 0 / smallest = 0.
    squares_R = summed_RM.square().sum(dim=1).clamp_min(torch.finfo(summed_RM.dtype).tiny)
    return summed_RM.abs().sum(dim=1).square() / squares_R


def weight_of_kinks(kinks_RJ: Tensor, x_RN: Tensor) -> Tensor:
    """By how much a kink of size 1 sharpens any minimum of which it is a part.

    With X a training point taken at random, for the points to the right of t and those to the left,

        g(t) = min over both sides of P(X there)^2 E[|X - t| | there] sqrt(1 + E[X | there]^2)

    The top eigenvalue of the Hessian of the mean of 1/2 (f - y)^2 at an interpolating net is at least ||mean_i grad
    f(x_i)||^2, which is at least 1 + 2 sum_j |a_j w_j| g(t_j): the arithmetic mean of what a_j and what (w_j, b_j) add is
    at least the geometric one.

    Source: Mulayoff, Michaeli, Soudry, "The Implicit Bias of Minima Stability: A View from Function Space" (NeurIPS 2021),
    theorem 1.

    Args:
        kinks_RJ: Where the kinks lie.
        x_RN: The training points.

    Returns:
        The weights, (R, J), 0 outside the range of the points.
    """
    distance_RJN = x_RN[:, None, :] - kinks_RJ[:, :, None]
    sides = []
    for there_RJN in (distance_RJN > 0, distance_RJN < 0):
        share_RJ = there_RJN.double().mean(dim=2)
        # P E[. | there] is the mean over all points of what lies there.
        reach_RJ = (distance_RJN.abs() * there_RJN).mean(dim=2)
        centre_RJ = (x_RN[:, None, :] * there_RJN).mean(dim=2)
        sides.append(reach_RJ * (share_RJ.square() + centre_RJ.square()).sqrt())
    return torch.minimum(*sides).nan_to_num(0.0, 0.0, 0.0)


def _generator(purpose: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"relu-regression/{purpose}/{seed}"))
