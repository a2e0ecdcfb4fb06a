"""What happens to optimizers under a rule: copies, new groups, closures, exceptions, company, threads, and detaching."""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.attaching import attach, handle_of
from halflife.rules import (
    L2,
    Applier,
    Cautious,
    Constant,
    Decoupled,
    MovingAverage,
    NormTarget,
    Penalty,
    PerGroup,
    Rule,
    Scheduled,
    Sphere,
    Stable,
    Toward,
)
from halflife.schedules import until
from tests import FLOOR_BINDS, needs_muon
from tests.optim.test_precision import assert_follows_adam
from tests.oracles.cases import own_pass_only
from tests.oracles.every_rule import (
    BY_NAME,
    CASES,
    FACTORS,
    HALF,
    LAM,
    PEAKS,
    STEPS,
    Case,
    Net,
    assert_same,
    backward,
    groups_of,
    name_of,
    reference,
    set_lr,
    train,
    weights,
)

by_rule = pytest.mark.parametrize("case", CASES, ids=name_of)
of_adamw = pytest.mark.parametrize("case", [case for case in CASES if not case.sgd], ids=name_of)


def started(case: Case, *, attached: bool = True, steps: int = 0) -> tuple[Net, Optimizer]:
    model = Net()
    optimizer = case.optimizer(groups_of(model))
    if attached:
        case.attach(optimizer)
    train(model, optimizer, range(steps))
    return model, optimizer


def keys_of(optimizer: Optimizer) -> list[set[str]]:
    return [set(group) for group in optimizer.param_groups] + [set(state) for state in optimizer.state.values()]


# ---- copies


@by_rule
@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=["copy", "pickle"]
)
def test_a_copy_runs_on_without_the_rule(case: Case, duplicate: Callable[[Any], Any]) -> None:
    """By the optimizer's own decay, with what the rule has left in it doing nothing."""
    model, optimizer = started(case, steps=HALF)
    other, copied = duplicate((model, optimizer))
    assert handle_of(copied) is None
    plain_model = Net()
    plain_model.load_state_dict(model.state_dict())
    plain = case.optimizer(groups_of(plain_model))
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, stepped in ((other, copied), (plain_model, plain)):
        train(net, stepped, range(HALF, STEPS))
    assert_same(weights(other), weights(plain_model))
    assert copied.state_dict()["param_groups"][0].get("halflife_step") == -1


@by_rule
def test_a_copy_takes_the_rule_again(case: Case) -> None:
    """It goes on as the original does, except for what only its checkpoints keep: `Case.lost`."""
    model, optimizer = started(case, steps=HALF)
    other, copied = copy.deepcopy((model, optimizer))
    gone = set((case.lost or "").split(" and "))
    complete = gone <= {"", "peak_lr", "reference"}  # the groups keep the peak, the state the reference
    with contextlib.nullcontext() if complete else pytest.warns(UserWarning, match="is a copy of one under a rule"):
        case.attach(copied)
    for net, stepped in ((model, optimizer), (other, copied)):
        train(net, stepped, range(HALF, STEPS))
    if complete:
        for ours, theirs in zip(weights(other), weights(model), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    if case.name == "stable":
        assert_follows_adam(copied)


# ---- new groups


@by_rule
def test_a_group_that_joins_starts_by_itself(case: Case) -> None:
    """The same as if it had been there from the start without gradients; to the last bit."""

    def run(*, late: bool) -> tuple[list[Tensor], Optimizer]:
        model = Net()
        extra = nn.Parameter(torch.linspace(-1, 1, 6).reshape(3, 2))
        group = {"params": [("extra", extra)], "weight_decay": LAM, "lr": PEAKS[0], "initial_lr": PEAKS[0]}
        if case.row.family == "PerGroup" or case.name.startswith(("toward-a-check", "toward-given")):  # nothing for it
            group["weight_decay"] = 0.0
        optimizer = case.optimizer([*groups_of(model), *([] if late else [group])])
        if case.row.family == "PerGroup" and not late:  # one rule for each group that is there
            handle = attach(optimizer, PerGroup([*case.rule().inside(), Constant(0.5)]))
        else:
            handle = case.attach(optimizer)
        for step in range(STEPS):
            if late and step == HALF:
                optimizer.add_param_group(group)
                assert len(handle.fractions()) == 4
            set_lr(optimizer, step)
            backward(model, optimizer, step)
            if step >= HALF:
                extra.grad = 0.7 * (extra.detach() + 0.4)
                optimizer.param_groups[3]["lr"] = optimizer.param_groups[0]["lr"]
            optimizer.step()
        return [*weights(model), extra.detach()], optimizer

    (joined, optimizer), (expected, _) = run(late=True), run(late=False)
    assert_same(joined, expected)
    if case.name == "stable":
        assert_follows_adam(optimizer)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("per-group-stable", "PerGroup has 3 rules, but parameter group 3 decays too"),
        ("toward-a-checkpoint", "no reference for the decaying parameter extra"),
        ("toward-given-tensors-stable", "11 reference tensors, but parameter 11 of the optimizer decays"),
    ],
)
def test_a_group_for_which_the_rule_has_nothing_is_refused(name: str, message: str) -> None:
    model, optimizer = started(BY_NAME[name], steps=2)
    extra = nn.Parameter(torch.ones(2, 2))
    optimizer.add_param_group({"params": [("extra", extra)], "weight_decay": LAM})
    set_lr(optimizer, 2)
    backward(model, optimizer, 2)
    extra.grad = torch.ones(2, 2)
    before = weights(model)
    with pytest.raises(UserError, match=message):
        optimizer.step()
    assert_same(weights(model), before)
    assert torch.equal(extra.detach(), torch.ones(2, 2))


