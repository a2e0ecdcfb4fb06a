"""Every kind of file that halflife reads, a whole one of each, and how it is read.

Damage of a file must be told, or change nothing. A forged file, whose checksums are right or which has none, may hold something
else: it must be told or be read, and nothing else.
"""

from __future__ import annotations

import contextlib
import copy
import gzip
import hashlib
import json
import math
import os
import random
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from halflife.errors import HalflifeError, RunStoppedError, StoreError
from halflife.optim.attaching import attach
from halflife.rules import Applier, Decoupled, NormTarget, Rule, Scheduled, Stable, Toward
from halflife.rules.registry import rule_from, schedule_from
from halflife.schedules import until
from halflife.studies.catalog import get_study
from halflife.studies.evidence.verdicts import StudyResults, manifests_of
from halflife.studies.lab.images import sources
from halflife.studies.lab.images.loop import ImageLoop
from halflife.studies.lab.images.loop import open_run as open_images
from halflife.studies.lab.tensor_files import _checksums, read_tensors
from halflife.studies.lab.text import checkpoints, shards
from halflife.studies.lab.text.loop import TextLoop
from halflife.studies.lab.text.loop import open_run as open_text
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.lab.trainer import Context, train
from halflife.studies.report.pages.provenance import banners, provenance_of
from halflife.studies.report.pages.tables import verdict_rows
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs import ImageRun, TextBranch, TextReplay, TextRun, spec_from_json
from halflife.studies.specs.images import fine_tune_branch
from halflife.studies.store.archives import ArchivedStore
from halflife.studies.store.files import read_object
from halflife.studies.store.store import Store
from tests.golden.runs import RUNS
from tests.studies.lab.text_runs import MLP, stop_after, write_corpus
from tests.studies.store.mutations import (
    damaged_bytes,
    damaged_text,
    forged_json,
    forged_lines,
    forged_tensors,
    forged_text,
)
from tests.studies.store.test_damage import HISTORY, MORE, SEEDS, SOURCE
from tests.studies.synthetic import make_store
from tests.studies.tools import load_tool

__all__ = ["TARGETS", "Target", "Whole", "outcome"]

IMAGES = ImageRun(
    lr=0.1, lam=0.01, width=4, num_train=200, num_test=50, downsample=4, num_epochs=2, keep_at=(1,), ema=(0.9,)
)
TEXT = replace(MLP, num_steps=6, log_every=2, eval_every=2, keep_at=(4,), trace_norms=True, ema=(0.9,))
WORDS = "Scheduled(Cautious(Decoupled(0.1)), join([constant(1.0), cosine(1.0, 0.1, 35)], [5]))"
RUN = "0123456789abcdef"


@dataclass(frozen=True)
class Whole:
    """A whole file of each kind, in a folder."""

    folder: Path
    corpus: Path

    @property
    def store(self) -> Path:
        """A store of a study, two of whose runs have many readings."""
        return self.folder / "store"


@dataclass(frozen=True)
class Target:
    """A kind of file.

    Args:
        name: What it is called.
        file: One of them.
        read: What a reader gets of it.
        change: How it is changed.
        forged: Whether it may be read as something else.
        times: How much more often than others it is changed.
    """

    name: str
    file: Callable[[Whole], Path]
    read: Callable[[Whole, Path], object]
    change: Callable[[bytes, random.Random], bytes] = damaged_bytes
    forged: bool = False
    times: int = 1


def outcome(read: Callable[[], object]) -> object:
    """What a reader gets, or the sentence that it says."""
    try:
        return read()
    except (HalflifeError, UserWarning) as error:
        said = str(error)
        assert "\n" not in said, said
        assert 20 < len(said) < 1500, said
        return error


def text_change(change: Callable[[str, random.Random], str]) -> Callable[[bytes, random.Random], bytes]:
    """A change of text as one of bytes."""
    return lambda raw, rng: change(raw.decode(), rng).encode("utf-8", "surrogatepass")


def unsealed(raw: bytes, rng: random.Random) -> bytes:
    """A change of JSON in the form of older files, which had no checksum."""
    value = json.loads(raw)
    value.pop("crc32", None)
    return forged_json(json.dumps(value), rng).encode("utf-8", "surrogatepass")


# ---- what readers get


