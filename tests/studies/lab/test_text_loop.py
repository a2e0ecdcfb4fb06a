"""The loop of language-model runs, against hand-written loops with torch's own optimizers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.rules.registry import schedule_from
from halflife.studies.lab.tensor_files import write_tensors
from halflife.studies.lab.text.averages import WeightAverage
from halflife.studies.lab.text.evaluate import block_means, even_windows
from halflife.studies.lab.text.loop import TextLoop
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.lab.text.order import WindowOrder
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.specs import TextBranch, TextReplay, TextRun
from tests.studies.lab.text_runs import GPT, MLP, run, stop_after, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_corpus(tmp_path_factory.mktemp("corpus"))


def with_(spec: TextRun, **changes: Any) -> TextRun:
    return dataclasses.replace(spec, **changes)


# ---- against a hand-written loop


def by_hand(
    spec: TextRun, corpus: Path, *, lam: float, lrs: list[float] | None = None
) -> tuple[nn.Module, list[float]]:
    """The same run written out: torch's AdamW with its own decay, no halflife but its data and model."""
    data = load_tokens(spec, str(corpus))
    order = order_of(spec, len(data.train))
    model = build_text_model(spec, spec.seed)
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": lam}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
    schedule, losses = schedule_from(spec.lr_schedule), []
    for step in range(spec.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = spec.lr * schedule(step) if lrs is None else lrs[step]
        ids = torch.tensor(
            np.stack([data.train[s : s + spec.context + 1] for s in order.starts(step)]).astype(np.int64)
        )
        logits = model(ids[:, :-1])
        if spec.model == "mlp":
            loss = functional.cross_entropy(logits, ids[:, -1])
        else:
            loss = functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip or math.inf)
        optimizer.step()
        losses.append(loss.item())
    return model, losses


def order_of(spec: TextRun, num_tokens: int) -> WindowOrder:
    targets = 1 if spec.model == "mlp" else spec.context
    return WindowOrder(
        num_tokens=num_tokens,
        context=spec.context,
        targets_per_window=targets,
        batch_size=spec.batch_size,
        seed=spec.seed,
        order=spec.order,
    )


@pytest.mark.parametrize("spec", [MLP, GPT], ids=["mlp", "gpt"])
def test_a_run_is_a_plain_loop_with_torchs_adamw(spec: TextRun, corpus: Path, tmp_path: Path) -> None:
    readings, _ = run(with_(spec, keep_at=(40,)), tmp_path, corpus)
    model, losses = by_hand(spec, corpus, lam=1.0)
    kept = load_file(tmp_path / "kept/step-40.safetensors")
    for name, parameter in model.named_parameters():
        assert torch.equal(kept[f"model.{name}"], parameter.detach()), name
    logged = {r.step: r.values["train/running_loss"] for r in readings if r.step}
    assert sorted(logged) == list(range(5, 41, 5))
    for step, value in logged.items():
        assert value == pytest.approx(np.mean(losses[step - 5 : step]), rel=1e-6)
    end = readings[-1].values
    assert end["weight_norm"] == pytest.approx(
        math.sqrt(sum(p.double().square().sum().item() for p in model.parameters()))
    )
    assert end["fraction"] == pytest.approx(spec.lr * schedule_from(spec.lr_schedule)(39))
    assert end["val/loss"] == pytest.approx(val_loss(model, spec, corpus), rel=1e-5)
    blocks = np.frombuffer(readings[-1].arrays["val/loss_blocks"].data, "<f4")
    assert blocks.mean() == pytest.approx(end["val/loss"], rel=0.02)


def val_loss(model: nn.Module, spec: TextRun, corpus: Path) -> float:
    """Window by window, token by token."""
    val = load_tokens(spec, str(corpus)).val
    count = math.ceil(spec.num_eval_tokens / (1 if spec.model == "mlp" else spec.context))
    losses = []
    for start in even_windows(len(val), spec.context + 1, count):
        ids = torch.tensor(val[start : start + spec.context + 1].astype(np.int64))[None]
        logits = model(ids[:, :-1]).detach()
        target = ids[0, -1:] if spec.model == "mlp" else ids[0, 1:]
        losses.append(functional.cross_entropy(logits.view(-1, spec.vocab_size), target).item())
    return float(np.mean(losses))