# ---- closures and exceptions


def run_with_closures(case: Case, *, broken_at: int | None = None) -> list[Tensor]:
    model, optimizer = started(case)
    for step in range(STEPS):
        set_lr(optimizer, step)
        if step == broken_at:
            before = weights(model)

            def broken(step: int = step) -> float:
                backward(model, optimizer, step)
                raise RuntimeError("out of memory")

            with pytest.raises(RuntimeError, match="out of memory"):
                optimizer.step(broken)
            assert_same(weights(model), before)
            saved = optimizer.state_dict()["param_groups"]
            assert [group["weight_decay"] for group in saved] == [LAM, LAM, 0.0]
        # Gradients of another step lie there: the rule must wait for those that the closure makes.
        backward(model, optimizer, (step + 3) % STEPS)

        def closure(step: int = step) -> float:
            return backward(model, optimizer, step).item()

        optimizer.step(closure)
    return weights(model)


@by_rule
def test_a_closure_makes_the_gradients(case: Case) -> None:
    model, _ = started(case, steps=STEPS)
    if any(isinstance(part, Stable) for part in case.rule().parts()) and not case.sgd:
        # The optimizer's own decay cannot serve answers that are not known before the closure: other roundings.
        for ours, theirs in zip(run_with_closures(case), weights(model), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    else:
        assert_same(run_with_closures(case), weights(model))


@by_rule
def test_an_exception_in_a_closure_leaves_no_trace(case: Case) -> None:
    assert_same(run_with_closures(case, broken_at=3), run_with_closures(case))


@pytest.mark.parametrize("name", ["norm", "sphere", "toward", "average", "cautious"])
def test_lbfgs_under_rules_that_act_on_tensors(name: str) -> None:
    """Its step asks the closure many times: the rule acts once, on what the whole step did."""
    weight = nn.Parameter(torch.linspace(-1, 1, 8))
    goal = torch.linspace(2, -1, 8)
    start = weight.detach().clone()
    optimizer = torch.optim.LBFGS([weight], lr=0.5, max_iter=4)
    made: dict[str, Rule | Applier] = {
        "norm": NormTarget(1.5),
        "sphere": Sphere(1.5),
        "toward": Toward(Constant(0.25), [goal]),
        "average": Toward(Constant(0.25)),
        "cautious": Cautious(Constant(0.25)),
    }
    calls = 0

    def closure() -> Tensor:
        nonlocal calls
        calls += 1
        optimizer.zero_grad()
        loss = (weight - goal).square().sum() * 0.1
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        return loss

    attach(optimizer, made[name], select="all")
    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch leaves it without types
    assert calls > 2

    bare = nn.Parameter(start.clone())
    plain = torch.optim.LBFGS([bare], lr=0.5, max_iter=4)
    count = 0

    def by_hand() -> Tensor:
        nonlocal count
        plain.zero_grad()
        loss = (bare - goal).square().sum() * 0.1
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        count += 1
        if count == 1 and name == "toward":
            with torch.no_grad():
                bare.lerp_(goal, 0.25)
        return loss

    plain.step(by_hand)  # type: ignore[no-untyped-call]  # torch leaves it without types
    expected = bare.detach()
    if name in {"norm", "sphere"}:
        expected = expected / expected.norm() * 1.5
    if name == "cautious":
        expected = torch.where((start - expected) * start >= 0, expected - 0.25 * start, expected)
    torch.testing.assert_close(weight.detach(), expected)


def test_stable_refuses_lbfgs() -> None:
    optimizer = torch.optim.LBFGS([nn.Parameter(torch.ones(2))])
    with pytest.raises(UserError, match=r"Stable knows SGD and the Adam family of torch .*, got LBFGS"):
        attach(optimizer, Stable(0.1), select="all")


class Mine(torch.optim.AdamW):
    """Calls the step of its base class; torch then runs the hooks of both."""

    def step(self, closure: Any = None) -> Any:
        return super().step(closure)


@of_adamw
def test_a_subclass_that_calls_its_base(case: Case) -> None:
    if case.name in {"l2-into-the-first-moment", "l2-into-the-second-moment"}:
        pytest.skip("for torch's own classes only")
    model = Net()
    optimizer = Mine(groups_of(model), lr=PEAKS[0], betas=(0.9, 0.95))
    case.attach(optimizer)
    train(model, optimizer)
    with own_pass_only():
        expected, _ = started(case, steps=STEPS)
    if isinstance(case.rule(), Cautious):  # where the sign of the update is not known beforehand: other roundings
        for ours, theirs in zip(weights(model), weights(expected), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    else:
        assert_same(weights(model), weights(expected))


# ---- company


def split(model: Net) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The matrices of the block for Muon, the rest for AdamW."""
    groups = groups_of(model)
    return groups[:1], groups[1:]


def train_both(model: Net, optimizers: list[Optimizer], steps: range = range(STEPS)) -> None:
    for step in steps:
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * FACTORS[step]
        backward(model, optimizers[0], step)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()


REFUSED_TOGETHER = {
    "toward-given-tensors": "references in order for 2 optimizers",
    "toward-given-tensors-stable": "references in order for 2 optimizers",
    "sphere": "projects one net, but 2 optimizers step at different times",
    "sphere-first": "projects one net, but 2 optimizers step at different times",
    "l2-into-the-first-moment": "expected torch's Adam or AdamW",
    "l2-into-the-second-moment": "expected torch's Adam or AdamW",
}


@needs_muon
@by_rule
def test_several_optimizers_train_one_model(case: Case) -> None:
    """Together they do what they would do with a handle each; and each resumes from its own checkpoint."""

    def made(model: Net) -> list[Optimizer]:
        first, rest = split(model)
        return [torch.optim.Muon(first, lr=0.02), torch.optim.AdamW(rest, lr=0.02)]

    stable = any(isinstance(part, Stable) for part in case.rule().parts())
    refusal = REFUSED_TOGETHER.get(case.name, "Stable cannot be attached to Muon" if stable else None)
    if refusal is not None:
        with pytest.raises(UserError, match=refusal):
            attach(made(Net()), case.rule(), **case.row.numbers)  # type: ignore[arg-type]  # floats only
        return
    if case.row.family == "PerGroup":
        pytest.skip("its rules are counted through all optimizers: with a handle each, others would act")
    together, apart, resumed = Net(), Net(), Net(seed=99)
    optimizers = made(together)
    handle = attach(optimizers, case.rule(), **case.row.numbers)  # type: ignore[arg-type]  # floats only
    train_both(together, optimizers, range(HALF))
    states = copy.deepcopy([together.state_dict(), *(optimizer.state_dict() for optimizer in optimizers)])
    train_both(together, optimizers, range(HALF, STEPS))
    assert len(handle.fractions()) == 3

    alone = made(apart)
    for optimizer in alone:
        case.attach(optimizer)
    train_both(apart, alone)
    assert_same(weights(together), weights(apart))

    fresh = made(resumed)
    attach(fresh, case.rule(), **case.row.numbers)  # type: ignore[arg-type]  # floats only
    resumed.load_state_dict(states[0])
    for optimizer, state in zip(fresh, states[1:], strict=True):
        optimizer.load_state_dict(state)
    train_both(resumed, fresh, range(HALF, STEPS))
    assert_same(weights(resumed), weights(together))


def test_references_in_order_need_one_optimizer() -> None:
    """Both would take the first tensors of the list."""
    model = Net()
    first, rest = split(model)
    optimizers = [torch.optim.SGD(first, lr=0.1), torch.optim.SGD(rest, lr=0.1)]
    with pytest.raises(UserError, match=r"references in order .* 2 optimizers.* by name"):
        attach(optimizers, Toward(Constant(0.1), [parameter.detach() for parameter in model.parameters()]))
    attach(optimizers, Toward(Constant(0.1), reference()))


def test_hooks_of_others_run_before_the_rule_before_a_step_and_after_it_after_the_step() -> None:
    model = Net()
    optimizer = BY_NAME["stable"].optimizer(groups_of(model))

    def tenfold(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad *= 10.0

    optimizer.register_step_pre_hook(tenfold)
    handle = BY_NAME["stable"].attach(optimizer)
    after: list[list[float]] = []
    optimizer.register_step_post_hook(lambda *args: after.append(handle.fractions()))
    train(model, optimizer)
    assert_follows_adam(optimizer)
    assert after[-1] == handle.fractions()
    handle.detach()
    assert len(optimizer._optimizer_step_pre_hooks) == len(optimizer._optimizer_step_post_hooks) == 1


def test_optimizers_in_threads_do_not_meet() -> None:
    names = ["stable", "cautious", "toward-an-average", "norm-target-first", "until", "l2-into-the-second-moment"]
    results: dict[str, list[Tensor]] = {}

    def run(name: str) -> None:
        model, _ = started(BY_NAME[name], steps=STEPS)
        results[name] = weights(model)

    threads = [threading.Thread(target=run, args=(name,)) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for name in names:
        assert_same(results[name], weights(started(BY_NAME[name], steps=STEPS)[0]))


@by_rule
def test_a_second_rule_is_refused(case: Case) -> None:
    model, optimizer = started(case, steps=1)
    handle = handle_of(optimizer)
    with pytest.raises(UserError, match="a rule is already attached"):
        case.attach(optimizer)
    assert handle_of(optimizer) is handle
    train(model, optimizer, range(1, STEPS))
    assert_same(weights(model), weights(started(case, steps=STEPS)[0]))


# ---- handles


def test_a_handle_in_a_with_statement_is_detached_at_its_end() -> None:
    model, optimizer = started(BY_NAME["stable"], attached=False)
    with attach(optimizer, Decoupled(LAM)) as handle:
        assert handle_of(optimizer) is handle
        train(model, optimizer, range(2))
    assert handle_of(optimizer) is None
    assert not optimizer._optimizer_step_pre_hooks

    def fail() -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), attach(optimizer, Cautious(Constant(0.1))):
        optimizer.step(fail)  # type: ignore[arg-type]  # it returns nothing
    assert handle_of(optimizer) is None
    assert [group["weight_decay"] for group in optimizer.param_groups] == [LAM, LAM, 0.0]


def test_what_a_handle_prints() -> None:
    _, optimizer = started(BY_NAME["stable"], attached=False)
    handle = attach(optimizer, Constant(0.25))
    assert repr(handle) == "<Handle of Constant(lam=0.25) on AdamW (3 groups), attached>"
    handle.detach()
    assert repr(handle) == "<Handle of Constant(lam=0.25) on AdamW (3 groups), detached>"
    del optimizer
    assert repr(handle) == "<Handle of Constant(lam=0.25) on no optimizer, detached>"


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
@pytest.mark.parametrize("inside", [False, True])
def test_a_handle_says_that_it_cannot_be_copied(duplicate: Callable[[Any], Any], inside: bool) -> None:
    """Nor can a trainer that holds it; the optimizer can."""
    model, optimizer = started(BY_NAME["stable"], steps=2)
    handle = handle_of(optimizer)
    trainer = {"model": model, "optimizer": optimizer, "handle": handle}
    if inside and duplicate is copy.copy:  # shares what it holds
        assert copy.copy(trainer)["handle"] is handle
        return
    with pytest.raises(
        UserError, match=r"Stable.* cannot be copied or pickled: .*halflife.attach\(copy, handle.rule\)"
    ):
        duplicate(trainer if inside else handle)
    train(model, optimizer, range(2, STEPS))
    assert_same(weights(model), weights(started(BY_NAME["stable"], steps=STEPS)[0]))


@needs_muon
def test_which_part_acts_on_a_group() -> None:
    model = Net()
    first, rest = split(model)
    optimizers = [torch.optim.Muon(first, lr=0.02), torch.optim.AdamW(rest, lr=0.02)]
    handle = attach(optimizers, Scheduled(PerGroup([Constant(0.1), Cautious(Decoupled(0.5)), Constant(0.3)]), until(9)))
    assert handle.rule_for(optimizers[0], 0) == Scheduled(Constant(0.1), until(9))
    assert handle.rule_for(optimizers[1], 0) == Cautious(Scheduled(Decoupled(0.5), until(9)))
    assert handle.rule_for(optimizers[1], 1) is None, "its weight_decay is 0"
    handle.detach()
    assert handle.rule_for(optimizers[0], 0) is None


PARTS: list[Rule | Applier | Penalty] = [
    Constant(0.25),
    L2(0.5),
    Cautious(Constant(0.25)),
    NormTarget(1.5),
    Toward(Constant(0.25)),
    NormTarget(),
    L2(0.25, until(3)),
    Toward(Constant(0.125), MovingAverage(0.5)),
    Constant(0.125),
    Scheduled(Cautious(Decoupled(1.0)), until(4)),
]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop])
@pytest.mark.parametrize("closure", [False, True])
def test_each_group_may_have_a_part_of_its_own(kind: Callable[..., Optimizer], closure: bool) -> None:
    """To the last bit as if it had an optimizer of its own; and so it resumes."""

    def gradients(parameters: list[nn.Parameter], step: int, first: int) -> float:
        for number, parameter in enumerate(parameters, first):
            generator = torch.Generator().manual_seed(step * 97 + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator) + parameter.detach()
        return 1.0

    def steps(optimizers: list[Optimizer], numbers: range) -> None:
        for step in numbers:
            for first, optimizer in enumerate(optimizers):
                mine = [parameter for group in optimizer.param_groups for parameter in group["params"]]
                make = functools.partial(gradients, mine, step, first)
                if closure:
                    optimizer.step(make)
                else:
                    make()
                    optimizer.step()

    def made() -> list[nn.Parameter]:
        generator = torch.Generator().manual_seed(1)
        return [nn.Parameter(torch.randn(3, 2, generator=generator)) for _ in PARTS]

    def grouped(parameters: list[nn.Parameter]) -> Optimizer:
        return kind([{"params": [parameter]} for parameter in parameters], lr=0.1, weight_decay=0.5)

    together, apart = made(), made()
    optimizer = grouped(together)
    handle = attach(optimizer, PerGroup(PARTS))
    alone = [kind([parameter], lr=0.1, weight_decay=0.5) for parameter in apart]
    handles = [attach(each, part) for each, part in zip(alone, PARTS, strict=True)]
    steps([optimizer], range(3))
    state, values = copy.deepcopy(optimizer.state_dict()), [parameter.detach().clone() for parameter in together]
    steps([optimizer], range(3, 6))
    steps(alone, range(6))
    assert_same([parameter.detach() for parameter in together], [parameter.detach() for parameter in apart])
    assert handle.fractions() == [r for each in handles for r in each.fractions()]

    resumed = made()
    with torch.no_grad():
        for parameter, value in zip(resumed, values, strict=True):
            parameter.copy_(value)
    other = grouped(resumed)
    attach(other, PerGroup(PARTS))
    other.load_state_dict(state)
    steps([other], range(3, 6))
    assert_same([parameter.detach() for parameter in resumed], [parameter.detach() for parameter in together])


@pytest.mark.filterwarnings(f"ignore:{FLOOR_BINDS}:UserWarning")
def test_a_mean_of_gradients_and_norms_in_one_checkpoint() -> None:
    """Stable measures all parameters, NormTarget remembers those of its group: both go on."""
    rule = PerGroup([Stable(0.5, floor=1.0), NormTarget(), Decoupled(1.0)])
    model, whole = Net(), Net()
    optimizers = [BY_NAME["stable"].optimizer(groups_of(net)) for net in (model, whole)]
    for each in optimizers:
        attach(each, rule)
    train(model, optimizers[0], range(HALF))
    train(whole, optimizers[1])
    resumed = Net(seed=99)
    resumed.load_state_dict(model.state_dict())
    optimizer = BY_NAME["stable"].optimizer(groups_of(resumed))
    optimizer.load_state_dict(copy.deepcopy(optimizers[0].state_dict()))
    attach(optimizer, rule)
    train(resumed, optimizer, range(HALF, STEPS))
    assert_same(weights(resumed), weights(whole))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_a_rule_for_each_group_is_one_for_each(count: int) -> None:
    _, optimizer = started(BY_NAME["stable"], attached=False)
    before = keys_of(optimizer)
    with pytest.raises(UserError, match=f"PerGroup has {count} rules and the optimizers have 3 groups"):
        attach(optimizer, PerGroup([Constant(0.1)] * count))
    assert keys_of(optimizer) == before


# ---- references that are the weights themselves


def test_the_models_own_state_as_reference_is_what_it_was() -> None:
    """state_dict() has the live tensors: the reference must not follow the weights, not after loading either."""
    model = Net()
    optimizer = torch.optim.SGD(groups_of(model), lr=0.1, momentum=0.9)
    start = copy.deepcopy(model.state_dict())
    attach(optimizer, Toward(Constant(0.5), model.state_dict()))
    train(model, optimizer, range(1, 3))
    optimizer.load_state_dict(optimizer.state_dict())  # references are looked up anew
    optimizer.state.clear()
    before = model.position.detach().clone()
    optimizer.zero_grad()
    model.position.grad = torch.zeros_like(before)
    optimizer.step()
    torch.testing.assert_close(model.position.detach(), before + 0.5 * (start["position"] - before))


# ---- detaching


@by_rule
def test_detach_gives_the_optimizer_back(case: Case) -> None:
    model, optimizer = started(case, steps=HALF)
    plain_model, plain = started(case, attached=False, steps=HALF)
    handle = handle_of(optimizer)
    assert handle is not None
    handle.detach()
    assert handle_of(optimizer) is None
    assert handle.fractions() == []
    assert keys_of(optimizer) == keys_of(plain)
    assert optimizer.defaults == plain.defaults
    for group, other in zip(optimizer.param_groups, plain.param_groups, strict=True):
        assert {key: group[key] for key in group if key != "params"} == {
            key: other[key] for key in other if key != "params"
        }
    assert vars(optimizer).keys() == vars(plain).keys()
    for name, value in vars(optimizer).items():
        if name.endswith("_hooks"):
            assert not value
    plain_model.load_state_dict(model.state_dict())
    plain.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for net, stepped in ((model, optimizer), (plain_model, plain)):
        train(net, stepped, range(HALF, STEPS))
    assert_same(weights(model), weights(plain_model))


@of_adamw
def test_rules_take_turns(case: Case) -> None:
    """After detach the next rule starts anew, with nothing left of the last one."""
    model, optimizer = started(case, steps=HALF)
    handle = handle_of(optimizer)
    assert handle is not None
    handle.detach()
    attach(optimizer, Decoupled(LAM))
    train(model, optimizer, range(HALF, STEPS))
    before = handle_of(optimizer)
    assert before is not None
    before.detach()
    case.attach(optimizer)
    train(model, optimizer, range(STEPS - 1, STEPS))
    assert optimizer.state_dict()["param_groups"][0]["halflife_step"] == 1
    if case.name == "stable":
        assert_follows_adam(optimizer)
