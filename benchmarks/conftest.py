"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rounds`` and ``--quick``."""
    parser.addoption("--rounds", type=int, default=60, help="rounds per benchmark; each times every variant once")
    parser.addoption("--quick", action="store_true", help="few rounds: two or three minutes in all")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """Rounds per benchmark."""
    return 9 if request.config.getoption("--quick") else int(request.config.getoption("--rounds"))
