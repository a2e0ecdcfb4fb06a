"""Choosing among arms without flattering the choice.

Shapes: A arms, S seeds.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from halflife.errors import UserError

__all__ = ["leave_one_out"]


def leave_one_out(scores_AS: NDArray[Any], *, lowest: bool = True) -> NDArray[np.int64]:
    """For each seed the arm that is best on the mean of the other seeds; of equals the first.

    An arm that is chosen on the seeds that it is then measured on looks better than it is, the more so the more arms
    there are. This choice knows nothing of the seed that it is for.

    Args:
        scores_AS: One score per arm and seed, shape (A, S), S >= 2.
        lowest: Whether the best score is the lowest one.

    Returns:
        An arm's index per seed, shape (S,).

    Raises:
        UserError: There are fewer than two seeds or no arms.

    Examples:
        >>> leave_one_out(np.array([[0.0, 3.0, 3.0], [2.0, 2.0, 2.0]]))
        array([1, 0, 0])
    """
    scores = np.asarray(scores_AS, dtype=np.float64)
    num_arms, num_seeds = scores.shape
    if num_seeds < 2 or not num_arms:
        raise UserError(
            f"a choice on the other seeds got {num_arms} arms with {num_seeds} seeds, expected at least 1 with 2: run with"
            " --seeds 2 or more"
        )
    # The mean over seeds with one left out, not the total minus one: equal arms must stay equal to the last bit.
    others = np.stack([np.delete(scores, seed, axis=1).mean(axis=1) for seed in range(num_seeds)], axis=1)
    chosen: NDArray[np.int64] = np.argmin(others if lowest else -others, axis=0)
    return chosen
