"""Write docs/optimizers.md: what `halflife.identify` finds for the optimizers that people use.

    python tools/optimizer_laws.py write    probe all of them and write the page (about a minute)
    python tools/optimizer_laws.py check    fail if the page is not what `write` would write today, the date aside

The packages of the dev extra must be installed. Wrappers, and packages that cannot stand beside them, are audited by
`tools/trainers/audit.py --only optimizers optimizers_hf optimizers_vision` in environments of their own; its findings are
read from results/trainers.json. A disagreement between what an optimizer's documentation says and what
it does is listed only with a reproducer that does not use halflife; the reproducers are run with the page by the tests.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib
import importlib.metadata
import inspect
import io
import json
import logging
import math
import os
import sys
import tomllib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from halflife.laws import Law, identify

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "optimizers.md"
FINDINGS = ROOT / "results" / "trainers.json"
DISAGREEMENTS = ROOT / "tools" / "trainers" / "disagreements.toml"
PACKAGES = {
    "torch": "torch",
    "optimi": "torch-optimi",
    "torchao.optim": "torchao",
    "pytorch_optimizer": "pytorch-optimizer",
}
DATE = "Probed on "

# ---- what documentation says, by argument; a quote is checked against the docstring of each class

Agrees = Callable[[Law], bool]


def is_decoupled(law: Law) -> bool:
    """Whether the weight itself shrinks."""
    return law.pathway not in {"none", "l2", "l2-preconditioned"} or law.equivalent_to == "decoupled"


def is_penalty(law: Law) -> bool:
    """Whether the gradient carries it, as far as that can be told."""
    return law.pathway not in {"none", "decoupled", "cautious"} and not adaptively_decoupled(law)


def adaptively_decoupled(law: Law) -> bool:
    """Whether "other" was found for a fraction that changes along the run."""
    return law.pathway == "other" and any(note.startswith("it depends on the run so far: ") for note in law.notes)


def is_fixed(law: Law) -> bool:
    """Whether the learning rate does not matter."""
    return law.pathway != "none" and law.lr_exponent in {None, 0.0}


def has_effect(law: Law) -> bool:
    """Whether anything decays."""
    return law.pathway != "none"


@dataclass(frozen=True)
class Claim:
    """A sentence of documentation, and what would agree with it."""

    quote: str
    agrees: Agrees


COEFFICIENT = Claim("weight_decay: Weight decay coefficient.", has_effect)
DECOUPLE = "weight_decouple: Apply weight decay to parameters instead of adding it to the gradient."
FIXED = Claim("fixed_decay: Apply decoupled weight decay without scaling it by the learning rate.", is_fixed)
TORCH_L2 = Claim("weight_decay (float, optional): weight decay (L2 penalty)", is_penalty)
TORCH_OTHER = Claim("weight_decay (float, optional): weight decay coefficient", has_effect)
OPTIMI_L2 = Claim("`decouple_wd` and `decouple_lr` are False, applies L2 penalty", is_penalty)
OPTIMI_WD = Claim("decouple_wd: Apply decoupled weight decay instead of L2 penalty", is_decoupled)
OPTIMI_DEFAULT = Claim("If `decouple_lr` is False, applies decoupled weight decay", is_decoupled)
OPTIMI_LR = Claim(
    "decouple_lr: Apply fully decoupled weight decay",
    lambda law: law.pathway == "other" or (law.lr_exponent, law.peak_lr_exponent) == (1.0, -1.0),
)


@dataclass(frozen=True)
class Row:
    """One optimizer with its settings."""

    package: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    claim: Claim | None = None
    groups: dict[str, Any] | None = None  # further keys of the parameter group
    takes_weight_decay: bool = True

    @property
    def kind(self) -> Any:
        """The class."""
        return getattr(quiet_import(self.package), self.name)

    @property
    def setting_text(self) -> str:
        """The settings as one would write them."""
        text = ", ".join(f"{key}={value!r}" for key, value in {**self.settings, **(self.groups or {})}.items())
        return text + (" in the group" if self.groups else "")

    def make(self, params: Any, lr: float, weight_decay: float) -> Any:
        """Build the optimizer, as `identify` calls it."""
        settings = {**self.settings, **({"weight_decay": weight_decay} if self.takes_weight_decay else {})}
        if self.groups is None:
            return self.kind(params, lr=lr, **settings)
        group = {"params": params, "lr": lr, "weight_decay": weight_decay, **self.groups}
        return self.kind([group], lr=lr, **settings)

    def says(self, quote: str) -> bool:
        """Whether the documentation of the class has this sentence."""
        return " ".join(quote.split()) in " ".join((inspect.getdoc(self.kind) or "").split())


@functools.cache
def quiet_import(module: str) -> Any:
    """Import a package without its talk."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(module)
    finally:
        logging.disable(logging.NOTSET)


