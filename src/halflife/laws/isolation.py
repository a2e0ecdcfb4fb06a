"""A probe leaves no trace, in its own thread and in those beside it."""

from __future__ import annotations

import logging
import random
import sys
import threading
import types
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode

from halflife.laws.law import NotProbedError
from halflife.optim.step_hooks import global_hooks, is_own

__all__ = ["Draws", "isolated"]

Result = TypeVar("Result")

ONE_AT_A_TIME = threading.RLock()
# Where the threads of notebooks, progress bars, debuggers and test runners begin.
_TOOLS = frozenset(
    {
        "IPython.core.history",
        "_pydevd_bundle.pydevd_daemon_thread",
        "execnet.gateway_base",
        "ipykernel.control",
        "ipykernel.heartbeat",
        "ipykernel.iostream",
        "tqdm._monitor",
    }
)


@contextmanager
def isolated(device: torch.device, dtype: torch.dtype, *, hooks: bool = False, typed: bool = False) -> Iterator[None]:
    """Run the body on throw-away parameters: afterwards everything global is as it was.

    Inside, in this thread alone: warnings are silent, nothing is printed, gradients are on, tensors are made in the dtype
    and on the device of the probe unless the code says otherwise (a float32 constant inside a step would cut digits
    off), and step hooks that are registered for all optimizers are not called. Other threads keep their default dtype,
    their warnings and their hooks. While there are none, nothing is logged.

    What is left: functions that torch has compiled run uncompiled in all threads meanwhile, if torch's compiler is
    loaded at all, and a second thread that probes waits for the first.

    Args:
        device: Where the throw-away parameters are.
        dtype: Their precision.
        hooks: Whether step hooks that others registered for all optimizers are called.
        typed: Whether the body gives a dtype to each tensor that it makes, so that no default is needed.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(ONE_AT_A_TIME)
        stack.enter_context(_silence())
        stack.enter_context(_without_global_hooks(own_only=hooks))
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import would take a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())  # a step of others may have set it
        stack.enter_context(_quiet())
        alone = _is_alone()
        if alone:  # else the log of other threads would be lost
            stack.enter_context(_without_log())
        if alone and torch.get_default_device() == device:
            torch.set_default_dtype(dtype)  # nobody is beside: a mode would take half of the time
        elif not typed or torch.get_default_device() != device:
            stack.enter_context(_Defaults(device, dtype))
        yield


def _is_alone() -> bool:
    """Return whether no other thread runs code of the user's: what tools have beside it makes no tensors and no draws."""
    own = threading.get_ident()
    return all(thread == own or _begun_in(frame) in _TOOLS for thread, frame in sys._current_frames().items())


def _begun_in(frame: types.FrameType | None) -> str:
    """Return the name of the module in which the code of a thread begins."""
    found = ""
    while frame is not None:
        name = str(frame.f_globals.get("__name__"))
        found = found if name == "threading" else name
        frame = frame.f_back
    return found


class _Elsewhere:
    """A stream that takes what other threads write, and loses what this one does.

    Args:
        stream: The stream.
    """

    def __init__(self, stream: Any) -> None:
        self._stream, self._thread = stream, threading.get_ident()

    def write(self, text: str) -> int:
        """Write what another thread writes."""
        return len(text) if threading.get_ident() == self._thread else int(self._stream.write(text))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def _quiet() -> Iterator[None]:
    """Let nothing be printed: a probe takes hundreds of steps, which the user did not ask for."""
    before = sys.stdout, sys.stderr
    made = tuple(None if stream is None else _Elsewhere(stream) for stream in before)
    sys.stdout, sys.stderr = cast(Any, made)
    try:
        yield
    finally:
        if (sys.stdout, sys.stderr) == made:
            sys.stdout, sys.stderr = before


@contextmanager
def _without_log() -> Iterator[None]:
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(before)


class _Defaults(TorchFunctionMode):
    """A default dtype and device for this thread; torch's own default dtype is that of the whole process.

    The default decides in constructors that are told no dtype, and where a number meets a tensor of booleans or
    integers, such as ``lr * lam * mask``.
    """

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.constructors = _device_constructors()
        self.device = device if torch.get_default_device() != device else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        constructs = func in self.constructors
        if constructs and self.device is not None and kwargs.get("device") is None:
            kwargs = {**kwargs, "device": self.device}
        made = func(*args, **kwargs)
        if not isinstance(made, Tensor) or made.dtype == self.dtype or made.dtype != torch.get_default_dtype():
            return made
        if any(kwargs.get(key) is not None for key in ("dtype", "out")) or any(
            isinstance(each, torch.dtype) for each in args
        ):
            return made
        if constructs:
            from_typed = any(hasattr(each, "dtype") for each in (*args[:1], kwargs.get("data")))
            return made if from_typed else func(*args, **{**kwargs, "dtype": self.dtype})
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        if not tensors or any(each.is_floating_point() or each.is_complex() for each in tensors):
            return made
        return func(*map(self._converted, args), **{key: self._converted(each) for key, each in kwargs.items()})

    def _converted(self, value: Any) -> Any:
        return value.to(self.dtype) if isinstance(value, Tensor) else value


