"""The layers of the package: who may import whom, and what stays free of torch.

The table below is the law; ``docs/design.md`` says why. Every module has a place in it. An import is allowed
if its target is in the same layer or in one to the left. Imports inside functions count like any other.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import halflife

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "halflife"

# Left to right. A name stands for the module halflife.<name>, or for the package and everything under it.
PLAIN: list[set[str]] = [
    {
        "errors",
        "checks",
        "units",
        "convert",
        "schedules",
        "records",
        "specs",
        "expressions",
        "files",
        "machine",
    }
]
TRAINING: list[set[str]] = [
    {"rules"},
    {"policies", "select"},
    {"norms", "actions", "moments"},
    {"guards", "mechanisms", "terms", "answers", "hooks", "attach"},
    {"conformance"},
    {"identify"},
    {"explain", "audit"},
    {"probes", "watch"},
    {"lab"},
]
EVIDENCE: list[set[str]] = [{"store"}, {"stats", "fits"}, {"studies"}, {"report"}]
JOINT: set[str] = {
    "__init__",
    "__main__",
    "plan",
    "worker",
    "runner",
    "terminal",
    "together",
    "cli",
    "cli_audit",
    "cli_catalog",
    "cli_selfcheck",
    "cli_study",
}

HEAVY = ("torch", "torchvision", "safetensors.torch")  # what PLAIN and EVIDENCE never import


def module_name(path: Path) -> str:
    """The dotted name of a source file: ``halflife.rules.base``, ``halflife.rules``, ``halflife``."""
    parts = ("halflife", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def place(module: str) -> tuple[str, int]:
    """The column of a module and how far right it stands in it.

    Raises:
        LookupError: If the module is not in the table.
    """
    top = module.split(".")[1] if "." in module else "__init__"
    if top in JOINT:
        return "joint", 0
    for column, layers in (("plain", PLAIN), ("training", TRAINING), ("evidence", EVIDENCE)):
        for index, names in enumerate(layers):
            if top in names:
                return column, index
    raise LookupError(
        f"{module} has no place in the table of layers: add {top!r} to PLAIN, TRAINING, EVIDENCE or JOINT in "
        "tests/test_architecture.py, as far to the left as its imports allow."
    )


def allowed(source: str, target: str) -> bool:
    """Whether module ``source`` may import module ``target``."""
    (column, index), (other, other_index) = place(source), place(target)
    if column == "joint":
        return True
    if other == "plain":
        return True
    return column == other and other_index <= index


def imported(source: str, *, module: str, is_package: bool, known: set[str]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``source`` imports, relative and lazy imports resolved.

    ``from a import b`` counts as ``a.b`` where that is a known module, else as ``a``. A call of
    ``import_module`` or ``__import__`` counts when it names its target in place.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                anchor = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{anchor}.{base}" if base else anchor
            for alias in node.names:
                if (base, alias.name) == ("halflife", "__version__"):
                    continue  # a plain string, which every layer may print
                full = f"{base}.{alias.name}"
                yield node.lineno, full if full in known or full in HEAVY else base
        elif isinstance(node, ast.Call):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"} and node.args:
                target = node.args[0]
                if isinstance(target, ast.Constant) and isinstance(target.value, str):
                    dots = len(target.value) - len(target.value.lstrip("."))
                    anchor = package.rsplit(".", dots - 1)[0] if dots > 1 else package
                    yield node.lineno, f"{anchor}.{target.value[dots:]}" if dots else target.value


def imports_of(module: str) -> list[tuple[int, str]]:
    """What a module of the package imports."""
    path = MODULES[module]
    return list(
        imported(
            path.read_text(encoding="utf-8"),
            module=module,
            is_package=path.name == "__init__.py",
            known=set(MODULES),
        )
    )


def is_heavy(target: str) -> bool:
    return any(target == name or target.startswith(name + ".") for name in HEAVY)


def is_ours(target: str) -> bool:
    return target == "halflife" or target.startswith("halflife.")


# ---- the reader of imports, on cases that would slip through a careless one


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import halflife.lab.loop", "halflife.lab.loop"),
        ("from halflife import store", "halflife.store"),
        ("from halflife.store import Store", "halflife.store"),
        ("from halflife import attach_it", "halflife"),
        ("from . import base", "halflife.rules.base"),
        ("from .base import Rule", "halflife.rules.base"),
        ("from .. import store", "halflife.store"),
        ("from ..store import Store", "halflife.store"),
        ("def f():\n    from ..store import Store", "halflife.store"),
        ("def f():\n    import importlib\n    importlib.import_module('halflife.store')", "halflife.store"),
        ("from importlib import import_module\nimport_module('..store', __package__)", "halflife.store"),
        ("if TYPE_CHECKING:\n    from torch import Tensor", "torch"),
        ("from safetensors.torch import save_file", "safetensors.torch"),
        ("from safetensors import torch", "safetensors.torch"),
    ],
)  # fmt: skip
def test_imports_are_seen(source: str, expected: str) -> None:
    known = {"halflife.store", "halflife.rules.base", "halflife.lab.loop", "halflife.rules"}
    targets = {name for _, name in imported(source, module="halflife.rules", is_package=True, known=known)}
    assert expected in targets


def test_a_relative_import_in_a_plain_module_starts_at_its_package() -> None:
    source = "from . import other\nfrom .. import store"
    known = {"halflife.rules.other", "halflife.store"}
    targets = [name for _, name in imported(source, module="halflife.rules.base", is_package=False, known=known)]
    assert targets == ["halflife.rules.other", "halflife.store"]


@pytest.mark.parametrize(
    ("source", "target", "answer"),
    [
        ("halflife.attach", "halflife.rules.base", True),
        ("halflife.rules.base", "halflife.attach", False),  # to the right
        ("halflife.attach", "halflife.mechanisms", True),  # same layer
        ("halflife.lab.loop", "halflife.store", False),  # training to evidence
        ("halflife.report", "halflife.lab.loop", False),  # evidence to training
        ("halflife.studies.a", "halflife.records", True),
        ("halflife.errors", "halflife.store", False),  # plain stands at the far left
        ("halflife.store", "halflife", False),  # the package itself joins everything
        ("halflife.cli", "halflife.lab.loop", True),
    ],
)
def test_the_law(source: str, target: str, answer: bool) -> None:
    assert allowed(source, target) is answer


def test_an_unknown_module_is_asked_to_be_placed() -> None:
    with pytest.raises(LookupError, match="add 'news' to PLAIN, TRAINING, EVIDENCE or JOINT"):
        place("halflife.news.daily")


# ---- the package


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_its_left(module: str) -> None:
    column, _ = place(module)
    wrong = [
        f"{MODULES[module].relative_to(ROOT)}:{line} imports {target}, neither in its layer nor left of it"
        for line, target in imports_of(module)
        if is_ours(target) and not allowed(module, target)
    ]
    if column in {"plain", "evidence"}:
        wrong += [
            f"{MODULES[module].relative_to(ROOT)}:{line} imports {target}, and a {column} module never does"
            for line, target in imports_of(module)
            if is_heavy(target)
        ]
    assert not wrong, "\n".join(wrong)


def test_no_import_cycle() -> None:
    """Imports at the top of the files form no cycle: each file can be read, and imported, on its own."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        top = ast.unparse(ast.Module(body=list(statements), type_ignores=[]))
        found = imported(top, module=module, is_package=path.name == "__init__.py", known=set(MODULES))
        graph[module] = {name for _, name in found if name in MODULES and name != module}
    left = dict(graph)
    while free := [module for module, targets in left.items() if not targets & left.keys()]:
        for module in free:
            del left[module]
    # What is left is in a cycle, or leads into one.
    assert not left, f"modules that import each other: {sorted(left)}"