def of_store(path: Path) -> object:
    """Manifests, headers, and what verdicts and pages make of them."""
    said: list[str] = []
    store = Store(path)
    found: list[object] = []

    def tell(_study: str, _preset: str, error: Exception) -> None:
        said.append(str(error))

    for manifest in manifests_of(store, [], tell):
        results = StudyResults(store, get_study(manifest["study"]), manifest)
        said += results.damaged.values()
        found.append([manifest, results.headers, verdict_rows(results.verdicts()), repr(provenance_of(results))])
        found.append(banners(results))
    if said:
        raise StoreError(said[0])
    return repr(found)


def of_archive(whole: Whole, path: Path) -> object:
    """The same of an archive."""
    found: object = of_store_object(ArchivedStore(path))
    return found


def of_store_object(store: Store) -> object:
    """What a store holds, without the place where it lies."""
    (manifest,) = store.manifests()
    results = StudyResults(store, get_study(manifest["study"]), manifest)
    if results.damaged:
        raise StoreError(next(iter(results.damaged.values())))
    return repr([manifest, results.headers, verdict_rows(results.verdicts())])


def digest(tensors: dict[str, torch.Tensor]) -> str:
    """One of tensors by name."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        raw = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found.update(f"{name} {tensors[name].dtype} {tuple(tensors[name].shape)}".encode() + raw)
    return found.hexdigest()


def of_tensors(spec: Any) -> Callable[[Whole, Path], object]:
    """The tensors and the values of a file."""

    def read(whole: Whole, path: Path) -> object:
        found = read_tensors(path, run=spec.digest())
        assert found is not None
        return digest(found[0]), found[1]

    return read


@contextlib.contextmanager
def alone(path: Path, name: str) -> Iterator[Path]:
    """A folder that holds a file, or a folder, under a name."""
    folder = path.parent / f"alone-{os.getpid()}"
    folder.mkdir()
    try:
        os.rename(path, folder / name)
        yield folder
    finally:
        os.rename(folder / name, path)
        shutil.rmtree(folder)


def of_checkpoint(whole: Whole, path: Path) -> object:
    """The state of a run that goes on from it."""
    images = "images" in path.parts
    with alone(path, "checkpoint.safetensors") as folder:
        run: Any = open_images(IMAGES, Context()) if images else open_text(TEXT, Context(data_folder=str(whole.corpus)))
        assert run.load(folder)
        return run.step, state_of(run)


def of_parts(whole: Whole, path: Path) -> object:
    """The state of a run that goes on from a checkpoint of several processes."""
    run: Any = open_text(TEXT, Context(data_folder=str(whole.corpus)))
    assert run.load(whole.folder / "parts")
    return run.step, state_of(run)


def of_kept(whole: Whole, path: Path) -> object:
    """What a run starts with that starts from it."""
    spec: Any
    if path.parts[-3] == "images-whole":
        spec = fine_tune_branch(IMAGES, 1, lr=1e-3, num_epochs=1)
        return state_of(open_images(spec, Context(parent=path.parent)))
    spec = TextReplay(of=TEXT, match="global")
    if path.name.startswith("step"):
        spec = TextBranch(of=TEXT, at=4, branch="cooldown", num_steps=2)
    run: Any = open_text(spec, Context(parent=path.parent, data_folder=str(whole.corpus)))
    return state_of(run), None if run.matcher is None else run.matcher.factors(3)


def state_of(run: Any) -> object:
    """The numbers of a run."""
    if isinstance(run, ImageLoop):
        return digest(run._tensors())
    assert isinstance(run, TextLoop)
    tensors, values = run.state.parts()
    return digest(tensors), values


def of_tokens(whole: Whole, path: Path) -> object:
    """Tokens that halflife made."""
    return _tokens(TEXT, whole.corpus)


def of_nanogpt(whole: Whole, path: Path) -> object:
    """Tokens that nanoGPT made."""
    return _tokens(replace(TEXT, corpus="openwebtext", tokenizer="gpt2", vocab_size=50304), path.parent)


def _tokens(spec: TextRun, folder: Path) -> object:
    shards._remembered.cache_clear()
    data = load_tokens(spec, str(folder))
    return data.train.tobytes(), data.val.tobytes(), data.digest, data.description, data.bytes_per_token


def of_stopped(whole: Whole, path: Path) -> object:
    """The readings that a run has when it goes on."""
    folder = Store(path.parents[2]).run(RUN)
    lines = folder.path / "readings.jsonl"
    before = lines.read_bytes()
    try:
        return folder.record(), folder._last_step, folder.header()["spec"]
    finally:
        folder.close()
        if not path.is_dir() and lines != path:
            lines.write_bytes(before)


def of_images(whole: Whole, path: Path) -> object:
    """Images in the files of Fashion-MNIST: any others are another data set, under another digest."""
    raw = sources._gunzipped(path) if path.suffix == ".gz" else path.read_bytes()
    return sources._take_idx(raw, 0, path.name)


def of_spec(whole: Whole, path: Path) -> object:
    """A run's spec, and what it says of itself."""
    value = read_object(path)
    spec = spec_from_json(value)
    return spec.digest(), spec.to_json(), spec.parent_file, spec.reads_folder


