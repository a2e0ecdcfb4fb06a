"""The files around the package: pins, citation, targets, and nothing that belongs to one machine."""

from __future__ import annotations

import importlib
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import halflife
from tests import ROOT

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def tracked() -> list[Path]:
    """The files that git knows; all files of the tree where there is no git, as in an unpacked sdist."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode == 0:
        paths = [ROOT / name for name in done.stdout.split("\0") if name]
    else:
        paths = [path for path in ROOT.rglob("*") if ".venv" not in path.parts]
    return [path for path in paths if path.is_file()]


def texts() -> list[tuple[Path, str]]:
    """Every tracked file that is text."""
    found = []
    for path in tracked():
        try:
            found.append((path, path.read_text(encoding="utf-8")))
        except UnicodeDecodeError:
            continue  # data, compressed
    return found


def pins() -> dict[str, Requirement]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    requirements = [Requirement(line) for line in lines if line.strip() and not line.startswith("#")]
    return {canonicalize_name(requirement.name): requirement for requirement in requirements}


def declared() -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [
        *project["dependencies"],
        *(line for extra in project["optional-dependencies"].values() for line in extra),
    ]
    own = canonicalize_name(project["name"])
    return [r for r in map(Requirement, lines) if canonicalize_name(r.name) != own]


@pytest.mark.parametrize("requirement", declared(), ids=str)
def test_every_dependency_is_pinned_within_what_is_declared(requirement: Requirement) -> None:
    pin = pins().get(canonicalize_name(requirement.name))
    assert pin is not None, f"constraints.txt does not pin {requirement.name}"
    version = re.fullmatch(r"==([\w.!+]+)", str(pin.specifier))
    assert version, f"{pin} is not an exact pin"
    assert requirement.specifier.contains(version[1], prereleases=True), f"{pin} is outside {requirement}"


def test_pins_are_sorted_and_portable() -> None:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    lines = [line for line in lines if not line.startswith("#")]
    names = [canonicalize_name(Requirement(line).name) for line in lines]
    assert names == sorted(set(names)), "one line per package, sorted by name"
    assert not [line for line in lines if "+" in line or "@" in line or line.startswith("nvidia")]
    assert "torchvision" not in pins(), "it is made for one build of torch and breaks beside another"


def test_citation() -> None:
    yaml = importlib.import_module("yaml")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["license"] == PYPROJECT["project"]["license"]
    address = citation.get("repository-code")
    assert address is None or address.startswith("https://")
    urls = PYPROJECT["project"].get("urls", {}).values()
    assert all(address is not None and url.startswith(address) for url in urls), "the address stands in CITATION.cff"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    bibtex = dict(re.findall(r"^  (\w+) = \{+(.*?)\}+,$", readme, re.MULTILINE))
    for name in ("title", "version", "license"):
        assert bibtex[name] == citation[name]
    assert bibtex["author"] == citation["authors"][0]["name"]
    assert bibtex.get("url") == address
    papers = {
        r["identifiers"][0]["value"]: (r["authors"][0]["family-names"], r["year"]) for r in citation["references"]
    }
    assert papers == {
        "arXiv:2310.04415": ("D'Angelo", 2024),
        "arXiv:2011.11152": ("Xie", 2023),
        "arXiv:2012.13841": ("Bjorck", 2021),
    }


def test_the_version_is_stated_once_and_quoted_everywhere_else() -> None:
    assert PYPROJECT["project"]["dynamic"] == ["version"]
    assert PYPROJECT["tool"]["hatch"]["version"]["path"] == "src/halflife/__init__.py"
    quoted = {
        "CITATION.cff": r"^version: (\S+)$",
        "CHANGELOG.md": r"^What (\S+) will contain\.$",
        "docs/index.md": r"The version is (\d+\.\d+\.\d+)\b",
        "docs/prove.md": r"rev: v(\S+)$",
    }
    found = {
        name: re.findall(pattern, (ROOT / name).read_text(encoding="utf-8"), re.MULTILINE)
        for name, pattern in quoted.items()
    }
    assert found == {name: [halflife.__version__] for name in quoted}


def test_licence_is_the_full_text() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert PYPROJECT["project"]["license"] == "Apache-2.0"


def test_changelog_has_a_place_for_the_next_change() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[Unreleased\]$", text, re.MULTILINE)


def test_no_path_of_one_machine() -> None:
    # Put together here, so that this file does not contain what it looks for.
    words = ["/" + "work" + "/", "/" + "root" + "/", "/" + "tmp" + "/v", "/" + "opt" + "/"]
    pattern = re.compile("|".join(rf"(?<![\w.*~{{}}-]){re.escape(word)}" for word in words))
    found = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts()
        for match in pattern.finditer(text)
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "target", ["help", "demo", "test", "test-slow", "lint", "types", "docs", "dist", "bench", "clean"]
)
def test_make_target_is_there_and_described(target: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert re.search(rf"^{target}:.* ## \S", makefile, re.MULTILINE)
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    assert target in phony[1].split()


def test_ci_runs_every_check() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run is executable"
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash")
    assert "set -euo pipefail" in text
    assert "for target in test lint types docs dist" in text
