"""Seeds for torch's generators, each for one purpose."""

from __future__ import annotations

import hashlib

__all__ = ["seed_of"]


def seed_of(name: str) -> int:
    """A seed of 32 bits for a purpose.

    A CPU generator takes 32 bits of a seed and ignores the rest without a word, so all that tells purposes apart is
    hashed into them.

    Args:
        name: Such as ``"order/3/17"``: another name, an unrelated seed.

    Returns:
        A number below 2^32.

    Examples:
        >>> seed_of("order/0/0") != seed_of("order/0/1")
        True
    """
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4])
