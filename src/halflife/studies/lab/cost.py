"""What a run costs: seconds in training and in evaluation, samples a second, memory."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

__all__ = ["Costs", "peak_memory_mb"]

KIB, MIB = 1024, 1024**2


class Costs:
    """Adds up where a run's time goes. What it counts is this process's share of a run that was resumed.

    On an accelerator a part must end with a read of its result, or its time is counted in the next part.

    Examples:
        >>> costs = Costs()
        >>> with costs.of("training"):
        ...     costs.samples += 128
        >>> costs.summary("images")["images_per_second"] > 0
        True
    """

    def __init__(self) -> None:
        self.seconds = {"training": 0.0, "evaluation": 0.0}
        self.samples = 0

    @contextlib.contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Count the time of a block as ``"training"`` or ``"evaluation"``."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[part] += time.perf_counter() - began

    def summary(self, samples: str) -> dict[str, float]:
        """The costs by name.

        Args:
            samples: What was counted, in the plural (``"images"``).

        Returns:
            ``training_seconds``, ``evaluation_seconds``, ``<samples>_per_second`` of training alone (0 if nothing was
            trained) and ``peak_memory_mb``, the process's largest so far, so an upper bound for a run that came later.
        """
        training = self.seconds["training"]
        return {
            "training_seconds": round(training, 3),
            "evaluation_seconds": round(self.seconds["evaluation"], 3),
            f"{samples}_per_second": round(self.samples / training, 1) if training > 0 else 0.0,
            "peak_memory_mb": round(peak_memory_mb(), 1),
        }


def peak_memory_mb() -> float:
    """The largest resident memory that this process has had, in MiB; 0 where the system does not say."""
    try:
        import resource
    except ImportError:  # Windows
        return 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / MIB if sys.platform == "darwin" else peak / KIB
