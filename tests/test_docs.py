"""The documentation is executed: Python blocks run, and the commands it quotes exist."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import warnings
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests import ROOT
from tests.studies.tools import load_tool

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

FENCE = re.compile(
    r"^(?P<indent> *)(?P<marks>```+)(?P<language>[\w-]*)[^\n]*\n(?P<body>.*?)^(?P=indent)(?P=marks) *$",
    re.MULTILINE | re.DOTALL,
)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


class Block(NamedTuple):
    language: str
    body: str
    line: int  # of the first line of the body, from 1


class Command(NamedTuple):
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}: {self.text}"


def blocks(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for match in FENCE.finditer(text):
        body = re.sub(rf"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
        found.append(Block(match["language"], body, text.count("\n", 0, match.start()) + 2))
    return found


def commands_of(page: str, text: str) -> Iterator[Command]:
    """The ``make`` and ``halflife`` commands that a page quotes, in fenced blocks and in running text."""
    quoted: list[tuple[int, str]] = []
    for block in blocks(text):
        if block.language not in {"python", "yaml", "toml"}:
            joined = re.sub(r"\\\n\s*", " ", block.body)
            quoted += [(block.line + i, line) for i, line in enumerate(joined.splitlines())]
    prose = FENCE.sub(lambda m: "\n" * m[0].count("\n"), text)
    quoted += [(prose.count("\n", 0, m.start()) + 1, m[1]) for m in INLINE.finditer(prose)]
    for line, raw in quoted:
        for part in re.split(r"&&|;|\|(?!\w)", raw.split(" #")[0]):
            words = part.strip().removeprefix("$ ").removeprefix(".venv/bin/").strip()
            if re.match(r"(make|halflife) +\S", words):
                yield Command(page, line, words)


COMMANDS = [c for page in PAGES for c in commands_of(page.name, page.read_text(encoding="utf-8"))]
MAKE = [c for c in COMMANDS if c.text.startswith("make ")]
HALFLIFE = [c for c in COMMANDS if c.text.startswith("halflife ")]

# ---- Python blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One namespace per page, from top to bottom, in an empty folder, with warnings as errors."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HALFLIFE_STORE", str(tmp_path / "store"))
    namespace: dict[str, Any] = {"__name__": page.stem}
    for block in blocks(page.read_text(encoding="utf-8")):
        if block.language != "python":
            continue
        # Blank lines in front, so that a traceback names the line of the page.
        code = compile("\n" * (block.line - 1) + block.body, str(page), "exec", dont_inherit=True)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            exec(code, namespace)


# ---- commands


@cache
def targets() -> frozenset[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z][a-z-]*):.* ## ", makefile, re.MULTILINE))


@pytest.mark.parametrize("command", MAKE, ids=str)
def test_make_command_exists(command: Command) -> None:
    names = [word for word in shlex.split(command.text)[1:] if "=" not in word]
    assert names, f"{command} names no target"
    assert set(names) <= targets()


@cache
def root_command() -> Any:
    app = importlib.import_module("halflife.cli.main").app
    return importlib.import_module("typer").main.get_command(app)


@cache
def study_names() -> frozenset[str]:
    """The studies that there are, as the command line lists them."""
    runner = importlib.import_module("typer.testing").CliRunner()
    result = runner.invoke(importlib.import_module("halflife.cli.main").app, ["study", "list", "--json"])
    assert result.exit_code == 0, result.output
    return frozenset(row["name"] for row in json.loads(result.stdout)["studies"])


def check(command: Command) -> None:
    """Follow a quoted command through the command line: subcommands, options, names of studies."""
    words = shlex.split(command.text)[1:]
    node, path = root_command(), []
    while words and hasattr(node, "commands") and not words[0].startswith("-"):
        assert words[0] in node.commands, f"{command}: no such command, there are {sorted(node.commands)}"
        node = node.commands[words[0]]
        path.append(words.pop(0))
    options = {o: p for p in node.params for o in [*p.opts, *p.secondary_opts]} | {"--help": None}
    positional = []
    if "--" in words:  # the rest is for the user's own script
        del words[words.index("--") :]
    while words:
        word = words.pop(0)
        if word.startswith("-") and not word[1:2].isdigit():
            name, _, value = word.partition("=")
            assert name in options, f"{command}: no such option, there are {sorted(options)}"
            param = options[name]
            if param is not None and not getattr(param, "is_flag", False) and not value:
                assert words, f"{command}: {name} needs a value"
                words.pop(0)
        else:
            positional.append(word)
    if path in (["study", "run"], ["study", "verdicts"], ["report"], ["export"]):
        names = {
            w for w in positional
            if not w.isupper() and w not in {"...", "…"} and not w.startswith("[") and ".py:" not in w
        }  # fmt: skip
        assert names <= study_names(), f"{command}: no such study, there are {sorted(study_names())}"


@pytest.mark.parametrize("command", HALFLIFE, ids=str)
def test_halflife_command_exists(command: Command) -> None:
    check(command)


WRONG = ["halflife studies", "halflife study run nosuchstudy", "halflife study list --nosuchoption 3"]


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_command_is_noticed(text: str) -> None:
    with pytest.raises(AssertionError, match="no such"):
        check(Command("page", 1, text))


def test_commands_are_found() -> None:
    text = "Say `make lint`.\n\n```sh\n$ make test ARGS='-k x'  # all\nhalflife study \\\n  run a\n```\n"
    found = [command.text for command in commands_of("page", text)]
    assert found == ["make test ARGS='-k x'", "halflife study  run a", "make lint"]


def test_the_pages_quote_commands() -> None:
    assert MAKE
    assert HALFLIFE


# ---- what pages quote


def quoted(page: str, language: str) -> list[Block]:
    return [b for b in blocks((ROOT / page).read_text(encoding="utf-8")) if b.language == language]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_first_audit_is_what_the_command_says(page: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line, up to what is left out."""
    if page == "README.md":
        target = next(c.text.split()[-1] for c in HALFLIFE if c.page == page and c.text.startswith("halflife audit"))
        said = str(importlib.import_module("halflife.audit.target").audit(str(ROOT / target)).table)
    else:
        exec(compile(quoted(page, "python")[0].body, page, "exec"), {})
        said = capsys.readouterr().out
    lines = [line for line in quoted(page, "text")[0].body.splitlines() if line]
    assert len(lines) > 8
    rest = said
    for line in lines:
        beginning = " ".join(line.removesuffix("...").split())
        _, found, rest = " ".join(rest.split()).partition(beginning)
        assert found, f"{page} quotes {line!r}, and the command says\n{said}"


