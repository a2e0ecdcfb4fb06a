"""The image lab: data are what they say, models have the paper's shapes, the loop equals a loop written by hand."""

from __future__ import annotations

import gzip
import json
import math
import os
import signal
import struct
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from halflife.errors import RunFailedError, UserError
from halflife.studies.catalog import STUDIES
from halflife.studies.lab.images import sources
from halflife.studies.lab.images.data import image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import ImageSource, Split, describe, read_source
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _fresh_sources() -> None:
    sources._read.cache_clear()


# ---- data


def test_the_shipped_set_is_fashion_mnist() -> None:
    source = read_source("fashion-mnist-5k")
    assert (source.train.count, source.test.count, source.num_classes) == (5_000, 10_000, 10)
    assert source.train.shape == (1, 28, 28)
    assert len(source.train.images) == 5_000 * 784
    # Fashion-MNIST's first labels, and its test set of 1,000 images a class.
    assert list(source.train.labels[:10]) == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert [source.test.labels.count(k) for k in range(10)] == [1_000] * 10
    assert describe(ImageRun(lr=0.1, lam=0.0, num_epochs=1)).sha256 == source.sha256


def test_a_damaged_shipped_set_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "SHIPPED_SHA256", "0" * 64)
    with pytest.raises(
        UserError, match=r"the shipped Fashion-MNIST has sha256 7a690a6d4392..., expected 0000.*: reinstall"
    ):
        read_source("fashion-mnist-5k")


