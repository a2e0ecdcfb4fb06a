"""What --with takes, and what is found in what a function returns."""

from __future__ import annotations

import dataclasses
import importlib
import json
import re
import shlex
import sys
import textwrap
from collections import deque, namedtuple
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from halflife.audit.arguments import OWN_OPTIONS, Settings, own_options, value_of
from halflife.audit.found import choose, search
from halflife.audit.target import audit, load
from halflife.cli import main as cli
from halflife.errors import UserError

FILE = '''
import dataclasses
import sys

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR


class Net(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.config = config
        self.body = nn.Linear(config.dim, config.dim)
        self.head = nn.Linear(config.dim, 1)

    def configure_optimizers(self, lr, *, weight_decay=0.5):
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=weight_decay)


@dataclasses.dataclass
class Config:
    dim: int = 3
    lr: float = 0.1


class Odd:
    """A class that is made from arguments, with a method that takes others."""

    def __init__(self, dim):
        self.net = nn.Linear(dim, 1)

    def build(self, lr):
        self.opt = torch.optim.SGD(self.net.parameters(), lr=lr, weight_decay=0.2)

    @staticmethod
    def apart(lr):
        return torch.optim.SGD(nn.Linear(2, 2).parameters(), lr=lr)


class Lit(nn.Module):
    """Shaped as a LightningModule."""

    def __init__(self, dim, lr=0.1):
        super().__init__()
        self.net, self.lr = nn.Linear(dim, 1), lr

    def configure_optimizers(self):
        steps = self.trainer.estimated_stepping_batches
        assert steps == self.trainer.max_epochs * self.trainer.num_training_batches == 2000
        assert len(self.trainer.datamodule.train_dataloader()) == 200
        assert self.trainer.world_size == 1 and not hasattr(self.trainer, "nothere")
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)
        return {"optimizer": optimizer, "lr_scheduler": LambdaLR(optimizer, lambda step: min(1, step / steps))}


class Asks(Lit):
    def configure_optimizers(self):
        return self.trainer.checkpoint_callback.dirpath


def small():
    return Net(Config())


def build(model, lr, weight_decay=0.1):
    return torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=weight_decay)


def by_config(config, model=None):
    model = model or Net(config.model)
    assert config["lr"] == config.lr and "lr" in vars(config)
    return model, torch.optim.SGD(model.parameters(), lr=config.lr, weight_decay=config.groups[0].wd)


def anything(model, **kwargs):
    return model, torch.optim.SGD(model.parameters(), **kwargs)


def only_by_place(model, lr, /):
    return torch.optim.SGD(model.parameters(), lr=lr, weight_decay=0.1)


def flags():
    assert sys.argv == ["user.py", "--wd", "0.3"], sys.argv
    return torch.optim.SGD(small().parameters(), lr=0.1, weight_decay=float(sys.argv[2]))


def wants_flags():
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--wd", required=True)
    return parser.parse_args()


def gan(dim=2):
    G, D = nn.Linear(dim, dim), nn.Linear(dim, 1)
    ema = nn.Linear(dim, dim)
    opt_G = torch.optim.AdamW(G.parameters(), lr=0.1, weight_decay=0.3)
    return G, D, ema, opt_G, torch.optim.SGD(D.parameters(), lr=0.1, weight_decay=0.2)


def one_by_one():
    yield torch.optim.SGD(small().parameters(), lr=0.1)


async def later(model=None):
    return small()


async def one_by_one_later():
    yield small()


ready = torch.optim.SGD(small().parameters(), lr=0.1)
'''


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "user.py").write_text(FILE, encoding="utf-8")
    (tmp_path / "conf.json").write_text('{"lr": 0.2, "model": {"dim": 5}, "groups": [{"wd": 0.3}]}', encoding="utf-8")
    (tmp_path / "conf.toml").write_text("lr = 0.2\n[model]\ndim = 5\n[[groups]]\nwd = 0.3\n", encoding="utf-8")
    (tmp_path / "ring.yaml").write_text("all: &all [1, *all]\n", encoding="utf-8")
    (tmp_path / "conf.yaml").write_text("lr: 0.2\nmodel: {dim: 5}\ngroups: [{wd: 0.3}]\n", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


# ---- values


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("(0.9, 0.95)", (0.9, 0.95)),
        ("[1, 'two', None, True]", [1, "two", None, True]),
        ("adamw", "adamw"),
        ("'a text'", "a text"),
        ("cuda:0", "cuda:0"),
        ("https://example.org/x:y", "https://example.org/x:y"),
        ("nothere:f", "nothere:f"),
        ("conf.json", {"lr": 0.2, "model": {"dim": 5}, "groups": [{"wd": 0.3}]}),
        ("conf.toml:groups", [{"wd": 0.3}]),
        ("conf.yaml:model.dim", 5),
        ("'conf.yaml'", "conf.yaml"),
        ("x.yaml", "x.yaml"),
        ("types:SimpleNamespace(lr=1e-3, betas=(0.9, 0.95))", SimpleNamespace(lr=1e-3, betas=(0.9, 0.95))),
        ("types.SimpleNamespace(a=1)", SimpleNamespace(a=1)),
        ("f(1)", "f(1)"),
        ("collections:deque([1, 2], maxlen=3)", deque([1, 2])),
        ("torch.nn:GELU", nn.GELU),
        ("torch.nn:LayerNorm", type),
    ],
)
def test_values(text: str, value: Any) -> None:
    found = value_of(text, "x")
    assert type(found) is value if isinstance(value, type) else found == value


