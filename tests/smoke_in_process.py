"""A study's smoke preset, planned and trained as the command does, in this process."""

from __future__ import annotations

from pathlib import Path

from halflife.plan import make_plan
from halflife.store import Store
from halflife.studies.base import Study
from halflife.studies.results import Results
from halflife.worker import Task, train_run


def smoke_results(path: Path, study: Study) -> Results:
    """Every run, parents first, and the sheet."""
    plan = make_plan(study, "smoke", study.presets["smoke"])
    store = Store(path)
    store.create()
    for run in plan.needed:
        task = Task(run.id, run.spec, run.parent_id)
        train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=None, stop=lambda: False)
    sheet = plan.sheet(1, None)
    store.write_sheet(f"{study.name}-smoke", sheet)
    return Results(store, study, sheet)
