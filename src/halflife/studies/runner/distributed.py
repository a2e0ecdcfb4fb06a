"""The missing runs of a plan, one after the other, each on all processes that torchrun started.

    torchrun --nproc-per-node 8 -m halflife study run NAME --preset paper --fsdp

Rank 0 holds the store, writes readings and prints. It tells the others which runs are missing, and all ranks train them
(`halflife.studies.lab.text.distributed`). They must see the same files.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from halflife.errors import HalflifeError, RunFailedError, RunStoppedError, UserError
from halflife.studies.runner.plan import Plan, PlannedRun
from halflife.studies.runner.pool import Event, parent_failed, timed_manifest
from halflife.studies.runner.worker import Task, keep_traceback, train_run, waits_for
from halflife.studies.specs.trainers import TEXT
from halflife.studies.store.store import RunFolder, Store

if TYPE_CHECKING:
    from halflife.studies.lab.text.distributed import Replicated

__all__ = ["Rank", "process_group"]

EXIT_OTHER_RANK, EXIT_REFUSED, EXIT_STOPPED = 1, 2, 130


class Rank:
    """This process, as one of those that train together.

    Args:
        store: Where runs are.
        world: The process group, and how the model is spread over it.
    """

    def __init__(self, store: Store, world: Replicated) -> None:
        self.store, self.world = store, world
        self.stop_asked = False
        self.folder: RunFolder | None = None

    @property
    def description(self) -> str:
        """How many processes train together, and by what."""
        size, form = self.world.size, "FSDP2" if self.world.form == "fsdp" else "DDP"
        return f"{size} process{'es' if size > 1 else ''} with {form}"

    def ask_to_stop(self, _signal: int, _frame: object) -> None:
        """Handle SIGTERM or Ctrl-C: the run in progress writes a checkpoint first."""
        self.stop_asked = True

    def execute(
        self,
        plan: Plan,
        missing: Sequence[PlannedRun],
        *,
        listen: Callable[[Event], None] = lambda event: None,
        data_folder: str | None = None,
    ) -> list[str]:
        """Train the missing runs of a plan as `halflife.studies.runner.pool.execute` does; rank 0 says which are missing.

        Returns:
            Why runs failed, one sentence each.

        Raises:
            UserError: Rank 0 names a run that is not planned here.
        """
        import torch
        import torch.distributed as dist

        box = [[run.id for run in missing]]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        runs = {run.id: run for run in plan.needed}
        unknown = [name for name in box[0] if name not in runs]
        if unknown:
            raise UserError(
                f"rank 0 starts the run {unknown[0]}, which is not planned here: give all processes the same code, data and"
                " options"
            )
        failures: list[str] = []
        failed: set[str] = set()
        with timed_manifest(self.store, plan, workers=1) if self.world.rank == 0 else contextlib.nullcontext():
            for run in (runs[name] for name in box[0]):
                if run.parent_id in failed:
                    message = parent_failed(run)
                else:
                    began = time.perf_counter()
                    failure = self._train(run, listen, data_folder)
                    if failure is None:
                        listen(Event("finished", 0, run, seconds=time.perf_counter() - began))
                        continue
                    failures.append(message := failure)
                failed.add(run.id)
                listen(Event("failed", 0, run, message=message))
        return failures

    def _train(self, run: PlannedRun, listen: Callable[[Event], None], data_folder: str | None) -> str | None:
        """Train one run; the answer is why it failed."""
        if self.world.any(self.stop_asked):
            raise KeyboardInterrupt
        self.folder = self.store.run(run.id)
        task = Task(run.id, run.spec, run.parent_id)
        listen(Event("started", 0, run, message=waits_for(self.store, task)))
        with contextlib.suppress(RunStoppedError):
            try:
                train_run(
                    self.store,
                    task,
                    progress=lambda step, num_steps, loss: listen(
                        Event("progress", 0, run, step=step, num_steps=num_steps, loss=loss)
                    ),
                    device=str(self.world.device),
                    data_folder=data_folder,
                    stop=lambda: self.stop_asked,
                    world=self.world,
                )
            except RunFailedError as error:
                return f"run {run.id} failed: {error}"
            return None
        raise KeyboardInterrupt  # here, so that no traceback holds the model of the run that stopped


@contextlib.contextmanager
def process_group(store: Store, plans: Sequence[Plan], *, fsdp: bool) -> Iterator[Rank | None]:
    """Join the processes that torchrun started. Whatever happens to them, one of them says it.

    Yields:
        This process as one of them; ``None`` when torchrun did not start it.

    Raises:
        UserError: ``fsdp`` without torchrun, or another mistake of the user's that this process is the first to meet.
        RunFailedError: An unexpected error, whose traceback is kept beside the run.
        KeyboardInterrupt: The user stopped it; rank 0 says so.
        SystemExit: Another rank says what happened.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        if fsdp:
            raise UserError(
                "--fsdp shards a model over the processes of torchrun, which did not start this one: start it by"
                " `torchrun --nproc-per-node N -m halflife study run ...`"
            )
        yield None
        return
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    number, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    key_value_store, rank = None, None
    before = {which: signal.getsignal(which) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        key_value_store = next(rendezvous("env://"))[0]  # torchrun holds it, so that it outlives any of the ranks
        rank = Rank(store, _init_process_group(key_value_store, number, size, fsdp=fsdp))
        for which in before:
            signal.signal(which, rank.ask_to_stop)
        for plan in plans:  # here, where the first to refuse it is not ended by SIGTERM before it has said so
            refuse_other_kinds(plan)
        yield rank
    except KeyboardInterrupt:
        if number > 0:
            raise SystemExit(EXIT_STOPPED) from None
        raise
    except Exception as error:
        traceback.clear_frames(error.__traceback__)  # they hold the model
        if not _first_to_fail(key_value_store, number):
            raise SystemExit(EXIT_REFUSED if isinstance(error, UserError) else EXIT_OTHER_RANK) from None
        kind, words = type(error), str(error)
        if not isinstance(error, HalflifeError):
            kind, what = RunFailedError, keep_traceback(error, None if rank is None else rank.folder)
            words = (
                f"the processes stopped at {what}: if one of them was ended, perhaps for want of memory, run the same command"
                " again, it goes on from the last checkpoint"
            )
        if number > 0:
            sys.stderr = sys.__stderr__  # it was closed to what all ranks would say
            words = f"rank {number} of {size}: {words}"
        raise kind(words) from error
    finally:
        # DDP's reducer frees its process group without releasing the GIL. Were it the last to hold the group, gloo's
        # threads, which are joined then, might wait for the GIL for ever. So models are freed while the group is in use.
        if rank is not None:
            del rank.world
            gc.collect()
    dist.destroy_process_group()
    for (
        which,
        handler,
    ) in before.items():  # not after an error: torchrun sends SIGTERM, and somebody has to say the error
        signal.signal(which, handler)


def _init_process_group(key_value_store: Any, number: int, size: int, *, fsdp: bool) -> Replicated:
    """Join the default process group, on the accelerator of this process if the machine has any."""
    import torch
    import torch.distributed as dist

    from halflife.studies.lab.text.distributed import Replicated, Sharded

    device, backend = "cpu", "gloo"
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is not None:
        index, here = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
        if here > (count := torch.accelerator.device_count()):
            raise UserError(
                f"--nproc-per-node is {here} and this machine has {count} accelerators, expected at most as many"
                " processes: lower it"
            )
        torch.accelerator.set_device_index(index)
        device = f"{accelerator.type}:{index}"
        backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"
    dist.init_process_group(backend, store=key_value_store, rank=number, world_size=size)
    return (Sharded if fsdp else Replicated)(torch.device(device))


def _first_to_fail(key_value_store: Any, number: int) -> bool:
    """Whether no other rank failed before this one; rank 0 counts as the first where the store does not answer."""
    try:
        return bool(key_value_store.compare_set("halflife/first to fail", "", str(number)) == str(number).encode())
    except Exception:  # torch raises several kinds when torchrun has ended, and there may be no store yet
        return number == 0


def refuse_other_kinds(plan: Plan) -> None:
    """Refuse a plan with runs of anything but language models.

    Raises:
        UserError: It has other runs.
    """
    others = sorted({run.spec.kind for run in plan.needed if run.spec.trainer is not TEXT})
    if others:
        raise UserError(
            f"{plan.study.name} has runs of kind {', '.join(others)}, and torchrun's processes train language models only:"
            " run it without torchrun, where each worker trains a run"
        )
