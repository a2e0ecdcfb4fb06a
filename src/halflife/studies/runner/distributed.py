"""One run on all processes that torchrun started, and a plan's runs one after the other.

    torchrun --nproc-per-node 8 -m halflife study run NAME --preset paper --fsdp

The first process leads: it holds the store, writes readings, prints. It names the next run to the others, and all of them
train it (`halflife.studies.lab.text.distributed`). They must see the same files.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from halflife.errors import HalflifeError, RunFailedError, RunStoppedError, UserError
from halflife.studies.runner.plan import Plan, PlannedRun
from halflife.studies.runner.pool import Event, orphaned, timed_manifest
from halflife.studies.runner.worker import Task, train_run
from halflife.studies.specs.trainers import TEXT
from halflife.studies.store.store import Store

if TYPE_CHECKING:
    from halflife.studies.lab.text.distributed import Replicated

__all__ = ["Crew", "joined", "launched"]

EXIT_ELSEWHERE, EXIT_STOPPED = 1, 130


def launched() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


@contextlib.contextmanager
def joined(store: Store, plans: Sequence[Plan], *, fsdp: bool) -> Iterator[Crew | None]:
    """Join the processes that torchrun started. Whatever happens to them, one of them says it.

    Args:
        store: Where runs are.
        plans: What they are to train.
        fsdp: Shard the model (FSDP2) instead of copying it (DDP).

    Yields:
        This process as one of them; ``None`` when torchrun did not start it.

    Raises:
        UserError: ``fsdp`` without torchrun, or another mistake of the user's that this process is the first to meet.
        RunFailedError: Something that nobody expected; its traceback is kept beside the run.
        KeyboardInterrupt: The user stopped it.
        RunStoppedError: Likewise, inside a run.
        SystemExit: Another process says what happened.
    """
    if not launched():
        if fsdp:
            raise UserError(
                "--fsdp shards a model over the processes of torchrun, which did not start this one: start it by"
                " `torchrun --nproc-per-node N -m halflife study run ...`"
            )
        yield None
        return
    for plan in plans:  # all of them refuse it, and the first one says so
        refuse_others(plan)
    import torch.distributed as dist

    try:
        crew = Crew(store, fsdp=fsdp)
    except (RuntimeError, OSError, KeyError) as error:
        sentence = (
            f"the processes of torchrun cannot join ({type(error).__name__}: {_last_line(error)}): start them again"
        )
        print(f"error: process {os.environ.get('RANK')}: {sentence}", file=sys.__stderr__, flush=True)
        raise UserError(sentence) from error
    try:
        with crew.hearing():
            yield crew
    except (KeyboardInterrupt, RunStoppedError):
        if crew.leads:
            raise
        raise SystemExit(EXIT_STOPPED) from None
    except Exception as error:
        if not crew.is_first("failure"):
            raise SystemExit(EXIT_ELSEWHERE) from None
        said = error if isinstance(error, HalflifeError) else RunFailedError(crew.describe(error))
        if not crew.leads:  # its standard error is closed to what all of them would say
            print(f"error: process {crew.world.rank} of {crew.world.size}: {said}", file=sys.__stderr__, flush=True)
        raise said from error
    dist.destroy_process_group()


class Crew:
    """One of the processes that train together.

    Args:
        store: Where runs are.
        fsdp: Shard the model (FSDP2) instead of copying it (DDP).

    Raises:
        UserError: There are fewer accelerators than processes on this machine.
    """

    def __init__(self, store: Store, *, fsdp: bool) -> None:
        import torch
        import torch.distributed as dist

        from halflife.studies.lab.text.distributed import Replicated, Sharded

        self.store = store
        self.device, backend = "cpu", "gloo"
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        if accelerator is not None:
            index, size = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
            if size > (count := torch.accelerator.device_count()):
                raise UserError(
                    f"--nproc-per-node is {size} and this machine has {count} accelerators, expected at most as many"
                    " processes: lower it"
                )
            torch.accelerator.set_device_index(index)
            self.device = f"{accelerator.type}:{index}"
            backend = f"cpu:gloo,{accelerator.type}:{dist.get_default_backend_for_device(accelerator.type)}"
        dist.init_process_group(backend)
        self.world: Replicated = (Sharded if fsdp else Replicated)(torch.device(self.device))
        # Held by torchrun itself, so that it outlives any of the processes.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.shared = dist.TCPStore(address, port, is_master=False)  # type: ignore[attr-defined]  # it is public all the same
        self.asked = False
        self.current: Path | None = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.world.rank == 0

    @property
    def words(self) -> str:
        """How many they are, and in which form."""
        size, form = self.world.size, "FSDP2" if self.world.form == "fsdp" else "DDP"
        return f"{size} process{'es' if size > 1 else ''} together ({form})"

    @contextlib.contextmanager
    def hearing(self) -> Iterator[None]:
        """SIGTERM and Ctrl-C ask for a checkpoint first.

        Yields:
            Nothing.
        """

        def hear(_signal: int, _frame: object) -> None:
            self.asked = True

        before = {number: signal.signal(number, hear) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def is_first(self, what: str) -> bool:
        """Whether no other process has asked this before; ``False`` if nobody can tell any more."""
        key = f"halflife/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{what}"
        try:
            taken: bytes = self.shared.compare_set(key, "", str(self.world.rank))
        except Exception:  # torch raises several kinds when the one that holds it is gone
            return self.leads
        return taken == str(self.world.rank).encode()

    def describe(self, error: Exception) -> str:
        """Keep a traceback, and say so in one sentence."""
        where = ""
        if self.current is not None:
            path = self.current / "traceback.txt"
            with contextlib.suppress(OSError):
                path.write_text("".join(traceback.format_exception(error)), encoding="utf-8")
                where = f", see {path}"
        return (
            f"the processes stopped at an unexpected error ({type(error).__name__}: {_last_line(error)}){where}: if one of"
            " them was ended, perhaps for want of memory, run the same command again, it goes on from the last checkpoint"
        )

    def named(self, identity: str | None) -> str | None:
        """The name that the leading process gives to all."""
        import torch
        import torch.distributed as dist

        box = [identity]
        dist.broadcast_object_list(box, device=torch.device("cpu"))
        return box[0]

    def follow(self, plans: Sequence[Plan], data_folder: str | None) -> None:
        """Train what the leading process names, until it names nothing.

        Args:
            plans: All plans.
            data_folder: Where data that are not shipped lie.

        Raises:
            UserError: It names a run that is not planned here.
        """
        runs = {run.id: run for plan in plans for run in plan.needed}
        while (identity := self.named(None)) is not None:
            if identity not in runs:
                raise UserError(
                    f"the first process starts the run {identity}, which is not planned here: give all processes the same"
                    " code, data and options"
                )
            with contextlib.suppress(RunFailedError):
                self.train(runs[identity], data_folder, lambda _step, _num_steps, _loss: None)

    def train(self, run: PlannedRun, data_folder: str | None, progress: Callable[[int, int, float], None]) -> None:
        """Train one run, together with the others."""
        self.current = self.store.run(run.id).path
        train_run(
            self.store,
            Task(run.id, run.spec, run.parent_id),
            progress=progress,
            device=self.device,
            data_folder=data_folder,
            stop=lambda: self.asked,
            world=self.world,
        )

    def execute(
        self,
        plan: Plan,
        missing: Sequence[PlannedRun],
        *,
        listen: Callable[[Event], None],
        data_folder: str | None = None,
    ) -> list[str]:
        """Lead the others through what is missing of a plan. The store must be held by this process.

        Args:
            plan: The plan.
            missing: Its runs that are not finished yet, in the order to do them.
            listen: Told what happens.
            data_folder: Where data that are not shipped lie.

        Returns:
            Why runs failed, one sentence each.

        Raises:
            KeyboardInterrupt: The user stopped it; finished runs and checkpoints are kept.
        """
        failures: list[str] = []
        failed: set[str] = set()
        with timed_manifest(self.store, plan, workers=1):
            for run in missing:
                if run.parent_id in failed:
                    failed.add(run.id)
                    listen(Event("failed", 0, run, message=orphaned(run)))
                    continue
                if self.asked:
                    self.named(None)
                    raise KeyboardInterrupt
                self.named(run.id)
                failure = self.lead(run, listen, data_folder)
                if failure is not None:
                    failures.append(failure)
                    failed.add(run.id)
        return failures

    def lead(self, run: PlannedRun, listen: Callable[[Event], None], data_folder: str | None) -> str | None:
        """Train one run and tell of it; the answer is why it failed."""

        def progress(step: int, num_steps: int, loss: float) -> None:
            listen(Event("progress", 0, run, step=step, num_steps=num_steps, loss=loss))

        listen(Event("started", 0, run))
        began = time.perf_counter()
        try:
            self.train(run, data_folder, progress)
        except RunStoppedError as error:
            raise KeyboardInterrupt from error
        except RunFailedError as error:
            message = f"run {run.id} failed: {error}"
            listen(Event("failed", 0, run, message=message))
            return message
        listen(Event("finished", 0, run, seconds=time.perf_counter() - began))
        return None


def _last_line(error: Exception) -> str:
    return textwrap.shorten((str(error).strip().splitlines() or [""])[-1], 120, placeholder=" ...")


def refuse_others(plan: Plan) -> None:
    """Refuse plans of anything but language models.

    Args:
        plan: The plan.

    Raises:
        UserError: It has other runs.
    """
    others = sorted({run.spec.kind for run in plan.needed if run.spec.trainer is not TEXT})
    if others:
        raise UserError(
            f"{plan.study.name} has runs of kind {', '.join(others)}, expected runs of language models, which several"
            " processes train together: run it without torchrun, a run a worker"
        )
