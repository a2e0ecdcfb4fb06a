"""The runs of the textbook examples against loops by hand, closed forms and other solvers."""

from __future__ import annotations

import dataclasses
import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.stats import norm

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.lab.seeds import seed_of
from halflife.studies.lab.synthetic import relu_regression, separable
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ReluRegressionRun, SeparableRun, spec_from_json
from halflife.studies.store.records import Array, Reading

RELU = ReluRegressionRun(
    width=4, num_points=5, lr=0.08, lr_after_drop=0.02, drop_step=20, warmup_steps=8, lam=0.1, label_noise=0.3,
    num_steps=30, num_replicas=2, eval_every=7, seed=3,
)  # fmt: skip
PLANE = SeparableRun(points="random", num_points=6, num_datasets=3, lr=0.7, num_steps=25, seed=2)


def relu_run(spec: ReluRegressionRun) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append)
    return readings


def plane_run(spec: SeparableRun) -> list[Reading]:
    readings: list[Reading] = []
    train(spec, sink=readings.append)
    return readings


def numbers(array: Array) -> np.ndarray[Any, np.dtype[np.float64]]:
    assert array.dtype == "<f8"
    return np.frombuffer(array.data, dtype="<f8")


def generator(purpose: str, seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed_of(f"relu-regression/{purpose}/{seed}"))


class Net:
    """One net as lists of numbers."""

    def __init__(self, a: list[float], w: list[float], b: list[float]) -> None:
        self.a, self.w, self.b, self.c = a, w, b, 0.0

    def __call__(self, x: float) -> float:
        return self.c + sum(a * max(w * x + b, 0.0) for a, w, b in zip(self.a, self.w, self.b, strict=True))

    def step(self, x: float, y: float, lr: float, lam: float) -> None:
        error = self(x) - y
        for j, (a, w, b) in enumerate(zip(self.a, self.w, self.b, strict=True)):
            on = w * x + b > 0
            self.a[j] = (1 - lr * lam) * a - lr * error * max(w * x + b, 0.0)
            self.w[j] = (1 - lr * lam) * w - lr * (error * a * x if on else 0.0)
            self.b[j] = (1 - lr * lam) * b - lr * (error * a if on else 0.0)
        self.c = (1 - lr * lam) * self.c - lr * error


def nets_by_hand(spec: ReluRegressionRun) -> dict[int, list[Net]]:
    """The nets after each step."""
    problem = relu_regression.Problem(spec, generator("problem", spec.seed))
    start = torch.randn(
        3, spec.num_replicas, spec.width, generator=generator("weights", spec.seed), dtype=torch.float64
    )
    order, noise = generator("order", spec.seed), generator("label-noise", spec.seed)
    points = torch.randint(spec.num_points, (4096, spec.num_replicas, 1), generator=order)
    noises = torch.randn(4096, spec.num_replicas, 1, generator=noise, dtype=torch.float64)
    nets = [
        Net(
            [spec.init_scale / math.sqrt(spec.width) * value for value in start[0, r].tolist()],
            start[1, r].tolist(),
            start[2, r].tolist(),
        )
        for r in range(spec.num_replicas)
    ]
    found = {}
    for step in range(spec.num_steps + 1):
        found[step] = [Net(list(net.a), list(net.w), list(net.b)) for net in nets]
        for copy, net in zip(found[step], nets, strict=True):
            copy.c = net.c
        lr = 0.02 if step >= 20 else 0.08 * min(1, (step + 1) / 8)
        for r, net in enumerate(nets):
            index = int(points[step, r])
            x, y = problem.x_RN[r, index].item(), problem.y_RN[r, index].item()
            net.step(x, y + (0.3 * noises[step, r].item() if step < 20 else 0.0), lr, 0.1)
    return found


