"""Each field of each file of a store is damaged: one sentence names the file, and what can be read is shown."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from halflife.cli.main import main
from halflife.errors import RunStoppedError, StoreError
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults, manifests_of
from halflife.studies.report.pages.provenance import banners, provenance_of
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.store.files import read_object
from halflife.studies.store.records import Reading
from halflife.studies.store.store import RunFolder, Store
from tests.studies.lab.text_runs import MLP, stop_after, write_corpus
from tests.studies.synthetic import make_store

Damage = Callable[[Any], Any]
GONE = object()


def named(value: object) -> str:
    """The id of a parameter: the same in every process."""
    return "gone" if value is GONE else str(value)[:40]


RUN = "0123456789abcdef"
DEEP: Any = []
for _ in range(60):
    DEEP = [DEEP]

DAMAGES: dict[str, Damage] = {
    "missing": lambda value: GONE,
    "null": lambda value: None,
    "true": lambda value: True,
    "text": lambda value: 3 if isinstance(value, str) else "text",
    "list": lambda value: [value],
    "object": lambda value: [] if isinstance(value, dict) else {"a": value},
    "NaN": lambda value: math.nan,
    "infinite": lambda value: math.inf,
    "negative": lambda value: -1,
    "huge": lambda value: 10**400,
    "long": lambda value: "x" * 20_000,
    "control": lambda value: "\x1b[2J",
    "surrogate": lambda value: "\ud800",
    "nested": lambda value: DEEP,
    "empty": lambda value: "" if isinstance(value, str) else type(value)(),
}


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """All fields of a JSON value, the first item of a list for all of them."""
    yield path
    if isinstance(value, dict):
        for name in value:
            yield from places(value[name], (*path, name))
    elif isinstance(value, list) and value:
        yield from places(value[0], (*path, 0))


def damaged(value: Any, path: tuple[Any, ...], damage: Damage) -> Any:
    """A copy with one field damaged."""
    if not path:
        return damage(value)
    copy = dict(value) if isinstance(value, dict) else list(value)
    new = damaged(value.get(path[0]) if isinstance(value, dict) else value[path[0]], path[1:], damage)
    if new is GONE:
        del copy[path[0]]
    else:
        copy[path[0]] = new
    return copy


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Two studies with runs of their own; one run of the first has everything that a header may have."""
    path = tmp_path_factory.mktemp("damage") / "store"
    store = make_store(path, sizes=(8,), claims=HISTORY, planned_seeds=SEEDS, source=SOURCE)
    make_store(path, study="stabilization-vgg", sizes=(16,))
    for manifest in store.manifests():
        for arm in manifest["arms"]:
            for identity in arm["runs"].values():
                folder = store.run(identity)
                folder.finish(folder.header() | MORE)
    return store


HISTORY = [{"at": "2025-01-02T03:04:05+00:00", "finished": 0, "digests": {"error": "a" * 64}}]
SEEDS = [{"at": "2025-01-02T03:04:05+00:00", "finished": 0, "seeds": 2}]
SOURCE = {"file": "mine.py", "name": "STUDY", "sha256": "c" * 64}
MORE = {
    "commit": {"id": "f00d" * 10, "changed": False},
    "cost": {"images_per_second": 3.5, "peak_memory_mb": 300.0},
    "parent": "0123456789abcdef",
    "world": {"size": 2, "form": "ddp"},
    "code_digest": "c0de" * 16,
    "diverged_at": 3,
    "failure": "it did not fail",
}


def first_run(store: Store) -> RunFolder:
    return store.run(store.manifests()[0]["arms"][0]["runs"]["0"])


def what_is_said(store: Store) -> list[str]:
    """All sentences on a store of two studies, of which the second one is decided."""
    said: list[str] = []
    manifests = manifests_of(store, [], lambda study, preset, error: said.append(str(error)))
    decided = []
    for manifest in manifests:
        results = StudyResults(store, get_study(manifest["study"]), manifest)
        said += results.damaged.values()
        verdicts = results.verdicts()
        if results.damaged:
            reasons = {verdict.finding.reason for verdict in verdicts}
            assert reasons == {next(iter(results.damaged.values()))}
        elif len(results.seeds(results.main_size)) > 1:
            decided.append(manifest["study"])
    assert "stabilization-vgg" in decided
    for words in said:
        assert "\n" not in words
        assert ": " in words  # what to do follows
        assert len(words) < 600
    return said


def test_a_whole_store_is_decided_and_nothing_is_said(whole: Store) -> None:
    assert what_is_said(whole) == []


