"""A study's smoke preset, planned and trained as the command does, in this process."""

from __future__ import annotations

from pathlib import Path

from halflife.studies.evidence.claims import Study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.runner.plan import make_plan
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.store.store import Store


def smoke_results(path: Path, study: Study) -> StudyResults:
    """Every run, parents first, and the manifest."""
    plan = make_plan(study, "smoke", study.presets["smoke"])
    store = Store(path)
    store.create()
    for run in plan.needed:
        task = Task(run.id, run.spec, run.parent_id)
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=None, stop=lambda: False)
    manifest = plan.manifest(1, None)
    store.write_manifest(f"{study.name}-smoke", manifest)
    return StudyResults(store, study, manifest)
