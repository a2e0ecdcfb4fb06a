"""What `make demo` does once halflife is installed: audit three set-ups, show what was found, run the first study.

Ctrl-C is safe at any time, and the next call goes on where this one stopped.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quietly import INTERRUPTED, quietly
from rich.console import Console
from rich.markup import escape

from halflife.audit.explanation import Explanation
from halflife.audit.target import Audit, audit

ROOT = Path(__file__).parents[1]
SETUPS, TOTAL_STEPS = "examples/three_setups.py", 10_000
PAGES = ROOT / "halflife-report"
console = Console(soft_wrap=not sys.stdout.isatty())  # a log has no width
HALFLIFE = [sys.executable, "-m", "halflife"]


def decaying(table: Explanation, *kinds: str) -> int:
    """How many tensors of these kinds decay."""
    return sum(bool(row["decays"]) and row["kind"] in kinds for row in table.rows)


def of_adam(found: Audit) -> str:
    """What surprises who meant AdamW."""
    table = found.table
    others = decaying(table, "norms", "biases", "embeddings")
    return (
        f"This is not AdamW: the decay is {table.groups[0]['pathway']}, and no fixed fraction of a weight is removed. And"
        f" {others} of the {len(table.rows)} tensors that decay are norms, biases and embeddings."
    )


def of_two_groups(found: Audit) -> str:
    """What surprises who meant matrices."""
    tied = [row["parameter"] for row in found.table.rows if row["decays"] and "tied" in row["what"]]
    other = [row["parameter"] for row in found.table.rows if row["decays"] and row["kind"] == "embeddings"]
    return (
        f"Embeddings have two dimensions too: {', '.join(other)} decays, and so does {', '.join(tied)}, which is the head as"
        f" well. Half of an untouched weight is left after {found.table.groups[0]['half_life']:,.0f} steps."
    )


def of_sgd(found: Audit) -> str:
    """What surprises who reads the settings."""
    group = found.table.groups[0]
    settings = group["lr"] * group["lam"]
    return (
        f"A step removes {group['r']:.2g} of a weight at the first learning rate, {group['r'] / settings:.3g} times lr * lam ="
        f" {settings:.2g}, because momentum adds it up; it falls with the learning rate. BatchNorm and biases decay too."
    )


SURPRISES: dict[str, Callable[[Audit], str]] = {"adam": of_adam, "two_groups": of_two_groups, "sgd": of_sgd}


def audit_setups() -> None:
    """Audit each set-up here and now, and say what surprises in it."""
    print("Three set-ups that are in many training scripts, audited here by stepping copies of their optimizers.\n")
    for number, (name, surprise) in enumerate(SURPRISES.items(), start=1):
        target = f"{SETUPS}:{name}"
        found = audit(str(ROOT / target), total_steps=TOTAL_STEPS)
        console.print(f"[bold]{number}. halflife audit {target} --total-steps {TOTAL_STEPS}[/]", highlight=False)
        console.print(found.table if console.is_terminal else str(found.table), markup=False, highlight=False)
        for sentence in found.schedule:
            console.print(sentence, markup=False, highlight=False)
        console.print(f"[bold]-> {escape(surprise(found))}[/]\n", highlight=False)


def show_findings() -> int:
    """Write the pages of the committed results once, name the first, and open it where there is a browser.

    Returns:
        An exit code.
    """
    page, stamp = PAGES / "report.html", PAGES / "made.stamp"
    archives = max(path.stat().st_mtime for path in (ROOT / "results").glob("*.tar.xz"))
    if not stamp.exists() or stamp.stat().st_mtime < archives:
        command = [*HALFLIFE, "report", "--store", str(ROOT / "results"), "--out", str(PAGES)]
        if code := quietly(PAGES / "report.log", "What the studies found: writing the pages, once", command):
            return code
        stamp.touch()
    print(f"What was found, with every number and what failed: {page}\n", flush=True)
    open_page(page.as_uri())
    return 0


def open_page(address: str) -> None:
    """Open a page in a browser of the desktop, by a process of its own: it neither waits nor fails."""
    desktop = sys.platform in {"darwin", "win32"} or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if desktop and sys.stdout.isatty() and not os.environ.get("CI"):
        quiet: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
        subprocess.Popen([sys.executable, "-m", "webbrowser", address], start_new_session=True, **quiet)


def main() -> int:
    """Do it all.

    Returns:
        An exit code.
    """
    began = time.monotonic()
    try:
        audit_setups()
        print(
            f"These took {time.monotonic() - began:.0f} s. Your own: halflife audit train.py:make_optimizer\n",
            flush=True,
        )
        if code := show_findings():
            return code
    except KeyboardInterrupt:
        print("Stopped; `make demo` goes on.")
        return INTERRUPTED
    print("The first study follows. Ctrl-C is safe at any time, and `make demo` goes on where it stopped.", flush=True)
    os.chdir(ROOT)
    os.execv(sys.executable, [*HALFLIFE, "study", "run", "stabilization"])


if __name__ == "__main__":
    sys.exit(main())