class _InThisThread:
    """Stands where a warnings filter has a pattern: it matches every warning of one thread."""

    def __init__(self) -> None:
        self.thread: int | None = threading.get_ident()

    def match(self, text: str) -> bool:
        """Return whether the warning comes from the thread."""
        return threading.get_ident() == self.thread


@contextmanager
def _silence() -> Iterator[None]:
    """Ignore the warnings of this thread. ``warnings.catch_warnings`` would drop those of the others as well."""
    pattern = _InThisThread()
    ignore: Any = ("ignore", pattern, Warning, None, 0)
    filters: Any = warnings.filters
    filters.insert(0, ignore)
    try:
        yield
    finally:
        pattern.thread = None  # another thread may hold a copy of the list
        filters = warnings.filters
        if ignore in filters:
            filters.remove(ignore)


@contextmanager
def _without_global_hooks(*, own_only: bool) -> Iterator[None]:
    """Let the step hooks of all optimizers, or halflife's own alone, pass over the steps of this thread."""
    thread, replaced = threading.get_ident(), []

    def only_elsewhere(hook: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: None if threading.get_ident() == thread else hook(*args)

    for hooks in global_hooks():
        for key, hook in list(hooks.items()):
            if own_only and not is_own(hook):
                continue
            hooks[key] = only_elsewhere(hook)  # no key comes or goes: other threads may be iterating
            replaced.append((hooks, key, hook, hooks[key]))
    try:
        yield
    finally:
        for hooks, key, hook, stand_in in replaced:
            if hooks.get(key) is stand_in:
                hooks[key] = hook


class Draws:
    """Makes steps repeatable that draw from the global generators of torch, Python or NumPy.

    These generators belong to the whole process. While this thread is the only one, they are seeded, and set back
    afterwards. While there are others, they are touched only for an optimizer whose steps depend on them: such steps
    draw from them in any case. So an optimizer that draws nothing never changes what other threads draw.

    Args:
        device: Where the parameters are.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.get_device_module(device) if device.type not in {"cpu", "meta"} else None
        self._needed = False
        self._seeding = False

    def seed(self, seed: int) -> None:
        """Seed every generator that an optimizer may draw from, where that is needed; only within `repeatable`.

        Args:
            seed: The seed.
        """
        if not self._seeding:
            return
        random.seed(seed)
        torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it seeds accelerators too, for ever
        if self._device is not None:
            self._device.manual_seed(seed)
        numpy_random = sys.modules.get("numpy.random")
        if numpy_random is not None:
            numpy_random.seed(seed)

    def repeatable(self, run: Callable[[], Result], same: Callable[[Result, Result], bool]) -> Result:
        """Return what a run gives, the same each time.

        Args:
            run: The run; it calls `seed` before whatever may draw.
            same: Whether two results are equal to the last bit.

        Returns:
            The result.

        Raises:
            NotProbedError: If another thread draws from the generators that the optimizer depends on.
        """
        before, alone = self._states(), _is_alone()
        if not self._needed and not alone:
            try:
                result, error = run(), None
            except BaseException as raised:
                error = raised
            # If the generators have moved, this run or another thread has drawn from them.
            if all(_equal(one, other) for one, other in zip(before, self._states(), strict=True)):
                if error is not None:
                    raise error
                return result
            with _Watch() as watch:  # it doubles the time of a step: only where it is needed
                try:
                    again = run()
                except BaseException:
                    if watch.drew:
                        self._restore(before)
                    raise
            if error is None and not watch.drew and same(result, again):
                return result
            self._needed = True  # and all that was drawn is given back: if another thread draws, the answer says so
        self._seeding = True
        try:
            result = run()
            if not alone and not same(result, run()):
                raise NotProbedError(
                    "its steps depend on the global random generators, from which another thread draws meanwhile; "
                    "probe it while no other thread trains"
                )
            return result
        finally:
            self._seeding = False
            self._restore(before)

    def _states(self) -> list[Any]:
        numpy_random = sys.modules.get("numpy.random")
        return [
            random.getstate(),
            torch.default_generator.get_state(),
            None if self._device is None else self._device.get_rng_state(),
            None if numpy_random is None else numpy_random.get_state(),
        ]

    def _restore(self, states: list[Any]) -> None:
        python, on_cpu, on_device, numpy_state = states
        random.setstate(python)
        torch.default_generator.set_state(on_cpu)
        if self._device is not None:
            self._device.set_rng_state(on_device)
        if numpy_state is not None:
            sys.modules["numpy.random"].set_state(numpy_state)


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notices whether this thread draws from the generator that all share."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.drew = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return that torch need not wrap the method below: compiled functions run uncompiled meanwhile."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        has_its_own = any(isinstance(each, torch.Generator) for each in (*args, *kwargs.values()))
        self.drew |= torch.Tag.nondeterministic_seeded in func.tags and not has_its_own
        return func(*args, **kwargs)


def _equal(one: Any, other: Any) -> bool:
    """Return whether two states of a generator are equal."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, tuple) and any(hasattr(each, "all") for each in one):  # NumPy's; Python's has 625 numbers
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    return bool((one == other).all()) if hasattr(one, "all") else bool(one == other)
