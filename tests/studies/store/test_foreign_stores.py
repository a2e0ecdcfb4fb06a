"""Stores, data and archives that come from somebody else: nothing in them is executed, followed or waited for."""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import random
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from halflife.cli.main import main
from halflife.errors import HalflifeError, RunStoppedError, StoreError, UserError
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.tensor_files import check_run, kept_file, read_tensors, readable, write_tensors
from halflife.studies.lab.text import shards
from halflife.studies.lab.text.replay import write_trace
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.lab.trainer import Context, train
from halflife.studies.runner.plan import make_plan
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs import ImageRun, RunSpec, TextBranch, TextReplay, TextRun
from halflife.studies.specs.images import fine_tune_branch
from halflife.studies.store import columns
from halflife.studies.store.archives import ArchivedStore
from halflife.studies.store.files import LARGEST_JSON, read_object, write_whole
from halflife.studies.store.records import Reading
from halflife.studies.store.store import LARGEST_READINGS, Store
from tests.studies.lab.text_runs import MLP, write_corpus
from tests.studies.synthetic import make_store

RUN, PARENT = "0123456789abcdef", "fedcba9876543210"
IMAGES = ImageRun(lr=0.1, lam=0.01, width=4, num_train=200, num_test=50, downsample=4, num_epochs=2, keep_at=(1,))
TEXT = replace(MLP, num_steps=2, keep_at=(2,), trace_norms=True)
DEEP = "[" * 200_000


class Bomb:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.marker),)


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Bomb(marker))


def saved(marker: Path) -> bytes:
    """As `torch.save` writes it."""
    file = io.BytesIO()
    torch.save({"model": Bomb(marker)}, file)
    return file.getvalue()


by_form = pytest.mark.parametrize("form", [pickled, saved])


@pytest.fixture
def marker(tmp_path: Path) -> Iterator[Path]:
    """What the bombs make; that they would is shown once a test."""
    path = tmp_path / "it ran"
    for form, load in ((pickled, pickle.loads), (saved, lambda raw: torch.load(io.BytesIO(raw), weights_only=False))):
        load(form(path))
        path.rmdir()
    yield path
    assert not path.exists()


@pytest.fixture
def corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    return str(write_corpus(tmp_path / "corpus"))


def trained(store: Store, spec: RunSpec, data_folder: str | None) -> None:
    """One run, as a worker trains it."""
    task = Task(RUN, spec, None if spec.parent is None else PARENT)
    train_run(store, task, progress=lambda *_: None, device="cpu", data_folder=data_folder, stop=lambda: False)


def refused(act: Callable[[], object], match: str | None = None) -> str:
    """What is said; it is one sentence."""
    with pytest.raises(HalflifeError, match=match) as caught:
        act()
    assert "\n" not in str(caught.value)
    assert ": " in str(caught.value)  # what to do follows
    return str(caught.value)


