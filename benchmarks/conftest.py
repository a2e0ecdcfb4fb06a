"""Options of the benchmarks."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--rounds``."""
    parser.addoption("--rounds", type=int, default=60, help="rounds per benchmark; each times every variant once")


@pytest.fixture
def rounds(request: pytest.FixtureRequest) -> int:
    """Rounds per benchmark."""
    return int(request.config.getoption("--rounds"))