# ---- the rows


def torch_rows() -> Iterator[Row]:
    """All of torch.optim."""
    decoupling = {"decoupled_weight_decay": True}
    table: list[tuple[str, dict[str, Any], Claim | None]] = [
        ("AdamW", {}, TORCH_OTHER),
        ("AdamW", {"foreach": True}, TORCH_OTHER),
        ("AdamW", {"fused": True}, TORCH_OTHER),
        ("AdamW", {"amsgrad": True}, TORCH_OTHER),
        ("Adam", {}, TORCH_L2),
        ("Adam", {"fused": True}, TORCH_L2),
        ("Adam", decoupling, None),
        ("NAdam", {}, TORCH_L2),
        ("NAdam", decoupling, None),
        ("RAdam", {}, TORCH_L2),
        ("RAdam", decoupling, None),
        ("SGD", {}, TORCH_L2),
        ("SGD", {"momentum": 0.9}, TORCH_L2),
        ("SGD", {"momentum": 0.9, "nesterov": True}, TORCH_L2),
        ("SGD", {"momentum": 0.9, "dampening": 0.5}, TORCH_L2),
        ("RMSprop", {}, TORCH_L2),
        ("RMSprop", {"momentum": 0.9}, TORCH_L2),
        ("RMSprop", {"centered": True}, TORCH_L2),
        ("Adagrad", {}, TORCH_L2),
        ("Adadelta", {}, TORCH_L2),
        ("Adamax", {}, TORCH_L2),
        ("ASGD", {}, TORCH_L2),
        ("Adafactor", {}, TORCH_OTHER),
        ("Muon", {}, TORCH_L2),
    ]
    for name, settings, claim in table:
        yield Row("torch.optim", name, settings, claim)
    for name in ("Rprop", "LBFGS", "SparseAdam"):
        yield Row("torch.optim", name, takes_weight_decay=False)


def optimi_rows() -> Iterator[Row]:
    """All of torch-optimi: L2 and decoupled where there is a choice, and fully decoupled."""
    for name in ("AdamW", "Adan", "Lion", "StableAdamW"):
        yield Row("optimi", name, {}, OPTIMI_DEFAULT)
        yield Row("optimi", name, {"decouple_lr": True}, OPTIMI_LR)
    for name in ("Adam", "RAdam", "Ranger", "SGD"):
        settings: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
        yield Row("optimi", name, {**settings, "decouple_wd": False}, OPTIMI_L2)
        yield Row("optimi", name, {**settings, "decouple_wd": True}, OPTIMI_WD)
        yield Row("optimi", name, {**settings, "decouple_lr": True}, OPTIMI_LR)


def torchao_rows() -> Iterator[Row]:
    """The low-bit optimizers of torchao, run without compilation."""
    for name in ("AdamW8bit", "AdamW4bit", "AdamWFp8", "Adam8bit", "Adam4bit", "AdamFp8"):
        yield Row("torchao.optim", name)


# Optimizers of pytorch-optimizer that take more than parameters, lr and weight decay.
MUONS = ("Muon", "AdaMuon", "AdaGO", "NorMuon")
MORE_SETTINGS: dict[str, dict[str, Any]] = {"Ranger21": {"num_iterations": 1000}}
MOMENTUM = ("SGDW", "QHM", "PID")  # without momentum by default


