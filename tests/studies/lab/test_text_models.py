"""The language models: against transformers' GPT-2 and references written with plain loops, counts, initial weights."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from halflife import param_groups
from halflife.studies.lab.text.gpt import GPT
from halflife.studies.lab.text.layers import make_norm
from halflife.studies.lab.text.mlp import MLP
from halflife.studies.lab.text.models import build_text_model
from halflife.studies.specs.text import TextRun

NEEDED: dict[str, Any] = {"lr": 0.01, "num_steps": 1, "batch_size": 2}
BYTE_MLP = TextRun(model="mlp", vocab_size=96, context=6, width=32, depth=1, activation="relu", **NEEDED)
SMALL_GPT = TextRun(vocab_size=96, context=16, width=32, depth=2, heads=2, norm="rmsnorm", activation="relu", **NEEDED)
GPT2 = TextRun(
    tokenizer="gpt2", vocab_size=50_257, context=1024, width=768, depth=12, heads=12, tied=True, bias=True, **NEEDED
)
TINY_GPT = replace(SMALL_GPT, vocab_size=11, context=5, width=8)
TINY_MLP = replace(BYTE_MLP, vocab_size=11, context=3, width=8, depth=2, embedding_width=4)

CASES = {
    "mlp": TINY_MLP,
    "mlp, gelu, fixed gains": replace(TINY_MLP, activation="gelu", norm_gain=False, init="fan-in"),
    "gpt": TINY_GPT,
    "gpt, as GPT-2": replace(TINY_GPT, norm="layernorm", activation="gelu", tied=True, bias=True),
    "gpt, as nanoGPT": replace(TINY_GPT, norm="layernorm", activation="gelu", tied=True),
    "gpt, fixed gains": replace(TINY_GPT, norm="layernorm", norm_gain=False, bias=True, init="normal"),
    "gpt, qk-norm": replace(TINY_GPT, qk_norm=True, init="fan-in"),
    "gpt, tied, fan-in": replace(TINY_GPT, tied=True, init="fan-in", heads=1),
}
each_case = pytest.mark.parametrize("spec", CASES.values(), ids=CASES.keys())


def ids_for(spec: TextRun, *shape: int, seed: int = 0) -> Tensor:
    return torch.randint(spec.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


def loss(logits: Tensor, spec: TextRun) -> Tensor:
    """Cross-entropy against tokens drawn at random."""
    return functional.cross_entropy(logits.flatten(0, -2), ids_for(spec, *logits.shape[:-1], seed=1).flatten())


@torch.no_grad()
def shaken(spec: TextRun, seed: int = 3) -> MLP | GPT:
    """A model in float64 whose every parameter is far from its initial value: no gain is 1, no bias 0."""
    model = build_text_model(spec, 0).double()
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) * 0.6)
    return model


def names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters()}


# ---- the functions they compute


def rms_normed(values: list[float], gain: list[float] | None) -> list[float]:
    root = math.sqrt(sum(v * v for v in values) / len(values))
    return [v / root * (gain[i] if gain else 1.0) for i, v in enumerate(values)]


def product(matrix: list[list[float]], values: list[float]) -> list[float]:
    return [sum(entry * v for entry, v in zip(row, values, strict=True)) for row in matrix]


def activated(name: str, value: float) -> float:
    return max(value, 0.0) if name == "relu" else value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


@pytest.mark.parametrize("activation", ["relu", "gelu"])
@pytest.mark.parametrize("norm_gain", [True, False])
def test_the_mlp_against_scalar_loops(activation: str, norm_gain: bool) -> None:
    spec = replace(TINY_MLP, activation=activation, norm_gain=norm_gain)
    model = shaken(spec)
    weights = {name: parameter.tolist() for name, parameter in model.named_parameters()}
    ids = ids_for(spec, 7, spec.context)
    logits = model(ids).detach().numpy()
    assert logits.shape == (7, spec.vocab_size)
    for row, expected in zip(ids.tolist(), logits, strict=True):
        x = product(weights["input.weight"], [v for token in row for v in weights["embedding.weight"][token]])
        for block in range(spec.depth):
            normed = rms_normed(x, weights.get(f"blocks.{block}.norm.weight"))
            hidden = [activated(activation, v) for v in product(weights[f"blocks.{block}.up.weight"], normed)]
            out = product(weights[f"blocks.{block}.down.weight"], hidden)
            x = [a + b for a, b in zip(x, out, strict=True)]
        found = product(weights["head.weight"], rms_normed(x, weights["final_norm.weight"]))
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-9)  # the eps of the norms is not in the loops


@torch.no_grad()
def gpt_by_loops(model: GPT, spec: TextRun, ids: list[int]) -> Tensor:
    """The logits of one window: one position, one head and one key at a time."""
    weights = dict(model.named_parameters())

    def normed(x: Tensor, gain: str | None) -> Tensor:
        return x / x.square().mean().sqrt() * (weights[gain] if gain and gain in weights else 1.0)

    positions = weights["position_embedding.weight"]
    stream = [weights["token_embedding.weight"][token] + positions[t] for t, token in enumerate(ids)]
    width, size = spec.width, spec.width // spec.heads
    for block in (f"blocks.{index}" for index in range(spec.depth)):
        qkv = [weights[f"{block}.attention.qkv.weight"] @ normed(x, f"{block}.attention_norm.weight") for x in stream]
        for t in range(len(ids)):
            mixed = []
            for head in range(spec.heads):
                part = slice(head * size, (head + 1) * size)
                q, keys, values = qkv[t][:width][part], [], []
                for earlier in range(t + 1):
                    keys.append(qkv[earlier][width : 2 * width][part])
                    values.append(qkv[earlier][2 * width :][part])
                if spec.qk_norm:
                    q, keys = normed(q, None), [normed(key, None) for key in keys]
                shares = [float((q @ key / math.sqrt(size)).exp()) for key in keys]
                mixed.append(torch.stack([s * v for s, v in zip(shares, values, strict=True)]).sum(0) / sum(shares))
            stream[t] = stream[t] + weights[f"{block}.attention.output.weight"] @ torch.cat(mixed)
        for t, x in enumerate(stream):
            hidden = weights[f"{block}.feed_forward.up.weight"] @ normed(x, f"{block}.feed_forward_norm.weight")
            activation = functional.relu if spec.activation == "relu" else functional.gelu
            stream[t] = x + weights[f"{block}.feed_forward.down.weight"] @ activation(hidden)
    return torch.stack([weights["head.weight"] @ normed(x, "final_norm.weight") for x in stream])


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize(("norm_gain", "heads", "activation"), [(True, 2, "relu"), (False, 4, "gelu")])
def test_the_gpt_with_rmsnorm_against_loops(qk_norm: bool, norm_gain: bool, heads: int, activation: str) -> None:
    spec = replace(TINY_GPT, qk_norm=qk_norm, norm_gain=norm_gain, heads=heads, activation=activation)
    model = shaken(spec)
    assert isinstance(model, GPT)
    ids = ids_for(spec, 3, spec.context)
    for row, logits in zip(ids, model(ids), strict=True):
        torch.testing.assert_close(gpt_by_loops(model, spec, row.tolist()), logits.detach(), rtol=1e-6, atol=1e-7)


def test_the_gpt_is_gpt2() -> None:
    """transformers' GPT-2 with the same weights, its matrices transposed, has the same logits and gradients."""
    transformers = pytest.importorskip("transformers")
    spec = replace(CASES["gpt, as GPT-2"], vocab_size=31, context=7, width=12, heads=3)
    model = shaken(spec)
    config = transformers.GPT2Config(
        vocab_size=31, n_positions=7, n_embd=12, n_layer=2, n_head=3, activation_function="gelu", embd_pdrop=0.0,
        resid_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    theirs = transformers.GPT2LMHeadModel(config).double()
    renamed = {
        "token_embedding": "wte", "position_embedding": "wpe", "final_norm": "ln_f", "blocks": "h",
        "attention_norm": "ln_1", "attention": "attn", "qkv": "c_attn", "output": "c_proj",
        "feed_forward_norm": "ln_2", "feed_forward": "mlp", "up": "c_fc", "down": "c_proj",
    }  # fmt: skip
    pairs = {}
    for name, parameter in model.named_parameters():
        other = theirs.get_parameter("transformer." + ".".join(renamed.get(part, part) for part in name.split(".")))
        is_matrix = name.endswith(("qkv.weight", "output.weight", "up.weight", "down.weight"))
        pairs[name] = (parameter, other, is_matrix)
        with torch.no_grad():
            other.copy_(parameter.T if is_matrix else parameter)
    assert len(pairs) == len(list(theirs.parameters()))
    ids = ids_for(spec, 4, 7)
    logits = theirs(ids).logits
    torch.testing.assert_close(model(ids), logits, rtol=1e-9, atol=1e-9)
    for found in (model(ids), logits):
        loss(found, spec).backward()  # type: ignore[no-untyped-call]
    for parameter, other, is_matrix in pairs.values():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, other.grad.T if is_matrix else other.grad, rtol=1e-7, atol=1e-10)