def test_frameworks_are_quoted_from_the_examples() -> None:
    text = (ROOT / "docs" / "frameworks.md").read_text(encoding="utf-8")
    quotes = re.findall(r'^```py title="([^"\n]*)"\n(.*?)^```$', text, re.MULTILINE | re.DOTALL)
    assert len(quotes) >= 10
    for name, body in quotes:
        lines = [line.strip() for line in (ROOT / name).read_text(encoding="utf-8").splitlines()]
        wanted = [line.strip() for line in body.splitlines()]
        places = range(len(lines) - len(wanted) + 1)
        assert any(lines[i : i + len(wanted)] == wanted for i in places), f"{name} has not:\n{body}"
    assert set(re.findall(r"^\|.*\| `(\w+\.py)` \|$", text, re.MULTILINE)) == {Path(name).name for name, _ in quotes}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_a_page_outside_the_docs_links_to_what_is_there(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text(encoding="utf-8"))
    assert [link for link in links if not (ROOT / link).exists()] == []


# ---- navigation, and what is made from it


@cache
def tool() -> Any:
    return load_tool("pages")


def test_every_page_is_in_the_navigation() -> None:
    config = tool().config()
    listed = [page for _, page in tool().pages_of(config["nav"])]
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))
    assert len(config["nav"]) == 7
    assert config["theme"]["font"] is False


def test_the_lists_of_names_and_pages_are_current() -> None:
    for path, text in tool().made().items():
        assert path.read_text(encoding="utf-8") == text, "run tools/pages.py write"


def test_programs_that_read_find_every_page() -> None:
    """The form of llmstxt.org: a title, a summary, sections of links with a line each."""
    text = (ROOT / "docs" / "llms.txt").read_text(encoding="utf-8")
    assert re.match(r"# halflife\n\n> \S.*\n\n", text)
    links = re.findall(r"^- \[[^]]+\]\((\S+)\): \S", text, re.MULTILINE)
    assert len(links) == len(re.findall(r"^- ", text, re.MULTILINE))
    pages = [page.relative_to(ROOT / "docs") for page in (ROOT / "docs").rglob("*.md")]
    addresses = {f"{page.parent if page.name == 'index.md' else page.with_suffix('')}/" for page in pages}
    assert {str(Path(link)) for link in links} == {str(Path(address)) for address in addresses}


def test_a_name_that_a_page_of_the_reference_lists_must_exist() -> None:
    with pytest.raises(LookupError, match="has no nosuchname"):
        tool().names_of(importlib.import_module("halflife.groups"), "param_groups, nosuchname")
