"""Norms kept along one run, and the learning rates that give another run the same effective rate.

With w the parent's weights before a step, w' the replay's, and r the fraction that the parent's decay removes, sign-like
updates turn w' by as much as w where

    lr' = lr * ||w'|| / ||w|| / (1 - r)

Source: "Why Do We Need Weight Decay in Modern Deep Learning?", section 3 (figure 7). Shapes: T steps, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from halflife.errors import UserError
from halflife.optim.norms import squared_norms
from halflife.studies.lab.tensor_files import read_tensors, readable, write_tensors

__all__ = ["Matcher", "trace_row", "write_trace"]


def trace_row(parameters: Sequence[Tensor], fraction: float) -> Tensor:
    """The norm of every parameter and, last, the fraction that the coming decay removes; in float64."""
    norms_P = squared_norms(parameters).sqrt()
    return torch.cat([norms_P, norms_P.new_tensor([fraction])])


def write_trace(path: Path, rows: Sequence[Tensor], *, run: str) -> None:
    """Write what `trace_row` gave at every step of the run whose spec has this digest."""
    write_tensors(path, {"trace": torch.stack(list(rows)).cpu()}, {}, run=run)


class Matcher:
    """Learning rates that match those of a parent.

    Args:
        path: The parent's trace.
        run: The digest of the parent's spec.
        match: ``"global"``, ``"per-tensor"``, ``"global-squared"`` or ``"none"``.
        parameters: The replay's parameters, in the parent's order.
        decayed: Those that decayed in the parent.
        num_steps: Steps of the replay.

    Raises:
        UserError: There is no trace, or it belongs to another model.
    """

    def __init__(
        self,
        path: Path,
        match: str,
        parameters: Sequence[Tensor],
        decayed: Sequence[Tensor],
        *,
        num_steps: int,
        run: str,
    ) -> None:
        found = read_tensors(path, run=run)
        if found is None:
            raise UserError(
                f"the norms of the parent, {path}, are gone: remove the parent's folder, it is then trained again"
            )
        with readable(path):
            trace = found[0]["trace"]
            rows, wanted = tuple(trace.shape), len(parameters) + 1
            if trace.dtype != torch.float64 or len(rows) != 2 or rows[0] < num_steps or rows[1] != wanted:
                raise ValueError(f"trace is {rows} {trace.dtype}, expected ({num_steps}, {wanted}) torch.float64")
            if not (trace.isfinite() & (trace >= 0)).all() or (trace[:, -1] >= 1).any():
                raise ValueError("trace has a norm that is negative or not finite, or a fraction of 1 or more")
        self.norms_TP, self.fractions_T = trace[:, :-1], trace[:, -1].tolist()
        self.match, self.parameters = match, list(parameters)
        marked = {id(parameter) for parameter in decayed}
        self.decayed_P = [id(parameter) in marked for parameter in parameters]

    def factors(self, step: int) -> list[float]:
        """What each parameter's learning rate is multiplied by at a step."""
        if self.match == "none":
            return [1.0] * len(self.parameters)
        keep = 1 - self.fractions_T[step]
        # Read by the host at every step: a replay measures, it is no training loop to be fast.
        mine_P, theirs_P = squared_norms(self.parameters).sqrt().cpu(), self.norms_TP[step]
        if self.match == "per-tensor":
            ratio_P = (mine_P / theirs_P.clamp_min(1e-30) / keep).tolist()
            return [ratio if decays else 1.0 for ratio, decays in zip(ratio_P, self.decayed_P, strict=True)]
        ratio = (mine_P.square().sum() / theirs_P.square().sum()).sqrt().item()
        return [(ratio**2 if self.match == "global-squared" else ratio) / keep] * len(self.parameters)
