"""What is wrong, or at least surprising, in an explanation. Each warning is one sentence with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import nan

import torch
from torch.optim import Optimizer

from halflife.audit.precision import is_compensated, smallest_effective_fraction
from halflife.audit.rows import Group, Row
from halflife.optim.attaching import handle_of
from halflife.optim.config import LAW
from halflife.rules.base import Rule, StepInfo
from halflife.units import half_life, kept

__all__ = ["Finding", "findings_of"]

TOLERANCE = 1e-3  # relative; probing is more exact


@dataclass(frozen=True)
class Finding:
    """One warning.

    Attributes:
        code: A short name that stays the same, such as ``"lost-in-precision"``.
        text: The sentence.
        parameters: The names of the parameters that it is about.
    """

    code: str
    text: str
    parameters: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.text


def findings_of(
    rows: Sequence[Row],
    groups: Sequence[Group],
    optimizers: Sequence[Optimizer],
    *,
    total_steps: float | None = None,
) -> list[Finding]:
    """Look for everything that this module knows.

    Args:
        rows: The parameters.
        groups: The groups.
        optimizers: The optimizers, with any wrapper taken off.
        total_steps: The length of the run in optimizer steps, where it is known.

    Returns:
        The warnings, the worst first.
    """
    found = [
        *_one_per_optimizer("not-probed", _not_probed(groups)),
        *_lost_rule(groups, optimizers),
        *_one_per_optimizer("ignored", _ignored(groups)),
        *_one_per_optimizer("coefficient", _other_coefficient(groups)),
        *_one_per_optimizer("two-mechanisms", _two_mechanisms(groups)),
        *_in_two_groups(rows),
        *_in_one_only(rows),
        *_lost_in_precision(rows, optimizers),
        *_unusual_kinds(rows),
        *_beyond_the_run(rows, total_steps),
        *_foreign_hooks(optimizers),
    ]
    return list(dict.fromkeys(found))


def _names(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(row.name for row in rows)


def _listed(rows: Sequence[Row]) -> str:
    names = [row.name for row in rows]
    return f"{', '.join(names[:3])}{f' and {len(names) - 3} more' if len(names) > 3 else ''}"


def _counted(rows: Sequence[Row], what: str = "parameter") -> str:
    return f"{len(rows)} {what}{'s' if len(rows) > 1 else ''}"


def _verb(rows: Sequence[Row], one: str, several: str) -> str:
    return one if len(rows) == 1 else several


def _one_per_optimizer(code: str, found: Iterable[tuple[Group, str]]) -> Iterator[Finding]:
    """Yield one warning for all groups of an optimizer of which the same is true; ``{place}`` in it is where."""
    alike: dict[tuple[int, str], list[Group]] = {}
    for group, text in found:
        alike.setdefault((group.optimizer, text), []).append(group)
    for (optimizer, text), groups in alike.items():
        numbers = ", ".join(str(group.index) for group in groups[:3])
        more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
        place = f"group{'s' if len(groups) > 1 else ''} {numbers}{more} of optimizer {optimizer}"
        yield Finding(code, text.replace("{place}", f"{place} ({groups[0].optimizer_name})"))


def _not_probed(groups: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        for law in (group.law, *group.law.by_shape.values()):
            if law.pathway == "not probed" and group.settings["params"]:
                reason = law.notes[0] if law.notes else "no reason given"
                yield group, f"whether anything decays in {{place}} is not known: it was not probed ({reason})"


def _lost_rule(groups: Sequence[Group], optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    for group in groups:
        if LAW in group.settings and handle_of(optimizers[group.optimizer]) is None:
            yield Finding(
                "rule-lost",
                f"optimizer {group.optimizer} ({group.optimizer_name}) says that {group.settings[LAW]} was "
                "attached, but no rule is: a copy, a pickle or a loaded checkpoint has none; attach it again",
            )


def _ignored(groups: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        if group.law.pathway == "none" and group.rule is None and group.weight_decay:
            yield (
                group,
                f"weight_decay = {group.weight_decay:g} of {{place}} has no effect: probing shows that the optimizer "
                "ignores it; attach a rule, for example halflife.Decoupled()",
            )


def _tolerance(group: Group) -> float:
    return 0.05 if any("float32" in note for note in group.law.notes) else TOLERANCE


def _other_coefficient(groups: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        c = group.law.coefficient
        if (
            group.rule is None
            and group.law.pathway == "decoupled"
            and c is not None
            and abs(c - 1.0) > _tolerance(group)
        ):
            yield (
                group,
                f"in {{place}} a step removes {c:.4g} times what weight_decay = {group.weight_decay:g} says "
                f"(r = {group.law.formula()}): divide weight_decay by {c:.4g}, or attach a rule",
            )


def _two_mechanisms(groups: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        meant, r = _fraction_of_rule(group), group.law.fraction
        if meant is None or (r is None and group.law.pathway != "other"):
            continue
        if r is None or abs(r - meant) > _tolerance(group) * max(meant, r):
            found = group.law.describe() if r is None else f"r = {r:.4g}"
            yield (
                group,
                f"the attached {group.rule} asks for r = {meant:.4g} in {{place}}, but probing found {found}: the "
                "optimizer decays by itself as well; make it with weight_decay=0 and attach with select='all'",
            )


def _in_two_groups(rows: Sequence[Row]) -> Iterator[Finding]:
    shared = [row for row in rows if len(row.groups) > 1]
    if shared:
        both = [
            row for row in shared if sum(group.law.pathway not in {"none", "not probed"} for group in row.groups) > 1
        ]
        effect = f", and {len(both)} of them {_verb(both, 'decays', 'decay')} in each" if both else ""
        yield Finding(
            "in-two-groups",
            f"{_counted(shared)} {_verb(shared, 'stands', 'stand')} in two groups or optimizers, which both update "
            f"{_verb(shared, 'it', 'them')}{effect}: {_listed(shared)}; "
            "give each parameter to one",
            _names(shared),
        )


def _fraction_of_rule(group: Group) -> float | None:
    """Return the fraction that the attached rule answers, where it depends on lr and lam alone."""
    if not isinstance(group.part, Rule) or not group.part.needs <= {"lam"}:
        return None
    answer = group.part.fraction(StepInfo(lr=group.probed_lr, lam=nan if group.own_lam is None else group.own_lam))
    return float(answer) if isinstance(answer, int | float) else None


def _in_one_only(rows: Sequence[Row]) -> Iterator[Finding]:
    lost = [row for row in rows if row.parameter.requires_grad and not row.groups]
    if lost:
        yield Finding(
            "in-no-optimizer",
            f"{_counted(lost, 'trainable parameter')} of the model {_verb(lost, 'is', 'are')} in no optimizer and will not "
            f"train: {_listed(lost)}; "
            "add them to a group, or freeze them",
            _names(lost),
        )
    foreign = [row for row in rows if row.kind_reason == "not in the model"]
    if foreign:
        yield Finding(
            "not-in-model",
            f"{_counted(foreign)} of the optimizers {_verb(foreign, 'is', 'are')} not in the model: {_listed(foreign)}; the "
            "optimizer was made of "
            "another model, of an older version of it, or of copies in another precision",
            _names(foreign),
        )


def _lost_in_precision(rows: Sequence[Row], optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    lost: dict[torch.dtype, list[Row]] = {}
    for row in rows:
        r, dtype = row.largest_r, row.parameter.dtype
        floating = dtype.is_floating_point or dtype.is_complex
        if not r or not row.group or not floating or r > smallest_effective_fraction(dtype):
            continue
        if not is_compensated(optimizers[row.group.optimizer], row):
            lost.setdefault(dtype, []).append(row)
    for dtype, found in lost.items():
        r = max(row.largest_r or 0.0 for row in found)
        name = str(dtype).removeprefix("torch.")
        yield Finding(
            "lost-in-precision",
            f"r = {r:.3g} changes no weight of {_counted(found, f'{name} parameter')}: rounding to {name} loses every "
            f"fraction up to {smallest_effective_fraction(dtype):.3g}; keep float32 master weights, or use an optimizer "
            f"with stochastic rounding or compensated sums: {_listed(found)}",
            _names(found),
        )


ADVICE: dict[str, str] = {
    "norms": "a gain that shrinks scales its layer down",
    "biases": "shrinking an additive term regularizes little",
    "embeddings": "rows that are rare in the data shrink without being trained",
    "others": "scales, gates and time constants have no reason to be near 0",
}


def _unusual_kinds(rows: Sequence[Row]) -> Iterator[Finding]:
    for kind, advice in ADVICE.items():
        found = [row for row in rows if row.kind == kind and row.decays]
        if found:
            word = kind if kind != "others" else "scales, gates or time constants"
            yield Finding(
                f"decay-on-{kind}",
                f"decay acts on {word} ({_counted(found)}): {_listed(found)}; {advice}: if this is not meant, build groups "
                "with halflife.param_groups",
                _names(found),
            )
    matrices = [row for row in rows if row.kind == "matrices" and row.groups and row.parameter.requires_grad]
    spared = [row for row in matrices if row.decays is False]
    if any(row.decays for row in rows) and spared:
        yield Finding(
            "matrix-without-decay",
            f"{len(spared)} {_verb(spared, 'matrix does', 'matrices do')} not decay, while other parameters do: "
            f"{_listed(spared)}",
            _names(spared),
        )
    if rows and all(row.decays is False for row in rows):
        yield Finding("nothing-decays", "nothing decays: set weight_decay where the groups are built, or attach a rule")


def _beyond_the_run(rows: Sequence[Row], total_steps: float | None) -> Iterator[Finding]:
    if total_steps is None:
        return
    slow = [row for row in rows if row.half_life and 0.0 < (row.largest_r or 0.0) < 1.0]
    slow = [row for row in slow if half_life(row.largest_r or 0.0) > total_steps]
    if slow:
        fractions = [row.largest_r or 0.0 for row in slow]
        shortest, longest = half_life(max(fractions)), half_life(min(fractions))
        several = f" to {longest:,.0f}" if f"{shortest:,.0f}" != f"{longest:,.0f}" else ""
        yield Finding(
            "half-life-beyond-run",
            f"the half-life of {shortest:,.0f}{several} steps is longer than the run of {total_steps:,.0f}: an untouched "
            f"weight of {_listed(slow)} would keep {kept(max(fractions), total_steps):.0%} of its size or more",
            _names(slow),
        )


def _foreign_hooks(optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    """Name step hooks of others: they may shrink weights, and the copy that is probed has none of them."""
    for number, optimizer in enumerate(optimizers):
        hooks = [*optimizer._optimizer_step_pre_hooks.values(), *optimizer._optimizer_step_post_hooks.values()]
        others = [hook for hook in hooks if not getattr(hook, "__module__", "").startswith("halflife.")]
        if others:
            names = ", ".join(sorted({getattr(hook, "__qualname__", type(hook).__qualname__) for hook in others}))
            yield Finding(
                "hooks-not-probed",
                f"optimizer {number} ({type(optimizer).__name__}) has step hooks that are not of halflife ({names}); "
                "what they do to weights was not probed",
            )
