"""Bad input: each case gives one sentence that says what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife import probes
from halflife.errors import UserError
from halflife.probes import Problem
from tests.probes.probe_nets import conv_problem, mlp_problem

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


def filled(value: float) -> nn.Module:
    """A net with weights of this size."""
    model = net()
    with torch.no_grad():
        next(model.parameters())[0].fill_(value)
    return model


def after(change: Callable[[Any], Any], probe: Callable[[Problem], Any] = probes.gradient_norm) -> Any:
    """Measure a problem whose model was changed after it was made."""
    problem = Problem(net(), CE, BATCHES)
    change(problem.model)
    return probe(problem)


MSE = nn.MSELoss()
no_statistics = nn.BatchNorm1d(4, track_running_stats=False)
REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout": (
        lambda: Problem(net(nn.Dropout(0.1)), CE, BATCHES),
        r"in training mode, and there it draws random numbers, .*so call model\.eval\(\) first",
    ),
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
    "two dtypes": (
        lambda: Problem(mixed(), CE, BATCHES),
        r"than one device or dtype \(torch.float32 on cpu, torch.float64 on cpu",
    ),
    "sum": (
        lambda: Problem(net(), nn.CrossEntropyLoss(reduction="sum"), BATCHES),
        r"^The loss is CrossEntropyLoss with reduction='sum'; expected .* with reduction='mean'",
    ),
    "sum in disguise": (
        lambda: Problem(net(), Sum(), BATCHES),
        r"mean of their losses is .*every example counts the same",
    ),
    "sum of a first batch of one": (
        lambda: Problem(net(), Sum(), [(X[:1], Y[:1]), (X[1:], Y[1:])]),
        "The loss of 7 examples is .*every example counts the same",
    ),
    "one loss per example": (lambda: Problem(net(), PerExample(), BATCHES), "more than one number"),
    "class weights": (
        lambda: Problem(net(), nn.CrossEntropyLoss(torch.ones(2)), BATCHES),
        "has weight=.*; leave weight= a",
    ),
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
    "few": (
        lambda: probes.hessian_trace(mlp_problem(), num_products=1, method="hutchinson"),
        r"of at least 2 for hutchinson\.$",
    ),
    "thirds": (lambda: probes.hessian_trace(mlp_problem(), num_products=8, method="hutch++"), "a multiple of 3"),
    "matrix": (lambda: probes.top_eigenvalues(mlp_problem(), matrix="fisher"), r"matrix is 'fisher'; expected"),  # type: ignore[arg-type]
    "no eigenvalue": (
        lambda: probes.top_eigenvalues(mlp_problem(), count=0),
        "0; expected a whole number of at least 1",
    ),
    "eigenvalues": (
        lambda: probes.top_eigenvalues(mlp_problem(), count=79),
        "count is 79; expected at most .*weights, 78",
    ),
    "one vector": (
        lambda: probes.jacobian_norm(mlp_problem(), num_vectors=1),
        "1; expected a whole number of at least 2",
    ),
    "one vector of alignment": (lambda: probes.alignment(mlp_problem(), num_vectors=1), "num_vectors is 1; expected"),
    "frozen later": (lambda: after(lambda m: m[0].bias.requires_grad_(False)), r"another 0\.bias.*make a new Problem"),
    "added later": (lambda: after(lambda m: m.append(nn.Linear(2, 2))), r"another 2\.weight, .*make a new Problem"),
    "normalized later": (
        lambda: after(lambda m: m.append(nn.BatchNorm1d(2, affine=False))),
        "nothing says which statistics to use",
    ),
    "removed later": (lambda: after(lambda m: m.pop(1)), r"another 1\.weight, .*make a new Problem"),
    "cast later": (lambda: after(lambda m: m.double()), "moved or cast.; make a new Problem"),
    "float labels": (
        lambda: Problem(net(), CE, [(X, Y.float())]),
        r"^Batch 1 .*\(x of shape \(8, 3\) and dtype torch.float32, y of shape \(8,\) and dtype torch.float32\) does not "
        r"go through the loss, with CrossEntropyLoss as the loss: .*Float; check y: class labels are torch.int64",
    ),
    "int32 labels": (lambda: Problem(net(), CE, [(X, Y.int())]), r"dtype torch.int32\).*class labels are torch.int64"),
    "column of labels": (lambda: Problem(net(), CE, [(X, Y[:, None])]), r"y of shape \(8, 1\).*of shape \(B,\)"),
    "labels out of range": (lambda: Problem(net(), CE, [(X, Y + 2)]), r"Target \d is out of bounds; .*from 0 to"),
    "later labels": (lambda: Problem(net(), CE, [(X, Y), (X, Y + 2)]), r"^Batch 2 .*Target \d is out of bounds; "),
    "float64 inputs": (
        lambda: Problem(net(), CE, [(X.double(), Y)]),
        r"torch.float64.*the model.*weights, torch.float32",
    ),
    "uint8 inputs": (lambda: Problem(net(), CE, [(X.byte(), Y)]), r"torch.uint8.*the model.*weights, torch.float32"),
    "narrow inputs": (
        lambda: Problem(net(), CE, [(X[:, :2], Y)]),
        r"cannot be multiplied.*; check that x has the sizes",
    ),
    "later shape": (lambda: Problem(net(), CE, [(X, Y), (X[:, :2], Y)]), r"^Batch 2 .*\(x of shape \(8, 2\)"),
    "squared error of labels": (
        lambda: Problem(net(), MSE, [(X, Y)]),
        r"MSELoss as the loss: .*; check that y has the",
    ),
    "squared error of a column": (
        lambda: Problem(net(), MSE, [(X, Y.float()[:, None])]),
        r"MSELoss as the loss: Using a target size .*; check that y has the shape",
    ),
    "batch of one": (
        lambda: Problem(net(nn.BatchNorm1d(4)), CE, [(X, Y), (X[:1], Y[:1])], batch_norm="batch"),
        r"^Batch 2 .*more than one example, or use batch_norm='eval'",
    ),
    "lazy": (
        lambda: Problem(nn.LazyLinear(2), CE, BATCHES),
        r"weight of the model has no numbers yet \(a lazy.*call the model",
    ),
    "lazy buffer": (
        lambda: Problem(net(nn.LazyBatchNorm1d(affine=False)), CE, BATCHES, batch_norm="eval"),
        "running_mean of the model has no numbers yet",
    ),
    "meta": (
        lambda: Problem(nn.Linear(3, 2, device="meta"), CE, BATCHES),
        r"weight of the model has no numbers .*meta.*to_empty",
    ),
    "a function for a model": (lambda: Problem(torch.sin, CE, BATCHES), r"model is sin; expected a torch.nn.Module"),  # type: ignore[arg-type]
    "a class for a model": (lambda: Problem(nn.Linear, CE, BATCHES), r"model is Linear; .*call a class"),  # type: ignore[arg-type]
    "nothing for a model": (lambda: Problem(None, CE, BATCHES), r"model is NoneType; expected"),  # type: ignore[arg-type]
    "NaN inputs": (
        lambda: Problem(net(), CE, [*BATCHES, (X * torch.nan, Y)]),
        "^x of batch 3 of the data is not finite",
    ),
    "infinite inputs": (lambda: Problem(net(), CE, [(X + torch.inf, Y)]), "^x of batch 1 of the data is not finite"),
    "NaN targets": (lambda: Problem(net(), MSE, [(X, X[:, :2] / 0)]), "^y of batch 1 of the data is not finite"),
    "NaN weights": (lambda: Problem(filled(torch.nan), CE, BATCHES), r"^0\.weight of the model holds NaN or infinite"),
    "infinite weights": (lambda: Problem(filled(torch.inf), CE, BATCHES), r"^0\.weight of the model holds NaN or"),
    "infinite loss": (lambda: Problem(filled(3e38), MSE, [(X, X[:, :2])]), "^The loss of batch 1 .* is (inf|nan), so"),
    "bfloat16": (lambda: Problem(net().bfloat16(), CE, BATCHES), r"are torch.bfloat16; .*deepcopy\(model\).float\(\)"),
    "float16": (
        lambda: Problem(net().half(), CE, BATCHES),
        r"are torch.float16; probes need torch.float32 or torch.float64",
    ),
    "half an eigenvalue": (lambda: probes.top_eigenvalues(mlp_problem(), count=1.5), "count is 1.5; expected a whole"),  # type: ignore[arg-type]
    "count in words": (
        lambda: probes.top_eigenvalues(mlp_problem(), count="1"),  # type: ignore[arg-type]
        "count is '1'; expected a whole number",
    ),
    "products in words": (
        lambda: probes.hessian_trace(mlp_problem(), num_products="x"),  # type: ignore[arg-type]
        "num_products is 'x'; expected",
    ),
    "products of split": (
        lambda: probes.hessian_trace(mlp_problem(), num_products=8.0, method="split"),  # type: ignore[arg-type]
        "is 8.0; expec",
    ),
    "half a vector": (lambda: probes.jacobian_norm(mlp_problem(), num_vectors=2.5), "least 2, or None for the exact"),  # type: ignore[arg-type]
    "vectors in words": (lambda: probes.alignment(mlp_problem(), num_vectors="20"), "num_vectors is '20'; expected a"),  # type: ignore[arg-type]
    "seed": (lambda: probes.hessian_trace(mlp_problem(), seed=0.5), "seed is 0.5; expected a whole number"),  # type: ignore[arg-type]
    "infinite lam": (lambda: probes.gradient_norm(mlp_problem(), lam=torch.inf), "lam is inf; expected a finite decay"),
}

# Sentences of halflife.numbers, which checks the numbers of the whole package.
NUMBERS: dict[str, tuple[Callable[[], Any], str]] = {
    "learning rate": (
        lambda: probes.sharpness(mlp_problem(), float("nan")),
        "lr must be a finite number >= 0, got nan",
    ),
    "lr in words": (lambda: probes.sharpness(mlp_problem(), lr="0.1"), "lr must be a number, got '0.1'"),  # type: ignore[arg-type]
    "negative lr": (lambda: probes.sharpness(mlp_problem(), lr=-0.1), "lr must be a finite number >= 0, got -0.1"),
    "no lr": (lambda: probes.sharpness(mlp_problem(), lr=None), "lr must be a number, got None"),  # type: ignore[arg-type]
    "lam": (lambda: probes.gradient_norm(mlp_problem(), lam="1"), "lam must be a number, got '1'"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_bad_input_gives_a_sentence(name: str) -> None:
    make, words = REFUSED[name]
    with pytest.raises(UserError, match=words) as error:
        make()
    assert str(error.value).endswith(".")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", list(NUMBERS))
def test_a_bad_number_gives_a_sentence(name: str) -> None:
    make, words = NUMBERS[name]
    with pytest.raises(UserError, match=words):
        make()
