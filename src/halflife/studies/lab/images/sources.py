"""Where image sets lie, checked before anything is trained on them; no torch.

Every source is read as bytes, its sizes are checked, and a sha256 over its content is part of a run's name. Missing
data say in one sentence how to get them. Nothing is ever downloaded, and nothing is unpickled.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import os
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

from halflife.errors import UserError
from halflife.studies.lab.images import views
from halflife.studies.lab.images.views import Split
from halflife.studies.specs.images import ImageBranch, ImageRun

__all__ = ["DataDescription", "ImageSource", "Split", "describe", "read_source"]

SHIPPED_SHA256 = "7a690a6d439215a1862b3a4802296a54b45e9a6b04932842d639d8e071cd1bc2"
SHIPPED_TITLE = "Fashion-MNIST (first 5,000 training images, all 10,000 test images)"
CIFAR_RECORD = 1 + 3 * 32 * 32  # one label, then three planes of 32 x 32
CIFAR_FILE = 10_000 * CIFAR_RECORD
FASHION_SIZES = (60_000, 10_000)
LARGEST_IDX = 16 + FASHION_SIZES[0] * 28 * 28


@dataclass(frozen=True)
class DataDescription:
    """What a run's header says of its data, and the digest that is part of the run's name."""

    name: str
    title: str
    sha256: str


@dataclass(frozen=True)
class ImageSource:
    """A training and a test set, with the name and the digest that a run's header records."""

    title: str
    train: Split
    test: Split
    num_classes: int
    sha256: str


def _take_idx(raw: bytes, offset: int, name: str) -> tuple[bytes, tuple[int, ...], int]:
    """One idx array of unsigned bytes at ``offset``: its bytes, its sizes, and the offset behind it."""
    num_dims = (raw[offset + 3 : offset + 4] or b"\0")[0]
    start = offset + 4 + 4 * num_dims
    if raw[offset : offset + 3] != b"\0\0\x08" or not num_dims or start > len(raw):
        raise UserError(f"{name} does not start as an idx file of bytes does: fetch the file again")
    sizes = struct.unpack(f">{num_dims}I", raw[offset + 4 : start])
    length = 1
    for size in sizes:
        length *= size
    if start + length > len(raw):
        raise UserError(
            f"{name} ends after {len(raw) - start} bytes, expected {length}: the file is cut short, fetch it again"
        )
    return raw[start : start + length], sizes, start + length


def _idx_split(raw_images: bytes, raw_labels: bytes, name: str, expected: int) -> Split:
    images, sizes, _ = _take_idx(raw_images, 0, f"{name} images")
    labels, _, _ = _take_idx(raw_labels, 0, f"{name} labels")
    if sizes != (expected, 28, 28) or len(labels) != expected:
        raise UserError(
            f"{name} holds images of sizes {sizes} and {len(labels)} labels, expected ({expected}, 28, 28) and"
            f" {expected}: this is not Fashion-MNIST, name its folder"
        )
    if max(labels) > 9:
        raise UserError(
            f"{name} holds labels above 9, expected ten classes: this is not Fashion-MNIST, name its folder"
        )
    return Split(images, labels, (1, 28, 28))


def _shipped(_folder: Path | None) -> ImageSource:
    packed = files("halflife.studies.lab.images").joinpath("files/fashion-mnist-5k.xz").read_bytes()
    raw = lzma.decompress(packed)
    found = hashlib.sha256(raw).hexdigest()
    if found != SHIPPED_SHA256:
        raise UserError(
            f"the shipped Fashion-MNIST has sha256 {found[:12]}..., expected {SHIPPED_SHA256[:12]}...: reinstall"
            " torch-halflife"
        )
    parts: list[bytes] = []
    offset = 0
    while len(parts) < 4:
        part, _sizes, offset = _take_idx(raw, offset, "fashion-mnist-5k")
        parts.append(part)
    return ImageSource(
        title=SHIPPED_TITLE,
        train=Split(parts[0], parts[1], (1, 28, 28)),
        test=Split(parts[2], parts[3], (1, 28, 28)),
        num_classes=10,
        sha256=found,
    )


def _need_folder(folder: Path | None, name: str, contents: str) -> Path:
    if folder is None:
        raise UserError(f"{name} needs {contents}: name the folder with --data DIR or HALFLIFE_DATA=DIR")
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder, expected one with {contents}: name another with --data DIR")
    return folder


def _find(folder: Path, subfolders: tuple[str, ...], file: str, name: str) -> Path:
    for sub in subfolders:
        if (folder / sub / file).is_file():
            return folder / sub / file
    raise UserError(f"{folder} has no {file}, which {name} needs: name the folder that holds it with --data DIR")


