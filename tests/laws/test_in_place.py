"""After a step in place everything is as it was, to the bit."""

from __future__ import annotations

import random
from collections import OrderedDict, defaultdict
from typing import Any

import pytest
import torch
from torch import nn

from halflife.laws import in_place
from halflife.laws.in_place import NotRestoredError, Snapshot, unrestorable
from halflife.laws.law import NotProbedError
from halflife.laws.walk import shared_places
from tests.laws.adversarial import CASES, LR, WD, Plain, net, with_gradients


@pytest.mark.parametrize("name", CASES)
def test_steps_in_place_leave_no_trace(name: str) -> None:
    """The optimizer goes on as one that was never stepped, which no detail of its state survives."""
    weights = []
    for in_between in (False, True):
        model = net()
        real = CASES[name](model)
        parameters = list(model.parameters())
        for seed in range(6):
            if seed == 3 and in_between:
                gradients = [p.grad for p in parameters]
                with Snapshot([real]):
                    for other in (7, 8, 9):
                        with_gradients(parameters, other)
                        real.step()
                assert all(p.grad is gradient for p, gradient in zip(parameters, gradients, strict=True))
            with_gradients(parameters, seed)
            real.step()
        weights.append([p.detach().clone() for p in parameters])
    assert all(torch.equal(one, other) for one, other in zip(*weights, strict=True))


class Careless(Plain):
    """Changes whatever it can reach."""

    calls = 0

    def __init__(self, params: Any) -> None:
        super().__init__(params)
        self.table: dict[str, Any] = {"b": 1, "a": 2}
        self.list, self.set, self.numbers = [1, 2], {1, 2}, bytearray(b"abc")
        self.tensor, self.empty = torch.tensor([1.0, float("nan")]), torch.zeros(0)
        self.random, self.generator = random.Random(1), torch.Generator().manual_seed(1)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        Careless.calls += 1
        self.table.pop("b")
        self.table["b"] = 3
        self.list.append(3)
        self.set.add(3)
        self.numbers[0] = 5
        self.tensor.add_(1)
        self.empty.resize_(3)
        self.random.random()
        torch.rand(2, generator=self.generator)
        random.random()
        torch.rand(2)
        torch.set_default_dtype(torch.float64)
        self.new = 3
        del self.defaults["lr"]
        p, q = self.param_groups[0]["params"]
        p.data = torch.zeros(7)
        p.requires_grad_(False)
        q.grad.zero_()
        self.state[p]["x"] = 1
        self.param_groups[0]["params"].pop()
        self.param_groups.append({})
        self.step = None  # type: ignore[assignment,method-assign]


def picture(optimizer: Any) -> str:
    own = {name: value for name, value in vars(optimizer).items() if name not in {"random", "generator"}}
    p, q = (optimizer.param_groups[0]["params"] * 2)[:2]
    states = random.getstate(), optimizer.random.getstate(), torch.get_rng_state(), optimizer.generator.get_state()
    flags = Careless.calls, torch.get_default_dtype(), p.requires_grad, p.grad is None, q.grad, p.data_ptr(), p.shape
    return repr((own, [str(list(map(int, s))) if isinstance(s, torch.Tensor) else s for s in states], flags))


@pytest.mark.parametrize("fails", [False, True])
def test_whatever_a_step_changes_is_put_back(fails: bool) -> None:
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(3))
    q.grad = torch.ones(3)
    optimizer = Careless([p, q])
    objects = optimizer.table, optimizer.list, optimizer.param_groups[0]["params"], q.grad
    before = picture(optimizer)

    def body() -> None:
        with Snapshot([optimizer]):
            optimizer.step()
            assert picture(optimizer) != before
            if fails:
                raise KeyError("midway")

    if fails:
        with pytest.raises(KeyError, match="midway"):
            body()
    else:
        body()
    assert picture(optimizer) == before
    now = optimizer.table, optimizer.list, optimizer.param_groups[0]["params"], q.grad
    assert all(one is other for one, other in zip(objects, now, strict=True))


def test_closures_hooks_and_what_is_given_beside_are_put_back() -> None:
    model, calls = net(), 0
    optimizer = torch.optim.SGD(model.parameters(), LR, momentum=0.9)

    def count(*args: Any) -> None:
        nonlocal calls
        calls += 1
        model.first.in_features = 17

    optimizer.register_step_pre_hook(count)
    with_gradients(model.parameters(), 1)
    with Snapshot([optimizer], extra=[model]):
        optimizer.step()
        assert (calls, model.first.in_features, len(optimizer.state)) == (1, 17, 4)
    assert (calls, model.first.in_features, len(optimizer.state)) == (0, 4, 0)
    assert type(optimizer.state) is defaultdict


