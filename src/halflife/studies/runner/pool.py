"""Runs a plan in local worker processes: one thread each, one run at a time, each resumable.

The parent hands out runs and listens. A worker trains and writes its run's folder (`halflife.studies.runner.worker`). If a
worker dies, only its run fails; if the parent dies, its workers end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import multiprocessing.process
import multiprocessing.resource_tracker
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Literal

from halflife.errors import UserError
from halflife.studies.evidence.claims import Origin
from halflife.studies.runner.plan import Plan, PlannedRun
from halflife.studies.runner.worker import Task, work
from halflife.studies.store.machine import available_cores
from halflife.studies.store.store import Store

__all__ = ["Event", "EventKind", "default_workers", "execute", "parent_failed", "timed_manifest"]

STOP_SECONDS = 300.0  # for the checkpoint of a run that is asked to stop
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


EventKind = Literal["started", "waiting", "progress", "finished", "failed"]


@dataclass(frozen=True)
class Event:
    """What happened to a run, and on which worker; the message says what a run waits for, or why it failed."""

    what: EventKind
    worker: int
    run: PlannedRun
    step: int = 0
    num_steps: int = 0
    loss: float = 0.0
    seconds: float = 0.0
    message: str = ""


def default_workers() -> int:
    """One worker for each accelerator, or for each core where there is none."""
    import torch

    return torch.accelerator.device_count() or available_cores()


def execute(
    store: Store,
    plan: Plan,
    missing: Sequence[PlannedRun],
    *,
    workers: int,
    listen: Callable[[Event], None],
    data_folder: str | None = None,
    notice: Callable[[str], object] = lambda text: None,
) -> list[str]:
    """Do what is missing of a plan. The store must be held by this process.

    Args:
        store: The store.
        plan: The plan.
        missing: Its runs that are not finished yet, in the order to do them.
        workers: Worker processes.
        listen: Told what workers report.
        data_folder: Where a data set that is not shipped lies.
        notice: Told that checkpoints are being written when the user stops it.

    Returns:
        Why runs failed, one sentence each.

    Raises:
        UserError: A worker met a mistake of the user's or a full disk; the other runs stop, too.
        KeyboardInterrupt: The user stopped it; finished runs and checkpoints are kept.
    """
    pool = _Pool(store, data_folder, plan.study.origin)
    with timed_manifest(store, plan, workers):
        try:
            with _sigterm_as_interrupt():
                return pool.work(deque(missing), workers, listen)
        except KeyboardInterrupt:
            notice("stopping: runs in progress write checkpoints first; Ctrl-C again does not wait for them")
            raise
        finally:
            pool.stop()


@contextlib.contextmanager
def timed_manifest(store: Store, plan: Plan, workers: int) -> Iterator[None]:
    """Write a plan's manifest before its runs, and again after them with the seconds that they took.

    Args:
        store: The store.
        plan: The plan.
        workers: Worker processes.

    Yields:
        Nothing.
    """
    name = f"{plan.study.name}-{plan.preset_name}"
    earlier = store.manifest(name)
    manifest = plan.manifest(workers, earlier, lambda: sum(store.run(run.id).finished for run in plan.needed))
    store.write_manifest(name, manifest)
    began, spent = time.perf_counter(), float(manifest["seconds"])
    try:
        yield
    finally:
        store.write_manifest(name, manifest | {"seconds": round(spent + time.perf_counter() - began, 1)})


def parent_failed(run: PlannedRun) -> str:
    """Why a run was not started: the run that it starts from failed."""
    return f"{run.arm.label}, seed {run.seed}, was not started: the run {run.parent_id}, from which it starts, failed"


@contextlib.contextmanager
def _sigterm_as_interrupt() -> Iterator[None]:
    """Let SIGTERM do what Ctrl-C does: checkpoints are written, then all processes end."""

    def interrupt(_signal: int, _frame: object) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _ctrl_c_blocked() -> Iterator[None]:
    """Let Ctrl-C wait. Processes that are started meanwhile never get it: the parent decides what it means."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    multiprocessing.resource_tracker.ensure_running()  # would unblock it when it starts with the first worker
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class _Pool:
    """Worker processes, and what each is doing."""

    def __init__(self, store: Store, data_folder: str | None, origin: Origin | None) -> None:
        self.store, self.data_folder, self.origin = store, data_folder, origin
        self.context = multiprocessing.get_context("spawn")
        self.workers: dict[Connection, tuple[int, multiprocessing.process.BaseProcess]] = {}
        self.busy: dict[Connection, PlannedRun] = {}
        self.waits: dict[Connection, str] = {}

    def work(self, missing: deque[PlannedRun], workers: int, listen: Callable[[Event], None]) -> list[str]:
        failures: list[str] = []
        for index in range(min(workers, len(missing))):
            self.start(index)
        idle = list(self.workers)
        failed: set[str] = set()
        while missing or self.busy:
            for child in [run for run in missing if run.parent_id in failed]:
                missing.remove(child)
                failed.add(child.id)
                listen(Event("failed", -1, child, message=parent_failed(child)))
            while idle and (run := self.next_of(missing)) is not None:
                link = idle.pop()
                self.busy[link] = run
                with contextlib.suppress(BrokenPipeError):  # a worker that died while starting is met below
                    link.send(Task(run.id, run.spec, run.parent_id))
                listen(Event("started", self.workers[link][0], run, message=self.waits.pop(link, "")))
            if not self.busy:  # whatever was left could not be started
                break
            for ready in multiprocessing.connection.wait(list(self.busy)):
                assert isinstance(ready, Connection)
                index, process = self.workers[ready]
                run = self.busy[ready]
                try:
                    what, payload = ready.recv()
                except (EOFError, ConnectionResetError):
                    process.join()
                    what = "died"
                    payload = {"message": _worker_ended(run, process.exitcode)}
                if what == "refused":
                    raise UserError(payload["message"])
                if what in {"progress", "waiting"}:
                    listen(Event(what, index, run, **payload))
                    continue
                del self.busy[ready]
                if what == "died":
                    del self.workers[ready]
                    if missing:
                        idle.append(self.start(index))
                else:
                    idle.append(ready)
                if what != "finished":
                    failures.append(payload["message"])
                    failed.add(run.id)
                listen(Event("finished" if what == "finished" else "failed", index, run, **payload))
        return failures

    def next_of(self, missing: deque[PlannedRun]) -> PlannedRun | None:
        """Take out the first run that need not wait for its parent."""
        undone = {run.id for run in missing} | {run.id for run in self.busy.values()}
        for run in missing:
            if run.parent_id not in undone:
                missing.remove(run)
                return run
        return None

    def start(self, index: int) -> Connection:
        with _ctrl_c_blocked():
            return self._start(index)

    def _start(self, index: int) -> Connection:
        here, there = self.context.Pipe()
        arguments = (there, index, str(self.store.path), self.data_folder, self.origin)
        process = self.context.Process(target=work, args=arguments, daemon=True)
        # Read by the math libraries when they are loaded, so it has to be there before the process is.
        kept = {name: os.environ.get(name) for name in THREAD_VARIABLES}
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))
        try:
            process.start()
        finally:
            for name, value in kept.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        there.close()
        self.workers[here] = (index, process)
        self.waits[here] = "importing torch"
        return here

    def stop(self) -> None:
        for _, process in self.workers.values():
            process.terminate()  # a run in progress writes a checkpoint first
        patience = time.monotonic() + STOP_SECONDS
        try:
            for _, process in self.workers.values():
                process.join(max(0.0, patience - time.monotonic()))
        finally:  # a second Ctrl-C does not wait
            for _, process in self.workers.values():
                process.kill()
            for link, (_, process) in self.workers.items():
                process.join()
                link.close()


def _worker_ended(run: PlannedRun, exitcode: int | None) -> str:
    """What is said of a run whose worker ended by itself."""
    if exitcode == 0:
        cause = "was ended by SIGTERM, which did not come from this command"
    elif exitcode is not None and exitcode < 0:
        cause = f"ended with signal {signal.Signals(-exitcode).name}"
        cause += ", perhaps for want of memory" if exitcode == -signal.SIGKILL else ""
    else:
        cause = f"ended with exit code {exitcode}"
    return (
        f"the worker of run {run.id} ({run.arm.label}, seed {run.seed}) {cause}: run the same command again, it goes on from"
        " the last checkpoint"
    )
