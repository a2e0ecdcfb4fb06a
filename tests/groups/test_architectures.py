"""Which parameters of real architectures decay, against lists that were written down from the architectures.

The models are those of transformers, made from their configs on the meta device: no weights, no network.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from halflife import param_groups
from halflife.groups.policies import kind_of, uses_of

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()

TEXT = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 16}
ONE_KEY = {"num_key_value_heads": 1}
IMAGE = {key: value for key, value in TEXT.items() if key != "vocab_size"} | {"image_size": 8, "patch_size": 4}


@dataclass(frozen=True)
class Case:
    """An architecture and the parameters that multiply activations in it, by their names."""

    name: str
    model: str
    config: dict[str, Any]
    matrices: frozenset[str]

    def build(self) -> nn.Module:
        config = getattr(transformers, self.name)(**self.config)
        with torch.device("meta"):
            return getattr(transformers, self.model)(config)  # type: ignore[no-any-return]  # it has no types


def under(prefixes: str, *names: str) -> set[str]:
    """Names below one prefix or several, as in ``h.0|h.1``; each may itself end in ``{a,b}``."""
    found = set()
    for prefix in prefixes.split("|"):
        for name in names:
            head, brace, rest = name.partition("{")
            inner, _, tail = rest.partition("}")
            found |= {f"{prefix}.{head}{each}{tail}" for each in inner.split(",")} if brace else {f"{prefix}.{name}"}
    return found


ATTENTION = "self_attn.{q,k,v,o}_proj.weight"
GATED = "mlp.{gate,up,down}_proj.weight"
EXPERTS = "mlp.experts.{gate_up,down}_proj"  # three dimensions, held by the module itself
BART = "self_attn.{q,k,v,out}_proj.weight"
SHARED = "mlp.shared_expert.{gate,up,down}_proj.weight"
FC = "fc{1,2}.weight"
T5_SELF = "SelfAttention.{q,k,v,o}.weight"
T5_CROSS = "EncDecAttention.{q,k,v,o}.weight"
T5_FF = "DenseReluDense.{wi,wo}.weight"

CASES = [
    Case(
        "GPT2Config",
        "GPT2LMHeadModel",
        {"n_layer": 2, "n_embd": 8, "n_head": 2, "vocab_size": 16, "n_positions": 8},
        # Conv1D of transformers is no nn.Module that torch knows; the token embedding is the output head too.
        frozenset(
            under("transformer.h.0|transformer.h.1", "attn.c_{attn,proj}.weight", "mlp.c_{fc,proj}.weight")
            | {"transformer.wte.weight"}
        ),
    ),
    Case(
        "LlamaConfig",
        "LlamaForCausalLM",
        TEXT | ONE_KEY | {"attention_bias": True, "mlp_bias": True},
        frozenset(under("model.layers.0", ATTENTION, GATED) | {"lm_head.weight"}),
    ),
    Case(
        "ViTConfig",
        "ViTForImageClassification",
        IMAGE,
        frozenset(
            under("vit.layers.0", "attention.{q,k,v,o}_proj.weight", "mlp.fc{1,2}.weight")
            | {"vit.embeddings.patch_embeddings.projection.weight", "classifier.weight"}
        ),
    ),
    Case(
        "MambaConfig",
        "MambaForCausalLM",
        {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "state_size": 4, "time_step_rank": 2},
        # Not A_log, which has two dimensions, not D, not dt_proj.bias; the embedding is the output head too.
        frozenset(
            under("backbone.layers.0.mixer", "conv1d.weight", "{in,x,dt,out}_proj.weight")
            | {"backbone.embeddings.weight"}
        ),
    ),
    Case(
        "Mamba2Config",
        "Mamba2ForCausalLM",
        {"hidden_size": 8, "num_hidden_layers": 1, "vocab_size": 16, "state_size": 4}
        | {"num_heads": 2, "head_dim": 8, "n_groups": 1},
        frozenset(
            under("backbone.layers.0.mixer", "conv1d.weight", "in_proj.weight", "out_proj.weight") | {"lm_head.weight"}
        ),
    ),
    Case(
        "MixtralConfig",
        "MixtralForCausalLM",
        TEXT | ONE_KEY | {"num_local_experts": 2},
        # The router ("gate") is a matrix like any other.
        frozenset(under("model.layers.0", ATTENTION, EXPERTS, "mlp.gate.weight") | {"lm_head.weight"}),
    ),
    Case(
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        TEXT
        | ONE_KEY
        | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8, "num_experts": 4, "qkv_bias": True},
        # shared_expert_gate is nn.Linear(8, 1): a matrix with one row.
        frozenset(
            under("model.layers.0", ATTENTION, EXPERTS, SHARED, "mlp.gate.weight", "mlp.shared_expert_gate.weight")
            | {"lm_head.weight"}
        ),
    ),
    Case(
        "GptOssConfig",
        "GptOssForCausalLM",
        TEXT | ONE_KEY | {"head_dim": 4, "num_local_experts": 2, "layer_types": ["full_attention"]},
        # Not gate_up_proj_bias and down_proj_bias, which have a row for each expert; not the sinks.
        frozenset(under("model.layers.0", ATTENTION, EXPERTS, "mlp.router.weight") | {"lm_head.weight"}),
    ),
    Case(
        "BertConfig",
        "BertForMaskedLM",
        TEXT,
        frozenset(
            under(
                "bert.encoder.layer.0",
                "attention.self.{query,key,value}.weight",
                "attention.output.dense.weight",
                "intermediate.dense.weight",
                "output.dense.weight",
            )
            | {"cls.predictions.transform.dense.weight", "bert.embeddings.word_embeddings.weight"}  # the latter tied
        ),
    ),
    Case(
        "T5Config",
        "T5ForConditionalGeneration",
        {"d_model": 8, "d_ff": 16, "d_kv": 4, "num_layers": 1, "num_heads": 2, "vocab_size": 16},
        frozenset(  # not relative_attention_bias.weight, a table of 32 x heads
            under("encoder.block.0.layer.0|decoder.block.0.layer.0", T5_SELF)
            | under("decoder.block.0.layer.1", T5_CROSS)
            | under("encoder.block.0.layer.1|decoder.block.0.layer.2", T5_FF)
            | {"shared.weight"}  # tied to the head
        ),
    ),
    Case(
        "WhisperConfig",
        "WhisperForConditionalGeneration",
        {"d_model": 8, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
        | {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 16, "num_mel_bins": 4}
        | {"pad_token_id": 0, "max_source_positions": 8, "max_target_positions": 8},
        frozenset(
            under("model.encoder", "conv1.weight", "conv2.weight")
            | under("model.encoder.layers.0", BART, FC)
            | under("model.decoder.layers.0", BART, FC, "encoder_attn.{q,k,v,out}_proj.weight")
            | {"model.decoder.embed_tokens.weight"}  # tied to the head
        ),
    ),
    Case(
        "SwinConfig",
        "SwinForImageClassification",
        {"embed_dim": 8, "depths": [1], "num_heads": [2], "image_size": 8, "patch_size": 4, "window_size": 2}
        | {"use_absolute_embeddings": True},
        frozenset(  # not relative_position_bias_table, not position_embeddings
            under("swin.encoder.layers.0.blocks.0", "attention.{q,k,v,o}_proj.weight", "mlp.fc{1,2}.weight")
            | {"swin.embeddings.patch_embeddings.projection.weight", "classifier.weight"}
        ),
    ),
    Case(
        "BeitConfig",
        "BeitForMaskedImageModeling",
        IMAGE
        | {"use_relative_position_bias": True, "use_mask_token": True, "use_absolute_position_embeddings": True}
        | {"vocab_size": 16},
        frozenset(  # not lambda_1 and lambda_2, the layer scale
            under("beit.layers.0", "attention.{q,k,v,o}_proj.weight", "mlp.fc{1,2}.weight")
            | {"beit.embeddings.patch_embeddings.projection.weight", "lm_head.weight"}
        ),
    ),
    Case(
        "CLIPConfig",
        "CLIPModel",
        {"text_config": TEXT, "vision_config": IMAGE},
        frozenset(  # not logit_scale, not class_embedding
            under("text_model.encoder.layers.0|vision_model.encoder.layers.0", BART, "mlp.fc{1,2}.weight")
            | {"vision_model.embeddings.patch_embedding.weight", "visual_projection.weight", "text_projection.weight"}
        ),
    ),
    Case(
        "ConvNextConfig",
        "ConvNextForImageClassification",
        {"hidden_sizes": [8], "depths": [1], "num_stages": 1},
        frozenset(
            under("convnext.encoder.stages.0.layers.0", "dwconv.weight", "pwconv{1,2}.weight")
            | {"convnext.embeddings.patch_embeddings.weight", "classifier.weight"}
        ),
    ),
    Case(
        "Wav2Vec2Config",
        "Wav2Vec2ForPreTraining",
        TEXT
        | {"conv_dim": (8,), "conv_stride": (5,), "conv_kernel": (10,)}
        | {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2, "num_codevectors_per_group": 4},
        frozenset(  # weight_norm keeps direction (original1) and gain (original0) apart; not the codevectors
            under("wav2vec2.encoder.layers.0", "attention.{q,k,v,out}_proj.weight")
            | under("wav2vec2.encoder.layers.0", "feed_forward.{intermediate,output}_dense.weight")
            | under("wav2vec2", "feature_extractor.conv_layers.0.conv.weight", "feature_projection.projection.weight")
            | under("wav2vec2.encoder.pos_conv_embed.conv.parametrizations.weight", "original1")
            | {"quantizer.weight_proj.weight", "project_hid.weight", "project_q.weight"}
        ),
    ),
    Case(
        "XLNetConfig",
        "XLNetModel",
        {"d_model": 8, "n_layer": 1, "n_head": 2, "d_inner": 16, "vocab_size": 16},
        # Matrices of three dimensions with names of one letter; not r_w_bias, r_r_bias, r_s_bias, seg_embed.
        frozenset(under("layer.0", "rel_attn.{q,k,v,o,r}", "ff.layer_{1,2}.weight")),
    ),
    Case(
        "RwkvConfig",
        "RwkvForCausalLM",
        {"hidden_size": 8, "attention_hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
        | {"vocab_size": 16},
        frozenset(  # not time_decay, time_first, time_mix_key
            under("rwkv.blocks.0", "attention.{key,value,receptance,output}.weight")
            | under("rwkv.blocks.0", "feed_forward.{key,value,receptance}.weight")
            | {"head.weight"}
        ),
    ),
    Case(
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        TEXT | ONE_KEY | {"lru_width": 8},
        # input_gate_weight is one matrix for each head; input_gate_bias one vector for each.
        frozenset(
            under("model.layers.0.temporal_block", "linear_{x,y,out}.weight", "conv_1d.weight")
            | under("model.layers.0.temporal_block.rg_lru", "{input,recurrent}_gate_weight")
            | under("model.layers.0", "mlp_block.{gate,up,down}_proj.weight")
            | {"model.embed_tokens.weight"}  # tied to the head
        ),
    ),
    Case(
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        TEXT
        | ONE_KEY
        | {"head_dim": 4, "num_experts": 2, "moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
        | {"linear_num_value_heads": 2, "linear_num_key_heads": 2, "linear_key_head_dim": 4}
        | {"linear_value_head_dim": 4, "layer_types": ["linear_attention"]},
        frozenset(  # not A_log and dt_bias of the linear attention
            under("model.layers.0.linear_attn", "conv1d.weight", "in_proj_{qkvz,ba}.weight", "out_proj.weight")
            | under("model.layers.0", EXPERTS, SHARED, "mlp.gate.weight", "mlp.shared_expert_gate.weight")
            | {"lm_head.weight"}
        ),
    ),
]


def decaying(model: nn.Module, policy: str = "matrices") -> set[str]:
    groups = param_groups(model, policy=policy, weight_decay=0.1)
    return {name for group in groups if group["weight_decay"] == 0.1 for name in group["param_names"]}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_what_decays(case: Case) -> None:
    model = case.build()
    assert case.matrices <= dict(model.named_parameters()).keys(), "the list is of this architecture"
    assert decaying(model) == case.matrices


@cache
def trainer_rule() -> Callable[[nn.Module], list[str]]:
    """The function by which the Trainer of the installed transformers chooses; it does not use the Trainer."""
    chosen = transformers.Trainer.get_decay_parameter_names
    return lambda model: chosen(None, model)


def of_trainer(model: nn.Module) -> set[str]:
    """What the Trainer decays: it goes over ``named_parameters()``, so a tied weight has its first name."""
    chosen = set(trainer_rule()(model))
    return {name for name, parameter in model.named_parameters() if name in chosen and parameter.requires_grad}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.model)
def test_the_policy_transformers_is_that_of_the_trainer(case: Case) -> None:
    model = case.build()
    assert decaying(model, "transformers") == of_trainer(model)


# ---- what the rule of the Trainer gets wrong, each in a module of its own


class Gain(nn.Module):
    """A norm that neither torch nor a name pattern knows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))


