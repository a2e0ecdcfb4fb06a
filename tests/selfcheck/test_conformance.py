"""The conformance table: every rule on every optimizer of torch, and that the table notices what is wrong."""

from __future__ import annotations

import dataclasses
import gc
import inspect
import json
import re
import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from halflife.cli.main import app, main
from halflife.cli.selfcheck import _codes
from halflife.errors import UserError
from halflife.optim import apply
from halflife.optim.attaching import attach
from halflife.rules import Constant, Decoupled
from halflife.rules.registry import part_classes
from halflife.selfcheck import bad_inputs, table
from halflife.selfcheck.optimizers import FORMS, OPTIMIZERS, OptimizerCase, Variant, variants
from halflife.selfcheck.problem import LAM, Net
from halflife.selfcheck.references import Reference
from halflife.selfcheck.rules import RULES, RuleCase
from halflife.selfcheck.table import FAMILIES, Case, Report, cell_of, plan, run_table
from halflife.selfcheck.twin import DTYPES, Outcome, run_case, train_with_twin
from tests import ROOT, needs_muon
from tests.studies.tools import load_tool

VARIANTS = list(variants())
by_name: Callable[[Any], str] = lambda case: case.name  # noqa: E731  # a short name for pytest's ids


def check(cases: list[Case]) -> None:
    wrong = [outcome for case in cases if (outcome := run_case(*case)).status == "FAILED"]
    assert not wrong, "\n".join(f"{each.rule} on {each.optimizer}, {each.dtype}: {each.detail}" for each in wrong)


FIRST = [variant for variant in VARIANTS if variant.form in {"", variant.case.forms[0]}]
FUSED = [variant for variant in VARIANTS if variant.name in {"AdamW (fused)", "SGD, momentum (fused)"}]


@pytest.mark.parametrize("variant", FIRST + FUSED, ids=by_name)
def test_every_rule_in_float32(variant: Variant) -> None:
    """A formula differs from another in a number only: in the further forms of an optimizer, three show the way."""
    check([(rule, variant, torch.float32) for rule in RULES if rule.everywhere or variant in FIRST])


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("variant", FUSED + FIRST[::4], ids=by_name)
def test_the_rules_in_other_precisions(variant: Variant, dtype: torch.dtype) -> None:
    check([(rule, variant, dtype) for rule in RULES if rule.everywhere])


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS, ids=by_name)
def test_the_whole_table(variant: Variant) -> None:
    check([case for case in plan() if case[1] == variant])


# ---- the table is complete


def test_every_optimizer_of_torch_is_there() -> None:
    found = {
        kind
        for kind in vars(torch.optim).values()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    }
    assert {case.kind for case in OPTIMIZERS} == found


def test_every_rule_is_there() -> None:
    assert set(part_classes()) == {family.split("(")[0] for family in FAMILIES}
    made = {type(part) for case in RULES for part in case.make(Net().named).parts()}
    assert made == set(part_classes().values())


@pytest.mark.parametrize("case", OPTIMIZERS, ids=by_name)
def test_every_form_that_torch_offers_is_there(case: OptimizerCase) -> None:
    """On a CPU; the capturable form is for accelerators."""
    offered = set()
    for form in ("for-loop", "foreach", "fused"):
        variant = Variant(case, form)
        try:
            net = Net(variant.layout)
            optimizer = variant.make(net.groups())
            net.set_gradients(0)
            optimizer.step((lambda: 1.0) if case.closure else None)
        except (TypeError, RuntimeError):
            continue
        offered.add(form)
    assert offered == set(case.forms) - {"", "capturable"}


def test_capturable_forms_are_for_accelerators() -> None:
    """The names of the forms are arguments that torch has."""
    on_gpu = list(variants("cuda"))
    assert {each.form for each in on_gpu} == set(FORMS)
    assert {each.case.name for each in on_gpu} == {each.case.name for each in VARIANTS}
    for each in on_gpu:
        assert FORMS[each.form].keys() <= inspect.signature(each.case.kind).parameters.keys()


@pytest.mark.parametrize("variant", VARIANTS, ids=by_name)
def test_which_optimizers_decay_natively(variant: Variant) -> None:
    made = variant.make(Net(variant.layout).groups(variant.case.per_group))
    assert apply.applies_natively(made, made.param_groups[0]) is variant.native


def test_names_are_distinct() -> None:
    for names in ([case.name for case in RULES], [case.name for case in OPTIMIZERS], [v.name for v in VARIANTS]):
        assert len(set(names)) == len(names)
    assert len({case.name for case in bad_inputs.BAD_INPUTS}) == len(bad_inputs.BAD_INPUTS)


