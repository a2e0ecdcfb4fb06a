"""Run specs: frozen, plain descriptions of one training run. A run is named by its spec, its trainer's version and its data."""

from __future__ import annotations

from halflife.specs.base import RunSpec, spec_from_json
from halflife.specs.branches import TextBranch, TextReplay
from halflife.specs.exponential import ExponentialRun
from halflife.specs.images import ImageBranch, ImageRun
from halflife.specs.stationary import StationaryRun
from halflife.specs.text import TextRun
from halflife.specs.textbook import ReluRegressionRun, SeparableRun
from halflife.specs.toys import LeastSquaresRun

__all__ = [
    "ExponentialRun",
    "ImageBranch",
    "ImageRun",
    "LeastSquaresRun",
    "ReluRegressionRun",
    "RunSpec",
    "SeparableRun",
    "StationaryRun",
    "TextBranch",
    "TextReplay",
    "TextRun",
    "spec_from_json",
]
