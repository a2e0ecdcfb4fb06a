"""Runs on images that start from kept weights, snapshots, label noise, the sphere and probes along a run."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional

from halflife import probes
from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.studies.lab.images.data import image_tensors, noisy_labels, shuffled_batches
from halflife.studies.lab.images.models import build_model
from halflife.studies.lab.images.sources import describe, read_source
from halflife.studies.lab.trainer import Context, train
from halflife.studies.specs import ImageBranch, ImageRun, spec_from_json
from halflife.studies.specs.images import PROBES, fine_tune_branch
from halflife.studies.store.records import Reading

CPU = torch.device("cpu")
TINY = ImageRun(
    lr=0.1,
    lam=0.01,
    num_epochs=4,
    num_train=256,
    num_test=100,
    width=4,
    blocks=(1, 1),
    downsample=4,
    batch_size=64,
    eval_every=2,
    ema=(0.9,),
)


def run(spec: ImageRun | ImageBranch, folder: Path, parent: Path | None = None) -> list[Reading]:
    folder.mkdir(exist_ok=True, parents=True)
    readings: list[Reading] = []
    train(spec, Context(parent=parent), sink=readings.append, folder=folder)
    return readings


# ---- kept weights and branches


def test_a_branch_from_the_last_weights_goes_on_as_the_run_would(tmp_path: Path) -> None:
    """At the same epochs of the data, by hand: the branch's order of the data is that of its own epochs."""
    parent = replace(TINY, keep_at=(2,))
    run(parent, tmp_path / "parent")
    branch = fine_tune_branch(parent, 2, lr=0.02, num_epochs=2)
    found = run(branch, tmp_path / "branch", tmp_path / "parent/kept")
    assert [(r.step, r.epoch) for r in found] == [(4, 1), (8, 2)]
    # By hand: the parent's two epochs, then two with the small rate, no decay, and the order of epochs 0 and 1 again.
    source = read_source(TINY.data)
    train_set, _ = image_tensors(source, num_train=256, num_test=100, downsample=4, device=CPU)
    net = build_model("resnet", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0)
    weights = list(net.parameters())
    losses = []
    for epoch, lr, lam in ((0, 0.1, 0.01), (1, 0.1, 0.01), (0, 0.02, 0.0), (1, 0.02, 0.0)):
        net.train()
        total = 0.0
        for x, y in shuffled_batches(train_set, 64, seed=0, epoch=epoch):
            loss = functional.cross_entropy(net(x), y)
            total += loss.item() / 4
            grads = torch.autograd.grad(loss, weights)
            with torch.no_grad():
                for w, g in zip(weights, grads, strict=True):
                    w.copy_((1 - lr * lam) * w - lr * g)
        losses.append(total)
    assert [r.values["train/running_loss"] for r in found] == pytest.approx(losses[2:], rel=1e-4)
    assert [r.values["fraction"] for r in found] == [0, 0]
    assert [r.values["lr"] for r in found] == [0.02, 0.02]


def test_a_branch_may_start_from_an_average(tmp_path: Path) -> None:
    """With a learning rate so small that nothing moves, it reads what the parent read of its average."""
    parent = replace(TINY, keep_at=(2, 4), drop_at=1.0)
    whole = run(parent, tmp_path / "parent")
    assert sorted(p.name for p in (tmp_path / "parent/kept").iterdir()) == [
        "epoch-2.safetensors",
        "epoch-4.safetensors",
    ]
    still = replace(parent, lr=1e-30, lr_after_drop=1e-30, lam=0.0, num_epochs=1, keep_at=(), ema=())
    branch = ImageBranch(of=parent, at=4, then=still, weights="ema-0.9")
    found = run(branch, tmp_path / "branch", tmp_path / "parent/kept")[-1].values
    assert found["weight_norm"] == pytest.approx(whole[-1].values["ema-0.9/weight_norm"], rel=1e-9)
    assert found["weight_norm"] != pytest.approx(whole[-1].values["weight_norm"], rel=1e-6)
    kept = load_file(tmp_path / "parent/kept/epoch-4.safetensors")
    assert all(torch.isfinite(value).all() for value in kept.values() if value.is_floating_point())
    # BatchNorm statistics recomputed for the average were kept with it, not those of the last weights.
    mean, last = (kept[f"{part}norm.running_mean"] for part in ("ema-0.9.module.", "model."))
    assert not torch.equal(mean, last)


