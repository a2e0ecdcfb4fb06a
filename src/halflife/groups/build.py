"""Which parameters decay: parameter groups by a named policy, or by ordered pairs over type, shape and name.

Examples:
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    >>> for group in param_groups(model, policy="matrices", weight_decay=0.1):
    ...     print(group["weight_decay"], group["param_names"])
    0.1 ['0.weight']
    0.0 ['0.bias', '1.weight', '1.bias']
    >>> for group in param_groups(model, policy=[(torch.nn.LayerNorm, False), ("*", 0.1)]):
    ...     print(group["weight_decay"], group["param_names"])
    0.1 ['0.weight', '0.bias']
    0.0 ['1.weight', '1.bias']
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from types import EllipsisType
from typing import Any, SupportsFloat

from torch import nn
from torch.nn.parameter import UninitializedParameter

from halflife.errors import UserError
from halflife.groups.names import Names, matcher
from halflife.groups.policies import POLICIES, Use, own_settings, uses_of
from halflife.numbers import check_non_negative
from halflife.rules import Decoupled, Part, PerGroup
from halflife.rules.base import check_inside

__all__ = ["Decision", "Groups", "Policy", "decide", "param_groups"]

Pattern = str | type[nn.Module] | tuple[type[nn.Module], ...] | tuple[int | EllipsisType | None, ...]
Answer = bool | float | str | Part
Policy = str | Sequence[tuple[Pattern, Answer]]


@dataclass(frozen=True)
class Decision:
    """What was decided for one parameter, and why.

    Attributes:
        name: The parameter's first name in the model.
        parameter: The parameter.
        lam: The weight decay that it gets; 0 for none, NaN where its rule reads none and none is given.
        reason: Why, in a few words.
        rule: The rule that its pattern brought, if any.
        settings: What its group says beside the weight decay: the ``lr`` that the parameter brings itself.
    """

    name: str
    parameter: nn.Parameter
    lam: float
    reason: str
    rule: Part | None = None
    settings: dict[str, Any] = field(default_factory=dict)


class Groups(list[dict[str, Any]]):
    """Parameter groups for any torch optimizer: a plain list of dicts, and the rules that the policy brought.

    The rules are not in the dicts, because an optimizer writes those into its checkpoints.

    Attributes:
        rule: What to give to ``halflife.attach`` with the optimizer made of these groups: each group's rule, and
            `Decoupled` at the group's own value for groups without one (those without decay have a place in the list,
            too, but it is not evaluated). None if the policy brought no rule.
    """

    rule: PerGroup | None = None


def param_groups(model: nn.Module, policy: Policy = "matrices", weight_decay: float | None = None) -> Groups:
    """Build parameter groups that say what decays, ready for any torch optimizer.

    Named policies:

    - ``"matrices"``: the weights that multiply activations (linear, convolution, attention, recurrent, experts,
      routers), told by module type first, by shape next, by name last; not norms, biases, embeddings, scales and
      time constants, and not what the model itself excludes: by ``no_weight_decay()`` (timm),
      ``no_weight_decay_keywords()`` (Swin), ``_no_weight_decay`` or ``_optim`` on a parameter (Mamba, S4). Where
      ``_optim`` has a weight decay above 0, that is the value, and where it has an ``lr``, the parameter's group has it.
    - ``"nanogpt"``: every parameter with two or more dimensions, embeddings included.
    - ``"transformers"``: what the Trainer of transformers 5.23 decays: all but LayerNorms and names that look like
      a bias or a norm.
    - ``"everything"``: every parameter.

    Or ordered pairs ``(pattern, answer)``, of which the first that matches decides. A pattern is

    - a string: a shell pattern over parameter names, such as ``"head.*"``; what wrappers put into names
      (``torch.compile``, DistributedDataParallel, activation checkpointing) does not matter;
    - a module class, or a tuple of classes: everything inside modules of that type;
    - a tuple of sizes: a shape, where None is any size and ``...`` any number of dimensions: ``(None,)`` for
      vectors, ``(50257, None)``, ``(None, None, ...)`` for two or more dimensions.

    An answer is True (``weight_decay``), False (no decay), a number, the name of a policy that then decides, or a
    rule, applier or penalty of `halflife.rules`, as `PerGroup` takes them. So
    ``[(nn.Embedding, True), ("*", "matrices")]`` lets embeddings decay as well. With rules, attach what the groups ask
    for: ``halflife.attach(optimizer, groups.rule)``. Until then a group has the rule's ``lam`` as its
    ``weight_decay``, or the argument ``weight_decay`` where the rule has none. A rule that reads no lam, such as
    ``HalfLife(steps=1000)``, needs neither: the ``weight_decay`` of its group is then 0, and
    ``initial_weight_decay``, NaN, tells ``attach`` that the group decays.

    A weight that is tied (an embedding that is also the output head) is listed once, under its first name. Under
    ``"matrices"`` it decays if any of its uses does; a pattern may match any of its uses. Frozen parameters are
    left out.

    Args:
        model: The model, after the last change of its parameters. Its values are not looked at.
        policy: A policy's name, or pairs such as ``[("head.*", False), (nn.Linear, True), ("*", False)]``.
        weight_decay: The value for what decays, >= 0. Needed unless every pair brings its own, or a rule that reads
            none.

    Returns:
        One dict per weight decay, rule and settings that parameters bring themselves, with ``params``,
        ``param_names`` and ``weight_decay``; parameters without decay come last.

    Raises:
        UserError: If the policy is unknown, a pattern matches nothing or claims nothing that an earlier one
            left, a parameter is matched by no pattern, ``weight_decay`` is missing, negative or NaN, a
            parameter is not initialized, or nothing is trainable.

    Examples:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
        >>> for group in param_groups(model, weight_decay=0.1):
        ...     print(group["weight_decay"], group["param_names"])
        0.1 ['0.weight']
        0.0 ['0.bias', '1.weight', '1.bias']
    """
    groups: dict[tuple[float, int, str], dict[str, Any]] = {}
    rules: dict[tuple[float, int, str], Part | None] = {}
    for decision in decide(model, policy, weight_decay):
        key = (decision.lam, id(decision.rule), repr(sorted(decision.settings.items())))
        fresh: dict[str, Any] = {"params": [], "param_names": [], "weight_decay": decision.lam, **decision.settings}
        if math.isnan(decision.lam):
            fresh |= {"weight_decay": 0.0, "initial_weight_decay": math.nan}
        group = groups.setdefault(key, fresh)
        rules[key] = decision.rule
        group["params"].append(decision.parameter)
        group["param_names"].append(decision.name)
    order = sorted(groups, key=lambda key: key[0] == 0.0)
    built = Groups(groups[key] for key in order)
    if any(rules.values()):
        built.rule = PerGroup([rules[key] or Decoupled() for key in order])
    return built


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
    uses = uses_of(model)
    trainable = {parameter: found for parameter, found in uses.items() if parameter.requires_grad}
    if not trainable:
        raise UserError("the model has no trainable parameter: nothing to put into groups")
    for parameter, found in trainable.items():
        if isinstance(parameter, UninitializedParameter):
            raise UserError(f"{found[0].name} has no shape yet; run one forward pass before building groups")
    if not isinstance(policy, str):
        return _by_patterns(uses, _pairs(policy, lam, [(use.name, use.bare) for each in uses.values() for use in each]))
    _check_policy(policy)
    if lam is None:
        raise UserError(f"policy {policy!r} needs a value: pass weight_decay=...")
    return [_by_policy(policy, parameter, found, lam) for parameter, found in trainable.items()]


def _pairs(policy: object, lam: float | None, names: Sequence[Names]) -> list[_Pair]:
    pairs = []
    for pair in policy if isinstance(policy, Sequence) else [policy]:
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"a policy is a name or a list of pairs (pattern, answer), got {pair!r} in it; correct it")
        pairs.append(_Pair(pair[0], pair[1], lam, names))
    return pairs


def _check_policy(name: str) -> None:
    if name not in POLICIES:
        raise UserError(
            f"unknown policy {name!r}; expected one of {', '.join(POLICIES)}, or pairs of a pattern (a name, a "
            "module class or a shape) and True, False, a number, a rule or the name of a policy"
        )


def _by_policy(policy: str, parameter: nn.Parameter, uses: Sequence[Use], lam: float) -> Decision:
    decays, reason = POLICIES[policy](parameter, uses)
    if policy != "matrices":
        return Decision(uses[0].name, parameter, lam if decays else 0.0, reason)
    own = own_settings(parameter, uses[0].name)
    said = own.pop("weight_decay", 0.0)
    if said and not any(use.declared for use in uses):
        decays, lam, reason = True, said, f"_optim on it says weight_decay {said:g}"
    return Decision(uses[0].name, parameter, lam if decays else 0.0, reason, settings=own)


class _Pair:
    """One pattern with its answer, checked.

    Args:
        pattern: What it matches.
        answer: What then holds.
        lam: The value for True, None if the user gave none.
        names: All names in the model, with and without wrappers.

    Raises:
        UserError: If either is of no kind that is known, or a value is missing.
    """

    def __init__(self, pattern: Pattern, answer: Answer, lam: float | None, names: Iterable[Names]) -> None:
        self.pattern, self.answer = pattern, answer
        self.name_matches: Callable[[Names], bool] | None = None
        if isinstance(pattern, str):
            self.name_matches = matcher(pattern, names)
        self.rule = answer if isinstance(answer, Part) else None
        self.text = repr(pattern) if isinstance(pattern, str) else _text(pattern)
        if not isinstance(pattern, str) and not _is_types(pattern) and not _is_shape(pattern):
            raise UserError(
                f"a pattern is a name such as 'head.*', a module class, a tuple of classes, or a shape such as "
                f"(None, 3), got {pattern!r}; correct it"
            )
        self.lam = self._value(lam)

    def _value(self, lam: float | None) -> float:
        answer = self.answer
        if answer is False:
            return 0.0
        if isinstance(answer, str):
            _check_policy(answer)
        if isinstance(answer, Part):
            check_inside("PerGroup", answer)
            if answer.explicit_lam is not None:
                return answer.explicit_lam
            if lam is None and "lam" not in answer.needs:
                return math.nan
        if answer is True or isinstance(answer, str | Part):
            if lam is None:
                raise UserError(f"pattern {self.text} says {answer!r}, which needs a value: pass weight_decay=...")
            return lam
        if not isinstance(answer, SupportsFloat):
            raise UserError(
                f"pattern {self.text} says {answer!r}; expected True, False, a number, a rule such as "
                "halflife.HalfLife(steps=1000), or the name of a policy"
            )
        return check_non_negative(f"the weight decay of pattern {self.text}", answer)

    def matches(self, parameter: nn.Parameter, use: Use) -> bool:
        """Return whether the pattern matches one use of a parameter."""
        if self.name_matches is not None:
            return self.name_matches((use.name, use.bare))
        if _is_types(self.pattern):
            return any(isinstance(module, self.pattern) for module in use.path)  # type: ignore[arg-type]  # as checked
        return _shape_matches(tuple(parameter.shape), self.pattern)  # type: ignore[arg-type]  # as checked

    def decision(self, parameter: nn.Parameter, uses: Sequence[Use]) -> Decision:
        """Return what the answer says about a parameter that is matched."""
        if isinstance(self.answer, str):
            decided = _by_policy(self.answer, parameter, uses, self.lam)
            reason = f"pattern {self.text}: {self.answer}: {decided.reason}"
            return replace(decided, reason=reason)
        return Decision(uses[0].name, parameter, self.lam, f"pattern {self.text}", self.rule)


def _is_types(pattern: object) -> bool:
    types = pattern if isinstance(pattern, tuple) and pattern else (pattern,)
    return all(isinstance(each, type) and issubclass(each, nn.Module) for each in types)


def _is_shape(pattern: object) -> bool:
    sizes = isinstance(pattern, tuple) and all(each is None or each is ... or type(each) is int for each in pattern)
    return sizes and pattern.count(...) <= 1  # type: ignore[attr-defined]  # it is a tuple


def _text(pattern: object) -> str:
    if isinstance(pattern, tuple):
        return f"({', '.join(map(_text, pattern))}{',' if len(pattern) == 1 else ''})"
    return pattern.__name__ if isinstance(pattern, type) else "..." if pattern is ... else repr(pattern)


def _shape_matches(shape: tuple[int, ...], pattern: tuple[int | EllipsisType | None, ...]) -> bool:
    if ... in pattern:
        at, missing = pattern.index(...), len(shape) - len(pattern) + 1
        if missing < 0:
            return False
        pattern = (*pattern[:at], *[None] * missing, *pattern[at + 1 :])
    return len(shape) == len(pattern) and all(
        want is None or want == size for want, size in zip(pattern, shape, strict=True)
    )


def _by_patterns(uses: dict[nn.Parameter, list[Use]], pairs: list[_Pair]) -> list[Decision]:
    """Let the first pattern that matches one of its uses decide for each parameter.

    Returns:
        One decision per trainable parameter.

    Raises:
        UserError: If a pattern claims nothing, or a trainable parameter is left over.
    """
    claimed, matched = [0] * len(pairs), [0] * len(pairs)
    decisions, unmatched = [], []
    for parameter, found in uses.items():
        matches = [i for i, pair in enumerate(pairs) if any(pair.matches(parameter, use) for use in found)]
        for index in matches:
            matched[index] += 1
        if matches:
            claimed[matches[0]] += 1  # a frozen parameter keeps its pattern alive: freezing is no typing mistake
        if not parameter.requires_grad:
            continue
        if matches:
            decisions.append(pairs[matches[0]].decision(parameter, found))
        else:
            unmatched.append(found[0].name)
    first = next(iter(uses.values()))[0].name
    for pair, count, hits in zip(pairs, claimed, matched, strict=True):
        if count == 0:
            cause = "claims nothing that an earlier pattern left" if hits else "matches no parameter"
            raise UserError(f"pattern {pair.text} {cause}; names look like {first!r}: correct or remove it")
    if unmatched:
        raise UserError(
            f"no pattern matches {', '.join(unmatched[:5])}{' ...' if len(unmatched) > 5 else ''}; "
            'end the pairs with ("*", False), ("*", True) or ("*", "matrices")'
        )
    return decisions
