"""Gradient descent on linearly separable points in the plane: all data sets in one tensor, float64.

What it should tend to comes from elsewhere: the hard-margin direction and the regularized minimum are solved by
scikit-learn. A run takes seconds, so one that was stopped starts over, to the same bits.

Shapes: R data sets, N points, 2 coordinates. Points are multiplied by their labels, so that all should get x^T w > 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional

from halflife.errors import UserError
from halflife.studies.lab.arrays import floats
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.trainer import Context, Run
from halflife.studies.specs.textbook import SeparableRun
from halflife.studies.store.records import Reading

__all__ = ["hard_margin", "open_run", "regularized_minimum"]

TILT = 0.5  # radians that u lies at most off the vertical, so that boundaries can be drawn as functions of x
DISTANCE = 2.0  # of the means of the random classes from 0, in standard deviations
LEFT_OUT = 0.5  # random points nearer to the classes' boundary than this are drawn again
HARD = 1e8  # C of the hard-margin solver


def open_run(spec: SeparableRun, context: Context) -> Run:
    """The classifiers of a run."""
    return _Run(spec, context.device)


class DataSets:
    """The points of all data sets of a run.

    Args:
        spec: The run.
    """

    def __init__(self, spec: SeparableRun) -> None:
        generator = torch.Generator().manual_seed(seed_of(f"separable/{spec.seed}"))
        count = spec.num_datasets

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        angle_R = uniform(-TILT, TILT, count)
        self.u_R2 = torch.stack([angle_R.sin(), angle_R.cos()], dim=1)
        v_R2 = torch.stack([angle_R.cos(), -angle_R.sin()], dim=1)
        along_RN, across_RN = normal(count, spec.num_points), normal(count, spec.num_points)
        self.s_2R = torch.stack([uniform(0.5, 0.8, count), uniform(1.5, 2, count)])
        side_R = uniform(-1, 1, count).sign()
        if spec.points == "planted":
            along_RN = 2 + along_RN.abs()
            along_RN[:, :2] = 1
            across_RN[:, 0], across_RN[:, 1] = self.s_2R[0], -self.s_2R[1]
        else:
            along_RN += DISTANCE
            while (near_RN := along_RN < LEFT_OUT).any():
                along_RN = torch.where(near_RN, DISTANCE + normal(count, spec.num_points), along_RN)
            if spec.points == "outlier":
                along_RN[:, -1], across_RN[:, -1] = -0.5, 2 * side_R
        self.x_RN2 = along_RN[:, :, None] * self.u_R2[:, None, :] + across_RN[:, :, None] * v_R2[:, None, :]
        # Labels for figures and solvers alone; both classes are there in every set.
        self.label_N = torch.where(torch.arange(spec.num_points) % 2 == 0, 1.0, -1.0).double()


class _Run:
    """The classifiers of all data sets, and what is read of them; a sample is one step on one data set.

    Readings, means over data sets unless said otherwise:

    - ``angle`` in radians between w and the hard-margin direction (`hard_margin`);
    - ``norm``: ||w|| times the margin, so that its slope against log t should be 1;
    - ``train/loss``: the geometric mean of the logistic losses; ``train/error``: the share of wrong points;
    - ``test/error``: of Gaussian classes with standard deviation 1 and means +-2 u, exactly; not of planted points;
    - with decay, ``regularized/angle`` of the regularized minimum (`regularized_minimum`) to the hard-margin direction, and
      ``regularized/distance``, the largest ||w - minimum|| / ||minimum|| of any data set;
    - of planted points without decay ``theory/angle`` and ``theory/norm``, of w = u log t + rest (`asymptotic_rest`).

    Arrays of the first data set, for figures: ``points/x``, ``points/y``, ``points/label``, ``weights``, ``hard_margin``.
    """

    unit = "samples"

    def __init__(self, spec: SeparableRun, device: torch.device) -> None:
        self.spec, self.device, self.step = spec, device, 0
        self.num_steps, self.samples = spec.last_step, spec.num_datasets
        self.sets = DataSets(spec)
        solved = [hard_margin(x_N2) for x_N2 in self.sets.x_RN2]
        self.hard_R2 = torch.stack([direction_2 for direction_2, _ in solved]).to(device)
        self.margin_R = torch.tensor([margin for _, margin in solved], dtype=torch.float64, device=device)
        self.minimum_R2: Tensor | None = None
        if spec.lam > 0:
            minima = [regularized_minimum(x_N2, self.sets.label_N, spec.lam) for x_N2 in self.sets.x_RN2]
            self.minimum_R2 = torch.stack(minima).to(device)
        self.x_RN2 = self.sets.x_RN2.to(device)
        self.minus_x_RN2 = -self.x_RN2
        self.pull_R2N = (spec.lr / spec.num_points * self.x_RN2).transpose(1, 2).contiguous()
        self.w_R21 = torch.zeros(spec.num_datasets, 2, 1, dtype=torch.float64, device=device)
        self.weights, self.about = [self.w_R21], f"lr {spec.lr:g}, seed {spec.seed}"

    @torch.inference_mode()
    def train(self) -> Iterator[float]:
        """All steps of every data set; the loss at each reading."""
        keep = 1 - self.spec.lr * self.spec.lam
        for end in self.spec.read_steps:
            # The derivative of log(1 + exp(-z)) is -sigmoid(-z).
            for _ in range(end - self.step):
                share_RN1 = torch.bmm(self.minus_x_RN2, self.w_R21).sigmoid_()
                self.w_R21.baddbmm_(self.pull_R2N, share_RN1, beta=keep)
            self.step = end
            yield self.loss()

    def outputs(self) -> Tensor:
        """The classifiers' values at the points, above 0 where they are right, (R, N)."""
        return (self.x_RN2 @ self.w_R21)[:, :, 0]

    def loss(self) -> float:
        """The geometric mean over data sets of the logistic losses."""
        return functional.softplus(-self.outputs()).mean(dim=1).log().mean().exp().item()

    @torch.inference_mode()
    def reading(self) -> Reading | None:
        """What is read now."""
        if not self.step:
            return None
        spec = self.spec
        w_R2 = self.w_R21[:, :, 0]
        values = {
            "lr": spec.lr,
            "fraction": spec.lr * spec.lam,
            "angle": _angles(w_R2, self.hard_R2).mean().item(),
            "norm": (w_R2.norm(dim=1) * self.margin_R).mean().item(),
            "train/loss": self.loss(),
            "train/error": (self.outputs() <= 0).double().mean().item(),
        }
        if spec.points != "planted":
            cosine_R = torch.cos(_angles(w_R2, self.sets.u_R2.to(self.device)))
            values["test/error"] = torch.special.ndtr(-DISTANCE * cosine_R).mean().item()
        elif spec.lam == 0:
            along_R, across_R = asymptotic_rest(self.sets.s_2R, spec.lr, spec.num_points)
            along_R += math.log(self.step)
            values["theory/angle"] = torch.atan2(across_R.abs(), along_R).mean().item()
            values["theory/norm"] = torch.hypot(along_R, across_R).mean().item()
        if self.minimum_R2 is not None:
            distance_R = (w_R2 - self.minimum_R2).norm(dim=1) / self.minimum_R2.norm(dim=1)
            values["regularized/distance"] = distance_R.max().item()
            values["regularized/angle"] = _angles(self.minimum_R2, self.hard_R2).mean().item()
        arrays = {}
        if self.step == spec.last_step:
            points_N2 = self.sets.x_RN2[0] * self.sets.label_N[:, None]
            drawn = {
                "points/x": points_N2[:, 0], "points/y": points_N2[:, 1], "points/label": self.sets.label_N,
                "weights": w_R2[0], "hard_margin": self.hard_R2[0],
            }  # fmt: skip
            arrays = {name: floats(value, "<f8") for name, value in drawn.items()}
        return Reading(step=self.step, epoch=self.step, values=values, arrays=arrays)