def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What the command says when it refuses."""
    monkeypatch.setattr(sys, "argv", ["halflife", *arguments])
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as caught:
        main()
    said = capsys.readouterr().err
    assert caught.value.code == 2, said
    assert "Traceback" not in said
    return said


# ---- checkpoints


OWN = {"folder": "a", "run": TEXT.digest(), "values": {"step": 1}, "shapes": {"model.head.weight": [1]}}


@by_form
@pytest.mark.parametrize(
    "files",
    [
        ("checkpoint.safetensors",),
        ("checkpoint/a/.metadata",),
        ("checkpoint/a/.metadata", "checkpoint/a/__0_0.distcp"),
        ("checkpoint/a/shard-00001-model-00001-of-00001.safetensors",),
        ("checkpoint/a/shard-00001-model-00001-of-00001.safetensors", "checkpoint/b/.metadata"),
        ("checkpoint/values.json",),
    ],
)
def test_no_checkpoint_of_text_is_unpickled(
    marker: Path, tmp_path: Path, corpus: str, form: Callable[[Path], bytes], files: tuple[str, ...]
) -> None:
    """In the form of one process and of several, as it is now and as it was."""
    store = Store(tmp_path / "store")
    folder = store.run(RUN).path
    if any("/" in file for file in files):
        write(folder / "checkpoint/values.json", json.dumps(OWN).encode())
    for file in files:
        write(folder / file, form(marker))
    said = refused(lambda: trained(store, TEXT, corpus), "remove")
    assert str(folder) in said
    if any(file.endswith(".metadata") for file in files):
        assert "has an index that can run code when it is read (.metadata), expected safetensors alone" in said
    for file in (*files, "checkpoint/values.json"):
        (folder / file).unlink(missing_ok=True)
    trained(store, TEXT, corpus)  # which is the remedy
    assert store.run(RUN).finished


@by_form
def test_no_checkpoint_of_images_is_unpickled(marker: Path, tmp_path: Path, form: Callable[[Path], bytes]) -> None:
    """A folder that lies there is none of theirs."""
    store = Store(tmp_path / "store")
    folder = store.run(RUN)
    write(folder.path / "checkpoint/a/.metadata", form(marker))
    write(folder.path / "checkpoint/values.json", json.dumps(OWN).encode())
    write(folder.checkpoint, form(marker))
    refused(
        lambda: trained(store, IMAGES, None), "the checkpoint .*checkpoint.safetensors cannot be read .*: remove it"
    )
    folder.checkpoint.unlink()
    trained(store, IMAGES, None)
    assert folder.finished


@by_form
@pytest.mark.parametrize(
    ("spec", "files"),
    [
        (fine_tune_branch(IMAGES, 1, lr=1e-3, num_epochs=1), ("epoch-1.safetensors",)),
        (TextReplay(of=TEXT, match="none"), ("norms.safetensors",)),
        (TextBranch(of=TEXT, at=2, branch="tiny-lr", num_steps=1), ("step-2.safetensors",)),
        (TextBranch(of=TEXT, at=2, branch="tiny-lr", num_steps=1), ("step-2/a/.metadata", "step-2/a/__0_0.distcp")),
        (TextBranch(of=TEXT, at=2, branch="tiny-lr", num_steps=1), ("step-2/a/shard-00001.safetensors",)),
        (TextBranch(of=TEXT, at=2, branch="tiny-lr", num_steps=1), ("step-2/values.json",)),
    ],
)
def test_nothing_that_a_parent_kept_is_unpickled(
    marker: Path, tmp_path: Path, corpus: str, form: Callable[[Path], bytes], spec: RunSpec, files: tuple[str, ...]
) -> None:
    store = Store(tmp_path / "store")
    kept = store.run(PARENT).kept
    if files[0].startswith("step-2/"):
        write(kept / "step-2/values.json", json.dumps(OWN).encode())
    for file in files:
        write(kept / file, form(marker))
    refused(lambda: trained(store, spec, corpus if isinstance(spec, TextBranch | TextReplay) else None), "remove")


def test_a_study_refuses_a_planted_checkpoint(
    marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command itself, with its workers."""
    study = get_study("stabilization")
    plan = make_plan(study, "smoke", study.presets["smoke"], num_seeds=1)
    store = Store(tmp_path / "store")
    for run in plan.needed:
        write(store.run(run.id).checkpoint, saved(marker))
        write(store.run(run.id).path / "checkpoint/a/.metadata", pickled(marker))
        write(store.run(run.id).path / "checkpoint/values.json", json.dumps(OWN).encode())
    arguments = ("study", "run", "stabilization", "--preset", "smoke", "--seeds", "1", "--workers", "1")
    said = command(capsys, monkeypatch, *arguments, "--store", str(store.path))
    assert re.fullmatch(
        r"error: the checkpoint .* cannot be read \(.*\): remove it and run again, the run then starts over\n", said
    )


@pytest.mark.parametrize("spec", [IMAGES, TEXT])
def test_a_checkpoint_of_another_run_is_refused(tmp_path: Path, corpus: str, spec: ImageRun | TextRun) -> None:
    """Its tensors would fit."""
    store = Store(tmp_path / "store")
    trained(store, spec, corpus if spec is TEXT else None)
    kept = store.run(RUN).kept / ("step-2.safetensors" if spec is TEXT else "epoch-1.safetensors")
    other = replace(spec, seed=spec.seed + 1)
    write(tmp_path / "other/runs" / RUN / "checkpoint.safetensors", kept.read_bytes())
    said = refused(lambda: trained(Store(tmp_path / "other"), other, corpus if spec is TEXT else None))
    assert f"was written by another run (its spec is {spec.digest()[:12]}, expected {other.digest()[:12]})" in said