def test_accumulation_gives_the_same_run(corpus: Path, tmp_path: Path) -> None:
    whole, _ = run(GPT, tmp_path / "whole", corpus)
    parts, _ = run(with_(GPT, accumulate=4), tmp_path / "parts", corpus)
    for a, b in zip(whole, parts, strict=True):
        for name, value in a.values.items():
            assert b.values[name] == pytest.approx(value, rel=2e-4), (a.step, name)


def test_a_penalty_in_the_loss_is_clipped_with_the_gradient(corpus: Path, tmp_path: Path) -> None:
    """One step from the same weights, the gradient of the penalized loss by autograd as the oracle."""
    spec = with_(MLP, optimizer="sgd", decay="", loss_penalty=0.3, clip=0.05, num_steps=1, lr_schedule="constant(1.0)")
    run(with_(spec, keep_at=(1,)), tmp_path / "inside", corpus)
    model = build_text_model(spec, spec.seed)
    data = load_tokens(spec, str(corpus))
    starts = order_of(spec, len(data.train)).starts(0)
    ids = torch.tensor(np.stack([data.train[s : s + 5] for s in starts]).astype(np.int64))
    squares = torch.stack([p.square().sum() for p in model.parameters() if p.ndim >= 2]).sum()
    loss = functional.cross_entropy(model(ids[:, :-1]), ids[:, -1]) + 0.15 * squares
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(model.parameters(), 0.05)
    assert norm > 0.05  # else the clip is not tested
    kept = load_file(tmp_path / "inside/kept/step-1.safetensors")
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        expected = parameter.detach() - spec.lr * parameter.grad
        torch.testing.assert_close(kept[f"model.{name}"], expected, rtol=1e-5, atol=1e-7)
    outside = with_(spec, loss_penalty=0.0, decay="L2(lam=0.3)", keep_at=(1,))
    run(outside, tmp_path / "outside", corpus)
    other = load_file(tmp_path / "outside/kept/step-1.safetensors")
    assert not torch.allclose(kept["model.head.weight"], other["model.head.weight"])


# ---- averages


def test_averages_are_weighted_means_of_the_weights() -> None:
    weight = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    ema, mean = WeightAverage("ema-0.9", [weight], decay=0.9), WeightAverage("mean", [weight], decay=None, first=4)
    rng, seen = np.random.default_rng(1), []
    for step in range(1, 11):
        with torch.no_grad():
            weight.copy_(torch.tensor(rng.normal(size=3)))
        seen.append(weight.detach().numpy().copy())
        ema.update(step)
        mean.update(step)
    weights = 0.9 ** np.arange(9, -1, -1)
    np.testing.assert_allclose(ema.values[0].numpy(), weights @ np.array(seen) / weights.sum(), rtol=1e-12)
    np.testing.assert_allclose(mean.values[0].numpy(), np.mean(seen[3:], axis=0), rtol=1e-12)
    with ema.in_place():
        np.testing.assert_array_equal(weight.detach().numpy(), ema.values[0].numpy())
    np.testing.assert_array_equal(weight.detach().numpy(), seen[-1])


def test_blocks_are_means_of_neighbours() -> None:
    losses = torch.arange(1000, dtype=torch.float32)
    blocks = block_means(losses)
    assert len(blocks) == 256
    assert blocks[0] == pytest.approx(np.arange(4).mean())
    assert torch.equal(block_means(losses[:7]), losses[:7])


# ---- resume


EVERYTHING = with_(
    GPT,
    decay="Scheduled(Decoupled(lam=1.0), linear(1.0, 0.5, 40))",
    dropout=0.1,
    label_smoothing=0.1,
    accumulate=2,
    ema=(0.9,),
    average_from=10,
    keep_at=(20, 40),
    trace_norms=True,
)


