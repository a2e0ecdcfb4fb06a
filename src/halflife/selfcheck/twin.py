"""One case of the table: an optimizer under a rule, beside a bare twin of it that knows no decay.

At each step the twin is given the same gradients, and tells the update. What the reference of the rule says about
what happens around an update then tells where the weights must be::

    expected = after(before(weights) - update)

The twin stands at zero, where no rounding swallows a part of the update. The size of Adafactor's step depends on the
weight, so that its twin stands where the optimizer under the rule takes the step from.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.attaching import attach
from halflife.selfcheck.optimizers import Variant
from halflife.selfcheck.problem import FACTORS, PEAKS, Net
from halflife.selfcheck.references import Reference, Seen
from halflife.selfcheck.rules import ROUNDINGS, RuleCase

__all__ = ["DTYPES", "Outcome", "run_case", "tolerance", "train_with_twin"]

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class Outcome:
    """What one case gave.

    Args:
        rule: Name of the rule.
        optimizer: Name of the optimizer's variant.
        dtype: Name of the type.
        status: ``"ok"``, ``"refused"`` as documented, or ``"FAILED"``.
        error: Largest deviation from the reference in units of the tolerance; NaN where nothing was compared.
        detail: The sentence of a refusal, or what failed.
    """

    rule: str
    optimizer: str
    dtype: str
    status: str
    error: float = math.nan
    detail: str = ""


def tolerance(dtype: torch.dtype, roundings: int) -> float:
    """Return the largest deviation that rounding explains, relative to ``|w| + |update|``.

    Args:
        dtype: The type of the weights.
        roundings: How often a weight is rounded on its way.

    Returns:
        Half a unit in the last place for each; twice that in float64, where the reference rounds as often.
    """
    return roundings * torch.finfo(dtype).eps / (1 if dtype == torch.float64 else 2)


def run_case(
    rule: RuleCase,
    variant: Variant,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    *,
    watch_syncs: bool = True,
) -> Outcome:
    """Run one rule on one optimizer and compare every weight after every step.

    Args:
        rule: The rule.
        variant: The optimizer.
        dtype: The type of the weights.
        device: Where they are.
        watch_syncs: Whether a step that waits for a CUDA device is a failure, where the bare one does not wait.

    Returns:
        The outcome.
    """
    names = rule.name, variant.name, str(dtype).removeprefix("torch.")
    refusal = rule.refused(variant.case)
    try:
        error = _train(rule, variant, dtype, device, watch_syncs=watch_syncs)
    except UserError as raised:
        if refusal is not None and refusal in str(raised):
            return Outcome(*names, "refused", detail=str(raised))
        return Outcome(*names, "FAILED", detail=f"refused: {raised}")
    except Exception as raised:  # a case that breaks is a finding, the others still run
        return Outcome(*names, "FAILED", detail=f"{type(raised).__name__}: {raised}")
    if refusal is not None:
        return Outcome(*names, "FAILED", detail=f"not refused, expected: {refusal}")
    if error <= 1.0:
        return Outcome(*names, "ok", error)
    return Outcome(*names, "FAILED", error, f"deviates from the reference by {error:.3g} times the tolerance")


def _train(
    rule: RuleCase, variant: Variant, dtype: torch.dtype, device: torch.device | str, *, watch_syncs: bool
) -> float:
    case = variant.case
    own = (*rule.own, 0.0) if case.own else None
    net, other = (Net(variant.layout, dtype=dtype, device=device, own=own) for _ in range(2))
    made = variant.make(net.groups(case.per_group))
    bare = variant.make(other.groups(case.per_group))
    for group in bare.param_groups:
        if case.own:
            group["weight_decay"] = 0.0
    select: Any = None if case.own else "all"
    handle = attach(made, rule.make(net.named), select=select, **rule.numbers)  # type: ignore[arg-type]  # floats only
    try:
        return train_with_twin(
            (net, made),
            (other, bare),
            rule.reference(net, case),
            closure=case.closure,
            stands="zero" if not case.rereads else "weights" if rule.fractions and variant.native else "decayed",
            watch_syncs=watch_syncs,
            roundings=rule.roundings,
        )
    finally:
        handle.detach()


def train_with_twin(
    attached: tuple[Net, Optimizer],
    twin: tuple[Net, Optimizer],
    reference: Reference,
    *,
    closure: bool = False,
    stands: Literal["zero", "weights", "decayed"] = "zero",
    watch_syncs: bool = False,
    roundings: int = ROUNDINGS,
) -> float:
    """Train an optimizer under a rule beside its bare twin.

    Args:
        attached: The problem, and the optimizer that has the rule.
        twin: An equal problem, and an equal optimizer that does not decay.
        reference: The reference of the rule.
        closure: Whether steps need a closure.
        stands: Where the twin takes its step from: from ``"zero"``, from the ``"weights"`` of the other, or from its
            ``"decayed"`` weights.
        watch_syncs: Whether a step that waits for a CUDA device is an error, where the bare one does not wait.
        roundings: How often a weight is rounded on its way.

    Returns:
        The largest deviation of any weight after any step, in units of the tolerance.

    Raises:
        FloatingPointError: If the twin itself arrives at infinity or NaN.
    """
    (net, made), (other, bare) = attached, twin
    worst = 0.0
    zeros = [torch.zeros_like(weight) for weight in net.values()]
    watched, quiet = watch_syncs and net.device.type == "cuda", False
    for step, factor in enumerate(FACTORS):
        for optimizer in (made, bare):
            for group, peak in zip(optimizer.param_groups, PEAKS, strict=False):
                group["lr"] = peak * factor
        net.set_gradients(step)
        weights = net.values()
        seen = [
            Seen(
                weight.cpu(), _dense(p.grad), member.group, PEAKS[member.group] * factor, PEAKS[member.group], own, step
            )
            for member, p, weight in zip(net.members, net.parameters, weights, strict=True)
            for own in [net.own_of(member)]
        ]
        before = reference.before(seen)
        other.set_weights(before if stands == "decayed" else weights if stands == "weights" else zeros)
        stood = other.values()
        other.set_gradients(step)
        for parameter, each in zip(other.parameters, seen, strict=True):
            changed = reference.penalty(each)
            if changed is not None and changed is not each.gradient:
                parameter.grad = changed.to(net.device)
        with _no_waiting() if quiet else contextlib.nullcontext():
            _step(made, closure=closure)
        if watched:  # where the next step finds the same gradients: new ones may need new state on the device
            same = step + 1 < len(FACTORS) and _presence(net, step) == _presence(net, step + 1)
            quiet = _quiet(bare, closure=closure) and same
        else:
            _step(bare, closure=closure)
        moves = [p.detach().cpu().double() - q.cpu().double() for p, q in zip(other.parameters, stood, strict=True)]
        stepped = [weight + move for weight, move in zip(before, moves, strict=True)]
        expected = reference.after(seen, stepped)
        allowed = reference.also(seen, stepped, expected, torch.finfo(net.dtype).eps)
        for each, parameter, move, goal, other_goal in zip(seen, net.parameters, moves, expected, allowed, strict=True):
            new = parameter.detach().cpu().double()
            if not bool(goal.isfinite().all()):
                raise FloatingPointError("the bare optimizer made a weight that is not finite")
            scale = torch.maximum(each.weight.double().abs() + move.abs(), goal.abs()) + torch.finfo(net.dtype).tiny
            deviation = torch.minimum((new - goal).abs(), (new - other_goal).abs()) / scale
            worst = max(worst, _largest(deviation) / tolerance(net.dtype, roundings))
    return worst


def _presence(net: Net, step: int) -> list[bool]:
    return [gradient is not None for gradient in net.all_gradients[step]]


def _largest(values: Tensor) -> float:
    """Return the maximum; infinity where a NaN would hide in it."""
    return math.inf if bool(values.isnan().any()) else float(values.max())


def _dense(gradient: Tensor | None) -> Tensor | None:
    return None if gradient is None else gradient.to_dense().cpu().clone()


def _step(optimizer: Optimizer, *, closure: bool) -> None:
    step: Callable[..., Any] = optimizer.step
    if closure:
        step(lambda: 1.0)  # the gradients are prescribed
    else:
        step()


def _quiet(bare: Optimizer, *, closure: bool) -> bool:
    """Take the bare step on a CUDA device; tell whether it did so without waiting for the device."""
    state = torch.cuda.get_sync_debug_mode()
    try:
        torch.cuda.set_sync_debug_mode("warn")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            _step(bare, closure=closure)
        return not any("called a synchronizing" in str(each.message) for each in caught)
    finally:
        torch.cuda.set_sync_debug_mode(state)


@contextlib.contextmanager
def _no_waiting() -> Iterator[None]:
    """Make every wait for a CUDA device an error, and put the user's setting back."""
    state = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(state)
