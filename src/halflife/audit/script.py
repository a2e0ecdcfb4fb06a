"""``audit --run``: a user's script as it is, up to the first step that one of its optimizers takes."""

from __future__ import annotations

import contextlib
import functools
import gc
import inspect
import multiprocessing
import os
import re
import runpy
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.thread import _threads_queues, _worker
from datetime import timedelta
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, NoReturn

import torch
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from halflife.audit.arguments import own_options
from halflife.audit.found import Found, Things, choose, live_optimizers, live_schedulers, live_wrappers
from halflife.errors import UserError
from halflife.user_code import leave, one_sentence, shown_path, without_bytecode

__all__ = ["TIME_LIMIT", "run_script"]

TIME_LIMIT = 600.0  # seconds
OUTER = "halflife/audited"  # the key by which rank 0 tells the others that it is done
INTERRUPTED = 130
TORCHRUN = re.compile(r"\b(LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK|RANK|WORLD_SIZE|MASTER_ADDR|MASTER_PORT)\b")


class _StopError(BaseException):
    """The first step was reached. No script is meant to catch it."""


def run_script(
    place: str,
    arguments: Sequence[str] = (),
    *,
    report: Callable[[Found], int],
    fail: Callable[[UserError], int],
    as_module: bool = False,
    time_limit: float = TIME_LIMIT,
    own_process: bool = False,
) -> int:
    """Run a script as ``python train.py ARGUMENTS`` does, and report on its optimizers at their first step.

    Args:
        place: The path of the script, or the name of a module, which is run as ``python -m`` does.
        arguments: Its own arguments.
        report: Told what is alive at the first step; returns the exit code.
        fail: Told what went wrong there; returns the exit code.
        as_module: Whether ``place`` is the name of a module.
        time_limit: After how many seconds without a step to give up.
        own_process: Whether this process ends with the script. Then it does not come back from the first step: code of
            the script that catches everything, cleans up, or writes a last checkpoint would run otherwise. Else the
            script is unwound by an exception.

    Returns:
        The exit code.

    Raises:
        UserError: The script is not there, raised, or ended before any optimizer took a step.
    """  # noqa: DOC501 - what else is raised here becomes a UserError
    path = None if as_module else Path(place)
    if path is not None and not path.is_file():
        if place and path.is_dir():
            raise UserError(f"{place} is a folder; give the path of the script in it that trains")
        hint = ""
        if not path.exists() and ":" in place:
            hint = "; with --run the script is named alone, without a function"
        elif not path.exists() and not place.endswith(".py") and place.replace(".", "").isidentifier():
            hint = f"; a module is run by `halflife audit --run -m {place}`"
        raise UserError(f"there is no file {place or repr(place)}{hint or '; give the path of the script that trains'}")
    code: list[int] = []
    command = f"halflife audit --run {'-m ' if as_module else ''}{place}"
    own = own_options(arguments)
    hint = own and f"; {own}"

    def reached(optimizer: Optimizer) -> NoReturn:
        if int(os.environ.get("RANK", "0") or 0) != 0:
            _wait_for_rank_zero(time_limit)
            code.append(0)
        else:
            try:
                code.append(report(_alive(optimizer, earlier)))
            except UserError as error:
                code.append(fail(error))
            except Exception as error:  # nothing may go on into the script, which would train
                what = f"{place} was stopped at its first step, and the audit failed there with {type(error).__name__}"
                code.append(fail(UserError(f"{what}: {error}; please report this as a fault of halflife")))
            finally:
                _tell_the_other_ranks()
        if own_process:
            end_children()
            leave(code[0])
        raise _StopError

    def reached_in_fork(optimizer: Optimizer) -> None:
        if forks is None:
            return
        if forks.is_first():
            try:
                seen = report(_alive(optimizer, earlier))
            except Exception as error:
                seen = fail(error if isinstance(error, UserError) else UserError(f"the audit failed: {error!r}"))
            forks.tell(seen)
        time.sleep(60.0)  # the process that has started this one ends it
        leave(0)

    forks = _Forks() if own_process else None
    earlier = [weakref.ref(each) for each in live_optimizers(collect=False)]  # none in a process of its own
    watch = FirstStep(reached, reached_in_fork)
    elsewhere = _seconds_of_children()
    with (
        _Limit(place, path, time_limit, watch, fail, forks),
        without_bytecode(),
        _as_main(place, path, arguments),
        one_sentence(
            place, path, f" before any optimizer took a step; correct it, or what `{command} -- ...` passes to it{hint}",
            runner=__file__,
        ),
        watch,
    ):  # fmt: skip
        try:
            _run(place, path)
            while any(map(_works, threading.enumerate())):  # python waits for these as well
                time.sleep(0.02)
            if not code:
                raise UserError(_no_step(place, sorted(watch.made), _seconds_of_children() - elsewhere) + hint)
        except _StopError:
            pass
        except (KeyError, ValueError) as error:
            if code or (name := _set_by_torchrun(error)) is None:
                raise
            module = "-m " if as_module else ""
            raise UserError(
                f"{place} reads {name} from the environment, which torchrun sets: start it with "
                f"`torchrun --nproc-per-node 1 -m -- halflife audit --run {module}{place} -- ...`"
            ) from error
        except SystemExit as error:
            if not code and error.code == 2:
                what = own or f"pass its own arguments after --, as in `{command} -- --data DIR`"
                raise UserError(
                    f"{place} ended with exit code 2, as scripts do that get wrong arguments (what it said stands "
                    f"above): {what}"
                ) from None
            if not code:
                raise
    return code[0]


