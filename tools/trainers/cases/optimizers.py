"""Wrappers and optimizers that want a closure, ``train()``, names or a process group; each is built as its page says."""

from __future__ import annotations

import contextlib
import inspect
import io
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from live import LAM, LR, Net, closure_of, live

from halflife import identify

sys.path.append(str(Path(__file__).parents[2]))  # last: a module there is called statistics, as one of Python's is

from optimizer_laws import Row, table_row

SETTINGS = {"lr": LR, "weight_decay": LAM}
TINY = 1e-15  # for what divides by the norm of the gradients: AdamW moves nothing visible by it
INNER = f"AdamW(lr={LR}, weight_decay={LAM})"


def adamw(model: torch.nn.Module) -> torch.optim.Optimizer:
    """What most of them wrap."""
    return torch.optim.AdamW(model.parameters(), **SETTINGS)


def one_process() -> None:
    """A process group of one, as torchrun with one process makes it."""
    if not torch.distributed.is_initialized():
        store = Path(tempfile.mkdtemp()) / "store"
        torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)


def case_torch() -> Iterator[dict[str, Any]]:
    """Moonlight's Muon, and the optimizer that is sharded over processes."""
    from torch.distributed.optim import ZeroRedundancyOptimizer

    model = Net()
    matrices = [model.q_proj.weight, model.fc.weight]
    optimizer = torch.optim.Muon(matrices, adjust_lr_fn="match_rms_adamw", **SETTINGS)
    text = f"match_rms_adamw, lr={LR}, weight_decay={LAM}; matrices only"
    yield live("torch Muon", text, "torch", model, optimizer)
    one_process()
    model = Net()
    sharded = ZeroRedundancyOptimizer(model.parameters(), torch.optim.AdamW, **SETTINGS)
    yield live("torch ZeroRedundancyOptimizer", f"{INNER}, one process", "torch", model, sharded)


def case_sam() -> Iterator[dict[str, Any]]:
    """Sharpness-aware minimization around AdamW, in two libraries."""
    import pytorch_optimizer
    import sam

    model = Net()
    optimizer: Any = pytorch_optimizer.SAM(model.parameters(), torch.optim.AdamW, **SETTINGS)
    step = optimizer.step
    yield live(
        "pytorch_optimizer SAM", INNER, "pytorch-optimizer", model, optimizer, call=lambda: step(closure_of(model))
    )
    other = Net()
    plain: Any = sam.SAM(other.parameters(), adamw(other))
    yield live("sam-pytorch SAM", INNER, "sam-pytorch", other, plain, call=lambda: plain.step(closure_of(other, TINY)))


def case_lookahead() -> Iterator[dict[str, Any]]:
    """Lookahead around AdamW, in two libraries."""
    import pytorch_optimizer
    import torch_optimizer

    for name, package, kind in (
        ("pytorch_optimizer Lookahead", "pytorch-optimizer", pytorch_optimizer.Lookahead),
        ("torch_optimizer Lookahead", "torch-optimizer", torch_optimizer.Lookahead),
    ):
        model = Net()
        optimizer = kind(adamw(model), k=5, alpha=0.5)
        yield live(name, f"{INNER}, k=5, alpha=0.5", package, model, optimizer)


def case_adam_mini() -> Iterator[dict[str, Any]]:
    """Adam-mini, which decides by names."""
    from adam_mini import Adam_mini

    model = Net()
    with contextlib.redirect_stdout(io.StringIO()):
        optimizer = Adam_mini(model.named_parameters(), dim=64, n_heads=4, **SETTINGS)
        documented = "Decoupled weight decay to apply."
        yield live(
            "Adam-mini",
            f"lr={LR}, weight_decay={LAM}, dim=64, n_heads=4",
            "adam-mini",
            model,
            optimizer,
            documented=documented,
            verdict="adam-mini-names",
        )


