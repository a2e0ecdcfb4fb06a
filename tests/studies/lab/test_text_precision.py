"""Rounding at places of a language model, weights in few bits, and what is read of both."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from halflife.errors import RunFailedError, RunStoppedError, UserError
from halflife.optim.attaching import attach
from halflife.precision.rounding import round_to
from halflife.precision.shrinking import shrink
from halflife.rules import Decoupled
from halflife.studies.lab.precision import Mode, Nearest
from halflife.studies.lab.text.evaluate import even_windows, windows_at
from halflife.studies.lab.text.gpt import GPT
from halflife.studies.lab.text.loop import TextLoop
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.lab.text.numerics import Seen
from halflife.studies.lab.text.order import WindowOrder
from halflife.studies.lab.text.parallel import DataParallelContext
from halflife.studies.lab.text.pending import PendingDecay
from halflife.studies.lab.text.tokens import load_tokens
from halflife.studies.lab.trainer import Context
from halflife.studies.specs import TextRun
from halflife.studies.specs.base import spec_from_json
from halflife.studies.specs.precision import AUTOCAST_PLACES, PLACES, STORED
from tests.studies.lab import text_runs
from tests.studies.lab.text_runs import MLP, run, stop_after, write_corpus

CPU = torch.device("cpu")
SPEC = dataclasses.replace(text_runs.GPT, init_std=0.4)  # so large that rounding shows everywhere


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HALFLIFE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield write_corpus(tmp_path_factory.mktemp("corpus"))


def with_(spec: TextRun, **changes: Any) -> TextRun:
    return dataclasses.replace(spec, **changes)


# ---- the fields


def test_a_run_without_them_has_the_name_it_had() -> None:
    assert not {"bits", "rounded", "rounded_gradients", "stored", "stored_bits", "watch_precision"} & set(
        SPEC.to_json()
    )


def test_the_order_of_places_makes_no_other_run() -> None:
    one = with_(SPEC, bits=3, rounded=("scores", "weights"), rounded_gradients=("logits", "inputs"))
    other = with_(SPEC, bits=3, rounded=("weights", "scores"), rounded_gradients=("inputs", "logits"))
    assert one == other
    assert one.digest() == other.digest() != SPEC.digest()
    assert spec_from_json(one.to_json()) == one


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bits": 0, "rounded": ("scores",)}, "bits is 0, expected an integer from 1 to 23"),
        ({"bits": 24, "rounded": ("scores",)}, "bits is 24, expected an integer from 1 to 23"),
        ({"bits": 2.0, "rounded": ("scores",)}, "bits is 2.0, expected an integer"),
        ({"bits": True, "rounded": ("scores",)}, "bits is True, expected an integer"),
        ({"bits": 2}, "bits is 2 and nothing is rounded, expected places: name them in rounded or rounded_gradients"),
        ({"bits": 2, "rounded": "scores"}, "rounded is 'scores', expected a tuple of some of weights, inputs, "),
        ({"bits": 2, "rounded": ("score",)}, "rounded has 'score', expected some of weights, inputs, outputs, scores, "),
        ({"bits": 2, "rounded": (3,)}, "rounded has 3, expected some of"),
        ({"bits": 2, "rounded_gradients": ("logits", "logits")}, "rounded_gradients has 'logits' twice, expected"),
        ({"bits": 2, "rounded": ("mixing",), "model": "mlp", "heads": 1}, "rounded has 'mixing', which the MLP does not"),
        ({"bits": 2, "rounded": ("logits",), "precision": "bfloat16"}, "precision is 'bfloat16' and numbers are rounded"),
        ({"stored": "bfloat16"}, "stored is 'bfloat16', expected one of float32, nearest, separate, stochastic, "),
        ({"stored": "nearest", "stored_bits": 0}, "stored_bits is 0, expected an integer from 1 to 23"),
        ({"stored_bits": 7}, "stored_bits is 7 and stored is 'float32', expected one of nearest, separate, "),
        ({"stored": "nearest", "stored_bits": 7, "precision": "float16"}, "precision is 'float16', whose scaler skips steps"),
        ({"stored": "separate", "stored_bits": 7, "decay": "L2(lam=0.1)"}, "expected a rule whose fraction does not depend"),
        ({"stored": "separate", "stored_bits": 7, "decay": "NormTarget(norm=1.0)"}, "the decay is 'NormTarget"),
        ({"stored": "separate", "stored_bits": 7, "decay": "Cautious(Decoupled(lam=0.1))"}, "the decay is 'Cautious"),
        ({"watch_precision": 1}, "watch_precision is 1, expected True or False"),
        ({"watch_precision": True, "compile": True}, "compile is True in a run whose precision is simulated or watched"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_a_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        with_(SPEC, **changes)


# ---- rounding, against the model written out


@pytest.mark.parametrize("bits", [1, 2, 3, 7, 10, 22])
def test_the_fast_rounding_is_round_to(bits: int) -> None:
    """Of everything that a CPU computes: its NaN has no bits at the end."""
    i = torch.randint(-(2**31), 2**31, (200_000,), dtype=torch.int64, generator=torch.Generator().manual_seed(bits))
    x = i.to(torch.int32).view(torch.float32)
    ends = torch.tensor([0.0, -0.0, math.inf, -math.inf, 3.4e38, -3.4e38, 1e-45, 1e-40])
    nan = torch.tensor([0x7FC00000, -0x400000], dtype=torch.int32).view(torch.float32)
    assert nan.isnan().all()
    x = torch.cat([x[~x.isnan()][:190_000], ends, nan])
    grid = x.view(2, -1).t()  # strides that are not those of memory
    for found, expected in (
        (Nearest(bits)(x), round_to(x, bits)),
        (Nearest(bits).in_place(x.clone()), round_to(x, bits)),
        (Nearest(bits)(grid), round_to(grid, bits)),
    ):
        assert torch.equal(found.isnan(), expected.isnan())
        whole = ~found.isnan()
        assert torch.equal(found[whole].view(torch.int32), expected[whole].view(torch.int32))


def written_out(model: GPT, spec: TextRun, ids_BT: Tensor) -> Tensor:
    """The GPT from its weights, in plain operations, with `round_to` at every place."""
    w = dict(model.named_parameters(remove_duplicate=False))

    def at(place: str, x: Tensor) -> Tensor:
        return round_to(x, spec.bits, forward=place in spec.rounded, backward=place in spec.rounded_gradients)

    def linear(x: Tensor, name: str, place: str = "outputs") -> Tensor:
        return at(place, functional.linear(at("inputs", x), at("weights", w[f"{name}.weight"]), w.get(f"{name}.bias")))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.layer_norm(x, x.shape[-1:], w.get(f"{name}.weight"), w.get(f"{name}.bias"), 1e-5)

    def drop(x: Tensor) -> Tensor:
        return functional.dropout(x, spec.dropout) if model.training and spec.dropout else x

    tokens = ids_BT.shape[1]
    x = at("residual", drop(w["token_embedding.weight"][ids_BT] + w["position_embedding.weight"][:tokens]))
    for index in range(spec.depth):
        block = f"blocks.{index}"
        q, k, v = linear(norm(x, f"{block}.attention_norm"), f"{block}.attention.qkv").chunk(3, dim=-1)
        q, k, v = (part.view(*part.shape[:-1], spec.heads, -1).permute(0, 2, 1, 3) for part in (q, k, v))
        if spec.qk_norm:
            q, k = (functional.rms_norm(part, part.shape[-1:], eps=1e-8) for part in (q, k))
        if {"scores", "mixing"} & {*spec.rounded, *spec.rounded_gradients}:
            q, k, v = at("scores", q), at("scores", k), at("mixing", v)
            scores = at("scores", torch.einsum("bhik,bhjk->bhij", q, k) * (spec.width // spec.heads) ** -0.5)
            scores = scores + torch.full((tokens, tokens), -math.inf).triu(1)
            mixed = at("mixing", torch.einsum("bhij,bhjk->bhik", at("mixing", drop(scores.softmax(-1))), v))
        else:
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=spec.dropout)
        x = at("residual", x + drop(linear(mixed.permute(0, 2, 1, 3).reshape(x.shape), f"{block}.attention.output")))
        hidden = functional.gelu(linear(norm(x, f"{block}.feed_forward_norm"), f"{block}.feed_forward.up"))
        x = at("residual", x + drop(linear(hidden, f"{block}.feed_forward.down")))
    return linear(norm(x, "final_norm"), "head", "logits")


def ids_of(spec: TextRun) -> Tensor:
    shape = (spec.batch_size, spec.context)
    return torch.randint(0, spec.vocab_size, shape, generator=torch.Generator().manual_seed(1))


def gradients(model: nn.Module, logits: Tensor) -> dict[str, Tensor]:
    """Of a loss that is not the same everywhere."""
    model.zero_grad()
    functional.cross_entropy(logits.flatten(0, -2), torch.arange(logits.flatten(0, -2).shape[0]) % 5).backward()  # type: ignore[no-untyped-call]
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


PLACES_TRIED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "all": (PLACES, PLACES),
    "autocast": (AUTOCAST_PLACES, AUTOCAST_PLACES),
    "forward": (PLACES, ()),
    "backward": ((), PLACES),
    "mixed": (("outputs", "scores", "residual"), ("inputs", "mixing")),
    "other": (("inputs", "mixing", "logits"), ("outputs", "scores", "residual")),
    **{f"only {place}": ((place,), (place,)) for place in PLACES},
}


@pytest.mark.parametrize(
    "changes", [{}, {"tied": True, "bias": True}, {"qk_norm": True}], ids=["plain", "tied", "qk-norm"]
)
@pytest.mark.parametrize("places", PLACES_TRIED)
def test_a_rounded_gpt_is_the_one_written_out(places: str, changes: dict[str, Any]) -> None:
    """To the bit: one that is off by rounding would round otherwise now and then."""
    forward, backward = PLACES_TRIED[places]
    spec = with_(SPEC, bits=3, rounded=forward, rounded_gradients=backward, **changes)
    model = build_text_model(spec, 0)
    assert isinstance(model, GPT)
    torch.manual_seed(0)
    logits = model(ids_of(spec))
    torch.manual_seed(0)
    expected = written_out(model, spec, ids_of(spec))
    assert torch.equal(logits, expected)
    mine, theirs = gradients(model, logits), gradients(model, expected)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize(
    "places", [("weights", "inputs", "outputs", "logits", "residual"), ("weights",), ("residual",)]
)
def test_a_rounded_mlp_is_the_one_written_out(places: tuple[str, ...]) -> None:
    spec = with_(MLP, init_std=0.4, bits=3, rounded=places, rounded_gradients=places)
    model = build_text_model(spec, 0)
    w = dict(model.named_parameters())

    def at(place: str, x: Tensor) -> Tensor:
        return round_to(x, 3, forward=place in places, backward=place in places)

    def linear(x: Tensor, name: str, place: str = "outputs") -> Tensor:
        return at(place, functional.linear(at("inputs", x), at("weights", w[f"{name}.weight"])))

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.rms_norm(x, x.shape[-1:], w[f"{name}.weight"], 1e-8)

    x = at("residual", linear(w["embedding.weight"][ids_of(spec)].flatten(1), "input"))
    hidden = functional.gelu(linear(norm(x, "blocks.0.norm"), "blocks.0.up"))
    x = at("residual", x + linear(hidden, "blocks.0.down"))
    expected = linear(norm(x, "final_norm"), "head", "logits")
    logits = model(ids_of(spec))
    assert torch.equal(logits, expected)
    mine, theirs = gradients(model, logits), gradients(model, expected)
    for name, gradient in mine.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-6, atol=1e-7, msg=name)


@pytest.mark.parametrize("place", PLACES)
def test_every_place_changes_something(place: str) -> None:
    def both(**changes: Any) -> tuple[Tensor, dict[str, Tensor]]:
        model = build_text_model(with_(SPEC, **changes), 0)
        logits = model(ids_of(SPEC))
        return logits, gradients(model, logits)

    plain, plain_gradients = both()
    assert not torch.allclose(both(bits=3, rounded=(place,))[0], plain, rtol=1e-3)
    logits, found = both(bits=3, rounded_gradients=(place,))
    torch.testing.assert_close(logits, plain)
    assert any(not torch.allclose(found[name], gradient, rtol=1e-3) for name, gradient in plain_gradients.items())


def test_rounding_to_all_bits_is_the_run_without(corpus: Path, tmp_path: Path) -> None:
    plain, _ = run(with_(SPEC, watch_precision=True), tmp_path / "plain", corpus)
    rounded, _ = run(with_(SPEC, bits=23, rounded=PLACES, rounded_gradients=PLACES), tmp_path / "rounded", corpus)
    assert rounded == plain


def test_seven_bits_at_the_places_of_autocast_are_near_autocast(corpus: Path, tmp_path: Path) -> None:
    """Not equal: torch's attention rounds elsewhere inside."""
    places = {"rounded": AUTOCAST_PLACES, "rounded_gradients": AUTOCAST_PLACES}
    ours = build_text_model(with_(SPEC, bits=7, **places), 0)(ids_of(SPEC))
    model = build_text_model(SPEC, 0)
    with Mode("bfloat16", CPU).autocast():
        theirs = model(ids_of(SPEC)).float()
    exact = model(ids_of(SPEC))
    assert (ours - theirs).std() < 0.7 * (exact - theirs).std()
    assert 0.5 < (ours - exact).std() / (theirs - exact).std() < 2