def _angles(a_R2: Tensor, b_R2: Tensor) -> Tensor:
    """Angles between vectors of the plane, (R,), as exact near 0 as elsewhere."""
    cross_R = a_R2[:, 0] * b_R2[:, 1] - a_R2[:, 1] * b_R2[:, 0]
    return torch.atan2(cross_R.abs(), (a_R2 * b_R2).sum(dim=1))


def asymptotic_rest(s_2R: Tensor, lr: float, num_points: int) -> tuple[Tensor, Tensor]:
    """What w - u log t tends to with planted points, along u and along v.

    The rest r has (lr / n) exp(-x_i^T r) = alpha_i for both support vectors u + s_1 v and u - s_2 v, alpha the dual
    solution: alpha_1 + alpha_2 = 1, alpha_1 s_1 = alpha_2 s_2.

    Source: Soudry et al. 2018, theorem 4, with the mean in place of the sum over points.

    Args:
        s_2R: s_1 and s_2.
        lr: Learning rate.
        num_points: n.

    Returns:
        Both parts, (R,).
    """
    first_R, second_R = s_2R.unbind()
    total_R = first_R + second_R
    c_first_R, c_second_R = (torch.log(lr / num_points * total_R / other_R) for other_R in (second_R, first_R))
    across_R = (c_first_R - c_second_R) / total_R
    return c_first_R - first_R * across_R, across_R