def test_a_dict_has_attributes() -> None:
    config = value_of("{'lr': 0.1, 'model': {'dim': 3}, 'betas': ({'a': 1}, 2)}", "config")
    assert config.lr == config["lr"] == config.get("lr") == getattr(config, "lr", None) == vars(config)["lr"] == 0.1
    assert (config.model.dim, config.betas[0].a) == (3, 1)
    config.seed = 3
    config["lr"] = 0.2
    assert (config["seed"], config.lr, hasattr(config, "nothere"), dict(config) == config) == (3, 0.2, False, True)
    assert json.loads(json.dumps(config))["seed"] == 3
    assert isinstance(config, Settings)
    assert value_of("{1: 2}", "x") == {1: 2}


def test_files_are_imported_once() -> None:
    config = value_of("user.py:Config(dim=4)", "config")
    net = value_of("user.py:Net(user.py:Config(dim=4))", "model")
    assert type(net.config) is type(config)
    assert net.body.in_features == 4
    assert value_of("user.py:small", "model").head.in_features == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothere.py:f", "--with x=nothere.py:f: there is no file nothere.py; correct the path"),
        ("sub/x.yaml", "--with x=sub/x.yaml: there is no file sub/x.yaml; correct the path"),
        ("ring.yaml", "ring.yaml holds itself, or is too deep; write it out flat"),
        ("nothere.mod:f", "there is no file or module nothere.mod; write it in quotes if it is a text"),
        (
            "user.py:nothere",
            "--with x=user.py:nothere: user.py has no nothere; there are Net, Config, .*: correct the name",
        ),
        ("user.py:Confg", r"user.py has no Confg \(did you mean Config\?\); there are"),
        ("user.py:ready(1)", "user.py:ready cannot be called; leave the brackets away"),
        ("conf.json:model.depth", "conf.json has no model.depth; there are dim"),
    ],
)
def test_values_that_are_not_there(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        value_of(text, "x")


def test_a_settings_file_that_cannot_be_read(folder: Path) -> None:
    (folder / "broken.json").write_text("{", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"--with x=broken.json: broken.json cannot be read \(Expecting .*\); correct it"
    ):
        value_of("broken.json", "x")


# ---- calls


@pytest.mark.parametrize(
    ("target", "given", "names", "expected"),
    [
        ("build", ["model=user.py:small", "lr=1e-3"], ["body.weight"], "decoupled:0.1"),
        ("build", ["model=user:small", "lr=1e-3", "weight_decay=0.2"], ["body.weight"], "decoupled:0.2"),
        ("by_config", ["config=conf.yaml"], ["body.weight"], "l2:0.3"),
        ("by_config", ["config={'lr': 0.1, 'model': {'dim': 2}, 'groups': [{'wd': 0.4}]}"], ["body.weight"], "l2:0.4"),
        ("anything", ["model=user.py:small", "lr=0.1", "weight_decay=0.5"], ["body.weight"], "l2:0.5"),
        ("only_by_place", ["lr=0.1", "model=user.py:small"], ["body.weight"], "l2:0.1"),
        ("Net.configure_optimizers", ["self=user.py:small", "lr=0.1"], ["body.weight"], "decoupled:0.5"),
        ("Net.configure_optimizers", ["config=conf.json:model", "lr=0.1"], ["body.weight"], "decoupled:0.5"),
        ("Odd.build", ["dim=4", "lr=0.1"], ["weight"], "l2:0.2"),
        ("Odd.apart", ["lr=0.1"], None, "none"),
        ("Lit", ["dim=4"], ["net.weight"], "decoupled:0.1"),
        ("Lit.configure_optimizers", ["dim=4", "lr=0.2"], ["net.weight"], "decoupled:0.1"),
    ],
)
def test_calls(target: str, given: list[str], names: list[str] | None, expected: str) -> None:
    done = audit(f"user.py:{target}", [expected], given=given, total_steps=2000)
    assert [check.sentence for check in done.checks if not check.holds] == []
    if names is not None:
        assert [row["parameter"] for row in done.table.rows][:1] == names


def test_the_names_of_a_tuple_are_those_of_the_return() -> None:
    done = audit("user.py:gan", ["G.*=decoupled:0.3", "D.*=l2:0.2"])
    assert [check.sentence for check in done.checks] == ["", ""]
    assert str(done.found) == (
        "found: 2 models (G, D), 2 optimizers (AdamW, SGD); left out: ema (Linear), a model whose parameters are in no "
        "optimizer"
    )


def test_arguments_of_the_script() -> None:
    assert audit("user.py:flags", ["l2:0.3"], arguments=["--wd", "0.3"]).checks[0].holds


NEEDS = """user.py:build needs model, lr: give them with --with, or name a function that calls it

  halflife audit user.py:build --with "model=user.py:Asks(dim=8)" --with lr=1e-3

  # or in a file make.py beside it, audited as make.py:make
  from user import build, Asks


  def make():
      model = Asks(dim=8)
      lr = 1e-3
      return model, build(model=model, lr=lr)"""


def test_what_is_missing_is_ready_to_be_pasted() -> None:
    with pytest.raises(UserError) as caught:
        load("user.py:build")
    assert str(caught.value) == NEEDS


FACTORIES = """
from __future__ import annotations

import dataclasses

import torch
from torch import nn


@dataclasses.dataclass
class OptConf:
    name: str
    lr: float
    wd: float = 0.1


class Block(nn.Module):
    def __init__(self, conf):
        super().__init__()
        self.mix = nn.Linear(conf["width"], conf["width"])


class Big(nn.Module):
    def __init__(self, conf, depth):
        super().__init__()
        self.layers = nn.ModuleList(Block(conf) for _ in range(depth))
        self.head = nn.Linear(conf["width"], 1)

    def optim(self, lr):
        return torch.optim.AdamW(self.parameters(), lr=lr, weight_decay=0.2)


def make_net():
    return nn.Linear(3, 3)


def by_parts(net, cfg):
    assert cfg.solver.name.lower() == "adamw"
    return torch.optim.AdamW(net.parameters(), lr=cfg.solver.lr, betas=cfg.solver.betas, weight_decay=cfg.wd)


def by_items(net, settings):
    return torch.optim.SGD(net.parameters(), lr=settings["opt"]["lr"], weight_decay=settings["opt"]["weight_decay"])


def by_both(net, hparams):
    return torch.optim.SGD(net.parameters(), lr=hparams["lr"], weight_decay=hparams.wd)


def by_class(net: nn.Module, conf: OptConf):
    assert type(conf) is OptConf
    return torch.optim.SGD(net.parameters(), lr=conf.lr, weight_decay=conf.wd)


def by_fields(net, opt):
    assert type(opt) is OptConf
    return torch.optim.SGD(net.parameters(), lr=opt.lr, weight_decay=opt.wd)


def passed_on(net, args):
    return by_parts(net, cfg=args)


def of_parameters(params, lr: float | None):
    return torch.optim.SGD(params, lr=lr, weight_decay=0.1)


def of_names(named_parameters, momentum, flag: bool):
    return torch.optim.SGD([p for _, p in named_parameters], lr=0.1, momentum=momentum, weight_decay=0.1, nesterov=flag)


def by_place(net, learning_rate, /):
    return torch.optim.SGD(net.parameters(), lr=learning_rate, weight_decay=0.1)


class Run:
    def __init__(self, net, cfg):
        self.net, self.cfg = net, cfg

    def build(self):
        self.opt = torch.optim.SGD(self.net.parameters(), lr=self.cfg.rates.lr, weight_decay=self.cfg.weight_decay)


def unknown(net, thing):
    return torch.optim.SGD(net.parameters(), lr=0.1, weight_decay=float(thing))
"""


PRINTED = (
    *("by_parts", "by_both", "by_fields", "of_parameters", "by_place", "Run.build"),
    *(
        pytest.param(name, marks=pytest.mark.slow)
        for name in ("by_items", "by_class", "passed_on", "of_names", "Big.optim")
    ),
)


@pytest.mark.parametrize("name", PRINTED)
def test_the_line_and_the_function_work_as_they_are_printed(folder: Path, name: str) -> None:
    """Both are pasted without a change, for factories that read their arguments in all kinds of ways."""
    (folder / "shop.py").write_text(FACTORIES, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load(f"shop.py:{name}")
    _, line, rest = str(caught.value).split("\n\n", 2)
    words = shlex.split(line)
    assert words[:3] == ["halflife", "audit", f"shop.py:{name}"]
    found = load(words[2], given=words[4::2])
    assert found.model is not None
    number = len(list(found.model.parameters()))
    assert [len(group["params"]) for group in found.optimizers[0].param_groups] == [number]
    (folder / "make.py").write_text(textwrap.dedent("  " + rest.partition("make.py:make\n  ")[2]), encoding="utf-8")
    pasted = load("make.py:make")
    assert pasted.model is not None
    assert len(list(pasted.model.parameters())) == number
    assert (
        pasted.optimizers[0].param_groups[0]["weight_decay"] == found.optimizers[0].param_groups[0]["weight_decay"] > 0
    )


def test_what_nobody_can_guess_is_dots(folder: Path) -> None:
    (folder / "shop.py").write_text(FACTORIES, encoding="utf-8")
    with pytest.raises(UserError, match=r'--with "net=shop.py:make_net\(\)" --with thing=\.\.\.\n') as caught:
        load("shop.py:unknown")
    with pytest.raises(UserError, match=r"--with thing=\.\.\.: write the value of thing in the place of the dots"):
        load("shop.py:unknown", given=["net=shop.py:make_net()", "thing=..."])
    rest = str(caught.value).partition("make.py:make\n  ")[2]
    (folder / "make.py").write_text(textwrap.dedent("  " + rest), encoding="utf-8")
    with pytest.raises(UserError, match=r"ellipsis.* \(shop.py, line \d+\); write values in the place of the dots"):
        load("make.py:make")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{'a': {'b': ...}}", "--with x={'a': {'b': ...}}: write the value of b in the place of the dots"),
        ("[1, ...]", "write the value of x in the place of the dots"),
        ("user.py:Config(dim=...)", r"--with x=...\(dim=...\): write the value of dim in the place of the dots"),
        ("user.py:small().parametrs()", "Net has no parametrs; correct it"),
        ("user.py:small().body.wait", "Linear has no wait; correct it"),
    ],
)
def test_values_that_are_not_finished(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        value_of(text, "x")


def test_what_a_call_gives_can_be_gone_into() -> None:
    parts = value_of("user.py:small().parameters()", "x")
    assert [tuple(each.shape) for each in parts] == [(3, 3), (3,), (1, 3), (1,)]
    assert value_of("user.py:Config(dim=4).dim", "x") == 4
    assert value_of("user.py:small().body.extra_repr()", "x") == "in_features=3, out_features=3, bias=True"
    assert value_of("f(1)(2)", "x") == "f(1)(2)"


@pytest.mark.parametrize(
    ("target", "given", "message"),
    [
        ("build", ["lr=1e-3"], "user.py:build needs model beside lr: give it with --with"),
        (
            "build",
            ["model=user.py:small", "rl=1"],
            "build has no argument rl; it takes model, lr, weight_decay",
        ),
        ("build", ["weightdecay=1"], r"has no argument weightdecay \(did you mean weight_decay\?\); it takes"),
        ("small", ["x=1"], "user.py:small has no argument x; it takes no arguments"),
        (
            "Net.configure_optimizers",
            [],
            r"needs self, lr: give .*\n\n.*\"self=user.py:Net\(config=user.py:Config\(\)\)\" --with lr=1e",
        ),
        ("ready", ["x=1"], "user.py:ready is an object and takes no arguments; leave --with away"),
        ("build", ["lr"], "--with 'lr' has no name; write --with NAME=VALUE"),
        ("build", ["lr=1", "lr=2"], "--with lr=... is given twice; give it once"),
        ("wants_flags", [], "ended with exit code 2, .* as in `halflife audit user.py:wants_flags -- --data DIR`"),
        ("one_by_one", [], r"gave a generator \(a generator, whose values would be used up; return a list of them\)"),
        (
            "Asks",
            ["dim=2"],
            "reads self.trainer.checkpoint_callback, and an audit has no trainer that knows it: run the",
        ),
        ("by_config", ["config={'lr': 1}"], "raised AttributeError: .* no attribute 'model'"),
        (
            "later",
            [],
            "user.py:later is an async function, expected a plain one: name one that returns what asyncio.run",
        ),
        ("one_by_one_later", [], "user.py:one_by_one_later is an async function, expected a plain one"),
        ("build", ["lr=1", "model=user.py:later"], "user.py:later is an async function, expected a plain one"),
        ("build", ["lr=1", "model=user.py:later(model=1)"], "user.py:later is an async function, expected a plain one"),
        ("build", ["lr=1", "model=bad.py:f"], r"--with model=bad.py:f raised ZeroDivisionError: .* \(bad.py, line 2\)"),
    ],
)
def test_mistakes(folder: Path, target: str, given: list[str], message: str) -> None:
    (folder / "bad.py").write_text("def f():\n    return 1 / 0\n", encoding="utf-8")
    with pytest.raises(UserError, match=message):
        load(f"user.py:{target}", given=given)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1\n[][1]\n", r"^importing own.py raised IndexError: .* \(own.py, line 2\); correct it"),
        ("import torch\ntorch.ones(-1)\n", r"^importing own.py raised RuntimeError: .* \(own.py, line 2\); correct"),
        ("import sub.lies\n", r"^importing own.py raised KeyError: 'x' \(sub/lies.py, line 3\); correct it"),
        ("def f(:\n", r"^importing own.py raised SyntaxError: invalid syntax \(own.py, line 1\); correct it"),
        (
            "x = 1\nexec('a b')\n",
            r"^importing own.py raised SyntaxError: invalid syntax \(own.py, line 2\); correct it",
        ),
        (
            "import own_nowhere\n",
            r"\(own.py, line 1\); install it in the environment of halflife \(.*\), or correct the",
        ),
    ],
)
def test_a_file_that_cannot_be_imported(folder: Path, text: str, message: str) -> None:
    (folder / "sub").mkdir()
    (folder / "sub" / "lies.py").write_text("\n\n{}['x']\n", encoding="utf-8")
    (folder / "own.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=message) as caught:
        load("own.py:make")
    line = re.search(r"\(\S+, line \d\)", str(caught.value))
    assert line is not None
    with pytest.raises(UserError, match=f"^--with model=own:make raised .*{re.escape(line[0])}"):
        load("user.py:build", given=["model=own:make", "lr=1"])


def test_what_lies_in_the_current_folder_is_named_as_a_module(folder: Path) -> None:
    (folder / "src_of_it").mkdir()
    (folder / "src_of_it" / "train.py").write_text("from src_of_it.nothere import x\n", encoding="utf-8")
    with pytest.raises(
        UserError, match=r"src_of_it lies in the current folder, which is searched if a module is named, as"
    ):
        load("src_of_it/train.py:make")


@pytest.mark.parametrize(
    ("arguments", "own"),
    [
        ([], ""),
        (["--data", "x", "--lr=1", "expect"], ""),
        (["--expect", "l2:0.1"], "--expect stood after --"),
        (["--json", "--data", "x", "--expect=l2:0.1"], "--expect and --json stood after --"),
    ],
)
def test_own_options_among_those_of_the_script(arguments: list[str], own: str) -> None:
    assert own_options(arguments).startswith(own)
    assert bool(own_options(arguments)) == bool(own)
    with pytest.raises(UserError) as caught:
        load("user.py:wants_flags", arguments=arguments)
    assert ("options of halflife stand before --" in str(caught.value)) == bool(own)
    assert "ended with exit code 2" in str(caught.value)


def test_the_own_options_are_those_of_the_command() -> None:
    command: Any = importlib.import_module("typer").main.get_command(cli.app)
    options = {name for each in command.commands["audit"].params for name in each.opts if name.startswith("--")}
    assert options == set(OWN_OPTIONS)


def test_the_length_of_the_run_is_passed_on() -> None:
    given = ["model=user.py:small", "lr=1e-3"]
    codes = [finding.code for finding in audit("user.py:build", given=given, total_steps=10).table.warnings]
    assert "half-life-beyond-the-run" in codes or any("half-life" in code for code in codes), codes
    codes = [finding.code for finding in audit("user.py:build", given=given).table.warnings]
    assert not any("half-life" in code for code in codes)


# ---- packages


@pytest.mark.parametrize(("init", "inner"), [(True, "pack_a"), (False, "pack_b")])
def test_a_file_of_a_package_is_named_by_its_package(folder: Path, init: bool, inner: str) -> None:
    package = folder / inner / "sub"
    package.mkdir(parents=True)
    for place in (package, package.parent):
        if init:
            (place / "__init__.py").write_text("", encoding="utf-8")
    (package / "settings.py").write_text("LAM = 0.2\n", encoding="utf-8")
    text = (
        FILE
        + "\nfrom ..sub.settings import LAM\n\n\ndef make():\n    return anything(small(), lr=0.1, weight_decay=LAM)\n"
    )
    (package / "train.py").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=f"imports from the package around it: name it as {inner}.sub.train:function$"):
        load(f"{inner}/sub/train.py:make")
    assert audit(f"{inner}.sub.train:make", ["l2:0.2"]).checks[0].holds


