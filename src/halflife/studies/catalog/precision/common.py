"""What the studies of low precision share: a small GPT, arms that differ in precision, and what counts as a failure.

The setting is one in which few bits matter at this size: a byte GPT at a constant learning rate far above usual ones, whose
weights keep growing without decay. It was found before any run of the presets' seeds, with other text, and looked at once
more with seed 500. Final losses there, after 2,000 steps at learning rate 2e-2, with lam 0 and 0.1: float32 1.98 and 2.14,
7 bits 1.99 and 2.13, 3 bits 2.00 and 2.14, 2 bits 2.37 and 2.21. Without decay, 2 bits in attention scores alone: 2.25,
everywhere but in attention: 2.06; 1 bit: 3.98. At rate 1e-2 without decay: float32 1.94, 2 bits 2.17, 1 bit 3.77. With weights
stored in 7 bits, rate 3e-3, lam 0: float32 1.98, rounded to nearest 2.04, stochastically 2.00, masters 1.99; in 4 bits 2.44,
in 10 bits 1.99.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.catalog.language.common import PAPER, constant_lr, decay, run_arm
from halflife.studies.evidence.claims import Arm
from halflife.studies.specs.precision import AUTOCAST_PLACES

__all__ = ["FAILED", "FLOAT32", "GPT", "PAPER_GPT", "rounded_arm"]

Fields = Mapping[str, Any]

FAILED = 0.1  # nats above the same run in float32: a run that has lost so much is called a failure
FLOAT32 = 23  # explicit mantissa bits

GPT: Fields = {
    "model": "gpt",
    "vocab_size": 64,  # the 63 most frequent bytes, and one for all others
    "context": 32,
    "width": 32,
    "depth": 2,
    "heads": 2,
    "tied": True,
    "init": "gpt2",
    "batch_size": 16,
    "order": "random-offsets",
    "log_every": 100,
    "watch_precision": True,
}
"""A GPT of two layers with a head that is its embedding; 27,800 parameters at width 32."""

PAPER_GPT: Fields = {name: value for name, value in PAPER.items() if name not in {"lr", "precision", "compile"}} | {
    "context": 1_024,
    "batch_size": 64,
    "watch_precision": True,
}
"""GPT-2 as the paper trains it in bfloat16, without learning rate and precision; what is watched is not compiled."""


def rounded_arm(
    key: str,
    fields: Fields,
    *,
    lam: float,
    lr: float,
    num_steps: int,
    warm: int,
    bits: int = FLOAT32,
    forward: Sequence[str] = AUTOCAST_PLACES,
    backward: Sequence[str] = AUTOCAST_PLACES,
    words: str = "",
    **changes: Any,
) -> Arm:
    """Runs at a constant rate whose arithmetic is rounded to so many bits.

    Args:
        key: The arm's key.
        fields: Of the `TextRun`.
        lam: Of decoupled decay.
        lr: Constant after the warm-up.
        num_steps: Steps.
        warm: Steps of the warm-up.
        bits: Explicit mantissa bits; 23 is float32, which rounds nowhere.
        forward: Where numbers are rounded.
        backward: Where gradients are.
        words: What is special, for the label.
        changes: Other fields.

    Returns:
        The arm.
    """
    own = {"lr": lr, "lr_schedule": constant_lr(warm), "decay": decay(lam), "num_steps": num_steps}
    if bits != FLOAT32:
        own |= {"bits": bits, "rounded": tuple(forward), "rounded_gradients": tuple(backward)}
    precision = "float32" if bits == FLOAT32 else f"{bits} bit{'s' * (bits > 1)}"
    label = f"{precision}{f' ({words})' if words else ''}, lam {lam:g}, lr {lr:g}"
    return run_arm(key, label, {**fields, "eval_every": num_steps, **own, **changes})
