"""A decay is checked when the spec of a run is written, without torch."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

from halflife.errors import UserError
from halflife.studies.specs import TextRun
from tests.studies.lab.text_runs import MLP


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Decoupled()", r"'Decoupled\(\)' holds Decoupled\(\) without a lam, and no group has one: give it a lam"),
        ("Cautious(Stable())", r"holds Stable\(\) without a lam"),
        ("Scheduled(Independent(), until(3))", r"holds Independent\(\) without a lam"),
        ("Decoupled(-1)", "lam must be a finite number >= 0, got -1"),
        ("Decopuled(0.1)", r"calls Decopuled, which is not known: did you mean Decoupled\?"),
        ("Cautious(L2(0.1))", "a penalty enters the gradient and removes no fraction"),
        ("0.1", "is no call"),
        (" ", "is no expression"),
    ],
)
def test_a_spec_refuses_a_decay_that_could_not_be_trained(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        replace(MLP, decay=text)


def test_the_text_of_a_spec_stays_as_it_was_written() -> None:
    """Its digest names the run."""
    for text in ("Decoupled(0.1)", "Decoupled(lam=0.1)", "HalfLife(steps=10.0, epochs=None, tokens=None)", ""):
        spec = replace(MLP, decay=text)
        assert isinstance(spec, TextRun)
        assert spec.decay == text


PROGRAM = """
import sys
from halflife.studies.catalog import STUDIES
specs = [arm.build(seed=0) for study in STUDIES.values() for preset in study.presets.values() for arm in preset.arms]
print(len(specs), sum(bool(getattr(spec, "decay", "")) for spec in specs), "torch" in sys.modules)
"""


def test_all_presets_of_all_studies_are_built_without_torch() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    built, with_decay, has_torch = done.stdout.split()
    assert int(built) > 1000
    assert int(with_decay) > 100
    assert has_torch == "False"
