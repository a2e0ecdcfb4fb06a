"""Probes against dense matrices, those against finite differences, and what a probe leaves untouched."""

from __future__ import annotations

import copy
import math
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from halflife import probes
from halflife.probes import Problem, examples
from halflife.probes.operators import matrix_product
from tests.oracles.dense import dense_covariance, dense_gauss_newton, dense_hessian
from tests.probes.probe_nets import NUM_CLASSES, ConvNet, conv_problem, mlp_problem, problems, split_batches

PROBLEMS = problems()
PER_EXAMPLE = [name for name in PROBLEMS if "batch statistics" not in name]


@pytest.fixture(params=list(PROBLEMS))
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]


@pytest.fixture(params=PER_EXAMPLE)
def plain(request: pytest.FixtureRequest) -> Problem:
    """A problem whose examples do not depend on each other."""
    return PROBLEMS[request.param]


def gradient_by_torch(problem: Problem, weights: Tensor) -> Tensor:
    """The gradient at other weights, by a plain backward pass of a copy: BatchNorm in torch's own modes."""
    model = copy.deepcopy(problem.model)
    trained = [p for p in model.parameters() if p.requires_grad]
    torch.nn.utils.vector_to_parameters(weights, trained)
    model.train(problem.batch_norm == "batch")
    total = torch.zeros_like(weights)
    for x, y in problem.batches:
        model.zero_grad()
        problem.loss(model(x), y).backward()
        total += torch.cat([p.grad.flatten() for p in trained if p.grad is not None]) * len(x) / problem.num_examples
    return total


def weights_of(problem: Problem) -> Tensor:
    return torch.cat([p.detach().flatten() for p in problem.parameters])


def test_dense_hessian_is_the_slope_of_the_gradient(problem: Problem) -> None:
    hessian, at, step = dense_hessian(problem), weights_of(problem), 1e-6
    for seed in range(5):
        v = torch.randn(len(at), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        slope = (gradient_by_torch(problem, at + step * v) - gradient_by_torch(problem, at - step * v)) / (2 * step)
        torch.testing.assert_close(hessian @ v, slope, rtol=1e-6, atol=1e-7)


def test_dense_gauss_newton_is_the_hessian_of_the_linearized_model() -> None:
    # h(x; w) = W x is linear in its weights: both are (1/N) sum_i (diag p_i - p_i p_i^T) kron x_i x_i^T.
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 2, generator=generator, dtype=torch.float64)
    y = torch.randint(NUM_CLASSES, (7,), generator=generator)
    net = nn.Linear(2, NUM_CLASSES, bias=False).double()
    problem = Problem(net, nn.CrossEntropyLoss(), split_batches(x, y, (2, 5)))
    p = (x @ net.weight.T).softmax(1).detach()
    expected = sum(torch.kron(torch.diag(p[i]) - p[i].outer(p[i]), x[i].outer(x[i])) for i in range(7)) / 7
    torch.testing.assert_close(dense_gauss_newton(problem), expected)
    torch.testing.assert_close(dense_hessian(problem), expected)
    # (p_i - onehot y_i) kron x_i, centered.
    g = torch.stack([torch.kron(p[i] - functional.one_hot(y[i], NUM_CLASSES), x[i]) for i in range(7)])
    torch.testing.assert_close(dense_covariance(problem), (g - g.mean(0)).T @ (g - g.mean(0)) / 7)
    size = (p - functional.one_hot(y, NUM_CLASSES)).square().sum(1).mean() / NUM_CLASSES
    decoupled = size * torch.kron(torch.eye(NUM_CLASSES).double(), x.T @ x / 7)
    torch.testing.assert_close(dense_covariance(problem, decoupled=True), decoupled)


@pytest.mark.parametrize(
    ("matrix", "dense"), [("hessian", dense_hessian), ("gauss-newton", dense_gauss_newton)], ids=["hessian", "gn"]
)
def test_products_are_those_of_the_dense_matrix(problem: Problem, matrix: Any, dense: Callable[..., Tensor]) -> None:
    with problem.measuring():
        found = matrix_product(problem, matrix)(torch.eye(problem.num_parameters, dtype=torch.float64))
    torch.testing.assert_close(found, dense(problem), rtol=1e-9, atol=1e-11)