def _no_step(place: str, made: Sequence[str], elsewhere: float) -> str:
    """Return the sentence on a script that came to its end.

    Args:
        place: The script.
        made: The classes of the optimizers that it made.
        elsewhere: For how many seconds processes ran that it has started.
    """
    what = f"{place} ended before any torch optimizer took a step"
    if elsewhere > 1.0:
        return (
            f"{what} in its own process (those that it started ran for {elsewhere:.0f} s, and their steps are not seen): let "
            "it train in one process, start it with `torchrun -m -- halflife audit ...`, or audit the script that they run"
        )
    if not made:
        return (
            f"{what}, and made none: give the script that trains with an optimizer of torch.optim, or a class like it"
        )
    return (
        f"{what} (it made {', '.join(made)}): let it train for at least one step, or name the function that builds the "
        "optimizer, as path/to/file.py:function"
    )


def _works(thread: threading.Thread) -> bool:
    """Return whether Python would wait for a thread at the end of the script: workers of a pool with nothing to do end."""
    if thread.daemon or thread is threading.current_thread() or not thread.is_alive():
        return False
    frame = sys._current_frames().get(thread.ident or 0)
    waits = frame is not None and frame.f_code is _worker.__code__
    return not (waits and thread in _threads_queues and _threads_queues[thread].empty())


def _set_by_torchrun(error: Exception) -> str | None:
    """Return the variable of the environment that a script reads and only torchrun sets, if that is what went wrong."""
    match = TORCHRUN.search(str(error)) if isinstance(error, KeyError | ValueError) else None
    return None if match is None or match[0] in os.environ else match[0]


def _seconds_of_children() -> float:
    used = os.times()
    return used.children_user + used.children_system


def _run(place: str, path: Path | None) -> None:
    if path is None:
        try:
            runpy.run_module(place, run_name="__main__", alter_sys=True)
        except ImportError as error:
            frames = inspect.getinnerframes(error.__traceback__) if error.__traceback__ else []
            if all(frame.filename in {__file__, runpy.__file__} or "runpy" in frame.filename for frame in frames):
                raise UserError(f"{error}; give the name that `python -m` takes from this folder") from None
            raise
        return
    # What python does for a script. Not runpy: that one empties the module when the script is through, while threads
    # and what the script registered for the end still need it.
    main = sys.modules["__main__"]
    name = str(path.absolute())
    main.__file__, main.__loader__ = name, SourceFileLoader("__main__", name)
    exec(compile(path.read_bytes(), name, "exec", dont_inherit=True), vars(main))


@contextlib.contextmanager
def _as_main(place: str, path: Path | None, arguments: Sequence[str]) -> Iterator[None]:
    """Let everything that a script may look at be as ``python train.py`` leaves it."""
    argv, search, main = sys.argv, list(sys.path), sys.modules["__main__"]
    sys.argv = [place, *arguments]
    # The first entry is the folder of whoever was started: that of the script now.
    sys.path[0:1] = [str(path.resolve().parent) if path is not None else os.getcwd()]
    if path is not None:
        module = ModuleType("__main__")
        vars(module).update(__builtins__=__builtins__, __spec__=None, __package__=None, __cached__=None)
        sys.modules["__main__"] = module
    try:
        yield
    finally:
        sys.argv, sys.path[:], sys.modules["__main__"] = argv, search, main


def _alive(stepped: Optimizer, earlier: Sequence[Callable[[], Optimizer | None]]) -> Found:
    """The optimizers of the script, that which steps first in front, with the models that own their parameters."""
    before = {id(each()) for each in earlier}
    optimizers = [each for each in live_optimizers() if each is stepped or id(each) not in before]
    optimizers += live_wrappers(optimizers)
    optimizers.sort(key=lambda each: each is not stepped)
    kept = set(map(id, optimizers))
    schedulers = [("", each) for each in live_schedulers() if id(each.optimizer) in kept]
    things = Things(optimizers=[("", each) for each in optimizers], schedulers=schedulers)
    main = vars(sys.modules["__main__"])
    return choose(things, alive=True, names={id(value): name for name, value in reversed(list(main.items()))})


