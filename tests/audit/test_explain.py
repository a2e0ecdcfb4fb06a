"""explain and assert_decay: what the table says is what a step does, and every warning has a case."""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import distributed as dist
from torch import nn
from torch.optim import SGD, Adam, AdamW, Optimizer

import halflife
from halflife.audit.explanation import Explanation
from halflife.audit.view import collapsed
from halflife.errors import UserError
from halflife.precision import smallest_effective_fraction
from tests import FLOOR_BINDS, needs_muon


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4)
        self.mix = nn.Linear(4, 4)


class Net(nn.Module):
    """Everything that a table must tell apart: a tie, repeated layers, a convolution, a frozen part."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 4)
        self.position = nn.Embedding(6, 4)
        self.h = nn.ModuleList([Block() for _ in range(3)])
        self.conv = nn.Conv2d(2, 2, 3)
        self.scale = nn.Parameter(torch.ones(4))
        self.head = nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)


def groups(model: nn.Module, lam: float = 0.1) -> list[dict[str, Any]]:
    return halflife.param_groups(model, weight_decay=lam)


def adamw(model: nn.Module, lr: float = 1e-2, lam: float = 0.1) -> AdamW:
    return AdamW(groups(model, lam), lr=lr)


def removed(model: nn.Module, optimizer: Optimizer) -> dict[str, float]:
    """The oracle: the fraction that one real step with a zero gradient takes from each parameter."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    fractions = {}
    for name, parameter in model.named_parameters():
        old = before[name].double()
        fractions[name] = 1 - (parameter.detach().double().norm() / old.norm()).item() if old.norm() else math.nan
    return fractions