def test_a_cut_run_keeps_its_last_weights_under_the_names_that_branches_ask_for(tmp_path: Path) -> None:
    branch = fine_tune_branch(replace(TINY, keep_at=(2, 4)), 4, lr=0.02, num_epochs=3).cut(5)
    assert isinstance(branch.parent, ImageRun)
    run(branch.parent, tmp_path / "parent")
    found = run(branch, tmp_path / "branch", tmp_path / "parent/kept")
    assert [r.step for r in found] == [4, 5]


def test_specs_of_branches_go_to_json_and_back() -> None:
    branch = fine_tune_branch(replace(TINY, keep_at=(2,), seed=3), 2, lr=0.02, num_epochs=2)
    assert spec_from_json(branch.to_json()) == branch
    assert (branch.seed, branch.then.seed) == (3, 3)
    assert describe(branch) == describe(TINY)
    assert replace(branch, then=replace(branch.then, seed=9)).then.seed == 3
    # A run that uses none of the later fields is named as before they came.
    assert "probes" not in TINY.to_json()


BAD_BRANCHES = [
    (
        lambda: fine_tune_branch(TINY, 2, lr=0.1, num_epochs=1),
        "a branch starts at epoch 2, which the parent does not keep",
    ),
    (
        lambda: ImageBranch(of=replace(TINY, keep_at=(2,)), at=2, then=replace(TINY, width=8)),
        "width of a branch is 8 and its parent's is 4: a branch goes on with the same model",
    ),
    (
        lambda: ImageBranch(of=replace(TINY, keep_at=(2,)), at=2, then=TINY, weights="ema-0.5"),
        "weights is 'ema-0.5', expected one of last, ema-0.9: change weights",
    ),
    (lambda: replace(TINY, keep_at=(5,)), "keep_at has 5, expected at most num_epochs 4: change keep_at"),
    (lambda: replace(TINY, keep_at=(0,)), "keep_at is 0, expected an integer >= 1"),
    (lambda: replace(TINY, sphere=1.0), "sphere is 1 and lam is 0.01: on a sphere there is nothing to decay"),
    (lambda: replace(TINY, probes=("trace",)), "probes has 'trace', expected some of hessian-trace, "),
    (lambda: replace(TINY, label_noise=1.5), "label_noise is 1.5, expected a finite number >= 0 and <= 1"),
    (
        lambda: replace(TINY, probes=("hessian-trace",), probe_vectors=7),
        "probe_vectors is 7, expected an even integer >= 6",
    ),
    (lambda: replace(TINY, probe_every=-1), "probe_every is -1, expected an integer >= 0"),
]


