"""halflife audit: what a user's own code builds, in a terminal, for machines and in a CI."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from halflife.audit.found import choose, search
from halflife.audit.target import audit, load
from halflife.cli import main as cli
from halflife.errors import UserError

TRAIN = '''
"""A user's training script."""
import atexit
import os
import sys

import torch
from torch import nn

import halflife
import settings  # stands beside it

print("importing", __name__, sys.argv)
if __name__ == "__main__":
    raise SystemExit("trained for a week")


def make_model():
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 1))


def make_optimizer():
    print("user text on standard output")
    model = make_model()
    groups = halflife.param_groups(model, weight_decay=settings.LAM)
    return model, torch.optim.AdamW(groups, lr=1e-3)


def only_optimizer():
    return torch.optim.SGD(make_model().parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)


def two():
    model = make_model()
    first = torch.optim.Adafactor([model[0].weight], lr=0.02, weight_decay=0.1)
    return model, [first, torch.optim.AdamW(model[2].parameters(), lr=1e-3, weight_decay=0.1)]


class Refusing(torch.optim.SGD):
    def step(self, closure=None):
        raise KeyError("rank")


def not_probed():
    model = make_model()
    return model, Refusing(model.parameters(), lr=0.1, weight_decay=0.1)


def attached():
    model = make_model()
    optimizer = torch.optim.SGD(halflife.param_groups(model, weight_decay=0.1), lr=0.1, momentum=0.9)
    halflife.attach(optimizer, halflife.HalfLife(steps=500))
    return model, optimizer


class Lit(nn.Module):
    """Shaped as a LightningModule."""

    def __init__(self):
        super().__init__()
        self.net = make_model()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=0.1)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.ConstantLR(optimizer)}


def schedulers():
    optimizer = only_optimizer()
    return [optimizer], [torch.optim.lr_scheduler.ConstantLR(optimizer)]


def one_dict():
    return [{"optimizer": only_optimizer()}, {"optimizer": only_optimizer()}]


ready = only_optimizer()


def needs(lr, *, model, verbose=False):
    return None


def raises():
    return deeper()


def deeper():
    raise RuntimeError("no data\\nat all")


def leaves():
    sys.exit(3)


def ends():
    os._exit(0)


def becomes_another():
    os.execvp("true", ["true"])


def forks():
    child = os.fork()
    if child == 0:
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    return make_optimizer()


class Ending(torch.optim.SGD):
    def step(self, closure=None):
        os._exit(0)


def ends_in_a_step():
    model = make_model()
    return model, Ending(model.parameters(), lr=0.1, weight_decay=0.1)


class Leaving(torch.optim.SGD):
    def step(self, closure=None):
        sys.exit(0)


def leaves_in_a_step():
    model = make_model()
    return model, Leaving(model.parameters(), lr=0.1, weight_decay=0.1)


def ends_at_the_end():
    atexit.register(os._exit, 0)
    return make_optimizer()


