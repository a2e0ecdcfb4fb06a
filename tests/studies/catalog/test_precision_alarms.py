"""What the detector of divergences and the forecast of `halflife.divergence` say of stored runs that failed, and did not.

The runs are those of `results/`; whether one failed is told here from its end alone. docs/precision.md quotes the counts, which
`-s` shows. The forecast's limit came from runs of this model at 2 and 3 bits on other seeds: it is tested at the size at which
it was found.
"""

from __future__ import annotations

import tarfile
from collections import Counter
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from halflife.divergence import find_spikes, forecast
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.specs.text import TextRun
from halflife.studies.store.store import Store
from tests import ROOT

NAMES = ("bf16-divergence", "precision-threshold")
LOOKED_AT = ("score/largest", "logit/largest", "residual/rms")
FEWEST = 10  # readings of a forecast


@dataclass(frozen=True)
class Ended:
    """One stored run.

    Args:
        spec: Its spec.
        steps: Of its readings, (R,).
        losses: Training losses, means over the steps since the last reading, (R,).
        quantities: By name, of the same readings, (R,).
        final: Validation loss at the end.
        exact: That of the run in float32 with the same rate, lam and seed; ``None`` if there is none.
    """

    spec: TextRun
    steps: NDArray[np.float64]
    losses: NDArray[np.float64]
    quantities: dict[str, NDArray[np.float64]]
    final: float
    exact: float | None


def runs_of(results: StudyResults) -> list[Ended]:
    size = results.main_size
    specs: dict[str, TextRun] = {}
    for arm in results.study.presets["laptop"].arms:
        spec = results.spec(arm.key, size)
        assert isinstance(spec, TextRun)
        specs[arm.key] = spec
    finals = {key: results.last(key, "val/loss", size) for key in specs}
    exact = {setting(spec): key for key, spec in specs.items() if not spec.rounded and not spec.rounded_gradients}
    found = []
    for key, spec in specs.items():
        series = {name: results.series_by_step(key, name, size) for name in ("train/running_loss", *LOOKED_AT)}
        for seed, (steps, losses) in enumerate(series["train/running_loss"]):
            quantities = {name: series[name][seed][1] for name in LOOKED_AT}
            beside = float(finals[exact[setting(spec)]][seed]) if setting(spec) in exact else None
            found.append(Ended(spec, steps, losses, quantities, float(finals[key][seed]), beside))
    return found


def setting(spec: TextRun) -> TextRun:
    """The run in float32."""
    return replace(spec, bits=23, rounded=(), rounded_gradients=(), seed=0)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Ended]:
    folder = tmp_path_factory.mktemp("results")
    for name in NAMES:
        with tarfile.open(ROOT / "results" / f"{name}-laptop.tar.xz") as archive:
            archive.extractall(folder, filter="data")
    store = Store(folder)
    return [
        run
        for manifest in store.manifests()
        for run in runs_of(StudyResults(store, get_study(manifest["study"]), manifest))
    ]


@pytest.mark.parametrize(("window", "least"), [(3, 11), (10, 10)])
def test_the_detector_finds_losses_that_rose_and_no_others(runs: list[Ended], window: int, least: int) -> None:
    counts: Counter[tuple[bool, bool]] = Counter()
    first: Counter[str] = Counter()
    for run in runs:
        rose = bool(run.losses[-1] - run.losses.min() > 0.1)
        spikes = find_spikes(run.steps.tolist(), run.losses.tolist(), run.quantities, window=window)  # type: ignore[arg-type]
        counts[rose, bool(spikes)] += 1
        assert all(spike.diverged == rose for spike in spikes)
        if spikes:
            first[spikes[-1].first] += 1
            assert spikes[-1].began <= run.steps[int(run.losses.argmin())]
    print(f"\n{len(runs)} runs, window {window}: (rose, found) {dict(counts)}; moved first {dict(first)}")
    assert counts[False, False] + counts[True, True] + counts[True, False] == len(runs)
    assert counts[True, False] + counts[True, True] == 13
    assert counts[True, True] >= least


def test_the_forecast_is_red_where_rounding_costs(runs: list[Ended]) -> None:
    counts: Counter[tuple[str, str]] = Counter()
    for run in runs:
        if run.exact is None:
            continue
        cost = run.final - run.exact
        kind = "nothing" if cost < 0.02 else "little" if cost < 0.1 else "failed"
        steps, scores = run.steps.tolist(), run.quantities["score/largest"].tolist()
        levels = {forecast(steps[:k], scores[:k], run.spec.bits).level for k in range(FEWEST, len(steps) + 1)}
        counts[kind, "red" if "red" in levels else "amber" if "amber" in levels else "green"] += 1
    print(f"\n{dict(counts)}")
    assert counts["nothing", "red"] == 0
    assert counts["nothing", "amber"] <= 2
    assert counts["nothing", "green"] >= 80
    failed = sum(count for (kind, _), count in counts.items() if kind == "failed")
    assert failed >= 40
    assert counts["failed", "red"] >= 0.85 * failed
