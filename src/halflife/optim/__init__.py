"""Everything that touches a live optimizer: `attach`, its hooks, and how a decay is carried out."""

from __future__ import annotations

from halflife.optim.attaching import Handle, attach, handle_of

__all__ = ["Handle", "attach", "handle_of"]


def __dir__() -> list[str]:
    return sorted(__all__)
