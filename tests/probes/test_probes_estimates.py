"""Random estimates: unbiased, as exact as they say, and the same as their definitions.

Every test has a fixed number of repetitions with fixed seeds, and bounds on a z-score or on the mean square of z-scores.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from halflife import probes
from halflife.probes import Problem
from halflife.probes.estimators import hutch_plus_plus, hutchinson, xtrace
from halflife.probes.operators import Product, random_vectors
from tests.oracles.dense import dense_covariance, dense_gauss_newton, dense_hessian
from tests.probes.probe_nets import conv_problem, mlp_problem
from tests.probes.test_probes import jacobian_by_torch

SIZE = 120
REPETITIONS = 400
Estimator = Callable[[Product, Tensor], tuple[float, float]]


def matrix(kind: str) -> Tensor:
    """A symmetric matrix with a spectrum like those of nets, fast or slow, definite or not."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    index = torch.arange(1, SIZE + 1, dtype=torch.float64)
    signs = torch.where(index % 3 == 0, -1.0, 1.0)
    values = {"flat": 3 - 2 * index / SIZE, "1/i": 1 / index, "both signs": signs / index, "steps": signs * 0.8**index}
    a: Tensor = (basis * values[kind]) @ basis.T
    return a


def signs(count: int, seed: int) -> Tensor:
    drawn = torch.randint(0, 2, (SIZE, count), generator=torch.Generator().manual_seed(seed))
    return drawn.double() * 2 - 1


def repeat(estimator: Estimator, kind: str, num_vectors: int) -> tuple[Tensor, Tensor]:
    """Errors and standard errors of all repetitions."""
    a = matrix(kind)
    found = [estimator(lambda v: a @ v, signs(num_vectors, seed)) for seed in range(REPETITIONS)]
    values, errors = torch.tensor(found, dtype=torch.float64).T
    return values - a.trace(), errors


# By estimator: how many vectors, and between what the mean square of the z-scores, and the mean square of the errors
# over that of the standard errors, must be. Both are 1 for a mean of many independent samples; over 400 repetitions
# their standard error is 0.07 to 0.1. XTrace's standard error is an approximation (see its docstring).
CASES: dict[str, tuple[Estimator, int, float, float]] = {
    "hutchinson": (hutchinson, 100, 0.7, 1.4),
    "hutch++": (hutch_plus_plus, 64, 0.7, 1.4),
    "xtrace": (xtrace, 12, 0.5, 2.0),
}


@pytest.mark.parametrize("kind", ["flat", "1/i", "both signs", "steps"])
@pytest.mark.parametrize("name", list(CASES))
def test_estimates_are_unbiased_and_their_error_is_right(name: str, kind: str) -> None:
    estimator, num_vectors, low, high = CASES[name]
    off, errors = repeat(estimator, kind, num_vectors)
    assert abs(float(off.mean() / (off.std() / math.sqrt(REPETITIONS)))) < 4
    assert low < float((off / errors).square().mean()) < high
    assert low < float(off.square().mean() / errors.square().mean()) < high


def test_the_spread_of_hutchinson_is_the_known_one() -> None:
    a = matrix("both signs")
    off, errors = repeat(hutchinson, "both signs", 100)
    expected = 2 * float(a.square().sum() - a.diagonal().square().sum()) / 100
    # The mean of 400 squares of normal errors has a relative standard error of sqrt(2 / 400).
    assert float(off.square().mean()) == pytest.approx(expected, rel=4 * math.sqrt(2 / REPETITIONS))
    assert float(errors.square().mean()) == pytest.approx(expected, rel=4 * math.sqrt(2 / REPETITIONS))


def test_xtrace_beats_hutchinson_on_a_decaying_spectrum() -> None:
    by_xtrace, _ = repeat(xtrace, "steps", 12)
    by_hutchinson, _ = repeat(hutchinson, "steps", 24)
    assert float(by_xtrace.square().mean()) < float(by_hutchinson.square().mean()) / 25


def deflated(a: Tensor, w: Tensor, sample: Tensor) -> float:
    """Hutch++ by its definition: exact on the range of A w, one sample of what is left."""
    basis = a @ w
    inside = basis @ torch.linalg.pinv(basis)
    outside = (torch.eye(SIZE, dtype=a.dtype) - inside) @ sample
    return float((inside @ a @ inside).trace() + outside @ a @ outside)