def read(store: Store) -> list[str]:
    """Read all of a store as the commands do, with what a report tells of each run, and return what is said."""
    said: list[str] = []
    manifests = manifests_of(store, [], lambda study, preset, error: said.append(str(error)))
    for manifest in manifests:
        results = StudyResults(store, get_study(manifest["study"]), manifest)
        said += results.damaged.values()
        provenance_of(results)
        banners(results)
    return said


QUICK = ("missing", "text", "NaN", "huge", "nested")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in DAMAGES]
)
@pytest.mark.parametrize("kind", ["store.json", "manifest", "run.json"])
def test_any_field_may_be_damaged(whole: Store, tmp_path: Path, kind: str, name: str) -> None:
    """What is said is one sentence, which names the file; there is no other error."""
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    path = {
        "store.json": store.path / "store.json",
        "manifest": store.path / "sheets/stabilization-laptop.json",
        "run.json": first_run(store).path / "run.json",
    }[kind]
    content = read_object(path)
    refused = 0
    for place in places(content):
        changed = damaged(content, place, DAMAGES[name])
        path.write_text("" if changed is GONE else json.dumps(changed))
        if kind == "store.json":  # nothing can be shown of a store of another schema
            try:
                said = read(Store(store.path))
            except StoreError as error:
                said = [str(error)]
        else:
            said = read(Store(store.path))
        for words in said:
            assert "\n" not in words
            assert ": " in words  # what to do follows
            assert len(words) < 1000
            assert str(path if kind != "store.json" else store.path) in words or path.parent.name in words
        assert len(said) <= 1
        refused += len(said)
    assert refused >= (1 if kind == "store.json" else 5)


# What must be refused, and how: fields that verdicts rest on, or that a page shows.
REFUSED: list[tuple[str, tuple[Any, ...], Any, str]] = [
    ("manifest", (), [], "holds a list, expected a JSON object: remove it"),
    ("manifest", (), GONE, r"is not valid JSON \(Expecting value"),
    ("manifest", ("study",), GONE, "cannot be used, study is missing, expected a name of at most 100 letters"),
    ("manifest", ("study",), "averaging", "it is of averaging-laptop, expected stabilization-laptop: remove it"),
    ("manifest", ("preset",), ["laptop"], "preset is a list, expected a name of at most 100"),
    ("manifest", ("main_size",), 8.0, "main_size is 8.0, expected an integer >= 0"),
    ("manifest", ("main_size",), True, "main_size is True, expected an integer >= 0"),
    ("manifest", ("main_size",), 9, "main_size is 9, expected the size of an arm"),
    ("manifest", ("arms",), {}, "arms is an object, expected a list"),
    ("manifest", ("arms",), [], "main_size is 8, expected the size of an arm"),
    ("manifest", ("arms", 0), None, r"arms\[0\] is None, expected an object"),
    ("manifest", ("arms", 0, "key"), "small-none", "two arms have the same key and size, expected one of each"),
    ("manifest", ("arms", 0, "label"), "\x1b[2J", r"arms\[0\].label is '\\x1b\[2J', expected text of at most 10,000"),
    ("manifest", ("arms", 0, "label"), "\ud800", r"arms\[0\].label is '\\ud800', expected text"),
    ("manifest", ("arms", 0, "size"), 10**400, r"arms\[0\].size is 1000.*\.\.\., expected an integer"),
    (
        "manifest",
        ("arms", 0, "runs"),
        {"x": "0" * 16},
        r"a name in arms\[0\].runs is 'x', expected a seed, digits alone",
    ),
    (
        "manifest",
        ("arms", 0, "runs"),
        {"0": "../.."},
        r"arms\[0\].runs\['0'\] is '../..', expected 16 hexadecimal digits",
    ),
    ("manifest", ("seconds",), math.nan, r"is not valid JSON \(it has NaN\): remove it"),
    ("manifest", ("machine",), {"cores": [2]}, r"machine\['cores'\] is a list, expected text or a number"),
    ("manifest", ("claims", 0, "digests"), {"error": "a"}, r"claims\[0\].digests\['error'\] is 'a', expected 64 hex"),
    ("manifest", ("command",), DEEP, "is nested too deeply to be read: remove it"),
    ("run.json", ("id",), "0" * 16, "is of the run 0000000000000000, expected [0-9a-f]{16}: remove the folder"),
    ("run.json", ("status",), "done", "status is 'done', expected running, finished or failed"),
    ("run.json", ("status",), GONE, "status is missing, expected running"),
    ("run.json", ("spec",), GONE, "spec is missing, expected an object"),
    ("run.json", ("spec", "kind"), ["images"], "spec.kind is a list, expected text"),
    ("run.json", ("spec", "lr"), "x" * 5000, "has a field that cannot be used .lr must be a number, got 'xxx"),
    ("run.json", ("spec", "colour"), 1, "a run of kind 'images' has other fields than this version of halflife"),
    ("run.json", ("trainer", "version"), "1", "trainer.version is '1', expected an integer"),
    ("run.json", ("versions", "torch"), 2.13, r"versions\['torch'\] is 2.13, expected text"),
    ("run.json", ("commit", "changed"), 1, "commit.changed is 1, expected true or false"),
    ("run.json", ("cost",), {"a": "fast"}, r"cost\['a'\] is 'fast', expected a finite number"),
    ("run.json", ("parent",), "../other", "parent is '../other', expected 16 hexadecimal digits"),
    ("run.json", ("readings", "sha256"), "0", "readings.sha256 is '0', expected 64 hexadecimal digits"),
    (
        "run.json",
        ("readings", "sha256"),
        "0" * 64,
        "is damaged .its sha256 is not the one with which the run finished.: remove",
    ),
    ("run.json", ("readings", "count"), -8, "readings.count is -8, expected an integer >= 0"),
]


