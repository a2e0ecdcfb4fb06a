"""Which parameters get decay: every module type, ties, frozen ones, patterns, and every refusal."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from halflife import attach, explain, param_groups
from halflife.errors import UserError
from halflife.groups.build import Policy, decide
from halflife.rules import (
    L2,
    Cautious,
    Constant,
    Decoupled,
    HalfLife,
    NormTarget,
    Part,
    PerGroup,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import until


class Net(nn.Module):
    """A small transformer-like model with everything that grouping gets wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.wte = nn.Embedding(11, 4)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 4))
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 4))
        self.attn = nn.MultiheadAttention(4, 2)
        self.rnn = nn.GRU(4, 3)
        self.conv = nn.Conv1d(4, 4, 3, groups=4)
        self.bn = nn.BatchNorm1d(4)
        self.block = Block()
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.wte.weight
        self.frozen = nn.Linear(4, 4)
        self.frozen.requires_grad_(False)


class RMSNormOfTheirs(nn.Module):
    """A norm that torch does not know, with a gain for each head and channel."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(2, 2))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ln = nn.LayerNorm((2, 2))
        self.norm = RMSNormOfTheirs()
        self.experts = nn.Parameter(torch.zeros(3, 4, 4))
        self.gamma = nn.Parameter(torch.ones(1, 1, 4))
        self.relative_bias = nn.Parameter(torch.zeros(2, 3))
        self.narrow = nn.Linear(4, 1)
        self.act = nn.PReLU(4)


MATRICES = {
    "wte.weight",  # tied to the output head, which multiplies activations
    "attn.in_proj_weight",
    "attn.out_proj.weight",
    "rnn.weight_ih_l0",
    "rnn.weight_hh_l0",
    "conv.weight",
    "block.experts",
    "block.narrow.weight",
}
NANOGPT = MATRICES | {"pos_embed", "cls_token", "block.ln.weight", "block.ln.bias", "block.norm.gain"} | {
    "block.gamma",
    "block.relative_bias",
}  # fmt: skip


def names(groups: list[dict[str, Any]], weight_decay: float) -> set[str]:
    return {name for group in groups if group["weight_decay"] == weight_decay for name in group["param_names"]}


@pytest.mark.parametrize(("policy", "expected"), [("matrices", MATRICES), ("nanogpt", NANOGPT)])
def test_what_decays(policy: str, expected: set[str]) -> None:
    assert names(param_groups(Net(), policy=policy, weight_decay=0.1), 0.1) == expected


@pytest.mark.parametrize("policy", ["matrices", "nanogpt", "everything", [("*.bias", False), ("*", True)]])
def test_every_trainable_parameter_is_claimed_once(policy: Policy) -> None:
    model = Net()
    groups = param_groups(model, policy=policy, weight_decay=0.1)
    claimed = [parameter for group in groups for parameter in group["params"]]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sorted(map(id, claimed)) == sorted(map(id, trainable))
    by_name = dict(model.named_parameters())
    for group in groups:
        assert all(by_name[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))


def test_groups_are_ready_for_torch() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    for make in (torch.optim.AdamW, torch.optim.SGD, torch.optim.Adafactor):
        groups = param_groups(model, weight_decay=0.1)
        assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
        optimizer = make(groups, lr=0.1)
        attach(optimizer, Decoupled())
        state = optimizer.state_dict()["param_groups"]
        assert [group["param_names"] for group in state] == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]


def test_one_group_where_all_agree() -> None:
    groups = param_groups(nn.Linear(2, 2), policy="everything", weight_decay=0.1)
    assert [group["param_names"] for group in groups] == [["weight", "bias"]]
    groups = param_groups(nn.LayerNorm(2), weight_decay=0.1)
    assert [group["weight_decay"] for group in groups] == [0.0]


def test_an_untied_embedding_does_not_decay() -> None:
    model = Net()
    model.head = nn.Linear(4, 11, bias=False)
    groups = param_groups(model, weight_decay=0.1)
    assert "wte.weight" in names(groups, 0.0)
    assert "head.weight" in names(groups, 0.1)


def test_a_pattern_may_use_any_name_of_a_shared_parameter() -> None:
    model = nn.Module()
    model.first = model.second = nn.Linear(2, 2)  # one module under two names
    model.one = model.two = nn.Parameter(torch.zeros(2))  # one parameter under two names of one module
    groups = param_groups(model, policy=[("second.weight", 0.1), ("two", 0.2), ("*", False)])
    assert [group["param_names"] for group in groups] == [["one"], ["first.weight"], ["first.bias"]]


def test_weight_norm_is_told_apart() -> None:
    """Its gain has shape (out, 1): one number per row, not a matrix."""
    model = nn.utils.parametrizations.weight_norm(nn.Linear(3, 4))
    groups = param_groups(model, weight_decay=0.1)
    assert names(groups, 0.1) == {"parametrizations.weight.original1"}
    assert names(groups, 0.0) == {"parametrizations.weight.original0", "bias"}


def test_patterns_in_order() -> None:
    policy = [("head.*", False), ("block.experts", 0.3), ("*.weight", True), ("frozen.*", True), ("*", False)]
    groups = param_groups(Net(), policy=policy, weight_decay=0.1)
    # The tied weight is also called head.weight, and that pattern comes first.
    assert "wte.weight" in names(groups, 0.0)
    assert names(groups, 0.3) == {"block.experts"}
    assert {"attn.out_proj.weight", "conv.weight", "bn.weight"} <= names(groups, 0.1)
    assert groups[-1]["weight_decay"] == 0.0
    assert not any(name.startswith("frozen") for group in groups for name in group["param_names"])


def test_patterns_over_module_types() -> None:
    groups = param_groups(
        Net(), policy=[(nn.LayerNorm, 0.2), ((nn.Embedding, nn.GRU), True), ("*", 0)], weight_decay=0.1
    )
    assert names(groups, 0.2) == {"block.ln.weight", "block.ln.bias"}
    rnn = {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"}
    assert names(groups, 0.1) == rnn | {"wte.weight"}
    # Everything inside a module of the type, also what a module within holds.
    groups = param_groups(Net(), policy=[(nn.MultiheadAttention, True), ("*", False)], weight_decay=0.1)
    assert names(groups, 0.1) == {
        "attn.in_proj_weight",
        "attn.in_proj_bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
    }
    # The weight of the head is the embedding's too, and the embedding's pattern stands first.
    groups = param_groups(Net(), policy=[(nn.Embedding, False), (nn.Linear, True), ("*", False)], weight_decay=0.1)
    assert names(groups, 0.1) == {
        "block.narrow.weight",
        "block.narrow.bias",
        "attn.out_proj.weight",
        "attn.out_proj.bias",
    }


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ((), {"s"}),
        ((None,), {"v", "u"}),
        ((3,), {"v"}),
        ((None, None), {"m", "n"}),
        ((None, 4), {"m"}),
        ((..., 4), {"m", "u", "t"}),
        ((None, None, ...), {"m", "n", "t"}),
        ((2, ..., 4), {"t"}),
        ((...,), {"s", "v", "u", "m", "n", "t"}),
    ],
)
def test_patterns_over_shapes(pattern: Any, expected: set[str]) -> None:
    model = nn.Module()
    for name, shape in {"s": (), "v": (3,), "u": (4,), "m": (3, 4), "n": (4, 3), "t": (2, 3, 4)}.items():
        model.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    policy = [(pattern, True)] if len(expected) == 6 else [(pattern, True), ("*", False)]
    assert names(param_groups(model, policy, 0.1), 0.1) == expected


def test_a_policy_decides_what_the_patterns_leave() -> None:
    """Embeddings by choice: one line over the policy."""
    net = Net()
    net.head = nn.Linear(4, 11, bias=False)  # not tied
    groups = param_groups(net, policy=[(nn.Embedding, True), ("*", "matrices")], weight_decay=0.1)
    assert names(groups, 0.1) == MATRICES | {"head.weight"}
    groups = param_groups(net, policy=[("block.*", 0.3), ("*", "matrices")], weight_decay=0.1)
    assert names(groups, 0.1) == MATRICES - {"wte.weight", "block.experts", "block.narrow.weight"} | {"head.weight"}
    reasons = {d.name: d.reason for d in decide(net, [("*.bias", False), ("*", "matrices")], 0.1)}
    assert reasons["head.weight"] == "pattern '*': matrices: weight of Linear"


def test_patterns_bring_rules() -> None:
    model = nn.Sequential(nn.Embedding(3, 2), nn.Linear(2, 2), nn.LayerNorm(2))
    slow, fixed = HalfLife(steps=1), Constant(0.25)
    policy: Policy = [(nn.Embedding, slow), ("1.weight", fixed), ((None, ...), "matrices")]
    groups = param_groups(model, policy=policy, weight_decay=0.1)
    assert [(group["param_names"], group["weight_decay"]) for group in groups] == [
        (["0.weight"], 0.1),
        (["1.weight"], 0.25),
        (["1.bias", "2.weight", "2.bias"], 0.0),
    ]
    assert groups.rule == PerGroup([slow, fixed, Decoupled()])
    assert not any("rule" in key for group in groups for key in group)  # a checkpoint could not be loaded safely
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    handle = attach(optimizer, groups.rule)
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    first = {name: parameter.flatten()[0].item() for name, parameter in model.named_parameters()}
    assert (first["0.weight"], first["1.weight"], first["1.bias"]) == (0.5, 0.75, 1.0)
    assert handle.fractions() == [0.5, 0.25, 0.0]


@pytest.mark.parametrize(
    "part",
    [
        HalfLife(steps=2),
        Scheduled(HalfLife(epochs=1), until(3)),
        NormTarget(),
        Sphere(2.0, per="tensor"),
        Toward(HalfLife(steps=3)),
    ],
    ids=repr,
)
def test_a_rule_that_reads_no_lam_needs_no_weight_decay(part: Part) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    groups = param_groups(model, [("*.bias", False), (nn.Linear, part), ("*", False)])
    assert [group["param_names"] for group in groups] == [["0.weight"], ["0.bias", "1.weight", "1.bias"]]
    assert [group["weight_decay"] for group in groups] == [0.0, 0.0]
    assert groups.rule == PerGroup([part, Decoupled()])
    given = param_groups(model, [("*.bias", False), (nn.Linear, part), ("*", False)], weight_decay=0.3)
    assert [group["weight_decay"] for group in given] == [0.3, 0.0]


@pytest.mark.parametrize("part", [Cautious(Decoupled(0.1)), L2(0.1), Scheduled(L2(0.1), until(3)), Toward(Stable(0.1))])
def test_any_part_for_a_group_may_be_an_answer(part: Part) -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
    groups = param_groups(model, [(nn.Linear, part), ("*", False)])
    assert [group["weight_decay"] for group in groups] == [0.1, 0.0]
    assert groups.rule == PerGroup([part, Decoupled()])


def test_a_half_life_from_groups_acts_once_it_is_attached() -> None:
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, bias=False))
    groups = param_groups(model, [(nn.Linear, HalfLife(steps=1)), ("*", False)])
    assert groups.rule is not None
    optimizer = torch.optim.AdamW(groups, lr=0.1)
    weight, gain = model.parameters()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    first = weight.detach().clone()
    optimizer.step()
    assert torch.equal(weight, first)  # without the rule nothing decays, at an invented value least of all
    handle = attach(optimizer, groups.rule)
    shown = [(row.decays, row.half_life) for row in explain(model, optimizer).parameters]
    assert shown == [(True, pytest.approx(1.0)), (False, None)]
    resumed = torch.optim.AdamW(param_groups(model, [(nn.Linear, HalfLife(steps=1)), ("*", False)]), lr=0.1)
    optimizer.step()
    assert torch.equal(weight, first / 2)
    assert torch.equal(gain, torch.ones(4))
    assert handle.fractions() == [0.5, 0.0]
    attach(resumed, groups.rule).optimizers[0].load_state_dict(optimizer.state_dict())
    resumed.step()
    assert torch.equal(weight, first / 4)
    handle.detach()
    optimizer.step()
    assert torch.equal(weight, first / 4)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (PerGroup([Decoupled(0.1)]), "PerGroup cannot wrap PerGroup.*: the groups are counted once"),
        (Sphere(1.0), r"PerGroup cannot wrap Sphere\(radius=1\.0\): its norm runs over all groups"),
        (Decoupled(), r"pattern '\*' says Decoupled\(\), which needs a value: pass weight_decay"),
        (Cautious(Stable()), r"says Cautious\(Stable\(\)\), which needs a value: pass weight_decay"),
    ],
)
def test_a_rule_that_a_group_cannot_have(answer: Part, message: str) -> None:
    with pytest.raises(UserError, match=message):
        param_groups(nn.Linear(2, 2), [("*", answer)])


def test_no_rule_where_no_pattern_brings_one() -> None:
    assert param_groups(nn.Linear(2, 2), weight_decay=0.1).rule is None


def test_numbers_need_no_common_value() -> None:
    groups = param_groups(nn.Linear(2, 2), policy=[("weight", 0.2), ("bias", 0)])
    assert [(group["param_names"], group["weight_decay"]) for group in groups] == [(["weight"], 0.2), (["bias"], 0.0)]


def test_decisions_have_reasons() -> None:
    reasons = {decision.name: decision.reason for decision in decide(Net(), weight_decay=0.1)}
    assert reasons["conv.weight"] == "weight of Conv1d"
    assert reasons["attn.in_proj_bias"] == "bias of MultiheadAttention"
    assert reasons["bn.weight"] == "parameter of a norm (BatchNorm1d)"
    assert reasons["wte.weight"] == "weight of Linear (tied: wte.weight, head.weight)"
    assert reasons["block.gamma"] == "vector or scalar in Block"
    assert reasons["block.experts"] == "matrix in Block"
    assert reasons["block.norm.gain"].startswith("parameter of RMSNormOfTheirs")
    assert reasons["pos_embed"] == "named like a parameter that does not multiply activations ('embed')"
    (decision,) = [d for d in decide(Net(), "nanogpt", 0.1) if d.name == "block.experts"]
    assert (decision.lam, decision.reason) == (0.1, "3 dimensions")
    (first, _) = decide(nn.Linear(2, 2), [("w*", True), ("*", False)], 0.1)
    assert first.reason == "pattern 'w*'"


@pytest.mark.parametrize(
    ("policy", "weight_decay", "message"),
    [
        ("matrix", 0.1, "unknown policy 'matrix'; expected one of matrices, everything, nanogpt, transformers"),
        ([("*", "matrix")], 0.1, "unknown policy 'matrix'"),
        ([("*", "matrices")], None, r"pattern '\*' says 'matrices', which needs a value"),
        ([("*", torch)], 0.1, r"pattern '\*' says <module 'torch'.*; expected True, False, a number, a rule"),
        ([(nn.Conv1d, True), ("*", False)], 0.1, "pattern Conv1d matches no parameter"),
        ([((nn.Conv1d, nn.GRU), True), ("*", False)], 0.1, r"pattern \(Conv1d, GRU\) matches no parameter"),
        ([((None, None, None), True), ("*", False)], 0.1, r"pattern \(None, None, None\) matches no parameter"),
        ([((2, ..., 2, 2), True), ("*", False)], 0.1, r"pattern \(2, \.\.\., 2, 2\) matches no parameter"),
        ([(("*", ...), True)], 0.1, "a pattern is a name such as"),
        ([((..., ...), True)], 0.1, "a pattern is a name such as"),
        ([(torch.Tensor, True)], 0.1, "a pattern is a name such as"),
        ([(3, True)], 0.1, "a pattern is a name such as"),
        (["*"], 0.1, r"a policy is a name or a list of pairs \(pattern, answer\), got '\*' in it"),
        (None, 0.1, r"a policy is a name or a list of pairs \(pattern, answer\), got None"),
        ("matrices", None, "policy 'matrices' needs a value: pass weight_decay="),
        ("matrices", -0.1, "weight_decay must be a finite number >= 0"),
        ("matrices", float("nan"), "weight_decay must be a finite number >= 0"),
        ([("wieght", True), ("*", False)], 0.1, "pattern 'wieght' matches no parameter; names look like 'weight'"),
        ([("*", True), ("bias", False)], 0.1, "pattern 'bias' claims nothing that an earlier pattern left"),
        ([("weight", True)], 0.1, r"no pattern matches bias; end the pairs with \(\"\*\", False\)"),
        ([("*", True)], None, r"pattern '\*' says True, which needs a value"),
        ([("*", -1.0)], None, r"the weight decay of pattern '\*' must be a finite number >= 0"),
    ],
)
def test_refusals(policy: Policy, weight_decay: float | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        param_groups(nn.Linear(2, 2), policy=policy, weight_decay=weight_decay)


def test_models_that_cannot_be_grouped() -> None:
    with pytest.raises(UserError, match="no trainable parameter"):
        param_groups(nn.Linear(2, 2).requires_grad_(False), weight_decay=0.1)
    with pytest.raises(UserError, match="weight has no shape yet; run one forward pass"):
        param_groups(nn.LazyLinear(3), weight_decay=0.1)


@pytest.mark.parametrize(
    ("model", "got"),
    [
        ("net", "an object of type str"),
        ([], "an object of type list"),
        (nn.Linear, "the class Linear; make an instance"),
    ],
)
def test_what_is_no_model_is_refused(model: Any, got: str) -> None:
    with pytest.raises(UserError, match=f"expected a model, a torch.nn.Module, got {got}"):
        param_groups(model, weight_decay=0.1)