@each_case
def test_a_token_changes_no_logit_before_it(spec: TextRun) -> None:
    model = shaken(spec)
    ids = ids_for(spec, 3, spec.context)
    logits = model(ids)
    for position in range(spec.context):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % spec.vocab_size
        differs = (model(changed) - logits).abs().amax(-1) > 1e-6
        if spec.model == "mlp":  # it predicts the token after the window from all of it
            assert differs.all()
        else:
            assert not differs[:, :position].any()
            assert differs[:, position:].all()


def test_a_shorter_window_gives_the_logits_of_its_tokens() -> None:
    model = shaken(TINY_GPT)
    ids = ids_for(TINY_GPT, 2, 5)
    torch.testing.assert_close(model(ids[:, :3]), model(ids)[:, :3])


@pytest.mark.parametrize("qk_norm", [True, False])
def test_with_qk_norm_the_size_of_queries_and_keys_does_not_count(qk_norm: bool) -> None:
    spec = replace(TINY_GPT, qk_norm=qk_norm)
    model, ids = shaken(spec), ids_for(spec, 3, 5)
    logits = model(ids)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module.out_features == 3 * spec.width:
                module.weight[: spec.width] *= 7  # the queries
                module.weight[spec.width : 2 * spec.width] *= 0.2  # the keys
    same = torch.allclose(model(ids), logits, rtol=1e-5, atol=1e-6)
    assert same is qk_norm


