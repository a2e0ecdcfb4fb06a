"""Models inside wrappers: a pattern for the bare model gives the same groups, checks and references."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

import halflife
from halflife.audit.expectations import check, parse_expectation
from halflife.errors import UserError
from halflife.groups.names import matcher, without_wrappers

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning"
)  # torch's own


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc, self.norm = nn.Linear(3, 3), nn.LayerNorm(3)

    def no_weight_decay(self) -> list[str]:
        return ["fc.weight"]


class Net(nn.Module):
    """Has a part that is really called ``module``, and keywords that wrappers' names have letters of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.module = nn.Embedding(5, 3), nn.Linear(3, 3)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.scale = nn.Parameter(torch.ones(3, 3))

    def no_weight_decay_keywords(self) -> list[str]:
        return ["orig", "wrapped", "embed"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x


class Engine(nn.Module):
    """A wrapper that nobody knows."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


def first_block(wrap: Callable[..., Any]) -> Callable[[nn.Module], nn.Module]:
    def wrapped(net: Any) -> nn.Module:
        net.blocks[0] = wrap(net.blocks[0])
        return net  # type: ignore[no-any-return]

    return wrapped


def compiled(net: nn.Module) -> Any:
    return torch.compile(net)


def held(net: nn.Module) -> nn.Module:
    return nn.ModuleDict({"_fsdp_wrapped_module": net})  # as FullyShardedDataParallel holds it


WRAPPERS: dict[str, Callable[[nn.Module], Any]] = {
    "compile": compiled,
    "DataParallel": nn.DataParallel,
    "AveragedModel": AveragedModel,
    "fsdp": held,
    "checkpoint": checkpoint_wrapper,
    "a checkpointed block": first_block(checkpoint_wrapper),
    "a compiled block": first_block(compiled),
    "a sharded block": first_block(held),
    "a copied block": first_block(nn.DataParallel),
    "compiled copies": lambda net: compiled(nn.DataParallel(net)),
    "copies of compiled blocks": lambda net: nn.DataParallel(first_block(compiled)(net)),
    "copies of compiled": lambda net: nn.DataParallel(compiled(net)),
    "all of them": lambda net: compiled(nn.DataParallel(held(first_block(checkpoint_wrapper)(net)))),
}
POLICIES: list[Any] = [
    "matrices",
    "nanogpt",
    "transformers",
    [("module.*", False), ("blocks.?.fc.*", 0.3), ("*", 0.2)],
    [("*.weight", False), ("*", 0.2)],
    [("blocks.[0]*", False), ("scale", 0.3), ("*", "matrices")],
    [("embed.weight", False), (nn.LayerNorm, 0.3), ("module.bias", 0.1), ("*", True)],
]


def groups_of(model: nn.Module, policy: Any, order: list[int]) -> list[tuple[float, list[int]]]:
    groups = halflife.param_groups(model, policy=policy, weight_decay=0.1)
    return [(group["weight_decay"], sorted(order.index(id(each)) for each in group["params"])) for group in groups]


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
def test_the_groups_are_those_of_the_bare_model(wrap: Callable[[nn.Module], Any]) -> None:
    net = Net()
    order = list(map(id, net.parameters()))
    bare = [groups_of(net, policy, order) for policy in POLICIES]
    wrapped = wrap(net)
    if isinstance(wrapped, AveragedModel):  # which holds a copy
        order = list(map(id, wrapped.parameters()))
    assert [groups_of(wrapped, policy, order) for policy in POLICIES] == bare


@pytest.fixture
def process_group(tmp_path: Path) -> Iterator[None]:
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        yield
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_distributed_data_parallel() -> None:
    net = Net()
    order = list(map(id, net.parameters()))
    bare = [groups_of(net, policy, order) for policy in POLICIES]
    wrapped = DistributedDataParallel(net)
    assert [groups_of(wrapped, policy, order) for policy in POLICIES] == bare


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, Engine, lambda net: net])
def test_a_part_that_is_called_module_stays_one(wrap: Callable[[nn.Module], Any]) -> None:
    net = nn.ModuleDict({"module": nn.Linear(3, 3), "head": nn.Linear(3, 2)})
    groups = halflife.param_groups(wrap(net), [("head.*", 0.2), ("module.bias", False), ("*", 0.1)])
    found = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    assert [found[id(each)] for each in net.parameters()] == [0.1, 0.0, 0.2, 0.2]


@pytest.mark.parametrize("pattern", ["module.0.*", "0.*"])
def test_a_wrapper_that_nobody_knows(pattern: str) -> None:
    model = Engine(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
    (decaying, still) = halflife.param_groups(model, [(pattern, 0.1), ("*", False)])
    assert decaying["param_names"] == ["module.0.weight", "module.0.bias"]
    assert still["param_names"] == ["module.1.weight", "module.1.bias"]


@pytest.mark.parametrize(
    ("wrap", "with_model"),
    [(nn.DataParallel, True), (nn.DataParallel, False), (compiled, True), (Engine, True)],
)
def test_expectations(wrap: Callable[[nn.Module], Any], with_model: bool) -> None:
    model = wrap(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    groups = halflife.param_groups(model, [("0.*", 0.1), ("*", False)])
    table = halflife.explain(model if with_model else None, torch.optim.AdamW(groups, lr=1e-3))
    texts = ["0.*=decoupled:0.1", "[1].*=none", "1.*=decoupled:0.1", "0.*=none"]
    checks = [check(table, [parse_expectation(text)], has_model=with_model)[0] for text in texts]
    assert [each.holds for each in checks] == [True, True, False, False]


def test_assert_decay() -> None:
    model = nn.DataParallel(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    optimizer = torch.optim.AdamW(halflife.param_groups(model, [("0.*", 0.1), ("*", False)]), lr=1e-3)
    halflife.assert_decay(model, optimizer, {"0.*": "decoupled:0.1", "*": "none"})


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [
        (nn.DataParallel, "module."),
        (compiled, "_orig_mod."),
        (held, "_orig_mod.module."),
        (Engine, "_fsdp_wrapped_module."),
        (lambda net: net, "module."),
    ],
)
def test_patterns_as_the_names_of_a_wrapped_model(wrap: Callable[[nn.Module], Any], prefix: str) -> None:
    """Copied from `named_parameters()` of a model in wrappers, they hold for the model in others, or in none."""
    model = wrap(nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)))
    groups = halflife.param_groups(model, [(f"{prefix}0.*", 0.1), ("*", False)])
    assert [sorted(each.rpartition(".")[2] for each in group["param_names"]) for group in groups] == [
        ["bias", "weight"]
    ] * 2
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    halflife.assert_decay(model, optimizer, {f"{prefix}0.weight": "decoupled:0.1", f"{prefix}1.*": "none"})
    with pytest.raises(UserError, match="matches no"):
        halflife.assert_decay(model, optimizer, {f"{prefix}2.*": "none"})


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, held])
@pytest.mark.parametrize("wrapped_names", [True, False])
def test_references_by_name(wrap: Callable[[nn.Module], Any], wrapped_names: bool) -> None:
    """Decay goes to the reference, whichever of the two has the names of a wrapper."""
    net = nn.Sequential(nn.Linear(2, 2))
    model = wrap(net)
    named = (model if wrapped_names else net).named_parameters()
    reference = {name: torch.ones_like(each) for name, each in (net if wrapped_names else model).named_parameters()}
    if wrap is held and not wrapped_names:
        reference = {f"_orig_mod.module.{name}": each for name, each in net.named_parameters()}
        reference = {name: torch.ones_like(each) for name, each in reference.items()}
    optimizer = torch.optim.SGD(list(named), lr=0.5, weight_decay=1.0)
    halflife.attach(optimizer, halflife.Toward(halflife.Decoupled(), reference))
    before = {each: each.detach().clone() for each in net.parameters()}
    for each in before:
        each.grad = torch.zeros_like(each)
    optimizer.step()
    for each, was in before.items():
        torch.testing.assert_close(each.detach(), was + 0.5 * (1.0 - was))


def test_names() -> None:
    assert without_wrappers("a._orig_mod.module.b") == "a.module.b"
    names = [("module.a", "a"), ("module.module.a", "module.a")]
    assert [list(map(matcher(pattern, names), names)) for pattern in ("a", "module.a", "module.module.*", "*", "b")] == [
        [True, False], [False, True], [False, True], [True, True], [False, False],
    ]  # fmt: skip


@pytest.mark.parametrize("pattern", ["[" * 100_000, "*a" * 600])
def test_a_pattern_of_thousands_of_characters_is_refused(pattern: str) -> None:
    with pytest.raises(UserError, match=r"characters, expected at most 1000: write a shorter one") as caught:
        halflife.param_groups(nn.Linear(2, 2), [(pattern, False)])
    assert len(str(caught.value)) < 300
    optimizer = torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=0.1)
    with pytest.raises(UserError, match=r"characters, expected at most 1000: write a shorter one"):
        halflife.assert_decay(None, optimizer, {pattern: "none"})