@pytest.mark.parametrize("at", [1, 13, 20, 39])
@pytest.mark.parametrize(
    "spec",
    [
        EVERYTHING,
        with_(EVERYTHING, precision="bfloat16"),
        with_(MLP, decay="Stable(lam=0.01)", ema=(0.9,)),
        with_(MLP, optimizer="sgd", momentum=0.9, lr=0.1, decay="L2(lam=0.01)"),
        with_(MLP, decay="Cautious(Decoupled(lam=1.0))", order="epochs", num_train_tokens=400),
    ],
    ids=["everything", "bfloat16", "stable", "sgd", "epochs"],
)
def test_a_stopped_run_resumes_to_the_same_bits(spec: TextRun, at: int, corpus: Path, tmp_path: Path) -> None:
    whole, _ = run(spec, tmp_path / "whole", corpus)
    with pytest.raises(RunStoppedError, match=f"stopped after step {at} of 40"):
        run(spec, tmp_path / "cut", corpus, stop=stop_after(at))
    rest, _ = run(spec, tmp_path / "cut", corpus)
    assert rest == [reading for reading in whole if reading.step > at]
    for path in (tmp_path / "whole/kept").glob("*"):
        if not (tmp_path / "cut/kept" / path.name).exists():
            raise AssertionError(f"{path.name} was not kept again")
        mine, theirs = load_file(path), load_file(tmp_path / "cut/kept" / path.name)
        assert mine.keys() == theirs.keys()
        for name, value in mine.items():
            assert torch.equal(value, theirs[name]), name


def test_dropout_leaves_the_global_random_state_alone(corpus: Path, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    run(EVERYTHING, tmp_path, corpus)
    assert torch.equal(before, torch.random.get_rng_state())


def test_a_checkpoint_of_other_tokens_is_refused(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStoppedError):
        run(MLP, tmp_path, corpus, stop=stop_after(3))
    with pytest.raises(
        UserError, match=r"checkpoint.safetensors was written by another run .*: remove it and run again"
    ):
        run(with_(MLP, vocab_size=20), tmp_path, corpus)
    other = write_corpus(tmp_path / "other")
    (other / "part00.txt").write_text("quite another beginning " * 400, encoding="utf-8")
    with pytest.raises(UserError, match="the corpus, the tokenizer or the vocabulary has changed"):
        run(MLP, tmp_path, other)


def test_a_damaged_checkpoint_is_a_sentence(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.safetensors").write_bytes(b"no tensors in here")
    with pytest.raises(UserError, match=r"cannot be read.*remove it and run again"):
        run(MLP, tmp_path, corpus)


# ---- branches and replays


def parent_of(spec: TextRun, tmp_path: Path, corpus: Path) -> Path:
    run(spec, tmp_path / "parent", corpus)
    return tmp_path / "parent/kept"


def adam_by_hand(
    kept: dict[str, Tensor], spec: TextRun, corpus: Path, *, first: int, lrs: list[float], lam: float
) -> nn.Module:
    """Goes on from a checkpoint with Adam written out."""
    model = build_text_model(spec, 99)
    named = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(kept[f"model.{name}"])
    moments = {n: [kept[f"optimizer.state.{n}.{k}"].clone() for k in ("exp_avg", "exp_avg_sq")] for n in named}
    data = load_tokens(spec, str(corpus))
    order, count = order_of(spec, len(data.train)), int(kept["optimizer.state.head.weight.step"])
    for step, lr in enumerate(lrs):
        ids = torch.tensor(
            np.stack([data.train[s : s + spec.context + 1] for s in order.starts(first + step)]).astype(np.int64)
        )
        model.zero_grad()
        functional.cross_entropy(model(ids[:, :-1]), ids[:, -1]).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), spec.clip or math.inf)
        count += 1
        for name, parameter in named.items():
            assert parameter.grad is not None
            m, v = moments[name]
            m.mul_(spec.beta1).add_(parameter.grad, alpha=1 - spec.beta1)
            v.mul_(spec.beta2).add_(parameter.grad.square(), alpha=1 - spec.beta2)
            m_hat, v_hat = m / (1 - spec.beta1**count), v / (1 - spec.beta2**count)
            with torch.no_grad():
                if parameter.ndim >= 2:
                    parameter.mul_(1 - lr * lam)
                parameter.sub_(lr * m_hat / (v_hat.sqrt() + spec.eps))
    return model


