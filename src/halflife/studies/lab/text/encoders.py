"""From documents to token ids: bytes, a BPE trained on the training split, or GPT-2's BPE.

A separator follows each document: byte 0 for bytes, the id of ``<|endoftext|>`` for the others.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError
from halflife.studies.lab.text.corpora import Corpus

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["GPT2_DIGEST", "GPT2_VOCABULARY", "Encoder", "bpe_encoder", "byte_encoder", "gpt2_encoder"]

SEPARATOR = "<|endoftext|>"
GPT2_VOCABULARY = 50_257
GPT2_DIGEST = hashlib.sha256(b"tiktoken gpt2").hexdigest()
BPE_LEAST = 257  # 256 bytes and the separator
BATCH = 64  # documents encoded at once

Encode = Callable[[Iterable[bytes]], Iterator[NDArray[Any]]]


@dataclass(frozen=True)
class Encoder:
    """A tokenizer that is ready.

    Args:
        title: For people.
        vocab_size: Number of its ids.
        digest: sha256 of what it does.
        json: The tokenizer as JSON, to be kept beside its tokens.
        encode: Token ids of documents, separators included, piece by piece.
    """

    title: str
    vocab_size: int
    digest: str
    json: str
    encode: Encode


def byte_encoder(corpus: Corpus, vocab_size: int) -> Encoder:
    """Bytes as tokens.

    With 256 ids, id = byte. With fewer, the vocab_size - 1 most frequent bytes of the training split (of equally
    frequent ones the smaller) have the ids 0, 1, ... in the order of their values, and all others the last id.

    Args:
        corpus: The text.
        vocab_size: From 2 to 256.

    Returns:
        The encoder.
    """
    table = np.arange(256, dtype=np.uint8)
    title = "bytes"
    if vocab_size < 256:
        counts = np.zeros(256, np.int64)
        for document in corpus.train_documents():
            counts += np.bincount(np.frombuffer(document, np.uint8), minlength=256)
            counts[0] += 1
        kept = np.sort(np.argsort(-counts, kind="stable")[: vocab_size - 1])
        table = np.full(256, vocab_size - 1, np.uint8)
        table[kept] = np.arange(vocab_size - 1)
        title = f"the {vocab_size - 1} most frequent bytes and one id for all others"

    def encode(documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        for document in documents:
            yield table[np.frombuffer(document + b"\0", np.uint8)]

    content = json.dumps({"kind": "bytes", "ids": table.tolist()})
    return Encoder(title, vocab_size, hashlib.sha256(content.encode()).hexdigest(), content, encode)


def bpe_encoder(corpus: Corpus, vocab_size: int) -> Encoder:
    """A byte-level BPE, trained on the training split.

    Args:
        corpus: The text.
        vocab_size: Number of ids: 256 bytes, the separator, and merges.

    Returns:
        The encoder. It has fewer ids than ``vocab_size`` where the text has no more pairs to merge.

    Raises:
        UserError: Fewer than 257 ids, or the package tokenizers is missing.
    """
    if vocab_size < BPE_LEAST:
        raise UserError(
            f"vocab_size is {vocab_size} for bpe, expected at least {BPE_LEAST} (256 bytes and a separator): raise vocab_size,"
            " or take tokenizer bytes"
        )
    try:
        from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise UserError(
            "tokenizer bpe needs the package tokenizers, which is not installed: pip install 'torch-halflife[text]'"
        ) from error
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[SEPARATOR],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    began = time.perf_counter()
    with _all_cores():
        tokenizer.train_from_iterator((document.decode() for document in corpus.train_documents()), trainer)
    seconds = time.perf_counter() - began
    size = tokenizer.get_vocab_size()
    content = tokenizer.to_str()
    digest = hashlib.sha256(content.encode()).hexdigest()
    title = f"byte-level BPE of {size:,} ids, trained on the training split in {seconds:.0f} s"
    return Encoder(title, size, digest, content, lambda documents: _encode_bpe(tokenizer, documents))


def _encode_bpe(tokenizer: Tokenizer, documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
    # A document that spells the separator out is text like any other.
    tokenizer.encode_special_tokens = True
    separator = tokenizer.token_to_id(SEPARATOR)
    for batch in _in_batches(documents):
        with _all_cores():
            encodings = tokenizer.encode_batch_fast([document.decode() for document in batch])
        for encoding in encodings:
            yield np.array([*encoding.ids, separator], np.int64)


def gpt2_encoder() -> Encoder:
    """GPT-2's BPE, of tiktoken.

    Returns:
        The encoder.

    Raises:
        UserError: tiktoken is not installed, or has no vocabulary and no network to fetch it.
    """
    try:
        import tiktoken
    except ImportError as error:
        raise UserError(
            "tokenizer gpt2 needs the package tiktoken, which is not installed: pip install tiktoken, or take tokenizer bpe"
        ) from error
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
    except Exception as error:  # whatever the network did
        raise UserError(
            f"tiktoken cannot load GPT-2's vocabulary ({type(error).__name__}), which it fetches from the network the first"
            " time: run once where there is a network, or take tokenizer bpe"
        ) from error

    def encode(documents: Iterable[bytes]) -> Iterator[NDArray[Any]]:
        for document in documents:
            yield np.array([*gpt2.encode_ordinary(document.decode()), gpt2.eot_token], np.int64)

    return Encoder("GPT-2's BPE", GPT2_VOCABULARY, GPT2_DIGEST, json.dumps({"kind": "tiktoken gpt2"}), encode)


def _in_batches(documents: Iterable[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for document in documents:
        batch.append(document)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


@contextlib.contextmanager
def _all_cores() -> Iterator[None]:
    """Let tokenizers use its threads, and keep it silent when this process forks later on."""
    name = "TOKENIZERS_PARALLELISM"
    if name in os.environ:
        yield
        return
    os.environ[name] = "true"
    try:
        yield
    finally:
        # Not taken away: without it, tokenizers warns on the terminal at the next fork.
        os.environ[name] = "false"
