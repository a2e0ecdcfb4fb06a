"""What an optimizer that a trainer built really does to the weights: its groups, their laws, an independent check.

Runs inside the audit's environments, beside whatever the trainer needs, so it imports torch and halflife alone.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

FLOAT32 = 2**-23  # optimizers that compute in float32 whatever the weights are round every weight by as much
KINDS = ("matrices", "embeddings", "norms", "biases", "other")


@dataclass
class Built:
    """An optimizer after the trainer's own set-up code ran, and the model that it trains.

    Attributes:
        trainer: The trainer's name.
        configuration: What was asked for, in words.
        optimizer: The optimizer object that the trainer made.
        models: The modules whose parameters the trainer is meant to train.
        package: The distribution whose version is given.
        option: For a list of choices: the choice; such rows go to a table of their own.
        documented: What the trainer's documentation says of this, in a few words.
        verdict: "as documented", "not documented", or the key of a disagreement.
    """

    trainer: str
    configuration: str
    optimizer: Any
    models: Iterable[nn.Module]
    package: str
    documented: str
    verdict: str
    option: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


def kind_of(module: nn.Module, name: str, parameter: torch.Tensor) -> str:
    """Matrices, embeddings, norms, biases or other, by the module's type first and the parameter's name second."""
    owner = type(module).__name__.lower()
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) or ("embedding" in owner and parameter.ndim == 2):
        return "embeddings"
    if "norm" in owner:
        return "norms"
    if "bias" in name.lower():
        return "biases"
    if parameter.ndim >= 2 and ("weight" in name.lower() or "kernel" in name.lower()):
        return "matrices"
    return "other"


def kinds_of(models: Iterable[nn.Module]) -> dict[int, tuple[str, str, nn.Parameter]]:
    """Name, kind and parameter of every parameter, by identity; a shared one has the first name that it is met under."""
    found: dict[int, tuple[str, str, nn.Parameter]] = {}
    for model in models:
        for prefix, module in model.named_modules():
            for name, parameter in module.named_parameters(recurse=False):
                full = f"{prefix}.{name}" if prefix else name
                found.setdefault(id(parameter), (full, kind_of(module, name, parameter), parameter))
    return found


def counted(parameters: Iterable[tuple[str, torch.Tensor]]) -> dict[str, list[int]]:
    """Tensors and elements of each kind."""
    counts: dict[str, list[int]] = {}
    for kind, parameter in parameters:
        entry = counts.setdefault(kind, [0, 0])
        entry[0] += 1
        entry[1] += parameter.numel()
    return {kind: counts[kind] for kind in KINDS if kind in counts}


def unwrapped(optimizer: Any) -> Any:
    """The optimizer inside the wrappers of accelerate and Lightning."""
    while not isinstance(getattr(optimizer, "optimizer", None), type(None)):
        optimizer = optimizer.optimizer
    return optimizer


def zero_gradient_step(optimizer: Any) -> list[dict[str, Any]]:
    """One step with gradients of exactly zero from random weights: which fraction went, per group.

    Nothing of `halflife` takes part in it. The weights become float64 normal numbers, so that a fraction of 1e-9
    shows. A decay that is not coupled to the gradient removes the same fraction everywhere; one that goes through
    an adaptive step does not.

    Args:
        optimizer: The optimizer, before its first step. It is changed.

    Returns:
        Per group: ``kind`` ("nothing moved", "the same fraction", "not the same fraction", "frozen", or "not run"),
        ``low`` and ``high``, the smallest and largest fraction.
    """
    generator = torch.Generator().manual_seed(0)
    before: list[list[torch.Tensor]] = []
    for group in optimizer.param_groups:
        kept = []
        for parameter in group["params"]:
            values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = values + torch.sign(values) * 0.1
            parameter.grad = torch.zeros_like(parameter.data) if parameter.requires_grad else None
            kept.append(parameter.data.clone())
        before.append(kept)
    try:
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()  # schedule-free optimizers step in training mode only
        optimizer.step()
    except Exception as error:  # a third-party step may fail in any way
        return [{"kind": "not run", "why": f"{type(error).__name__}: {error}"[:200]} for _ in before]
    found: list[dict[str, Any]] = []
    for group, kept in zip(optimizer.param_groups, before, strict=True):
        fractions = [
            ((old - p.data) / old).flatten() for p, old in zip(group["params"], kept, strict=True) if p.requires_grad
        ]
        if not fractions:
            found.append({"kind": "frozen"})
            continue
        every = torch.cat(fractions)
        low, high = float(every.min()), float(every.max())
        kind = "not the same fraction"
        if low == high == 0.0:
            kind = "nothing moved"
        elif high - low <= max(1e-6 * abs(high), 1e-14):
            kind = "the same fraction"
        elif low < 0 < high <= FLOAT32 and low >= -FLOAT32:
            kind = "nothing moved, to float32"
        elif FLOAT32 / 4 <= high - low <= 4 * FLOAT32:
            kind = "the same fraction, to float32"
        found.append({"kind": kind, "low": low, "high": high})
    return found


def two_runs(optimizer: Any) -> list[dict[str, Any]]:
    """One step with random gradients at the group's weight decay and one at half of it: what the other half took.

    Nothing of `halflife` takes part in it. A step at weights of zero comes first, so that the state is filled while
    no law can act. Where the decay is not coupled to the gradient, the two results differ by the same fraction of
    every weight, taken before the update or after it.

    Args:
        optimizer: The optimizer. It is changed.

    Returns:
        Per group: ``kind`` ("nothing", "the same fraction", "not the same fraction" or "not run") and ``fraction``,
        for the whole weight decay.
    """
    settings = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
    state = {parameter: dict(entries) for parameter, entries in optimizer.state.items()}
    generator = torch.Generator().manual_seed(2)
    shapes = [[p.shape for p in group["params"]] for group in optimizer.param_groups]
    draws = [
        [[torch.randn(s, generator=generator, dtype=torch.float64) for s in group] for group in shapes]
        for _ in range(3)
    ]
    results: list[list[list[torch.Tensor]]] = []

    def reset(factor: float) -> None:
        optimizer.state = defaultdict(dict, {p: copy.deepcopy(entries) for p, entries in state.items()})
        for group, kept in zip(optimizer.param_groups, settings, strict=True):
            for key in [k for k in group if k != "params" and k not in kept]:
                del group[key]
            group.update(copy.deepcopy(kept))
            if group.get("weight_decay"):
                group["weight_decay"] = group["weight_decay"] * factor

    try:
        if callable(getattr(optimizer, "train", None)):
            optimizer.train()  # schedule-free optimizers step in training mode only
            settings = [{k: copy.deepcopy(v) for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        for factor in (1.0, 0.5):
            torch.manual_seed(3)
            reset(factor)
            for at_zero, gradients in ((True, draws[0]), (False, draws[1])):
                for group, weights, values in zip(optimizer.param_groups, draws[2], gradients, strict=True):
                    for parameter, weight, value in zip(group["params"], weights, values, strict=True):
                        parameter.data = torch.zeros_like(weight) if at_zero else weight + weight.sign()
                        parameter.grad = value.clone() if parameter.requires_grad else None
                optimizer.step()
            results.append([[p.data.clone() for p in group["params"]] for group in optimizer.param_groups])
    except Exception as error:  # a third-party step may fail in any way
        return [{"kind": "not run", "why": f"{type(error).__name__}: {error}"[:200]} for _ in settings]
    finally:
        reset(1.0)
    found: list[dict[str, Any]] = []
    for index, group in enumerate(optimizer.param_groups):
        chosen = [i for i, p in enumerate(group["params"]) if p.requires_grad]
        whole, half = ([results[run][index][i].flatten() for i in chosen] for run in (0, 1))
        starts = [draws[2][index][i].flatten() for i in chosen]
        if not chosen:
            found.append({"kind": "not run", "why": "frozen"})
            continue
        start, after = torch.cat(starts), torch.cat(half)
        difference = after - torch.cat(whole)
        size = float(after.abs().max())
        none = (
            float(difference.abs().max()) == 0.0 or float(difference.min()) < 0.0 < float(difference.max()) <= FLOAT32
        )
        entry = {"kind": "nothing" if none else "not the same fraction"}
        # First to the precision of float64; then to that of float32, for optimizers that compute in it.
        for digits, least in ((1e-14, 1e-12), (FLOAT32, FLOAT32)):
            for base in (start + start.sign(), after):
                middle = float((2.0 * difference / base).median())
                miss = float((difference - middle / 2.0 * base).abs().max())
                if entry["kind"] != "the same fraction" and middle > least and miss <= 1e-6 * middle + digits * size:
                    entry = {"kind": "the same fraction", "fraction": middle}
        found.append(entry)
    return found


def agrees(law: Any, check: dict[str, Any], runs: dict[str, Any]) -> bool | None:
    """Whether the law found by halflife and the two independent checks say the same; None where these are missing."""
    kind = check["kind"].removesuffix(", to float32")
    if law.pathway in {"not probed", "other"} or kind in {"not run", "frozen"}:
        return None
    if law.pathway == "none":
        return bool(kind == "nothing moved")
    if law.pathway == "decoupled" or law.equivalent_to == "decoupled":
        seen = [check["high"]] if kind == "the same fraction" else []
        seen += [runs["fraction"]] if runs["kind"] == "the same fraction" else []
        return any(math.isclose(law.fraction, value, rel_tol=5e-3, abs_tol=1e-13) for value in seen if law.fraction)
    if law.pathway == "l2":  # by hand: the first step of SGD takes a multiple of lr * lam
        return bool(kind == "the same fraction")
    return bool(kind != "nothing moved" or runs["kind"] == "not the same fraction")


def half_life(fraction: float | None) -> float | None:
    """Steps until half of an untouched weight is left."""
    return math.log(2) / -math.log1p(-fraction) if fraction and 0 < fraction < 1 else None


def describe(built: Built) -> dict[str, Any]:
    """One row of the audit: the groups of the optimizer, their laws, the independent check, what is in no group."""
    from halflife.laws.live import laws_of

    optimizer = unwrapped(built.optimizer)
    kinds = kinds_of(built.models)
    laws = laws_of(built.optimizer)
    groups = []
    for index, (group, law) in enumerate(zip(optimizer.param_groups, laws, strict=True)):
        trained = [p for p in group["params"] if p.requires_grad]
        if not trained:
            continue
        groups.append(
            {
                "group": index,
                "lr": float(group["lr"]),
                "weight_decay": float(group["weight_decay"]) if group.get("weight_decay") is not None else None,
                "counts": counted((kinds.get(id(p), ("", "other", p))[1], p) for p in trained),
                "pathway": law.pathway,
                "law": law.describe(),
                "equivalent_to": law.equivalent_to,
                "fraction": law.fraction,
                "half_life": half_life(law.fraction),
                "notes": list(law.notes),
            }
        )
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    left = [(kind, p) for key, (_, kind, p) in kinds.items() if p.requires_grad and key not in grouped]
    runs = two_runs(optimizer)  # first, because it starts from the state that the trainer left and restores it
    checks = zero_gradient_step(optimizer)
    for entry in groups:
        index = entry["group"]
        entry["check"], entry["two_runs"] = checks[index], runs[index]
        entry["agrees"] = agrees(laws[index], checks[index], runs[index])
    return {
        "trainer": built.trainer,
        "configuration": built.configuration,
        "package": built.package,
        "documented": built.documented,
        "verdict": built.verdict,
        "option": built.option,
        "optimizer": f"{type(optimizer).__module__.split('.')[0]}.{type(optimizer).__qualname__}",
        "groups": groups,
        "in_no_group": counted(left),
        **built.extra,
    }


def twins(step: Callable[[torch.Tensor, list[torch.Tensor], float, float], torch.Tensor]) -> dict[str, Any]:
    """The law of something that is no torch optimizer, from the difference that its weight decay makes.

    Args:
        step: Takes the first weights, the gradients of all steps, a learning rate and a weight decay; returns the
            weights after these steps from a fresh state.

    Returns:
        ``pathway``, ``fraction`` per step, and the learning rate and weight decay that it was measured at.
    """
    generator = torch.Generator().manual_seed(1)
    lr, lam = 0.05, 0.02
    start = torch.randn(6, 4, generator=generator, dtype=torch.float64) + 3.0
    random = torch.randn(6, 4, generator=generator, dtype=torch.float64)

    def removed(gradient: torch.Tensor, rate: float, decay: float, after: bool) -> torch.Tensor:
        with_decay = step(copy.deepcopy(start), [gradient.clone()], rate, decay)
        without = step(copy.deepcopy(start), [gradient.clone()], rate, 0.0)
        return (without - with_decay) / (without if after else start)

    for after in (False, True):  # the fraction of the weight before the update, or after it
        at_zero, at_random = removed(torch.zeros_like(random), lr, lam, after), removed(random, lr, lam, after)
        if float(at_zero.abs().max()) == float(at_random.abs().max()) == 0.0:
            return {"pathway": "none", "fraction": 0.0, "lr": lr, "weight_decay": lam}
        every = torch.stack([at_zero, at_random])
        if float(every.max() - every.min()) < 2e-3 * float(every.abs().max()):  # float32 inside passes
            halved = removed(random, lr / 2, lam, after)
            return {
                "pathway": "decoupled",
                "fraction": float(at_random.mean()),
                "lr_exponent": round(math.log2(float(at_random.mean() / halved.mean())), 3),
                "lr": lr,
                "weight_decay": lam,
                "position": "after" if after else "before",
            }
    return {"pathway": "l2-preconditioned", "fraction": None, "lr": lr, "weight_decay": lam}
