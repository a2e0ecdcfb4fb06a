"""What a model says itself about its parameters: param_groups follows it, and explain and assert_decay agree."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import nn

from halflife import assert_decay, explain, param_groups
from halflife.errors import UserError
from halflife.groups.build import decide
from halflife.groups.policies import declared

PROMISE = {"matrices": "decoupled:0.1", "*": "none"}


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.relative_position_bias_table = nn.Parameter(torch.rand(9, 2))
        self.cpb_mlp = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 2, bias=False))
        self.logit_scale = nn.Parameter(torch.rand(2, 1, 1))
        self.qkv = nn.Linear(4, 12)


class SwinLike(nn.Module):
    """The lists of Swin Transformer V2: whole names, and parts of names."""

    def __init__(self) -> None:
        super().__init__()
        self.absolute_pos_embed = nn.Parameter(torch.rand(1, 4, 4))
        self.layers = nn.ModuleList([Attention(), Attention()])
        self.head = nn.Linear(4, 3)

    def no_weight_decay(self) -> set[str]:
        return {"absolute_pos_embed", "head.weight"}

    def no_weight_decay_keywords(self) -> set[str]:
        return {"cpb_mlp", "logit_scale", "relative_position_bias_table"}


class SimMIMLike(nn.Module):
    """A wrapper that gives its encoder's names on, or a dict where it has none."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder
        self.decoder = nn.Conv2d(4, 12, 1)

    def no_weight_decay(self) -> set[str] | dict[str, None]:
        if isinstance(self.encoder, SwinLike):
            return {f"encoder.{name}" for name in self.encoder.no_weight_decay()}
        return {}


class S4Like(nn.Module):
    """Settings on parameters: the kernel's have a learning rate of their own and no weight decay."""

    def __init__(self) -> None:
        super().__init__()
        self.w_real = nn.Parameter(torch.rand(4, 8))
        self.w_imag = nn.Parameter(torch.rand(4, 8))
        self.mix = nn.Parameter(torch.rand(4, 4))
        self.gate = nn.Parameter(torch.rand(4))
        self.C = nn.Parameter(torch.rand(4, 8))
        self.out = nn.Linear(4, 4)
        self.w_real._optim = {"weight_decay": 0.0, "lr": 1e-3}  # type: ignore[attr-defined]
        self.w_imag._optim = {"weight_decay": 0.0, "lr": 1e-3}  # type: ignore[attr-defined]
        self.mix._optim = {"lr": 5e-4}  # type: ignore[attr-defined]
        self.gate._optim = {"weight_decay": 0.02}  # type: ignore[attr-defined]
        self.C._optim = {"weight_decay": None, "lr": None}  # type: ignore[attr-defined]


def plain(groups: list[dict[str, Any]]) -> list[tuple[list[str], float, float | None]]:
    return [(group["param_names"], group["weight_decay"], group.get("lr")) for group in groups]


def spared(model: nn.Module) -> set[str]:
    """The names of what the model declares."""
    found = declared(model)
    return {name for name, parameter in model.named_parameters() if id(parameter) in found}


def listing(model: nn.Module, gives: Callable[[], object], method: str = "no_weight_decay") -> nn.Module:
    """A model with such a method."""
    kind = type("Listing", (type(model),), {method: lambda self: gives()})
    model.__class__ = kind
    return model


def pair() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def marked(model: nn.Module, name: str, attribute: str, value: object) -> nn.Module:
    """A model with an attribute on one of its parameters."""
    setattr(model.get_parameter(name), attribute, value)
    return model


# ---- the conventions


def test_swin_lists_names_and_parts_of_names() -> None:
    model = SwinLike()
    decaying = {name for group in param_groups(model, weight_decay=0.1)[:1] for name in group["param_names"]}
    assert decaying == {"layers.0.qkv.weight", "layers.1.qkv.weight"}
    reasons = declared(model)
    assert reasons[id(model.absolute_pos_embed)] == "no_weight_decay() of SwinLike lists it"
    table = model.layers[0].relative_position_bias_table
    keyword = "no_weight_decay_keywords() of SwinLike lists 'relative_position_bias_table'"
    assert reasons[id(table)] == keyword
    why = {decision.name: decision.reason for decision in decide(model, "matrices", 0.1)}
    assert why["layers.0.relative_position_bias_table"] == f"the model says that it does not decay: {keyword}"


@pytest.mark.parametrize("encoder", [SwinLike(), pair()], ids=["with a list", "without"])
def test_a_wrapper_gives_names_on(encoder: nn.Module) -> None:
    inside = spared(encoder)
    assert spared(SimMIMLike(encoder)) == {f"encoder.{name}" for name in inside}
    assert spared(nn.ModuleDict({"model": SimMIMLike(encoder)})) == {f"model.encoder.{name}" for name in inside}