class Attention(nn.Module):
    """Embedding and one of torch's transformer layers, which has a fused kernel without derivatives."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 5, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(4, NUM_CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embedding(x)).mean(1))
        return out


def _sequences(norm: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 5)), nn.Conv1d(1, 6, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(18, 3))


NORMALIZED: dict[str, Callable[[], nn.Module]] = {
    "LayerNorm": lambda: nn.Sequential(nn.Linear(5, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, NUM_CLASSES)),
    "RMSNorm": lambda: nn.Sequential(nn.Linear(5, 6), nn.RMSNorm(6), nn.Tanh(), nn.Linear(6, NUM_CLASSES)),
    "GroupNorm": lambda: _sequences(nn.GroupNorm(3, 6)),
    "InstanceNorm": lambda: _sequences(nn.InstanceNorm1d(6, affine=True)),
    "attention": Attention,
}


@pytest.mark.parametrize("name", list(NORMALIZED))
def test_products_are_right_through_normalization_layers(name: str) -> None:
    """Forward-mode derivatives of the backward pass of these layers are wrong, or missing, in torch 2.13."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = NORMALIZED[name]().double()
        x = torch.randint(7, (11, 3)) if name == "attention" else torch.randn(11, 5).double()
        y = torch.randint(NUM_CLASSES, (11,))
    problem = Problem(net, nn.CrossEntropyLoss(), split_batches(x, y, (4, 7)))
    at, step = weights_of(problem), 1e-6
    v = torch.randn(len(at), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (gradient_by_torch(problem, at + step * v) - gradient_by_torch(problem, at - step * v)) / (2 * step)
    with problem.measuring():
        hessian = matrix_product(problem, "hessian")(v[:, None])[:, 0]
        gauss_newton = matrix_product(problem, "gauss-newton")(v[:, None])[:, 0]
    torch.testing.assert_close(hessian, slope, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(gauss_newton, dense_gauss_newton(problem) @ v, rtol=1e-9, atol=1e-11)


def test_why_products_go_by_reverse_mode_twice() -> None:
    """Once torch's forward mode is right for normalization layers, it can take the Hessian's products: this fails then."""
    problem = PROBLEMS["conv, batch statistics"]
    v = torch.randn(problem.num_parameters, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    split = zip(torch.split(v, list(problem.sizes)), problem.parameters, strict=True)
    directions = tuple(part.view_as(p) for part, p in split)
    found = torch.zeros_like(v)
    with problem.measuring():
        weights = problem.detached()
        for x, y in problem.data():

            def loss(*at: Tensor, x: Tensor = x, y: Tensor = y) -> Tensor:
                value: Tensor = problem.loss(problem.outputs(at, x), y)
                return value

            slopes = torch.func.jacrev(loss, argnums=tuple(range(len(weights))))
            parts = torch.func.jvp(slopes, weights, directions)[1]
            found += torch.cat([part.flatten() for part in parts]) * (len(x) / problem.num_examples)
    assert float((found - dense_hessian(problem) @ v).norm() / found.norm()) > 1e-3


def test_products_of_a_weight_that_is_one_number() -> None:
    class Gained(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.tensor(1.5))
            self.layer = nn.Linear(5, NUM_CLASSES)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.gain * self.layer(x)
            return out

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 5, generator=generator, dtype=torch.float64)
    problem = Problem(Gained().double(), nn.CrossEntropyLoss(), [(x, torch.arange(7) % NUM_CLASSES)])
    identity = torch.eye(problem.num_parameters, dtype=torch.float64)
    with problem.measuring():
        torch.testing.assert_close(matrix_product(problem, "hessian")(identity), dense_hessian(problem))
        torch.testing.assert_close(matrix_product(problem, "gauss-newton")(identity), dense_gauss_newton(problem))


@pytest.mark.parametrize("matrix", ["hessian", "gauss-newton"])
def test_top_eigenvalues(problem: Problem, matrix: Any) -> None:
    dense = dense_hessian(problem) if matrix == "hessian" else dense_gauss_newton(problem)
    values = torch.linalg.eigvalsh((dense + dense.T) / 2).flip(0)
    found = probes.top_eigenvalues(problem, count=4, matrix=matrix)
    torch.testing.assert_close(found, values[:4], rtol=1e-4, atol=1e-6 * float(values[0]))
    if matrix == "hessian":
        assert probes.sharpness(problem, 0.3) == pytest.approx(float(values[0]) * 0.15, rel=1e-4)


def test_all_eigenvalues_of_a_small_model() -> None:
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(0))
    problem = Problem(nn.Linear(2, 1).double(), nn.MSELoss(), [(x.double(), x.sum(1, keepdim=True).double())])
    values = torch.linalg.eigvalsh(dense_hessian(problem)).flip(0)
    torch.testing.assert_close(probes.top_eigenvalues(problem, count=3), values)


def test_quantities_of_the_whole_gradient(problem: Problem) -> None:
    at = weights_of(problem)
    gradient = gradient_by_torch(problem, at)
    assert probes.gradient_norm(problem) == pytest.approx(float(gradient.norm()), rel=1e-9)
    assert probes.gradient_norm(problem, lam=0.7) == pytest.approx(float((gradient + 0.7 * at).norm()), rel=1e-9)


def outputs_by_torch(problem: Problem) -> tuple[Tensor, Tensor]:
    model = copy.deepcopy(problem.model).train(problem.batch_norm == "batch")
    with torch.no_grad():
        return torch.cat([model(x) for x, _ in problem.batches]), torch.cat([y for _, y in problem.batches])


def test_noise_scale_and_loss(problem: Problem) -> None:
    h, y = outputs_by_torch(problem)
    if isinstance(problem.loss, nn.CrossEntropyLoss):
        residual = h.softmax(1) - functional.one_hot(y, NUM_CLASSES)
        loss = -h.log_softmax(1)[torch.arange(len(y)), y].mean()
    else:
        residual = 2 * (h - y) / NUM_CLASSES
        loss = (h - y).square().mean(1).mean()
    assert probes.noise_scale(problem) == pytest.approx(float(residual.norm(dim=1).mean()), rel=1e-12)
    assert probes.mean_loss(problem) == pytest.approx(float(loss), rel=1e-12)


def jacobian_by_torch(problem: Problem) -> Tensor:
    """J_RP of all outputs of all examples, by a backward pass each."""
    model = copy.deepcopy(problem.model).train(problem.batch_norm == "batch")
    trained = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for x, _ in problem.batches:
        for entry in model(x).flatten():
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(entry, trained, retain_graph=True)]))
    return torch.stack(rows)


