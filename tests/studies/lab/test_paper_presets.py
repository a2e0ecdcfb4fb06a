"""The paper's own settings, tried on the real GPT-2 with 124 M parameters: two steps on a CPU, from a small token file.

The specs are those of the `paper` presets but for the batch, which has two windows in two parts, and a few windows to
evaluate. A step of the whole batch takes minutes on a CPU.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from halflife.studies.catalog import STUDIES
from halflife.studies.specs import TextBranch, TextRun
from tests.studies.lab.text_runs import run

SCHEDULES = STUDIES["lm-schedules"]


def specs() -> list[TextRun | TextBranch]:
    built = [arm.build(0) for arm in SCHEDULES.presets["paper"].arms]
    return [spec for spec in built if isinstance(spec, TextRun | TextBranch)]


def test_the_settings_are_the_papers() -> None:
    runs = [spec for spec in specs() if isinstance(spec, TextRun)]
    assert {(r.depth, r.heads, r.width, r.tied, r.bias, r.dropout, r.vocab_size) for r in runs} == {
        (12, 12, 768, True, False, 0.0, 50_304)
    }
    assert {(r.num_steps, r.batch_size, r.clip, r.beta1, r.beta2, r.eps) for r in runs} == {
        (50_000, 256, 1.0, 0.9, 0.95, 1e-8)
    }
    assert {(r.corpus, r.order, r.precision, r.decay_on) for r in runs} == {
        ("openwebtext", "random-offsets", "bfloat16", "nanogpt")
    }
    assert {r.context for r in runs} == {256, 1024}
    assert {r.decay for r in runs} == {"", "Decoupled(lam=0.1)", "Decoupled(lam=0.3)"}
    assert 6e-4 in {r.lr for r in runs}
    branches = [spec for spec in specs() if isinstance(spec, TextBranch) and spec.branch == "tiny-lr"]
    assert {(b.num_steps, round(b.of.lr * b.lr_factor, 9)) for b in branches} == {(10_000, 1e-5)}
    assert {b.at for b in branches} == {10_000, 20_000, 30_000, 40_000, 50_000}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.timeout(900)
@pytest.mark.parametrize("context", [256, 1024])
def test_two_steps_of_gpt2_and_of_a_branch(context: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for name, count in (("train", 60_000), ("val", 9_000)):
        rng.integers(0, 50_257, count).astype("<u2").tofile(tmp_path / f"{name}.bin")
    of = next(s for s in specs() if isinstance(s, TextRun) and s.context == context and s.keep_at and s.decay)
    # Compiling takes a minute a shape: once is enough.
    compiled = context == 256
    small = dataclasses.replace(of.cut(2), batch_size=2, accumulate=2, num_eval_tokens=2 * context, compile=compiled)
    readings, cost = run(small, tmp_path / "run", tmp_path)
    assert [reading.step for reading in readings] == [0, 2]
    assert readings[0].values["val/loss"] == pytest.approx(np.log(50_304), rel=0.02)
    assert all(np.isfinite(list(reading.values.values())).all() for reading in readings)
    assert cost["tokens_per_second"] > 0
    branch = TextBranch(of=small, at=of.keep_at[-1], branch="tiny-lr", num_steps=10_000).cut(2)
    after, _ = run(branch, tmp_path / "branch", tmp_path, parent=tmp_path / "run/kept")
    assert [reading.step for reading in after] == [0, 2]
    assert [reading.values["lr"] for reading in after] == pytest.approx([of.lr / 60, of.lr / 60])
