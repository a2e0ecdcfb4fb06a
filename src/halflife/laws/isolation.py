"""A probe leaves no trace: random states, warnings, modes and global hooks are as they were."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch.optim import optimizer as torch_optimizer

__all__ = ["isolated", "seed_everything"]


def _device_module(device: torch.device) -> Any:
    return torch.get_device_module(device) if device.type not in {"cpu", "meta"} else None


def seed_everything(seed: int, device: torch.device) -> None:
    """Seed every generator that an optimizer on ``device`` may draw from; only inside `isolated`.

    Args:
        seed: The seed.
        device: Where the parameters are.
    """
    random.seed(seed)
    torch.default_generator.manual_seed(seed)  # not torch.manual_seed: it seeds accelerators too, for ever
    module = _device_module(device)
    if module is not None:
        module.manual_seed(seed)
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        numpy.random.seed(seed)


@contextmanager
def isolated(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Run the body on throw-away things only: afterwards everything global is as it was.

    Inside, warnings are silent, gradients are on, the default dtype and device are those of the probe (a constant
    that an optimizer makes inside its step would otherwise cut digits off), compiled functions run uncompiled, and
    step hooks that are registered for all optimizers are not called.

    Args:
        device: Where the throw-away parameters are.
        dtype: Their precision.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        for restore in _restorers(device):
            stack.callback(restore)
        stack.enter_context(warnings.catch_warnings())
        warnings.simplefilter("ignore")
        stack.enter_context(torch.inference_mode(mode=False))
        stack.enter_context(torch.enable_grad())
        if torch.get_default_device() != device:
            stack.enter_context(device)
        if "torch._dynamo" in sys.modules:  # else nothing is compiled, and the import would take a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.set_default_dtype(dtype)
        for hooks in _global_hooks():
            hooks.clear()
        yield


def _global_hooks() -> list[dict[Any, Any]]:
    names = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    return [getattr(torch_optimizer, name) for name in names if hasattr(torch_optimizer, name)]


def _restorers(device: torch.device) -> list[Callable[[], object]]:
    """Return functions that put back what is global now."""
    python, generator, dtype = random.getstate(), torch.default_generator.get_state(), torch.get_default_dtype()
    restorers: list[Callable[[], object]] = [
        lambda: random.setstate(python),
        lambda: torch.default_generator.set_state(generator),
        lambda: torch.set_default_dtype(dtype),
    ]
    for hooks in _global_hooks():
        restorers.append(lambda hooks=hooks, kept=dict(hooks): hooks.update(kept))  # type: ignore[misc]
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state()
        restorers.append(lambda: numpy.random.set_state(state))
    module = _device_module(device)
    if module is not None:
        on_device = module.get_rng_state()
        restorers.append(lambda: module.set_rng_state(on_device))
    return restorers