def pytorch_optimizer_rows() -> Iterator[Row]:
    """Every optimizer that pytorch-optimizer lists, with each way that it has of applying weight decay."""
    package = quiet_import("pytorch_optimizer")
    own = {"Adam", "AdamW", "LBFGS", "NAdam", "RMSprop", "SGD"}  # torch's, listed again
    for key in package.get_supported_optimizers():
        kind = package.load_optimizer(key)
        name, arguments = kind.__name__, inspect.signature(kind.__init__).parameters
        if name in own and kind.__module__.startswith("torch."):
            continue
        if name in MUONS:
            for group in ({"use_muon": True}, {"use_muon": False}):
                for decouple in (True, False):
                    yield po_row(name, {"weight_decouple": decouple}, group)
            continue
        settings = MORE_SETTINGS.get(name, {})
        if "weight_decay" not in arguments:
            yield Row("pytorch_optimizer", name, settings, takes_weight_decay=False)
            continue
        if "weight_decouple" not in arguments:
            yield po_row(name, settings)
        else:
            for decouple in (True, False):
                yield po_row(name, {**settings, "weight_decouple": decouple})
        if "fixed_decay" in arguments:
            yield po_row(name, {**settings, "weight_decouple": True, "fixed_decay": True})
        if name in MOMENTUM:
            for decouple in (True, False):
                yield po_row(name, {"momentum": 0.9, "weight_decouple": decouple})
        if name == "AdamC":
            yield po_row(name, {"weight_decouple": True}, {"normalized": True})


def po_row(name: str, settings: dict[str, Any], groups: dict[str, Any] | None = None) -> Row:
    """A row with the claim that goes with its settings."""
    if settings.get("fixed_decay"):
        claim = FIXED
    elif "weight_decouple" in settings:
        claim = Claim(DECOUPLE, is_decoupled if settings["weight_decouple"] else is_penalty)
    else:
        claim = COEFFICIENT
    return Row("pytorch_optimizer", name, settings, claim, groups)


# Shapes that are left out, and the documentation that says so.
LEFT_OUT = {
    ("LARS", "vector"): "Scalars and vectors use ordinary SGD without weight decay",
    ("MARS", "vector"): "weight_decay_1d: Weight decay for 1D parameters.",
}


SECTIONS: dict[str, Callable[[], Iterator[Row]]] = {
    "torch.optim": torch_rows,
    "torch-optimi": optimi_rows,
    "torchao": torchao_rows,
    "pytorch-optimizer": pytorch_optimizer_rows,
}


@functools.cache
def laws() -> list[tuple[str, Row, Law]]:
    """Probe everything."""
    found = []
    for section, rows in SECTIONS.items():
        for row in rows():
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found.append((section, row, identify(row.make)))
    return found


def disagreements() -> Iterator[tuple[Row, Law, str]]:
    """Rows whose law is not what their documentation says, and for which shapes."""
    for _, row, law in laws():
        if row.claim is None or law.pathway == "not probed":
            continue
        parts = law.by_shape or {"": law}
        told = {shape for (name, shape), quote in LEFT_OUT.items() if name == row.name and row.says(quote)}
        wrong = [
            shape
            for shape, each in parts.items()
            if each.pathway != "not probed" and shape not in told and not row.claim.agrees(each)
        ]
        if wrong and row.says(row.claim.quote):
            yield row, parts[wrong[0]], ", ".join(wrong)


# ---- the page


def number(value: float | None) -> str:
    """A number as the tables show it."""
    return "" if value is None else f"{value:.4g}"


