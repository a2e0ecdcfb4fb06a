"""Ways to the real weights that no copy can follow are found, and names that a step does not use are not."""

from __future__ import annotations

import sys
import types
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from halflife.laws.walk import shared_places, unfaithful
from tests import needs_muon
from tests.laws.adversarial import CASES, LR, WD, Every2, Plain, net

SCRIPT = """
import torch
from torch import nn
from torch.optim import Optimizer
import settings

class Config:
    def __init__(self, model):
        self.model, self.lam = model, 0.3

class Plain(Optimizer):
    def __init__(self, params, lr=0.05):
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.mul_(1 - group["lr"] * self.decay(p))

    def decay(self, p):
        return 0.3

model = nn.Linear(3, 2)
config = Config(model)
skip = {id(model.bias)}
counts = {"steps": 0}

"""

FOLLOWED = {  # what no copy can follow, by the code that is added to the script
    "a global": "class Made(Plain):\n    def decay(self, p): return 0.0 if p is model.bias else 0.3",
    "a set of ids": "class Made(Plain):\n    def decay(self, p): return 0.0 if id(p) in skip else 0.3",
    "a helper": "def helper(p): return p is model.bias\nclass Made(Plain):\n    def decay(self, p): return 0.3 * helper(p)",
    "an attribute of a global": "class Made(Plain):\n    def decay(self, p): return 0.3 * (p is config.model.bias)",
    "a class attribute": "class Made(Plain):\n    off = {model.bias}\n    def decay(self, p): return 0.3 * (p in self.off)",
    "an attribute of the base": "class Base(Plain):\n    off = [id(model.bias)]\n"
    "class Made(Base):\n    def decay(self, p): return 0.3 * (id(p) in type(self).off)",
    "a default argument": "class Made(Plain):\n    def decay(self, p, off=(model.bias,)): return 0.3 * (p is off[0])",
    "a function within": "class Made(Plain):\n"
    "    def decay(self, p): return sum(0.3 for q in [1] if (lambda: p is model.bias)())",
    "a property": "class Made(Plain):\n    @property\n    def off(self): return model.bias\n"
    "    def decay(self, p): return 0.3 * (p is self.off)",
    "getattr": "class Made(Plain):\n    def _rule(self, p): return 0.3 * (p is model.bias)\n"
    "    def decay(self, p): return getattr(self, '_' + 'rule')(p)",
    "globals()": "class Made(Plain):\n    def decay(self, p): return 0.3 * (p is globals()['model'].bias)",
    "an import within": "class Made(Plain):\n    def decay(self, p):\n"
    "        from settings import off\n        return 0.3 * (p is off)",
    "a module": "settings.off = model.bias\nclass Made(Plain):\n    def decay(self, p): return 0.3 * (p is settings.off)",
    "a decorator": "def but(off):\n    def wrap(f):\n"
    "        return lambda self, p: 0.0 if p is off else f(self, p)\n    return wrap\n"
    "class Made(Plain):\n    @but(model.bias)\n    def decay(self, p): return 0.3",
    "memory": "data = model.bias.data\n"
    "class Made(Plain):\n    def decay(self, p): return 0.3 * (p.data_ptr() == data.data_ptr())",
    "all objects": "import gc\nclass Made(Plain):\n    def decay(self, p):\n"
    "        return 0.3 * any(type(each) is nn.Linear for each in gc.get_objects())",
    "an object of a class": "class Rule:\n    def __call__(self, p): return 0.3 * (p is model.bias)\n"
    "class Made(Plain):\n    def __init__(self, params): super().__init__(params); self.rule = Rule()\n"
    "    def decay(self, p): return self.rule(p)",
    "a function on the instance": "class Made(Plain):\n"
    "    def __init__(self, params): super().__init__(params); self.rule = lambda p: 0.3 * (p is model.bias)\n"
    "    def decay(self, p): return self.rule(p)",
    "the optimizer": "class Made(Plain):\n    def decay(self, p): return optimizer.param_groups[0]['lr']",
    "an address": "where = {model.bias.data_ptr()}\n"
    "class Made(Plain):\n    def decay(self, p): return 0.3 * (p.data_ptr() in where)",
    "a partial": "import functools\ndef rule(off, p): return 0.3 * (p is off)\npart = functools.partial(rule, model.bias)\n"
    "class Made(Plain):\n    def decay(self, p): return part(p)",
}
FREE = {  # what a copy follows, or does not need to
    "no name": "class Made(Plain):\n    pass",
    "the constructor": "class Made(Plain):\n"
    "    def __init__(self, params): super().__init__(params); self.off = {id(model.bias)}\n"
    "    def decay(self, p): return 0.3 * (id(p) in self.off)",
    "numbers": "class Made(Plain):\n    def decay(self, p): return config.lam * counts['steps'] * model.in_features",
    "a shape": "class Made(Plain):\n    def decay(self, p): return 0.3 * (p.shape == model.bias.shape)",
    "another class": "class Other(Plain):\n    def decay(self, p): return 0.3 * (p is model.bias)\n"
    "class Made(Plain):\n    pass",
    "another method": "class Made(Plain):\n    def report(self): return model.bias.norm()",
    "attributes": "class Made(Plain):\n    def __init__(self, params): super().__init__(params); self.model = model\n"
    "    def decay(self, p): return 0.3 * (p is self.model.bias)",
    "another model": "other = nn.Linear(3, 2)\nclass Made(Plain):\n    def decay(self, p): return 0.3 * float(other.bias[0])",
    "a local of that name": "class Made(Plain):\n    def decay(self, p):\n        model = 3\n        return 0.1 * model",
    "a collection": "import gc\nclass Made(Plain):\n    def decay(self, p):\n        gc.collect\n        return 0.3",
}


