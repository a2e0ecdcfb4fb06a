"""What is wrong, or at least surprising, in an explanation. Each warning is one sentence with what to do about it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan

from torch.optim import Optimizer

from halflife.audit.precision import lost_in_precision
from halflife.audit.rows import Group, Holder, Row, tolerance_of, tried
from halflife.audit.text import in_common, without_numbers
from halflife.optim.attaching import handle_of
from halflife.optim.config import LAW
from halflife.optim.step_hooks import foreign_hooks
from halflife.rules.base import Rule, StepInfo

__all__ = ["Finding", "findings_of"]


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
    in_place: bool = False,
) -> list[Finding]:
    """Look for everything that this module knows.

    Args:
        rows: The parameters.
        groups: The groups.
        optimizers: The optimizers, with any wrapper taken off.
        total_steps: The length of the run in optimizer steps, where it is known.
        in_place: Whether the real optimizers were stepped, with their hooks.

    Returns:
        The warnings, the worst first.
    """
    members: defaultdict[int, list[Row]] = defaultdict(list)
    for row in rows:
        for group in row.effect.groups:
            members[id(group)].append(row)
    found = [
        *_not_probed(groups, members),
        *_not_probed_outside(rows),
        *_lost_rule(groups, optimizers),
        *_one_per_optimizer("ignored", _ignored(groups, members)),
        *_without_setting(rows),
        *_other_setting(rows),
        *_one_per_optimizer("coefficient", _other_coefficient(groups)),
        *_one_per_optimizer("two-mechanisms", _two_mechanisms(groups)),
        *_overshoots(rows),
        *_in_two_groups(rows),
        *_frozen_but_updated(rows),
        *_in_one_only(rows),
        *_lost_in_precision(rows, optimizers),
        *_unusual_kinds(rows),
        *_beyond_the_run(rows, total_steps),
        *(() if in_place else _foreign_hooks(optimizers)),
    ]
    return list(dict.fromkeys(found))


def _names(rows: Sequence[Row]) -> tuple[str, ...]:
    return tuple(row.name for row in rows)


def _listed(rows: Sequence[Row]) -> str:
    names = ", ".join(row.name for row in rows[:3])
    return f"{names} and {len(rows) - 3} more" if len(rows) > 3 else names


def _counted(rows: Sequence[Row], what: str = "parameter") -> str:
    return f"{len(rows)} {what}{'s' if len(rows) > 1 else ''}"


def _verb(rows: Sequence[Row], one: str, several: str) -> str:
    return one if len(rows) == 1 else several


def _place(groups: Sequence[Group]) -> str:
    """Return where something is true: groups of one optimizer."""
    numbers = ", ".join(str(group.index) for group in groups[:3])
    more = f" and {len(groups) - 3} more" if len(groups) > 3 else ""
    place = f"group{'s' if len(groups) > 1 else ''} {numbers}{more} of optimizer {groups[0].optimizer}"
    return f"{place} ({groups[0].optimizer_name})"


def _one_per_optimizer(code: str, found: Iterable[tuple[Group, str]]) -> Iterator[Finding]:
    """Yield one warning for all groups of an optimizer of which the same is true, whatever the numbers in it.

    ``{place}`` in the text is where.
    """
    alike: dict[tuple[int, str], list[tuple[Group, str]]] = {}
    for group, text in found:
        alike.setdefault((group.optimizer, without_numbers(text)), []).append((group, text))
    for several in alike.values():
        place = _place([group for group, _ in several])
        yield Finding(code, in_common([text for _, text in several]).replace("{place}", place))


def _not_probed(groups: Sequence[Group], members: Mapping[int, Sequence[Row]]) -> Iterator[Finding]:
    """Yield one warning per optimizer and reason: of whole groups, or of the parameters in them that it concerns."""
    whole: dict[tuple[int, str], list[Group]] = {}
    parts: dict[tuple[int, str], list[tuple[Group, Row]]] = {}
    for group in groups:
        mine = members.get(id(group), [])
        unknown = [(row, why) for row in mine if row.effect.unknown and (why := _unknown_in(row, group)) is not None]
        trainable = sum(not row.is_frozen for row in mine) if unknown else 0
        reasons = {why for _, why in unknown}
        if len(reasons) == 1 and len(unknown) >= trainable > 0:
            whole.setdefault((group.optimizer, reasons.pop()), []).append(group)
        else:
            for row, why in unknown:
                parts.setdefault((group.optimizer, why), []).append((group, row))
    for (_, why), several in whole.items():
        about = tuple(dict.fromkeys(row.name for group in several for row in members[id(group)]))
        text = f"whether anything decays in {_place(several)} is not known: it was not probed ({why})"
        yield Finding("not-probed", text, about)
    for (_, why), pairs in parts.items():
        rows = list(dict.fromkeys(row for _, row in pairs))
        place = _place(list(dict.fromkeys(group for group, _ in pairs)))
        text = f"whether {_counted(rows)} in {place} {_verb(rows, 'decays', 'decay')} is not known: {_listed(rows)} "
        yield Finding("not-probed", f"{text}{_verb(rows, 'was', 'were')} not probed ({why})", _names(rows))


def _not_probed_outside(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield one warning per reason for parameters in no group, of which it is not known whether they decay."""
    alike: dict[str, list[Row]] = {}
    for row in rows:
        if row.decays is None and not row.groups:
            alike.setdefault(row.why.removeprefix("not probed: "), []).append(row)
    for why, found in alike.items():
        yield Finding(
            "not-probed",
            f"whether {_counted(found)} in no group {_verb(found, 'decays', 'decay')} is not known: {_listed(found)} "
            f"{_verb(found, 'was', 'were')} not probed ({why})",
            _names(found),
        )