def test_numpy_is_put_back_where_it_is_loaded() -> None:
    numpy = pytest.importorskip("numpy")
    optimizer: Any = Plain(net().parameters())
    optimizer.array, optimizer.generator = numpy.arange(3), numpy.random.default_rng(1)
    optimizer.legacy = numpy.random.RandomState(3)
    picture = [repr(numpy.random.get_state()), repr(optimizer.generator.bit_generator.state)]
    with Snapshot([optimizer]):
        optimizer.array += 1
        optimizer.generator.random()
        optimizer.legacy.rand()
        numpy.random.rand()
    assert optimizer.array.tolist() == [0, 1, 2]
    assert [repr(numpy.random.get_state()), repr(optimizer.generator.bit_generator.state)] == picture
    assert optimizer.legacy.rand() == numpy.random.RandomState(3).rand()


def test_the_order_of_dictionaries_is_put_back() -> None:
    optimizer: Any = Plain(net().parameters())
    optimizer.ordered, optimizer.plain = OrderedDict(a=1, b=2), {"a": 1, "b": 2}
    with Snapshot([optimizer]):
        optimizer.ordered.move_to_end("a")
        optimizer.plain["a"] = optimizer.plain.pop("a")
    assert [list(optimizer.ordered), list(optimizer.plain)] == [["a", "b"], ["a", "b"]]


def test_sparse_and_meta_tensors() -> None:
    optimizer: Any = Plain(net().parameters())
    optimizer.sparse = torch.eye(3).to_sparse()
    optimizer.meta = torch.empty(2**40, device="meta")
    with Snapshot([optimizer]):
        optimizer.sparse.mul_(3)
        optimizer.meta.zero_()
    assert torch.equal(optimizer.sparse.to_dense(), torch.eye(3))


def test_what_cannot_be_put_back_is_said() -> None:
    optimizer: Any = Plain(net().parameters())
    snapshot = Snapshot([optimizer])
    snapshot._undo.append(("a thing", lambda: False))
    with pytest.raises(
        NotRestoredError, match="after stepping the optimizer in place a thing could not be put back as it"
    ):
        snapshot.restore()

    def refuse() -> bool:
        raise KeyError("no")

    snapshot._undo[-1] = ("a thing", refuse)
    with pytest.raises(RuntimeError, match=r"a thing \(KeyError: 'no'\) could not be put back"):
        snapshot.restore()


def test_too_many_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(in_place, "MANY", 10)
    with pytest.raises(NotProbedError, match=r"it leads to \d+ objects or more, too many to be put back; take what it"):
        Snapshot([Plain(net().parameters())])


def test_what_cannot_be_recorded_is_named(tmp_path: Any) -> None:
    model = net()
    optimizer: Any = Plain(model.parameters())
    assert unrestorable([optimizer]) == []
    optimizer.names, optimizer.count = model.named_parameters(), {"log": [zip([1], [2], strict=True), iter([1])]}
    with (tmp_path / "log").open("w") as optimizer.log:
        assert unrestorable([optimizer]) == ["names, a generator", "count, an iterator", "log, an open file"]


def test_decay_is_seen_in_place() -> None:
    model = net()
    optimizer = torch.optim.AdamW(model.parameters(), LR, weight_decay=WD)
    with Snapshot([optimizer]) as snapshot:
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        before = model.first.weight.detach().clone()
        optimizer.step()
        torch.testing.assert_close(model.first.weight.detach(), before * (1 - LR * WD))
    assert isinstance(snapshot, Snapshot)
    assert model.first.weight.grad is None
    assert torch.equal(model.first.weight, before)


LAST: Any = None
COUNTS: dict[str, Any] = {"steps": 0, "sizes": torch.zeros(2)}


class Counting(Plain):
    seen: list[int] = []  # noqa: RUF012
    total = 0

    def decay(self, group: dict[str, Any], p: torch.Tensor, index: int) -> float:
        global LAST, NEW
        LAST, NEW = p, index  # type: ignore[name-defined]
        COUNTS["steps"] += 1
        COUNTS["sizes"] += 1
        COUNTS[str(index)] = p
        self.seen.append(index)
        Counting.total += 1
        Counting.other = index  # type: ignore[attr-defined]
        return WD


def test_globals_and_class_attributes_that_a_copy_changes_are_put_back() -> None:
    model = net()
    places = shared_places([Counting(model.parameters())])
    other = Counting(model.parameters())
    with_gradients(model.parameters(), 1)
    with Snapshot.of_places(places):
        other.step()
        assert (COUNTS["steps"], Counting.total, NEW) == (4, 4, 3)  # type: ignore[name-defined]
    assert (LAST, COUNTS["steps"], COUNTS["sizes"].tolist(), len(COUNTS)) == (None, 0, [0.0, 0.0], 2)
    assert (Counting.total, Counting.seen, hasattr(Counting, "other"), "NEW" in globals()) == (0, [], False, False)