OF_IMAGES = {"run": IMAGES.digest(), "values": "{}"}


@pytest.mark.parametrize(
    "metadata",
    [None, {}, OF_IMAGES, *(OF_IMAGES | {"crc32": text} for text in (DEEP, "{}", "[]", "3", '{"": 1}', "NaN", ""))],
)
def test_a_checkpoint_without_a_whole_header_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    store = Store(tmp_path / "store")
    path = store.run(RUN).checkpoint
    path.parent.mkdir(parents=True)
    save_file({"model.weight": torch.zeros(2)}, path, metadata)
    refused(lambda: trained(store, IMAGES, None), r"the checkpoint .* cannot be read \(.*\): remove it and run again")


def changed(path: Path, to: Path, change: Callable[[dict[str, Any], dict[str, Any]], object], spec: RunSpec) -> None:
    """A file of tensors with a change and right checksums, as somebody might make it."""
    found = read_tensors(path, run=spec.digest())
    assert found is not None
    change(*found)
    write_tensors(to, *found, run=spec.digest())


SCALAR, ONE, HALF = torch.zeros(()), torch.zeros(1), torch.zeros(1, dtype=torch.float16)
SCALERS: tuple[Any, ...] = ({"scale": 1.0}, 3, None, [])
FORGED: list[tuple[Callable[[dict[str, Any], dict[str, Any]], object], str]] = [
    *((lambda t, v, value=value: t.update({last(t): value}), " is .*, expected ") for value in (SCALAR, ONE, HALF)),
    *(
        (lambda t, v, to=to: t.update({last(t): to(t[last(t)])}), " is .*, expected ")
        for to in (Tensor.int, Tensor.bool)
    ),
    (lambda t, v: t.pop(last(t)), " is missing"),
    (lambda t, v: t.update({last(t): t[last(t)] * math.nan}), "has numbers that are not finite"),
    *((lambda t, v, step=step: v.update(step=step), "step is ") for step in (-1, "1", True, 1.0, None, [1])),
    (lambda t, v: v.update(step=1000), "(step is 1000|is of step 1000|trace is .*), expected "),
    (lambda t, v: v.pop("step"), "('step'|step is None)"),
    *((lambda t, v, value=value: v.update(scaler=value), "scaler is ") for value in SCALERS),
]


def last(tensors: dict[str, Any]) -> str:
    """Weights that every run has."""
    return max(name for name in tensors if name.startswith("model.") and tensors[name].ndim == 2)