def test_keywords_look_at_names_below_the_module_that_lists_them() -> None:
    class Block(nn.Linear):
        def no_weight_decay_keywords(self) -> list[str]:
            return ["block"]

    assert not spared(nn.ModuleDict({"block": Block(2, 3)}))  # it is the place of the module, not a name in it


def test_s4_brings_settings_of_its_own() -> None:
    groups = param_groups(S4Like(), weight_decay=0.1)
    assert plain(groups) == [
        (["mix"], 0.1, 5e-4),
        (["gate"], 0.02, None),
        (["C", "out.weight"], 0.1, None),
        (["w_real", "w_imag"], 0.0, 1e-3),
        (["out.bias"], 0.0, None),
    ]


def test_settings_are_followed_by_the_policy_that_reads_them_alone() -> None:
    model = S4Like()
    assert {group["weight_decay"] for group in param_groups(model, "everything", 0.1)} == {0.1}
    pairs = param_groups(model, [("w_imag", 0.3), ("*", "matrices")], weight_decay=0.1)
    assert (["w_imag"], 0.3, None) in plain(pairs)  # a pattern is an answer of the user's
    assert (["w_real"], 0.0, 1e-3) in plain(pairs)


def test_other_settings_are_given_on_as_s4_does() -> None:
    model = marked(nn.Linear(2, 3), "weight", "_optim", {"betas": (0.5, 0.6), "params": 3})
    first = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=0.1).param_groups[0]
    assert (first["betas"], first["lr"], len(first["params"])) == ((0.5, 0.6), 0.1, 1)


def test_an_exclusion_is_stronger_than_a_number() -> None:
    model = listing(pair(), lambda: ["1.weight"])
    marked(model, "1.weight", "_optim", {"weight_decay": 0.3, "lr": 0.2})
    assert (["1.weight"], 0.0, 0.2) in plain(param_groups(model, weight_decay=0.1))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_decay": -0.1}, r"weight_decay in _optim of weight must be a finite number >= 0, got -0.1"),
        ({"weight_decay": "0.0"}, r"weight_decay in _optim of weight must be a number, got '0.0'"),
        ({"lr": float("nan")}, r"lr in _optim of weight must be a finite number >= 0, got nan"),
    ],
)
def test_settings_that_are_no_numbers(settings: dict[str, Any], message: str) -> None:
    model = marked(nn.Linear(2, 3), "weight", "_optim", settings)
    with pytest.raises(UserError, match=message):
        param_groups(model, weight_decay=0.1)
    explain(model, torch.optim.SGD(model.parameters(), lr=0.1))  # which reads no numbers of it


def names() -> Iterator[str]:
    yield "0.weight"


@pytest.mark.parametrize(
    "gives",
    [
        lambda: {"0.weight"},
        lambda: frozenset({"0.weight"}),
        lambda: ["0.weight"],
        lambda: ("0.weight", "no.such.name"),
        lambda: {"0.weight": "a reason"},
        {"0.weight": 1}.keys,
        names,
        lambda: map(str, ["0.weight"]),
        lambda: "0.weight",
    ],
    ids=["set", "frozenset", "list", "tuple", "dict", "keys", "generator", "map", "text"],
)
def test_lists_of_every_type(gives: Callable[[], object]) -> None:
    assert spared(listing(pair(), gives)) == {"0.weight"}


def test_a_list_of_parameters() -> None:
    model = pair()
    assert spared(listing(model, lambda: [model[1].weight])) == {"1.weight"}


@pytest.mark.parametrize("value", [{"0.weight"}, ["0.weight"]], ids=["set", "list"])
def test_an_attribute_in_place_of_a_method(value: object) -> None:
    model = pair()
    model.no_weight_decay = value  # type: ignore[assignment]
    assert spared(model) == {"0.weight"}


@pytest.mark.parametrize("value", [True, None, nn.Linear(1, 1)], ids=["flag", "none", "module"])
def test_what_else_has_the_name(value: object) -> None:
    model = pair()
    model.no_weight_decay = value  # type: ignore[assignment]
    assert not spared(model)


@pytest.mark.parametrize("gives", [lambda: None, set, lambda: {""}], ids=["none", "empty", "no name"])
@pytest.mark.parametrize("method", ["no_weight_decay", "no_weight_decay_keywords"])
def test_lists_without_names(gives: Callable[[], object], method: str) -> None:
    assert not spared(listing(pair(), gives, method))


def broken() -> Iterator[str]:
    yield "0.weight"
    raise RuntimeError("no encoder yet")


def missing() -> set[str]:
    return pair().head  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("gives", "message"),
    [
        (
            broken,
            r"^no_weight_decay\(\) of Listing raised RuntimeError: no encoder yet; what it excludes .* correct it$",
        ),
        (
            missing,
            r"^no_weight_decay\(\) of Listing raised AttributeError: 'Sequential' object has no attribute 'head'",
        ),
        (lambda: [0.1], r"^no_weight_decay\(\) of Listing gave an object of type float where the name of a parameter"),
        (lambda: True, r"^no_weight_decay\(\) of Listing gave an object of type bool where the name of a parameter"),
    ],
    ids=["raises late", "raises", "numbers", "flag"],
)
def test_methods_that_give_no_names_are_said(gives: Callable[[], object], message: str) -> None:
    model = listing(pair(), gives)
    with pytest.warns(UserWarning, match=message):
        groups = param_groups(model, weight_decay=0.1)
    assert groups[0]["param_names"] == ["0.weight", "1.weight"]