# ---- the table notices


def outcome_of(case: RuleCase, variant: Variant, dtype: torch.dtype, **changes: Any) -> Outcome:
    return run_case(dataclasses.replace(case, **changes), variant, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", ["AdamW (foreach)", "Adam (for-loop)", "SGD, momentum (fused)", "Adafactor (foreach)"])
def test_a_rule_under_the_reference_of_another_fails(name: str, dtype: torch.dtype) -> None:
    """The next but one is near it: decoupled and independent, norm targets and a sphere."""
    variant = next(each for each in VARIANTS if each.name == name)
    cases = [case for case in RULES if case.refused(variant.case) is None and (case.everywhere or dtype.itemsize > 2)]
    for case, other in zip(cases, [*cases[2:], *cases[:2]], strict=True):
        if dtype == torch.bfloat16 and case.name == "norm target, first":
            continue  # one step changes the norms of the tensors by less than its rounding
        outcome = outcome_of(case, variant, dtype, reference=other.reference)
        assert outcome.status == "FAILED", f"{case.name} passes as {other.name}"


def test_a_rule_that_does_nothing_fails() -> None:
    for case in RULES:
        if case.refused(VARIANTS[0].case) is None:
            outcome = outcome_of(case, VARIANTS[0], torch.float32, reference=lambda net, optimizer: Reference())
            assert outcome.status == "FAILED", case.name
            assert outcome.error > 10


def test_a_missing_and_a_needless_refusal_fail() -> None:
    case = RULES[0]
    outcome = outcome_of(case, VARIANTS[0], torch.float32, refused=lambda optimizer: "not on Sundays")
    assert (outcome.status, outcome.detail) == ("FAILED", "not refused, expected: not on Sundays")
    refusing = outcome_of(case, VARIANTS[0], torch.float32, make=lambda named: Decoupled(100.0))
    assert refusing.status == "FAILED"
    assert refusing.detail.startswith("refused: Decoupled(lam=100.0) asks to remove the fraction")
    broken = outcome_of(case, VARIANTS[0], torch.float32, make=lambda named: 1 / 0)
    assert (broken.status, broken.detail) == ("FAILED", "ZeroDivisionError: division by zero")


def test_a_bare_optimizer_that_breaks_is_told_apart() -> None:
    case = dataclasses.replace(OPTIMIZERS[0], settings={"eps": 0.0})  # 0 / 0 where the gradient is 0
    outcome = run_case(RULES[0], Variant(case, "for-loop"), torch.float32)
    assert outcome.detail == "FloatingPointError: the bare optimizer made a weight that is not finite"


def test_bad_inputs_that_are_accepted_are_noticed() -> None:
    answers = [
        bad_inputs.answer(bad_inputs.BadInput("fine", lambda: None, "never")),
        bad_inputs.answer(bad_inputs.BadInput("other", lambda: Constant(2.0), "never")),
        bad_inputs.answer(bad_inputs.BadInput("crash", lambda: 1 / 0, "never")),
    ]
    assert answers[0] == "not refused, expected: never"
    assert str(answers[1]).startswith("another sentence: the lam of Constant is a fraction")
    assert answers[2] == "ZeroDivisionError: division by zero"


def test_in_a_step_notices_a_touched_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    made = bad_inputs.toy

    def meddled(*args: Any, **settings: Any) -> Any:
        weight, optimizer = made(*args, **settings)

        def touch_and_refuse(*args: Any) -> None:
            weight.data.mul_(0.5)
            raise UserError("no")

        optimizer.register_step_pre_hook(touch_and_refuse)
        return weight, optimizer

    monkeypatch.setattr(bad_inputs, "toy", meddled)
    with warnings.catch_warnings(record=True) as told:  # the hook moved the weights before the rule's turn
        warnings.simplefilter("always")
        with pytest.raises(AssertionError, match="a refused step touched a weight"):
            bad_inputs.in_a_step(Decoupled(0.1))
        gc.collect()  # it is told when the optimizer goes
    assert any("have moved since attach" in str(each.message) for each in told)


def test_a_net_has_every_kind_of_parameter() -> None:
    net = Net()
    presence = [[step[index] is not None for step in net.all_gradients] for index in range(len(net.members))]
    kinds = [member.kind for member in net.members]
    for kind, present in zip(kinds, presence, strict=True):
        assert {"used": all(present), "frozen": not any(present), "idle": not any(present)}.get(kind, True)
        if kind == "sometimes":
            assert not present[0]
            assert set(present) == {True, False}
    assert net.own == (LAM, LAM, 0.0)
    assert all(value.view(-1)[-1] == 0.0 for value in net.values())


# ---- reports


def test_the_cells_of_a_table() -> None:
    rule, other = (case for case in RULES if case.family == "Corrected")

    def outcome(status: str, name: str = rule.name, optimizer: str = "SGD (foreach)") -> Outcome:
        return Outcome(name, optimizer, "float32", status)

    ok, refused, failed = outcome("ok"), outcome("refused", other.name), outcome("FAILED")
    assert cell_of([], "SGD", "Corrected") == ""
    assert cell_of([ok], "SGD", "Corrected") == "ok"
    assert cell_of([ok, refused], "SGD", "Corrected") == "ok"
    assert cell_of([refused], "SGD", "Corrected") == "refused"
    assert cell_of([ok, failed], "SGD", "Corrected") == "FAILED"
    assert cell_of([failed], "SGD, momentum", "Corrected") == ""
    assert cell_of([failed], "SGD", "Decoupled") == ""


def test_a_report_holds_or_not() -> None:
    fine = Outcome("a", "b", "float32", "ok", 0.5)
    assert Report("cpu", [fine]).holds
    assert not Report("cpu", [fine], {"x": "not refused"}).holds
    assert not Report("cpu", [fine, dataclasses.replace(fine, status="FAILED")]).holds


@needs_muon
def test_running_a_part_of_the_table() -> None:
    heard: list[Outcome] = []
    cases = [case for case in plan(quick=True) if case[1].case.name == "Muon"]
    assert [rule.family for rule, _, _ in cases] == list({rule.family: 0 for rule, _, _ in cases})
    assert len(cases) == len(FAMILIES)
    report = run_table(cases, listen=heard.append)
    assert report.outcomes == heard
    assert report.holds
    assert report.num_bad_inputs == len(bad_inputs.BAD_INPUTS)
    assert cell_of(report.outcomes, "Muon", "Decoupled") == "ok"
    assert cell_of(report.outcomes, "Muon", "Stable") == "refused"


def test_a_device_without_float64_is_not_asked_for_it() -> None:
    assert torch.float64 not in {dtype for _, _, dtype in plan("mps")}
    assert {dtype for _, _, dtype in plan()} == set(DTYPES)


# ---- waiting for a device, without one


class SyncMode:
    """Stands for torch's switch: 0 lets operations wait, 1 warns, 2 raises."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.mode: Any = 0
        monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: self.mode)
        monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: setattr(self, "mode", mode))

    def wait(self, *args: Any) -> None:
        """What an operation does that waits."""
        if self.mode == "warn":
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        if self.mode == "error":
            raise RuntimeError("called a synchronizing CUDA operation")


@pytest.mark.parametrize("who", ["nobody", "bare", "attached"])
def test_who_waits_for_the_device(who: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule's fault only if the bare optimizer does not wait by itself; looked for where gradients are the same."""
    sync = SyncMode(monkeypatch)
    rule, variant = RULES[0], VARIANTS[0]
    pairs = []
    for name in ("attached", "bare"):
        net = Net(own=(3.0, 3.0, 0.0))
        net.device = torch.device("cuda")  # the twin asks for no more than the name
        optimizer = variant.make(net.groups())
        if who in {name, "bare"}:
            optimizer.register_step_pre_hook(sync.wait)
        if name == "bare":
            for group in optimizer.param_groups:
                group["weight_decay"] = 0.0
        pairs.append((net, optimizer))
    modes: list[Any] = []
    pairs[0][1].register_step_pre_hook(lambda *args: modes.append(sync.mode))
    attach(pairs[0][1], rule.make(pairs[0][0].named))

    def run() -> float:
        return train_with_twin(pairs[0], pairs[1], rule.reference(pairs[0][0], variant.case), watch_syncs=True)

    if who == "attached":
        with pytest.raises(RuntimeError, match="called a synchronizing"):
            run()
    else:
        assert run() <= 1.0
        assert modes == ([0, 0, "error", 0, "error", 0] if who == "nobody" else [0] * 6)
    assert sync.mode == 0, "the user's setting is back"


# ---- the command


@pytest.fixture
def small_table(monkeypatch: pytest.MonkeyPatch) -> list[Case]:
    cases = [case for case in plan(quick=True) if case[1].case.name in {"Muon", "SparseAdam"}]
    monkeypatch.setattr(table, "plan", lambda device, *, quick: cases)
    return cases


@needs_muon
@pytest.mark.usefixtures("small_table")
def test_selfcheck_prints_what_holds() -> None:
    result = CliRunner().invoke(app, ["selfcheck"])
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert max(map(len, lines)) <= 80
    muon = next(line for line in lines if line.startswith("Muon "))
    cells = dict(zip(lines[0].split(), muon.split()[1:], strict=True))
    assert set(cells.values()) == {"ok", "-"}
    assert [code for code, cell in cells.items() if cell == "-"] == ["St", "Sb", "Li"]
    assert f"{len(bad_inputs.BAD_INPUTS)} of {len(bad_inputs.BAD_INPUTS)} bad inputs" in " ".join(lines)
    assert f"torch {torch.__version__}" in result.output


@needs_muon
def test_selfcheck_says_what_fails(small_table: list[Case], monkeypatch: pytest.MonkeyPatch) -> None:
    rule, variant, dtype = small_table[0]
    wrong = dataclasses.replace(rule, reference=lambda net, case: Reference())
    small_table[:] = [(wrong, variant, dtype)] * 25
    monkeypatch.setattr(table, "BAD_INPUTS", [bad_inputs.BadInput("fine", lambda: None, "never")])
    result = CliRunner().invoke(app, ["selfcheck"])
    assert result.exit_code == 1
    assert f"FAILED {rule.name} on {variant.name}, float32: deviates from the reference by" in result.output
    assert "and 6 more: halflife selfcheck --json lists all" in result.output
    result = CliRunner().invoke(app, ["selfcheck", "--json"])
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert not document["ok"]
    assert len(document["failed"]) == 25
    assert document["failed"][0]["error"] > 1
    assert document["wrong_answers"] == {"fine": "not refused, expected: never"}
    assert document["table"]["Muon"][rule.family] == "FAILED"


def test_the_columns_of_the_command_have_two_letters_each() -> None:
    codes = _codes(["HalfLife", "Corrected", "NormTarget", "Stable", "Stable(beta2=)", "L2", "L2(into=)", "Halter"])
    assert list(codes.values()) == ["Ha", "Co", "No", "St", "Sb", "L2", "Li", "Hl"]
    codes = _codes(FAMILIES)
    assert {len(code) for code in codes.values()} == {2}
    assert len(set(codes.values())) == len(codes)


@pytest.mark.usefixtures("small_table")
def test_selfcheck_for_machines() -> None:
    result = CliRunner().invoke(app, ["selfcheck", "--json", "--quick"])
    assert result.exit_code == 0
    document = json.loads(result.stdout)
    assert document["ok"]
    assert document["failed"] == []
    assert document["table"]["SparseAdam"]["L2"] == "refused"
    assert document["versions"]["device"] == "cpu"


def test_stopping_selfcheck_says_how_far_it_came(
    small_table: list[Case], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop_at_the_third(*case: Any) -> Outcome:
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(case)
        return run_case(*case)

    calls: list[Any] = []
    monkeypatch.setattr(table, "run_case", stop_at_the_third)
    monkeypatch.setattr(sys, "argv", ["halflife", "selfcheck"])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 130
    assert capsys.readouterr() == ("", f"stopped after 2 of {len(small_table)} cases, 0 of them failed\n")


@pytest.mark.parametrize("name", ["nonsense", "meta", "cuda:77"])
def test_a_device_that_is_not_there_is_one_sentence(name: str) -> None:
    with pytest.raises(UserError, match=f"the device '{name}' cannot be used here: .*; choose one that this torch has"):
        table.check_device(name)


def test_selfcheck_does_not_change_torch() -> None:
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.get_num_threads()
    run_table([case for case in plan(quick=True) if case[1].case.name == "SGD"][:3])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (torch.get_default_dtype(), torch.get_num_threads()) == before[1:]


# ---- the page


@needs_muon
def test_the_page_is_what_the_tool_writes() -> None:
    """The rows of some optimizers, found again; `python tools/conformance.py check` compares the whole page."""
    tool = load_tool("conformance")
    page = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8").splitlines()
    names = {"AdamW", "Adam, amsgrad", "Muon", "SparseAdam", "LBFGS"}
    report = run_table([case for case in plan(quick=True) if case[1].case.name in names])
    for case in OPTIMIZERS:
        assert tool.form_row_of(case) in page
        if case.name in names:
            assert tool.row_of(case, report.outcomes) in page
    written = tool.render(report).splitlines()
    assert [line for line in written if line.startswith(("#", "- `"))] != []
    assert [line for line in written if line.startswith("#")] == [line for line in page if line.startswith("#")]
    variants_of = [line for line in written if line.startswith("- `") and " on " not in line]
    assert variants_of == [line for line in page if line.startswith("- `") and " on " not in line]
    count = len(plan())
    assert sum(map(int, re.findall(r"(\d+) (?:cases hold|are refused with)", "\n".join(page)))) == count
    assert "0 fail." in "\n".join(page)
