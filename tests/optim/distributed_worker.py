"""One process of a distributed run under every rule; see ``tests/optim/test_distributed.py``.

    python -m tests.optim.distributed_worker RANK WORLD FOLDER JOB

Each process stores what it found in FOLDER/JOB-RANK.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from halflife.errors import UserError
from halflife.optim.actions import LowPrecision
from halflife.optim.attaching import Handle, attach
from halflife.rules import L2, Applier, Cautious, Constant, Decoupled, NormTarget, Penalty, Rule, Stable, Toward
from tests.oracles.every_rule import BARE, BY_NAME, CASES, HALF, STEPS, Case, Net, batch, groups_of, set_lr

Wrap = Callable[[Net], nn.Module]


def ddp(model: Net) -> nn.Module:
    return DistributedDataParallel(model)


def shard(module: nn.Module, **settings: Any) -> None:
    """As `fully_shard`, but with sums that are divided: gloo takes a mean for a sum in torch 2.8, without a word."""
    fully_shard(module, **settings).set_force_sum_reduction_for_comms(True)


def fsdp(model: Net) -> nn.Module:
    """Shard everything but the positions, which every process keeps whole; rows 15, 7, 5 and 1 on two processes."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(model.block, mesh=mesh)
    shard(model, mesh=mesh, ignored_params={model.position})
    return model


