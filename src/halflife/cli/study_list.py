"""What studies are and what a preset would run, in words for the terminal: ``halflife study list``, ``study run --dry-run``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from halflife.errors import UserError

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Preset, Study
    from halflife.studies.specs.base import RunSpec
    from halflife.studies.store.store import Store

__all__ = ["Batch", "batches_of", "print_batches", "print_details", "print_names", "study_json"]


def print_names(studies: Sequence[Study], console: Console) -> None:
    """Print a line a study: its name, what it is about, how many claims it has."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("name", no_wrap=True, style="bold")
    table.add_column("title")
    table.add_column("claims", justify="right")
    for study in studies:
        table.add_row(study.name, escape(study.title), str(len(study.claims)))
    console.print(table)
    presets = dict.fromkeys(name for study in studies for name in study.presets)
    console.print(
        f"Presets: {escape(', '.join(presets))}. `halflife study list NAME` says what a study claims and runs,"
        " `halflife study run NAME` runs it.",
        highlight=False,
    )


def print_details(studies: Sequence[Study], console: Console) -> None:
    """Print what studies claim, with the source and how it is decided, and at which scales they run."""
    for study in studies:
        console.print(f"[bold]{study.name}[/]  {escape(study.title)}", highlight=False)
        console.print(Padding(Text(study.claim), (0, 0, 0, 2)))
        console.print(Padding(Text(study.source, style="dim"), (0, 0, 0, 2)))
        for rows in (
            [(escape(claim.key), f"{escape(claim.text)}\n[dim]{escape(claim.words)}[/]") for claim in study.claims],
            [
                (
                    escape(name),
                    escape(
                        f"{preset.description} ({preset.budget}{f'; needs {preset.needs}' if preset.needs else ''})"
                    ),
                )
                for name, preset in study.presets.items()
            ],
        ):
            table = Table(box=None, padding=(0, 2), show_header=False)
            for name, words in rows:
                table.add_row(f"  {name}", words)
            console.print(table)
        console.print()


def study_json(study: Study) -> dict[str, Any]:
    """A study as plain values, decision rules included."""
    return {
        "name": study.name,
        "title": study.title,
        "source": study.source,
        "claim": study.claim,
        "claims": [
            {"key": c.key, "text": c.text, "rule": c.words, "amended": c.amended, "unit": c.unit} for c in study.claims
        ],
        "published": [
            {"quantity": p.quantity, "published": p.published, "where": p.where, "how": p.how} for p in study.published
        ],
        "presets": {
            key: {
                "description": preset.description,
                "budget": preset.budget,
                "needs": preset.needs,
                "num_seeds": preset.num_seeds,
                "arms": [{"key": arm.key, "label": arm.label, "size": arm.size} for arm in preset.arms],
            }
            for key, preset in study.presets.items()
        },
    }


@dataclass(frozen=True)
class Batch:
    """Runs of one size, kind and length.

    Args:
        size: Where they stand on the ladder.
        kind: What they are, as the specs say it.
        length: How long each is, in words.
        num_arms: Configurations; 0 for runs that belong to no arm and that others start from.
        num_runs: Runs, each once however many arms share it.
    """

    size: int
    kind: str
    length: str
    num_arms: int
    num_runs: int


def batches_of(preset: Preset, *, num_seeds: int | None, max_steps: int | None) -> list[Batch]:
    """What a preset would run, the main size first; the options are those of `print_batches`."""
    seen: set[str] = set()
    arms: dict[tuple[int, str, str], set[str]] = {}
    runs: dict[tuple[int, str, str], int] = {}

    def add(spec: RunSpec, size: int, arm: str | None) -> None:
        if spec.parent is not None:
            add(spec.parent, size, None)
        place = (size, spec.kind, _length(spec))
        if arm is not None:
            arms.setdefault(place, set()).add(arm)
        if (digest := spec.digest()) not in seen:
            seen.add(digest)
            runs[place] = runs.get(place, 0) + 1

    for arm in sorted(preset.arms, key=lambda arm: arm.size != preset.main_size):
        planned = preset.num_seeds if arm.size == preset.main_size else preset.num_ladder_seeds
        for seed in range(num_seeds if num_seeds is not None else planned):
            add(arm.build(seed).cut(max_steps), arm.size, arm.key)
    return [Batch(*place, num_arms=len(arms.get(place, ())), num_runs=count) for place, count in runs.items()]


def _length(spec: RunSpec) -> str:
    steps = getattr(spec, "last_step", None)
    if steps is not None:
        return f"{steps:,} steps"
    # A branch of images says in the run that it would be how long it is.
    epochs = getattr(getattr(spec, "then", spec), "num_epochs", None)
    words = "of unknown length" if epochs is None else f"{epochs:,} epoch{'s' if epochs != 1 else ''}"
    return words if spec.max_steps is None else f"{words}, at most {spec.max_steps:,} steps"


def print_batches(
    study: Study,
    preset_name: str,
    preset: Preset,
    store: Store,
    console: Console,
    *,
    num_seeds: int | None,
    max_steps: int | None,
    data_folder: str | None,
) -> dict[str, Any]:
    """Print what a study at a preset would run, and how much of it a store holds already.

    Args:
        study: The study.
        preset_name: The preset's name.
        preset: The preset.
        store: The store that the runs would go to.
        console: Where to print.
        num_seeds: As for `batches_of`.
        max_steps: As for `batches_of`.
        data_folder: Where a data set that is not shipped lies.

    Returns:
        The same as plain values.
    """
    from halflife.studies.runner.plan import make_plan

    batches = batches_of(preset, num_seeds=num_seeds, max_steps=max_steps)
    about = escape(f"{preset_name}: {preset.description} ({preset.budget})")
    console.print(f"[bold]{study.name}[/], {about}", highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("size", "kind of run", "each", "configurations", "runs"):
        table.add_column(name, justify="left" if name in {"kind of run", "each"} else "right")
    for batch in batches:
        configurations = str(batch.num_arms) if batch.num_arms else "others start from it"
        table.add_row(f"{batch.size:,}", escape(batch.kind), batch.length, configurations, f"{batch.num_runs:,}")
    console.print(table)
    total = sum(batch.num_runs for batch in batches)
    found: dict[str, Any] = {"study": study.name, "preset": preset_name, "num_runs": total, "num_finished": None}
    found["batches"] = [vars(batch) for batch in batches]
    try:
        plan = make_plan(study, preset_name, preset, num_seeds=num_seeds, max_steps=max_steps, data_folder=data_folder)
    except UserError as error:  # the runs have no names without the data; what they are is known all the same
        console.print(
            f"{total:,} runs; nothing was started, and it could not be: {error}", markup=False, highlight=False
        )
        return found | {"problem": str(error)}
    finished = sum(store.run(run.id).finished for run in plan.needed)
    console.print(
        f"{total:,} runs, {finished:,} of them finished in {store.path}; nothing was started",
        markup=False,
        highlight=False,
    )
    return found | {"num_finished": finished}