def test_a_tiny_lr_branch_goes_on_without_decay(corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, keep_at=(20, 40))
    kept = parent_of(spec, tmp_path, corpus)
    branch = TextBranch(of=spec, at=20, branch="tiny-lr", num_steps=10)
    readings, _ = run(branch, tmp_path / "branch", corpus, parent=kept)
    assert {r.values["lr"] for r in readings} == {spec.lr / 60}
    assert {r.values["fraction"] for r in readings[1:]} == {0.0}
    model = adam_by_hand(
        load_file(kept / "step-20.safetensors"), spec, corpus, first=20, lrs=[spec.lr / 60] * 10, lam=0.0
    )
    assert readings[-1].values["val/loss"] == pytest.approx(val_loss(model, spec, corpus), rel=1e-6)
    parents, _ = run(spec, tmp_path / "again", corpus)
    assert readings[0].values["val/loss"] == next(r for r in parents if r.step == 20).values["val/loss"]


def test_a_cooldown_branch_keeps_the_decay(corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, keep_at=(20,))
    kept = parent_of(spec, tmp_path, corpus)
    branch = TextBranch(of=spec, at=20, branch="cooldown", num_steps=10)
    readings, _ = run(branch, tmp_path / "branch", corpus, parent=kept)
    start = spec.lr * schedule_from(spec.lr_schedule)(20)
    lrs = [start * (1 - step / 10) for step in range(10)]
    model = adam_by_hand(load_file(kept / "step-20.safetensors"), spec, corpus, first=20, lrs=lrs, lam=1.0)
    assert readings[-1].values["val/loss"] == pytest.approx(val_loss(model, spec, corpus), rel=1e-6)
    assert readings[-1].values["fraction"] == pytest.approx(lrs[-1])


@pytest.mark.parametrize("branch", ["tiny-lr", "cooldown"])
def test_a_branch_resumes_to_the_same_bits(branch: str, corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, keep_at=(20,))
    kept = parent_of(spec, tmp_path, corpus)
    child = TextBranch(of=spec, at=20, branch=branch, num_steps=10)
    whole, _ = run(child, tmp_path / "whole", corpus, parent=kept)
    with pytest.raises(RunStoppedError):
        run(child, tmp_path / "cut", corpus, parent=kept, stop=stop_after(7))
    rest, _ = run(child, tmp_path / "cut", corpus, parent=kept)
    assert rest == [reading for reading in whole if reading.step > 7]


def test_a_branch_reads_the_batches_that_come_next(corpus: Path, tmp_path: Path) -> None:
    """A branch at lr_factor 1 without decay, from a parent without decay, is the parent's own future."""
    spec = with_(MLP, decay="", lr_schedule="constant(1.0)", keep_at=(20,))
    kept = parent_of(spec, tmp_path, corpus)
    child = TextBranch(of=spec, at=20, branch="tiny-lr", lr_factor=1.0, num_steps=20)
    readings, _ = run(child, tmp_path / "branch", corpus, parent=kept)
    parents, _ = run(spec, tmp_path / "again", corpus)
    assert readings[-1].values["train/running_loss"] == parents[-1].values["train/running_loss"]
    assert readings[-1].values["val/loss"] == parents[-1].values["val/loss"]
    assert readings[-1].epoch == parents[-1].epoch