@pytest.mark.parametrize("spec", [IMAGES, TEXT], ids=["images", "text"])
def test_a_checkpoint_whose_parts_do_not_fit_is_refused(
    stopped: dict[str, Path], tmp_path: Path, corpus: str, spec: ImageRun | TextRun
) -> None:
    """Its checksums are right. Tensors would be broadcast or rounded, and a wrong step ends in other readings."""
    store = Store(tmp_path / "store")
    for change, match in FORGED:
        changed(stopped[spec.kind], store.run(RUN).checkpoint, change, spec)
        refused(lambda: trained(store, spec, corpus), f"{match}.*: remove it and run again")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each, as a stop leaves it."""
    folder = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(folder / "cache"))
        text = str(write_corpus(folder / "corpus"))
        for spec in (IMAGES, TEXT):
            with pytest.raises(RunStoppedError):
                train(
                    spec, Context(data_folder=text), sink=lambda _: None, folder=folder / spec.kind, stop=lambda: True
                )
    return {spec.kind: folder / spec.kind / "checkpoint.safetensors" for spec in (IMAGES, TEXT)}


@pytest.mark.parametrize("spec", [IMAGES, TEXT], ids=["images", "text"])
def test_a_flipped_bit_is_noticed_wherever_it_is(
    stopped: dict[str, Path], tmp_path: Path, corpus: str, spec: ImageRun | TextRun
) -> None:
    """In the names, the values or the numbers; nothing is trained from it."""
    whole = stopped[spec.kind].read_bytes()
    rng = random.Random(0)
    head = 8 + int.from_bytes(whole[:8], "little")
    for place in [rng.randrange(head) for _ in range(12)] + [rng.randrange(head, len(whole)) for _ in range(12)]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path = tmp_path / "checkpoint.safetensors"
        path.write_bytes(flipped)
        refused(lambda: read_tensors(path, run=spec.digest()), "remove it and run again")  # noqa: B023 - it is called at once


@pytest.mark.parametrize(
    "change",
    [
        lambda trace: trace[:1],
        lambda trace: trace[:, 1:],
        lambda trace: trace.float(),
        lambda trace: trace.flatten(),
        lambda trace: -trace,
        lambda trace: trace * math.nan,
        lambda trace: torch.cat([trace[:, :-1], torch.ones(len(trace), 1, dtype=trace.dtype)], dim=1),
    ],
)
def test_norms_that_a_parent_did_not_have_are_refused(
    tmp_path: Path, corpus: str, change: Callable[[Tensor], Tensor]
) -> None:
    store = Store(tmp_path / "store")
    write_trace(
        store.run(PARENT).kept / "norms.safetensors", list(change(torch.rand(2, 8).double() / 2)), run=TEXT.digest()
    )
    replay = TextReplay(of=TEXT, match="global")
    refused(
        lambda: trained(store, replay, corpus),
        rf"norms.safetensors cannot be read \(trace .*: remove the folder .*{PARENT} and run again",
    )


# ---- what verdicts and the report read


@by_form
@pytest.mark.parametrize("place", ["store.json", "manifest", "run.json", "readings.jsonl"])
def test_verdicts_and_report_unpickle_nothing(
    marker: Path,
    tmp_path: Path,
    form: Callable[[Path], bytes],
    place: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = make_store(tmp_path / "store")
    path = next(store.path.rglob(place if place != "manifest" else "stabilization-laptop.json"))
    for end in (b"", b"\n"):
        path.write_bytes(form(marker) + end)
        said = command(capsys, monkeypatch, "study", "verdicts", "--store", str(store.path))
        assert "error: " in said
        assert path.name in said
        if place in {"store.json", "manifest"}:
            said = command(capsys, monkeypatch, "report", "--store", str(store.path))
            assert "error: " in said
        else:  # the other runs are shown
            results = StudyResults(store, get_study("stabilization"), store.manifests()[0])
            (said,) = results.damaged.values()
            assert results.num_finished == results.num_planned - 1
        assert path.name in said


@by_form
def test_what_is_kept_to_be_faster_is_not_unpickled(
    marker: Path, tmp_path: Path, form: Callable[[Path], bytes], corpus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compact form of readings, and what the cache remembers of token files: both are made anew."""
    monkeypatch.setattr(columns, "SMALLEST_COMPACT", 1)
    monkeypatch.setattr(shards, "SETTLED", -(10**18))
    store = make_store(tmp_path / "store")

    def read() -> object:
        shards._remembered.cache_clear()
        results = StudyResults(store, get_study("stabilization"), store.manifests()[0])
        assert not results.damaged
        return results.last("large-decay", "test/error", 8).tolist(), load_tokens(TEXT, corpus).train.tolist()

    found = read()
    kept = [*store.path.rglob("readings.safetensors"), *(tmp_path / "cache").rglob("contents/*.json")]
    assert len(kept) == 8 + 2
    for path in kept:
        path.write_bytes(form(marker))
    assert read() == found
    assert all(path.read_bytes() != form(marker) for path in kept)


# ---- data


@by_form
@pytest.mark.parametrize("name", ["fashion-mnist", "cifar10"])
def test_images_are_not_unpickled(marker: Path, tmp_path: Path, form: Callable[[Path], bytes], name: str) -> None:
    """CIFAR-10's usual files are pickles; the binary version is asked for."""
    names = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for file in (*names, *(f"{each}.bin" for each in names)):
        write(tmp_path / "data" / file, form(marker))
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            write(tmp_path / "data" / f"{split}-{kind}-ubyte.gz", form(marker))
    refused(lambda: read_source(name, tmp_path / "data"), "fetch .* again")


