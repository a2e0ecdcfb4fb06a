"""A run's identity changes with the code that it executes, and with nothing else."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from halflife import fingerprint
from halflife.fingerprint import code_digest, imported_modules, stripped_source

ENTRY = "halflife.lab.images"

SAME = [
    ("x = 1", "x = 1  # a comment"),
    ("def f():\n    return 1", 'def f():\n    """Say what."""\n    return 1'),
    ("class A:\n    x: int = 1", 'class A:\n    """Say."""\n\n    x: int = 1\n    """A field."""'),
    ("f(a, b)", "f(\n    a,\n    b,\n)"),
    ("def f(): pass", 'def f():\n    "only a docstring"'),
]
OTHER = [
    ("x = 1", "x = 2"),
    ("x = 'a'", "x = 'b'"),
    ("f('text')", "f('other')"),
    ("def f():\n    return 1", "def f():\n    return 2"),
    ("if a:\n    b\nc", "if a:\n    b\n    c"),
]


@pytest.mark.parametrize(("one", "two"), SAME)
def test_words_and_layout_do_not_count(one: str, two: str) -> None:
    assert stripped_source(one) == stripped_source(two)


@pytest.mark.parametrize(("one", "two"), OTHER)
def test_code_counts(one: str, two: str) -> None:
    assert stripped_source(one) != stripped_source(two)


def test_the_trainer_and_all_that_it_imports_are_covered() -> None:
    found = imported_modules(ENTRY)
    # What python really loads for the trainer, evidence and joint modules aside, is what was found by reading.
    program = f"import {ENTRY}, sys; print(*(m for m in sys.modules if m.startswith('halflife.')))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    packages = {name for name in loaded if (Path(fingerprint.__file__).parent / name.partition(".")[2]).is_dir()}
    # What packages forward beside what is used: other rules, and other specs with what these check themselves with.
    forwarded = {
        name for name in loaded if name.startswith(("halflife.rules.", "halflife.specs.", "halflife.schedules."))
    }
    assert set(loaded) - packages - forwarded <= set(found) | {"halflife.schedules", "halflife.expressions"}
    assert {ENTRY, "halflife.attach", "halflife.rules.basic", "halflife.specs.images", "halflife.lab.models"} <= set(
        found
    )
    assert not {"halflife.cli", "halflife.store", "halflife.studies", "halflife.runner"} & set(found)


def test_an_unrelated_module_does_not_change_the_digest_and_a_used_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "toy"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "train.py").write_text("from toy import used\nfrom toy.other import name\n")
    (package / "used.py").write_text("x = 1\n")
    (package / "other.py").write_text("def name():\n    from toy.deep import y\n    return y\n")
    (package / "deep.py").write_text("y = 1\n")
    (package / "apart.py").write_text("z = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(fingerprint, "PACKAGE", "toy")

    def digest() -> str:
        code_digest.cache_clear()
        return code_digest("toy.train")

    assert imported_modules("toy.train") == ["toy.deep", "toy.other", "toy.train", "toy.used"]
    before = digest()
    (package / "apart.py").write_text("z = 2\n")
    (package / "used.py").write_text('"""Words."""\nx = 1  # more words\n')
    assert digest() == before
    for name, text in (("used", "x = 2\n"), ("deep", "y = 2\n")):
        (package / f"{name}.py").write_text(textwrap.dedent(text))
        after = digest()
        assert after != before
        before = after
    with pytest.raises(ModuleNotFoundError, match=r"no module toy\.gone"):
        code_digest("toy.gone")
    code_digest.cache_clear()