def test_jacobian_norm_is_exact(plain: Problem) -> None:
    expected = math.sqrt(float(jacobian_by_torch(plain).square().sum()) / plain.num_examples)
    found = probes.jacobian_norm(plain)
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert (found.standard_error, found.num_products) == (0.0, NUM_CLASSES)


def test_gauss_newton_trace_is_exact(plain: Problem) -> None:
    expected = float(dense_gauss_newton(plain).trace())
    found = probes.gauss_newton_trace(plain, method="exact")
    assert found.value == pytest.approx(expected, rel=1e-9)
    assert (found.standard_error, found.num_products) == (0.0, NUM_CLASSES)


@pytest.mark.parametrize("rows_held", [None, 3], ids=["one block", "blocks of three rows"])
@pytest.mark.parametrize("sizes", [(9, 2, 6), (60, 1, 59)], ids=["few examples", "more examples than weights"])
@pytest.mark.parametrize("decoupled", [False, True], ids=["covariance", "decoupled"])
def test_gradient_noise(
    monkeypatch: pytest.MonkeyPatch, rows_held: int | None, sizes: tuple[int, ...], decoupled: bool
) -> None:
    problem = mlp_problem(sizes)
    if rows_held is not None:
        monkeypatch.setattr(examples, "MAX_STORED", rows_held * problem.num_parameters)
    dense = dense_covariance(problem, decoupled)
    expected = torch.linalg.eigvalsh(dense).flip(0)
    found = probes.gradient_noise(problem, decoupled=decoupled)
    rank = int(torch.linalg.matrix_rank(dense, hermitian=True))
    assert len(found.eigenvalues) == rank
    torch.testing.assert_close(found.eigenvalues, expected[:rank], rtol=1e-8, atol=1e-12)
    assert found.trace == pytest.approx(float(dense.trace()), rel=1e-10)
    if decoupled:
        assert (found.second_moment, found.mean_norm_sq) == (found.trace, 0.0)
        return
    mean_sq = float(gradient_by_torch(problem, weights_of(problem)).square().sum())
    assert found.mean_norm_sq == pytest.approx(mean_sq, rel=1e-9)
    assert found.second_moment == pytest.approx(found.trace + mean_sq, rel=1e-10)
    whole = probes.gradient_noise(problem, center=False)
    assert whole.trace == whole.second_moment == pytest.approx(found.second_moment, rel=1e-10)
    assert float(whole.eigenvalues.sum()) == pytest.approx(found.second_moment, rel=1e-8)


