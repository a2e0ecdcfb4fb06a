"""Sentences that differ in their numbers alone, said once."""

from __future__ import annotations

import re
from collections.abc import Sequence

__all__ = ["in_common", "spanned", "without_numbers"]

# A number that stands by itself: not a part of a name, such as h.3.weight or float32.
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?(?!\w|\.\w)")


def without_numbers(text: str) -> str:
    """Return what sentences that differ in their numbers alone have in common."""
    return NUMBER.sub("\0", text)


def in_common(texts: Sequence[str]) -> str:
    """Return one sentence for several that differ in their numbers alone.

    Args:
        texts: The sentences; `without_numbers` is the same of all.

    Returns:
        The sentence, with the smallest and the largest number where they differ.

    Examples:
        >>> in_common(["weight_decay is 0.1", "weight_decay is 0.05", "weight_decay is 0.2"])
        'weight_decay is 0.05 to 0.2'
    """
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        return different[0]
    places = zip(*(NUMBER.findall(text) for text in different), strict=True)
    found = iter([spanned({float(value): value for value in values}) for values in places])
    return NUMBER.sub(lambda _: next(found), different[0])


def spanned(values: dict[float, str]) -> str:
    """Return the smallest and the largest of some numbers, as they are written; one if all are the same."""
    least, most = values[min(values)], values[max(values)]
    return least if least == most else f"{least} to {most}"