def fresh(code: str) -> str:
    """Run code in a new interpreter and return what it printed."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_importing_the_light_side_does_not_import_torch() -> None:
    """``halflife``, PLAIN and EVIDENCE, one after the other in one fresh interpreter."""
    light = ["halflife", *(name for name in MODULES if place(name)[0] in {"plain", "evidence"})]
    code = f"""
import importlib, sys
for name in {light!r}:
    importlib.import_module(name)
    if "torch" in sys.modules:
        print(name)
        break
"""
    assert fresh(code) == "", "this module imports torch"


def test_the_command_line_starts_without_torch() -> None:
    assert fresh("import sys, halflife.cli; print('torch' in sys.modules)") == "False"


# ---- the public names

DIRECTIVE = re.compile(r"^::: (halflife[\w.]*)\s*$", re.MULTILINE)
PAGES = sorted((ROOT / "docs").glob("*.md"))


def resolve(dotted: str) -> object:
    """The object that a ``::: dotted.name`` line of the documentation names."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        parent, _, name = dotted.rpartition(".")
        found: object = getattr(resolve(parent), name)
        return found


def documented() -> list[object]:
    """Every object that the reference shows, by itself or with its module."""
    shown: list[object] = []
    for page in PAGES:
        for dotted in DIRECTIVE.findall(page.read_text(encoding="utf-8")):
            thing = resolve(dotted)
            shown.append(thing)
            if isinstance(thing, ModuleType):
                shown += [getattr(thing, name) for name in getattr(thing, "__all__", ())]
    return shown


def test_every_public_name_is_documented() -> None:
    shown = documented()
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    missing = [
        name
        for name in halflife.__all__
        if not any(getattr(halflife, name) is thing for thing in shown)
        and not re.search(rf"`halflife\.{re.escape(name)}\b", text)
    ]
    assert not missing, f"add these to docs/reference.md: {missing}"


def test_every_public_name_has_a_docstring() -> None:
    kinds = (inspect.isclass, inspect.isroutine, inspect.ismodule)
    things = {name: getattr(halflife, name) for name in halflife.__all__}
    described = {name: thing for name, thing in things.items() if any(kind(thing) for kind in kinds)}
    assert not [name for name, thing in described.items() if not (thing.__doc__ or "").strip()]


def test_public_names_are_listed_and_exist() -> None:
    assert halflife.__all__, "halflife.__all__ lists the public names"
    assert len(set(halflife.__all__)) == len(halflife.__all__)
    assert set(halflife.__all__) <= set(dir(halflife)), "dir(halflife) shows every public name, lazy ones too"


def test_a_module_does_not_hide_the_public_name_that_it_shares() -> None:
    """``halflife.attach`` stays the function after something imported the module of the same name."""
    shared = [name for name in halflife.__all__ if f"halflife.{name}" in MODULES]
    code = f"""
import importlib, halflife
for name in {shared!r}:
    module = importlib.import_module("halflife." + name)
    if hasattr(module, name) and getattr(halflife, name) is module:
        print(name)
"""
    assert fresh(code) == "", "this name is a module now and was something else"
