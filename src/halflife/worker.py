"""The life of a worker process: take a spec, train it, report, until the parent closes the link."""

from __future__ import annotations

import importlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
import time
import traceback
from multiprocessing.connection import Connection

from halflife.errors import HalflifeError, RunFailedError
from halflife.fingerprint import code_digest
from halflife.lab.sources import read_source
from halflife.machine import describe_machine, describe_versions, now
from halflife.specs.base import RunSpec
from halflife.specs.images import ImageRun
from halflife.store import Store

__all__ = ["work"]


def work(link: Connection, index: int, store_path: str, data_folder: str | None) -> None:
    """The life of a worker process: take a spec, train it, report, until the parent closes the link."""
    # Ctrl-C reaches the whole terminal; the parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    threading.Thread(target=_leave_with, args=(parent.sentinel,), daemon=True).start()
    import torch

    torch.set_num_threads(1)
    device = _device(index)
    store = Store(store_path)
    while True:
        try:
            identity: str
            spec: RunSpec
            identity, spec = link.recv()
        except EOFError:
            return
        began = time.perf_counter()
        try:
            _train(store, identity, spec, link, device, data_folder)
        except RunFailedError as error:
            link.send(("failed", {"message": f"run {identity} failed: {error}"}))
        except HalflifeError as error:
            link.send(("refused", {"message": str(error)}))
        except Exception:  # a bug must not look like a finished run, nor take the other runs down
            folder = store.run(identity)
            (folder.path / "traceback.txt").write_text(traceback.format_exc(), encoding="utf-8")
            last = traceback.format_exc().strip().splitlines()[-1]
            message = f"run {folder.id} stopped at an unexpected error ({last}): see {folder.path / 'traceback.txt'}"
            link.send(("failed", {"message": message}))
        else:
            link.send(("finished", {"seconds": time.perf_counter() - began}))


def _leave_with(sentinel: int) -> None:
    """End this process when the parent has ended, however it ended."""
    multiprocessing.connection.wait([sentinel])
    os._exit(1)


def _device(index: int) -> str:
    import torch

    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return "cpu"
    torch.backends.cudnn.deterministic = True  # resume to the same bits holds on an accelerator only so
    return f"{accelerator.type}:{index % torch.accelerator.device_count()}"


def _train(store: Store, identity: str, spec: RunSpec, link: Connection, device: str, data_folder: str | None) -> None:
    assert isinstance(spec, ImageRun)
    folder = store.run(identity)
    trainer = importlib.import_module(spec.trainer)
    with folder.locked():
        if folder.finished:
            return
        source = read_source(spec.data, data_folder)
        header = {
            "id": identity,
            "status": "running",
            "spec": spec.to_json(),
            "spec_digest": spec.digest(),
            "code_digest": code_digest(spec.trainer),
            "data": {"name": spec.data, "title": source.title, "sha256": source.sha256},
            "versions": describe_versions(),
            "machine": {**describe_machine(), "device": device},
            "started": now(),
        }
        folder.write_header(header)

        def progress(step: int, num_steps: int, loss: float) -> None:
            link.send(("progress", {"step": step, "num_steps": num_steps, "loss": loss}))

        began = time.perf_counter()
        try:
            trainer.train(
                spec,
                sink=folder.append,
                checkpoint=folder.checkpoint,
                progress=progress,
                data_folder=data_folder,
                device=device,
            )
        except RunFailedError as error:
            folder.write_header(header | {"status": "failed", "failure": str(error)})
            raise
        seconds = round(time.perf_counter() - began, 2)
        folder.write_header(header | {"status": "finished", "finished": now(), "seconds": seconds})
        # The checkpoint served to get here; the readings are the result.
        folder.checkpoint.unlink(missing_ok=True)
