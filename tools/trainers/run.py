"""Run one audit in this environment: ``python run.py FAMILY CASE FILE`` writes the rows that it found as JSON."""

from __future__ import annotations

import importlib
import importlib.metadata
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))


def main(family: str, case: str, target: Path) -> None:
    """Build, describe and write."""
    warnings.simplefilter("ignore")
    from probe import Built, describe

    target = target.resolve()  # an audit may change the folder
    start = time.perf_counter()
    rows: list[dict[str, Any]] = []
    for built in getattr(importlib.import_module(f"cases.{family}"), f"case_{case}")():
        row = describe(built) if isinstance(built, Built) else built
        row["version"] = importlib.metadata.version(row["package"])
        rows.append(row)
    seconds = round(time.perf_counter() - start, 1)
    target.write_text(json.dumps({"family": family, "case": case, "seconds": seconds, "rows": rows}, indent=1))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