def hard_margin(x_N2: Tensor) -> tuple[Tensor, float]:
    """The unit vector w that maximizes min_i x_i^T w, by scikit-learn, and that margin.

    Its solver has an intercept. With each point there twice, as x with label 1 and as -x with label -1, that is 0.

    Args:
        x_N2: Points times their labels.

    Returns:
        The direction (2,), and the margin.

    Raises:
        UserError: scikit-learn is not installed, or no direction separates the points.
    """
    svm = _sklearn("svm")
    x = torch.cat([x_N2, -x_N2]).numpy()
    solver = svm.SVC(kernel="linear", C=HARD, tol=1e-10).fit(x, [1.0] * len(x_N2) + [-1.0] * len(x_N2))
    w_2 = torch.from_numpy(solver.coef_[0].copy())
    direction_2 = w_2 / w_2.norm()
    margin = (x_N2 @ direction_2).min().item()
    if margin <= 0:
        raise UserError("no line through 0 separates the points, expected separable ones: draw other points")
    return direction_2, margin


def regularized_minimum(x_N2: Tensor, label_N: Tensor, lam: float) -> Tensor:
    """The minimum of (1/n) sum log(1 + exp(-x_i^T w)) + lam/2 ||w||^2, by scikit-learn (C = 1 / (n lam)).

    Args:
        x_N2: Points times their labels.
        label_N: The labels, both signs among them.
        lam: The decay, > 0.

    Returns:
        The minimum, (2,).

    Raises:
        UserError: scikit-learn is not installed.
    """
    linear_model = _sklearn("linear_model")
    solver = linear_model.LogisticRegression(
        C=1 / (len(x_N2) * lam), fit_intercept=False, solver="newton-cholesky", tol=1e-13, max_iter=1000
    )
    solver.fit((x_N2 * label_N[:, None]).numpy(), label_N.numpy())
    return torch.from_numpy(solver.coef_[0].copy())


def _sklearn(part: str):  # type: ignore[no-untyped-def]  # the package has no annotations
    import importlib

    try:
        return importlib.import_module(f"sklearn.{part}")
    except ImportError as error:
        raise UserError(
            "this run compares with scikit-learn, which is not installed: pip install 'torch-halflife[study]'"
        ) from error