def table_row(row: Row, law: Law) -> str:
    """One line of a table; every shape of its own law where they differ."""
    parts = law.by_shape or {"": law}

    def cells(of: Callable[[Law], str]) -> str:
        texts = [(shape, of(each)) for shape, each in parts.items()]
        if len({text for _, text in texts}) == 1:
            return texts[0][1]
        return "; ".join(f"{shape}: {text or '-'}" for shape, text in texts)

    def law_text(each: Law) -> str:
        same = f" = {each.equivalent_to}" if each.equivalent_to else ""
        return (
            each.pathway
            + same
            + (f" ({each.name})" if each.name not in {None, each.pathway, each.equivalent_to} else "")
        )

    exponents = cells(
        lambda each: "" if each.lr_exponent is None else f"{number(each.lr_exponent)}, {number(each.peak_lr_exponent)}"
    )
    own = [note for each in parts.values() for note in each.notes]
    notes = list(dict.fromkeys([*own, *(note for note in law.notes if not note.startswith("differs by shape"))]))
    columns = [
        f"`{row.name}`",
        f"`{row.setting_text}`" if row.setting_text else "",
        cells(law_text),
        exponents,
        cells(lambda each: number(each.coefficient)),
        cells(lambda each: each.position or ""),
        cells(lambda each: {True: "yes", False: "no", None: ""}[each.native]),
        "; ".join(notes).replace("|", "/").replace("`", "'"),
    ]
    return "| " + " | ".join(columns) + " |"


HEAD = [
    "| optimizer | settings | law | a, b | c | position | native | notes |",
    "| --- | --- | --- | --- | --- | --- | --- | --- |",
]

INTRO = """# What optimizers really decay

Most optimizers take a `weight_decay`, and what they do with it differs. This page is what `halflife.identify` found by stepping
each of them: it says how the decay enters, `r = c * lam * lr^a * peak_lr^b` where it is a fraction of the weight (`lam` is the
`weight_decay`), and where documentation and behaviour disagree.

It is written by `python tools/optimizer_laws.py write`. {date}, with {versions}.

Wrappers (Lookahead, SAM, accelerate, Fabric, fastai and others) and what wants a closure, `train()`, names or a process group
have [a table of their own](#wrappers-and-optimizers-that-want-more-than-a-step), and so has
[torch-optimizer](#torch-optimizer).

How to read the tables:

- **law**: `decoupled`, the weight itself shrinks; `l2`, `lam * w` is added to the gradient and only multiplied and averaged;
  `l2-preconditioned`, it is added and then rescaled with the gradient, so that no fraction describes it; `cautious`; `none`,
  proven to have no effect; `other`, told in the notes; `not probed`, with the reason. The rule of halflife that it equals is in
  brackets. "l2 = decoupled" are the same function: without momentum nobody can tell them apart.
- **a, b**: (1, 0) is torch's AdamW, (1, -1) follows the schedule only, (0, 0) is constant, (2, -1) is corrected.
- **c**: 1 unless something multiplies the decay. For `l2` it is the effect within the same step.
- **native**: whether a `weight_decay` written into the group between steps is followed, as a schedule would write it.
- Settings that are not shown are the defaults. `lr` was 0.05 and `weight_decay` 0.02 (0.1 in float32).

```python
import torch

import halflife

law = halflife.identify(lambda params, lr, weight_decay: torch.optim.AdamW(params, lr=lr, weight_decay=weight_decay))
assert law.describe() == "decoupled: r = lr * lam (native)"
```
"""


def versions() -> str:
    """What is installed."""
    found = [f"{name} {importlib.metadata.version(name).split('+')[0]}" for name in PACKAGES.values()]
    return ", ".join(found[:-1]) + " and " + found[-1]


def disagreement_section() -> str:
    """The table of disagreements and their reproducers."""
    lines = [
        "## Where documentation and behaviour disagree",
        "",
        "| optimizer | settings | its documentation says | what it does |",
        "| --- | --- | --- | --- |",
    ]
    names: set[tuple[str, str]] = set()
    for row, law, shapes in disagreements():
        assert row.claim is not None
        does = law.describe().replace("|", "/") + (f" ({shapes})" if shapes else "")
        settings = f"`{row.setting_text}`" if row.setting_text else "defaults"
        lines.append(f'| `{row.package}.{row.name}` | {settings} | "{row.claim.quote}" | {does} |')
        names.add((row.package, row.name))
    reproduced = {name for reproducer in REPRODUCERS for name in reproducer.names}
    if names != reproduced:
        raise SystemExit(f"disagreements without a reproducer: {names - reproduced}; gone: {reproduced - names}")
    lines += ["", "Each is shown below without halflife, by a few lines that assert it."]
    for reproducer in REPRODUCERS:
        lines += ["", f"### {reproducer.title}", "", reproducer.text, "", "```python", reproducer.code.strip(), "```"]
    return "\n".join(lines)