# ---- the first step


class FirstStep:
    """Calls a function at the first step of any optimizer in this process, before the optimizer does anything.

    Torch calls hooks that are registered for all optimizers only where the constructor of `torch.optim.Optimizer` has
    run and the step is a method. So steps of classes that are made later, and steps that are put into an object, are
    wrapped as well. All of it is gone before the function is called, so that what it sees is the script's own.

    Args:
        then: The function; called with the optimizer, once.
        then_in_fork: The same in a process that was forked from this one.
    """

    def __init__(self, then: Callable[[Optimizer], Any], then_in_fork: Callable[[Optimizer], Any]) -> None:
        self.then, self.then_in_fork = then, then_in_fork
        self.lock = threading.Lock()
        self.process = os.getpid()
        self.reached = False
        self.made: set[str] = set()  # classes of optimizers
        self.undo: list[Callable[[], None]] = []

    def __enter__(self) -> FirstStep:
        hook = register_optimizer_step_pre_hook(_not_compiled(lambda optimizer, args, kwargs: self.step_of(optimizer)))
        self.undo.append(hook.remove)
        for cls in _subclasses(Optimizer):
            if not cls.__module__.startswith("torch."):  # those of torch all run the constructor
                self._watch_class(cls)

        def init_subclass(cls: Any, **kwargs: Any) -> None:
            parent: Any = super(Optimizer, cls)
            parent.__init_subclass__(**kwargs)
            self._watch_class(cls)

        def set_attribute(optimizer: Optimizer, name: str, value: Any) -> None:
            self.made.add(type(optimizer).__name__)
            # A scheduler puts a step there that calls the one that was there.
            if name == "step" and callable(value) and not hasattr(value, "_wrapped_by_lr_sched"):
                value = self._watch_object(optimizer, value)
            object.__setattr__(optimizer, name, value)

        patches: dict[str, Any] = {"__init_subclass__": classmethod(init_subclass), "__setattr__": set_attribute}  # type: ignore[arg-type]
        for name, value in patches.items():
            if name not in vars(Optimizer):
                setattr(Optimizer, name, value)
                self.undo.append(functools.partial(delattr, Optimizer, name))
        compiles = torch.compile

        @functools.wraps(compiles)
        def eager(*args: Any, **kwargs: Any) -> Any:
            # Compiling a model takes minutes and no decay depends on it; compiled steps would not call any hook.
            torch.compiler.set_stance("force_eager")
            self.undo.append(lambda: torch.compiler.set_stance("default"))
            return compiles(*args, **kwargs)

        torch.compile = eager
        self.undo.append(lambda: setattr(torch, "compile", compiles))
        return self

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take everything away again."""
        while self.undo:
            self.undo.pop()()

    def step_of(self, optimizer: Optimizer) -> None:
        """What happens before any step."""
        if os.getpid() != self.process:
            self.remove()
            self.then_in_fork(optimizer)
            return
        with self.lock:
            first, self.reached = not self.reached, True
        if first:
            self.remove()
            self.then(optimizer)
        else:
            time.sleep(3600)  # a second thread; the process ends before that

    def _watch_class(self, cls: type) -> None:
        original = vars(cls).get("step")
        if not inspect.isfunction(original):
            return
        watched = self._watched(original)
        cls.step = watched  # type: ignore[attr-defined]
        reference = weakref.ref(cls)

        def undo() -> None:
            known: Any = reference()
            now = vars(known).get("step") if known is not None else None
            if now is watched:
                known.step = original
            elif getattr(now, "__wrapped__", None) is watched:  # torch has wrapped it at the first construction
                known.step = Optimizer.profile_hook_step(original)
                known.step.hooked = True

        self.undo.append(undo)

    def _watch_object(self, optimizer: Optimizer, step: Any) -> Any:
        watched, reference = self._watched(step, optimizer), weakref.ref(optimizer)

        def undo() -> None:
            known = reference()
            if known is not None and vars(known).get("step") is watched:
                vars(known)["step"] = step

        self.undo.append(undo)
        return watched

    def _watched(self, step: Any, optimizer: Optimizer | None = None) -> Any:
        reference = weakref.ref(optimizer) if optimizer is not None else None

        @functools.wraps(step)
        def watched(*args: Any, **kwargs: Any) -> Any:
            if not self.reached and self.undo:
                stepping = reference() if reference is not None else args[0] if args else kwargs.get("self")
                if isinstance(stepping, Optimizer):
                    self.step_of(stepping)
            return step(*args, **kwargs)

        return _not_compiled(watched)


def _not_compiled(function: Any) -> Any:
    function._torchdynamo_disable = True
    return function


def _subclasses(cls: type) -> list[type]:
    direct: list[type] = cls.__subclasses__()
    return [*direct, *(each for sub in direct for each in _subclasses(sub))]


# ---- the end


class _Forks:
    """How a process that the script has forked, and that is the first to step, tells this one the exit code."""

    def __init__(self) -> None:
        self.ours, self.theirs = os.pipe()
        self.token, token = os.pipe()
        os.write(token, b"1")
        os.set_blocking(self.token, False)

    def is_first(self) -> bool:
        """Return whether no other process has asked before."""
        try:
            return bool(os.read(self.token, 1))
        except BlockingIOError:
            return False

    def tell(self, code: int) -> None:
        """Send the exit code."""
        os.write(self.theirs, bytes([code]))

    def told(self, seconds: float) -> int | None:
        """Wait for an exit code; None if none comes in that time."""
        readable, _, _ = select.select([self.ours], [], [], seconds)
        return os.read(self.ours, 1)[0] if readable else None


class _Limit:
    """Ends the process with one sentence when a time has passed, or when the user stops it."""

    def __init__(
        self,
        place: str,
        path: Path | None,
        seconds: float,
        watch: FirstStep,
        fail: Callable[[UserError], int],
        forks: _Forks | None,
    ) -> None:
        self.place, self.path, self.seconds, self.watch, self.fail = place, path, seconds, watch, fail
        self.forks = forks
        self.over = False
        self.process = os.getpid()

    def __enter__(self) -> None:
        if self.forks is not None:
            threading.Thread(target=self._wait, daemon=True, name="halflife-time-limit").start()
            with contextlib.suppress(ValueError):  # not in the main thread
                signal.signal(signal.SIGINT, self._interrupted)

    def __exit__(self, *exception: object) -> None:
        self.over = True

    def _wait(self) -> None:
        code = self.forks.told(self.seconds) if self.forks is not None else None
        if self.over:
            return
        if code is not None:
            end_children()
            leave(code)
        if self.watch.reached:
            what = f"the probe of {self.place}'s optimizers did not end within {self.seconds:g} s"
        else:
            what = f"no optimizer of {self.place} took a step within {self.seconds:g} s"
        what += f"{self._where()}{_beside()}: give it more time (--time-limit), or less to do before its first step"
        code = self.fail(UserError(what))
        end_children()
        leave(code)

    def _where(self) -> str:
        """Where the script is now."""
        frame: FrameType | None = sys._current_frames().get(threading.main_thread().ident or 0)
        while frame is not None:
            if self.path is not None and frame.f_code.co_filename == str(self.path.absolute()):
                return f"; it is at {shown_path(str(self.path))}, line {frame.f_lineno}"
            frame = frame.f_back
        return ""

    def _interrupted(self, number: int, frame: object) -> None:
        # A script that catches KeyboardInterrupt writes its last checkpoint there: nothing was trained yet.
        if os.getpid() == self.process:
            with contextlib.suppress(Exception):
                print("\nstopped", file=sys.stderr, flush=True)
            end_children()
        leave(INTERRUPTED)


def _beside() -> str:
    """Name what may step where nobody sees it."""
    with contextlib.suppress(Exception):
        number = sum(1 for _ in _children())
        if number:
            return f"; steps in processes that it has started ({number} run now) are not seen"
    return ""


def _children() -> Iterator[Any]:
    """The processes that the script has started and that run now."""
    yield from multiprocessing.active_children()
    yield from (each for each in gc.get_objects() if type(each) is subprocess.Popen and each.poll() is None)


def end_children() -> None:
    """End the processes that the script has started: nobody is there to wait for them, and some hold our output."""
    with contextlib.suppress(Exception):
        children = list(_children())
        for child in children:
            child.terminate()
        for child in children:
            with contextlib.suppress(Exception):
                child.join(1) if hasattr(child, "join") else child.wait(1)


def _store() -> Any:
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return None
    return torch.distributed.distributed_c10d._get_default_store()


def _tell_the_other_ranks() -> None:
    with contextlib.suppress(Exception):
        if (store := _store()) is not None:
            store.set(OUTER, b"1")


def _wait_for_rank_zero(seconds: float) -> None:
    """Wait until rank 0 is through: its connections to the others must last so long."""
    with contextlib.suppress(Exception):
        if (store := _store()) is not None:
            store.wait([OUTER], timedelta(seconds=seconds))