@pytest.mark.parametrize(("make", "message"), BAD_BRANCHES, ids=[message[:30] for _, message in BAD_BRANCHES])
def test_a_bad_spec_is_one_sentence(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(UserError) as caught:
        make()
    assert message in str(caught.value)


def test_a_branch_without_its_parent_says_so(tmp_path: Path) -> None:
    branch = fine_tune_branch(replace(TINY, keep_at=(2,)), 2, lr=0.02, num_epochs=1)
    with pytest.raises(UserError, match="run the parent first"):
        run(branch, tmp_path / "branch")
    with pytest.raises(RunFailedError, match=r"epoch-2.safetensors is missing among what the parent run kept"):
        run(branch, tmp_path / "branch", tmp_path)


# ---- label noise


def test_label_noise_changes_the_share_it_says() -> None:
    y = torch.randint(10, (20_000,), generator=torch.Generator().manual_seed(0))
    noisy = noisy_labels(y, 0.5, 10, seed=3)
    changed = (noisy != y).double().mean().item()
    assert abs(changed - 0.45) < 4 * math.sqrt(0.45 * 0.55 / 20_000)
    # The new labels are even over the classes, and what a smaller share replaces a larger one replaces alike.
    counts = torch.bincount(noisy_labels(y, 1.0, 10, seed=3), minlength=10).double()
    assert ((counts - 2_000).abs() < 4 * math.sqrt(2_000 * 0.9)).all()
    less = noisy_labels(y, 0.2, 10, seed=3)
    assert torch.equal(noisy[less != y], less[less != y])
    assert torch.equal(noisy_labels(y, 0.0, 10, seed=3), y)
    assert not torch.equal(noisy, noisy_labels(y, 0.5, 10, seed=4))
    assert not torch.equal(noisy, noisy_labels(y, 0.5, 10, seed=3, epoch=0))


def test_fixed_noise_is_trained_and_read_fresh_noise_only_trained(tmp_path: Path) -> None:
    spec = replace(TINY, label_noise=1.0, num_epochs=1, drop_at=1.0)
    fixed = run(spec, tmp_path / "fixed")[0].values
    fresh = run(replace(spec, fresh_label_noise=True), tmp_path / "fresh")[0].values
    clean = run(replace(spec, label_noise=0.0), tmp_path / "clean")[0].values
    # Random labels cannot be learned in four steps: the loss is ln 10 or more, the clean one is below.
    assert clean["train/running_loss"] < min(fixed["train/running_loss"], fresh["train/running_loss"])
    source = read_source(TINY.data)
    train_set, _ = image_tensors(source, num_train=256, num_test=100, downsample=4, device=CPU)
    net = build_model("resnet", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0)
    net.train()
    noisy = replace(train_set, y_N=noisy_labels(train_set.y_N, 1.0, 10, seed=0, epoch=0))
    x, y = next(iter(shuffled_batches(noisy, 64, seed=0, epoch=0)))
    first = functional.cross_entropy(net(x), y).item()
    one = run(replace(spec, fresh_label_noise=True, max_steps=1), tmp_path / "one")[0].values
    assert one["train/running_loss"] == pytest.approx(first, rel=1e-5)


# ---- snapshots


def test_the_ensemble_is_the_mean_of_probabilities(tmp_path: Path) -> None:
    spec = replace(TINY, drop_at=1.0, ensemble_every=2, keep_at=(2, 4), eval_every=4)
    found = run(spec, tmp_path / "a")[-1]
    source = read_source(TINY.data)
    _, test_set = image_tensors(source, num_train=256, num_test=100, downsample=4, device=CPU)
    net = build_model("resnet", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0).eval()

    def probabilities(name: str, prefix: str) -> torch.Tensor:
        state = load_file(tmp_path / "a/kept" / name)
        net.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
        with torch.no_grad():
            found: torch.Tensor = net(test_set.x_NCHW).double().softmax(dim=1)
        return found

    mean = (probabilities("epoch-2.safetensors", "model.") + probabilities("epoch-4.safetensors", "model.")) / 2
    wrong = mean.argmax(dim=1) != test_set.y_N
    assert found.values["ensemble/test/error"] == pytest.approx(wrong.double().mean().item())
    loss = -mean[torch.arange(100), test_set.y_N].log().mean().item()
    assert found.values["ensemble/test/loss"] == pytest.approx(loss, rel=1e-5)
    average = probabilities("epoch-4.safetensors", "ema-0.9.module.")
    distance = (average - mean).abs().sum(dim=1).mean().item() / 2
    assert found.values["ensemble/ema-0.9/total_variation"] == pytest.approx(distance, rel=1e-4)
    bits = np.unpackbits(np.frombuffer(found.arrays["ensemble/test/wrong"].data, dtype=np.uint8), count=100)
    assert bits.tolist() == wrong.int().tolist()


def test_a_stopped_run_resumes_to_the_same_bits(tmp_path: Path) -> None:
    """With everything on that has a state of its own: snapshots, averages, fresh labels, kept weights."""
    spec = replace(
        TINY, num_epochs=6, ensemble_every=1, label_noise=0.3, fresh_label_noise=True, keep_at=(2, 5), drop_at=0.8
    )
    whole = run(spec, tmp_path / "whole")
    readings: list[Reading] = []
    (tmp_path / "parts").mkdir()
    with pytest.raises(RunStoppedError):
        train(spec, sink=readings.append, folder=tmp_path / "parts", stop=lambda: len(readings) == 3)
    train(spec, sink=readings.append, folder=tmp_path / "parts")
    assert [r.to_line() for r in readings] == [r.to_line() for r in whole]
    for name in ("epoch-2.safetensors", "epoch-5.safetensors"):
        one, other = (load_file(tmp_path / part / "kept" / name) for part in ("whole", "parts"))
        assert all(torch.equal(one[key], other[key]) for key in one)


# ---- the sphere


def test_on_the_sphere_every_step_ends_on_it(tmp_path: Path) -> None:
    """Against a loop by hand that projects after every step."""
    spec = replace(TINY, model="vgg", lam=0.0, sphere=3.0, num_epochs=2, drop_at=1.0)
    found = run(spec, tmp_path / "a")
    assert [r.values["weight_norm"] for r in found] == pytest.approx([3.0, 3.0], rel=1e-6)
    source = read_source(TINY.data)
    train_set, _ = image_tensors(source, num_train=256, num_test=100, downsample=4, device=CPU)
    net = build_model("vgg", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0)
    weights = list(net.parameters())

    def project() -> None:
        with torch.no_grad():
            norm = math.sqrt(sum(w.double().square().sum().item() for w in weights))
            for w in weights:
                w.mul_(3.0 / norm)

    project()
    for epoch in range(2):
        total = 0.0
        for x, y in shuffled_batches(train_set, 64, seed=0, epoch=epoch):
            loss = functional.cross_entropy(net(x), y)
            total += loss.item() / 4
            with torch.no_grad():
                for w, g in zip(weights, torch.autograd.grad(loss, weights), strict=True):
                    w.sub_(0.1 * g)
            project()
        assert found[epoch].values["train/running_loss"] == pytest.approx(total, rel=1e-4)


# ---- probes


def test_probes_read_what_they_say_and_leave_the_run_alone(tmp_path: Path) -> None:
    """All of them, of the weights and of the average, against the probes called by hand on the kept weights."""
    spec = replace(
        TINY,
        num_epochs=3,
        drop_at=1.0,
        keep_at=(3,),
        probes=PROBES,
        probe_every=2,
        probe_examples=60,
        probe_vectors=6,
        label_noise=0.5,
    )
    found = run(spec, tmp_path / "with")
    bare = run(replace(spec, probes=()), tmp_path / "without")
    for one, other in zip(found, bare, strict=True):
        assert {name: one.values[name] for name in other.values} == other.values
    assert [("hessian_trace" in r.values) for r in found] == [False, True, True]
    source = read_source(TINY.data)
    train_set, _ = image_tensors(source, num_train=256, num_test=100, downsample=4, device=CPU)
    x, y = train_set.x_NCHW[:60], noisy_labels(train_set.y_N, 0.5, 10, seed=0)[:60]
    kept = load_file(tmp_path / "with/kept/epoch-3.safetensors")
    net = build_model("resnet", width=4, blocks=(1, 1), in_channels=1, num_classes=10, seed=0)
    for prefix, part in (("", "model."), ("ema-0.9/", "ema-0.9.module.")):
        net.load_state_dict({k.removeprefix(part): v for k, v in kept.items() if k.startswith(part)})
        problem = probes.Problem(net, torch.nn.CrossEntropyLoss(), [(x, y)], batch_norm="eval")
        noise, trace = probes.gradient_noise(problem), probes.hessian_trace(problem, num_products=6)
        expected = {
            "hessian_trace": trace.value,
            "hessian_trace_se": trace.standard_error,
            "gauss_newton_trace": probes.gauss_newton_trace(problem, num_products=6).value,
            "jacobian_norm": probes.jacobian_norm(problem).value,
            "noise_scale": probes.noise_scale(problem),
            "gradient_norm": probes.gradient_norm(problem),
            "regularized_gradient_norm": probes.gradient_norm(problem, lam=0.01),
            "top_eigenvalue": float(probes.top_eigenvalues(problem)[0]),
            "sharpness": float(probes.top_eigenvalues(problem)[0]) * 0.1 / 2,
            "gradient_second_moment": noise.second_moment,
            "gradient_noise_trace": noise.trace,
            "probe_loss": probes.mean_loss(problem),
        }
        values = found[-1].values
        assert {k: values[prefix + k] for k in expected} == pytest.approx(expected, rel=1e-3)
        cosines = probes.alignment(problem, num_vectors=6)
        assert {k: values[f"{prefix}cos/{k.replace('/', '-')}"] for k in cosines} == pytest.approx(
            {k: cosine.value for k, cosine in cosines.items()}, rel=1e-2, abs=1e-3
        )
        for name, decoupled in (("covariance", False), ("decoupled", True)):
            array = found[-1].arrays[f"{prefix}spectrum/{name}"]
            eigenvalues = probes.gradient_noise(problem, decoupled=decoupled).eigenvalues[:64].numpy()
            found_N = np.frombuffer(array.data, dtype=array.dtype)
            assert len(found_N) == 64  # in every run, whatever is lost to rounding
            assert found_N == pytest.approx(np.pad(eigenvalues, (0, 64 - len(eigenvalues))), rel=1e-3, abs=1e-5)
