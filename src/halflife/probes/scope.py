"""The surroundings of a measurement: what a probe needs set, and everything put back afterwards.

Inside, the model is in evaluation mode, gradients can be taken whatever the caller's grad mode is, autocast is off,
and attention runs on kernels that can be differentiated twice. Afterwards modes, buffers and random states are as they
were; gradients and parameters are never written at all.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from halflife.errors import UserError

__all__ = ["batch_norms", "measuring", "out_of_memory"]

# What allocators of torch say, in a plain RuntimeError: the first on Linux and macOS, the second on Windows.
NO_ROOM = ("can't allocate memory", "not enough memory")


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm modules of a model, of any dimension."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextlib.contextmanager
def _evaluating(model: nn.Module, batch_statistics: bool) -> Iterator[None]:
    modules = list(model.modules())
    modes = [module.training for module in modules]
    hidden: list[tuple[_BatchNorm, Tensor | None, Tensor | None]] = []
    try:
        for module in modules:
            module.training = False
        if batch_statistics:
            # Without running statistics BatchNorm uses those of the batch, and has nothing to update.
            for norm in batch_norms(model):
                hidden.append((norm, norm.running_mean, norm.running_var))
                norm.running_mean = norm.running_var = None
        yield
    finally:
        for norm, mean, var in hidden:
            norm.running_mean, norm.running_var = mean, var
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


@contextlib.contextmanager
def _forked(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """Put the random states of torch, Python, NumPy (if it is there) and a loader's own generator back afterwards."""
    python = random.getstate()
    numpy = sys.modules.get("numpy")
    of_numpy = None if numpy is None else numpy.random.get_state()
    of_loader = None if generator is None else generator.get_state()
    devices = [] if device.type in {"cpu", "mps"} else [device]
    with torch.random.fork_rng(devices=devices, device_type="cuda" if device.type == "cpu" else device.type):
        try:
            yield
        finally:
            random.setstate(python)
            if numpy is not None:
                numpy.random.set_state(of_numpy)
            if generator is not None and of_loader is not None:
                generator.set_state(of_loader)


@contextlib.contextmanager
def _no_fast_attention() -> Iterator[None]:
    """Keep torch's transformer layers off their fused kernel for evaluation, which has no derivatives."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out.

    Args:
        error: What was raised.

    Returns:
        Whether it does.
    """
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(words in str(error) for words in NO_ROOM)


@contextlib.contextmanager
def _in_memory() -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        raise UserError(
            "A probe ran out of memory; make the batches of the problem smaller, or give it fewer examples."
        ) from error


@contextlib.contextmanager
def measuring(
    model: nn.Module, device: torch.device, *, batch_statistics: bool, generator: torch.Generator | None
) -> Iterator[None]:
    """Set what a measurement needs; put modes, buffers and random states back at the end.

    Args:
        model: What is measured.
        device: Where it lies.
        batch_statistics: Whether BatchNorm uses the statistics of each batch, not its running ones.
        generator: The generator of the loader, if it has one of its own.

    Yields:
        Nothing.

    Raises:
        UserError: If memory runs out inside.
    """
    with (
        _in_memory(),
        _forked(device, generator),
        torch.inference_mode(False),
        torch.enable_grad(),
        torch.autocast(device.type, enabled=False),
        sdpa_kernel(SDPBackend.MATH),
        _no_fast_attention(),
        _evaluating(model, batch_statistics),
    ):
        yield