def test_gradient_noise_of_a_net_with_batch_norm() -> None:
    problem = PROBLEMS["conv, running statistics"]
    expected = torch.linalg.eigvalsh(dense_covariance(problem)).flip(0)
    found = probes.gradient_noise(problem).eigenvalues
    torch.testing.assert_close(found, expected[: len(found)], rtol=1e-8, atol=1e-12)


def test_decoupling_is_exact_where_its_assumptions_hold() -> None:
    """One output, residuals of one size and of both signs on each input: the covariance is the approximation."""
    x = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1)).double()
    with torch.no_grad():
        h = net(x)
    problem = Problem(net, nn.MSELoss(), [(x, h + 0.3), (x, h - 0.3)])
    exact, approximate = dense_covariance(problem), dense_covariance(problem, decoupled=True)
    torch.testing.assert_close(approximate, exact)
    spectra = [probes.gradient_noise(problem, decoupled=d).eigenvalues for d in (False, True)]
    torch.testing.assert_close(spectra[0], spectra[1])


@settings(max_examples=6, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(lambda sizes: sum(sizes) >= 2), st.integers(0, 99))
def test_how_the_data_are_cut_into_batches_does_not_matter(sizes: list[int], seed: int) -> None:
    cut, whole = mlp_problem(tuple(sizes), seed=seed), mlp_problem((sum(sizes),), seed=seed)
    for probe in (probes.noise_scale, probes.gradient_norm, probes.mean_loss, _noise, _jacobian, _hessian, _alignment):
        # Two equal gradients have no covariance: the alignment is NaN then, of both.
        assert probe(cut) == pytest.approx(probe(whole), rel=1e-7, abs=1e-12, nan_ok=True)


def _noise(problem: Problem) -> float:
    return probes.gradient_noise(problem).trace


def _jacobian(problem: Problem) -> float:
    return probes.jacobian_norm(problem).value


def _hessian(problem: Problem) -> float:
    return probes.hessian_trace(problem, num_products=6).value


def _alignment(problem: Problem) -> float:
    return probes.alignment(problem, num_vectors=2)["hessian/covariance"].value


def run_every_probe(problem: Problem) -> None:
    probes.hessian_trace(problem, num_products=6)
    probes.hessian_trace(problem, num_products=6, method="hutch++")
    probes.gauss_newton_trace(problem, num_products=6, method="hutchinson")
    probes.top_eigenvalues(problem)
    probes.sharpness(problem, 0.1)
    probes.jacobian_norm(problem, num_vectors=2)
    probes.noise_scale(problem)
    probes.gradient_norm(problem, lam=0.1)
    probes.mean_loss(problem)
    if problem.batch_norm != "batch":
        probes.hessian_trace(problem, num_products=4, method="split")
        probes.jacobian_norm(problem)
        probes.gradient_noise(problem)
        probes.gradient_noise(problem, decoupled=True)
        probes.alignment(problem, num_vectors=2)


