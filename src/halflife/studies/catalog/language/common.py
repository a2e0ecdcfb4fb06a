"""What the studies of language models share: models, schedules, arms with their branches, and the paper's settings.

Every function returns plain fields of `TextRun` or arms made of them, so that studies which ask for the same run ask for
the same name, and it is trained once.

Source: D'Angelo, Andriushchenko, Varre, Flammarion, "Why Do We Need Weight Decay in Modern Deep Learning?" (NeurIPS 2024,
arXiv 2310.04415), section 3 and appendix B: nanoGPT's GPT-2.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from halflife.studies.evidence.claims import Arm
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.text import TextRun

__all__ = [
    "MLP",
    "PAPER",
    "PAPER_NEEDS",
    "PAPER_TITLE",
    "WARMUP",
    "branch_arm",
    "constant_lr",
    "cosine_lr",
    "decay",
    "linear_lr",
    "percent",
    "replay_arm",
    "run_arm",
    "small_gpt",
    "small_mlp",
]

Fields = Mapping[str, Any]
"""Fields of a `TextRun` but its seed."""

PAPER_TITLE = "D'Angelo et al. 2024 (arXiv 2310.04415)"

WARMUP = 100  # steps, of the small models

MLP: Fields = {
    "model": "mlp",
    "vocab_size": 96,  # the 95 most frequent bytes, and one for all others
    "context": 6,
    "embedding_width": 8,
    "depth": 1,
    "norm_gain": False,
    "activation": "relu",
    "init": "fan-in",
    "batch_size": 1024,
    "log_every": 50,
}
"""A residual MLP on the last six bytes; 13,600 parameters at width 32."""

GPT: Fields = {
    "model": "gpt",
    "vocab_size": 96,
    "context": 16,
    "depth": 2,
    "heads": 2,
    "activation": "relu",
    "init": "fan-in",
    "batch_size": 64,  # windows of 16 targets: as many targets a step as the MLP
    "log_every": 50,
}
"""A GPT of two layers; 31,400 parameters at width 32."""

PAPER: Fields = {
    "corpus": "openwebtext",
    "tokenizer": "gpt2",
    "vocab_size": 50_304,
    "num_eval_tokens": 4_194_304,
    "order": "random-offsets",
    "model": "gpt",
    "context": 256,
    "width": 768,
    "depth": 12,
    "heads": 12,
    "tied": True,
    "init": "gpt2",
    "batch_size": 256,
    "accumulate": 4,
    "num_steps": 50_000,
    "lr": 6e-4,
    "precision": "bfloat16",
    "compile": True,
    "eval_every": 1_000,
    "log_every": 100,
}
"""GPT-2 with 124 M parameters as the paper trains it: nanoGPT's defaults, no biases, no dropout."""

PAPER_WIDTH = 768
PAPER_NEEDS = (
    "OpenWebText (--data DIR with nanoGPT's train.bin and val.bin, or the package datasets and a network) and a GPU"
)


def small_mlp(width: int = 32, **changes: Any) -> dict[str, Any]:
    """The byte MLP with a residual stream of a width; the changes are fields to set or replace."""
    return {**MLP, "width": width, **changes}


def small_gpt(width: int = 32, **changes: Any) -> dict[str, Any]:
    """The small GPT at a width, a multiple of its two heads; the changes are fields to set or replace."""
    return {**GPT, "width": width, **changes}


def constant_lr(warm: int = WARMUP) -> str:
    """Warm-up, then the full rate to the end, as text for `TextRun.lr_schedule`."""
    return _after_warmup(warm, "constant(value=1.0)")


def linear_lr(num_steps: int, warm: int = WARMUP) -> str:
    """Warm-up, then a straight line, as text for `TextRun.lr_schedule`: 0 after the last step, which has a small rate."""
    return _after_warmup(warm, f"linear(start=1.0, end=0.0, steps={num_steps - warm})")


def cosine_lr(num_steps: int, end: float, warm: int = WARMUP) -> str:
    """Warm-up, then half a cosine to ``end``, as text for `TextRun.lr_schedule`."""
    return _after_warmup(warm, f"cosine(start=1.0, end={float(end)!r}, steps={num_steps - warm})")


def _after_warmup(warm: int, then: str) -> str:
    """The text by hand: it is part of a run's name, which must not change with the way in which schedules print."""
    return f"join(schedules=(warmup(steps={warm}), {then}), boundaries=({warm},))"


def decay(lam: float) -> str:
    """Decoupled decay as text for `TextRun.decay`; empty for 0."""
    return f"Decoupled(lam={lam:g})" if lam else ""


def percent(num_steps: int, shares: Sequence[int]) -> tuple[int, ...]:
    """Steps at so many per cent of a run."""
    return tuple(round(num_steps * share / 100) for share in shares)


def run_arm(key: str, label: str, fields: Fields) -> Arm:
    """An arm of plain runs; its size is their width."""
    return Arm(key=key, label=label, size=fields["width"], spec=TextRun(**fields))


def branch_arm(
    key: str, label: str, fields: Fields, *, at: int, branch: str, num_steps: int, lr_factor: float = 1 / 60
) -> Arm:
    """An arm of branches from the runs of another arm with the same fields; the other arguments are those of `TextBranch`."""
    spec = TextBranch(of=TextRun(**fields), at=at, branch=branch, num_steps=num_steps, lr_factor=lr_factor)
    return Arm(key=key, label=label, size=fields["width"], spec=spec)


def replay_arm(key: str, label: str, fields: Fields, *, match: str) -> Arm:
    """An arm of replays of the runs of another arm with the same fields, ``trace_norms`` among them."""
    return Arm(key=key, label=label, size=fields["width"], spec=TextReplay(of=TextRun(**fields), match=match))
