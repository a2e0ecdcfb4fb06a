"""What is refused at every probe, what fails while it runs, and what is taken although it looks odd."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife import probes
from halflife.errors import RunFailedError, UserError
from halflife.probes import Problem
from tests.probes.probe_nets import ConvNet, mlp_problem
from tests.probes.test_probes_refusals import BATCHES, CE, MSE, X, Y, after, filled, net


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
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            raise KeyError("a mistake in the model")

    with pytest.raises(KeyError, match="a mistake in the model"):
        Problem(Broken(3, 2), CE, BATCHES)


ALL: dict[str, Callable[[Problem], Any]] = {
    "hessian_trace": lambda p: probes.hessian_trace(p, num_products=6),
    "hessian_trace, split": lambda p: probes.hessian_trace(p, num_products=6, method="split"),
    "gauss_newton_trace": lambda p: probes.gauss_newton_trace(p, num_products=6),
    "gauss_newton_trace, exact": lambda p: probes.gauss_newton_trace(p, method="exact"),
    "top_eigenvalues": probes.top_eigenvalues,
    "sharpness": lambda p: probes.sharpness(p, 0.1),
    "jacobian_norm": probes.jacobian_norm,
    "jacobian_norm, estimated": lambda p: probes.jacobian_norm(p, num_vectors=2),
    "noise_scale": probes.noise_scale,
    "gradient_norm": probes.gradient_norm,
    "mean_loss": probes.mean_loss,
    "gradient_noise": probes.gradient_noise,
    "gradient_noise, decoupled": lambda p: probes.gradient_noise(p, decoupled=True),
    "alignment": lambda p: probes.alignment(p, num_vectors=2),
}


@pytest.mark.parametrize("name", list(ALL))
def test_every_probe_refuses_a_layer_that_was_replaced_and_a_model_for_a_problem(name: str) -> None:
    def replace(model: Any) -> None:
        model[1] = nn.Linear(4, 2)

    with pytest.raises(UserError, match=r"another 1\.weight, .*; make a new Problem of it\.$"):
        after(replace, ALL[name])
    with pytest.raises(UserError, match=r"^problem is Sequential; expected a halflife\.probes\.Problem"):
        ALL[name](net())  # type: ignore[arg-type]


def test_other_values_of_the_same_parameters_are_measured() -> None:
    problem, other = Problem(net(), CE, BATCHES), net()
    problem.model.load_state_dict(other.state_dict())
    assert probes.mean_loss(problem) == pytest.approx(float(CE(other(X), Y).detach()), rel=1e-5)
    problem.parameters[0].data = torch.zeros_like(problem.parameters[0])
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert probes.mean_loss(problem) == pytest.approx(float(CE(other(X), Y).detach()), rel=1e-5)


@pytest.mark.parametrize("y", [Y, Y.float()[:, None]], ids=["labels", "column"])
def test_torch_does_not_warn_of_targets_that_are_refused(y: Tensor) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with pytest.raises(UserError, match="MSELoss as the loss"):
            Problem(net(), MSE, [(X, y)])
    assert not caught


def test_in_a_training_run_weights_that_are_not_finite_are_a_failed_run() -> None:
    # The other runs of a study go on after a failed run, and stop at a mistake of the user's.
    with pytest.raises(RunFailedError, match="holds NaN or infinite numbers"):
        Problem(filled(torch.nan), CE, BATCHES)
    with pytest.raises(UserError) as error:
        Problem(net(), CE, [(X / 0, Y)])
    assert not isinstance(error.value, RunFailedError)


def test_infinite_outputs_of_a_finite_loss_are_taken() -> None:
    class Masked(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat([super().forward(x), torch.full_like(x[:, :1], -torch.inf)], 1)

    assert probes.mean_loss(Problem(Masked(3, 2), CE, BATCHES)) > 0


def test_a_problem_says_what_it_is() -> None:
    assert repr(Problem(net(nn.BatchNorm1d(4)), CE, BATCHES, batch_norm="eval")) == (
        "Problem(num_examples=8, num_parameters=34, loss=CrossEntropyLoss(), batch_norm='eval')"
    )


def test_without_scipy_only_the_largest_eigenvalues_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.sparse.linalg", None)
    problem = mlp_problem()
    assert probes.hessian_trace(problem).value != 0
    assert probes.alignment(problem)
    few = Problem(nn.Linear(3, 2), CE, BATCHES)
    assert probes.top_eigenvalues(few, count=2).shape == (2,)
    with pytest.raises(UserError, match=r"need scipy.*pip install 'torch-halflife\[curvature\]'\.$"):
        probes.top_eigenvalues(problem)


def test_a_part_without_forward_derivatives_gives_a_sentence() -> None:
    class Square(torch.autograd.Function):
        generate_vmap_rule = True

        @staticmethod
        def forward(x: Tensor) -> Tensor:
            return x * x

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Tensor], _: Tensor) -> None:
            ctx.save_for_backward(*inputs)

        @staticmethod
        def backward(ctx: Any, slope: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            found: Tensor = 2 * slope * x
            return found

    class Layer(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = Square.apply(x)  # type: ignore[no-untyped-call]
            return out

    problem = Problem(net(Layer()), CE, BATCHES)
    with pytest.raises(UserError, match=r"needs forward-mode derivatives .* write that part in elementary operations"):
        probes.gauss_newton_trace(problem, num_products=6)
    with pytest.raises(UserError, match=r"needs forward-mode derivatives .* write that part in elementary operations"):
        probes.hessian_trace(problem, num_products=6, method="split")
    assert probes.gradient_norm(problem) > 0


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