def everything(model: nn.Module) -> list[Any]:
    tensors = [(name, t.clone(), t.requires_grad) for name, t in [*model.named_parameters(), *model.named_buffers()]]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    modes = [(module.training, sorted(module.__dict__)) for module in model.modules()]
    randoms = [torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()]  # type: ignore[index]
    hooks = [torch.backends.mha.get_fastpath_enabled(), torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")]
    return [tensors, grads, modes, randoms, hooks]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and torch.equal(one, other)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_a_probe_leaves_everything_as_it_was(batch_norm: Any, training: bool) -> None:
    problem = conv_problem(batch_norm)
    model = problem.model.train(training)
    model.norm1.eval()  # type: ignore[union-attr]
    h = model(next(iter(problem.batches))[0])
    h.sum().backward()
    before = everything(model)
    run_every_probe(problem)
    assert same(everything(model), before)


def test_what_is_probed_is_put_back_after_an_error() -> None:
    problem = conv_problem("batch")
    problem.model.train()
    before = everything(problem.model)
    with pytest.raises(RuntimeError, match="shapes"), problem.measuring():
        problem.model(torch.rand(3, 1, 6, 6).double()) @ torch.rand(7, 7).double()
    assert same(everything(problem.model), before)


def trained(probed: bool) -> dict[str, Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = ConvNet()
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
        loader = torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(torch.randn(16, 1, 6, 6), torch.randint(NUM_CLASSES, (16,))), 8, shuffle=True
        )
        held = list(loader)
        for _ in range(2):
            for x, y in loader:
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(functional.dropout(x, 0.1)), y).backward()  # type: ignore[no-untyped-call]
                if probed:
                    run_every_probe(Problem(net, nn.CrossEntropyLoss(), held, batch_norm="eval"))
                optimizer.step()
        return net.state_dict()


def test_a_run_with_probes_is_the_run_without() -> None:
    with_probes, without = trained(True), trained(False)
    assert all(torch.equal(with_probes[name], without[name]) for name in without)


def test_probes_work_under_any_grad_mode() -> None:
    problem = conv_problem("eval")
    expected = [probes.hessian_trace(problem, num_products=6), probes.gradient_noise(problem).trace]
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            x_only_here = [(x.clone(), y.clone()) for x, y in problem.batches]
            inside = Problem(problem.model, problem.loss, x_only_here, batch_norm="eval")
            assert [probes.hessian_trace(inside, num_products=6), probes.gradient_noise(inside).trace] == expected
            run_every_probe(inside)
    with torch.autocast("cpu", torch.bfloat16):
        assert probes.gradient_noise(problem).trace == expected[1]


def test_a_loader_keeps_its_own_random_state() -> None:
    generator = torch.Generator().manual_seed(3)
    data = torch.utils.data.TensorDataset(torch.randn(10, 4).double(), torch.randint(3, (10,)))
    loader = torch.utils.data.DataLoader(data, batch_size=4, generator=generator)
    before = generator.get_state()
    problem = Problem(mlp_problem().model, nn.CrossEntropyLoss(), loader)
    probes.gradient_norm(problem)
    assert torch.equal(generator.get_state(), before)


def test_a_problem_follows_its_model() -> None:
    problem = mlp_problem()
    before = probes.mean_loss(problem)
    with torch.no_grad():
        for parameter in problem.parameters:
            parameter.mul_(2)
    assert probes.mean_loss(problem) != before


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(5, 3)
            self.head = nn.Linear(3, 5, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.tanh(self.embedding(x)))
            return out

    x = torch.arange(5)
    problem = Problem(Tied().double(), nn.CrossEntropyLoss(), [(x, x.flip(0))])
    assert problem.num_parameters == 15
    with problem.measuring():
        found = matrix_product(problem, "hessian")(torch.eye(15, dtype=torch.float64))
    torch.testing.assert_close(found, dense_hessian(problem))
    at, step = weights_of(problem), 1e-6
    v = torch.randn(15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def gradient(weights: Tensor) -> Tensor:
        table = weights.view(5, 3).requires_grad_()
        return torch.autograd.grad(functional.cross_entropy(torch.tanh(table[x]) @ table.T, x.flip(0)), table)[0]

    slope = (gradient(at + step * v) - gradient(at - step * v)).flatten() / (2 * step)
    torch.testing.assert_close(found @ v, slope, rtol=1e-5, atol=1e-8)


def test_importing_probes_does_not_import_what_is_an_extra() -> None:
    code = "import sys, halflife.probes; print([m for m in ('scipy',) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_warning_of_others_reaches_the_user() -> None:
    code = (
        "import torch; from halflife import probes\n"
        "p = probes.Problem(torch.nn.Linear(9, 5), torch.nn.CrossEntropyLoss(), [(torch.ones(2, 9), torch.tensor([0, 1]))])\n"
        "probes.hessian_trace(p, num_products=6); probes.gauss_newton_trace(p, num_products=6); probes.alignment(p)\n"
        "probes.gradient_noise(p, decoupled=True); probes.top_eigenvalues(p); probes.jacobian_norm(p, num_vectors=2)\n"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