# ---- sizes


def count(spec: TextRun) -> int:
    """Parameters, a tied one once, without making any."""
    with torch.device("meta"):
        model: nn.Module = MLP(spec) if spec.model == "mlp" else GPT(spec)
    return sum(p.numel() for p in model.parameters())


def test_the_byte_mlp_of_the_measured_setting_has_13600_parameters() -> None:
    assert count(replace(BYTE_MLP, norm_gain=False)) == 13_600
    assert count(BYTE_MLP) == 13_600 + 32
    assert count(replace(BYTE_MLP, depth=3)) == 13_600 + 2 * 8 * 32**2 + 3 * 32


def test_the_gpt_of_the_measured_setting_has_31264_parameters() -> None:
    assert count(replace(SMALL_GPT, norm_gain=False)) == 31_264
    assert count(SMALL_GPT) == 31_264 + 4 * 32


@pytest.mark.parametrize(
    ("width", "depth", "heads", "published"),
    [(768, 12, 12, 124_439_808), (1024, 24, 16, 354_823_168), (1280, 36, 20, 774_030_080)],
)
def test_gpt2_has_its_published_number_of_parameters(width: int, depth: int, heads: int, published: int) -> None:
    spec = replace(GPT2, width=width, depth=depth, heads=heads)
    assert count(spec) == published
    biases = depth * (3 + 1 + 4 + 1 + 2) * width + width
    assert count(replace(spec, bias=False)) == published - biases
    assert count(replace(spec, tied=False)) == published + 50_257 * width
    assert count(replace(spec, vocab_size=50_304)) == published + 47 * width


