"""The settings of the language-model studies: which model, how long, at which learning rates and decays.

Learning rates, lams and lengths were looked for on seeds 1000 and 1001, before any run of the presets' seeds (0, 1, ...),
with these aims: the grid of rates of the decayed runs brackets the best one without decay; lr * lam * (sum of the
schedule) is about 1.5 and 5, as with the paper's lam 0.1 and 0.3; a run takes seconds. What was tried is in docs/studies.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from halflife.studies.catalog.language.common import (
    PAPER,
    Fields,
    branch_arm,
    constant_lr,
    cosine_lr,
    decay,
    linear_lr,
    percent,
    run_arm,
    small_gpt,
    small_mlp,
)
from halflife.studies.evidence.claims import Arm

__all__ = [
    "LAMS",
    "LAPTOP",
    "LAPTOP_GPT",
    "LONG",
    "NIGHT",
    "NIGHT_WIDTHS",
    "PAPER_LONG",
    "PAPER_SETTING",
    "SMOKE",
    "Setting",
    "key_of",
    "prefixed",
]

LAMS = ("none", "moderate", "large")
LONG = "long-"
"""What the keys of runs with a longer context start with."""


def key_of(kind: str, lam: str, multiple: float = 1) -> str:
    """The key of the runs with a schedule, a lam and a multiple of the main learning rate."""
    return f"{kind}-{lam}-x{multiple:g}"


def prefixed(prefix: str, label: str, arms: Sequence[Arm]) -> list[Arm]:
    """The same arms under other names: runs of a second model beside those of the main one."""
    return [dataclasses.replace(arm, key=f"{prefix}{arm.key}", label=f"{label}, {arm.label}") for arm in arms]


@dataclass(frozen=True, kw_only=True)
class Setting:
    """A model with the numbers of its runs; every study that asks for the same run gets the same spec.

    Args:
        fields: Of the `TextRun`, without learning rate, schedule, decay and steps.
        num_steps: Steps of the constant and of the decayed runs.
        lams: Decoupled decay by name: none, moderate, large.
        constant_lr: The main rate of the runs at a constant rate.
        constant_multiples: Multiples of it that are run; branches start from 1.
        decayed_lr: The main rate of the runs with a decayed one.
        decayed_multiples: Multiples of it that are run; branches start from 1.
        decayed_end: The decayed rate ends at this multiple of its peak; 0 in a straight line, else as a cosine.
        warm: Steps of the warm-up.
        branch_steps: Steps of a branch.
        constant_shares: Per cent of the constant run at which branches start.
        decayed_shares: Per cent of the decayed run at which branches start.
        eval_every: Evaluate every so many steps, besides where branches start and at the end (``None``: nowhere else).
    """

    fields: Fields
    num_steps: int
    lams: Mapping[str, float]
    constant_lr: float
    constant_multiples: tuple[float, ...]
    decayed_lr: float
    decayed_multiples: tuple[float, ...]
    decayed_end: float = 0.0
    warm: int = 100
    branch_steps: int
    constant_shares: tuple[int, ...] = (20, 40, 60, 80, 100)
    decayed_shares: tuple[int, ...] = (20, 40, 60, 80)
    eval_every: int | None = None

    def at_width(self, width: int, **changes: Any) -> Setting:
        """The same numbers for another width of the model."""
        return dataclasses.replace(self, fields={**self.fields, "width": width, **changes})

    def constant(self, lam: str, multiple: float = 1) -> dict[str, Any]:
        """Fields of a run at a constant rate; those that branches start from also average their weights."""
        own: dict[str, Any] = {"lr": self.constant_lr * multiple, "lr_schedule": constant_lr(self.warm)}
        if multiple == 1:
            own["keep_at"] = percent(self.num_steps, self.constant_shares)
            own |= {"ema": (0.99,), "average_from": self.num_steps // 2 + 1}
        return self._run(lam, own)

    def decayed(self, lam: str, multiple: float = 1) -> dict[str, Any]:
        """Fields of a run whose rate decays."""
        schedule = (
            cosine_lr(self.num_steps, self.decayed_end, self.warm)
            if self.decayed_end
            else linear_lr(self.num_steps, self.warm)
        )
        own: dict[str, Any] = {"lr": self.decayed_lr * multiple, "lr_schedule": schedule}
        if multiple == 1:
            own["keep_at"] = percent(self.num_steps, self.decayed_shares)
        return self._run(lam, own)

    def _run(self, lam: str, own: Mapping[str, Any]) -> dict[str, Any]:
        common = {"num_steps": self.num_steps, "eval_every": self.eval_every or self.num_steps}
        return {**self.fields, **common, "decay": decay(self.lams[lam]), **own}

    def run_arms(self, kind: str) -> list[Arm]:
        """The runs of one schedule, ``"constant"`` or ``"decayed"``: every lam at every rate."""
        multiples = self.constant_multiples if kind == "constant" else self.decayed_multiples
        return [self.run_arm(kind, lam, multiple) for multiple in multiples for lam in LAMS]

    def run_arm(self, kind: str, lam: str, multiple: float = 1) -> Arm:
        """The runs of one schedule with one lam at one rate."""
        fields = self.constant(lam, multiple) if kind == "constant" else self.decayed(lam, multiple)
        label = f"{kind} lr {fields['lr']:g}, lam {self.lams[lam]:g}"
        return run_arm(key_of(kind, lam, multiple), label, fields)

    def branch_arms(self, kind: str, branch: str, shares: tuple[int, ...]) -> list[Arm]:
        """Branches from the runs at the main rate of one schedule: every lam at every share (per cent) of the run."""
        return [self.branch_arm(kind, branch, lam, share) for share in shares for lam in LAMS]

    def branch_arm(self, kind: str, branch: str, lam: str, share: int) -> Arm:
        """Branches from the run with one lam at one share."""
        fields = self.constant(lam) if kind == "constant" else self.decayed(lam)
        (at,) = percent(self.num_steps, (share,))
        label = f"{branch} after {share} % of {kind} lr {fields['lr']:g}, lam {self.lams[lam]:g}"
        return branch_arm(
            f"{branch}-{kind}-{lam}-{share}", label, fields, at=at, branch=branch, num_steps=self.branch_steps
        )


NIGHT_WIDTHS = (16, 32, 64)

LAPTOP = Setting(
    fields=small_mlp(32),
    num_steps=2000,
    lams={"none": 0.0, "moderate": 0.03, "large": 0.1},
    constant_lr=0.024,
    constant_multiples=(0.5, 1),
    decayed_lr=0.048,
    decayed_multiples=(1, 2, 4),
    branch_steps=400,
)

LAPTOP_GPT = Setting(
    fields=small_gpt(32),
    num_steps=1500,
    lams={"none": 0.0, "moderate": 0.1, "large": 0.3},
    constant_lr=0.01,
    constant_multiples=(1,),
    constant_shares=(),
    decayed_lr=0.02,
    decayed_multiples=(1,),
    decayed_shares=(),
    branch_steps=400,
)
"""A second model beside `LAPTOP`, without branches."""

SMOKE = Setting(
    fields=small_mlp(16, batch_size=64, num_train_tokens=200_000, num_eval_tokens=2_048, log_every=5),
    num_steps=20,
    lams={"none": 0.0, "moderate": 0.03, "large": 0.1},
    constant_lr=0.024,
    constant_multiples=(1, 2),
    decayed_lr=0.048,
    decayed_multiples=(1, 2),
    warm=4,
    branch_steps=5,
    constant_shares=(20, 100),
    decayed_shares=(20, 40),
)

NIGHT = Setting(
    fields=small_gpt(32),
    num_steps=2000,
    lams={"none": 0.0, "moderate": 0.075, "large": 0.25},
    constant_lr=0.01,
    constant_multiples=(1, 2),
    decayed_lr=0.02,
    decayed_multiples=(0.5, 1, 2, 4),
    branch_steps=400,
)

PAPER_SETTING = Setting(
    fields=PAPER,
    num_steps=50_000,
    lams={"none": 0.0, "moderate": 0.1, "large": 0.3},
    constant_lr=6e-4,
    constant_multiples=(1,),
    decayed_lr=6e-4,
    decayed_multiples=(1,),
    decayed_end=0.1,
    warm=400,
    branch_steps=10_000,
    decayed_shares=(20, 40, 60, 80, 100),
    eval_every=1_000,
)

PAPER_LONG = dataclasses.replace(
    PAPER_SETTING.at_width(768, context=1024, accumulate=16), decayed_lr=3e-4, decayed_multiples=(1, 2, 10 / 3)
)
"""Figure 25: three learning rates at context 1024."""