def all_sharded(model: Net) -> nn.Module:
    """Shard everything: torch's GradScaler and clipping refuse lists in which only some tensors are distributed."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    shard(model.block, mesh=mesh)
    shard(model, mesh=mesh)
    return model


def hsdp(model: Net) -> nn.Module:
    """Shard over pairs of processes, and replicate the pairs."""
    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("replicate", "shard"))
    shard(model.block, mesh=mesh)
    shard(model, mesh=mesh, ignored_params={model.position})
    return model


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, wherever its parts are."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found.detach().clone()


def backward(wrapped: nn.Module, model: Net, step: int, scale: Callable[[Tensor], Tensor] = lambda loss: loss) -> None:
    """Make the gradient of the mean over all processes, each with its part of the batch."""
    tokens_BL, goals_B = batch(step)
    part = slice(dist.get_rank(), None, dist.get_world_size())
    loss = (wrapped(tokens_BL[part]) - goals_B[part]).square().mean()
    scale(loss).backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
    if not isinstance(wrapped, DistributedDataParallel) and not isinstance(model.position, DTensor):
        assert model.position.grad is not None  # nobody reduces the gradient of what is not sharded
        dist.all_reduce(model.position.grad)
        model.position.grad /= dist.get_world_size()


def started(
    case: Case, wrap: Wrap, *, seed: int = 0, attached: bool = True, **settings: Any
) -> tuple[Net, nn.Module, Optimizer, Handle | None]:
    model = Net(seed)
    wrapped = wrap(model)
    optimizer = case.optimizer(groups_of(model), **settings)
    return model, wrapped, optimizer, case.attach(optimizer) if attached else None


def train(model: Net, wrapped: nn.Module, optimizer: Optimizer, steps: Sequence[int]) -> list[int]:
    """Take steps; return the number of collectives that each of them made."""
    counts = []
    for step in steps:
        set_lr(optimizer, step)
        optimizer.zero_grad()
        backward(wrapped, model, step)
        with counted() as communication:
            optimizer.step()
        counts.append(communication.get_total_counts())
    return counts


def counted() -> CommDebugMode:
    """Count collectives."""
    return CommDebugMode()  # type: ignore[no-untyped-call]  # torch leaves it without types


def parameters(model: nn.Module) -> list[Tensor]:
    return [whole(parameter) for parameter in model.parameters()]


def every_rule(wrap: Wrap, cases: Sequence[Case], checkpoints: Path | None = None) -> dict[str, Any]:
    """Weights, fractions and collectives per step of every rule, and of no rule at all; perhaps saved in the middle."""
    found = {}
    for case, attached in [*((case, False) for case in BARE), *((case, True) for case in cases)]:
        model, wrapped, optimizer, handle = started(case, wrap, attached=attached)
        counts = train(model, wrapped, optimizer, range(HALF))
        if checkpoints is not None and attached:
            for flat in flat_or_not(case):
                save(state_of(model, optimizer, flat), checkpoint_id=checkpoints / f"{case.name}-{flat}")
        counts += train(model, wrapped, optimizer, range(HALF, STEPS))
        fractions = handle.fractions() if handle else []
        found[case.name if attached else f"bare {case.name}"] = (parameters(model), counts, fractions)
    return found


def flat_or_not(case: Case) -> tuple[bool, ...]:
    """Every rule nested; those that keep something per parameter flat, too."""
    return (
        (False, True)
        if case.name in {"stable", "norm-target-first", "toward-an-average", "per-group-stable"}
        else (False,)
    )


def state_of(model: Net, optimizer: Optimizer, flat: bool) -> dict[str, Any]:
    """What torch.distributed.checkpoint saves and loads."""
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    return {"model": get_model_state_dict(model), "optimizer": state}


def read(model: Net, optimizer: Optimizer, flat: bool, checkpoint: Path, *, alone: bool = False) -> None:
    """Fill fresh objects from a checkpoint."""
    state = state_of(model, optimizer, flat)
    load(state, checkpoint_id=checkpoint, no_dist=alone)
    set_model_state_dict(model, state["model"])
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    set_optimizer_state_dict(model, optimizer, state["optimizer"], options=options)


def resumed(folder: Path, cases: Sequence[Case]) -> dict[str, Any]:
    """Go on from the checkpoints of `every_rule` in fresh objects."""
    found = {}
    for case in cases:
        for flat in flat_or_not(case):
            model, wrapped, optimizer, _ = started(case, fsdp, seed=99)
            read(model, optimizer, flat, folder / f"{case.name}-{flat}")
            train(model, wrapped, optimizer, range(HALF, STEPS))
            found[f"{case.name}-{flat}"] = parameters(model)
    return found


def overflows(cases: Sequence[Case]) -> dict[str, Any]:
    """A scaler, and an infinite gradient in the shard of one process only."""
    found = {}
    for case in cases:
        for fused in [False] if case.sgd else [True]:  # torch has no fused SGD on DTensors
            model, wrapped, optimizer, handle = started(case, all_sharded, fused=fused)
            scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
            unmoved, rested = True, True
            for step in (0, 1, 2, 2, *range(3, HALF)):
                overflow = step == 2 and scaler.get_scale() == 2.0**10
                set_lr(optimizer, step)
                optimizer.zero_grad()
                backward(wrapped, model, step, scaler.scale)
                if overflow:
                    gradient = model.block.up.weight.grad
                    assert isinstance(gradient, DTensor)
                    if dist.get_rank() == 1:
                        gradient.to_local()[0, 0] = torch.inf
                    before = parameters(model)
                scaler.step(optimizer)
                scaler.update()
                if overflow:
                    unmoved = all(torch.equal(a, b) for a, b in zip(parameters(model), before, strict=True))
                    assert handle is not None
                    rested = not fused or handle.fractions() == [0.0, 0.0, 0.0]
            found[case.name] = (parameters(model), unmoved, rested)
    return found


def handed_over() -> dict[str, Any]:
    """Stable with the norm that clipping answers, which is a DTensor, and with its own; everything sharded."""
    found: dict[str, Any] = {}
    for hand_over in (False, True):
        model, wrapped, optimizer, handle = started(BY_NAME["stable"], all_sharded)
        assert handle is not None
        counts, handing, fractions = [], [], []
        for step in range(STEPS):
            set_lr(optimizer, step)
            optimizer.zero_grad()
            backward(wrapped, model, step)
            norm = nn.utils.clip_grad_norm_(model.parameters(), 3.0)
            with counted() as communication:
                if hand_over:
                    handle.hand_over_norm(norm, max_norm=3.0)
            handing.append(communication.get_total_counts())
            with counted() as communication:
                optimizer.step()
            counts.append(communication.get_total_counts())
            fractions.append(handle.fractions())
        found["handed over" if hand_over else "measured"] = (fractions, handing, counts)
    return found


def attached_later() -> list[Tensor]:
    """Stable begins in the middle of a run, and reads Adam's sharded second moment."""
    model, wrapped, optimizer, _ = started(BY_NAME["stable"], fsdp, attached=False)
    train(model, wrapped, optimizer, range(HALF))
    BY_NAME["stable"].attach(optimizer)
    train(model, wrapped, optimizer, range(HALF, STEPS))
    return parameters(model)


PARTIAL: dict[str, Callable[[Tensor], Rule | Applier | Penalty]] = {
    "stable": lambda goal: Stable(0.1),
    "l2": lambda goal: L2(0.3),
    "l2 second": lambda goal: L2(0.3, into="second"),
    "cautious": lambda goal: Cautious(Constant(0.2)),
    "norm": lambda goal: NormTarget(2.0),
    "toward": lambda goal: Toward(Constant(0.1), [goal]),
}