def attached(rule: Any, **numbers: Any) -> Callable[[nn.Module], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        optimizer = SGD(groups(model), lr=1e-2, momentum=0.9)
        halflife.attach(optimizer, rule, **numbers)
        return optimizer

    return make


MAKERS: dict[str, Callable[[nn.Module], Optimizer]] = {
    "AdamW": adamw,
    "AdamW, all": lambda model: AdamW(model.parameters(), lr=1e-2, weight_decay=0.3),
    "plain SGD": lambda model: SGD(groups(model), lr=1e-2),
    "Adafactor": lambda model: torch.optim.Adafactor(groups(model), lr=1e-2),
    "half-life": attached(halflife.HalfLife(steps=50)),
    "half-life in tokens": attached(halflife.HalfLife(tokens=1e4), tokens_per_step=100.0),
    "constant": attached(halflife.Constant(0.02)),
    "per group": attached(halflife.PerGroup([halflife.Decoupled(2.0), halflife.Constant(0.1)])),
    "none": lambda model: AdamW(model.parameters(), lr=1e-2, weight_decay=0.0),
}


ALIKE = {"AdamW, all", "half-life in tokens", "constant"}  # each has a near relative among the others


@pytest.mark.parametrize(
    "make",
    [pytest.param(make, id=name, marks=[pytest.mark.slow] if name in ALIKE else []) for name, make in MAKERS.items()],
)
def test_the_table_says_what_a_step_does(make: Callable[[nn.Module], Optimizer]) -> None:
    torch.manual_seed(0)
    model = Net().double()
    optimizer = make(model)
    table = halflife.explain(model, optimizer)
    truth = removed(model, optimizer)
    assert [row["parameter"] for row in table.rows] == list(truth)
    for row in table.rows:
        expected = truth[row["parameter"]]
        if math.isnan(expected):
            continue  # a bias that is 0 cannot shrink
        assert (row["r"] or 0.0) == pytest.approx(expected, rel=1e-6, abs=1e-12), row
        assert row["decays"] is (expected > 1e-12), row
        if row["decays"]:
            assert row["half_life"] == pytest.approx(math.log(2) / -math.log1p(-expected), rel=1e-6)


def test_rows_are_complete_and_plain() -> None:
    model = Net()
    table = halflife.explain(model, adamw(model), steps_per_epoch=100, tokens_per_step=2000)
    json.dumps(table.rows, allow_nan=False)
    json.dumps(table.groups, allow_nan=False)
    rows = {row["parameter"]: row for row in table.rows}
    assert rows["h.1.mix.weight"] == {
        "parameter": "h.1.mix.weight",
        "tied": [],
        "shape": [4, 4],
        "dtype": "float32",
        "kind": "matrices",
        "what": "weight of Linear",
        "optimizer": 0,
        "group": 0,
        "also_in": [],
        "decays": True,
        "why": "weight_decay is 0.1",
        "notes": [],
        "seen": "shrinks",
        "seen_on": None,
        "law": "decoupled",
        "lam": 0.1,
        "lr": 0.01,
        "r": 0.001,
        "half_life": pytest.approx(692.8, abs=0.05),
        "every": 1,
        "r_lr": 0.01,
        "peak_lr": 0.01,
        "r_peak": 0.001,
        "half_life_peak": pytest.approx(692.8, abs=0.05),
        "half_life_epochs": pytest.approx(6.928, abs=5e-4),
        "half_life_tokens": pytest.approx(1385600, rel=1e-4),
    }
    assert rows["embed.weight"]["tied"] == ["head.weight"]
    assert (rows["h.0.norm.bias"]["decays"], rows["h.0.norm.bias"]["why"]) == (False, "weight_decay is 0")
    assert (rows["h.0.norm.bias"]["r"], rows["h.0.norm.bias"]["half_life"]) == (None, None)
    assert (rows["frozen.weight"]["decays"], rows["frozen.weight"]["why"]) == (False, "frozen, in no optimizer")
    kinds = {name: row["kind"] for name, row in rows.items()}
    assert (kinds["position.weight"], kinds["h.0.norm.bias"], kinds["conv.bias"], kinds["scale"]) == (
        "embeddings",
        "norms",
        "biases",
        "others",
    )
    assert [group["num_parameters"] for group in table.groups] == [5, 12]
    assert table.groups[0]["num_elements"] == 3 * 16 + 2 * 2 * 9 + 5 * 4
    assert not table.warnings


@needs_muon
def test_several_optimizers() -> None:
    model = Net()
    matrices, rest = groups(model)
    two = [parameter for parameter in matrices["params"] if parameter.ndim == 2]
    four = [parameter for parameter in matrices["params"] if parameter.ndim == 4]
    muon = torch.optim.Muon(two, lr=0.02, weight_decay=0.2)
    others = AdamW([{"params": four, "weight_decay": 0.1}, {"params": rest["params"], "weight_decay": 0.0}], lr=1e-3)
    table = halflife.explain(model, [muon, others])
    rows = {row["parameter"]: row for row in table.rows}
    assert (rows["h.0.mix.weight"]["optimizer"], rows["h.0.mix.weight"]["r"]) == (0, 0.004)
    assert (rows["conv.weight"]["optimizer"], rows["conv.weight"]["r"]) == (1, 1e-4)
    assert rows["scale"]["decays"] is False
    halflife.assert_decay(model, [muon, others], {"conv.weight": "decoupled:0.1", "matrices": "decoupled:0.2"})


def test_nothing_is_touched() -> None:
    torch.manual_seed(3)
    model = Net()
    optimizer = adamw(model)
    removed(model, optimizer)  # it has state and gradients now
    before = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    gradients = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    random = torch.get_rng_state()
    halflife.explain(model, optimizer)
    torch.testing.assert_close(model.state_dict(), before[0], rtol=0, atol=0)
    after = optimizer.state_dict()
    torch.testing.assert_close(after["state"], before[1]["state"], rtol=0, atol=0)
    assert after["param_groups"] == before[1]["param_groups"]
    assert torch.equal(torch.get_rng_state(), random)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        assert (parameter.grad is None) if gradient is None else torch.equal(parameter.grad, gradient)  # type: ignore[arg-type]


def test_a_model_without_data() -> None:
    with torch.device("meta"):
        model = Net()
        optimizer = adamw(model)
    assert {row["r"] for row in halflife.explain(model, optimizer).rows} == {None, 0.001}


@pytest.fixture
def one_process() -> Iterator[None]:
    dist.init_process_group("gloo", store=torch._C._distributed_c10d.HashStore(), rank=0, world_size=1)
    try:
        yield
    finally:
        dist.destroy_process_group()


@pytest.mark.usefixtures("one_process")
def test_sharded_parameters() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    model = Net()
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    table = halflife.explain(model, adamw(model))
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    rows = {row["parameter"]: row for row in table.rows}
    assert (rows["h.2.mix.weight"]["shape"], rows["h.2.mix.weight"]["r"]) == ([4, 4], 0.001)
    assert not table.warnings


class OnlySharded(torch.optim.Optimizer):
    """Decays the local parts of distributed parameters, and no others."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 1e-2, "weight_decay": 0.1})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if hasattr(parameter, "to_local"):
                    parameter.to_local().mul_(1 - group["lr"] * group["weight_decay"])


@pytest.mark.usefixtures("one_process")
def test_sharded_parameters_in_place() -> None:
    """A copy is no distributed tensor: what a step does to those alone shows on the real ones."""
    from torch.distributed.fsdp import fully_shard

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    fully_shard(model, mesh=dist.device_mesh.init_device_mesh("cpu", (1,)))
    for optimizer in (AdamW(model.parameters(), lr=1e-2, weight_decay=0.1), OnlySharded(model.parameters())):
        before = [parameter.full_tensor().clone() for parameter in model.parameters()]  # type: ignore[attr-defined]
        rows = halflife.explain(model, optimizer, in_place=True).rows
        assert [row["r"] for row in rows] == pytest.approx([0.001] * 4, rel=1e-3)
        for parameter, own in zip(model.parameters(), before, strict=True):
            assert torch.equal(parameter.full_tensor(), own)  # type: ignore[attr-defined]
    table = halflife.explain(model, OnlySharded(model.parameters()))
    assert {row["decays"] for row in table.rows} == {None}
    assert "treats distributed tensors in a way of its own (`to_local`)" in str(table)


def test_quantized_parameters_keep_their_row() -> None:
    """A frozen quantized weight, as under QLoRA: integers, which cannot decay."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].weight = nn.Parameter(torch.zeros(4, 4, dtype=torch.int8), requires_grad=False)
    table = halflife.explain(model, AdamW(model.parameters(), lr=1e-2, weight_decay=0.1))
    assert (table.rows[0]["dtype"], table.rows[0]["decays"], table.rows[0]["why"]) == ("int8", False, "frozen")


def test_only_an_optimizer() -> None:
    optimizer = adamw(Net())
    rows = halflife.explain(None, optimizer).rows
    assert rows[0]["parameter"] == "embed.weight"  # param_groups left the names in the groups
    assert rows[0]["kind"] is None
    bare = AdamW(Net().parameters(), lr=1e-2)
    assert halflife.explain(None, bare).rows[1]["parameter"] == "group 0, parameter 1"
    assert halflife.explain(None, [optimizer, bare]).rows[-1]["parameter"] == "optimizer 1, group 0, parameter 18"


# ---- the low precisions


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow), torch.float32])
@pytest.mark.parametrize(("factor", "lost"), [(0.98, True), (1.02, False)])
def test_the_smallest_fraction_that_does_anything(dtype: torch.dtype, factor: float, lost: bool) -> None:
    """At 0.98 of the threshold a real step of AdamW changes no weight at all; at 1.02 it changes some."""
    torch.manual_seed(0)
    model = nn.Linear(100, 100, bias=False).to(dtype)
    r = factor * smallest_effective_fraction(dtype)
    optimizer = AdamW(model.parameters(), lr=1.0, weight_decay=r, eps=1e-3, foreach=False)
    warned = [warning.code for warning in halflife.explain(model, optimizer).warnings]
    before = model.weight.detach().clone()
    removed(model, optimizer)
    assert torch.equal(model.weight, before) is lost
    assert ("lost-in-precision" in warned) is lost


