"""Tests: one folder a package, and `tests.oracles` for what only tests compare with."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

FLOOR_BINDS = "the floor of Stable"  # how the warning begins with which a row of the table of rules must come

HAS_MUON = hasattr(torch.optim, "Muon")  # torch 2.9 and newer
needs_muon = pytest.mark.skipif(not HAS_MUON, reason="this torch has no Muon")
