"""A made-up study of language models with its store: steps, branches, blocks of tokens, points, published numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.studies.evidence.claims import (
    Arm,
    Cell,
    Claim,
    HeatPanel,
    Panel,
    PointRow,
    PointsPanel,
    Preset,
    Published,
    Rule,
    Study,
)
from halflife.studies.evidence.quantities import Best, Quantity
from halflife.studies.evidence.quantities import Reading as ReadingOf
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval
from halflife.studies.evidence.tests import below
from halflife.studies.specs.base import RunSpec
from halflife.studies.specs.branches import TextBranch
from halflife.studies.specs.text import TextRun
from halflife.studies.store.records import Array, Reading
from halflife.studies.store.store import Store, run_id

LAMS = (0.0, 0.1, 0.3)
RATES = (0.002, 0.006)
WIDTHS = (16, 32)
STEPS, EVERY, LOG = 40_000, 8_000, 2_000
AT = (16_000, 32_000)
BRANCH_STEPS = 1_000
BLOCKS = 16
TEXT_DATA = {"name": "python-source", "title": "Python sources, 120 MB", "sha256": "7e87" * 16}
FINAL = {0.0: 2.10, 0.1: 2.08, 0.3: 2.085}


def run_of(seed: int, *, lam: float, lr: float, width: int) -> TextRun:
    return TextRun(
        seed=seed,
        context=16,
        width=width,
        depth=2,
        lr=lr,
        decay=f"Decoupled(lam={lam:g})" if lam else "",
        num_steps=STEPS,
        batch_size=64,
        eval_every=EVERY,
        log_every=LOG,
        keep_at=AT,
    )


def branch_of(seed: int, *, lam: float, at: int, width: int) -> TextBranch:
    parent = run_of(seed, lam=lam, lr=RATES[1], width=width)
    return TextBranch(seed=seed, of=parent, at=at, branch="tiny-lr", num_steps=BRANCH_STEPS)


def name_of(lam: float, lr: float) -> str:
    return f"lr{lr:g}-lam{lam:g}"


def arms_of(widths: tuple[int, ...]) -> tuple[Arm, ...]:
    arms = []
    for width in widths:
        for lr in RATES:
            for lam in LAMS:
                spec: RunSpec = run_of(0, lam=lam, lr=lr, width=width)
                arms.append(Arm(key=name_of(lam, lr), label=f"lr {lr:g}, lam {lam:g}", size=width, spec=spec))
        for at in AT:
            for lam in LAMS:
                spec = branch_of(0, lam=lam, at=at, width=width)
                arms.append(
                    Arm(
                        key=f"tiny-{at}-lam{lam:g}",
                        label=f"tiny lr from step {at:,}, lam {lam:g}",
                        size=width,
                        spec=spec,
                    )
                )
    return tuple(arms)


DECAY_HELPS = Quantity(
    name="final validation loss with decay - without",
    values=ReadingOf(name_of(0.1, RATES[1]), "val/loss_blocks") - ReadingOf(name_of(0.0, RATES[1]), "val/loss_blocks"),
    unit="nats",
    examples="blocks",
)


def change_of_the_best(results: Results, size: int) -> NDArray[np.float64]:
    with_decay, without = (Best([name_of(lam, lr) for lr in RATES], "val/loss")(results, size) for lam in (0.1, 0.0))
    return np.asarray(100 * (with_decay / without - 1))


def sweep(results: Results) -> list[PointRow]:
    rows = []
    for lr in RATES:
        for lam in LAMS:
            interval = seed_interval(results.last(name_of(lam, lr), "val/loss", results.main_size))
            rows.append(PointRow(f"lr {lr:g}", max(lam, 0.01), interval.estimate, interval.low, interval.high))
    rows += [PointRow("fitted minimum", x, 2.08 + 0.01 * np.log(x / 0.1) ** 2, style="line") for x in (0.01, 0.1, 0.3)]
    return rows


def grid(results: Results) -> list[Cell]:
    """A grid with a hole: the small rate was not run with the large decay."""
    return [
        Cell(lam, lr, float(results.last(name_of(lam, lr), "val/loss", results.main_size).mean()))
        for lr in RATES
        for lam in LAMS
        if (lam, lr) != (LAMS[-1], RATES[0])
    ]


def plane(results: Results) -> list[PointRow]:
    """Two classes, three points above each other, and a boundary that turns back."""
    rows = [PointRow("class 0", x, y) for x, y in ((-1.0, -1.0), (-1.0, 0.0), (-1.0, 1.0), (0.5, -2.0))]
    rows += [PointRow("class 1", x, y) for x, y in ((1.0, 1.0), (2.0, 0.5), (1.5, 2.0))]
    turns = ((0.0, -2.0), (0.4, -0.5), (0.2, 0.5), (0.6, 2.0))
    return rows + [PointRow("boundary", x, y, style="path") for x, y in turns]


TEXT_STUDY = Study(
    name="made-up-lm",
    title="Made-up study of language models",
    source="Nobody et al. 2024 (arXiv 2310.04415), section 3",
    claim="Weight decay acts through the effective learning rate.",
    claims=(
        Claim(key="a", text="Decay lowers the final validation loss.", rule=Rule(parts=((DECAY_HELPS, below(0)),))),
        Claim(
            key="b",
            text="Decay lowers the final validation loss, each side at its best learning rate.",
            rule=Rule(
                parts=(
                    (
                        Quantity(name="change of the loss, best against best", values=change_of_the_best, unit="%"),
                        below(0),
                    ),
                )
            ),
        ),
    ),
    presets={
        "laptop": Preset(
            description="widths 16 and 32",
            budget="minutes",
            arms=arms_of(WIDTHS),
            num_seeds=3,
            main_size=32,
            num_ladder_seeds=2,
        )
    },
    panels=(
        Panel(
            metric="val/loss",
            title="Validation loss",
            y_label="validation loss (nats per token)",
            x="step",
            arms=tuple(name_of(lam, lr) for lr in RATES for lam in LAMS),
            source_figure="figure 5",
            start=0.35,
        ),
        Panel(
            metric="val/loss",
            title="Validation loss of the branches",
            y_label="validation loss (nats per token)",
            x="step",
            arms=tuple(f"tiny-{at}-lam{lam:g}" for at in AT for lam in LAMS),
            slug="branches",
            note="Steps count from the checkpoint.",
        ),
        Panel(
            metric="train/running_loss", title="Every arm", y_label="training loss (nats per token)", x="step", log=True
        ),
        PointsPanel(
            slug="sweep",
            title="Final loss against decay",
            x_label="lam",
            y_label="final validation loss (nats per token)",
            rows=sweep,
            log_x=True,
            note="Mean with 95 % interval over seeds.",
            source_figure="figure 6",
        ),
        HeatPanel(
            slug="grid",
            title="Final loss over learning rate and decay",
            x_label="lam",
            y_label="learning rate",
            value_label="final validation loss (nats per token)",
            cells=grid,
            source_figure="figure 3",
            note="Means over seeds.",
        ),
        PointsPanel(
            slug="plane",
            title="Two classes and a boundary",
            x_label="first feature",
            y_label="second feature",
            rows=plane,
            equal=True,
            note="Made up.",
        ),
    ),
    published=(
        Published(
            quantity="change of the final validation loss by lam 0.1 (nats)",
            published="about -0.02",
            where="figure 5",
            how="fig-read",
            ours=lambda r: f"{DECAY_HELPS.interval(r, r.main_size, 0.95).estimate:+.4f} nats",
        ),
        Published(quantity="parameters", published="124 M", where="section 3", how="text", ours=lambda r: "31,264"),
    ),
    doc_panels=("sweep", "branches"),
)


def readings_of(spec: RunSpec) -> list[Reading]:
    """A loss that falls with the steps; decay holds it up until the end, a branch falls at once."""
    run = spec.of if isinstance(spec, TextBranch) else spec
    assert isinstance(run, TextRun)
    lam = float(run.decay[14:-1]) if run.decay else 0.0
    at = spec.at if isinstance(spec, TextBranch) else 0
    rng = np.random.default_rng([run.seed, round(1000 * lam), round(1e4 * run.lr), run.width, at])
    hardness_N = np.random.default_rng(3).normal(0, 0.05, BLOCKS)
    end, log, every = (BRANCH_STEPS, 500, 500) if at else (STEPS, LOG, EVERY)
    level = FINAL[lam] + 0.3 / run.width**0.5 + (0.01 if run.lr < 0.005 else 0.0) + 0.003 * rng.standard_normal()
    out = []
    for step in range(0, end + 1, log):
        part = step / end
        fall = 2.5 * np.exp(-8 * part) + 0.3 * lam * (1 - part) if not at else 0.1 * np.exp(-5 * part)
        loss = float(level + fall + 0.002 * rng.standard_normal())
        values = {"lr": run.lr, "weight_norm": 30 * (1 - lam * part)}
        arrays = {}
        if step:
            values["train/running_loss"] = loss - 0.01
        if step % every == 0 or step == end:
            blocks_N = loss + hardness_N + 0.002 * rng.standard_normal(BLOCKS)
            values |= {"val/loss": float(blocks_N.mean()), "train/loss": loss - 0.01}
            if step in {*AT, end}:
                arrays["val/loss_blocks"] = Array("<f4", BLOCKS, blocks_N.astype("<f4").tobytes())
        out.append(Reading(step=step, epoch=step / STEPS, values=values, arrays=arrays))
    return out


def make_text_store(
    path: Path,
    *,
    num_seeds: int = 3,
    change: Callable[[str, RunSpec, list[Reading]], list[Reading]] = lambda key, spec, readings: readings,
    status: Callable[[str, int, int], str] = lambda key, seed, size: "finished",
    **manifest: Any,
) -> Store:
    """Write a store of `TEXT_STUDY`.

    ``change(key, spec, readings)`` replaces the readings of a run, ``status(key, seed, size)`` is what its header says
    (``"absent"``: never started), ``manifest`` overrides keys of the manifest.
    """
    store = Store(path)
    store.create()
    preset = TEXT_STUDY.presets["laptop"]
    arms = []
    for arm in preset.arms:
        runs = {}
        for seed in range(num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds):
            spec = arm.build(seed)
            runs[str(seed)] = identity = run_id(spec.digest(), str(spec.trainer), TEXT_DATA["sha256"])
            found = status(arm.key, seed, arm.size)
            if found == "absent":
                continue
            folder = store.run(identity)
            header: dict[str, Any] = {
                "id": identity,
                "status": found,
                "spec": spec.to_json(),
                "spec_digest": spec.digest(),
                "trainer": {"name": "text", "version": 1},
                "data": TEXT_DATA,
                "versions": {"halflife": "0.1.0", "torch": "2.13.0"},
                "machine": {"cores": 2, "processor": "Some processor"},
                "seconds": 28.4,
                "cost": {
                    "training_seconds": 20.0,
                    "tokens_per_second": 51_234.5 + seed,
                    "peak_memory_mb": 400.0 + seed,
                },
            }
            if spec.parent is not None:
                header["parent"] = run_id(spec.parent.digest(), str(spec.parent.trainer), TEXT_DATA["sha256"])
            folder.write_header(header)
            readings = change(arm.key, spec, readings_of(spec))
            (folder.path / "readings.jsonl").write_text("".join(reading.to_line() + "\n" for reading in readings))
        arms.append({"key": arm.key, "label": arm.label, "size": arm.size, "runs": runs})
    content = {
        "study": TEXT_STUDY.name,
        "preset": "laptop",
        "main_size": preset.main_size,
        "max_steps": None,
        "command": "halflife study run made-up-lm --preset laptop",
        "started": "2025-01-02T03:04:05+00:00",
        "seconds": 372.4,
        "workers": 2,
        "machine": {"cores": 2, "processor": "Some processor"},
        "arms": arms,
    }
    store.write_manifest("made-up-lm-laptop", content | manifest)
    return store