def test_a_setting_that_promises_precision_is_not_believed() -> None:
    """What arrives is measured: sums that are compensated for the update lose a decay that is rounded by itself."""
    optimi = pytest.importorskip("optimi")
    model = nn.Linear(4, 4, bias=False).bfloat16()

    def lost(optimizer: Optimizer) -> bool:
        found = "lost-in-precision" in {warning.code for warning in halflife.explain(model, optimizer).warnings}
        before = model.weight.detach().clone()
        for _ in range(20):
            model.weight.grad = torch.zeros_like(model.weight)
            optimizer.step()
        assert torch.equal(model.weight, before) is found
        return found

    assert lost(optimi.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, kahan_sum=False))
    assert lost(optimi.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1, kahan_sum=True))
    plain = AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    plain.bf16_stochastic_round = True  # type: ignore[attr-defined]  # as torchao has it
    assert lost(plain)


# ---- warnings


class Twice(AdamW):
    """Decays twice, as an optimizer that loops over partitions once too often."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
        return super().step(closure)


class Ignores(Optimizer):
    """Takes a weight_decay and does nothing with it."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.add_(parameter.grad, alpha=-group["lr"])


class Captured(Optimizer):
    """Reads its weight_decay when it is made: nobody can turn it off afterwards."""

    def __init__(self, params: Any, lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})
        self.captured = weight_decay

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.mul_(1 - group["lr"] * self.captured).add_(parameter.grad, alpha=-group["lr"])


