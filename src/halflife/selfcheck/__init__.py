"""The conformance table: every rule on every optimizer, against references that know nothing of halflife."""

from __future__ import annotations

__all__: list[str] = []


def __dir__() -> list[str]:
    return sorted(__all__)
