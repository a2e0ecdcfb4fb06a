"""What a header says about where and when something ran."""

from __future__ import annotations

import datetime
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["available_cores", "describe_machine", "describe_versions", "now"]

PACKAGES = ("torch-halflife", "torch", "numpy", "safetensors")


def available_cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def now() -> str:
    """The time in UTC, ISO 8601, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")


def describe_machine() -> dict[str, Any]:
    """Cores, processor and platform, without anything that names the machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line]
        processor = names[0] if names else processor
    return {"cores": available_cores(), "processor": processor, "platform": f"{platform.system()} {platform.machine()}"}


def describe_versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in PACKAGES}
