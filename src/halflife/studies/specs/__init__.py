"""Run specs: frozen, plain descriptions of one training run. A run is named by its spec, its trainer's version and its data."""

from __future__ import annotations

from halflife.studies.specs.base import RunSpec, spec_from_json
from halflife.studies.specs.branches import TextBranch, TextReplay
from halflife.studies.specs.exponential import ExponentialRun
from halflife.studies.specs.images import ImageBranch, ImageRun
from halflife.studies.specs.least_squares import LeastSquaresRun
from halflife.studies.specs.noise_only import NoiseOnlyRun
from halflife.studies.specs.scales import ScalesRun
from halflife.studies.specs.stationary import StationaryRun
from halflife.studies.specs.text import TextRun
from halflife.studies.specs.textbook import ReluRegressionRun, SeparableRun

__all__ = [
    "ExponentialRun",
    "ImageBranch",
    "ImageRun",
    "LeastSquaresRun",
    "NoiseOnlyRun",
    "ReluRegressionRun",
    "RunSpec",
    "ScalesRun",
    "SeparableRun",
    "StationaryRun",
    "TextBranch",
    "TextReplay",
    "TextRun",
    "spec_from_json",
]