@pytest.fixture(name="script")
def _script(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(text: str) -> Any:
        module, settings = types.ModuleType("script_of_a_user"), types.ModuleType("settings")
        settings.off = torch.zeros(1)  # type: ignore[attr-defined]
        for each in (module, settings):
            monkeypatch.setitem(sys.modules, each.__name__, each)
        exec(
            compile(SCRIPT + text + "\noptimizer = Made(model.parameters())\nsettings.off = model.bias", "x", "exec"),
            vars(module),
        )
        return module

    return run


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_no_copy_can_follow_is_found(name: str, script: Any) -> None:
    found = unfaithful([script(FOLLOWED[name]).optimizer])
    assert found is not None
    assert found.startswith("its code reads the real weights through `")
    assert found.endswith(", which no copy can follow")


@pytest.mark.parametrize("name", FREE)
def test_what_a_step_does_not_name_is_not_found(name: str, script: Any) -> None:
    assert unfaithful([script(FREE[name]).optimizer]) is None


@pytest.mark.parametrize(
    ("name", "through"),
    [
        ("a global", "`model.bias`, a global,"),
        ("a set of ids", "`skip`, a global,"),
        ("a class attribute", "`off`, a class attribute,"),
        ("a default argument", "`off`, a default argument,"),
        ("all objects", "`gc`, the list of all objects,"),
        ("a decorator", "`off`, a variable around its class,"),
    ],
)
def test_the_way_is_named(name: str, through: str, script: Any) -> None:
    assert through in str(unfaithful([script(FOLLOWED[name]).optimizer]))


def test_a_class_made_in_a_function() -> None:
    model = net()

    class Closed(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return 0.0 if p is model.first.bias else WD

    class Free(Plain):
        def decay(self, group: dict[str, Any], p: Tensor, index: int) -> float:
            return WD * model.first.in_features

    assert "`model.first.bias`, a variable around its class," in str(unfaithful([Closed(model.parameters())]))
    assert "`model.first.bias`" in str(unfaithful([Every2(Closed(model.parameters()))]))
    assert "`model.first.bias`" in str(unfaithful([Closed(nn.ParameterList([model.first.bias]))]))
    assert unfaithful([Free(model.parameters())]) is None
    scheduled = Closed(model.parameters())
    torch.optim.lr_scheduler.StepLR(scheduled, 1)
    assert unfaithful([scheduled]) is not None


@pytest.mark.parametrize("name", CASES)
def test_no_alarm_where_a_copy_is_faithful(name: str) -> None:
    assert unfaithful([CASES[name](net())]) is None


@pytest.mark.parametrize("kind", ["AdamW", "SGD", pytest.param("Muon", marks=needs_muon)])
def test_no_alarm_for_the_optimizers_of_torch(kind: str) -> None:
    assert unfaithful([getattr(torch.optim, kind)([net().first.weight], lr=LR)]) is None


def test_globals_that_a_step_may_change_are_told(script: Any) -> None:
    module = script(
        "class Made(Plain):\n    calls = 0\n    def decay(self, p):\n        counts['steps'] += 1\n"
        "        Made.calls += 1\n        return 0.3"
    )
    places = shared_places([module.optimizer])
    assert [name for holder, name in places if holder is vars(module)] == ["counts", "Made"]
    assert (module.Made, None) in places
    assert shared_places([torch.optim.AdamW(net().parameters())]) == []
