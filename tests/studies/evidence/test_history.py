"""What a manifest records of claims and seeds, and what a verdict says when they were changed."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.evidence.claims import Claim, Study
from halflife.studies.evidence.history import claim_notes, digests, fixed_before_runs, lost_notes, seed_notes
from halflife.studies.evidence.tests import above
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.runner.plan import make_plan
from halflife.studies.runner.pool import timed_manifest
from halflife.studies.store.store import Store
from tests.studies.synthetic import make_store

STUDY = STUDIES["stabilization"]
FIRST = STUDY.claims[0]
assert isinstance(FIRST, Claim)
STRICTER = dataclasses.replace(
    FIRST, rule=dataclasses.replace(FIRST.rule, parts=((FIRST.rule.parts[0][0], above(1)), *FIRST.rule.parts[1:]))
)
CHANGED = dataclasses.replace(STUDY, claims=(STRICTER, *STUDY.claims[1:]))
DAY = "2026-11-29T10:00:00+00:00"
NEXT = "2026-11-30T10:00:00+00:00"


def written(store: Store, study: Study, num_seeds: int | None = None) -> dict[str, Any]:
    """What the manifest says while a plan is run."""
    plan = make_plan(study, "smoke", study.presets["smoke"], num_seeds=num_seeds)
    with timed_manifest(store, plan, workers=1):
        (manifest,) = store.manifests()
        return manifest


def finish(store: Store, count: int) -> None:
    for run in make_plan(STUDY, "smoke", STUDY.presets["smoke"]).needed[:count]:
        store.run(run.id).write_header({"id": run.id, "status": "finished", "spec": run.spec.to_json()})


def test_digests_are_recorded_before_the_first_run_and_again_when_they_change(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.create()
    expected = {
        claim.key: hashlib.sha256(f"{claim.text}\n{claim.rule.digest}".encode()).hexdigest()
        for claim in STUDY.claims
        if isinstance(claim, Claim)
    }
    manifest = written(store, STUDY)
    ((first,), (seeds,)) = manifest["claims"], manifest["planned_seeds"]
    assert (first["finished"], first["digests"]) == (0, expected)
    assert (seeds["finished"], seeds["seeds"]) == (0, 2)
    finish(store, 3)
    assert written(store, STUDY)["claims"] == [first], "nothing changed"
    manifest = written(store, CHANGED, num_seeds=3)
    assert [entry["finished"] for entry in manifest["claims"]] == [0, 3]
    assert [(entry["finished"], entry["seeds"]) for entry in manifest["planned_seeds"]] == [(0, 2), (3, 3)]
    changed = [key for key in expected if manifest["claims"][1]["digests"][key] != expected[key]]
    assert changed == [FIRST.key]
    assert store.manifests()[0]["claims"] == manifest["claims"], "kept when the seconds are written"


def history(*entries: tuple[str, int, Claim | None]) -> dict[str, Any]:
    others = {"other": "0"}
    return {
        "claims": [
            {"at": at, "finished": finished, "digests": others | ({} if c is None else {FIRST.key: c.digest})}
            for at, finished, c in entries
        ]
    }


CASES: list[tuple[dict[str, Any], str, bool]] = [
    ({}, "", False),  # an old manifest does not say
    (history((DAY, 0, FIRST)), "", True),
    (history((DAY, 0, FIRST), (NEXT, 4, FIRST)), "", True),  # another claim changed
    (history((DAY, 0, STRICTER), (NEXT, 0, FIRST)), "", True),  # changed before any run: nothing to say
    (history((DAY, 8, FIRST)), "the claim and its rule were recorded on 2026-11-29, when 8 runs were finished", False),
    (
        history((DAY, 0, STRICTER), (NEXT, 1, FIRST)),
        "the claim or its rule was changed on 2026-11-30, when 1 run was finished",
        False,
    ),
    (
        history((DAY, 0, FIRST), (NEXT, 4, STRICTER)),
        "the claim or its rule is not as it was recorded on 2026-11-30: it was changed since",
        False,
    ),
    (history((DAY, 0, None), (NEXT, 4, FIRST)), "recorded on 2026-11-30, when 4 runs were finished", False),
    (history((DAY, 0, None)), "the claim is not among those that were recorded on 2026-11-29", False),
]  # fmt: skip


@pytest.mark.parametrize(("manifest", "words", "fixed"), CASES)
def test_a_claim_says_what_was_changed_when(manifest: dict[str, Any], words: str, fixed: bool) -> None:
    notes = claim_notes(manifest, FIRST)
    assert len(notes) == bool(words)
    assert words in "".join(notes)
    assert fixed_before_runs(manifest, FIRST) is fixed


def test_a_claim_that_is_gone_is_named() -> None:
    assert lost_notes({}, STUDY) == ()
    manifest = {"claims": [{"at": DAY, "finished": 0, "digests": digests(STUDY)}]}
    assert lost_notes(manifest, STUDY) == ()
    fewer = dataclasses.replace(STUDY, claims=STUDY.claims[1:])
    manifest["claims"].append({"at": NEXT, "finished": 8, "digests": digests(fewer)})
    assert lost_notes(manifest, fewer) == (
        "the manifest has claims that the study has not any more, recorded last: helps on 2026-11-29",
    )


def planned(*entries: tuple[str, int, int]) -> dict[str, Any]:
    return {"planned_seeds": [{"at": at, "finished": runs, "seeds": seeds} for at, runs, seeds in entries]}


@pytest.mark.parametrize(
    ("manifest", "words"),
    [
        ({}, ""),
        (planned((DAY, 0, 5)), ""),
        (planned((DAY, 0, 5), (NEXT, 0, 8)), ""),  # nobody had looked
        (planned((DAY, 0, 5), (NEXT, 20, 3)), ""),  # fewer
        (
            planned((DAY, 0, 5), (NEXT, 20, 8)),
            "5 seeds were planned on 2026-11-29, and 8 on 2026-11-30, when 20 runs were finished: who adds seeds after a look",
        ),
        (planned((DAY, 0, 5), (NEXT, 20, 8), (NEXT, 32, 5)), "5 seeds were planned on 2026-11-29, and 8 on 2026-11-30"),
    ],
)
def test_seeds_that_were_added_after_a_look_are_told(manifest: dict[str, Any], words: str) -> None:
    notes = seed_notes(manifest)
    assert len(notes) == bool(words)
    assert words in "".join(notes)


def test_verdicts_of_a_changed_claim_are_shown_with_the_sentence(tmp_path: Path) -> None:
    old = {"at": DAY, "finished": 0, "digests": digests(CHANGED) | {"gone": "0" * 64}}
    store = make_store(tmp_path, claims=[old], **planned((DAY, 0, 2), (NEXT, 8, 3)))
    first, *others = StudyResults(store, STUDY, store.manifests()[0]).verdicts()
    assert first.finding.effect is not None
    assert len(first.notes) == 3
    assert first.notes[0].startswith("the claim or its rule is not as it was recorded on 2026-11-29")
    assert all(verdict.notes == first.notes[1:] for verdict in others)
