"""How a study was run, as tables: hyperparameters, versions, hashes, machine, runs."""

from __future__ import annotations

import dataclasses
import inspect
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.report.figures.fields import flat_fields, size_name
from halflife.studies.specs.base import RunSpec, spec_from_json

__all__ = ["Provenance", "banners", "duration", "num_earlier", "provenance_of"]

MISSING = "not recorded"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Provenance:
    """What a reader needs to repeat a study.

    Args:
        command: The command that runs the same again.
        facts: Name and value, in the order of reading.
        differing: Names of the hyperparameters that differ between arms.
        arms: One row an arm: its label, then those hyperparameters.
        common: Name, value and meaning of those that are the same in all arms.
        meanings: Name and meaning of those that differ.
        runs: One row a run.
        runs_header: What its columns are: arm, size, seed, id, status, time, for branches the run they start from, digest.
    """

    command: str
    facts: list[tuple[str, str]]
    differing: list[str]
    arms: list[list[str]]
    common: list[tuple[str, str, str]]
    meanings: list[tuple[str, str]]
    runs: list[tuple[str, ...]]
    runs_header: tuple[str, ...]


def num_earlier(results: StudyResults) -> int:
    """How many runs were finished before the command that made the manifest: of other studies, or by an earlier call."""
    started = results.manifest.get("started") or ""
    return sum((header.get("finished") or started) < started for header in results.headers.values())


def duration(seconds: Any) -> str:
    """Seconds in the two largest units that matter.

    Args:
        seconds: A number; ``None`` or 0 where nothing was measured yet.

    Returns:
        Such as ``9 min 32 s``.

    Examples:
        >>> duration(572.4), duration(7380), duration(1.25), duration(None)
        ('9 min 32 s', '2 h 3 min', '1.2 s', 'not recorded')
    """
    if not isinstance(seconds, int | float) or seconds <= 0:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _value(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, list | tuple):
        return ", ".join(_value(v) for v in value)
    return str(value)


def _when(moment: Any) -> str:
    """A moment of ISO 8601 to the minute, as readers write it."""
    match = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d).*(?:\+00:00|Z)", str(moment))
    return f"{match[1]} {match[2]} UTC" if match else _value(moment or MISSING)


def _meanings(spec: Mapping[str, Any]) -> dict[str, str]:
    """What each flat field of a spec is, from the docstrings of its type; the style guide keeps those true."""
    type_ = type(spec_from_json(spec))
    own: dict[str, str] = {"kind": (inspect.getdoc(type_) or "").partition("\n")[0]}
    for kind in reversed(type_.__mro__):
        _, _, text = (inspect.cleandoc(kind.__doc__ or "")).partition("Args:\n")
        block = re.split(r"\n(?=\S)", text, maxsplit=1)[0]
        for name, meaning in re.findall(r"^    (\w+): (.+(?:\n     .+)*)", block, re.MULTILINE):
            own[name] = re.sub(r"\s+", " ", meaning).replace("``None``", "none").replace("`", "")
    found: dict[str, str] = {}
    for value in spec.values():
        if isinstance(value, Mapping) and "kind" in value:
            found = _meanings(value)
    for name in flat_fields(spec):
        plain = name.rpartition(".")[2]
        if (name not in found or name == "kind") and plain in own:
            found[name] = own[plain]
    return found


def _default(kind: str, name: str, specs: Sequence[Mapping[str, Any]]) -> str:
    """What a field is that a spec does not write: its default, or nothing where its kind has none of this name."""
    example = next(spec for spec in specs if spec["kind"] == kind)
    chain: list[RunSpec] = [spec_from_json(example)]
    while chain[-1].parent is not None:
        chain.append(chain[-1].parent)
    defaults = {f.name: f.default for spec in chain for f in dataclasses.fields(spec)}
    return _value(defaults[name]) if name in defaults else "\N{EN DASH}"


def _distinct(headers: list[dict[str, Any]], *path: str) -> str:
    """All values found under a path of keys, each once; how many runs have it where they differ."""
    found: list[Any] = headers
    for key in path:
        found = [value.get(key) if isinstance(value, dict) else None for value in found]
    return _counted(found)


