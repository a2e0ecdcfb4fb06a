"""What a worker process does: it takes a spec, trains it and reports, until the parent closes the link."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from halflife.errors import DivergedError, HalflifeError, RunFailedError, RunStoppedError
from halflife.studies.runner.plan import describe_data
from halflife.studies.specs.base import RunSpec
from halflife.studies.store.machine import describe_commit, describe_machine, describe_versions, now
from halflife.studies.store.store import RunFolder, Store

if TYPE_CHECKING:
    from halflife.studies.evidence.claims import Origin
    from halflife.studies.lab.text.parallel import DataParallelContext

__all__ = ["Task", "header_of", "keep_traceback", "train_run", "waits_for", "work"]


PR_SET_PDEATHSIG = 1  # of prctl: the signal that a process gets when its parent ends


class Task(NamedTuple):
    """What a worker is told: the run's name, what it is, and the name of the run that it starts from."""

    id: str
    spec: RunSpec
    parent_id: str | None


def work(link: Connection, index: int, store_path: str, data_folder: str | None, origin: Origin | None = None) -> None:
    """Take specs from ``link``, train each and report, until the parent closes the link or asks to stop.

    ``origin`` is the file of a user's own study, which may define the specs and what trains them.
    """
    # Ctrl-C reaches all processes of a terminal, and the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    if sys.platform == "linux":  # even while it is stopped
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    # `os._exit` as it is now: while a user's file is imported, it raises (`halflife.user_code`).
    threading.Thread(target=_leave_with, args=(parent.sentinel, os._exit), daemon=True).start()
    if origin is not None:
        from halflife.studies.catalog.own import load_again

        try:
            load_again(origin)
        except HalflifeError as error:
            link.send(("refused", {"message": str(error)}))
            return
    import torch

    torch.set_num_threads(1)
    device = _device(index)
    store = Store(store_path)
    stop = _Stop()

    def progress(step: int, num_steps: int, loss: float) -> None:
        link.send(("progress", {"step": step, "num_steps": num_steps, "loss": loss}))

    while not stop.asked:  # it may have been asked in a run that ended by an error, for example on a full disk
        try:
            run: Task = link.recv()
        except EOFError:
            return
        if waits := waits_for(store, run):
            link.send(("waiting", {"message": waits}))
        began = time.perf_counter()
        try:
            with stop.deferred():
                train_run(store, run, progress=progress, device=device, data_folder=data_folder, stop=stop)
        except RunStoppedError:
            return
        except RunFailedError as error:
            link.send(("failed", {"message": f"run {run.id} failed: {error}"}))
        except HalflifeError as error:
            link.send(("refused", {"message": str(error)}))
        except Exception as error:  # a bug must not look like a finished run, nor take the other runs down
            link.send(("failed", {"message": f"run {run.id} stopped at {keep_traceback(error, store.run(run.id))}"}))
        else:
            link.send(("finished", {"seconds": time.perf_counter() - began}))


def waits_for(store: Store, run: Task) -> str:
    """What is read before the first step of a run, in words."""
    parts = ["data"] if run.spec.data_module else []
    parts += ["parent run"] if run.parent_id is not None else []
    parts += ["checkpoint"] if store.run(run.id).checkpoint.exists() else []
    return f"reading {', '.join(parts)}" if parts else ""


def keep_traceback(error: Exception, folder: RunFolder | None) -> str:
    """Describe an unexpected error to stand in a sentence, and keep its traceback in the folder of its run if there is one."""
    last = textwrap.shorten((str(error).strip().splitlines() or [""])[-1], 120, placeholder=" ...")
    words = f"an unexpected error ({type(error).__name__}: {last})"
    if folder is not None:
        path = folder.path / "traceback.txt"
        with contextlib.suppress(OSError):  # on a full disk the sentence must do
            path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
            words += f", see {path}"
    return words


def _leave_with(sentinel: int, leave: Callable[[int], object]) -> None:
    """End this process when the parent has ended, however it ended."""
    multiprocessing.connection.wait([sentinel])
    leave(1)


def _device(index: int) -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    torch.backends.cudnn.deterministic = True  # resume to the same bits holds on an accelerator only so
    return f"{accelerator.type}:{index % torch.accelerator.device_count()}"


class _Stop:
    """SIGTERM: a run that trains writes a checkpoint first, a worker that waits ends at once."""

    def __init__(self) -> None:
        self.asked = self.training = False
        signal.signal(signal.SIGTERM, self.handle)

    def handle(self, _signal: int, _frame: object) -> None:
        self.asked = True
        if not self.training:
            raise SystemExit(0)

    def __call__(self) -> bool:
        return self.asked

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """While a run trains, which asks by calling this."""
        self.training = True
        try:
            yield
        finally:
            self.training = False


def header_of(
    run: RunFolder, spec: RunSpec, device: str, data_folder: str | None, parent: str | None
) -> dict[str, Any]:
    """What ``run.json`` says of a run that starts, on ``device`` and from the run ``parent`` if it has one."""
    data = describe_data(spec, data_folder)
    header: dict[str, Any] = {
        "id": run.id,
        "status": "running",
        "spec": spec.to_json(),
        "spec_digest": spec.digest(),
        "trainer": {"name": spec.trainer.name, "version": spec.trainer.version},
        "data": {"name": data.name, "title": data.title, "sha256": data.sha256},
        "versions": describe_versions(),
        "commit": describe_commit(),
        "machine": {**describe_machine(), "device": device},
        "started": now(),
    }
    return header if parent is None else header | {"parent": parent}


def train_run(
    store: Store,
    run: Task,
    *,
    progress: Callable[[int, int, float], None],
    device: str,
    data_folder: str | None,
    stop: Callable[[], bool],
    world: DataParallelContext | None = None,
) -> None:
    """Train a run and write its folder; of several processes that train it together, the first one writes.

    Args:
        store: Where its folder is.
        run: What to train.
        progress: Told the steps done, the steps in all and the loss.
        device: Where it is trained.
        data_folder: Where data that are not shipped lie.
        stop: Whether it is to write a checkpoint and end.
        world: The processes that train it together (``None``: this one alone).

    Raises:
        RunFailedError: It failed, as its folder says, too.
    """
    import torch

    from halflife.studies.lab.trainer import Context, train

    spec, folder = run.spec, store.run(run.id)
    parent = None if run.parent_id is None else store.run(run.parent_id).kept
    context = Context(device=torch.device(device), data_folder=data_folder, parent=parent, parallel=world)
    if world is not None and world.rank > 0:
        train(spec, context, sink=lambda _reading: None, folder=folder.path, stop=stop)
        return
    with folder.locked():
        if folder.finished:
            return
        header = header_of(folder, spec, device, data_folder, run.parent_id)
        if world is not None:
            header["world"] = {"size": world.size, "form": world.form}

        def say(**more: Any) -> None:
            folder.write_header(header | {"readings": folder.record()} | more)

        say()
        began = time.perf_counter()
        try:
            cost = train(
                spec, context, sink=folder.append, folder=folder.path, saving=say, progress=progress, stop=stop
            )
        except RunFailedError as error:
            diverged = {"diverged_at": error.step} if isinstance(error, DivergedError) else {}
            say(status="failed", failure=str(error), **diverged)
            raise
        seconds = round(time.perf_counter() - began, 2)
        folder.finish(header | {"finished": now(), "seconds": seconds, "cost": cost})
        # The checkpoint served to get here; the readings are the result.
        folder.discard_checkpoint()