def lazy():
    model = nn.Sequential(nn.LazyLinear(4), nn.Linear(4, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)


def no_optimizer():
    return make_model()


def returns_none():
    return None


def returns_pair():
    return 3, "x"
'''


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "train.py").write_text(TRAIN, encoding="utf-8")
    (tmp_path / "settings.py").write_text("LAM = 0.1\n", encoding="utf-8")
    (tmp_path / "pack").mkdir()
    (tmp_path / "pack" / "__init__.py").write_text("", encoding="utf-8")
    (tmp_path / "pack" / "make.py").write_text("from train import make_optimizer as build\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def run(*arguments: str) -> Result:
    """The command without its ``main``, so that an error of the user's stays an exception."""
    return CliRunner().invoke(cli.app, ["audit", *arguments])


# ---- as a process


def test_the_process_writes_one_document_and_nothing_else(folder: Path) -> None:
    loud = "import atexit, os\natexit.register(print, 'late')\nos.system('echo from below')\n"
    (folder / "train.py").write_text(TRAIN + loud, encoding="utf-8")
    command = [sys.executable, "-W", "error", "-m", "halflife", "audit", "train.py:make_optimizer", "--json"]
    command += ["--expect", "matrices=decoupled:0.1", "--expect", "decoupled:0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["target"] == "train.py:make_optimizer"
    assert document["ok"] is False
    assert [each["holds"] for each in document["expectations"]] == [True, False]
    assert [row["parameter"] for row in document["rows"] if row["decays"]] == ["0.weight", "2.weight"]
    assert document["groups"][0]["law"] == "decoupled"
    for said in ("importing train ['train.py']", "user text on standard output", "from below", "late"):
        assert said in done.stderr
    assert (
        "does not hold: all parameters that decay: expected decoupled:0.2, but 2 of 2 differ. "
        "0.weight: found decoupled:0.1; 2.weight: found decoupled:0.1\n"
    ) in done.stderr
    assert "Traceback" not in done.stderr


def test_a_wrong_target_is_one_sentence_and_code_2(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["halflife", "audit", "train.py:raises"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 2
    line = 1 + TRAIN[: TRAIN.index('raise RuntimeError("no data')].count("\n")
    printed = capsys.readouterr()
    assert printed.err.splitlines(keepends=True)[-1] == (
        f"error: train.py:raises raised RuntimeError: no data (train.py, line {line}); correct it, or name another function\n"
    )
    assert printed.out == ""


def test_a_pipe_has_no_width(folder: Path) -> None:
    (folder / "long.py").write_text(
        "import torch\nname = 'part_of_a_long_name_' * 8\nmodel = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2)})\n"
        "optimizer = torch.optim.SGD(model.parameters(), lr=0.1)\n",
        encoding="utf-8",
    )
    (folder / "pair.py").write_text("from long import *\nboth = model, optimizer\n", encoding="utf-8")
    lines = run("pair.py:both").stdout.splitlines()
    assert any("part_of_a_long_name_" * 8 + ".weight" in line for line in lines)
    assert lines == [line.rstrip() for line in lines]


@pytest.mark.parametrize(
    "form", ["{'model': m, 'optimizer': o}", "{'model': m, 'optimizer': [o]}", "(o, m)", "(m, o, None)"]
)
def test_the_model_is_found_beside_the_optimizer(folder: Path, form: str) -> None:
    (folder / "forms.py").write_text(
        f"from train import make_optimizer\nm, o = make_optimizer()\nfound = {form}\n", encoding="utf-8"
    )
    result = run("forms.py:found", "--expect", "matrices=decoupled:0.1", "--expect", "norms=none")
    assert result.exit_code == 0, result.output


def test_a_class_is_no_optimizer(folder: Path) -> None:
    (folder / "forms.py").write_text("import torch\ndef found(): return torch.optim.AdamW\n", encoding="utf-8")
    result = run("forms.py:found")
    assert "gave the class AdamW, which nobody has called; expected an optimizer" in str(result.exception)


# ---- expectations


@pytest.mark.parametrize(
    ("target", "expected", "code"),
    [
        ("make_optimizer", ["decoupled:0.1"], 0),
        ("make_optimizer", ["decoupled:0.10005"], 0),  # relative 1e-3
        ("make_optimizer", ["decoupled:0.1002"], 1),
        ("make_optimizer", ["none"], 1),
        ("make_optimizer", ["independent:0.1"], 1),
        ("make_optimizer", ["matrices=decoupled:0.1", "norms=none", "biases=none"], 0),
        ("make_optimizer", ["*.bias=none", "*=decoupled:0.1"], 1),  # the norm does not decay
        ("make_optimizer", ["*.bias=none", "1.*=none", "*=decoupled:0.1"], 0),
        ("only_optimizer", ["l2:5e-4"], 0),
        ("only_optimizer", ["decoupled:5e-4"], 1),
        ("two", ["decoupled:0.1"], 0),
        ("attached", ["half-life:500"], 0),
        ("attached", ["l2:0.1"], 1),
        ("not_probed", ["none"], 1),
        ("not_probed", ["matrices=none"], 1),
        ("not_probed", ["decoupled:0.1"], 1),
    ],
)
def test_expectations(folder: Path, target: str, expected: list[str], code: int) -> None:
    options = [word for text in expected for word in ("--expect", text)]
    result = run(f"train.py:{target}", *options)
    assert result.exit_code == code, result.output
    assert result.stderr.count("does not hold:") == (1 if code else 0)


def test_not_probed_is_never_none(folder: Path) -> None:
    result = run("train.py:not_probed", "--expect", "none")
    assert "found not probed:" in result.stderr
    assert "decays: not known, not probed:" in " ".join(result.stdout.split())


def test_nothing_decays(folder: Path) -> None:
    (folder / "settings.py").write_text("LAM = 0.0\n", encoding="utf-8")
    assert run("train.py:make_optimizer", "--expect", "none").exit_code == 0
    result = run("train.py:make_optimizer", "--expect", "decoupled:0.1")
    assert result.exit_code == 1
    assert "expected decoupled:0.1, but nothing decays" in result.stderr


def test_a_failed_expectation_in_the_document(folder: Path) -> None:
    result = run("train.py:make_optimizer", "--json", "--expect", "norms=decoupled:0.1")
    assert result.exit_code == 1
    document = json.loads(result.stdout)
    assert document["ok"] is False
    (check,) = document["expectations"]
    assert (check["expected"], check["holds"]) == ("norms=decoupled:0.1", False)
    assert check["sentence"].startswith("norms: expected decoupled:0.1, but 2 of 2 differ. 1.weight: found none")


# ---- what a target may be


@pytest.mark.parametrize(
    ("target", "num_optimizers", "has_model"),
    [
        ("train.py:make_optimizer", 1, True),
        ("train.py:only_optimizer", 1, False),
        ("train.py:two", 2, True),
        ("train.py:Lit", 1, True),
        ("train.py:schedulers", 1, False),
        ("train.py:one_dict", 2, False),
        ("train.py:ready", 1, False),
        ("./train.py:two", 2, True),
        ("train:two", 2, True),
        ("pack.make:build", 1, True),
    ],
)
def test_forms(folder: Path, target: str, num_optimizers: int, has_model: bool) -> None:
    found = load(target)
    assert len(found.optimizers) == num_optimizers
    assert all(isinstance(optimizer, torch.optim.Optimizer) for optimizer in found.optimizers)
    assert isinstance(found.model, nn.Module) is has_model


def made() -> tuple[nn.Module, torch.optim.Optimizer, torch.optim.Optimizer]:
    model = nn.Linear(2, 2)
    return model, torch.optim.AdamW(model.parameters(), lr=1e-3), torch.optim.SGD(model.parameters(), lr=1e-3)


MODEL, FIRST, SECOND = made()
PLAN = torch.optim.lr_scheduler.ConstantLR(FIRST)


@pytest.mark.parametrize(
    ("value", "model", "optimizers"),
    [
        (FIRST, None, [FIRST]),
        ([FIRST, SECOND], None, [FIRST, SECOND]),
        ((MODEL, FIRST), MODEL, [FIRST]),
        ((MODEL, [FIRST, SECOND]), MODEL, [FIRST, SECOND]),
        ((MODEL, FIRST, PLAN), MODEL, [FIRST]),  # and what else a function of one's own returns
        (([FIRST, SECOND], [PLAN]), None, [FIRST, SECOND]),
        (([FIRST], [{"scheduler": PLAN, "interval": "step"}]), None, [FIRST]),
        ({"optimizer": FIRST, "lr_scheduler": PLAN}, None, [FIRST]),
        (({"optimizer": FIRST}, {"optimizer": SECOND, "lr_scheduler": PLAN}), None, [FIRST, SECOND]),
        ((MODEL, {"optimizer": SECOND}), MODEL, [SECOND]),
        ([PLAN], None, [FIRST]),
    ],
)
def test_what_a_function_may_return(value: Any, model: nn.Module | None, optimizers: list[Any]) -> None:
    found = choose(search([("", value)]))
    assert found.model is model
    assert list(map(id, found.optimizers)) == list(map(id, optimizers))


@pytest.mark.parametrize("value", [None, 3, "text", [], (MODEL,), (MODEL, None), MODEL, {"model": MODEL}])
def test_what_it_may_not(value: Any) -> None:
    assert choose(search([("", value)])).optimizers == []


# ---- the user's mistakes


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("train.py", "the target is 'train.py', expected path/to/file.py:function or package.module:function"),
        (":f", "the target is ':f', expected"),
        ("train.py:", "the target is 'train.py:', expected"),
        ("nothere.py:f", "there is no file nothere.py"),
        ("./pack:f", "^./pack is a folder; give the path of the file in it that builds the optimizer"),
        ("..:f", "there is no module ..; give package.module:function"),
        ("pack/train:f", "there is no file pack/train"),
        ("nothere.mod:f", "there is no module nothere"),
        ("pack.nothere:f", "there is no module pack.nothere"),
        ("train.py:nothere", "train.py has no nothere; there are make_model, make_optimizer, only_optimizer, two"),
        (
            "train.py:needs",
            r"train.py:needs needs lr, model: give them with --with, or name a function that calls it\n",
        ),
        ("train.py:raises", r"train.py:raises raised RuntimeError: no data \(train.py, line \d+\); correct it"),
        ("train.py:leaves", r"train.py:leaves called exit\(3\) \(train.py, line \d+\)"),
        ("train.py:ends", r"train.py:ends called os._exit\(0\) \(train.py, line \d+\); correct it"),
        ("train.py:becomes_another", r"called os.execve?\('.*true'\) \(train.py, line \d+\); correct it"),
        (
            "train.py:no_optimizer",
            "gave the model Sequential without an optimizer; expected an optimizer, or something",
        ),
        ("train.py:returns_none", "train.py:returns_none gave None; expected an optimizer"),
        ("train.py:returns_pair", "gave a tuple of int, str; expected an optimizer"),
        ("train.py:settings.LAM", "gave an object of type float"),
    ],
)
def test_mistakes(folder: Path, target: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(target)
    assert not isinstance(run(target).exception, SystemExit)  # the command leaves it to `main`, which exits with 2


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (
            "ends_in_a_step",
            r"the optimizer of train.py:ends_in_a_step called os._exit\(0\) \(train.py, line \d+\) while its",
        ),
        ("lazy", "0.weight has no shape yet; run one forward pass first"),
    ],
)
def test_what_goes_wrong_while_it_is_explained(folder: Path, target: str, message: str) -> None:
    before = os._exit
    with pytest.raises(UserError, match=message):
        audit(f"train.py:{target}", ["none"])
    assert os._exit is before


def test_a_step_that_exits_is_not_probed(folder: Path) -> None:
    result = run("train.py:leaves_in_a_step", "--expect", "none")
    assert result.exit_code == 1
    assert "found not probed: SystemExit: 0" in result.stderr


def test_a_forked_process_ends_as_ever(folder: Path) -> None:
    assert audit("train.py:forks", ["decoupled:0.1"]).checks[0].holds


def test_nothing_late_changes_the_exit_code(folder: Path) -> None:
    command = [sys.executable, "-m", "halflife", "audit", "train.py:ends_at_the_end", "--expect", "decoupled:0.2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1, done.stderr
    assert "does not hold: all parameters that decay: expected decoupled:0.2" in done.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "import nothere_at_all\n",
            r"importing broken.py raised ModuleNotFoundError: No module named .* \(broken.py, line 1\)",
        ),
        ("def f(:\n", r"importing broken.py raised SyntaxError: .* \(broken.py, line 1\)"),
        ("x = 1\n1 / 0\n", r"importing broken.py raised ZeroDivisionError: division by zero \(broken.py, line 2\)"),
        (
            "import sys\nsys.exit('usage: ...')\n",
            r"importing broken.py called exit\('usage: ...'\) \(broken.py, line 2\)",
        ),
        ("import json\ndef f():\n    json.loads('{')\n", r"raised JSONDecodeError: .* \(broken.py, line 3\)"),
    ],
)
def test_files_that_do_not_work(folder: Path, text: str, message: str) -> None:
    (folder / "broken.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load("broken.py:f")
    assert ("broken" in sys.modules) is ("def f():" in text)  # what could not be imported is not left behind


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ("adamw:0.1", "got 'adamw:0.1'; LAW is one of none, decoupled"),
        ("matrices=", "got ''; LAW is one of"),
        ("=none", "'=none' has no key"),
        ("matrx=none", "'matrx' matches no trainable parameter"),
        ("decoupled:x", "the number in 'decoupled:x'"),
    ],
)
def test_expectations_that_cannot_be_read(folder: Path, expected: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        audit("train.py:make_optimizer", [expected])


def test_kinds_need_the_model(folder: Path) -> None:
    with pytest.raises(UserError, match="gave only an optimizer, whose parameters have no kinds such as 'norms'"):
        audit("train.py:only_optimizer", ["norms=none"])


def test_a_file_named_like_a_module_in_use(folder: Path) -> None:
    """``json.py`` beside the training script: python would take it; nothing of ours may break."""
    (folder / "json.py").write_text(TRAIN, encoding="utf-8")
    result = run("json.py:only_optimizer", "--json")
    assert json.loads(result.stdout)["groups"][0]["law"] == "l2"


# ---- the command


def test_what_people_see(folder: Path) -> None:
    result = run("train.py:make_optimizer", "--expect", "matrices=decoupled:0.1")
    assert result.exit_code == 0
    words = " ".join(result.stdout.split())
    assert "AdamW, group 0: 2 parameters, 16 numbers, float32 decoupled: r = lr * lam (native)" in words
    assert "holds: matrices=decoupled:0.1" in words
    assert "user text on standard output" not in result.stdout
    assert "user text on standard output" in result.stderr


def test_the_attached_rule_is_seen(folder: Path) -> None:
    table = audit("train.py:attached").table
    assert table.groups[0]["rule"] == "HalfLife(steps=500.0)"
    assert table.groups[0]["half_life"] == pytest.approx(500)
