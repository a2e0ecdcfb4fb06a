"""Which probes a run on text may take, and the readings that they give.

Shapes: W windows, B windows of a batch, T tokens of a window, V token ids.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from halflife import probes
from halflife.errors import UserError
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.specs.text import TextRun

__all__ = ["check_probes", "probe"]

TOKENS_PER_BATCH = 1_024  # bounds the memory: products go with several vectors at once

Values = dict[str, float]


class _ClassesSecond(nn.Module):
    """A language model whose logits torch's cross-entropy takes window by window: (B, V, T), not (B, T, V).

    So a window is an example of the probes, and the mean over windows is the mean over tokens: all windows are as long.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids_BT: Tensor) -> Tensor:
        """Return the logits, (B, V, T); (B, V) of a model that predicts the last token alone."""
        logits: Tensor = self.model(ids_BT)
        return logits.movedim(-1, 1)


def check_probes(spec: TextRun, parallel: DataParallelContext) -> None:
    """Refuse a run that cannot take its probes, before hours are spent.

    Args:
        spec: The run.
        parallel: The processes that train it.

    Raises:
        UserError: Several processes hold its weights.
    """
    if spec.probes and parallel.size > 1:
        raise UserError(
            f"the run has probes and {parallel.size} processes, expected one, which holds all weights: leave probes out, or"
            " train in one process"
        )


def probe(spec: TextRun, model: nn.Module, windows_WT: Tensor) -> Values:
    """Measure a model with the probes of a run, in float32, without dropout and label smoothing.

    Args:
        spec: Names the probes and how many random vectors they take.
        model: The model.
        windows_WT: Token ids, one more than the model reads.

    Returns:
        Values by name. The loss is the mean over predicted tokens, and so is the square of the Jacobian norm,

            ||J||_F^2 = mean over predicted tokens of ||d logits / d w||_F^2

        estimated from random vectors; names that end in ``_se`` are standard errors.
    """
    last_only = spec.model == "mlp"
    targets_per_window = 1 if last_only else windows_WT.shape[1] - 1
    per_batch = max(1, TOKENS_PER_BATCH // (windows_WT.shape[1] - 1))
    batches = [
        (part_BT[:, :-1].contiguous(), (part_BT[:, -1] if last_only else part_BT[:, 1:]).contiguous())
        for part_BT in torch.split(windows_WT, per_batch)
    ]
    training = model.training
    problem = probes.Problem(_ClassesSecond(model.eval()), nn.CrossEntropyLoss(), batches)
    values: Values = {}
    for name in spec.probes:
        values |= _PROBES[name](spec, problem, targets_per_window)
    model.train(training)
    return values


def _with_error(name: str, estimate: probes.Estimate, factor: float = 1.0) -> Values:
    return {name: factor * estimate.value, f"{name}_se": factor * estimate.standard_error}


def _hessian_trace(spec: TextRun, problem: probes.Problem, _targets: int) -> Values:
    return _with_error("hessian_trace", probes.hessian_trace(problem, num_products=spec.probe_vectors, seed=spec.seed))


def _gauss_newton_trace(spec: TextRun, problem: probes.Problem, _targets: int) -> Values:
    estimate = probes.gauss_newton_trace(problem, num_products=spec.probe_vectors, seed=spec.seed)
    return _with_error("gauss_newton_trace", estimate)


def _jacobian_norm(spec: TextRun, problem: probes.Problem, targets: int) -> Values:
    # The probe's mean is over windows, each with the outputs of all its tokens.
    estimate = probes.jacobian_norm(problem, num_vectors=spec.probe_vectors, seed=spec.seed)
    return _with_error("jacobian_norm", estimate, targets**-0.5)


def _gradient_norm(_spec: TextRun, problem: probes.Problem, _targets: int) -> Values:
    return {"gradient_norm": probes.gradient_norm(problem)}


_PROBES: dict[str, Callable[[TextRun, probes.Problem, int], Values]] = {
    "hessian-trace": _hessian_trace,
    "gauss-newton-trace": _gauss_newton_trace,
    "jacobian-norm": _jacobian_norm,
    "gradient-norm": _gradient_norm,
}