def test_nanogpts_124m_without_biases() -> None:
    matrices = 12 * 12 * 768**2
    gains = (2 * 12 + 1) * 768
    assert matrices + gains + (50_257 + 1024) * 768 == 124_337_664 == count(replace(GPT2, bias=False))


# ---- initial weights


def deviations(spec: TextRun) -> dict[str, float]:
    """The standard deviation that each matrix and embedding is to have."""
    model = build_text_model(spec, 0)
    found = {}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2:
            continue
        if spec.init == "fan-in":
            embedded = name in {"embedding.weight", "token_embedding.weight", "position_embedding.weight"}
            found[name] = 1.0 if embedded else parameter.shape[1] ** -0.5
            if embedded and spec.tied:
                found[name] = spec.width**-0.5
        else:
            residual = spec.init == "gpt2" and name.endswith(("attention.output.weight", "down.weight"))
            found[name] = spec.init_std / (math.sqrt(2 * spec.depth) if residual else 1)
    return found


@pytest.mark.parametrize("init", ["gpt2", "normal", "fan-in"])
@pytest.mark.parametrize("spec", [replace(BYTE_MLP, depth=3), SMALL_GPT, replace(SMALL_GPT, tied=True, depth=3)])
def test_initial_weights_are_normal_with_the_standard_deviation_of_the_spec(spec: TextRun, init: str) -> None:
    spec = replace(spec, init=init, init_std=0.07)
    expected = deviations(spec)
    assert len(expected) == {"mlp": 3 + 2 * 3, "gpt": 3 - spec.tied + 4 * spec.depth}[spec.model]
    weights = dict(build_text_model(spec, 5).named_parameters())
    for name, deviation in expected.items():
        z = weights[name].detach().double().flatten() / deviation
        assert abs(z.mean()) < 4.5 / math.sqrt(len(z)), name
        assert abs(z.square().mean() - 1) < 4.5 * math.sqrt(2 / len(z)), name
        assert abs(z.pow(4).mean() - 3) < 4.5 * math.sqrt(96 / len(z)), name  # normal, not uniform
    for name in weights.keys() - expected.keys():
        assert (weights[name] == 1).all(), name


def test_biases_begin_at_zero_and_gains_at_one() -> None:
    for name, parameter in build_text_model(CASES["gpt, as GPT-2"], 0).named_parameters():
        if parameter.ndim == 1:
            assert (parameter == (0.0 if name.endswith("bias") else 1.0)).all(), name


@each_case
def test_the_first_loss_is_that_of_guessing(spec: TextRun) -> None:
    """No initial weights make the head loud, tied to embeddings of unit variance or not."""
    spec = replace(spec, vocab_size=96, width=64, heads=1)
    model = build_text_model(spec, 0)
    ids = ids_for(spec, 64, spec.context)
    excess = loss(model(ids), spec) - math.log(96)
    # Logits of variance v cost v / 2: 1/2 at fan-in. A tied head of unit variance would cost about 32.
    assert abs(excess) < (0.7 if spec.init == "fan-in" else 0.1)


@each_case
def test_the_seed_alone_decides(spec: TextRun) -> None:
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    model = build_text_model(spec, 4)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again, other = build_text_model(spec, 4), build_text_model(spec, 5)
    for name, weight in model.named_parameters():
        twin, different = again.get_parameter(name), other.get_parameter(name)
        assert torch.equal(weight, twin), name
        assert weight.ndim == 1 or not torch.equal(weight, different), name
        assert weight.dtype == torch.float32
        assert weight.requires_grad
    assert model.training
    assert len(model.blocks) == spec.depth


