"""Files of users' own studies, for tests: those of the page about them, and one with a trainer of its own."""

from __future__ import annotations

import re
from pathlib import Path

from tests import ROOT

__all__ = ["WALK", "write_files"]

PAGE = ROOT / "docs" / "own_studies.md"
FILE = re.compile(r"```python\n(# ([a-z_]+\.py)\n.*?)```", re.DOTALL)

WALK = """
import random
from dataclasses import dataclass
from typing import ClassVar

from halflife.studies import Arm, Claim, Panel, Preset, Quantity, Reading, Rule, RunSpec, Study, Trainer, below, presets
from halflife.studies.store import records


@dataclass(frozen=True, kw_only=True)
class WalkRun(RunSpec):
    kind: ClassVar[str] = "walk"
    trainer: ClassVar[Trainer] = Trainer(name="walk", version=1, module=__name__)
    lam: float
    last_step: ClassVar[int] = 50


def train(spec, *, sink, progress=None, **others):
    rng, x = random.Random(spec.seed), 1.0
    for step in range(1, spec.last_step + 1):
        x = (1 - spec.lam) * x + 0.1 * rng.gauss(0, 1)
        if step % 10 == 0:
            sink(records.Reading(step=step, epoch=step / 10, values={"x/sq": x * x}))
    return {}


CHANGE = Quantity(name="x^2 with decay - without", values=Reading("decay", "x/sq") - Reading("none", "x/sq"))
PRESET = Preset(
    description="walks of 50 steps",
    budget="a second",
    arms=tuple(
        Arm(key=key, label=f"lam {lam:g}", size=1, spec=WalkRun(lam=lam)) for key, lam in (("decay", 0.5), ("none", 0.0))
    ),
    num_seeds=4,
)
WALK = Study(
    name="walk",
    title="Does decay bound a random walk?",
    source="none",
    claim="Decay bounds a random walk.",
    claims=(Claim(key="bounded", text="Decay bounds a random walk.", rule=Rule(parts=((CHANGE, below(0)),))),),
    presets=presets(smoke=PRESET, laptop=PRESET),
    panels=(Panel(metric="x/sq", title="Square of the walk", y_label="x^2"),),
)
"""


def write_files(folder: Path) -> dict[str, str]:
    """Write the files into a folder; the answer is their texts by name."""
    files = {name: text for text, name in FILE.findall(PAGE.read_text(encoding="utf-8"))} | {"walk.py": WALK}
    for name, text in files.items():
        (folder / name).write_text(text, encoding="utf-8")
    return files
