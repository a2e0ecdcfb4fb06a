"""DDP and FSDP2 under every rule, on processes of this machine that talk through gloo.

Two processes add their gradients in another order than one process does, so no run is equal to the single-process run
to the last bit. The run without any rule tells how far that alone leads; a rule may lead 4 times as far (it may pass
the difference on through a norm or a square) above a floor of 1e-7, which is a last bit of float32. A norm of one shard
in place of the whole would be off by some percent.
"""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests import ROOT
from tests.optim.distributed_worker import PARTIAL, QUICK, flat_or_not, read
from tests.oracles.every_rule import (
    BARE,
    BY_NAME,
    CASES,
    FACTORS,
    HALF,
    STEPS,
    Case,
    Net,
    distance,
    groups_of,
    name_of,
    train,
    weights,
)

FLOOR = 1e-7
by_rule = pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=() if case.name in QUICK else pytest.mark.slow) for case in CASES],
    ids=name_of,
)

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(), reason="torch without gloo"
)


def spawn(job: str, world: int, folder: Path) -> list[dict[str, Any]]:
    """Run the workers of a job; a hang or a failure of one ends all of them."""
    command = [sys.executable, "-m", "tests.optim.distributed_worker"]
    logs = [(folder / f"{job}-{rank}.log").open("wb") for rank in range(world)]
    processes = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder), job],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        for rank, log in enumerate(logs)
    ]
    try:
        deadline = time.monotonic() + 200
        while any(process.poll() is None for process in processes):
            failed = any(process.poll() not in {None, 0} for process in processes)
            if failed or time.monotonic() > deadline:
                break
            time.sleep(0.05)
    finally:
        for process in processes:
            process.kill()
            process.wait()
        for log in logs:
            log.close()
    ends = [process.returncode for process in processes]
    texts = "\n".join(f"{Path(log.name).name}: {Path(log.name).read_text()[-2000:]}" for log in logs)
    assert ends == [0] * world, f"exit codes {ends}\n{texts}"
    return [torch.load(folder / f"{job}-{rank}.pt", weights_only=True) for rank in range(world)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("distributed")


@pytest.fixture(scope="module")
def two(folder: Path, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    needs_all = any(item.path == request.path and item.get_closest_marker("slow") for item in request.session.items)
    return spawn("two" if needs_all else "two quickly", 2, folder)


@pytest.fixture(scope="module")
def four(folder: Path) -> list[dict[str, Any]]:
    return spawn("four", 4, folder)


def alone(case: Case, *, attached: bool = True, steps: int = STEPS) -> tuple[list[Tensor], list[float]]:
    """The run in this process, with which several tests compare."""
    return alone_by_name(case.name, attached, steps)


@cache
def alone_by_name(name: str, attached: bool, steps: int) -> tuple[list[Tensor], list[float]]:
    case = next(each for each in (*CASES, *BARE) if each.name == name)
    model = Net()
    optimizer = case.optimizer(groups_of(model))
    handle = case.attach(optimizer) if attached else None
    train(model, optimizer, range(steps))
    return weights(model), handle.fractions() if handle else []


def bare(case: Case) -> Case:
    return next(each for each in BARE if each.sgd is case.sgd)


def assert_as_close_as_no_rule(found: dict[str, Any], case: Case) -> None:
    """Compare with the single-process run, where the run without a rule sets what is close."""
    without = distance(found[f"bare {bare(case).name}"][0], alone(bare(case), attached=False)[0])
    assert 0.0 < without < 2e-7
    ours, _, fractions = found[case.name]
    expected, expected_fractions = alone(case)
    assert distance(ours, expected) <= 4 * without + FLOOR
    assert fractions == pytest.approx(expected_fractions, rel=1e-4, abs=1e-6)


def expected_collectives(case: Case) -> list[int]:
    steps = [case.collectives if factor else case.at_rest for factor in FACTORS]
    steps[next(step for step, factor in enumerate(FACTORS) if factor)] += case.first
    return steps


@by_rule
def test_ddp(case: Case, two: list[dict[str, Any]]) -> None:
    """All processes hold everything: nothing is reduced."""
    assert_as_close_as_no_rule(two[0]["ddp"], case)
    for one, other in zip(two[0]["ddp"][case.name][0], two[1]["ddp"][case.name][0], strict=True):
        assert torch.equal(one, other)
    for rank in two:
        assert rank["ddp"][case.name][1] == [0] * STEPS


@by_rule
def test_fsdp(case: Case, two: list[dict[str, Any]]) -> None:
    """Shards of 15, 7, 5 and 1 rows, and a parameter that both hold whole, which must not count twice."""
    assert two[0]["fsdp"][f"bare {bare(case).name}"][1] == [0] * STEPS
    assert_as_close_as_no_rule(two[0]["fsdp"], case)
    for rank in two:
        assert rank["fsdp"][case.name][1] == expected_collectives(case)
    for one, other in zip(two[0]["fsdp"][case.name][0], two[1]["fsdp"][case.name][0], strict=True):
        assert torch.equal(one, other)


@by_rule
def test_an_overflow_in_one_shard_stops_all(case: Case, two: list[dict[str, Any]]) -> None:
    """And the run goes on as if the step had not been."""
    without = distance(two[0]["fsdp"][f"bare {bare(case).name}"][0], alone(bare(case), attached=False)[0])
    for rank in two:
        found, unmoved, rested = rank["overflows"][case.name]
        assert unmoved
        assert rested
        assert distance(found, alone(case, steps=HALF)[0]) <= 4 * without + FLOOR


@by_rule
def test_resume_in_two_processes(case: Case, two: list[dict[str, Any]]) -> None:
    """To the same bits as the run that went on."""
    for flat in flat_or_not(case):
        for one, other in zip(two[0]["resumed"][f"{case.name}-{flat}"], two[0]["fsdp"][case.name][0], strict=True):
            assert torch.equal(one, other)


@by_rule
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")  # as no_dist says
def test_resume_in_one_process(case: Case, two: list[dict[str, Any]], folder: Path) -> None:
    """A run that began on two processes."""
    without = distance(two[0]["fsdp"][f"bare {bare(case).name}"][0], alone(bare(case), attached=False)[0])
    for flat in flat_or_not(case):
        model = Net(seed=99)
        optimizer = case.optimizer(groups_of(model))
        case.attach(optimizer)
        read(model, optimizer, flat, folder / f"{case.name}-{flat}", alone=True)
        train(model, optimizer, range(HALF, STEPS))
        assert distance(weights(model), alone(case)[0]) <= 4 * without + FLOOR


def test_a_norm_from_clipping_shards(two: list[dict[str, Any]]) -> None:
    """It is a DTensor; handing it over saves the collective."""
    measured, _, counts = two[0]["norms"]["measured"]
    assert counts == [1] * STEPS
    handed, handing, counts = two[0]["norms"]["handed over"]
    assert counts == [0] * STEPS
    assert handing in ([0] * STEPS, [2] * STEPS)  # torch 2.8 leaves the norm in parts, which are added up here
    for ours, theirs in zip(handed, measured, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-6)
    assert any(fraction > 0 for fractions in measured for fraction in fractions)


def test_attached_in_the_middle_of_a_sharded_run(two: list[dict[str, Any]]) -> None:
    case = BY_NAME["stable"]
    model = Net()
    optimizer = case.optimizer(groups_of(model))
    train(model, optimizer, range(HALF))
    case.attach(optimizer)
    train(model, optimizer, range(HALF, STEPS))
    without = distance(two[0]["fsdp"][f"bare {BARE[0].name}"][0], alone(BARE[0], attached=False)[0])
    assert distance(two[0]["attached later"], weights(model)) <= 4 * without + FLOOR


@pytest.mark.parametrize("name", PARTIAL)
@pytest.mark.parametrize("placement", ["S(0)", "R"])
def test_gradients_that_are_not_added_up_yet(name: str, placement: str, two: list[dict[str, Any]]) -> None:
    """Under tensor parallelism torch's optimizers add them up in their own arithmetic; so must the rules."""
    for rank in two:
        ours, expected = rank["gradients in parts"][f"{name} {placement}"]
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("use_orig_params", [False, True])
def test_norms_are_refused_under_the_first_fsdp(use_orig_params: bool, two: list[dict[str, Any]]) -> None:
    """Each process would measure its own part only, and shrink by another fraction."""
    found = two[0]["first fsdp"]
    for name in ("stable", "norm-target", "sphere"):
        assert "FullyShardedDataParallel shows each process its own part only" in found[f"{name} {use_orig_params}"]
    assert found[f"cautious {use_orig_params}"] == "taken"


@pytest.mark.slow
@by_rule
def test_hsdp(case: Case, four: list[dict[str, Any]]) -> None:
    """Two by two processes: each pair holds everything, so the sum is over one pair."""
    assert_as_close_as_no_rule(four[0]["hsdp"], case)
    for rank in four:
        assert rank["hsdp"][case.name][1] == expected_collectives(case)


def test_decay_in_low_precision(two: list[dict[str, Any]]) -> None:
    """All processes hold the same replicas, each shard decays as the whole, and a checkpoint is gone on from to the bit."""
    found = [each["low precision"] for each in two]
    for mode in ("accumulate", "stochastic"):
        (mine, resumed, shard, pending), (theirs, _, other, others) = (each[mode] for each in found)
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
        assert all(torch.equal(a, b) for a, b in zip(mine, resumed, strict=True))
        assert pending == others
        expected = 1.7 * 0.999**400 * math.exp(pending[0][0])
        for weight in (*mine, shard, other):
            walk = 0.05 if mode == "stochastic" else 0.0  # of a weight; ulps of a number of bfloat16 are 2^-7 at most
            allowed = 0.003 + 5.0 * walk / weight.numel() ** 0.5
            assert weight.double().mean().item() == pytest.approx(expected, rel=allowed)
            assert len(weight.unique()) > 1
        assert not torch.equal(shard[:31], other[:31])  # not the same offsets