def test_a_method_that_wants_arguments_is_something_else() -> None:
    model = pair()
    model.no_weight_decay = lambda epoch: {"0.weight"}  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not spared(model)


@pytest.mark.parametrize(("mark", "found"), [(True, True), (1, True), (False, False), (torch.ones(2), False)])
def test_marks(mark: object, found: bool) -> None:
    assert spared(marked(nn.Linear(2, 3), "weight", "_no_weight_decay", mark)) == ({"weight"} if found else set())


def test_names_that_torch_changed() -> None:
    model = listing(pair(), lambda: ["0.weight", "1.weight"])
    nn.utils.parametrizations.weight_norm(model.get_submodule("0"))
    model.add_module("1", nn.ModuleDict({"_orig_mod": model.get_submodule("1")}))  # as torch.compile wraps it
    marked = {"0.parametrizations.weight.original0", "0.parametrizations.weight.original1", "1._orig_mod.weight"}
    assert spared(model) == marked


def test_a_tied_weight_is_spared_under_each_of_its_names() -> None:
    model = nn.ModuleDict({"wte": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False), "fc": nn.Linear(3, 3)})
    model["head"].weight = model["wte"].weight
    assert spared(listing(model, lambda: ["head.weight"])) == {"wte.weight"}


def test_shared_modules_are_asked_once() -> None:
    asked = []

    class Layer(nn.Linear):
        def no_weight_decay(self) -> list[str]:
            asked.append(1)
            return ["weight"]

    layer = Layer(2, 2)
    assert spared(nn.Sequential(layer, layer)) == {"0.weight"}
    assert len(asked) == 1


def test_it_is_a_model() -> None:
    with pytest.raises(UserError, match=r"expected a model, a torch\.nn\.Module, got an object of type list"):
        declared([])  # type: ignore[arg-type]


# ---- explain and assert_decay agree with the groups


class S4Plain(S4Like):
    """Without the weight decay of its own, so that what decays has one value."""

    def __init__(self) -> None:
        super().__init__()
        del self.gate._optim  # type: ignore[attr-defined]


MODELS: dict[str, Callable[[], nn.Module]] = {
    "swin": SwinLike,
    "wrapped swin": lambda: SimMIMLike(SwinLike()),
    "s4": S4Plain,
    "timm": lambda: listing(pair(), lambda: {"0.weight"}),
    "inside": lambda: nn.Sequential(nn.Linear(3, 3), listing(pair(), lambda: {"1.weight"})),
    "mark": lambda: marked(pair(), "0.weight", "_no_weight_decay", True),
}


@pytest.mark.parametrize("name", MODELS)
def test_the_readme_promise_holds_for_groups_that_were_made(name: str) -> None:
    model = MODELS[name]()
    optimizer = torch.optim.AdamW(param_groups(model, weight_decay=0.1), lr=1e-3)
    assert_decay(model, optimizer, PROMISE)
    found = explain(model, optimizer)
    assert "matrix-without-decay" not in {finding.code for finding in found.warnings}
    rows = {row["parameter"]: row for row in found.rows}
    assert not {rows[each]["kind"] for each in spared(model)} & {"matrices"}
    # The oracle: what a step with zero gradients does.
    before = {each: parameter.detach().clone() for each, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    still = {each for each, parameter in model.named_parameters() if torch.equal(parameter, before[each])}
    assert spared(model) <= still
    assert {each for each, row in rows.items() if row["kind"] == "matrices"} == set(before) - still


def test_a_matrix_that_no_one_declares_is_still_missed() -> None:
    model = listing(nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2), nn.Linear(2, 2)), lambda: {"0.weight"})
    pairs = [("1.weight", False), ("*", "matrices")]
    optimizer = torch.optim.AdamW(param_groups(model, pairs, 0.1), lr=1e-3)  # type: ignore[arg-type]
    found = {finding.code: finding.parameters for finding in explain(model, optimizer).warnings}
    assert found["matrix-without-decay"] == ("1.weight",)
    with pytest.raises(AssertionError, match=r"1\.weight"):
        assert_decay(model, optimizer, PROMISE)


def test_what_is_seen_of_a_declared_matrix() -> None:
    model = S4Plain()
    rows = {row["parameter"]: row for row in explain(model, torch.optim.SGD(model.parameters(), lr=0.1)).rows}
    assert rows["w_real"]["kind"] == "others"
    assert rows["w_real"]["what"] == "matrix in S4Plain, but _optim on it says weight_decay 0"
    assert rows["mix"]["kind"] == "matrices"
