"""Augmentation of training images: a function of seed, epoch and image alone, and of training batches only."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from halflife.studies.lab.images.data import Augmentation, Images, image_tensors, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import read_source
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Reading
from halflife.studies.store.store import Store

CPU = torch.device("cpu")
SPEC = ImageRun(
    lr=0.1,
    lam=0.01,
    num_epochs=4,
    num_train=192,
    num_test=60,
    width=4,
    batch_size=64,
    eval_every=2,
    ema=(),
    augmentation="flip-crop",
    label_smoothing=0.1,
)


def toy(count: int, channels: int, height: int, width: int) -> Images:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(count, channels, height, width, generator=generator).to(memory_format=torch.channels_last)
    return Images(x, torch.arange(count), -10 - torch.arange(channels).float())


def by_hand(images: Images, seed: int, epoch: int) -> list[Tensor]:
    """Each image moved and then mirrored, pixel by pixel."""
    bits = hashlib.sha256(f"augment/{seed}/{epoch}".encode()).digest()[:4]
    generator = torch.Generator().manual_seed(int.from_bytes(bits))
    count, channels, height, width = images.x_NCHW.shape
    pads = round(height / 8), round(width / 8)
    flips, downs, rights = (
        torch.randint(choices, (count, 1), generator=generator).flatten().tolist()
        for choices in (2, 2 * pads[0] + 1, 2 * pads[1] + 1)
    )
    out = []
    for n in range(count):
        image = torch.empty(channels, height, width)
        for c in range(channels):
            for i in range(height):
                for j in range(width):
                    row = i + downs[n] - pads[0]
                    column = (width - 1 - j if flips[n] else j) + rights[n] - pads[1]
                    inside = 0 <= row < height and 0 <= column < width
                    image[c, i, j] = images.x_NCHW[n, c, row, column] if inside else images.black_C[c]
        out.append(image)
    return out


@pytest.mark.parametrize(("channels", "height", "width"), [(1, 14, 14), (3, 16, 9), (2, 4, 3)])
def test_it_is_what_a_loop_over_pixels_does(channels: int, height: int, width: int) -> None:
    images = toy(40, channels, height, width)
    oracle = by_hand(images, seed=5, epoch=2)
    augment = Augmentation(images, seed=5, epoch=2)
    index = torch.tensor([7, 0, 39, 7, 20])
    found = augment(index)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, torch.stack([oracle[n] for n in index.tolist()]))
    seen = [
        (y, x) for x_B, y_B in shuffled_batches(images, 8, seed=5, epoch=2, augmentation="flip-crop")
        for x, y in zip(x_B, y_B.tolist(), strict=True)
    ]  # fmt: skip
    assert sorted(y for y, _ in seen) == list(range(40))  # every image once, with its own label
    assert all(torch.equal(x, oracle[y]) for y, x in seen)
    order = [y for _, y_B in shuffled_batches(images, 8, seed=5, epoch=2) for y in y_B.tolist()]
    assert [y for y, _ in seen] == order  # and in the order of the run without


def test_each_image_and_epoch_has_its_own_and_all_moves_are_as_likely() -> None:
    count, pad = 4000, 2
    x = torch.arange(16.0).view(1, 1, 1, 16).repeat(count, 1, 16, 1) + 100 * torch.arange(16.0).view(1, 1, 16, 1)
    images = Images(x.contiguous(memory_format=torch.channels_last), torch.zeros(count).long(), torch.tensor([-1.0]))
    drawn = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0)):
        found = Augmentation(images, seed=seed, epoch=epoch)(torch.arange(count))[:, 0, 8, 7:9]
        # The middle is never out of the picture: its value says where it came from, its neighbour which way is right.
        drawn.append(torch.stack([found[:, 0] // 100 - 8, found[:, 0] % 100, found[:, 1] - found[:, 0]], dim=1))
        down, right = drawn[-1][:, 0], drawn[-1][:, 1] - torch.where(drawn[-1][:, 2] == 1, 7, 8)
        for values, choices in ((down, 2 * pad + 1), (right, 2 * pad + 1), ((drawn[-1][:, 2] + 1) / 2, 2)):
            counts = torch.bincount((values - values.min()).long())
            assert len(counts) == choices
            p = 1 / choices
            assert (counts - count * p).abs().max() < 4 * math.sqrt(count * p * (1 - p))
    same = [
        (one == other).all(dim=1).double().mean().item() for one, other in ((drawn[0], drawn[1]), (drawn[0], drawn[2]))
    ]
    assert all(abs(share - 1 / 50) < 4 * math.sqrt(1 / 50 / count) for share in same)


def test_the_global_random_state_is_left_alone() -> None:
    before = torch.get_rng_state()
    Augmentation(toy(4, 1, 8, 8), seed=0, epoch=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_black_is_a_pixel_of_value_zero() -> None:
    train_set, _ = image_tensors(read_source("fashion-mnist-5k"), num_train=64, num_test=2, downsample=2, device=CPU)
    assert train_set.black_C.item() == train_set.x_NCHW.min().item()  # the corners of Fashion-MNIST are black


def run(spec: ImageRun, folder: Path) -> list[Reading]:
    folder.mkdir(exist_ok=True)
    readings: list[Reading] = []
    train(spec, sink=readings.append, folder=folder)
    return readings


def test_only_training_sees_it_and_readings_are_without_smoothing(tmp_path: Path) -> None:
    found = run(SPEC, tmp_path)
    train_set, test_set = image_tensors(read_source(SPEC.data), num_train=192, num_test=60, downsample=2, device=CPU)
    net = build_model("resnet", width=4, blocks=(1, 1, 1), in_channels=1, num_classes=10, seed=0)
    weights = list(net.parameters())
    running = []
    for epoch in range(4):
        lr = 0.1 if epoch < 2 else 1e-3
        augmented = torch.stack(by_hand(train_set, 0, epoch))
        net.train()
        losses = []
        generator = hashlib.sha256(f"order/0/{epoch}".encode()).digest()[:4]
        order = torch.randperm(192, generator=torch.Generator().manual_seed(int.from_bytes(generator)))
        for index in order.view(3, 64):
            log_p = net(augmented[index].contiguous(memory_format=torch.channels_last)).log_softmax(dim=1)
            hard = -log_p[torch.arange(64), train_set.y_N[index]].mean()
            loss = 0.9 * hard - 0.1 * log_p.mean()
            losses.append(hard.item())
            with torch.no_grad():
                for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    w.copy_((1 - lr * 0.01) * w - lr * g)
        running.append(sum(losses) / 3)
    assert [r.values["train/running_loss"] for r in found] == pytest.approx(running, rel=1e-4)
    net.eval()
    with torch.no_grad():
        for part, images in (("train", train_set), ("test", test_set)):
            loss = functional.cross_entropy(net(images.x_NCHW), images.y_N).item()
            assert found[-1].values[f"{part}/loss"] == pytest.approx(loss, rel=1e-4)
    plain = run(replace(SPEC, augmentation="none", label_smoothing=0.0), tmp_path / "plain")
    assert plain[0].values["train/running_loss"] != pytest.approx(running[0], rel=1e-3)


def test_it_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = run(SPEC, tmp_path / "whole")
    store = Store(tmp_path / "store")
    store.create()
    folder = store.run("f" * 16)

    class StopError(Exception):
        pass

    def stop(step: int, num_steps: int, loss: float) -> None:
        if step == 9:  # in epoch 3, after the checkpoint of epoch 2
            raise StopError

    with folder.locked(), pytest.raises(StopError):
        train(SPEC, sink=folder.append, folder=folder.path, progress=stop)
    with folder.locked():
        train(SPEC, sink=folder.append, folder=folder.path)
    assert [reading.to_line() for reading in folder.readings()] == [reading.to_line() for reading in whole]


def test_old_specs_keep_their_names() -> None:
    plain = replace(SPEC, augmentation="none", label_smoothing=0.0)
    assert not {"augmentation", "label_smoothing"} & plain.to_json().keys()
    assert SPEC.to_json()["augmentation"] == "flip-crop"
    assert len({plain.digest(), SPEC.digest(), replace(SPEC, label_smoothing=0.0).digest()}) == 3
