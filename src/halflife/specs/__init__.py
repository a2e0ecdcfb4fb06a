"""Run specs: frozen, plain descriptions of one training run. A run is named by its spec, its code and its data."""

from __future__ import annotations

from halflife.specs.base import RunSpec, spec_from_json
from halflife.specs.images import ImageRun

__all__ = ["ImageRun", "RunSpec", "spec_from_json"]
