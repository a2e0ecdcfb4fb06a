"""What was fixed when: a manifest records the digests of the claims, and the number of seeds, before the first run.

``claims`` and ``planned_seeds`` of a manifest are lists with an entry for every change: ``at`` (the time), ``finished`` (how
many runs were finished by then), and ``digests`` by claim, or ``seeds``. Older manifests have neither.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Claim, Study

__all__ = ["claim_notes", "digests", "fixed_before_runs", "lost_notes", "record", "seed_notes"]

Entry = Mapping[str, Any]
MAX_SHOWN = 80  # characters


def digests(study: Study) -> dict[str, str]:
    """The digest of every claim by its key."""
    return {claim.key: claim.digest for claim in study.claims}


def record(
    earlier: Mapping[str, Any] | None, name: str, what: str, value: object, *, at: str, finished: Callable[[], int]
) -> list[Entry]:
    """The history ``name`` of a manifest, with a new entry if the value is not that of the last one.

    Args:
        earlier: The manifest that is there already.
        name: ``"claims"`` or ``"planned_seeds"``.
        what: ``"digests"`` or ``"seeds"``.
        value: What holds from now on.
        at: The time.
        finished: Counts the runs that are finished; asked only if there is a new entry.

    Returns:
        The entries, oldest first.
    """
    entries = list((earlier or {}).get(name, ()))
    if entries and entries[-1][what] == value:
        return entries
    return [*entries, {"at": at, "finished": finished(), what: value}]


def fixed_before_runs(manifest: Mapping[str, Any], claim: Claim) -> bool:
    """Whether the claim was recorded as it is now before the first run was finished; an old manifest does not say."""
    return bool(_known(manifest, claim.key)) and not claim_notes(manifest, claim)


def claim_notes(manifest: Mapping[str, Any], claim: Claim) -> tuple[str, ...]:
    """What a reader of a verdict must know of its claim: that it was changed, or recorded, when runs were finished.

    Args:
        manifest: The manifest.
        claim: The claim as it is now.

    Returns:
        One sentence without its stop; nothing where the claim was fixed before the first run, and where a manifest has no
        history.
    """
    known = _known(manifest, claim.key)
    if not known:
        entries = manifest.get("claims", ())
        return (f"the claim is not among those that were recorded on {_day(entries[-1])}",) if entries else ()
    if _digest(known[-1], claim.key) != claim.digest:
        return (f"the claim or its rule is not as it was recorded on {_day(known[-1])}: it was changed since",)
    first = known[-1]
    for entry in reversed(known):  # since when it is as it is
        if _digest(entry, claim.key) != claim.digest:
            return (f"the claim or its rule was changed on {_day(first)}, {_when(first)}",) if first["finished"] else ()
        first = entry
    return (f"the claim and its rule were recorded on {_day(first)}, {_when(first)}",) if first["finished"] else ()


def lost_notes(manifest: Mapping[str, Any], study: Study) -> tuple[str, ...]:
    """Which claims were recorded once and are not among the study's any more: one sentence without its stop, or nothing."""
    since = {key: entry for entry in manifest.get("claims", ()) for key in entry["digests"]}
    gone = [f"{key[:MAX_SHOWN]} on {_day(since[key])}" for key in since.keys() - {claim.key for claim in study.claims}]
    return (
        (f"the manifest has claims that the study has not any more, recorded last: {', '.join(sorted(gone))}",)
        if gone
        else ()
    )


def seed_notes(manifest: Mapping[str, Any]) -> tuple[str, ...]:
    """Whether seeds were added after a look: one sentence without its stop, or nothing."""
    entries = manifest.get("planned_seeds", ())
    later = [entry for entry in entries[1:] if entry["finished"] and entry["seeds"] > entries[0]["seeds"]]
    if not later:
        return ()
    last = max(later, key=lambda entry: int(entry["seeds"]))
    return (
        f"{entries[0]['seeds']} seeds were planned on {_day(entries[0])}, and {last['seeds']} on {_day(last)}, {_when(last)}:"
        " who adds seeds after a look is wrong more often than the intervals say",
    )


def _known(manifest: Mapping[str, Any], key: str) -> list[Entry]:
    return [entry for entry in manifest.get("claims", ()) if key in entry["digests"]]


def _digest(entry: Entry, key: str) -> object:
    return entry["digests"][key]


def _day(entry: Entry) -> str:
    day: str = entry["at"][:10]
    return day


def _when(entry: Entry) -> str:
    runs = entry["finished"]
    return f"when {runs:,} run{'s were' if runs != 1 else ' was'} finished"
