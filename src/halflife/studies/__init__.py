"""Claims of the literature as experiments: specs, training, store, evidence, report, and the catalog of studies.

What a study of one's own is written with, and what reads a store, can be imported from here; each name is loaded when it is
first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from halflife.studies.catalog import STUDIES as STUDIES
    from halflife.studies.catalog import get_study as get_study
    from halflife.studies.evidence.claims import Arm as Arm
    from halflife.studies.evidence.claims import Claim as Claim
    from halflife.studies.evidence.claims import Preset as Preset
    from halflife.studies.evidence.claims import Published as Published
    from halflife.studies.evidence.claims import Study as Study
    from halflife.studies.evidence.claims import presets as presets
    from halflife.studies.evidence.panels import Cell as Cell
    from halflife.studies.evidence.panels import HeatPanel as HeatPanel
    from halflife.studies.evidence.panels import Panel as Panel
    from halflife.studies.evidence.panels import PointRow as PointRow
    from halflife.studies.evidence.panels import PointsPanel as PointsPanel
    from halflife.studies.evidence.quantities import Best as Best
    from halflife.studies.evidence.quantities import Each as Each
    from halflife.studies.evidence.quantities import NotMeasuredError as NotMeasuredError
    from halflife.studies.evidence.quantities import Quantity as Quantity
    from halflife.studies.evidence.quantities import Reading as Reading
    from halflife.studies.evidence.quantities import mean_of as mean_of
    from halflife.studies.evidence.results import Results as Results
    from halflife.studies.evidence.rows import against as against
    from halflife.studies.evidence.rows import along as along
    from halflife.studies.evidence.rows import grid as grid
    from halflife.studies.evidence.rows import published_level as published_level
    from halflife.studies.evidence.rules import Premise as Premise
    from halflife.studies.evidence.rules import Rule as Rule
    from halflife.studies.evidence.tests import above as above
    from halflife.studies.evidence.tests import below as below
    from halflife.studies.evidence.tests import differs as differs
    from halflife.studies.evidence.tests import exceeds as exceeds
    from halflife.studies.evidence.tests import lowered as lowered
    from halflife.studies.evidence.tests import reduced as reduced
    from halflife.studies.evidence.tests import within as within
    from halflife.studies.evidence.tests import within_factor as within_factor
    from halflife.studies.specs import ImageRun as ImageRun
    from halflife.studies.specs import RunSpec as RunSpec
    from halflife.studies.specs import TextRun as TextRun
    from halflife.studies.specs.trainers import Trainer as Trainer
    from halflife.studies.store.store import Store as Store

_GIVEN_BY = {
    "catalog": ("STUDIES", "get_study"),
    "evidence.claims": ("Arm", "Claim", "Preset", "Published", "Study", "presets"),
    "evidence.panels": ("Cell", "HeatPanel", "Panel", "PointRow", "PointsPanel"),
    "evidence.quantities": ("Best", "Each", "NotMeasuredError", "Quantity", "Reading", "mean_of"),
    "evidence.results": ("Results",),
    "evidence.rows": ("against", "along", "grid", "published_level"),
    "evidence.rules": ("Premise", "Rule"),
    "evidence.tests": ("above", "below", "differs", "exceeds", "lowered", "reduced", "within", "within_factor"),
    "specs": ("ImageRun", "RunSpec", "TextRun"),
    "specs.trainers": ("Trainer",),
    "store.store": ("Store",),
}
_HOME = {name: module for module, names in _GIVEN_BY.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"halflife.studies.{_HOME[name]}"), name)
    raise AttributeError(f"module 'halflife.studies' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(_HOME)
