"""From a study's results to its verdicts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from halflife.errors import StoreError, UserError
from halflife.studies.evidence.claims import Claim, Finding, Study, Verdict
from halflife.studies.evidence.history import claim_notes, lost_notes, seed_notes
from halflife.studies.evidence.results import ArmDivergedError, NoArmError, Results
from halflife.studies.store.store import Store

__all__ = ["MIN_SEEDS", "StudyResults", "manifests_of"]

MIN_SEEDS = 2


class StudyResults(Results):
    """The results of a study and preset, with the study whose claims they decide.

    Args:
        store: The store.
        study: The study.
        manifest: The manifest of the study and preset.

    Raises:
        StoreError: The manifest was written by another version of the study.
    """

    def __init__(self, store: Store, study: Study, manifest: Mapping[str, Any]) -> None:
        preset = manifest["preset"]
        if preset not in study.presets:
            raise StoreError(
                f"the store {store.path} holds {study.name} at a preset {preset!r} that this halflife does not know:"
                " use the halflife that wrote it"
            )
        super().__init__(store, manifest)
        self.study = study

    def verdicts(self) -> list[Verdict]:
        """Each claim's verdict, decided at the main size, with the same measured along the ladder.

        Returns:
            One verdict per claim of the study.
        """
        found = []
        of_all = (*lost_notes(self.manifest, self.study), *seed_notes(self.manifest))
        for claim in self.study.claims:
            by_size = {size: self._finding(claim, size) for size in self.sizes}
            found.append(
                Verdict(
                    study=self.study.name,
                    preset=self.preset_name,
                    claim=claim,
                    finding=by_size[self.main_size],
                    by_size=by_size,
                    notes=(*claim_notes(self.manifest, claim), *of_all),
                )
            )
        return found

    def _finding(self, claim: Claim, size: int) -> Finding:
        if self.manifest.get("max_steps") is not None:
            return Finding("not tested", None, f"runs were cut at {self.manifest['max_steps']} steps by --max-steps")
        if self.damaged:
            return Finding("not tested", None, next(iter(self.damaged.values())))
        found = len(self.seeds(size))
        if found < MIN_SEEDS:
            planned = max(len(arm["runs"]) for arm in self.arms if arm["size"] == size)
            return Finding(
                "not tested",
                None,
                f"{found} of {planned} seeds are finished in every arm, at least {MIN_SEEDS} are needed",
            )
        try:
            finding = claim.decide(self, size)
        except ArmDivergedError as error:
            return Finding("undecided", None, str(error))
        except NoArmError:
            if size == self.main_size:
                raise
            return Finding("not tested", None, f"what it compares is run at size {self.main_size} alone")
        if finding.effect is not None and not math.isfinite(finding.effect.estimate):
            raise UserError(
                f"an effect of {self.study.name} is {finding.effect.estimate}: a reading is damaged, run again"
            )
        if not self.study.presets[self.preset_name].decides:
            return replace(
                finding, outcome="not tested", reason="the preset is too small to decide, it is made for tests"
            )
        return finding


def manifests_of(
    store: Store, names: Sequence[str], trouble: Callable[[str, str, StoreError], None] | None = None
) -> list[dict[str, Any]]:
    """The store's manifests of the named studies (all when none is named), newest preset last.

    Args:
        store: The store.
        names: Study names.
        trouble: Told study, preset and problem of a manifest that cannot be read; the others are returned (``None``: that is an
            error).

    Returns:
        The manifests.

    Raises:
        UserError: A named study has no manifest, or the store has none at all.
        StoreError: A manifest cannot be read, and nobody is to be told.
    """
    unreadable = set()

    def tell(name: str, error: StoreError) -> None:
        study, _, preset = name.rpartition("-")
        if not names or study in names:
            if trouble is None:
                raise error
            unreadable.add(study)
            trouble(study, preset, error)

    manifests = [found for found in store.manifests(tell) if not names or found["study"] in names]
    known = {found["study"] for found in manifests} | unreadable
    missing = [name for name in names if name not in known]
    if missing or not known:
        what = f"no runs of {missing[0]}" if missing else "no runs"
        wanted = missing[0] if missing else "stabilization"
        raise UserError(
            f"the store {store.path} has {what}: run `halflife study run {wanted}` first, or name another --store"
        )
    return manifests