@pytest.mark.parametrize(("kind", "place", "value", "said"), REFUSED, ids=named)
def test_what_is_refused(
    whole: Store, tmp_path: Path, kind: str, place: tuple[Any, ...], value: Any, said: str
) -> None:
    """The sentence names the file, and the other study is decided."""
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    run = first_run(store).path
    path = run / "run.json" if kind == "run.json" else store.path / "sheets/stabilization-laptop.json"
    changed = damaged(read_object(path), place, lambda _: value)
    path.write_text("" if changed is GONE else json.dumps(changed))
    (words,) = what_is_said(store)
    assert re.search(said, words), words
    assert str(path) in words or str(run / "readings.jsonl") in words


@pytest.mark.parametrize("place", ["sheets/stabilization-laptop.json", "run.json"])
def test_a_change_of_any_byte_is_noticed(whole: Store, tmp_path: Path, place: str) -> None:
    """Also one that leaves JSON of the right types: a digit of a size, a letter of a label."""
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    path = (store.path if "/" in place else first_run(store).path) / place
    content = path.read_bytes()
    for number in range(0, content.index(b',\n "crc32"'), 7):
        path.write_bytes(content[:number] + bytes([content[number] ^ 2]) + content[number + 1 :])
        with pytest.raises(StoreError, match=r"(is damaged, its checksum differs|is not valid JSON .*): remove it"):
            read_object(path)


