"""What is forgotten and what is still to come: identities that hold for any gradients, up to rounding.

With decoupled decay ``w_{t+1} = (1 - r_t) w_t - lr_t u_t``, whatever the updates u_t are. All functions here take the
fractions ``r_0, r_1, ...`` of a whole run, such as ``[units.fraction(lam, lr(t)) for t in range(num_steps)]``.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

from halflife.numbers import check_fraction

__all__ = ["ema_weights", "remaining_decay"]


def remaining_decay(fractions: Iterable[float]) -> list[float]:
    """How much decay a run has left at each step, in e-foldings.

        E_t = sum_{s >= t} -ln(1 - r_s),    about sum_{s >= t} r_s

    Of what a weight is at step t, ``exp(-E_t)`` is left at the end. E_0 is the whole budget: compare schedules of the decay
    at an equal one. Decay that is switched off late has little effect where the learning rate has taken E_t to 0 by then.

    Source: the sum over r is the exponent of the average in Wang and Aitchison 2024 (arXiv 2405.13698); as a budget:
    derived here.

    Validity: exact for decoupled decay. A penalty (L2) under SGD with momentum reaches its r = lr lam / (1 - mu) with a lag
    of 1 / (1 - mu) steps; under Adam no one fraction exists.

    Args:
        fractions: r of each step, in order, each in [0, 1).

    Returns:
        T + 1 numbers for T steps; the last is 0.

    Examples:
        >>> [round(left, 3) for left in remaining_decay([0.5, 0.1, 0.1])]
        [0.904, 0.211, 0.105, 0.0]
        >>> from halflife.schedules import cosine
        >>> shape = cosine(1.0, 0.0, 1000)
        >>> plain = remaining_decay([1e-3 * shape(t) for t in range(1000)])
        >>> corrected = remaining_decay([1e-3 * shape(t) ** 2 for t in range(1000)])  # AdamC
        >>> round(corrected[0] / plain[0], 2), round(plain[750] / plain[0], 3)
        (0.75, 0.025)
    """
    lost = [-math.log1p(-check_fraction(r)) for r in fractions]
    return list(itertools.accumulate(reversed(lost), initial=0.0))[::-1]


def ema_weights(fractions: Iterable[float]) -> tuple[float, list[float]]:
    """The weights of a run as an average of its start and of its updates.

        w_T = k w_0 + sum_t c_t (-u_t / lam_t),    c_t = r_t prod_{s > t} (1 - r_s),    k = prod_t (1 - r_t),

    with ``lam_t = r_t / lr_t`` and ``k + sum_t c_t = 1``: an exponential moving average of ``-u / lam`` with the time scale
    1 / r.

    Source: Wang and Aitchison 2024 (arXiv 2405.13698).

    Validity: exact for decoupled decay and any updates. A step with r = 0 has c = 0, but its update stays whole in w_T: as
    an average a run can be read only from where its decay is on.

    Args:
        fractions: r of each step, in order, each in [0, 1).

    Returns:
        k, and the c_t in order.

    Examples:
        >>> ema_weights([0.5, 0.5, 0.5])
        (0.125, [0.125, 0.25, 0.5])
    """
    fractions = [check_fraction(r) for r in fractions]
    kept, weights = 1.0, []
    for r in reversed(fractions):
        weights.append(r * kept)
        kept *= 1.0 - r
    return kept, weights[::-1]
