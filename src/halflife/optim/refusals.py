"""The checks of ``attach``: each stops a mistake that would otherwise train silently with the wrong decay.

Only messages and conditions live here; nothing is changed. Every message says what was got, what was
expected, and what to do.
"""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch.optim import Optimizer

from halflife.conversion import convert
from halflife.errors import UserError
from halflife.numbers import as_number, check_non_negative, check_steps
from halflife.optim.frames import level_of_the_user
from halflife.optim.known import facts_of, family_of
from halflife.optim.second_moment import measures_gradients
from halflife.optim.wrappers import inner_optimizers, unwrapped, wrapped_path
from halflife.rules.appliers import Toward
from halflife.rules.base import LamRule, Part, Penalty, Rule, StepInfo
from halflife.rules.basic import Normalized
from halflife.rules.penalty import L2
from halflife.rules.stable import Stable
from halflife.units import half_life

__all__ = [
    "check_fraction",
    "check_known",
    "check_law",
    "check_lr",
    "check_memory",
    "check_not_capturing",
    "check_optimizers",
    "check_own_values",
    "check_peak",
    "check_put_back",
    "check_rule",
    "check_some_decay",
    "check_undivided",
    "check_undone",
    "check_unit",
    "check_weight_decay",
    "warn_of_decay",
]

# Recursive learning-rate schedulers of torch come back to the peak with a rounding error; this much is no
# mistake.
PEAK_TOLERANCE = 1e-6

# What torch's Optimizer.__init__ makes and attach registers in.
HOOKS = (
    "_optimizer_step_pre_hooks",
    "_optimizer_step_post_hooks",
    "_optimizer_state_dict_post_hooks",
    "_optimizer_load_state_dict_pre_hooks",
    "_optimizer_load_state_dict_post_hooks",
)


def check_optimizers(optimizers: Sequence[object], attached: Iterable[object]) -> None:
    """Refuse anything but optimizers, one that is given twice, and one that has a rule already.

    Args:
        optimizers: What the user gave.
        attached: Those among them that carry a rule.

    Raises:
        UserError: In each of these cases, if the sequence is empty, if an optimizer steps another one inside it, and if it
            does not call torch's step hooks.
    """
    if not optimizers:
        raise UserError("attach got an empty sequence of optimizers; give at least one")
    for optimizer in optimizers:
        _check_steps_itself(optimizer)
    if len({id(unwrapped(optimizer)) for optimizer in optimizers}) < len(optimizers):
        raise UserError("attach got the same optimizer twice in one sequence; give each once")
    for optimizer in attached:
        raise UserError(
            f"a rule is already attached to this {_name(optimizer)}: two would decay its groups twice; "
            "call detach() on the first handle before attaching another"
        )


def _check_steps_itself(given: object) -> None:
    """Refuse what is no optimizer, what only steps another one, and what does not call torch's step hooks."""
    optimizer = unwrapped(given)
    inner = inner_optimizers(optimizer)
    paths = [f"optimizer{wrapped_path(given)}{each.path}" for each in inner if each.path]
    to = f"[{', '.join(paths)}]" if len(paths) > 1 else "".join(paths)
    if not isinstance(optimizer, Optimizer):
        hint = f"; pass the optimizer inside it: halflife.attach({to}, ...)" if paths else ""
        raise UserError(f"attach expected a torch.optim.Optimizer or a sequence of them, got {_name(optimizer)}{hint}")
    if inner:
        named = " and ".join(_name(each.optimizer) for each in inner)
        it = "it" if len(inner) == 1 else "them"
        what = f"halflife.attach({to}, ...)" if len(paths) == len(inner) else f"{_name(optimizer)} was made from {it}"
        raise UserError(
            f"attach got {_name(optimizer)}, which moves the weights by the step of another optimizer inside it, {named}: a"
            f" rule on the outer one would act at other times, or be undone; attach to {it}: {what}"
        )
    step = vars(optimizer).get("step") or type(optimizer).step
    if any(name not in vars(optimizer) for name in HOOKS) or ("step" not in vars(optimizer) and not _is_hooked(step)):
        raise UserError(
            f"attach needs the step hooks of torch, which this {_name(optimizer)} does not have or does not call: its"
            " constructor did not call super().__init__(params, defaults), or its step was replaced afterwards; mend"
            " that, or pass the weight decay to the optimizer itself"
        )


