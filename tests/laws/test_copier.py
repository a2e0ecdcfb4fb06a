"""A copy of an optimizer steps exactly like the real one, which is not touched."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife.laws.copier import Copier, is_absent
from halflife.laws.graph import real_tensors
from halflife.laws.guard import read_only
from halflife.laws.law import NotProbedError
from tests.laws.adversarial import CASES, LR, WD, Every2, Plain, net, with_gradients


def stand_ins(parameters: Any) -> dict[int, Any]:
    return {id(p): nn.Parameter(p.detach().clone(), requires_grad=p.requires_grad) for p in parameters}


@pytest.mark.parametrize("name", CASES)
def test_a_copy_steps_exactly_like_the_real_one(name: str) -> None:
    model = net()
    real = CASES[name](model)
    parameters = list(model.parameters())
    for seed in range(3):
        with_gradients(parameters, seed)
        real.step()
    memo = stand_ins(parameters)
    chosen = [memo[id(p)] for p in parameters]
    copied = Copier(memo).copy(real)
    assert type(copied) is type(real)
    tensors = real_tensors([real], model)
    before = [each.detach().clone() for each in tensors]
    with read_only(tensors):
        for seed in range(4):
            with_gradients(chosen, 10 + seed)
            copied.step()
    assert all(torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    for seed in range(4):
        with_gradients(parameters, 10 + seed)
        real.step()
    assert any(not torch.equal(one, other) for one, other in zip(tensors, before, strict=True))
    assert all(torch.equal(p, q) for p, q in zip(parameters, chosen, strict=True))


def test_groups_that_are_shared_stay_shared() -> None:
    model = net()
    real = Every2(torch.optim.SGD(model.parameters(), LR))
    copied = Copier(stand_ins(model.parameters())).copy(real)
    assert copied.param_groups is copied.inner.param_groups
    assert copied.state is copied.inner.state
    assert copied.param_groups is not real.param_groups
    assert copied.param_groups[0] is not real.param_groups[0]


def test_parameters_without_stand_in_are_left_out_with_what_goes_with_them() -> None:
    model = net()
    real: Any = torch.optim.AdamW(model.named_parameters(), LR)
    with_gradients(model.parameters(), 0)
    real.step()
    real.masters = [p.detach().clone() for p in model.parameters()]
    real.all = list(model.parameters())
    real.ids = {id(p): n for n, p in enumerate(model.parameters())}
    kept = [model.first.bias, model.second.weight]
    memo = stand_ins(kept)
    chosen = [memo[id(p)] for p in kept]
    copied = Copier(memo).copy(real)
    assert copied.param_groups[0]["params"] == chosen
    assert copied.param_groups[0]["param_names"] == ["first.bias", "second.weight"]
    assert list(copied.state) == chosen
    assert [each.shape for each in copied.masters] == [each.shape for each in chosen]
    assert all(one is other for one, other in zip(copied.all, chosen, strict=True))
    assert copied.ids == {id(chosen[0]): 1, id(chosen[1]): 2}


def test_an_optimizer_of_which_nothing_is_chosen_stands_over_what_is_empty() -> None:
    model = net()
    real = torch.optim.AdamW(model.parameters(), LR)
    copied = Copier({}, empty=lambda p: nn.Parameter(torch.zeros(()))).copy(real)
    assert [p.shape for p in copied.param_groups[0]["params"]] == [torch.Size(())] * 4


def test_further_stand_ins_stand_beside_the_first_with_names_and_flags() -> None:
    model = net()
    real: Any = Plain([("w", model.first.weight), ("b", model.first.bias)])
    real.state[model.first.bias] = {"decays": True, "step": 3, "buffer": torch.ones(3), "later": None}
    memo = {id(p): nn.Parameter(torch.ones(2)) for p in (model.first.weight, model.first.bias)}
    other = nn.Parameter(torch.ones(2))
    real.skip, real.lams = {id(model.first.bias)}, {model.first.bias: 0.1}
    copied = Copier(memo, more={id(model.first.bias): [other]}, state="flags").copy(real)
    assert copied.param_groups[0]["param_names"] == ["w", "b", "b"]
    assert [id(p) for p in copied.param_groups[0]["params"]] == [*map(id, list(memo.values())[:2]), id(other)]
    assert copied.skip == {id(memo[id(model.first.bias)]), id(other)}
    assert copied.lams == {memo[id(model.first.bias)]: 0.1, other: 0.1}
    assert dict(copied.state) == {memo[id(model.first.bias)]: (flags := {"decays": True, "later": None}), other: flags}


@pytest.mark.parametrize("state", [{"buffer": None}, {"step": 3}, {"buffer": torch.ones(2), "later": None}, {}])
def test_a_state_without_flags_is_empty(state: dict[str, Any]) -> None:
    model = net()
    real = Plain(model.parameters())
    real.state[model.first.bias] = state
    assert not Copier(stand_ins(model.parameters()), state="flags").copy(real).state
    assert not Copier(stand_ins(model.parameters()), state="none").copy(real).state


def test_step_hooks_are_copied_on_demand_only() -> None:
    model = net()
    real = Every2(inner := torch.optim.SGD(model.parameters(), LR))
    calls: list[Any] = []
    inner.register_step_pre_hook(lambda optimizer, args, kwargs: calls.append(optimizer))
    inner.register_state_dict_pre_hook(lambda optimizer: None)
    for hooks, number in ((False, 0), (True, 1)):
        copied = Copier(stand_ins(model.parameters()), hooks=hooks).copy(real)
        assert len(copied.inner._optimizer_step_pre_hooks) == number
        assert not copied.inner._optimizer_state_dict_pre_hooks
        copied.step()
        copied.step()
    assert calls == []  # the hook of the copy writes into a copied list


def test_frozen_weights_of_a_held_model_cost_nothing() -> None:
    model = net()
    model.frozen = nn.Parameter(torch.zeros(2**20), requires_grad=False)
    real: Any = Plain([model.first.weight])
    real.model = model
    copied = Copier(stand_ins([model.first.weight]), limit=2**20).copy(real)
    assert copied.model is not model
    assert copied.model.first.weight is copied.param_groups[0]["params"][0]
    assert copied.model.frozen is model.frozen
    assert copied.model.second.weight is not model.second.weight
    assert torch.equal(copied.model.second.weight, model.second.weight)
    assert type(copied.model.second.weight) is nn.Parameter
    with read_only(real_tensors([real])), torch.no_grad(), pytest.raises(NotProbedError, match="writes into a real"):
        copied.model.frozen.add_(1)
    assert not model.frozen.any()


def test_tensors_that_share_memory_go_on_sharing_it() -> None:
    model = net()
    real: Any = Plain(model.parameters())
    real.base = torch.arange(6.0)
    real.part = real.base[2:4]
    real.again = [real.base]
    copied = Copier(stand_ins(model.parameters())).copy(real)
    copied.base += 1
    assert copied.part.tolist() == [3.0, 4.0]
    assert copied.again[0] is copied.base
    assert real.base.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]


def test_stand_ins_of_another_shape_or_precision_share_nothing() -> None:
    model = net()
    real: Any = Plain(model.parameters())
    real.flat = model.first.weight.data.view(-1)
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.zeros(2, dtype=torch.float64)) for p in model.parameters()}
    copied = Copier(memo).copy(real)
    assert torch.equal(copied.flat, real.flat)
    assert copied.flat.data_ptr() != real.flat.data_ptr()


def test_stand_ins_in_float64_are_seen_through_the_same_views() -> None:
    model = net()
    real: Any = CASES["one_buffer_for_all"](model)
    real.bits = real.flat.view(torch.int32)
    memo: dict[int, Any] = {id(p): nn.Parameter(p.detach().double()) for p in model.parameters()}
    chosen = [memo[id(p)] for p in model.parameters()]
    copied = Copier(memo).copy(real)
    assert copied.flat.dtype == torch.float64
    assert torch.equal(copied.bits, real.bits)
    with_gradients(chosen, 1)
    copied.step()
    with_gradients(model.parameters(), 1)
    assert not torch.equal(copied.flat.float(), real.flat)
    assert torch.equal(torch.cat([p.detach().view(-1) for p in chosen]), copied.flat)


def test_gradients_in_one_buffer() -> None:
    model = net()

    class Flat(Plain):
        gradients: Tensor

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            for p, gradient in zip(self.param_groups[0]["params"], self.gradients.unbind(), strict=True):
                p.mul_(1 - LR * WD).sub_(gradient.view(p.shape), alpha=LR)

    pair = [model.first.weight, nn.Parameter(torch.ones(3, 4))]
    real = Flat(pair)
    real.gradients = torch.randn(2, 12)
    for p, row in zip(pair, real.gradients.unbind(), strict=True):
        p.grad = row.view(p.shape)
    memo = stand_ins(pair)
    chosen = [memo[id(p)] for p in pair]
    copied = Copier(memo).copy(real)
    for p in chosen:
        p.grad.zero_()
    copied.step()
    assert real.gradients.all()
    for p, q in zip(pair, chosen, strict=True):
        torch.testing.assert_close(q.detach(), p.detach() * (1 - LR * WD))


def test_two_parameters_over_one_memory_have_stand_ins_over_one_memory() -> None:
    weight = nn.Parameter(torch.ones(3))
    twin = nn.Parameter(weight.data)
    real = Plain([weight, twin])
    memo = stand_ins([weight, twin])
    one, other = memo[id(weight)], memo[id(twin)]
    Copier(memo).copy(real)
    with torch.no_grad():
        one.mul_(2)
    assert other.tolist() == [2.0, 2.0, 2.0]
    assert weight.tolist() == [1.0, 1.0, 1.0]


def test_a_model_without_memory_is_copied_without_memory() -> None:
    with torch.device("meta"):
        model = net()
    real: Any = torch.optim.AdamW(model.parameters(), LR)
    real.buffers = [torch.empty(2**40, device="meta")]
    real.flat = model.first.weight.data.view(-1)
    memo: dict[int, Any] = {id(p): nn.Parameter(torch.ones(p.shape)) for p in model.parameters()}
    copied = Copier(memo).copy(real)
    assert copied.buffers[0] is real.buffers[0]
    assert copied.flat.data_ptr() == memo[id(model.first.weight)].data_ptr()


def test_whatever_could_not_be_copied_says_so_when_it_is_used() -> None:
    model = net()
    real: Any = Plain(model.parameters())
    held = threading.Lock()
    with held:
        real.names, real.deep, real.lock = model.named_parameters(), {"a": [iter_of(3)]}, held
        copied = Copier(stand_ins(model.parameters())).copy(real)
    assert is_absent(copied.names)
    uses: list[Any] = [
        lambda x: x.shape,
        lambda x: x(),
        iter,
        next,
        len,
        bool,
        lambda x: x[0],
        lambda x: x == 1,
        lambda x: x < 1,
        lambda x: x + 1,
        lambda x: 1 in x,
        lambda x: x.__enter__(),
        lambda x: isinstance(x, Tensor),
        lambda x: hasattr(x, "send"),
        str,
        float,
        lambda x: setattr(x, "a", 1),
    ]
    for use in uses:
        with pytest.raises(NotProbedError, match=r"its step uses names, a generator, which cannot be copied; pass in_"):
            use(copied.names)
    with pytest.raises(NotProbedError, match=r"its step uses deep\['a'\]\[0\], a generator"):
        list(copied.deep["a"][0])
    with pytest.raises(NotProbedError, match="its step uses lock, a lock"), copied.lock:
        pass
    assert "no copy of names" in repr(copied.names)
    within = {"__name__": "halflife.within", "x": copied.names}
    assert eval("(isinstance(x, int), hasattr(x, '__dict__'))", within) == (False, False)
    assert len(list(real.names)) == 4


def iter_of(n: int) -> Any:
    return (each for each in range(n))


def test_an_optimizer_that_cannot_be_copied_at_all() -> None:
    class Odd(Plain):
        def __init__(self, params: Any) -> None:
            super().__init__(params)
            self.param_groups = [3]  # type: ignore[list-item]

    with pytest.raises(NotProbedError, match=r"it cannot be copied \(AttributeError: .*\); pass in_place=True"):
        Copier({}).copy(Odd(net().parameters()))


def test_attributes_that_are_nested_too_deeply() -> None:
    real: Any = Plain(net().parameters())
    chain: Any = None
    for _ in range(100_000):
        chain = [chain]
    real.chain = chain
    copied = Copier({}).copy(real)
    assert is_absent(copied.chain)
    while chain:  # or taking it apart overflows as well
        chain = chain.pop()


def test_an_attribute_that_leads_to_too_much_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.laws.copier.MANY", 50)
    real: Any = Plain(net().parameters())
    real.log, real.few = [[n] for n in range(100)], [[1], [2]]
    copied = Copier({}).copy(real)
    assert is_absent(copied.log)
    assert copied.few == real.few


def test_a_compiled_function_is_the_one_that_it_was_compiled_from() -> None:
    real: Any = Plain(net().parameters())

    def rule(p: Any) -> Any:
        return p

    def compiled(p: Any) -> Any:
        raise AssertionError

    compiled._torchdynamo_orig_callable = rule  # type: ignore[attr-defined]
    real.rule = compiled
    assert Copier({}).copy(real).rule(3) == 3


def test_copies_can_be_thrown_away() -> None:
    real = CASES["weak_references"](net())
    made = weakref.ref(Copier(stand_ins(real.param_groups[0]["params"])).copy(real))
    gc.collect()
    assert made() is None


def test_a_group_of_ids_that_stands_for_other_objects() -> None:
    model = net()
    real: Any = Plain([{"params": [model.first.weight]}, {"params": [model.first.bias]}])
    real.skip = {id(real.param_groups[1])}
    real.me = id(real)
    copied = Copier(stand_ins([model.first.weight, model.first.bias])).copy(real)
    assert copied.skip == {id(copied.param_groups[1])}
    assert copied.me == id(copied)


# ---- the guard


def weights() -> nn.Parameter:
    weight = nn.Parameter(torch.ones(4, 3))
    weight.grad = torch.ones(4, 3)
    return weight


WRITES: dict[str, Any] = {
    "in place": lambda w: w.mul_(0.9),
    "a list": lambda w: torch._foreach_mul_([torch.ones(2), w], 0.9),
    "out": lambda w: torch.add(w, 1, out=w),
    "a view": lambda w: w.view(-1)[2:].zero_(),
    "data": lambda w: w.data.copy_(w * 2),
    "an item": lambda w: w.__setitem__(0, 3.0),
    "set_": lambda w: w.set_(torch.zeros(2)),
    "resize_": lambda w: w.grad.resize_(2),
    "its gradient": lambda w: w.grad.zero_(),
    "init": nn.init.normal_,
    "fused": lambda w: torch.optim.AdamW([w], 0.1, fused=True).step(),
    "sgd": lambda w: torch.optim.SGD([w], 0.1).step(),
}


@pytest.mark.parametrize("name", WRITES)
def test_the_guard_refuses_a_write_before_it_happens(name: str) -> None:
    weight, gradient = (made := weights()), made.grad
    assert gradient is not None
    message = r"writes into a real tensor \(.*\), which no copy leads to; pass in_place=True"
    with pytest.raises(NotProbedError, match=message), read_only([weight, gradient]), torch.no_grad():
        WRITES[name](weight)
    assert torch.equal(weight, torch.ones(4, 3))
    assert torch.equal(gradient, torch.ones(4, 3))


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda w: setattr(w, "data", w * 2), "the data"),
        (lambda w: setattr(w, "grad", None), "the gradient"),
        (lambda w: w.requires_grad_(False), "requires_grad"),
    ],
    ids=["data", "grad", "requires_grad"],
)
def test_the_guard_puts_back_what_was_set(change: Any, what: str) -> None:
    weight = weights()
    gradient, place = weight.grad, weight.data_ptr()
    with (
        pytest.raises(
            NotProbedError, match=f"its step sets {what} of a real tensor, which no copy leads to; it was put"
        ),
        read_only([weight]),
        torch.no_grad(),
    ):
        change(weight)
    assert weight.grad is gradient
    assert weight.requires_grad
    assert weight.data_ptr() == place
    assert torch.equal(weight, torch.ones(4, 3))


def test_the_guard_lets_reads_and_other_writes_pass() -> None:
    weight, other = weights(), torch.zeros(4, 3)
    with read_only([weight]), torch.no_grad():
        other.add_(weight).sub_(weight.sum())
        torch._foreach_add_([other], [weight])
    assert other[0, 0] == -10


def test_the_guard_refuses_communication_where_there_are_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("halflife.laws.guard.world_size", lambda: 2)
    with read_only([]), pytest.raises(NotProbedError, match=r"communicates with other processes \(.*\), and a copy is"):
        torch.ops._c10d_functional.all_reduce(torch.ones(2), "sum", "0")
