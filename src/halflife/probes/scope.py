"""The surroundings of a measurement: what a probe needs set, and everything put back afterwards.

Inside, the model is in evaluation mode, gradients can be taken whatever the caller's grad mode is, autocast is off,
and attention runs on kernels that can be differentiated twice. Afterwards modes, buffers and random states are as they
were; gradients and parameters are never written at all.
"""

from __future__ import annotations

import contextlib
import random
import sys
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from halflife.errors import UserError

__all__ = ["batch_norms", "check_mode", "evaluating", "out_of_memory", "surroundings"]

# Outputs of the same batch may differ by rounding where kernels add in any order, as on GPUs.
SAME = 1e-4
# What allocators of torch say, in a plain RuntimeError: the first on Linux and macOS, the second on Windows.
NO_ROOM = ("can't allocate memory", "not enough memory")


def batch_norms(model: nn.Module) -> list[_BatchNorm]:
    """The BatchNorm modules of a model, of any dimension."""
    return [module for module in model.modules() if isinstance(module, _BatchNorm)]


@contextlib.contextmanager
def evaluating(modules: Iterable[nn.Module], batch_statistics: bool) -> Iterator[None]:
    """Put modules into evaluation mode for a while; with ``batch_statistics`` BatchNorm still uses those of the batch."""
    before = [(module, module.training) for module in modules]
    hidden: list[tuple[_BatchNorm, Tensor | None, Tensor | None]] = []
    try:
        for module, _ in before:
            module.training = False
            if batch_statistics and isinstance(module, _BatchNorm):
                # Without running statistics BatchNorm uses those of the batch, and has nothing to update.
                hidden.append((module, module.running_mean, module.running_var))
                module.running_mean = module.running_var = None
        yield
    finally:
        for norm, mean, var in hidden:
            norm.running_mean, norm.running_var = mean, var
        for module, mode in before:
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
    """Whether an error says that memory ran out."""
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
def surroundings(device: torch.device, generator: torch.Generator | None) -> Iterator[None]:
    """Set what a measurement needs besides the modes of the model, and put it and the random states back at the end.

    Args:
        device: Of the weights.
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
    ):
        yield


def _random_states(device: torch.device) -> list[Any]:
    """The random states of torch (CPU and device), Python and NumPy (if it is there), to be compared with later ones."""
    states: list[Any] = [torch.get_rng_state().tolist(), random.getstate()]
    if device.type not in {"cpu", "mps"}:
        states.append(torch.get_device_module(device).get_rng_state(device).tolist())
    if numpy := sys.modules.get("numpy"):
        _, key, *rest = numpy.random.get_state()
        states += [key.tolist(), rest]
    return states


def check_mode(model: nn.Module, x: Tensor, batch_statistics: bool, device: torch.device) -> None:
    """Refuse a model that is random, or that gives other outputs (on a few examples x) in the mode that it is in.

    Probes measure in evaluation mode, with BatchNorm as chosen. Training mode is taken where it makes no difference:
    dropout, noise and running statistics show in the outputs, or in the random numbers that are drawn.

    Raises:
        UserError: If it is random, keeps state, or has to be put into evaluation mode first.
    """
    everything = list(model.modules())
    with torch.no_grad():
        with evaluating(everything, batch_statistics):
            measured, again = model(x), model(x)
        if not _same(measured, again):
            raise UserError(
                "The model gave different outputs for the same batch, even in evaluation mode, so it is random or "
                "keeps state; probes need a deterministic model."
            )
        if not any(module.training for module in everything):
            return
        before, current = _random_states(device), None
        with evaluating(batch_norms(model), batch_statistics):
            try:
                # Layers in training mode may update their buffers: here they update copies.
                current = functional_call(model, {name: b.clone() for name, b in model.named_buffers()}, (x,))
            except Exception as error:  # as of a model that takes targets, too, in training mode
                if out_of_memory(error):
                    raise
    drawn = _random_states(device) != before
    if drawn or not _same(measured, current):
        does = "draws random numbers, as for dropout" if drawn else "does not give the outputs of evaluation mode"
        raise UserError(
            f"The model, or a part of it, is in training mode, and there it {does}; probes measure in evaluation mode, "
            "so call model.eval() first."
        )


def _same(h: Tensor, other: object) -> bool:
    # Outputs may be infinite where the loss is not, as of classes that a model rules out.
    size = float(h.abs().nan_to_num(0.0, posinf=0.0).max()) if h.numel() else 0.0
    alike = isinstance(other, Tensor) and (other.shape, other.dtype) == (h.shape, h.dtype)
    return alike and torch.allclose(h, other, rtol=SAME, atol=SAME * size, equal_nan=True)  # type: ignore[arg-type]