def test_estimates_are_those_of_their_definitions() -> None:
    a, w = matrix("both signs"), signs(12, 5)

    def without(i: int) -> Tensor:
        return torch.cat([w[:, :i], w[:, i + 1 :]], dim=1)

    by_definition = {
        hutchinson: [float(w[:, i] @ a @ w[:, i]) for i in range(12)],
        hutch_plus_plus: [deflated(a, w[:, :6], w[:, i]) for i in range(6, 12)],
        xtrace: [deflated(a, without(i), w[:, i]) for i in range(12)],
    }
    for estimator, samples in by_definition.items():
        assert estimator(lambda v: a @ v, w)[0] == pytest.approx(sum(samples) / len(samples), rel=1e-9)


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.HuberLoss(), nn.BCEWithLogitsLoss()], ids=str)
def test_split_is_exact_on_a_linear_model_under_every_loss(loss: nn.Module) -> None:
    """There the Hessian is the Gauss-Newton matrix. torch has no forward-mode derivative of some of these losses."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.rand(7, size, generator=generator, dtype=torch.float64) for size in (3, 2))
    problem = Problem(nn.Linear(3, 2).double(), loss, [(x[:3], y[:3]), (x[3:], y[3:])])
    found = probes.hessian_trace(problem, num_products=4, method="split")
    assert found.value == pytest.approx(float(dense_hessian(problem).trace()), rel=1e-9)


@pytest.mark.parametrize("rank", [0, 1, 5])
def test_xtrace_is_exact_on_few_dimensions(rank: int) -> None:
    factor = torch.randn(SIZE, rank, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    a = factor @ torch.diag(torch.tensor([1.0, -2.0, 3.0, 4.0, 5.0], dtype=torch.float64)[:rank]) @ factor.T
    value, error = xtrace(lambda v: a @ v, signs(8, 0))
    assert value == pytest.approx(float(a.trace()), rel=1e-9, abs=1e-12)
    assert error == 0


PROBLEMS = {"mlp": mlp_problem(), "e": conv_problem("eval"), "b": conv_problem("batch")}
METHODS = ("xtrace", "hutch++", "hutchinson", "split")
FAST = {
    ("xtrace", "b"),
    ("hutchinson", "e"),
    ("split", "e"),
}  # of the larger nets; each method is tried on the small one
TRACES = [
    pytest.param(PROBLEMS[name], method, id=f"{method}-{name}", marks=[] if fast else [pytest.mark.slow])
    for method in METHODS
    for name in PROBLEMS
    if (method, name) != ("split", "b")
    for fast in [name == "mlp" or (method, name) in FAST]
]


@pytest.mark.parametrize(("problem", "method"), TRACES)
def test_traces_of_nets(problem: Problem, method: str) -> None:
    expected = float(dense_hessian(problem).trace())
    found = [probes.hessian_trace(problem, num_products=24, method=method, seed=s) for s in range(12)]  # type: ignore[arg-type]
    z = torch.tensor([(e.value - expected) / e.standard_error for e in found])
    assert all(e.num_products == 24 for e in found)
    assert abs(float(z.mean())) * math.sqrt(12) < 5
    assert 0.2 < float(z.square().mean()) < 4


def test_gauss_newton_trace_of_a_net() -> None:
    problem = conv_problem("batch")
    expected = float(dense_gauss_newton(problem).trace())
    found = probes.gauss_newton_trace(problem)
    assert abs(found.value - expected) < 4 * found.standard_error < 0.2 * expected


def test_a_model_of_few_weights_is_exact() -> None:
    problem = mlp_problem()
    found = probes.hessian_trace(problem, num_products=100)
    assert problem.num_parameters < 100
    assert found.value == pytest.approx(float(dense_hessian(problem).trace()), rel=1e-9)
    assert (found.standard_error, found.num_products) == (0.0, problem.num_parameters)


def test_seeds_give_other_vectors_and_the_same_seed_the_same() -> None:
    problem = mlp_problem()
    one, again, other = (probes.hessian_trace(problem, num_products=6, seed=seed) for seed in (1, 1, 2))
    assert one == again != other
    w = random_vectors(problem, 1000, 0)
    assert set(w.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(w.mean())) * math.sqrt(w.numel()) < 4


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_estimated_jacobian_norm(batch_norm: str) -> None:
    problem = conv_problem(batch_norm)  # type: ignore[arg-type]
    expected = math.sqrt(float(jacobian_by_torch(problem).square().sum()) / problem.num_examples)
    found = [probes.jacobian_norm(problem, num_vectors=10, seed=seed) for seed in range(60)]
    z = torch.tensor([(e.value - expected) / e.standard_error for e in found])
    assert abs(float(z.mean())) * math.sqrt(60) < 4.5  # the root of an estimate is biased by a fraction of its error
    assert 0.6 < float(z.square().mean()) < 2.2


def test_alignment() -> None:
    problem = conv_problem("eval")
    hessian, gauss_newton = dense_hessian(problem), dense_gauss_newton(problem)
    by_name = {
        "hessian": hessian,
        "gauss-newton": gauss_newton,
        "residual": hessian - gauss_newton,
        "covariance": dense_covariance(problem),
    }
    v = torch.randn(problem.num_parameters, 20_000, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    found = probes.alignment(problem, num_vectors=200)
    assert set(found) == {
        "hessian/covariance",
        "gauss-newton/covariance",
        "hessian/gauss-newton",
        "residual/covariance",
        "gauss-newton/residual",
        "hessian/residual",
    }
    for pair, estimate in found.items():
        one, other = (by_name[name] @ v for name in pair.split("/"))
        cosines = torch.cosine_similarity(one, other, dim=0)
        assert abs(estimate.value - float(cosines.mean())) < 4.5 * estimate.standard_error
        assert estimate.standard_error == pytest.approx(float(cosines.std()) / math.sqrt(200), rel=0.3)


def test_alignment_with_nothing_is_not_a_number() -> None:
    """Outputs that are linear in the weights leave no residual but rounding."""
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    problem = Problem(torch.nn.Linear(3, 2), torch.nn.CrossEntropyLoss(), [(x, torch.arange(8) % 2)])
    found = probes.alignment(problem)
    assert {pair for pair, estimate in found.items() if math.isnan(estimate.value)} == {
        "residual/covariance",
        "gauss-newton/residual",
        "hessian/residual",
    }
    assert found["hessian/gauss-newton"].value == pytest.approx(1.0, abs=1e-5)