def _is_hooked(step: object) -> bool:
    return bool(getattr(step, "hooked", False))


def check_rule(rule: object, optimizers: Sequence[Optimizer]) -> None:
    """Refuse anything but a rule, and a rule that one of the optimizers cannot follow.

    Args:
        rule: What the user gave.
        optimizers: The optimizers that it is for.

    Raises:
        UserError: In each of these cases.
    """
    if not isinstance(rule, Part):
        made = (
            f"{rule.__name__}(...)" if isinstance(rule, type) and issubclass(rule, Part) else "halflife.Decoupled(0.1)"
        )
        raise UserError(f"attach expected a rule such as {made}, got {rule!r}")
    num_groups = [len(optimizer.param_groups) for optimizer in optimizers]
    rule.check_groups(sum(num_groups))
    if "net_norm" in rule.needs and len(optimizers) > 1:
        raise UserError(
            f"{rule!r} projects one net, but {len(optimizers)} optimizers step at different times; attach it to each"
            ' with its own radius, or use per="tensor"'
        )
    for index, optimizer in enumerate(optimizers):
        first = sum(num_groups[:index])
        parts = [part for group in range(num_groups[index]) for part in rule.for_group(first + group).parts()]
        for part in parts:
            if (
                isinstance(part, Toward)
                and len(optimizers) > 1
                and isinstance(getattr(part.reference, "values", None), list)
            ):
                raise UserError(
                    f"Toward got references in order for {len(optimizers)} optimizers, each of which would begin with the"
                    " first; give them by name, or attach to each optimizer with its own list"
                )
        stables = [part for part in parts if isinstance(part, Stable)]
        if len({part.beta2 for part in stables}) > 1:
            raise UserError(f"{rule!r} asks for several values of beta2; one optimizer has one running mean")
        if any(measures_gradients(part, optimizer) for part in stables) or rule.needs & {"weight_norm", "net_norm"}:
            _check_whole(rule, optimizer)
        for part in parts:
            if isinstance(part, Penalty):
                _check_penalty(part, optimizer)
            if isinstance(part, Stable):
                _check_stable(part, optimizer)


def _check_whole(rule: Part, optimizer: Optimizer) -> None:
    """Refuse norms of what FullyShardedDataParallel (FSDP1) has cut without leaving a trace of the cut."""
    if any(getattr(p, "_fsdp_flattened", False) for group in optimizer.param_groups for p in group["params"]):
        raise UserError(
            f"{rule!r} needs norms of whole tensors, but FullyShardedDataParallel shows each process its own part only;"
            " shard with torch.distributed.fsdp.fully_shard, which halflife can follow"
        )


def _check_penalty(rule: Penalty, optimizer: Optimizer) -> None:
    if family_of(type(optimizer)).searches:
        raise UserError(
            f"an L2 penalty cannot be attached to {_name(optimizer)}: its line search compares losses, which would lack "
            "the penalty; add lam / 2 * sum(w^2) to the loss in your closure instead"
        )
    if isinstance(rule, L2) and rule.into != "both":
        if not facts_of(type(optimizer)).moments:
            raise UserError(
                f"{rule!r} enters one of Adam's two moments, got {_name(optimizer)}; expected torch's Adam or AdamW"
            )
        if any(float(group["betas"][0]) == 0.0 for group in optimizer.param_groups):
            raise UserError(f"{rule!r} needs a first moment that remembers, got beta1 = 0; expected beta1 > 0")


