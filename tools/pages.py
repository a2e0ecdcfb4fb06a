"""Write what the navigation of mkdocs.yml and the docstrings say: docs/reference/index.md and docs/llms.txt.

python tools/pages.py write    write both
python tools/pages.py check    fail if one of them is not what `write` would write
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
SHORT = 120  # characters of a first paragraph that is told whole
DIRECTIVE = re.compile(
    r"^::: (?P<module>halflife[\w.]*)\n(?: +options:\n +members: \[(?P<members>[^]]*)\])?", re.MULTILINE
)

REFERENCE = """# Reference

The public names, with a line each, and the pages that have the rest. `import halflife` offers those that begin with `halflife`;
the others live in the module that heads their table. Importing the package does not import torch; each name is loaded when it
is first used. `halflife.__version__` is the version.
"""
LLMS = """# halflife

> {summary}

The distribution is `torch-halflife`, the import `halflife`, the command `halflife`. The core needs PyTorch alone. A rule of
weight decay answers one question: which fraction r of the weight a step removes, w <- (1 - r) * w.
"""


class Loader(yaml.SafeLoader):
    """Reads mkdocs.yml, whose address of the repository comes from the environment."""


Loader.add_constructor("!ENV", lambda loader, node: "")


def config() -> dict[str, Any]:
    """What mkdocs.yml says."""
    found: dict[str, Any] = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)
    return found


def pages_of(nav: list[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Title and path of the pages of a navigation, those of its sections too."""
    for entry in nav:
        for title, page in entry.items():
            yield from pages_of(page) if isinstance(page, list) else [(title, page)]


def first_words(page: str) -> str:
    """What a page is about.

    Returns:
        The first sentence below the title, or the first paragraph if that is short, without marks.

    Raises:
        ValueError: The page has no paragraph there.
    """
    text = (DOCS / page).read_text(encoding="utf-8")
    for paragraph in re.split(r"\n{2,}", text)[1:]:
        if paragraph[0] not in "#|:<`![":
            words = re.sub(r"\[([^]]*)\]\([^)]*\)|\*\*", r"\1", " ".join(paragraph.split()))
            return words if len(words) <= SHORT else re.split(r"(?<=[.?:]) (?=[A-Z`])", words)[0].rstrip(":")
    raise ValueError(f"docs/{page} has no paragraph below its title")


def llms() -> str:
    """The pages by section, in the form of llmstxt.org, for programs that read."""
    settings = config()
    lines = [LLMS.format(summary=settings["site_description"])]
    loose: list[tuple[str, str]] = []
    sections: list[tuple[str, list[tuple[str, str]]]] = [("Start", loose)]
    for entry in settings["nav"]:
        for title, page in entry.items():
            if isinstance(page, list):
                sections.append((title, list(pages_of(page))))
            else:
                loose.append((title, page))
    for name, pages in sections:
        lines += [f"## {name}\n"]
        for title, page in pages:
            folder = re.sub(r"(^|/)index$", "", page.removesuffix(".md")) or "."
            lines.append(f"- [{title}]({folder}/): {first_words(page)}")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def names_of(module: Any, members: str | None) -> list[str]:
    """What a page shows of a module.

    Returns:
        The names.

    Raises:
        LookupError: One of them is not there.
    """
    names = [name.strip() for name in members.split(",")] if members else list(module.__all__)
    if missing := [name for name in names if not hasattr(module, name)]:
        raise LookupError(f"{module.__name__} has no {', '.join(missing)}")
    return names


def line_of(module: Any, name: str) -> str:
    """The first line of a name's docstring; of a value that has none, nothing, and its page does not show it."""
    thing = getattr(module, name)
    described = inspect.isclass(thing) or inspect.isroutine(thing)
    text = inspect.getdoc(thing) if described else value_docstrings(module).get(name)
    return " ".join((text or "").split("\n\n")[0].split()).replace("``", "`").replace("|", "\\|")


def value_docstrings(module: Any) -> dict[str, str]:
    """The strings that stand below the values of a module."""
    found: dict[str, str] = {}
    body = ast.parse(inspect.getsource(module)).body
    for statement, below in itertools.pairwise(body):
        if isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant) and isinstance(below.value.value, str):
            targets = statement.targets if isinstance(statement, ast.Assign) else [getattr(statement, "target", None)]
            found |= {target.id: below.value.value for target in targets if isinstance(target, ast.Name)}
    return found


def reference() -> str:
    """A table for every module that the pages of the reference show."""
    top = set(importlib.import_module("halflife").__all__)
    parts = [REFERENCE]
    for title, page in pages_of(config()["nav"]):
        if not page.startswith("reference/") or page.endswith("index.md"):
            continue
        file = page.removeprefix("reference/")
        parts.append(f"\n## {title}\n\n[{title}]({file}): {first_words(page)}\n")
        for match in DIRECTIVE.finditer((DOCS / page).read_text(encoding="utf-8")):
            module = importlib.import_module(match["module"])
            parts.append(f"\n| `{match['module']}` | |\n| --- | --- |\n")
            for name in names_of(module, match["members"]):
                top_level = name in top and getattr(sys.modules["halflife"], name) is getattr(module, name)
                shown, line = f"`halflife.{name}`" if top_level else f"`{name}`", line_of(module, name)
                linked = f"[{shown}]({file}#{match['module']}.{name})" if line else shown
                parts.append(f"| {linked} | {line} |\n")
    return "".join(parts)


def made() -> dict[Path, str]:
    """The files and what they hold."""
    return {DOCS / "reference" / "index.md": reference(), DOCS / "llms.txt": llms()}


def main(arguments: list[str]) -> None:
    """Do what the module's text says."""
    match arguments:
        case ["write"]:
            index = DOCS / "reference" / "index.md"
            index.write_text(reference(), encoding="utf-8")  # llms.txt quotes it
            (DOCS / "llms.txt").write_text(llms(), encoding="utf-8")
        case ["check"]:
            wrong = [
                str(path.relative_to(ROOT)) for path, text in made().items() if path.read_text(encoding="utf-8") != text
            ]
            sys.exit(
                f"{', '.join(wrong)}: not what mkdocs.yml and the docstrings say, run tools/pages.py write"
                if wrong
                else 0
            )
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
