"""Theory: what weight decay does to norms and angles, and the rules that follow, as functions of plain numbers.

Every function takes and returns Python numbers, imports nothing beyond the standard library, and says where its formula is
from, when it holds, and how far it was off where it was measured against a simulation.

Examples:
    >>> at = adamw(lr=3e-4, lam=0.1, num_weights=768 * 768)
    >>> round(at.norm, 1), round(at.rotation, 5)  # radians a step
    (29.7, 0.00178)
    >>> round(relaxation_steps(at, start=15.4))  # from an initial standard deviation of 0.02
    22476
"""

from __future__ import annotations

from halflife.theory.equilibrium import (
    Equilibrium,
    adam_l2,
    adams,
    adamw,
    cautious_adamw,
    lion,
    muon,
    relaxation_steps,
    sgd,
    sgds,
    sgdw,
)
from halflife.theory.equivalence import effective_lr, exponential_lr, exponential_root, mup_warmup
from halflife.theory.memory import ema_weights, remaining_decay
from halflife.theory.tuning import (
    lam_for_rotation,
    lam_for_timescale,
    lion_from_adamw,
    power_law_lam,
    power_law_timescale,
    scaled_lam,
)

__all__ = [
    "Equilibrium",
    "adam_l2",
    "adams",
    "adamw",
    "cautious_adamw",
    "effective_lr",
    "ema_weights",
    "exponential_lr",
    "exponential_root",
    "lam_for_rotation",
    "lam_for_timescale",
    "lion",
    "lion_from_adamw",
    "muon",
    "mup_warmup",
    "power_law_lam",
    "power_law_timescale",
    "relaxation_steps",
    "remaining_decay",
    "scaled_lam",
    "sgd",
    "sgds",
    "sgdw",
]


def __dir__() -> list[str]:
    return sorted(__all__)