def _idx(count: int, shape: tuple[int, ...], byte: int) -> bytes:
    sizes = (count, *shape)
    return b"\0\0\x08" + bytes([len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes) + bytes([byte]) * math.prod(sizes)


def _fashion(folder: Path, train: int = 6, test: int = 4) -> None:
    folder.mkdir(parents=True)
    for split, count in (("train", train), ("t10k", test)):
        (folder / f"{split}-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(count, (28, 28), 7)))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(count, (), 3)))


def test_fashion_mnist_from_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FASHION_SIZES", (6, 4))
    _fashion(tmp_path / "FashionMNIST/raw")
    monkeypatch.setenv("HALFLIFE_DATA", str(tmp_path))
    source = read_source("fashion-mnist")
    assert (source.train.count, source.test.count) == (6, 4)
    assert source.test.labels == b"\3" * 4


def test_labels_that_fashion_mnist_does_not_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "FASHION_SIZES", (6, 4))
    _fashion(tmp_path / "data")
    (tmp_path / "data/t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(4, (), 10)))
    with pytest.raises(
        UserError, match="fashion-mnist t10k holds labels above 9, expected ten classes: this is not Fash"
    ):
        read_source("fashion-mnist", tmp_path / "data")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (gzip.compress(b"x" * (1 << 16), 1)[:-4], "is no whole gzip file"),
        (gzip.compress(bytes(1 << 16))[:20] + b"\xff" * 20, "is no whole gzip file .Error -3"),  # zlib's own error
        (
            gzip.compress(bytes(sources.LARGEST_IDX + 1), 1),
            "holds more than 47,040,016 bytes, the most of Fashion-MNIST",
        ),
        (gzip.compress(b"\0\0\x08"), "does not start as an idx file of bytes does"),
        (gzip.compress(b"\0\0\x08\xff" + bytes(50)), "does not start as an idx file of bytes does"),
    ],
    ids=["torn", "damaged", "huge", "short", "dimensions"],
)
def test_a_file_of_images_that_is_none(tmp_path: Path, content: bytes, said: str) -> None:
    _fashion(tmp_path / "data")
    (tmp_path / "data/train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(UserError, match=f"{said}.*: fetch"):
        read_source("fashion-mnist", tmp_path / "data")


def test_cifar10_from_its_binary_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "CIFAR_FILE", 2 * sources.CIFAR_RECORD)
    for number, name in enumerate([*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]):
        planes = b"".join(bytes([10 * number + plane]) * 1024 for plane in range(3))
        (tmp_path / name).write_bytes((bytes([number]) + planes) * 2)
    source = read_source("cifar10", tmp_path)
    assert source.train.labels == bytes([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    train_set, test_set = image_tensors(source, num_train=None, num_test=None, downsample=4, device=CPU)
    assert train_set.x_NCHW.shape == (10, 3, 8, 8)
    # The planes of one image are red, green, blue in this order: after normalization equal, so undo it by hand.
    raw = torch.frombuffer(bytearray(source.test.images), dtype=torch.uint8).view(2, 3, 32, 32)
    assert raw[0, :, 0, 0].tolist() == [50, 51, 52]
    assert test_set.y_N.tolist() == [5, 5]
    (tmp_path / "test_batch.bin").write_bytes((bytes([11]) + bytes(3072)) * 2)
    sources._read.cache_clear()
    with pytest.raises(UserError, match="labels above 9, expected CIFAR-10's ten classes"):
        read_source("cifar10", tmp_path)


BAD_DATA = [
    ("fashion-mnist", None, r"fashion-mnist needs the four idx .gz files .*: name the folder with --data DIR"),
    ("cifar10", "gone", r"gone is no folder, expected one with CIFAR-10's binary version"),
    ("cifar10", ".", r"has no data_batch_1.bin, which cifar10 needs"),
    (
        "fashion-mnist",
        "small",
        r"holds images of sizes \(6, 28, 28\) and 6 labels, expected \(60000, 28, 28\) and 60000",
    ),
    ("fashion-mnist", "torn", r"train-images-idx3-ubyte.gz is no whole gzip file .*: fetch it again"),
    ("fashion-mnist", "cut", r"fashion-mnist train images ends after \d+ bytes, expected 4704: the file is cut short"),
    ("fashion-mnist", "text", r"fashion-mnist train images does not start as an idx file of bytes does"),
    ("cifar10", "sizes", r"data_batch_1.bin has 5 bytes, expected 30730000: fetch the file again"),
]


@pytest.mark.parametrize(("name", "folder", "message"), BAD_DATA, ids=[f"{n}-{f}" for n, f, _ in BAD_DATA])
def test_bad_data_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, folder: str | None, message: str
) -> None:
    monkeypatch.delenv("HALFLIFE_DATA", raising=False)
    for sub in ("small", "torn", "cut", "text"):
        _fashion(tmp_path / sub)
    images = "train-images-idx3-ubyte.gz"
    whole = (tmp_path / "torn" / images).read_bytes()
    (tmp_path / "torn" / images).write_bytes(whole[: len(whole) // 2])
    (tmp_path / "cut" / images).write_bytes(gzip.compress(_idx(6, (28, 28), 7)[:-9]))
    (tmp_path / "text" / images).write_bytes(gzip.compress(b"hello world"))
    (tmp_path / "sizes").mkdir()
    (tmp_path / "sizes" / "data_batch_1.bin").write_bytes(b"12345")
    with pytest.raises(UserError, match=message):
        read_source(name, None if folder is None else tmp_path / folder)


def _toy_source(num_train: int = 10, num_test: int = 6) -> ImageSource:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> Split:
        pixels = torch.randint(0, 256, (count, 2, 4, 4), generator=generator, dtype=torch.uint8)
        return Split(bytes(pixels.flatten().tolist()), bytes(i % 3 for i in range(count)), (2, 4, 4))

    return ImageSource("toy", split(num_train), split(num_test), 3, "0")


def test_images_are_averaged_and_normalized_by_the_training_set() -> None:
    source = _toy_source()
    train_set, test_set = image_tensors(source, num_train=8, num_test=None, downsample=2, device=CPU)
    pixels = torch.tensor(list(source.test.images)).view(6, 2, 4, 4).double() / 255
    fit = torch.tensor(list(source.train.images)).view(10, 2, 4, 4)[:8].double() / 255

    def squares(x: torch.Tensor) -> torch.Tensor:
        return x.view(-1, 2, 2, 2, 2, 2).mean(dim=(3, 5))

    mean, std = squares(fit).mean(dim=(0, 2, 3)), squares(fit).std(dim=(0, 2, 3))
    oracle = (squares(pixels) - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(test_set.x_NCHW.double(), oracle, rtol=0, atol=1e-5)
    assert len(train_set) == 8
    for name, kwargs in (
        ("num_train", {"num_train": 11, "num_test": None}),
        ("num_test", {"num_train": None, "num_test": 7}),
    ):
        with pytest.raises(UserError, match=rf"{name} is \d+ and the set holds \d+ images: lower {name}"):
            image_tensors(source, downsample=1, device=CPU, **kwargs)
    with pytest.raises(UserError, match="downsample is 5 and images are 4 x 4: lower downsample"):
        image_tensors(source, num_train=None, num_test=None, downsample=5, device=CPU)


def test_an_epoch_visits_each_image_once_in_an_order_of_seed_and_epoch_alone() -> None:
    images, _ = image_tensors(_toy_source(), num_train=None, num_test=None, downsample=1, device=CPU)
    images.y_N.copy_(torch.arange(10))

    def order(seed: int, epoch: int) -> list[int]:
        return [int(y) for _, y_B in shuffled_batches(images, 3, seed=seed, epoch=epoch) for y in y_B]

    torch.manual_seed(1)
    first = order(0, 0)
    torch.manual_seed(2)
    assert order(0, 0) == first
    assert len(first) == len(set(first)) == 9  # the tenth would be a batch of one
    assert len({tuple(order(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


# ---- models


@pytest.mark.parametrize(
    ("name", "width", "blocks", "count"),
    [
        # By hand from the papers' tables: convolutions without bias, two BatchNorms a block and one before the head.
        ("resnet", 64, (2, 2, 2, 2), 11_172_170),
        ("vgg", 64, (2, 2, 3, 3, 3), 14_719_818),
    ],
)
def test_the_papers_nets_have_the_papers_sizes(name: str, width: int, blocks: tuple[int, ...], count: int) -> None:
    net = build_model(name, width=width, blocks=blocks, in_channels=3, num_classes=10, seed=0)
    assert sum(p.numel() for p in net.parameters()) == count
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["resnet", "vgg"])
def test_initial_weights_are_he_and_a_function_of_the_seed(name: str) -> None:
    def make(seed: int) -> torch.nn.Module:
        return build_model(name, width=32, blocks=(1, 1), in_channels=3, num_classes=10, seed=seed)

    before = torch.get_rng_state()
    one, same, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)
    for module in one.modules():
        if isinstance(module, torch.nn.Conv2d):
            fan_in = module.weight[0].numel()
            n = module.weight.numel()
            ratio = module.weight.square().mean().item() * fan_in / 2
            assert abs(ratio - 1) < 4 * math.sqrt(2 / n)  # the mean of n squared normals, z = 4


# ---- the loop

TINY = ImageRun(
    lr=0.1, lam=0.01, num_epochs=4, num_train=256, num_test=100, width=4, batch_size=64, eval_every=2, ema=(0.9, 0.5)
)


def run(spec: ImageRun, folder: Path) -> list[Reading]:
    folder.mkdir(exist_ok=True)
    readings: list[Reading] = []
    costs = train(spec, sink=readings.append, folder=folder)
    assert costs["images_per_second"] > 0
    return readings


def test_the_loop_equals_one_written_by_hand(tmp_path: Path) -> None:
    """Plain SGD and decay in scalars' form, averages and BatchNorm statistics recomputed, errors counted."""
    found = run(TINY, tmp_path)
    source = read_source(TINY.data)
    train_set, test_set = image_tensors(source, num_train=256, num_test=100, downsample=2, device=CPU)
    net = build_model("resnet", width=4, blocks=(1, 1, 1), in_channels=1, num_classes=10, seed=0)
    weights = list(net.parameters())
    averages: dict[float, list[torch.Tensor]] = {}
    norms, losses = [], []
    for epoch in range(4):
        lr = 0.1 if epoch < 2 else 1e-3
        net.train()
        total = 0.0
        for x, y in shuffled_batches(train_set, 64, seed=0, epoch=epoch):
            loss = functional.cross_entropy(net(x), y)
            total += loss.item() / 4
            grads = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, g in zip(weights, grads, strict=True):
                    w.copy_((1 - lr * 0.01) * w - lr * g)
                for decay in TINY.ema:
                    if decay not in averages:
                        averages[decay] = [w.clone() for w in weights]
                    for a, w in zip(averages[decay], weights, strict=True):
                        a.copy_(decay * a + (1 - decay) * w)
        losses.append(total)
        norms.append(math.sqrt(sum(w.detach().double().square().sum().item() for w in weights)))
    assert [r.values["train/running_loss"] for r in found] == pytest.approx(losses, rel=1e-4)
    assert [r.values["weight_norm"] for r in found] == pytest.approx(norms, rel=1e-5)
    assert [r.values["effective_lr"] for r in found] == pytest.approx(
        [lr / norm**2 for lr, norm in zip((0.1, 0.1, 1e-3, 1e-3), norms, strict=True)], rel=1e-5
    )
    assert [r.values["fraction"] for r in found] == pytest.approx([1e-3, 1e-3, 1e-5, 1e-5], rel=1e-12)
    assert found[0].values["half_life"] == pytest.approx(math.log(2) / -math.log(1 - 1e-3))
    assert [(r.step, r.epoch) for r in found] == [(4, 1), (8, 2), (12, 3), (16, 4)]
    end = found[-1]
    net.eval()
    with torch.no_grad():
        wrong = net(test_set.x_NCHW).argmax(dim=1) != test_set.y_N
        assert end.values["test/error"] == pytest.approx(wrong.double().mean().item())
        bits = end.arrays["test/wrong"]
        unpacked = [bool(bits.data[i // 8] >> (7 - i % 8) & 1) for i in range(bits.length)]
        assert unpacked == wrong.tolist()
        for w, a in zip(weights, averages[0.9], strict=True):
            w.copy_(a)
        norm_layers = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
        for layer in norm_layers:
            layer.reset_running_stats()
            layer.momentum = None  # cumulative: the plain mean over the batches
        net.train()
        for start in range(0, 256, 64):
            net(train_set.x_NCHW[start : start + 64])
        net.eval()
        ema_loss = functional.cross_entropy(net(test_set.x_NCHW), test_set.y_N).item()
    assert end.values["ema-0.9/test/loss"] == pytest.approx(ema_loss, rel=1e-4)
    assert "test/loss" not in found[2].values
    assert not found[2].arrays


def test_costs_are_counted_apart(tmp_path: Path) -> None:
    progress: list[int] = []
    costs = train(
        replace(TINY, max_steps=6),
        sink=lambda _: time.sleep(0.05),
        folder=tmp_path,
        progress=lambda *_: progress.append(1),
    )
    assert sorted(costs) == ["evaluation_seconds", "images_per_second", "peak_memory_mb", "training_seconds"]
    assert costs["evaluation_seconds"] >= 0.1  # two readings, at each of which the sink took its time
    assert costs["images_per_second"] * costs["training_seconds"] == pytest.approx(6 * 64, rel=0.01)
    assert 20 < costs["peak_memory_mb"] < 1e5


def test_without_decay_nothing_is_removed(tmp_path: Path) -> None:
    reading = run(replace(TINY, lam=0.0, num_epochs=1), tmp_path / "c")[0]
    assert reading.values["fraction"] == 0
    assert "half_life" not in reading.values


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_trains(tmp_path: Path, precision: str) -> None:
    low = run(replace(TINY, precision=precision), tmp_path / "low")
    full = run(TINY, tmp_path / "full")
    pairs = [(a.values["train/running_loss"], b.values["train/running_loss"]) for a, b in zip(low, full, strict=True)]
    assert all(one == pytest.approx(other, rel=0.1) for one, other in pairs)
    assert any(one != other for one, other in pairs)


def test_a_cut_run_stops_at_its_step(tmp_path: Path) -> None:
    found = run(replace(TINY, max_steps=6), tmp_path / "c")
    assert [r.step for r in found] == [4, 6]
    assert found[-1].epoch == 1.5
    assert "test/error" in found[-1].values


def test_a_run_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(
        RunFailedError,
        match=r"the training loss became NaN or infinite at step \d+ \(lr 1e\+06, lam 0, seed 0\): lower",
    ):
        run(replace(TINY, model="vgg", lr=1e6, lam=0.0), tmp_path / "c")
    with pytest.raises(RunFailedError, match="32 training images make no batch of 64: lower batch_size"):
        run(replace(TINY, num_train=32), tmp_path / "c")


KILLED_WORKER = """
import os, signal, sys
from pathlib import Path
from halflife.studies.lab.trainer import train
from halflife.studies.specs import spec_from_json
from halflife.studies.store.store import Store
from halflife.studies.catalog import STUDIES
import json, torch
torch.set_num_threads(1)
spec, store, die_at = spec_from_json(json.loads(sys.argv[1])), Store(sys.argv[2]), int(sys.argv[3])

def progress(step, num_steps, loss):
    if step == die_at:
        os.kill(os.getpid(), signal.SIGKILL)

folder = store.run("f" * 16)
with folder.locked():
    train(spec, sink=folder.append, folder=folder.path, progress=progress)
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet", "vgg"])
def test_a_killed_run_resumes_to_the_same_bits(tmp_path: Path, model: str) -> None:
    spec = replace(TINY, model=model, num_epochs=6, eval_every=2)

    def launch(store: Path, die_at: int) -> int:
        arguments = [sys.executable, "-c", KILLED_WORKER, json.dumps(spec.to_json()), str(store), str(die_at)]
        return subprocess.run(arguments, check=False, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode

    assert launch(tmp_path / "whole", -1) == 0
    assert launch(tmp_path / "killed", 12) == -signal.SIGKILL  # in epoch 3: the checkpoint is from epoch 2
    path = tmp_path / "killed/runs/ffffffffffffffff/readings.jsonl"
    with path.open("ab") as file:
        file.write(b'{"step":12,"epo')  # and the crash tore a line
    assert (tmp_path / "killed/runs/ffffffffffffffff/checkpoint.safetensors").exists()
    assert launch(tmp_path / "killed", 20) == -signal.SIGKILL  # killed again, after the drop
    assert launch(tmp_path / "killed", -1) == 0
    assert path.read_bytes() == (tmp_path / "whole/runs/ffffffffffffffff/readings.jsonl").read_bytes()
    assert len(Store(tmp_path / "killed").run("f" * 16).readings()) == 6


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("study", ["stabilization", "stabilization-vgg"])
def test_the_papers_own_nets_take_two_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, study: str) -> None:
    """The ``paper`` preset's specs on noise in CIFAR-10's layout: few images, two steps."""
    monkeypatch.setattr(sources, "CIFAR_FILE", 30 * sources.CIFAR_RECORD)
    generator = torch.Generator().manual_seed(0)
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        records = torch.randint(0, 256, (30, sources.CIFAR_RECORD), generator=generator, dtype=torch.uint8)
        records[:, 0] %= 10
        (tmp_path / name).write_bytes(records.numpy().tobytes())
    monkeypatch.setenv("HALFLIFE_DATA", str(tmp_path))
    for arm in STUDIES[study].presets["paper"].arms:
        spec = arm.build(0)
        assert isinstance(spec, ImageRun)
        # float16 is for GPUs; on a processor it is a hundred times slower, and tested above on a small net.
        found = run(replace(spec, max_steps=2, precision="float32"), tmp_path / arm.key)
        assert [reading.step for reading in found] == [1, 2]  # 150 images make one batch of 128 an epoch
        assert "test/error" in found[-1].values