@dataclass(frozen=True)
class Reproducer:
    """Code that shows a disagreement without halflife."""

    title: str
    names: list[tuple[str, str]]
    text: str
    code: str


UPDATE_COMES_FIRST = ["AdamP", "AdamWSN", "Grams", "LaProp", "Prodigy", "RAdam", "SGDP", "SGDSaI", "TAM"]
REPRODUCERS = [
    Reproducer(
        "The penalty is added too late",
        [("pytorch_optimizer", name) for name in UPDATE_COMES_FIRST],
        "With `weight_decouple=False` these add `lam * w` to the gradient after they have read it, so that nothing decays.\n"
        "The weights are the same to the last bit with and without weight decay; with `weight_decouple=True` they are not.",
        """
import pytorch_optimizer
import torch


def train(name: str, **settings) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(4, 3))
    optimizer = getattr(pytorch_optimizer, name)([weight], lr=0.1, **settings)
    for _ in range(30):
        weight.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
    return weight.detach()


for name in NAMES:
    without = train(name, weight_decay=0.0, weight_decouple=False)
    assert torch.equal(train(name, weight_decay=0.5, weight_decouple=False), without), name
    assert not torch.equal(train(name, weight_decay=0.5, weight_decouple=True), without), name
""".replace("NAMES", str(UPDATE_COMES_FIRST).replace("'", '"')),
    ),
    Reproducer(
        "DAdaptAdaGrad overwrites what it decayed",
        [("pytorch_optimizer", "DAdaptAdaGrad")],
        "It computes the weights anew from where they started, so that a decay of the weights themselves is lost.",
        """
without = train("DAdaptAdaGrad", weight_decay=0.0, weight_decouple=True)
assert torch.equal(train("DAdaptAdaGrad", weight_decay=0.5, weight_decouple=True), without)
assert torch.equal(train("DAdaptAdaGrad", weight_decay=0.5, weight_decouple=True, fixed_decay=True), without)
assert not torch.equal(train("DAdaptAdaGrad", weight_decay=0.5, weight_decouple=False), without)
""",
    ),
    Reproducer(
        "Adan never adds it to the gradient",
        [("pytorch_optimizer", "Adan"), ("pytorch_optimizer", "DAdaptAdan")],
        "With `weight_decouple=False` they divide the weights by `1 + lr * lam` after the update (the proximal form of the\n"
        "Adan paper; `DAdaptAdan` multiplies lr by its own estimate). No average of gradients ever sees it.",
        """
def averages(name: str, weight_decay: float) -> tuple[list[torch.Tensor], torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(4, 3))
    optimizer = getattr(pytorch_optimizer, name)([weight], lr=1.0, weight_decay=weight_decay, weight_decouple=False)
    for _ in range(3):
        weight.grad = torch.randn(4, 3, generator=generator)
        optimizer.step()
    state = optimizer.state[weight]
    return [state[key] for key in ("exp_avg", "exp_avg_sq", "exp_avg_diff")], weight.detach()


for name in ("Adan", "DAdaptAdan"):
    (state, weight), (same_state, other_weight) = averages(name, 0.0), averages(name, 0.5)
    assert all(torch.equal(one, other) for one, other in zip(state, same_state, strict=True)), name
    assert not torch.equal(weight, other_weight), name

weight = torch.nn.Parameter(torch.ones(4, 3, dtype=torch.float64))
optimizer = pytorch_optimizer.Adan([weight], lr=0.1, weight_decay=0.5, weight_decouple=False)
weight.grad = torch.zeros_like(weight)
optimizer.step()
assert torch.allclose(weight, torch.full_like(weight, 1 / (1 + 0.1 * 0.5)), rtol=1e-12)
""",
    ),
    Reproducer(
        "Kron leaves vectors alone",
        [("pytorch_optimizer", "Kron")],
        "Parameters with one dimension do not decay, whatever `weight_decouple` says.",
        """
import random


def train_kron(shape: tuple[int, ...], **settings) -> torch.Tensor:
    torch.manual_seed(0)
    random.seed(0)
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 12).reshape(shape))
    optimizer = pytorch_optimizer.Kron([weight], lr=0.1, **settings)
    for _ in range(5):
        weight.grad = torch.randn(shape)
        optimizer.step()
    return weight.detach()


for decouple in (True, False):
    for shape, decays in (((12,), False), ((4, 3), True)):
        without = train_kron(shape, weight_decay=0.0, weight_decouple=decouple)
        assert torch.equal(train_kron(shape, weight_decay=0.5, weight_decouple=decouple), without) != decays
""",
    ),
    Reproducer(
        "torch's Muon is no L2 penalty",
        [("torch.optim", "Muon")],
        "The decay is decoupled, `w <- (1 - lr * lam) * w`. An L2 penalty would be orthogonalized with the gradient, so that\n"
        "its size would not matter.",
        """
for weight_decay in (0.1, 0.5):
    weight = torch.nn.Parameter(torch.eye(4, 3, dtype=torch.float64))
    optimizer = torch.optim.Muon([weight], lr=0.1, weight_decay=weight_decay)
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.allclose(weight, (1 - 0.1 * weight_decay) * torch.eye(4, 3, dtype=torch.float64), rtol=1e-12)
""",
    ),
]


