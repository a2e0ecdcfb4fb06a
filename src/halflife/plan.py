"""What a study's preset consists of: runs with names, and the sheet that lists them in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from halflife.errors import UserError
from halflife.fingerprint import code_digest
from halflife.lab.sources import data_digest
from halflife.machine import describe_machine, now
from halflife.specs.base import RunSpec
from halflife.specs.images import ImageRun
from halflife.store import run_id
from halflife.studies.base import Arm, Preset, Study

__all__ = ["Plan", "PlannedRun", "make_plan"]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a plan: its name, its spec and where it belongs."""

    id: str
    spec: RunSpec
    arm: Arm
    seed: int


@dataclass(frozen=True)
class Plan:
    """What a study at a preset consists of."""

    study: Study
    preset_name: str
    preset: Preset
    runs: tuple[PlannedRun, ...]
    max_steps: int | None
    command: str

    def sheet(self, workers: int, earlier: Mapping[str, Any] | None) -> dict[str, Any]:
        """The study's sheet for the store.

        Args:
            workers: Worker processes used.
            earlier: The sheet that is there already; its start and its seconds are kept if it lists the same runs.

        Returns:
            JSON values.
        """
        arms: dict[tuple[str, int], dict[str, Any]] = {}
        for run in self.runs:
            head = {"key": run.arm.key, "label": run.arm.label, "size": run.arm.size, "runs": {}}
            arms.setdefault((run.arm.key, run.arm.size), head)["runs"][str(run.seed)] = run.id
        sheet = {
            "study": self.study.name,
            "preset": self.preset_name,
            "main_size": self.preset.main_size,
            "max_steps": self.max_steps,
            "command": self.command,
            "started": now(),
            "seconds": 0.0,
            "workers": workers,
            "seeds": sorted({run.seed for run in self.runs}),
            "machine": describe_machine(),
            "arms": list(arms.values()),
        }
        if earlier is not None and earlier.get("arms") == sheet["arms"]:
            sheet |= {"started": earlier["started"], "seconds": earlier["seconds"]}
        return sheet


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
    runs = []
    arms = sorted(preset.arms, key=lambda arm: arm.size != preset.main_size)
    for size in dict.fromkeys(arm.size for arm in arms):
        planned = preset.num_seeds if size == preset.main_size else preset.num_ladder_seeds
        for seed in range(num_seeds if num_seeds is not None else planned):
            for arm in arms:
                if arm.size == size:
                    spec = replace(arm.build(seed), max_steps=max_steps)
                    runs.append(PlannedRun(_identity(spec, data_folder), spec, arm, seed))
    options = "" if num_seeds is None else f" --seeds {num_seeds}"
    options += "" if max_steps is None else f" --max-steps {max_steps}"
    command = f"halflife study run {study.name} --preset {preset_name}{options}"
    return Plan(study, preset_name, preset, tuple(runs), max_steps, command)


def _identity(spec: RunSpec, data_folder: str | None) -> str:
    assert isinstance(spec, ImageRun)
    return run_id(spec.digest(), code_digest(spec.trainer), data_digest(spec.data, data_folder))