@by_form
@pytest.mark.parametrize("place", ["train.bin", "train.bin.json"])
def test_tokens_are_not_unpickled(
    marker: Path,
    tmp_path: Path,
    form: Callable[[Path], bytes],
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    for name in ("train.bin", "val.bin"):
        write(folder / name, bytes(2000))
    raw = form(marker)
    write(folder / place, raw + b"\0" * (1 - len(raw) % 2) if place == "train.bin" else raw)
    write(folder / "train.npy", raw)
    spec = replace(TEXT, corpus="openwebtext", tokenizer="gpt2", vocab_size=50304)
    refused(lambda: load_tokens(spec, str(folder)))


@by_form
def test_a_folder_of_text_is_not_unpickled(
    marker: Path, tmp_path: Path, form: Callable[[Path], bytes], corpus: str
) -> None:
    write(Path(corpus) / "part.txt", form(marker))
    write(Path(corpus) / "part.pkl", form(marker))
    spec = replace(TEXT, tokenizer="bytes", vocab_size=256)
    data = load_tokens(spec, corpus)
    folder = next(path.parent for path in (tmp_path / "cache").rglob("about.json"))
    assert len(data.train) > 1000
    (folder / "about.json").write_bytes(form(marker))
    refused(lambda: load_tokens(spec, corpus), "about.json is not valid JSON .*: remove it, and run the study again")


def test_a_sidecar_that_is_nested_too_deeply_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    for name in ("train.bin", "val.bin"):
        write(tmp_path / "data" / name, bytes(2000))
    write(tmp_path / "data/train.bin.json", DEEP.encode())
    spec = replace(TEXT, corpus="openwebtext", tokenizer="gpt2", vocab_size=50304)
    refused(lambda: load_tokens(spec, str(tmp_path / "data")), "is no sidecar of a token file .*: delete it")


# ---- archives


VERSION = b'{"schema": 1}'


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    found = tarfile.TarInfo(name)
    found.type, found.linkname = kind, target
    return found


@pytest.mark.parametrize(
    "found",
    [
        member("../outside.json"),
        member("runs/../../outside.json"),
        member("/tmp/outside.json"),
        member(f"runs/{RUN}/../../../outside.json"),
        member(f"runs/{RUN}/checkpoint/a/.metadata"),
        member(f"runs/{RUN}/checkpoint.safetensors"),
        member("runs/x/run.json"),
        member(f"runs/{RUN}/run.json\n"),
        member("sheets/..json"),
        member("store.json", tarfile.SYMTYPE, "/etc/hostname"),
        member("store.json", tarfile.LNKTYPE, "sheets/a.json"),
        member("store.json", tarfile.FIFOTYPE),
        member("store.json", tarfile.CHRTYPE),
        member("runs", tarfile.SYMTYPE, "/tmp"),
    ],
    ids=lambda found: f"{found.name} {found.type!r}",
)
def test_an_archive_that_holds_anything_else_is_refused(tmp_path: Path, found: tarfile.TarInfo) -> None:
    with tarfile.open(tmp_path / "a.tar.xz", "w:xz") as archive:
        archive.addfile(member("sheets/a-b.json"))
        archive.addfile(found)
    refused(
        lambda: ArchivedStore(tmp_path),
        r"^[^ ]*a.tar.xz is no whole archive of runs \('[^ ]*' is no file of a store\), expected",
    )
    assert [path.name for path in tmp_path.iterdir()] == ["a.tar.xz"]


@by_form
def test_an_archive_is_not_unpickled(marker: Path, tmp_path: Path, form: Callable[[Path], bytes]) -> None:
    path = tmp_path / "a.tar.xz"
    path.write_bytes(form(marker))
    refused(lambda: ArchivedStore(tmp_path), r"a.tar.xz is no whole archive of runs \(.*\), expected")
    content = form(marker)
    about = member("sheets/stabilization-laptop.json")
    about.size = len(content)
    version = member("store.json")
    version.size = len(VERSION)
    with tarfile.open(path, "w:xz") as archive:
        archive.addfile(version, io.BytesIO(VERSION))
        archive.addfile(about, io.BytesIO(content))
    refused(lambda: ArchivedStore(tmp_path).manifests(), "stabilization-laptop.json is not valid JSON")


# ---- names and kinds of files


@pytest.mark.parametrize(
    "name",
    ["../../other", "/etc", "", ".", "..", RUN.upper(), RUN + "\n", RUN[1:], RUN + "0", f"{RUN}/..", "0" * 15 + "\0"],
)
def test_the_id_of_a_run_is_sixteen_hexadecimal_digits(tmp_path: Path, name: str) -> None:
    said = refused(lambda: Store(tmp_path).run(name))
    assert said.startswith(f"the id of a run is {name!r}, expected 16 hexadecimal digits: remove what names it in")


@pytest.mark.parametrize("name", [["../x"], {}, 3, None])
def test_the_id_of_a_run_is_text(tmp_path: Path, name: Any) -> None:
    refused(lambda: Store(tmp_path).run(name), "the id of a run is .*, expected 16 hexadecimal digits")


@pytest.mark.parametrize("name", ["../x", "/x", "", ".x", "a/b", "a" * 201])
def test_the_name_of_a_manifest_leads_nowhere(tmp_path: Path, name: str) -> None:
    store = Store(tmp_path / "store")
    refused(
        lambda: store.write_manifest(name, {}),
        "the name of a manifest is .*, expected letters, digits, dots and dashes",
    )
    assert not [path for path in tmp_path.rglob("*.json") if path.name != "store.json"]


@pytest.mark.parametrize("name", ["../../secret.safetensors", "/etc/passwd", "", "step-2/../..", "step-2\n"])
def test_what_a_parent_kept_lies_in_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    for spec in (fine_tune_branch(IMAGES, 1, lr=1e-3, num_epochs=1), TextReplay(of=TEXT, match="none")):
        monkeypatch.setattr(type(spec), "parent_file", name)
        said = refused(lambda: kept_file(tmp_path / "kept", spec))  # noqa: B023 - it is called at once
        assert said.startswith(f"the file of the parent is {name!r}, expected a name such as step-100 or epoch-10.safe")


def test_a_manifest_cannot_name_a_run_outside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path / "store")
    (manifest,) = store.manifests()
    secret = shutil.copytree(store.run(manifest["arms"][0]["runs"]["0"]).path, tmp_path / "secret")
    for name in ("../../secret", str(secret)):
        manifest["arms"][0]["runs"]["0"] = name
        store.write_manifest("stabilization-laptop", manifest)
        for arguments in (("study", "verdicts"), ("report",)):
            said = command(capsys, monkeypatch, *arguments, "--store", str(store.path))
            assert f"arms[0].runs['0'] is '{name[:50]}" in said
            assert "expected 16 hexadecimal digits: remove it, and run the study again" in said


