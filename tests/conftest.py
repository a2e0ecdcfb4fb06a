"""The order of the test modules, and marks that tests get by the cases that they are made from."""

from __future__ import annotations

import pytest

from tests import FLOOR_BINDS

# The longest modules. A worker that got one of them last would leave the other idle.
FIRST = (
    "cli/test_end_to_end",
    "laws/test_identify.",
    "lab/test_text_distributed",
    "optim/test_distributed",
    "lab/test_lab",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the longest modules, and let the row at the floor of `Stable` warn, which is an error elsewhere."""
    items.sort(key=lambda item: not any(name in item.nodeid for name in FIRST))
    for item in items:
        if "at-the-floor" in item.name:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{FLOOR_BINDS}:UserWarning"))