def _counted(found: Sequence[Any]) -> str:
    """All values but ``None``, each once; how many runs have it where they differ."""
    values = [_value(value) for value in found if value is not None]
    distinct = list(dict.fromkeys(values))
    if len(distinct) > 1:
        return "; ".join(f"{value} ({values.count(value)} runs)" for value in distinct)
    return distinct[0] if distinct else MISSING


def _trainer(header: Mapping[str, Any]) -> str | None:
    """The trainer's name and version. Runs made before trainers had versions tell the digest of the code instead."""
    if "trainer" in header:
        return f"{header['trainer']['name']}, version {header['trainer']['version']}"
    digest = header.get("code_digest")
    return None if digest is None else f"before trainer versions (code digest {digest[:8]})"


def _commit(header: Mapping[str, Any]) -> str | None:
    """The commit of halflife's sources, and whether they were changed."""
    commit = header.get("commit")
    return None if commit is None else commit["id"] + (" with changes" if commit["changed"] else "")


def _checked(header: Mapping[str, Any]) -> str | None:
    """Whether a change of a finished run's readings would be noticed."""
    if header["status"] != "finished":
        return None
    return "checked by their sha256" if "readings" in header else "without sha256, so that a missing one is not noticed"


def provenance_of(results: StudyResults) -> Provenance:
    """How a study was run.

    Returns:
        Its tables.
    """
    manifest = results.manifest
    headers = [header for header in results.headers.values() if header]
    specs: list[tuple[Mapping[str, Any], dict[str, Any]]] = []
    written: list[Mapping[str, Any]] = []
    for arm in results.arms:
        found = [results.headers[i]["spec"] for i in arm["runs"].values() if "spec" in results.headers[i]]
        written += found[:1]
        specs.append((arm, {k: v for k, v in flat_fields(found[0]).items() if k != "seed"} if found else {}))
    known = [spec for _, spec in specs if spec]
    names = list(dict.fromkeys(name for spec in known for name in spec))
    # A field that a spec leaves out has its default, or is one of another kind of run.
    words = [
        {n: _value(spec[n]) if n in spec else _default(spec["kind"], n, written) for n in names} if spec else {}
        for _, spec in specs
    ]
    told = [row for row in words if row]
    differing = [name for name in names if any(row[name] != told[0][name] for row in told)]
    meanings: dict[str, str] = {}
    for spec in written:
        meanings = _meanings(spec) | meanings
    parents = {identity: header["parent"] for identity, header in results.headers.items() if header.get("parent")}
    return Provenance(
        command=manifest.get("command") or f"halflife study run {results.study.name} --preset {results.preset_name}",
        facts=_facts(results, headers),
        differing=differing,
        arms=[
            [arm["label"], *(row.get(name, "not started") for name in differing)]
            for (arm, _), row in zip(specs, words, strict=True)
        ],
        common=[(n, told[0][n], meanings.get(n, "")) for n in names if n not in differing],
        meanings=[(name, meanings[name]) for name in differing if name in meanings],
        runs=[
            (
                arm["label"],
                str(arm["size"]),
                seed,
                identity,
                results.headers[identity].get("status", "not started"),
                duration(results.headers[identity].get("seconds")),
                *([parents.get(identity, "")] if parents else []),
                results.headers[identity].get("spec_digest", MISSING),
            )
            for arm in results.arms
            for seed, identity in arm["runs"].items()
        ],
        runs_header=(
            *("arm", size_name(results), "seed", "run", "status", "time"),
            *(["starts from"] if parents else []),
            "digest of the spec",
        ),
    )


def _seeds(results: StudyResults) -> str:
    """The planned seeds, by size where the sizes have different ones."""
    sizes_of: dict[str, list[str]] = {}
    for size in results.sizes:
        seeds = sorted({int(seed) for arm in results.arms if arm["size"] == size for seed in arm["runs"]})
        sizes_of.setdefault(", ".join(map(str, seeds)), []).append(str(size))
    if len(sizes_of) == 1:
        return next(iter(sizes_of))
    return "; ".join(f"{seeds} at {size_name(results)} {' and '.join(sizes)}" for seeds, sizes in sizes_of.items())


