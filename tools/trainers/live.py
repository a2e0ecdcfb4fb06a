"""What an optimizer's next calls of ``step()`` really do, and what ``halflife.explain`` says of it as it is.

For wrappers and for optimizers that a factory of ``(params, lr, weight_decay)`` cannot build: those that want a closure,
``train()``, names or a process group. Runs inside the audit's environments, beside whatever the optimizer needs.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

CALLS = 12
LR, LAM = 0.1, 0.1  # a step of torch's AdamW keeps 0.99, and twelve keep 0.886
SHOWN = {"matrix": "fc.weight", "bias": "fc.bias", "norm": "ln.weight", "embedding": "wte.weight"}


class Net(nn.Module):
    """One of each kind of parameter; the names are those that Adam-mini looks for."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wte = nn.Embedding(64, 64)
        self.q_proj = nn.Linear(64, 64, bias=False)
        self.fc = nn.Linear(64, 64)  # 4096 elements: what bitsandbytes keeps in 8 bits
        self.ln = nn.LayerNorm(64)
        self.to(dtype)
        for parameter in self.parameters():
            parameter.data.add_(torch.where(parameter.data < 0.0, -0.5, 0.5).to(dtype))  # so that no weight is near 0


def zero_gradients(model: nn.Module) -> None:
    """Give every parameter a gradient of zeros."""
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)


def closure_of(model: nn.Module, gradient: float = 0.0) -> Callable[[], torch.Tensor]:
    """A closure as a training loop has it, whose gradients are all one number, zero or tiny."""

    def closure() -> torch.Tensor:
        model.zero_grad()
        loss = sum((gradient * parameter.sum() for parameter in model.parameters()), torch.zeros(()))
        loss.backward()
        return loss

    return closure


def measured(model: nn.Module, call: Callable[[], object]) -> dict[str, list[list[float]]]:
    """Call some steps with zero gradients; nothing of `halflife` takes part in it.

    Args:
        model: The model.
        call: What steps.

    Returns:
        By kind of parameter: for each call the smallest and the largest share of a weight that it kept.
    """
    named = {kind: model.get_parameter(name) for kind, name in SHOWN.items()}
    kept: dict[str, list[list[float]]] = {kind: [] for kind in named}
    for _ in range(CALLS):
        before = {kind: parameter.detach().double() for kind, parameter in named.items()}
        zero_gradients(model)
        call()
        for kind, parameter in named.items():
            start, end = before[kind].flatten(), parameter.detach().double().flatten()
            shares = end / start
            kept[kind].append([float(shares.min()), float(shares.max())])
    return kept


def brief(shares: list[float]) -> float | list[float]:
    """One number where a call kept the same share of every weight; else the smallest and the largest."""
    same = one_share(shares)
    return shares if same is None else same


def said(model: nn.Module, optimizer: Any, **options: Any) -> dict[str, Any]:
    """What `halflife.explain` finds, by kind of parameter; in one sentence where it refuses."""
    import halflife
    from halflife.errors import UserError

    try:
        table = halflife.explain(model, optimizer, **options)
    except UserError as error:
        return {"refused": str(error)}
    except Exception as error:  # which explain must not do: the tests of the page look for it
        return {"refused": f"{type(error).__name__}: {error}", "crashed": True}
    rows = {row["parameter"]: row for row in table.rows}
    keys = ("decays", "why", "law", "lam", "r", "every", "group")
    found = {kind: {key: rows[name].get(key) for key in keys} for kind, name in SHOWN.items()}
    laws = {group["group"]: group for group in table.groups}
    if not options and any(row["decays"] is None for row in rows.values()):
        again = said(model, optimizer, in_place=True)
        if "refused" not in again and any(again[kind]["decays"] is not None for kind in SHOWN):
            return {**again, "in_place": rows[SHOWN["matrix"]]["why"]}
    for entry in found.values():
        entry["describe"] = laws[entry["group"]]["describe"] if entry["group"] is not None else ""
    return {**found, "warnings": [finding.code for finding in table.warnings]}


def one_share(shares: list[float]) -> float | None:
    """The share that a call kept of every weight; None if it was not the same."""
    low, high = shares
    return (low + high) / 2 if high - low < 2e-6 else None


def agree(entry: dict[str, Any], calls: list[list[float]]) -> bool | None:
    """Whether what was said of one parameter is what the steps did.

    A fraction is compared with the first call that acts; for L2 through momentum it is what later calls come to.

    Args:
        entry: What was said.
        calls: What each call kept.

    Returns:
        None where it was not probed.
    """
    moved = [shares for shares in calls if shares != [1.0, 1.0]]
    if entry["decays"] is None:
        return None
    if entry["decays"] is False:
        return not moved
    if not moved:
        return False
    if entry["r"] is None or entry["law"] not in {"decoupled", "independent", "corrected", "l2"}:
        return True
    first = one_share(moved[0])
    if first is None:
        return False
    return (0.0 if entry["law"] == "l2" else 0.99) * entry["r"] < 1.0 - first < 1.01 * entry["r"]


def live(
    trainer: str,
    configuration: str,
    package: str,
    model: nn.Module,
    optimizer: Any,
    *,
    documented: str = "",
    verdict: str = "as documented",
    call: Callable[[], object] | None = None,
    ready: Callable[[], object] | None = None,
    compared: bool = True,
) -> dict[str, Any]:
    """One row: what is said of the optimizer before its first step, and what its steps then do.

    Args:
        trainer: What the optimizer is called.
        configuration: How it was made.
        package: The distribution whose version is given.
        model: The `Net` that it trains.
        optimizer: The object.
        documented: What its documentation says, if more than that it is weight decay.
        verdict: "as documented", "not documented", or the key of a disagreement.
        call: What a training loop calls; ``optimizer.step()`` by default.
        ready: What a training loop calls once before, such as ``optimizer.train``.
        compared: Whether calls with zero gradients can say anything of what is said.

    Returns:
        The row.
    """
    if ready is not None:
        ready()
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = said(model, optimizer)
    same = all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    kept = measured(model, call or optimizer.step)
    return {
        "trainer": trainer,
        "configuration": configuration,
        "package": package,
        "documented": documented,
        "verdict": verdict,
        "option": "",
        "groups": [],
        "said": found,
        "kept": {kind: [brief(shares) for shares in calls] for kind, calls in kept.items()},
        "untouched": same,
        "agrees": {}
        if "refused" in found or not compared
        else {kind: agree(found[kind], kept[kind]) for kind in SHOWN},
    }