def case_muon() -> Iterator[dict[str, Any]]:
    """Keller Jordan's Muon with its own Adam, without and with a process group."""
    import muon

    def groups(model: Net) -> list[dict[str, Any]]:
        matrices = [model.q_proj.weight, model.fc.weight]
        rest = [p for p in model.parameters() if all(p is not matrix for matrix in matrices)]
        return [
            {"params": matrices, "use_muon": True, **SETTINGS},
            {"params": rest, "use_muon": False, **SETTINGS},
        ]

    model = Net()
    text = f"lr={LR}, weight_decay={LAM}; the rest by its Adam"
    documented = "The AdamW-style weight decay."
    single = muon.SingleDeviceMuonWithAuxAdam(groups(model))
    yield live("muon SingleDeviceMuonWithAuxAdam", text, "muon-optimizer", model, single, documented=documented)
    one_process()
    model = Net()
    several = muon.MuonWithAuxAdam(groups(model))
    text = f"{text}; one process"
    yield live("muon MuonWithAuxAdam", text, "muon-optimizer", model, several, documented=documented)


def case_schedule_free() -> Iterator[dict[str, Any]]:
    """The schedule-free optimizers, in training mode, and their wrapper."""
    import schedulefree

    for name in ("AdamWScheduleFree", "RAdamScheduleFree", "SGDScheduleFree"):
        model = Net()
        verdict = "schedule-free-l2" if name == "AdamWScheduleFree" else "as documented"
        optimizer = getattr(schedulefree, name)(model.parameters(), **SETTINGS)
        text = f"lr={LR}, weight_decay={LAM}"
        yield live(
            f"schedulefree {name}", text, "schedulefree", model, optimizer, ready=optimizer.train, verdict=verdict
        )
    model = Net()
    wrapper = schedulefree.ScheduleFreeWrapper(torch.optim.SGD(model.parameters(), lr=LR), weight_decay_at_y=LAM)
    text = f"SGD(lr={LR}), weight_decay_at_y={LAM}"
    yield live("schedulefree ScheduleFreeWrapper", text, "schedulefree", model, wrapper, ready=wrapper.train)


def case_prodigy() -> Iterator[dict[str, Any]]:
    """Prodigy at its own learning rate of 1."""
    import prodigyopt

    for decouple in (True, False):
        model = Net()
        optimizer = prodigyopt.Prodigy(model.parameters(), lr=1.0, weight_decay=LAM, decouple=decouple)
        text = f"lr=1.0, weight_decay={LAM}, decouple={decouple}"
        # It returns early while all gradients have been zero, so that the calls with zero gradients prove nothing.
        yield live("prodigyopt Prodigy", text, "prodigyopt", model, optimizer, compared=False)


# The optimizers of torch-optimizer that do not do what their documentation says.
VERDICTS = {"SGDW": "torch-optimizer-sgdw", **dict.fromkeys(("AdaMod", "AdamP", "RAdam", "SGDP"), "torch-optimizer-l2")}


def case_torch_optimizer() -> Iterator[dict[str, Any]]:
    """Every optimizer of torch-optimizer that takes a weight decay."""
    yield from identified("torch_optimizer", "torch-optimizer", torch_optimizer_rows())


def torch_optimizer_rows() -> Iterator[Row]:
    """One row per class, at its defaults."""
    import torch_optimizer

    for name in sorted(vars(torch_optimizer)):
        kind = getattr(torch_optimizer, name)
        if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer):
            arguments = inspect.signature(kind.__init__).parameters
            if "weight_decay" in arguments:
                more = {"momentum": 0.9} if name in {"SGDW", "SGDP", "QHM", "PID"} and "momentum" in arguments else {}
                yield Row("torch_optimizer", name, more)


def identified(module: str, package: str, rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """What `halflife.identify` finds for factories: lines of the tables of docs/optimizers.md."""
    for row in rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            law = identify(row.make)
        quote = next((line for line in (inspect.getdoc(row.kind) or "").splitlines() if "weight_decay" in line), "")
        yield {
            "trainer": f"{module} {row.name}",
            "configuration": row.setting_text,
            "package": package,
            "documented": quote.strip(),
            "verdict": VERDICTS.get(row.name, ""),
            "option": row.name,
            "groups": [],
            "line": table_row(row, law),
            "law": law.describe(),
        }
