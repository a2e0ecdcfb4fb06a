"""Who may import whom, package by package, and what stays free of torch.

The table below is the law; ``docs/design.md`` says why. Imports inside functions count like any other.
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
from tests import ROOT

PACKAGE = ROOT / "src" / "halflife"

# From the ground up. A package, or a module beside the packages, imports from its own floor's row and from those below;
# of two on one floor neither imports the other.
FLOORS: list[tuple[str, ...]] = [
    ("errors",),
    ("numbers", "expressions", "user_code"),
    ("units", "precision", "divergence"),
    ("schedules", "theory"),
    ("rules",),
    ("conversion", "groups"),
    ("optim",),
    ("laws", "probes"),
    ("audit", "selfcheck"),
    # the second wing
    ("studies.specs",),
    ("studies.store",),
    ("studies.evidence", "studies.lab"),
    ("studies.catalog",),
    ("studies.report", "studies.runner"),
    ("cli",),
]
TOP = {"", "__main__", "studies"}  # the package itself, its start, and the wing's own name

# These never import torch, nor a package that does. What stands under TYPE_CHECKING does not count.
PLAIN = {
    "errors",
    "numbers",
    "expressions",
    "user_code",
    "units",
    "divergence",
    "schedules",
    "theory",
    "rules",
    "conversion",
    "studies",
    "studies.specs",
    "studies.store",
    "studies.evidence",
    "studies.catalog",
    "studies.report",
}

HEAVY = ("torch", "torchvision", "safetensors.torch")  # what PLAIN and EVIDENCE never import


def module_name(path: Path) -> str:
    """The dotted name of a source file: ``halflife.rules.base``, ``halflife.rules``, ``halflife``."""
    parts = ("halflife", *path.relative_to(PACKAGE).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES: dict[str, Path] = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def package_of(module: str) -> str:
    """The row entry that a module belongs to: ``studies.specs`` for ``halflife.studies.specs.text``, empty for ``halflife``."""
    parts = module.split(".")[1:]
    return ".".join(parts[: 2 if parts[:1] == ["studies"] else 1])


def floor(package: str) -> int:
    """How far above the ground a package stands.

    Raises:
        LookupError: If the package is not in the table.
    """
    if package in TOP:
        return len(FLOORS)
    for index, packages in enumerate(FLOORS):
        if package in packages:
            return index
    raise LookupError(
        f"{package} has no floor: add it to FLOORS in tests/test_architecture.py, as far down as its imports allow."
    )


def allowed(source: str, target: str) -> bool:
    """Whether module ``source`` may import module ``target``."""
    one, other = package_of(source), package_of(target)
    if one != other and one in PLAIN and other not in PLAIN:
        return False
    return one == other or floor(other) < floor(one)


def walk(node: ast.AST, types: bool) -> Iterator[ast.AST]:
    """Every node of a tree; without ``types`` not those under ``if TYPE_CHECKING``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if types or not (isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING"):
            yield from walk(child, types)


def imported(
    source: str, *, module: str, is_package: bool, known: set[str], types: bool = True
) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that ``source`` imports, relative and lazy imports resolved.

    ``from a import b`` counts as ``a.b`` where that is a known module, else as ``a``. A call of
    ``import_module`` or ``__import__`` counts when it names its target in place.
    """
    package = module if is_package else module.rpartition(".")[0]
    for node in walk(ast.parse(source), types):
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


def imports_of(module: str, *, types: bool = True) -> list[tuple[int, str]]:
    """What a module of the package imports."""
    path = MODULES[module]
    return list(
        imported(
            path.read_text(encoding="utf-8"),
            module=module,
            is_package=path.name == "__init__.py",
            known=set(MODULES),
            types=types,
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
        ("halflife.optim.hooks", "halflife.rules.base", True),
        ("halflife.rules.base", "halflife.optim.hooks", False),  # up
        ("halflife.optim.hooks", "halflife.optim.apply", True),  # the same package
        ("halflife.laws.probe", "halflife.probes", False),  # the same floor
        ("halflife.studies.lab.images.loop", "halflife.studies.evidence.stats", False),
        ("halflife.studies.lab.images.loop", "halflife.optim", True),
        ("halflife.studies.report.pages.page", "halflife.groups", False),  # it lies below, and imports torch
        ("halflife.studies.catalog.images.augmentation", "halflife.studies.store.records", True),
        ("halflife.errors", "halflife.rules", False),  # the ground
        ("halflife.optim", "halflife", False),  # the package itself stands on top
        ("halflife.cli.main", "halflife.studies.runner.pool", True),
    ],
)
def test_the_law(source: str, target: str, answer: bool) -> None:
    assert allowed(source, target) is answer


def test_an_unknown_package_is_asked_to_be_placed() -> None:
    with pytest.raises(LookupError, match="news has no floor: add it to FLOORS"):
        allowed("halflife.cli", "halflife.news.daily")


# ---- the package


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_downward(module: str) -> None:
    floor(package_of(module))
    where = MODULES[module].relative_to(ROOT)
    wrong = [
        f"{where}:{line} imports {target}, which is not below it"
        for line, target in imports_of(module)
        if is_ours(target) and not allowed(module, target)
    ]
    if package_of(module) in PLAIN:
        wrong += [
            f"{where}:{line} imports {target}, and {package_of(module)} never does"
            for line, target in imports_of(module, types=False)
            if is_heavy(target)
        ]
    assert not wrong, "\n".join(wrong)


EVERY_IMPORT_COUNTS = "studies.evidence"  # there no cycle hides under TYPE_CHECKING or in a function, either


def test_no_import_cycle() -> None:
    """Imports at the top of the files form no cycle: each file can be read, and imported, on its own."""
    graph: dict[str, set[str]] = {}
    for module, path in MODULES.items():
        text = path.read_text(encoding="utf-8")
        if package_of(module) != EVERY_IMPORT_COUNTS:
            statements = [node for node in ast.parse(text).body if isinstance(node, ast.Import | ast.ImportFrom)]
            text = ast.unparse(ast.Module(body=list(statements), type_ignores=[]))
        found = imported(text, module=module, is_package=path.name == "__init__.py", known=set(MODULES))
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
    """``halflife`` and the PLAIN packages, one after the other in one fresh interpreter."""
    light = ["halflife", *(name for name in MODULES if package_of(name) in PLAIN)]
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
PAGES = [*sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs" / "reference").glob("*.md"))]


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
    assert not missing, f"add these to a page of docs/reference/: {missing}"


MEMBERS = re.compile(r"^::: (halflife[\w.]*)\n(?:    options:\n      members: \[(.*)\]\n)?", re.MULTILINE)


def reference() -> dict[str, list[str]]:
    """The names that each module has in the reference."""
    found: dict[str, list[str]] = {}
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        for module, names in MEMBERS.findall(page.read_text(encoding="utf-8")):
            listed = re.split(r",\s*", names) if names else list(getattr(resolve(module), "__all__", ()))
            found.setdefault(module, []).extend(listed)
    return found


@pytest.mark.parametrize(
    "module", ["halflife", "halflife.studies", *(f"halflife.{name}" for name in halflife._MODULES)]
)
def test_dir_shows_what_is_public_and_only_that(module: str) -> None:
    shown = dir(importlib.import_module(module))
    stars: dict[str, object] = {}
    if module != "halflife.studies":  # which has no list: names for files of users' own
        exec(f"from {module} import *", stars)
        assert set(stars) - {"__builtins__"} == set(shown)
    assert shown == sorted(shown)
    assert all(hasattr(importlib.import_module(module), name) for name in shown)


def test_the_reference_has_what_dir_shows() -> None:
    on_page = reference()
    wrong = [
        f"{module}.{name}"
        for module, names in on_page.items()
        for name in names
        if name
        not in (
            dir(resolve(module))
            if module in {f"halflife.{each}" for each in halflife._MODULES}
            else vars(resolve(module))
        )
    ]
    assert not wrong, f"docs/reference/ lists names that are not public: {wrong}"
    listed = {id(getattr(resolve(module), name)) for module, names in on_page.items() for name in names}
    public = {f"halflife.{each}.{name}" for each in halflife._MODULES for name in dir(getattr(halflife, each))}
    public |= {f"halflife.{name}" for name in dir(halflife) if name not in {"__version__", *halflife._MODULES}}
    missing = sorted(name for name in public if id(resolve(name)) not in listed)
    assert not missing, f"add these to docs/reference/: {missing}"


def test_every_public_name_has_a_docstring() -> None:
    kinds = (inspect.isclass, inspect.isroutine, inspect.ismodule)
    things = {name: getattr(halflife, name) for name in halflife.__all__}
    described = {name: thing for name, thing in things.items() if any(kind(thing) for kind in kinds)}
    assert not [name for name, thing in described.items() if not (thing.__doc__ or "").strip()]


def test_public_names_are_listed_and_exist() -> None:
    assert halflife.__all__, "halflife.__all__ lists the public names"
    assert len(set(halflife.__all__)) == len(halflife.__all__)
    assert set(halflife.__all__) <= set(dir(halflife)), "dir(halflife) shows every public name, lazy ones too"


def test_no_module_has_the_name_of_a_public_function() -> None:
    """Importing such a module would hide the function: ``halflife.attach`` would be a module from then on."""
    functions = [name for name in halflife.__all__ if inspect.isroutine(getattr(halflife, name))]
    assert not [name for name in functions if f"halflife.{name}" in MODULES]


def test_import_halflife_gives_every_package_that_is_documented() -> None:
    paths = (
        "errors.UserError",
        "groups.Policy",
        "groups.KINDS",
        "laws.laws_of",
        "laws.Law",
        "audit.Finding",
        "optim.attach",
        "selfcheck",
        "rules.rule_from",
    )
    code = f"""
import halflife
for path in {paths!r}:
    thing = halflife
    for name in path.split("."):
        thing = getattr(thing, name)
"""
    assert fresh(code) == ""