class Mixer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.A_log = nn.Parameter(torch.zeros(4, 3))
        self.D = nn.Parameter(torch.ones(2, 4))  # a row for each head, as in Zamba
        self.dt_bias = nn.Parameter(torch.zeros(4))


class LayerScale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(4))


class Hard(nn.Module):
    """Everything that a rule by name alone gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.ln_1 = Gain()
        self.blocks = nn.ModuleList([nn.ModuleDict({"norm1": Gain()})])
        self.bn1 = nn.BatchNorm1d(4)
        self.embed_tokens = nn.Embedding(5, 4)
        self.mixer = Mixer()
        self.layer_scale = LayerScale()
        self.logit_scale = nn.Parameter(torch.zeros(()))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.rel_pos_bias_proj = nn.Linear(4, 4)
        self.debias_head = nn.Linear(4, 4)


NOT_MATRICES = {"ln_1.weight", "blocks.0.norm1.weight", "bn1.weight", "embed_tokens.weight", "mixer.A_log", "mixer.D"} | {
    "layer_scale.gamma",
    "logit_scale",
    "cls_token",
    "pos_embed",
}  # fmt: skip
NAMED_LIKE_A_BIAS = {"rel_pos_bias_proj.weight", "debias_head.weight"}


def test_what_a_rule_by_name_gets_wrong() -> None:
    model = Hard()
    assert of_trainer(model) == NOT_MATRICES  # both ways round: what it decays must not, what it spares must
    assert decaying(model, "transformers") == NOT_MATRICES
    assert decaying(model) == NAMED_LIKE_A_BIAS


class Custom(nn.Module):
    """A user's own module, whose tensors only their shapes and names tell apart."""

    def __init__(self, **shapes: tuple[int, ...]) -> None:
        super().__init__()
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.zeros(shape)))