def of_rule(whole: Whole, path: Path) -> object:
    """A rule and its spelling."""
    made = rule_from(path.read_text(encoding="utf-8", errors="replace"))
    return repr(made) == repr(rule_from(repr(made)))


def of_schedule(whole: Whole, path: Path) -> object:
    """A schedule and a value."""
    return schedule_from(path.read_text(encoding="utf-8", errors="replace"))


ATTACHED: dict[str, Callable[[], Rule | Applier]] = {
    "decoupled": lambda: Decoupled(0.1),
    "norms": NormTarget,
    "stable": lambda: Stable(0.1),
    "scheduled": lambda: Scheduled(Decoupled(0.1), until(3)),
    "toward": lambda: Toward(Decoupled(0.1), "init"),
}
STATES: dict[str, Any] = {}


def optimizer_of(name: str) -> torch.optim.Optimizer:
    """An optimizer with a rule, two groups, and gradients."""
    weights = [torch.nn.Parameter(torch.ones(3) * number) for number in (1, 2)]
    for weight in weights:
        weight.grad = torch.ones(3)
    made = torch.optim.AdamW([{"params": [weight]} for weight in weights], lr=0.01, weight_decay=0.1)
    attach(made, ATTACHED[name]())
    return made


def of_optimizer(name: str) -> Callable[[Whole, Path], object]:
    """The next step of an optimizer whose state is loaded."""

    def read(whole: Whole, path: Path) -> object:
        state = copy.deepcopy(STATES[name])
        try:
            own = json.loads(path.read_text(encoding="utf-8", errors="surrogatepass"))
        except (ValueError, RecursionError):  # a state is no JSON
            return None
        if not isinstance(own, list) or len(own) != 2 or not all(isinstance(group, dict) for group in own):
            return None  # of which torch says what it thinks
        for group, values in zip(state["param_groups"], own, strict=True):
            for key in [key for key in group if key.startswith(("halflife", "initial_weight"))]:
                del group[key]
            group |= {key: value for key, value in values.items() if key.startswith(("halflife", "initial_weight"))}
        made = optimizer_of(name)
        made.load_state_dict(state)
        made.step()
        return [parameter.tolist() for group in made.param_groups for parameter in group["params"]]

    return read


# ---- the whole files