@dataclass(frozen=True)
class Warned:
    code: str
    make: Callable[[Net], Any]
    text: str
    parameters: int | None = None
    total_steps: float | None = None


def hooked(model: nn.Module) -> Optimizer:
    optimizer = adamw(model)
    optimizer.register_step_post_hook(lambda *_: None)
    return optimizer


def lost_rule(model: nn.Module) -> Optimizer:
    optimizer = adamw(model)
    halflife.attach(optimizer, halflife.Constant(0.01))
    return copy.deepcopy(optimizer)


def both(rule: Any) -> Callable[[nn.Module], Optimizer]:
    def make(model: nn.Module) -> Optimizer:
        optimizer = Captured(groups(model), lr=1e-2, weight_decay=0.5)
        halflife.attach(optimizer, rule)
        return optimizer

    return make


def foreign(model: nn.Module) -> Optimizer:
    """As after a model was cast or rebuilt: the optimizer trains copies."""
    other = copy.deepcopy(model)
    return adamw(other)


WARNED = [
    Warned("decay-on-norms", lambda m: AdamW(m.parameters(), lr=1e-2, weight_decay=0.1), r"decay acts on norms \(6 par", 6),
    Warned("decay-on-biases", lambda m: AdamW(m.parameters(), lr=1e-2, weight_decay=0.1), r"h.0.mix.bias", 4),
    Warned("decay-on-embeddings", lambda m: AdamW(m.parameters(), lr=1e-2, weight_decay=0.1), r"position.weight", 1),
    Warned("decay-on-others", lambda m: AdamW(m.parameters(), lr=1e-2, weight_decay=0.1), r"scales, gates .*: scale;", 1),
    Warned(
        "matrix-without-decay",
        lambda m: AdamW(halflife.param_groups(m, [("conv.weight", True), ("*", False)], 0.1), lr=1e-2),
        "4 matrices do not decay, while other parameters do: embed.weight, h.0.mix.weight, h.1.mix.weight and 1 more",
        4,
    ),
    Warned("nothing-decays", lambda m: AdamW(m.parameters(), lr=1e-2, weight_decay=0.0), "nothing decays: set weight_decay"),
    Warned(
        "coefficient",
        lambda m: Twice(groups(m, 1e-3), lr=1e-2),
        r"in group 0 of optimizer 0 \(Twice\) a step removes 2 times what weight_decay = 0.001 says .* divide .* by 2,",
    ),
    Warned(
        "ignored",
        lambda m: Ignores(m.parameters(), 1e-2, 0.1),
        r"= 0.1 of group 0 .* \(Ignores\) had no effect in 64 calls",
    ),
    Warned(
        "two-mechanisms",
        both(halflife.Constant(0.01)),
        r"Constant\(lam=0.01\) asks for r = 0.01 in group 0 .*, but probing found .*: the optimizer decays by itself",
    ),
    Warned("rule-lost", lost_rule, r"says that Constant\(lam=0.01\) was attached, but no rule is"),
    Warned("hooks-not-probed", hooked, r"hooks that are not of halflife \(hooked.<locals>.<lambda>\).*in_place=True"),
    Warned("in-no-optimizer", lambda m: adamw(m.h), "5 trainable parameters of the model are in no optimizer and", 5),
    Warned("in-no-optimizer", lambda m: adamw(m.conv), "", 15),
    Warned("not-in-model", foreign, "17 parameters of the optimizers are not in the model: embed.weight", 17),
    Warned("in-two-groups", lambda m: [adamw(m), adamw(m.conv)], "2 parameters stand in two .* 1 of them decays in each", 2),
    Warned("not-probed", hooked, r"decays in groups 0, 1 of optimizer 0 \(AdamW\) is not known: it was not probed \(", 17),
    Warned(
        "half-life-beyond-run",
        adamw,
        r"the half-life of 693 steps is longer than the run of 600: .* would keep 55% of its size or more",
        5,
        total_steps=600,
    ),
]  # fmt: skip