def _gunzipped(path: Path) -> bytes:
    """What a gzip file holds, if it is no more than Fashion-MNIST."""
    try:
        with gzip.open(path) as file:
            found = file.read(LARGEST_IDX + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path} is no whole gzip file ({error}): fetch it again") from error
    if len(found) > LARGEST_IDX:
        raise UserError(f"{path} holds more than {LARGEST_IDX:,} bytes, the most of Fashion-MNIST: fetch it again")
    return found


def _fashion(folder: Path | None) -> ImageSource:
    folder = _need_folder(folder, "fashion-mnist", "the four idx .gz files of Fashion-MNIST")
    digest = hashlib.sha256()
    raw = []
    for split in ("train", "t10k"):
        for kind in ("images-idx3", "labels-idx1"):
            path = _find(folder, ("", "FashionMNIST/raw"), f"{split}-{kind}-ubyte.gz", "fashion-mnist")
            raw.append(_gunzipped(path))
            digest.update(raw[-1])
    return ImageSource(
        title="Fashion-MNIST",
        train=_idx_split(raw[0], raw[1], "fashion-mnist train", FASHION_SIZES[0]),
        test=_idx_split(raw[2], raw[3], "fashion-mnist t10k", FASHION_SIZES[1]),
        num_classes=10,
        sha256=digest.hexdigest(),
    )


def _cifar10(folder: Path | None) -> ImageSource:
    folder = _need_folder(folder, "cifar10", "CIFAR-10's binary version (data_batch_1.bin ... test_batch.bin)")
    digest = hashlib.sha256()

    def split(names: list[str]) -> Split:
        images, labels = [], []
        for name in names:
            path = _find(folder, ("", "cifar-10-batches-bin"), name, "cifar10")
            raw = path.read_bytes()
            if len(raw) != CIFAR_FILE:
                raise UserError(f"{path} has {len(raw)} bytes, expected {CIFAR_FILE}: fetch the file again")
            digest.update(raw)
            records = [raw[i : i + CIFAR_RECORD] for i in range(0, CIFAR_FILE, CIFAR_RECORD)]
            labels.append(bytes(record[0] for record in records))
            images.append(b"".join(record[1:] for record in records))
        return Split(b"".join(images), b"".join(labels), (3, 32, 32))

    train = split([f"data_batch_{i}.bin" for i in range(1, 6)])
    test = split(["test_batch.bin"])
    if max(train.labels + test.labels) > 9:
        raise UserError(f"{folder} holds labels above 9, expected CIFAR-10's ten classes: name its folder")
    return ImageSource("CIFAR-10", train, test, 10, digest.hexdigest())


def _viewed(_folder: Path | None) -> ImageSource:
    whole = _shipped(None)
    train, test = views.many_views(whole.train, whole.test)
    return ImageSource(views.TITLE, train, test, whole.num_classes, views.SHA256)


_SHIPPED = {
    "fashion-mnist-5k": (SHIPPED_TITLE, SHIPPED_SHA256),
    "fashion-mnist-views": (views.TITLE, views.SHA256),
}

_READERS: dict[str, Callable[[Path | None], ImageSource]] = {
    "fashion-mnist-5k": _shipped,
    "fashion-mnist-views": _viewed,
    "fashion-mnist": _fashion,
    "cifar10": _cifar10,
}


@lru_cache(maxsize=1)
def _read(name: str, folder: Path | None) -> ImageSource:
    return _READERS[name](folder)


def read_source(name: str, folder: str | os.PathLike[str] | None = None) -> ImageSource:
    """Read and check an image set.

    Args:
        name: ``"fashion-mnist-5k"`` or ``"fashion-mnist-views"`` (shipped), ``"fashion-mnist"`` or ``"cifar10"``.
        folder: Where a set that is not shipped lies; ``HALFLIFE_DATA`` when not given.

    Returns:
        The set.
    """
    where = folder if folder is not None else os.environ.get("HALFLIFE_DATA") or None
    return _read(name, None if where is None or name in _SHIPPED else Path(where))


def describe(spec: ImageRun | ImageBranch, data_folder: str | os.PathLike[str] | None = None) -> DataDescription:
    """What a run's header says of its data; the shipped set is not read for it.

    Args:
        spec: The run.
        data_folder: As for `read_source`.

    Returns:
        The description.
    """
    if isinstance(spec, ImageBranch):
        spec = spec.then
    if spec.data in _SHIPPED:
        return DataDescription(spec.data, *_SHIPPED[spec.data])
    source = read_source(spec.data, data_folder)
    return DataDescription(spec.data, source.title, source.sha256)
