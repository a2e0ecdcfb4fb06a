"""Audit the optimizers that real trainers build, in environments of its own, and write docs/trainers.md.

    python tools/trainers/audit.py                      everything; about 10 GB of environments, made once
    python tools/trainers/audit.py --folder DIR         where the environments are kept (default: a temporary folder)
    python tools/trainers/audit.py --only vision peft   some families, cases or disagreements; what else was found stays
    python tools/trainers/audit.py --pip-args "..."     more arguments for pip, for example an index with CPU builds

It needs Python 3.11.5 or newer (the pins were made with 3.11.7) and the package registry. Every audit is a process of
its own with a time limit, so that a package that breaks does not stop the rest; what failed is in the findings. Every
quote of `disagreements.toml` is looked for in the installed files, and every reproducer is run.
"""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
FINDINGS = ROOT / "results" / "trainers.json"
TORCH = "torch==2.13.0"
SECONDS = 900
OLDEST = (3, 11, 5)
# Which environment a family of audits runs in; each has a list of pins in environments/.
FAMILIES = {
    "huggingface": "huggingface",
    "transformers_choices": "huggingface",
    "transformers_norms": "huggingface",
    "lightning_and_rl": "huggingface",
    "series": "series",
    "vision": "vision",
    "text": "text",
    "science": "science",
    "optimizers": "optimizers",
    "optimizers_hf": "huggingface",
    "optimizers_vision": "vision",
}


def cases(family: str) -> list[str]:
    """The names of a family's audits, without importing what they import."""
    return re.findall(r"^def case_(\w+)\(", (HERE / "cases" / f"{family}.py").read_text(encoding="utf-8"), re.MULTILINE)


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def environment(name: str, folder: Path, pip_args: list[str]) -> Path:
    """Make an environment, or take the one that was made from the same pins; return its Python."""
    pins = HERE / "environments" / f"{name}.txt"
    home = folder / name
    python = home / ("Scripts" if os.name == "nt" else "bin") / "python"
    stamp, made_from = home / "made-from.txt", hashlib.sha256(pins.read_bytes() + TORCH.encode()).hexdigest()
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == made_from:
        say(f"{name}: the environment is there")
    else:
        say(f"{name}: making the environment")
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(home)], check=True)
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_args]
        subprocess.run([*pip, "-c", str(ROOT / "constraints.txt"), TORCH], check=True)
        # The list is complete. Without --no-deps, torchvision would ask for another torch than the one that is there.
        subprocess.run([*pip, "--no-deps", "-r", str(pins)], check=True)
        stamp.write_text(made_from, encoding="utf-8")
        say(f"{name}: made in {time.perf_counter() - start:.0f} s")
    install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *pip_args]
    subprocess.run([*install, "--no-deps", "-e", str(ROOT)], check=True)
    return python


def run(python: Path, arguments: list[str], seconds: int = SECONDS) -> subprocess.CompletedProcess[str]:
    """Run Python in an environment, quietly, on one core, without a GPU and without the network of model hubs."""
    quiet = {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONWARNINGS": "ignore",
        "PYTHONHASHSEED": "0",
    }
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [str(python), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
            cwd=folder,
            env={**os.environ, **quiet},
        )


def audited(python: Path, family: str, case: str) -> dict[str, Any]:
    """One audit: its rows, or why there are none."""
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "rows.json"
        try:
            done = run(python, [str(HERE / "run.py"), family, case, str(target)])
            reason = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["no message"])[-1][:200]
        except subprocess.TimeoutExpired:
            reason = f"took more than {SECONDS} s"
        rows = json.loads(target.read_text(encoding="utf-8"))["rows"] if not reason else []
    seconds = time.perf_counter() - start
    say(f"  {family} / {case}: {reason or f'{len(rows)} rows'} ({seconds:.0f} s)")
    return {"family": family, "case": case, "failed": reason, "rows": rows}


def flat(text: str) -> str:
    """Text with every run of white space as one space."""
    return re.sub(r"\s+", " ", text)


def site_packages(python: Path) -> Path:
    """Where an environment keeps its packages."""
    done = run(python, ["-c", "import sysconfig; print(sysconfig.get_path('purelib'))"])
    return Path(done.stdout.strip())