class PatchEmbed(Custom):
    pass


class NormalizedLinear(Custom):
    pass


class HeadNorm(Custom):
    pass


class ParallelEmbedding(Custom):
    pass


@pytest.mark.parametrize(
    ("module", "kinds"),
    [
        # a matrix is not missed because a part of its name, or of its module's, sounds like something else
        (Custom(rel_pos_bias_proj=(3, 4), debias=(3, 4), token_mixing=(5, 5), position_kernel=(3, 4)), "matrices"),
        (Custom(normal_weight=(3, 4), embedded=(3, 4), D=(3, 4), catalog=(3, 4), w=(3, 4)), "matrices"),
        (PatchEmbed(proj=(3, 4), proj_weight=(3, 4)), "matrices"),
        (NormalizedLinear(weight=(3, 4)), "matrices"),
        # what has two dimensions, and is no matrix
        (Custom(relative_position_bias_table=(9, 2), down_proj_bias=(2, 4), attention_biases=(2, 9)), "biases"),
        (Custom(pos_embed_window=(3, 4), level_embed=(3, 4), emb_rel_k=(3, 4), query_tokens=(1, 3, 4)), "embeddings"),
        (Custom(latents_1d=(3, 4), codebook=(3, 4), learned_prompt=(3, 4)), "embeddings"),
        (ParallelEmbedding(weight=(5, 4)), "embeddings"),
        (HeadNorm(weight=(2, 4), bias=(2, 4)), "norms"),
        (HeadNorm(weight=(4,), bias=(4,)), "norms"),
        (Custom(qk_gain=(2, 4), norm_weight=(2, 4)), "norms"),  # of layers that are stacked in one tensor
        (Custom(gamma=(2, 4), head_scale=(2, 4), log_dt=(2, 4)), "others"),
    ],
)
def test_kinds_by_name(module: nn.Module, kinds: str) -> None:
    found = {uses[0].name: kind_of(parameter, uses)[0] for parameter, uses in uses_of(module).items()}
    assert found == {name: kinds for name, _ in module.named_parameters()}