def test_a_package_of_another_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "pack_c").mkdir()
    (folder / "pack_c" / "__init__.py").write_text("", encoding="utf-8")
    (folder / "pack_c" / "train.py").write_text("from . import nothing\n", encoding="utf-8")
    monkeypatch.chdir(folder / "pack_c")
    with pytest.raises(UserError, match=f"name it as pack_c.train:function, from the folder {folder}$"):
        load("train.py:make")


# ---- what is returned


@dataclasses.dataclass
class State:
    model: Any
    optim: Any


class Slotted:
    __slots__ = ("net", "opt", "unset")

    def __init__(self, net: Any, opt: Any) -> None:
        self.net, self.opt = net, opt


Pair = namedtuple("Pair", ["net", "opt"])


class Engine(nn.Module):
    def __init__(self, net: nn.Module, opt: Optimizer) -> None:
        super().__init__()
        self.net, self.opt = net, opt


MODEL = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
OTHER = nn.Linear(2, 2)
AVERAGE = nn.Linear(2, 2)
FIRST = AdamW(MODEL.parameters(), lr=0.1)
SECOND = SGD(OTHER.parameters(), lr=0.1)
PLAN = torch.optim.lr_scheduler.ConstantLR(FIRST)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ((MODEL, OTHER, FIRST, SECOND), "found: 2 models (Sequential, Linear), 2 optimizers (AdamW, SGD)"),
        ({"model": MODEL, "optim": FIRST}, "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (
            {"G": MODEL, "D": OTHER, "opts": {"G": FIRST, "D": SECOND}},
            "found: 2 models (G, D), 2 optimizers (AdamW, SGD)",
        ),
        ({MODEL: FIRST, OTHER: SECOND}, "found: 2 models (Sequential, Linear), 2 optimizers (AdamW, SGD)"),
        (dict.fromkeys(MODEL.parameters(), FIRST), "found: no model, 1 optimizer (AdamW)"),
        ({"a": FIRST, "b": SECOND}.values(), "found: no model, 2 optimizers (AdamW, SGD)"),
        (State(MODEL, FIRST), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (SimpleNamespace(run=State(MODEL, [FIRST])), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (Slotted(MODEL, FIRST), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (Pair(MODEL, FIRST), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (Engine(MODEL, FIRST), "found: 1 model (Engine), 1 optimizer (AdamW)"),
        ((MODEL, PLAN), "found: 1 model (Sequential), 1 optimizer (AdamW), 1 scheduler (ConstantLR)"),
        ((MODEL, MODEL[0], FIRST), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        ((nn.DataParallel(MODEL), FIRST), "found: 1 model (Sequential), 1 optimizer (AdamW)"),
        (
            {"net": OTHER, "ema": AVERAGE, "opt": SECOND},
            "found: 1 model (Linear), 1 optimizer (SGD); left out: ema (Linear), a model whose parameters are in no optimizer",
        ),
        (
            (OTHER, nn.CrossEntropyLoss(), SECOND),
            "found: 1 model (Linear), 1 optimizer (SGD); left out: CrossEntropyLoss, a model without parameters",
        ),
        (
            (OTHER, SECOND, iter([FIRST])),
            "found: 1 model (Linear), 1 optimizer (SGD); left out: an iterator (list_iterator), whose values would be used "
            "up; return a list of them",
        ),
        (([[[[[FIRST]]]]], OTHER, SECOND), "found: 1 model (Linear), 1 optimizer (SGD)"),  # too deep
    ],
)
def test_what_is_found(value: Any, text: str) -> None:
    assert str(choose(search([("", value)]))) == text


def test_names_of_several_models() -> None:
    found = choose(search([("", {"type": MODEL, "b.c": OTHER, "opts": [FIRST, SECOND]})]))
    assert found.model is not None
    names = [name for name, _ in found.model.named_parameters()]
    assert names == ["type.0.weight", "type.0.bias", "type.1.weight", "type.1.bias", "b_c.weight", "b_c.bias"]
    twice = nn.Linear(2, 2)
    found = choose(search([("", [OTHER, twice, SECOND, SGD(twice.parameters())])]))
    assert found.models == ("Linear", "Linear_2")
    assert not OTHER._forward_hooks
    assert OTHER.weight is SECOND.param_groups[0]["params"][0]
