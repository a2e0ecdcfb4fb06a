"""Write the golden files of trainers whose numbers changed on purpose.

python -m tests.golden [TRAINER]...     default: all
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.golden.runs import RUNS, complaint, content, golden_file, kept, trained


def as_text(content: dict[str, Any]) -> str:
    """The content of a golden file, a line a reading."""
    runs = content["runs"].items()
    head = {key: value for key, value in content.items() if key != "runs"}
    parts = []
    for name, run in runs:
        readings = ",\n".join(f"   {json.dumps(record)}" for record in run["readings"])
        rest = json.dumps({key: value for key, value in run.items() if key != "readings"})
        parts.append(f'  {json.dumps(name)}: {{{rest[1:-1]}, "readings": [\n{readings}\n  ]}}')
    return json.dumps(head)[:-1] + ', "runs": {\n' + ",\n".join(parts) + "\n}}\n"


def write(trainer: str) -> str:
    """Write a trainer's golden file unless it holds; the answer says what was done."""
    with tempfile.TemporaryDirectory() as folder:
        new = content(trainer, trained(RUNS[trainer], Path(folder)))
    path = golden_file(trainer)
    said = complaint(kept(trainer), new) if path.exists() else "new"
    if not said:
        return f"{trainer}: the golden file holds, nothing is written"
    if "raise its version" in said:
        return f"{trainer}: nothing is written, because {said}"
    path.write_text(as_text(new), encoding="utf-8")
    return f"{trainer}: written"


if __name__ == "__main__":
    torch.set_num_threads(1)
    for name in sys.argv[1:] or RUNS:
        print(write(name))
