"""What accelerate, Lightning, bitsandbytes and GaLore put around or in place of AdamW."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from live import LAM, LR, Net, live, zero_gradients

from cases.optimizers import INNER, SETTINGS, adamw


def case_accelerate() -> Iterator[dict[str, Any]]:
    """prepare() around AdamW, without and with accumulation."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    model = Net()
    model_, optimizer = accelerator.prepare(model, adamw(model))
    yield live("accelerate prepare()", INNER, "accelerate", model_, optimizer)
    accelerator.gradient_accumulation_steps = 4
    model = Net()
    model_, optimizer = accelerator.prepare(model, adamw(model))

    def call() -> None:
        with accelerator.accumulate(model_):
            zero_gradients(model_)
            optimizer.step()

    text = f"{INNER}, gradient_accumulation_steps=4, step() within accumulate()"
    yield live("accelerate prepare()", text, "accelerate", model_, optimizer, call=call)


def case_fabric() -> Iterator[dict[str, Any]]:
    """Fabric's wrapper, and the one that manual optimization has."""
    from lightning.fabric import Fabric
    from lightning.pytorch.core.optimizer import LightningOptimizer

    fabric = Fabric(accelerator="cpu", devices=1)
    model = Net()
    _, optimizer = fabric.setup(model, adamw(model))
    yield live("Lightning Fabric setup()", INNER, "lightning", model, optimizer)
    model = Net()
    inner = adamw(model)
    wrapper: Any = LightningOptimizer(inner)
    text = f"{INNER}, before a Trainer has it"
    yield live("Lightning LightningOptimizer", text, "lightning", model, wrapper, call=inner.step)


def case_bitsandbytes() -> Iterator[dict[str, Any]]:
    """What bitsandbytes can step on a CPU."""
    import bitsandbytes

    for name in ("AdamW", "AdamW8bit", "Lion8bit", "SGD8bit"):
        model = Net()
        more = {"momentum": 0.9} if name == "SGD8bit" else {}
        optimizer = getattr(bitsandbytes.optim, name)(model.parameters(), **SETTINGS, **more)
        text = f"lr={LR}, weight_decay={LAM}"
        try:
            yield live(f"bitsandbytes {name}", text, "bitsandbytes", model, optimizer)
        except Exception as error:  # the reason is the result
            yield {
                "trainer": f"bitsandbytes {name}",
                "configuration": text,
                "package": "bitsandbytes",
                "documented": "",
                "verdict": "",
                "option": "",
                "groups": [],
                "error": f"{type(error).__name__}: {error}".splitlines()[0][:160],
            }


def case_galore() -> Iterator[dict[str, Any]]:
    """GaLore's AdamW, with its projection for one group."""
    from galore_torch import GaLoreAdamW

    model = Net()
    low = [model.q_proj.weight, model.fc.weight]
    rest = [p for p in model.parameters() if all(p is not each for each in low)]
    galore = {"rank": 4, "update_proj_gap": 200, "scale": 0.25, "proj_type": "std"}
    optimizer = GaLoreAdamW([{"params": rest}, {"params": low, **galore}], no_deprecation_warning=True, **SETTINGS)
    documented = "Decoupled weight decay to apply."
    text = f"lr={LR}, weight_decay={LAM}, rank=4 for matrices"
    yield live("GaLoreAdamW", text, "galore-torch", model, optimizer, documented=documented)