def link(path: Path, outside: Path) -> None:
    path.symlink_to(outside)


def pipe(path: Path, _outside: Path) -> None:
    os.mkfifo(path)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(("make", "kind"), [(link, "link"), (pipe, "named pipe")])
@pytest.mark.parametrize(
    "place",
    ["run.json", "readings.jsonl", "checkpoint.safetensors", "checkpoint/values.json", "kept/step-2/a/x", "kept"],
)
def test_a_run_holds_folders_and_regular_files(
    tmp_path: Path, place: str, make: Callable[[Path, Path], None], kind: str
) -> None:
    """Links are refused, whether they lead to a file, to a folder or nowhere, before anything is read or written."""
    store = Store(tmp_path / "store")
    for outside in (tmp_path, tmp_path / "secret", tmp_path / "nowhere"):
        (tmp_path / "secret").write_text("{}")
        path = store.run(RUN).path / place
        path.parent.mkdir(parents=True, exist_ok=True)
        make(path, outside)
        refused(lambda: store.run(RUN), f"{path} is a {kind}, expected a file: remove it, and run again")
        path.unlink()


def test_the_folder_of_a_run_is_no_link(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    store.create()
    (tmp_path / "other").mkdir()
    (store.path / "runs" / RUN).symlink_to(tmp_path / "other")
    refused(lambda: store.run(RUN), f"{RUN} is a link, expected a folder")
    (store.path / "runs" / RUN).unlink()
    (store.path / "runs" / RUN).write_text("")
    refused(lambda: store.run(RUN), f"{RUN} is a file, expected a folder")


@pytest.mark.parametrize("part", ["runs", "sheets", "figures", ".lock"])
def test_the_parts_of_a_store_are_no_links(tmp_path: Path, part: str) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / part).symlink_to(tmp_path / "elsewhere")
    refused(lambda: Store(tmp_path / "store"), f"{part} is a link, expected a part of the store itself: remove it")


