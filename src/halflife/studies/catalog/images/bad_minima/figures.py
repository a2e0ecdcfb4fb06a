"""The figures of the study `bad-minima`, and its number beside the paper's."""

from __future__ import annotations

import numpy as np

from halflife.studies.catalog.images.bad_minima import quantities as rules
from halflife.studies.evidence.claims import Cell, PointRow
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, crossed_interval

__all__ = ["errors_by_setting", "gap_against_product", "grid_of_gaps", "resnet_gaps", "smallest_gap"]


def _gap(results: Results, model: str, setting: str) -> Interval:
    return crossed_interval(rules.gap_of(results, model, setting, results.main_size))


def resnet_gaps(results: Results) -> list[Cell]:
    """The ResNet's gap by learning rate and lam."""
    cells = []
    for setting in rules.SETTINGS:
        spec = rules.setting_spec(results, rules.RESNET, setting, results.main_size)
        cells.append(Cell(spec.lr, spec.lam, _gap(results, rules.RESNET, setting).estimate))
    return cells


def grid_of_gaps(results: Results) -> list[Cell]:
    """The MLP's gap by learning rate and lr * lam."""
    return [
        Cell(lr, product, _gap(results, rules.MLP, rules.grid_setting(lr, product)).estimate)
        for lr in rules.GRID_RATES
        for product in rules.GRID_PRODUCTS
    ]


def gap_against_product(results: Results) -> list[PointRow]:
    """The MLP's gap against lr * lam at each rate, and as a line what it is without decay."""
    rows = []
    for lr in rules.GRID_RATES:
        for product in rules.GRID_PRODUCTS[1:]:
            gap = _gap(results, rules.MLP, rules.grid_setting(lr, product))
            rows.append(PointRow(f"lr {lr:g}", product, gap.estimate, gap.low, gap.high))
        without = _gap(results, rules.MLP, rules.grid_setting(lr, 0.0)).estimate
        rows += [
            PointRow(f"lr {lr:g}, lam 0", product, without, style="line")
            for product in (rules.GRID_PRODUCTS[1], rules.GRID_PRODUCTS[-1])
        ]
    return rows


def errors_by_setting(results: Results) -> list[PointRow]:
    """The ResNet's test errors from both starts, against lam."""
    size, rows = results.main_size, []
    for start, name in ((rules.BAD, "from random labels"), (rules.FRESH, "fresh")):
        for setting in rules.SETTINGS:
            spec = rules.setting_spec(results, rules.RESNET, setting, size)
            wrong_SN = 100 * results.last_array(rules.key_of(rules.RESNET, start, setting), "test/wrong", size)
            error = crossed_interval(wrong_SN)
            rows.append(PointRow(f"lr {spec.lr:g}, {name}", spec.lam, error.estimate, error.low, error.high))
    lines = [PointRow(row.series, row.x, row.y, style="line") for row in rows]
    return sorted([*rows, *lines], key=lambda row: row.series)


def smallest_gap(results: Results) -> str:
    """The gaps without decay, of the ResNet at its small rate and of the MLP at its smallest."""
    gaps = [
        _gap(results, rules.RESNET, rules.SMALL_NONE),
        _gap(results, rules.MLP, rules.grid_setting(rules.GRID_RATES[0], 0.0)),
    ]
    return " / ".join(f"{gap.estimate:.2f} ± {np.round(gap.high - gap.estimate, 2):.2f}" for gap in gaps)