def test_a_replay_without_matching_is_the_parent_without_decay(corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, trace_norms=True)
    kept = parent_of(spec, tmp_path, corpus)
    replay, _ = run(TextReplay(of=spec, match="none"), tmp_path / "replay", corpus, parent=kept)
    bare, _ = run(with_(spec, decay=""), tmp_path / "bare", corpus)
    for mine, theirs in zip(replay, bare, strict=True):
        for name, value in theirs.values.items():
            assert mine.values[name] == value, name
    assert replay[-1].values["diverged_at"] == -1


@pytest.mark.parametrize("match", ["global", "per-tensor", "global-squared"])
def test_a_replay_follows_its_formula(match: str, corpus: Path, tmp_path: Path) -> None:
    """After the first step, where both runs have the same weights, and at the last, from the weights kept."""
    spec = with_(MLP, trace_norms=True, lr_schedule="constant(1.0)", log_every=1)
    kept = parent_of(spec, tmp_path, corpus)
    readings, _ = run(TextReplay(of=spec, match=match), tmp_path / "replay", corpus, parent=kept)
    trace = load_file(kept / "norms.safetensors")["trace"]
    assert trace.shape == (40, len(list(build_text_model(spec, 0).parameters())) + 1)
    assert trace[:, -1] == pytest.approx(np.full(40, spec.lr))
    first = readings[1].values
    assert first["lr_factor"] == pytest.approx(1 / (1 - spec.lr))  # lam is 1
    if match.startswith("global"):
        before, used = readings[-2].values["weight_norm"], readings[-1].values["lr_factor"]
        ratio = before / trace[39, :-1].square().sum().sqrt().item()
        assert readings[-1].values["lr"] == pytest.approx(used * spec.lr)
        assert used == pytest.approx((ratio**2 if match == "global-squared" else ratio) / (1 - spec.lr))
        assert ratio > 1.02  # the parent decays


def test_a_replay_that_diverges_is_a_finished_run(corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, optimizer="sgd", clip=None, trace_norms=True, decay="", lr_schedule="constant(1.0)")
    kept = parent_of(spec, tmp_path, corpus)
    wild = with_(spec, lr=1e25)
    path = kept / "norms.safetensors"
    write_tensors(path, load_file(path), {}, run=wild.digest())  # a parent at such a rate keeps none
    readings, _ = run(TextReplay(of=wild, match="none"), tmp_path / "replay", corpus, parent=kept)
    assert readings[-1].values.keys() == {"diverged_at"}
    assert 1 <= readings[-1].values["diverged_at"] <= 5


@pytest.mark.parametrize("log_every", [1, 7])
def test_weights_that_break_at_a_reading_are_a_failed_run(log_every: int, corpus: Path, tmp_path: Path) -> None:
    """The loss before the update is finite, so only the weights say it; a store holds finite numbers only."""
    wild = with_(MLP, decay="", lr=1e25, lr_schedule="constant(1.0)", log_every=log_every, num_steps=14)
    with pytest.raises(RunFailedError, match="became NaN or infinite at step"):
        run(wild, tmp_path / "run", corpus)