def make_whole(folder: Path) -> Whole:
    """All of them. The environment must name a cache."""
    corpus = write_corpus(folder / "corpus")
    whole = Whole(folder, corpus)
    store = make_store(
        whole.store, num_epochs=30, num_test=16, claims=HISTORY, planned_seeds=SEEDS, source=SOURCE, max_steps=None
    )
    for path in sorted((whole.store / "runs").iterdir())[:-1]:  # the last one has no record of its readings
        made = store.run(path.name)
        made.finish(made.header() | MORE)
    load_tool("results").pack(make_store(folder / "small").path, folder / "packed")
    for spec, kind in ((IMAGES, "images"), (TEXT, "text")):
        with contextlib.suppress(RunStoppedError):
            train(spec, Context(data_folder=str(corpus)), sink=lambda _: None, folder=folder / kind, stop=stop_after(1))
        train(spec, Context(data_folder=str(corpus)), sink=lambda _: None, folder=folder / f"{kind}-whole")
    run: Any = TextLoop(TEXT, Context(data_folder=str(corpus)))
    assert run.load(folder / "text")
    tensors, values = run.state.parts()
    parallel = DataParallelContext(torch.device("cpu"))
    with pytest.warns(UserWarning, match="torch.distributed is"):
        checkpoints.write_folder(folder / "parts/checkpoint", tensors, values, parallel, run=TEXT.digest())
    stopped = Store(folder / "stopped")
    with contextlib.suppress(RunStoppedError):
        train_run(
            stopped,
            Task(RUN, TEXT, None),
            progress=lambda *_: None,
            device="cpu",
            data_folder=str(corpus),
            stop=stop_after(5),
        )
    ids = np.random.default_rng(0).integers(0, 50_257, 3000)
    (folder / "nanogpt").mkdir()
    for name in ("train.bin", "val.bin"):
        ids.astype("<u2").tofile(folder / "nanogpt" / name)
    of_nanogpt(whole, folder / "nanogpt/train.bin")
    (folder / "idx").mkdir()
    pixels = bytes(range(256)) * 2
    idx = b"\0\0\x08\x03" + struct.pack(">3I", 8, 8, 8) + pixels
    (folder / "idx/images").write_bytes(idx)
    (folder / "idx/images.gz").write_bytes(gzip.compress(idx))
    (folder / "specs").mkdir()
    for number, spec_of_kind in enumerate(spec for runs in RUNS.values() for spec in list(runs.values())[:2]):
        (folder / "specs" / f"{number}.json").write_text(json.dumps(spec_of_kind.to_json()))
    (folder / "words").write_text(WORDS)
    (folder / "schedule").write_text("join([warmup(5), cosine(1.0, 0.1, 35)], [5])")
    for name in ATTACHED:
        optimizer = optimizer_of(name)
        optimizer.step()
        STATES[name] = optimizer.state_dict()
        (folder / f"{name}.json").write_text(json.dumps(own_values(STATES[name])))
    return whole


def own_values(state: dict[str, Any]) -> list[dict[str, Any]]:
    """What halflife keeps in the groups of a state."""
    return [
        {key: value for key, value in group.items() if key.startswith(("halflife", "initial_weight"))}
        for group in state["param_groups"]
    ]


def first_run(whole: Whole, name: str) -> Path:
    """A file of a run of the store."""
    return min((whole.store / "runs").iterdir()) / name


def cached(name: str) -> Callable[[Whole], Path]:
    """A file of the tokens that halflife made."""
    return lambda whole: next(Path(os.environ["HALFLIFE_CACHE"]).glob(f"tokens/*/{name}"))


def in_folder(name: str) -> Callable[[Whole], Path]:
    """A file of the folder."""
    return lambda whole: next(whole.folder.glob(name))


