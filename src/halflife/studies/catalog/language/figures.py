"""Points and published rows that the language-model studies draw from their results: means over seeds with intervals."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from halflife.studies.catalog.language.quantities import shares_of, starting_with, step_of
from halflife.studies.catalog.language.settings import LAMS, LONG, key_of
from halflife.studies.evidence.claims import PointRow
from halflife.studies.evidence.optimum import lam_of
from halflife.studies.evidence.results import Results
from halflife.studies.evidence.stats import Interval, seed_interval
from halflife.studies.specs.text import TextRun

__all__ = ["along_a_run", "by_rate", "gaps_along_a_run", "three"]


def _decay_of(results: Results, lam: str, size: int) -> str:
    """What a lam's name stands for at a size: the text of its decay, for legends."""
    spec = results.spec(key_of("decayed", lam), size)
    assert isinstance(spec, TextRun)
    return f"lam {lam_of(spec):g}"


def _rows(series: str, x: float, values: Interval) -> list[PointRow]:
    """A vertex of a line, and a point there with its interval."""
    return [
        PointRow(series=series, x=x, y=values.estimate, style="line"),
        PointRow(series=series, x=x, y=values.estimate, low=values.low, high=values.high),
    ]


def by_rate(results: Results, kind: str, metric: str = "val/loss") -> list[PointRow]:
    """The last loss against the learning rate, a line a lam.

    Args:
        results: What the store holds.
        kind: ``"constant"`` or ``"decayed"``.
        metric: The loss.

    Returns:
        Means over seeds with 95 % intervals.
    """
    size, rows = results.main_size, []
    for lam, prefix in itertools.product(LAMS, ("", LONG)):
        points = []
        for key in starting_with(results, f"{prefix}{kind}-{lam}-x", size):
            spec = results.spec(key, size)
            assert isinstance(spec, TextRun)
            name = _decay_of(results, lam, size) + (f", context {spec.context}" if prefix else "")
            points.append((spec.lr, name, seed_interval(results.last(key, metric, size))))
        for lr, name, values in sorted(points, key=lambda point: point[0]):
            rows += _rows(name, lr, values)
    return rows


def along_a_run(results: Results, kind: str) -> list[PointRow]:
    """The loss along a run, and after a tiny-lr branch from there, against the step at which it starts.

    Args:
        results: What the store holds.
        kind: ``"constant"`` or ``"decayed"``.

    Returns:
        Means over seeds with 95 % intervals.
    """
    size, rows = results.main_size, []
    for lam in LAMS:
        name = _decay_of(results, lam, size)
        for share in shares_of(results, "tiny-lr", kind, size):
            step = step_of(results, kind, share, size)
            run = seed_interval(results.at_step(key_of(kind, lam), "val/loss", step, size))
            branch = seed_interval(results.last(f"tiny-lr-{kind}-{lam}-{share}", "val/loss", size))
            rows += [*_rows(f"{name}, the run", step, run), *_rows(f"{name}, after the branch", step, branch)]
    return sorted(rows, key=lambda row: row.series)


def gaps_along_a_run(results: Results, kind: str) -> list[PointRow]:
    """What decay changes along a run and after a tiny-lr branch from there: differences paired by seed.

    Args:
        results: What the store holds.
        kind: ``"constant"`` or ``"decayed"``.

    Returns:
        Means over seeds with 95 % intervals.
    """
    size, rows = results.main_size, []
    for lam in LAMS[1:]:
        name = _decay_of(results, lam, size)
        for share in shares_of(results, "tiny-lr", kind, size):
            step = step_of(results, kind, share, size)
            pair = [results.at_step(key_of(kind, name_), "val/loss", step, size) for name_ in (lam, "none")]
            after = [results.last(f"tiny-lr-{kind}-{name_}-{share}", "val/loss", size) for name_ in (lam, "none")]
            rows += _rows(f"{name}, the run", step, seed_interval(pair[0] - pair[1]))
            rows += _rows(f"{name}, after the branch", step, seed_interval(after[0] - after[1]))
    return sorted(rows, key=lambda row: row.series)


def three(results: Results, keys: Sequence[str], metric: str, step: int | None = None, digits: int = 3) -> str:
    """The means over seeds of one quantity in several arms, with the half width of their 95 % intervals, as text.

    Args:
        results: What the store holds.
        keys: The arms.
        metric: The quantity.
        step: The step (``None``: the last reading).
        digits: After the point.

    Returns:
        Such as ``"1.910 ± 0.004 / 1.899 ± 0.003"``.
    """
    size, words = results.main_size, []
    for key in keys:
        values = results.last(key, metric, size) if step is None else results.at_step(key, metric, step, size)
        interval = seed_interval(values)
        words.append(f"{interval.estimate:.{digits}f} ± {interval.high - interval.estimate:.{digits}f}")
    return " / ".join(words)