def test_float16_comes_with_its_scaler() -> None:
    assert [Mode(name, CPU).scaler.is_enabled() for name in ("float32", "bfloat16", "float16")] == [False, False, True]


# ---- weights in few bits


def by_hand(spec: TextRun, corpus: Path, lam: float, *, round_last: bool = True) -> dict[str, Tensor]:
    """The run with its weights in few bits, written out with torch's own AdamW."""
    data = load_tokens(spec, str(corpus))
    order = WindowOrder(
        num_tokens=len(data.train), context=spec.context, targets_per_window=spec.context, batch_size=spec.batch_size,
        seed=spec.seed, order=spec.order,
    )  # fmt: skip
    model = build_text_model(spec, spec.seed)
    named = dict(model.named_parameters())

    def rounded(x: Tensor) -> Tensor:
        return round_to(x.detach(), spec.stored_bits)

    with torch.no_grad():
        for parameter in named.values() if spec.stored != "masters" else ():
            parameter.copy_(rounded(parameter))
    apart = spec.stored == "separate"
    matrices = [p for p in named.values() if p.ndim >= 2]
    groups = [{"params": matrices, "weight_decay": 0.0 if apart else lam}]
    groups.append({"params": [p for p in named.values() if p.ndim < 2], "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=spec.lr, betas=(spec.beta1, spec.beta2), eps=spec.eps, fused=True)
    for step in range(spec.num_steps):
        starts = order.starts(step)
        ids = torch.tensor(np.stack([data.train[s : s + spec.context + 1] for s in starts]).astype(np.int64))
        seen = {name: round_to(p, spec.stored_bits) if spec.stored == "masters" else p for name, p in named.items()}
        logits = torch.func.functional_call(model, seen, (ids[:, :-1],))
        optimizer.zero_grad()
        functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(named.values(), spec.clip or math.inf)
        with torch.no_grad():
            for parameter in matrices if apart else ():
                parameter.copy_(rounded(parameter * (1 - spec.lr * lam)))
            optimizer.step()
            rounds = spec.stored != "masters" and (round_last or step < spec.num_steps - 1)
            for parameter in named.values() if rounds else ():
                parameter.copy_(rounded(parameter))
    return {name: parameter.detach() for name, parameter in named.items()}


STEADY = with_(SPEC, lr_schedule="constant(1.0)", num_steps=20, eval_every=20, keep_at=(20,), watch_precision=True)


def kept(spec: TextRun, folder: Path, corpus: Path) -> dict[str, Tensor]:
    run(spec, folder, corpus)
    file = folder / f"kept/step-{spec.num_steps}.safetensors"
    return {name.removeprefix("model."): w for name, w in load_file(file).items() if name.startswith("model.")}


@pytest.mark.parametrize("bits", [4, 7])
@pytest.mark.parametrize("stored", ["nearest", "separate", "masters"])
def test_weights_in_few_bits_are_those_of_a_loop_written_out(
    stored: str, bits: int, corpus: Path, tmp_path: Path
) -> None:
    spec = with_(STEADY, stored=stored, stored_bits=bits)
    found = kept(spec, tmp_path, corpus)
    for name, expected in by_hand(spec, corpus, lam=1.0).items():
        assert torch.equal(found[name], expected), name


def test_stochastic_rounding_takes_either_neighbour_and_the_mean_is_right(corpus: Path, tmp_path: Path) -> None:
    spec = with_(STEADY, stored="stochastic", stored_bits=4, num_steps=1, keep_at=(1,))
    found = kept(spec, tmp_path / "one", corpus)
    exact = by_hand(spec, corpus, lam=1.0, round_last=False)
    errors, units = [], []
    for name, weight in found.items():
        assert torch.equal(weight, round_to(weight, 4))
        errors.append((weight - exact[name]).double().flatten())
        units.append(2.0 ** (exact[name].double().abs().flatten().log2().floor() - 4))
    error = torch.cat(errors) / torch.cat(units)
    assert error.abs().max() < 1
    assert error.abs().max() > 0.6  # to nearest it is a half at most
    assert abs(error.mean()) < 4 * error.std() / math.sqrt(len(error))
    other = kept(with_(spec, seed=4), tmp_path / "other", corpus)
    assert not torch.equal(other["final_norm.weight"], found["final_norm.weight"])


EVERYTHING = with_(
    SPEC, num_steps=10, dropout=0.1, accumulate=2, ema=(0.9,), average_from=4, keep_at=(5, 10), eval_every=5,
    decay="Scheduled(Decoupled(lam=1.0), linear(1.0, 0.5, 10))",
)  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "rounded": {"bits": 3, "rounded": PLACES, "rounded_gradients": PLACES},
    "without dropout": {"bits": 3, "rounded": PLACES, "rounded_gradients": PLACES, "dropout": 0.0, "accumulate": 1},
    "watched": {"watch_precision": True, "precision": "bfloat16"},
    **{how: {"stored": how, "stored_bits": 5} for how in STORED[1:]},
}


@pytest.mark.parametrize("at", [7, *(pytest.param(at, marks=pytest.mark.slow) for at in (1, 5, 9))])
@pytest.mark.parametrize("mode", MODES)
def test_a_stopped_run_resumes_to_the_same_bits(mode: str, at: int, corpus: Path, tmp_path: Path) -> None:
    spec = with_(EVERYTHING, **MODES[mode])
    whole, _ = run(spec, tmp_path / "whole", corpus)
    with pytest.raises(RunStoppedError):
        run(spec, tmp_path / "cut", corpus, stop=stop_after(at))
    rest, _ = run(spec, tmp_path / "cut", corpus)
    assert rest == [reading for reading in whole if reading.step > at]
    for name, value in load_file(tmp_path / "whole/kept/step-10.safetensors").items():
        assert torch.equal(value, load_file(tmp_path / "cut/kept/step-10.safetensors")[name]), name


@pytest.mark.parametrize("stored", STORED[1:-1])
def test_weights_of_seven_bits_are_bfloat16_after_every_step(stored: str, corpus: Path) -> None:
    loop = TextLoop(with_(STEADY, stored=stored, stored_bits=7), Context(data_folder=str(corpus)))
    for _ in range(5):
        assert all(torch.equal(w, w.bfloat16().float()) for w in loop.weights)
        loop.one_step()
    assert all(torch.equal(w, w.bfloat16().float()) for w in loop.weights)


@pytest.mark.parametrize("bits", [4, 7])
def test_a_separate_decay_is_lost_up_to_a_quarter_of_a_unit(bits: int, corpus: Path, tmp_path: Path) -> None:
    """fl((1 - c) w) = w for every w exactly where c <= 2^-(k + 2)."""
    spec = with_(STEADY, stored="separate", stored_bits=bits, decay="Decoupled(lam=1.0)")
    without = kept(with_(spec, decay="", lr=2.0 ** -(bits + 2)), tmp_path / "without", corpus)
    at = with_(spec, lr=2.0 ** -(bits + 2))
    readings, _ = run(at, tmp_path / "read", corpus)
    assert {r.values["lost/decay"] for r in readings if r.step} == {1.0}
    for name, weight in kept(at, tmp_path / "at", corpus).items():
        assert torch.equal(weight, without[name]), name
    above = with_(spec, lr=2.0 ** -(bits + 2) * 1.1)
    readings, _ = run(above, tmp_path / "above", corpus)
    assert max(r.values["lost/decay"] for r in readings if r.step) < 1


@pytest.mark.parametrize("bits", [2, 7, 10])
def test_a_pass_of_decay_rounds_against_even_offsets(bits: int) -> None:
    """In exact arithmetic, with the fractions as they are."""
    weights = round_to(torch.randn(500, generator=torch.Generator().manual_seed(0)), bits)
    shrunk = weights.clone()
    shrink([shrunk], [0], 0.875, turn=3, bits=bits)
    found = shrunk.double()
    u = ((torch.arange(500, dtype=torch.float64) * (2**0.5 - 1) % 1) + 3 * (5**0.5 - 1) / 2) % 1
    product = weights.double() * 0.875
    ulp = 2.0 ** (product.abs().log2().floor() - bits)
    expected = (product.abs() / ulp + u).floor() * ulp * product.sign()
    at_edge = ((product.abs() / ulp + u) % 1 - 0.5).abs() > 0.5 - 2.0 ** (bits - 20)  # offsets have 23 - bits bits
    assert at_edge.double().mean() < 0.1
    assert torch.equal(found[~at_edge], expected[~at_edge])


def test_accumulated_decay_in_seven_bits_is_that_of_attach_on_bfloat16() -> None:
    """Two groups, of which one decays, and a learning rate that changes; updates are zero, and the weights equal to the bit."""
    draws = torch.Generator().manual_seed(0)
    groups = [[round_to(torch.randn(size, generator=draws), 7) for size in sizes] for sizes in ((700, 33), (50,))]
    real = [[torch.nn.Parameter(weight.bfloat16()) for weight in group] for group in groups]
    optimizer = torch.optim.SGD(
        [{"params": real[0], "weight_decay": 0.1}, {"params": real[1], "weight_decay": 0.0}], lr=1e-3, foreach=False
    )
    attach(optimizer, Decoupled(0.1), low_precision="accumulate")
    pending = PendingDecay(groups, 7)
    start = groups[0][0].clone()
    for step in range(600):
        lr = 1e-2 / (1 + step % 7)
        for group in optimizer.param_groups:
            group["lr"] = lr
            for parameter in group["params"]:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        pending.add([lr * 0.1, 0.0])
        pending.remove()
    assert not torch.equal(groups[0][0], start)
    for weight, parameter in zip(itertools.chain(*groups), itertools.chain(*real), strict=True):
        assert torch.equal(weight, parameter.float())


@pytest.mark.parametrize(("r", "steps"), [(1e-4, 4000), (1e-3, 1000), (0.05, 40)])
def test_accumulated_decay_is_what_was_asked(r: float, steps: int) -> None:
    """Where a decay rounded at each step is nothing at all, and where it is removed at once."""
    start = round_to(torch.randn(2000, generator=torch.Generator().manual_seed(0)), 7)
    weight = start.clone()
    pending = PendingDecay([[weight]], 7)
    for _ in range(steps):
        pending.add([r])
        pending.remove()
    kept_share = float((weight.double() * start).sum() / start.double().square().sum())
    assert kept_share == pytest.approx((1 - r) ** steps, rel=0.02 if r < 0.01 else 0.05)
    assert (round_to(start * (1 - r), 7) == start).all() == (r < 2**-9)


def test_accumulated_decay_comes_after_the_update_that_makes_it_large(corpus: Path, tmp_path: Path) -> None:
    """lr * lam is .005, so that what is pending passes 2^-5 at step 7."""
    spec = with_(STEADY, stored="accumulated", stored_bits=7, lr=5e-3, num_steps=7, keep_at=(6, 7))
    after = kept(spec, tmp_path, corpus)
    before = load_file(tmp_path / "kept/step-6.safetensors")
    plain = with_(spec, stored="nearest", keep_at=())
    for name, weight in by_hand(with_(plain, num_steps=6), corpus, lam=0.0).items():
        assert torch.equal(before[f"model.{name}"], weight)
    place = 0
    for name, weight in by_hand(plain, corpus, lam=0.0).items():
        if weight.ndim < 2:
            assert torch.equal(after[name], weight)
            continue
        u = (torch.arange(place, place + weight.numel(), dtype=torch.float64) * (2**0.5 - 1)) % 1
        product = weight.double().flatten() * (1 - 5e-3) ** 7
        ulp = 2.0 ** (product.abs().log2().floor() - 7)
        expected = (product.abs() / ulp + u).floor() * ulp * product.sign()
        assert (after[name].double().flatten() == expected).double().mean() > 0.995, name  # offsets have 16 bits
        place += weight.numel()


# ---- what is read


@pytest.mark.parametrize(
    "changes", [{}, {"accumulate": 2}, {"optimizer": "sgd", "lr": 0.5}], ids=["plain", "parts", "sgd"]
)
def test_watching_changes_no_run(changes: dict[str, Any], corpus: Path, tmp_path: Path) -> None:
    spec = with_(SPEC, keep_at=(40,), **changes)
    plain, _ = run(spec, tmp_path / "plain", corpus)
    watched, _ = run(with_(spec, watch_precision=True), tmp_path / "watched", corpus)
    for old, new in zip(plain, watched, strict=True):
        assert {name: new.values[name] for name in old.values} == old.values
    mine, theirs = (load_file(tmp_path / name / "kept/step-40.safetensors") for name in ("plain", "watched"))
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


@pytest.mark.parametrize("rounded", [(), PLACES], ids=["float32", "rounded"])
def test_readings_are_those_of_the_numbers(rounded: tuple[str, ...]) -> None:
    """From what the modules gave, in float64."""
    spec = with_(SPEC, rounded=rounded, bits=3 if rounded else 23)
    model = build_text_model(spec, 0)
    assert isinstance(model, GPT)
    branches, qkvs, ends = [], [], []
    for name, module in model.named_modules():
        if name.endswith((".attention", ".feed_forward")):
            module.register_forward_hook(lambda _, __, out: branches.append(out))
    spied = model.numerics.linear

    def linear(layer: nn.Linear, x: Tensor, **more: Any) -> Tensor:
        out = spied(layer, x, **more)
        if out.shape[-1] == 3 * spec.width:
            qkvs.append(out.detach().double())
        return out

    model.numerics.linear = linear  # type: ignore[method-assign]
    model.final_norm.register_forward_pre_hook(lambda _, inputs: ends.append(inputs[0]))
    model.numerics.seen = Seen()
    logits = model(ids_of(spec))
    found = model.numerics.readings(model.numerics.seen)
    later = torch.ones(spec.context, spec.context, dtype=torch.bool).triu(1)
    largest, entropies = 0.0, []
    for qkv in qkvs:
        q, k, _ = (x.view(*x.shape[:2], spec.heads, -1).transpose(1, 2) for x in qkv.chunk(3, dim=-1))
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if rounded:
            scores = round_to(scores.float(), 3).double()
        largest = max(largest, scores.masked_fill(later, 0).abs().max().item())
        p = scores.masked_fill(later, -math.inf).softmax(-1)
        entropies.append((p * -p.clamp_min(1e-300).log()).sum(-1).mean((0, 2)).min().item())
    assert found["score/largest"] == pytest.approx(largest, rel=1e-5)
    bits = 3 if rounded else 23
    assert found["score/half_ulp"] == 2.0 ** (math.floor(math.log2(largest)) - bits - 1)
    assert found["score/entropy"] == pytest.approx(min(entropies), rel=1e-5)
    assert found["logit/largest"] == pytest.approx(logits.abs().max().item(), rel=1e-5)
    rms = ends[0].double().square().mean().sqrt().item()
    assert found["residual/rms"] == pytest.approx(rms, rel=1e-5)
    added = torch.stack(branches).double().square().mean().sqrt().item()
    assert found["residual/ratio"] == pytest.approx(rms / added, rel=1e-5)


def test_what_of_a_step_is_lost(corpus: Path, tmp_path: Path) -> None:
    """Against the weights before and after, kept at two steps that follow each other."""
    spec = with_(STEADY, stored="nearest", stored_bits=7, num_steps=20, log_every=1, keep_at=(19, 20))
    readings, _ = run(spec, tmp_path, corpus)
    old, new = ({k: v for k, v in load_file(tmp_path / f"kept/step-{n}.safetensors").items() if k.startswith("model.")}
                for n in (19, 20))  # fmt: skip
    end = readings[-1].values
    matrices = [name for name, w in new.items() if w.ndim >= 2]
    moved = math.sqrt(sum((new[n] - old[n]).double().square().sum().item() for n in matrices))
    assert end["update_ratio"] == pytest.approx(
        moved / math.sqrt(sum(old[n].double().square().sum().item() for n in matrices))
    )
    still = sum((new[n] == old[n]).sum().item() for n in new) / sum(w.numel() for w in new.values())
    assert 0.05 < end["lost/updates"] == pytest.approx(still, abs=2e-3)  # few weights are not meant to move
    assert -0.5 < end["lost/decay"] < 1
    free, _ = run(with_(spec, stored_bits=23, keep_at=()), tmp_path / "free", corpus)
    assert free[-1].values["lost/updates"] < 0.01
    assert free[-1].values["lost/decay"] == pytest.approx(0, abs=0.02)


def test_the_loss_of_the_same_weights_without_rounding(corpus: Path, tmp_path: Path) -> None:
    spec = with_(SPEC, bits=2, rounded=PLACES, keep_at=(40,))
    readings, _ = run(spec, tmp_path, corpus)
    end = readings[-1].values
    model = build_text_model(SPEC, 0)
    weights = load_file(tmp_path / "kept/step-40.safetensors")
    model.load_state_dict({name: weights[f"model.{name}"] for name in model.state_dict()})
    val = load_tokens(spec, str(corpus)).val
    windows = windows_at(val, even_windows(len(val), spec.context + 1, math.ceil(600 / spec.context)), spec.context + 1)
    logits = model.eval()(windows[:, :-1])
    loss = functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).item()
    assert end["val/loss_float32"] == pytest.approx(loss, rel=1e-5)
    assert abs(end["val/loss"] - loss) > 1e-3


@pytest.mark.parametrize("changes", [{"watch_precision": True}, {"stored": "nearest", "stored_bits": 7},
                                     {"bits": 5, "rounded": ("scores",)}])  # fmt: skip
def test_a_divergence_is_a_result_where_precision_is_the_question(
    changes: dict[str, Any], corpus: Path, tmp_path: Path
) -> None:
    spec = with_(SPEC, optimizer="sgd", decay="", clip=None, lr=1e12)
    with pytest.raises(RunFailedError):
        run(spec, tmp_path / "plain", corpus)
    readings, _ = run(with_(spec, **changes), tmp_path / "low", corpus)
    assert readings[-1].values.keys() == {"diverged_at"}
    assert 1 <= readings[-1].values["diverged_at"] <= 10
    sound, _ = run(with_(SPEC, **changes), tmp_path / "sound", corpus)
    assert sound[-1].values["diverged_at"] == -1


def test_several_processes_are_refused(corpus: Path) -> None:
    class Two(DataParallelContext):
        size = 2

    with pytest.raises(UserError, match="precision is simulated or watched, and there are 2 processes, expected one"):
        TextLoop(with_(SPEC, watch_precision=True), Context(data_folder=str(corpus), parallel=Two(CPU)))