# ---- what tools/trainers/audit.py found in environments of its own

Entry = dict[str, Any]


@functools.cache
def audited() -> tuple[Entry, ...]:
    """The rows of the families of this page."""
    audits = json.loads(FINDINGS.read_text(encoding="utf-8"))["audits"]
    return tuple(row for audit in audits if audit["family"].startswith("optimizers") for row in audit["rows"])


def audited_entries() -> list[Entry]:
    """The disagreements of this page that were reproduced there."""
    entries = tomllib.loads(DISAGREEMENTS.read_text(encoding="utf-8"))["disagreement"]
    return [entry for entry in entries if entry.get("page") == "optimizers"]


def links() -> dict[str, str]:
    """Where a verdict leads."""
    return {entry["key"]: f"[{entry['title']}](#{entry['key']})" for entry in audited_entries()}


def by_kind(texts: dict[str, str]) -> str:
    """One text where all kinds of parameters have the same; else the kinds that share one together."""
    kinds: dict[str, list[str]] = {}
    for kind, text in texts.items():
        kinds.setdefault(text, []).append(kind)
    return next(iter(kinds)) if len(kinds) == 1 else "; ".join(f"{', '.join(who)}: {t}" for t, who in kinds.items())


def said_text(entry: Entry) -> str:
    """What `explain` says of one parameter."""
    if entry["decays"] is None:
        return entry["why"].replace("|", "/").replace("`", "'")
    text = entry["describe"].removesuffix(" (native)") if entry["decays"] else f"none: {entry['why']}"
    return text.replace("|", "/").replace("`", "'")


def kept_text(calls: list[float | list[float]]) -> str:
    """The share that twelve calls keep, and in brackets what the first of them keep."""
    pairs = [each if isinstance(each, list) else [each, each] for each in calls]
    low, high = (f"{math.prod(pair[end] for pair in pairs):.3f}" for end in (0, 1))
    shares = ["varied" if isinstance(each, list) else f"{each:.4g}" for each in calls]
    first = shares[0] if len(set(shares)) == 1 else ", ".join(shares[:6]) + ", ..."
    return f"{low if low == high else f'{low} to {high}'} ({first})"


