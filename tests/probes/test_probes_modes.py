"""Training mode: refused, at the start and at every probe, where it makes a difference, and taken where it makes none."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife import probes
from halflife.errors import UserError
from halflife.probes import Problem
from tests.probes.probe_nets import conv_problem
from tests.probes.test_probes import everything, run_every_probe, same
from tests.probes.test_probes_failures import ALL
from tests.probes.test_probes_refusals import BATCHES, CE, X, Y, net

Make = Callable[[], nn.Module]


class Layer(nn.Module):
    """A layer of four features that a function of its input and of its mode makes."""

    def __init__(self, function: Callable[[Tensor, bool], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(x, self.training)


class Attention(nn.Module):
    """Attention between the features of an example."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(1, 1, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = x.unsqueeze(-1)
        out: Tensor = self.attention(x, x, x)[0].squeeze(-1)
        return out


class Recurrent(nn.Module):
    """Two layers, between which torch's own module drops out."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.lstm = nn.LSTM(1, 1, 2, dropout=dropout, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.lstm(x.unsqueeze(-1))[0].squeeze(-1)
        return out


def _own_generator() -> Layer:
    generator = torch.Generator().manual_seed(0)
    return Layer(lambda x, training: x + 0.1 * torch.randn(x.shape, generator=generator) if training else x)


def _silent() -> nn.Module:
    """A net whose head is zero: dropout before it changes no output, and would change every gradient."""
    model = net(nn.Dropout(0.1))
    nn.init.zeros_(model[2].weight)  # type: ignore[index]
    return model


def _skips(draw: Callable[[], float]) -> Make:
    """A net that leaves out a layer in one of 10,000 steps, as LayerDrop does."""
    return lambda: net(Layer(lambda x, training: x if training and draw() < 1e-4 else torch.tanh(x)))


def _normalize(x: Tensor, training: bool) -> Tensor:
    return (x - x.mean(0)) / x.std(0) if training else x


def _needs_targets(x: Tensor, training: bool) -> Tensor:
    if training:
        raise KeyError("targets")
    return x


DRAWS = r"^The model, or a part of it, is in training mode, and there it draws random numbers, .*call model\.eval\(\)"
DIFFERS = (
    r"is in training mode, and there it does not give the outputs of evaluation mode; .*call model\.eval\(\) first"
)
MODES: dict[str, tuple[Make, str]] = {
    "dropout": (lambda: net(nn.Dropout(0.5)), DRAWS),
    "little dropout": (lambda: net(nn.Dropout(1e-6)), DRAWS),
    "dropout as a function": (lambda: net(Layer(lambda x, training: functional.dropout(x, 0.1, training))), DRAWS),
    "dropout without an effect": (_silent, DRAWS),
    "dropout of a block": (lambda: net(nn.Sequential(nn.Tanh(), nn.AlphaDropout(0.1))), DRAWS),
    "dropout of attention": (lambda: net(Attention(0.1)), DRAWS),
    "dropout of an LSTM": (lambda: net(Recurrent(0.1)), DRAWS),
    "noise": (lambda: net(Layer(lambda x, training: x + 0.1 * torch.randn_like(x) if training else x)), DRAWS),
    "random slopes": (lambda: net(nn.RReLU()), DRAWS),
    "a layer left out by Python's random": (_skips(random.random), DRAWS),
    "a layer left out by NumPy's random": (_skips(np.random.random), DRAWS),
    "noise of its own generator": (lambda: net(_own_generator()), DIFFERS),
    "statistics of the batch by hand": (lambda: net(Layer(_normalize)), DIFFERS),
    "running statistics of single examples": (
        lambda: net(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten()),
        DIFFERS,
    ),
    "another form of output": (
        lambda: nn.Sequential(net(), Layer(lambda x, training: (x, x) if training else x)),
        DIFFERS,
    ),
    "targets wanted": (lambda: net(Layer(_needs_targets)), DIFFERS),
}


@pytest.mark.parametrize("name", list(MODES))
def test_training_mode_is_refused_where_it_makes_a_difference(name: str) -> None:
    """At the start, and at a probe after ``train()``; a refusal leaves everything as it was."""
    make, words = MODES[name]
    torch.manual_seed(0)  # random slopes are drawn for negative inputs only, and some weights make none
    model = make()
    before = everything(model)
    with pytest.raises(UserError, match=words):
        Problem(model, CE, BATCHES)
    assert same(everything(model), before)
    problem = Problem(model.eval(), CE, BATCHES)
    loss = probes.mean_loss(problem)
    assert loss == pytest.approx(float(CE(model(X), Y).detach()), rel=1e-5)
    model.train()
    before = everything(model)
    with pytest.raises(UserError, match=words):
        probes.mean_loss(problem)
    assert same(everything(model), before)
    model.eval()
    assert probes.mean_loss(problem) == loss


@pytest.mark.parametrize("name", list(ALL))
def test_every_probe_refuses_training_mode(name: str) -> None:
    problem = Problem(net(nn.Dropout(0.1)).eval(), CE, BATCHES)
    problem.model.train()
    with pytest.raises(UserError, match=DRAWS):
        ALL[name](problem)


def test_one_module_in_training_mode_is_enough() -> None:
    problem = Problem(net(nn.Tanh(), nn.Dropout(0.1)).eval(), CE, BATCHES)
    problem.model[2].train()  # type: ignore[index]
    with pytest.raises(UserError, match=DRAWS):
        probes.gradient_norm(problem)


def test_a_model_that_becomes_random_is_refused_at_the_next_probe() -> None:
    layer = Layer(lambda x, training: x)
    problem = Problem(net(layer), CE, BATCHES)
    assert probes.gradient_norm(problem) > 0
    layer.function = lambda x, training: functional.dropout(x, 0.5, training=True)
    with pytest.raises(UserError, match="different outputs for the same batch, even in evaluation mode"):
        probes.gradient_norm(problem)


@pytest.mark.parametrize(
    "make",
    [
        lambda: net(nn.Dropout(0.0)),
        lambda: net(Attention(0.0)),
        lambda: net(Recurrent(0.0)),
        lambda: net(nn.LayerNorm(4), nn.GELU()),
        lambda: net(nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2), nn.Flatten()),
        # The random numbers are drawn, and not used, in evaluation mode: the model is none the less deterministic.
        lambda: net(Layer(lambda x, training: x + 0 * random.random())).eval(),
    ],
    ids=["dropout of nothing", "attention", "LSTM", "LayerNorm", "InstanceNorm", "draws in evaluation mode"],
)
def test_training_mode_is_taken_where_it_makes_no_difference(make: Make) -> None:
    model = make()
    problem = Problem(model, CE, BATCHES)
    found = probes.gradient_norm(problem)
    model.eval()
    assert probes.gradient_norm(problem) == found > 0


@pytest.mark.parametrize("batch_norm", ["eval", "batch"])
def test_batch_norm_is_measured_as_chosen_in_any_mode(batch_norm: Any) -> None:
    problem = conv_problem(batch_norm)
    found = {}
    for training in (True, False):
        problem.model.train(training)
        before = everything(problem.model)
        run_every_probe(problem)
        found[training] = (probes.mean_loss(problem), probes.gradient_norm(problem))
        assert same(everything(problem.model), before)
    assert found[True] == found[False]


def test_batch_norm_and_dropout_together() -> None:
    model = net(nn.BatchNorm1d(4), nn.Dropout(0.1))
    with pytest.raises(UserError, match=DRAWS):
        Problem(model, CE, BATCHES, batch_norm="batch")
    model[1].eval()  # type: ignore[index]
    with pytest.raises(UserError, match=DRAWS):
        Problem(model, CE, BATCHES, batch_norm="batch")
    model[2].eval()  # type: ignore[index]
    assert probes.gradient_norm(Problem(model, CE, BATCHES, batch_norm="batch")) > 0
