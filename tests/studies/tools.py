"""The tools of the repository, which are no package."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

__all__ = ["load_tool"]


def load_tool(name: str) -> ModuleType:
    """The module ``tools/<name>.py``."""
    spec = importlib.util.spec_from_file_location(f"{name}_tool", Path(__file__).parents[2] / "tools" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module
