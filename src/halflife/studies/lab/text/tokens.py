"""The tokens of a run: a corpus cut into ids once, kept in the cache, and mapped into memory from then on."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import math
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from halflife.errors import UserError
from halflife.studies.lab.text.corpora import Corpus, find_corpus
from halflife.studies.lab.text.encoders import (
    GPT2_DIGEST,
    GPT2_VOCABULARY,
    Encoder,
    bpe_encoder,
    byte_encoder,
    gpt2_encoder,
)
from halflife.studies.lab.text.shards import (
    Tokens,
    cache_folder,
    make_cache_folder,
    open_shard,
    token_dtype,
    write_shard,
)
from halflife.studies.specs.text import TextRun
from halflife.studies.store.files import read_object, write_object
from halflife.studies.store.schema import TEXT, Fields

__all__ = ["TokenData", "load_tokens"]

FORMAT = 1  # of the tokens: another number, other ones
ABOUT = Fields({"tokenizer": TEXT, "title": TEXT})
FILES = 2  # of what lies beside them in the cache


@dataclass(frozen=True)
class TokenData:
    """The tokens of both splits, mapped into memory and read-only.

    Args:
        train: Token ids of the training split, 1-D, uint8 or uint16.
        val: Token ids of the validation split.
        vocab_size: Number of ids of the model, at least that of the tokenizer.
        digest: sha256 of the tokenizer and the text: what a checkpoint was trained on.
        bytes_per_token: Bytes of the validation split per token of it, separators included; NaN where only tokens are there.
        description: For people.
    """

    train: Tokens
    val: Tokens
    vocab_size: int
    digest: str
    bytes_per_token: float
    description: str


def load_tokens(spec: TextRun, data_folder: str | None = None) -> TokenData:
    """The tokens that a run trains on and is evaluated on.

    The first call for a corpus and a tokenizer makes them, which takes a second for bytes and up to a minute or two for
    a BPE; processes that ask at the same time wait for each other.

    Args:
        spec: The run.
        data_folder: Where a corpus lies that is not installed; ``HALFLIFE_DATA`` when not given.

    Returns:
        The tokens.

    Raises:
        UserError: The corpus, the tokenizer or the vocabulary cannot be used as they are, or the files are not whole.
    """
    token_dtype(spec.vocab_size)
    if spec.tokenizer == "gpt2" and spec.vocab_size < GPT2_VOCABULARY:
        raise UserError(
            f"vocab_size is {spec.vocab_size:,} for gpt2, expected at least {GPT2_VOCABULARY:,}: raise vocab_size"
        )
    corpus = find_corpus(spec.corpus, data_folder)
    if corpus.shards is not None:
        return _ready_tokens(corpus, corpus.shards, spec)
    folder = _tokenized(corpus, spec)
    remedy = f"delete {folder} and run again"
    about = read_object(folder / "about.json", ABOUT)
    train, _ = open_shard(folder / "train.bin", vocab_size=spec.vocab_size, tokenizer=about["tokenizer"], remedy=remedy)
    val, _ = open_shard(folder / "val.bin", vocab_size=spec.vocab_size, tokenizer=about["tokenizer"], remedy=remedy)
    val_bytes = sum(document.size + 1 for document in corpus.val)  # a separator counts as one byte
    return _data(corpus, spec, train, val, about["tokenizer"], val_bytes / len(val), about["title"])


def _ready_tokens(corpus: Corpus, shards: tuple[Path, Path], spec: TextRun) -> TokenData:
    if spec.tokenizer != "gpt2":
        raise UserError(
            f"tokenizer is {spec.tokenizer!r} and {corpus.name} consists of GPT-2 tokens: set tokenizer='gpt2' and vocab_size"
            f" to {GPT2_VOCABULARY:,} or more"
        )
    train, val = (
        open_shard(
            path,
            vocab_size=spec.vocab_size,
            tokenizer=GPT2_DIGEST,
            remedy="copy it again, or delete that sidecar if the file is meant",
            nanogpt=True,
        )[0]
        for path in shards
    )
    return _data(corpus, spec, train, val, GPT2_DIGEST, math.nan, "GPT-2's BPE")


def _data(
    corpus: Corpus, spec: TextRun, train: Tokens, val: Tokens, tokenizer: str, bytes_per_token: float, title: str
) -> TokenData:
    if len(val) <= spec.context:
        raise UserError(
            f"the validation split of {corpus.name} holds {len(val):,} tokens, expected more than the context {spec.context}:"
            " take more text, or lower context"
        )
    description = f"{corpus.title}: {len(train):,} training and {len(val):,} validation tokens, {title}"
    if spec.num_train_tokens is not None:
        if spec.num_train_tokens > len(train):
            raise UserError(
                f"num_train_tokens is {spec.num_train_tokens:,} and the training split holds {len(train):,}: lower"
                " num_train_tokens, or take more text"
            )
        train = train[: spec.num_train_tokens]
        description += f"; the first {len(train):,} of them are trained on"
    digest = hashlib.sha256(f"{FORMAT}/{corpus.sha256}/{tokenizer}".encode()).hexdigest()
    return TokenData(train, val, spec.vocab_size, digest, bytes_per_token, description)


def _tokenized(corpus: Corpus, spec: TextRun) -> Path:
    """The folder of the cache that holds the tokens; they are made if they are not there."""
    settings = {"format": FILES, "corpus": corpus.sha256, "tokenizer": spec.tokenizer}
    if spec.tokenizer != "gpt2":
        settings["vocab_size"] = spec.vocab_size
    if spec.tokenizer == "bpe":
        settings["version"] = _version("tokenizers")
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    root = cache_folder() / "tokens"
    folder = root / key
    if (folder / "about.json").is_file():
        return folder
    make_cache_folder(root)
    try:
        with FileLock(root / f"{key}.lock"):
            if not (folder / "about.json").is_file():
                _make(corpus, spec, folder)
    except OSError as error:
        raise UserError(
            f"{folder} cannot be written ({error.strerror}), expected a folder for the tokens of {corpus.name}: free some"
            " space, or name another folder with HALFLIFE_CACHE"
        ) from error
    return folder


def _make(corpus: Corpus, spec: TextRun, folder: Path) -> None:
    began = time.perf_counter()
    aside = folder.with_name(f".{folder.name}.aside")  # one for all: only the holder of the lock writes
    shutil.rmtree(aside, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)
    aside.mkdir()
    try:
        encoder = _encoder(corpus, spec)
        for name, documents in (("train.bin", corpus.train_documents()), ("val.bin", corpus.val_documents())):
            parts = encoder.encode(documents)
            write_shard(aside / name, parts, vocab_size=encoder.vocab_size, tokenizer=encoder.digest)
        (aside / "tokenizer.json").write_text(encoder.json, encoding="utf-8")
        about = {
            "corpus": corpus.name,
            "corpus_title": corpus.title,
            "corpus_sha256": corpus.sha256,
            "title": encoder.title,
            "tokenizer": encoder.digest,
            "seconds": round(time.perf_counter() - began, 2),
        }
        write_object(aside / "about.json", about)
        aside.rename(folder)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _encoder(corpus: Corpus, spec: TextRun) -> Encoder:
    if spec.tokenizer == "bytes":
        return byte_encoder(corpus, spec.vocab_size)
    return bpe_encoder(corpus, spec.vocab_size) if spec.tokenizer == "bpe" else gpt2_encoder()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
