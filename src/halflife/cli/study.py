"""``halflife study`` and ``halflife report``: run studies, print verdicts, draw the report.

Studies need more than the command line does, for example numpy. A command imports it when it runs, so that the other
commands do without it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from halflife.cli.common import (
    NamesArgument,
    OwnOption,
    StoreOption,
    check_names,
    console,
    existing_store,
    given_path,
    store_at,
    warn,
)
from halflife.cli.console import plain
from halflife.cli.documents import JsonOption, StoppedError, one_document
from halflife.cli.verdicts import counts_line, verdict_table
from halflife.errors import RunFailedError, StoreError, UserError

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Preset, Study, Verdict
    from halflife.studies.evidence.verdicts import StudyResults
    from halflife.studies.runner.distributed import Rank
    from halflife.studies.runner.plan import Plan
    from halflife.studies.store.store import Store

__all__ = ["report_command", "study_app"]

study_app = typer.Typer(help="Reproduce claims of the literature on this machine.", no_args_is_help=True)


@study_app.command("list")
def list_studies(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Say all about these studies, own ones as my_file.py:STUDY"),
    ] = None,
    long: Annotated[bool, typer.Option("--long", help="Say all about every study")] = False,
    as_json: JsonOption = False,
) -> None:
    """List the studies; of those that are named, what they claim and at which scales they run."""
    from halflife.cli.study_list import print_details, print_names, study_json
    from halflife.studies.catalog import get_study
    from halflife.studies.catalog.own import known_studies

    with one_document(as_json) as document:
        known, chosen = known_studies(names or [])
        studies = [get_study(name, known) for name in chosen or known]
        if as_json:
            document["studies"] = [study_json(study) for study in studies]
        elif names or long:
            print_details(studies, console)
        else:
            print_names(studies, console)


@study_app.command("run")
def run_studies(
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="NAME...", help="Studies, as `halflife study list` names them, own ones as my_file.py:STUDY"
        ),
    ],
    preset: Annotated[str, typer.Option(help="smoke, laptop, night or paper")] = "laptop",
    workers: Annotated[
        int | None,
        typer.Option(metavar="N", help="Worker processes [default: the cores this process may use]"),
    ] = None,
    store: StoreOption = None,
    seeds: Annotated[
        int | None, typer.Option(metavar="N", help="Seeds per configuration instead of the preset's")
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Cut every run at N steps, to try a set-up (gives no verdict)"),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="DIR", help="Folder of a data set that is not shipped [default: $HALFLIFE_DATA]"
        ),
    ] = None,
    fsdp: Annotated[
        bool,
        typer.Option(
            "--fsdp", help="Under torchrun: shard the model over the processes (FSDP2) instead of copying it (DDP)"
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be run, and start nothing")] = False,
    as_json: JsonOption = False,
    changes: Annotated[list[str] | None, typer.Option("--set", hidden=True)] = None,
) -> None:
    """Run studies, doing only what is missing, and print their verdicts.

    Ctrl-C is safe: everything finished is kept and can be looked at, and the same command goes on where it stopped.
    """  # noqa: DOC501 - this text is the command's help; `main` turns errors into exit codes
    if changes:
        file, _, name = names[0].rpartition(":")
        old = f"get_study({name!r})" if not file else name
        raise UserError(
            f"--set {changes[0]} would change {names[0]}, whose claims are fixed for the settings that it has: put a study of"
            f" your own into {file or 'a file'}, `MINE = dataclasses.replace({old}, name=..., presets=...)`, and run"
            f" `halflife study run {file or 'my_file.py'}:MINE` (docs/own_studies.md)"
        )
    if workers is not None and workers < 1:
        raise UserError(f"--workers is {workers}, expected an integer >= 1: leave it out to use all cores")
    if seeds is not None and seeds < 1:
        raise UserError(f"--seeds is {seeds}, expected an integer >= 1: a verdict needs at least 2")
    cuts: dict[str, Any] = {
        "num_seeds": seeds, "max_steps": max_steps, "data_folder": None if data is None else str(data)
    }  # fmt: skip
    with one_document(as_json) as document:
        if dry_run:
            _say_what_would_run(document, names, preset, store, cuts)
        else:
            _run(document, names, preset, store, cuts, workers=workers, fsdp=fsdp)


def _say_what_would_run(
    document: dict[str, Any], names: list[str], preset: str, store: Path | None, cuts: dict[str, Any]
) -> None:
    from halflife.cli.study_list import print_batches

    chosen, _ = _chosen(names, preset)
    where = store_at(store)
    document["studies"] = [print_batches(study, preset, found, where, console, **cuts) for study, found in chosen]


def _chosen(names: list[str], preset: str) -> tuple[list[tuple[Study, Preset]], Mapping[str, Study]]:
    from halflife.studies.catalog import get_preset, get_study
    from halflife.studies.catalog.own import known_studies

    studies, names = known_studies(names)
    return [(get_study(name, studies), get_preset(get_study(name, studies), preset)) for name in names], studies


def _run(
    document: dict[str, Any],
    names: list[str],
    preset: str,
    store: Path | None,
    cuts: dict[str, Any],
    *,
    workers: int | None,
    fsdp: bool,
) -> None:
    from halflife.studies.runner.distributed import process_group
    from halflife.studies.runner.plan import make_plan

    chosen, studies = _chosen(names, preset)
    where = store_at(store)
    data_folder = cuts["data_folder"]
    plans = [make_plan(study, preset, found, **cuts) for study, found in chosen]
    if data_folder is not None and not any(run.spec.reads_folder for plan in plans for run in plan.runs):
        raise UserError(
            f"--data is {data_folder}, and no run of {', '.join(plan.study.name for plan in plans)} at {preset} reads a"
            " folder: leave it out, or choose a preset that says so in `halflife study list`"
        )
    with process_group(where, plans, fsdp=fsdp) as rank:
        if rank is not None and rank.world.rank > 0:
            for plan in plans:
                rank.execute(plan, (), data_folder=data_folder)
            return
        failures, shown, problems = _run_plans(where, plans, workers, data_folder, rank)
    from halflife.studies.report.pages.tables import verdict_rows

    document |= {
        "store": str(where.path),
        "studies": [_counted(where, plan) for plan in plans],
        "verdicts": verdict_rows(shown),
        "failures": failures,
        "problems": problems,
    }
    from halflife.studies.report import build_report

    # All that the store holds: a second study must not hide the first. Its first page leads to the others.
    path = build_report(where, notice=warn, studies=studies)[0]
    document["report"] = str(path.resolve())
    words = [counts_line(shown), f"report: {path.resolve()}"]
    console.print("; ".join(filter(None, words)), markup=False, highlight=False, soft_wrap=True)
    if failures:
        raise RunFailedError(f"{len(failures)} run{'s' if len(failures) > 1 else ''} failed: {failures[0]}")
    if problems:
        raise StoreError("; ".join(problems))


def _counted(store: Store, plan: Plan) -> dict[str, Any]:
    needed = plan.needed
    finished = sum(store.run(run.id).finished for run in needed)
    return {"study": plan.study.name, "preset": plan.preset_name, "num_runs": len(needed), "num_finished": finished}


def _run_plans(
    where: Store, plans: list[Plan], workers: int | None, data_folder: str | None, rank: Rank | None
) -> tuple[list[str], list[Verdict], list[str]]:
    """Do what is missing of plans, in worker processes or by all ranks together.

    Returns:
        Why runs failed, the verdicts, and why others cannot be given.

    Raises:
        StoppedError: The user stopped it.
    """
    from halflife.studies.runner import pool
    from halflife.studies.runner.plan import split_missing
    from halflife.studies.runner.progress import shown_progress

    failures: list[str] = []
    shown: list[Verdict] = []
    problems: list[str] = []
    with where.locked():
        for plan in plans:
            needed = plan.needed
            missing, lost = split_missing(where, needed)
            num_workers = 1 if rank is not None else workers if workers is not None else pool.default_workers()
            num_workers = max(1, min(num_workers, len(missing)))
            finished = len(needed) - len(missing) - len(lost)
            who = f"{num_workers} worker{'s' if num_workers > 1 else ''}" if rank is None else rank.description
            about = (
                f"{plan.preset_name}: {plan.preset.description}\n{len(needed)} runs, {finished} finished before, {who}"
            )
            console.print(
                f"[bold]{plan.study.name}[/], {escape(f'{about}, store {where.path}')}", highlight=False, soft_wrap=True
            )
            if lost:
                folders = f"{where.path}/runs/{lost[0].id}" + (" and the others'" if len(lost) > 1 else "")
                console.print(
                    f"{len(lost)} {'runs' if len(lost) > 1 else 'run'} diverged before, or would start from one that did, and"
                    f" would do so again: remove {folders} to train anew",
                    style="yellow",
                    markup=False,
                    highlight=False,
                    soft_wrap=True,
                )
            if words := _changed_trainer(where, plan):
                console.print(words, style="yellow", markup=False, highlight=False, soft_wrap=True)
            with shown_progress(console, missing, finished, num_workers) as listen:
                try:
                    if rank is not None:
                        failures += rank.execute(plan, missing, listen=listen, data_folder=data_folder)
                    else:
                        failures += pool.execute(
                            where,
                            plan,
                            missing,
                            workers=num_workers,
                            listen=listen,
                            data_folder=data_folder,
                            notice=console.print,
                        )
                except KeyboardInterrupt:
                    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command ends, and has nothing more to be asked
                    kept = sum(where.run(run.id).finished for run in needed)
                    raise StoppedError(
                        f"stopped: {kept} of {len(needed)} runs are finished and kept in {where.path}; the same command"
                        " goes on where it stopped, and `halflife study verdicts` shows what there is"
                    ) from None
            if (manifest := where.manifest(f"{plan.study.name}-{plan.preset_name}")) is not None:
                try:
                    shown += _print_verdicts(where, plan.study, manifest, problems.append)
                except UserError as error:  # the other studies are run all the same
                    problems.append(f"{plan.study.name}, preset {plan.preset_name}: {error}")
    return failures, shown, problems


def _changed_trainer(store: Store, plan: Plan) -> str:
    """A warning where finished runs were trained by a user's file that has changed since; else empty."""
    origin = plan.study.origin
    earlier = store.manifest(f"{plan.study.name}-{plan.preset_name}")
    if origin is None or earlier is None or earlier.get("source", {}).get("sha256") in {None, origin.sha256}:
        return ""
    own = [run for run in plan.needed if run.spec.trainer.module == origin.module and store.run(run.id).finished]
    if not own:
        return ""
    return (
        f"{origin.shown} was changed since {len(own)} of these runs were trained by it, and they stay: if it computes other"
        " numbers now, raise the version of its Trainer"
    )


