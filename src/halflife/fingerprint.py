"""The digest of the code that a run executes, so that a finished run is repeated only when its code has changed.

It covers the module that trains the run and every module of halflife that this one imports, directly or not, found by
reading the sources, without importing them. Docstrings, comments and layout do not count: an unrelated commit, or a
better sentence, must not throw hours of runs away.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from functools import cache
from pathlib import Path

__all__ = ["code_digest", "imported_modules", "stripped_source"]

PACKAGE = "halflife"


def stripped_source(source: str) -> str:
    r"""The source without docstrings, comments and layout.

    Args:
        source: Python source.

    Returns:
        Source that compiles to the same program, docstrings aside.

    Examples:
        >>> stripped_source('def f():\n    "Say."\n    return 1  # one')
        'def f():\n    return 1'
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            # A bare string is a no-op wherever it stands: a docstring, or a note under a field.
            body = [s for s in node.body if not (isinstance(s, ast.Expr) and _is_string(s.value))]
            node.body = body or [ast.Pass()]
    return ast.unparse(tree)


def _is_string(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _path(module: str) -> Path | None:
    """Where a module of the package lies; ``None`` when the name is no module (a class, say)."""
    root = importlib.util.find_spec(PACKAGE)
    assert root is not None
    assert root.submodule_search_locations
    base = Path(root.submodule_search_locations[0]).joinpath(*module.split(".")[1:])
    for path in (base.with_suffix(".py"), base / "__init__.py"):
        if path.is_file():
            return path
    return None


def _names(module: str, path: Path) -> Iterator[str]:
    """Every dotted name of the package that the module's source imports, at its top or inside a function."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            origin = ".".join(part for part in (base, node.module) if part)
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def imported_modules(entry: str) -> list[str]:
    """The modules of halflife that ``entry`` imports, directly or not, itself included.

    A package's ``__init__`` counts only where it is named itself: it forwards names, and a new module beside the ones
    that are used must not change the digest.

    Args:
        entry: Dotted name of a module of halflife.

    Returns:
        Dotted names, sorted.
    """
    found: dict[str, Path] = {}
    waiting = [entry]
    while waiting:
        name = waiting.pop()
        if name in found or not name.startswith(PACKAGE + "."):
            continue
        path = _path(name)
        if path is not None:
            found[name] = path
            waiting.extend(_names(name, path))
    return sorted(found)


@cache
def code_digest(entry: str) -> str:
    """sha256 over the stripped sources of `imported_modules`, in hexadecimal.

    Args:
        entry: The module that trains the run.

    Returns:
        The digest.

    Raises:
        ModuleNotFoundError: halflife has no such module.
    """
    modules = imported_modules(entry)
    if entry not in modules:
        raise ModuleNotFoundError(f"no module {entry}")
    digest = hashlib.sha256()
    for name in modules:
        path = _path(name)
        assert path is not None
        digest.update(f"{name}\0{stripped_source(path.read_text(encoding='utf-8'))}\0".encode())
    return digest.hexdigest()