@pytest.mark.parametrize("case", WARNED, ids=lambda case: case.code)
def test_every_warning(case: Warned) -> None:
    model = Net()
    table = halflife.explain(model, case.make(model), total_steps=case.total_steps)
    found = [warning for warning in table.warnings if warning.code == case.code]
    assert len(found) == 1, [str(warning) for warning in table.warnings]
    assert re.search(case.text, found[0].text), found[0].text
    assert str(found[0]) in str(table).replace("\n  ", " ")
    if case.parameters is not None:
        assert len(found[0].parameters) == case.parameters


def test_many_groups_share_a_warning() -> None:
    """Layer-wise learning rates make many groups; what is true of all of them is said once."""
    layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(6)])
    settings = [{"params": layer.parameters(), "lr": 1e-2 * 0.9**depth} for depth, layer in enumerate(layers)]
    table = halflife.explain(layers, AdamW(settings, weight_decay=0.1), total_steps=600)
    assert [warning.code for warning in table.warnings] == ["decay-on-biases", "half-life-beyond-run"]
    assert "the half-life of 693 to 1,174 steps is longer than the run of 600" in table.warnings[1].text
    twice = halflife.explain(layers, Twice(settings, weight_decay=1e-3)).warnings
    assert [warning.code for warning in twice] == ["coefficient", "decay-on-biases"]
    assert twice[0].text.startswith("in groups 0, 1, 2 and 3 more of optimizer 0 (Twice) a step removes 2 times")


def test_no_warning_without_reason() -> None:
    model = Net()
    assert halflife.explain(model, adamw(model), total_steps=700).warnings == []
    optimizer = Captured(groups(model), lr=1e-2, weight_decay=0.0)  # it captured 0: the rule is alone
    halflife.attach(optimizer, halflife.Constant(0.01))
    assert halflife.explain(model, optimizer).warnings == []


