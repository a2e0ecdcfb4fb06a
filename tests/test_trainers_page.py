"""The page on trainers is made from the committed findings, and these say what the page may claim."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from typing import Any

import pytest

from tests import ROOT

FOLDER = ROOT / "tools" / "trainers"
FINDINGS: dict[str, Any] = json.loads((ROOT / "results" / "trainers.json").read_text(encoding="utf-8"))
ENTRIES: list[dict[str, Any]] = tomllib.loads((FOLDER / "disagreements.toml").read_text(encoding="utf-8"))[
    "disagreement"
]
ROWS: list[dict[str, Any]] = [row for audit in FINDINGS["audits"] for row in audit["rows"]]
GROUPS: list[dict[str, Any]] = [group for row in ROWS for group in row["groups"]]


def test_the_page_is_made_from_the_findings() -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "page.py"), "check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_disagreement_was_reproduced_and_its_quotes_were_found() -> None:
    checks = {check["key"]: check for check in FINDINGS["disagreements"]}
    assert list(checks) == [entry["key"] for entry in ENTRIES]
    assert all(check["reproduced"] and not check["quotes_missing"] for check in checks.values())


def test_no_independent_check_is_against_a_law() -> None:
    assert len(GROUPS) > 100
    assert not [group for group in GROUPS if group["agrees"] is False]


def test_none_is_said_only_of_weights_that_did_not_move() -> None:
    nothing = [group for group in GROUPS if group["pathway"] == "none"]
    assert nothing
    # "two runs" are those of optimizers that are no torch optimizers; the others took a step with zero gradients.
    kinds = {group["check"]["kind"] for group in nothing}
    assert kinds <= {"nothing moved", "nothing moved, to float32", "two runs"}


def test_a_fraction_of_a_decoupled_decay_is_lr_times_lam() -> None:
    """By hand, for the rows that say so."""
    said = [group for group in GROUPS if group["law"].removesuffix(" (native)") == "decoupled: r = lr * lam"]
    assert len(said) > 20
    for group in said:
        assert group["fraction"] == pytest.approx(group["lr"] * group["weight_decay"], rel=2e-3)


def test_a_verdict_is_known_and_each_disagreement_has_its_row() -> None:
    verdicts = {row["verdict"] for row in ROWS if row.get("verdict")}
    keys = {entry["key"] for entry in ENTRIES}
    assert verdicts <= {"as documented", "not documented", *keys}
    # The others are about the choices of transformers and timm, which have tables of their own.
    assert {key for key in keys if not key.startswith(("transformers-", "timm-"))} <= verdicts


def test_enough_trainers_were_audited_without_failures() -> None:
    assert len({row["package"] for row in ROWS if row["groups"]}) >= 12
    assert [audit["case"] for audit in FINDINGS["audits"] if audit["failed"]] == []
