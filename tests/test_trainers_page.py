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
LIVE: list[dict[str, Any]] = [row for row in ROWS if "kept" in row]  # on the page on optimizers
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


def test_the_finding_is_in_sight() -> None:
    """Two columns fit on a telephone, and the second has the finding."""
    page = (ROOT / "docs" / "trainers.md").read_text(encoding="utf-8")
    heads = [line for line in page.splitlines() if line.startswith("| trainer")]
    assert len(heads) == 5
    assert {head.count("|") for head in heads} == {4}
    assert {head.split("|")[2].strip() for head in heads} == {"finding"}


# ---- wrappers, and optimizers that want more than a step


def shares(row: dict[str, Any], kind: str) -> list[float]:
    """What each call kept, where it kept the same of every weight."""
    return [each for each in row["kept"][kind] if not isinstance(each, list)]


def test_what_explain_says_of_live_objects_is_what_their_steps_did() -> None:
    assert len(LIVE) > 20
    assert [row["trainer"] for row in LIVE if False in row["agrees"].values()] == []
    assert [row["trainer"] for row in LIVE if row["said"].get("crashed")] == []
    assert [row["trainer"] for row in LIVE if not row["untouched"]] == []


def test_most_live_objects_were_probed() -> None:
    probed = [row for row in LIVE if True in row["agrees"].values()]
    assert len(probed) >= 0.7 * len(LIVE)


def test_what_the_calls_of_wrappers_keep() -> None:
    """By hand: the steps of AdamW with r = 0.01 that a wrapper lets through."""
    wrapping = {"pytorch_optimizer SAM", "sam-pytorch SAM", "Lightning Fabric setup()", "fastai OptimWrapper"}
    for row in LIVE:
        if row["trainer"] in wrapping or row["trainer"] == "torch ZeroRedundancyOptimizer":
            assert shares(row, "matrix") == pytest.approx([0.99] * 12, rel=1e-5), row["trainer"]
    accumulated = [row for row in LIVE if "gradient_accumulation_steps=4" in row["configuration"]]
    assert [shares(row, "matrix") for row in accumulated] == [pytest.approx([1.0, 1.0, 1.0, 0.99] * 3, rel=1e-5)]
    timm = [row for row in LIVE if row["trainer"] == "timm Lookahead"]
    # At the sixth call half of the way back: the slow weights are those before the first step of the cycle.
    cycle = [0.99] * 5 + [0.99 * (1 + 0.99**6) / 2 / 0.99**6]
    assert shares(timm[0], "matrix")[6:] == pytest.approx(cycle, rel=1e-5)