def test_a_warm_up_is_judged_by_its_peak() -> None:
    """Where the learning rate starts at 0, so does the decay: that is no reason for a warning."""
    model = Net().bfloat16()
    optimizer = adamw(model, lr=1e-2, lam=1.0)
    torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + step) / 1000)
    table = halflife.explain(model, optimizer, total_steps=100)
    row = next(row for row in table.rows if row["parameter"] == "conv.weight")
    assert (row["lr"], row["r"]) == (pytest.approx(1e-5), pytest.approx(1e-5))
    assert table.warnings == []
    stopped = AdamW(groups(model), lr=0.0)
    assert halflife.explain(model, stopped).rows[0]["lr"] == 0.0


# ---- how it looks


def test_repeated_layers_stand_on_one_line() -> None:
    model = Net()
    text = str(halflife.explain(model, adamw(model)))
    assert "h.*.mix.weight" in text
    assert "h.0" not in text
    assert "h.*.norm.weight  3  4" in " ".join(text.split("    "))
    model.get_parameter("h.1.mix.weight").requires_grad_(False)
    lines = str(halflife.explain(model, adamw(model))).splitlines()
    assert any("h.{0,2}.mix.weight" in line for line in lines)
    assert any("h.1.mix.weight" in line for line in lines)


def test_ranges_of_layers() -> None:
    rows = [
        {"parameter": f"layers.{layer}.experts.{expert}.w", "shape": [2], "dtype": "float32"}
        | {"decays": layer not in {3, 7}, "why": "", "what": ""}
        for layer in range(8)
        for expert in range(4)
    ]
    assert [(name, count) for name, count, _ in collapsed(rows)] == [
        ("layers.{0-2,4-6}.experts.{0-3}.w", 24),
        ("layers.{3,7}.experts.{0-3}.w", 8),
    ]


def rendered(table: object, width: int) -> str:
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


@functools.cache
def of_a_transformer(frozen: bool) -> Explanation:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=12))
    model.transformer.h[3].requires_grad_(not frozen)  # then there are two more columns
    return halflife.explain(model, AdamW(model.parameters(), lr=1e-4, weight_decay=0.1))


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("frozen", [False, True])
def test_it_fits_the_terminal(width: int, frozen: bool) -> None:
    """Nothing is cut off: every word of the table is there, whatever the width, names in one piece from 80 on."""
    text = rendered(of_a_transformer(frozen), width)
    assert max(map(len, text.splitlines())) <= width
    words = text.split()
    assert words.count("Conv1D") == (16 if frozen else 8)
    assert words.count("(LayerNorm)") == (10 if frozen else 6)
    assert words.count("frozen") == (1 if frozen else 0)
    assert {"(native)", "69,314", "50257"} <= set(words)
    assert ("transformer.h.*.attn.c_attn.weight" in words) is (width >= 80 and not frozen)
    assert ("transformer.h.{0-2,4-11}.mlp.c_proj.weight" in words) is (width >= 120 and frozen)


def test_without_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "rich"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "rich", None)
    model = Net()
    table = halflife.explain(model, adamw(model))
    assert "AdamW, group 0: 5 parameters, 104 numbers, float32" in str(table)
    assert repr(table) == str(table)


# ---- assert_decay


def test_what_is_expected_holds() -> None:
    model = Net()
    optimizer = adamw(model)
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.1"})
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled:0.10009", "*": "none"})  # within 1e-3
    halflife.assert_decay(model, optimizer, {"matrices": "decoupled", "norms": "none", "biases": "none"})
    halflife.assert_decay(model, optimizer, {"h.*.norm.*": "none", "head.weight": "decoupled:0.1"})  # any of its names
    halflife.assert_decay(model, [optimizer], {"embeddings": "none", "others": "none"})


def sgd(momentum: float) -> Callable[[nn.Module], Optimizer]:
    return lambda model: SGD(groups(model), lr=1e-2, momentum=momentum)


