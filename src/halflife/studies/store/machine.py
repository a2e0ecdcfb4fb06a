"""What a header says about where, when and from which source something ran."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
import subprocess
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

__all__ = ["available_cores", "describe_commit", "describe_machine", "describe_versions", "now"]

PACKAGES = ("torch-halflife", "torch", "numpy", "safetensors")
GIT_SECONDS = 10.0


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


@cache
def describe_versions() -> dict[str, str]:
    """The versions of Python and of the packages that a run's numbers depend on, as far as they are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


@cache
def describe_commit(folder: Path = Path(__file__).parent) -> dict[str, Any] | None:
    """Which commit of its repository a folder of sources is, asked of git once per process.

    Args:
        folder: The folder, by default that of halflife.

    Returns:
        ``id``, the commit's hash, and ``changed``, whether a file in the folder differs from it or is not in it; ``None``
        where git is missing or does not answer, or does not track the folder, as with a package that pip installed.
    """
    # Within a hook, git's own variables name the repository that is committed to, which may be another one.
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}

    def git(*words: str) -> str:
        command = ["git", "--no-optional-locks", "-C", str(folder), *words]
        return subprocess.run(command, env=env, capture_output=True, text=True, check=True, timeout=GIT_SECONDS).stdout

    try:
        if not git("ls-tree", "--name-only", "HEAD", "."):
            return None
        changes = git("status", "--porcelain", "--untracked-files=normal", "--", ".")
        return {"id": git("rev-parse", "HEAD").strip(), "changed": bool(changes)}
    except (OSError, subprocess.SubprocessError):
        return None
