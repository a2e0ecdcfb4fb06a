"""``halflife selfcheck``: the conformance table on the user's own machine and installed versions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from halflife.cli.console import PlainConsole
from halflife.cli.documents import JsonOption, StoppedError, one_document

if TYPE_CHECKING:
    from halflife.selfcheck.table import Report
    from halflife.selfcheck.twin import Outcome

__all__ = ["selfcheck_command"]

EXIT_FAILED = 1
SHOWN = 20  # failures that are printed in full; --json has all

MARKS = {"ok": "ok", "refused": "[dim]-[/]", "FAILED": "[bold red]!![/]", "": ""}


def selfcheck_command(
    device: Annotated[str, typer.Option(metavar="DEV", help="cpu, cuda, cuda:1, mps ... as torch names it")] = "cpu",
    as_json: JsonOption = False,
    quick: Annotated[bool, typer.Option("--quick", help="One variant of each rule in float32: some seconds")] = False,
) -> None:
    """Run the conformance table here: every rule on every optimizer of the torch that is installed.

    Each weight after each step is compared with a reference that is written from the paper. On a GPU a step that
    waits for the device is a failure too. The exit code is 1 if anything does not hold. Takes about a minute.
    """  # noqa: DOC501 - this text is the command's help; `main` turns errors into exit codes
    from halflife.selfcheck.table import check_device, plan, run_table

    with one_document(as_json) as document:
        out = PlainConsole()
        with warnings.catch_warnings():  # torch's own, of optimizers that nobody here has chosen
            warnings.simplefilter("ignore")
            where = check_device(device)
            cases = plan(where, quick=quick)
            columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            bars = Progress(*columns, console=out, transient=True, disable=not out.is_terminal)
            seen: list[Outcome] = []
            task = bars.add_task("checking", total=len(cases))

            def listen(outcome: Outcome) -> None:
                seen.append(outcome)
                bars.advance(task)

            try:
                with bars:
                    report = run_table(cases, where, listen)
            except KeyboardInterrupt:
                failed = sum(outcome.status == "FAILED" for outcome in seen)
                raise StoppedError(
                    f"stopped after {len(seen)} of {len(cases)} cases, {failed} of them failed"
                ) from None
        if as_json:
            document.update(_document(report))
        else:
            _print(report, out)
        if not report.holds:
            raise typer.Exit(EXIT_FAILED)


def _document(report: Report) -> dict[str, Any]:
    from halflife.selfcheck.optimizers import OPTIMIZERS
    from halflife.selfcheck.table import FAMILIES, cell_of, versions

    return {
        "ok": report.holds,
        "versions": versions(report.device),
        "seconds": round(report.seconds, 1),
        "num_cases": len(report.outcomes),
        "num_refused": sum(outcome.status == "refused" for outcome in report.outcomes),
        "failed": [vars(outcome) for outcome in report.failed],
        "num_bad_inputs": report.num_bad_inputs,
        "wrong_answers": report.wrong_answers,
        "table": {
            case.name: {family: cell_of(report.outcomes, case.name, family) for family in FAMILIES}
            for case in OPTIMIZERS
        },
    }


def _codes(families: Sequence[str]) -> dict[str, str]:
    """Return two letters for each family of rules, so that the table fits 80 characters: no two are the same.

    The second letter is the family's second, else one that begins a word in its name, else any of its letters.
    """
    found: dict[str, str] = {}
    for name in families:
        rest = name[1] + "".join(re.findall(r"[A-Z]|(?<=\W)[a-z]", name[1:])) + "".join(re.findall(r"\w", name[2:]))
        codes = (name[0] + letter.lower() for letter in rest)
        found[name] = next((code for code in codes if code not in found.values()), name)
    return found


def _print(report: Report, out: Console) -> None:
    from halflife.selfcheck.optimizers import OPTIMIZERS
    from halflife.selfcheck.table import FAMILIES, cell_of, versions

    codes = _codes(FAMILIES)
    table = Table(box=None, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("", no_wrap=True)
    for family in FAMILIES:
        table.add_column(codes[family], justify="center", no_wrap=True)
    for case in OPTIMIZERS:
        table.add_row(case.name, *(MARKS[cell_of(report.outcomes, case.name, family)] for family in FAMILIES))
    out.print(table)
    legend = ", ".join(f"{codes[family]} {family}" for family in FAMILIES)
    out.print(
        f"\n{legend}\nok: as its reference; -: refused with a sentence, as documented; !!: FAILED", highlight=False
    )
    found = versions(report.device)
    held = sum(outcome.status == "ok" for outcome in report.outcomes)
    refused = sum(outcome.status == "refused" for outcome in report.outcomes)
    answered = report.num_bad_inputs - len(report.wrong_answers)
    out.print(
        f"\n{held} cases hold, {refused} are refused as documented, {len(report.failed)} failed; {answered} of"
        f" {report.num_bad_inputs} bad inputs get their sentence\ntorch {found['torch']}, Python {found['python']},"
        f" device {found['device']}, {report.seconds:.0f} s",
        highlight=False,
    )
    lines = [f"{each.rule} on {each.optimizer}, {each.dtype}: {each.detail}" for each in report.failed]
    lines += [f"bad input: {name}: {wrong}" for name, wrong in report.wrong_answers.items()]
    _print_failures(lines, out)


def _print_failures(lines: Sequence[str], out: Console) -> None:
    for line in lines[:SHOWN]:
        out.print("[bold red]FAILED[/] ", end="")
        out.print(line, markup=False, highlight=False, soft_wrap=True)
    if len(lines) > SHOWN:
        out.print(f"and {len(lines) - SHOWN} more: halflife selfcheck --json lists all", highlight=False)