def _facts(results: StudyResults, headers: list[dict[str, Any]]) -> list[tuple[str, str]]:
    manifest, earlier = results.manifest, num_earlier(results)
    machines = [header["machine"] for header in headers if "machine" in header] or [manifest.get("machine") or {}]
    preset = results.study.presets[results.preset_name]
    packages = list(dict.fromkeys(name for header in headers for name in header.get("versions", {})))
    spent = [header["seconds"] for header in headers if isinstance(header.get("seconds"), int | float)]
    facts = [
        ("preset", f"{results.preset_name}: {preset.description}"),
        ("runs", f"{results.num_finished} of {results.num_planned} finished"),
        ("seeds", _seeds(results)),
        ("started", _when(manifest.get("started"))),
        (
            "wall time",
            duration(manifest.get("seconds")) + (f", {earlier} runs were finished before" if earlier else ""),
        ),
        ("time of all runs", duration(sum(spent)) if spent else MISSING),
        *_costs(headers),
        ("workers", _value(manifest.get("workers") or MISSING)),
        *((name, _distinct(machines, name)) for name in dict.fromkeys(name for m in machines for name in m)),
        ("data", _distinct(headers, "data", "title")),
        ("data sha256", _distinct(headers, "data", "sha256")),
        ("trainer", _counted([_trainer(header) for header in headers])),
        ("commit", _counted([_commit(header) for header in headers])),
        ("readings", _counted([_checked(header) for header in headers])),
        ("versions", ", ".join(f"{name} {_distinct(headers, 'versions', name)}" for name in packages) or MISSING),
    ]
    return [
        (name, value) for name, value in facts if value != MISSING or name in {"wall time", "trainer", "data sha256"}
    ]


def _costs(headers: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the runs cost, where they say so: medians of speeds, the largest memory."""
    costs = [header["cost"] for header in headers if isinstance(header.get("cost"), dict)]
    names = dict.fromkeys(name for cost in costs for name in cost)
    facts = []
    for name in names:
        values = [cost[name] for cost in costs if name in cost]
        if name.endswith("_per_second") and max(values) > 0:
            facts.append((f"{name.replace('_', ' ')}", f"{statistics.median(values):,.0f} (median of the runs)"))
        elif name == "peak_memory_mb" and max(values) > 0:
            facts.append(("peak memory", f"{max(values):,.0f} MiB"))
    return facts


def banners(results: StudyResults) -> list[tuple[str, str, list[str]]]:
    """What a reader must know before reading on.

    Returns:
        Kind (``"alert"`` or ``"note"``), sentence, and details, one each.
    """
    out: list[tuple[str, str, list[str]]] = []
    finished, planned, failures = results.num_finished, results.num_planned, results.failures
    if finished < planned:
        paired = len(results.seeds(results.main_size))
        wanted = max((len(arm["runs"]) for arm in results.arms if arm["size"] == results.main_size), default=0)
        text = (
            f"{finished} of {planned} runs finished. At the main size {paired} of {wanted} seeds are finished in every arm;"
            " figures and verdicts use these alone."
        )
        out.append(("alert" if failures else "note", text, failures))
    if results.damaged:
        text = f"Runs that are damaged and left out of the figures: {len(results.damaged)} of {planned}. No claim is decided."
        out.append(("alert", text, list(results.damaged.values())))
    steps = results.manifest.get("max_steps")
    if steps is not None:
        out.append(("alert", f"Runs were cut at {steps} steps by --max-steps, so no claim is decided.", []))
    if mixed := _mixed([header for header in results.headers.values() if header]):
        out.append(("alert", f"The runs differ in their {' and '.join(mixed)}; see “How this was run”.", []))
    preset = results.study.presets[results.preset_name]
    if not preset.decides:
        out.append(("note", f"The preset {results.preset_name} decides nothing: {preset.description}.", []))
    return out


def _mixed(headers: Sequence[Mapping[str, Any]]) -> list[str]:
    """In what runs differ that should not: torch anywhere, data of one name, code of one trainer."""
    groups: dict[tuple[str, str], set[str]] = {}
    for header in headers:
        data = header.get("data") or {}
        trainer = spec_from_json(header["spec"]).trainer.name if "spec" in header else ""
        for what, group, value in (
            ("code", trainer, _trainer(header)),
            ("data", data.get("name", ""), data.get("sha256")),
            ("torch", "", header.get("versions", {}).get("torch")),
        ):
            if value is not None:
                groups.setdefault((what, group), set()).add(value)
    return list(dict.fromkeys(what for (what, _), values in groups.items() if len(values) > 1))
