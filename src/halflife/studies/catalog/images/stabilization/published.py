"""The paper's final test errors of large and small learning rates, with and without decay, and ours."""

from __future__ import annotations

import functools

from halflife.studies.evidence.claims import Published
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import seed_interval

__all__ = ["PUBLISHED", "PUBLISHED_VGG"]


def _errors(results: Results, rate: str) -> str:
    """Final test errors (%) with and without decay at one of the two rates, with their intervals over seeds."""
    with_decay, without = (
        seed_interval(100 * results.last(f"{rate}-{arm}", "test/error", results.main_size)) for arm in ("decay", "none")
    )
    return " / ".join(f"{e.estimate:.1f} [{e.low:.1f}, {e.high:.1f}]" for e in (with_decay, without))


def _row(rate: str, published: str, where: str) -> Published:
    return Published(
        quantity=f"final test error (%) with / without decay, {rate} learning rate",
        published=published,
        where=where,
        how="fig-read",
        ours=functools.partial(_errors, rate=rate),
    )


PUBLISHED = (
    _row("large", "9.5 / 14", "figure 2a, ResNet-18 on CIFAR-10, lr 0.1"),
    _row("small", "25 / 33", "figure 2a, ResNet-18 on CIFAR-10, lr 0.001"),
    _row("large", "10.4 / 14.6", "figure 11, ResNet-18 on CIFAR-10, lr 0.08"),
    _row("small", "18.6 / 33.3", "figure 11, ResNet-18 on CIFAR-10, lr 0.001"),
)
PUBLISHED_VGG = (
    _row("large", "16.0 / 19.8", "figure 12, VGG-16 on CIFAR-10, lr 0.1"),
    _row("small", "31 / 24.2", "figure 12, VGG-16 on CIFAR-10, lr 0.01"),
)