@each_case
def test_every_parameter_gets_a_gradient(spec: TextRun) -> None:
    model = build_text_model(spec, 0)
    logits = model(ids_for(spec, 16, spec.context))
    loss(logits, spec).backward()  # type: ignore[no-untyped-call]
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_a_tied_head_is_the_embedding() -> None:
    model = build_text_model(CASES["gpt, as nanoGPT"], 0)
    assert isinstance(model, GPT)
    assert model.head.weight is model.token_embedding.weight
    assert "head.weight" not in names(model)
    loose = build_text_model(replace(CASES["gpt, as nanoGPT"], tied=False), 0)
    assert isinstance(loose, GPT)
    assert not torch.equal(loose.head.weight, loose.token_embedding.weight)


# ---- parameters by name


def test_fixed_gains_leave_one_norm_with_parameters() -> None:
    for spec in (TINY_MLP, TINY_GPT, replace(TINY_GPT, norm="layernorm", bias=True)):
        learnable = {name for name in names(build_text_model(spec, 0)) if "norm" in name}
        fixed = {name for name in names(build_text_model(replace(spec, norm_gain=False), 0)) if "norm" in name}
        assert fixed == {name for name in learnable if name.startswith("final_norm.")}
        assert len(learnable) > len(fixed) > 0


def decaying(model: nn.Module, policy: str) -> set[str]:
    groups = param_groups(model, policy, weight_decay=0.1)
    return {name for group in groups if group["weight_decay"] for name in group["param_names"]}


def test_what_decays_under_each_policy() -> None:
    block = {"attention.qkv.weight", "attention.output.weight", "feed_forward.up.weight", "feed_forward.down.weight"}
    matrices = {f"blocks.{index}.{name}" for index in range(2) for name in block}
    embeddings = {"token_embedding.weight", "position_embedding.weight"}
    model = build_text_model(replace(TINY_GPT, norm="layernorm", bias=True), 0)
    assert decaying(model, "matrices") == matrices | {"head.weight"}
    assert decaying(model, "nanogpt") == matrices | {"head.weight"} | embeddings
    assert decaying(model, "transformers") == matrices | {"head.weight"} | embeddings
    assert decaying(model, "everything") == names(model)
    tied = build_text_model(replace(TINY_GPT, tied=True), 0)
    assert decaying(tied, "matrices") == matrices | {"token_embedding.weight"}  # it is the head, too
    assert decaying(tied, "nanogpt") == matrices | embeddings
    mlp = build_text_model(replace(TINY_MLP, depth=1), 0)
    inner = {"input.weight", "blocks.0.up.weight", "blocks.0.down.weight", "head.weight"}
    assert decaying(mlp, "matrices") == inner
    assert decaying(mlp, "nanogpt") == decaying(mlp, "transformers") == inner | {"embedding.weight"}
    assert decaying(mlp, "everything") == names(mlp)


# ---- dropout, precision, compilation


@each_case
def test_dropout_is_there_in_training_only(spec: TextRun) -> None:
    ids = ids_for(spec, 8, spec.context)
    plain, dropping = build_text_model(spec, 0), build_text_model(replace(spec, dropout=0.5), 0)
    torch.manual_seed(0)
    assert not torch.equal(dropping(ids), dropping(ids))
    torch.testing.assert_close(dropping.eval()(ids), plain(ids))
    assert torch.equal(plain(ids), plain(ids))


def dropped_shares(spec: TextRun) -> dict[str, float]:
    """Where a share of the numbers is zero, in standard deviations from ``spec.dropout``, at the first such places.

    ``a <-`` is what module a reads, ``a ->`` what it gives. Each pattern of zeros is named where it is seen first. Small
    shares are left out: a head whose attention weights are all dropped gives zeros, too.
    """
    torch.manual_seed(0)
    model = build_text_model(spec, 0)
    seen: list[tuple[str, Tensor]] = []
    for name, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, inputs, name=name: seen.append((f"{name} <-", inputs[0].clone())))
        module.register_forward_hook(lambda _, __, output, name=name: seen.append((f"{name} ->", output.clone())))
    model(ids_for(spec, 64, spec.context))
    found: dict[str, float] = {}
    known: list[Tensor] = []
    for name, values in seen:
        zeros = values == 0
        if (
            not values.is_floating_point()
            or zeros.double().mean() < 0.1
            or any(torch.equal(zeros, other) for other in known)
        ):
            continue
        known.append(zeros)
        deviation = math.sqrt(spec.dropout * (1 - spec.dropout) / zeros.numel())
        found[name] = (float(zeros.double().mean()) - spec.dropout) / deviation
    return found