def gradients_in_parts() -> dict[str, Any]:
    """Tensor parallelism: gradients that nobody has added up yet, and a reference sharded in another way."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    generator = torch.Generator().manual_seed(0)
    start, goal = (torch.randn(5, 4, generator=generator) for _ in range(2))
    parts = [[torch.randn(5, 4, generator=generator) for _ in range(dist.get_world_size())] for _ in range(4)]
    found = {}
    for name, rule in PARTIAL.items():
        for placement in (Shard(0), Replicate()):
            weight = nn.Parameter(distribute_tensor(start.clone(), mesh, [placement]))
            reference = distribute_tensor(goal.clone(), mesh, [Shard(1)])
            alone = nn.Parameter(start.clone())
            for parameter, target, distributed in ((weight, reference, True), (alone, goal, False)):
                optimizer = torch.optim.AdamW([parameter], lr=0.1, weight_decay=0.1)
                attach(optimizer, rule(target))
                for part in parts:
                    whole_gradient = torch.stack(part).sum(0)
                    mine = DTensor.from_local(part[dist.get_rank()].clone(), mesh, [Partial()])
                    parameter.grad = mine if distributed else whole_gradient
                    optimizer.step()
            found[f"{name} {placement}"] = (whole(weight), alone.detach())
    return found


def first_fsdp() -> dict[str, Any]:
    """What attach says to FullyShardedDataParallel, whose parameters are parts without a trace of the whole."""
    found = {}
    for use_orig_params in (False, True):
        model = FullyShardedDataParallel(Net(), device_id=torch.device("cpu"), use_orig_params=use_orig_params)
        for name in ("stable", "norm-target", "sphere", "cautious"):
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.1)
            try:
                BY_NAME[name].attach(optimizer)
                found[f"{name} {use_orig_params}"] = "taken"
            except UserError as error:
                found[f"{name} {use_orig_params}"] = str(error)
    return found


def low_precision(folder: Path) -> dict[str, Any]:
    """bfloat16 weights, one that is sharded and one that each process keeps whole, under each remedy; resumed in the middle."""
    found: dict[str, Any] = {}
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))

    def made(mode: LowPrecision, fill: float) -> tuple[nn.Module, Optimizer]:
        model = nn.Sequential(nn.Linear(64, 63, bias=False), nn.Linear(63, 33, bias=False)).to(torch.bfloat16)
        for parameter in model.parameters():
            nn.init.constant_(parameter, fill)
        shard(model[0], mesh=mesh)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=1.0)
        attach(optimizer, Decoupled(1.0), low_precision=mode)
        return model, optimizer

    def steps(model: nn.Module, optimizer: Optimizer, count: int) -> None:
        for _ in range(count):
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            optimizer.step()

    modes: tuple[Literal["accumulate", "stochastic"], ...] = ("accumulate", "stochastic")
    for mode in modes:
        model, optimizer = made(mode, 1.7)
        steps(model, optimizer, 200)
        checkpoint = folder / f"low-precision-{mode}"
        save({"optimizer": get_optimizer_state_dict(model, optimizer)}, checkpoint_id=checkpoint)
        weights = [parameter.detach().clone() for parameter in model.parameters()]
        steps(model, optimizer, 200)
        first = next(model.parameters())
        assert isinstance(first, DTensor)
        local = first.to_local().detach().clone()
        other, resumed = made(mode, 0.3)
        steps(other, resumed, 7)
        state = {"optimizer": get_optimizer_state_dict(other, resumed)}
        load(state, checkpoint_id=checkpoint)
        set_optimizer_state_dict(other, resumed, state["optimizer"])
        with torch.no_grad():
            for parameter, weight in zip(other.parameters(), weights, strict=True):
                parameter.copy_(weight)
        steps(other, resumed, 200)
        pending = [group["halflife_pending"] for group in optimizer.state_dict()["param_groups"]]
        found[mode] = (parameters(model), parameters(other), local, pending)
    return found


# Rules that communicate, that remember something, and that act in torch's own pass.
QUICK = (
    *("decoupled-sgd", "corrected-own", "stable", "per-group-stable", "norm-target-first"),
    *("cautious-stable", "toward-an-average", "l2-own-after"),
)


def two_quickly(folder: Path) -> dict[str, Any]:
    """What two processes do, for some of the rules."""
    return two(folder, [BY_NAME[name] for name in QUICK])


def two(folder: Path, cases: Sequence[Case] = CASES) -> dict[str, Any]:
    """What two processes do."""
    return {
        "ddp": every_rule(ddp, cases),
        "fsdp": every_rule(fsdp, cases, folder),
        "resumed": resumed(folder, cases),
        "overflows": overflows(cases),
        "norms": handed_over(),
        "attached later": attached_later(),
        "gradients in parts": gradients_in_parts(),
        "first fsdp": first_fsdp(),
        "low precision": low_precision(folder),
    }


def four(folder: Path) -> dict[str, Any]:
    """What four do."""
    return {"hsdp": every_rule(hsdp, CASES)}


JOBS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "two": two,
    "two quickly": two_quickly,
    "four": four,
}


def main(rank: int, world: int, folder: Path, job: str) -> None:
    """Join the others, do the job, and store what was found."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder / job}", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    try:
        torch.save(JOBS[job](folder), folder / f"{job}-{rank}.pt")
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