def _check_stable(rule: Stable, optimizer: Optimizer) -> None:
    facts = family_of(type(optimizer))
    if facts.not_stable:
        raise UserError(f"Stable cannot be attached to {_name(optimizer)}: {facts.not_stable}; use Decoupled")
    if any(group.get("amsgrad") for group in optimizer.param_groups):
        raise UserError(
            "Stable cannot be attached with amsgrad=True: the maximum of the second moment does not follow from"
            " gradient norms; use amsgrad=False"
        )
    if rule.beta2 is None and not (facts.momentum or facts.adaptive):
        raise UserError(
            f"Stable knows SGD and the Adam family of torch (Adam, AdamW, NAdam, RAdam), got {_name(optimizer)}; if its"
            " steps are divided by the root of a running mean of squared gradients, name that mean's decay:"
            " Stable(..., beta2=0.999)"
        )


def check_known(rule: Part, known: Mapping[str, float | None]) -> None:
    """Refuse a rule that needs a number nobody gave.

    Args:
        rule: The rule.
        known: The arguments of ``attach`` by the name of what they tell.

    Raises:
        UserError: If ``steps_per_epoch`` or ``tokens_per_step`` is missing.
    """
    for name, value in known.items():
        if name in rule.needs and value is None:
            raise UserError(f"{rule!r} needs {name}: pass attach(..., {name}=...)")


def check_own_values(rule: Part, groups: Sequence[tuple[Part, Mapping[str, Any]]], own: Sequence[float]) -> None:
    """Refuse a rule that takes the groups' own values where they have none.

    Args:
        rule: The whole rule.
        groups: The groups that decay, each with its part of the rule.
        own: Those of the groups' own values that are not 0.

    Raises:
        UserError: If a group without ``weight_decay`` should give one, or all are 0.
    """
    takers = [group for part, group in groups if "lam" in part.needs]
    if any("weight_decay" not in group for group in takers):
        raise UserError(
            f"{rule!r} takes each group's own weight_decay, but this optimizer has none; give the rule a lam"
        )
    if any(math.isnan(group.get("initial_weight_decay", 0.0)) for group in takers):
        raise UserError(
            f"{rule!r} takes each group's own weight_decay, but param_groups made one for a rule that reads none; give the"
            " rule a lam, or attach the rule of the groups"
        )
    if len(takers) == len(groups) and not own:
        raise UserError(f"{rule!r} takes each group's own weight_decay, which is 0 in all of them; give the rule a lam")


def check_unit(part: Part, optimizer: Optimizer, group: Mapping[str, Any], own: float, peak_lr: float) -> None:
    """Refuse a rule that would take a group's own ``weight_decay`` as a coefficient of another unit; warn where none says.

    Args:
        part: The part that acts on the group.
        optimizer: The optimizer.
        group: The group.
        own: Its own ``weight_decay``.
        peak_lr: Its peak learning rate, as far as it is known; 0 if it is not.

    Raises:
        UserError: With the value of the same decay in the rule's unit, where that is known.
    """
    unit = _unit_of(optimizer, group)
    for each in part.parts():
        kind = type(each).__name__
        if isinstance(each, LamRule) and each.lam is None and (not each.inherits or unit in OTHER_UNITS):
            what = OTHER_UNITS.get(unit, "")
            raise UserError(
                f"{kind} needs a lam: the weight_decay = {own:.6g} of {_name(optimizer)} has another unit{what};"
                f" {_in_unit_of(each, optimizer, group, own, peak_lr)}"
            )
        if isinstance(each, L2) and each.lam is None and unit in OTHER_UNITS:
            raise UserError(
                f"L2 needs a lam: the weight_decay = {own:.6g} of {_name(optimizer)} has another"
                f" unit{OTHER_UNITS[unit]}, and no lam of L2 removes the same; give L2 a lam, or attach a rule"
            )
        if not _says_its_unit(each):
            _warn_of_the_unit(each, optimizer, own, peak_lr)


