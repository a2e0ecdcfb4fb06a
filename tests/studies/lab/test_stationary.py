"""SGD until it is stationary: derivatives against autograd, steps against a loop, minima against closed forms."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.catalog.theory.stationary_mean.theory import fitted
from halflife.studies.evidence.readings import unpacked
from halflife.studies.lab.stationary.functions import Function, Product, Square, TanhNet
from halflife.studies.lab.stationary.minimum import minimize
from halflife.studies.lab.stationary.problem import Loss, Problem, generator_of, make_problem
from halflife.studies.lab.stationary.source import describe
from halflife.studies.lab.trainer import train
from halflife.studies.specs import StationaryRun, spec_from_json
from halflife.studies.store.records import Reading

SPARSE = StationaryRun(
    model="product", data="sparse", num_examples=6, num_held_out=4, num_inputs=5, num_relevant=2, label_noise=0.7,
    lr=0.05, lam=0.1, batch_size=2, burn_in=4, num_steps=13, measure_every=2, num_replicas=3, init=0.8,
    prefactors=(0.0, 0.5, 1.0, 2.0),
)  # fmt: skip
NET = replace(SPARSE, model="tanh", data="fashion-mnist-5k", hidden=3, downsample=14, loss="logistic", label_noise=0.1)
FUNCTIONS: dict[str, Function] = {"product": Product(4), "square": Square(4), "tanh": TanhNet(4, 3)}


def run(spec: StationaryRun) -> Reading:
    readings: list[Reading] = []
    train(spec, sink=readings.append)
    (reading,) = readings
    return reading


def array(reading: Reading, name: str) -> NDArray[np.float64]:
    return unpacked(reading.arrays[name])


# ---- derivatives


def jacobian_of(function: Callable[[Tensor], Tensor], w_D: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.jacobian(function, w_D)  # type: ignore[no-untyped-call]
    return found


def hessian_of(function: Callable[[Tensor], Tensor], w_D: Tensor) -> Tensor:
    found: Tensor = torch.autograd.functional.hessian(function, w_D)  # type: ignore[no-untyped-call]
    return found


@pytest.mark.parametrize("name", FUNCTIONS)
def test_derivatives_are_those_of_autograd(name: str) -> None:
    function = FUNCTIONS[name]
    generator = torch.Generator().manual_seed(3)
    w_RD = torch.randn(2, function.num_parameters, generator=generator, dtype=torch.float64)
    x_RNI = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    d_RN = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    h_RN, pull_back = function.linearized(w_RD, x_RNI)
    pulled_RD = pull_back(d_RN)
    for replica in range(2):

        def outputs(w_D: Tensor, replica: int = replica) -> Tensor:
            return function.outputs(w_D[None], x_RNI[replica : replica + 1])[0]

        def entry(n: int, w_D: Tensor, outputs: Callable[[Tensor], Tensor] = outputs) -> Tensor:
            return outputs(w_D)[n]

        w_D = w_RD[replica]
        torch.testing.assert_close(h_RN[replica], outputs(w_D))
        jacobian_ND = jacobian_of(outputs, w_D)
        torch.testing.assert_close(pulled_RD[replica], d_RN[replica] @ jacobian_ND)
        torch.testing.assert_close(function.jacobian_sq(w_RD, x_RNI)[replica], jacobian_ND.square().sum(dim=1))
        for n in range(5):
            hessian = hessian_of(functools.partial(entry, n), w_D)
            torch.testing.assert_close(function.laplacian(w_RD, x_RNI)[replica, n], torch.trace(hessian))


def test_the_nets_output_is_the_formula() -> None:
    net = TanhNet(2, 3)
    w_D = torch.randn(net.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    inner, b, a, c = w_D[:6].view(3, 2), w_D[6:9], w_D[9:12], w_D[12]
    x = torch.tensor([0.3, -1.2], dtype=torch.float64)
    assert net.outputs(w_D[None], x[None, None])[0, 0] == pytest.approx(float(a @ torch.tanh(inner @ x + b) + c))


@pytest.mark.parametrize("model", ["square", "tanh"])
@pytest.mark.parametrize(("loss", "noise"), [("squared", 0.5), ("logistic", 0.0), ("logistic", 0.3)])
def test_regularizers_are_those_of_dense_matrices(model: str, loss: str, noise: float) -> None:
    """The Hessian of the expected loss, written out over the values of the noise."""
    function = FUNCTIONS[model]
    generator = torch.Generator().manual_seed(5)
    x_NI = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    y_N = torch.tensor([1.0, -1, 1, 1, -1, -1], dtype=torch.float64)
    w_D = torch.randn(function.num_parameters, generator=generator, dtype=torch.float64)
    problem = Problem(function, Loss(loss, noise), 0.3, x_NI, y_N)

    def expected_loss(w: Tensor) -> Tensor:
        h_N = function.outputs(w[None], x_NI[None])[0]
        if loss == "squared":
            both = [0.5 * (h_N - y_N - sign * noise) ** 2 for sign in (1, -1)]
            return (both[0] + both[1]).mean() / 2
        losses = [torch.log(1 + torch.exp(-sign * y_N * h_N)) for sign in (1, -1)]
        return ((1 - noise) * losses[0] + noise * losses[1]).mean()

    trace = torch.trace(hessian_of(expected_loss, w_D)).item()
    jacobian = jacobian_of(lambda w: function.outputs(w[None], x_NI[None])[0], w_D)
    jacobian_sq = (jacobian.square().sum() / 6).item()
    assert problem.regularizer(w_D[None], "hessian").item() == pytest.approx(trace, rel=1e-10)
    assert problem.regularizer(w_D[None], "jacobian").item() == pytest.approx(jacobian_sq, rel=1e-10)
    base = expected_loss(w_D).item() + 0.15 * w_D.square().sum().item()
    for name, value in (("hessian", trace), ("jacobian", jacobian_sq)):
        assert problem.objective(w_D[None], name, 0.7).item() == pytest.approx(base + 0.7 * value, rel=1e-10)


def test_noisy_labels_are_as_the_loss_says() -> None:
    y, uniform = torch.tensor([1.0, 1.0, -1.0, -1.0]), torch.tensor([0.1, 0.6, 0.1, 0.6])
    assert Loss("squared", 0.5).noisy(y, uniform).tolist() == pytest.approx([0.5, 1.5, -1.5, -0.5])
    assert Loss("logistic", 0.2).noisy(y, uniform).tolist() == [-1, 1, 1, -1]


# ---- the process


def test_it_equals_a_loop_over_scalars() -> None:
    """Replica after replica, autograd for the gradient, averages as lists."""
    spec = SPARSE
    problem = make_problem(spec)
    generator = generator_of(spec, "steps")
    size = (2**19 // 6, 3, 2)
    index = torch.randint(6, size, generator=generator)
    uniform = torch.rand(size, generator=generator, dtype=torch.float64)
    means, weights, slopes = [], [], []
    x, y = problem.x_MI, problem.y_N
    for replica in range(3):
        w = torch.tensor([0.8] * 5 + [0.0] * 5, dtype=torch.float64)
        outputs, visited = [], []
        for step in range(13):
            w.requires_grad_()
            loss = torch.zeros((), dtype=torch.float64)
            for b in range(2):
                n = int(index[step, replica, b])
                label = y[n] + (-0.7 if uniform[step, replica, b] < 0.5 else 0.7)
                h = sum((w[i] * w[5 + i] * x[n, i] for i in range(5)), torch.zeros((), dtype=torch.float64))
                loss = loss + 0.5 * (h - label) ** 2 / 2
                if step >= 4:
                    slopes.append(float(h.detach() - label))
            (gradient,) = torch.autograd.grad(loss, [w])
            w = (w * (1 - 0.05 * 0.1) - 0.05 * gradient).detach()
            if step + 1 in (6, 8, 10, 12):
                outputs.append((x @ (w[:5] * w[5:])).numpy())
                visited.append(w.numpy())
        means.append(np.mean(outputs, axis=0))
        weights.append(np.mean(visited, axis=0))
    reading = run(spec)
    found = np.concatenate([array(reading, "mean/train"), array(reading, "mean/held-out")])
    assert found == pytest.approx(np.mean(means, axis=0), rel=1e-5)
    errors = np.concatenate([array(reading, "se/train"), array(reading, "se/held-out")])
    assert errors == pytest.approx(np.std(means, axis=0, ddof=1) / math.sqrt(3), rel=1e-4)
    mean_w = np.mean(weights, axis=0)
    expected = x.numpy() @ (mean_w[:5] * mean_w[5:])
    assert array(reading, "weights/train") == pytest.approx(expected[:6], rel=1e-5)
    assert reading.values["noise_sq"] == pytest.approx(np.mean(np.square(slopes)), rel=1e-10)
    assert reading.values["noise_scale"] == pytest.approx(np.mean(np.abs(slopes)), rel=1e-10)
    assert reading.step == 13


def test_the_mean_is_where_theory_says_on_one_parameter() -> None:
    """h = u^2 to first order in lr: E h = y - lr s^2, (E u)^2 = y - 3/2 lr s^2; the trace is 6 u^2 - 2 y, so c = 1/6."""
    spec = StationaryRun(
        model="square", lr=0.04, label_noise=0.5, burn_in=500, num_steps=4000, num_replicas=1000,
        prefactors=(0.0, 0.1, 0.15, 0.2, 0.25, 0.3, 0.5, 1.0),
    )  # fmt: skip
    reading = run(spec)
    (mean,), (error,), (weights,) = (array(reading, f"{name}/train") for name in ("mean", "se", "weights"))
    sigma_sq = reading.values["noise_sq"]
    assert error < 0.033 * (1 - mean)
    assert 1 - mean == pytest.approx(0.04 * sigma_sq, rel=0.1)
    assert 1 - weights == pytest.approx(1.5 * 0.04 * sigma_sq, rel=0.1)
    c_K = np.array(spec.prefactors)
    for regularizer, c in (("jacobian", 1 / 4), ("hessian", 1 / 6)):
        minima_K = array(reading, f"minimum/{regularizer}/train")
        slope = {"jacobian": 4.0, "hessian": 6.0}[regularizer]  # h = y - slope c lr sigma^2, exactly
        assert minima_K == pytest.approx(1 - slope * c_K * 0.04 * sigma_sq, abs=1e-6)
        assert fitted(c_K, minima_K[:, None], np.array([mean])) == pytest.approx(c, rel=0.1)


# ---- minima


def weighted_lasso(x_NI: NDArray[Any], y_N: NDArray[Any], penalty_I: NDArray[Any]) -> NDArray[Any]:
    """argmin mean (x b - y)^2 / 2 + sum penalty |b|, coordinate by coordinate."""
    beta = np.zeros(x_NI.shape[1])
    for _ in range(3000):
        for i in range(len(beta)):
            rest = y_N - x_NI @ beta + x_NI[:, i] * beta[i]
            pull = x_NI[:, i] @ rest / len(y_N)
            beta[i] = np.sign(pull) * max(abs(pull) - penalty_I[i], 0) / np.mean(x_NI[:, i] ** 2)
    return beta


@pytest.mark.parametrize("weight", [0.0, 0.04])
def test_the_diagonal_networks_minimum_is_that_of_a_lasso(weight: float) -> None:
    """Given u v, u^2 + v^2 is least at 2 |u v|: decay and ||J||^2 = sum_j mean x_j^2 (u_j^2 + v_j^2) are l1 penalties."""
    problem = make_problem(replace(SPARSE, num_examples=9))
    x_NI, y_N = problem.x_MI[:9].numpy(), problem.y_N.numpy()
    start_D = torch.randn(10, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = minimize(problem, start_D, "jacobian", weight)
    beta = weighted_lasso(x_NI, y_N, 0.1 + 2 * weight * (x_NI**2).mean(axis=0))
    assert (found.w_D[:5] * found.w_D[5:]).numpy() == pytest.approx(beta, abs=1e-6)
    assert found.gradient < 1e-7
    assert (np.abs(beta) > 1e-3).sum() < 5 or weight == 0


def test_a_nets_minimum_is_stationary_and_the_lowest_is_no_higher() -> None:
    reading = run(replace(NET, searched=(0.5, 2.0), num_starts=3))
    assert reading.values["gradient"] < 1e-6
    for regularizer in ("jacobian", "hessian"):
        assert (array(reading, f"gain/{regularizer}") >= 0).all()
        assert len(array(reading, f"lowest/{regularizer}/train")) == 2 * 6
        assert len(array(reading, f"minimum/{regularizer}/held-out")) == 4 * 4


def test_prefactors_are_of_lr_over_batch_times_the_noise() -> None:
    """On one example of one input, h* = y - lam - 2 (c / B) lr sigma^2."""
    spec = StationaryRun(
        model="product", lr=0.1, lam=0.05, label_noise=0.4, batch_size=4, burn_in=50, num_steps=150, num_replicas=2,
        prefactors=(0.0, 1.0, 3.0),
    )  # fmt: skip
    reading = run(spec)
    step = 2 / 4 * 0.1 * reading.values["noise_sq"]
    assert array(reading, "minimum/jacobian/train") == pytest.approx(0.95 - step * np.array(spec.prefactors), abs=1e-6)


# ---- data, and how runs begin and end


def test_images_are_two_classes_of_the_shipped_set() -> None:
    problem = make_problem(replace(NET, num_examples=20, num_held_out=10, classes=(0, 1)))
    assert problem.x_MI.shape == (30, 4)
    assert set(problem.y_N.tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(problem.x_MI[:20].mean(dim=0), torch.zeros(4, dtype=torch.float64))
    torch.testing.assert_close(problem.x_MI[:20].var(dim=0), torch.full((4,), 0.25, dtype=torch.float64))
    other = make_problem(replace(NET, num_examples=20, num_held_out=10, classes=(0, 1), seed=1))
    assert not torch.equal(problem.x_MI, other.x_MI)
    with pytest.raises(UserError, match=r"have [0-9]+ images: lower one"):
        make_problem(replace(NET, num_examples=5000))


def test_a_header_names_the_images_and_only_them() -> None:
    assert describe(NET).name == "fashion-mnist-5k"
    assert describe(SPARSE).sha256 == ""


def test_a_run_is_a_function_of_its_spec() -> None:
    first, again, other = (run(spec) for spec in (NET, NET, replace(NET, seed=1)))
    assert first == again
    assert first.values["loss"] != other.values["loss"]


def test_a_cut_run_has_fewer_steps_and_still_a_mean() -> None:
    reading = run(SPARSE.cut(5))
    assert reading.step == 5
    assert "mean/train" in reading.arrays


def test_divergence_and_a_wish_to_stop_end_a_run() -> None:
    with pytest.raises(RunFailedError, match=r"the training loss became NaN or infinite at step"):
        run(replace(SPARSE, lr=9.0, num_steps=400))
    with pytest.raises(RunStoppedError, match="it will start over"):
        train(SPARSE, sink=lambda reading: None, stop=lambda: True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "cubic"}, "model is 'cubic', expected one of product, square, tanh"),
        ({"loss": "logistic", "label_noise": 0.5}, "label_noise is 0.5, expected < 0.5 with the logistic loss"),
        ({"lr": 2.0, "lam": 0.5}, "lr \\* lam is 1, expected < 1"),
        ({"burn_in": 12}, "burn_in is 12 of 13 steps, which leaves nothing to average"),
        ({"prefactors": (0.5, 1.0)}, "expected two or more that ascend from 0"),
        ({"prefactors": (0.0, 1.0, 0.5)}, "expected two or more that ascend from 0"),
        ({"searched": (0.25,)}, "searched is \\(0.25,\\), expected some of prefactors"),
        ({"regularizers": ("norm",)}, "regularizers is \\('norm',\\), expected some of jacobian, hessian"),
        ({"num_relevant": 6}, "num_relevant is 6, expected 1 to num_inputs 5"),
        ({"data": "unit"}, "leave num_examples and num_inputs at 1"),
        ({"classes": (3, 3)}, "expected two different ones"),
        ({"num_replicas": 1}, "num_replicas is 1, expected an integer >= 2"),
    ],
)
def test_bad_values_are_one_sentence(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(SPARSE, **change)


def test_the_spec_survives_json() -> None:
    for spec in (SPARSE, NET):
        assert spec_from_json(spec.to_json()) == spec
    assert dataclasses.replace(SPARSE, lam=0.2).digest() != SPARSE.digest()
