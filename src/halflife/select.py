"""Which parameters decay: parameter groups by module type and shape, or by ordered name patterns.

Examples:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> for group in param_groups(model, policy="matrices", weight_decay=0.1):
    ...     print(group["weight_decay"], group["param_names"])
    0.1 ['0.weight']
    0.0 ['0.bias', '1.weight', '1.bias']
"""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import UninitializedParameter

from halflife.errors import UserError
from halflife.units import check_non_negative

__all__ = ["Decision", "Policy", "decide", "param_groups"]

Policy = str | Sequence[tuple[str, bool | float]]

POLICIES = ("matrices", "everything", "nanogpt")

MATRIX_MODULES = (nn.Linear, nn.Bilinear, _ConvNd, nn.RNNBase, nn.RNNCellBase, nn.MultiheadAttention)
NORM_MODULES = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
EMBEDDING_MODULES = (nn.Embedding, nn.EmbeddingBag)
# The last resort, for tensors that a user's own module holds directly: positions, class tokens and the like.
NAMES_WITHOUT_DECAY = ("bias", "norm", "embed", "token", "pos_", "position")


@dataclass(frozen=True)
class Decision:
    """What was decided for one parameter, and why.

    Attributes:
        name: The parameter's first name in the model.
        parameter: The parameter.
        lam: The weight decay that it gets; 0 for none.
        reason: Why, in a few words.
    """

    name: str
    parameter: nn.Parameter
    lam: float
    reason: str


@dataclass(frozen=True)
class _Use:
    """One place where a parameter stands: a tied weight has several."""

    name: str
    leaf: str
    owner: nn.Module