# Units of weight_decay other than 1 / lr, by the setting that chooses them.
OTHER_UNITS = {
    "decouple_lr": " (with decouple_lr it is the fraction at the peak lr)",
    "fixed_decay": " (with fixed_decay it is the fraction itself)",
}


def _unit_of(optimizer: Optimizer, group: Mapping[str, Any]) -> str:
    """Return the setting that chooses another unit for ``weight_decay``; empty if there is none."""
    return next((name for name in OTHER_UNITS if group.get(name, vars(optimizer).get(name)) is True), "")


def _says_its_unit(part: Part) -> bool:
    """Return whether a part takes no ``weight_decay`` itself, or says in ``inherits`` that its unit is the same."""
    kind = type(part)
    mine = kind.__module__.partition(".")[0] == "halflife" or "inherits" in vars(kind)
    return mine or "lam" not in part.needs or bool(part.inside())


def _warn_of_the_unit(part: Part, optimizer: Optimizer, own: float, peak_lr: float) -> None:
    """Tell what a rule of the user's own makes of a ``weight_decay``."""
    try:
        info = StepInfo(lr=peak_lr, lam=own, peak_lr=peak_lr)
        r = float(part.fraction(info)) if isinstance(part, Rule) and peak_lr > 0.0 else math.nan
        told = f": r = {r:.3g} per step at lr = {peak_lr:.6g}, a half-life of {half_life(r):,.0f} steps"
    except Exception:  # it needs more than is known before the first step, or asks for r outside [0, 1)
        told = ""
    name = type(part).__name__
    warnings.warn(
        f"{name} takes the weight_decay = {own:.6g} of {_name(optimizer)} as its lam, although {name} does not say that its"
        f" unit is the same{told if 'nan' not in told else ''}; give {name} a lam of its own, or write inherits = True in the"
        " class",
        stacklevel=level_of_the_user(),
    )


def _in_unit_of(rule: LamRule, optimizer: Optimizer, group: Mapping[str, Any], own: float, peak_lr: float) -> str:
    """Say what a group's own decay is under a rule, as far as it can be said."""
    kind, name, facts, unit = (
        type(rule).__name__,
        _name(optimizer),
        facts_of(type(optimizer)),
        _unit_of(optimizer, group),
    )
    if unit in OTHER_UNITS:
        of = "independent" if unit == "decouple_lr" else "constant"
        return _converted(rule, name, own, peak_lr, from_=of)
    if not facts.native(group) and not facts.momentum:
        return (
            f"the decay of {name} is not known to be lr * weight_decay, so no lam of {kind} can be named for it; give the"
            " rule a lam, or the time scale itself: HalfLife(steps=...)"
        )
    if facts.native(group):
        return _converted(rule, name, own, peak_lr, from_="decoupled")
    momentum = float(group["momentum"]), float(group["dampening"])
    return _converted(rule, name, own, peak_lr, from_="l2", momentum=momentum)


def _converted(
    rule: LamRule,
    name: str,
    own: float,
    peak_lr: float,
    *,
    from_: str,
    momentum: tuple[float | None, float | None] = (None, None),
) -> str:
    """Say which lam removes the same at the peak."""
    kind = type(rule).__name__
    try:
        steps = rule.steps if isinstance(rule, Normalized) else None
        lam = convert(
            own,
            from_=from_,
            to=kind.lower(),
            peak_lr=peak_lr,
            momentum=momentum[0],
            dampening=momentum[1],
            total_steps=steps,
        )
        return f"{own:.6g} of {name} at peak lr {peak_lr:.6g} is {dataclasses.replace(rule, lam=float(f'{lam:.6g}'))!r}"
    except UserError:  # no peak yet, a law of the user's own, or a decay that is too strong for the unit
        return f"give the rule a lam, which halflife.convert computes from the {own:.6g} of {name}"


