"""docs/optimizers.md: written by its tool, and true."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

import pytest

from halflife.laws import identify
from tests import ROOT
from tests.studies.tools import load_tool

TEXT = (ROOT / "docs" / "optimizers.md").read_text(encoding="utf-8")
# One of each kind: a formula, a penalty, a silent one, shapes that differ, an adapter, what cannot be probed.
SOME = [
    ("torch.optim", "AdamW", ""),
    ("torch.optim", "SGD", "momentum=0.9, nesterov=True"),
    ("torch.optim", "Muon", ""),
    ("torch.optim", "LBFGS", ""),
    ("torch-optimi", "AdamW", "decouple_lr=True"),
    ("torchao", "AdamW8bit", ""),
    ("pytorch-optimizer", "AdaBelief", "weight_decouple=True, fixed_decay=True"),
    ("pytorch-optimizer", "AdamC", "weight_decouple=True, normalized=True in the group"),
    ("pytorch-optimizer", "Grams", "weight_decouple=False"),
    ("pytorch-optimizer", "MARS", "weight_decouple=True"),
    ("pytorch-optimizer", "Muon", "weight_decouple=False, use_muon=False in the group"),
    ("pytorch-optimizer", "Adan", "weight_decouple=False"),
    ("pytorch-optimizer", "Prodigy", "weight_decouple=True"),
]


@cache
def tool() -> Any:
    return load_tool("optimizer_laws")


def section(name: str) -> list[str]:
    """The table rows of a section of the page."""
    lines = TEXT.split(f"\n## {name}\n")[1].split("\n## ")[0].splitlines()
    return [line for line in lines if line.startswith("| `")]


@pytest.mark.parametrize(("where", "name", "settings"), SOME, ids=["-".join(each[1:]) for each in SOME])
def test_rows_are_what_the_tool_writes(where: str, name: str, settings: str) -> None:
    rows = [row for row in tool().SECTIONS[where]() if (row.name, row.setting_text) == (name, settings)]
    assert len(rows) == 1
    assert tool().table_row(rows[0], identify(rows[0].make)) in section(where)


def test_every_row_is_on_the_page_in_order() -> None:
    for where, rows in tool().SECTIONS.items():
        expected = [(f"`{row.name}`", f"`{row.setting_text}`" if row.setting_text else "") for row in rows()]
        cells = [[cell.strip() for cell in line.split("|")[1:3]] for line in section(where)]
        assert [tuple(each) for each in cells] == expected, where


def test_the_page_covers_what_it_promises() -> None:
    import torch

    names = {line.split("`")[1] for line in section("torch.optim")}
    kinds = {name for name, kind in vars(torch.optim).items() if isinstance(kind, type)} - {"Optimizer"}
    assert kinds <= names
    probed = {line.split("`")[1] for line in section("pytorch-optimizer") if "| not probed |" not in line}
    assert len(probed) >= 60
    assert str(len(probed)) in TEXT


def test_every_disagreement_has_a_reproducer_and_a_true_quote() -> None:
    table = TEXT.split("## Where documentation and behaviour disagree")[1].split("###")[0]
    listed = set(re.findall(r"^\| `([\w.]+)\.(\w+)` \|", table, re.MULTILINE))
    assert listed == {name for reproducer in tool().REPRODUCERS for name in reproducer.names}
    for reproducer in tool().REPRODUCERS:
        assert reproducer.code.strip() in TEXT
        assert "halflife" not in reproducer.code
    for line in table.splitlines():
        if found := re.match(r'^\| `([\w.]+)\.(\w+)` \| .*? \| "(.*?)" \|', line):
            package, name, quote = found.groups()
            assert tool().Row(package, name).says(quote), line


def test_a_quote_that_is_not_there_is_noticed() -> None:
    assert not tool().Row("torch.optim", "AdamW").says("weight_decay (float, optional): weight decay (L2 penalty)")


def test_claims_are_compared() -> None:
    for decouple in (True, False):
        row = tool().po_row("Grams", {"weight_decouple": decouple})
        assert row.claim.agrees(identify(row.make)) is decouple
    for name, settings, agrees in [
        ("Lion", {"weight_decouple": False}, True),
        ("Adan", {"weight_decouple": False}, False),
    ]:
        row = tool().po_row(name, settings)
        assert row.claim.agrees(identify(row.make)) is agrees, name


def test_what_was_audited_elsewhere_is_on_the_page() -> None:
    assert tool().live_section() in TEXT
    assert tool().torch_optimizer_section() in TEXT
    assert tool().audited_disagreements() in TEXT
    for entry in tool().audited_entries():
        assert "halflife" not in entry["reproducer"]
        assert TEXT.count(f"(#{entry['key']})") >= 1


def test_cells_of_live_objects() -> None:
    assert tool().kept_text([0.99] * 12) == "0.886 (0.99)"
    assert tool().kept_text([1.0, 1.0, 1.0, 0.99] * 3) == "0.970 (1, 1, 1, 0.99, 1, 1, ...)"
    assert tool().kept_text([0.99, [0.5, 0.75]] + [1.0] * 10) == "0.495 to 0.742 (0.99, varied, 1, 1, 1, 1, ...)"
    assert tool().by_kind({"matrix": "a", "bias": "b", "norm": "b"}) == "matrix: a; bias, norm: b"
    assert tool().by_kind({"matrix": "a", "bias": "a"}) == "a"


@pytest.mark.slow
def test_the_whole_page_is_what_the_tool_writes() -> None:
    assert tool().without_date(tool().page("today")) == tool().without_date(TEXT)
