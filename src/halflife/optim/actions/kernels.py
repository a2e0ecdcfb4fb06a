"""One pass over the memory where eager arithmetic takes several: kernels from torch.compile, once seen to be right.

A kernel is made when a pass over many elements asks for it first, which takes seconds, or a minute where nothing is
cached. It is tried on a few thousand numbers beside the eager arithmetic. Without a compiler, with torch.compile
switched off (``TORCH_COMPILE_DISABLE=1``), or if the numbers differ by more than rounding, the eager arithmetic stays;
`report` says which it is.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from torch import Tensor

__all__ = ["LEAST_ELEMENTS", "LEAST_IN_ALL", "Kernel", "in_compiled_step", "only_compiled", "report"]

# Below this a call of a compiled function takes longer than it saves.
LEAST_ELEMENTS = 1 << 16
# Below this a step saves less than 10 ms on one core, so that thousands of steps would not pay for compiling.
LEAST_IN_ALL = 1 << 23

SAMPLE = 4099  # elements on which a kernel is tried: vectors of any width leave a rest
OPTIONS: dict[str, Any] = {"compile_threads": 1, "triton.cudagraphs": False}  # no pool of processes for one function

Key = tuple[str, ...]


@dataclass
class _Made:
    """What came of the attempt to compile.

    Args:
        function: The kernel; None where eager arithmetic stays.
        reason: Why it stays.
    """

    function: Callable[..., None] | None
    reason: str = ""


class Kernel:
    """A function that changes its first argument in place, compiled for each device and combination of types.

    Args:
        name: For `report`.
        body: The function in plain tensor operations, of flat tensors of one length (or None) and then 0-dim tensors. It
            begins with `only_compiled`.
        eager: The same, as it is done without a compiler: what the kernel is compared with.
        num_flat: How many of the arguments are flat.
    """

    def __init__(self, name: str, body: Callable[..., None], eager: Callable[..., None], num_flat: int) -> None:
        self._name = name
        self._body = body
        self._eager = eager
        self._num_flat = num_flat
        self._made: dict[Key, _Made] = {}
        KERNELS.append(self)

    def run(self, *arguments: Tensor | None) -> bool:
        """Run on tensors of one device; return False, with nothing touched, if there is no kernel for them."""
        if any(
            each is not None and type(each) is not Tensor for each in arguments
        ):  # a subclass has its own arithmetic
            return False
        first = next(each for each in arguments if each is not None)
        key = (first.device.type, *("none" if each is None else _name(each.dtype) for each in arguments))
        made = self._made.get(key)
        if made is None:
            made = self._made[key] = self._make(arguments)
        if made.function is None:
            return False
        try:
            made.function(*arguments)
        except Exception as error:  # for example torch.compile was switched off since: it raises before it writes
            self._made[key] = _Made(None, _words(error))
            return False
        return True

    def report(self) -> list[str]:
        """Return a line for each combination that was asked for."""
        return [
            f"{self._name} on {device}, {', '.join(types)}: {'eager: ' + made.reason if made.reason else 'compiled'}"
            for (device, *types), made in self._made.items()
        ]

    def forget(self) -> None:
        """Let the next call compile again."""
        self._made.clear()

    def _make(self, like: tuple[Tensor | None, ...]) -> _Made:
        found, expected = self._sample(like), self._sample(like)
        try:
            function: Callable[..., None] = torch.compile(self._body, fullgraph=True, dynamic=True, options=OPTIONS)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about itself
                function(*found)
            self._eager(*expected)
            weight, other = found[0], expected[0]
            assert weight is not None
            assert other is not None
            if not torch.allclose(weight, other, rtol=4 * torch.finfo(weight.dtype).eps, atol=0.0):
                return _Made(None, "the compiled numbers differ")
        except Exception as error:  # no compiler, switched off, a type that it does not know, ...
            return _Made(None, _words(error))
        return _Made(function)

    def _sample(self, like: tuple[Tensor | None, ...]) -> list[Tensor | None]:
        """Return numbers of both signs and zeros, the same at every call."""
        generator = torch.Generator("cpu").manual_seed(0)
        made: list[Tensor | None] = []
        for position, each in enumerate(like):
            numbers = torch.randn(SAMPLE if position < self._num_flat else 1, generator=generator, device="cpu")
            numbers[:: 7 + position] = 0.0 if position < self._num_flat else 0.25
            if position >= self._num_flat:
                numbers = numbers.reshape(())
            made.append(None if each is None else numbers.to(each.device, each.dtype))
        return made


KERNELS: list[Kernel] = []


def report() -> list[str]:
    """Return a line for each kernel that was asked for: compiled, or why not."""
    return [line for kernel in KERNELS for line in kernel.report()]


def in_compiled_step() -> bool:
    """Return whether this runs for the sake of a function that torch.compile has taken apart."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith("torch._dynamo"):
            return True
        frame = frame.f_back
    return False


def only_compiled() -> None:
    """Refuse to run step by step, as torch.compile does where it is switched off: pieces in the cache are faster."""
    if not torch.compiler.is_compiling():
        raise RuntimeError("torch.compile is switched off")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