@pytest.mark.parametrize(
    ("make", "value", "holds"),
    [
        (sgd(0.9), "l2:0.1", True),
        (sgd(0.9), "decoupled:0.1", False),
        (sgd(0.0), "l2:0.1", True),  # without momentum the two are the same
        (sgd(0.0), "decoupled:0.1", True),
        (lambda m: Adam(groups(m), lr=1e-2), "l2:0.1", True),
        (lambda m: Adam(groups(m), lr=1e-2), "l2-preconditioned:0.1", True),
        (lambda m: Adam(groups(m), lr=1e-2), "decoupled:0.1", False),
        (lambda m: Adam(groups(m), lr=1e-2), "none", False),
        (adamw, "decoupled:0.1", True),
        (adamw, "decoupled:0.1002", False),
        (adamw, "constant:0.1", False),
        (adamw, "none", False),
        (lambda m: Twice(groups(m), lr=1e-2), "decoupled:0.1", False),
        (lambda m: Twice(groups(m), lr=1e-2), "decoupled", False),
        (lambda m: Ignores(m.parameters(), 1e-2, 0.1), "none", True),
        (hooked, "none", False),  # not probed is never none
        (hooked, "decoupled", False),
        (attached(halflife.HalfLife(steps=50)), "half-life:50", True),
        (attached(halflife.HalfLife(steps=50)), "half-life:51", False),
        (attached(halflife.Constant(0.02)), "constant:0.02", True),
        (attached(halflife.Decoupled()), "decoupled:0.1", True),
        (attached(halflife.Decoupled(0.3)), "decoupled:0.3", True),
        (attached(halflife.Decoupled(0.3)), "decoupled:0.1", False),
        (lambda m: adamw(m.conv), "decoupled:0.1", False),  # the others are in no optimizer
    ],
)
def test_laws_and_values(make: Callable[[nn.Module], Optimizer], value: str, holds: bool) -> None:
    model = Net()
    optimizer = make(model)
    if holds:
        halflife.assert_decay(model, optimizer, {"matrices": value})
    else:
        with pytest.raises(AssertionError, match=f"matrices: expected {value}"):
            halflife.assert_decay(model, optimizer, {"matrices": value})


def test_the_message_names_parameters_and_what_was_found() -> None:
    model = Net()
    with pytest.raises(AssertionError) as caught:
        halflife.assert_decay(model, adamw(model), {"matrices": "independent:0.1", "biases": "decoupled:0.1"})
    assert str(caught.value) == (
        "matrices: expected independent:0.1, but 5 of 5 differ. embed.weight: found decoupled:0.1; h.0.mix.weight: "
        "found decoupled:0.1; h.1.mix.weight: found decoupled:0.1; and 2 more\n"
        "biases: expected decoupled:0.1, but 4 of 4 differ. h.0.mix.bias: found none (weight_decay is 0); "
        "h.1.mix.bias: found none (weight_decay is 0); h.2.mix.bias: found none (weight_decay is 0); and 1 more"
    )
    with pytest.raises(AssertionError, match=r"embed\.weight: found decoupled: r = 2 "):
        halflife.assert_decay(model, Twice(groups(model), lr=1e-2), {"matrices": "decoupled:0.1"})
    with pytest.raises(AssertionError, match=r"embeddings: expected decoupled:0\.1, found no such parameter"):
        halflife.assert_decay(nn.Linear(2, 2), adamw(nn.Linear(2, 2)), {"embeddings": "decoupled:0.1"})


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({}, "nothing is expected"),
        ({"matrices": "adamw:0.1"}, "expected decay as LAW:LAM, such as 'decoupled:0.1', or 'none', got 'adamw:0.1'"),
        ({"matrices": "not probed"}, "got 'not probed'"),
        ({"matrices": 0.1}, "got 0.1"),
        ({"matrices": "decoupled:lots"}, "the number in 'decoupled:lots' must be finite and > 0"),
        ({"matrices": "decoupled:0"}, "must be finite and > 0"),
        ({"matrices": "decoupled:\u0663"}, "must be finite and > 0"),
        ({"matrices": "decoupled:1_0"}, "must be finite and > 0"),
        ({"matrices": "decoupled: 0.1"}, "must be finite and > 0"),
        ({"matrices": "decoupled:1e999"}, "must be finite and > 0"),
        ({"matrices": "decoupled:" + "9" * 5000}, r"'decoupled:9999\d+ \.\.\. 9+' must be finite and > 0"),
        ({"matrices": "decoupled:-1"}, "must be finite and > 0"),
        ({"matrices": "none:0.1"}, "'none' takes no number"),
        ({"matrx": "none"}, "'matrx' matches no trainable parameter; expected one of matrices, embeddings"),
        ({"*": "none", "norms": "none"}, "'norms' matches only parameters that earlier keys match: put it first"),
    ],
)
def test_expectations_that_cannot_be_read(expected: Any, message: str) -> None:
    model = Net()
    with pytest.raises(UserError, match=message):
        halflife.assert_decay(model, adamw(model), expected)