def param_groups(
    model: nn.Module, policy: Policy = "matrices", weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Build parameter groups that say what decays, ready for any torch optimizer.

    Policies: ``"matrices"``, the weights that multiply activations (linear, convolution, attention,
        recurrent; told
    by module type and shape first, by name last), not norms, biases and embeddings; ``"nanogpt"``, every
    parameter with two or more dimensions, embeddings included; ``"everything"``; or ordered pairs of a shell
    pattern over parameter names and True, False or a weight decay: the first match wins.

    A weight that is tied (an embedding that is also the output head) is listed once, under its first name,
    and decays if any of its uses does. Frozen parameters are left out.

    Args:
        model: The model, after the last change of its parameters.
        policy: A policy's name, or pairs such as ``[("head.*", False), ("*.weight", True), ("*", False)]``.
        weight_decay: The value for what decays, >= 0. Needed unless every pair brings its own number.

    Returns:
        One dict per weight decay with ``params``, ``param_names`` and ``weight_decay``; parameters without
        decay come last.

    Raises:
        UserError: If the policy is unknown, a pattern matches nothing or claims nothing that an earlier one
            left, a parameter is matched by no pattern, ``weight_decay`` is missing, negative or NaN, a
            parameter is not initialized, or nothing is trainable.
    """
    groups: dict[float, dict[str, Any]] = {}
    for decision in decide(model, policy, weight_decay):
        fresh: dict[str, Any] = {"params": [], "param_names": [], "weight_decay": decision.lam}
        group = groups.setdefault(decision.lam, fresh)
        group["params"].append(decision.parameter)
        group["param_names"].append(decision.name)
    return sorted(groups.values(), key=lambda group: bool(group["weight_decay"] == 0.0))


def decide(model: nn.Module, policy: Policy = "matrices", weight_decay: float | None = None) -> list[Decision]:
    """Decide for each trainable parameter whether it decays, with the reason.

    Same arguments as `param_groups`.

    Args:
        model: The model.
        policy: A policy's name, or pairs of pattern and answer.
        weight_decay: The value for what decays.

    Returns:
        One decision per parameter, in the order of ``model.named_parameters()``.

    Raises:
        UserError: See `param_groups`.
    """
    lam = None if weight_decay is None else check_non_negative("weight_decay", weight_decay)
    uses = _uses(model)
    trainable = {parameter: found for parameter, found in uses.items() if parameter.requires_grad}
    if not trainable:
        raise UserError("the model has no trainable parameter: nothing to put into groups")
    for parameter, found in trainable.items():
        if isinstance(parameter, UninitializedParameter):
            raise UserError(f"{found[0].name} has no shape yet; run one forward pass before building groups")
    if not isinstance(policy, str):
        return _by_patterns(uses, list(policy), lam)
    if policy not in POLICIES:
        raise UserError(
            f"unknown policy {policy!r}; expected one of {', '.join(POLICIES)}, or pairs of a name pattern "
            "and True, False or a number"
        )
    if lam is None:
        raise UserError(f"policy {policy!r} needs a value: pass weight_decay=...")
    decisions = []
    for parameter, found in trainable.items():
        decays, reason = _decide_named(policy, parameter, found)
        decisions.append(Decision(found[0].name, parameter, lam if decays else 0.0, reason))
    return decisions


def _uses(model: nn.Module) -> dict[nn.Parameter, list[_Use]]:
    """Return every place of every parameter, in the order in which the model names them."""
    uses: dict[nn.Parameter, list[_Use]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        for leaf, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            uses.setdefault(parameter, []).append(_Use(name, leaf, module))
    order = {name: rank for rank, (name, _) in enumerate(model.named_parameters())}
    return dict(sorted(uses.items(), key=lambda item: order[item[1][0].name]))


def _decide_named(policy: str, parameter: nn.Parameter, uses: list[_Use]) -> tuple[bool, str]:
    if policy == "everything":
        return True, "everything decays"
    if policy == "nanogpt":
        return parameter.ndim >= 2, f"{parameter.ndim} dimensions"
    answers = [_is_matrix(parameter, use) for use in uses]
    decaying = [reason for decays, reason in answers if decays]
    if not decaying:
        return False, answers[0][1]
    return True, decaying[0] if len(uses) == 1 else f"{decaying[0]} (tied: {', '.join(use.name for use in uses)})"


def _is_matrix(parameter: nn.Parameter, use: _Use) -> tuple[bool, str]:
    """Return whether a parameter multiplies activations at one place: by type, then shape, then name."""
    kind = type(use.owner).__name__
    if isinstance(use.owner, NORM_MODULES):
        return False, f"parameter of a norm ({kind})"
    if isinstance(use.owner, EMBEDDING_MODULES):
        return False, f"embedding ({kind})"
    if isinstance(use.owner, MATRIX_MODULES):
        if parameter.ndim >= 2 and "bias" not in use.leaf:
            return True, f"weight of {kind}"
        return False, f"bias of {kind}"
    # Dimensions of size 1 do not count: the gains of weight_norm are (out, 1), those of a layer scale (1, 1,
    # d).
    if sum(size > 1 for size in parameter.shape) < 2:
        return False, "vector or scalar"
    words = next((word for word in NAMES_WITHOUT_DECAY if word in use.leaf.lower()), None)
    if words is not None:
        return False, f"named like a parameter that is added, not multiplied ({words!r})"
    if "norm" in kind.lower() or "embed" in kind.lower():
        return False, f"parameter of {kind}, named like a norm or an embedding"
    return True, f"matrix in {kind}"


def _by_patterns(
    uses: dict[nn.Parameter, list[_Use]], pairs: list[tuple[str, bool | float]], lam: float | None
) -> list[Decision]:
    """Let the first pattern that matches one of its names decide for each parameter.

    Returns:
        One decision per trainable parameter.

    Raises:
        UserError: If a pattern claims nothing, or a trainable parameter is left over.
    """
    values = [_value(pattern, answer, lam) for pattern, answer in pairs]
    claimed = [0] * len(pairs)
    decisions, unmatched = [], []
    for parameter, found in uses.items():
        names = [use.name for use in found]
        matches = (i for i, (pattern, _) in enumerate(pairs) if any(fnmatch.fnmatchcase(n, pattern) for n in names))
        first = next(matches, None)
        if first is not None:
            claimed[first] += 1  # a frozen parameter keeps its pattern alive: freezing is no typing mistake
        if not parameter.requires_grad:
            continue
        if first is None:
            unmatched.append(names[0])
        else:
            decisions.append(Decision(names[0], parameter, values[first], f"pattern {pairs[first][0]!r}"))
    everything = [use.name for found in uses.values() for use in found]
    for (pattern, _), count in zip(pairs, claimed, strict=True):
        if count == 0:
            shadowed = bool(fnmatch.filter(everything, pattern))
            cause = "claims nothing that an earlier pattern left" if shadowed else "matches no parameter"
            raise UserError(f"pattern {pattern!r} {cause}; names look like {everything[0]!r}: correct or remove it")
    if unmatched:
        raise UserError(
            f"no pattern matches {', '.join(unmatched[:5])}{' ...' if len(unmatched) > 5 else ''}; "
            'end the pairs with ("*", False) or ("*", True)'
        )
    return decisions


def _value(pattern: str, answer: bool | float, lam: float | None) -> float:
    if answer is False:
        return 0.0
    if answer is not True:
        return check_non_negative(f"the weight decay of pattern {pattern!r}", answer)
    if lam is None:
        raise UserError(f"pattern {pattern!r} says True, which needs a value: pass weight_decay=...")
    return lam
