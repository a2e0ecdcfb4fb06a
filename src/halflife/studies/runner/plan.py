"""What a study's preset consists of: runs with names, and the manifest that lists them in the store."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from halflife.errors import UserError
from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.evidence.history import digests, record
from halflife.studies.lab.images.sources import DataDescription
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.machine import describe_machine, now
from halflife.studies.store.store import Store, run_id

__all__ = ["Plan", "PlannedRun", "describe_data", "make_plan", "split_missing"]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: its name, its spec, where it belongs, and the run that must be finished before it."""

    id: str
    spec: RunSpec
    arm: Arm
    seed: int
    parent_id: str | None = None
    is_only_parent: bool = False
    """Whether it belongs to no arm: only other runs start from it."""


@dataclass(frozen=True)
class Plan:
    """What a study at a preset consists of."""

    study: Study
    preset_name: str
    preset: Preset
    runs: tuple[PlannedRun, ...]
    max_steps: int | None
    command: str

    @property
    def needed(self) -> list[PlannedRun]:
        """The runs, each once however many arms share it, parents first."""
        found: dict[str, PlannedRun] = {}
        for run in self.runs:
            found.setdefault(run.id, run)
        return list(found.values())

    @property
    def num_seeds(self) -> int:
        """Seeds per configuration at the main size."""
        return len({run.seed for run in self.runs if run.arm.size == self.preset.main_size})

    def manifest(
        self, workers: int, earlier: Mapping[str, Any] | None, finished: Callable[[], int] = lambda: 0
    ) -> dict[str, Any]:
        """The manifest for the store.

        Args:
            workers: Worker processes used.
            earlier: The manifest that is there already; its start and its seconds are kept if it lists the same runs, and
                its history of claims and seeds always.
            finished: Counts the runs that are finished.

        Returns:
            JSON values.
        """
        arms: dict[tuple[str, int], dict[str, Any]] = {}
        for run in (run for run in self.runs if not run.is_only_parent):
            head = {"key": run.arm.key, "label": run.arm.label, "size": run.arm.size, "runs": {}}
            arms.setdefault((run.arm.key, run.arm.size), head)["runs"][str(run.seed)] = run.id
        manifest = {
            "study": self.study.name,
            "preset": self.preset_name,
            "main_size": self.preset.main_size,
            "max_steps": self.max_steps,
            "command": self.command,
            "started": now(),
            "seconds": 0.0,
            "claims": record(earlier, "claims", "digests", digests(self.study), at=now(), finished=finished),
            "planned_seeds": record(earlier, "planned_seeds", "seeds", self.num_seeds, at=now(), finished=finished),
            "workers": workers,
            "seeds": sorted({run.seed for run in self.runs}),
            "machine": describe_machine(),
            "arms": list(arms.values()),
        }
        if (origin := self.study.origin) is not None:
            manifest["source"] = {"file": origin.shown, "name": origin.name, "sha256": origin.sha256}
        if earlier is not None and earlier.get("arms") == manifest["arms"]:
            manifest |= {"started": earlier["started"], "seconds": earlier["seconds"]}
        return manifest


def split_missing(store: Store, runs: Sequence[PlannedRun]) -> tuple[list[PlannedRun], list[PlannedRun]]:
    """The runs that are still to be done, and those that a divergence has ended: trained again, it would diverge again.

    Args:
        store: The store.
        runs: Each once, parents first.

    Returns:
        Those to do, in their order, and those that diverged with all that would start from them.
    """
    missing, lost = [], []
    ended: set[str] = set()
    for run in runs:
        folder = store.run(run.id)
        if folder.finished:
            continue
        if folder.diverged or run.parent_id in ended:
            ended.add(run.id)
            lost.append(run)
        else:
            missing.append(run)
    return missing, lost


def make_plan(
    study: Study,
    preset_name: str,
    preset: Preset,
    *,
    num_seeds: int | None = None,
    max_steps: int | None = None,
    data_folder: str | None = None,
) -> Plan:
    """The runs of a study at a preset, the main size first, seed by seed, so that an early stop leaves whole seeds.

    Args:
        study: The study.
        preset_name: The preset's name.
        preset: The preset.
        num_seeds: Seeds per arm instead of the preset's, at every size.
        max_steps: Cut every run at so many steps, for trying.
        data_folder: Where a data set that is not shipped lies.

    Returns:
        The plan.

    Raises:
        UserError: A number of seeds or steps below 1, or data that cannot be read.
    """
    if num_seeds is not None and num_seeds < 1:
        raise UserError(f"--seeds is {num_seeds}, expected an integer >= 1: a verdict needs at least 2")
    runs: list[PlannedRun] = []
    arms = sorted(preset.arms, key=lambda arm: arm.size != preset.main_size)
    for size in dict.fromkeys(arm.size for arm in arms):
        planned = preset.num_seeds if size == preset.main_size else preset.num_ladder_seeds
        for seed in range(num_seeds if num_seeds is not None else planned):
            for arm in arms:
                if arm.size == size:
                    runs += _with_parents(arm.build(seed).cut(max_steps), arm, seed, data_folder)
    options = "" if num_seeds is None else f" --seeds {num_seeds}"
    options += "" if max_steps is None else f" --max-steps {max_steps}"
    name = study.name if study.origin is None else study.origin.reference
    command = f"halflife study run {name} --preset {preset_name}{options}"
    return Plan(study, preset_name, preset, tuple(runs), max_steps, command)


def _with_parents(spec: RunSpec, arm: Arm, seed: int, data_folder: str | None) -> Iterator[PlannedRun]:
    """A run, after the runs that it starts from."""
    parent_id = None
    if spec.parent is not None:
        *_, parent = found = list(_with_parents(spec.parent, arm, seed, data_folder))
        parent_id = parent.id
        yield from (replace(run, is_only_parent=True) for run in found)
    identity = run_id(spec.digest(), str(spec.trainer), describe_data(spec, data_folder).sha256)
    yield PlannedRun(identity, spec, arm, seed, parent_id)


def describe_data(spec: RunSpec, data_folder: str | None) -> DataDescription:
    """What a run is trained on: name, title and digest, which is empty where nothing is read."""
    if not spec.data_module:
        return DataDescription("none", "none", "")
    description: DataDescription = importlib.import_module(spec.data_module).describe(spec, data_folder)
    return description
