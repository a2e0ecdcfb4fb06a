"""Files of users' own studies, for tests: those of the page about them."""

from __future__ import annotations

import re
from pathlib import Path

from tests import ROOT

__all__ = ["write_files"]

PAGE = ROOT / "docs" / "own_studies.md"
FILE = re.compile(r"```python\n(# ([a-z_]+\.py)\n.*?)```", re.DOTALL)


def write_files(folder: Path) -> None:
    """Write the files of the page into a folder."""
    for text, name in FILE.findall(PAGE.read_text(encoding="utf-8")):
        (folder / name).write_text(text, encoding="utf-8")