def test_lists_of_parameters_take_the_name_of_their_list() -> None:
    model = Custom()
    model.pos_embeds = nn.ParameterList([torch.zeros(3, 4)])
    model.weights = nn.ParameterList([torch.zeros(3, 4)])
    model.tables = nn.ParameterDict({"bias": torch.zeros(3, 4)})
    kinds = {uses[0].name: kind_of(parameter, uses)[0] for parameter, uses in uses_of(model).items()}
    assert kinds == {"pos_embeds.0": "embeddings", "weights.0": "matrices", "tables.bias": "biases"}


def test_parametrized_tensors_are_those_of_their_module() -> None:
    model = nn.Sequential(nn.Linear(3, 1), nn.Embedding(5, 3), nn.Linear(3, 4))
    nn.utils.parametrizations.spectral_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[1])
    nn.utils.parametrizations.weight_norm(model[2])
    groups = param_groups(model, weight_decay=0.1)
    decays = {name for group in groups if group["weight_decay"] for name in group["param_names"]}
    # One row is a matrix still; the table stays a table; of weight_norm's two, the direction decays, not the gain.
    assert decays == {"0.parametrizations.weight.original", "2.parametrizations.weight.original1"}


def test_the_old_weight_norm() -> None:
    linear = nn.Linear(3, 4)
    with pytest.warns(FutureWarning):
        nn.utils.weight_norm(linear)
    assert decaying(linear) == {"weight_v"}