def live_row(row: Entry) -> str:
    """One line of the table of live objects."""
    if "refused" in row["said"]:
        said = f"refused: {row['said']['refused']}".replace("|", "/")
    else:
        said = by_kind({kind: said_text(row["said"][kind]) for kind in row["kept"]})
        if "in_place" in row["said"]:
            said = f"{row['said']['in_place']}. With `in_place=True`: {said}".replace("|", "/")
    kept = by_kind({kind: kept_text(calls) for kind, calls in row["kept"].items()})
    verdict = links().get(row["verdict"], row["verdict"])
    name = f"{row['trainer']} {row['version'].split('+')[0]}"
    return f"| {name} | {row['configuration']} | {said} | {kept} | {verdict} |"


LIVE = """## Wrappers, and optimizers that want more than a step

These cannot be built from parameters, lr and weight decay alone: they hold another optimizer, or want a closure, `train()`,
names or a process group. Each was made as its documentation shows, in an environment of its own
(`python tools/trainers/audit.py --only optimizers optimizers_hf optimizers_vision`), and given to `halflife.explain` as it is.
The last but one column does not use halflife: the share of each weight that twelve real calls of `step()` keep when every
gradient is zero, and in brackets what the first six calls keep. Twelve steps of AdamW with r = 0.01 keep 0.886.

| optimizer | made with | `explain` says | twelve calls keep | documentation |
| --- | --- | --- | --- | --- |"""


def live_section() -> str:
    """The table of live objects."""
    return "\n".join([LIVE, *(live_row(row) for row in audited() if "said" in row)])


def torch_optimizer_section() -> str:
    """The table of torch-optimizer, which `identify` probed in an environment of its own."""
    rows = [row for row in audited() if "line" in row]
    wrong = [entry for entry in audited_entries() if entry["key"].startswith("torch-optimizer")]
    linked = " and ".join(f"[{entry['trainer']}](#{entry['key']})" for entry in wrong)
    text = f"{len(rows)} optimizers of version {rows[0]['version']}, in an environment of its own. Documentation and"
    text += f" behaviour disagree for {linked}."
    return "\n".join(["## torch-optimizer", "", text, "", *HEAD, *(row["line"] for row in rows)])


def audited_disagreements() -> str:
    """One section per disagreement that was found in another environment."""
    text = ["## More disagreements", "", "Each was run in the environment of its package; none uses halflife."]
    for entry in audited_entries():
        text += ["", f'<a id="{entry["key"]}"></a>', "", f"### {entry['trainer']}: {entry['title']}", ""]
        for quote in {quote["text"]: quote for quote in entry["quotes"]}.values():
            text += [f"> {quote['text']}", "> ", f"> (`{quote['file']}`)", ""]
        text += [entry["behaviour"].strip(), "", "```text", entry["reproducer"].strip(), "```"]
    return "\n".join(text)


def page(today: str) -> str:
    """The whole page."""
    parts = [INTRO.format(date=f"{DATE}{today}", versions=versions()).strip(), disagreement_section()]
    for section in SECTIONS:
        rows = [(row, law) for name, row, law in laws() if name == section]
        kinds = len({row.name for row, law in rows if law.pathway != "not probed"})
        count = f"{kinds} optimizers probed, in {len(rows)} settings." if kinds > 20 else ""
        parts.append(
            "\n".join(
                [f"## {section}", "", *([count, ""] if count else []), *HEAD, *(table_row(*each) for each in rows)]
            )
        )
    parts += [live_section(), torch_optimizer_section(), audited_disagreements()]
    return "\n\n".join(parts) + "\n"


def without_date(text: str) -> list[str]:
    """The lines that do not depend on the day."""
    return [line for line in text.splitlines() if DATE not in line]


def main(arguments: list[str]) -> None:
    """Do what the module's text says."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    match arguments:
        case ["write"]:
            PAGE.write_text(page(datetime.date.today().isoformat()), encoding="utf-8")
        case ["check"]:
            if without_date(PAGE.read_text(encoding="utf-8")) != without_date(page("")):
                sys.exit("docs/optimizers.md is not what tools/optimizer_laws.py writes: run it with write")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