def test_a_run_that_failed_says_why(whole: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    folder = first_run(store)
    header = {name: value for name, value in folder.header().items() if name != "failure"}
    folder.write_header(header | {"status": "failed"})
    with pytest.raises(
        StoreError, match=r"run.json does not say why the run failed: remove it, and run the study again"
    ):
        folder.header()


# ---- readings

LINE = 2
READINGS: list[tuple[tuple[Any, ...], Any, str]] = [
    ((), [], "line 3 is no reading: it is a list, expected an object"),
    ((), DEEP, "line 3 is no reading: it is a list, expected an object"),
    (("step",), GONE, "step is missing, expected an integer >= 79 and <= 9007199254740992"),
    (("step",), 78, "step is 78, expected an integer >= 79"),
    (("step",), 117.0, "step is 117.0, expected an integer"),
    (("step",), True, "step is True, expected an integer"),
    (("step",), 10**300, "step is 1000.*, expected an integer"),
    (("epoch",), "3", "epoch is '3', expected a finite number >= 0"),
    (("epoch",), -1, "epoch is -1, expected a finite number >= 0"),
    (("epoch",), math.nan, "line 3 is no reading: NaN is no JSON"),
    (("values",), [1.0], "values is a list, expected an object"),
    (("values", "weight_norm"), math.inf, "Infinity is no JSON"),
    (("values", "weight_norm"), None, r"values\['weight_norm'\] is None, expected a finite number"),
    (("values", "weight_norm"), True, r"values\['weight_norm'\] is True, expected a finite number"),
    (("values", "weight_norm"), "1.5", r"values\['weight_norm'\] is '1.5', expected a finite number"),
    (("values", "weight_norm"), 10**400, r"values\['weight_norm'\] is 1000.*, expected a finite number"),
    (("values",), {"a\x00b": 1.0}, r"a name is 'a\\x00b', expected text without control characters"),
    (("values",), {"a\ud800b": 1.0}, r"a name is 'a\\ud800b', expected text without"),
    (("values",), {"test/wrong": 1.0}, "test/wrong is a number and an array, expected one of them"),
    (("arrays",), [], "arrays is a list, expected an object"),
    (("arrays",), {"a": []}, "an array is a list, expected an object"),
    (("arrays",), {"a": {"dtype": "bits", "length": 8}}, "the data of an array is missing, expected base64"),
    (("arrays",), {"a": {"dtype": "bits", "length": 8, "data": 3}}, "the data of an array is 3, expected base64"),
    (
        ("arrays",),
        {"a": {"dtype": "bits", "length": 8, "data": "@@@="}},
        "the data of an array is '@@@=', expected base64",
    ),
    (("arrays",), {"a": {"dtype": "bits", "length": 8, "data": "gA"}}, "the data of an array is 'gA', expected base64"),
    (("arrays",), {"a": {"dtype": "bits", "length": 8, "data": "gA==gA=="}}, "expected base64"),
    (("arrays",), {"a": {"dtype": "bits", "length": 8, "data": ""}}, "bytes of an array of 8 bits is 0, expected 1"),
    (
        ("arrays",),
        {"a": {"dtype": "bits", "length": 80, "data": "gA=="}},
        "bytes of an array of 80 bits is 1, expected 10",
    ),
    (
        ("arrays",),
        {"a": {"dtype": "bits", "length": 3, "data": "/w=="}},
        "a bit behind the last of an array of 3 bits is 1",
    ),
    (
        ("arrays",),
        {"a": {"dtype": "bits", "length": -1, "data": ""}},
        "the length of an array is -1, expected an integer",
    ),
    (
        ("arrays",),
        {"a": {"dtype": "bits", "length": "8", "data": "gA=="}},
        "the length of an array is '8', expected an int",
    ),
    (
        ("arrays",),
        {"a": {"dtype": "object", "length": 1, "data": "gA=="}},
        "is 'object', expected one of bits, <f4, <f8",
    ),
    (
        ("arrays",),
        {"a": {"dtype": ["bits"], "length": 1, "data": "gA=="}},
        "the dtype of an array is a list, expected one",
    ),
    (("arrays",), {"a": {"dtype": "<f4", "length": 1, "data": "gA=="}}, "bytes of an array of 1 <f4 is 1, expected 4"),
    (
        ("arrays",),
        {"a": {"dtype": "<f4", "length": 1, "data": "AADAfw=="}},
        "an element of an array is nan, expected a fin",
    ),
    (
        ("arrays",),
        {"test/wrong": {"dtype": "bits", "length": 8, "data": "gA=="}},
        "has 8 bits and 120 bits in different",
    ),
]


@pytest.mark.parametrize(("place", "value", "said"), READINGS, ids=named)
def test_a_damaged_reading_is_named(
    whole: Store, tmp_path: Path, place: tuple[Any, ...], value: Any, said: str
) -> None:
    """In a run that recorded no digest, as runs of older archives."""
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    folder = first_run(store)
    folder.write_header({name: found for name, found in folder.header().items() if name != "readings"})
    path = folder.path / "readings.jsonl"
    lines = path.read_text().splitlines()
    lines[LINE] = json.dumps(damaged({"arrays": {}} | json.loads(lines[LINE]), place, lambda _: value))
    path.write_text("\n".join(lines) + "\n")
    (words,) = what_is_said(store)
    assert words.startswith(f"{path} is damaged (")
    assert words.endswith(f"): remove the folder {folder.path} and run again")
    assert re.search(said, words), words


CHANGES: list[tuple[Callable[[list[str]], list[str]] | None, str]] = [
    (lambda lines: lines[:-1], "it has 7 readings in .* bytes, and the run finished with 8 in"),
    (lambda lines: lines[:3] + lines[4:], "it has 7 readings in"),
    (lambda lines: [*lines, lines[-1].replace('"step":312', '"step":351')], "it has 9 readings in"),
    (
        lambda lines: [lines[0].replace("0.1", "0.2", 1), *lines[1:]],
        "its sha256 is not the one with which the run finished",
    ),
    (lambda lines: [], "it has 0 readings in 0 bytes"),
    (None, "it is missing, and the run is finished"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said[:20] for _, said in CHANGES])
def test_another_number_of_readings_is_noticed(
    whole: Store, tmp_path: Path, change: Callable[[list[str]], list[str]] | None, said: str
) -> None:
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    path = first_run(store).path / "readings.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    if change is None:
        path.unlink()
    else:
        path.write_text("".join(change(lines)))
    (words,) = what_is_said(store)
    assert re.search(said, words), words


def test_a_torn_line_of_a_finished_run_is_noticed_without_a_record(whole: Store, tmp_path: Path) -> None:
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    folder = first_run(store)
    folder.write_header({name: found for name, found in folder.header().items() if name != "readings"})
    path = folder.path / "readings.jsonl"
    path.write_bytes(path.read_bytes()[:-1])
    (words,) = what_is_said(store)
    assert "its last line is torn, and the run is finished" in words


def test_runs_without_a_record_are_read_as_they_are(whole: Store, tmp_path: Path) -> None:
    """Those of older archives: a line more or less is not noticed."""
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    folder = first_run(store)
    folder.write_header({name: found for name, found in folder.header().items() if name != "readings"})
    path = folder.path / "readings.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))
    assert what_is_said(store) == []


def test_commands_show_the_others_and_end_with_the_sentence(
    whole: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(shutil.copytree(whole.path, tmp_path / "store"))
    manifest = store.manifests()[0]
    del manifest["source"]  # which says that the study is somebody's own
    store.write_manifest("stabilization-laptop", manifest)
    path = first_run(store).path / "readings.jsonl"
    path.write_bytes(path.read_bytes()[:-20])
    monkeypatch.setattr(sys, "argv", ["halflife", "study", "verdicts", "--store", str(store.path)])
    with pytest.raises(SystemExit, match="2"):
        main()
    shown = capsys.readouterr()
    assert "stabilization-vgg" in shown.out
    assert f"error: stabilization, preset laptop, has a damaged run: {path} is damaged" in shown.err
    (store.path / "sheets/stabilization-laptop.json").write_text("{")
    with pytest.raises(SystemExit, match="2"):
        main()
    shown = capsys.readouterr()
    assert "stabilization-vgg" in shown.out
    assert "stabilization-laptop.json is not valid JSON" in shown.err


# ---- a run that is not finished


def test_readings_of_a_stopped_run_are_those_that_its_checkpoint_stands_for(tmp_path: Path) -> None:
    """Damage of what stays is an error; what comes behind the checkpoint is written anew, damaged or not."""
    spec = replace(MLP, corpus=f"folder:{write_corpus(tmp_path / 'corpus')}", num_steps=8, log_every=2, eval_every=4)

    def trained(store: Store, stop: Callable[[], bool] = lambda: False) -> bytes:
        with contextlib.suppress(RunStoppedError):
            train_run(store, Task(RUN, spec, None), progress=lambda *_: None, device="cpu", data_folder=None, stop=stop)
        return (store.run(RUN).path / "readings.jsonl").read_bytes()

    whole = trained(Store(tmp_path / "whole"))
    before = trained(stopped := Store(tmp_path / "stopped"), stop_after(5))
    record = stopped.run(RUN).header()["readings"]
    assert (record["count"], record["bytes"]) == (3, len(before))
    lines = whole.splitlines(keepends=True)
    damaged = before.replace(b'"weight_norm":', b'"weight_norm":1')
    for number, (raw, fine) in enumerate(
        [
            (before, True),
            (before + b'{"step":6,"epo', True),
            (whole, True),
            (before + lines[3].replace(b":0.", b":1."), True),
            (damaged, False),
            (before[:-1], False),
            (b"".join(lines[1:3]), False),
            (b"", False),
        ]
    ):
        store = Store(shutil.copytree(stopped.path, tmp_path / f"again {number}"))
        path = store.run(RUN).path / "readings.jsonl"
        path.write_bytes(raw)
        if fine:
            assert trained(store) == whole
            assert store.run(RUN).header()["readings"]["count"] == len(lines)
        else:
            said = (
                rf"{path} is damaged \(its first 3 readings are not those of its last checkpoint\): remove the folder"
            )
            with pytest.raises(StoreError, match=said):
                trained(store)
            assert path.read_bytes() == raw, "nothing is lost"


def test_a_change_while_a_run_writes_is_noticed(tmp_path: Path) -> None:
    folder = Store(tmp_path).run(RUN)
    folder.write_header({"id": RUN, "status": "running", "spec": MLP.to_json()})
    for step in (1, 2):
        folder.append(Reading(step=step, epoch=step, values={"loss": 0.5}))
    path = folder.path / "readings.jsonl"
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.4", 1))
    with pytest.raises(StoreError, match=r"is damaged \(it was changed while the run wrote it\): remove the folder"):
        folder.finish(folder.header())
    assert not folder.finished