def test_a_lazy_model_is_refused_before_its_first_batch() -> None:
    first = nn.Linear(2, 2)
    model, optimizer = nn.Sequential(first, nn.LazyLinear(3)), adamw(first)
    with pytest.raises(UserError, match=r"1\.weight has no shape yet; run one forward pass first"):
        halflife.explain(model, optimizer)
    with pytest.raises(UserError, match=r"1\.weight has no shape yet"):
        halflife.assert_decay(model, optimizer, {"*": "none"})
    with pytest.raises(UserError, match="a parameter has no shape yet"):
        halflife.explain(None, AdamW(model.parameters(), lr=1e-2))
    model(torch.ones(1, 2))
    assert len(halflife.explain(model, adamw(model)).rows) == 4


def test_refusals() -> None:
    model = Net()
    with pytest.raises(UserError, match=r"expected a torch.optim.Optimizer, or a list of them, got Net"):
        halflife.explain(model, model)  # type: ignore[arg-type]
    optimizer = adamw(model)
    with pytest.raises(UserError, match="got the same optimizer twice"):
        halflife.explain(model, [optimizer, optimizer])
    with pytest.raises(UserError, match="total_steps must be > 0"):
        halflife.explain(model, optimizer, total_steps=0)


@pytest.mark.parametrize("expected", ["decoupled:0.1", ["matrices"], {1: "none"}, None])
def test_what_is_no_expectation_is_refused(expected: Any) -> None:
    model = nn.Linear(2, 2)
    with pytest.raises(UserError, match=r'expected a dict such as \{"matrices": "decoupled:0.1", "\*": "none"\}, got'):
        halflife.assert_decay(model, torch.optim.SGD(model.parameters(), lr=0.1), expected)


@pytest.mark.parametrize(("scale", "binds"), [(1.0, False), (1e-4, True)])
def test_under_stable_r_is_what_the_last_step_removed(scale: float, binds: bool) -> None:
    model = nn.Linear(4, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=6e-4, weight_decay=0.1)
    halflife.attach(optimizer, halflife.Stable(0.1))
    assert halflife.explain(model, optimizer).groups[0]["r"] is None  # before the first step gradients have not decided
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, scale)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", FLOOR_BINDS, UserWarning)
        optimizer.step()
    group = halflife.explain(model, optimizer).groups[0]
    expected = 6e-4 / 0.1 if binds else 6e-4 * 0.1 / scale  # lr / floor, or lr * lam / the root mean square
    assert group["r"] == pytest.approx(expected, rel=1e-6)
    assert group["half_life"] == pytest.approx(math.log(2) / -math.log1p(-expected), rel=1e-6)
    assert "r is what the last step removed" in group["notes"]
    assert any("the floor of Stable(lam=0.1) decides" in note for note in group["notes"]) is binds
