"""The tests with another torch, in an environment of its own, and the table of docs/compatibility.md.

    python tools/compat.py TORCH [ARGUMENTS OF PYTEST]   run the tests with that torch (`make compat TORCH=2.9.1`)
    python tools/compat.py page                          write the table anew from results/compatibility.json

The environment is .compat/TORCH-pyX.Y, with the Python that runs this script; it is kept, and a second call installs nothing
that is there. What was seen is written to results/compatibility.json and to the page, unless arguments of pytest made
the run another one. Only what comes with Python is imported, since the environment of the repository may be missing.
"""

from __future__ import annotations

import datetime
import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "results" / "compatibility.json"
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- seen: made by tools/compat.py -->", "<!-- end -->"

# Not of the library: they look at the repository, with the versions of constraints.txt.
ELSEWHERE = (
    "tests/test_house.py",
    "tests/test_dist.py",
    "tests/test_docs.py",
    "tests/test_trainers_page.py",
    "tests/laws/test_identify_page.py",
)
# What tests compare with, by package, and the module that says whether it works beside this torch.
PEERS = {
    "torchao": "torchao.optim",
    "transformers": "transformers.trainer",
    "pytorch-optimizer": "pytorch_optimizer",
    "torch-optimi": "optimi",
    "stable-baselines3": "stable_baselines3",
}
# What a release of torch restricts, or is: pip chooses them.
FREE = {"torch", "setuptools", "sympy", "networkx", "fsspec", "filelock", "typing_extensions", "Jinja2"}
ASK = """
import importlib.metadata as m, json, platform, torch
print(json.dumps({"torch": torch.__version__, "python": platform.python_version(), "numpy": m.version("numpy")}))
"""


def main() -> int:
    """Run the tests with a torch, or write the page.

    Returns:
        The exit code: that of pytest.
    """
    if len(sys.argv) < 2 or not re.fullmatch(r"page|\d+\.\d+\.\d+", sys.argv[1]):
        print(
            f"got {sys.argv[1:]}, but expected the release of torch that is to be tested: make compat TORCH=2.9.1",
            file=sys.stderr,
        )
        return 2
    if sys.argv[1] == "page":
        write_page()
        return 0
    version, arguments = sys.argv[1], sys.argv[2:]
    folder = ROOT / ".compat" / f"{version}-py{sys.version_info.major}.{sys.version_info.minor}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    missing = install(version, folder, python)
    report = folder / "tests.xml"
    code = run_tests(python, report, arguments)
    if not report.exists():
        return code
    seen = {
        **json.loads(subprocess.check_output([python, "-c", ASK], text=True)),
        **counted(report),
        "missing": missing,
    }
    print(row(seen))
    if not arguments:
        keep(seen)
    return code


def install(version: str, folder: Path, python: Path) -> dict[str, str]:
    """Make the environment, with the pins of constraints.txt but those of torch and of what it asks for.

    Args:
        version: The release of torch.
        folder: The environment.
        python: Its Python.

    Returns:
        The packages that cannot be imported beside this torch, which are not left there, and why.

    Raises:
        SystemExit: Where something cannot be installed.
    """
    if not python.exists():
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    kept = [line for line in lines if line.partition("==")[0] not in FREE]
    constraints = folder / "constraints.txt"
    constraints.write_text("\n".join([*kept, ""]), encoding="utf-8")
    print(
        f"Installing torch {version} into {folder.relative_to(ROOT)}: several GB, pip.log there has the rest.",
        flush=True,
    )
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    more = ["-c", constraints, *os.environ.get("PIP_ARGS", "").split()]
    with (folder / "pip.log").open("w", encoding="utf-8") as log:
        what = [f"torch=={version}", "-e", f"{ROOT}[dev]"]
        done = subprocess.run([*pip, "install", *more, *what], stdout=log, stderr=subprocess.STDOUT, check=False)
        if done.returncode:
            raise SystemExit(f"pip could not install {' '.join(what)}: {log.name} says why")
        missing = {}
        for package, module in PEERS.items():
            done = subprocess.run([python, "-c", f"import {module}"], capture_output=True, text=True, check=False)
            if done.returncode:
                missing[package] = re.sub(
                    r" \([^()]*[/\\][^()]*\)", "", done.stderr.strip().splitlines()[-1]
                )  # no paths
                subprocess.run([*pip, "uninstall", "-y", package], stdout=log, stderr=subprocess.STDOUT, check=True)
    return missing


def run_tests(python: Path, report: Path, arguments: list[str]) -> int:
    """Run the tests of the library.

    Args:
        python: The Python that runs them.
        report: Where their outcomes are written, as JUnit does.
        arguments: More arguments for pytest.

    Returns:
        The exit code of pytest.
    """
    report.unlink(missing_ok=True)
    command = [
        python,
        "-m",
        "pytest",
        "-q",
        "-n",
        "2",
        "--dist",
        "loadscope",
        "--no-loadscope-reorder",
        f"--junitxml={report}",
    ]
    command += [f"--ignore={each}" for each in ELSEWHERE]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{python.parent}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=False).returncode


def counted(report: Path) -> dict[str, Any]:
    """Return the day, how many tests passed and failed, and the reasons of those that were skipped.

    Args:
        report: What pytest wrote.
    """
    passed, failed, skipped = 0, [], Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):
        found = {each.tag: each for each in case}
        if "failure" in found or "error" in found:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif "skipped" in found:
            skipped[" ".join((found["skipped"].get("message") or "").split())] += 1
        else:
            passed += 1
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return {"date": day, "passed": passed, "failed": sorted(failed), "skipped": dict(skipped.most_common())}


def keep(seen: dict[str, Any]) -> None:
    """Write what was seen in the place of what was seen earlier with the same torch and Python, and the page.

    Args:
        seen: What was seen.
    """
    rows = json.loads(RECORD.read_text(encoding="utf-8")) if RECORD.exists() else []
    rows = [each for each in rows if _which(each) != _which(seen)]
    rows = sorted([*rows, seen], key=lambda each: [*map(_number, _which(each))])
    RECORD.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_page()


def _which(seen: dict[str, Any]) -> tuple[str, str]:
    """The release of torch, with the kind of build left out, and that of Python."""
    return seen["torch"].partition("+")[0], seen["python"].rpartition(".")[0]


def _number(version: str) -> list[int]:
    return [int(each) for each in version.split(".")]


def row(seen: dict[str, Any]) -> str:
    """Return the row of the table.

    Args:
        seen: What was seen.
    """
    reasons = [f"{count} x {reason}" for reason, count in seen["skipped"].items()]
    reasons += [f"without {package}: {why}" for package, why in seen["missing"].items()]
    failed = "0" if not seen["failed"] else f"{len(seen['failed'])}: {', '.join(seen['failed'])}"
    cells = (
        seen["torch"],
        seen["python"],
        seen["numpy"],
        f"{seen['passed']:,}",
        failed,
        "; ".join(reasons) or "-",
        seen["date"],
    )
    return "| " + " | ".join(each.replace("|", "\\|") for each in cells) + " |"


def table() -> str:
    """Return the table of all that was seen."""
    rows = json.loads(RECORD.read_text(encoding="utf-8"))
    names = ("torch", "Python", "NumPy", "passed", "failed", "skipped, and why", "seen on")
    return "\n".join([f"| {' | '.join(names)} |", "| --- " * len(names) + "|", *map(row, rows)])


def write_page() -> None:
    """Write the table into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
