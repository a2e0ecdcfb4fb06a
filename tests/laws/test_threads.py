"""Threads that train beside a probe notice nothing of it."""

from __future__ import annotations

import itertools
import random
import threading
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

import halflife
from halflife.laws import identify, isolation, laws_of
from halflife.laws.isolation import Draws
from halflife.laws.law import NotProbedError


class Beside:
    """A thread that trains: it makes tensors, draws numbers, steps an optimizer and warns, and writes it all down."""

    def __init__(self) -> None:
        self.drawn: list[tuple[float, float, float]] = []
        self.dtypes: Counter[torch.dtype] = Counter()
        self.steps = self.heard = 0
        self._started, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._train)

    def _train(self) -> None:
        weight = torch.nn.Parameter(torch.ones(2))
        weight.grad = torch.ones(2)
        optimizer = torch.optim.SGD([weight], lr=0.1)
        while not self._stop.is_set() or self.steps < 3:
            self.drawn.append((torch.rand(()).item(), random.random(), float(np.random.rand())))
            self.dtypes.update(made.dtype for made in (torch.zeros(1), torch.tensor(0.5), torch.arange(3) / 2))
            optimizer.step()
            self.steps += 1
            try:
                warnings.warn("from beside", UserWarning, stacklevel=1)  # an error here, as everywhere in the tests
            except UserWarning:
                self.heard += 1
            self._started.set()

    def __enter__(self) -> Beside:
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        self._thread.start()
        self._started.wait()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def expected(self) -> list[tuple[float, float, float]]:
        """What it draws if nobody interferes."""
        torch.manual_seed(3)
        random.seed(3)
        np.random.seed(3)
        return [(torch.rand(()).item(), random.random(), float(np.random.rand())) for _ in self.drawn]


def adamw(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=weight_decay)


def probe_with_rule() -> str | None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(3, 2))], lr=1e-9, momentum=0.9, weight_decay=0.1)
    halflife.attach(optimizer, halflife.Decoupled())
    return laws_of(optimizer)[0].name


# An optimizer that exists is not probed beside hooks that act on all: a copy must not call them.
@pytest.mark.parametrize(
    ("probe", "name"),
    [(lambda: identify(adamw).name, "decoupled"), (probe_with_rule, None)],
    ids=["identify", "laws_of"],
)
def test_a_thread_beside_a_probe_notices_nothing(probe: Callable[[], str | None], name: str | None) -> None:
    hooked: Counter[int] = Counter()
    handle = register_optimizer_step_pre_hook(lambda *args: hooked.update([threading.get_ident()]))
    try:
        with Beside() as beside:
            before = len(beside.drawn)
            assert probe() == name
            assert len(beside.drawn) > before, "it was beside"
    finally:
        handle.remove()
    assert beside.drawn == beside.expected()
    assert dict(beside.dtypes) == {torch.float32: 3 * beside.steps}
    assert beside.heard == beside.steps
    assert sum(hooked.values()) == beside.steps
    assert hooked.keys() == {beside._thread.ident}


class Drawing(torch.optim.AdamW):
    """Adds noise from each of the global generators to its gradients."""

    def step(self, closure: Any = None) -> Any:
        noise = random.random() + float(np.random.rand()) + torch.rand(()).item()
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.grad.add_(noise)
        return super().step(closure)


def drawing(parameters: Any, lr: float, weight_decay: float) -> torch.optim.Optimizer:
    return Drawing(parameters, lr, weight_decay=weight_decay)


def test_an_optimizer_that_draws_beside_a_thread_that_draws_has_its_law_or_none() -> None:
    with Beside():
        law = identify(drawing)
    if law.pathway == "not probed":  # depends on when the threads take turns
        assert law.notes[0].startswith("its steps depend on the global random generators")
    else:
        assert (law.name, law.coefficient) == ("decoupled", 1.0)


def test_draws_between_those_of_the_optimizer_are_noticed() -> None:
    draws, turns = Draws(torch.device("cpu")), itertools.count()

    def run() -> float:
        draws.seed(1)
        beside = threading.Thread(target=lambda: [random.random() for _ in range(next(turns))])
        beside.start()
        beside.join()
        return random.random()

    stop = threading.Event()
    idle = threading.Thread(target=stop.wait)
    idle.start()
    try:
        with pytest.raises(NotProbedError, match="from which another thread draws meanwhile; probe it while no other"):
            draws.repeatable(run, lambda one, other: one == other)
    finally:
        stop.set()
        idle.join()


def test_an_optimizer_that_draws_beside_a_thread_that_does_not() -> None:
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait)
    alone = identify(drawing)
    thread.start()
    try:
        beside = identify(drawing)
    finally:
        stop.set()
        thread.join()
    assert alone.name == "decoupled"
    # The noise is another one, because the default dtype is set in another way, and so is the last digit.
    assert beside.fraction == pytest.approx(alone.fraction, rel=1e-9)
    assert replace(beside, fraction=alone.fraction) == alone


def test_two_threads_that_probe_give_the_laws_that_one_gives() -> None:
    found: dict[str, str] = {}
    kinds = {"SGD": torch.optim.SGD, "AdamW": torch.optim.AdamW, "Adam": torch.optim.Adam}

    def probe(name: str) -> None:
        found[name] = identify(kinds[name]).describe()

    threads = [threading.Thread(target=probe, args=(name,)) for name in kinds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {name: identify(kind).describe() for name, kind in kinds.items()}
    assert torch.get_default_dtype() == torch.float32


def test_the_filters_of_warnings_are_as_they_were() -> None:
    before = list(warnings.filters)
    identify(adamw)
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning, match="after the probe"):
        warnings.warn("after the probe", UserWarning, stacklevel=1)


def test_threads_of_tools_are_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A progress bar watches its speed in a thread; a thread of the user's may make tensors at any time."""
    before = [isolation._is_alone()]
    done = threading.Event()
    waits: dict[str, Any] = {"__name__": "tqdm._monitor", "done": done}
    exec("def run():\n    done.wait()", waits)
    for run, alone in ((waits["run"], True), (done.wait, False)):
        thread = threading.Thread(target=run)
        thread.start()
        before.append(isolation._is_alone() is (alone and before[0]))
        done.set()
        thread.join()
        done.clear()
    assert before[1:] == [True, True]