def test_a_run_is_what_a_loop_over_units_does() -> None:
    nets = nets_by_hand(RELU)
    readings = {reading.step: reading for reading in relu_run(RELU)}
    assert sorted(readings) == [0, 7, 14, 20, 21, 28, 30]
    problem = relu_regression.Problem(RELU, generator("problem", RELU.seed))
    for step, reading in readings.items():
        expected: dict[str, list[float]] = {}
        for r, net in enumerate(nets[step]):
            xs, ys = problem.x_RN[r].tolist(), problem.y_RN[r].tolist()
            # A function of finite differences: slopes left and right of every place where they may differ.
            places = sorted(t for t in (-b / w for w, b in zip(net.w, net.b, strict=True)) if xs[0] < t < xs[-1])
            edges = [xs[0], *places, xs[-1]]
            slopes = [(net(right) - net(left)) / (right - left) for left, right in itertools.pairwise(edges)]
            lines = [(y1 - y0) / (x1 - x0) for (x0, y0), (x1, y1) in itertools.pairwise(zip(xs, ys, strict=True))]
            grid = [xs[0] + (xs[-1] - xs[0]) * i / 400 for i in range(401)]
            truth = [
                problem.slope_R1[r].item() * x
                + sum(
                    c * max(x - k, 0.0)
                    for c, k in zip(problem.changes_RK[r].tolist(), problem.kinks_RK[r].tolist(), strict=True)
                )
                for x in grid
            ]
            gradients = [
                [max(w * x + b, 0.0) for w, b in zip(net.w, net.b, strict=True)]
                + [a * x * (w * x + b > 0) for a, w, b in zip(net.a, net.w, net.b, strict=True)]
                + [a * (w * x + b > 0) for a, w, b in zip(net.a, net.w, net.b, strict=True)]
                + [1.0]
                for x in xs
            ]
            matrix = np.array(gradients).T @ np.array(gradients) / len(xs)
            for name, value in {
                "train/rmse": math.sqrt(np.mean([(net(x) - y) ** 2 for x, y in zip(xs, ys, strict=True)])),
                "train/spread": float(np.std(ys)),
                "test/rmse": math.sqrt(np.mean([(net(x) - y) ** 2 for x, y in zip(grid, truth, strict=True)])),
                "variation": sum(abs(right - left) for left, right in itertools.pairwise(slopes)),
                "least_variation": sum(abs(right - left) for left, right in itertools.pairwise(lines)),
                "path_norm": sum(abs(a) * math.hypot(w, b) for a, w, b in zip(net.a, net.w, net.b, strict=True)),
                "top_eigenvalue": float(np.linalg.eigvalsh(matrix)[-1]),
            }.items():
                expected.setdefault(name, []).append(value)
        for name, values in expected.items():
            assert reading.values[name] == pytest.approx(np.mean(values), rel=1e-7), (step, name)
    assert readings[7].values["lr"] == pytest.approx(0.07)
    assert readings[30].values["fraction"] == pytest.approx(0.002)
    assert not readings[28].arrays
    last = readings[30].arrays
    np.testing.assert_allclose(numbers(last["points/x"]), problem.x_RN[0], rtol=1e-12)
    np.testing.assert_allclose(numbers(last["points/y"]), problem.y_RN[0], rtol=1e-12)
    np.testing.assert_allclose(
        numbers(last["function"]), [nets[30][0](x) for x in numbers(last["grid"])], rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(numbers(last["teacher"])[[0, -1]], problem.y_RN[0, [0, -1]], rtol=1e-12)


def test_the_points_and_teachers_are_those_that_the_spec_promises() -> None:
    spec = replace(RELU, num_replicas=200, num_points=12)
    problem = relu_regression.Problem(spec, generator("problem", 0))
    even = torch.linspace(-1, 1, 12, dtype=torch.float64)
    assert ((problem.x_RN - even).abs() <= 0.5 / 11).all()
    assert (problem.x_RN.diff() > 0).all()
    assert (problem.changes_RK.abs() >= 1).all()
    assert (problem.changes_RK.abs() <= 2).all()
    assert 0.4 < (problem.changes_RK > 0).double().mean() < 0.6
    left, right = (
        problem.teacher(torch.full((200, 1), -0.7).double()),
        problem.teacher(torch.full((200, 1), -0.9).double()),
    )
    torch.testing.assert_close((left - right) / 0.2, problem.slope_R1)  # no kink there


def test_no_function_through_the_points_has_less_variation() -> None:
    """At the end of a run that meets the points, and by much before."""
    spec = ReluRegressionRun(width=30, lr=0.1, lr_after_drop=0.05, drop_step=4000, warmup_steps=500, num_steps=5000)
    last = relu_run(replace(spec, eval_every=5000, num_replicas=4))[-1].values
    assert last["train/rmse"] < 0.05
    assert last["least_variation"] < last["variation"] < 4 * last["least_variation"]


def test_effective_kinks_by_hand() -> None:
    places = torch.tensor([[0.005, 0.015, 0.5, 0.99], [0.1, 0.3, 0.5, 0.7], [0.1, float("nan"), float("inf"), -4.0]])
    changes = torch.tensor([[1.0, 1.0, -3.0, 1.0], [2.0, -2.0, 2.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    # In the first row the first two fall into one cell: sizes 2, 3, 1.
    found = relu_regression.effective_kinks(places, changes)
    assert found.tolist() == pytest.approx([36 / 14, 4.0, 0.0])


def test_weight_of_kinks_is_the_formula_of_the_paper_and_bounds_the_top_eigenvalue() -> None:
    gen = torch.Generator().manual_seed(5)
    x = torch.rand(1, 7, generator=gen, dtype=torch.float64).sort(dim=1).values * 2 - 1
    kinks = torch.tensor([[-0.4, 0.05, 0.6, 3.0, float("inf")]], dtype=torch.float64)
    found = relu_regression.weight_of_kinks(kinks, x)[0].tolist()
    xs = x[0].tolist()
    for t, weight in zip(kinks[0].tolist()[:3], found[:3], strict=True):
        sides = []
        for part in ([v for v in xs if v > t], [v for v in xs if v < t]):
            share = len(part) / len(xs)
            mean_distance = sum(abs(v - t) for v in part) / len(part)
            sides.append(share**2 * mean_distance * math.sqrt(1 + (sum(part) / len(part)) ** 2))
        assert weight == pytest.approx(min(sides), rel=1e-12)
    assert found[3:] == [0, 0]
    # Whatever the weights, at a minimum or not: it bounds the Gauss-Newton matrix.
    for seed in range(20):
        values = relu_run(replace(RELU, seed=seed, num_replicas=1, num_steps=20, eval_every=5))
        for reading in values:
            assert reading.values["smoothness_bound"] <= reading.values["top_eigenvalue"] * (1 + 1e-12)


def test_relu_runs_are_cut_stopped_and_fail_in_words() -> None:
    whole, cut = relu_run(RELU), relu_run(RELU.cut(9))
    assert [reading.step for reading in cut] == [0, 7, 9]
    assert cut[:2] == whole[:2]
    assert cut[-1].arrays
    with pytest.raises(RunStoppedError, match="stopped after step 7 of 30: it will start over"):
        train(RELU, sink=lambda _: None, stop=lambda: True)
    with pytest.raises(
        RunFailedError,
        match=r"the training loss became NaN or infinite at step \d+ \(lr 1e\+06, width 4, seed 3\): lower",
    ):
        relu_run(replace(RELU, lr=1e6, lam=0.0, warmup_steps=0))
    steps: list[tuple[int, int]] = []
    costs = train(RELU, sink=lambda _: None, progress=lambda step, num, _: steps.append((step, num)))
    assert steps == [(s, 30) for s in (7, 14, 20, 21, 28, 30)]
    assert costs["samples_per_second"] > 0


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    relu_run(RELU)
    plane_run(PLANE)
    assert torch.equal(torch.get_rng_state(), before)


# ---- separable points


@pytest.mark.parametrize("points", ["planted", "random", "outlier"])
@pytest.mark.parametrize("lam", [0.0, 0.2])
def test_a_run_in_the_plane_is_what_a_loop_over_points_does(points: str, lam: float) -> None:
    spec = replace(PLANE, points=points, lam=lam)
    sets = separable.DataSets(spec)
    readings = {reading.step: reading.values for reading in plane_run(spec)}
    assert sorted(readings) == [1, 2, 3, 4, 5, 6, 8, 10, 13, 16, 20, 25]
    path: dict[int, list[list[float]]] = {0: [[0.0, 0.0] for _ in range(3)]}
    for step in range(1, 26):
        path[step] = []
        for r in range(3):
            w = path[step - 1][r]
            gradient = [0.0, 0.0]
            for x in sets.x_RN2[r].tolist():
                factor = -1 / (1 + math.exp(x[0] * w[0] + x[1] * w[1])) / 6
                gradient = [gradient[0] + factor * x[0], gradient[1] + factor * x[1]]
            path[step].append([(1 - 0.7 * lam) * w[i] - 0.7 * gradient[i] for i in range(2)])
    for step, values in readings.items():
        angles, norms, losses, wrong, errors = [], [], [], [], []
        for r in range(3):
            w_2 = np.array(path[step][r])
            direction, margin = separable.hard_margin(sets.x_RN2[r])
            angles.append(math.acos(min(1.0, float(w_2 @ direction.numpy() / np.linalg.norm(w_2)))))
            norms.append(np.linalg.norm(w_2) * margin)
            outputs = sets.x_RN2[r].numpy() @ w_2
            losses.append(np.mean(np.log1p(np.exp(-outputs))))
            wrong.append(np.mean(outputs <= 0))
            errors.append(norm.cdf(-2 * (w_2 @ sets.u_R2[r].numpy()) / np.linalg.norm(w_2)))
        assert values["angle"] == pytest.approx(np.mean(angles), rel=1e-6)
        assert values["norm"] == pytest.approx(np.mean(norms), rel=1e-9)
        assert values["train/loss"] == pytest.approx(math.exp(np.mean(np.log(losses))), rel=1e-9)
        assert values["train/error"] == np.mean(wrong)
        assert values["fraction"] == pytest.approx(0.7 * lam)
        assert ("test/error" in values) == (points != "planted")
        if points != "planted":
            assert values["test/error"] == pytest.approx(np.mean(errors), rel=1e-9)
        assert ("theory/angle" in values) == (points == "planted" and lam == 0)
        assert ("regularized/distance" in values) == (lam > 0)


def margin_by_enumeration(x_N2: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], float]:
    """The best of all directions that one point or two points of equal margin can determine."""
    found: tuple[np.ndarray[Any, Any], float] = (np.zeros(2), -math.inf)
    candidates = list(x_N2)
    for a, b in itertools.combinations(x_N2, 2):
        difference = a - b
        candidates += [np.array([-difference[1], difference[0]]), np.array([difference[1], -difference[0]])]
    for candidate in candidates:
        unit = candidate / np.linalg.norm(candidate)
        margin = float((x_N2 @ unit).min())
        if margin > found[1]:
            found = unit, margin
    return found


@pytest.mark.parametrize("points", ["planted", "random", "outlier"])
def test_the_hard_margin_is_that_of_an_enumeration(points: str) -> None:
    sets = separable.DataSets(SeparableRun(points=points, num_datasets=12, num_steps=1, seed=7))
    for r, x_N2 in enumerate(sets.x_RN2):
        direction, margin = separable.hard_margin(x_N2)
        unit, best = margin_by_enumeration(x_N2.numpy())
        np.testing.assert_allclose(direction.numpy(), unit, atol=1e-7)
        assert margin == pytest.approx(best, rel=1e-6)
        along = x_N2 @ sets.u_R2[r]
        if points == "planted":
            np.testing.assert_allclose(direction.numpy(), sets.u_R2[r].numpy(), atol=1e-7)
            assert margin == pytest.approx(1)
            assert sorted(along.tolist())[2] > 2
        else:
            assert (along[:-1] >= 0.5).all()
            assert (along[-1] < 0) == (points == "outlier")


def test_points_that_no_line_separates_are_refused() -> None:
    x = torch.tensor([[1.0, 0.0], [-1.0, 0.1], [0.0, -1.0]], dtype=torch.float64)
    with pytest.raises(UserError, match="no line through 0 separates the points, expected separable ones"):
        separable.hard_margin(x)


@pytest.mark.parametrize("lam", [1e-4, 0.01, 1.0])
def test_the_regularized_minimum_is_that_of_scipy(lam: float) -> None:
    sets = separable.DataSets(SeparableRun(points="outlier", num_datasets=3, num_steps=1, seed=7))
    for x_N2 in sets.x_RN2:
        x = x_N2.numpy()

        def loss(w: np.ndarray[Any, Any], x: np.ndarray[Any, Any] = x) -> float:
            return float(np.logaddexp(0, -x @ w).mean() + lam / 2 * w @ w)

        def slope(w: np.ndarray[Any, Any], x: np.ndarray[Any, Any] = x) -> np.ndarray[Any, Any]:
            return np.asarray(-(x / (1 + np.exp(x @ w))[:, None]).mean(axis=0) + lam * w)

        best = minimize(loss, np.zeros(2), jac=slope, method="BFGS", options={"gtol": 1e-11}).x
        found = separable.regularized_minimum(x_N2, sets.label_N, lam).numpy()
        np.testing.assert_allclose(found, best, rtol=1e-5)
        assert np.abs(slope(found)).max() < 1e-10


def test_the_rest_solves_the_equations_of_the_support_vectors_and_gradient_descent_finds_it() -> None:
    spec = SeparableRun(num_steps=20_000, num_datasets=2, num_points=8)
    sets = separable.DataSets(spec)
    along, across = separable.asymptotic_rest(sets.s_2R, spec.lr, spec.num_points)
    for r in range(2):
        s_1, s_2 = sets.s_2R[:, r].tolist()
        alphas = [spec.lr / 8 * math.exp(-(along[r].item() + s * across[r].item())) for s in (s_1, -s_2)]
        assert sum(alphas) == pytest.approx(1)
        assert alphas[0] * s_1 == pytest.approx(alphas[1] * s_2)
    values = plane_run(spec)[-1].values
    assert values["angle"] == pytest.approx(values["theory/angle"], rel=2e-3)
    assert values["norm"] == pytest.approx(values["theory/norm"], rel=2e-3)
    # Almost right: Soudry et al. take the sum over points, for which n is 1.
    of_sum, _ = separable.asymptotic_rest(sets.s_2R, spec.lr, 1)
    assert (of_sum - along).tolist() == pytest.approx([math.log(8)] * 2)


def test_the_test_error_is_that_of_drawn_points() -> None:
    spec = replace(PLANE, points="outlier", num_datasets=1)
    last = plane_run(spec)[-1]
    w = numbers(last.arrays["weights"])
    u = separable.DataSets(spec).u_R2[0].numpy()
    drawn = 2 * u + np.random.default_rng(0).standard_normal((200_000, 2))
    share = float((drawn @ w < 0).mean())
    error = last.values["test/error"]
    assert abs(share - error) < 4 * math.sqrt(error * (1 - error) / 200_000)


def test_with_decay_the_minimum_is_reached() -> None:
    values = plane_run(replace(PLANE, lam=0.1, num_steps=300))[-1].values
    assert values["regularized/distance"] < 1e-9
    assert values["angle"] == pytest.approx(values["regularized/angle"], rel=1e-6)


def test_arrays_of_the_first_set() -> None:
    last = plane_run(replace(PLANE, points="random"))[-1]
    sets = separable.DataSets(replace(PLANE, points="random"))
    label = numbers(last.arrays["points/label"])
    assert label.tolist() == [1, -1, 1, -1, 1, -1]
    drawn = np.stack([numbers(last.arrays[f"points/{name}"]) for name in "xy"], axis=1)
    np.testing.assert_allclose(drawn * label[:, None], sets.x_RN2[0], rtol=1e-12)
    hard = numbers(last.arrays["hard_margin"])
    np.testing.assert_allclose(hard, separable.hard_margin(sets.x_RN2[0])[0])
    w = numbers(last.arrays["weights"])
    assert (drawn @ w * label > 0).all()


def test_runs_in_the_plane_are_cut_stopped_and_fail_in_words() -> None:
    whole, cut = plane_run(PLANE), plane_run(PLANE.cut(9))
    assert [reading.step for reading in cut] == [1, 2, 3, 4, 5, 6, 8, 9]
    assert cut[:7] == whole[:7]
    assert whole == plane_run(PLANE) != plane_run(replace(PLANE, seed=3))
    with pytest.raises(RunStoppedError, match="stopped after step 1 of 25: it will start over"):
        train(PLANE, sink=lambda _: None, stop=lambda: True)
    with pytest.raises(RunFailedError, match=r"a weight became NaN or infinite at step 1 \(lr 1\.7e\+308"):
        plane_run(replace(PLANE, lr=1.7e308, points="planted"))


def test_without_scikit_learn_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sklearn.svm", None)
    with pytest.raises(UserError, match=r"scikit-learn, which is not installed: pip install 'torch-halflife\[study\]'"):
        plane_run(PLANE)


# ---- specs


def test_json_and_digests() -> None:
    others: dict[str, Any] = {
        "seed": 1, "max_steps": 5, "width": 5, "num_points": 6, "teacher_kinks": 3, "init_scale": 1.0, "lr": 0.3,
        "lr_after_drop": 0.1, "drop_step": 12, "warmup_steps": 0, "lam": 0.0, "label_noise": 0.0, "num_steps": 31,
        "num_replicas": 3, "eval_every": 5,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(RELU)}
    assert len({replace(RELU, **{name: value}).digest() for name, value in others.items()} | {RELU.digest()}) == 16
    assert spec_from_json(RELU.to_json()) == RELU
    others = {
        "seed": 1, "max_steps": 5, "points": "planted", "num_points": 7, "num_datasets": 2, "lr": 0.3, "lam": 0.1,
        "num_steps": 26,
    }  # fmt: skip
    assert set(others) == {field.name for field in dataclasses.fields(PLANE)}
    assert len({replace(PLANE, **{name: value}).digest() for name, value in others.items()} | {PLANE.digest()}) == 9
    assert spec_from_json(PLANE.to_json()) == PLANE


def test_steps_that_are_read() -> None:
    steps = replace(PLANE, num_steps=1_000_000).read_steps
    assert {1, 10, 100, 1000, 10_000, 100_000, 1_000_000} <= set(steps)
    assert len([step for step in steps if 1000 < step <= 10_000]) == 10


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"lr": 0.0}, "lr is 0.0, expected a finite number > 0"),
        ({"init_scale": -1.0}, "init_scale is -1.0"),
        ({"label_noise": -0.1}, "label_noise is -0.1, expected a finite number >= 0"),
        ({"lam": 20.0}, r"lr \* lam is 1.6, expected < 1 .*: lower lr or lam"),
        ({"num_points": 2}, "num_points is 2, expected an integer >= 3"),
        ({"width": 0}, "width is 0, expected an integer >= 1"),
        ({"drop_step": 31}, "drop_step is 31, expected at most num_steps 30: change drop_step"),
        ({"warmup_steps": 31}, "warmup_steps is 31, expected at most num_steps 30"),
        ({"max_steps": 0}, "max_steps is 0, expected an integer >= 1"),
    ],
)
def test_bad_specs_of_nets(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(RELU, **fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"points": "moons"}, "points is 'moons', expected one of planted, random, outlier: change points"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"lam": 2.0}, r"lr \* lam is 1.4, expected < 1"),
        ({"num_points": 3}, "num_points is 3, expected an integer >= 4"),
        ({"num_datasets": 0}, "num_datasets is 0, expected an integer >= 1"),
        ({"max_steps": 0}, "max_steps is 0"),
    ],
)
def test_bad_specs_of_classifiers(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(PLANE, **fields)