def confirmed(entry: dict[str, Any], pythons: dict[str, Path]) -> dict[str, Any]:
    """Whether a disagreement's quotes are in the installed files and its reproducer runs through; what it printed."""
    missing = []
    for quote in entry["quotes"]:
        home = site_packages(pythons[quote.get("environment", entry["environment"])])
        if flat(quote["text"]) not in flat((home / quote["file"]).read_text(encoding="utf-8")):
            missing.append(quote["file"])
    try:
        done = run(pythons[entry["environment"]], ["-W", "ignore", "-c", entry["reproducer"]], 300)
        code, printed = done.returncode, done.stdout
    except subprocess.TimeoutExpired:
        code, printed = 124, ""
    say(f"  {entry['key']}: {'reproduced' if code == 0 else 'NOT reproduced'}{', quotes missing' if missing else ''}")
    return {"key": entry["key"], "reproduced": code == 0, "quotes_missing": missing, "printed": printed[-600:]}


def environments(entry: dict[str, Any]) -> set[str]:
    """The environments that a disagreement needs."""
    return {entry["environment"], *(quote.get("environment", entry["environment"]) for quote in entry["quotes"])}


def rounded(value: Any) -> Any:
    """Numbers with six digits, so that a repetition gives the same file."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return [rounded(item) for item in value] if isinstance(value, list) else value


def main() -> None:
    """Make environments, run audits and reproducers, write the findings and the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "halflife-trainers")
    parser.add_argument(
        "--only", nargs="*", default=[], metavar="NAME", help="families, cases or keys of disagreements"
    )
    parser.add_argument("--pip-args", default="", help="more arguments for pip")
    options = parser.parse_args()
    if sys.version_info < OLDEST:
        sys.exit(f"The pins need Python {'.'.join(map(str, OLDEST))} or newer; this is {sys.version.split()[0]}.")
    folder: Path = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    disagreements = tomllib.loads((HERE / "disagreements.toml").read_text(encoding="utf-8"))["disagreement"]
    chosen = [(f, c) for f in FAMILIES for c in cases(f) if not options.only or {f, c} & set(options.only)]
    doubted = [entry for entry in disagreements if not options.only or entry["key"] in options.only]
    if not chosen and not doubted:
        sys.exit(f"Nothing is called {' '.join(options.only)}; the families are {', '.join(FAMILIES)}.")
    needed = {FAMILIES[family] for family, _ in chosen} | {name for entry in doubted for name in environments(entry)}
    pythons: dict[str, Path] = {}
    for name in sorted(needed):
        try:
            pythons[name] = environment(name, folder, shlex.split(options.pip_args))
        except subprocess.CalledProcessError:
            say(f"{name}: the environment could not be made; its audits are listed as failed")

    old = json.loads(FINDINGS.read_text(encoding="utf-8")) if options.only and FINDINGS.is_file() else {}
    results = {(entry["family"], entry["case"]): entry for entry in old.get("audits", [])}
    for family, case in chosen:
        if FAMILIES[family] in pythons:
            results[family, case] = audited(pythons[FAMILIES[family]], family, case)
        else:
            reason = f"the environment {FAMILIES[family]} could not be made"
            results[family, case] = {"family": family, "case": case, "failed": reason, "rows": []}
    checks = {entry["key"]: entry for entry in old.get("disagreements", [])}
    for entry in doubted:
        if environments(entry) <= set(pythons):
            checks[entry["key"]] = confirmed(entry, pythons)
    findings = {
        # Of the last run of everything.
        "date": old.get("date") or datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "torch": TORCH.partition("==")[2],
        "python": ".".join(map(str, sys.version_info[:3])),
        "audits": [results[f, c] for f in FAMILIES for c in cases(f) if (f, c) in results],
        "disagreements": [checks[entry["key"]] for entry in disagreements if entry["key"] in checks],
    }
    FINDINGS.write_text(json.dumps(rounded(findings), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    subprocess.run([sys.executable, str(HERE / "page.py"), "docs"], check=True)


if __name__ == "__main__":
    main()
