"""A study of one run and what starts from it, made for tests; as a script it runs the study in a store.

python -m tests.studies.runner.branch_study STORE CORPUS NUM_STEPS
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from halflife.studies.evidence.claims import Arm, Preset, Study
from halflife.studies.runner.plan import Plan, make_plan
from halflife.studies.runner.pool import Event, execute
from halflife.studies.specs import RunSpec, TextBranch, TextReplay, TextRun
from halflife.studies.store.store import Store
from tests.studies.lab.text_runs import MLP


def parent(seed: int, num_steps: int, lr: float = 2e-2) -> TextRun:
    return dataclasses.replace(
        MLP,
        decay="" if lr > 1 else MLP.decay,
        seed=seed,
        lr=lr,
        num_steps=num_steps,
        keep_at=(num_steps,),
        trace_norms=True,
        lr_schedule="constant(1.0)",
    )


def plan_of(corpus: str, num_steps: int = 40, lr: float = 2e-2) -> Plan:
    """A branch, listed before its parent; the parent; and a replay of a parent that is no arm itself."""

    def arm(key: str, spec: RunSpec) -> Arm:
        return Arm(key=key, label=key, size=12, spec=spec)

    arms = (
        arm("branch", TextBranch(of=parent(0, num_steps, lr), at=num_steps, branch="tiny-lr", num_steps=5)),
        arm("parent", parent(0, num_steps, lr)),
        arm("replay", TextReplay(of=parent(0, num_steps, lr / 2), match="global")),
    )
    preset = Preset(description="tests", budget="seconds", arms=arms, num_seeds=2, main_size=12)
    study = Study(
        name="family", title="Runs from runs", source="", claim="", claims=(), presets={"smoke": preset}, panels=()
    )
    return make_plan(study, "smoke", preset, data_folder=corpus)


def carry_out(store: Store, plan: Plan, corpus: str, listen: Callable[[Event], None], workers: int = 2) -> list[str]:
    missing = [run for run in plan.needed if not store.run(run.id).finished]
    with store.locked():
        return execute(store, plan, missing, workers=workers, listen=listen, data_folder=corpus)


if __name__ == "__main__":
    folder, text, steps = sys.argv[1:]

    def say(event: Event) -> None:
        print(event.what, event.step, flush=True)

    try:
        sys.exit(len(carry_out(Store(folder), plan_of(text, int(steps)), text, say, workers=1)))
    except KeyboardInterrupt:
        sys.exit(130)