def test_what_is_dropped() -> None:
    mlp = dropped_shares(replace(BYTE_MLP, activation="gelu", depth=2, dropout=0.3))
    assert mlp.keys() == {"blocks.0.down <-", "blocks.1.down <-"}  # the hidden layers
    gpt = dropped_shares(replace(SMALL_GPT, activation="gelu", dropout=0.3))
    branches = {f"blocks.{block}.{part} ->" for block in range(2) for part in ("attention", "feed_forward")}
    assert gpt.keys() == {"blocks.0 <-"} | branches
    assert all(abs(z) < 4.5 for z in (mlp | gpt).values())
    assert dropped_shares(replace(SMALL_GPT, activation="gelu")) == {}


def test_attention_weights_are_dropped_and_the_rest_scaled_up() -> None:
    """With one token a head's weight is 1: what it mixes is its value, or nothing."""
    spec = replace(SMALL_GPT, context=1, depth=1, dropout=0.3)
    model = build_text_model(spec, 0)
    assert isinstance(model, GPT)
    attention = model.get_submodule("blocks.0.attention")
    mixed: list[Tensor] = []
    attention.get_submodule("output").register_forward_pre_hook(lambda _, inputs: mixed.append(inputs[0]))
    x = torch.randn(2000, 1, spec.width)
    torch.manual_seed(0)
    attention(x)
    attention.eval()(x)
    heads, values = (each.reshape(-1, spec.width // spec.heads) for each in mixed)
    kept = (heads != 0).any(-1)
    torch.testing.assert_close(heads[kept], values[kept] / 0.7)
    assert abs(float((~kept).double().mean()) - 0.3) < 4.5 * math.sqrt(0.3 * 0.7 / len(kept))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rmsnorm_forgets_the_scale_at_every_precision(dtype: torch.dtype) -> None:
    """The eps that torch takes by default is .008 for bfloat16: activations of .02 would come out 4 times too small."""
    norm = make_norm(TINY_MLP, 64, final=False).to(dtype)
    x = torch.randn(10, 64, generator=torch.Generator().manual_seed(0)).to(dtype)
    small = norm(x / 64)  # exact in every one of these types
    torch.testing.assert_close(small.float(), norm(x).float(), rtol=1e-2, atol=0)
    torch.testing.assert_close(small.float().square().mean(-1), torch.ones(10), rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@each_case
def test_autocast_on_the_cpu_is_near_float32(spec: TextRun, dtype: torch.dtype) -> None:
    model = shaken(spec).float()
    ids = ids_for(spec, 16, spec.context)
    with torch.autocast("cpu", dtype):
        low = model(ids)
    exact = model(ids)
    assert low.dtype == dtype
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    error = (low.float() - exact).square().mean().sqrt() / exact.square().mean().sqrt()
    assert 0 < error < (0.05 if dtype == torch.bfloat16 else 0.01)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")  # torch's own
@pytest.mark.parametrize("name", ["mlp", "gpt, as GPT-2", "gpt, qk-norm"])
def test_compiled_they_give_the_same_numbers(name: str) -> None:
    torch._dynamo.reset()
    spec = CASES[name]
    model, twin = build_text_model(spec, 0), build_text_model(spec, 0)
    ids = ids_for(spec, 8, spec.context)
    logits, compiled = model(ids), torch.compile(twin)(ids)
    torch.testing.assert_close(compiled, logits, rtol=1e-4, atol=1e-5)
    for each in (logits, compiled):
        loss(each, spec).backward()  # type: ignore[no-untyped-call]
    for parameter_name, parameter in model.named_parameters():
        torch.testing.assert_close(twin.get_parameter(parameter_name).grad, parameter.grad, rtol=1e-3, atol=1e-6)