def _unknown_in(row: Row, group: Group) -> str | None:
    """Return why it is not known what the optimizer of a group does to a parameter; None if it is known."""
    for holder in row.effect.unknown:
        if holder.group.optimizer == group.optimizer:
            notes = holder.law.notes
            return holder.found.seen.reason or (notes[0] if notes else "no reason given")
    return None


def _lost_rule(groups: Sequence[Group], optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    for group in groups:
        if LAW in group.settings and handle_of(optimizers[group.optimizer]) is None:
            yield Finding(
                "rule-lost",
                f"optimizer {group.optimizer} ({group.optimizer_name}) says that {group.settings[LAW]} was "
                "attached, but no rule is: a copy, a pickle or a loaded checkpoint has none; attach it again",
            )


def _ignored(groups: Sequence[Group], members: Mapping[int, Sequence[Row]]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        trainable = [row for row in members.get(id(group), ()) if not row.is_frozen and row.parameter.numel()]
        if trainable and all(row.decays is False for row in trainable) and group.rule is None and group.weight_decay:
            said = f"weight_decay = {group.weight_decay:g} of {{place}}"
            if group.is_proven:
                yield (
                    group,
                    f"{said} has no effect: probing shows that the optimizer ignores it; attach a rule, for example "
                    "halflife.Decoupled()",
                )
            elif trainable[0].seen is not None:
                yield (
                    group,
                    f"{said} {tried(trainable[0].seen)}; what later calls do, or other gradients, is not known: if its step "
                    "never reads it, attach a rule, for example halflife.Decoupled()",
                )


def _without_setting(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield one warning per optimizer for what decays in groups that say 0."""
    found: dict[int, list[tuple[Holder, Row]]] = {}
    for row in rows:
        for holder in row.effect.without_setting:
            found.setdefault(holder.group.optimizer, []).append((holder, row))
    for pairs in found.values():
        decaying, name = [row for _, row in pairs], pairs[0][0].group.optimizer_name
        groups = list(dict.fromkeys(holder.group for holder, _ in pairs))
        fractions = [holder.r_peak for holder, _ in pairs if holder.r_peak is not None]
        by = f", by r = {max(fractions):.4g}" if fractions else ""
        said = f"weight_decay is 0 in {_place(groups)}, yet a step shrinks"
        sharing = [row for row in decaying if row.shares]
        others = [row for row in decaying if not row.shares]
        if sharing:
            yield Finding(
                "decay-without-setting",
                f"{said} {_listed(sharing)}{by}: {_verb(sharing, 'it has', 'they have')} memory in common with "
                f"{_with_whom(sharing)}; give memory to one parameter of one group",
                _names(sharing),
            )
        if others:
            yield Finding(
                "decay-without-setting",
                f"{said} {_listed(others)}{by}: {name} reads its decay elsewhere, such as in another group or in an "
                "attribute; set it there",
                _names(others),
            )


def _with_whom(rows: Sequence[Row]) -> str:
    """Return the names of the parameters with which some share memory."""
    names = list(dict.fromkeys(name for row in rows for name in row.shares))
    return f"{', '.join(names[:3])} and {len(names) - 3} more" if len(names) > 3 else ", ".join(names)


def _other_setting(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield one warning per optimizer for groups whose weight_decay is not the one that their weights decay by."""
    found: dict[int, list[tuple[Holder, Row]]] = {}
    for row in rows:
        for holder in row.effect.with_other_setting:
            found.setdefault(holder.group.optimizer, []).append((holder, row))
    for pairs in found.values():
        groups = list(dict.fromkeys(holder.group for holder, _ in pairs))
        text = in_common([f"weight_decay = {h.group.weight_decay:g} but by that of {h.lam:.4g}" for h, _ in pairs])
        says, _, seen = text.partition(" but ")
        decaying = [row for _, row in pairs]
        yield Finding(
            "other-setting",
            f"{says} of {_place(groups)} is not what acts: {_listed(decaying)} {_verb(decaying, 'decays', 'decay')} {seen}, "
            f"which {groups[0].optimizer_name} reads elsewhere; set it there",
            _names(decaying),
        )


def _other_coefficient(groups: Sequence[Group]) -> Iterator[tuple[Group, str]]:
    for group in groups:
        c = group.law.coefficient
        if (
            group.rule is None
            and group.law.pathway == "decoupled"
            and c is not None
            and group.weight_decay  # at 0 it is not what acts, and what does is told by `_without_setting`
            and abs(c - 1.0) > tolerance_of(group.law)
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
        if r is None or abs(r - meant) > tolerance_of(group.law) * max(meant, r):
            found = group.law.describe() if r is None else f"r = {r:.4g}"
            yield (
                group,
                f"the attached {group.rule} asks for r = {meant:.4g} in {{place}}, but probing found {found}: the "
                "optimizer decays by itself as well; switch that off (weight_decay=0, where it reads that), and attach with "
                "select='all'",
            )


def _overshoots(rows: Sequence[Row]) -> Iterator[Finding]:
    """Yield one warning for each way in which a fraction that is not between 0 and 1 does not shrink weights."""
    found: dict[tuple[str, bool], list[tuple[Row, float]]] = {}
    for row in rows:
        for holder in row.effect.acting:
            now, later = holder.overshoot(holder.r), holder.overshoot(holder.r_peak)
            r = holder.r if now else holder.r_peak
            if now or later:
                found.setdefault((now or later, not now), []).append((row, r or 0.0))
    for (what, at_the_peak), pairs in found.items():
        those = list(dict.fromkeys(row for row, _ in pairs))
        r = max((r for _, r in pairs), key=abs)
        when = " at the peak learning rate" if at_the_peak else ""
        advice = (
            "make lr * weight_decay positive"
            if what == "grows it"
            else "make lr * weight_decay smaller, r must be below 1"
        )
        effect = {"grows it": "grows", "sets it to 0": "sets to 0"}.get(what, "flips the sign of")
        more = " and does not shrink " + _verb(those, "it", "them") if "does not" in what else ""
        yield Finding(
            "negative-decay" if what == "grows it" else "r-of-1-or-more",
            f"r = {r:.4g}{when}: each step {effect} {_counted(those)}{more}: {_listed(those)}; {advice}",
            _names(those),
        )


def _in_two_groups(rows: Sequence[Row]) -> Iterator[Finding]:
    shared = [row for row in rows if row.effect.places > 1 and (row.decays or not row.is_frozen)]
    if shared:
        both = [row for row in shared if row.effect.removals > 1]
        effect = f", and {len(both)} of them {_verb(both, 'decays', 'decay')} in each" if both else ""
        yield Finding(
            "in-two-groups",
            f"{_counted(shared)} {_verb(shared, 'stands', 'stand')} in two groups or optimizers, or twice in one, and "
            f"{_verb(shared, 'is', 'are')} updated by each{effect}: {_listed(shared)}; give each parameter to one group of one "
            "optimizer",
            _names(shared),
        )


def _frozen_but_updated(rows: Sequence[Row]) -> Iterator[Finding]:
    found = [row for row in rows if row.is_frozen and row.groups and row.parameter.grad is not None]
    if found:
        decaying, them = sum(bool(row.decays) for row in found), _verb(found, "it", "them")
        effect = f"updates and decays {them}" if decaying == len(found) else f"updates {them}"
        effect += f", and decays {decaying} of them" if 0 < decaying < len(found) else ""
        yield Finding(
            "frozen-but-updated",
            f"{_counted(found, 'frozen parameter')} still {_verb(found, 'has a gradient', 'have gradients')}, so a step "
            f"{effect}: {_listed(found)}; torch asks for the gradient, not for requires_grad: set .grad = None, as "
            "zero_grad(set_to_none=True) does",
            _names(found),
        )
    alone = [row for row in rows if row.is_frozen and row.parameter.grad is None and row.decays]
    if alone:
        yield Finding(
            "frozen-but-updated",
            f"{_counted(alone, 'frozen parameter')} {_verb(alone, 'decays', 'decay')} although "
            f"{_verb(alone, 'it has', 'they have')} no gradient: {_listed(alone)}; take {_verb(alone, 'it', 'them')} out of "
            "the optimizer",
            _names(alone),
        )


def _fraction_of_rule(group: Group) -> float | None:
    """Return the fraction that the attached rule answers, where it depends on lr and lam alone."""
    if not isinstance(group.part, Rule) or not group.part.needs <= {"lam"}:
        return None
    answer = group.part.fraction(StepInfo(lr=group.probed_lr, lam=nan if group.own_lam is None else group.own_lam))
    return float(answer) if isinstance(answer, int | float) else None


def _in_one_only(rows: Sequence[Row]) -> Iterator[Finding]:
    lost = [row for row in rows if row.parameter.requires_grad and not row.groups and row.decays is False]
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
    for text, found in lost_in_precision(rows, optimizers):
        yield Finding("lost-in-precision", text, _names(found))


ADVICE: dict[str, str] = {
    "norms": "a gain that shrinks scales its layer down",
    "biases": "shrinking an additive term regularizes little",
    "embeddings": "rows that are rare in the data shrink without being trained",
    "others": "scales, gates and time constants have no reason to be near 0",
}


def _unusual_kinds(rows: Sequence[Row]) -> Iterator[Finding]:
    against = [row for row in rows if row.declared and row.decays]
    if against:
        yield Finding(
            "decay-on-declared",
            f"decay acts on {_counted(against)} that the model itself declares not to decay: {_listed(against)} "
            f"({against[0].declared}); build groups with halflife.param_groups",
            _names(against),
        )
    for kind, advice in ADVICE.items():
        found = [row for row in rows if row.kind == kind and row.decays and not row.declared]
        if found:
            word = kind if kind != "others" else "scales, gates or time constants"
            yield Finding(
                f"decay-on-{kind}",
                f"decay acts on {word} ({_counted(found)}): {_listed(found)}; {advice}: if this is not meant, build groups "
                "with halflife.param_groups",
                _names(found),
            )
    matrices = [row for row in rows if row.kind == "matrices" and row.groups and not row.is_frozen]
    spared = [row for row in matrices if row.decays is False and not row.declared and row.parameter.numel()]
    if any(row.decays for row in rows) and spared:
        yield Finding(
            "matrix-without-decay",
            f"{len(spared)} {_verb(spared, 'matrix does', 'matrices do')} not decay, while other parameters do: "
            f"{_listed(spared)}",
            _names(spared),
        )
    if rows and all(row.decays is False for row in rows):
        is_set = any(group.weight_decay for row in rows for group in row.groups)
        advice = "attach a rule" if is_set else "set weight_decay where the groups are built, or attach a rule"
        yield Finding("nothing-decays", f"nothing decays: {advice}")


def _beyond_the_run(rows: Sequence[Row], total_steps: float | None) -> Iterator[Finding]:
    if total_steps is None:
        return
    slow = [row for row in rows if row.effect.half_life_peak is not None and row.effect.half_life_peak > total_steps]
    if slow:
        lives = [row.effect.half_life_peak or 0.0 for row in slow]
        shortest, longest = min(lives), max(lives)
        several = f" to {longest:,.0f}" if f"{shortest:,.0f}" != f"{longest:,.0f}" else ""
        yield Finding(
            "half-life-beyond-run",
            f"the half-life of {shortest:,.0f}{several} steps is longer than the run of {total_steps:,.0f}: an untouched "
            f"weight of {_listed(slow)} would keep {0.5 ** (total_steps / shortest):.0%} of its size or more",
            _names(slow),
        )


def _foreign_hooks(optimizers: Sequence[Optimizer]) -> Iterator[Finding]:
    """Name step hooks of others: they may shrink weights, and the copy that is probed has none of them."""
    for number, optimizer in enumerate(optimizers):
        names = ", ".join(sorted(foreign_hooks(optimizer)))
        if names:
            yield Finding(
                "hooks-not-probed",
                f"optimizer {number} ({type(optimizer).__name__}) has step hooks that are not of halflife ({names}); "
                "what they do to weights was not probed: explain it with in_place=True",
            )