def _verdicts(
    store: Store, study: Study, manifest: Mapping[str, Any], damaged: Callable[[str], None]
) -> tuple[StudyResults, list[Verdict]]:
    from halflife.studies.catalog.own import explained
    from halflife.studies.evidence.verdicts import StudyResults

    results = StudyResults(store, study, manifest)
    for words in results.damaged.values():
        damaged(f"{study.name}, preset {results.preset_name}, has a damaged run: {words}")
    with explained(study):
        return results, results.verdicts()


def _print_verdicts(
    store: Store, study: Study, manifest: Mapping[str, Any], damaged: Callable[[str], None]
) -> list[Verdict]:
    results, found = _verdicts(store, study, manifest, damaged)
    if results.num_finished < results.num_planned:
        console.print(f"{results.num_finished} of {results.num_planned} runs finished", highlight=False)
    console.print(verdict_table(found, f"{study.name} ({results.preset_name})", console.width))
    return found


@study_app.command("verdicts")
def verdicts(
    names: NamesArgument = None, store: StoreOption = None, own: OwnOption = None, as_json: JsonOption = False
) -> None:
    """Print the verdicts on what the store holds, without running anything."""
    with one_document(as_json) as document:
        _say_verdicts(document, names or [], store, own or [], as_json)


def _say_verdicts(
    document: dict[str, Any], names: list[str], store: Path | None, own: list[str], as_json: bool
) -> None:
    from halflife.studies.catalog.own import known_studies, study_of
    from halflife.studies.evidence.verdicts import manifests_of
    from halflife.studies.report.pages.tables import verdict_rows

    shown: list[Verdict] = []
    studies, chosen = known_studies(names, own)
    where = existing_store(store)
    check_names(where, chosen, studies)
    rows: list[dict[str, Any]] = []
    unknown, problems = list[str](), list[str]()
    document |= {"verdicts": rows, "problems": problems}

    def trouble(study: str, preset: str, error: UserError) -> None:
        problems.append(f"{study}, preset {preset}: {error}")

    manifests = manifests_of(where, chosen, trouble)
    for manifest in manifests:
        try:
            study = study_of(manifest, studies)
        except StoreError as error:  # an own study whose file was not given
            unknown.append(str(error))
            continue
        try:
            if as_json:
                rows += verdict_rows(_verdicts(where, study, manifest, problems.append)[1])
            else:
                shown += _print_verdicts(where, study, manifest, problems.append)
        except UserError as error:  # the others can be read
            trouble(manifest["study"], manifest["preset"], error)
    if shown:
        console.print(counts_line(shown), highlight=False)
    if manifests and len(unknown) == len(manifests):
        problems += dict.fromkeys(unknown)  # once for all presets
    else:
        for words in dict.fromkeys(unknown):
            warn(words)
    if problems:
        raise StoreError("; ".join(problems))


def report_command(
    names: NamesArgument = None,
    store: StoreOption = None,
    own: OwnOption = None,
    fmt: Annotated[str, typer.Option("--format", metavar="html|svg|pdf", help="Pages, or a file per figure")] = "html",
    out: Annotated[
        Path | None,
        typer.Option(
            parser=given_path, metavar="PATH", help="Folder, or a first page that ends in .html [default: in the store]"
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the report of what the store holds: self-contained pages, one with all studies and one a paper, or its figures."""
    if fmt not in {"html", "svg", "pdf"}:
        raise UserError(f"--format is {fmt!r}, expected html, svg or pdf: choose one of these")
    from halflife.studies.catalog.own import known_studies
    from halflife.studies.report import build_report

    with one_document(as_json) as document:
        studies, chosen = known_studies(names or [], own or [])
        where = existing_store(store)
        check_names(where, chosen, studies)
        paths = build_report(where, chosen, fmt=fmt, out=out, notice=warn, studies=studies)  # type: ignore[arg-type]  # checked above
        document["files"] = list(map(str, paths))
        for path in paths if not as_json else ():
            print(plain(str(path)))
