"""Marks that tests get by the cases that they are made from."""

from __future__ import annotations

import pytest

from tests import FLOOR_BINDS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let the row at the floor of `Stable` warn, as it must; everywhere else the warning is an error."""
    for item in items:
        if "at-the-floor" in item.name:
            item.add_marker(pytest.mark.filterwarnings(f"ignore:{FLOOR_BINDS}:UserWarning"))