def check_weight_decay(value: object, group: int) -> float:
    """Return a group's ``weight_decay`` as a float; refuse anything but a finite number >= 0.

    Args:
        value: What the group has.
        group: Number of the group.

    Returns:
        The number.

    Raises:
        UserError: If it is None, text, negative, infinite or NaN.
    """
    try:
        return check_non_negative("weight_decay", value)  # type: ignore[arg-type]  # it checks the type too
    except UserError:
        raise UserError(
            f"the weight_decay of parameter group {group} is {value!r}; expected a finite number >= 0, 0.0 for no decay"
        ) from None


def check_some_decay(groups: Sequence[Mapping[str, Any]], decaying: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to attach where nothing would decay.

    Args:
        groups: All groups.
        decaying: Those that decay.

    Raises:
        UserError: If no group decays.
    """
    if decaying:
        return
    cause = (
        "weight_decay is 0 in every parameter group"
        if any("weight_decay" in group for group in groups)
        else "this optimizer has no weight_decay setting that could say which groups decay"
    )
    raise UserError(
        f"nothing would decay: {cause}. Build groups that say what decays, for example "
        'halflife.param_groups(model, policy="matrices", weight_decay=0.1), and give them to the optimizer; '
        'or pass attach(..., select="all") to let every group decay'
    )


def check_undivided(rule: Part, own: Sequence[float]) -> None:
    """Refuse one explicit lam over groups that the user gave different values.

    Args:
        rule: The rule.
        own: The groups' own values, of the groups that decay.

    Raises:
        UserError: If the rule imposes one lam and the values differ.
    """
    if rule.explicit_lam is not None and len(set(own)) > 1:
        raise UserError(
            f"{rule!r} would replace the different weight_decay values {_list(own)} of the groups by one; "
            "give the groups equal values, or leave out lam (lam=None) so that each group keeps its own, or "
            "give each group its rule with PerGroup"
        )


def check_lr(lr: Any, group: int) -> float:
    """Return a group's learning rate as a float; refuse one that is missing, negative, infinite or NaN.

    Args:
        lr: What the group has as ``lr``: a number or a tensor with one element.
        group: Number of the group.

    Returns:
        The learning rate.

    Raises:
        UserError: If it is one of these.
    """
    try:
        number = math.nan if lr is None else float(lr)
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not 0.0 <= number < math.inf:
        raise UserError(f"the lr of parameter group {group} is {lr!r}; expected a finite number >= 0")
    return number


def check_peak(lr: float, peak_lr: float, group: int) -> None:
    """Refuse a learning rate above the peak that the rule divides by.

    Args:
        lr: The learning rate.
        peak_lr: The peak.
        group: Number of the group.

    Raises:
        UserError: If ``lr`` is above ``peak_lr`` by more than rounding.
    """
    if lr > peak_lr * (1.0 + PEAK_TOLERANCE):
        raise UserError(
            f"lr = {lr!r} of parameter group {group} is above its peak_lr = {peak_lr!r}, which the rule "
            "divides by; pass attach(..., peak_lr=<the largest lr of the schedule>), or set max_lr in "
            "the group before the first step"
        )


def check_fraction(rule: Part, value: float, *, lr: float, lam: float, group: int) -> None:
    """Refuse a fraction outside ``0 <= r < 1``, or a penalty's coefficient that is not finite and >= 0.

    Args:
        rule: The rule.
        value: What it answered.
        lr: The learning rate.
        lam: The coefficient that held, NaN if the rule has none.
        group: Number of the group.

    Raises:
        UserError: If the value is out of range; the weights were not touched.
    """
    if math.isnan(value) and "second_moment" in rule.needs:
        raise UserError(
            f"{rule!r} of parameter group {group} got gradients that are infinite or NaN; expected finite ones: skip the step"
        )
    coefficient = "" if math.isnan(lam) else f", lam = {lam!r}"
    own = next((each for each in rule.parts() if type(each).__module__.partition(".")[0] != "halflife"), None)
    told = ""
    if math.isnan(value) and own is not None:
        names = ", ".join(sorted(own.needs)) or "none"
        told = f": a rule is told only the fields of StepInfo that its needs name, here {names}"
    if isinstance(rule, Penalty):
        if not 0.0 <= value < math.inf:
            raise UserError(
                f"{rule!r} asks for the gradient coefficient {value!r} in parameter group {group} "
                f"(lr = {lr!r}{coefficient}); expected a finite number >= 0{told}"
            )
    elif not 0.0 <= value < 1.0:
        raise UserError(
            f"{rule!r} asks to remove the fraction r = {value!r} of the weights in parameter group {group} "
            f"at lr = {lr!r}{coefficient}; expected 0 <= r < 1{told or ': lower lam or lr'}"
        )


def _asked_in_vain(rule: Part, group: int, r: float, left: str) -> str:
    asked = f"{rule!r} asked to remove the fraction r = {r:.3g} of the weights in parameter group {group} at each step"
    return f"{asked}, but {left}:"


def check_undone(rule: Part, optimizer: Optimizer, group: int, r: float, share: float, steps: int) -> None:
    """Refuse to go on with a rule whose work the optimizer undoes.

    Args:
        rule: The rule.
        optimizer: The optimizer.
        group: Number of the group in which it was seen.
        r: The fraction that the last step removed.
        share: The share of it that is left.
        steps: After how many steps.

    Raises:
        UserError: Always.
    """
    left = "nothing of that is left" if share == 0.0 else f"only {share:.0%} of that is left after {steps} steps"
    raise UserError(
        f"{_asked_in_vain(rule, group, r, left)} {_name(optimizer)} writes the weights from values that it keeps elsewhere"
        " (a copy from before the step,"
        " float32 masters, averages); detach() the rule, and attach it to the optimizer that has these values as its"
        f" parameters, or pass the decay to {_name(optimizer)} itself as its own weight_decay"
    )


def check_law(attached: str, saved: str, what: str) -> None:
    """Refuse to go on from a checkpoint of another law.

    Args:
        attached: The law in force, as text.
        saved: The law in the checkpoint, as text.
        what: What the texts are, for the message: "law", ...

    Raises:
        UserError: If they differ.
    """
    if attached != saved:
        said = saved if len(saved) <= 1000 else f"{saved[:1000]}..."
        raise UserError(
            f"the checkpoint was made under the {what} {said}, but attached is {attached}; attach the same "
            "to go on exactly, or pass attach(..., allow_other_law=True) to continue under the attached one"
        )


def check_put_back(rule: Part, optimizer: Optimizer, group: int, r: float, share: float, others: Sequence[str]) -> None:
    """Refuse to go on where hooks or a replaced step undo a rule; warn where the training loop itself does.

    Args:
        rule: The rule.
        optimizer: The optimizer.
        group: Number of the group in which it was seen.
        r: The fraction that the last step removed.
        share: The share of it that is left.
        others: What acts around the steps.

    Raises:
        UserError: If something does.
    """
    left = "nothing of that is left when the next step begins" if share == 0.0 else f"only {share:.0%} of that is left"
    told = f"{_asked_in_vain(rule, group, r, left)} the weights of {_name(optimizer)} are written once more after its step,"
    if others:
        raise UserError(
            f"{told} which {' or '.join(others)} can do; take that off, or detach() the rule and let what writes the weights"
            " decay them"
        )
    warnings.warn(
        f"{told} but by no hook; if that is meant, as in a search for a learning rate, all is well; else attach the rule to"
        " the optimizer of the weights that are written back (said once)",
        stacklevel=level_of_the_user(),
    )


def warn_of_decay(
    rule: Part, optimizer: Optimizer, group: int, r: float, more: float, others: Sequence[str], *, inside: bool
) -> None:
    """Tell that weights decay beside the rule.

    Args:
        rule: The rule.
        optimizer: The optimizer.
        group: Number of the group in which it was seen.
        r: The fraction that the rule removed.
        more: The fraction that is removed beside it.
        others: What acts around the steps.
        inside: Whether the step itself does it.
    """
    if inside:
        who = f"{_name(optimizer)} decays by itself, although its weight_decay is 0 under a rule"
        what = f"switch that off in {_name(optimizer)}, or detach() the rule"
    else:
        who = f"something shrinks the weights of {_name(optimizer)} between its steps{_those(others)}"
        what = "take that off, or detach() the rule"
    warnings.warn(
        f"{who}: a fraction of {more:.3g} per step in parameter group {group} beside the r = {r:.3g} of {rule!r}, so that"
        f" together about {1.0 - (1.0 - r) * (1.0 - more):.3g} is removed; {what} (said once)",
        stacklevel=level_of_the_user(),
    )


def _those(others: Sequence[str]) -> str:
    return f", which {' or '.join(others)} can do" if others else ""


def check_kept(saved: Mapping[str, Any], group: int) -> None:
    """Refuse what a checkpoint holds of a rule if it is damaged.

    Args:
        saved: ``step``, ``peak_lr``, ``law`` and ``memory``, as far as they are there.
        group: Number of the group.

    Raises:
        UserError: If the law is no text, the step or the peak no number >= 0, or the memory no numbers.
    """
    try:
        check_steps("the step", saved["step"], minimum=0)
        check_non_negative("the peak_lr", saved.get("peak_lr", 0.0))
        for value in () if (memory := saved.get("memory")) is None else memory:
            as_number("the memory", value)
        if not isinstance(saved.get("law"), str):
            raise UserError(f"the law must be text, got {saved.get('law')!r}")
    except (UserError, TypeError) as error:
        raise UserError(
            f"the checkpoint is damaged, of parameter group {group} {str(error)[:200]}: load another checkpoint"
        ) from error


def check_memory(values: Sequence[float], expected: int, complete: bool, norms: int, group: int) -> None:
    """Refuse numbers per parameter of a checkpoint that are damaged.

    Args:
        values: The numbers.
        expected: How many there should be.
        complete: Whether there are as many as there should be.
        norms: How many of them, at the end, are norms, of which -1 stands for none.
        group: Number of the group.

    Raises:
        UserError: If some are missing or too many, or one is NaN, infinite or negative.
    """
    first = len(values) - norms
    broken = next(
        (value for i, value in enumerate(values) if not 0.0 <= value < math.inf and not (value == -1.0 and i >= first)),
        None,
    )
    if broken is None and complete:
        return
    got = f"{len(values)} numbers" if broken is None else f"{broken!r} among them"
    raise UserError(
        f"the checkpoint is damaged: halflife_memory of parameter group {group} should hold {expected} finite numbers >= 0,"
        f" got {got}; load another checkpoint, or remove halflife_memory from its groups to start anew"
    )


def check_not_capturing(parameters: Iterable[torch.Tensor]) -> None:
    """Refuse to run inside the capture of a CUDA graph, where this step's decay would be repeated for ever.

    Args:
        parameters: Some parameters of the optimizer; only whether the first is on a CUDA device matters.

    Raises:
        UserError: If the current stream is being captured.
    """
    first = next(iter(parameters), None)
    if first is not None and first.is_cuda and torch.cuda.is_current_stream_capturing():
        raise UserError(
            "optimizer.step() is being captured in a CUDA graph: hooks do not run when it is replayed, so "
            "the decay would stay frozen at this step's value; capture forward and backward only and call "
            "step() outside"
        )


def _name(value: object) -> str:
    return value.__name__ if isinstance(value, type) else type(value).__name__


def _list(values: Iterable[float]) -> str:
    return ", ".join(repr(value) for value in sorted(set(values)))
