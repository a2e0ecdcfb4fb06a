"""Bad input: each case gives one sentence that says what to change."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife import probes
from halflife.errors import UserError
from halflife.probes import Problem
from halflife.probes.dense import dense_hessian
from tests.probe_nets import ConvNet, conv_problem, mlp_problem

X, Y = torch.arange(24.0).view(8, 3) / 10, torch.arange(8) % 2
BATCHES = [(X[:5], Y[:5]), (X[5:], Y[5:])]
CE = nn.CrossEntropyLoss()


def net(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), *layers, nn.Linear(4, 2))


class Twice(nn.Module):
    """Random in a way that no module shows."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(nn.functional.dropout(x, 0.5, training=True))
        return out


class Tuple(nn.Linear):
    """Does not give a tensor."""

    def forward(self, x: Tensor) -> Any:
        return super().forward(x), x


class Augmented:
    """Gives other data at each pass."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield X + torch.rand(8, 3), Y


class Shrinking:
    """Gives fewer batches at each pass."""

    def __init__(self) -> None:
        self.left = 3

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.left -= 1
        return iter([(X, Y)] * self.left)


def shuffled() -> Any:
    return torch.utils.data.DataLoader(torch.utils.data.TensorDataset(X, Y), batch_size=2, shuffle=True)


def frozen() -> nn.Module:
    return net().requires_grad_(False)


def mixed() -> nn.Module:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    model[1].double()
    return model


class Sum(nn.Module):
    """A sum that says it is a mean."""

    reduction = "mean"

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(h, y, reduction="sum")


class PerExample(nn.Module):
    """One value per example."""

    reduction = "mean"

    def forward(self, h: Tensor, y: Tensor) -> Tensor:
        return nn.functional.cross_entropy(h, y, reduction="none")


no_statistics = nn.BatchNorm1d(4, track_running_stats=False)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout": (
        lambda: Problem(net(nn.Dropout(0.1)), CE, BATCHES),
        r"^1 is dropout in training mode.* model\.eval\(\)",
    ),
    "dropout alone": (lambda: Problem(nn.Dropout(0.1), CE, BATCHES), r"^Dropout is dropout in training mode"),
    "dropout of attention": (
        lambda: Problem(nn.MultiheadAttention(4, 2, dropout=0.1), CE, BATCHES),
        "dropout in training",
    ),
    "dropout of an LSTM": (lambda: Problem(nn.LSTM(3, 2, 2, dropout=0.1), CE, BATCHES), "dropout in training mode"),
    "batch norm, training": (
        lambda: Problem(net(nn.BatchNorm1d(4)), CE, BATCHES),
        r"now in training mode.*batch_norm='eval'",
    ),
    "batch norm, evaluation": (lambda: Problem(net(nn.BatchNorm1d(4)).eval(), CE, BATCHES), "now in evaluation mode"),
    "batch norm, misspelt": (
        lambda: Problem(net(), CE, BATCHES, batch_norm="train"),  # type: ignore[arg-type]
        r"batch_norm is 'train'; expected",
    ),
    "no running statistics": (
        lambda: Problem(net(no_statistics), CE, BATCHES, batch_norm="eval"),
        r"track_running_stats=False\); use batch_norm='batch'",
    ),
    "nothing to train": (lambda: Problem(frozen(), CE, BATCHES), r"No parameter.*requires_grad_\(True\)"),
    "two dtypes": (lambda: Problem(mixed(), CE, BATCHES), r"more than one dtype \(torch.float32, torch.float64\)"),
    "sum": (
        lambda: Problem(net(), nn.CrossEntropyLoss(reduction="sum"), BATCHES),
        r"reduction='sum'.*reduction='mean'",
    ),
    "sum in disguise": (
        lambda: Problem(net(), Sum(), BATCHES),
        r"mean of their losses is .*every example counts the same",
    ),
    "one loss per example": (lambda: Problem(net(), PerExample(), BATCHES), "more than one number"),
    "class weights": (lambda: Problem(net(), nn.CrossEntropyLoss(torch.ones(2)), BATCHES), "leave weight= away"),
    "a function": (lambda: Problem(net(), nn.functional.cross_entropy, BATCHES), r"loss is cross_entropy; expected"),  # type: ignore[arg-type]
    "ignored targets": (lambda: Problem(net(), CE, [(X, Y.masked_fill(Y == 1, -100))]), "Targets of -100 are left out"),
    "generator": (lambda: Problem(net(), CE, (batch for batch in BATCHES)), r"generator.*list\(batches\)"),
    "shuffled loader": (
        lambda: Problem(net(), CE, shuffled()),
        "not the same at the second pass; use a loader without",
    ),
    "augmented": (lambda: Problem(net(), CE, Augmented()), "not the same at the second pass"),
    "shrinking": (lambda: Problem(net(), CE, Shrinking()), "not the same at the second pass"),
    "no batch": (lambda: Problem(net(), CE, []), "hold no example"),
    "empty batch": (lambda: Problem(net(), CE, [(X[:0], Y[:0])]), "hold no example"),
    "no pair": (lambda: Problem(net(), CE, [X]), "not a pair of tensors"),  # type: ignore[list-item]
    "other lengths": (lambda: Problem(net(), CE, [(X, Y[:3])]), "not a pair of tensors of equally many examples"),
    "random model": (lambda: Problem(Twice(), CE, BATCHES), "different outputs for the same batch"),
    "no tensor": (lambda: Problem(Tuple(3, 2), CE, BATCHES), "does not give one tensor with a row per example"),
    "examples under batch statistics": (lambda: probes.gradient_noise(conv_problem("batch")), r"use batch_norm='eval'"),
    "exact Jacobian under them": (
        lambda: probes.jacobian_norm(conv_problem("batch")),
        "exact norm of the Jacobian is made",
    ),
    "exact trace under them": (
        lambda: probes.gauss_newton_trace(conv_problem("batch"), method="exact"),
        "exact trace of the Gauss-Newton matrix is made of single examples",
    ),
    "split under them": (
        lambda: probes.hessian_trace(conv_problem("batch"), method="split"),
        "'split' is made of single",
    ),
    "alignment under them": (
        lambda: probes.alignment(conv_problem("batch")),
        "covariance of gradients is made of single",
    ),
    "method": (lambda: probes.hessian_trace(mlp_problem(), method="exact"), r"'exact'; expected one of 'xtrace'"),  # type: ignore[arg-type]
    "method of G": (lambda: probes.gauss_newton_trace(mlp_problem(), method="split"), r"'split'; expected one of"),  # type: ignore[arg-type]
    "odd": (lambda: probes.hessian_trace(mlp_problem(), num_products=7), "num_products is 7.* a multiple of 2"),
    "few": (lambda: probes.hessian_trace(mlp_problem(), num_products=1, method="hutchinson"), r"at least 2\.$"),
    "thirds": (lambda: probes.hessian_trace(mlp_problem(), num_products=8, method="hutch++"), "a multiple of 3"),
    "matrix": (lambda: probes.top_eigenvalues(mlp_problem(), matrix="fisher"), r"matrix is 'fisher'; expected"),  # type: ignore[arg-type]
    "no eigenvalue": (lambda: probes.top_eigenvalues(mlp_problem(), count=0), "count is 0; expected between 1 and"),
    "learning rate": (lambda: probes.sharpness(mlp_problem(), float("nan")), "lr is nan; expected"),
    "one vector": (lambda: probes.jacobian_norm(mlp_problem(), num_vectors=1), "num_vectors is 1; expected at least 2"),
    "one vector of alignment": (lambda: probes.alignment(mlp_problem(), num_vectors=1), "num_vectors is 1; expected"),
    "dense": (lambda: dense_hessian(Problem(nn.Linear(3, 2000), CE, BATCHES)), "has 8,000 weights .* fewer than 5,000"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_bad_input_gives_a_sentence(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        make()
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "model",
    [net(nn.Dropout(0.1)).eval(), net(nn.Dropout(0.0)), nn.Sequential(nn.Flatten(), nn.Linear(3, 2))],
    ids=["dropout in evaluation", "dropout of nothing", "plain"],
)
def test_good_input_is_taken(model: nn.Module) -> None:
    assert probes.gradient_norm(Problem(model, CE, BATCHES)) > 0


@pytest.mark.parametrize(
    "loss", [nn.CrossEntropyLoss(label_smoothing=0.1), nn.MSELoss(), nn.BCEWithLogitsLoss(), nn.HuberLoss()]
)
def test_means_are_taken(loss: nn.Module) -> None:
    y = Y if isinstance(loss, nn.CrossEntropyLoss) else torch.stack([Y, 1 - Y], 1).float()
    problem = Problem(net(), loss, [(X[:5], y[:5]), (X[5:], y[5:])])
    assert probes.mean_loss(problem) == pytest.approx(float(loss(problem.model(X), y).detach()), rel=1e-5)


def test_without_running_statistics_the_batches_are_used() -> None:
    problem = Problem(net(nn.BatchNorm1d(4, track_running_stats=False)), CE, BATCHES, batch_norm="batch")
    assert probes.gradient_norm(problem) > 0


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to ..."
        ),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to ..."
        ),
        MemoryError(),
    ],
    ids=["cuda", "cpu", "windows", "python"],
)
def test_out_of_memory_gives_a_sentence(error: Exception) -> None:
    problem = Problem(net(), CE, BATCHES)

    def fail(*_: Any) -> None:
        raise error

    handle = problem.model.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r"ran out of memory; make the batches .* smaller"):
        probes.gradient_norm(problem)
    handle.remove()


def test_a_real_lack_of_memory_gives_a_sentence() -> None:
    class Huge(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            torch.empty(2**50)
            return super().forward(x)

    with pytest.raises(UserError, match="ran out of memory"):
        Problem(Huge(3, 2), CE, BATCHES)


def test_other_errors_of_the_model_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        Problem(nn.Linear(5, 2), CE, BATCHES)


def test_without_curvlinops_the_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "curvlinops", None)
    problem = mlp_problem()
    for probe in (
        probes.hessian_trace,
        probes.top_eigenvalues,
        probes.alignment,
        lambda _: probes.require_curvlinops(),
    ):
        with pytest.raises(UserError, match=r"need curvlinops.*pip install 'torch-halflife\[curvature\]'\.$"):
            probe(problem)
    assert probes.gauss_newton_trace(problem, method="exact").value > 0
    assert probes.gradient_noise(problem).trace > 0


def test_a_part_without_forward_derivatives_gives_a_sentence() -> None:
    problem = mlp_problem()

    def fail(*_: Any) -> None:
        raise NotImplementedError("Trying to use forward AD with this that does not support it.")

    problem.model.register_forward_pre_hook(fail)
    with pytest.raises(UserError, match=r"needs forward-mode derivatives .* write that part in elementary operations"):
        probes.gauss_newton_trace(problem, num_products=6)


def test_weights_that_are_not_finite_give_nan() -> None:
    problem = mlp_problem()
    with torch.no_grad():
        problem.parameters[0].fill_(torch.nan)
    assert str(probes.hessian_trace(problem, num_products=6).value) == "nan"
    assert str(probes.gradient_noise(problem).eigenvalues.tolist()) == "[nan]"
    assert str(probes.top_eigenvalues(problem).tolist()) == "[nan]"
    assert str(probes.gradient_norm(problem)) == "nan"


def test_conv_net_is_used_with_both_modes() -> None:
    model = ConvNet()
    x, y = torch.rand(4, 1, 6, 6), torch.arange(4) % 3
    one, other = (probes.gradient_norm(Problem(model, CE, [(x, y)], batch_norm=mode)) for mode in ("eval", "batch"))
    assert one != pytest.approx(other, rel=1e-3)
