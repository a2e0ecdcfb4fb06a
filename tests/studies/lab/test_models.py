"""The image models: sizes counted by hand, He initialisation, invariance to scale, what a net without normalization keeps."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.swa_utils import update_bn

from halflife.errors import UserError
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.trainer import train
from halflife.studies.specs import ImageRun
from halflife.studies.store.records import Reading

SMALL = {"width": 4, "blocks": (1, 2), "in_channels": 2, "num_classes": 3}


def images(count: int = 24, dtype: torch.dtype = torch.float64, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(count, 2, 8, 8, generator=generator).to(dtype),
        torch.randint(3, (count,), generator=generator),
    )


def trained(net: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in net.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("name", "blocks", "count"),
    [
        # By hand, convolution weights of the stages: 3*9*64 + sum over blocks of 9 (c_in c_out + c_out^2) + 1x1 shortcuts.
        ("scale-invariant", (2, 2, 2, 2), 11_159_232),
        # The same, plus a bias for each convolution (64 + 4*64 + 4*128 + 4*256 + 4*512 + 128 + 256 + 512), 8 gains and
        # the head's 5130.
        ("resnet-plain", (2, 2, 2, 2), 11_159_232 + 4_800 + 8 + 5_130),
        # ResNet-34: convolutions 21,259,968, BatchNorm 2 * 7,616, head 5,130.
        ("resnet", (3, 4, 6, 3), 21_280_330),
        # VGG-16 as without BatchNorm, 2 numbers a channel in place of 1: 14,719,818 + 4,224.
        ("vgg-bn", (2, 2, 3, 3, 3), 14_724_042),
        # The whole GoogLeNet: 7,904 less than with the biases that common code has before BatchNorm, 6,166,250.
        ("googlenet", (2, 5, 2), 6_158_346),
    ],
)
def test_the_papers_nets_have_the_papers_sizes(name: str, blocks: tuple[int, ...], count: int) -> None:
    net = build_model(name, width=64, blocks=blocks, in_channels=3, num_classes=10, seed=0)
    assert sum(p.numel() for p in trained(net).values()) == count
    assert net.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", ["scale-invariant", "resnet-plain", "mlp", "vgg-bn", "densenet", "googlenet"])
def test_initial_weights_are_he_and_a_function_of_the_seed(name: str) -> None:
    def make(seed: int) -> nn.Module:
        return build_model(name, width=32, blocks=(1, 1), in_channels=3, num_classes=10, seed=seed, image_size=(8, 8))

    before = torch.get_rng_state()
    one, same, other = make(0), make(0), make(1)
    assert torch.equal(torch.get_rng_state(), before)
    for a, b, c in zip(one.parameters(), same.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.dim() == 1 or not torch.equal(a, c)
    expected = {"scale-invariant": math.sqrt(512) / 64, "resnet-plain": 1 / math.sqrt(64), "mlp": 1 / math.sqrt(32)}
    for key, module in one.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            head = expected.get(name, 1 / math.sqrt(module.weight.shape[1]))
            std = head if key == "head" else math.sqrt(2 / module.weight[0].numel())
            ratio = module.weight.square().mean().item() / std**2
            assert abs(ratio - 1) < 4 * math.sqrt(2 / module.weight.numel()), key  # squares of normals, z = 4


def test_an_mlp_is_told_the_size_of_the_images() -> None:
    net = build_model("mlp", width=16, blocks=(1, 1, 1), in_channels=2, num_classes=3, seed=0, image_size=(4, 5))
    assert [p.numel() for p in net.parameters()] == [40 * 16, 16, 256, 16, 256, 16, 48, 3]
    x = torch.randn(6, 2, 4, 5)
    active = x.flatten(1)
    *hidden, head = (m for m in net.modules() if isinstance(m, nn.Linear))
    for layer in hidden:
        active = (active @ layer.weight.T).clamp(min=0)  # biases are 0 at first
    torch.testing.assert_close(net(x), active @ head.weight.T)
    # Images as they lie in memory in a run.
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), net(x))
    with pytest.raises(UserError, match=r"an MLP got no image_size, expected \(height, width\)"):
        build_model("mlp", width=16, blocks=(1,), in_channels=2, num_classes=3, seed=0)


@pytest.mark.parametrize(
    ("name", "lr", "count"),
    # Convolutions as above, at width 4 and 7 x 7 images; 49 * 4 + 4 + 4 * 4 + 4 + 4 * 10 + 10 of the MLP.
    [("scale-invariant", 0.05, 1_220), ("resnet-plain", 0.05, 1_220 + 36 + 2 + 90), ("mlp", 0.1, 270)],
)
def test_a_run_trains_them(name: str, lr: float, count: int, tmp_path: Path) -> None:
    spec = ImageRun(
        model=name, lr=lr, lr_after_drop=lr, lam=0.01, num_epochs=12, num_train=256, num_test=50, width=4, downsample=4,
        blocks=(1, 1), batch_size=32, ema=(),
    )  # fmt: skip
    net = build_model(name, width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0, image_size=(7, 7))
    assert sum(p.numel() for p in trained(net).values()) == count
    readings: list[Reading] = []
    train(spec, sink=readings.append, folder=tmp_path)
    losses = [reading.values["train/running_loss"] for reading in readings]
    assert losses[-1] < 0.9 * losses[0]
    norm = math.sqrt(sum(p.detach().square().sum().item() for p in trained(net).values()))
    assert readings[0].values["weight_norm"] == pytest.approx(norm, rel=0.1)  # of what is trained


# ---- VGG with BatchNorm, DenseNet, GoogLeNet

PAPERS_NETS = ("vgg-bn", "densenet", "densenet-basic", "googlenet")


def dense_size(k: int, blocks: tuple[int, ...], bottleneck: bool) -> int:
    """By formula: 3x3 stem; each layer c -> k, through 4 k; transitions c -> c / 2; BatchNorm before each; the head."""
    c, total = 2 * k, 2 * 9 * 2 * k
    for stage, layers in enumerate(blocks):
        if stage > 0:
            total += 2 * c + c * (c // 2)
            c //= 2
        for _ in range(layers):
            total += (2 * c + 4 * k * c + 2 * 4 * k + 9 * 4 * k * k) if bottleneck else (2 * c + 9 * c * k)
            c += k
    return total + 2 * c + 3 * c + 3


def inception_size(c: int, maps: tuple[int, ...]) -> int:
    one, before3, three, before5, five, pool = maps
    kernels = c * (one + before3 + before5 + pool) + 9 * (before3 * three + before5 * five + five * five)
    return kernels + 2 * (one + before3 + three + before5 + 2 * five + pool)


@pytest.mark.parametrize("bottleneck", [True, False])
@pytest.mark.parametrize(("width", "blocks"), [(1, (1,)), (3, (2, 1, 3)), (8, (3, 3, 3)), (12, (1, 2))])
def test_densenet_has_the_size_of_its_formula(width: int, blocks: tuple[int, ...], bottleneck: bool) -> None:
    name = "densenet" if bottleneck else "densenet-basic"
    net = build_model(name, width=width, blocks=blocks, in_channels=2, num_classes=3, seed=0, image_size=(8, 8))
    assert sum(p.numel() for p in net.parameters()) == dense_size(width, blocks, bottleneck)


def test_densenet_121_is_that_of_common_code() -> None:
    net = build_model("densenet", width=32, blocks=(6, 12, 24, 16), in_channels=3, num_classes=10, seed=0)
    assert sum(p.numel() for p in net.parameters()) == 6_956_298


def test_a_dense_layer_sees_all_maps_before_it() -> None:
    net = build_model("densenet-basic", width=3, blocks=(2,), in_channels=2, num_classes=3, seed=0).double().eval()
    x, _ = images()
    convs = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    scale = 1 / math.sqrt(1 + 1e-5)  # BatchNorm at its first statistics
    maps = functional.conv2d(x, convs[0], padding=1)
    for weight in convs[1:]:
        maps = torch.cat([functional.conv2d((maps * scale).clamp(min=0), weight, padding=1), maps], dim=1)
    features = (maps * scale).clamp(min=0).mean(dim=(2, 3))
    torch.testing.assert_close(net(x), functional.linear(features, net.get_parameter("head.weight")))


def test_googlenet_has_the_size_of_its_table() -> None:
    net = build_model("googlenet", width=8, blocks=(1, 2, 1), in_channels=2, num_classes=3, seed=0)
    tables = [
        (24, (8, 12, 16, 2, 4, 4)),
        (32, (24, 12, 26, 2, 6, 8)),
        (64, (20, 14, 28, 3, 8, 8)),
        (64, (32, 20, 40, 4, 16, 16)),
    ]
    expected = 2 * 9 * 24 + 2 * 24 + sum(inception_size(c, maps) for c, maps in tables) + 104 * 3 + 3
    assert sum(p.numel() for p in net.parameters()) == expected
    # More blocks repeat the last of their stage; a stage after the third is like it.
    deep = build_model("googlenet", width=8, blocks=(1, 1, 3, 1), in_channels=2, num_classes=3, seed=0)
    last = (48, 24, 48, 6, 16, 16)
    tables = [(24, tables[0][1]), (32, tables[1][1]), (64, tables[3][1]), (104, last), (128, last), (128, tables[3][1])]
    expected = 2 * 9 * 24 + 2 * 24 + sum(inception_size(c, maps) for c, maps in tables) + 104 * 3 + 3
    assert sum(p.numel() for p in deep.parameters()) == expected


def test_an_inception_block_is_its_four_branches() -> None:
    net = build_model("googlenet", width=16, blocks=(1,), in_channels=2, num_classes=3, seed=0).double().eval()
    x, _ = images()
    c = [m.weight for m in net.modules() if isinstance(m, nn.Conv2d)]
    scale = 1 / math.sqrt(1 + 1e-5)

    def layer(x: Tensor, weight: Tensor) -> Tensor:
        return (functional.conv2d(x, weight, padding=weight.shape[-1] // 2) * scale).clamp(min=0)

    x0 = layer(x, c[0])
    branches = [
        layer(x0, c[1]),
        layer(layer(x0, c[2]), c[3]),
        layer(layer(layer(x0, c[4]), c[5]), c[6]),
        layer(functional.max_pool2d(x0, 3, 1, 1), c[7]),
    ]
    features = torch.cat(branches, dim=1).mean(dim=(2, 3))
    torch.testing.assert_close(net(x), functional.linear(features, net.get_parameter("head.weight")))
    assert [branch.shape[1] for branch in branches] == [16, 32, 8, 8]


@pytest.mark.parametrize("size", [(4, 4), (7, 5), (14, 14), (9, 32)])
@pytest.mark.parametrize("name", PAPERS_NETS)
def test_the_papers_nets_take_images_of_any_size_and_train_all_they_have(name: str, size: tuple[int, int]) -> None:
    for width, blocks in ((4, (1, 1)), (5, (2, 1)), (7, (1,))):
        net = build_model(name, width=width, blocks=blocks, in_channels=2, num_classes=3, seed=0, image_size=size)
        x = torch.randn(6, 2, *size, generator=torch.Generator().manual_seed(1))
        logits = net(x.to(memory_format=torch.channels_last))
        assert logits.shape == (6, 3)
        # He initialisation and BatchNorm: logits neither vanish nor explode.
        assert 1e-2 < logits.std() < 10
        torch.autograd.backward(functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1, 2])))
        for key, parameter in net.named_parameters():
            assert parameter.grad is not None, key
            assert parameter.grad.abs().max() > 0, key
        assert not any(m.bias is not None for m in net.modules() if isinstance(m, nn.Conv2d))


@pytest.mark.parametrize(
    ("name", "blocks", "size", "said"),
    [
        (
            "vgg",
            (1, 1, 1, 1),
            (14, 14),
            "images are 14 x 14 and vgg halves them 4 times, expected at least 16 pixels a side",
        ),
        (
            "vgg-bn",
            (1, 1),
            (28, 3),
            "images are 28 x 3 and vgg-bn halves them 2 times, expected at least 4 pixels a side",
        ),
        (
            "densenet",
            (1, 1, 1, 1),
            (7, 7),
            "images are 7 x 7 and densenet halves them 3 times, expected at least 8 pixels",
        ),
    ],
)
def test_images_that_are_too_small_are_said(
    name: str, blocks: tuple[int, ...], size: tuple[int, int], said: str
) -> None:
    with pytest.raises(UserError, match=said):
        build_model(name, width=4, blocks=blocks, in_channels=1, num_classes=10, seed=0, image_size=size)
    fits = (2 ** len(blocks), 2 ** len(blocks))
    net = build_model(name, width=4, blocks=blocks, in_channels=1, num_classes=10, seed=0, image_size=fits)
    assert net.eval()(torch.zeros(1, 1, *fits)).shape == (1, 10)


# ---- invariance to scale

FACTORS = (1e-2, 0.3, 50.0)


def invariant(dtype: torch.dtype = torch.float64) -> nn.Module:
    return build_model("scale-invariant", seed=0, **SMALL).to(dtype)  # type: ignore[arg-type]


def test_only_convolutions_are_trained_and_each_is_followed_by_normalization() -> None:
    net = invariant()
    assert all(p.dim() == 4 for p in trained(net).values())
    assert [name for name, p in net.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert len(trained(net)) == 1 + 2 * 3 + 1  # stem, two a block, one shortcut
    assert all(m.weight is None for m in net.modules() if isinstance(m, nn.BatchNorm2d))


@pytest.mark.parametrize("c", FACTORS)
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_function_does_not_depend_on_the_scale(c: float, training: bool, dtype: torch.dtype) -> None:
    """Of all weights, of each tensor, of one filter: to rounding."""
    bound = 2e-5 if dtype == torch.float32 else 1e-12

    def logits(scaled: str, filters: slice = slice(None)) -> Tensor:
        net = invariant(dtype)
        with torch.no_grad():
            for name, weight in trained(net).items():
                if scaled in {name, "all"}:
                    weight[filters] *= c
        if not training:
            update_bn([images(dtype=dtype, seed=1)[0]], net)
        net.train(training)
        out: Tensor = net(images(dtype=dtype)[0])
        return out.detach()

    reference = logits("none")
    assert reference.std() > 0.1
    for name in ("all", *trained(invariant())):
        torch.testing.assert_close(logits(name), reference, rtol=0, atol=bound)
        torch.testing.assert_close(logits(name, slice(1, 2)), reference, rtol=0, atol=bound)


def test_with_old_statistics_the_scale_shows() -> None:
    net = invariant()
    update_bn([images(seed=1)[0]], net)
    x, _ = images()
    before = net.eval()(x).detach()
    with torch.no_grad():
        trained(net)["stem.conv.weight"].mul_(2)
    assert (net(x) - before).abs().max() > 0.1


def test_a_pre_activation_net_is_invariant_only_as_a_whole() -> None:
    """Why the scale-invariant net has the original block."""
    x, _ = images()

    def logits(*parts: str) -> Tensor:
        net = build_model("resnet", seed=0, **SMALL).double()  # type: ignore[arg-type]
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 1e-20
        with torch.no_grad():
            for name, weight in net.named_parameters():
                if weight.dim() == 4 and (not parts or name in parts):
                    weight.mul_(3)
        out: Tensor = net(x)
        return out.detach()

    reference = logits("none")
    torch.testing.assert_close(logits(), reference, rtol=0, atol=1e-12)
    assert (logits("layers.0.conv2.weight") - reference).abs().max() > 0.1


def test_gradients_are_orthogonal_to_the_weights_and_fall_with_their_scale() -> None:
    net = invariant()
    x, y = images()

    def gradients() -> dict[str, Tensor]:
        weights = trained(net)
        found = torch.autograd.grad(functional.cross_entropy(net(x), y), list(weights.values()))
        return dict(zip(weights, found, strict=True))

    grads = gradients()
    for name, weight in trained(net).items():
        cosines = functional.cosine_similarity(weight.detach().flatten(1), grads[name].flatten(1), dim=1)
        assert cosines.abs().max() < 1e-14, name  # of each filter, so of each tensor
        assert grads[name].norm() > 1e-3
    with torch.no_grad():
        for weight in trained(net).values():
            weight.mul_(4)
    for name, grad in gradients().items():
        torch.testing.assert_close(grad, grads[name] / 4, rtol=1e-10, atol=1e-14)
    # The plain net's are not.
    plain = build_model("resnet-plain", seed=0, **SMALL).double()  # type: ignore[arg-type]
    weight = trained(plain)["layers.0.conv1.weight"]
    (grad,) = torch.autograd.grad(functional.cross_entropy(plain(x), y), [weight])
    assert functional.cosine_similarity(weight.detach().flatten(), grad.flatten(), dim=0).abs() > 1e-3


# ---- without normalization


@pytest.mark.parametrize("blocks", [(2, 2), (40, 40)])
def test_a_net_without_normalization_keeps_the_variance_at_any_depth(blocks: tuple[int, ...]) -> None:
    """Each of D blocks multiplies the second moment by at most about 1 + 1 / D: by less than e in all."""
    net = build_model("resnet-plain", width=32, blocks=blocks, in_channels=2, num_classes=3, seed=0)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    gains = [p.item() for name, p in net.named_parameters() if name.endswith("gain")]
    assert gains == pytest.approx([sum(blocks) ** -0.5] * sum(blocks))
    x, _ = images(dtype=torch.float32)
    start: Tensor = net.get_submodule("stem")(x)
    end: Tensor = net.get_submodule("layers")(start)
    growth = (end.square().mean() / start.square().mean()).item()
    assert 0.5 < growth < 2 * math.e


def test_a_net_without_normalization_is_the_formula() -> None:
    net = build_model("resnet-plain", seed=0, **SMALL).double()  # type: ignore[arg-type]
    x, _ = images()
    block = net.get_submodule("layers.1")
    weights = {name: p.detach() for name, p in block.named_parameters()}
    assert weights.keys() == {
        "gain",
        *(f"{part}.{kind}" for part in ("conv1", "conv2", "shortcut") for kind in ("weight", "bias")),
    }
    inside = torch.randn(5, 4, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    active = inside.clamp(min=0)
    hidden = functional.conv2d(active, weights["conv1.weight"], weights["conv1.bias"], stride=2, padding=1)
    branch = functional.conv2d(hidden.clamp(min=0), weights["conv2.weight"], weights["conv2.bias"], padding=1)
    skip = functional.conv2d(active, weights["shortcut.weight"], weights["shortcut.bias"], stride=2)
    torch.testing.assert_close(block(inside), skip + branch / math.sqrt(3))
    identity = net.get_submodule("layers.0")
    torch.testing.assert_close(identity(0 * inside), 0 * inside)  # biases are 0 at first
    assert net(x).shape == (24, 3)