JSON = text_change(forged_json)
STORE_FILES: dict[str, Callable[[Whole], Path]] = {
    "store.json": lambda whole: whole.store / "store.json",
    "manifest": lambda whole: next((whole.store / "sheets").iterdir()),
    "run.json": lambda whole: first_run(whole, "run.json"),
    "readings": lambda whole: first_run(whole, "readings.jsonl"),
    "columns": lambda whole: first_run(whole, "readings.safetensors"),
}
TARGETS = [
    *(Target(name, file, lambda whole, path: of_store(whole.store)) for name, file in STORE_FILES.items()),
    *(
        Target(f"{name}, forged", STORE_FILES[name], lambda whole, path: of_store(whole.store), unsealed, forged=True)
        for name in ("store.json", "manifest", "run.json")
    ),
    Target("columns, header", STORE_FILES["columns"], lambda whole, path: of_store(whole.store), forged_tensors),
    Target("archive", in_folder("packed/*"), of_archive, times=5),
    *(
        Target(f"{kind}, readings of a stopped run", in_folder(f"stopped/runs/*/{kind}"), of_stopped)
        for kind in ("run.json", "readings.jsonl")
    ),
    *(
        target
        for kind, spec in (("images", IMAGES), ("text", TEXT))
        for target in (
            Target(f"checkpoint of {kind}", in_folder(f"{kind}/checkpoint.safetensors"), of_tensors(spec)),
            Target(
                f"checkpoint of {kind}, header",
                in_folder(f"{kind}/checkpoint.safetensors"),
                of_checkpoint,
                forged_tensors,
            ),
        )
    ),
    Target("kept by images", in_folder("images-whole/kept/*"), of_kept),
    Target("kept by text", in_folder("text-whole/kept/step*"), of_kept),
    Target("norms", in_folder("text-whole/kept/norms*"), of_kept),
    Target("parts", in_folder("parts/checkpoint/a/*"), of_parts),
    Target("parts, header", in_folder("parts/checkpoint/a/*"), of_parts, forged_tensors),
    Target("index of parts", in_folder("parts/checkpoint/values.json"), of_parts),
    Target("index of parts, forged", in_folder("parts/checkpoint/values.json"), of_parts, unsealed, forged=True),
    *(Target(f"tokens, {name}", cached(name), of_tokens) for name in ("train.bin", "val.bin")),
    *(
        target
        for name in ("train.bin.json", "about.json")
        for target in (
            Target(f"tokens, {name}", cached(name), of_tokens),
            Target(f"tokens, {name}, forged", cached(name), of_tokens, unsealed, forged=True),
        )
    ),
    Target("tokens of nanoGPT", in_folder("nanogpt/train.bin"), of_nanogpt),
    Target("sidecar of nanoGPT", in_folder("nanogpt/train.bin.json"), of_nanogpt),
    Target("sidecar of nanoGPT, forged", in_folder("nanogpt/train.bin.json"), of_nanogpt, unsealed, forged=True),
    Target("idx", in_folder("idx/images"), of_images, forged=True),
    Target("gzip of idx", in_folder("idx/images.gz"), of_images, forged=True),
    *(Target(f"spec {number}", in_folder(f"specs/{number}.json"), of_spec, JSON, forged=True) for number in range(9)),
    Target("rule", in_folder("words"), of_rule, text_change(forged_text), forged=True),
    Target("schedule", in_folder("schedule"), of_schedule, text_change(forged_text), forged=True),
    *(
        Target(f"state of {name}", in_folder(f"{name}.json"), of_optimizer(name), JSON, forged=True)
        for name in ATTACHED
    ),
]


def forged_readings(raw: bytes, rng: random.Random) -> bytes:
    """Lines changed."""
    return forged_lines(raw.decode(), rng).encode("utf-8", "surrogatepass")


def forged_numbers(raw: bytes, rng: random.Random) -> bytes:
    """A file of tensors, one of which or of whose values is another, with right checksums."""
    tensors = load(raw)
    words = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])["__metadata__"]
    name, values = rng.choice(list(tensors)), words["values"]
    old = tensors[name]
    if rng.random() < 0.5 and values != "{}":
        values = forged_json(values, rng)
    else:
        changes: list[Callable[[], Any]] = [
            lambda: torch.zeros(()),
            lambda: torch.zeros(1),
            lambda: torch.zeros(0),
            lambda: old.reshape(-1),
            lambda: old.T.contiguous() if old.ndim == 2 else old[None],
            lambda: old[:1] if old.ndim else old[None],
            lambda: torch.cat([old, old]) if old.ndim else old[None],
            lambda: old.to(
                rng.choice([torch.float16, torch.bfloat16, torch.float64, torch.int32, torch.bool, torch.uint8])
            ),
            lambda: (
                torch.full_like(old, rng.choice([math.nan, math.inf, -1e30, 0.0])) if old.is_floating_point() else -old
            ),
            lambda: None,
        ]
        made = rng.choice(changes)()
        tensors.pop(name) if made is None else tensors.update({name: made})
        if made is not None and rng.random() < 0.1:
            tensors[damaged_text(name, rng).replace("\x00", "")] = tensors.pop(name)
    said = _checksums(tensors, values)
    return save(tensors, {"run": words["run"], "values": values, "crc32": json.dumps(said)})


TARGETS += [
    Target(
        "readings without a record",
        lambda whole: max((whole.store / "runs").iterdir()) / "readings.jsonl",
        lambda whole, path: of_store(whole.store),
        forged_readings,
        forged=True,
    ),
    *(
        Target(f"{name}, forged", in_folder(pattern), read, forged_numbers, forged=True)
        for name, pattern, read in (
            ("checkpoint of images", "images/checkpoint.safetensors", of_checkpoint),
            ("checkpoint of text", "text/checkpoint.safetensors", of_checkpoint),
            ("kept by images", "images-whole/kept/*", of_kept),
            ("kept by text", "text-whole/kept/step*", of_kept),
            ("norms", "text-whole/kept/norms*", of_kept),
        )
    ),
]