def test_what_the_model_itself_excludes() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.marked, self.listed, self.plain = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 4)
            self.marked.weight._no_weight_decay = True  # type: ignore[attr-defined]  # as mamba_ssm does

        def no_weight_decay(self) -> set[str]:  # as timm does
            return {"listed.weight"}

    assert decaying(Net()) == {"plain.weight"}
    assert decaying(nn.ModuleDict({"inner": Net()})) == {"inner.plain.weight"}  # relative to the module that says it


def test_a_method_that_happens_to_have_the_name() -> None:
    class Net(nn.Linear):
        def no_weight_decay(self, epoch: int) -> bool:
            return epoch > 3

    assert decaying(Net(2, 2)) == {"weight"}


# ---- every architecture there is


@contextmanager
def at_most(seconds: int) -> Iterator[None]:
    """Stop what takes longer, where the system has alarms."""

    def stop(*_: object) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def built(name: str) -> nn.Module | None:
    """A model of the library from its default config, cut to four layers; None where that is not possible."""
    try:
        with at_most(20), torch.device("meta"):
            config = transformers.AutoConfig.for_model(name)
            for key in ("num_hidden_layers", "num_layers", "n_layer", "encoder_layers", "decoder_layers", "depth"):
                if isinstance(getattr(config, key, None), int):
                    setattr(config, key, min(4, getattr(config, key)))
            return transformers.AutoModel.from_config(config)  # type: ignore[no-any-return]  # it has no types
    except Exception:  # a config that does not stand on its own, or cannot be cut: not what is tested here
        return None


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_architecture_of_the_library() -> None:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    torch_modules = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d)
    num_models = 0
    for name in sorted(MODEL_MAPPING_NAMES):
        model = built(name)
        if model is None:
            continue
        num_models += 1
        found = decaying(model)
        assert decaying(model, "transformers") == of_trainer(model), name
        for key, parameter in model.named_parameters():
            owner = model.get_submodule(key.rpartition(".")[0])
            leaf = key.rpartition(".")[2]
            if not parameter.requires_grad:
                continue
            if parameter.ndim < 2 or type(owner).__name__.endswith("Norm"):
                assert key not in found, f"{name}: {key} decays"
            if leaf in {"A_log", "D", "dt_bias", "bias", "cls_token", "position_embeddings", "logit_scale"}:
                assert key not in found, f"{name}: {key} decays"
            if type(owner) in torch_modules and leaf == "weight":
                assert key in found, f"{name}: {key} is missed"
            if "Experts" in type(owner).__name__ and parameter.ndim == 3:
                assert key in found, f"{name}: {key} is missed"
    assert num_models > 400  # 552 of them in transformers 5.23