def test_the_store_itself_may_be_a_link(tmp_path: Path) -> None:
    store = make_store(tmp_path / "large disk")
    (tmp_path / "store").symlink_to(store.path)
    again = Store(tmp_path / "store")
    assert again.manifests() == store.manifests()
    assert again.run(again.manifests()[0]["arms"][0]["runs"]["0"]).finished


@pytest.mark.timeout(20)
@pytest.mark.parametrize("make", [link, pipe])
@pytest.mark.parametrize("place", ["store.json", "sheets/stabilization-laptop.json"])
def test_files_of_the_store_are_regular(tmp_path: Path, place: str, make: Callable[[Path, Path], None]) -> None:
    store = make_store(tmp_path / "store")
    path = store.path / place
    path.rename(tmp_path / "outside.json")
    make(path, tmp_path / "outside.json")
    refused(lambda: Store(store.path).manifests(), r"json is a (link|named pipe), expected a file: remove it")


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 100_000, f'{{"schema": 1, "a": {DEEP}', f'{{"a": {"[" * 60}{"]" * 60}}}']
)
def test_json_that_is_nested_too_deeply_is_one_sentence(tmp_path: Path, text: str) -> None:
    store = make_store(tmp_path / "store")
    folder = store.run(store.manifests()[0]["arms"][0]["runs"]["0"])
    (folder.path / "run.json").write_text(text)
    refused(folder.header, "run.json is nested too deeply to be read: remove it, and run the study again")
    (folder.path / "readings.jsonl").write_text(f"{text}\n")  # of the last kind, one that is no reading
    refused(folder.readings, "readings.jsonl is damaged .*: remove the folder .* and run again")


def test_a_header_as_deep_as_ours_is_read(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"a": ' + "[" * 31 + "1" + "]" * 31 + "}")
    assert read_object(tmp_path / "run.json").keys() == {"a"}
    (tmp_path / "run.json").write_text('{"a": ' + "[" * 32 + "1" + "]" * 32 + "}")
    refused(lambda: read_object(tmp_path / "run.json"), "is nested too deeply")


@pytest.mark.parametrize("step", ["Infinity", "1e999", "[]", "{}", '"x"', "null"])
def test_a_step_that_is_no_number_is_one_sentence(step: str) -> None:
    with pytest.raises(
        StoreError, match=r"line 1 is no reading: (step is .*, expected an integer >= 0|Infinity is no JSON)"
    ):
        Reading.from_line(f'{{"step": {step}, "epoch": 1, "values": {{}}}}')


def test_files_that_are_too_large_are_not_read(tmp_path: Path) -> None:
    """Sparse files, which take no room on the disk."""
    folder = Store(tmp_path / "store").run(RUN)
    folder.path.mkdir(parents=True)
    for name, largest, act in (
        ("run.json", LARGEST_JSON, folder.header),
        ("readings.jsonl", LARGEST_READINGS, folder.readings),
    ):
        with (folder.path / name).open("wb") as file:
            file.truncate(largest + 1)
        refused(act, f"{name} has {largest + 1:,} bytes, expected at most {largest:,}: remove it, and run again")


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    """Neither at the file's own name nor at the one under which it is written aside."""
    (tmp_path / "outside").write_text("precious")
    for name in ("run.json", f".run.json.{os.getpid()}.aside"):
        (tmp_path / name).symlink_to(tmp_path / "outside")
    write_whole(tmp_path / "run.json", "{}")
    assert (tmp_path / "outside").read_text() == "precious"
    assert read_object(tmp_path / "run.json") == {}


def test_what_may_not_be_read_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.json").write_text("{}")

    def denied(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    with pytest.raises(
        StoreError, match=r"run.json cannot be read \(Permission denied\): make it readable, or remove it"
    ):
        read_object(tmp_path / "run.json")


def test_user_errors_stay_what_they_are(tmp_path: Path) -> None:
    """They are ValueErrors, too, and must not be told as damage."""
    with pytest.raises(UserError, match="was written by another run"), readable(tmp_path):
        check_run(tmp_path, "a", "b")


def write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