def test_gradients_that_overflow_for_ever_are_a_failed_run(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_(MLP, precision="float16", num_steps=80)
    step = TextLoop.one_step

    def overflowing(self: TextLoop) -> None:
        step(self)
        self.scaler.update(1e-9)

    monkeypatch.setattr(TextLoop, "one_step", overflowing)
    with pytest.raises(RunFailedError, match="at step 5"):
        run(spec, tmp_path, corpus)


def test_long_ways_between_evaluations_have_checkpoints(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("halflife.studies.lab.trainer.SAVING_SECONDS", 0.0)
    monkeypatch.setattr("halflife.studies.lab.trainer.SAVING_SHARE", 1e9)
    monkeypatch.setattr(TextLoop, "one_step", _killed_at(TextLoop.one_step, 33))
    with pytest.raises(KeyboardInterrupt):
        run(with_(MLP, eval_every=40), tmp_path, corpus)
    monkeypatch.undo()
    rest, _ = run(with_(MLP, eval_every=40), tmp_path, corpus)
    assert rest[0].step == 35


def _killed_at(one_step: Callable[[TextLoop], None], at: int) -> Callable[[TextLoop], None]:
    def step(self: TextLoop) -> None:
        if self.step == at:
            raise KeyboardInterrupt
        one_step(self)

    return step


@pytest.mark.parametrize("missing", ["step-20.safetensors", "norms.safetensors"])
def test_what_a_parent_kept_may_be_gone(missing: str, corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, keep_at=(20,), trace_norms=True)
    kept = parent_of(spec, tmp_path, corpus)
    (kept / missing).unlink()
    child = (
        TextBranch(of=spec, at=20, branch="tiny-lr", num_steps=2)
        if "step" in missing
        else TextReplay(of=spec, match="none")
    )
    with pytest.raises(UserError, match="remove the parent's folder"):
        run(child, tmp_path / "child", corpus, parent=kept)
    with pytest.raises(UserError, match="run the parent first"):
        run(child, tmp_path / "child", corpus)


# ---- precision, failures


@pytest.mark.parametrize("spec", [MLP, GPT], ids=["mlp", "gpt"])
@pytest.mark.parametrize(("precision", "near"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_every_precision_on_the_cpu(precision: str, near: float, spec: TextRun, corpus: Path, tmp_path: Path) -> None:
    exact, _ = run(spec, tmp_path / "exact", corpus)
    low, _ = run(with_(spec, precision=precision, keep_at=(40,)), tmp_path / "low", corpus)
    assert low[-1].values["val/loss"] == pytest.approx(exact[-1].values["val/loss"], rel=near)
    assert low[-1].values["val/loss"] != exact[-1].values["val/loss"]  # the precision is not ignored
    kept = load_file(tmp_path / "low/kept/step-40.safetensors")
    assert {value.dtype for name, value in kept.items() if name.startswith("model.")} == {torch.float32}


def test_a_float16_run_resumes_with_its_scale(corpus: Path, tmp_path: Path) -> None:
    spec = with_(MLP, precision="float16", ema=(0.9,))
    whole, _ = run(spec, tmp_path / "whole", corpus)
    with pytest.raises(RunStoppedError):
        run(spec, tmp_path / "cut", corpus, stop=stop_after(17))
    rest, _ = run(spec, tmp_path / "cut", corpus)
    assert rest == [reading for reading in whole if reading.step > 17]


def test_a_loss_that_is_no_number_says_when_and_where(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = with_(MLP, eval_every=10, log_every=10)
    with pytest.raises(RunStoppedError):
        run(spec, tmp_path, corpus, stop=stop_after(15))
    step = TextLoop.one_step

    def poisoned(self: TextLoop) -> None:
        step(self)
        if self.step == 23:
            with torch.no_grad():
                dict(self.model.named_parameters())["head.weight"][0, 0] = math.nan

    monkeypatch.setattr(TextLoop, "one_step", poisoned)
    with pytest.raises(RunFailedError) as caught:
        run(spec, tmp_path, corpus)
    text = str(caught.value)
    assert "at step 24" in text
    assert "gradient norm nan" in text
    assert "at the last good reading (step 20) weight norm" in text
    monkeypatch.undo()  # the last good checkpoint resumes
    rest, _ = run(spec, tmp_path, corpus)
    assert rest[0].step == 30


def test_too_little_text_for_one_pass_is_a_sentence(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"one.pass"):
        run(with_(MLP, num_steps=40, num_train_tokens=200), tmp_path, corpus)


def test_a_run_can_be_cut_short(corpus: Path, tmp_path: Path) -> None:
    """--max-steps cuts a parent and its branch alike."""
    spec = with_(MLP, keep_at=(20, 40))
    branch = TextBranch(of=spec, at=40, branch="tiny-lr", num_steps=10).cut(2)
    run(branch.of, tmp_path / "parent", corpus)
    readings, _ = run(branch, tmp_path / "branch", corpus, parent=tmp_path / "parent/kept")
    assert [r.step for r in readings] == [0, 2]
